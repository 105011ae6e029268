//! Blocks of `bf16` numbers, none of which is made an `f32` unless a product has to be rounded.
//!
//! Magnitudes of `bf16` compare as 16-bit integers, 32 at a time, and codes under a scale that is known follow from
//! the 8 bits of the exponent and the 7 of the mantissa by look-ups of 64 bytes.

use std::arch::x86_64::*;

use super::super::{
    BLOCK, GROUP, MxRule, NVFP4_GROUP, Nvfp4Rule, Q8_0_BYTES,
    octaves::{BEYOND, OCTAVES, Octaves, ScaledOctaves},
};
use super::{AT_ONCE, codes, finite, greatest_of_each, mx_exponents, q8_0_scales};
use crate::cpu::Flow;
use crate::cpu::scalar::{E2m1, E4m3fn, SmallFloat};
use crate::cpu::table::{
    Mantissas,
    avx512::{Lookup, high_bytes, parts},
};

/// Numbers in a vector.
pub(super) const WORDS: usize = 32;

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_words(words: &[[u8; 2]; WORDS]) -> __m512i {
    // SAFETY: 64 bytes are read, from wherever they lie.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_pair(words: &[[u8; 2]; 2 * WORDS]) -> (__m512i, __m512i) {
    let halves = words.as_chunks().0;
    (load_words(&halves[0]), load_words(&halves[1]))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_bytes(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes are read, from wherever they lie.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn magnitudes(codes: &[[u8; 2]; BLOCK]) -> [__m512i; AT_ONCE] {
    let mut vectors = [_mm512_setzero_si512(); AT_ONCE];
    for (words, vector) in codes.as_chunks().0.iter().zip(&mut vectors) {
        *vector = _mm512_and_si512(load_words(words), _mm512_set1_epi16(0x7FFF));
    }
    vectors
}

/// The greater word of each lane, as the upper half of an `f32`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn greater_word(two: __m512i) -> __m512i {
    let upper = _mm512_and_si512(two, _mm512_set1_epi32(!0xFFFF));
    _mm512_max_epu32(upper, _mm512_slli_epi32::<16>(two))
}

/// Where [`greatest_words_of_halves`] leaves the halves of vectors, in their order.
const HALVES: [[i32; AT_ONCE]; 2] = {
    let mut order = [[0; AT_ONCE]; 2];
    let mut i = 0;
    while i < 2 * AT_ONCE {
        let (first, group) = (i / AT_ONCE, i % AT_ONCE);
        let (vector, half) = (group / 2, group % 2);
        let within = [0, 2, 1, 3][vector / 2];
        let quarter = 2 * first + half;
        order[first][i % AT_ONCE] = (16 * (vector % 2) + 4 * quarter + within) as i32;
        i += 1;
    }
    order
};

/// For the halves of 16 vectors, the greatest of the lower words and that of the upper ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn greatest_words_of_halves(mut vectors: [__m512i; 16]) -> [__m512i; 2] {
    for i in 0..8 {
        let (a, b) = (vectors[i], vectors[i + 8]);
        let (even, odd) = (
            _mm512_shuffle_i64x2::<0x88>(a, b),
            _mm512_shuffle_i64x2::<0xDD>(a, b),
        );
        vectors[i] = _mm512_max_epu16(even, odd);
    }
    for i in 0..4 {
        let (a, b) = (vectors[i], vectors[i + 4]);
        vectors[i] = _mm512_max_epu16(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    for i in 0..2 {
        let (a, b) = (
            _mm512_castsi512_ps(vectors[i]),
            _mm512_castsi512_ps(vectors[i + 2]),
        );
        let (even, odd) = (
            _mm512_shuffle_ps::<0x88>(a, b),
            _mm512_shuffle_ps::<0xDD>(a, b),
        );
        vectors[i] = _mm512_max_epu16(_mm512_castps_si512(even), _mm512_castps_si512(odd));
    }
    // SAFETY: the 64 bytes of 16 places are read, from wherever they lie.
    let first = unsafe { _mm512_loadu_si512(HALVES[0].as_ptr().cast()) };
    // SAFETY: as above.
    let second = unsafe { _mm512_loadu_si512(HALVES[1].as_ptr().cast()) };
    [
        _mm512_permutex2var_epi32(vectors[0], first, vectors[1]),
        _mm512_permutex2var_epi32(vectors[0], second, vectors[1]),
    ]
}

/// Byte i is that of the group of number i, `each` numbers a group.
const fn spread(each: usize) -> [u8; 64] {
    let mut order = [0; 64];
    let mut i = 0;
    while i < 64 {
        order[i] = (i / each) as u8;
        i += 1;
    }
    order
}

/// Of 64 numbers, those with a sign.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn negatives(a: __m512i, b: __m512i) -> __mmask64 {
    _mm512_kunpackd(
        u64::from(_mm512_movepi16_mask(b)),
        u64::from(_mm512_movepi16_mask(a)),
    )
}

/// Codes of `e2m1` in nibbles, groups of `EACH`; how many numbers saturated.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn e2m1<const EACH: usize>(
    octaves: &Octaves,
    starts: __m512i,
    classes: __m512i,
    flow: Flow,
    codes: &[[u8; 2]; BLOCK],
    out: &mut [u8; BLOCK / 2],
) -> u64 {
    let first = load_bytes(&octaves.first);
    let (one, two) = (load_bytes(&octaves.more[0]), load_bytes(&octaves.more[1]));
    let byte = |byte: u8| _mm512_set1_epi8(byte as i8);
    let mut groups = load_bytes(const { &spread(EACH) });
    let mut saturated = _mm512_setzero_si512();
    let pairs = codes.as_chunks::<64>().0.iter();
    for (pair, out) in pairs.zip(out.as_chunks_mut::<32>().0) {
        flow.fetch(pair.as_flattened());
        let (a, b) = load_pair(pair);
        let (exponents, mantissas) = parts(a, b);
        let start = _mm512_permutexvar_epi8(groups, starts);
        let class = _mm512_permutexvar_epi8(groups, classes);
        groups = _mm512_add_epi8(groups, byte((64 / EACH) as u8));
        let octave = _mm512_min_epu8(_mm512_subs_epu8(exponents, start), byte(OCTAVES as u8 - 1));
        let at = _mm512_or_si512(octave, class);
        // Without masks, which wait for one another: what a mantissa is beyond, 1 at most.
        let more = |table| {
            let beyond = _mm512_subs_epu8(mantissas, _mm512_permutexvar_epi8(at, table));
            _mm512_min_epu8(beyond, byte(1))
        };
        let code = _mm512_add_epi8(_mm512_permutexvar_epi8(at, first), more(one));
        let code = _mm512_add_epi8(code, more(two));
        let limited = _mm512_min_epu8(code, byte(BEYOND - 1));
        saturated = _mm512_add_epi8(saturated, _mm512_sub_epi8(code, limited));
        let signs = _mm512_srli_epi16::<4>(high_bytes(a, b));
        // The first, and of the second the bits of the third.
        let code = _mm512_ternarylogic_epi32::<0xF8>(limited, signs, byte(E2m1::SIGN as u8));
        // Even codes and 16 times the odd ones.
        let both = _mm512_maddubs_epi16(code, _mm512_set1_epi16(0x1001));
        let bytes = _mm512_cvtepi16_epi8(both);
        // SAFETY: 32 bytes are written, wherever they lie.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) }
    }
    sum_of_bytes(saturated)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn sum_of_bytes(bytes: __m512i) -> u64 {
    _mm512_reduce_add_epi64(_mm512_sad_epu8(bytes, _mm512_setzero_si512())) as u64
}

/// 16 bytes of 16 lanes, and zeros.
#[inline]
#[target_feature(enable = "avx512f")]
fn low_bytes(lanes: __m512i) -> __m512i {
    _mm512_zextsi128_si512(_mm512_cvtepi32_epi8(lanes))
}

/// The scales of 16 MX blocks, written, and the exponents that are `above` those of the scales; `None` for what is
/// rare.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn mx_starts<F: SmallFloat>(
    rule: MxRule,
    above: i32,
    codes: &[[u8; 2]; BLOCK],
    scales: &mut [u8; AT_ONCE],
) -> Option<__m512i> {
    let bits = greater_word(greatest_of_each::<true>(magnitudes(codes)));
    let amax = finite(bits)?;
    let exponents = mx_exponents::<F>(rule, amax);
    super::store_bytes(exponents, scales);
    let starts = _mm512_add_epi32(exponents, _mm512_set1_epi32(above));
    let none = _mm512_movepi32_mask(starts);
    // Zeros, of either sign, have the lowest exponent.
    if none & _mm512_test_epi32_mask(bits, bits) != 0 {
        return None;
    }
    Some(low_bytes(_mm512_max_epi32(starts, _mm512_setzero_si512())))
}

/// MX blocks with a code in each nibble, and how many numbers saturated.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
pub(in super::super) fn mx_nibbles(
    octaves: &Octaves,
    rule: MxRule,
    flow: Flow,
    codes: &[[u8; 2]; BLOCK],
    out: &mut [u8; BLOCK / 2],
    scales: &mut [u8; AT_ONCE],
) -> Option<u64> {
    let starts = mx_starts::<E2m1>(rule, octaves.start(0, 0), codes, scales)?;
    let classes = _mm512_setzero_si512();
    Some(e2m1::<GROUP>(octaves, starts, classes, flow, codes, out))
}

/// MX blocks with a code in each byte, and how many numbers saturated.
///
/// Codes follow from mantissa and exponent by a table, as the scale is a power of two.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
pub(in super::super) fn mx_bytes<F: SmallFloat>(
    table: &Mantissas,
    rule: MxRule,
    flow: Flow,
    codes: &[[u8; 2]; BLOCK],
    out: &mut [u8; BLOCK],
    scales: &mut [u8; AT_ONCE],
) -> Option<u64> {
    // The table is that of scale 1, whose code is 127.
    let starts = mx_starts::<F>(rule, i32::from(table.base) - 127, codes, scales)?;
    let lookup = Lookup::new(table);
    let mut groups = load_bytes(const { &spread(GROUP) });
    let mut saturated = _mm512_setzero_si512();
    let pairs = codes.as_chunks::<64>().0.iter();
    for (pair, out) in pairs.zip(out.as_chunks_mut::<64>().0) {
        flow.fetch(pair.as_flattened());
        let (a, b) = load_pair(pair);
        let start = _mm512_permutexvar_epi8(groups, starts);
        groups = _mm512_add_epi8(groups, _mm512_set1_epi8(2));
        let (beyond, codes) = lookup.saturating(start, a, b);
        saturated = _mm512_add_epi8(saturated, beyond);
        // SAFETY: 64 bytes are written, wherever they lie.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), codes) }
    }
    Some(sum_of_bytes(saturated))
}

/// NVFP4 groups, and how many numbers saturated.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
pub(in super::super) fn nvfp4(
    scaled: &ScaledOctaves,
    rule: Nvfp4Rule,
    flow: Flow,
    codes: &[[u8; 2]; BLOCK],
    out: &mut [u8; BLOCK / 2],
    scales: &mut [u8; BLOCK / NVFP4_GROUP],
) -> Option<u64> {
    let [first, second] = greatest_words_of_halves(magnitudes(codes));
    let first = nvfp4_scales(rule, finite(greater_word(first))?);
    let second = nvfp4_scales(rule, finite(greater_word(second))?);
    let stored = _mm256_set_m128i(_mm512_cvtepi32_epi8(second), _mm512_cvtepi32_epi8(first));
    // SAFETY: 32 bytes are written, wherever they lie.
    unsafe { _mm256_storeu_si256(scales.as_mut_ptr().cast(), stored) }
    let stored = _mm512_zextsi256_si512(stored);
    let of_scales = |table: &[u8; 128]| {
        let halves = table.as_chunks::<64>().0;
        (load_bytes(&halves[0]), load_bytes(&halves[1]))
    };
    let (low, high) = of_scales(&scaled.classes);
    let classes = _mm512_permutex2var_epi8(low, stored, high);
    if _mm512_movepi8_mask(classes) as u32 != 0 {
        return None;
    }
    let (low, high) = of_scales(&scaled.starts);
    let starts = _mm512_permutex2var_epi8(low, stored, high);
    let octaves = &scaled.octaves;
    Some(e2m1::<NVFP4_GROUP>(
        octaves, starts, classes, flow, codes, out,
    ))
}

/// The codes of the scales of 16 groups.
#[inline]
#[target_feature(enable = "avx512f")]
fn nvfp4_scales(rule: Nvfp4Rule, amax: __m512) -> __m512i {
    let sixth = _mm512_div_ps(amax, _mm512_set1_ps(6.0));
    let wanted = _mm512_div_ps(sixth, _mm512_set1_ps(rule.global));
    let wanted = _mm512_max_ps(wanted, _mm512_set1_ps(rule.least));
    let limited = _mm512_min_ps(wanted, _mm512_set1_ps(448.0));
    _mm512_and_si512(codes::<E4m3fn>(limited), _mm512_set1_epi32(0x7F))
}

/// Groups of `q8_0`; whether there was nothing rare among them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
pub(in super::super) fn q8_0(
    flow: Flow,
    codes: &[[u8; 2]; BLOCK],
    groups: &mut [[u8; Q8_0_BYTES]; AT_ONCE],
) -> bool {
    let bits = greater_word(greatest_of_each::<true>(magnitudes(codes)));
    let Some(amax) = finite(bits) else {
        return false;
    };
    let Some((inverses, scales)) = q8_0_scales(amax) else {
        return false;
    };
    let each = inverses
        .as_chunks::<2>()
        .0
        .iter()
        .zip(scales.as_chunks::<2>().0);
    let groups = groups.as_chunks_mut::<2>().0.iter_mut();
    let pairs = codes.as_chunks::<64>().0.iter();
    for ((pair, groups), (inverses, scales)) in pairs.zip(groups).zip(each) {
        flow.fetch(pair.as_flattened());
        let (a, b) = load_pair(pair);
        let low = whole_magnitudes::<{ Half::LEFT }>(a, _mm512_set1_ps(inverses[0]));
        let high = whole_magnitudes::<{ Half::LEFT }>(b, _mm512_set1_ps(inverses[1]));
        let twice = _mm512_permutex2var_epi16(low, even_words(), high);
        // Half of twice the magnitude, half up.
        let magnitudes = _mm512_avg_epu8(twice, _mm512_setzero_si512());
        let zero = _mm512_setzero_si512();
        let codes = _mm512_mask_sub_epi8(magnitudes, negatives(a, b), zero, magnitudes);
        let halves = [
            _mm512_castsi512_si256(codes),
            _mm512_extracti64x4_epi64::<1>(codes),
        ];
        for ((group, half), scale) in groups.iter_mut().zip(halves).zip(scales) {
            let (stored, codes) = group.split_at_mut(2);
            stored.copy_from_slice(&scale.to_le_bytes());
            // SAFETY: the 32 bytes behind the scale are written, wherever they lie.
            unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), half) }
        }
    }
    true
}

/// How halves are rounded away from zero.
pub(super) struct Half;

impl Half {
    /// Twice the magnitude is rounded down, and left to whoever halves it.
    pub(super) const LEFT: u8 = 0;
    /// A half is added, and the sum rounded as sums are, before it is rounded down.
    pub(super) const ADDED: u8 = 1;
}

/// Whole magnitudes of 32 rounded products of less than 128, two in the lower word of each lane.
///
/// Added to 2²³ towards zero, a number has itself rounded down in the low byte, and added to 2¹⁵ in the second; twice
/// itself if added to half as much.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn whole_magnitudes<const HALF: u8>(words: __m512i, inverse: __m512) -> __m512i {
    const TRUNCATE: i32 = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;
    let magnitude = _mm512_set1_epi32(i32::MAX);
    let even = _mm512_and_si512(_mm512_slli_epi32::<16>(words), magnitude);
    let odd = _mm512_and_si512(words, _mm512_set1_epi32(0x7FFF_0000));
    let mut even = _mm512_mul_ps(_mm512_castsi512_ps(even), inverse);
    let mut odd = _mm512_mul_ps(_mm512_castsi512_ps(odd), inverse);
    let mut steps = [4_194_304.0, 16_384.0];
    if HALF == Half::ADDED {
        even = _mm512_add_ps(even, _mm512_set1_ps(0.5));
        odd = _mm512_add_ps(odd, _mm512_set1_ps(0.5));
        steps = [8_388_608.0, 32_768.0];
    }
    let even = _mm512_add_round_ps::<TRUNCATE>(even, _mm512_set1_ps(steps[0]));
    let odd = _mm512_add_round_ps::<TRUNCATE>(odd, _mm512_set1_ps(steps[1]));
    // Where the third has a bit, that of the first, else of the second.
    _mm512_ternarylogic_epi32::<0xE4>(
        _mm512_castps_si512(even),
        _mm512_castps_si512(odd),
        _mm512_set1_epi32(0xFF),
    )
}

/// The lower words of the lanes of two vectors.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn even_words() -> __m512i {
    const ORDER: [u16; WORDS] = {
        let mut order = [0; WORDS];
        let mut i = 0;
        while i < WORDS {
            order[i] = 2 * i as u16;
            i += 1;
        }
        order
    };
    // SAFETY: 64 bytes are read.
    unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) }
}
