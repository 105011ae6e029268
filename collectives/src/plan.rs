//! Who sends what to whom.
//!
//! A plan is compiled once for a pair of descriptors and knows nothing of a request. It intersects what
//! ranks own by interval: for every row that a consumer rank owns, exactly one producer rank is chosen
//! to send it, and among replicas the choice goes to the one with the least to send. Sizes that do not
//! divide, replication on either side and uneven pipelines are no cases of their own.

use std::{collections::BTreeMap, ops::Range};

use crate::{
    descriptor::Descriptor,
    tokens::{Shared, meet},
};

/// Dims that a component of each side has in common, carried together.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Span {
    /// Name, with dims where they are a part only: `latent[0..512]`.
    pub name: String,
    /// Component of the producer.
    pub source: usize,
    /// Component of the consumer.
    pub target: usize,
    /// First element within the producer's row.
    pub source_first: u32,
    /// First element within the consumer's row.
    pub target_first: u32,
    /// Elements.
    pub dim: u32,
}

/// A global layer, and where it stands on each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct LayerPair {
    /// Global layer.
    pub layer: u32,
    /// Along the producer component's `layer` axis.
    pub source: u32,
    /// Along the consumer component's `layer` axis.
    pub target: u32,
}

/// A box of rows that goes from one rank to another: layers × heads × the tokens both hold.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Step {
    /// Index of the span.
    pub span: usize,
    /// Layers.
    pub layers: Vec<LayerPair>,
    /// Global heads.
    pub heads: Range<u32>,
    /// Page list on the producer.
    pub source_group: usize,
    /// Page list on the consumer.
    pub target_group: usize,
}

/// Everything that one producer rank sends to one consumer rank.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pair {
    /// Producer rank.
    pub source: u32,
    /// Consumer rank.
    pub target: u32,
    /// In the order in which they are sent.
    pub steps: Vec<Step>,
}

/// Rows of a consumer rank that no producer rank holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hole {
    /// Consumer rank.
    pub target: u32,
    /// Index of the span.
    pub span: usize,
    /// Global layers.
    pub layers: Vec<u32>,
    /// Global heads.
    pub heads: Range<u32>,
    /// Context parallel rank whose tokens are missing, of how many.
    pub cp: (u32, u32),
}

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

/// A part of a step small enough to go over the wire in one piece: one layer, all heads of the step, and
/// tokens in one progression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Chunk {
    /// Index of the step within the pair.
    pub step: u32,
    /// Index into the step's layers.
    pub layer: u32,
    /// Tokens, and where they lie on both sides.
    pub tokens: Shared,
    /// Bytes on the wire.
    pub bytes: u32,
}

/// Chunks of a pair for a request of `tokens` tokens, at most and without listing them.
#[must_use]
pub fn most_chunks(
    producer: &Descriptor,
    consumer: &Descriptor,
    pair: &Pair,
    tokens: u32,
    chunk_bytes: u64,
    row_bytes: impl Fn(usize) -> u64,
) -> u64 {
    let chunks = |step: &Step| {
        let heads = u64::from(step.heads.end - step.heads.start);
        let per_chunk = (chunk_bytes / (heads * row_bytes(step.span)).max(1)).max(1);
        let runs = |side: &Descriptor, group: usize| {
            let (slots, cp) = (side.groups[group].page_slots, side.parallel[2]);
            let by_page = side.cp_unit == Some(crate::description::CpUnit::Page) && cp > 1;
            if by_page {
                u64::from(tokens / slots / cp) + 2
            } else {
                1
            }
        };
        let runs = runs(producer, step.source_group) + runs(consumer, step.target_group);
        // Ending chunks on pages may halve them.
        step.layers.len() as u64 * (2 * u64::from(tokens) / per_chunk + runs)
    };
    pair.steps.iter().map(chunks).sum()
}

/// The chunks of a pair for a request of `tokens` tokens, in the order in which they are sent.
///
/// `row_bytes` gives the bytes of a span's row in its exchange format. Both sides compute the same list,
/// so a chunk is named by its position and no addresses cross the wire.
#[must_use]
pub fn chunks(
    producer: &Descriptor,
    consumer: &Descriptor,
    pair: &Pair,
    tokens: u32,
    chunk_bytes: u64,
    row_bytes: impl Fn(usize) -> u64,
) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut met: Vec<((usize, usize), Vec<Shared>)> = Vec::new();
    for (index, step) in pair.steps.iter().enumerate() {
        let groups = (step.source_group, step.target_group);
        let shared = match met.iter().position(|(key, _)| *key == groups) {
            Some(i) => i,
            None => {
                let source = producer.held(groups.0, pair.source as usize, tokens);
                let target = consumer.held(groups.1, pair.target as usize, tokens);
                met.push((groups, meet(&source, &target)));
                met.len() - 1
            }
        };
        let heads = u64::from(step.heads.end - step.heads.start);
        let token_bytes = heads * row_bytes(step.span);
        let slots = consumer.groups[step.target_group].page_slots;
        let most = (chunk_bytes / token_bytes).clamp(1, u64::from(u32::MAX)) as u32;
        for layer in 0..step.layers.len() as u32 {
            for run in &met[shared].1 {
                let mut done = 0;
                while done < run.count {
                    let mut n = most.min(run.count - done);
                    // End on a page of the consumer where that costs less than half of the chunk.
                    let end = run.target.at(done) + (n - 1) * run.target.step + 1;
                    let over = (end % slots).div_ceil(run.target.step);
                    if done + n < run.count && over < n && over <= n / 2 {
                        n -= over;
                    }
                    let at = |p: moai_translate::program::Progression| {
                        moai_translate::program::Progression {
                            first: p.at(done),
                            ..p
                        }
                    };
                    chunks.push(Chunk {
                        step: index as u32,
                        layer,
                        tokens: Shared {
                            token: run.token + done * run.step,
                            count: n,
                            source: at(run.source),
                            target: at(run.target),
                            ..*run
                        },
                        bytes: (u64::from(n) * token_bytes) as u32,
                    });
                    done += n;
                }
            }
        }
    }
    chunks
}
