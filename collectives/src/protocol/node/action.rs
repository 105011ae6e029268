//! What a node wants done, and how things ended.

use std::{fmt, sync::Arc};

use super::{
    LinkId, Reason, ServeId, TransferId,
    message::{LentKey, Message, Pull, Trace},
};
use crate::protocol::handle::Handle;

/// How a transfer ended.
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
    /// The owner took it back.
    Cancelled,
}

/// Why a transfer failed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum Failure {
    /// The deadline passed.
    Deadline {
        /// What was still missing.
        missing: String,
    },
    /// The link to a peer's rank was lost, or could not be made in time.
    Lost {
        /// The peer's rank.
        rank: u32,
        /// How.
        why: String,
    },
    /// The peer's engine began a new life.
    Restarted {
        /// The peer's rank.
        rank: u32,
    },
    /// The peer refused, or ended it.
    Refused {
        /// The peer's rank.
        rank: u32,
        /// Why.
        reason: Reason,
        /// The same in its words.
        why: String,
    },
    /// The peer broke the protocol.
    Protocol {
        /// The peer's rank.
        rank: u32,
        /// What it did, and what was expected.
        what: String,
    },
    /// What arrived is not what was sent.
    Digest {
        /// The peer's rank.
        rank: u32,
        /// Global layer.
        layer: u32,
        /// Name of the component.
        component: String,
        /// Part of the transfer, and its step.
        at: (u32, u32),
        /// Pages of this side that hold the step, where the driver knows: it has one for each chunk.
        #[serde(default)]
        pages: Vec<u32>,
        /// The digest of what arrived.
        here: u64,
        /// The digest of what was sent.
        there: u64,
    },
    /// No node is known that holds a rank.
    NoPath {
        /// The peer's rank.
        rank: u32,
        /// Why not.
        why: String,
    },
    /// This side could not go on.
    Local {
        /// Why not.
        why: String,
    },
}

impl Failure {
    /// The rank of the other side that it is about, if it is about one.
    #[must_use]
    pub const fn rank(&self) -> Option<u32> {
        match self {
            Self::Lost { rank, .. }
            | Self::Restarted { rank }
            | Self::Refused { rank, .. }
            | Self::Protocol { rank, .. }
            | Self::Digest { rank, .. }
            | Self::NoPath { rank, .. } => Some(*rank),
            Self::Deadline { .. } | Self::Local { .. } => None,
        }
    }

    /// The reason that peers are told.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Deadline { .. } => Reason::Deadline,
            Self::Lost { .. } | Self::NoPath { .. } => Reason::Lost,
            Self::Restarted { .. } => Reason::Restarted,
            Self::Refused { reason, .. } => *reason,
            Self::Protocol { .. } => Reason::Protocol,
            Self::Digest { .. } => Reason::Digest,
            Self::Local { .. } => Reason::Local,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadline { missing } => {
                write!(f, "the deadline passed; still missing: {missing}")
            }
            Self::Lost { rank, why } => write!(f, "rank {rank} of the other side was lost: {why}"),
            Self::Restarted { rank } => {
                write!(
                    f,
                    "the engine with rank {rank} of the other side restarted: producer restarted"
                )
            }
            Self::Refused { rank, reason, why } => {
                write!(f, "rank {rank} of the other side refused ({reason}): {why}")
            }
            Self::Protocol { rank, what } => {
                write!(
                    f,
                    "rank {rank} of the other side broke the protocol: {what}"
                )
            }
            Self::Digest {
                rank,
                layer,
                component,
                at: _,
                pages,
                here,
                there,
            } => {
                write!(f, "what arrived of {component} of layer {layer}")?;
                match &pages[..] {
                    [] => {}
                    [page] => write!(f, " in page {page}")?,
                    [first, .., last] => {
                        write!(f, " in {} pages, {first} to {last},", pages.len())?;
                    }
                }
                write!(
                    f,
                    " is not what rank {rank} sent: digest {here:016x} here, {there:016x} there"
                )
            }
            Self::NoPath { rank, why } => {
                write!(f, "rank {rank} of the other side cannot be reached: {why}")
            }
            Self::Local { why } => f.write_str(why),
        }
    }
}

impl std::error::Error for Failure {}

/// How a producer's part ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a part has one outcome of these")]
pub enum Served {
    /// The consumer committed.
    Committed,
    /// It did not.
    Failed {
        /// Why.
        reason: Reason,
        /// The same for people.
        why: String,
    },
}

/// Chunks of a part that had begun to land: their pages are dirty.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "what it says")]
pub struct Dirty {
    /// Part of the transfer.
    pub part: u32,
    /// Its chunks.
    pub chunks: Vec<u32>,
}

/// What a node wants done, in the order in which it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Connect to a node. Answer with `dialled` or `unreachable`.
    Dial {
        /// Name of the engine.
        engine: Arc<str>,
        /// Its node.
        node: u32,
    },
    /// Send a message on a link, behind what was sent before.
    Send {
        /// The link.
        link: LinkId,
        /// The message.
        message: Message,
    },
    /// Close a link, once what was sent on it has gone out or 1 s has passed. Call `closed` when nothing that came by it
    /// can touch memory any more.
    Close {
        /// The link.
        link: LinkId,
    },
    /// Negotiate with a peer's descriptor. Answer with `agreed`.
    Negotiate {
        /// The peer.
        engine: Arc<str>,
        /// SHA-256 of the descriptor.
        digest: [u8; 32],
        /// The descriptor.
        descriptor: Arc<[u8]>,
    },
    /// What was agreed about a descriptor is not needed any more: it will be negotiated again.
    Forgotten {
        /// SHA-256 of the descriptor.
        digest: [u8; 32],
    },
    /// A node can be talked to.
    PeerUp {
        /// Name of the engine.
        engine: Arc<str>,
        /// Its node.
        node: u32,
        /// Its life.
        epoch: u64,
        /// The link.
        link: LinkId,
    },
    /// It cannot any more.
    PeerLost {
        /// Name of the engine.
        engine: Arc<str>,
        /// Its node.
        node: u32,
        /// Its life.
        epoch: u64,
        /// Why.
        why: String,
    },
    /// Peers know a later life of this node's engine: another set of processes took its name.
    Superseded {
        /// Who said so.
        engine: Arc<str>,
    },
    /// Producer: a pull of an offer that is in order. Answer with `accept` or `refuse`.
    Serve {
        /// Name of the part here.
        serve: ServeId,
        /// The offer.
        offer: u64,
        /// The consumer engine.
        engine: Arc<str>,
        /// The link that its chunks are sent on.
        link: LinkId,
        /// What is asked for.
        pull: Box<Pull>,
    },
    /// Producer: the first tokens of a layer may be read for a part.
    Ready {
        /// The part.
        serve: ServeId,
        /// Global layer, or [`ALL_LAYERS`](super::ALL_LAYERS).
        layer: u32,
        /// Tokens, counted from the start of the request.
        tokens: u32,
    },
    /// Producer: the consumer cannot map the pages of a part; send them.
    SendInstead {
        /// The part.
        serve: ServeId,
        /// Why not.
        why: String,
    },
    /// Producer: read no more for a part. Answer with `stopped` when no read is going on, and nothing that was sent for it
    /// can still arrive as a write into the consumer's memory.
    StopServing {
        /// The part.
        serve: ServeId,
    },
    /// Producer: how a part ended.
    Served {
        /// The part.
        serve: ServeId,
        /// The offer.
        offer: u64,
        /// How.
        outcome: Served,
    },
    /// Producer: the offer has ended, but someone may still read its pages. `Released` follows.
    Quarantined {
        /// The offer.
        offer: u64,
        /// Why it ended.
        reason: Reason,
    },
    /// Producer: the pages of an offer are free; [`Reason::Consumed`] if all of it was pulled.
    Released {
        /// The offer.
        offer: u64,
        /// Why.
        reason: Reason,
    },
    /// Producer: a push was not taken.
    Declined {
        /// The offer.
        offer: u64,
        /// The consumer engine.
        engine: Arc<str>,
        /// Why.
        reason: Reason,
        /// The same for people.
        why: String,
    },
    /// Consumer: a producer pushes an offer into a grant. Answer with `pull` or `decline`.
    Invited {
        /// The grant.
        grant: u64,
        /// The producer engine.
        engine: Arc<str>,
        /// The offer's handle.
        handle: Handle,
    },
    /// Consumer: the engine that a transfer seeks is there. Answer with `planned`.
    Plan {
        /// The transfer.
        transfer: TransferId,
        /// A link to it.
        link: LinkId,
    },
    /// Consumer: a part is pulled; its chunks may arrive from now on, even before the producer's answer.
    Receive {
        /// The transfer.
        transfer: TransferId,
        /// Its part.
        part: u32,
        /// The link that it is pulled on.
        link: LinkId,
    },
    /// Consumer: the pages of a part are lent; copy from them what [`Written`](Self::Written) says may be.
    Copy {
        /// The transfer.
        transfer: TransferId,
        /// Its part.
        part: u32,
        /// The link.
        link: LinkId,
        /// The keys of the producer rank's regions.
        keys: Arc<[LentKey]>,
        /// The pages in which the request lies: the lists of all groups, one after another.
        pages: Arc<[u32]>,
    },
    /// Consumer: the producer does not lend the pages of a part, and sends them.
    Unlent {
        /// The transfer.
        transfer: TransferId,
        /// Its part.
        part: u32,
        /// Why not.
        why: String,
    },
    /// Consumer: the producer's side of a part belongs to a trace.
    Traced {
        /// The transfer.
        transfer: TransferId,
        /// Its part.
        part: u32,
        /// The trace.
        trace: Trace,
    },
    /// Consumer: the producer has written the first tokens of a layer; if its pages are lent, they may be copied.
    Written {
        /// The transfer.
        transfer: TransferId,
        /// Its part.
        part: u32,
        /// Global layer, or [`ALL_LAYERS`](super::ALL_LAYERS).
        layer: u32,
        /// Tokens, counted from the start of the request.
        tokens: u32,
    },
    /// Consumer: all of a layer is placed, with equal digests. The transfer may still fail.
    Layer {
        /// The transfer.
        transfer: TransferId,
        /// Global layer.
        layer: u32,
    },
    /// Consumer: let nothing of a part be written any more. Answer with `quiet` when nothing is being written here.
    Fence {
        /// The transfer.
        transfer: TransferId,
        /// Its part.
        part: u32,
    },
    /// Consumer: how a transfer ended. Once.
    Ended {
        /// The transfer.
        transfer: TransferId,
        /// How.
        outcome: Outcome,
        /// What had begun to land, unless it is committed.
        dirty: Vec<Dirty>,
        /// Whether its pages are free for other use. If not they are quarantined, and `Fenced` follows.
        fenced: bool,
    },
    /// Consumer: the pages of a transfer that ended without being fenced are free.
    Fenced {
        /// The transfer.
        transfer: TransferId,
    },
    /// Consumer: the pages of a grant that no transfer took are free.
    Returned {
        /// The grant.
        grant: u64,
        /// Why.
        reason: Reason,
    },
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident)*) => {
        /// What a node has counted since it was made, and how many of each there are now.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Each with its name.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Links that became ready.
    links_ready
    /// Links that were lost after they were ready.
    links_lost
    /// Links that were lost before.
    handshakes_failed
    /// Dials that were asked for.
    dials
    /// Restarts of peers that were noticed.
    peers_restarted
    /// Peers that came with an epoch that had been replaced.
    epochs_refused
    /// Messages that could not be read, or were not allowed where they came.
    protocol_errors
    /// Messages and chunks of what has ended: discarded.
    late
    /// Offers made.
    offers
    /// Offers released because all was pulled.
    offers_consumed
    /// Offers released because their lease ran out.
    offers_expired
    /// Leases that were extended because a transfer was on.
    leases_extended
    /// Pulls that were refused.
    pulls_refused
    /// Parts served to their commit.
    serves_committed
    /// Parts that were served and not committed.
    serves_failed
    /// Parts discarded because their pages had been reused.
    generations_stale
    /// Grants made.
    grants
    /// Transfers begun.
    transfers
    /// Transfers committed.
    committed
    /// Transfers failed.
    failed
    /// Transfers cancelled.
    cancelled
    /// Transfers failed because digests differ.
    digest_mismatches
    /// Transfers and offers that ended before they were fenced.
    quarantined
    /// Of those, how many wait for their fence now.
    quarantined_now
    /// Links closed because a peer did not acknowledge a stop.
    fences_forced
}
