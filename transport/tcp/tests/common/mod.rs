//! What the tests of the TCP provider share: a handler that writes down what it is told and checks
//! what lands, and a source of numbers with a seed.
#![allow(dead_code)] // Every test file uses a part of this.

pub(crate) mod drawn;

use std::collections::HashMap;
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use moai_memory::Region;
use moai_transport::{Batch, Closed, Handler, Interface, Landing, PeerId, Piece, Posted, Reject};
use moai_transport_tcp::{Security, TcpConfig, TcpInterface, tcp_address};

/// Far beyond what anything here takes: for telling a hang from a slow machine.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`, which is not zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// In `1..=most`, every order of magnitude as likely as the next.
    pub(crate) fn size(&mut self, most: u32) -> u32 {
        let bits = self.below(u64::from(most.ilog2()) + 2);
        (self.below(1 << bits) as u32 + 1).min(most)
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        bytes
    }
}

#[derive(Debug)]
pub(crate) enum Event {
    Connected(PeerId, bool),
    Message(PeerId, Vec<u8>),
    Landed(PeerId, u64, Vec<u8>),
    Writable(PeerId),
    Closed(PeerId, Closed),
}

/// How a recorder answers `landing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Staged,
    Direct,
    /// One or the other, at random.
    Mixed,
    /// One piece that starts at this offset of region 0, whatever the region's size.
    At(u64),
    /// No pieces at all.
    Nowhere,
    Reject,
}

/// What lies in regions where nothing has landed.
const GUARD: u8 = 0xa5;

/// Writes down what it is told. Direct payload goes to scattered pieces of several regions, is taken
/// out again when it has landed, and the regions must hold nothing but guard bytes at the end.
pub(crate) struct Recorder {
    pub(crate) regions: Vec<Region>,
    pub(crate) events: Vec<Event>,
    pub(crate) policy: Policy,
    random: Random,
    scattered: HashMap<PeerId, Vec<Piece>>,
}

impl Recorder {
    pub(crate) fn new(policy: Policy, seed: u64) -> Self {
        Self {
            regions: (0..5)
                .map(|_| Region::from_host(vec![GUARD; 3 << 20]))
                .collect(),
            events: Vec::new(),
            policy,
            random: Random(seed),
            scattered: HashMap::new(),
        }
    }

    pub(crate) fn assert_only_guards(&self) {
        for region in &self.regions {
            assert!(region.as_slice().iter().all(|&byte| byte == GUARD));
        }
    }

    /// As [`assert_only_guards`](Self::assert_only_guards), of the regions before `end`.
    pub(crate) fn assert_regions_but(&self, end: usize) {
        for region in &self.regions[..end] {
            assert!(region.as_slice().iter().all(|&byte| byte == GUARD));
        }
    }

    pub(crate) fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// The reason why `peer` was closed, if it was.
    pub(crate) fn why(&self, peer: PeerId) -> Option<&Closed> {
        self.events.iter().find_map(|event| match event {
            Event::Closed(of, why) if *of == peer => Some(why),
            _ => None,
        })
    }

    /// The peers that came in, in order.
    pub(crate) fn incoming(&self) -> Vec<PeerId> {
        let peers = self.events.iter().filter_map(|event| match event {
            Event::Connected(peer, true) => Some(*peer),
            _ => None,
        });
        peers.collect()
    }

    /// Places for all of `batch`: pieces of 1 B to 64 KiB that do not overlap, some of them adjacent.
    fn scatter(&mut self, batch: Batch) -> Vec<Piece> {
        let mut ends = vec![0_u64; self.regions.len()];
        let mut pieces = Vec::new();
        let largest = self.random.size(64 << 10).max(batch.bytes / 2048 + 1);
        let mut left = batch.bytes;
        while left > 0 {
            let region = self.random.below(ends.len() as u64) as usize;
            let offset = ends[region] + [0, self.random.below(9)][self.random.below(2) as usize];
            let room = self.regions[region].len().saturating_sub(offset);
            let bytes = self.random.size(largest).min(left).min(room as u32);
            if bytes > 0 {
                pieces.push(Piece {
                    region: region as u32,
                    offset,
                    bytes,
                });
                ends[region] = offset + u64::from(bytes);
                left -= bytes;
            }
        }
        pieces
    }
}

impl Handler for Recorder {
    fn connected(&mut self, peer: PeerId, incoming: bool) {
        self.events.push(Event::Connected(peer, incoming));
    }

    fn message(&mut self, peer: PeerId, bytes: &[u8]) -> Result<(), Reject> {
        if bytes == b"reject me" {
            return Err(Reject("as it asked".to_owned()));
        }
        self.events.push(Event::Message(peer, bytes.to_vec()));
        Ok(())
    }

    fn landing(&mut self, peer: PeerId, batch: Batch) -> Result<Landing, Reject> {
        let direct = match self.policy {
            Policy::Staged => false,
            Policy::Mixed => self.random.below(2) == 0,
            Policy::Reject => return Err(Reject("not wanted".to_owned())),
            Policy::Direct | Policy::At(_) | Policy::Nowhere => true,
        };
        if !direct {
            return Ok(Landing::Staged);
        }
        let pieces = match self.policy {
            Policy::At(offset) => vec![Piece {
                region: 0,
                offset,
                bytes: batch.bytes,
            }],
            Policy::Nowhere => Vec::new(),
            _ => self.scatter(batch),
        };
        self.scattered.insert(peer, pieces);
        Ok(Landing::Direct)
    }

    fn pieces(
        &mut self,
        peer: PeerId,
        batch: Batch,
        from: u32,
        most: usize,
        out: &mut Vec<Piece>,
    ) -> Result<(), Reject> {
        assert!(out.is_empty() && from < batch.bytes && most > 0);
        let mut start = 0;
        for piece in &self.scattered[&peer] {
            if start >= from && out.len() < most {
                assert!(
                    !out.is_empty() || start == from,
                    "asked from inside a piece"
                );
                out.push(*piece);
            }
            start += piece.bytes;
        }
        Ok(())
    }

    fn regions(&mut self) -> &mut [Region] {
        &mut self.regions
    }

    fn landed(&mut self, peer: PeerId, batch: Batch, staged: Option<&[u8]>) -> Result<(), Reject> {
        let payload = match staged {
            Some(payload) => payload.to_vec(),
            None => {
                let mut payload = Vec::new();
                for piece in self.scattered.remove(&peer).expect("a direct landing") {
                    let place = piece.locate(&mut self.regions).expect("a piece of ours");
                    payload.extend_from_slice(place);
                    place.fill(GUARD);
                }
                payload
            }
        };
        assert_eq!(payload.len(), batch.bytes as usize);
        self.events.push(Event::Landed(peer, batch.id, payload));
        Ok(())
    }

    fn writable(&mut self, peer: PeerId) {
        self.events.push(Event::Writable(peer));
    }

    fn closed(&mut self, peer: PeerId, why: Closed) {
        self.scattered.remove(&peer);
        self.events.push(Event::Closed(peer, why));
    }
}

/// An interface with its recorder.
pub(crate) struct Node {
    pub(crate) interface: TcpInterface,
    pub(crate) recorder: Recorder,
}

impl Node {
    pub(crate) fn new(config: TcpConfig, policy: Policy) -> Self {
        Self {
            interface: TcpInterface::new(config).unwrap(),
            recorder: Recorder::new(policy, 7),
        }
    }

    pub(crate) fn listening(config: TcpConfig, policy: Policy) -> Self {
        let listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        Self::new(TcpConfig { listen, ..config }, policy)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.interface.listening().unwrap()
    }

    pub(crate) fn poll(&mut self, timeout: Duration) {
        self.interface
            .poll(Some(timeout), &mut self.recorder)
            .unwrap();
    }

    pub(crate) fn send(&mut self, peer: PeerId, message: &[u8]) {
        assert_eq!(self.interface.send(peer, message).unwrap(), Posted::Done);
    }

    pub(crate) fn post(&mut self, peer: PeerId, id: u64, payload: &[u8]) -> Posted {
        let bytes = payload.len() as u32;
        self.interface
            .post(peer, Batch { id, bytes }, &mut |room| {
                room.copy_from_slice(payload);
            })
            .unwrap()
    }

    /// Polls until `done`.
    pub(crate) fn until(&mut self, mut done: impl FnMut(&Recorder) -> bool) {
        drive(&mut [self], |nodes| done(&nodes[0].recorder));
    }
}

/// Polls all of `nodes`, in turn, until `done`.
pub(crate) fn drive(nodes: &mut [&mut Node], mut done: impl FnMut(&[&mut Node]) -> bool) {
    let start = Instant::now();
    while !done(nodes) {
        assert!(start.elapsed() < HANG, "hangs");
        for node in nodes.iter_mut() {
            node.poll(Duration::from_millis(1));
        }
    }
}

/// Two nodes that are connected, with the peer of each.
pub(crate) fn pair(connecting: &mut Node, listening: &mut Node) -> (PeerId, PeerId) {
    let before = listening.recorder.incoming().len();
    let to = connecting
        .interface
        .connect(&tcp_address(listening.address()))
        .unwrap();
    drive(&mut [connecting, listening], |nodes| {
        let there = |event: &Event| matches!(event, Event::Connected(peer, false) if *peer == to);
        nodes[0].recorder.events.iter().any(there) && nodes[1].recorder.incoming().len() > before
    });
    (to, listening.recorder.incoming()[before])
}

/// The first that one who is protected by `security` says: a hello of TLS.
pub(crate) fn hello(security: &Security) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = Node::new(
        TcpConfig {
            security: security.clone(),
            ..TcpConfig::default()
        },
        Policy::Staged,
    );
    let address = tcp_address(listener.local_addr().unwrap());
    client.interface.connect(&address).unwrap();
    client.poll(Duration::from_millis(50));
    client.poll(Duration::from_millis(50));
    let (mut socket, _) = listener.accept().unwrap();
    let mut hello = vec![0; 4096];
    let bytes = socket.read(&mut hello).unwrap();
    hello.truncate(bytes);
    assert!(hello.len() > 100);
    hello
}

/// A frame, made from a seed by both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Message(Vec<u8>),
    Batch(u64, Vec<u8>),
}

pub(crate) fn frame(random: &mut Random, most_batch_bytes: u32) -> Sent {
    if random.below(3) == 0 {
        let bytes = random.size(1 << 20) as usize - 1;
        Sent::Message(random.bytes(bytes))
    } else {
        let id = random.next();
        let bytes = random.size(most_batch_bytes) as usize;
        Sent::Batch(id, random.bytes(bytes))
    }
}
