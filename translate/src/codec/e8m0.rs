//! Powers of two in a byte: OCP's e8m0, which has no sign, no zero and no Inf.
//!
//! Blocks keep their scales so; as an element of its own it is the format of a plane of scales. Four ways of rounding
//! are in use, which differ in direction and in what becomes of zero, negative numbers, Inf and NaN.

use crate::{
    format::Counts,
    scheme::{Codec, Unit},
};

/// One byte an element.
#[derive(Debug)]
pub(crate) struct E8m0;

const RULES: &[&str] = &["rp", "rz", "ml", "torch"];

impl Codec for E8m0 {
    fn group(&self, _dim: u32) -> u32 {
        1
    }

    fn unit(&self, _dim: u32) -> Unit {
        Unit {
            elements: 1,
            bytes: 1,
        }
    }

    /// CUDA's `cudaRoundPosInf` and `cudaRoundZero`; ml_dtypes; torch.
    fn rules(&self) -> &'static [&'static str] {
        RULES
    }

    fn decode(&self, codes: &[u8], _params: &[u8], values: &mut [f32]) {
        for (x, code) in values.iter_mut().zip(codes) {
            *x = match code {
                0xFF => f32::NAN,
                0 => f32::from_bits(1 << 22),
                code => f32::from_bits(u32::from(*code) << 23),
            };
        }
    }

    fn encode(&self, rule: usize, values: &[f32], codes: &mut [u8], _params: &mut [u8]) -> Counts {
        let mut counts = Counts::default();
        for (x, code) in values.iter().zip(codes) {
            let rule = RULES[rule.min(RULES.len() - 1)];
            *code = encode(rule, *x);
            counts.nan += u64::from(x.is_nan());
            counts.saturated += u64::from(x.is_infinite());
        }
        counts
    }
}

fn encode(rule: &str, x: f32) -> u8 {
    let to_nearest = matches!(rule, "ml" | "torch");
    if x.is_nan() || rule == "ml" && x < 0.0 || to_nearest && x.is_infinite() {
        return 0xFF;
    }
    if x == 0.0 {
        return if rule == "ml" { 0xFF } else { 0 };
    }
    if x.is_infinite() {
        return 0xFE;
    }
    let bits = x.to_bits() & 0x7FFF_FFFF;
    let (exponent, mantissa) = (bits >> 23, bits & 0x7F_FFFF);
    // Subnormal numbers are below 2^-126; the byte 0 is their upper half's lower end.
    let up = match rule {
        "rz" => false,
        // All others round up here, the nearest being what it may.
        _ if exponent == 0 => mantissa > 1 << 22,
        "rp" => mantissa != 0,
        // Half way between powers of two is one and a half times the lower.
        _ => mantissa >= 1 << 22,
    };
    let code = exponent + u32::from(up);
    if code >= 0xFF && to_nearest {
        0xFF
    } else {
        code.min(0xFE) as u8
    }
}
