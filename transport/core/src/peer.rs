//! Names of peers.

use std::fmt;

/// One connected peer of an interface.
///
/// An index into the interface's table of connections and the generation of that entry, so that an
/// id which outlived its connection is never taken for the peer that came after it. Ids of two
/// interfaces are unrelated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId {
    index: u32,
    generation: u32,
}

impl PeerId {
    /// The peer in entry `index` during life `generation` of that entry. For providers.
    #[must_use]
    pub const fn new(index: u32, generation: u32) -> Self {
        Self { index, generation }
    }

    /// Entry in the interface's table; small, and used again after the peer is gone.
    #[must_use]
    pub const fn index(self) -> u32 {
        self.index
    }

    /// Which life of the entry this is.
    #[must_use]
    pub const fn generation(self) -> u32 {
        self.generation
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}
