//! Codes of single numbers, before any scale.

/// What one code is as a number.
///
/// # Shape
///
/// | name | bits | bias | greatest | Inf | NaN | −0 |
/// |---|---|---|---|---|---|---|
/// | `f32` `f16` `bf16` | 32, 16, 16 | IEEE | | yes | yes | yes |
/// | `e4m3fn` | 8 | 7 | 448 | no | 0x7F, 0xFF | yes |
/// | `e4m3fnuz` | 8 | 8 | 240 | no | 0x80 | no |
/// | `e5m2` | 8 | 15 | 57344 | 0x7C | 0x7D–0x7F | yes |
/// | `e5m2fnuz` | 8 | 16 | 57344 | no | 0x80 | no |
/// | `e2m1` | 4 | 1 | 6 | no | no | yes |
/// | `e2m3` `e3m2` | 6 | 1, 3 | 7.5, 28 | no | no | yes |
/// | `int8` `uint8` `int4` `uint4` `uint5` `uint3` `uint2` | as named | | | no | no | no |
///
/// Codes of less than 8 bits are spoken of as bytes whose upper bits are zero; how they share bytes in
/// memory is a [`Packing`](crate::scheme::Packing). In such a byte `int4` is two's complement in its four bits.
///
/// # Source
///
/// OCP 8-bit floating point specification 1.0 and microscaling formats 1.0; `amd_hip_fp8.h` (ROCm/clr `f9f995c6`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the table above says what each is")]
pub enum Number {
    F32,
    F16,
    Bf16,
    E4m3fn,
    E4m3fnuz,
    E5m2,
    E5m2fnuz,
    E2m1,
    E2m3,
    E3m2,
    Int8,
    Uint8,
    Int4,
    Uint4,
    Uint5,
    Uint3,
    Uint2,
}

/// What becomes of a magnitude beyond the greatest number of an 8-bit float.
///
/// Narrower codes and integers always saturate; `f16`, `bf16` and `f32` always become Inf. Whatever it becomes
/// is counted as saturated, but for Inf that stays Inf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Overflow {
    /// The greatest number, Inf included. CUDA's `__NV_SATFINITE`.
    #[default]
    Saturate,
    /// NaN with the sign kept (`e4m3fn`), NaN (`fnuz`), Inf (`e5m2`). CUDA's `__NV_NOSAT`, ml_dtypes.
    NoSaturate,
    /// Finite numbers become the greatest, Inf becomes NaN (Inf in `e5m2`). HIP on gfx94x.
    SaturateFinite,
}

impl Overflow {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Saturate, Self::NoSaturate, Self::SaturateFinite];
}

impl Number {
    /// Every number.
    pub const ALL: [Self; 17] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::E4m3fn,
        Self::E4m3fnuz,
        Self::E5m2,
        Self::E5m2fnuz,
        Self::E2m1,
        Self::E2m3,
        Self::E3m2,
        Self::Int8,
        Self::Uint8,
        Self::Int4,
        Self::Uint4,
        Self::Uint5,
        Self::Uint3,
        Self::Uint2,
    ];

    /// Bits of a code.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::E2m3 | Self::E3m2 => 6,
            Self::Uint5 => 5,
            Self::E2m1 | Self::Int4 | Self::Uint4 => 4,
            Self::Uint3 => 3,
            Self::Uint2 => 2,
            _ => 8,
        }
    }

    /// Bytes of a code that shares them with no other.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.bits().div_ceil(8) as usize
    }

    /// The greatest finite number.
    #[must_use]
    pub const fn greatest(self) -> f32 {
        match self {
            Self::F32 => f32::MAX,
            Self::F16 => 65504.0,
            Self::Bf16 => f32::from_bits(0x7F7F_0000),
            Self::E4m3fn => 448.0,
            Self::E4m3fnuz => 240.0,
            Self::E5m2 | Self::E5m2fnuz => 57344.0,
            Self::E2m1 => 6.0,
            Self::E2m3 => 7.5,
            Self::E3m2 => 28.0,
            Self::Int8 => 127.0,
            Self::Uint8 => 255.0,
            Self::Int4 => 7.0,
            Self::Uint4 => 15.0,
            Self::Uint5 => 31.0,
            Self::Uint3 => 7.0,
            Self::Uint2 => 3.0,
        }
    }

    /// Exponent of the greatest number's leading bit, as OCP's `emax`; 0 for integers.
    #[must_use]
    pub const fn emax(self) -> i32 {
        match self {
            Self::E4m3fn => 8,
            Self::E4m3fnuz => 7,
            Self::E5m2 | Self::E5m2fnuz => 15,
            Self::E2m1 | Self::E2m3 => 2,
            Self::E3m2 => 4,
            _ => 0,
        }
    }
}
