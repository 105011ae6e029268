//! What is done for every chunk or request allocates nothing, once it has been done.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::Arc,
};

use moai_collectives::{
    descriptor::Descriptor,
    digest::DigestKey,
    execute::{Agreed, PageCopy, Pool, Requested, Runner, Runs},
    negotiate::Role,
    plan::Chunks,
    request::{Layers, Request},
};
use moai_memory::Region;
use serde_json::json;

struct Counting;

thread_local! {
    /// Of this thread: tests run beside each other.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
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
                    let before = allocations();
                    act();
                    counts[what] += allocations() - before;
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

/// Llama 3.1 405B: 126 layers of 8 heads of 128, in pages of 16. Nobody has its memory here.
fn large(tp: u32, cp: u32) -> Descriptor {
    let component = |name: &str| {
        json!({ "name": name, "heads": 8, "dim": 128, "pool": "kv", "format": { "element": "bf16" },
                "layout": "[layer] page part slot head dim" })
    };
    let ranks: Vec<_> = (0..tp * cp)
        .map(|rank| json!({ "rank": rank, "pages": 10_000 }))
        .collect();
    let document = json!({
        "version": 1, "model": { "layers": 126 }, "page_slots": 16,
        "parallel": { "tp": tp, "cp": cp, "cp_unit": "page" },
        "components": [component("key"), component("value")],
        "ranks": ranks,
    });
    Descriptor::from_json(&document.to_string()).unwrap()
}

#[test]
fn a_request_of_128k_tokens_allocates_nothing_for_its_pages_and_chunks() {
    const TOKENS: u32 = 131_072;
    for cp in [1, 4] {
        let agreed = Arc::new(Agreed::new(large(8, cp), large(4, 1)).unwrap());
        let mut request = Request::new(&agreed.consumer, TOKENS);
        let (mut chunks, mut buffer) = (Chunks::default(), Vec::new());
        let list: Vec<u32> = (0..TOKENS / 16).rev().collect();
        let mut counts = [0; 3];
        for round in 0..4 {
            // Shorter requests before, and whole and in part: the longest has been met.
            let tokens = TOKENS - [0, 0, 50_000, 0][round] as u32;
            let before = allocations();
            request.renew(tokens);
            request.first = [0, 0, 777, 40_000][round];
            request.layers = [Layers::All, Layers::Between(3..9)][round / 3].clone();
            let pages = &list[..tokens.div_ceil(16) as usize];
            request.give(0..4, 0, pages).unwrap();
            let side = &agreed.consumer;
            let checked = request.check_with(side, Role::Consumer, 0..4, &mut buffer);
            checked.unwrap();
            counts[0] = allocations() - before;
            let mut bytes = 0;
            for pair in &agreed.agreement.pairs {
                let before = allocations();
                agreed
                    .agreement
                    .chunks_into(agreed.sides(), pair, &request, &mut chunks);
                counts[1] += allocations() - before;
                let before = allocations();
                let sum: u64 = chunks.iter().map(|chunk| u64::from(chunk.bytes)).sum();
                counts[2] += allocations() - before;
                assert_eq!(sum, chunks.wire_bytes());
                bytes += sum;
            }
            let layers = if round == 3 { 6 } else { 126 };
            let moved = u64::from(tokens - request.first);
            assert_eq!(bytes, moved * layers * 2 * 8 * 128 * 2);
            match round {
                // Buffers of the lists, which grow by doubling.
                0 => assert!((1..60).contains(&(counts[0] + counts[1])), "{counts:?}"),
                _ => assert_eq!(counts, [0; 3], "round {round}, cp {cp}"),
            }
            counts = [0; 3];
        }
    }
}
