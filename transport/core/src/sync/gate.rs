//! Taking back the permission to write into memory, so that nothing is written late.
//!
//! A *target* lets peers on its host write straight into regions it has registered, by a mapping or by
//! `process_vm_writev`; it is not asked when they do. (Reading works the same way.) Each registration has a
//! slot in a table that the target shares, with the *generation* that a remote key must have to pass, or 0.
//! An *initiator* passes the gate before each copy, and while it copies a word of its connection, its
//! *hazard*, says which slot it is in. A word says one slot, so who copies into one registration while a
//! device still copies into another has two, and the target looks at both.
//!
//! # Why nothing is written late
//!
//! ```text
//!   initiator                              target
//!   E1  hazard := slot + 1  (release)      T1  generation := 0
//!   E2  SeqCst fence                       T2  SeqCst fence
//!   E3  generation = mine? else leave      T3  hazard ≠ slot + 1  (acquire) → quiet
//!       copy
//!   E4  hazard := 0         (release)
//! ```
//!
//! The two fences have one order. If T2 is first, E3 sees what T1 wrote or something later; no generation
//! is used twice, so the initiator leaves without having copied. If E2 is first, T3 sees E1 or something
//! later: `slot + 1`, and the target waits; or a value which the initiator stored afterwards, a 0 of E4 or
//! the next E1. Both are releases that come after the copy, so the copy is over, and the target sees all of
//! it. So once a slot has been revoked and every live connection was found outside of it, its memory can be
//! reused: who was inside has left, and who comes later is refused.
//!
//! # Peers that die, and peers that lie
//!
//! A process that ended cannot copy; the target clears its hazard ([`Hazard::clear`]) once the system says
//! that it has ended, and not merely because it has not been heard of. One that stays inside keeps the slot
//! from becoming quiet: how long to wait, and what to do with the memory then, is the caller's deadline.
//! Like every scheme of direct access this one needs initiators that keep to it. One that does not can
//! write into what it has been allowed to reach, whenever the system lets it; the table and the hazards of
//! others are not among that, so the target maps the table to its peers for reading only.

use thiserror::Error;

use super::primitive::{AtomicU64, Ordering, fence};
use super::shared::{Plain, Shared};

/// The generation that passes a slot, in memory shared with initiators; 0 if nobody does.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Generation(AtomicU64);

/// Which slot the initiator of one connection is in, plus one, in memory shared with the target; or 0.
#[derive(Debug, Default)]
#[repr(C, align(128))] // A line pair of its own: it is written at every copy.
pub struct Hazard(AtomicU64);

// SAFETY: one atomic, `repr(C)`; zero is its default.
unsafe impl Plain for Generation {}
// SAFETY: one atomic and padding, `repr(C)`; zeros are its default.
unsafe impl Plain for Hazard {}

#[cfg(not(moai_loom))]
const _: () = {
    assert!(size_of::<Generation>() == 8);
    assert!(size_of::<Hazard>() == 128);
};

/// Whose memory it is: opens slots and closes them.
#[derive(Debug)]
pub struct Target {
    table: Shared<Generation>,
    /// Its own record, since the shared one is there to be read by others.
    slots: Vec<Slot>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// The last one used.
    generation: u64,
    open: bool,
}

/// One connection's side that copies.
#[derive(Debug)]
pub struct Entrant {
    table: Shared<Generation>,
    hazard: Shared<Hazard>,
}

/// Leave to copy into one registration, for as long as it lives.
#[must_use = "the gate closes behind a pass that is dropped"]
#[derive(Debug)]
pub struct Pass<'a> {
    hazard: &'a Hazard,
}

/// The same leave, with the initiator in it: for copies that outlast a call, as a device's do. Nothing else of the
/// connection's side is inside as long as it lives.
#[must_use = "the gate closes behind a stay that is dropped"]
#[derive(Debug)]
pub struct Stay {
    /// There until it has left.
    entrant: Option<Entrant>,
}

/// The gate did not open; nothing may be copied.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refused {
    /// The registration is gone; its remote key is of no more use.
    #[error(
        "slot {slot} is at generation {current}, and the remote key is for generation {generation}: \
         the registration was revoked, ask for a new key"
    )]
    Revoked {
        /// Which slot.
        slot: u32,
        /// Generation of the remote key.
        generation: u64,
        /// The slot's, or 0 if nobody passes.
        current: u64,
    },
    /// The table has no such slot; the remote key is not one of this target.
    #[error("slot {slot} is not one of the target's {slots}; the remote key is of another target")]
    NoSuchSlot {
        /// Which slot.
        slot: u32,
        /// Slots in the table.
        slots: usize,
    },
}

impl Target {
    /// The target's side of a table that is all zeros.
    pub fn new(table: Shared<Generation>) -> Self {
        Self {
            slots: vec![Slot::default(); table.len()],
            table,
        }
    }

    /// Slots in the table.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Opens a slot that is closed, and returns the generation that passes it. It was never used before for
    /// this slot, and is not 0.
    ///
    /// # Panics
    ///
    /// If there is no such slot, or it is open.
    pub fn open(&mut self, slot: u32) -> u64 {
        let own = &mut self.slots[slot as usize];
        assert!(!own.open, "slot {slot} is open");
        own.open = true;
        own.generation += 1;
        self.table[slot as usize]
            .0
            .store(own.generation, Ordering::Release);
        own.generation
    }

    /// Closes a slot. Those inside may still be copying: the memory is the target's again when
    /// [`is_quiet`](Self::is_quiet).
    ///
    /// # Panics
    ///
    /// If there is no such slot.
    pub fn revoke(&mut self, slot: u32) {
        self.slots[slot as usize].open = false;
        self.table[slot as usize].0.store(0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Whether none of `connections`, which are all that are alive, is in a slot that was revoked. Once it
    /// is true it stays so until the slot is opened again.
    ///
    /// Costs one load for each connection; a connection found outside need not be asked again.
    pub fn is_quiet<'a>(
        &self,
        slot: u32,
        connections: impl IntoIterator<Item = &'a Hazard>,
    ) -> bool {
        debug_assert!(!self.slots[slot as usize].open, "slot {slot} is open");
        let inside = inside(slot);
        connections
            .into_iter()
            .all(|hazard| hazard.0.load(Ordering::Acquire) != inside)
    }
}

impl Hazard {
    /// Takes the word of an initiator that has ended out of the way. Never while it can still run.
    pub fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// The slot that the initiator is in, as far as it tells the truth. Once it was shut out for good, it is in none for
    /// good when this is `None`.
    pub fn slot(&self) -> Option<u32> {
        let word = self.0.load(Ordering::Acquire);
        word.checked_sub(1).and_then(|slot| slot.try_into().ok())
    }
}

impl Entrant {
    /// The initiating side of a connection: the target's table, and the connection's own word.
    ///
    /// # Panics
    ///
    /// If `hazard` is not one word.
    pub fn new(table: Shared<Generation>, hazard: Shared<Hazard>) -> Self {
        assert_eq!(hazard.len(), 1, "a connection has one hazard");
        Self { table, hazard }
    }

    /// Passes the gate of `slot`, if `generation` still does.
    ///
    /// # Errors
    ///
    /// - [`Refused::Revoked`] if it does not.
    /// - [`Refused::NoSuchSlot`] if the target has no such slot.
    #[inline]
    pub fn enter(&mut self, slot: u32, generation: u64) -> Result<Pass<'_>, Refused> {
        let Some(gate) = self.table.get(slot as usize) else {
            return Err(Refused::NoSuchSlot {
                slot,
                slots: self.table.len(),
            });
        };
        let hazard = &self.hazard[0];
        hazard.0.store(inside(slot), Ordering::Release);
        let pass = Pass { hazard };
        fence(Ordering::SeqCst);
        // The table may be mapped for reading only, where only relaxed loads are defined (`std::sync::atomic`, "Atomic
        // accesses to read-only memory"); the fence makes the acquire of it.
        let current = gate.0.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        // Zero is nobody's generation, whatever a remote key says.
        if current != generation || current == 0 {
            return Err(Refused::Revoked {
                slot,
                generation,
                current,
            });
        }
        Ok(pass)
    }
}

impl Entrant {
    /// As [`enter`](Self::enter), until [`Stay::leave`].
    ///
    /// # Errors
    ///
    /// As there, and the initiator is given back.
    pub fn stay(mut self, slot: u32, generation: u64) -> Result<Stay, (Self, Refused)> {
        let entered = self.enter(slot, generation).map(std::mem::forget);
        if let Err(refused) = entered {
            return Err((self, refused));
        }
        let entrant = Some(self);
        Ok(Stay { entrant })
    }
}

impl Stay {
    /// The copies are over.
    pub fn leave(mut self) -> Entrant {
        self.end().expect("it has not left before")
    }

    fn end(&mut self) -> Option<Entrant> {
        let entrant = self.entrant.take()?;
        entrant.hazard[0].0.store(0, Ordering::Release);
        Some(entrant)
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.hazard.0.store(0, Ordering::Release);
    }
}

/// What a hazard holds inside of a slot.
fn inside(slot: u32) -> u64 {
    u64::from(slot) + 1
}

#[cfg(all(test, not(moai_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_revoked_slot_is_quiet_when_everyone_has_left() {
        let table = Shared::zeroed(4);
        let hazards = [Shared::zeroed(1), Shared::zeroed(1)];
        let mut target = Target::new(table.clone());
        let [mut one, mut two] = hazards
            .clone()
            .map(|hazard| Entrant::new(table.clone(), hazard));
        let all = || hazards.iter().map(|hazard| &hazard[0]);
        let generation = target.open(2);
        let other = target.open(3);
        let first = one.enter(2, generation).unwrap();
        let second = two.enter(3, other).unwrap();
        target.revoke(2);
        assert!(!target.is_quiet(2, all()));
        drop(first);
        assert!(target.is_quiet(2, all()));
        drop(second);
        let refused = one.enter(2, generation).unwrap_err();
        let current = 0;
        assert_eq!(
            refused,
            Refused::Revoked {
                slot: 2,
                generation,
                current
            }
        );
        assert!(target.is_quiet(2, all()), "who is refused is not inside");
        let next = target.open(2);
        assert_ne!(next, generation);
        assert!(one.enter(2, generation).is_err());
        assert!(one.enter(2, next).is_ok());
    }

    #[test]
    fn keys_that_no_registration_has_do_not_pass() {
        let table = Shared::zeroed(2);
        let mut target = Target::new(table.clone());
        let mut entrant = Entrant::new(table, Shared::zeroed(1));
        let generation = target.open(1);
        assert!(entrant.enter(0, 0).is_err(), "nobody's generation");
        assert!(entrant.enter(0, generation).is_err());
        assert!(entrant.enter(1, generation + 1).is_err());
        for slot in [2, u32::MAX] {
            let refused = entrant.enter(slot, generation).unwrap_err();
            assert_eq!(refused, Refused::NoSuchSlot { slot, slots: 2 });
        }
        assert!(entrant.enter(1, generation).is_ok());
    }

    #[test]
    fn a_stay_holds_the_slot_until_it_ends() {
        let table = Shared::zeroed(2);
        let hazard = Shared::<Hazard>::zeroed(1);
        let mut target = Target::new(table.clone());
        let generation = target.open(1);
        let entrant = Entrant::new(table, hazard.clone());
        let stay = entrant.stay(1, generation).unwrap();
        target.revoke(1);
        assert!(!target.is_quiet(1, [&hazard[0]]));
        let entrant = stay.leave();
        assert!(target.is_quiet(1, [&hazard[0]]));
        let (entrant, _) = entrant.stay(1, generation).unwrap_err();
        assert!(target.is_quiet(1, [&hazard[0]]));
        let generation = target.open(1);
        let stay = entrant.stay(1, generation).unwrap();
        target.revoke(1);
        assert!(!target.is_quiet(1, [&hazard[0]]));
        drop(stay);
        assert!(target.is_quiet(1, [&hazard[0]]));
    }

    #[test]
    fn a_dead_initiator_is_cleared_out_of_the_way() {
        let table = Shared::zeroed(1);
        let hazard = Shared::<Hazard>::zeroed(1);
        let mut target = Target::new(table.clone());
        let mut entrant = Entrant::new(table, hazard.clone());
        let generation = target.open(0);
        std::mem::forget(entrant.enter(0, generation).unwrap());
        target.revoke(0);
        assert!(!target.is_quiet(0, [&hazard[0]]));
        hazard[0].clear();
        assert!(target.is_quiet(0, [&hazard[0]]));
        // Whatever else it wrote there names no slot, or holds one up.
        for value in [u64::MAX, 2, 1 << 32] {
            hazard[0].0.store(value, Ordering::Relaxed);
            assert!(target.is_quiet(0, [&hazard[0]]));
        }
    }

    #[test]
    fn threads_never_write_after_quiet() {
        use std::sync::atomic::{AtomicBool, AtomicU64 as Word};
        let rounds = if cfg!(miri) { 20 } else { 2000 };
        let table = Shared::zeroed(1);
        let hazards = [Shared::<Hazard>::zeroed(1), Shared::zeroed(1)];
        let mut target = Target::new(table.clone());
        let (memory, key, over) = (
            Word::new(0),
            Word::new(target.open(0)),
            AtomicBool::new(false),
        );
        std::thread::scope(|scope| {
            for hazard in hazards.clone() {
                let mut entrant = Entrant::new(table.clone(), hazard);
                let (memory, key, over) = (&memory, &key, &over);
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        let generation = key.load(Ordering::Relaxed);
                        if let Ok(_pass) = entrant.enter(0, generation) {
                            memory.store(generation, Ordering::Relaxed);
                        }
                        std::thread::yield_now();
                    }
                });
            }
            for _ in 0..rounds {
                std::thread::yield_now();
                target.revoke(0);
                while !target.is_quiet(0, hazards.iter().map(|hazard| &hazard[0])) {
                    std::thread::yield_now();
                }
                memory.store(0, Ordering::Relaxed);
                std::thread::yield_now();
                assert_eq!(memory.load(Ordering::Relaxed), 0, "written late");
                key.store(target.open(0), Ordering::Relaxed);
            }
            over.store(true, Ordering::Relaxed);
        });
    }
}
