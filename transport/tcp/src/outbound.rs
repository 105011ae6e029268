//! What is queued for one peer.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use moai_transport::wire::{HEADER_BYTES, Header};
use moai_transport::{Stats, limits};

use crate::ring::{Ring, Span};
use crate::secure::Marks;
use crate::stream::Sink;

/// Messages and batches for one peer, in one order.
///
/// Messages have a ring of their own, so that a full staging ring never keeps one from being queued.
#[derive(Debug)]
pub(crate) struct Outbound {
    frames: VecDeque<Frame>,
    messages: Lane,
    batches: Lane,
    /// Bytes of the first frame that the socket has taken.
    gone: usize,
    /// Bytes of all frames that the socket has not taken.
    queued_bytes: usize,
}

/// Where the payload of one kind of frame is kept.
#[derive(Debug)]
struct Lane {
    ring: Ring,
    frames: usize,
    max_frames: usize,
    /// The shortest payload that was refused since room was last announced.
    refused: Option<u32>,
}

#[derive(Debug)]
struct Frame {
    header: [u8; HEADER_BYTES],
    kind: Kind,
    payload: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Message,
    Batch,
}

impl Outbound {
    pub(crate) fn new(staging_bytes: u32) -> Self {
        Self {
            frames: VecDeque::new(),
            messages: Lane::new(limits::MESSAGE_RING_BYTES, limits::MAX_QUEUED_MESSAGES),
            batches: Lane::new(staging_bytes, limits::MAX_QUEUED_BATCHES),
            gone: 0,
            queued_bytes: 0,
        }
    }

    /// Largest batch that can ever be queued, in bytes.
    pub(crate) fn max_batch_bytes(&self) -> u32 {
        self.batches.ring.capacity().min(limits::MAX_BATCH_BYTES)
    }

    /// Whether a frame with this header would be taken now.
    pub(crate) fn takes(&self, header: Header) -> bool {
        let lane = match Kind::of(header) {
            Kind::Message => &self.messages,
            Kind::Batch => &self.batches,
        };
        lane.takes(header.payload_bytes())
    }

    /// Queues a frame whose length was checked. False, and `fill` has not been called, if there is no
    /// room.
    pub(crate) fn queue(&mut self, header: Header, fill: &mut dyn FnMut(&mut [u8])) -> bool {
        let kind = Kind::of(header);
        let lane = self.lane(kind);
        let Some(payload) = lane.reserve(header.payload_bytes()) else {
            return false;
        };
        fill(lane.ring.bytes_mut(payload));
        self.queued_bytes += HEADER_BYTES + payload.len();
        self.frames.push_back(Frame {
            header: header.encode(),
            kind,
            payload,
        });
        true
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether rings have memory.
    pub(crate) fn holds_memory(&self) -> bool {
        self.messages.ring.holds_memory() || self.batches.ring.holds_memory()
    }

    /// Gives back the memory of rings that are empty.
    pub(crate) fn trim(&mut self) {
        self.messages.ring.trim();
        self.batches.ring.trim();
    }

    /// Whether a frame has begun to leave, so that its rest must come next.
    pub(crate) fn is_within_frame(&self) -> bool {
        self.gone > 0
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Whether what was refused would be taken now.
    pub(crate) fn has_room_again(&self) -> bool {
        self.messages.has_room_again() || self.batches.has_room_again()
    }

    /// As [`has_room_again`](Self::has_room_again), and says so only once.
    pub(crate) fn take_room_again(&mut self) -> bool {
        let room = self.has_room_again();
        if room {
            self.messages.refused = None;
            self.batches.refused = None;
        }
        room
    }

    /// Drops everything queued.
    pub(crate) fn clear(&mut self) {
        self.frames.clear();
        self.messages.clear();
        self.batches.clear();
        self.gone = 0;
        self.queued_bytes = 0;
    }

    /// Writes until nothing is left, `socket` takes no more, or about `most` bytes have gone. Returns
    /// whether the socket is what stopped it.
    pub(crate) fn write(
        &mut self,
        socket: &mut impl Sink,
        most: usize,
        stats: &mut Stats,
    ) -> io::Result<bool> {
        let mut written = 0;
        while !self.frames.is_empty() && written < most {
            let mut slices = [IoSlice::new(&[]); limits::MAX_WRITE_SLICES];
            let mut marks = Marks::default();
            let count = self.gather(&mut slices, &mut marks);
            stats.writes += 1;
            match socket.send(&slices[..count], &marks) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    written += bytes;
                    stats.bytes_out += bytes as u64;
                    self.advance(bytes, stats);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    fn lane(&mut self, kind: Kind) -> &mut Lane {
        match kind {
            Kind::Message => &mut self.messages,
            Kind::Batch => &mut self.batches,
        }
    }

    /// Fills `slices` with what comes next and returns how many there are.
    fn gather<'a>(&'a self, slices: &mut [IoSlice<'a>], marks: &mut Marks) -> usize {
        let mut count = 0;
        let mut gone = self.gone;
        for frame in &self.frames {
            let ring = match frame.kind {
                Kind::Message => &self.messages.ring,
                Kind::Batch => &self.batches.ring,
            };
            let payload = (ring.bytes(frame.payload), frame.kind == Kind::Batch);
            for (part, may_be_open) in [(&frame.header[..], false), payload] {
                let left = &part[gone.min(part.len())..];
                gone -= part.len() - left.len();
                if left.is_empty() {
                    continue;
                }
                if count == slices.len() {
                    return count;
                }
                if may_be_open {
                    marks.set(count);
                }
                slices[count] = IoSlice::new(left);
                count += 1;
            }
        }
        count
    }

    /// The socket has taken `bytes` more.
    fn advance(&mut self, bytes: usize, stats: &mut Stats) {
        self.queued_bytes -= bytes;
        self.gone += bytes;
        while let Some(frame) = self.frames.front() {
            let whole = HEADER_BYTES + frame.payload.len();
            if self.gone < whole {
                break;
            }
            self.gone -= whole;
            let (kind, payload) = (frame.kind, frame.payload);
            self.frames.pop_front();
            self.lane(kind).release(payload);
            match kind {
                Kind::Message => stats.messages_out += 1,
                Kind::Batch => stats.batches_out += 1,
            }
        }
    }
}

impl Kind {
    fn of(header: Header) -> Self {
        match header {
            Header::Message { .. } => Self::Message,
            _ => Self::Batch,
        }
    }
}

impl Lane {
    fn new(ring_bytes: u32, max_frames: usize) -> Self {
        Self {
            ring: Ring::new(ring_bytes),
            frames: 0,
            max_frames,
            refused: None,
        }
    }

    fn takes(&self, bytes: u32) -> bool {
        self.frames < self.max_frames && self.ring.fits(bytes)
    }

    fn reserve(&mut self, bytes: u32) -> Option<Span> {
        let span = if self.takes(bytes) {
            self.ring.reserve(bytes)
        } else {
            None
        };
        match span {
            Some(_) => self.frames += 1,
            None => self.refused = Some(self.refused.map_or(bytes, |least| least.min(bytes))),
        }
        span
    }

    fn release(&mut self, span: Span) {
        self.frames -= 1;
        self.ring.release(span);
    }

    fn has_room_again(&self) -> bool {
        self.refused.is_some_and(|bytes| self.takes(bytes))
    }

    fn clear(&mut self) {
        self.ring.clear();
        self.frames = 0;
        self.refused = None;
    }
}

#[cfg(test)]
mod tests {
    use moai_transport::Batch;

    use super::*;

    /// Takes a few bytes at a time, from at most two slices, and then none for a while.
    struct Reluctant {
        taken: Vec<u8>,
        appetite: usize,
    }

    impl Sink for Reluctant {
        fn send(&mut self, slices: &[IoSlice<'_>], _marks: &Marks) -> io::Result<usize> {
            self.appetite = (self.appetite * 5 + 1) % 64;
            if self.appetite.is_multiple_of(7) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            if self.appetite.is_multiple_of(11) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let all: Vec<u8> = slices
                .iter()
                .take(2)
                .flat_map(|slice| slice.to_vec())
                .collect();
            let taken = all.len().min(self.appetite);
            self.taken.extend_from_slice(&all[..taken]);
            Ok(taken)
        }
    }

    #[test]
    fn every_byte_goes_out_once_and_in_order_however_little_is_taken() {
        let mut outbound = Outbound::new(64);
        let mut socket = Reluctant {
            taken: Vec::new(),
            appetite: 5,
        };
        let mut stats = Stats::default();
        let mut expected = Vec::new();
        let mut refusals = 0;
        for id in 0..500_u64 {
            let payload = vec![id as u8; (id % 65) as usize];
            let bytes = payload.len() as u32;
            let batch = Batch { id, bytes };
            if id % 3 == 0 {
                let header = Header::Message { bytes };
                expected.extend(header.encode());
                assert!(outbound.queue(header, &mut |room| room.copy_from_slice(&payload)));
            } else {
                let header = Header::Batch(batch);
                expected.extend(header.encode());
                while !outbound.queue(header, &mut |room| room.copy_from_slice(&payload)) {
                    refusals += 1;
                    assert!(!outbound.has_room_again());
                    while !outbound.take_room_again() {
                        outbound.write(&mut socket, 40, &mut stats).unwrap();
                    }
                    assert!(!outbound.take_room_again());
                }
            }
            expected.extend(payload);
        }
        while !outbound.is_empty() {
            outbound.write(&mut socket, 1000, &mut stats).unwrap();
        }
        assert!(socket.taken == expected);
        assert!(refusals > 100);
        assert_eq!(outbound.queued_bytes(), 0);
        assert_eq!(stats.bytes_out, expected.len() as u64);
        assert_eq!((stats.messages_out, stats.batches_out), (167, 333));
    }

    #[test]
    fn empty_frames_are_bounded_by_number() {
        let mut outbound = Outbound::new(64);
        let mut fill = |_: &mut [u8]| {};
        let queued = (0..)
            .take_while(|&id| outbound.queue(Header::Batch(Batch { id, bytes: 0 }), &mut fill))
            .count();
        assert_eq!(queued, limits::MAX_QUEUED_BATCHES);
        let queued = (0..u64::MAX)
            .take_while(|_| outbound.queue(Header::Message { bytes: 0 }, &mut fill))
            .count();
        assert_eq!(queued, limits::MAX_QUEUED_MESSAGES);
    }
}
