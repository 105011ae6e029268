//! Measures this provider between two processes, beside what bounds it.
//!
//! ```text
//! cargo run --release -p moai-transport-shm --example measure
//! ```
//!
//! Puts and gets go from scattered pieces to scattered pieces, in one random order on either side, over working sets that
//! fit no cache. Beside each stands a loop of `memcpy` over the same pieces of this process alone, or the bare system
//! call with 1024 pieces at a time.

use std::env;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use moai_memory::{MemoryKind, Region};
use moai_transport::{
    Batch, Closed, Handler, Interface, Landing, PeerId, Piece, Pieces, Posted, Reject, Rights,
    Token,
};
use moai_transport_shm::{Listen, ShmConfig, ShmInterface};

const WORKING_SET: u64 = 256 << 20;

#[derive(Default)]
struct Told {
    regions: Vec<Region>,
    peer: Option<PeerId>,
    messages: Vec<Vec<u8>>,
    count: u64,
    is_closed: bool,
    keep: bool,
}

impl Handler for Told {
    fn connected(&mut self, peer: PeerId, _: bool) {
        self.peer = Some(peer);
    }
    fn message(&mut self, _: PeerId, bytes: &[u8]) -> Result<(), Reject> {
        self.count += 1;
        if self.keep {
            self.messages.push(bytes.to_vec());
        }
        Ok(())
    }
    fn landing(&mut self, _: PeerId, _: Batch) -> Result<Landing, Reject> {
        Ok(Landing::Staged)
    }
    fn pieces(
        &mut self,
        _: PeerId,
        _: Batch,
        _: u32,
        _: usize,
        _: &mut Vec<Piece>,
    ) -> Result<(), Reject> {
        Ok(())
    }
    fn regions(&mut self) -> &mut [Region] {
        &mut self.regions
    }
    fn landed(&mut self, _: PeerId, batch: Batch, _: Option<&[u8]>) -> Result<(), Reject> {
        self.count += u64::from(batch.bytes);
        Ok(())
    }
    fn writable(&mut self, _: PeerId) {}
    fn closed(&mut self, _: PeerId, _: Closed) {
        self.is_closed = true;
    }
}

fn region(kind: MemoryKind) -> Region {
    let mut region = match kind {
        MemoryKind::Shared => Region::shared_zeroed(WORKING_SET),
        _ => Region::host_zeroed(WORKING_SET),
    }
    .unwrap();
    for (at, page) in region.as_mut_slice().chunks_mut(4096).enumerate() {
        page.fill(at as u8);
    }
    region
}

fn serve(address: &str, spin: u64) {
    let config = ShmConfig {
        spin: Duration::from_micros(spin),
        ..ShmConfig::default()
    };
    let mut interface = ShmInterface::new(config).unwrap();
    let mut told = Told {
        keep: true,
        ..Told::default()
    };
    let peer = interface.connect(&address.parse().unwrap()).unwrap();
    while told.peer.is_none() {
        interface.poll(None, &mut told).unwrap();
    }
    for (index, kind) in [MemoryKind::Shared, MemoryKind::Host]
        .into_iter()
        .enumerate()
    {
        told.regions.push(region(kind));
        let rights = Rights::READ.and(Rights::WRITE).and(Rights::MAP);
        let id = interface
            .register(index as u32, &told.regions[index], rights)
            .unwrap();
        let key = interface.remote_key(peer, id).unwrap();
        let _ = interface.send(peer, &key).unwrap();
    }
    let where_it_is = told.regions[1].hold().address() as u64;
    let _ = interface.send(peer, &where_it_is.to_le_bytes()).unwrap();
    let _ = interface
        .send(peer, &std::process::id().to_le_bytes())
        .unwrap();
    while !told.is_closed {
        interface.poll(None, &mut told).unwrap();
        while let Some(message) = told.messages.pop() {
            let _ = interface.send(peer, &message);
        }
    }
}

/// `0..count` in a random order.
fn shuffled(count: u64, mut seed: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..count).collect();
    for at in (1..order.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        order.swap(at, (seed >> 33) as usize % (at + 1));
    }
    order
}

fn median(mut rounds: Vec<f64>) -> f64 {
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

fn main() {
    let args: Vec<String> = env::args().collect();
    let spin = env::var("SPIN_US").map_or(20, |text| text.parse().unwrap());
    if let Some(address) = args.get(1) {
        return serve(address, spin);
    }
    let config = ShmConfig {
        listen: Some(Listen::Unnamed),
        spin: Duration::from_micros(spin),
        ..ShmConfig::default()
    };
    let mut interface = ShmInterface::new(config).unwrap();
    let address = interface.addresses().remove(0).to_string();
    let mut child = Command::new(&args[0])
        .arg(address)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut told = Told {
        keep: true,
        ..Told::default()
    };
    while told.messages.len() < 4 {
        interface.poll(None, &mut told).unwrap();
    }
    let peer = told.peer.unwrap();
    let numbers: Vec<u32> = told.messages[..2]
        .iter()
        .map(|key| interface.import(peer, key).unwrap())
        .collect();
    let there = u64::from_le_bytes(told.messages[2][..].try_into().unwrap()) as usize;
    let pid = i32::from_le_bytes(told.messages[3][..].try_into().unwrap());
    println!("{}", interface.path(peer).unwrap().why);
    latency(&mut interface, &mut told, peer, spin);
    stream(&mut interface, &mut told, peer);
    told.regions = vec![region(MemoryKind::Host)];
    // The same kind of memory as the peer's: a memfd has small pages where the system gives the heap large ones.
    let mut other = region(MemoryKind::Shared);
    println!(
        "piece      put GB/s  get GB/s  memcpy GB/s  ratios     |  foreign put GB/s  bare GB/s  ratio  | put Mpieces/s"
    );
    for bytes in [256_u64, 4096, 65_536, 1 << 20] {
        let count = WORKING_SET / bytes;
        let (here, far) = (shuffled(count, 1), shuffled(count, 2));
        let (here, far): (Vec<_>, Vec<_>) = here
            .iter()
            .zip(&far)
            .map(|(here, far)| (here * bytes, far * bytes))
            .unzip();
        let local = Pieces {
            region: 0,
            bytes: bytes as u32,
            count: 1,
            stride: 0,
            offsets: &here,
        };
        let remote = |region| Pieces {
            region,
            offsets: &far,
            ..local
        };
        let mut rates = vec![Vec::new(); 5];
        for round in 0..8 {
            let mut time = |which: usize, run: &mut dyn FnMut()| {
                let start = Instant::now();
                run();
                if round > 0 {
                    rates[which].push(WORKING_SET as f64 / start.elapsed().as_secs_f64() / 1e9);
                }
            };
            let memory = &mut told.regions;
            time(0, &mut || {
                let posted = interface.put(memory, peer, &[local], &[remote(numbers[0])], Token(1));
                assert_eq!(posted.unwrap(), Posted::Done);
            });
            time(1, &mut || {
                let posted = interface.get(memory, peer, &[local], &[remote(numbers[0])], Token(1));
                assert_eq!(posted.unwrap(), Posted::Done);
            });
            time(2, &mut || {
                let (from, to) = (memory[0].as_slice(), other.as_mut_slice());
                for (here, far) in here.iter().zip(&far) {
                    let (here, far, bytes) = (*here as usize, *far as usize, bytes as usize);
                    to[far..far + bytes].copy_from_slice(&from[here..here + bytes]);
                }
            });
            if round > 3 {
                continue;
            }
            time(3, &mut || {
                let posted = interface.put(memory, peer, &[local], &[remote(numbers[1])], Token(1));
                assert_eq!(posted.unwrap(), Posted::Done);
            });
            time(4, &mut || {
                bare(
                    pid,
                    memory[0].as_slice(),
                    there,
                    &here,
                    &far,
                    bytes as usize,
                )
            });
        }
        let [put, get, copy, foreign, bare] = &rates[..] else {
            unreachable!()
        };
        let m = |rates: &Vec<f64>| median(rates.clone());
        println!(
            "{bytes:>8}  {:>8.2}  {:>8.2}  {:>11.2}  {:.2} {:.2}  |  {:>16.2}  {:>9.2}  {:>5.2}  | {:>8.2}",
            m(put),
            m(get),
            m(copy),
            m(put) / m(copy),
            m(get) / m(copy),
            m(foreign),
            m(bare),
            m(foreign) / m(bare),
            m(put) * 1e3 / bytes as f64
        );
    }
    interface.close(peer);
    child.wait().unwrap();
}

/// The system call by itself, with as many pieces as it takes.
#[allow(unsafe_code)] // The bound is the bare call.
fn bare(pid: i32, from: &[u8], there: usize, here: &[u64], far: &[u64], bytes: usize) {
    let slice = |base: usize| libc::iovec {
        iov_base: std::ptr::with_exposed_provenance_mut(base),
        iov_len: bytes,
    };
    let start = from.as_ptr().expose_provenance();
    for (here, far) in here.chunks(1024).zip(far.chunks(1024)) {
        let local: Vec<_> = here.iter().map(|at| slice(start + *at as usize)).collect();
        let remote: Vec<_> = far.iter().map(|at| slice(there + *at as usize)).collect();
        let (count, total) = (local.len() as libc::c_ulong, local.len() * bytes);
        // SAFETY: the local pieces are of `from`; the system checks the others.
        let moved = unsafe {
            libc::process_vm_writev(pid, local.as_ptr(), count, remote.as_ptr(), count, 0)
        };
        assert_eq!(moved, total as isize, "{}", std::io::Error::last_os_error());
    }
}

fn latency(interface: &mut ShmInterface, told: &mut Told, peer: PeerId, spin: u64) {
    told.keep = false;
    for (name, pause, rounds) in [
        ("in a row", 0, 50_000),
        ("after a pause of 200 us", 200, 2000),
    ] {
        let mut times = Vec::new();
        for round in 0..rounds {
            if pause > 0 {
                std::thread::sleep(Duration::from_micros(pause));
            }
            told.count = 0;
            let start = Instant::now();
            let _ = interface.send(peer, &[0; 256]).unwrap();
            while told.count == 0 {
                interface.poll(None, told).unwrap();
            }
            if round > rounds / 10 {
                times.push(start.elapsed().as_nanos() as u64);
            }
        }
        times.sort_unstable();
        let at = |part: f64| times[(times.len() as f64 * part) as usize] as f64 / 1e3;
        println!(
            "256 B round trip {name}, spinning up to {spin} us: p50 {:.2} us, p99 {:.2} us",
            at(0.5),
            at(0.99)
        );
    }
}

/// Batches one way, which the peer does not answer.
fn stream(interface: &mut ShmInterface, told: &mut Told, peer: PeerId) {
    let bytes = 256 << 10;
    let source = vec![7_u8; bytes as usize];
    let mut rates = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        for id in 0..4096 {
            let batch = Batch { id, bytes };
            while interface
                .post(peer, batch, &mut |room| room.copy_from_slice(&source))
                .unwrap()
                != Posted::Done
            {
                interface.poll(None, told).unwrap();
            }
        }
        rates.push(4096.0 * f64::from(bytes) / start.elapsed().as_secs_f64() / 1e9);
    }
    println!(
        "batches of 256 KiB, filled once and seen in place: {:.2} GB/s",
        median(rates)
    );
}
