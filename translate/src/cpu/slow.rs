//! Definitions that are too slow to be wrong, for the tests of the loops.

use super::number::{Number, Overflow};
use super::scalar::Loss;

/// A float format by its definition, searched for the nearest number.
pub(super) struct Definition {
    /// The number of each code, NaN where it has none.
    pub(super) values: Vec<f64>,
    /// Code of the greatest finite number.
    pub(super) greatest: usize,
    sign: usize,
    nan: u8,
    infinity: Option<usize>,
    specials: bool,
}

impl Definition {
    pub(super) fn of(number: Number) -> Self {
        // (mantissa bits, bias, greatest, NaN, Inf, sign, codes beyond the greatest are special)
        let (man, bias, greatest, nan, infinity, sign, specials) = match number {
            Number::E4m3fn => (3, 7, 0x7E, 0x7F, None, 0x80, true),
            Number::E4m3fnuz => (3, 8, 0x7F, 0x80, None, 0x80, true),
            Number::E5m2 => (2, 15, 0x7B, 0x7F, Some(0x7C), 0x80, true),
            Number::E5m2fnuz => (2, 16, 0x7F, 0x80, None, 0x80, true),
            Number::E2m1 => (1, 1, 0x7, 0, None, 0x8, false),
            Number::E2m3 => (3, 1, 0x1F, 0, None, 0x20, false),
            Number::E3m2 => (2, 3, 0x1F, 0, None, 0x20, false),
            other => panic!("{other:?} is no small float"),
        };
        let values = (0..2 * sign)
            .map(|code| {
                let (magnitude, negative) = (code % sign, code >= sign);
                let exponent = (magnitude >> man) as i32;
                let fraction = (magnitude % (1 << man)) as f64 / f64::from(1 << man);
                let value = if nan == 0x80 && code == 0x80 {
                    f64::NAN
                } else if Some(magnitude) == infinity {
                    f64::INFINITY
                } else if magnitude > greatest {
                    f64::NAN
                } else if exponent == 0 {
                    fraction * f64::from_bits(((1 - bias + 1023) as u64) << 52)
                } else {
                    (1.0 + fraction) * f64::from_bits(((exponent - bias + 1023) as u64) << 52)
                };
                if negative { -value } else { value }
            })
            .collect();
        Self {
            values,
            greatest,
            sign,
            nan,
            infinity,
            specials,
        }
    }

    pub(super) fn encode(&self, overflow: Overflow, x: f32, y: f32) -> (u8, Loss) {
        if y.is_nan() {
            return (self.nan, Loss::Nan);
        }
        let greatest = self.values[self.greatest];
        let beyond = greatest + (greatest - self.values[self.greatest - 1]);
        let target = f64::from(y.abs()).min(beyond);
        let mut best = (f64::INFINITY, 0);
        for code in 0..=self.greatest + 1 {
            let value = if code > self.greatest {
                beyond
            } else {
                self.values[code]
            };
            let distance = (target - value).abs();
            if distance < best.0 || distance == best.0 && code % 2 == 0 {
                best = (distance, code);
            }
        }
        let signed = |code: usize| (code | if y.is_sign_negative() { self.sign } else { 0 }) as u8;
        let has_negative_zero = self.nan != 0x80;
        if best.1 <= self.greatest {
            let zero = best.1 == 0 && !has_negative_zero;
            return (if zero { 0 } else { signed(best.1) }, Loss::Nothing);
        }
        let saturates = match overflow {
            _ if !self.specials => true,
            Overflow::Saturate => true,
            Overflow::NoSaturate => false,
            Overflow::SaturateFinite => y.is_finite(),
        };
        if saturates {
            (signed(self.greatest), Loss::Saturated)
        } else if let Some(infinity) = self.infinity {
            let kept = x.is_infinite();
            (
                signed(infinity),
                if kept { Loss::Nothing } else { Loss::Saturated },
            )
        } else if has_negative_zero && overflow == Overflow::NoSaturate {
            (signed(usize::from(self.nan)), Loss::Saturated)
        } else {
            (self.nan, Loss::Saturated)
        }
    }
}

pub(super) const FLOATS: [Number; 7] = [
    Number::E4m3fn,
    Number::E4m3fnuz,
    Number::E5m2,
    Number::E5m2fnuz,
    Number::E2m1,
    Number::E2m3,
    Number::E3m2,
];

/// The number of one code, by definition.
pub(super) fn number_of(number: Number, code: &[u8]) -> f32 {
    match number {
        Number::F32 => f32::from_le_bytes([code[0], code[1], code[2], code[3]]),
        Number::F16 => half::f16::from_le_bytes([code[0], code[1]]).to_f32(),
        Number::Bf16 => half::bf16::from_le_bytes([code[0], code[1]]).to_f32(),
        Number::Int8 => f32::from(code[0] as i8),
        Number::Uint8 => f32::from(code[0]),
        Number::Int4 => f32::from(code[0] % 16) - if code[0] % 16 > 7 { 16.0 } else { 0.0 },
        Number::Uint5 => f32::from(code[0] % 32),
        Number::Uint4 => f32::from(code[0] % 16),
        Number::Uint3 => f32::from(code[0] % 8),
        Number::Uint2 => f32::from(code[0] % 4),
        float => {
            let values = Definition::of(float).values;
            values[usize::from(code[0]) % values.len()] as f32
        }
    }
}

pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }
}

pub(super) fn same(got: f32, want: f32) -> bool {
    got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan()
}

pub(super) fn golden(file: &str) -> Vec<u8> {
    let path = format!("{}/../tests/data/golden/{file}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}
