//! Jobs: what a stream is asked to do.

use std::fmt;
use std::io;
use std::ops::Range;

use thiserror::Error;

use crate::sim::DeviceMemory;
use crate::{Hold, MemoryKind};

/// Work for a device, with everything it needs.
#[derive(Debug)]
pub struct Job {
    /// The caller's name for it, given back with the completion.
    pub name: u64,
    /// What to do.
    pub work: Work,
    /// The device memory to do it with, in order.
    pub spans: Vec<Span>,
    /// Host memory, the stream's until the completion. Kernels leave it alone.
    pub buffer: Vec<u8>,
}

/// What a job does.
#[derive(Debug)]
#[non_exhaustive]
pub enum Work {
    /// Copies the spans, one after the other, to the buffer, which is made as long as they are together.
    ToHost,
    /// Copies the buffer, which is as long as the spans are together, to the spans, one after the other.
    FromHost,
    /// Runs a function over the spans, which do not overlap.
    Kernel(Box<dyn Kernel>),
}

/// A function that runs on a device.
pub trait Kernel: Send {
    /// Works on the job's spans. It must not wait for the device, which is busy with it.
    fn run(&mut self, memory: &mut DeviceMemory<'_>);
}

impl<F: FnMut(&mut DeviceMemory<'_>) + Send> Kernel for F {
    fn run(&mut self, memory: &mut DeviceMemory<'_>) {
        self(memory);
    }
}

impl fmt::Debug for dyn Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kernel")
    }
}

/// Some bytes of a region.
#[derive(Clone, Debug)]
pub struct Span {
    /// The region.
    pub hold: Hold,
    /// Bytes from the start of the region.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

impl Span {
    /// Whether it lies in its region.
    pub(crate) fn is_inside(&self) -> bool {
        let end = self.offset.checked_add(self.bytes);
        end.is_some_and(|end| end <= self.hold.len())
    }

    /// Its addresses, which for a device are only numbers.
    pub(crate) fn addresses(&self) -> Range<usize> {
        let start = self.hold.address().saturating_add(self.offset as usize);
        start..start.saturating_add(self.bytes as usize)
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self.addresses(), other.addresses());
        a.start < b.end && b.start < a.end
    }
}

/// A job that is over.
#[derive(Debug)]
pub struct Finished {
    /// The job, as it was submitted but for the bytes of its buffer.
    pub job: Job,
    /// How it went. After an error, bytes that the job was to write are as they were or changed in part.
    pub outcome: Result<(), StreamError>,
}

/// A stream could not be had, or not do a job.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The device failed; nothing depends on the job, and it may be tried again.
    #[error("the device failed")]
    Failed,
    /// A span lies in memory that is not the device's.
    #[error("span {span} lies in {kind} memory that is not this device's")]
    NotOnDevice {
        /// Which of the job's spans.
        span: usize,
        /// Where it lies.
        kind: MemoryKind,
    },
    /// A span does not lie in its region.
    #[error("span {span}, {bytes} bytes from {offset}, lies outside a region of {len} bytes")]
    OutOfBounds {
        /// Which of the job's spans.
        span: usize,
        /// First byte.
        offset: u64,
        /// Length.
        bytes: u64,
        /// Length of the region.
        len: u64,
    },
    /// A span that was to be written was imported for reading.
    #[error("span {span} cannot be written: its region was imported for reading only")]
    ReadOnly {
        /// Which of the job's spans.
        span: usize,
    },
    /// Two spans of a kernel share bytes.
    #[error("two spans of a kernel overlap")]
    Overlap,
    /// The buffer is not as long as the spans are together.
    #[error("a buffer of {buffer_bytes} bytes cannot fill spans of {span_bytes} bytes")]
    BufferLength {
        /// Length of the buffer.
        buffer_bytes: usize,
        /// Length of all spans.
        span_bytes: usize,
    },
    /// The buffer cannot be made so long.
    #[error("cannot allocate a buffer of {bytes} bytes")]
    OutOfMemory {
        /// Length of all spans.
        bytes: usize,
    },
    /// The device runs no functions of this program: it copies, and no more.
    #[error("the device runs no kernels; copy the bytes to the host, and from it")]
    NoKernels,
    /// A kernel panicked; it has run in part.
    #[error("the kernel panicked")]
    Panicked,
    /// A system call failed, and the stream cannot be had.
    #[error("{call} failed for a stream")]
    Os {
        /// The call.
        call: &'static str,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}
