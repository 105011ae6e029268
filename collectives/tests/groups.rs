//! Hybrid caches: layers with page lists and page sizes of their own.

use std::sync::Arc;

use moai_collectives::{
    descriptor::Descriptor,
    execute::{Requested, convert},
    request::Request,
};
use moai_memory::Region;
use serde_json::{Value, json};

const TOKENS: u32 = 19;
const DIM: u32 = 8;

/// Three layers, of which the second belongs to a group of its own.
fn grouped() -> Value {
    let component = |name: &str, group: &str, pool: &str| {
        json!({ "name": name, "group": group, "heads": 1, "dim": DIM, "pool": pool,
                "of": { "component": "key", "dims": [0, DIM] },
                "format": { "element": "int8" }, "layout": "[layer] page slot dim" })
    };
    json!({
        "version": 1, "model": { "layers": 3 }, "parallel": {},
        "groups": [
            { "name": "full", "layers_list": [0, 2], "page_slots": 4 },
            { "name": "other", "layers": [1, 2], "page_slots": 7 },
        ],
        "components": [component("key_full", "full", "f"), component("key_other", "other", "o")],
        "ranks": [{ "rank": 0, "pages": 6, "request_pages": { "full": [5, 0, 3, 1, 2], "other": [2, 4, 0] } }],
        "request": { "tokens": TOKENS },
    })
}

fn plain() -> Value {
    json!({
        "version": 1, "model": { "layers": 3 }, "parallel": {}, "page_slots": 16,
        "components": [{ "name": "key", "heads": 1, "dim": DIM, "pool": "kv",
                         "format": { "element": "int8" }, "layout": "page layer slot dim" }],
        "ranks": [{ "rank": 0, "pages": 3, "request_pages": [2, 0] }],
        "request": { "tokens": TOKENS },
    })
}

/// Where a row of (layer, token) starts, written down by hand: region, byte.
fn grouped_row(layer: u32, token: u32) -> (usize, usize) {
    let (region, pages, slots): (usize, &[u32], u32) = match layer {
        1 => (2, &[2, 4, 0], 7),
        layer => (layer as usize / 2, &[5, 0, 3, 1, 2], 4),
    };
    let slot = pages[(token / slots) as usize] * slots + token % slots;
    (region, (slot * DIM) as usize)
}

fn plain_row(layer: u32, token: u32) -> (usize, usize) {
    let page = [2, 0][(token / 16) as usize];
    (0, (((page * 3 + layer) * 16 + token % 16) * DIM) as usize)
}

type Row = fn(u32, u32) -> (usize, usize);

fn check(from: &Value, from_row: Row, to: &Value, to_row: Row) {
    let read = |side: &Value| Request::read(&side.to_string()).unwrap();
    let (producer, consumer) = (read(from), read(to));
    let pool = |side: &Descriptor, fill: fn(usize) -> u8| -> Vec<Region> {
        let regions = side.ranks[0].regions.iter();
        regions
            .map(|r| Region::from_host((0..r.bytes as usize).map(fill).collect()))
            .collect()
    };
    let mut sources = [pool(&producer.0, |_| 0xEE)];
    for layer in 0..3 {
        for token in 0..TOKENS {
            let (region, byte) = from_row(layer, token);
            for d in 0..DIM as usize {
                sources[0][region].as_mut_slice()[byte + d] =
                    (layer * 64 + token * 3 + d as u32) as u8;
            }
        }
    }
    let mut targets = [pool(&consumer.0, |i| i as u8)];
    let mut wanted = pool(&consumer.0, |i| i as u8);
    for layer in 0..3 {
        for token in 0..TOKENS {
            let ((sr, sb), (tr, tb)) = (from_row(layer, token), to_row(layer, token));
            let row = sources[0][sr].as_slice()[sb..sb + DIM as usize].to_vec();
            wanted[tr].as_mut_slice()[tb..tb + DIM as usize].copy_from_slice(&row);
        }
    }
    let requested = Requested::agree(producer, consumer);
    let requested = Arc::new(requested.unwrap_or_else(|refusal| panic!("{refusal}")));
    convert(&requested, &sources, &mut targets);
    for (got, want) in targets[0].iter().zip(&wanted) {
        assert!(got.as_slice() == want.as_slice());
    }
}

#[test]
fn a_cache_in_groups_meets_one_without_and_the_other_way_round() {
    check(&grouped(), grouped_row, &plain(), plain_row);
    check(&plain(), plain_row, &grouped(), grouped_row);
    check(&grouped(), grouped_row, &grouped(), grouped_row);
}
