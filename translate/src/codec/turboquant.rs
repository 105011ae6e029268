//! vLLM's TurboQuant keys: a rotated row as the nearest of a list, element by element, and its norm.
//!
//! y = H·k / (‖k‖ + 1e-8); code i of an element is the number of midpoints between neighbours of the list that are
//! not above it; the `f16` norm lies behind the codes. A reader takes c = list[i], divides by ‖c‖ (the norm correction
//! `_nc`), and multiplies with the stored norm. The rotation H is [`Scheme::rotation`](crate::scheme::Scheme), so what
//! is seen here are rotated numbers, whose norm is that of the row.
//!
//! # Source
//!
//! vLLM 0.32 `turboquant`: the lists are Lloyd-Max centroids of N(0, 1/dim), taken from its tables.

use half::f16;

use crate::{
    format::Counts,
    number::Number,
    packing,
    scheme::{Codec, Packing, Params, Unit},
};

/// Keys of `bits` bits an element.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) bits: u32,
}

impl Keys {
    fn number(&self) -> Number {
        if self.bits == 3 {
            Number::Uint3
        } else {
            Number::Uint4
        }
    }

    /// The upper half of the list, ascending; the lower half is its mirror image.
    fn upper(&self, dim: u32) -> Option<&'static [u32]> {
        let listed = CENTROIDS
            .iter()
            .find(|(d, bits, _)| (*d, *bits) == (dim, self.bits));
        listed.map(|(_, _, upper)| *upper)
    }

    fn list(&self, dim: usize) -> [f32; 16] {
        let upper = self.upper(dim as u32).unwrap_or(&[]);
        let mut list = [0.0; 16];
        for (i, bits) in upper.iter().enumerate() {
            list[upper.len() + i] = f32::from_bits(*bits);
            list[upper.len() - 1 - i] = -f32::from_bits(*bits);
        }
        list
    }
}

impl Codec for Keys {
    fn group(&self, dim: u32) -> u32 {
        dim
    }

    fn unit(&self, dim: u32) -> Unit {
        Unit {
            elements: dim,
            bytes: dim * self.bits / 8,
        }
    }

    fn params(&self, _dim: u32) -> Option<Params> {
        Some(Params {
            units: 1,
            unit_bytes: 2,
        })
    }

    fn refuses(&self, dim: u32) -> Option<String> {
        self.upper(dim).is_none().then(|| {
            let dims = CENTROIDS
                .iter()
                .filter(|(_, bits, _)| *bits == self.bits)
                .map(|(dim, ..)| dim.to_string());
            format!(
                "its lists are for rows of {}",
                dims.collect::<Vec<_>>().join(", ")
            )
        })
    }

    fn decode(&self, codes: &[u8], params: &[u8], values: &mut [f32]) {
        let list = self.list(values.len());
        let mut indices = vec![0; values.len()];
        packing::unpack(Packing::Dense, self.number(), codes, &mut indices);
        let mut square = 0.0f32;
        for (x, i) in values.iter_mut().zip(&indices) {
            *x = list[usize::from(*i)];
            square += *x * *x;
        }
        let norm = f16::from_le_bytes([params[0], params[1]]).to_f32();
        let length = square.sqrt();
        for x in values {
            *x = *x / length * norm;
        }
    }

    fn encode(&self, _rule: usize, values: &[f32], codes: &mut [u8], params: &mut [u8]) -> Counts {
        let list = &self.list(values.len())[..1 << self.bits];
        let mut counts = Counts::default();
        let mut square = 0.0f32;
        for x in values.iter().filter(|x| x.is_finite()) {
            square += x * x;
        }
        let norm = square.sqrt();
        let mut indices = vec![0; values.len()];
        for (i, x) in indices.iter_mut().zip(values) {
            counts.nan += u64::from(x.is_nan());
            counts.saturated += u64::from(x.is_infinite());
            let y = if x.is_nan() { 0.0 } else { x / (norm + 1e-8) };
            *i = list
                .windows(2)
                .filter(|pair| (pair[0] + pair[1]) * 0.5 <= y)
                .count() as u8;
        }
        packing::pack(Packing::Dense, self.number(), &indices, codes);
        let stored = f16::from_f32(norm);
        if stored.is_infinite() {
            counts.saturated += values.iter().filter(|x| x.is_finite()).count() as u64;
        }
        params.copy_from_slice(&stored.to_le_bytes());
        counts
    }
}

/// (dim, bits, upper half of the list as bits of `f32`).
const CENTROIDS: &[(u32, u32, &[u32])] = &[
    (64, 3, &[0x3CFADCFB, 0x3DC171FC, 0x3E2BED53, 0x3E899F54]),
    (
        64,
        4,
        &[
            0x3C83828A, 0x3D46B9FF, 0x3DA82948, 0x3DF1444A, 0x3E20CD0C, 0x3E4F16C0, 0x3E846170,
            0x3EAEC76E,
        ],
    ),
    (128, 3, &[0x3CB16317, 0x3D88C955, 0x3DF3243D, 0x3E42A09F]),
    (
        128,
        4,
        &[
            0x3C39FBAE, 0x3D0C8559, 0x3D6DD0E1, 0x3DAA99F2, 0x3DE3682B, 0x3E126F17, 0x3E3B36E7,
            0x3E772CC4,
        ],
    ),
    (256, 3, &[0x3C7ADCFB, 0x3D4171FC, 0x3DABED53, 0x3E099F54]),
    (
        256,
        4,
        &[
            0x3C03828A, 0x3CC6B9FF, 0x3D282948, 0x3D71444A, 0x3DA0CD0C, 0x3DCF16C0, 0x3E046170,
            0x3E2EC76E,
        ],
    ),
];
