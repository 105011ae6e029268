//! Domains: memory that the processor cannot load from, with the streams that can.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{Finished, Job, MemoryKind, Region, RegionError, StreamError};

/// A device: memory, and the streams that are the only way to its bytes.
///
/// A transport that moves bytes through host memory asks a registered region's [`Hold`](crate::Hold::domain) for its
/// domain, and that for a stream; it need not know what device it is.
pub trait Domain: Send + Sync {
    /// A number that no other device of this process has ([`domain_id`]), to keep one stream for all regions of a device.
    fn id(&self) -> u64;

    /// Another handle of the same device, for whoever keeps it longer than the region it was found by.
    fn handle(&self) -> Arc<dyn Domain>;

    /// Whether its streams run [kernels](crate::Work::Kernel). Those of a plug-in copy, and no more.
    fn runs_kernels(&self) -> bool {
        true
    }

    /// The kind of its memory.
    fn kind(&self) -> MemoryKind;

    /// Zero-filled memory of the device.
    ///
    /// # Errors
    ///
    /// [`RegionError::OutOfMemory`] or [`RegionError::Os`].
    fn allocate(&self, bytes: u64) -> Result<Region, RegionError>;

    /// Memory that another process exported from a device of this kind; believed as little as by [`Region::import`].
    ///
    /// # Errors
    ///
    /// As for [`Region::import`].
    fn import(
        &self,
        fd: OwnedFd,
        offset: u64,
        len: u64,
        writable: bool,
    ) -> Result<Region, RegionError>;

    /// A new stream.
    ///
    /// # Errors
    ///
    /// [`StreamError::Os`] if the system has no thread or descriptor for it.
    fn stream(&self) -> Result<Box<dyn Stream>, StreamError>;
}

/// A number for [`Domain::id`] that was not given before.
#[must_use]
pub fn domain_id() -> u64 {
    static DOMAINS: AtomicU64 = AtomicU64::new(0);
    DOMAINS.fetch_add(1, Relaxed)
}

/// For ever, to the system.
const LONG: Timespec = Timespec {
    tv_sec: 1 << 30,
    tv_nsec: 0,
};

/// A queue of jobs that a device works off. Dropping it gives up what has not begun, and waits for what has.
///
/// Whoever submits a job gives its host buffer away, and has it back with the completion; so nobody can touch the buffer
/// while the device does, and a caller that keeps its jobs never allocates again.
///
/// Its descriptor is readable as long as there are completions to fetch.
pub trait Stream: Send + AsFd {
    /// Queues a job.
    ///
    /// # Errors
    ///
    /// The job itself, if the queue is full: fetch a completion, then submit again.
    fn submit(&mut self, job: Job) -> Result<(), Job>;

    /// The next job that is over, if there is one.
    fn completed(&mut self) -> Option<Finished>;

    /// Jobs that were submitted and whose completion was not fetched yet.
    fn in_flight(&self) -> usize;

    /// Waits until there is a completion to fetch, no longer than `timeout`; whether there is one.
    fn wait(&self, timeout: Duration) -> bool {
        let (start, fd) = (Instant::now(), self.as_fd());
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            let left = Timespec::try_from(left).unwrap_or(LONG);
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(ready) => return ready > 0,
                Err(rustix::io::Errno::INTR) => {}
                // Nothing else can be wrong with a descriptor that is there.
                Err(_) => return false,
            }
        }
    }
}
