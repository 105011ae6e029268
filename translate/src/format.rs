//! Formats of rows: what the bytes of one row mean as numbers.

use std::ops::{Add, AddAssign};

use thiserror::Error;

use crate::element::Element;

/// What the bytes of one row mean, with the constants of its layer and head filled in.
///
/// A row is the `dim` numbers of one token under one head. Its value at each place is
/// code × scale, computed in `f32`; groups ([`Element::is_grouped`]) carry their scales inside.
///
/// # Example
///
/// A row of 128 keys as vLLM keeps them in an `e4m3fn` cache with `k_scale` 0.5:
///
/// ```
/// use moai_translate::element::Element;
/// use moai_translate::format::{Pairing, Rope, RowFormat, RowScale, ScaleRule};
///
/// let key = RowFormat {
///     element: Element::E4m3fn,
///     scale: RowScale::Constant(0.5),
///     rule: ScaleRule::AmaxOver448,
///     rope: Some(Rope { pairing: Pairing::Half, offset: 0, dims: 128 }),
/// };
/// assert_eq!(key.row_bytes(128)?, 128);
/// # Ok::<(), moai_translate::format::FormatError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowFormat {
    /// Code of each element or group.
    pub element: Element,
    /// What codes are multiplied with, beyond what is inside a group.
    pub scale: RowScale,
    /// How a writer picks the scales of [`Element::Fp8DsMla`]; other elements, and readers, ignore it.
    pub rule: ScaleRule,
    /// Rotary part of the row; `None` where it has none, or where neither side states its pairing.
    pub rope: Option<Rope>,
}

/// What the codes of a row are multiplied with.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RowScale {
    /// Nothing; the same as a constant 1.
    None,
    /// A constant of the model, the same for every token.
    Constant(f32),
    /// One `f32` for each row, kept outside of the row (vLLM's per-token-head schemes).
    ///
    /// A writer derives it from the row: max(amax / 127, 1e-6) for `int8`, with 448 in place of 127
    /// for `e4m3fn` and 224 for `e4m3fnuz`.
    Row,
}

/// How the scales of an [`Element::Fp8DsMla`] record are picked. A reader takes any.
///
/// amax is the greatest finite magnitude among the 128 elements of the tile.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScaleRule {
    /// max(amax / 448, 2⁻¹²⁶), as vLLM's `concat_and_cache_ds_mla`.
    #[default]
    AmaxOver448,
    /// 2^⌈log₂ max(amax / 448, 1e-4)⌉, as `tests/quant.py` of FlashMLA.
    Pow2,
}

/// Rotary part of a row: elements `offset..offset + dims`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rope {
    /// Which elements were rotated together.
    pub pairing: Pairing,
    /// First rotary element of the row.
    pub offset: u32,
    /// Number of rotary elements, even.
    pub dims: u32,
}

/// Which two elements of the rotary part form one rotated pair.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// i and i + dims / 2: NeoX, Hugging Face's `rotate_half`.
    Half,
    /// 2i and 2i + 1: GPT-J, ggml's `NORM`.
    Interleaved,
}

impl RowFormat {
    /// Bytes of a row of `dim` elements, scales inside groups included, row scales not.
    ///
    /// # Errors
    ///
    /// - [`FormatError::EmptyRow`] if `dim` is zero.
    /// - [`FormatError::RaggedRow`] if `dim` is not a whole number of groups.
    pub fn row_bytes(&self, dim: u32) -> Result<u64, FormatError> {
        let (element, group_elements) = (self.element, self.element.group_elements());
        if dim == 0 {
            return Err(FormatError::EmptyRow { element });
        }
        if !dim.is_multiple_of(group_elements) {
            return Err(FormatError::RaggedRow {
                element,
                dim,
                group_elements,
            });
        }
        Ok(u64::from(dim / group_elements) * u64::from(element.group_bytes()))
    }
}

/// What a conversion could not keep, counted in target elements.
///
/// Rows whose bytes are carried, permuted or not, count nothing.
///
/// Underflow is not counted: a value too small for the target becomes zero or a subnormal within the
/// format's error bound.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Elements clamped to the target's range, and finite values that became Inf.
    ///
    /// Rounding comes first: 460 becomes 448 in `e4m3fn` by rounding and is not counted, 465 is. Inf is
    /// counted in 8-bit targets, which clamp it, and not in those that have it.
    pub saturated: u64,
    /// NaN elements, whether the target has a NaN (`e4m3fn`) or writes zero instead (`int8`, `q8_0`).
    pub nan: u64,
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            saturated: self.saturated + other.saturated,
            nan: self.nan + other.nan,
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// A side of a conversion, for messages.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where rows are read.
    Source,
    /// Where rows are written.
    Target,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}

/// A format was not understood, or rows of one cannot become rows of the other.
///
/// Depends only on descriptions: the same pair is refused again, on every device.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum FormatError {
    /// A name that no element has.
    #[error("{name:?} is not an element; the elements are {}", element_names())]
    UnknownElement {
        /// What was given.
        name: String,
    },
    /// A name that stands for different bytes on different devices.
    #[error("{name:?} is not an exact format: say {ambiguous}, whichever the device holds")]
    AmbiguousElement {
        /// What was given.
        name: String,
        /// The exact names it may stand for.
        ambiguous: &'static str,
    },
    /// A row without elements.
    #[error("a row of {element} has dim 0; give at least one group")]
    EmptyRow {
        /// The row's element.
        element: Element,
    },
    /// A row that ends inside a group.
    #[error(
        "dim {dim} is not a multiple of the {group_elements} elements that {element} groups; pad the row, or use another element"
    )]
    RaggedRow {
        /// The row's element.
        element: Element,
        /// Elements of the row.
        dim: u32,
        /// Elements of one group.
        group_elements: u32,
    },
    /// A constant scale that is not a positive finite number.
    #[error("{side} scale of {element} is {value}; a constant scale must be finite and above zero")]
    ConstantScale {
        /// Which format has it.
        side: Side,
        /// The scaled element.
        element: Element,
        /// What was given.
        value: f32,
    },
    /// A scale beside an element that has scales inside its groups.
    #[error(
        "{side} {element} carries scales inside its groups and takes no {scale:?} scale beside them; leave the scale out"
    )]
    ScaledGroup {
        /// Which format has it.
        side: Side,
        /// The grouped element.
        element: Element,
        /// What was given.
        scale: RowScale,
    },
    /// Values of an element that nothing reads or writes.
    #[error("no codec reads or writes {element}; it can only be carried to {element} itself")]
    NoCodec {
        /// The element.
        element: Element,
    },
    /// No engine says how to derive a row scale for this element.
    #[error(
        "no rule derives one scale for each row of {element}; as target use int8, e4m3fn or e4m3fnuz, or a constant scale"
    )]
    NoRowScaleRule {
        /// The target's element.
        element: Element,
    },
    /// A rotary part that is empty, odd, or reaches beyond the row.
    #[error(
        "{side} rope covers elements {offset}.. ({dims} of them) of a row of {dim}; it needs an even number above zero, inside the row"
    )]
    RopeRange {
        /// Which format has it.
        side: Side,
        /// First rotary element.
        offset: u32,
        /// Number of rotary elements.
        dims: u32,
        /// Elements of the row.
        dim: u32,
    },
    /// Both sides have a rotary part, but not the same elements.
    #[error(
        "rope covers {source_dims} elements from {source_offset} at the source and {target_dims} from {target_offset} at the target; both must be equal"
    )]
    RopeMismatch {
        /// First rotary element of the source.
        source_offset: u32,
        /// Rotary elements of the source.
        source_dims: u32,
        /// First rotary element of the target.
        target_offset: u32,
        /// Rotary elements of the target.
        target_dims: u32,
    },
    /// Only one side says which elements are rotated.
    #[error(
        "only the {side} states rope; state it on both sides, or on neither if the pairing is the same"
    )]
    RopeOneSided {
        /// The side that states it.
        side: Side,
    },
}

/// The names for [`FormatError::UnknownElement`].
fn element_names() -> String {
    Element::ALL
        .iter()
        .chain(Element::CARRIED)
        .map(|e| e.name())
        .collect::<Vec<_>>()
        .join(", ")
}

/// Refuses pairs of formats that have no defined conversion; behind this nothing is refused.
///
/// The errors are those of [`Conversion::new`](crate::convert::Conversion::new).
pub(crate) fn check(source: &RowFormat, target: &RowFormat, dim: u32) -> Result<(), FormatError> {
    for (side, format) in [(Side::Source, source), (Side::Target, target)] {
        format.row_bytes(dim)?;
        let element = format.element;
        match format.scale {
            RowScale::None => {}
            scale if element.is_grouped() => {
                return Err(FormatError::ScaledGroup {
                    side,
                    element,
                    scale,
                });
            }
            RowScale::Constant(value) if !(value > 0.0 && value.is_finite()) => {
                return Err(FormatError::ConstantScale {
                    side,
                    element,
                    value,
                });
            }
            RowScale::Constant(_) | RowScale::Row => {}
        }
        if let Some(Rope { offset, dims, .. }) = format.rope {
            let inside = offset.checked_add(dims).is_some_and(|end| end <= dim);
            if dims == 0 || dims % 2 != 0 || !inside {
                return Err(FormatError::RopeRange {
                    side,
                    offset,
                    dims,
                    dim,
                });
            }
        }
    }
    match (source.rope, target.rope) {
        (Some(s), Some(t)) if (s.offset, s.dims) != (t.offset, t.dims) => {
            return Err(FormatError::RopeMismatch {
                source_offset: s.offset,
                source_dims: s.dims,
                target_offset: t.offset,
                target_dims: t.dims,
            });
        }
        (Some(_), None) => return Err(FormatError::RopeOneSided { side: Side::Source }),
        (None, Some(_)) => return Err(FormatError::RopeOneSided { side: Side::Target }),
        _ => {}
    }
    let unchanged = codes_agree(source, target) && repairing(source, target).is_none();
    for element in [source.element, target.element] {
        if !element.has_codec() && !unchanged {
            return Err(FormatError::NoCodec { element });
        }
    }
    let derives = target.scale == RowScale::Row && !codes_agree(source, target);
    if derives && row_scale_max(target.element).is_none() {
        return Err(FormatError::NoRowScaleRule {
            element: target.element,
        });
    }
    Ok(())
}

/// Whether a code means the same number on both sides, so that bytes may be carried.
pub(crate) fn codes_agree(source: &RowFormat, target: &RowFormat) -> bool {
    let scales_agree = match (source.scale, target.scale) {
        (RowScale::Row, RowScale::Row) => true,
        (RowScale::Row, _) | (_, RowScale::Row) => false,
        (s, t) => constant(s) == constant(t),
    };
    source.element == target.element && scales_agree
}

/// The rotary part that has to be paired anew, with the pairing of the source.
pub(crate) fn repairing(source: &RowFormat, target: &RowFormat) -> Option<Rope> {
    match (source.rope, target.rope) {
        // Of two elements there is one pair in either order.
        (Some(s), Some(t)) if s.pairing != t.pairing && s.dims > 2 => Some(s),
        _ => None,
    }
}

/// Where the elements of `rope` lie as separate codes: (bytes before the first, bytes of each).
///
/// `None` where they share scales with other elements, so that moving one changes the scales.
pub(crate) fn movable(element: Element, rope: &Rope) -> Option<(usize, usize)> {
    let width = element.group_bytes() as usize;
    let offset = rope.offset as usize;
    match element {
        Element::Q8_0 | Element::Carried(_) => None,
        // Only the last 64 elements of a record, bf16 behind 512 codes and 16 bytes of scales.
        Element::Fp8DsMla => {
            let first = offset % 576;
            let inside = first >= 512 && first + rope.dims as usize <= 576;
            inside.then(|| (offset / 576 * 656 + 528 + (first - 512) * 2, 2))
        }
        _ => Some((offset * width, width)),
    }
}

/// Multiplier of a scale that is the same for every row.
pub(crate) fn constant(scale: RowScale) -> f32 {
    match scale {
        RowScale::Constant(value) => value,
        RowScale::None | RowScale::Row => 1.0,
    }
}

/// The magnitude that a derived row scale maps amax to, where an engine defines one.
///
/// vLLM uses 224 for `e4m3fnuz`, not its greatest number 240 (`get_fp8_min_max`, vLLM 0.32).
pub(crate) fn row_scale_max(element: Element) -> Option<f32> {
    match element {
        Element::Int8 => Some(127.0),
        Element::E4m3fn => Some(448.0),
        Element::E4m3fnuz => Some(224.0),
        _ => None,
    }
}
