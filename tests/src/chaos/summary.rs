//! What rounds have come to.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::line::Stats;

/// Counts over rounds of one world, or of several.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Summary {
    /// Rounds that went as they must.
    pub rounds: u64,
    /// Transfers with the victim, by how they ended; those of a consumer that was killed have no outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// Transfers with the other, all of them committed.
    pub others: u64,
    /// Outcomes that came before their fence.
    pub quarantined: u64,
    /// Rounds, by phase and disturbance.
    pub kinds: BTreeMap<String, u64>,
    /// The latest outcome, after its deadline.
    pub latest: Duration,
    /// The longest that pages stayed in quarantine after the victim was back, or dead for good.
    pub longest_fence: Duration,
    /// Tries beyond the first until a transfer with the victim was committed after it was back.
    pub retries: u64,
    /// Transfers a second with the other: before, and while the victim was disturbed.
    pub speeds: Vec<(f64, f64)>,
    /// Of the survivor, after each round.
    pub(super) sizes: Vec<Stats>,
}

/// How much a survivor may grow over the last half of its rounds.
const MOST_GROWTH_BYTES: u64 = 1 << 20;
/// Rounds below which memory says nothing.
const ROUNDS_FOR_GROWTH: usize = 100;

impl Summary {
    pub(super) fn count(&mut self, outcome: &str) {
        *self.outcomes.entry(outcome.to_owned()).or_default() += 1;
    }

    /// Adds another world's; growth is looked at within each.
    pub fn add(&mut self, other: &Self) {
        self.rounds += other.rounds;
        for (mine, its) in [
            (&mut self.outcomes, &other.outcomes),
            (&mut self.kinds, &other.kinds),
        ] {
            for (name, count) in its {
                *mine.entry(name.clone()).or_default() += count;
            }
        }
        self.others += other.others;
        self.quarantined += other.quarantined;
        self.latest = self.latest.max(other.latest);
        self.longest_fence = self.longest_fence.max(other.longest_fence);
        self.retries += other.retries;
        self.speeds.extend(&other.speeds);
    }

    /// Median of the survivor's throughput to the other, while the victim is disturbed over before.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        let before = median(self.speeds.iter().map(|speeds| speeds.0))?;
        Some(median(self.speeds.iter().map(|speeds| speeds.1))? / before)
    }

    /// Resident memory of the survivor after half of the rounds, and after all.
    #[must_use]
    pub fn resident(&self) -> Option<(u64, u64)> {
        let tenth = self.sizes.len() / 10;
        let of = |stats: &[Stats]| median(stats.iter().map(|stats| stats.rss_bytes as f64));
        let half = self.sizes.len() / 2;
        let middle = of(self.sizes.get(half..half + tenth)?)? as u64;
        Some((
            middle,
            of(self.sizes.get(self.sizes.len() - tenth..)?)? as u64,
        ))
    }

    /// Whether the survivor has grown.
    ///
    /// # Errors
    ///
    /// By how much.
    pub(super) fn grown(&self) -> Result<(), String> {
        if self.sizes.len() < ROUNDS_FOR_GROWTH {
            return Ok(());
        }
        match self.resident() {
            Some((middle, end)) if end > middle + MOST_GROWTH_BYTES => Err(format!(
                "the survivor has {middle} bytes after half of the rounds, and {end} after all"
            )),
            _ => Ok(()),
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transfers: u64 = self.outcomes.values().sum();
        write!(
            f,
            "{} rounds, {transfers} transfers with the victim",
            self.rounds
        )?;
        for (outcome, count) in &self.outcomes {
            write!(f, ", {count} {outcome}")?;
        }
        write!(
            f,
            "; {} with the other, all committed; {} quarantined, fenced at most {:?} after the victim was back; latest outcome \
             {:?} after its deadline; {} tries more until the victim was pulled from again",
            self.others, self.quarantined, self.longest_fence, self.latest, self.retries
        )?;
        if let Some(ratio) = self.ratio() {
            let count = self.speeds.len();
            write!(
                f,
                "; throughput with the other {ratio:.3} of before, medians of {count}"
            )?;
        }
        if let (Some(first), Some(last)) = (self.sizes.first(), self.sizes.last()) {
            write!(
                f,
                "; survivor: {} to {} entries, {} to {} descriptors",
                first.size, last.size, first.fds, last.fds
            )?;
        }
        if let Some((middle, end)) = self.resident() {
            let kib = |bytes: u64| bytes / 1024;
            write!(
                f,
                ", {} KiB after half, {} KiB after all",
                kib(middle),
                kib(end)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_over_the_last_half_is_found() {
        let stats = |round: u64, each: u64| Stats {
            rss_bytes: (1 << 24) + round.min(60) * 100_000 + round * each,
            ..Stats::default()
        };
        let with = |each: u64| Summary {
            sizes: (0..200).map(|round| stats(round, each)).collect(),
            ..Summary::default()
        };
        assert_eq!(with(0).grown(), Ok(()));
        assert!(with(20_000).grown().is_err());
    }

    #[test]
    fn throughput_is_compared_by_medians() {
        let summary = Summary {
            speeds: vec![(100.0, 90.0), (1.0, 1000.0), (200.0, 100.0)],
            ..Summary::default()
        };
        assert_eq!(summary.ratio(), Some(1.0));
    }
}
