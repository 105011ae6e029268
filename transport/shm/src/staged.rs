//! Puts and gets that both sides copy, through the staging rings: for memory that this side cannot reach by itself.
//!
//! An operation is cut into frames, of which at most [`MAX_FRAMES`] wait for their answer. So the other side has room
//! for what it still has to answer, and never stops reading because it cannot answer.
//!
//! What lies on a device is copied by it, to or from a buffer of a frame's size: before a frame of a put is sent, and
//! after the answer to one of a get has come. A frame ends where its local memory changes from the processor's to a
//! device's or from one device to another, and with a registration of the peer's device memory; so one job copies it.

use std::collections::VecDeque;

use moai_memory::{Finished, Job, Region, Span as DeviceSpan, Work};
use moai_transport::limits::MAX_LIST_BYTES;
use moai_transport::wire::{Access, HEADER_BYTES, Header, ListWriter};
use moai_transport::{
    Batch, Closed, Completion, Completions, Fault, PeerId, PieceList, Refusal, Run, Stats, Token,
};

use crate::answers::{Answers, Copied, Served};
use crate::copying::{Copies, Copying, Ticket, device_of, span};
use crate::foreign::Direction;
use crate::greeting::wrong;
use crate::imports::Imports;
use crate::outbound::{Outbound, Room};
use crate::segment::Door;
use crate::slices::{Slices, Whole, scatter};
use crate::spans::Walk;
use crate::table::PeerTable;

/// Operations of both sides that go through the rings.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    /// Of this side, in the order in which they were posted. Each has room among the completions, which bounds them.
    operations: VecDeque<Operation>,
    /// Of this side, sent or being copied for that, and not answered.
    frames: VecDeque<Frame>,
    /// Frames of those that a device has copied, to be sent.
    ready: VecDeque<(u64, Job)>,
    /// Answers that a device still copies. With the frames they are at most [`MAX_FRAMES`].
    landing: usize,
    /// Operations that a device of this side does alone.
    pub(crate) slices: Slices,
    /// Number of the next operation and of the next frame.
    next: u64,
    /// Of the peer.
    pub(crate) answers: Answers,
    /// Lists that are not in use, kept for their memory.
    spare: Vec<PieceList>,
    /// A list being written.
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Operation {
    number: u64,
    token: Token,
    direction: Direction,
    local: PieceList,
    remote: PieceList,
    walk: Walk,
    /// Not sent yet.
    left: u64,
    total: u64,
    /// Sent and not answered, or being copied.
    frames: usize,
    /// Who copies it alone, without frames.
    device: Option<u64>,
    outcome: Result<(), Fault>,
    is_flush: bool,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    id: u64,
    operation: u64,
    /// Where it starts.
    walk: Walk,
    bytes: u32,
}

/// The pieces of a frame.
struct Cut {
    /// Where the next one starts.
    end: Walk,
    bytes: u32,
    /// Whose memory its local pieces are.
    device: Option<u64>,
}

/// By what frames are sent.
pub(crate) struct Means<'a> {
    pub(crate) out: &'a mut Outbound,
    pub(crate) imports: &'a Imports,
    /// The peer's.
    pub(crate) epoch: u64,
    /// The peer's, once it has answered.
    pub(crate) table: Option<&'a PeerTable>,
    pub(crate) door: &'a Door,
    pub(crate) served: Served<'a>,
}

/// Frames of one side that wait for their answer; what the other side remembers of each is a list of pieces at most, or
/// its payload while a device copies it.
pub(crate) const MAX_FRAMES: usize = 64;

/// Payload of a frame: what fits a second-level cache twice.
pub(crate) const FRAME_BYTES: u32 = 256 << 10;

/// Room in which whatever is next certainly fits.
pub(crate) const ROOM: Room = Room {
    control: HEADER_BYTES as u32,
    staging: FRAME_BYTES + MAX_LIST_BYTES,
};

impl Staged {
    /// Whether operations of this side have not ended.
    pub(crate) fn is_busy(&self) -> bool {
        !self.operations.is_empty()
    }

    /// Whether there is something to send as soon as there is room.
    pub(crate) fn wants_room(&self) -> bool {
        let may_send = |one: &Operation| one.may_go_on() && one.device.is_none();
        !self.answers.is_empty()
            || !self.ready.is_empty()
            || self.has_room() && self.operations.iter().any(may_send)
    }

    /// Whether something could be sent, or ended, without anything from the peer.
    pub(crate) fn has_news(&self) -> bool {
        self.wants_room() || self.has_work()
    }

    /// Whether this side has something to do that takes no room.
    pub(crate) fn has_work(&self) -> bool {
        let mut operations = self.operations.iter();
        let may_begin = |one: &Operation| one.may_go_on() && one.device.is_some();
        self.slices.has_landed()
            || self.slices.is_free() && self.operations.iter().any(may_begin)
            || self.operations.front().is_some_and(Operation::is_over)
            || operations.any(|one| one.is_over() && !one.is_flush)
    }

    fn has_room(&self) -> bool {
        self.frames.len() + self.landing < MAX_FRAMES
    }

    /// Takes an operation in hand, which `device` does alone if there is one; there is room for its completion.
    pub(crate) fn begin(
        &mut self,
        token: Token,
        job: &crate::direct::Job<'_>,
        total: u64,
        device: Option<u64>,
    ) {
        let mut operation = self.operation(token, job.direction, total);
        operation.device = device;
        operation.local.extend(job.local);
        operation.remote.extend(job.remote);
        self.operations.push_back(operation);
    }

    /// Ends when those before it have.
    pub(crate) fn flush(&mut self, token: Token) {
        let mut operation = self.operation(token, Direction::Write, 0);
        operation.is_flush = true;
        self.operations.push_back(operation);
    }

    fn operation(&mut self, token: Token, direction: Direction, total: u64) -> Operation {
        self.next += 1;
        Operation {
            number: self.next,
            token,
            direction,
            local: self.spare.pop().unwrap_or_default(),
            remote: self.spare.pop().unwrap_or_default(),
            walk: Walk::default(),
            left: total,
            total,
            frames: 0,
            device: None,
            outcome: Ok(()),
            is_flush: false,
        }
    }

    fn keep(&mut self, mut list: PieceList) {
        if self.spare.len() < MAX_FRAMES {
            list.clear();
            self.spare.push(list);
        }
    }

    /// Everything of this side has ended with the connection.
    pub(crate) fn end(&mut self, peer: PeerId, completions: &mut Completions, stats: &mut Stats) {
        for operation in self.operations.drain(..) {
            stats.faults += 1;
            completions.end(Completion::new(peer, operation.token, Err(Fault::PeerLost)));
        }
    }

    /// Sends what there is room for.
    pub(crate) fn send(&mut self, means: &mut Means<'_>) -> Result<(), Closed> {
        self.slice(means);
        if !self.answers.send(means.out, &mut means.served)? || !self.send_ready(means)? {
            return Ok(());
        }
        let Self {
            operations,
            frames,
            landing,
            bytes,
            next,
            ..
        } = self;
        for operation in operations.iter_mut() {
            while operation.may_go_on()
                && operation.device.is_none()
                && frames.len() + *landing < MAX_FRAMES
            {
                *next += 1;
                let sent = operation.send(*next, means, bytes)?;
                let Some(frame) = sent else {
                    return Ok(());
                };
                frames.push_back(frame);
            }
        }
        Ok(())
    }

    /// Ends a slice whose bytes have come for memory of the processor, and begins the next.
    fn slice(&mut self, means: &mut Means<'_>) {
        if let Some((number, walk, job)) = self.slices.landed() {
            let mut operations = self.operations.iter_mut();
            if let Some(operation) = operations.find(|one| one.number == number) {
                let lists = [&operation.local, &operation.remote];
                if !scatter(walk, lists, &job.buffer, means.served.regions) {
                    operation.outcome = Err(Fault::Copy);
                }
                operation.frames -= 1;
            }
            means.served.copies.keep(job);
        }
        while self.slices.is_free() {
            let mut operations = self.operations.iter_mut();
            let next = operations.find(|one| one.may_go_on() && one.device.is_some());
            let Some(operation) = next else { break };
            let Some(device) = operation.device else {
                break;
            };
            let whole = Whole {
                number: operation.number,
                direction: operation.direction,
                local: &operation.local,
                remote: &operation.remote,
                walk: operation.walk,
                device,
            };
            match self.slices.begin(&whole, means) {
                Ok(begun) => {
                    operation.walk = begun.walk;
                    operation.left -= begun.bytes;
                    operation.frames += 1;
                }
                Err(fault) => operation.outcome = Err(fault),
            }
        }
    }

    /// Sends the frames that a device has copied; false if there was no room for all.
    fn send_ready(&mut self, means: &mut Means<'_>) -> Result<bool, Closed> {
        while let Some((id, job)) = self.ready.front() {
            let frame = self.frames.iter().find(|frame| frame.id == *id);
            let operation = frame.and_then(|frame| {
                let mut operations = self.operations.iter();
                operations.find(|one| one.number == frame.operation)
            });
            if let (Some(&frame), Some(operation)) = (frame, operation) {
                let bytes = &mut self.bytes;
                let regions = &*means.served.regions;
                let cut = operation.cut(frame.walk, frame.bytes, means.imports, regions, bytes);
                if cut.bytes == frame.bytes && job.buffer.len() == frame.bytes as usize {
                    let header = operation.header(*id, &cut, bytes, means.epoch);
                    let sent = means.out.staged(header, &mut |room| {
                        let (front, back) = room.split_at_mut(bytes.len());
                        front.copy_from_slice(bytes);
                        back.copy_from_slice(&job.buffer);
                    })?;
                    if !sent {
                        return Ok(false);
                    }
                } else {
                    // The caller lends another region than when it posted.
                    let id = *id;
                    self.fail(id);
                }
            }
            if let Some((_, job)) = self.ready.pop_front() {
                means.served.copies.keep(job);
            }
        }
        Ok(true)
    }

    /// A frame was not sent, and will not be.
    fn fail(&mut self, id: u64) {
        if let Ok((operation, _)) = answered(&mut self.frames, &mut self.operations, id) {
            operation.outcome = Err(Fault::Copy);
        }
    }

    /// A put was placed, or something was refused.
    pub(crate) fn done(&mut self, id: u64, refusal: Option<Refusal>) -> Result<(), Closed> {
        let (operation, _) = answered(&mut self.frames, &mut self.operations, id)?;
        if let Some(refusal) = refusal {
            operation.outcome = Err(Fault::Refused(refusal));
        } else if operation.direction == Direction::Read {
            return Err(unasked(id));
        }
        Ok(())
    }

    /// What a get has asked for came.
    pub(crate) fn data(
        &mut self,
        batch: Batch,
        payload: &[u8],
        peer: PeerId,
        regions: &mut [Region],
        copies: &mut Copies,
    ) -> Result<(), Closed> {
        let (operation, frame) = answered(&mut self.frames, &mut self.operations, batch.id)?;
        if operation.direction != Direction::Read || frame.bytes as usize != payload.len() {
            return Err(unasked(batch.id));
        }
        if let Some(device) = operation.device(frame.walk, regions) {
            let mut job = copies.job(Work::FromHost);
            operation.spans(frame.walk, frame.bytes, regions, &mut job.spans);
            job.buffer.extend_from_slice(payload);
            let what = Copying::GetIn {
                operation: operation.number,
            };
            match copies.begin(device, Ticket { peer, what }, job) {
                Ok(()) => {
                    operation.frames += 1;
                    self.landing += 1;
                }
                Err((_, job)) => {
                    operation.outcome = Err(Fault::Copy);
                    copies.keep(job);
                }
            }
            return Ok(());
        }
        let (mut walk, mut at) = (frame.walk, 0);
        while at < payload.len() {
            let most = (payload.len() - at) as u32;
            let Some(span) = operation.next(&mut walk, most) else {
                break;
            };
            let bytes = span.bytes as usize;
            let target = regions
                .get_mut(span.region as usize)
                .and_then(Region::host_bytes_mut)
                .and_then(|all| all.get_mut(span.local as usize..span.local as usize + bytes));
            match target {
                Some(target) => target.copy_from_slice(&payload[at..at + bytes]),
                // The caller lends another region than when it posted.
                None => operation.outcome = Err(Fault::Copy),
            }
            at += bytes;
        }
        Ok(())
    }

    /// A copy by a device is over.
    pub(crate) fn copied(
        &mut self,
        what: Copying,
        finished: Finished,
        copies: &mut Copies,
        stats: &mut Stats,
    ) {
        if let Copying::Slice { operation, step } = what {
            let ended = self.slices.copied(step, finished, copies);
            let mut operations = self.operations.iter_mut();
            let operation = operations.find(|one| one.number == operation);
            if let (Some(outcome), Some(operation)) = (ended, operation) {
                operation.frames -= 1;
                if operation.outcome.is_ok() {
                    operation.outcome = outcome;
                }
            }
            return;
        }
        let Finished { job, outcome } = finished;
        let failed = outcome.is_err();
        match what {
            Copying::PutOut { frame } if failed => self.fail(frame),
            Copying::PutOut { frame } => return self.ready.push_back((frame, job)),
            Copying::Slice { .. } => {}
            Copying::GetIn { operation } => {
                self.landing -= 1;
                let mut operations = self.operations.iter_mut();
                // It may have ended with the connection.
                if let Some(operation) = operations.find(|one| one.number == operation) {
                    operation.frames -= 1;
                    if failed {
                        operation.outcome = Err(Fault::Copy);
                    }
                }
            }
            Copying::GetOut { .. } | Copying::PutIn { .. } => {
                return self
                    .answers
                    .copied(what, job, failed, Copied { copies, stats });
            }
        }
        copies.keep(job);
    }

    /// Completes what is over.
    pub(crate) fn complete(
        &mut self,
        peer: PeerId,
        completions: &mut Completions,
        stats: &mut Stats,
    ) {
        let mut at = 0;
        while let Some(operation) = self.operations.get(at) {
            if !operation.is_over() || operation.is_flush && at > 0 {
                at += 1;
                continue;
            }
            let Some(operation) = self.operations.remove(at) else {
                break;
            };
            if !operation.is_flush {
                match (operation.outcome, operation.direction) {
                    (Err(_), _) => stats.faults += 1,
                    (Ok(()), Direction::Write) => {
                        stats.puts += 1;
                        stats.put_bytes += operation.total;
                    }
                    (Ok(()), Direction::Read) => {
                        stats.gets += 1;
                        stats.got_bytes += operation.total;
                    }
                }
            }
            completions.end(Completion::new(peer, operation.token, operation.outcome));
            self.keep(operation.local);
            self.keep(operation.remote);
            // A flush behind it may be over now.
            at = 0;
        }
    }
}

impl Operation {
    fn is_over(&self) -> bool {
        self.frames == 0 && (self.left == 0 || self.outcome.is_err())
    }

    fn may_go_on(&self) -> bool {
        self.left > 0 && self.outcome.is_ok()
    }

    /// The next span of a walk.
    fn next(&self, walk: &mut Walk, most: u32) -> Option<crate::spans::Span> {
        let of = walk.remote(&self.remote)?;
        walk.next(of, &self.local, &self.remote, most)
    }

    /// Lists the pieces of a frame that starts at `start` and has at most `most` bytes.
    fn cut(
        &self,
        start: Walk,
        most: u32,
        imports: &Imports,
        regions: &[Region],
        bytes: &mut Vec<u8>,
    ) -> Cut {
        bytes.clear();
        let mut list = ListWriter::new(bytes);
        let (mut end, mut payload, mut place) = (start, 0, None);
        while payload < most && list.has_room() {
            let Some(of) = end.remote(&self.remote) else {
                break;
            };
            let Ok(key) = imports.get(of) else { break };
            let before = end;
            let next = end.next(of, &self.local, &self.remote, most - payload);
            let Some(span) = next else { break };
            let local = regions.get(span.region as usize).and_then(device_of);
            let remote = (!key.kind.is_host_accessible()).then_some(key.slot);
            if *place.get_or_insert((local, remote)) != (local, remote) {
                end = before;
                break;
            }
            let run = Run {
                region: key.slot,
                offset: span.remote,
                bytes: span.bytes,
            };
            list.push(run, key.generation);
            payload += span.bytes;
        }
        list.finish();
        Cut {
            end,
            bytes: payload,
            device: place.and_then(|(local, _)| local),
        }
    }

    fn header(&self, id: u64, cut: &Cut, list: &[u8], epoch: u64) -> Header {
        let access = Access {
            id,
            bytes: cut.bytes,
            list_bytes: list.len() as u32,
            epoch,
        };
        match self.direction {
            Direction::Write => Header::Put(access),
            Direction::Read => Header::Get(access),
        }
    }

    /// Whose memory the local pieces of a frame are that starts at `walk`.
    fn device(&self, mut walk: Walk, regions: &[Region]) -> Option<u64> {
        let span = self.next(&mut walk, 1)?;
        regions.get(span.region as usize).and_then(device_of)
    }

    /// The local pieces of a frame, as a device names them.
    fn spans(
        &self,
        mut walk: Walk,
        mut bytes: u32,
        regions: &[Region],
        spans: &mut Vec<DeviceSpan>,
    ) {
        while bytes > 0 {
            let Some(run) = self.next(&mut walk, bytes) else {
                break;
            };
            bytes -= run.bytes;
            // Without it the job has fewer bytes than it should, and the frame fails.
            if let Some(region) = regions.get(run.region as usize) {
                spans.push(span(region.hold(), run.local, run.bytes));
            }
        }
    }

    /// Sends its next frame, or has a device copy it, if there is room.
    fn send(
        &mut self,
        id: u64,
        means: &mut Means<'_>,
        bytes: &mut Vec<u8>,
    ) -> Result<Option<Frame>, Closed> {
        let (start, regions) = (self.walk, &*means.served.regions);
        let cut = self.cut(start, FRAME_BYTES, means.imports, regions, bytes);
        if cut.bytes == 0 {
            // Cannot be: keys stay, and there are bytes left.
            self.outcome = Err(Fault::Copy);
            return Ok(None);
        }
        let mut lent = true;
        match (self.direction, cut.device) {
            (Direction::Write, Some(device)) => {
                let copies = &mut *means.served.copies;
                let mut job = copies.job(Work::ToHost);
                self.spans(start, cut.bytes, regions, &mut job.spans);
                let ticket = Ticket {
                    peer: means.served.peer,
                    what: Copying::PutOut { frame: id },
                };
                if let Err((_, job)) = copies.begin(device, ticket, job) {
                    copies.keep(job);
                    self.outcome = Err(Fault::Copy);
                    return Ok(None);
                }
            }
            _ => {
                let header = self.header(id, &cut, bytes, means.epoch);
                let sent = means.out.staged(header, &mut |room| {
                    let (front, mut back) = room.split_at_mut(bytes.len());
                    front.copy_from_slice(bytes);
                    let mut walk = start;
                    while !back.is_empty() {
                        let Some(span) = self.next(&mut walk, back.len() as u32) else {
                            break;
                        };
                        let (target, rest) = back.split_at_mut(span.bytes as usize);
                        let place = span.local as usize..span.local as usize + target.len();
                        let region = regions.get(span.region as usize);
                        match region.and_then(Region::host_bytes) {
                            Some(all) if place.end <= all.len() => {
                                target.copy_from_slice(&all[place]);
                            }
                            _ => lent = false,
                        }
                        back = rest;
                    }
                })?;
                if !sent {
                    return Ok(None);
                }
            }
        }
        if !lent {
            // The caller lends another region than when it posted.
            self.outcome = Err(Fault::Copy);
        }
        self.walk = cut.end;
        self.left -= u64::from(cut.bytes);
        self.frames += 1;
        Ok(Some(Frame {
            id,
            operation: self.number,
            walk: start,
            bytes: cut.bytes,
        }))
    }
}

/// A frame that was answered, and what it is of.
fn answered<'a>(
    frames: &mut VecDeque<Frame>,
    operations: &'a mut VecDeque<Operation>,
    id: u64,
) -> Result<(&'a mut Operation, Frame), Closed> {
    let at = frames.iter().position(|frame| frame.id == id);
    let frame = at.and_then(|at| frames.remove(at));
    let frame = frame.ok_or_else(|| unasked(id))?;
    let operation = operations
        .iter_mut()
        .find(|one| one.number == frame.operation);
    let operation = operation.ok_or_else(|| unasked(id))?;
    operation.frames -= 1;
    Ok((operation, frame))
}

fn unasked(id: u64) -> Closed {
    Closed::Protocol(wrong("answer", id, "to what was asked"))
}
