//! The further connections of a peer.
//!
//! The side that connects sends a join on its first connection: a name that it has drawn, which nobody can guess.
//! The other side answers how many more it takes, and its epoch; so many are then opened, each of which says the
//! name, the epoch and its number before anything else. Whoever gets one of them wrong is dropped.
//!
//! So an interface that takes several lanes knows only from the first frame of a connection whether it is a peer, and
//! tells its handler then. Whoever has one lane says nothing of lanes.
//!
//! A peer is lost with any of its lanes, but not before what has arrived on the first one was handed over.

use mio::net::TcpStream;
use moai_transport::wire::{Header, Lane};
use moai_transport::{Error, Handler, PeerId};
use std::net::SocketAddr;
use std::time::Instant;
use tracing::debug;

use crate::NAME;
use crate::connection::Connection;
use crate::inbound::Role;
use crate::interface::{TcpInterface, find, os};

impl TcpInterface {
    /// A connection whose first frame says what it is. Returns the callbacks made.
    pub(crate) fn known(
        &mut self,
        connection: PeerId,
        lane: Option<Lane>,
        handler: &mut dyn Handler,
    ) -> u64 {
        let is_in = match lane {
            Some(lane) => self.join(connection, lane),
            None if self.peers < self.config.max_peers => {
                self.accepted(connection, handler);
                true
            }
            None => false,
        };
        if is_in {
            if let Some(known) = find(&mut self.connections, connection) {
                known.is_ready = true;
                self.ready.push_back(connection);
            }
        } else {
            debug!(provider = NAME, %connection, "turned away a connection");
            self.stats.rejected += 1;
            self.drop_lane(connection);
        }
        u64::from(is_in && lane.is_none())
    }

    /// Takes a connection for a lane of a peer that came to us; false if it is none.
    fn join(&mut self, connection: PeerId, lane: Lane) -> bool {
        let one_sided = &mut self.one_sided;
        let is_here = lane.epoch == one_sided.registrations.epoch();
        let mut sides = one_sided.sides.iter_mut();
        let Some((side, of)) = sides.find(|(_, of)| of.name == lane.peer && of.name != 0) else {
            return false;
        };
        // Only those that came to us are joined; lanes come in the order of their numbers.
        let incoming = self.connections.get(of.lanes[0] as usize);
        let identity = incoming.and_then(Connection::identity).cloned();
        let incoming =
            incoming.is_some_and(|first| matches!(first.role, Role::First { incoming: true, .. }));
        let Some(known) = find(&mut self.connections, connection) else {
            return false;
        };
        let number = lane.lane as usize;
        let in_range =
            number < self.config.lanes as usize && of.lanes.len() < self.config.lanes as usize;
        let is_same = known.identity() == identity.as_ref();
        if !is_here || !incoming || !in_range || !is_same || of.numbers & (1 << number) != 0 {
            return false;
        }
        of.numbers |= 1 << number;
        of.lanes.push(connection.index());
        known.joined(side);
        true
    }

    /// Opens the lanes that a peer has invited us to open.
    pub(crate) fn open_lanes(&mut self, peer: PeerId) {
        let Ok(side) = self.side_of(peer) else {
            return;
        };
        let Some((lanes, epoch)) = self.one_sided.sides[side].invited else {
            return;
        };
        let of = &mut self.one_sided.sides[side];
        if of.numbers != 1 {
            return;
        }
        let Some(address) = find(&mut self.connections, peer).map(|first| first.address) else {
            return;
        };
        for number in 1..=lanes {
            // Fewer lanes carry as well, only slower.
            let Ok(lane) = self.start_connecting(address) else {
                break;
            };
            let of = &mut self.one_sided.sides[side];
            of.numbers |= 1 << number;
            of.lanes.push(lane.index());
            let join = Header::Join(Lane {
                peer: of.name,
                lane: number,
                epoch,
            });
            if let Some(connection) = find(&mut self.connections, lane) {
                connection.role = Role::Further { side };
                connection.dues.answers.extend_from_slice(&join.encode());
            }
        }
    }

    /// Starts connecting a socket to `address`.
    pub(crate) fn start_connecting(&mut self, address: SocketAddr) -> Result<PeerId, Error> {
        let socket = TcpStream::connect(address).map_err(os("connect"))?;
        let staging_bytes = self.config.staging_bytes;
        let deadline = Instant::now() + self.config.connect_timeout;
        let now = Instant::now();
        let session = self.credentials.as_mut();
        let session = session.map(|it| it.client(address.ip(), now)).transpose()?;
        self.insert(socket, session, |stream, peer| {
            Connection::connecting(stream, peer, address, staging_bytes, deadline)
        })
        .map_err(os("epoll_ctl"))
    }

    /// Drops a connection that does not stand for a peer.
    pub(crate) fn drop_lane(&mut self, connection: PeerId) {
        if find(&mut self.connections, connection).is_some() {
            let mut dropped = self.connections.remove(connection.index() as usize);
            let _ = self.poll.registry().deregister(&mut dropped.stream.socket);
            if let Role::Further { side } = dropped.role {
                let lanes = &mut self.one_sided.sides[side].lanes;
                lanes.retain(|index| *index != connection.index());
            }
        }
    }
}
