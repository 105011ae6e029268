//! Seeded rows of every kind through every pair of formats.

use moai_translate::convert::Conversion;
use moai_translate::element::Element;
use moai_translate::format::{FormatError, Pairing, RowFormat, RowScale};
use moai_translate::number::Overflow;
use moai_translate::reference;
use moai_translate::rotation::Rotation;
use proptest::prelude::*;

use crate::{Random, Rows, convert, format, plain, with_rope};

/// Rows of the source format: numbers encoded, or any bytes at all.
fn rows_of(source: &RowFormat, dim: u32, n: usize, random: &mut Random) -> Rows {
    let mut rows = Rows {
        codes: Vec::new(),
        params: Vec::new(),
    };
    let row_bytes = source.row_bytes(dim).expect("whole groups") as usize;
    let params_bytes = source.params_bytes(dim) as usize;
    for _ in 0..n {
        let kind = random.below(9);
        let (mut codes, mut params) = (vec![0; row_bytes], vec![0; params_bytes]);
        if kind == 0 || !source.element.writes() {
            codes.fill_with(|| random.next() as u8);
            params.fill_with(|| random.next() as u8);
        } else {
            let values: Vec<f32> = (0..dim).map(|_| number(kind, random)).collect();
            let by_row = source.scale == RowScale::Row;
            let scale = if by_row { RowScale::None } else { source.scale };
            let written = RowFormat { scale, ..*source };
            let apart = if by_row { &mut [][..] } else { &mut params };
            reference::encode_row(&written, &values, &mut codes, apart);
        }
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
            params.copy_from_slice(&scales[random.below(scales.len())].to_le_bytes());
        }
        rows.codes.extend(codes);
        rows.params.extend(params);
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

/// Row lengths that both elements can have: part blocks, whole blocks, rows longer than the scratch.
fn dims_of(source: Element, target: Element) -> Vec<u32> {
    let fits = |dim: u32| {
        [source, target]
            .iter()
            .all(|e| plain(*e).row_bytes(dim).is_ok())
    };
    let dims = [
        1, 7, 32, 64, 96, 128, 130, 256, 512, 576, 1030, 1056, 1152, 4608,
    ];
    let all: Vec<u32> = dims.into_iter().filter(|dim| fits(*dim)).collect();
    if all.is_empty() {
        // TurboQuant's lists are for rows shorter than a record.
        return all;
    }
    // The shortest, the longest but for what is there for want of others, and one between.
    let last = if all.len() > 1 && all.last() == Some(&4608) {
        all.len() - 2
    } else {
        all.len() - 1
    };
    let mut some = vec![all[0], all[last / 2], all[last]];
    some.dedup();
    some
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
    let seed = std::env::var("MOAI_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(SEED);
    println!("seed {seed}");
    let mut random = Random(seed);
    let scales = [
        RowScale::None,
        RowScale::Constant(0.0371),
        RowScale::Constant(4.0),
        RowScale::Row,
    ];
    let scales_of = |element: Element| {
        scales.into_iter().filter(move |scale| match scale {
            RowScale::Constant(_) => element.takes_constant_scale(),
            RowScale::Row => element.takes_row_scale(),
            _ => true,
        })
    };
    let rotations = [
        Rotation::None,
        Rotation::Hadamard(0),
        Rotation::Hadamard(32),
        Rotation::Signed,
    ];
    let mut converted = 0;
    for source in Element::all() {
        for target in Element::all() {
            for (source_scale, target_scale) in
                scales_of(source).flat_map(|s| scales_of(target).map(move |t| (s, t)))
            {
                for dim in dims_of(source, target) {
                    // Of the many turns of long rows a few.
                    let ropes = ropes_of(dim);
                    let some = if dim > 130 { 1 } else { 2 };
                    for _ in 0..some {
                        let rope = ropes[random.below(ropes.len())];
                        let (mut s, mut t) =
                            (format(source, source_scale), format(target, target_scale));
                        t.rule = random.below(4);
                        t.overflow = Overflow::ALL[random.below(6).min(2)];
                        for side in [&mut s, &mut t] {
                            let rotation = rotations[random.below(12).min(3)];
                            if rotation.fits(dim) && side.element.rotation() == Rotation::None {
                                side.rotation = rotation;
                            }
                        }
                        if let Some((from, to, offset, dims)) = rope {
                            s = with_rope(s, from, offset, dims);
                            t = with_rope(t, to, offset, dims);
                        }
                        match Conversion::new(s, t, dim) {
                            Ok(_) => {
                                let n = if dim > 512 { 1 } else { 4 };
                                let rows = rows_of(&s, dim, n, &mut random);
                                convert(s, t, dim, &rows);
                                converted += 1;
                            }
                            Err(FormatError::NoRowScaleRule { element }) => {
                                assert_eq!((element, t.scale), (target, RowScale::Row));
                            }
                            Err(FormatError::ReadOnly { element }) => assert!(!element.writes()),
                            Err(FormatError::RopeSplitsGroup { element, .. }) => {
                                assert!(element.is_grouped() && source == target);
                            }
                            // Rotations of the element itself, in rows that they do not fit.
                            Err(FormatError::Unrotatable {
                                element, rotation, ..
                            }) => {
                                assert_eq!(element.rotation(), rotation);
                            }
                            Err(e) => panic!("{s:?} to {t:?}, dim {dim}: {e}"),
                        }
                    }
                }
            }
        }
    }
    assert!(converted > 5_000, "{converted} conversions");
}

fn alone() -> impl Strategy<Value = Element> {
    let alone: Vec<_> = Element::all().filter(|e| !e.is_grouped()).collect();
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
        let dim = if dim % 2 == 1 && (source.row_bytes(dim).is_err() || target.row_bytes(dim).is_err()) {
            dim + 1
        } else {
            dim
        };
        let rows = rows_of(&source, dim, n, &mut Random(seed));
        convert(source, target, dim, &rows);
    }
}

#[test]
fn specials_under_derived_scales_do_not_spoil_the_row() {
    let mut values = [1.0f32; 32];
    (values[0], values[1], values[2]) = (f32::NAN, f32::INFINITY, -f32::INFINITY);
    let rows = crate::f32_rows(&values);
    for element in [Element::INT8, Element::E4M3FN, Element::E4M3FNUZ] {
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
        assert_eq!(got[0].is_nan(), element != Element::INT8);
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

/// Rows enough for the loops that take many at once, most of them ordinary and a few with numbers that are not.
#[test]
fn many_rows_are_converted_as_each_of_them() {
    const SEED: u64 = 77;
    println!("seed {SEED}");
    let mut random = Random(SEED);
    let by_row = [Element::INT8, Element::E4M3FN, Element::E4M3FNUZ];
    let by_row = by_row.map(|element| format(element, RowScale::Row));
    let targets: Vec<RowFormat> = Element::all().map(plain).chain(by_row).collect();
    for source in [Element::BF16, Element::F16].map(plain) {
        for target in &targets {
            for dim in [128, 576, 512] {
                if Conversion::new(source, *target, dim).is_err() {
                    continue;
                }
                let rules = target.element.scheme().rules().count().max(1);
                for rule in 0..rules {
                    let target = RowFormat { rule, ..*target };
                    let mut rows = rows_of(&source, dim, 0, &mut random);
                    for row in 0..40 {
                        let kind = if row % 16 == 7 { 5 } else { 8 };
                        let values: Vec<f32> =
                            (0..dim).map(|_| number(kind, &mut random)).collect();
                        let mut codes = vec![0; 2 * dim as usize];
                        reference::encode_row(&source, &values, &mut codes, &mut []);
                        rows.codes.extend(codes);
                    }
                    convert(source, target, dim, &rows);
                }
            }
        }
    }
}

/// The same of rows that become plain numbers; a few of them are of any bytes at all.
#[test]
fn many_rows_are_read_as_each_of_them() {
    const SEED: u64 = 78;
    println!("seed {SEED}");
    let mut random = Random(SEED);
    for target in [Element::BF16, Element::F16, Element::F32].map(plain) {
        for source in Element::all().map(plain) {
            for dim in [128, 576, 512] {
                if Conversion::new(source, target, dim).is_err() {
                    continue;
                }
                let mut rows = rows_of(&source, dim, 0, &mut random);
                for row in 0..40 {
                    let bytes = source.row_bytes(dim).expect("whole groups") as usize;
                    let mut codes = vec![0; bytes];
                    let mut params = vec![0; source.params_bytes(dim) as usize];
                    if row % 16 == 7 || !source.element.writes() {
                        codes.fill_with(|| random.next() as u8);
                        params.fill_with(|| random.next() as u8);
                    } else {
                        let values: Vec<f32> = (0..dim).map(|_| number(8, &mut random)).collect();
                        reference::encode_row(&source, &values, &mut codes, &mut params);
                    }
                    rows.codes.extend(codes);
                    rows.params.extend(params);
                }
                convert(source, target, dim, &rows);
            }
        }
    }
}
