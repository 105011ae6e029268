//! SplitMix64, so that a seed in a failure message is all it takes to see the failure again.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// A seeded sequence.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Self(seed ^ 0x5EED_0000_0000_0000);
        rng.next();
        rng
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// Below `n`, which is not zero.
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        (((self.next() >> 32) * u64::from(n)) >> 32) as u32
    }

    pub(crate) fn between(&mut self, low: u32, high: u32) -> u32 {
        low + self.below(high - low + 1)
    }

    pub(crate) fn percent(&mut self, n: u32) -> bool {
        self.below(100) < n
    }

    pub(crate) fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u32) as usize]
    }

    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i as u32 + 1) as usize);
        }
    }
}

pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    match text.parse() {
        Ok(number) => Some(number),
        Err(_) => panic!("{name}={text} is not a number"),
    }
}

/// Runs `one` for many seeds; `MOAI_SEED` names the first and `MOAI_CASES` how many there are.
pub(crate) fn cases(default: u64, one: impl Fn(u64)) {
    let first = number("MOAI_SEED").unwrap_or(1);
    let count = number("MOAI_CASES").unwrap_or(default);
    for seed in first..first.saturating_add(count) {
        if let Err(cause) = catch_unwind(AssertUnwindSafe(|| one(seed))) {
            eprintln!("failed with seed {seed}; again with MOAI_SEED={seed} MOAI_CASES=1");
            std::panic::resume_unwind(cause);
        }
    }
}
