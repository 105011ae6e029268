//! The ring: frames come whole and in order, no span is touched by both sides, and no wake-up is lost.
#![cfg(moai_loom)]

use loom::thread;
use moai_transport::sync::doorbell::Wake;
use moai_transport::sync::ring::{Consumer, Producer, pair};

/// Sends one frame whose bytes all equal its id, or says that there is no room.
fn send(producer: &mut Producer, id: u8, bytes: u32) -> bool {
    let Some(mut draft) = producer.reserve(bytes).unwrap() else {
        return false;
    };
    draft.fill(id);
    draft.commit(7, id.into());
    true
}

/// Takes the next frame, if it is there, and compares it.
fn receive(consumer: &mut Consumer, id: u8, bytes: u32) -> bool {
    let Some(frame) = consumer.peek().unwrap() else {
        return false;
    };
    assert_eq!((frame.kind, frame.id), (7, id.into()));
    assert_eq!(frame.bytes, vec![id; bytes as usize]);
    consumer.release();
    true
}

/// Frames that fill a ring of 64 bytes exactly, and two more that go where the first was.
#[test]
fn frames_come_whole_and_in_order_around_the_ring() {
    const FRAMES: [u32; 5] = [16, 0, 0, 0, 0];
    loom::model(|| {
        let (mut producer, mut consumer) = pair(64).unwrap();
        let sender = thread::spawn(move || {
            for (id, bytes) in (0..).zip(FRAMES) {
                while !send(&mut producer, id, bytes) {
                    thread::yield_now();
                }
                let _ = producer.publish();
            }
        });
        for (id, bytes) in (0..).zip(FRAMES) {
            while !receive(&mut consumer, id, bytes) {
                thread::yield_now();
            }
            let _ = consumer.publish();
        }
        sender.join().unwrap();
    });
}

/// The second frame does not fit behind the first two units, so the end is skipped.
#[test]
fn the_skipped_end_belongs_to_nobody_twice() {
    loom::model(|| {
        let (mut producer, mut consumer) = pair(64).unwrap();
        // Leaves one unit before the end.
        for _ in 0..3 {
            assert!(send(&mut producer, 9, 0));
        }
        let _ = producer.publish();
        let sender = thread::spawn(move || {
            while !send(&mut producer, 1, 16) {
                thread::yield_now();
            }
            let _ = producer.publish();
        });
        for _ in 0..3 {
            assert!(receive(&mut consumer, 9, 0));
        }
        let _ = consumer.publish();
        while !receive(&mut consumer, 1, 16) {
            thread::yield_now();
        }
        sender.join().unwrap();
    });
}

/// Frames published together are seen together or not yet.
#[test]
fn a_run_of_frames_is_published_at_once() {
    loom::model(|| {
        let (mut producer, mut consumer) = pair(64).unwrap();
        let sender = thread::spawn(move || {
            assert!(send(&mut producer, 1, 0));
            assert!(send(&mut producer, 2, 16));
            let _ = producer.publish();
        });
        if receive(&mut consumer, 1, 0) {
            assert!(receive(&mut consumer, 2, 16));
        }
        sender.join().unwrap();
    });
}

/// Both sides sleep whenever they cannot go on: the consumer for frames, the producer for room. A lost
/// wake-up is a deadlock, which loom reports.
#[test]
fn no_wake_up_is_lost_in_either_direction() {
    loom::model(|| {
        let (mut producer, mut consumer) = pair(64).unwrap();
        let receiver = thread::current();
        let sender = thread::spawn(move || {
            for id in 0..3 {
                while !send(&mut producer, id, 16) {
                    if producer.park(16).unwrap() {
                        thread::park();
                        producer.unpark();
                    }
                }
                if producer.publish() == Wake::Needed {
                    receiver.unpark();
                }
            }
        });
        for id in 0..3 {
            while !receive(&mut consumer, id, 16) {
                if consumer.park().unwrap() {
                    thread::park();
                    consumer.unpark();
                }
            }
            if consumer.publish() == Wake::Needed {
                sender.thread().unpark();
            }
        }
        sender.join().unwrap();
    });
}
