//! Messages, batches, puts, gets and maps between two interfaces, against what they must do.

mod common;

use std::time::Duration;

use common::{Event, Lists, RIGHTS, Random, Side, pair, together};
use moai_memory::Region;
use moai_transport::{
    Batch, Closed, Error, Fault, Interface, Operation, Pieces, Posted, Reach, Refusal, Rights,
    Token,
};
use moai_transport_shm::ShmConfig;

#[test]
fn messages_come_whole_and_in_order_whatever_their_length() {
    let (mut left, mut right, to_right, to_left) = pair(&ShmConfig::default());
    let mut random = Random(1);
    let lengths = [0, 1, 15, 16, 17, 4096, 4097, 1 << 20];
    let sent: Vec<_> = (0..200)
        .map(|n| {
            let len = lengths[n % lengths.len()] >> ((n / 64) * 3);
            random.bytes(len)
        })
        .collect();
    let mut next = 0;
    let mut received = Vec::new();
    together(&mut left, &mut right, |left, right| {
        while next < sent.len() {
            match left.interface.send(to_right, &sent[next]).unwrap() {
                Posted::Done => next += 1,
                _ => break,
            }
        }
        for event in right.take() {
            match event {
                Event::Message(peer, bytes) => {
                    assert_eq!(peer, to_left);
                    received.push(bytes);
                }
                other => panic!("{other:?}"),
            }
        }
        received.len() == sent.len()
    });
    assert!(received == sent);
    let too_long = vec![0; (1 << 20) + 1];
    assert!(matches!(
        left.interface.send(to_right, &too_long),
        Err(Error::TooLarge { .. })
    ));
}

#[test]
fn batches_are_seen_in_place_or_land_in_pieces() {
    for piece in [None, Some(1000)] {
        let (mut left, mut right, to_right, _) = pair(&ShmConfig::default());
        right.told.piece = piece;
        right.told.regions = vec![Region::host_zeroed(9 << 20).unwrap()];
        let mut random = Random(2);
        for (id, bytes) in [0, 1, 999, 1000, 1001, 300_000, 4 << 20]
            .into_iter()
            .enumerate()
        {
            let payload = random.bytes(bytes);
            let batch = Batch {
                id: id as u64,
                bytes: bytes as u32,
            };
            let mut filled = 0;
            let posted = left.interface.post(to_right, batch, &mut |room| {
                filled += 1;
                room.copy_from_slice(&payload);
            });
            assert_eq!((posted.unwrap(), filled), (Posted::Done, 1));
            assert_eq!(
                left.interface.send(to_right, b"behind it").unwrap(),
                Posted::Done
            );
            let landed = right.until(|event| match event {
                Event::Landed(_, landed, staged) => {
                    assert_eq!(*landed, batch);
                    Some(staged.clone())
                }
                _ => None,
            });
            right.until(|event| matches!(event, Event::Message(..)).then_some(()));
            let seen = landed.unwrap_or_else(|| {
                let region = right.told.regions[0].as_slice();
                let place = |at: usize| region[2 * (at - at % 1000) + at % 1000];
                (0..bytes).map(place).collect()
            });
            assert!(seen == payload, "batch of {bytes} bytes");
            right.take();
        }
        let batch = Batch {
            id: 0,
            bytes: (4 << 20) + 1,
        };
        assert!(matches!(
            left.interface.post(to_right, batch, &mut |_| {}),
            Err(Error::TooLarge { .. })
        ));
    }
}

#[test]
fn a_full_queue_is_busy_and_writable_when_it_is_not() {
    let (mut left, mut right, to_right, _) = pair(&ShmConfig::default());
    let batch = Batch {
        id: 1,
        bytes: 1 << 20,
    };
    let mut posted = 0;
    while left.interface.post(to_right, batch, &mut |_| {}).unwrap() == Posted::Done {
        posted += 1;
        assert!(posted < 20);
    }
    assert!(posted >= 7, "{posted} batches of 1 MiB in 16 MiB");
    // Payload does not keep messages from being sent.
    let mut messages = 0;
    while left.interface.send(to_right, b"stop").unwrap() == Posted::Done {
        messages += 1;
        assert!(messages < 10_000);
    }
    assert!(messages > 1000);
    left.poll(Duration::from_millis(1));
    assert!(left.take().is_empty());
    right.told.is_quiet = true;
    together(&mut left, &mut right, |left, right| {
        let writable = |event: &Event| matches!(event, Event::Writable(_));
        right.told.count == posted + messages && left.told.events.iter().any(writable)
    });
    assert_eq!(
        left.interface.post(to_right, batch, &mut |_| {}).unwrap(),
        Posted::Done
    );
}

/// Random puts and gets between lists of several regions, against copying byte by byte.
fn compare(config: &ShmConfig, kinds: [fn(u64) -> Region; 3], seed: u64) {
    println!("seed {seed}");
    let mut random = Random(seed);
    let (mut left, mut right, to_right, to_left) = pair(config);
    let lens = [70_000_u64, 300_000, 5000];
    let mut own: Vec<Vec<u8>> = Vec::new();
    let mut theirs: Vec<Vec<u8>> = Vec::new();
    let mut numbers = Vec::new();
    for (make, len) in kinds.into_iter().zip(lens) {
        for (side, copy) in [(&mut left, &mut own), (&mut right, &mut theirs)] {
            let mut region = make(len);
            let bytes = random.bytes(region.len() as usize);
            region.as_mut_slice().copy_from_slice(&bytes);
            copy.push(bytes);
            side.told.regions.push(region);
        }
        let index = right.told.regions.len() - 1;
        let region = &right.told.regions[index];
        let id = right
            .interface
            .register(index as u32, region, RIGHTS)
            .unwrap();
        let key = right.interface.remote_key(to_left, id).unwrap();
        numbers.push(left.interface.import(to_right, &key).unwrap());
    }
    assert_eq!(numbers, [0, 1, 2]);
    let all: Vec<(u32, u64)> = (0..3).zip(lens).collect();
    let mut moved = 0;
    for round in 0..200 {
        let is_put = random.below(2) == 0;
        let remote = Lists::random(&mut random, &all, 200_000);
        let total = remote.total();
        let local = Lists::matching(&mut random, &all, total);
        let (here, there) = (local.pieces(), remote.pieces());
        let posted = if is_put {
            left.put(to_right, &here, &there)
        } else {
            left.get(to_right, &here, &there)
        };
        match posted.unwrap() {
            Posted::Done => {}
            Posted::Busy => panic!("busy"),
            Posted::InFlight(_) => {
                let mut ended = None;
                together(&mut left, &mut right, |left, _| {
                    ended = left.completion();
                    ended.is_some()
                });
                assert_eq!(ended.unwrap().outcome, Ok(()), "round {round}");
            }
        }
        for (here, there) in local.places().into_iter().zip(remote.places()) {
            let (here, there) = (&mut own[here.0][here.1], &mut theirs[there.0][there.1]);
            if is_put {
                *there = *here;
            } else {
                *here = *there;
            }
        }
        moved += total;
        for (side, copy) in [(&left, &own), (&right, &theirs)] {
            for (region, copy) in side.told.regions.iter().zip(copy) {
                assert!(region.as_slice() == copy, "round {round}");
            }
        }
    }
    let stats = left.interface.stats();
    assert_eq!(stats.put_bytes + stats.got_bytes, moved);
    assert!(moved > 1 << 20);
}

fn host(bytes: u64) -> Region {
    Region::host_zeroed(bytes).unwrap()
}

fn pinned(bytes: u64) -> Region {
    Region::pinned_zeroed(bytes).unwrap()
}

fn shared(bytes: u64) -> Region {
    Region::shared_zeroed(bytes).unwrap()
}

/// The second part of a shared region, which does not start with a page.
fn part(bytes: u64) -> Region {
    Region::shared_zeroed(bytes + 100).unwrap().split_at(100).1
}

#[test]
fn puts_and_gets_of_shared_memory_move_every_byte_to_its_place() {
    compare(&ShmConfig::default(), [shared, part, shared], 3);
}

#[test]
fn puts_and_gets_of_other_memory_move_every_byte_to_its_place() {
    compare(&ShmConfig::default(), [host, pinned, part], 4);
}

#[test]
fn puts_and_gets_that_both_sides_copy_move_every_byte_to_its_place() {
    let config = ShmConfig {
        foreign: false,
        staging_bytes: 4 << 20,
        ..ShmConfig::default()
    };
    compare(&config, [host, pinned, part], 5);
    compare(&config, [shared, host, host], 6);
}

#[test]
fn mapped_memory_shows_what_the_peer_writes_and_outlives_the_connection() {
    let (mut left, mut right, to_right, to_left) = pair(&ShmConfig::default());
    let id = right.register(part(5000), RIGHTS);
    let plain = right.register(host(100), RIGHTS);
    let hidden = right.register(shared(100), Rights::READ);
    let mut import = |id| {
        let key = right.interface.remote_key(to_left, id).unwrap();
        left.interface.import(to_right, &key).unwrap()
    };
    let (number, plain, hidden) = (import(id), import(plain), import(hidden));
    let mapped = left.interface.map(to_right, number).unwrap();
    assert_eq!(mapped.len(), 5000);
    right.told.regions[0].as_mut_slice()[4999] = 9;
    assert_eq!(mapped.as_slice()[4999], 9);
    assert!(matches!(
        left.interface.map(to_right, plain),
        Err(Error::Unsupported { .. })
    ));
    assert!(matches!(
        left.interface.map(to_right, hidden),
        Err(Error::Refused(Refusal::Rights))
    ));
    assert!(matches!(
        left.interface.map(to_right, 17),
        Err(Error::NotImported { region: 17 })
    ));
    right.interface.deregister(id).unwrap();
    assert!(matches!(
        left.interface.map(to_right, number),
        Err(Error::Refused(Refusal::Generation))
    ));
    left.interface.close(to_right);
    drop(right);
    assert_eq!(mapped.as_slice()[4999], 9);
}

#[test]
fn what_is_stale_out_of_bounds_or_not_allowed_is_refused_and_writes_nothing() {
    let staged = ShmConfig {
        foreign: false,
        ..ShmConfig::default()
    };
    for (config, make) in [
        (ShmConfig::default(), shared as fn(u64) -> Region),
        (ShmConfig::default(), host),
        (staged, host),
    ] {
        let (mut left, mut right, to_right, to_left) = pair(&config);
        left.told.regions.push(host(8192));
        left.told.regions[0].as_mut_slice().fill(1);
        let id = right.register(make(4096), RIGHTS);
        let only_read = right.register(make(4096), Rights::READ);
        let key = right.interface.remote_key(to_left, id).unwrap();
        let read = right.interface.remote_key(to_left, only_read).unwrap();
        let good = left.interface.import(to_right, &key).unwrap();
        let read = left.interface.import(to_right, &read).unwrap();
        let mut forge = |at: usize, value: u8| {
            let mut forged = key;
            forged[at] = value;
            left.interface.import(to_right, &forged).unwrap()
        };
        let longer = forge(25, 0x20);
        let (epoch, generation, slot) = (forge(8, key[8] ^ 1), forge(20, 9), forge(16, 200));
        let mut allowed = right.interface.remote_key(to_left, only_read).unwrap();
        allowed[6] = 3;
        let allowed = left.interface.import(to_right, &allowed).unwrap();
        fn pieces(region: u32, bytes: u32, offsets: &[u64]) -> Pieces<'_> {
            Pieces {
                region,
                bytes,
                count: 1,
                stride: 0,
                offsets,
            }
        }
        let put = |left: &mut Side, right: &mut Side, number, offsets: &[u64]| {
            let (bytes, total) = (100, 100 * offsets.len() as u32);
            let posted = left.put(
                to_right,
                &[pieces(0, total, &[0])],
                &[pieces(number, bytes, offsets)],
            )?;
            if posted == Posted::Done {
                return Ok(Ok(()));
            }
            let mut ended = None;
            together(left, right, |left, _| {
                ended = left.completion();
                ended.is_some()
            });
            Ok::<_, Error>(ended.unwrap().outcome)
        };
        let refused = |refusal| Ok::<_, String>(Err(Fault::Refused(refusal)));
        let ask = |left: &mut Side, right: &mut Side, number, offsets: &[u64]| {
            let outcome = put(left, right, number, offsets);
            outcome.map_err(|error| format!("{error}: {:?}", std::error::Error::source(&error)))
        };
        assert!(ask(&mut left, &mut right, good, &[3997]).is_err());
        assert!(ask(&mut left, &mut right, good, &[u64::MAX]).is_err());
        assert!(ask(&mut left, &mut right, read, &[0]).is_err());
        assert!(ask(&mut left, &mut right, epoch, &[0]).is_err());
        assert!(ask(&mut left, &mut right, 99, &[0]).is_err());
        for (number, offsets, refusal) in [
            (longer, &[4000_u64][..], Refusal::Bounds),
            (generation, &[0], Refusal::Generation),
            (slot, &[0], Refusal::Generation),
            (allowed, &[0], Refusal::Rights),
        ] {
            let seen = ask(&mut left, &mut right, number, offsets);
            assert_eq!(seen, refused(refusal), "{config:?}");
        }
        let untouched = |side: &Side| {
            let regions = side.told.regions.iter();
            regions
                .clone()
                .all(|region| region.as_slice().iter().all(|&byte| byte == 0))
        };
        assert!(untouched(&right));
        assert_eq!(ask(&mut left, &mut right, good, &[0, 3996]), Ok(Ok(())));
        assert!(!untouched(&right));
        right.told.regions[0].as_mut_slice().fill(0);
        right.interface.deregister(id).unwrap();
        let seen = ask(&mut left, &mut right, good, &[0]);
        assert_eq!(seen, refused(Refusal::Generation));
        // The same slot again is another registration.
        let again = right
            .interface
            .register(0, &right.told.regions[0], RIGHTS)
            .unwrap();
        assert_eq!(again.slot(), id.slot());
        let seen = ask(&mut left, &mut right, good, &[0]);
        assert_eq!(seen, refused(Refusal::Generation));
        assert!(untouched(&right));
        assert!(left.interface.stats().faults > 0);
    }
}

#[test]
fn arguments_that_cannot_be_are_named() {
    let (mut left, mut right, to_right, to_left) = pair(&ShmConfig::default());
    left.told.regions.push(host(100));
    let id = right.register(shared(100), RIGHTS);
    let key = right.interface.remote_key(to_left, id).unwrap();
    let number = left.interface.import(to_right, &key).unwrap();
    let pieces = |region, bytes| Pieces {
        region,
        bytes,
        count: 1,
        stride: 0,
        offsets: &[0],
    };
    let mut put = |local, remote| left.put(to_right, &[local], &[remote]).unwrap_err();
    assert!(matches!(
        put(pieces(1, 10), pieces(number, 10)),
        Error::NotLent { region: 1 }
    ));
    assert!(matches!(
        put(pieces(0, 101), pieces(number, 101)),
        Error::Pieces { side: "local", .. }
    ));
    assert!(matches!(
        put(pieces(0, 10), pieces(number, 11)),
        Error::Unequal {
            local: 10,
            remote: 11
        }
    ));
    assert!(matches!(left.put(to_right, &[], &[]), Ok(Posted::Done)));
    assert!(matches!(
        left.interface.import(to_right, &key[1..]),
        Err(Error::Key(_))
    ));
    assert_eq!(
        left.interface.flush(to_right, Token(1)).unwrap(),
        Posted::Done
    );
    left.interface.close(to_right);
    assert!(matches!(
        left.put(to_right, &[], &[]),
        Err(Error::NoSuchPeer { .. })
    ));
}

#[test]
fn finishing_delivers_what_was_queued_and_closing_is_seen() {
    let (mut left, mut right, to_right, to_left) = pair(&ShmConfig::default());
    for _ in 0..100 {
        assert_eq!(
            left.interface.send(to_right, b"last").unwrap(),
            Posted::Done
        );
    }
    left.interface.finish(to_right);
    assert!(matches!(
        left.interface.send(to_right, b"too late"),
        Err(Error::Finishing { .. })
    ));
    let closed = |event: &Event| match event {
        Event::Closed(_, Closed::ByPeer) => Some("by peer"),
        Event::Closed(_, Closed::ByUs) => Some("by us"),
        Event::Closed(_, why) => panic!("{why}"),
        _ => None,
    };
    assert_eq!(right.until(closed), "by peer");
    assert_eq!(right.told.count, 100);
    assert_eq!(left.until(closed), "by us");
    assert!(right.interface.send(to_left, b"").is_err());

    let (mut left, mut right, to_right, _) = pair(&ShmConfig::default());
    left.interface.close(to_right);
    assert_eq!(right.until(closed), "by peer");
    assert_eq!(left.interface.stats().closed, 1);
}

#[test]
fn what_a_handler_rejects_ends_the_connection() {
    let (mut left, mut right, to_right, _) = pair(&ShmConfig::default());
    let _ = left.interface.send(to_right, b"reject me").unwrap();
    let why = right.until(|event| match event {
        Event::Closed(_, why) => Some(why.to_string()),
        _ => None,
    });
    assert_eq!(why, "rejected: as it asked");
    left.until(|event| matches!(event, Event::Closed(_, Closed::ByPeer)).then_some(()));
}

#[test]
fn nobody_at_the_address_is_an_event_and_elsewhere_an_error() {
    let mut left = Side::new(ShmConfig::default());
    let right = Side::listening(ShmConfig::default());
    let address = right.interface.addresses().remove(0);
    drop(right);
    let peer = left.interface.connect(&address).unwrap();
    assert_eq!(left.interface.send(peer, b"queued").unwrap(), Posted::Done);
    left.until(|event| matches!(event, Event::Closed(_, Closed::Io(_))).then_some(()));
    for elsewhere in ["tcp:127.0.0.1:1", "shm:0123456789abcdef/1/@x"] {
        assert!(matches!(
            left.interface.connect(&elsewhere.parse().unwrap()),
            Err(Error::Unreachable { .. })
        ));
    }
}

#[test]
fn the_path_says_how_memory_is_reached() {
    let (left, _right, to_right, _) = pair(&ShmConfig::default());
    let path = left.interface.path(to_right).unwrap();
    assert!(path.why.contains("process_vm_readv"), "{}", path.why);
    let can = left.interface.capabilities();
    use moai_memory::MemoryKind::{Host, Shared, Sim};
    assert_eq!(can.reach(Operation::Map, Shared), Reach::Direct);
    assert_eq!(can.reach(Operation::Put, Host), Reach::Direct);
    assert_eq!(can.reach(Operation::Put, Sim), Reach::Direct);
    assert_eq!(can.reach(Operation::Send, Sim), Reach::Staged);
    assert_eq!(
        can.reach(Operation::Map, Sim),
        Reach::No,
        "no device is named"
    );
    let config = ShmConfig {
        foreign: false,
        ..ShmConfig::default()
    };
    let (left, _right, to_right, _) = pair(&config);
    let path = left.interface.path(to_right).unwrap();
    assert!(
        path.why.contains("copied twice, by both sides"),
        "{}",
        path.why
    );
    assert!(!path.is_fallback, "as it was asked for");
}

#[test]
fn a_descriptor_tells_that_there_is_something_to_do() {
    let (mut left, mut right, to_right, _) = pair(&ShmConfig::default());
    // Until the first frame has come there is a limit.
    assert!(right.interface.arm().is_some());
    let _ = left.interface.send(to_right, b"hello").unwrap();
    right.until(|event| matches!(event, Event::Message(..)).then_some(()));
    right.take();
    right.poll(Duration::from_millis(1));
    assert_eq!(right.interface.arm(), None);
    let readable = |side: &Side, limit_ms: i64| {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&side.interface, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: 0,
            tv_nsec: limit_ms * 1_000_000,
        };
        poll(&mut fds, Some(&limit)).unwrap() == 1
    };
    assert!(!readable(&right, 5));
    let _ = left.interface.send(to_right, b"wake up").unwrap();
    assert!(readable(&right, 900));
    right.poll(Duration::ZERO);
    assert!(matches!(right.take()[..], [Event::Message(..)]));
}
