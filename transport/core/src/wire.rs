//! The header that precedes every frame, and the lists of pieces in frames.
//!
//! A header has 32 bytes, little-endian, the same on every machine:
//!
//! | offset | bytes | field | value |
//! |---|---|---|---|
//! | 0 | 4 | magic | `MoAI` |
//! | 4 | 2 | version | 2 |
//! | 6 | 1 | kind | see below |
//! | 7 | 1 | status | of a `done`: 0, or the number of a [`Refusal`]; else 0 |
//! | 8 | 4 | length | payload bytes, within the kind's limit |
//! | 12 | 4 | list | bytes of the list of pieces between header and payload |
//! | 16 | 8 | id | the sender's name for a batch or operation, which the answer repeats |
//! | 24 | 8 | epoch | of the registrations that the list names |
//!
//! | kind | | length | list | id | epoch |
//! |---|---|---|---|---|---|
//! | 1 | message | yes | | | |
//! | 2 | batch | yes | | yes | |
//! | 3 | put: the payload goes to the pieces; a `done` answers | yes | yes | yes | yes |
//! | 4 | get: no payload follows; `data`, or a `done` that refuses, answers | of the answer | yes | yes | yes |
//! | 5 | data: the pieces that a get has asked for | yes | | yes | |
//! | 6 | done | | | yes | |
//! | 7 | join: this connection is one more lane of the peer named `id` | number of the lane | | yes | epoch of the peer joined |
//!
//! A list is a sequence of groups: slot, generation, length of each piece, number of pieces (4 bytes each), then
//! so many offsets (8 bytes each). Its pieces are together as long as the header's length.
//!
//! What a kind has no use for must be zero, so that a later version can give it a meaning and be refused by
//! this one.

use thiserror::Error;

use crate::limits::{
    MAX_BATCH_BYTES, MAX_LANES, MAX_LIST_BYTES, MAX_LIST_GROUPS, MAX_MESSAGE_BYTES,
};
use crate::{Batch, PieceList, Refusal, Run};

/// Length of a header.
pub const HEADER_BYTES: usize = 32;

/// First bytes of every header.
pub const MAGIC: [u8; 4] = *b"MoAI";

/// Version of the framing. A peer with another one is refused.
pub const VERSION: u16 = 2;

/// Length of the fields in front of a group's offsets.
pub const GROUP_BYTES: usize = 16;

/// Length of an offset.
pub const OFFSET_BYTES: usize = 8;

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
    /// A list of pieces and their bytes follow.
    Put(Access),
    /// A list of pieces follows, whose bytes are wanted.
    Get(Access),
    /// The bytes that a get has asked for follow.
    Data(Batch),
    /// A put has been placed, or an operation was refused.
    Done {
        /// Name of the operation's frame.
        id: u64,
        /// Why it was refused, if it was.
        refusal: Option<Refusal>,
    },
    /// The connection is one more lane.
    Join(Lane),
}

/// A frame of a put or get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)] // The fields of the wire format.
pub struct Access {
    /// The sender's name for the frame.
    pub id: u64,
    /// Bytes of all pieces.
    pub bytes: u32,
    /// Bytes of the list.
    pub list_bytes: u32,
    /// Epoch of the registrations.
    pub epoch: u64,
}

/// Which lane of which peer a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)] // The fields of the wire format.
pub struct Lane {
    /// The name that the peer has drawn for itself.
    pub peer: u64,
    /// Its number; the first lane is 0.
    pub lane: u32,
    /// Epoch of the interface that is joined; 0 where it is not known yet.
    pub epoch: u64,
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
    #[error("kind is {seen}, expected 1 to {last}")]
    Kind {
        /// Kind that came.
        seen: u8,
        /// The last of those that there are.
        last: u8,
    },
    /// A field has a value that it cannot have in a frame of this kind.
    #[error("{field} of a {what} is {seen:#x}, expected {expected}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// Kind of frame.
        what: &'static str,
        /// Its value.
        seen: u64,
        /// What it can be.
        expected: &'static str,
    },
    /// More payload than the kind may have.
    #[error("length of a {what} is {seen} bytes, expected at most {limit}")]
    Length {
        /// Kind of frame, or `"list of pieces"`.
        what: &'static str,
        /// Announced bytes.
        seen: u32,
        /// The most that is accepted.
        limit: u32,
    },
    /// A list that does not end with its last group, or whose pieces are not what the header says.
    #[error("{what} of a list of pieces: {seen}, expected {expected}")]
    List {
        /// What is wrong with it.
        what: &'static str,
        /// Its value.
        seen: u64,
        /// What it must be.
        expected: u64,
    },
}

impl Header {
    /// Payload bytes that follow the header and its list.
    #[must_use]
    pub const fn payload_bytes(self) -> u32 {
        match self {
            Self::Message { bytes }
            | Self::Batch(Batch { bytes, .. })
            | Self::Data(Batch { bytes, .. })
            | Self::Put(Access { bytes, .. }) => bytes,
            Self::Get(_) | Self::Done { .. } | Self::Join(_) => 0,
        }
    }

    /// Bytes of the list that follows the header.
    #[must_use]
    pub const fn list_bytes(self) -> u32 {
        match self {
            Self::Put(access) | Self::Get(access) => access.list_bytes,
            _ => 0,
        }
    }

    /// The header's bytes. The caller has checked the lengths against their limits; a header over them is
    /// encoded all the same, and refused by whoever decodes it.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let refused = |refusal: Option<Refusal>| refusal.map_or(0, Refusal::code);
        let (kind, status, length, list, id, epoch) = match self {
            Self::Message { bytes } => (1, 0, bytes, 0, 0, 0),
            Self::Batch(batch) => (2, 0, batch.bytes, 0, batch.id, 0),
            Self::Put(at) => (3, 0, at.bytes, at.list_bytes, at.id, at.epoch),
            Self::Get(at) => (4, 0, at.bytes, at.list_bytes, at.id, at.epoch),
            Self::Data(batch) => (5, 0, batch.bytes, 0, batch.id, 0),
            Self::Done { id, refusal } => (6, refused(refusal), 0, 0, id, 0),
            Self::Join(lane) => (7, 0, lane.lane, 0, lane.peer, lane.epoch),
        };
        let mut header = [0; HEADER_BYTES];
        header[0..4].copy_from_slice(&MAGIC);
        header[4..6].copy_from_slice(&VERSION.to_le_bytes());
        header[6] = kind;
        header[7] = status;
        header[8..12].copy_from_slice(&length.to_le_bytes());
        header[12..16].copy_from_slice(&list.to_le_bytes());
        header[16..24].copy_from_slice(&id.to_le_bytes());
        header[24..32].copy_from_slice(&epoch.to_le_bytes());
        header
    }

    /// Reads a header that a peer sent.
    ///
    /// # Errors
    ///
    /// A [`WireError`] that names a field that is wrong.
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
        let [kind, status] = field(bytes, 6);
        let length = u32::from_le_bytes(field(bytes, 8));
        let list_bytes = u32::from_le_bytes(field(bytes, 12));
        let id = u64::from_le_bytes(field(bytes, 16));
        let epoch = u64::from_le_bytes(field(bytes, 24));
        let (what, limit) = *kind
            .checked_sub(1)
            .and_then(|at| KINDS.get(usize::from(at)))
            .ok_or(WireError::Kind {
                seen: kind,
                last: KINDS.len() as u8,
            })?;
        if length > limit {
            return Err(WireError::Length {
                what,
                seen: length,
                limit,
            });
        }
        let header = match kind {
            1 => Self::Message { bytes: length },
            2 => Self::Batch(Batch { id, bytes: length }),
            3 | 4 => {
                if list_bytes > MAX_LIST_BYTES {
                    return Err(WireError::Length {
                        what: "list of pieces",
                        seen: list_bytes,
                        limit: MAX_LIST_BYTES,
                    });
                }
                let access = Access {
                    id,
                    bytes: length,
                    list_bytes,
                    epoch,
                };
                if kind == 3 {
                    Self::Put(access)
                } else {
                    Self::Get(access)
                }
            }
            5 => Self::Data(Batch { id, bytes: length }),
            6 => {
                let refusal = Refusal::from_code(status);
                if status != 0 && refusal.is_none() {
                    return Err(WireError::Field {
                        field: "status",
                        what,
                        seen: status.into(),
                        expected: "0 or the number of a refusal",
                    });
                }
                Self::Done { id, refusal }
            }
            _ => Self::Join(Lane {
                peer: id,
                lane: length,
                epoch,
            }),
        };
        // Whatever was not taken must be zero: then encoding gives the same bytes.
        let same = header.encode();
        for (name, start, end) in FIELDS {
            if same[start..end] != bytes[start..end] {
                let mut seen = [0; 8];
                seen[..end - start].copy_from_slice(&bytes[start..end]);
                return Err(WireError::Field {
                    field: name,
                    what,
                    seen: u64::from_le_bytes(seen),
                    expected: "0",
                });
            }
        }
        Ok(header)
    }
}

/// Name of each kind, and the largest length its header may have.
const KINDS: [(&str, u32); 7] = [
    ("message", MAX_MESSAGE_BYTES),
    ("batch", MAX_BATCH_BYTES),
    ("put", MAX_BATCH_BYTES),
    ("get", MAX_BATCH_BYTES),
    ("data", MAX_BATCH_BYTES),
    ("done", 0),
    ("join", MAX_LANES - 1),
];

/// Fields that some kinds have no use for: name, start and end.
const FIELDS: [(&str, usize, usize); 4] = [
    ("status", 7, 8),
    ("list", 12, 16),
    ("id", 16, 24),
    ("epoch", 24, 32),
];

/// Writes the list of one frame, piece by piece.
///
/// Pieces of the same registration and length that follow each other share a group.
#[derive(Debug)]
pub struct ListWriter<'a> {
    out: &'a mut Vec<u8>,
    most: usize,
    /// Start of the group being written, and its registration and length of pieces.
    group: Option<(usize, [u32; 3])>,
    groups: usize,
}

impl<'a> ListWriter<'a> {
    /// Appends a list to `out`, of at most [`MAX_LIST_BYTES`].
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self {
            most: out.len() + MAX_LIST_BYTES as usize,
            out,
            group: None,
            groups: 0,
        }
    }

    /// Whether another piece fits, whatever it is.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.groups < MAX_LIST_GROUPS && self.out.len() + GROUP_BYTES + OFFSET_BYTES <= self.most
    }

    /// Appends a piece of a registration: `run.region` is its slot. There is room.
    #[inline]
    pub fn push(&mut self, run: Run, generation: u32) {
        let key = [run.region, generation, run.bytes];
        match self.group {
            Some((_, of)) if of == key => {}
            _ => {
                self.end_group();
                self.group = Some((self.out.len(), key));
                self.groups += 1;
                for value in key {
                    self.out.extend_from_slice(&value.to_le_bytes());
                }
                self.out.extend_from_slice(&[0; 4]);
            }
        }
        self.out.extend_from_slice(&run.offset.to_le_bytes());
    }

    /// Ends the list.
    pub fn finish(mut self) {
        self.end_group();
    }

    fn end_group(&mut self) {
        if let Some((start, _)) = self.group {
            let count = (self.out.len() - start - GROUP_BYTES) / OFFSET_BYTES;
            self.out[start + 12..start + 16].copy_from_slice(&(count as u32).to_le_bytes());
        }
    }
}

/// Reads the list of a frame into `list`, which is cleared before. Its pieces are together `total` bytes long.
///
/// Whether they lie in memory that the peer may touch is for the owner's
/// [`Registrations`](crate::Registrations) to say.
///
/// # Errors
///
/// [`WireError::List`]; nothing is allocated beyond what arrived.
pub fn decode_list(mut bytes: &[u8], total: u32, list: &mut PieceList) -> Result<(), WireError> {
    list.clear();
    let wrong = |what, seen, expected| {
        Err(WireError::List {
            what,
            seen,
            expected,
        })
    };
    let mut groups = 0;
    let mut sum = 0_u64;
    while !bytes.is_empty() {
        let Some((fields, rest)) = bytes.split_first_chunk::<GROUP_BYTES>() else {
            return wrong(
                "bytes left for a group",
                bytes.len() as u64,
                GROUP_BYTES as u64,
            );
        };
        let at = |from| u32::from_le_bytes(field(fields, from));
        let [slot, generation, piece, count] = [at(0), at(4), at(8), at(12)];
        let offset_bytes = u64::from(count) * OFFSET_BYTES as u64;
        if count == 0 || piece == 0 || offset_bytes > rest.len() as u64 {
            return wrong(
                "bytes left for offsets",
                rest.len() as u64,
                offset_bytes.max(8),
            );
        }
        groups += 1;
        if groups > MAX_LIST_GROUPS {
            return wrong("groups", groups as u64, MAX_LIST_GROUPS as u64);
        }
        let (offsets, rest) = rest.split_at(offset_bytes as usize);
        sum += u64::from(piece) * u64::from(count);
        let (offsets, _) = offsets.as_chunks::<OFFSET_BYTES>();
        let offsets = offsets.iter().map(|offset| u64::from_le_bytes(*offset));
        list.append([slot, generation, piece], offsets);
        bytes = rest;
    }
    if sum != u64::from(total) {
        return wrong("bytes of all pieces", sum, total.into());
    }
    Ok(())
}

/// The `N` bytes at `offset`, which the caller knows to lie in the header.
fn field<const N: usize>(header: &[u8], offset: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&header[offset..offset + N]);
    field
}

/// The fields of the table, end to end.
const _: () = assert!(HEADER_BYTES == 4 + 2 + 1 + 1 + 4 + 4 + 8 + 8);

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
        let kind = random(state) as usize % KINDS.len();
        let (id, bytes) = (
            random(state),
            (random(state) % (u64::from(KINDS[kind].1) + 1)) as u32,
        );
        let access = Access {
            id,
            bytes,
            list_bytes: random(state) as u32 % (MAX_LIST_BYTES + 1),
            epoch: random(state),
        };
        match kind {
            0 => Header::Message { bytes },
            1 => Header::Batch(Batch { id, bytes }),
            2 => Header::Put(access),
            3 => Header::Get(access),
            4 => Header::Data(Batch { id, bytes }),
            5 => Header::Done {
                id,
                refusal: Refusal::from_code((random(state) % 8) as u8),
            },
            _ => Header::Join(Lane {
                peer: id,
                lane: bytes,
                epoch: random(state),
            }),
        }
    }

    #[test]
    fn a_header_has_exactly_these_bytes() {
        let access = Access {
            id: 0x0102_0304_0506_0708,
            bytes: 0x0020_0301,
            list_bytes: 0x0a0b,
            epoch: 0x1112_1314_1516_1718,
        };
        assert_eq!(
            Header::Put(access).encode(),
            *b"MoAI\x02\x00\x03\x00\x01\x03\x20\x00\x0b\x0a\x00\x00\x08\x07\x06\x05\x04\x03\x02\x01\x18\x17\x16\x15\x14\x13\x12\x11"
        );
        let done = Header::Done {
            id: 7,
            refusal: Some(Refusal::Bounds),
        };
        assert_eq!(done.encode()[..8], *b"MoAI\x02\x00\x06\x03");
        assert_eq!(done.encode()[16], 7);
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
            bytes[6] %= 9;
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
            (4, 3, "version is 3, expected 2"),
            (6, 8, "kind is 8, expected 1 to 7"),
            (7, 1, "status of a batch is 0x1, expected 0"),
            (
                11,
                1,
                "length of a batch is 16777217 bytes, expected at most 4194304",
            ),
            (13, 1, "list of a batch is 0x100, expected 0"),
            (6, 1, "id of a message is 0x9, expected 0"),
            (31, 1, "epoch of a batch is 0x100000000000000, expected 0"),
        ];
        for (at, value, text) in expected {
            assert_eq!(decode(at, value), Err(text.to_owned()));
        }
        let mut done = Header::Done {
            id: 1,
            refusal: None,
        }
        .encode();
        done[7] = 99;
        assert_eq!(
            Header::decode(&done).unwrap_err().to_string(),
            "status of a done is 0x63, expected 0 or the number of a refusal"
        );
    }

    fn random_list(state: &mut u64) -> (Vec<u8>, Vec<(Run, u32)>, u32) {
        let mut bytes = Vec::new();
        let mut list = ListWriter::new(&mut bytes);
        let mut runs = Vec::new();
        let mut total = 0;
        for _ in 0..random(state) % 50 {
            let run = Run {
                region: random(state) as u32 % 3,
                offset: random(state),
                bytes: 1 + random(state) as u32 % 3,
            };
            let generation = 1 + random(state) as u32 % 2;
            assert!(list.has_room());
            list.push(run, generation);
            runs.push((run, generation));
            total += run.bytes;
        }
        list.finish();
        (bytes, runs, total)
    }

    #[test]
    fn a_list_is_read_as_it_was_written() {
        let mut state = 4;
        let mut list = PieceList::default();
        for _ in 0..500 {
            let (bytes, runs, total) = random_list(&mut state);
            decode_list(&bytes, total, &mut list).unwrap();
            let mut read = Vec::new();
            for (pieces, generation) in list.lists() {
                for &offset in pieces.offsets {
                    let run = Run {
                        region: pieces.region,
                        offset,
                        bytes: pieces.bytes,
                    };
                    read.push((run, generation));
                }
            }
            assert_eq!(read, runs);
            assert!(decode_list(&bytes, total + 1, &mut list).is_err());
        }
    }

    #[test]
    fn a_list_that_is_cut_or_damaged_is_refused_or_another_list() {
        let mut state = 5;
        let mut list = PieceList::default();
        for _ in 0..50 {
            let (bytes, _, total) = random_list(&mut state);
            for cut in 0..bytes.len() {
                assert!(decode_list(&bytes[..cut], total, &mut list).is_err());
            }
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    let mut bad = bytes.clone();
                    bad[at] ^= 1 << bit;
                    let _ = decode_list(&bad, total, &mut list);
                }
            }
        }
        let absurd = [
            [1, 1, 1, u32::MAX].map(u32::to_le_bytes).concat(),
            vec![0; 64],
        ]
        .concat();
        let error = decode_list(&absurd, 8, &mut list).unwrap_err().to_string();
        assert!(error.contains("expected 34359738360"), "{error}");
    }

    #[test]
    fn a_list_is_bounded_in_bytes_and_groups() {
        for different in [false, true] {
            let mut bytes = Vec::new();
            let mut list = ListWriter::new(&mut bytes);
            let mut n = 0;
            while list.has_room() {
                n += 1;
                let region = if different { n % 2 } else { 0 };
                let run = Run {
                    region,
                    offset: 0,
                    bytes: 1,
                };
                list.push(run, 1);
            }
            list.finish();
            assert!(bytes.len() <= MAX_LIST_BYTES as usize);
            assert_eq!(n, if different { 256 } else { 8188 });
            decode_list(&bytes, n, &mut PieceList::default()).unwrap();
        }
    }
}
