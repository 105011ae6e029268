//! A directory in a real etcd that is killed, stopped, restarted and wiped.
//!
//! Without etcd these are ignored; `MOAI_REQUIRE=etcd` makes that a failure.

use std::{
    fs::File,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Completion, Trial};
use moai_collectives::transfer::{Offer, Pull};
use moai_fabric::directory::{
    Announcement, Directory, EngineName, Node, NodeKey, Options, Source, Standing, View,
};
use moai_tests::live::{Live, Shape, fabric, same, wanted};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Names the source, to a process that only announces.
const ANNOUNCER: &str = "ANNOUNCE_IN";
/// Longer than anything takes that is not broken: leases, periods and an etcd that starts on a busy machine.
const SOON: Duration = Duration::from_secs(60);
const LEASE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    // Started by a test below, to be killed.
    if let Ok(source) = std::env::var(ANNOUNCER) {
        let directory = open(&source);
        let announcement = directory.announce(&prefill(), node(7)).unwrap();
        until_listed(&announcement);
        thread::sleep(Duration::from_secs(600));
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    let tests: [(&str, fn()); 6] = [
        ("killed_and_restarted", killed_and_restarted),
        ("restarted_without_its_data", restarted_without_its_data),
        (
            "a_stopped_server_blocks_nobody",
            a_stopped_server_blocks_nobody,
        ),
        ("a_killed_node_is_unlisted", a_killed_node_is_unlisted),
        ("foreign_entries_do_no_harm", foreign_entries_do_no_harm),
        (
            "transfers_do_not_notice_that_it_is_lost",
            transfers_do_not_notice_that_it_is_lost,
        ),
    ];
    let trial = |(name, body): (&str, fn())| {
        Trial::ignorable_test(name, move || {
            match Command::new("etcd").arg("--version").output() {
                Ok(_) => {
                    body();
                    Ok(Completion::Completed)
                }
                Err(error) => {
                    let required = std::env::var("MOAI_REQUIRE").unwrap_or_default();
                    let reason = format!("etcd cannot be run: {error}");
                    match required.split([',', ' ']).any(|name| name == "etcd") {
                        true => Err(format!("MOAI_REQUIRE has etcd, and {reason}").into()),
                        false => Ok(Completion::ignored_with(reason)),
                    }
                }
            }
        })
    };
    libtest_mimic::run(&arguments, tests.map(trial).into()).exit_code()
}

/// An etcd of one member.
struct Etcd {
    child: Child,
    data: TempDir,
    ports: [u16; 2],
}

impl Etcd {
    fn start() -> Self {
        // Free a moment ago; what takes it in between makes the test fail by name.
        let free = || TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners = [free(), free()];
        let ports = listeners
            .each_ref()
            .map(|listener| listener.local_addr().unwrap().port());
        drop(listeners);
        let data = TempDir::new().unwrap();
        let child = Self::run(data.path(), ports);
        Self { child, data, ports }
    }

    fn run(data: &Path, [clients, peers]: [u16; 2]) -> Child {
        let log = File::options()
            .create(true)
            .append(true)
            .open(data.join("log"))
            .unwrap();
        let (clients, peers) = (
            format!("http://127.0.0.1:{clients}"),
            format!("http://127.0.0.1:{peers}"),
        );
        let child = Command::new("etcd")
            .args(["--name", "one", "--data-dir"])
            .arg(data.join("data"))
            .args([
                "--listen-client-urls",
                &clients,
                "--advertise-client-urls",
                &clients,
            ])
            .args([
                "--listen-peer-urls",
                &peers,
                "--initial-advertise-peer-urls",
                &peers,
            ])
            .args(["--initial-cluster", &format!("one={peers}")])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        child.unwrap()
    }

    fn source(&self) -> String {
        format!("etcd:http://127.0.0.1:{}/test", self.ports[0])
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = Self::run(self.data.path(), self.ports);
    }

    /// Puts a key, without anything of ours between.
    fn put(&self, key: &str, value: &str) {
        let body = format!(
            r#"{{"key": "{}", "value": "{}"}}"#,
            base64(key),
            base64(value)
        );
        let mut stream = TcpStream::connect(("127.0.0.1", self.ports[0])).unwrap();
        let request = format!(
            "POST /v3/kv/put HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("200 OK"), "{answer}");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in text.as_bytes().chunks(3) {
        let byte = |i: usize| u32::from(*three.get(i).unwrap_or(&0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = char::from(DIGITS[(bits >> (18 - 6 * i) & 63) as usize]);
            out.push(if i <= three.len() { digit } else { '=' });
        }
    }
    out
}

fn open(source: &str) -> Directory {
    let source: Source = source.parse().unwrap();
    let mut options = Options::default();
    options.period = Duration::from_millis(100);
    options.lease = LEASE;
    Directory::open(source, options).unwrap()
}

fn prefill() -> EngineName {
    "prefill".parse().unwrap()
}

fn node(number: u32) -> Node {
    let address = format!("tcp:127.0.0.1:{}", 4000 + number).parse().unwrap();
    let node = Node::at(vec![address]).unwrap().numbered(number);
    node.holding(vec![number])
        .unwrap()
        .of(Some([7; 32]), Some(u64::MAX - u64::from(number)))
}

fn numbers(view: &View) -> Vec<u32> {
    view.listed().filter_map(|node| node.number).collect()
}

fn until(directory: &Directory, is_so: impl Fn(&View) -> bool) -> Arc<View> {
    let start = Instant::now();
    let mut version = directory.version();
    loop {
        let view = directory.view(&prefill()).unwrap();
        if is_so(&view) {
            return view;
        }
        assert!(start.elapsed() < SOON, "after {SOON:?}: {view:?}");
        version = directory.wait(version, Duration::from_millis(50));
    }
}

fn until_standing(announcement: &Announcement, is_so: impl Fn(&Standing) -> bool) {
    let start = Instant::now();
    while !is_so(&announcement.standing()) {
        assert!(start.elapsed() < SOON, "{:?}", announcement.standing());
        thread::sleep(Duration::from_millis(20));
    }
}

fn until_listed(announcement: &Announcement) {
    until_standing(announcement, |standing| {
        matches!(standing, Standing::Listed { .. })
    });
}

fn until_unconfirmed(announcement: &Announcement) {
    until_standing(announcement, |standing| {
        matches!(standing, Standing::Unconfirmed { .. })
    });
}

/// The view stays while the server is gone; when it is back, so is all that was announced, and what is new is found.
fn killed_and_restarted() {
    let mut etcd = Etcd::start();
    let [ours, theirs] = [open(&etcd.source()), open(&etcd.source())];
    ours.watch(&prefill()).unwrap();
    let first = theirs.announce(&prefill(), node(0)).unwrap();
    let view = until(&ours, |view| numbers(view) == [0]);
    assert_eq!(view.nodes[0].node, node(0));

    etcd.kill();
    let view = until(&ours, |view| view.stale_since.is_some());
    assert_eq!(numbers(&view), [0]);
    until_unconfirmed(&first);
    // Made while nobody can take it.
    let second = theirs.announce(&prefill(), node(1)).unwrap();
    // Longer than the lease: the server will have forgotten the first.
    thread::sleep(LEASE + Duration::from_secs(1));
    let view = ours.view(&prefill()).unwrap();
    assert_eq!(numbers(&view), [0]);
    assert!(view.age(Instant::now()).unwrap() >= LEASE);

    etcd.restart();
    until(&ours, |view| {
        numbers(view) == [0, 1] && view.stale_since.is_none()
    });
    until_listed(&first);
    until_listed(&second);
    drop(first);
    until(&ours, |view| numbers(view) == [1]);
    drop(theirs);
    until(&ours, |view| numbers(view).is_empty());
    // Whoever was found last is still told, for a while, as no longer listed.
    drop(second);
}

/// A server without its data is given it again by those whose it is; who is linked to is not dropped meanwhile.
fn restarted_without_its_data() {
    let mut etcd = Etcd::start();
    let [ours, theirs] = [open(&etcd.source()), open(&etcd.source())];
    ours.watch(&prefill()).unwrap();
    let kept = theirs.announce(&prefill(), node(0)).unwrap();
    // Written by hand, so that nobody will write it again.
    until_listed(&kept);
    etcd.put("/test/prefill/00005", &node(5).encode());
    until(&ours, |view| numbers(view) == [0, 5]);
    let pin = ours.pin(&prefill(), &NodeKey::Number(5));

    etcd.kill();
    until(&ours, |view| view.stale_since.is_some());
    std::fs::remove_dir_all(etcd.data.path().join("data")).unwrap();
    etcd.restart();
    let late = theirs.announce(&prefill(), node(1)).unwrap();
    let view = until(&ours, |view| numbers(view) == [0, 1]);
    until_listed(&kept);
    until_listed(&late);
    assert!(
        view.get(&NodeKey::Number(5))
            .unwrap()
            .withdrawn_since
            .is_some()
    );
    thread::sleep(LEASE + Duration::from_secs(1));
    let view = ours.view(&prefill()).unwrap();
    assert!(
        view.get(&NodeKey::Number(5)).is_some(),
        "a peer that is linked to was dropped"
    );
    drop(pin);
    until(&ours, |view| view.get(&NodeKey::Number(5)).is_none());
}

/// A server that takes connections and never answers.
fn a_stopped_server_blocks_nobody() {
    let etcd = Etcd::start();
    let directory = open(&etcd.source());
    directory.watch(&prefill()).unwrap();
    let announcement = directory.announce(&prefill(), node(0)).unwrap();
    until(&directory, |view| numbers(view) == [0]);
    etcd.signal(Signal::STOP);
    let start = Instant::now();
    let mut longest = Duration::ZERO;
    while directory.view(&prefill()).unwrap().stale_since.is_none() {
        assert!(start.elapsed() < SOON);
        let asked = Instant::now();
        assert_eq!(numbers(&directory.view(&prefill()).unwrap()), [0]);
        longest = longest.max(asked.elapsed());
        thread::sleep(Duration::from_millis(1));
    }
    // A lookup takes microseconds; a question to the server, seconds.
    assert!(longest < Duration::from_millis(500), "{longest:?}");
    etcd.signal(Signal::CONT);
    until(&directory, |view| {
        numbers(view) == [0] && view.stale_since.is_none()
    });
    until_listed(&announcement);
}

fn a_killed_node_is_unlisted() {
    let etcd = Etcd::start();
    let directory = open(&etcd.source());
    directory.watch(&prefill()).unwrap();
    let mut node = Command::new(std::env::current_exe().unwrap())
        .env(ANNOUNCER, etcd.source())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until(&directory, |view| numbers(view) == [7]);
    node.kill().unwrap();
    node.wait().unwrap();
    let killed = Instant::now();
    until(&directory, |view| numbers(view).is_empty());
    // etcd gives a lease at least as long as was asked for, and looks for those that have ended twice a second.
    let took = killed.elapsed();
    assert!(took < LEASE * 3, "unlisted after {took:?}");
    println!("unlisted {took:?} after it was killed, with a lease of {LEASE:?}");
}

/// What others have put under our keys is skipped, and the rest is used.
fn foreign_entries_do_no_harm() {
    let etcd = Etcd::start();
    let directory = open(&etcd.source());
    let announcement = directory.announce(&prefill(), node(3)).unwrap();
    until_listed(&announcement);
    etcd.put("/test/prefill/00001", "no JSON");
    etcd.put("/test/prefill/00002", &node(4).encode());
    etcd.put(
        "/test/prefill/00009",
        r#"{"node": 9, "addresses": ["tcp:0.0.0.0:1"]}"#,
    );
    etcd.put(
        "/test/prefill/00010",
        &(" ".repeat(100_000) + &node(10).encode()),
    );
    etcd.put("/test/prefillet/00000", &node(0).encode());
    etcd.put("/test/prefill", &node(0).encode());
    directory.watch(&prefill()).unwrap();
    until(&directory, |view| numbers(view) == [3]);
}

/// An engine's node, as it announces itself.
fn announced(live: &Live) -> Node {
    let ranks = (0..live.shape.tp).collect();
    let node = Node::at(live.engine.addresses().to_vec()).unwrap();
    node.numbered(0).holding(ranks).unwrap()
}

fn name(name: &str) -> EngineName {
    name.parse().unwrap()
}

/// Moves a request, and compares every byte of the consumer's memory.
fn moves(producer: &Live, consumer: &Live, number: u64) {
    let tokens = 1 + (number * 17 % 400) as u32;
    let its = producer.shape.request(tokens, number as u32 % 7);
    let own = consumer.shape.request(tokens, number as u32 % 3);
    let before = consumer.copy();
    let offer = Offer::new(number, its.clone(), SOON);
    let handle = producer.engine.offer(offer).unwrap();
    let pull = Pull::new(handle, own.clone(), Duration::from_secs(5));
    let transfer = consumer.engine.pull(pull).unwrap().unwrap();
    let (report, fenced) = consumer.ended(transfer, Duration::from_secs(6));
    assert!(report.is_committed() && fenced, "{number}: {report:?}");
    let wanted = wanted((producer, &its), (consumer, &own), before);
    assert!(same(&consumer.copy(), &wanted), "request {number}");
}

/// Engines that found each other there go on while it is killed, restarted, and loses its data; one that comes after is
/// found.
fn transfers_do_not_notice_that_it_is_lost() {
    let mut etcd = Etcd::start();
    let fabric = fabric("tcp");
    let producer = Live::start(&fabric, "prefill", &Shape::PREFILL, 11, 1);
    let decode = Live::start(&fabric, "decode", &Shape::DECODE, 12, 2);
    let [ours, theirs] = [open(&etcd.source()), open(&etcd.source())].map(Arc::new);
    let engines = vec![name("prefill"), name("late")];
    decode.engine.follow(Arc::clone(&ours), engines).unwrap();
    let back = vec![name("decode")];
    producer.engine.follow(Arc::clone(&theirs), back).unwrap();
    let its = theirs.announce(&name("prefill"), announced(&producer));
    let own = ours.announce(&name("decode"), announced(&decode));
    let (its, own) = (its.unwrap(), own.unwrap());
    decode.linked("prefill");

    let mut number = 0;
    let mut go_on = |until: &dyn Fn() -> bool| {
        let start = Instant::now();
        // One at least, and one after it has come to be so.
        loop {
            let is_so = until();
            number += 1;
            moves(&producer, &decode, number);
            if is_so {
                return number;
            }
            assert!(start.elapsed() < SOON, "not so after {SOON:?}");
        }
    };
    let stale = |directory: &Directory| {
        let view = directory.view(&prefill()).unwrap();
        view.stale_since.is_some()
    };
    let for_longer_than_the_lease = || {
        let killed = Instant::now();
        move || killed.elapsed() > LEASE + Duration::from_secs(2)
    };
    let listed =
        |announcement: &Announcement| matches!(announcement.standing(), Standing::Listed { .. });
    go_on(&|| listed(&its) && listed(&own));
    etcd.kill();
    go_on(&|| stale(&ours));
    go_on(&for_longer_than_the_lease());
    etcd.restart();
    go_on(&|| listed(&its) && listed(&own) && !stale(&ours));

    etcd.kill();
    std::fs::remove_dir_all(etcd.data.path().join("data")).unwrap();
    go_on(&|| stale(&ours));
    etcd.restart();
    go_on(&|| listed(&its) && listed(&own) && !stale(&ours));
    let moved = go_on(&for_longer_than_the_lease());

    let late = Live::start(&fabric, "late", &Shape::PREFILL, 13, 3);
    let last = open(&etcd.source());
    let announcement = last.announce(&name("late"), announced(&late)).unwrap();
    until_listed(&announcement);
    decode.linked("late");
    moves(&late, &decode, 1);
    let (counters, links, _) = decode.engine.counters().unwrap();
    // All over the first link of each.
    assert_eq!((links, counters.links_ready), (2, 2));
    println!("{moved} transfers while etcd was killed twice and lost its data once");
}
