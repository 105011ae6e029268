//! Certificates and keys as they lie on disk.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use moai_transport::Error;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::limits::MAX_CREDENTIAL_BYTES;

/// Which version of a file it is: of a path, the file behind it and when that was written. What mounts of secrets do,
/// exchanging a link, changes it as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(Vec<Option<[i64; 6]>>);

impl Stamp {
    /// Of all `paths`; of one that is not there, that it is not.
    pub(crate) fn of<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        let stamp = |path: &Path| {
            let about = fs::metadata(path).ok()?;
            Some([
                about.dev() as i64,
                about.ino() as i64,
                about.size() as i64,
                about.mtime(),
                about.mtime_nsec(),
                about.ctime_nsec(),
            ])
        };
        Self(paths.into_iter().map(stamp).collect())
    }
}

/// All certificates in a file, at least one.
///
/// # Errors
///
/// [`Error::Credentials`] that names the file.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = read(path, false)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => {
            Err(bad(path, "holds no certificate (BEGIN CERTIFICATE)"))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(bad(path, format!("is no PEM: {error}"))),
    }
}

/// The private key in a file.
///
/// # Errors
///
/// As [`certificates`]; and if everyone on this host may read it.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let text = read(path, true)?;
    // What the parser says of a file that is no key does not repeat what is in it.
    PrivateKeyDer::from_pem_slice(&text)
        .map_err(|_| bad(path, "holds no private key (BEGIN PRIVATE KEY)"))
}

fn read(path: &Path, is_secret: bool) -> Result<Vec<u8>, Error> {
    let failed = |error: std::io::Error| bad(path, format!("cannot be read: {error}"));
    let file = File::open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() {
        return Err(bad(path, "is no file"));
    }
    let mode = about.mode() & 0o777;
    if is_secret && mode & 0o007 != 0 {
        return Err(bad(
            path,
            format!(
                "is a secret that everyone on this host can use (mode {mode:04o}); chmod 600 it"
            ),
        ));
    }
    let mut bytes = Vec::new();
    let mut file = file.take(MAX_CREDENTIAL_BYTES + 1);
    file.read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_CREDENTIAL_BYTES {
        return Err(bad(
            path,
            format!("is larger than {MAX_CREDENTIAL_BYTES} bytes"),
        ));
    }
    Ok(bytes)
}

/// What is wrong with a file.
pub(crate) fn bad(path: &Path, problem: impl Into<String>) -> Error {
    Error::Credentials {
        path: path.display().to_string(),
        problem: problem.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn secrets_that_everyone_can_read_are_refused_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        for (mode, text, problem) in [
            (0o644, key.as_str(), "mode 0644"),
            (0o602, &key, "mode 0602"),
            (0o600, "hunter2", "no private key"),
            (
                0o600,
                "-----BEGIN PRIVATE KEY-----\nhunter2\n",
                "no private key",
            ),
        ] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = private_key(&path).unwrap_err().to_string();
            assert!(
                error.contains(problem) && error.contains("key.pem"),
                "{error}"
            );
            assert!(!error.contains("hunter2"), "{error}");
        }
        fs::write(&path, &key).unwrap();
        for mode in [0o600, 0o640, 0o400] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(private_key(&path).is_ok());
        }
        fs::remove_file(&path).unwrap();
        fs::write(&path, vec![b'#'; MAX_CREDENTIAL_BYTES as usize + 1]).unwrap();
        let error = certificates(&path).unwrap_err().to_string();
        assert!(error.contains("larger than"), "{error}");
        assert!(certificates(folder.path()).is_err());
    }

    #[test]
    fn a_stamp_changes_with_the_file_behind_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let [link, one, two] = ["link", "one", "two"].map(|name| folder.path().join(name));
        let stamp = || Stamp::of([link.as_path()]);
        let missing = stamp();
        fs::write(&one, "same").unwrap();
        fs::write(&two, "same").unwrap();
        std::os::unix::fs::symlink(&one, &link).unwrap();
        let first = stamp();
        assert_ne!(missing, first);
        assert_eq!(first, stamp());
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&two, &link).unwrap();
        assert_ne!(first, stamp());
    }
}
