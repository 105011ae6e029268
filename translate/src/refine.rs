//! The common factorization of two layouts over a box of rows.
//!
//! An axis may be split on one side and not on the other, or by other numbers. Over a range of
//! indices both sides are turned into the same nested loops with one byte stride each; where no such
//! nest exists (a range that starts in the middle of a split, numbers without a common factor, an axis
//! that picks regions) the range is cut, at worst into single indices.

use crate::{
    cpu::{Loop, Staged, StridedCopy},
    layout::{Address, Axis, AxisMap, Layout},
};

/// Where a box starts on one side, relative to the first unit of its layer and page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Corner {
    pub(crate) head: u32,
    pub(crate) slot: u32,
    /// Slots between one token of the box and the next.
    pub(crate) slot_step: u32,
    pub(crate) unit: u32,
}

/// Extents of a box of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Size {
    pub(crate) heads: u32,
    pub(crate) slots: u32,
    pub(crate) units: u32,
}

/// A strided copy, with its start on each side relative to the first unit of the layer and page.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) source: Address,
    pub(crate) target: Address,
    pub(crate) copy: StridedCopy,
    /// The same by way of an image, where that makes whole lines of the target.
    pub(crate) staged: Option<Staged>,
}

/// The copies that carry a box of rows from one layout to another with equal units.
pub(crate) fn copies(
    source: &Layout,
    from: Corner,
    target: &Layout,
    to: Corner,
    size: Size,
) -> Vec<Piece> {
    assert_eq!(
        source.unit_bytes(),
        target.unit_bytes(),
        "bytes of a unit on both sides"
    );
    let axis = |axis, n, a: Range, b: Range| {
        let mut cuts = Vec::new();
        refine(n, *source.axis(axis), a, *target.axis(axis), b, &mut cuts);
        cuts
    };
    let whole = |first| Range { first, step: 1 };
    let heads = axis(Axis::Head, size.heads, whole(from.head), whole(to.head));
    let slots = axis(
        Axis::Slot,
        size.slots,
        Range {
            first: from.slot,
            step: from.slot_step,
        },
        Range {
            first: to.slot,
            step: to.slot_step,
        },
    );
    let dims = axis(Axis::Dim, size.units, whole(from.unit), whole(to.unit));
    let mut pieces = Vec::with_capacity(heads.len() * slots.len() * dims.len());
    for head in &heads {
        for slot in &slots {
            for dim in &dims {
                let loops = [&head.loops[..], &slot.loops, &dim.loops].concat();
                let copy = StridedCopy::compile(source.unit_bytes(), loops);
                pieces.push(Piece {
                    source: head.source.plus(slot.source).plus(dim.source),
                    target: head.target.plus(slot.target).plus(dim.target),
                    staged: copy.staged(),
                    copy,
                });
            }
        }
    }
    pieces
}

/// Indices `first`, `first + step`, … of an axis.
#[derive(Clone, Copy)]
struct Range {
    first: u32,
    step: u32,
}

/// Part of an axis that is a plain nest of loops on both sides.
struct Cut {
    source: Address,
    target: Address,
    loops: Vec<Loop>,
}

/// Cuts `n` indices, from `a` on the source and `b` on the target, into nests of loops.
fn refine(n: u32, source: AxisMap, a: Range, target: AxisMap, b: Range, out: &mut Vec<Cut>) {
    let mut done = 0;
    while done < n {
        let (a, b) = (a.skip(done), b.skip(done));
        let left = n - done;
        let (run_a, run_b) = (affine(&source, a, left), affine(&target, b, left));
        let affine = run_a.min(run_b);
        // Regions have no distance in bytes, so an axis that picks them is no loop on that side.
        let regions = source.picks_region() || target.picks_region();
        if affine == left || a.step != 1 || b.step != 1 || regions {
            line(affine, &source, a, &target, b, out);
            done += affine;
            continue;
        }
        // At least one side crosses a boundary of its split. Blocks of `m` indices that both sides
        // keep together become an inner loop, if the two ranges meet their blocks at the same time.
        let m = match (run_a < left, run_b < left) {
            (true, true) => gcd(source.split.get(), target.split.get()),
            (true, false) => source.split.get(),
            _ => target.split.get(),
        };
        let (phase_a, phase_b) = (a.first % m, b.first % m);
        let aligned = match (run_a < left, run_b < left) {
            (true, true) => phase_a == 0 && phase_b == 0,
            (true, false) => phase_a == 0,
            _ => phase_b == 0,
        };
        let blocks = left / m;
        if m == 1 || !aligned || blocks == 0 {
            line(affine, &source, a, &target, b, out);
            done += affine;
            continue;
        }
        let start = out.len();
        let outer = |map: &AxisMap, range: Range, crosses: bool| {
            if crosses {
                (
                    coarser(map, m),
                    Range {
                        first: range.first / m,
                        step: 1,
                    },
                )
            } else {
                // Within one block of its own split: an affine side, seen from where it starts.
                (
                    AxisMap::whole(map.inner.times(u64::from(m))),
                    Range { first: 0, step: 1 },
                )
            }
        };
        let (map_a, range_a) = outer(&source, a, run_a < left);
        let (map_b, range_b) = outer(&target, b, run_b < left);
        refine(blocks, map_a, range_a, map_b, range_b, out);
        let base_a = if run_a < left {
            Address::default()
        } else {
            source.at(a.first)
        };
        let base_b = if run_b < left {
            Address::default()
        } else {
            target.at(b.first)
        };
        for cut in &mut out[start..] {
            cut.source = cut.source.plus(base_a);
            cut.target = cut.target.plus(base_b);
            cut.loops.push(Loop {
                extent: m,
                source: source.inner.byte,
                target: target.inner.byte,
            });
        }
        done += blocks * m;
    }
}

/// How many of `left` indices step by the same displacement.
fn affine(map: &AxisMap, range: Range, left: u32) -> u32 {
    if map.picks_region() {
        return 1;
    }
    let room = map.split.get() - range.first % map.split.get();
    left.min(room.div_ceil(range.step))
}

/// The map of blocks of `m` indices; `m` divides its split.
fn coarser(map: &AxisMap, m: u32) -> AxisMap {
    match std::num::NonZeroU32::new(map.split.get() / m) {
        Some(split) if split.get() > 1 => AxisMap {
            split,
            inner: map.inner.times(u64::from(m)),
            ..*map
        },
        _ => AxisMap::whole(map.outer),
    }
}

/// One cut of `n` indices that step evenly on both sides.
fn line(n: u32, source: &AxisMap, a: Range, target: &AxisMap, b: Range, out: &mut Vec<Cut>) {
    out.push(Cut {
        source: source.at(a.first),
        target: target.at(b.first),
        loops: vec![Loop {
            extent: n,
            source: source.inner.byte * u64::from(a.step),
            target: target.inner.byte * u64::from(b.step),
        }],
    });
}

impl Range {
    fn skip(self, n: u32) -> Self {
        Self {
            first: self.first + n * self.step,
            ..self
        }
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
