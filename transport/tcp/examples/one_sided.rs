//! Puts and gets of scattered pieces between two processes, held against plain sockets.
//!
//! ```text
//! cargo run --release -p moai-transport-tcp --example one_sided [LANES [SPIN_US]]
//! ```
//!
//! Pieces lie in a random order all over 64 MiB on both sides. The bound is a loop of `write_all` and `read_exact`
//! of 256 KiB blocks over as many sockets and the same 64 MiB, in the same run; rounds of all ways take turns, and
//! medians are printed. Then the time from a put of 256 bytes to its completion, held against 256 bytes there and
//! 32 back over a blocking socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use moai_memory::Region;
use moai_transport::{
    Batch, Closed, Handler, Interface, Landing, PeerId, Piece, Pieces, Posted, Reject, Rights,
    Token,
};
use moai_transport_tcp::{TcpConfig, TcpInterface};

const SET_BYTES: u64 = 64 << 20;
const BLOCK_BYTES: usize = 256 << 10;
const OPERATION_BYTES: u64 = 4 << 20;
const IN_FLIGHT: usize = 4;
const ROUND_BYTES: u64 = 1 << 29;
const ROUNDS: usize = 5;
const PINGS: u32 = 5000;

struct Memory {
    regions: Vec<Region>,
    peer: Option<PeerId>,
    message: Vec<u8>,
    over: bool,
}

impl Memory {
    fn new() -> Self {
        let mut region = Region::host_zeroed(SET_BYTES).expect("memory");
        region.as_mut_slice().fill(1);
        Self {
            regions: vec![region],
            peer: None,
            message: Vec::new(),
            over: false,
        }
    }
}

impl Handler for Memory {
    fn connected(&mut self, peer: PeerId, _incoming: bool) {
        self.peer = Some(peer);
    }

    fn message(&mut self, _peer: PeerId, bytes: &[u8]) -> Result<(), Reject> {
        self.message = bytes.to_vec();
        Ok(())
    }

    fn landing(&mut self, _peer: PeerId, _batch: Batch) -> Result<Landing, Reject> {
        Err(Reject("no batches here".to_owned()))
    }

    fn pieces(
        &mut self,
        _peer: PeerId,
        _batch: Batch,
        _from: u32,
        _most: usize,
        _out: &mut Vec<Piece>,
    ) -> Result<(), Reject> {
        Err(Reject("no batches here".to_owned()))
    }

    fn regions(&mut self) -> &mut [Region] {
        &mut self.regions
    }

    fn landed(&mut self, _peer: PeerId, _batch: Batch, _: Option<&[u8]>) -> Result<(), Reject> {
        Ok(())
    }

    fn writable(&mut self, _peer: PeerId) {}

    fn closed(&mut self, _peer: PeerId, _why: Closed) {
        self.over = true;
    }
}

/// The other process: memory that is put into and got from, and the far ends of plain sockets.
fn serve(lanes: u32) {
    let listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let config = TcpConfig {
        listen,
        lanes,
        ..TcpConfig::default()
    };
    let mut interface = TcpInterface::new(config).expect("listening");
    let plain = TcpListener::bind(("127.0.0.1", 0)).expect("listening");
    println!(
        "{} {}",
        interface.addresses()[0],
        plain.local_addr().expect("an address")
    );
    thread::spawn(move || serve_plain(&plain, lanes as usize));
    let mut memory = Memory::new();
    let rights = Rights::READ.and(Rights::WRITE);
    let id = interface
        .register(0, &memory.regions[0], rights)
        .expect("registering");
    while !memory.over {
        interface.poll(None, &mut memory).expect("polling");
        if let Some(peer) = memory.peer.take() {
            let key = interface.remote_key(peer, id).expect("a key");
            let _ = interface.send(peer, &key).expect("sending");
        }
    }
}

fn serve_plain(listener: &TcpListener, lanes: usize) {
    let accept = |_| listener.accept().expect("accepting").0;
    let mut sockets: Vec<TcpStream> = (0..lanes).map(accept).collect();
    for socket in &sockets {
        socket.set_nodelay(true).expect("no delay");
    }
    let mut set = vec![1; SET_BYTES as usize];
    let mut ping = [0; 256];
    loop {
        for at in 0..ROUND_BYTES as usize / BLOCK_BYTES {
            let start = at * BLOCK_BYTES % set.len();
            let block = &mut set[start..start + BLOCK_BYTES];
            if sockets[at % lanes].read_exact(block).is_err() {
                return;
            }
        }
        sockets[0].write_all(&[1; 32]).expect("answering");
        for _ in 0..PINGS {
            sockets[0].read_exact(&mut ping).expect("reading");
            sockets[0].write_all(&ping[..32]).expect("answering");
        }
    }
}

/// Seconds for a round over plain sockets, and microseconds for a ping.
fn plain(sockets: &mut [TcpStream], set: &[u8]) -> (f64, f64) {
    let lanes = sockets.len();
    let start = Instant::now();
    for at in 0..ROUND_BYTES as usize / BLOCK_BYTES {
        let from = at * BLOCK_BYTES % set.len();
        sockets[at % lanes]
            .write_all(&set[from..from + BLOCK_BYTES])
            .expect("writing");
    }
    let mut answer = [0; 32];
    sockets[0].read_exact(&mut answer).expect("an answer");
    let seconds = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for _ in 0..PINGS {
        sockets[0].write_all(&set[..256]).expect("writing");
        sockets[0].read_exact(&mut answer).expect("an answer");
    }
    (
        seconds,
        start.elapsed().as_secs_f64() * 1e6 / f64::from(PINGS),
    )
}

/// All places for pieces of `bytes`, in a random order.
fn scattered(bytes: u32, mut seed: u64) -> Vec<u64> {
    let mut places: Vec<u64> = (0..SET_BYTES / u64::from(bytes))
        .map(|at| at * u64::from(bytes))
        .collect();
    for at in (1..places.len()).rev() {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        places.swap(at, (seed >> 33) as usize % (at + 1));
    }
    places
}

/// A peer, with the number of its memory.
struct Far {
    interface: TcpInterface,
    memory: Memory,
    peer: PeerId,
    remote: u32,
}

impl Far {
    fn post(&mut self, is_put: bool, local: Pieces<'_>, remote: Pieces<'_>) -> Posted {
        let regions = &mut self.memory.regions;
        let (local, remote) = (&[local], &[remote]);
        let posted = if is_put {
            self.interface
                .put(regions, self.peer, local, remote, Token(0))
        } else {
            self.interface
                .get(regions, self.peer, local, remote, Token(0))
        };
        posted.expect("posting")
    }

    fn complete(&mut self) {
        loop {
            if let Some(completion) = self.interface.completion() {
                completion.outcome.expect("an operation that succeeds");
                return;
            }
            self.interface
                .poll(None, &mut self.memory)
                .expect("polling");
        }
    }

    /// Seconds for a round of operations.
    fn round(&mut self, is_put: bool, bytes: u32, here: &[u64], there: &[u64]) -> f64 {
        let each = (OPERATION_BYTES / u64::from(bytes)) as usize;
        let start = Instant::now();
        let mut in_flight = 0;
        for at in 0..(ROUND_BYTES / OPERATION_BYTES) as usize {
            let from = at * each % here.len();
            let local = Pieces {
                region: 0,
                bytes,
                count: 1,
                stride: 0,
                offsets: &here[from..from + each],
            };
            let remote = Pieces {
                region: self.remote,
                offsets: &there[from..from + each],
                ..local
            };
            if in_flight == IN_FLIGHT {
                self.complete();
                in_flight -= 1;
            }
            let _ = self.post(is_put, local, remote);
            in_flight += 1;
        }
        for _ in 0..in_flight {
            self.complete();
        }
        start.elapsed().as_secs_f64()
    }

    /// Microseconds from a put of 256 bytes to its completion.
    fn ping(&mut self) -> f64 {
        let start = Instant::now();
        for _ in 0..PINGS {
            let local = Pieces {
                region: 0,
                bytes: 256,
                count: 1,
                stride: 0,
                offsets: &[0],
            };
            let _ = self.post(
                true,
                local,
                Pieces {
                    region: self.remote,
                    ..local
                },
            );
            self.complete();
        }
        start.elapsed().as_secs_f64() * 1e6 / f64::from(PINGS)
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let lanes = |at: usize| {
        arguments
            .get(at)
            .map_or(1, |lanes| lanes.parse().expect("lanes"))
    };
    if arguments.first().is_some_and(|first| first == "serve") {
        return serve(lanes(1));
    }
    let lanes: u32 = lanes(0);
    let spin = Duration::from_micros(arguments.get(1).map_or(0, |us| us.parse().expect("spin")));
    let mut child = Command::new(env::current_exe().expect("this program"))
        .args(["serve".to_owned(), lanes.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the other process");
    let mut line = String::new();
    let out = child.stdout.take().expect("its output");
    BufReader::new(out)
        .read_line(&mut line)
        .expect("its addresses");
    let (address, plain_address) = line.trim().split_once(' ').expect("two addresses");
    let mut sockets: Vec<TcpStream> = (0..lanes)
        .map(|_| TcpStream::connect(plain_address).expect("connecting"))
        .collect();
    for socket in &sockets {
        socket.set_nodelay(true).expect("no delay");
    }
    let mut interface = TcpInterface::new(TcpConfig {
        lanes,
        spin,
        ..TcpConfig::default()
    })
    .expect("opening");
    let peer = interface
        .connect(&address.parse().expect("an address"))
        .expect("connecting");
    let _ = interface.send(peer, b"hello").expect("sending");
    let mut memory = Memory::new();
    while memory.message.is_empty() {
        interface.poll(None, &mut memory).expect("polling");
    }
    let remote = interface.import(peer, &memory.message).expect("a key");
    let mut far = Far {
        interface,
        memory,
        peer,
        remote,
    };
    let sizes: [u32; 4] = [256, 4 << 10, 64 << 10, 1 << 20];
    let places = sizes.map(|bytes| (scattered(bytes, 1), scattered(bytes, 2)));
    let set = vec![1_u8; SET_BYTES as usize];
    let (mut bound, mut plain_ping, mut ping) = (Vec::new(), Vec::new(), Vec::new());
    let mut times = vec![Vec::new(); 2 * sizes.len()];
    for _ in 0..ROUNDS {
        let (seconds, us) = plain(&mut sockets, &set);
        bound.push(seconds);
        plain_ping.push(us);
        for (at, times) in times.iter_mut().enumerate() {
            let (here, there) = &places[at / 2];
            times.push(far.round(at % 2 == 0, sizes[at / 2], here, there));
        }
        ping.push(far.ping());
    }
    let bound = median(&mut bound);
    println!(
        "{lanes} lanes\n{:<22} {:6.2} GB/s  bound",
        "plain sockets",
        ROUND_BYTES as f64 / bound / 1e9
    );
    for (at, times) in times.iter_mut().enumerate() {
        let seconds = median(times);
        println!(
            "{} of {:>7} bytes   {:6.2} GB/s  {:3.0} % of bound, {:.2} M pieces/s",
            ["put", "get"][at % 2],
            sizes[at / 2],
            ROUND_BYTES as f64 / seconds / 1e9,
            100.0 * bound / seconds,
            ROUND_BYTES as f64 / f64::from(sizes[at / 2]) / seconds / 1e6,
        );
    }
    let (plain_ping, ping) = (median(&mut plain_ping), median(&mut ping));
    println!(
        "put of 256 bytes, to its completion: {ping:.1} us; plain {plain_ping:.1} us; {:.2} of it",
        ping / plain_ping
    );
    far.interface.close(peer);
    child.wait().expect("the other process");
}
