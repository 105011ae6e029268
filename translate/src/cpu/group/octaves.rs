//! Codes of `e2m1` under a divisor, by the octave and the mantissa of a `bf16` number.
//!
//! The codes of an octave's numbers are those of its first one and at most two more, wherever the divisor's mantissa
//! lies: in any octave of quotients there are at most two of the numbers that lie halfway between codes. Where they
//! lie is found by dividing, so that rounding of quotients is in the tables too.

use crate::cpu::{
    number::Overflow,
    scalar::{E2m1, E4m3fn, MAGNITUDE, Small, SmallFloat, Source, Target},
};

/// Octaves of a divisor: below all codes, six in which codes grow, and beyond all codes.
pub(super) const OCTAVES: usize = 8;

/// The code that is given to what saturates.
pub(super) const BEYOND: u8 = 8;

/// Codes by octave and mantissa, for up to eight mantissas of divisors (*classes*).
#[derive(Clone, Debug)]
pub(crate) struct Octaves {
    /// By [`OCTAVES`] × class + octave: the code of the octave's first number.
    pub(super) first: [u8; 64],
    /// Twice the mantissa beyond which the code is one more, and two more; 255 if it never is.
    pub(super) more: [[u8; 64]; 2],
    /// Of each class, the exponent of octave 0 less that of the divisor.
    starts: [i32; 8],
}

impl Octaves {
    /// The tables of divisors with the mantissas of these; `None` if codes grow otherwise than thought.
    pub(crate) fn new(divisors: &[f32]) -> Option<Self> {
        let mut octaves = Self {
            first: [0; 64],
            more: [[255; 64]; 2],
            starts: [0; 8],
        };
        let code = Small::new(E2m1, Overflow::Saturate);
        for (class, divisor) in divisors.iter().enumerate() {
            let divisor = f32::from_bits(divisor.to_bits() & 0x7F_FFFF | 127 << 23);
            let code_of = |magnitude: u16| {
                let y = f32::from_bits(u32::from(magnitude) << 16) / divisor;
                if y.to_bits() & MAGNITUDE > E2m1::LAST_IN_RANGE {
                    BEYOND
                } else {
                    code.code(y)[0]
                }
            };
            let least: [u16; BEYOND as usize] = std::array::from_fn(|i| {
                let (mut low, mut high) = (0, 0x7F80);
                while low < high {
                    let middle = (low + high) / 2;
                    if code_of(middle) > i as u8 {
                        high = middle;
                    } else {
                        low = middle + 1;
                    }
                }
                low
            });
            let start = (least[0] >> 7) - 1;
            *octaves.starts.get_mut(class)? = i32::from(start) - 127;
            for octave in 1..OCTAVES {
                let at = OCTAVES * class + octave;
                let from = (start + octave as u16) << 7;
                let to = from + (1 << 7);
                octaves.first[at] = least.iter().filter(|l| **l <= from).count() as u8;
                let within = least.iter().filter(|l| from < **l && **l < to);
                for (i, least) in within.enumerate() {
                    octaves.more.get_mut(i)?[at] = (((least - from) << 1) - 1) as u8;
                }
            }
            if octaves.first[OCTAVES * class + OCTAVES - 1] != BEYOND {
                return None;
            }
        }
        Some(octaves)
    }

    /// The exponent of octave 0, as `bf16` has it, for a divisor of a class; below zero there are no such numbers.
    pub(super) fn start(&self, class: usize, divisor_exponent: i32) -> i32 {
        divisor_exponent + self.starts[class]
    }
}

/// The octaves of every scale of `e4m3fn` times a constant.
#[derive(Clone, Debug)]
pub(crate) struct ScaledOctaves {
    pub(super) octaves: Octaves,
    /// By the scale's code: the exponent of octave 0.
    pub(super) starts: [u8; 128],
    /// [`OCTAVES`] × class, or 255 for scales that are too small or too great for their numbers to be found like this.
    pub(super) classes: [u8; 128],
}

impl ScaledOctaves {
    /// The octaves under scales × `constant`.
    pub(crate) fn new(constant: f32) -> Option<Self> {
        let divisors: [f32; 8] = std::array::from_fn(|class| (1.0 + class as f32 / 8.0) * constant);
        let octaves = Octaves::new(&divisors)?;
        let (mut starts, mut classes) = ([0; 128], [255; 128]);
        for code in 1..=E4m3fn::GREATEST as u8 {
            let scale = E4m3fn::number([code]);
            let class = (scale.to_bits() >> 20 & 7) as usize;
            let divisor = scale * constant;
            let start = octaves.start(class, (divisor.to_bits() >> 23) as i32);
            let mantissa = |x: f32| x.to_bits() & 0x7F_FFFF;
            let alike = divisor.is_normal() && mantissa(divisor) == mantissa(divisors[class]);
            if let (true, Ok(start)) = (alike, u8::try_from(start)) {
                starts[usize::from(code)] = start;
                classes[usize::from(code)] = (OCTAVES * class) as u8;
            }
        }
        Some(Self {
            octaves,
            starts,
            classes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes of all numbers under all scales, against division.
    #[test]
    #[cfg_attr(miri, ignore = "takes too long")]
    fn octaves_have_the_codes_of_quotients() {
        let code = Small::new(E2m1, Overflow::Saturate);
        for constant in [1.0, 0.0371, 1.1, 1.0 / 3.0, 1e-30, 3e36, 1e-40] {
            let scaled = ScaledOctaves::new(constant).expect("octaves");
            for scale in 0..128u8 {
                let class = scaled.classes[usize::from(scale)];
                if class == 255 {
                    continue;
                }
                let divisor = E4m3fn::number([scale]) * constant;
                for magnitude in 0..0x7F80u16 {
                    let y = f32::from_bits(u32::from(magnitude) << 16) / divisor;
                    let want = if y.to_bits() > E2m1::LAST_IN_RANGE {
                        BEYOND
                    } else {
                        code.code(y)[0]
                    };
                    let exponent = (magnitude >> 7) as u8;
                    let octave = exponent
                        .saturating_sub(scaled.starts[usize::from(scale)])
                        .min(OCTAVES as u8 - 1);
                    let at = usize::from(class + octave);
                    let mantissa = (magnitude << 1) as u8;
                    let more = scaled
                        .octaves
                        .more
                        .map(|more| u8::from(mantissa > more[at]));
                    let got = scaled.octaves.first[at] + more[0] + more[1];
                    assert_eq!(got, want, "{constant} {scale:#x} {magnitude:#x}");
                }
            }
        }
    }
}
