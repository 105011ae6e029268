//! Stores past the caches.
//!
//! A non-temporal store of a whole line does not read the line first and leaves the caches to others. It is
//! weakly ordered: another thread may see a later ordinary store first. So whoever streams holds a
//! [`Fence`], and its drop orders all of it before anything that follows.

use super::{LINE, Level, runs::Runs};

/// Orders streamed stores before whatever comes after its drop.
#[derive(Debug)]
pub(crate) struct Fence;

impl Drop for Fence {
    fn drop(&mut self) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: SSE, which has the instruction, is part of x86-64.
        unsafe {
            std::arch::x86_64::_mm_sfence();
        }
    }
}

/// Copies bytes past the caches where the level can, in the usual way elsewhere. A [`Fence`] must be dropped
/// afterwards.
///
/// # Panics
///
/// If the two are not of one length.
pub(crate) fn stream(level: Level, source: &[u8], target: &mut [u8]) {
    assert_eq!(source.len(), target.len(), "bytes to be streamed");
    let bytes = source.len();
    match runs(level.min(Level::best())) {
        // SAFETY: without loops the only run is that of all bytes, valid on both sides, which are borrowed apart;
        // the CPU has the level.
        Some(runs) if bytes >= LINE => unsafe {
            runs(&[], bytes, source.as_ptr(), target.as_mut_ptr(), 0);
        },
        _ => target.copy_from_slice(source),
    }
}

/// What streams runs of a line and more, if the level has such stores.
pub(super) fn runs(level: Level) -> Option<Runs> {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => Some(x86::runs_avx512),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => Some(x86::runs_avx2),
        _ => None,
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512i, _mm256_loadu_si256, _mm256_stream_si256, _mm512_loadu_si512, _mm512_stream_si512,
    };

    use super::super::{LINE, Loop, nest::nest, prefetch};

    macro_rules! runs {
        ($name:ident, $line:ident, $features:literal) => {
            /// Streams a run at every turn of the loops.
            ///
            /// # Safety
            ///
            /// Every offset of the loops, plus `bytes`, is within both buffers, which do not overlap;
            /// the CPU has the features.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(
                loops: &[Loop],
                bytes: usize,
                source: *const u8,
                target: *mut u8,
                ahead: usize,
            ) {
                nest(loops, |s, t| {
                    // SAFETY: the offset is within the buffer, as the caller promises.
                    let from = unsafe { source.add(s as usize) };
                    // SAFETY: as above.
                    let to = unsafe { target.add(t as usize) };
                    let lines = from.wrapping_add(ahead);
                    // Lines of the target that the run covers in part are shared with other runs, and
                    // stored as usual.
                    let first = to.align_offset(LINE).min(bytes);
                    if first > 0 {
                        // SAFETY: the run is valid on both sides.
                        unsafe { std::ptr::copy_nonoverlapping(from, to, first) };
                    }
                    let mut at = first;
                    while at + LINE <= bytes {
                        if ahead != 0 {
                            prefetch(lines.wrapping_add(at));
                        }
                        // SAFETY: `at + LINE` is within the run.
                        let from = unsafe { from.add(at) };
                        // SAFETY: as above.
                        let to = unsafe { to.add(at) };
                        // SAFETY: a line is valid at both, and `to` is aligned to one.
                        unsafe { $line(from, to) };
                        at += LINE;
                    }
                    if at < bytes {
                        // SAFETY: `at` is within the run.
                        let from = unsafe { from.add(at) };
                        // SAFETY: as above.
                        let to = unsafe { to.add(at) };
                        // SAFETY: what is left of the run is valid on both sides.
                        unsafe { std::ptr::copy_nonoverlapping(from, to, bytes - at) };
                    }
                });
            }
        };
    }

    runs!(runs_avx512, line_avx512, "avx512f");
    runs!(runs_avx2, line_avx2, "avx2");

    /// # Safety
    ///
    /// A line is valid at both; `to` is aligned to one; they do not overlap.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn line_avx512(from: *const u8, to: *mut u8) {
        // SAFETY: a line is valid there.
        let line = unsafe { _mm512_loadu_si512(from.cast()) };
        // SAFETY: a line is valid there, and aligned.
        unsafe { _mm512_stream_si512(to.cast::<__m512i>(), line) };
    }

    /// # Safety
    ///
    /// A line is valid at both; `to` is aligned to one; they do not overlap.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn line_avx2(from: *const u8, to: *mut u8) {
        // SAFETY: half a line further is within it.
        let from_second = unsafe { from.add(LINE / 2) };
        // SAFETY: as above.
        let to_second = unsafe { to.add(LINE / 2) };
        // SAFETY: a line is valid there.
        let first = unsafe { _mm256_loadu_si256(from.cast()) };
        // SAFETY: its second half.
        let second = unsafe { _mm256_loadu_si256(from_second.cast()) };
        // SAFETY: a line is valid there, and aligned.
        unsafe { _mm256_stream_si256(to.cast(), first) };
        // SAFETY: its second half.
        unsafe { _mm256_stream_si256(to_second.cast(), second) };
    }
}
