//! Copies between device memory and buffers, on the streams of the devices.
//!
//! A frame whose pieces lie in device memory is framed when a job has copied them to a buffer; one that goes there is
//! collected in a buffer, and done when a job has copied it. Jobs carry holds of their memory, so it stays where it is
//! while they run, whoever else lets go of it.
//!
//! Buffers are bounded by what each connection may have under way, [`COPIES`](crate::limits::COPIES) each way of
//! [`DEVICE_FRAME_BYTES`](crate::limits::DEVICE_FRAME_BYTES): beyond that, nothing is read from it and nothing framed for
//! it.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::AsRawFd;

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use moai_memory::{Finished, Hold, Job, Span, Stream, StreamError, Work};
use moai_transport::{Error, PeerId};
use rustix::event::{PollFd, PollFlags, poll};
use slab::Slab;

use crate::chunk::Chunk;
use crate::interface::os;
use crate::limits::{DEVICE_FRAME_BYTES, KEPT_BUFFERS};

/// All copies of an interface.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    /// One for each device that was met.
    streams: Vec<DeviceStream>,
    tickets: Slab<Ticket>,
    spare: Vec<Job>,
    /// Copies were made since memory was last to be given back.
    is_warm: bool,
}

struct DeviceStream {
    device: u64,
    stream: Box<dyn Stream>,
    /// Jobs for which the stream has no room yet.
    waiting: VecDeque<Job>,
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

impl Copies {
    /// Opens a stream of the device whose memory that is, unless there is one.
    pub(crate) fn open(&mut self, hold: &Hold, registry: &Registry) -> Result<(), Error> {
        let Some(device) = hold.domain() else {
            return Ok(());
        };
        if self.streams.iter().any(|known| known.device == device.id()) {
            return Ok(());
        }
        let stream = device.stream().map_err(|error| match error {
            StreamError::Os { call, cause } => Error::Os { call, cause },
            other => os("opening a stream")(std::io::Error::other(other)),
        })?;
        // Its events wake whoever waits; copies that are over are looked for at every poll.
        let token = mio::Token(usize::MAX - 1 - self.streams.len());
        let fd = stream.as_fd().as_raw_fd();
        registry
            .register(&mut SourceFd(&fd), token, Interest::READABLE)
            .map_err(os("epoll_ctl"))?;
        self.streams.push(DeviceStream {
            device: device.id(),
            stream,
            waiting: VecDeque::new(),
        });
        Ok(())
    }

    /// Whether memory of a device was ever met.
    pub(crate) fn are_made(&self) -> bool {
        !self.streams.is_empty()
    }

    /// A job without spans, with a buffer of whatever length.
    pub(crate) fn job(&mut self, work: Work) -> Job {
        let mut job = self.spare.pop().unwrap_or_else(|| Job {
            name: 0,
            work: Work::ToHost,
            spans: Vec::new(),
            buffer: Vec::new(),
        });
        job.work = work;
        job
    }

    /// Gives a job back.
    pub(crate) fn keep(&mut self, mut job: Job) {
        job.spans.clear();
        // It may be what a long batch was collected in.
        if job.buffer.capacity() > 2 * DEVICE_FRAME_BYTES as usize {
            job.buffer = Vec::new();
        }
        if self.spare.len() < KEPT_BUFFERS {
            self.spare.push(job);
        }
    }

    /// Starts a copy.
    pub(crate) fn begin(&mut self, device: u64, ticket: Ticket, mut job: Job) {
        self.is_warm = true;
        job.name = self.tickets.insert(ticket) as u64;
        // It was opened when the memory was registered or named.
        let mut streams = self.streams.iter_mut();
        if let Some(stream) = streams.find(|stream| stream.device == device) {
            stream.waiting.push_back(job);
            stream.submit();
        }
    }

    /// A copy that is over.
    pub(crate) fn ended(&mut self) -> Option<(Ticket, Finished)> {
        if self.tickets.is_empty() {
            return None;
        }
        let mut streams = self.streams.iter_mut();
        let finished = streams.find_map(|stream| {
            let finished = stream.stream.completed()?;
            stream.submit();
            Some(finished)
        })?;
        let ticket = self.tickets.remove(finished.job.name as usize);
        Some((ticket, finished))
    }

    /// Whether one of them is under way.
    pub(crate) fn any(&self, is_one: impl Fn(&Ticket) -> bool) -> bool {
        self.tickets.iter().any(|(_, ticket)| is_one(ticket))
    }

    /// Waits until a copy is over.
    pub(crate) fn wait(&self) {
        let streams = self.streams.iter();
        let mut fds: Vec<PollFd<'_>> = streams
            .map(|stream| PollFd::from_borrowed_fd(stream.stream.as_fd(), PollFlags::IN))
            .collect();
        // Whoever called looks again in any case.
        let _ = poll(&mut fds, None);
    }

    /// Gives memory back unless copies were made since the last call. Returns whether there is none left to give.
    pub(crate) fn trim(&mut self) -> bool {
        if !std::mem::take(&mut self.is_warm) {
            self.spare = Vec::new();
        }
        self.spare.is_empty()
    }
}

impl DeviceStream {
    fn submit(&mut self) {
        while let Some(job) = self.waiting.pop_front() {
            if let Err(job) = self.stream.submit(job) {
                self.waiting.push_front(job);
                break;
            }
        }
    }
}

impl fmt::Debug for DeviceStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceStream")
            .field("device", &self.device)
            .field("in_flight", &self.stream.in_flight())
            .field("waiting", &self.waiting.len())
            .finish()
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
        assert_eq!(copies.streams.len(), 1);
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
        assert_eq!(copies.spare.len(), KEPT_BUFFERS);
    }
}
