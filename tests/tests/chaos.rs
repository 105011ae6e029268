//! Engines in processes of their own that are killed, stopped and cut off: some rounds of what `moai-chaos` does many of.
//!
//! Cutting off needs root, `ip`, `nft`, `nsenter` and `unshare`; without them it is ignored, and `MOAI_REQUIRE=netns` makes
//! that a failure.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use moai_tests::chaos::{Options, Plant, network_available, run};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for transport in ["tcp", "shm"] {
        for (mirrored, victim) in [(false, "producer"), (true, "consumer")] {
            trials.push(Trial::test(
                format!("{transport}, {victim} struck"),
                move || all_holds(&options(transport, mirrored, 6)),
            ));
        }
    }
    for (mirrored, victim) in [(false, "producer"), (true, "consumer")] {
        trials.push(Trial::ignorable_test(
            format!("{victim} cut off"),
            move || {
                let mut options = options("tcp", mirrored, 6);
                options.network = true;
                let required = std::env::var("MOAI_REQUIRE").unwrap_or_default();
                match network_available() {
                    Ok(()) => all_holds(&options).map(|()| Completion::Completed),
                    Err(why) if required.split([',', ' ']).any(|name| name == "netns") => {
                        Err(format!("MOAI_REQUIRE has netns, and {why}").into())
                    }
                    Err(why) => Ok(Completion::ignored_with(why)),
                }
            },
        ));
    }
    trials.push(Trial::test("a planted byte is found", || {
        is_found(Plant::Byte, false, "page 31 is not what it is to be")
    }));
    trials.push(Trial::test("a planted offer is found", || {
        is_found(Plant::Offer, true, "at rest, and is")
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn options(transport: &str, mirrored: bool, rounds: u64) -> Options {
    let seed = std::env::var("MOAI_SEED").ok();
    Options {
        binary: env!("CARGO_BIN_EXE_moai-live").into(),
        rounds,
        limit: None,
        seed: seed.and_then(|seed| seed.parse().ok()).unwrap_or(1),
        transport: transport.to_owned(),
        mirrored,
        network: false,
        measure: false,
        plant: None,
        verbose: false,
    }
}

fn all_holds(options: &Options) -> Result<(), Failed> {
    let (summary, held) = run(options);
    held.map_err(|why| format!("{why}\n{summary}"))?;
    println!("{summary}");
    assert_eq!(summary.rounds, options.rounds);
    Ok(())
}

fn is_found(plant: Plant, mirrored: bool, how: &str) -> Result<(), Failed> {
    let mut options = options("tcp", mirrored, 1);
    options.plant = Some(plant);
    match run(&options).1 {
        Err(why) if why.contains(how) => Ok(()),
        other => Err(format!("{plant:?} comes to {other:?}").into()),
    }
}
