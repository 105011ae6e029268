//! The ways of moving bytes that this build has, and those that were loaded.

use std::{path::PathBuf, sync::Arc};

use moai_memory::Domain;
use moai_transport::{Error, Provider};
use moai_transport_plugin::{Opening, TableDomain, load, loaded};
use moai_transport_shm::{Listen, ShmConfig, ShmProvider};
use moai_transport_tcp::{TcpConfig, TcpProvider};

use crate::config::Config;

/// Names of all providers of this build, best first.
pub const NAMES: &[&str] = &["shm", "tcp"];

/// Names of all providers, also of those that were loaded.
#[must_use]
pub fn names() -> Vec<&'static str> {
    let plugins = loaded();
    let more = plugins.iter().flat_map(|plugin| &plugin.transports);
    let mut names = NAMES.to_vec();
    for name in more.map(Provider::name) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Every provider and whether it can be opened on this machine: a sentence either way.
#[must_use]
pub fn probe(config: &Config) -> Vec<(&'static str, Result<String, String>)> {
    match all(config, false) {
        Ok(all) => all
            .iter()
            .map(|provider| (provider.name(), provider.probe()))
            .collect(),
        Err(error) => vec![("plug-in", Err(error.to_string()))],
    }
}

/// Devices of the plug-ins of a configuration, each with its name and where it comes from.
#[must_use]
pub fn devices(config: &Config) -> Vec<(String, String, Arc<dyn Domain>)> {
    let plugins = config.providers.iter().filter_map(|path| load(path).ok());
    let devices = plugins.flat_map(|plugin| {
        let one = |domain: &TableDomain| {
            (
                domain.name().to_owned(),
                plugin.to_string(),
                domain.handle(),
            )
        };
        plugin.domains.iter().map(one).collect::<Vec<_>>()
    });
    devices.collect()
}

/// Whether the plug-ins can be used side by side: a sentence if not.
pub(crate) fn check(paths: &[PathBuf]) -> Result<(), String> {
    let mut known: Vec<(&str, String)> = NAMES
        .iter()
        .map(|name| (*name, "this build".to_owned()))
        .collect();
    for path in paths {
        let plugin = load(path).map_err(|error| error.to_string())?;
        for transport in &plugin.transports {
            let name = transport.name();
            if let Some((_, other)) = known.iter().find(|(known, _)| *known == name) {
                return Err(format!(
                    "plug-in {} has a transport {name}, and so has {other}; names must differ",
                    path.display()
                ));
            }
            known.push((name, path.display().to_string()));
        }
    }
    Ok(())
}

/// Every provider, configured; those of a side that listens do so where the configuration says.
///
/// # Errors
///
/// [`Error::Provider`] if a plug-in cannot be loaded.
pub(crate) fn all(config: &Config, listens: bool) -> Result<Vec<Box<dyn Provider>>, Error> {
    let mut all: Vec<Box<dyn Provider>> = vec![
        Box::new(ShmProvider::new(shm(config, listens))),
        Box::new(TcpProvider::new(tcp(config, listens))),
    ];
    for path in &config.providers {
        let plugin = load(path).map_err(|error| Error::Provider {
            provider: "plug-in",
            call: "load",
            problem: error.to_string(),
        })?;
        let opening = Opening {
            listens,
            bind: Some(config.bind.to_string()),
            advertise: config.advertise.map(|address| address.to_string()),
        };
        for transport in &plugin.transports {
            all.push(Box::new(transport.clone().opened(opening.clone())));
        }
    }
    Ok(all)
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
