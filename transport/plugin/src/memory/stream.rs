//! A stream of the other side's device.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;

use moai_memory::{Finished, Job, Span, Stream, StreamError, Work};
use rustix::event::{EventfdFlags, epoll, eventfd};
use slab::Slab;
use tracing::warn;

use super::TableDomain;
use super::taken::Taken;
use crate::abi;
use crate::text::Said;

/// Hands jobs to the other side, and believes of their ends only what it waits for.
pub(super) struct TableStream {
    domain: TableDomain,
    raw: *mut c_void,
    /// What the other side has in hand, with the number that tells it from earlier ones in the same entry.
    jobs: Slab<(u32, Job)>,
    generation: u32,
    /// Jobs that ended without it.
    ready: VecDeque<Finished>,
    /// Readable while there are such jobs.
    is_ready: OwnedFd,
    /// Readable if that is, or the other side's descriptor.
    epoll: OwnedFd,
    spans: Vec<abi::Span>,
    said: Said,
    /// It broke a rule, and is used no more.
    is_broken: bool,
}

// SAFETY: by the rules of the header a stream is used by one thread at a time, whichever it is.
unsafe impl Send for TableStream {}

/// Jobs that may be in flight, whatever the other side would take.
const DEPTH: usize = 1024;

impl TableStream {
    pub(super) fn new(domain: TableDomain) -> Result<Self, StreamError> {
        let os = |call| {
            move |error: rustix::io::Errno| StreamError::Os {
                call,
                cause: error.into(),
            }
        };
        let is_ready =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(os("eventfd"))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(os("epoll_create"))?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&epoll, &is_ready, data, epoll::EventFlags::IN).map_err(os("epoll_ctl"))?;
        let mut said = Said::new();
        let mut raw = ptr::null_mut();
        let table = domain.table();
        let (open, context) = (table.calls.open_stream, table.raw.context);
        // SAFETY: by the rules of the header, with what it may write to.
        let status = unsafe { open(context, &raw mut raw, said.clean()) };
        if status != abi::OK || raw.is_null() {
            return Err(StreamError::Os {
                call: "opening a stream",
                cause: io::Error::other(format!("{} (status {status})", said.sentence())),
            });
        }
        let stream = Self {
            domain,
            raw,
            jobs: Slab::new(),
            generation: 0,
            ready: VecDeque::new(),
            is_ready,
            epoll,
            spans: Vec::new(),
            said,
            is_broken: false,
        };
        // SAFETY: the stream was just opened.
        let fd = unsafe { (stream.domain.table().calls.stream_fd)(stream.raw) };
        let fd = (fd >= 0).then(|| {
            // SAFETY: only the system is told of it, which answers if it is not open.
            unsafe { BorrowedFd::borrow_raw(fd) }
        });
        let Some(fd) = fd else {
            return Err(StreamError::Os {
                call: "opening a stream",
                cause: io::Error::other("its descriptor is negative"),
            });
        };
        epoll::add(&stream.epoll, fd, data, epoll::EventFlags::IN).map_err(os("epoll_ctl"))?;
        Ok(stream)
    }

    /// Notes the job's spans, and makes its buffer as long as it has to be.
    fn prepare(&mut self, job: &mut Job) -> Result<u32, StreamError> {
        let work = match job.work {
            Work::ToHost => abi::WORK_TO_HOST,
            Work::FromHost => abi::WORK_FROM_HOST,
            _ => return Err(StreamError::NoKernels),
        };
        self.spans.clear();
        let mut total = 0_u64;
        for (index, span) in job.spans.iter().enumerate() {
            let raw = self.locate(index, span)?;
            if work == abi::WORK_FROM_HOST && !span.hold.is_writable() {
                return Err(StreamError::ReadOnly { span: index });
            }
            total = total.saturating_add(span.bytes);
            self.spans.push(raw);
        }
        let total = usize::try_from(total).unwrap_or(usize::MAX);
        if work == abi::WORK_FROM_HOST && job.buffer.len() != total {
            return Err(StreamError::BufferLength {
                buffer_bytes: job.buffer.len(),
                span_bytes: total,
            });
        }
        let more = total.saturating_sub(job.buffer.len());
        if job.buffer.try_reserve(more).is_err() {
            return Err(StreamError::OutOfMemory { bytes: total });
        }
        job.buffer.resize(total, 0);
        Ok(work)
    }

    /// A span in the terms of the other side.
    fn locate(&self, index: usize, span: &Span) -> Result<abi::Span, StreamError> {
        let end = span.offset.checked_add(span.bytes);
        if end.is_none_or(|end| end > span.hold.len()) {
            return Err(StreamError::OutOfBounds {
                span: index,
                offset: span.offset,
                bytes: span.bytes,
                len: span.hold.len(),
            });
        }
        let foreign = span.hold.foreign();
        let taken = foreign.and_then(|foreign| foreign.as_any().downcast_ref::<Taken>());
        let its_own = |taken: &&Taken| taken.device().is_some_and(|one| one.is(&self.domain));
        let Some(taken) = taken.filter(its_own) else {
            return Err(StreamError::NotOnDevice {
                span: index,
                kind: span.hold.kind(),
            });
        };
        let start = span.hold.address() - taken.address();
        Ok(abi::Span {
            handle: taken.handle(),
            offset: start as u64 + span.offset,
            bytes: span.bytes,
        })
    }

    fn end(&mut self, job: Job, outcome: Result<(), StreamError>) {
        if self.ready.is_empty() {
            // It was read when the last one was fetched, so it is far from full.
            let _ = rustix::io::write(&self.is_ready, &1_u64.to_ne_bytes());
        }
        self.ready.push_back(Finished { job, outcome });
    }

    /// The other side broke a rule: whatever it has in hand it may still write to, so that is never used again.
    fn give_up(&mut self, problem: &str) {
        warn!(
            domain = self.domain.name(),
            reason = problem,
            "a stream broke its contract"
        );
        self.is_broken = true;
        // Its descriptor wakes nobody any more.
        if let Ok(epoll) = epoll::create(epoll::CreateFlags::CLOEXEC) {
            let data = epoll::EventData::new_u64(0);
            let _ = epoll::add(&epoll, &self.is_ready, data, epoll::EventFlags::IN);
            self.epoll = epoll;
        }
        let jobs: Vec<_> = self.jobs.drain().collect();
        for (_, mut job) in jobs {
            std::mem::forget(std::mem::take(&mut job.buffer));
            job.spans
                .iter()
                .for_each(|span| std::mem::forget(span.hold.clone()));
            self.end(job, Err(StreamError::Failed));
        }
    }
}

impl Stream for TableStream {
    fn submit(&mut self, mut job: Job) -> Result<(), Job> {
        if self.in_flight() >= DEPTH {
            return Err(job);
        }
        let work = match self.prepare(&mut job) {
            Ok(work) if !self.is_broken => work,
            prepared => {
                let error = prepared.err().unwrap_or(StreamError::Failed);
                self.end(job, Err(error));
                return Ok(());
            }
        };
        self.generation = self.generation.wrapping_add(1);
        let entry = self.jobs.vacant_entry();
        let name = u64::from(self.generation) << 32 | entry.key() as u64;
        let raw = abi::Job {
            size: size_of::<abi::Job>() as u32,
            work,
            name,
            spans: self.spans.as_ptr(),
            span_count: self.spans.len() as u64,
            buffer: job.buffer.as_mut_ptr(),
            bytes: job.buffer.len() as u64,
        };
        let submit = self.domain.table().calls.submit;
        // SAFETY: by the rules of the header: the buffer and the holds of the spans are kept until the job is over.
        let status = unsafe { submit(self.raw, &raw const raw, self.said.clean()) };
        match status {
            abi::OK => {
                entry.insert((self.generation, job));
            }
            // Nothing would ever make room.
            abi::BUSY if !self.jobs.is_empty() => return Err(job),
            _ => {
                let reason = self.said.sentence();
                warn!(
                    domain = self.domain.name(),
                    status, reason, "a job was refused"
                );
                self.end(job, Err(StreamError::Failed));
            }
        }
        Ok(())
    }

    fn completed(&mut self) -> Option<Finished> {
        if let Some(finished) = self.ready.pop_front() {
            if self.ready.is_empty() {
                // It was written when there was the first, so there is something to read.
                let _ = rustix::io::read(&self.is_ready, &mut [0; 8]);
            }
            return Some(finished);
        }
        if self.is_broken {
            return None;
        }
        let mut finished = abi::Finished::default();
        // SAFETY: by the rules of the header, with what it may write to.
        match unsafe { (self.domain.table().calls.completed)(self.raw, &raw mut finished) } {
            abi::NONE => return None,
            abi::OK => {}
            status => {
                self.give_up(&format!("status {status} instead of a completion"));
                return self.completed();
            }
        }
        let slot = (finished.name & u64::from(u32::MAX)) as usize;
        let generation = (finished.name >> 32) as u32;
        let known = self.jobs.get(slot).is_some_and(|(of, _)| *of == generation);
        if !known {
            let name = finished.name;
            self.give_up(&format!(
                "a completion for {name:#x}, which is not in flight"
            ));
            return self.completed();
        }
        let (_, job) = self.jobs.remove(slot);
        let outcome = match finished.status {
            abi::OK => Ok(()),
            _ => Err(StreamError::Failed),
        };
        Some(Finished { job, outcome })
    }

    fn in_flight(&self) -> usize {
        self.jobs.len() + self.ready.len()
    }
}

impl AsFd for TableStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Drop for TableStream {
    fn drop(&mut self) {
        // One that broke a rule may never return.
        if !self.is_broken {
            // SAFETY: it is ours, and used for the last time.
            unsafe { (self.domain.table().calls.close_stream)(self.raw) };
        }
    }
}
