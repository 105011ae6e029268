//! Seeded numbers.

/// SplitMix64 (Steele, Lea and Flood, 2014): the same numbers for the same seed.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    /// Numbers for one of several users of a seed.
    pub(super) fn new(seed: u64, user: u64) -> Self {
        let mut of_user = Self(user);
        Self(seed ^ of_user.next())
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not zero; small bounds make the bias of a remainder small.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
