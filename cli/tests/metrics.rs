//! `moai run` tells its metrics while it runs, and names its transfer.

mod support;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Stdio,
    time::{Duration, Instant},
};

use support::{json as read_json, moai, stderr, text};

/// What an address answers, if anything does.
fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: moai\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn a_run_is_watched_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    // Half a second at that rate, and as long as it takes to start.
    let mut run = moai(&[
        "run",
        "--tokens",
        "64",
        "--transport",
        "tcp",
        "--max-rate",
        "2000000",
    ])
    .args(["--json", text(&report)])
    .env("MOAI_METRICS", port.to_string())
    .stdout(Stdio::null())
    .spawn()
    .unwrap();
    let start = Instant::now();
    let (mut was_ready, mut ended) = (false, 0);
    while run.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(120));
        was_ready |= get(port, "/ready").is_some_and(|answer| answer.contains(" 200 "));
        let metrics = get(port, "/metrics").unwrap_or_default();
        let committed = metrics
            .lines()
            .find_map(|line| line.strip_prefix("moai_transfers_total{status=\"committed\"} "));
        ended = ended.max(committed.map_or(0, |count| count.parse().unwrap()));
    }
    assert!(run.wait().unwrap().success());
    assert!(was_ready, "never ready");
    // The check of every element comes after the last has ended.
    assert!((1..=6).contains(&ended), "{ended} of 6 ranks seen to end");
    let request = read_json(&report)["request"].as_str().unwrap().to_owned();
    assert!(
        request.len() == 16 && request.bytes().all(|b| b.is_ascii_hexdigit()),
        "{request}"
    );
}

#[test]
fn a_port_that_is_taken_says_whose_setting_it_is() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let output = moai(&["run", "--tokens", "1"])
        .env(
            "MOAI_METRICS",
            taken.local_addr().unwrap().port().to_string(),
        )
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("MOAI_METRICS"),
        "{}",
        stderr(&output)
    );
}
