//! Percentiles of latencies.

use std::time::Duration;

use serde::Serialize;

/// Times of single operations, in nanoseconds, with three significant digits.
#[derive(Clone, Debug)]
pub(crate) struct Histogram(hdrhistogram::Histogram<u64>);

/// Longest time that is told apart; anything longer counts as this. Longer than any limit on waiting.
const MOST_NS: u64 = 100_000_000_000;

impl Histogram {
    /// Empty, with all the memory it will ever need: recording allocates nothing.
    pub(crate) fn new() -> Self {
        let made = hdrhistogram::Histogram::new_with_bounds(1, MOST_NS, 3);
        Self(made.expect("1 to a hundred seconds with three digits is a valid range"))
    }

    /// Notes one operation.
    pub(crate) fn record(&mut self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record(ns.clamp(1, MOST_NS));
    }

    /// Notes all that another one has noted.
    pub(crate) fn add(&mut self, other: &Self) {
        let added = self.0.add(&other.0);
        debug_assert!(added.is_ok(), "all have the same range");
    }

    /// What was noted, or `None` if nothing was.
    pub(crate) fn percentiles(&self) -> Option<Percentiles> {
        let at = |percent| self.0.value_at_percentile(percent);
        (!self.0.is_empty()).then(|| Percentiles {
            count: self.0.len(),
            p50_ns: at(50.0),
            p90_ns: at(90.0),
            p99_ns: at(99.0),
            p999_ns: at(99.9),
            max_ns: self.0.max(),
        })
    }
}

/// Half of all operations took at most `p50_ns`, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) count: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p90_ns: u64,
    pub(crate) p99_ns: u64,
    pub(crate) p999_ns: u64,
    pub(crate) max_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_list() {
        let mut histogram = Histogram::new();
        // In an order that is not their own: 7 and 10,000 have no common divisor.
        for i in 0..10_000_u64 {
            histogram.record(Duration::from_nanos(100 * ((i * 7) % 10_000 + 1)));
        }
        let found = histogram.percentiles().unwrap();
        assert_eq!(found.count, 10_000);
        for (found, wanted) in [
            (found.p50_ns, 500_000.0),
            (found.p90_ns, 900_000.0),
            (found.p99_ns, 990_000.0),
            (found.p999_ns, 999_000.0),
            (found.max_ns, 1_000_000.0),
        ] {
            let off = (found as f64 - wanted).abs() / wanted;
            assert!(off < 1e-3, "{found} instead of {wanted}");
        }
    }

    #[test]
    fn nothing_has_no_percentiles_and_nothing_is_out_of_range() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.percentiles(), None);
        histogram.record(Duration::ZERO);
        histogram.record(Duration::MAX);
        let mut sum = Histogram::new();
        sum.add(&histogram);
        sum.add(&histogram);
        let found = sum.percentiles().unwrap();
        assert_eq!((found.count, found.p50_ns), (4, 1));
        assert!(found.max_ns >= MOST_NS);
    }
}
