//! Single numbers by their definition: codes of small floats are found by searching all of them.

use std::sync::LazyLock;

use half::{bf16, f16};

use crate::format::Counts;
use crate::number::{Number, Overflow};

/// A float of at most 8 bits by its definition.
struct Small {
    /// The number of each code.
    values: Vec<f64>,
    /// Code of the greatest finite number.
    greatest: u8,
    /// The sign's bit.
    sign: u8,
    /// Code of NaN, if there is one.
    nan: Option<u8>,
    infinity: Option<u8>,
    negative_zero: bool,
}

/// 2^e for exponents of small floats, by its bits: the precision of `powi` is left open.
fn power(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}

/// Which codes are no finite numbers.
enum Specials {
    /// None.
    Finite,
    /// The greatest magnitude is NaN (`e4m3fn`).
    OneNan,
    /// The code of −0 is NaN (`fnuz`).
    NegativeZeroIsNan,
    /// As IEEE (`e5m2`).
    Ieee,
}

impl Small {
    fn new(exponent_bits: u32, mantissa_bits: u32, bias: i32, specials: &Specials) -> Self {
        let sign = 1u8 << (exponent_bits + mantissa_bits);
        let top = sign - 1;
        let infinity =
            matches!(specials, Specials::Ieee).then(|| top & !((1 << mantissa_bits) - 1));
        let greatest = match specials {
            Specials::Finite | Specials::NegativeZeroIsNan => top,
            Specials::OneNan => top - 1,
            Specials::Ieee => (top & !((1 << mantissa_bits) - 1)) - 1,
        };
        let negative_zero = !matches!(specials, Specials::NegativeZeroIsNan);
        let values = (0..u32::from(sign) * 2)
            .map(|code| {
                let magnitude = (code as u8) & top;
                let negative = code as u8 & sign != 0;
                let exponent = i32::from(magnitude >> mantissa_bits);
                let fraction = f64::from(magnitude & ((1 << mantissa_bits) - 1))
                    / f64::from(1u32 << mantissa_bits);
                let value = if negative && magnitude == 0 && !negative_zero {
                    f64::NAN
                } else if Some(magnitude) == infinity {
                    f64::INFINITY
                } else if magnitude > greatest {
                    f64::NAN
                } else if exponent == 0 {
                    fraction * power(1 - bias)
                } else {
                    (1.0 + fraction) * power(exponent - bias)
                };
                if negative { -value } else { value }
            })
            .collect();
        let nan = match specials {
            Specials::Finite => None,
            Specials::OneNan | Specials::Ieee => Some(top),
            Specials::NegativeZeroIsNan => Some(sign),
        };
        Self {
            values,
            greatest,
            sign,
            nan,
            infinity,
            negative_zero,
        }
    }

    /// The nearest code, and what it cost.
    ///
    /// Rounding knows one number beyond the greatest, a step further up; what is nearest to that one overflows.
    fn nearest(&self, y: f32, overflow: Overflow) -> (u8, Counts) {
        if y.is_nan() {
            return (
                self.nan.unwrap_or(0),
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
        let counts = Counts {
            saturated: u64::from(saturated),
            ..Counts::default()
        };
        let sign = if y.is_sign_negative() { self.sign } else { 0 };
        if !saturated {
            let signed = best.1 != 0 || self.negative_zero;
            return (if signed { best.1 | sign } else { 0 }, counts);
        }
        let becomes_special = match overflow {
            Overflow::Saturate => false,
            Overflow::NoSaturate => true,
            Overflow::SaturateFinite => y.is_infinite(),
        };
        let code = match (becomes_special, self.infinity, self.nan) {
            // Inf that stays Inf is not lost.
            (true, Some(infinity), _) if y.is_infinite() => {
                return (infinity | sign, Counts::default());
            }
            (true, Some(infinity), _) => infinity | sign,
            // NaN in place of −0 has no sign.
            (true, None, Some(nan)) if nan == self.sign => nan,
            (true, None, Some(nan)) if overflow == Overflow::NoSaturate => nan | sign,
            (true, None, Some(nan)) => nan,
            _ => self.greatest | sign,
        };
        (code, counts)
    }
}

static E4M3FN: LazyLock<Small> = LazyLock::new(|| Small::new(4, 3, 7, &Specials::OneNan));
static E4M3FNUZ: LazyLock<Small> =
    LazyLock::new(|| Small::new(4, 3, 8, &Specials::NegativeZeroIsNan));
static E5M2: LazyLock<Small> = LazyLock::new(|| Small::new(5, 2, 15, &Specials::Ieee));
static E5M2FNUZ: LazyLock<Small> =
    LazyLock::new(|| Small::new(5, 2, 16, &Specials::NegativeZeroIsNan));
static E2M1: LazyLock<Small> = LazyLock::new(|| Small::new(2, 1, 1, &Specials::Finite));
static E2M3: LazyLock<Small> = LazyLock::new(|| Small::new(2, 3, 1, &Specials::Finite));
static E3M2: LazyLock<Small> = LazyLock::new(|| Small::new(3, 2, 3, &Specials::Finite));

fn small(number: Number) -> Option<&'static Small> {
    Some(match number {
        Number::E4m3fn => &E4M3FN,
        Number::E4m3fnuz => &E4M3FNUZ,
        Number::E5m2 => &E5M2,
        Number::E5m2fnuz => &E5M2FNUZ,
        Number::E2m1 => &E2M1,
        Number::E2m3 => &E2M3,
        Number::E3m2 => &E3M2,
        _ => return None,
    })
}

/// The number of one code, little-endian in [`Number::bytes`] bytes.
pub(super) fn value(number: Number, code: &[u8]) -> f32 {
    match number {
        Number::F32 => f32::from_le_bytes(code.try_into().expect("4 bytes")),
        Number::F16 => f16::from_le_bytes(code.try_into().expect("2 bytes")).to_f32(),
        Number::Bf16 => bf16::from_le_bytes(code.try_into().expect("2 bytes")).to_f32(),
        Number::Int8 => f32::from(code[0] as i8),
        Number::Int4 => f32::from((code[0] << 4) as i8 >> 4),
        Number::Uint8 | Number::Uint5 | Number::Uint4 | Number::Uint3 | Number::Uint2 => {
            f32::from(code[0])
        }
        small_float => {
            let small = small(small_float).expect("every other number is a small float");
            small.values[usize::from(code[0]) & (small.values.len() - 1)] as f32
        }
    }
}

/// The code of `y`, which is `x` divided by a scale.
pub(super) fn encode(
    number: Number,
    overflow: Overflow,
    x: f32,
    y: f32,
    code: &mut [u8],
) -> Counts {
    let nan = u64::from(y.is_nan());
    // Of the formats that have Inf.
    let became_infinite = |code_is_infinite: bool| Counts {
        saturated: u64::from(x.is_finite() && code_is_infinite),
        nan,
    };
    let mut integer = |least: f32, most: f32| {
        let rounded = y.round_ties_even();
        // `as` makes NaN zero.
        let whole = rounded.clamp(least, most) as i32;
        code[0] = whole as u8 & ((1u32 << number.bits()) - 1) as u8;
        Counts {
            saturated: u64::from(rounded < least || rounded > most),
            nan,
        }
    };
    match number {
        Number::Int8 => integer(-127.0, 127.0),
        Number::Int4 => integer(-8.0, 7.0),
        Number::Uint8 | Number::Uint5 | Number::Uint4 | Number::Uint3 | Number::Uint2 => {
            integer(0.0, number.greatest())
        }
        Number::F32 => {
            let y = if y.is_nan() {
                f32::from_bits(0x7FC0_0000)
            } else {
                y
            };
            code.copy_from_slice(&y.to_le_bytes());
            became_infinite(y.is_infinite())
        }
        Number::F16 => {
            let h = if y.is_nan() {
                f16::from_bits(0x7E00)
            } else {
                f16::from_f32(y)
            };
            code.copy_from_slice(&h.to_le_bytes());
            became_infinite(h.is_infinite())
        }
        Number::Bf16 => {
            let h = if y.is_nan() {
                bf16::from_bits(0x7FC0)
            } else {
                bf16::from_f32(y)
            };
            code.copy_from_slice(&h.to_le_bytes());
            became_infinite(h.is_infinite())
        }
        small_float => {
            let small = small(small_float).expect("every other number is a small float");
            let (nearest, mut counts) = small.nearest(y, overflow);
            code[0] = nearest;
            // Inf that division made of a number is lost, whatever becomes of it.
            counts.saturated |= u64::from(x.is_finite() && y.is_infinite());
            counts
        }
    }
}
