//! Messages or batches, on their way to the handler.

use moai_transport::{
    Batch, Closed, Handler, PeerId, Piece, PieceError, Stats, admit_pieces, limits,
};

use super::{Context, Frame, Halt, Inbound, Step, collect, rejected};

impl Inbound {
    /// Hands over a message or batch, as far as it has arrived.
    pub(super) fn hand_over(
        &mut self,
        peer: PeerId,
        context: &mut Context<'_>,
    ) -> Result<Step, Halt> {
        let buffered = &context.buffer[self.start..self.end];
        match &mut self.frame {
            Frame::Message { bytes } => {
                let whole = *bytes as usize;
                let taken = buffered.len().min(whole - self.filled);
                let from_buffer = &buffered[..taken];
                let Some(message) =
                    collect(&mut self.collected, &mut self.filled, from_buffer, whole)
                else {
                    self.start += taken;
                    return Ok(Step::Wait);
                };
                context.stats.messages_in += 1;
                context.callbacks += 1;
                let handed = context.handler.message(peer, message);
                handed.map_err(rejected)?;
                self.start += taken;
                self.frame_done();
            }
            Frame::Staged { batch } => {
                let batch = *batch;
                let whole = batch.bytes as usize;
                let taken = buffered.len().min(whole - self.filled);
                let from_buffer = &buffered[..taken];
                let Some(payload) =
                    collect(&mut self.collected, &mut self.filled, from_buffer, whole)
                else {
                    self.start += taken;
                    return Ok(Step::Wait);
                };
                context.stats.batches_in += 1;
                context.stats.staged_bytes += u64::from(batch.bytes);
                context.callbacks += 1;
                let handed = context.handler.landed(peer, batch, Some(payload));
                handed.map_err(rejected)?;
                self.start += taken;
                self.frame_done();
            }
            Frame::Direct {
                batch,
                covered,
                received,
                next,
            } => {
                let batch = *batch;
                if *received == batch.bytes {
                    context.stats.batches_in += 1;
                    context.stats.direct_bytes += u64::from(batch.bytes);
                    context.callbacks += 1;
                    let handed = context.handler.landed(peer, batch, None);
                    handed.map_err(rejected)?;
                    self.frame_done();
                    return Ok(Step::On);
                }
                if buffered.is_empty() {
                    return Ok(Step::Wait);
                }
                if *next == self.pieces.len() {
                    let from = *covered;
                    *covered += ask(
                        &mut self.pieces,
                        peer,
                        batch,
                        from,
                        context.handler,
                        context.stats,
                    )?;
                    *next = 0;
                }
                let mut piece = self.pieces[*next];
                piece.bytes = piece.bytes.min(buffered.len() as u32);
                let place = piece.locate(context.handler.regions());
                let place = place.map_err(Closed::Misplaced)?;
                place.copy_from_slice(&buffered[..piece.bytes as usize]);
                context.stats.copied_bytes += u64::from(piece.bytes);
                *received += piece.bytes;
                *next += fill_pieces(&mut self.pieces[*next..], piece.bytes);
                self.start += piece.bytes as usize;
            }
            _ => return Ok(Step::Wait),
        }
        Ok(Step::On)
    }
}

/// Asks the handler for the places of the payload from `from` on. Returns the bytes that they cover.
pub(super) fn ask(
    pieces: &mut Vec<Piece>,
    peer: PeerId,
    batch: Batch,
    from: u32,
    handler: &mut dyn Handler,
    stats: &mut Stats,
) -> Result<u32, Closed> {
    pieces.clear();
    let most = limits::MAX_PIECES;
    let answer = handler.pieces(peer, batch, from, most, pieces);
    answer.map_err(rejected)?;
    let covered: Result<u32, PieceError> =
        admit_pieces(pieces, most, batch.bytes - from, handler.regions());
    stats.direct_pieces += pieces.len() as u64;
    covered.map_err(Closed::Misplaced)
}

/// Takes `bytes` off the front of `pieces`. Returns how many of them are full.
pub(super) fn fill_pieces(pieces: &mut [Piece], mut bytes: u32) -> usize {
    for (full, piece) in pieces.iter_mut().enumerate() {
        if bytes < piece.bytes {
            piece.offset += u64::from(bytes);
            piece.bytes -= bytes;
            return full;
        }
        bytes -= piece.bytes;
    }
    pieces.len()
}
