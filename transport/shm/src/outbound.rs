//! What is sent to one peer: a control ring, and a staging ring for what is too long for it.
//!
//! Every frame has its place in the control ring, which gives the order of all. A frame with payload is announced there
//! and lies in the staging ring; it is published there first.

use moai_transport::sync::Corrupt;
use moai_transport::sync::doorbell::Wake;
use moai_transport::sync::ring::Producer;
use moai_transport::wire::{HEADER_BYTES, Header, WireError};
use moai_transport::{Batch, Closed};

use crate::segment::MAX_INLINE_BYTES;

/// The writing side of a connection's rings.
#[derive(Debug)]
pub(crate) struct Outbound {
    control: Producer,
    staging: Producer,
    /// Bytes of frames since the connection was made.
    pub(crate) bytes: u64,
    /// The peer sleeps and has to be woken.
    wake: bool,
}

/// Kind of a frame in a control ring that is a message.
pub(crate) const INLINE: u32 = 1;

/// Kind of a frame in a control ring that is a header, of something in the staging ring if it has payload.
pub(crate) const HEADER: u32 = 2;

/// Room that is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) control: u32,
    pub(crate) staging: u32,
}

impl Room {
    /// What a message takes.
    pub(crate) fn of_message(bytes: usize) -> Self {
        if bytes <= MAX_INLINE_BYTES {
            Self {
                control: bytes as u32,
                staging: 0,
            }
        } else {
            Self::of_payload(bytes as u32)
        }
    }

    /// What a frame with payload takes.
    pub(crate) fn of_payload(staging: u32) -> Self {
        Self {
            control: HEADER_BYTES as u32,
            staging,
        }
    }

    /// Enough for either.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            control: self.control.max(other.control),
            staging: self.staging.max(other.staging),
        }
    }
}

impl Outbound {
    pub(crate) fn new(control: Producer, staging: Producer) -> Self {
        Self {
            control,
            staging,
            bytes: 0,
            wake: false,
        }
    }

    /// The largest payload that ever has room.
    pub(crate) fn longest(&self) -> u32 {
        self.staging.longest_frame()
    }

    /// Sends a message; false if there is no room.
    #[inline]
    pub(crate) fn message(&mut self, message: &[u8]) -> Result<bool, Closed> {
        if message.len() > MAX_INLINE_BYTES {
            let bytes = message.len() as u32;
            return self.staged(Header::Message { bytes }, &mut |room| {
                room.copy_from_slice(message);
            });
        }
        let reserved = self.control.reserve(message.len() as u32);
        let Some(mut draft) = reserved.map_err(corrupt)? else {
            return Ok(false);
        };
        draft.copy_from_slice(message);
        draft.commit(INLINE, 0);
        self.bytes += message.len() as u64;
        self.publish();
        Ok(true)
    }

    /// Sends a header without payload; false if there is no room.
    pub(crate) fn header(&mut self, header: Header) -> Result<bool, Closed> {
        let reserved = self.control.reserve(HEADER_BYTES as u32);
        let Some(mut draft) = reserved.map_err(corrupt)? else {
            return Ok(false);
        };
        draft.copy_from_slice(&header.encode());
        draft.commit(HEADER, 0);
        self.publish();
        Ok(true)
    }

    /// Sends a header with its list and payload, which `fill` writes; false if there is no room, and then `fill` was
    /// not called.
    pub(crate) fn staged(
        &mut self,
        header: Header,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<bool, Closed> {
        let bytes = header.list_bytes() + header.payload_bytes();
        let reserved = self.control.reserve(HEADER_BYTES as u32);
        let Some(mut front) = reserved.map_err(corrupt)? else {
            return Ok(false);
        };
        let Some(mut payload) = self.staging.reserve(bytes).map_err(corrupt)? else {
            return Ok(false);
        };
        fill(&mut payload);
        payload.commit(0, 0);
        // Nobody sleeps for the staging ring: what is in it is announced in the other.
        let _ = self.staging.publish();
        front.copy_from_slice(&header.encode());
        front.commit(HEADER, 0);
        self.bytes += u64::from(bytes);
        self.publish();
        Ok(true)
    }

    #[inline]
    fn publish(&mut self) {
        self.wake |= self.control.publish() == Wake::Needed;
    }

    /// Whether the peer has to be woken; asked once.
    #[inline]
    pub(crate) fn take_wake(&mut self) -> bool {
        std::mem::take(&mut self.wake)
    }

    /// Whether there is room.
    pub(crate) fn has(&mut self, room: Room) -> Result<bool, Closed> {
        let control = self.control.reserve(room.control).map_err(corrupt)?;
        if control.is_none() {
            return Ok(false);
        }
        let staging = self.staging.reserve(room.staging).map_err(corrupt)?;
        Ok(staging.is_some())
    }

    /// Announces that this side sleeps until there is room; false if there is.
    pub(crate) fn park(&mut self, room: Room) -> Result<bool, Closed> {
        if self.control.park(room.control).map_err(corrupt)? {
            return Ok(true);
        }
        if self.staging.park(room.staging).map_err(corrupt)? {
            return Ok(true);
        }
        Ok(false)
    }

    /// Is awake.
    pub(crate) fn unpark(&mut self) {
        self.control.unpark();
        self.staging.unpark();
    }
}

/// A batch's room.
pub(crate) fn room_of(batch: Batch) -> Room {
    Room::of_payload(batch.bytes)
}

/// The end of a connection whose peer has written nonsense into the rings.
pub(crate) fn corrupt(corrupt: Corrupt) -> Closed {
    Closed::Protocol(WireError::Field {
        field: corrupt.field,
        what: "frame in shared memory",
        seen: corrupt.seen,
        expected: "what was agreed on before",
    })
}
