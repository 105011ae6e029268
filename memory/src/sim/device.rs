//! The device: its memory and its streams.

use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::fault::{FaultCounts, Faults, PER_MILLE, Tally};
use super::memory::{self, Engine, Located};
use super::stream::SimStream;
use crate::file;
use crate::mapping::Access;
use crate::{Domain, MemoryKind, Region, RegionError, Span, Stream, StreamError, domain_id};

/// How a device behaves. The default is prompt, in order and without faults.
#[derive(Clone, Debug, Default)]
pub struct SimConfig {
    /// Decides delays, order and faults: the same for the same jobs on the same streams.
    pub seed: u64,
    /// How long a job waits before it runs. A stream's jobs wait one after the other.
    pub delay: Range<Duration>,
    /// Whether a stream may work off its jobs in any order. A job that shares bytes with an earlier one still follows it.
    pub reorder: bool,
    /// What goes wrong.
    pub faults: Faults,
}

/// A device of our own. Clones are handles of the same device.
///
/// ```
/// use moai_memory::sim::{SimConfig, SimDevice};
/// use moai_memory::{Job, MemoryKind, Span, Stream, Work};
///
/// let device = SimDevice::new(SimConfig::default());
/// let region = device.allocate(4096)?;
/// assert_eq!(region.kind(), MemoryKind::Sim);
/// assert!(region.host_bytes().is_none());
///
/// let mut stream = device.stream()?;
/// let span = Span { hold: region.hold(), offset: 8, bytes: 4 };
/// let job = Job { name: 1, work: Work::FromHost, spans: vec![span], buffer: b"moai".to_vec() };
/// stream.submit(job).expect("the queue is empty");
/// device.synchronize();
/// let mut finished = stream.completed().expect("it has run");
/// finished.outcome?;
///
/// finished.job.work = Work::ToHost;
/// finished.job.buffer.fill(0);
/// stream.submit(finished.job).expect("the queue is empty");
/// device.synchronize();
/// assert_eq!(stream.completed().expect("it has run").job.buffer, b"moai");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct SimDevice(Arc<Device>);

struct Device {
    id: u64,
    config: SimConfig,
    engine: Mutex<Engine>,
    tally: Tally,
    /// Streams so far; each draws numbers of its own.
    streams: AtomicU64,
    /// Jobs that may still touch memory.
    unsettled: Mutex<usize>,
    settled: Condvar,
}

impl SimDevice {
    /// A device.
    ///
    /// # Panics
    ///
    /// If more than 1000 of a thousand jobs are to go wrong.
    #[must_use]
    pub fn new(config: SimConfig) -> Self {
        let sum = config.faults.sum_per_mille();
        assert!(sum <= PER_MILLE, "faults of {sum} in {PER_MILLE} jobs");
        Self(Arc::new(Device {
            id: domain_id(),
            config,
            engine: Mutex::default(),
            tally: Tally::default(),
            streams: AtomicU64::new(0),
            unsettled: Mutex::new(0),
            settled: Condvar::new(),
        }))
    }

    /// How it behaves.
    #[must_use]
    pub fn config(&self) -> &SimConfig {
        &self.0.config
    }

    /// Zero-filled memory of the device, in whole pages. Costs a file descriptor and two mappings; whoever needs many
    /// regions [splits](Region::split_at) one.
    ///
    /// # Errors
    ///
    /// - [`RegionError::OutOfMemory`] if there is not so much.
    /// - [`RegionError::Os`] if the process has no file descriptor left.
    pub fn allocate(&self, bytes: u64) -> Result<Region, RegionError> {
        let file = file::sealed(bytes, MemoryKind::Sim)?;
        memory::region(self, file, 0, bytes, Access::Write, true)
    }

    /// Memory that another process exported from a device like this.
    ///
    /// # Errors
    ///
    /// As for [`Region::import`].
    pub fn import(
        &self,
        fd: OwnedFd,
        offset: u64,
        len: u64,
        writable: bool,
    ) -> Result<Region, RegionError> {
        file::check(&fd, offset, len)?;
        memory::region(self, fd, offset, len, Access::imported(writable), false)
    }

    /// A new stream, with a thread of its own.
    ///
    /// # Errors
    ///
    /// [`StreamError::Os`] if the system has no thread or descriptor for it.
    pub fn stream(&self) -> Result<SimStream, StreamError> {
        SimStream::new(self.clone(), self.0.streams.fetch_add(1, Relaxed))
    }

    /// How often something went wrong so far.
    #[must_use]
    pub fn faults(&self) -> FaultCounts {
        self.0.tally.counts()
    }

    /// Waits until no job of any stream will touch memory any more, be it queued, running or late.
    pub fn synchronize(&self) {
        let unsettled = unpoisoned(self.0.unsettled.lock());
        drop(unpoisoned(
            self.0.settled.wait_while(unsettled, |jobs| *jobs > 0),
        ));
    }

    /// The bytes of a span, at once and without faults: for a test that looks at what jobs have done.
    ///
    /// # Errors
    ///
    /// [`StreamError::NotOnDevice`] or [`StreamError::OutOfBounds`].
    pub fn peek(&self, span: &Span) -> Result<Vec<u8>, StreamError> {
        let mut engine = self.engine();
        let located = Located::new(&mut engine, self, std::slice::from_ref(span))?;
        Ok(located.bytes(0).to_vec())
    }

    /// Changes the bytes of a span, at once and without faults: for a test that prepares what jobs will find.
    ///
    /// # Errors
    ///
    /// [`StreamError::NotOnDevice`], [`StreamError::OutOfBounds`], [`StreamError::ReadOnly`] or
    /// [`StreamError::BufferLength`].
    pub fn poke(&self, span: &Span, bytes: &[u8]) -> Result<(), StreamError> {
        let mut engine = self.engine();
        let mut located = Located::new(&mut engine, self, std::slice::from_ref(span))?;
        let target = located
            .bytes_mut(0)
            .ok_or(StreamError::ReadOnly { span: 0 })?;
        if target.len() != bytes.len() {
            return Err(StreamError::BufferLength {
                buffer_bytes: bytes.len(),
                span_bytes: target.len(),
            });
        }
        target.copy_from_slice(bytes);
        Ok(())
    }

    /// Waits for a turn at the bytes.
    pub(super) fn engine(&self) -> MutexGuard<'_, Engine> {
        unpoisoned(self.0.engine.lock())
    }

    pub(super) fn tally(&self) -> &Tally {
        &self.0.tally
    }

    pub(super) fn submitted(&self) {
        *unpoisoned(self.0.unsettled.lock()) += 1;
    }

    /// `jobs` that were submitted will not touch memory any more.
    pub(super) fn settle(&self, jobs: usize) {
        let mut unsettled = unpoisoned(self.0.unsettled.lock());
        *unsettled -= jobs;
        if *unsettled == 0 {
            self.0.settled.notify_all();
        }
    }
}

impl Domain for SimDevice {
    fn id(&self) -> u64 {
        self.0.id
    }

    fn handle(&self) -> Arc<dyn Domain> {
        Arc::new(self.clone())
    }

    fn kind(&self) -> MemoryKind {
        MemoryKind::Sim
    }

    fn allocate(&self, bytes: u64) -> Result<Region, RegionError> {
        self.allocate(bytes)
    }

    fn import(
        &self,
        fd: OwnedFd,
        offset: u64,
        len: u64,
        writable: bool,
    ) -> Result<Region, RegionError> {
        self.import(fd, offset, len, writable)
    }

    fn stream(&self) -> Result<Box<dyn Stream>, StreamError> {
        Ok(Box::new(self.stream()?))
    }
}

impl PartialEq for SimDevice {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for SimDevice {}

impl fmt::Debug for SimDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDevice")
            .field("id", &self.0.id)
            .field("config", &self.0.config)
            .finish()
    }
}

/// Whatever was locked is whole between any two statements, so a panic elsewhere leaves nothing half done.
pub(super) fn unpoisoned<T>(locked: Result<T, PoisonError<T>>) -> T {
    locked.unwrap_or_else(PoisonError::into_inner)
}
