//! The providers that are open, and how a peer is reached through them.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use moai_collectives::transfer::{Network, Unreached};
use moai_memory::MemoryKind;
use moai_transport::{
    Address, Capabilities, ConnectError, Error, Interface, Operation, PeerId, Reach, Stack, Wanted,
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
        let mut providers = providers::all(config, listens)?;
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

    /// Where peers can connect, as they are to be told.
    pub(crate) fn addresses(&self) -> Vec<Address> {
        self.stack.addresses()
    }
}

impl Wants {
    /// Starts connecting to the best of a peer's addresses.
    fn connect(&self, stack: &mut Stack, to: &[Address]) -> Result<PeerId, Unreached> {
        // Rows of a device's pages are sent from host memory.
        let remote = match self.pools.is_host_accessible() {
            true => self.pools,
            false => MemoryKind::Host,
        };
        let wanted = Wanted {
            local: MemoryKind::Host,
            remote,
            allowed: self.allowed.as_deref(),
            required: self.required.as_deref(),
        };
        { stack.connect_any(to, &wanted) }.map_err(|error| match error {
            ConnectError::NoPath(no_path) => Unreached::NoPath(no_path.to_string()),
            error => Unreached::Lost(error.to_string()),
        })
    }
}

/// Where the nodes of engines listen, as whoever uses an engine or its directory says.
#[derive(Clone, Debug, Default)]
pub(crate) struct AddressBook(Arc<Mutex<Addresses>>);

/// Of each node of an engine.
type Addresses = HashMap<(String, u32), Vec<Address>>;

impl AddressBook {
    /// All that is known of an engine's nodes from now on.
    pub(crate) fn set(&self, engine: &str, nodes: impl IntoIterator<Item = (u32, Vec<Address>)>) {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        book.retain(|(name, _), _| name != engine);
        let entries = nodes.into_iter();
        book.extend(entries.map(|(node, addresses)| ((engine.to_owned(), node), addresses)));
    }

    fn get(&self, engine: &str, node: u32) -> Option<Vec<Address>> {
        let book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        book.get(&(engine.to_owned(), node)).cloned()
    }
}

/// Open providers, and where they lead.
#[derive(Debug)]
pub(crate) struct Ways {
    pub(crate) transports: Transports,
    pub(crate) book: AddressBook,
    /// Which addresses may be connected to.
    pub(crate) config: Config,
}

impl Network for Ways {
    fn interface(&mut self) -> &mut dyn Interface {
        &mut self.transports.stack
    }

    fn connect(&mut self, engine: &str, node: u32) -> Result<PeerId, Unreached> {
        let Some(addresses) = self.book.get(engine, node) else {
            return Err(Unreached::NoPath(format!(
                "no address is known for node {node} of {engine}"
            )));
        };
        for socket in addresses.iter().filter_map(socket) {
            let allowed = self.config.allow(socket);
            allowed.map_err(|error| Unreached::NoPath(error.to_string()))?;
        }
        let Transports { stack, wants } = &mut self.transports;
        wants.connect(stack, &addresses)
    }

    fn identity(&self, peer: PeerId) -> Option<String> {
        // The SPIFFE ID, if there is one.
        let identity = self.transports.stack.identity(peer)?;
        let first = identity.names().first().map(ToString::to_string);
        Some(first.unwrap_or_else(|| identity.to_string()))
    }

    fn can_map(&self, peer: PeerId) -> bool {
        let Transports { stack, wants } = &self.transports;
        let maps = |can: &Capabilities| {
            wants.pools.is_host_accessible() && can.reach(Operation::Map, wants.pools) != Reach::No
        };
        stack.capabilities_of(peer).is_some_and(maps)
    }
}

/// The socket behind an address of tcp.
pub(crate) fn socket(address: &Address) -> Option<SocketAddr> {
    (address.provider() == "tcp")
        .then(|| address.location().parse().ok())
        .flatten()
}
