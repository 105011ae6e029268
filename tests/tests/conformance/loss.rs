//! A peer that goes away in the middle: every operation ends once, and nothing is written afterwards.

use std::thread;
use std::time::{Duration, Instant};

use moai_transport::{Closed, Fault, Posted};

use crate::far::Order;
use crate::lists::List;
use crate::pair::{ALL_RIGHTS, Pair, Setting};
use crate::run::{Absent, Outcome};
use crate::transfers::same;

const LEN: u32 = 64 << 10;
const COUNT: u64 = 16;

/// Gets and puts in flight, each with a place of its own.
struct Flight {
    local: u32,
    posted: Vec<Posted>,
}

fn launch(pair: &mut Pair) -> Result<Flight, Absent> {
    let len = u64::from(LEN) * COUNT;
    let remote = pair.remote(len, 3, ALL_RIGHTS)?;
    let local = pair.local(&vec![0; len as usize])?;
    let mut posted = Vec::new();
    for nth in 0..COUNT {
        let here = [List::piece(local, nth * u64::from(LEN), LEN)];
        let there = [remote.piece(nth * u64::from(LEN), LEN)];
        posted.push(
            pair.near
                .transfer(nth % 2 == 0, pair.to, &here, &there)
                .unwrap(),
        );
    }
    Ok(Flight { local, posted })
}

/// Each operation has one outcome; after that, nothing of it is written here.
fn land(pair: &mut Pair, flight: &Flight) {
    pair.near
        .until("all operations to end", |near| near.in_flight.is_empty());
    for posted in &flight.posted {
        match posted {
            Posted::Done => {}
            Posted::Busy => panic!("busy"),
            Posted::InFlight(token) => {
                let mut ends = pair.near.ended.iter().filter(|end| end.token == *token);
                let outcome = ends.next().expect("an outcome").outcome;
                let known = matches!(outcome, Ok(()) | Err(Fault::PeerLost));
                assert!(known, "{outcome:?}");
                assert!(ends.next().is_none());
            }
        }
    }
    let before = pair.near.bytes(flight.local);
    thread::sleep(Duration::from_millis(30));
    pair.near.poll(Duration::from_millis(5));
    same(
        "written after it had ended",
        &pair.near.bytes(flight.local),
        &before,
    );
}

/// The peer's process is killed, or its interface dropped.
pub(crate) fn a_peer_that_dies(setting: &Setting) -> Outcome {
    for delay_us in [0, 300, 3000] {
        let mut pair = Pair::new(setting)?;
        let flight = launch(&mut pair)?;
        thread::sleep(Duration::from_micros(delay_us));
        pair.far.kill();
        let why = pair.near.closed(pair.to);
        assert!(!why.starts_with("ByUs"), "{why}");
        land(&mut pair, &flight);
        let flushed = pair.near.flush(pair.to);
        assert!(flushed.is_err(), "{flushed:?}");
    }
    Ok(())
}

/// The peer's process stands still: nobody here waits for it, and what we end, ends.
pub(crate) fn a_peer_that_stands_still(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    let len = u64::from(LEN) * COUNT;
    let remote = pair.remote(len, 3, ALL_RIGHTS)?;
    let local = pair.local(&vec![7; len as usize])?;
    pair.far.stop(true);
    // The longest call is what others would wait for.
    let (mut longest, mut count) = (Duration::ZERO, 0);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(300) {
        let asked = Instant::now();
        let piece = [List::piece(local, 0, LEN)];
        let _ = pair
            .near
            .transfer(count % 2 == 0, pair.to, &piece, &[remote.piece(0, LEN)])
            .unwrap();
        let _ = pair.near.interface.send(pair.to, &[1; 1000]).unwrap();
        pair.near.poll(Duration::ZERO);
        longest = longest.max(asked.elapsed());
        count += 1;
    }
    pair.near.interface.close(pair.to);
    pair.near.take_completions();
    assert!(
        pair.near.in_flight.is_empty(),
        "close has left operations in flight"
    );
    let before = pair.near.bytes(local);
    pair.far.stop(false);
    let why = pair.far_closed()?;
    assert!(!why.starts_with("ByUs"), "{why}");
    pair.near.poll(Duration::from_millis(20));
    same(
        "written after it had ended",
        &pair.near.bytes(local),
        &before,
    );
    assert!(longest < Duration::from_secs(1), "a call took {longest:?}");
    Ok(())
}

/// The peer closes in the middle.
pub(crate) fn a_peer_that_closes(setting: &Setting) -> Outcome {
    for finish in [false, true] {
        let mut pair = Pair::new(setting)?;
        let flight = launch(&mut pair)?;
        let order = if finish {
            Order::Finish { peer: 0 }
        } else {
            Order::Close { peer: 0 }
        };
        pair.far.ask(order)?;
        let why = pair.near.closed(pair.to);
        assert!(!why.starts_with("ByUs"), "{why}");
        land(&mut pair, &flight);
    }
    Ok(())
}

/// We close in the middle: operations end at once.
pub(crate) fn closing_with_operations_in_flight(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    let flight = launch(&mut pair)?;
    pair.near.interface.close(pair.to);
    pair.near.take_completions();
    assert!(
        pair.near.in_flight.is_empty(),
        "close has left operations in flight"
    );
    land(&mut pair, &flight);
    assert!(pair.near.why(pair.to).is_none());
    Ok(())
}

/// We finish in the middle: operations end, then both sides are told.
pub(crate) fn finishing_with_operations_in_flight(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    let flight = launch(&mut pair)?;
    pair.near.interface.finish(pair.to);
    pair.near.closed(pair.to);
    assert!(
        matches!(pair.near.why(pair.to), Some(Closed::ByUs)),
        "{:?}",
        pair.near.why(pair.to)
    );
    land(&mut pair, &flight);
    let why = pair.far_closed()?;
    assert!(why.starts_with("ByPeer"), "{why}");
    Ok(())
}
