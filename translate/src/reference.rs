//! Slow conversion of one row, written from the definitions: what the fast path and the device kernels
//! are compared with, bit for bit.
//!
//! It shares nothing with [`convert`](crate::convert) but the descriptions in [`format`](crate::format).
//! Codes of 8-bit floats are found by searching all of them for the nearest number.
//!
//! # Number rules
//!
//! Element → `f32` (code × scale, rounded to `f32`) → ÷ target scale, in `f32` → nearest code, ties to the
//! even code, once → saturate.
//!
//! | target             | beyond the greatest number            | ±Inf       | NaN    |
//! |--------------------|---------------------------------------|------------|--------|
//! | `e4m3fn`           | ±448, counted                         | ±448, counted   | 0x7F, counted |
//! | `e4m3fnuz`         | ±240, counted                         | ±240, counted   | 0x80, counted |
//! | `e5m2`             | ±57344, counted                       | ±57344, counted | 0x7F, counted |
//! | `int8`             | ±127, counted                         | ±127, counted   | 0, counted    |
//! | `f16`              | ±Inf, counted                         | ±Inf       | 0x7E00, counted |
//! | `bf16`             | ±Inf, counted                         | ±Inf       | 0x7FC0, counted |
//! | `f32`              | ±Inf, counted (only by ÷ scale)       | ±Inf       | 0x7FC0_0000, counted |
//!
//! Where the writer derives a scale from the row, tile or group ([`RowScale::Row`], `q8_0`,
//! `fp8_ds_mla`), the formulas are the engines' own (see Source), and amax is taken over
//! *finite* elements:
//!
//! - NaN is ignored as by `fmax`; its element is written and counted as in the table.
//! - ±Inf is ignored as well, written as the greatest code (±127, ±448; ±224 in `e4m3fnuz`, beyond which
//!   vLLM does not go) and counted. The engines would write an infinite scale, with which every
//!   element of the row reads as NaN.
//! - `int8` row scale: x × (1/s), half away from zero. ±Inf is 127 or −128, vLLM's bounds.
//! - `q8_0`: x × (1/d), half away from zero. A reciprocal that overflows (d < 2⁻¹²⁸) is taken as 0; d is
//!   stored as zero then. If the stored `f16` d overflows to Inf (amax above 127 × 65504), the whole group
//!   reads as Inf or NaN, as ggml leaves it, and its 32 elements are counted as saturated or NaN.
//!
//! # Source
//!
//! vLLM 0.32 (`triton_reshape_and_cache_flash.py`, `concat_and_cache_ds_mla`), ggml `d99724f2`
//! (`quantize_row_q8_0_ref`), FlashMLA `9241ae3e` (`tests/quant.py`).

use std::sync::LazyLock;

use half::{bf16, f16};

use crate::element::Element;
use crate::format::{Counts, Pairing, Rope, RowFormat, RowScale, ScaleRule};
use crate::format::{codes_agree, constant, movable, repairing, row_scale_max};

/// Numbers of a row: code × scale in `f32`, in the order stored.
///
/// `scale` multiplies the codes where the format's scale is [`RowScale::Row`], and is ignored elsewhere.
/// NaN comes out as NaN, its sign and payload unspecified.
///
/// # Panics
///
/// If `dim` is not a whole number of groups, or a slice has not the row's length.
pub fn decode_row(format: &RowFormat, dim: u32, codes: &[u8], scale: f32, out: &mut [f32]) {
    let row_bytes = format
        .row_bytes(dim)
        .expect("dim is a whole number of groups");
    assert_eq!(codes.len() as u64, row_bytes, "bytes of the row");
    assert_eq!(out.len(), dim as usize, "elements of the row");
    match format.element {
        Element::Q8_0 => {
            for (group, out) in codes.chunks(34).zip(out.chunks_mut(32)) {
                let d = f16::from_le_bytes([group[0], group[1]]).to_f32();
                for (q, out) in group[2..].iter().zip(out) {
                    *out = f32::from(*q as i8) * d;
                }
            }
        }
        Element::Fp8DsMla => {
            for (record, out) in codes.chunks(656).zip(out.chunks_mut(576)) {
                for tile in 0..4 {
                    let s = f32::from_le_bytes(
                        record[512 + 4 * tile..][..4].try_into().expect("4 bytes"),
                    );
                    for i in 128 * tile..128 * (tile + 1) {
                        out[i] = E4M3FN.value(record[i]) * s;
                    }
                }
                for i in 512..576 {
                    out[i] = decode(Element::Bf16, &record[528 + 2 * (i - 512)..][..2]);
                }
            }
        }
        element => {
            let width = element.group_bytes() as usize;
            for (code, out) in codes.chunks(width).zip(out) {
                let x = decode(element, code);
                *out = match format.scale {
                    RowScale::None => x,
                    RowScale::Constant(s) => x * s,
                    RowScale::Row => x * scale,
                };
            }
        }
    }
}

/// Codes of a row of numbers, and its scale where the format's is [`RowScale::Row`].
///
/// # Panics
///
/// If `values` is not a whole number of groups, `codes` has not the row's length, or no rule derives a row
/// scale for the element.
pub fn encode_row(format: &RowFormat, values: &[f32], codes: &mut [u8], scale: &mut f32) -> Counts {
    let dim = u32::try_from(values.len()).expect("a row has less than 2^32 elements");
    let row_bytes = format
        .row_bytes(dim)
        .expect("dim is a whole number of groups");
    assert_eq!(codes.len() as u64, row_bytes, "bytes of the row");
    let mut counts = Counts::default();
    match (format.element, format.scale) {
        (Element::Q8_0, _) => {
            for (group, codes) in values.chunks(32).zip(codes.chunks_mut(34)) {
                counts += encode_q8_0(group, codes);
            }
        }
        (Element::Fp8DsMla, _) => {
            for (record, codes) in values.chunks(576).zip(codes.chunks_mut(656)) {
                counts += encode_record(format.rule, record, codes);
            }
        }
        (element, RowScale::Row) => {
            let max = row_scale_max(element).expect("a rule derives the row scale");
            let s = (finite_amax(values) / max).max(1e-6);
            let inverse = 1.0 / s;
            *scale = s;
            for (x, code) in values.iter().zip(codes) {
                counts.saturated += u64::from(x.is_infinite());
                counts.nan += u64::from(x.is_nan());
                let y = x * inverse;
                *code = if element == Element::Int8 {
                    // `as` truncates towards zero and makes NaN zero.
                    (y + 0.5f32.copysign(y)).clamp(-128.0, 127.0) as i8 as u8
                } else {
                    float8(element).nearest(y.clamp(-max, max)).0
                };
            }
        }
        (element, _) => {
            let width = element.group_bytes() as usize;
            for (x, code) in values.iter().zip(codes.chunks_mut(width)) {
                counts += encode(element, *x, x / constant(format.scale), code);
            }
        }
    }
    counts
}

/// One source row to one target row.
///
/// Where element and scale are equal, bytes are carried and only permuted for RoPE. `scale` and `out_scale`
/// are the row scales of the sides that have one ([`RowScale::Row`]).
///
/// Elements of a group share a scale, so a `q8_0` row whose pairing changes is decoded, permuted and encoded.
/// The last 64 elements of an `fp8_ds_mla` record share none, and are moved as they are.
///
/// # Panics
///
/// As [`decode_row`] and [`encode_row`], or if the rotary part reaches beyond the row.
#[allow(
    clippy::too_many_arguments,
    reason = "two rows, each with its format and its scale"
)]
pub fn convert_row(
    source: &RowFormat,
    target: &RowFormat,
    dim: u32,
    codes: &[u8],
    scale: f32,
    out: &mut [u8],
    out_scale: &mut f32,
) -> Counts {
    let rope = repairing(source, target);
    if codes_agree(source, target) {
        let moves = rope.map(|rope| (rope, movable(source.element, &rope)));
        if !matches!(moves, Some((_, None))) {
            out.copy_from_slice(codes);
            if let Some((rope, Some((start, width)))) = moves {
                for j in 0..rope.dims as usize {
                    let from = start + partner(&rope, j) * width;
                    out[start + j * width..][..width].copy_from_slice(&codes[from..][..width]);
                }
            }
            if source.scale == RowScale::Row {
                *out_scale = scale;
            }
            return Counts::default();
        }
    }
    let mut values = vec![0.0; dim as usize];
    decode_row(source, dim, codes, scale, &mut values);
    let mut turned = values.clone();
    if let Some(rope) = rope {
        let start = rope.offset as usize;
        for j in 0..rope.dims as usize {
            turned[start + j] = values[start + partner(&rope, j)];
        }
    }
    encode_row(target, &turned, out, out_scale)
}

/// Which element of the rotary part goes to place `j` when its pairing is turned into the other one.
///
/// From half-split: 0, r/2, 1, r/2 + 1, … From interleaved: 0, 2, 4, …, then 1, 3, 5, …
fn partner(rope: &Rope, j: usize) -> usize {
    let half = rope.dims as usize / 2;
    match rope.pairing {
        Pairing::Half => j / 2 + j % 2 * half,
        Pairing::Interleaved => j % half * 2 + j / half,
    }
}

/// An 8-bit float by its definition.
struct Float8 {
    /// The number of each code.
    values: [f64; 256],
    /// Code of the greatest finite number.
    greatest: u8,
    nan: u8,
    negative_zero: bool,
}

impl Float8 {
    fn new(man_bits: u32, bias: i32, greatest: u8, nan: u8, infinity: Option<u8>) -> Self {
        let negative_zero = nan != 0x80;
        let values = std::array::from_fn(|code| {
            let magnitude = (code & 0x7F) as u8;
            let sign = if code >= 0x80 { -1.0 } else { 1.0 };
            let exponent = i32::from(magnitude >> man_bits);
            let fraction = f64::from(magnitude & ((1 << man_bits) - 1)) / f64::from(1 << man_bits);
            if code == 0x80 && !negative_zero {
                f64::NAN
            } else if Some(magnitude) == infinity {
                sign * f64::INFINITY
            } else if magnitude > greatest {
                f64::NAN
            } else if exponent == 0 {
                sign * fraction * 2f64.powi(1 - bias)
            } else {
                sign * (1.0 + fraction) * 2f64.powi(exponent - bias)
            }
        });
        Self {
            values,
            greatest,
            nan,
            negative_zero,
        }
    }

    fn value(&self, code: u8) -> f32 {
        self.values[usize::from(code)] as f32
    }

    /// The nearest code, and what it cost.
    ///
    /// Rounding knows one number beyond the greatest, a step further up; what is nearest to that one
    /// overflows.
    fn nearest(&self, y: f32) -> (u8, Counts) {
        if y.is_nan() {
            return (
                self.nan,
                Counts {
                    nan: 1,
                    ..Counts::default()
                },
            );
        }
        let greatest = self.values[usize::from(self.greatest)];
        let beyond = greatest + (greatest - self.values[usize::from(self.greatest - 1)]);
        // What is further up is nearest to `beyond` as well, and would lose its distance to rounding.
        let target = f64::from(y.abs()).min(beyond);
        let mut best = (f64::INFINITY, 0);
        for code in 0..=self.greatest + 1 {
            let value = if code > self.greatest {
                beyond
            } else {
                self.values[usize::from(code)]
            };
            let distance = (target - value).abs();
            if distance < best.0 || (distance == best.0 && code % 2 == 0) {
                best = (distance, code);
            }
        }
        let saturated = best.1 > self.greatest;
        let magnitude = if saturated { self.greatest } else { best.1 };
        let signed = y.is_sign_negative() && (magnitude != 0 || self.negative_zero);
        let code = magnitude | if signed { 0x80 } else { 0 };
        (
            code,
            Counts {
                saturated: u64::from(saturated),
                ..Counts::default()
            },
        )
    }
}

static E4M3FN: LazyLock<Float8> = LazyLock::new(|| Float8::new(3, 7, 0x7E, 0x7F, None));
static E4M3FNUZ: LazyLock<Float8> = LazyLock::new(|| Float8::new(3, 8, 0x7F, 0x80, None));
static E5M2: LazyLock<Float8> = LazyLock::new(|| Float8::new(2, 15, 0x7B, 0x7F, Some(0x7C)));

fn float8(element: Element) -> &'static Float8 {
    match element {
        Element::E4m3fn => &E4M3FN,
        Element::E4m3fnuz => &E4M3FNUZ,
        Element::E5m2 => &E5M2,
        other => unreachable!("{other} is no 8-bit float"),
    }
}

/// The number of one code of an element that stands alone.
fn decode(element: Element, code: &[u8]) -> f32 {
    match element {
        Element::F32 => f32::from_le_bytes(code.try_into().expect("4 bytes")),
        Element::F16 => f16::from_le_bytes(code.try_into().expect("2 bytes")).to_f32(),
        Element::Bf16 => bf16::from_le_bytes(code.try_into().expect("2 bytes")).to_f32(),
        Element::Int8 => f32::from(code[0] as i8),
        float8_element => float8(float8_element).value(code[0]),
    }
}

/// The code of `y`, which is `x` divided by a constant scale.
fn encode(element: Element, x: f32, y: f32, code: &mut [u8]) -> Counts {
    let nan = u64::from(y.is_nan());
    // Of the formats that have Inf.
    let became_infinite = |code_is_infinite: bool| Counts {
        saturated: u64::from(x.is_finite() && code_is_infinite),
        nan,
    };
    match element {
        Element::F32 => {
            let y = if y.is_nan() {
                f32::from_bits(0x7FC0_0000)
            } else {
                y
            };
            code.copy_from_slice(&y.to_le_bytes());
            became_infinite(y.is_infinite())
        }
        Element::F16 => {
            let h = if y.is_nan() {
                f16::from_bits(0x7E00)
            } else {
                f16::from_f32(y)
            };
            code.copy_from_slice(&h.to_le_bytes());
            became_infinite(h.is_infinite())
        }
        Element::Bf16 => {
            let h = if y.is_nan() {
                bf16::from_bits(0x7FC0)
            } else {
                bf16::from_f32(y)
            };
            code.copy_from_slice(&h.to_le_bytes());
            became_infinite(h.is_infinite())
        }
        Element::Int8 => {
            let rounded = y.round_ties_even();
            // `as` makes NaN zero.
            code[0] = rounded.clamp(-127.0, 127.0) as i8 as u8;
            Counts {
                saturated: u64::from(rounded.abs() > 127.0),
                nan,
            }
        }
        float8_element => {
            let (nearest, counts) = float8(float8_element).nearest(y);
            code[0] = nearest;
            counts
        }
    }
}

/// The greatest magnitude among finite numbers, 0 if there are none.
fn finite_amax(values: &[f32]) -> f32 {
    values
        .iter()
        .filter(|x| x.is_finite())
        .fold(0.0, |amax, x| x.abs().max(amax))
}

fn encode_q8_0(group: &[f32], codes: &mut [u8]) -> Counts {
    let d = finite_amax(group) / 127.0;
    let inverse = if d > 0.0 && (1.0 / d).is_finite() {
        1.0 / d
    } else {
        0.0
    };
    let stored = f16::from_f32(d);
    codes[..2].copy_from_slice(&stored.to_le_bytes());
    let mut counts = Counts::default();
    for (x, code) in group.iter().zip(&mut codes[2..]) {
        let q = if x.is_nan() {
            counts.nan += 1;
            0.0
        } else {
            counts.saturated += u64::from(x.is_infinite() || stored.is_infinite());
            if x.is_infinite() {
                127f32.copysign(*x)
            } else {
                (x * inverse).round()
            }
        };
        *code = q as i8 as u8;
    }
    counts
}

fn encode_record(rule: ScaleRule, record: &[f32], codes: &mut [u8]) -> Counts {
    let mut counts = Counts::default();
    for tile in 0..4 {
        let values = &record[128 * tile..128 * (tile + 1)];
        let over = finite_amax(values) / 448.0;
        let scale = match rule {
            ScaleRule::AmaxOver448 => over.max(f32::MIN_POSITIVE),
            ScaleRule::Pow2 => {
                // 2^-13 is the least power of two that is not below 1e-4.
                let mut power = 2f32.powi(-13);
                while power < over {
                    power *= 2.0;
                }
                power
            }
        };
        for (x, code) in values.iter().zip(&mut codes[128 * tile..]) {
            let (nearest, cost) = E4M3FN.nearest(x / scale);
            *code = nearest;
            counts += cost;
        }
        codes[512 + 4 * tile..][..4].copy_from_slice(&scale.to_le_bytes());
    }
    for (x, code) in record[512..].iter().zip(codes[528..].chunks_mut(2)) {
        counts += encode(Element::Bf16, *x, *x, code);
    }
    counts
}
