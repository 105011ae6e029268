//! Rounds, threads and medians.
//!
//! The passes that are compared (a program, the memcpy it is held against) take turns, round by round,
//! so that whatever else the machine does meets all of them alike. The first round warms up and does not
//! count. Each thread makes its own share of the work and keeps it: nothing is shared, and memory is first
//! touched by who uses it.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::failure::Failure;

/// Times of one pass over all rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: Duration,
    pub(crate) least: Duration,
    pub(crate) most: Duration,
    pub(crate) rounds: u32,
}

impl Spread {
    /// Of one time or more.
    pub(crate) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let middle = times.len() / 2;
        let median = if times.len().is_multiple_of(2) {
            (times[middle - 1] + times[middle]) / 2
        } else {
            times[middle]
        };
        Self {
            median,
            least: times[0],
            most: times[times.len() - 1],
            rounds: times.len() as u32,
        }
    }
}

/// How many rounds are timed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rounds {
    /// As many, until `too_long` has passed; one whatever happens.
    pub(crate) least: u32,
    pub(crate) too_long: Duration,
    /// And up to this many, until `enough` has passed.
    pub(crate) most: u32,
    pub(crate) enough: Duration,
}

impl Rounds {
    /// That many.
    pub(crate) fn exactly(n: u32) -> Self {
        Self {
            least: n,
            too_long: Duration::MAX,
            most: n,
            enough: Duration::MAX,
        }
    }
}

/// What one thread has to do.
pub(crate) trait Share {
    /// What is found out once the rounds are over.
    type Outcome: Send;

    /// One pass of the work.
    fn pass(&mut self, pass: usize);

    /// Looks at what the passes left behind.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    fn finish(&mut self) -> Result<Self::Outcome, Failure>;
}

/// Lets `threads` threads make their shares and do `passes` passes in turn, `rounds` and one round before
/// that does not count. Gives the times of each pass, and what each thread found.
///
/// A pass takes from the moment at which the first thread begins to that at which the last one ends.
///
/// # Errors
///
/// The first error of a share, or that a thread panicked.
pub(crate) fn interleave<S: Share>(
    threads: u32,
    rounds: Rounds,
    passes: usize,
    make: impl Fn(u32) -> Result<S, Failure> + Sync,
) -> Result<(Vec<Spread>, Vec<S::Outcome>), Failure> {
    thread::scope(|scope| {
        let make = &make;
        let workers: Vec<Worker<'_, S::Outcome>> = (0..threads)
            .map(|thread| {
                let (start, starts) = mpsc::channel();
                let (end, ends) = mpsc::channel();
                let handle = scope.spawn(move || work(make(thread)?, &starts, &end));
                Worker {
                    start,
                    ends,
                    handle,
                }
            })
            .collect();
        let mut times = vec![Vec::with_capacity(rounds.most as usize); passes];
        // Who fails hangs up, and says below why.
        let _ = conduct(&workers, rounds, &mut times);
        let mut outcomes = Vec::new();
        let mut failures = Vec::new();
        for worker in workers {
            drop((worker.start, worker.ends));
            match worker.handle.join() {
                Ok(Ok(outcome)) => outcomes.extend(outcome),
                Ok(Err(failure)) => failures.push(failure),
                Err(_) => failures.push(Failure::Wrong("a thread panicked".to_owned())),
            }
        }
        match failures.into_iter().next() {
            Some(failure) => Err(failure),
            None => Ok((times.into_iter().map(Spread::of).collect(), outcomes)),
        }
    })
}

/// A thread, seen from outside.
struct Worker<'scope, T> {
    start: mpsc::Sender<Order>,
    ends: mpsc::Receiver<(Instant, Instant)>,
    handle: thread::ScopedJoinHandle<'scope, Result<Option<T>, Failure>>,
}

#[derive(Clone, Copy)]
enum Order {
    Pass(usize),
    Finish,
}

/// What a thread does: passes when told, and the check at the end. `None` if the end was another one.
fn work<S: Share>(
    mut share: S,
    orders: &mpsc::Receiver<Order>,
    done: &mpsc::Sender<(Instant, Instant)>,
) -> Result<Option<S::Outcome>, Failure> {
    // Tells that the share is made.
    let now = Instant::now();
    let mut heard = done.send((now, now)).is_ok();
    while heard && let Ok(order) = orders.recv() {
        match order {
            Order::Pass(pass) => {
                let start = Instant::now();
                share.pass(pass);
                heard = done.send((start, Instant::now())).is_ok();
            }
            Order::Finish => return share.finish().map(Some),
        }
    }
    Ok(None)
}

/// Gives the orders, and notes how long each pass took. `None` as soon as a thread has hung up.
fn conduct<T>(
    workers: &[Worker<'_, T>],
    rounds: Rounds,
    times: &mut [Vec<Duration>],
) -> Option<()> {
    let order = |order| {
        let mut sent = workers.iter().map(|worker| worker.start.send(order).ok());
        sent.all(|sent| sent.is_some()).then_some(())
    };
    let ends = || -> Option<Vec<(Instant, Instant)>> {
        workers
            .iter()
            .map(|worker| worker.ends.recv().ok())
            .collect()
    };
    ends()?;
    let start = Instant::now();
    for round in 0..=rounds.most {
        let limit = if round > rounds.least {
            rounds.enough
        } else {
            rounds.too_long
        };
        if round > 1 && start.elapsed() > limit {
            break;
        }
        for (pass, times) in times.iter_mut().enumerate() {
            order(Order::Pass(pass))?;
            let spans = ends()?;
            let start = spans.iter().map(|(start, _)| *start).min()?;
            let end = spans.iter().map(|(_, end)| *end).max()?;
            if round > 0 {
                times.push(end - start);
            }
        }
    }
    order(Order::Finish)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier, Mutex};

    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middles() {
        let ms =
            |list: &[u64]| Spread::of(list.iter().map(|&n| Duration::from_millis(n)).collect());
        let odd = ms(&[9, 1, 5]);
        assert_eq!(odd.median, Duration::from_millis(5));
        assert_eq!(
            (odd.least, odd.most),
            (Duration::from_millis(1), Duration::from_millis(9))
        );
        assert_eq!(ms(&[4, 1, 8, 2]).median, Duration::from_millis(3));
        assert_eq!(ms(&[4]).median, Duration::from_millis(4));
    }

    struct Noted {
        log: Arc<Mutex<Vec<usize>>>,
        meet: Arc<Barrier>,
        thread: u32,
    }

    impl Share for Noted {
        type Outcome = u32;

        fn pass(&mut self, pass: usize) {
            // Ends only if all threads are in the same pass.
            if self.meet.wait().is_leader() {
                self.log.lock().unwrap().push(pass);
            }
            if pass == 1 {
                thread::sleep(Duration::from_millis(2));
            }
        }

        fn finish(&mut self) -> Result<u32, Failure> {
            Ok(self.thread)
        }
    }

    #[test]
    fn passes_take_turns_and_the_first_round_does_not_count() {
        let (log, meet) = (Arc::default(), Arc::new(Barrier::new(3)));
        let (times, threads) = interleave(3, Rounds::exactly(4), 2, |thread| {
            Ok(Noted {
                log: Arc::clone(&log),
                meet: Arc::clone(&meet),
                thread,
            })
        })
        .unwrap();
        assert_eq!(threads, [0, 1, 2]);
        assert_eq!(*log.lock().unwrap(), [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]);
        assert!(times[1].least >= Duration::from_millis(2));
        assert_eq!(times.len(), 2);
        assert_eq!(times[0].rounds, 4);
    }

    #[test]
    fn rounds_end_when_there_were_enough() {
        let rounds = |least, too_long, enough| {
            let (log, meet) = (Arc::default(), Arc::new(Barrier::new(1)));
            let rounds = Rounds {
                least,
                too_long: Duration::from_secs(too_long),
                most: 9,
                enough: Duration::from_secs(enough),
            };
            let noted = |thread| {
                Ok(Noted {
                    log: Arc::clone(&log),
                    meet: Arc::clone(&meet),
                    thread,
                })
            };
            interleave(1, rounds, 2, noted).unwrap().0[0].rounds
        };
        assert_eq!(
            [rounds(2, 60, 0), rounds(2, 60, 60), rounds(2, 0, 0)],
            [2, 9, 1]
        );
    }

    struct Bad(bool);

    impl Share for Bad {
        type Outcome = ();

        fn pass(&mut self, _pass: usize) {
            assert!(!self.0, "of the test");
        }

        fn finish(&mut self) -> Result<(), Failure> {
            Err(Failure::Wrong("differs".into()))
        }
    }

    #[test]
    fn a_share_that_fails_ends_the_run() {
        let fails = |make: fn(u32) -> Result<Bad, Failure>| {
            interleave(2, Rounds::exactly(3), 1, make)
                .unwrap_err()
                .to_string()
        };
        // What was never run is not looked at.
        assert_eq!(
            fails(|n| if n == 1 {
                Err(Failure::Input("no".into()))
            } else {
                Ok(Bad(false))
            }),
            "error: no"
        );
        assert_eq!(fails(|_| Ok(Bad(false))), "wrong result: differs");
        assert_eq!(
            fails(|n| Ok(Bad(n == 1))),
            "wrong result: a thread panicked"
        );
    }
}
