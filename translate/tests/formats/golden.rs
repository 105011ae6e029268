//! Known answers of other implementations (`tests/data/golden/README.md`).

use moai_translate::element::Element;
use moai_translate::format::{Pairing, RowFormat, RowScale, ScaleRule};

use crate::{Rows, convert, decode, format, plain, unscaled, with_rope};

fn golden(file: &str) -> Vec<u8> {
    let path = format!("{}/../tests/data/golden/{file}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn golden_f32(file: &str) -> Vec<f32> {
    golden(file)
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect()
}

/// Codes must be equal, or NaN in both.
fn assert_codes(element: Element, got: &[u8], want: &[u8], what: &str) {
    let width = element.group_bytes() as usize;
    assert_eq!(got.len(), want.len(), "bytes of {what}");
    let number = |code: &[u8]| decode(plain(element), 1, &unscaled(code.to_vec()))[0];
    for (i, (got, want)) in got.chunks(width).zip(want.chunks(width)).enumerate() {
        let both_nan = number(got).is_nan() && number(want).is_nan();
        assert!(
            got == want || both_nan,
            "{what}, element {i}: {got:02x?} instead of {want:02x?}"
        );
    }
}

fn assert_values(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "elements of {what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
        assert!(same, "{what}, element {i}: {got} instead of {want}");
    }
}

#[test]
fn every_8_bit_code_decodes_to_its_number() {
    for element in [
        Element::E4m3fn,
        Element::E4m3fnuz,
        Element::E5m2,
        Element::Int8,
    ] {
        let codes = unscaled((0..=255).collect());
        let want = golden_f32(&format!("decode/{element}.f32"));
        assert_values(&decode(plain(element), 1, &codes), &want, element.name());
        let (rows, counts) = convert(plain(element), plain(Element::F32), 1, &codes);
        assert_values(
            &decode(plain(Element::F32), 1, &rows),
            &want,
            element.name(),
        );
        assert_eq!(
            counts.nan as usize,
            want.iter().filter(|x| x.is_nan()).count()
        );
        assert_eq!(counts.saturated, 0);
    }
}

#[test]
fn numbers_round_to_the_nearest_code_and_saturate() {
    let inputs = [
        (Element::F32, "encode/in.f32"),
        (Element::F16, "encode/in.f16.u16"),
        (Element::Bf16, "encode/in.bf16.u16"),
    ];
    for (source, input) in inputs {
        for target in [Element::E4m3fn, Element::E4m3fnuz, Element::E5m2] {
            let file = format!("encode/{source}_to_{target}.sat.u8");
            let (rows, _) = convert(plain(source), plain(target), 1, &unscaled(golden(input)));
            assert_codes(target, &rows.codes, &golden(&file), &file);
        }
    }
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
            Element::Bf16,
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
            Element::Bf16,
            "encode/in.f16.u16",
            "encode/f16_to_bf16.u16",
        ),
        (
            Element::Bf16,
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
        let target = format(Element::E4m3fn, RowScale::Constant(scale));
        let rows = unscaled(golden("encode/in.f32"));
        let (rows, _) = convert(plain(Element::F32), target, 1, &rows);
        assert_codes(Element::E4m3fn, &rows.codes, &golden(&file), &file);
    }
}

#[test]
fn unit_scale_transcoding_keeps_values() {
    let floats = [Element::E4m3fn, Element::E4m3fnuz, Element::E5m2];
    for source in floats {
        for target in floats.into_iter().filter(|t| *t != source) {
            let file = format!("transcode/{source}_to_{target}.sat.u8");
            let codes = unscaled((0..=255).collect());
            let (rows, _) = convert(plain(source), plain(target), 1, &codes);
            assert_codes(target, &rows.codes, &golden(&file), &file);
        }
    }
}

#[test]
fn e4m3fn_to_e4m3fnuz_with_doubled_scale_keeps_bytes() {
    let codes = unscaled((0..=255).collect());
    for scale in [1.0, 0.0371, 1e-30] {
        let (fn_scale, fnuz_scale) = (RowScale::Constant(scale), RowScale::Constant(scale * 2.0));
        let (fnuz, counts) = convert(
            format(Element::E4m3fn, fn_scale),
            format(Element::E4m3fnuz, fnuz_scale),
            1,
            &codes,
        );
        let file = "transcode/e4m3fn_to_e4m3fnuz.rescale2.u8";
        assert_codes(Element::E4m3fnuz, &fnuz.codes, &golden(file), file);
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
            format(Element::E4m3fnuz, fnuz_scale),
            format(Element::E4m3fn, fn_scale),
            1,
            &codes,
        );
        let mut want = golden("transcode/e4m3fnuz_to_e4m3fn.rescale0p5.u8");
        // 240 × 2 has no code: the table has NaN, the conversion saturates.
        (want[0x7F], want[0xFF]) = (0x7E, 0xFE);
        assert_codes(
            Element::E4m3fn,
            &back.codes,
            &want,
            "e4m3fnuz to e4m3fn, scale halved",
        );
        assert_eq!(back.codes[0x80], 0x7F);
        assert_eq!((counts.saturated, counts.nan), (2, 1));
    }
}

#[test]
fn q8_0_blocks_are_ggmls() {
    let rows = unscaled(golden("block/rows.f32"));
    let (blocks, _) = convert(plain(Element::F32), plain(Element::Q8_0), 256, &rows);
    assert_eq!(blocks.codes, golden("block/ggml_q8_0.bin"));
    let (values, _) = convert(plain(Element::Q8_0), plain(Element::F32), 256, &blocks);
    let got = decode(plain(Element::F32), 256, &values);
    assert_values(
        &got,
        &golden_f32("block/ggml_q8_0.deq.f32"),
        "ggml_q8_0.deq.f32",
    );
}

#[test]
fn row_scaled_codes_are_vllms() {
    let cases = [
        (
            Element::Int8,
            "k",
            "vllm_int8_per_token_head.k.i8",
            "vllm_int8_per_token_head.k_scale",
        ),
        (
            Element::Int8,
            "v",
            "vllm_int8_per_token_head.v.i8",
            "vllm_int8_per_token_head.v_scale",
        ),
        (
            Element::E4m3fn,
            "k",
            "vllm_fp8_per_token_head.k.u8",
            "vllm_fp8_per_token_head.k_scale",
        ),
    ];
    for (element, input, codes, scales) in cases {
        let rows = unscaled(golden(&format!("engine/{input}.bf16")));
        let target = format(element, RowScale::Row);
        let (rows, _) = convert(plain(Element::Bf16), target, 128, &rows);
        assert_eq!(rows.codes, golden(&format!("engine/{codes}")), "{codes}");
        assert_values(
            &rows.scales,
            &golden_f32(&format!("engine/{scales}.f32")),
            scales,
        );
    }
}

#[test]
fn latent_records_are_vllms_and_flashmlas() {
    let latent = unscaled(golden("dsmla/latent576.bf16"));
    let record = plain(Element::Fp8DsMla);
    let pow2 = RowFormat {
        rule: ScaleRule::Pow2,
        ..record
    };

    let (raw, _) = convert(plain(Element::Bf16), record, 576, &latent);
    assert_eq!(raw.codes, golden("dsmla/vllm_fp8_ds_mla_raw.bin"));
    let (values, _) = convert(record, plain(Element::F32), 576, &raw);
    let got = decode(plain(Element::F32), 576, &values);
    assert_values(
        &got,
        &golden_f32("dsmla/vllm_fp8_ds_mla_raw.deq.f32"),
        "raw records",
    );

    let (rounded, _) = convert(plain(Element::Bf16), pow2, 576, &latent);
    assert_eq!(rounded.codes, golden("dsmla/flashmla_v32_pow2.bin"));
    let (values, _) = convert(pow2, plain(Element::Bf16), 576, &rounded);
    assert_eq!(values.codes, golden("dsmla/flashmla_v32_pow2.deq.bf16"));
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

        // Codes of one byte each, moved without decoding: the row 0, 1, 2, … becomes the permutation.
        let bytes = Rows {
            codes: (0..dim as u8).collect(),
            scales: vec![0.5],
        };
        let int8 = format(Element::Int8, RowScale::Row);
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
                scales: vec![0.5]
            }
        );
    }
}
