//! The providers that are open, and how a peer is reached through them.

use std::net::SocketAddr;

use moai_collectives::transfer::{Reached, Unreached};
use moai_memory::MemoryKind;
use moai_transport::{
    Address, Capabilities, ConnectError, Error, Interface, Operation, Reach, Stack, Wanted,
};

use crate::{config::Config, providers};

/// Open providers.
#[derive(Debug)]
pub(crate) struct Transports {
    stack: Stack,
    wants: Wants,
}

/// What paths are wanted.
#[derive(Clone, Debug)]
pub(crate) struct Wants {
    allowed: Option<Vec<String>>,
    required: Option<Vec<String>>,
    /// The kind of memory that producers' pages are in, if they are configured alike.
    pools: MemoryKind,
}

impl Transports {
    /// Opens what `config` allows; it listens if it is to.
    ///
    /// What this machine has not is done without.
    pub(crate) fn open(config: &Config, listens: bool) -> Result<Self, Error> {
        let mut providers = providers::all(config, listens);
        providers.retain(|provider| config.allows(provider.name()));
        if providers.len() > 1 {
            providers.retain(|provider| match provider.probe() {
                Ok(_) => true,
                Err(reason) => {
                    tracing::warn!(provider = provider.name(), reason, "transport is not there");
                    false
                }
            });
        }
        Ok(Self {
            stack: Stack::open(providers)?,
            wants: Wants {
                allowed: config.transports.clone(),
                required: config.require_path.clone(),
                pools: config.pool_kind(),
            },
        })
    }

    pub(crate) fn stack(&mut self) -> &mut Stack {
        &mut self.stack
    }

    pub(crate) fn wants(&self) -> Wants {
        self.wants.clone()
    }

    /// Where peers can connect, as they are to be told.
    pub(crate) fn addresses(&self) -> Vec<Address> {
        self.stack.addresses()
    }
}

impl Wants {
    /// Starts connecting to the best of a peer's addresses.
    pub(crate) fn connect(&self, stack: &mut Stack, to: &[Address]) -> Result<Reached, Unreached> {
        // Rows of a device's pages are sent from host memory.
        let in_place = self.pools.is_host_accessible();
        let wanted = Wanted {
            local: MemoryKind::Host,
            remote: if in_place {
                self.pools
            } else {
                MemoryKind::Host
            },
            allowed: self.allowed.as_deref(),
            required: self.required.as_deref(),
        };
        let peer = { stack.connect_any(to, &wanted) }.map_err(|error| match error {
            ConnectError::NoPath(no_path) => Unreached::NoPath(no_path.to_string()),
            error => Unreached::Lost(error.to_string()),
        })?;
        let maps =
            |can: &Capabilities| in_place && can.reach(Operation::Map, self.pools) != Reach::No;
        let can_map = stack.capabilities_of(peer).is_some_and(maps);
        Ok(Reached { peer, can_map })
    }
}

/// The socket behind an address of tcp.
pub(crate) fn socket(address: &Address) -> Option<SocketAddr> {
    (address.provider() == "tcp")
        .then(|| address.location().parse().ok())
        .flatten()
}
