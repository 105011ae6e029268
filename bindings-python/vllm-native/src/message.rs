//! What is asked and answered.

use std::collections::BTreeMap;

use moai_fabric::collectives::{
    digest::Coverage,
    protocol::node::{Failure, Reason},
    transfer::Report,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Bytes of a tensor.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::exhaustive_structs, reason = "a message")]
pub struct Span {
    /// Where it begins.
    pub address: u64,
    /// How long it is.
    pub bytes: u64,
}

/// Tokens of a request and the pages of this node's ranks, by group.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::exhaustive_structs, reason = "a message")]
pub struct Pages {
    /// Its tokens, from 0.
    pub tokens: u32,
    /// The first token to be moved.
    #[serde(default)]
    pub first: u32,
    /// How much is digested; the fabric's default if nothing is said.
    #[serde(default)]
    pub digest: Option<Coverage>,
    /// The pages of each group.
    pub groups: Vec<Vec<u32>>,
}

/// A message. `node` is what [`Open`](Self::Open) was answered with. Times are in seconds.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
#[allow(clippy::exhaustive_enums, missing_docs, reason = "as of `Engine`")]
pub enum Ask {
    /// Starts a node; its number and addresses come back.
    Open {
        engine: String,
        number: u32,
        ranks: Vec<u32>,
        epoch: u64,
        key: [u8; 32],
        produces: bool,
        consumes: bool,
        description: Value,
        /// Of each rank, in the order of its description.
        pools: Vec<Vec<Span>>,
        /// `MOAI_` variables, in addition to those of the environment and before them.
        settings: BTreeMap<String, String>,
    },
    /// Nodes of an engine: number, ranks, addresses.
    Know {
        node: u64,
        engine: String,
        nodes: Vec<(u32, Vec<u32>, Vec<String>)>,
    },
    Offer {
        node: u64,
        number: u64,
        pages: Pages,
        lease: f64,
        name: String,
    },
    Extend {
        node: u64,
        number: u64,
        lease: f64,
    },
    Withdraw {
        node: u64,
        number: u64,
    },
    /// A number of the transfer comes back.
    Pull {
        node: u64,
        handle: String,
        pages: Pages,
        deadline: f64,
        name: String,
    },
    Cancel {
        node: u64,
        transfer: u64,
    },
    /// Whatever has happened, if something does in time.
    Events {
        node: u64,
        wait: f64,
    },
    /// Metrics as text.
    Metrics {
        node: u64,
    },
    /// Ends a node: nothing is read or written in its memory any more.
    Close {
        node: u64,
    },
}

/// An answer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "a message")]
pub enum Answer {
    /// It is done.
    Done(Value),
    /// It is not.
    Problem(Problem),
}

/// Why something is not done, or has failed.
#[derive(Clone, Debug, Serialize)]
#[allow(clippy::exhaustive_structs, reason = "a message")]
pub struct Problem {
    /// One word: the kind of failure, or the reason with which the other side refused.
    pub reason: String,
    /// For people.
    pub why: String,
}

impl Problem {
    /// A problem on this side.
    #[must_use]
    pub fn local(why: impl Into<String>) -> Self {
        let (reason, why) = ("local".into(), why.into());
        Self { reason, why }
    }

    /// Why a transfer failed.
    #[must_use]
    pub fn of(failure: &Failure) -> Self {
        let why = failure.to_string();
        let reason = match failure {
            Failure::Refused { reason, .. } => word(reason),
            other => serde_json::to_value(other)
                .ok()
                .and_then(|said| said["kind"].as_str().map(str::to_owned))
                .unwrap_or_else(|| "other".into()),
        };
        Self { reason, why }
    }
}

/// A reason in one word.
pub(crate) fn word(reason: &Reason) -> String {
    let said = serde_json::to_value(reason).ok();
    let said = said.and_then(|said| said.as_str().map(str::to_owned));
    said.unwrap_or_else(|| "other".into())
}

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, missing_docs, reason = "as of `Event`")]
pub enum Happened {
    Ended {
        transfer: u64,
        fenced: bool,
        /// Why it was not committed, if it was not.
        problem: Option<Problem>,
        report: Box<Report>,
    },
    Fenced {
        transfer: u64,
    },
    Released {
        offer: u64,
        reason: String,
    },
    PeerUp {
        engine: String,
        node: u32,
    },
    PeerLost {
        engine: String,
        node: u32,
        why: String,
    },
}
