//! What protects links.

use std::path::PathBuf;

use moai_transport::AllowList;

/// How peers prove to each other who they are, and whether what they say is encrypted.
///
/// Both sides of a link are set up alike: one that requires TLS does not speak to one that has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Security {
    /// Not at all: everyone who reaches the port is taken for a peer, and whoever is on the way reads and changes
    /// everything.
    #[default]
    None,
    /// By certificates: mutual TLS.
    Certificate(CertificateFiles),
    /// By a key that all of them hold: a private key in PEM (PKCS#8), Ed25519 or ECDSA, which `moai keys init` makes and
    /// `openssl genpkey -algorithm ed25519` as well.
    ///
    /// It is the raw public key (RFC 7250) of both sides of TLS: each proves that it holds the private half and accepts no
    /// other. So holders are not told apart, and one that is lost is lost for all.
    SharedKey(PathBuf),
}

/// A certificate, and whose certificates are accepted. Files in PEM, read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)] // Callers write these out.
pub struct CertificateFiles {
    /// Our certificate, followed by those of intermediate authorities.
    pub certificate: PathBuf,
    /// Its private key (PKCS#8, SEC1 or PKCS#1). Not readable by everyone on this host.
    pub key: PathBuf,
    /// Certificates of the authorities that peers' are signed by.
    pub authorities: PathBuf,
    /// Which of those that they have signed may be peers.
    pub allow: AllowList,
}

impl Security {
    /// Whether links are protected.
    #[must_use]
    pub fn is_on(&self) -> bool {
        *self != Self::None
    }
}
