//! Codes that share a scale, straight to `bf16`.
//!
//! Codes of 8 bits are numbers that `bf16` holds, so that they are looked up (integers are converted) and multiplied,
//! or moved up by exponents where scales are powers of two; of 4 bits there are so few under scales of a byte that all
//! products are in a table. All have loops at AVX-512.

use super::power_of_two;
#[cfg(target_arch = "x86_64")]
use super::{avx512::to_bf16 as avx512, is_avx512};
use crate::{
    cpu::{
        level::Level,
        number::{Number, Overflow, Quotient, decode, encode},
    },
    format::Counts,
};

/// Numbers that are looked up and multiplied together; a scale is that of a multiple of them.
const TOGETHER: usize = 32;

/// The `bf16` code of each 8-bit code, low and high bytes apart.
#[derive(Clone, Debug)]
pub(crate) struct Bytes {
    number: Number,
    low: [u8; 256],
    high: [u8; 256],
    /// Scales of `e8m0` under which all finite numbers are normal ones, the first and the last.
    normal: [u8; 2],
}

/// Where 32 codes under one scale lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stride {
    /// Bytes from one to the next.
    pub(crate) bytes: usize,
    /// Bytes before the first code.
    pub(crate) skipped: usize,
}

impl Bytes {
    /// `None` if `bf16` does not hold these numbers.
    pub(crate) fn new(number: Number) -> Option<Self> {
        if number.bits() != 8 {
            return None;
        }
        let codes: [u8; 256] = std::array::from_fn(|code| code as u8);
        let mut numbers = [0.0; 256];
        decode(Level::Portable, number, &codes, 1.0, &mut numbers);
        let bits = numbers.map(f32::to_bits);
        let exponents = bits.iter().map(|bits| (bits >> 23 & 0xFF) as i32);
        let finite = exponents.filter(|exponent| (1..0xFF).contains(exponent));
        let (least, most) = (finite.clone().min()?, finite.max()?);
        bits.iter().all(|bits| bits & 0xFFFF == 0).then(|| Self {
            number,
            // Code 127 is 1.
            normal: [128 - least, 254 - most + 127].map(|scale| scale.clamp(1, 254) as u8),
            low: bits.map(|bits| (bits >> 16) as u8),
            high: bits.map(|bits| (bits >> 24) as u8),
        })
    }

    /// Code × scale, a power of two for each `tile` of codes.
    ///
    /// # Panics
    ///
    /// If the slices hold not the same number of tiles.
    pub(crate) fn run_under_powers(
        &self,
        level: Level,
        tile: usize,
        codes: &[u8],
        scales: &[u8],
        out: &mut [u8],
    ) -> Counts {
        assert_eq!(
            codes.len(),
            scales.len() * tile,
            "codes of {} tiles",
            scales.len()
        );
        assert_eq!(
            out.len(),
            2 * codes.len(),
            "numbers of {} codes",
            codes.len()
        );
        let mut counts = Counts::default();
        let parts = codes.chunks(AT_ONCE * tile).zip(scales.chunks(AT_ONCE));
        for ((codes, scales), out) in parts.zip(out.chunks_mut(AT_ONCE * 2 * tile)) {
            #[cfg(target_arch = "x86_64")]
            if is_avx512(level)
                && codes.len().is_multiple_of(64)
                && (tile == 32 || tile.is_multiple_of(64))
                && scales.iter().all(|s| (self.normal[0]..=self.normal[1]).contains(s))
                // SAFETY: this CPU has the features of the level.
                && unsafe { avx512::shifted(&self.low, &self.high, tile, codes, scales, out) }
            {
                continue;
            }
            let dense = Stride {
                bytes: TOGETHER,
                skipped: 0,
            };
            let scales_of = |first: usize, made: &mut [f32]| {
                for (i, made) in (first..).zip(made) {
                    *made = power_of_two(scales[TOGETHER * i / tile]);
                }
            };
            counts += self.run(level, dense, codes, scales_of, out);
        }
        counts
    }

    /// Code × scale, `scales_of` being asked for those of 32 codes each, from the first on.
    ///
    /// # Panics
    ///
    /// If the slices hold not the same number of codes.
    pub(crate) fn run(
        &self,
        level: Level,
        stride: Stride,
        codes: &[u8],
        scales_of: impl Fn(usize, &mut [f32]),
        out: &mut [u8],
    ) -> Counts {
        let groups = out.len() / (2 * TOGETHER);
        assert_eq!(out.len(), groups * 2 * TOGETHER, "numbers in groups");
        assert_eq!(
            codes.len(),
            groups * stride.bytes,
            "bytes of {groups} groups"
        );
        let mut counts = Counts::default();
        let parts = codes.chunks(AT_ONCE * stride.bytes);
        let outs = out.chunks_mut(AT_ONCE * 2 * TOGETHER);
        for (part, (codes, out)) in parts.zip(outs).enumerate() {
            let n = codes.len() / stride.bytes;
            let mut scales = [0.0; AT_ONCE];
            let scales = &mut scales[..n];
            scales_of(AT_ONCE * part, scales);
            let scales = &*scales;
            #[cfg(target_arch = "x86_64")]
            if is_avx512(level)
                && self.number == Number::Int8
                && scales.iter().all(|scale| !scale.is_nan())
                // SAFETY: this CPU has the features of the level.
                && unsafe { avx512::integers(stride, codes, scales, out) }
            {
                continue;
            }
            #[cfg(target_arch = "x86_64")]
            if is_avx512(level)
                && n.is_multiple_of(2)
                && scales.iter().all(|scale| !scale.is_nan())
                // SAFETY: this CPU has the features of the level.
                && unsafe { avx512::bytes(&self.low, &self.high, stride, codes, scales, out) }
            {
                continue;
            }
            let groups = codes.chunks(stride.bytes).zip(scales);
            for ((codes, scale), out) in groups.zip(out.chunks_mut(2 * TOGETHER)) {
                let mut values = [0.0; TOGETHER];
                let codes = &codes[stride.skipped..][..TOGETHER];
                decode(level, self.number, codes, *scale, &mut values);
                counts += to_bf16(level, &values, out);
            }
        }
        counts
    }
}

/// The `bf16` codes of all 4-bit codes under each scale of a byte.
#[derive(Clone, Debug)]
pub(crate) struct Nibbles {
    /// Numbers under a scale: 16 or 32.
    group: usize,
    numbers: Box<[[u16; 16]; 256]>,
    /// Scales under which something is lost.
    lossy: [bool; 256],
}

impl Nibbles {
    /// The numbers that `decode` gives to the 16 codes under a scale, in groups of 16 or 32.
    pub(crate) fn new(group: usize, decode: impl Fn(u8, &mut [f32; 16])) -> Self {
        assert!(group == 16 || group == 32, "groups of {group}");
        let mut nibbles = Self {
            group,
            numbers: Box::new([[0; 16]; 256]),
            lossy: [false; 256],
        };
        let tables = nibbles.numbers.iter_mut().zip(&mut nibbles.lossy);
        for (scale, (table, lossy)) in tables.enumerate() {
            let mut values = [0.0; 16];
            decode(scale as u8, &mut values);
            let mut bytes = [0; 32];
            *lossy = to_bf16(Level::Portable, &values, &mut bytes) != Counts::default();
            for (word, bytes) in table.iter_mut().zip(bytes.as_chunks().0) {
                *word = u16::from_le_bytes(*bytes);
            }
        }
        nibbles
    }

    /// Code × scale; `decode` gives the numbers of groups under whose scales something is lost.
    ///
    /// # Panics
    ///
    /// If the slices hold not the same number of groups.
    pub(crate) fn run(
        &self,
        level: Level,
        codes: &[u8],
        scales: &[u8],
        decode: impl Fn(&[u8], &[u8], &mut [f32]),
        out: &mut [u8],
    ) -> Counts {
        let group = self.group;
        assert_eq!(
            codes.len(),
            scales.len() * group / 2,
            "codes of {} groups",
            scales.len()
        );
        assert_eq!(
            out.len(),
            scales.len() * group * 2,
            "numbers of {} groups",
            scales.len()
        );
        let mut counts = Counts::default();
        let parts = codes
            .chunks(AT_ONCE * group / 2)
            .zip(scales.chunks(AT_ONCE));
        for ((codes, scales), out) in parts.zip(out.chunks_mut(AT_ONCE * group * 2)) {
            if scales.iter().any(|scale| self.lossy[usize::from(*scale)]) {
                let mut values = [0.0; AT_ONCE * 32];
                let values = &mut values[..scales.len() * group];
                decode(codes, scales, values);
                counts += to_bf16(level, values, out);
                continue;
            }
            #[cfg(target_arch = "x86_64")]
            if is_avx512(level) && (group == 32 || scales.len().is_multiple_of(2)) {
                if group == 32 {
                    // SAFETY: this CPU has the features of the level.
                    unsafe { avx512::nibbles::<32>(&self.numbers, codes, scales, out) }
                } else {
                    // SAFETY: as above.
                    unsafe { avx512::nibbles::<16>(&self.numbers, codes, scales, out) }
                }
                continue;
            }
            let groups = codes.chunks(group / 2).zip(scales);
            for ((codes, scale), out) in groups.zip(out.chunks_mut(2 * group)) {
                let table = &self.numbers[usize::from(*scale)];
                for (byte, pair) in codes.iter().zip(out.as_chunks_mut::<4>().0) {
                    let [a, b] = table[usize::from(byte & 15)].to_le_bytes();
                    let [c, d] = table[usize::from(byte >> 4)].to_le_bytes();
                    *pair = [a, b, c, d];
                }
            }
        }
        counts
    }
}

fn to_bf16(level: Level, values: &[f32], out: &mut [u8]) -> Counts {
    let (number, overflow) = (Number::Bf16, Overflow::Saturate);
    encode(level, number, overflow, Quotient::Same, values, out)
}

/// Groups before what was seen among them is looked at.
const AT_ONCE: usize = 16;
