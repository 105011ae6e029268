//! What a provider tells the layers above.

use std::io;

use moai_memory::Region;
use thiserror::Error;

use crate::wire::WireError;
use crate::{Batch, Identity, PeerId, Piece, PieceError};

/// Where the payload of a batch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums)] // A provider that overlooks a landing would lose payload.
pub enum Landing {
    /// The payload is collected in a bounded buffer and handed over whole.
    Staged,
    /// The payload is read straight into pieces of the handler's regions.
    Direct,
}

/// Why a handler refuses what the peer sent.
///
/// The connection is closed with [`Closed::Rejected`] and this text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Reject(
    /// The reason, for people.
    pub String,
);

/// Why a connection ended.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Closed {
    /// The peer ended the stream after a whole frame.
    #[error("the peer closed the connection")]
    ByPeer,
    /// The peer ended the stream inside a frame.
    #[error("the stream ended after {received} of {expected} bytes of a {what}")]
    Truncated {
        /// `"header"`, `"message"` or `"batch"`.
        what: &'static str,
        /// Bytes of it that arrived.
        received: u64,
        /// Bytes that it has.
        expected: u64,
    },
    /// The handler refused what the peer sent; this is its reason.
    #[error("rejected: {0}")]
    Rejected(String),
    /// The handler named pieces that cannot receive the payload. A bug on this side; nothing was
    /// read into the pieces that were refused.
    #[error("the payload has nowhere to go")]
    Misplaced(#[source] PieceError),
    /// What the peer sent is not this protocol, or not this version of it, or over a limit.
    #[error("the peer broke the protocol")]
    Protocol(#[source] WireError),
    /// The system reported a failure: connection refused or reset, no route, timed out.
    #[error("the connection failed: {0}")]
    Io(#[source] io::Error),
    /// An incoming connection sent no whole frame within the limit.
    #[error("no whole frame arrived in {limit_ms} ms")]
    Idle {
        /// The limit that passed.
        limit_ms: u64,
    },
    /// The peer could not prove who it is, or is someone whom this side does not let in; or the peer did not let us in.
    #[error("not authenticated: {0}")]
    Unauthenticated(#[source] Unauthenticated),
    /// A provider that was loaded gives a reason of its own, or broke the contract; the connection is of no use.
    #[error("the provider gave up: {0}")]
    Provider(String),
    /// This side finished the connection, and everything queued has gone out.
    #[error("closed by this side")]
    ByUs,
}

/// Why two sides did not come to trust each other. For this side alone: the peer is told no more than that it failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Unauthenticated {
    /// Its certificate was not signed by an authority of ours, has expired, or the like.
    #[error("the peer's certificate for {claimed} does not hold: {reason}; {way_out}")]
    Certificate {
        /// Names that it claims, unproved.
        claimed: String,
        /// What is wrong.
        reason: String,
        /// What would help.
        way_out: &'static str,
    },
    /// It is who it is, and nobody whom the list lets in.
    #[error(
        "the peer is {identity}, and allowed are {allowed}; add it to MOAI_ALLOW if it shall be"
    )]
    NotAllowed {
        /// What the peer has proved.
        identity: Identity,
        /// Who is let in.
        allowed: String,
    },
    /// It holds another key than this side.
    #[error("the peer holds another shared key; both sides need the same MOAI_SHARED_KEY_FILE")]
    OtherKey,
    /// A further connection of a peer comes from somebody else.
    #[error("a further connection to {expected} was answered by {found}")]
    OtherPeer {
        /// Who the first connection is with.
        expected: String,
        /// Who this one is with.
        found: String,
    },
    /// It speaks, but not TLS.
    #[error(
        "the peer speaks without TLS, and this side requires it; give the peer a certificate (MOAI_TLS_CERT) or the shared key (MOAI_SHARED_KEY_FILE)"
    )]
    Plain,
    /// It speaks TLS, and this side does not.
    #[error(
        "the peer speaks TLS, and this side has neither a certificate (MOAI_TLS_CERT) nor a shared key (MOAI_SHARED_KEY_FILE)"
    )]
    Secured,
    /// It has refused us; why, it keeps to itself.
    #[error("the peer refused this side as {us}: {alert}; its log says why")]
    Refused {
        /// Who we are.
        us: String,
        /// The little that TLS tells.
        alert: String,
    },
    /// It ended the connection before either side knew the other.
    #[error(
        "the peer ended the connection within the handshake; it may speak without TLS, or have refused this side: its log says why"
    )]
    Hung,
    /// The handshake took too long.
    #[error("the handshake was not over in {limit_ms} ms")]
    Late {
        /// The limit that passed.
        limit_ms: u64,
    },
    /// Anything else.
    #[error("the handshake failed: {reason}")]
    Handshake {
        /// What went wrong.
        reason: String,
    },
}

/// Receives what happens to the peers of an interface.
///
/// Called from within [`Interface::poll`](crate::Interface::poll) only. Callbacks must not block. For
/// every peer the order is `connected`, then frames, then one `closed`; for a connection that could
/// not be made, `closed` alone. After a callback returned [`Reject`], `closed` is the peer's next and
/// last callback.
pub trait Handler {
    /// A peer is there. `incoming` if it came to us; otherwise `peer` is what
    /// [`Interface::connect`](crate::Interface::connect) returned.
    fn connected(&mut self, peer: PeerId, incoming: bool);

    /// A message arrived.
    ///
    /// # Errors
    ///
    /// [`Reject`] ends the connection.
    fn message(&mut self, peer: PeerId, bytes: &[u8]) -> Result<(), Reject>;

    /// The header of a batch arrived: where shall its payload go?
    ///
    /// # Errors
    ///
    /// [`Reject`] ends the connection; no payload has been read into any region.
    fn landing(&mut self, peer: PeerId, batch: Batch) -> Result<Landing, Reject>;

    /// [`Landing::Direct`] only: appends the next pieces to `out`, which comes empty. The first one
    /// receives payload byte `from`, the others follow in wire order; at least one and at most `most`.
    ///
    /// Asked again, from where the last answer ended, until the pieces cover the payload. A piece is
    /// not empty, lies in its region and does not reach past the payload; otherwise the connection
    /// ends with [`Closed::Misplaced`].
    ///
    /// # Errors
    ///
    /// [`Reject`] ends the connection. Pieces given earlier may have been written.
    fn pieces(
        &mut self,
        peer: PeerId,
        batch: Batch,
        from: u32,
        most: usize,
        out: &mut Vec<Piece>,
    ) -> Result<(), Reject>;

    /// The regions that pieces refer to, and those that were registered, by their numbers.
    ///
    /// Lent until the call that asked for them returns: what a peer puts into registered memory, or gets from it, and
    /// what this side puts or gets, is copied only meanwhile. They stay the same from the `landing` of a batch until it
    /// has `landed` or the peer is closed, and as long as they are registered.
    fn regions(&mut self) -> &mut [Region];

    /// The whole payload has arrived. `staged` holds it if the landing was [`Landing::Staged`].
    ///
    /// # Errors
    ///
    /// [`Reject`] ends the connection.
    fn landed(&mut self, peer: PeerId, batch: Batch, staged: Option<&[u8]>) -> Result<(), Reject>;

    /// After [`Posted::Busy`](crate::Posted::Busy): there is room for what was refused.
    fn writable(&mut self, peer: PeerId);

    /// The connection is over, and `peer` is stale. Pieces of a batch that had not landed may have
    /// been written, in part or whole; nothing is written to them from here on.
    fn closed(&mut self, peer: PeerId, why: Closed);
}
