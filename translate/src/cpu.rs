//! Strided copies on the host: merged runs, and transposes in tiles.
//!
//! A [`StridedCopy`] is compiled once and run many times at other starts. Whoever compiles it may name
//! any strides; [`StridedCopy::run`] holds the reach that follows from them against both buffers before
//! the first byte moves, and that check is the whole argument for the pointer arithmetic behind it: every
//! loop below visits offsets `Σ index × stride` with each index below its extent, the largest of which,
//! plus the bytes moved there, is the reach.
//!
//! Bytes that will not be read again soon may be stored past the caches (`Manner::streaming`): the target's
//! lines are then not read before they are written. It pays from about the size of the L2 on.

mod dest;
pub(crate) mod group;
mod hash;
pub(crate) mod level;
mod nest;
pub(crate) mod number;
mod runs;
pub(crate) mod scalar;
#[cfg(test)]
mod slow;
#[cfg(test)]
mod speed;
mod stream;
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(
        dead_code,
        unused_variables,
        reason = "some of it is for loops that only x86-64 has"
    )
)]
pub(crate) mod table;
mod transpose;

pub(crate) use dest::{Alone, Dest, Shared, Target};
pub use hash::Multilinear;
pub use level::Level;
pub(crate) use stream::{Fence, stream};

use nest::{MOST_LOOPS, nest};

/// One loop of a nest: how far each side steps, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_structs,
    reason = "a loop has an extent and two strides"
)]
pub struct Loop {
    /// Times round.
    pub extent: u32,
    /// Bytes between one source unit and the next.
    pub source: u64,
    /// Bytes between one target unit and the next.
    pub target: u64,
}

/// Units gathered by one nest of strides and scattered by another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StridedCopy {
    /// Outermost first, about in the order of the target's addresses.
    loops: Vec<Loop>,
    kernel: Kernel,
    source_reach: u64,
    target_reach: u64,
    bytes: u64,
}

/// What the innermost loops do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    /// Bytes that are contiguous on both sides.
    Run { bytes: usize },
    /// Units contiguous along one axis in the source and along another in the target.
    Tile(Tile),
}

/// A transpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    /// Bytes of a unit: 1, 2, 4, 8 or 16.
    unit: usize,
    /// Contiguous in the target; `source` is its stride there.
    columns: Loop,
    /// Contiguous in the source; `target` is its stride there.
    rows: Loop,
}

/// How bytes are moved; where they go is not its business.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) level: Level,
    /// Whole lines of the target are stored past the caches. A [`Fence`] must be dropped afterwards.
    pub(crate) streaming: bool,
    /// Bytes from each place in the source to one that will be read soon, which is prefetched; 0 for none.
    pub(crate) ahead: usize,
}

/// How a loop over codes goes about memory; what it makes is the same.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flow {
    /// Bytes from each code to one that will be read soon, which is fetched; 0 for none.
    pub(crate) ahead: usize,
    /// Whole lines are stored past the caches where they can be. A [`Fence`] must be dropped afterwards.
    pub(crate) streaming: bool,
}

impl Flow {
    /// Fetches what lies ahead of `codes`.
    #[inline(always)]
    pub(crate) fn fetch(self, codes: &[u8]) {
        prefetch_ahead(codes.as_ptr(), codes.len(), self.ahead);
    }
}

/// A copy in two steps: everything into a small image of the target without its gaps, from there to the
/// target in runs.
#[derive(Clone, Debug)]
pub(crate) struct Staged {
    /// From the source to the image.
    pub(crate) fill: StridedCopy,
    /// From the image to the target.
    pub(crate) flush: StridedCopy,
}

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

impl StridedCopy {
    /// Merges what can be merged and picks the innermost kernel.
    ///
    /// # Panics
    ///
    /// If there are more than sixteen loops that cannot be merged; two layouts of three axes, each split
    /// once, have nine.
    #[must_use]
    pub fn compile(unit_bytes: u32, mut loops: Vec<Loop>) -> Self {
        loops.retain(|l| l.extent > 1);
        let reach = |stride: fn(&Loop) -> u64| {
            let last: u64 = loops
                .iter()
                .map(|l| stride(l) * u64::from(l.extent - 1))
                .sum();
            last + u64::from(unit_bytes)
        };
        let (source_reach, target_reach) = (reach(|l| l.source), reach(|l| l.target));
        let units: u64 = loops.iter().map(|l| u64::from(l.extent)).product();
        let bytes = units * u64::from(unit_bytes);

        loops.sort_by_key(|l| std::cmp::Reverse((l.target, l.source)));
        let mut run = u64::from(unit_bytes);
        while let Some(i) = loops
            .iter()
            .position(|l| l.source == run && l.target == run)
        {
            run *= u64::from(loops.remove(i).extent);
        }
        let mut i = 0;
        while i + 1 < loops.len() {
            let (outer, inner) = (loops[i], loops[i + 1]);
            let n = u64::from(inner.extent);
            match outer.extent.checked_mul(inner.extent) {
                Some(extent)
                    if outer.source == inner.source * n && outer.target == inner.target * n =>
                {
                    loops[i] = Loop { extent, ..inner };
                    loops.remove(i + 1);
                }
                _ => i += 1,
            }
        }
        let columns = loops.iter().position(|l| l.target == run);
        let rows = loops.iter().position(|l| l.source == run);
        let kernel = match (columns, rows) {
            (Some(c), Some(r)) if c != r && matches!(run, 1 | 2 | 4 | 8 | 16) => {
                let kernel = Kernel::Tile(Tile {
                    unit: run as usize,
                    columns: loops[c],
                    rows: loops[r],
                });
                loops.remove(c.max(r));
                loops.remove(c.min(r));
                kernel
            }
            _ => Kernel::Run {
                bytes: run as usize,
            },
        };
        // Runs of whole lines may come in any order. Fewer of them far apart in a row keep fewer places of memory
        // busy at a time.
        if let [.., middle, inner] = &mut *loops
            && run >= LINE as u64
            && middle.extent < inner.extent
        {
            std::mem::swap(middle, inner);
        }
        assert!(
            loops.len() <= MOST_LOOPS,
            "{} loops of a strided copy cannot be merged",
            loops.len()
        );
        Self {
            loops,
            kernel,
            source_reach,
            target_reach,
            bytes,
        }
    }

    /// This copy by way of an image, if that makes whole lines of the target that this makes in parts.
    pub(crate) fn staged(&self) -> Option<Staged> {
        if self.run_bytes() >= LINE as u64 {
            return None;
        }
        let mut loops = self.all_loops();
        loops.sort_by_key(|l| std::cmp::Reverse((l.target, l.source)));
        let unit = self.run_bytes();
        let (mut fill, mut flush) = (loops.clone(), loops);
        let mut dense = unit;
        for (fill, flush) in fill.iter_mut().zip(&mut flush).rev() {
            fill.target = dense;
            flush.source = dense;
            dense *= u64::from(fill.extent);
        }
        let flush = Self::compile(unit as u32, flush);
        (flush.run_bytes() >= LINE as u64).then(|| Staged {
            fill: Self::compile(unit as u32, fill),
            flush,
        })
    }

    /// The loops, the kernel's among them.
    fn all_loops(&self) -> Vec<Loop> {
        let mut loops = self.loops.clone();
        if let Kernel::Tile(tile) = self.kernel {
            loops.push(tile.rows);
            loops.push(tile.columns);
        }
        loops
    }

    /// Bytes moved.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether this is one run, contiguous on both sides.
    #[must_use]
    pub fn is_one_run(&self) -> bool {
        self.loops.is_empty() && matches!(self.kernel, Kernel::Run { .. })
    }

    /// Bytes that are contiguous on both sides at a time.
    #[must_use]
    pub fn run_bytes(&self) -> u64 {
        match self.kernel {
            Kernel::Run { bytes } => bytes as u64,
            Kernel::Tile(tile) => tile.unit as u64,
        }
    }

    /// Whether units are transposed in tiles.
    #[must_use]
    pub fn is_transpose(&self) -> bool {
        matches!(self.kernel, Kernel::Tile(_))
    }

    /// Calls `each` with (source offset, target offset, bytes) of every run, relative to the starts.
    pub fn for_each_run(&self, mut each: impl FnMut(u64, u64, u64)) {
        let run = self.run_bytes();
        nest(&self.loops, |s, t| match self.kernel {
            Kernel::Run { .. } => each(s, t, run),
            Kernel::Tile(Tile { rows, columns, .. }) => {
                nest(&[rows, columns], |ds, dt| each(s + ds, t + dt, run));
            }
        });
    }

    /// Copies from `source[at_source..]` to `target[at_target..]`.
    ///
    /// # Panics
    ///
    /// If the strides reach past either buffer.
    pub fn run(&self, source: &[u8], at_source: u64, target: &mut [u8], at_target: u64) {
        let manner = Manner {
            level: Level::best(),
            streaming: false,
            ahead: 0,
        };
        self.run_in(manner, source, at_source, target.into(), at_target);
    }

    /// [`run`](Self::run) in the given manner.
    pub(crate) fn run_in(
        &self,
        manner: Manner,
        source: &[u8],
        at_source: u64,
        target: Dest<'_>,
        at_target: u64,
    ) {
        let fits = |at: u64, reach: u64, len: usize| {
            at.checked_add(reach).is_some_and(|end| end <= len as u64)
        };
        assert!(
            fits(at_source, self.source_reach, source.len()),
            "a copy from {at_source} reaches {} bytes into a source of {}",
            self.source_reach,
            source.len()
        );
        assert!(
            fits(at_target, self.target_reach, target.len()),
            "a copy to {at_target} reaches {} bytes into a target of {}",
            self.target_reach,
            target.len()
        );
        assert!(manner.level <= Level::best(), "the CPU has no {manner:?}");
        let source = source[at_source as usize..].as_ptr();
        // SAFETY: it is within the region, as asserted above.
        let target = unsafe { target.start().add(at_target as usize) };
        match self.kernel {
            // SAFETY: every offset of the loops, plus the run, is within the reach asserted above; the two
            // buffers are distinct, the bytes written being borrowed mutably; and the CPU has the level.
            Kernel::Run { bytes } => unsafe {
                runs::run(manner, &self.loops, bytes, source, target);
            },
            // SAFETY: as above; the tile's own strides are part of the asserted reach.
            Kernel::Tile(tile) => unsafe {
                transpose::run(manner, &self.loops, tile, source, target);
            },
        }
    }
}

/// # Safety
///
/// `bytes` bytes at offset `s` of `source` and `t` of `target` are valid, and do not overlap.
#[inline(always)]
unsafe fn copy(source: *const u8, s: u64, target: *mut u8, t: u64, bytes: usize) {
    // SAFETY: the offset stays within the buffer, as the caller promises.
    let from = unsafe { source.add(s as usize) };
    // SAFETY: as above.
    let to = unsafe { target.add(t as usize) };
    // SAFETY: both ranges are valid and apart, as the caller promises.
    unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) }
}

/// Asks the L2 for the line at `at`, which may be any address.
///
/// Not the L1: it waits for few lines at a time, and loads that find all of these places taken stand still. On a Zen
/// 4 transposes reach 57 % of the speed of a copy with fetches into L1, 85 % with fetches into L2.
#[inline(always)]
fn prefetch(at: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch reads nothing as far as the program can tell, and never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// Asks for the lines that lie `ahead` bytes beyond `bytes` bytes at `at`; 0 for none.
#[inline(always)]
fn prefetch_ahead(at: *const u8, bytes: usize, ahead: usize) {
    if ahead != 0 {
        for line in (0..bytes).step_by(LINE) {
            prefetch(at.wrapping_add(ahead).wrapping_add(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oracle(unit: u32, loops: &[Loop], source: &[u8], target: &mut [u8]) {
        let total: u64 = loops.iter().map(|l| u64::from(l.extent)).product();
        for n in 0..total {
            let (mut rest, mut s, mut t) = (n, 0, 0);
            for l in loops {
                let i = rest % u64::from(l.extent);
                rest /= u64::from(l.extent);
                s += i * l.source;
                t += i * l.target;
            }
            for b in 0..u64::from(unit) {
                target[(t + b) as usize] = source[(s + b) as usize];
            }
        }
    }

    fn check(unit: u32, loops: &[Loop]) -> StridedCopy {
        let copy = StridedCopy::compile(unit, loops.to_vec());
        let source: Vec<u8> = (0..copy.source_reach)
            .map(|i| (i * 7 + i / 251) as u8)
            .collect();
        let before = vec![0xAA; copy.target_reach as usize + 8];
        let mut wanted = before.clone();
        oracle(unit, loops, &source, &mut wanted);
        for level in Level::available() {
            for (streaming, ahead) in [(false, 0), (true, 0), (true, 1 << 20)] {
                let manner = Manner {
                    level,
                    streaming,
                    ahead,
                };
                let mut got = before.clone();
                copy.run_in(manner, &source, 0, got.as_mut_slice().into(), 0);
                assert!(
                    wanted == got,
                    "unit {unit}, {loops:?}: {copy:?}, {manner:?}"
                );
                let Some(Staged { fill, flush }) = copy.staged() else {
                    continue;
                };
                let mut image = vec![0; copy.bytes as usize];
                let mut got = before.clone();
                fill.run_in(manner, &source, 0, image.as_mut_slice().into(), 0);
                flush.run_in(manner, &image, 0, got.as_mut_slice().into(), 0);
                assert!(wanted == got, "unit {unit}, {loops:?}: {fill:?}, {flush:?}");
            }
        }
        let mut runs = 0;
        copy.for_each_run(|_, _, bytes| runs += bytes);
        assert_eq!(runs, copy.bytes());
        copy
    }

    const fn l(extent: u32, source: u64, target: u64) -> Loop {
        Loop {
            extent,
            source,
            target,
        }
    }

    #[test]
    fn equal_layouts_become_one_run() {
        let copy = check(2, &[l(3, 4096, 4096), l(16, 256, 256), l(128, 2, 2)]);
        assert_eq!(copy.run_bytes(), 4096 * 3);
        assert!(copy.is_one_run());
    }

    #[test]
    fn pages_apart_become_runs_and_transposes_become_tiles() {
        assert_eq!(
            check(2, &[l(4, 5000, 6000), l(16, 256, 256), l(128, 2, 2)]).run_bytes(),
            4096
        );
        assert!(check(2, &[l(16, 128, 2), l(64, 2, 32)]).is_transpose());
        assert!(check(1, &[l(3, 9000, 9000), l(16, 128, 1), l(128, 1, 16)]).is_transpose());
        // x-packed: eight dims of two bytes stay together.
        let packed = check(2, &[l(16, 128, 16), l(8, 16, 256), l(8, 2, 2)]);
        assert_eq!(packed.run_bytes(), 16);
        // Both sides strided: units one by one.
        check(2, &[l(5, 6, 10), l(3, 40, 60)]);
        check(34, &[l(5, 34, 136), l(3, 170, 34)]);
        check(3, &[l(7, 3, 21), l(7, 21, 3)]);
    }

    #[test]
    fn tiles_of_every_unit_and_edge_are_transposed() {
        for unit in [1, 2, 4, 8, 16] {
            for columns in [2, 7, 8, 15, 16, 17, 31, 33, 64, 65, 128] {
                for rows in [2, 9, 16, 47, 128] {
                    let (c, r, u) = (u64::from(columns), u64::from(rows), u64::from(unit));
                    let copy = check(unit, &[l(columns, r * u, u), l(rows, u, c * u)]);
                    assert!(copy.is_transpose());
                    let apart = [
                        l(2, 5 * c * r * u, 3 * c * r * u),
                        l(columns, r * u + 3, u),
                        l(rows, u, c * u + 1),
                    ];
                    check(unit, &apart);
                }
            }
        }
    }

    #[test]
    fn many_loops_are_all_visited() {
        check(
            2,
            &[
                l(2, 3000, 2000),
                l(3, 900, 600),
                l(2, 400, 250),
                l(5, 60, 40),
                l(4, 10, 6),
            ],
        );
    }

    #[test]
    #[should_panic(expected = "into a source of 10")]
    fn a_copy_past_the_end_panics_before_it_writes() {
        let copy = StridedCopy::compile(2, vec![l(6, 2, 2)]);
        copy.run(&[0; 10], 0, &mut [0; 100], 0);
    }
}
