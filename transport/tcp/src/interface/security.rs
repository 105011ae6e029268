//! Who is let in, and how many may be asking at a time.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use moai_transport::{Closed, Handler, PeerId, Unauthenticated};
use tracing::{debug, warn};

use super::{TcpInterface, find};
use crate::NAME;
use crate::connection::Connection;
use crate::inbound::Role;
use crate::limits::{HANDSHAKE_GRACE, MAX_HANDSHAKES};

/// Between two warnings of peers that were not let in: a scan of ports must not fill the log.
const WARN_PAUSE: Duration = Duration::from_secs(1);

impl TcpInterface {
    /// Each side of a connection knows now who the other is. Returns the callbacks made.
    pub(super) fn shaken(&mut self, peer: PeerId, handler: &mut dyn Handler) -> u64 {
        self.stats.authenticated += 1;
        let Some(connection) = find(&mut self.connections, peer) else {
            return 0;
        };
        let role = connection.role;
        if let Role::Further { side } = role {
            let found = connection.identity().cloned();
            let first = self.one_sided.sides[side].lanes.first();
            let first = first.and_then(|&first| self.connections.get(first as usize));
            let expected = first.and_then(Connection::identity).cloned();
            if found != expected {
                let name = |identity: Option<moai_transport::Identity>| match identity {
                    Some(identity) => identity.to_string(),
                    None => "nobody".to_owned(),
                };
                let why = Unauthenticated::OtherPeer {
                    expected: name(expected),
                    found: name(found),
                };
                self.end(peer, Closed::Unauthenticated(why), handler);
                return 0;
            }
        }
        // With several lanes, the first frame says whether it is a peer.
        if role == Role::Unknown && self.config.lanes == 1 {
            return self.known(peer, None, handler);
        }
        if let Some(connection) = find(&mut self.connections, peer)
            && !connection.is_ready
        {
            connection.is_ready = true;
            self.ready.push_back(peer);
        }
        0
    }

    /// Whether one more may begin its handshake. Others wait in the system's queue, unless someone is slow: whoever has
    /// taken longest makes room.
    pub(super) fn has_room_to_shake(&mut self, now: Instant, handler: &mut dyn Handler) -> bool {
        if self.credentials.is_none() {
            return true;
        }
        let shaking = self
            .connections
            .iter()
            .filter_map(|(_, connection)| Some((connection.shaking_until()?, connection.peer)));
        let (mut count, mut oldest) = (0, None);
        for (until, peer) in shaking {
            count += 1;
            oldest = oldest.into_iter().chain([(until, peer)]).min();
        }
        let Some((until, peer)) = oldest.filter(|_| count >= MAX_HANDSHAKES) else {
            return true;
        };
        let limit = self.config.first_frame_timeout;
        let grace = limit.saturating_sub(HANDSHAKE_GRACE);
        let slow_from = until.checked_sub(grace).unwrap_or(until);
        if slow_from > now {
            if let Some(listener) = &mut self.listener {
                listener.rest(slow_from.min(now + HANDSHAKE_GRACE / 20));
            }
            return false;
        }
        let limit_ms = HANDSHAKE_GRACE.min(limit).as_millis() as u64;
        let why = Closed::Unauthenticated(Unauthenticated::Late { limit_ms });
        self.end(peer, why, handler);
        true
    }

    /// Counts a peer that was not let in, or did not let us in, and tells why: the peer itself was not told.
    pub(super) fn distrust(
        &mut self,
        address: SocketAddr,
        reason: &Unauthenticated,
        is_peer: bool,
    ) {
        self.stats.distrusted += 1;
        let now = Instant::now();
        let is_quiet = self.warned.is_some_and(|at| now - at < WARN_PAUSE);
        // Whoever asked for the connection hears it as the reason for its end.
        if is_quiet || is_peer {
            debug!(provider = NAME, %address, %reason, "not authenticated");
        } else {
            self.warned = Some(now);
            warn!(provider = NAME, %address, %reason, distrusted = self.stats.distrusted, "not authenticated");
        }
    }
}

/// What protects a connection, for people.
pub(super) fn protection(connection: &Connection) -> String {
    let Some(session) = connection.stream.session() else {
        return "neither authenticated nor encrypted".to_owned();
    };
    let peer = session.identity().map_or_else(
        || "of a peer not known yet".to_owned(),
        |identity| format!("with {identity}"),
    );
    let what = match session.seals_payload() {
        true => "encrypted",
        false => "encrypted but for payload",
    };
    format!("{what} by TLS {peer}")
}
