//! What a provider offers to the layers above.

use std::net::SocketAddr;
use std::time::Duration;

use crate::{Error, Handler, PeerId, Stats};

/// The caller's name for an operation that has been posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(
    /// Unique among the operations that are in flight on one interface.
    pub u64,
);

/// Outcome of posting an operation.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums)] // A caller that overlooks an outcome loses or repeats an operation.
pub enum Posted {
    /// The caller's bytes have been taken; no completion will follow.
    ///
    /// This says nothing about the peer. If the connection ends first,
    /// [`Handler::closed`] is what tells.
    Done,
    /// Accepted; one completion carrying this token will follow. Only of providers that read the
    /// caller's memory after the call; TCP copies and never returns it.
    InFlight(Token),
    /// Nothing was posted: the queue is full. [`Handler::writable`] follows when it is worth
    /// posting again.
    Busy,
}

/// Header of one batch, as the layers above see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Batch {
    /// The sender's name for the batch; carried, never interpreted.
    pub id: u64,
    /// Payload length. At most [`MAX_BATCH_BYTES`](crate::limits::MAX_BATCH_BYTES); may be zero.
    pub bytes: u32,
}

/// What carries the bytes to one peer, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Name of the provider, as [`Interface::name`].
    pub provider: &'static str,
    /// Our end, once it is known.
    pub local: Option<SocketAddr>,
    /// The peer's end.
    pub peer: SocketAddr,
    /// For people: what this path does with the bytes, and what it had to settle for.
    pub why: String,
}

/// A provider opened for one thread: its connections, their queues, and one place to wait.
///
/// Only [`poll`](Self::poll) waits and only `poll` calls the handler. Everything else queues work and
/// returns; bytes leave at the latest in the next `poll`.
pub trait Interface {
    /// Name of the provider, such as `"tcp"`.
    fn name(&self) -> &'static str;

    /// The address on which peers can connect, if the interface listens. With the port that the
    /// system chose, where the configuration left it open.
    fn local_address(&self) -> Option<SocketAddr>;

    /// Starts connecting to `address`. Never blocks. [`Handler::connected`] or [`Handler::closed`]
    /// follows; frames can be queued before.
    ///
    /// The side that connects speaks first: a listening interface drops a connection that has not
    /// sent a whole frame in [`FIRST_FRAME_TIMEOUT`](crate::limits::FIRST_FRAME_TIMEOUT).
    ///
    /// # Errors
    ///
    /// - [`Error::TooManyPeers`] if the table of peers is full.
    /// - [`Error::Os`] if the system refuses at once, as for an unreachable network.
    fn connect(&mut self, address: SocketAddr) -> Result<PeerId, Error>;

    /// Queues a message. It is copied, and may be empty.
    ///
    /// # Errors
    ///
    /// - [`Error::NoSuchPeer`], [`Error::Finishing`] if the peer cannot be sent to.
    /// - [`Error::TooLarge`] if it is longer than
    ///   [`MAX_MESSAGE_BYTES`](crate::limits::MAX_MESSAGE_BYTES).
    fn send(&mut self, peer: PeerId, message: &[u8]) -> Result<Posted, Error>;

    /// Queues a batch: reserves `batch.bytes` contiguous bytes of the peer's staging memory, calls
    /// `fill` on them once, and sends them behind one header.
    ///
    /// The bytes given to `fill` hold leftovers of earlier batches; `fill` writes all of them. When
    /// there is no room the answer is [`Posted::Busy`] and `fill` has not been called.
    ///
    /// # Errors
    ///
    /// - [`Error::NoSuchPeer`], [`Error::Finishing`] if the peer cannot be sent to.
    /// - [`Error::TooLarge`] if the batch is larger than
    ///   [`MAX_BATCH_BYTES`](crate::limits::MAX_BATCH_BYTES) or than the whole staging memory.
    fn post(
        &mut self,
        peer: PeerId,
        batch: Batch,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<Posted, Error>;

    /// Waits at most `timeout` (with `None`, until something happens), then runs the handler for what
    /// happened.
    ///
    /// May return early with nothing to show for it; a caller with a deadline of its own looks at its
    /// clock. One call does a bounded amount of work for each peer.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if the system cannot wait. Trouble with one peer is never an error here, it is
    /// that peer's [`Handler::closed`].
    fn poll(&mut self, timeout: Option<Duration>, handler: &mut dyn Handler) -> Result<(), Error>;

    /// Drops the connection now, with everything queued. Its [`Handler::closed`] is not called, and no
    /// byte of it is read into any region afterwards. A stale id is ignored.
    fn close(&mut self, peer: PeerId);

    /// Sends what is queued, then closes. [`Handler::closed`] with [`Closed::ByUs`] follows when that
    /// is done, or with the reason why it could not be. Nothing that the peer sends is delivered any
    /// more. A stale id is ignored.
    ///
    /// [`Closed::ByUs`]: crate::Closed::ByUs
    fn finish(&mut self, peer: PeerId);

    /// What carries the bytes to `peer`, and why; `None` for a stale id.
    fn path(&self, peer: PeerId) -> Option<Path>;

    /// Counters since the interface was opened.
    fn stats(&self) -> Stats;
}
