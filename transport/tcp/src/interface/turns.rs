//! Whose turn it is, which the system's events decide.

use std::io;
use std::time::{Duration, Instant};

use moai_transport::{Error, Handler};

use super::{LISTENER, TcpInterface, find, os};
use crate::connection::Turn;
use crate::inbound::Context;
use crate::limits::SWEEP_PAUSE;

impl TcpInterface {
    /// Writes what has been queued since the last poll.
    pub(super) fn flush_dirty(&mut self, handler: &mut dyn Handler) {
        if self.dirty.is_empty() {
            return;
        }
        let memory = handler.regions();
        for peer in self.dirty.drain(..) {
            let Some(connection) = find(&mut self.connections, peer) else {
                continue;
            };
            connection.is_dirty = false;
            if connection.is_used() && self.sweep.is_none() {
                self.sweep = Some(Instant::now() + SWEEP_PAUSE);
            }
            connection.flush(&mut self.one_sided, Some(memory), &mut self.stats);
            if connection.wants_turn(&mut self.one_sided) && !connection.is_ready {
                connection.is_ready = true;
                self.ready.push_back(peer);
            }
        }
    }

    /// Asks the system for events, for at most `timeout`.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        self.stats.waits += 1;
        if let Err(error) = self.poll.poll(&mut self.events, timeout) {
            if error.kind() == io::ErrorKind::Interrupted {
                return Ok(());
            }
            return Err(os("epoll_wait")(error));
        }
        if !self.config.spin.is_zero() && !self.events.is_empty() {
            self.last_event = Some(Instant::now());
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

    /// Gives every connection that is ready one turn.
    pub(super) fn give_turns(&mut self, now: Instant, handler: &mut dyn Handler) -> u64 {
        let mut callbacks = 0;
        let limits = [self.config.finish_timeout, self.config.silence_timeout];
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
                one_sided: &mut self.one_sided,
                buffer: &mut self.buffer,
                seal_payload: self.config.seal_payload,
                callbacks: 0,
            };
            let turn = connection.turn(now, limits, &mut context);
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
                Turn::Shaken => {
                    callbacks += self.shaken(peer, handler);
                    continue;
                }
                Turn::Known(lane) => {
                    callbacks += self.known(peer, lane, handler);
                    continue;
                }
            }
            self.open_lanes(peer);
            let Some(connection) = find(&mut self.connections, peer) else {
                continue;
            };
            if connection.is_used() && self.sweep.is_none() {
                self.sweep = Some(now + SWEEP_PAUSE);
            }
            if connection.deadline().is_some() {
                self.watch_deadline(peer);
            }
        }
        callbacks
    }

    /// How long there is nothing to do, if no event comes.
    pub(super) fn pause(&self, now: Instant) -> Option<Duration> {
        let listening = self.listener.as_ref().is_some_and(|it| it.is_ready(now));
        if !self.ready.is_empty() || listening {
            return Some(Duration::ZERO);
        }
        let next = self.next_deadline()?;
        Some(next.saturating_duration_since(now))
    }
}
