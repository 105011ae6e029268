//! Every input there is: 16-bit and 8-bit codes always, `f32` when asked.

use moai_translate::convert::Conversion;
use moai_translate::element::Element;
use moai_translate::format::{Counts, RowScale};

use crate::{convert, decode, format, plain, unscaled};

const ALONE: [Element; 8] = [
    Element::F32,
    Element::F16,
    Element::BF16,
    Element::E4M3FN,
    Element::E4M3FNUZ,
    Element::E5M2,
    Element::E5M2FNUZ,
    Element::INT8,
];

#[test]
fn every_16_bit_pattern_into_every_element() {
    let patterns = unscaled((0..=u16::MAX).flat_map(u16::to_le_bytes).collect());
    for source in [Element::F16, Element::BF16] {
        for target in ALONE {
            for scale in [1.0, 0.25, 0.0371, 3e4] {
                let target = format(target, RowScale::Constant(scale));
                convert(plain(source), target, 1, &patterns);
            }
        }
        for target in [Element::INT8, Element::E4M3FN, Element::E4M3FNUZ] {
            convert(plain(source), format(target, RowScale::Row), 128, &patterns);
        }
        convert(plain(source), plain(Element::Q8_0), 128, &patterns);
    }
}

#[test]
fn every_8_bit_code_under_every_ratio_of_scales() {
    let codes = unscaled((0..=255).collect());
    // Ratios 1, 2, 1/2, odd ones, far ones, and scales at the ends of the range.
    let scales = [
        1.0, 2.0, 0.5, 0.0371, 0.0742, 3.0, 1e-3, 448.0, 1e38, 1e-38, 1e-45,
    ];
    for source in [
        Element::E4M3FN,
        Element::E4M3FNUZ,
        Element::E5M2,
        Element::E5M2FNUZ,
        Element::INT8,
    ] {
        for target in ALONE {
            for source_scale in scales {
                for target_scale in scales {
                    convert(
                        format(source, RowScale::Constant(source_scale)),
                        format(target, RowScale::Constant(target_scale)),
                        1,
                        &codes,
                    );
                }
            }
        }
    }
}

#[test]
fn equal_scales_carry_every_code() {
    let codes = unscaled((0..=255).collect());
    for element in [
        Element::E4M3FN,
        Element::E4M3FNUZ,
        Element::E5M2,
        Element::E5M2FNUZ,
        Element::INT8,
    ] {
        let pairs = [
            (RowScale::None, RowScale::None),
            (RowScale::None, RowScale::Constant(1.0)),
            (RowScale::Constant(0.3), RowScale::Constant(0.3)),
        ];
        for (a, b) in pairs {
            let (rows, counts) = convert(format(element, a), format(element, b), 1, &codes);
            assert_eq!(rows, codes, "{element}, NaN codes included");
            assert_eq!(counts, Counts::default());
            let conversion = Conversion::new(format(element, a), format(element, b), 1);
            assert!(conversion.expect("a defined conversion").is_identity());
        }
    }
}

/// Against a walk: for ascending magnitudes the code steps up where the midpoint is passed.
#[test]
#[ignore = "all 2^32 numbers; half a minute in a release build"]
fn every_f32_into_every_8_bit_float() {
    const STEP: u32 = 1 << 16;
    let floats = [
        (Element::E4M3FN, 0x7Eu8),
        (Element::E4M3FNUZ, 0x7F),
        (Element::E5M2, 0x7B),
        (Element::E5M2FNUZ, 0x7F),
    ];
    for (element, greatest) in floats {
        let conversion = Conversion::new(plain(Element::F32), plain(element), STEP);
        let conversion = conversion.expect("a defined conversion");
        let mut number = decode(plain(element), 1, &unscaled((0..=greatest).collect()));
        let (last, before) = (
            number[usize::from(greatest)],
            number[usize::from(greatest) - 1],
        );
        number.push(last + (last - before));
        let fnuz = element == Element::E4M3FNUZ || element == Element::E5M2FNUZ;
        let nan = if fnuz { 0x80 } else { 0x7F };
        let mut magnitude_code = 0;
        let mut saturated = 0;
        let mut seen = Counts::default();
        let mut src = vec![0; 4 * STEP as usize];
        let (mut positive, mut negative) = (vec![0; STEP as usize], vec![0; STEP as usize]);
        for block in 0..1u32 << 15 {
            for (sign, codes) in [(0, &mut positive), (1u32 << 31, &mut negative)] {
                for (low, bytes) in (0..STEP).zip(src.as_chunks_mut::<4>().0) {
                    *bytes = (sign | block << 16 | low).to_le_bytes();
                }
                seen += conversion.run(1, &src, &[], codes, &mut []);
            }
            for low in 0..STEP {
                let x = f32::from_bits(block << 16 | low);
                let (up, down) = if x.is_nan() {
                    (nan, nan)
                } else {
                    while magnitude_code <= usize::from(greatest) {
                        let sum = f64::from(number[magnitude_code])
                            + f64::from(number[magnitude_code + 1]);
                        let passed = f64::from(x) > sum / 2.0
                            || f64::from(x) == sum / 2.0 && magnitude_code % 2 == 1;
                        if !passed {
                            break;
                        }
                        magnitude_code += 1;
                    }
                    saturated += u64::from(magnitude_code > usize::from(greatest));
                    let code = (magnitude_code as u8).min(greatest);
                    let zero = code == 0 && fnuz;
                    (code, if zero { 0 } else { code | 0x80 })
                };
                let at = low as usize;
                assert_eq!(
                    (positive[at], negative[at]),
                    (up, down),
                    "{element} of ±{x}"
                );
            }
        }
        assert_eq!(seen.nan, 2 * 0x7F_FFFF, "{element}");
        assert_eq!(seen.saturated, 2 * saturated, "{element}");
    }
}

/// Against the `half` crate.
#[test]
#[ignore = "all 2^32 numbers; half a minute in a release build"]
fn every_f32_into_every_16_bit_float() {
    const STEP: u32 = 1 << 16;
    for element in [Element::F16, Element::BF16] {
        let conversion = Conversion::new(plain(Element::F32), plain(element), STEP);
        let conversion = conversion.expect("a defined conversion");
        let mut src = vec![0; 4 * STEP as usize];
        let mut codes = vec![0; 2 * STEP as usize];
        let (mut seen, mut saturated) = (Counts::default(), 0);
        for high in 0..1u32 << 16 {
            for (low, bytes) in (0..STEP).zip(src.as_chunks_mut::<4>().0) {
                *bytes = (high << 16 | low).to_le_bytes();
            }
            seen += conversion.run(1, &src, &[], &mut codes, &mut []);
            for (low, code) in (0..STEP).zip(codes.as_chunks::<2>().0) {
                let x = f32::from_bits(high << 16 | low);
                let (want, infinite) = if element == Element::F16 {
                    let h = half::f16::from_f32(x);
                    (
                        if x.is_nan() { 0x7E00 } else { h.to_bits() },
                        h.is_infinite(),
                    )
                } else {
                    let h = half::bf16::from_f32(x);
                    (
                        if x.is_nan() { 0x7FC0 } else { h.to_bits() },
                        h.is_infinite(),
                    )
                };
                saturated += u64::from(x.is_finite() && infinite);
                assert_eq!(u16::from_le_bytes(*code), want, "{element} of {x}");
            }
        }
        assert_eq!(
            (seen.nan, seen.saturated),
            (2 * 0x7F_FFFF, saturated),
            "{element}"
        );
    }
}
