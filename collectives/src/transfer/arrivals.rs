//! What a driver does with what arrives.

use std::{sync::Arc, time::Instant};

use moai_memory::Region;
use moai_transport::{Batch, Closed, Handler, Landing, PeerId, Piece, Reject};

use super::{
    LEAST_RUN_BYTES,
    core::Core,
    device::Placed,
    pulling::{Part, Pulling, pool},
    serving::parse_batch,
};
use crate::protocol::node::{LinkId, LinkState, PartState, TransferId};

/// Chunks of one part that are read straight into their pages at the same time, at most: one for each connection that
/// its payload can be spread over. Further ones are collected first.
const MAX_DIRECT: usize = moai_transport::limits::MAX_LANES as usize;

/// Why payload is refused that comes before its link is ready.
const EARLY: &str = "payload on a link that is not ready";

/// What happens on an interface, for a driver.
pub(super) struct Arrivals<'a> {
    core: &'a mut Core,
    memory: &'a mut [Region],
    /// Connections that were made meanwhile: who is there can only be asked afterwards.
    fresh: Vec<Fresh>,
    /// Whether anything happened.
    any: bool,
}

/// A connection that has just been made, and what has come by it.
#[derive(Debug)]
pub(super) struct Fresh {
    pub(super) peer: PeerId,
    /// Whom it was made to, if by this side.
    pub(super) dialled: Option<(Arc<str>, u32)>,
    pub(super) messages: Vec<Vec<u8>>,
    pub(super) closed: Option<String>,
}

/// A chunk of a part that is received.
#[derive(Clone, Copy)]
struct At {
    transfer: TransferId,
    part: u32,
    chunk: u64,
}

impl<'a> Arrivals<'a> {
    pub(super) fn new(core: &'a mut Core, memory: &'a mut [Region]) -> Self {
        Self {
            core,
            memory,
            fresh: Vec::new(),
            any: false,
        }
    }

    /// Whether anything happened, and connections that were made.
    pub(super) fn end(self) -> (bool, Vec<Fresh>) {
        (self.any, self.fresh)
    }

    fn link(&mut self, peer: PeerId) -> Result<LinkId, Reject> {
        self.any = true;
        { self.core.links.link(peer) }.ok_or_else(|| Reject("this is no link".into()))
    }

    /// The link that payload comes by. Before both sides have agreed nothing was pulled, whether the greeting has begun or its
    /// connection was made a moment ago.
    fn payload_link(&mut self, peer: PeerId) -> Result<LinkId, Reject> {
        use LinkState::{Lost, Ready};
        self.any = true;
        let link = self.core.links.link(peer);
        let state = link.and_then(|link| self.core.node.link_state(link));
        link.filter(|_| matches!(state, Some(Ready | Lost)))
            .ok_or_else(|| Reject(EARLY.into()))
    }

    /// The part that a batch is of; `None` if its transfer is over.
    fn at(&self, link: LinkId, batch: Batch) -> Result<Option<At>, Reject> {
        let (stream, chunk) = parse_batch(batch.id);
        match self.core.streams.get(&(link, stream)) {
            Some(&(transfer, part)) => Ok(Some(At {
                transfer,
                part,
                chunk,
            })),
            None if self.core.is_over(stream) => Ok(None),
            None => Err(Reject(format!(
                "batch {:x} of {} bytes, which nothing was pulled for",
                batch.id, batch.bytes
            ))),
        }
    }

    fn part(&mut self, at: At) -> Option<&mut Part> {
        let pulling = self.core.pullings.get_mut(&at.transfer)?;
        pulling.parts.get_mut(at.part as usize)
    }

    /// Rows that were collected go to their pages.
    fn scatter(&mut self, at: At, rows: &[u8]) {
        let Core {
            pullings,
            node,
            memory: place,
            clock,
            ..
        } = &mut *self.core;
        let Some(pulling) = pullings.get_mut(&at.transfer) else {
            return;
        };
        let index = at.chunk as usize;
        let part = &mut pulling.parts[at.part as usize];
        let rank = place.rank(part.runner.pair().target);
        pulling.report.bytes_wire += rows.len() as u64;
        if part.device.is_some() {
            let digest = part.runner.digest(index, rows, &pulling.key);
            let mut settled = Vec::new();
            let placed = part.place(index, rows, digest, &mut settled);
            for placed in settled {
                self.core.settle(at.transfer, at.part, placed);
            }
            if let Err(why) = placed {
                self.core.device_failed(at.transfer, &why);
            }
            return;
        }
        let pool = pool(self.memory, &rank);
        let (counts, digest) = part
            .runner
            .scatter_digested(index, rows, pool, &pulling.key);
        pulling.report.saturated += counts.saturated;
        pulling.report.nan += counts.nan;
        pulling.placed(at.part as usize, index);
        let now = clock.now();
        node.landed(at.transfer, at.part, at.chunk, digest, now);
    }

    /// A chunk was read straight into its pages.
    fn landed_direct(&mut self, at: At, bytes: u32) -> Result<(), Reject> {
        let Core {
            pullings,
            node,
            memory: place,
            clock,
            ..
        } = &mut *self.core;
        let Some(pulling) = pullings.get_mut(&at.transfer) else {
            return Ok(());
        };
        let index = at.chunk as usize;
        let part = &mut pulling.parts[at.part as usize];
        let rank = place.rank(part.runner.pair().target);
        let pool = pool(self.memory, &rank);
        let digest = { part.runner.digest_placed(index, pool, &pulling.key) }
            .ok_or_else(|| Reject("rows that are converted cannot be read into place".into()))?;
        pulling.report.bytes_wire += u64::from(bytes);
        pulling.report.chunks_direct += 1;
        pulling.placed(at.part as usize, index);
        let now = clock.now();
        node.landed(at.transfer, at.part, at.chunk, digest, now);
        Ok(())
    }
}

impl Handler for Arrivals<'_> {
    fn connected(&mut self, peer: PeerId, incoming: bool) {
        self.any = true;
        let dialled = self.core.dialling.remove(&peer);
        self.fresh.push(Fresh {
            peer,
            dialled: dialled.filter(|_| !incoming),
            messages: Vec::new(),
            closed: None,
        });
    }

    fn message(&mut self, peer: PeerId, bytes: &[u8]) -> Result<(), Reject> {
        if let Some(fresh) = self.fresh.iter_mut().find(|fresh| fresh.peer == peer) {
            fresh.messages.push(bytes.to_vec());
            return Ok(());
        }
        let link = self.link(peer)?;
        let now = self.core.clock.now();
        self.core.node.message(link, bytes, now);
        Ok(())
    }

    fn landing(&mut self, peer: PeerId, batch: Batch) -> Result<Landing, Reject> {
        let link = self.payload_link(peer)?;
        self.core.node.heard(link, self.core.clock.now());
        // What is not wanted any more is collected and dropped: the link goes on.
        let Some(at) = self.at(link, batch)? else {
            return Ok(Landing::Staged);
        };
        let At {
            transfer,
            part,
            chunk,
        } = at;
        if self.core.node.part_state(transfer, part) == Some(PartState::Mapped) {
            return Err(Reject(format!(
                "chunk {chunk} of pages that are to be mapped"
            )));
        }
        if !self.core.node.landing(transfer, part, chunk, batch.bytes) {
            return Ok(Landing::Staged);
        }
        let Some(part) = self.part(at) else {
            return Ok(Landing::Staged);
        };
        if part.device.is_none() && part.landings.len() < MAX_DIRECT {
            let mut runs = part.spare.pop().unwrap_or_default();
            if part.runner.runs(chunk as usize, LEAST_RUN_BYTES, &mut runs) {
                part.landings.push((chunk, runs));
                return Ok(Landing::Direct);
            }
            part.spare.push(runs);
        }
        part.staged.push(chunk);
        Ok(Landing::Staged)
    }

    fn pieces(
        &mut self,
        peer: PeerId,
        batch: Batch,
        from: u32,
        most: usize,
        out: &mut Vec<Piece>,
    ) -> Result<(), Reject> {
        let link = self.link(peer)?;
        let over = || Reject("a chunk that is not received".into());
        let at = self.at(link, batch)?.ok_or_else(over)?;
        let ranks = &self.core.memory;
        let pulling: Option<&Pulling> = self.core.pullings.get(&at.transfer);
        let part = pulling.and_then(|pulling| pulling.parts.get(at.part as usize));
        let part = part.ok_or_else(over)?;
        let base = ranks.rank(part.runner.pair().target).start as u32;
        let runs = part.runs(at.chunk);
        let from = u64::from(from);
        let first = runs.partition_point(|&(at, _, bytes)| at + bytes <= from);
        for &(at, place, bytes) in runs[first..].iter().take(most) {
            let skip = from.saturating_sub(at);
            out.push(Piece {
                region: base + place.region as u32,
                offset: place.byte + skip,
                bytes: (bytes - skip) as u32,
            });
        }
        Ok(())
    }

    fn regions(&mut self) -> &mut [Region] {
        self.memory
    }

    fn landed(&mut self, peer: PeerId, batch: Batch, staged: Option<&[u8]>) -> Result<(), Reject> {
        let link = self.link(peer)?;
        let Some(at) = self.at(link, batch)? else {
            return Ok(());
        };
        let Some(part) = self.part(at) else {
            return Ok(());
        };
        match staged {
            Some(rows) => {
                if part.end_staged(at.chunk) && !part.is_fenced {
                    self.scatter(at, rows);
                }
                Ok(())
            }
            None => {
                part.end_landing(at.chunk);
                if part.is_fenced {
                    return Ok(());
                }
                self.landed_direct(at, batch.bytes)
            }
        }
    }

    fn writable(&mut self, _peer: PeerId) {
        self.any = true;
    }

    fn closed(&mut self, peer: PeerId, why: Closed) {
        self.any = true;
        let is_at_fault = matches!(why, Closed::Rejected(_) | Closed::Protocol(_));
        let why = why.to_string();
        if let Some(fresh) = self.fresh.iter_mut().find(|fresh| fresh.peer == peer) {
            fresh.closed = Some(why);
            return;
        }
        if let Some((engine, node)) = self.core.dialling.remove(&peer) {
            let now = self.core.clock.now();
            return self.core.node.unreachable(&engine, node, &why, now);
        }
        if let Some(link) = self.core.links.remove(peer) {
            tracing::debug!(reason = %why, "connection closed");
            if is_at_fault {
                let now = self.core.clock.now();
                self.core.node.violated(link, &why, now);
            }
            self.core.link_gone(link, &why);
        }
    }
}

impl Core {
    /// A chunk was found in its pages on the device.
    pub(super) fn settle(&mut self, transfer: TransferId, part: u32, placed: Placed) {
        let Some(pulling) = self.pullings.get_mut(&transfer) else {
            return;
        };
        let Placed {
            index,
            digest,
            counts,
        } = placed;
        pulling.report.saturated += counts.saturated;
        pulling.report.nan += counts.nan;
        pulling.placed(part as usize, index);
        let now = self.clock.now();
        self.node.landed(transfer, part, index as u64, digest, now);
    }

    pub(super) fn device_failed(&mut self, transfer: TransferId, why: &str) {
        let why = format!("the device with the pages failed: {why}");
        self.node.fail(transfer, &why, self.clock.now());
    }
}

/// Nanoseconds since a driver was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(pub(super) Instant);

impl Clock {
    pub(super) fn now(self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}
