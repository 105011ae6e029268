//! A ring of frames between one producer and one consumer.
//!
//! ```text
//!   memory   │ tail │ head │ doorbells │ data: capacity bytes, a power of two │
//!   frame    │ kind u32 │ bytes u32 │ id u64 │ payload, padded to 16 │
//! ```
//!
//! `tail` and `head` count bytes since the ring was made and never wrap (2⁶⁴ bytes are 50 years at
//! 10 GB/s); modulo the capacity they are offsets into the data. A frame is contiguous: where the end of
//! the data is too short for one, a header that says so is left there and the frame starts at offset 0.
//! Memory that is all zeros is an empty ring, so whoever maps fresh memory has nothing to set up.
//!
//! # Whose bytes are whose
//!
//! `head..tail` belongs to the consumer, the rest of the ring to the producer. Each side moves one of the
//! two, and only to give bytes away:
//!
//! 1. The producer writes frames behind `tail`, then stores a larger `tail` (release). The consumer loads
//!    it (acquire), so it sees the frames as written.
//! 2. The consumer reads frames, then stores a larger `head` (release). The producer loads it (acquire),
//!    so it overwrites only what has been read.
//!
//! Both keep a private copy of their own index, which is what they go by, and of the other's as last seen.
//! An old copy of the other's index is on the safe side: fewer bytes seem to be there than are. So the
//! other's cache line is touched only when the copy says "empty" or "full", and `head`, `tail` and the
//! doorbells have 128 bytes each, because cores fetch lines of 64 bytes in pairs.
//!
//! Moving an index, [`Producer::publish`] and [`Consumer::publish`], can be put off until several frames
//! have been written or read. It says whether the other side sleeps and has to be rung, after the protocol
//! of [`doorbell`](super::doorbell).
//!
//! # What a peer can do
//!
//! An index that moved backwards, past the other one, or off the grid of 16 bytes is [`Corrupt`]. So is a
//! length that leads out of what was published or past the end. A frame's header is copied out once, and
//! the copy is what is checked and used. The payload is lent in place: a peer that breaks the protocol can
//! change it while it is read, so whoever decodes it must not rely on reading the same value twice.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use thiserror::Error;

use super::corrupt::{Corrupt, corrupt};
use super::doorbell::{Doorbell, Wake};
use super::primitive::{AtomicU64, Ordering};
use super::shared::{Bytes, Owner, Plain, Shared, UNIT_BYTES};

/// The writing side of a ring.
#[derive(Debug)]
pub struct Producer {
    header: Shared<Header>,
    data: Bytes,
    /// Where the next frame goes; ahead of the shared tail by what has not been published.
    tail: u64,
    published: u64,
    /// The consumer's head when last looked at.
    head: u64,
}

/// The reading side of a ring.
#[derive(Debug)]
pub struct Consumer {
    header: Shared<Header>,
    data: Bytes,
    /// Where the next frame is; ahead of the shared head by what has not been given back.
    head: u64,
    published: u64,
    /// The producer's tail when last looked at.
    tail: u64,
    peeked: Option<Peeked>,
}

/// Room for a frame, to be filled and committed. Dropped, it leaves the ring as it was.
///
/// The bytes hold leftovers of older frames.
#[derive(Debug)]
pub struct Draft<'a> {
    producer: &'a mut Producer,
    /// Where the frame's header goes, once the end is skipped if it has to be.
    start: u64,
    bytes: u32,
}

/// A frame in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The sender's word for what it is; carried, never interpreted.
    pub kind: u32,
    /// The sender's name for it; carried, never interpreted.
    pub id: u64,
    /// The payload, in place.
    pub bytes: &'a [u8],
}

/// Memory that cannot be a ring. It depends on the arguments of a call only.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "{bytes} bytes at {address:#x} cannot be a ring: it needs a multiple of {align} as its address, and \
     {HEADER_BYTES} bytes plus a power of two from {MIN_CAPACITY} to {MAX_CAPACITY}"
)]
#[non_exhaustive]
pub struct Unfit {
    /// Bytes of the memory, or what a ring of the capacity asked for would have.
    pub bytes: usize,
    /// Where it starts.
    pub address: usize,
    /// Alignment that it needs.
    pub align: usize,
}

/// Least capacity of a ring, in bytes: two frames of 16 bytes with their headers.
pub const MIN_CAPACITY: u32 = 64;

/// Largest capacity of a ring, in bytes. A staging ring needs no more, see
/// [`MAX_STAGING_RING_BYTES`](crate::limits::MAX_STAGING_RING_BYTES).
pub const MAX_CAPACITY: u32 = 1 << 30;

/// Bytes before a ring's data.
pub const HEADER_BYTES: usize = 384;

/// Bytes of memory that a ring of `capacity` bytes takes.
pub const fn memory_bytes(capacity: u32) -> usize {
    HEADER_BYTES + capacity as usize
}

/// The longest frame that a ring of `capacity` bytes takes.
///
/// Half of it, less a header: that much is contiguous in an empty ring wherever it starts.
pub const fn longest_frame(capacity: u32) -> u32 {
    capacity / 2 - UNIT_BYTES as u32
}

/// A ring of this process's own memory, for two of its threads.
///
/// # Errors
///
/// [`Unfit`] if `capacity` is not a power of two in range.
pub fn pair(capacity: u32) -> Result<(Producer, Consumer), Unfit> {
    fit(0, memory_bytes(capacity))?;
    let header = Shared::zeroed(1);
    let (left, right) = Bytes::pair(capacity as usize);
    Ok((
        Producer::new(header.clone(), left),
        Consumer::new(header, right),
    ))
}

/// What both sides see, at the start of a ring's memory.
#[derive(Debug, Default)]
#[repr(C)]
struct Header {
    /// Written by the producer.
    tail: Line<AtomicU64>,
    /// Written by the consumer.
    head: Line<AtomicU64>,
    /// Written when someone sleeps or wakes up, read at every publish.
    bells: Line<Bells>,
}

#[derive(Debug, Default)]
#[repr(C)]
struct Bells {
    consumer: Doorbell,
    producer: Doorbell,
}

/// Two cache lines of its own.
#[derive(Debug, Default)]
#[repr(C, align(128))]
struct Line<T>(T);

// SAFETY: atomics and padding, `repr(C)`; zeros are the default.
unsafe impl Plain for Header {}

#[cfg(not(moai_loom))]
const _: () = {
    assert!(size_of::<Header>() == HEADER_BYTES);
    assert!(std::mem::offset_of!(Header, head) == 128);
    assert!(std::mem::offset_of!(Header, bells) == 256);
};

/// The header of a frame, copied out of the ring and found to be in order.
#[derive(Clone, Copy, Debug)]
struct Peeked {
    kind: u32,
    id: u64,
    bytes: u32,
    /// Offset of the payload.
    payload: usize,
    /// Where the frame ends.
    end: u64,
}

/// In place of a length: nothing more comes before the end of the data.
const SKIP: u32 = u32::MAX;

const UNIT: u64 = UNIT_BYTES as u64;

impl Producer {
    fn new(header: Shared<Header>, data: Bytes) -> Self {
        Self {
            header,
            data,
            tail: 0,
            published: 0,
            head: 0,
        }
    }

    /// The writing side of the ring in the `bytes` bytes at `pointer`.
    ///
    /// # Errors
    ///
    /// [`Unfit`] if their number or the address is not that of a ring.
    ///
    /// # Safety
    ///
    /// - The bytes are readable and writable for as long as `owner` lives, and were all zero before either
    ///   side was made.
    /// - The memory has one [`Producer`] and one [`Consumer`] in its life, and this process touches it
    ///   through those only.
    pub unsafe fn map(pointer: NonNull<u8>, bytes: usize, owner: Owner) -> Result<Self, Unfit> {
        // SAFETY: the same contract.
        let (header, data) = unsafe { map(pointer, bytes, owner) }?;
        Ok(Self::new(header, data))
    }

    /// Bytes of data that the ring has.
    pub fn capacity(&self) -> u32 {
        self.data.len() as u32
    }

    /// The longest frame that can be reserved.
    pub fn longest_frame(&self) -> u32 {
        longest_frame(self.capacity())
    }

    /// Room for a frame of `bytes` bytes, or `None` while older frames are in its way. Longer frames than
    /// [`longest_frame`](Self::longest_frame) never get room.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] if the consumer moved its index to where it cannot be.
    #[inline]
    pub fn reserve(&mut self, bytes: u32) -> Result<Option<Draft<'_>>, Corrupt> {
        let Some(start) = self.place(bytes)? else {
            return Ok(None);
        };
        let draft = Draft {
            producer: self,
            start,
            bytes,
        };
        draft
            .producer
            .data
            .writes(draft.offset(), UNIT_BYTES + bytes as usize);
        Ok(Some(draft))
    }

    /// Makes what has been committed visible, and says whether the consumer has to be rung.
    #[inline]
    pub fn publish(&mut self) -> Wake {
        if self.published == self.tail {
            return Wake::No;
        }
        self.published = self.tail;
        let header = &self.header[0];
        header.tail.0.store(self.tail, Ordering::Release);
        header.bells.0.consumer.check()
    }

    /// Announces that the caller is about to wait for room for `bytes` bytes. If the answer is `true` it
    /// waits to be rung, and then calls [`unpark`](Self::unpark). If it is `false` there is room, and
    /// nothing was announced.
    ///
    /// A ring says that some room was made, not that it is enough.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] as for [`reserve`](Self::reserve); nothing is announced.
    pub fn park(&mut self, bytes: u32) -> Result<bool, Corrupt> {
        debug_assert_eq!(
            self.published, self.tail,
            "waits for what it has not published"
        );
        self.header[0].bells.0.producer.announce();
        let place = self.place(bytes);
        if !matches!(place, Ok(None)) {
            self.unpark();
        }
        Ok(place?.is_none())
    }

    /// Takes the announcement of [`park`](Self::park) back.
    pub fn unpark(&mut self) {
        self.header[0].bells.0.producer.withdraw();
    }

    /// Where a frame of `bytes` bytes can start.
    #[inline]
    fn place(&mut self, bytes: u32) -> Result<Option<u64>, Corrupt> {
        if bytes > self.longest_frame() {
            return Ok(None);
        }
        let capacity = self.data.len() as u64;
        let frame = frame_bytes(bytes);
        let to_end = capacity - offset(self.tail, &self.data) as u64;
        let start = if frame <= to_end {
            self.tail
        } else {
            self.tail + to_end
        };
        if start + frame - self.head > capacity {
            self.look()?;
            if start + frame - self.head > capacity {
                return Ok(None);
            }
        }
        Ok(Some(start))
    }

    /// Looks at the consumer's head.
    #[cold]
    fn look(&mut self) -> Result<(), Corrupt> {
        let seen = self.header[0].head.0.load(Ordering::Acquire);
        // It moves forwards, on the grid, and not past what has been published.
        if seen < self.head || seen > self.published || !seen.is_multiple_of(UNIT) {
            return Err(corrupt("ring head", seen, self.published));
        }
        self.head = seen;
        Ok(())
    }
}

impl Draft<'_> {
    /// Makes the frame shorter than was reserved; a length at or over the present one changes nothing.
    pub fn truncate(&mut self, bytes: u32) {
        self.bytes = self.bytes.min(bytes);
    }

    /// Puts the frame into the ring. The consumer sees it after the next [`Producer::publish`].
    #[inline]
    pub fn commit(self, kind: u32, id: u64) {
        let at = self.offset();
        let Producer { data, tail, .. } = self.producer;
        if self.start != *tail {
            let end = offset(*tail, data);
            // SAFETY: the end of the data, from `tail` to `start`, was found free by `place` and is the
            // producer's until `tail` is published past it. It is a whole number of units, and not zero.
            unsafe { data.set_unit(end, [u64::from(SKIP) << 32, 0]) };
        }
        data.writes(at, UNIT_BYTES + self.bytes as usize);
        let first = u64::from(self.bytes) << 32 | u64::from(kind);
        // SAFETY: the frame's span was found free by `place`, as above.
        unsafe { data.set_unit(at, [first, id]) };
        *tail = self.start + frame_bytes(self.bytes);
    }

    fn offset(&self) -> usize {
        offset(self.start, &self.producer.data)
    }
}

impl Deref for Draft<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let payload = self.offset() + UNIT_BYTES;
        // SAFETY: found free by `place`, so it is the producer's, which this draft borrows as a whole.
        unsafe { self.producer.data.span(payload, self.bytes as usize) }
    }
}

impl DerefMut for Draft<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        let payload = self.offset() + UNIT_BYTES;
        // SAFETY: found free by `place`, so it is the producer's, which this draft borrows as a whole.
        unsafe { self.producer.data.span_mut(payload, self.bytes as usize) }
    }
}

impl Consumer {
    fn new(header: Shared<Header>, data: Bytes) -> Self {
        Self {
            header,
            data,
            head: 0,
            published: 0,
            tail: 0,
            peeked: None,
        }
    }

    /// The reading side of the ring in the `bytes` bytes at `pointer`.
    ///
    /// # Errors
    ///
    /// [`Unfit`] if their number or the address is not that of a ring.
    ///
    /// # Safety
    ///
    /// As for [`Producer::map`].
    pub unsafe fn map(pointer: NonNull<u8>, bytes: usize, owner: Owner) -> Result<Self, Unfit> {
        // SAFETY: the same contract.
        let (header, data) = unsafe { map(pointer, bytes, owner) }?;
        Ok(Self::new(header, data))
    }

    /// Bytes of data that the ring has.
    pub fn capacity(&self) -> u32 {
        self.data.len() as u32
    }

    /// The oldest frame that has not been released, if there is one.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] if the producer's index or the frame's header cannot be.
    #[inline]
    pub fn peek(&mut self) -> Result<Option<Frame<'_>>, Corrupt> {
        let Some(peeked) = self.next()? else {
            return Ok(None);
        };
        // SAFETY: `next` found the payload between `head` and `tail`, which is the consumer's; it stays so
        // until `publish`, which borrows the consumer mutably as the frame does.
        let bytes = unsafe { self.data.span(peeked.payload, peeked.bytes as usize) };
        Ok(Some(Frame {
            kind: peeked.kind,
            id: peeked.id,
            bytes,
        }))
    }

    /// Is done with the frame that [`peek`](Self::peek) showed; without one, nothing happens. The producer
    /// gets the room after the next [`publish`](Self::publish).
    #[inline]
    pub fn release(&mut self) {
        if let Some(peeked) = self.peeked.take() {
            self.data.reads(peeked.payload, peeked.bytes as usize);
            self.head = peeked.end;
        }
    }

    /// Gives back what has been released, and says whether the producer waits for room and has to be rung.
    ///
    /// Worth calling after a run of frames rather than after each, after having answered rather than before,
    /// and always before waiting.
    #[inline]
    pub fn publish(&mut self) -> Wake {
        if self.published == self.head {
            return Wake::No;
        }
        self.published = self.head;
        let header = &self.header[0];
        header.head.0.store(self.head, Ordering::Release);
        header.bells.0.producer.check()
    }

    /// Announces that the caller is about to wait for frames. If the answer is `true` it waits to be rung,
    /// and then calls [`unpark`](Self::unpark). If it is `false` a frame is there, and nothing was announced.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] as for [`peek`](Self::peek); nothing is announced.
    pub fn park(&mut self) -> Result<bool, Corrupt> {
        debug_assert_eq!(
            self.published, self.head,
            "waits while the producer may lack its room"
        );
        self.header[0].bells.0.consumer.announce();
        let next = self.next();
        if !matches!(next, Ok(None)) {
            self.unpark();
        }
        Ok(next?.is_none())
    }

    /// Takes the announcement of [`park`](Self::park) back.
    pub fn unpark(&mut self) {
        self.header[0].bells.0.consumer.withdraw();
    }

    /// The header of the oldest frame.
    #[inline]
    fn next(&mut self) -> Result<Option<Peeked>, Corrupt> {
        if self.peeked.is_some() {
            return Ok(self.peeked);
        }
        if self.head == self.tail {
            self.look()?;
            if self.head == self.tail {
                return Ok(None);
            }
        }
        let capacity = self.data.len() as u64;
        let mut start = self.head;
        let mut header = self.header_at(start);
        let to_end = capacity - offset(start, &self.data) as u64;
        if length(header) == SKIP && to_end < capacity {
            // A frame follows, published together with what is skipped.
            if to_end >= self.tail - start {
                return Err(corrupt("ring skip", to_end, self.tail - start - UNIT));
            }
            start += to_end;
            header = self.header_at(start);
        }
        let bytes = length(header);
        let at = offset(start, &self.data);
        let room = (self.tail - start).min(capacity - at as u64);
        if frame_bytes(bytes) > room {
            return Err(corrupt("frame length", u64::from(bytes), room - UNIT));
        }
        self.peeked = Some(Peeked {
            kind: header[0] as u32,
            id: header[1],
            bytes,
            payload: at + UNIT_BYTES,
            end: start + frame_bytes(bytes),
        });
        Ok(self.peeked)
    }

    fn header_at(&self, position: u64) -> [u64; 2] {
        let offset = offset(position, &self.data);
        // SAFETY: only asked for positions between `head` and `tail`, on the grid, where at least one unit
        // is the consumer's.
        unsafe { self.data.unit(offset) }
    }

    /// Looks at the producer's tail.
    fn look(&mut self) -> Result<(), Corrupt> {
        let seen = self.header[0].tail.0.load(Ordering::Acquire);
        // It moves forwards, on the grid, and by no more than what has been given back.
        let limit = self.published + self.data.len() as u64;
        if seen < self.tail || seen > limit || !seen.is_multiple_of(UNIT) {
            return Err(corrupt("ring tail", seen, limit));
        }
        self.tail = seen;
        Ok(())
    }
}

/// The two parts of a ring's memory.
///
/// # Safety
///
/// That of [`Producer::map`].
unsafe fn map(
    pointer: NonNull<u8>,
    bytes: usize,
    owner: Owner,
) -> Result<(Shared<Header>, Bytes), Unfit> {
    fit(pointer.addr().get(), bytes)?;
    // SAFETY: aligned, and long enough for the header, by `fit`; the rest is the caller's promise.
    let header = unsafe { Shared::map(pointer.cast(), 1, owner.clone()) };
    // SAFETY: inside the memory.
    let data = unsafe { pointer.add(HEADER_BYTES) };
    // SAFETY: what is behind the header, which leaves it aligned; the rest is the caller's promise.
    let data = unsafe { Bytes::map(data, bytes - HEADER_BYTES, owner) };
    Ok((header, data))
}

fn fit(address: usize, bytes: usize) -> Result<(), Unfit> {
    let align = align_of::<Line<u8>>();
    let capacity = bytes.saturating_sub(HEADER_BYTES);
    let range = MIN_CAPACITY as usize..=MAX_CAPACITY as usize;
    if address.is_multiple_of(align) && range.contains(&capacity) && capacity.is_power_of_two() {
        return Ok(());
    }
    Err(Unfit {
        bytes,
        address,
        align,
    })
}

/// Bytes that a frame takes in the ring. At least one unit, and no overflow for any length.
fn frame_bytes(bytes: u32) -> u64 {
    UNIT + u64::from(bytes).next_multiple_of(UNIT)
}

/// Where a position is in the data, whose length is a power of two.
fn offset(position: u64, data: &Bytes) -> usize {
    position as usize & (data.len() - 1)
}

fn length(header: [u64; 2]) -> u32 {
    (header[0] >> 32) as u32
}

#[cfg(all(test, not(moai_loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;

    const NAMES: [&str; 4] = ["ring head", "ring tail", "ring skip", "frame length"];

    fn random(seed: u64) -> impl FnMut() -> u32 {
        println!("seed {seed}");
        let mut state = seed;
        move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32
        }
    }

    fn rounds(real: u64) -> u64 {
        if cfg!(miri) { real.div_ceil(100) } else { real }
    }

    /// The bytes of frame `id`.
    fn fill(id: u64, bytes: &mut [u8]) {
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = (id as usize * 31 + at) as u8;
        }
    }

    fn check(frame: Frame<'_>) {
        let mut expected = vec![0; frame.bytes.len()];
        fill(frame.id, &mut expected);
        assert_eq!(frame.bytes, expected, "frame {}", frame.id);
        assert_eq!(frame.kind, frame.id as u32 ^ 0x55, "frame {}", frame.id);
    }

    #[test]
    fn frames_come_out_as_they_went_in() {
        for seed in 1..=rounds(300).max(8) {
            let mut random = random(seed);
            let capacity = 64 << (random() % 5);
            let (mut producer, mut consumer) = pair(capacity).unwrap();
            let longest = longest_frame(capacity);
            let (mut sent, mut received) = (0_u64, 0_u64);
            for _ in 0..rounds(400).max(40) {
                match random() % 8 {
                    0..=2 => {
                        let bytes = random() % (longest + 1);
                        if let Some(mut draft) = producer.reserve(bytes).unwrap() {
                            if random().is_multiple_of(4) {
                                draft.truncate(bytes / 2);
                            }
                            fill(sent, &mut draft);
                            if !random().is_multiple_of(8) {
                                draft.commit(sent as u32 ^ 0x55, sent);
                                sent += 1;
                            }
                        } else {
                            assert!(sent > received || consumer.published < consumer.head);
                        }
                    }
                    3..=4 => _ = producer.publish(),
                    5 => _ = consumer.publish(),
                    _ => {
                        if let Some(frame) = consumer.peek().unwrap() {
                            assert_eq!(frame.id, received);
                            check(frame);
                            consumer.release();
                            received += 1;
                        }
                    }
                }
            }
            let _ = producer.publish();
            while let Some(frame) = consumer.peek().unwrap() {
                assert_eq!(frame.id, received);
                check(frame);
                consumer.release();
                received += 1;
            }
            assert_eq!(received, sent);
        }
    }

    #[test]
    fn an_empty_ring_takes_the_longest_frame_wherever_it_stands() {
        let (mut producer, mut consumer) = pair(256).unwrap();
        let longest = producer.longest_frame();
        assert_eq!(longest, 112);
        assert!(producer.reserve(longest + 1).unwrap().is_none());
        assert!(producer.reserve(u32::MAX).unwrap().is_none());
        for step in 0..64 {
            for bytes in [step % 3 * 16, longest] {
                let draft = producer.reserve(bytes).unwrap();
                draft.expect("an empty ring refused a frame").commit(1, 2);
                let _ = producer.publish();
                assert_eq!(
                    consumer.peek().unwrap().unwrap().bytes.len(),
                    bytes as usize
                );
                consumer.release();
                let _ = consumer.publish();
            }
        }
    }

    #[test]
    fn two_threads_pass_random_frames() {
        for seed in 1..=4 {
            let mut random = random(seed);
            let (mut producer, mut consumer) = pair(512).unwrap();
            let frames = if cfg!(miri) { 150 } else { 100_000 };
            let sender = std::thread::spawn(move || {
                let longest = producer.longest_frame();
                for id in 0..frames {
                    let bytes = random() % (longest + 1);
                    loop {
                        if let Some(mut draft) = producer.reserve(bytes).unwrap() {
                            fill(id, &mut draft);
                            draft.commit(id as u32 ^ 0x55, id);
                            break;
                        }
                        let _ = producer.publish();
                        std::thread::yield_now();
                    }
                    if random().is_multiple_of(4) {
                        let _ = producer.publish();
                    }
                }
                let _ = producer.publish();
            });
            let mut received = 0;
            while received < frames {
                match consumer.peek().unwrap() {
                    Some(frame) => {
                        assert_eq!(frame.id, received);
                        check(frame);
                        consumer.release();
                        received += 1;
                    }
                    None => std::thread::yield_now(),
                }
                let _ = consumer.publish();
            }
            sender.join().unwrap();
        }
    }

    #[test]
    fn only_who_sleeps_is_rung() {
        let (mut producer, mut consumer) = pair(64).unwrap();
        let send = |producer: &mut Producer| {
            producer.reserve(16).unwrap().unwrap().commit(0, 0);
            producer.publish()
        };
        assert_eq!(send(&mut producer), Wake::No);
        assert!(!consumer.park().unwrap(), "waits beside a frame");
        assert_eq!(send(&mut producer), Wake::No);
        assert!(producer.park(16).unwrap());
        consumer.release();
        assert_eq!(consumer.publish(), Wake::Needed);
        assert!(!producer.park(16).unwrap());
        assert!(consumer.peek().unwrap().is_some());
        consumer.release();
        assert_eq!(consumer.publish(), Wake::No);
        assert!(consumer.park().unwrap());
        assert_eq!(send(&mut producer), Wake::Needed);
        assert_eq!(producer.publish(), Wake::No);
    }

    /// Any word of the memory may hold anything at any time. Both sides answer with a value or with
    /// [`Corrupt`]; what they touch stays inside the memory, by the assertion in [`Bytes`].
    #[test]
    fn whatever_a_peer_writes_is_refused_or_harmless() {
        let mut refused = [0; NAMES.len()];
        for seed in 1..=if cfg!(miri) { 8 } else { 2000 } {
            let mut random = random(seed);
            let capacity = 64 << (random() % 3);
            let (mut producer, mut consumer) = pair(capacity).unwrap();
            let mut note = |corrupt: Corrupt| {
                let at = NAMES.iter().position(|name| *name == corrupt.field);
                refused[at.unwrap()] += 1;
            };
            for _ in 0..100 {
                let value = match random() % 5 {
                    0 => u64::from(random()) << 32 | u64::from(random()),
                    1 => u64::MAX - u64::from(random() % 64),
                    2 => u64::from(random() % 40) * 16,
                    3 => u64::from(random() % (2 * capacity)) << 32,
                    _ => u64::from(SKIP) << 32,
                };
                let header = &producer.header[0];
                match random() % 24 {
                    0 => header.tail.0.store(value, Ordering::Relaxed),
                    1 => header.head.0.store(value, Ordering::Relaxed),
                    // An index that is possible, and headers that are not.
                    2 => {
                        let limit = consumer.published + u64::from(capacity);
                        header.tail.0.store(limit, Ordering::Relaxed);
                    }
                    3 => header.head.0.store(producer.published, Ordering::Relaxed),
                    4..10 => {
                        let unit = random() as usize % (capacity as usize / UNIT_BYTES);
                        // SAFETY: one thread, and no slice is kept.
                        unsafe { producer.data.set_unit(unit * UNIT_BYTES, [value, value]) };
                    }
                    10..14 => match producer.reserve(random() % capacity) {
                        Ok(Some(mut draft)) => {
                            draft.fill(1);
                            draft.commit(1, 1);
                        }
                        Ok(None) => {}
                        Err(corrupt) => note(corrupt),
                    },
                    14..16 => _ = producer.publish(),
                    16..18 => _ = consumer.publish(),
                    _ => match consumer.peek() {
                        Ok(Some(frame)) => {
                            assert!(frame.bytes.len() <= capacity as usize);
                            assert!(
                                frame
                                    .bytes
                                    .iter()
                                    .fold(0_u64, |sum, &byte| sum + u64::from(byte))
                                    < 1 << 40
                            );
                            consumer.release();
                        }
                        Ok(None) => {}
                        Err(corrupt) => note(corrupt),
                    },
                }
            }
        }
        println!("{NAMES:?} {refused:?}");
        assert!(
            refused.iter().all(|&times| times > 0 || cfg!(miri)),
            "{refused:?}"
        );
    }

    #[test]
    fn mapped_memory_is_a_ring_if_it_fits() {
        #[repr(align(128))]
        struct Memory(std::cell::UnsafeCell<[u8; 1024]>);
        // SAFETY: touched through the ring only.
        unsafe impl Sync for Memory {}
        let owner = Arc::new(Memory(std::cell::UnsafeCell::new([0; 1024])));
        let start = NonNull::new(owner.0.get().cast::<u8>()).unwrap();
        for (skipped, bytes) in [(0, 1024), (64, 512 + 384), (0, 384), (0, 384 + 32), (0, 0)] {
            let pointer = NonNull::new(start.as_ptr().wrapping_add(skipped)).unwrap();
            // SAFETY: refused before it is touched.
            let refused = unsafe { Producer::map(pointer, bytes, owner.clone()) };
            assert_eq!(refused.unwrap_err().bytes, bytes);
        }
        // SAFETY: zeroed, owned, used by these two only.
        let mut producer =
            unsafe { Producer::map(start, memory_bytes(512), owner.clone()) }.unwrap();
        // SAFETY: as above.
        let mut consumer = unsafe { Consumer::map(start, memory_bytes(512), owner) }.unwrap();
        let mut draft = producer.reserve(5).unwrap().unwrap();
        draft.copy_from_slice(b"hello");
        draft.commit(3, 4);
        assert_eq!(consumer.peek().unwrap(), None);
        let _ = producer.publish();
        let frame = consumer.peek().unwrap().unwrap();
        assert_eq!((frame.kind, frame.id, frame.bytes), (3, 4, &b"hello"[..]));
    }
}
