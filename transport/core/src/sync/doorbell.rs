//! Sleeping without missing what one is woken for, and without a system call while awake.
//!
//! A *sleeper* looks for work in shared memory (a ring's index, a completion), and when there is none it
//! waits on something that costs a system call to ring, such as an eventfd. Whoever brings work rings
//! only if the sleeper has said that it sleeps. The waiting and the ringing are the callers'; this module
//! decides whether.
//!
//! # Why no wake-up is lost
//!
//! ```text
//!   sleeper                               ringer
//!   S1  parked := 1                       R1  work := published
//!   S2  SeqCst fence                      R2  SeqCst fence
//!   S3  look for work; none → wait        R3  parked = 1 → parked := 0, ring
//! ```
//!
//! This is Dekker's argument. The two fences have one order that both sides agree on. If S2 is first,
//! then what was written before S2 is seen after R2: R3 reads 1 and rings. If R2 is first, then S3 sees
//! the work. Either way not both sides miss each other. Without the fences each store could wait in its
//! core's store buffer while the load behind it runs ahead, and both would miss.
//!
//! R3 takes `parked` back to 0 by a swap, so that one sleep is rung for once however much work comes
//! while the sleeper is still waking up. A swap that finds 1 is always followed by a ring, so a sleeper
//! whose announcement is gone has a ring coming to it. It may belong to an earlier sleep: then it wakes
//! for nothing, once, and announces itself again. What it waits on must remember a ring that comes first,
//! as an eventfd does.
//!
//! The word is changed by swaps only, also where a store would do. Swaps follow one another, so a swap of
//! R3 cannot seem to come both before and after an announcement; loom does not keep that apart for a store.
//!
//! # A peer that lies
//!
//! Only latency is at stake. Writing 1 for us makes us ring for nothing, at most once for each time that we
//! publish; writing 0 for itself leaves the liar asleep.

use super::primitive::{AtomicU32, Ordering, fence};
use super::shared::Plain;

/// Whether whoever was waiting has to be woken by its system call.
#[must_use = "a sleeper that is not rung sleeps on"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums)] // Either someone sleeps or not.
pub enum Wake {
    /// It sleeps, or is about to: ring what it waits on.
    Needed,
    /// It is awake and will look by itself.
    No,
}

/// A sleeper's announcement, in shared memory. Zero: awake.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Doorbell {
    parked: AtomicU32,
}

const AWAKE: u32 = 0;
const PARKED: u32 = 1;

// SAFETY: one atomic, `repr(C)`; zero is its default.
unsafe impl Plain for Doorbell {}

#[cfg(not(moai_loom))]
const _: () = assert!(size_of::<Doorbell>() == 4);

impl Doorbell {
    /// Says that the caller is about to wait. It looks for work once more after this, and waits only if
    /// there is none.
    pub fn announce(&self) {
        self.parked.swap(PARKED, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    /// Says that the caller is awake, after waiting or instead of it.
    pub fn withdraw(&self) {
        self.parked.swap(AWAKE, Ordering::AcqRel);
    }

    /// Called after work has been made visible: whether the sleeper has to be rung.
    pub fn check(&self) -> Wake {
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::Relaxed) == AWAKE {
            return Wake::No;
        }
        match self.parked.swap(AWAKE, Ordering::AcqRel) {
            AWAKE => Wake::No,
            _ => Wake::Needed,
        }
    }
}

#[cfg(all(test, not(moai_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_is_rung_for_once() {
        let bell = Doorbell::default();
        assert_eq!(bell.check(), Wake::No);
        bell.announce();
        assert_eq!(bell.check(), Wake::Needed);
        assert_eq!(bell.check(), Wake::No);
        bell.announce();
        bell.withdraw();
        assert_eq!(bell.check(), Wake::No);
    }

    #[test]
    fn whatever_a_peer_writes_costs_one_ring() {
        let bell = Doorbell::default();
        bell.parked.store(0xdead_beef, Ordering::Relaxed);
        assert_eq!(bell.check(), Wake::Needed);
        assert_eq!(bell.check(), Wake::No);
    }
}
