//! What a [`Program`](crate::program::Program) must do, element by element.
//!
//! Slow and obvious: every unit's address is computed by itself, every row is converted by the
//! [`reference`](mod@crate::reference). The fast path is tested against this, and `moai run` verifies
//! with it.

use moai_memory::{Read, Write};

use crate::{
    format::{Counts, RowFormat},
    layout::Layout,
    program::Place,
    reference,
};

/// One side of a box in pages.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::exhaustive_structs, reason = "what a box needs of one side")]
pub struct Paged<'a> {
    /// Where codes lie.
    pub codes: &'a Layout,
    /// Where the parameters of rows lie, if rows have any: a scale, or the scales of groups.
    pub params: Option<&'a Layout>,
    /// First head of the box, counted within the rank.
    pub head: u32,
    /// First unit of the box within the row.
    pub unit: u32,
    /// First unit of the box within the parameters of a row.
    pub params_unit: u32,
}

impl Paged<'_> {
    fn spot(&self, place: Place<'_>, n: u32) -> (u32, u32) {
        let slots = self.codes.extents().slot;
        let token = place.tokens.at(n);
        (place.pages[(token / slots) as usize], token % slots)
    }

    /// Reads the row of the `n`-th token of the place under head `head` of the box, and its parameters
    /// if it has any; `params` stays as it is otherwise.
    ///
    /// # Panics
    ///
    /// If the row lies outside of `memory`.
    pub fn read<S: Read + ?Sized>(
        &self,
        memory: &S,
        place: Place<'_>,
        n: u32,
        head: u32,
        row: &mut [u8],
        params: &mut [u8],
    ) {
        let (page, slot) = self.spot(place, n);
        let planes = [
            (Some(self.codes), self.unit, row),
            (self.params, self.params_unit, params),
        ];
        for (layout, first, bytes) in planes {
            let Some(layout) = layout else { continue };
            let width = layout.unit_bytes() as usize;
            for (i, unit) in bytes.chunks_exact_mut(width).enumerate() {
                let dim = first + i as u32;
                let at = layout.address(place.layer, page, self.head + head, slot, dim);
                unit.copy_from_slice(
                    &memory.bytes(at.region as usize)[at.byte as usize..][..width],
                );
            }
        }
    }

    /// Writes the row of the `n`-th token of the place under head `head` of the box, and its parameters
    /// if it has any.
    ///
    /// # Panics
    ///
    /// If the row lies outside of `memory`.
    pub fn write<T: Write + ?Sized>(
        &self,
        memory: &mut T,
        place: Place<'_>,
        n: u32,
        head: u32,
        row: &[u8],
        params: &[u8],
    ) {
        let (page, slot) = self.spot(place, n);
        let planes = [
            (Some(self.codes), self.unit, row),
            (self.params, self.params_unit, params),
        ];
        for (layout, first, bytes) in planes {
            let Some(layout) = layout else { continue };
            let width = layout.unit_bytes() as usize;
            for (i, unit) in bytes.chunks_exact(width).enumerate() {
                let dim = first + i as u32;
                let at = layout.address(place.layer, page, self.head + head, slot, dim);
                memory.bytes_mut(at.region as usize)[at.byte as usize..][..width]
                    .copy_from_slice(unit);
            }
        }
    }
}

/// A box of rows: `heads` heads, `tokens` tokens, `dim` elements of each row.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::exhaustive_structs, reason = "a box has three extents")]
pub struct Extent {
    /// Heads.
    pub heads: u32,
    /// Tokens.
    pub tokens: u32,
    /// Elements of each row.
    pub dim: u32,
}

/// Carries a box from `source` to `target`; `formats` gives both formats of each head of the box.
///
/// # Panics
///
/// If a row lies outside of either memory, or `dim` is not a whole number of groups.
#[allow(
    clippy::too_many_arguments,
    reason = "two sides, each with a description, a place and memory"
)]
pub fn run<S: Read + ?Sized, T: Write + ?Sized>(
    extent: Extent,
    formats: impl Fn(u32) -> (RowFormat, RowFormat),
    paged_source: Paged<'_>,
    from: Place<'_>,
    source: &S,
    paged_target: Paged<'_>,
    to: Place<'_>,
    target: &mut T,
) -> Counts {
    let mut counts = Counts::default();
    for head in 0..extent.heads {
        let (a, b) = formats(head);
        let bytes = |format: &RowFormat| {
            let bytes = format
                .row_bytes(extent.dim)
                .expect("dim is a whole number of groups");
            (
                vec![0; bytes as usize],
                vec![0; format.params_bytes(extent.dim) as usize],
            )
        };
        let ((mut row, mut params), (mut made, mut made_params)) = (bytes(&a), bytes(&b));
        for n in 0..extent.tokens {
            paged_source.read(source, from, n, head, &mut row, &mut params);
            counts += reference::convert_row(
                &a,
                &b,
                extent.dim,
                &row,
                &params,
                &mut made,
                &mut made_params,
            );
            paged_target.write(target, to, n, head, &made, &made_params);
        }
    }
    counts
}
