//! The ways of moving bytes that are held against the contract.

use std::fmt;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use moai_tests::plugins;
use moai_transport::{Address, Interface, Provider, Stack};
use moai_transport_plugin::{Opening, Plugin};
use moai_transport_shm::{Listen, ShmConfig, ShmProvider};
use moai_transport_tcp::{Security, TcpConfig, TcpProvider};

use crate::far;
use crate::memory::Device;
use crate::node::Node;
use crate::run::Absent;

/// One way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Tcp {
        lanes: u32,
    },
    /// The same by TLS with a shared key; with payload encrypted or not.
    Tls {
        lanes: u32,
        seals: bool,
    },
    /// Shared memory; whether other memory is reached by the system's calls, or copied by both sides.
    Shm {
        foreign: bool,
    },
    /// A provider behind the C ABI, in a shared object: shared memory, or tcp.
    Plugin {
        tcp: bool,
    },
    /// Both at once, and the best of them taken; or tcp, as where shared memory cannot be had.
    Stack {
        falls_back: bool,
    },
}

impl Way {
    pub(crate) const ALL: [Self; 10] = [
        Self::Tls {
            lanes: 1,
            seals: true,
        },
        Self::Tls {
            lanes: 3,
            seals: false,
        },
        Self::Tcp { lanes: 1 },
        Self::Tcp { lanes: 3 },
        Self::Shm { foreign: true },
        Self::Shm { foreign: false },
        Self::Plugin { tcp: false },
        Self::Plugin { tcp: true },
        Self::Stack { falls_back: false },
        Self::Stack { falls_back: true },
    ];

    /// What `path` calls the provider.
    pub(crate) fn provider_name(self) -> &'static str {
        match self {
            Self::Tcp { .. } | Self::Tls { .. } | Self::Stack { falls_back: true } => "tcp",
            Self::Shm { .. } | Self::Stack { falls_back: false } => "shm",
            Self::Plugin { tcp: false } => "sim",
            Self::Plugin { tcp: true } => "simtcp",
        }
    }

    /// With a device of this process, by which shared memory reaches a peer's device; not where it is to be done by both
    /// sides.
    fn provider(self, listens: bool, device: &Device) -> Box<dyn Provider> {
        match self {
            Self::Tcp { lanes } => Box::new(TcpProvider::new(TcpConfig {
                listen: listens.then(|| SocketAddr::from(([127, 0, 0, 1], 0))),
                lanes,
                ..TcpConfig::default()
            })),
            Self::Tls { lanes, seals } => Box::new(TcpProvider::new(TcpConfig {
                listen: listens.then(|| SocketAddr::from(([127, 0, 0, 1], 0))),
                lanes,
                security: Security::SharedKey(shared_key()),
                seal_payload: seals,
                ..TcpConfig::default()
            })),
            Self::Shm { foreign } => {
                let provider = ShmProvider::new(ShmConfig {
                    listen: listens.then_some(Listen::Unnamed),
                    foreign,
                    permit_peers: true,
                    ..ShmConfig::default()
                });
                Box::new(if foreign {
                    provider.with_device(Arc::new(device.sim.clone()))
                } else {
                    provider
                })
            }
            Self::Plugin { .. } => {
                let mut all = plugin().transports.iter();
                let one = all.find(|one| one.name() == self.provider_name());
                let opening = Opening {
                    listens,
                    ..Opening::default()
                };
                Box::new(one.expect("the plug-in has it").clone().opened(opening))
            }
            Self::Stack { .. } => unreachable!("it is made of others"),
        }
    }

    /// Shared memory and tcp side by side.
    pub(crate) fn stack(listens: bool, device: &Device) -> Stack {
        let ways = [Self::Shm { foreign: true }, Self::Tcp { lanes: 1 }];
        Stack::open(ways.map(|way| way.provider(listens, device)).into()).unwrap()
    }

    fn open(self, listens: bool, device: &Device) -> Result<Box<dyn Interface + Send>, Absent> {
        if let Self::Stack { .. } = self {
            return Ok(Box::new(Self::stack(listens, device)));
        }
        let provider = self.provider(listens, device);
        let probed = provider.probe();
        probed.map_err(|why| Absent::new(provider.name(), why))?;
        Ok(provider.open().unwrap())
    }

    /// Whether its capabilities are the best of several, of which a peer has one.
    pub(crate) fn is_a_stack(self) -> bool {
        matches!(self, Self::Stack { .. })
    }

    /// The one of several by which peers are reached, where that is not the best of them.
    pub(crate) fn alone(self) -> Option<Self> {
        (self == Self::Stack { falls_back: true }).then_some(Self::Tcp { lanes: 1 })
    }

    /// The address of a peer to connect to.
    pub(crate) fn choose(self, addresses: &[Address]) -> Address {
        let name = self.provider_name();
        let mut all = addresses.iter();
        all.find(|address| address.provider() == name)
            .expect("it listens that way")
            .clone()
    }

    /// Descriptors that both ends of an endpoint cost.
    pub(crate) fn descriptors_an_endpoint(self) -> usize {
        match self {
            Self::Tcp { lanes } | Self::Tls { lanes, .. } => 2 * lanes as usize,
            Self::Plugin { tcp: true } => 2,
            Self::Shm { .. } | Self::Plugin { tcp: false } | Self::Stack { .. } => 10,
        }
    }

    pub(crate) fn node(self, listens: bool, device: Device, seed: u64) -> Result<Node, Absent> {
        // Memory of a device, too, is that of the plug-in, for one of both.
        let device = match self {
            Self::Plugin { tcp: false } => device.of(&plugin().domains[0]),
            _ => device,
        };
        Ok(Node::new(self.open(listens, &device)?, device, seed))
    }

    /// Builds what processes of this way take as it is.
    pub(crate) fn prepare(self) {
        if matches!(self, Self::Plugin { .. }) {
            let _ = plugin();
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { lanes } => write!(f, "tcp-{lanes}"),
            Self::Tls { lanes, seals: true } => write!(f, "tls-{lanes}"),
            Self::Tls {
                lanes,
                seals: false,
            } => write!(f, "tls-{lanes}-open"),
            Self::Shm { foreign: true } => f.write_str("shm"),
            Self::Shm { foreign: false } => f.write_str("shm-framed"),
            Self::Plugin { tcp: false } => f.write_str("plugin"),
            Self::Plugin { tcp: true } => f.write_str("plugin-tcp"),
            Self::Stack { falls_back: false } => f.write_str("stack"),
            Self::Stack { falls_back: true } => f.write_str("stack-fallback"),
        }
    }
}

impl FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|way| way.to_string() == text);
        found.ok_or_else(|| format!("no way is called {text}"))
    }
}

/// The shared object, loaded. Processes of a test take it as it is: whoever has started them has built it.
fn plugin() -> &'static Plugin {
    static PLUGIN: OnceLock<Arc<Plugin>> = OnceLock::new();
    PLUGIN.get_or_init(|| {
        let path = if far::is_a_child() {
            plugins::example_path("plugin_sim")
        } else {
            plugins::example("plugin_sim")
        };
        moai_transport_plugin::load(&path).expect("the plug-in loads")
    })
}

/// A file with a key that nobody else is to use: the processes of a test hold the same.
fn shared_key() -> PathBuf {
    /// Ed25519, of the bytes 0, 1, 2, ….
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n\
        -----END PRIVATE KEY-----\n";
    static FILE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FILE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let file = options.open(folder.path().join("key.pem"));
        file.and_then(|mut file| file.write_all(KEY.as_bytes()))
            .expect("a file");
        folder
    });
    folder.path().join("key.pem")
}
