//! Connections that come or go.

use std::net::SocketAddr;
use std::time::Instant;

use moai_transport::{Closed, Handler, PeerId, limits};
use tracing::{debug, warn};

use super::{TcpInterface, find, first};
use crate::NAME;
use crate::connection::Connection;
use crate::inbound::Role;

impl TcpInterface {
    /// Takes in those who have connected to us.
    pub(super) fn accept(&mut self, now: Instant, handler: &mut dyn Handler) -> u64 {
        let mut callbacks = 0;
        for _ in 0..limits::ACCEPTS_PER_TURN {
            let Some(listener) = &mut self.listener else {
                break;
            };
            if !listener.is_ready(now) {
                break;
            }
            if !self.has_room_to_shake(now, handler) {
                break;
            }
            let accepted = self.listener.as_mut().and_then(|it| it.accept(now));
            let Some((socket, address)) = accepted else {
                break;
            };
            // A further lane of a peer is not one more peer, but it has yet to say so.
            let several = self.config.lanes > 1 || self.credentials.is_some();
            let most = self.config.max_peers * self.config.lanes as usize;
            if self.connections.len() >= most || (!several && self.peers >= most) {
                self.turn_away(address, "the table of peers is full");
                continue;
            }
            let staging_bytes = self.config.staging_bytes;
            let deadline = now + self.config.first_frame_timeout;
            let silence = self.config.silence_timeout;
            let session = match self
                .credentials
                .as_mut()
                .map(|it| it.server(now))
                .transpose()
            {
                Ok(session) => session,
                Err(error) => {
                    self.turn_away(address, &error.to_string());
                    continue;
                }
            };
            let inserted = self.insert(socket, session, |stream, peer| {
                let of = Connection::accepted(stream, peer, address, staging_bytes, deadline);
                of.set_options(silence);
                of
            });
            match inserted {
                Ok(peer) if several => debug!(provider = NAME, %peer, %address, "came in"),
                Ok(peer) => {
                    self.accepted(peer, handler);
                    callbacks += 1;
                }
                Err(error) => self.turn_away(address, &error.to_string()),
            }
        }
        callbacks
    }

    /// A connection that came in is a peer.
    pub(crate) fn accepted(&mut self, peer: PeerId, handler: &mut dyn Handler) {
        if let Some(connection) = find(&mut self.connections, peer) {
            let side = self.one_sided.add_side(peer);
            connection.role = Role::First {
                side,
                incoming: true,
            };
            self.peers += 1;
            self.stats.accepted += 1;
            debug!(provider = NAME, %peer, address = %connection.address, "accepted");
            handler.connected(peer, true);
        }
    }

    fn turn_away(&mut self, address: SocketAddr, reason: &str) {
        self.stats.rejected += 1;
        if self.stats.rejected == 1 {
            warn!(provider = NAME, %address, reason, "turned away a connection");
        } else {
            debug!(provider = NAME, %address, reason, "turned away a connection");
        }
    }

    /// A connection is over, and with it the peer.
    pub(super) fn end(&mut self, peer: PeerId, why: Closed, handler: &mut dyn Handler) {
        let Some(connection) = find(&mut self.connections, peer) else {
            return;
        };
        if let Closed::Unauthenticated(reason) = &why {
            let (address, is_known) = (connection.address, connection.role != Role::Unknown);
            self.distrust(address, reason, is_known);
        }
        let Some(connection) = find(&mut self.connections, peer) else {
            return;
        };
        match connection.role {
            Role::First { side, .. } => {
                let of = &mut self.one_sided.sides[side];
                if of.copies > 0 {
                    of.ending.get_or_insert(why);
                    connection.park();
                } else if self.remove(peer) {
                    debug!(provider = NAME, %peer, reason = %why, "closed");
                    handler.closed(peer, why);
                }
            }
            Role::Further { side } => {
                // What has arrived on the first lane is handed over before the peer is lost.
                let first = self.one_sided.sides[side].peer;
                if let Some(connection) = find(&mut self.connections, first) {
                    connection.orphaned.get_or_insert(why);
                    if !connection.is_ready {
                        connection.is_ready = true;
                        self.ready.push_back(first);
                    }
                }
                self.drop_lane(peer);
            }
            // Nobody was told of it, but it was there: a scan of ports must be seen.
            Role::Unknown => {
                self.stats.closed += 1;
                self.drop_lane(peer);
            }
        }
    }

    /// Drops the peer with all its lanes; false for a stale id.
    pub(super) fn remove(&mut self, peer: PeerId) -> bool {
        let Some(connection) = first(&mut self.connections, peer) else {
            return false;
        };
        if let Role::First { side, .. } = connection.role {
            let lanes = std::mem::take(&mut self.one_sided.sides[side].lanes);
            for index in lanes {
                let mut connection = self.connections.remove(index as usize);
                let _ = self
                    .poll
                    .registry()
                    .deregister(&mut connection.stream.socket);
            }
            self.one_sided.remove_side(side, &mut self.stats);
        }
        self.peers -= 1;
        self.stats.closed += 1;
        true
    }
}
