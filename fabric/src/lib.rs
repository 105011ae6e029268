//! The assembled stack: what a program that moves caches depends on.
//!
//! - [`Fabric`]: one rank's part of a live transfer. [`config`]: its settings and the environment.
//! - [`Engine`]: one process of an engine, for as many transfers as there are.
//! - [`providers`]: the ways of moving bytes.
//! - [`files`]: descriptions and pools in files.
//! - [`device`]: pools on a device, to it and back.
//! - [`directory`]: names of engines to their nodes.
//! - [`metrics`]: what a process counts, and whether it can be sent work.
//! - [`limits`]: what others may size.
//! - [`synthetic`]: a cache of seeded values, for trying things out.
//! - [`keys`]: certificates and keys of a small cluster.
//! - [`check`]: an independent check of what a transfer left behind.
#![forbid(unsafe_code)]

pub mod check;
pub mod config;
pub mod device;
pub mod directory;
mod engine;
mod fabric;
pub mod files;
mod inbox;
pub mod keys;
pub mod limits;
pub mod metrics;
pub mod providers;
pub mod synthetic;
mod transports;

pub use engine::{Engine, EngineError, EngineSetup, Listener};
pub use fabric::{Fabric, FabricError, Server};
pub use moai_collectives as collectives;
pub use moai_memory as memory;
pub use moai_translate as translate;
pub use moai_transport as transport;
