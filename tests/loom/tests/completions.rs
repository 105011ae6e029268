//! Completions: each operation's outcome arrives once, after what the completer did, and wakes the owner.
#![cfg(moai_loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use moai_transport::Token;
use moai_transport::sync::completions::{Completer, Completions, slot_of};
use moai_transport::sync::doorbell::Wake;

/// What an operation produces, by slot: written by the completer before, read by the owner after.
struct Results([UnsafeCell<u32>; 2]);

impl Results {
    fn new() -> Arc<Self> {
        Arc::new(Self([UnsafeCell::new(0), UnsafeCell::new(0)]))
    }
}

fn complete(completer: &Completer, results: &Results, token: Token, outcome: u32) -> Wake {
    let result = &results.0[slot_of(token) as usize];
    // SAFETY: loom's cell refuses what is not ordered.
    result.with_mut(|result| unsafe { *result = outcome });
    completer.complete(token, outcome).unwrap()
}

/// Takes an outcome, sleeping until there is one. A lost wake-up is a deadlock, which loom reports.
fn take(queue: &mut Completions, results: &Results) -> (Token, u32) {
    loop {
        if let Some((token, outcome)) = queue.take() {
            let result = &results.0[slot_of(token) as usize];
            // SAFETY: loom's cell refuses what is not ordered.
            assert_eq!(result.with(|result| unsafe { *result }), outcome);
            return (token, outcome);
        }
        if queue.park() {
            thread::park();
            queue.unpark();
        }
    }
}

/// Two threads complete an operation each.
#[test]
fn outcomes_of_two_threads_arrive_once() {
    loom::model(|| {
        let mut queue = Completions::new(2);
        let results = Results::new();
        let owner = thread::current();
        let tokens = [queue.post().unwrap(), queue.post().unwrap()];
        for (token, outcome) in tokens.into_iter().zip([7, 8]) {
            let (completer, results, owner) = (queue.completer(), results.clone(), owner.clone());
            thread::spawn(move || {
                if complete(&completer, &results, token, outcome) == Wake::Needed {
                    owner.unpark();
                }
            });
        }
        let mut taken = [take(&mut queue, &results), take(&mut queue, &results)];
        taken.sort_by_key(|(_, outcome)| *outcome);
        assert_eq!(taken, [(tokens[0], 7), (tokens[1], 8)]);
        assert_eq!(queue.take(), None);
    });
}

/// A slot is used again while another operation is in flight, so tickets go around the ring of words.
#[test]
fn slots_and_words_are_used_again() {
    loom::model(|| {
        let mut queue = Completions::new(2);
        let results = Results::new();
        let owner = thread::current();
        let (first, second) = (queue.post().unwrap(), queue.post().unwrap());
        let spawn = |queue: &Completions, token, outcome| {
            let (completer, results, owner) = (queue.completer(), results.clone(), owner.clone());
            thread::spawn(move || {
                if complete(&completer, &results, token, outcome) == Wake::Needed {
                    owner.unpark();
                }
            });
        };
        let _ = complete(&queue.completer(), &results, first, 7);
        spawn(&queue, second, 8);
        let (mut outcomes, mut posted) = (Vec::new(), false);
        while outcomes.len() < 3 {
            outcomes.push(take(&mut queue, &results).1);
            if !posted {
                posted = true;
                let third = queue.post().unwrap();
                spawn(&queue, third, 9);
            }
        }
        outcomes.sort_unstable();
        assert_eq!(outcomes, [7, 8, 9]);
    });
}

/// Two threads complete the same operation, as when one reports success and another cancels.
#[test]
fn an_operation_completes_once() {
    loom::model(|| {
        let mut queue = Completions::new(1);
        let token = queue.post().unwrap();
        let completer = queue.completer();
        let other = thread::spawn(move || completer.complete(token, 1).is_ok());
        let ours = queue.completer().complete(token, 2).is_ok();
        let theirs = other.join().unwrap();
        assert!(ours != theirs);
        assert_eq!(queue.take(), Some((token, if ours { 2 } else { 1 })));
        assert_eq!(queue.take(), None);
        let next = queue.post().unwrap();
        assert!(queue.completer().complete(token, 3).is_err());
        assert!(queue.completer().complete(next, 4).is_ok());
    });
}
