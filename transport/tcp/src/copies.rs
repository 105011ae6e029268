//! Copies between device memory and buffers, on the streams of the devices.
//!
//! A frame whose pieces lie in device memory is framed when a job has copied them to a buffer; one that goes there is
//! collected in a buffer, and done when a job has copied it. Jobs carry holds of their memory, so it stays where it is
//! while they run, whoever else lets go of it.
//!
//! Buffers are bounded by what each connection may have under way, [`COPIES`](crate::limits::COPIES) each way of
//! [`DEVICE_FRAME_BYTES`](crate::limits::DEVICE_FRAME_BYTES): beyond that, nothing is read from it and nothing framed for
//! it.

use std::os::fd::AsRawFd;

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use moai_memory::{Finished, Hold, Job, Span, Work};
use moai_transport::{Error, PeerId};

use crate::chunk::Chunk;
use crate::interface::os;
use crate::limits::{DEVICE_FRAME_BYTES, KEPT_BUFFERS};

/// All copies of an interface, whose ends wake it.
#[derive(Debug)]
pub(crate) struct Copies {
    all: moai_transport::Copies<Ticket>,
    /// Devices that were met.
    devices: usize,
    /// Copies were made since memory was last to be given back.
    is_warm: bool,
}

/// On whose behalf a copy is made.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) connection: PeerId,
    pub(crate) side: usize,
    pub(crate) what: Copying,
}

/// What becomes of a copy.
#[derive(Debug)]
pub(crate) enum Copying {
    /// The payload of a frame of a put of ours, whose beginning is in the chunk.
    PutOut { operation: u32, chunk: Chunk },
    /// The answer to a peer's get, likewise.
    GetOut { id: u64, chunk: Chunk },
    /// The payload of a frame of a peer's put.
    PutIn { id: u64 },
    /// The answer to a request of ours.
    GetIn { id: u64, operation: u32 },
}

impl Ticket {
    /// Whether registered memory is copied.
    pub(crate) fn is_for_peer(&self) -> bool {
        matches!(self.what, Copying::GetOut { .. } | Copying::PutIn { .. })
    }
}

impl Default for Copies {
    fn default() -> Self {
        Self {
            all: moai_transport::Copies::new(KEPT_BUFFERS),
            devices: 0,
            is_warm: false,
        }
    }
}

impl Copies {
    /// Opens a stream of the device whose memory that is, unless there is one.
    pub(crate) fn open(&mut self, hold: &Hold, registry: &Registry) -> Result<(), Error> {
        let Some(device) = hold.domain() else {
            return Ok(());
        };
        if let Some(fd) = self.all.open(device)? {
            // Its events wake whoever waits; copies that are over are looked for at every poll.
            let token = mio::Token(usize::MAX - 1 - self.devices);
            registry
                .register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)
                .map_err(os("epoll_ctl"))?;
            self.devices += 1;
        }
        Ok(())
    }

    /// Whether memory of a device was ever met.
    pub(crate) fn are_made(&self) -> bool {
        self.devices > 0
    }

    /// A job without spans and with an empty buffer.
    pub(crate) fn job(&mut self, work: Work) -> Job {
        self.all.job(work)
    }

    /// Gives a job back.
    pub(crate) fn keep(&mut self, mut job: Job) {
        // It may be what a long batch was collected in.
        if job.buffer.capacity() > 2 * DEVICE_FRAME_BYTES as usize {
            job.buffer = Vec::new();
        }
        self.all.keep(job);
    }

    /// Starts a copy, on a device that was met when its memory was registered or named.
    pub(crate) fn begin(&mut self, device: u64, ticket: Ticket, job: Job) {
        self.is_warm = true;
        let begun = self.all.begin(device, ticket, job);
        debug_assert!(begun.is_ok(), "device {device} was never met");
    }

    /// A copy that is over.
    pub(crate) fn ended(&mut self) -> Option<(Ticket, Finished)> {
        self.all.ended()
    }

    /// Whether one of them is under way.
    pub(crate) fn any(&self, is_one: impl Fn(&Ticket) -> bool) -> bool {
        self.all.any(is_one)
    }

    /// Waits until a copy is over.
    pub(crate) fn wait(&self) {
        self.all.wait();
    }

    /// Gives memory back unless copies were made since the last call. Returns whether there is none left to give.
    pub(crate) fn trim(&mut self) -> bool {
        if !std::mem::take(&mut self.is_warm) {
            self.all.give_up();
        }
        !self.all.keeps_any()
    }
}

/// Bytes of device memory.
pub(crate) fn span(hold: &Hold, offset: u64, bytes: u32) -> Span {
    Span {
        hold: hold.clone(),
        offset,
        bytes: bytes.into(),
    }
}

#[cfg(test)]
mod tests {
    use mio::Poll;
    use moai_memory::sim::{SimConfig, SimDevice};

    use super::*;

    #[test]
    fn more_copies_than_a_stream_takes_wait_and_all_end_once() {
        let device = SimDevice::new(SimConfig::default());
        let region = device.allocate(4096).unwrap();
        let poll = Poll::new().unwrap();
        let mut copies = Copies::default();
        copies.open(&region.hold(), poll.registry()).unwrap();
        copies.open(&region.hold(), poll.registry()).unwrap();
        assert_eq!(copies.devices, 1);
        let device = region.hold().domain().unwrap().id();
        for id in 0..200 {
            let mut job = copies.job(Work::ToHost);
            job.spans.push(span(&region.hold(), 7, 9));
            let ticket = Ticket {
                connection: PeerId::new(0, 0),
                side: 0,
                what: Copying::PutIn { id },
            };
            copies.begin(device, ticket, job);
        }
        let mut seen = [false; 200];
        while copies.any(|_| true) {
            copies.wait();
            while let Some((ticket, finished)) = copies.ended() {
                finished.outcome.unwrap();
                assert_eq!(finished.job.buffer.len(), 9);
                let Copying::PutIn { id } = ticket.what else {
                    panic!("{ticket:?}");
                };
                assert!(!std::mem::replace(&mut seen[id as usize], true));
                copies.keep(finished.job);
            }
        }
        assert!(seen.iter().all(|seen| *seen));
        assert!(!copies.trim(), "buffers were in use a moment ago");
        assert!(copies.trim());
    }
}
