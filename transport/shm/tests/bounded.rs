//! What peers cost: no allocation on the hot path, and little memory for a peer that is idle.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use common::{RIGHTS, Side, pair};
use moai_memory::Region;
use moai_transport::{Batch, Interface, PeerId, Pieces, Posted};
use moai_transport_shm::ShmConfig;

/// Counts what this thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

#[allow(unsafe_code)] // An allocator is one.
// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

fn round(left: &mut Side, right: &mut Side, peers: [PeerId; 2], numbers: &[u32]) {
    let batch = Batch {
        id: 1,
        bytes: 100_000,
    };
    let (before, to_right) = (right.told.count, peers[0]);
    let sent = left.interface.send(to_right, &[1; 256]).unwrap();
    assert_eq!(sent, Posted::Done);
    let sent = left.interface.send(to_right, &[1; 10_000]).unwrap();
    assert_eq!(sent, Posted::Done);
    let posted = left
        .interface
        .post(to_right, batch, &mut |room| room.fill(7));
    assert_eq!(posted.unwrap(), Posted::Done);
    while right.told.count < before + 3 {
        right.poll(Duration::ZERO);
    }
    for &number in numbers {
        let list = |region| Pieces {
            region,
            bytes: 256,
            count: 16,
            stride: 512,
            offsets: &[0, 16_384, 40_000],
        };
        let (local, remote) = ([list(0)], [list(number)]);
        for is_put in [true, false] {
            let posted = if is_put {
                left.put(to_right, &local, &remote)
            } else {
                left.get(to_right, &local, &remote)
            };
            if posted.unwrap() != Posted::Done {
                while left.completion().is_none() {
                    left.poll(Duration::ZERO);
                    right.poll(Duration::ZERO);
                }
            }
        }
    }
    left.poll(Duration::ZERO);
}

#[test]
fn the_hot_path_does_not_allocate() {
    for foreign in [true, false] {
        let config = ShmConfig {
            foreign,
            ..ShmConfig::default()
        };
        let (mut left, mut right, to_right, to_left) = pair(&config);
        let region = Region::host_zeroed(1 << 17).unwrap();
        left.told.regions.push(region);
        right.told.is_quiet = true;
        right.told.piece = Some(4096);
        let mut numbers = Vec::new();
        for make in [Region::host_zeroed, Region::shared_zeroed] {
            let id = right.register(make(1 << 18).unwrap(), RIGHTS);
            let key = right.interface.remote_key(to_left, id).unwrap();
            numbers.push(left.interface.import(to_right, &key).unwrap());
        }
        for _ in 0..50 {
            round(&mut left, &mut right, [to_right, to_left], &numbers);
        }
        let before = allocations();
        for _ in 0..200 {
            round(&mut left, &mut right, [to_right, to_left], &numbers);
        }
        assert_eq!(allocations() - before, 0, "foreign: {foreign}");
    }
}

/// Bytes of this process in memory: of its own, and shared.
fn resident() -> [u64; 2] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        let kib = line.split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap() * 1024
    };
    [field("RssAnon:") + field("VmPTE:"), field("RssShmem:")]
}

#[test]
fn a_thousand_idle_peers_are_cheap() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let _ = rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit {
            current: limit.maximum,
            ..limit
        },
    );
    let peers = if limit.maximum.is_none_or(|most| most > 2500) {
        1000
    } else {
        200
    };
    let mut hub = Side::listening(ShmConfig::default());
    hub.told.is_quiet = true;
    let address = hub.interface.addresses().remove(0);
    let mut spoke = Side::new(ShmConfig::default());
    let (before, start) = (resident(), Instant::now());
    for n in 0..peers {
        let peer = spoke.interface.connect(&address).unwrap();
        let _ = spoke.interface.send(peer, b"hello").unwrap();
        if n % 50 == 49 {
            hub.poll(Duration::from_millis(1));
            spoke.poll(Duration::from_millis(1));
        }
    }
    while hub.told.count < peers {
        hub.poll(Duration::from_millis(10));
        spoke.poll(Duration::from_millis(1));
    }
    let (after, elapsed) = (resident(), start.elapsed());
    let each = |which: usize| (after[which] - before[which]) / (peers as u64) / 1024;
    println!(
        "{peers} peers, both ends in this process: {} KiB of its own and {} KiB mapped for each, {:?} to connect each",
        each(0),
        each(1),
        elapsed / peers as u32
    );
    // Two ends, each with its own view: a page of the front, one of each control ring's header and data.
    assert!(each(0) <= 200 && each(1) <= 100);
    // And they cost nothing while nothing happens.
    let before = hub.interface.stats().waits;
    hub.poll(Duration::from_millis(100));
    assert!(hub.interface.stats().waits - before <= 3);
}
