//! What can go wrong with a call.

use std::io;

use thiserror::Error;

use crate::PeerId;

/// A transport operation could not be done.
///
/// A full send queue is not here: posting reports it as [`Posted::Busy`](crate::Posted::Busy),
/// because it is ordinary and the caller is expected to make progress and try again. The end of a
/// connection is not here either: it is an event, [`Closed`](crate::Closed), and comes out of
/// [`Interface::poll`](crate::Interface::poll).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer is not, or no longer, connected to this interface. The caller forgets the id.
    ///
    /// Ordinary when a connection ended while the caller was about to use it.
    #[error("peer {peer} is not connected")]
    NoSuchPeer {
        /// The stale id.
        peer: PeerId,
    },
    /// The caller finished this peer already; nothing more can be queued for it.
    #[error("peer {peer} is being finished")]
    Finishing {
        /// The peer that was finished.
        peer: PeerId,
    },
    /// More bytes than a frame may have. Depends only on arguments, so it is never worth a retry:
    /// the caller splits what it sends.
    #[error("a {what} of {bytes} bytes is over the limit of {limit} bytes")]
    TooLarge {
        /// `"message"` or `"batch"`.
        what: &'static str,
        /// Bytes asked for.
        bytes: u64,
        /// The most that this interface takes.
        limit: u64,
    },
    /// The table of peers is full. The caller closes one, or opens another interface.
    #[error("the interface already has {limit} peers")]
    TooManyPeers {
        /// The most peers of this interface.
        limit: usize,
    },
    /// A knob of a configuration is outside its range.
    #[error("{knob} is {value}, which is not in {smallest}..={largest}")]
    Config {
        /// Name of the field.
        knob: &'static str,
        /// What it was set to.
        value: u64,
        /// Least value it may have.
        smallest: u64,
        /// Largest value it may have.
        largest: u64,
    },
    /// A system call failed.
    #[error("{call} failed")]
    Os {
        /// The call.
        call: &'static str,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}
