//! Compiles a plan.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

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
        let classes = Classes::new(producer, consumer, span);
        // Layers of the consumer rank at hand, by class.
        let mut mine: Vec<Vec<u32>> = vec![Vec::new(); classes.list.len()];
        let mut parts_of: BTreeMap<(usize, u32, u32), usize> = BTreeMap::new();
        for target in &consumer.ranks {
            let wanted = target.heads(span.target).clone();
            for &layer in target.layers_of(span.target) {
                match classes.of[layer as usize] {
                    Place::Held(class) => mine[class].push(layer),
                    Place::Elsewhere if elsewhere(producer, spans, span, layer) => {}
                    _ => holes.push(Hole {
                        target: target.rank,
                        span: index,
                        layers: vec![layer],
                        heads: wanted.clone(),
                        cp: (0, 1),
                    }),
                }
            }
            for (class, layers) in mine.iter_mut().enumerate() {
                let Some(&first) = layers.first() else {
                    continue;
                };
                let Class {
                    ranks,
                    source_group,
                    target_group,
                } = &classes.list[class];
                let (source_group, target_group) = (*source_group, *target_group);
                let parts = *parts_of
                    .entry((class, wanted.start, first))
                    .or_insert_with(|| parts(producer, consumer, span, ranks, &wanted, first));
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
                layers.clear();
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

/// Layers of a span that the same producer ranks hold, in the same groups: they are planned together.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Class {
    ranks: Vec<usize>,
    source_group: usize,
    target_group: usize,
}

/// Where a layer of a span is with the producer.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// With the ranks of this class.
    Held(usize),
    /// Perhaps in another component.
    Elsewhere,
    Nowhere,
}

/// The classes of a span, found once for all consumer ranks.
struct Classes {
    list: Vec<Class>,
    of: Vec<Place>,
}

impl Classes {
    fn new(producer: &Descriptor, consumer: &Descriptor, span: &Span) -> Self {
        let mut holders = vec![Vec::new(); producer.layers as usize];
        for (i, rank) in producer.ranks.iter().enumerate() {
            for &layer in rank.layers_of(span.source) {
                holders[layer as usize].push(i);
            }
        }
        let (mut known, mut of) = (HashMap::new(), Vec::with_capacity(holders.len()));
        for (layer, ranks) in (0..).zip(holders) {
            let groups = (
                producer.group_of(span.source, layer),
                consumer.group_of(span.target, layer),
            );
            of.push(match groups {
                (Some(source_group), Some(target_group)) if !ranks.is_empty() => {
                    let class = Class {
                        ranks,
                        source_group,
                        target_group,
                    };
                    let next = known.len();
                    Place::Held(*known.entry(class).or_insert(next))
                }
                (None, Some(_)) => Place::Elsewhere,
                _ => Place::Nowhere,
            });
        }
        let mut list: Vec<(Class, usize)> = known.into_iter().collect();
        list.sort_unstable_by_key(|&(_, class)| class);
        let list = list.into_iter().map(|(class, _)| class).collect();
        Self { list, of }
    }
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
