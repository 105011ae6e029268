//! The two sides of a program, and what a request says of them.

use std::{ops::Range, sync::Arc};

use super::pieces::View;
use crate::{
    convert::Conversion,
    layout::{Layout, RowOrder},
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
        /// Where the parameters of rows lie, if rows have any: a scale of the row, or scales of its
        /// groups. Their `dim` counts parameters.
        params: Option<Layout>,
        /// First head of the box, counted within the rank.
        head: u32,
        /// First unit of the box within the row.
        unit: u32,
        /// First unit of the box within the parameters of a row.
        params_unit: u32,
    },
    /// Dense rows in a buffer: all codes, then (if rows have any) all parameters.
    Rows {
        /// How heads and tokens are nested.
        order: RowOrder,
        /// Bytes of one element or indivisible group.
        unit_bytes: u32,
        /// Bytes of one parameter; 0 if no parameters follow the codes.
        params_unit_bytes: u32,
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
    ///
    /// # Panics
    ///
    /// If it is beyond `u32`.
    #[must_use]
    pub fn at(self, n: u32) -> u32 {
        let index = u64::from(self.first) + u64::from(n) * u64::from(self.step);
        u32::try_from(index).expect("an index of 32 bits")
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

    pub(super) fn is_identity(&self) -> bool {
        match self {
            Self::All(one) => one.is_identity(),
            Self::Heads(many) => many.iter().all(|one| one.is_identity()),
        }
    }
}

/// A tile of dense rows in the target's format, while it is in the caches.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Rows<'a> {
    /// First head, counted within the box.
    pub head: u32,
    /// Heads.
    pub heads: u32,
    /// First token, counted within the box.
    pub token: u32,
    /// Tokens.
    pub tokens: u32,
    /// How heads and tokens are nested.
    pub order: RowOrder,
    /// The codes of all rows.
    pub codes: &'a [u8],
    /// The parameters of all rows.
    pub params: &'a [u8],
}

/// What looks at rows while a program has them in the caches.
pub trait Observer {
    /// The next tokens, counted within the box, whose rows it wants to see, from `from` on; `None` if it wants no more. A
    /// program asks before it comes to a token, and once more from the end of what it was told.
    fn wants(&self, from: u32) -> Option<Range<u32>>;

    /// Some of these rows.
    fn rows(&mut self, rows: Rows<'_>);
}

/// Sees all rows.
impl<F: FnMut(Rows<'_>)> Observer for F {
    fn wants(&self, from: u32) -> Option<Range<u32>> {
        Some(from..u32::MAX)
    }

    fn rows(&mut self, rows: Rows<'_>) {
        self(rows);
    }
}

/// What of these tokens is to be shown next.
pub(super) fn asked_for(observer: &dyn Observer, among: Range<u32>) -> Option<Range<u32>> {
    let wanted = observer.wants(among.start)?;
    let part = wanted.start.max(among.start)..wanted.end.min(among.end);
    (!part.is_empty()).then_some(part)
}

/// A side and the bytes of its rows.
#[derive(Clone)]
pub(super) struct Half {
    pub(super) side: Side,
    pub(super) row_bytes: u64,
    pub(super) params_bytes: u64,
}

impl Half {
    /// Bytes of a row's codes and of its parameters.
    pub(super) fn bytes(&self) -> [usize; 2] {
        [self.row_bytes as usize, self.params_bytes as usize]
    }

    /// Where codes lie, or parameters if there are any; `tokens` sizes dense rows.
    pub(super) fn view(&self, heads: u32, tokens: u32, of_params: bool) -> Option<View> {
        if of_params && self.params_bytes == 0 {
            return None;
        }
        match &self.side {
            Side::Paged {
                codes,
                params,
                head,
                unit,
                params_unit,
            } => {
                let (layout, unit) = if of_params {
                    (params.as_ref()?, *params_unit)
                } else {
                    (codes, *unit)
                };
                Some(View {
                    layout: layout.clone(),
                    head: *head,
                    unit,
                    paged: true,
                })
            }
            Side::Rows {
                order,
                unit_bytes,
                params_unit_bytes,
            } => {
                let codes = self.row_bytes * u64::from(heads) * u64::from(tokens);
                let (row, unit, offset) = match (of_params, *params_unit_bytes) {
                    (true, 0) => return None,
                    (true, unit) => (self.params_bytes, unit, codes),
                    (false, _) => (self.row_bytes, *unit_bytes, 0),
                };
                let units = row as u32 / unit;
                Some(View {
                    layout: Layout::rows(*order, heads, tokens, units, unit, offset),
                    head: 0,
                    unit: 0,
                    paged: false,
                })
            }
        }
    }
}

/// Where dense rows of their own lie.
pub(super) const DENSE: Place<'static> = Place {
    layer: 0,
    pages: &[0],
    tokens: Progression::ALL,
};
