//! What a driver knows: its node, and what each of its actions is about.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Range,
    sync::Arc,
};

use moai_memory::Region;
use moai_transport::PeerId;

use super::{
    Event, Generations, Grant, Offer, Pull, Report, Tuning,
    accord::{Accord, Negotiate},
    arrivals::Clock,
    links::Links,
    loan::Loan,
    pace::Pace,
    pulling::Pulling,
    serving::{Serving, transfer_of},
};
use crate::{
    descriptor::Descriptor,
    digest::Coverage,
    execute::{Agreed, Requested, Runner},
    limits::MAX_KEPT_RUNNERS,
    negotiate::Role,
    protocol::node::{LinkId, Node, ServeId, TransferId},
    request::Request,
};

/// A node, and the tables of its driver.
pub(super) struct Core {
    pub(super) node: Node,
    pub(super) clock: Clock,
    pub(super) links: Links,
    /// Connections that are being made.
    pub(super) dialling: HashMap<PeerId, (Arc<str>, u32)>,
    pub(super) negotiate: Negotiate,
    /// By the SHA-256 of the other engine's profile.
    pub(super) accords: HashMap<[u8; 32], Accord>,
    /// What engines that were linked to say of themselves, by its SHA-256.
    pub(super) profiles: HashMap<Arc<str>, [u8; 32]>,
    /// This engine's, to check requests against.
    pub(super) descriptor: Option<Descriptor>,
    pub(super) memory: Memory,
    pub(super) tuning: Tuning,
    pub(super) pace: Pace,
    pub(super) offers: HashMap<u64, Offered>,
    pub(super) servings: Vec<Serving>,
    /// Parts that are not served any more, until their outcome is told: consumer engine, and ranks.
    pub(super) served: HashMap<ServeId, (Arc<str>, (u32, u32))>,
    pub(super) loans: HashMap<u32, Loan>,
    /// Transfers whose plan is not made.
    pub(super) sought: HashMap<TransferId, Pull>,
    pub(super) pullings: BTreeMap<TransferId, Pulling>,
    /// The transfer that was begun last.
    pub(super) last_transfer: TransferId,
    pub(super) granted: HashMap<u64, Grant>,
    /// Parts that batches may come for.
    pub(super) streams: HashMap<(LinkId, u64), (TransferId, u32)>,
    /// Fences that wait for what is being read into pages, and until when.
    pub(super) fences: Vec<(TransferId, u32, u64)>,
    /// Regions of producer ranks that are mapped here, or why they are not.
    pub(super) mapped: HashMap<(LinkId, u32), Mapped>,
    pub(super) runners: Kept,
    pub(super) events: VecDeque<Event>,
}

/// Regions of a producer rank, or why they could not be mapped.
pub(super) type Mapped = Result<Arc<[Region]>, String>;

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("engine", &self.node.config().engine)
            .field("links", &self.links.len())
            .field("offers", &self.offers.len())
            .field("transfers", &self.pullings.len())
            .finish_non_exhaustive()
    }
}

/// Which regions are whose, among all that a node lends.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) first_rank: u32,
    pub(super) regions: Vec<Range<usize>>,
    pub(super) generations: Vec<Option<Generations>>,
}

impl Memory {
    /// The regions of a rank of this node.
    pub(super) fn rank(&self, rank: u32) -> Range<usize> {
        let at = rank.checked_sub(self.first_rank);
        at.and_then(|at| self.regions.get(at as usize))
            .cloned()
            .unwrap_or_default()
    }

    pub(super) fn ranks(&self) -> Range<u32> {
        self.first_rank..self.first_rank + self.regions.len() as u32
    }

    /// What the generations of a request's pages come to, over all ranks of the node.
    fn generation(&self, request: &Request, groups: usize) -> u64 {
        let ranks = self.ranks().zip(&self.generations);
        ranks.fold(0, |sum, (rank, generations)| {
            let Some(generations) = generations else {
                return sum;
            };
            let pages = (0..groups).flat_map(|group| request.pages(rank, group));
            crate::digest::mix(sum ^ generations.of(pages))
        })
    }

    /// Changes whenever any page of any rank is used for something else.
    fn all_generations(&self) -> u64 {
        let each = self.generations.iter().flatten();
        each.fold(0, |sum: u64, generations| {
            sum.wrapping_add(generations.all())
        })
    }
}

/// What is offered, and how it went so far.
#[derive(Debug)]
pub(super) struct Offered {
    pub(super) offer: Offer,
    groups: usize,
    generation: u64,
    /// Of all pages, when the generation was last looked at.
    all: u64,
    /// The request as consumers want it, by agreement, rank, tokens that are held and coverage.
    asked: Vec<(Arc<Requested>, u32)>,
    pub(super) report: Report,
    pub(super) started: Option<std::time::Instant>,
}

/// Requests of one offer that are kept for further parts: a consumer engine asks alike for all its ranks.
const MOST_ASKED: usize = 16;

impl Offered {
    pub(super) fn new(offer: Offer, memory: &Memory) -> Self {
        let groups = offer.request.groups();
        let mut report = Report::new(memory.first_rank);
        report.request.clone_from(&offer.name);
        if let Some(trace) = &offer.trace {
            report.traced(trace);
        }
        let all = memory.all_generations();
        Self {
            groups,
            generation: memory.generation(&offer.request, groups),
            all,
            asked: Vec::new(),
            report,
            started: None,
            offer,
        }
    }

    /// What the generations of its pages came to when it was offered.
    pub(super) fn offered_generation(&self) -> u64 {
        self.generation
    }

    /// What the generations of its pages come to now.
    pub(super) fn generation(&mut self, memory: &Memory) -> u64 {
        let all = memory.all_generations();
        if all != self.all {
            self.all = all;
            self.generation = memory.generation(&self.offer.request, self.groups);
        }
        self.generation
    }

    /// The request as a consumer wants it, of one of this node's ranks.
    pub(super) fn asked(
        &mut self,
        agreed: &Arc<Agreed>,
        rank: u32,
        held: u32,
        mode: Coverage,
    ) -> Result<Arc<Requested>, String> {
        if let Some(whole) = { &self.offer.whole }
            .as_ref()
            .filter(|whole| Arc::ptr_eq(whole.agreed(), agreed))
        {
            return Ok(Arc::clone(whole));
        }
        let same = |(asked, of): &&(Arc<Requested>, u32)| {
            let request = asked.producer();
            *of == rank
                && Arc::ptr_eq(asked.agreed(), agreed)
                && (request.first, request.coverage) == (held, mode)
        };
        if let Some((asked, _)) = self.asked.iter().find(same) {
            return Ok(Arc::clone(asked));
        }
        let mut request = self.offer.request.clone();
        (request.first, request.coverage) = (held, mode);
        let asked = Requested::of(Arc::clone(agreed), Role::Producer, request, rank..rank + 1);
        let asked = Arc::new(asked.map_err(|refusal| refusal.to_string())?);
        if self.asked.len() == MOST_ASKED {
            self.asked.remove(0);
        }
        self.asked.push((Arc::clone(&asked), rank));
        Ok(asked)
    }
}

/// Programs of pairs, for the next request of the same two engines.
#[derive(Debug, Default)]
pub(super) struct Kept(VecDeque<(Arc<Agreed>, Role, Runner)>);

impl Kept {
    /// A runner of a pair.
    pub(super) fn take(
        &mut self,
        requested: &Arc<Requested>,
        (source, target): (u32, u32),
        role: Role,
    ) -> Option<Runner> {
        let agreed = requested.agreed();
        let same = |(of, as_role, runner): &(Arc<Agreed>, Role, Runner)| {
            let pair = runner.pair();
            Arc::ptr_eq(of, agreed)
                && *as_role == role
                && (pair.source, pair.target) == (source, target)
        };
        if let Some(at) = self.0.iter().position(same)
            && let Some((.., mut runner)) = self.0.remove(at)
        {
            runner.take(requested);
            return Some(runner);
        }
        let mut pairs = agreed.agreement.pairs.iter();
        let pair = pairs.find(|pair| (pair.source, pair.target) == (source, target))?;
        Some(Runner::new(requested, pair, role))
    }

    /// Keeps a runner that is not needed any more.
    pub(super) fn put(&mut self, agreed: &Arc<Agreed>, role: Role, runner: Runner) {
        if self.0.len() == MAX_KEPT_RUNNERS {
            self.0.pop_front();
        }
        self.0.push_back((Arc::clone(agreed), role, runner));
    }
}

impl Core {
    /// Whether the transfer that a stream names was begun at some time and is over: what still comes of it is late.
    pub(super) fn is_over(&self, stream: u64) -> bool {
        let transfer = transfer_of(stream, self.last_transfer.0).map(TransferId);
        transfer.is_some_and(|transfer| {
            !self.pullings.contains_key(&transfer) && !self.sought.contains_key(&transfer)
        })
    }

    /// A link is gone: nothing is read into pages from it any more.
    pub(super) fn link_gone(&mut self, link: LinkId, why: &str) {
        for pulling in self.pullings.values_mut() {
            for part in pulling
                .parts
                .iter_mut()
                .filter(|part| part.link == Some(link))
            {
                let landings = std::mem::take(&mut part.landings);
                part.spare
                    .extend(landings.into_iter().map(|(_, runs)| runs));
                part.staged.clear();
            }
        }
        self.streams.retain(|(of, _), _| *of != link);
        self.mapped.retain(|(of, _), _| *of != link);
        let now = self.clock.now();
        self.node.closed(link, why, now);
    }
}
