//! Parts of tests that run in a process of their own.
#![allow(dead_code, reason = "each test uses some of it")]

use std::os::fd::OwnedFd;
use std::process::{Command, Output, Stdio};

use moai_memory::Hold;

/// What the child's part is called, in this process' environment if it is one.
const PART: &str = "MEMORY_TEST_PART";

/// Whether this process was started to play `part`.
pub(crate) fn plays(part: &str) -> bool {
    std::env::var(PART).is_ok_and(|played| played == part)
}

/// Runs `test` of this program again, in a process that plays `part` and has `fd` as its standard input.
pub(crate) fn child(test: &str, part: &str, fd: Option<OwnedFd>) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads", "1"])
        .env(PART, part)
        .stdin(fd.map_or_else(Stdio::null, Stdio::from))
        .output()
        .unwrap()
}

/// Fails unless a child has run its part to the end.
pub(crate) fn passed(output: &Output) {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success() && out.contains("1 passed"),
        "{}\n{out}{err}",
        output.status
    );
}

/// The exported file, for another process.
pub(crate) fn exported(hold: &Hold) -> OwnedFd {
    let export = hold.export().expect("it can be exported");
    export.fd.try_clone_to_owned().unwrap()
}

/// What other process sent this one.
pub(crate) fn received() -> OwnedFd {
    use std::os::fd::AsFd;
    std::io::stdin().as_fd().try_clone_to_owned().unwrap()
}

/// The seed of this run; it is printed, so that a failure shows it.
pub(crate) fn seed() -> u64 {
    let seed =
        std::env::var("MOAI_SEED").map_or(1, |seed| seed.parse().expect("MOAI_SEED is a number"));
    println!("seed {seed}; again with MOAI_SEED={seed}");
    seed
}

/// Bytes that depend on a seed and on where they are.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let byte = |index: usize| {
        (index as u64)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_add(seed)
            >> 32
    };
    (0..len).map(|index| byte(index + 1) as u8).collect()
}
