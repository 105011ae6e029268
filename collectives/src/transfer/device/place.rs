//! Placing what a consumer rank receives, on the device with its pages.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use moai_memory::{Job, Read, Region, Work, sim::DeviceMemory};
use moai_translate::format::Counts;

use super::{Device, failed, lock, span};
use crate::{digest::DigestKey, execute::Runner};

/// Chunks on the device at a time: one that is copied, one that is placed, one that is read back, and one that arrives
/// meanwhile.
const SLOTS: usize = 4;

/// What happens to a chunk, as the last digit of its jobs' names.
const STAGES: u64 = 3;
const COPY: u64 = 0;
const PLACE: u64 = 1;
const CHECK: u64 = 2;

/// Chunks of one pair on their way into a device's pages.
pub(in crate::transfer) struct Placing {
    device: Device,
    slots: Vec<Slot>,
}

/// A chunk whose rows were found in their pages.
#[derive(Clone, Copy, Debug)]
pub(in crate::transfer) struct Placed {
    pub(in crate::transfer) index: usize,
    /// Digest of the rows that arrived.
    pub(in crate::transfer) digest: u64,
    pub(in crate::transfer) counts: Counts,
}

struct Slot {
    desk: Arc<Mutex<Desk>>,
    /// By stage; gone while they are on the device.
    jobs: [Option<Job>; STAGES as usize],
    is_free: bool,
}

/// What a slot's kernels are to do, and what they found.
#[derive(Debug, Default)]
struct Desk {
    index: usize,
    /// Rank of the other side.
    rank: u32,
    bytes: usize,
    /// Of the rows that arrived.
    digest: u64,
    /// Of the rows in the staging, and of what was placed.
    told: Option<(Counts, [u64; 2])>,
    /// Of what lies in the pages.
    found: Option<u64>,
}

/// What all kernels share.
struct Common {
    runner: Mutex<Runner>,
    key: Arc<DigestKey>,
}

impl Placing {
    /// For a pool that lies on a device; `None` for others. `runner` is for the kernels alone.
    pub(in crate::transfer) fn new(
        pool: &[Region],
        runner: impl FnOnce() -> Runner,
        key: &Arc<DigestKey>,
    ) -> Result<Option<Self>, String> {
        let Some(device) = Device::of(pool)? else {
            return Ok(None);
        };
        let runner = runner();
        let most = runner.chunks().iter().map(|chunk| chunk.bytes).max();
        let most = most.unwrap_or(0);
        let common = Arc::new(Common {
            runner: Mutex::new(runner),
            key: Arc::clone(key),
        });
        let slots = (0..SLOTS).map(|at| Slot::new(&device, at, most.into(), &common));
        Ok(Some(Self {
            slots: slots.collect::<Result<_, _>>()?,
            device,
        }))
    }

    /// Where the pool lies, for people.
    pub(in crate::transfer) fn kind(&self) -> moai_memory::MemoryKind {
        self.device.kind()
    }

    /// Whether chunks are on the device.
    pub(in crate::transfer) fn is_busy(&self) -> bool {
        self.slots.iter().any(|slot| !slot.is_free)
    }

    /// Sends a chunk's rows, whose digest is `digest`, on their way; `false` if there is no room.
    #[must_use]
    pub(in crate::transfer) fn place(
        &mut self,
        rank: u32,
        index: usize,
        rows: &[u8],
        digest: u64,
    ) -> bool {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.is_free) else {
            return false;
        };
        slot.is_free = false;
        *lock(&slot.desk) = Desk {
            index,
            rank,
            bytes: rows.len(),
            digest,
            told: None,
            found: None,
        };
        for (stage, job) in slot.jobs.iter_mut().enumerate() {
            let Some(mut job) = job.take() else { continue };
            if stage as u64 == COPY {
                job.buffer.clear();
                job.buffer.extend_from_slice(rows);
                job.spans[0].bytes = rows.len() as u64;
            }
            self.device.submit(job);
        }
        true
    }

    /// Waits until something has happened on the device.
    pub(in crate::transfer) fn wait(&self, timeout: Duration) {
        self.device.stream.wait(timeout);
    }

    /// The next chunk that lies in its pages, if there is one; or what is wrong with the device.
    pub(in crate::transfer) fn completed(&mut self) -> Option<Result<Placed, String>> {
        loop {
            let finished = self.device.completed()?;
            let (slot, stage) = (
                (finished.job.name / STAGES) as usize,
                finished.job.name % STAGES,
            );
            let slot = &mut self.slots[slot];
            slot.jobs[stage as usize] = Some(finished.job);
            let desk = lock(&slot.desk);
            if let Err(error) = finished.outcome {
                let what = match stage {
                    COPY => "copying to the device",
                    PLACE => "placing",
                    _ => "reading back",
                };
                return Some(Err(failed(what, desk.index, desk.rank, &error)));
            }
            if slot.jobs.iter().all(Option::is_some) {
                slot.is_free = true;
                return Some(desk.judge());
            }
        }
    }
}

impl Desk {
    /// Whether everything was found where it belongs.
    fn judge(&self) -> Result<Placed, String> {
        let wrong = |what: &str| {
            let Self { index, rank, .. } = self;
            Err(format!(
                "chunk {index} of the pair with rank {rank}: {what}, although the device reported the job as done"
            ))
        };
        let Some((counts, [staged, placed])) = self.told else {
            return wrong("it was not placed");
        };
        if staged != self.digest {
            return wrong("what was to be placed is not what was copied to the device");
        }
        if self.found != Some(placed) {
            return wrong("its pages do not hold what was placed");
        }
        Ok(Placed {
            index: self.index,
            digest: self.digest,
            counts,
        })
    }
}

impl Slot {
    fn new(device: &Device, at: usize, bytes: u64, common: &Arc<Common>) -> Result<Self, String> {
        let staging = device.staging(bytes)?;
        let desk = Arc::new(Mutex::new(Desk::default()));
        let job = |stage, work, spans, buffer| {
            Some(Job {
                name: at as u64 * STAGES + stage,
                work,
                spans,
                buffer,
            })
        };
        let staged = || span(&staging, bytes);
        let pages = || device.spans.clone();
        let with_staging = pages().into_iter().chain([staged()]).collect();
        let place = Kernel::work(&desk, common, Kernel::place);
        let check = Kernel::work(&desk, common, Kernel::check);
        let buffer = Vec::with_capacity(bytes as usize);
        Ok(Self {
            jobs: [
                job(COPY, Work::FromHost, vec![staged()], buffer),
                job(PLACE, place, with_staging, Vec::new()),
                job(CHECK, check, pages(), Vec::new()),
            ],
            desk,
            is_free: true,
        })
    }
}

/// What a kernel works with.
struct Kernel {
    desk: Arc<Mutex<Desk>>,
    common: Arc<Common>,
}

impl Kernel {
    fn work(
        desk: &Arc<Mutex<Desk>>,
        common: &Arc<Common>,
        run: fn(&Self, &mut DeviceMemory<'_>),
    ) -> Work {
        let this = Self {
            desk: Arc::clone(desk),
            common: Arc::clone(common),
        };
        Work::Kernel(Box::new(move |memory: &mut DeviceMemory<'_>| {
            run(&this, memory);
        }))
    }

    /// Places the rows in the staging, which is the last span.
    fn place(&self, memory: &mut DeviceMemory<'_>) {
        let mut desk = lock(&self.desk);
        let last = memory.len() - 1;
        let (mut pages, staging) = memory.split_at(last);
        let rows = &staging.bytes(0)[..desk.bytes];
        let runner = &mut lock(&self.common.runner);
        desk.told = Some(runner.scatter_told(desk.index, rows, &mut pages, &self.common.key));
    }

    fn check(&self, pages: &mut DeviceMemory<'_>) {
        let mut desk = lock(&self.desk);
        let runner = &mut lock(&self.common.runner);
        desk.found = runner.digest_written(desk.index, &*pages, &self.common.key);
    }
}

impl fmt::Debug for Placing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Placing")
            .field("kind", &self.kind())
            .field("is_busy", &self.is_busy())
            .finish_non_exhaustive()
    }
}
