//! Codes that share a scale, found from the numbers themselves.
//!
//! Each encoder works through blocks of [`BLOCK`] numbers in two steps, because divisions that wait for one
//! another cost more than all else: first the scales of all groups of the block, then the codes. amax is
//! taken over finite numbers. NaN is written as the element's NaN, or 0 where there is none, and
//! counted; ±Inf is written as the greatest code, and counted.
//!
//! Results and counts are equal at every level, bit for bit.

use super::level::{Level, at_each_level};
use super::number::{BLOCK, Number, Overflow, decode_each, greatest_finite, pack, unpack};
use super::scalar::{
    E2m1, E4m3fn, E4m3fnuz, E5m2, F16, INFINITY, Int8, Int8Away, Loss, MAGNITUDE, Small,
    SmallFloat, Source, TWO_POW_23, Target, with_sign,
};
use crate::format::Counts;

/// How the exponent of an MX block follows from amax.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MxRule {
    /// ⌊log₂ amax⌋ − ⌊log₂ max⌋: numbers beyond max × scale saturate (OCP MX 1.0).
    Floor,
    /// ⌈log₂ (amax ÷ max)⌉, the quotient in `f32`: none saturates (cuBLAS).
    Ceil,
    /// As [`Floor`](Self::Floor), amax first rounded to the element's mantissa, half up (torchao's `EVEN`).
    Even,
}

/// How the scale of an `e4m3fn` tile follows from amax: max(max(amax, `least_amax`) ÷ 448, `least_scale`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TileRule {
    pub(crate) least_amax: f32,
    pub(crate) least_scale: f32,
    /// Whether the scale is rounded up to a power of two; it must be if it is stored as `e8m0`.
    pub(crate) power_of_two: bool,
}

#[cfg(test)]
impl TileRule {
    /// vLLM's `concat_and_cache_ds_mla`.
    pub(crate) const RAW: Self = Self {
        least_amax: 0.0,
        least_scale: f32::MIN_POSITIVE,
        power_of_two: false,
    };
    /// FlashMLA's `tests/quant.py`, and SGLang's V4.1 pages.
    pub(crate) const POWER_OF_TWO: Self = Self {
        least_amax: 0.0,
        least_scale: 1e-4,
        power_of_two: true,
    };
    /// vLLM's V3.2 indexer with `f32` scales.
    pub(crate) const INDEXER: Self = Self {
        least_amax: 1e-4,
        least_scale: 0.0,
        power_of_two: false,
    };
    /// vLLM's V3.2 indexer with `ue8m0` scales, and its V4 and V4.1 pages.
    pub(crate) const INDEXER_POWER_OF_TWO: Self = Self {
        least_amax: 1e-4,
        least_scale: 0.0,
        power_of_two: true,
    };
}

impl TileRule {
    /// The scale of a tile.
    #[inline(always)]
    fn scale(self, amax: f32) -> f32 {
        let scale = (amax.max(self.least_amax) / 448.0).max(self.least_scale);
        if self.power_of_two {
            // Up to the next exponent, unless it is a power of two already.
            f32::from_bits((scale.to_bits() + 0x7F_FFFF) & !0x7F_FFFF)
        } else {
            scale
        }
    }
}

/// How the scale of a tile is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScaleCode {
    /// Four bytes.
    F32,
    /// The exponent of a power of two, one byte.
    E8m0,
}

impl ScaleCode {
    /// Bytes of a scale.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::E8m0 => 1,
        }
    }
}

/// How the scales of NVFP4 groups are made: `e4m3fn` of max(amax ÷ 6 ÷ `global`, `least`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Nvfp4Rule {
    /// What every number of the tensor is divided by beforehand: finite and above zero.
    pub(crate) global: f32,
    /// 0, or 2⁻⁶ for torchao, or 2⁻⁹ for SGLang's V4.1 pages. A scale that is zero makes zeros of its group.
    pub(crate) least: f32,
}

/// Numbers that share a scale in `q8_0` and MX.
const GROUP: usize = 32;
/// Bytes of a `q8_0` group.
const Q8_0_BYTES: usize = 34;
/// Numbers that share a scale in NVFP4.
const NVFP4_GROUP: usize = 16;

/// Groups of ggml's `q8_0`: an `f16` scale and 32 integers.
///
/// x × (1/d), half away from zero. A reciprocal that overflows (d < 2⁻¹²⁸) is taken as 0; d is stored
/// as zero then. If the stored d overflows to Inf, all 32 count as lost.
///
/// # Panics
///
/// If the slices hold not the same number of whole groups.
pub(crate) fn encode_q8_0(level: Level, values: &[f32], groups: &mut [u8]) -> Counts {
    assert_eq!(
        values.len() % GROUP,
        0,
        "{} numbers in whole groups",
        values.len()
    );
    assert_eq!(
        groups.len(),
        values.len() / GROUP * Q8_0_BYTES,
        "bytes of the groups"
    );
    let mut counts = Counts::default();
    let blocks = groups.chunks_mut(BLOCK / GROUP * Q8_0_BYTES);
    for (values, groups) in values.chunks(BLOCK).zip(blocks) {
        #[cfg(target_arch = "x86_64")]
        if is_avx512(level)
            && let Ok(values) = values.try_into()
            && let Ok(groups) = groups.as_chunks_mut().0.try_into()
            // SAFETY: this CPU has the features of the level.
            && unsafe { avx512::q8_0(values, groups) }
        {
            continue;
        }
        counts += encode_q8_0_in_loops(level, values, groups);
    }
    counts
}

/// MX blocks of 32 numbers: codes of `e4m3fn` or `e5m2` in bytes, of `e2m1` in nibbles, even ones low;
/// an `e8m0` scale for each block.
///
/// # Panics
///
/// If the slices hold not the same number of whole blocks, or for another element.
pub(crate) fn encode_mx(
    level: Level,
    element: Number,
    rule: MxRule,
    values: &[f32],
    codes: &mut [u8],
    scales: &mut [u8],
) -> Counts {
    assert_eq!(
        values.len(),
        scales.len() * GROUP,
        "numbers of {} blocks",
        scales.len()
    );
    let packs = if element == Number::E2m1 { 2 } else { 1 };
    assert_eq!(
        packs * codes.len(),
        values.len(),
        "codes of {} numbers",
        values.len()
    );
    let mut counts = Counts::default();
    let blocks = codes
        .chunks_mut(BLOCK / packs)
        .zip(scales.chunks_mut(BLOCK / GROUP));
    for (values, (codes, scales)) in values.chunks(BLOCK).zip(blocks) {
        #[cfg(target_arch = "x86_64")]
        if is_avx512(level) && mx_by_avx512(element, rule, values, codes, scales) {
            continue;
        }
        counts += encode_mx_in_loops(level, element, rule, values, codes, scales);
    }
    counts
}

/// Whether this was a whole block without anything rare, and its codes were written.
#[cfg(target_arch = "x86_64")]
fn mx_by_avx512(
    element: Number,
    rule: MxRule,
    values: &[f32],
    codes: &mut [u8],
    scales: &mut [u8],
) -> bool {
    assert!(is_avx512(Level::best()), "blocks by AVX-512");
    let (Ok(values), Ok(scales)) = (values.try_into(), scales.try_into()) else {
        return false;
    };
    match element {
        Number::E4m3fn => codes.try_into().is_ok_and(|codes| {
            // SAFETY: this CPU has the features of the level.
            unsafe { avx512::mx_bytes::<E4m3fn>(rule, values, codes, scales) }
        }),
        Number::E5m2 => codes.try_into().is_ok_and(|codes| {
            // SAFETY: this CPU has the features of the level.
            unsafe { avx512::mx_bytes::<E5m2>(rule, values, codes, scales) }
        }),
        Number::E2m1 => codes.try_into().is_ok_and(|codes| {
            // SAFETY: this CPU has the features of the level.
            unsafe { avx512::mx_nibbles(rule, values, codes, scales) }
        }),
        _ => false,
    }
}

/// NVFP4 groups of 16 numbers: `e2m1` in nibbles, even ones low, and an `e4m3fn` scale for each group.
///
/// A number is divided by the product of both scales.
///
/// # Panics
///
/// If the slices hold not the same number of whole groups.
pub(crate) fn encode_nvfp4(
    level: Level,
    rule: Nvfp4Rule,
    values: &[f32],
    codes: &mut [u8],
    scales: &mut [u8],
) -> Counts {
    assert_eq!(
        values.len(),
        scales.len() * NVFP4_GROUP,
        "numbers of {} groups",
        scales.len()
    );
    assert_eq!(
        2 * codes.len(),
        values.len(),
        "nibbles of {} numbers",
        values.len()
    );
    let mut counts = Counts::default();
    let blocks = codes
        .chunks_mut(BLOCK / 2)
        .zip(scales.chunks_mut(BLOCK / NVFP4_GROUP));
    for (values, (codes, scales)) in values.chunks(BLOCK).zip(blocks) {
        #[cfg(target_arch = "x86_64")]
        if is_avx512(level)
            && let Ok(values) = values.try_into()
            && let Ok(codes) = codes.try_into()
            && let Ok(scales) = scales.try_into()
            // SAFETY: this CPU has the features of the level.
            && unsafe { avx512::nvfp4(rule, values, codes, scales) }
        {
            continue;
        }
        counts += encode_nvfp4_in_loops(level, rule, values, codes, scales);
    }
    counts
}

/// Whether the level is AVX-512, which this CPU then has.
#[cfg(target_arch = "x86_64")]
fn is_avx512(level: Level) -> bool {
    level == Level::Avx512 && Level::best() == Level::Avx512
}

at_each_level! {
    /// See [`encode_q8_0`].
    fn encode_q8_0_in_loops(values: &[f32], groups: &mut [u8]) -> Counts {
        assert_eq!(values.len() % GROUP, 0, "{} numbers in whole groups", values.len());
        assert_eq!(groups.len(), values.len() / GROUP * Q8_0_BYTES, "bytes of the groups");
        const AT_ONCE: usize = BLOCK / GROUP;
        let mut counts = Counts::default();
        let groups = groups.as_chunks_mut::<Q8_0_BYTES>().0.chunks_mut(AT_ONCE);
        for (values, groups) in values.chunks(BLOCK).zip(groups) {
            let values = values.as_chunks::<GROUP>().0;
            let (amax, special) = amaxes::<GROUP, AT_ONCE>(values);
            let mut inverses = [0.0; AT_ONCE];
            let mut stored = [0; AT_ONCE];
            for ((inverse, stored), amax) in inverses.iter_mut().zip(&mut stored).zip(&amax) {
                let d = amax / 127.0;
                let reciprocal = 1.0 / d;
                *inverse = if reciprocal < f32::INFINITY { reciprocal } else { 0.0 };
                *stored = u16::from_le_bytes(Small::new(F16, Overflow::NoSaturate).code(d));
            }
            let mut overflow = false;
            for (((values, group), inverse), stored) in
                values.iter().zip(&mut *groups).zip(inverses).zip(stored)
            {
                overflow |= stored == 0x7C00;
                let (d, codes) = group.split_at_mut(2);
                d.copy_from_slice(&stored.to_le_bytes());
                for (x, code) in values.iter().zip(codes) {
                    *code = q8_0_code(x * inverse);
                }
            }
            if special || overflow {
                for (values, group) in values.iter().zip(groups) {
                    let overflow = group[..2] == [0x00, 0x7C];
                    for (x, code) in values.iter().zip(&mut group[2..]) {
                        if x.is_nan() {
                            counts.nan += 1;
                            *code = 0;
                        } else if x.is_infinite() {
                            counts.saturated += 1;
                            *code = with_sign(127, *x);
                        } else {
                            counts.saturated += u64::from(overflow);
                        }
                    }
                }
            }
        }
        counts
    }

    /// Numbers of `q8_0` groups.
    ///
    /// # Panics
    ///
    /// If the slices hold not the same number of whole groups.
    pub(crate) fn decode_q8_0(groups: &[u8], values: &mut [f32]) -> () {
        assert_eq!(values.len() % GROUP, 0, "{} numbers in whole groups", values.len());
        assert_eq!(groups.len(), values.len() / GROUP * Q8_0_BYTES, "bytes of the groups");
        let groups = groups.as_chunks::<Q8_0_BYTES>().0;
        for (group, values) in groups.iter().zip(values.as_chunks_mut::<GROUP>().0) {
            let d = F16::number([group[0], group[1]]);
            for (code, x) in group[2..].iter().zip(values) {
                *x = Int8::number([*code]) * d;
            }
        }
    }

    /// See [`encode_mx`].
    fn encode_mx_in_loops(
        element: Number,
        rule: MxRule,
        values: &[f32],
        codes: &mut [u8],
        scales: &mut [u8],
    ) -> Counts {
        assert_eq!(values.len(), scales.len() * GROUP, "numbers of {} blocks", scales.len());
        match element {
            Number::E4m3fn => {
                assert_eq!(codes.len(), values.len(), "codes of {} numbers", values.len());
                mx::<E4m3fn>(E4m3fn, rule, values, codes, scales)
            }
            Number::E5m2 => {
                assert_eq!(codes.len(), values.len(), "codes of {} numbers", values.len());
                mx::<E5m2>(E5m2, rule, values, codes, scales)
            }
            Number::E2m1 => {
                assert_eq!(2 * codes.len(), values.len(), "nibbles of {} numbers", values.len());
                let mut counts = Counts::default();
                let mut unpacked = [0; BLOCK];
                let blocks = codes.chunks_mut(BLOCK / 2).zip(scales.chunks_mut(BLOCK / GROUP));
                for (values, (codes, scales)) in values.chunks(BLOCK).zip(blocks) {
                    let unpacked = &mut unpacked[..values.len()];
                    counts += mx::<E2m1>(E2m1, rule, values, unpacked, scales);
                    pack(unpacked, codes);
                }
                counts
            }
            other => panic!("MX blocks of {other:?}"),
        }
    }

    /// Numbers of MX blocks: code × scale.
    ///
    /// # Panics
    ///
    /// If the slices hold not the same number of whole blocks, or for another element.
    pub(crate) fn decode_mx(element: Number, codes: &[u8], scales: &[u8], values: &mut [f32]) -> () {
        assert_eq!(values.len(), scales.len() * GROUP, "numbers of {} blocks", scales.len());
        let blocks = values.as_chunks_mut::<GROUP>().0.iter_mut().zip(scales);
        match element {
            Number::E4m3fn => {
                assert_eq!(codes.len(), scales.len() * GROUP, "codes of {} blocks", scales.len());
                for (codes, (values, scale)) in codes.as_chunks::<GROUP>().0.iter().zip(blocks) {
                    decode_scaled::<E4m3fn>(codes, power_of_two(*scale), values);
                }
            }
            Number::E5m2 => {
                assert_eq!(codes.len(), scales.len() * GROUP, "codes of {} blocks", scales.len());
                for (codes, (values, scale)) in codes.as_chunks::<GROUP>().0.iter().zip(blocks) {
                    decode_scaled::<E5m2>(codes, power_of_two(*scale), values);
                }
            }
            Number::E2m1 => {
                assert_eq!(2 * codes.len(), scales.len() * GROUP, "codes of {} blocks", scales.len());
                let codes = codes.as_chunks::<{ GROUP / 2 }>().0;
                for (codes, (values, scale)) in codes.iter().zip(blocks) {
                    let mut unpacked = [0; GROUP];
                    unpack(codes, &mut unpacked);
                    decode_scaled::<E2m1>(&unpacked, power_of_two(*scale), values);
                }
            }
            other => panic!("MX blocks of {other:?}"),
        }
    }

    /// See [`encode_nvfp4`].
    fn encode_nvfp4_in_loops(
        rule: Nvfp4Rule,
        values: &[f32],
        codes: &mut [u8],
        scales: &mut [u8],
    ) -> Counts {
        assert_eq!(values.len(), scales.len() * NVFP4_GROUP, "numbers of {} groups", scales.len());
        assert_eq!(2 * codes.len(), values.len(), "nibbles of {} numbers", values.len());
        const AT_ONCE: usize = BLOCK / NVFP4_GROUP;
        let (scale_code, code) =
            (Small::new(E4m3fn, Overflow::Saturate), Small::new(E2m1, Overflow::Saturate));
        let mut counts = Counts::default();
        let mut unpacked = [0; BLOCK];
        let blocks = codes.chunks_mut(BLOCK / 2).zip(scales.chunks_mut(AT_ONCE));
        for (values, (codes, scales)) in values.chunks(BLOCK).zip(blocks) {
            let unpacked = &mut unpacked[..values.len()];
            let groups = values.as_chunks::<NVFP4_GROUP>().0;
            let (amax, special) = amaxes::<NVFP4_GROUP, AT_ONCE>(groups);
            let mut divisors = [0.0; AT_ONCE];
            let mut worst = 0;
            for ((divisor, amax), scale) in divisors.iter_mut().zip(&amax).zip(scales) {
                let [stored] = scale_code.code((amax / 6.0 / rule.global).max(rule.least));
                *scale = stored;
                *divisor = E4m3fn::number([stored]) * rule.global;
                let lost = (amax / *divisor).to_bits();
                worst = worst.max(if *divisor == 0.0 { INFINITY } else { lost });
            }
            let codes_of_groups = unpacked.as_chunks_mut::<NVFP4_GROUP>().0;
            for ((x, codes), divisor) in groups.iter().zip(&mut *codes_of_groups).zip(divisors) {
                for (x, byte) in x.iter().zip(codes) {
                    [*byte] = code.code(x / divisor);
                }
            }
            if special || worst > <Small<E2m1> as Target<1>>::HARMLESS {
                for ((x, codes), divisor) in groups.iter().zip(codes_of_groups).zip(divisors) {
                    let divide = |x| if divisor == 0.0 { 0.0 } else { x / divisor };
                    counts += settle(code, x, codes, divide);
                }
            }
            pack(unpacked, codes);
        }
        counts
    }

    /// Numbers of NVFP4 groups: (code × group's scale) × `global`.
    ///
    /// # Panics
    ///
    /// If the slices hold not the same number of whole groups.
    pub(crate) fn decode_nvfp4(
        global: f32,
        codes: &[u8],
        scales: &[u8],
        values: &mut [f32],
    ) -> () {
        assert_eq!(values.len(), scales.len() * NVFP4_GROUP, "numbers of {} groups", scales.len());
        assert_eq!(2 * codes.len(), values.len(), "nibbles of {} numbers", values.len());
        let groups = values.as_chunks_mut::<NVFP4_GROUP>().0.iter_mut().zip(scales);
        let codes = codes.as_chunks::<{ NVFP4_GROUP / 2 }>().0;
        for (codes, (values, scale)) in codes.iter().zip(groups) {
            let mut unpacked = [0; NVFP4_GROUP];
            unpack(codes, &mut unpacked);
            let scale = E4m3fn::number([*scale]);
            for (code, x) in unpacked.iter().zip(values) {
                *x = E2m1::number([*code]) * scale * global;
            }
        }
    }

    /// `e4m3fn` tiles of `tile` numbers, and a scale for each tile.
    ///
    /// # Panics
    ///
    /// If the slices hold not the same number of whole tiles.
    pub(crate) fn encode_tiles(
        tile: usize,
        rule: TileRule,
        stored: ScaleCode,
        values: &[f32],
        codes: &mut [u8],
        scales: &mut [u8],
    ) -> Counts {
        assert_eq!(codes.len(), values.len(), "codes of {} numbers", values.len());
        let tiles = scales.len() / stored.bytes();
        assert_eq!(values.len(), tiles * tile, "numbers of {tiles} tiles of {tile}");
        assert!(rule.power_of_two || stored == ScaleCode::F32, "{stored:?} holds powers of two");
        let mut counts = Counts::default();
        let code = Small::new(E4m3fn, Overflow::Saturate);
        let tiles = values.chunks_exact(tile).zip(codes.chunks_exact_mut(tile));
        for ((values, codes), place) in tiles.zip(scales.chunks_exact_mut(stored.bytes())) {
            let (amax, special) = greatest_finite(values);
            let scale = rule.scale(amax);
            match stored {
                ScaleCode::F32 => place.copy_from_slice(&scale.to_le_bytes()),
                ScaleCode::E8m0 => place[0] = (scale.to_bits() >> 23) as u8,
            }
            if rule.power_of_two {
                let inverse = 1.0 / scale;
                counts += encode_derived(code, values, codes, special, |x| x * inverse);
            } else {
                counts += encode_derived(code, values, codes, special, |x| x / scale);
            }
        }
        counts
    }

    /// Numbers of `e4m3fn` tiles: code × scale.
    ///
    /// # Panics
    ///
    /// If the slices hold not the same number of whole tiles.
    pub(crate) fn decode_tiles(
        tile: usize,
        stored: ScaleCode,
        codes: &[u8],
        scales: &[u8],
        values: &mut [f32],
    ) -> () {
        assert_eq!(codes.len(), values.len(), "codes of {} numbers", values.len());
        let tiles = scales.len() / stored.bytes();
        assert_eq!(values.len(), tiles * tile, "numbers of {tiles} tiles of {tile}");
        let tiles = codes.chunks_exact(tile).zip(values.chunks_exact_mut(tile));
        for ((codes, values), scale) in tiles.zip(scales.chunks_exact(stored.bytes())) {
            let scale = match scale {
                [exponent] => power_of_two(*exponent),
                scale => scale.first_chunk().map_or(f32::NAN, |scale| f32::from_le_bytes(*scale)),
            };
            decode_scaled::<E4m3fn>(codes, scale, values);
        }
    }

    /// Rows with one `f32` scale each, as vLLM's `per_token_head` kernels: s = max(amax ÷ max, 1e-6), and
    /// x × (1/s); max is 127 for `int8`, which rounds half away from zero, 448 for `e4m3fn`, 224
    /// for `e4m3fnuz`.
    ///
    /// # Panics
    ///
    /// If the slices hold not the same number of whole rows, or for another element.
    pub(crate) fn encode_rows(
        element: Number,
        dim: usize,
        values: &[f32],
        codes: &mut [u8],
        scales: &mut [u8],
    ) -> Counts {
        assert_eq!(codes.len(), values.len(), "codes of {} numbers", values.len());
        assert_eq!(values.len() * 4, scales.len() * dim, "numbers of rows of {dim}");
        let max: f32 = match element {
            Number::Int8 => 127.0,
            Number::E4m3fn => 448.0,
            Number::E4m3fnuz => 224.0,
            other => panic!("rows of {other:?} with a scale each"),
        };
        let mut counts = Counts::default();
        let rows = values.chunks_exact(dim).zip(codes.chunks_exact_mut(dim));
        for ((values, codes), stored) in rows.zip(scales.as_chunks_mut::<4>().0) {
            let (amax, special) = greatest_finite(values);
            let scale = (amax / max).max(1e-6);
            *stored = scale.to_le_bytes();
            let inverse = 1.0 / scale;
            let float = |x: f32| (x * inverse).clamp(-max, max);
            counts += match element {
                Number::E4m3fn => {
                    let code = Small::new(E4m3fn, Overflow::Saturate);
                    encode_derived(code, values, codes, special, float)
                }
                Number::E4m3fnuz => {
                    // vLLM does not go beyond 224, for Inf neither.
                    let code = Small::new(E4m3fnuz, Overflow::Saturate);
                    let counts = encode_derived(code, values, codes, special, float);
                    if special {
                        for (x, byte) in values.iter().zip(codes).filter(|(x, _)| x.is_infinite()) {
                            [*byte] = code.code(max.copysign(*x));
                        }
                    }
                    counts
                }
                _ => encode_derived(Int8Away, values, codes, special, |x| x * inverse),
            };
        }
        counts
    }
}

/// The greatest finite magnitudes of groups, and whether any number is Inf or NaN.
#[inline(always)]
fn amaxes<const N: usize, const GROUPS: usize>(groups: &[[f32; N]]) -> ([f32; GROUPS], bool) {
    let mut amax = [0.0f32; GROUPS];
    let mut worst = 0;
    for (group, amax) in groups.iter().zip(&mut amax) {
        let mut greatest = 0;
        for x in group {
            greatest = greatest.max(x.to_bits() & MAGNITUDE);
        }
        worst = worst.max(greatest);
        *amax = f32::from_bits(greatest);
    }
    let special = worst >= INFINITY;
    if special {
        for (group, amax) in groups.iter().zip(&mut amax) {
            *amax = greatest_finite(group).0;
        }
    }
    (amax, special)
}

/// Codes of numbers under a scale derived from the finite ones, of which therefore none saturates.
#[inline(always)]
fn encode_derived<T: Target<1>>(
    code: T,
    values: &[f32],
    codes: &mut [u8],
    special: bool,
    divide: impl Fn(f32) -> f32,
) -> Counts {
    for (x, byte) in values.iter().zip(&mut *codes) {
        [*byte] = code.code(divide(*x));
    }
    if special {
        settle(code, values, codes, divide)
    } else {
        Counts::default()
    }
}

/// Counts what was lost, and writes the codes of what is not finite.
#[inline(always)]
fn settle<T: Target<1>>(
    code: T,
    values: &[f32],
    codes: &mut [u8],
    divide: impl Fn(f32) -> f32,
) -> Counts {
    let mut counts = Counts::default();
    for (x, byte) in values.iter().zip(codes) {
        // Whatever the scale is, even zero.
        let y = if x.is_finite() { divide(*x) } else { *x };
        let loss;
        ([*byte], loss) = code.settle(*x, y);
        counts.saturated += u64::from(loss == Loss::Saturated);
        counts.nan += u64::from(loss == Loss::Nan);
    }
    counts
}

#[inline(always)]
fn decode_scaled<S: Source<1>>(codes: &[u8], scale: f32, values: &mut [f32]) {
    decode_each::<S, 1>(codes, scale, values);
}

/// The integer nearest to `y`, half away from zero; |y| is 127 and a little at most.
#[inline(always)]
fn q8_0_code(y: f32) -> u8 {
    // Adding rounds |y| to a whole number, ties to even, and has it in the low bits of the sum.
    let sum = y.abs() + TWO_POW_23;
    let tie_went_down = y.abs() - (sum - TWO_POW_23) == 0.5;
    with_sign((sum.to_bits() & 0xFF) + u32::from(tie_went_down), y)
}

/// The number of an `e8m0` code; 0xFF is NaN, and 0 a subnormal.
#[inline(always)]
fn power_of_two(code: u8) -> f32 {
    f32::from_bits(match code {
        0 => 1 << 22,
        0xFF => INFINITY | 1 << 22,
        code => u32::from(code) << 23,
    })
}

/// 1 ÷ [`power_of_two`] of a code that is not NaN, exactly.
#[inline(always)]
fn reciprocal(code: u32) -> f32 {
    let normal = (254 - code) << 23;
    f32::from_bits(if code == 254 { 1 << 22 } else { normal })
}

impl MxRule {
    /// The `e8m0` code of a block.
    #[inline(always)]
    fn exponent<F: SmallFloat>(self, amax: f32) -> u32 {
        let bits = amax.to_bits();
        let greatest = (F::GREATEST << F::SHIFT) + F::REBIAS;
        let greatest_exponent = (greatest >> 23) - 127;
        match self {
            Self::Floor => (bits >> 23).saturating_sub(greatest_exponent),
            Self::Even => {
                let half_step = 1 << (F::SHIFT - 1);
                ((bits + half_step) >> 23).saturating_sub(greatest_exponent)
            }
            Self::Ceil => {
                let quotient = (amax / f32::from_bits(greatest)).to_bits();
                // 2⁻¹²⁷, the least scale, is a subnormal of `f32`.
                let up = (quotient + 0x7F_FFFF) >> 23;
                if quotient <= 1 << 22 { 0 } else { up }
            }
        }
    }
}

/// MX blocks with one code in each byte.
#[inline(always)]
fn mx<F: SmallFloat>(
    float: F,
    rule: MxRule,
    values: &[f32],
    codes: &mut [u8],
    scales: &mut [u8],
) -> Counts
where
    Small<F>: Target<1>,
{
    match rule {
        MxRule::Floor => mx_blocks(
            float,
            |amax| MxRule::Floor.exponent::<F>(amax),
            values,
            codes,
            scales,
        ),
        MxRule::Ceil => mx_blocks(
            float,
            |amax| MxRule::Ceil.exponent::<F>(amax),
            values,
            codes,
            scales,
        ),
        MxRule::Even => mx_blocks(
            float,
            |amax| MxRule::Even.exponent::<F>(amax),
            values,
            codes,
            scales,
        ),
    }
}

#[inline(always)]
fn mx_blocks<F: SmallFloat>(
    float: F,
    exponent: impl Fn(f32) -> u32,
    values: &[f32],
    codes: &mut [u8],
    scales: &mut [u8],
) -> Counts
where
    Small<F>: Target<1>,
{
    const AT_ONCE: usize = BLOCK / GROUP;
    let code = Small::new(float, Overflow::Saturate);
    let mut counts = Counts::default();
    let blocks = codes.chunks_mut(BLOCK).zip(scales.chunks_mut(AT_ONCE));
    for (values, (codes, scales)) in values.chunks(BLOCK).zip(blocks) {
        let groups = values.as_chunks::<GROUP>().0;
        let codes = codes.as_chunks_mut::<GROUP>().0;
        let (amax, special) = amaxes::<GROUP, AT_ONCE>(groups);
        let mut inverses = [0.0; AT_ONCE];
        let mut worst = 0;
        for ((inverse, amax), scale) in inverses.iter_mut().zip(&amax).zip(scales) {
            let exponent = exponent(*amax).min(254);
            *scale = exponent as u8;
            *inverse = reciprocal(exponent);
            worst = worst.max((amax * *inverse).to_bits());
        }
        for ((values, codes), inverse) in groups.iter().zip(&mut *codes).zip(inverses) {
            for (x, byte) in values.iter().zip(codes) {
                [*byte] = code.code(x * inverse);
            }
        }
        if special || worst > <Small<F> as Target<1>>::HARMLESS {
            for ((values, codes), inverse) in groups.iter().zip(codes).zip(inverses) {
                counts += settle(code, values, codes, |x| x * inverse);
            }
        }
    }
    counts
}

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(
        dead_code,
        unused_variables,
        reason = "some of it is for loops that only x86-64 has"
    )
)]
mod octaves;
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(
        dead_code,
        unused_variables,
        reason = "some of it is for loops that only x86-64 has"
    )
)]
mod of_bf16;
#[cfg(test)]
mod tests;
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(
        dead_code,
        unused_variables,
        reason = "some of it is for loops that only x86-64 has"
    )
)]
pub(crate) mod to_bf16;

pub(crate) use octaves::ScaledOctaves;
pub(crate) use of_bf16::{
    copy_bf16, encode_mx_of_bf16, encode_nvfp4_of_bf16, encode_q8_0_of_bf16, encode_rows_of_bf16,
    encode_tiles_of_bf16, takes_tiles_of,
};
