//! Compiles a plan.

use std::{collections::BTreeMap, ops::Range};

use super::{Hole, LayerPair, Pair, Span, Step};
use crate::descriptor::Descriptor;

/// Pairs in ascending order of (producer, consumer), and what could not be had.
#[must_use]
pub fn compile(
    producer: &Descriptor,
    consumer: &Descriptor,
    spans: &[Span],
) -> (Vec<Pair>, Vec<Hole>) {
    let mut pairs: BTreeMap<(u32, u32), Vec<Step>> = BTreeMap::new();
    let mut holes = Vec::new();
    // Elements a token that each producer rank has been given to send so far.
    let mut load = vec![0_u64; producer.ranks.len()];
    for (index, span) in spans.iter().enumerate() {
        let holders = holders(producer, span.source);
        for target in &consumer.ranks {
            // Layers that the same producer ranks hold, in the same groups, are planned together.
            let mut classes: BTreeMap<(&[usize], usize, usize), Vec<u32>> = BTreeMap::new();
            for &layer in target.layers_of(span.target) {
                let ranks = holders[layer as usize].as_slice();
                let groups = (
                    producer.group_of(span.source, layer),
                    consumer.group_of(span.target, layer),
                );
                match groups {
                    (Some(a), Some(b)) if !ranks.is_empty() => {
                        classes.entry((ranks, a, b)).or_default().push(layer);
                    }
                    (None, Some(_)) if elsewhere(producer, spans, span, layer) => {}
                    _ => holes.push(Hole {
                        target: target.rank,
                        span: index,
                        layers: vec![layer],
                        heads: target.heads(span.target).clone(),
                        cp: (0, 1),
                    }),
                }
            }
            let wanted = target.heads(span.target).clone();
            for ((ranks, source_group, target_group), layers) in classes {
                let parts = parts(producer, consumer, span, ranks, &wanted, layers[0]);
                for layers in layers.chunks(layers.len().div_ceil(parts)) {
                    let weight = layers.len() as u64 * u64::from(span.dim);
                    let start = target.rank;
                    let gap = |heads, cp| {
                        holes.push(Hole {
                            target: target.rank,
                            span: index,
                            layers: layers.to_vec(),
                            heads,
                            cp: (cp, producer.parallel[2]),
                        });
                    };
                    for (source, heads) in choose(
                        producer, span, ranks, &wanted, start, weight, &mut load, gap,
                    ) {
                        let rank = &producer.ranks[source];
                        let pair = |&layer: &u32| {
                            let source = rank.local_layer(span.source, layer)?;
                            let target = target.local_layer(span.target, layer)?;
                            Some(LayerPair {
                                layer,
                                source,
                                target,
                            })
                        };
                        pairs
                            .entry((rank.rank, target.rank))
                            .or_default()
                            .push(Step {
                                span: index,
                                layers: layers.iter().filter_map(pair).collect(),
                                heads,
                                source_group,
                                target_group,
                            });
                    }
                }
            }
        }
    }
    let pairs = pairs
        .into_iter()
        .map(|((source, target), steps)| Pair {
            source,
            target,
            steps,
        })
        .collect();
    (pairs, merge_holes(holes))
}

/// Whether another span brings the same dims of a layer that this one's component, being confined to
/// a group, does not have: a producer may hold `key` in one component for each group.
fn elsewhere(producer: &Descriptor, spans: &[Span], span: &Span, layer: u32) -> bool {
    spans.iter().any(|other| {
        other.target == span.target
            && other.target_first <= span.target_first
            && span.target_first + span.dim <= other.target_first + other.dim
            && producer.group_of(other.source, layer).is_some()
    })
}

/// For each global layer, the ranks that own it of a component.
fn holders(side: &Descriptor, component: usize) -> Vec<Vec<usize>> {
    let mut holders = vec![Vec::new(); side.layers as usize];
    for (i, rank) in side.ranks.iter().enumerate() {
        for &layer in rank.layers_of(component) {
            holders[layer as usize].push(i);
        }
    }
    holders
}

/// Into how many parts the layers of a class are cut, so that replicas which no other consumer rank would
/// use take some of them: a latent that is held four times and wanted once is sent over four links.
fn parts(
    producer: &Descriptor,
    consumer: &Descriptor,
    span: &Span,
    ranks: &[usize],
    wanted: &Range<u32>,
    layer: u32,
) -> usize {
    let holds = |heads: &Range<u32>| heads.start <= wanted.start && wanted.start < heads.end;
    let replicas = ranks
        .iter()
        .filter(|&&rank| holds(producer.ranks[rank].heads(span.source)));
    let takers = consumer.ranks.iter().filter(|rank| {
        holds(rank.heads(span.target)) && rank.local_layer(span.target, layer).is_some()
    });
    let replicas = replicas.count() / producer.parallel[2].max(1) as usize;
    (replicas / takers.count().max(1)).max(1)
}

/// For each part of `wanted` heads, one rank of every context parallel class; neighbouring parts of
/// one rank are one.
///
/// Among replicas the one with the least to send is taken, and of several such the first from `start` on:
/// all links work, and both sides of a transfer choose alike.
#[allow(clippy::too_many_arguments, reason = "what a choice depends on")]
fn choose(
    producer: &Descriptor,
    span: &Span,
    ranks: &[usize],
    wanted: &Range<u32>,
    start: u32,
    weight: u64,
    load: &mut [u64],
    mut hole: impl FnMut(Range<u32>, u32),
) -> Vec<(usize, Range<u32>)> {
    let mut cuts = vec![wanted.start, wanted.end];
    for &rank in ranks {
        let heads = producer.ranks[rank].heads(span.source);
        cuts.extend(
            [heads.start, heads.end]
                .into_iter()
                .filter(|cut| wanted.contains(cut)),
        );
    }
    cuts.sort_unstable();
    cuts.dedup();
    let mut chosen: Vec<(usize, Range<u32>)> = Vec::new();
    let mut replicas = Vec::new();
    for window in cuts.windows(2) {
        let part = window[0]..window[1];
        for cp in 0..producer.parallel[2] {
            replicas.clear();
            replicas.extend(ranks.iter().copied().filter(|&rank| {
                let rank = &producer.ranks[rank];
                let heads = rank.heads(span.source);
                rank.cp == cp && heads.start <= part.start && part.end <= heads.end
            }));
            if replicas.is_empty() {
                hole(part.clone(), cp);
                continue;
            }
            let first = start as usize % replicas.len();
            replicas.rotate_left(first);
            let Some(&source) = replicas.iter().min_by_key(|&&rank| load[rank]) else {
                continue;
            };
            load[source] += weight * u64::from(part.end - part.start);
            match chosen
                .iter_mut()
                .find(|(rank, heads)| *rank == source && heads.end == part.start)
            {
                Some((_, heads)) => heads.end = part.end,
                None => chosen.push((source, part.clone())),
            }
        }
    }
    chosen
}

fn merge_holes(holes: Vec<Hole>) -> Vec<Hole> {
    let mut merged: BTreeMap<_, Vec<u32>> = BTreeMap::new();
    for Hole {
        target,
        span,
        layers,
        heads,
        cp,
    } in holes
    {
        let key = (span, target, heads.start, heads.end, cp);
        merged.entry(key).or_default().extend(layers);
    }
    let hole = |((span, target, start, end, cp), layers)| Hole {
        target,
        span,
        layers,
        heads: start..end,
        cp,
    };
    merged.into_iter().map(hole).collect()
}
