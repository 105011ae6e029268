//! Puts and gets between memory of this side and a peer's device, which a device of this side copies alone.
//!
//! The device has imported the file of the peer's memory. An operation is cut into slices of one registration each, and
//! the gate of that registration is passed before a slice and left when the device has ended it: until then the owner
//! that takes the memory back waits. There is one slice of a connection at a time, since there is one word that says
//! where its device is. Whoever has begun one therefore polls until it has ended, or keeps the owner waiting.
//!
//! Between two devices' memories a kernel copies; with memory of the processor on this side, bytes go through a buffer.

use std::mem;

use moai_memory::sim::DeviceMemory;
use moai_memory::{Finished, Job, Read, Region, Span, StreamError, Work, Write};
use moai_transport::sync::gate::{Entrant, Stay};
use moai_transport::{Fault, PeerId, PieceList, Refusal, Rights};

use crate::copying::{Copies, Copying, Step, Ticket, span};
use crate::foreign::Direction;
use crate::spans::Walk;
use crate::staged::{FRAME_BYTES, Means};

/// The slice of a connection that a device copies.
#[derive(Debug, Default)]
pub(crate) struct Slices {
    gate: Gate,
    current: Option<Current>,
    /// The other half of the spans, while they are gathered or wait for their turn.
    others: Vec<Span>,
    /// Bytes that are to go to memory of the processor, when that is lent.
    landed: Option<Job>,
}

/// Where the device stands before the peer's memory.
#[derive(Debug, Default)]
enum Gate {
    /// The peer has not answered.
    #[default]
    Unknown,
    Outside(Entrant),
    Inside(Stay),
}

#[derive(Clone, Copy, Debug)]
struct Current {
    operation: u64,
    peer: PeerId,
    device: u64,
    start: Walk,
}

/// What a slice is of.
pub(crate) struct Whole<'a> {
    pub(crate) number: u64,
    pub(crate) direction: Direction,
    pub(crate) local: &'a PieceList,
    pub(crate) remote: &'a PieceList,
    /// Where it starts.
    pub(crate) walk: Walk,
    pub(crate) device: u64,
}

/// Where the next slice starts, and the bytes of this one.
pub(crate) struct Begun {
    pub(crate) walk: Walk,
    pub(crate) bytes: u64,
}

/// Pieces of a slice; a kernel has as many on either side.
const MAX_SPANS: usize = 512;

/// Bytes of a slice that goes through no buffer. Who takes memory back waits for one.
const MAX_BYTES: u64 = 4 << 20;

impl Slices {
    /// The peer has answered.
    pub(crate) fn admit(&mut self, entrant: Entrant) {
        self.gate = Gate::Outside(entrant);
    }

    /// Whether a slice can begin.
    pub(crate) fn is_free(&self) -> bool {
        self.current.is_none()
    }

    /// Bytes that a device has brought for memory of the processor: their operation, where they start, and the job.
    pub(crate) fn landed(&mut self) -> Option<(u64, Walk, Job)> {
        let job = self.landed.take()?;
        let current = self.current.take()?;
        Some((current.operation, current.start, job))
    }

    /// Whether there are some.
    pub(crate) fn has_landed(&self) -> bool {
        self.landed.is_some()
    }

    /// Begins the next slice of an operation.
    pub(crate) fn begin(
        &mut self,
        whole: &Whole<'_>,
        means: &mut Means<'_>,
    ) -> Result<Begun, Fault> {
        let Some(table) = means.table else {
            return Err(Fault::PeerLost);
        };
        let (mut walk, regions) = (whole.walk, &*means.served.regions);
        let of = walk.remote(whole.remote).ok_or(Fault::Copy)?;
        let key = means.imports.get(of).map_err(|_| GONE)?;
        let (hold, base) = means.imports.on_device(of, whole.device).ok_or(GONE)?;
        let mut job = means.served.copies.job(Work::ToHost);
        self.others.clear();
        let (mut bytes, mut end, mut is_ours) = (0, 0, None);
        let mut limit = MAX_BYTES;
        while self.others.len() < MAX_SPANS && bytes < limit {
            let before = walk;
            let most = (limit - bytes) as u32;
            let Some(next) = walk.next(of, whole.local, whole.remote, most) else {
                break;
            };
            let region = regions.get(next.region as usize).ok_or(Fault::Copy)?;
            let is_host = region.kind().is_host_accessible();
            if is_ours.is_none() && is_host {
                limit = FRAME_BYTES.into();
                if u64::from(next.bytes) > limit {
                    walk = before;
                    is_ours = Some(true);
                    continue;
                }
            }
            if *is_ours.get_or_insert(is_host) != is_host {
                walk = before;
                break;
            }
            if !is_host {
                job.spans.push(span(region.hold(), next.local, next.bytes));
            } else if whole.direction == Direction::Write {
                let place = next.local as usize..next.local as usize + next.bytes as usize;
                let source = region.host_bytes().and_then(|all| all.get(place));
                job.buffer.extend_from_slice(source.ok_or(Fault::Copy)?);
            }
            let at = base + next.remote;
            self.others.push(span(hold.clone(), at, next.bytes));
            bytes += u64::from(next.bytes);
            end = end.max(next.remote + u64::from(next.bytes));
        }
        if self.others.is_empty() {
            return Err(Fault::Copy);
        }
        let step = match (whole.direction, is_ours == Some(true)) {
            (Direction::Write, true) => {
                job.work = Work::FromHost;
                job.spans.append(&mut self.others);
                Step::Last
            }
            (Direction::Read, true) => {
                job.spans.append(&mut self.others);
                Step::Landing
            }
            (direction, false) => {
                if direction == Direction::Read {
                    mem::swap(&mut job.spans, &mut self.others);
                }
                job.spans.append(&mut self.others);
                job.work = Work::Kernel(Box::new(copy));
                Step::Kernel
            }
        };
        let rights = match whole.direction {
            Direction::Read => Rights::READ,
            Direction::Write => Rights::WRITE,
        };
        self.enter(key.slot, key.generation)?;
        let admitted = if means.door.is_shut() {
            Err(Fault::PeerLost)
        } else {
            table.admit(key, end, rights).map_err(Fault::Refused)
        };
        let operation = whole.number;
        let ticket = Ticket {
            peer: means.served.peer,
            what: Copying::Slice { operation, step },
        };
        let begun = admitted.and_then(|()| {
            let begun = means.served.copies.begin(whole.device, ticket, job);
            begun.map_err(|_| Fault::Copy)
        });
        if let Err(fault) = begun {
            self.leave();
            return Err(fault);
        }
        self.current = Some(Current {
            operation,
            peer: ticket.peer,
            device: whole.device,
            start: whole.walk,
        });
        Ok(Begun { walk, bytes })
    }

    /// The device has done a step. Returns how the slice went, if it is over and nothing has to land.
    pub(crate) fn copied(
        &mut self,
        step: Step,
        Finished { mut job, outcome }: Finished,
        copies: &mut Copies,
    ) -> Option<Result<(), Fault>> {
        match (step, outcome) {
            // What is read may be the same bytes several times, which a kernel does not take.
            (Step::Kernel, Err(StreamError::Overlap)) => {
                let half = job.spans.len() / 2;
                self.others.clear();
                self.others.extend(job.spans.drain(half..));
                job.work = Work::ToHost;
                self.go_on(Step::ToHost, job, copies)
            }
            (Step::ToHost, Ok(())) => {
                job.spans.clear();
                job.spans.append(&mut self.others);
                job.work = Work::FromHost;
                self.go_on(Step::Last, job, copies)
            }
            (Step::Landing, Ok(())) => {
                self.leave();
                self.landed = Some(job);
                None
            }
            (_, outcome) => {
                copies.keep(job);
                self.leave();
                self.current = None;
                Some(outcome.map_err(|_| Fault::Copy))
            }
        }
    }

    fn go_on(&mut self, step: Step, job: Job, copies: &mut Copies) -> Option<Result<(), Fault>> {
        if let Some(Current {
            operation,
            peer,
            device,
            ..
        }) = self.current
        {
            let what = Copying::Slice { operation, step };
            if copies.begin(device, Ticket { peer, what }, job).is_ok() {
                return None;
            }
        }
        self.leave();
        self.current = None;
        Some(Err(Fault::Copy))
    }

    fn enter(&mut self, slot: u32, generation: u32) -> Result<(), Fault> {
        match mem::take(&mut self.gate) {
            Gate::Outside(entrant) => match entrant.stay(slot, generation.into()) {
                Ok(stay) => {
                    self.gate = Gate::Inside(stay);
                    Ok(())
                }
                Err((entrant, _)) => {
                    self.gate = Gate::Outside(entrant);
                    Err(GONE)
                }
            },
            other => {
                self.gate = other;
                Err(Fault::PeerLost)
            }
        }
    }

    fn leave(&mut self) {
        self.gate = match mem::take(&mut self.gate) {
            Gate::Inside(stay) => Gate::Outside(stay.leave()),
            other => other,
        };
    }
}

/// Writes the bytes of a get where they belong; false if the caller lends another region than when it posted.
pub(crate) fn scatter(
    mut walk: Walk,
    [local, remote]: [&PieceList; 2],
    mut bytes: &[u8],
    regions: &mut [Region],
) -> bool {
    while !bytes.is_empty() {
        let most = bytes.len() as u32;
        let next = walk
            .remote(remote)
            .and_then(|of| walk.next(of, local, remote, most));
        let Some(next) = next else { return false };
        let (now, rest) = bytes.split_at(next.bytes as usize);
        let place = next.local as usize..next.local as usize + now.len();
        let region = regions.get_mut(next.region as usize);
        let target = region.and_then(Region::host_bytes_mut);
        match target.and_then(|all| all.get_mut(place)) {
            Some(target) => target.copy_from_slice(now),
            None => return false,
        }
        bytes = rest;
    }
    true
}

/// The kernel: the first half of the spans to the second.
fn copy(memory: &mut DeviceMemory<'_>) {
    let half = memory.len() / 2;
    let (sources, mut targets) = memory.split_at(half);
    for index in 0..half {
        targets
            .bytes_mut(index)
            .copy_from_slice(sources.bytes(index));
    }
}

/// The registration has gone, and its file with it.
const GONE: Fault = Fault::Refused(Refusal::Generation);
