//! Element codes: what the bytes of one number, or of one indivisible group of numbers, are.

use std::fmt;
use std::str::FromStr;

use crate::format::FormatError;

/// Exact code of one element, or of one indivisible group of elements.
///
/// Names are exact. `fp8` is not one of them: on NVIDIA it is [`E4m3fn`](Self::E4m3fn), on MI300 it is
/// [`E4m3fnuz`](Self::E4m3fnuz), and the same byte is twice the number in one of what it is in the other.
///
/// # Shape
///
/// | name          | elements | bytes | what                                                            |
/// |---------------|----------|-------|-----------------------------------------------------------------|
/// | `f32`         | 1        | 4     | IEEE 754 binary32                                               |
/// | `f16`         | 1        | 2     | IEEE 754 binary16, up to 65504                                  |
/// | `bf16`        | 1        | 2     | the high half of an `f32`                                       |
/// | `e4m3fn`      | 1        | 1     | OCP float8, bias 7, up to 448, no Inf, NaN 0x7F and 0xFF        |
/// | `e4m3fnuz`    | 1        | 1     | MI300's float8, bias 8, up to 240, no Inf, no −0, NaN 0x80      |
/// | `e5m2`        | 1        | 1     | OCP float8, bias 15, up to 57344, Inf and NaN as IEEE           |
/// | `int8`        | 1        | 1     | two's complement                                                |
/// | `q8_0`        | 32       | 34    | ggml's block: `f16` scale, 32 `int8`                            |
/// | `fp8_ds_mla`  | 576      | 656   | DeepSeek V3.2's record: 512 `e4m3fn`, 4 `f32` scales of 128 each, 64 `bf16` |
///
/// Numbers of more than one byte are little-endian.
///
/// Further elements are known by name and size only ([`CARRIED`](Self::CARRIED)): their bytes can be carried
/// from one layout to another, and nothing converts them yet.
///
/// # Example
///
/// ```
/// use moai_translate::element::Element;
///
/// let element: Element = "q8_0".parse()?;
/// assert_eq!((element.group_elements(), element.group_bytes()), (32, 34));
/// assert!("fp8".parse::<Element>().is_err());
/// # Ok::<(), moai_translate::format::FormatError>(())
/// ```
///
/// # Source
///
/// OCP 8-bit floating point specification 1.0; `amd_hip_fp8.h` (ROCm/clr `f9f995c6`); `ggml-quants.c`
/// (ggml `d99724f2`); vLLM 0.32 `concat_and_cache_ds_mla`.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The high half of an `f32`.
    Bf16,
    /// OCP float8 with 4 exponent and 3 mantissa bits.
    E4m3fn,
    /// The float8 of gfx94x with 4 exponent and 3 mantissa bits: bias 8, a single NaN in place of −0.
    E4m3fnuz,
    /// OCP float8 with 5 exponent and 2 mantissa bits.
    E5m2,
    /// Two's complement integer.
    Int8,
    /// ggml's block of 32.
    Q8_0,
    /// DeepSeek V3.2's latent record of 576.
    Fp8DsMla,
    /// An element without a codec.
    Carried(Carried),
}

/// An element that is known by name and size, and whose bytes can be carried but not converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Carried {
    name: &'static str,
    group_elements: u32,
    group_bytes: u32,
}

const fn carried(name: &'static str, group_elements: u32, group_bytes: u32) -> Element {
    Element::Carried(Carried {
        name,
        group_elements,
        group_bytes,
    })
}

impl Element {
    /// Elements that can be carried but not converted: ggml's blocks of 32, MI300's second float8, and
    /// vLLM's `nvfp4_ds_mla` record.
    pub const CARRIED: &[Self] = &[
        carried("e5m2fnuz", 1, 1),
        carried("iq4_nl", 32, 18),
        carried("nvfp4_ds_mla", 576, 352),
        carried("q4_0", 32, 18),
        carried("q4_1", 32, 20),
        carried("q5_0", 32, 22),
        carried("q5_1", 32, 24),
    ];

    /// Every element with a codec, in the order of the table above.
    pub const ALL: &[Self] = &[
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::E4m3fn,
        Self::E4m3fnuz,
        Self::E5m2,
        Self::Int8,
        Self::Q8_0,
        Self::Fp8DsMla,
    ];

    /// The name that descriptions use and [`FromStr`] reads.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::E4m3fn => "e4m3fn",
            Self::E4m3fnuz => "e4m3fnuz",
            Self::E5m2 => "e5m2",
            Self::Int8 => "int8",
            Self::Q8_0 => "q8_0",
            Self::Fp8DsMla => "fp8_ds_mla",
            Self::Carried(carried) => carried.name,
        }
    }

    /// Whether values can be read from and written to it.
    pub fn has_codec(self) -> bool {
        !matches!(self, Self::Carried(_))
    }

    /// Elements in one indivisible group; 1 where every element stands alone.
    pub fn group_elements(self) -> u32 {
        match self {
            Self::Q8_0 => 32,
            Self::Fp8DsMla => 576,
            Self::Carried(carried) => carried.group_elements,
            _ => 1,
        }
    }

    /// Bytes of one group, scales inside the group included.
    pub fn group_bytes(self) -> u32 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::E4m3fn | Self::E4m3fnuz | Self::E5m2 | Self::Int8 => 1,
            Self::Q8_0 => 34,
            Self::Fp8DsMla => 656,
            Self::Carried(carried) => carried.group_bytes,
        }
    }

    /// Whether elements come in groups that share a scale and cannot be split.
    pub fn is_grouped(self) -> bool {
        self.group_elements() > 1
    }

    /// Whether a constant of the model (one for each layer, or layer and head) may scale the element.
    ///
    /// Every element that stands alone may have one, wide ones included. Groups bring scales of their own.
    pub fn takes_constant_scale(self) -> bool {
        !self.is_grouped()
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
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
        if let Some(element) = (Self::ALL.iter().chain(Self::CARRIED)).find(|e| e.name() == name) {
            return Ok(*element);
        }
        let ambiguous = match name {
            "fp8" | "float8" => "e4m3fn, e4m3fnuz or e5m2",
            "fp8_e4m3" | "e4m3" | "float8_e4m3" => "e4m3fn (NVIDIA, gfx950) or e4m3fnuz (gfx94x)",
            "fp8_e5m2" | "float8_e5m2" => "e5m2, or on AMD the platform's e4m3fn or e4m3fnuz",
            _ => {
                let name = name.to_owned();
                return Err(FormatError::UnknownElement { name });
            }
        };
        let name = name.to_owned();
        Err(FormatError::AmbiguousElement { name, ambiguous })
    }
}
