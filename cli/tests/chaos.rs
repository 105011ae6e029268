//! Processes that die, stop or talk nonsense in mid-transfer: every other rank has an outcome in time.

mod support;

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{json, moai, text};

/// A run slow enough to be disturbed: 8 MiB a producer, at 2 MB/s.
struct Slow {
    child: Child,
    start: Instant,
    pids: Vec<(String, String)>,
    addresses: Vec<String>,
    report: tempfile::NamedTempFile,
    rest: std::thread::JoinHandle<String>,
}

impl Slow {
    fn start(transport: &str, deadline: &str, rate: &str) -> Self {
        let report = tempfile::NamedTempFile::new().unwrap();
        let mut child = moai(&[
            "run",
            "--verbose",
            "--transport",
            transport,
            "--deadline",
            deadline,
            "--max-rate",
            rate,
            "--json",
            text(report.path()),
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (mut pids, mut addresses) = (Vec::new(), Vec::new());
        let mut listening = 0;
        while pids.len() < 6 || listening < 4 {
            let line = lines.next().expect("the run tells of its ranks").unwrap();
            if let Some((name, pid)) = line.split_once(": process ") {
                pids.push((name.to_owned(), pid.to_owned()));
            }
            if let Some((_, address)) = line.split_once(": listens on ") {
                listening += 1;
                let tcp = address
                    .split(' ')
                    .filter_map(|text| text.strip_prefix("tcp:"));
                addresses.extend(tcp.map(str::to_owned));
            }
        }
        let rest =
            std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>().join("\n"));
        Self {
            child,
            start: Instant::now(),
            pids,
            addresses,
            report,
            rest,
        }
    }

    fn signal(&self, name: &str, signal: &str) {
        let pid = &self.pids.iter().find(|(rank, _)| rank == name).unwrap().1;
        assert!(
            Command::new("kill")
                .args([signal, pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Exit code, what was said on stderr, the report, and how long it all took.
    fn end(mut self) -> (Option<i32>, String, Value, Duration) {
        let code = self.child.wait().unwrap().code();
        let took = self.start.elapsed();
        (
            code,
            self.rest.join().unwrap(),
            json(self.report.path()),
            took,
        )
    }
}

fn rank<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["ranks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|rank| rank["name"] == name)
        .unwrap()
}

/// Dirty pages are pages of the request, and some but not all of a slow transfer's.
fn dirty_pages(report: &Value, name: &str) -> Vec<u64> {
    let dirty = &rank(report, name)["report"]["ended"]["dirty"];
    let pages = dirty[0]["pages"]
        .as_array()
        .unwrap_or_else(|| panic!("{name} lists no dirty pages: {report}"));
    pages.iter().map(|page| page.as_u64().unwrap()).collect()
}

const MIDDLE: Duration = Duration::from_millis(1500);

#[test]
fn a_killed_producer_fails_its_consumer_in_time_with_its_dirty_pages() {
    killed_producer("tcp");
}

#[test]
fn a_killed_producer_fails_its_consumer_in_time_with_its_dirty_pages_while_pages_are_mapped() {
    killed_producer("shm");
}

fn killed_producer(transport: &str) {
    let run = Slow::start(transport, "30", "2000000");
    std::thread::sleep(MIDDLE);
    run.signal("producer 2", "-KILL");
    let (code, said, report, took) = run.end();
    assert_eq!(code, Some(4), "{said}");
    assert!(took < Duration::from_secs(35), "{took:?}");
    assert!(
        said.contains("failed: the transfer did not commit"),
        "{said}"
    );
    assert!(
        said.contains("producer 2: its process ended: signal: 9"),
        "{said}"
    );
    assert!(
        said.contains("consumer 1: rank 2 of the other side was lost"),
        "{said}"
    );
    assert!(said.contains("dirty pages: "), "{said}");
    let failure = &rank(&report, "consumer 1")["report"]["ended"]["failure"];
    assert_eq!(
        (failure["kind"].as_str(), failure["rank"].as_u64()),
        (Some("lost"), Some(2))
    );
    let dirty = dirty_pages(&report, "consumer 1");
    assert!(!dirty.is_empty() && dirty.is_sorted());
    assert_eq!(report["outcome"], "failed");
    // Consumer 0 takes nothing from producer 2, so its part is not concerned.
    assert_eq!(
        rank(&report, "consumer 0")["report"]["ended"]["outcome"],
        "committed"
    );
}

#[test]
fn a_killed_consumer_fails_its_producers_in_time() {
    killed_consumer("tcp");
}

#[test]
fn a_killed_consumer_fails_its_producers_in_time_while_pages_are_mapped() {
    killed_consumer("shm");
}

fn killed_consumer(transport: &str) {
    let run = Slow::start(transport, "30", "2000000");
    std::thread::sleep(MIDDLE);
    run.signal("consumer 0", "-KILL");
    let (code, said, report, took) = run.end();
    assert_eq!(code, Some(4), "{said}");
    assert!(took < Duration::from_secs(35), "{took:?}");
    for name in ["producer 0", "producer 1"] {
        let failure = &rank(&report, name)["report"]["ended"]["failure"];
        assert_eq!(
            (failure["kind"].as_str(), failure["rank"].as_u64()),
            (Some("lost"), Some(0)),
            "{said}"
        );
    }
    assert_eq!(
        rank(&report, "consumer 1")["report"]["ended"]["outcome"],
        "committed"
    );
}

#[test]
fn a_stopped_producer_is_given_up_within_seconds() {
    stopped_producer("tcp");
}

#[test]
fn a_stopped_producer_is_given_up_within_seconds_while_pages_are_mapped() {
    stopped_producer("shm");
}

fn stopped_producer(transport: &str) {
    let run = Slow::start(transport, "30", "2000000");
    std::thread::sleep(MIDDLE);
    run.signal("producer 3", "-STOP");
    let (code, said, report, took) = run.end();
    assert_eq!(code, Some(4), "{said}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    // It is silent for three seconds, long before the deadline.
    assert!(
        said.contains("consumer 1: rank 3 of the other side was lost: nothing heard for 3"),
        "{said}"
    );
    assert!(!dirty_pages(&report, "consumer 1").is_empty());
}

/// Whether a process is there and not just waiting to be reaped.
fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

#[test]
fn ranks_end_when_the_run_that_started_them_is_killed() {
    let mut run = Slow::start("auto", "30", "2000000");
    std::thread::sleep(MIDDLE);
    assert!(run.pids.iter().all(|(_, pid)| lives(pid)));
    run.child.kill().unwrap();
    run.child.wait().unwrap();
    let start = Instant::now();
    while run.pids.iter().any(|(_, pid)| lives(pid)) {
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "ranks outlive the run"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn strangers_on_a_producers_port_disturb_nobody() {
    let run = Slow::start("auto", "30", "8000000");
    let mut held = Vec::new();
    for address in run.addresses.clone() {
        for words in [
            &b"GET / HTTP/1.1\r\nHost: cache\r\n\r\n"[..],
            &[0xFF; 4096],
            &[0; 7],
            &[],
        ] {
            if let Ok(mut stream) = TcpStream::connect(&address) {
                let _ = stream.write_all(words);
                held.push(stream);
            }
        }
    }
    let (code, said, report, _) = run.end();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(report["verified"], true);
    drop(held);
}

#[test]
fn nothing_is_written_when_a_transfer_fails() {
    let case = support::case("04-flash-attn-tp4-16-to-rocm-tp2-32");
    let out = tempfile::tempdir().unwrap();
    let (producer, consumer) = (case.join("producer.json"), case.join("consumer.json"));
    // 1 byte a second: the deadline comes first.
    let arguments = [
        "run",
        text(&producer),
        text(&consumer),
        "--out",
        text(out.path()),
        "--deadline",
        "1",
        "--max-rate",
        "1",
    ];
    let output = moai(&arguments).output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(4),
        "{}",
        support::stderr(&output)
    );
    assert_eq!(files(out.path()), 0);
}

fn files(path: &Path) -> usize {
    std::fs::read_dir(path).unwrap().count()
}
