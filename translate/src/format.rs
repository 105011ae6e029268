//! Formats of rows: what the bytes of one row mean as numbers.

use std::ops::{Add, AddAssign};

use thiserror::Error;

use crate::element::Element;
use crate::number::{Number, Overflow};
use crate::rotation::Rotation;
use crate::scheme::{Block, Code, Coding, Packing, Params, Rule, Scales, Segment};

/// What the bytes of one row mean, with the constants of its layer and head filled in.
///
/// A row is the `dim` numbers of one token under one head. Its value at each place is
/// code × scale, computed in `f32`; groups ([`Element::is_grouped`]) bring scales of their own.
///
/// # Example
///
/// A row of 128 keys as vLLM keeps them in an `e4m3fn` cache with `k_scale` 0.5:
///
/// ```
/// use moai_translate::element::Element;
/// use moai_translate::format::{Pairing, Rope, RowFormat, RowScale};
///
/// let key = RowFormat {
///     scale: RowScale::Constant(0.5),
///     rope: Some(Rope { pairing: Pairing::Half, offset: 0, dims: 128 }),
///     ..RowFormat::of(Element::E4M3FN)
/// };
/// assert_eq!(key.row_bytes(128)?, 128);
/// # Ok::<(), moai_translate::format::FormatError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(
    clippy::exhaustive_structs,
    reason = "written down by callers, with `..RowFormat::of(element)`"
)]
pub struct RowFormat {
    /// Code of each element or group.
    pub element: Element,
    /// What codes are multiplied with, beyond what a group brings.
    pub scale: RowScale,
    /// By which of the element's rules ([`Scheme::rules`](crate::scheme::Scheme::rules)) a writer picks scales;
    /// readers, and elements with fewer rules, ignore it.
    pub rule: usize,
    /// What a writer does beyond the greatest number.
    pub overflow: Overflow,
    /// Rotation of the row, beyond what belongs to the element.
    pub rotation: Rotation,
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
    /// The element without scale, rotation or rotary part.
    #[must_use]
    pub const fn of(element: Element) -> Self {
        Self {
            element,
            scale: RowScale::None,
            rule: 0,
            overflow: Overflow::Saturate,
            rotation: Rotation::None,
            rope: None,
        }
    }

    /// The format with the element's rule called `name`.
    ///
    /// # Errors
    ///
    /// [`FormatError::UnknownRule`] if the element has none of that name.
    pub fn with_rule(self, name: &str) -> Result<Self, FormatError> {
        let rule = self.element.scheme().rules().position(|rule| rule == name);
        let unknown = || FormatError::UnknownRule {
            element: self.element,
            name: name.to_owned(),
        };
        Ok(Self {
            rule: rule.ok_or_else(unknown)?,
            ..self
        })
    }

    /// Bytes of a row of `dim` elements, scales inside groups included, those kept apart not.
    ///
    /// # Errors
    ///
    /// - [`FormatError::EmptyRow`] if `dim` is zero.
    /// - [`FormatError::RaggedRow`] if `dim` is not a whole number of groups.
    /// - [`FormatError::Unfit`] if the element has another reason to refuse `dim`.
    pub fn row_bytes(&self, dim: u32) -> Result<u64, FormatError> {
        let element = self.element;
        if dim == 0 {
            return Err(FormatError::EmptyRow { element });
        }
        let group_elements = match &element.scheme().coding {
            // Rows of a block each need whole bytes, and whole blocks elsewhere.
            Coding::Block(block) if block.elements == 0 => block
                .segments
                .iter()
                .map(|s| s.packing.multiple(s.code.number()))
                .max()
                .unwrap_or(1),
            Coding::Block(block) => block.elements,
            _ => element.group_elements(dim),
        };
        if !dim.is_multiple_of(group_elements) {
            return Err(FormatError::RaggedRow {
                element,
                dim,
                group_elements,
            });
        }
        if let Coding::Custom(codec) = element.scheme().coding
            && let Some(reason) = codec.refuses(dim)
        {
            return Err(FormatError::Unfit {
                element,
                dim,
                reason,
            });
        }
        Ok(element.row_bytes(dim))
    }

    /// What a row keeps apart from its codes: the element's own params, or one `f32` ([`RowScale::Row`]).
    #[must_use]
    pub fn params(&self, dim: u32) -> Option<Params> {
        match self.scale {
            RowScale::Row if !self.element.is_grouped() => Some(Params {
                units: 1,
                unit_bytes: 4,
            }),
            _ => self.element.params(dim),
        }
    }

    /// Bytes of [`params`](Self::params); 0 where there are none.
    #[must_use]
    pub fn params_bytes(&self, dim: u32) -> u32 {
        self.params(dim).map_or(0, Params::bytes)
    }

    /// Rotation of rows of `dim`, the element's own included, with the size of its blocks spelled out.
    #[must_use]
    pub fn rotated(&self, dim: u32) -> Rotation {
        let rotation = match self.element.rotation() {
            Rotation::None => self.rotation,
            own => own,
        };
        match (rotation, rotation.block(dim)) {
            (Rotation::Hadamard(_), 1) => Rotation::None,
            (Rotation::Hadamard(_), n) => Rotation::Hadamard(n),
            (other, _) => other,
        }
    }

    /// The blocks that rows are made of, where elements do not stand alone.
    pub(crate) fn block(&self, _dim: u32) -> Option<Block> {
        match (&self.element.scheme().coding, self.scale) {
            (Coding::Block(block), _) => Some(*block),
            (Coding::Number(number, packing), RowScale::Row) => Some(row_scaled(*number, *packing)),
            _ => None,
        }
    }
}

/// The whole row under one `f32`.
fn row_scaled(number: Number, packing: Packing) -> Block {
    macro_rules! rows {
        ($($number:ident $packing:ident $rules:expr),* $(,)?) => {
            match (number, packing) {
                $((Number::$number, Packing::$packing) => const {
                    &[Segment {
                        elements: 0,
                        code: Code::Number(Number::$number),
                        packing: Packing::$packing,
                        at: 0,
                        scales: Some(Scales { rules: $rules, ..Scales::DEFAULT }),
                    }]
                },)*
                other => unreachable!("no element stands alone as {other:?}"),
            }
        };
    }
    const fn rule(max: f32) -> Rule {
        Rule::TokenHead { max, least: 1e-6 }
    }
    let segments: &'static [Segment] = rows! {
        F32 Bytes &[], F16 Bytes &[], Bf16 Bytes &[], E5m2 Bytes &[], E5m2fnuz Bytes &[],
        E2m3 Bytes &[], E3m2 Bytes &[], E2m1 Dense &[], Uint8 Bytes &[], Int4 Dense &[], Uint4 Dense &[],
        Int8 Bytes &[("vllm", rule(127.0))],
        E4m3fn Bytes &[("vllm", rule(448.0))],
        // Not its greatest number 240 (`get_fp8_min_max`, vLLM 0.32).
        E4m3fnuz Bytes &[("vllm", rule(224.0))],
    };
    Block {
        param_bytes: 4,
        param_unit: 4,
        segments,
        ..Block::DEFAULT
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
    /// A scale beside an element that has scales of its own.
    #[error(
        "{side} {element} has scales of its own and takes no {scale:?} scale beside them; leave the scale out"
    )]
    ScaledGroup {
        /// Which format has it.
        side: Side,
        /// The grouped element.
        element: Element,
        /// What was given.
        scale: RowScale,
    },
    /// Rows of this length cannot be coded.
    #[error("rows of {dim} cannot be {element}: {reason}")]
    Unfit {
        /// The row's element.
        element: Element,
        /// Elements of the row.
        dim: u32,
        /// Why.
        reason: String,
    },
    /// A name that says something beside an element which is not understood.
    #[error("{name:?}: {problem}")]
    Name {
        /// What was given.
        name: String,
        /// What is wrong with it, and what was expected.
        problem: String,
    },
    /// A rule that the element does not have.
    #[error("{element} has no rule {name:?}; it has {}", rule_names(*element))]
    UnknownRule {
        /// The element.
        element: Element,
        /// What was given.
        name: String,
    },
    /// An element that can be read, not written.
    #[error("{element} can be read, not written; it can only be carried to {element} itself")]
    ReadOnly {
        /// The target's element.
        element: Element,
    },
    /// A rotation that does not divide the row, or that the element brings already.
    #[error("{side} {element} rows of {dim} cannot be rotated by {rotation}: {reason}")]
    Unrotatable {
        /// Which format has it.
        side: Side,
        /// The row's element.
        element: Element,
        /// Elements of the row.
        dim: u32,
        /// What was given.
        rotation: Rotation,
        /// Why.
        reason: &'static str,
    },
    /// A pairing that would have to change inside elements that share a scale.
    #[error(
        "rope pairs {offset}..{end} cannot be moved in {element}: {group_elements} elements share a scale and would be parted; use the same pairing, or another element on one side"
    )]
    RopeSplitsGroup {
        /// The element of both sides.
        element: Element,
        /// First rotary element.
        offset: u32,
        /// Past the last rotary element.
        end: u32,
        /// Elements that share a scale.
        group_elements: u32,
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
    Element::all()
        .map(Element::name)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The names for [`FormatError::UnknownRule`].
fn rule_names(element: Element) -> String {
    let names: Vec<_> = element.scheme().rules().collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
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
            RowScale::Row if element.takes_row_scale() => {}
            RowScale::Constant(value) if element.takes_constant_scale() => {
                if !(value > 0.0 && value.is_finite()) {
                    return Err(FormatError::ConstantScale {
                        side,
                        element,
                        value,
                    });
                }
            }
            scale => {
                return Err(FormatError::ScaledGroup {
                    side,
                    element,
                    scale,
                });
            }
        }
        let unrotatable = |rotation, reason| {
            Err(FormatError::Unrotatable {
                side,
                element,
                dim,
                rotation,
                reason,
            })
        };
        match (element.rotation(), format.rotation) {
            (Rotation::None, rotation) if !rotation.fits(dim) => {
                return unrotatable(
                    rotation,
                    "its blocks must divide the row and be a power of two",
                );
            }
            (own, _) if !own.fits(dim) => {
                return unrotatable(own, "the element's own rotation does not fit the row");
            }
            (Rotation::None, _) | (_, Rotation::None) => {}
            (_, rotation) => return unrotatable(rotation, "the element has a rotation of its own"),
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
    if !matches!(carriage(source, target, dim), Carriage::Numbers) {
        return Ok(());
    }
    let element = target.element;
    if !element.writes() {
        return Err(FormatError::ReadOnly { element });
    }
    let rules = |block: Block| {
        block
            .segments
            .iter()
            .all(|s| s.scales.is_none_or(|s| !s.rules.is_empty()))
    };
    if !element.is_grouped() && !target.block(dim).is_none_or(rules) {
        return Err(FormatError::NoRowScaleRule { element });
    }
    // Re-pairing what could otherwise be carried would quantize a second time.
    if let Some(rope) = repairing(source, target)
        && element.is_grouped()
        && codes_agree(source, target, dim)
    {
        return Err(FormatError::RopeSplitsGroup {
            element,
            offset: rope.offset,
            end: rope.offset + rope.dims,
            group_elements: element.group_elements(dim),
        });
    }
    Ok(())
}

/// How a row gets from one format to the other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Carriage {
    /// Byte for byte.
    Same,
    /// Byte for byte, but for the codes of the rotary part, which change places: `elements` codes begin at
    /// `start_byte`, and the rotary part at the `first` of them.
    Moved {
        rope: Rope,
        number: Number,
        packing: Packing,
        start_byte: usize,
        elements: usize,
        first: usize,
    },
    /// As numbers.
    Numbers,
}

/// What is done to the numbers of a row, in this order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turns {
    pub(crate) undo: Option<Rotation>,
    pub(crate) rope: Option<Rope>,
    pub(crate) apply: Option<Rotation>,
}

/// Rotations are undone and applied unless they are the same and nothing happens between them.
pub(crate) fn turns(source: &RowFormat, target: &RowFormat, dim: u32) -> Turns {
    let (from, to) = (source.rotated(dim), target.rotated(dim));
    let rope = repairing(source, target);
    let needed = from != to || rope.is_some();
    let some = |rotation: Rotation| Some(rotation).filter(|r| needed && *r != Rotation::None);
    Turns {
        undo: some(from),
        rope,
        apply: some(to),
    }
}

pub(crate) fn carriage(source: &RowFormat, target: &RowFormat, dim: u32) -> Carriage {
    if !codes_agree(source, target, dim) {
        return Carriage::Numbers;
    }
    match repairing(source, target) {
        None => Carriage::Same,
        Some(_) if source.rotated(dim) != Rotation::None => Carriage::Numbers,
        Some(rope) => moved(source, &rope, dim).unwrap_or(Carriage::Numbers),
    }
}

/// Whether a code means the same number on both sides, so that bytes may be carried.
fn codes_agree(source: &RowFormat, target: &RowFormat, dim: u32) -> bool {
    let scales_agree = match (source.scale, target.scale) {
        (RowScale::Row, RowScale::Row) => true,
        (RowScale::Row, _) | (_, RowScale::Row) => false,
        (s, t) => constant(s) == constant(t),
    };
    source.element == target.element && scales_agree && source.rotated(dim) == target.rotated(dim)
}

/// The rotary part that has to be paired anew, with the pairing of the source.
pub(crate) fn repairing(source: &RowFormat, target: &RowFormat) -> Option<Rope> {
    match (source.rope, target.rope) {
        // Of two elements there is one pair in either order.
        (Some(s), Some(t)) if s.pairing != t.pairing && s.dims > 2 => Some(s),
        _ => None,
    }
}

/// The codes of the rotary part as separate codes under one scale; `None` where moving one changes scales.
fn moved(format: &RowFormat, rope: &Rope, dim: u32) -> Option<Carriage> {
    let (offset, dims) = (rope.offset as usize, rope.dims as usize);
    let codes =
        |number: Number, packing: Packing, start_byte: usize, elements: usize, first: usize| {
            if packing == Packing::Bytes {
                let start_byte = start_byte + first * number.bytes();
                return Carriage::Moved {
                    rope: *rope,
                    number,
                    packing,
                    start_byte,
                    elements: dims,
                    first: 0,
                };
            }
            Carriage::Moved {
                rope: *rope,
                number,
                packing,
                start_byte,
                elements,
                first,
            }
        };
    if let Some((number, packing)) = format.element.number() {
        return Some(codes(number, packing, 0, dim as usize, offset));
    }
    let block = format.block(dim)?;
    let (elements, bytes) = (
        block.elements_in(dim) as usize,
        block.bytes_in(dim) as usize,
    );
    let (nth, mut inside) = (offset / elements, offset % elements);
    for segment in block.segments {
        let n = if segment.elements == 0 {
            elements
        } else {
            segment.elements as usize
        };
        if inside < n {
            let whole = segment.scales.is_none_or(|s| s.tile == 0);
            let fits = inside + dims <= n && whole;
            let start = nth * bytes + segment.at as usize;
            return fits.then(|| codes(segment.code.number(), segment.packing, start, n, inside));
        }
        inside -= n;
    }
    None
}

/// Multiplier of a scale that is the same for every row.
pub(crate) fn constant(scale: RowScale) -> f32 {
    match scale {
        RowScale::Constant(value) => value,
        RowScale::None | RowScale::Row => 1.0,
    }
}
