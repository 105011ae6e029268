//! What a rank reports of its part of a transfer.

use std::fmt;

use moai_transport::Path;
use serde::{Deserialize, Serialize};

use crate::{
    cost::Way,
    protocol::node::{Failure, Outcome, Trace},
};

/// How one node's part of a transfer went, or what it served of an offer.
///
/// Written as JSON it is a line for a log, with the request and its trace.
///
/// | field | unit | meaning |
/// |---|---|---|
/// | `rank` | | lowest rank of the node |
/// | `bytes_read` | bytes | of rows, in the producer's format |
/// | `bytes_wire` | bytes | of rows that were sent, in the exchange format |
/// | `bytes_written` | bytes | of rows, in the consumer's format |
/// | `bytes_mapped` | bytes | of rows, in the producer's format, that were read where the producer has them |
/// | `chunks` | chunks | sent, landed or copied |
/// | `chunks_direct` | chunks | read from the socket straight into their pages |
/// | `chunks_mapped` | chunks | copied from the producer's pages |
/// | `saturated`, `nan` | elements | clamped to the range of the target's format; NaN |
/// | `linked_ns` | ns | until the other engine was there, and the plan made |
/// | `first_ns` | ns | until the first chunk was placed, or was sent |
/// | `last_ns` | ns | until the last was |
/// | `elapsed_ns` | ns | until the outcome |
///
/// Times count from the pull, and on a producer from the first part that was asked for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the table above documents them side by side")]
pub struct Report {
    /// What the request is called here.
    pub request: String,
    /// Its trace, as a W3C `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    pub rank: u32,
    pub ended: Ended,
    pub bytes_read: u64,
    pub bytes_wire: u64,
    pub bytes_written: u64,
    pub bytes_mapped: u64,
    pub chunks: u64,
    pub chunks_direct: u64,
    pub chunks_mapped: u64,
    pub saturated: u64,
    pub nan: u64,
    pub linked_ns: u64,
    pub first_ns: u64,
    pub last_ns: u64,
    pub elapsed_ns: u64,
    /// What carried the bytes of each peer that was reached.
    pub routes: Vec<Route>,
}

/// What carried the bytes of one pair of ranks, and why.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Route {
    /// Rank of this side.
    pub rank: u32,
    /// Rank of the other side.
    pub peer: u32,
    /// The provider.
    pub provider: String,
    /// Whether rows were sent, or read where they are.
    pub way: Way,
    /// For people: why this provider, and why this way.
    pub why: String,
    /// Whether something faster was there and could not be had.
    pub is_fallback: bool,
}

impl Route {
    pub(super) fn new((rank, peer): (u32, u32), path: Path, way: Way, why: Option<&str>) -> Self {
        let why = match why {
            Some(why) => format!("{}; {why}", path.why),
            None => path.why,
        };
        Self {
            rank,
            peer,
            provider: path.provider.to_owned(),
            way,
            why,
            is_fallback: path.is_fallback,
        }
    }

    /// Something faster could not be had.
    pub(super) fn fell_back(mut self, did: bool) -> Self {
        self.is_fallback |= did;
        self
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} over {} ({})", self.way, self.provider, self.why)
    }
}

/// How a rank's part ended.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
#[allow(
    clippy::exhaustive_enums,
    reason = "a transfer has one outcome of these"
)]
pub enum Ended {
    /// Complete, placed, digests equal.
    Committed,
    /// Not so.
    Failed {
        /// Why.
        failure: Failure,
        /// Pages that may hold part of what was to come. All others are untouched.
        dirty: Vec<DirtyPages>,
    },
    /// The owner took it back.
    Cancelled {
        /// As above.
        dirty: Vec<DirtyPages>,
    },
}

/// Dirty pages of one group of a rank.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[allow(clippy::exhaustive_structs, reason = "a rank, a group and its pages")]
pub struct DirtyPages {
    /// The rank.
    pub rank: u32,
    /// Name of the group; empty without groups.
    pub group: String,
    /// Page ids, ascending.
    pub pages: Vec<u32>,
}

impl Report {
    pub(super) fn new(rank: u32) -> Self {
        Self {
            request: String::new(),
            trace: None,
            rank,
            ended: Ended::Committed,
            bytes_read: 0,
            bytes_wire: 0,
            bytes_written: 0,
            bytes_mapped: 0,
            chunks: 0,
            chunks_direct: 0,
            chunks_mapped: 0,
            saturated: 0,
            nan: 0,
            linked_ns: 0,
            first_ns: 0,
            last_ns: 0,
            elapsed_ns: 0,
            routes: Vec::new(),
        }
    }

    pub(super) fn end(&mut self, outcome: Outcome, dirty: Vec<DirtyPages>) {
        self.ended = match outcome {
            Outcome::Committed => Ended::Committed,
            Outcome::Failed(failure) => Ended::Failed { failure, dirty },
            Outcome::Cancelled => Ended::Cancelled { dirty },
        };
    }

    /// Notes the trace, once.
    pub(super) fn traced(&mut self, trace: &Trace) {
        self.trace.get_or_insert_with(|| trace.to_string());
    }

    /// Whether the part is committed.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        self.ended == Ended::Committed
    }

    /// Why it failed, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        match &self.ended {
            Ended::Committed | Ended::Cancelled { .. } => None,
            Ended::Failed { failure, .. } => Some(failure),
        }
    }

    /// Pages that may hold part of what was to come.
    #[must_use]
    pub fn dirty(&self) -> &[DirtyPages] {
        match &self.ended {
            Ended::Committed => &[],
            Ended::Failed { dirty, .. } | Ended::Cancelled { dirty } => dirty,
        }
    }
}
