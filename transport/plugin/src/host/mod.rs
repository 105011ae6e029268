//! The side that loads.
//!
//! - `load`: opens a shared object and checks what it says. `provider`: one of its transports.
//! - `interface`: one that is open; `lending`: the regions that it is lent; `calls`: what it tells of peers.

mod calls;
mod interface;
mod lending;
mod load;
mod provider;

pub use load::{LoadError, Plugin, load, loaded};
pub use provider::{Opening, PluginProvider};
