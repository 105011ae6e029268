//! What the tests of this provider share: a handler that writes down what it is told, pairs of interfaces, and a source
//! of numbers with a seed.
#![allow(dead_code)] // Every test file uses a part of this.

use std::time::{Duration, Instant};

use moai_memory::Region;
use moai_transport::{
    Batch, Closed, Completion, Handler, Interface, Landing, PeerId, Piece, Pieces, Posted,
    RegistrationId, Reject, Rights, Token,
};
use moai_transport_shm::{Listen, ShmConfig, ShmInterface};

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

    /// In `1..=2^most`, every order of magnitude as likely as the next.
    pub(crate) fn size(&mut self, most: u64) -> u64 {
        let bits = self.below(most);
        1 + self.below(1 << bits)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

#[derive(Debug)]
pub(crate) enum Event {
    Connected(PeerId, bool),
    Message(PeerId, Vec<u8>),
    Landed(PeerId, Batch, Option<Vec<u8>>),
    Writable(PeerId),
    Closed(PeerId, Closed),
}

/// Writes down what it is told. Direct payload goes to region 0, cut into pieces of `piece` bytes that leave as many
/// bytes between them.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    pub(crate) regions: Vec<Region>,
    pub(crate) events: Vec<Event>,
    pub(crate) piece: Option<u32>,
    pub(crate) is_quiet: bool,
    pub(crate) count: usize,
}

impl Handler for Recorder {
    fn connected(&mut self, peer: PeerId, incoming: bool) {
        self.events.push(Event::Connected(peer, incoming));
    }

    fn message(&mut self, peer: PeerId, bytes: &[u8]) -> Result<(), Reject> {
        if bytes == b"reject me" {
            return Err(Reject("as it asked".to_owned()));
        }
        self.count += 1;
        if !self.is_quiet {
            self.events.push(Event::Message(peer, bytes.to_vec()));
        }
        Ok(())
    }

    fn landing(&mut self, _: PeerId, _: Batch) -> Result<Landing, Reject> {
        Ok(self.piece.map_or(Landing::Staged, |_| Landing::Direct))
    }

    fn pieces(
        &mut self,
        _: PeerId,
        batch: Batch,
        from: u32,
        most: usize,
        out: &mut Vec<Piece>,
    ) -> Result<(), Reject> {
        let step = self.piece.unwrap_or(1);
        let mut at = from;
        while at < batch.bytes && out.len() < most {
            let bytes = step.min(batch.bytes - at);
            out.push(Piece {
                region: 0,
                offset: 2 * u64::from(at),
                bytes,
            });
            at += bytes;
        }
        Ok(())
    }

    fn regions(&mut self) -> &mut [Region] {
        &mut self.regions
    }

    fn landed(&mut self, peer: PeerId, batch: Batch, staged: Option<&[u8]>) -> Result<(), Reject> {
        self.count += 1;
        if !self.is_quiet {
            let event = Event::Landed(peer, batch, staged.map(<[u8]>::to_vec));
            self.events.push(event);
        }
        Ok(())
    }

    fn writable(&mut self, peer: PeerId) {
        self.events.push(Event::Writable(peer));
    }

    fn closed(&mut self, peer: PeerId, why: Closed) {
        self.events.push(Event::Closed(peer, why));
    }
}

/// An interface and what it has told.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) interface: ShmInterface,
    pub(crate) told: Recorder,
}

impl Side {
    pub(crate) fn new(config: ShmConfig) -> Self {
        Self {
            interface: ShmInterface::new(config).unwrap(),
            told: Recorder::default(),
        }
    }

    pub(crate) fn listening(config: ShmConfig) -> Self {
        let listen = Some(Listen::Unnamed);
        Self::new(ShmConfig { listen, ..config })
    }

    pub(crate) fn poll(&mut self, timeout: Duration) {
        self.interface.poll(Some(timeout), &mut self.told).unwrap();
    }

    pub(crate) fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.told.events)
    }

    /// Polls until `done` finds what it looks for among the events.
    pub(crate) fn until<T>(&mut self, mut done: impl FnMut(&Event) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = self.told.events.iter().find_map(&mut done) {
                return found;
            }
            assert!(start.elapsed() < HANG, "{:?}", self.told.events);
            self.poll(Duration::from_millis(20));
        }
    }

    /// The completion of `token`.
    pub(crate) fn completion(&mut self) -> Option<Completion> {
        self.interface.completion()
    }

    pub(crate) fn register(&mut self, region: Region, rights: Rights) -> RegistrationId {
        let index = self.told.regions.len() as u32;
        let id = self.interface.register(index, &region, rights).unwrap();
        self.told.regions.push(region);
        id
    }

    pub(crate) fn put(
        &mut self,
        peer: PeerId,
        local: &[Pieces<'_>],
        remote: &[Pieces<'_>],
    ) -> Result<Posted, moai_transport::Error> {
        let memory = &mut self.told.regions;
        self.interface.put(memory, peer, local, remote, Token(7))
    }

    pub(crate) fn get(
        &mut self,
        peer: PeerId,
        local: &[Pieces<'_>],
        remote: &[Pieces<'_>],
    ) -> Result<Posted, moai_transport::Error> {
        let memory = &mut self.told.regions;
        self.interface.get(memory, peer, local, remote, Token(7))
    }
}

pub(crate) const RIGHTS: Rights = Rights::READ.and(Rights::WRITE).and(Rights::MAP);

/// Two connected interfaces of this process, and their names for each other: who connected, who listens.
pub(crate) fn pair(config: &ShmConfig) -> (Side, Side, PeerId, PeerId) {
    let mut left = Side::new(config.clone());
    let mut right = Side::listening(config.clone());
    let address = right.interface.addresses().remove(0);
    let to_right = left.interface.connect(&address).unwrap();
    let connected = |event: &Event| match event {
        Event::Connected(peer, _) => Some(*peer),
        _ => None,
    };
    let to_left = right.until(connected);
    assert_eq!(left.until(connected), to_right);
    left.take();
    right.take();
    (left, right, to_right, to_left)
}

/// Polls both, without waiting, until `done`.
pub(crate) fn together(
    left: &mut Side,
    right: &mut Side,
    mut done: impl FnMut(&mut Side, &mut Side) -> bool,
) {
    let start = Instant::now();
    while !done(left, right) {
        left.poll(Duration::ZERO);
        right.poll(Duration::ZERO);
        assert!(
            start.elapsed() < HANG,
            "{:?} {:?}",
            left.told.events,
            right.told.events
        );
    }
}

/// Random lists over regions or keys of the given lengths, whose bytes do not overlap, and no more than `most` bytes.
#[derive(Debug, Default)]
pub(crate) struct Lists(Vec<(u32, u32, u32, u64, Vec<u64>)>);

impl Lists {
    pub(crate) fn random(random: &mut Random, lens: &[(u32, u64)], most: u64) -> Self {
        let (mut lists, mut left) = (Vec::new(), most);
        for &(region, len) in lens {
            let mut at = random.below(16);
            for _ in 0..random.below(4) {
                let bytes = random.size(12) as u32;
                let count = 1 + random.below(4) as u32;
                let gap = random.below(3) * 21;
                let stride = u64::from(bytes) + gap;
                let reach = stride * u64::from(count - 1) + u64::from(bytes);
                let mut offsets = Vec::new();
                for _ in 0..random.below(20) {
                    let total = u64::from(bytes) * u64::from(count);
                    if at + reach > len || total > left {
                        break;
                    }
                    left -= total;
                    offsets.push(at);
                    at += reach + random.below(3) * 33;
                }
                lists.push((region, bytes, count, stride, offsets));
            }
        }
        Self(lists)
    }

    /// Single pieces of the same bytes in all.
    pub(crate) fn matching(random: &mut Random, lens: &[(u32, u64)], total: u64) -> Self {
        let (mut lists, mut left) = (Vec::new(), total);
        let mut ends = vec![0; lens.len()];
        while left > 0 {
            let which = random.below(lens.len() as u64) as usize;
            let (region, len) = lens[which];
            let offset = ends[which] + random.below(2) * 8;
            let bytes = random.size(14).min(left).min(len.saturating_sub(offset));
            if bytes > 0 {
                lists.push((region, bytes as u32, 1, 0, vec![offset]));
                ends[which] = offset + bytes;
                left -= bytes;
            } else {
                ends[which] = len.min(ends[which] + 1);
            }
        }
        Self(lists)
    }

    pub(crate) fn pieces(&self) -> Vec<Pieces<'_>> {
        let lists = self.0.iter();
        lists
            .map(|(region, bytes, count, stride, offsets)| Pieces {
                region: *region,
                bytes: *bytes,
                count: *count,
                stride: *stride,
                offsets,
            })
            .collect()
    }

    pub(crate) fn total(&self) -> u64 {
        self.pieces().iter().map(|list| list.total().unwrap()).sum()
    }

    /// Region and offset of every byte, in order.
    pub(crate) fn places(&self) -> Vec<(usize, usize)> {
        let mut places = Vec::new();
        for (region, bytes, count, stride, offsets) in &self.0 {
            for offset in offsets {
                for index in 0..u64::from(*count) {
                    for byte in 0..u64::from(*bytes) {
                        places.push((*region as usize, (offset + index * stride + byte) as usize));
                    }
                }
            }
        }
        places
    }
}
