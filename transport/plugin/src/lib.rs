//! Providers and domains in shared objects.
//!
//! `include/moai_provider.h` is a C form of the contract in `moai_transport` and of the devices in `moai_memory`, with
//! its rules at the top. This crate is both of its sides:
//!
//! - `host`: [`load`] opens a shared object, checks it, and gives its transports as [`Provider`](moai_transport::Provider)s
//!   and its devices as [`Domain`](moai_memory::Domain)s.
//! - [`guest`]: [`export_provider!`] makes a shared object of providers and domains that are written in Rust.
//! - `memory`: regions and devices, as they cross in either direction.
//! - [`abi`]: the header in Rust. `errors`, `text`, `guard`: what else crosses, and what must not.
//!
//! What the other side answers is checked before it is used; what cannot be checked is in the header's rules, and is the
//! argument of the `unsafe` blocks here.

pub mod abi;
mod errors;
mod guard;
pub mod guest;
mod host;
mod memory;
mod text;

pub use host::{LoadError, Opening, Plugin, PluginProvider, load, loaded};
pub use memory::TableDomain;
