//! Copies of runs that are contiguous on both sides.

use super::{LINE, Loop, Manner, copy, nest::nest, prefetch_ahead, stream};

/// Copies a run at every turn of the loops.
///
/// # Safety
///
/// Every offset of the loops, plus `bytes`, is within both buffers, which do not overlap; the CPU has the
/// manner's level.
pub(super) unsafe fn run(
    manner: Manner,
    loops: &[Loop],
    bytes: usize,
    source: *const u8,
    target: *mut u8,
) {
    let streams = if manner.streaming && bytes >= LINE {
        stream::runs(manner.level)
    } else {
        None
    };
    let runs: Runs = streams.unwrap_or(match bytes {
        2 => runs::<2>,
        4 => runs::<4>,
        8 => runs::<8>,
        16 => runs::<16>,
        32 => runs::<32>,
        64 => runs::<64>,
        128 => runs::<128>,
        256 => runs::<256>,
        _ => any_runs,
    });
    // SAFETY: the caller's promises; a function for N bytes is chosen for just these, one for a level's
    // features for that level.
    unsafe { runs(loops, bytes, source, target, manner.ahead) };
}

/// Copies a run of so many bytes at every turn of the loops, fetching what is `ahead`.
pub(super) type Runs = unsafe fn(&[Loop], usize, *const u8, *mut u8, usize);

/// # Safety
///
/// Every offset of the loops, plus `bytes`, is within both buffers, which do not overlap.
unsafe fn any_runs(loops: &[Loop], bytes: usize, source: *const u8, target: *mut u8, ahead: usize) {
    nest(loops, |s, t| {
        prefetch_ahead(source.wrapping_add(s as usize), bytes, ahead);
        // SAFETY: as the caller promises.
        unsafe { copy(source, s, target, t, bytes) }
    });
}

/// Runs of a length known to the compiler, which turns them into a few vector moves.
///
/// # Safety
///
/// Every offset of the loops, plus N, is within both buffers, which do not overlap.
unsafe fn runs<const N: usize>(
    loops: &[Loop],
    _bytes: usize,
    source: *const u8,
    target: *mut u8,
    ahead: usize,
) {
    nest(loops, |s, t| {
        prefetch_ahead(source.wrapping_add(s as usize), N, ahead);
        // SAFETY: as the caller promises.
        unsafe { copy(source, s, target, t, N) }
    });
}
