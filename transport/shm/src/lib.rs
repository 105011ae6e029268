//! The provider for processes of one host.
//!
//! Two processes share a memfd with a pair of rings for each direction. What happens to a byte:
//!
//! ```text
//!   send, post ─▶ ring in shared memory ─▶ handler, in place; or pieces of regions      one copy, or two
//!   put, get of shared memory ─▶ the peer's memfd, mapped here                          one copy, by this side
//!   map ─▶ the peer's memfd, mapped here                                                none
//!   put, get of other memory ─▶ process_vm_writev, process_vm_readv                     one copy, by this side
//!                               or, where the system forbids them, frames in the rings  two copies, by both
//!   put, get of a device's memory ─▶ the peer's memfd, imported by a device here      one job of that device
//!                               or, without one, frames that each side's device copies
//! ```
//!
//! What the system permits is tried when a peer connects, never assumed, and [`path`](moai_transport::Interface::path)
//! says what was found.
//!
//! - `address`, `config`, `provider`: where it is and how it is opened.
//! - `socket`, `greeting`, `listener`: how two processes meet.
//! - `segment`, `table`: the memory that they share.
//! - `outbound`, `inbound`: frames through the rings; `staged`, `answers`: puts and gets through them, of this side and
//!   of the peer.
//! - `copying`, `slices`: what devices copy, for frames and alone.
//! - `exports`, `outbox`, `imports`: how a file of registered memory comes to a peer.
//! - `direct`, `foreign`, `spans`: puts and gets that this side copies.
//! - `connection`: all of that for one peer; `interface`: the table of peers, and what is asked of it.
//!
//! # Who trusts whom
//!
//! A peer that speaks nonsense, over the socket or in the rings, loses its connection and nothing else: what it writes is
//! checked before it is used, and whatever is mapped is sealed, so that it cannot go away. What it sends is not believed
//! about memory either: an owner checks frames against its own registrations.
//!
//! Memory that was registered is another matter. A process that maps another's memory, or may trace it, stores without
//! asking: the owner cannot check a store. So it is the side that stores that checks: epoch, generation, bounds and
//! rights, and where the memory lies, against a table that the owner shares for reading, at every slice of an operation. That stops a peer that is
//! late, mistaken, or buggy above this crate. It does not stop one that is out to harm: **processes that can map or trace
//! each other trust each other.** Two things the system does enforce: memory that was registered without
//! [`Rights::WRITE`](moai_transport::Rights::WRITE) is passed by a descriptor that cannot be mapped for writing, and the
//! rest of a process's memory can be reached only by whom the system lets trace it.
#![deny(unsafe_code)]

mod address;
mod answers;
mod capabilities;
mod config;
mod connection;
mod copying;
mod direct;
mod exports;
mod foreign;
mod greeting;
mod imports;
mod inbound;
mod interface;
mod listener;
mod outbound;
mod outbox;
mod provider;
mod segment;
mod slices;
mod socket;
mod spans;
mod staged;
mod table;

pub use config::{Listen, ShmConfig};
pub use interface::ShmInterface;
pub use provider::ShmProvider;
