//! The gate: the memory of a slot that was revoked and is quiet is written by nobody but its target.
#![cfg(moai_loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use moai_transport::sync::gate::{Entrant, Generation, Hazard, Refused, Target};
use moai_transport::sync::shared::Shared;

/// Memory of one registration. loom reports an access that another one is not ordered with.
struct Memory(UnsafeCell<u32>);

impl Memory {
    fn new() -> Arc<Self> {
        Arc::new(Self(UnsafeCell::new(0)))
    }

    fn write(&self, value: u32) {
        // SAFETY: loom's cell refuses what is not ordered.
        self.0.with_mut(|memory| unsafe { *memory = value });
    }

    fn read(&self) -> u32 {
        // SAFETY: as above.
        self.0.with(|memory| unsafe { *memory })
    }
}

fn wait_until_quiet(target: &Target, slot: u32, hazards: &[Shared<Hazard>]) {
    while !target.is_quiet(slot, hazards.iter().map(|hazard| &hazard[0])) {
        thread::yield_now();
    }
}

/// Initiators with a connection each write into slot 0 while its target takes it back.
fn nothing_is_written_late(initiators: usize) {
    loom::model(move || {
        let table = Shared::<Generation>::zeroed(1);
        let mut target = Target::new(table.clone());
        let generation = target.open(0);
        let hazards: Vec<_> = (0..initiators).map(|_| Shared::zeroed(1)).collect();
        // Pieces of the registration, so that initiators do not race with each other.
        let pieces: Vec<_> = (0..initiators).map(|_| Memory::new()).collect();
        for (hazard, memory) in hazards.iter().zip(&pieces) {
            let mut entrant = Entrant::new(table.clone(), hazard.clone());
            let memory = memory.clone();
            thread::spawn(move || match entrant.enter(0, generation) {
                Ok(_pass) => memory.write(1),
                Err(refused) => assert!(matches!(refused, Refused::Revoked { .. })),
            });
        }
        target.revoke(0);
        wait_until_quiet(&target, 0, &hazards);
        for memory in &pieces {
            memory.write(2);
            thread::yield_now();
            assert_eq!(memory.read(), 2);
        }
    });
}

#[test]
fn one_initiator_writes_nothing_late() {
    nothing_is_written_late(1);
}

#[test]
fn two_initiators_write_nothing_late() {
    nothing_is_written_late(2);
}

/// The initiator goes on into another slot, and that is what the target sees.
#[test]
fn who_is_seen_in_another_slot_has_left_this_one() {
    loom::model(|| {
        let table = Shared::<Generation>::zeroed(2);
        let hazards = [Shared::zeroed(1)];
        let mut target = Target::new(table.clone());
        let mut entrant = Entrant::new(table, hazards[0].clone());
        let generations = [target.open(0), target.open(1)];
        let memory = [Memory::new(), Memory::new()];
        let written = memory.clone();
        thread::spawn(move || {
            for slot in [0, 1] {
                let generation = generations[slot];
                if let Ok(_pass) = entrant.enter(slot as u32, generation) {
                    written[slot].write(1);
                }
            }
        });
        target.revoke(0);
        wait_until_quiet(&target, 0, &hazards);
        memory[0].write(2);
    });
}

/// A slot is opened again; the old key stays out, and who has the new one sees what the target wrote.
#[test]
fn an_old_key_does_not_open_the_next_registration() {
    loom::model(|| {
        let table = Shared::<Generation>::zeroed(1);
        let hazards = [Shared::zeroed(1)];
        let mut target = Target::new(table.clone());
        let mut entrant = Entrant::new(table, hazards[0].clone());
        let old = target.open(0);
        let new = old + 1;
        let memory = Memory::new();
        let written = memory.clone();
        thread::spawn(move || {
            if let Ok(_pass) = entrant.enter(0, old) {
                written.write(1);
            }
            if let Ok(_pass) = entrant.enter(0, new) {
                assert_eq!(written.read(), 2);
            }
        });
        target.revoke(0);
        wait_until_quiet(&target, 0, &hazards);
        memory.write(2);
        assert_eq!(target.open(0), new);
    });
}
