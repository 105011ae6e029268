//! Programs: how a box of rows in one layout and format becomes a box in another.
//!
//! There is one mechanism for every pair. Where the bytes of a row are carried unchanged, a program is a
//! set of strided copies from one side straight to the other. Where they change, rows are gathered into a
//! small buffer of dense rows, converted there, and scattered; a side whose rows already lie densely is
//! used as it is, so that a conversion next to the wire moves every byte once.

use std::{collections::HashMap, fmt, rc::Rc, sync::Arc};

use moai_memory::{Read, Write};

use crate::{
    convert::Conversion,
    format::Counts,
    layout::{Address, Layout, RowOrder},
    refine::{Corner, Piece, Size, copies},
};

/// One side of a program.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a program has two sides and lives as long as its pair of ranks"
)]
#[allow(
    clippy::exhaustive_enums,
    reason = "rows are in pages or they are dense"
)]
pub enum Side {
    /// A component in the pages of a rank.
    Paged {
        /// Where its codes lie.
        codes: Layout,
        /// Where its scales lie, if each row has one.
        scales: Option<Layout>,
        /// First head of the box, counted within the rank.
        head: u32,
        /// First unit of the box within the row.
        unit: u32,
    },
    /// Dense rows in a buffer: all codes, then (if each row has one) all scales.
    Rows {
        /// How heads and tokens are nested.
        order: RowOrder,
        /// Bytes of one element or indivisible group.
        unit_bytes: u32,
        /// Whether scales follow the codes.
        scales: bool,
    },
}

/// Indices in arithmetic progression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(
    clippy::exhaustive_structs,
    reason = "a progression is a start and a step"
)]
pub struct Progression {
    /// The first index.
    pub first: u32,
    /// From each index to the next.
    pub step: u32,
}

impl Progression {
    /// 0, 1, 2, …
    pub const ALL: Self = Self { first: 0, step: 1 };

    /// The `n`-th index.
    #[must_use]
    pub fn at(self, n: u32) -> u32 {
        self.first + n * self.step
    }
}

/// Where a program's box lies on one side, for one layer of one request.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::exhaustive_structs, reason = "what a request leaves open")]
pub struct Place<'a> {
    /// Layer, counted within the rank; 0 for dense rows.
    pub layer: u32,
    /// The request's pages in the order of its tokens; unused for dense rows.
    pub pages: &'a [u32],
    /// The tokens, counted along the pages; counted along the rows for dense rows.
    pub tokens: Progression,
}

/// Which conversion each head of the box takes, in one layer.
#[derive(Clone, Debug)]
#[allow(
    clippy::exhaustive_enums,
    reason = "constants are per head or they are not"
)]
pub enum Conversions {
    /// The same for all heads.
    All(Arc<Conversion>),
    /// One for each head of the box.
    Heads(Vec<Arc<Conversion>>),
}

impl Conversions {
    /// Any one of them: they differ in constants only.
    #[must_use]
    pub fn any(&self) -> &Conversion {
        match self {
            Self::All(one) => one,
            Self::Heads(many) => &many[0],
        }
    }

    fn is_identity(&self) -> bool {
        match self {
            Self::All(one) => one.is_identity(),
            Self::Heads(many) => many.iter().all(|one| one.is_identity()),
        }
    }
}

/// A compiled program between two sides, over all heads and dims of its box.
///
/// It is independent of the request: layer, pages and tokens are given to [`run`](Self::run). Strided
/// copies are compiled for each shape of token range when it is first met, and kept.
pub struct Program {
    source: Side,
    target: Side,
    heads: u32,
    dim: u32,
    source_row_bytes: u64,
    target_row_bytes: u64,
    kept: HashMap<Shape, Rc<[Piece]>>,
    raw: Vec<u8>,
    made: Vec<u8>,
}

/// What the strided copies of a range of tokens depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    stage: Stage,
    scales: bool,
    source: Corner,
    target: Corner,
    slots: u32,
    /// Slots of the two layouts: the strides of dense rows depend on them.
    rows: [u32; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Direct,
    Gather(RowOrder),
    Scatter(RowOrder),
}

/// Bytes of rows converted at a time: both the gathered and the converted rows of a tile stay in a
/// 48 KiB L1 with room for the lines of source and target that are in flight.
const TILE_BYTES: usize = 32 << 10;

/// Shapes kept before all are forgotten. A pair of page sizes has at most their sum of phases.
const MOST_KEPT: usize = 4096;

impl Program {
    /// A program over `heads` heads and `dim` elements of each row, for conversions like `any`,
    /// which may differ from it in constants.
    #[must_use]
    pub fn new(source: Side, target: Side, heads: u32, dim: u32, any: &Conversion) -> Self {
        Self {
            source,
            target,
            heads,
            dim,
            source_row_bytes: any.source_row_bytes() as u64,
            target_row_bytes: any.target_row_bytes() as u64,
            kept: HashMap::new(),
            raw: Vec::new(),
            made: Vec::new(),
        }
    }

    /// The source side.
    #[must_use]
    pub fn source(&self) -> &Side {
        &self.source
    }

    /// The target side.
    #[must_use]
    pub fn target(&self) -> &Side {
        &self.target
    }

    /// Heads of the box.
    #[must_use]
    pub fn heads(&self) -> u32 {
        self.heads
    }

    /// Elements of each row of the box.
    #[must_use]
    pub fn dim(&self) -> u32 {
        self.dim
    }

    /// Carries `tokens` tokens from `source` to `target`.
    ///
    /// # Panics
    ///
    /// If a page, region or offset lies outside what `source` and `target` hold. Descriptors are
    /// checked against their regions and requests against their pages before any program runs.
    pub fn run<S: Read + ?Sized, T: Write + ?Sized>(
        &mut self,
        conversions: &Conversions,
        tokens: u32,
        from: Place<'_>,
        to: Place<'_>,
        source: &S,
        target: &mut T,
    ) -> Counts {
        if conversions.is_identity() {
            for scales in [false, true] {
                let whole = self.views(conversions.any(), tokens, scales);
                if let Some((a, b)) = whole {
                    self.stage(
                        Stage::Direct,
                        scales,
                        &a,
                        &b,
                        tokens,
                        from,
                        to,
                        source,
                        target,
                    );
                }
            }
            return Counts::default();
        }
        let any = conversions.any();
        let order = match conversions {
            Conversions::All(_) => self.order(),
            // Rows of one head side by side, so that each conversion has a run of them.
            Conversions::Heads(_) => RowOrder::HeadToken,
        };
        let row = any.source_row_bytes().max(any.target_row_bytes()) + 4;
        let tile = (TILE_BYTES / (row * self.heads as usize)).clamp(1, tokens as usize) as u32;
        let (mut raw, mut made) = (
            std::mem::take(&mut self.raw),
            std::mem::take(&mut self.made),
        );
        let mut counts = Counts::default();
        let mut done = 0;
        while done < tokens {
            let n = tile.min(tokens - done);
            let skip = |place: Place<'_>| Progression {
                first: place.tokens.at(done),
                ..place.tokens
            };
            let from = Place {
                tokens: skip(from),
                ..from
            };
            let to = Place {
                tokens: skip(to),
                ..to
            };
            let rows = self.heads as usize * n as usize;
            let dense = Place {
                layer: 0,
                pages: &[0],
                tokens: Progression::ALL,
            };

            // Gather, unless the source's rows are dense already.
            let codes = rows * any.source_row_bytes();
            let gathered = self.dense(order, any, n, true);
            let a = self.view(&self.source, any, tokens, false, true);
            let borrowed = a
                .as_ref()
                .and_then(|a| self.lies_densely(a, &gathered, order, n, from));
            let in_scales = self.view(&self.source, any, tokens, true, true);
            let scale_bytes = if in_scales.is_some() { rows * 4 } else { 0 };
            raw.resize(codes + scale_bytes, 0);
            if let (Some(a), None) = (&a, borrowed) {
                self.stage(
                    Stage::Gather(order),
                    false,
                    a,
                    &gathered,
                    n,
                    from,
                    dense,
                    source,
                    &mut raw[..codes],
                );
            }
            if let Some(a) = &in_scales {
                let b = Layout::rows(order, self.heads, n, 1, 4, 0);
                self.stage(
                    Stage::Gather(order),
                    true,
                    a,
                    &b,
                    n,
                    from,
                    dense,
                    source,
                    &mut raw[codes..],
                );
            }
            let (codes_in, scales_in) = match borrowed {
                Some(at) => {
                    let bytes = source.bytes(at.region as usize);
                    (&bytes[at.byte as usize..][..codes], &raw[codes..])
                }
                None => raw.split_at(codes),
            };

            // Convert.
            let out = rows * any.target_row_bytes();
            let out_view = self.view(&self.target, any, tokens, true, false);
            let out_scale_bytes = if out_view.is_some() { rows * 4 } else { 0 };
            let target_view = self.view(&self.target, any, tokens, false, false);
            let converted = self.dense(order, any, n, false);
            let in_place = target_view
                .as_ref()
                .and_then(|b| self.goes_densely(&converted, b, order, n, to));
            made.resize(out + out_scale_bytes, 0);
            let (made_codes, made_scales) = made.split_at_mut(out);
            counts += match in_place {
                Some(at) => {
                    let bytes = target.bytes_mut(at.region as usize);
                    let codes_out = &mut bytes[at.byte as usize..][..out];
                    self.convert(conversions, n, codes_in, scales_in, codes_out, made_scales)
                }
                None => self.convert(conversions, n, codes_in, scales_in, made_codes, made_scales),
            };

            // Scatter what was not converted in place.
            if let (Some(b), None) = (&target_view, in_place) {
                self.stage(
                    Stage::Scatter(order),
                    false,
                    &converted,
                    b,
                    n,
                    dense,
                    to,
                    &made[..out],
                    target,
                );
            }
            if let Some(b) = &out_view {
                let a = Layout::rows(order, self.heads, n, 1, 4, 0);
                self.stage(
                    Stage::Scatter(order),
                    true,
                    &a,
                    b,
                    n,
                    dense,
                    to,
                    &made[out..],
                    target,
                );
            }
            done += n;
        }
        self.raw = raw;
        self.made = made;
        counts
    }

    fn convert(
        &self,
        conversions: &Conversions,
        tokens: u32,
        codes: &[u8],
        scales: &[u8],
        out: &mut [u8],
        out_scales: &mut [u8],
    ) -> Counts {
        let rows = tokens as usize;
        match conversions {
            Conversions::All(one) => {
                one.run(rows * self.heads as usize, codes, scales, out, out_scales)
            }
            Conversions::Heads(many) => {
                let mut counts = Counts::default();
                for (h, one) in many.iter().enumerate() {
                    let part = |bytes: usize| h * rows * bytes..(h + 1) * rows * bytes;
                    let given = if scales.is_empty() {
                        &[]
                    } else {
                        &scales[part(4)]
                    };
                    let kept: &mut [u8] = if out_scales.is_empty() {
                        &mut []
                    } else {
                        &mut out_scales[part(4)]
                    };
                    counts += one.run(
                        rows,
                        &codes[part(one.source_row_bytes())],
                        given,
                        &mut out[part(one.target_row_bytes())],
                        kept,
                    );
                }
                counts
            }
        }
    }

    /// The order of dense rows that the two sides follow best.
    fn order(&self) -> RowOrder {
        match (&self.source, &self.target) {
            (_, Side::Rows { order, .. }) | (Side::Rows { order, .. }, _) => *order,
            (_, Side::Paged { codes, .. }) => codes.row_order(),
        }
    }

    /// Both sides' layouts of the codes, or of the scales, when bytes are carried unchanged.
    fn views(&self, any: &Conversion, tokens: u32, scales: bool) -> Option<(Layout, Layout)> {
        let a = self.view(&self.source, any, tokens, scales, true)?;
        let b = self.view(&self.target, any, tokens, scales, false)?;
        Some((a, b))
    }

    /// A side's layout of codes or scales; `tokens` sizes dense rows.
    fn view(
        &self,
        side: &Side,
        any: &Conversion,
        tokens: u32,
        of_scales: bool,
        is_source: bool,
    ) -> Option<Layout> {
        match side {
            Side::Paged { codes, scales, .. } => {
                if of_scales {
                    scales.clone()
                } else {
                    Some(codes.clone())
                }
            }
            Side::Rows {
                order,
                unit_bytes,
                scales,
            } => {
                let row = if is_source {
                    any.source_row_bytes()
                } else {
                    any.target_row_bytes()
                };
                let codes = row as u64 * u64::from(self.heads) * u64::from(tokens);
                match (of_scales, scales) {
                    (true, false) => None,
                    (true, true) => Some(Layout::rows(*order, self.heads, tokens, 1, 4, codes)),
                    (false, _) => {
                        let units = row as u32 / unit_bytes;
                        Some(Layout::rows(
                            *order,
                            self.heads,
                            tokens,
                            units,
                            *unit_bytes,
                            0,
                        ))
                    }
                }
            }
        }
    }

    /// The layout of a tile's dense codes, with the units of the source or of the target.
    fn dense(&self, order: RowOrder, any: &Conversion, tokens: u32, is_source: bool) -> Layout {
        let (side, row) = if is_source {
            (&self.source, any.source_row_bytes())
        } else {
            (&self.target, any.target_row_bytes())
        };
        let unit = match side {
            Side::Paged { codes, .. } => codes.unit_bytes(),
            Side::Rows { unit_bytes, .. } => *unit_bytes,
        };
        Layout::rows(order, self.heads, tokens, row as u32 / unit, unit, 0)
    }

    /// Where the tile's rows start in the source, if they lie there exactly as the conversion wants them.
    fn lies_densely(
        &mut self,
        a: &Layout,
        rows: &Layout,
        order: RowOrder,
        n: u32,
        from: Place<'_>,
    ) -> Option<Address> {
        let (page, corner, count) = segment(&self.source, a, from, 0, n, false);
        if count < n {
            return None;
        }
        let pieces = self.pieces(Stage::Gather(order), false, a, corner, rows, FIRST, n);
        match &*pieces {
            [piece] if piece.copy.is_one_run() => {
                Some(a.page_base(from.layer, page).plus(piece.source))
            }
            _ => None,
        }
    }

    /// Where the tile's rows go in the target, if they lie there exactly as they are converted.
    fn goes_densely(
        &mut self,
        rows: &Layout,
        b: &Layout,
        order: RowOrder,
        n: u32,
        to: Place<'_>,
    ) -> Option<Address> {
        let (page, corner, count) = segment(&self.target, b, to, 0, n, false);
        if count < n {
            return None;
        }
        let pieces = self.pieces(Stage::Scatter(order), false, rows, FIRST, b, corner, n);
        match &*pieces {
            [piece] if piece.copy.is_one_run() => {
                Some(b.page_base(to.layer, page).plus(piece.target))
            }
            _ => None,
        }
    }

    /// One pass of strided copies over `tokens` tokens, cut where either side changes page.
    #[allow(
        clippy::too_many_arguments,
        reason = "two sides, each with a layout, a place and memory"
    )]
    fn stage<S: Read + ?Sized, T: Write + ?Sized>(
        &mut self,
        stage: Stage,
        scales: bool,
        a: &Layout,
        b: &Layout,
        tokens: u32,
        from: Place<'_>,
        to: Place<'_>,
        source: &S,
        target: &mut T,
    ) {
        let mut done = 0;
        while done < tokens {
            let (from_page, from_corner, left) = match stage {
                Stage::Scatter(_) => dense_segment(done, tokens - done),
                _ => segment(&self.source, a, from, done, tokens - done, scales),
            };
            let (to_page, to_corner, n) = match stage {
                Stage::Gather(_) => dense_segment(done, left),
                _ => segment(&self.target, b, to, done, left, scales),
            };
            let pieces = self.pieces(stage, scales, a, from_corner, b, to_corner, n);
            let (base_a, base_b) = (
                a.page_base(from.layer, from_page),
                b.page_base(to.layer, to_page),
            );
            for piece in &*pieces {
                let (s, t) = (base_a.plus(piece.source), base_b.plus(piece.target));
                piece.copy.run(
                    source.bytes(s.region as usize),
                    s.byte,
                    target.bytes_mut(t.region as usize),
                    t.byte,
                );
            }
            done += n;
        }
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "two sides, each with a layout and a corner"
    )]
    fn pieces(
        &mut self,
        stage: Stage,
        scales: bool,
        a: &Layout,
        source: Corner,
        b: &Layout,
        target: Corner,
        slots: u32,
    ) -> Rc<[Piece]> {
        let rows = [a.extents().slot, b.extents().slot];
        let shape = Shape {
            stage,
            scales,
            source,
            target,
            slots,
            rows,
        };
        if let Some(kept) = self.kept.get(&shape) {
            return Rc::clone(kept);
        }
        if self.kept.len() >= MOST_KEPT {
            self.kept.clear();
        }
        let row_bytes = match stage {
            _ if scales => 4,
            Stage::Scatter(_) => self.target_row_bytes,
            _ => self.source_row_bytes,
        };
        let units = (row_bytes / u64::from(a.unit_bytes())) as u32;
        let size = Size {
            heads: self.heads,
            slots,
            units,
        };
        let pieces: Rc<[Piece]> = copies(a, source, b, target, size).into();
        self.kept.insert(shape, Rc::clone(&pieces));
        pieces
    }

    /// Contiguous runs that a box of `tokens` tokens has in the pages of its paged side: how many
    /// pieces a transport without gathering would post.
    pub fn paged_runs(&mut self, tokens: u32, place: Place<'_>) -> u64 {
        let order = self.order();
        let (layout, stage, row_bytes) = match (&self.source, &self.target) {
            (Side::Paged { codes, .. }, _) => {
                (codes.clone(), Stage::Gather(order), self.source_row_bytes)
            }
            (_, Side::Paged { codes, .. }) => {
                (codes.clone(), Stage::Scatter(order), self.target_row_bytes)
            }
            _ => return 0,
        };
        let unit = layout.unit_bytes();
        let units = (row_bytes / u64::from(unit)) as u32;
        let rows = Layout::rows(order, self.heads, tokens, units, unit, 0);
        let (mut done, mut runs) = (0, 0);
        while done < tokens {
            let side = if matches!(stage, Stage::Gather(_)) {
                &self.source
            } else {
                &self.target
            };
            let (_, corner, n) = segment(side, &layout, place, done, tokens - done, false);
            let (_, dense, _) = dense_segment(done, n);
            let pieces = match stage {
                Stage::Scatter(_) => self.pieces(stage, false, &rows, dense, &layout, corner, n),
                _ => self.pieces(stage, false, &layout, corner, &rows, dense, n),
            };
            runs += pieces
                .iter()
                .map(|p| p.copy.bytes() / p.copy.run_bytes())
                .sum::<u64>();
            done += n;
        }
        runs
    }

    /// The runs of a box whose bytes are carried unchanged from dense rows into pages: where
    /// consecutive bytes of the rows go. `None` if something else than plain runs is needed.
    pub fn runs_into(
        &mut self,
        conversions: &Conversions,
        tokens: u32,
        to: Place<'_>,
        mut each: impl FnMut(u64, Address, u64),
    ) -> Option<()> {
        if !conversions.is_identity() {
            return None;
        }
        let dense = Place {
            layer: 0,
            pages: &[0],
            tokens: Progression::ALL,
        };
        for scales in [false, true] {
            let Some((a, b)) = self.views(conversions.any(), tokens, scales) else {
                continue;
            };
            let mut done = 0;
            while done < tokens {
                let (_, from_corner, left) =
                    segment(&self.source, &a, dense, done, tokens - done, scales);
                let (to_page, to_corner, n) = segment(&self.target, &b, to, done, left, scales);
                let pieces = self.pieces(Stage::Direct, scales, &a, from_corner, &b, to_corner, n);
                let (base_a, base_b) = (a.page_base(0, 0), b.page_base(to.layer, to_page));
                for piece in &*pieces {
                    let (s, t) = (base_a.plus(piece.source), base_b.plus(piece.target));
                    piece.copy.for_each_run(|from, to, bytes| {
                        let at = Address {
                            byte: t.byte + to,
                            ..t
                        };
                        each(s.byte + from, at, bytes);
                    });
                }
                done += n;
            }
        }
        Some(())
    }
}

/// The page, the corner in it and the number of tokens up to the end of that page, from the
/// `done`-th token of the place on.
fn segment(
    side: &Side,
    layout: &Layout,
    place: Place<'_>,
    done: u32,
    left: u32,
    scales: bool,
) -> (u32, Corner, u32) {
    let token = place.tokens.at(done);
    let step = place.tokens.step;
    match side {
        Side::Rows { .. } => {
            let corner = Corner {
                head: 0,
                slot: token,
                slot_step: step,
                unit: 0,
            };
            (0, corner, left)
        }
        Side::Paged { head, unit, .. } => {
            let slots = layout.extents().slot;
            let slot = token % slots;
            let corner = Corner {
                head: *head,
                slot,
                slot_step: step,
                unit: if scales { 0 } else { *unit },
            };
            let room = (slots - slot).div_ceil(step);
            (
                place.pages[(token / slots) as usize],
                corner,
                left.min(room),
            )
        }
    }
}

/// The corner of a dense buffer.
const FIRST: Corner = Corner {
    head: 0,
    slot: 0,
    slot_step: 1,
    unit: 0,
};

/// As [`segment`], for the dense buffer between two sides.
fn dense_segment(done: u32, left: u32) -> (u32, Corner, u32) {
    (
        0,
        Corner {
            head: 0,
            slot: done,
            slot_step: 1,
            unit: 0,
        },
        left,
    )
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("source", &self.source)
            .field("target", &self.target)
            .field("heads", &self.heads)
            .field("dim", &self.dim)
            .finish_non_exhaustive()
    }
}
