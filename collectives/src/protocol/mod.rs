//! The transfer protocol, without sockets and without a clock.
//!
//! Two state machines take events and the time, and give actions. A driver
//! ([`transfer`](crate::transfer)) connects them to a transport; tests connect them to each other.
//!
//! ```text
//!  consumer                                         producer
//!  Connecting ── Hello (agreement, rank) ─────────▶ Unknown
//!  Greeting   ◀─ Welcome (chunks, bytes) ────────── Greeted      (or Refuse, and the end)
//!             ── Pull (digest key) ───────────────▶
//!  Receiving  ◀═ batches: chunk 0, 1, 2, … ════════ Sending
//!  Receiving  ◀─ Sums (a digest for each step) ──── Waiting
//!  Complete   ── Outcome (committed or why not) ──▶ Ended
//! ```
//!
//! Where the consumer can map the producer's pages, it asks to, and nothing is sent:
//!
//! ```text
//!             ── Pull (digest key, map) ──────────▶
//!  Borrowing  ◀─ Keys (of the producer's regions) ─ Lending
//!  Mapped     ◀─ Sums (mapped) ─────────────────── Waiting       meanwhile the consumer copies
//!  Complete   ── Outcome (committed or why not) ──▶ Ended
//! ```
//!
//! Either side may say Unmapped instead, the producer for Keys and the consumer after them. Then chunks are
//! sent as above.
//!
//! Chunks may arrive in any order, and Sums before the last of them: lanes and one-sided operations promise
//! no order.
//!
//! A consumer rank pulls from several producer ranks at once and commits only when every link is
//! complete with equal digests; then it tells all of them. Whatever else happens, a lost peer, a
//! refusal, a chunk that comes twice, a digest that differs, the deadline, ends in `Failed` with a reason,
//! exactly once. Links that have not said a valid Hello are strangers: closing them concerns nobody.

mod consumer;
pub mod handle;
mod message;
pub mod node;
mod producer;

use std::fmt;

pub use consumer::{Consumer, Expected, LinkState};
pub use message::{LentKey, MAX_KEYS, Message, MessageError, VERSION};
pub use producer::{Owed, Producer, ServeState, Work};

/// A connection of a state machine; an index that its driver chooses and never reuses.
pub type LinkId = usize;

/// What a state machine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Send a message.
    Send(LinkId, Message),
    /// Let what is queued go out, then close.
    Finish(LinkId),
    /// Close now.
    Drop(LinkId),
}

/// How a rank's part of a transfer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_enums,
    reason = "a transfer has one outcome of these"
)]
pub enum Outcome {
    /// Complete, placed, digests equal.
    Committed,
    /// Not so, and why.
    Failed(Failure),
}

/// Why a rank's part of a transfer failed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum Failure {
    /// The deadline passed.
    Deadline {
        /// What was still missing.
        missing: String,
    },
    /// A peer's connection ended, or could not be made.
    PeerLost {
        /// The peer's rank.
        rank: u32,
        /// How it ended.
        why: String,
    },
    /// A peer refused, or reported that its side failed.
    PeerFailed {
        /// The peer's rank.
        rank: u32,
        /// What it said.
        why: String,
    },
    /// A peer sent what the protocol does not allow here.
    Protocol {
        /// The peer's rank.
        rank: u32,
        /// What it sent, and what was expected.
        what: String,
    },
    /// What arrived is not what was sent.
    Digest {
        /// The peer's rank.
        rank: u32,
        /// The component whose digests differ.
        component: String,
        /// The digest of what arrived.
        here: u64,
        /// The digest of what was sent.
        there: u64,
    },
    /// No transport that may be used reaches a peer.
    NoPath {
        /// The peer's rank.
        rank: u32,
        /// Why not, for each.
        why: String,
    },
    /// The device with this side's pages did not do what it was asked to.
    Device {
        /// What, and how that was noticed.
        why: String,
    },
    /// This side could not go on.
    Local {
        /// Why not.
        why: String,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadline { missing } => {
                write!(f, "the deadline passed; still missing: {missing}")
            }
            Self::PeerLost { rank, why } => {
                write!(f, "rank {rank} of the other side was lost: {why}")
            }
            Self::PeerFailed { rank, why } => {
                write!(f, "rank {rank} of the other side failed: {why}")
            }
            Self::Protocol { rank, what } => write!(
                f,
                "rank {rank} of the other side broke the protocol: {what}"
            ),
            Self::Digest {
                rank,
                component,
                here,
                there,
            } => {
                write!(
                    f,
                    "what arrived of {component} is not what rank {rank} sent: digest {here:016x} here, {there:016x} there"
                )
            }
            Self::NoPath { rank, why } => {
                write!(f, "rank {rank} of the other side cannot be reached: {why}")
            }
            Self::Device { why } => write!(f, "the device with the pages failed: {why}"),
            Self::Local { why } => f.write_str(why),
        }
    }
}
