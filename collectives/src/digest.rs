//! A digest that does not depend on layout, paging or partition.
//!
//! Every row hashes to 64 bits under a key; the hashes of all rows are summed modulo 2^64. Sums of
//! parts combine by addition, so the side that holds a cache in four pieces and the side that
//! holds it in two arrive at the same number, in whatever order they visit rows.
//!
//! # The hash of a row
//!
//! A row is its coordinates (layer, component, head, token) and its bytes in the agreed exchange format,
//! in canonical dim order, followed by its parameters if it has any. With w₀, w₁, … its 32-bit
//! little-endian words (the last of either padded with zeros) and Kᵢ non-zero 32-bit constants drawn from the key,
//!
//! ```text
//! h = Σ Kᵢ·wᵢ mod 2^64          row = mix(h + mix(key + coordinates))
//! ```
//!
//! A change confined to one 32-bit word changes one product by Kᵢ·δ, which is not zero and less than 2^64 in size,
//! so it changes h for certain; `mix` is a bijection, so it changes the row and the sum for certain. Other
//! changes go unnoticed with a probability of about 2^-31 or less for keys an adversary does not know: whatever the
//! other words do, at most one value of a constant in front of a changed word makes up for it. The digest guards
//! against accidents, not against a peer that lies: that is what authentication is for.
//!
//! The inner sum is multilinear hashing (Lemire and Kaser, "Strongly universal string hashing is
//! fast", 2014); `mix` is the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).

use std::{fmt, ops::Range};

use moai_translate::{cpu::Multilinear, layout::RowOrder};
use serde::{Deserialize, Serialize};

/// How much of what is moved is digested; both sides must do alike.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(clippy::exhaustive_enums, reason = "nothing, some or all")]
pub enum Coverage {
    /// Nothing: sums are zero.
    Off,
    /// In each layer and component, all rows of one run of tokens in [`SAMPLE`], another one in each of as many layers, the
    /// first of all by the key: whoever damages rows cannot know which. Finds what damages many rows (a wrong
    /// layout, scale or page), seldom a flipped bit.
    Sample,
    /// Every row that goes over a wire, and a sample of those that a consumer reads in the producer's own pages: there
    /// is no wire that could damage them, and pages that are used for something else meanwhile are many rows.
    #[default]
    Wire,
    /// Every row. Where pages are mapped the producer reads them once more for it.
    Full,
}

impl Coverage {
    /// What of it holds for pages that are mapped.
    #[must_use]
    pub fn where_mapped(self) -> Self {
        match self {
            Self::Wire => Self::Sample,
            other => other,
        }
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Sample => "sample",
            Self::Wire => "wire",
            Self::Full => "full",
        })
    }
}

/// Of so many runs of tokens [`Coverage::Sample`] digests one in each layer. In so many layers, or half as many of two
/// components, it digests each of them: a page that is another in all layers is found for certain, and so is a layer of so
/// many runs.
pub const SAMPLE: u32 = 16;

/// Tokens of a run, at most: as many as make visiting them cost no more than reading them. Of short requests a run is a
/// [`RUNS`]th, so that there are some to choose from.
pub const RUN: u32 = 32;

/// Runs that a request has at least, if it has as many tokens.
pub const RUNS: u32 = 64;

/// Key and constants of one transfer's digest.
#[derive(Clone, Debug)]
pub struct DigestKey {
    key: u64,
    coverage: Coverage,
    /// Tokens of a run, from a multiple of it on.
    run: u32,
    constants: Multilinear,
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

/// Where dense rows stand in the model.
#[derive(Clone, Copy, Debug)]
#[allow(
    clippy::exhaustive_structs,
    reason = "a first row, and two loops from there"
)]
pub struct RowsAt {
    /// The first row.
    pub first: RowAt,
    /// How heads and tokens are nested.
    pub order: RowOrder,
    /// Heads, one after another.
    pub heads: u32,
    /// Tokens.
    pub tokens: u32,
    /// From each token to the next.
    pub token_step: u32,
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
    /// Constants for rows of up to `row_bytes` bytes, parameters included.
    #[must_use]
    pub fn new(key: u64, row_bytes: usize) -> Self {
        // One more, as both parts may be padded.
        let words = row_bytes.div_ceil(4) as u64 + 1;
        let constant =
            |i: u64| ((mix(key.wrapping_add(i.wrapping_mul(GAMMA))) >> 32) as u32).max(1);
        Self {
            key,
            coverage: Coverage::Full,
            run: 1,
            constants: Multilinear::new((1..=words).map(constant).collect()),
        }
    }

    /// Digests so much of the rows that it is given.
    #[must_use]
    pub fn covering(mut self, coverage: Coverage) -> Self {
        self.coverage = coverage;
        self
    }

    /// Samples a request of so many tokens.
    #[must_use]
    pub fn over(mut self, tokens: u32) -> Self {
        self.run = (tokens / RUNS).clamp(1, RUN);
        self
    }

    /// How much it digests.
    #[must_use]
    pub fn coverage(&self) -> Coverage {
        self.coverage
    }

    /// The same, for pages that are mapped.
    #[must_use]
    pub fn where_mapped(&self) -> Self {
        self.clone().covering(self.coverage.where_mapped())
    }

    /// Whether the rows of a token are digested.
    #[must_use]
    pub fn covers(&self, layer: u32, component: u32, token: u32) -> bool {
        match self.coverage {
            Coverage::Off => false,
            Coverage::Sample => {
                let runs = [layer, component.wrapping_mul(SAMPLE / 2), token / self.run];
                let turn = runs
                    .iter()
                    .fold(mix(self.key) as u32, |a, &b| a.wrapping_add(b));
                turn.is_multiple_of(SAMPLE)
            }
            Coverage::Wire | Coverage::Full => true,
        }
    }

    /// The hash of one row; `params` holds what it keeps apart from its codes, or nothing.
    ///
    /// # Panics
    ///
    /// If the row is longer than the key was made for.
    #[must_use]
    pub fn row(&self, at: RowAt, row: &[u8], params: &[u8]) -> u64 {
        let place = self.place(at.layer, at.component);
        let spot = u64::from(at.head) << 32 | u64::from(at.token);
        let spot = mix(place.wrapping_add(spot));
        match self.covers(at.layer, at.component, at.token) {
            true => self.row_at(spot, row, params),
            false => 0,
        }
    }

    /// The hash of a row whose coordinates hash to `spot`.
    fn row_at(&self, spot: u64, row: &[u8], params: &[u8]) -> u64 {
        let mut sum = self.constants.sum(0, row);
        if !params.is_empty() {
            sum = sum.wrapping_add(self.constants.sum(row.len().div_ceil(4), params));
        }
        mix(sum.wrapping_add(spot))
    }

    fn place(&self, layer: u32, component: u32) -> u64 {
        mix(self.key ^ (u64::from(layer) << 32 | u64::from(component)))
    }

    /// The sum of the hashes of dense rows: all codes, and all parameters if rows have any.
    ///
    /// # Panics
    ///
    /// If a row is longer than the key was made for, or there are no rows.
    #[must_use]
    pub fn rows(&self, at: RowsAt, codes: &[u8], params: &[u8]) -> u64 {
        match self.coverage {
            Coverage::Off => 0,
            Coverage::Sample => self.some_rows(at, codes, params),
            Coverage::Wire | Coverage::Full => self.all_rows(at, codes, params),
        }
    }

    /// Of `count` tokens, `step` apart from `first` on, the next that are covered, from one of them on; counted from
    /// `first`.
    #[must_use]
    pub fn covered_from(
        &self,
        (layer, component): (u32, u32),
        (first, step, count): (u32, u32, u32),
        from: u32,
    ) -> Option<Range<u32>> {
        if self.coverage != Coverage::Sample {
            return (self.coverage != Coverage::Off && from < count).then_some(from..count);
        }
        let mut start = from;
        while start < count {
            let token = first + start * step;
            // The first that is in another run.
            let next = (self.run - token % self.run).div_ceil(step);
            let end = start.saturating_add(next).min(count);
            if self.covers(layer, component, token) {
                return Some(start..end);
            }
            start = end;
        }
        None
    }

    /// Those rows that belong to the sample, by themselves.
    fn some_rows(&self, at: RowsAt, codes: &[u8], params: &[u8]) -> u64 {
        let (heads, tokens) = (at.heads as usize, at.tokens as usize);
        let count = heads * tokens;
        let (row_bytes, params_bytes) = (codes.len() / count, params.len() / count);
        let from = (at.first.token, at.token_step, at.tokens);
        let (mut total, mut next) = (0_u64, 0);
        while let Some(run) = self.covered_from((at.first.layer, at.first.component), from, next) {
            next = run.end;
            let (start, length) = (run.start as usize, run.len());
            let mut add = |head: u32, heads: u32, row: usize, rows: usize| {
                let first = RowAt {
                    head: at.first.head + head,
                    token: at.first.token + run.start * at.token_step,
                    ..at.first
                };
                let tokens = run.end - run.start;
                let at = RowsAt {
                    first,
                    heads,
                    tokens,
                    ..at
                };
                let codes = &codes[row * row_bytes..][..rows * row_bytes];
                let params = &params[row * params_bytes..][..rows * params_bytes];
                total = total.wrapping_add(self.all_rows(at, codes, params));
            };
            match at.order {
                RowOrder::TokenHead => add(0, at.heads, start * heads, length * heads),
                RowOrder::HeadToken => {
                    (0..at.heads).for_each(|h| add(h, 1, h as usize * tokens + start, length));
                }
            }
        }
        total
    }

    fn all_rows(&self, at: RowsAt, codes: &[u8], params: &[u8]) -> u64 {
        let count = at.heads as usize * at.tokens as usize;
        let (row_bytes, params_bytes) = (codes.len() / count, params.len() / count);
        let place = self.place(at.first.layer, at.first.component);
        let (head, token) = (u64::from(at.first.head), u64::from(at.first.token));
        let (head_step, token_step) = (1 << 32, u64::from(at.token_step));
        let (inner, inner_step, outer_step) = match at.order {
            RowOrder::TokenHead => (at.heads, head_step, token_step),
            RowOrder::HeadToken => (at.tokens, token_step, head_step),
        };
        // Sums of many rows at a time, then their hashes: neither waits for the other.
        let mut sums = [0_u64; 64];
        let (mut total, mut row, mut turn, mut start) = (0_u64, 0, 0, head << 32 | token);
        let mut spot = start;
        for codes in codes.chunks(row_bytes * sums.len()) {
            let sums = &mut sums[..codes.len() / row_bytes];
            self.constants.sums(codes, row_bytes, sums);
            for sum in sums {
                if params_bytes > 0 {
                    let params = &params[row * params_bytes..][..params_bytes];
                    *sum = sum.wrapping_add(self.constants.sum(row_bytes.div_ceil(4), params));
                }
                total = total.wrapping_add(mix(sum.wrapping_add(mix(place.wrapping_add(spot)))));
                row += 1;
                turn += 1;
                spot += inner_step;
                if turn == inner {
                    start += outer_step;
                    (turn, spot) = (0, start);
                }
            }
        }
        total
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
    fn a_sample_is_the_same_rows_in_whatever_order_they_come() {
        let full = DigestKey::new(77, 16).over(2000);
        let (some, off) = (
            full.clone().covering(Coverage::Sample),
            full.clone().covering(Coverage::Off),
        );
        let (heads, tokens, token_step) = (3, 4000, 3);
        let codes = |head: u32, token: u32| row(u64::from(head << 16 | token), 16);
        let at = |head: u32, token: u32| RowAt {
            head: 7 + head,
            token: 510 + token_step * token,
            ..AT
        };
        let (mut chosen, mut sum) = (vec![false; tokens as usize], 0_u64);
        for (head, token) in (0..heads).flat_map(|h| (0..tokens).map(move |t| (h, t))) {
            let digest = some.row(at(head, token), &codes(head, token), &[]);
            assert!(digest == 0 || digest == full.row(at(head, token), &codes(head, token), &[]));
            let covered = some.covers(AT.layer, AT.component, at(head, token).token);
            assert_eq!(digest != 0, covered, "all rows of a token or none");
            chosen[token as usize] = covered;
            sum = sum.wrapping_add(digest);
        }
        let number = chosen.iter().filter(|&&is| is).count();
        assert!((200..300).contains(&number), "{number} of {tokens}");

        let (mut found, mut next) = (vec![false; tokens as usize], 0);
        let among = (at(0, 0).token, token_step, tokens);
        while let Some(run) = some.covered_from((AT.layer, AT.component), among, next) {
            assert!(next <= run.start && run.start < run.end && run.end <= tokens);
            next = run.end;
            run.for_each(|token| found[token as usize] = true);
        }
        assert_eq!(found, chosen);

        for order in [RowOrder::HeadToken, RowOrder::TokenHead] {
            let rows = match order {
                RowOrder::HeadToken => (0..heads)
                    .flat_map(|h| (0..tokens).flat_map(move |t| codes(h, t)))
                    .collect::<Vec<u8>>(),
                RowOrder::TokenHead => (0..tokens)
                    .flat_map(|t| (0..heads).flat_map(move |h| codes(h, t)))
                    .collect(),
            };
            let rows_at = RowsAt {
                first: at(0, 0),
                order,
                heads,
                tokens,
                token_step,
            };
            assert_eq!(some.rows(rows_at, &rows, &[]), sum);
            assert_eq!(off.rows(rows_at, &rows, &[]), 0);
        }
    }

    #[test]
    fn a_sample_meets_each_page_and_each_long_layer() {
        for key in 0..50 {
            let some = DigestKey::new(key, 16).over(5000);
            let some = some.covering(Coverage::Sample);
            for token in (0..4096).step_by(16) {
                let met = |layers, components| {
                    (0..layers)
                        .flat_map(|layer| (0..components).map(move |c| (layer, c)))
                        .filter(|&(layer, component)| some.covers(5 + layer, component, token))
                        .count()
                };
                assert_eq!([met(16, 1), met(8, 2), met(32, 2)], [1, 1, 4]);
            }
            for (layer, component) in (0..40).flat_map(|layer| [(layer, 0), (layer, 1)]) {
                let tokens = (0..SAMPLE * RUN).filter(|&t| some.covers(layer, component, t));
                assert_eq!(tokens.count() as u32, RUN);
            }
        }
        let first = |key| {
            let some = DigestKey::new(key, 16).over(5000);
            let some = some.covering(Coverage::Sample);
            (0..SAMPLE).find(|run| some.covers(0, 0, run * RUN))
        };
        let firsts: std::collections::BTreeSet<_> = (0..500).map(first).collect();
        assert_eq!(
            firsts.len() as u32,
            SAMPLE,
            "the key says which is the first"
        );
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
    fn rows_together_are_rows_one_by_one() {
        for (bytes, params_bytes) in [(256, 0), (70, 4), (64, 3), (1152, 16)] {
            let key = DigestKey::new(11, bytes + params_bytes);
            let (heads, tokens, token_step) = (5_u32, 17_u32, 3);
            let count = (heads * tokens) as usize;
            let (codes, params) = (row(1, count * bytes), row(2, count * params_bytes));
            for order in [RowOrder::TokenHead, RowOrder::HeadToken] {
                let at = RowsAt {
                    first: AT,
                    order,
                    heads,
                    tokens,
                    token_step,
                };
                let mut sum = 0_u64;
                for i in 0..count as u32 {
                    let (token, head) = match order {
                        RowOrder::TokenHead => (i / heads, i % heads),
                        RowOrder::HeadToken => (i % tokens, i / tokens),
                    };
                    let at = RowAt {
                        head: AT.head + head,
                        token: AT.token + token * token_step,
                        ..AT
                    };
                    let i = i as usize;
                    let params = &params[i * params_bytes..][..params_bytes];
                    sum = sum.wrapping_add(key.row(at, &codes[i * bytes..][..bytes], params));
                }
                assert_eq!(key.rows(at, &codes, &params), sum);
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
            let constant =
                (mix(42_u64.wrapping_add((i as u64 + 1).wrapping_mul(GAMMA))) >> 32).max(1);
            h = h.wrapping_add(constant.wrapping_mul(word));
        }
        let at = mix(mix(42 ^ (3 << 32 | 1)).wrapping_add(7 << 32 | 510));
        assert_eq!(key.row(AT, &bytes, &[]), mix(h.wrapping_add(at)));
    }
}
