//! How writers pick scales: one formula for each engine's rule.

use half::{bf16, f16};

use crate::number::Number;
use crate::scheme::Store;

/// How a writer picks the scale of a tile, and how it rounds the tile's codes under it.
///
/// amax, min and max are taken over finite elements. x is an element, s the scale as stored unless said
/// otherwise, and products, quotients and sums are those of `f32`. Float codes are the nearest, ties to even.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Rule {
    /// s = max(amax / max, least), code of x·(1/s), clamped to ±max; `int8` half away from zero.
    TokenHead {
        /// What amax becomes.
        max: f32,
        /// The least scale.
        least: f32,
    },
    /// s = amax / max, kept from below and rounded; code of x / s.
    Tile {
        /// What amax becomes.
        max: f32,
        /// What keeps s from becoming zero.
        least: Least,
        /// To what s is rounded.
        to: ScaleTo,
    },
    /// OCP's microscaling, s a power of two.
    Mx(MxMode),
    /// s = amax / 6 / g with the constant g, as `e4m3fn` and at least `least`; code of x / (s·g), zero where s is.
    Nvfp4 {
        /// The least scale.
        least: f32,
    },
    /// ggml's `q8_0`: d = amax / 127 before it is stored; code of x·(1/d), half away from zero.
    GgmlAmax,
    /// ggml's `q4_0` and `q5_0`: d = m / −n, m being the first element of the greatest magnitude; x·(1/d) + n + ½
    /// truncated.
    GgmlSigned {
        /// Half the number of codes.
        n: f32,
    },
    /// ggml's `q4_1` and `q5_1`: d = (max − min) / n; (x − min)·(1/d) + ½ truncated.
    GgmlRange {
        /// The greatest code.
        n: f32,
    },
    /// ggml's `mxfp4`: 2^(⌊log₂ amax⌋ − 2); the nearest of the list, the first of equals.
    GgmlMx,
    /// ggml's `nvfp4`: amax / 6 as `e4m3fn`, half up; the nearest of the list, the first of equals.
    GgmlNvfp4,
    /// SGLang's: 2^⌈log₂ max(amax / 6, 1e-10)⌉; code of x / s, half away from zero; −0 becomes 0.
    SglangFp4,
    /// UltraQuant's: 2^⌊log₂(0.156·amax) + ½⌋, zero where amax is; code of x / s.
    Ultraquant,
    /// vLLM's 4 bits: s = max((max − min) / 15, 1e-6), z = −min / s rounded; x·(1/s) + z rounded, half away from zero.
    VllmInt4,
    /// LMDeploy's: s = (max − min) / n, z = −min / s before they are stored; x / s + z + ½ truncated.
    LmDeploy {
        /// The greatest code.
        n: f32,
    },
    /// TurboMind's: s = (max − min)·(1/n), z = min before they are stored; (x − min)·(1/s) to the nearest.
    TurboMind {
        /// The greatest code.
        n: f32,
    },
    /// KIVI's: s = (max − min) / n, z = min; (x − min) / s to the nearest, each step in `f16`.
    Kivi {
        /// The greatest code.
        n: f32,
    },
    /// TurboQuant's values: s = max((max − min) / n, 1e-8), z = min before they are stored; (x − min) / s + ½ truncated.
    Turboquant {
        /// The greatest code.
        n: f32,
    },
}

/// What keeps a scale from becoming zero.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(clippy::exhaustive_enums, reason = "one of the two")]
pub enum Least {
    /// s is at least this.
    Scale(f32),
    /// amax counts as at least this.
    Amax(f32),
}

/// To what a scale is rounded before it divides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "what engines do")]
pub enum ScaleTo {
    /// Nothing but `f32`.
    F32,
    /// The next power of two.
    Power,
    /// The nearest `bf16`.
    Bf16,
    /// The nearest `e4m3fn`.
    E4m3fn,
}

/// How a microscaling exponent follows from amax.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "the three that are in use")]
pub enum MxMode {
    /// ⌈log₂(amax / greatest)⌉: nothing is clipped. cuBLAS, Blackwell.
    Rceil,
    /// ⌊log₂ amax⌋ − emax: up to an eighth is clipped. OCP 1.0.
    Floor,
    /// As `Floor`, of amax rounded to the element's mantissa. torchao's `EVEN`.
    Even,
}

/// What a rule needs to know of a tile.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stats {
    /// Greatest finite magnitude.
    pub(crate) amax: f32,
    /// The first finite element of that magnitude.
    pub(crate) peak: f32,
    /// Least and greatest finite element.
    pub(crate) min: f32,
    pub(crate) max: f32,
}

/// What a rule decides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Derived {
    /// What is to be stored, before the store rounds it.
    pub(crate) scale: f32,
    pub(crate) zero: f32,
    pub(crate) quantize: Quantize,
}

/// How an element becomes a code under a scale that is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Quantize {
    /// Nearest code of the quotient, clamped beforehand.
    Nearest { by: By, clamp: f32 },
    /// trunc(clamp(y ± ½)), y = x·r, to −128..=127.
    AwayBySum(f32),
    /// y = x·r to the nearest whole number, half away from zero, to ±127.
    Away(f32),
    /// (x − minus, by, + plus, + plus) rounded to 0..=most; `clips` if that may be far from x, and is counted.
    Affine {
        minus: f32,
        by: By,
        plus: [f32; 2],
        round: Round,
        most: f32,
        f16: bool,
        clips: bool,
    },
    /// Nearest of the list times this, the first of equals.
    FirstNearest(f32),
    /// e2m1 of x / s, half away from zero, the sign of x < 0.
    E2m1Away(f32),
    /// Code 0 whatever the element.
    Zero,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum By {
    Times(f32),
    Over(f32),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Round {
    Truncate,
    Even,
    Away,
}

impl By {
    #[inline(always)]
    pub(crate) fn of(self, x: f32) -> f32 {
        match self {
            Self::Times(r) => x * r,
            Self::Over(s) => x / s,
        }
    }
}

/// Reciprocal as ggml takes it: 0 of 0, and 0 where it overflows.
fn reciprocal(d: f32) -> f32 {
    let r = 1.0 / d;
    if d != 0.0 && r.is_finite() { r } else { 0.0 }
}

/// The power of two not below a positive finite `s`; 2^127 at most.
pub(crate) fn power_not_below(s: f32) -> f32 {
    if s <= f32::MIN_POSITIVE {
        // Subnormal powers of two have a single bit set.
        return f32::from_bits(s.to_bits().next_power_of_two().max(1));
    }
    let bits = (s.to_bits() + 0x7F_FFFF) & !0x7F_FFFF;
    f32::from_bits(bits.min(0x7F00_0000))
}

/// ⌊log₂ x⌋ of a positive finite number.
fn exponent(x: f32) -> i32 {
    let bits = x.to_bits();
    match bits >> 23 {
        0 => 31 - bits.leading_zeros() as i32 - 149,
        e => e as i32 - 127,
    }
}

fn is_power_of_two(x: f32) -> bool {
    let mantissa = x.to_bits() & 0x7F_FFFF;
    if x.is_normal() {
        mantissa == 0
    } else {
        mantissa.is_power_of_two()
    }
}

/// 2^e as a scale byte can hold it: −127 to 127.
fn power(e: i32) -> f32 {
    let e = e.clamp(-127, 127);
    if e == -127 {
        f32::from_bits(1 << 22)
    } else {
        f32::from_bits(((e + 127) as u32) << 23)
    }
}

impl Rule {
    /// What the rule decides for a tile whose codes are `number`s; `constant` is the model's, 1 if there is none.
    pub(crate) fn derive(&self, number: Number, constant: f32, stats: &Stats) -> Derived {
        let Stats {
            amax,
            peak,
            min,
            max,
        } = *stats;
        let scaled = |scale, quantize| Derived {
            scale,
            zero: 0.0,
            quantize,
        };
        let nearest = |scale: f32| Quantize::Nearest {
            by: By::Over(scale),
            clamp: f32::INFINITY,
        };
        match *self {
            Self::TokenHead { max, least } => {
                let scale = (amax / max).max(least);
                let inverse = 1.0 / scale;
                scaled(
                    scale,
                    match number {
                        Number::Int8 => Quantize::AwayBySum(inverse),
                        _ => Quantize::Nearest {
                            by: By::Times(inverse),
                            clamp: max,
                        },
                    },
                )
            }
            Self::Tile { max, least, to } => {
                let scale = match least {
                    Least::Scale(least) => (amax / max).max(least),
                    Least::Amax(least) => amax.max(least) / max,
                };
                let scale = match to {
                    ScaleTo::F32 => scale,
                    ScaleTo::Power => power_not_below(scale),
                    ScaleTo::Bf16 => bf16::from_f32(scale).to_f32(),
                    ScaleTo::E4m3fn => e4m3(scale.min(448.0)),
                };
                scaled(scale, nearest(scale))
            }
            Self::Mx(mode) => {
                let scale = if amax == 0.0 {
                    power(-127)
                } else {
                    match mode {
                        MxMode::Rceil => {
                            let over = amax / number.greatest();
                            let up = i32::from(!is_power_of_two(over));
                            if over == 0.0 {
                                power(-127)
                            } else {
                                power(exponent(over) + up)
                            }
                        }
                        MxMode::Floor => power(exponent(amax) - number.emax()),
                        MxMode::Even => {
                            let mantissa = match number {
                                Number::E4m3fn | Number::E4m3fnuz | Number::E2m3 => 3,
                                Number::E2m1 => 1,
                                _ => 2,
                            };
                            let raised = f32::from_bits(amax.to_bits() + (1 << (22 - mantissa)));
                            power(exponent(raised) - number.emax())
                        }
                    }
                };
                scaled(scale, nearest(scale))
            }
            Self::Nvfp4 { least } => {
                let scale = e4m3((amax / 6.0 / constant).max(least).min(448.0));
                let total = scale * constant;
                let quantize = if total == 0.0 {
                    Quantize::Zero
                } else {
                    nearest(total)
                };
                scaled(scale, quantize)
            }
            Self::GgmlAmax => {
                let d = amax / 127.0;
                scaled(d, Quantize::Away(reciprocal(d)))
            }
            Self::GgmlSigned { n } => {
                let d = peak / -n;
                let by = By::Times(reciprocal(d));
                let most = 2.0 * n - 1.0;
                let plus = [n + 0.5, 0.0];
                scaled(
                    d,
                    Quantize::Affine {
                        minus: 0.0,
                        by,
                        plus,
                        round: Round::Truncate,
                        most,
                        f16: false,
                        clips: false,
                    },
                )
            }
            Self::GgmlRange { n } => {
                let d = (max - min) / n;
                let by = By::Times(reciprocal(d));
                let (plus, round) = ([0.5, 0.0], Round::Truncate);
                Derived {
                    scale: d,
                    zero: min,
                    quantize: Quantize::Affine {
                        minus: min,
                        by,
                        plus,
                        round,
                        most: n,
                        f16: false,
                        clips: false,
                    },
                }
            }
            Self::GgmlMx => {
                // ggml leaves the exponent as it comes; a block below 2^-125 has the least.
                let scale = if amax == 0.0 {
                    power(-127)
                } else {
                    power(exponent(amax) - 2)
                };
                scaled(scale / 2.0, Quantize::FirstNearest(scale / 2.0))
            }
            Self::GgmlNvfp4 => {
                let scale = e4m3_half_up(amax / 6.0);
                scaled(scale, Quantize::FirstNearest(scale))
            }
            Self::SglangFp4 => {
                let scale = power_not_below((amax / 6.0).max(1e-10));
                scaled(scale, Quantize::E2m1Away(scale))
            }
            Self::Ultraquant => {
                if amax == 0.0 {
                    return scaled(0.0, Quantize::Zero);
                }
                // ⌊log₂ t + ½⌋ is the exponent of t, plus one from 2^(e + ½) on.
                let t = 0.156 * amax;
                let e = exponent(t);
                let root = f64::from(t) >= f64::from(power(e)) * std::f64::consts::SQRT_2;
                let scale = power(e + i32::from(root)).max(power(-126));
                scaled(scale, nearest(scale))
            }
            Self::VllmInt4 => {
                let scale = ((max - min) / 15.0).max(1e-6);
                let wanted = (-min / scale).round();
                let zero = wanted.clamp(0.0, 15.0);
                let (by, plus, round) = (By::Times(1.0 / scale), [zero, 0.0], Round::Away);
                // A row that does not straddle zero has its zero beyond the four bits.
                let clips = zero != wanted;
                Derived {
                    scale,
                    zero,
                    quantize: Quantize::Affine {
                        minus: 0.0,
                        by,
                        plus,
                        round,
                        most: 15.0,
                        f16: false,
                        clips,
                    },
                }
            }
            Self::LmDeploy { n } => {
                let scale = (max - min) / n;
                // The engine divides zero by zero for a row of equal numbers.
                let scale = if scale == 0.0 { 1.0 } else { scale };
                let zero = -min / scale;
                let (by, plus, round) = (By::Over(scale), [zero, 0.5], Round::Truncate);
                Derived {
                    scale,
                    zero,
                    quantize: Quantize::Affine {
                        minus: 0.0,
                        by,
                        plus,
                        round,
                        most: n,
                        f16: false,
                        clips: false,
                    },
                }
            }
            Self::TurboMind { n } => {
                let scale = (max - min) * (1.0 / n);
                let (by, plus, round) = (By::Times(reciprocal(scale)), [0.0, 0.0], Round::Even);
                Derived {
                    scale,
                    zero: min,
                    quantize: Quantize::Affine {
                        minus: min,
                        by,
                        plus,
                        round,
                        most: n,
                        f16: false,
                        clips: false,
                    },
                }
            }
            Self::Kivi { n } => {
                let (min, max) = (f16::from_f32(min).to_f32(), f16::from_f32(max).to_f32());
                let range = f16::from_f32(max - min).to_f32();
                let scale = f16::from_f32(range / n).to_f32();
                let scale = if scale == 0.0 { 1.0 } else { scale };
                let (by, plus, round) = (By::Over(scale), [0.0, 0.0], Round::Even);
                Derived {
                    scale,
                    zero: min,
                    quantize: Quantize::Affine {
                        minus: min,
                        by,
                        plus,
                        round,
                        most: n,
                        f16: true,
                        clips: false,
                    },
                }
            }
            Self::Turboquant { n } => {
                let scale = ((max - min) / n).max(1e-8);
                let (by, plus, round) = (By::Over(scale), [0.5, 0.0], Round::Truncate);
                Derived {
                    scale,
                    zero: min,
                    quantize: Quantize::Affine {
                        minus: min,
                        by,
                        plus,
                        round,
                        most: n,
                        f16: false,
                        clips: false,
                    },
                }
            }
        }
    }
}

impl Quantize {
    /// The whole number that an element would become without end to the codes; the element is finite.
    pub(crate) fn affine(self, x: f32) -> f32 {
        let Self::Affine {
            minus,
            by,
            plus,
            round,
            f16: half,
            ..
        } = self
        else {
            unreachable!("only affine quantization is asked for whole numbers")
        };
        let step = |y: f32| if half { f16::from_f32(y).to_f32() } else { y };
        let x = step(x);
        let y = step(by.of(step(x - minus)));
        let y = y + plus[0] + plus[1];
        match round {
            Round::Truncate => y.trunc(),
            Round::Even => y.round_ties_even(),
            Round::Away => y.round(),
        }
    }
}

/// The nearest `e4m3fn` to a number of 0 to 448, as a number.
pub(crate) fn e4m3(s: f32) -> f32 {
    E4m3Scale::nearest(s).value()
}

/// The nearest, the greater of two: ggml's `ue4m3`.
fn e4m3_half_up(s: f32) -> f32 {
    let s = s.min(448.0);
    let code = E4m3Scale::nearest(s);
    let next = E4m3Scale(code.0 + 1);
    let tie = code.0 < 0x7E && s - code.value() == next.value() - s;
    if tie { next.value() } else { code.value() }
}

/// A positive `e4m3fn`, by definition.
#[derive(Clone, Copy)]
pub(crate) struct E4m3Scale(pub(crate) u8);

impl E4m3Scale {
    pub(crate) fn value(self) -> f32 {
        let (e, m) = (i32::from(self.0 >> 3), f32::from(self.0 & 7));
        match e {
            _ if self.0 == 0x7F => f32::NAN,
            0 => m * power(-9),
            e => (8.0 + m) * power(e - 10),
        }
    }

    /// Nearest to a number of 0 to 448, ties to even.
    pub(crate) fn nearest(s: f32) -> Self {
        // In units of the last place where s lies: 2^-9 up to 2^-6, then eight to each power of two.
        let e = exponent(s.max(power(-6)));
        let units = (s * power(3 - e)).round_ties_even();
        Self((((e + 6) * 8) as f32 + units) as u8)
    }
}

impl Store {
    /// Bytes of a scale and its zero.
    pub(crate) fn write(self, scale: f32, zero: f32, with_zero: bool, out: &mut [u8]) {
        match self {
            Self::F32 => {
                out[..4].copy_from_slice(&scale.to_le_bytes());
                if with_zero {
                    out[4..8].copy_from_slice(&zero.to_le_bytes());
                }
            }
            Self::F32Nibble => {
                let bits = scale.to_bits() & !15 | zero as u32;
                out[..4].copy_from_slice(&bits.to_le_bytes());
            }
            Self::F16 => {
                out[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
                if with_zero {
                    out[2..4].copy_from_slice(&f16::from_f32(zero).to_le_bytes());
                }
            }
            Self::Bf16 => {
                out[..2].copy_from_slice(&bf16::from_f32(scale).to_le_bytes());
                if with_zero {
                    out[2..4].copy_from_slice(&bf16::from_f32(zero).to_le_bytes());
                }
            }
            Self::E4m3fn => out[0] = E4m3Scale::nearest(scale).0,
            Self::E8m0 => out[0] = (exponent(scale) + 127) as u8,
            Self::E8m0Zero => {
                out[0] = if scale == 0.0 {
                    0
                } else {
                    (exponent(scale) + 127) as u8
                }
            }
            Self::E8m0Half => out[0] = (exponent(scale) + 128) as u8,
        }
    }

    /// Scale and zero of stored bytes.
    pub(crate) fn read(self, bytes: &[u8], with_zero: bool) -> (f32, f32) {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let two = |read: &dyn Fn(usize) -> f32, width: usize| {
            (read(0), if with_zero { read(width) } else { 0.0 })
        };
        match self {
            Self::F32 => two(&|at| f32::from_bits(u32_at(at)), 4),
            Self::F32Nibble => (f32::from_bits(u32_at(0) & !15), (u32_at(0) & 15) as f32),
            Self::F16 => two(&|at| f16::from_bits(u16_at(at)).to_f32(), 2),
            Self::Bf16 => two(&|at| bf16::from_bits(u16_at(at)).to_f32(), 2),
            Self::E4m3fn => {
                let magnitude = E4m3Scale(bytes[0] & 0x7F).value();
                (
                    if bytes[0] >= 0x80 {
                        -magnitude
                    } else {
                        magnitude
                    },
                    0.0,
                )
            }
            Self::E8m0 | Self::E8m0Zero if bytes[0] == 0xFF => (f32::NAN, 0.0),
            Self::E8m0Zero if bytes[0] == 0 => (0.0, 0.0),
            Self::E8m0 | Self::E8m0Zero => (power(i32::from(bytes[0]) - 127), 0.0),
            // ggml reads 0xFF as a number.
            Self::E8m0Half if bytes[0] == 0xFF => (power(127), 0.0),
            Self::E8m0Half => (power(i32::from(bytes[0]) - 127) * 0.5, 0.0),
        }
    }

    /// Whether what was stored lost the scale or the zero to Inf.
    pub(crate) fn overflows(self, scale: f32, zero: f32) -> bool {
        match self {
            Self::F16 => f16::from_f32(scale).is_infinite() || f16::from_f32(zero).is_infinite(),
            Self::Bf16 => bf16::from_f32(scale).is_infinite() || bf16::from_f32(zero).is_infinite(),
            _ => !scale.is_finite() || !zero.is_finite(),
        }
    }
}
