//! Whether a peer is let in.
//!
//! The library checks signatures, dates and purposes. What is ours is the order: a name is looked at once its certificate
//! is known to hold, and then it must be on the list. Which address a peer was reached at plays no part: addresses come
//! from directories that need not be trusted.

use std::sync::Arc;

use moai_transport::{AllowList, Identity, Unauthenticated};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls13_signature, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerMisbehaved,
    RootCertStore, SignatureScheme,
};

use super::identity_of;

/// Lets in whose certificate an authority has signed and whose name is on the list.
#[derive(Debug)]
pub(super) struct ByCertificate {
    pub(super) authorities: Arc<RootCertStore>,
    /// The library's check of a peer that came to us: that its certificate may be used so.
    pub(super) of_clients: Arc<dyn ClientCertVerifier>,
    pub(super) allow: AllowList,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

/// Lets in whoever holds the same key.
#[derive(Debug)]
pub(super) struct ByKey {
    /// The public half, which both show.
    pub(super) public: SubjectPublicKeyInfoDer<'static>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ByCertificate {
    /// Of a certificate that holds.
    fn admit(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let identity = identity_of(certificate).map_err(|error| {
            untrusted(Unauthenticated::Certificate {
                claimed: "nobody".to_owned(),
                reason: error.to_string(),
                way_out: "issue another (moai keys init)",
            })
        })?;
        if self.allow.allows(&identity) {
            return Ok(());
        }
        Err(untrusted(Unauthenticated::NotAllowed {
            identity,
            allowed: self.allow.to_string(),
        }))
    }
}

impl ServerCertVerifier for ByCertificate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity);
        parsed
            .and_then(|certificate| {
                let (roots, all) = (&self.authorities, self.algorithms.all);
                let held = (&certificate, intermediates);
                verify_server_cert_signed_by_trust_anchor(held.0, roots, held.1, now, all)
            })
            .map_err(|error| does_not_hold(end_entity, error))?;
        self.admit(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for ByCertificate {
    /// None: names of authorities are nobody's business who has not proved anything.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.of_clients
            .verify_client_cert(end_entity, intermediates, now)
            .map_err(|error| does_not_hold(end_entity, error))?;
        self.admit(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ByKey {
    fn admit(&self, shown: &CertificateDer<'_>) -> Result<(), Error> {
        if shown.as_ref() == self.public.as_ref() {
            return Ok(());
        }
        Err(untrusted(Unauthenticated::OtherKey))
    }

    fn verify(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(shown.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }
}

impl ServerCertVerifier for ByKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.admit(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for ByKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.admit(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

fn does_not_hold(certificate: &CertificateDer<'_>, error: Error) -> Error {
    let way_out = match &error {
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "issue it again, or set the clock right",
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "set the clock right",
        Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "have it signed by an authority of MOAI_TLS_CA, or add that authority there",
        _ => "issue another (moai keys init)",
    };
    let claimed = identity_of(certificate);
    untrusted(Unauthenticated::Certificate {
        claimed: claimed.map_or_else(
            |_| "nobody".to_owned(),
            |identity: Identity| identity.to_string(),
        ),
        reason: match error {
            Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            ) => "no authority of ours has signed it".to_owned(),
            Error::InvalidCertificate(reason) => reason.to_string(),
            other => other.to_string(),
        },
        way_out,
    })
}

/// As the library carries it; the peer is told that its certificate will not do, and no more.
fn untrusted(why: Unauthenticated) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
}

fn only_tls13() -> Error {
    Error::PeerMisbehaved(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)
}
