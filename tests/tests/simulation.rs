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
            total.lies,
            total.repeats,
            total.departed,
            total.declined,
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
fn found(plant: impl Fn(&mut Faults), by: &[&str]) {
    let mut faults = Faults::default();
    plant(&mut faults);
    assert_ne!(faults, Faults::default());
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
            println!("found after {seed} seeds: {violation}");
            return;
        }
    }
    panic!("{faults:?} was not found in 1000 seeds");
}

/// A test for each planted bug, and what it is found by.
macro_rules! planted {
    ($($name:ident: $fault:ident, $by:expr;)*) => {
        $(
            #[test]
            fn $name() {
                found(|faults| faults.$fault = true, &$by);
            }
        )*
    };
}

planted! {
    // Seeds that it took: 1.
    a_lease_that_is_ignored_is_found: lease_ignored, ["is not idle at rest", "leaked pages"];
    // Seeds that it took: 18.
    a_generation_that_is_not_checked_is_found: generation_unchecked, ["exposes"];
    // Seeds that it took: 4.
    a_fence_that_is_skipped_is_found: fence_skipped, ["writes to a page"];
    // Seeds that it took: 2.
    an_outcome_that_comes_twice_is_found: outcome_twice, ["ended twice"];
    // Seeds that it took: 3.
    a_digest_that_is_not_compared_is_found: digest_not_compared, ["exposes"];
    // Seeds that it took: 3.
    a_stale_epoch_that_is_accepted_is_found: stale_epoch_accepted, ["is back after a later one"];
    // Seeds that it took: 7.
    a_late_write_after_a_fence_is_found: landing_after_fence, ["writes to a page"];
    // Seeds that it took: 11.
    a_chunk_that_counts_twice_is_found: duplicate_counted, ["no bit has flipped", "writes to a page", "exposes"];
    // Seeds that it took: 4.
    a_quarantine_that_is_skipped_is_found: quarantine_skipped, ["writes to a page"];
    // Seeds that it took: 11.
    pages_that_are_released_before_their_fence_are_found:
        released_early, ["is released while"];
    // Seeds that it took: 29.
    a_seal_that_is_not_checked_is_found: seal_unchecked, ["with a forged handle", "is served from it"];
    // Seeds that it took: 115.
    a_bound_that_is_not_checked_is_found: bound_unchecked, ["is served from it"];
    // Seeds that it took: 36.
    an_offer_that_is_served_again_is_found: consumed_again, ["again"];
    // Seeds that it took: 3.
    a_consumer_that_gave_up_and_counts_as_through_is_found: stop_is_commit, ["counts as consumed"];
    // Seeds that it took: 324.
    a_decline_of_someone_else_is_found: decline_unchecked, ["declines it"];
    // Seeds that it took: 12.
    a_push_that_is_never_forgotten_is_found: push_kept, ["is not idle at rest"];
    // Seeds that it took: 1.
    a_deadline_that_comes_late_is_found: deadline_late, ["after its deadline"];
}
