//! Waiting: elsewhere, without losing a wake-up; and without costing anything.

use std::time::{Duration, Instant};

use moai_transport::PeerId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::far::{Order, Place};
use crate::lists::List;
use crate::node::{HANG, Node};
use crate::pair::{ALL_RIGHTS, Pair, Setting};
use crate::run::Outcome;

/// Waits on the descriptor, as a caller does who waits for other things too, then polls. Whether it was readable.
fn wait_elsewhere(node: &mut Node) -> bool {
    let timeout = node.interface.arm();
    let mut readable = true;
    if timeout != Some(Duration::ZERO) {
        let longest = timeout.unwrap_or(HANG).min(HANG);
        let timespec = Timespec {
            tv_sec: longest.as_secs() as i64,
            tv_nsec: longest.subsec_nanos().into(),
        };
        let fd = node.interface.as_fd();
        readable = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timespec)).unwrap() > 0;
        assert!(readable || timeout.is_some(), "a wake-up was lost");
    }
    node.poll(Duration::ZERO);
    readable
}

fn next_message(node: &mut Node, peer: PeerId, start: Instant) -> Vec<u8> {
    loop {
        if let Some(message) = node.messages(peer).pop() {
            return message;
        }
        assert!(start.elapsed() < 2 * HANG, "the ball is lost");
        wait_elsewhere(node);
    }
}

/// Ten thousand times there and back, both sides waiting with poll(2) of their own.
pub(crate) fn no_wake_up_is_lost(setting: &Setting) -> Outcome {
    const TIMES: u32 = 10_000;
    let mut pair = Pair::new(setting)?;
    let start = Instant::now();
    let other = pair.far.start(move |far| {
        let from = far.incoming()[0];
        for _ in 0..=TIMES {
            let message = next_message(far, from, start);
            far.send(from, &message);
        }
    });
    assert_eq!(next_message(&mut pair.near, pair.to, start), b"hello");
    for nth in 0..TIMES {
        let ball = nth.to_le_bytes();
        pair.near.send(pair.to, &ball);
        assert_eq!(next_message(&mut pair.near, pair.to, start), ball);
    }
    other
        .recv_timeout(HANG)
        .unwrap()
        .unwrap_or_else(|panic| panic!("the other side: {panic}"));
    Ok(())
}

/// Completions wake too, and those not taken make waiting pointless.
pub(crate) fn completions_wake(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    let remote = pair.remote(1 << 16, 1, ALL_RIGHTS)?;
    let local = pair.local(&[1; 1 << 16])?;
    for round in 0..300 {
        let here = [List::piece(local, 0, 1 << 16)];
        let there = [remote.piece(0, 1 << 16)];
        let _ = pair
            .near
            .transfer(round % 2 == 0, pair.to, &here, &there)
            .unwrap();
        let start = Instant::now();
        while !pair.near.in_flight.is_empty() {
            assert!(start.elapsed() < HANG, "no completion");
            wait_elsewhere(&mut pair.near);
        }
    }
    // With a completion to take, nobody waits.
    let here = [List::piece(local, 0, 1 << 16)];
    if let moai_transport::Posted::InFlight(token) = pair
        .near
        .transfer(true, pair.to, &here, &[remote.piece(0, 1 << 16)])
        .unwrap()
    {
        let start = Instant::now();
        let ended = loop {
            assert!(start.elapsed() < HANG, "no completion");
            let asked = Instant::now();
            pair.near
                .interface
                .poll(Some(HANG), &mut pair.near.recorder)
                .unwrap();
            let again = pair
                .near
                .interface
                .poll(Some(HANG), &mut pair.near.recorder);
            again.unwrap();
            assert!(
                asked.elapsed() < HANG,
                "poll waits while there is a completion to take"
            );
            if let Some(ended) = pair.near.interface.completion() {
                break ended;
            }
        };
        assert_eq!(ended.token, token);
        pair.near.in_flight.remove(&token.0);
    }
    Ok(())
}

/// A process with nothing to do but wait costs less than a hundredth of a processor.
pub(crate) fn idle_costs_nothing(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(&Setting {
        place: Place::Process,
        ..*setting
    })?;
    let address = pair.far.address()?;
    for _ in 0..20 {
        let peer = pair.near.connect(&address);
        pair.near.send(peer, b"hello");
    }
    pair.near_until_far("peers", Order::Peers, |peers| peers == 21)?;
    let idle = Duration::from_millis(1200);
    let (to, start) = (pair.to, Instant::now());
    let near = &mut pair.near;
    let far = &mut pair.far;
    let spent = std::thread::scope(|scope| {
        let asked = scope.spawn(|| far.number(Order::Idle { peer: 0 }));
        while start.elapsed() < idle {
            std::thread::sleep(Duration::from_millis(100));
            near.poll(Duration::ZERO);
        }
        near.send(to, b"wake up");
        while !asked.is_finished() {
            near.poll(Duration::from_millis(5));
        }
        asked.join().unwrap()
    })?;
    let spent = Duration::from_nanos(spent);
    assert!(
        spent < idle / 100,
        "{spent:?} of processor time in {idle:?}"
    );
    Ok(())
}

/// A poll keeps to its timeout: not much longer, and not for ever.
pub(crate) fn a_timeout_is_kept(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    for ms in [0, 1, 30] {
        let start = Instant::now();
        let timeout = Duration::from_millis(ms);
        // It may return early with nothing to show; over a few calls it does not spin.
        let mut polls = 0;
        while start.elapsed() < timeout || polls == 0 {
            pair.near.poll(timeout.saturating_sub(start.elapsed()));
            polls += 1;
        }
        assert!(
            start.elapsed() < timeout + Duration::from_secs(2),
            "{:?}",
            start.elapsed()
        );
        assert!(polls < 100, "{polls} polls in {ms} ms");
    }
    Ok(())
}
