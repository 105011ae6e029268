//! What is measured, as opposed to what it is held against.

use crate::{
    args::{Movement, Transport},
    failure::Failure,
    mover::Way,
    peer::{Opened, Peer},
    shapes::Shape,
    stack::Stack,
};

/// Opens both halves of what moves the bytes.
///
/// # Errors
///
/// If there is no such way between these two processes.
pub(crate) fn open(peer: &mut Peer, command: &Movement, shape: Shape) -> Result<Opened, Failure> {
    let transport = match command.transport {
        Transport::Raw => return peer.open(Way::Sockets(command.drive()), shape),
        // What is best within a machine, and what leads off it.
        Transport::Auto if peer.traceable().is_some() => Transport::Shm,
        Transport::Auto => Transport::Tcp,
        named => named,
    };
    let stack = Stack {
        transport,
        kind: command.kind,
        lanes: command.lanes,
        spin_us: command.spin,
    };
    peer.open(Way::Stack(stack), shape)
}

/// The name under which rows have it.
pub(crate) fn name(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Shm => "shm",
        Transport::Auto => "auto",
        Transport::Raw => "raw",
    }
}
