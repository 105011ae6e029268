//! A plug-in: the built-in providers and the simulated device behind the C ABI, as a shared object.
//!
//! The conformance suite runs through it, so that both sides of the ABI are held against the contract. `sim` is shared
//! memory with a device of its own; `simtcp` is TCP; the domain is a device that takes its time and works off copies in
//! any order.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use moai_memory::sim::{SimConfig, SimDevice};
use moai_transport_plugin::guest::Plugin;
use moai_transport_plugin::{Opening, export_provider};
use moai_transport_shm::{Listen, ShmConfig, ShmProvider};
use moai_transport_tcp::{TcpConfig, TcpProvider};

static DEVICE: LazyLock<SimDevice> = LazyLock::new(|| {
    SimDevice::new(SimConfig {
        seed: 0x51b,
        delay: Duration::ZERO..Duration::from_micros(100),
        reorder: true,
        ..SimConfig::default()
    })
});

fn shm(opening: &Opening) -> ShmProvider {
    let config = ShmConfig {
        listen: opening.listens.then_some(Listen::Unnamed),
        permit_peers: true,
        ..ShmConfig::default()
    };
    ShmProvider::new(config).with_device(Arc::new(DEVICE.clone()))
}

fn tcp(opening: &Opening) -> TcpProvider {
    let bind = opening.bind.as_deref().and_then(|bind| bind.parse().ok());
    let ip = bind.map_or_else(|| Ipv4Addr::LOCALHOST.into(), |bind: SocketAddr| bind.ip());
    TcpProvider::new(TcpConfig {
        listen: opening.listens.then(|| SocketAddr::new(ip, 0)),
        ..TcpConfig::default()
    })
}

fn plugin() -> Plugin {
    Plugin::new("sim", env!("CARGO_PKG_VERSION"))
        .transport("sim", |opening| Box::new(shm(opening)))
        .transport("simtcp", |opening| Box::new(tcp(opening)))
        .domain("sim", Arc::new(DEVICE.clone()))
}

export_provider!(plugin);
