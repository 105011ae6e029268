//! What can go wrong with a call.

use std::io;

use thiserror::Error;

use moai_memory::MemoryKind;

use crate::limits::MAX_IMPORTS;
use crate::{Address, KeyError, Operation, PeerId, PiecesError, Refusal};

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
        /// `"message"`, `"batch"` or `"operation"`.
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
    /// The table of registrations is full. The caller deregisters something, or registers larger regions.
    #[error("the interface already has {limit} registrations")]
    TooManyRegistrations {
        /// The most registrations of an interface.
        limit: usize,
    },
    /// So many keys of the peer have been imported.
    #[error("{MAX_IMPORTS} keys of peer {peer} are imported already")]
    TooManyImports {
        /// The peer.
        peer: PeerId,
    },
    /// The registration is gone, or its entry has been used again.
    #[error("registration {slot}.{generation} is gone")]
    NotRegistered {
        /// Entry in the table.
        slot: u32,
        /// Use of the entry.
        generation: u32,
    },
    /// The caller lends no region of that number, or another one than was registered.
    #[error("region {region} is not the memory that was registered as such")]
    NotLent {
        /// Number of the region.
        region: u32,
    },
    /// The caller names a key that it has not imported.
    #[error("no key was imported as remote region {region}")]
    NotImported {
        /// What the caller took for an imported key.
        region: u32,
    },
    /// Bytes that a peer sent are no key.
    #[error("the peer's remote key cannot be used")]
    Key(#[from] KeyError),
    /// A key that is known to be refused, before anything was sent.
    #[error("the key does not allow it")]
    Refused(#[source] Refusal),
    /// Pieces that cannot be. Depends only on arguments.
    #[error("{side} pieces cannot be")]
    Pieces {
        /// `"local"` or `"remote"`.
        side: &'static str,
        /// What is wrong.
        #[source]
        cause: PiecesError,
    },
    /// Local and remote pieces of one operation are not equally many bytes.
    #[error("local pieces of {local} bytes, remote pieces of {remote} bytes")]
    Unequal {
        /// Bytes of the local pieces.
        local: u64,
        /// Bytes of the remote pieces.
        remote: u64,
    },
    /// The provider cannot do that for this kind of memory.
    #[error("provider {provider} cannot {operation} {kind} memory: {reason}")]
    Unsupported {
        /// Name of the provider.
        provider: &'static str,
        /// What was asked.
        operation: Operation,
        /// For which memory.
        kind: MemoryKind,
        /// Why not.
        reason: String,
    },
    /// The address is not one of this provider's, or it cannot be reached from here.
    #[error("provider {provider} cannot connect to {address}: {reason}")]
    Unreachable {
        /// Name of the provider.
        provider: &'static str,
        /// The address.
        address: Address,
        /// Why not.
        reason: String,
    },
    /// Listening on every address of the host, without one that peers can be told.
    #[error(
        "provider {provider} cannot advertise {address}, which stands for every address of a host; name the one that peers reach as the address to advertise"
    )]
    Unadvertised {
        /// Name of the provider.
        provider: &'static str,
        /// What was to be advertised.
        address: Address,
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
    /// A certificate or key cannot be used.
    #[error("{path}: {problem}")]
    Credentials {
        /// The file.
        path: String,
        /// What is wrong with it, and what would help.
        problem: String,
    },
    /// A provider that was loaded failed in a way of its own, or broke the contract.
    #[error("provider {provider} failed in {call}: {problem}")]
    Provider {
        /// Name of the provider.
        provider: &'static str,
        /// What was asked of it.
        call: &'static str,
        /// What it said, or what is wrong with its answer.
        problem: String,
    },
    /// A system call failed.
    #[error("{call} failed: {cause}")]
    Os {
        /// The call.
        call: &'static str,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}
