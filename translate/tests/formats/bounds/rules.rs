//! How far a writer may miss, rule by rule.

use moai_translate::number::Number;
use moai_translate::scheme::{Code, Rule, Store};

/// How far an element may be from what was written, and whether it must be counted as saturated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    pub(super) error: f64,
    /// `None` within the last bit of where counting begins.
    pub(super) counted: Option<bool>,
    /// Whether Inf stays what it is.
    pub(super) has_infinity: bool,
}

/// A tile as it was written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile<'a> {
    /// What was to be written, in the order stored, rotated if the format is.
    pub(super) values: &'a [f32],
    pub(super) code: Code,
    pub(super) store: Store,
    /// Scale as read back, times the constant.
    pub(super) scale: f64,
}

/// A float's grid: the relative error u/(1+u) of rounding to it, half its least subnormal, its greatest number, and
/// the first magnitude that overflows; where that is a tie, the greatest code is odd and gives way.
#[derive(Clone, Copy, Debug)]
struct Grid {
    relative: f64,
    tiny: f64,
    greatest: f64,
    overflows: f64,
}

/// The rounding bound of a number, as unit roundoff 2^-(mantissa bits + 1): IEEE 754, OCP 8-bit 1.0 and MX 1.0.
fn grid(number: Number) -> Option<Grid> {
    let (mantissa_bits, least_exponent, overflows) = match number {
        Number::F32 => (23, -149, 2f64.powi(128) - 2f64.powi(103)),
        Number::F16 => (10, -24, 65520.0),
        Number::Bf16 => (7, -133, 2f64.powi(128) - 2f64.powi(119)),
        Number::E4m3fn => (3, -9, 464.0),
        Number::E4m3fnuz => (3, -10, 248.0),
        Number::E5m2 => (2, -16, 61440.0),
        Number::E5m2fnuz => (2, -17, 61440.0),
        Number::E2m1 => (1, -1, 7.0),
        Number::E2m3 => (3, -3, 7.75),
        Number::E3m2 => (2, -4, 30.0),
        _ => return None,
    };
    let u = 2f64.powi(-mantissa_bits - 1);
    let tiny = 2f64.powi(least_exponent - 1);
    Some(Grid {
        relative: u / (1.0 + u),
        tiny,
        greatest: f64::from(number.greatest()),
        overflows,
    })
}

/// What one rounding of `f32` adds: to x, and to what is below its normal numbers.
fn slop(x: f64) -> f64 {
    x.abs() * 2f64.powi(-21) + 2f64.powi(-148)
}

/// Of code × scale, nearest code: max(|x|·u/(1+u), s·tiny), and what lies beyond the greatest.
pub(super) fn nearest(number: Number, scale: f64, x: f64) -> Bound {
    let y = x.abs() / scale;
    let near = |border: f64| (y - border).abs() <= border * 2f64.powi(-20);
    if let Some(grid) = grid(number) {
        let beyond = (x.abs() - grid.greatest * scale).max(0.0);
        let error = (x.abs() * grid.relative).max(scale * grid.tiny).max(beyond) + slop(x);
        let has_infinity = number.bits() > 8;
        return Bound {
            error,
            counted: (!near(grid.overflows)).then_some(y > grid.overflows),
            has_infinity,
        };
    }
    // Whole numbers: half a step.
    let (least, most) = match number {
        Number::Int8 => (127.0, 127.0),
        Number::Int4 => (8.0, 7.0),
        _ => (0.0, f64::from(number.greatest())),
    };
    let end = if x < 0.0 { least } else { most };
    let beyond = (x.abs() - end * scale).max(0.0);
    Bound {
        error: (scale / 2.0).max(beyond) + slop(x),
        counted: (!near(end + 0.5)).then_some(y > end + 0.5),
        has_infinity: false,
    }
}

/// Half a step of the store where `v` lies.
fn stored(store: Store, v: f64) -> f64 {
    match store {
        Store::F16 => (v.abs() * 2f64.powi(-11)).max(2f64.powi(-25)),
        Store::Bf16 => (v.abs() * 2f64.powi(-8)).max(2f64.powi(-134)),
        // Its four lowest bits are the zero.
        Store::F32Nibble => v.abs() * 2f64.powi(-19),
        _ => 0.0,
    }
}

/// The bound of one finite element of a tile whose scale was stored as a finite number.
pub(super) fn bound(rule: &Rule, tile: &Tile<'_>, x: f32) -> Bound {
    let finite = || {
        tile.values
            .iter()
            .copied()
            .filter(|x| x.is_finite())
            .map(f64::from)
    };
    let amax = finite().fold(0.0, |m: f64, x| m.max(x.abs()));
    let (min, max) = finite().fold((f64::MAX, f64::MIN), |(a, b), x| (a.min(x), b.max(x)));
    let (x, s) = (f64::from(x), tile.scale);
    let within = |error: f64| Bound {
        error: error + 2e-6 * amax,
        counted: Some(false),
        has_infinity: false,
    };
    let f16 = |v: f64| stored(Store::F16, v);
    match *rule {
        // vLLM 0.32: s = max(amax / max, 1e-6), so nothing is beyond; int8 misses by s/2.
        Rule::TokenHead { .. } if tile.code.number() == Number::Int8 => {
            within(s / 2.0 * (1.0 + 1e-5))
        }
        Rule::TokenHead { .. } => Bound {
            counted: Some(false),
            ..nearest(tile.code.number(), s, x)
        },
        // OCP MX 1.0 6.3, FlashMLA, vLLM, SGLang, NVFP4: the nearest of x / s, and what s is too small for.
        Rule::Tile { .. } | Rule::Mx(_) | Rule::SglangFp4 => match tile.code {
            // Steps of 2^-6.
            Code::Times(number, times) => nearest(number, s * f64::from(times), x),
            code => nearest(code.number(), s, x),
        },
        // A zero scale has zeros: amax / 6 / g is below half the least e4m3fn, 2^-10.
        Rule::Nvfp4 { .. } | Rule::Ultraquant if s == 0.0 => within(x.abs()),
        Rule::Nvfp4 { .. } | Rule::Ultraquant => nearest(tile.code.number(), s, x),
        // ggml's lists are e2m1, or twice that under half the scale.
        Rule::GgmlMx => nearest(Number::E2m1, 2.0 * s, x),
        Rule::GgmlNvfp4 if s == 0.0 => within(6.0 * 2f64.powi(-10)),
        Rule::GgmlNvfp4 => nearest(Number::E2m1, s, x),
        // d is rounded to f16 after it was used: code × half a step of f16.
        Rule::GgmlAmax => {
            let d = amax / 127.0;
            within(d / 2.0 + 127.0 * f16(d))
        }
        // A whole step: the element of the other sign that is as great has no code of its own.
        Rule::GgmlSigned { n } => {
            let n = f64::from(n);
            within(amax / n + n * f16(amax / n))
        }
        Rule::GgmlRange { n } | Rule::TurboMind { n } => {
            let (n, d) = (f64::from(n), (max - min) / f64::from(n));
            within(d / 2.0 + n * stored(tile.store, d) + stored(tile.store, min))
        }
        Rule::Turboquant { n } => {
            let (n, d) = (f64::from(n), ((max - min) / f64::from(n)).max(1e-8));
            within(d / 2.0 + n * stored(tile.store, d) + stored(tile.store, min))
        }
        // Zero and code are both rounded: a whole step, if zero lies within the row.
        Rule::VllmInt4 => {
            let d = ((max - min) / 15.0).max(1e-6);
            let far = min > d / 2.0 || max < -d / 2.0;
            let all = |counted| Bound {
                error: f64::INFINITY,
                counted,
                has_infinity: false,
            };
            // Otherwise the zero is clamped, and what it puts beyond the codes may miss by anything, counted.
            if far {
                all(None)
            } else {
                within(d * (1.0 + 1e-4) + 15.0 * stored(tile.store, d))
            }
        }
        // (q − z)·s with s and z stored: x·s′/s, and s times half a step of z. That is s/2 + amax·2^-10 with f16 as long as
        // s is a normal f16, and more for the narrow ranges below.
        Rule::LmDeploy { n } => {
            let d = (max - min) / f64::from(n);
            if d as f32 == 0.0 {
                // s is 1, z is −min, and every code 0.
                return within(max - min + stored(tile.store, min));
            }
            let steps = (x.abs() + d) / d;
            within(d / 2.0 + steps * stored(tile.store, d) + d * stored(tile.store, min / d))
        }
        // Six roundings to f16: min, x, x − min, the quotient, code × scale, the sum; and those of s.
        Rule::Kivi { n } => {
            let (n, d) = (f64::from(n), (max - min) / f64::from(n));
            within(d / 2.0 + 3.0 * n * f16(d) + 6.0 * f16(amax))
        }
        _ => panic!("no bound is written down for {rule:?}"),
    }
}

/// The greatest error of an element, as a part of its tile's amax, where scales are neither at the ends of their range
/// nor rounded to zero; `None` where there is no such bound.
pub(super) fn part_of_amax(rule: &Rule, number: Number) -> Option<f64> {
    use moai_translate::scheme::MxMode;
    Some(match (rule, number) {
        // An eighth of [448, 512)·s is beyond 448·s, a quarter of [6, 8)·s beyond 6·s.
        (Rule::Mx(MxMode::Floor), Number::E2m1) | (Rule::GgmlMx, _) => 0.25,
        (Rule::Mx(MxMode::Floor), Number::E4m3fn | Number::E5m2) => 0.125,
        (Rule::Mx(MxMode::Rceil) | Rule::Tile { .. } | Rule::TokenHead { .. }, Number::E4m3fn) => {
            1.0 / 17.0
        }
        (Rule::Mx(MxMode::Rceil), Number::E5m2) => 1.0 / 9.0,
        (Rule::Mx(MxMode::Rceil) | Rule::Tile { .. } | Rule::Nvfp4 { .. } | Rule::GgmlNvfp4, _) => {
            0.2
        }
        (Rule::SglangFp4, _) => 0.2,
        (Rule::GgmlAmax, _) => 0.006,
        // 2^½ / 0.156 is beyond 6 by this much.
        (Rule::Ultraquant, _) => 1.0 - 6.0 * 0.156 / std::f64::consts::SQRT_2,
        _ => return None,
    })
}
