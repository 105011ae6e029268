//! Rotations of rows: orthogonal maps that engines apply to a row before they quantize it.
//!
//! A rotation mixes all elements of a block, so it is no permutation: rows are decoded, turned back, turned
//! anew, and encoded. Both execution paths use this one implementation, whose order of additions (butterflies
//! from neighbours outwards) is the definition.

/// What was applied to a row after RoPE, before its elements were coded.
///
/// # Source
///
/// llama.cpp (PR 21038), vLLM 0.32 (`int4_per_token_head`, TurboQuant, UltraQuant).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rotation {
    /// Nothing.
    #[default]
    None,
    /// y = H·x / √n in blocks of n elements, with Sylvester's Hadamard matrix H. n is a power of two, and 0 stands
    /// for the greatest power of two that divides the row.
    Hadamard(u32),
    /// vLLM's randomized transform: y = H·(s·x), rounded to `bf16`, in blocks of the greatest power of two that
    /// divides the row; s are its fixed signs. Turned back by x = s·(H·y) / n.
    Signed,
}

impl Rotation {
    /// Elements of a block in rows of `dim`; 1 where nothing is rotated.
    #[must_use]
    pub fn block(self, dim: u32) -> u32 {
        match self {
            Self::None => 1,
            Self::Hadamard(0) | Self::Signed => 1 << dim.trailing_zeros(),
            Self::Hadamard(n) => n,
        }
    }

    /// Whether rows of `dim` elements can be rotated so.
    #[must_use]
    pub fn fits(self, dim: u32) -> bool {
        let block = self.block(dim);
        let known = self != Self::Signed || SIGNS.len() * 64 >= block as usize;
        dim > 0 && block.is_power_of_two() && dim.is_multiple_of(block) && known
    }

    /// Rotates one row, as a writer does.
    ///
    /// # Panics
    ///
    /// If the row does not [fit](Self::fits).
    pub fn apply(self, row: &mut [f32]) {
        let n = self.block(row.len() as u32) as usize;
        match self {
            Self::None => {}
            Self::Hadamard(_) => {
                let norm = 1.0 / (n as f32).sqrt();
                for block in row.chunks_exact_mut(n) {
                    butterflies(block);
                    block.iter_mut().for_each(|x| *x *= norm);
                }
            }
            Self::Signed => {
                for block in row.chunks_exact_mut(n) {
                    signs(block);
                    butterflies(block);
                    for x in block {
                        *x = half::bf16::from_f32(*x).to_f32();
                    }
                }
            }
        }
    }

    /// Turns one row back, as a reader does.
    ///
    /// # Panics
    ///
    /// If the row does not [fit](Self::fits).
    pub fn undo(self, row: &mut [f32]) {
        let n = self.block(row.len() as u32) as usize;
        match self {
            Self::None => {}
            // Sylvester's matrix is symmetric, so the orthonormal map is its own inverse.
            Self::Hadamard(_) => self.apply(row),
            Self::Signed => {
                let norm = 1.0 / n as f32;
                for block in row.chunks_exact_mut(n) {
                    butterflies(block);
                    block.iter_mut().for_each(|x| *x *= norm);
                    signs(block);
                }
            }
        }
    }
}

impl std::fmt::Display for Rotation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.pad("none"),
            Self::Hadamard(0) => f.pad("hadamard"),
            Self::Hadamard(n) => f.pad(&format!("hadamard {n}")),
            Self::Signed => f.pad("signed hadamard"),
        }
    }
}

/// H·x in place: pairs at distance 1, 2, 4, …
fn butterflies(block: &mut [f32]) {
    let mut distance = 1;
    while distance < block.len() {
        for pair in block.chunks_exact_mut(2 * distance) {
            let (low, high) = pair.split_at_mut(distance);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        distance *= 2;
    }
}

fn signs(block: &mut [f32]) {
    for (bits, block) in SIGNS.iter().zip(block.chunks_mut(64)) {
        for (i, x) in block.iter_mut().enumerate() {
            if bits >> i & 1 == 1 {
                *x = -*x;
            }
        }
    }
}

/// The signs, one bit an element from the lowest bit on, 1 for −1: what torch's CPU generator draws from seed
/// 0x9E37_79B9. A shorter block uses the first of them.
const SIGNS: [u64; 4] = [
    0x7F7F_CA4E_9A8C_A6F2,
    0x9480_ABC7_59BB_C293,
    0x5450_3BBE_B55B_747E,
    0x05DF_BC5F_CDF4_67B7,
];
