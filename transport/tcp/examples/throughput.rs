//! Batches over loopback, held against a plain socket.
//!
//! ```text
//! cargo run --release -p moai-transport-tcp --example throughput
//! ```
//!
//! Moves 4 GiB in batches of 256 KiB from one thread to another, five rounds of each way, and prints
//! the median. The bound is a loop of `write_all` and `read_exact` with blocks of the same size over
//! the same loopback, in the same run. Posting includes copying the payload into the staging ring,
//! which the bound does not do.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use moai_memory::Region;
use moai_transport::{
    Batch, Closed, Handler, Interface, Landing, PeerId, Piece, Posted, Reject, Stats,
};
use moai_transport_tcp::{TcpConfig, TcpInterface, tcp_address};

const BATCH_BYTES: u32 = 256 << 10;
const BATCHES: u64 = 16 << 10;
const ROUNDS: usize = 5;

/// Bytes of one piece of a scattered landing: a bf16 row of 16 tokens, one head of 128.
const PIECE_BYTES: u32 = 4 << 10;

/// Counts what lands and looks at its first and last word.
struct Sink {
    landing: Landing,
    regions: Vec<Region>,
    piece_bytes: u32,
    landed: u64,
    may_post: bool,
    peer: Option<PeerId>,
    over: bool,
}

impl Sink {
    fn new(landing: Landing, piece_bytes: u32) -> Self {
        let region = || Region::host_zeroed(2 * u64::from(BATCH_BYTES)).expect("memory");
        Self {
            landing,
            regions: vec![region(), region()],
            piece_bytes,
            landed: 0,
            may_post: true,
            peer: None,
            over: false,
        }
    }

    /// Piece `at` of a batch: every other piece in the other region, with a gap behind it.
    fn piece(&self, at: u32) -> Piece {
        Piece {
            region: at % 2,
            offset: u64::from(at / 2) * 2 * u64::from(self.piece_bytes),
            bytes: self.piece_bytes,
        }
    }
}

impl Handler for Sink {
    fn connected(&mut self, peer: PeerId, _incoming: bool) {
        self.peer = Some(peer);
    }

    fn message(&mut self, _peer: PeerId, _bytes: &[u8]) -> Result<(), Reject> {
        Ok(())
    }

    fn landing(&mut self, _peer: PeerId, _batch: Batch) -> Result<Landing, Reject> {
        Ok(self.landing)
    }

    fn pieces(
        &mut self,
        _peer: PeerId,
        batch: Batch,
        from: u32,
        most: usize,
        out: &mut Vec<Piece>,
    ) -> Result<(), Reject> {
        let first = from / self.piece_bytes;
        let last = (first + most as u32).min(batch.bytes / self.piece_bytes);
        out.extend((first..last).map(|at| self.piece(at)));
        Ok(())
    }

    fn regions(&mut self) -> &mut [Region] {
        &mut self.regions
    }

    fn landed(&mut self, _peer: PeerId, batch: Batch, staged: Option<&[u8]>) -> Result<(), Reject> {
        let last = self.piece(batch.bytes / self.piece_bytes - 1);
        let (first, last) = match staged {
            Some(payload) => (payload[0], payload[payload.len() - 1]),
            None => (
                self.regions[0].as_slice()[0],
                self.regions[last.region as usize].as_slice()
                    [(last.offset + u64::from(last.bytes)) as usize - 1],
            ),
        };
        assert_eq!((first, last), (batch.id as u8, batch.id as u8));
        self.landed += 1;
        Ok(())
    }

    fn writable(&mut self, _peer: PeerId) {
        self.may_post = true;
    }

    fn closed(&mut self, _peer: PeerId, _why: Closed) {
        self.over = true;
    }
}

/// Seconds that the batches took, and what the receiver counted.
fn fabric(landing: Landing, piece_bytes: u32) -> (f64, Stats) {
    let listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let mut receiver = TcpInterface::new(TcpConfig {
        listen,
        ..TcpConfig::default()
    })
    .expect("listening");
    let address = receiver.listening().expect("an address");
    let start = Instant::now();
    let receiving = thread::spawn(move || {
        let mut sink = Sink::new(landing, piece_bytes);
        while !sink.over {
            receiver.poll(None, &mut sink).expect("polling");
        }
        assert_eq!(sink.landed, BATCHES);
        receiver.stats()
    });
    let mut sender = TcpInterface::new(TcpConfig::default()).expect("opening");
    let peer = sender.connect(&tcp_address(address)).expect("connecting");
    let source = vec![0_u8; BATCH_BYTES as usize];
    let mut sink = Sink::new(landing, piece_bytes);
    let mut id = 0;
    while id < BATCHES {
        let batch = Batch {
            id,
            bytes: BATCH_BYTES,
        };
        let posted = sender.post(peer, batch, &mut |room| {
            room.copy_from_slice(&source);
            room[0] = id as u8;
            room[BATCH_BYTES as usize - 1] = id as u8;
        });
        if posted.expect("posting") == Posted::Done {
            id += 1;
            continue;
        }
        sink.may_post = false;
        while !sink.may_post {
            sender.poll(None, &mut sink).expect("polling");
        }
    }
    sender.finish(peer);
    while !sink.over {
        sender.poll(None, &mut sink).expect("polling");
    }
    let stats = receiving.join().expect("the receiver");
    (start.elapsed().as_secs_f64(), stats)
}

/// The bound: the same bytes through a plain socket.
fn plain() -> f64 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listening");
    let address = listener.local_addr().expect("an address");
    let start = Instant::now();
    let receiving = thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("accepting");
        let mut block = vec![0; BATCH_BYTES as usize];
        for id in 0..BATCHES {
            socket.read_exact(&mut block).expect("reading");
            assert_eq!(block[0], id as u8);
        }
    });
    let mut socket = TcpStream::connect(address).expect("connecting");
    socket.set_nodelay(true).expect("no delay");
    let mut block = vec![0; BATCH_BYTES as usize];
    for id in 0..BATCHES {
        block[0] = id as u8;
        socket.write_all(&block).expect("writing");
    }
    receiving.join().expect("the receiver");
    start.elapsed().as_secs_f64()
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn main() {
    let ways: [(&str, Landing, u32); 3] = [
        ("staged", Landing::Staged, BATCH_BYTES),
        ("direct, one piece", Landing::Direct, BATCH_BYTES),
        ("direct, pieces of 4 KiB", Landing::Direct, PIECE_BYTES),
    ];
    let bytes = BATCHES as f64 * f64::from(BATCH_BYTES);
    // Rounds of all ways in turn, so that a busy moment of the machine hits each of them.
    let mut bound = Vec::new();
    let mut times = vec![Vec::new(); ways.len()];
    let mut counted = vec![Stats::default(); ways.len()];
    for _ in 0..ROUNDS {
        bound.push(plain());
        for (at, &(_, landing, piece_bytes)) in ways.iter().enumerate() {
            let (seconds, stats) = fabric(landing, piece_bytes);
            times[at].push(seconds);
            counted[at] = stats;
        }
    }
    let bound = median(bound);
    println!(
        "{:<24} {:6.2} GB/s  bound",
        "plain socket",
        bytes / bound / 1e9
    );
    for (at, (name, ..)) in ways.iter().enumerate() {
        let seconds = median(std::mem::take(&mut times[at]));
        let stats = counted[at];
        println!(
            "{name:<24} {:6.2} GB/s  {:3.0} % of bound, {:.1} reads and {:.1} waits per batch, {:.1} % copied",
            bytes / seconds / 1e9,
            100.0 * bound / seconds,
            stats.reads as f64 / BATCHES as f64,
            stats.waits as f64 / BATCHES as f64,
            100.0 * stats.copied_bytes as f64 / bytes,
        );
    }
}
