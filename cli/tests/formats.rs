//! Pages of engines whose rows keep scales apart, or are rotated, become what their formulas say, offline and live.
//!
//! The caches are made here, byte by byte from the formulas of each page: what they hold, where it lies and what it
//! stands for. Nothing is taken from the crates' layouts, elements or conversions.

mod support;

use std::{collections::BTreeMap, fs, path::Path};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use support::{moai, stderr, stdout, text};

/// Regions by name.
type Regions = BTreeMap<&'static str, Vec<u8>>;

const TOKENS: usize = 41;
const PAGES: usize = 4;

/// One side: its components, its page, its memory.
struct Side {
    components: Value,
    slots: usize,
    regions: Regions,
}

impl Side {
    /// A pattern of unlike bytes where nothing is written yet.
    fn blank(components: Value, slots: usize, regions: &[(&'static str, usize)]) -> Self {
        let fill = |bytes: usize, seed: usize| (0..bytes).map(|i| (i * 7 + seed) as u8).collect();
        let named = regions.iter().enumerate();
        let regions = named
            .map(|(seed, &(name, bytes))| (name, fill(bytes, seed)))
            .collect();
        Self {
            components,
            slots,
            regions,
        }
    }

    /// Pages of the request: the last first.
    fn page_list(&self) -> Vec<usize> {
        (0..TOKENS.div_ceil(self.slots))
            .map(|i| PAGES - 1 - i)
            .collect()
    }

    /// Page and slot of a token.
    fn at(&self, token: usize) -> (usize, usize) {
        (self.page_list()[token / self.slots], token % self.slots)
    }

    fn put(&mut self, region: &str, byte: usize, bytes: &[u8]) {
        self.regions.get_mut(region).unwrap()[byte..byte + bytes.len()].copy_from_slice(bytes);
    }

    fn get(&self, region: &str, byte: usize, n: usize) -> &[u8] {
        &self.regions[region][byte..byte + n]
    }

    fn write(&self, folder: &Path, role: &str) -> std::path::PathBuf {
        let views = self.regions.iter().map(|(name, bytes)| {
            (
                *name,
                TensorView::new(Dtype::U8, vec![bytes.len()], bytes).unwrap(),
            )
        });
        let file = format!("{role}.safetensors");
        safetensors::serialize_to_file(views, None, &folder.join(&file)).unwrap();
        let document = json!({
            "version": 1, "model": { "layers": 1 }, "parallel": {}, "page_slots": self.slots,
            "components": self.components,
            "ranks": [{ "rank": 0, "pages": PAGES, "file": file, "request_pages": self.page_list() }],
            "request": { "tokens": TOKENS },
        });
        let path = folder.join(format!("{role}.json"));
        fs::write(&path, document.to_string()).unwrap();
        path
    }
}

/// `expected` is the consumer's memory after the transfer from `producer`, which begins with `before`.
fn becomes(producer: &Side, before: &Side, expected: &Side) {
    for command in ["convert", "run"] {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (
            producer.write(folder.path(), "producer"),
            before.write(folder.path(), "consumer"),
        );
        let out = folder.path().join("out");
        let output = moai(&[command, text(&from), text(&to), "--out", text(&out)])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{command}: {}\n{}",
            stderr(&output),
            stdout(&output)
        );
        if command == "run" {
            assert!(stdout(&output).contains("verified"), "{}", stdout(&output));
        }
        let file = fs::read_dir(&out).unwrap().next().unwrap().unwrap().path();
        let bytes = fs::read(file).unwrap();
        let made = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(made.len(), expected.regions.len());
        for (name, wanted) in &expected.regions {
            let made = made.tensor(name).unwrap();
            let differ: Vec<usize> = (0..wanted.len())
                .filter(|&i| made.data()[i] != wanted[i])
                .collect();
            assert!(
                differ.is_empty(),
                "{command}: {} of {} bytes of {name} differ; the first, {}, is {} and should be {}",
                differ.len(),
                wanted.len(),
                differ[0],
                made.data()[differ[0]],
                wanted[differ[0]]
            );
        }
    }
}

// ---------------------------------------------------------------- numbers

/// A sequence that any language can write down.
struct Sequence(u64);

impl Sequence {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }

    /// A number with few bits, so that sums of products are exact: n/16, |n| ≤ 127.
    fn short(&mut self) -> f32 {
        (self.below(255) as f32 - 127.0) / 16.0
    }

    /// A row of `bf16`: the numbers, and their bytes.
    fn row(&mut self, dim: usize) -> (Vec<f32>, Vec<u8>) {
        let values: Vec<f32> = (0..dim).map(|_| self.short()).collect();
        let bytes = bf16s(&values);
        (values, bytes)
    }
}

/// The nearest `bf16`, ties to even.
fn bf16s(values: &[f32]) -> Vec<u8> {
    let one = |x: &f32| {
        let bits = x.to_bits();
        let round = 0x7FFF + (bits >> 16 & 1);
        (((bits + round) >> 16) as u16).to_le_bytes()
    };
    values.iter().flat_map(one).collect()
}

fn f16(bits: [u8; 2]) -> f32 {
    let bits = u16::from_le_bytes(bits);
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let size = match exponent {
        0 => mantissa * 2f32.powi(-24),
        e => (1.0 + mantissa / 1024.0) * 2f32.powi(e - 15),
    };
    if bits >> 15 == 1 { -size } else { size }
}

/// The nearest `f16` of a positive number that is neither tiny nor huge.
fn to_f16(x: f32) -> [u8; 2] {
    let near = (1..0x7C00_u16).min_by(|&a, &b| {
        let far = |bits: u16| (f64::from(f16(bits.to_le_bytes())) - f64::from(x)).abs();
        // Of two that are equally near, the even one.
        far(a).total_cmp(&far(b)).then((a % 2).cmp(&(b % 2)))
    });
    near.unwrap().to_le_bytes()
}

fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    assert!(code & 0x7F != 0x7F, "a NaN");
    let size = match exponent {
        0 => mantissa / 512.0,
        e => (1.0 + mantissa / 8.0) * 2f32.powi(e - 7),
    };
    if code >> 7 == 1 { -size } else { size }
}

const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

fn e2m1(code: u8) -> f32 {
    let size = E2M1[usize::from(code & 7)];
    if code & 8 != 0 { -size } else { size }
}

/// The code of the nearest of `list`, which ascends, ties to the even code; beyond the greatest, the greatest.
fn nearest(x: f32, list: &[f32]) -> u8 {
    let far = |i: usize| (f64::from(list[i]) - f64::from(x.abs())).abs();
    let best =
        (0..list.len()).min_by(|&a, &b| far(a).total_cmp(&far(b)).then((a % 2).cmp(&(b % 2))));
    best.unwrap() as u8
}

fn to_e2m1(x: f32) -> u8 {
    nearest(x, &E2M1) | u8::from(x.is_sign_negative()) << 3
}

fn to_e4m3(x: f32) -> u8 {
    let list: Vec<f32> = (0..0x7F).map(e4m3).collect();
    nearest(x, &list) | u8::from(x.is_sign_negative()) << 7
}

fn amax(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// H·x / norm, by the definition of Sylvester's matrix: the sign is the parity of the common bits.
fn hadamard(values: &[f32], norm: f64) -> Vec<f32> {
    let sign = |i: usize, j: usize| {
        if (i & j).count_ones() % 2 == 1 {
            -1.0
        } else {
            1.0
        }
    };
    let n = values.len();
    let sum = |i: usize| {
        (0..n)
            .map(|j| sign(i, j) * f64::from(values[j]))
            .sum::<f64>()
    };
    (0..n).map(|i| (sum(i) / norm) as f32).collect()
}

// ---------------------------------------------------------------- pages of plain rows

const HEADS: usize = 2;

/// Keys and values of `bf16` in vLLM's NHD pages: a tensor (2, pages, slots, heads, dim).
fn nhd(dim: usize, slots: usize) -> Side {
    let component = |name: &str| {
        json!({
            "name": name, "heads": HEADS, "dim": dim, "pool": "kv", "format": { "element": "bf16" },
            "layout": "part page slot head dim",
        })
    };
    let components = json!([component("key"), component("value")]);
    Side::blank(
        components,
        slots,
        &[("kv.0", 2 * PAGES * slots * HEADS * dim * 2)],
    )
}

impl Side {
    fn nhd_byte(&self, dim: usize, part: usize, head: usize, token: usize) -> usize {
        let (page, slot) = self.at(token);
        (((part * PAGES + page) * self.slots + slot) * HEADS + head) * dim * 2
    }
}

/// A latent of `bf16`, a tensor (pages, slots, dim).
fn latent(dim: usize, slots: usize) -> Side {
    let components = json!([{
        "name": "latent", "heads": 1, "dim": dim, "pool": "kv", "format": { "element": "bf16" },
        "layout": "page slot dim",
    }]);
    Side::blank(components, slots, &[("kv.0", PAGES * slots * dim * 2)])
}

impl Side {
    fn latent_byte(&self, dim: usize, token: usize) -> usize {
        let (page, slot) = self.at(token);
        (page * self.slots + slot) * dim * 2
    }
}

/// Every part, head and token.
fn each_row(mut one: impl FnMut(usize, usize, usize)) {
    for part in 0..2 {
        for head in 0..HEADS {
            for token in 0..TOKENS {
                one(part, head, token);
            }
        }
    }
}

// ---------------------------------------------------------------- the pages

/// vLLM's nvfp4: a page is K data, K scales, V data, V scales, each (heads, slots, …) with `head` outermost.
#[test]
fn vllms_nvfp4_pages_become_bf16() {
    const DIM: usize = 64;
    const SLOTS: usize = 16;
    let (data, scales) = (HEADS * SLOTS * DIM / 2, HEADS * SLOTS * DIM / 16);
    let page = 2 * (data + scales);
    let constants = [0.5_f32, 0.25];
    let place = |name: &str, dim: usize, format: Value, offset: usize| {
        json!({
            "name": name, "heads": HEADS, "dim": dim, "pool": "kv", "format": format,
            "layout": { "text": "page head slot dim", "offset_bytes": offset, "strides_bytes": { "page": page } },
        })
    };
    let nvfp4 = |constant: f32| json!({ "element": "nvfp4", "scale": { "granularity": "tensor", "values": constant } });
    let e4m3fn = json!({ "element": "e4m3fn" });
    let components = json!([
        place("key", DIM, nvfp4(constants[0]), 0),
        place("key.scale", DIM / 16, e4m3fn.clone(), data),
        place("value", DIM, nvfp4(constants[1]), data + scales),
        place("value.scale", DIM / 16, e4m3fn, 2 * data + scales),
    ]);
    let mut producer = Side::blank(components, SLOTS, &[("kv.0", PAGES * page)]);
    let before = nhd(DIM, 12);
    let mut expected = nhd(DIM, 12);
    let mut sequence = Sequence(1);
    each_row(|part, head, token| {
        let codes = sequence.bytes(DIM / 2);
        let of: Vec<u8> = (0..DIM / 16).map(|_| sequence.below(0x7F) as u8).collect();
        let (at, slot) = producer.at(token);
        let start = at * page + part * (data + scales);
        let row = head * SLOTS + slot;
        producer.put("kv.0", start + row * DIM / 2, &codes);
        producer.put("kv.0", start + data + row * DIM / 16, &of);
        let value = |i: usize| {
            let code = codes[i / 2] >> (4 * (i % 2));
            e2m1(code) * e4m3(of[i / 16]) * constants[part]
        };
        let values: Vec<f32> = (0..DIM).map(value).collect();
        let byte = expected.nhd_byte(DIM, part, head, token);
        expected.put("kv.0", byte, &bf16s(&values));
    });
    becomes(&producer, &before, &expected);
}

/// TensorRT-LLM's: codes in one pool, scales in another, those of V for four tokens side by side.
#[test]
fn bf16_becomes_trtllms_nvfp4_with_interleaved_scales_of_values() {
    const DIM: usize = 32;
    const SLOTS: usize = 16;
    let constants = [0.002_f32, 0.003];
    let place = |name: &str, part: usize, dim: usize, pool: &str, format: Value, text: &str| {
        json!({
            "name": name, "part": part, "heads": HEADS, "dim": dim, "pool": pool, "format": format, "layout": text,
        })
    };
    let nvfp4 = |constant: f32| {
        json!({
            "element": "nvfp4", "scale_rule": "unclamped",
            "scale": { "granularity": "tensor", "values": constant },
        })
    };
    let (rows, sixteenths) = ("page part head slot dim", json!({ "element": "e4m3fn" }));
    let components = json!([
        place("key", 0, DIM, "kv", nvfp4(constants[0]), rows),
        place("value", 1, DIM, "kv", nvfp4(constants[1]), rows),
        place("key.scale", 0, DIM / 16, "scale", sixteenths.clone(), rows),
        place(
            "value.scale",
            1,
            DIM / 16,
            "scale",
            sixteenths,
            "page part head slot/4 dim slot%4"
        ),
    ]);
    let block = HEADS * SLOTS * DIM;
    let regions = [
        ("kv.0", PAGES * 2 * block / 2),
        ("scale.0", PAGES * 2 * block / 16),
    ];
    let before = Side::blank(components.clone(), SLOTS, &regions);
    let mut expected = Side::blank(components, SLOTS, &regions);
    let mut producer = nhd(DIM, 12);
    let mut sequence = Sequence(2);
    each_row(|part, head, token| {
        let (values, bytes) = sequence.row(DIM);
        let byte = producer.nhd_byte(DIM, part, head, token);
        producer.put("kv.0", byte, &bytes);
        let (page, slot) = expected.at(token);
        let plane = (page * 2 + part) * HEADS + head;
        for (s, values) in values.chunks(16).enumerate() {
            let scale = to_e4m3(amax(values) / 6.0 / constants[part]);
            let by = e4m3(scale) * constants[part];
            let per_row = DIM / 16;
            let at = match part {
                0 => slot * per_row + s,
                _ => slot / 4 * 4 * per_row + s * 4 + slot % 4,
            };
            expected.put("scale.0", plane * SLOTS * per_row + at, &[scale]);
            let code = |x: f32| if by == 0.0 { 0 } else { to_e2m1(x / by) };
            for (i, pair) in values.chunks(2).enumerate() {
                let both = code(pair[0]) | code(pair[1]) << 4;
                expected.put(
                    "kv.0",
                    (plane * SLOTS + slot) * DIM / 2 + s * 8 + i,
                    &[both],
                );
            }
        }
    });
    becomes(&producer, &before, &expected);
}

/// DeepSeek V3.2's records: 512 e4m3fn, four f32, 64 bf16.
#[test]
fn deepseek_v32_records_become_bf16() {
    const SLOTS: usize = 16;
    let components = json!([{
        "name": "latent", "heads": 1, "dim": 576, "pool": "kv", "format": { "element": "fp8_ds_mla" },
        "layout": "page slot dim",
    }]);
    let mut producer = Side::blank(components, SLOTS, &[("kv.0", PAGES * SLOTS * 656)]);
    let before = latent(576, 64);
    let mut expected = latent(576, 64);
    let mut sequence = Sequence(3);
    for token in 0..TOKENS {
        let codes: Vec<u8> = (0..512)
            .map(|_| sequence.below(0x7F) as u8 | (sequence.below(2) as u8) << 7)
            .collect();
        let scales: Vec<f32> = (0..4)
            .map(|_| 0.001 + sequence.below(1000) as f32 / 3000.0)
            .collect();
        let (rope, rope_bytes) = sequence.row(64);
        let (page, slot) = producer.at(token);
        let record = (page * SLOTS + slot) * 656;
        producer.put("kv.0", record, &codes);
        for (i, scale) in scales.iter().enumerate() {
            producer.put("kv.0", record + 512 + 4 * i, &scale.to_le_bytes());
        }
        producer.put("kv.0", record + 528, &rope_bytes);
        let mut values: Vec<f32> = (0..512).map(|i| e4m3(codes[i]) * scales[i / 128]).collect();
        values.extend(rope);
        let byte = expected.latent_byte(576, token);
        expected.put("kv.0", byte, &bf16s(&values));
    }
    becomes(&producer, &before, &expected);
}

/// DeepSeek V4.1's page in vLLM: all data, then all scales, padded to whole 512 bytes.
fn dsv41(slots: usize) -> (Side, usize) {
    let page = (slots * (512 + 16)).next_multiple_of(512);
    let place = |name: &str, dim: usize, format: Value, offset: usize| {
        json!({
            "name": name, "heads": 1, "dim": dim, "pool": "kv", "format": format,
            "layout": { "text": "page slot dim", "offset_bytes": offset, "strides_bytes": { "page": page } },
        })
    };
    let components = json!([
        place(
            "latent",
            512,
            json!({ "element": "dsv41_fp8", "scale_rule": "vllm" }),
            0
        ),
        place(
            "latent.scale",
            16,
            json!({ "element": "e8m0" }),
            slots * 512
        ),
    ]);
    (
        Side::blank(components, slots, &[("kv.0", PAGES * page)]),
        page,
    )
}

#[test]
fn deepseek_v41_pages_become_bf16_and_bf16_becomes_them() {
    const SLOTS: usize = 20;
    let (mut packed, page) = dsv41(SLOTS);
    let before = latent(512, 32);
    let mut plain = latent(512, 32);
    let mut sequence = Sequence(4);
    for token in 0..TOKENS {
        let codes: Vec<u8> = (0..512)
            .map(|_| sequence.below(0x7F) as u8 | (sequence.below(2) as u8) << 7)
            .collect();
        let scales: Vec<u8> = (0..16).map(|_| 115 + sequence.below(20) as u8).collect();
        let (at, slot) = packed.at(token);
        packed.put("kv.0", at * page + slot * 512, &codes);
        packed.put("kv.0", at * page + SLOTS * 512 + slot * 16, &scales);
        let value = |i: usize| e4m3(codes[i]) * 2f32.powi(i32::from(scales[i / 32]) - 127);
        let values: Vec<f32> = (0..512).map(value).collect();
        let byte = plain.latent_byte(512, token);
        plain.put("kv.0", byte, &bf16s(&values));
    }
    becomes(&packed, &before, &plain);

    let mut plain = latent(512, 32);
    let (before, _) = dsv41(SLOTS);
    let (mut packed, _) = dsv41(SLOTS);
    for token in 0..TOKENS {
        let (values, bytes) = sequence.row(512);
        let byte = plain.latent_byte(512, token);
        plain.put("kv.0", byte, &bytes);
        let (at, slot) = packed.at(token);
        for (s, values) in values.chunks(32).enumerate() {
            // 2^⌈log₂ s⌉, from the bits of s.
            let bits = (amax(values).max(1e-4) / 448.0).to_bits();
            let scale = (bits >> 23) as u8 + u8::from(bits << 9 != 0);
            let by = 2f32.powi(i32::from(scale) - 127);
            let codes: Vec<u8> = values.iter().map(|x| to_e4m3(x / by)).collect();
            packed.put("kv.0", at * page + slot * 512 + s * 32, &codes);
            packed.put("kv.0", at * page + SLOTS * 512 + slot * 16 + s, &[scale]);
        }
    }
    becomes(&plain, &before, &packed);
}

/// V3.2's indexer keys: on CUDA values token by token, on ROCm in tiles of 16 tokens by 16 bytes; scales behind them.
#[test]
fn indexer_pages_of_cuda_become_those_of_rocm_byte_for_byte() {
    const DIM: usize = 128;
    let side = |slots: usize, text: &str| {
        let page = slots * (DIM + 4);
        let place = |name: &str, dim: usize, element: &str, text: &str, offset: usize| {
            json!({
                "name": name, "heads": 1, "dim": dim, "pool": "kv", "format": { "element": element },
                "layout": { "text": text, "offset_bytes": offset, "strides_bytes": { "page": page } },
            })
        };
        let components = json!([
            place("indexer", DIM, "dsv32_indexer", text, 0),
            place("indexer.scale", 1, "f32", "page slot", slots * DIM),
        ]);
        Side::blank(components, slots, &[("kv.0", PAGES * page)])
    };
    let cuda = || side(64, "page slot dim");
    let rocm = || side(16, "page slot/16 dim/16 slot%16 dim%16");
    let (mut one, mut other) = (cuda(), rocm());
    let mut sequence = Sequence(5);
    for token in 0..TOKENS {
        let (row, scale) = (sequence.bytes(DIM), sequence.bytes(4));
        let (page, slot) = one.at(token);
        one.put("kv.0", page * 64 * 132 + slot * DIM, &row);
        one.put("kv.0", page * 64 * 132 + 64 * DIM + slot * 4, &scale);
        let (page, slot) = other.at(token);
        for (i, bytes) in row.chunks(16).enumerate() {
            other.put("kv.0", page * 16 * 132 + (i * 16 + slot) * 16, bytes);
        }
        other.put("kv.0", page * 16 * 132 + 16 * DIM + slot * 4, &scale);
    }
    becomes(&one, &rocm(), &other);
    becomes(&other, &cuda(), &one);
}

/// vLLM's int4 in cells: K codes, K's f32 with the zero in its low bits, V codes, V's f32; rotated, with signs.
#[test]
fn vllms_cells_of_rotated_int4_become_bf16() {
    const DIM: usize = 32;
    const SLOTS: usize = 16;
    /// The first 32 of torch's signs, one bit each, 1 for −1.
    const SIGNS: u32 = 0x9A8C_A6F2;
    let cell = 2 * (DIM / 2 + 4);
    let place = |name: &str, dim: usize, element: &str, offset: usize| {
        json!({
            "name": name, "heads": HEADS, "dim": dim, "pool": "kv", "format": { "element": element },
            "layout": {
                "text": "page slot head dim", "offset_bytes": offset, "strides_bytes": { "head": cell },
            },
        })
    };
    let components = json!([
        place("key", DIM, "int4_per_token_head", 0),
        place("key.scale", 1, "f32", DIM / 2),
        place("value", DIM, "int4_per_token_head", DIM / 2 + 4),
        place("value.scale", 1, "f32", DIM + 4),
    ]);
    let mut producer = Side::blank(components, SLOTS, &[("kv.0", PAGES * SLOTS * HEADS * cell)]);
    let before = nhd(DIM, 64);
    let mut expected = nhd(DIM, 64);
    let mut sequence = Sequence(6);
    each_row(|part, head, token| {
        let codes = sequence.bytes(DIM / 2);
        let (scale, zero) = (
            (1 + sequence.below(63)) as f32 / 64.0,
            sequence.below(16) as u32,
        );
        let (page, slot) = producer.at(token);
        let start = ((page * SLOTS + slot) * HEADS + head) * cell + part * (DIM / 2 + 4);
        producer.put("kv.0", start, &codes);
        let stored = scale.to_bits() & !15 | zero;
        producer.put("kv.0", start + DIM / 2, &stored.to_le_bytes());
        let rotated: Vec<f32> = (0..DIM)
            .map(|i| (f32::from(codes[i / 2] >> (4 * (i % 2)) & 15) - zero as f32) * scale)
            .collect();
        // x = s·(H·y) / n
        let turned = hadamard(&rotated, DIM as f64).into_iter().enumerate();
        let turned = turned.map(|(i, x)| if SIGNS >> i & 1 == 1 { -x } else { x });
        let turned: Vec<f32> = turned.collect();
        let byte = expected.nhd_byte(DIM, part, head, token);
        expected.put("kv.0", byte, &bf16s(&turned));
    });
    becomes(&producer, &before, &expected);
}

/// llama.cpp's quantized cache: a cell of blocks for all heads, each head's row rotated.
fn llama(dim: usize) -> Side {
    let place = |name: &str| {
        json!({
            "name": name, "heads": HEADS, "dim": dim, "pool": name,
            "format": { "element": "q8_0", "rotation": { "hadamard": 64 } }, "layout": "page slot head dim",
        })
    };
    let bytes = PAGES * 64 * HEADS * dim / 32 * 34;
    Side::blank(
        json!([place("key"), place("value")]),
        64,
        &[("key.0", bytes), ("value.0", bytes)],
    )
}

#[test]
fn llama_cpps_rotated_q8_0_becomes_bf16_and_bf16_becomes_it() {
    const DIM: usize = 64;
    let blocks = DIM / 32;
    let pools = ["key.0", "value.0"];
    let at = |side: &Side, head: usize, token: usize| {
        let (page, slot) = side.at(token);
        ((page * 64 + slot) * HEADS + head) * blocks * 34
    };
    let mut packed = llama(DIM);
    let before = nhd(DIM, 16);
    let mut plain = nhd(DIM, 16);
    let mut sequence = Sequence(7);
    each_row(|part, head, token| {
        let byte = at(&packed, head, token);
        let mut rotated = Vec::new();
        for b in 0..blocks {
            let d = to_f16((1 + sequence.below(255)) as f32 / 1024.0);
            let codes = sequence.bytes(32);
            packed.put(pools[part], byte + b * 34, &d);
            packed.put(pools[part], byte + b * 34 + 2, &codes);
            rotated.extend(codes.iter().map(|q| f32::from(*q as i8) * f16(d)));
        }
        let byte = plain.nhd_byte(DIM, part, head, token);
        plain.put("kv.0", byte, &bf16s(&hadamard(&rotated, 8.0)));
    });
    becomes(&packed, &before, &plain);

    let mut plain = nhd(DIM, 16);
    let before = llama(DIM);
    let mut packed = llama(DIM);
    each_row(|part, head, token| {
        let (values, bytes) = sequence.row(DIM);
        let byte = plain.nhd_byte(DIM, part, head, token);
        plain.put("kv.0", byte, &bytes);
        let byte = at(&packed, head, token);
        for (b, values) in hadamard(&values, 8.0).chunks(32).enumerate() {
            let d = amax(values) / 127.0;
            let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
            packed.put(pools[part], byte + b * 34, &to_f16(d));
            let codes: Vec<u8> = values
                .iter()
                .map(|x| (x * inverse).round() as i8 as u8)
                .collect();
            packed.put(pools[part], byte + b * 34 + 2, &codes);
        }
    });
    assert_eq!(
        packed.get(pools[0], 0, 4),
        before.get(pools[0], 0, 4),
        "page 0 is not of the request"
    );
    becomes(&plain, &before, &packed);
}
