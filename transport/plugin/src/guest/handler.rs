//! The host's handler, as one of this image.

use std::ffi::CString;

use moai_memory::Region;
use moai_transport::{Batch, Closed, Handler, Landing, PeerId, Piece, Reject};

use super::lent::Lent;
use crate::{abi, errors, text};

pub(super) struct HostHandler<'a> {
    pub(super) raw: abi::Handler,
    pub(super) lent: &'a mut Lent,
    pub(super) pieces: &'a mut Vec<abi::Piece>,
}

pub(super) fn peer_number(peer: PeerId) -> abi::Peer {
    u64::from(peer.generation()) << 32 | u64::from(peer.index())
}

fn raw_batch(batch: Batch) -> abi::Batch {
    abi::Batch {
        id: batch.id,
        bytes: batch.bytes,
        reserved: 0,
    }
}

const ABSENT: &str = "checked when it was given";

/// Longest reason that is heard, in bytes.
const ROOM: usize = 512;

/// Asks, and reads the reason of a refusal.
fn answered(call: impl FnOnce(*mut abi::Text) -> abi::Status) -> Result<(), Reject> {
    let mut room = [0_u8; ROOM];
    let mut reason = abi::Text {
        data: room.as_mut_ptr().cast(),
        capacity: ROOM as u64,
        length: 0,
    };
    if call(&raw mut reason) == abi::OK {
        return Ok(());
    }
    let length = reason.length.min(ROOM as u64) as usize;
    let reason = String::from_utf8_lossy(&room[..length]);
    Err(Reject(reason.into_owned()))
}

impl HostHandler<'_> {
    pub(super) fn is_whole(raw: &abi::Handler) -> bool {
        raw.connected.is_some()
            && raw.message.is_some()
            && raw.landing.is_some()
            && raw.pieces.is_some()
            && raw.regions.is_some()
            && raw.landed.is_some()
            && raw.writable.is_some()
            && raw.closed.is_some()
    }
}

impl Handler for HostHandler<'_> {
    fn connected(&mut self, peer: PeerId, incoming: bool) {
        let connected = self.raw.connected.expect(ABSENT);
        // SAFETY: by the rules of the header, within a poll.
        unsafe { connected(self.raw.context, peer_number(peer), u32::from(incoming)) };
    }

    fn message(&mut self, peer: PeerId, bytes: &[u8]) -> Result<(), Reject> {
        let message = self.raw.message.expect(ABSENT);
        let (context, number, len) = (self.raw.context, peer_number(peer), bytes.len() as u64);
        answered(|reason| {
            // SAFETY: by the rules of the header, within a poll.
            unsafe { message(context, number, bytes.as_ptr(), len, reason) }
        })
    }

    fn landing(&mut self, peer: PeerId, batch: Batch) -> Result<Landing, Reject> {
        let landing = self.raw.landing.expect(ABSENT);
        let (context, number) = (self.raw.context, peer_number(peer));
        let (batch, mut direct) = (raw_batch(batch), 0);
        answered(|reason| {
            // SAFETY: by the rules of the header, within a poll.
            unsafe { landing(context, number, &raw const batch, &raw mut direct, reason) }
        })?;
        Ok(if direct == 0 {
            Landing::Staged
        } else {
            Landing::Direct
        })
    }

    fn pieces(
        &mut self,
        peer: PeerId,
        batch: Batch,
        from: u32,
        most: usize,
        out: &mut Vec<Piece>,
    ) -> Result<(), Reject> {
        let pieces = self.raw.pieces.expect(ABSENT);
        let (context, number) = (self.raw.context, peer_number(peer));
        let (batch, mut count) = (raw_batch(batch), 0);
        self.pieces.clear();
        self.pieces.resize(most, abi::Piece::default());
        let room = self.pieces.as_mut_ptr();
        answered(|reason| {
            // SAFETY: by the rules of the header, within a poll, with room for so many.
            unsafe {
                pieces(
                    context,
                    number,
                    &raw const batch,
                    from,
                    room,
                    most as u64,
                    &raw mut count,
                    reason,
                )
            }
        })?;
        // Whoever asks sees that there are too many; which they are makes no difference.
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(most + 1);
        let first = self.pieces.first().copied().unwrap_or_default();
        self.pieces.resize(count, first);
        out.extend(self.pieces.iter().map(|piece| Piece {
            region: piece.region,
            offset: piece.offset,
            bytes: piece.bytes,
        }));
        Ok(())
    }

    fn regions(&mut self) -> &mut [Region] {
        let regions = self.raw.regions.expect(ABSENT);
        // SAFETY: by the rules of the header, within a poll.
        let raw = unsafe { regions(self.raw.context) };
        // SAFETY: what the host lends, until the handler's owner asks again or its call ends.
        let lent = unsafe { self.lent.look(raw) };
        lent.unwrap_or_else(|reason| {
            tracing::warn!(reason, "the host lends no regions");
            &mut []
        })
    }

    fn landed(&mut self, peer: PeerId, batch: Batch, staged: Option<&[u8]>) -> Result<(), Reject> {
        let landed = self.raw.landed.expect(ABSENT);
        let (context, number, batch) = (self.raw.context, peer_number(peer), raw_batch(batch));
        let staged = staged.map_or(std::ptr::null(), <[u8]>::as_ptr);
        answered(|reason| {
            // SAFETY: by the rules of the header, within a poll.
            unsafe { landed(context, number, &raw const batch, staged, reason) }
        })
    }

    fn writable(&mut self, peer: PeerId) {
        let writable = self.raw.writable.expect(ABSENT);
        // SAFETY: by the rules of the header, within a poll.
        unsafe { writable(self.raw.context, peer_number(peer)) };
    }

    fn closed(&mut self, peer: PeerId, why: Closed) {
        let closed = self.raw.closed.expect(ABSENT);
        let (reason, detail, text) = errors::closed_numbers(&why);
        let text: CString = text::c_string(&text);
        let why = abi::Closed {
            size: size_of::<abi::Closed>() as u32,
            reason,
            detail,
            text: text.as_ptr(),
        };
        // SAFETY: by the rules of the header, within a poll.
        unsafe { closed(self.raw.context, peer_number(peer), &raw const why) };
    }
}
