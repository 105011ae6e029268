//! One suite that every way of moving bytes passes, for every kind of memory.
//!
//! Written against the contract in `moai_transport` and nothing that a provider adds. A test is named
//! `provider/local-remote/check`; what this machine cannot run is shown as ignored with its reason, and fails if
//! `MOAI_REQUIRE` names it: a kind of memory, a provider, `files` (for a limit of open files), or `conformance` for
//! all of them.

mod connections;
mod fallback;
mod far;
mod faults;
mod frames;
mod keys;
mod lists;
mod loss;
mod mapping;
mod memory;
mod node;
mod pair;
mod random;
mod run;
mod scale;
mod transfers;
mod waiting;
mod ways;

use std::process::ExitCode;

use libtest_mimic::Arguments;
use moai_memory::MemoryKind;

use crate::far::Place;
use crate::pair::Setting;
use crate::run::Outcome;
use crate::ways::Way;

type Check = (&'static str, fn(&Setting) -> Outcome);

/// Held for every provider, between host memory.
const OF_A_PROVIDER: &[Check] = &[
    ("connects", connections::connects),
    ("refusals", connections::refusals),
    (
        "finish_sends_what_is_queued",
        connections::finish_sends_what_is_queued,
    ),
    ("close_is_at_once", connections::close_is_at_once),
    (
        "rejected_frames_end_the_connection",
        connections::rejected_frames_end_the_connection,
    ),
    ("names_are_used_once", connections::names_are_used_once),
    (
        "a_flood_of_silent_peers",
        connections::a_flood_of_silent_peers,
    ),
    ("frames_of_the_largest_size", frames::of_the_largest_size),
    (
        "a_slow_reader_is_busy",
        frames::a_slow_reader_is_busy_and_nobody_else_notices,
    ),
    (
        "messages_are_bounded",
        frames::messages_that_nobody_reads_are_bounded,
    ),
    ("many_in_flight", transfers::many_in_flight),
    (
        "wrong_arguments_do_nothing",
        transfers::wrong_arguments_do_nothing,
    ),
    ("bytes_that_are_no_key", keys::bytes_that_are_no_key),
    ("keys_of_another_interface", keys::keys_of_another_interface),
    ("no_wake_up_is_lost", waiting::no_wake_up_is_lost),
    ("idle_costs_nothing", waiting::idle_costs_nothing),
    ("a_timeout_is_kept", waiting::a_timeout_is_kept),
    ("scale_is_bounded", scale::is_bounded),
];

/// Held for every pair of kinds.
const OF_A_PAIR: &[Check] = &[
    (
        "move_what_was_asked",
        transfers::move_what_was_asked_and_nothing_else,
    ),
    ("flush_comes_after", transfers::flush_comes_after),
];

/// Held for every kind, on both sides.
const OF_A_KIND: &[Check] = &[
    (
        "huge_lists_and_many_regions",
        transfers::huge_lists_and_many_regions,
    ),
    (
        "pieces_longer_than_a_frame",
        transfers::pieces_longer_than_a_frame,
    ),
    ("rights_are_kept", transfers::rights_are_kept),
    ("forged_keys_reach_nothing", keys::forged_keys_reach_nothing),
    ("registering_is_counted", keys::registering_is_counted),
    (
        "deregistered_memory_is_left_alone",
        keys::deregistered_memory_is_left_alone,
    ),
    ("a_peer_that_dies", loss::a_peer_that_dies),
    ("a_peer_that_closes", loss::a_peer_that_closes),
    ("closing_in_flight", loss::closing_with_operations_in_flight),
    (
        "finishing_in_flight",
        loss::finishing_with_operations_in_flight,
    ),
    ("completions_wake", waiting::completions_wake),
    (
        "mapped_shows_what_the_owner_writes",
        mapping::shows_what_the_owner_writes,
    ),
    ("mapped_is_a_source", mapping::is_a_source_like_any_other),
];

/// Held for every kind whose bytes the host can load, on both sides: batches land there.
const OF_A_HOST_KIND: &[Check] = &[(
    "frames_arrive_whole_once_in_order",
    frames::arrive_whole_once_in_order,
)];

/// Held where one side or both have memory of the device.
const OF_THE_DEVICE: &[Check] = &[
    (
        "a_failed_copy_is_never_a_success",
        faults::a_failed_copy_is_never_a_success,
    ),
    ("frames_go_on", faults::frames_go_on),
];

/// Held for every kind between two processes, where memory is reached in other ways than between threads.
const BETWEEN_PROCESSES: &[Check] = &[
    (
        "move_what_was_asked",
        transfers::move_what_was_asked_and_nothing_else,
    ),
    (
        "huge_lists_and_many_regions",
        transfers::huge_lists_and_many_regions,
    ),
    ("rights_are_kept", transfers::rights_are_kept),
    ("forged_keys_reach_nothing", keys::forged_keys_reach_nothing),
    ("registering_is_counted", keys::registering_is_counted),
    (
        "deregistered_memory_is_left_alone",
        keys::deregistered_memory_is_left_alone,
    ),
    ("a_peer_that_dies", loss::a_peer_that_dies),
    ("a_peer_that_stands_still", loss::a_peer_that_stands_still),
    ("a_peer_that_closes", loss::a_peer_that_closes),
    (
        "mapped_shows_what_the_owner_writes",
        mapping::shows_what_the_owner_writes,
    ),
];

fn main() -> ExitCode {
    run::keep_panics();
    if far::is_child() {
        return ExitCode::SUCCESS;
    }
    let mut args = Arguments::from_args();
    // Most tests wait for another thread; a few at a time fill a small machine.
    args.test_threads = args.test_threads.or(Some(4));
    let seed = std::env::var("MOAI_SEED")
        .map_or(0x5eed, |seed| seed.parse().expect("MOAI_SEED is a number"));
    println!("seed {seed}");
    let mut trials = vec![run::trial(
        "oracle/drawn_lists".to_owned(),
        seed,
        move || {
            lists::drawn_lists_are_what_they_say(seed);
            Ok(())
        },
    )];
    let mut add = |checks: &[Check], setting: Setting| {
        for &(name, check) in checks {
            let Setting {
                way,
                local,
                remote,
                place,
                ..
            } = setting;
            let across = if place == Place::Process {
                "processes/"
            } else {
                ""
            };
            let name = format!("{way}/{across}{local}-{remote}/{name}");
            trials.push(run::trial(name, seed, move || check(&setting)));
        }
    };
    for way in Way::ALL {
        let of = |local, remote, place| Setting {
            way,
            local,
            remote,
            place,
            seed,
        };
        let host = MemoryKind::Host;
        add(OF_A_PROVIDER, of(host, host, Place::Thread));
        for local in MemoryKind::ALL {
            for remote in MemoryKind::ALL {
                add(OF_A_PAIR, of(local, remote, Place::Thread));
                if [local, remote].contains(&MemoryKind::Sim) {
                    add(&OF_THE_DEVICE[..1], of(local, remote, Place::Thread));
                }
            }
            add(OF_A_KIND, of(local, local, Place::Thread));
            if local.is_host_accessible() {
                add(OF_A_HOST_KIND, of(local, local, Place::Thread));
            } else {
                add(&OF_THE_DEVICE[1..], of(local, local, Place::Thread));
            }
            add(BETWEEN_PROCESSES, of(local, local, Place::Process));
        }
    }
    let way = Way::Stack { falls_back: true };
    let (local, remote) = (MemoryKind::Host, MemoryKind::Host);
    let of_a_fallback: Check = (
        "next_best_is_taken",
        fallback::the_next_best_is_taken_and_says_so,
    );
    let place = Place::Thread;
    add(
        &[of_a_fallback],
        Setting {
            way,
            local,
            remote,
            place,
            seed,
        },
    );
    libtest_mimic::run(&args, trials).exit_code()
}
