//! Fetching what a producer rank sends from the device with its pages.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use moai_memory::{Job, MemoryKind, Region, Work, Write, sim::DeviceMemory};
use moai_translate::format::Counts;

use super::{Device, failed, lock, span};
use crate::{digest::DigestKey, execute::Runner};

/// Chunks of one pair on the device at a time, or waiting for the transport: one that is gathered while another is copied
/// and sent.
const SLOTS: usize = 3;

const GATHER: u64 = 0;
const COPY: u64 = 1;

/// Chunks of one pair on their way from a device's pages to the host, in the order in which they are asked for. Each pair
/// has its own, so that a consumer which takes nothing keeps nobody else's.
pub(in crate::transfer) struct Fetching {
    device: Device,
    slots: Vec<Slot>,
    rank: u32,
    /// Chunks that were asked for, and that were handed on.
    asked: usize,
    handed: usize,
}

struct Slot {
    desk: Arc<Mutex<Desk>>,
    /// Gone while they are on the device.
    jobs: [Option<Job>; 2],
}

#[derive(Debug, Default)]
struct Desk {
    index: usize,
    bytes: usize,
    told: Option<(Counts, u64)>,
}

struct Common {
    runner: Mutex<Runner>,
    key: DigestKey,
}

/// A chunk's rows on the host.
#[derive(Debug)]
pub(in crate::transfer) struct Fetched<'a> {
    pub(in crate::transfer) rows: &'a [u8],
    /// Digest of the rows in their pages.
    pub(in crate::transfer) digest: u64,
    pub(in crate::transfer) counts: Counts,
}

impl Fetching {
    /// For a pool that lies on a device; `None` for others. `runner` is for its kernels alone.
    pub(in crate::transfer) fn new(
        pool: &[Region],
        runner: impl FnOnce() -> Runner,
        key: u64,
    ) -> Result<Option<Self>, String> {
        let Some(device) = Device::of(pool)? else {
            return Ok(None);
        };
        let runner = runner();
        let most = runner.chunks().iter().map(|chunk| chunk.bytes).max();
        let rank = runner.pair().target;
        let common = Arc::new(Common {
            key: runner.digest_key(key),
            runner: Mutex::new(runner),
        });
        let most = u64::from(most.unwrap_or(0));
        let slots = (0..SLOTS).map(|at| Slot::new(&device, at, most, &common));
        Ok(Some(Self {
            slots: slots.collect::<Result<_, _>>()?,
            device,
            rank,
            asked: 0,
            handed: 0,
        }))
    }

    /// Where the pool lies, for people.
    pub(in crate::transfer) fn kind(&self) -> MemoryKind {
        self.device.kind()
    }

    /// Whether another chunk can be asked for.
    pub(in crate::transfer) fn has_room(&self) -> bool {
        self.asked - self.handed < SLOTS
    }

    /// Whether chunks are on the device, or wait to be handed on.
    pub(in crate::transfer) fn is_busy(&self) -> bool {
        self.asked > self.handed
    }

    /// Gathers a chunk, if there is room.
    pub(in crate::transfer) fn ask(&mut self, index: usize, bytes: u32) {
        if !self.has_room() {
            return;
        }
        let slot = &mut self.slots[self.asked % SLOTS];
        self.asked += 1;
        *lock(&slot.desk) = Desk {
            index,
            bytes: bytes as usize,
            told: None,
        };
        for (stage, job) in slot.jobs.iter_mut().enumerate() {
            let Some(mut job) = job.take() else { continue };
            if stage as u64 == COPY {
                job.spans[0].bytes = bytes.into();
            }
            self.device.submit(job);
        }
    }

    /// The chunk that was asked for first, once it is there. A copy that the device lost shows when its rows are digested
    /// on the other side.
    pub(in crate::transfer) fn get(&self) -> Result<Option<Fetched<'_>>, String> {
        if !self.is_busy() {
            return Ok(None);
        }
        let slot = &self.slots[self.handed % SLOTS];
        let [Some(_), Some(copy)] = &slot.jobs else {
            return Ok(None);
        };
        let desk = lock(&slot.desk);
        let Some((counts, digest)) = desk.told else {
            let (index, rank) = (desk.index, self.rank);
            return Err(format!(
                "chunk {index} of the pair with rank {rank}: it was not gathered, although the device reported the job as done"
            ));
        };
        Ok(Some(Fetched {
            rows: &copy.buffer,
            digest,
            counts,
        }))
    }

    /// That chunk is handed on; its place is free.
    pub(in crate::transfer) fn done(&mut self) {
        self.handed += 1;
    }

    /// Takes in what the device has done.
    pub(in crate::transfer) fn collect(&mut self) -> Result<(), String> {
        while let Some(finished) = self.device.completed() {
            let name = finished.job.name;
            let (at, stage) = ((name / 2) as usize, name % 2);
            let slot = &mut self.slots[at];
            slot.jobs[stage as usize] = Some(finished.job);
            if let Err(error) = finished.outcome {
                let what = match stage {
                    GATHER => "gathering",
                    _ => "copying from the device",
                };
                let index = lock(&slot.desk).index;
                return Err(failed(what, index, self.rank, &error));
            }
        }
        Ok(())
    }

    /// Waits until something has happened on the device.
    pub(in crate::transfer) fn wait(&self, timeout: Duration) {
        self.device.stream.wait(timeout);
    }
}

impl Slot {
    fn new(device: &Device, at: usize, bytes: u64, common: &Arc<Common>) -> Result<Self, String> {
        let staging = device.staging(bytes)?;
        let desk = Arc::new(Mutex::new(Desk::default()));
        let name = |stage| at as u64 * 2 + stage;
        let staged = || span(&staging, bytes);
        let gather = Job {
            name: name(GATHER),
            work: kernel(&desk, common),
            spans: device.spans.iter().cloned().chain([staged()]).collect(),
            buffer: Vec::new(),
        };
        let copy = Job {
            name: name(COPY),
            work: Work::ToHost,
            spans: vec![staged()],
            buffer: Vec::with_capacity(bytes as usize),
        };
        Ok(Self {
            jobs: [Some(gather), Some(copy)],
            desk,
        })
    }
}

/// Gathers into the staging, which is the last span.
fn kernel(desk: &Arc<Mutex<Desk>>, common: &Arc<Common>) -> Work {
    let (desk, common) = (Arc::clone(desk), Arc::clone(common));
    Work::Kernel(Box::new(move |memory: &mut DeviceMemory<'_>| {
        let mut desk = lock(&desk);
        let last = memory.len() - 1;
        let (pages, mut staging) = memory.split_at(last);
        let rows = &mut staging.bytes_mut(0)[..desk.bytes];
        let runner = &mut lock(&common.runner);
        desk.told = Some(runner.gather_digested(desk.index, &pages, rows, &common.key));
    }))
}

impl fmt::Debug for Fetching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetching")
            .field("kind", &self.kind())
            .finish_non_exhaustive()
    }
}
