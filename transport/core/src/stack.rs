//! Several interfaces as one: whoever is above holds a single one, whatever the providers.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use moai_memory::Region;
use rustix::event::{Timespec, epoll};
use slab::Slab;
use tracing::{debug, warn};

use crate::key::KEY_BYTES;
use crate::limits::MAX_REGISTRATIONS;
use crate::{
    Address, Batch, Candidate, Capabilities, Closed, Completion, Error, Handler, Identity,
    Interface, Landing, NoPath, Obstacle, Operation, Path, PeerId, Piece, Pieces, Posted, Provider,
    Reach, RegistrationId, Reject, Rights, Stats, Token, Wanted, select,
};

/// Interfaces of different providers, side by side.
///
/// A peer is reached by one of them, which [`connect_any`](Self::connect_any) chooses. If that one fails before it is
/// connected, the next best is tried, and [`path`](Interface::path) says so; messages that were queued go along.
///
/// # Names
///
/// A peer's index has the number of its provider in the three highest bits. A connection that is made here
/// has a name of this stack's own instead, since what it stands for may change until it is there; its provider's number
/// is one that no provider has. A registration is one with every interface that can give it.
pub struct Stack {
    members: Vec<Member>,
    capabilities: Capabilities,
    /// Connections made here, until they are closed.
    dialled: Slab<Dialled>,
    /// Entry of each, by the member who makes it and its name there.
    entries: Entries,
    /// Of the next one.
    generation: u32,
    registrations: Slab<Registered>,
    /// What each slot's next registration is.
    registration: u32,
    /// Becomes readable when that of a member does.
    epoll: OwnedFd,
    /// Connections that could not be made, to be told in the next poll.
    failed: Vec<(PeerId, Closed)>,
    /// Connections that go another way than that which had no room, to be told in the next poll.
    roomy: Vec<PeerId>,
    fallbacks: u64,
    /// Something has happened lately, so that more is expected soon.
    is_hot: bool,
}

/// Which of the stack's own names a member's peer has.
#[derive(Debug, Default)]
struct Entries {
    /// Entry of those that are there.
    live: HashMap<(usize, PeerId), usize>,
    /// Those that are gone and have completions that nobody has taken, which are of some operation each, and so bounded
    /// with them.
    gone: HashMap<(usize, PeerId), Gone>,
}

#[derive(Clone, Copy, Debug)]
struct Gone {
    peer: PeerId,
    in_flight: usize,
}

struct Member {
    provider: Box<dyn Provider>,
    interface: Box<dyn Interface + Send>,
}

/// One connection made here.
#[derive(Debug)]
struct Dialled {
    generation: u32,
    /// Who makes it, and its name there.
    member: usize,
    inner: PeerId,
    is_connected: bool,
    /// Operations whose completion was not taken.
    in_flight: usize,
    /// Why this way.
    choice: Option<Chosen>,
    /// Ways that are left.
    rest: Option<Rest>,
}

#[derive(Debug)]
struct Chosen {
    why: String,
    is_fallback: bool,
}

/// What is needed to choose again.
#[derive(Debug)]
struct Rest {
    addresses: Vec<Address>,
    /// Why each cannot be had, of those that were tried.
    tried: Vec<Option<Obstacle>>,
    wanted: OwnedWanted,
    /// Messages queued since, for another way to send.
    queued: Vec<Vec<u8>>,
    /// Something was queued that cannot be sent again.
    is_used: bool,
    /// The caller was told that there is no room, and waits for some.
    is_full: bool,
}

/// Messages that are kept until a connection is made. Whoever connects says who it is, and waits for the answer.
const MAX_QUEUED: usize = 16;

#[derive(Clone, Debug)]
struct OwnedWanted {
    local: moai_memory::MemoryKind,
    remote: moai_memory::MemoryKind,
    allowed: Option<Vec<String>>,
    required: Option<Vec<String>>,
}

/// One memory, registered with all who can.
#[derive(Debug)]
struct Registered {
    generation: u32,
    uses: u32,
    /// By member.
    ids: Vec<Option<RegistrationId>>,
    address: usize,
    len: u64,
    index: u32,
    rights: Rights,
}

/// Bits of a peer's index that tell its provider: there are seven at most, and the eighth number is the stack's own.
const PROVIDER_BITS: u32 = 3;

const INDEX_BITS: u32 = u32::BITS - PROVIDER_BITS;

/// How long a poll goes round, after something has happened, before it waits: as long as waking up takes, a few times.
/// A poll that finds nothing in that time is followed by ones that wait at once, so idle peers cost nothing.
const SPIN: Duration = Duration::from_micros(20);

/// Interfaces that a stack can have.
const MAX_MEMBERS: usize = (1 << PROVIDER_BITS) - 1;

/// Why nothing connects.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No provider will do.
    #[error(transparent)]
    NoPath(#[from] NoPath),
    /// The one that was chosen refused at once, and no other is left.
    #[error(transparent)]
    Transport(#[from] Error),
}

impl Stack {
    /// Opens an interface of each provider.
    ///
    /// # Errors
    ///
    /// - [`Error::Config`] for none, or more than seven.
    /// - What opening the first fails with, if none can be opened.
    pub fn open(providers: Vec<Box<dyn Provider>>) -> Result<Self, Error> {
        if !(1..=MAX_MEMBERS).contains(&providers.len()) {
            return Err(Error::Config {
                knob: "providers",
                value: providers.len() as u64,
                smallest: 1,
                largest: MAX_MEMBERS as u64,
            });
        }
        let system = |call| {
            move |error: rustix::io::Errno| Error::Os {
                call,
                cause: error.into(),
            }
        };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(system("epoll_create"))?;
        let mut members = Vec::new();
        let mut cause = None;
        for provider in providers {
            // One that cannot be had, for want of descriptors say, is done without as long as there is another.
            let interface = match provider.open() {
                Ok(interface) => interface,
                Err(error) => {
                    warn!(provider = provider.name(), reason = %error, "transport cannot be opened");
                    cause.get_or_insert(error);
                    continue;
                }
            };
            let data = epoll::EventData::new_u64(members.len() as u64);
            epoll::add(&epoll, interface.as_fd(), data, epoll::EventFlags::IN)
                .map_err(system("epoll_ctl"))?;
            members.push(Member {
                provider,
                interface,
            });
        }
        if let (true, Some(cause)) = (members.is_empty(), cause) {
            return Err(cause);
        }
        Ok(Self {
            capabilities: together(&members),
            members,
            dialled: Slab::new(),
            entries: Entries::default(),
            generation: 0,
            registrations: Slab::new(),
            registration: 0,
            epoll,
            failed: Vec::new(),
            roomy: Vec::new(),
            fallbacks: 0,
            is_hot: false,
        })
    }

    /// Counters of each provider's interface.
    pub fn stats_by_provider(&self) -> impl Iterator<Item = (&'static str, Stats)> + '_ {
        let of = |member: &Member| (member.interface.name(), member.interface.stats());
        self.members.iter().map(of)
    }

    /// Starts connecting to a peer that has several addresses, by the best of them as [`select`] sees it. If that ends
    /// before it is connected, the next best is tried; unless more than some messages were queued, which only the first
    /// knows of.
    ///
    /// # Errors
    ///
    /// [`ConnectError::NoPath`] with a reason for every address; [`ConnectError::Transport`] if the last one left
    /// refuses.
    pub fn connect_any(
        &mut self,
        addresses: &[Address],
        wanted: &Wanted<'_>,
    ) -> Result<PeerId, ConnectError> {
        let mut rest = Rest {
            addresses: addresses.to_vec(),
            tried: vec![None; addresses.len()],
            wanted: OwnedWanted {
                local: wanted.local,
                remote: wanted.remote,
                allowed: wanted.allowed.map(<[String]>::to_vec),
                required: wanted.required.map(<[String]>::to_vec),
            },
            queued: Vec::new(),
            is_used: false,
            is_full: false,
        };
        let (member, inner, choice) = self.dial(&mut rest)?;
        let (is_fallback, why) = (choice.is_fallback, choice.why.clone());
        let peer = self.insert(member, inner, Some(choice), Some(rest));
        if is_fallback {
            self.fell_back(member, peer, &why);
        }
        Ok(peer)
    }

    /// What the interface can do by which a peer is reached, as far as is known; `None` for a stale id.
    #[must_use]
    pub fn capabilities_of(&self, peer: PeerId) -> Option<&Capabilities> {
        let (at, _) = self.find(peer)?;
        Some(self.members[at].interface.capabilities())
    }

    /// Connects by the best way that has not failed yet.
    fn dial(&mut self, rest: &mut Rest) -> Result<(usize, PeerId, Chosen), ConnectError> {
        loop {
            let mut members = Vec::new();
            let mut candidates = Vec::new();
            for (address, tried) in rest.addresses.iter().zip(&rest.tried) {
                let Some(at) = self.member(address) else {
                    continue;
                };
                let member = &self.members[at];
                let obstacle = || member.provider.obstacle(address);
                members.push((at, address));
                candidates.push(Candidate {
                    address,
                    capabilities: member.interface.capabilities(),
                    obstacle: tried.clone().or_else(obstacle),
                });
            }
            let wanted = Wanted {
                local: rest.wanted.local,
                remote: rest.wanted.remote,
                allowed: rest.wanted.allowed.as_deref(),
                required: rest.wanted.required.as_deref(),
            };
            let choice = select(&wanted, &candidates)?;
            let (at, address) = members[choice.index];
            let address = address.clone();
            match self.members[at].interface.connect(&address) {
                Ok(inner) => {
                    let chosen = Chosen {
                        why: choice.why,
                        is_fallback: choice.is_fallback,
                    };
                    return Ok((at, inner, chosen));
                }
                Err(error) => {
                    if rest.fail(&address, format!("it could not be tried: {error}")) == 0 {
                        return Err(error.into());
                    }
                }
            }
        }
    }

    fn insert(
        &mut self,
        member: usize,
        inner: PeerId,
        choice: Option<Chosen>,
        rest: Option<Rest>,
    ) -> PeerId {
        let generation = self.generation;
        self.generation = generation.wrapping_add(1);
        let index = self.dialled.insert(Dialled {
            generation,
            member,
            inner,
            is_connected: false,
            in_flight: 0,
            choice,
            rest,
        });
        self.entries.live.insert((member, inner), index);
        own_name(index, generation)
    }

    /// The interface that connects to an address.
    fn member(&self, address: &Address) -> Option<usize> {
        let mut members = self.members.iter();
        members.position(|member| member.provider.name() == address.provider())
    }

    /// Who reaches a peer, and its name there.
    fn find(&self, peer: PeerId) -> Option<(usize, PeerId)> {
        let (member, index) = split(peer);
        if member < self.members.len() {
            return Some((member, PeerId::new(index, peer.generation())));
        }
        let dialled = self.dialled.get(index as usize)?;
        (dialled.generation == peer.generation()).then_some((dialled.member, dialled.inner))
    }

    fn known(&self, peer: PeerId) -> Result<(usize, PeerId), Error> {
        self.find(peer).ok_or(Error::NoSuchPeer { peer })
    }

    /// As `known`, for what leaves something with the interface that another one would not know of.
    fn used(&mut self, peer: PeerId) -> Result<(usize, PeerId), Error> {
        if let Some(rest) = self.rest(peer) {
            rest.is_used = true;
        }
        self.known(peer)
    }

    /// An operation was posted, whose completion will name the peer as the stack does.
    fn note(&mut self, at: usize, inner: PeerId, posted: &Result<Posted, Error>) {
        if let Ok(Posted::InFlight(_)) = posted
            && let Some(&index) = self.entries.live.get(&(at, inner))
        {
            self.dialled[index].in_flight += 1;
        }
    }

    /// What is left to try for a connection that is not made yet.
    fn rest(&mut self, peer: PeerId) -> Option<&mut Rest> {
        let (member, index) = split(peer);
        if member != MAX_MEMBERS {
            return None;
        }
        let dialled = self.dialled.get_mut(index as usize)?;
        dialled.rest.as_mut()
    }

    /// Tries again what failed in this round. Returns what could not be had in any way.
    fn again(&mut self, lost: Vec<(usize, Closed)>) {
        for (index, why) in lost {
            let Some(dialled) = self.dialled.get_mut(index) else {
                continue;
            };
            let peer = own_name(index, dialled.generation);
            let Some(mut rest) = dialled.rest.take() else {
                continue;
            };
            let failed = self.members[dialled.member].provider.name();
            let reason = format!("it could not be connected: {why}");
            let address = rest
                .addresses
                .iter()
                .zip(&rest.tried)
                .find(|(address, tried)| address.provider() == failed && tried.is_none())
                .map(|(address, _)| address.clone());
            if let Some(address) = address {
                rest.fail(&address, reason);
            }
            match self.dial(&mut rest) {
                Ok((member, inner, choice)) => {
                    let dialled = &mut self.dialled[index];
                    // A connection falls back once, however many ways it has tried.
                    let before = dialled.choice.as_ref().is_some_and(|one| one.is_fallback);
                    (dialled.member, dialled.inner) = (member, inner);
                    self.entries.live.insert((member, inner), index);
                    let interface = &mut self.members[member].interface;
                    let mut queued = rest.queued.iter();
                    if !queued.all(|one| matches!(interface.send(inner, one), Ok(Posted::Done))) {
                        // A peer that misses a message would wait for it, and the caller for the peer.
                        interface.close(inner);
                        self.entries.live.remove(&(member, inner));
                        debug!(%peer, "another path does not take what was queued for the first");
                        self.failed.push((peer, why));
                        continue;
                    }
                    if std::mem::take(&mut rest.is_full) {
                        self.roomy.push(peer);
                    }
                    let (is_fallback, why) = (choice.is_fallback, choice.why.clone());
                    dialled.choice = Some(choice);
                    dialled.rest = Some(rest);
                    if is_fallback && !before {
                        self.fell_back(member, peer, &why);
                    }
                }
                Err(error) => {
                    debug!(%peer, reason = %error, "no path is left");
                    self.failed.push((peer, why));
                }
            }
        }
    }

    /// A connection is made by something slower than what is there.
    fn fell_back(&mut self, member: usize, peer: PeerId, reason: &str) {
        self.fallbacks += 1;
        let provider = self.members[member].provider.name();
        warn!(provider, %peer, reason, "another path than the best is taken");
    }

    /// Runs every interface once, without waiting. Returns how many callbacks there were.
    fn turn(&mut self, handler: &mut dyn Handler) -> Result<u64, Error> {
        let mut callbacks = 0;
        for (peer, why) in std::mem::take(&mut self.failed) {
            self.dialled.try_remove(split(peer).1 as usize);
            handler.closed(peer, why);
            callbacks += 1;
        }
        for peer in std::mem::take(&mut self.roomy) {
            if self.find(peer).is_some() {
                handler.writable(peer);
                callbacks += 1;
            }
        }
        for at in 0..self.members.len() {
            let mut translator = Translator {
                handler,
                member: at,
                dialled: &mut self.dialled,
                entries: &mut self.entries,
                lost: Vec::new(),
                callbacks: 0,
            };
            let interface = &mut self.members[at].interface;
            interface.poll(Some(Duration::ZERO), &mut translator)?;
            callbacks += translator.callbacks;
            let lost = translator.lost;
            self.again(lost);
        }
        Ok(callbacks)
    }

    /// Whether the next poll has something to tell by itself.
    fn has_news(&self) -> bool {
        !self.failed.is_empty() || !self.roomy.is_empty()
    }

    /// How long all of them may wait; `None` as long as they like.
    fn arm_all(&mut self) -> Option<Duration> {
        let mut limit = self.has_news().then_some(Duration::ZERO);
        for member in &mut self.members {
            limit = limit.into_iter().chain(member.interface.arm()).min();
        }
        limit
    }
}

impl Entries {
    /// A connection has ended.
    fn leave(&mut self, index: usize, one: &Dialled) {
        self.live.remove(&(one.member, one.inner));
        if one.in_flight > 0 {
            let gone = Gone {
                peer: own_name(index, one.generation),
                in_flight: one.in_flight,
            };
            self.gone.insert((one.member, one.inner), gone);
        }
    }

    /// A completion of a peer that may be gone was taken.
    fn taken(&mut self, member: usize, inner: PeerId) {
        if let Some(gone) = self.gone.get_mut(&(member, inner)) {
            gone.in_flight -= 1;
            if gone.in_flight == 0 {
                self.gone.remove(&(member, inner));
            }
        }
    }
}

impl Rest {
    /// Notes why an address will not do. Returns how many are left.
    fn fail(&mut self, address: &Address, reason: String) -> usize {
        let tried = self.addresses.iter().zip(&mut self.tried);
        for (other, tried) in tried {
            if other == address && tried.is_none() {
                *tried = Some(Obstacle::Refused(reason.clone()));
            }
        }
        self.tried.iter().filter(|tried| tried.is_none()).count()
    }
}

/// Provider and index there.
fn split(peer: PeerId) -> (usize, u32) {
    let member = (peer.index() >> INDEX_BITS) as usize;
    (member, peer.index() & ((1 << INDEX_BITS) - 1))
}

fn own_name(index: usize, generation: u32) -> PeerId {
    name(MAX_MEMBERS, PeerId::new(index as u32, generation))
}

/// A member's peer, as the stack calls it.
fn name(member: usize, inner: PeerId) -> PeerId {
    let index = (member as u32) << INDEX_BITS | inner.index();
    PeerId::new(index, inner.generation())
}

/// The stack's name of a member's peer: of those made here by their entry.
fn outer(
    entries: &Entries,
    dialled: &Slab<Dialled>,
    member: usize,
    inner: PeerId,
) -> (PeerId, Option<usize>) {
    if let Some(gone) = entries.gone.get(&(member, inner)) {
        return (gone.peer, None);
    }
    let entry = entries.live.get(&(member, inner)).copied();
    match entry.and_then(|index| dialled.get(index).map(|one| (index, one))) {
        Some((index, one)) => (own_name(index, one.generation), Some(index)),
        None => (name(member, inner), None),
    }
}

/// Tells the handler of a member's peers by the stack's names.
struct Translator<'a> {
    handler: &'a mut dyn Handler,
    member: usize,
    dialled: &'a mut Slab<Dialled>,
    entries: &'a mut Entries,
    /// Connections that could not be made and may be made otherwise.
    lost: Vec<(usize, Closed)>,
    callbacks: u64,
}

impl Translator<'_> {
    fn name(&mut self, inner: PeerId) -> PeerId {
        self.callbacks += 1;
        outer(self.entries, self.dialled, self.member, inner).0
    }
}

impl Handler for Translator<'_> {
    fn connected(&mut self, peer: PeerId, incoming: bool) {
        self.callbacks += 1;
        let (peer, own) = outer(self.entries, self.dialled, self.member, peer);
        if let Some(index) = own {
            let dialled = &mut self.dialled[index];
            dialled.is_connected = true;
            dialled.rest = None;
        }
        self.handler.connected(peer, incoming);
    }

    fn message(&mut self, peer: PeerId, bytes: &[u8]) -> Result<(), Reject> {
        let peer = self.name(peer);
        self.handler.message(peer, bytes)
    }

    fn landing(&mut self, peer: PeerId, batch: Batch) -> Result<Landing, Reject> {
        let peer = self.name(peer);
        self.handler.landing(peer, batch)
    }

    fn pieces(
        &mut self,
        peer: PeerId,
        batch: Batch,
        from: u32,
        most: usize,
        out: &mut Vec<Piece>,
    ) -> Result<(), Reject> {
        let peer = self.name(peer);
        self.handler.pieces(peer, batch, from, most, out)
    }

    fn regions(&mut self) -> &mut [Region] {
        self.handler.regions()
    }

    fn landed(&mut self, peer: PeerId, batch: Batch, staged: Option<&[u8]>) -> Result<(), Reject> {
        let peer = self.name(peer);
        self.handler.landed(peer, batch, staged)
    }

    fn writable(&mut self, peer: PeerId) {
        let peer = self.name(peer);
        self.handler.writable(peer);
    }

    fn closed(&mut self, peer: PeerId, why: Closed) {
        let inner = peer;
        let (peer, own) = outer(self.entries, self.dialled, self.member, inner);
        if let Some(index) = own {
            let may_try = |one: &Dialled| {
                let unused = one.rest.as_ref().is_some_and(|rest| !rest.is_used);
                !one.is_connected && unused && !matches!(why, Closed::ByUs)
            };
            if self.dialled.get(index).is_some_and(may_try) {
                self.entries.live.remove(&(self.member, inner));
                self.lost.push((index, why));
                return;
            }
            let one = self.dialled.remove(index);
            self.entries.leave(index, &one);
        }
        self.callbacks += 1;
        self.handler.closed(peer, why);
    }
}

/// What at least one of the members can do.
fn together(members: &[Member]) -> Capabilities {
    let all = || members.iter().map(|member| member.interface.capabilities());
    let least = |field: fn(&Capabilities) -> u32| all().map(field).min().unwrap_or(0);
    let mut reach: Vec<(Operation, moai_memory::MemoryKind, Reach)> = Vec::new();
    for &(operation, kind, how) in all().flat_map(|can| &can.reach) {
        match reach
            .iter_mut()
            .find(|one| (one.0, one.1) == (operation, kind))
        {
            Some(known) => known.2 = known.2.max(how),
            None => reach.push((operation, kind, how)),
        }
    }
    Capabilities {
        reach,
        one_sided: all().all(|can| can.one_sided),
        max_message: least(|can| can.max_message),
        max_batch: least(|can| can.max_batch),
        max_operation: all().map(|can| can.max_operation).min().unwrap_or(0),
        lanes: all().map(|can| can.lanes).max().unwrap_or(1),
        encrypted: all().all(|can| can.encrypted),
    }
}

impl Interface for Stack {
    fn name(&self) -> &'static str {
        "stack"
    }

    /// What can be done to some peer: reach is the best of any provider, limits are the least of all.
    /// [`path`](Interface::path) and [`select`] tell about one peer.
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn addresses(&self) -> Vec<Address> {
        let members = self.members.iter();
        members
            .flat_map(|member| member.interface.addresses())
            .collect()
    }

    fn connect(&mut self, address: &Address) -> Result<PeerId, Error> {
        let Some(at) = self.member(address) else {
            return Err(Error::Unreachable {
                provider: "stack",
                address: address.clone(),
                reason: format!("provider {} is not open here", address.provider()),
            });
        };
        let inner = self.members[at].interface.connect(address)?;
        Ok(self.insert(at, inner, None, None))
    }

    fn send(&mut self, peer: PeerId, message: &[u8]) -> Result<Posted, Error> {
        let (at, inner) = self.known(peer)?;
        let sent = self.members[at].interface.send(inner, message);
        if let (Ok(posted), Some(rest)) = (&sent, self.rest(peer)) {
            match posted {
                Posted::Done if rest.queued.len() < MAX_QUEUED => {
                    rest.queued.push(message.to_vec());
                }
                Posted::Done | Posted::InFlight(_) => rest.is_used = true,
                Posted::Busy => rest.is_full = true,
            }
        }
        sent.map_err(|error| renamed(error, peer))
    }

    fn post(
        &mut self,
        peer: PeerId,
        batch: Batch,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<Posted, Error> {
        let (at, inner) = self.used(peer)?;
        let posted = self.members[at].interface.post(inner, batch, fill);
        posted.map_err(|error| renamed(error, peer))
    }

    /// Registers with every provider that can; fails if none can.
    fn register(
        &mut self,
        index: u32,
        region: &Region,
        rights: Rights,
    ) -> Result<RegistrationId, Error> {
        let (address, len) = (region.hold().address(), region.len());
        let same = |one: &Registered| {
            one.address == address && one.len == len && one.index == index && one.rights == rights
        };
        if let Some((slot, known)) = self.registrations.iter_mut().find(|(_, one)| same(one)) {
            known.uses += 1;
            return Ok(RegistrationId::new(slot as u32, known.generation));
        }
        if self.registrations.len() >= MAX_REGISTRATIONS {
            return Err(Error::TooManyRegistrations {
                limit: MAX_REGISTRATIONS,
            });
        }
        let (mut ids, mut refused) = (Vec::new(), None);
        for member in &mut self.members {
            match member.interface.register(index, region, rights) {
                Ok(id) => ids.push(Some(id)),
                Err(error) => {
                    refused = Some(error);
                    ids.push(None);
                }
            }
        }
        if let (Some(error), true) = (refused, ids.iter().all(Option::is_none)) {
            return Err(error);
        }
        self.registration = self.registration.wrapping_add(1).max(1);
        let generation = self.registration;
        let slot = self.registrations.insert(Registered {
            generation,
            uses: 1,
            ids,
            address,
            len,
            index,
            rights,
        });
        Ok(RegistrationId::new(slot as u32, generation))
    }

    fn deregister(&mut self, id: RegistrationId) -> Result<(), Error> {
        let slot = id.slot() as usize;
        let known = self.registrations.get_mut(slot);
        let Some(known) = known.filter(|one| one.generation == id.generation()) else {
            return Err(not_registered(id));
        };
        known.uses -= 1;
        if known.uses > 0 {
            return Ok(());
        }
        let gone = self.registrations.remove(slot);
        let mut outcome = Ok(());
        for (member, id) in self.members.iter_mut().zip(gone.ids) {
            let ended = id.map_or(Ok(()), |id| member.interface.deregister(id));
            outcome = outcome.and(ended);
        }
        outcome
    }

    fn remote_key(&self, peer: PeerId, id: RegistrationId) -> Result<[u8; KEY_BYTES], Error> {
        let (at, inner) = self.known(peer)?;
        let known = self.registrations.get(id.slot() as usize);
        let known = known.filter(|one| one.generation == id.generation());
        let inner_id = known.and_then(|one| one.ids[at]);
        let inner_id = inner_id.ok_or_else(|| not_registered(id))?;
        let key = self.members[at].interface.remote_key(inner, inner_id);
        key.map_err(|error| renamed(error, peer))
    }

    fn import(&mut self, peer: PeerId, key: &[u8]) -> Result<u32, Error> {
        let (at, inner) = self.used(peer)?;
        let number = self.members[at].interface.import(inner, key);
        number.map_err(|error| renamed(error, peer))
    }

    fn put(
        &mut self,
        memory: &mut [Region],
        peer: PeerId,
        local: &[Pieces<'_>],
        remote: &[Pieces<'_>],
        token: Token,
    ) -> Result<Posted, Error> {
        let (at, inner) = self.used(peer)?;
        let interface = &mut self.members[at].interface;
        let posted = interface.put(memory, inner, local, remote, token);
        self.note(at, inner, &posted);
        posted.map_err(|error| renamed(error, peer))
    }

    fn get(
        &mut self,
        memory: &mut [Region],
        peer: PeerId,
        local: &[Pieces<'_>],
        remote: &[Pieces<'_>],
        token: Token,
    ) -> Result<Posted, Error> {
        let (at, inner) = self.used(peer)?;
        let interface = &mut self.members[at].interface;
        let posted = interface.get(memory, inner, local, remote, token);
        self.note(at, inner, &posted);
        posted.map_err(|error| renamed(error, peer))
    }

    fn map(&mut self, peer: PeerId, remote: u32) -> Result<Region, Error> {
        let (at, inner) = self.known(peer)?;
        let mapped = self.members[at].interface.map(inner, remote);
        mapped.map_err(|error| renamed(error, peer))
    }

    fn flush(&mut self, peer: PeerId, token: Token) -> Result<Posted, Error> {
        let (at, inner) = self.used(peer)?;
        let posted = self.members[at].interface.flush(inner, token);
        self.note(at, inner, &posted);
        posted.map_err(|error| renamed(error, peer))
    }

    fn completion(&mut self) -> Option<Completion> {
        let mut members = self.members.iter_mut().enumerate();
        let (at, ended) = members.find_map(|(at, member)| {
            let ended = member.interface.completion()?;
            Some((at, ended))
        })?;
        let (peer, own) = outer(&self.entries, &self.dialled, at, ended.peer);
        match own {
            Some(index) => self.dialled[index].in_flight -= 1,
            None => self.entries.taken(at, ended.peer),
        }
        Some(Completion { peer, ..ended })
    }

    fn poll(&mut self, timeout: Option<Duration>, handler: &mut dyn Handler) -> Result<(), Error> {
        let mut until = None;
        // One alone spins and waits as it likes.
        if let [only] = &mut self.members[..]
            && self.failed.is_empty()
            && self.roomy.is_empty()
        {
            let mut translator = Translator {
                handler,
                member: 0,
                dialled: &mut self.dialled,
                entries: &mut self.entries,
                lost: Vec::new(),
                callbacks: 0,
            };
            only.interface.poll(timeout, &mut translator)?;
            let lost = translator.lost;
            self.again(lost);
            return Ok(());
        }
        loop {
            if self.turn(handler)? > 0 {
                self.is_hot = true;
                return Ok(());
            }
            if timeout == Some(Duration::ZERO) {
                return Ok(());
            }
            let now = Instant::now();
            // A timeout too long for the clock is as good as none.
            let until =
                *until.get_or_insert_with(|| timeout.and_then(|timeout| now.checked_add(timeout)));
            if std::mem::take(&mut self.is_hot) {
                let spin = until.map_or(now + SPIN, |until: Instant| until.min(now + SPIN));
                while Instant::now() < spin {
                    if self.turn(handler)? > 0 {
                        self.is_hot = true;
                        return Ok(());
                    }
                    std::thread::yield_now();
                }
            }
            let now = Instant::now();
            let left = until.map(|until: Instant| until.saturating_duration_since(now));
            let limit = self.arm_all().into_iter().chain(left).min();
            if limit != Some(Duration::ZERO) {
                wait(&self.epoll, limit)?;
            }
            self.is_hot = self.turn(handler)? > 0;
            if self.is_hot || until.is_some_and(|until| until <= Instant::now()) {
                return Ok(());
            }
            // Completions are for the caller to take.
            if limit == Some(Duration::ZERO) {
                return Ok(());
            }
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn arm(&mut self) -> Option<Duration> {
        self.arm_all()
    }

    fn close(&mut self, peer: PeerId) {
        let Some((at, inner)) = self.find(peer) else {
            return;
        };
        self.members[at].interface.close(inner);
        // Nothing is told of it any more.
        self.failed.retain(|(failed, _)| *failed != peer);
        let (member, index) = split(peer);
        if member == MAX_MEMBERS
            && let Some(one) = self.dialled.try_remove(index as usize)
        {
            self.entries.leave(index as usize, &one);
        }
    }

    fn finish(&mut self, peer: PeerId) {
        if let Ok((at, inner)) = self.used(peer) {
            self.members[at].interface.finish(inner);
        }
    }

    fn path(&self, peer: PeerId) -> Option<Path> {
        let (at, inner) = self.find(peer)?;
        let mut path = self.members[at].interface.path(inner)?;
        let (member, index) = split(peer);
        if member == MAX_MEMBERS
            && let Some(chosen) = self.dialled.get(index as usize)?.choice.as_ref()
        {
            path.why = format!("{}; {}", chosen.why, path.why);
            path.is_fallback |= chosen.is_fallback;
        }
        Some(path)
    }

    fn identity(&self, peer: PeerId) -> Option<Identity> {
        let (at, inner) = self.find(peer)?;
        self.members[at].interface.identity(inner)
    }

    fn stats(&self) -> Stats {
        let members = self.members.iter();
        let mut sum = members.fold(Stats::default(), |sum, member| {
            sum + member.interface.stats()
        });
        sum.fallbacks += self.fallbacks;
        sum
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = self.members.iter();
        let interfaces: Vec<_> = members.map(|member| &member.interface).collect();
        f.debug_struct("Stack")
            .field("interfaces", &interfaces)
            .field("dialled", &self.dialled)
            .finish_non_exhaustive()
    }
}

/// Waits until a member has something to do.
fn wait(epoll: &OwnedFd, limit: Option<Duration>) -> Result<(), Error> {
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    let mut room = [std::mem::MaybeUninit::uninit(); MAX_MEMBERS];
    match epoll::wait(epoll, &mut room, limit.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(Error::Os {
            call: "epoll_wait",
            cause: error.into(),
        }),
    }
}

fn not_registered(id: RegistrationId) -> Error {
    Error::NotRegistered {
        slot: id.slot(),
        generation: id.generation(),
    }
}

/// An error of a member, about a peer as the stack calls it.
fn renamed(error: Error, peer: PeerId) -> Error {
    match error {
        Error::NoSuchPeer { .. } => Error::NoSuchPeer { peer },
        Error::Finishing { .. } => Error::Finishing { peer },
        Error::TooManyImports { .. } => Error::TooManyImports { peer },
        other => other,
    }
}

#[cfg(test)]
mod tests;
