//! The transfer protocol, without sockets and without a clock.
//!
//! - [`node`]: one process of an engine, as a state machine that takes events and the time, and gives actions. A driver
//!   ([`transfer`](crate::transfer)) connects it to a transport and to memory; tests connect it to others of its kind.
//! - [`handle`]: what one side gives the other to name a request's pages.

pub mod handle;
pub mod node;
