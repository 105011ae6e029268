//! The ways of moving bytes that this build has.

use moai_transport::Provider;
use moai_transport_shm::{Listen, ShmConfig, ShmProvider};
use moai_transport_tcp::{TcpConfig, TcpProvider};

use crate::config::Config;

/// Names of all providers, best first.
pub const NAMES: &[&str] = &["shm", "tcp"];

/// Every provider of this build and whether it can be opened on this machine: a sentence either way.
#[must_use]
pub fn probe(config: &Config) -> Vec<(&'static str, Result<String, String>)> {
    let all = all(config, false);
    all.iter()
        .map(|provider| (provider.name(), provider.probe()))
        .collect()
}

/// Every provider, configured; those of a side that listens do so where the configuration says.
pub(crate) fn all(config: &Config, listens: bool) -> Vec<Box<dyn Provider>> {
    vec![
        Box::new(ShmProvider::new(shm(config, listens))),
        Box::new(TcpProvider::new(tcp(config, listens))),
    ]
}

fn shm(config: &Config, listens: bool) -> ShmConfig {
    let default = ShmConfig::default();
    ShmConfig {
        listen: listens.then_some(Listen::Unnamed),
        spin: config.spin.unwrap_or(default.spin),
        ..default
    }
}

fn tcp(config: &Config, listens: bool) -> TcpConfig {
    let default = TcpConfig::default();
    TcpConfig {
        listen: listens.then_some(config.bind),
        advertise: config.advertise,
        security: config.security.clone(),
        seal_payload: config.seal_payload,
        ports: config.ports.map(|(first, last)| first..=last),
        staging_bytes: config.staging_bytes,
        lanes: config.tcp_lanes,
        spin: config.spin.unwrap_or(default.spin),
        ..default
    }
}
