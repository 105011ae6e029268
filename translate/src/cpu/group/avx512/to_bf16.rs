//! Products of codes and scales, as `bf16`.

use std::arch::x86_64::*;

use super::super::to_bf16::Stride;
use crate::cpu::table::avx512::Table256;

/// Codes × scales, 32 codes under each of an even number of scales that are not NaN; whether all products are finite
/// `bf16`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
pub(in super::super) fn bytes(
    low: &[u8; 256],
    high: &[u8; 256],
    stride: Stride,
    codes: &[u8],
    scales: &[f32],
    out: &mut [u8],
) -> bool {
    let (low, high) = (Table256::new(low), Table256::new(high));
    // Unpacking works within quarters: each gets 8 codes of the first half and 8 of the second.
    let order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    let mut worst = _mm512_setzero_si512();
    let pairs = codes.chunks_exact(2 * stride.bytes);
    let outs = out.as_chunks_mut::<128>().0;
    for ((codes, scales), out) in pairs.zip(scales.as_chunks::<2>().0).zip(outs) {
        let (first, second) = codes.split_at(stride.bytes);
        let halves = _mm512_inserti64x4::<1>(
            _mm512_castsi256_si512(load_32(first, stride.skipped)),
            load_32(second, stride.skipped),
        );
        let codes = _mm512_permutexvar_epi64(order, halves);
        let (low, high) = (low.at(codes), high.at(codes));
        let outs = out.as_chunks_mut::<64>().0;
        let a = products(_mm512_unpacklo_epi8(low, high), scales[0]);
        let b = products(_mm512_unpackhi_epi8(low, high), scales[1]);
        worst = _mm512_max_epu16(worst, magnitudes(a));
        worst = _mm512_max_epu16(worst, magnitudes(b));
        store(a, &mut outs[0]);
        store(b, &mut outs[1]);
    }
    _mm512_cmpge_epu16_mask(worst, _mm512_set1_epi16(0x7F80)) == 0
}

/// Codes × powers of two, one for each `tile` of codes, under all of which finite numbers are normal; whether all codes
/// are finite.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
pub(in super::super) fn shifted(
    low: &[u8; 256],
    high: &[u8; 256],
    tile: usize,
    codes: &[u8],
    scales: &[u8],
    out: &mut [u8],
) -> bool {
    let (low, high) = (Table256::new(low), Table256::new(high));
    let order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    let mut worst = _mm512_setzero_si512();
    let outs = out.as_chunks_mut::<128>().0;
    // Two scales of 32 codes, or one of more.
    let [first, second] = if tile == 32 { [0, 1] } else { [0, 0] };
    for (i, (codes, out)) in codes.as_chunks::<64>().0.iter().zip(outs).enumerate() {
        let at = if tile == 32 { 2 * i } else { 64 * i / tile };
        let up = [first, second].map(|n| (i16::from(scales[at + n]) - 127) << 7);
        // SAFETY: 64 bytes are read, from wherever they lie.
        let codes = unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) };
        let codes = _mm512_permutexvar_epi64(order, codes);
        let (low, high) = (low.at(codes), high.at(codes));
        let a = _mm512_unpacklo_epi8(low, high);
        let b = _mm512_unpackhi_epi8(low, high);
        worst = _mm512_max_epu16(worst, magnitudes(a));
        worst = _mm512_max_epu16(worst, magnitudes(b));
        let outs = out.as_chunks_mut::<64>().0;
        store(moved_up(a, up[0]), &mut outs[0]);
        store(moved_up(b, up[1]), &mut outs[1]);
    }
    _mm512_cmpge_epu16_mask(worst, _mm512_set1_epi16(0x7F80)) == 0
}

/// Numbers but zeros with something added to their exponents.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn moved_up(words: __m512i, up: i16) -> __m512i {
    let number = _mm512_test_epi16_mask(words, _mm512_set1_epi16(0x7FFF));
    _mm512_mask_add_epi16(words, number, words, _mm512_set1_epi16(up))
}

/// Codes of `int8` × scales, 32 codes under each; whether all products are finite `bf16`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
pub(in super::super) fn integers(
    stride: Stride,
    codes: &[u8],
    scales: &[f32],
    out: &mut [u8],
) -> bool {
    const UPPER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = 2 * i as u16 + 1;
            i += 1;
        }
        order
    };
    // SAFETY: 64 bytes are read.
    let upper = unsafe { _mm512_loadu_si512(UPPER.as_ptr().cast()) };
    let mut worst = _mm512_setzero_si512();
    let groups = codes.chunks_exact(stride.bytes).zip(scales);
    for ((codes, scale), out) in groups.zip(out.as_chunks_mut::<64>().0) {
        let scale = _mm512_set1_ps(*scale);
        let codes = load_32(codes, stride.skipped);
        let low = _mm512_cvtepi8_epi32(_mm256_castsi256_si128(codes));
        let high = _mm512_cvtepi8_epi32(_mm256_extracti128_si256::<1>(codes));
        let low = rounded(_mm512_mul_ps(_mm512_cvtepi32_ps(low), scale));
        let high = rounded(_mm512_mul_ps(_mm512_cvtepi32_ps(high), scale));
        let words = _mm512_permutex2var_epi16(low, upper, high);
        worst = _mm512_max_epu16(worst, magnitudes(words));
        store(words, out);
    }
    _mm512_cmpge_epu16_mask(worst, _mm512_set1_epi16(0x7F80)) == 0
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn magnitudes(words: __m512i) -> __m512i {
    _mm512_and_si512(words, _mm512_set1_epi16(0x7FFF))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_32(bytes: &[u8], skipped: usize) -> __m256i {
    let bytes: &[u8; 32] = bytes[skipped..]
        .first_chunk()
        .expect("32 codes in each stride");
    // SAFETY: 32 bytes are read, from wherever they lie.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(words: __m512i, out: &mut [u8; 64]) {
    // SAFETY: 64 bytes are written, wherever they lie.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), words) }
}

/// `bf16` numbers × a scale, rounded to `f32` and then to `bf16`; not for NaN.
#[inline]
#[target_feature(enable = "avx512f")]
fn products(words: __m512i, scale: f32) -> __m512i {
    let scale = _mm512_set1_ps(scale);
    let upper = _mm512_set1_epi32(!0xFFFF);
    let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words));
    let odd = _mm512_castsi512_ps(_mm512_and_si512(words, upper));
    let even = rounded(_mm512_mul_ps(even, scale));
    let odd = rounded(_mm512_mul_ps(odd, scale));
    // Where the third has a bit, that of the first, else of the second.
    _mm512_ternarylogic_epi32::<0xE4>(odd, _mm512_srli_epi32::<16>(even), upper)
}

/// The nearest `bf16`, ties to even, in the upper half.
#[inline]
#[target_feature(enable = "avx512f")]
fn rounded(numbers: __m512) -> __m512i {
    let bits = _mm512_castps_si512(numbers);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let half = _mm512_set1_epi32(0x7FFF);
    _mm512_add_epi32(_mm512_add_epi32(bits, half), odd)
}

/// Numbers of 4-bit codes by the tables of their scales; groups of 16, of which there is an even number, or of 32.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(in super::super) fn nibbles<const GROUP: usize>(
    numbers: &[[u16; 16]; 256],
    codes: &[u8],
    scales: &[u8],
    out: &mut [u8],
) {
    // In groups of 16 the upper half has the table of the second group.
    let half = if GROUP == 16 {
        _mm512_inserti64x4::<1>(_mm512_setzero_si512(), _mm256_set1_epi16(16))
    } else {
        _mm512_setzero_si512()
    };
    let table = |scale: u8| {
        // SAFETY: the 32 bytes of 16 numbers are read, from wherever they lie.
        unsafe { _mm256_loadu_si256(numbers[usize::from(scale)].as_ptr().cast()) }
    };
    let outs = out.as_chunks_mut::<64>().0.iter_mut();
    let codes = codes.as_chunks::<16>().0.iter().zip(outs);
    for ((codes, out), scales) in codes.zip(scales.chunks_exact(32 / GROUP)) {
        let tables = _mm512_inserti64x4::<1>(
            _mm512_castsi256_si512(table(scales[0])),
            table(scales[scales.len() - 1]),
        );
        // SAFETY: 16 bytes are read, from wherever they lie.
        let codes = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
        let lanes = _mm512_cvtepu8_epi32(codes);
        let both = _mm512_or_si512(lanes, _mm512_slli_epi32::<12>(lanes));
        // The third, and of the first the bits of the second.
        let at = _mm512_ternarylogic_epi32::<0xEA>(both, _mm512_set1_epi16(0xF), half);
        store(_mm512_permutexvar_epi16(at, tables), out);
    }
}
