//! Sums of constants times words.

use super::Level;

/// Σ Kᵢ·wᵢ mod 2^64 over the 32-bit little-endian words of a row, for fixed 32-bit constants Kᵢ.
///
/// Equal on every level.
#[derive(Clone, Debug)]
pub struct Multilinear {
    constants: Vec<u32>,
}

impl Multilinear {
    /// Sums with the given constants, for rows of as many words at most.
    #[must_use]
    pub fn new(constants: Vec<u32>) -> Self {
        Self { constants }
    }

    /// The sum over `row`, whose last word is padded with zeros, with the constants from `first` on.
    ///
    /// # Panics
    ///
    /// If there are more words than constants.
    #[must_use]
    pub fn sum(&self, first: usize, row: &[u8]) -> u64 {
        let (words, rest) = row.as_chunks::<4>();
        let (constants, next) = self.constants[first..].split_at(words.len());
        let product =
            |constant: u32, word| u64::from(constant) * u64::from(u32::from_le_bytes(word));
        let sum = words
            .iter()
            .zip(constants)
            .fold(0_u64, |sum, (word, constant)| {
                sum.wrapping_add(product(*constant, *word))
            });
        if rest.is_empty() {
            return sum;
        }
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        sum.wrapping_add(product(next[0], last))
    }

    /// The sum over each of `rows`, with the constants from the first on.
    ///
    /// # Panics
    ///
    /// If there are more words in a row than constants, or not `row_bytes` bytes for every sum.
    pub fn sums(&self, rows: &[u8], row_bytes: usize, sums: &mut [u64]) {
        self.sums_in(Level::best(), rows, row_bytes, sums);
    }

    /// [`sums`](Self::sums) with the instructions of a level, for comparison.
    ///
    /// # Panics
    ///
    /// As `sums`, and if the CPU has not that level.
    #[doc(hidden)]
    pub fn sums_in(&self, level: Level, rows: &[u8], row_bytes: usize, sums: &mut [u64]) {
        assert!(level <= Level::best(), "the CPU has no {level:?}");
        let count = sums.len();
        assert_eq!(rows.len(), count * row_bytes, "bytes of {count} rows");
        let done = match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if row_bytes > 0 && row_bytes.is_multiple_of(x86::BLOCK) => {
                let constants = self.constants[..row_bytes / 4].as_chunks().0;
                let rows = rows.as_chunks().0;
                // SAFETY: the CPU has the level.
                unsafe { x86::sums_avx512(constants, rows, sums) }
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 if row_bytes > 0 && row_bytes.is_multiple_of(x86::BLOCK) => {
                let constants = self.constants[..row_bytes / 4].as_chunks().0;
                let rows = rows.as_chunks().0;
                // SAFETY: the CPU has the level.
                unsafe { x86::sums_avx2(constants, rows, sums) }
            }
            _ => 0,
        };
        for (i, sum) in sums.iter_mut().enumerate().skip(done) {
            *sum = self.sum(0, &rows[i * row_bytes..][..row_bytes]);
        }
    }
}

/// A vector multiplies the low words of its lanes of 64 bits, so even and odd words take turns.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256i, __m512i, _mm256_add_epi64, _mm256_loadu_si256, _mm256_mul_epu32,
        _mm256_permute2x128_si256, _mm256_setzero_si256, _mm256_srli_epi64, _mm256_storeu_si256,
        _mm256_unpackhi_epi64, _mm256_unpacklo_epi64, _mm512_add_epi64, _mm512_loadu_si512,
        _mm512_mul_epu32, _mm512_setzero_si512, _mm512_shuffle_i64x2, _mm512_srli_epi64,
        _mm512_storeu_si512, _mm512_unpackhi_epi64, _mm512_unpacklo_epi64,
    };

    /// Bytes of a row that are summed at a time.
    pub(super) const BLOCK: usize = 64;

    /// Sums rows, eight at a time, and says how many.
    #[target_feature(enable = "avx512f")]
    pub(super) fn sums_avx512(
        constants: &[[u32; BLOCK / 4]],
        rows: &[[u8; BLOCK]],
        sums: &mut [u64],
    ) -> usize {
        let n = constants.len();
        let (sums, _) = sums.as_chunks_mut::<8>();
        for (rows, sums) in rows.chunks_exact(8 * n).zip(&mut *sums) {
            let mut lanes = [_mm512_setzero_si512(); 8];
            for (lanes, row) in lanes.iter_mut().zip(rows.chunks_exact(n)) {
                let mut odds = _mm512_setzero_si512();
                for (constants, words) in constants.iter().zip(row) {
                    // SAFETY: an array of 64 bytes is read.
                    let k = unsafe { _mm512_loadu_si512(constants.as_ptr().cast::<__m512i>()) };
                    // SAFETY: as above.
                    let w = unsafe { _mm512_loadu_si512(words.as_ptr().cast::<__m512i>()) };
                    let (k_odd, w_odd) = (_mm512_srli_epi64::<32>(k), _mm512_srli_epi64::<32>(w));
                    *lanes = _mm512_add_epi64(*lanes, _mm512_mul_epu32(k, w));
                    odds = _mm512_add_epi64(odds, _mm512_mul_epu32(k_odd, w_odd));
                }
                *lanes = _mm512_add_epi64(*lanes, odds);
            }
            // Eight lanes of each of eight rows, halved three times: rows in neighbouring lanes, then in
            // neighbouring pairs, then in neighbouring halves.
            let pair =
                |a, b| _mm512_add_epi64(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
            let join = |a, b| {
                _mm512_add_epi64(
                    _mm512_shuffle_i64x2::<0x88>(a, b),
                    _mm512_shuffle_i64x2::<0xDD>(a, b),
                )
            };
            let low = join(pair(lanes[0], lanes[1]), pair(lanes[2], lanes[3]));
            let high = join(pair(lanes[4], lanes[5]), pair(lanes[6], lanes[7]));
            // SAFETY: an array of 64 bytes is written.
            unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast::<__m512i>(), join(low, high)) };
        }
        sums.len() * 8
    }

    /// Sums rows, four at a time, and says how many.
    #[target_feature(enable = "avx2")]
    pub(super) fn sums_avx2(
        constants: &[[u32; BLOCK / 4]],
        rows: &[[u8; BLOCK]],
        sums: &mut [u64],
    ) -> usize {
        let n = constants.len();
        let (sums, _) = sums.as_chunks_mut::<4>();
        for (rows, sums) in rows.chunks_exact(4 * n).zip(&mut *sums) {
            let mut lanes = [_mm256_setzero_si256(); 4];
            for (lanes, row) in lanes.iter_mut().zip(rows.chunks_exact(n)) {
                let mut odds = _mm256_setzero_si256();
                let halves = row.as_flattened().as_chunks::<{ BLOCK / 2 }>().0;
                let constants = constants.as_flattened().as_chunks::<{ BLOCK / 8 }>().0;
                for (constants, words) in constants.iter().zip(halves) {
                    // SAFETY: an array of 32 bytes is read.
                    let k = unsafe { _mm256_loadu_si256(constants.as_ptr().cast::<__m256i>()) };
                    // SAFETY: as above.
                    let w = unsafe { _mm256_loadu_si256(words.as_ptr().cast::<__m256i>()) };
                    let (k_odd, w_odd) = (_mm256_srli_epi64::<32>(k), _mm256_srli_epi64::<32>(w));
                    *lanes = _mm256_add_epi64(*lanes, _mm256_mul_epu32(k, w));
                    odds = _mm256_add_epi64(odds, _mm256_mul_epu32(k_odd, w_odd));
                }
                *lanes = _mm256_add_epi64(*lanes, odds);
            }
            let pair =
                |a, b| _mm256_add_epi64(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
            let (low, high) = (pair(lanes[0], lanes[1]), pair(lanes[2], lanes[3]));
            let all = _mm256_add_epi64(
                _mm256_permute2x128_si256::<0x20>(low, high),
                _mm256_permute2x128_si256::<0x31>(low, high),
            );
            // SAFETY: an array of 32 bytes is written.
            unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast::<__m256i>(), all) };
        }
        sums.len() * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_sums_what_is_written_down() {
        let mut state = 7_u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state ^ state >> 29) as u32
        };
        let constants: Vec<u32> = (0..300).map(|_| next()).collect();
        let multilinear = Multilinear::new(constants.clone());
        let sum = |first: usize, row: &[u8]| {
            let mut sum = 0_u64;
            for (i, word) in row.chunks(4).enumerate() {
                let word = word.iter().rev().fold(0_u64, |w, &b| w << 8 | u64::from(b));
                sum = sum.wrapping_add(u64::from(constants[first + i]) * word);
            }
            sum
        };
        for bytes in [1, 4, 63, 64, 65, 127, 128, 256, 576, 1151, 1152] {
            for count in [1, 3, 4, 8, 21] {
                let mut rows: Vec<u8> = (0..count * bytes).map(|_| next() as u8).collect();
                rows[0] = 0xFF;
                let wanted: Vec<u64> = rows.chunks(bytes).map(|row| sum(0, row)).collect();
                for level in Level::available() {
                    let mut got = vec![0; count];
                    multilinear.sums_in(level, &rows, bytes, &mut got);
                    assert_eq!(got, wanted, "{count} rows of {bytes} bytes, {level:?}");
                }
                assert_eq!(multilinear.sum(5, &rows[..bytes]), sum(5, &rows[..bytes]));
            }
        }
    }
}
