//! The loops against definitions that are too slow to be wrong.

use super::super::Flow;
use super::super::slow::{Definition, FLOATS, Random, golden, number_of, same};
use super::super::table::Converter;
use super::*;

/// The code of one number, by definition.
fn code_of(
    to: &(Number, Option<Definition>),
    overflow: Overflow,
    x: f32,
    y: f32,
) -> (Vec<u8>, Loss) {
    let whole = |least: f32, most: f32| {
        if y.is_nan() {
            return (vec![0], Loss::Nan);
        }
        let rounded = y.round_ties_even();
        let inside = rounded.clamp(least, most);
        let code = inside as i32 as u8 & if most < 16.0 { 0xF } else { 0xFF };
        (
            vec![code],
            if inside == rounded {
                Loss::Nothing
            } else {
                Loss::Saturated
            },
        )
    };
    let wide = |code: Vec<u8>, nan: Vec<u8>, number: f32| {
        if y.is_nan() {
            (nan, Loss::Nan)
        } else if number.is_infinite() && x.is_finite() {
            (code, Loss::Saturated)
        } else {
            (code, Loss::Nothing)
        }
    };
    match to.0 {
        Number::F32 => wide(y.to_le_bytes().into(), vec![0, 0, 0xC0, 0x7F], y),
        Number::F16 => {
            let h = half::f16::from_f32(y);
            wide(h.to_le_bytes().into(), vec![0, 0x7E], h.to_f32())
        }
        Number::Bf16 => {
            let h = half::bf16::from_f32(y);
            wide(h.to_le_bytes().into(), vec![0xC0, 0x7F], h.to_f32())
        }
        Number::Int8 => whole(-127.0, 127.0),
        Number::Uint8 => whole(0.0, 255.0),
        Number::Int4 => whole(-8.0, 7.0),
        Number::Uint5 => whole(0.0, 31.0),
        Number::Uint4 => whole(0.0, 15.0),
        Number::Uint3 => whole(0.0, 7.0),
        Number::Uint2 => whole(0.0, 3.0),
        _ => {
            let definition = to.1.as_ref().expect("a small float");
            let (code, loss) = definition.encode(overflow, x, y);
            (vec![code], loss)
        }
    }
}

fn defined(to: Number) -> (Number, Option<Definition>) {
    (to, FLOATS.contains(&to).then(|| Definition::of(to)))
}

/// Numbers of all magnitudes, midpoints between codes and their neighbours, and the edges.
fn inputs(to: &(Number, Option<Definition>), seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let mut values = vec![
        0.0,
        f32::INFINITY,
        f32::NAN,
        f32::from_bits(0x7F80_0001),
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        f32::MAX,
        65504.0,
        65519.99,
        65520.0,
        f32::from_bits(0x7F7F_7FFF),
        f32::from_bits(0x7F7F_8000),
    ];
    let whole = (0..=520).map(|i| i as f32 * 0.5);
    values.extend(whole.flat_map(|x: f32| [x.next_down(), x, x.next_up()]));
    if let Some(definition) = &to.1 {
        let mut codes: Vec<f64> = definition.values[..=definition.greatest].to_vec();
        codes.push(2.0 * codes[definition.greatest] - codes[definition.greatest - 1]);
        for pair in codes.windows(2) {
            for x in [pair[0] as f32, ((pair[0] + pair[1]) / 2.0) as f32] {
                values.extend([x.next_down(), x, x.next_up()]);
            }
        }
    }
    values.extend((0..2000).map(|_| f32::from_bits(random.next() as u32)));
    values.extend((0..2000).map(|_| {
        let bits = random.next();
        f32::from_bits((bits as u32 & 0x807F_FFFF) | (100 + (bits >> 32) as u32 % 48) << 23)
    }));
    let negative: Vec<f32> = values.iter().map(|x| -x).collect();
    values.extend(negative);
    values
}

#[test]
fn every_code_decodes_to_its_number() {
    for level in Level::available() {
        for from in Number::ALL.into_iter().filter(|from| *from != Number::F32) {
            let codes: Vec<u8> = match from.bytes() {
                1 => (0..=255).collect(),
                _ => (0..=u16::MAX).flat_map(u16::to_le_bytes).collect(),
            };
            let mut values = vec![-1.5; codes.len() / from.bytes()];
            for multiply in [1.0, 0.0371, 2f32.powi(-130)] {
                decode(level, from, &codes, multiply, &mut values);
                for (code, got) in codes.chunks(from.bytes()).zip(&values) {
                    let want = number_of(from, code) * multiply;
                    assert!(
                        same(*got, want),
                        "{level:?} {from:?} {code:02x?} × {multiply}: {got} instead of {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn numbers_become_the_nearest_codes() {
    let quotients = [
        Quotient::Same,
        Quotient::Times(1.0 / 0.3),
        Quotient::Over(0.3),
        Quotient::Over(1e-20),
    ];
    for to in Number::ALL.map(defined) {
        let values = inputs(&to, 20_260_823);
        for overflow in Overflow::ALL {
            for quotient in quotients {
                let want: Vec<(Vec<u8>, Loss)> = values
                    .iter()
                    .map(|x| code_of(&to, overflow, *x, quotient.of(*x)))
                    .collect();
                let lost = |loss| want.iter().filter(|w| w.1 == loss).count() as u64;
                let counts = Counts {
                    saturated: lost(Loss::Saturated),
                    nan: lost(Loss::Nan),
                };
                for level in Level::available() {
                    let mut codes = vec![0xA5; values.len() * to.0.bytes()];
                    let got = encode(level, to.0, overflow, quotient, &values, &mut codes);
                    for ((x, code), want) in
                        values.iter().zip(codes.chunks(to.0.bytes())).zip(&want)
                    {
                        assert!(
                            code == want.0,
                            "{level:?} {x:e} ({:#x}) to {:?}, {overflow:?}, {quotient:?}: {code:02x?} instead of {want:02x?}",
                            x.to_bits(),
                            to.0
                        );
                    }
                    assert_eq!(
                        got, counts,
                        "{level:?} {:?} {overflow:?} {quotient:?}",
                        to.0
                    );
                }
            }
        }
    }
}

/// The whole of 16-bit sources, and every pair of the others, through the fused conversion.
#[test]
fn conversions_are_a_decode_and_an_encode() {
    for from in Number::ALL.into_iter().filter(|from| *from != Number::F32) {
        let codes: Vec<u8> = match from.bytes() {
            1 => (0..=255).cycle().take(1000).collect(),
            _ => (0..=u16::MAX).flat_map(u16::to_le_bytes).collect(),
        };
        let n = codes.len() / from.bytes();
        for to in Number::ALL.map(defined) {
            for (multiply, quotient) in [
                (1.0, Quotient::Same),
                (1.0, Quotient::Over(0.0371)),
                (0.0625, Quotient::Times(8.0)),
                (0.3, Quotient::Over(1.7e-3)),
            ] {
                let overflow = Overflow::ALL[(n + to.0 as usize) % 3];
                let numbers: Vec<f32> = codes
                    .chunks(from.bytes())
                    .map(|code| number_of(from, code) * multiply)
                    .collect();
                let mut want = vec![0; n * to.0.bytes()];
                let counts = encode(
                    Level::Portable,
                    to.0,
                    overflow,
                    quotient,
                    &numbers,
                    &mut want,
                );
                for level in Level::available() {
                    let mut out = vec![0xA5; n * to.0.bytes()];
                    let got = convert(
                        level, from, multiply, to.0, overflow, quotient, &codes, &mut out,
                    );
                    assert!(
                        out == want,
                        "{level:?} {from:?} × {multiply} to {:?}, {quotient:?}",
                        to.0
                    );
                    assert_eq!(got, counts, "{level:?} {from:?} to {:?}", to.0);
                    let converter = Converter::new(level, from, multiply, to.0, overflow, quotient);
                    out.fill(0xA5);
                    let got = converter.run(Flow::default(), &codes, &mut out);
                    assert!(out == want, "{converter:?}");
                    assert_eq!(got, counts, "{converter:?}");
                    // Lengths that are no multiple of anything, mostly without NaN and overflow.
                    for (start, end) in [(0, 0), (0, 1), (4, 300), (1, n / 8 * 3 + 1)] {
                        let (f, t) = (from.bytes(), to.0.bytes());
                        let out = &mut out[start * t..end * t];
                        converter.run(Flow::default(), &codes[start * f..end * f], out);
                        assert!(out == &want[start * t..end * t], "{converter:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn every_length_ends_where_it_should() {
    let lengths = (0..70).chain([127, 128, 129, 511, 512, 513, 1023, 1025]);
    let mut random = Random(7);
    for n in lengths {
        let mut values: Vec<f32> = (0..n).map(|_| random.next() as i32 as f32 * 1e-8).collect();
        if n % 5 == 4 {
            values[n / 2] = f32::NAN;
            values[n - 1] = f32::NEG_INFINITY;
        }
        for to in Number::ALL {
            let mut want = vec![0xA5; n * to.bytes() + 3];
            let (codes, _) = want.split_at_mut(n * to.bytes());
            let counts = encode(
                Level::Portable,
                to,
                Overflow::Saturate,
                Quotient::Over(0.1),
                &values,
                codes,
            );
            for level in Level::available() {
                let mut got = vec![0xA5; n * to.bytes() + 3];
                let (codes, _) = got.split_at_mut(n * to.bytes());
                let c = encode(
                    level,
                    to,
                    Overflow::Saturate,
                    Quotient::Over(0.1),
                    &values,
                    codes,
                );
                assert_eq!(
                    (&got, c),
                    (&want, counts),
                    "{level:?}, {n} numbers to {to:?}"
                );
                let mut back = vec![f32::NAN; n + 1];
                decode(level, to, &got[..n * to.bytes()], 0.1, &mut back[..n]);
                for (code, back) in got.chunks(to.bytes()).zip(&back[..n]) {
                    assert!(
                        same(*back, number_of(to, code) * 0.1),
                        "{level:?} {to:?}, {n}"
                    );
                }
                assert!(back[n].is_nan());
            }
        }
        for level in Level::available() {
            let finite = values.iter().filter(|x| x.is_finite());
            let amax = finite.clone().fold(0f32, |a, x| a.max(x.abs()));
            let least = finite.clone().fold(f32::INFINITY, |a, x| a.min(*x));
            let most = finite.clone().fold(f32::NEG_INFINITY, |a, x| a.max(*x));
            let special = n % 5 == 4;
            assert_eq!(finite_amax(level, &values), (amax, special), "{n} numbers");
            assert_eq!(
                finite_range(level, &values),
                (least, most, special),
                "{n} numbers"
            );
            let mut tripled = values.clone();
            multiply(level, &mut tripled, 3.0);
            assert!(tripled.iter().zip(&values).all(|(a, b)| same(*a, b * 3.0)));
            let codes: Vec<u8> = (0..2 * n).map(|i| (i * 7 % 16) as u8).collect();
            let mut packed = vec![0; n];
            pack_nibbles(level, &codes, &mut packed);
            for (i, byte) in packed.iter().enumerate() {
                assert_eq!(*byte, codes[2 * i] | codes[2 * i + 1] << 4);
            }
            let mut back = vec![0; 2 * n];
            unpack_nibbles(level, &packed, &mut back);
            assert_eq!(back, codes);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn codes_are_those_of_other_implementations() {
    let floats = [
        (Number::E4m3fn, "e4m3fn"),
        (Number::E4m3fnuz, "e4m3fnuz"),
        (Number::E5m2, "e5m2"),
        (Number::E5m2fnuz, "e5m2fnuz"),
        (Number::E2m1, "e2m1"),
        (Number::E2m3, "e2m3"),
        (Number::E3m2, "e3m2"),
    ];
    let rules = [
        (Overflow::Saturate, ".sat"),
        (Overflow::NoSaturate, ".nosat"),
        (Overflow::SaturateFinite, ".sat_hipdev"),
        (Overflow::Saturate, ""),
    ];
    let sources = [
        (Number::F32, "encode/in.f32", "f32"),
        (Number::F16, "encode/in.f16.u16", "f16"),
        (Number::Bf16, "encode/in.bf16.u16", "bf16"),
    ];
    let mut files = 0;
    for (to, to_name) in floats {
        for (overflow, rule) in rules {
            for (from, input, from_name) in sources {
                let file = format!("encode/{from_name}_to_{to_name}{rule}.u8");
                let path = format!("{}/../tests/data/golden/{file}", env!("CARGO_MANIFEST_DIR"));
                let Ok(want) = std::fs::read(&path) else {
                    continue;
                };
                files += 1;
                let codes = golden(input);
                for level in Level::available() {
                    let mut out = vec![0; want.len()];
                    convert(
                        level,
                        from,
                        1.0,
                        to,
                        overflow,
                        Quotient::Same,
                        &codes,
                        &mut out,
                    );
                    for (i, code) in codes.chunks(from.bytes()).enumerate() {
                        let x = number_of(from, code);
                        let (a, b) = (number_of(to, &out[i..]), number_of(to, &want[i..]));
                        // NaN is compared as a class; formats without NaN write 0 where others differ.
                        let nan = x.is_nan() && (a.is_nan() && b.is_nan() || out[i] == 0);
                        let both = a.is_nan() && b.is_nan();
                        assert!(
                            out[i] == want[i] || nan || both,
                            "{level:?} {file}, element {i}, {x:e}: {:#x} instead of {:#x}",
                            out[i],
                            want[i]
                        );
                    }
                }
            }
        }
    }
    assert!(files >= 30, "only {files} files were found");
    for (number, name) in floats.into_iter().chain([
        (Number::Int4, "int4"),
        (Number::Uint4, "uint4"),
        (Number::Int8, "int8"),
        (Number::Uint8, "uint8"),
    ]) {
        let want = golden(&format!("decode/{name}.f32"));
        let codes: Vec<u8> = (0..want.len() / 4).map(|i| i as u8).collect();
        let mut values = vec![0.0; codes.len()];
        decode(Level::best(), number, &codes, 1.0, &mut values);
        for (got, want) in values.iter().zip(want.as_chunks::<4>().0) {
            assert!(same(*got, f32::from_le_bytes(*want)), "{name}");
        }
    }
}

#[test]
fn a_product_replaces_a_quotient_only_where_codes_are_equal() {
    assert_eq!(
        cheapest_quotient(Number::F32, 1.0, Number::E4m3fn, 0.3),
        Quotient::Over(0.3)
    );
    assert_eq!(
        cheapest_quotient(Number::F32, 1.0, Number::E4m3fn, 0.25),
        Quotient::Times(4.0)
    );
    assert_eq!(
        cheapest_quotient(Number::Bf16, 1.0, Number::E4m3fn, 1.0),
        Quotient::Same
    );
    let mut cheap = 0;
    for i in 1..40 {
        let scale = i as f32 * 0.00371;
        for to in [Number::E4m3fn, Number::E5m2, Number::Bf16] {
            let quotient = cheapest_quotient(Number::Bf16, 1.0, to, scale);
            cheap += usize::from(quotient == Quotient::Times(1.0 / scale));
            let codes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            let run = |quotient| {
                let mut out = vec![0; 65536 * to.bytes()];
                let level = Level::best();
                let counts = convert(
                    level,
                    Number::Bf16,
                    1.0,
                    to,
                    Overflow::Saturate,
                    quotient,
                    &codes,
                    &mut out,
                );
                (out, counts)
            };
            assert!(
                run(quotient) == run(Quotient::Over(scale)),
                "{to:?} / {scale}"
            );
        }
    }
    assert!(cheap > 0);
}

/// Every `bf16` code, over scales that put the narrower float anywhere in its range.
#[test]
fn answers_by_mantissa_are_those_of_numbers() {
    let codes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut tables = 0;
    let mut runs = 0;
    for to in FLOATS {
        for (i, overflow) in (0..24).flat_map(|i| Overflow::ALL.map(|overflow| (i, overflow))) {
            let scale = 1.7f32.powi(i * 5 - 60) * 1.1;
            let quotient = if i % 2 == 0 {
                Quotient::Over(scale)
            } else {
                Quotient::Times(scale)
            };
            let multiply = if i % 3 == 0 { 0.37 } else { 1.0 };
            let mut want = vec![0; 1 << 16];
            let counts = convert(
                Level::Portable,
                Number::Bf16,
                multiply,
                to,
                overflow,
                quotient,
                &codes,
                &mut want,
            );
            for level in Level::available() {
                let converter =
                    Converter::new(level, Number::Bf16, multiply, to, overflow, quotient);
                tables += usize::from(converter.has_table());
                runs += usize::from(level == Level::Avx512);
                let mut out = vec![0xA5; 1 << 16];
                let got = converter.run(Flow::default(), &codes, &mut out);
                assert!(
                    out == want,
                    "{level:?} {to:?} {overflow:?} {multiply} {quotient:?}"
                );
                assert_eq!(
                    got, counts,
                    "{level:?} {to:?} {overflow:?} {multiply} {quotient:?}"
                );
            }
        }
    }
    assert_eq!(
        tables, runs,
        "pairs that have tables where there is AVX-512"
    );
}
