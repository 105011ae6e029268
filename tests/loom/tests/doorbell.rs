//! The doorbell: work that is published is seen by whoever sleeps for it.
#![cfg(moai_loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering::Relaxed};
use loom::thread;
use moai_transport::sync::doorbell::{Doorbell, Wake};

/// The sleeper waits until it has seen as much work as `ringers` threads bring, two pieces each. The work
/// is a relaxed counter, so that nothing but the doorbell orders it. A lost wake-up is a deadlock.
fn no_wake_up_is_lost(ringers: u32) {
    loom::model(move || {
        let shared = Arc::new((Doorbell::default(), AtomicU32::new(0)));
        let sleeper = thread::current();
        let pieces = if ringers == 1 { 2 } else { 1 };
        for _ in 0..ringers {
            let (shared, sleeper) = (shared.clone(), sleeper.clone());
            thread::spawn(move || {
                for _ in 0..pieces {
                    shared.1.fetch_add(1, Relaxed);
                    if shared.0.check() == Wake::Needed {
                        sleeper.unpark();
                    }
                }
            });
        }
        let (bell, work) = &*shared;
        while work.load(Relaxed) < ringers * pieces {
            bell.announce();
            if work.load(Relaxed) < ringers * pieces {
                thread::park();
            }
            bell.withdraw();
        }
    });
}

#[test]
fn one_ringer_wakes_the_sleeper() {
    no_wake_up_is_lost(1);
}

#[test]
fn two_ringers_wake_the_sleeper() {
    no_wake_up_is_lost(2);
}
