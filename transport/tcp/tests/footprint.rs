//! What idle endpoints and registrations cost. A process of its own, because it reads the memory of the process.

use std::fs;
use std::time::{Duration, Instant};

use moai_memory::Region;
use moai_transport::{
    Batch, Closed, Handler, Interface, Landing, PeerId, Piece, Reject, Rights, limits,
};
use moai_transport_tcp::{TcpConfig, TcpInterface};
use rustix::process::{Resource, getrlimit, setrlimit};

#[derive(Default)]
struct Counter {
    peers: Vec<PeerId>,
    messages: usize,
    landed: usize,
}

impl Handler for Counter {
    fn connected(&mut self, peer: PeerId, _incoming: bool) {
        self.peers.push(peer);
    }

    fn message(&mut self, _peer: PeerId, _bytes: &[u8]) -> Result<(), Reject> {
        self.messages += 1;
        Ok(())
    }

    fn landing(&mut self, _peer: PeerId, _batch: Batch) -> Result<Landing, Reject> {
        Ok(Landing::Staged)
    }

    fn pieces(
        &mut self,
        _peer: PeerId,
        _batch: Batch,
        _from: u32,
        _most: usize,
        _out: &mut Vec<Piece>,
    ) -> Result<(), Reject> {
        Ok(())
    }

    fn regions(&mut self) -> &mut [Region] {
        &mut []
    }

    fn landed(&mut self, _peer: PeerId, _batch: Batch, _: Option<&[u8]>) -> Result<(), Reject> {
        self.landed += 1;
        Ok(())
    }

    fn writable(&mut self, _peer: PeerId) {}

    fn closed(&mut self, _peer: PeerId, _why: Closed) {}
}

/// Resident bytes of this process.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

#[test]
fn a_thousand_idle_endpoints_and_ten_thousand_registrations_are_cheap() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let listen = Some(([127, 0, 0, 1], 0).into());
    let mut far = TcpInterface::new(TcpConfig {
        listen,
        ..TcpConfig::default()
    })
    .unwrap();
    let mut near = TcpInterface::new(TcpConfig::default()).unwrap();
    let (mut here, mut there) = (Counter::default(), Counter::default());
    let address = &far.addresses()[0];
    let pairs = 500.min(limits::MAX_PEERS);
    let before = resident();
    for _ in 0..pairs {
        let peer = near.connect(address).unwrap();
        let _ = near.send(peer, b"hello").unwrap();
        let _ = near
            .post(
                peer,
                Batch {
                    id: 1,
                    bytes: 300_000,
                },
                &mut |room| room.fill(1),
            )
            .unwrap();
        let done = here.peers.len() + 1;
        let start = Instant::now();
        while there.messages < done || there.landed < done || here.peers.len() < done {
            assert!(start.elapsed() < Duration::from_secs(60), "hangs");
            near.poll(Some(Duration::ZERO), &mut here).unwrap();
            far.poll(Some(Duration::ZERO), &mut there).unwrap();
        }
    }
    let used = resident() - before;
    // What they have used they give back when it was not used for a while.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(3500) {
        near.poll(Some(Duration::from_millis(100)), &mut here)
            .unwrap();
        far.poll(Some(Duration::from_millis(100)), &mut there)
            .unwrap();
    }
    let idle = resident().saturating_sub(before);
    let each = idle / (2 * pairs);
    println!(
        "{} endpoints: {each} bytes each when idle, {} just after use",
        2 * pairs,
        used / (2 * pairs)
    );
    assert!(each < 8 << 10, "{each} bytes an endpoint");

    let mut rest = Region::shared_zeroed(10_000 * 64).unwrap();
    let mut regions = Vec::new();
    for _ in 0..9_999 {
        let (first, others) = rest.split_at(64);
        regions.push(first);
        rest = others;
    }
    regions.push(rest);
    let before = resident();
    for (index, region) in regions.iter().enumerate() {
        far.register(index as u32, region, Rights::READ).unwrap();
    }
    let each = resident().saturating_sub(before) / regions.len();
    println!("{} registrations: {each} bytes each", regions.len());
    assert!(each < 1 << 10, "{each} bytes a registration");
}
