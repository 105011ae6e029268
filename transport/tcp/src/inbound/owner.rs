//! Whom a connection belongs to.

use moai_transport::PeerId;

/// What a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It came to us and has not said.
    Unknown,
    /// The first lane of a peer, which stands for the peer.
    First { side: usize, incoming: bool },
    /// Another lane.
    Further { side: usize },
}

/// Whom a connection belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    pub(crate) peer: PeerId,
    pub(crate) role: Role,
}

impl Owner {
    pub(crate) fn side(self) -> usize {
        match self.role {
            Role::First { side, .. } | Role::Further { side } => side,
            Role::Unknown => usize::MAX,
        }
    }
}
