//! Who comes, and who goes.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use moai_transport::sync::gate::Hazard;
use moai_transport::{Closed, Handler, PeerId, limits};
use rustix::event::epoll;
use tracing::{debug, warn};

use super::{Entry, Ghost, Guest, LISTENER, ShmInterface, data, find, watch};
use crate::address::NAME;
use crate::connection::{Connection, State, unfit};
use crate::greeting::{Greeting, wrong};
use crate::segment::Segment;
use crate::socket::{MAX_PACKET_BYTES, Received};
use crate::table::PeerTable;

impl ShmInterface {
    pub(super) fn connected(&mut self, peer: PeerId, incoming: bool, handler: &mut dyn Handler) {
        let Some(connection) = find(&mut self.entries, peer) else {
            return;
        };
        match &connection.process {
            Err(reason) if self.config.foreign => {
                self.stats.fallbacks += 1;
                warn!(provider = NAME, %peer, reason, "memory that is not shared will be copied by both sides");
            }
            _ => debug!(provider = NAME, %peer, incoming, "connected"),
        }
        handler.connected(peer, incoming);
    }

    /// Takes in those who have come.
    pub(super) fn accept(&mut self) -> u64 {
        let now = Instant::now();
        for _ in 0..limits::ACCEPTS_PER_TURN {
            let Some(listener) = &mut self.listener else {
                break;
            };
            let Some(socket) = listener.accept(now) else {
                if listener.resting_until.is_some() {
                    let _ = epoll::delete(&self.epoll, &listener.socket);
                }
                break;
            };
            if self.entries.len() >= self.config.max_peers {
                self.turn_away("the table of peers is full");
                continue;
            }
            let id = self.next_id();
            if let Err(error) = watch(&self.epoll, &socket, data(id)) {
                self.turn_away(&error.to_string());
                continue;
            }
            let deadline = now + self.config.first_frame_timeout;
            self.entries.insert(Entry::Guest(Guest {
                id,
                socket,
                deadline,
            }));
            self.timed.push(id);
        }
        0
    }

    pub(super) fn turn_away(&mut self, reason: &str) {
        self.stats.rejected += 1;
        if self.stats.rejected == 1 {
            warn!(provider = NAME, reason, "turned away a connection");
        } else {
            debug!(provider = NAME, reason, "turned away a connection");
        }
    }

    /// A guest has said something: becomes a peer, or is gone.
    pub(super) fn welcome(&mut self, id: PeerId, handler: &mut dyn Handler) -> u64 {
        let key = id.index() as usize;
        let Some(Entry::Guest(guest)) = self.entries.get(key) else {
            return 0;
        };
        let (mut packet, mut fds) = ([0; MAX_PACKET_BYTES], Vec::new());
        let made = match guest.socket.receive(&mut packet, &mut fds) {
            Ok(Received::Nothing) => return 0,
            Ok(Received::Packet(bytes)) => self.take_in(&packet[..bytes], fds),
            Ok(Received::End) => Err(Closed::ByPeer),
            Err(error) => Err(Closed::Io(error)),
        };
        let answer = made.and_then(|made| {
            let file = self.table.file();
            let packet = self.greeting(0).encode();
            guest
                .socket
                .send(&packet, &[file.as_fd()])
                .map_err(Closed::Io)?;
            Ok(made)
        });
        let (greeting, segment, table) = match answer {
            Ok(made) => made,
            Err(why) => {
                debug!(provider = NAME, reason = %why, "a guest was sent away");
                self.entries.remove(key);
                self.stats.closed += 1;
                return 0;
            }
        };
        let Entry::Guest(Guest {
            socket, deadline, ..
        }) = self.entries.remove(key)
        else {
            return 0;
        };
        let address = self.here.guest(id);
        let state = State::Open { is_silent: true };
        let mut connection = Connection::new(id, address, socket, segment, state);
        connection.greeted(greeting, table, self.foreign_wanted());
        connection.deadline = Some(deadline);
        // It stands in the list since it came as a guest.
        connection.is_timed = true;
        let again = self.entries.insert(Entry::Peer(Box::new(connection)));
        debug_assert_eq!(
            again, key,
            "a slab gives the entry out again that was freed last"
        );
        self.stats.accepted += 1;
        self.connected(id, true, handler);
        self.wake(id);
        1
    }

    /// Checks what a guest has sent.
    pub(super) fn take_in(
        &self,
        packet: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<(Greeting, Segment, PeerTable), Closed> {
        let greeting = Greeting::decode(packet, false).map_err(Closed::Protocol)?;
        let [segment, table] = <[OwnedFd; 2]>::try_from(fds)
            .map_err(|fds| Closed::Protocol(wrong("descriptors", fds.len() as u64, "2")))?;
        let segment = Segment::open(segment, greeting.staging_bytes).map_err(unfit)?;
        let table = PeerTable::open(table).map_err(unfit)?;
        Ok((greeting, segment, table))
    }

    /// Ends entries that have taken too long.
    pub(super) fn expire(&mut self, now: Instant, handler: &mut dyn Handler) -> u64 {
        let (mut at, mut callbacks) = (0, 0);
        while let Some(&id) = self.timed.get(at) {
            let key = id.index() as usize;
            match self.entries.get_mut(key) {
                Some(Entry::Guest(guest)) if guest.id == id => {
                    if guest.deadline <= now {
                        debug!(provider = NAME, "a guest said nothing");
                        self.entries.remove(key);
                        self.stats.closed += 1;
                        self.timed.swap_remove(at);
                    } else {
                        at += 1;
                    }
                }
                Some(Entry::Peer(connection)) if connection.peer == id => {
                    match connection.deadline {
                        None => {
                            connection.is_timed = false;
                            self.timed.swap_remove(at);
                        }
                        Some(deadline) if deadline <= now => {
                            // What has come from a peer came in time, though nobody has looked yet.
                            let limit = self.config.first_frame_timeout;
                            match connection.expired(now, limit) {
                                Some(why) => {
                                    callbacks += self.end(id, why, handler);
                                    self.timed.swap_remove(at);
                                }
                                None => at += 1,
                            }
                        }
                        Some(_) => at += 1,
                    }
                }
                _ => {
                    self.timed.swap_remove(at);
                }
            }
        }
        if let Some(listener) = &mut self.listener
            && listener.resting_until.is_some_and(|until| until <= now)
        {
            listener.resting_until = None;
            let _ = watch(&self.epoll, &listener.socket, LISTENER);
        }
        self.ghosts.retain(|ghost| !ghost.socket.is_lost());
        callbacks
    }

    /// The next moment at which something has to be done without an event.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let entries =
            self.timed
                .iter()
                .filter_map(|id| match self.entries.get(id.index() as usize)? {
                    Entry::Guest(guest) if guest.id == *id => Some(guest.deadline),
                    Entry::Peer(connection) if connection.peer == *id => connection.deadline,
                    _ => None,
                });
        let rest = self.listener.as_ref().and_then(|it| it.resting_until);
        entries.chain(rest).min()
    }

    pub(super) fn end(&mut self, peer: PeerId, why: Closed, handler: &mut dyn Handler) -> u64 {
        if !self.remove(peer) {
            return 0;
        }
        debug!(provider = NAME, %peer, reason = %why, "closed");
        handler.closed(peer, why);
        1
    }

    /// Drops the connection; false for a stale id.
    pub(super) fn remove(&mut self, peer: PeerId) -> bool {
        if find(&mut self.entries, peer).is_none() {
            return false;
        }
        self.wait_for_copies(|ticket| ticket.peer == peer);
        let Entry::Peer(mut connection) = self.entries.remove(peer.index() as usize) else {
            return false;
        };
        let (completions, stats) = (&mut self.completions, &mut self.stats);
        connection.staged.end(peer, completions, stats);
        stats.bytes_out += connection.out.bytes;
        stats.closed += 1;
        // From here on it is refused; but it may be inside.
        connection.peer_door.shut();
        if !connection.is_lost && !connection.socket.is_lost() {
            connection.socket.end();
            self.make_room_for_a_ghost();
            self.ghosts.push(Ghost {
                hazards: connection.peer_hazards.clone(),
                socket: connection.socket,
            });
        }
        true
    }

    /// One that keeps to the protocol is gone within milliseconds. Of others there may be as many as there are peers;
    /// what more of them are in is not used again.
    fn make_room_for_a_ghost(&mut self) {
        if self.ghosts.len() < self.config.max_peers {
            return;
        }
        // Whoever was outside after its door was shut is so for good.
        self.ghosts.retain(|ghost| {
            let mut slots = ghost.hazards.each().into_iter().filter_map(Hazard::slot);
            !ghost.socket.is_lost() && slots.next().is_some()
        });
        if self.ghosts.len() >= self.config.max_peers {
            let oldest = self.ghosts.remove(0);
            let slots = oldest
                .hazards
                .each()
                .into_iter()
                .filter_map(Hazard::slot)
                // What it claims to be in may be nothing of ours.
                .filter(|slot| self.registrations.in_slot(*slot).is_some());
            let before = self.haunted.len();
            self.haunted.extend(slots);
            if self.haunted.len() > before {
                warn!(
                    provider = NAME,
                    slots = self.haunted.len(),
                    "a peer that was dropped has not left registered memory, which will be kept"
                );
            }
        }
    }
}
