//! Scales that are kept: nothing is lost where the target can hold what the source has.

use moai_translate::element::Element;
use moai_translate::format::{Counts, RowFormat, RowScale};
use moai_translate::reference;

use crate::{Random, Rows, convert, decode, f32_rows, format, named};

const SEED: u64 = 4_402;
const DIM: u32 = 576;
const ROWS: usize = 40;

/// A format by name, with a constant behind `×` if there is one.
fn by_name(name: &str) -> RowFormat {
    let (name, constant) = name.split_once('×').unwrap_or((name, ""));
    match constant {
        "" => RowFormat::named(name, None).expect("a format"),
        constant => RowFormat {
            scale: RowScale::Constant(constant.parse().expect("a number")),
            ..named(name)
        },
    }
}

/// Rows of numbers of these magnitudes, in the format; the ends of the range are in every row.
fn written(
    source: RowFormat,
    exponents: std::ops::RangeInclusive<i32>,
    random: &mut Random,
) -> Rows {
    let (least, count) = (*exponents.start(), exponents.clone().count());
    let mut values: Vec<f32> = (0..ROWS * DIM as usize)
        .map(|_| random.signed() * 2f32.powi(least + random.below(count) as i32))
        .collect();
    for row in values.chunks_mut(DIM as usize) {
        for tile in row.chunks_mut(16) {
            // Tiles of a single magnitude, too.
            if random.below(2) == 0 {
                let magnitude = 2f32.powi(least + random.below(count) as i32);
                tile.iter_mut()
                    .for_each(|x| *x = random.signed() * magnitude);
            }
        }
    }
    convert(named("f32"), source, DIM, &f32_rows(&values)).0
}

/// (source, target, exponents of magnitudes for which every scale fits)
const KEPT: [(&str, &str, std::ops::RangeInclusive<i32>); 22] = [
    ("mxfp4", "mxfp8_e4m3", -100..=100),
    ("mxfp4", "mxfp8_e5m2", -100..=100),
    // 2^k is an e4m3fn from 2^-9 to 2^8, and six times that the greatest number.
    ("mxfp4", "nvfp4", -7..=9),
    ("mxfp4.floor", "nvfp4", -7..=9),
    ("mxfp4", "dsv41_fp4", -7..=9),
    ("mxfp4", "nvfp4×0.5", -7..=8),
    ("mxfp4", "sglang_fp4_mx_block16", -100..=100),
    ("mxfp4", "ultraquant_4bit", -100..=100),
    ("ultraquant_4bit", "mxfp4", -100..=100),
    ("mxfp4", "ggml_mxfp4", -100..=100),
    ("ggml_mxfp4", "mxfp4", -100..=100),
    ("ggml_mxfp4", "mxfp8_e4m3", -100..=100),
    ("mxfp8_e4m3", "dsv41_fp8", -100..=100),
    ("dsv41_fp8", "mxfp8_e4m3.floor", -100..=100),
    ("fp8_ds_mla.pow2", "fp8_ds_mla", -30..=30),
    ("nvfp4", "dsv41_fp4", -10..=10),
    ("dsv41_fp4", "nvfp4", -10..=10),
    ("nvfp4", "ggml_nvfp4", -10..=10),
    ("ggml_nvfp4", "nvfp4", -10..=10),
    ("nvfp4×0.37", "nvfp4×0.74", -3..=5),
    ("mxint8", "q8_0", -7..=14),
    ("dsv32_indexer", "e4m3fnuz@token_head", -20..=20),
];

#[test]
fn numbers_are_the_same_where_the_target_can_hold_the_scale() {
    println!("seed {SEED}");
    let mut random = Random(SEED);
    for (source, target, exponents) in KEPT {
        let (s, t) = (by_name(source), by_name(target));
        let rows = written(s, exponents, &mut random);
        let (made, counts) = convert(s, t, DIM, &rows);
        let (before, after) = (decode(s, DIM, &rows), decode(t, DIM, &made));
        let differ = before.iter().zip(&after).position(|(a, b)| a != b);
        assert_eq!(differ, None, "{source} to {target}");
        assert_eq!(counts, Counts::default(), "{source} to {target}");
    }
}

/// The record of V3.2 with powers of two is V4.1's but for its rotary part, which gets scales of its own.
#[test]
fn a_tile_is_split_and_what_stands_alone_beside_it_is_not_kept() {
    let mut random = Random(SEED);
    let (s, t) = (named("fp8_ds_mla.pow2"), named("dsv41_fp8"));
    let rows = written(s, -6..=6, &mut random);
    let (made, _) = convert(s, t, DIM, &rows);
    let (before, after) = (decode(s, DIM, &rows), decode(t, DIM, &made));
    for (before, after) in before.chunks(576).zip(after.chunks(576)) {
        assert_eq!(before[..512], after[..512]);
        assert_ne!(
            before[512..],
            after[512..],
            "bf16 has more digits than e4m3fn"
        );
    }
    for (codes, made) in rows.codes.chunks(656).zip(made.codes.chunks(576)) {
        assert_eq!(codes[..512], made[..512]);
    }
}

/// What a rule derives from an amax of 4·2^k is 4/6·2^k, under which 2^k·(0.5, 1, 1.5, …) are no codes.
#[test]
fn a_derived_scale_would_lose() {
    let values: Vec<f32> = (0..32).map(|i| [4.0, -3.0, 1.5, 0.5][i % 4]).collect();
    let (rows, _) = convert(named("f32"), named("mxfp4.floor"), 32, &f32_rows(&values));
    assert_eq!(decode(named("mxfp4"), 32, &rows), values);
    let (kept, _) = convert(named("mxfp4"), named("nvfp4"), 32, &rows);
    assert_eq!(decode(named("nvfp4"), 32, &kept), values);
    assert_eq!((kept.codes, kept.params), (rows.codes, vec![0x38; 2]));
    let (derived, _) = convert(named("f32"), named("nvfp4"), 32, &f32_rows(&values));
    assert_ne!(decode(named("nvfp4"), 32, &derived), values);
}

/// Below the floor that a rule puts under its scales, codes would lose digits.
#[test]
fn the_least_scale_of_a_rule_does_not_matter() {
    let values: Vec<f32> = (0..64)
        .map(|i| (i as f32 - 32.0) * 2f32.powi(-30))
        .collect();
    let (rows, _) = convert(named("f32"), named("mxfp8_e4m3"), 64, &f32_rows(&values));
    let (kept, _) = convert(named("mxfp8_e4m3"), named("dsv41_fp8"), 64, &rows);
    assert_eq!((kept.codes, kept.params), (rows.codes, rows.params));
}

/// A tile whose scale the target cannot hold is derived; its neighbours are not touched by that.
#[test]
fn tiles_fall_back_one_by_one() {
    let (s, t) = (named("mxfp4"), named("nvfp4"));
    // 2^8 is the last scale that fits; 2^9 does not, nor does NaN.
    let (codes, params) = (vec![0x72; 64], vec![127, 127 + 8, 127 + 9, 0xFF]);
    let rows = Rows { codes, params };
    let (made, counts) = convert(s, t, 128, &rows);
    assert_eq!(made.params[..4], [0x38, 0x38, 0x78, 0x78]);
    assert_eq!(made.codes[..32], rows.codes[..32]);
    // 6·2^9 is beyond 6·448, but rounds to it.
    assert_eq!(made.params[4..6], [0x7E, 0x7E]);
    assert_eq!(counts.nan, 32);
    let (before, after) = (decode(s, 128, &rows), decode(t, 128, &made));
    assert_eq!(before[..64], after[..64]);
}

/// Rows are taken many at once; one that cannot keep its scales does not touch those around it.
#[test]
fn one_row_among_many_falls_back() {
    println!("seed {SEED}");
    let mut random = Random(SEED);
    let cases = [
        ("mxfp4", "mxfp8_e4m3"),
        ("mxfp4", "nvfp4"),
        ("nvfp4", "dsv41_fp4"),
        ("mxfp4", "ultraquant_4bit"),
        ("mxfp8_e4m3", "dsv41_fp8"),
    ];
    for (source, target) in cases {
        let (s, t) = (by_name(source), by_name(target));
        let n = 300;
        let (bytes, each) = (s.row_bytes(160).expect("whole groups"), s.params_bytes(160));
        let any = |bytes: u64, random: &mut Random| -> Vec<u8> {
            (0..n * bytes).map(|_| random.next() as u8).collect()
        };
        let mut rows = Rows {
            codes: any(bytes, &mut random),
            params: vec![120; n as usize * each as usize],
        };
        for row in [0, 70, 71, 299] {
            rows.params[row * each as usize + 1] = 0xFF;
        }
        convert(s, t, 160, &rows);
    }
}

/// NaN is written and counted as ever; nothing else of the tile changes.
#[test]
fn nan_codes_are_counted() {
    let rows = Rows {
        codes: (0..=255).collect(),
        params: vec![120; 8],
    };
    let (made, counts) = convert(named("mxfp8_e4m3"), named("dsv41_fp8"), 256, &rows);
    assert_eq!(counts, {
        let mut two = Counts::default();
        two.nan = 2;
        two
    });
    assert_eq!(made.params, rows.params);
    for (code, made) in rows.codes.iter().zip(made.codes) {
        assert_eq!(made, if *code == 0xFF { 0x7F } else { *code });
    }
}

/// Scales of codes that share no value set, merged tiles and turned rows are derived as ever.
#[test]
fn what_cannot_be_kept_is_derived() {
    let mut random = Random(SEED);
    let cases = [
        ("mxfp8_e5m2", "mxfp8_e4m3"),
        ("nvfp4", "mxfp4"),
        ("mxfp4+hadamard32", "mxfp8_e4m3"),
        ("q8_0", "mxint8"),
    ];
    for (source, target) in cases {
        let (s, t) = (by_name(source), by_name(target));
        let rows = written(s, -4..=4, &mut random);
        let (made, _) = convert(s, t, DIM, &rows);
        let values = if s.rotation == t.rotation {
            decode(s, DIM, &rows)
        } else {
            let mut values = decode(s, DIM, &rows);
            values
                .chunks_mut(DIM as usize)
                .for_each(|row| s.rotated(DIM).undo(row));
            values
        };
        for (row, values) in values.chunks(DIM as usize).enumerate() {
            let bytes = t.row_bytes(DIM).expect("whole groups") as usize;
            let each = t.params_bytes(DIM) as usize;
            let (mut codes, mut params) = (vec![0; bytes], vec![0; each]);
            reference::encode_row(&t, values, &mut codes, &mut params);
            assert_eq!(
                made.codes[row * bytes..][..bytes],
                codes,
                "{source} to {target}"
            );
            assert_eq!(
                made.params[row * each..][..each],
                params,
                "{source} to {target}"
            );
        }
    }
}

/// A row under one `f32` is a tile like any other.
#[test]
fn int8_rows_become_blocks_where_f16_holds_the_scale() {
    let s = format(Element::INT8, RowScale::Row);
    let codes: Vec<u8> = (0..64).map(|i| (i * 7 % 251) as u8).collect();
    for (scale, exact) in [(0.25f32, true), (0.1, false)] {
        let rows = Rows {
            codes: codes.clone(),
            params: scale.to_le_bytes().to_vec(),
        };
        let (made, _) = convert(s, named("q8_0"), 64, &rows);
        let same = decode(s, 64, &rows) == decode(named("q8_0"), 64, &made);
        assert_eq!(same, exact, "under {scale}");
    }
}
