//! Tiles of `bf16` numbers, of any multiple of 64, up to 16 at once.

use std::arch::x86_64::*;

use super::super::{ScaleCode, TileRule};
use super::of_bf16::{
    Half, WORDS, even_words, greater_word, load_pair, load_words, negatives, whole_magnitudes,
};
use super::{AT_ONCE, codes, finite, greatest_of_each, store};
use crate::cpu::Flow;
use crate::cpu::scalar::E4m3fn;
use crate::cpu::table::{Mantissas, avx512::Lookup};

/// The greatest magnitudes of up to 16 tiles, and zeros; `None` if there is Inf or NaN.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn amaxes(tile: usize, codes: &[[u8; 2]]) -> Option<__m512> {
    let mut vectors = [_mm512_setzero_si512(); AT_ONCE];
    for (codes, greatest) in codes.chunks_exact(tile).zip(&mut vectors) {
        for words in codes.as_chunks::<WORDS>().0 {
            let magnitudes = _mm512_and_si512(load_words(words), _mm512_set1_epi16(0x7FFF));
            *greatest = _mm512_max_epu16(*greatest, magnitudes);
        }
    }
    finite(greater_word(greatest_of_each::<true>(vectors)))
}

fn write_scales(scales: &[f32; AT_ONCE], out: &mut [[u8; 4]]) {
    for (scale, out) in scales.iter().zip(out) {
        *out = scale.to_le_bytes();
    }
}

/// Rows under the scale max(amax ÷ `greatest`, 1e-6), numbers × (1 ÷ scale): whole numbers half away from zero, or
/// `e4m3fn`. Whether there was nothing rare among them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
pub(in super::super) fn rows<const WHOLE: bool>(
    greatest: f32,
    dim: usize,
    flow: Flow,
    codes: &[[u8; 2]],
    out: &mut [u8],
    stored: &mut [[u8; 4]],
) -> bool {
    let Some(amax) = amaxes(dim, codes) else {
        return false;
    };
    let scale = _mm512_div_ps(amax, _mm512_set1_ps(greatest));
    let scale = _mm512_max_ps(scale, _mm512_set1_ps(1e-6));
    let inverse = _mm512_div_ps(_mm512_set1_ps(1.0), scale);
    let (mut scales, mut inverses) = ([0.0; AT_ONCE], [0.0; AT_ONCE]);
    store(&mut scales, scale);
    store(&mut inverses, inverse);
    write_scales(&scales, stored);
    let tiles = codes.chunks_exact(dim).zip(out.chunks_exact_mut(dim));
    for ((codes, out), inverse) in tiles.zip(&inverses) {
        if WHOLE {
            whole_numbers(flow, codes, *inverse, out);
        } else {
            floats::<false>(flow, codes, *inverse, out);
        }
    }
    true
}

/// `e4m3fn` tiles by a rule; whether there was nothing rare among them.
#[allow(
    clippy::too_many_arguments,
    reason = "slices and scalars, as loops take them"
)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
pub(in super::super) fn tiles(
    table: &Mantissas,
    rule: TileRule,
    stored: ScaleCode,
    tile: usize,
    flow: Flow,
    codes: &[[u8; 2]],
    out: &mut [u8],
    scales_out: &mut [u8],
) -> bool {
    let Some(amax) = amaxes(tile, codes) else {
        return false;
    };
    let wanted = _mm512_max_ps(amax, _mm512_set1_ps(rule.least_amax));
    let wanted = _mm512_div_ps(wanted, _mm512_set1_ps(448.0));
    let mut scale = _mm512_max_ps(wanted, _mm512_set1_ps(rule.least_scale));
    if rule.power_of_two {
        // Up to the next exponent, unless it is a power of two already.
        let mantissa = _mm512_set1_epi32(0x7F_FFFF);
        let up = _mm512_add_epi32(_mm512_castps_si512(scale), mantissa);
        scale = _mm512_castsi512_ps(_mm512_andnot_si512(mantissa, up));
    }
    let mut scales = [0.0f32; AT_ONCE];
    store(&mut scales, scale);
    match stored {
        ScaleCode::F32 => write_scales(&scales, scales_out.as_chunks_mut().0),
        ScaleCode::E8m0 => {
            for (scale, out) in scales.iter().zip(&mut *scales_out) {
                *out = (scale.to_bits() >> 23) as u8;
            }
        }
    }
    let tiles = codes.chunks_exact(tile).zip(out.chunks_exact_mut(tile));
    if !rule.power_of_two {
        for ((codes, out), scale) in tiles.zip(&scales) {
            floats::<true>(flow, codes, *scale, out);
        }
        return true;
    }
    let lookup = Lookup::new(table);
    for ((codes, out), scale) in tiles.zip(&scales) {
        // The table is that of scale 1, whose exponent is 127.
        let start = i32::from(table.base) + (scale.to_bits() >> 23) as i32 - 127;
        let Ok(start) = u8::try_from(start) else {
            return false;
        };
        let start = _mm512_set1_epi8(start as i8);
        let pairs = codes.as_chunks::<64>().0.iter();
        for (pair, out) in pairs.zip(out.as_chunks_mut::<64>().0) {
            flow.fetch(pair.as_flattened());
            let (a, b) = load_pair(pair);
            store_codes(lookup.saturating(start, a, b).1, out);
        }
    }
    true
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_codes(codes: __m512i, out: &mut [u8; 64]) {
    // SAFETY: 64 bytes are written, wherever they lie.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), codes) }
}

/// x·r to whole numbers, half away from zero, as ⌊|x·r| + ½⌋ with the sum rounded.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn whole_numbers(flow: Flow, codes: &[[u8; 2]], inverse: f32, out: &mut [u8]) {
    let inverse = _mm512_set1_ps(inverse);
    let pairs = codes.as_chunks::<64>().0.iter();
    for (pair, out) in pairs.zip(out.as_chunks_mut::<64>().0) {
        flow.fetch(pair.as_flattened());
        let (a, b) = load_pair(pair);
        let low = whole_magnitudes::<{ Half::ADDED }>(a, inverse);
        let high = whole_magnitudes::<{ Half::ADDED }>(b, inverse);
        let magnitudes = _mm512_permutex2var_epi16(low, even_words(), high);
        let zero = _mm512_setzero_si512();
        let codes = _mm512_mask_sub_epi8(magnitudes, negatives(a, b), zero, magnitudes);
        store_codes(codes, out);
    }
}

/// `e4m3fn` of quotients or products, none of which is beyond its greatest number.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn floats<const DIVIDES: bool>(flow: Flow, numbers: &[[u8; 2]], by: f32, out: &mut [u8]) {
    let by = _mm512_set1_ps(by);
    let pairs = numbers.as_chunks::<64>().0.iter();
    for (pair, out) in pairs.zip(out.as_chunks_mut::<64>().0) {
        flow.fetch(pair.as_flattened());
        let (a, b) = load_pair(pair);
        let (low, high) = (two_floats::<DIVIDES>(a, by), two_floats::<DIVIDES>(b, by));
        store_codes(_mm512_permutex2var_epi16(low, even_words(), high), out);
    }
}

/// Codes of 32 numbers, two in the lower word of each lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn two_floats<const DIVIDES: bool>(words: __m512i, by: __m512) -> __m512i {
    let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words));
    let odd = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(!0xFFFF)));
    let (even, odd) = if DIVIDES {
        (_mm512_div_ps(even, by), _mm512_div_ps(odd, by))
    } else {
        (_mm512_mul_ps(even, by), _mm512_mul_ps(odd, by))
    };
    // Where the third has a bit, that of the first, else of the second.
    _mm512_ternarylogic_epi32::<0xE4>(
        codes::<E4m3fn>(even),
        _mm512_slli_epi32::<8>(codes::<E4m3fn>(odd)),
        _mm512_set1_epi32(0xFF),
    )
}
