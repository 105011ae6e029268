//! Seeded worlds of the transfer protocol: nothing that must not happen does, and planted bugs are found.
//!
//! `MOAI_SEED` is the first seed and `MOAI_CASES` their number; `moai-sim` runs many more.

use moai_tests::simulation::{Faults, Options, Size, Summary, run};

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{variable}={text}"))
    })
}

#[test]
fn small_worlds_come_to_rest_without_violation() {
    let (first, cases) = (number("MOAI_SEED", 1), number("MOAI_CASES", 300));
    println!("MOAI_SEED={first} MOAI_CASES={cases}");
    let mut total = Summary::default();
    for seed in first..first + cases {
        let options = Options {
            seed,
            faults: Faults::default(),
            size: Size::Small,
        };
        match run(&options) {
            Ok(summary) => total.add(&summary),
            Err(violation) => panic!("{violation}"),
        }
    }
    println!("{total}");
    // Worlds in which nothing happens prove nothing.
    if cases >= 100 {
        let happened = [
            total.committed,
            total.failed,
            total.cancelled,
            total.quarantined,
            total.mismatches,
            total.stale,
            total.refused,
            total.restarts,
            total.links_lost,
            total.consumed,
            total.late,
            total.epochs_refused,
        ];
        assert!(happened.iter().all(|&count| count > 0), "{total}");
        assert!(total.committed * 5 > total.transfers, "{total}");
    }
}

#[test]
fn a_larger_world_comes_to_rest_without_violation() {
    let size = Size::Large {
        producers: 6,
        consumers: 6,
        ranks: 8,
    };
    match run(&Options {
        seed: number("MOAI_SEED", 1),
        faults: Faults::default(),
        size,
    }) {
        Ok(summary) => println!("{summary}"),
        Err(violation) => panic!("{violation}"),
    }
}

#[test]
fn a_seed_replays() {
    for seed in 1..20 {
        let options = Options {
            seed,
            faults: Faults::default(),
            size: Size::Small,
        };
        assert_eq!(run(&options), run(&options));
    }
}

/// Finds a planted bug within a thousand seeds, by something of what its violation says.
fn found(faults: Faults, by: &[&str]) {
    for seed in 1..=1000 {
        if let Err(violation) = run(&Options {
            seed,
            faults,
            size: Size::Small,
        }) {
            assert!(
                by.iter().any(|by| violation.what.contains(by)),
                "{violation}"
            );
            println!("{violation}");
            return;
        }
    }
    panic!("{faults:?} was not found in 1000 seeds");
}

#[test]
fn a_lease_that_is_ignored_is_found() {
    let faults = Faults {
        lease_ignored: true,
        ..Faults::default()
    };
    found(faults, &["is not idle at rest", "leaked pages"]);
}

#[test]
fn a_generation_that_is_not_checked_is_found() {
    let faults = Faults {
        generation_unchecked: true,
        ..Faults::default()
    };
    found(faults, &["exposes"]);
}

#[test]
fn a_fence_that_is_skipped_is_found() {
    let faults = Faults {
        fence_skipped: true,
        ..Faults::default()
    };
    found(faults, &["writes to a page"]);
}

#[test]
fn an_outcome_that_comes_twice_is_found() {
    let faults = Faults {
        outcome_twice: true,
        ..Faults::default()
    };
    found(faults, &["ended twice"]);
}

#[test]
fn a_digest_that_is_not_compared_is_found() {
    let faults = Faults {
        digest_not_compared: true,
        ..Faults::default()
    };
    found(faults, &["exposes"]);
}

#[test]
fn a_stale_epoch_that_is_accepted_is_found() {
    let faults = Faults {
        stale_epoch_accepted: true,
        ..Faults::default()
    };
    found(faults, &["is back after a later one"]);
}
