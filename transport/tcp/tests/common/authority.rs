//! An authority for tests, and certificates of it in a folder of their own.
#![allow(dead_code)] // Every test uses a part of this.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use tempfile::TempDir;

pub(crate) struct Authority {
    pub(crate) folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate is to be.
pub(crate) struct Wanted<'a> {
    pub(crate) names: &'a [&'a str],
    /// Days from now until it expires; negative if it has.
    pub(crate) days: i64,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
}

impl<'a> Wanted<'a> {
    pub(crate) fn named(names: &'a [&'a str]) -> Self {
        Self {
            names,
            days: 30,
            usages: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        }
    }
}

impl Authority {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        Self {
            folder,
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The authority's certificate.
    pub(crate) fn file(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// Writes a certificate and its key, `NAME.pem` and `NAME-key.pem`.
    pub(crate) fn issue(&self, name: &str, wanted: &Wanted<'_>) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::default();
        let day = Duration::from_secs(86_400);
        let now = SystemTime::now();
        let until = match u32::try_from(wanted.days) {
            Ok(days) => now + day * days,
            Err(_) => now - day * u32::try_from(-wanted.days).unwrap(),
        };
        params.not_before = (now - day * 365).into();
        params.not_after = until.into();
        params.extended_key_usages.clone_from(&wanted.usages);
        params.subject_alt_names = wanted.names.iter().map(|name| san(name)).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let paths = (
            self.path(&format!("{name}.pem")),
            self.path(&format!("{name}-key.pem")),
        );
        fs::write(&paths.0, certificate.pem()).unwrap();
        write_key(&paths.1, &key.serialize_pem());
        paths
    }
}

fn san(name: &str) -> SanType {
    if name.contains("://") {
        SanType::URI(name.try_into().unwrap())
    } else {
        SanType::DnsName(name.try_into().unwrap())
    }
}

/// Writes a key as those are to be kept.
pub(crate) fn write_key(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A key for several to share.
pub(crate) fn shared_key(path: &Path) {
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    write_key(path, &key.serialize_pem());
}
