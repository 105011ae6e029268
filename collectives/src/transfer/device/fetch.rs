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
/// and sent. Each pair has its own, so that a consumer which takes nothing keeps nobody else's.
const SLOTS: usize = 3;

const GATHER: u64 = 0;
const COPY: u64 = 1;

/// Chunks on their way from a device's pages to the host, of all pairs of a rank.
pub(in crate::transfer) struct Fetching {
    device: Device,
    lines: Vec<Option<Line>>,
}

/// Chunks of one pair, in order.
struct Line {
    slots: Vec<Slot>,
    /// Bytes of each chunk.
    chunks: Vec<u32>,
    rank: u32,
    /// The next chunk to be gathered.
    ahead: usize,
}

struct Slot {
    desk: Arc<Mutex<Desk>>,
    /// Gone while they are on the device.
    jobs: [Option<Job>; 2],
    /// The chunk it has, if it has one.
    index: Option<usize>,
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
    /// For a pool that lies on a device; `None` for others.
    pub(in crate::transfer) fn new(pool: &[Region], pairs: usize) -> Result<Option<Self>, String> {
        let Some(device) = Device::of(pool)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            device,
            lines: (0..pairs).map(|_| None).collect(),
        }))
    }

    /// Where the pool lies, for people.
    pub(in crate::transfer) fn kind(&self) -> MemoryKind {
        self.device.kind()
    }

    /// Starts a pair, unless that is done. `runner` is for its kernels alone.
    pub(in crate::transfer) fn start(
        &mut self,
        pair: usize,
        runner: impl FnOnce() -> Runner,
        key: u64,
    ) -> Result<(), String> {
        if self.lines[pair].is_none() {
            let line = Line::new(&self.device, pair, runner(), key)?;
            self.lines[pair] = Some(line);
        }
        Ok(())
    }

    /// Gathers as many chunks of a pair ahead as there is room for.
    pub(in crate::transfer) fn go_ahead(&mut self, pair: usize) {
        let Some(line) = &mut self.lines[pair] else {
            return;
        };
        while let Some(&bytes) = line.chunks.get(line.ahead) {
            let slot = &mut line.slots[line.ahead % SLOTS];
            if slot.index.is_some() {
                return;
            }
            slot.index = Some(line.ahead);
            *lock(&slot.desk) = Desk {
                index: line.ahead,
                bytes: bytes as usize,
                told: None,
            };
            line.ahead += 1;
            for (stage, job) in slot.jobs.iter_mut().enumerate() {
                let Some(mut job) = job.take() else { continue };
                if stage as u64 == COPY {
                    job.spans[0].bytes = bytes.into();
                }
                self.device.submit(job);
            }
        }
    }

    /// A chunk of a pair, once it is there. A copy that the device lost shows when its rows are digested on the other
    /// side.
    pub(in crate::transfer) fn get(
        &self,
        pair: usize,
        index: usize,
    ) -> Result<Option<Fetched<'_>>, String> {
        let Some(line) = &self.lines[pair] else {
            return Ok(None);
        };
        let slot = &line.slots[index % SLOTS];
        let [Some(_), Some(copy)] = &slot.jobs else {
            return Ok(None);
        };
        if slot.index != Some(index) {
            return Ok(None);
        }
        let Some((counts, digest)) = lock(&slot.desk).told else {
            let rank = line.rank;
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

    /// A chunk of a pair is handed on; its place is free.
    pub(in crate::transfer) fn done(&mut self, pair: usize, index: usize) {
        if let Some(line) = &mut self.lines[pair] {
            line.slots[index % SLOTS].index = None;
        }
    }

    /// Takes in what the device has done.
    pub(in crate::transfer) fn collect(&mut self) -> Result<(), String> {
        while let Some(finished) = self.device.completed() {
            let name = finished.job.name;
            let (at, stage) = ((name / 2) as usize, name % 2);
            let Some(line) = &mut self.lines[at / SLOTS] else {
                continue;
            };
            let slot = &mut line.slots[at % SLOTS];
            slot.jobs[stage as usize] = Some(finished.job);
            if let Err(error) = finished.outcome {
                let what = match stage {
                    GATHER => "gathering",
                    _ => "copying from the device",
                };
                let index = lock(&slot.desk).index;
                return Err(failed(what, index, line.rank, &error));
            }
        }
        Ok(())
    }

    /// Waits until something has happened on the device.
    pub(in crate::transfer) fn wait(&self, timeout: Duration) {
        self.device.stream.wait(timeout);
    }
}

impl Line {
    fn new(device: &Device, pair: usize, runner: Runner, key: u64) -> Result<Self, String> {
        let chunks: Vec<u32> = runner.chunks().iter().map(|chunk| chunk.bytes).collect();
        let most = chunks.iter().copied().max().unwrap_or(0);
        let rank = runner.pair().target;
        let common = Arc::new(Common {
            key: runner.digest_key(key),
            runner: Mutex::new(runner),
        });
        let slots = (0..SLOTS).map(|at| Slot::new(device, pair * SLOTS + at, most.into(), &common));
        Ok(Self {
            slots: slots.collect::<Result<_, _>>()?,
            chunks,
            rank,
            ahead: 0,
        })
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
            index: None,
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
