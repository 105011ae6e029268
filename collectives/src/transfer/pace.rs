//! Keeping below a rate.

use std::time::{Duration, Instant};

/// Keeps the mean rate below a limit.
#[derive(Debug)]
pub(super) struct Pace {
    limit: Option<u64>,
    since: Instant,
    moved: u64,
}

impl Pace {
    /// At most `limit` bytes a second, from now on.
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self {
            limit,
            since: Instant::now(),
            moved: 0,
        }
    }

    /// So many bytes more have been moved.
    pub(super) fn add(&mut self, bytes: u64) {
        self.moved += bytes;
    }

    /// How long to wait before the next byte may go.
    pub(super) fn pause(&self) -> Option<Duration> {
        let limit = self.limit?.max(1);
        let due = Duration::from_secs_f64(self.moved as f64 / limit as f64);
        due.checked_sub(self.since.elapsed())
            .filter(|pause| !pause.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_limit_nothing_waits_and_with_one_what_was_moved_is_waited_for() {
        let mut free = Pace::new(None);
        free.add(u64::MAX);
        assert_eq!(free.pause(), None);
        let mut slow = Pace::new(Some(1000));
        assert_eq!(slow.pause(), None);
        slow.add(60_000);
        assert!(slow.pause().unwrap() > Duration::from_secs(50));
    }
}
