//! Strangers at a port never disturb a transfer that is under way, and each of them is bounded and counted.
//!
//! One test in a process of its own, because it counts the process's descriptors.

mod common;

#[path = "common/authority.rs"]
mod authority;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use authority::{Authority, shared_key};
use common::{HANG, Node, Policy, Random, hello, pair};
use moai_memory::Region;
use moai_transport::wire::Header;
use moai_transport::{Batch, Interface, PeerId, Pieces, Posted, Rights, Token};
use moai_transport_tcp::{Security, TcpConfig};

const PATIENCE: Duration = Duration::from_millis(1500);
/// Between two bytes of who is slow: what it says would take it many times the node's patience.
const SLOWLY: Duration = Duration::from_millis(40);

const SCANS: usize = 100;
const WRONG: usize = 40;
const SLOW: usize = 10;
const FLOOD: usize = 300;

/// Handshakes that a node lets go on at a time.
const HANDSHAKES: usize = 128;

const PIECE: u32 = 16 << 10;
const PIECES: u32 = 256;

/// A transfer between two that know each other.
struct Transfer {
    node: Node,
    healthy: Node,
    to: PeerId,
    remote: u32,
    random: Random,
    times: u64,
    longest: Duration,
}

impl Transfer {
    fn new(config: &TcpConfig) -> Self {
        let mut node = Node::listening(config.clone(), Policy::Staged);
        let mut healthy = Node::new(config.clone(), Policy::Staged);
        let (to, from) = pair(&mut healthy, &mut node);
        for side in [&mut node, &mut healthy] {
            let region = Region::from_host(vec![0; (PIECE * PIECES) as usize]);
            side.recorder.regions = vec![region];
        }
        let id = node
            .interface
            .register(0, &node.recorder.regions[0], Rights::WRITE)
            .unwrap();
        let key = node.interface.remote_key(from, id).unwrap();
        let remote = healthy.interface.import(to, &key).unwrap();
        Self {
            node,
            healthy,
            to,
            remote,
            random: Random(17),
            times: 0,
            longest: Duration::ZERO,
        }
    }

    /// Writes all pieces into the node, and compares them.
    fn go_on(&mut self) {
        let of = |region| {
            [Pieces {
                region,
                bytes: PIECE,
                count: PIECES,
                stride: PIECE.into(),
                offsets: &[0],
            }]
        };
        self.random
            .fill(self.healthy.recorder.regions[0].as_mut_slice());
        let start = Instant::now();
        self.times += 1;
        let posted = self.healthy.interface.put(
            &mut self.healthy.recorder.regions,
            self.to,
            &of(0),
            &of(self.remote),
            Token(self.times),
        );
        assert_eq!(posted.unwrap(), Posted::InFlight(Token(self.times)));
        let ended = loop {
            assert!(start.elapsed() < HANG, "hangs");
            self.healthy.poll(Duration::ZERO);
            self.node.poll(Duration::from_millis(1));
            if let Some(ended) = self.healthy.interface.completion() {
                break ended;
            }
        };
        assert_eq!(ended.outcome, Ok(()));
        self.longest = self.longest.max(start.elapsed());
        let [here, there] = [&self.healthy, &self.node].map(|side| &side.recorder.regions[0]);
        assert!(here.as_slice() == there.as_slice(), "what was written");
    }
}

/// The strangers, one kind after the other.
struct Strangers {
    address: SocketAddr,
    /// What those say who take the port for another kind, and the first of what a peer would say.
    wrong: Vec<u8>,
    begun: Vec<u8>,
    /// All of the flood are there, and none of the others any more.
    floods: Arc<AtomicBool>,
    is_seen: Arc<AtomicBool>,
}

impl Strangers {
    fn come(self) {
        let connect = || TcpStream::connect(self.address).unwrap();
        for _ in 0..SCANS {
            drop(connect());
        }
        let mut random = Random(5);
        let wrong: Vec<_> = (0..WRONG)
            .map(|nth| {
                let mut socket = connect();
                let garbage = random.bytes(700);
                // It may have been turned away by now.
                let _ = socket.write_all(if nth % 2 == 0 { &garbage } else { &self.wrong });
                socket
            })
            .collect();
        wrong.into_iter().for_each(is_let_go);
        let since = Instant::now();
        let mut slow: Vec<_> = (0..SLOW).map(|_| connect()).collect();
        for byte in &self.begun {
            slow.retain_mut(|socket| {
                socket.set_nonblocking(true).unwrap();
                let is_there = matches!(
                    socket.read(&mut [0; 64]),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock
                );
                is_there && socket.write_all(&[*byte]).is_ok()
            });
            if slow.is_empty() {
                break;
            }
            thread::sleep(SLOWLY);
        }
        assert!(slow.is_empty(), "who is slow is waited for");
        let stayed = since.elapsed();
        assert!(stayed < 3 * PATIENCE, "who is slow stayed for {stayed:?}");
        let flood: Vec<_> = (0..FLOOD).map(|_| connect()).collect();
        self.floods.store(true, Ordering::SeqCst);
        let start = Instant::now();
        while !self.is_seen.load(Ordering::SeqCst) && start.elapsed() < HANG {
            thread::sleep(Duration::from_millis(1));
        }
        flood.into_iter().for_each(is_let_go);
    }
}

/// Waits until the other side has ended a connection.
fn is_let_go(mut socket: TcpStream) {
    socket.set_read_timeout(Some(HANG)).unwrap();
    let mut said = [0; 1024];
    loop {
        match socket.read(&mut said) {
            Ok(0) => return,
            // An alert.
            Ok(_) => {}
            Err(error) => {
                let kind = error.kind();
                assert_eq!(kind, std::io::ErrorKind::ConnectionReset, "{error}");
                return;
            }
        }
    }
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn strangers_at(what: &str, config: &TcpConfig, wrong: Vec<u8>, begun: Vec<u8>, most: usize) {
    let mut transfer = Transfer::new(config);
    for _ in 0..5 {
        transfer.go_on();
    }
    let before = transfer.node.interface.stats();
    let files = descriptors();
    let floods = Arc::new(AtomicBool::new(false));
    let is_seen = Arc::new(AtomicBool::new(false));
    let strangers = Strangers {
        address: transfer.node.address(),
        wrong,
        begun,
        floods: Arc::clone(&floods),
        is_seen: Arc::clone(&is_seen),
    };
    let coming = thread::spawn(move || strangers.come());
    let (mut held, mut turns) = (0, 0);
    transfer.longest = Duration::ZERO;
    let times = transfer.times;
    while !coming.is_finished() {
        transfer.go_on();
        if floods.load(Ordering::SeqCst) && !is_seen.load(Ordering::SeqCst) {
            held = held.max(descriptors().saturating_sub(files + FLOOD));
            turns += 1;
            is_seen.store(turns == 10, Ordering::SeqCst);
        }
    }
    coming.join().unwrap();
    let times = transfer.times - times;
    assert!(times > 50, "{what}: {times} transfers went on");
    let longest = transfer.longest;
    assert!(longest < PATIENCE, "{what}: one took {longest:?}");
    assert!(
        (1..=most).contains(&held),
        "{what}: {held} of {FLOOD} at a time, at most {most}"
    );
    // Every one of them is gone, and was counted.
    let all = (SCANS + WRONG + SLOW + FLOOD) as u64;
    let counted = |node: &Node| {
        let now = node.interface.stats();
        [
            now.closed - before.closed + now.rejected - before.rejected,
            now.distrusted - before.distrusted,
        ]
    };
    let start = Instant::now();
    while counted(&transfer.node)[0] < all {
        assert!(
            start.elapsed() < HANG,
            "{what}: {:?}",
            transfer.node.interface.stats()
        );
        transfer.go_on();
    }
    let [ended, distrusted] = counted(&transfer.node);
    assert_eq!(ended, all, "{what}");
    if config.security.is_on() {
        assert!(distrusted > 0, "{what}");
        let stats = transfer.node.interface.stats();
        assert_eq!(stats.accepted, before.accepted, "{what}");
    }
    assert_eq!(descriptors(), files, "{what}: something stays");
    println!("{what}: {times} transfers, {longest:?} at most; {held} of the flood at a time");
}

#[test]
fn strangers_are_bounded_and_counted_and_disturb_no_transfer() {
    let authority = Authority::new();
    let path = authority.path("shared.pem");
    shared_key(&path);
    let security = Security::SharedKey(path);
    let hello = hello(&security);
    // The beginning of a frame, of which much more would follow.
    let batch = Header::Batch(Batch {
        id: 1,
        bytes: 1 << 20,
    });
    let frame = [&batch.encode()[..], &[7; 200]].concat();
    let config = |lanes, max_peers, security: &Security| TcpConfig {
        lanes,
        max_peers,
        first_frame_timeout: PATIENCE,
        security: security.clone(),
        ..TcpConfig::default()
    };
    for lanes in [1, 3] {
        let config = config(lanes, 64, &Security::None);
        let most = 64 * lanes as usize;
        let what = format!("plain, {lanes} lanes");
        strangers_at(&what, &config, hello.clone(), frame.clone(), most);
    }
    for lanes in [1, 3] {
        let config = config(lanes, 300, &security);
        let what = format!("TLS, {lanes} lanes");
        strangers_at(&what, &config, frame.clone(), hello.clone(), HANDSHAKES);
    }
}
