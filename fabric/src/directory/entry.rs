//! What a directory says of a node: the text form, and its decoder.

use std::{fmt, str::FromStr, sync::Arc};

use moai_collectives::{limits::MAX_NODE_RANKS, protocol::handle::check_engine_name};
use moai_transport::{Address, AddressError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::advertise::is_unspecified;
use crate::limits::{MAX_ENTRY_BYTES, MAX_NODE_ADDRESSES};

/// Name of an engine: letters, digits, `.`, `_` and `-`, so that it fits keys of etcd, host names and URLs.
///
/// ```
/// use moai_fabric::directory::EngineName;
///
/// let name: EngineName = "prefill-a.llama3".parse()?;
/// assert_eq!(name.as_str(), "prefill-a.llama3");
/// assert!("../etc".parse::<EngineName>().is_err());
/// # Ok::<(), moai_fabric::directory::EntryError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EngineName(Arc<str>);

impl EngineName {
    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EngineName {
    type Err = EntryError;

    fn from_str(text: &str) -> Result<Self, EntryError> {
        match check_engine_name(text) {
            Ok(()) => Ok(Self(text.into())),
            Err(problem) => Err(EntryError::Name {
                text: shortened(text),
                problem,
            }),
        }
    }
}

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One node of an engine, as a directory has it.
///
/// What a source cannot say is left open: a name server knows addresses only. The greeting of a link tells the rest, and
/// is what counts; a directory never decides who a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Node {
    /// Its number within the engine.
    pub number: Option<u32>,
    /// Ranks of the engine that it holds, ascending; empty where the source does not say.
    pub ranks: Vec<u32>,
    /// Where it can be reached, the best first as its owner sees it.
    pub addresses: Vec<Address>,
    /// SHA-256 of the engine's description.
    pub descriptor: Option<[u8; 32]>,
    /// The life of the engine that it belongs to.
    pub epoch: Option<u64>,
}

/// What tells a node from others of its engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum NodeKey {
    /// Its number.
    Number(u32),
    /// The first of its addresses in order of their texts, where it has no number.
    At(Address),
}

impl Node {
    /// A node of which no more is known than where it is.
    ///
    /// # Errors
    ///
    /// [`EntryError`] if there is no address, are too many, or is one that nobody can connect to.
    pub fn at(addresses: Vec<Address>) -> Result<Self, EntryError> {
        let count = addresses.len();
        if count == 0 || count > MAX_NODE_ADDRESSES {
            return Err(EntryError::Count {
                what: "addresses",
                count,
                least: 1,
                most: MAX_NODE_ADDRESSES,
            });
        }
        if let Some(address) = addresses.iter().find(|address| is_unspecified(address)) {
            return Err(EntryError::Unspecified {
                address: address.clone(),
            });
        }
        Ok(Self {
            number: None,
            ranks: Vec::new(),
            addresses,
            descriptor: None,
            epoch: None,
        })
    }

    /// The same node with a number.
    #[must_use]
    pub fn numbered(mut self, number: u32) -> Self {
        self.number = Some(number);
        self
    }

    /// The same node with the ranks that it holds.
    ///
    /// # Errors
    ///
    /// [`EntryError`] if there are too many, or not in ascending order.
    pub fn holding(mut self, ranks: Vec<u32>) -> Result<Self, EntryError> {
        if ranks.len() > MAX_NODE_RANKS {
            return Err(EntryError::Count {
                what: "ranks",
                count: ranks.len(),
                least: 0,
                most: MAX_NODE_RANKS,
            });
        }
        if let Some(pair) = ranks.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(EntryError::Order {
                before: pair[0],
                after: pair[1],
            });
        }
        self.ranks = ranks;
        Ok(self)
    }

    /// The same node with the digest of its engine's description, and the life of its engine.
    #[must_use]
    pub fn of(mut self, descriptor: Option<[u8; 32]>, epoch: Option<u64>) -> Self {
        self.descriptor = descriptor;
        self.epoch = epoch;
        self
    }

    /// What tells it from others of its engine.
    #[must_use]
    pub fn key(&self) -> NodeKey {
        match (self.number, self.addresses.iter().min()) {
            (Some(number), _) => NodeKey::Number(number),
            (None, Some(address)) => NodeKey::At(address.clone()),
            // No constructor makes a node without addresses.
            (None, None) => NodeKey::Number(u32::MAX),
        }
    }

    /// Reads an entry as [`encode`](Self::encode) writes it, in a file or a directory server. Fields that this version
    /// does not know are skipped.
    ///
    /// ```
    /// use moai_fabric::directory::Node;
    ///
    /// let node = Node::decode(br#"{"node": 1, "ranks": [4, 5], "addresses": ["tcp:10.0.0.7:4000"]}"#)?;
    /// assert_eq!((node.number, node.ranks.as_slice()), (Some(1), &[4, 5][..]));
    /// assert!(Node::decode(br#"{"addresses": ["tcp:0.0.0.0:4000"]}"#).is_err());
    /// # Ok::<(), moai_fabric::directory::EntryError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`EntryError`]: it is too long, is no JSON of this form, or says what cannot be.
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        if bytes.len() > MAX_ENTRY_BYTES {
            return Err(EntryError::Long {
                bytes: bytes.len(),
                most: MAX_ENTRY_BYTES,
            });
        }
        let raw: RawNode =
            serde_json::from_slice(bytes).map_err(|cause| EntryError::Json { cause })?;
        raw.try_into()
    }

    /// The entry's text: one line of JSON.
    #[must_use]
    pub fn encode(&self) -> String {
        let raw = RawNode {
            node: self.number,
            ranks: self.ranks.clone(),
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            descriptor: self.descriptor.map(|digest| hex(&digest)),
            epoch: self.epoch.map(|epoch| format!("{epoch:016x}")),
        };
        serde_json::to_string(&raw).unwrap_or_default()
    }
}

/// A node as its JSON has it.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct RawNode {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ranks: Vec<u32>,
    addresses: Vec<String>,
    /// Hexadecimal, as everywhere where people see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    descriptor: Option<String>,
    /// Hexadecimal: numbers of 64 bits lose digits in many readers of JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epoch: Option<String>,
}

impl TryFrom<RawNode> for Node {
    type Error = EntryError;

    fn try_from(raw: RawNode) -> Result<Self, EntryError> {
        let address = |text: &String| text.parse().map_err(|cause| EntryError::Address { cause });
        // Looking at each costs little, and an entry is bounded; the count is checked by `at`.
        let addresses = raw
            .addresses
            .iter()
            .map(address)
            .collect::<Result<_, _>>()?;
        let field = |field: &'static str, text: &str, expected: &'static str| EntryError::Field {
            field,
            text: shortened(text),
            expected,
        };
        let descriptor = match raw.descriptor.as_deref() {
            None => None,
            Some(text) => Some(
                unhex(text).ok_or_else(|| field("descriptor", text, "64 hexadecimal digits"))?,
            ),
        };
        let epoch = match raw.epoch.as_deref() {
            None => None,
            Some(text) if text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit()) => {
                u64::from_str_radix(text, 16).ok()
            }
            Some(text) => return Err(field("epoch", text, "16 hexadecimal digits")),
        };
        let mut node = Self::at(addresses)?
            .holding(raw.ranks)?
            .of(descriptor, epoch);
        node.number = raw.node;
        Ok(node)
    }
}

/// An entry of a directory cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EntryError {
    /// It is longer than entries are.
    #[error("the entry has {bytes} bytes, of {most} at most")]
    Long {
        /// Its length.
        bytes: usize,
        /// The limit.
        most: usize,
    },
    /// It is not the JSON of an entry.
    #[error("the entry is not what a node is written as")]
    Json {
        /// Where, and what was expected.
        #[source]
        cause: serde_json::Error,
    },
    /// An engine's name cannot be.
    #[error("{text:?} names no engine: {problem}")]
    Name {
        /// The name, shortened.
        text: String,
        /// What is wrong, and what was expected.
        problem: String,
    },
    /// Too many of something, or none.
    #[error(
        "the node has {count} {what}; between {least} and {most} can be: list what is more as other nodes"
    )]
    Count {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many there must be.
        least: usize,
        /// The limit.
        most: usize,
    },
    /// Ranks are not in ascending order.
    #[error("rank {after} comes after rank {before}; ranks are listed once, ascending")]
    Order {
        /// The one before.
        before: u32,
        /// The one after.
        after: u32,
    },
    /// A text is no address.
    #[error(transparent)]
    Address {
        /// What is wrong with it.
        cause: AddressError,
    },
    /// An address that stands for all of a host's, which nobody can connect to.
    #[error(
        "{address} is every address of whoever reads it; the node must advertise one that its peers can connect to (MOAI_ADVERTISE)"
    )]
    Unspecified {
        /// The address.
        address: Address,
    },
    /// A field's text cannot be.
    #[error("{field} is {text:?}; expected {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its text, shortened.
        text: String,
        /// What it should be.
        expected: &'static str,
    },
    /// An engine has more nodes than engines have.
    #[error("engine {engine} has {count} nodes, of {most} at most")]
    Nodes {
        /// The engine.
        engine: EngineName,
        /// How many.
        count: usize,
        /// The limit.
        most: usize,
    },
    /// Two entries are for one node.
    #[error("engine {engine} lists node {number} twice")]
    Twice {
        /// The engine.
        engine: EngineName,
        /// The node.
        number: u32,
    },
}

/// Lower case, as digests are shown.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| (c as char).to_digit(16).unwrap_or(0) as u8;
        *byte = digit(pair[0]) << 4 | digit(pair[1]);
    }
    Some(bytes)
}

/// Enough of a text for people to find it.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use moai_collectives::limits::MAX_ENGINE_NAME;

    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn an_entry_is_read_as_it_is_written() {
        let node = Node::at(vec![address("tcp:10.0.0.7:4000"), address("shm:@moai/12")]).unwrap();
        let full = node.clone().numbered(3).holding(vec![6, 7]).unwrap();
        let full = full.of(Some([0xa5; 32]), Some(u64::MAX));
        for node in [node, full] {
            assert_eq!(Node::decode(node.encode().as_bytes()).unwrap(), node);
        }
    }

    #[test]
    fn what_later_versions_add_is_skipped() {
        let node = Node::decode(br#"{"addresses": ["tcp:h:1"], "colour": [1, {"a": 2}]}"#).unwrap();
        assert_eq!(node.key(), NodeKey::At(address("tcp:h:1")));
    }

    #[test]
    fn what_cannot_be_says_why() {
        let many = |n: usize| {
            let list = vec!["\"tcp:h:1\""; n].join(",");
            format!(r#"{{"addresses": [{list}]}}"#)
        };
        for (text, problem) in [
            ("", "not what a node is written as"),
            ("[]", "not what a node is written as"),
            (r#"{"addresses": []}"#, "has 0 addresses"),
            (&many(MAX_NODE_ADDRESSES + 1), "has 33 addresses"),
            (r#"{"addresses": ["h:1 "]}"#, "printable"),
            (r#"{"addresses": ["tcp:0.0.0.0:1"]}"#, "MOAI_ADVERTISE"),
            (r#"{"addresses": ["tcp:[::]:1"]}"#, "MOAI_ADVERTISE"),
            (
                r#"{"addresses": ["tcp:h:1"], "ranks": [1, 1]}"#,
                "ascending",
            ),
            (
                r#"{"addresses": ["tcp:h:1"], "epoch": "12"}"#,
                "16 hexadecimal",
            ),
            (
                r#"{"addresses": ["tcp:h:1"], "epoch": "+123456789abcdef"}"#,
                "16 hexadecimal",
            ),
            (
                r#"{"addresses": ["tcp:h:1"], "descriptor": "ab"}"#,
                "64 hexadecimal",
            ),
            (
                r#"{"addresses": ["tcp:h:1"], "node": -1}"#,
                "not what a node is written as",
            ),
        ] {
            let error = Node::decode(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
        let long = vec![b' '; MAX_ENTRY_BYTES + 1];
        assert!(matches!(Node::decode(&long), Err(EntryError::Long { .. })));
    }

    #[test]
    fn the_longest_node_has_room() {
        let location = "x".repeat(moai_transport::limits::MAX_ADDRESS_BYTES - 4);
        let addresses = vec![Address::new("tcp", location).unwrap(); MAX_NODE_ADDRESSES];
        let node = Node::at(addresses).unwrap();
        let node = node.holding((0..MAX_NODE_RANKS as u32).collect()).unwrap();
        let node = node.numbered(u32::MAX).of(Some([1; 32]), Some(1));
        assert!(Node::decode(node.encode().as_bytes()).is_ok());
    }

    #[test]
    fn names_and_ranks_are_those_of_the_protocol() {
        let longest = "x".repeat(MAX_ENGINE_NAME);
        for name in ["a", "decode-0", "A_b.c", &longest] {
            assert_eq!(name.parse::<EngineName>().unwrap().to_string(), name);
        }
        let long = "x".repeat(MAX_ENGINE_NAME + 1);
        for (name, problem) in [
            ("", "0 bytes; expected 1 to 96"),
            ("a/b", "'/' in it"),
            ("..", "begin with a letter"),
            (&long, "97 bytes; expected 1 to 96"),
        ] {
            let error = name.parse::<EngineName>().unwrap_err().to_string();
            assert!(error.contains(problem), "{name}: {error}");
        }
        let node = Node::at(vec![Address::new("tcp", "h:1").unwrap()]).unwrap();
        let many = node.holding((0..=MAX_NODE_RANKS as u32).collect());
        let error = many.unwrap_err().to_string();
        assert!(error.contains("257 ranks; between 0 and 256"), "{error}");
    }
}
