//! Messages of a link as bytes: one byte of kind, then fixed little-endian fields.

use moai_transport::key::KEY_BYTES;
use thiserror::Error;

use super::Reason;
use crate::{
    digest::Coverage,
    limits::{
        DESCRIPTOR_PART_BYTES, MAX_DESCRIPTOR_BYTES, MAX_ENGINE_NAME, MAX_HANDLE_BYTES,
        MAX_KEYS_PER_MESSAGE, MAX_NODE_RANKS, MAX_PAGES_PER_MESSAGE, MAX_SUMS_PER_MESSAGE,
        MAX_TEXT_BYTES,
    },
    protocol::handle::check_engine_name,
};

/// The newest version of the protocol that this build speaks.
pub const NEWEST: u16 = 4;

/// The oldest one. Version 3 lacks [`Message::Ready`], its consumers learn of a layer by its chunks alone; and
/// [`Message::Pages`], so that nothing is mapped.
pub const OLDEST: u16 = 3;

/// First bytes of a Hello, the same in all versions.
const MAGIC: [u8; 4] = *b"MoAI";

/// A region of a producer rank, and the bytes by which its memory can be addressed.
pub type LentKey = (u32, [u8; KEY_BYTES]);

const LENT_KEY_BYTES: usize = 4 + KEY_BYTES;

const _: () = {
    let most = moai_transport::limits::MAX_MESSAGE_BYTES as usize / 2 + 1024;
    assert!(MAX_KEYS_PER_MESSAGE * LENT_KEY_BYTES < most);
    assert!(MAX_SUMS_PER_MESSAGE * 8 < most);
    assert!(MAX_PAGES_PER_MESSAGE * 4 < most);
    assert!(DESCRIPTOR_PART_BYTES < most);
};

/// Who a node is: the first message of each side of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a message")]
pub struct Hello {
    /// Oldest version that it speaks.
    pub oldest: u16,
    /// Newest version that it speaks.
    pub newest: u16,
    /// Node of the engine.
    pub node: u32,
    /// Node that is meant.
    pub to_node: u32,
    /// Life of the engine.
    pub epoch: u64,
    /// Counts the Hellos of this node: of two links, the one with the greater count was made later.
    pub serial: u64,
    /// Drawn at random for this link.
    pub nonce: u64,
    /// The other side's nonce, in an answer; 0 in the first Hello of a link.
    pub echo: u64,
    /// What it can do beyond what every node can: see [`capability`](super::capability).
    pub capabilities: u64,
    /// SHA-256 of its engine's descriptor.
    pub descriptor: [u8; 32],
    /// Name of the engine.
    pub engine: String,
    /// Name of the engine that is meant.
    pub to_engine: String,
    /// Ranks of the engine that the node holds.
    pub ranks: Vec<u32>,
}

/// What a consumer asks a producer rank for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a message")]
pub struct Pull {
    /// Transfer of the consumer node.
    pub transfer: u64,
    /// Part of the transfer: a pair of ranks.
    pub part: u32,
    /// Producer rank.
    pub source: u32,
    /// Consumer rank.
    pub target: u32,
    /// Tokens from the start that the consumer holds already.
    pub held: u32,
    /// For how long it wants to be served, in milliseconds.
    pub for_ms: u32,
    /// What both sides digest.
    pub mode: Coverage,
    /// Key of the digest.
    pub key: u64,
    /// Whether to send layers as they become ready.
    pub by_layer: bool,
    /// Whether it would rather map the pages than have them sent.
    pub map: bool,
    /// The grant that invited it, or 0.
    pub grant: u64,
    /// The offer's handle.
    pub handle: Vec<u8>,
}

/// Where a request stands among the spans of a distributed trace: the numbers of a W3C `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "what the standard says of it")]
pub struct Trace {
    /// The trace.
    pub id: [u8; 16],
    /// The producer's span.
    pub span: [u8; 8],
    /// Flags; bit 0 says that the trace is sampled.
    pub flags: u8,
}

impl Trace {
    /// Reads a `traceparent`, as the W3C's recommendation on trace context has it.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("traceparent {text:?}; expected 00-<32 hex>-<16 hex>-<2 hex>");
        let fields: Vec<&str> = text.split('-').collect();
        let [version, id, span, flags] = fields[..] else {
            return Err(wrong());
        };
        fn bytes<const N: usize>(hex: &str) -> Option<[u8; N]> {
            let digits = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if hex.len() != 2 * N || !digits {
                return None;
            }
            let mut out = [0; N];
            for (byte, at) in out.iter_mut().zip((0..).step_by(2)) {
                *byte = u8::from_str_radix(&hex[at..at + 2], 16).ok()?;
            }
            Some(out)
        }
        let parse = || {
            let version: [u8; 1] = bytes(version)?;
            let [flags] = bytes(flags)?;
            let trace = Self {
                id: bytes(id)?,
                span: bytes(span)?,
                flags,
            };
            let none = trace.id == [0; 16] || trace.span == [0; 8];
            (version == [0] && !none).then_some(trace)
        };
        parse().ok_or_else(wrong)
    }
}

impl std::fmt::Display for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("00-")?;
        self.id
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.span
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", self.flags)
    }
}

/// What two nodes say to each other besides payload.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// Who I am.
    Hello(Box<Hello>),
    /// I have your Hello: it answers a nonce, so it is none of an earlier life.
    Met {
        /// The other side's nonce.
        echo: u64,
    },
    /// I do not know your descriptor.
    Want,
    /// A part of the descriptor.
    Description {
        /// Bytes of all parts.
        total: u32,
        /// The next ones, [`DESCRIPTOR_PART_BYTES`] at most.
        bytes: Vec<u8>,
    },
    /// We fit, by my negotiation.
    Agreed {
        /// Digest of the agreement.
        digest: [u8; 32],
    },
    /// There will be no link.
    Reject {
        /// Why.
        reason: Reason,
        /// The same for people.
        why: String,
    },
    /// I am alive.
    Heartbeat,
    /// Consumer: serve me.
    Pull(Box<Pull>),
    /// Producer: I will; this is what comes.
    Accept {
        /// Transfer.
        transfer: u64,
        /// Its part.
        part: u32,
        /// Chunks of the part.
        chunks: u64,
        /// Their bytes.
        bytes: u64,
        /// Whether pages are lent, rather than sent.
        mapped: bool,
    },
    /// Producer: I will not, and have sent nothing.
    Refuse {
        /// Transfer.
        transfer: u64,
        /// Its part.
        part: u32,
        /// Why.
        reason: Reason,
        /// The same for people.
        why: String,
    },
    /// Producer: by these keys the pages of a rank can be mapped.
    Keys {
        /// Producer rank.
        rank: u32,
        /// Keys that follow in further messages.
        left: u32,
        /// Some of them, [`MAX_KEYS_PER_MESSAGE`] at most.
        keys: Vec<LentKey>,
    },
    /// Producer: in these pages of a rank the request lies, for whoever maps them: the lists of its groups, one after
    /// another. Before Accept. Since version 4.
    Pages {
        /// Transfer.
        transfer: u64,
        /// Its part.
        part: u32,
        /// Pages that follow in further messages.
        left: u32,
        /// Some of them, [`MAX_PAGES_PER_MESSAGE`] at most.
        pages: Vec<u32>,
    },
    /// Producer: the pages of a part are not lent, although that was asked for. Before Accept. Since version 4.
    Unlent {
        /// Transfer.
        transfer: u64,
        /// Its part.
        part: u32,
        /// Why not.
        why: String,
    },
    /// Producer: the request belongs to a trace. Before Accept. Since version 4.
    Traced {
        /// Transfer.
        transfer: u64,
        /// Its part.
        part: u32,
        /// The trace.
        trace: Trace,
    },
    /// Consumer: the pages cannot be mapped, send them.
    Unmapped {
        /// Transfer.
        transfer: u64,
        /// Its part.
        part: u32,
        /// Why not.
        why: String,
    },
    /// Producer: the first tokens of a layer are written. Since version 4.
    Ready {
        /// Transfer.
        transfer: u64,
        /// Its part.
        part: u32,
        /// Global layer, or [`ALL_LAYERS`](super::ALL_LAYERS).
        layer: u32,
        /// Tokens, counted from the start of the request.
        tokens: u32,
    },
    /// Producer: some steps are read to their end; their digests.
    Sums {
        /// Transfer.
        transfer: u64,
        /// Its part.
        part: u32,
        /// Whether of pages that are mapped; otherwise of rows on the wire.
        mapped: bool,
        /// The first of these steps.
        first: u32,
        /// A digest for each, [`MAX_SUMS_PER_MESSAGE`] at most.
        sums: Vec<u64>,
    },
    /// Producer: whatever came of this part is void.
    Discard {
        /// Transfer.
        transfer: u64,
        /// Its part.
        part: u32,
        /// Why.
        reason: Reason,
        /// The same for people.
        why: String,
    },
    /// Consumer: touch my pages no more.
    Stop {
        /// Transfer.
        transfer: u64,
        /// Its part.
        part: u32,
        /// Why.
        reason: Reason,
        /// The same for people.
        why: String,
    },
    /// Producer: I do not, and nothing of mine is on its way.
    Stopped {
        /// Transfer.
        transfer: u64,
        /// Its part.
        part: u32,
    },
    /// Consumer: I am through with this part, and touch your pages no more.
    Done {
        /// Transfer.
        transfer: u64,
        /// Its part.
        part: u32,
        /// Whether the transfer is committed.
        committed: bool,
    },
    /// Producer: pull this offer into the pages that you granted.
    Push {
        /// The grant's handle.
        grant: Vec<u8>,
        /// The offer's handle.
        offer: Vec<u8>,
    },
    /// Consumer: I will not.
    Decline {
        /// Number of the offer.
        offer: u64,
        /// Why.
        reason: Reason,
        /// The same for people.
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

/// Names of all messages, by their kinds from 1 on.
pub const MESSAGES: [&str; 23] = [
    "Hello",
    "Met",
    "Want",
    "Description",
    "Agreed",
    "Reject",
    "Heartbeat",
    "Pull",
    "Accept",
    "Refuse",
    "Keys",
    "Unmapped",
    "Ready",
    "Sums",
    "Discard",
    "Stop",
    "Stopped",
    "Done",
    "Push",
    "Decline",
    "Pages",
    "Traced",
    "Unlent",
];

impl Message {
    fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 1,
            Self::Met { .. } => 2,
            Self::Want => 3,
            Self::Description { .. } => 4,
            Self::Agreed { .. } => 5,
            Self::Reject { .. } => 6,
            Self::Heartbeat => 7,
            Self::Pull(_) => 8,
            Self::Accept { .. } => 9,
            Self::Refuse { .. } => 10,
            Self::Keys { .. } => 11,
            Self::Unmapped { .. } => 12,
            Self::Ready { .. } => 13,
            Self::Sums { .. } => 14,
            Self::Discard { .. } => 15,
            Self::Stop { .. } => 16,
            Self::Stopped { .. } => 17,
            Self::Done { .. } => 18,
            Self::Push { .. } => 19,
            Self::Decline { .. } => 20,
            Self::Pages { .. } => 21,
            Self::Traced { .. } => 22,
            Self::Unlent { .. } => 23,
        }
    }

    /// Its name, for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        name(self.kind()).unwrap_or_default()
    }

    /// The first version of the protocol that has it.
    #[must_use]
    pub const fn since(&self) -> u16 {
        match self {
            Self::Ready { .. } | Self::Pages { .. } | Self::Traced { .. } | Self::Unlent { .. } => {
                4
            }
            _ => 3,
        }
    }

    /// The message as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Out(vec![self.kind()]);
        match self {
            Self::Hello(hello) => {
                out.0.extend(MAGIC);
                out.u16(hello.oldest);
                out.u16(hello.newest);
                out.u32(hello.node);
                out.u32(hello.to_node);
                out.u64(hello.epoch);
                out.u64(hello.serial);
                out.u64(hello.nonce);
                out.u64(hello.echo);
                out.u64(hello.capabilities);
                out.0.extend(hello.descriptor);
                out.short(hello.engine.as_bytes());
                out.short(hello.to_engine.as_bytes());
                hello.ranks.iter().for_each(|&rank| out.u32(rank));
            }
            Self::Met { echo } => out.u64(*echo),
            Self::Want | Self::Heartbeat => {}
            Self::Description { total, bytes } => {
                out.u32(*total);
                out.0.extend(bytes);
            }
            Self::Agreed { digest } => out.0.extend(digest),
            Self::Reject { reason, why } => {
                out.0.push(*reason as u8);
                out.text(why);
            }
            Self::Pull(pull) => {
                out.at(pull.transfer, pull.part);
                out.u32(pull.source);
                out.u32(pull.target);
                out.u32(pull.held);
                out.u32(pull.for_ms);
                out.0.push(pull.mode as u8);
                out.u64(pull.key);
                out.0.extend([u8::from(pull.by_layer), u8::from(pull.map)]);
                out.u64(pull.grant);
                out.0.extend(&pull.handle);
            }
            Self::Accept {
                transfer,
                part,
                chunks,
                bytes,
                mapped,
            } => {
                out.at(*transfer, *part);
                out.u64(*chunks);
                out.u64(*bytes);
                out.0.push(u8::from(*mapped));
            }
            Self::Refuse {
                transfer,
                part,
                reason,
                why,
            }
            | Self::Discard {
                transfer,
                part,
                reason,
                why,
            }
            | Self::Stop {
                transfer,
                part,
                reason,
                why,
            } => {
                out.at(*transfer, *part);
                out.0.push(*reason as u8);
                out.text(why);
            }
            Self::Keys { rank, left, keys } => {
                out.u32(*rank);
                out.u32(*left);
                for (region, key) in keys {
                    out.u32(*region);
                    out.0.extend(key);
                }
            }
            Self::Unmapped {
                transfer,
                part,
                why,
            }
            | Self::Unlent {
                transfer,
                part,
                why,
            } => {
                out.at(*transfer, *part);
                out.text(why);
            }
            Self::Ready {
                transfer,
                part,
                layer,
                tokens,
            } => {
                out.at(*transfer, *part);
                out.u32(*layer);
                out.u32(*tokens);
            }
            Self::Sums {
                transfer,
                part,
                mapped,
                first,
                sums,
            } => {
                out.at(*transfer, *part);
                out.0.push(u8::from(*mapped));
                out.u32(*first);
                sums.iter().for_each(|&sum| out.u64(sum));
            }
            Self::Pages {
                transfer,
                part,
                left,
                pages,
            } => {
                out.at(*transfer, *part);
                out.u32(*left);
                pages.iter().for_each(|&page| out.u32(page));
            }
            Self::Traced {
                transfer,
                part,
                trace,
            } => {
                out.at(*transfer, *part);
                out.0.extend(trace.id);
                out.0.extend(trace.span);
                out.0.push(trace.flags);
            }
            Self::Stopped { transfer, part } => out.at(*transfer, *part),
            Self::Done {
                transfer,
                part,
                committed,
            } => {
                out.at(*transfer, *part);
                out.0.push(u8::from(*committed));
            }
            Self::Push { grant, offer } => {
                out.u16(grant.len() as u16);
                out.0.extend(grant);
                out.0.extend(offer);
            }
            Self::Decline { offer, reason, why } => {
                out.u64(*offer);
                out.0.push(*reason as u8);
                out.text(why);
            }
        }
        out.0
    }

    /// Reads a message.
    ///
    /// # Errors
    ///
    /// [`MessageError`]: whatever a peer sends, nothing is allocated beyond what arrived.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let Some((&kind, body)) = bytes.split_first() else {
            let expected = "at least 1".into();
            return Err(MessageError::Length {
                name: "message",
                bytes: 0,
                expected,
            });
        };
        let mut f = Fields {
            name: name(kind)?,
            whole: bytes.len(),
            rest: body,
        };
        let message = match kind {
            1 => Self::Hello(Box::new(f.hello()?)),
            2 => Self::Met { echo: f.u64()? },
            3 => Self::Want,
            4 => {
                let total = f.u32()?;
                if total as usize > MAX_DESCRIPTOR_BYTES {
                    return Err(f.field(format!(
                        "{total} bytes in all; {MAX_DESCRIPTOR_BYTES} at most"
                    )));
                }
                Self::Description {
                    total,
                    bytes: f.bytes(1, DESCRIPTOR_PART_BYTES)?,
                }
            }
            5 => Self::Agreed { digest: f.take()? },
            6 => Self::Reject {
                reason: f.reason()?,
                why: f.text()?,
            },
            7 => Self::Heartbeat,
            8 => Self::Pull(Box::new(Pull {
                transfer: f.u64()?,
                part: f.u32()?,
                source: f.u32()?,
                target: f.u32()?,
                held: f.u32()?,
                for_ms: f.u32()?,
                mode: f.mode()?,
                key: f.u64()?,
                by_layer: f.flag("by_layer")?,
                map: f.flag("map")?,
                grant: f.u64()?,
                handle: f.bytes(1, MAX_HANDLE_BYTES)?,
            })),
            9 => Self::Accept {
                transfer: f.u64()?,
                part: f.u32()?,
                chunks: f.u64()?,
                bytes: f.u64()?,
                mapped: f.flag("mapped")?,
            },
            10 => Self::Refuse {
                transfer: f.u64()?,
                part: f.u32()?,
                reason: f.reason()?,
                why: f.text()?,
            },
            11 => Self::Keys {
                rank: f.u32()?,
                left: f.u32()?,
                keys: f.keys()?,
            },
            12 => Self::Unmapped {
                transfer: f.u64()?,
                part: f.u32()?,
                why: f.text()?,
            },
            13 => Self::Ready {
                transfer: f.u64()?,
                part: f.u32()?,
                layer: f.u32()?,
                tokens: f.u32()?,
            },
            14 => Self::Sums {
                transfer: f.u64()?,
                part: f.u32()?,
                mapped: f.flag("mapped")?,
                first: f.u32()?,
                sums: f.sums()?,
            },
            15 => Self::Discard {
                transfer: f.u64()?,
                part: f.u32()?,
                reason: f.reason()?,
                why: f.text()?,
            },
            16 => Self::Stop {
                transfer: f.u64()?,
                part: f.u32()?,
                reason: f.reason()?,
                why: f.text()?,
            },
            17 => Self::Stopped {
                transfer: f.u64()?,
                part: f.u32()?,
            },
            18 => Self::Done {
                transfer: f.u64()?,
                part: f.u32()?,
                committed: f.flag("committed")?,
            },
            19 => {
                let length = usize::from(f.u16()?);
                let short = f.length(format!("a grant of {length} bytes"));
                let (grant, offer) = f.rest.split_at_checked(length).ok_or(short)?;
                f.rest = offer;
                if grant.is_empty() || grant.len() > MAX_HANDLE_BYTES {
                    return Err(f.length(format!("a grant of 1 to {MAX_HANDLE_BYTES} bytes")));
                }
                Self::Push {
                    grant: grant.to_vec(),
                    offer: f.bytes(1, MAX_HANDLE_BYTES)?,
                }
            }
            20 => Self::Decline {
                offer: f.u64()?,
                reason: f.reason()?,
                why: f.text()?,
            },
            21 => Self::Pages {
                transfer: f.u64()?,
                part: f.u32()?,
                left: f.u32()?,
                pages: f.pages()?,
            },
            23 => Self::Unlent {
                transfer: f.u64()?,
                part: f.u32()?,
                why: f.text()?,
            },
            _ => Self::Traced {
                transfer: f.u64()?,
                part: f.u32()?,
                trace: Trace {
                    id: f.take()?,
                    span: f.take()?,
                    flags: f.take::<1>()?[0],
                },
            },
        };
        f.end()?;
        Ok(message)
    }
}

fn name(kind: u8) -> Result<&'static str, MessageError> {
    match usize::from(kind).checked_sub(1) {
        Some(at) => MESSAGES.get(at).copied().ok_or(MessageError::Kind { kind }),
        None => Err(MessageError::Kind { kind }),
    }
}

struct Out(Vec<u8>);

impl Out {
    fn u16(&mut self, value: u16) {
        self.0.extend(value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    fn at(&mut self, transfer: u64, part: u32) {
        self.u64(transfer);
        self.u32(part);
    }

    fn short(&mut self, bytes: &[u8]) {
        self.0.push(bytes.len() as u8);
        self.0.extend(bytes);
    }

    /// A text, cut at the last character that fits.
    fn text(&mut self, why: &str) {
        let mut end = why.len().min(MAX_TEXT_BYTES);
        while !why.is_char_boundary(end) {
            end -= 1;
        }
        self.0.extend(&why.as_bytes()[..end]);
    }
}

struct Fields<'a> {
    name: &'static str,
    whole: usize,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn length(&self, expected: impl Into<String>) -> MessageError {
        let expected = expected.into();
        MessageError::Length {
            name: self.name,
            bytes: self.whole,
            expected,
        }
    }

    fn field(&self, problem: String) -> MessageError {
        MessageError::Field {
            name: self.name,
            problem,
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        let Some((field, rest)) = self.rest.split_first_chunk() else {
            return Err(self.length(format!("{} or more", self.whole - self.rest.len() + N)));
        };
        self.rest = rest;
        Ok(*field)
    }

    fn u16(&mut self) -> Result<u16, MessageError> {
        Ok(u16::from_le_bytes(self.take()?))
    }

    fn u32(&mut self) -> Result<u32, MessageError> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, MessageError> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn hello(&mut self) -> Result<Hello, MessageError> {
        let magic: [u8; 4] = self.take()?;
        if magic != MAGIC {
            return Err(self.field(format!("starts with {magic:?}; expected {MAGIC:?}")));
        }
        Ok(Hello {
            oldest: self.u16()?,
            newest: self.u16()?,
            node: self.u32()?,
            to_node: self.u32()?,
            epoch: self.u64()?,
            serial: self.u64()?,
            nonce: self.u64()?,
            echo: self.u64()?,
            capabilities: self.u64()?,
            descriptor: self.take()?,
            engine: self.engine()?,
            to_engine: self.engine()?,
            ranks: {
                let (ranks, odd) = std::mem::take(&mut self.rest).as_chunks::<4>();
                if !odd.is_empty() || ranks.len() > MAX_NODE_RANKS {
                    return Err(self.length(format!("{MAX_NODE_RANKS} ranks of 4 bytes at most")));
                }
                ranks.iter().map(|rank| u32::from_le_bytes(*rank)).collect()
            },
        })
    }

    fn engine(&mut self) -> Result<String, MessageError> {
        let [length] = self.take()?;
        let length = usize::from(length);
        let short = self.length(format!("a name of {length} bytes"));
        let (name, rest) = self.rest.split_at_checked(length).ok_or(short)?;
        if length > MAX_ENGINE_NAME {
            return Err(self.length(format!("a name of {MAX_ENGINE_NAME} bytes at most")));
        }
        let name = std::str::from_utf8(name)
            .map_err(|_| self.field("an engine's name is no UTF-8".into()))?;
        check_engine_name(name)
            .map_err(|problem| self.field(format!("an engine's name: {problem}")))?;
        self.rest = rest;
        Ok(name.to_owned())
    }

    fn bytes(&mut self, least: usize, most: usize) -> Result<Vec<u8>, MessageError> {
        let rest: &'a [u8] = std::mem::take(&mut self.rest);
        if rest.len() < least || rest.len() > most {
            return Err(self.length(format!("{least} to {most} bytes at its end")));
        }
        Ok(rest.to_vec())
    }

    fn text(&mut self) -> Result<String, MessageError> {
        let rest = self.bytes(0, MAX_TEXT_BYTES)?;
        // What a peer says is shown to people: no control characters reach their terminal.
        let text = String::from_utf8_lossy(&rest);
        Ok(text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect())
    }

    fn reason(&mut self) -> Result<Reason, MessageError> {
        let [code] = self.take()?;
        // A later build may know more reasons; the text says what this one cannot.
        Ok(Reason::from_code(code))
    }

    fn mode(&mut self) -> Result<Coverage, MessageError> {
        match self.take()? {
            [0] => Ok(Coverage::Off),
            [1] => Ok(Coverage::Sample),
            [2] => Ok(Coverage::Wire),
            [3] => Ok(Coverage::Full),
            [other] => Err(self.field(format!("mode is {other}; expected 0 to 3"))),
        }
    }

    fn sums(&mut self) -> Result<Vec<u64>, MessageError> {
        let (sums, odd) = std::mem::take(&mut self.rest).as_chunks::<8>();
        if !odd.is_empty() || sums.len() > MAX_SUMS_PER_MESSAGE {
            return Err(self.length(format!("up to {MAX_SUMS_PER_MESSAGE} sums of 8 bytes")));
        }
        Ok(sums.iter().map(|sum| u64::from_le_bytes(*sum)).collect())
    }

    fn pages(&mut self) -> Result<Vec<u32>, MessageError> {
        let (pages, odd) = std::mem::take(&mut self.rest).as_chunks::<4>();
        if !odd.is_empty() || pages.len() > MAX_PAGES_PER_MESSAGE {
            return Err(self.length(format!("up to {MAX_PAGES_PER_MESSAGE} pages of 4 bytes")));
        }
        Ok(pages.iter().map(|page| u32::from_le_bytes(*page)).collect())
    }

    fn keys(&mut self) -> Result<Vec<LentKey>, MessageError> {
        let (keys, odd) = std::mem::take(&mut self.rest).as_chunks::<LENT_KEY_BYTES>();
        if !odd.is_empty() || keys.len() > MAX_KEYS_PER_MESSAGE {
            return Err(self.length(format!(
                "up to {MAX_KEYS_PER_MESSAGE} keys of {LENT_KEY_BYTES} bytes"
            )));
        }
        let lent = |bytes: &[u8; LENT_KEY_BYTES]| {
            let (mut region, mut key) = ([0; 4], [0; KEY_BYTES]);
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
            [other] => Err(self.field(format!("{field} is {other}; expected 0 or 1"))),
        }
    }

    fn end(&self) -> Result<(), MessageError> {
        match self.rest.len() {
            0 => Ok(()),
            more => Err(self.length(self.whole.saturating_sub(more).to_string())),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn hello() -> Hello {
        Hello {
            oldest: OLDEST,
            newest: NEWEST,
            node: 1,
            to_node: 0,
            epoch: 3,
            serial: 4,
            nonce: 5,
            echo: 0,
            capabilities: 1,
            descriptor: [7; 32],
            engine: "a".into(),
            to_engine: "b".into(),
            ranks: vec![0, 1],
        }
    }

    pub(crate) fn all() -> Vec<Message> {
        let (transfer, part, reason, why) = (7, 8, Reason::Consumed, "é, once".to_owned());
        let unlent = Message::Unlent {
            transfer,
            part,
            why: why.clone(),
        };
        let pull = Pull {
            transfer,
            part,
            source: 1,
            target: 2,
            held: 64,
            for_ms: 1000,
            mode: Coverage::Full,
            key: 9,
            by_layer: true,
            map: false,
            grant: 0,
            handle: vec![1, 2, 3],
        };
        vec![
            Message::Hello(Box::new(hello())),
            Message::Met { echo: 5 },
            Message::Want,
            Message::Description {
                total: 10,
                bytes: vec![1; 10],
            },
            Message::Agreed { digest: [1; 32] },
            Message::Reject {
                reason,
                why: why.clone(),
            },
            Message::Heartbeat,
            Message::Pull(Box::new(pull)),
            Message::Accept {
                transfer,
                part,
                chunks: 3,
                bytes: 4,
                mapped: true,
            },
            Message::Refuse {
                transfer,
                part,
                reason,
                why: why.clone(),
            },
            Message::Keys {
                rank: 1,
                left: 2,
                keys: vec![(3, [4; KEY_BYTES]); 2],
            },
            Message::Unmapped {
                transfer,
                part,
                why: why.clone(),
            },
            Message::Ready {
                transfer,
                part,
                layer: 1,
                tokens: 2,
            },
            Message::Sums {
                transfer,
                part,
                mapped: false,
                first: 1,
                sums: vec![2, 3],
            },
            Message::Discard {
                transfer,
                part,
                reason,
                why: why.clone(),
            },
            Message::Stop {
                transfer,
                part,
                reason,
                why: why.clone(),
            },
            Message::Stopped { transfer, part },
            Message::Done {
                transfer,
                part,
                committed: true,
            },
            Message::Push {
                grant: vec![1, 2],
                offer: vec![3],
            },
            Message::Decline {
                offer: 1,
                reason,
                why,
            },
            Message::Pages {
                transfer,
                part,
                left: 1,
                pages: vec![5, 6],
            },
            Message::Traced {
                transfer,
                part,
                trace: Trace {
                    id: [1; 16],
                    span: [2; 8],
                    flags: 1,
                },
            },
            unlent,
        ]
    }

    #[test]
    fn all_messages_survive_and_each_has_its_name() {
        let mut names = Vec::new();
        for message in all() {
            let bytes = message.encode();
            assert_eq!(Message::decode(&bytes), Ok(message.clone()));
            assert!(
                format!("{message:?}").starts_with(message.name()),
                "{message:?}"
            );
            assert!(!names.contains(&message.name()));
            names.push(message.name());
        }
        assert_eq!(names.len(), MESSAGES.len());
    }

    #[test]
    fn cut_and_lengthened_messages_never_panic() {
        for message in all() {
            let bytes = message.encode();
            for length in 0..bytes.len() {
                let _ = Message::decode(&bytes[..length]);
            }
            let mut longer = bytes.clone();
            longer.resize(bytes.len() + 300, 0xFF);
            let _ = Message::decode(&longer);
            for at in 0..bytes.len() {
                for value in [0, 1, 0x7F, 0xFF] {
                    let mut changed = bytes.clone();
                    changed[at] = value;
                    if let Ok(read) = Message::decode(&changed) {
                        assert_eq!(Message::decode(&read.encode()), Ok(read));
                    }
                }
            }
        }
    }

    #[test]
    fn traces_are_read_as_they_are_written() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace = Trace::parse(text).unwrap();
        assert_eq!((trace.id[0], trace.span[7], trace.flags), (0x0A, 0x31, 1));
        assert_eq!(trace.to_string(), text);
        for wrong in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-é0af7651916cd43dd8448eb211c803-b7ad6b7169203331-01",
        ] {
            assert!(Trace::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn lengths_are_compared_with_their_limits() {
        let text = "x".repeat(MAX_TEXT_BYTES);
        let reject = |why: String| Message::Reject {
            reason: Reason::Busy,
            why,
        };
        let longer = reject(format!("{text}y")).encode();
        assert_eq!(Message::decode(&longer), Ok(reject(text)));
        let mut bytes = longer;
        bytes.push(b'z');
        assert!(matches!(
            Message::decode(&bytes),
            Err(MessageError::Length { name: "Reject", .. })
        ));
        let bomb = [&[4][..], &u32::MAX.to_le_bytes(), &[0]].concat();
        assert!(matches!(
            Message::decode(&bomb),
            Err(MessageError::Field {
                name: "Description",
                ..
            })
        ));
        assert_eq!(
            Message::decode(&[200]),
            Err(MessageError::Kind { kind: 200 })
        );
        assert_eq!(Message::decode(&[0]), Err(MessageError::Kind { kind: 0 }));
    }
}
