//! A producer's side of a transfer: parts that are served from an offer.

use std::sync::Arc;

use super::{
    Action, LinkId, Node, Reason, ServeId, Served,
    link::{Cause, LinkState},
    message::{Message, Pull},
    timers::Timer,
};
use crate::{
    limits::{MAX_PAGES_PER_MESSAGE, MAX_PULL_MS, MAX_SERVES_PER_LINK, MAX_SUMS_PER_MESSAGE},
    protocol::handle::{Handle, HandleKind},
};

/// Where a part stands on the producer's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_enums,
    reason = "the states of the protocol's picture"
)]
pub enum ServeState {
    /// Its handle is in order, its offer not made yet.
    Parked,
    /// The driver looks at the plan.
    Asked,
    /// Chunks are read.
    Serving,
    /// Every step is read to its end, and its digest told.
    Sent,
    /// It has failed; the driver, the consumer or the link has yet to let go of the pages.
    Stopping,
}

/// What a pair of ranks is owed, by the producer's own plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "callers write these out")]
pub struct Owed {
    /// Chunks.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Steps.
    pub steps: u32,
    /// Pairs of ranks that the plan has for this node's ranks and the consumer engine: when all have committed, the
    /// offer is consumed.
    pub parts: u32,
    /// Whether the pages are lent rather than sent; their keys were given to [`Node::lend`] before.
    pub mapped: bool,
}

/// Digests of steps that are read to their end.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "callers write these out")]
pub struct Sums {
    /// Whether of pages where they lie; otherwise of rows that were sent.
    pub mapped: bool,
    /// The first step.
    pub first: u32,
    /// A digest of each.
    pub sums: Vec<u64>,
    /// What the pages' generations come to, read after the last row was.
    pub generation: u64,
}

#[derive(Debug)]
pub(super) struct Serve {
    link: LinkId,
    key: (u64, u32),
    pair: (u32, u32),
    pull: Option<Box<Pull>>,
    by_layer: bool,
    offer: u64,
    peer: usize,
    pub(super) state: ServeState,
    deadline_ns: u64,
    mapped: bool,
    steps: u32,
    told: u32,
    /// The outcome is reported.
    ended: bool,
    /// The driver reads no more.
    quiet: bool,
    /// The consumer waits for Stopped.
    stop_asked: bool,
    /// The consumer is through.
    done: bool,
    /// The link is gone.
    gone: bool,
}

impl Serve {
    pub(super) fn is_on(&self) -> bool {
        !self.ended
    }
}

impl Node {
    /// State of a part that is served; `None` if it is over.
    #[must_use]
    pub fn serve_state(&self, serve: ServeId) -> Option<ServeState> {
        self.serves.get(&serve).map(|serve| serve.state)
    }

    /// The keys by which a peer can map the pages of a rank. Once for each link and rank, before [`accept`](Self::accept).
    pub fn lend(&mut self, link: LinkId, rank: u32, keys: &[super::LentKey]) {
        let Some(this) = self.links.get_mut(&link) else {
            return;
        };
        if !this.lent.insert(rank) {
            return;
        }
        let mut rest = keys;
        loop {
            let (some, more) = rest.split_at(rest.len().min(crate::limits::MAX_KEYS_PER_MESSAGE));
            rest = more;
            let (left, keys) = (rest.len() as u32, some.to_vec());
            self.send(link, Message::Keys { rank, left, keys });
            if rest.is_empty() {
                return;
            }
        }
    }

    /// The pages in which the request of a part lies, of all groups one after another, for whoever maps them. Before
    /// [`accept`](Self::accept).
    pub fn list(&mut self, serve: ServeId, pages: &[u32]) {
        let Some(this) = self.serves.get(&serve) else {
            return;
        };
        if this.state != ServeState::Asked {
            return;
        }
        let (link, (transfer, part)) = (this.link, this.key);
        let mut left = pages.len();
        for pages in pages.chunks(MAX_PAGES_PER_MESSAGE) {
            left -= pages.len();
            self.send(
                link,
                Message::Pages {
                    transfer,
                    part,
                    left: left as u32,
                    pages: pages.to_vec(),
                },
            );
        }
    }

    /// Tells a consumer that asked for it why the pages of a part are not lent. Before [`accept`](Self::accept).
    pub fn unlent(&mut self, serve: ServeId, why: &str) {
        let Some(this) = self.serves.get(&serve) else {
            return;
        };
        let (link, (transfer, part), why) = (this.link, this.key, why.to_owned());
        self.send(
            link,
            Message::Unlent {
                transfer,
                part,
                why,
            },
        );
    }

    /// Whether [`lend`](Self::lend) was called for a link and rank.
    #[must_use]
    pub fn has_lent(&self, link: LinkId, rank: u32) -> bool {
        self.links
            .get(&link)
            .is_some_and(|link| link.lent.contains(&rank))
    }

    /// Answers [`Action::Serve`]: chunks are read from now on.
    pub fn accept(&mut self, serve: ServeId, owed: Owed, now_ns: u64) {
        self.at(now_ns);
        let Some(this) = self.serves.get_mut(&serve) else {
            return;
        };
        if this.state != ServeState::Asked {
            return;
        }
        this.state = if owed.steps == 0 {
            ServeState::Sent
        } else {
            ServeState::Serving
        };
        this.mapped = owed.mapped;
        this.steps = owed.steps;
        // Whoever maps copies what it is told is written.
        let (link, (transfer, part), by_layer, number) = (
            this.link,
            this.key,
            this.by_layer || owed.mapped,
            this.offer,
        );
        let Owed {
            chunks,
            bytes,
            mapped,
            ..
        } = owed;
        if let Some(trace) = self.offers.get(&number).and_then(|offer| offer.trace) {
            self.send(
                link,
                Message::Traced {
                    transfer,
                    part,
                    trace,
                },
            );
        }
        self.send(
            link,
            Message::Accept {
                transfer,
                part,
                chunks,
                bytes,
                mapped,
            },
        );
        let Some(offer) = self.offers.get_mut(&number) else {
            return;
        };
        offer.parts = Some(owed.parts);
        let ready: Vec<(u32, u32)> = offer
            .ready
            .iter()
            .map(|(&layer, &tokens)| (layer, tokens))
            .collect();
        for (layer, tokens) in ready {
            self.actions.push_back(Action::Ready {
                serve,
                layer,
                tokens,
            });
            if by_layer {
                self.send(
                    link,
                    Message::Ready {
                        transfer,
                        part,
                        layer,
                        tokens,
                    },
                );
            }
        }
    }

    /// Answers [`Action::Serve`]: there is nothing for that pair, or this side cannot.
    pub fn refuse(&mut self, serve: ServeId, reason: Reason, why: &str, now_ns: u64) {
        self.at(now_ns);
        let Some(this) = self.serves.get_mut(&serve) else {
            return;
        };
        if this.state == ServeState::Asked {
            this.quiet = true;
            this.done = true;
            self.end_serve(serve, reason, why, Tell::Refuse);
        }
    }

    /// Some steps of a part are read to their end.
    pub fn sent(&mut self, serve: ServeId, sums: Sums, now_ns: u64) {
        self.at(now_ns);
        let Some(this) = self.serves.get_mut(&serve) else {
            return;
        };
        // What was read before the consumer asked to have it sent instead.
        if this.state != ServeState::Serving || sums.mapped != this.mapped {
            return;
        }
        let Some(offer) = self.offers.get(&this.offer) else {
            return;
        };
        if offer.spec.generation != sums.generation && !self.config.faults.generation_unchecked {
            self.counters.generations_stale += 1;
            let (then, now) = (offer.spec.generation, sums.generation);
            let why = format!(
                "the pages were reused while they were read: generation {now:x}, offered {then:x}"
            );
            return self.fail_serve(serve, Reason::Reused, &why);
        }
        this.told = this.told.saturating_add(sums.sums.len() as u32);
        if this.told >= this.steps {
            this.state = ServeState::Sent;
        }
        let (link, (transfer, part), mapped) = (this.link, this.key, sums.mapped);
        let mut first = sums.first;
        for sums in sums.sums.chunks(MAX_SUMS_PER_MESSAGE) {
            self.send(
                link,
                Message::Sums {
                    transfer,
                    part,
                    mapped,
                    first,
                    sums: sums.to_vec(),
                },
            );
            first += sums.len() as u32;
        }
    }

    /// This side cannot go on with a part.
    pub fn give_up(&mut self, serve: ServeId, why: &str, now_ns: u64) {
        self.at(now_ns);
        self.fail_serve(serve, Reason::Local, why);
    }

    /// Answers [`Action::StopServing`]: nothing is read for the part, and nothing of it is on its way.
    pub fn stopped(&mut self, serve: ServeId, now_ns: u64) {
        self.at(now_ns);
        let Some(this) = self.serves.get_mut(&serve) else {
            return;
        };
        if this.state != ServeState::Stopping || std::mem::replace(&mut this.quiet, true) {
            return;
        }
        let (link, (transfer, part), asked) = (this.link, this.key, this.stop_asked);
        if asked {
            self.send(link, Message::Stopped { transfer, part });
        }
        self.drop_serve(serve);
    }

    pub(super) fn pulled(&mut self, link: LinkId, pull: Box<Pull>) {
        let Some(this) = self.links.get(&link) else {
            return;
        };
        let key = (pull.transfer, pull.part);
        if this.serves.contains_key(&key) {
            return self.broke(
                link,
                format!("Pull of transfer {} part {} twice", key.0, key.1),
            );
        }
        let Some((peer, _)) = this.peer else { return };
        let full = this.serves.len() >= MAX_SERVES_PER_LINK;
        match self.look_up(peer, &pull) {
            _ if full => {
                let why = format!("{MAX_SERVES_PER_LINK} pulls of this link are served");
                self.refuse_pull(link, key, Reason::Busy, &why);
            }
            Err((reason, why)) => self.refuse_pull(link, key, reason, &why),
            Ok(offer) => {
                let serve = ServeId(self.next_serve);
                self.next_serve += 1;
                let for_ns = u64::from(pull.for_ms.min(MAX_PULL_MS)) * 1_000_000;
                let deadline_ns = self.now_ns + for_ns + self.config.fence_ns;
                let this = Serve {
                    link,
                    key,
                    pair: (pull.source, pull.target),
                    by_layer: pull.by_layer,
                    pull: Some(pull),
                    offer,
                    peer,
                    state: ServeState::Parked,
                    deadline_ns,
                    mapped: false,
                    steps: 0,
                    told: 0,
                    ended: false,
                    quiet: true,
                    stop_asked: false,
                    done: false,
                    gone: false,
                };
                self.serves.insert(serve, this);
                if let Some(link) = self.links.get_mut(&link) {
                    link.serves.insert(key, serve);
                }
                if self.offers.contains_key(&offer) {
                    return self.unpark(serve);
                }
                self.parked.entry(offer).or_default().insert(serve);
                let until = deadline_ns.min(self.now_ns + self.config.offer_wait_ns);
                self.timers.set(Timer::Serve(serve), until);
            }
        }
    }

    /// The number of the offer that a pull may have; it may be about to be made.
    fn look_up(&self, peer: usize, pull: &Pull) -> Result<u64, (Reason, String)> {
        let handle = Handle::from_bytes(&pull.handle)
            .map_err(|error| (Reason::Forged, error.to_string()))?;
        let said = handle.fields();
        let consumer = &self.peers[peer].name;
        if said.engine != self.config.engine || said.kind != HandleKind::Offer {
            return Err((
                Reason::Elsewhere,
                format!(
                    "a handle of {}; this is {}",
                    said.engine, self.config.engine
                ),
            ));
        }
        if said.epoch != self.config.epoch {
            let (then, now) = (said.epoch, self.config.epoch);
            return Err((
                Reason::Restarted,
                format!("producer restarted: epoch {now:016x}, the handle's {then:016x}"),
            ));
        }
        let faults = &self.config.faults;
        if !handle.is_sealed_by(&self.config.key) && !faults.seal_unchecked {
            return Err((Reason::Forged, "the seal is not this engine's".into()));
        }
        if let Some(bound) = &said.bound
            && **bound != **consumer
            && !faults.bound_unchecked
        {
            return Err((
                Reason::Elsewhere,
                format!("the offer is for {bound}, not for {consumer}"),
            ));
        }
        if !self.config.ranks.contains(&pull.source) {
            let (node, rank) = (self.config.node, pull.source);
            return Err((
                Reason::Misdirected,
                format!("node {node} does not hold rank {rank}"),
            ));
        }
        let number = said.number;
        let Some(offer) = self.offers.get(&number) else {
            return match self.ended_offers.get(number) {
                Some(reason) => Err((reason, format!("offer {number} has ended"))),
                None => Ok(number),
            };
        };
        if offer.spec.pages != said.pages {
            return Err((Reason::Reused, format!("offer {number} has other pages")));
        }
        if let Some(reason) = offer.ending {
            return Err((reason, format!("offer {number} has ended")));
        }
        if self.now_ns >= offer.expires_ns && !self.config.faults.lease_ignored {
            return Err((
                Reason::Expired,
                format!("the lease of offer {number} has run out"),
            ));
        }
        let pair = (pull.source, pull.target);
        if offer.committed.contains(&pair) && !faults.consumed_again {
            return Err((
                Reason::Consumed,
                format!("rank {} has pulled from rank {}", pair.1, pair.0),
            ));
        }
        if offer.live.contains_key(&pair) {
            return Err((
                Reason::Busy,
                format!("rank {} pulls from rank {} already", pair.1, pair.0),
            ));
        }
        let busy = !offer.live.is_empty() || !offer.committed.is_empty();
        if busy && offer.taker.as_ref() != Some(consumer) {
            return Err((Reason::Elsewhere, "another engine pulls this offer".into()));
        }
        Ok(number)
    }

    fn refuse_pull(
        &mut self,
        link: LinkId,
        (transfer, part): (u64, u32),
        reason: Reason,
        why: &str,
    ) {
        self.counters.pulls_refused += 1;
        self.send(
            link,
            Message::Refuse {
                transfer,
                part,
                reason,
                why: why.to_owned(),
            },
        );
    }

    /// A part's offer is there: the driver is asked.
    pub(super) fn unpark(&mut self, serve: ServeId) {
        let Some(this) = self.serves.get_mut(&serve) else {
            return;
        };
        let Some(pull) = this.pull.take() else { return };
        let peer = this.peer;
        let mut pull = match self.look_up(peer, &pull) {
            Ok(_) => pull,
            Err((reason, why)) => return self.end_serve(serve, reason, &why, Tell::Refuse),
        };
        let Some(this) = self.serves.get_mut(&serve) else {
            return;
        };
        this.state = ServeState::Asked;
        this.quiet = false;
        let (link, number, deadline) = (this.link, this.offer, this.deadline_ns);
        self.timers.set(Timer::Serve(serve), deadline);
        let engine = Arc::clone(&self.peers[peer].name);
        if let Some(offer) = self.offers.get_mut(&number) {
            offer.taker = Some(Arc::clone(&engine));
            offer.live.insert((pull.source, pull.target), serve);
        }
        // Whoever maps must hear what is written, and where.
        let told = { &self.links }
            .get(&link)
            .is_some_and(|link| link.version >= 4);
        pull.map &= told;
        self.actions.push_back(Action::Serve {
            serve,
            offer: number,
            engine,
            link,
            pull,
        });
    }

    pub(super) fn tell_ready(&mut self, serve: ServeId, layer: u32, tokens: u32) {
        let Some(this) = self.serves.get(&serve) else {
            return;
        };
        if this.state != ServeState::Serving {
            return;
        }
        let (link, (transfer, part)) = (this.link, this.key);
        let by_layer = this.by_layer || this.mapped;
        self.actions.push_back(Action::Ready {
            serve,
            layer,
            tokens,
        });
        if by_layer {
            self.send(
                link,
                Message::Ready {
                    transfer,
                    part,
                    layer,
                    tokens,
                },
            );
        }
    }

    fn serve_at(&self, link: LinkId, key: (u64, u32)) -> Option<ServeId> {
        self.links.get(&link)?.serves.get(&key).copied()
    }

    pub(super) fn sending_asked(&mut self, link: LinkId, key: (u64, u32), why: String) {
        let Some(serve) = self.serve_at(link, key) else {
            return self.counters.late += 1;
        };
        let Some(this) = self.serves.get_mut(&serve) else {
            return;
        };
        match this.state {
            ServeState::Serving | ServeState::Sent if this.mapped => {
                this.mapped = false;
                this.told = 0;
                this.state = ServeState::Serving;
                self.actions.push_back(Action::SendInstead { serve, why });
            }
            ServeState::Stopping => self.counters.late += 1,
            state => self.broke(
                link,
                format!("Unmapped while {state:?}, and nothing is lent"),
            ),
        }
    }

    pub(super) fn stop_asked(&mut self, link: LinkId, key: (u64, u32), reason: Reason, why: &str) {
        if self.config.faults.stop_is_commit {
            return self.done(link, key, true);
        }
        let (transfer, part) = key;
        let Some(serve) = self.serve_at(link, key) else {
            // It was refused, or is over: nothing is on its way.
            self.counters.late += 1;
            return self.send(link, Message::Stopped { transfer, part });
        };
        let Some(this) = self.serves.get_mut(&serve) else {
            return;
        };
        if std::mem::replace(&mut this.stop_asked, true) {
            return self.broke(
                link,
                format!("Stop of transfer {transfer} part {part} twice"),
            );
        }
        if this.quiet {
            self.send(link, Message::Stopped { transfer, part });
        }
        self.end_serve(serve, reason, why, Tell::Nothing);
    }

    pub(super) fn done(&mut self, link: LinkId, key: (u64, u32), committed: bool) {
        let Some(serve) = self.serve_at(link, key) else {
            return self.counters.late += 1;
        };
        let Some(this) = self.serves.get_mut(&serve) else {
            return;
        };
        let through = self.config.faults.stop_is_commit;
        if committed && !this.ended {
            if this.state != ServeState::Sent && !through {
                let state = this.state;
                return self.broke(link, format!("Done, committed, while {state:?}"));
            }
            this.ended = true;
            this.quiet = true;
            this.done = true;
            self.counters.serves_committed += 1;
            let (offer, pair) = (this.offer, this.pair);
            self.actions.push_back(Action::Served {
                serve,
                offer,
                outcome: Served::Committed,
            });
            if let Some(offer) = self.offers.get_mut(&offer) {
                offer.committed.insert(pair);
            }
        } else {
            this.done = true;
            self.end_serve(
                serve,
                Reason::Cancelled,
                "the consumer gave up",
                Tell::Nothing,
            );
        }
        self.drop_serve(serve);
    }

    /// A part fails here; the consumer is told to discard it.
    pub(super) fn fail_serve(&mut self, serve: ServeId, reason: Reason, why: &str) {
        let parked = self
            .serves
            .get(&serve)
            .is_some_and(|this| this.state == ServeState::Parked);
        self.end_serve(
            serve,
            reason,
            why,
            if parked { Tell::Refuse } else { Tell::Discard },
        );
    }

    fn end_serve(&mut self, serve: ServeId, reason: Reason, why: &str, tell: Tell) {
        let Some(this) = self.serves.get_mut(&serve) else {
            return;
        };
        if std::mem::replace(&mut this.ended, true) {
            return;
        }
        let (link, (transfer, part), number) = (this.link, this.key, this.offer);
        if this.state == ServeState::Parked {
            // Nobody has seen it yet.
            this.done = true;
            if let Some(parked) = self.parked.get_mut(&number) {
                parked.remove(&serve);
                if parked.is_empty() {
                    self.parked.remove(&number);
                }
            }
        }
        let seen = this.state != ServeState::Parked;
        this.state = ServeState::Stopping;
        let quiet = this.quiet;
        let why = why.to_owned();
        match tell {
            Tell::Nothing => {}
            Tell::Refuse => {
                self.counters.pulls_refused += 1;
                let why = why.clone();
                self.send(
                    link,
                    Message::Refuse {
                        transfer,
                        part,
                        reason,
                        why,
                    },
                );
            }
            Tell::Discard => {
                let why = why.clone();
                self.send(
                    link,
                    Message::Discard {
                        transfer,
                        part,
                        reason,
                        why,
                    },
                );
            }
        }
        if seen {
            self.counters.serves_failed += 1;
            let outcome = Served::Failed { reason, why };
            if !quiet {
                self.actions.push_back(Action::StopServing { serve });
            }
            self.actions.push_back(Action::Served {
                serve,
                offer: number,
                outcome,
            });
        }
        self.timers
            .set(Timer::Serve(serve), self.now_ns + self.config.fence_ns);
        self.drop_serve(serve);
    }

    pub(super) fn serve_gone(&mut self, serve: ServeId) {
        if let Some(this) = self.serves.get_mut(&serve) {
            this.gone = true;
            self.drop_serve(serve);
        }
    }

    /// Forgets a part, once nobody touches its pages.
    fn drop_serve(&mut self, serve: ServeId) {
        let Some(this) = self.serves.get(&serve) else {
            return;
        };
        if !this.ended || !this.quiet || !(this.done || this.gone) {
            return;
        }
        let (link, key, number, pair) = (this.link, this.key, this.offer, this.pair);
        self.serves.remove(&serve);
        self.timers.clear(Timer::Serve(serve));
        if let Some(link) = self.links.get_mut(&link) {
            link.serves.remove(&key);
        }
        let Some(offer) = self.offers.get_mut(&number) else {
            return;
        };
        if offer.live.get(&pair) == Some(&serve) {
            offer.live.remove(&pair);
        }
        let all = offer
            .parts
            .is_some_and(|parts| offer.committed.len() as u64 >= u64::from(parts));
        if all && offer.ending.is_none() {
            self.end_offer(number, Reason::Consumed);
        } else {
            self.release(number);
        }
    }

    pub(super) fn serve_due(&mut self, serve: ServeId) {
        let Some(this) = self.serves.get(&serve) else {
            return;
        };
        match this.state {
            ServeState::Parked => {
                let why = format!("no offer {} was made", this.offer);
                self.end_serve(serve, Reason::UnknownOffer, &why, Tell::Refuse);
            }
            ServeState::Stopping => {
                let (link, waits) = (this.link, !this.done && !this.gone);
                if waits
                    && self
                        .links
                        .get(&link)
                        .is_some_and(|link| link.state != LinkState::Lost)
                {
                    self.counters.fences_forced += 1;
                    self.lose(
                        link,
                        Cause::Lost("it did not acknowledge the end of a transfer".into()),
                        true,
                    );
                }
            }
            _ => self.fail_serve(
                serve,
                Reason::Deadline,
                "the consumer's deadline has passed",
            ),
        }
    }
}

/// What the consumer hears of the end of a part.
enum Tell {
    Nothing,
    Refuse,
    Discard,
}
