//! `moai-perf`: what the stack reaches on this machine, each figure beside the bound of the same run.
//!
//! Exit codes: 0 done and every result right, 2 bad usage or input, 4 a result was wrong, 5 the system
//! or the other process did not do its part.
// But for one module of system calls, `bounds::process_vm`.
#![deny(unsafe_code)]

mod args;
mod bounds;
mod cases;
mod control;
mod dump;
mod failure;
mod fingerprint;
mod histogram;
mod job;
mod matrix;
mod measure;
mod movement;
mod mover;
mod pattern;
mod peer;
mod plan;
mod plot;
mod pool;
mod random;
mod report;
mod reshard;
mod rows;
mod shapes;
mod stack;
mod subject;
mod timing;
mod translate;
mod usage;
mod wire;

use std::{io::Write, process::ExitCode};

use clap::Parser;

use crate::{
    args::{Arguments, Command},
    mover::Step,
};

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Translate(command) => translate::translate(&command),
        Command::Put(command) => movement::movement(&command, Step::Put),
        Command::Get(command) => movement::movement(&command, Step::Get),
        Command::Send(command) => movement::movement(&command, Step::Send),
        Command::Rate(command) => movement::movement(&command, Step::Rate),
        Command::Latency(command) => movement::latency(&command),
        Command::Bounds(command) => movement::bounds(&command),
        Command::Reshard(command) => reshard::reshard(&command),
        Command::Plan(command) => plan::plan(&command),
        Command::Partner => peer::partner(),
        Command::Producers => reshard::producers(),
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
