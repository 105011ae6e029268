//! Who is looked at when, and what the system is asked for.

use std::time::{Duration, Instant};

use moai_transport::{Error, Handler, PeerId};
use rustix::event::{Timespec, epoll};

use super::{DEVICES, Entry, LISTENER, ShmInterface, find, os, watch_for_room};
use crate::connection::News;
use crate::inbound::Context;

/// Events taken at a time.
const MAX_EVENTS: usize = 64;

/// Pauses between two looks at the rings.
const SPINS: u32 = 4;

/// Looks between two at the clock.
const CLOCK_ROUNDS: u32 = 32;

impl ShmInterface {
    /// Looks at the rings of everyone who is awake. Returns how many callbacks there were.
    pub(super) fn serve(&mut self, handler: &mut dyn Handler) -> u64 {
        self.take_copies();
        let (mut at, mut callbacks) = (0, 0);
        while let Some(&peer) = self.awake.get(at) {
            let Some(connection) = find(&mut self.entries, peer) else {
                self.awake.swap_remove(at);
                continue;
            };
            let mut context = Context {
                handler,
                stats: &mut self.stats,
                registrations: &self.registrations,
                copies: &mut self.copies,
                pieces: &mut self.pieces,
                callbacks: 0,
            };
            let turn = connection.turn(&mut context, &mut self.completions);
            callbacks += context.callbacks;
            match turn {
                Ok(_) => at += 1,
                Err(why) => {
                    self.awake.swap_remove(at);
                    callbacks += self.end(peer, why, handler);
                }
            }
        }
        callbacks
    }

    /// Puts everyone to sleep; false if somebody has something to do.
    pub(super) fn park(&mut self) -> bool {
        let (mut at, mut all) = (0, true);
        while let Some(&peer) = self.awake.get(at) {
            let Some(connection) = find(&mut self.entries, peer) else {
                self.awake.swap_remove(at);
                continue;
            };
            match connection.park() {
                Ok(true) => {
                    connection.is_awake = false;
                    if connection.waits_to_write {
                        watch_for_room(&self.epoll, connection, true);
                    }
                    self.awake.swap_remove(at);
                }
                Ok(false) => {
                    all = false;
                    at += 1;
                }
                Err(why) => {
                    connection.fate = Some(why);
                    all = false;
                    at += 1;
                }
            }
        }
        all
    }

    /// Asks the system what has happened, for at most `timeout`.
    pub(super) fn ask(
        &mut self,
        timeout: Option<Duration>,
        handler: &mut dyn Handler,
    ) -> Result<u64, Error> {
        self.stats.waits += 1;
        self.unasked = 0;
        let limit = timeout.and_then(|limit| Timespec::try_from(limit).ok());
        let mut room = [std::mem::MaybeUninit::uninit(); MAX_EVENTS];
        let events = match epoll::wait(&self.epoll, &mut room, limit.as_ref()) {
            Ok((events, _)) => &*events,
            Err(rustix::io::Errno::INTR) => &[],
            Err(error) => return Err(os("epoll_wait")(error.into())),
        };
        let mut callbacks = 0;
        for event in events {
            let data = event.data.u64();
            match data {
                LISTENER => {
                    callbacks += self.accept();
                    continue;
                }
                // Copies that are over are taken at every turn.
                DEVICES => continue,
                _ => {}
            }
            let peer = PeerId::new(data as u32, (data >> 32) as u32);
            callbacks += self.note(peer, handler);
        }
        Ok(callbacks)
    }

    /// Something has happened at the socket of an entry.
    pub(super) fn note(&mut self, peer: PeerId, handler: &mut dyn Handler) -> u64 {
        match self.entries.get(peer.index() as usize) {
            Some(Entry::Guest(guest)) if guest.id == peer => return self.welcome(peer, handler),
            _ => {}
        }
        let foreign = self.foreign_wanted();
        let Some(connection) = find(&mut self.entries, peer) else {
            return 0;
        };
        if connection.waits_to_write {
            connection.waits_to_write = false;
            watch_for_room(&self.epoll, connection, false);
        }
        let mut callbacks = 0;
        match connection.read_socket(&foreign) {
            Ok(News::None) => {}
            Ok(News::Connected) => {
                self.stats.connected += 1;
                self.connected(peer, false, handler);
                callbacks += 1;
            }
            Err(why) => connection.fate = Some(why),
        }
        self.wake(peer);
        callbacks
    }

    /// Looks at the rings until something happens; false if nothing has by `until`.
    pub(super) fn spin(&mut self, until: Instant, handler: &mut dyn Handler) -> bool {
        let mut rounds = 0_u32;
        loop {
            for _ in 0..SPINS {
                std::hint::spin_loop();
            }
            if self.serve(handler) > 0 || !self.completions.is_empty() {
                self.unasked += 1;
                return true;
            }
            rounds += 1;
            if rounds.is_multiple_of(CLOCK_ROUNDS) {
                if Instant::now() >= until {
                    return false;
                }
                // Whoever shall answer may want this core.
                std::thread::yield_now();
            }
        }
    }
}
