//! Pools that the processor cannot load from: their rows travel by jobs on a stream of their device.
//!
//! ```text
//!  producer   pages ──kernel: gather, digest──▶ staging ──copy──▶ host ──▶ wire
//!  consumer   wire ──▶ host ──copy──▶ staging ──kernel: digest, place──▶ pages ──kernel: digest──▶ what lies there
//! ```
//!
//! # What a commitment proves
//!
//! A device may report a job as done that has done nothing, or will do it later. Four digests, equal, leave no room for
//! that: of a chunk's rows in the producer's pages, by the kernel that gathers them; of what arrived, by the host; of what
//! the consumer's kernel found in its staging before it placed it; and of what a later kernel finds in the pages, against
//! what was placed, in the format of the pages. A kernel that never ran has left no digest, and one whose writes come late
//! was not found in the pages. So where a transfer commits, whatever a late job may still write is what lies there
//! already, and rows that a device lost fail the transfer before.
//!
//! What this relies on: a kernel's own loads see what lies in the memory then, and a kernel is not still reading its
//! staging when the next chunk is copied there, which the order of a stream forbids. A device that breaks these deceives
//! any reader.
//!
//! A stream that is dropped gives up what has not begun and waits for what has, the late included; both sides drop it
//! before they report, so that nothing is written after an outcome was told.

mod fetch;
mod place;

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use moai_memory::{Finished, Hold, Job, MemoryKind, Region, Span, Stream, StreamError};

pub(super) use fetch::Fetching;
pub(super) use place::{Placed, Placing};

/// How long a rank waits for its device before it looks at its peers, and the other way round: little beside what a
/// chunk takes over a wire, and enough that waiting costs no core.
pub(super) const TURN: Duration = Duration::from_micros(500);

/// A device that holds a rank's pool.
struct Device {
    stream: Box<dyn Stream>,
    /// Of all regions of the pool, in order.
    spans: Vec<Span>,
    /// Leads to the device.
    hold: Hold,
    /// Jobs that the stream has no room for, in order. Whoever submits has few, and waits for them.
    waiting: VecDeque<Job>,
}

impl Device {
    /// The device that holds all of a pool; `None` if the processor can load from it.
    fn of(pool: &[Region]) -> Result<Option<Self>, String> {
        let on_device = |region: &&Region| !region.kind().is_host_accessible();
        let Some(region) = pool.iter().find(on_device) else {
            return Ok(None);
        };
        let (hold, kind) = (region.hold(), region.kind());
        let Some(domain) = hold.domain() else {
            return Err(format!(
                "a pool lies in {kind} memory whose device is not known"
            ));
        };
        if !domain.runs_kernels() {
            return Err(format!(
                "a pool lies in {kind} memory of a device that only copies (of a plug-in); copy it to host memory to serve or fill it"
            ));
        }
        let here = |region: &Region| {
            let hold = region.hold();
            hold.domain().is_some_and(|other| other.id() == domain.id())
        };
        if let Some(at) = { pool }.iter().position(|region| !here(region)) {
            let other = pool[at].kind();
            return Err(format!(
                "region {at} of a pool in {kind} memory lies in {other} memory elsewhere; a rank's pool lies in one place"
            ));
        }
        let stream = domain
            .stream()
            .map_err(|error| format!("no stream of the device with the pool: {error}"))?;
        let spans = pool.iter().map(|region| span(region, region.len()));
        Ok(Some(Self {
            stream,
            spans: spans.collect(),
            waiting: VecDeque::new(),
            hold,
        }))
    }

    fn kind(&self) -> MemoryKind {
        self.hold.kind()
    }

    /// Memory of the device beside the pool.
    fn staging(&self, bytes: u64) -> Result<Region, String> {
        let domain = self.hold.domain().ok_or("the device is gone")?;
        let allocated = domain.allocate(bytes.max(1));
        allocated.map_err(|error| format!("no staging on the device with the pool: {error}"))
    }

    fn submit(&mut self, job: Job) {
        self.waiting.push_back(job);
        self.push();
    }

    fn push(&mut self) {
        while let Some(job) = self.waiting.pop_front() {
            if let Err(job) = self.stream.submit(job) {
                return self.waiting.push_front(job);
            }
        }
    }

    fn completed(&mut self) -> Option<Finished> {
        let finished = self.stream.completed()?;
        self.push();
        Some(finished)
    }
}

/// The first bytes of a region.
fn span(region: &Region, bytes: u64) -> Span {
    Span {
        hold: region.hold(),
        offset: 0,
        bytes,
    }
}

/// What a kernel leaves for the host, and the host for a kernel: whole between any two statements.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(what: &str, chunk: usize, rank: u32, error: &StreamError) -> String {
    format!("{what} chunk {chunk} of the pair with rank {rank}: {error}")
}
