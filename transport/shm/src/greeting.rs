//! What both sides say first, over the socket: 40 bytes, little-endian, and descriptors.
//!
//! | offset | bytes | field | value |
//! |---|---|---|---|
//! | 0 | 8 | magic | `MoAI shm` |
//! | 8 | 4 | version | 2 |
//! | 12 | 4 | staging bytes | of the rings of payload, from the side that connects; 0 from the other |
//! | 16 | 8 | epoch | one life of the sender; not 0 |
//! | 24 | 8 | cookie | address at which the sender's memory holds its epoch |
//! | 32 | 8 | reserved | 0 |
//!
//! The side that connects adds the descriptors of the segment and of its table of registrations; the other answers with
//! that of its table.

use moai_transport::limits::MAX_STAGING_RING_BYTES;
use moai_transport::wire::WireError;

use crate::config::MIN_STAGING_BYTES;

/// One side's greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Greeting {
    /// Of the rings of payload; 0 in an answer.
    pub(crate) staging_bytes: u32,
    pub(crate) epoch: u64,
    /// Where the epoch lies in the sender's memory.
    pub(crate) cookie: u64,
}

pub(crate) const GREETING_BYTES: usize = 40;

const MAGIC: [u8; 8] = *b"MoAI shm";
const VERSION: u32 = 2;

impl Greeting {
    pub(crate) fn encode(&self) -> [u8; GREETING_BYTES] {
        let mut bytes = [0; GREETING_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.staging_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.cookie.to_le_bytes());
        bytes
    }

    /// Reads what a peer sent; `is_answer` if it did not connect.
    pub(crate) fn decode(bytes: &[u8], is_answer: bool) -> Result<Self, WireError> {
        let Some((bytes, [])) = bytes.split_first_chunk::<GREETING_BYTES>() else {
            return Err(wrong("length", bytes.len() as u64, "40"));
        };
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let (version, staging_bytes) = (word(8) as u32, (word(8) >> 32) as u32);
        if bytes[..8] != MAGIC {
            return Err(wrong("magic", word(0), "MoAI shm"));
        }
        if version != VERSION {
            return Err(wrong("version", version.into(), "2"));
        }
        let range = MIN_STAGING_BYTES..=MAX_STAGING_RING_BYTES;
        let fits = if is_answer {
            staging_bytes == 0
        } else {
            range.contains(&staging_bytes) && staging_bytes.is_power_of_two()
        };
        if !fits {
            let expected = "a power of two from 4 MiB to 1 GiB, or 0 in an answer";
            return Err(wrong("staging bytes", staging_bytes.into(), expected));
        }
        if word(16) == 0 {
            return Err(wrong("epoch", 0, "not 0"));
        }
        if word(32) != 0 {
            return Err(wrong("reserved", word(32), "0"));
        }
        Ok(Self {
            staging_bytes,
            epoch: word(16),
            cookie: word(24),
        })
    }
}

/// A field of a greeting that cannot be.
pub(crate) fn wrong(field: &'static str, seen: u64, expected: &'static str) -> WireError {
    WireError::Field {
        field,
        what: "greeting",
        seen,
        expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_cut_or_damaged_is_refused_or_another_greeting() {
        let greeting = Greeting {
            staging_bytes: 8 << 20,
            epoch: 7,
            cookie: 0x7fff_0000_1234,
        };
        let good = greeting.encode();
        assert_eq!(Greeting::decode(&good, false), Ok(greeting));
        assert!(Greeting::decode(&good, true).is_err());
        for cut in 0..GREETING_BYTES {
            assert!(Greeting::decode(&good[..cut], false).is_err());
        }
        for at in 0..GREETING_BYTES {
            for flip in 1..=u8::MAX {
                let mut bad = good;
                bad[at] ^= flip;
                match Greeting::decode(&bad, false) {
                    Ok(other) => assert_eq!(other.encode(), bad),
                    Err(error) => assert!(error.to_string().contains("of a greeting"), "{error}"),
                }
            }
        }
    }
}
