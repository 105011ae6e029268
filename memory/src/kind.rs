//! Kinds of memory.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The kind of memory a region lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MemoryKind {
    /// Ordinary pageable memory of this process.
    Host,
    /// Memory of this process that the system never moves to swap, as a device or a NIC needs it.
    Pinned,
    /// Memory that other processes of this host can map.
    Shared,
    /// Memory of the [`sim`](crate::sim) device: the host has its address and cannot load from it.
    Sim,
}

impl MemoryKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Host, Self::Pinned, Self::Shared, Self::Sim];

    /// Whether the processor can load from memory of this kind.
    #[must_use]
    pub fn is_host_accessible(self) -> bool {
        match self {
            Self::Host | Self::Pinned | Self::Shared => true,
            Self::Sim => false,
        }
    }

    /// Its number in what processes tell each other; never reused.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Host => 1,
            Self::Pinned => 2,
            Self::Shared => 3,
            Self::Sim => 4,
        }
    }

    /// The kind with a number.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Pinned => "pinned",
            Self::Shared => "shared",
            Self::Sim => "sim",
        }
    }
}

impl fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for MemoryKind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let kind = Self::ALL.into_iter().find(|kind| kind.name() == text);
        kind.ok_or_else(|| UnknownKind { text: text.into() })
    }
}

/// A text that names no kind of memory.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no kind of memory is called {text:?}; there are host, pinned, shared and sim")]
pub struct UnknownKind {
    text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_read_back_from_its_name() {
        for kind in MemoryKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
            assert_eq!(MemoryKind::from_code(kind.code()), Some(kind));
        }
    }

    #[test]
    fn other_texts_are_refused_by_a_sentence_that_names_every_kind() {
        let refusal = "Host".parse::<MemoryKind>().unwrap_err().to_string();
        assert!(refusal.contains("\"Host\""), "{refusal}");
        for kind in MemoryKind::ALL {
            assert!(refusal.contains(kind.name()), "{refusal}");
        }
    }
}
