//! A cache of seeded values, held by two engines that are not alike.
//!
//! The shape is Llama 3 8B's. Values follow the seed and the coordinates of the row (layer, component,
//! head, token) alone, so that any process can say what any row must hold.

use moai_collectives::{
    description::Description,
    descriptor::{Descriptor, DescriptorError},
    digest::mix,
    execute::Pool,
    request::Request,
};
use moai_memory::{MemoryKind, RegionError};
use moai_translate::{
    by_element::Paged,
    layout::presets,
    program::{Place, Progression},
    reference,
    scheme::Params,
};
use serde_json::{Value, json};

use crate::{check::SourceRows, files};

/// Layers, KV heads and head dim of Llama 3 8B.
const LAYERS: u32 = 32;
const HEADS: u32 = 8;
const DIM: u32 = 128;

/// One side of the default run.
struct Side {
    engine: &'static str,
    preset: &'static str,
    element: &'static str,
    scale: Option<f64>,
    tp: u32,
    page_slots: u32,
    seed: u64,
}

/// Descriptions of both sides of the default run: 4 producer ranks with bf16 in vLLM's FlashAttention
/// layout, 2 consumer ranks with e4m3fnuz in vLLM's ROCm layout.
#[must_use]
pub fn descriptions(tokens: u32, seed: u64) -> [Value; 2] {
    let producer = Side {
        engine: "vllm/flash_attn",
        preset: "vllm/flash_attn",
        element: "bf16",
        scale: None,
        tp: 4,
        page_slots: 16,
        seed,
    };
    let consumer = Side {
        engine: "vllm/rocm_paged",
        preset: "vllm/rocm_paged_8bit",
        element: "e4m3fnuz",
        // Values lie within ±8, so that the greatest code stays below the format's 240.
        scale: Some(0.035),
        tp: 2,
        page_slots: 32,
        seed: seed ^ 1,
    };
    [describe(&producer, tokens), describe(&consumer, tokens)]
}

fn describe(side: &Side, tokens: u32) -> Value {
    let preset = presets::find(side.preset).expect("the preset exists");
    let used = tokens.div_ceil(side.page_slots);
    // A third more than the request needs, as a busy engine's pool would have.
    let pages = used + used.div_ceil(3);
    let components: Vec<Value> = preset
        .components
        .iter()
        .map(|named| {
            let mut format = json!({ "element": side.element });
            if let Some(scale) = side.scale {
                format["scale"] = json!({ "granularity": "tensor", "type": "f32", "values": scale });
            }
            let mut component = json!({
                "name": named.name, "heads": HEADS, "dim": DIM, "pool": named.pool, "format": format, "layout": named.text,
            });
            if named.name == "key" {
                component["rope"] = json!({ "pairing": "half", "dims": DIM });
            }
            component
        })
        .collect();
    let ranks: Vec<Value> = (0..side.tp)
        .map(|rank| {
            let list = shuffled(pages, used, side.seed.wrapping_add(u64::from(rank) << 8));
            json!({ "rank": rank, "pages": pages, "request_pages": list })
        })
        .collect();
    json!({
        "version": 1,
        "engine": side.engine,
        "model": { "name": "seeded values in the shape of Llama 3 8B", "digest": format!("seed:{}", side.seed & !1), "layers": LAYERS },
        "parallel": { "tp": side.tp, "pp": 1, "cp": 1, "rank_order": "pp cp tp" },
        "page_slots": side.page_slots,
        "components": components,
        "ranks": ranks,
        "request": { "tokens": tokens },
    })
}

/// The first `take` of a seeded order of `0..n`.
fn shuffled(n: u32, take: u32, seed: u64) -> Vec<u32> {
    let mut list: Vec<u32> = (0..n).collect();
    for i in (1..list.len()).rev() {
        let j = mix(seed.wrapping_add(i as u64)) % (i as u64 + 1);
        list.swap(i, j as usize);
    }
    list.truncate(take as usize);
    list
}

/// Both sides of the default run, checked.
///
/// # Errors
///
/// [`DescriptorError`] if `tokens` is out of range.
pub fn sides(tokens: u32, seed: u64) -> Result<[(Descriptor, Request); 2], DescriptorError> {
    let [producer, consumer] = descriptions(tokens, seed);
    let read = |value: Value| -> Result<(Descriptor, Request), DescriptorError> {
        let description: Description =
            serde_json::from_value(value).map_err(|error| DescriptorError::Syntax {
                line: 0,
                column: 0,
                problem: error.to_string(),
            })?;
        Request::described(&description)
    };
    Ok([read(producer)?, read(consumer)?])
}

/// Rows by their coordinates.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Seeded<'a> {
    side: &'a Descriptor,
    seed: u64,
}

impl<'a> Seeded<'a> {
    /// Rows of `side` under a seed.
    #[must_use]
    pub fn new(side: &'a Descriptor, seed: u64) -> Self {
        Self { side, seed }
    }
}

impl SourceRows for Seeded<'_> {
    fn row(
        &self,
        component: usize,
        layer: u32,
        head: u32,
        token: u32,
        codes: &mut [u8],
        params: &mut [u8],
    ) {
        let described = &self.side.components[component];
        let place = u64::from(layer) << 40 | (component as u64) << 32 | u64::from(head);
        let row = mix(self.seed ^ mix(place).wrapping_add(u64::from(token)));
        // Four sixteen-bit uniforms make a bell of standard deviation 1.15, cut at ±4, and a few channels
        // are doubled, as real keys have outliers.
        let values: Vec<f32> = (0..u64::from(described.dim))
            .map(|dim| {
                let bits = mix(row.wrapping_add(dim));
                let sum: f32 = (0..4)
                    .map(|i| f32::from((bits >> (16 * i)) as u16) / 32768.0)
                    .sum();
                (sum - 4.0) * if dim % 29 == 7 { 2.0 } else { 1.0 }
            })
            .collect();
        let format = described
            .format
            .row(layer, head, described.rope)
            .expect("constants are known");
        reference::encode_row(&format, &values, codes, params);
    }
}

/// Memory of a producer rank, filled with its rows of a request; whatever no row covers holds a pattern.
///
/// # Errors
///
/// [`RegionError`] if memory cannot be had.
pub fn producer_pool(
    side: &Descriptor,
    request: &Request,
    rank: u32,
    seed: u64,
) -> Result<Pool, RegionError> {
    producer_pool_in(MemoryKind::Host, side, request, rank, seed)
}

/// As [`producer_pool`], in memory of a kind; in host memory, for one that the processor cannot store to.
///
/// # Errors
///
/// As there.
pub fn producer_pool_in(
    kind: MemoryKind,
    side: &Descriptor,
    request: &Request,
    rank: u32,
    seed: u64,
) -> Result<Pool, RegionError> {
    let mut pool = background_in(kind, side, rank, seed)?;
    let rows = Seeded::new(side, seed);
    let shard = &side.ranks[rank as usize];
    for (c, component) in side.components.iter().enumerate() {
        let (Some(layout), false) = (shard.layout(c), component.is_scales) else {
            continue;
        };
        let mut row = vec![0; component.format.element.row_bytes(component.dim) as usize];
        let params = component.format.params(component.dim);
        let mut params = vec![0; params.map_or(0, Params::bytes) as usize];
        for (local, &layer) in shard.layers_of(c).iter().enumerate() {
            let Some(group) = side.group_of(c, layer) else {
                continue;
            };
            for head in shard.heads(c).clone() {
                let paged = Paged {
                    codes: layout,
                    params: component.scales.and_then(|s| shard.layout(s)),
                    head: head - shard.heads(c).start,
                    unit: 0,
                    params_unit: 0,
                };
                for held in side.held(group, rank as usize, request.tokens) {
                    for i in 0..held.count {
                        let token = held.token + i * held.step;
                        rows.row(c, layer, head, token, &mut row, &mut params);
                        let place = Place {
                            layer: local as u32,
                            pages: request.pages(rank, group),
                            tokens: Progression {
                                first: held.index + i,
                                step: 1,
                            },
                        };
                        paged.write(pool.as_mut_slice(), place, 0, 0, &row, &params);
                    }
                }
            }
        }
    }
    Ok(pool)
}

/// Memory of a rank, filled with a pattern that no row holds by chance.
///
/// # Errors
///
/// [`RegionError`] if memory cannot be had.
pub fn background(side: &Descriptor, rank: u32, seed: u64) -> Result<Pool, RegionError> {
    background_in(MemoryKind::Host, side, rank, seed)
}

/// As [`background`], in memory of a kind; in host memory, for one that the processor cannot store to.
///
/// # Errors
///
/// As there.
pub fn background_in(
    kind: MemoryKind,
    side: &Descriptor,
    rank: u32,
    seed: u64,
) -> Result<Pool, RegionError> {
    let specs = side.ranks[rank as usize].regions.iter().enumerate();
    specs
        .map(|(i, spec)| {
            let mut region = files::region(kind, spec.bytes)?;
            let start = mix(seed ^ (u64::from(rank) << 32 | i as u64));
            for (n, word) in region.as_mut_slice().chunks_mut(8).enumerate() {
                let bytes = mix(start.wrapping_add(n as u64)).to_le_bytes();
                word.copy_from_slice(&bytes[..word.len()]);
            }
            Ok(region)
        })
        .collect()
}
