//! One number at a time: the arithmetic inside the loops of [`number`](super::number).
//!
//! Everything here is branch-free and `#[inline(always)]`, so that the compiler vectorizes the loops around
//! it. NaN, and what the magnitude of a number alone cannot tell, is left to [`Target::settle`], which the
//! loops call for the few blocks that have such numbers.

use super::number::Overflow;

/// All bits of an `f32` but its sign.
pub(crate) const MAGNITUDE: u32 = 0x7FFF_FFFF;
/// Bits of +Inf.
pub(crate) const INFINITY: u32 = 0x7F80_0000;
/// From here on there are only whole numbers, so that adding rounds to one, ties to even.
pub(crate) const TWO_POW_23: f32 = 8_388_608.0;

/// An element that stands alone, as what is read.
pub(crate) trait Source<const WIDTH: usize> {
    /// The number of a code.
    fn number(code: [u8; WIDTH]) -> f32;
}

/// An element that stands alone, as what is written.
pub(crate) trait Target<const WIDTH: usize>: Copy {
    /// The greatest [`measure`](Self::measure) of a number that is neither lost nor NaN.
    const HARMLESS: u32;

    /// Grows with the distance from the middle of the range; NaN is beyond everything.
    #[inline(always)]
    fn measure(y: f32) -> u32 {
        y.to_bits() & MAGNITUDE
    }

    /// The code of the number nearest to `y`, ties to even, if `y` is harmless.
    fn code(self, y: f32) -> [u8; WIDTH];

    /// The code of `y`, which came from `x` by division, and what was lost.
    fn settle(self, x: f32, y: f32) -> ([u8; WIDTH], Loss);
}

/// What encoding a number cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// No more than rounding.
    Nothing,
    /// The magnitude.
    Saturated,
    /// It was none.
    Nan,
}

/// A float narrower than `f32` in both exponent and mantissa: sign, exponent, mantissa, from the highest bit.
pub(crate) trait SmallFloat: Copy {
    /// Mantissa bits.
    const MAN: u32;
    /// Of the exponent.
    const BIAS: u32;
    /// The highest bit.
    const SIGN: u32;
    /// Code of the greatest finite number.
    const GREATEST: u32;
    /// Code of NaN that is written; 0 in formats without NaN.
    const NAN: u32;
    /// Code of +Inf, if there is one.
    const INF: Option<u32> = None;
    /// False in `fnuz` formats, where that code is NaN.
    const NEGATIVE_ZERO: bool = true;
    /// Whether codes beyond the greatest are NaN or Inf. Formats without them always saturate.
    const SPECIALS: bool = true;

    /// Added to an exponent of this format it is that of an `f32`; shifted to its place.
    const REBIAS: u32 = (127 - Self::BIAS) << 23;
    /// Bits by which an `f32` mantissa is longer.
    const SHIFT: u32 = 23 - Self::MAN;
    /// Bits, as `f32`, of the least normal number.
    const LEAST_NORMAL: u32 = Self::REBIAS + (1 << 23);
    /// Bits, as `f32`, of half a step beyond the greatest number.
    const OVERFLOW: u32 = (Self::GREATEST << Self::SHIFT) + (1 << (Self::SHIFT - 1)) + Self::REBIAS;
    /// Bits of the greatest magnitude that rounds to a finite one: half a step more, if the tie is to even.
    const LAST_IN_RANGE: u32 = Self::OVERFLOW - (Self::GREATEST & 1);

    /// Added to the bits of a number's exponent they are those of a power of two whose last mantissa bit is
    /// worth one step of this format, and of what [`encode`](Self::encode) has to have in its low bits.
    ///
    /// The count of steps has the implied bit in it, and the exponent begins at 1: together one exponent
    /// too much, beside the difference of the biases. That is even, so it does not disturb ties.
    const STEP: u32 =
        (Self::SHIFT << 23) + (((128 - Self::BIAS) << Self::MAN).wrapping_neg() & 0xFFFF);

    /// The number of a code.
    ///
    /// Without compare and select, which cost more than arithmetic: below the least normal number the
    /// normal part stays there and the subnormal part falls from it to zero; above, the other way round.
    #[inline(always)]
    fn decode(code: u32) -> f32 {
        const IMPLIED: u32 = 1 << 23;
        let magnitude = code & (Self::SIGN - 1);
        let shifted = magnitude << Self::SHIFT;
        let normal = f32::from_bits(shifted.max(IMPLIED) + Self::REBIAS);
        let two_least = f32::from_bits(Self::LEAST_NORMAL + IMPLIED);
        let subnormal = f32::from_bits(shifted.min(IMPLIED) + Self::LEAST_NORMAL) - two_least;
        let finite = (normal + subnormal).to_bits();
        // All exponent bits: Inf or NaN by the mantissa, which is not zero where there is no Inf.
        let special = if magnitude > Self::GREATEST {
            INFINITY
        } else {
            0
        };
        let no_zero = !Self::NEGATIVE_ZERO && code == Self::SIGN;
        let nan = if no_zero { INFINITY | 1 << 22 } else { 0 };
        let sign = (code & Self::SIGN) << (31 - Self::SIGN.trailing_zeros());
        f32::from_bits(finite | special | nan | sign)
    }

    /// The code of the number nearest to `y`, ties to even, where magnitudes above `limit` (bits of an `f32`
    /// not above twice the greatest number) count as `limit`; anything for NaN.
    ///
    /// A power of two is added whose last mantissa bit is worth one step of this format at `y`, so that
    /// the sum rounds to steps and has their count in its low bits. Steps do not shrink below the
    /// least normal number, which is all that subnormals need. What is left to add is the exponent.
    #[inline(always)]
    fn encode(y: f32, limit: u32) -> u32 {
        let bits = y.to_bits();
        let magnitude = (bits & MAGNITUDE).min(limit);
        let exponent = (magnitude & INFINITY).max(Self::LEAST_NORMAL);
        let step = f32::from_bits(exponent + Self::STEP);
        let steps = (f32::from_bits(magnitude) + step).to_bits();
        let code = steps.wrapping_add(exponent >> Self::SHIFT) & (2 * Self::SIGN - 1);
        let sign = bits >> (31 - Self::SIGN.trailing_zeros()) & Self::SIGN;
        if Self::NEGATIVE_ZERO || code != 0 {
            code | sign
        } else {
            0
        }
    }
}

/// A [`SmallFloat`] as target, with what becomes of numbers beyond its range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Small<F> {
    /// Bits of the number that greater ones are taken for.
    limit: u32,
    /// What ±Inf becomes: a code with the sign of the number put on it, but for NaN under
    /// [`Overflow::SaturateFinite`].
    infinity: u32,
    float: std::marker::PhantomData<F>,
}

impl<F: SmallFloat> Small<F> {
    #[inline(always)]
    pub(crate) fn new(_float: F, overflow: Overflow) -> Self {
        let beyond = F::GREATEST + 1;
        let (limit, infinity) = match overflow {
            _ if !F::SPECIALS => (F::GREATEST, F::GREATEST),
            Overflow::Saturate => (F::GREATEST, F::GREATEST),
            Overflow::NoSaturate => (beyond, beyond),
            Overflow::SaturateFinite => (F::GREATEST, F::INF.unwrap_or(F::NAN)),
        };
        Self {
            limit: (limit << F::SHIFT) + F::REBIAS,
            infinity,
            float: std::marker::PhantomData,
        }
    }

    #[inline(always)]
    fn settled(self, x: f32, y: f32) -> (u32, Loss) {
        let magnitude = y.to_bits() & MAGNITUDE;
        let sign = y.to_bits() >> (31 - F::SIGN.trailing_zeros()) & F::SIGN;
        if magnitude > INFINITY {
            return (F::NAN, Loss::Nan);
        }
        if magnitude <= F::LAST_IN_RANGE {
            return (F::encode(y, self.limit), Loss::Nothing);
        }
        if magnitude < INFINITY {
            return (F::encode(y, self.limit), Loss::Saturated);
        }
        if Some(self.infinity) == F::INF {
            let kept = x.is_infinite();
            let loss = if kept { Loss::Nothing } else { Loss::Saturated };
            return (self.infinity | sign, loss);
        }
        // NaN made of Inf has a sign only where it is the code beyond the greatest (CUDA's NOSAT).
        let unsigned =
            self.infinity == F::NAN && self.limit == (F::GREATEST << F::SHIFT) + F::REBIAS;
        let code = self.infinity | if unsigned { 0 } else { sign };
        (code, Loss::Saturated)
    }
}

macro_rules! small_float {
    ($name:ident, $bytes:literal, $uint:ty, $($rest:tt)*) => {
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct $name;

        impl SmallFloat for $name {
            $($rest)*
        }

        impl Source<$bytes> for $name {
            #[inline(always)]
            fn number(code: [u8; $bytes]) -> f32 {
                Self::decode(u32::from(<$uint>::from_le_bytes(code)) & (2 * Self::SIGN - 1))
            }
        }

        impl Target<$bytes> for Small<$name> {
            const HARMLESS: u32 = $name::LAST_IN_RANGE;

            #[inline(always)]
            fn code(self, y: f32) -> [u8; $bytes] {
                ($name::encode(y, self.limit) as $uint).to_le_bytes()
            }

            #[inline(always)]
            fn settle(self, x: f32, y: f32) -> ([u8; $bytes], Loss) {
                let (code, loss) = self.settled(x, y);
                ((code as $uint).to_le_bytes(), loss)
            }
        }
    };
}

small_float! { F16, 2, u16,
    const MAN: u32 = 10;
    const BIAS: u32 = 15;
    const SIGN: u32 = 0x8000;
    const GREATEST: u32 = 0x7BFF;
    const NAN: u32 = 0x7E00;
    const INF: Option<u32> = Some(0x7C00);
}
small_float! { E4m3fn, 1, u8,
    const MAN: u32 = 3;
    const BIAS: u32 = 7;
    const SIGN: u32 = 0x80;
    const GREATEST: u32 = 0x7E;
    const NAN: u32 = 0x7F;
}
small_float! { E4m3fnuz, 1, u8,
    const MAN: u32 = 3;
    const BIAS: u32 = 8;
    const SIGN: u32 = 0x80;
    const GREATEST: u32 = 0x7F;
    const NAN: u32 = 0x80;
    const NEGATIVE_ZERO: bool = false;
}
small_float! { E5m2, 1, u8,
    const MAN: u32 = 2;
    const BIAS: u32 = 15;
    const SIGN: u32 = 0x80;
    const GREATEST: u32 = 0x7B;
    const NAN: u32 = 0x7F;
    const INF: Option<u32> = Some(0x7C);
}
small_float! { E5m2fnuz, 1, u8,
    const MAN: u32 = 2;
    const BIAS: u32 = 16;
    const SIGN: u32 = 0x80;
    const GREATEST: u32 = 0x7F;
    const NAN: u32 = 0x80;
    const NEGATIVE_ZERO: bool = false;
}
small_float! { E2m1, 1, u8,
    const MAN: u32 = 1;
    const BIAS: u32 = 1;
    const SIGN: u32 = 0x8;
    const GREATEST: u32 = 0x7;
    const NAN: u32 = 0;
    const SPECIALS: bool = false;
}
small_float! { E2m3, 1, u8,
    const MAN: u32 = 3;
    const BIAS: u32 = 1;
    const SIGN: u32 = 0x20;
    const GREATEST: u32 = 0x1F;
    const NAN: u32 = 0;
    const SPECIALS: bool = false;
}
small_float! { E3m2, 1, u8,
    const MAN: u32 = 2;
    const BIAS: u32 = 3;
    const SIGN: u32 = 0x20;
    const GREATEST: u32 = 0x1F;
    const NAN: u32 = 0;
    const SPECIALS: bool = false;
}

/// The four bytes of an `f32`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct F32;

impl Source<4> for F32 {
    #[inline(always)]
    fn number(code: [u8; 4]) -> f32 {
        f32::from_le_bytes(code)
    }
}

impl Target<4> for F32 {
    const HARMLESS: u32 = INFINITY - 1;

    #[inline(always)]
    fn code(self, y: f32) -> [u8; 4] {
        y.to_le_bytes()
    }

    #[inline(always)]
    fn settle(self, x: f32, y: f32) -> ([u8; 4], Loss) {
        if y.is_nan() {
            (0x7FC0_0000u32.to_le_bytes(), Loss::Nan)
        } else if x.is_finite() && y.is_infinite() {
            (y.to_le_bytes(), Loss::Saturated)
        } else {
            (y.to_le_bytes(), Loss::Nothing)
        }
    }
}

/// The upper half of an `f32`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bf16;

impl Source<2> for Bf16 {
    #[inline(always)]
    fn number(code: [u8; 2]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(code)) << 16)
    }
}

impl Target<2> for Bf16 {
    /// What is above rounds to Inf.
    const HARMLESS: u32 = 0x7F7F_7FFF;

    #[inline(always)]
    fn code(self, y: f32) -> [u8; 2] {
        let bits = y.to_bits();
        let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
        ((rounded >> 16) as u16).to_le_bytes()
    }

    #[inline(always)]
    fn settle(self, x: f32, y: f32) -> ([u8; 2], Loss) {
        if y.is_nan() {
            return (0x7FC0u16.to_le_bytes(), Loss::Nan);
        }
        let lost = x.is_finite() && Self::measure(y) > Self::HARMLESS;
        let loss = if lost { Loss::Saturated } else { Loss::Nothing };
        (self.code(y), loss)
    }
}

/// Whole numbers from `LEAST` to `MOST`, in the low `BITS` bits of a byte.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Integer<const LEAST: i32, const MOST: i32, const BITS: u32>;

/// Not −128, which no engine writes under a constant scale.
pub(crate) type Int8 = Integer<-127, 127, 8>;
pub(crate) type Uint8 = Integer<0, 255, 8>;
pub(crate) type Int4 = Integer<-8, 7, 4>;
pub(crate) type Uint4 = Integer<0, 15, 4>;
pub(crate) type Uint5 = Integer<0, 31, 5>;
pub(crate) type Uint3 = Integer<0, 7, 3>;
pub(crate) type Uint2 = Integer<0, 3, 2>;

impl<const LEAST: i32, const MOST: i32, const BITS: u32> Integer<LEAST, MOST, BITS> {
    /// Zero if numbers are symmetric.
    const MIDDLE: f32 = (LEAST + MOST) as f32 / 2.0;
}

impl<const LEAST: i32, const MOST: i32, const BITS: u32> Source<1> for Integer<LEAST, MOST, BITS> {
    #[inline(always)]
    fn number([code]: [u8; 1]) -> f32 {
        let unused = 32 - BITS;
        let shifted = u32::from(code) << unused;
        if LEAST < 0 {
            (shifted as i32 >> unused) as f32
        } else {
            (shifted >> unused) as i32 as f32
        }
    }
}

impl<const LEAST: i32, const MOST: i32, const BITS: u32> Target<1> for Integer<LEAST, MOST, BITS> {
    /// Half a step beyond both ends is taken for harm: whether it is depends on which end is even.
    const HARMLESS: u32 = ((MOST - LEAST + 1) as f32 / 2.0).to_bits() - 1;

    #[inline(always)]
    fn measure(y: f32) -> u32 {
        (y - Self::MIDDLE).to_bits() & MAGNITUDE
    }

    #[inline(always)]
    fn code(self, y: f32) -> [u8; 1] {
        // Half as much again as 2^23 has room for the sign; the low bits are two's complement.
        let sum = y.clamp(LEAST as f32, MOST as f32) + 1.5 * TWO_POW_23;
        [(sum.to_bits() & ((1 << BITS) - 1)) as u8]
    }

    #[inline(always)]
    fn settle(self, _x: f32, y: f32) -> ([u8; 1], Loss) {
        if y.is_nan() {
            return ([0], Loss::Nan);
        }
        let rounded = y.round_ties_even();
        let lost = rounded < LEAST as f32 || rounded > MOST as f32;
        let loss = if lost { Loss::Saturated } else { Loss::Nothing };
        (self.code(y), loss)
    }
}

/// Whole numbers half away from zero, −128 to 127, as vLLM's row scales round: trunc(clamp(y ± 0.5)).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Int8Away;

impl Target<1> for Int8Away {
    const HARMLESS: u32 = 127.5f32.to_bits() - 1;

    #[inline(always)]
    fn code(self, y: f32) -> [u8; 1] {
        let negative = y.to_bits() >> 31;
        let limit = 127.0 + negative as i32 as f32;
        let raised = y.abs() + 0.5;
        let raised = if raised > limit { limit } else { raised };
        let sum = raised + TWO_POW_23;
        let went_up = sum - TWO_POW_23 > raised;
        let magnitude = (sum.to_bits() & 0xFF).wrapping_sub(u32::from(went_up));
        [with_sign(magnitude, y)]
    }

    #[inline(always)]
    fn settle(self, _x: f32, y: f32) -> ([u8; 1], Loss) {
        if y.is_nan() {
            return ([0], Loss::Nan);
        }
        let lost = Self::measure(y) > Self::HARMLESS;
        let loss = if lost { Loss::Saturated } else { Loss::Nothing };
        (self.code(y), loss)
    }
}

/// Two's complement of a magnitude with the sign of `y`.
#[inline(always)]
pub(crate) fn with_sign(magnitude: u32, y: f32) -> u8 {
    let mask = ((y.to_bits() as i32) >> 31) as u32;
    ((magnitude ^ mask).wrapping_sub(mask)) as u8
}
