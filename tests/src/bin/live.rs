//! `moai-live`: one process of an engine, which does what lines of JSON on standard input say, and tells what happens on
//! standard output. For harnesses that stop, kill and part processes.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    match moai_tests::chaos::serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
