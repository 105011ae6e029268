//! Seeded rows of every kind through every pair of formats, and what is refused.

use moai_translate::convert::Conversion;
use moai_translate::element::Element;
use moai_translate::format::{
    Counts, FormatError, Pairing, Rope, RowFormat, RowScale, ScaleRule, Side,
};
use moai_translate::reference;
use proptest::prelude::*;

use crate::{Random, Rows, convert, format, plain, with_rope};

/// Rows of the source format: numbers encoded, or any bytes at all.
fn rows_of(source: &RowFormat, dim: u32, n: usize, random: &mut Random) -> Rows {
    let mut rows = Rows {
        codes: Vec::new(),
        scales: Vec::new(),
    };
    let row_bytes = source.row_bytes(dim).expect("whole groups") as usize;
    for _ in 0..n {
        let kind = random.below(9);
        let mut codes = vec![0; row_bytes];
        if kind == 0 {
            codes.fill_with(|| random.next() as u8);
        } else {
            let values: Vec<f32> = (0..dim).map(|_| number(kind, random)).collect();
            let unscaled = RowFormat {
                scale: RowScale::None,
                ..*source
            };
            reference::encode_row(&unscaled, &values, &mut codes, &mut 0.0);
        }
        rows.codes.extend(codes);
        if source.scale == RowScale::Row {
            let scales = [
                1.0,
                0.037,
                2f32.powi(-9),
                3e-40,
                0.0,
                -0.5,
                3e38,
                f32::INFINITY,
                f32::NAN,
            ];
            rows.scales.push(scales[random.below(scales.len())]);
        }
    }
    rows
}

/// A number of one kind.
fn number(kind: usize, random: &mut Random) -> f32 {
    let small = random.signed() * 4.0;
    match kind {
        // Ties between codes of 2, 3, 7 and 10 mantissa bits, and their neighbours.
        1 => {
            let mantissa_bits = [2, 3, 7, 10][random.below(4)];
            let step = 1u32 << (23 - mantissa_bits);
            let up = (random.below(64) as u32 + 96) << 23;
            let bits = up + random.below(1 << mantissa_bits) as u32 * step + step / 2;
            f32::from_bits((bits + random.below(3) as u32 - 1) | (random.next() as u32 & 1 << 31))
        }
        2 => [0.0, -0.0][random.below(2)],
        3 => small * 1e-38,
        4 => small * 1e37,
        // Mostly ordinary, with one special in eight.
        5 => {
            let specials = [
                f32::NAN,
                f32::INFINITY,
                -f32::INFINITY,
                -0.0,
                1e-42,
                -f32::NAN,
                f32::MAX,
            ];
            if random.below(8) == 0 {
                specials[random.below(specials.len())]
            } else {
                small
            }
        }
        // Whole and half numbers up to ±128, where int8 rounds ties.
        6 => (random.below(513) as f32 - 256.0) / 2.0,
        7 => f32::from_bits(random.next() as u32),
        _ => small,
    }
}

/// Row lengths that exercise part blocks, whole blocks and rows longer than the scratch.
fn dims_of(source: Element, target: Element) -> &'static [u32] {
    let grouped = |e| source == e || target == e;
    if grouped(Element::Fp8DsMla) {
        &[576, 1152]
    } else if grouped(Element::Q8_0) {
        &[32, 96, 1056]
    } else {
        &[1, 7, 130, 1030]
    }
}

/// No RoPE, the same pairing, and both turns: of the whole row, and of a part of it.
fn ropes_of(dim: u32) -> Vec<Option<(Pairing, Pairing, u32, u32)>> {
    let (half, interleaved) = (Pairing::Half, Pairing::Interleaved);
    let mut ropes = vec![None];
    if dim >= 2 {
        let even = dim & !1;
        ropes.push(Some((half, half, 0, even)));
        ropes.push(Some((half, interleaved, 0, even)));
        ropes.push(Some((interleaved, half, 0, 2)));
    }
    if dim >= 32 {
        ropes.push(Some((interleaved, half, 6, 22)));
        ropes.push(Some((half, interleaved, dim - 24, 24)));
    }
    if dim >= 576 {
        ropes.push(Some((interleaved, half, 512, 64)));
    }
    ropes
}

#[test]
fn every_pair_of_formats_equals_the_reference() {
    const SEED: u64 = 20_260_823;
    println!("seed {SEED}");
    let mut random = Random(SEED);
    let scales = [
        RowScale::None,
        RowScale::Constant(0.0371),
        RowScale::Constant(4.0),
        RowScale::Row,
    ];
    let mut converted = 0;
    for source in Element::ALL {
        for target in Element::ALL {
            for (source_scale, target_scale) in scales.iter().flat_map(|s| scales.map(|t| (*s, t)))
            {
                for dim in dims_of(*source, *target) {
                    for rope in ropes_of(*dim) {
                        let (mut s, mut t) =
                            (format(*source, source_scale), format(*target, target_scale));
                        if random.below(2) == 0 {
                            t.rule = ScaleRule::Pow2;
                        }
                        if let Some((from, to, offset, dims)) = rope {
                            s = with_rope(s, from, offset, dims);
                            t = with_rope(t, to, offset, dims);
                        }
                        match Conversion::new(s, t, *dim) {
                            Ok(_) => {
                                let n = if *dim > 1024 { 2 } else { 5 };
                                let rows = rows_of(&s, *dim, n, &mut random);
                                convert(s, t, *dim, &rows);
                                converted += 1;
                            }
                            Err(FormatError::ScaledGroup { element, .. }) => {
                                assert!(element.is_grouped());
                            }
                            Err(FormatError::NoRowScaleRule { element }) => {
                                assert_eq!((element, t.scale), (*target, RowScale::Row));
                            }
                            Err(e) => panic!("{s:?} to {t:?}, dim {dim}: {e}"),
                        }
                    }
                }
            }
        }
    }
    assert!(converted > 10_000, "{converted} conversions");
}

fn alone() -> impl Strategy<Value = Element> {
    let alone: Vec<_> = Element::ALL
        .iter()
        .copied()
        .filter(|e| !e.is_grouped())
        .collect();
    prop::sample::select(alone)
}

fn scale() -> impl Strategy<Value = RowScale> {
    prop_oneof![
        Just(RowScale::None),
        (1u32..0x7F80_0000).prop_map(|bits| RowScale::Constant(f32::from_bits(bits))),
        (0u32..255).prop_map(|e| RowScale::Constant(f32::from_bits((e << 23).max(1)))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Scales of any positive magnitude, subnormal ones and powers of two included.
    #[test]
    fn any_constant_scales_equal_the_reference(
        source in alone(), target in alone(), from in scale(), to in scale(),
        dim in 1u32..40, n in 0usize..40, seed: u64,
    ) {
        let (source, target) = (format(source, from), format(target, to));
        let rows = rows_of(&source, dim, n, &mut Random(seed));
        convert(source, target, dim, &rows);
    }
}

#[test]
fn specials_under_derived_scales_do_not_spoil_the_row() {
    let mut values = [1.0f32; 32];
    (values[0], values[1], values[2]) = (f32::NAN, f32::INFINITY, -f32::INFINITY);
    let rows = crate::f32_rows(&values);
    for element in [Element::Int8, Element::E4m3fn, Element::E4m3fnuz] {
        let target = format(element, RowScale::Row);
        let (coded, counts) = convert(plain(Element::F32), target, 32, &rows);
        assert_eq!((counts.saturated, counts.nan), (2, 1), "{element}");
        let got = crate::decode(target, 32, &coded);
        assert!(
            got[3..].iter().all(|x| (x - 1.0).abs() < 1e-6),
            "{element}: {got:?}"
        );
        assert!(
            (got[1] - 1.0).abs() < 1e-6,
            "{element}: Inf is the greatest code"
        );
        assert_eq!(got[0].is_nan(), element != Element::Int8);
    }
    let (coded, counts) = convert(plain(Element::F32), plain(Element::Q8_0), 32, &rows);
    assert_eq!((counts.saturated, counts.nan), (2, 1));
    assert_eq!(coded.codes[2..6], [0, 127, -127i8 as u8, 127]);

    // A scale that f16 cannot hold loses its whole group, as ggml leaves it, and says so.
    let rows = crate::f32_rows(&[1e9; 32]);
    let (coded, counts) = convert(plain(Element::F32), plain(Element::Q8_0), 32, &rows);
    assert_eq!(coded.codes[..2], 0x7C00u16.to_le_bytes());
    assert_eq!((counts.saturated, counts.nan), (32, 0));
}

#[test]
fn what_has_no_meaning_is_refused() {
    let new = |s, t, dim| Conversion::new(s, t, dim).expect_err("no defined conversion");
    let bf16 = plain(Element::Bf16);
    assert_eq!(
        new(bf16, plain(Element::Q8_0), 40),
        FormatError::RaggedRow {
            element: Element::Q8_0,
            dim: 40,
            group_elements: 32
        },
    );
    assert_eq!(
        new(bf16, bf16, 0),
        FormatError::EmptyRow {
            element: Element::Bf16
        }
    );
    for value in [0.0, -1.0, f32::INFINITY] {
        let element = Element::E4m3fn;
        let side = Side::Target;
        let target = format(element, RowScale::Constant(value));
        assert_eq!(
            new(bf16, target, 8),
            FormatError::ConstantScale {
                side,
                element,
                value
            }
        );
    }
    let nan = format(Element::Int8, RowScale::Constant(f32::NAN));
    let message = new(nan, bf16, 8).to_string();
    assert!(message.contains("source scale of int8 is NaN"), "{message}");
    let scaled_group = format(Element::Fp8DsMla, RowScale::Row);
    let message = new(scaled_group, bf16, 576).to_string();
    assert!(
        message.contains("source fp8_ds_mla carries scales"),
        "{message}"
    );
    assert_eq!(
        new(bf16, format(Element::E5m2, RowScale::Row), 8),
        FormatError::NoRowScaleRule {
            element: Element::E5m2
        },
    );

    let rope = |offset, dims| with_rope(bf16, Pairing::Half, offset, dims);
    for (offset, dims) in [(0, 7), (0, 0), (4, 6), (u32::MAX, 2)] {
        let (side, dim) = (Side::Source, 8);
        let want = FormatError::RopeRange {
            side,
            offset,
            dims,
            dim,
        };
        assert_eq!(new(rope(offset, dims), rope(0, 8), 8), want);
    }
    let message = new(rope(0, 4), rope(2, 6), 8).to_string();
    assert!(
        message.contains("4 elements from 0") && message.contains("6 from 2"),
        "{message}"
    );
    assert_eq!(
        new(rope(0, 4), bf16, 8),
        FormatError::RopeOneSided { side: Side::Source }
    );
    assert_eq!(
        new(bf16, rope(0, 4), 8),
        FormatError::RopeOneSided { side: Side::Target }
    );
    assert_eq!(
        rope(2, 4).rope,
        Some(Rope {
            pairing: Pairing::Half,
            offset: 2,
            dims: 4
        })
    );
}

#[test]
fn names_are_exact() {
    for element in Element::ALL {
        assert_eq!(element.name().parse(), Ok(*element));
    }
    let message = "fp8"
        .parse::<Element>()
        .expect_err("no element")
        .to_string();
    assert!(
        message.contains("not an exact format") && message.contains("e4m3fnuz"),
        "{message}"
    );
    let message = "q3_k"
        .parse::<Element>()
        .expect_err("no element")
        .to_string();
    assert!(
        (Element::ALL.iter().chain(Element::CARRIED)).all(|e| message.contains(e.name())),
        "{message}"
    );
    assert!("BF16".parse::<Element>().is_err());
}

#[test]
fn elements_without_a_codec_are_carried_and_never_converted() {
    for &element in Element::CARRIED {
        let (name, dim) = (element.name(), 576);
        assert_eq!(name.parse::<Element>().unwrap(), element);
        let format = plain(element);
        let same = Conversion::new(format, format, dim).unwrap();
        assert!(same.is_identity());
        let row: Vec<u8> = (0..same.source_row_bytes()).map(|i| i as u8).collect();
        let mut out = vec![0; row.len()];
        let counts = same.run(1, &row, &[], &mut out, &mut []);
        assert_eq!((out, counts), (row, Counts::default()));
        for &other in Element::ALL {
            for (a, b) in [(format, plain(other)), (plain(other), format)] {
                let error = Conversion::new(a, b, dim).unwrap_err();
                assert_eq!(
                    error,
                    FormatError::NoCodec { element },
                    "{name} and {other}"
                );
            }
        }
    }
}
