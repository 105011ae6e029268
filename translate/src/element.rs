//! Elements: the codings by name, and what their bytes add up to.

use std::fmt;
use std::str::FromStr;

use crate::format::FormatError;
use crate::number::Number;
use crate::rotation::Rotation;
use crate::scheme::{Coding, Packing, Params, Scheme, Unit};
use crate::table;

/// Exact coding of the elements of a row: a handle on a [`Scheme`].
///
/// Names are exact. `fp8` is not one of them: on NVIDIA it is [`E4M3FN`](Self::E4M3FN), on MI300 it is
/// [`E4M3FNUZ`](Self::E4M3FNUZ), and the same byte is twice the number in one of what it is in the other.
///
/// # Shape
///
/// [`Element::all`] lists them; the [book](https://github.com/moai-fabric/moai-fabric/blob/main/docs/src/formats.md)
/// has them as a table. Numbers of more than one byte are little-endian.
///
/// # Example
///
/// ```
/// use moai_translate::element::Element;
///
/// let block: Element = "q8_0".parse()?;
/// assert_eq!((block.unit(128).elements, block.unit(128).bytes), (32, 34));
///
/// // Codes of half a byte, and a scale for each 16 of them in a plane of its own.
/// let nvfp4: Element = "nvfp4".parse()?;
/// assert_eq!(nvfp4.row_bytes(128), 64);
/// assert_eq!(nvfp4.params(128).map(|p| (p.units, p.unit_bytes)), Some((8, 1)));
///
/// assert!("fp8".parse::<Element>().is_err());
/// # Ok::<(), moai_translate::format::FormatError>(())
/// ```
#[derive(Clone, Copy)]
pub struct Element(&'static Scheme);

impl Element {
    /// IEEE 754 binary32.
    pub const F32: Self = Self(&table::F32);
    /// IEEE 754 binary16.
    pub const F16: Self = Self(&table::F16);
    /// The high half of an `f32`.
    pub const BF16: Self = Self(&table::BF16);
    /// OCP float8 with 4 exponent and 3 mantissa bits.
    pub const E4M3FN: Self = Self(&table::E4M3FN);
    /// The float8 of gfx94x with 4 exponent and 3 mantissa bits: bias 8, a single NaN in place of −0.
    pub const E4M3FNUZ: Self = Self(&table::E4M3FNUZ);
    /// OCP float8 with 5 exponent and 2 mantissa bits.
    pub const E5M2: Self = Self(&table::E5M2);
    /// The float8 of gfx94x with 5 exponent and 2 mantissa bits.
    pub const E5M2FNUZ: Self = Self(&table::E5M2FNUZ);
    /// Two's complement integer.
    pub const INT8: Self = Self(&table::INT8);
    /// ggml's block of 32.
    pub const Q8_0: Self = Self(&table::Q8_0);
    /// DeepSeek V3.2's latent record of 576.
    pub const FP8_DS_MLA: Self = Self(&table::FP8_DS_MLA);

    /// The element of a scheme, in the table or not.
    #[must_use]
    pub const fn new(scheme: &'static Scheme) -> Self {
        Self(scheme)
    }

    /// Every element that has a name, in the order of the table.
    pub fn all() -> impl ExactSizeIterator<Item = Self> + Clone {
        table::ALL.iter().copied().map(Self)
    }

    /// What it is made of.
    #[must_use]
    pub const fn scheme(self) -> &'static Scheme {
        self.0
    }

    /// The name that descriptions use and [`FromStr`] reads.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.0.name
    }

    /// The number that each code is, where elements stand alone.
    #[must_use]
    pub const fn number(self) -> Option<(Number, Packing)> {
        match self.0.coding {
            Coding::Number(number, packing) => Some((number, packing)),
            _ => None,
        }
    }

    /// Whether elements come in groups with scales of their own.
    #[must_use]
    pub const fn is_grouped(self) -> bool {
        self.number().is_none()
    }

    /// Elements that share a scale or a byte, in rows of `dim`: no piece of a row may part them.
    #[must_use]
    pub fn group_elements(self, dim: u32) -> u32 {
        match &self.0.coding {
            Coding::Number(number, packing) => packing.multiple(*number),
            Coding::Block(block) => {
                let unit = block.unit_in(dim).elements;
                let group = block.group_in(dim);
                // Both are powers of two, or one is the row.
                if unit > group { unit } else { group }
            }
            Coding::Custom(codec) => codec.group(dim),
        }
    }

    /// Bytes that stay together, which layouts place: one element, a few that share bytes, a block, or the row.
    #[must_use]
    pub fn unit(self, dim: u32) -> Unit {
        match &self.0.coding {
            Coding::Number(number, packing) => packing.unit(*number).unwrap_or_else(|| Unit {
                elements: dim,
                bytes: packing.bytes(*number, dim),
            }),
            Coding::Block(block) => block.unit_in(dim),
            Coding::Custom(codec) => codec.unit(dim),
        }
    }

    /// Bytes of the codes of a row of `dim` elements, which is a whole number of groups.
    #[must_use]
    pub fn row_bytes(self, dim: u32) -> u64 {
        let unit = self.unit(dim);
        u64::from(dim / unit.elements) * u64::from(unit.bytes)
    }

    /// What a row keeps apart from its codes.
    #[must_use]
    pub fn params(self, dim: u32) -> Option<Params> {
        match &self.0.coding {
            Coding::Number(..) => None,
            Coding::Block(block) if block.param_bytes == 0 => None,
            Coding::Block(block) => Some(Params {
                units: dim / block.elements_in(dim) * (block.param_bytes / block.param_unit),
                unit_bytes: block.param_unit,
            }),
            Coding::Custom(codec) => codec.params(dim),
        }
    }

    /// First unit of the params that belong to the elements of a row of `dim` from the `first` on, which begins a group.
    #[must_use]
    pub fn params_from(self, first: u32, dim: u32) -> u32 {
        match &self.0.coding {
            Coding::Block(block) if block.param_bytes > 0 => {
                first / block.elements_in(dim) * (block.param_bytes / block.param_unit)
            }
            _ => 0,
        }
    }

    /// Whether a constant of the model (one for each layer, or layer and head) may scale the element.
    ///
    /// Every element that stands alone may have one, wide ones included. Groups bring scales of their own; `nvfp4` has
    /// a constant on top of them.
    #[must_use]
    pub const fn takes_constant_scale(self) -> bool {
        self.0.takes_constant
    }

    /// Whether one `f32` for each row may scale the element.
    #[must_use]
    pub const fn takes_row_scale(self) -> bool {
        self.number().is_some()
    }

    /// Rotation that belongs to the element.
    #[must_use]
    pub const fn rotation(self) -> Rotation {
        self.0.rotation
    }

    /// Whether rows can be written, and not only read.
    #[must_use]
    pub fn writes(self) -> bool {
        match &self.0.coding {
            Coding::Number(..) => true,
            Coding::Block(block) => block
                .segments
                .iter()
                .all(|s| s.scales.is_none_or(|scales| !scales.rules.is_empty())),
            Coding::Custom(codec) => codec.writes(),
        }
    }
}

impl PartialEq for Element {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for Element {}

impl std::hash::Hash for Element {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.name.hash(state);
    }
}

impl fmt::Debug for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0.name)
    }
}

impl FromStr for Element {
    type Err = FormatError;

    /// Reads an exact name.
    ///
    /// # Errors
    ///
    /// - [`FormatError::AmbiguousElement`] for names that mean different bytes on different devices.
    /// - [`FormatError::UnknownElement`] for anything else that is not a name, letter case included.
    fn from_str(name: &str) -> Result<Self, FormatError> {
        if let Some(element) = Self::all().find(|e| e.name() == name) {
            return Ok(element);
        }
        let ambiguous = match name {
            "fp8" | "float8" => "e4m3fn, e4m3fnuz or e5m2",
            "fp8_e4m3" | "e4m3" | "float8_e4m3" => "e4m3fn (NVIDIA, gfx950) or e4m3fnuz (gfx94x)",
            "fp8_e5m2" | "float8_e5m2" => "e5m2, or on AMD the platform's e4m3fn or e4m3fnuz",
            "fp4" | "float4" => "e2m1, mxfp4, nvfp4 or sglang_fp4_mx_block16",
            "mxfp8" => "mxfp8_e4m3 or mxfp8_e5m2",
            _ => {
                let name = name.to_owned();
                return Err(FormatError::UnknownElement { name });
            }
        };
        let name = name.to_owned();
        Err(FormatError::AmbiguousElement { name, ambiguous })
    }
}
