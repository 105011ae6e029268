//! What a rank reports of its part of a transfer.

use serde::{Deserialize, Serialize};

use crate::protocol::{Failure, Outcome};

/// How one rank's part of a transfer went.
///
/// | field | unit | meaning |
/// |---|---|---|
/// | `bytes_read` | bytes | of rows, in the producer's format |
/// | `bytes_wire` | bytes | of rows, in the exchange format |
/// | `bytes_written` | bytes | of rows, in the consumer's format |
/// | `chunks` | chunks | sent, or landed |
/// | `chunks_direct` | chunks | read from the socket straight into their pages |
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
    pub chunks: u64,
    pub chunks_direct: u64,
    pub saturated: u64,
    pub nan: u64,
    pub elapsed_ns: u64,
    /// What carried the bytes of each peer, and why.
    pub paths: Vec<String>,
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
            chunks: 0,
            chunks_direct: 0,
            saturated: 0,
            nan: 0,
            elapsed_ns: 0,
            paths: Vec::new(),
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
