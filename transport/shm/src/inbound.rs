//! What comes from one peer.

use moai_memory::Region;
use moai_transport::sync::doorbell::Wake;
use moai_transport::sync::ring::Consumer;
use moai_transport::wire::{HEADER_BYTES, Header};
use moai_transport::{
    Batch, Closed, Handler, Landing, PeerId, Piece, Registrations, Reject, Stats, admit_pieces,
    limits,
};

use crate::answers::Served;
use crate::copying::Copies;
use crate::greeting::wrong;
use crate::outbound::{HEADER, INLINE, corrupt};
use crate::segment::MAX_INLINE_BYTES;
use crate::staged::Staged;

/// The reading side of a connection's rings.
#[derive(Debug)]
pub(crate) struct Inbound {
    control: Consumer,
    staging: Consumer,
}

/// What a turn is given.
pub(crate) struct Context<'a> {
    pub(crate) handler: &'a mut dyn Handler,
    pub(crate) stats: &'a mut Stats,
    pub(crate) registrations: &'a Registrations,
    pub(crate) copies: &'a mut Copies,
    pub(crate) pieces: &'a mut Vec<Piece>,
    pub(crate) callbacks: u64,
}

impl Context<'_> {
    /// From where the peer's puts and gets are served.
    pub(crate) fn served(&mut self, peer: PeerId) -> Served<'_> {
        Served {
            peer,
            registrations: self.registrations,
            regions: self.handler.regions(),
            copies: &mut *self.copies,
            stats: &mut *self.stats,
        }
    }
}

impl Inbound {
    pub(crate) fn new(control: Consumer, staging: Consumer) -> Self {
        Self { control, staging }
    }

    /// Hands over what has come, at most [`limits::READ_TURN_BYTES`] and what goes over with the last frame. Returns
    /// how many frames there were.
    pub(crate) fn read(
        &mut self,
        peer: PeerId,
        staged: &mut Staged,
        context: &mut Context<'_>,
    ) -> Result<usize, Closed> {
        let (mut frames, mut bytes) = (0, 0);
        while bytes < limits::READ_TURN_BYTES {
            let Some(frame) = self.control.peek().map_err(corrupt)? else {
                break;
            };
            frames += 1;
            match frame.kind {
                INLINE if frame.bytes.len() <= MAX_INLINE_BYTES => {
                    bytes += FRAME_COST + frame.bytes.len();
                    message(peer, frame.bytes, context)?;
                }
                HEADER => {
                    let header: &[u8; HEADER_BYTES] = frame.bytes.try_into().map_err(|_| {
                        let seen = frame.bytes.len() as u64;
                        Closed::Protocol(wrong("header's length", seen, "32"))
                    })?;
                    let header = Header::decode(header).map_err(Closed::Protocol)?;
                    let payload = header.list_bytes() + header.payload_bytes();
                    bytes += FRAME_COST + payload as usize;
                    self.header(peer, header, staged, context)?;
                }
                kind => {
                    let expected = "a message of up to 4 KiB, or a header";
                    return Err(Closed::Protocol(wrong("frame", kind.into(), expected)));
                }
            }
            self.control.release();
        }
        Ok(frames)
    }

    /// Gives back what was read; whether the peer waits for the room.
    pub(crate) fn publish(&mut self) -> Wake {
        let control = self.control.publish();
        match self.staging.publish() {
            Wake::Needed => Wake::Needed,
            Wake::No => control,
        }
    }

    /// Announces that this side sleeps until something comes; false if something has.
    pub(crate) fn park(&mut self) -> Result<bool, Closed> {
        self.control.park().map_err(corrupt)
    }

    /// Is awake.
    pub(crate) fn unpark(&mut self) {
        self.control.unpark();
    }

    fn header(
        &mut self,
        peer: PeerId,
        header: Header,
        staged: &mut Staged,
        context: &mut Context<'_>,
    ) -> Result<(), Closed> {
        match header {
            Header::Done { id, refusal } => return staged.done(id, refusal),
            Header::Join(lane) => {
                return Err(Closed::Protocol(wrong("lane", lane.lane.into(), "none")));
            }
            _ => {}
        }
        let expected = header.list_bytes() as usize + header.payload_bytes() as usize;
        let frame = self.staging.peek().map_err(corrupt)?;
        let payload = frame.map(|frame| frame.bytes);
        let Some(payload) = payload.filter(|payload| payload.len() == expected) else {
            let seen = payload.map_or(0, |payload| payload.len() as u64);
            return Err(Closed::Protocol(wrong(
                "payload's length",
                seen,
                "what its header says",
            )));
        };
        match header {
            Header::Message { .. } => message(peer, payload, context)?,
            Header::Batch(batch) => land(peer, batch, payload, context)?,
            Header::Put(access) => {
                let served = &mut context.served(peer);
                staged.answers.put(access, payload, served)?;
            }
            Header::Get(access) => staged.answers.get(access, payload)?,
            Header::Data(batch) => {
                let regions = context.handler.regions();
                staged.data(batch, payload, peer, regions, context.copies)?;
            }
            Header::Done { .. } | Header::Join(_) => {}
        }
        self.staging.release();
        Ok(())
    }
}

/// What a frame counts for in a turn, beside its bytes: a turn of empty messages is some 8000 of them.
const FRAME_COST: usize = 128;

fn message(peer: PeerId, bytes: &[u8], context: &mut Context<'_>) -> Result<(), Closed> {
    context.callbacks += 1;
    context.stats.messages_in += 1;
    context.stats.bytes_in += bytes.len() as u64;
    context.handler.message(peer, bytes).map_err(rejected)
}

/// Gives a batch to its pieces, or to the handler where it lies.
fn land(
    peer: PeerId,
    batch: Batch,
    payload: &[u8],
    context: &mut Context<'_>,
) -> Result<(), Closed> {
    let Context {
        handler,
        stats,
        pieces,
        callbacks,
        ..
    } = context;
    *callbacks += 1;
    stats.bytes_in += payload.len() as u64;
    match handler.landing(peer, batch).map_err(rejected)? {
        Landing::Staged => {
            stats.staged_bytes += u64::from(batch.bytes);
            handler
                .landed(peer, batch, Some(payload))
                .map_err(rejected)?;
        }
        Landing::Direct => {
            let mut from = 0;
            while from < batch.bytes {
                pieces.clear();
                let most = limits::MAX_PIECES;
                handler
                    .pieces(peer, batch, from, most, pieces)
                    .map_err(rejected)?;
                let regions = handler.regions();
                let covered = admit_pieces(pieces, most, batch.bytes - from, regions)
                    .map_err(Closed::Misplaced)?;
                for piece in pieces.iter() {
                    let (start, end) = (from as usize, (from + piece.bytes) as usize);
                    let region = &mut regions[piece.region as usize];
                    scatter(region, *piece, &payload[start..end])?;
                    from += piece.bytes;
                    stats.direct_pieces += 1;
                }
                stats.direct_bytes += u64::from(covered);
            }
            handler.landed(peer, batch, None).map_err(rejected)?;
        }
    }
    stats.batches_in += 1;
    Ok(())
}

fn scatter(region: &mut Region, piece: Piece, payload: &[u8]) -> Result<(), Closed> {
    let kind = region.kind();
    let Some(bytes) = region.host_bytes_mut() else {
        return Err(Closed::Rejected(format!(
            "payload cannot land in region {} of {kind} memory, which this process cannot store to; let it land staged",
            piece.region
        )));
    };
    // In bounds: the piece was admitted.
    let start = piece.offset as usize;
    bytes[start..start + payload.len()].copy_from_slice(payload);
    Ok(())
}

fn rejected(reject: Reject) -> Closed {
    Closed::Rejected(reject.0)
}
