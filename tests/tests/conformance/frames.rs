//! Messages and batches: whole, once, in order, and a sender that is told when there is no room.

use std::time::{Duration, Instant};

use moai_memory::MemoryKind;
use moai_transport::limits::{MAX_BATCH_BYTES, MAX_MESSAGE_BYTES};
use moai_transport::{Batch, Error, PeerId, Posted};

use crate::memory::Device;
use crate::node::{Event, GUARD, HANG, Node, Policy};
use crate::pair::{Pair, Setting};
use crate::random::Random;
use crate::run::{Absent, Outcome};

/// A frame, made from a seed by both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Frame {
    Message(Vec<u8>),
    Batch(u64, Vec<u8>),
}

fn frame(random: &mut Random, most: u64) -> Frame {
    if random.once_in(3) {
        let bytes = random.size(most.min(MAX_MESSAGE_BYTES.into())) as usize - 1;
        Frame::Message(random.bytes(bytes))
    } else {
        let id = random.next();
        let bytes = random.size(most) as usize - usize::from(random.once_in(10));
        Frame::Batch(id, random.bytes(bytes))
    }
}

/// Sends `count` frames made from `ours` and expects as many made from `theirs`.
fn exchange(node: &mut Node, peer: PeerId, [ours, theirs]: [u64; 2], count: usize, most: u64) {
    let (mut ours, mut theirs) = (Random(ours), Random(theirs));
    let (mut sent, mut received) = (0, 0);
    let mut next = None;
    let mut may_post = true;
    let start = Instant::now();
    while sent < count || received < count {
        while may_post && sent < count {
            let frame = next.get_or_insert_with(|| frame(&mut ours, most));
            let posted = match frame {
                Frame::Message(message) => node.interface.send(peer, message).unwrap(),
                Frame::Batch(id, payload) => node.post(peer, *id, payload),
            };
            match posted {
                Posted::Busy => may_post = false,
                _ => {
                    sent += 1;
                    next = None;
                }
            }
        }
        assert!(
            start.elapsed() < HANG,
            "hangs with {sent} sent, {received} received"
        );
        node.poll(Duration::from_millis(20));
        let mut kept = Vec::new();
        for event in std::mem::take(&mut node.recorder.events) {
            let arrived = match event {
                Event::Message(from, bytes) if from == peer => Frame::Message(bytes),
                Event::Landed(from, id, payload) if from == peer => Frame::Batch(id, payload),
                Event::Writable(to) if to == peer => {
                    assert!(!may_post, "writable without a Busy before");
                    may_post = true;
                    continue;
                }
                Event::Closed(of, why) if of == peer => panic!("closed: {why:?}"),
                other => {
                    kept.push(other);
                    continue;
                }
            };
            assert!(received < count, "a frame that nobody has sent");
            assert!(
                arrived == frame(&mut theirs, most),
                "frame {received} differs"
            );
            received += 1;
        }
        node.recorder.events.extend(kept);
    }
}

/// Regions for batches to land in, full of guard bytes.
fn landing(node: &mut Node, kind: MemoryKind, len: usize) -> Result<(), Absent> {
    for _ in 0..3 {
        let region = node.memory(kind, &vec![GUARD; len])?;
        node.recorder.landing.push(region);
    }
    Ok(())
}

fn only_guards(node: &Node) {
    for &region in &node.recorder.landing {
        let bytes = node.bytes(region);
        assert!(
            bytes.iter().all(|&byte| byte == GUARD),
            "bytes outside of the pieces of a batch"
        );
    }
}

/// Frames of every size, both ways at once, collected and straight into memory of the kind.
pub(crate) fn arrive_whole_once_in_order(setting: &Setting) -> Outcome {
    for (policy, count, most) in [
        (Policy::Staged, 60, 300_000),
        (Policy::Direct, 60, 300_000),
        (Policy::Mixed, 400, 3000),
    ] {
        let mut pair = Pair::new(setting)?;
        let seed = setting.seed;
        let (local, remote) = (setting.local, setting.remote);
        pair.near.recorder.policy = policy;
        landing(&mut pair.near, local, 400_000)?;
        let other = pair.far.start(move |far| {
            let from = far.incoming()[0];
            assert_eq!(far.message(from), b"hello");
            far.recorder.policy = policy;
            landing(far, remote, 400_000)?;
            exchange(far, from, [seed ^ 2, seed ^ 1], count, most);
            only_guards(far);
            Ok::<_, Absent>(far.interface.stats())
        });
        exchange(&mut pair.near, pair.to, [seed ^ 1, seed ^ 2], count, most);
        only_guards(&pair.near);
        // What is queued leaves at the latest in the next poll.
        let start = Instant::now();
        let theirs = loop {
            match other.try_recv() {
                Ok(ended) => {
                    break ended.unwrap_or_else(|panic| panic!("the other side: {panic}"))?;
                }
                Err(_) => pair.near.poll(Duration::from_millis(1)),
            }
            assert!(start.elapsed() < HANG, "the other side hangs");
        };
        let ours = pair.near.interface.stats();
        assert_eq!(theirs.messages_in + theirs.batches_in, count as u64 + 1);
        assert_eq!(ours.messages_in + ours.batches_in, count as u64);
        assert_eq!(ours.messages_out + ours.batches_out, count as u64 + 1);
        if policy == Policy::Direct {
            assert_eq!(ours.staged_bytes, 0, "staged what was to land directly");
        }
    }
    Ok(())
}

/// The largest and the empty ones; larger ones are refused.
pub(crate) fn of_the_largest_size(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    let can = pair.near.interface.capabilities().clone();
    assert!(can.max_message <= MAX_MESSAGE_BYTES && can.max_batch <= MAX_BATCH_BYTES);
    let message = pair.random.bytes(can.max_message as usize);
    let payload = pair.random.bytes(can.max_batch as usize);
    pair.near.send(pair.to, &[]);
    pair.near.send(pair.to, &message);
    assert_eq!(pair.near.post(pair.to, 1, &payload), Posted::Done);
    assert_eq!(pair.near.post(pair.to, 2, &[]), Posted::Done);
    pair.near.send(pair.to, b"end");

    let mut longer = message.clone();
    longer.push(0);
    let refused = pair.near.interface.send(pair.to, &longer);
    assert!(
        matches!(refused, Err(Error::TooLarge { .. })),
        "{refused:?}"
    );
    let bytes = can.max_batch + 1;
    let mut fill = |_: &mut [u8]| panic!("fill for a batch that is refused");
    let refused = pair
        .near
        .interface
        .post(pair.to, Batch { id: 3, bytes }, &mut fill);
    assert!(
        matches!(refused, Err(Error::TooLarge { .. })),
        "{refused:?}"
    );

    let frames = pair.far(|far| {
        let mut frames = Vec::new();
        far.until("the end", |far| {
            frames.append(&mut far.recorder.events);
            frames
                .iter()
                .any(|event| matches!(event, Event::Message(_, end) if end == b"end"))
        });
        frames.retain(|event| !matches!(event, Event::Connected(..)));
        frames
    });
    assert_eq!(frames.len(), 6, "hello, four frames and the end");
    assert!(matches!(&frames[1], Event::Message(_, bytes) if bytes.is_empty()));
    assert!(matches!(&frames[2], Event::Message(_, bytes) if *bytes == message));
    assert!(matches!(&frames[3], Event::Landed(_, 1, bytes) if *bytes == payload));
    assert!(matches!(&frames[4], Event::Landed(_, 2, bytes) if bytes.is_empty()));
    Ok(())
}

/// Who sends to a peer that does not read is told `Busy`, holds a bounded amount, reaches others meanwhile, and
/// is told when there is room: then what was refused is taken.
pub(crate) fn a_slow_reader_is_busy_and_nobody_else_notices(setting: &Setting) -> Outcome {
    const SIZE: usize = 200_000;
    let mut pair = Pair::new(setting)?;
    // Polled by hand: a peer that has connected and then does not read.
    let mut slow = setting.way.node(true, Device::new(5), setting.seed)?;
    let address = setting.way.choose(&slow.interface.addresses());
    let to_slow = pair.near.interface.connect(&address).unwrap();
    let start = Instant::now();
    while !pair.near.is_connected(to_slow) || slow.incoming().is_empty() {
        assert!(start.elapsed() < HANG, "no connection");
        let _ = pair.near.interface.send(to_slow, b"hello");
        pair.near.poll(Duration::from_millis(1));
        slow.poll(Duration::from_millis(1));
    }
    let from = slow.incoming()[0];
    let payload = |id: u64| Random(id).bytes(SIZE);
    let (mut posted, mut idle) = (0_u64, 0);
    // Until nothing has left for a while.
    while idle < 50 {
        if pair.near.post(to_slow, posted, &payload(posted)) == Posted::Busy {
            idle += 1;
            pair.near.poll(Duration::from_millis(1));
        } else {
            posted += 1;
            idle = 0;
        }
        assert!(
            posted * (SIZE as u64) < 64 << 20,
            "no bound to what is queued for a peer"
        );
    }
    assert!(posted > 0);
    let writable = |node: &mut Node| {
        let is_it = |event: &Event| matches!(event, Event::Writable(peer) if *peer == to_slow);
        let before = node.recorder.events.len();
        node.recorder.events.retain(|event| !is_it(event));
        node.recorder.events.len() < before
    };
    writable(&mut pair.near);

    // Others.
    let times = 50;
    let echo = pair.far.start(move |far| {
        let from = far.incoming()[0];
        assert_eq!(far.message(from), b"hello");
        for _ in 0..times {
            let message = far.message(from);
            far.send(from, &message);
        }
    });
    let start = Instant::now();
    for _ in 0..times {
        pair.near.send(pair.to, b"ping");
        pair.near.message(pair.to);
    }
    echo.recv()
        .unwrap()
        .unwrap_or_else(|panic| panic!("the other side: {panic}"));
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "others waited {:?}",
        start.elapsed()
    );

    // Control messages have room of their own.
    assert_eq!(
        pair.near.interface.send(to_slow, b"control").unwrap(),
        Posted::Done
    );

    // It begins to read.
    assert_eq!(
        pair.near.post(to_slow, posted, &payload(posted)),
        Posted::Busy
    );
    let busy = pair.near.interface.stats().busy;
    assert!(busy > 0);
    let start = Instant::now();
    while !writable(&mut pair.near) {
        assert!(start.elapsed() < HANG, "writable never comes");
        slow.poll(Duration::from_millis(1));
        pair.near.poll(Duration::from_millis(1));
    }
    let again = pair.near.post(to_slow, posted, &payload(posted));
    assert_eq!(
        again,
        Posted::Done,
        "writable, and then no room for what was refused"
    );
    posted += 1;
    let start = Instant::now();
    let landed = |node: &Node| {
        let events = node.recorder.events.iter();
        events
            .filter(|event| matches!(event, Event::Landed(..)))
            .count() as u64
    };
    while landed(&slow) < posted {
        assert!(
            start.elapsed() < HANG,
            "{} of {posted} batches arrived",
            landed(&slow)
        );
        slow.poll(Duration::from_millis(1));
        pair.near.poll(Duration::from_millis(1));
    }
    let mut ids = 0;
    for event in &slow.recorder.events {
        if let Event::Landed(of, id, bytes) = event {
            assert_eq!((*of, *id), (from, ids));
            assert!(*bytes == payload(ids), "batch {id} differs");
            ids += 1;
        }
    }
    Ok(())
}

/// Empty messages are bounded in number.
pub(crate) fn messages_that_nobody_reads_are_bounded(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    let (pause, paused) = std::sync::mpsc::channel::<()>();
    let stopped = pair.far.start(move |_| paused.recv().is_err());
    let mut sent = 0_u64;
    let mut idle = 0;
    while idle < 50 {
        match pair.near.interface.send(pair.to, &[]).unwrap() {
            Posted::Busy => {
                idle += 1;
                pair.near.poll(Duration::from_millis(1));
            }
            _ => {
                sent += 1;
                idle = 0;
            }
        }
        assert!(
            sent < 5_000_000,
            "no bound to the messages queued for a peer"
        );
    }
    drop(pause);
    assert_eq!(stopped.recv().unwrap(), Ok(true));
    let start = Instant::now();
    let mut read = 0;
    while read < sent + 1 {
        assert!(start.elapsed() < HANG, "{read} of {sent} messages arrived");
        pair.near.poll(Duration::from_millis(1));
        read += pair
            .far
            .run(|far| far.messages(far.incoming()[0]).len() as u64);
    }
    assert_eq!(read, sent + 1);
    Ok(())
}
