//! An independent check of what a transfer left behind, element by element.
//!
//! It shares nothing with the plan or the fast path: for every row that a consumer rank owns it looks
//! for a producer row by search, converts it by the [`reference`](mod@moai_translate::reference), and
//! writes it unit by unit into a copy of what the pages held before. Every byte must then be equal,
//! those that no row of the request covers included.

use std::fmt;

use moai_collectives::{
    descriptor::Descriptor,
    execute::{Agreed, Pool, Requested},
    request::Request,
    tokens::skip,
};
use moai_memory::Region;
use moai_translate::{
    by_element::Paged,
    format::{RowFormat, RowScale},
    program::{Place, Progression},
    reference,
    rotation::Rotation,
    scheme::Params,
};

/// Where a check takes the producer's rows from.
pub trait SourceRows {
    /// Copies the codes of one row, and what it keeps apart from them.
    fn row(
        &self,
        component: usize,
        layer: u32,
        head: u32,
        token: u32,
        codes: &mut [u8],
        params: &mut [u8],
    );
}

/// Rows from the pools of all producer ranks.
#[derive(Debug)]
pub struct PoolRows<'a> {
    producer: &'a Descriptor,
    request: &'a Request,
    pools: &'a [Pool],
    /// For each rank and group, where each token lies among the rank's own.
    index: Vec<Vec<Vec<Option<u32>>>>,
}

impl<'a> PoolRows<'a> {
    /// Rows from `pools`, one for each rank.
    #[must_use]
    pub fn new(producer: &'a Descriptor, request: &'a Request, pools: &'a [Pool]) -> Self {
        let ranks = 0..producer.ranks.len();
        let index = ranks
            .map(|rank| {
                (0..producer.groups.len())
                    .map(|group| token_index(producer, group, rank, request.tokens))
                    .collect()
            })
            .collect();
        Self {
            producer,
            request,
            pools,
            index,
        }
    }
}

/// For each token of the request, where it lies among those that a rank holds.
fn token_index(side: &Descriptor, group: usize, rank: usize, tokens: u32) -> Vec<Option<u32>> {
    let mut index = vec![None; tokens as usize];
    for held in side.held(group, rank, tokens) {
        for i in 0..held.count {
            index[(held.token + i * held.step) as usize] = Some(held.index + i);
        }
    }
    index
}

impl SourceRows for PoolRows<'_> {
    fn row(
        &self,
        component: usize,
        layer: u32,
        head: u32,
        token: u32,
        codes: &mut [u8],
        params: &mut [u8],
    ) {
        let group = self
            .producer
            .group_of(component, layer)
            .expect("the layer is in a group");
        let described = &self.producer.components[component];
        for (i, rank) in self.producer.ranks.iter().enumerate() {
            let heads = rank.heads(component);
            let own = (
                rank.local_layer(component, layer),
                self.index[i][group][token as usize],
            );
            if let (Some(layer), Some(at)) = own
                && heads.contains(&head)
                && let Some(layout) = rank.layout(component)
            {
                let paged = Paged {
                    codes: layout,
                    params: described.scales.and_then(|s| rank.layout(s)),
                    head: head - heads.start,
                    unit: 0,
                    params_unit: 0,
                };
                let place = Place {
                    layer,
                    pages: self.request.pages(i as u32, group),
                    tokens: Progression { first: at, step: 1 },
                };
                paged.read(self.pools[i].as_slice(), place, 0, 0, codes, params);
                return;
            }
        }
        panic!("no producer rank holds layer {layer}, head {head}, token {token}")
    }
}

/// The first byte that is not what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// Consumer rank.
    pub rank: u32,
    /// Region.
    pub region: String,
    /// Byte within the region.
    pub byte: u64,
    /// What it must be.
    pub expected: u8,
    /// What it is.
    pub found: u8,
    /// Bytes of the pool that differ.
    pub bytes: u64,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rank,
            region,
            byte,
            expected,
            found,
            bytes,
        } = self;
        write!(
            f,
            "consumer {rank}: {bytes} bytes differ from the reference, first byte {byte} of region {region}: expected {expected:#04x}, found {found:#04x}"
        )
    }
}

/// What a consumer rank's pool must hold, from what it held `before`.
///
/// # Panics
///
/// If `before` does not have the regions of the rank.
#[must_use]
pub fn expected(requested: &Requested, rank: u32, mut before: Pool, rows: &dyn SourceRows) -> Pool {
    let Agreed {
        producer,
        consumer,
        agreement,
    } = &**requested.agreed();
    let request = requested.consumer();
    let shard = &consumer.ranks[rank as usize];
    let mut memo = Memo::default();
    for (s, span) in agreement.spans.iter().enumerate() {
        let (from, to) = (
            &producer.components[span.source],
            &consumer.components[span.target],
        );
        let Some(layout) = shard.layout(span.target) else {
            continue;
        };
        let mut row = vec![0; from.format.element.row_bytes(from.dim) as usize];
        let unit = from.format.element.unit(from.dim);
        let first = (span.source_first / unit.elements * unit.bytes) as usize;
        let params = from.format.params(from.dim);
        let mut params = vec![0; params.map_or(0, Params::bytes) as usize];
        let params_unit = from.format.params(from.dim).map_or(0, |p| p.unit_bytes);
        let params_first =
            from.format.element.params_from(span.source_first, from.dim) * params_unit;
        for (local, &layer) in shard.layers_of(span.target).iter().enumerate() {
            // Layers and tokens that are not to be moved stay as they were.
            if !request.layers.contains(layer) {
                continue;
            }
            let Some(group) = consumer.group_of(span.target, layer) else {
                continue;
            };
            let Some(source_group) = producer.group_of(span.source, layer) else {
                continue;
            };
            let held_there = producer.first(source_group, request.tokens);
            for head in shard.heads(span.target).clone() {
                let (a, b) = agreement.formats(s, layer, head);
                let bytes = |f: &RowFormat| f.row_bytes(span.dim).map_or(0, |b| b as usize);
                let apart = |f: &RowFormat| f.params_bytes(span.dim) as usize;
                let (mut made, mut made_params) = (vec![0; bytes(&b)], vec![0; apart(&b)]);
                let paged = Paged {
                    codes: layout,
                    params: to.scales.and_then(|s| shard.layout(s)),
                    head: head - shard.heads(span.target).start,
                    unit: span.target_first / to.format.element.unit(to.dim).elements,
                    params_unit: to.format.element.params_from(span.target_first, to.dim),
                };
                for held in consumer.held(group, rank as usize, request.tokens) {
                    for i in 0..held.count {
                        let token = held.token + i * held.step;
                        // Slots before the window that the producer no longer holds stay as they were.
                        if token < held_there.max(request.first) {
                            continue;
                        }
                        rows.row(span.source, layer, head, token, &mut row, &mut params);
                        let part = &row[first..first + bytes(&a)];
                        let part_params = &params[params_first as usize..][..apart(&a)];
                        memo.convert_row(
                            (a, b),
                            span.dim,
                            (part, part_params),
                            (&mut made, &mut made_params),
                        );
                        let place = Place {
                            layer: local as u32,
                            pages: request.pages(rank, group),
                            tokens: Progression {
                                first: held.index + i,
                                step: 1,
                            },
                        };
                        paged.write(before.as_mut_slice(), place, 0, 0, &made, &made_params);
                    }
                }
            }
        }
    }
    before
}

/// The reference, asked once for each code where a code's answer depends on nothing else.
///
/// A cache of bf16 holds a few thousand different codes many thousand times, and the reference encodes by
/// search.
#[derive(Default)]
struct Memo {
    formats: Option<(RowFormat, RowFormat)>,
    /// Answer to each two-byte code, one or two bytes.
    answers: Vec<Option<[u8; 2]>>,
}

impl Memo {
    fn convert_row(
        &mut self,
        (a, b): (RowFormat, RowFormat),
        dim: u32,
        (codes, params): (&[u8], &[u8]),
        (out, out_params): (&mut [u8], &mut [u8]),
    ) {
        // Bytes of an element whose code depends on its number alone.
        let plain = |f: &RowFormat| {
            let still = f.rope.is_none() && f.rotation == Rotation::None;
            let alone = !f.element.is_grouped() && f.scale != RowScale::Row;
            let unit = f.element.unit(dim);
            (still && alone && unit.elements == 1).then_some(unit.bytes as usize)
        };
        let (Some(2), Some(width @ 1..=2)) = (plain(&a), plain(&b)) else {
            reference::convert_row(&a, &b, dim, codes, params, out, out_params);
            return;
        };
        if self.formats != Some((a, b)) {
            self.formats = Some((a, b));
            self.answers.clear();
            self.answers.resize(1 << 16, None);
        }
        for (code, out) in codes.chunks_exact(2).zip(out.chunks_exact_mut(width)) {
            let answer = &mut self.answers[usize::from(u16::from_le_bytes([code[0], code[1]]))];
            let answer = answer.get_or_insert_with(|| {
                let mut made = [0; 2];
                reference::convert_row(&a, &b, 1, code, &[], &mut made[..width], &mut []);
                made
            });
            out.copy_from_slice(&answer[..width]);
        }
    }
}

/// Compares a consumer rank's pool with what it must hold.
///
/// # Errors
///
/// The first [`Difference`].
pub fn compare(
    agreed: &Agreed,
    rank: u32,
    found: &[Region],
    expected: &[Region],
) -> Result<(), Difference> {
    let mut difference: Option<Difference> = None;
    let names = &agreed.consumer.ranks[rank as usize].regions;
    for ((name, found), expected) in names.iter().zip(found).zip(expected) {
        let (found, expected) = (found.as_slice(), expected.as_slice());
        if found == expected {
            continue;
        }
        for (byte, (&f, &e)) in found
            .iter()
            .zip(expected)
            .enumerate()
            .filter(|(_, (f, e))| f != e)
        {
            let first = Difference {
                rank,
                region: name.name.clone(),
                byte: byte as u64,
                expected: e,
                found: f,
                bytes: 0,
            };
            difference.get_or_insert(first).bytes += 1;
        }
    }
    difference.map_or(Ok(()), Err)
}

/// Elements of the rows that a consumer rank owns of what is moved.
#[must_use]
pub fn elements(requested: &Requested, rank: u32) -> u64 {
    let Agreed {
        consumer,
        agreement,
        ..
    } = &**requested.agreed();
    let request = requested.consumer();
    let shard = &consumer.ranks[rank as usize];
    let mut elements = 0;
    for span in &agreement.spans {
        let heads = shard.heads(span.target);
        let row = u64::from(heads.end - heads.start) * u64::from(span.dim);
        for &layer in shard.layers_of(span.target) {
            if let Some(group) = consumer.group_of(span.target, layer)
                && request.layers.contains(layer)
            {
                let mut held = consumer.held(group, rank as usize, request.tokens);
                skip(&mut held, request.first);
                elements += row * held.iter().map(|held| u64::from(held.count)).sum::<u64>();
            }
        }
    }
    elements
}
