//! Codes that stand alone, turned into numbers and back.
//!
//! The loops have no branches, so that the compiler vectorizes them for each [`Level`]. What is rare (NaN, Inf,
//! overflow) is only noticed, by the greatest magnitude of a block, and then looked at element by element.
//!
//! Results and counts are equal at every level, bit for bit. Multiplication and addition are never fused, and
//! division is division: see [`cheapest_quotient`] for when a product gives the same codes.

use super::level::{Level, at_each_level};
use super::scalar::{
    Bf16, E2m1, E2m3, E3m2, E4m3fn, E4m3fnuz, E5m2, E5m2fnuz, F16, F32, INFINITY, Int4, Int8, Loss,
    MAGNITUDE, Small, Source, Target, Uint2, Uint3, Uint4, Uint5, Uint8,
};
use crate::format::Counts;
pub(crate) use crate::number::{Number, Overflow};

/// Division by a constant scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Quotient {
    /// By 1.
    Same,
    /// As a product.
    Times(f32),
    /// As what IEEE says it is.
    Over(f32),
}

impl Quotient {
    /// The cheapest form that has the quotient's bits for every number: a product if `scale` is a power of two.
    pub(crate) fn exact(scale: f32) -> Self {
        let is_power_of_two = scale.is_normal() && scale.to_bits() & 0x7F_FFFF == 0;
        match scale {
            1.0 => Self::Same,
            _ if is_power_of_two => Self::Times(1.0 / scale),
            _ => Self::Over(scale),
        }
    }

    /// The quotient of one number.
    #[cfg(test)]
    pub(crate) fn of(self, x: f32) -> f32 {
        match self {
            Self::Same => x,
            Self::Times(reciprocal) => x * reciprocal,
            Self::Over(scale) => x / scale,
        }
    }
}

/// The cheapest form of dividing numbers of `from` × `multiply` by `scale` that gives the quotients' codes.
///
/// Codes of 16 bits or less are few enough to try them all, which takes some 50 µs; those of `f32`
/// are divided unless the scale is a power of two.
pub(crate) fn cheapest_quotient(from: Number, multiply: f32, to: Number, scale: f32) -> Quotient {
    let exact = Quotient::exact(scale);
    let Quotient::Over(_) = exact else {
        return exact;
    };
    let cheap = Quotient::Times(1.0 / scale);
    let codes = match from {
        Number::F32 => return exact,
        Number::F16 | Number::Bf16 => 1 << 16,
        _ => 1 << 8,
    };
    let level = Level::best();
    let mut source = [0; 2 * BLOCK];
    let mut values = [0.0; BLOCK];
    let mut answers = [[0; 4 * BLOCK]; 2];
    for start in (0..codes).step_by(BLOCK) {
        let count = BLOCK.min(codes - start);
        let source = &mut source[..count * from.bytes()];
        match from.bytes() {
            1 => (start..)
                .zip(source.iter_mut())
                .for_each(|(i, code)| *code = i as u8),
            _ => {
                for (i, code) in (start..).zip(source.as_chunks_mut::<2>().0) {
                    *code = (i as u16).to_le_bytes();
                }
            }
        }
        let values = &mut values[..count];
        decode(level, from, source, multiply, values);
        let bytes = count * to.bytes();
        let counts = [exact, cheap].map(|quotient| {
            let codes = &mut answers[usize::from(quotient == cheap)][..bytes];
            encode(level, to, Overflow::NoSaturate, quotient, values, codes)
        });
        if counts[0] != counts[1] || answers[0][..bytes] != answers[1][..bytes] {
            return exact;
        }
    }
    cheap
}

/// Numbers at a time between a decode and an encode loop, and in which lost ones are looked for: 2 KiB of L1.
pub(crate) const BLOCK: usize = 512;

/// Turns codes into numbers in blocks and those into codes; nothing else is ever kept.
///
/// # Panics
///
/// If the slices hold not the same number of codes.
#[allow(
    clippy::too_many_arguments,
    reason = "two numbers, each with its scale"
)]
pub(crate) fn convert(
    level: Level,
    from: Number,
    multiply: f32,
    to: Number,
    overflow: Overflow,
    quotient: Quotient,
    codes: &[u8],
    out: &mut [u8],
) -> Counts {
    assert_eq!(
        codes.len() / from.bytes(),
        out.len() / to.bytes(),
        "codes on both sides"
    );
    let mut values = [0.0; BLOCK];
    let mut counts = Counts::default();
    let blocks = codes.chunks(BLOCK * from.bytes());
    for (codes, out) in blocks.zip(out.chunks_mut(BLOCK * to.bytes())) {
        let values = &mut values[..codes.len() / from.bytes()];
        decode(level, from, codes, multiply, values);
        counts += encode(level, to, overflow, quotient, values, out);
    }
    counts
}

at_each_level! {
    /// Numbers of codes, each code × `multiply` in `f32`.
    ///
    /// # Panics
    ///
    /// If the slices hold not the same number of codes.
    pub(crate) fn decode(from: Number, codes: &[u8], multiply: f32, values: &mut [f32]) -> () {
        assert_eq!(codes.len(), values.len() * from.bytes(), "bytes of {} codes", values.len());
        match from {
            Number::F32 => decode_each::<F32, 4>(codes, multiply, values),
            Number::F16 => decode_each::<F16, 2>(codes, multiply, values),
            Number::Bf16 => decode_each::<Bf16, 2>(codes, multiply, values),
            Number::E4m3fn => decode_each::<E4m3fn, 1>(codes, multiply, values),
            Number::E4m3fnuz => decode_each::<E4m3fnuz, 1>(codes, multiply, values),
            Number::E5m2 => decode_each::<E5m2, 1>(codes, multiply, values),
            Number::E5m2fnuz => decode_each::<E5m2fnuz, 1>(codes, multiply, values),
            Number::E2m1 => decode_each::<E2m1, 1>(codes, multiply, values),
            Number::E2m3 => decode_each::<E2m3, 1>(codes, multiply, values),
            Number::E3m2 => decode_each::<E3m2, 1>(codes, multiply, values),
            Number::Int8 => decode_each::<Int8, 1>(codes, multiply, values),
            Number::Uint8 => decode_each::<Uint8, 1>(codes, multiply, values),
            Number::Int4 => decode_each::<Int4, 1>(codes, multiply, values),
            Number::Uint4 => decode_each::<Uint4, 1>(codes, multiply, values),
            Number::Uint5 => decode_each::<Uint5, 1>(codes, multiply, values),
            Number::Uint3 => decode_each::<Uint3, 1>(codes, multiply, values),
            Number::Uint2 => decode_each::<Uint2, 1>(codes, multiply, values),
        }
    }

    /// Codes nearest to quotients, ties to the even code, and what was lost.
    ///
    /// # Panics
    ///
    /// If the slices hold not the same number of codes.
    pub(crate) fn encode(
        to: Number,
        overflow: Overflow,
        quotient: Quotient,
        values: &[f32],
        codes: &mut [u8],
    ) -> Counts {
        assert_eq!(codes.len(), values.len() * to.bytes(), "bytes of {} codes", values.len());
        match to {
            Number::F32 => encode_quotient(F32, quotient, values, codes),
            Number::F16 => {
                encode_quotient(Small::new(F16, Overflow::NoSaturate), quotient, values, codes)
            }
            Number::Bf16 => encode_quotient(Bf16, quotient, values, codes),
            Number::E4m3fn => encode_quotient(Small::new(E4m3fn, overflow), quotient, values, codes),
            Number::E4m3fnuz => {
                encode_quotient(Small::new(E4m3fnuz, overflow), quotient, values, codes)
            }
            Number::E5m2 => encode_quotient(Small::new(E5m2, overflow), quotient, values, codes),
            Number::E5m2fnuz => {
                encode_quotient(Small::new(E5m2fnuz, overflow), quotient, values, codes)
            }
            Number::E2m1 => encode_quotient(Small::new(E2m1, overflow), quotient, values, codes),
            Number::E2m3 => encode_quotient(Small::new(E2m3, overflow), quotient, values, codes),
            Number::E3m2 => encode_quotient(Small::new(E3m2, overflow), quotient, values, codes),
            Number::Int8 => encode_quotient(Int8 {}, quotient, values, codes),
            Number::Uint8 => encode_quotient(Uint8 {}, quotient, values, codes),
            Number::Int4 => encode_quotient(Int4 {}, quotient, values, codes),
            Number::Uint4 => encode_quotient(Uint4 {}, quotient, values, codes),
            Number::Uint5 => encode_quotient(Uint5 {}, quotient, values, codes),
            Number::Uint3 => encode_quotient(Uint3 {}, quotient, values, codes),
            Number::Uint2 => encode_quotient(Uint2 {}, quotient, values, codes),
        }
    }

    /// The greatest finite magnitude (0 if there is none), and whether any element is Inf or NaN.
    pub(crate) fn finite_amax(values: &[f32]) -> (f32, bool) {
        greatest_finite(values)
    }

    /// The least and the greatest finite number (+Inf and −Inf if there is none), and whether any element is
    /// Inf or NaN. Of zeros of both signs, −0 is the lesser.
    pub(crate) fn finite_range(values: &[f32]) -> (f32, f32, bool) {
        // Signed integers in the order of the floats: negative ones have their magnitude bits flipped.
        let ordered = |x: f32| {
            let bits = x.to_bits() as i32;
            bits ^ ((bits >> 31) as u32 >> 1) as i32
        };
        let float = |key: i32| f32::from_bits((key ^ ((key >> 31) as u32 >> 1) as i32) as u32);
        let (mut least, mut greatest) = (ordered(f32::INFINITY), ordered(f32::NEG_INFINITY));
        let mut special = false;
        for x in values {
            let is_finite = x.to_bits() & MAGNITUDE < INFINITY;
            special |= !is_finite;
            least = least.min(if is_finite { ordered(*x) } else { i32::MAX });
            greatest = greatest.max(if is_finite { ordered(*x) } else { i32::MIN });
        }
        (float(least), float(greatest), special)
    }

    /// Multiplies every number.
    pub(crate) fn multiply(values: &mut [f32], by: f32) -> () {
        for x in values {
            *x *= by;
        }
    }

    /// Puts the low nibbles of two bytes into one, the even one low.
    ///
    /// # Panics
    ///
    /// If there are not twice as many codes as bytes.
    pub(crate) fn pack_nibbles(codes: &[u8], packed: &mut [u8]) -> () {
        assert_eq!(codes.len(), 2 * packed.len(), "codes of {} bytes", packed.len());
        pack(codes, packed);
    }

    /// Takes bytes apart into two codes each, the low nibble first.
    ///
    /// # Panics
    ///
    /// If there are not twice as many codes as bytes.
    pub(crate) fn unpack_nibbles(packed: &[u8], codes: &mut [u8]) -> () {
        assert_eq!(codes.len(), 2 * packed.len(), "codes of {} bytes", packed.len());
        unpack(packed, codes);
    }
}

#[inline(always)]
pub(super) fn decode_each<S: Source<WIDTH>, const WIDTH: usize>(
    codes: &[u8],
    multiply: f32,
    values: &mut [f32],
) {
    let codes = codes.as_chunks::<WIDTH>().0;
    if multiply == 1.0 {
        for (code, x) in codes.iter().zip(values) {
            *x = S::number(*code);
        }
    } else {
        for (code, x) in codes.iter().zip(values) {
            *x = S::number(*code) * multiply;
        }
    }
}

#[inline(always)]
fn encode_quotient<T: Target<WIDTH>, const WIDTH: usize>(
    target: T,
    quotient: Quotient,
    values: &[f32],
    codes: &mut [u8],
) -> Counts {
    match quotient {
        Quotient::Same => encode_each(target, values, codes, |x| x),
        Quotient::Times(reciprocal) => encode_each(target, values, codes, |x| x * reciprocal),
        Quotient::Over(scale) => encode_each(target, values, codes, |x| x / scale),
    }
}

#[inline(always)]
pub(super) fn encode_each<T: Target<WIDTH>, const WIDTH: usize>(
    target: T,
    values: &[f32],
    codes: &mut [u8],
    divide: impl Fn(f32) -> f32,
) -> Counts {
    let codes = codes.as_chunks_mut::<WIDTH>().0;
    let mut counts = Counts::default();
    for (values, codes) in values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)) {
        let mut worst = 0;
        for (x, code) in values.iter().zip(&mut *codes) {
            let y = divide(*x);
            worst = worst.max(T::measure(y));
            *code = target.code(y);
        }
        if worst > T::HARMLESS {
            for (x, code) in values.iter().zip(codes) {
                let loss;
                (*code, loss) = target.settle(*x, divide(*x));
                counts.saturated += u64::from(loss == Loss::Saturated);
                counts.nan += u64::from(loss == Loss::Nan);
            }
        }
    }
    counts
}

/// See [`finite_amax`].
#[inline(always)]
pub(super) fn greatest_finite(values: &[f32]) -> (f32, bool) {
    // Magnitudes compare as their bits do, and integer max may be taken in any order.
    let mut worst = 0;
    for x in values {
        worst = worst.max(x.to_bits() & MAGNITUDE);
    }
    let special = worst >= INFINITY;
    if special {
        worst = 0;
        for x in values {
            let magnitude = x.to_bits() & MAGNITUDE;
            worst = worst.max(if magnitude < INFINITY { magnitude } else { 0 });
        }
    }
    (f32::from_bits(worst), special)
}

/// See [`pack_nibbles`].
#[inline(always)]
pub(super) fn pack(codes: &[u8], packed: &mut [u8]) {
    for (pair, byte) in codes.as_chunks::<2>().0.iter().zip(packed) {
        *byte = pair[0] & 0xF | pair[1] << 4;
    }
}

/// See [`unpack_nibbles`].
#[inline(always)]
pub(super) fn unpack(packed: &[u8], codes: &mut [u8]) {
    for (byte, pair) in packed.iter().zip(codes.as_chunks_mut::<2>().0) {
        *pair = [byte & 0xF, byte >> 4];
    }
}

#[cfg(test)]
mod tests;
