//! A digest that does not depend on layout, paging or partition.
//!
//! Every row hashes to 64 bits under a key; the hashes of all rows are summed modulo 2^64. Sums of
//! parts combine by addition, so the side that holds a cache in four pieces and the side that
//! holds it in two arrive at the same number, in whatever order they visit rows.
//!
//! # The hash of a row
//!
//! A row is its coordinates (layer, component, head, token) and its bytes in the agreed exchange format,
//! in canonical dim order, followed by its row scale if it has one. With w₀, w₁, … its 32-bit
//! little-endian words (the last padded with zeros) and Kᵢ odd 64-bit constants drawn from the key,
//!
//! ```text
//! h = Σ Kᵢ·wᵢ mod 2^64          row = mix(h + mix(key + coordinates))
//! ```
//!
//! Since every Kᵢ is odd, any change confined to one 32-bit word changes h for certain; `mix` is a
//! bijection, so it changes the row and the sum for certain. Other changes go unnoticed with a
//! probability of about 2^-32 or less for keys an adversary does not know. The digest guards against
//! accidents, not against a peer that lies: that is what authentication is for.
//!
//! The inner sum is multilinear hashing (Lemire and Kaser, "Strongly universal string hashing is
//! fast", 2014); `mix` is the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).

/// Key and constants of one transfer's digest.
#[derive(Clone, Debug)]
pub struct DigestKey {
    key: u64,
    words: Vec<u64>,
}

/// Where a row stands in the model, whoever holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_structs, reason = "the four coordinates of a row")]
pub struct RowAt {
    /// Global layer.
    pub layer: u32,
    /// Index in the agreement's list of carried components.
    pub component: u32,
    /// Global head.
    pub head: u32,
    /// Token of the request.
    pub token: u32,
}

/// The finalizer of SplitMix64: a bijection of 64 bits.
#[must_use]
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Increment of SplitMix64: 2^64 divided by the golden ratio.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

impl DigestKey {
    /// Constants for rows of up to `row_bytes` bytes.
    #[must_use]
    pub fn new(key: u64, row_bytes: usize) -> Self {
        let words = row_bytes.div_ceil(4) as u64 + 1;
        Self {
            key,
            words: (1..=words)
                .map(|i| mix(key.wrapping_add(i.wrapping_mul(GAMMA))) | 1)
                .collect(),
        }
    }

    /// The hash of one row; `scale` holds the four bytes of its row scale, or nothing.
    ///
    /// # Panics
    ///
    /// If the row is longer than the key was made for.
    #[must_use]
    pub fn row(&self, at: RowAt, row: &[u8], scale: &[u8]) -> u64 {
        let (whole, rest) = row.as_chunks::<4>();
        let mut sum = self.sum(whole);
        let mut next = whole.len();
        if !rest.is_empty() {
            let mut last = [0; 4];
            last[..rest.len()].copy_from_slice(rest);
            sum = sum
                .wrapping_add(self.words[next].wrapping_mul(u64::from(u32::from_le_bytes(last))));
            next += 1;
        }
        if let Ok(scale) = <[u8; 4]>::try_from(scale) {
            sum = sum
                .wrapping_add(self.words[next].wrapping_mul(u64::from(u32::from_le_bytes(scale))));
        }
        let place = u64::from(at.layer) << 32 | u64::from(at.component);
        let spot = u64::from(at.head) << 32 | u64::from(at.token);
        let at = mix(mix(self.key ^ place).wrapping_add(spot));
        mix(sum.wrapping_add(at))
    }

    /// Eight sums side by side, so that the compiler can keep them in vector registers.
    fn sum(&self, words: &[[u8; 4]]) -> u64 {
        let constants = &self.words[..words.len()];
        let mut lanes = [0_u64; 8];
        let (blocks, rest) = words.as_chunks::<8>();
        let (block_constants, rest_constants) = constants.as_chunks::<8>();
        for (block, constants) in blocks.iter().zip(block_constants) {
            for ((lane, word), constant) in lanes.iter_mut().zip(block).zip(constants) {
                *lane =
                    lane.wrapping_add(constant.wrapping_mul(u64::from(u32::from_le_bytes(*word))));
            }
        }
        for (word, constant) in rest.iter().zip(rest_constants) {
            lanes[0] =
                lanes[0].wrapping_add(constant.wrapping_mul(u64::from(u32::from_le_bytes(*word))));
        }
        lanes.iter().fold(0, |sum, &lane| sum.wrapping_add(lane))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: RowAt = RowAt {
        layer: 3,
        component: 1,
        head: 7,
        token: 510,
    };

    fn row(seed: u64, bytes: usize) -> Vec<u8> {
        (0..bytes as u64)
            .map(|i| mix(seed.wrapping_add(i)) as u8)
            .collect()
    }

    #[test]
    fn every_flipped_bit_and_every_moved_row_changes_the_digest() {
        for bytes in [1, 3, 4, 64, 66, 128, 256, 1152] {
            let key = DigestKey::new(0xC0FF_EE00, bytes);
            let mut row = row(bytes as u64, bytes);
            let scale = 1.5_f32.to_le_bytes();
            let whole = key.row(AT, &row, &scale);
            for bit in 0..bytes * 8 {
                row[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(
                    key.row(AT, &row, &scale),
                    whole,
                    "bit {bit} of {bytes} bytes"
                );
                row[bit / 8] ^= 1 << (bit % 8);
            }
            for bit in 0..32 {
                let scale = (1.5_f32.to_bits() ^ 1 << bit).to_le_bytes();
                assert_ne!(key.row(AT, &row, &scale), whole);
            }
            for other in [
                RowAt { layer: 4, ..AT },
                RowAt { component: 0, ..AT },
                RowAt { head: 6, ..AT },
                RowAt { token: 511, ..AT },
                RowAt {
                    head: 510,
                    token: 7,
                    ..AT
                },
            ] {
                assert_ne!(key.row(other, &row, &scale), whole);
            }
        }
    }

    #[test]
    fn the_sum_is_the_one_that_is_written_down() {
        let bytes = row(9, 70);
        let key = DigestKey::new(42, 70);
        let mut padded = bytes.clone();
        padded.resize(72, 0);
        let mut h = 0_u64;
        for (i, word) in padded.chunks(4).enumerate() {
            let word = u64::from(word[0])
                | u64::from(word[1]) << 8
                | u64::from(word[2]) << 16
                | u64::from(word[3]) << 24;
            let constant = mix(42_u64.wrapping_add((i as u64 + 1).wrapping_mul(GAMMA))) | 1;
            h = h.wrapping_add(constant.wrapping_mul(word));
        }
        let at = mix(mix(42 ^ (3 << 32 | 1)).wrapping_add(7 << 32 | 510));
        assert_eq!(key.row(AT, &bytes, &[]), mix(h.wrapping_add(at)));
    }
}
