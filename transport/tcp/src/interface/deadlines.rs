//! What has to be done at a time, without an event.

use std::time::Instant;

use moai_transport::{Handler, PeerId};

use super::{TcpInterface, find};
use crate::limits::SWEEP_PAUSE;
use crate::listener::Listener;

impl TcpInterface {
    pub(super) fn watch_deadline(&mut self, peer: PeerId) {
        if let Some(connection) = find(&mut self.connections, peer)
            && !connection.is_timed
        {
            connection.is_timed = true;
            self.timed.push(peer);
        }
    }

    /// Ends connections that have taken too long. What has arrived from a peer counts as having come
    /// in time, so one that waits for its turn is left alone.
    pub(super) fn expire(&mut self, now: Instant, handler: &mut dyn Handler) -> u64 {
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
            if deadline <= now && connection.lift_deadline(&self.one_sided) {
                continue;
            }
            if deadline <= now && !connection.is_ready {
                let limits = [self.config.first_frame_timeout, self.config.connect_timeout];
                let why = connection.expired(limits);
                self.end(peer, why, handler);
                callbacks += 1;
            } else {
                at += 1;
            }
        }
        callbacks
    }

    /// The next moment at which something has to be done without an event.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let sweep = self.sweep;
        let deadlines = self.timed.iter().filter_map(|peer| {
            let connection = self.connections.get(peer.index() as usize)?;
            connection.deadline().filter(|_| connection.peer == *peer)
        });
        let rest = self.listener.as_ref().and_then(Listener::resting_until);
        deadlines.chain(rest).chain(sweep).min()
    }

    /// Takes memory back from connections that have not used it since the last time.
    pub(super) fn sweep(&mut self, now: Instant) {
        if self.sweep.is_some_and(|at| at <= now) {
            let mut left = !self.one_sided.copies.trim();
            for (_, connection) in &mut self.connections {
                left |= !connection.trim();
            }
            self.sweep = left.then(|| now + SWEEP_PAUSE);
        }
    }
}
