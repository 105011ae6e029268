//! The stack, assembled: one rank's part of a transfer.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, Hasher, RandomState},
    net::SocketAddr,
    sync::Arc,
};

use moai_collectives::{
    execute::Agreed,
    transfer::{self, Options, Report},
};
use moai_memory::Region;
use moai_transport::Interface;
use moai_transport_tcp::{TcpConfig, TcpInterface};
use thiserror::Error;

use crate::config::{Config, ConfigError};

/// A rank could not take part.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FabricError {
    /// A setting forbids it.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The transport could not be opened.
    #[error("cannot open the tcp transport on {address}: {cause}")]
    Transport {
        /// The listening address, or what was asked for.
        address: String,
        /// Why not.
        #[source]
        cause: moai_transport::Error,
    },
}

/// The stack with its configuration and default providers.
#[derive(Clone, Debug)]
pub struct Fabric {
    config: Config,
}

/// A producer rank that listens.
#[derive(Debug)]
pub struct Server {
    interface: TcpInterface,
    options: Options,
}

impl Fabric {
    /// A stack that follows `config`.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn options(&self) -> Options {
        Options {
            deadline: self.config.deadline,
            max_bytes_per_second: self.config.max_bytes_per_second,
        }
    }

    fn open(&self, listen: Option<SocketAddr>) -> Result<TcpInterface, FabricError> {
        let mut config = TcpConfig::default();
        config.listen = listen;
        config.staging_bytes = self.config.staging_bytes;
        TcpInterface::new(config).map_err(|cause| FabricError::Transport {
            address: listen.map_or_else(|| "no address".to_owned(), |address| address.to_string()),
            cause,
        })
    }

    /// Listens for consumer ranks.
    ///
    /// # Errors
    ///
    /// [`FabricError`] if the address is not allowed, or cannot be had.
    pub fn listen(&self) -> Result<Server, FabricError> {
        self.config.allow(self.config.bind)?;
        if !self.config.bind.ip().is_loopback() {
            tracing::warn!(address = %self.config.bind, "listening off loopback without authentication");
        }
        Ok(Server {
            interface: self.open(Some(self.config.bind))?,
            options: self.options(),
        })
    }

    /// Pulls everything that consumer rank `rank` is owed into `pool`, from producer ranks at `addresses`.
    ///
    /// # Errors
    ///
    /// [`FabricError`] if an address is not allowed or the transport cannot be opened. What happens after
    /// that is in the report.
    pub fn pull(
        &self,
        agreed: &Arc<Agreed>,
        rank: u32,
        pool: &mut [Region],
        addresses: &BTreeMap<u32, SocketAddr>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Report, FabricError> {
        for &address in addresses.values() {
            self.config.allow(address)?;
        }
        let mut interface = self.open(None)?;
        let address_of = |source: u32| addresses.get(&source).copied();
        // Each `RandomState` is keyed by the system's randomness.
        let draw = || RandomState::new().build_hasher().finish();
        let names = (draw(), draw());
        let options = self.options();
        Ok(transfer::consume(
            &mut interface,
            agreed,
            rank,
            pool,
            &address_of,
            names,
            options,
            progress,
        ))
    }
}

impl Server {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.interface.local_address()
    }

    /// Serves producer rank `rank` from `pool` until its part has an outcome.
    pub fn serve(
        mut self,
        agreed: &Arc<Agreed>,
        rank: u32,
        pool: &[Region],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Report {
        transfer::produce(
            &mut self.interface,
            agreed,
            rank,
            pool,
            self.options,
            progress,
        )
    }
}
