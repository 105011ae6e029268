//! Remote keys: the bytes that let a peer address memory.
//!
//! 64 bytes, little-endian, the same on every machine:
//!
//! | offset | bytes | field | value |
//! |---|---|---|---|
//! | 0 | 4 | magic | `MoKy` |
//! | 4 | 2 | version | 1 |
//! | 6 | 1 | rights | 1 read, 2 write, 4 map, summed |
//! | 7 | 1 | kind | of memory, [`MemoryKind::code`] |
//! | 8 | 8 | epoch | one life of the owner |
//! | 16 | 4 | slot | of the owner's table |
//! | 20 | 4 | generation | of that slot |
//! | 24 | 8 | length | bytes that can be addressed |
//! | 32 | 8 | address | of the first byte in the owner's process; 0 where the provider has no use for it |
//! | 40 | 8 | export | the provider's name for the memory's file; 0 without one |
//! | 48 | 8 | offset | of the first byte in that file |
//! | 56 | 8 | reserved | 0 |
//!
//! A key is a claim. The owner checks epoch, generation, bounds and rights against its own table at every
//! operation, whatever the key says, so a forged or stale key gets a [`Refusal`](crate::Refusal).

use moai_memory::MemoryKind;
use thiserror::Error;

/// Length of a key.
pub const KEY_BYTES: usize = 64;

const MAGIC: [u8; 4] = *b"MoKy";
const VERSION: u16 = 1;

/// What a peer may do with registered memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rights(u8);

impl Rights {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Get from it.
    pub const READ: Self = Self(1);
    /// Put into it.
    pub const WRITE: Self = Self(2);
    /// Load from it as from memory of its own.
    pub const MAP: Self = Self(4);

    /// These and those.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are among these.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// As a number: 1 read, 2 write, 4 map, summed.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Of such a number; `None` if it is more.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        if bits > 7 { None } else { Some(Self(bits)) }
    }
}

/// Registered memory of a peer, as the bytes it has sent describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)] // The fields of the wire format.
pub struct RemoteKey {
    /// What the owner allows.
    pub rights: Rights,
    /// Where the memory lives.
    pub kind: MemoryKind,
    /// One life of the owner.
    pub epoch: u64,
    /// Slot of the owner's table.
    pub slot: u32,
    /// Generation of the slot; not 0.
    pub generation: u32,
    /// Bytes that can be addressed.
    pub len: u64,
    /// Address of the first byte in the owner's process; 0 where the provider has no use for it.
    pub address: u64,
    /// The provider's name for the memory's file; 0 without one.
    pub export: u64,
    /// Offset of the first byte in that file.
    pub offset: u64,
}

/// Bytes that are no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Not as long as a key.
    #[error("a remote key of {bytes} bytes, expected {KEY_BYTES}")]
    Length {
        /// Bytes that came.
        bytes: usize,
    },
    /// A field has a value that it cannot have.
    #[error("{field} of a remote key is {seen:#x}, expected {expected}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        seen: u64,
        /// What it can be.
        expected: &'static str,
    },
}

impl RemoteKey {
    /// The key's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; KEY_BYTES] {
        let mut key = [0; KEY_BYTES];
        key[0..4].copy_from_slice(&MAGIC);
        key[4..6].copy_from_slice(&VERSION.to_le_bytes());
        key[6] = self.rights.0;
        key[7] = self.kind.code();
        key[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        key[16..20].copy_from_slice(&self.slot.to_le_bytes());
        key[20..24].copy_from_slice(&self.generation.to_le_bytes());
        for (at, value) in [
            (24, self.len),
            (32, self.address),
            (40, self.export),
            (48, self.offset),
        ] {
            key[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        key
    }

    /// Reads a key that a peer sent.
    ///
    /// # Errors
    ///
    /// A [`KeyError`] that names the first field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, KeyError> {
        let wrong = |field, seen, expected| {
            Err(KeyError::Field {
                field,
                seen,
                expected,
            })
        };
        let Some((key, [])) = bytes.split_first_chunk::<KEY_BYTES>() else {
            return Err(KeyError::Length { bytes: bytes.len() });
        };
        let u16_at = |at| u16::from_le_bytes([key[at], key[at + 1]]);
        let u32_at = |at| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if key[..4] != MAGIC {
            return wrong("magic", u32_at(0).into(), "MoKy");
        }
        if u16_at(4) != VERSION {
            return wrong("version", u16_at(4).into(), "1");
        }
        if key[6] > 7 {
            return wrong("rights", key[6].into(), "1 read, 2 write, 4 map, summed");
        }
        let Some(kind) = MemoryKind::from_code(key[7]) else {
            return wrong(
                "kind",
                key[7].into(),
                "a kind of memory that this build knows",
            );
        };
        if u32_at(20) == 0 {
            return wrong("generation", 0, "more than 0");
        }
        if u64_at(56) != 0 {
            return wrong("reserved", u64_at(56), "0");
        }
        let key = Self {
            rights: Rights(key[6]),
            kind,
            epoch: u64_at(8),
            slot: u32_at(16),
            generation: u32_at(20),
            len: u64_at(24),
            address: u64_at(32),
            export: u64_at(40),
            offset: u64_at(48),
        };
        for (field, start) in [("address", key.address), ("offset", key.offset)] {
            if start.checked_add(key.len).is_none() {
                return wrong(field, start, "with the length below 2^64");
            }
        }
        Ok(key)
    }
}

/// The fields of the table, end to end.
const _: () = assert!(KEY_BYTES == 4 + 2 + 1 + 1 + 8 + 4 + 4 + 8 * 5);

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> RemoteKey {
        RemoteKey {
            rights: Rights::READ.and(Rights::MAP),
            kind: MemoryKind::Host,
            epoch: 0x0102_0304_0506_0708,
            slot: 9,
            generation: 3,
            len: 4096,
            address: 0x7000_0000_0000,
            export: 2,
            offset: 8192,
        }
    }

    #[test]
    fn what_was_encoded_decodes_to_itself() {
        assert_eq!(RemoteKey::decode(&key().encode()), Ok(key()));
        assert_eq!(
            key().encode()[..24],
            *b"MoKy\x01\x00\x05\x01\x08\x07\x06\x05\x04\x03\x02\x01\x09\x00\x00\x00\x03\x00\x00\x00"
        );
    }

    #[test]
    fn whatever_is_cut_or_damaged_is_an_error_or_another_key() {
        let good = key().encode();
        for cut in 0..KEY_BYTES {
            assert_eq!(
                RemoteKey::decode(&good[..cut]),
                Err(KeyError::Length { bytes: cut })
            );
        }
        for at in 0..KEY_BYTES {
            for flip in 1..=u8::MAX {
                let mut bad = good;
                bad[at] ^= flip;
                match RemoteKey::decode(&bad) {
                    Ok(other) => assert!(other != key() && other.encode() == bad),
                    Err(error) => assert!(error.to_string().contains("expected"), "{error}"),
                }
            }
        }
    }
}
