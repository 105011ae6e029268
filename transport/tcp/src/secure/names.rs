//! What a certificate calls its holder.

use moai_transport::{Identity, IdentityError};
use thiserror::Error;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Bytes that identify nobody.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// No X.509 certificate, or one whose alternative names cannot be read.
    #[error("no X.509 certificate that can be read")]
    Unreadable,
    /// Its names do not make an identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// What a certificate in DER says of its holder, verified or not: the URIs and DNS names among its subject alternative
/// names. The common name is not looked at.
///
/// # Errors
///
/// [`CertificateError`] if it says nothing that identifies anybody.
pub fn identity_of(certificate: &[u8]) -> Result<Identity, CertificateError> {
    let (rest, certificate) =
        X509Certificate::from_der(certificate).map_err(|_| CertificateError::Unreadable)?;
    if !rest.is_empty() {
        return Err(CertificateError::Unreadable);
    }
    let names = certificate.subject_alternative_name();
    let names = names.map_err(|_| CertificateError::Unreadable)?;
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let (mut uris, mut dns) = (Vec::new(), Vec::new());
    for name in names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::DNSName(name) => dns.push(*name),
            GeneralName::Invalid(..) => return Err(CertificateError::Unreadable),
            _ => {}
        }
    }
    Ok(Identity::of_certificate(&uris, &dns)?)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn der(names: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn names_are_those_of_the_extension() {
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        let dns = |text: &str| SanType::DnsName(text.try_into().unwrap());
        let one = identity_of(&der(vec![uri("spiffe://c/a"), dns("a.example")])).unwrap();
        assert_eq!(one.to_string(), "spiffe://c/a, dns:a.example");
        let two = identity_of(&der(vec![uri("spiffe://c/a"), uri("spiffe://c/b")]));
        let several = IdentityError::SeveralUris { count: 2 };
        assert_eq!(two, Err(CertificateError::Identity(several)));
        let none = identity_of(&der(vec![SanType::IpAddress([127, 0, 0, 1].into())]));
        assert_eq!(
            none,
            Err(CertificateError::Identity(IdentityError::Nameless))
        );
        // A name with a zero byte in it is no name, and never cut short.
        let odd = identity_of(&der(vec![dns("a.example\0.evil.example")]));
        assert!(odd.is_err(), "{odd:?}");
    }

    #[test]
    fn what_is_cut_or_damaged_is_no_certificate() {
        let good = der(vec![SanType::DnsName("a.example".try_into().unwrap())]);
        for cut in 0..good.len() {
            assert_eq!(identity_of(&good[..cut]), Err(CertificateError::Unreadable));
        }
        let mut longer = good.clone();
        longer.push(0);
        assert_eq!(identity_of(&longer), Err(CertificateError::Unreadable));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x15;
            let _ = identity_of(&bad);
        }
    }
}
