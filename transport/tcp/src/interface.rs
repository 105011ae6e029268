//! The table of connections, and whose turn it is.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use moai_transport::wire::Header;
use moai_transport::{
    Batch, Closed, Error, Handler, Interface, Path, PeerId, Posted, Stats, limits,
};
use slab::Slab;
use tracing::{debug, warn};

use crate::TcpConfig;
use crate::connection::{Connection, Turn};
use crate::inbound::Context;
use crate::listener::Listener;

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
    config: TcpConfig,
    poll: Poll,
    events: Events,
    listener: Option<Listener>,
    connections: Slab<Connection>,
    /// Generation of the next connection. Counted for the whole interface, so an id is used again
    /// only after 2³² connections.
    generation: u32,
    /// Connections with something newly queued.
    dirty: Vec<PeerId>,
    /// Connections with something to do.
    ready: VecDeque<PeerId>,
    /// Connections that may have a deadline. Few: those that talk have none.
    timed: Vec<PeerId>,
    stats: Stats,
}

/// Name of the provider.
const NAME: &str = "tcp";

/// The listener's event token; connections use their table index.
const LISTENER: Token = Token(usize::MAX);

impl TcpInterface {
    /// Opens an interface; it listens if `config` says so.
    ///
    /// # Errors
    ///
    /// - [`Error::Config`] if a knob is out of range.
    /// - [`Error::Os`] if the address cannot be listened on, or the system has no descriptors left.
    pub fn new(config: TcpConfig) -> Result<Self, Error> {
        config.check()?;
        let poll = Poll::new().map_err(os("epoll_create"))?;
        let mut listener = config
            .listen
            .map(Listener::bind)
            .transpose()
            .map_err(os("bind"))?;
        if let Some(listener) = &mut listener {
            poll.registry()
                .register(&mut listener.socket, LISTENER, Interest::READABLE)
                .map_err(os("epoll_ctl"))?;
        }
        Ok(Self {
            poll,
            // Everyone's at once: whoever has sent in time must not be taken for idle because the
            // event is still with the system.
            events: Events::with_capacity(config.max_peers + 1),
            config,
            listener,
            connections: Slab::new(),
            generation: 0,
            dirty: Vec::new(),
            ready: VecDeque::new(),
            timed: Vec::new(),
            stats: Stats::default(),
        })
    }

    /// Puts a connection into the table, where `make` builds it from its id, and asks for its events.
    fn insert(
        &mut self,
        mut socket: TcpStream,
        make: impl FnOnce(TcpStream, PeerId) -> Connection,
    ) -> io::Result<PeerId> {
        let entry = self.connections.vacant_entry();
        let peer = PeerId::new(entry.key() as u32, self.generation);
        self.poll.registry().register(
            &mut socket,
            Token(entry.key()),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        self.generation = self.generation.wrapping_add(1);
        entry.insert(make(socket, peer));
        self.watch_deadline(peer);
        Ok(peer)
    }

    fn connection(&mut self, peer: PeerId) -> Option<&mut Connection> {
        find(&mut self.connections, peer)
    }

    /// The connection to queue something on.
    fn open_connection(&mut self, peer: PeerId) -> Result<&mut Connection, Error> {
        match find(&mut self.connections, peer) {
            None => Err(Error::NoSuchPeer { peer }),
            Some(connection) if connection.is_finishing() => Err(Error::Finishing { peer }),
            Some(connection) => Ok(connection),
        }
    }

    /// Queues a frame whose length was checked. If there is no room, writes what is there and tries
    /// again.
    fn queue(
        &mut self,
        peer: PeerId,
        header: Header,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<Posted, Error> {
        let Some(connection) = find(&mut self.connections, peer) else {
            return Err(Error::NoSuchPeer { peer });
        };
        if !connection.outbound.takes(header) {
            connection.flush(&mut self.stats);
        }
        let queued = connection.outbound.queue(header, fill);
        if connection.outbound.queued_bytes() >= limits::EAGER_WRITE_BYTES {
            connection.flush(&mut self.stats);
        }
        if !connection.is_dirty {
            connection.is_dirty = true;
            self.dirty.push(peer);
        }
        if queued {
            Ok(Posted::Done)
        } else {
            self.stats.busy += 1;
            Ok(Posted::Busy)
        }
    }

    fn watch_deadline(&mut self, peer: PeerId) {
        if let Some(connection) = find(&mut self.connections, peer)
            && !connection.is_timed
        {
            connection.is_timed = true;
            self.timed.push(peer);
        }
    }

    /// Writes what has been queued since the last poll.
    fn flush_dirty(&mut self) {
        for peer in self.dirty.drain(..) {
            let Some(connection) = find(&mut self.connections, peer) else {
                continue;
            };
            connection.is_dirty = false;
            connection.flush(&mut self.stats);
            if connection.wants_turn() && !connection.is_ready {
                connection.is_ready = true;
                self.ready.push_back(peer);
            }
        }
    }

    /// Asks the system for events, for at most `timeout`.
    fn wait(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        self.stats.waits += 1;
        if let Err(error) = self.poll.poll(&mut self.events, timeout) {
            if error.kind() == io::ErrorKind::Interrupted {
                return Ok(());
            }
            return Err(os("epoll_wait")(error));
        }
        for event in &self.events {
            if event.token() == LISTENER {
                if let Some(listener) = &mut self.listener {
                    listener.note();
                }
            } else if let Some(connection) = self.connections.get_mut(event.token().0) {
                connection.note(event);
                if !connection.is_ready {
                    connection.is_ready = true;
                    self.ready.push_back(connection.peer);
                }
            }
        }
        Ok(())
    }

    /// Takes in those who have connected to us.
    fn accept(&mut self, now: Instant, handler: &mut dyn Handler) -> u64 {
        let mut callbacks = 0;
        for _ in 0..limits::ACCEPTS_PER_TURN {
            let Some(listener) = &mut self.listener else {
                break;
            };
            if !listener.is_ready(now) {
                break;
            }
            let Some((socket, address)) = listener.accept(now) else {
                break;
            };
            if self.connections.len() >= self.config.max_peers {
                self.turn_away(address, "the table of peers is full");
                continue;
            }
            let staging_bytes = self.config.staging_bytes;
            let deadline = now + self.config.first_frame_timeout;
            let inserted = self.insert(socket, |socket, peer| {
                Connection::accepted(socket, peer, address, staging_bytes, deadline)
            });
            match inserted {
                Ok(peer) => {
                    self.stats.accepted += 1;
                    debug!(provider = NAME, %peer, %address, "accepted");
                    handler.connected(peer, true);
                    callbacks += 1;
                }
                Err(error) => self.turn_away(address, &error.to_string()),
            }
        }
        callbacks
    }

    fn turn_away(&mut self, address: SocketAddr, reason: &str) {
        self.stats.rejected += 1;
        if self.stats.rejected == 1 {
            warn!(provider = NAME, %address, reason, "turned away a connection");
        } else {
            debug!(provider = NAME, %address, reason, "turned away a connection");
        }
    }

    /// Gives every connection that is ready one turn.
    fn give_turns(&mut self, now: Instant, handler: &mut dyn Handler) -> u64 {
        let mut callbacks = 0;
        for _ in 0..self.ready.len() {
            let Some(peer) = self.ready.pop_front() else {
                break;
            };
            let Some(connection) = find(&mut self.connections, peer) else {
                continue;
            };
            connection.is_ready = false;
            let mut context = Context {
                handler,
                stats: &mut self.stats,
                callbacks: 0,
            };
            let turn = connection.turn(now, self.config.finish_timeout, &mut context);
            callbacks += context.callbacks;
            match turn {
                Turn::Rest => {}
                Turn::Again => {
                    connection.is_ready = true;
                    self.ready.push_back(peer);
                }
                Turn::End(why) => {
                    self.end(peer, why, handler);
                    callbacks += 1;
                    continue;
                }
            }
            if connection.deadline().is_some() {
                self.watch_deadline(peer);
            }
        }
        callbacks
    }

    /// Ends connections that have taken too long. What has arrived from a peer counts as having come
    /// in time, so one that waits for its turn is left alone.
    fn expire(&mut self, now: Instant, handler: &mut dyn Handler) -> u64 {
        let mut callbacks = 0;
        let mut at = 0;
        while let Some(&peer) = self.timed.get(at) {
            let connection = find(&mut self.connections, peer);
            let Some((connection, deadline)) =
                connection.and_then(|connection| connection.deadline().map(|at| (connection, at)))
            else {
                if let Some(connection) = find(&mut self.connections, peer) {
                    connection.is_timed = false;
                }
                self.timed.swap_remove(at);
                continue;
            };
            if deadline <= now && !connection.is_ready {
                let why = connection.expired(self.config.first_frame_timeout);
                self.end(peer, why, handler);
                callbacks += 1;
            } else {
                at += 1;
            }
        }
        callbacks
    }

    /// The next moment at which something has to be done without an event.
    fn next_deadline(&self) -> Option<Instant> {
        let deadlines = self.timed.iter().filter_map(|peer| {
            let connection = self.connections.get(peer.index() as usize)?;
            connection.deadline().filter(|_| connection.peer == *peer)
        });
        let rest = self.listener.as_ref().and_then(Listener::resting_until);
        deadlines.chain(rest).min()
    }

    fn end(&mut self, peer: PeerId, why: Closed, handler: &mut dyn Handler) {
        if self.remove(peer) {
            debug!(provider = NAME, %peer, reason = %why, "closed");
            handler.closed(peer, why);
        }
    }

    /// Drops the connection and its socket; false for a stale id.
    fn remove(&mut self, peer: PeerId) -> bool {
        if self.connection(peer).is_none() {
            return false;
        }
        let mut connection = self.connections.remove(peer.index() as usize);
        // Closing the descriptor also ends its registration, so a failure here changes nothing.
        let _ = self.poll.registry().deregister(&mut connection.socket);
        self.stats.closed += 1;
        true
    }
}

impl Interface for TcpInterface {
    fn name(&self) -> &'static str {
        NAME
    }

    fn local_address(&self) -> Option<SocketAddr> {
        self.listener.as_ref().map(|listener| listener.address)
    }

    fn connect(&mut self, address: SocketAddr) -> Result<PeerId, Error> {
        let limit = self.config.max_peers;
        if self.connections.len() >= limit {
            return Err(Error::TooManyPeers { limit });
        }
        let socket = TcpStream::connect(address).map_err(os("connect"))?;
        let staging_bytes = self.config.staging_bytes;
        let deadline = Instant::now() + self.config.connect_timeout;
        self.insert(socket, |socket, peer| {
            Connection::connecting(socket, peer, address, staging_bytes, deadline)
        })
        .map_err(os("epoll_ctl"))
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

    fn poll(&mut self, timeout: Option<Duration>, handler: &mut dyn Handler) -> Result<(), Error> {
        let mut now = Instant::now();
        // A timeout too long for the clock is as good as none.
        let until = timeout.and_then(|timeout| now.checked_add(timeout));
        loop {
            self.flush_dirty();
            let listening = self.listener.as_ref().is_some_and(|it| it.is_ready(now));
            let wait = if !self.ready.is_empty() || listening {
                Some(Duration::ZERO)
            } else {
                let next = self.next_deadline().into_iter().chain(until).min();
                next.map(|next| next.saturating_duration_since(now))
            };
            self.wait(wait)?;
            now = Instant::now();
            let callbacks = self.accept(now, handler)
                + self.give_turns(now, handler)
                + self.expire(now, handler);
            if callbacks > 0 || until.is_some_and(|until| until <= now) {
                return Ok(());
            }
        }
    }

    fn close(&mut self, peer: PeerId) {
        if self.remove(peer) {
            debug!(provider = NAME, %peer, reason = "closed by this side", "closed");
        }
    }

    fn finish(&mut self, peer: PeerId) {
        let limit = self.config.finish_timeout;
        let Some(connection) = find(&mut self.connections, peer) else {
            return;
        };
        connection.finish(Instant::now(), limit);
        if !connection.is_dirty {
            connection.is_dirty = true;
            self.dirty.push(peer);
        }
        self.watch_deadline(peer);
    }

    fn path(&self, peer: PeerId) -> Option<Path> {
        let connection = self.connections.get(peer.index() as usize)?;
        (connection.peer == peer).then(|| Path {
            provider: NAME,
            local: connection.socket.local_addr().ok(),
            peer: connection.address,
            why: "the only provider so far; batches are copied once into staging memory and read \
                  into regions by the system, neither authenticated nor encrypted"
                .to_owned(),
        })
    }

    fn stats(&self) -> Stats {
        self.stats
    }
}

/// The connection that `peer` names, if it is still there.
fn find(connections: &mut Slab<Connection>, peer: PeerId) -> Option<&mut Connection> {
    connections
        .get_mut(peer.index() as usize)
        .filter(|connection| connection.peer == peer)
}

/// An [`Error::Os`] of `call`.
fn os(call: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |cause| Error::Os { call, cause }
}
