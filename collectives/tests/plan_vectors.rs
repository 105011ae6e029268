//! Who sends what to whom, against vectors that were worked out by hand and against ownership.

use std::collections::{BTreeMap, BTreeSet};

use moai_collectives::{
    descriptor::Descriptor,
    negotiate::{Agreement, negotiate},
    plan::{Chunks, Pair},
    request::Request,
};
use serde_json::{Value, json};

/// A side of `layers` layers with one component of `heads` heads. `change` edits the document.
fn side(heads: u32, layers: u32, tp: u32, pp: u32, change: impl FnOnce(&mut Value)) -> Descriptor {
    let ranks: Vec<Value> = (0..tp * pp)
        .map(|rank| json!({ "rank": rank, "pages": 4, "request_pages": [3, 1] }))
        .collect();
    let mut doc = json!({
        "version": 1,
        "model": { "layers": layers },
        "parallel": { "tp": tp, "pp": pp },
        "page_slots": 16,
        "components": [{
            "name": "key", "heads": heads, "dim": 8, "pool": "kv",
            "format": { "element": "bf16" }, "layout": "[layer] page slot head dim",
        }],
        "ranks": ranks,
        "request": { "tokens": 20 },
    });
    change(&mut doc);
    Descriptor::from_json(&doc.to_string()).unwrap_or_else(|error| panic!("{error}\n{doc}"))
}

/// One layer, which is never divided among replicas.
fn tp(heads: u32, tp: u32) -> Descriptor {
    side(heads, 1, tp, 1, |_| ())
}

/// For each consumer rank and head: the producer ranks that send it.
type Senders = BTreeMap<u32, BTreeMap<u32, Vec<u32>>>;

fn senders(agreement: &Agreement) -> Senders {
    let mut senders = Senders::new();
    for pair in &agreement.pairs {
        for step in &pair.steps {
            for head in step.heads.clone() {
                let of = senders.entry(pair.target).or_default();
                of.entry(head).or_default().push(pair.source);
            }
        }
    }
    senders
}

fn between(heads: u32, p: u32, d: u32) -> Senders {
    senders(&negotiate(&tp(heads, p), &tp(heads, d)).unwrap())
}

/// (consumer rank, head, producer rank), one sender each.
fn vector(list: &[(u32, u32, u32)]) -> Senders {
    let mut senders = Senders::new();
    for &(target, head, source) in list {
        let of = senders.entry(target).or_default();
        of.insert(head, vec![source]);
    }
    senders
}

#[test]
fn heads_come_from_the_ranks_that_the_vectors_name() {
    // TensorRT-LLM sends from 0, 2, 4, 6; SGLang from both replicas. Rank 1 takes the second replica.
    let four = vector(&[(0, 0, 0), (0, 1, 2), (1, 2, 5), (1, 3, 7)]);
    assert_eq!(between(4, 8, 2), four);
    // Four replicas a head: 0..4 of head 0, 4..8 of head 1.
    let two = vector(&[(0, 0, 0), (1, 0, 1), (2, 1, 6), (3, 1, 7)]);
    assert_eq!(between(2, 8, 4), two);
    let eight = vector(&[
        (0, 0, 0),
        (0, 1, 0),
        (0, 2, 1),
        (0, 3, 1),
        (1, 4, 2),
        (1, 5, 2),
        (1, 6, 3),
        (1, 7, 3),
    ]);
    assert_eq!(between(8, 4, 2), eight);
}

/// Head totals are 4 on one side and 8 on the other side's ranks together; comparing those two only, a
/// peer takes the sides for alike and copies a region of two heads over a region of one.
#[test]
fn two_heads_a_rank_go_to_replicas_of_one_head() {
    let (producer, consumer) = (tp(4, 2), tp(4, 8));
    let agreement = negotiate(&producer, &consumer).unwrap();
    let all = [0, 1, 2, 3, 4, 5, 6, 7].map(|rank| (rank, rank / 2, rank / 4));
    assert_eq!(senders(&agreement), vector(&all));
    for pair in &agreement.pairs {
        let head = pair.target / 2;
        let [step] = &pair.steps[..] else {
            panic!("{pair:?}")
        };
        assert_eq!(step.heads, head..head + 1);
        // Head 1 of the model is the second head of rank 0.
        assert_eq!(producer.ranks[pair.source as usize].heads(0).len(), 2);
        assert_eq!(consumer.ranks[pair.target as usize].heads(0).len(), 1);
    }
}

#[test]
fn sizes_that_do_not_divide_meet_by_interval() {
    let vector = vector(&[
        (0, 0, 0),
        (0, 1, 0),
        (0, 2, 1),
        (1, 3, 1),
        (1, 4, 2),
        (1, 5, 2),
        (2, 6, 3),
        (2, 7, 3),
        (2, 8, 4),
        (3, 9, 4),
        (3, 10, 5),
        (3, 11, 5),
    ]);
    assert_eq!(between(12, 6, 4), vector);
}

/// What a rank owns, by the rule of the engines.
fn owns(heads: u32, tp: u32, rank: u32, head: u32) -> bool {
    if tp <= heads {
        rank * heads / tp <= head && head < (rank + 1) * heads / tp
    } else {
        head == rank / (tp / heads)
    }
}

#[test]
fn every_head_comes_once_from_an_owner_and_replicas_share_the_work() {
    let mut cases = 0;
    for heads in [1, 2, 4, 8, 16, 32] {
        for p in [1, 2, 4, 8, 16] {
            for d in [1, 2, 4, 8, 16] {
                cases += 1;
                let senders = between(heads, p, d);
                let mut load: BTreeMap<(u32, u32), u32> = BTreeMap::new();
                for target in 0..d {
                    for head in 0..heads {
                        let sent = senders.get(&target).and_then(|of| of.get(&head));
                        if !owns(heads, d, target, head) {
                            assert_eq!(sent, None, "H{heads} P{p} D{d}: {target} head {head}");
                            continue;
                        }
                        let sent = sent.unwrap();
                        assert_eq!(sent.len(), 1, "H{heads} P{p} D{d}: {target} head {head}");
                        assert!(owns(heads, p, sent[0], head));
                        *load.entry((head, sent[0])).or_default() += 1;
                    }
                }
                // Consecutive ranks want the same head, so its replicas are used in turn.
                for head in 0..heads {
                    let replicas = (0..p).filter(|&rank| owns(heads, p, rank, head));
                    let work: Vec<u32> = replicas
                        .map(|rank| load.get(&(head, rank)).copied().unwrap_or(0))
                        .collect();
                    let (most, least) = (work.iter().max(), work.iter().min());
                    assert!(
                        most.unwrap() - least.unwrap() <= 1,
                        "H{heads} P{p} D{d}: {work:?}"
                    );
                }
            }
        }
    }
    assert_eq!(cases, 150);
}

/// Without replicas in the way, all ranks of a replicated latent send to one consumer each.
#[test]
fn every_rank_of_a_replicated_latent_sends() {
    for ranks in [2, 3, 4, 8] {
        let senders = between(1, ranks, ranks);
        let sources: BTreeSet<u32> = senders.values().map(|of| of[&0][0]).collect();
        assert_eq!(sources.len() as u32, ranks);
    }
}

/// Global, on the source, on the target.
type Layer = (u32, u32, u32);

/// For each (source, target): the layers that go from one to the other.
fn layers(agreement: &Agreement) -> BTreeMap<(u32, u32), Vec<Layer>> {
    let of = |pair: &Pair| {
        let layers = pair.steps.iter().flat_map(|step| &step.layers);
        let mut list: Vec<_> = layers.map(|l| (l.layer, l.source, l.target)).collect();
        list.sort_unstable();
        ((pair.source, pair.target), list)
    };
    agreement.pairs.iter().map(of).collect()
}

#[test]
fn uneven_pipelines_meet_by_interval() {
    let stages = |cuts: &'static [[u32; 2]]| {
        side(2, 10, 1, cuts.len() as u32, |doc| {
            for (rank, cut) in cuts.iter().enumerate() {
                doc["ranks"][rank]["layers"] = json!(cut);
            }
        })
    };
    let (producer, consumer) = (
        stages(&[[0, 3], [3, 10]]),
        stages(&[[0, 6], [6, 7], [7, 10]]),
    );
    let agreement = negotiate(&producer, &consumer).unwrap();
    let run = |from: u32, to: u32, a: u32, b: u32| -> Vec<_> {
        (from..to).map(|l| (l, l - a, l - b)).collect()
    };
    let wanted = BTreeMap::from([
        ((0, 0), run(0, 3, 0, 0)),
        ((1, 0), run(3, 6, 3, 0)),
        ((1, 1), run(6, 7, 3, 6)),
        ((1, 2), run(7, 10, 3, 7)),
    ]);
    assert_eq!(layers(&agreement), wanted);
}

#[test]
fn interleaved_layers_keep_the_order_of_their_list() {
    let interleaved = side(2, 4, 1, 2, |doc| {
        doc["ranks"][0]["layers_list"] = json!([2, 0]);
        doc["ranks"][1]["layers_list"] = json!([1, 3]);
    });
    let even = side(2, 4, 1, 2, |_| ());
    let wanted = BTreeMap::from([
        ((0, 0), vec![(0, 1, 0)]),
        ((0, 1), vec![(2, 0, 0)]),
        ((1, 0), vec![(1, 0, 1)]),
        ((1, 1), vec![(3, 1, 1)]),
    ]);
    assert_eq!(layers(&negotiate(&interleaved, &even).unwrap()), wanted);
}

/// The convention that a rank is pp, cp, tp from slow to fast unless the document says otherwise.
#[test]
fn rank_order_decides_who_a_rank_is() {
    for (order, wanted) in [
        ("pp cp tp", [(0, 0), (1, 0), (0, 1), (1, 1)]),
        ("tp cp pp", [(0, 0), (0, 1), (1, 0), (1, 1)]),
    ] {
        let side = side(2, 2, 2, 2, |doc| {
            doc["parallel"]["rank_order"] = json!(order);
        });
        let found: Vec<_> = side.ranks.iter().map(|r| (r.tp, r.pp)).collect();
        assert_eq!(found, wanted, "{order}");
    }
}

/// However small a chunk may be, the chunks of a pair hold each of its tokens once, and none exceeds the limit
/// unless it is one token.
#[test]
fn chunks_of_any_size_hold_every_token_once() {
    let deal = |cp: u32, unit: &str, slots: u32| {
        side(3, 2, 1, 1, |doc| {
            doc["parallel"] = json!({ "cp": cp, "cp_unit": unit });
            doc["page_slots"] = json!(slots);
            doc["request"]["tokens"] = json!(53);
            let ranks = (0..cp).map(|me| {
                let mine = |t: &u32| match unit {
                    "token" => t % cp == me,
                    "page" => t / slots % cp == me,
                    _ => t / 53_u32.div_ceil(cp) == me,
                };
                let held = (0..53).filter(mine).count() as u32;
                let pages: Vec<u32> = (0..held.div_ceil(slots)).rev().collect();
                json!({ "rank": me, "pages": 60, "request_pages": pages })
            });
            doc["ranks"] = ranks.collect();
        })
    };
    let sides = [
        deal(1, "token", 16),
        deal(1, "token", 5),
        deal(3, "token", 4),
        deal(2, "page", 7),
        deal(4, "contiguous", 6),
        deal(5, "token", 1),
    ];
    for (producer, consumer) in sides.iter().flat_map(|a| sides.iter().map(move |b| (a, b))) {
        let agreement = negotiate(producer, consumer).unwrap();
        let request = Request::new(consumer, 53);
        let mut chunks = Chunks::default();
        for limit in [1, 48, 100, 480, 1 << 20] {
            let mut seen: BTreeMap<(u32, u32), u32> = BTreeMap::new();
            for pair in &agreement.pairs {
                let wire = |_| 16;
                let sides = [producer, consumer];
                chunks.take(sides, pair, &request, limit, wire);
                for chunk in chunks.iter() {
                    let n = chunk.tokens.count;
                    assert_eq!(chunk.bytes, n * 3 * 16);
                    assert!(u64::from(chunk.bytes) <= limit || n == 1, "{chunk:?}");
                    let layer = pair.steps[chunk.step as usize].layers[chunk.layer as usize].layer;
                    for i in 0..n {
                        let token = chunk.tokens.token + i * chunk.tokens.step;
                        *seen.entry((layer, token)).or_default() += 1;
                    }
                }
            }
            assert_eq!(seen.len(), 2 * 53);
            assert!(seen.values().all(|&n| n == 1));
        }
    }
}

/// Layers that each producer rank sends, times heads, after a check that every consumer rank gets each of
/// its layers and heads once.
fn work(producer: &Descriptor, consumer: &Descriptor) -> Vec<usize> {
    let agreement = negotiate(producer, consumer).unwrap();
    let mut work = vec![0; producer.ranks.len()];
    let mut got = BTreeSet::new();
    for pair in &agreement.pairs {
        for step in &pair.steps {
            for layer in &step.layers {
                for head in step.heads.clone() {
                    assert!(
                        got.insert((pair.target, layer.layer, head)),
                        "{pair:?} sends layer {} again",
                        layer.layer
                    );
                    work[pair.source as usize] += 1;
                }
            }
        }
    }
    let owned = consumer
        .ranks
        .iter()
        .map(|rank| rank.layers.len() * rank.heads(0).len());
    assert_eq!(got.len(), owned.sum::<usize>());
    work
}

#[test]
fn replicas_that_no_other_rank_would_use_take_some_of_the_layers() {
    let latent = |tp| side(1, 61, tp, 1, |_| ());
    assert_eq!(work(&latent(4), &latent(1)), [16, 16, 16, 13]);
    assert_eq!(work(&latent(4), &latent(2)), [31, 30, 31, 30]);
    // As many takers as replicas: one rank serves one.
    assert_eq!(work(&latent(4), &latent(4)), [61; 4]);
}

#[test]
fn replicas_share_the_work_of_consumers_in_stages() {
    // Two replicas of each head; every fourth consumer rank wants the same heads, in five stages.
    let producer = side(8, 20, 16, 1, |_| ());
    let consumer = side(8, 20, 4, 5, |_| ());
    assert_eq!(work(&producer, &consumer), [10; 16]);
}
