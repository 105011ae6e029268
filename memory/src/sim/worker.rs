//! The thread that works off a stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::execute::{Late, execute};
use super::fault::{Faults, duration_in};
use super::random::Random;
use super::stream::{Next, Queue, Waiting};
use super::{SimDevice, SimStream};
use crate::Finished;

pub(super) struct Worker {
    device: SimDevice,
    queue: Arc<Queue>,
    random: Random,
    /// What is left to write, and when, the earliest first. No more than a stream has jobs: beyond that, the first is
    /// written at once.
    late: VecDeque<(Instant, Late)>,
}

impl Worker {
    pub(super) fn new(device: SimDevice, queue: Arc<Queue>, random: Random) -> Self {
        Self {
            device,
            queue,
            random,
            late: VecDeque::new(),
        }
    }

    /// Works until the stream is closed. What was reported as done is then written, what has not begun is given up.
    pub(super) fn run(mut self) {
        loop {
            let due = self.late.front().map(|(due, _)| *due);
            let order = self.device.config().reorder.then_some(&mut self.random);
            match self.queue.next(due, order) {
                Next::Job(waiting) => self.work(waiting),
                Next::Due => self.write_first(),
                Next::Closed => break,
            }
        }
        while !self.late.is_empty() {
            self.write_first();
        }
        self.device.settle(self.queue.waiting());
    }

    fn work(&mut self, Waiting { mut job, fate }: Waiting) {
        if !fate.delay.is_zero() {
            self.device.tally().delayed();
            if !self.queue.pause(Instant::now() + fate.delay) {
                return self.device.settle(1);
            }
        }
        let outcome = execute(&self.device, &mut job, fate.fault);
        let settled = !matches!(outcome, Ok(Some(_)));
        let outcome = outcome.map(|late| late.into_iter().for_each(|late| self.keep(late)));
        self.queue.finish(Finished { job, outcome });
        // Last, so that whoever waited for the device finds the completion.
        if settled {
            self.device.settle(1);
        }
    }

    fn keep(&mut self, late: Late) {
        if self.late.len() == SimStream::DEPTH {
            self.write_first();
        }
        let due = Instant::now() + duration_in(&Faults::LATE_BY, &mut self.random);
        let after = self.late.partition_point(|(other, _)| *other <= due);
        self.late.insert(after, (due, late));
    }

    fn write_first(&mut self) {
        if let Some((_, late)) = self.late.pop_front() {
            late.write(&self.device);
            self.device.settle(1);
        }
    }
}
