//! What an interface can do, for which memory.

use std::fmt;

use moai_memory::MemoryKind;

/// What can be asked of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// One-sided write.
    Put,
    /// One-sided read.
    Get,
    /// Message, or batch of gathered rows.
    Send,
    /// Load access to the peer's memory.
    Map,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Send => "send",
            Self::Map => "map",
        })
    }
}

/// How an operation reaches memory of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(clippy::exhaustive_enums)] // Ordered from worst to best.
pub enum Reach {
    /// Not at all.
    No,
    /// Through a buffer in host memory, with a copy more.
    Staged,
    /// From or into it.
    Direct,
}

/// What an interface can do.
///
/// | field | unit | meaning |
/// |---|---|---|
/// | `reach` | | how each operation reaches each kind of memory; what is not listed it cannot do |
/// | `one_sided` | | puts and gets cost the peer's process nothing |
/// | `max_message`, `max_batch` | bytes | longest message, largest batch |
/// | `max_operation` | bytes | largest put or get |
/// | `lanes` | connections | that one peer's payload is spread over |
/// | `encrypted` | | nobody on the way can read the payload |
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The table above documents them side by side.
#[allow(clippy::exhaustive_structs)] // Providers, also those of others, write these out.
pub struct Capabilities {
    pub reach: Vec<(Operation, MemoryKind, Reach)>,
    pub one_sided: bool,
    pub max_message: u32,
    pub max_batch: u32,
    pub max_operation: u64,
    pub lanes: u32,
    pub encrypted: bool,
}

impl Capabilities {
    /// How `operation` reaches memory of `kind`.
    #[must_use]
    pub fn reach(&self, operation: Operation, kind: MemoryKind) -> Reach {
        let listed = self.reach.iter();
        listed
            .filter(|(op, of, _)| *op == operation && *of == kind)
            .map(|&(.., reach)| reach)
            .max()
            .unwrap_or(Reach::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_listed_cannot_be_done() {
        let can = Capabilities {
            reach: vec![(Operation::Put, MemoryKind::Host, Reach::Direct)],
            one_sided: false,
            max_message: 1,
            max_batch: 1,
            max_operation: 1,
            lanes: 1,
            encrypted: false,
        };
        assert_eq!(can.reach(Operation::Put, MemoryKind::Host), Reach::Direct);
        assert_eq!(can.reach(Operation::Map, MemoryKind::Host), Reach::No);
        assert!(Reach::No < Reach::Staged && Reach::Staged < Reach::Direct);
    }
}
