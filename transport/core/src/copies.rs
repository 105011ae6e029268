//! Copies between device memory and buffers, on the streams of the devices.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::BorrowedFd;

use moai_memory::{Domain, Finished, Job, Stream, StreamError, Work};
use rustix::event::{PollFd, PollFlags, poll};
use slab::Slab;

use crate::Error;

/// Copies that were begun for somebody, whom a ticket names, and are not over.
///
/// There is one stream for each device, opened when memory of it is first met. Jobs carry holds of their memory, so it
/// stays where it is while they run, whoever else lets go of it. How many copies there are is bounded by whoever begins
/// them; buffers of those that are over are kept for the next, up to a number.
pub struct Copies<T> {
    streams: Vec<DeviceStream>,
    tickets: Slab<T>,
    spare: Vec<Job>,
    /// Jobs that are kept for their buffers.
    kept: usize,
}

struct DeviceStream {
    device: u64,
    stream: Box<dyn Stream>,
    /// Jobs for which the stream has no room yet.
    waiting: VecDeque<Job>,
}

impl<T> Copies<T> {
    /// None yet. Keeps buffers of at most `kept` jobs.
    #[must_use]
    pub fn new(kept: usize) -> Self {
        Self {
            streams: Vec::new(),
            tickets: Slab::new(),
            spare: Vec::new(),
            kept,
        }
    }

    /// Opens a stream of `device`, unless there is one. Returns the descriptor of a new one, which is readable while
    /// there are copies to [take](Self::ended).
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if the system has no thread or descriptor for it.
    pub fn open(&mut self, device: &dyn Domain) -> Result<Option<BorrowedFd<'_>>, Error> {
        let id = device.id();
        if self.streams.iter().any(|known| known.device == id) {
            return Ok(None);
        }
        let stream = device.stream().map_err(|error| match error {
            StreamError::Os { call, cause } => Error::Os { call, cause },
            other => Error::Os {
                call: "opening a stream",
                cause: std::io::Error::other(other),
            },
        })?;
        self.streams.push(DeviceStream {
            device: id,
            stream,
            waiting: VecDeque::new(),
        });
        let new = self.streams.last();
        Ok(new.map(|new| new.stream.as_fd()))
    }

    /// Whether no copy is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }

    /// Whether one of them is under way.
    pub fn any(&self, is_one: impl Fn(&T) -> bool) -> bool {
        self.tickets.iter().any(|(_, ticket)| is_one(ticket))
    }

    /// A job without spans and with an empty buffer.
    pub fn job(&mut self, work: Work) -> Job {
        let mut job = self.spare.pop().unwrap_or_else(|| Job {
            name: 0,
            work: Work::ToHost,
            spans: Vec::new(),
            buffer: Vec::new(),
        });
        job.buffer.clear();
        job.work = work;
        job
    }

    /// Gives a job back that is not used any more.
    pub fn keep(&mut self, mut job: Job) {
        // Its holds would keep memory that was given back.
        job.spans.clear();
        if self.spare.len() < self.kept {
            self.spare.push(job);
        }
    }

    /// Whether buffers are kept.
    #[must_use]
    pub fn keeps_any(&self) -> bool {
        !self.spare.is_empty()
    }

    /// Gives up the buffers that are kept.
    pub fn give_up(&mut self) {
        self.spare = Vec::new();
    }

    /// Begins a copy on a device whose stream was opened; gives the job back if there is none.
    ///
    /// # Errors
    ///
    /// The job and its ticket.
    pub fn begin(&mut self, device: u64, ticket: T, mut job: Job) -> Result<(), (T, Job)> {
        let mut streams = self.streams.iter_mut();
        let Some(stream) = streams.find(|stream| stream.device == device) else {
            return Err((ticket, job));
        };
        job.name = self.tickets.insert(ticket) as u64;
        stream.waiting.push_back(job);
        stream.submit();
        Ok(())
    }

    /// A copy that is over.
    pub fn ended(&mut self) -> Option<(T, Finished)> {
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

    /// Waits until a copy is over, for those who cannot return before. Devices end what they have begun.
    pub fn wait(&self) {
        let streams = self.streams.iter();
        let mut fds: Vec<PollFd<'_>> = streams
            .map(|stream| PollFd::from_borrowed_fd(stream.stream.as_fd(), PollFlags::IN))
            .collect();
        // Whoever called looks again in any case.
        let _ = poll(&mut fds, None);
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

impl<T> fmt::Debug for Copies<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Copies")
            .field("devices", &self.streams.len())
            .field("under_way", &self.tickets.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use moai_memory::Span;
    use moai_memory::sim::{SimConfig, SimDevice};

    use super::*;

    #[test]
    fn more_copies_than_a_stream_takes_wait_and_all_end_once() {
        let device = SimDevice::new(SimConfig::default());
        let region = device.allocate(4096).unwrap();
        let mut copies = Copies::new(5);
        assert!(copies.open(&device).unwrap().is_some());
        assert!(copies.open(&device).unwrap().is_none());
        let id = Domain::id(&device);
        for ticket in 0..200 {
            let mut job = copies.job(Work::ToHost);
            job.spans.push(Span {
                hold: region.hold(),
                offset: 7,
                bytes: 9,
            });
            copies.begin(id, ticket, job).unwrap();
        }
        let mut seen = [false; 200];
        while !copies.is_empty() {
            copies.wait();
            while let Some((ticket, finished)) = copies.ended() {
                finished.outcome.unwrap();
                assert_eq!(finished.job.buffer.len(), 9);
                assert!(!std::mem::replace(&mut seen[ticket], true));
                copies.keep(finished.job);
            }
        }
        assert!(seen.iter().all(|seen| *seen));
        assert_eq!(copies.spare.len(), 5);
        assert!(copies.keeps_any());
        copies.give_up();
        assert!(!copies.keeps_any());
        let job = copies.job(Work::ToHost);
        assert!(copies.begin(id + 1000, 0, job).is_err(), "no such device");
    }
}
