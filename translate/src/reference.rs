//! Slow conversion of one row, written from the definitions: what the fast path and the device kernels
//! are compared with, bit for bit.
//!
//! It shares the descriptions in [`scheme`](crate::scheme) with [`convert`](crate::convert), and the formulas by
//! which writers pick scales; codes are taken apart, read, found and put together one by one. Codes of small floats
//! are found by searching all of them for the nearest number.
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
//! | `e5m2fnuz`         | ±57344, counted                       | ±57344, counted | 0x80, counted |
//! | `e2m1` `e2m3` `e3m2` | the greatest, counted               | the greatest, counted | 0, counted |
//! | integers           | the greatest (`int8` ±127), counted   | the same, counted | 0, counted |
//! | `f16`              | ±Inf, counted                         | ±Inf       | 0x7E00, counted |
//! | `bf16`             | ±Inf, counted                         | ±Inf       | 0x7FC0, counted |
//! | `f32`              | ±Inf, counted (only by ÷ scale)       | ±Inf       | 0x7FC0_0000, counted |
//!
//! [`Overflow`] has two other rules for the 8-bit floats.
//!
//! Where the writer derives scales ([`RowScale::Row`](crate::format::RowScale::Row), blocks), the formulas are the engines' own
//! ([`Rule`](crate::scheme::Rule)), and amax, min and max are taken over *finite* elements:
//!
//! - NaN is ignored as by `fmax`; its element is written and counted as in the table, as 0 would be where there is a
//!   zero or a minimum.
//! - ±Inf is ignored as well, written as the greatest code in its direction and counted. The engines would write an
//!   infinite scale, with which every element of the row reads as NaN.
//! - Elements that a rule clips are counted as saturated: OCP's floor, and vLLM's 4 bits for a row that does not
//!   straddle zero. ggml's `q4_0` and `q5_0` may miss by a whole step, which is not.
//! - If a stored scale or zero overflows to Inf (`f16`, amax above 127 × 65504 in `q8_0`), its whole tile
//!   reads as Inf or NaN, as the engine leaves it, and its elements are counted as saturated or NaN.
//!
//! # Kept scales
//!
//! A scale that is derived anew from numbers that are on a grid already may put them beside the new grid. So where
//! the target can take over the scale of the source, it does, tile by tile, whatever its rule would derive: if
//!
//! - source and target code the tile as q·s ([`Form::Scaled`], [`RowScale::Row`](crate::format::RowScale::Row)
//!   included), and it lies within one tile of the source;
//! - no rotation or RoPE pairing changes in between;
//! - there is a power of two f, 2⁻⁸ to 2⁸, by which every finite number that a source code can be becomes a number that a
//!   target code can be (the f nearest to 1, the greater of two);
//! - s is positive and finite, and s·g / (f·g′) with the constants g and g′ of both sides (1 if there are none) is
//!   exactly a number that the target can store.
//!
//! The target then has that scale, and for each code q the code of q·f. Nothing is rounded, and nothing is counted but
//! NaN, and Inf where the target has none. Other tiles of the row are derived as above.

pub(crate) mod keep;
mod number;

use crate::format::{Carriage, carriage, constant};
use crate::format::{Counts, Pairing, Rope, RowFormat};
use crate::number::{Number, Overflow};
use crate::packing;
use crate::rule::{Quantize, Stats};
use crate::scheme::{Block, Code, Coding, Form, Packing, Place, Scales, Segment};
use keep::Coded;

/// Numbers of a row: code × scale in `f32`, in the order stored, rotated if the format is.
///
/// `params` is what the row keeps apart from its codes ([`RowFormat::params_bytes`]).
/// NaN comes out as NaN, its sign and payload unspecified.
///
/// # Panics
///
/// If `dim` is not a whole number of groups, or a slice has not the row's length.
pub fn decode_row(format: &RowFormat, dim: u32, codes: &[u8], params: &[u8], out: &mut [f32]) {
    let row_bytes = format
        .row_bytes(dim)
        .expect("dim is a whole number of groups");
    assert_eq!(codes.len() as u64, row_bytes, "bytes of the row");
    assert_eq!(
        params.len(),
        format.params_bytes(dim) as usize,
        "params of the row"
    );
    assert_eq!(out.len(), dim as usize, "elements of the row");
    match (format.block(dim), &format.element.scheme().coding) {
        (Some(block), _) => {
            let by = constant(format.scale);
            let (elements, bytes) = (
                block.elements_in(dim) as usize,
                block.bytes_in(dim) as usize,
            );
            for (b, out) in out.chunks_mut(elements).enumerate() {
                let each = block.param_bytes as usize;
                decode_block(
                    &block,
                    by,
                    &codes[b * bytes..][..bytes],
                    &params[b * each..][..each],
                    out,
                );
            }
        }
        (None, Coding::Custom(codec)) => codec.decode(codes, params, out),
        (None, _) => {
            let (number, packing) = format
                .element
                .number()
                .expect("an element that stands alone");
            for (x, code) in out
                .iter_mut()
                .zip(taken_apart(number, packing, codes, dim as usize))
            {
                *x = number::value(number, &code[..number.bytes()]) * constant(format.scale);
            }
        }
    }
}

/// Codes of a row of numbers (rotated, if the format is), and its params.
///
/// # Panics
///
/// If `values` is not a whole number of groups, a slice has not the row's length, or the element is read only.
pub fn encode_row(
    format: &RowFormat,
    values: &[f32],
    codes: &mut [u8],
    params: &mut [u8],
) -> Counts {
    encode_keeping(format, values, None, codes, params)
}

/// A source and its elements, which tiles may be able to keep.
type Keepable<'a> = Option<(&'a RowFormat, &'a [Option<Coded>])>;

fn encode_keeping(
    format: &RowFormat,
    values: &[f32],
    keepable: Keepable<'_>,
    codes: &mut [u8],
    params: &mut [u8],
) -> Counts {
    let dim = u32::try_from(values.len()).expect("a row has less than 2^32 elements");
    let row_bytes = format
        .row_bytes(dim)
        .expect("dim is a whole number of groups");
    assert_eq!(codes.len() as u64, row_bytes, "bytes of the row");
    assert_eq!(
        params.len(),
        format.params_bytes(dim) as usize,
        "params of the row"
    );
    let mut counts = Counts::default();
    match (format.block(dim), &format.element.scheme().coding) {
        (Some(block), _) => {
            let (elements, bytes) = (
                block.elements_in(dim) as usize,
                block.bytes_in(dim) as usize,
            );
            let each = block.param_bytes as usize;
            params.fill(0);
            for (b, values) in values.chunks(elements).enumerate() {
                let (codes, params) = (
                    &mut codes[b * bytes..][..bytes],
                    &mut params[b * each..][..each],
                );
                let keepable =
                    keepable.map(|(source, row)| (source, &row[b * elements..][..elements]));
                counts += encode_block(&block, format, values, keepable, codes, params);
            }
        }
        (None, Coding::Custom(codec)) => counts += codec.encode(format.rule, values, codes, params),
        (None, _) => {
            let (number, packing) = format
                .element
                .number()
                .expect("an element that stands alone");
            let mut apart = vec![[0; 4]; values.len()];
            for (x, code) in values.iter().zip(&mut apart) {
                let y = x / constant(format.scale);
                counts +=
                    number::encode(number, format.overflow, *x, y, &mut code[..number.bytes()]);
            }
            put_together(number, packing, &apart, codes);
        }
    }
    counts
}

/// One source row to one target row.
///
/// Where codes mean the same on both sides, bytes are carried and only permuted for RoPE.
///
/// # Panics
///
/// As [`decode_row`] and [`encode_row`], or if the rotary part reaches beyond the row.
pub fn convert_row(
    source: &RowFormat,
    target: &RowFormat,
    dim: u32,
    codes: &[u8],
    params: &[u8],
    out: &mut [u8],
    out_params: &mut [u8],
) -> Counts {
    match carriage(source, target, dim) {
        Carriage::Same => {
            out.copy_from_slice(codes);
            out_params.copy_from_slice(params);
            return Counts::default();
        }
        Carriage::Moved {
            rope,
            number,
            packing,
            start_byte,
            elements,
            first,
        } => {
            out.copy_from_slice(codes);
            out_params.copy_from_slice(params);
            let bytes = start_byte..start_byte + packing.bytes(number, elements as u32) as usize;
            let apart = taken_apart(number, packing, &codes[bytes.clone()], elements);
            let mut moved = apart.clone();
            for j in 0..rope.dims as usize {
                moved[first + j] = apart[first + partner(&rope, j)];
            }
            put_together(number, packing, &moved, &mut out[bytes]);
            return Counts::default();
        }
        Carriage::Numbers => {}
    }
    let mut values = vec![0.0; dim as usize];
    decode_row(source, dim, codes, params, &mut values);
    let steps = crate::format::turns(source, target, dim);
    if let Some(rotation) = steps.undo {
        rotation.undo(&mut values);
    }
    let mut turned = values.clone();
    if let Some(rope) = steps.rope {
        let start = rope.offset as usize;
        for j in 0..rope.dims as usize {
            turned[start + j] = values[start + partner(&rope, j)];
        }
    }
    if let Some(rotation) = steps.apply {
        rotation.apply(&mut turned);
    }
    let coded = keep::coded_row(source, target, dim, codes, params);
    encode_keeping(target, &turned, Some((source, &coded)), out, out_params)
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

/// Codes one by one, in the first bytes of each array.
fn taken_apart(number: Number, packing: Packing, codes: &[u8], n: usize) -> Vec<[u8; 4]> {
    let mut apart = vec![[0; 4]; n];
    if packing == Packing::Bytes {
        let width = number.bytes();
        for (code, bytes) in apart.iter_mut().zip(codes.chunks(width)) {
            code[..width].copy_from_slice(bytes);
        }
    } else {
        let mut bytes = vec![0; n];
        packing::unpack(packing, number, codes, &mut bytes);
        for (code, byte) in apart.iter_mut().zip(bytes) {
            code[0] = byte;
        }
    }
    apart
}

fn put_together(number: Number, packing: Packing, apart: &[[u8; 4]], codes: &mut [u8]) {
    if packing == Packing::Bytes {
        let width = number.bytes();
        for (code, bytes) in apart.iter().zip(codes.chunks_mut(width)) {
            bytes.copy_from_slice(&code[..width]);
        }
    } else {
        let bytes: Vec<u8> = apart.iter().map(|code| code[0]).collect();
        packing::pack(packing, number, &bytes, codes);
    }
}

/// Calls `each` with every tile of a segment: its elements within the segment, and where its scale lies.
fn tiles(
    segment: &Segment,
    elements: usize,
    mut each: impl FnMut(std::ops::Range<usize>, Option<(&Scales, usize)>),
) {
    let Some(scales) = &segment.scales else {
        return each(0..elements, None);
    };
    let tile = if scales.tile == 0 {
        elements
    } else {
        scales.tile as usize
    };
    let n = elements / tile;
    for t in 0..n {
        let (Place::Block(first) | Place::Params(first)) = scales.place;
        let at = first as usize + scales.position(t, n) * scales.bytes() as usize;
        each(t * tile..(t + 1) * tile, Some((scales, at)));
    }
}

fn code_value(code: Code, bytes: [u8; 4]) -> f32 {
    let stored = |number: Number| number::value(number, &bytes[..number.bytes()]);
    match code {
        Code::Number(number) => stored(number),
        Code::Less(number, less) => stored(number) - less,
        Code::Times(number, times) => stored(number) * times,
        Code::Table(list) => list[usize::from(bytes[0])],
    }
}

fn decode_block(block: &Block, constant: f32, codes: &[u8], params: &[u8], out: &mut [f32]) {
    let mut first = 0;
    for segment in block.segments {
        let n = if segment.elements == 0 {
            out.len()
        } else {
            segment.elements as usize
        };
        let number = segment.code.number();
        let bytes = segment.packing.bytes(number, n as u32) as usize;
        let apart = taken_apart(
            number,
            segment.packing,
            &codes[segment.at as usize..][..bytes],
            n,
        );
        let out = &mut out[first..first + n];
        tiles(segment, n, |tile, scale| {
            for i in tile {
                let q = code_value(segment.code, apart[i]);
                let Some((scales, at)) = scale else {
                    out[i] = q;
                    continue;
                };
                let (source, with_zero) = match scales.place {
                    Place::Block(_) => (codes, scales.form != Form::Scaled),
                    Place::Params(_) => (params, scales.form != Form::Scaled),
                };
                let (s, z) = scales
                    .store
                    .read(&source[at..][..scales.bytes() as usize], with_zero);
                let half = |x: f32| half::f16::from_f32(x).to_f32();
                out[i] = match scales.form {
                    Form::Scaled => q * s,
                    Form::Point => (q - z) * s,
                    Form::Offset => q * s + z,
                    Form::OffsetF16 => half(half(q * s) + z),
                } * constant;
            }
        });
        first += n;
    }
}

fn encode_block(
    block: &Block,
    format: &RowFormat,
    values: &[f32],
    keepable: Keepable<'_>,
    codes: &mut [u8],
    params: &mut [u8],
) -> Counts {
    let mut counts = Counts::default();
    let mut first = 0;
    for segment in block.segments {
        let n = if segment.elements == 0 {
            values.len()
        } else {
            segment.elements as usize
        };
        let number = segment.code.number();
        let values = &values[first..first + n];
        let mut apart = vec![[0; 4]; n];
        tiles(segment, n, |tile, scale| {
            let (values, apart) = (&values[tile.clone()], &mut apart[tile.clone()]);
            let Some((scales, at)) = scale else {
                for (x, code) in values.iter().zip(apart) {
                    counts += number::encode(
                        number,
                        Overflow::Saturate,
                        *x,
                        *x,
                        &mut code[..number.bytes()],
                    );
                }
                return;
            };
            let target = match scales.place {
                Place::Block(_) => &mut codes[at..][..scales.bytes() as usize],
                Place::Params(_) => &mut params[at..][..scales.bytes() as usize],
            };
            let with_zero = scales.form != Form::Scaled;
            let kept = keepable.filter(|_| !with_zero).and_then(|(source, row)| {
                let elements = &row[first + tile.start..first + tile.end];
                keep::kept(source, format, segment.code, scales.store, elements)
            });
            if let Some(kept) = kept {
                scales.store.write(kept.scale, 0.0, false, target);
                for (code, kept) in apart.iter_mut().zip(kept.codes) {
                    code[0] = kept;
                }
                counts += kept.counts;
                return;
            }
            let rule = scales.rules[format.rule.min(scales.rules.len() - 1)].1;
            let derived = rule.derive(number, constant(format.scale), &stats(values));
            scales
                .store
                .write(derived.scale, derived.zero, with_zero, target);
            let lost = scales.store.overflows(derived.scale, derived.zero);
            let mut made = vec![0; values.len()];
            counts += quantized_tile(segment.code, derived.quantize, lost, values, &mut made);
            for (code, made) in apart.iter_mut().zip(made) {
                code[0] = made;
            }
        });
        let at = segment.at as usize;
        let bytes = segment.packing.bytes(number, n as u32) as usize;
        put_together(number, segment.packing, &apart, &mut codes[at..][..bytes]);
        first += n;
    }
    counts
}

/// What rules need to know of a tile.
pub(crate) fn stats(values: &[f32]) -> Stats {
    let mut stats = Stats::default();
    let mut any = false;
    for x in values.iter().copied().filter(|x| x.is_finite()) {
        if !any {
            (stats.min, stats.max, stats.peak) = (x, x, x);
        }
        any = true;
        if x.abs() > stats.amax {
            (stats.amax, stats.peak) = (x.abs(), x);
        }
        // −0 and 0 are the same number, and the first of equals stays.
        stats.min = if x < stats.min { x } else { stats.min };
        stats.max = if x > stats.max { x } else { stats.max };
    }
    stats
}

/// Codes of a tile whose scale is known; `lost` if what was stored of it is Inf.
pub(crate) fn quantized_tile(
    code: Code,
    quantize: Quantize,
    lost: bool,
    values: &[f32],
    made: &mut [u8],
) -> Counts {
    let mut counts = Counts::default();
    for (x, made) in values.iter().zip(made) {
        let (one, mut cost) = quantized(code, quantize, *x);
        if lost && cost == Counts::default() {
            cost.saturated = 1;
        }
        *made = one;
        counts += cost;
    }
    counts
}

/// The code of an element whose tile's scale is known, and what it cost.
fn quantized(code: Code, quantize: Quantize, x: f32) -> (u8, Counts) {
    let number = code.number();
    let lost = Counts {
        saturated: u64::from(x.is_infinite()),
        nan: u64::from(x.is_nan()),
    };
    let nearest = |y: f32| {
        let mut made = [0];
        let counts = number::encode(number, Overflow::Saturate, x, y, &mut made);
        (made[0], counts)
    };
    if x.is_nan() {
        // Where code 0 is not the number 0, the code that 0 has.
        return match quantize {
            Quantize::Affine { most, .. } => (quantize.affine(0.0).clamp(0.0, most) as u8, lost),
            _ => nearest(x),
        };
    }
    match quantize {
        Quantize::Nearest { by, clamp } => {
            let y = by.of(x).clamp(-clamp, clamp);
            let y = match code {
                Code::Times(_, times) => y / times,
                _ => y,
            };
            let (made, mut counts) = nearest(y);
            counts.saturated |= lost.saturated;
            (made, counts)
        }
        Quantize::AwayBySum(inverse) => {
            let y = x * inverse;
            // `as` truncates towards zero.
            (
                (y + 0.5f32.copysign(y)).clamp(-128.0, 127.0) as i8 as u8,
                lost,
            )
        }
        Quantize::Away(inverse) => {
            let y = if x.is_infinite() { x } else { x * inverse };
            (y.round().clamp(-127.0, 127.0) as i8 as u8, lost)
        }
        Quantize::Affine {
            by, most, clips, ..
        } => {
            if x.is_infinite() {
                let falls = matches!(by, crate::rule::By::Times(r) if r < 0.0);
                return (if (x > 0.0) != falls { most as u8 } else { 0 }, lost);
            }
            let whole = quantize.affine(x);
            let clipped = clips && !(0.0..=most).contains(&whole);
            // As `as` has it, NaN is 0.
            (
                whole.clamp(0.0, most) as u8,
                Counts {
                    saturated: u64::from(clipped),
                    ..lost
                },
            )
        }
        Quantize::FirstNearest(scale) => {
            let Code::Table(list) = code else {
                unreachable!("only lists are searched")
            };
            // As for other elements, what is nearest to a step beyond the greatest is lost.
            let beyond = list[7] + (list[7] - list[6]) / 2.0;
            // Under a scale of zero everything is zero, which is underflow.
            let clipped = x.is_infinite() || scale > 0.0 && x.abs() >= beyond * scale;
            let x = if clipped {
                (beyond * scale).min(f32::MAX).copysign(x)
            } else {
                x
            };
            let mut best = 0;
            for (i, entry) in list.iter().enumerate() {
                let distance = |entry: f32| (entry * scale - x).abs();
                if distance(*entry) < distance(list[best]) {
                    best = i;
                }
            }
            (
                best as u8,
                Counts {
                    saturated: u64::from(clipped),
                    ..lost
                },
            )
        }
        Quantize::E2m1Away(scale) => {
            // Halves away from zero: the least magnitude whose upper border is above |y|.
            let y = (x / scale).abs();
            let borders = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
            let magnitude = borders.iter().filter(|border| y >= **border).count() as u8;
            (if x < 0.0 { magnitude | 8 } else { magnitude }, lost)
        }
        // The greatest code of Inf, which stands for 0 as well.
        Quantize::Zero => nearest(if x.is_infinite() { x } else { 0.0 }),
    }
}
