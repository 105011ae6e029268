//! The loops against definitions that are too slow to be wrong, and against other implementations.

use super::super::level::Level;
use super::super::number::{decode, encode, finite_amax, unpack_nibbles};
use super::super::slow::{Definition, Random, golden, number_of, same};
use super::*;
use crate::cpu::Flow;

/// Rows of 256 numbers: first ordinary ones, then some with NaN, Inf, or magnitudes at the ends of the range.
fn inputs(seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let mut values = Vec::new();
    for group in 0..200 {
        let ordinary = group < 96;
        let scale = match group % 8 {
            2..=4 if ordinary => 0.37,
            0 => 1.0,
            1 => 1e-3,
            2 => 3e38,
            3 => 1e-38,
            4 => 1e-44,
            5 => 0.0,
            6 => 2f32.powi(random.next() as i32 % (if ordinary { 20 } else { 120 })),
            _ => 100.0,
        };
        let start = values.len();
        // Some with few bits, for ties.
        values.extend((0..32).map(|_| {
            let whole = random.next() as i32 >> (if group % 3 == 0 { 25 } else { 7 });
            let x = whole as f32 / (if group % 3 == 0 { 64.0 } else { 16_777_216.0 });
            x * scale
        }));
        match group % 13 {
            _ if ordinary => {}
            5 => values[start + 3] = f32::NAN,
            6 => values[start + 17] = f32::NEG_INFINITY,
            7 => {
                values[start] = f32::INFINITY;
                values[start + 31] = f32::NAN;
            }
            8 if group > 100 => values[start..].fill(f32::NAN),
            9 if group > 100 => values[start..].fill(f32::INFINITY),
            _ => {}
        }
    }
    values.truncate(values.len() / 256 * 256);
    values
}

fn amax_of(values: &[f32]) -> f32 {
    let finite = values.iter().filter(|x| x.is_finite());
    finite.fold(0.0, |a, x| x.abs().max(a))
}

/// Code and counts of numbers divided by a scale derived from them.
fn encode_slowly(
    element: Number,
    values: &[f32],
    divide: impl Fn(f32) -> f32,
) -> (Vec<u8>, Counts) {
    let definition = Definition::of(element);
    let mut counts = Counts::default();
    let codes = values.iter().map(|x| {
        let y = if x.is_finite() { divide(*x) } else { *x };
        let (code, loss) = definition.encode(Overflow::Saturate, *x, y);
        counts.saturated += u64::from(loss == Loss::Saturated);
        counts.nan += u64::from(loss == Loss::Nan);
        code
    });
    (codes.collect(), counts)
}

fn packed(codes: &[u8]) -> Vec<u8> {
    codes.chunks(2).map(|pair| pair[0] | pair[1] << 4).collect()
}

fn golden_rows() -> Vec<f32> {
    let bytes = golden("block/rows.f32");
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect()
}

fn assert_values(got: &[f32], file: &str) {
    let want = golden(file);
    for (i, (got, want)) in got.iter().zip(want.as_chunks::<4>().0).enumerate() {
        let want = f32::from_le_bytes(*want);
        assert!(
            same(*got, want),
            "{file}, element {i}: {got} instead of {want}"
        );
    }
}

const MX: [(Number, &str, i32, i32, f64); 3] = [
    (Number::E4m3fn, "mxfp8e4m3", 3, 8, 448.0),
    (Number::E5m2, "mxfp8e5m2", 2, 15, 57344.0),
    (Number::E2m1, "mxfp4", 1, 2, 6.0),
];

#[test]
fn mx_scales_and_codes_follow_their_definition() {
    let values = inputs(1);
    for (element, _, man, greatest_exponent, greatest) in MX {
        for rule in [MxRule::Floor, MxRule::Ceil, MxRule::Even] {
            let (mut scales, mut codes) = (Vec::new(), Vec::new());
            let mut counts = Counts::default();
            for group in values.chunks(32) {
                let amax = f64::from(amax_of(group));
                // ⌊log₂⌋ by counting.
                let log = |x: f64| (-200..200).take_while(|k| 2f64.powi(*k) <= x).last();
                let exponent = match rule {
                    _ if amax == 0.0 => 0,
                    MxRule::Floor => log(amax).map_or(0, |e| e - greatest_exponent + 127),
                    MxRule::Even => log(amax).map_or(0, |e| {
                        let step = 2f64.powi(e - man);
                        let rounded = (amax / step + 0.5).floor() * step;
                        log(rounded).unwrap_or(e) - greatest_exponent + 127
                    }),
                    MxRule::Ceil => {
                        let quotient = f64::from(amax as f32 / greatest as f32);
                        (0..)
                            .find(|k| 2f64.powi(*k - 127) >= quotient)
                            .unwrap_or(254)
                    }
                };
                let exponent = exponent.clamp(0, 254);
                let scale = 2f64.powi(exponent - 127);
                scales.push(exponent as u8);
                let (c, n) = encode_slowly(element, group, |x| (f64::from(x) / scale) as f32);
                codes.extend(c);
                counts += n;
            }
            let codes = if element == Number::E2m1 {
                packed(&codes)
            } else {
                codes
            };
            for level in Level::available() {
                let (mut s, mut c) = (vec![0xA5; scales.len()], vec![0xA5; codes.len()]);
                let n = encode_mx(level, element, rule, &values, &mut c, &mut s);
                assert_eq!(s, scales, "scales, {level:?} {element:?} {rule:?}");
                assert!(c == codes, "codes, {level:?} {element:?} {rule:?}");
                assert_eq!(n, counts, "{level:?} {element:?} {rule:?}");
            }
        }
    }
}

#[test]
fn mx_numbers_are_code_times_scale() {
    for (element, ..) in MX {
        let mut scales: Vec<u8> = (0..=255).collect();
        scales.extend([0; 3]);
        let packs = if element == Number::E2m1 { 2 } else { 1 };
        let mut random = Random(3);
        let codes: Vec<u8> = (0..scales.len() * 32 / packs)
            .map(|_| random.next() as u8)
            .collect();
        for level in Level::available() {
            let mut values = vec![0.5; scales.len() * 32];
            decode_mx(level, element, &codes, &scales, &mut values);
            for (i, got) in values.iter().enumerate() {
                let code = codes[i / packs] >> (4 * (i % packs));
                let scale = match scales[i / 32] {
                    0xFF => f64::NAN,
                    s => 2f64.powi(i32::from(s) - 127),
                };
                let want = (f64::from(number_of(element, &[code])) * scale) as f32;
                assert!(
                    same(*got, want),
                    "{level:?} {element:?} {code:#x} × {scale}: {got}"
                );
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn mx_blocks_are_torchaos() {
    let rows = golden_rows();
    for (element, name, ..) in MX {
        for (rule, rule_name) in [
            (MxRule::Floor, "floor"),
            (MxRule::Ceil, "rceil"),
            (MxRule::Even, "even"),
        ] {
            let (scales, codes) = (
                golden(&format!("block/{name}.{rule_name}.scales.u8")),
                golden(&format!("block/{name}.{rule_name}.codes.u8")),
            );
            for level in Level::available() {
                let (mut s, mut c) = (vec![0; scales.len()], vec![0; codes.len()]);
                encode_mx(level, element, rule, &rows, &mut c, &mut s);
                assert_eq!(s, scales, "{name}.{rule_name} scales");
                assert_eq!(c, codes, "{name}.{rule_name} codes");
                if rule != MxRule::Even {
                    let mut values = vec![0.0; rows.len()];
                    decode_mx(level, element, &c, &s, &mut values);
                    assert_values(&values, &format!("block/{name}.{rule_name}.deq.f32"));
                }
            }
        }
    }
}

const GLOBALS: [f32; 5] = [1.0, 0.461_309_52, 1e-30, 2e30, 1e-44];

#[test]
fn nvfp4_scales_and_codes_follow_their_definition() {
    let values = inputs(2);
    for global in GLOBALS {
        for least in [0.0, 2f32.powi(-6), 2f32.powi(-9)] {
            let (mut scales, mut codes) = (Vec::new(), Vec::new());
            let mut counts = Counts::default();
            for group in values.chunks(16) {
                let wanted = (amax_of(group) / 6.0 / global).max(least);
                let scale = Definition::of(Number::E4m3fn)
                    .encode(Overflow::Saturate, 0.0, wanted)
                    .0;
                scales.push(scale);
                let divisor = number_of(Number::E4m3fn, &[scale]) * global;
                let divide = |x| if divisor == 0.0 { 0.0 } else { x / divisor };
                let (c, n) = encode_slowly(Number::E2m1, group, divide);
                codes.extend(c);
                counts += n;
            }
            let codes = packed(&codes);
            let rule = Nvfp4Rule { global, least };
            for level in Level::available() {
                let (mut s, mut c) = (vec![0xA5; scales.len()], vec![0xA5; codes.len()]);
                let n = encode_nvfp4(level, rule, &values, &mut c, &mut s);
                assert_eq!(s, scales, "scales, {level:?} {rule:?}");
                assert!(c == codes, "codes, {level:?} {rule:?}");
                assert_eq!(n, counts, "{level:?} {rule:?}");
                let mut back = vec![0.5; values.len()];
                decode_nvfp4(level, global, &c, &s, &mut back);
                for (i, got) in back.iter().enumerate() {
                    let code = number_of(Number::E2m1, &[c[i / 2] >> (4 * (i % 2))]);
                    let want = code * number_of(Number::E4m3fn, &s[i / 16..]) * global;
                    assert!(same(*got, want), "{level:?} {rule:?}, element {i}");
                }
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn nvfp4_groups_are_torchaos() {
    let rows = golden_rows();
    for (name, global) in [("onelevel", 1.0), ("twolevel", f32::from_bits(0x3EEC_30C3))] {
        let scales = golden(&format!("block/nvfp4_{name}.scales.u8"));
        let codes = golden(&format!("block/nvfp4_{name}.codes.u8"));
        let rule = Nvfp4Rule {
            global,
            least: 2f32.powi(-6),
        };
        for level in Level::available() {
            let (mut s, mut c) = (vec![0; scales.len()], vec![0; codes.len()]);
            encode_nvfp4(level, rule, &rows, &mut c, &mut s);
            assert_eq!(s, scales, "{name}");
            assert_eq!(c, codes, "{name}");
            let mut values = vec![0.0; rows.len()];
            decode_nvfp4(level, global, &c, &s, &mut values);
            assert_values(&values, &format!("block/nvfp4_{name}.deq.f32"));
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn v41_fp4_pages_are_sglangs() {
    let page = golden("dsmla/sglang_v41_fp4_page.bin");
    let (codes, scales) = page.split_at(8 * 256);
    let rows = bf16_file("dsmla/latent512.bf16");
    for level in Level::available() {
        let (mut c, mut s) = (vec![0; codes.len()], vec![0; scales.len()]);
        let rule = Nvfp4Rule {
            global: 1.0,
            least: 2f32.powi(-9),
        };
        encode_nvfp4(level, rule, &rows, &mut c, &mut s);
        assert_eq!(s, scales);
        assert_eq!(c, codes);
    }
}

fn bf16_file(file: &str) -> Vec<f32> {
    let bytes = golden(file);
    let mut values = vec![0.0; bytes.len() / 2];
    decode(Level::Portable, Number::Bf16, &bytes, 1.0, &mut values);
    values
}

#[test]
fn q8_0_groups_follow_their_definition() {
    let values = inputs(4);
    let mut want = Vec::new();
    let mut counts = Counts::default();
    for group in values.chunks(32) {
        let d = amax_of(group) / 127.0;
        let inverse = if d > 0.0 && (1.0 / d).is_finite() {
            1.0 / d
        } else {
            0.0
        };
        let stored = half::f16::from_f32(d);
        want.extend(stored.to_le_bytes());
        for x in group {
            counts.nan += u64::from(x.is_nan());
            counts.saturated += u64::from(!x.is_nan() && (x.is_infinite() || stored.is_infinite()));
            let q = match x {
                x if x.is_nan() => 0.0,
                x if x.is_infinite() => 127f32.copysign(*x),
                x => (x * inverse).round(),
            };
            want.push(q as i8 as u8);
        }
    }
    for level in Level::available() {
        let mut groups = vec![0xA5; want.len()];
        assert_eq!(
            encode_q8_0(level, &values, &mut groups),
            counts,
            "{level:?}"
        );
        assert!(groups == want, "{level:?}");
        let mut back = vec![0.5; values.len()];
        decode_q8_0(level, &groups, &mut back);
        for (group, back) in groups.chunks(34).zip(back.chunks(32)) {
            let d = number_of(Number::F16, group);
            for (code, got) in group[2..].iter().zip(back) {
                assert!(same(*got, f32::from(*code as i8) * d), "{level:?}");
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn q8_0_groups_are_ggmls() {
    let (rows, want) = (golden_rows(), golden("block/ggml_q8_0.bin"));
    for level in Level::available() {
        let mut groups = vec![0; want.len()];
        encode_q8_0(level, &rows, &mut groups);
        assert_eq!(groups, want, "{level:?}");
        let mut values = vec![0.0; rows.len()];
        decode_q8_0(level, &groups, &mut values);
        assert_values(&values, "block/ggml_q8_0.deq.f32");
    }
}

#[test]
fn tiles_follow_their_definition() {
    let values = inputs(5);
    for tile in [32, 64, 128] {
        for (rule, stored) in [
            (TileRule::RAW, ScaleCode::F32),
            (TileRule::INDEXER, ScaleCode::F32),
            (TileRule::POWER_OF_TWO, ScaleCode::F32),
            (TileRule::POWER_OF_TWO, ScaleCode::E8m0),
            (TileRule::INDEXER_POWER_OF_TWO, ScaleCode::E8m0),
        ] {
            let (mut scales, mut codes) = (Vec::new(), Vec::new());
            let mut counts = Counts::default();
            for values in values.chunks(tile) {
                let mut scale =
                    (amax_of(values).max(rule.least_amax) / 448.0).max(rule.least_scale);
                if rule.power_of_two {
                    let wanted = scale;
                    scale = 2f32.powi(-126);
                    while scale < wanted {
                        scale *= 2.0;
                    }
                }
                match stored {
                    ScaleCode::F32 => scales.extend(scale.to_le_bytes()),
                    ScaleCode::E8m0 => scales.push((scale.log2() as i32 + 127) as u8),
                }
                let (c, n) = encode_slowly(Number::E4m3fn, values, |x| x / scale);
                codes.extend(c);
                counts += n;
            }
            for level in Level::available() {
                let (mut s, mut c) = (vec![0xA5; scales.len()], vec![0xA5; codes.len()]);
                let n = encode_tiles(level, tile, rule, stored, &values, &mut c, &mut s);
                assert_eq!(s, scales, "{level:?} {tile} {rule:?} {stored:?}");
                assert!(c == codes, "{level:?} {tile} {rule:?} {stored:?}");
                assert_eq!(n, counts, "{level:?} {tile} {rule:?} {stored:?}");
                let mut back = vec![0.5; values.len()];
                decode_tiles(level, tile, stored, &c, &s, &mut back);
                for (i, got) in back.iter().enumerate() {
                    let scale = match stored {
                        ScaleCode::F32 => number_of(Number::F32, &s[i / tile * 4..]),
                        ScaleCode::E8m0 => 2f32.powi(i32::from(s[i / tile]) - 127),
                    };
                    assert!(
                        same(*got, number_of(Number::E4m3fn, &c[i..]) * scale),
                        "{level:?}"
                    );
                }
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn tiles_are_the_engines() {
    let latent = bf16_file("dsmla/latent576.bf16");
    for level in Level::available() {
        for (rule, file) in [
            (TileRule::RAW, "dsmla/vllm_fp8_ds_mla_raw.bin"),
            (TileRule::POWER_OF_TWO, "dsmla/flashmla_v32_pow2.bin"),
        ] {
            for (row, record) in latent.chunks(576).zip(golden(file).chunks(656)) {
                let (mut codes, mut scales) = ([0; 512], [0; 16]);
                let values = &row[..512];
                encode_tiles(
                    level,
                    128,
                    rule,
                    ScaleCode::F32,
                    values,
                    &mut codes,
                    &mut scales,
                );
                assert!(
                    codes == record[..512] && scales == record[512..528],
                    "{file}"
                );
            }
        }
        // 8 records of 448 codes and 64 bf16, then 8 of 7 scales and one byte of padding.
        let page = golden("dsmla/flashmla_v4_page.bin");
        for (t, row) in bf16_file("dsmla/latent512.bf16").chunks(512).enumerate() {
            let (mut codes, mut scales) = ([0; 448], [0; 7]);
            let rule = TileRule::POWER_OF_TWO;
            encode_tiles(
                level,
                64,
                rule,
                ScaleCode::E8m0,
                &row[..448],
                &mut codes,
                &mut scales,
            );
            assert!(codes == page[576 * t..][..448], "token {t}");
            assert!(scales == page[8 * 576 + 8 * t..][..7], "token {t}");
        }
        let page = golden("dsmla/sglang_v41_fp8_page.bin");
        let (mut codes, mut scales) = ([0; 8 * 512], [0; 8 * 16]);
        let rows = bf16_file("dsmla/latent512.bf16");
        encode_tiles(
            level,
            32,
            TileRule::POWER_OF_TWO,
            ScaleCode::E8m0,
            &rows,
            &mut codes,
            &mut scales,
        );
        assert!(codes == page[..4096] && scales == page[4096..]);

        let keys = bf16_file("dsmla/indexer_k.bf16");
        for (rule, file) in [
            (TileRule::INDEXER, "dsmla/indexer_page_f32.bin"),
            (
                TileRule::INDEXER_POWER_OF_TWO,
                "dsmla/indexer_page_ue8m0.bin",
            ),
        ] {
            let page = golden(file);
            let (mut codes, mut scales) = ([0; 64 * 128], [0; 64 * 4]);
            encode_tiles(
                level,
                128,
                rule,
                ScaleCode::F32,
                &keys,
                &mut codes,
                &mut scales,
            );
            assert!(codes == page[..8192] && scales == page[8192..], "{file}");
        }
    }
}

#[test]
fn rows_follow_their_definition() {
    let values = inputs(6);
    for dim in [1, 16, 128, 256] {
        for element in [Number::Int8, Number::E4m3fn, Number::E4m3fnuz] {
            let max = match element {
                Number::Int8 => 127.0f32,
                Number::E4m3fn => 448.0,
                _ => 224.0,
            };
            let (mut scales, mut codes) = (Vec::new(), Vec::new());
            let mut counts = Counts::default();
            for row in values.chunks(dim) {
                let scale = (finite_amax(Level::Portable, row).0 / max).max(1e-6);
                let inverse = 1.0 / scale;
                scales.extend(scale.to_le_bytes());
                for x in row {
                    counts.saturated += u64::from(x.is_infinite());
                    counts.nan += u64::from(x.is_nan());
                    let y = x * inverse;
                    codes.push(if element == Number::Int8 {
                        (y + 0.5f32.copysign(y)).clamp(-128.0, 127.0) as i8 as u8
                    } else {
                        let y = y.clamp(-max, max);
                        Definition::of(element).encode(Overflow::Saturate, y, y).0
                    });
                }
            }
            for level in Level::available() {
                let (mut s, mut c) = (vec![0xA5; scales.len()], vec![0xA5; codes.len()]);
                let n = encode_rows(level, element, dim, &values, &mut c, &mut s);
                assert_eq!(s, scales, "{level:?} {element:?} {dim}");
                assert!(c == codes, "{level:?} {element:?} {dim}");
                assert_eq!(n, counts, "{level:?} {element:?} {dim}");
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn nibbles_lie_even_index_low() {
    let codes = golden("block/mxfp4.floor.codes.u8");
    let mut unpacked = vec![0; 2 * codes.len()];
    unpack_nibbles(Level::best(), &codes, &mut unpacked);
    assert_eq!(packed(&unpacked), codes);
}

/// `bf16` numbers are encoded as the same numbers in `f32`, which the other tests hold against definitions.
#[test]
fn groups_of_bf16_are_those_of_the_same_numbers() {
    let mut numbers = inputs(8);
    numbers.extend(inputs(9));
    // Blocks of nothing but zeros, of both signs, and of numbers near the least.
    numbers.extend((0..1024).map(|i| if i % 3 == 0 { -0.0 } else { 0.0 }));
    numbers.extend(
        (0..1024).map(|i| f32::from_bits((i % 700) << 16) * if i % 2 == 0 { 1.0 } else { -1.0 }),
    );
    numbers.extend(
        inputs(10)
            .iter()
            .map(|x| if x.is_finite() { x % 7.0 } else { 0.5 }),
    );
    let mut codes = vec![0; 2 * numbers.len()];
    let (overflow, same_number) = (Overflow::Saturate, crate::cpu::number::Quotient::Same);
    encode(
        Level::Portable,
        Number::Bf16,
        overflow,
        same_number,
        &numbers,
        &mut codes,
    );
    let mut values = vec![0.0; numbers.len()];
    decode(Level::Portable, Number::Bf16, &codes, 1.0, &mut values);
    let n = values.len();
    for level in Level::available() {
        let (mut want, mut got) = (vec![0; n / 32 * 34], vec![0xA5; n / 32 * 34]);
        let counts = encode_q8_0(Level::Portable, &values, &mut want);
        assert_eq!(
            encode_q8_0_of_bf16(level, Flow::default(), &codes, &mut got),
            counts,
            "{level:?}"
        );
        assert!(got == want, "{level:?} q8_0");
        for global in GLOBALS {
            let rule = Nvfp4Rule { global, least: 0.0 };
            let (mut want, mut got) = (vec![0; n / 16 * 9], vec![0xA5; n / 16 * 9]);
            let (c, s) = want.split_at_mut(n / 2);
            let counts = encode_nvfp4(Level::Portable, rule, &values, c, s);
            let (c, s) = got.split_at_mut(n / 2);
            let octaves = ScaledOctaves::new(global).expect("octaves");
            assert_eq!(
                encode_nvfp4_of_bf16(level, Flow::default(), rule, &octaves, &codes, c, s),
                counts,
                "{level:?}"
            );
            assert!(got == want, "{level:?} {rule:?}");
        }
        for element in [Number::Int8, Number::E4m3fn, Number::E4m3fnuz] {
            for dim in [32, 64, 128, 192, 256] {
                let n = n / dim * dim;
                let (values, codes) = (&values[..n], &codes[..2 * n]);
                let mut want = vec![0; n + n / dim * 4];
                let mut got = vec![0xA5; want.len()];
                let (c, s) = want.split_at_mut(n);
                let counts = encode_rows(Level::Portable, element, dim, values, c, s);
                let (c, s) = got.split_at_mut(n);
                let lost = encode_rows_of_bf16(level, Flow::default(), element, dim, codes, c, s);
                assert_eq!(lost, counts, "{level:?} {element:?} {dim}");
                assert!(got == want, "{level:?} {element:?} {dim}");
            }
        }
        for (rule, stored) in [
            (TileRule::RAW, ScaleCode::F32),
            (TileRule::POWER_OF_TWO, ScaleCode::F32),
            (TileRule::POWER_OF_TWO, ScaleCode::E8m0),
            (TileRule::INDEXER, ScaleCode::F32),
            (TileRule::INDEXER_POWER_OF_TWO, ScaleCode::E8m0),
        ] {
            for tile in [32, 64, 128] {
                let n = n / tile * tile;
                let (values, codes) = (&values[..n], &codes[..2 * n]);
                let mut want = vec![0; n + n / tile * stored.bytes()];
                let mut got = vec![0xA5; want.len()];
                let (c, s) = want.split_at_mut(n);
                let counts = encode_tiles(Level::Portable, tile, rule, stored, values, c, s);
                let (c, s) = got.split_at_mut(n);
                let lost =
                    encode_tiles_of_bf16(level, Flow::default(), tile, rule, stored, codes, c, s);
                assert_eq!(lost, counts, "{level:?} {rule:?} {stored:?} {tile}");
                assert!(got == want, "{level:?} {rule:?} {stored:?} {tile}");
            }
        }
        for (element, ..) in MX {
            for rule in [MxRule::Floor, MxRule::Ceil, MxRule::Even] {
                let bytes = if element == Number::E2m1 { n / 2 } else { n };
                let mut want = vec![0; bytes + n / 32];
                let mut got = vec![0xA5; bytes + n / 32];
                let (c, s) = want.split_at_mut(bytes);
                let counts = encode_mx(Level::Portable, element, rule, &values, c, s);
                let (c, s) = got.split_at_mut(bytes);
                let lost = encode_mx_of_bf16(level, Flow::default(), element, rule, &codes, c, s);
                assert_eq!(lost, counts, "{level:?} {element:?} {rule:?}");
                assert!(got == want, "{level:?} {element:?} {rule:?}");
            }
        }
    }
}
