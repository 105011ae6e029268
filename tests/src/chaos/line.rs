//! What a harness and a process of an engine say to each other: lines of JSON.

use moai_collectives::transfer::Report;
use serde::{Deserialize, Serialize};

/// How a process is started.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Start {
    /// Name of the engine.
    pub(super) name: String,
    /// What its cache looks like: `prefill` or `decode`.
    pub(super) shape: String,
    /// Life of the engine.
    pub(super) epoch: u64,
    /// What its pool is filled from.
    pub(super) seed: u64,
    /// Transports that may be used, separated by commas.
    pub(super) transports: String,
    /// Where it listens.
    pub(super) bind: String,
    /// Payload bytes a second at most.
    pub(super) rate: Option<u64>,
    /// When a silent link is lost, and a fence forced.
    pub(super) loss_ms: u64,
}

/// A request's tokens, and the first of its pages; the others follow.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) struct Span {
    /// Tokens.
    pub(super) tokens: u32,
    /// First page.
    pub(super) first: u32,
}

/// A transfer that was committed here: of a cache of which everything follows from its seed.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Moved {
    /// The producer's shape.
    pub(super) shape: String,
    /// Its seed.
    pub(super) seed: u64,
    /// Where the request lies there.
    pub(super) from: Span,
    /// And here.
    pub(super) to: Span,
}

/// What a process is asked.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub(super) enum Ask {
    /// Comes first, once.
    Start(Start),
    /// Another engine of one node with all ranks is there.
    Know {
        engine: String,
        ranks: u32,
        addresses: Vec<String>,
    },
    /// Find engines in a directory.
    Follow {
        source: String,
        engines: Vec<String>,
    },
    Offer {
        number: u64,
        request: Span,
        lease_ms: u64,
        progressive: bool,
    },
    /// A layer is written; without one all are.
    Ready {
        offer: u64,
        layer: Option<u32>,
        tokens: u32,
    },
    Withdraw {
        offer: u64,
    },
    Pull {
        handle: String,
        request: Span,
        deadline_ms: u64,
        map: bool,
    },
    Cancel {
        transfer: u64,
    },
    /// Compare all memory with what it is to be, now that transfers have ended: these were committed, and of these pages
    /// nothing is known. What is found is where the next comparison starts from.
    Compare {
        committed: Vec<Moved>,
        dirty: Vec<u32>,
    },
    /// Change a byte of a page, to see that it is found.
    Spoil {
        page: u32,
    },
    Stats,
}

/// What a process is made of at the moment.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(super) struct Stats {
    /// Entries of the node's tables.
    pub(super) size: usize,
    /// Links that are ready.
    pub(super) links: usize,
    /// Descriptors that are open.
    pub(super) fds: usize,
    /// Resident memory that belongs to nobody else.
    pub(super) rss_bytes: u64,
}

/// What a process says.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", tag = "say")]
pub(super) enum Say {
    /// It listens there.
    Started {
        addresses: Vec<String>,
    },
    /// Done.
    Done,
    /// What was asked for cannot be.
    Refused {
        why: String,
    },
    Offered {
        handle: String,
    },
    Pulling {
        transfer: u64,
    },
    /// Pages that are not what they are to be.
    Compared {
        wrong: Vec<String>,
    },
    Stats(Stats),
    Up {
        engine: String,
        epoch: u64,
    },
    Lost {
        engine: String,
        why: String,
    },
    Layer {
        transfer: u64,
        layer: u32,
    },
    Ended {
        transfer: u64,
        report: Box<Report>,
        fenced: bool,
    },
    Fenced {
        transfer: u64,
    },
    Released {
        offer: u64,
        reason: String,
    },
    /// Anything else, for whoever reads along.
    Other {
        event: String,
    },
}

impl Say {
    /// Whether it is the answer to what was asked, and not an event.
    #[must_use]
    pub(super) fn is_answer(&self) -> bool {
        matches!(
            self,
            Self::Started { .. }
                | Self::Done
                | Self::Refused { .. }
                | Self::Offered { .. }
                | Self::Pulling { .. }
                | Self::Compared { .. }
                | Self::Stats(_)
        )
    }
}
