//! How much of the CPU the loops may use.

use std::sync::LazyLock;

/// Instructions that a loop is compiled for.
///
/// Results are the same at every level, bit for bit; only the time differs.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every CPU of the architecture has.
    Portable,
    /// AVX2, FMA and F16C: x86-64 since 2013.
    Avx2,
    /// Also AVX-512 F, BW, DQ, VL and VBMI: Ice Lake, Zen 4.
    Avx512,
}

impl Level {
    /// The highest level of this CPU.
    pub fn best() -> Self {
        static BEST: LazyLock<Level> = LazyLock::new(Level::detect);
        *BEST
    }

    /// Every level of this CPU, the portable one first.
    pub fn available() -> Vec<Self> {
        [Self::Portable, Self::Avx2, Self::Avx512]
            .into_iter()
            .filter(|level| *level <= Self::best())
            .collect()
    }

    #[cfg(target_arch = "x86_64")]
    fn detect() -> Self {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vbmi");
        match (avx2, avx512) {
            (true, true) => Self::Avx512,
            (true, false) => Self::Avx2,
            _ => Self::Portable,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detect() -> Self {
        Self::Portable
    }
}

/// Defines functions that take a [`Level`] first and are compiled once for each.
///
/// The body is inlined into a function with the level's target features, so everything that it calls in its
/// inner loops must be `#[inline(always)]` to be compiled with them too.
macro_rules! at_each_level {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $ret:ty $body:block)*) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "slices and scalars, as loops take them")]
        $vis fn $name(level: $crate::cpu::level::Level, $($arg: $type),*) -> $ret {
            #[allow(clippy::too_many_arguments, reason = "as above")]
            #[inline(always)]
            fn here($($arg: $type),*) -> $ret $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $type),*) -> $ret {
                here($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
            fn avx512($($arg: $type),*) -> $ret {
                here($($arg),*)
            }

            assert!(level <= $crate::cpu::level::Level::best(), "this CPU has not {level:?}");
            match level {
                $crate::cpu::level::Level::Portable => here($($arg),*),
                // SAFETY: the level is not above this CPU's best, which has these features.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::level::Level::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::level::Level::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(not(target_arch = "x86_64"))]
                _ => here($($arg),*),
            }
        }
    )*};
}
pub(crate) use at_each_level;
