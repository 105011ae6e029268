//! Codes that share a scale, straight from `bf16`.
//!
//! Whole blocks of finite numbers have loops of their own at AVX-512; all else is decoded first.

#[cfg(target_arch = "x86_64")]
use std::sync::LazyLock;

use super::{
    BLOCK, GROUP, MxRule, NVFP4_GROUP, Nvfp4Rule, Q8_0_BYTES, ScaleCode, TileRule, encode_mx,
    encode_nvfp4, encode_q8_0, encode_rows, encode_tiles, octaves::ScaledOctaves,
};
#[cfg(target_arch = "x86_64")]
use super::{
    avx512::{of_bf16 as avx512, tiles},
    is_avx512,
    octaves::Octaves,
};
#[cfg(target_arch = "x86_64")]
use crate::cpu::{
    scalar::{E4m3fn, E5m2},
    table::Mantissas,
};
use crate::{
    cpu::{
        Flow,
        level::{Level, at_each_level},
        number::{Number, Overflow, Quotient, convert, decode},
    },
    format::Counts,
};

/// Codes of unscaled numbers.
#[cfg(target_arch = "x86_64")]
static E4M3FN: LazyLock<Option<Mantissas>> = LazyLock::new(|| Mantissas::unscaled(Number::E4m3fn));

/// [`encode_q8_0`] of `bf16` numbers.
///
/// # Panics
///
/// If the slices hold not the same number of whole groups.
pub(crate) fn encode_q8_0_of_bf16(
    level: Level,
    flow: Flow,
    codes: &[u8],
    groups: &mut [u8],
) -> Counts {
    assert_eq!(
        codes.len() % (2 * GROUP),
        0,
        "{} bytes of whole groups",
        codes.len()
    );
    assert_eq!(
        groups.len(),
        codes.len() / (2 * GROUP) * Q8_0_BYTES,
        "bytes of the groups"
    );
    let mut values = [0.0; BLOCK];
    let mut counts = Counts::default();
    let blocks = groups.chunks_mut(BLOCK / GROUP * Q8_0_BYTES);
    for (codes, groups) in codes.as_chunks::<2>().0.chunks(BLOCK).zip(blocks) {
        #[cfg(target_arch = "x86_64")]
        if is_avx512(level)
            && let Ok(codes) = codes.try_into()
            && let Ok(groups) = groups.as_chunks_mut().0.try_into()
            // SAFETY: this CPU has the features of the level.
            && unsafe { avx512::q8_0(flow, codes, groups) }
        {
            continue;
        }
        counts += encode_q8_0(level, decoded(level, codes, &mut values), groups);
    }
    counts
}

/// [`encode_nvfp4`] of `bf16` numbers; the octaves are those of the rule's constant.
///
/// # Panics
///
/// If the slices hold not the same number of whole groups.
pub(crate) fn encode_nvfp4_of_bf16(
    level: Level,
    flow: Flow,
    rule: Nvfp4Rule,
    octaves: &ScaledOctaves,
    codes: &[u8],
    out: &mut [u8],
    scales: &mut [u8],
) -> Counts {
    let numbers = codes.len() / 2;
    assert_eq!(
        numbers,
        scales.len() * NVFP4_GROUP,
        "numbers of {} groups",
        scales.len()
    );
    assert_eq!(2 * out.len(), numbers, "nibbles of {numbers} numbers");
    let mut values = [0.0; BLOCK];
    let mut counts = Counts::default();
    let blocks = out
        .chunks_mut(BLOCK / 2)
        .zip(scales.chunks_mut(BLOCK / NVFP4_GROUP));
    for (codes, (out, scales)) in codes.as_chunks::<2>().0.chunks(BLOCK).zip(blocks) {
        #[cfg(target_arch = "x86_64")]
        if is_avx512(level)
            && let Ok(codes) = codes.try_into()
            && let Ok(out) = (&mut *out).try_into()
            && let Ok(scales) = (&mut *scales).try_into()
            // SAFETY: this CPU has the features of the level.
            && let Some(saturated) = unsafe { avx512::nvfp4(octaves, rule, flow, codes, out, scales) }
        {
            counts.saturated += saturated;
            continue;
        }
        let numbers = decoded(level, codes, &mut values);
        counts += encode_nvfp4(level, rule, numbers, out, scales);
    }
    counts
}

/// [`encode_mx`] of `bf16` numbers.
///
/// # Panics
///
/// If the slices hold not the same number of whole blocks, or for another element.
pub(crate) fn encode_mx_of_bf16(
    level: Level,
    flow: Flow,
    element: Number,
    rule: MxRule,
    codes: &[u8],
    out: &mut [u8],
    scales: &mut [u8],
) -> Counts {
    let numbers = codes.len() / 2;
    assert_eq!(
        numbers,
        scales.len() * GROUP,
        "numbers of {} blocks",
        scales.len()
    );
    let packs = if element == Number::E2m1 { 2 } else { 1 };
    assert_eq!(packs * out.len(), numbers, "codes of {numbers} numbers");
    let mut values = [0.0; BLOCK];
    let mut counts = Counts::default();
    let blocks = out
        .chunks_mut(BLOCK / packs)
        .zip(scales.chunks_mut(BLOCK / GROUP));
    for (codes, (out, scales)) in codes.as_chunks::<2>().0.chunks(BLOCK).zip(blocks) {
        #[cfg(target_arch = "x86_64")]
        if is_avx512(level)
            && let Some(saturated) = mx_by_avx512(element, rule, flow, codes, out, scales)
        {
            counts.saturated += saturated;
            continue;
        }
        let numbers = decoded(level, codes, &mut values);
        counts += encode_mx(level, element, rule, numbers, out, scales);
    }
    counts
}

/// Whether there are loops for tiles of so many `bf16` numbers.
pub(crate) fn takes_tiles_of(elements: usize) -> bool {
    elements.is_multiple_of(64)
}

/// [`encode_tiles`] of `bf16` numbers.
///
/// # Panics
///
/// If the slices hold not the same number of whole tiles.
#[allow(
    clippy::too_many_arguments,
    reason = "slices and scalars, as loops take them"
)]
pub(crate) fn encode_tiles_of_bf16(
    level: Level,
    flow: Flow,
    tile: usize,
    rule: TileRule,
    stored: ScaleCode,
    codes: &[u8],
    out: &mut [u8],
    scales: &mut [u8],
) -> Counts {
    let size = stored.bytes();
    let tiles = scales.len() / size;
    assert_eq!(codes.len(), 2 * out.len(), "bytes of {} numbers", out.len());
    assert_eq!(
        out.len(),
        tiles * tile,
        "numbers of {tiles} tiles of {tile}"
    );
    assert!(
        rule.power_of_two || stored == ScaleCode::F32,
        "{stored:?} holds powers of two"
    );
    let mut counts = Counts::default();
    let blocks = out
        .chunks_mut(TILES * tile)
        .zip(scales.chunks_mut(TILES * size));
    for (codes, (out, scales)) in codes.as_chunks().0.chunks(TILES * tile).zip(blocks) {
        #[cfg(target_arch = "x86_64")]
        if is_avx512(level)
            && takes_tiles_of(tile)
            && let Some(table) = E4M3FN.as_ref()
            // SAFETY: this CPU has the features of the level.
            && unsafe { tiles::tiles(table, rule, stored, tile, flow, codes, out, scales) }
        {
            continue;
        }
        each_tile(level, tile, codes, |i, values| {
            let (out, scales) = (
                &mut out[i * tile..][..tile],
                &mut scales[i * size..][..size],
            );
            counts += encode_tiles(level, tile, rule, stored, values, out, scales);
        });
    }
    counts
}

/// [`encode_rows`] of `bf16` numbers.
///
/// # Panics
///
/// If the slices hold not the same number of whole rows, or for another element.
pub(crate) fn encode_rows_of_bf16(
    level: Level,
    flow: Flow,
    element: Number,
    dim: usize,
    codes: &[u8],
    out: &mut [u8],
    scales: &mut [u8],
) -> Counts {
    assert_eq!(codes.len(), 2 * out.len(), "bytes of {} numbers", out.len());
    assert_eq!(
        out.len() * 4,
        scales.len() * dim,
        "numbers of rows of {dim}"
    );
    let mut counts = Counts::default();
    let blocks = out
        .chunks_mut(TILES * dim)
        .zip(scales.chunks_mut(TILES * 4));
    for (codes, (out, scales)) in codes.as_chunks().0.chunks(TILES * dim).zip(blocks) {
        #[cfg(target_arch = "x86_64")]
        if is_avx512(level) && takes_tiles_of(dim) {
            let stored = scales.as_chunks_mut().0;
            let done = match element {
                // SAFETY: this CPU has the features of the level.
                Number::Int8 => unsafe {
                    tiles::rows::<true>(127.0, dim, flow, codes, out, stored)
                },
                // SAFETY: as above.
                Number::E4m3fn => unsafe {
                    tiles::rows::<false>(448.0, dim, flow, codes, out, stored)
                },
                _ => false,
            };
            if done {
                continue;
            }
        }
        each_tile(level, dim, codes, |i, values| {
            let (out, scales) = (&mut out[i * dim..][..dim], &mut scales[i * 4..][..4]);
            counts += encode_rows(level, element, dim, values, out, scales);
        });
    }
    counts
}

/// Codes of `bf16` numbers as they are, but for NaN, which is written as always and counted.
///
/// # Panics
///
/// If the slices are not of one length.
pub(crate) fn copy_bf16(level: Level, codes: &[u8], out: &mut [u8]) -> Counts {
    if copy_but_nan(level, codes.as_chunks().0, out.as_chunks_mut().0) {
        return Counts::default();
    }
    let (number, overflow) = (Number::Bf16, Overflow::Saturate);
    convert(
        level,
        number,
        1.0,
        number,
        overflow,
        Quotient::Same,
        codes,
        out,
    )
}

at_each_level! {
    /// Whether there was no NaN.
    fn copy_but_nan(codes: &[[u8; 2]], out: &mut [[u8; 2]]) -> bool {
        assert_eq!(codes.len(), out.len(), "codes on both sides");
        let mut worst = 0;
        for (code, out) in codes.iter().zip(out) {
            worst = worst.max(u16::from_le_bytes(*code) & 0x7FFF);
            *out = *code;
        }
        worst <= 0x7F80
    }
}

/// Tiles whose scales are made at once.
const TILES: usize = 16;

/// Passes the numbers of tiles among which there is something rare.
#[cold]
fn each_tile(level: Level, tile: usize, codes: &[[u8; 2]], mut each: impl FnMut(usize, &[f32])) {
    let mut near = [0.0; NEAR];
    let mut far;
    let values = if tile <= NEAR {
        &mut near[..tile]
    } else {
        far = vec![0.0; tile];
        &mut far[..]
    };
    for (i, codes) in codes.chunks_exact(tile).enumerate() {
        decode(level, Number::Bf16, codes.as_flattened(), 1.0, values);
        each(i, values);
    }
}

/// Numbers of a tile for which nothing is allocated.
const NEAR: usize = 1024;

/// How many numbers saturated, if this was a whole block without anything rare, and its codes were written.
#[cfg(target_arch = "x86_64")]
fn mx_by_avx512(
    element: Number,
    rule: MxRule,
    flow: Flow,
    codes: &[[u8; 2]],
    out: &mut [u8],
    scales: &mut [u8],
) -> Option<u64> {
    static E5M2: LazyLock<Option<Mantissas>> = LazyLock::new(|| Mantissas::unscaled(Number::E5m2));
    static E2M1: LazyLock<Option<Octaves>> = LazyLock::new(|| Octaves::new(&[1.0]));

    assert!(is_avx512(Level::best()), "blocks by AVX-512");
    let (codes, scales) = (codes.try_into().ok()?, scales.try_into().ok()?);
    match element {
        Number::E4m3fn => {
            let (table, out) = (E4M3FN.as_ref()?, out.try_into().ok()?);
            // SAFETY: this CPU has the features of the level.
            unsafe { avx512::mx_bytes::<E4m3fn>(table, rule, flow, codes, out, scales) }
        }
        Number::E5m2 => {
            let (table, out) = (E5M2.as_ref()?, out.try_into().ok()?);
            // SAFETY: as above.
            unsafe { avx512::mx_bytes::<E5m2>(table, rule, flow, codes, out, scales) }
        }
        Number::E2m1 => {
            let (octaves, out) = (E2M1.as_ref()?, out.try_into().ok()?);
            // SAFETY: as above.
            unsafe { avx512::mx_nibbles(octaves, rule, flow, codes, out, scales) }
        }
        _ => None,
    }
}

fn decoded<'a>(level: Level, codes: &[[u8; 2]], values: &'a mut [f32; BLOCK]) -> &'a [f32] {
    let values = &mut values[..codes.len()];
    decode(level, Number::Bf16, codes.as_flattened(), 1.0, values);
    values
}
