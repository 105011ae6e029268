//! Strided copies on the host: merged runs, and transposes in tiles.
//!
//! A [`StridedCopy`] is compiled once and run many times at other starts. Whoever compiles it may name
//! any strides; [`StridedCopy::run`] holds the reach that follows from them against both buffers before
//! the first byte moves, and that check is the whole argument for the pointer arithmetic behind it: every
//! loop below visits offsets `Σ index × stride` with each index below its extent, the largest of which,
//! plus the bytes moved there, is the reach.

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
    /// Outermost first, in the order of the target's addresses.
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
    /// Units of `unit` bytes contiguous along one axis in the source and along another in the target.
    Tile {
        unit: usize,
        /// Contiguous in the target; `source` is its stride there.
        columns: Loop,
        /// Contiguous in the source; `target` is its stride there.
        rows: Loop,
    },
}

impl StridedCopy {
    /// Merges what can be merged and picks the innermost kernel.
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
            (Some(c), Some(r)) if c != r && matches!(run, 1 | 2 | 4 | 8) => {
                let kernel = Kernel::Tile {
                    unit: run as usize,
                    columns: loops[c],
                    rows: loops[r],
                };
                loops.remove(c.max(r));
                loops.remove(c.min(r));
                kernel
            }
            _ => Kernel::Run {
                bytes: run as usize,
            },
        };
        Self {
            loops,
            kernel,
            source_reach,
            target_reach,
            bytes,
        }
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
            Kernel::Tile { unit, .. } => unit as u64,
        }
    }

    /// Whether units are transposed in tiles.
    #[must_use]
    pub fn is_transpose(&self) -> bool {
        matches!(self.kernel, Kernel::Tile { .. })
    }

    /// Calls `each` with (source offset, target offset, bytes) of every run, relative to the starts.
    pub fn for_each_run(&self, mut each: impl FnMut(u64, u64, u64)) {
        let mut loops = self.loops.clone();
        let run = self.run_bytes();
        if let Kernel::Tile { columns, rows, .. } = self.kernel {
            loops.push(rows);
            loops.push(columns);
        }
        nest(&loops, 0, 0, &mut |s, t| each(s, t, run));
    }

    /// Copies from `source[at_source..]` to `target[at_target..]`.
    ///
    /// # Panics
    ///
    /// If the strides reach past either buffer.
    pub fn run(&self, source: &[u8], at_source: u64, target: &mut [u8], at_target: u64) {
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
        let source = source[at_source as usize..].as_ptr();
        let target = target[at_target as usize..].as_mut_ptr();
        match self.kernel {
            Kernel::Run { bytes } => match bytes {
                2 => self.runs::<2>(source, target),
                4 => self.runs::<4>(source, target),
                8 => self.runs::<8>(source, target),
                16 => self.runs::<16>(source, target),
                32 => self.runs::<32>(source, target),
                64 => self.runs::<64>(source, target),
                128 => self.runs::<128>(source, target),
                256 => self.runs::<256>(source, target),
                bytes => nest(&self.loops, 0, 0, &mut |s, t| {
                    // SAFETY: both offsets plus `bytes` are within the reach asserted above, and the
                    // two buffers are distinct, one being borrowed mutably.
                    unsafe { copy(source, s, target, t, bytes) }
                }),
            },
            Kernel::Tile {
                unit,
                columns,
                rows,
            } => {
                // Units of a length known to the compiler are moved in one instruction.
                let tile = match unit {
                    1 => tile::<1>,
                    2 => tile::<2>,
                    4 => tile::<4>,
                    _ => tile::<8>,
                };
                nest(&self.loops, 0, 0, &mut |s, t| {
                    // SAFETY: the tile's own strides are part of the asserted reach, and `s`, `t` are
                    // offsets of the loops outside it; the buffers are distinct.
                    unsafe { tile(source, s, target, t, columns, rows) }
                });
            }
        }
    }

    /// Runs of a length known to the compiler, which turns them into a few vector moves.
    fn runs<const N: usize>(&self, source: *const u8, target: *mut u8) {
        nest(&self.loops, 0, 0, &mut |s, t| {
            // SAFETY: `run` asserted that every offset of the loops, plus N, is within both buffers.
            unsafe { copy(source, s, target, t, N) }
        });
    }
}

/// Visits the offsets of a nest of loops, outermost first.
#[inline(always)]
fn nest(loops: &[Loop], source: u64, target: u64, each: &mut impl FnMut(u64, u64)) {
    match loops {
        [] => each(source, target),
        [inner] => {
            for i in 0..u64::from(inner.extent) {
                each(source + i * inner.source, target + i * inner.target);
            }
        }
        [middle, inner] => {
            for j in 0..u64::from(middle.extent) {
                let (s, t) = (source + j * middle.source, target + j * middle.target);
                for i in 0..u64::from(inner.extent) {
                    each(s + i * inner.source, t + i * inner.target);
                }
            }
        }
        [outer, rest @ ..] => {
            for i in 0..u64::from(outer.extent) {
                deep(
                    rest,
                    source + i * outer.source,
                    target + i * outer.target,
                    each,
                );
            }
        }
    }
}

/// Nests of more than two loops recurse out of line; the two innermost are inlined.
fn deep(loops: &[Loop], source: u64, target: u64, each: &mut impl FnMut(u64, u64)) {
    match loops {
        [outer, rest @ ..] if loops.len() > 2 => {
            for i in 0..u64::from(outer.extent) {
                deep(
                    rest,
                    source + i * outer.source,
                    target + i * outer.target,
                    each,
                );
            }
        }
        _ => nest_two(loops, source, target, each),
    }
}

#[inline(always)]
fn nest_two(loops: &[Loop], source: u64, target: u64, each: &mut impl FnMut(u64, u64)) {
    let one = Loop {
        extent: 1,
        source: 0,
        target: 0,
    };
    let (middle, inner) = match loops {
        [middle, inner] => (*middle, *inner),
        [inner] => (one, *inner),
        _ => (one, one),
    };
    for j in 0..u64::from(middle.extent) {
        let (s, t) = (source + j * middle.source, target + j * middle.target);
        for i in 0..u64::from(inner.extent) {
            each(s + i * inner.source, t + i * inner.target);
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

/// Rows and columns of a tile that are moved together. Sixteen units of two bytes make half a cache
/// line each way, so a tile touches each line of either side twice at most before it is evicted.
const TILE: u32 = 16;

/// # Safety
///
/// Every unit of `N` bytes of the transposed box at `s` and `t` is valid, and the buffers do not overlap.
unsafe fn tile<const N: usize>(
    source: *const u8,
    s: u64,
    target: *mut u8,
    t: u64,
    columns: Loop,
    rows: Loop,
) {
    let step = N as u64;
    for r0 in (0..rows.extent).step_by(TILE as usize) {
        let r1 = rows.extent.min(r0 + TILE);
        for c0 in (0..columns.extent).step_by(TILE as usize) {
            let c1 = columns.extent.min(c0 + TILE);
            for r in u64::from(r0)..u64::from(r1) {
                let (row_s, row_t) = (s + r * step, t + r * rows.target);
                for c in u64::from(c0)..u64::from(c1) {
                    // SAFETY: row and column are below their extents, as the caller promises for all.
                    unsafe {
                        copy(
                            source,
                            row_s + c * columns.source,
                            target,
                            row_t + c * step,
                            N,
                        );
                    }
                }
            }
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
        let mut wanted = vec![0xAA; copy.target_reach as usize + 8];
        let mut got = wanted.clone();
        oracle(unit, loops, &source, &mut wanted);
        copy.run(&source, 0, &mut got, 0);
        assert!(wanted == got, "unit {unit}, {loops:?}: {copy:?}");
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
