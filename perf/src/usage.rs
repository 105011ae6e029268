//! CPU time of this process.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// User and system time of all threads, those that have ended included. Counted in nanoseconds, where
/// `getrusage` may count in ticks.
pub(crate) fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    // Neither is negative.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn work_costs_time() {
        let (start, before) = (Instant::now(), cpu());
        while cpu() - before < Duration::from_millis(20) {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "no CPU time in a minute"
            );
        }
    }
}
