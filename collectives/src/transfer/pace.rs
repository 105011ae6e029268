//! Keeping below a rate.

use std::time::{Duration, Instant};

/// Keeps the rate below a limit: time in which nothing was moved is not made up for.
#[derive(Debug)]
pub(super) struct Pace {
    limit: Option<u64>,
    /// When what was moved has had its time.
    due: Instant,
}

impl Pace {
    /// At most `limit` bytes a second, from now on.
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self {
            limit,
            due: Instant::now(),
        }
    }

    /// So many bytes more have been moved.
    pub(super) fn add(&mut self, bytes: u64) {
        if let Some(limit) = self.limit {
            let time = Duration::try_from_secs_f64(bytes as f64 / limit.max(1) as f64);
            let from = self.due.max(Instant::now());
            self.due = { time.ok().and_then(|time| from.checked_add(time)) }.unwrap_or(from);
        }
    }

    /// How long to wait before the next byte may go.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.limit?;
        let pause = self.due.saturating_duration_since(Instant::now());
        Some(pause).filter(|pause| !pause.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_while_is_not_made_up_for() {
        let mut slow = Pace::new(Some(1_000_000));
        std::thread::sleep(Duration::from_millis(200));
        // A tenth of a second's worth: it would have fitted into the time before.
        slow.add(100_000);
        assert!(
            slow.pause()
                .is_some_and(|pause| pause > Duration::from_millis(50))
        );
    }

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
