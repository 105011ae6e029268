//! `cargo xtask install --prefix DIR`: the C library, its header and what finds them.
#![forbid(unsafe_code)]

use std::process::ExitCode;

mod install;

const USAGE: &str =
    "usage: cargo xtask install --prefix DIR [--profile release|dev] [--destdir DIR]

Builds libmoai_fabric and installs it:
  DIR/lib/libmoai_fabric.so.1.…     the shared object, with links to it
  DIR/lib/libmoai_fabric.a          the static library
  DIR/lib/pkgconfig/moai_fabric.pc  for pkg-config
  DIR/include/moai_fabric.h         the header
CC names the compiler that links; it is cc without.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.split_first() {
        Some((task, rest)) if task == "install" => {
            install::Options::read(rest).and_then(|options| install::install(&options))
        }
        _ => Err(USAGE.to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
