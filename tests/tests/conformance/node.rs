//! An interface, the memory it is lent, and a handler that writes down what it is told.

use std::collections::{HashMap, VecDeque};
use std::panic::Location;
use std::time::{Duration, Instant};

use moai_memory::{MemoryKind, Region};
use moai_transport::{
    Batch, Closed, Completion, Error, Fault, Handler, Interface, Landing, PeerId, Piece, Posted,
    RegistrationId, Reject, Rights, Token,
};

use crate::lists::{List, pieces};
use crate::memory::Device;
use crate::random::Random;
use crate::run::Absent;

/// Far beyond what anything here takes on a busy machine.
pub(crate) const HANG: Duration = Duration::from_secs(20);

/// What lies in memory where nothing was written.
pub(crate) const GUARD: u8 = 0xa5;

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
    Mixed,
    Reject,
}

/// Writes down what it is told, and panics if the order of callbacks is not the contract's.
pub(crate) struct Recorder {
    pub(crate) regions: Vec<Region>,
    pub(crate) events: Vec<Event>,
    pub(crate) policy: Policy,
    /// Regions that batches land in directly.
    pub(crate) landing: Vec<u32>,
    /// A message that is refused.
    pub(crate) unwanted: Option<Vec<u8>>,
    random: Random,
    /// Peers that are there, with the batch that is landing.
    peers: HashMap<PeerId, Option<(Batch, Vec<Piece>, u32)>>,
    gone: Vec<PeerId>,
    rejected: Vec<PeerId>,
}

impl Recorder {
    fn new(seed: u64) -> Self {
        Self {
            regions: Vec::new(),
            events: Vec::new(),
            policy: Policy::Staged,
            landing: Vec::new(),
            unwanted: None,
            random: Random(seed),
            peers: HashMap::new(),
            gone: Vec::new(),
            rejected: Vec::new(),
        }
    }

    /// A frame of `peer` may come now.
    fn is_there(&self, peer: PeerId, what: &str) {
        assert!(
            self.peers.contains_key(&peer) && !self.rejected.contains(&peer),
            "{what} of peer {peer}, which is not connected or was rejected"
        );
    }

    fn reject<R>(&mut self, peer: PeerId, why: &str) -> Result<R, Reject> {
        self.rejected.push(peer);
        Err(Reject(why.to_owned()))
    }

    /// Places for all of `batch`, that do not overlap.
    fn scatter(&mut self, batch: Batch) -> Vec<Piece> {
        let mut ends = vec![0_u64; self.landing.len()];
        let mut pieces = Vec::new();
        let largest = self
            .random
            .size(64 << 10)
            .max(u64::from(batch.bytes) / 2048 + 1);
        let mut left = u64::from(batch.bytes);
        while left > 0 {
            let at = self.random.below(ends.len() as u64) as usize;
            let region = self.landing[at];
            let offset = ends[at] + [0, self.random.below(9)][self.random.below(2) as usize];
            let room = self.regions[region as usize].len().saturating_sub(offset);
            let bytes = self.random.size(largest).min(left).min(room);
            if bytes > 0 {
                pieces.push(Piece {
                    region,
                    offset,
                    bytes: bytes as u32,
                });
                ends[at] = offset + bytes;
                left -= bytes;
            }
        }
        pieces
    }
}

impl Handler for Recorder {
    fn connected(&mut self, peer: PeerId, incoming: bool) {
        assert!(
            !self.gone.contains(&peer),
            "peer {peer} came back from the dead"
        );
        assert!(
            self.peers.insert(peer, None).is_none(),
            "{peer} connected twice"
        );
        self.events.push(Event::Connected(peer, incoming));
    }

    fn message(&mut self, peer: PeerId, bytes: &[u8]) -> Result<(), Reject> {
        self.is_there(peer, "message");
        if self.unwanted.as_deref() == Some(bytes) {
            return self.reject(peer, "unwanted");
        }
        self.events.push(Event::Message(peer, bytes.to_vec()));
        Ok(())
    }

    fn landing(&mut self, peer: PeerId, batch: Batch) -> Result<Landing, Reject> {
        self.is_there(peer, "batch");
        assert!(self.peers[&peer].is_none(), "a batch within a batch");
        let direct = match self.policy {
            Policy::Staged => false,
            Policy::Direct => true,
            Policy::Mixed => self.random.once_in(2),
            Policy::Reject => return self.reject(peer, "no batches"),
        };
        let pieces = if direct {
            self.scatter(batch)
        } else {
            Vec::new()
        };
        self.peers.insert(peer, Some((batch, pieces, 0)));
        Ok(if direct {
            Landing::Direct
        } else {
            Landing::Staged
        })
    }

    fn pieces(
        &mut self,
        peer: PeerId,
        batch: Batch,
        from: u32,
        most: usize,
        out: &mut Vec<Piece>,
    ) -> Result<(), Reject> {
        self.is_there(peer, "pieces");
        let Some(Some((of, pieces, given))) = self.peers.get_mut(&peer) else {
            panic!("pieces without a landing");
        };
        assert_eq!(*of, batch);
        assert!(
            out.is_empty() && most > 0,
            "out is not empty, or nothing may go in"
        );
        assert_eq!(from, *given, "not asked from where the last answer ended");
        assert!(from < batch.bytes, "asked beyond the payload");
        let mut start = 0;
        for piece in pieces.iter() {
            if start >= from && out.len() < most {
                out.push(*piece);
                *given += piece.bytes;
            }
            start += piece.bytes;
        }
        Ok(())
    }

    fn regions(&mut self) -> &mut [Region] {
        &mut self.regions
    }

    fn landed(&mut self, peer: PeerId, batch: Batch, staged: Option<&[u8]>) -> Result<(), Reject> {
        self.is_there(peer, "landed");
        let landing = self.peers.insert(peer, None).flatten();
        let (of, pieces, given) = landing.expect("landed without a landing");
        assert_eq!(of, batch);
        let payload = match staged {
            Some(payload) => payload.to_vec(),
            None => {
                assert_eq!(given, batch.bytes, "landed before it was placed");
                let mut payload = Vec::new();
                for piece in pieces {
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
        self.is_there(peer, "writable");
        self.events.push(Event::Writable(peer));
    }

    fn closed(&mut self, peer: PeerId, why: Closed) {
        assert!(!self.gone.contains(&peer), "peer {peer} closed twice");
        let rejected = self.rejected.contains(&peer);
        let says = matches!(why, Closed::Rejected(_));
        assert_eq!(rejected, says, "peer {peer} closed: {why:?}");
        self.peers.remove(&peer);
        self.gone.push(peer);
        self.events.push(Event::Closed(peer, why));
    }
}

/// An interface with what belongs to it.
pub(crate) struct Node {
    pub(crate) interface: Box<dyn Interface + Send>,
    pub(crate) recorder: Recorder,
    pub(crate) device: Device,
    pub(crate) registrations: Vec<RegistrationId>,
    /// Completions that nobody has asked for yet.
    pub(crate) ended: VecDeque<Completion>,
    /// Operations of which nothing was heard yet.
    pub(crate) in_flight: HashMap<u64, PeerId>,
    token: u64,
}

impl Node {
    pub(crate) fn new(interface: Box<dyn Interface + Send>, device: Device, seed: u64) -> Self {
        Self {
            interface,
            recorder: Recorder::new(seed),
            device,
            registrations: Vec::new(),
            ended: VecDeque::new(),
            in_flight: HashMap::new(),
            token: seed << 20,
        }
    }

    pub(crate) fn poll(&mut self, timeout: Duration) {
        self.interface
            .poll(Some(timeout), &mut self.recorder)
            .unwrap();
        self.take_completions();
    }

    /// Every token has one outcome: a second one, or one for what was not in flight, fails.
    pub(crate) fn take_completions(&mut self) {
        while let Some(completion) = self.interface.completion() {
            let known = self.in_flight.remove(&completion.token.0);
            assert_eq!(
                known,
                Some(completion.peer),
                "not in flight, or ended already: {completion:?}"
            );
            self.ended.push_back(completion);
        }
    }

    /// Polls until `done`.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            if start.elapsed() > HANG {
                panic!(
                    "hangs at {} waiting for {what}; {} in flight, {} ended, {:?}",
                    Location::caller(),
                    self.in_flight.len(),
                    self.ended.len(),
                    self.interface.stats()
                );
            }
            self.poll(Duration::from_millis(20));
        }
    }

    /// Connects and waits for it.
    #[track_caller]
    pub(crate) fn connect(&mut self, address: &moai_transport::Address) -> PeerId {
        let peer = self.interface.connect(address).unwrap();
        self.until("connected", |node| node.is_connected(peer));
        peer
    }

    pub(crate) fn is_connected(&self, peer: PeerId) -> bool {
        let events = self.recorder.events.iter();
        if let Some(why) = self.why(peer) {
            panic!("peer {peer} closed: {why:?}");
        }
        events
            .into_iter()
            .any(|event| matches!(event, Event::Connected(of, false) if *of == peer))
    }

    pub(crate) fn why(&self, peer: PeerId) -> Option<&Closed> {
        self.recorder.events.iter().find_map(|event| match event {
            Event::Closed(of, why) if *of == peer => Some(why),
            _ => None,
        })
    }

    /// Waits for the end of a connection.
    #[track_caller]
    pub(crate) fn closed(&mut self, peer: PeerId) -> String {
        self.until("closed", |node| node.why(peer).is_some());
        format!("{:?}", self.why(peer).unwrap())
    }

    /// The peers that came in, in order.
    pub(crate) fn incoming(&self) -> Vec<PeerId> {
        let peers = self.recorder.events.iter().filter_map(|event| match event {
            Event::Connected(peer, true) => Some(*peer),
            _ => None,
        });
        peers.collect()
    }

    /// The messages of `peer`, which are forgotten.
    pub(crate) fn messages(&mut self, peer: PeerId) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        self.recorder.events.retain_mut(|event| match event {
            Event::Message(of, bytes) if *of == peer => {
                messages.push(std::mem::take(bytes));
                false
            }
            _ => true,
        });
        messages
    }

    /// Waits for the next message of `peer`.
    #[track_caller]
    pub(crate) fn message(&mut self, peer: PeerId) -> Vec<u8> {
        let is_it = |event: &Event| matches!(event, Event::Message(of, _) if *of == peer);
        self.until("a message", |node| node.recorder.events.iter().any(is_it));
        let at = self.recorder.events.iter().position(is_it).unwrap();
        match self.recorder.events.remove(at) {
            Event::Message(_, bytes) => bytes,
            _ => unreachable!(),
        }
    }

    /// Sends, waiting for room.
    #[track_caller]
    pub(crate) fn send(&mut self, peer: PeerId, message: &[u8]) {
        let start = Instant::now();
        while self.interface.send(peer, message).unwrap() == Posted::Busy {
            assert!(start.elapsed() < HANG, "no room for a message");
            self.poll(Duration::from_millis(20));
        }
    }

    pub(crate) fn post(&mut self, peer: PeerId, id: u64, payload: &[u8]) -> Posted {
        let bytes = payload.len() as u32;
        let mut fills = 0;
        let posted = self.interface.post(peer, Batch { id, bytes }, &mut |room| {
            fills += 1;
            room.copy_from_slice(payload);
        });
        let posted = posted.unwrap();
        let expected = usize::from(posted != Posted::Busy);
        assert_eq!(fills, expected, "fill was called {fills} times: {posted:?}");
        posted
    }

    /// Memory with these bytes, lent from now on.
    pub(crate) fn memory(&mut self, kind: MemoryKind, bytes: &[u8]) -> Result<u32, Absent> {
        let region = self.device.region(kind, bytes)?;
        self.recorder.regions.push(region);
        Ok(self.recorder.regions.len() as u32 - 1)
    }

    pub(crate) fn bytes(&self, region: u32) -> Vec<u8> {
        self.device.read(&self.recorder.regions[region as usize])
    }

    pub(crate) fn write(&mut self, region: u32, offset: u64, bytes: &[u8]) {
        let region = &mut self.recorder.regions[region as usize];
        self.device.write(region, offset, bytes);
    }

    pub(crate) fn register(
        &mut self,
        region: u32,
        rights: Rights,
    ) -> Result<RegistrationId, Error> {
        let memory = &self.recorder.regions[region as usize];
        let id = self.interface.register(region, memory, rights)?;
        self.registrations.push(id);
        Ok(id)
    }

    /// A put or get.
    pub(crate) fn transfer(
        &mut self,
        put: bool,
        peer: PeerId,
        local: &[List],
        remote: &[List],
    ) -> Result<Posted, Error> {
        self.token += 1;
        let (token, regions) = (Token(self.token), &mut self.recorder.regions[..]);
        let (local, remote) = (pieces(local), pieces(remote));
        let posted = if put {
            self.interface.put(regions, peer, &local, &remote, token)
        } else {
            self.interface.get(regions, peer, &local, &remote, token)
        }?;
        self.posted(peer, posted);
        Ok(posted)
    }

    pub(crate) fn flush(&mut self, peer: PeerId) -> Result<Posted, Error> {
        self.token += 1;
        let posted = self.interface.flush(peer, Token(self.token))?;
        self.posted(peer, posted);
        Ok(posted)
    }

    fn posted(&mut self, peer: PeerId, posted: Posted) {
        if let Posted::InFlight(token) = posted {
            assert_eq!(token.0, self.token, "in flight under another name");
            self.in_flight.insert(token.0, peer);
        }
    }

    /// The outcome of an operation, once it has one.
    #[track_caller]
    pub(crate) fn outcome(&mut self, posted: Posted) -> Result<(), Fault> {
        match posted {
            Posted::Done => Ok(()),
            Posted::Busy => panic!("busy without anything in flight"),
            Posted::InFlight(token) => {
                let at = |node: &Self| node.ended.iter().position(|end| end.token == token);
                self.until("a completion", |node| at(node).is_some());
                let at = at(self).unwrap();
                self.ended.remove(at).unwrap().outcome
            }
        }
    }

    /// A put or get, to its end.
    #[track_caller]
    pub(crate) fn done(
        &mut self,
        put: bool,
        peer: PeerId,
        local: &[List],
        remote: &[List],
    ) -> Result<(), Fault> {
        let posted = self.transfer(put, peer, local, remote).unwrap();
        self.outcome(posted)
    }
}
