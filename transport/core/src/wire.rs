//! The header that precedes every message and every batch.
//!
//! 24 bytes, little-endian, the same on every machine:
//!
//! | offset | bytes | field | value |
//! |---|---|---|---|
//! | 0 | 4 | magic | `MoAI` |
//! | 4 | 2 | version | 1 |
//! | 6 | 1 | kind | 1 message, 2 batch |
//! | 7 | 1 | reserved | 0 |
//! | 8 | 4 | length | payload bytes that follow, within the kind's limit |
//! | 12 | 4 | reserved | 0 |
//! | 16 | 8 | id | the sender's name for a batch; 0 for a message |
//!
//! Reserved bytes must be zero, so that a later version can give them a meaning and be refused by
//! this one.

use thiserror::Error;

use crate::Batch;
use crate::limits::{MAX_BATCH_BYTES, MAX_MESSAGE_BYTES};

/// Length of a header.
pub const HEADER_BYTES: usize = 24;

/// First bytes of every header.
pub const MAGIC: [u8; 4] = *b"MoAI";

/// Version of the framing. A peer with another one is refused.
pub const VERSION: u16 = 1;

const KIND_MESSAGE: u8 = 1;
const KIND_BATCH: u8 = 2;

/// What a header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums)] // A new kind of frame is a new version of the protocol.
pub enum Header {
    /// A message of so many bytes follows.
    Message {
        /// Length of the message.
        bytes: u32,
    },
    /// The payload of a batch follows.
    Batch(Batch),
}

/// A header that is not this protocol's, or announces more than is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WireError {
    /// Not our protocol at all.
    #[error("magic is {seen:02x?}, expected {expected:02x?}")]
    Magic {
        /// Bytes that came.
        seen: [u8; 4],
        /// Bytes of this protocol.
        expected: [u8; 4],
    },
    /// Another version of the framing.
    #[error("version is {seen}, expected {expected}")]
    Version {
        /// The peer's version.
        seen: u16,
        /// Ours.
        expected: u16,
    },
    /// A kind of frame that this version does not have.
    #[error("kind is {seen}, expected {message} (message) or {batch} (batch)")]
    Kind {
        /// Kind that came.
        seen: u8,
        /// Kind of a message.
        message: u8,
        /// Kind of a batch.
        batch: u8,
    },
    /// A byte without meaning in this version is set.
    #[error("reserved bytes at offset {offset} are {seen:#x}, expected 0")]
    Reserved {
        /// Offset of the field in the header.
        offset: usize,
        /// Its value.
        seen: u32,
    },
    /// More payload than the kind may have.
    #[error("length of a {what} is {seen} bytes, expected at most {limit}")]
    Length {
        /// `"message"` or `"batch"`.
        what: &'static str,
        /// Announced bytes.
        seen: u32,
        /// The most that is accepted.
        limit: u32,
    },
    /// A message with an id.
    #[error("id of a message is {seen:#x}, expected 0")]
    Id {
        /// The id that came.
        seen: u64,
    },
}

impl Header {
    /// Payload bytes that follow the header.
    #[must_use]
    pub const fn payload_bytes(self) -> u32 {
        match self {
            Self::Message { bytes } | Self::Batch(Batch { bytes, .. }) => bytes,
        }
    }

    /// The header's bytes. The caller has checked the length against its limit; a header over it is
    /// encoded all the same, and refused by whoever decodes it.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let (kind, Batch { id, bytes }) = match self {
            Self::Message { bytes } => (KIND_MESSAGE, Batch { id: 0, bytes }),
            Self::Batch(batch) => (KIND_BATCH, batch),
        };
        let mut header = [0; HEADER_BYTES];
        header[0..4].copy_from_slice(&MAGIC);
        header[4..6].copy_from_slice(&VERSION.to_le_bytes());
        header[6] = kind;
        header[8..12].copy_from_slice(&bytes.to_le_bytes());
        header[16..24].copy_from_slice(&id.to_le_bytes());
        header
    }

    /// Reads a header that a peer sent.
    ///
    /// # Errors
    ///
    /// A [`WireError`] that names the first field that is wrong, in the order of the table above.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let seen = field(bytes, 0);
        if seen != MAGIC {
            return Err(WireError::Magic {
                seen,
                expected: MAGIC,
            });
        }
        let seen = u16::from_le_bytes(field(bytes, 4));
        if seen != VERSION {
            return Err(WireError::Version {
                seen,
                expected: VERSION,
            });
        }
        let [kind, reserved] = field(bytes, 6);
        let (what, limit) = match kind {
            KIND_MESSAGE => ("message", MAX_MESSAGE_BYTES),
            KIND_BATCH => ("batch", MAX_BATCH_BYTES),
            seen => {
                return Err(WireError::Kind {
                    seen,
                    message: KIND_MESSAGE,
                    batch: KIND_BATCH,
                });
            }
        };
        if reserved != 0 {
            return Err(WireError::Reserved {
                offset: 7,
                seen: reserved.into(),
            });
        }
        let length = u32::from_le_bytes(field(bytes, 8));
        if length > limit {
            return Err(WireError::Length {
                what,
                seen: length,
                limit,
            });
        }
        let seen = u32::from_le_bytes(field(bytes, 12));
        if seen != 0 {
            return Err(WireError::Reserved { offset: 12, seen });
        }
        let id = u64::from_le_bytes(field(bytes, 16));
        match kind {
            KIND_BATCH => Ok(Self::Batch(Batch { id, bytes: length })),
            _ if id == 0 => Ok(Self::Message { bytes: length }),
            _ => Err(WireError::Id { seen: id }),
        }
    }
}

/// The `N` bytes at `offset`, which the caller knows to lie in the header.
fn field<const N: usize>(header: &[u8; HEADER_BYTES], offset: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&header[offset..offset + N]);
    field
}

/// The fields of the table, end to end.
const _: () = assert!(HEADER_BYTES == 4 + 2 + 1 + 1 + 4 + 4 + 8);

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64, enough to vary inputs.
    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn random_header(state: &mut u64) -> Header {
        let length = random(state) as u32;
        if random(state).is_multiple_of(2) {
            Header::Message {
                bytes: length % (MAX_MESSAGE_BYTES + 1),
            }
        } else {
            Header::Batch(Batch {
                id: random(state),
                bytes: length % (MAX_BATCH_BYTES + 1),
            })
        }
    }

    #[test]
    fn a_header_has_exactly_these_bytes() {
        let batch = Batch {
            id: 0x0102_0304_0506_0708,
            bytes: 0x0020_0301,
        };
        assert_eq!(
            Header::Batch(batch).encode(),
            *b"MoAI\x01\x00\x02\x00\x01\x03\x20\x00\x00\x00\x00\x00\x08\x07\x06\x05\x04\x03\x02\x01"
        );
        assert_eq!(
            Header::Message { bytes: 7 }.encode(),
            *b"MoAI\x01\x00\x01\x00\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
        );
    }

    #[test]
    fn what_was_encoded_decodes_to_itself() {
        let mut state = 1;
        for _ in 0..10_000 {
            let header = random_header(&mut state);
            assert_eq!(Header::decode(&header.encode()), Ok(header));
        }
    }

    #[test]
    fn a_corrupt_byte_is_refused_or_gives_another_header_that_is_valid() {
        let mut state = 2;
        for _ in 0..64 {
            let header = random_header(&mut state);
            let good = header.encode();
            for at in 0..HEADER_BYTES {
                for flip in 1..=u8::MAX {
                    let mut bad = good;
                    bad[at] ^= flip;
                    match Header::decode(&bad) {
                        // Nothing is dropped on the way in: other bytes are another header.
                        Ok(other) => assert!(other != header && other.encode() == bad),
                        Err(error) => assert!(error.to_string().contains("expected")),
                    }
                }
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic() {
        let mut state = 3;
        for _ in 0..100_000 {
            let mut bytes = [0; HEADER_BYTES];
            for chunk in bytes.chunks_mut(8) {
                chunk.copy_from_slice(&random(&mut state).to_le_bytes());
            }
            // Past the magic, so that the later fields are reached as well.
            bytes[..6].copy_from_slice(&Header::Message { bytes: 0 }.encode()[..6]);
            bytes[6] %= 4;
            if let Ok(header) = Header::decode(&bytes) {
                assert_eq!(header.encode(), bytes);
            }
        }
    }

    #[test]
    fn the_error_names_the_field_and_both_values() {
        let decode = |at: usize, value: u8| {
            let mut bytes = Header::Batch(Batch { id: 9, bytes: 1 }).encode();
            bytes[at] = value;
            Header::decode(&bytes).map_err(|error| error.to_string())
        };
        let expected = [
            (
                0,
                b'X',
                "magic is [58, 6f, 41, 49], expected [4d, 6f, 41, 49]",
            ),
            (4, 2, "version is 2, expected 1"),
            (6, 3, "kind is 3, expected 1 (message) or 2 (batch)"),
            (7, 1, "reserved bytes at offset 7 are 0x1, expected 0"),
            (
                11,
                1,
                "length of a batch is 16777217 bytes, expected at most 4194304",
            ),
            (13, 1, "reserved bytes at offset 12 are 0x100, expected 0"),
            (6, 1, "id of a message is 0x9, expected 0"),
        ];
        for (at, value, text) in expected {
            assert_eq!(decode(at, value), Err(text.to_owned()));
        }
    }
}
