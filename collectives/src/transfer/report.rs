//! What a rank reports of its part of a transfer.

use std::fmt;

use moai_transport::Path;
use serde::{Deserialize, Serialize};

use crate::{
    cost::Way,
    protocol::{Failure, Outcome},
};

/// How one rank's part of a transfer went.
///
/// | field | unit | meaning |
/// |---|---|---|
/// | `bytes_read` | bytes | of rows, in the producer's format |
/// | `bytes_wire` | bytes | of rows that were sent, in the exchange format |
/// | `bytes_written` | bytes | of rows, in the consumer's format |
/// | `bytes_mapped` | bytes | of rows, in the producer's format, that were read where the producer has them |
/// | `chunks` | chunks | sent, landed or copied |
/// | `chunks_direct` | chunks | read from the socket straight into their pages |
/// | `chunks_mapped` | chunks | copied from the producer's pages |
/// | `saturated`, `nan` | elements | clamped to the range of the target's format; NaN |
/// | `elapsed_ns` | ns | from the first connection to the outcome |
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the table above documents them side by side")]
pub struct Report {
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
    pub elapsed_ns: u64,
    /// What carried the bytes of each peer that was reached.
    pub routes: Vec<Route>,
}

/// What carried the bytes of one pair of ranks, and why.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Route {
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
    pub(super) fn new(peer: u32, path: Path, way: Way, why: Option<&str>) -> Self {
        let why = match why {
            Some(why) => format!("{}; {why}", path.why),
            None => path.why,
        };
        Self {
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
}

/// Dirty pages of one group.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[allow(clippy::exhaustive_structs, reason = "a group and its pages")]
pub struct DirtyPages {
    /// Name of the group; empty without groups.
    pub group: String,
    /// Page ids, ascending.
    pub pages: Vec<u32>,
}

impl Report {
    pub(super) fn new(rank: u32) -> Self {
        Self {
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
            elapsed_ns: 0,
            routes: Vec::new(),
        }
    }

    pub(super) fn end(&mut self, outcome: &Outcome, dirty: impl FnOnce() -> Vec<DirtyPages>) {
        self.ended = match outcome {
            Outcome::Committed => Ended::Committed,
            Outcome::Failed(failure) => Ended::Failed {
                failure: failure.clone(),
                dirty: dirty(),
            },
        };
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
            Ended::Committed => None,
            Ended::Failed { failure, .. } => Some(failure),
        }
    }
}
