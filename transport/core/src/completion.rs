//! The end of an operation.

use std::collections::VecDeque;

use thiserror::Error;

use crate::{PeerId, Token};

/// An operation that was posted has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Completion {
    /// With whom.
    pub peer: PeerId,
    /// The caller's name for it.
    pub token: Token,
    /// How it ended. A put that is `Ok` has been placed; a get that is `Ok` is in the local pieces. Of one that
    /// is not, any part may have been written.
    pub outcome: Result<(), Fault>,
}

impl Completion {
    /// For providers.
    #[must_use]
    pub const fn new(peer: PeerId, token: Token, outcome: Result<(), Fault>) -> Self {
        Self {
            peer,
            token,
            outcome,
        }
    }
}

/// Why an operation did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Fault {
    /// The connection ended first. Nothing of the operation is written by this side from here on.
    #[error("the peer was lost")]
    PeerLost,
    /// The peer refused it; its memory is untouched.
    #[error("the peer refused: {0}")]
    Refused(Refusal),
    /// A copy from or to device memory failed.
    #[error("a copy between host and device failed")]
    Copy,
    /// The system refused an access to the peer's memory.
    #[error("the system refused access to the peer's memory (error {code})")]
    Access {
        /// The system's error number.
        code: i32,
    },
}

/// Why the owner of memory refuses an operation on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
#[repr(u8)]
pub enum Refusal {
    /// The key is of another life of the process.
    #[error("the key is from another epoch; ask the peer for a new one")]
    Epoch = 1,
    /// The registration is gone, or its entry has been used again.
    #[error("the key's registration is gone; ask the peer for a new one")]
    Generation = 2,
    /// Pieces outside of the registered memory.
    #[error("pieces outside of the registered memory")]
    Bounds = 3,
    /// The registration does not allow that.
    #[error("the key does not allow the operation")]
    Rights = 4,
    /// The list of pieces makes no sense, or is over a limit.
    #[error("the list of pieces cannot be")]
    Malformed = 5,
    /// The owner has no room for the operation now.
    #[error("the peer has too many operations in hand; try again")]
    Busy = 6,
    /// The owner could not copy between host and device.
    #[error("the peer could not copy between host and device")]
    Copy = 7,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Epoch,
        Self::Generation,
        Self::Bounds,
        Self::Rights,
        Self::Malformed,
        Self::Busy,
        Self::Copy,
    ];

    /// Its number on the wire; 0 stands for no refusal.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The refusal with a number.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.code() == code)
    }
}

/// Operations in flight and completions not yet taken, together at most so many.
///
/// What bounds both is that an operation is admitted only while there is room for its completion: completing
/// never finds the queue full.
#[derive(Debug)]
pub struct Completions {
    ended: VecDeque<Completion>,
    in_flight: usize,
    capacity: usize,
}

impl Completions {
    /// Room for `capacity`.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            ended: VecDeque::with_capacity(capacity),
            in_flight: 0,
            capacity,
        }
    }

    /// Whether another operation may be posted.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.in_flight + self.ended.len() < self.capacity
    }

    /// An operation was posted.
    ///
    /// # Panics
    ///
    /// Without room for it.
    pub fn begin(&mut self) {
        assert!(self.has_room(), "posted beyond the room for completions");
        self.in_flight += 1;
    }

    /// An operation that had begun has ended.
    pub fn end(&mut self, completion: Completion) {
        self.in_flight -= 1;
        self.ended.push_back(completion);
    }

    /// The oldest completion that was not taken yet.
    pub fn take(&mut self) -> Option<Completion> {
        self.ended.pop_front()
    }

    /// Whether there is something to take.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ended.is_empty()
    }

    /// Operations that have not ended.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_kept_for_every_completion() {
        let mut queue = Completions::new(2);
        let end = |n| Completion::new(PeerId::new(0, 0), Token(n), Ok(()));
        queue.begin();
        queue.begin();
        assert!(!queue.has_room());
        queue.end(end(1));
        queue.end(end(2));
        assert!(
            !queue.has_room(),
            "completions that nobody took hold their room"
        );
        assert_eq!(queue.take(), Some(end(1)));
        assert!(queue.has_room());
        queue.begin();
        assert_eq!((queue.take(), queue.take()), (Some(end(2)), None));
        assert_eq!(queue.in_flight(), 1);
    }

    #[test]
    fn refusals_survive_the_wire() {
        for refusal in Refusal::ALL {
            assert_eq!(Refusal::from_code(refusal.code()), Some(refusal));
        }
        assert_eq!(Refusal::from_code(0), None);
        assert_eq!(Refusal::from_code(8), None);
    }
}
