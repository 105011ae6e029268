//! One job, done or done wrong.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::SimDevice;
use super::fault::Fault;
use super::memory::Located;
use crate::{Job, Span, StreamError, Work};

/// Does a job, unless `fault` strikes. What is left to do later is returned.
pub(super) fn execute(
    device: &SimDevice,
    job: &mut Job,
    fault: Option<Fault>,
) -> Result<Option<Late>, StreamError> {
    // What a copy to the host would do late is to write a buffer that was handed back.
    let fault = fault.filter(|fault| !(*fault == Fault::Late && matches!(job.work, Work::ToHost)));
    if let Some(fault) = fault {
        device.tally().struck(fault);
    }
    match fault {
        None => run(device, job).map(|()| None),
        Some(Fault::Failed) => Err(StreamError::Failed),
        Some(Fault::Lost) => lose(device, job).map(|()| None),
        Some(Fault::Late) => Late::run(device, job).map(Some),
    }
}

fn run(device: &SimDevice, job: &mut Job) -> Result<(), StreamError> {
    let mut engine = device.engine();
    let spans = Located::new(&mut engine, device, &job.spans)?;
    match &mut job.work {
        Work::ToHost => {
            job.buffer.clear();
            reserve(&mut job.buffer, spans.total())?;
            for index in 0..spans.len() {
                job.buffer.extend_from_slice(spans.bytes(index));
            }
            Ok(())
        }
        Work::FromHost => from_host(spans, &job.buffer),
        Work::Kernel(kernel) => {
            let mut memory = spans.disjoint()?;
            // A kernel that panics is whatever it is then; it goes back to its owner with the error.
            catch_unwind(AssertUnwindSafe(|| kernel.run(&mut memory)))
                .map_err(|_| StreamError::Panicked)
        }
    }
}

/// Nothing, but what shows right away.
fn lose(device: &SimDevice, job: &mut Job) -> Result<(), StreamError> {
    let mut engine = device.engine();
    let total = Located::new(&mut engine, device, &job.spans)?.total();
    if matches!(job.work, Work::ToHost) {
        let more = total.saturating_sub(job.buffer.len());
        reserve(&mut job.buffer, more)?;
        job.buffer.resize(total, 0);
    }
    Ok(())
}

fn from_host(mut spans: Located<'_>, mut buffer: &[u8]) -> Result<(), StreamError> {
    if buffer.len() != spans.total() {
        return Err(StreamError::BufferLength {
            buffer_bytes: buffer.len(),
            span_bytes: spans.total(),
        });
    }
    for index in 0..spans.len() {
        let target = spans
            .bytes_mut(index)
            .ok_or(StreamError::ReadOnly { span: index })?;
        let (bytes, rest) = buffer.split_at(target.len());
        target.copy_from_slice(bytes);
        buffer = rest;
    }
    Ok(())
}

fn reserve(buffer: &mut Vec<u8>, more: usize) -> Result<(), StreamError> {
    let reserved = buffer.try_reserve(more);
    reserved.map_err(|_| StreamError::OutOfMemory { bytes: more })
}

/// What a job wrote, taken back for now.
#[derive(Debug)]
pub(super) struct Late {
    spans: Vec<Span>,
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Late {
    fn run(device: &SimDevice, job: &mut Job) -> Result<Self, StreamError> {
        let before = snapshot(device, &job.spans)?;
        run(device, job)?;
        let late = Self {
            spans: job.spans.clone(),
            before,
            after: snapshot(device, &job.spans)?,
        };
        change(device, &late.spans, &late.after, &late.before);
        Ok(late)
    }

    /// Writes it after all.
    pub(super) fn write(self, device: &SimDevice) {
        change(device, &self.spans, &self.before, &self.after);
    }
}

fn snapshot(device: &SimDevice, spans: &[Span]) -> Result<Vec<u8>, StreamError> {
    let mut engine = device.engine();
    let located = Located::new(&mut engine, device, spans)?;
    let mut bytes = Vec::new();
    reserve(&mut bytes, located.total())?;
    (0..located.len()).for_each(|index| bytes.extend_from_slice(located.bytes(index)));
    Ok(bytes)
}

/// Writes those bytes of `to` that are not what `from` has.
fn change(device: &SimDevice, spans: &[Span], mut from: &[u8], mut to: &[u8]) {
    let mut engine = device.engine();
    let mut located =
        Located::new(&mut engine, device, spans).expect("the spans were located before");
    for index in 0..located.len() {
        let len = located.bytes(index).len();
        let (old, new);
        (old, from) = from.split_at(len);
        (new, to) = to.split_at(len);
        // What can only be read has not changed.
        let Some(bytes) = located.bytes_mut(index) else {
            continue;
        };
        for ((byte, old), new) in bytes.iter_mut().zip(old).zip(new) {
            if old != new {
                *byte = *new;
            }
        }
    }
}
