//! The table of peers, and what is asked of it.
//!
//! - `arrivals`: who comes, and who goes.
//! - `turns`: who is looked at when, and what the system is asked for.
//! - `operations`: puts and gets, and memory that is taken back.

mod arrivals;
mod operations;
mod turns;

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use moai_memory::{Domain, Hold, Region, RegionError};
use moai_transport::{
    Address, Batch, Capabilities, Closed, Completion, Completions, Error, Handler, Interface,
    Operation, Path, PeerId, Piece, Pieces, Posted, Refusal, RegistrationId, Registrations,
    RemoteKey, Rights, Stats, Token, key, limits, wire::Header,
};
use rustix::event::epoll;
use slab::Slab;
use tracing::debug;

use crate::address::{Here, NAME};
use crate::capabilities::capabilities;
use crate::config::ShmConfig;
use crate::connection::{Connection, State};
use crate::copying::{Copies, Devices, KEPT_BUFFERS, Ticket};
use crate::direct::Job;
use crate::exports::Exports;
use crate::foreign::{Direction, Foreign};
use crate::greeting::Greeting;
use crate::listener::Listener;
use crate::outbound::{Room, room_of};
use crate::segment::{Hazards, Segment};
use crate::socket::Socket;
use crate::table::{MAX_LEN, Place, Table};

/// Peers of one thread that share memory.
///
/// # Awake and asleep
///
/// A poll looks at the rings of peers that are awake, which costs a load for each and no system call. A peer with which
/// nothing happens is put to sleep: its doorbell is announced, and from then on it costs nothing until it rings over the
/// socket, which the system's `epoll` reports. Before a poll waits, everyone is put to sleep.
#[derive(Debug)]
pub struct ShmInterface {
    config: ShmConfig,
    here: Here,
    /// Ended before the connections when the interface is closed: while a device copies, its connection is in the gate.
    copies: Copies,
    /// Devices that can import memory of peers.
    devices: Devices,
    listener: Option<Listener>,
    epoll: OwnedFd,
    entries: Slab<Entry>,
    /// Generation of the next entry. Counted for the whole interface, so an id is used again only after 2³².
    generation: u32,
    awake: Vec<PeerId>,
    /// Entries that may have a deadline. Few: those that talk have none.
    timed: Vec<PeerId>,
    registrations: Registrations,
    table: Table,
    exports: Exports,
    /// Peers that were dropped while they were in memory of ours.
    ghosts: Vec<Ghost>,
    /// Slots of registrations in which there may be a peer of which nothing else is known any more. As many as there are
    /// slots.
    haunted: HashSet<u32>,
    /// Memory that a peer did not leave in time, kept until the interface is closed.
    quarantined: Vec<Hold>,
    completions: Completions,
    capabilities: Capabilities,
    foreign: Foreign,
    pieces: Vec<Piece>,
    stats: Stats,
    /// Our epoch, where peers find it.
    cookie: Box<u64>,
    /// Something has happened lately, so that more is expected soon.
    is_hot: bool,
    /// Polls since the system was asked.
    unasked: u32,
}

/// Somebody at the other end of a socket.
#[derive(Debug)]
enum Entry {
    /// Has come, and has not said a word.
    Guest(Guest),
    Peer(Box<Connection>),
}

#[derive(Debug)]
struct Guest {
    id: PeerId,
    socket: Socket,
    deadline: Instant,
}

/// What is left of a peer that was dropped.
#[derive(Debug)]
struct Ghost {
    hazards: Hazards,
    socket: Socket,
}

/// Polls that find something in memory, or have no time to wait, before the system is asked for what is not: sockets
/// that came or ended. A hundred polls a microsecond would do nothing else.
const MAX_UNASKED: u32 = 16;

/// The listener's event; entries use their id.
const LISTENER: u64 = u64::MAX;

/// That of the devices' streams.
const DEVICES: u64 = u64::MAX - 1;

impl ShmInterface {
    /// Opens an interface; it listens if `config` says so.
    ///
    /// # Errors
    ///
    /// - [`Error::Config`] if a knob is out of range.
    /// - [`Error::Os`] if the name cannot be listened on, or the system has no descriptors left.
    pub fn new(config: ShmConfig) -> Result<Self, Error> {
        Self::with_devices(config, Vec::new())
    }

    /// The same, with devices of this process that can import what peers have registered of theirs: so such memory can
    /// be mapped, and reached from memory of the processor without the peer's doing. Memory of a device reaches a
    /// peer's device without its being named here.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and [`Error::Os`] if a device has no stream left.
    pub fn with_devices(config: ShmConfig, devices: Vec<Arc<dyn Domain>>) -> Result<Self, Error> {
        config.check()?;
        let here = Here::look().map_err(|reason| os("open")(io::Error::other(reason)))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| os("epoll_create")(error.into()))?;
        let epoch = draw_epoch()?;
        let listen = config.listen.as_ref();
        let listener = listen
            .map(|listen| Listener::bind(listen, &here, epoch))
            .transpose()
            .map_err(os("bind"))?;
        if let Some(listener) = &listener {
            watch(&epoll, &listener.socket, LISTENER).map_err(os("epoll_ctl"))?;
        }
        if config.permit_peers {
            // Systems without the call ask for no permission.
            let _ = rustix::process::set_ptracer(rustix::process::PTracer::Any);
        }
        let mut copies = Copies::new(KEPT_BUFFERS);
        for device in &devices {
            if let Some(fd) = copies.open(&**device)? {
                watch(&epoll, fd, DEVICES).map_err(os("epoll_ctl"))?;
            }
        }
        Ok(Self {
            capabilities: capabilities(&config, !devices.is_empty()),
            copies,
            devices: Devices(devices),
            here,
            listener,
            epoll,
            entries: Slab::new(),
            generation: 0,
            awake: Vec::new(),
            timed: Vec::new(),
            registrations: Registrations::new(epoch),
            table: Table::new().map_err(no_memory)?,
            exports: Exports::default(),
            ghosts: Vec::new(),
            haunted: HashSet::new(),
            quarantined: Vec::new(),
            completions: Completions::new(limits::MAX_OPERATIONS),
            foreign: Foreign::new(),
            pieces: Vec::with_capacity(limits::MAX_PIECES),
            stats: Stats::default(),
            cookie: Box::new(epoch),
            is_hot: false,
            unasked: 0,
            config,
        })
    }

    fn next_id(&mut self) -> PeerId {
        let generation = self.generation;
        self.generation = generation.wrapping_add(1);
        PeerId::new(self.entries.vacant_key() as u32, generation)
    }

    /// The connection to queue something on.
    fn open_connection(&mut self, peer: PeerId) -> Result<&mut Connection, Error> {
        match find(&mut self.entries, peer) {
            None => Err(Error::NoSuchPeer { peer }),
            Some(connection) if connection.is_finishing() => Err(Error::Finishing { peer }),
            Some(connection) => Ok(connection),
        }
    }

    /// Has the peer looked at by the next poll.
    fn wake(&mut self, peer: PeerId) {
        if let Some(connection) = find(&mut self.entries, peer)
            && !connection.is_awake
        {
            connection.is_awake = true;
            connection.unpark();
            self.awake.push(peer);
        }
    }

    fn watch_deadline(&mut self, peer: PeerId) {
        if let Some(connection) = find(&mut self.entries, peer)
            && !connection.is_timed
        {
            connection.is_timed = true;
            self.timed.push(peer);
        }
    }

    /// What both sides say of themselves.
    fn greeting(&self, staging_bytes: u32) -> Greeting {
        Greeting {
            staging_bytes,
            epoch: *self.cookie,
            cookie: std::ptr::from_ref(&*self.cookie).expose_provenance() as u64,
        }
    }

    /// Whether memory of other processes may be tried.
    fn foreign_wanted(&self) -> Result<(), String> {
        if self.config.foreign {
            return Ok(());
        }
        Err("the configuration says so".to_owned())
    }

    /// Sends a frame with `send`, which says whether there was room.
    #[inline]
    fn queue(
        &mut self,
        peer: PeerId,
        room: Room,
        send: impl FnOnce(&mut Connection) -> Result<bool, Closed>,
    ) -> Result<Posted, Error> {
        let connection = self.open_connection(peer)?;
        // Files go ahead of every message that could name them.
        let sent = connection.outbox.get_mut().flush(&connection.socket);
        let sent = if sent { send(connection) } else { Ok(false) };
        match sent {
            Ok(true) => {
                if connection.out.take_wake() {
                    connection.socket.ring();
                }
                return Ok(Posted::Done);
            }
            Ok(false) => connection.want(room),
            Err(why) => connection.fate = Some(why),
        }
        self.stats.busy += 1;
        self.wake(peer);
        Ok(Posted::Busy)
    }
}

impl Interface for ShmInterface {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn addresses(&self) -> Vec<Address> {
        let listener = self.listener.iter();
        listener.map(|listener| listener.address.clone()).collect()
    }

    fn connect(&mut self, address: &Address) -> Result<PeerId, Error> {
        let limit = self.config.max_peers;
        if self.entries.len() >= limit {
            return Err(Error::TooManyPeers { limit });
        }
        let name = self
            .here
            .socket(address)
            .map_err(|obstacle| Error::Unreachable {
                provider: NAME,
                address: address.clone(),
                reason: obstacle.to_string(),
            })?;
        let staging_bytes = self.config.staging_bytes;
        let (segment, file) = Segment::create(staging_bytes).map_err(no_memory)?;
        let table = self.table.file().as_fd().try_clone_to_owned();
        let socket = Socket::new().map_err(os("socket"))?;
        let (now, id) = (Instant::now(), self.next_id());
        let until = now + self.config.connect_timeout;
        let state = State::Dialing {
            name,
            greeting: self.greeting(staging_bytes),
            files: [file, table.map_err(os("dup"))?],
            until,
        };
        let mut connection = Connection::new(id, address.clone(), socket, segment, state);
        connection.deadline = Some(until);
        if let Err(error) = connection.dial(now) {
            connection.fate = Some(Closed::Io(error));
        }
        watch(&self.epoll, &connection.socket, data(id)).map_err(os("epoll_ctl"))?;
        self.entries.insert(Entry::Peer(Box::new(connection)));
        self.wake(id);
        self.watch_deadline(id);
        Ok(id)
    }

    fn send(&mut self, peer: PeerId, message: &[u8]) -> Result<Posted, Error> {
        let limit = limits::MAX_MESSAGE_BYTES;
        if message.len() > limit as usize {
            self.open_connection(peer)?;
            return Err(Error::TooLarge {
                what: "message",
                bytes: message.len() as u64,
                limit: limit.into(),
            });
        }
        let room = Room::of_message(message.len());
        let posted = self.queue(peer, room, |to| to.out.message(message))?;
        self.stats.messages_out += u64::from(posted == Posted::Done);
        Ok(posted)
    }

    fn post(
        &mut self,
        peer: PeerId,
        batch: Batch,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<Posted, Error> {
        let longest = self.open_connection(peer)?.out.longest();
        let limit = limits::MAX_BATCH_BYTES.min(longest);
        if batch.bytes > limit {
            return Err(Error::TooLarge {
                what: "batch",
                bytes: batch.bytes.into(),
                limit: limit.into(),
            });
        }
        let posted = self.queue(peer, room_of(batch), |to| {
            to.out.staged(Header::Batch(batch), fill)
        })?;
        self.stats.batches_out += u64::from(posted == Posted::Done);
        Ok(posted)
    }

    fn register(
        &mut self,
        index: u32,
        region: &Region,
        rights: Rights,
    ) -> Result<RegistrationId, Error> {
        let kind = region.kind();
        let has_stream = region.hold().domain().is_some();
        if !(kind.is_host_accessible() || has_stream) || region.len() > MAX_LEN {
            return Err(Error::Unsupported {
                provider: NAME,
                operation: Operation::Put,
                kind,
                reason: "neither the processor nor a stream of its device can reach it".to_owned(),
            });
        }
        // What was imported for reading cannot be written, whoever asks: a peer's call would fail halfway.
        if rights.has(Rights::WRITE) && !region.hold().is_writable() {
            return Err(Error::Unsupported {
                provider: NAME,
                operation: Operation::Put,
                kind,
                reason: "it was imported for reading only; without WRITE among the rights, peers can get it".to_owned(),
            });
        }
        self.open_stream(region)?;
        let known = self.registrations.len();
        let id = self.registrations.register(index, region, rights)?;
        if self.registrations.len() > known {
            let hold = region.hold();
            let (export, offset) = self.exports.begin(&hold, rights).unwrap_or_default();
            let place = Place {
                address: hold.address() as u64,
                export,
                offset,
            };
            let generation = self.table.open(id.slot(), region.len(), rights, place);
            debug_assert_eq!(generation, u64::from(id.generation()));
        }
        Ok(id)
    }

    fn deregister(&mut self, id: RegistrationId) -> Result<(), Error> {
        let Some(gone) = self.registrations.deregister(id)? else {
            return Ok(());
        };
        self.table.target.revoke(id.slot());
        self.wait_for_copies(Ticket::is_for_peer);
        if self.table.place(id.slot()).export != 0
            && let Some(name) = self.exports.end(&gone.hold, gone.rights)
        {
            for (_, entry) in &mut self.entries {
                if let Entry::Peer(connection) = entry {
                    let socket = &connection.socket;
                    connection.outbox.get_mut().retire(socket, name);
                }
            }
        }
        // Who was in it is no matter of the next one in this slot, however the wait ends.
        let is_haunted = self.haunted.remove(&id.slot());
        if self.wait_until_left(id.slot()) && !is_haunted {
            return Ok(());
        }
        // Nobody gets the memory as long as a peer that was stopped in the middle may go on.
        self.quarantined.push(gone.hold);
        Err(Error::Os {
            call: "waiting for a peer to leave the memory, which is kept from being used again,",
            cause: io::ErrorKind::TimedOut.into(),
        })
    }

    fn remote_key(&self, peer: PeerId, id: RegistrationId) -> Result<[u8; key::KEY_BYTES], Error> {
        let Some(Entry::Peer(connection)) = self.entries.get(peer.index() as usize) else {
            return Err(Error::NoSuchPeer { peer });
        };
        if connection.peer != peer {
            return Err(Error::NoSuchPeer { peer });
        }
        let mut key = self.registrations.key(id)?;
        let known = self.registrations.get(id).map_err(Error::Refused)?;
        let place = self.table.place(id.slot());
        key.address = place.address;
        if place.export != 0
            && let Some(fd) = self.exports.find(&known.hold, known.rights)
        {
            let mut outbox = connection.outbox.borrow_mut();
            // Without its file, the memory is reached in another way.
            if outbox.export(&connection.socket, place.export, fd) {
                (key.export, key.offset) = (place.export, place.offset);
            }
        }
        Ok(key.encode())
    }

    fn import(&mut self, peer: PeerId, key: &[u8]) -> Result<u32, Error> {
        let foreign = self.foreign_wanted();
        let connection = find(&mut self.entries, peer).ok_or(Error::NoSuchPeer { peer })?;
        let key = RemoteKey::decode(key)?;
        if connection.imports.len() >= limits::MAX_IMPORTS {
            return Err(Error::TooManyImports { peer });
        }
        // The file was sent before the key, so it is there.
        if key.export != 0
            && matches!(connection.state, State::Open { .. })
            && let Err(why) = connection.read_socket(&foreign)
        {
            connection.fate = Some(why);
        }
        let number = connection.imports.key(key);
        self.wake(peer);
        Ok(number)
    }

    fn put(
        &mut self,
        memory: &mut [Region],
        peer: PeerId,
        local: &[Pieces<'_>],
        remote: &[Pieces<'_>],
        token: Token,
    ) -> Result<Posted, Error> {
        let direction = Direction::Write;
        let job = Job {
            local,
            remote,
            direction,
        };
        self.operate(memory, peer, &job, token)
    }

    fn get(
        &mut self,
        memory: &mut [Region],
        peer: PeerId,
        local: &[Pieces<'_>],
        remote: &[Pieces<'_>],
        token: Token,
    ) -> Result<Posted, Error> {
        let direction = Direction::Read;
        let job = Job {
            local,
            remote,
            direction,
        };
        self.operate(memory, peer, &job, token)
    }

    fn map(&mut self, peer: PeerId, remote: u32) -> Result<Region, Error> {
        let connection = find(&mut self.entries, peer).ok_or(Error::NoSuchPeer { peer })?;
        let key = *connection.imports.get(remote)?;
        if !key.rights.has(Rights::MAP) {
            return Err(Error::Refused(Refusal::Rights));
        }
        if key.epoch != connection.epoch {
            return Err(Error::Refused(Refusal::Epoch));
        }
        let Some(access) = &mut connection.access else {
            return Err(Error::NoSuchPeer { peer });
        };
        let entered = access.entrant.enter(key.slot, key.generation.into());
        let _pass = entered.map_err(|_| Error::Refused(Refusal::Generation))?;
        access
            .table
            .admit(&key, key.len, Rights::MAP)
            .map_err(Error::Refused)?;
        let region = connection.imports.region(remote, &self.devices.0)?;
        self.stats.mapped_bytes += region.len();
        Ok(region)
    }

    fn flush(&mut self, peer: PeerId, token: Token) -> Result<Posted, Error> {
        let connection = find(&mut self.entries, peer).ok_or(Error::NoSuchPeer { peer })?;
        // What this side copies by itself is over when it has been posted.
        if !connection.staged.is_busy() {
            return Ok(Posted::Done);
        }
        if !self.completions.has_room() {
            return Ok(Posted::Busy);
        }
        self.completions.begin();
        connection.staged.flush(token);
        self.wake(peer);
        Ok(Posted::InFlight(token))
    }

    fn completion(&mut self) -> Option<Completion> {
        self.completions.take()
    }

    fn poll(&mut self, timeout: Option<Duration>, handler: &mut dyn Handler) -> Result<(), Error> {
        let no_time = timeout == Some(Duration::ZERO);
        // The clock is read when nothing was found at once.
        let mut started = None;
        loop {
            let mut callbacks = self.serve(handler);
            let is_done = callbacks > 0 || no_time || !self.completions.is_empty();
            if is_done {
                self.is_hot |= callbacks > 0;
                self.unasked += 1;
                if self.unasked >= MAX_UNASKED {
                    callbacks += self.ask(Some(Duration::ZERO), handler)?;
                    callbacks += self.serve(handler);
                    callbacks += self.expire(Instant::now(), handler);
                    self.is_hot |= callbacks > 0;
                }
                return Ok(());
            }
            let started = *started.get_or_insert_with(Instant::now);
            // A timeout too long for the clock is as good as none.
            let until = timeout.and_then(|timeout| started.checked_add(timeout));
            if self.is_hot && !self.awake.is_empty() {
                let spin = started + self.config.spin;
                if self.spin(until.map_or(spin, |until| until.min(spin)), handler) {
                    return Ok(());
                }
                self.is_hot = false;
            }
            let now = Instant::now();
            let wait = if self.park() {
                let next = self.next_deadline().into_iter().chain(until).min();
                next.map(|next| next.saturating_duration_since(now))
            } else {
                Some(Duration::ZERO)
            };
            callbacks += self.ask(wait, handler)?;
            callbacks += self.serve(handler);
            let now = Instant::now();
            callbacks += self.expire(now, handler);
            self.is_hot |= callbacks > 0;
            let is_over = until.is_some_and(|until| until <= now);
            if callbacks > 0 || is_over || !self.completions.is_empty() {
                return Ok(());
            }
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn arm(&mut self) -> Option<Duration> {
        self.unasked = MAX_UNASKED;
        if !self.completions.is_empty() || !self.park() {
            return Some(Duration::ZERO);
        }
        let next = self.next_deadline();
        next.map(|next| next.saturating_duration_since(Instant::now()))
    }

    fn close(&mut self, peer: PeerId) {
        if self.remove(peer) {
            debug!(provider = NAME, %peer, reason = "closed by this side", "closed");
        }
    }

    fn finish(&mut self, peer: PeerId) {
        let until = Instant::now() + self.config.finish_timeout;
        self.wait_for_copies(|ticket| ticket.peer == peer);
        let Some(connection) = find(&mut self.entries, peer) else {
            return;
        };
        connection.finish(until);
        let (completions, stats) = (&mut self.completions, &mut self.stats);
        connection.staged.end(peer, completions, stats);
        self.wake(peer);
        self.watch_deadline(peer);
    }

    fn path(&self, peer: PeerId) -> Option<Path> {
        let Some(Entry::Peer(connection)) = self.entries.get(peer.index() as usize) else {
            return None;
        };
        let foreign = match &connection.process {
            Ok(_) => "host and pinned memory is copied by process_vm_readv and process_vm_writev"
                .to_owned(),
            Err(reason) => {
                format!("host and pinned memory is copied twice, by both sides: {reason}")
            }
        };
        (connection.peer == peer).then(|| Path {
            provider: NAME,
            local: self.listener.as_ref().map(|it| it.address.clone()),
            peer: connection.address.clone(),
            why: format!(
                "shared memory is mapped and copied once, that of devices by a device; {foreign}"
            ),
            is_fallback: self.config.foreign && connection.process.is_err(),
        })
    }

    fn stats(&self) -> Stats {
        let open = self.entries.iter().filter_map(|(_, entry)| match entry {
            Entry::Peer(connection) => Some(connection.out.bytes),
            Entry::Guest(_) => None,
        });
        let mut stats = self.stats;
        stats.bytes_out += open.sum::<u64>();
        stats
    }
}

impl AsFd for ShmInterface {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// The connection that `peer` names, if it is still there.
fn find(entries: &mut Slab<Entry>, peer: PeerId) -> Option<&mut Connection> {
    match entries.get_mut(peer.index() as usize) {
        Some(Entry::Peer(connection)) if connection.peer == peer => Some(connection),
        _ => None,
    }
}

fn data(id: PeerId) -> u64 {
    u64::from(id.generation()) << 32 | u64::from(id.index())
}

fn watch(epoll: &OwnedFd, socket: impl AsFd, data: u64) -> io::Result<()> {
    let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
    Ok(epoll::add(
        epoll,
        socket,
        epoll::EventData::new_u64(data),
        flags,
    )?)
}

/// Has the system say when the socket takes packets again, or not any more. What fails here, the peer's next bell
/// makes up for.
fn watch_for_room(epoll: &OwnedFd, connection: &Connection, wanted: bool) {
    let mut flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
    if wanted {
        flags |= epoll::EventFlags::OUT;
    }
    let data = epoll::EventData::new_u64(data(connection.peer));
    let _ = epoll::modify(epoll, &connection.socket, data, flags);
}

/// A number that no other life of any process of this host has, in all likelihood; not 0.
fn draw_epoch() -> Result<u64, Error> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| os("getrandom")(error.into()))?;
    Ok(u64::from_le_bytes(bytes).max(1))
}

fn no_memory(error: RegionError) -> Error {
    os("mmap")(io::Error::other(error))
}

/// An [`Error::Os`] of `call`.
fn os(call: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |cause| Error::Os { call, cause }
}
