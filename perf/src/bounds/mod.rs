//! Bounds: what the machine does without any of the stack, on as much memory, in the same run.
//!
//! - `sockets`, `lane`: plain sockets, for every transport over TCP.
//! - `foreign`, `process_vm`: system calls on the other process's memory; the latter is all there is of
//!   `unsafe` in this crate.
//! - `memcpy`: a copy within the process, for memory that both processes map.

mod foreign;
mod lane;
mod memcpy;
mod process_vm;
mod sockets;

pub(crate) use foreign::{ForeignMover, ForeignPartner};
pub(crate) use memcpy::Memcpy;
pub(crate) use sockets::{SocketMover, SocketPartner, are_paced};
