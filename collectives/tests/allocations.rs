//! A runner that has met chunks of every shape allocates nothing. By itself, because it counts what all the process
//! allocates.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use moai_collectives::{
    descriptor::Descriptor,
    digest::DigestKey,
    execute::{PageCopy, Pool, Requested, Runner, Runs},
    negotiate::Role,
    request::Request,
};
use moai_memory::Region;
use serde_json::json;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// 2 ranks with 16 slots a page to one with 32: copied, transposed, converted to fewer bytes and to more.
fn requested(element: &str, layout: &str) -> Arc<Requested> {
    let side = |tp: u32, slots: u32, element: &str, layout: &str| {
        let pages = 256 / slots;
        let ranks: Vec<_> = (0..tp)
            .map(|rank| {
                let list: Vec<u32> = (0..pages).rev().collect();
                json!({ "rank": rank, "pages": pages, "request_pages": list })
            })
            .collect();
        let document = json!({
            "version": 1, "model": { "layers": 4 }, "parallel": { "tp": tp },
            "page_slots": slots,
            "components": [{
                "name": "key", "heads": 8, "dim": 128, "pool": "kv",
                "format": { "element": element }, "layout": layout,
            }],
            "ranks": ranks,
            "request": { "tokens": 256 },
        });
        Request::read(&document.to_string()).unwrap()
    };
    let producer = side(2, 16, "bf16", "[layer] page slot head dim");
    let consumer = side(1, 32, element, layout);
    Arc::new(Requested::agree(producer, consumer).unwrap())
}

fn pool(side: &Descriptor, rank: u32) -> Pool {
    let specs = side.ranks[rank as usize].regions.iter();
    specs
        .map(|spec| Region::host_zeroed(spec.bytes).unwrap())
        .collect()
}

#[test]
fn a_warm_runner_allocates_nothing() {
    for (element, layout) in [
        ("bf16", "[layer] page slot head dim"),
        ("bf16", "[layer] page head dim/8 slot dim%8"),
        ("e4m3fn", "[layer] page head slot dim"),
        ("f32", "[layer] page head dim slot"),
    ] {
        let requested = requested(element, layout);
        let pair = &requested.agreed().agreement.pairs[0];
        let source = pool(&requested.agreed().producer, pair.source);
        let mut target = pool(&requested.agreed().consumer, pair.target);
        let mut send = Runner::new(&requested, pair, Role::Producer);
        let mut receive = Runner::new(&requested, pair, Role::Consumer);
        let mut copy = PageCopy::new(&requested, pair, u64::MAX);
        let key = DigestKey::new(1, send.longest_row());
        let longest = send.chunks().iter().map(|chunk| chunk.bytes).max().unwrap();
        let mut wire = vec![0; longest as usize];
        let mut runs = Runs::new();
        let mut counts = [0; 7];
        for round in 0..2 {
            // The first round allocates, so that the counter is known to count.
            assert!(round == 0 || counts.iter().sum::<u64>() > 0, "{counts:?}");
            counts = [0; 7];
            for index in 0..send.chunks().len() {
                let bytes = send.row_bytes(index)[1] as usize;
                let rows = &mut wire[..bytes];
                let mut count = |what: usize, act: &mut dyn FnMut()| {
                    let before = ALLOCATIONS.load(Relaxed);
                    act();
                    counts[what] += ALLOCATIONS.load(Relaxed) - before;
                };
                count(0, &mut || {
                    send.gather_digested(index, source.as_slice(), rows, &key);
                });
                count(1, &mut || {
                    receive.scatter_digested(index, rows, target.as_mut_slice(), &key);
                });
                count(2, &mut || {
                    receive.runs(index, 64, &mut runs);
                });
                count(3, &mut || {
                    receive.digest_placed(index, target.as_slice(), &key);
                });
                count(4, &mut || {
                    copy.copy_digested(index, &source, &mut target, &key);
                });
                count(5, &mut || {
                    send.digest_lent(index, source.as_slice(), &key);
                });
                count(6, &mut || {
                    send.gather(index, source.as_slice(), rows);
                });
            }
        }
        assert_eq!(counts, [0; 7], "{element} in {layout}");
    }
}
