//! What protecting links costs: handshakes, and throughput with payload sealed, open and plain.
//!
//! ```text
//! cargo run --release -p moai-transport-tcp --example secure
//! ```
//!
//! Two threads on loopback, plain, sealed and open in turn within each round, medians of the rounds. Batches of 256 KiB are
//! posted and land in one piece; puts and gets are of 64 MiB in pieces of 256 KiB and of 1 KiB. What lands is compared. One
//! process then connects to 128 that listen, with a certificate each, until it knows all of them.

#[path = "../tests/common/authority.rs"]
mod authority;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use authority::{Authority, Wanted, shared_key};
use moai_memory::Region;
use moai_transport::{
    Batch, Closed, Handler, Interface, Landing, PeerId, Piece, Pieces, Posted, Reject, Rights,
    Token,
};
use moai_transport_tcp::{CertificateFiles, Security, TcpConfig, TcpInterface, tcp_address};

const ROUNDS: usize = 5;
const BATCH_BYTES: u32 = 256 << 10;
const BATCHES: u64 = 1024;
const REGION_BYTES: usize = 64 << 20;
const HANDSHAKES: usize = 200;
const PEERS: usize = 128;

/// One side: memory, and what happened.
struct Side {
    regions: Vec<Region>,
    connected: Vec<PeerId>,
    keys: Vec<Vec<u8>>,
    landed: u64,
    may_post: bool,
}

impl Side {
    fn new(fill: u8) -> Self {
        Self {
            regions: vec![Region::from_host(vec![fill; REGION_BYTES])],
            connected: Vec::new(),
            keys: Vec::new(),
            landed: 0,
            may_post: true,
        }
    }
}

impl Handler for Side {
    fn connected(&mut self, peer: PeerId, _incoming: bool) {
        self.connected.push(peer);
    }

    fn message(&mut self, _peer: PeerId, bytes: &[u8]) -> Result<(), Reject> {
        self.keys.push(bytes.to_vec());
        Ok(())
    }

    fn landing(&mut self, _peer: PeerId, _batch: Batch) -> Result<Landing, Reject> {
        Ok(Landing::Direct)
    }

    fn pieces(
        &mut self,
        _peer: PeerId,
        batch: Batch,
        from: u32,
        _most: usize,
        out: &mut Vec<Piece>,
    ) -> Result<(), Reject> {
        out.push(Piece {
            region: 0,
            offset: from.into(),
            bytes: batch.bytes - from,
        });
        Ok(())
    }

    fn regions(&mut self) -> &mut [Region] {
        &mut self.regions
    }

    fn landed(
        &mut self,
        _peer: PeerId,
        batch: Batch,
        _staged: Option<&[u8]>,
    ) -> Result<(), Reject> {
        assert_eq!(self.regions[0].as_slice()[0], batch.id as u8);
        self.landed += 1;
        Ok(())
    }

    fn writable(&mut self, _peer: PeerId) {
        self.may_post = true;
    }

    fn closed(&mut self, _peer: PeerId, why: Closed) {
        assert!(matches!(why, Closed::ByPeer | Closed::ByUs), "{why}");
    }
}

fn certified(authority: &Authority, name: &str) -> Security {
    let id = format!("spiffe://bench/{name}");
    let (certificate, key) = authority.issue(name, &Wanted::named(&[&id]));
    Security::Certificate(CertificateFiles {
        certificate,
        key,
        authorities: authority.file(),
        allow: "spiffe://bench/*".parse().expect("a pattern"),
    })
}

fn config(security: &Security, seal_payload: bool) -> TcpConfig {
    TcpConfig {
        security: security.clone(),
        seal_payload,
        ..TcpConfig::default()
    }
}

/// A process of its own, as far as the link is concerned: registers its region, tells its key, and serves.
struct Peer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

fn peer(config: TcpConfig) -> Peer {
    let listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let mut interface = TcpInterface::new(TcpConfig { listen, ..config }).expect("listening");
    let address = interface.listening().expect("an address");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let thread = thread::spawn(move || {
        let mut side = Side::new(0);
        let rights = Rights::READ.and(Rights::WRITE);
        let id = interface
            .register(0, &side.regions[0], rights)
            .expect("registering");
        let mut told = 0;
        while !stopped.load(Ordering::Relaxed) {
            interface
                .poll(Some(Duration::from_millis(20)), &mut side)
                .expect("polling");
            while told < side.connected.len() {
                let peer = side.connected[told];
                let key = interface.remote_key(peer, id).expect("a key");
                let _ = interface.send(peer, &key).expect("sending");
                told += 1;
            }
        }
        side.landed
    });
    Peer {
        address,
        stop,
        thread,
    }
}

impl Peer {
    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the peer")
    }
}

/// Connects, and waits for the peer's key.
fn connect(interface: &mut TcpInterface, side: &mut Side, address: SocketAddr) -> PeerId {
    let keys = side.keys.len();
    let peer = interface
        .connect(&tcp_address(address))
        .expect("connecting");
    // The side that connects speaks first.
    let _ = interface.send(peer, b"hello").expect("sending");
    while side.keys.len() == keys {
        interface.poll(None, side).expect("polling");
    }
    peer
}

/// Bytes a second of batches, puts and gets of long pieces, and puts of short ones.
fn throughput(security: &Security, seal_payload: bool) -> [f64; 4] {
    let served = peer(config(security, seal_payload));
    let mut interface = TcpInterface::new(config(security, seal_payload)).expect("opening");
    let mut side = Side::new(7);
    let to = connect(&mut interface, &mut side, served.address);
    let remote = interface.import(to, &side.keys[0].clone()).expect("a key");
    let mut token = 0;
    let mut operate = |interface: &mut TcpInterface, side: &mut Side, put: bool, bytes: u32| {
        let of = |region| {
            [Pieces {
                region,
                bytes,
                count: REGION_BYTES as u32 / bytes,
                stride: bytes.into(),
                offsets: &[0],
            }]
        };
        token += 1;
        let start = Instant::now();
        let posted = match put {
            true => interface.put(&mut side.regions, to, &of(0), &of(remote), Token(token)),
            false => interface.get(&mut side.regions, to, &of(0), &of(remote), Token(token)),
        };
        assert_eq!(posted.expect("posting"), Posted::InFlight(Token(token)));
        let ended = loop {
            interface.poll(None, side).expect("polling");
            if let Some(ended) = interface.completion() {
                break ended;
            }
        };
        assert_eq!(ended.outcome, Ok(()));
        REGION_BYTES as f64 / start.elapsed().as_secs_f64()
    };
    // Once without being timed: pages and buffers.
    operate(&mut interface, &mut side, true, BATCH_BYTES);
    let put = operate(&mut interface, &mut side, true, BATCH_BYTES);
    side.regions[0].as_mut_slice().fill(0);
    let get = operate(&mut interface, &mut side, false, BATCH_BYTES);
    assert!(
        side.regions[0].as_slice().iter().all(|&byte| byte == 7),
        "the bytes that were put"
    );
    let short = operate(&mut interface, &mut side, true, 1 << 10);
    let start = Instant::now();
    let source = vec![0_u8; BATCH_BYTES as usize];
    let mut id = 0;
    while id < BATCHES {
        let bytes = BATCH_BYTES;
        let posted = interface.post(to, Batch { id, bytes }, &mut |room| {
            room.copy_from_slice(&source);
            room[0] = id as u8;
        });
        if posted.expect("posting") == Posted::Done {
            id += 1;
            continue;
        }
        side.may_post = false;
        while !side.may_post {
            interface.poll(None, &mut side).expect("polling");
        }
    }
    // A get is answered behind them.
    operate(&mut interface, &mut side, false, REGION_BYTES as u32);
    let extra = REGION_BYTES as f64;
    let all = BATCHES as f64 * f64::from(BATCH_BYTES) + extra;
    let batches = all / start.elapsed().as_secs_f64();
    interface.close(to);
    assert_eq!(served.end(), BATCHES);
    [batches, put, get, short]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// From connecting to the peer's first message, in microseconds: the median and the 99th percentile.
fn handshake(security: &Security) -> (f64, f64) {
    let served = peer(config(security, true));
    let mut interface = TcpInterface::new(config(security, true)).expect("opening");
    let mut side = Side::new(7);
    let mut times: Vec<f64> = (0..HANDSHAKES)
        .map(|_| {
            let start = Instant::now();
            let peer = connect(&mut interface, &mut side, served.address);
            let took = start.elapsed().as_secs_f64() * 1e6;
            interface.close(peer);
            took
        })
        .collect();
    served.end();
    times.sort_by(f64::total_cmp);
    (times[HANDSHAKES / 2], times[HANDSHAKES * 99 / 100])
}

/// Seconds until one process knows [`PEERS`] others, connecting to all of them at once.
fn with_many(authority: &Authority) -> f64 {
    let listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let mut listening: Vec<_> = (0..PEERS)
        .map(|at| {
            let security = certified(authority, &format!("peer-{at}"));
            let config = config(&security, true);
            TcpInterface::new(TcpConfig { listen, ..config }).expect("listening")
        })
        .collect();
    let addresses: Vec<_> = listening
        .iter()
        .map(|it| it.listening().expect("an address"))
        .collect();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let serving = thread::spawn(move || {
        let mut side = Side::new(0);
        while !stopped.load(Ordering::Relaxed) {
            for interface in &mut listening {
                interface
                    .poll(Some(Duration::ZERO), &mut side)
                    .expect("polling");
            }
        }
        side.connected.len()
    });
    let security = certified(authority, "one");
    let mut interface = TcpInterface::new(config(&security, true)).expect("opening");
    let mut side = Side::new(0);
    let start = Instant::now();
    for address in addresses {
        let peer = interface
            .connect(&tcp_address(address))
            .expect("connecting");
        let _ = interface.send(peer, b"hello").expect("sending");
    }
    while side.connected.len() < PEERS {
        interface.poll(None, &mut side).expect("polling");
    }
    let took = start.elapsed().as_secs_f64();
    assert_eq!(interface.stats().authenticated, PEERS as u64);
    stop.store(true, Ordering::Relaxed);
    assert_eq!(serving.join().expect("the peers"), PEERS);
    took
}

fn main() {
    let authority = Authority::new();
    let by_name = certified(&authority, "a");
    let path = authority.path("shared.pem");
    shared_key(&path);
    let ways = [
        ("plain", Security::None, true),
        ("payload open", by_name.clone(), false),
        ("payload sealed", by_name.clone(), true),
    ];
    let mut rounds = vec![[const { Vec::new() }; 4]; ways.len()];
    for _ in 0..ROUNDS {
        for (way, results) in ways.iter().zip(&mut rounds) {
            for (value, of) in throughput(&way.1, way.2).into_iter().zip(results) {
                of.push(value);
            }
        }
    }
    println!(
        "{:<16} {:>9} {:>9} {:>9} {:>9}   GB/s",
        "", "batches", "put", "get", "put 1 KiB"
    );
    for ((name, ..), results) in ways.iter().zip(rounds) {
        let [batches, put, get, short] = results.map(|values| median(values) / 1e9);
        println!("{name:<16} {batches:>9.2} {put:>9.2} {get:>9.2} {short:>9.2}");
    }
    for (name, security) in [
        ("plain", Security::None),
        ("certificates", by_name),
        ("shared key", Security::SharedKey(path)),
    ] {
        let (median, slow) = handshake(&security);
        println!(
            "{name:<16} {median:>6.0} us p50, {slow:>6.0} us p99 from connecting to the peer's first message"
        );
    }
    let times: Vec<_> = (0..ROUNDS).map(|_| with_many(&authority)).collect();
    println!("{PEERS} peers at once: {:.0} ms", median(times) * 1e3);
}
