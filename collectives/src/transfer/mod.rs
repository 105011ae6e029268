//! Live transfers: the protocol's [`Node`](crate::protocol::node::Node), connected to a transport and to memory.
//!
//! A [`Driver`] is one node at work: it offers and pulls, grants and pushes, as many requests as there are. [`produce`]
//! and [`consume`] are nodes that live for one request. Every transfer ends with a [`Report`] by its deadline, whatever
//! the other side does. Pools may lie where the processor cannot load from (`device`).

mod accord;
mod actions;
mod arrivals;
mod borrowed;
mod core;
mod device;
mod driver;
mod event;
mod generations;
mod links;
mod loan;
mod once;
mod order;
mod pace;
mod pulling;
mod report;
mod request;
mod serving;
mod work;

use std::time::Duration;

pub use accord::{Accord, Negotiate, Profile};
pub use driver::{Driver, Network, Setup, Unreached};
pub use event::Event;
pub use generations::Generations;
pub use once::{PRODUCER, Reach, Session, consume, produce};
pub use report::{DirtyPages, Ended, Report, Route};
pub use request::{Grant, Offer, Pull};
pub use serving::batch_of;

use crate::cost::Rates;

/// Knobs of one transfer.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "callers write these out")]
pub struct Options {
    /// From the call to the outcome, at most.
    pub deadline: Duration,
    /// See [`Tuning`].
    pub max_bytes_per_second: Option<u64>,
    /// See [`Tuning`].
    pub map: bool,
    /// See [`Tuning`].
    pub rates: Rates,
}

/// Knobs of a node.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "callers write these out")]
pub struct Tuning {
    /// Payload bytes a second that it sends at most, over all its consumers, or copies from mapped memory, counted as
    /// they would be sent; for links that are shared with something more important.
    pub max_bytes_per_second: Option<u64>,
    /// Whether it may map its producers' pages, where the transport can and [`cost`](crate::cost) is for it.
    pub map: bool,
    /// What to choose by.
    pub rates: Rates,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            max_bytes_per_second: None,
            map: true,
            rates: Rates::default(),
        }
    }
}

/// Bytes copied from mapped memory, or digested where they lie, before the transport gets its turn: a quarter of a
/// millisecond, which a message can wait.
const TURN_BYTES: u64 = 2 << 20;

/// Mean run from which a chunk is read straight into its pages. Below, a vectored read costs more per
/// byte than reading into one buffer and placing the rows from there; 1 KiB is what one element of
/// a 64-element vector must bring for a call to move a usual chunk's quarter.
const LEAST_RUN_BYTES: u64 = 1024;
