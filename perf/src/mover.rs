//! Ways to move the pieces of a shape between two processes, and what each process does for it.
//!
//! A way has two halves: a [`Mover`] in the process that posts operations and takes the time, a
//! [`Partner`] in the other one. They are made in this order, so that each knows how to reach the other:
//! the partner opens and says where ([`Door`]), the mover connects, the partner joins.
//!
//! ```text
//!   here                         there
//!   Open(way, shape)  ─────────▶ Partner::open
//!   Mover::open       ◀───────── Door
//!   Join              ─────────▶ Partner::join
//!   Begin(step)       ─────────▶ Partner::step     until the mover's half is done
//!   Mover::step       ◀────────▶
//!   End               ─────────▶ CPU time
//! ```
//!
//! What each half does between `Begin` and `End` counts; filling and checking memory does not.

use std::time::Duration;

use moai_memory::Hold;
use serde::{Deserialize, Serialize};

use crate::{failure::Failure, histogram::Histogram, pattern::Pattern, stack::Stack};

/// One operation that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    /// Every piece from here to there, in batches as large as the way takes them.
    Put,
    /// Every piece from there to here.
    Get,
    /// As many messages as there are pieces, each taken by the receiver.
    Send,
    /// Every piece from here to there, each in an operation of its own.
    Rate,
    /// A message there and one back, one after the other.
    Ping {
        /// How many times.
        count: u32,
        /// Bytes each way, up to [`MOST_PING`].
        bytes: u32,
    },
}

/// Bytes of the largest message of a ping.
pub(crate) const MOST_PING: u32 = 1 << 16;

impl Step {
    /// As rows name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Send => "send",
            Self::Rate => "rate",
            Self::Ping { .. } => "latency",
        }
    }

    /// Whether the bytes of this process end up in the other one, so that the check is there.
    pub(crate) fn is_outward(self) -> bool {
        !matches!(self, Self::Get)
    }
}

/// A way to move bytes, as one process tells it the other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Way {
    /// Plain sockets.
    Sockets(Drive),
    /// The other process's memory, read and written by system calls.
    Foreign {
        /// A way that is open already, between whose memories this one moves, if those can be had.
        of: Option<usize>,
    },
    /// A transport of the stack.
    Stack(Stack),
}

/// Connections, and threads that drive them on each side.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Drive {
    pub(crate) lanes: u32,
    /// No more than lanes.
    pub(crate) threads: u32,
    /// How the system sets sockets up, or, within a host, without pacing, as the transport sets its own.
    pub(crate) pacing: Pacing,
}

/// Who chooses the congestion control of plain sockets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pacing {
    /// The system.
    System,
    /// Whoever measures: none that paces.
    Off,
}

/// Most lanes of one peer: each is a descriptor on both sides.
pub(crate) const MOST_LANES: u32 = 64;

/// How a mover reaches its partner.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Door {
    /// A port on the address at which the partner's process was reached.
    Port(u16),
    /// Where its memory begins, in its own address space.
    Address(u64),
    /// Where a transport of the stack listens.
    Addresses(Vec<String>),
}

/// This process's half.
pub(crate) trait Mover {
    /// The name of the way, as rows have it.
    fn name(&self) -> String;

    /// Fills this side's memory as a source.
    fn fill(&mut self, pattern: Pattern) -> Result<(), Failure>;

    /// Does it all, and says how long it took. Single operations are noted in `pings`, if that is the step.
    fn step(&mut self, step: Step, pings: &mut Histogram) -> Result<Duration, Failure>;

    /// Compares this side's memory with a source that was filled so.
    fn check(&mut self, pattern: Pattern) -> Result<(), Failure>;

    /// This side's memory, for another way that is to move bytes between the same; they take turns.
    fn memory(&self) -> Option<Hold> {
        None
    }
}

/// The other process's half.
pub(crate) trait Partner {
    /// The mover has connected.
    fn join(&mut self) -> Result<(), Failure>;

    /// As [`Mover::fill`].
    fn fill(&mut self, pattern: Pattern) -> Result<(), Failure>;

    /// Does its part. One that cannot tell by itself when that is done asks `is_over`, which costs a system
    /// call.
    fn step(&mut self, step: Step, is_over: &dyn Fn() -> bool) -> Result<(), Failure>;

    /// As [`Mover::check`].
    fn check(&mut self, pattern: Pattern) -> Result<(), Failure>;

    /// As [`Mover::memory`].
    fn memory(&self) -> Option<Hold> {
        None
    }
}
