//! Reads, to where the next bytes belong.

use std::io::{self, IoSliceMut};

use moai_transport::wire::Access;
use moai_transport::{Batch, Closed, PeerId, limits};

use super::two_sided::{ask, fill_pieces};
use super::{Context, Frame, Inbound};
use crate::stream::Source;
use crate::target::Placing;

impl Inbound {
    /// One read, to where the next bytes belong. Returns how many were asked for and what the system
    /// said.
    pub(super) fn fill(
        &mut self,
        socket: &mut impl Source,
        peer: PeerId,
        context: &mut Context<'_>,
    ) -> Result<(usize, io::Result<usize>), Closed> {
        let buffer = &mut *context.buffer;
        let payload_bytes = match &mut self.frame {
            Frame::Header => {
                buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
                let ahead = if self.ahead == 0 {
                    buffer.len()
                } else {
                    self.ahead
                };
                let to = (self.end + ahead).min(buffer.len());
                let room = &mut buffer[self.end..to];
                return Ok((room.len(), socket.read(room)));
            }
            Frame::Drop { .. } => return Ok((buffer.len(), socket.read(buffer))),
            Frame::Place(placing) => {
                let one_sided = &mut *context.one_sided;
                let regions = context.handler.regions();
                let covered = match placing.plan(one_sided, regions) {
                    Ok(covered) => covered,
                    Err(why) => {
                        self.drop_rest(why, context.one_sided);
                        return Ok((buffer.len(), socket.read(buffer)));
                    }
                };
                if covered == 0 {
                    self.ahead = limits::READ_BUFFER_BYTES;
                    return Ok((buffer.len(), socket.read(buffer)));
                }
                let ahead = if covered == placing.left {
                    self.ahead
                } else {
                    0
                };
                let asked = covered as usize + ahead;
                let tail = &mut buffer[..ahead];
                let read = socket
                    .read_scattered(regions, &one_sided.places, tail)
                    .map_err(Closed::Misplaced)?;
                self.direct = covered;
                context.stats.direct_pieces += one_sided.places.len() as u64;
                return Ok((asked, read));
            }
            Frame::List { access, .. } => access.list_bytes as usize,
            Frame::Direct {
                batch,
                covered,
                received,
                next,
            } => {
                if *next == self.pieces.len() {
                    let from = *covered;
                    *covered += ask(
                        &mut self.pieces,
                        peer,
                        *batch,
                        from,
                        context.handler,
                        context.stats,
                    )?;
                    *next = 0;
                }
                // Bytes past the payload only once every byte before them has a place.
                let ahead = if *covered == batch.bytes {
                    self.ahead
                } else {
                    0
                };
                let asked = (*covered - *received) as usize + ahead;
                let regions = context.handler.regions();
                let read = socket
                    .read_scattered(regions, &self.pieces[*next..], &mut buffer[..ahead])
                    .map_err(Closed::Misplaced)?;
                return Ok((asked, read));
            }
            Frame::Message { bytes } => *bytes as usize,
            Frame::Staged { batch } => batch.bytes as usize,
            Frame::Copy(placing) => placing.left as usize,
        };
        if self.filled == self.collected.len() {
            // Grown as bytes arrive, at most doubling: an announced length alone costs one step.
            let step = self.filled.max(limits::READ_BUFFER_BYTES);
            self.collected
                .resize((self.filled + step).min(payload_bytes), 0);
        }
        let to = self.collected.len().min(payload_bytes);
        let ahead = if to == payload_bytes { self.ahead } else { 0 };
        let asked = to - self.filled + ahead;
        let read = socket.read_vectored(&mut [
            IoSliceMut::new(&mut self.collected[self.filled..to]),
            IoSliceMut::new(&mut buffer[..ahead]),
        ]);
        Ok((asked, read))
    }

    /// Accounts for `bytes` that [`fill`](Self::fill) has read.
    pub(super) fn arrived(&mut self, bytes: usize, context: &mut Context<'_>) {
        let past = match &mut self.frame {
            Frame::Header => {
                self.end += bytes;
                return;
            }
            Frame::Drop { .. } => bytes,
            Frame::Place(placing) => {
                let taken = bytes.min(std::mem::take(&mut self.direct) as usize);
                placing.placed(taken as u32, context.one_sided);
                bytes - taken
            }
            Frame::Direct {
                covered,
                received,
                next,
                ..
            } => {
                let taken = bytes.min((*covered - *received) as usize);
                *received += taken as u32;
                *next += fill_pieces(&mut self.pieces[*next..], taken as u32);
                bytes - taken
            }
            Frame::Message { bytes: whole }
            | Frame::List {
                access: Access {
                    list_bytes: whole, ..
                },
                ..
            }
            | Frame::Copy(Placing { left: whole, .. })
            | Frame::Staged {
                batch: Batch { bytes: whole, .. },
            } => {
                let room = self.collected.len().min(*whole as usize) - self.filled;
                let taken = bytes.min(room);
                self.filled += taken;
                bytes - taken
            }
        };
        self.start = 0;
        self.end = past;
    }
}
