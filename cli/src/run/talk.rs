//! What `run` and its ranks say to each other: lines of JSON over pipes.

use moai_fabric::collectives::transfer::Report;
use serde::{Deserialize, Serialize};

/// A line from a rank.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", tag = "say")]
pub(super) enum FromRank {
    /// Memory is there; a producer also listens at these.
    Ready { addresses: Vec<String> },
    /// Payload bytes so far.
    Progress { done: u64, total: u64 },
    /// The rank's part has an outcome.
    Reported { report: Box<Report> },
    /// Every element was compared with the reference.
    Checked {
        elements: u64,
        difference: Option<String>,
    },
    /// The pool is in its file.
    Wrote,
    /// The rank could not take part.
    Broken { why: String },
}

/// A line to a rank.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", tag = "say")]
pub(super) enum ToRank {
    /// What all ranks of the run share, in hexadecimal.
    Begin { session: String },
    /// Begin; a consumer pulls from these producer ranks.
    Go { addresses: Vec<(u32, Vec<String>)> },
    /// Every rank has committed and verified: write the pool.
    Write,
}
