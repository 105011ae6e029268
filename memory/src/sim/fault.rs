//! What goes wrong on a device, and how often it did.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::random::Random;

/// How many jobs of a thousand go wrong. A job goes wrong in one way at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Are reported as failed, and have done nothing.
    pub failed_per_mille: u16,
    /// Are reported as done, and have done nothing.
    pub lost_per_mille: u16,
    /// Are reported as done, and write device memory [some time later](Faults::LATE_BY). Copies to the host are never
    /// late: the completion hands their buffer back, and what would write it then is what Rust rules out.
    pub late_per_mille: u16,
}

impl Faults {
    /// How long after its completion a late job writes.
    pub const LATE_BY: Range<Duration> = Duration::from_millis(1)..Duration::from_millis(5);

    pub(super) fn sum_per_mille(self) -> u32 {
        [
            self.failed_per_mille,
            self.lost_per_mille,
            self.late_per_mille,
        ]
        .map(u32::from)
        .iter()
        .sum()
    }

    fn draw(self, random: &mut Random) -> Option<Fault> {
        let mut left = random.below(PER_MILLE.into());
        for (per_mille, fault) in [
            (self.failed_per_mille, Fault::Failed),
            (self.lost_per_mille, Fault::Lost),
            (self.late_per_mille, Fault::Late),
        ] {
            match left.checked_sub(per_mille.into()) {
                None => return Some(fault),
                Some(rest) => left = rest,
            }
        }
        None
    }
}

/// How often something went wrong so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultCounts {
    /// Jobs that were reported as failed.
    pub failed: u64,
    /// Jobs that were reported as done and have done nothing.
    pub lost: u64,
    /// Jobs that were reported as done and wrote later.
    pub late: u64,
    /// Jobs that were made to wait before they ran.
    pub delayed: u64,
}

/// A way to go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Failed,
    Lost,
    Late,
}

/// What will happen to a job, settled when it is submitted, so that it depends on the seed and on how many jobs came before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fate {
    pub(super) delay: Duration,
    pub(super) fault: Option<Fault>,
}

impl Fate {
    pub(super) fn draw(delay: &Range<Duration>, faults: Faults, random: &mut Random) -> Self {
        Self {
            delay: duration_in(delay, random),
            fault: faults.draw(random),
        }
    }
}

/// A duration in a range, or its start if the range is empty.
pub(super) fn duration_in(range: &Range<Duration>, random: &mut Random) -> Duration {
    let width = range.end.saturating_sub(range.start).as_nanos();
    let width = u64::try_from(width).unwrap_or(u64::MAX);
    range.start + Duration::from_nanos(random.below(width.max(1)))
}

/// Counts of one device.
#[derive(Debug, Default)]
pub(super) struct Tally {
    failed: AtomicU64,
    lost: AtomicU64,
    late: AtomicU64,
    delayed: AtomicU64,
}

impl Tally {
    pub(super) fn struck(&self, fault: Fault) {
        let count = match fault {
            Fault::Failed => &self.failed,
            Fault::Lost => &self.lost,
            Fault::Late => &self.late,
        };
        count.fetch_add(1, Relaxed);
    }

    pub(super) fn delayed(&self) {
        self.delayed.fetch_add(1, Relaxed);
    }

    pub(super) fn counts(&self) -> FaultCounts {
        FaultCounts {
            failed: self.failed.load(Relaxed),
            lost: self.lost.load(Relaxed),
            late: self.late.load(Relaxed),
            delayed: self.delayed.load(Relaxed),
        }
    }
}

/// Jobs that the numbers of [`Faults`] are counted in.
pub(super) const PER_MILLE: u32 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_drawn_as_often_as_asked_for() {
        let faults = Faults {
            failed_per_mille: 100,
            lost_per_mille: 0,
            late_per_mille: 500,
        };
        let seed = 1;
        let mut random = Random::new(seed, 0);
        let drawn: Vec<_> = (0..100_000).map(|_| faults.draw(&mut random)).collect();
        let count = |fault| drawn.iter().filter(|drawn| **drawn == fault).count();
        assert!(
            (9_500..10_500).contains(&count(Some(Fault::Failed))),
            "seed {seed}"
        );
        assert_eq!(count(Some(Fault::Lost)), 0);
        assert!(
            (49_000..51_000).contains(&count(Some(Fault::Late))),
            "seed {seed}"
        );
    }

    #[test]
    fn an_empty_range_of_delays_is_its_start() {
        let mut random = Random::new(1, 0);
        let ms = Duration::from_millis;
        assert_eq!(duration_in(&(ms(3)..ms(3)), &mut random), ms(3));
        assert!(
            (0..1000).all(|_| (ms(3)..ms(4)).contains(&duration_in(&(ms(3)..ms(4)), &mut random)))
        );
    }
}
