//! What a producer rank does for one consumer rank.

use std::time::Duration;

use moai_memory::Region;
use moai_translate::format::Counts;
use moai_transport::{Batch, Interface, Path, PeerId, Posted};

use super::{Report, Route, TURN_BYTES, device::Fetching, pace::Pace};
use crate::{cost::Way, digest::DigestKey, execute::Runner};

/// Chunks of a pair, on their way or being digested where they lie.
#[derive(Debug)]
pub(super) struct Serve {
    pub(super) runner: Runner,
    way: Way,
    next: usize,
    /// Bytes of what is done, as they would go over a wire.
    pub(super) done: u64,
    /// Digests of what is done, by step and layer.
    pub(super) sums: Vec<u64>,
    key: Option<DigestKey>,
    pub(super) path: Option<Path>,
    /// Why its pages are sent.
    pub(super) why: Option<String>,
}

/// How a turn of work ended.
#[derive(Debug)]
pub(super) enum Turn {
    /// There is more.
    Did,
    /// That was all.
    All,
    /// Not before a pause.
    Pause(Duration),
    /// The transport has no room.
    Full,
    /// Not before the device has fetched more.
    Fetching,
    /// The device cannot go on.
    DeviceFailed(String),
    /// It cannot go on.
    Failed(String),
}

impl Serve {
    pub(super) fn new(runner: Runner) -> Self {
        Self {
            sums: vec![0; runner.chunks().parts()],
            runner,
            way: Way::Sent,
            next: 0,
            done: 0,
            key: None,
            path: None,
            why: None,
        }
    }

    /// Starts again if the way is another than before.
    pub(super) fn go(&mut self, way: Way) {
        if self.way != way {
            self.way = way;
            self.next = 0;
            self.done = 0;
            self.sums = vec![0; self.runner.chunks().parts()];
        }
    }

    /// Digests some of the pages where they lie.
    pub(super) fn digest(
        &mut self,
        pool: &[Region],
        key: u64,
        pace: &mut Pace,
        report: &mut Report,
    ) -> Turn {
        let mut bytes = 0;
        while bytes < TURN_BYTES {
            if self.next == self.runner.chunks().len() {
                return Turn::All;
            }
            if let Some(pause) = pace.pause() {
                return Turn::Pause(pause);
            }
            let key = key_of(&mut self.key, key, &self.runner);
            let (_, digest) = self.runner.digest_lent(self.next, pool, key);
            let [read, ..] = self.runner.row_bytes(self.next);
            pace.add(self.runner.row_bytes(self.next)[1]);
            bytes += read;
            report.bytes_mapped += read;
            report.chunks_mapped += 1;
            self.did(digest, report);
        }
        Turn::Did
    }

    /// Hands the next chunk to the transport.
    pub(super) fn send(
        &mut self,
        (interface, to): (&mut dyn Interface, PeerId),
        pool: &[Region],
        key: u64,
        pace: &mut Pace,
        report: &mut Report,
    ) -> Turn {
        let Some(chunk) = self.runner.chunks().get(self.next) else {
            return Turn::All;
        };
        if let Some(pause) = pace.pause() {
            return Turn::Pause(pause);
        }
        let batch = Batch {
            id: self.next as u64,
            bytes: chunk.bytes,
        };
        let key = key_of(&mut self.key, key, &self.runner);
        let (mut counts, mut digest) = (Counts::default(), 0);
        let posted = interface.post(to, batch, &mut |out| {
            (counts, digest) = self.runner.gather_digested(self.next, pool, out, key);
        });
        self.posted(posted, counts, digest, pace, report)
    }

    /// As [`send`](Self::send), of what a device has fetched.
    pub(super) fn send_fetched(
        &mut self,
        (interface, to): (&mut dyn Interface, PeerId),
        (device, pair): (&mut Fetching, usize),
        key: u64,
        pace: &mut Pace,
        report: &mut Report,
    ) -> Turn {
        let Some(chunk) = self.runner.chunks().get(self.next) else {
            return Turn::All;
        };
        let batch = Batch {
            id: self.next as u64,
            bytes: chunk.bytes,
        };
        if let Err(why) = device.start(pair, || self.runner.again(), key) {
            return Turn::DeviceFailed(why);
        }
        device.go_ahead(pair);
        let index = self.next;
        let fetched = match device.get(pair, index) {
            Ok(Some(fetched)) => fetched,
            Ok(None) => return Turn::Fetching,
            Err(why) => return Turn::DeviceFailed(why),
        };
        if let Some(pause) = pace.pause() {
            return Turn::Pause(pause);
        }
        let posted = interface.post(to, batch, &mut |out| out.copy_from_slice(fetched.rows));
        let (counts, digest) = (fetched.counts, fetched.digest);
        let turn = self.posted(posted, counts, digest, pace, report);
        if let Turn::Did = turn {
            device.done(pair, index);
        }
        turn
    }

    /// Counts the next chunk as handed over, if it was.
    fn posted(
        &mut self,
        posted: Result<Posted, moai_transport::Error>,
        counts: Counts,
        digest: u64,
        pace: &mut Pace,
        report: &mut Report,
    ) -> Turn {
        let bytes = self.runner.row_bytes(self.next)[1];
        match posted {
            Ok(Posted::Done | Posted::InFlight(_)) => {
                report.bytes_wire += bytes;
                report.saturated += counts.saturated;
                report.nan += counts.nan;
                pace.add(bytes);
                self.did(digest, report);
                Turn::Did
            }
            Ok(Posted::Busy) => Turn::Full,
            Err(error) => Turn::Failed(format!("cannot send: {error}")),
        }
    }

    fn did(&mut self, digest: u64, report: &mut Report) {
        let Some(chunk) = self.runner.chunks().get(self.next) else {
            return;
        };
        let sum = &mut self.sums[chunk.part as usize];
        *sum = sum.wrapping_add(digest);
        self.done += u64::from(chunk.bytes);
        report.bytes_read += self.runner.row_bytes(self.next)[0];
        report.chunks += 1;
        self.next += 1;
    }

    /// What carried its bytes, if it was reached.
    pub(super) fn route(&mut self) -> Option<Route> {
        let peer = self.runner.pair().target;
        let route = Route::new(peer, self.path.take()?, self.way, self.why.as_deref());
        Some(route.fell_back(self.why.is_some()))
    }
}

fn key_of<'a>(kept: &'a mut Option<DigestKey>, key: u64, runner: &Runner) -> &'a DigestKey {
    kept.get_or_insert_with(|| runner.digest_key(key))
}
