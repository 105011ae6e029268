//! `moai-perf`: what the stack reaches on this machine, each figure beside the bound of the same run.
//!
//! Exit codes: 0 done and every result right, 2 bad usage or input, 4 a result was wrong.
#![forbid(unsafe_code)]

mod args;
mod cases;
mod dump;
mod failure;
mod fingerprint;
mod job;
mod matrix;
mod pool;
mod random;
mod report;
mod timing;
mod translate;
mod wire;

use std::{io::Write, process::ExitCode};

use clap::Parser;

use crate::args::{Arguments, Command};

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Translate(command) => translate::translate(&command),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // With stderr gone as well, the exit code is all that is left to say.
            let _ = writeln!(std::io::stderr(), "{failure}");
            failure.code().into()
        }
    }
}
