//! `moai-chaos`: engines in processes that are killed, stopped and cut off, many times over.
#![forbid(unsafe_code)]

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use moai_tests::chaos::{Options, Summary, run};

const USAGE: &str = "moai-chaos [--rounds N] [--seed S] [--transport tcp|shm] [--minutes M] [--network] [--verbose]
Runs N rounds, or fewer if M minutes are over: in half of them the victim produces, in the other half it consumes.
With --network its network is cut off as well, which needs root. Ends with 1 at the first that does not hold.";

fn args() -> Result<Options, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut options = Options {
        binary: own.with_file_name("moai-live"),
        rounds: 100,
        limit: None,
        seed: 1,
        transport: "tcp".to_owned(),
        mirrored: false,
        network: false,
        measure: true,
        plant: None,
        verbose: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        let number = |text: String| {
            text.parse::<u64>()
                .map_err(|_| format!("{word} {text}: expected a number"))
        };
        match word.as_str() {
            "--rounds" => options.rounds = number(value()?)?,
            "--seed" => options.seed = number(value()?)?,
            "--minutes" => options.limit = Some(Duration::from_secs(60 * number(value()?)?)),
            "--transport" => options.transport = value()?,
            "--binary" => options.binary = PathBuf::from(value()?),
            "--network" => options.network = true,
            "--verbose" => options.verbose = true,
            _ => return Err(format!("{word} is not known\n{USAGE}")),
        }
    }
    if options.network && options.transport == "shm" {
        let why = "--network: shared memory is not reached from another network namespace; expected --transport tcp";
        return Err(format!("{why}\n{USAGE}"));
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match args() {
        Ok(options) => options,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    let start = Instant::now();
    let half = |mirrored: bool| {
        let mut half = options.clone();
        half.mirrored = mirrored;
        half.rounds = match mirrored {
            true => options.rounds / 2,
            false => options.rounds.div_ceil(2),
        };
        half
    };
    // Rounds wait for most of their time: both halves run at once.
    let results = std::thread::scope(|scope| {
        let run = |mirrored| scope.spawn(move || run(&half(mirrored)));
        [run(false), run(true)].map(|thread| thread.join().expect("it does not panic"))
    });
    let mut total = Summary::default();
    let mut ok = true;
    for (victim, (summary, held)) in ["producer", "consumer"].into_iter().zip(results) {
        if let Err(why) = held {
            eprintln!("{why}");
            ok = false;
        }
        println!("{}, victim {victim}: {summary}", options.transport);
        for (kind, count) in &summary.kinds {
            println!("    {count:5} {kind}");
        }
        total.add(&summary);
    }
    println!(
        "{}: {total}; {:.1} s",
        options.transport,
        start.elapsed().as_secs_f64()
    );
    match ok {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
