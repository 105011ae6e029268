//! Certificates and keys of a small cluster: an authority of its own, a certificate for each node, or one key for all.
//!
//! A folder made by [`init`]:
//!
//! | file | mode | what |
//! |---|---|---|
//! | `ca.pem` | 0644 | the authority; every node has it |
//! | `ca-key.pem` | 0600 | its key: signs more certificates, and stays where it was made |
//! | `NAME.pem`, `NAME-key.pem` | 0644, 0600 | a node's certificate and key |
//!
//! Larger clusters have an authority already (SPIRE, cert-manager, Vault); their certificates are used as they are.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use moai_transport::{AllowList, Name};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, SanType,
};
use thiserror::Error;

use crate::config::{CertificateFiles, Security};

pub use moai_transport_tcp::{Described, describe};

/// Below which nodes' SPIFFE IDs are, unless told otherwise.
pub const DEFAULT_PREFIX: &str = "spiffe://moai/node";
/// The node whose certificate is used where none is named.
pub const DEFAULT_NODE: &str = "node";
/// Days that a node's certificate holds, unless told otherwise.
pub const DEFAULT_DAYS: u32 = 365;
/// Days that an authority holds: longer than the hardware.
const AUTHORITY_DAYS: u32 = 3650;
/// Certificates hold from this long before they are made, for clocks that go differently.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

const AUTHORITY: &str = "ca";
const SHARED: &str = "shared-key.pem";

/// A certificate or key could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeysError {
    /// A file is there already. Whoever wants another authority takes another folder.
    #[error(
        "{path} is there already and is not overwritten; take another folder, or `moai keys issue` for more certificates of its authority"
    )]
    Exists {
        /// The file.
        path: String,
    },
    /// A node cannot be called so.
    #[error("node {name:?} cannot be: {problem}")]
    Node {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: String,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// The folder has not what was asked for.
    #[error("{path} has no {wanted}; it has {has}")]
    Missing {
        /// The folder.
        path: String,
        /// What was asked for.
        wanted: String,
        /// What there is.
        has: String,
    },
    /// The library for certificates refuses.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
}

/// Who gets a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)] // Callers write these out.
pub struct Nodes {
    /// Names, each of letters, digits, `.`, `-` and `_`. A name is the last part of the node's SPIFFE ID, and its DNS name
    /// if it can be one.
    pub names: Vec<String>,
    /// What stands before the names in SPIFFE IDs, as `spiffe://cluster/ns/serving`.
    pub prefix: String,
    /// Days that the certificates hold.
    pub days: u32,
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            names: vec![DEFAULT_NODE.to_owned()],
            prefix: DEFAULT_PREFIX.to_owned(),
            days: DEFAULT_DAYS,
        }
    }
}

/// Makes an authority in `folder`, and certificates for `nodes`. Returns the files.
///
/// # Errors
///
/// [`KeysError`]; no file that is there is changed.
pub fn init(folder: &Path, nodes: &Nodes) -> Result<Vec<PathBuf>, KeysError> {
    let requests = nodes.requests()?;
    make_folder(folder)?;
    let names = [AUTHORITY]
        .into_iter()
        .chain(nodes.names.iter().map(String::as_str));
    for path in names.flat_map(|name| pair(folder, name)) {
        refuse_existing(&path)?;
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = named("MoAI authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_dates(&mut params, AUTHORITY_DAYS);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?.pem();
    let [certificate_path, key_path] = pair(folder, AUTHORITY);
    write_new(&key_path, &key.serialize_pem(), 0o600)?;
    write_new(&certificate_path, &certificate, 0o644)?;
    let issuer = Issuer::new(params, key);
    let mut files = vec![certificate_path, key_path];
    for (name, params) in requests {
        files.extend(sign(folder, &name, &params, &issuer, write_new)?);
    }
    Ok(files)
}

/// Makes certificates for `nodes` by the authority in `folder`; those that are there are replaced, each file at once, so
/// that running processes take them up. Returns the files.
///
/// # Errors
///
/// [`KeysError`].
pub fn issue(folder: &Path, nodes: &Nodes) -> Result<Vec<PathBuf>, KeysError> {
    let requests = nodes.requests()?;
    let read = |path: &Path| fs::read_to_string(path).map_err(file_error(path));
    let [certificate, key] = pair(folder, AUTHORITY);
    let issuer = Issuer::from_ca_cert_pem(&read(&certificate)?, KeyPair::from_pem(&read(&key)?)?)?;
    let mut files = Vec::new();
    for (name, params) in requests {
        files.extend(sign(folder, &name, &params, &issuer, replace)?);
    }
    Ok(files)
}

/// Makes a key for all nodes to hold. Returns the file.
///
/// # Errors
///
/// [`KeysError`]; no file that is there is changed.
pub fn init_shared(folder: &Path) -> Result<PathBuf, KeysError> {
    make_folder(folder)?;
    let path = folder.join(SHARED);
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    write_new(&path, &key.serialize_pem(), 0o600)?;
    Ok(path)
}

/// What protects links by the files in `folder`: the certificate of `node`, or the shared key if that is what is there.
/// `allow` is who may be a peer; without it, whoever is in the same trust domain.
///
/// # Errors
///
/// [`KeysError::Missing`] if it is not there.
pub fn security(
    folder: &Path,
    node: &str,
    allow: Option<AllowList>,
) -> Result<Security, KeysError> {
    let shared = folder.join(SHARED);
    let [certificate, key] = pair(folder, node);
    let [authorities, _] = pair(folder, AUTHORITY);
    if !certificate.exists() && shared.exists() {
        return Ok(Security::SharedKey(shared));
    }
    for (file, wanted) in [
        (&certificate, "certificate"),
        (&key, "key"),
        (&authorities, "authority"),
    ] {
        if !file.exists() {
            return Err(KeysError::Missing {
                path: folder.display().to_string(),
                wanted: format!(
                    "{wanted} {}",
                    file.file_name().unwrap_or_default().display()
                ),
                has: contents(folder),
            });
        }
    }
    let allow = match allow {
        Some(allow) => allow,
        None => same_domain(&certificate)?,
    };
    Ok(Security::Certificate(CertificateFiles {
        certificate,
        key,
        authorities,
        allow,
    }))
}

/// Everyone in the trust domain of a certificate's SPIFFE ID; without one, everyone that the authority has signed.
fn same_domain(certificate: &Path) -> Result<AllowList, KeysError> {
    let described = describe(certificate).map_err(|error| KeysError::File {
        path: certificate.display().to_string(),
        cause: io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
    })?;
    let of = described.first().and_then(|first| {
        let rest = first.identity.strip_prefix("spiffe://")?;
        let (domain, _) = rest.split_once('/')?;
        format!("spiffe://{domain}/*").parse().ok()
    });
    Ok(of.unwrap_or_else(AllowList::everyone))
}

impl Nodes {
    /// What is to be signed for each.
    fn requests(&self) -> Result<Vec<(String, CertificateParams)>, KeysError> {
        self.names
            .iter()
            .map(|name| Ok((name.clone(), self.request(name)?)))
            .collect()
    }

    fn request(&self, name: &str) -> Result<CertificateParams, KeysError> {
        let refuse = |problem: String| KeysError::Node {
            name: name.to_owned(),
            problem,
        };
        if name == AUTHORITY || name.ends_with("-key") || name.starts_with('.') {
            return Err(refuse(
                "its files would be taken for others of the folder".to_owned(),
            ));
        }
        // A name without a slash, as a segment of an ID is: so it is the name of a file in the folder as well.
        if name.contains('/') {
            return Err(refuse("it has a '/'".to_owned()));
        }
        let id = Name::spiffe(&format!("{}/{name}", self.prefix));
        let id = id.map_err(|error| refuse(error.to_string()))?;
        let uri = id.as_str().try_into().map_err(KeysError::Certificate)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name);
        params.subject_alt_names.push(SanType::URI(uri));
        if let Ok(dns) = Name::dns(name) {
            let dns = dns.as_str().try_into().map_err(KeysError::Certificate)?;
            params.subject_alt_names.push(SanType::DnsName(dns));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        set_dates(&mut params, self.days);
        Ok(params)
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn set_dates(params: &mut CertificateParams, days: u32) {
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + DAY * days).into();
}

fn sign(
    folder: &Path,
    name: &str,
    params: &CertificateParams,
    issuer: &Issuer<'_, KeyPair>,
    write: fn(&Path, &str, u32) -> Result<(), KeysError>,
) -> Result<[PathBuf; 2], KeysError> {
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?.pem();
    let paths = pair(folder, name);
    write(&paths[1], &key.serialize_pem(), 0o600)?;
    write(&paths[0], &certificate, 0o644)?;
    Ok(paths)
}

/// A certificate's file and its key's.
fn pair(folder: &Path, name: &str) -> [PathBuf; 2] {
    [format!("{name}.pem"), format!("{name}-key.pem")].map(|file| folder.join(file))
}

fn make_folder(folder: &Path) -> Result<(), KeysError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(folder).map_err(file_error(folder))
}

fn refuse_existing(path: &Path) -> Result<(), KeysError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Err(KeysError::Exists {
            path: path.display().to_string(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(file_error(path)(error)),
    }
}

/// Writes a file that must not be there.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), KeysError> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    let written = file.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => KeysError::Exists {
            path: path.display().to_string(),
        },
        _ => file_error(path)(error),
    })
}

/// Writes a file in the place of the one that is there, which is there whole until then.
fn replace(path: &Path, text: &str, mode: u32) -> Result<(), KeysError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(file_error(&beside)(error));
        }
        _ => {}
    }
    write_new(&beside, text, mode)?;
    fs::rename(&beside, path).map_err(file_error(path))
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> KeysError {
    let path = path.display().to_string();
    move |cause| KeysError::File { path, cause }
}

fn contents(folder: &Path) -> String {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().display().to_string())
        .filter(|name| name.ends_with(".pem"))
        .collect();
    names.sort();
    match names.is_empty() {
        true => "none of them".to_owned(),
        false => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_cluster_is_made_once_with_keys_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new");
        let nodes = Nodes {
            names: vec!["prefill-0".to_owned(), "decode_0".to_owned()],
            ..Nodes::default()
        };
        let files = init(&folder, &nodes).unwrap();
        assert_eq!(files.len(), 6);
        for file in &files {
            let mode = fs::metadata(file).unwrap().permissions().mode() & 0o777;
            let is_key = file.to_str().unwrap().ends_with("-key.pem");
            assert_eq!(
                mode,
                if is_key { 0o600 } else { 0o644 },
                "{}",
                file.display()
            );
        }
        let described = describe(&files[2]).unwrap();
        assert_eq!(
            described[0].identity,
            "spiffe://moai/node/prefill-0, dns:prefill-0"
        );
        assert!(describe(&files[0]).unwrap()[0].is_authority);
        let before = fs::read(&files[0]).unwrap();
        let error = init(&folder, &Nodes::default()).unwrap_err();
        assert!(matches!(error, KeysError::Exists { .. }), "{error}");
        assert_eq!(fs::read(&files[0]).unwrap(), before);
        assert!(!folder.join("node.pem").exists());
        // More of them, by the same authority, and the same again.
        issue(&folder, &Nodes::default()).unwrap();
        let first = fs::read(folder.join("node.pem")).unwrap();
        issue(&folder, &Nodes::default()).unwrap();
        assert_ne!(fs::read(folder.join("node.pem")).unwrap(), first);
        let Security::Certificate(found) = security(&folder, "node", None).unwrap() else {
            panic!("no certificate")
        };
        assert_eq!(found.allow.to_string(), "spiffe://moai/*");
        let error = security(&folder, "other", None).unwrap_err().to_string();
        assert!(
            error.contains("other.pem") && error.contains("prefill-0.pem"),
            "{error}"
        );
    }

    #[test]
    fn a_shared_key_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = init_shared(folder.path()).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(matches!(
            init_shared(folder.path()),
            Err(KeysError::Exists { .. })
        ));
        let found = security(folder.path(), DEFAULT_NODE, None).unwrap();
        assert_eq!(found, Security::SharedKey(path));
    }

    #[test]
    fn names_that_are_no_names_make_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["", "..", "a/b", "ca", "x-key", "a b", "\u{e4}"] {
            let nodes = Nodes {
                names: vec![name.to_owned()],
                ..Nodes::default()
            };
            let error = init(folder.path(), &nodes).unwrap_err();
            assert!(matches!(error, KeysError::Node { .. }), "{name:?}: {error}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
