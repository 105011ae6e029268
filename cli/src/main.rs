//! `moai`: moves and converts KV caches between unlike engines.
//!
//! Exit codes: 0 done, 1 the host has a problem (`doctor --strict`), 2 bad usage or input, 3 the two sides do not fit, 4 the transfer failed. Errors
//! go to stderr in one block; `--json FILE` writes what happened for programs to read, whatever it was.
#![forbid(unsafe_code)]

mod args;
mod bounds;
mod check;
mod codec;
mod convert;
mod doctor;
mod failure;
mod info;
mod inputs;
mod keys;
mod picture;
mod plan;
mod run;
mod svg;

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use clap::Parser;

use crate::{
    args::{Arguments, Command},
    failure::Failure,
};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log();
    let done = match arguments.command {
        Command::Run(command) => run::run(&command),
        Command::Convert(command) => convert::convert(&command),
        Command::Plan(command) => plan::plan(&command),
        Command::Check(command) => check::check(&command),
        Command::Doctor(command) => doctor::doctor(&command),
        Command::Codec(command) => codec::codec(&command),
        Command::Info(command) => info_command(&command),
        Command::Keys(command) => keys::keys(&command.command),
        // `run` tells of its ranks' failures.
        Command::Rank(command) => {
            return run::rank::rank(&command)
                .err()
                .map_or(ExitCode::SUCCESS, |e| e.code().into());
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // With stderr gone as well, the exit code is all that is left to say.
            let _ = writeln!(std::io::stderr(), "{failure}");
            ExitCode::from(failure.code())
        }
    }
}

/// Diagnostics of the libraries go to stderr, at the level that `MOAI_LOG` asks for.
fn log() {
    let filter = std::env::var("MOAI_LOG").unwrap_or_else(|_| "warn".into());
    let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

fn info_command(command: &args::Info) -> Result<(), Failure> {
    let config = moai_fabric::config::Config::from_env()?;
    let variables: Vec<_> = config
        .variables()
        .into_iter()
        .map(|v| (v.name, v.value, v.help))
        .collect();
    let info = info::collect(command.layouts, &variables);
    failure::show(info::print(&info))?;
    if let Some(folder) = &command.svg {
        let failed = |error: std::io::Error| {
            Failure::Input(format!("cannot write to {}: {error}", folder.display()))
        };
        std::fs::create_dir_all(folder).map_err(failed)?;
        for (file, document) in svg::gallery() {
            std::fs::write(folder.join(file), document).map_err(failed)?;
        }
    }
    failure::write_json(command.json.as_deref(), &info)
}
