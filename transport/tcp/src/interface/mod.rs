//! The table of connections, for whoever asks something of it.
//!
//! - `arrivals`: connections that come or go.
//! - `turns`: whose turn it is, which the system's events decide.
//! - `deadlines`: what has to be done at a time, without an event.
//! - `security`: who is let in, and how many may be asking at a time.
//! - `posting`: what is posted, from its check to its queue.

mod arrivals;
mod deadlines;
mod posting;
mod security;
mod turns;

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll};
use moai_memory::{MemoryKind, Region};
use moai_transport::key::KEY_BYTES;
use moai_transport::wire::{Header, Lane};
use moai_transport::{
    Address, Batch, Capabilities, Completion, Error, Handler, Identity, Interface, Operation, Path,
    PeerId, Pieces, Posted, RegistrationId, RemoteKey, Rights, Stats, Token, limits,
};
use slab::Slab;
use tracing::debug;

use crate::capabilities::capabilities;
use crate::connection::Connection;
use crate::copies::Ticket;
use crate::inbound::Role;
use crate::listener::Listener;
use crate::location::{socket_address, tcp_address};
use crate::one_sided::OneSided;
use crate::operations::Kind;
use crate::secure::{Credentials, Session};
use crate::stream::Stream;
use crate::{NAME, TcpConfig};
use security::protection;

/// TCP connections of one thread.
///
/// # Turns
///
/// A connection with something to do stands in the queue `ready` once. A poll gives each of them one
/// turn, bounded by [`limits::READ_TURN_BYTES`] and [`limits::WRITE_TURN_BYTES`]; one that is not done
/// goes to the end. While the queue is not empty, a poll looks for events but does not wait for them.
///
/// # What leaves when
///
/// What is queued leaves with the next poll, and without one as soon as
/// [`limits::EAGER_WRITE_BYTES`] have gathered or the queue is full.
#[derive(Debug)]
pub struct TcpInterface {
    pub(crate) config: TcpConfig,
    capabilities: Capabilities,
    pub(crate) poll: Poll,
    events: Events,
    listener: Option<Listener>,
    /// What peers are told to connect to.
    advertised: Option<Address>,
    /// What this side proves itself with, if it does.
    pub(crate) credentials: Option<Credentials>,
    /// When a peer that was not let in was last warned of.
    warned: Option<Instant>,
    pub(crate) connections: Slab<Connection>,
    /// Generation of the next connection. Counted for the whole interface, so an id is used again
    /// only after 2³² connections.
    generation: u32,
    /// Connections with something newly queued.
    dirty: Vec<PeerId>,
    /// Connections with something to do.
    pub(crate) ready: VecDeque<PeerId>,
    /// Connections that may have a deadline. Few: those that talk have none.
    timed: Vec<PeerId>,
    pub(crate) one_sided: OneSided,
    /// What sockets are read into.
    buffer: Vec<u8>,
    /// When to look for connections that hold memory which they have not used for a while.
    pub(crate) sweep: Option<Instant>,
    /// When the system last reported something.
    last_event: Option<Instant>,
    /// Peers that there are, and connections that have not said whose they are.
    pub(crate) peers: usize,
    pub(crate) stats: Stats,
}

/// The listener's event token; connections use their table index.
const LISTENER: mio::Token = mio::Token(usize::MAX);

impl TcpInterface {
    /// Opens an interface; it listens if `config` says so.
    ///
    /// # Errors
    ///
    /// - [`Error::Config`] if a knob is out of range.
    /// - [`Error::Credentials`] if a certificate or key cannot be used.
    /// - [`Error::Os`] if the address cannot be listened on, or the system has no descriptors left.
    pub fn new(config: TcpConfig) -> Result<Self, Error> {
        config.check()?;
        let credentials = Credentials::load(&config.security)?;
        let poll = Poll::new().map_err(os("epoll_create"))?;
        let mut listener = config
            .listen
            .map(|address| Listener::bind(address, config.ports.clone()))
            .transpose()
            .map_err(os("bind"))?;
        let advertised = listener
            .as_ref()
            .map(|listener| advertised(listener.address, config.advertise))
            .transpose()?;
        if let Some(listener) = &mut listener {
            poll.registry()
                .register(&mut listener.socket, LISTENER, Interest::READABLE)
                .map_err(os("epoll_ctl"))?;
        }
        let lanes = config.lanes as usize;
        Ok(Self {
            poll,
            // Everyone's at once: whoever has sent in time must not be taken for idle because the
            // event is still with the system.
            events: Events::with_capacity(config.max_peers * lanes + 1),
            capabilities: capabilities(&config),
            listener,
            advertised,
            credentials,
            warned: None,
            sweep: None,
            last_event: None,
            connections: Slab::new(),
            generation: 0,
            dirty: Vec::new(),
            ready: VecDeque::new(),
            timed: Vec::new(),
            one_sided: OneSided::new(draw(), config.lanes),
            buffer: Vec::new(),
            peers: 0,
            stats: Stats::default(),
            config,
        })
    }

    /// Where the interface listens, if it does.
    #[must_use]
    pub fn listening(&self) -> Option<SocketAddr> {
        self.listener.as_ref().map(|listener| listener.address)
    }

    /// Puts a connection into the table, where `make` builds it from its id, and asks for its events.
    pub(crate) fn insert(
        &mut self,
        mut socket: TcpStream,
        session: Option<Session>,
        make: impl FnOnce(Stream, PeerId) -> Connection,
    ) -> io::Result<PeerId> {
        let entry = self.connections.vacant_entry();
        let peer = PeerId::new(entry.key() as u32, self.generation);
        self.poll.registry().register(
            &mut socket,
            mio::Token(entry.key()),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        self.generation = self.generation.wrapping_add(1);
        entry.insert(make(Stream::new(socket, session), peer));
        self.watch_deadline(peer);
        Ok(peer)
    }

    pub(crate) fn side_of(&self, peer: PeerId) -> Result<usize, Error> {
        match self.connections.get(peer.index() as usize) {
            Some(Connection {
                peer: of,
                role: Role::First { side, .. },
                ..
            }) if *of == peer => Ok(*side),
            _ => Err(Error::NoSuchPeer { peer }),
        }
    }
}

impl Interface for TcpInterface {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn addresses(&self) -> Vec<Address> {
        self.advertised.iter().cloned().collect()
    }

    fn connect(&mut self, address: &Address) -> Result<PeerId, Error> {
        let address = socket_address(address)?;
        let limit = self.config.max_peers;
        if self.peers >= limit {
            return Err(Error::TooManyPeers { limit });
        }
        let peer = self.start_connecting(address)?;
        let side = self.one_sided.add_side(peer);
        self.peers += 1;
        if let Some(connection) = find(&mut self.connections, peer) {
            connection.role = Role::First {
                side,
                incoming: false,
            };
            if self.config.lanes > 1 {
                self.one_sided.sides[side].name = draw();
                let hello = Lane {
                    peer: self.one_sided.sides[side].name,
                    lane: 0,
                    epoch: 0,
                };
                let hello = Header::Join(hello).encode();
                connection.dues.answers.extend_from_slice(&hello);
            }
        }
        Ok(peer)
    }

    fn send(&mut self, peer: PeerId, message: &[u8]) -> Result<Posted, Error> {
        self.open_connection(peer)?;
        let limit = limits::MAX_MESSAGE_BYTES;
        if message.len() > limit as usize {
            return Err(Error::TooLarge {
                what: "message",
                bytes: message.len() as u64,
                limit: limit.into(),
            });
        }
        let bytes = message.len() as u32;
        self.queue(peer, Header::Message { bytes }, &mut |room| {
            room.copy_from_slice(message);
        })
    }

    fn post(
        &mut self,
        peer: PeerId,
        batch: Batch,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<Posted, Error> {
        let limit = self.open_connection(peer)?.outbound.max_batch_bytes();
        if batch.bytes > limit {
            return Err(Error::TooLarge {
                what: "batch",
                bytes: batch.bytes.into(),
                limit: limit.into(),
            });
        }
        self.queue(peer, Header::Batch(batch), fill)
    }

    fn register(
        &mut self,
        index: u32,
        region: &Region,
        rights: Rights,
    ) -> Result<RegistrationId, Error> {
        let hold = region.hold();
        // What was imported for reading cannot be written, whoever asks.
        if rights.has(Rights::WRITE) && !hold.is_writable() {
            return Err(unsupported(rights, region.kind()));
        }
        if region.host_bytes().is_none() {
            if hold.domain().is_none() {
                return Err(unsupported(rights, region.kind()));
            }
            self.one_sided.copies.open(&hold, self.poll.registry())?;
        }
        self.one_sided.register(index, region, rights)
    }

    fn deregister(&mut self, id: RegistrationId) -> Result<(), Error> {
        let known = self.one_sided.registrations.get(id);
        let on_device = known.is_ok_and(|known| known.hold.domain().is_some());
        if self.one_sided.deregister(id)? {
            if on_device {
                self.wait_for_copies(Ticket::is_for_peer);
            }
            for (_, connection) in &mut self.connections {
                if connection.reads_from(id.slot()) {
                    connection.fail();
                    if !connection.is_ready {
                        connection.is_ready = true;
                        self.ready.push_back(connection.peer);
                    }
                }
            }
        }
        Ok(())
    }

    fn remote_key(&self, peer: PeerId, id: RegistrationId) -> Result<[u8; KEY_BYTES], Error> {
        self.side_of(peer)?;
        Ok(self.one_sided.registrations.key(id)?.encode())
    }

    fn import(&mut self, peer: PeerId, key: &[u8]) -> Result<u32, Error> {
        let side = self.side_of(peer)?;
        let key = RemoteKey::decode(key)?;
        let keys = &mut self.one_sided.sides[side].keys;
        if let Some(known) = keys.iter().position(|known| *known == key) {
            return Ok(known as u32);
        }
        if keys.len() >= limits::MAX_IMPORTS {
            return Err(Error::TooManyImports { peer });
        }
        keys.push(key);
        Ok(keys.len() as u32 - 1)
    }

    fn put(
        &mut self,
        memory: &mut [Region],
        peer: PeerId,
        local: &[Pieces<'_>],
        remote: &[Pieces<'_>],
        token: Token,
    ) -> Result<Posted, Error> {
        self.operate(Kind::Put, memory, peer, [local, remote], token)
    }

    fn get(
        &mut self,
        memory: &mut [Region],
        peer: PeerId,
        local: &[Pieces<'_>],
        remote: &[Pieces<'_>],
        token: Token,
    ) -> Result<Posted, Error> {
        for list in local {
            if let Some(region) = memory.get_mut(list.region as usize)
                && !can_be_written(region)
            {
                return Err(unsupported(Rights::WRITE, region.kind()));
            }
        }
        self.operate(Kind::Get, memory, peer, [local, remote], token)
    }

    fn map(&mut self, peer: PeerId, remote: u32) -> Result<Region, Error> {
        let side = self.side_of(peer)?;
        let key = self.one_sided.sides[side].keys.get(remote as usize);
        let key = key.ok_or(Error::NotImported { region: remote })?;
        Err(Error::Unsupported {
            provider: NAME,
            operation: Operation::Map,
            kind: key.kind,
            reason: "memory of another host cannot be mapped".to_owned(),
        })
    }

    fn flush(&mut self, peer: PeerId, token: Token) -> Result<Posted, Error> {
        let side = self.side_of(peer)?;
        let before = self.one_sided.in_flight(side);
        if before == 0 {
            return Ok(Posted::Done);
        }
        if !self.one_sided.completions.has_room() {
            self.stats.busy += 1;
            return Ok(Posted::Busy);
        }
        let kind = Kind::Flush(before);
        let index = self.one_sided.operations.begin(kind, peer, token, 0);
        self.one_sided.begun(side, index);
        Ok(Posted::InFlight(token))
    }

    fn completion(&mut self) -> Option<Completion> {
        self.one_sided.completions.take()
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.registry().as_fd()
    }

    fn arm(&mut self) -> Option<Duration> {
        if !self.dirty.is_empty() || !self.one_sided.completions.is_empty() {
            return Some(Duration::ZERO);
        }
        self.pause(Instant::now())
    }

    fn poll(&mut self, timeout: Option<Duration>, handler: &mut dyn Handler) -> Result<(), Error> {
        let mut now = Instant::now();
        // A timeout too long for the clock is as good as none.
        let until = timeout.and_then(|timeout| now.checked_add(timeout));
        loop {
            self.flush_dirty(handler);
            let left = until.map(|until| until.saturating_duration_since(now));
            let spinning = self
                .last_event
                .is_some_and(|last| now - last < self.config.spin);
            let wait = if self.one_sided.completions.is_empty() && !spinning {
                self.pause(now).into_iter().chain(left).min()
            } else {
                Some(Duration::ZERO)
            };
            self.wait(wait)?;
            self.take_copies();
            now = Instant::now();
            let callbacks = self.accept(now, handler)
                + self.give_turns(now, handler)
                + self.expire(now, handler);
            self.sweep(now);
            let ended = !self.one_sided.completions.is_empty();
            if callbacks > 0 || ended || until.is_some_and(|until| until <= now) {
                return Ok(());
            }
        }
    }

    fn close(&mut self, peer: PeerId) {
        self.wait_for_copies_of(peer);
        if self.remove(peer) {
            debug!(provider = NAME, %peer, reason = "closed by this side", "closed");
        }
    }

    fn finish(&mut self, peer: PeerId) {
        self.wait_for_copies_of(peer);
        let limit = self.config.finish_timeout;
        let Some(connection) = first(&mut self.connections, peer) else {
            return;
        };
        connection.finish(Instant::now(), limit);
        if !connection.is_dirty {
            connection.is_dirty = true;
            self.dirty.push(peer);
        }
        if let Role::First { side, .. } = connection.role {
            self.one_sided.end_all(side, &mut self.stats);
            for &lane in &self.one_sided.sides[side].lanes {
                self.connections[lane as usize].forget_pieces();
            }
        }
        self.watch_deadline(peer);
    }

    fn path(&self, peer: PeerId) -> Option<Path> {
        let connection = self.connections.get(peer.index() as usize)?;
        let is_peer = matches!(connection.role, Role::First { .. }) && connection.peer == peer;
        is_peer.then(|| Path {
            provider: NAME,
            local: connection.stream.socket.local_addr().ok().map(tcp_address),
            peer: tcp_address(connection.address),
            why: format!(
                "bytes go through sockets, from regions into regions where pieces are long, {}{}",
                protection(connection),
                if self.one_sided.copies.are_made() {
                    "; those of device memory by way of staging buffers"
                } else {
                    ""
                }
            ),
            is_fallback: false,
        })
    }

    fn identity(&self, peer: PeerId) -> Option<Identity> {
        let connection = self.connections.get(peer.index() as usize)?;
        let is_it = connection.peer == peer;
        connection.identity().filter(|_| is_it).cloned()
    }

    fn stats(&self) -> Stats {
        self.stats
    }
}

/// The connection that `peer` names, if it is still there.
pub(crate) fn find(connections: &mut Slab<Connection>, peer: PeerId) -> Option<&mut Connection> {
    connections
        .get_mut(peer.index() as usize)
        .filter(|connection| connection.peer == peer)
}

/// As [`find`], of those that stand for a peer.
fn first(connections: &mut Slab<Connection>, peer: PeerId) -> Option<&mut Connection> {
    find(connections, peer).filter(|connection| matches!(connection.role, Role::First { .. }))
}

/// What peers are told, of an interface that listens at `address`.
fn advertised(address: SocketAddr, advertise: Option<SocketAddr>) -> Result<Address, Error> {
    let mut told = advertise.unwrap_or(address);
    if told.port() == 0 {
        told.set_port(address.port());
    }
    if told.ip().is_unspecified() {
        return Err(Error::Unadvertised {
            provider: NAME,
            address: tcp_address(told),
        });
    }
    Ok(tcp_address(told))
}

/// A number that nobody can guess: each `RandomState` is keyed by the system's randomness.
fn draw() -> u64 {
    RandomState::new().build_hasher().finish().max(1)
}

/// Whether something can land in a region. Not by a hold where there is another way: that would be counted.
fn can_be_written(region: &mut Region) -> bool {
    if region.host_bytes().is_some() {
        region.host_bytes_mut().is_some()
    } else {
        region.hold().is_writable()
    }
}

pub(crate) fn unsupported(rights: Rights, kind: MemoryKind) -> Error {
    Error::Unsupported {
        provider: NAME,
        operation: if rights.has(Rights::WRITE) {
            Operation::Put
        } else {
            Operation::Get
        },
        kind,
        reason: "neither the processor nor a stream that we know of reaches it".to_owned(),
    }
}

/// An [`Error::Os`] of `call`.
pub(crate) fn os(call: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |cause| Error::Os { call, cause }
}
