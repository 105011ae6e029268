//! Throughput, to be read beside that of a copy on the same machine:
//!
//! ```text
//! cargo test --release -p moai-translate --test formats speed -- --ignored --nocapture
//! ```

use std::hint::black_box;
use std::time::Instant;

use moai_translate::convert::Conversion;
use moai_translate::element::Element;
use moai_translate::format::{Pairing, RowFormat, RowScale};

use crate::{Random, f32_rows, format, plain, with_rope};

/// Elements of one pass: 32 MiB of bf16, beyond the caches of one core.
const ELEMENTS: usize = 16 << 20;
const PASSES: usize = 7;

#[test]
#[ignore = "a measurement, not a check; wants a release build and a quiet machine"]
fn speed_of_conversions() {
    let mut random = Random(20_260_823);
    let values: Vec<f32> = (0..ELEMENTS).map(|_| random.signed() * 4.0).collect();
    let values = f32_rows(&values).codes;
    let scaled = |element| format(element, RowScale::Constant(0.0371));
    let (half, interleaved) = (Pairing::Half, Pairing::Interleaved);
    let bf16 = plain(Element::Bf16);
    let fnuz_doubled = format(Element::E4m3fnuz, RowScale::Constant(2.0 * 0.0371));
    let cases: [(&str, RowFormat, RowFormat, u32); 15] = [
        ("copy", bf16, bf16, 128),
        ("÷ 1", bf16, plain(Element::E4m3fn), 128),
        ("÷ 0.0371", bf16, scaled(Element::E4m3fn), 128),
        ("÷ 0.0371", bf16, scaled(Element::E4m3fnuz), 128),
        ("÷ 0.0371", bf16, scaled(Element::E5m2), 128),
        ("÷ 0.0371", bf16, scaled(Element::Int8), 128),
        ("scale doubled", scaled(Element::E4m3fn), fnuz_doubled, 128),
        (
            "scale 1",
            plain(Element::E4m3fn),
            plain(Element::E4m3fnuz),
            128,
        ),
        ("", bf16, plain(Element::Q8_0), 128),
        ("", plain(Element::Q8_0), bf16, 128),
        ("row scale", bf16, format(Element::Int8, RowScale::Row), 128),
        ("", bf16, plain(Element::Fp8DsMla), 576),
        ("× 0.0371", scaled(Element::E4m3fn), bf16, 128),
        ("", bf16, plain(Element::F16), 128),
        (
            "pairing",
            with_rope(bf16, half, 0, 128),
            with_rope(bf16, interleaved, 0, 128),
            128,
        ),
    ];
    let mut copy = 0.0;
    println!("GB/s are bytes read and written; best of {PASSES} passes over {ELEMENTS} elements");
    for (what, source, target, dim) in cases {
        let conversion = Conversion::new(source, target, dim).expect("a defined conversion");
        let rows = ELEMENTS / dim as usize;
        let make = Conversion::new(
            RowFormat {
                rope: source.rope,
                ..plain(Element::F32)
            },
            source,
            dim,
        )
        .expect("a defined conversion");
        let mut src = vec![0; rows * conversion.source_row_bytes()];
        make.run(
            rows,
            &values[..rows * dim as usize * 4],
            &[],
            &mut src,
            &mut [],
        );
        let mut dst = vec![0xFF; rows * conversion.target_row_bytes()];
        let scales = if target.scale == RowScale::Row {
            4 * rows
        } else {
            0
        };
        let mut dst_scales = vec![0xFF; scales];
        let mut best = f64::INFINITY;
        for _ in 0..PASSES {
            let start = Instant::now();
            black_box(conversion.run(rows, black_box(&src), &[], &mut dst, &mut dst_scales));
            best = best.min(start.elapsed().as_secs_f64());
        }
        let rate = (src.len() + dst.len()) as f64 / best / 1e9;
        if copy == 0.0 {
            copy = rate;
        }
        let (source, target) = (source.element.name(), target.element.name());
        let share = 100.0 * rate / copy;
        println!(
            "{source:>10} → {target:<10} {what:<14} {rate:6.2} GB/s, {share:3.0} % of the copy"
        );
    }
}

/// What a call costs beside the bytes, for callers that have few rows in one piece.
#[test]
#[ignore = "a measurement, not a check; wants a release build and a quiet machine"]
fn speed_of_short_calls() {
    let target = format(Element::E4m3fn, RowScale::Constant(0.0371));
    let conversion =
        Conversion::new(plain(Element::Bf16), target, 128).expect("a defined conversion");
    for rows in [1, 2, 8, 16, 128] {
        let src = vec![0x3F; rows * conversion.source_row_bytes()];
        let mut dst = vec![0; rows * conversion.target_row_bytes()];
        let calls = 1_000_000 / rows;
        let start = Instant::now();
        for _ in 0..calls {
            black_box(conversion.run(rows, black_box(&src), &[], black_box(&mut dst), &mut []));
        }
        let ns = start.elapsed().as_secs_f64() * 1e9 / calls as f64;
        let rate = (src.len() + dst.len()) as f64 / ns;
        println!("bf16 → e4m3fn, {rows:3} rows of 128 in a call: {ns:7.0} ns, {rate:5.2} GB/s");
    }
}
