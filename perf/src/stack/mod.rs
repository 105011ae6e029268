//! The stack's own transports, as ways to move pieces.

mod end;
mod mover;
mod partner;

use serde::{Deserialize, Serialize};

use crate::args::{Kind, Transport};

pub(crate) use mover::StackMover;
pub(crate) use partner::StackPartner;

/// How a transport is opened on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stack {
    pub(crate) transport: Transport,
    /// Memory that pieces lie in.
    pub(crate) kind: Kind,
    /// Connections to the peer, where the transport has them.
    pub(crate) lanes: u32,
    /// Microseconds that a poll looks before it parks; what is usual if it is not said.
    pub(crate) spin_us: Option<u32>,
}
