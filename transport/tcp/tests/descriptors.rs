//! A listener without descriptors rests, and goes on when there are some again.

mod common;

use std::fs::File;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Node, Policy};
use moai_transport::Interface;
use moai_transport_tcp::TcpConfig;

/// Runs the test below in a process that may have 64 descriptors.
#[test]
fn a_listener_without_descriptors_does_not_spin() {
    let status = Command::new("sh")
        .arg("-c")
        .arg("ulimit -n 64 && exec \"$0\" --exact with_few_descriptors --ignored --nocapture")
        .arg(std::env::current_exe().unwrap())
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
#[ignore = "run by the test above, in a process with few descriptors"]
fn with_few_descriptors() {
    let mut node = Node::listening(TcpConfig::default(), Policy::Staged);
    let _waiting = TcpStream::connect(node.address()).unwrap();
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
        assert!(hoard.len() < 1000, "the limit is not in force");
    }
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(500) {
        node.poll(Duration::from_millis(500));
    }
    // Five rests of 100 ms; generously rounded up, and thousands less than a spin.
    let waits = node.interface.stats().waits;
    assert!(waits < 100, "{waits} waits");
    assert!(node.recorder.incoming().is_empty());
    hoard.clear();
    node.until(|recorder| recorder.incoming().len() == 1);
}
