//! A layout with its extents filled in: an address for every unit.

use std::{collections::BTreeMap, num::NonZeroU32};

use thiserror::Error;

use super::{Axis, Notation, Split};

/// How many of each axis a rank holds.
///
/// `dim` counts units: elements, or the indivisible groups of a grouped element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_structs, reason = "one field an axis")]
pub struct Extents {
    /// Layers of this rank.
    pub layer: u32,
    /// Components that share the region.
    pub part: u32,
    /// Pages in each region.
    pub page: u32,
    /// Heads of this rank.
    pub head: u32,
    /// Tokens a page.
    pub slot: u32,
    /// Units a row.
    pub dim: u32,
}

impl Extents {
    /// The extent of one axis.
    #[must_use]
    pub fn of(&self, axis: Axis) -> u32 {
        match axis {
            Axis::Layer => self.layer,
            Axis::Part => self.part,
            Axis::Page => self.page,
            Axis::Head => self.head,
            Axis::Slot => self.slot,
            Axis::Dim => self.dim,
        }
    }
}

/// Where a unit starts: a region of the rank, and a byte offset in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(
    clippy::exhaustive_structs,
    reason = "an address is a region and an offset"
)]
pub struct Address {
    /// Region index, counted within the rank.
    pub region: u64,
    /// Bytes from the start of the region.
    pub byte: u64,
}

impl Address {
    /// The sum of two displacements. Layouts are checked to stay within `u64` when they are made.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            region: self.region + other.region,
            byte: self.byte + other.byte,
        }
    }

    /// This displacement, `n` times.
    #[must_use]
    pub fn times(self, n: u64) -> Self {
        Self {
            region: self.region * n,
            byte: self.byte * n,
        }
    }
}

/// How one axis contributes to an address: index i adds
/// `outer × ⌊i / split⌋ + inner × (i mod split)`.
///
/// An axis that is not split has `split = u32::MAX`, so that only `inner` counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct AxisMap {
    /// Indices up to which `inner` steps.
    pub split: NonZeroU32,
    /// Displacement of one outer step.
    pub outer: Address,
    /// Displacement of one inner step.
    pub inner: Address,
}

impl AxisMap {
    /// An axis that is not split.
    #[must_use]
    pub fn whole(inner: Address) -> Self {
        Self {
            split: NonZeroU32::MAX,
            outer: Address::default(),
            inner,
        }
    }

    /// Displacement of index `i`.
    #[must_use]
    pub fn at(&self, i: u32) -> Address {
        let n = self.split.get();
        if i < n {
            return self.inner.times(u64::from(i));
        }
        self.outer
            .times(u64::from(i / n))
            .plus(self.inner.times(u64::from(i % n)))
    }

    /// Whether the axis picks regions.
    #[must_use]
    pub fn picks_region(&self) -> bool {
        self.inner.region != 0 || self.outer.region != 0
    }
}

/// Which of two axes of a dense run of rows is outermost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "two axes have two orders")]
pub enum RowOrder {
    /// Token, then head, then the row: what NHD pages hold.
    TokenHead,
    /// Head, then token, then the row: what HND pages hold.
    HeadToken,
}

/// A [`Notation`] with extents, byte strides and offset: the address of every unit of a component
/// on one rank.
///
/// # Units
///
/// The unit (layer l, page p, head h, slot s, dim d) of `unit_bytes` bytes starts at the sum of the
/// base and of what each axis contributes ([`AxisMap::at`]). Regions are counted within the rank.
///
/// # Invariants
///
/// Checked once, by [`Layout::new`]:
///
/// - no extent is zero; an axis with an extent above 1 is named by the text; a split divides its extent;
/// - axes nest: each stride steps over everything that the shorter strides reach, so no two units overlap;
/// - the last byte of every region fits in `i64` (so offsets can be subtracted).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    extents: Extents,
    unit_bytes: u32,
    base: Address,
    maps: [AxisMap; 6],
    region_bytes: u64,
    regions: u64,
}

/// A layout does not describe memory.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayoutError {
    /// A count is zero.
    #[error("the extent of `{axis}` is 0; every axis needs at least 1")]
    ZeroExtent {
        /// The axis.
        axis: Axis,
    },
    /// An axis with more than one index has no place in the text.
    #[error(
        "layout `{text}` leaves out `{axis}`, whose extent is {extent}; only an axis of extent 1 may be left out"
    )]
    Missing {
        /// The text.
        text: String,
        /// The axis.
        axis: Axis,
        /// Its extent.
        extent: u32,
    },
    /// A split does not divide the axis.
    #[error(
        "layout `{text}` splits `{axis}` by {split}, which does not divide its extent of {extent}"
    )]
    Split {
        /// The text.
        text: String,
        /// The axis.
        axis: Axis,
        /// The split.
        split: u32,
        /// The extent.
        extent: u32,
    },
    /// A stride was given for a word that is not in the text, or is a region, or twice.
    #[error(
        "a stride is given for `{key}`, but layout `{text}` has no such offset word (or gives the stride itself)"
    )]
    Stride {
        /// The text.
        text: String,
        /// The word the stride was given for.
        key: String,
    },
    /// Two units would share a byte.
    #[error(
        "layout `{text}`: `{word}` has a stride of {stride} bytes, but the axes inside it reach {reach} bytes; rows would overlap"
    )]
    Overlap {
        /// The text.
        text: String,
        /// The word whose stride is too short.
        word: String,
        /// Its stride.
        stride: u64,
        /// What the shorter strides reach.
        reach: u64,
    },
    /// The region's size does not fit.
    #[error("layout `{text}` needs a region of more than {} bytes", i64::MAX)]
    TooLarge {
        /// The text.
        text: String,
    },
}

impl Layout {
    /// Fills in a notation.
    ///
    /// `part` is the component's own position on the `part` axis; `strides` gives strides in bytes by
    /// [`Word::key`](super::Word::key), where they are not dense.
    ///
    /// # Errors
    ///
    /// Every variant of [`LayoutError`]; see the invariants.
    pub fn new(
        notation: &Notation,
        extents: Extents,
        unit_bytes: u32,
        part: u32,
        offset_bytes: u64,
        strides: &BTreeMap<String, u64>,
    ) -> Result<Self, LayoutError> {
        let text = || notation.to_string();
        for axis in Axis::ALL {
            let extent = extents.of(axis);
            if extent == 0 {
                return Err(LayoutError::ZeroExtent { axis });
            }
            // A component that does not name `part` has a place of its own, by its offset.
            if extent > 1 && axis != Axis::Part && !notation.names(axis) {
                return Err(LayoutError::Missing {
                    text: text(),
                    axis,
                    extent,
                });
            }
            if let Some(n) = notation.split_of(axis)
                && !extent.is_multiple_of(n.get())
            {
                let split = n.get();
                return Err(LayoutError::Split {
                    text: text(),
                    axis,
                    split,
                    extent,
                });
            }
        }
        for key in strides.keys() {
            let fits = |w: &&super::Word| !w.region && w.stride_bytes.is_none() && w.key() == *key;
            if notation.words().iter().filter(fits).count() != 1 {
                return Err(LayoutError::Stride {
                    text: text(),
                    key: key.clone(),
                });
            }
        }

        let too_large = || LayoutError::TooLarge { text: text() };
        let mut maps = [AxisMap::whole(Address::default()); 6];
        let mut factors = Vec::new(); // (stride, extent, key) of every offset word
        let mut bytes = u64::from(unit_bytes); // dense stride of the next word outwards
        let mut regions = 1_u64;
        for word in notation.words().iter().rev() {
            let whole = extents.of(word.axis);
            let extent = match word.split {
                Split::Whole => whole,
                Split::Outer(n) => whole / n.get(),
                Split::Inner(n) => n.get(),
            };
            let step = if word.region {
                let step = Address {
                    region: regions,
                    byte: 0,
                };
                regions = regions
                    .checked_mul(u64::from(extent))
                    .ok_or_else(too_large)?;
                step
            } else {
                let key = word.key();
                let stride = word
                    .stride_bytes
                    .or_else(|| strides.get(&key).copied())
                    .unwrap_or(bytes);
                bytes = stride
                    .checked_mul(u64::from(extent))
                    .ok_or_else(too_large)?;
                factors.push((stride, extent, key));
                Address {
                    region: 0,
                    byte: stride,
                }
            };
            let map = &mut maps[word.axis as usize];
            match word.split {
                Split::Whole => map.inner = step,
                Split::Outer(n) => {
                    map.split = n;
                    map.outer = step;
                }
                Split::Inner(n) => {
                    map.split = n;
                    map.inner = step;
                }
            }
        }

        factors.retain(|&(_, extent, _)| extent > 1);
        factors.sort_by_key(|&(stride, ..)| stride);
        let mut reach = u64::from(unit_bytes);
        for (stride, extent, key) in factors {
            if stride < reach {
                return Err(LayoutError::Overlap {
                    text: text(),
                    word: key,
                    stride,
                    reach,
                });
            }
            reach = stride
                .checked_mul(u64::from(extent - 1))
                .and_then(|last| last.checked_add(reach))
                .filter(|&reach| i64::try_from(reach).is_ok())
                .ok_or_else(too_large)?;
        }
        let mut base = Address {
            region: 0,
            byte: offset_bytes,
        };
        if notation.names(Axis::Part) {
            let own = maps[Axis::Part as usize].at(part);
            base.region = own.region;
            base.byte = own.byte.checked_add(offset_bytes).ok_or_else(too_large)?;
        }
        // `reach` steps over all parts; the component itself ends with its own.
        let others = match notation.names(Axis::Part) {
            true => maps[Axis::Part as usize].at(extents.part - 1).byte,
            false => 0,
        };
        let region_bytes = (reach - others)
            .checked_add(base.byte)
            .filter(|&bytes| i64::try_from(bytes).is_ok())
            .ok_or_else(too_large)?;
        Ok(Self {
            extents,
            unit_bytes,
            base,
            maps,
            region_bytes,
            regions,
        })
    }

    /// Dense rows in a buffer of their own, starting `offset_bytes` into it: one layer, one page
    /// whose slots are the tokens.
    #[must_use]
    pub fn rows(
        order: RowOrder,
        heads: u32,
        tokens: u32,
        units: u32,
        unit_bytes: u32,
        offset_bytes: u64,
    ) -> Self {
        let row = u64::from(units) * u64::from(unit_bytes);
        let (head, slot) = match order {
            RowOrder::TokenHead => (row, row * u64::from(heads)),
            RowOrder::HeadToken => (row * u64::from(tokens), row),
        };
        let step = |byte| AxisMap::whole(Address { region: 0, byte });
        let mut maps = [step(0); 6];
        maps[Axis::Head as usize] = step(head);
        maps[Axis::Slot as usize] = step(slot);
        maps[Axis::Dim as usize] = step(u64::from(unit_bytes));
        Self {
            extents: Extents {
                layer: 1,
                part: 1,
                page: 1,
                head: heads,
                slot: tokens,
                dim: units,
            },
            unit_bytes,
            base: Address {
                region: 0,
                byte: offset_bytes,
            },
            maps,
            region_bytes: offset_bytes + row * u64::from(heads) * u64::from(tokens),
            regions: 1,
        }
    }

    /// The same layout in the regions from `first` on.
    #[must_use]
    pub fn with_first_region(mut self, first: u64) -> Self {
        self.base.region += first;
        self
    }

    /// How many of each axis there are.
    #[must_use]
    pub fn extents(&self) -> &Extents {
        &self.extents
    }

    /// Bytes of one unit: an element, or an indivisible group.
    #[must_use]
    pub fn unit_bytes(&self) -> u32 {
        self.unit_bytes
    }

    /// Bytes that each region the component lies in must have at least: past its last unit.
    #[must_use]
    pub fn region_bytes(&self) -> u64 {
        self.region_bytes
    }

    /// Number of regions over all bracketed axes.
    #[must_use]
    pub fn regions(&self) -> u64 {
        self.regions
    }

    /// How `axis` contributes to an address.
    #[must_use]
    pub fn axis(&self, axis: Axis) -> &AxisMap {
        &self.maps[axis as usize]
    }

    /// Address of the first unit of `layer` in `page`.
    #[must_use]
    pub fn page_base(&self, layer: u32, page: u32) -> Address {
        self.base
            .plus(self.axis(Axis::Layer).at(layer))
            .plus(self.axis(Axis::Page).at(page))
    }

    /// Address of one unit.
    #[must_use]
    pub fn address(&self, layer: u32, page: u32, head: u32, slot: u32, dim: u32) -> Address {
        self.page_base(layer, page)
            .plus(self.axis(Axis::Head).at(head))
            .plus(self.axis(Axis::Slot).at(slot))
            .plus(self.axis(Axis::Dim).at(dim))
    }

    /// Whether the units of a row lie one after another.
    #[must_use]
    pub fn rows_are_contiguous(&self) -> bool {
        let map = self.axis(Axis::Dim);
        let unit = u64::from(self.unit_bytes);
        self.extents.dim == 1
            || (map.inner.byte == unit
                && (map.split.get() >= self.extents.dim
                    || map.outer.byte == unit * u64::from(map.split.get())))
    }

    /// The order of tokens and heads within a page that follows this layout's own.
    #[must_use]
    pub fn row_order(&self) -> RowOrder {
        let step = |axis: Axis| {
            let map = self.axis(axis);
            if map.inner.region > 0 {
                u64::MAX
            } else {
                map.outer.byte.max(map.inner.byte)
            }
        };
        if self.extents.head == 1 || step(Axis::Slot) >= step(Axis::Head) {
            RowOrder::TokenHead
        } else {
            RowOrder::HeadToken
        }
    }

    /// Strides and extents within a region, for tests of overlap: `(stride_bytes, extent)`, and the
    /// base address.
    pub(super) fn strided(&self) -> (Address, Vec<(u64, u32)>) {
        let mut loops = Vec::new();
        for axis in Axis::ALL {
            if axis == Axis::Part {
                continue;
            }
            let map = self.axis(axis);
            let extent = self.extents.of(axis);
            let split = map.split.get();
            if split < extent {
                loops.push((map.outer.byte, extent / split));
                loops.push((map.inner.byte, split));
            } else {
                loops.push((map.inner.byte, extent));
            }
        }
        loops.retain(|&(stride, extent)| extent > 1 && stride > 0);
        loops.sort_unstable_by(|a, b| b.cmp(a));
        (self.base, loops)
    }

    /// The regions that units of the component lie in, ascending.
    #[must_use]
    pub fn touches(&self) -> Vec<u64> {
        let mut at = vec![self.base.region];
        for axis in Axis::ALL {
            let step = self.axis(axis).inner.region;
            if axis == Axis::Part || step == 0 {
                continue;
            }
            let extent = u64::from(self.extents.of(axis));
            at = at
                .iter()
                .flat_map(|&first| (0..extent).map(move |i| first + i * step))
                .collect();
        }
        at.sort_unstable();
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Extents = Extents {
        layer: 2,
        part: 2,
        page: 3,
        head: 4,
        slot: 16,
        dim: 64,
    };

    fn layout(text: &str) -> Layout {
        Layout::new(&text.parse().unwrap(), SHAPE, 2, 1, 0, &BTreeMap::new()).unwrap()
    }

    fn refused(text: &str, shape: Extents, strides: &[(&str, u64)]) -> LayoutError {
        let strides = strides.iter().map(|&(k, v)| (k.to_owned(), v)).collect();
        Layout::new(&text.parse().unwrap(), shape, 2, 0, 0, &strides).unwrap_err()
    }

    #[test]
    fn nhd_addresses_follow_the_text() {
        let nhd = layout("[layer] page part slot head dim");
        // [page][part][slot][head][dim] of two bytes, value being part 1.
        let expected = (((2 * 2 + 1) * 16 + 5) * 4 + 3) * 128 + 7 * 2;
        assert_eq!(
            nhd.address(1, 2, 3, 5, 7),
            Address {
                region: 1,
                byte: expected
            }
        );
        assert_eq!(nhd.regions(), 2);
        assert_eq!(nhd.region_bytes(), 3 * 2 * 16 * 4 * 128);
        assert!(nhd.rows_are_contiguous());
        assert_eq!(nhd.row_order(), RowOrder::TokenHead);
    }

    #[test]
    fn packed_keys_put_eight_dims_of_a_slot_together() {
        let packed = layout("[layer] [part] page head dim/8 slot dim%8");
        let byte = ((2 * 4 + 3) * 8 + 1) * 16 * 16 + 5 * 16 + 4;
        assert_eq!(packed.address(1, 2, 3, 5, 10), Address { region: 3, byte });
        assert!(!packed.rows_are_contiguous());
        assert_eq!(packed.row_order(), RowOrder::HeadToken);
    }

    #[test]
    fn what_cannot_be_memory_is_refused_with_its_numbers() {
        let one = Extents { part: 1, ..SHAPE };
        assert_eq!(
            refused("page slot dim", one, &[]),
            LayoutError::Missing {
                text: "page slot dim".into(),
                axis: Axis::Layer,
                extent: 2
            }
        );
        assert!(matches!(
            refused("[layer] page head dim/7 slot dim%7", one, &[]),
            LayoutError::Split {
                split: 7,
                extent: 64,
                ..
            }
        ));
        assert!(matches!(
            refused("[layer] page slot head dim", one, &[("slot", 300)]),
            LayoutError::Overlap {
                stride: 300,
                reach: 512,
                ..
            }
        ));
        assert!(matches!(
            refused("[layer] page slot head dim", one, &[("token", 300)]),
            LayoutError::Stride { .. }
        ));
        assert!(matches!(
            refused(
                "[layer] page slot head dim",
                Extents { slot: 0, ..one },
                &[]
            ),
            LayoutError::ZeroExtent { axis: Axis::Slot }
        ));
        let huge = Extents {
            page: u32::MAX,
            head: u32::MAX,
            ..one
        };
        assert!(matches!(
            refused("[layer] page slot head dim", huge, &[]),
            LayoutError::TooLarge { .. }
        ));
    }
}
