//! Messages as bytes: one byte of kind, then fixed little-endian fields.

use moai_transport::key::KEY_BYTES;
use thiserror::Error;

/// Version of the protocol that this build speaks.
pub const VERSION: u16 = 2;

/// Keys of one message: half of the transport's longest, so that two fit the queue of messages that wait.
pub const MAX_KEYS: usize = 7000;

/// A region of the producer rank, and the bytes by which its memory can be addressed.
pub type LentKey = (u32, [u8; KEY_BYTES]);

/// Bytes of one [`LentKey`].
const LENT_KEY_BYTES: usize = 4 + KEY_BYTES;

const _: () = assert!(
    5 + MAX_KEYS * LENT_KEY_BYTES <= moai_transport::limits::MAX_MESSAGE_BYTES as usize / 2
);

/// Longest text in a message. Reasons are for people; more than this is no sentence.
const MAX_TEXT: usize = 1024;

/// Steps of a pair whose sums one message can carry: what fits the transport's longest message.
const MAX_SUMS: usize = 65_536;

/// What the two sides say to each other besides payload.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// Consumer: who I am, and what I believe we agreed on.
    Hello {
        /// Version of the protocol.
        version: u16,
        /// Consumer rank.
        rank: u32,
        /// Producer rank that is meant.
        to: u32,
        /// Digest of the agreement.
        agreement: [u8; 32],
    },
    /// Producer: we agree; this is what will come.
    Welcome {
        /// Chunks of the pair.
        chunks: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// Producer: we do not agree.
    Refuse {
        /// Why.
        why: String,
    },
    /// Consumer: send.
    Pull {
        /// Names the transfer in reports.
        transfer: u64,
        /// Key of the digest.
        key: u64,
        /// Whether it would rather map the pages than have them sent.
        map: bool,
    },
    /// Producer: by these keys my pages can be mapped.
    Keys {
        /// Keys that follow in further messages.
        left: u32,
        /// Some of them, [`MAX_KEYS`] at most.
        keys: Vec<LentKey>,
    },
    /// Either side: the pages cannot be mapped, send them.
    Unmapped {
        /// Why not.
        why: String,
    },
    /// Producer: all is sent, or was read where it lies; the digest of each step of the pair.
    Sums {
        /// Whether of pages that are mapped, over rows in the consumer's format; otherwise of rows on the wire.
        mapped: bool,
        /// In the order of the steps.
        sums: Vec<u64>,
    },
    /// Either side: how it ended here.
    Outcome {
        /// Whether it is committed.
        committed: bool,
        /// Why not.
        why: String,
    },
}

/// A message could not be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MessageError {
    /// The first byte names no message.
    #[error("kind {kind} names no message")]
    Kind {
        /// The byte.
        kind: u8,
    },
    /// Too short or too long for its kind.
    #[error("a {name} message of {bytes} bytes; expected {expected}")]
    Length {
        /// Kind of message.
        name: &'static str,
        /// Its bytes.
        bytes: usize,
        /// What it should have.
        expected: String,
    },
    /// A field is out of its range.
    #[error("{name}: {problem}")]
    Field {
        /// Kind of message.
        name: &'static str,
        /// What is wrong.
        problem: String,
    },
}

impl Message {
    /// The message as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Hello {
                version,
                rank,
                to,
                agreement,
            } => {
                out.push(1);
                out.extend(version.to_le_bytes());
                out.extend(rank.to_le_bytes());
                out.extend(to.to_le_bytes());
                out.extend(agreement);
            }
            Self::Welcome { chunks, bytes } => {
                out.push(2);
                out.extend(chunks.to_le_bytes());
                out.extend(bytes.to_le_bytes());
            }
            Self::Refuse { why } => {
                out.push(3);
                out.extend(text(why));
            }
            Self::Pull { transfer, key, map } => {
                out.push(4);
                out.extend(transfer.to_le_bytes());
                out.extend(key.to_le_bytes());
                out.push(u8::from(*map));
            }
            Self::Keys { left, keys } => {
                out.push(7);
                out.extend(left.to_le_bytes());
                for (region, key) in keys {
                    out.extend(region.to_le_bytes());
                    out.extend(key);
                }
            }
            Self::Unmapped { why } => {
                out.push(8);
                out.extend(text(why));
            }
            Self::Sums { mapped, sums } => {
                out.push(5);
                out.push(u8::from(*mapped));
                out.extend(sums.iter().flat_map(|sum| sum.to_le_bytes()));
            }
            Self::Outcome { committed, why } => {
                out.push(6);
                out.push(u8::from(*committed));
                out.extend(text(why));
            }
        }
        out
    }

    /// Reads a message.
    ///
    /// # Errors
    ///
    /// [`MessageError`]: whatever a peer sends, nothing is allocated beyond what arrived.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let Some((&kind, body)) = bytes.split_first() else {
            return Err(MessageError::Length {
                name: "message",
                bytes: 0,
                expected: "at least 1".into(),
            });
        };
        let mut fields = Fields {
            name: name(kind)?,
            whole: bytes.len(),
            rest: body,
        };
        let message = match kind {
            1 => Self::Hello {
                version: u16::from_le_bytes(fields.take()?),
                rank: u32::from_le_bytes(fields.take()?),
                to: u32::from_le_bytes(fields.take()?),
                agreement: fields.take()?,
            },
            2 => Self::Welcome {
                chunks: u64::from_le_bytes(fields.take()?),
                bytes: u64::from_le_bytes(fields.take()?),
            },
            3 => Self::Refuse {
                why: fields.text()?,
            },
            4 => Self::Pull {
                transfer: u64::from_le_bytes(fields.take()?),
                key: u64::from_le_bytes(fields.take()?),
                map: fields.flag("map")?,
            },
            5 => Self::Sums {
                mapped: fields.flag("mapped")?,
                sums: fields.sums()?,
            },
            6 => Self::Outcome {
                committed: fields.flag("committed")?,
                why: fields.text()?,
            },
            7 => Self::Keys {
                left: u32::from_le_bytes(fields.take()?),
                keys: fields.keys()?,
            },
            _ => Self::Unmapped {
                why: fields.text()?,
            },
        };
        fields.end()?;
        Ok(message)
    }
}

fn name(kind: u8) -> Result<&'static str, MessageError> {
    let names = [
        "hello", "welcome", "refuse", "pull", "sums", "outcome", "keys", "unmapped",
    ];
    let at = usize::from(kind).checked_sub(1);
    at.and_then(|i| names.get(i))
        .copied()
        .ok_or(MessageError::Kind { kind })
}

/// The bytes of a text, cut at the last character that fits.
fn text(why: &str) -> &[u8] {
    let mut end = why.len().min(MAX_TEXT);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    &why.as_bytes()[..end]
}

struct Fields<'a> {
    name: &'static str,
    whole: usize,
    rest: &'a [u8],
}

impl Fields<'_> {
    fn length(&self, expected: impl Into<String>) -> MessageError {
        MessageError::Length {
            name: self.name,
            bytes: self.whole,
            expected: expected.into(),
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        let short = self.length(format!("{} or more", self.whole - self.rest.len() + N));
        let (field, rest) = self.rest.split_first_chunk().ok_or(short)?;
        self.rest = rest;
        Ok(*field)
    }

    fn text(&mut self) -> Result<String, MessageError> {
        let rest = std::mem::take(&mut self.rest);
        if rest.len() > MAX_TEXT {
            return Err(self.length(format!("a text of {MAX_TEXT} at most")));
        }
        // What a peer says is shown to people: no control characters reach their terminal.
        let text = String::from_utf8_lossy(rest);
        Ok(text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect())
    }

    fn sums(&mut self) -> Result<Vec<u64>, MessageError> {
        let rest = std::mem::take(&mut self.rest);
        let (sums, odd) = rest.as_chunks::<8>();
        if !odd.is_empty() || sums.len() > MAX_SUMS {
            return Err(self.length(format!("2 and a multiple of 8, up to {MAX_SUMS} sums")));
        }
        Ok(sums.iter().map(|sum| u64::from_le_bytes(*sum)).collect())
    }

    fn keys(&mut self) -> Result<Vec<LentKey>, MessageError> {
        let rest = std::mem::take(&mut self.rest);
        let (keys, odd) = rest.as_chunks::<LENT_KEY_BYTES>();
        if !odd.is_empty() || keys.len() > MAX_KEYS {
            let expected = format!("5 and a multiple of {LENT_KEY_BYTES}, up to {MAX_KEYS} keys");
            return Err(self.length(expected));
        }
        let lent = |bytes: &[u8; LENT_KEY_BYTES]| {
            let mut region = [0; 4];
            let mut key = [0; KEY_BYTES];
            region.copy_from_slice(&bytes[..4]);
            key.copy_from_slice(&bytes[4..]);
            (u32::from_le_bytes(region), key)
        };
        Ok(keys.iter().map(lent).collect())
    }

    fn flag(&mut self, field: &str) -> Result<bool, MessageError> {
        match self.take()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(MessageError::Field {
                name: self.name,
                problem: format!("{field} is {other}; expected 0 or 1"),
            }),
        }
    }

    fn end(&self) -> Result<(), MessageError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.length(format!("{}", self.whole - self.rest.len())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Message> {
        vec![
            Message::Hello {
                version: 1,
                rank: 3,
                to: 2,
                agreement: [7; 32],
            },
            Message::Welcome {
                chunks: 9,
                bytes: 1 << 40,
            },
            Message::Refuse {
                why: "agreement differs".into(),
            },
            Message::Pull {
                transfer: 5,
                key: u64::MAX,
                map: true,
            },
            Message::Keys {
                left: 9,
                keys: vec![(0, [1; KEY_BYTES]), (u32::MAX, [2; KEY_BYTES])],
            },
            Message::Unmapped {
                why: "not on this host".into(),
            },
            Message::Sums {
                mapped: false,
                sums: vec![1, 2, u64::MAX],
            },
            Message::Outcome {
                committed: true,
                why: String::new(),
            },
            Message::Outcome {
                committed: false,
                why: "späte Ränder".into(),
            },
        ]
    }

    #[test]
    fn messages_survive_a_round_trip() {
        for message in all() {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn whatever_is_cut_longer_or_damaged_is_an_error_or_another_message() {
        for message in all() {
            let bytes = message.encode();
            for cut in 0..bytes.len() {
                let _ = Message::decode(&bytes[..cut]);
            }
            for i in 0..bytes.len() {
                for bit in 0..8 {
                    let mut damaged = bytes.clone();
                    damaged[i] ^= 1 << bit;
                    let _ = Message::decode(&damaged);
                }
            }
        }
        assert_eq!(
            Message::decode(&[]).unwrap_err().to_string(),
            "a message message of 0 bytes; expected at least 1"
        );
        assert_eq!(Message::decode(&[0]), Err(MessageError::Kind { kind: 0 }));
        assert_eq!(Message::decode(&[77]), Err(MessageError::Kind { kind: 77 }));
        assert!(Message::decode(&[4; 18]).is_err());
        assert!(Message::decode(&[5; 8]).is_err());
        assert!(Message::decode(&[7; 72]).is_err());
        let keys = vec![(0, [0; KEY_BYTES]); MAX_KEYS + 1];
        assert!(Message::decode(&Message::Keys { left: 0, keys }.encode()).is_err());
        assert_eq!(
            Message::decode(&[6, 2]).unwrap_err().to_string(),
            "outcome: committed is 2; expected 0 or 1"
        );
        assert!(Message::decode(&[&[3][..], &[b'a'; 2000]].concat()).is_err());
        assert_eq!(
            Message::decode(b"\x03bell \x07 and\x1b[2J"),
            Ok(Message::Refuse {
                why: "bell   and [2J".into()
            })
        );
    }
}
