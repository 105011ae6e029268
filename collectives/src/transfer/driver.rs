//! A node at work: its actions are done, by a transport and on memory.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::{BuildHasher, Hasher, RandomState},
    ops::Range,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use moai_memory::Region;
use moai_transport::{Interface, PeerId};

use super::{
    Event, Generations, Grant, Offer, Pull, Tuning,
    accord::Negotiate,
    arrivals::{Arrivals, Clock, Fresh},
    core::{Core, Kept, Memory, Offered},
    device,
    links::Links,
    pace::Pace,
};
use crate::{
    descriptor::Descriptor,
    limits::MAX_TOKENS,
    negotiate::Role,
    protocol::{
        handle::{Handle, page_set},
        node::{
            Config, Counters, Failure, GrantSpec, LinkState, Node, OfferSpec, PullSpec, Reason,
            TransferId,
        },
    },
};

/// Why a node cannot be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "callers write these out")]
pub enum Unreached {
    /// No transport that may be used leads there.
    NoPath(String),
    /// One does, and it failed.
    Lost(String),
}

/// An interface, and how to reach nodes by it.
pub trait Network {
    /// The interface.
    fn interface(&mut self) -> &mut dyn Interface;

    /// Starts connecting to a node of an engine, at whatever address of it is best.
    ///
    /// # Errors
    ///
    /// [`Unreached`].
    fn connect(&mut self, engine: &str, node: u32) -> Result<PeerId, Unreached>;

    /// Whether memory of a peer can be mapped, as far as the transport knows.
    fn can_map(&self, peer: PeerId) -> bool;

    /// Who a peer has proved to be.
    fn identity(&self, peer: PeerId) -> Option<String> {
        let _ = peer;
        None
    }
}

impl<N: Network> Network for &mut N {
    fn interface(&mut self) -> &mut dyn Interface {
        (**self).interface()
    }

    fn connect(&mut self, engine: &str, node: u32) -> Result<PeerId, Unreached> {
        (**self).connect(engine, node)
    }

    fn can_map(&self, peer: PeerId) -> bool {
        (**self).can_map(peer)
    }

    fn identity(&self, peer: PeerId) -> Option<String> {
        (**self).identity(peer)
    }
}

/// What a driver is made of.
#[allow(missing_debug_implementations, reason = "it holds a closure")]
#[allow(clippy::exhaustive_structs, reason = "callers write these out")]
pub struct Setup {
    /// The node. Its ranks are one after another.
    pub node: Config,
    /// How it comes to an accord with others: see [`Profile`](super::Profile).
    pub negotiate: Negotiate,
    /// The engine's descriptor: requests are checked against it when they are made. Without it only when they are planned.
    pub descriptor: Option<Descriptor>,
    /// Regions of each rank, in order, among those that are lent to [`Driver::poll`].
    pub regions: Vec<usize>,
    /// By which each rank tells that pages are used for something else; those without one say that none ever are while
    /// they are offered.
    pub generations: Vec<Option<Generations>>,
    /// Knobs.
    pub tuning: Tuning,
}

/// A node, connected to a transport and to memory.
///
/// One thread has it, and calls [`poll`](Self::poll) at least as often as peers must hear that it lives. What happened
/// is told by [`event`](Self::event).
#[derive(Debug)]
pub struct Driver<N> {
    pub(super) network: N,
    pub(super) core: Core,
}

/// How a turn of work went.
#[derive(Debug, Default)]
pub(super) struct Worked {
    /// Something was done, and there may be more.
    pub(super) busy: bool,
    /// A device is working.
    pub(super) awaits_device: bool,
    /// There is more to do, but not before.
    pub(super) pause: Option<Duration>,
}

impl<N: Network> Driver<N> {
    /// A node without links.
    ///
    /// # Errors
    ///
    /// What is wrong with the setup.
    pub fn new(setup: Setup, network: N) -> Result<Self, String> {
        let Setup {
            node,
            negotiate,
            descriptor,
            regions,
            mut generations,
            tuning,
        } = setup;
        let first_rank = node.ranks.first().copied().unwrap_or_default();
        let in_order = (first_rank..)
            .zip(&node.ranks)
            .all(|(at, &rank)| at == rank);
        if node.ranks.is_empty() || !in_order {
            let ranks = &node.ranks;
            return Err(format!(
                "ranks {ranks:?} of node {}; expected one or more, one after another",
                node.node
            ));
        }
        if regions.len() != node.ranks.len() {
            let (regions, ranks) = (regions.len(), node.ranks.len());
            return Err(format!("regions of {regions} ranks; the node has {ranks}"));
        }
        generations.resize(regions.len(), None);
        let mut at = 0;
        let range = |count: &usize| {
            at += count;
            at - count..at
        };
        let regions: Vec<Range<usize>> = regions.iter().map(range).collect();
        Ok(Self {
            network,
            core: Core {
                node: Node::new(node)?,
                clock: Clock(Instant::now()),
                links: Links::default(),
                dialling: HashMap::new(),
                negotiate,
                accords: HashMap::new(),
                profiles: HashMap::new(),
                descriptor,
                memory: Memory {
                    first_rank,
                    regions,
                    generations,
                },
                pace: Pace::new(tuning.max_bytes_per_second),
                tuning,
                offers: HashMap::new(),
                servings: Vec::new(),
                served: HashMap::new(),
                loans: HashMap::new(),
                sought: HashMap::new(),
                pullings: BTreeMap::new(),
                last_transfer: TransferId(0),
                granted: HashMap::new(),
                streams: HashMap::new(),
                fences: Vec::new(),
                mapped: HashMap::new(),
                runners: Kept::default(),
                events: VecDeque::new(),
            },
        })
    }

    /// The way to its peers.
    pub fn network(&mut self) -> &mut N {
        &mut self.network
    }

    /// What the node has counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        self.core.node.counters()
    }

    /// Whether a node of an engine can be talked to.
    #[must_use]
    pub fn is_linked(&self, engine: &str, node: u32) -> bool {
        self.core.node.ready_link(engine, node).is_some()
    }

    /// Links that are ready.
    #[must_use]
    pub fn links(&self) -> usize {
        let links = self.core.links.all().into_iter();
        links
            .filter(|&link| self.core.node.link_state(link) == Some(LinkState::Ready))
            .count()
    }

    /// Entries of the node's tables, and of the driver's: what its memory grows with.
    #[must_use]
    pub fn size(&self) -> usize {
        let core = &self.core;
        core.node.size()
            + core.links.len()
            + core.offers.len()
            + core.servings.len()
            + core.pullings.len()
            + core.sought.len()
            + core.streams.len()
            + core.granted.len()
            + core.mapped.len()
            + core.fences.len()
    }

    /// The oldest event that was not taken yet.
    pub fn event(&mut self) -> Option<Event> {
        self.core.events.pop_front()
    }

    /// Bytes of a transfer that are placed, of how many, as they would go over a wire.
    #[must_use]
    pub fn progress(&self, transfer: TransferId) -> Option<(u64, u64)> {
        let pulling = self.core.pullings.get(&transfer)?;
        Some((pulling.placed, pulling.total))
    }

    /// Bytes of what is served now, and was handed over, as they would go over a wire.
    #[must_use]
    pub fn served_bytes(&self) -> u64 {
        self.core.servings.iter().map(|serving| serving.done).sum()
    }

    /// Says which nodes an engine has, and which ranks they hold.
    ///
    /// # Errors
    ///
    /// If the name cannot be that of an engine, or there are too many.
    pub fn know(&mut self, engine: &str, nodes: &[(u32, Vec<u32>)]) -> Result<(), String> {
        self.core.node.know(engine, nodes)
    }

    /// Keeps links to all nodes of an engine, whether there is a transfer or not.
    pub fn connect(&mut self, engine: &str) {
        let now = self.core.clock.now();
        self.core.node.connect(engine, now);
    }

    /// Offers a request's pages.
    ///
    /// # Errors
    ///
    /// If the request is not one of the engine, or a limit is reached.
    pub fn offer(&mut self, offer: Offer) -> Result<Handle, String> {
        let core = &mut self.core;
        check(core, &offer.request, Role::Producer)?;
        let now = core.clock.now();
        let offered = Offered::new(offer, &core.memory);
        let offer = &offered.offer;
        let spec = OfferSpec {
            number: offer.number,
            pages: offer
                .pages
                .unwrap_or_else(|| pages_of(core, &offer.request)),
            generation: offered.offered_generation(),
            tokens: offer.request.tokens,
            lease_ns: nanos(offer.lease),
            bound: offer.bound.clone(),
            progressive: offer.progressive,
        };
        let (number, trace) = (spec.number, offer.trace);
        let handle = core.node.offer(spec, now, unix_ms())?;
        if let Some(trace) = trace {
            core.node.trace(number, trace);
        }
        core.offers.insert(number, offered);
        Ok(handle)
    }

    /// The first tokens of a layer of an offer are written, or of [`ALL_LAYERS`](crate::protocol::node::ALL_LAYERS).
    pub fn layer_ready(&mut self, offer: u64, layer: u32, tokens: u32) {
        let now = self.core.clock.now();
        self.core.node.layer_ready(offer, layer, tokens, now);
    }

    /// Keeps an offer's pages for at least so long from now.
    pub fn extend(&mut self, offer: u64, lease: Duration) {
        let now = self.core.clock.now();
        self.core.node.extend(offer, nanos(lease), now);
    }

    /// Takes an offer back; [`Event::Released`] says when its pages are free.
    pub fn withdraw(&mut self, offer: u64) {
        let now = self.core.clock.now();
        self.core.node.withdraw(offer, now);
    }

    /// Pushes an offer into what a consumer has granted. [`Event::Declined`] tells if it is not taken.
    ///
    /// # Errors
    ///
    /// Why it cannot be: among others, because the consumer's engine was never linked to.
    pub fn push(&mut self, offer: u64, grant: &Handle) -> Result<(), (Reason, String)> {
        let core = &mut self.core;
        let engine = grant.fields().engine.as_str();
        let accord = { core.profiles.get(engine) }.and_then(|digest| core.accords.get(digest));
        let agreed = accord.and_then(|accord| accord.serves.as_ref());
        let agreed = agreed.ok_or_else(|| {
            let why = format!(
                "nothing was agreed with {engine}; connect to it, and wait until it is there"
            );
            (Reason::Disagree, why)
        })?;
        let own = core.memory.ranks();
        let pairs = agreed.agreement.pairs.iter();
        let ranks: Vec<u32> = { pairs.filter(|pair| own.contains(&pair.source)) }
            .map(|pair| pair.target)
            .collect();
        let now = core.clock.now();
        core.node.push(offer, grant, &ranks, now, unix_ms())
    }

    /// Begins to pull a request. [`Event::Ended`] tells how that ended, by the deadline.
    ///
    /// # Errors
    ///
    /// [`Failure`], if it cannot begin.
    pub fn pull(&mut self, pull: Pull) -> Result<TransferId, Failure> {
        self.seek(pull, None)
    }

    pub(super) fn seek(&mut self, pull: Pull, grant: Option<u64>) -> Result<TransferId, Failure> {
        let core = &mut self.core;
        check(core, &pull.request, Role::Consumer).map_err(|why| Failure::Local { why })?;
        let said = pull.handle.fields();
        if said.tokens != pull.request.tokens {
            let (there, here) = (said.tokens, pull.request.tokens);
            return Err(Failure::Local {
                why: format!(
                    "request.tokens: {here} here, {there} by the handle; both sides must speak of the same request"
                ),
            });
        }
        let now = core.clock.now();
        let spec = PullSpec {
            handle: pull.handle.clone(),
            parts: Vec::new(),
            within_ns: nanos(pull.deadline),
            held: pull.request.first,
            by_layer: pull.by_layer,
            mode: pull.request.coverage,
            key: draw(),
            grant,
        };
        let transfer = core.node.seek(spec, now, unix_ms())?;
        core.last_transfer = transfer;
        core.sought.insert(transfer, pull);
        Ok(transfer)
    }

    /// Ends a transfer; [`Event::Ended`] follows when its pages are free, by its deadline at the latest.
    pub fn cancel(&mut self, transfer: TransferId) {
        let now = self.core.clock.now();
        self.core.node.cancel(transfer, now);
    }

    /// Grants pages, to be filled by a push.
    ///
    /// # Errors
    ///
    /// As [`offer`](Self::offer).
    pub fn grant(&mut self, grant: Grant) -> Result<Handle, String> {
        let core = &mut self.core;
        check(core, &grant.request, Role::Consumer)?;
        let spec = GrantSpec {
            number: grant.number,
            pages: grant
                .pages
                .unwrap_or_else(|| pages_of(core, &grant.request)),
            tokens: grant.request.tokens,
            lease_ns: nanos(grant.lease),
            bound: grant.bound.clone(),
        };
        let (number, now) = (grant.number, core.clock.now());
        let handle = core.node.grant(spec, now, unix_ms())?;
        core.granted.insert(number, grant);
        Ok(handle)
    }

    /// Takes a grant back; [`Event::Returned`] says when its pages are free.
    pub fn revoke(&mut self, grant: u64) {
        let now = self.core.clock.now();
        self.core.node.revoke(grant, now);
    }

    /// Works, then waits at most `limit` for something to happen. Says how long the next call may be put off; not at all
    /// if there is more to do.
    ///
    /// `memory` has the regions of all ranks, one after another, the same in every call.
    pub fn poll(&mut self, memory: &mut [Region], limit: Duration) -> Duration {
        let now = self.core.clock.now();
        self.core.node.tick(now);
        self.act(memory);
        let worked = self.work(memory);
        self.act(memory);
        self.flush();
        let mut wait = self.idle(&worked).min(limit);
        if worked.awaits_device && !worked.busy {
            wait = Duration::ZERO;
        }
        let any = self.listen(memory, wait);
        if worked.awaits_device && !worked.busy && !any {
            self.await_device(limit.min(device::TURN));
        }
        self.end_fences();
        self.act(memory);
        self.flush();
        if any || worked.busy || worked.awaits_device {
            Duration::ZERO
        } else {
            self.idle(&worked)
        }
    }

    /// Lets the interface work; says whether anything happened.
    fn listen(&mut self, memory: &mut [Region], wait: Duration) -> bool {
        let Self { network, core } = self;
        let mut arrivals = Arrivals::new(core, memory);
        let polled = network.interface().poll(Some(wait), &mut arrivals);
        let (any, fresh) = arrivals.end();
        for fresh in fresh {
            let identity = network.identity(fresh.peer);
            core.greet(fresh, identity.as_deref());
        }
        if let Err(error) = polled {
            let why = format!("the transport failed: {error}");
            tracing::error!(reason = %why);
            for link in core.links.all() {
                core.links.cut(link, network.interface());
                core.link_gone(link, &why);
            }
        }
        any
    }

    /// How long there is nothing to do, unless something arrives.
    fn idle(&self, worked: &Worked) -> Duration {
        if worked.busy || !self.core.events.is_empty() {
            return Duration::ZERO;
        }
        let now = self.core.clock.now();
        let fences = self.core.fences.iter().map(|(.., due)| *due);
        let due = { self.core.node.next_deadline().into_iter() }
            .chain(self.core.links.next_cut())
            .chain(fences)
            .min();
        let wait = due.map_or(LONG, |due| Duration::from_nanos(due.saturating_sub(now)));
        wait.min(worked.pause.unwrap_or(LONG)).min(LONG)
    }

    /// Hands queued messages over, and cuts links that are late.
    fn flush(&mut self) {
        let now = self.core.clock.now();
        let Self { network, core } = self;
        for (link, why) in core.links.flush(network.interface(), now) {
            core.link_gone(link, why);
        }
    }

    /// Cuts every link: nothing is read or written any more when this returns.
    pub fn cut(&mut self) {
        let Self { network, core } = self;
        for link in core.links.all() {
            core.links.cut(link, network.interface());
            core.link_gone(link, "closed by this side");
        }
        core.servings.clear();
        for pulling in core.pullings.values_mut() {
            for part in &mut pulling.parts {
                part.device = None;
                part.is_fenced = true;
            }
        }
        for loan in core.loans.values_mut() {
            loan.end(network.interface());
        }
        core.loans.clear();
        core.mapped.clear();
    }

    /// Ends everything, so that peers hear of it: transfers are cancelled, offers taken back, links closed. Returns when all
    /// is closed, or the limit has passed; then nothing is read or written any more. Events go on to be told.
    pub fn shutdown(&mut self, memory: &mut [Region], limit: Duration) {
        let start = Instant::now();
        let now = self.core.clock.now();
        self.core.node.shutdown(now);
        while !self.core.links.is_empty() {
            let Some(left) = limit.checked_sub(start.elapsed()) else {
                break;
            };
            let events = std::mem::take(&mut self.core.events);
            self.poll(memory, left.min(Duration::from_millis(20)));
            let later = std::mem::replace(&mut self.core.events, events);
            self.core.events.extend(later);
        }
        self.cut();
        self.act(memory);
    }
}

impl Core {
    /// A connection was made, and this is who is there; what it has said meanwhile is heard now.
    fn greet(&mut self, fresh: Fresh, identity: Option<&str>) {
        let Fresh {
            peer,
            dialled,
            messages,
            closed,
        } = fresh;
        let now = self.clock.now();
        if let Some(why) = closed {
            if let Some((engine, node)) = dialled {
                self.node.unreachable(&engine, node, &why, now);
            }
            return;
        }
        let link = self.links.add(peer);
        match dialled {
            Some((engine, node)) => self.node.dialled(link, &engine, node, identity, now),
            None => self.node.accepted(link, identity, now),
        }
        for message in messages {
            self.node.message(link, &message, now);
        }
    }
}

/// Nothing waits longer: a clock that jumped is noticed then.
const LONG: Duration = Duration::from_secs(3600);

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Milliseconds of the wall clock.
pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_millis() as u64
}

/// Each `RandomState` is keyed by the system's randomness.
pub(super) fn draw() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn check(core: &Core, request: &crate::request::Request, role: Role) -> Result<(), String> {
    if request.tokens == 0 || request.tokens > MAX_TOKENS {
        let tokens = request.tokens;
        return Err(format!(
            "request.tokens: {tokens} is not between 1 and {MAX_TOKENS}"
        ));
    }
    let Some(side) = &core.descriptor else {
        return Ok(());
    };
    let checked = request.check(side, role, core.memory.ranks());
    checked.map_err(|error| error.to_string())
}

/// The digest of a request's pages, by the lists of the node's first rank.
fn pages_of(core: &Core, request: &crate::request::Request) -> [u8; 16] {
    let lists = (0..request.groups()).map(|group| request.pages(core.memory.first_rank, group));
    page_set(&lists.collect::<Vec<_>>())
}
