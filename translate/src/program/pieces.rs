//! Strided copies of a program, compiled for each shape of box when it is first met.

use std::{collections::HashMap, sync::Arc};

use super::Place;
use crate::{
    layout::{Address, Axis, AxisMap, Layout, RowOrder},
    refine::{Corner, Piece, Size, copies},
};

/// Where one plane of a side lies: its codes, or its parameters.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) layout: Layout,
    /// First head of the box.
    pub(super) head: u32,
    /// First unit of the box within the row.
    pub(super) unit: u32,
    /// Whether tokens are dealt to pages.
    pub(super) paged: bool,
}

/// Tokens of one page, or of a buffer of rows, under some heads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    /// Where the offsets of pieces count from.
    pub(super) base: Address,
    pub(super) corner: Corner,
    pub(super) tokens: u32,
}

impl View {
    /// The whole of a buffer of dense rows.
    pub(super) fn dense(
        order: RowOrder,
        heads: u32,
        tokens: u32,
        row_bytes: u64,
        unit: u32,
    ) -> Self {
        let units = row_bytes as u32 / unit;
        Self {
            layout: Layout::rows(order, heads, tokens, units, unit, 0),
            head: 0,
            unit: 0,
            paged: false,
        }
    }

    /// From the `token`-th token of the place on, and the box's head `head`: what lies in the same page,
    /// `left` tokens at most.
    pub(super) fn segment(&self, place: Place<'_>, token: u32, head: u32, left: u32) -> Segment {
        let (page, slot, room) = self.spot(place, token);
        let (at_head, head) = fold(self.layout.axis(Axis::Head), self.head + head);
        let (at_slot, slot) = fold(self.layout.axis(Axis::Slot), slot);
        let (at_unit, unit) = fold(self.layout.axis(Axis::Dim), self.unit);
        let base = self.layout.page_base(place.layer, page);
        Segment {
            base: base.plus(at_head).plus(at_slot).plus(at_unit),
            corner: Corner {
                head,
                slot,
                slot_step: place.tokens.step,
                unit,
            },
            tokens: left.min(room),
        }
    }

    /// The first unit of a token under a head of the box.
    pub(super) fn first(&self, place: Place<'_>, token: u32, head: u32) -> Address {
        let (page, slot, _) = self.spot(place, token);
        self.layout
            .address(place.layer, page, self.head + head, slot, self.unit)
    }

    /// Page and slot of a token, and how many tokens from it on are in the page.
    fn spot(&self, place: Place<'_>, token: u32) -> (u32, u32, u32) {
        let token = place.tokens.at(token);
        if !self.paged {
            return (0, token, u32::MAX);
        }
        let slots = self.layout.extents().slot;
        let slot = token % slots;
        let room = (slots - slot).div_ceil(place.tokens.step);
        (place.pages[(token / slots) as usize], slot, room)
    }

    /// Tokens of the place from `token` on that are in the same page.
    pub(super) fn left(&self, place: Place<'_>, token: u32) -> u32 {
        self.spot(place, token).2
    }

    /// Whether the place has a page for the token.
    pub(super) fn covers(&self, place: Place<'_>, token: u32) -> bool {
        let page = place.tokens.at(token) / self.layout.extents().slot;
        !self.paged || (page as usize) < place.pages.len()
    }

    /// Tokens of a buffer of rows, on which the distance of its heads depends; 0 for pages.
    pub(super) fn rows(&self) -> u32 {
        if self.paged {
            0
        } else {
            self.layout.extents().slot
        }
    }

    /// Whether all heads of a token lie before the next token, each row in one piece.
    pub(super) fn is_token_major(&self) -> bool {
        self.layout.row_order() == RowOrder::TokenHead && self.layout.rows_are_contiguous()
    }

    /// Tokens that a page has at most.
    pub(super) fn room(&self, place: Place<'_>) -> u32 {
        if self.paged {
            self.layout.extents().slot.div_ceil(place.tokens.step)
        } else {
            u32::MAX
        }
    }
}

/// Splits an index into a displacement that all indices from it on share, and what is left of it.
/// Indices of an axis that is not split are all alike, so nothing is left.
fn fold(map: &AxisMap, index: u32) -> (Address, u32) {
    let split = map.split.get();
    if split == u32::MAX {
        (map.inner.times(u64::from(index)), 0)
    } else {
        (map.outer.times(u64::from(index / split)), index % split)
    }
}

/// What the strided copies of a box depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) stage: Stage,
    pub(super) params: bool,
    pub(super) source: Corner,
    pub(super) target: Corner,
    pub(super) size: Size,
    /// Tokens of dense rows on either side, on which the distance of heads depends.
    pub(super) rows: [u32; 2],
}

/// Between which two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    /// From source to target.
    Direct,
    /// From the source to a tile of dense rows.
    Gather(RowOrder),
    /// From a tile of dense rows to the target.
    Scatter(RowOrder),
}

/// Shapes kept before all are forgotten. A pair of page sizes has at most their sum of phases.
const MOST_KEPT: usize = 4096;

/// The pieces of every shape met so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    all: HashMap<Shape, Arc<[Piece]>>,
    /// The last of each stage and plane: most boxes of a run have the same shape.
    last: [Option<(Shape, Arc<[Piece]>)>; 6],
}

impl Kept {
    /// The copies of a shape from `source` to `target`.
    pub(super) fn pieces(&mut self, shape: Shape, source: &View, target: &View) -> Arc<[Piece]> {
        let stage = match shape.stage {
            Stage::Direct => 0,
            Stage::Gather(_) => 1,
            Stage::Scatter(_) => 2,
        };
        let last = &mut self.last[2 * stage + usize::from(shape.params)];
        if let Some((kept, pieces)) = last
            && *kept == shape
        {
            return Arc::clone(pieces);
        }
        let pieces = match self.all.get(&shape) {
            Some(pieces) => Arc::clone(pieces),
            None => {
                if self.all.len() >= MOST_KEPT {
                    self.all.clear();
                }
                let pieces: Arc<[Piece]> = copies(
                    &source.layout,
                    shape.source,
                    &target.layout,
                    shape.target,
                    shape.size,
                )
                .into();
                self.all.insert(shape, Arc::clone(&pieces));
                pieces
            }
        };
        *last = Some((shape, Arc::clone(&pieces)));
        pieces
    }
}
