//! Caches that are more than keys and values of every token: state of a sequence, indexers, windows.

#[path = "support/naive.rs"]
#[allow(dead_code, reason = "nothing is drawn here")]
mod naive;
#[path = "../../translate/tests/support/rng.rs"]
#[allow(dead_code, reason = "content only is drawn here")]
mod rng;

use std::sync::Arc;

use moai_collectives::{
    execute::{Pool, Requested, convert},
    request::Request,
};
use moai_memory::Region;
use rng::Rng;
use serde_json::{Value, json};

/// The consumer's memory is as an enumeration of rows says, and no other byte is touched. Returns bytes written.
fn check(producer: &Value, consumer: &Value) -> usize {
    let read = |doc: &Value| Request::read(&doc.to_string()).unwrap_or_else(|e| panic!("{e}"));
    let requested = Requested::agree(read(producer), read(consumer));
    let requested = Arc::new(requested.unwrap_or_else(|refusal| panic!("{refusal}")));
    let sides = [producer, consumer].map(naive::Side::read);
    let mut rng = Rng::new(5);
    let mut regions = |side: &naive::Side| -> Vec<naive::Regions> {
        let ranks = 0..side.ranks.len();
        ranks.map(|rank| side.regions(rank, &mut rng)).collect()
    };
    let [mut sources, before] = [&sides[0], &sides[1]].map(&mut regions);
    for (rank, regions) in sources.iter_mut().enumerate() {
        sides[0].fill(rank, 7, regions);
    }
    let mut wanted = before.clone();
    let key = moai_collectives::digest::DigestKey::new(1, 1 << 16);
    let agreement = &requested.agreed().agreement;
    let expected = naive::convert(&sides[0], &sides[1], &sources, &mut wanted, agreement, &key);
    let pools = |ranks: &[naive::Regions]| -> Vec<Pool> {
        let pool = |regions: &naive::Regions| -> Pool {
            let regions = regions.iter();
            regions.map(|r| Region::from_host(r.clone())).collect()
        };
        ranks.iter().map(pool).collect()
    };
    let mut targets = pools(&before);
    convert(&requested, &pools(&sources), &mut targets);
    for (rank, (got, wanted)) in targets.iter().zip(&wanted).enumerate() {
        for (region, (got, wanted)) in got.iter().zip(wanted).enumerate() {
            assert!(
                got.as_slice() == wanted.as_slice(),
                "rank {rank}, region {region}"
            );
        }
    }
    let bytes = expected.writes.iter().flatten().flatten();
    bytes.filter(|n| **n > 0).count()
}

/// Layers 0 and 2 of a hybrid model attend, the others have a state: a convolution over sections x, B and C, each
/// sharded by itself, and the heads of an SSM. `one_region` keeps the state of a layer in one row of bytes: x, B and C
/// side by side as this rank has them, then the SSM.
fn hybrid(tp: u32, slots: u32, one_region: bool, change: impl FnOnce(&mut Value)) -> Value {
    // x: 16 channels of 3 taps, B and C: one for each of 2 groups, 4 channels each; the SSM: 8 heads of 4 × 8.
    let sections = [
        ("conv_x", 16, 3),
        ("conv_b", 2, 12),
        ("conv_c", 2, 12),
        ("ssm", 8, 32),
    ];
    let own = |heads: u32| (heads / tp).max(1);
    let bytes = |&(_, heads, dim): &(&str, u32, u32)| u64::from(own(heads) * dim) * 4;
    let stride: u64 = sections.iter().map(bytes).sum();
    let mut offset = 0;
    let mut components = vec![
        json!({ "name": "key", "heads": 4, "dim": 8, "pool": "kv", "group": "attention",
                "format": { "element": "bf16" }, "layout": "[layer] page slot part head dim" }),
        json!({ "name": "value", "heads": 4, "dim": 8, "pool": "kv", "group": "attention",
                "format": { "element": "bf16" }, "layout": "[layer] page slot part head dim" }),
    ];
    for section in &sections {
        let (name, heads, dim) = section;
        let layout = match one_region {
            true => json!({ "text": "[layer] page head dim", "offset_bytes": offset,
                            "strides_bytes": { "page": stride } }),
            false => json!("page layer head dim"),
        };
        offset += bytes(section);
        components.push(json!({
            "name": name, "heads": heads, "dim": dim, "group": "state",
            "pool": if one_region { "state" } else { name },
            "format": { "element": "f32" }, "layout": layout,
        }));
    }
    let tokens: u32 = 37;
    let pages = tokens.div_ceil(slots);
    let rank = |rank: u32| {
        let list: Vec<u32> = (0..pages).rev().collect();
        json!({ "rank": rank, "pages": pages,
                "request_pages": { "attention": list, "state": [rank % 2] } })
    };
    let mut document = json!({
        "version": 1, "model": { "layers": 4 }, "parallel": { "tp": tp },
        "groups": [
            { "name": "attention", "layers_list": [0, 2], "page_slots": slots },
            // One page, which holds what came of the last token.
            { "name": "state", "layers_list": [1, 3], "page_slots": 1, "window": 1 },
        ],
        "components": components,
        "ranks": (0..tp).map(rank).collect::<Vec<_>>(),
        "request": { "tokens": tokens },
    });
    change(&mut document);
    document
}

const ATTENTION: usize = 2 * 4 * 8 * 2 * 2;
const STATE: usize = (16 * 3 + 2 * 2 * 12 + 8 * 32) * 4 * 2;

#[test]
fn the_state_of_a_sequence_is_moved_by_section_whatever_the_ranks() {
    let keep = |_: &mut Value| {};
    // On 4 ranks B and C, of 2 groups, are held twice.
    let twice = 2 * 2 * 12 * 4 * 2;
    for (to, more) in [(1, 0), (2, 0), (4, twice)] {
        for from in [1, 2, 4] {
            for one_region in [true, false] {
                let written = check(
                    &hybrid(from, 16, one_region, keep),
                    &hybrid(to, 8, !one_region, keep),
                );
                assert_eq!(written, 37 * ATTENTION + STATE + more, "{from} to {to}");
            }
        }
    }
}

#[test]
fn a_prefix_that_is_there_leaves_the_state_and_what_follows() {
    let part = |doc: &mut Value| doc["request"]["first"] = json!(32);
    let written = check(&hybrid(2, 16, true, part), &hybrid(1, 8, false, part));
    assert_eq!(written, 5 * ATTENTION + STATE);
    // Layers 1 and 2: of each kind one.
    let layers = |doc: &mut Value| doc["request"]["layers"] = json!([1, 3]);
    let written = check(&hybrid(2, 16, true, layers), &hybrid(1, 8, false, layers));
    assert_eq!(written, (37 * ATTENTION + STATE) / 2);
}

/// A latent with its rotary part fused or in two, and an indexer that only some layers have.
fn latent(slots: u32, fused: bool, change: impl FnOnce(&mut Value)) -> Value {
    let piece = |name: &str, from: u32, to: u32| {
        json!({ "name": name, "heads": 1, "dim": to - from, "pool": name,
                "format": { "element": "bf16" }, "layout": "[layer] page slot dim",
                "of": { "component": "latent", "dims": [from, to] } })
    };
    let mut components = match fused {
        true => vec![piece("latent", 0, 576)],
        false => vec![piece("nope", 0, 512), piece("rope", 512, 576)],
    };
    components.push(json!({
        "name": "indexer", "heads": 1, "dim": 128, "pool": "indexer", "group": "indexed",
        "format": { "element": "e4m3fn", "scale": { "granularity": "token_head" } },
        "layout": "[layer] page slot dim",
    }));
    components.push(json!({
        "name": "indexer.scale", "heads": 1, "dim": 1, "pool": "indexer.scale", "group": "indexed",
        "format": { "element": "f32" }, "layout": "[layer] page slot",
    }));
    // All layers hold the latent; those with an indexer have pages for it, too.
    for component in &mut components {
        if component.get("group").is_none() {
            component["group"] = json!("latent");
        }
    }
    let pages = 50_u32.div_ceil(slots);
    let list: Vec<u32> = (0..pages).rev().collect();
    let mut document = json!({
        "version": 1, "model": { "layers": 4 }, "parallel": {}, "page_slots": slots,
        "groups": [
            { "name": "latent", "layers": [0, 4] },
            { "name": "indexed", "layers_list": [0, 1, 3] },
        ],
        "components": components,
        "ranks": [{ "rank": 0, "pages": pages,
                    "request_pages": { "latent": list, "indexed": list } }],
        "request": { "tokens": 50 },
    });
    change(&mut document);
    document
}

#[test]
fn a_latent_and_its_indexer_are_moved_each_by_its_layers() {
    let (row, index) = (4 * 576 * 2, 3 * (128 + 4));
    let keep = |_: &mut Value| {};
    assert_eq!(
        check(&latent(64, true, keep), &latent(1, false, keep)),
        50 * (row + index)
    );
    let part = |doc: &mut Value| doc["request"]["first"] = json!(20);
    let written = check(&latent(16, false, part), &latent(64, true, part));
    assert_eq!(written, 30 * (row + index));
}

/// Layers 0 and 2 attend to all tokens, 1 and 3 to the last `window`, in pages of their own.
fn windowed(window: Option<u32>, slots: u32, change: impl FnOnce(&mut Value)) -> Value {
    let component = json!({
        "name": "key", "heads": 2, "dim": 8, "pool": "kv",
        "format": { "element": "bf16" }, "layout": "[layer] page slot head dim",
    });
    let all: Vec<u32> = (0..100_u32.div_ceil(slots)).rev().collect();
    let first = window.map_or(0, |window| (100 - window) / slots);
    let last: Vec<u32> = (first..100_u32.div_ceil(slots)).collect();
    let mut local = json!({ "name": "local", "layers_list": [1, 3] });
    if let Some(window) = window {
        local["window"] = json!(window);
    }
    let mut document = json!({
        "version": 1, "model": { "layers": 4 }, "parallel": {}, "page_slots": slots,
        "groups": [{ "name": "full", "layers_list": [0, 2] }, local],
        "components": [component],
        "ranks": [{ "rank": 0, "pages": all.len(), "request_pages": { "full": all, "local": last } }],
        "request": { "tokens": 100 },
    });
    change(&mut document);
    document
}

#[test]
fn a_windowed_group_moves_what_its_window_needs() {
    let row = 2 * 8 * 2 * 2;
    let keep = |_: &mut Value| {};
    // 10 tokens, rounded out to a page of 8: 88..100. The producer has more of them, or all.
    for producer in [Some(10), Some(40), None] {
        let written = check(&windowed(producer, 4, keep), &windowed(Some(10), 8, keep));
        assert_eq!(written, (100 + 12) * row);
    }
    for (first, local) in [(80, 12), (96, 4)] {
        let part = |doc: &mut Value| doc["request"]["first"] = json!(first);
        let written = check(&windowed(None, 4, part), &windowed(Some(10), 8, part));
        assert_eq!(written, (100 - first + local) * row);
    }
}
