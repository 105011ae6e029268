//! Puts and gets that are copied by this side alone.
//!
//! Whatever the route, the rules are one: the gate of the registration is passed before a slice of the operation, so
//! that its owner can take the memory back and wait for whoever is inside; what the table allows counts, not what the
//! key says; and a slice is short, so that nobody waits long.
#![allow(unsafe_code)] // Addresses are handed to the system.

use moai_memory::{CopySpan, PAST_CACHES_BYTES, Region, copy_spans};
use moai_transport::sync::gate::{Entrant, Refused};
use moai_transport::{Fault, Pieces, Refusal, RemoteKey, Rights};

use crate::foreign::{self, Direction, Foreign, Process};
use crate::imports::Imports;
use crate::segment::Door;
use crate::socket::Socket;
use crate::spans::{Span, Walk};
use crate::table::PeerTable;

/// What it takes to enter a peer's memory.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) entrant: Entrant,
    pub(crate) table: PeerTable,
}

/// An operation's two sides and what it does. The lists were checked against the regions and keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job<'a> {
    pub(crate) local: &'a [Pieces<'a>],
    pub(crate) remote: &'a [Pieces<'a>],
    pub(crate) direction: Direction,
}

/// Spans that are copied together: many times those within which lines are asked for ahead, and few enough to be on the
/// stack.
const AHEAD: usize = 512;

/// Bytes that are copied before the gate is passed anew: at 5 GB/s, 1 ms.
const MAX_SLICE_BYTES: u64 = 4 << 20;

impl Job<'_> {
    fn rights(&self) -> Rights {
        match self.direction {
            Direction::Read => Rights::READ,
            Direction::Write => Rights::WRITE,
        }
    }

    /// Copies all of it, in order. Every remote file was prepared; what is not mapped is of the peer's process.
    pub(crate) fn run(
        &self,
        way: &mut Way<'_>,
        imports: &mut Imports,
        memory: &mut [Region],
    ) -> Result<(), Fault> {
        let mut walk = Walk::default();
        let totals = self.local.iter().map_while(|pieces| pieces.total().ok());
        let past_caches = totals.sum::<u64>() > PAST_CACHES_BYTES;
        while let Some(of) = walk.remote(self.remote) {
            if imports.bytes(of).is_some() {
                self.map(of, &mut walk, way, imports, memory, past_caches)?;
            } else {
                self.call(of, &mut walk, way, imports, memory)?;
            }
        }
        Ok(())
    }

    /// Copies a slice between regions here and mapped memory.
    fn map(
        &self,
        of: u32,
        walk: &mut Walk,
        way: &mut Way<'_>,
        imports: &mut Imports,
        memory: &mut [Region],
        past_caches: bool,
    ) -> Result<(), Fault> {
        let mut spans = [Span::default(); AHEAD];
        let (mut count, mut bytes, mut end) = (0, 0, 0);
        while count < AHEAD && bytes < MAX_SLICE_BYTES {
            let Some(span) = walk.next(of, self.local, self.remote, u32::MAX) else {
                break;
            };
            bytes += u64::from(span.bytes);
            end = end.max(span.remote + u64::from(span.bytes));
            spans[count] = span;
            count += 1;
        }
        let key = imports.get(of).map_err(|_| LOST_KEY)?;
        let entered = way.access.entrant.enter(key.slot, key.generation.into());
        let _pass = entered.map_err(refused)?;
        admit(way.door, &way.access.table, key, end, self.rights())?;
        let spans = &spans[..count];
        match self.direction {
            Direction::Write => {
                let target = imports.bytes_mut(of).ok_or(NOT_MAPPED)?;
                put(spans, memory, target, past_caches);
            }
            Direction::Read => {
                let source = imports.bytes(of).ok_or(NOT_MAPPED)?;
                get(spans, memory, source, past_caches);
            }
        }
        Ok(())
    }

    /// Copies a slice between regions here and memory of the peer's process.
    fn call(
        &self,
        of: u32,
        walk: &mut Walk,
        way: &mut Way<'_>,
        imports: &Imports,
        memory: &mut [Region],
    ) -> Result<(), Fault> {
        let Some(process) = way.process else {
            return Err(NOT_MAPPED);
        };
        let key = imports.get(of).map_err(|_| LOST_KEY)?;
        let foreign = &mut *way.foreign;
        foreign.clear();
        let (mut bytes, mut end) = (0, 0);
        while !foreign.is_full() && bytes < foreign::MAX_BYTES {
            let Some(span) = walk.next(of, self.local, self.remote, u32::MAX) else {
                break;
            };
            bytes += u64::from(span.bytes);
            end = end.max(span.remote + u64::from(span.bytes));
            let region = &mut memory[span.region as usize];
            let local = match self.direction {
                Direction::Write => local(region, &span).as_ptr(),
                Direction::Read => local_mut(region, &span).as_mut_ptr().cast_const(),
            };
            foreign.push(local, key.address + span.remote, span.bytes);
        }
        let entered = way.access.entrant.enter(key.slot, key.generation.into());
        let _pass = entered.map_err(refused)?;
        admit(way.door, &way.access.table, key, end, self.rights())?;
        if way.socket.is_lost() {
            return Err(Fault::PeerLost);
        }
        // SAFETY: the local pieces are of `memory`, which is borrowed exclusively.
        unsafe { foreign.transfer(self.direction, process) }
    }
}

/// By what a job reaches the peer.
#[derive(Debug)]
pub(crate) struct Way<'a> {
    pub(crate) access: &'a mut Access,
    pub(crate) door: &'a Door,
    pub(crate) process: Option<Process>,
    pub(crate) socket: &'a Socket,
    pub(crate) foreign: &'a mut Foreign,
}

/// Cannot be: a key stays as long as its connection.
const LOST_KEY: Fault = Fault::Refused(Refusal::Generation);

/// The peer allows in its key what it forbids by the descriptor it has sent.
const NOT_MAPPED: Fault = Fault::Refused(Refusal::Rights);

fn refused(_: Refused) -> Fault {
    Fault::Refused(Refusal::Generation)
}

fn admit(
    door: &Door,
    table: &PeerTable,
    key: &RemoteKey,
    end: u64,
    rights: Rights,
) -> Result<(), Fault> {
    if door.is_shut() {
        return Err(Fault::PeerLost);
    }
    table.admit(key, end, rights).map_err(Fault::Refused)
}

#[inline]
fn local<'a>(region: &'a Region, span: &Span) -> &'a [u8] {
    &region.as_slice()[span.local as usize..span.local as usize + span.bytes as usize]
}

#[inline]
fn local_mut<'a>(region: &'a mut Region, span: &Span) -> &'a mut [u8] {
    &mut region.as_mut_slice()[span.local as usize..span.local as usize + span.bytes as usize]
}

fn put(spans: &[Span], memory: &[Region], target: &mut [u8], past_caches: bool) {
    by_region(spans, Direction::Write, |region, spans| {
        let source = memory[region as usize].as_slice();
        copy_spans(target, source, spans, past_caches);
    });
}

fn get(spans: &[Span], memory: &mut [Region], source: &[u8], past_caches: bool) {
    by_region(spans, Direction::Read, |region, spans| {
        let target = memory[region as usize].as_mut_slice();
        copy_spans(target, source, spans, past_caches);
    });
}

/// Hands on the spans, those of one local region that follow each other together.
fn by_region(spans: &[Span], direction: Direction, mut copy: impl FnMut(u32, &[CopySpan])) {
    let mut copies = [CopySpan::default(); AHEAD];
    for spans in spans.chunk_by(|a, b| a.region == b.region) {
        for (copy, span) in copies.iter_mut().zip(spans) {
            let (from, to) = match direction {
                Direction::Write => (span.local, span.remote),
                Direction::Read => (span.remote, span.local),
            };
            *copy = CopySpan {
                from,
                to,
                bytes: span.bytes,
            };
        }
        copy(spans[0].region, &copies[..spans.len()]);
    }
}
