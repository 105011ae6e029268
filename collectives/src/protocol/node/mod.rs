//! One process of an engine, as the protocol sees it.
//!
//! A [`Node`] takes events and the time, and gives [`Action`]s. It has no clock, no sockets and no threads; a driver
//! connects it to a transport and to memory, the simulator to others of its kind. Everything between two nodes goes over one
//! link, and many transfers share it.
//!
//! # A link
//!
//! ```text
//!  dialler                                                     the other
//!  Dialling
//!  Greeting    ── Hello (versions, engine, epoch, nonce) ────▶ Greeting
//!              ◀─ Hello (the same, echo of the nonce) ─────────
//!  Describing  ── Met (echo of the other nonce) ─────────────▶ Describing     it lives: its epoch counts from here
//!              ◀─ Want / Description, once an engine ─────────▶
//!  Agreeing    ◀─ Agreed (digest of the agreement) ──────────▶ Agreeing
//!  Ready       ◀─ Heartbeat, and all that follows ───────────▶ Ready
//!  Lost        closed: nothing that came by it can touch memory; only then it is gone
//! ```
//!
//! # A part of a transfer: a pair of ranks
//!
//! ```text
//!  consumer                                                    producer
//!  Waiting     for a link
//!  Asked       ── Pull (handle, ranks, digest key) ──────────▶ Parked         until the offer is made
//!              ◀─ Refuse, and the end ─────────────────────── Asked          the driver looks at the plan
//!  Receiving   ◀─ Accept (chunks, bytes) ───────────────────── Serving
//!              ◀─ Ready (layer, tokens) ──────────────────────
//!              ◀═ chunks, in any order, even before Accept ═══
//!              ◀─ Sums (of steps read to their end) ────────── Sent           generations were as offered
//!  Complete    ── Done (committed), when all parts are ──────▶ Ended
//!
//!  Stopping    ── Stop ──────────────────────────────────────▶ Stopping
//!              ◀─ Stopped, when nothing is on its way ────────
//!              ── Done (not committed), when nothing is written here ─▶ Ended
//! ```
//!
//! A push is a pull that was asked for: the consumer grants pages, its handle finds the producer, which says Push, and the
//! consumer pulls.
//!
//! # What must hold
//!
//! - A transfer has one [`Outcome`], before its deadline: [`Action::Ended`] comes once.
//! - It is committed only if every chunk is placed, every digest is equal, and the producer found the generations of its
//!   pages unchanged after reading them.
//! - Pages of a transfer that is not committed are free when every part is *fenced*: nothing is written here, and the
//!   producer has said Stopped, or refused, or its link is gone, or its access is revoked. If the deadline comes first they are
//!   *quarantined* until then.
//! - Pages of an offer are free when nobody is served from them, which is when the consumer has said Done, or its link
//!   is gone, and the driver has stopped reading.
//! - Nothing that a peer sends sizes memory: [limits](crate::limits).

mod action;
mod config;
mod link;
mod message;
mod offer;
mod pull;
mod push;
mod reason;
mod serve;
#[cfg(test)]
mod tests;
mod timers;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};

pub use action::{Action, Counters, Dirty, Failure, Outcome, Served};
pub use config::{Admission, Config, Faults, capability};
pub use link::LinkState;
pub use message::{Hello, LentKey, MESSAGES, Message, MessageError, NEWEST, OLDEST, Pull, Trace};
pub use offer::OfferSpec;
pub use pull::{Chunk, Expected, PartState, PullSpec, Step};
pub use push::GrantSpec;
pub use reason::Reason;
pub use serve::{Owed, ServeState, Sums};

use crate::digest::mix;
use link::{Description, Link, Peer};
use offer::Offer;
use pull::Transfer;
use push::Grant;
use serve::Serve;
use timers::{Timer, Timers};

/// A layer number that stands for all layers.
pub const ALL_LAYERS: u32 = u32::MAX;

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
            #[allow(clippy::exhaustive_structs, reason = "a number with a name")]
            pub struct $name(pub u64);
        )*
    };
}

names! {
    /// A connection to another node; a number that the driver chooses and never uses again.
    LinkId
    /// A transfer of this node as a consumer.
    TransferId
    /// A part that this node serves as a producer.
    ServeId
}

/// One process of an engine. See the [module](self).
#[derive(Debug)]
pub struct Node {
    config: Config,
    name: Arc<str>,
    descriptor_digest: [u8; 32],
    now_ns: u64,
    chance: u64,
    hellos: u64,
    actions: VecDeque<Action>,
    timers: Timers,
    counters: Counters,
    // Links and who is at their other end.
    peers: Vec<Peer>,
    by_name: BTreeMap<Arc<str>, usize>,
    /// Engines that nobody told of and nothing links to any more, those that left first in front.
    former: VecDeque<usize>,
    /// Places in `peers` that are free.
    free_peers: Vec<usize>,
    links: BTreeMap<LinkId, Link>,
    describing: BTreeSet<LinkId>,
    descriptions: BTreeMap<[u8; 32], Description>,
    // As a producer.
    offers: BTreeMap<u64, Offer>,
    ended_offers: Ended,
    serves: BTreeMap<ServeId, Serve>,
    next_serve: u64,
    // Parts that wait for their offer.
    parked: BTreeMap<u64, BTreeSet<ServeId>>,
    // As a consumer.
    grants: BTreeMap<u64, Grant>,
    ended_grants: Ended,
    /// Offers that were pulled into grants.
    taken: BTreeMap<u64, u64>,
    transfers: BTreeMap<TransferId, Transfer>,
    next_transfer: u64,
}

/// Numbers that have ended, and why.
#[derive(Debug, Default)]
struct Ended {
    why: BTreeMap<u64, Reason>,
    order: VecDeque<u64>,
}

impl Ended {
    fn add(&mut self, number: u64, reason: Reason) {
        if self.why.insert(number, reason).is_none() {
            self.order.push_back(number);
        }
        while self.order.len() > crate::limits::MAX_ENDED {
            if let Some(oldest) = self.order.pop_front() {
                self.why.remove(&oldest);
            }
        }
    }

    fn get(&self, number: u64) -> Option<Reason> {
        self.why.get(&number).copied()
    }
}

impl Node {
    /// A node without links.
    ///
    /// # Errors
    ///
    /// What is wrong with the configuration.
    pub fn new(config: Config) -> Result<Self, String> {
        use crate::{limits, protocol::handle::check_engine_name};
        check_engine_name(&config.engine)
            .map_err(|why| format!("engine name {:?}: {why}", config.engine))?;
        let (oldest, newest) = config.versions;
        if oldest < OLDEST || newest > NEWEST || oldest > newest {
            return Err(format!(
                "versions {oldest} to {newest}; this build speaks {OLDEST} to {NEWEST}"
            ));
        }
        if config.ranks.len() > limits::MAX_NODE_RANKS {
            return Err(format!(
                "{} ranks; a node holds {} at most",
                config.ranks.len(),
                limits::MAX_NODE_RANKS
            ));
        }
        if config.descriptor.len() > limits::MAX_DESCRIPTOR_BYTES {
            let (bytes, most) = (config.descriptor.len(), limits::MAX_DESCRIPTOR_BYTES);
            return Err(format!("a descriptor of {bytes} bytes; {most} at most"));
        }
        if config.heartbeat_ns == 0 || config.loss_ns <= config.heartbeat_ns {
            let (heartbeat, loss) = (config.heartbeat_ns, config.loss_ns);
            return Err(format!(
                "loss after {loss} ns with a heartbeat each {heartbeat} ns; expected more than one"
            ));
        }
        Ok(Self {
            name: config.engine.as_str().into(),
            descriptor_digest: Sha256::digest(&config.descriptor).into(),
            now_ns: 0,
            chance: config.seed,
            hellos: 0,
            actions: VecDeque::new(),
            timers: Timers::default(),
            counters: Counters::default(),
            peers: Vec::new(),
            by_name: BTreeMap::new(),
            former: VecDeque::new(),
            free_peers: Vec::new(),
            links: BTreeMap::new(),
            describing: BTreeSet::new(),
            descriptions: BTreeMap::new(),
            offers: BTreeMap::new(),
            ended_offers: Ended::default(),
            serves: BTreeMap::new(),
            next_serve: 0,
            parked: BTreeMap::new(),
            grants: BTreeMap::new(),
            ended_grants: Ended::default(),
            taken: BTreeMap::new(),
            transfers: BTreeMap::new(),
            next_transfer: 1,
            config,
        })
    }

    /// What to do now, in order; whoever does it takes it out.
    pub fn actions(&mut self) -> &mut VecDeque<Action> {
        &mut self.actions
    }

    /// What it is.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// What it has counted.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// When to call [`tick`](Self::tick) next, at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.timers.next()
    }

    /// Entries of all tables: what its memory grows with.
    #[must_use]
    pub fn size(&self) -> usize {
        let parts: usize = self.transfers.values().map(Transfer::parts).sum();
        let engines = self.by_name.values();
        let peers: usize = engines.map(|&peer| 1 + self.peers[peer].size()).sum();
        self.links.len()
            + self.offers.len()
            + self.serves.len()
            + self.parked.len()
            + self.grants.len()
            + self.transfers.len()
            + parts
            + peers
            + self.timers.len()
    }

    /// Whether there are no offers, grants, parts that are served, and transfers that are not over, and nothing waits for a link.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.peers.iter().any(Peer::is_awaited)
            && self.offers.is_empty()
            && self.grants.is_empty()
            && self.serves.is_empty()
            && self.transfers.is_empty()
    }

    /// Time passes.
    pub fn tick(&mut self, now_ns: u64) {
        self.at(now_ns);
        while let Some(timer) = self.timers.due(self.now_ns) {
            match timer {
                Timer::Link(link) => self.link_due(link),
                Timer::Dial(peer, node) => self.dial_due(peer, node),
                Timer::Offer(offer) => self.offer_due(offer),
                Timer::Grant(grant) => self.grant_due(grant),
                Timer::Serve(serve) => self.serve_due(serve),
                Timer::Transfer(transfer) => self.transfer_due(transfer),
            }
        }
    }

    /// Ends everything: transfers are cancelled, offers withdrawn, links closed. Go on until [`is_idle`](Self::is_idle).
    pub fn shutdown(&mut self, now_ns: u64) {
        self.at(now_ns);
        let transfers: Vec<_> = self.transfers.keys().copied().collect();
        transfers
            .into_iter()
            .for_each(|transfer| self.cancel(transfer, now_ns));
        let offers: Vec<_> = self.offers.keys().copied().collect();
        offers
            .into_iter()
            .for_each(|offer| self.withdraw(offer, now_ns));
        let grants: Vec<_> = self.grants.keys().copied().collect();
        grants
            .into_iter()
            .for_each(|grant| self.revoke(grant, now_ns));
        for peer in 0..self.peers.len() {
            self.peers[peer].forget();
        }
        let links: Vec<_> = self.links.keys().copied().collect();
        for link in links {
            self.lose(link, link::Cause::Lost("this node shuts down".into()), true);
        }
    }

    /// Time does not go back here, whatever a caller says.
    fn at(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
    }

    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.chance = self.chance.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.chance)
    }
}
