//! Operations in flight and what became of them.
//!
//! The thread that owns an interface posts operations; others, such as the worker of a device's stream,
//! complete them. Every operation takes one of a fixed number of slots from [`post`](Completions::post)
//! until its outcome is [taken](Completions::take).
//!
//! # Why completing never fails for lack of room
//!
//! Outcomes wait in a ring of words with at least as many words as there are slots, and a slot has at most
//! one outcome there. So whatever is in flight or unread has its word, and being full is noticed where it
//! can be answered: by `post`, before anything was started.
//!
//! # Who touches what
//!
//! 1. A slot's state is a count, odd while an operation is in flight, and half of its token. The owner makes
//!    it odd; whoever completes makes it even by a compare-and-swap from just this token's. Only one can, so an
//!    operation completes once, and a token from before is refused.
//! 2. Who has won draws a ticket from `tickets`, which is a position in the ring of words, and stores the
//!    outcome there (release).
//! 3. The owner reads the words in the order of tickets (acquire). It clears a word before it frees the slot.
//!
//! Can ticket `t + n` be drawn, in a ring of `n` words, before the word of ticket `t` was cleared? It is the
//! `n + 1`-st of the tickets since, and there are at most `n` slots; so the slot of one of these operations
//! was posted a second time, after `t` was taken. From clearing to that post, to its completer (post is a
//! release, the compare-and-swap an acquire) and on along the tickets (each draw is both) all is ordered, up
//! to the store of `t + n`. So a word is cleared before it is stored again.
//!
//! Between its ticket and its store a completer can be interrupted; outcomes behind it wait until it goes
//! on, and it rings the owner afterwards if the owner sleeps by then ([`doorbell`](super::doorbell)).

use std::sync::Arc;

use thiserror::Error;

use super::doorbell::{Doorbell, Wake};
use super::primitive::{AtomicU32, AtomicU64, Ordering};
use crate::Token;

/// The owner's side: posts operations and takes outcomes.
#[derive(Debug)]
pub struct Completions {
    slots: Arc<Slots>,
    /// Slots without an operation.
    free: Vec<u32>,
    /// Ticket of the outcome that is taken next.
    next: u64,
}

/// The side that completes, from any thread.
#[derive(Clone, Debug)]
pub struct Completer {
    slots: Arc<Slots>,
}

/// The token is not that of an operation in flight: it has been completed, or never was one.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("token {:#x} is not of an operation in flight; it was completed before, or is of another queue", token.0)]
#[non_exhaustive]
pub struct Stale {
    /// The token.
    pub token: Token,
}

#[derive(Debug)]
struct Slots {
    states: Box<[AtomicU32]>,
    /// Outcomes by ticket, modulo their number, a power of two: `outcome << 32 | index + 1`, or 0.
    words: Box<[AtomicU64]>,
    tickets: AtomicU64,
    bell: Doorbell,
}

impl Completions {
    /// Room for `capacity` operations that are in flight or whose outcome has not been taken. Nothing is
    /// allocated afterwards.
    pub fn new(capacity: u32) -> Self {
        let slots = Slots {
            states: (0..capacity).map(|_| AtomicU32::new(0)).collect(),
            words: (0..u64::from(capacity).next_power_of_two())
                .map(|_| AtomicU64::new(0))
                .collect(),
            tickets: AtomicU64::new(0),
            bell: Doorbell::default(),
        };
        Self {
            slots: Arc::new(slots),
            free: (0..capacity).rev().collect(),
            next: 0,
        }
    }

    /// A handle that completes.
    pub fn completer(&self) -> Completer {
        Completer {
            slots: self.slots.clone(),
        }
    }

    /// A token for an operation about to be started, or `None` while all slots are in flight or unread.
    #[inline]
    pub fn post(&mut self) -> Option<Token> {
        let index = self.free.pop()?;
        let state = &self.slots.states[index as usize];
        // Nobody else writes a slot that is not in flight.
        let generation = state.load(Ordering::Relaxed).wrapping_add(1);
        state.store(generation, Ordering::Release);
        Some(token(index, generation))
    }

    /// The next outcome, in the order of completion, and the token it belongs to.
    #[inline]
    pub fn take(&mut self) -> Option<(Token, u32)> {
        let word = self.slots.word(self.next);
        let value = word.load(Ordering::Acquire);
        if value == 0 {
            return None;
        }
        word.store(0, Ordering::Relaxed);
        self.next += 1;
        let index = value as u32 - 1;
        // Completing made it one more than the token's.
        let state = self.slots.states[index as usize].load(Ordering::Relaxed);
        self.free.push(index);
        Some((token(index, state.wrapping_sub(1)), (value >> 32) as u32))
    }

    /// Operations in flight or unread.
    pub fn unfinished(&self) -> usize {
        self.slots.states.len() - self.free.len()
    }

    /// Announces that the caller is about to wait for an outcome. If the answer is `true` it waits to be rung,
    /// and then calls [`unpark`](Self::unpark). If it is `false` there is an outcome, and nothing was announced.
    pub fn park(&mut self) -> bool {
        self.slots.bell.announce();
        let waits = self.slots.word(self.next).load(Ordering::Relaxed) == 0;
        if !waits {
            self.unpark();
        }
        waits
    }

    /// Takes the announcement of [`park`](Self::park) back.
    pub fn unpark(&mut self) {
        self.slots.bell.withdraw();
    }
}

impl Completer {
    /// Completes an operation, and says whether the owner has to be rung.
    ///
    /// # Errors
    ///
    /// [`Stale`] if the token is not that of an operation in flight. Nothing changes then. Counts of a slot
    /// come again after 2³¹ operations in it, so a token kept for that long may pass for a newer one.
    #[inline]
    pub fn complete(&self, token: Token, outcome: u32) -> Result<Wake, Stale> {
        let (index, generation) = (slot_of(token), (token.0 >> 32) as u32);
        let state = self.slots.states.get(index as usize);
        let state = state
            .filter(|_| generation % 2 == 1)
            .ok_or(Stale { token })?;
        state
            .compare_exchange(
                generation,
                generation.wrapping_add(1),
                Ordering::Acquire,
                Ordering::Relaxed,
            )
            .map_err(|_| Stale { token })?;
        let ticket = self.slots.tickets.fetch_add(1, Ordering::AcqRel);
        let value = u64::from(outcome) << 32 | (u64::from(index) + 1);
        self.slots.word(ticket).store(value, Ordering::Release);
        Ok(self.slots.bell.check())
    }
}

impl Slots {
    fn word(&self, ticket: u64) -> &AtomicU64 {
        &self.words[ticket as usize & (self.words.len() - 1)]
    }
}

/// The slot of an operation: less than the capacity, and no other operation's until its outcome is taken.
/// For tables of what belongs to each operation.
pub fn slot_of(token: Token) -> u32 {
    token.0 as u32
}

fn token(index: u32, generation: u32) -> Token {
    Token(u64::from(generation) << 32 | u64::from(index))
}

#[cfg(all(test, not(moai_loom)))]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn an_operation_completes_once() {
        let mut queue = Completions::new(2);
        let completer = queue.completer();
        let first = queue.post().unwrap();
        let second = queue.post().unwrap();
        assert_eq!(queue.post(), None);
        assert_eq!(queue.take(), None);
        assert_eq!(completer.complete(second, u32::MAX), Ok(Wake::No));
        let stale = Stale { token: second };
        assert_eq!(completer.complete(second, 6), Err(stale));
        assert_eq!(queue.post(), None, "an unread outcome keeps its slot");
        assert_eq!(queue.unfinished(), 2);
        assert_eq!(queue.take(), Some((second, u32::MAX)));
        assert_eq!(queue.take(), None);
        let third = queue.post().unwrap();
        assert_eq!(slot_of(third), slot_of(second));
        assert_eq!(completer.complete(second, 6), Err(stale), "of before");
        assert!(completer.complete(first, 0).is_ok() && completer.complete(third, 1).is_ok());
        assert_eq!(queue.take(), Some((first, 0)));
        assert_eq!(queue.take(), Some((third, 1)));
        assert_eq!(queue.unfinished(), 0);
    }

    #[test]
    fn tokens_that_never_were_are_refused() {
        let mut queue = Completions::new(3);
        let completer = queue.completer();
        let token = queue.post().unwrap();
        let all = [
            0,
            1,
            2,
            3,
            u64::MAX,
            1 << 32 | 1,
            1 << 33,
            token.0 + (1 << 33),
        ];
        for token in all.map(Token) {
            assert_eq!(
                completer.complete(token, 0),
                Err(Stale { token }),
                "{token:?}"
            );
        }
        assert!(completer.complete(token, 0).is_ok());
        assert_eq!(Completions::new(0).post(), None);
    }

    #[test]
    fn who_waits_is_rung() {
        let mut queue = Completions::new(2);
        let completer = queue.completer();
        let (first, second) = (queue.post().unwrap(), queue.post().unwrap());
        assert!(queue.park());
        assert_eq!(completer.complete(first, 0), Ok(Wake::Needed));
        assert_eq!(completer.complete(second, 0), Ok(Wake::No));
        queue.unpark();
        assert!(!queue.park());
    }

    #[test]
    fn threads_complete_what_another_posts() {
        let operations = if cfg!(miri) { 100_u32 } else { 20_000 };
        for capacity in [1, 3, 8] {
            let mut queue = Completions::new(capacity);
            let mut expected = vec![None; capacity as usize];
            std::thread::scope(|scope| {
                let workers: Vec<_> = (0..2)
                    .map(|_| {
                        let (sender, receiver) = mpsc::channel();
                        let completer = queue.completer();
                        scope.spawn(move || {
                            for (token, outcome) in receiver {
                                let _ = completer.complete(token, outcome).unwrap();
                            }
                        });
                        sender
                    })
                    .collect();
                let (mut posted, mut taken) = (0, 0);
                while taken < operations {
                    if posted < operations
                        && let Some(token) = queue.post()
                    {
                        let outcome = posted.wrapping_mul(0x9e37_79b9);
                        expected[slot_of(token) as usize] = Some((token, outcome));
                        workers[posted as usize % 2].send((token, outcome)).unwrap();
                        posted += 1;
                    } else if let Some((token, outcome)) = queue.take() {
                        let slot = &mut expected[slot_of(token) as usize];
                        assert_eq!(slot.take(), Some((token, outcome)));
                        taken += 1;
                    } else {
                        std::thread::yield_now();
                    }
                }
                assert_eq!(queue.unfinished(), 0);
            });
        }
    }
}
