//! A queue of jobs, and of those that are over.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::SimDevice;
use super::device::unpoisoned;
use super::fault::Fate;
use super::random::Random;
use super::worker::Worker;
use crate::{Finished, Job, Stream, StreamError};

/// A stream of a [`SimDevice`]: a thread that works off jobs.
pub struct SimStream {
    device: SimDevice,
    queue: Arc<Queue>,
    fates: Random,
    /// There until the stream is dropped.
    worker: Option<JoinHandle<()>>,
}

impl SimStream {
    /// Jobs that may be in flight. A job of a transport carries a chunk of a quarter MiB or so: some 16 MiB of buffers, more
    /// than any device needs to stay busy.
    pub const DEPTH: usize = 64;

    pub(super) fn new(device: SimDevice, index: u64) -> Result<Self, StreamError> {
        let seed = device.config().seed;
        let queue = Queue::new().map_err(|cause| StreamError::Os {
            call: "eventfd",
            cause,
        })?;
        let queue = Arc::new(queue);
        let order = Random::new(seed, 2 * index + 1);
        let worker = Worker::new(device.clone(), Arc::clone(&queue), order);
        let worker = thread::Builder::new()
            .name("moai-sim".into())
            .spawn(move || worker.run())
            .map_err(|cause| StreamError::Os {
                call: "spawning a thread",
                cause,
            })?;
        Ok(Self {
            device,
            queue,
            fates: Random::new(seed, 2 * index),
            worker: Some(worker),
        })
    }
}

impl Stream for SimStream {
    fn submit(&mut self, job: Job) -> Result<(), Job> {
        let config = self.device.config();
        let mut state = self.queue.state();
        if state.in_flight == Self::DEPTH {
            return Err(job);
        }
        let fate = Fate::draw(&config.delay, config.faults, &mut self.fates);
        self.device.submitted();
        state.in_flight += 1;
        state.waiting.push_back(Waiting { job, fate });
        drop(state);
        self.queue.changed.notify_one();
        Ok(())
    }

    fn completed(&mut self) -> Option<Finished> {
        let mut state = self.queue.state();
        let finished = state.finished.pop_front()?;
        state.in_flight -= 1;
        if state.finished.is_empty() {
            // It was written when there was the first, so there is something to read.
            let _ = rustix::io::read(&self.queue.readable, &mut [0; 8]);
        }
        Some(finished)
    }

    fn in_flight(&self) -> usize {
        self.queue.state().in_flight
    }
}

impl AsFd for SimStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.readable.as_fd()
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.queue.state().closed = true;
        self.queue.changed.notify_one();
        if let Some(worker) = self.worker.take() {
            // It catches what kernels do; anything else is reported by the panic itself.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for SimStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimStream")
            .field("device", &self.device)
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

/// What a stream and its worker share.
pub(super) struct Queue {
    state: Mutex<State>,
    /// There are more jobs, or no more to come.
    changed: Condvar,
    /// An eventfd: readable while there are finished jobs.
    readable: OwnedFd,
}

/// Both queues together have at most [`SimStream::DEPTH`] jobs, and room for that from the beginning.
struct State {
    waiting: VecDeque<Waiting>,
    finished: VecDeque<Finished>,
    in_flight: usize,
    closed: bool,
}

pub(super) struct Waiting {
    pub(super) job: Job,
    pub(super) fate: Fate,
}

/// What there is to do for a worker.
pub(super) enum Next {
    Job(Waiting),
    /// The time has come that it asked to be woken at.
    Due,
    Closed,
}

impl Queue {
    fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::new(State {
                waiting: VecDeque::with_capacity(SimStream::DEPTH),
                finished: VecDeque::with_capacity(SimStream::DEPTH),
                in_flight: 0,
                closed: false,
            }),
            changed: Condvar::new(),
            readable: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Waits for a job, until `due`. With `order`, jobs come in any order that leaves those apart which share bytes.
    pub(super) fn next(&self, due: Option<Instant>, order: Option<&mut Random>) -> Next {
        let mut state = self.state();
        loop {
            if state.closed {
                return Next::Closed;
            }
            if due.is_some_and(|due| due <= Instant::now()) {
                return Next::Due;
            }
            if !state.waiting.is_empty() {
                let index = order.map_or(0, |random| state.any(random));
                let waiting = state.waiting.remove(index);
                return Next::Job(waiting.expect("the index is one of the queue's"));
            }
            state = self.wait(state, due);
        }
    }

    /// Waits until `due`; `false` if the stream was closed meanwhile.
    pub(super) fn pause(&self, due: Instant) -> bool {
        let mut state = self.state();
        while !state.closed && Instant::now() < due {
            state = self.wait(state, Some(due));
        }
        !state.closed
    }

    pub(super) fn finish(&self, finished: Finished) {
        let mut state = self.state();
        if state.finished.is_empty() {
            // It was read when the last one was fetched, so it is far from full.
            let _ = rustix::io::write(&self.readable, &1_u64.to_ne_bytes());
        }
        state.finished.push_back(finished);
    }

    /// Jobs that nobody has begun.
    pub(super) fn waiting(&self) -> usize {
        self.state().waiting.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        unpoisoned(self.state.lock())
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        due: Option<Instant>,
    ) -> MutexGuard<'a, State> {
        let Some(due) = due else {
            return unpoisoned(self.changed.wait(state));
        };
        let left: Duration = due.saturating_duration_since(Instant::now());
        unpoisoned(self.changed.wait_timeout(state, left)).0
    }
}

impl State {
    /// Any of the waiting jobs, of which there is one, that shares no bytes with an earlier one.
    fn any(&self, random: &mut Random) -> usize {
        let mut index = random.below(self.waiting.len() as u64) as usize;
        loop {
            let chosen = &self.waiting[index].job;
            let mut earlier = self.waiting.iter().take(index);
            match earlier.position(|earlier| share_bytes(&earlier.job, chosen)) {
                Some(first) => index = first,
                None => return index,
            }
        }
    }
}

fn share_bytes(a: &Job, b: &Job) -> bool {
    let overlap = |span| b.spans.iter().any(|other| other.overlaps(span));
    a.spans.iter().any(overlap)
}
