//! The stack, assembled: one rank's part of a transfer.

use std::{collections::BTreeMap, sync::Arc};

use moai_collectives::{
    cost::Rates,
    execute::Requested,
    transfer::{self, Options, Report, Session},
};
use moai_memory::{MemoryKind, Region};
use moai_transport::{Address, Stack};
use thiserror::Error;

use crate::{
    config::{Config, ConfigError},
    metrics::{Metrics, TransportWatch},
    transports::{AddressBook, Transports, Ways, socket},
};

/// A rank could not take part.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FabricError {
    /// A setting forbids it.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A transport could not be opened.
    #[error("cannot open a transport on {address}: {cause}")]
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
    metrics: Option<Arc<Metrics>>,
    session: Session,
}

/// A producer rank that listens.
#[derive(Debug)]
pub struct Server {
    transports: Transports,
    addresses: Vec<Address>,
    fabric: Fabric,
}

impl Fabric {
    /// A stack that follows `config`.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            metrics: None,
            session: Session::random(),
        }
    }

    /// The same stack for one transfer between processes: all of its ranks have the same session.
    #[must_use]
    pub fn with_session(mut self, session: Session) -> Self {
        self.session = session;
        self
    }

    /// The same stack, counting in `metrics`: every transfer when it has ended, and what its transports have counted.
    #[must_use]
    pub fn with_metrics(mut self, metrics: Arc<Metrics>) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn metrics(&self) -> Option<&Arc<Metrics>> {
        self.metrics.as_ref()
    }

    /// The kind of memory for a producer's pool: as configured, or that in which its pages can be reached in every way
    /// that is allowed.
    #[must_use]
    pub fn pool_kind(&self) -> MemoryKind {
        self.config.pool_kind()
    }

    /// The kind of memory for a consumer's pool.
    #[must_use]
    pub fn target_kind(&self) -> MemoryKind {
        self.config.target_kind()
    }

    pub(crate) fn options(&self) -> Options {
        Options {
            deadline: self.config.deadline,
            max_bytes_per_second: self.config.max_bytes_per_second,
            map: true,
            rates: Rates::default(),
        }
    }

    pub(crate) fn open(&self, listens: bool) -> Result<Transports, FabricError> {
        let address = match listens {
            true => self.config.bind.to_string(),
            false => "no address".to_owned(),
        };
        let fail = |cause| FabricError::Transport { address, cause };
        Transports::open(&self.config, listens).map_err(fail)
    }

    /// Listens for consumer ranks.
    ///
    /// # Errors
    ///
    /// [`FabricError`] if the address is not allowed, or cannot be had.
    pub fn listen(&self) -> Result<Server, FabricError> {
        self.config.allow(self.config.bind)?;
        if !self.config.bind.ip().is_loopback() && !self.config.security.is_on() {
            tracing::warn!(address = %self.config.bind, "listening off loopback without authentication");
        }
        let transports = self.open(true)?;
        Ok(Server {
            addresses: transports.addresses(),
            transports,
            fabric: self.clone(),
        })
    }

    /// Pulls everything that consumer rank `rank` is owed into `pool`, from producer ranks at `addresses`: for each all
    /// that it listens on.
    ///
    /// # Errors
    ///
    /// [`FabricError`] if an address is not allowed or the transport cannot be opened. What happens after
    /// that is in the report.
    pub fn pull(
        &self,
        requested: &Arc<Requested>,
        rank: u32,
        pool: &mut [Region],
        addresses: &BTreeMap<u32, Vec<Address>>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Report, FabricError> {
        for socket in addresses.values().flatten().filter_map(socket) {
            self.config.allow(socket)?;
        }
        let book = AddressBook::default();
        let nodes = addresses.iter();
        book.set(
            transfer::PRODUCER,
            nodes.map(|(&rank, all)| (rank, all.clone())),
        );
        let mut ways = Ways {
            transports: self.open(false)?,
            book,
            config: self.config.clone(),
        };
        let (session, options) = (&self.session, self.options());
        let report = transfer::consume(
            &mut ways, requested, rank, pool, session, &options, progress,
        );
        count(self.metrics.as_deref(), &report, ways.transports.stack());
        Ok(report)
    }
}

impl Server {
    /// Where it listens, in every way in which it does.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Serves producer rank `rank` from `pool` until its part has an outcome. The pages are only read.
    pub fn serve(
        self,
        requested: &Arc<Requested>,
        rank: u32,
        pool: &mut [Region],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Report {
        let fabric = self.fabric;
        let mut ways = Ways {
            transports: self.transports,
            book: AddressBook::default(),
            config: fabric.config.clone(),
        };
        let (session, options) = (&fabric.session, fabric.options());
        let report = transfer::produce(
            &mut ways, requested, rank, pool, session, &options, progress,
        );
        count(fabric.metrics.as_deref(), &report, ways.transports.stack());
        report
    }
}

/// Counts a transfer that has ended, and what its stack, which ends with it, has counted.
fn count(metrics: Option<&Metrics>, report: &Report, stack: &Stack) {
    if let Some(metrics) = metrics {
        metrics.transfer(report);
        TransportWatch::new().take(stack, metrics);
    }
}
