//! Whether two layouts would put two units on the same byte.

use super::{Address, Layout};

/// Steps after which the search gives up. Layouts of real engines need a few dozen; what needs this
/// many has strides that do not nest with one another, which is refused as overlapping.
const BUDGET: u32 = 100_000;

/// Whether units of `a` and `b` share a byte of some region.
///
/// Exact for layouts whose strides nest with one another; where the question takes more than a
/// bounded search, the answer is `true`.
///
/// # Example
///
/// ```
/// use moai_translate::layout::{Extents, Layout, overlap};
///
/// let shape = Extents { layer: 1, part: 2, page: 4, head: 2, slot: 16, dim: 64 };
/// let text = "page slot head part dim".parse()?;
/// let place = |part| Layout::new(&text, shape, 2, part, 0, &Default::default());
/// assert!(!overlap(&place(0)?, &place(1)?));
/// assert!(overlap(&place(0)?, &place(0)?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn overlap(a: &Layout, b: &Layout) -> bool {
    let (in_a, in_b) = (a.touches(), b.touches());
    if !in_a.iter().any(|region| in_b.binary_search(region).is_ok()) {
        return false;
    }
    let set = |layout: &Layout| {
        let (Address { byte, .. }, loops) = layout.strided();
        Strided {
            first: i128::from(byte),
            loops,
            width: i128::from(layout.unit_bytes()),
        }
    };
    let (a, b) = (set(a), set(b));
    meet(&a, 0, a.first, &b, 0, b.first, &mut { BUDGET })
}

/// Intervals of `width` bytes, at `first` plus every combination of the loops (longest stride first).
struct Strided {
    first: i128,
    loops: Vec<(u64, u32)>,
    width: i128,
}

impl Strided {
    /// Bytes from the first to past the last, over the loops from `depth` on.
    fn reach(&self, depth: usize) -> i128 {
        let inner = self.loops[depth..].iter();
        inner.fold(self.width, |sum, &(stride, extent)| {
            sum + i128::from(stride) * i128::from(extent - 1)
        })
    }
}

fn meet(
    a: &Strided,
    depth_a: usize,
    at_a: i128,
    b: &Strided,
    depth_b: usize,
    at_b: i128,
    budget: &mut u32,
) -> bool {
    if *budget == 0 {
        return true;
    }
    *budget -= 1;
    let (reach_a, reach_b) = (a.reach(depth_a), b.reach(depth_b));
    if at_a + reach_a <= at_b || at_b + reach_b <= at_a {
        return false;
    }
    let (next_a, next_b) = (a.loops.get(depth_a), b.loops.get(depth_b));
    match (next_a, next_b) {
        (None, None) => true,
        // Equal strides: only the difference of the two indices matters.
        (Some(&(sa, ea)), Some(&(sb, eb))) if sa == sb => {
            let stride = i128::from(sa);
            let (inner_a, inner_b) = (a.reach(depth_a + 1), b.reach(depth_b + 1));
            // Differences d with [at_a + d·s, + inner_a) meeting [at_b, + inner_b).
            let low = (at_b - at_a - inner_a).div_euclid(stride) + 1;
            let high = (at_b + inner_b - at_a - 1).div_euclid(stride);
            let low = low.max(-i128::from(eb - 1));
            let high = high.min(i128::from(ea - 1));
            (low..=high).any(|d| {
                meet(
                    a,
                    depth_a + 1,
                    at_a + d * stride,
                    b,
                    depth_b + 1,
                    at_b,
                    budget,
                )
            })
        }
        (Some(&(sa, _)), next_b) if next_b.is_none_or(|&(sb, _)| sb < sa) => {
            step(a, depth_a, at_a, at_b, reach_b)
                .any(|at| meet(a, depth_a + 1, at, b, depth_b, at_b, budget))
        }
        _ => step(b, depth_b, at_b, at_a, reach_a)
            .any(|at| meet(a, depth_a, at_a, b, depth_b + 1, at, budget)),
    }
}

/// Starts of the sub-boxes of `set` at `depth` whose hull meets `[other, other + reach)`.
fn step(
    set: &Strided,
    depth: usize,
    at: i128,
    other: i128,
    reach: i128,
) -> impl Iterator<Item = i128> {
    let (stride, extent) = set.loops[depth];
    let stride = i128::from(stride);
    let inner = set.reach(depth + 1);
    let low = ((other - at - inner).div_euclid(stride) + 1).max(0);
    let high = (other + reach - at - 1)
        .div_euclid(stride)
        .min(i128::from(extent) - 1);
    (low..=high).map(move |i| at + i * stride)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::*;
    use crate::layout::Extents;

    /// Every byte, one by one.
    fn bytes(layout: &Layout) -> HashSet<(u64, u64)> {
        let e = *layout.extents();
        let mut out = HashSet::new();
        for l in 0..e.layer {
            for p in 0..e.page {
                for h in 0..e.head {
                    for s in 0..e.slot {
                        for d in 0..e.dim {
                            let at = layout.address(l, p, h, s, d);
                            let units = at.byte..at.byte + u64::from(layout.unit_bytes());
                            out.extend(units.map(|byte| (at.region, byte)));
                        }
                    }
                }
            }
        }
        out
    }

    #[test]
    fn agrees_with_an_enumeration_of_all_bytes() {
        let shape = Extents {
            layer: 2,
            part: 1,
            page: 3,
            head: 2,
            slot: 4,
            dim: 8,
        };
        let texts = [
            "[layer] page slot head dim",
            "[layer] page head dim/4 slot dim%4",
            "layer page head slot dim",
            "page layer slot head dim",
            "[layer] head page dim slot",
        ];
        let mut met = 0;
        for (ta, tb) in texts.iter().flat_map(|a| texts.iter().map(move |b| (a, b))) {
            for (pages, cell) in [(256_u64, 16), (300, 20), (512, 32), (128, 8)] {
                for offset in [0, 8, 12, 16, 128, 1000] {
                    let strides = |text: &str| {
                        let mut s = BTreeMap::new();
                        if text.contains("page slot head dim") {
                            s.insert("head".to_owned(), cell);
                            s.insert("slot".to_owned(), 2 * cell);
                            s.insert("page".to_owned(), pages);
                        }
                        s
                    };
                    let a = Layout::new(&ta.parse().unwrap(), shape, 1, 0, 0, &strides(ta));
                    let b = Layout::new(&tb.parse().unwrap(), shape, 1, 0, offset, &strides(tb));
                    let (Ok(a), Ok(b)) = (a, b) else { continue };
                    let truth = !bytes(&a).is_disjoint(&bytes(&b));
                    assert_eq!(
                        overlap(&a, &b),
                        truth,
                        "{ta} | {tb} at {offset}, cell {cell}"
                    );
                    met += 1;
                }
            }
        }
        assert!(met > 300, "only {met} pairs were layouts at all");
    }
}
