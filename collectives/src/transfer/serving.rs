//! What a producer does for one part: a pair of ranks of an offer.

use std::{collections::VecDeque, time::Duration};

use moai_memory::Region;
use moai_translate::format::Counts;
use moai_transport::{Batch, Interface, Path, PeerId, Posted};

use super::{
    Report, Route, TURN_BYTES,
    device::Fetching,
    order::{Gone, Order},
    pace::Pace,
};
use crate::{
    cost::Way,
    digest::DigestKey,
    execute::Runner,
    protocol::node::{LinkId, ServeId},
};

/// Chunks of a part, on their way or being digested where they lie.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) id: ServeId,
    pub(super) offer: u64,
    pub(super) link: LinkId,
    pub(super) runner: Runner,
    /// Number of the part in the ids of its batches.
    stream: u64,
    pub(super) way: Way,
    pub(super) order: Order,
    /// Bytes of what is done, as they would go over a wire.
    pub(super) done: u64,
    /// Digests of chunks that are done, and those of them that are to be told.
    sums: Vec<u64>,
    gone: Gone,
    /// Of rows that are sent.
    key: DigestKey,
    /// Of pages that are mapped.
    lent_key: DigestKey,
    /// Where its pages lie, if the processor cannot load from them; and chunks that are there, or on their way.
    pub(super) device: Option<Fetching>,
    fetched: VecDeque<(usize, bool)>,
    pub(super) path: Option<Path>,
    /// Why its pages are sent.
    pub(super) why: Option<String>,
}

/// How a turn of work ended.
#[derive(Debug)]
pub(super) enum Turn {
    /// There may be more.
    Did,
    /// Nothing more is ready.
    All,
    /// Not before a pause.
    Pause(Duration),
    /// The transport has no room.
    Full,
    /// Not before the device has fetched more.
    Fetching,
    /// It cannot go on.
    Failed(String),
}

/// A part that a consumer has asked for.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) id: ServeId,
    pub(super) offer: u64,
    pub(super) link: LinkId,
    pub(super) stream: u64,
    pub(super) key: u64,
}

impl Serving {
    pub(super) fn new(ask: Ask, runner: Runner, device: Option<Fetching>) -> Self {
        let Ask {
            id,
            offer,
            link,
            stream,
            key,
        } = ask;
        Self {
            id,
            offer,
            link,
            stream,
            way: Way::Sent,
            order: Order::new(&runner),
            done: 0,
            sums: vec![0; runner.chunks().len()],
            gone: Gone::default(),
            lent_key: runner.digest_key(key).where_mapped(),
            key: runner.digest_key(key),
            runner,
            device,
            fetched: VecDeque::new(),
            path: None,
            why: None,
        }
    }

    /// Sends from the start what was to be mapped.
    pub(super) fn send_instead(&mut self) {
        self.way = Way::Sent;
        self.order.restart();
        self.done = 0;
        self.gone.clear();
    }

    /// Some work, as far as the interface and the pace allow.
    pub(super) fn turn(
        &mut self,
        (interface, to): (&mut dyn Interface, PeerId),
        pool: &[Region],
        pace: &mut Pace,
        report: &mut Report,
    ) -> Turn {
        match (self.way, &self.device) {
            (Way::Mapped, _) => self.digest(pool, pace, report),
            (Way::Sent, None) => self.send((interface, to), pool, pace, report),
            (Way::Sent, Some(_)) => self.send_fetched((interface, to), pace, report),
        }
    }

    /// Digests that are to be told: of which chunk the first is, and the digests. `all` says that no more follow at once.
    pub(super) fn untold(&mut self, all: bool) -> Vec<(u32, Vec<u64>)> {
        let runs = self.gone.take(all).into_iter();
        let sums = |run: std::ops::Range<u32>| {
            let sums = &self.sums[run.start as usize..run.end as usize];
            (run.start, sums.to_vec())
        };
        runs.map(sums).collect()
    }

    /// Digests some of the pages where they lie.
    fn digest(&mut self, pool: &[Region], pace: &mut Pace, report: &mut Report) -> Turn {
        let mut bytes = 0;
        while bytes < TURN_BYTES {
            let Some((index, _)) = self.order.next(self.runner.chunks()) else {
                return if bytes > 0 { Turn::Did } else { Turn::All };
            };
            if let Some(pause) = pace.pause() {
                return Turn::Pause(pause);
            }
            let (_, digest) = self.runner.digest_lent(index, pool, &self.lent_key);
            let [read, wire, _] = self.runner.row_bytes(index);
            pace.add(wire);
            bytes += read;
            report.bytes_mapped += read;
            report.chunks_mapped += 1;
            let is_last = self.order.advance();
            self.did(index, digest, is_last, report);
        }
        Turn::Did
    }

    /// Hands the next chunk to the transport.
    fn send(
        &mut self,
        (interface, to): (&mut dyn Interface, PeerId),
        pool: &[Region],
        pace: &mut Pace,
        report: &mut Report,
    ) -> Turn {
        let Some((index, chunk)) = self.order.next(self.runner.chunks()) else {
            return Turn::All;
        };
        if let Some(pause) = pace.pause() {
            return Turn::Pause(pause);
        }
        let batch = Batch {
            id: batch_id(self.stream, index),
            bytes: chunk.bytes,
        };
        let (mut counts, mut digest) = (Counts::default(), 0);
        let posted = interface.post(to, batch, &mut |out| {
            (counts, digest) = self.runner.gather_digested(index, pool, out, &self.key);
        });
        match posted {
            Ok(Posted::Done | Posted::InFlight(_)) => {
                let is_last = self.order.advance();
                self.posted(index, counts, pace, report);
                self.did(index, digest, is_last, report);
                Turn::Did
            }
            Ok(Posted::Busy) => Turn::Full,
            Err(error) => Turn::Failed(format!("cannot send: {error}")),
        }
    }

    /// As [`send`](Self::send), of what a device has fetched.
    fn send_fetched(
        &mut self,
        (interface, to): (&mut dyn Interface, PeerId),
        pace: &mut Pace,
        report: &mut Report,
    ) -> Turn {
        let Some(device) = &mut self.device else {
            return Turn::All;
        };
        if let Err(why) = device.collect() {
            return device_failed(why);
        }
        while device.has_room()
            && let Some((index, chunk)) = self.order.next(self.runner.chunks())
        {
            device.ask(index, chunk.bytes);
            let is_last = self.order.advance();
            self.fetched.push_back((index, is_last));
        }
        let Some(&(index, is_last)) = self.fetched.front() else {
            return Turn::All;
        };
        let Some(chunk) = self.runner.chunks().get(index) else {
            return Turn::All;
        };
        let fetched = match device.get() {
            Ok(Some(fetched)) => fetched,
            Ok(None) => return Turn::Fetching,
            Err(why) => return device_failed(why),
        };
        if let Some(pause) = pace.pause() {
            return Turn::Pause(pause);
        }
        let batch = Batch {
            id: batch_id(self.stream, index),
            bytes: chunk.bytes,
        };
        let posted = interface.post(to, batch, &mut |out| out.copy_from_slice(fetched.rows));
        let (counts, digest) = (fetched.counts, fetched.digest);
        match posted {
            Ok(Posted::Done | Posted::InFlight(_)) => {
                device.done();
                self.fetched.pop_front();
                self.posted(index, counts, pace, report);
                self.did(index, digest, is_last, report);
                Turn::Did
            }
            Ok(Posted::Busy) => Turn::Full,
            Err(error) => Turn::Failed(format!("cannot send: {error}")),
        }
    }

    /// Counts a chunk as handed over.
    fn posted(&mut self, index: usize, counts: Counts, pace: &mut Pace, report: &mut Report) {
        let wire = self.runner.row_bytes(index)[1];
        report.bytes_wire += wire;
        report.saturated += counts.saturated;
        report.nan += counts.nan;
        pace.add(wire);
    }

    fn did(&mut self, index: usize, digest: u64, is_last: bool, report: &mut Report) {
        self.sums[index] = digest;
        self.gone.add(index, is_last);
        let [read, wire, _] = self.runner.row_bytes(index);
        self.done += wire;
        report.bytes_read += read;
        report.chunks += 1;
    }

    /// What carried its bytes.
    pub(super) fn route(&mut self) -> Option<Route> {
        let peer = self.runner.pair().target;
        let rank = self.runner.pair().source;
        let route = Route::new(
            (rank, peer),
            self.path.take()?,
            self.way,
            self.why.as_deref(),
        );
        Some(route.fell_back(self.why.is_some()))
    }
}

fn device_failed(why: String) -> Turn {
    Turn::Failed(format!("the device with the pages failed: {why}"))
}

/// Bits of a chunk's number in the id of its batch: a request has 2^20 at most, and so has a part of it.
const CHUNK_BITS: u32 = 20;
/// Bits of the part's number.
const PART_BITS: u32 = 13;
const TRANSFER_MASK: u64 = (1 << (64 - PART_BITS - CHUNK_BITS)) - 1;

const _: () = assert!(crate::limits::MAX_CHUNKS <= 1 << CHUNK_BITS);
const _: () = assert!(crate::limits::MAX_PARTS <= 1 << PART_BITS);

/// What names a part of a consumer's transfer in the ids of batches on its link. Of transfers, it has the last 31 bits: one
/// that far back is not served any more.
pub(super) fn stream_of(transfer: u64, part: u32) -> u64 {
    (transfer & TRANSFER_MASK) << PART_BITS | u64::from(part)
}

/// The transfer that a stream names: the latest with these bits, if `last` was the last that was begun.
pub(super) fn transfer_of(stream: u64, last: u64) -> Option<u64> {
    let back = last.wrapping_sub(stream >> PART_BITS) & TRANSFER_MASK;
    last.checked_sub(back).filter(|&transfer| transfer > 0)
}

fn batch_id(stream: u64, index: usize) -> u64 {
    stream << CHUNK_BITS | index as u64
}

/// What names a chunk of a consumer's transfer among the batches on its link: for whoever speaks the protocol by itself.
#[must_use]
pub fn batch_of(transfer: u64, part: u32, chunk: u32) -> u64 {
    batch_id(stream_of(transfer, part), chunk as usize)
}

/// The part, and the chunk.
pub(super) fn parse_batch(id: u64) -> (u64, u64) {
    (id >> CHUNK_BITS, id & ((1 << CHUNK_BITS) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_names_the_latest_transfer_with_its_bits() {
        let far = TRANSFER_MASK + 1;
        for (transfer, last) in [(1, 1), (1, 9), (9, 9), (far + 5, far + 5), (8, far + 5)] {
            assert_eq!(transfer_of(stream_of(transfer, 8191), last), Some(transfer));
        }
        for (transfer, last) in [(0, 0), (1, 0), (0, 5), (6, 5), (TRANSFER_MASK, 5)] {
            assert_eq!(transfer_of(stream_of(transfer, 0), last), None);
        }
    }

    #[test]
    fn parts_and_chunks_are_told_apart_in_the_ids_of_batches() {
        let mut seen = std::collections::BTreeSet::new();
        for transfer in [1, 2, u64::from(u32::MAX) / 2] {
            for part in [0, 1, 8191] {
                for chunk in [0, 1, (1 << CHUNK_BITS) - 1] {
                    let stream = stream_of(transfer, part);
                    let id = batch_id(stream, chunk);
                    assert_eq!(parse_batch(id), (stream, chunk as u64));
                    assert!(seen.insert(id));
                }
            }
        }
    }
}
