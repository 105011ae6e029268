//! What a node is, and how patient.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::message::{NEWEST, OLDEST};
use crate::protocol::handle::EngineKey;

/// What a node can do beyond what every node can, as bits. Those that a build does not know mean nothing to it.
pub mod capability {
    /// Serves layers as they become ready.
    pub const BY_LAYER: u64 = 1;
    /// Takes invitations.
    pub const PUSH: u64 = 1 << 1;
    /// Lends pages, or maps what is lent.
    pub const MAP: u64 = 1 << 2;
    /// All that this build can.
    pub const ALL: u64 = BY_LAYER | PUSH | MAP;
}

/// Who may speak for which engine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "open, or a list")]
pub enum Admission {
    /// Whoever reaches the node: for loopback, and for networks where that was asked for by name.
    Anyone,
    /// The identities of each engine. The name `*` stands for engines that have no entry.
    Listed(BTreeMap<String, BTreeSet<String>>),
}

impl Admission {
    /// Whether a peer with an identity may be a node of an engine.
    #[must_use]
    pub fn admits(&self, engine: &str, identity: Option<&str>) -> bool {
        let Self::Listed(listed) = self else {
            return true;
        };
        let allowed = listed.get(engine).or_else(|| listed.get("*"));
        match (allowed, identity) {
            (Some(allowed), Some(identity)) => allowed.contains(identity),
            _ => false,
        }
    }
}

/// What a node is, and how patient. Times are in nanoseconds on the caller's clock.
#[derive(Clone, Debug)]
#[allow(
    clippy::exhaustive_structs,
    reason = "callers write these out, over a default"
)]
pub struct Config {
    /// Name of the engine.
    pub engine: String,
    /// Number of this node in the engine.
    pub node: u32,
    /// Ranks that the node holds.
    pub ranks: Vec<u32>,
    /// Life of the engine: drawn at random when its processes start, the same for all of them.
    pub epoch: u64,
    /// Key of the engine, the same for all its nodes.
    pub key: EngineKey,
    /// Oldest and newest version of the protocol to speak.
    pub versions: (u16, u16),
    /// See [`capability`].
    pub capabilities: u64,
    /// The engine's descriptor, as its peers' [`negotiate`](crate::negotiate::negotiate) reads it.
    pub descriptor: Arc<[u8]>,
    /// Who may be a peer.
    pub admission: Admission,
    /// A link that has said nothing for so long says that it is alive.
    pub heartbeat_ns: u64,
    /// A link on which nothing was heard for so long is lost.
    pub loss_ns: u64,
    /// A link that is not ready so long after it was made is lost. A descriptor must get through.
    pub handshake_ns: u64,
    /// A peer that has not acknowledged a stop for so long loses its link: without it, it cannot touch anything.
    pub fence_ns: u64,
    /// First and longest pause before a node is dialled again.
    pub backoff_ns: (u64, u64),
    /// How long a pull waits for an offer that its handle proves: nodes of an engine do not offer at the same instant.
    pub offer_wait_ns: u64,
    /// By how much clocks may differ, in milliseconds, where the expiry in a handle is looked at.
    pub skew_ms: u64,
    /// What chances are drawn from: pauses, nonces. Draw it at random.
    pub seed: u64,
    /// Bugs, for tests of the tests.
    #[doc(hidden)]
    pub faults: Faults,
}

/// Bugs that the simulator must find.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "tests write these out")]
pub struct Faults {
    pub lease_ignored: bool,
    pub generation_unchecked: bool,
    pub fence_skipped: bool,
    pub outcome_twice: bool,
    pub digest_not_compared: bool,
    pub stale_epoch_accepted: bool,
    /// A chunk is let in after its transfer was fenced.
    pub landing_after_fence: bool,
    /// A chunk that comes twice counts twice.
    pub duplicate_counted: bool,
    /// Pages are free at the deadline, whatever may still write.
    pub quarantine_skipped: bool,
    /// Pages of an offer are free while someone is served.
    pub released_early: bool,
    /// A handle is believed whoever sealed it.
    pub seal_unchecked: bool,
    /// A handle serves engines that it is not for.
    pub bound_unchecked: bool,
    /// What has been pulled is served again.
    pub consumed_again: bool,
    /// A consumer that gave up counts as one that has all.
    pub stop_is_commit: bool,
    /// A push is declined by whoever says so.
    pub decline_unchecked: bool,
    /// Nodes are dialled for pushes of offers that have ended.
    pub push_kept: bool,
    /// A transfer has half a second more than it may have.
    pub deadline_late: bool,
}

impl Config {
    /// A node of an engine, with the usual patience.
    #[must_use]
    pub fn new(
        engine: impl Into<String>,
        node: u32,
        ranks: Vec<u32>,
        epoch: u64,
        key: EngineKey,
    ) -> Self {
        const SECOND: u64 = 1_000_000_000;
        Self {
            engine: engine.into(),
            node,
            ranks,
            epoch,
            key,
            versions: (OLDEST, NEWEST),
            capabilities: capability::ALL,
            descriptor: Arc::new([]),
            admission: Admission::Anyone,
            heartbeat_ns: SECOND,
            loss_ns: 3 * SECOND,
            handshake_ns: 10 * SECOND,
            fence_ns: 3 * SECOND,
            backoff_ns: (SECOND / 20, 5 * SECOND),
            offer_wait_ns: SECOND,
            skew_ms: 30_000,
            seed: epoch ^ u64::from(node),
            faults: Faults::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_listed_by_engine() {
        let set = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<BTreeSet<_>>();
        let listed = Admission::Listed(
            [
                ("a".to_owned(), set(&["spiffe://x/a"])),
                ("*".to_owned(), set(&["any"])),
            ]
            .into(),
        );
        assert!(listed.admits("a", Some("spiffe://x/a")));
        assert!(!listed.admits("a", Some("any")));
        assert!(listed.admits("b", Some("any")));
        assert!(!listed.admits("b", None));
        assert!(Admission::Anyone.admits("b", None));
    }
}
