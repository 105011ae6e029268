//! Known answers of other implementations (`tests/data/golden/README.md`): every file there is compared, or named
//! below with the reason why not.

use std::cell::RefCell;
use std::collections::BTreeSet;

use moai_translate::element::Element;
use moai_translate::format::{Pairing, RowFormat, RowScale};
use moai_translate::number::Overflow;
use moai_translate::rotation::Rotation;
use moai_translate::scheme::{Coding, Scheme};

use crate::{Rows, convert, decode, f32_rows, format, named, plain, unscaled, with_rope};

/// Files that nothing here can be compared with.
const LEFT_OUT: &[(&str, &str)] = &[
    ("decode/e3m4.f32", "no KV cache holds e3m4"),
    (
        "decode/e4m3_ieee.f32",
        "no KV cache is known to hold IEEE-like e4m3",
    ),
    (
        "decode/e4m3b11fnuz.f32",
        "older TPUs only, whose caches are not described",
    ),
    (
        "scaled/f32_rcp0_to_e4m3fn.sat.u8",
        "constant scales divide; codes of the product with the reciprocal differ",
    ),
    ("scaled/f32_rcp1_to_e4m3fn.sat.u8", "as above"),
    ("scaled/f32_rcp2_to_e4m3fn.sat.u8", "as above"),
];

thread_local! {
    /// Files that this thread has read.
    static READ: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

fn folder() -> String {
    format!("{}/../tests/data/golden", env!("CARGO_MANIFEST_DIR"))
}

fn golden(file: &str) -> Vec<u8> {
    READ.with_borrow_mut(|read| read.insert(file.to_owned()));
    let path = format!("{}/{file}", folder());
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn golden_f32(file: &str) -> Vec<f32> {
    floats(&golden(file))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect()
}

/// Numbers of a file of `f16` or `bf16`.
fn golden_16(file: &str, element: Element) -> Vec<f32> {
    decode(plain(element), 1, &unscaled(golden(file)))
}

/// Codes must be equal, or NaN in both.
fn assert_codes(element: Element, got: &[u8], want: &[u8], what: &str) {
    let width = element.row_bytes(1).max(1) as usize;
    assert_eq!(got.len(), want.len(), "bytes of {what}");
    let number = |code: &[u8]| decode(plain(element), 1, &unscaled(code.to_vec()))[0];
    for (i, (got, want)) in got.chunks(width).zip(want.chunks(width)).enumerate() {
        assert!(
            got == want || number(got).is_nan() && number(want).is_nan(),
            "{what}, element {i}: {got:02x?} instead of {want:02x?}"
        );
    }
}

fn assert_values(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "elements of {what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
        assert!(same, "{what}, element {i}: {got:e} instead of {want:e}");
    }
}

fn assert_bytes(got: &[u8], want: &[u8], what: &str) {
    assert_eq!(got.len(), want.len(), "bytes of {what}");
    let wrong = (0..got.len()).filter(|i| got[*i] != want[*i]).count();
    if let Some(at) = (0..got.len()).find(|i| got[*i] != want[*i]) {
        panic!(
            "{what}: {wrong} bytes differ, the first at {at}: {:#04x} instead of {:#04x}",
            got[at], want[at]
        );
    }
}

/// Rows of `f32` as numbers of a format.
fn encoded(target: RowFormat, dim: u32, input: &[f32]) -> Rows {
    convert(plain(Element::F32), target, dim, &f32_rows(input)).0
}

/// What rows stand for, by the conversion to `f32`, which leaves nothing away.
fn decoded(source: RowFormat, dim: u32, rows: &Rows) -> Vec<f32> {
    floats(&convert(source, plain(Element::F32), dim, rows).0.codes)
}

#[test]
fn every_code_decodes_to_its_number() {
    for name in ["e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "int8", "uint8"] {
        let codes = unscaled((0..=255).collect());
        let want = golden_f32(&format!("decode/{name}.f32"));
        assert_values(&decode(named(name), 1, &codes), &want, name);
        let (rows, counts) = convert(named(name), plain(Element::F32), 1, &codes);
        assert_values(&floats(&rows.codes), &want, name);
        assert_eq!(
            counts.nan as usize,
            want.iter().filter(|x| x.is_nan()).count()
        );
        assert_eq!(counts.saturated, 0);
    }
    for name in ["e2m3", "e3m2"] {
        let want = golden_f32(&format!("decode/{name}.f32"));
        assert_values(
            &decoded(named(name), 1, &unscaled((0..64).collect())),
            &want,
            name,
        );
    }
    // Two codes a byte: both nibbles of every byte.
    for name in ["e2m1", "int4", "uint4"] {
        let want = golden_f32(&format!("decode/{name}.f32"));
        let got = decoded(named(name), 2, &unscaled((0..=255).collect()));
        for (byte, got) in got.chunks(2).enumerate() {
            assert_values(got, &[want[byte % 16], want[byte / 16]], name);
        }
    }
    // A scale byte, seen through a block whose code is 1.
    let want = golden_f32("decode/e8m0.f32");
    let rows = Rows {
        codes: [0x38; 32].repeat(256),
        params: (0..=255).collect(),
    };
    let got = decoded(named("mxfp8_e4m3"), 32, &rows);
    assert_values(
        &got.iter().step_by(32).copied().collect::<Vec<_>>(),
        &want,
        "e8m0",
    );
}

const INPUTS: [(Element, &str); 3] = [
    (Element::F32, "encode/in.f32"),
    (Element::F16, "encode/in.f16.u16"),
    (Element::BF16, "encode/in.bf16.u16"),
];

#[test]
fn numbers_round_to_the_nearest_code() {
    for (source, input) in INPUTS {
        let input = unscaled(golden(input));
        for target in [
            Element::E4M3FN,
            Element::E4M3FNUZ,
            Element::E5M2,
            Element::E5M2FNUZ,
        ] {
            let fnuz = target.name().ends_with("fnuz");
            for (overflow, suffix) in [
                (Overflow::Saturate, "sat"),
                (Overflow::NoSaturate, "nosat"),
                (Overflow::SaturateFinite, "sat_hipdev"),
            ] {
                if overflow == Overflow::SaturateFinite && !fnuz {
                    continue;
                }
                let file = format!("encode/{source}_to_{target}.{suffix}.u8");
                let target = RowFormat {
                    overflow,
                    ..plain(target)
                };
                let (rows, _) = convert(plain(source), target, 1, &input);
                assert_codes(target.element, &rows.codes, &golden(&file), &file);
            }
        }
    }
    let input = golden_f32("encode/in.f32");
    for name in ["e2m3", "e3m2"] {
        let file = format!("encode/f32_to_{name}.u8");
        let want = golden(&file);
        let got = encoded(named(name), 1, &input).codes;
        for ((got, want), x) in got.iter().zip(&want).zip(&input) {
            assert!(
                got == want || x.is_nan(),
                "{file}: {x} became {got:#x} instead of {want:#x}"
            );
        }
    }
    for (source, input) in [INPUTS[0], INPUTS[2]] {
        let file = format!("encode/{source}_to_e2m1.sat.u8");
        let want = golden(&file);
        let mut values = decode(plain(source), 1, &unscaled(golden(input)));
        // An even number of elements.
        values.push(0.0);
        let packed = encoded(named("e2m1"), 2, &values[..want.len().next_multiple_of(2)]).codes;
        for (i, want) in want.iter().enumerate() {
            let got = packed[i / 2] >> (i % 2 * 4) & 15;
            // Where CUDA writes 6 for NaN, there is no NaN to be the class of.
            assert!(
                got == *want || values[i].is_nan(),
                "{file}: {} became {got} instead of {want}",
                values[i]
            );
        }
    }
}

#[test]
fn powers_of_two_round_as_cudas_ml_dtypes_and_torchs() {
    let input = golden_f32("encode/in.f32");
    for (rule, file) in [
        ("rp", "rp_sat"),
        ("rz", "rz_sat"),
        ("ml", "ml"),
        ("torch", "torch"),
    ] {
        let file = format!("encode/f32_to_e8m0.{file}.u8");
        let (got, want) = (
            encoded(named(&format!("e8m0.{rule}")), 1, &input).codes,
            golden(&file),
        );
        for ((got, want), x) in got.iter().zip(&want).zip(&input) {
            assert!(
                got == want,
                "{file}: {x:e} became {got:#x} instead of {want:#x}"
            );
        }
    }
    let want = golden_f32("decode/e8m0.f32");
    assert_values(
        &decoded(named("e8m0"), 1, &unscaled((0..=255).collect())),
        &want,
        "e8m0",
    );
}

#[test]
fn wide_floats_round_to_the_nearest_and_overflow_to_infinity() {
    let cases = [
        (
            Element::F32,
            Element::F16,
            "encode/in.f32",
            "encode/f32_to_f16.u16",
        ),
        (
            Element::F32,
            Element::BF16,
            "encode/in.f32",
            "encode/f32_to_bf16.u16",
        ),
        (
            Element::F16,
            Element::F32,
            "encode/in.f16.u16",
            "encode/f16_to_f32.f32",
        ),
        (
            Element::F16,
            Element::BF16,
            "encode/in.f16.u16",
            "encode/f16_to_bf16.u16",
        ),
        (
            Element::BF16,
            Element::F16,
            "encode/in.bf16.u16",
            "encode/bf16_to_f16.u16",
        ),
    ];
    for (source, target, input, output) in cases {
        let (rows, _) = convert(plain(source), plain(target), 1, &unscaled(golden(input)));
        assert_codes(target, &rows.codes, &golden(output), output);
    }
}

#[test]
fn a_constant_scale_divides() {
    for (n, scale) in [(0, f32::from_bits(0x3C49_85F0)), (1, 0.3), (2, 1.7)] {
        let file = format!("scaled/f32_div{n}_to_e4m3fn.sat.u8");
        let target = format(Element::E4M3FN, RowScale::Constant(scale));
        let rows = unscaled(golden("encode/in.f32"));
        let (rows, _) = convert(plain(Element::F32), target, 1, &rows);
        assert_codes(Element::E4M3FN, &rows.codes, &golden(&file), &file);
    }
}

#[test]
fn unit_scale_transcoding_keeps_values() {
    let floats = [
        Element::E4M3FN,
        Element::E4M3FNUZ,
        Element::E5M2,
        Element::E5M2FNUZ,
    ];
    for source in floats {
        for target in floats.into_iter().filter(|t| *t != source) {
            for (overflow, suffix) in [(Overflow::Saturate, "sat"), (Overflow::NoSaturate, "nosat")]
            {
                let file = format!("transcode/{source}_to_{target}.{suffix}.u8");
                let codes = unscaled((0..=255).collect());
                let target = RowFormat {
                    overflow,
                    ..plain(target)
                };
                let (rows, _) = convert(plain(source), target, 1, &codes);
                assert_codes(target.element, &rows.codes, &golden(&file), &file);
            }
        }
    }
}

#[test]
fn fn_and_fnuz_with_doubled_scale_keep_bytes() {
    let codes = unscaled((0..=255).collect());
    for scale in [1.0, 0.0371, 1e-30] {
        let (fn_scale, fnuz_scale) = (RowScale::Constant(scale), RowScale::Constant(scale * 2.0));
        let (fnuz, counts) = convert(
            format(Element::E4M3FN, fn_scale),
            format(Element::E4M3FNUZ, fnuz_scale),
            1,
            &codes,
        );
        let file = "transcode/e4m3fn_to_e4m3fnuz.rescale2.u8";
        assert_codes(Element::E4M3FNUZ, &fnuz.codes, &golden(file), file);
        for code in 0..=255u8 {
            let want = match code {
                0x80 => 0x00,
                0x7F | 0xFF => 0x80,
                other => other,
            };
            assert_eq!(fnuz.codes[usize::from(code)], want, "of {code:#04x}");
        }
        assert_eq!((counts.saturated, counts.nan), (0, 2));

        let (back, counts) = convert(
            format(Element::E4M3FNUZ, fnuz_scale),
            format(Element::E4M3FN, fn_scale),
            1,
            &codes,
        );
        let mut want = golden("transcode/e4m3fnuz_to_e4m3fn.rescale0p5.u8");
        // 240 × 2 has no code: the table has NaN, the conversion saturates.
        (want[0x7F], want[0xFF]) = (0x7E, 0xFE);
        assert_codes(
            Element::E4M3FN,
            &back.codes,
            &want,
            "e4m3fnuz to e4m3fn, scale halved",
        );
        assert_eq!(back.codes[0x80], 0x7F);
        assert_eq!((counts.saturated, counts.nan), (2, 1));
    }
    for (source, target, ratio, file) in [
        (
            Element::E5M2,
            Element::E5M2FNUZ,
            2.0,
            "transcode/e5m2_to_e5m2fnuz.rescale2.u8",
        ),
        (
            Element::E5M2FNUZ,
            Element::E5M2,
            0.5,
            "transcode/e5m2fnuz_to_e5m2.rescale0p5.u8",
        ),
    ] {
        let target = RowFormat {
            overflow: Overflow::NoSaturate,
            ..format(target, RowScale::Constant(ratio))
        };
        let (rows, _) = convert(plain(source), target, 1, &codes);
        assert_codes(target.element, &rows.codes, &golden(file), file);
    }
}

#[test]
fn ggml_blocks_are_ggmls() {
    let input = golden_f32("block/rows.f32");
    for (name, file) in [
        ("q8_0", "q8_0"),
        ("q4_0", "q4_0"),
        ("q4_1", "q4_1"),
        ("q5_0", "q5_0"),
        ("q5_1", "q5_1"),
        ("iq4_nl", "iq4_nl"),
        ("ggml_mxfp4", "mxfp4"),
        ("ggml_nvfp4", "nvfp4"),
    ] {
        let bytes = golden(&format!("block/ggml_{file}.bin"));
        if named(name).element.writes() {
            assert_bytes(&encoded(named(name), 256, &input).codes, &bytes, name);
        }
        let file = format!("block/ggml_{file}.deq.f32");
        assert_values(
            &decoded(named(name), 256, &unscaled(bytes)),
            &golden_f32(&file),
            &file,
        );
    }
}

#[test]
fn microscaled_blocks_are_torchaos() {
    let input = golden_f32("block/rows.f32");
    for (element, file) in [
        ("mxfp8_e4m3", "mxfp8e4m3"),
        ("mxfp8_e5m2", "mxfp8e5m2"),
        ("mxfp4", "mxfp4"),
    ] {
        for rule in ["floor", "rceil", "even"] {
            let format = named(&format!("{element}.{rule}"));
            let made = encoded(format, 256, &input);
            let file = format!("block/{file}.{rule}");
            let want = Rows {
                codes: golden(&format!("{file}.codes.u8")),
                params: golden(&format!("{file}.scales.u8")),
            };
            assert_bytes(&made.params, &want.params, &format!("{file}.scales"));
            assert_bytes(&made.codes, &want.codes, &format!("{file}.codes"));
            if rule != "even" {
                let file = format!("{file}.deq.f32");
                assert_values(&decoded(format, 256, &want), &golden_f32(&file), &file);
            }
        }
    }
    let made = encoded(named("mxint8"), 256, &input);
    // Values only, by an implementation that keeps the sign of a zero, which no integer code can.
    for (got, want) in decoded(named("mxint8"), 256, &made)
        .iter()
        .zip(golden_f32("block/mxint8.deq.f32"))
    {
        assert!(*got == want, "mxint8: {got} instead of {want}");
    }
}

#[test]
fn nvfp4_blocks_are_torchaos() {
    let input = golden_f32("block/rows.f32");
    for (file, global) in [
        ("nvfp4_onelevel", 1.0),
        ("nvfp4_twolevel", f32::from_bits(0x3EEC_30C3)),
    ] {
        let format = RowFormat {
            scale: RowScale::Constant(global),
            ..named("nvfp4")
        };
        let made = encoded(format, 256, &input);
        let want = Rows {
            codes: golden(&format!("block/{file}.codes.u8")),
            params: golden(&format!("block/{file}.scales.u8")),
        };
        assert_bytes(&made.params, &want.params, file);
        assert_bytes(&made.codes, &want.codes, file);
        let deq = format!("block/{file}.deq.f32");
        assert_values(&decoded(format, 256, &want), &golden_f32(&deq), &deq);
    }
    let format = named("sglang_fp4_mx_block16");
    let made = encoded(format, 256, &input);
    assert_bytes(
        &made.params,
        &golden("block/sglang_fp4_mx_block16.scales.u8"),
        "SGLang's scales",
    );
    assert_bytes(
        &made.codes,
        &golden("block/sglang_fp4_mx_block16.codes.u8"),
        "SGLang's codes",
    );
    let deq = "block/sglang_fp4_mx_block16.deq.f32";
    assert_values(&decoded(format, 256, &made), &golden_f32(deq), deq);
}

/// TensorRT-LLM's order of V scales is a layout: `head slot/4 dim slot%4` over scale bytes.
#[test]
fn interleaved_scales_are_a_layout() {
    use moai_translate::layout::{Extents, Layout};
    let linear = golden("block/nvfp4_vscale_linear.u8");
    let interleaved = golden("block/nvfp4_vscale_trtllm.u8");
    let extents = Extents {
        layer: 1,
        part: 1,
        page: 1,
        head: 2,
        slot: 8,
        dim: 8,
    };
    let layout = |text: &str| {
        let notation = text.parse().expect("layout text");
        Layout::new(
            &notation,
            extents,
            1,
            0,
            0,
            &std::collections::BTreeMap::new(),
        )
        .expect("a layout")
    };
    let (a, b) = (
        layout("page head slot dim"),
        layout("page head slot/4 dim slot%4"),
    );
    for head in 0..2 {
        for slot in 0..8 {
            for s in 0..8 {
                let at = |layout: &Layout| layout.address(0, 0, head, slot, s).byte as usize;
                assert_eq!(
                    linear[at(&a)],
                    interleaved[at(&b)],
                    "head {head}, slot {slot}, scale {s}"
                );
            }
        }
    }
}

#[test]
fn row_scaled_codes_are_vllms() {
    let cases = [
        (
            Element::INT8,
            "k",
            "vllm_int8_per_token_head.k.i8",
            "vllm_int8_per_token_head.k_scale",
        ),
        (
            Element::INT8,
            "v",
            "vllm_int8_per_token_head.v.i8",
            "vllm_int8_per_token_head.v_scale",
        ),
        (
            Element::E4M3FN,
            "k",
            "vllm_fp8_per_token_head.k.u8",
            "vllm_fp8_per_token_head.k_scale",
        ),
    ];
    for (element, input, codes, scales) in cases {
        let rows = unscaled(golden(&format!("engine/{input}.bf16")));
        let target = format(element, RowScale::Row);
        let (rows, _) = convert(plain(Element::BF16), target, 128, &rows);
        assert_bytes(&rows.codes, &golden(&format!("engine/{codes}")), codes);
        assert_values(
            &rows.scales(),
            &golden_f32(&format!("engine/{scales}.f32")),
            scales,
        );
    }
}

#[test]
fn rotated_4_bit_rows_are_vllms() {
    // The core, which the kernel runs on rows that are rotated already: the same scheme without rotation.
    let scheme = named("int4_per_token_head").element.scheme();
    let Coding::Block(block) = scheme.coding else {
        panic!("a block")
    };
    let core = Scheme {
        name: "core",
        coding: Coding::Block(block),
        ..Scheme::DEFAULT
    };
    let core = plain(Element::new(Box::leak(Box::new(core))));
    for side in ["k", "v"] {
        let rows = unscaled(golden(&format!("engine/{side}.bf16")));
        let (made, _) = convert(plain(Element::BF16), core, 128, &rows);
        let params = golden(&format!("engine/vllm_int4_core.{side}_scalezp.f32"));
        assert_bytes(&made.params, &params, "scales with zeros");
        assert_bytes(
            &made.codes,
            &golden(&format!("engine/vllm_int4_core.{side}.u8")),
            "codes",
        );
        if side == "k" {
            let deq = "engine/vllm_int4_core.k.deq.f32";
            assert_values(&decoded(core, 128, &made), &golden_f32(deq), deq);
        }
    }
    // The transform itself, before it is rounded to bf16.
    let values = golden_16("engine/k.bf16", Element::BF16);
    let want = golden_f32("engine/vllm_rht.k.f32");
    for (row, want) in values.chunks(128).zip(want.chunks(128)) {
        let mut turned = row.to_vec();
        Rotation::Signed.apply(&mut turned);
        let rounded = decode(
            plain(Element::BF16),
            128,
            &encoded(plain(Element::BF16), 128, want),
        );
        assert_values(&turned, &rounded, "the randomized Hadamard transform");
        Rotation::Signed.undo(&mut turned);
        let amax = row.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(
            row.iter()
                .zip(&turned)
                .all(|(a, b)| (a - b).abs() <= amax / 64.0)
        );
    }
    let _ = (
        golden("engine/vllm_rht_signs.json"),
        golden("engine/vllm_turboquant_centroids.json"),
    );
}

/// The lists of signs and centroids are those of vLLM.
#[test]
fn lists_are_vllms() {
    let text = String::from_utf8(golden("engine/vllm_rht_signs.json")).expect("text");
    let signs: std::collections::BTreeMap<String, Vec<f32>> =
        serde_json::from_str(&text).expect("JSON");
    for (n, signs) in signs {
        let n: usize = n.parse().expect("a number");
        // The transform of the i-th unit row has the i-th sign in its first place.
        for (i, sign) in signs.iter().enumerate() {
            let mut row = vec![0.0; n];
            row[i] = 1.0;
            Rotation::Signed.apply(&mut row);
            assert_eq!(row[0], *sign, "sign {i} of {n}");
        }
    }
    let text = String::from_utf8(golden("engine/vllm_turboquant_centroids.json")).expect("text");
    let lists: std::collections::BTreeMap<String, Vec<f64>> =
        serde_json::from_str(&text).expect("JSON");
    for (key, list) in lists {
        let (dim, bits) = key[1..].split_once("_b").expect("d…_b…");
        let dim: u32 = dim.parse().expect("a number");
        // Rows of one code each, with the norm that takes the division by their length back.
        for (code, centroid) in list.iter().enumerate() {
            let bits: usize = bits.parse().expect("a number");
            let codes: Vec<u8> = (0..dim as usize * bits / 8)
                .map(|byte| {
                    (0..8).fold(0, |b, bit| {
                        b | ((code >> ((byte * 8 + bit) % bits) & 1) as u8) << bit
                    })
                })
                .collect();
            let name = format!("turboquant_k{bits}_nc");
            let rows = Rows {
                codes,
                params: vec![0x00, 0x3C],
            };
            let got = decode(named(&name), dim, &rows)[0];
            let want = centroid.signum() / f64::from(dim).sqrt();
            assert!(
                (f64::from(got) - want).abs() < 1e-6,
                "{key}, code {code}: {got} instead of {want}"
            );
            // And the code is found again from a row that holds the centroid once, in a row of norm 1.
            let mut row = vec![0.0f32; dim as usize];
            row[0] = *centroid as f32;
            row[1] = (1.0 - centroid * centroid).sqrt() as f32;
            let mut codes = vec![0; codes_bytes(dim, bits)];
            let counts =
                moai_translate::reference::encode_row(&named(&name), &row, &mut codes, &mut [0; 2]);
            assert_eq!(usize::from(codes[0]) & ((1 << bits) - 1), code, "{key}");
            assert_eq!(counts.saturated, 0);
        }
    }
}

fn codes_bytes(dim: u32, bits: usize) -> usize {
    dim as usize * bits / 8
}

#[test]
fn asymmetric_rows_are_lmdeploys() {
    let rows = unscaled(golden("engine/lmdeploy.k.f16"));
    for name in ["lmdeploy_int8", "lmdeploy_int4"] {
        let (made, _) = convert(plain(Element::F16), named(name), 128, &rows);
        assert_bytes(
            &made.params,
            &golden(&format!("engine/{name}.k_sz.f16")),
            name,
        );
        assert_bytes(&made.codes, &golden(&format!("engine/{name}.k.u8")), name);
    }
}

#[test]
fn grouped_codes_are_kivis() {
    for bits in [2u32, 4] {
        let element = named(&format!("kivi_{bits}bit"));
        for side in ["k", "v"] {
            let file = |part: &str| format!("engine/kivi_{bits}bit.{side}.{part}");
            let input = golden(&format!("engine/kivi.{side}.f16"));
            // Rows run along the grouped axis: tokens of a channel for K, channels of a token for V.
            let (tokens, dim) = (64usize, 128usize);
            let element_of = |head: usize, t: usize, d: usize| -> [u8; 2] {
                let at = ((head * tokens + t) * dim + d) * 2;
                [input[at], input[at + 1]]
            };
            let (row_dim, rows) = if side == "k" {
                (tokens, dim)
            } else {
                (dim, tokens)
            };
            let mut along = Vec::new();
            for head in 0..2 {
                for row in 0..rows {
                    for i in 0..row_dim {
                        let (t, d) = if side == "k" { (i, row) } else { (row, i) };
                        along.extend(element_of(head, t, d));
                    }
                }
            }
            let (made, _) = convert(
                plain(Element::F16),
                element,
                row_dim as u32,
                &unscaled(along),
            );
            let (codes, scale, least) = (
                golden(&file("codes.i32")),
                golden(&file("scale.f16")),
                golden(&file("mn.f16")),
            );
            let words = row_dim * bits as usize / 32;
            let groups = row_dim / 32;
            for head in 0..2 {
                for row in 0..rows {
                    let at = (head * rows + row) * words * 4;
                    let params = (head * rows + row) * groups * 4;
                    for w in 0..words {
                        // K words lie [word][channel], V words [token][word].
                        let index = if side == "k" {
                            (head * words + w) * rows + row
                        } else {
                            (head * rows + row) * words + w
                        };
                        assert_eq!(
                            made.codes[at + w * 4..][..4],
                            codes[index * 4..][..4],
                            "{} {side}",
                            element.element
                        );
                    }
                    for g in 0..groups {
                        let index = if side == "k" {
                            (head * groups + g) * rows + row
                        } else {
                            (head * rows + row) * groups + g
                        };
                        assert_eq!(made.params[params + g * 4..][..2], scale[index * 2..][..2]);
                        assert_eq!(
                            made.params[params + g * 4 + 2..][..2],
                            least[index * 2..][..2]
                        );
                    }
                }
            }
            if (bits, side) == (2, "k") {
                let want = golden_16(&file("deq.f16"), Element::F16);
                let got = decoded(element, row_dim as u32, &made);
                for head in 0..2 {
                    for d in 0..dim {
                        for t in 0..tokens {
                            let (got, want) = (
                                got[(head * dim + d) * tokens + t],
                                want[(head * tokens + t) * dim + d],
                            );
                            assert_eq!(
                                got.to_bits(),
                                want.to_bits(),
                                "KIVI's 2 bit K, token {t}, channel {d}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn latent_records_are_vllms_flashmlas_and_sglangs() {
    let latent = unscaled(golden("dsmla/latent576.bf16"));
    let record = named("fp8_ds_mla");

    let (raw, _) = convert(plain(Element::BF16), record, 576, &latent);
    assert_bytes(
        &raw.codes,
        &golden("dsmla/vllm_fp8_ds_mla_raw.bin"),
        "raw records",
    );
    let file = "dsmla/vllm_fp8_ds_mla_raw.deq.f32";
    assert_values(&decoded(record, 576, &raw), &golden_f32(file), file);

    let (rounded, _) = convert(plain(Element::BF16), named("fp8_ds_mla.pow2"), 576, &latent);
    assert_bytes(
        &rounded.codes,
        &golden("dsmla/flashmla_v32_pow2.bin"),
        "pow2 records",
    );
    let (values, _) = convert(record, plain(Element::BF16), 576, &rounded);
    assert_bytes(
        &values.codes,
        &golden("dsmla/flashmla_v32_pow2.deq.bf16"),
        "pow2 values",
    );

    let input = unscaled(golden("dsmla/sglang_dsa_in.bf16"));
    let (bf16, _) = convert(plain(Element::BF16), named("fp8_ds_mla.bf16"), 576, &input);
    assert_bytes(
        &bf16.codes,
        &golden("dsmla/sglang_dsa_ref.bin"),
        "SGLang's reference records",
    );
}

#[test]
fn pages_with_scales_behind_are_flashmlas_and_sglangs() {
    let latent = unscaled(golden("dsmla/latent512.bf16"));
    let cases = [
        (
            "dsv4_fp8",
            "dsmla/flashmla_v4_page.bin",
            Some("dsmla/flashmla_v4.deq.bf16"),
        ),
        ("dsv41_fp8.sglang", "dsmla/sglang_v41_fp8_page.bin", None),
        (
            "dsv41_fp4",
            "dsmla/sglang_v41_fp4_page.bin",
            Some("dsmla/sglang_v41_fp4.deq.bf16"),
        ),
    ];
    for (name, page, values) in cases {
        let (made, _) = convert(plain(Element::BF16), named(name), 512, &latent);
        // One head, eight tokens: the codes of all, then the scales of all.
        assert_bytes(
            &[made.codes.clone(), made.params.clone()].concat(),
            &golden(page),
            page,
        );
        if let Some(file) = values {
            let (values, _) = convert(named(name), plain(Element::BF16), 512, &made);
            assert_bytes(&values.codes, &golden(file), file);
        }
    }
    let keys = unscaled(golden("dsmla/indexer_k.bf16"));
    for (name, page) in [
        ("dsv32_indexer", "dsmla/indexer_page_f32.bin"),
        ("dsv32_indexer.pow2", "dsmla/indexer_page_ue8m0.bin"),
    ] {
        let (made, _) = convert(plain(Element::BF16), named(name), 128, &keys);
        assert_bytes(&[made.codes, made.params].concat(), &golden(page), page);
    }
}

#[test]
fn rope_pairs_move_as_the_permutation_says() {
    for dim in [64u32, 128] {
        let half = golden(&format!("rope/d{dim}.half_split.f32"));
        let interleaved = golden(&format!("rope/d{dim}.interleaved.f32"));
        let permutation = golden(&format!("rope/d{dim}.perm.i32"));
        let f32s = plain(Element::F32);
        let (h, i) = (
            with_rope(f32s, Pairing::Half, 0, dim),
            with_rope(f32s, Pairing::Interleaved, 0, dim),
        );
        let (turned, _) = convert(h, i, dim, &unscaled(half.clone()));
        assert!(turned.codes == interleaved, "d{dim}: half to interleaved");
        let (back, _) = convert(i, h, dim, &turned);
        assert!(back.codes == half, "d{dim}: interleaved to half");
        // The rotation by position is the engine's; of it, what is moved keeps its numbers.
        let (mut before, mut after) = (
            golden_f32(&format!("rope/d{dim}.unrotated.f32")),
            floats(&half),
        );
        before.truncate(dim as usize);
        after.truncate(dim as usize);
        assert_values(&after, &before, "position 0 rotates nothing");

        // Codes of one byte each, moved without decoding: the row 0, 1, 2, … becomes the permutation.
        let bytes = Rows {
            codes: (0..dim as u8).collect(),
            params: 0.5f32.to_le_bytes().to_vec(),
        };
        let int8 = format(Element::INT8, RowScale::Row);
        let (moved, _) = convert(
            with_rope(int8, Pairing::Half, 0, dim),
            with_rope(int8, Pairing::Interleaved, 0, dim),
            dim,
            &bytes,
        );
        let want: Vec<u8> = permutation.chunks(4).map(|p| p[0]).collect();
        assert_eq!(
            moved,
            Rows {
                codes: want,
                ..bytes
            }
        );
    }
}

#[test]
fn every_file_is_compared_or_named() {
    for check in [
        every_code_decodes_to_its_number,
        numbers_round_to_the_nearest_code,
        powers_of_two_round_as_cudas_ml_dtypes_and_torchs,
        wide_floats_round_to_the_nearest_and_overflow_to_infinity,
        a_constant_scale_divides,
        unit_scale_transcoding_keeps_values,
        fn_and_fnuz_with_doubled_scale_keep_bytes,
        ggml_blocks_are_ggmls,
        microscaled_blocks_are_torchaos,
        nvfp4_blocks_are_torchaos,
        interleaved_scales_are_a_layout,
        row_scaled_codes_are_vllms,
        rotated_4_bit_rows_are_vllms,
        lists_are_vllms,
        asymmetric_rows_are_lmdeploys,
        grouped_codes_are_kivis,
        latent_records_are_vllms_flashmlas_and_sglangs,
        pages_with_scales_behind_are_flashmlas_and_sglangs,
        rope_pairs_move_as_the_permutation_says,
    ] {
        check();
    }
    let mut there = BTreeSet::new();
    for entry in std::fs::read_dir(folder()).expect("the folder of known answers") {
        let entry = entry.expect("an entry");
        if entry.path().is_dir() {
            let kind = entry.file_name().into_string().expect("a name");
            for file in std::fs::read_dir(entry.path()).expect("a folder") {
                let name = file
                    .expect("a file")
                    .file_name()
                    .into_string()
                    .expect("a name");
                there.insert(format!("{kind}/{name}"));
            }
        }
    }
    assert!(there.len() > 200, "{} files", there.len());
    let compared = READ.with_borrow(Clone::clone);
    let left_out: BTreeSet<String> = LEFT_OUT
        .iter()
        .map(|(file, _)| (*file).to_owned())
        .collect();
    assert!(compared.is_disjoint(&left_out), "compared and left out");
    let forgotten: Vec<_> = there
        .difference(&compared)
        .filter(|file| !left_out.contains(*file))
        .collect();
    assert!(
        forgotten.is_empty(),
        "neither compared nor named: {forgotten:?}"
    );
    assert!(left_out.is_subset(&there), "named but not there");
}
