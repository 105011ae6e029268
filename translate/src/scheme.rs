//! What a coding is made of: element code, packing, scales, rotation.
//!
//! A [`Scheme`] is a value. The schemes that engines use are the entries of [`table`](crate::table); a scheme of
//! somebody else's is another `static` of the same type, and works everywhere that an entry does:
//!
//! ```
//! use moai_translate::convert::Conversion;
//! use moai_translate::element::Element;
//! use moai_translate::format::RowFormat;
//! use moai_translate::number::Number;
//! use moai_translate::scheme::*;
//!
//! /// Blocks of eight `int8` behind a `bf16` scale.
//! static MINE: Scheme = Scheme {
//!     name: "mine",
//!     what: "eight int8 behind a bf16 scale",
//!     coding: Coding::Block(Block {
//!         elements: 8,
//!         bytes: 10,
//!         segments: &[Segment {
//!             elements: 8,
//!             code: Code::Number(Number::Int8),
//!             packing: Packing::Bytes,
//!             at: 2,
//!             scales: Some(Scales {
//!                 tile: 8,
//!                 store: Store::Bf16,
//!                 place: Place::Block(0),
//!                 rules: &[("amax", Rule::Tile { max: 127.0, least: Least::Scale(1e-6), to: ScaleTo::F32 })],
//!                 ..Scales::DEFAULT
//!             }),
//!         }],
//!         ..Block::DEFAULT
//!     }),
//!     ..Scheme::DEFAULT
//! };
//!
//! let (from, to) = (RowFormat::of(Element::F32), RowFormat::of(Element::new(&MINE)));
//! let conversion = Conversion::new(from, to, 8)?;
//! let row: Vec<u8> = [127f32; 8].iter().flat_map(|x| x.to_le_bytes()).collect();
//! let mut made = [0; 10];
//! conversion.run(1, &row, &[], &mut made, &mut []);
//! assert_eq!(made, [0x80, 0x3F, 127, 127, 127, 127, 127, 127, 127, 127]);
//! # Ok::<(), moai_translate::format::FormatError>(())
//! ```

use std::fmt;

use crate::{format::Counts, number::Number, rotation::Rotation};

pub use crate::rule::{Least, MxMode, Rule, ScaleTo};

/// A coding of rows of numbers.
#[derive(Debug)]
#[allow(
    clippy::exhaustive_structs,
    reason = "written down by whoever adds one"
)]
pub struct Scheme {
    /// Exact name, as descriptions and the command line use it.
    pub name: &'static str,
    /// What it is, in a line.
    pub what: &'static str,
    /// How numbers become bytes.
    pub coding: Coding,
    /// Rotation that belongs to the coding, beside what a description may add.
    pub rotation: Rotation,
    /// Whether a constant of the model multiplies what its own scales give (NVFP4's second level).
    pub takes_constant: bool,
}

/// How the numbers of a row become bytes.
#[derive(Debug)]
#[allow(clippy::exhaustive_enums, reason = "a coding is of one of three kinds")]
pub enum Coding {
    /// Each number by itself; a constant or one `f32` for each row may scale them.
    Number(Number, Packing),
    /// Blocks along the row, with scales of their own.
    Block(Block),
    /// Anything else.
    Custom(&'static dyn Codec),
}

/// Elements that are coded together: a ggml block, a DeepSeek record, or a whole row.
///
/// The codes of a row lie block after block. What a block keeps apart from its codes (its *params*) lies block
/// after block in a plane of its own, which a layout places wherever an engine does: behind the codes of the row,
/// at the end of the page, in another tensor.
#[derive(Clone, Copy, Debug)]
#[allow(
    clippy::exhaustive_structs,
    reason = "written down by whoever adds one"
)]
pub struct Block {
    /// Elements of a block; 0 stands for the whole row.
    pub elements: u32,
    /// Bytes of a block's codes and of what lies among them; 0 where the row decides.
    pub bytes: u32,
    /// Bytes of a block's params; 0 where it has none.
    pub param_bytes: u32,
    /// Bytes that stay together in the plane of params.
    pub param_unit: u32,
    /// Elements from first to last.
    pub segments: &'static [Segment],
}

/// Consecutive elements of a block that are coded alike.
#[derive(Clone, Copy, Debug)]
#[allow(
    clippy::exhaustive_structs,
    reason = "written down by whoever adds one"
)]
pub struct Segment {
    /// How many; 0 stands for all of the row.
    pub elements: u32,
    /// What a code is.
    pub code: Code,
    /// How codes share bytes.
    pub packing: Packing,
    /// Byte of the block at which the codes begin.
    pub at: u32,
    /// What multiplies them.
    pub scales: Option<Scales>,
}

/// What one code of a block is, before scales.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(clippy::exhaustive_enums, reason = "written down by whoever adds one")]
pub enum Code {
    /// A number.
    Number(Number),
    /// A number less a constant.
    Less(Number, f32),
    /// A number times a constant.
    Times(Number, f32),
    /// An index of this list.
    Table(&'static [f32; 16]),
}

/// How codes of less than a byte share bytes; the first code of a byte is in its low bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "written down by whoever adds one")]
pub enum Packing {
    /// Each code has bytes of its own.
    Bytes,
    /// Codes follow one another from the lowest bit of the first byte on: nibbles in even-odd order, four 2-bit
    /// codes a byte, eight 3-bit codes in three bytes.
    Dense,
    /// Nibbles: byte i holds elements i and i + n/2 of the n elements of the segment.
    Halves,
    /// Nibbles of eight elements in four bytes, from the lowest: 0 2 4 6 1 3 5 7.
    Octets,
    /// ggml's five bits of 32 elements: their highest bits as a `u32`, then nibbles as [`Halves`](Self::Halves).
    FifthBits,
}

/// What multiplies the codes of a segment, tile by tile.
#[derive(Clone, Copy, Debug)]
#[allow(
    clippy::exhaustive_structs,
    reason = "written down by whoever adds one"
)]
pub struct Scales {
    /// Elements that share a scale; 0 stands for the whole segment.
    pub tile: u32,
    /// How a scale, and its zero if there is one, is stored.
    pub store: Store,
    /// Where the first of them lies.
    pub place: Place,
    /// Of n scales, scale s lies at (s mod k)·n/k + s/k; 1 for their own order.
    pub order: u32,
    /// What they mean.
    pub form: Form,
    /// How a writer may pick them, by name; the first is what it does unless told. None: read only.
    pub rules: &'static [(&'static str, Rule)],
}

/// Code of a stored scale; of scale and zero where [`Form`] has a zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "written down by whoever adds one")]
pub enum Store {
    /// `f32`.
    F32,
    /// `f16`, the zero behind it.
    F16,
    /// `bf16`, the zero behind it.
    Bf16,
    /// `e4m3fn`.
    E4m3fn,
    /// A power of two, 2^(code − 127); 0xFF is NaN.
    E8m0,
    /// As [`E8m0`](Self::E8m0), with code 0 for zero.
    E8m0Zero,
    /// ggml's: half of [`E8m0`](Self::E8m0), and 0xFF is 2^127.
    E8m0Half,
    /// `f32` whose four lowest bits are a zero of 0 to 15; the scale is the rest.
    F32Nibble,
}

/// Where scales lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "written down by whoever adds one")]
pub enum Place {
    /// Among the codes of the block, from this byte on.
    Block(u32),
    /// Among the params of the block, from this byte on.
    Params(u32),
}

/// What code q, scale s and zero z stand for. Products and sums are rounded one by one, never fused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "written down by whoever adds one")]
pub enum Form {
    /// q·s
    Scaled,
    /// (q − z)·s
    Point,
    /// q·s + z
    Offset,
    /// q·s + z, each step rounded to `f16`.
    OffsetF16,
}

/// Bytes that stay together, and the elements in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "elements and bytes")]
pub struct Unit {
    /// Elements.
    pub elements: u32,
    /// Bytes.
    pub bytes: u32,
}

/// Params of a row: units of bytes in a plane of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "units and bytes")]
pub struct Params {
    /// Units a row.
    pub units: u32,
    /// Bytes of each.
    pub unit_bytes: u32,
}

impl Params {
    /// Bytes a row.
    #[must_use]
    pub fn bytes(self) -> u32 {
        self.units * self.unit_bytes
    }
}

/// A coding that is not made of the parts above.
///
/// One implementation serves as definition and as fast path; it is held against known answers.
pub trait Codec: fmt::Debug + Sync {
    /// Elements that are coded together in rows of `dim`, which is a multiple of it; `dim` if it is the whole row.
    fn group(&self, dim: u32) -> u32;

    /// Bytes that stay together.
    fn unit(&self, dim: u32) -> Unit;

    /// What is kept apart from the codes.
    fn params(&self, _dim: u32) -> Option<Params> {
        None
    }

    /// Why rows of `dim` elements, a multiple of [`group`](Self::group), cannot be coded.
    fn refuses(&self, _dim: u32) -> Option<String> {
        None
    }

    /// Whether [`encode`](Self::encode) does anything.
    fn writes(&self) -> bool {
        true
    }

    /// Numbers of one row.
    fn decode(&self, codes: &[u8], params: &[u8], values: &mut [f32]);

    /// Names of the ways in which a writer may round; the first is what it does unless told.
    fn rules(&self) -> &'static [&'static str] {
        &[]
    }

    /// Codes of one row by the rule of that index, every byte of `codes` and `params`, and what could not be kept.
    fn encode(&self, rule: usize, values: &[f32], codes: &mut [u8], params: &mut [u8]) -> Counts;
}

impl Scheme {
    /// The fields that most schemes leave alone.
    pub const DEFAULT: Self = Self {
        name: "",
        what: "",
        coding: Coding::Number(Number::F32, Packing::Bytes),
        rotation: Rotation::None,
        takes_constant: false,
    };

    /// A number by itself.
    #[must_use]
    pub const fn number(
        name: &'static str,
        number: Number,
        packing: Packing,
        what: &'static str,
    ) -> Self {
        Self {
            name,
            what,
            coding: Coding::Number(number, packing),
            takes_constant: true,
            ..Self::DEFAULT
        }
    }

    /// Names of the rules by which a writer may pick scales.
    pub fn rules(&self) -> impl Iterator<Item = &'static str> {
        let custom = match &self.coding {
            Coding::Custom(codec) => codec.rules(),
            _ => &[],
        };
        let scales = self.scales().into_iter().flat_map(|s| s.rules);
        scales.map(|(name, _)| *name).chain(custom.iter().copied())
    }

    /// The first segment's scales, whose rules are the scheme's.
    pub(crate) fn scales(&self) -> Option<&'static Scales> {
        match &self.coding {
            Coding::Block(block) => block.segments.iter().find_map(|s| s.scales.as_ref()),
            _ => None,
        }
    }
}

impl Block {
    /// The fields that most blocks leave alone.
    pub const DEFAULT: Self = Self {
        elements: 0,
        bytes: 0,
        param_bytes: 0,
        param_unit: 1,
        segments: &[],
    };

    /// Elements of a block in rows of `dim`.
    #[must_use]
    pub fn elements_in(&self, dim: u32) -> u32 {
        if self.elements == 0 {
            dim
        } else {
            self.elements
        }
    }

    /// Bytes of a block's codes in rows of `dim`.
    #[must_use]
    pub fn bytes_in(&self, dim: u32) -> u32 {
        match (self.bytes, self.segments) {
            (0, [only]) => only
                .packing
                .bytes(only.code.number(), self.elements_in(dim)),
            (bytes, _) => bytes,
        }
    }

    /// Elements that no boundary may part: a tile, or the block where it is of several segments.
    #[must_use]
    pub fn group_in(&self, dim: u32) -> u32 {
        match self.segments {
            [one] if self.bytes == 0 && self.elements != 0 => {
                one.scales.map_or(self.elements, |s| {
                    if s.tile == 0 { self.elements } else { s.tile }
                })
            }
            _ => self.elements_in(dim),
        }
    }

    /// Bytes that stay together: a few codes where nothing but codes lies among them, else the block.
    #[must_use]
    pub fn unit_in(&self, dim: u32) -> Unit {
        let whole = Unit {
            elements: self.elements_in(dim),
            bytes: self.bytes_in(dim),
        };
        match self.segments {
            [one]
                if one.at == 0
                    && !matches!(
                        one.scales,
                        Some(Scales {
                            place: Place::Block(_),
                            ..
                        })
                    ) =>
            {
                one.packing.unit(one.code.number()).unwrap_or(whole)
            }
            _ => whole,
        }
    }
}

impl Scales {
    /// The fields that most scales leave alone.
    pub const DEFAULT: Self = Self {
        tile: 0,
        store: Store::F32,
        place: Place::Params(0),
        order: 1,
        form: Form::Scaled,
        rules: &[],
    };

    /// Bytes of one scale, its zero included.
    #[must_use]
    pub const fn bytes(&self) -> u32 {
        let two = match self.form {
            Form::Scaled => 1,
            Form::Point | Form::Offset | Form::OffsetF16 => 2,
        };
        match self.store {
            Store::F32Nibble => 4,
            store => store.bytes() * two,
        }
    }

    /// Where scale `s` of `n` lies among them.
    pub(crate) fn position(&self, s: usize, n: usize) -> usize {
        let k = self.order as usize;
        s % k * (n / k) + s / k
    }
}

impl Store {
    /// Bytes of one scale without a zero.
    pub(crate) const fn bytes(self) -> u32 {
        match self {
            Self::F32 | Self::F32Nibble => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::E4m3fn | Self::E8m0 | Self::E8m0Zero | Self::E8m0Half => 1,
        }
    }
}

impl Code {
    /// The number that is stored; 4 bits for an index.
    #[must_use]
    pub const fn number(self) -> Number {
        match self {
            Self::Number(number) | Self::Less(number, _) | Self::Times(number, _) => number,
            Self::Table(_) => Number::Uint4,
        }
    }
}

impl Packing {
    /// Bytes of `n` codes.
    #[must_use]
    pub const fn bytes(self, number: Number, n: u32) -> u32 {
        match self {
            Self::Bytes => n * number.bytes() as u32,
            Self::Dense => n * number.bits() / 8,
            Self::Halves | Self::Octets => n / 2,
            Self::FifthBits => 4 + n / 2,
        }
    }

    /// The fewest codes that fill whole bytes; `None` where all of a segment hang together.
    #[must_use]
    pub const fn unit(self, number: Number) -> Option<Unit> {
        match self {
            Self::Bytes => Some(Unit {
                elements: 1,
                bytes: number.bytes() as u32,
            }),
            Self::Dense => Some(match number.bits() {
                2 => Unit {
                    elements: 4,
                    bytes: 1,
                },
                4 => Unit {
                    elements: 2,
                    bytes: 1,
                },
                bits => Unit {
                    elements: 8,
                    bytes: bits,
                },
            }),
            Self::Octets => Some(Unit {
                elements: 8,
                bytes: 4,
            }),
            Self::Halves | Self::FifthBits => None,
        }
    }

    /// Of what the number of packed codes must be a multiple.
    #[must_use]
    pub const fn multiple(self, number: Number) -> u32 {
        match (self, self.unit(number)) {
            (_, Some(unit)) => unit.elements,
            (Self::FifthBits, None) => 32,
            (_, None) => 2,
        }
    }
}
