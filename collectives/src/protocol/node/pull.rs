//! A consumer's side of a transfer: its parts, what has landed, and how it ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Action, Dirty, Failure, LentKey, LinkId, Node, Outcome, Reason, TransferId,
    link::{Cause, LinkState},
    message::{Message, Pull, Trace},
    timers::Timer,
};
use crate::{
    digest::Coverage,
    limits::{MAX_CHUNKS, MAX_LENT_PAGES, MAX_PARTS, MAX_PULL_MS, MAX_PULLS, MAX_REGIONS},
    protocol::handle::{Handle, HandleKind},
};

/// A chunk of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "what a plan says of it")]
pub struct Chunk {
    /// Its bytes.
    pub bytes: u32,
    /// Its step.
    pub step: u32,
}

/// A step of a part: what has a digest of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "what a plan says of it")]
pub struct Step {
    /// Global layer.
    pub layer: u32,
    /// Name of the component.
    pub component: Arc<str>,
}

/// What a part of a transfer must bring, by the consumer's own plan.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "callers write these out")]
pub struct Expected {
    /// Producer rank.
    pub source: u32,
    /// Consumer rank.
    pub target: u32,
    /// Its chunks, in order.
    pub chunks: Arc<[Chunk]>,
    /// Its steps, in order.
    pub steps: Arc<[Step]>,
    /// Whether to ask for keys, to map the producer's pages.
    pub map: bool,
    /// Pages in which the producer rank has the request, in all groups: what it must list for them to be mapped.
    pub pages: u32,
}

/// What is pulled.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "callers write these out")]
pub struct PullSpec {
    /// The offer.
    pub handle: Handle,
    /// All pairs of ranks, on this node, that the plan gives something.
    pub parts: Vec<Expected>,
    /// From now to the outcome, at most.
    pub within_ns: u64,
    /// Tokens from the start that are there already.
    pub held: u32,
    /// Whether to report layers one by one.
    pub by_layer: bool,
    /// What is digested.
    pub mode: Coverage,
    /// Key of the digest, drawn at random.
    pub key: u64,
    /// The grant whose pages are filled.
    pub grant: Option<u64>,
}

/// Where a part stands on the consumer's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_enums,
    reason = "the states of the protocol's picture"
)]
pub enum PartState {
    /// For a link.
    Waiting,
    /// Pull is sent.
    Asked,
    /// Chunks arrive.
    Receiving,
    /// Chunks are copied from pages that are lent.
    Mapped,
    /// Every chunk is placed, and the digests are equal.
    Complete,
    /// The transfer has failed; writes are being fenced.
    Stopping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    Awaited,
    Begun,
    Placed,
}

#[derive(Debug)]
struct Part {
    expected: Expected,
    state: PartState,
    /// Where it was pulled, once it was.
    link: Option<LinkId>,
    node: u32,
    chunks: Vec<Arrival>,
    /// Chunks that are not placed, of each step.
    missing: Vec<u32>,
    sums: Vec<u64>,
    told: Vec<Option<u64>>,
    /// Pages of the producer, as they are listed.
    pages: Vec<u32>,
    /// Steps that are not complete.
    left: u32,
    /// The producer never served it.
    refused: bool,
    /// What must be so before its pages are free.
    stopped: bool,
    gone: bool,
    quiet: bool,
}

impl Part {
    /// Nothing of it can be written any more.
    fn is_fenced(&self) -> bool {
        self.link.is_none() || self.refused || self.quiet && (self.stopped || self.gone)
    }

    /// `trouble` is why there is no link, where that is known.
    fn waits_for(&self, trouble: Option<&str>) -> Option<String> {
        let rank = self.expected.source;
        let unplaced: u32 = self.missing.iter().sum();
        match self.state {
            PartState::Waiting => Some(match trouble {
                Some(trouble) => format!("a link to rank {rank} ({trouble})"),
                None => format!("a link to rank {rank}"),
            }),
            PartState::Asked => Some(format!("an answer of rank {rank}")),
            PartState::Receiving | PartState::Mapped if unplaced == 0 => {
                Some(format!("the digests of rank {rank}"))
            }
            PartState::Receiving | PartState::Mapped => Some(format!(
                "{unplaced} of {} chunks of rank {rank}",
                self.chunks.len()
            )),
            PartState::Complete | PartState::Stopping => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Transfer {
    spec: PullSpec,
    peer: usize,
    started_ns: u64,
    deadline_ns: u64,
    /// Its parts are not known before its engine is: there is one without chunks, which waits for any node of it.
    seeks: bool,
    parts: Vec<Part>,
    /// Parts that are not complete.
    left: usize,
    /// Steps that are not complete, by layer.
    layers: BTreeMap<u32, u32>,
    ending: Option<Ending>,
}

#[derive(Debug)]
struct Ending {
    outcome: Outcome,
    reported: bool,
    force_ns: Option<u64>,
}

impl Transfer {
    pub(super) fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Makes its parts, which wait for the nodes that hold their ranks.
    fn plan(&mut self, node_of: impl Fn(u32) -> Option<u32>) {
        self.parts.clear();
        self.layers.clear();
        for expected in &self.spec.parts {
            let steps = expected.steps.len();
            let mut missing = vec![0; steps];
            for chunk in &*expected.chunks {
                missing[chunk.step as usize] += 1;
            }
            if self.spec.by_layer {
                for step in &*expected.steps {
                    *self.layers.entry(step.layer).or_insert(0) += 1;
                }
            }
            self.parts.push(Part {
                state: PartState::Waiting,
                link: None,
                node: node_of(expected.source).unwrap_or_default(),
                chunks: vec![Arrival::Awaited; expected.chunks.len()],
                missing,
                sums: vec![0; steps],
                told: vec![None; steps],
                pages: Vec::new(),
                left: steps as u32,
                refused: false,
                stopped: false,
                gone: false,
                quiet: false,
                expected: expected.clone(),
            });
        }
        self.left = self.parts.len();
    }
}

impl Node {
    /// Begins a transfer. [`Action::Ended`] tells how it ended, by its deadline.
    ///
    /// # Errors
    ///
    /// A [`Failure`] if it cannot begin.
    pub fn pull(
        &mut self,
        spec: PullSpec,
        now_ns: u64,
        unix_ms: u64,
    ) -> Result<TransferId, Failure> {
        self.at(now_ns);
        let peer = self.may_pull(&spec, unix_ms)?;
        if let Some(grant) = spec.grant {
            self.take_grant(grant, spec.handle.fields().number)
                .map_err(|why| Failure::Local { why })?;
        }
        let id = self.begin(spec, peer, false);
        self.ask_all(id);
        Ok(id)
    }

    /// As [`pull`](Self::pull), where the plan is not known before the engine is: once there is a link to it,
    /// [`Action::Plan`] asks for the parts. Those of `spec` do not matter.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn seek(
        &mut self,
        mut spec: PullSpec,
        now_ns: u64,
        unix_ms: u64,
    ) -> Result<TransferId, Failure> {
        self.at(now_ns);
        spec.parts.clear();
        let peer = self.may_pull(&spec, unix_ms)?;
        let Some((source, _)) = self.peers[peer].some_rank() else {
            let why = format!("no node of engine {} is known", spec.handle.fields().engine);
            return Err(Failure::NoPath { rank: 0, why });
        };
        if let Some(grant) = spec.grant {
            self.take_grant(grant, spec.handle.fields().number)
                .map_err(|why| Failure::Local { why })?;
        }
        spec.parts.push(Expected {
            source,
            target: 0,
            chunks: [].into(),
            steps: [].into(),
            map: false,
            pages: 0,
        });
        let id = self.begin(spec, peer, true);
        self.ask_all(id);
        Ok(id)
    }

    /// Answers [`Action::Plan`].
    pub fn planned(&mut self, transfer: TransferId, parts: Vec<Expected>, now_ns: u64) {
        self.at(now_ns);
        let Some(this) = self.transfers.get_mut(&transfer) else {
            return;
        };
        if !this.seeks || this.ending.is_some() {
            return;
        }
        let (peer, engine) = (this.peer, this.spec.handle.fields().engine.clone());
        if let Err(failure) = self.may_have(peer, &engine, &parts) {
            return self.end_transfer(transfer, Outcome::Failed(failure));
        }
        let Some(this) = self.transfers.get_mut(&transfer) else {
            return;
        };
        this.seeks = false;
        this.spec.parts = parts;
        let nodes = &self.peers[peer];
        this.plan(|rank| nodes.node_of(rank));
        self.ask_all(transfer);
    }

    fn begin(&mut self, spec: PullSpec, peer: usize, seeks: bool) -> TransferId {
        let id = TransferId(self.next_transfer);
        self.next_transfer += 1;
        let most = u64::from(MAX_PULL_MS) * 1_000_000;
        let more = u64::from(self.config.faults.deadline_late) * 500_000_000;
        let mut transfer = Transfer {
            peer,
            started_ns: self.now_ns,
            deadline_ns: self.now_ns + spec.within_ns.min(most) + more,
            seeks,
            left: 0,
            parts: Vec::new(),
            layers: BTreeMap::new(),
            ending: None,
            spec,
        };
        let nodes = &self.peers[peer];
        transfer.plan(|rank| nodes.node_of(rank));
        self.counters.transfers += 1;
        self.transfers.insert(id, transfer);
        id
    }

    /// Asks for all parts of a transfer whose nodes are linked to; the others wait.
    fn ask_all(&mut self, id: TransferId) {
        let Some(this) = self.transfers.get(&id) else {
            return;
        };
        let (count, epoch) = (this.parts.len(), this.spec.handle.fields().epoch);
        let peer = this.peer;
        for part in 0..count as u32 {
            let Some(node) = self
                .transfers
                .get(&id)
                .and_then(|this| Some(this.parts.get(part as usize)?.node))
            else {
                break;
            };
            if let Some(link) = self.link_for((peer, node), epoch, (id, part)) {
                self.ask(id, part, link);
            }
        }
        if count == 0 {
            self.commit(id);
        }
        self.arm_transfer(id);
    }

    fn may_pull(&mut self, spec: &PullSpec, unix_ms: u64) -> Result<usize, Failure> {
        let said = spec.handle.fields();
        let rank = spec.parts.first().map_or(0, |part| part.source);
        let refused = |reason, why: String| Err(Failure::Refused { rank, reason, why });
        if said.kind != HandleKind::Offer {
            return refused(
                Reason::Forged,
                "the handle is of a grant; a pull needs an offer's".into(),
            );
        }
        if said
            .bound
            .as_ref()
            .is_some_and(|bound| *bound != self.config.engine)
            && !self.config.faults.bound_unchecked
        {
            return refused(Reason::Elsewhere, "the offer is for another engine".into());
        }
        if unix_ms > said.expires_unix_ms.saturating_add(self.config.skew_ms) {
            return refused(Reason::Expired, "the handle has expired".into());
        }
        let Some(&peer) = self.by_name.get(said.engine.as_str()) else {
            let why = format!("no node of engine {} is known", said.engine);
            return Err(Failure::NoPath { rank, why });
        };
        if self.is_retired(peer, said.epoch) {
            return Err(Failure::Restarted { rank });
        }
        let local = |why: String| Err(Failure::Local { why });
        if self.transfers.len() >= MAX_PULLS {
            return local(format!("{MAX_PULLS} transfers go on; wait for some"));
        }
        self.may_have(peer, &said.engine, &spec.parts)?;
        Ok(peer)
    }

    /// Whether these can be the parts of a transfer.
    fn may_have(&self, peer: usize, engine: &str, parts: &[Expected]) -> Result<(), Failure> {
        let local = |why: String| Err(Failure::Local { why });
        if parts.len() > MAX_PARTS {
            return local(format!(
                "{} pairs of ranks; {MAX_PARTS} at most",
                parts.len()
            ));
        }
        let mut chunks = 0;
        for part in parts {
            chunks += part.chunks.len() as u64;
            if part.map && u64::from(part.pages) > MAX_LENT_PAGES {
                let (pages, rank) = (part.pages, part.source);
                return local(format!(
                    "{pages} pages of rank {rank} to be mapped; {MAX_LENT_PAGES} at most"
                ));
            }
            if self.peers[peer].node_of(part.source).is_none() {
                let why = format!("no node of engine {} is known to hold it", engine);
                return Err(Failure::NoPath {
                    rank: part.source,
                    why,
                });
            }
            if part
                .chunks
                .iter()
                .any(|chunk| chunk.step as usize >= part.steps.len())
            {
                return local(format!("a chunk of rank {} is of no step", part.source));
            }
        }
        if chunks > MAX_CHUNKS {
            return local(format!("{chunks} chunks; {MAX_CHUNKS} at most"));
        }
        Ok(())
    }

    /// Ends a transfer. `Ended` follows when it is fenced, by the deadline at the latest.
    pub fn cancel(&mut self, transfer: TransferId, now_ns: u64) {
        self.at(now_ns);
        self.end_transfer(transfer, Outcome::Cancelled);
    }

    /// This side cannot go on with a transfer.
    pub fn fail(&mut self, transfer: TransferId, why: &str, now_ns: u64) {
        self.at(now_ns);
        self.end_transfer(
            transfer,
            Outcome::Failed(Failure::Local {
                why: why.to_owned(),
            }),
        );
    }

    /// State of a part; `None` if it is over.
    #[must_use]
    pub fn part_state(&self, transfer: TransferId, part: u32) -> Option<PartState> {
        let parts = &self.transfers.get(&transfer)?.parts;
        parts.get(part as usize).map(|part| part.state)
    }

    /// The key of a transfer's digest; 0 if it is over.
    #[must_use]
    pub fn digest_key(&self, transfer: TransferId) -> u64 {
        self.transfers
            .get(&transfer)
            .map_or(0, |this| this.spec.key)
    }

    /// A chunk is about to land, or to be copied; `false` if it must not.
    #[must_use]
    pub fn landing(&mut self, transfer: TransferId, part: u32, chunk: u64, bytes: u32) -> bool {
        let Some(this) = self.transfers.get_mut(&transfer) else {
            self.counters.late += 1;
            return false;
        };
        let Some(part) = this.parts.get_mut(part as usize) else {
            return false;
        };
        let index = usize::try_from(chunk).unwrap_or(usize::MAX);
        let wanted = part.expected.chunks.get(index).map(|chunk| chunk.bytes);
        let here = part.chunks.get(index).copied();
        // Payload may be faster than Accept.
        let open = matches!(
            part.state,
            PartState::Asked | PartState::Receiving | PartState::Mapped
        );
        let faults = self.config.faults;
        let open = open || (faults.landing_after_fence && part.state == PartState::Stopping);
        let first = here == Some(Arrival::Awaited) || faults.duplicate_counted;
        if open && wanted == Some(bytes) && first {
            part.chunks[index] = Arrival::Begun;
            return true;
        }
        if part.state == PartState::Stopping {
            self.counters.late += 1;
            return false;
        }
        let expected = match (wanted, here) {
            (Some(wanted), Some(Arrival::Awaited)) => format!("{wanted} bytes of it, after Pull"),
            (Some(_), Some(_)) => "it once".to_owned(),
            _ => format!("chunks below {}", part.chunks.len()),
        };
        let (state, link) = (part.state, part.link);
        let what =
            format!("sends chunk {chunk} of {bytes} bytes while {state:?}; expected {expected}");
        if let Some(link) = link {
            self.broke(link, what);
        }
        false
    }

    /// A chunk is placed; `digest` is of what lies there now.
    pub fn landed(
        &mut self,
        transfer: TransferId,
        part: u32,
        chunk: u64,
        digest: u64,
        now_ns: u64,
    ) {
        // What is due comes first: a transfer does not commit after its deadline.
        self.tick(now_ns);
        let Some(this) = self.transfers.get_mut(&transfer) else {
            return;
        };
        let Some(of) = this.parts.get_mut(part as usize) else {
            return;
        };
        let index = usize::try_from(chunk).unwrap_or(usize::MAX);
        if of.chunks.get(index) != Some(&Arrival::Begun) || of.state == PartState::Stopping {
            return;
        }
        of.chunks[index] = Arrival::Placed;
        let step = of.expected.chunks[index].step as usize;
        of.sums[step] = of.sums[step].wrapping_add(digest);
        of.missing[step] = of.missing[step].saturating_sub(1);
        if of.missing[step] == 0 {
            self.compare_step(transfer, part, step);
        }
    }

    /// The pages of a part cannot be mapped after all; they are to be sent instead.
    pub fn unmapped(&mut self, transfer: TransferId, part: u32, why: &str, now_ns: u64) {
        self.at(now_ns);
        let Some(this) = self.transfers.get_mut(&transfer) else {
            return;
        };
        let Some(of) = this.parts.get_mut(part as usize) else {
            return;
        };
        if of.state != PartState::Mapped {
            return;
        }
        // A step without chunks may have been compared already: it cannot be once more.
        let begun = of.left as usize != of.expected.steps.len();
        if begun || of.chunks.iter().any(|&chunk| chunk != Arrival::Awaited) {
            return self.fail(
                transfer,
                "pages that were mapped cannot be read any more",
                now_ns,
            );
        }
        of.state = PartState::Receiving;
        of.told.fill(None);
        if let Some(link) = of.link {
            self.send(
                link,
                Message::Unmapped {
                    transfer: transfer.0,
                    part,
                    why: why.to_owned(),
                },
            );
        }
    }

    /// Answers [`Action::Fence`]: nothing of the part is being written here. `revoked` says that the peer cannot either,
    /// whatever it does.
    pub fn quiet(&mut self, transfer: TransferId, part: u32, revoked: bool, now_ns: u64) {
        self.at(now_ns);
        let Some(this) = self.transfers.get_mut(&transfer) else {
            return;
        };
        let Some(of) = this.parts.get_mut(part as usize) else {
            return;
        };
        if of.state != PartState::Stopping || std::mem::replace(&mut of.quiet, true) {
            return;
        }
        of.stopped |= revoked;
        if let Some(link) = of.link.filter(|_| !of.refused) {
            self.send(
                link,
                Message::Done {
                    transfer: transfer.0,
                    part,
                    committed: false,
                },
            );
        }
        self.settle(transfer);
    }

    /// A link is there for a part that waited.
    pub(super) fn ask(&mut self, id: TransferId, part: u32, link: LinkId) {
        let now = self.now_ns;
        let Some(this) = self.transfers.get_mut(&id) else {
            return;
        };
        let (epoch, peer) = (this.spec.handle.fields().epoch, this.peer);
        let Some(of) = this
            .parts
            .get_mut(part as usize)
            .filter(|of| of.state == PartState::Waiting)
        else {
            return;
        };
        let (rank, node) = (of.expected.source, of.node);
        let Some(to) = self.links.get_mut(&link) else {
            return;
        };
        if to.epoch != epoch {
            let waited = now >= this.started_ns + self.config.loss_ns;
            if waited || self.is_retired(peer, epoch) {
                return self.end_transfer(id, Outcome::Failed(Failure::Restarted { rank }));
            }
            // The engine of the handle is not the one at the other end: a later one, and the life that is linked to is about
            // to be found lost; or an earlier one, or one that was forged.
            let _ = self.link_for((peer, node), epoch, (id, part));
            return;
        }
        if this.seeks {
            return self.actions.push_back(Action::Plan { transfer: id, link });
        }
        to.parts.insert((id, part));
        if of.expected.map {
            to.borrows.insert(rank);
        }
        of.link = Some(link);
        of.state = PartState::Asked;
        let left_ms = this.deadline_ns.saturating_sub(now).div_ceil(1_000_000);
        let pull = Pull {
            transfer: id.0,
            part,
            source: of.expected.source,
            target: of.expected.target,
            held: this.spec.held,
            for_ms: u32::try_from(left_ms)
                .unwrap_or(MAX_PULL_MS)
                .min(MAX_PULL_MS),
            mode: this.spec.mode,
            key: this.spec.key,
            by_layer: this.spec.by_layer,
            map: of.expected.map,
            grant: this.spec.grant.unwrap_or(0),
            handle: this.spec.handle.as_bytes().to_vec(),
        };
        self.send(link, Message::Pull(Box::new(pull)));
        self.actions.push_back(Action::Receive {
            transfer: id,
            part,
            link,
        });
    }

    /// The part that a message on a link is about, unless it is over or the peer makes it up.
    fn part_on(
        &mut self,
        link: LinkId,
        (id, part): (TransferId, u32),
        name: &str,
    ) -> Option<&mut Part> {
        let known = self
            .transfers
            .get(&id)
            .map(|this| this.parts.get(part as usize).map(|part| part.link));
        match known {
            Some(Some(at)) if at == Some(link) => {
                let this = self.transfers.get_mut(&id)?;
                this.parts.get_mut(part as usize)
            }
            None if id.0 < self.next_transfer && id.0 != 0 => {
                self.counters.late += 1;
                None
            }
            _ => {
                self.broke(
                    link,
                    format!(
                        "{name} of transfer {} part {part}, which was not pulled here",
                        id.0
                    ),
                );
                None
            }
        }
    }

    pub(super) fn part_accepted(
        &mut self,
        link: LinkId,
        at: (TransferId, u32),
        said: (u64, u64),
        mapped: bool,
    ) {
        let Some(of) = self.part_on(link, at, "Accept") else {
            return;
        };
        match of.state {
            PartState::Asked => {}
            PartState::Stopping => return self.counters.late += 1,
            state => return self.broke(link, format!("Accept while {state:?}")),
        }
        let bytes = of
            .expected
            .chunks
            .iter()
            .map(|chunk| u64::from(chunk.bytes))
            .sum::<u64>();
        let own = (of.expected.chunks.len() as u64, bytes);
        let (rank, asked) = (of.expected.source, of.expected.map);
        if said != own || (mapped && !asked) {
            let what = format!(
                "offers {} chunks of {} bytes, mapped {mapped}; the plan has {} of {}, mapped {asked}",
                said.0, said.1, own.0, own.1
            );
            self.counters.protocol_errors += 1;
            return self.end_transfer(at.0, Outcome::Failed(Failure::Protocol { rank, what }));
        }
        of.state = if mapped {
            PartState::Mapped
        } else {
            PartState::Receiving
        };
        let complete = of.left == 0;
        let (pages, wanted) = (std::mem::take(&mut of.pages), of.expected.pages);
        let keys = self
            .links
            .get(&link)
            .and_then(|link| link.keys.get(&rank)?.whole.clone());
        if mapped && (keys.is_none() || pages.len() as u64 != u64::from(wanted)) {
            let listed = pages.len();
            return self.broke(
                link,
                format!(
                    "lends rank {rank} and lists {listed} pages of {wanted}, keys given: {}",
                    keys.is_some()
                ),
            );
        }
        if let Some(keys) = keys.filter(|_| mapped) {
            let (transfer, part) = at;
            self.actions.push_back(Action::Copy {
                transfer,
                part,
                link,
                keys,
                pages: pages.into(),
            });
        }
        if complete {
            self.complete(at.0, at.1);
        }
    }

    pub(super) fn part_refused(
        &mut self,
        link: LinkId,
        at: (TransferId, u32),
        reason: Reason,
        why: String,
        unserved: bool,
    ) {
        let Some(of) = self.part_on(link, at, if unserved { "Refuse" } else { "Discard" }) else {
            return;
        };
        let rank = of.expected.source;
        if unserved {
            if of.refused || !matches!(of.state, PartState::Asked | PartState::Stopping) {
                let state = of.state;
                return self.broke(link, format!("Refuse while {state:?}"));
            }
            if of.chunks.iter().any(|&chunk| chunk != Arrival::Awaited) {
                return self.broke(link, "Refuse after chunks".into());
            }
            // Nothing was sent, and nothing will be.
            of.refused = true;
        }
        let failure = match reason {
            Reason::Restarted => Failure::Restarted { rank },
            _ => Failure::Refused { rank, reason, why },
        };
        self.end_transfer(at.0, Outcome::Failed(failure));
        self.settle(at.0);
    }

    pub(super) fn keys_lent(&mut self, link: LinkId, rank: u32, left: u32, keys: Vec<LentKey>) {
        let Some(this) = self.links.get_mut(&link) else {
            return;
        };
        if !this.borrows.contains(&rank) {
            // A peer of many ranks could fill memory with keys.
            return self.broke(
                link,
                format!("lends pages of rank {rank}, which nobody asked to map"),
            );
        }
        let here = this.keys.entry(rank).or_default();
        let all = here.keys.len() as u64 + keys.len() as u64 + u64::from(left);
        let expected = here
            .left
            .map_or(all, |left| here.keys.len() as u64 + u64::from(left));
        if all > MAX_REGIONS
            || all != expected
            || here.whole.is_some()
            || (keys.is_empty() && left > 0)
        {
            return self.broke(
                link,
                format!("announces {all} keys of rank {rank}; expected {expected}, once"),
            );
        }
        here.keys.extend(keys);
        here.left = Some(left);
        if left == 0 {
            here.whole = Some(std::mem::take(&mut here.keys).into());
        }
    }

    pub(super) fn pages_listed(
        &mut self,
        link: LinkId,
        at: (TransferId, u32),
        left: u32,
        pages: Vec<u32>,
    ) {
        let Some(of) = self.part_on(link, at, "Pages") else {
            return;
        };
        match of.state {
            PartState::Asked if of.expected.map => {}
            PartState::Stopping => return self.counters.late += 1,
            state => return self.broke(link, format!("Pages while {state:?}, or not asked for")),
        }
        let (wanted, listed) = (of.expected.pages, of.pages.len() + pages.len());
        if listed as u64 + u64::from(left) != u64::from(wanted) || (pages.is_empty() && left > 0) {
            let what = format!("lists {listed} pages and {left} to come; the request has {wanted}");
            return self.broke(link, what);
        }
        of.pages.extend(pages);
    }

    pub(super) fn part_traced(&mut self, link: LinkId, at: (TransferId, u32), trace: Trace) {
        let Some(of) = self.part_on(link, at, "Traced") else {
            return;
        };
        if of.state == PartState::Asked {
            let (transfer, part) = at;
            self.actions.push_back(Action::Traced {
                transfer,
                part,
                trace,
            });
        }
    }

    pub(super) fn part_unlent(&mut self, link: LinkId, at: (TransferId, u32), why: String) {
        let Some(of) = self.part_on(link, at, "Unlent") else {
            return;
        };
        if of.state == PartState::Asked && of.expected.map {
            let (transfer, part) = at;
            self.actions.push_back(Action::Unlent {
                transfer,
                part,
                why,
            });
        }
    }

    pub(super) fn part_ready(
        &mut self,
        link: LinkId,
        at: (TransferId, u32),
        layer: u32,
        tokens: u32,
    ) {
        let Some(of) = self.part_on(link, at, "Ready") else {
            return;
        };
        if matches!(of.state, PartState::Receiving | PartState::Mapped) {
            let (transfer, part) = at;
            self.actions.push_back(Action::Written {
                transfer,
                part,
                layer,
                tokens,
            });
        }
    }

    pub(super) fn part_sums(
        &mut self,
        link: LinkId,
        at: (TransferId, u32),
        mapped: bool,
        first: u32,
        sums: &[u64],
    ) {
        let Some(of) = self.part_on(link, at, "Sums") else {
            return;
        };
        let told_mapped = match of.state {
            PartState::Mapped => true,
            PartState::Receiving => false,
            PartState::Stopping => return self.counters.late += 1,
            state => return self.broke(link, format!("Sums while {state:?}")),
        };
        if mapped && !told_mapped && of.expected.map {
            // Sent before the producer heard that its pages could not be mapped.
            return self.counters.late += 1;
        }
        let (from, steps) = (first as usize, of.told.len());
        let new = of.told.get(from..).and_then(|rest| rest.get(..sums.len()));
        if mapped != told_mapped
            || sums.is_empty()
            || new.is_none_or(|new| new.iter().any(Option::is_some))
        {
            let what = format!(
                "Sums of {} steps from {first}, mapped {mapped}; expected {steps} steps, each once",
                sums.len()
            );
            return self.broke(link, what);
        }
        for (step, &sum) in (from..).zip(sums) {
            of.told[step] = Some(sum);
        }
        for step in from..from + sums.len() {
            self.compare_step(at.0, at.1, step);
        }
    }

    pub(super) fn part_stopped(&mut self, link: LinkId, at: (TransferId, u32)) {
        let Some(of) = self.part_on(link, at, "Stopped") else {
            return;
        };
        if of.state != PartState::Stopping {
            let state = of.state;
            return self.broke(link, format!("Stopped while {state:?}"));
        }
        of.stopped = true;
        self.settle(at.0);
    }

    /// Compares the digests of a step, once it is placed and the producer has told its own.
    fn compare_step(&mut self, id: TransferId, part: u32, step: usize) {
        let Some(this) = self.transfers.get_mut(&id) else {
            return;
        };
        let of = &mut this.parts[part as usize];
        let Some(there) = of.told[step] else { return };
        if of.missing[step] > 0 || !matches!(of.state, PartState::Receiving | PartState::Mapped) {
            return;
        }
        let (here, at) = (of.sums[step], &of.expected.steps[step]);
        let layer = at.layer;
        if here != there && !self.config.faults.digest_not_compared {
            let (rank, component) = (of.expected.source, at.component.to_string());
            self.counters.digest_mismatches += 1;
            let failure = Failure::Digest {
                rank,
                layer,
                component,
                at: (part, step as u32),
                pages: Vec::new(),
                here,
                there,
            };
            return self.end_transfer(id, Outcome::Failed(failure));
        }
        of.left -= 1;
        let complete = of.left == 0;
        if let Some(left) = this.layers.get_mut(&layer) {
            *left -= 1;
            if *left == 0 {
                self.actions.push_back(Action::Layer {
                    transfer: id,
                    layer,
                });
            }
        }
        if complete {
            self.complete(id, part);
        }
    }

    fn complete(&mut self, id: TransferId, part: u32) {
        let Some(this) = self.transfers.get_mut(&id) else {
            return;
        };
        this.parts[part as usize].state = PartState::Complete;
        this.left -= 1;
        if this.left == 0 {
            self.commit(id);
        }
    }

    fn commit(&mut self, id: TransferId) {
        let Some(this) = self.transfers.remove(&id) else {
            return;
        };
        self.timers.clear(Timer::Transfer(id));
        for (part, of) in (0..).zip(&this.parts) {
            let Some(link) = of.link else { continue };
            self.send(
                link,
                Message::Done {
                    transfer: id.0,
                    part,
                    committed: true,
                },
            );
            if let Some(link) = self.links.get_mut(&link) {
                link.parts.remove(&(id, part));
            }
        }
        self.counters.committed += 1;
        let (outcome, dirty) = (Outcome::Committed, Vec::new());
        self.actions.push_back(Action::Ended {
            transfer: id,
            outcome,
            dirty,
            fenced: true,
        });
    }

    pub(super) fn part_lost(&mut self, id: TransferId, part: u32, cause: &Cause) {
        let Some(of) = self
            .transfers
            .get(&id)
            .and_then(|this| this.parts.get(part as usize))
        else {
            return;
        };
        // All of it is placed and compared; nothing more is wanted from there.
        if of.state == PartState::Complete {
            return;
        }
        let failure = cause.failure(of.expected.source);
        self.end_transfer(id, Outcome::Failed(failure));
    }

    pub(super) fn part_gone(&mut self, id: TransferId, part: u32) {
        if let Some(of) = self
            .transfers
            .get_mut(&id)
            .and_then(|this| this.parts.get_mut(part as usize))
        {
            of.gone = true;
            self.settle(id);
        }
    }

    /// Nothing leads to the node that a part waits for.
    pub(super) fn part_without_path(&mut self, id: TransferId, part: u32, why: &str) {
        let Some(this) = self.transfers.get(&id) else {
            return;
        };
        let (rank, why) = (this.parts[part as usize].expected.source, why.to_owned());
        self.end_transfer(id, Outcome::Failed(Failure::NoPath { rank, why }));
    }

    /// A dial failed for a part that waits for it.
    pub(super) fn part_unreachable(&mut self, id: TransferId, part: u32, why: &str) {
        let Some(this) = self.transfers.get(&id) else {
            return;
        };
        // As long as a peer that was silent would have been given.
        if self.now_ns >= this.started_ns + self.config.loss_ns {
            let rank = this.parts[part as usize].expected.source;
            let why = why.to_owned();
            self.end_transfer(id, Outcome::Failed(Failure::Lost { rank, why }));
        }
    }

    /// A transfer ends other than by its commit: everyone is told to stop.
    fn end_transfer(&mut self, id: TransferId, outcome: Outcome) {
        let Some(this) = self.transfers.get_mut(&id) else {
            return;
        };
        if this.ending.is_some() {
            return;
        }
        let (reason, of, why) = match &outcome {
            Outcome::Failed(failure @ Failure::Refused { .. }) => {
                (Reason::OtherPart, None, failure.to_string())
            }
            Outcome::Failed(failure) => (failure.reason(), failure.rank(), failure.to_string()),
            Outcome::Cancelled | Outcome::Committed => (Reason::Cancelled, None, String::new()),
        };
        let force_ns = Some(self.now_ns + self.config.fence_ns);
        this.ending = Some(Ending {
            outcome,
            reported: false,
            force_ns,
        });
        let peer = this.peer;
        // What one rank did is not what the others did.
        let reason_for = |rank: u32| match of {
            Some(of) if of != rank => Reason::OtherPart,
            _ => reason,
        };
        let mut stops = Vec::with_capacity(this.parts.len());
        for (part, of) in (0..).zip(&mut this.parts) {
            of.state = PartState::Stopping;
            let link = of.link.filter(|_| !of.refused);
            stops.push((part, link, of.node, reason_for(of.expected.source)));
        }
        for (part, link, node, reason) in stops {
            let Some(link) = link else {
                self.waits_not(peer, node, (id, part));
                continue;
            };
            self.send(
                link,
                Message::Stop {
                    transfer: id.0,
                    part,
                    reason,
                    why: why.clone(),
                },
            );
            self.actions.push_back(Action::Fence { transfer: id, part });
        }
        self.settle(id);
    }

    /// Reports what a transfer that has ended has come to.
    fn settle(&mut self, id: TransferId) {
        let Some(this) = self.transfers.get_mut(&id) else {
            return;
        };
        let Some(ending) = &mut this.ending else {
            return;
        };
        let skip = self.config.faults.fence_skipped;
        let fenced = skip || this.parts.iter().all(Part::is_fenced);
        let late = self.now_ns >= this.deadline_ns;
        let fenced = fenced || (late && self.config.faults.quarantine_skipped);
        let again = ending.reported && fenced && self.config.faults.outcome_twice;
        if (!ending.reported && (fenced || late)) || again {
            ending.reported = true;
            match ending.outcome {
                Outcome::Failed(_) => self.counters.failed += 1,
                _ => self.counters.cancelled += 1,
            }
            let outcome = ending.outcome.clone();
            let dirty = |(part, of): (u32, &Part)| {
                let touched = (0..)
                    .zip(&of.chunks)
                    .filter(|&(_, &chunk)| chunk != Arrival::Awaited);
                let chunks: Vec<u32> = touched.map(|(chunk, _)| chunk).collect();
                (!chunks.is_empty()).then_some(Dirty { part, chunks })
            };
            let dirty = (0..).zip(&this.parts).filter_map(dirty).collect();
            self.actions.push_back(Action::Ended {
                transfer: id,
                outcome,
                dirty,
                fenced,
            });
            if !fenced {
                self.counters.quarantined += 1;
                self.counters.quarantined_now += 1;
            }
        } else if ending.reported && fenced {
            self.counters.quarantined_now -= 1;
            self.actions.push_back(Action::Fenced { transfer: id });
        }
        if !fenced {
            return self.arm_transfer(id);
        }
        let Some(this) = self.transfers.remove(&id) else {
            return;
        };
        self.timers.clear(Timer::Transfer(id));
        for (part, of) in (0..).zip(&this.parts) {
            if let Some(link) = of.link.and_then(|link| self.links.get_mut(&link)) {
                link.parts.remove(&(id, part));
            }
        }
    }

    fn arm_transfer(&mut self, id: TransferId) {
        let Some(this) = self.transfers.get(&id) else {
            return;
        };
        let at = match &this.ending {
            None if this
                .parts
                .iter()
                .any(|part| part.state == PartState::Waiting) =>
            {
                let other_life = this.started_ns + self.config.loss_ns;
                let waits = [
                    this.deadline_ns,
                    this.started_ns + self.config.handshake_ns,
                    if self.now_ns < other_life {
                        other_life
                    } else {
                        u64::MAX
                    },
                ];
                waits.into_iter().min().unwrap_or(this.deadline_ns)
            }
            None => this.deadline_ns,
            Some(Ending {
                reported: false,
                force_ns,
                ..
            }) => force_ns.map_or(this.deadline_ns, |force| force.min(this.deadline_ns)),
            Some(Ending {
                force_ns: Some(force),
                ..
            }) => *force,
            Some(_) => return self.timers.clear(Timer::Transfer(id)),
        };
        self.timers.set(Timer::Transfer(id), at);
    }

    pub(super) fn transfer_due(&mut self, id: TransferId) {
        let now = self.now_ns;
        let Some(this) = self.transfers.get_mut(&id) else {
            return;
        };
        if let Some(ending) = &mut this.ending {
            if ending.force_ns.is_some_and(|force| now >= force) {
                ending.force_ns = None;
                // Without its link the peer cannot touch anything.
                let unfenced = this
                    .parts
                    .iter()
                    .filter(|of| of.link.is_some() && !of.refused && !of.stopped && !of.gone);
                let links: BTreeSet<LinkId> = unfenced.filter_map(|of| of.link).collect();
                for link in links {
                    if self
                        .links
                        .get(&link)
                        .is_some_and(|link| link.state != LinkState::Lost)
                    {
                        self.counters.fences_forced += 1;
                        self.lose(
                            link,
                            Cause::Lost("it did not acknowledge a stop".into()),
                            true,
                        );
                    }
                }
            }
            return self.settle(id);
        }
        let peer = &self.peers[this.peer];
        let waits_for = |part: &Part| part.waits_for(peer.trouble(part.node));
        let missing: Vec<String> = this.parts.iter().filter_map(waits_for).collect();
        if now >= this.deadline_ns {
            let missing = missing.join(", ");
            return self.end_transfer(id, Outcome::Failed(Failure::Deadline { missing }));
        }
        let mut waiting = { this.parts.iter() }.filter(|part| part.state == PartState::Waiting);
        let epoch = this.spec.handle.fields().epoch;
        let is_of_other_life = |part: &&Part| {
            let linked = peer.link(part.node).and_then(|link| self.links.get(&link));
            linked.is_some_and(|link| link.state == LinkState::Ready && link.epoch != epoch)
        };
        if now >= this.started_ns + self.config.loss_ns
            && let Some(part) = waiting.clone().find(is_of_other_life)
        {
            // It was heard since the handle was made, so it lives; the one that made the handle does not.
            let rank = part.expected.source;
            return self.end_transfer(id, Outcome::Failed(Failure::Restarted { rank }));
        }
        if let Some(part) = waiting.next()
            && now >= this.started_ns + self.config.handshake_ns
        {
            let trouble = peer.trouble(part.node).unwrap_or("nothing was heard");
            let (rank, why) = (
                part.expected.source,
                format!("no link to it could be made: {trouble}"),
            );
            return self.end_transfer(id, Outcome::Failed(Failure::Lost { rank, why }));
        }
        self.arm_transfer(id);
    }
}
