//! What is in a file of certificates, for people.

use std::path::Path;

use moai_transport::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::files::{bad, certificates};
use super::identity_of;

/// One certificate of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Described {
    /// Its SPIFFE ID and DNS names; or, of an authority, its subject; or why it identifies nobody.
    pub identity: String,
    /// Who has signed it, as a distinguished name.
    pub issuer: String,
    /// Whether it may sign others.
    pub is_authority: bool,
    /// From when on it holds, in words.
    pub not_before: String,
    /// Until when, in words.
    pub not_after: String,
    /// Until when, in seconds since 1970.
    pub expires: i64,
}

/// The certificates in a file, in its order.
///
/// # Errors
///
/// [`Error::Credentials`] if there are none, or one cannot be read.
pub fn describe(path: &Path) -> Result<Vec<Described>, Error> {
    let all = certificates(path)?.into_iter().map(|der| {
        let (_, certificate) = X509Certificate::from_der(&der)
            .map_err(|_| bad(path, "holds something that is no X.509 certificate"))?;
        let is_authority = certificate.is_ca();
        let identity = match identity_of(&der) {
            Ok(identity) => identity.to_string(),
            Err(_) if is_authority => certificate.subject().to_string(),
            Err(error) => format!("nobody: {error}"),
        };
        let validity = certificate.validity();
        Ok(Described {
            identity,
            issuer: certificate.issuer().to_string(),
            is_authority,
            not_before: validity.not_before.to_string(),
            not_after: validity.not_after.to_string(),
            expires: validity.not_after.timestamp(),
        })
    });
    all.collect()
}
