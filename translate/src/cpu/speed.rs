//! Throughput of the loops, to be read beside that of a copy of as many bytes in the same run:
//!
//! ```text
//! cargo test --release -p moai-translate --lib speed_of_loops -- --ignored --nocapture
//! ```
//!
//! *L1* converts the same few KiB over and over. *DRAM* streams 256 MiB: each block is converted into L1
//! and goes from there to memory past the caches, as `memcpy` writes at this size. `MOAI_CASE` picks the cases whose
//! names contain it.

use std::cell::RefCell;
use std::hint::black_box;
use std::sync::LazyLock;
use std::time::Instant;

use super::Flow;
use super::group::{
    MxRule, Nvfp4Rule, ScaleCode, ScaledOctaves, TileRule, decode_mx, decode_nvfp4, decode_q8_0,
    encode_mx, encode_mx_of_bf16, encode_nvfp4, encode_nvfp4_of_bf16, encode_q8_0,
    encode_q8_0_of_bf16, encode_rows_of_bf16, encode_tiles, encode_tiles_of_bf16,
};
use super::level::Level;
use super::number::{Number, Overflow, Quotient, decode, encode};
use super::slow::Random;
use super::table::Converter;
use crate::{convert::Conversion, element::Element, format::RowFormat, scheme::Scheme};

/// Numbers converted at a time.
const NUMBERS: usize = 8192;
/// Bytes read and written by one pass over memory.
const WORKING_SET: usize = 256 << 20;

/// Converts a block at a level.
type Run = Box<dyn Fn(Level, &[u8], &mut [u8])>;

/// One conversion: bytes of [`NUMBERS`] on either side, and how.
struct Case {
    name: &'static str,
    from_bytes: usize,
    to_bytes: usize,
    run: Run,
}

fn cases() -> Vec<Case> {
    let case = |name, from_bytes, to_bytes, run: Run| Case {
        name,
        from_bytes,
        to_bytes,
        run,
    };
    let numbers = |name, from: Number, multiply, to: Number, quotient| {
        let converters: Vec<_> = Level::available()
            .into_iter()
            .map(|level| {
                (
                    level,
                    Converter::new(level, from, multiply, to, Overflow::Saturate, quotient),
                )
            })
            .collect();
        let run = move |level, codes: &[u8], out: &mut [u8]| {
            let converter = converters.iter().find(|(l, _)| *l == level);
            let converter = converter.expect("a level of this CPU");
            converter.1.run(Flow::default(), codes, out);
        };
        case(
            name,
            from.bytes() * NUMBERS,
            to.bytes() * NUMBERS,
            Box::new(run),
        )
    };
    let groups = |name, bytes, encode: fn(Level, &[f32], &mut [u8])| {
        let scratch = RefCell::new(vec![0.0; NUMBERS]);
        let run = move |level, codes: &[u8], out: &mut [u8]| {
            let values = &mut *scratch.borrow_mut();
            decode(level, Number::Bf16, codes, 1.0, values);
            encode(level, values, out);
        };
        case(name, 2 * NUMBERS, bytes, Box::new(run))
    };
    let direct = |name, bytes, encode: fn(Level, &[u8], &mut [u8])| {
        case(name, 2 * NUMBERS, bytes, Box::new(encode))
    };
    let degroups = |name, bytes, decode: fn(Level, &[u8], &mut [f32])| {
        let scratch = RefCell::new(vec![0.0; NUMBERS]);
        let run = move |level, codes: &[u8], out: &mut [u8]| {
            let values = &mut *scratch.borrow_mut();
            decode(level, codes, values);
            encode(
                level,
                Number::Bf16,
                Overflow::Saturate,
                Quotient::Same,
                values,
                out,
            );
        };
        case(name, bytes, 2 * NUMBERS, Box::new(run))
    };
    // A conversion of rows of 128 into bf16.
    let whole = |name, scheme: &'static Scheme| {
        let element = Element::new(scheme);
        let (from, to) = (RowFormat::of(element), RowFormat::of(Element::BF16));
        let conversion = Conversion::new(from, to, 128).expect("a defined conversion");
        let rows = NUMBERS / 128;
        let (codes, params) = (
            rows * conversion.source_row_bytes(),
            rows * conversion.source_params_bytes(),
        );
        let conversions: Vec<_> = Level::available()
            .into_iter()
            .map(|level| (level, conversion.clone().at_level(level)))
            .collect();
        let run = move |level, bytes: &[u8], out: &mut [u8]| {
            let one = conversions.iter().find(|(l, _)| *l == level);
            let (codes, params) = bytes.split_at(codes);
            one.expect("a level of this CPU")
                .1
                .run(rows, codes, params, out, &mut []);
        };
        case(name, codes + params, 2 * NUMBERS, Box::new(run))
    };
    let (over, times) = (Quotient::Over(0.0371), Quotient::Times(32.0));
    vec![
        numbers(
            "bf16 → e4m3fn ÷ 0.0371",
            Number::Bf16,
            1.0,
            Number::E4m3fn,
            over,
        ),
        numbers(
            "bf16 → e4m3fn × 32",
            Number::Bf16,
            1.0,
            Number::E4m3fn,
            times,
        ),
        numbers(
            "bf16 → e4m3fn ÷ 1",
            Number::Bf16,
            1.0,
            Number::E4m3fn,
            Quotient::Same,
        ),
        numbers(
            "bf16 → e5m2 ÷ 0.0371",
            Number::Bf16,
            1.0,
            Number::E5m2,
            over,
        ),
        numbers(
            "bf16 → int8 ÷ 0.0371",
            Number::Bf16,
            1.0,
            Number::Int8,
            over,
        ),
        numbers(
            "f16 → e4m3fn ÷ 0.0371",
            Number::F16,
            1.0,
            Number::E4m3fn,
            over,
        ),
        numbers(
            "f32 → e4m3fn ÷ 0.0371",
            Number::F32,
            1.0,
            Number::E4m3fn,
            over,
        ),
        numbers(
            "e4m3fn → e4m3fnuz, doubled",
            Number::E4m3fn,
            1.0,
            Number::E4m3fnuz,
            Quotient::Times(0.5),
        ),
        numbers(
            "e4m3fn → e4m3fnuz, as is",
            Number::E4m3fn,
            1.0,
            Number::E4m3fnuz,
            Quotient::Same,
        ),
        numbers(
            "e4m3fn → bf16 × 0.0371",
            Number::E4m3fn,
            0.0371,
            Number::Bf16,
            Quotient::Same,
        ),
        numbers(
            "int8 → bf16 × 0.0371",
            Number::Int8,
            0.0371,
            Number::Bf16,
            Quotient::Same,
        ),
        numbers("bf16 → f16", Number::Bf16, 1.0, Number::F16, Quotient::Same),
        numbers("f16 → bf16", Number::F16, 1.0, Number::Bf16, Quotient::Same),
        numbers("f32 → bf16", Number::F32, 1.0, Number::Bf16, Quotient::Same),
        groups("bf16 → f32", NUMBERS * 4, |level, values, out| {
            encode(
                level,
                Number::F32,
                Overflow::Saturate,
                Quotient::Same,
                values,
                out,
            );
        }),
        groups("bf16 → q8_0", NUMBERS / 32 * 34, |level, values, out| {
            encode_q8_0(level, values, out);
        }),
        groups(
            "bf16 → mxfp8 e4m3",
            NUMBERS / 32 * 33,
            |level, values, out| {
                let (codes, scales) = out.split_at_mut(values.len());
                encode_mx(level, Number::E4m3fn, MxRule::Ceil, values, codes, scales);
            },
        ),
        groups("bf16 → mxfp4", NUMBERS / 32 * 17, |level, values, out| {
            let (codes, scales) = out.split_at_mut(values.len() / 2);
            encode_mx(level, Number::E2m1, MxRule::Ceil, values, codes, scales);
        }),
        groups("bf16 → nvfp4", NUMBERS / 16 * 9, |level, values, out| {
            let (codes, scales) = out.split_at_mut(values.len() / 2);
            let rule = Nvfp4Rule {
                global: 0.0371,
                least: 0.0,
            };
            encode_nvfp4(level, rule, values, codes, scales);
        }),
        groups(
            "bf16 → e4m3fn tiles",
            NUMBERS / 128 * 132,
            |level, values, out| {
                let (codes, scales) = out.split_at_mut(values.len());
                encode_tiles(
                    level,
                    128,
                    TileRule::RAW,
                    ScaleCode::F32,
                    values,
                    codes,
                    scales,
                );
            },
        ),
        direct("bf16 ⇒ q8_0", NUMBERS / 32 * 34, |level, codes, out| {
            encode_q8_0_of_bf16(level, Flow::default(), codes, out);
        }),
        direct(
            "bf16 ⇒ mxfp8 e4m3",
            NUMBERS / 32 * 33,
            |level, codes, out| {
                let (out, scales) = out.split_at_mut(NUMBERS);
                encode_mx_of_bf16(
                    level,
                    Flow::default(),
                    Number::E4m3fn,
                    MxRule::Ceil,
                    codes,
                    out,
                    scales,
                );
            },
        ),
        direct("bf16 ⇒ mxfp4", NUMBERS / 32 * 17, |level, codes, out| {
            let (out, scales) = out.split_at_mut(NUMBERS / 2);
            encode_mx_of_bf16(
                level,
                Flow::default(),
                Number::E2m1,
                MxRule::Ceil,
                codes,
                out,
                scales,
            );
        }),
        direct("bf16 ⇒ nvfp4", NUMBERS / 16 * 9, |level, codes, out| {
            let (out, scales) = out.split_at_mut(NUMBERS / 2);
            let rule = Nvfp4Rule {
                global: 0.0371,
                least: 0.0,
            };
            static OCTAVES: LazyLock<Option<ScaledOctaves>> =
                LazyLock::new(|| ScaledOctaves::new(0.0371));
            let octaves = OCTAVES.as_ref().expect("octaves");
            encode_nvfp4_of_bf16(level, Flow::default(), rule, octaves, codes, out, scales);
        }),
        direct(
            "bf16 ⇒ mxfp4 floor",
            NUMBERS / 32 * 17,
            |level, codes, out| {
                let (out, scales) = out.split_at_mut(NUMBERS / 2);
                encode_mx_of_bf16(
                    level,
                    Flow::default(),
                    Number::E2m1,
                    MxRule::Floor,
                    codes,
                    out,
                    scales,
                );
            },
        ),
        direct(
            "bf16 ⇒ mxfp8 e4m3 floor",
            NUMBERS / 32 * 33,
            |level, codes, out| {
                let (out, scales) = out.split_at_mut(NUMBERS);
                encode_mx_of_bf16(
                    level,
                    Flow::default(),
                    Number::E4m3fn,
                    MxRule::Floor,
                    codes,
                    out,
                    scales,
                );
            },
        ),
        direct(
            "bf16 ⇒ e4m3fn tiles",
            NUMBERS / 128 * 132,
            |level, codes, out| {
                let (out, scales) = out.split_at_mut(NUMBERS);
                let (rule, stored) = (TileRule::RAW, ScaleCode::F32);
                encode_tiles_of_bf16(
                    level,
                    Flow::default(),
                    128,
                    rule,
                    stored,
                    codes,
                    out,
                    scales,
                );
            },
        ),
        direct(
            "bf16 ⇒ e4m3fn tiles, 2ⁿ",
            NUMBERS / 128 * 132,
            |level, codes, out| {
                let (out, scales) = out.split_at_mut(NUMBERS);
                let (rule, stored) = (TileRule::POWER_OF_TWO, ScaleCode::F32);
                encode_tiles_of_bf16(
                    level,
                    Flow::default(),
                    128,
                    rule,
                    stored,
                    codes,
                    out,
                    scales,
                );
            },
        ),
        direct(
            "bf16 ⇒ int8 rows",
            NUMBERS / 128 * 132,
            |level, codes, out| {
                let (out, scales) = out.split_at_mut(NUMBERS);
                encode_rows_of_bf16(
                    level,
                    Flow::default(),
                    Number::Int8,
                    128,
                    codes,
                    out,
                    scales,
                );
            },
        ),
        direct(
            "bf16 ⇒ e4m3fn rows",
            NUMBERS / 128 * 132,
            |level, codes, out| {
                let (out, scales) = out.split_at_mut(NUMBERS);
                encode_rows_of_bf16(
                    level,
                    Flow::default(),
                    Number::E4m3fn,
                    128,
                    codes,
                    out,
                    scales,
                );
            },
        ),
        whole("q8_0 ⇒ bf16", &crate::table::Q8_0),
        whole("mxfp8 e4m3 ⇒ bf16", &crate::table::MXFP8_E4M3),
        whole("mxfp4 ⇒ bf16", &crate::table::MXFP4),
        whole("nvfp4 ⇒ bf16", &crate::table::NVFP4),
        degroups(
            "q8_0 → bf16",
            NUMBERS / 32 * 34,
            |level, codes, values| {
                decode_q8_0(level, codes, values);
            },
        ),
        degroups(
            "mxfp8 e4m3 → bf16",
            NUMBERS / 32 * 33,
            |level, codes, values| {
                let (codes, scales) = codes.split_at(values.len());
                decode_mx(level, Number::E4m3fn, codes, scales, values);
            },
        ),
        degroups(
            "nvfp4 → bf16",
            NUMBERS / 16 * 9,
            |level, codes, values| {
                let (codes, scales) = codes.split_at(values.len() / 2);
                decode_nvfp4(level, 0.0371, codes, scales, values);
            },
        ),
    ]
}

#[test]
#[ignore = "a measurement, not a check; wants a release build and a quiet machine"]
fn speed_of_loops() {
    let mut random = Random(20_260_823);
    let values: Vec<f32> = (0..1 << 16)
        .map(|_| {
            // Sum of uniform ones: near enough to normal.
            let sum: f32 = (0..4)
                .map(|_| (random.next() >> 40) as f32 / (1 << 24) as f32 - 0.5)
                .sum();
            2.0 * sum
        })
        .collect();
    let mut from = vec![0u8; WORKING_SET];
    let mut to = vec![0u8; WORKING_SET];
    from.copy_from_slice(&to);
    println!(
        "copies of {} MiB, read and written, and times their speed",
        WORKING_SET >> 21
    );
    let wanted = std::env::var("MOAI_CASE").unwrap_or_default();
    for case in cases() {
        if !case.name.contains(&wanted) {
            continue;
        }
        let both = case.from_bytes + case.to_bytes;
        let blocks = WORKING_SET / both;
        let name = case.name;
        let source = name.split(' ').next().unwrap_or_default();
        fill(source, &values, &mut from[..blocks * case.from_bytes]);
        // Beside each case, as other machines on the host come and go.
        let copy = best(5, || {
            let half = WORKING_SET / 2;
            black_box(&mut to[..half]).copy_from_slice(black_box(&from[..half]));
        });
        let copy = WORKING_SET as f64 / copy / 1e9;
        print!("{name:28} | copy {copy:4.1} GB/s");
        for level in Level::available() {
            let mut block = vec![0; case.to_bytes];
            let source = &from[..case.from_bytes];
            let repeats = 250;
            let l1 = best(5, || {
                for _ in 0..repeats {
                    (case.run)(level, black_box(source), black_box(&mut block));
                }
            });
            let l1 = (both * repeats) as f64 / l1 / 1e9;
            let dram = best(5, || {
                let sources = from.chunks_exact(case.from_bytes);
                for (source, to) in sources.zip(to.chunks_exact_mut(case.to_bytes)).take(blocks) {
                    (case.run)(level, source, &mut block);
                    stream(&block, to);
                }
            });
            let dram = (both * blocks) as f64 / dram / 1e9;
            print!(
                " | {level:?} L1 {l1:5.1} = {:4.2}, DRAM {dram:5.1} = {:4.2}",
                l1 / copy,
                dram / copy
            );
        }
        println!();
    }
}

fn best(times: usize, mut run: impl FnMut()) -> f64 {
    let once = |run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..times)
        .map(|_| once(&mut run))
        .fold(f64::INFINITY, f64::min)
}

/// Codes of a format, over and over.
fn fill(name: &str, values: &[f32], codes: &mut [u8]) {
    let (quotient, level) = (Quotient::Over(0.0371), Level::best());
    let mut once = vec![0; 4 * values.len()];
    let bytes = match name {
        "f32" => encode_into(Number::F32, Quotient::Same, values, &mut once),
        "bf16" => encode_into(Number::Bf16, Quotient::Same, values, &mut once),
        "f16" => encode_into(Number::F16, Quotient::Same, values, &mut once),
        "int8" => encode_into(Number::Int8, quotient, values, &mut once),
        "q8_0" => {
            let bytes = values.len() / 32 * 34;
            encode_q8_0(level, values, &mut once[..bytes]);
            bytes
        }
        _ => encode_into(Number::E4m3fn, quotient, values, &mut once),
    };
    for codes in codes.chunks_mut(bytes) {
        codes.copy_from_slice(&once[..codes.len()]);
    }
}

fn encode_into(to: Number, quotient: Quotient, values: &[f32], out: &mut [u8]) -> usize {
    let bytes = to.bytes() * values.len();
    encode(
        Level::best(),
        to,
        Overflow::Saturate,
        quotient,
        values,
        &mut out[..bytes],
    );
    bytes
}

/// Writes past the caches where the CPU can, whole lines as the copies of rows do.
#[cfg(target_arch = "x86_64")]
fn stream(from: &[u8], to: &mut [u8]) {
    if Level::best() == Level::Avx512 {
        // SAFETY: this CPU has the features of the level.
        unsafe { stream_lines(from, to) }
    } else {
        to.copy_from_slice(from);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn stream_lines(from: &[u8], to: &mut [u8]) {
    use std::arch::x86_64::{__m512i, _mm512_loadu_si512, _mm512_stream_si512};
    let head = to.as_ptr().align_offset(64).min(to.len());
    to[..head].copy_from_slice(&from[..head]);
    let from = from[head..].as_chunks::<64>();
    let to = to[head..].as_chunks_mut::<64>();
    for (from, to) in from.0.iter().zip(to.0) {
        // SAFETY: 64 bytes are read.
        let bytes = unsafe { _mm512_loadu_si512(from.as_ptr().cast::<__m512i>()) };
        // SAFETY: 64 bytes are written, at a multiple of 64.
        unsafe { _mm512_stream_si512(to.as_mut_ptr().cast::<__m512i>(), bytes) };
    }
    to.1.copy_from_slice(from.1);
}

#[cfg(not(target_arch = "x86_64"))]
fn stream(from: &[u8], to: &mut [u8]) {
    to.copy_from_slice(from);
}
