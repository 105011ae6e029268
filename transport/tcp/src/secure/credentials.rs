//! What was loaded from files, and again when they change.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use moai_transport::Error;
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tracing::{info, warn};

use super::files::{Stamp, bad, certificates, private_key};
use super::verifier::{ByCertificate, ByKey};
use super::{CertificateFiles, Security, Session, identity_of};
use crate::NAME;
use crate::limits::RELOAD_PAUSE;

/// What both sides must name, so that nobody can lead a client of another protocol here, whose certificate we would take.
pub(super) const PROTOCOL: &[u8] = b"moai";

/// What this side proves itself with and judges others by.
#[derive(Debug)]
pub(crate) struct Credentials {
    source: Security,
    loaded: Loaded,
    /// Of the files when they were last looked at.
    stamp: Stamp,
    looked: Instant,
}

#[derive(Clone, Debug)]
struct Loaded {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    /// What peers will see us as.
    us: Arc<str>,
}

impl Credentials {
    /// Loads what `source` names; `None` if it asks for nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Credentials`] that names the file and what is wrong with it.
    pub(crate) fn load(source: &Security) -> Result<Option<Self>, Error> {
        let stamp = source.stamp();
        let loaded = match source {
            Security::None => return Ok(None),
            Security::Certificate(files) => by_certificate(files)?,
            Security::SharedKey(path) => by_key(path)?,
        };
        Ok(Some(Self {
            source: source.clone(),
            loaded,
            stamp,
            looked: Instant::now(),
        }))
    }

    /// A session that begins with our hello to `address`.
    pub(crate) fn client(&mut self, address: IpAddr, now: Instant) -> Result<Session, Error> {
        self.renew(now);
        let name = ServerName::IpAddress(address.into());
        let by_key = self.by_key();
        Session::client(&self.loaded.client, name, &self.loaded.us, by_key)
            .map_err(|e| self.refused(&e))
    }

    /// A session that begins with a peer's hello.
    pub(crate) fn server(&mut self, now: Instant) -> Result<Session, Error> {
        self.renew(now);
        let by_key = self.by_key();
        Session::server(&self.loaded.server, &self.loaded.us, by_key).map_err(|e| self.refused(&e))
    }

    /// Looks whether files have changed, if it is time to. Those that cannot be used leave things as they are.
    fn renew(&mut self, now: Instant) {
        if now.saturating_duration_since(self.looked) < RELOAD_PAUSE {
            return;
        }
        self.looked = now;
        let stamp = self.source.stamp();
        if stamp == self.stamp {
            return;
        }
        // Warned of once, until they change again.
        self.stamp = stamp;
        match Self::load(&self.source) {
            Ok(Some(renewed)) => {
                self.loaded = renewed.loaded;
                info!(provider = NAME, us = %self.loaded.us, "credentials were loaded again");
            }
            Ok(None) => {}
            Err(reason) => {
                warn!(provider = NAME, us = %self.loaded.us, %reason, "changed credentials cannot be used; those from before stay");
            }
        }
    }

    fn by_key(&self) -> bool {
        matches!(self.source, Security::SharedKey(_))
    }

    fn refused(&self, error: &rustls::Error) -> Error {
        let path = self.source.paths().into_iter().next();
        bad(
            path.unwrap_or_else(|| Path::new("")),
            format!("cannot be used: {error}"),
        )
    }
}

impl Security {
    fn paths(&self) -> Vec<&Path> {
        match self {
            Self::None => Vec::new(),
            Self::Certificate(files) => vec![&files.certificate, &files.key, &files.authorities],
            Self::SharedKey(path) => vec![path],
        }
    }

    fn stamp(&self) -> Stamp {
        Stamp::of(self.paths())
    }
}

/// The library's algorithms: those of ring, the same on every machine.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn by_certificate(files: &CertificateFiles) -> Result<Loaded, Error> {
    let provider = provider();
    let chain = certificates(&files.certificate)?;
    let us = identity_of(&chain[0])
        .map_err(|error| bad(&files.certificate, format!("cannot be used: {error}")))?;
    let key = private_key(&files.key)?;
    let key = CertifiedKey::from_der(chain, key, &provider).map_err(|error| {
        let of = files.certificate.display();
        bad(&files.key, format!("cannot be used with {of}: {error}"))
    })?;
    let mut authorities = RootCertStore::empty();
    for authority in certificates(&files.authorities)? {
        let added = authorities.add(authority);
        added.map_err(|error| bad(&files.authorities, format!("holds no authority: {error}")))?;
    }
    let authorities = Arc::new(authorities);
    let of_clients = WebPkiClientVerifier::builder_with_provider(
        Arc::clone(&authorities),
        Arc::clone(&provider),
    )
    .build()
    .map_err(|error| bad(&files.authorities, format!("cannot be used: {error}")))?;
    let verifier = Arc::new(ByCertificate {
        authorities,
        of_clients,
        allow: files.allow.clone(),
        algorithms: provider.signature_verification_algorithms,
    });
    let single = Arc::new(rustls::sign::SingleCertAndKey::from(key));
    let failed = |error: rustls::Error| bad(&files.certificate, format!("cannot be used: {error}"));
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::<ByCertificate>::clone(&verifier))
        .with_client_cert_resolver(Arc::<rustls::sign::SingleCertAndKey>::clone(&single));
    let server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(single);
    Ok(finish(client, server, us.to_string()))
}

fn by_key(path: &Path) -> Result<Loaded, Error> {
    let provider = provider();
    let failed = |error: rustls::Error| bad(path, format!("cannot be used: {error}"));
    let key = provider.key_provider.load_private_key(private_key(path)?);
    let key = key.map_err(failed)?;
    let public = key
        .public_key()
        .ok_or_else(|| bad(path, "is a key without a public half that can be shown; make it by moai keys init --shared"))?
        .into_owned();
    let shown = CertificateDer::from(public.to_vec());
    let key = Arc::new(CertifiedKey::new(vec![shown], key));
    let verifier = Arc::new(ByKey {
        public,
        algorithms: provider.signature_verification_algorithms,
    });
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::<ByKey>::clone(&verifier))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
            Arc::clone(&key),
        )));
    let server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key)));
    Ok(finish(
        client,
        server,
        "a holder of the shared key".to_owned(),
    ))
}

/// What both have in common. No session is taken up again: who left the list, or whose certificate expired, must not come
/// in by an old one.
fn finish(mut client: ClientConfig, mut server: ServerConfig, us: String) -> Loaded {
    client.enable_sni = false;
    client.resumption = Resumption::disabled();
    client.alpn_protocols = vec![PROTOCOL.to_vec()];
    server.send_tls13_tickets = 0;
    server.alpn_protocols = vec![PROTOCOL.to_vec()];
    Loaded {
        client: Arc::new(client),
        server: Arc::new(server),
        us: us.into(),
    }
}
