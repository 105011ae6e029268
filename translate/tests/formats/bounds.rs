//! Error bounds of every format, on seeded rows.

use moai_translate::element::Element;
use moai_translate::format::{RowFormat, RowScale, ScaleRule};

use crate::{Random, Rows, convert, decode, f32_rows, format, plain, unscaled};

const SEED: u64 = 71_201;
const DIM: u32 = 576;

/// Rows of ordinary numbers under magnitudes from 2^-12 to 2^12.
fn rows() -> Vec<f32> {
    println!("seed {SEED}");
    let mut random = Random(SEED);
    let mut values = Vec::new();
    for row in 0..100 {
        let magnitude = 2f32.powi(row % 25 - 12);
        values.extend((0..DIM).map(|_| random.signed() * random.signed() * magnitude));
    }
    values
}

/// Converts rows of `f32` and passes (x, what it became) row by row, with the row's scale.
fn each(target: RowFormat, mut check: impl FnMut(&[f32], &[f32], f32, &[u8])) {
    let values = rows();
    let (coded, _) = convert(plain(Element::F32), target, DIM, &f32_rows(&values));
    let got = decode(target, DIM, &coded);
    let row_bytes = target.row_bytes(DIM).expect("whole groups") as usize;
    let dim = DIM as usize;
    for row in 0..values.len() / dim {
        let range = row * dim..(row + 1) * dim;
        let scale = coded.scales.get(row).copied().unwrap_or(1.0);
        let codes = &coded.codes[row * row_bytes..][..row_bytes];
        check(&values[range.clone()], &got[range], scale, codes);
    }
}

fn assert_within(x: f32, got: f32, bound: f64, what: &dyn std::fmt::Debug) {
    let error = (f64::from(x) - f64::from(got)).abs();
    assert!(
        error <= bound,
        "{x} became {got}, error {error} beyond {bound}: {what:?}"
    );
}

/// (least subnormal / 2, relative error, greatest)
fn float(element: Element) -> (f64, f64, f64) {
    match element {
        Element::F16 => (2f64.powi(-25), 1.0 / 2049.0, 65504.0),
        Element::Bf16 => (2f64.powi(-134), 1.0 / 257.0, 3.3895e38),
        Element::E4m3fn => (2f64.powi(-10), 1.0 / 17.0, 448.0),
        Element::E4m3fnuz => (2f64.powi(-11), 1.0 / 17.0, 240.0),
        Element::E5m2 => (2f64.powi(-17), 1.0 / 9.0, 57344.0),
        other => unreachable!("{other} has no such bound"),
    }
}

#[test]
fn floats_with_constant_scales() {
    let floats = [
        Element::F16,
        Element::Bf16,
        Element::E4m3fn,
        Element::E4m3fnuz,
        Element::E5m2,
    ];
    for element in floats {
        let (tiny, relative, greatest) = float(element);
        for scale in [1.0, 0.0371, 1.7] {
            let s = f64::from(scale);
            let target = format(element, RowScale::Constant(scale));
            each(target, |x, got, _, _| {
                for (x, got) in x.iter().zip(got) {
                    let magnitude = f64::from(x.abs());
                    let rounding = (magnitude * relative).max(s * tiny) * (1.0 + 2f64.powi(-20));
                    let clipped = (magnitude - greatest * s).max(0.0);
                    if element.group_bytes() == 2 && clipped > rounding {
                        assert!(got.is_infinite(), "{x} became {got}: {target:?}");
                    } else {
                        assert_within(*x, *got, rounding + clipped, &target);
                    }
                }
            });
        }
    }
}

#[test]
fn int8_with_constant_scales() {
    for scale in [1.0, 0.0371] {
        let target = format(Element::Int8, RowScale::Constant(scale));
        each(target, |x, got, _, _| {
            for (x, got) in x.iter().zip(got) {
                let s = f64::from(scale);
                let clipped = (f64::from(x.abs()) - 127.0 * s).max(0.0);
                assert_within(*x, *got, s / 2.0 * (1.0 + 1e-5) + clipped, &target);
            }
        });
    }
}

#[test]
fn row_scales() {
    for element in [Element::Int8, Element::E4m3fn, Element::E4m3fnuz] {
        let target = format(element, RowScale::Row);
        each(target, |x, got, scale, _| {
            for (x, got) in x.iter().zip(got) {
                let s = f64::from(scale);
                let bound = if element == Element::Int8 {
                    s / 2.0 * (1.0 + 1e-5)
                } else {
                    let (tiny, relative, _) = float(element);
                    (f64::from(x.abs()) * relative).max(s * tiny) * (1.0 + 2f64.powi(-20))
                };
                assert_within(*x, *got, bound, &target);
            }
        });
    }
}

#[test]
fn q8_0_blocks() {
    each(plain(Element::Q8_0), |x, got, _, _| {
        for (x, got) in x.chunks(32).zip(got.chunks(32)) {
            let amax = f64::from(x.iter().fold(0f32, |m, x| m.max(x.abs())));
            let d = amax / 127.0;
            let stored = (d * 2f64.powi(-11)).max(2f64.powi(-25));
            for (x, got) in x.iter().zip(got) {
                assert_within(*x, *got, d / 2.0 + 127.0 * stored + 2e-6 * amax, &"q8_0");
            }
        }
    });
}

#[test]
fn latent_records() {
    for rule in [ScaleRule::AmaxOver448, ScaleRule::Pow2] {
        let target = RowFormat {
            rule,
            ..plain(Element::Fp8DsMla)
        };
        each(target, |x, got, _, codes| {
            for i in 0..512 {
                let at = 512 + i / 128 * 4;
                let scale = f32::from_le_bytes(codes[at..at + 4].try_into().expect("4 bytes"));
                let bound = (f64::from(x[i].abs()) / 17.0).max(f64::from(scale) * 2f64.powi(-10));
                assert_within(x[i], got[i], bound * (1.0 + 2f64.powi(-20)), &target);
            }
        });
    }
}

#[test]
fn the_rope_of_a_latent_record_is_bit_exact() {
    let (latent, _) = convert(
        plain(Element::F32),
        plain(Element::Bf16),
        DIM,
        &f32_rows(&rows()),
    );
    let (records, _) = convert(plain(Element::Bf16), plain(Element::Fp8DsMla), DIM, &latent);
    for (latent, record) in latent.codes.chunks(1152).zip(records.codes.chunks(656)) {
        assert_eq!(latent[1024..], record[528..]);
    }
}

/// Decoding and encoding with the same scale gives the code back, NaN in its canonical form.
#[test]
fn equal_scales_are_idempotent() {
    let codes: Rows = unscaled((0..=255).collect());
    for element in [
        Element::E4m3fn,
        Element::E4m3fnuz,
        Element::E5m2,
        Element::Int8,
    ] {
        for scale in [1.0, 0.0371, 1e-30, 3e20] {
            let scaled = format(element, RowScale::Constant(scale));
            let (values, _) = convert(scaled, plain(Element::F32), 1, &codes);
            let (back, _) = convert(plain(Element::F32), scaled, 1, &values);
            for code in 0..=255u8 {
                let want = match (element, code) {
                    (Element::E4m3fn, 0x7F | 0xFF) => 0x7F,
                    (Element::E5m2, 0x7D..=0x7F | 0xFD..=0xFF) => 0x7F,
                    // Inf saturates, and -128 is not written with a constant scale.
                    (Element::E5m2, 0x7C | 0xFC) => code - 1,
                    (Element::Int8, 0x80) => 0x81,
                    _ => code,
                };
                assert_eq!(
                    back.codes[usize::from(code)],
                    want,
                    "{element} × {scale}: {code:#04x}"
                );
            }
        }
    }
}
