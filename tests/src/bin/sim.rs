//! `moai-sim`: seeded worlds of the transfer protocol, many of them.
#![forbid(unsafe_code)]

use std::{
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use moai_tests::simulation::{Faults, Options, Size, Summary, Violation, run};

const USAGE: &str = "moai-sim [--seeds N] [--first SEED] [--minutes M] [--jobs J] [--large PRODUCERS,CONSUMERS,RANKS]
Runs N worlds from SEED on, or fewer if M minutes are over. Ends with 1 at the first violation.";

struct Args {
    seeds: u64,
    first: u64,
    limit: Option<Duration>,
    jobs: usize,
    size: Size,
}

fn args() -> Result<Args, String> {
    let jobs = std::thread::available_parallelism().map_or(1, Into::into);
    let mut args = Args {
        seeds: 1000,
        first: 0,
        limit: None,
        jobs,
        size: Size::Small,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        let number = |text: String| {
            text.parse::<u64>()
                .map_err(|_| format!("{word} {text}: expected a number"))
        };
        match word.as_str() {
            "--seeds" => args.seeds = number(value()?)?,
            "--first" => args.first = number(value()?)?,
            "--minutes" => args.limit = Some(Duration::from_secs(60 * number(value()?)?)),
            "--jobs" => args.jobs = number(value()?)? as usize,
            "--large" => {
                let text = value()?;
                let parts: Vec<u32> = text
                    .split(',')
                    .filter_map(|part| part.parse().ok())
                    .collect();
                let [producers, consumers, ranks] = parts[..] else {
                    return Err(format!(
                        "--large {text}: expected PRODUCERS,CONSUMERS,RANKS"
                    ));
                };
                args.size = Size::Large {
                    producers,
                    consumers,
                    ranks,
                };
            }
            _ => return Err(format!("{word} is not known\n{USAGE}")),
        }
    }
    Ok(args)
}

fn main() -> ExitCode {
    let args = match args() {
        Ok(args) => args,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    let start = Instant::now();
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let total: Mutex<(Summary, Option<Violation>)> = Mutex::default();
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= args.seeds || args.limit.is_some_and(|limit| start.elapsed() >= limit) {
                return;
            }
            let seed = args.first + at;
            let result = run(&Options {
                seed,
                faults: Faults::default(),
                size: args.size,
            });
            let mut total = total.lock().expect("no panic while it is held");
            match result {
                Ok(summary) => total.0.add(&summary),
                Err(violation) => {
                    stop.store(true, Ordering::Relaxed);
                    total.1.get_or_insert(violation);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(work);
        }
    });
    let (summary, violation) = total.into_inner().expect("no panic");
    println!("{summary}\n{:.1} s", start.elapsed().as_secs_f64());
    match violation {
        None => ExitCode::SUCCESS,
        Some(violation) => {
            eprintln!("{violation}");
            ExitCode::FAILURE
        }
    }
}
