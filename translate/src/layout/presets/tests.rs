//! Presets against the shapes and strides of the engines, unit by unit.

use std::collections::BTreeSet;

use super::*;
use crate::layout::{Address, overlap};

const LAYERS: u32 = 3;
const PAGES: u32 = 4;

/// Sizes to try a preset with: whole tiles of every split in it, and no two extents alike.
fn sizes(preset: &Preset) -> (u32, u32, Vec<Row>) {
    let row = |units, unit_bytes| Row { units, unit_bytes };
    let rows = match preset.name {
        "vllm/dsv4" => vec![row(448, 1), row(7, 1), row(64, 2)],
        "vllm/dsv41" => vec![row(512, 1), row(16, 1)],
        "sglang/dsv41_fp4" => vec![row(256, 1), row(32, 1)],
        "vllm/fp8_ds_mla" => vec![row(512, 1), row(4, 4), row(64, 2)],
        "vllm/nvfp4_ds_mla" => vec![row(256, 1), row(32, 1), row(64, 1)],
        name if name.ends_with("indexer") || name.ends_with("rocm") => {
            vec![row(128, 1), row(1, 4)]
        }
        "vllm/flash_attn_unequal" | "vllm/flash_attn_unequal_hnd" => {
            vec![row(24, 2), row(16, 2)]
        }
        // Codes of 3 and 2 bits with numbers in f16.
        "vllm/turboquant" => vec![row(9, 1), row(1, 2), row(6, 1), row(2, 2)],
        name if name.contains("8bit") => vec![row(48, 1); 2],
        name if name.contains("nvfp4") => vec![row(32, 1), row(4, 1), row(32, 1), row(4, 1)],
        _ => match preset.components.len() {
            1 => vec![row(576, 2)],
            2 => vec![row(48, 2); 2],
            _ => vec![row(40, 1), row(2, 4), row(40, 1), row(2, 4)],
        },
    };
    let latent = preset.components.iter().any(|c| {
        let name = c.name;
        name.starts_with("latent") || name.starts_with("indexer")
    });
    (if latent { 1 } else { 2 }, 32, rows)
}

/// Index of the element of a contiguous array: `(index, extent)`, outermost first.
fn flat(axes: &[(u64, u64)]) -> u64 {
    axes.iter().fold(0, |sum, &(i, n)| {
        assert!(i < n, "index {i} of {n}");
        sum * n + i
    })
}

/// The same for an array of `shape` whose memory was allocated with the axes in `order`, as
/// `torch.empty([shape[i] for i in order]).permute(inverse)` does.
fn permuted(shape: &[(u64, u64)], order: &[usize]) -> u64 {
    let physical: Vec<_> = order.iter().map(|&axis| shape[axis]).collect();
    flat(&physical)
}

/// Where the engine's own shapes and strides put a unit.
struct Unit {
    l: u64,
    b: u64,
    h: u64,
    n: u64,
    d: u64,
    /// 0 for K, 1 for V.
    kv: u64,
    scale: bool,
    layers: u64,
    blocks: u64,
    heads: u64,
    slots: u64,
    /// Units of the row, and bytes of one.
    dims: u64,
    bytes: u64,
    /// Bytes of the rows of all components.
    rows: Vec<u64>,
}

impl Unit {
    /// Pool, region and byte, by name of the preset.
    fn place(&self, preset: &str) -> (&'static str, u64, u64) {
        let &Self {
            l,
            b,
            h,
            n,
            d,
            kv,
            bytes,
            ..
        } = self;
        let (kv_, l_, b_) = ((kv, 2), (l, self.layers), (b, self.blocks));
        let (h_, n_, d_) = ((h, self.heads), (n, self.slots), (d, self.dims));
        let c_ = (kv * self.dims + d, 2 * self.dims); // C = K | V
        let split = |(i, all): (u64, u64), by: u64| ((i / by, all / by), (i % by, by));
        let x = 16 / bytes;
        let in_layer = |index: u64| ("kv", l, index * bytes);
        let in_pool = |index: u64| ("kv", 0, index * bytes);
        let k_or_v = |k: &'static str, v: &'static str| if kv == 0 { k } else { v };
        // vLLM 0.32: [L, B, H, N, C], allocated in the order that the name spells.
        let ordered = |order: &str| {
            let axes = order.chars().map(|c| match c {
                'L' => l_,
                'B' => b_,
                'H' => h_,
                'N' => n_,
                _ => c_,
            });
            flat(&axes.collect::<Vec<_>>())
        };
        let (rows, cells) = (&self.rows, self.rows.iter().sum::<u64>());
        // A component's bytes within a cell of K, K scale, V, V scale.
        let own = (2 * kv + u64::from(self.scale)) as usize;
        let before: u64 = rows.iter().take(own).sum();
        let (slots, heads) = (self.slots, self.heads);
        match preset {
            "llama.cpp" | "llama.cpp/transposed_v" if kv == 0 || preset == "llama.cpp" => {
                (k_or_v("k", "v"), l, flat(&[b_, h_, d_]) * bytes)
            }
            "llama.cpp/transposed_v" => ("v", l, flat(&[h_, d_, b_]) * bytes),
            "llama.cpp/streams_transposed_v" if kv == 1 => {
                ("v", l, flat(&[b_, h_, d_, n_]) * bytes)
            }
            "llama.cpp/streams" | "llama.cpp/streams_transposed_v" | "lmdeploy/pytorch" => {
                (k_or_v("k", "v"), l, flat(&[b_, n_, h_, d_]) * bytes)
            }
            "lmdeploy/pytorch_quantized" => {
                let pool = match self.scale {
                    false => k_or_v("k", "v"),
                    true => k_or_v("k.scale", "v.scale"),
                };
                (pool, l, flat(&[b_, n_, h_, d_]) * bytes)
            }
            "lmdeploy/turbomind" | "lmdeploy/turbomind_quantized" => {
                // block.h, line by line.
                let scales = rows.len() == 4;
                let (data, param) = (rows[0], if scales { rows[1] } else { 0 });
                let (head_data, head_param) = (slots * data, slots * param);
                let layer_size = heads * 2 * head_data + heads * 2 * head_param;
                let layer = l * layer_size;
                let byte = match self.scale {
                    false => layer + h * 2 * head_data + kv * head_data + n * data,
                    true => {
                        layer
                            + heads * 2 * head_data
                            + h * 2 * head_param
                            + kv * head_param
                            + n * param
                    }
                };
                ("kv", 0, b * self.layers * layer_size + byte + d * bytes)
            }
            "mla" => in_layer(flat(&[b_, n_, d_])),
            "sglang/hicache_layer_first" => in_pool(flat(&[kv_, l_, b_, n_, h_, d_])),
            "sglang/hicache_page_first" => in_pool(flat(&[kv_, b_, n_, l_, h_, d_])),
            "sglang/hicache_page_first_direct" => in_pool(flat(&[kv_, b_, l_, n_, h_, d_])),
            "sglang/hicache_page_head" => in_pool(flat(&[kv_, b_, h_, n_, l_, d_])),
            "sglang/mha" | "vllm-gaudi" => ("kv", 2 * l + kv, flat(&[b_, n_, h_, d_]) * bytes),
            "vllm-gaudi/host" | "vllm-neuron" => {
                ("kv", 2 * l + kv, flat(&[b_, h_, n_, d_]) * bytes)
            }
            "trtllm" => in_pool(flat(&[b_, l_, kv_, h_, n_, d_])),
            "trtllm/nvfp4" | "trtllm/nvfp4_v_interleaved" => {
                let pool = if self.scale { "scale" } else { "kv" };
                let head = flat(&[b_, l_, kv_, h_]) * slots * self.dims;
                let inside = match self.scale && kv == 1 && preset != "trtllm/nvfp4" {
                    true => (n / 4) * 4 * self.dims + d * 4 + n % 4,
                    false => n * self.dims + d,
                };
                (pool, 0, (head + inside) * bytes)
            }
            "trtllm-edge" | "vllm-xpu/flash_attn" => in_layer(flat(&[kv_, b_, n_, h_, d_])),
            "vllm/aiter_shuffle"
            | "vllm/aiter_shuffle_8bit"
            | "vllm/aiter_shuffle_0.24"
            | "vllm/aiter_shuffle_0.24_8bit" => {
                let ((do_, di), (no, ni)) = (split(d_, x), split(n_, x));
                let outer = match preset.contains("0.24") {
                    true => [b_, kv_],
                    false => [kv_, b_],
                };
                let inner = match kv {
                    0 => [h_, do_, n_, di],
                    _ => [h_, no, d_, ni],
                };
                in_layer(flat(&[&outer[..], &inner].concat()))
            }
            "vllm/rocm_paged"
            | "vllm/rocm_paged_8bit"
            | "vllm/rocm_paged_lbhnc"
            | "vllm/rocm_paged_lbhnc_8bit" => {
                let (do_, di) = split(d_, x);
                let outer = match preset.contains("lbhnc") {
                    true => [b_, kv_],
                    false => [kv_, b_],
                };
                let inner: &[_] = match kv {
                    0 => &[h_, do_, n_, di],
                    _ => &[h_, d_, n_],
                };
                in_layer(flat(&[&outer[..], inner].concat()))
            }
            "vllm/bhlnc" => in_pool(ordered("BHLNC")),
            "vllm/blhnc" => in_pool(ordered("BLHNC")),
            "vllm/blnhc" => in_pool(ordered("BLNHC")),
            "vllm/lbhnc" => in_pool(ordered("LBHNC")),
            "vllm/lbnhc" => in_pool(ordered("LBNHC")),
            "vllm/lhbnc" => in_pool(ordered("LHBNC")),
            "vllm/flash_attn" => in_layer(ordered("BNHC")),
            "vllm/flash_attn_hnd" => in_layer(ordered("BHNC")),
            "vllm/flash_attn_unequal" | "vllm/flash_attn_unequal_hnd" => {
                let cell = match preset.ends_with("hnd") {
                    true => flat(&[b_, h_, n_]),
                    false => flat(&[b_, n_, h_]),
                };
                ("kv", l, cell * cells + kv * rows[0] + d * bytes)
            }
            "vllm/cpu_attn" => {
                let inside = match kv {
                    0 => d * slots + n,
                    _ => slots * self.dims + n * self.dims + d,
                };
                in_layer(flat(&[b_, h_, (inside, 2 * slots * self.dims)]))
            }
            "vllm/cpu_attn_0.20" => in_layer(match kv {
                0 => flat(&[kv_, b_, h_, d_, n_]),
                _ => flat(&[kv_, b_, h_, n_, d_]),
            }),
            "vllm/cpu_attn_amx" => {
                // reshape_and_cache of cpu_attn_amx.hpp, pointers as indices.
                let head = flat(&[b_, h_, kv_]) * slots * self.dims;
                let inside = match kv {
                    0 => {
                        let (group, quads) = (n / 16, self.dims / 2);
                        2 * (group * 16 * quads + n % 16 + (d / 2) * 16) + d % 2
                    }
                    _ => (d / 16) * slots * 16 + (n / 2) * 2 * 16 + n % 2 + (d % 16) * 2,
                };
                in_layer(head + inside)
            }
            "sglang/dsv32_indexer" | "vllm/dsv32_indexer" | "vllm/dsv32_indexer_rocm" => {
                let page = b * slots * 132;
                let inside = match (self.scale, preset.ends_with("rocm")) {
                    (true, _) => slots * 128 + n * 4,
                    (false, false) => n * 128 + d,
                    (false, true) => (n / 16) * 16 * 128 + (d / 16) * 256 + (n % 16) * 16 + d % 16,
                };
                ("kv", l, page + inside)
            }
            "vllm/dsv4" => {
                let page = (slots * 584).div_ceil(576) * 576;
                let inside = match (self.scale, bytes) {
                    (true, _) => slots * 576 + n * 8 + d,
                    (false, 1) => n * 576 + d,
                    (false, _) => n * 576 + 448 + d * 2,
                };
                ("kv", l, b * page + inside)
            }
            "vllm/dsv41" | "sglang/dsv41_fp4" => {
                let (data, scale, round) = match preset {
                    "vllm/dsv41" => (512, 16, 512),
                    _ => (256, 32, 256),
                };
                let page = (slots * (data + scale)).div_ceil(round) * round;
                let inside = match self.scale {
                    true => slots * data + n * scale + d,
                    false => n * data + d,
                };
                ("kv", l, b * page + inside)
            }
            "vllm/fp8_ds_mla" => {
                let inside = match bytes {
                    1 => d,
                    4 => 512 + d * 4,
                    _ => 528 + d * 2,
                };
                ("kv", l, (b * slots + n) * 656 + inside)
            }
            "vllm/nvfp4_ds_mla" => {
                let inside = match (self.scale, self.dims) {
                    (true, _) => 320 + 8 * (d & 3) + (d >> 2),
                    (false, 256) => d,
                    (false, _) => 256 + d,
                };
                ("kv", l, (b * slots + n) * 352 + inside)
            }
            "vllm/flash_attn_0.20" | "vllm/flash_attn_0.20_hnd" => {
                let order: &[usize] = match preset.ends_with("hnd") {
                    true => &[0, 1, 3, 2, 4],
                    false => &[0, 1, 2, 3, 4],
                };
                in_layer(permuted(&[kv_, b_, n_, h_, d_], order))
            }
            "vllm/flash_attn_0.24"
            | "vllm/flash_attn_0.24_hnd"
            | "vllm/flashinfer_0.20"
            | "vllm/flashinfer_0.20_hnd" => {
                let order: &[usize] = match preset.ends_with("hnd") {
                    true => &[0, 1, 3, 2, 4],
                    false => &[0, 1, 2, 3, 4],
                };
                in_layer(permuted(&[b_, kv_, n_, h_, d_], order))
            }
            "vllm/flash_attn_0.20_cross_layer" => {
                in_pool(permuted(&[l_, kv_, b_, n_, h_, d_], &[2, 0, 1, 3, 4, 5]))
            }
            "vllm/flash_attn_0.20_cross_layer_hnd" => {
                in_pool(permuted(&[l_, kv_, b_, n_, h_, d_], &[2, 4, 0, 1, 3, 5]))
            }
            "vllm/flashinfer_0.20_cross_layer" => {
                in_pool(permuted(&[l_, b_, kv_, n_, h_, d_], &[1, 0, 2, 3, 4, 5]))
            }
            "vllm/flashinfer_0.20_cross_layer_hnd" => {
                in_pool(permuted(&[l_, b_, kv_, n_, h_, d_], &[1, 2, 4, 0, 3, 5]))
            }
            "vllm/nvfp4" | "vllm/nvfp4_hnd" | "vllm/nvfp4_hnd_v_interleaved" => {
                let plane = before * heads * slots;
                let index = match preset {
                    "vllm/nvfp4" => flat(&[n_, h_, d_]),
                    "vllm/nvfp4_hnd_v_interleaved" if self.scale && kv == 1 => {
                        h * slots * self.dims + (n / 4) * 4 * self.dims + d * 4 + n % 4
                    }
                    _ => flat(&[h_, n_, d_]),
                };
                ("kv", l, b * heads * slots * cells + plane + index)
            }
            "vllm/token_head" | "vllm/ultraquant" | "vllm/turboquant" => {
                let cell = cells.next_multiple_of(if preset == "vllm/turboquant" { 2 } else { 1 });
                ("kv", l, flat(&[b_, n_, h_]) * cell + before + d * bytes)
            }
            "vllm/token_head_hnd" => ("kv", l, flat(&[b_, h_, n_]) * cells + before + d * bytes),
            "vllm/token_head_0.20" | "vllm/token_head_0.24" => {
                // (…, H, D + pad), the scale in the padding.
                let cell = match preset.ends_with("20") {
                    true => flat(&[kv_, b_, n_, h_]),
                    false => flat(&[b_, kv_, n_, h_]),
                };
                let inside = if self.scale { rows[0] } else { 0 };
                ("kv", l, cell * (rows[0] + rows[1]) + inside + d * bytes)
            }
            other => panic!("nobody has said where {other} puts its units"),
        }
    }
}

#[test]
fn presets_put_every_unit_where_the_engine_does() {
    for preset in ALL {
        let (heads, slots, rows) = sizes(preset);
        let slots = match preset.name {
            "llama.cpp" | "llama.cpp/transposed_v" => 1,
            _ => slots,
        };
        let shape = CacheShape {
            layers: LAYERS,
            pages: PAGES,
            heads,
            slots,
            rows: &rows,
        };
        for (one, row) in preset.components.iter().zip(&rows) {
            let layout = preset
                .layout(one.name, &shape)
                .unwrap_or_else(|error| panic!("{} {}: {error}", preset.name, one.name));
            for l in 0..LAYERS {
                for b in 0..PAGES {
                    for h in 0..heads {
                        for n in 0..slots {
                            for d in 0..row.units {
                                let unit = Unit {
                                    l: l.into(),
                                    b: b.into(),
                                    h: h.into(),
                                    n: n.into(),
                                    d: d.into(),
                                    kv: u64::from(one.name.starts_with("value")),
                                    scale: one.name.ends_with(".scale"),
                                    layers: LAYERS.into(),
                                    blocks: PAGES.into(),
                                    heads: heads.into(),
                                    slots: slots.into(),
                                    dims: row.units.into(),
                                    bytes: row.unit_bytes.into(),
                                    rows: rows
                                        .iter()
                                        .map(|r| u64::from(r.units * r.unit_bytes))
                                        .collect(),
                                };
                                let (pool, region, byte) = unit.place(preset.name);
                                assert_eq!(
                                    (one.pool, layout.address(l, b, h, n, d)),
                                    (pool, Address { region, byte }),
                                    "{} {}: layer {l} page {b} head {h} slot {n} dim {d}",
                                    preset.name,
                                    one.name
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn components_of_one_pool_do_not_overlap() {
    for preset in ALL {
        let (heads, slots, rows) = sizes(preset);
        let shape = CacheShape {
            layers: LAYERS,
            pages: PAGES,
            heads,
            slots: if preset.components[0].text.contains("slot") {
                slots
            } else {
                1
            },
            rows: &rows,
        };
        let layout = |c: &Component| preset.layout(c.name, &shape).unwrap();
        for (i, a) in preset.components.iter().enumerate() {
            for b in &preset.components[..i] {
                assert!(
                    a.pool != b.pool || !overlap(&layout(a), &layout(b)),
                    "{}: {} and {}",
                    preset.name,
                    a.name,
                    b.name
                );
            }
        }
    }
}

#[test]
fn presets_are_sorted_and_parse() {
    assert!(ALL.is_sorted_by_key(|preset| preset.name));
    let names: BTreeSet<_> = ALL.iter().map(|preset| preset.name).collect();
    assert_eq!(names.len(), ALL.len());
    for preset in ALL {
        for one in preset.components {
            let parsed: Notation = one.text.parse().unwrap();
            assert_eq!(parsed.to_string(), one.text, "{} {}", preset.name, one.name);
            assert!(!preset.source.is_empty(), "{}", preset.name);
        }
    }
}

#[test]
fn what_does_not_fit_a_preset_is_said() {
    let preset = find("vllm/token_head").unwrap();
    let row = Row {
        units: 64,
        unit_bytes: 1,
    };
    let shape = CacheShape {
        layers: 1,
        pages: 1,
        heads: 1,
        slots: 1,
        rows: &[row],
    };
    assert_eq!(
        preset.place("latent", &shape).unwrap_err().to_string(),
        "layout vllm/token_head has no component `latent`; it has key, key.scale, value, value.scale"
    );
    assert!(matches!(
        preset.place("key", &shape),
        Err(PresetError::Rows {
            rows: 1,
            components: 4,
            ..
        })
    ));
    let row = Row {
        units: u32::MAX,
        unit_bytes: u32::MAX,
    };
    let shape = CacheShape {
        rows: &[row; 4],
        ..shape
    };
    assert!(matches!(
        preset.place("key", &shape),
        Err(PresetError::TooLarge {
            component: "key",
            ..
        })
    ));
    assert!(find("vllm").is_none());
}
