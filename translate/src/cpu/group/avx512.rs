//! Whole blocks of [`BLOCK`] finite numbers, with AVX-512.
//!
//! The compiler finds neither of the two things done here by hand: the greatest magnitudes of 16 groups are
//! found by one tree that transposes as it goes, in 3 instructions a group rather than 8, and codes are
//! narrowed straight from 32 bits. A function that returns `false` has met what is rare, and what it wrote
//! means nothing.
//!
//! # Unsafe
//!
//! Loads and stores of whole arrays by pointers to them. The functions are safe where the CPU has the
//! features they name.

use std::arch::x86_64::*;

use super::{BLOCK, GROUP, MxRule, NVFP4_GROUP, Nvfp4Rule, Q8_0_BYTES};
use crate::cpu::number::Overflow;
use crate::cpu::scalar::{E2m1, E4m3fn, INFINITY, MAGNITUDE, Small, SmallFloat, Source, Target};

pub(super) mod of_bf16;
pub(super) mod tiles;
pub(super) mod to_bf16;

/// Groups whose greatest magnitudes are found together.
const AT_ONCE: usize = 16;

#[inline]
#[target_feature(enable = "avx512f")]
fn load(values: &[f32; 16]) -> __m512 {
    // SAFETY: the 64 bytes of 16 numbers are read, from wherever they lie.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(values: &mut [f32; 16], vector: __m512) {
    // SAFETY: 64 bytes are written, wherever they lie.
    unsafe { _mm512_storeu_ps(values.as_mut_ptr(), vector) }
}

/// One code a byte.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_bytes(codes: __m512i, out: &mut [u8; 16]) {
    let bytes = _mm512_cvtepi32_epi8(codes);
    // SAFETY: 16 bytes are written, wherever they lie.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), bytes) }
}

/// Two codes a byte, the even one low.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_nibbles(codes: __m512i, out: &mut [u8; 8]) {
    let codes = _mm512_and_si512(codes, _mm512_set1_epi32(0xF));
    let pairs = _mm512_or_si512(codes, _mm512_srli_epi64::<28>(codes));
    let bytes = _mm512_cvtepi64_epi8(pairs);
    // SAFETY: 8 bytes are written, wherever they lie.
    unsafe { _mm_storel_epi64(out.as_mut_ptr().cast(), bytes) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn magnitudes(values: &[f32; 16]) -> __m512i {
    let bits = _mm512_castps_si512(load(values));
    _mm512_and_si512(bits, _mm512_set1_epi32(MAGNITUDE as i32))
}

/// The greater of unsigned lanes, or of their words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn greater<const WORDS: bool>(a: __m512i, b: __m512i) -> __m512i {
    if WORDS {
        _mm512_max_epu16(a, b)
    } else {
        _mm512_max_epu32(a, b)
    }
}

/// Lane i is the greatest lane of vector i; of words, it has the greatest of the lower ones, and that of the upper ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn greatest_of_each<const WORDS: bool>(mut vectors: [__m512i; 16]) -> __m512i {
    for i in 0..8 {
        let (a, b) = (vectors[i], vectors[i + 8]);
        let (low, high) = (
            _mm512_shuffle_i64x2::<0x44>(a, b),
            _mm512_shuffle_i64x2::<0xEE>(a, b),
        );
        vectors[i] = greater::<WORDS>(low, high);
    }
    for i in 0..4 {
        let (a, b) = (vectors[i], vectors[i + 4]);
        let (even, odd) = (
            _mm512_shuffle_i64x2::<0x88>(a, b),
            _mm512_shuffle_i64x2::<0xDD>(a, b),
        );
        vectors[i] = greater::<WORDS>(even, odd);
    }
    for i in 0..2 {
        let (a, b) = (vectors[i], vectors[i + 2]);
        vectors[i] = greater::<WORDS>(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    let (a, b) = (
        _mm512_castsi512_ps(vectors[0]),
        _mm512_castsi512_ps(vectors[1]),
    );
    let (even, odd) = (
        _mm512_shuffle_ps::<0x88>(a, b),
        _mm512_shuffle_ps::<0xDD>(a, b),
    );
    let greatest = greater::<WORDS>(_mm512_castps_si512(even), _mm512_castps_si512(odd));
    // Quarters hold vectors from 0, 8, 4 and 12 on, the middle two of each swapped.
    let order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
    _mm512_permutexvar_epi32(order, greatest)
}

/// The greatest magnitudes of 16 groups of 32, unless there is Inf or NaN.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn amaxes_of_32(values: &[f32; BLOCK]) -> Option<__m512> {
    let halves = values.as_chunks::<16>().0;
    let mut vectors = [_mm512_setzero_si512(); AT_ONCE];
    for (i, vector) in vectors.iter_mut().enumerate() {
        *vector = _mm512_max_epu32(magnitudes(&halves[2 * i]), magnitudes(&halves[2 * i + 1]));
    }
    finite(greatest_of_each::<false>(vectors))
}

/// The greatest magnitudes of 16 groups of 16, unless there is Inf or NaN.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn amaxes_of_16(groups: &[[f32; 16]; AT_ONCE]) -> Option<__m512> {
    let mut vectors = [_mm512_setzero_si512(); AT_ONCE];
    for (group, vector) in groups.iter().zip(&mut vectors) {
        *vector = magnitudes(group);
    }
    finite(greatest_of_each::<false>(vectors))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn finite(amax: __m512i) -> Option<__m512> {
    let special = _mm512_cmpge_epu32_mask(amax, _mm512_set1_epi32(INFINITY as i32));
    (special == 0).then_some(_mm512_castsi512_ps(amax))
}

/// [`SmallFloat::encode`] of 16 numbers in range; above the code's bits there may be others.
#[inline]
#[target_feature(enable = "avx512f")]
fn codes<F: SmallFloat>(y: __m512) -> __m512i {
    let bits = _mm512_castps_si512(y);
    let magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(MAGNITUDE as i32));
    let exponent = _mm512_and_si512(bits, _mm512_set1_epi32(INFINITY as i32));
    let exponent = _mm512_max_epu32(exponent, _mm512_set1_epi32(F::LEAST_NORMAL as i32));
    let step = _mm512_add_epi32(exponent, _mm512_set1_epi32(F::STEP as i32));
    let steps = _mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_castsi512_ps(step));
    let shift = _mm_cvtsi32_si128(F::SHIFT as i32);
    let code = _mm512_add_epi32(
        _mm512_castps_si512(steps),
        _mm512_srl_epi32(exponent, shift),
    );
    let sign_shift = _mm_cvtsi32_si128(31 - F::SIGN.trailing_zeros() as i32);
    let sign = _mm512_srl_epi32(bits, sign_shift);
    // Where the third has a bit, that of the second, else of the first.
    _mm512_ternarylogic_epi32::<0xD8>(code, sign, _mm512_set1_epi32(F::SIGN as i32))
}

/// By what the numbers of 16 groups are multiplied, and what is stored; `None` if one of those overflows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn q8_0_scales(amax: __m512) -> Option<([f32; AT_ONCE], [u16; AT_ONCE])> {
    let d = _mm512_div_ps(amax, _mm512_set1_ps(127.0));
    let inverse = _mm512_div_ps(_mm512_set1_ps(1.0), d);
    let is_finite = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(inverse, _mm512_set1_ps(f32::INFINITY));
    let mut inverses = [0.0; AT_ONCE];
    store(&mut inverses, _mm512_maskz_mov_ps(is_finite, inverse));
    let stored = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(d);
    let infinite = _mm256_cmpeq_epi16_mask(stored, _mm256_set1_epi16(0x7C00));
    let mut scales = [0u16; AT_ONCE];
    // SAFETY: 32 bytes are written, wherever they lie.
    unsafe { _mm256_storeu_si256(scales.as_mut_ptr().cast(), stored) }
    (infinite == 0).then_some((inverses, scales))
}

/// Groups of `q8_0`; whether there was nothing rare among them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn q8_0(values: &[f32; BLOCK], groups: &mut [[u8; Q8_0_BYTES]; AT_ONCE]) -> bool {
    let Some(amax) = amaxes_of_32(values) else {
        return false;
    };
    let Some((inverses, scales)) = q8_0_scales(amax) else {
        return false;
    };
    // Adding the number before a half and truncating rounds half away from zero.
    let half = _mm512_castps_si512(_mm512_set1_ps(0.5f32.next_down()));
    let sign = _mm512_set1_epi32(i32::MIN);
    let values = values.as_chunks::<GROUP>().0.iter();
    for (((values, group), inverse), scale) in values.zip(groups).zip(&inverses).zip(&scales) {
        let inverse = _mm512_set1_ps(*inverse);
        let (stored, codes) = group.split_at_mut(2);
        stored.copy_from_slice(&scale.to_le_bytes());
        for (x, codes) in values
            .as_chunks::<16>()
            .0
            .iter()
            .zip(codes.as_chunks_mut::<16>().0)
        {
            let y = _mm512_mul_ps(load(x), inverse);
            // Where the third has a bit, that of the first, else of the second.
            let half = _mm512_ternarylogic_epi32::<0xE4>(_mm512_castps_si512(y), half, sign);
            let raised = _mm512_add_ps(y, _mm512_castsi512_ps(half));
            store_bytes(_mm512_cvttps_epi32(raised), codes);
        }
    }
    true
}

/// [`MxRule::exponent`] of 16 greatest magnitudes, 254 at most.
#[inline]
#[target_feature(enable = "avx512f")]
fn mx_exponents<F: SmallFloat>(rule: MxRule, amax: __m512) -> __m512i {
    let bits = _mm512_castps_si512(amax);
    let number = |n: u32| _mm512_set1_epi32(n as i32);
    let greatest = (F::GREATEST << F::SHIFT) + F::REBIAS;
    let greatest_exponent = number((greatest >> 23) - 127);
    let above = |bits| {
        let exponent = _mm512_max_epu32(_mm512_srli_epi32::<23>(bits), greatest_exponent);
        _mm512_sub_epi32(exponent, greatest_exponent)
    };
    let exponents = match rule {
        MxRule::Floor => above(bits),
        MxRule::Even => above(_mm512_add_epi32(bits, number(1 << (F::SHIFT - 1)))),
        MxRule::Ceil => {
            let quotient = _mm512_div_ps(amax, _mm512_set1_ps(f32::from_bits(greatest)));
            let quotient = _mm512_castps_si512(quotient);
            let up = _mm512_srli_epi32::<23>(_mm512_add_epi32(quotient, number(0x7F_FFFF)));
            // 2⁻¹²⁷, the least scale, is a subnormal of `f32`.
            let more = _mm512_cmpgt_epu32_mask(quotient, number(1 << 22));
            _mm512_maskz_mov_epi32(more, up)
        }
    };
    _mm512_min_epu32(exponents, number(254))
}

/// Scales of MX blocks with these greatest magnitudes, and their reciprocals; `None` if a number saturates.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn mx_scales<F: SmallFloat>(
    rule: MxRule,
    amax: __m512,
    scales: &mut [u8; AT_ONCE],
) -> Option<[f32; AT_ONCE]> {
    let exponents = mx_exponents::<F>(rule, amax);
    store_bytes(exponents, scales);
    // 2⁻¹²⁷ is a subnormal.
    let greatest = _mm512_set1_epi32(254);
    let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(greatest, exponents));
    let least = _mm512_cmpeq_epi32_mask(exponents, greatest);
    let inverse = _mm512_mask_mov_epi32(normal, least, _mm512_set1_epi32(1 << 22));
    let inverse = _mm512_castsi512_ps(inverse);
    let most = _mm512_castps_si512(_mm512_mul_ps(amax, inverse));
    let beyond = _mm512_cmpgt_epu32_mask(most, _mm512_set1_epi32(F::LAST_IN_RANGE as i32));
    let mut inverses = [0.0; AT_ONCE];
    store(&mut inverses, inverse);
    (beyond == 0).then_some(inverses)
}

/// MX blocks with a code in each byte.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn mx_bytes<F: SmallFloat>(
    rule: MxRule,
    values: &[f32; BLOCK],
    out: &mut [u8; BLOCK],
    scales: &mut [u8; AT_ONCE],
) -> bool {
    let Some(amax) = amaxes_of_32(values) else {
        return false;
    };
    let Some(inverses) = mx_scales::<F>(rule, amax, scales) else {
        return false;
    };
    let values = values.as_chunks::<GROUP>().0.iter();
    for ((values, out), inverse) in values.zip(out.as_chunks_mut::<GROUP>().0).zip(&inverses) {
        let inverse = _mm512_set1_ps(*inverse);
        for (x, out) in values
            .as_chunks::<16>()
            .0
            .iter()
            .zip(out.as_chunks_mut::<16>().0)
        {
            store_bytes(codes::<F>(_mm512_mul_ps(load(x), inverse)), out);
        }
    }
    true
}

/// MX blocks with a code in each nibble.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn mx_nibbles(
    rule: MxRule,
    values: &[f32; BLOCK],
    out: &mut [u8; BLOCK / 2],
    scales: &mut [u8; AT_ONCE],
) -> bool {
    let Some(amax) = amaxes_of_32(values) else {
        return false;
    };
    let Some(inverses) = mx_scales::<E2m1>(rule, amax, scales) else {
        return false;
    };
    let values = values.as_chunks::<GROUP>().0.iter();
    for ((values, out), inverse) in values.zip(out.as_chunks_mut::<16>().0).zip(&inverses) {
        let inverse = _mm512_set1_ps(*inverse);
        for (x, out) in values
            .as_chunks::<16>()
            .0
            .iter()
            .zip(out.as_chunks_mut::<8>().0)
        {
            store_nibbles(codes::<E2m1>(_mm512_mul_ps(load(x), inverse)), out);
        }
    }
    true
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn nvfp4(
    rule: Nvfp4Rule,
    values: &[f32; BLOCK],
    out: &mut [u8; BLOCK / 2],
    scales: &mut [u8; BLOCK / NVFP4_GROUP],
) -> bool {
    let values = values.as_chunks::<NVFP4_GROUP>().0.as_chunks::<AT_ONCE>().0;
    let out = out.as_chunks_mut::<8>().0.as_chunks_mut::<AT_ONCE>().0;
    let scale_code = Small::new(E4m3fn, Overflow::Saturate);
    for ((groups, out), scales) in values
        .iter()
        .zip(out)
        .zip(scales.as_chunks_mut::<AT_ONCE>().0)
    {
        let Some(vector) = amaxes_of_16(groups) else {
            return false;
        };
        let mut amax = [0.0; AT_ONCE];
        store(&mut amax, vector);
        let mut divisors = [0.0; AT_ONCE];
        let mut worst = 0;
        for i in 0..AT_ONCE {
            let [stored] = scale_code.code((amax[i] / 6.0 / rule.global).max(rule.least));
            scales[i] = stored;
            divisors[i] = E4m3fn::number([stored]) * rule.global;
            let lost = (amax[i] / divisors[i]).to_bits();
            worst = worst.max(if divisors[i] == 0.0 { INFINITY } else { lost });
        }
        if worst > E2m1::LAST_IN_RANGE {
            return false;
        }
        for ((x, out), divisor) in groups.iter().zip(out).zip(&divisors) {
            let y = _mm512_div_ps(load(x), _mm512_set1_ps(*divisor));
            store_nibbles(codes::<E2m1>(y), out);
        }
    }
    true
}
