//! Seeded randomness: values as a cache has them, and page ids in an order of their own.

/// SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// What [`value`](Self::value) never goes beyond.
    pub(crate) const GREATEST: f32 = 3.5;

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// About normal, mean 0 and deviation 1.
    pub(crate) fn value(&mut self) -> f32 {
        let bits = self.next();
        let sum: u32 = (0..4).map(|i| (bits >> (16 * i)) as u32 & 0xFFFF).sum();
        // Four uniforms have variance 4/12.
        (sum as f32 / 65536.0 - 2.0) * 1.732_050_8
    }

    /// 0..n in an order that is not their own.
    pub(crate) fn shuffled(&mut self, n: u32) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..n).collect();
        for i in (1..ids.len()).rev() {
            ids.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffled_ids_are_all_there_and_values_are_what_they_should_be() {
        let mut random = Random(7);
        let ids = random.shuffled(1000);
        assert!(!ids.is_sorted());
        let mut sorted = ids;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        let values: Vec<f32> = (0..100_000).map(|_| random.value()).collect();
        let mean = values.iter().sum::<f32>() / 1e5;
        let variance = values.iter().map(|x| x * x).sum::<f32>() / 1e5;
        assert!(
            mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02,
            "{mean} {variance}"
        );
        assert!(values.iter().all(|x| x.abs() < Random::GREATEST));
    }
}
