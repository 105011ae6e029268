//! What loses nothing: values that a narrower or other code has as well, scales that differ by a power of two, and
//! codes that come back.

use moai_translate::element::Element;
use moai_translate::format::{Counts, RowScale};

use crate::{Rows, convert, decode, f32_rows, format, named, plain, unscaled};

/// Every code of an element once, in rows of its fewest elements, and the number of elements of a row.
fn every_code(element: Element) -> (Rows, u32) {
    let (number, packing) = element.number().expect("it stands alone");
    let codes = 1u32 << number.bits().min(16);
    let bytes = match number.bits() {
        16 => (0..codes)
            .flat_map(|code| (code as u16).to_le_bytes())
            .collect(),
        // Both nibbles of every byte.
        4 => (0..=255).collect(),
        _ => (0..codes).map(|code| code as u8).collect(),
    };
    (unscaled(bytes), packing.multiple(number))
}

/// Numbers of all finite codes that `target` does not have, counts included.
fn lost(source: Element, target: Element) -> Vec<f32> {
    let (rows, dim) = every_code(source);
    let dim = dim.max(2);
    let (made, counts) = convert(plain(source), plain(target), dim, &rows);
    let before = decode(plain(source), dim, &rows);
    let after = decode(plain(target), dim, &made);
    let lost: Vec<f32> = before
        .into_iter()
        .zip(after)
        .filter(|(a, b)| a.is_finite() && a != b)
        .map(|(a, _)| a)
        .collect();
    assert!(
        counts.saturated as usize <= lost.len() + 2,
        "{source} to {target}: at most Inf is counted beside what is lost"
    );
    lost
}

#[test]
fn small_numbers_are_numbers_of_wider_codes() {
    let wide = ["f32", "f16", "bf16"];
    let fp8 = ["e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz"];
    let all = |sources: &[&str], targets: &[&str]| {
        for source in sources {
            for target in targets {
                let lost = lost(named(source).element, named(target).element);
                assert!(lost.is_empty(), "{source} to {target} loses {lost:?}");
            }
        }
    };
    all(
        &[
            "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e2m1", "e2m3", "e3m2", "int8", "uint8",
            "int4", "uint4",
        ],
        &wide,
    );
    all(&["f16", "bf16"], &["f32"]);
    all(&["e2m1"], &fp8);
    all(&["e2m1"], &["e2m3", "e3m2"]);
    all(&["e2m3"], &["e4m3fn", "e4m3fnuz"]);
    all(&["e3m2"], &fp8);
    all(&["int4"], &fp8);
    all(&["int4"], &["e3m2", "int8"]);
    all(&["e5m2"], &["e5m2fnuz"]);
    // And these are not: how many of all finite codes are lost.
    for (source, target, codes) in [
        ("int8", "e4m3fn", 256 - 80),
        ("int8", "e5m2", 256 - 48),
        ("e4m3fn", "e4m3fnuz", 14),
        ("e5m2fnuz", "e5m2", 8),
        ("e4m3fnuz", "e4m3fn", 16),
    ] {
        assert_eq!(
            lost(named(source).element, named(target).element).len(),
            codes,
            "{source} to {target}"
        );
    }
}

#[test]
fn bf16_is_f16_in_its_range_and_never_above() {
    let (rows, _) = every_code(Element::BF16);
    let (made, _) = convert(plain(Element::BF16), plain(Element::F16), 1, &rows);
    let (before, after) = (
        decode(plain(Element::BF16), 1, &rows),
        decode(plain(Element::F16), 1, &made),
    );
    for (x, y) in before.into_iter().zip(after) {
        let magnitude = x.abs();
        if x == 0.0 || (2f32.powi(-17)..=65280.0).contains(&magnitude) {
            assert_eq!(x, y);
        }
        assert!(magnitude.is_nan() || magnitude <= 65280.0 || y.is_infinite());
    }
}

/// The same number under another scale, wherever there is a code for it.
#[test]
fn scales_apart_by_a_power_of_two_shift_exponents() {
    for name in [
        "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e2m1", "e2m3", "e3m2",
    ] {
        let element = named(name).element;
        let (codes, dim) = every_code(element);
        let numbers = decode(plain(element), dim, &codes);
        for (from, exponent) in [
            (1.0, 1),
            (1.0, -1),
            (0.37, 3),
            (3.0, -2),
            (2f32.powi(-20), 4),
        ] {
            let to = from * 2f32.powi(exponent);
            let (s, t) = (
                format(element, RowScale::Constant(from)),
                format(element, RowScale::Constant(to)),
            );
            let (made, _) = convert(s, t, dim, &codes);
            let (before, after) = (decode(s, dim, &codes), decode(t, dim, &made));
            for ((x, y), q) in before.iter().zip(after).zip(&numbers) {
                let shifted = q * 2f32.powi(-exponent);
                if numbers.contains(&shifted) && x.is_finite() {
                    assert_eq!(*x, y, "{name}: {q} under {from} and {to}");
                }
            }
        }
    }
}

/// Decoding and encoding with the same scale gives the code back, NaN in its canonical form; what is written is on the
/// grid, so it comes back however it was rounded.
#[test]
fn codes_come_back_under_the_same_scale() {
    for element in Element::all()
        .filter(|e| !e.is_grouped() && e.number().is_some_and(|(n, _)| n.bits() <= 16))
    {
        let (codes, dim) = every_code(element);
        for scale in [1.0, 0.0371, 1e-30, 3e20] {
            let scaled = format(element, RowScale::Constant(scale));
            let plainly = decode(plain(element), dim, &codes);
            let values = decode(scaled, dim, &codes);
            let (back, _) = convert(plain(Element::F32), scaled, dim, &f32_rows(&values));
            let after = decode(plain(element), dim, &back);
            for ((q, x), back) in plainly.iter().zip(&values).zip(after) {
                // Where q × scale is a normal f32, its one rounding is too small to reach another code.
                if q.is_finite() && (x.is_normal() || *q == 0.0) {
                    let q = if element == Element::INT8 {
                        q.max(-127.0)
                    } else {
                        *q
                    };
                    let close = (q - back).abs() <= q.abs() * 2f32.powi(-20);
                    let wide = element == Element::F16 || element == Element::BF16;
                    assert!(
                        q == back || wide && close,
                        "{element} × {scale}: {q} became {back}"
                    );
                }
            }
        }
        // And without a detour.
        let scaled = format(element, RowScale::Constant(0.3));
        let (carried, counts) = convert(scaled, scaled, dim, &codes);
        assert_eq!((carried, counts), (codes, Counts::default()), "{element}");
    }
}

/// One rounding: by way of f16 or bf16 this number would become 0x38.
#[test]
fn numbers_are_rounded_once() {
    let x = f32_rows(&[f32::from_bits(0x3F88_0001)]);
    let (direct, _) = convert(plain(Element::F32), plain(Element::E4M3FN), 1, &x);
    assert_eq!(direct.codes, [0x39]);
    for way in [Element::F16, Element::BF16] {
        let (on_the_way, _) = convert(plain(Element::F32), plain(way), 1, &x);
        let (twice, _) = convert(plain(way), plain(Element::E4M3FN), 1, &on_the_way);
        assert_eq!(twice.codes, [0x38], "by way of {way}");
    }
}
