//! Two processes: this test program, started again as the peer.

mod common;

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use common::{Event, HANG, Lists, RIGHTS, Random, Side};
use moai_memory::Region;
use moai_transport::{Address, Closed, Fault, Interface, PeerId, Pieces, Posted};
use moai_transport_shm::ShmConfig;

/// The part that the started process plays, and the address that it connects to.
const PART: &str = "MOAI_TEST_PART";

struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(part: &str, side: &Side) -> Peer {
    let address = side.interface.addresses().remove(0);
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "plays_its_part", "--nocapture"])
        .env(PART, format!("{part} {address}"))
        .spawn()
        .unwrap();
    Peer(child)
}

fn connected(side: &mut Side) -> PeerId {
    let peer = side.until(|event| match event {
        Event::Connected(peer, _) => Some(*peer),
        _ => None,
    });
    // What has come right behind it stays.
    side.told
        .events
        .retain(|event| !matches!(event, Event::Connected(..)));
    peer
}

fn message(side: &mut Side) -> Vec<u8> {
    let bytes = side.until(|event| match event {
        Event::Message(_, bytes) => Some(bytes.clone()),
        Event::Closed(_, why) => panic!("{why}"),
        _ => None,
    });
    let first = side
        .told
        .events
        .iter()
        .position(|event| matches!(event, Event::Message(..)));
    side.told.events.remove(first.unwrap());
    bytes
}

fn say(side: &mut Side, peer: PeerId, bytes: &[u8]) {
    while side.interface.send(peer, bytes).unwrap() != Posted::Done {
        side.poll(Duration::from_millis(1));
    }
}

const LENS: [u64; 3] = [300_000, 70_000, 1 << 20];

fn memory(of_peer: bool) -> Vec<Region> {
    let kinds: [fn(u64) -> _; 3] = [
        Region::shared_zeroed,
        Region::host_zeroed,
        Region::pinned_zeroed,
    ];
    let mut random = Random(u64::from(of_peer));
    kinds
        .into_iter()
        .zip(LENS)
        .map(|(make, len)| {
            let mut region: Region = make(len).unwrap();
            let bytes = random.bytes(len as usize);
            region.as_mut_slice().copy_from_slice(&bytes);
            region
        })
        .collect()
}

/// The other process. Without a part to play, it is a test that has nothing to do.
#[test]
fn plays_its_part() {
    let Ok(part) = std::env::var(PART) else {
        return;
    };
    let (part, address) = part.split_once(' ').unwrap();
    let address: Address = address.parse().unwrap();
    let mut side = Side::new(ShmConfig::default());
    let peer = side.interface.connect(&address).unwrap();
    connected(&mut side);
    match part {
        "echo" => loop {
            let bytes = message(&mut side);
            say(&mut side, peer, &bytes);
        },
        "owner" => {
            for region in memory(true) {
                let id = side.register(region, RIGHTS);
                let key = side.interface.remote_key(peer, id).unwrap();
                say(&mut side, peer, &key);
            }
            // Says what it has when it is asked.
            loop {
                let asked = message(&mut side);
                let region = asked[0] as usize;
                let bytes = side.told.regions[region].as_slice().to_vec();
                for chunk in bytes.chunks(1 << 19) {
                    say(&mut side, peer, chunk);
                }
            }
        }
        "writer" => {
            // Puts as fast as it can, until it is told not to, or the key is refused.
            side.told
                .regions
                .push(Region::host_zeroed(1 << 20).unwrap());
            side.told.regions[0].as_mut_slice().fill(0xff);
            // Who connects speaks first.
            say(&mut side, peer, b"hello");
            loop {
                let key = message(&mut side);
                let number = side.interface.import(peer, &key).unwrap();
                let pieces = |region| Pieces {
                    region,
                    bytes: 4096,
                    count: 256,
                    stride: 4096,
                    offsets: &[0],
                };
                say(&mut side, peer, b"started");
                let ended = loop {
                    match side.put(peer, &[pieces(0)], &[pieces(number)]).unwrap() {
                        Posted::Done => {}
                        _ => break side.completion().unwrap(),
                    }
                };
                assert!(matches!(ended.outcome, Err(Fault::Refused(_))), "{ended:?}");
                say(&mut side, peer, b"refused");
            }
        }
        other => panic!("{other}"),
    }
}

#[test]
fn operations_on_another_process_move_every_byte_to_its_place() {
    let mut side = Side::listening(ShmConfig::default());
    let _child = start("owner", &side);
    let peer = connected(&mut side);
    let mut numbers = Vec::new();
    for _ in LENS {
        let key = message(&mut side);
        numbers.push(side.interface.import(peer, &key).unwrap());
    }
    let copies = |regions: &[Region]| -> Vec<_> {
        regions.iter().map(|one| one.as_slice().to_vec()).collect()
    };
    let mut theirs = copies(&memory(true));
    side.told.regions = memory(false);
    let mut own = copies(&side.told.regions);
    let path = side.interface.path(peer).unwrap();
    println!("seed 5; {}", path.why);
    let all: Vec<_> = numbers.iter().copied().zip(LENS).collect();
    let mut random = Random(5);
    let put = |side: &mut Side, is_put, here: &Lists, there: &Lists| {
        let (here, there) = (here.pieces(), there.pieces());
        let posted = if is_put {
            side.put(peer, &here, &there)
        } else {
            side.get(peer, &here, &there)
        };
        if posted.unwrap() == Posted::Done {
            return;
        }
        let started = Instant::now();
        let ended = loop {
            if let Some(ended) = side.completion() {
                break ended;
            }
            assert!(started.elapsed() < HANG);
            side.poll(Duration::from_millis(10));
        };
        assert_eq!(ended.outcome, Ok(()));
    };
    for _ in 0..200 {
        let is_put = random.below(2) == 0;
        let there = Lists::random(&mut random, &all, 200_000);
        let here = Lists::matching(&mut random, &all, there.total());
        put(&mut side, is_put, &here, &there);
        for (here, there) in here.places().into_iter().zip(there.places()) {
            let (here, there) = (&mut own[here.0][here.1], &mut theirs[there.0][there.1]);
            if is_put {
                *there = *here;
            } else {
                *here = *there;
            }
        }
    }
    assert!(copies(&side.told.regions) == own);
    for (region, expected) in theirs.iter().enumerate() {
        say(&mut side, peer, &[region as u8]);
        let mut seen = Vec::new();
        while seen.len() < expected.len() {
            seen.extend(message(&mut side));
        }
        assert!(seen == *expected, "region {region}");
    }
    let mapped = side.interface.map(peer, numbers[0]).unwrap();
    assert!(mapped.as_slice() == theirs[0]);
}

#[test]
fn nothing_is_written_after_memory_was_taken_back() {
    let mut side = Side::listening(ShmConfig::default());
    let _child = start("writer", &side);
    let peer = connected(&mut side);
    assert_eq!(message(&mut side), b"hello");
    for round in 0..40 {
        let make: [fn(u64) -> _; 2] = [Region::shared_zeroed, Region::host_zeroed];
        let mut region: Region = make[round % 2](1 << 20).unwrap();
        let id = side.interface.register(0, &region, RIGHTS).unwrap();
        let key = side.interface.remote_key(peer, id).unwrap();
        say(&mut side, peer, &key);
        // The peer does not look at its messages while it writes.
        side.told.regions = Vec::new();
        assert_eq!(message(&mut side), b"started");
        std::thread::sleep(Duration::from_millis(2));
        side.interface.deregister(id).unwrap();
        region.as_mut_slice().fill(0);
        std::thread::sleep(Duration::from_millis(2));
        assert!(region.as_slice().iter().all(|&byte| byte == 0), "{round}");
        assert_eq!(message(&mut side), b"refused");
        assert!(region.as_slice().iter().all(|&byte| byte == 0), "{round}");
    }
}

#[test]
fn a_killed_peer_is_noticed_at_once_and_its_operations_end() {
    for spins in [false, true] {
        let mut side = Side::listening(ShmConfig::default());
        let mut child = start("owner", &side);
        let peer = connected(&mut side);
        let mut numbers = Vec::new();
        for _ in LENS {
            let key = message(&mut side);
            numbers.push(side.interface.import(peer, &key).unwrap());
        }
        side.told.regions = memory(false);
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        let started = Instant::now();
        let piece = |region| Pieces {
            region,
            bytes: 4096,
            count: 1,
            stride: 0,
            offsets: &[0],
        };
        // Its process is gone, and nobody else is written to.
        let posted = side.put(peer, &[piece(0)], &[piece(numbers[1])]).unwrap();
        assert_ne!(posted, Posted::Done);
        assert_eq!(side.completion().unwrap().outcome, Err(Fault::PeerLost));
        let closed = |event: &Event| matches!(event, Event::Closed(_, Closed::ByPeer));
        while !side.told.events.iter().any(closed) {
            side.poll(if spins { Duration::ZERO } else { HANG });
            assert!(started.elapsed() < Duration::from_secs(5));
        }
        assert!(side.put(peer, &[], &[]).is_err());
    }
}

#[test]
fn an_idle_pair_costs_nothing() {
    let mut side = Side::listening(ShmConfig::default());
    let _child = start("echo", &side);
    let peer = connected(&mut side);
    say(&mut side, peer, b"warm");
    message(&mut side);
    let before = side.interface.stats().waits;
    side.poll(Duration::from_millis(300));
    let waits = side.interface.stats().waits - before;
    assert!(waits <= 3, "{waits} waits in 300 ms");
}
