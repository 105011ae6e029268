//! Transposes of units of 1 to 16 bytes.
//!
//! A block of n × n units fills n vectors of 16 bytes, n = 16 / unit. Interleaving the first half of the
//! block's units with the second half rotates the bits of each unit's index (row, column) by one; after
//! log₂ n such steps the index is (column, row). Wider vectors do so in each lane of 16 bytes, lane k being
//! loaded from the k-th n columns, so that a block of them makes target rows of the whole vector.

#[cfg(target_arch = "x86_64")]
use super::Level;
use super::{LINE, Loop, Manner, Tile, copy, nest::nest, prefetch};

/// Transposes a tile at every turn of the loops.
///
/// # Safety
///
/// Every unit of the tile, at every offset of the loops, is within both buffers, which do not overlap; the CPU
/// has the manner's level.
pub(super) unsafe fn run(
    manner: Manner,
    loops: &[Loop],
    tile: Tile,
    source: *const u8,
    target: *mut u8,
) {
    let transpose: Transpose = match (manner.level, tile.unit) {
        (_, 16) => packets,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, 1) => x86::tile_avx512_1,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, 2) => x86::tile_avx512_2,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, 4) => x86::tile_avx512_4,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, _) => x86::tile_avx512_8,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, 1) => x86::tile_avx2_1,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, 2) => x86::tile_avx2_2,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, 4) => x86::tile_avx2_4,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, _) => x86::tile_avx2_8,
        (_, 1) => squares::<1>,
        (_, 2) => squares::<2>,
        (_, 4) => squares::<4>,
        _ => squares::<8>,
    };
    nest(loops, |s, t| {
        // SAFETY: an offset of the loops is within the buffer.
        let from = unsafe { source.add(s as usize) };
        // SAFETY: as above.
        let to = unsafe { target.add(t as usize) };
        // SAFETY: the tile is valid at every offset, as the caller promises; the function was chosen for its
        // unit and for the CPU's level.
        unsafe { transpose(from, to, tile, manner.ahead) };
    });
}

/// Transposes a tile, fetching what is `ahead` of the source.
type Transpose = unsafe fn(*const u8, *mut u8, Tile, usize);

/// Units of 16 bytes, in the order of the target.
///
/// # Safety
///
/// Every unit of the tile is valid at both, and they do not overlap.
unsafe fn packets(from: *const u8, to: *mut u8, tile: Tile, ahead: usize) {
    let Tile { columns, rows, .. } = tile;
    for r in 0..u64::from(rows.extent) {
        let first_of_line = (r * 16).is_multiple_of(LINE as u64);
        for c in 0..u64::from(columns.extent) {
            let s = r * 16 + c * columns.source;
            if first_of_line && ahead != 0 {
                prefetch(from.wrapping_add((s as usize).wrapping_add(ahead)));
            }
            // SAFETY: row and column are below their extents, as the caller promises for all.
            unsafe { copy(from, s, to, r * rows.target + c * 16, 16) }
        }
    }
}

/// Rows and columns of a square whose units are moved one by one. Sixteen units of two bytes make half a
/// cache line each way, so a square touches each line of either side twice at most before it is evicted.
const SQUARE: u32 = 16;

/// # Safety
///
/// Every unit of N bytes of the tile is valid at both, and they do not overlap.
unsafe fn squares<const N: usize>(from: *const u8, to: *mut u8, tile: Tile, _ahead: usize) {
    let Tile { columns, rows, .. } = tile;
    for r0 in (0..rows.extent).step_by(SQUARE as usize) {
        let r1 = rows.extent.min(r0 + SQUARE);
        for c0 in (0..columns.extent).step_by(SQUARE as usize) {
            let c1 = columns.extent.min(c0 + SQUARE);
            // SAFETY: the ranges are within the extents, as the caller promises for all.
            unsafe { units::<N>(from, to, tile, [r0, r1], [c0, c1]) };
        }
    }
}

/// Moves the units of some rows and columns one by one.
///
/// # Safety
///
/// Every unit of N bytes of these is valid at both, and they do not overlap.
#[inline(always)]
unsafe fn units<const N: usize>(
    from: *const u8,
    to: *mut u8,
    tile: Tile,
    [r0, r1]: [u32; 2],
    [c0, c1]: [u32; 2],
) {
    let step = N as u64;
    for r in u64::from(r0)..u64::from(r1) {
        for c in u64::from(c0)..u64::from(c1) {
            let s = r * step + c * tile.columns.source;
            let t = r * tile.rows.target + c * step;
            // SAFETY: row and column are among those that the caller promises.
            unsafe { copy(from, s, to, t, N) }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, __m256i, __m512i, _mm_loadu_si128, _mm_setzero_si128, _mm_storeu_si128,
        _mm_unpackhi_epi8, _mm_unpackhi_epi16, _mm_unpackhi_epi32, _mm_unpackhi_epi64,
        _mm_unpacklo_epi8, _mm_unpacklo_epi16, _mm_unpacklo_epi32, _mm_unpacklo_epi64,
        _mm256_set_m128i, _mm256_setzero_si256, _mm256_storeu_si256, _mm256_unpackhi_epi8,
        _mm256_unpackhi_epi16, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi8,
        _mm256_unpacklo_epi16, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
        _mm512_castsi256_si512, _mm512_inserti64x4, _mm512_setzero_si512, _mm512_storeu_si512,
        _mm512_unpackhi_epi8, _mm512_unpackhi_epi16, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
        _mm512_unpacklo_epi8, _mm512_unpacklo_epi16, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    };

    use super::{
        super::{LINE, Tile, prefetch},
        units,
    };

    /// Sixteen bytes of column `c`.
    ///
    /// # Safety
    ///
    /// They are valid.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load_128(from: *const u8, stride: usize, c: usize, _n: usize) -> __m128i {
        // SAFETY: as the caller promises.
        let at = unsafe { from.add(c * stride) };
        // SAFETY: as above.
        unsafe { _mm_loadu_si128(at.cast()) }
    }

    /// Sixteen bytes of columns `c` and `c + n`.
    ///
    /// # Safety
    ///
    /// They are valid.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load_256(from: *const u8, stride: usize, c: usize, n: usize) -> __m256i {
        // SAFETY: as the caller promises.
        let low = unsafe { load_128(from, stride, c, n) };
        // SAFETY: as the caller promises.
        let high = unsafe { load_128(from, stride, c + n, n) };
        _mm256_set_m128i(high, low)
    }

    /// Sixteen bytes of columns `c`, `c + n`, `c + 2n` and `c + 3n`.
    ///
    /// # Safety
    ///
    /// They are valid.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn load_512(from: *const u8, stride: usize, c: usize, n: usize) -> __m512i {
        // SAFETY: as the caller promises.
        let low = unsafe { load_256(from, stride, c, n) };
        // SAFETY: as the caller promises.
        let high = unsafe { load_256(from, stride, c + 2 * n, n) };
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
    }

    /// Defines the transpose of one block: `n` rows, and `n` columns for each lane of the vector.
    macro_rules! block {
        ($name:ident, $features:literal, $n:literal, $vector:ty, $zero:ident, $load:ident,
         $lo:ident, $hi:ident, $store:ident) => {
            /// # Safety
            ///
            /// Sixteen bytes of every column are valid at `from`, and a vector of every row at `to`;
            /// they do not overlap; the CPU has the features.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn $name(from: *const u8, stride: usize, to: *mut u8, pitch: usize) {
                const N: usize = $n;
                let mut vectors: [$vector; N] = [$zero(); N];
                for (c, vector) in vectors.iter_mut().enumerate() {
                    // SAFETY: column `c` of each lane is one of the block's.
                    *vector = unsafe { $load(from, stride, c, N) };
                }
                for _ in 0..N.ilog2() {
                    let before = vectors;
                    for i in 0..N / 2 {
                        vectors[2 * i] = $lo(before[i], before[i + N / 2]);
                        vectors[2 * i + 1] = $hi(before[i], before[i + N / 2]);
                    }
                }
                for (r, row) in vectors.into_iter().enumerate() {
                    // SAFETY: a vector is valid at every row.
                    let at = unsafe { to.add(r * pitch) };
                    // SAFETY: as above.
                    unsafe { $store(at.cast(), row) };
                }
            }
        };
    }

    /// Defines the blocks of one unit for all vectors, and the tiles of both levels.
    macro_rules! unit {
        ($unit:literal, $n:literal,
         $block_128:ident, $lo_128:ident, $hi_128:ident,
         $block_256:ident, $lo_256:ident, $hi_256:ident,
         $block_512:ident, $lo_512:ident, $hi_512:ident,
         $avx2:ident, $avx512:ident) => {
            block!(
                $block_128, "avx2", $n, __m128i, _mm_setzero_si128, load_128,
                $lo_128, $hi_128, _mm_storeu_si128
            );
            block!(
                $block_256, "avx2", $n, __m256i, _mm256_setzero_si256, load_256,
                $lo_256, $hi_256, _mm256_storeu_si256
            );
            block!(
                $block_512, "avx512f,avx512bw", $n, __m512i, _mm512_setzero_si512, load_512,
                $lo_512, $hi_512, _mm512_storeu_si512
            );
            tile!($avx2, "avx2", $unit, $n, [$block_256: 2, $block_128: 1]);
            tile!(
                $avx512, "avx512f,avx512bw,avx512vl", $unit, $n,
                [$block_512: 4, $block_256: 2, $block_128: 1]
            );
        };
    }

    /// Defines the transpose of a tile: blocks as wide as there are columns, what is left unit by unit.
    macro_rules! tile {
        ($name:ident, $features:literal, $unit:literal, $n:literal, [$($block:ident: $lanes:literal),*]) => {
            /// # Safety
            ///
            /// Every unit of the tile is valid at both, they do not overlap, and the CPU has the features.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(from: *const u8, to: *mut u8, tile: Tile, ahead: usize) {
                const N: usize = $n;
                let (columns, rows) = (tile.columns.extent as usize, tile.rows.extent as usize);
                let (stride, pitch) = (tile.columns.source as usize, tile.rows.target as usize);
                let whole = rows / N * N;
                let mut c = 0;
                $(
                    while c + $lanes * N <= columns {
                        // SAFETY: column `c` is the tile's.
                        let from = unsafe { from.add(c * stride) };
                        // SAFETY: as above.
                        let to = unsafe { to.add(c * $unit) };
                        for r in (0..whole).step_by(N) {
                            // SAFETY: row `r` is the tile's.
                            let from = unsafe { from.add(r * $unit) };
                            // SAFETY: as above.
                            let to = unsafe { to.add(r * pitch) };
                            if ahead != 0 && (r * $unit).is_multiple_of(LINE) {
                                for c in (0..$lanes * N).step_by((LINE / stride).max(1)) {
                                    prefetch(from.wrapping_add(ahead.wrapping_add(c * stride)));
                                }
                            }
                            // SAFETY: rows `r..r + N` and columns `c..c + lanes × N` are the tile's.
                            unsafe { $block(from, stride, to, pitch) };
                        }
                        c += $lanes * N;
                    }
                )*
                let (whole, rows, c, columns) = (whole as u32, rows as u32, c as u32, columns as u32);
                // SAFETY: these rows and columns are the tile's.
                unsafe { units::<$unit>(from, to, tile, [whole, rows], [0, c]) };
                // SAFETY: as above.
                unsafe { units::<$unit>(from, to, tile, [0, rows], [c, columns]) };
            }
        };
    }

    #[rustfmt::skip]
    unit!(
        1, 16,
        block_128_1, _mm_unpacklo_epi8, _mm_unpackhi_epi8,
        block_256_1, _mm256_unpacklo_epi8, _mm256_unpackhi_epi8,
        block_512_1, _mm512_unpacklo_epi8, _mm512_unpackhi_epi8,
        tile_avx2_1, tile_avx512_1
    );
    #[rustfmt::skip]
    unit!(
        2, 8,
        block_128_2, _mm_unpacklo_epi16, _mm_unpackhi_epi16,
        block_256_2, _mm256_unpacklo_epi16, _mm256_unpackhi_epi16,
        block_512_2, _mm512_unpacklo_epi16, _mm512_unpackhi_epi16,
        tile_avx2_2, tile_avx512_2
    );
    #[rustfmt::skip]
    unit!(
        4, 4,
        block_128_4, _mm_unpacklo_epi32, _mm_unpackhi_epi32,
        block_256_4, _mm256_unpacklo_epi32, _mm256_unpackhi_epi32,
        block_512_4, _mm512_unpacklo_epi32, _mm512_unpackhi_epi32,
        tile_avx2_4, tile_avx512_4
    );
    #[rustfmt::skip]
    unit!(
        8, 2,
        block_128_8, _mm_unpacklo_epi64, _mm_unpackhi_epi64,
        block_256_8, _mm256_unpacklo_epi64, _mm256_unpackhi_epi64,
        block_512_8, _mm512_unpacklo_epi64, _mm512_unpackhi_epi64,
        tile_avx2_8, tile_avx512_8
    );
}
