//! What a provider offers to the layers above.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use moai_memory::Region;

use crate::{
    Address, Capabilities, Completion, Error, Handler, Identity, PeerId, Pieces, RegistrationId,
    Rights, Stats,
};

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
    /// Finished before the call returned; no completion will follow.
    ///
    /// A put has been placed, a get is in the local pieces. Of a message or batch it says that the caller's bytes
    /// have been taken, and nothing about the peer: if the connection ends first, [`Handler::closed`] is what tells.
    Done,
    /// Accepted; one [`Completion`] carrying this token will follow. Until then the caller leaves the local pieces
    /// alone.
    InFlight(Token),
    /// Nothing was posted: a queue is full. For messages and batches [`Handler::writable`] follows when it is worth
    /// posting again; for puts and gets a completion, once taken, makes room.
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
    pub local: Option<Address>,
    /// The peer's end.
    pub peer: Address,
    /// For people: what this path does with the bytes, and what it had to settle for.
    pub why: String,
    /// Whether something faster was there and could not be had.
    pub is_fallback: bool,
}

/// A provider opened for one thread: its connections, their queues, and one place to wait.
///
/// Only [`poll`](Self::poll) waits and only `poll` calls the handler. Everything else queues work, does what it can at
/// once, and returns; bytes leave at the latest in the next `poll`.
///
/// # One-sided operations
///
/// Memory is registered by its number among the regions that the caller lends: in every call that takes `memory`, and
/// in [`Handler::regions`] during a poll. What the provider itself copies, it copies only while it is lent; so the
/// language rules out that someone looks at a region meanwhile. Where the peer, or hardware, reaches memory by itself,
/// that is outside of what the language sees: whoever has given out a key with [`Rights::WRITE`] does not look at that
/// memory before the peer has said that it is done, and one with [`Rights::READ`] does not change it.
///
/// Nothing is promised about the order in which operations are placed, not even those to one peer. What must come
/// after waits for a completion, or for [`flush`](Self::flush).
///
/// Operations in flight and completions that were not taken are together at most
/// [`MAX_OPERATIONS`](crate::limits::MAX_OPERATIONS). Every operation ends: when a connection ends, those on it
/// complete with [`Fault::PeerLost`](crate::Fault::PeerLost).
pub trait Interface: fmt::Debug {
    /// Name of the provider, such as `"tcp"`.
    fn name(&self) -> &'static str;

    /// What the interface can do.
    fn capabilities(&self) -> &Capabilities;

    /// Where peers can connect, for each way in which the interface listens; as they are to be told to peers, with the
    /// port that the system chose where the configuration left it open.
    fn addresses(&self) -> Vec<Address>;

    /// Starts connecting to `address`. Never blocks. [`Handler::connected`] or [`Handler::closed`]
    /// follows; frames can be queued before.
    ///
    /// The side that connects speaks first: a listening interface drops a connection that has not
    /// sent a whole frame in [`FIRST_FRAME_TIMEOUT`](crate::limits::FIRST_FRAME_TIMEOUT).
    ///
    /// # Errors
    ///
    /// - [`Error::TooManyPeers`] if the table of peers is full.
    /// - [`Error::Unreachable`] if the address is another provider's or makes no sense to this one.
    /// - [`Error::Os`] if the system refuses at once, as for an unreachable network.
    fn connect(&mut self, address: &Address) -> Result<PeerId, Error>;

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

    /// Registers `region`, which the caller lends as number `index` from now on. The same memory again with the same
    /// rights is the same registration, counted.
    ///
    /// # Errors
    ///
    /// - [`Error::TooManyRegistrations`] if the table is full.
    /// - [`Error::Unsupported`] for a kind of memory, or rights, that this provider cannot give.
    fn register(
        &mut self,
        index: u32,
        region: &Region,
        rights: Rights,
    ) -> Result<RegistrationId, Error>;

    /// Takes back one registering. After the last one, keys of it are refused, and no peer's operation touches the
    /// memory any more when this returns. Memory that a peer has mapped stays mapped there until the peer lets go:
    /// it is not given back to the system before.
    ///
    /// # Errors
    ///
    /// [`Error::NotRegistered`] for a stale id.
    fn deregister(&mut self, id: RegistrationId) -> Result<(), Error>;

    /// The bytes by which `peer` can address registered memory; they are sent to it in a message.
    ///
    /// # Errors
    ///
    /// - [`Error::NotRegistered`] for a stale id.
    /// - [`Error::NoSuchPeer`] for a stale peer.
    fn remote_key(
        &self,
        peer: PeerId,
        id: RegistrationId,
    ) -> Result<[u8; crate::key::KEY_BYTES], Error>;

    /// Takes a key that `peer` has sent. Returns the number by which remote pieces name its memory, good as long as
    /// the connection.
    ///
    /// # Errors
    ///
    /// - [`Error::Key`] if the bytes are no key.
    /// - [`Error::TooManyImports`] if the table is full.
    /// - [`Error::NoSuchPeer`] for a stale peer.
    fn import(&mut self, peer: PeerId, key: &[u8]) -> Result<u32, Error>;

    /// Writes the local pieces, end to end, into the peer's pieces.
    ///
    /// The lists may be cut differently; only their bytes are equal in number. They are copied where the operation
    /// outlasts the call.
    ///
    /// # Errors
    ///
    /// All depend on arguments, and nothing was written:
    ///
    /// - [`Error::NoSuchPeer`], [`Error::Finishing`] if the peer cannot be reached.
    /// - [`Error::NotLent`], [`Error::NotImported`], [`Error::Pieces`], [`Error::Unequal`] if the lists cannot be.
    /// - [`Error::Refused`] if the key itself says that the peer will refuse.
    /// - [`Error::TooLarge`] beyond [`MAX_OPERATION_BYTES`](crate::limits::MAX_OPERATION_BYTES).
    /// - [`Error::Unsupported`] for a kind of memory that the provider cannot reach.
    fn put(
        &mut self,
        memory: &mut [Region],
        peer: PeerId,
        local: &[Pieces<'_>],
        remote: &[Pieces<'_>],
        token: Token,
    ) -> Result<Posted, Error>;

    /// Reads the peer's pieces, end to end, into the local pieces. As [`put`](Self::put) otherwise.
    ///
    /// # Errors
    ///
    /// As there.
    fn get(
        &mut self,
        memory: &mut [Region],
        peer: PeerId,
        local: &[Pieces<'_>],
        remote: &[Pieces<'_>],
        token: Token,
    ) -> Result<Posted, Error>;

    /// The peer's memory as a region of this process, for loading only: good as long as the region returned, whatever
    /// becomes of the connection. Its bytes are the peer's to change.
    ///
    /// # Errors
    ///
    /// - [`Error::Unsupported`] if the provider cannot, or cannot for that kind of memory.
    /// - [`Error::Refused`] without [`Rights::MAP`], or when the registration is gone.
    /// - [`Error::NoSuchPeer`], [`Error::NotImported`], [`Error::Os`].
    fn map(&mut self, peer: PeerId, remote: u32) -> Result<Region, Error>;

    /// Completes when every put and get posted to the peer before it has ended.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchPeer`] for a stale peer.
    fn flush(&mut self, peer: PeerId, token: Token) -> Result<Posted, Error>;

    /// The oldest completion that was not taken yet.
    fn completion(&mut self) -> Option<Completion>;

    /// Waits at most `timeout` (with `None`, until something happens), then runs the handler for what
    /// happened.
    ///
    /// May return early with nothing to show for it; a caller with a deadline of its own looks at its
    /// clock. One call does a bounded amount of work for each peer. Does not wait while there are completions to take.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if the system cannot wait. Trouble with one peer is never an error here, it is
    /// that peer's [`Handler::closed`].
    fn poll(&mut self, timeout: Option<Duration>, handler: &mut dyn Handler) -> Result<(), Error>;

    /// A descriptor that becomes readable when a poll has something to do, for those who wait for several things at
    /// once. Only after [`arm`](Self::arm).
    fn as_fd(&self) -> BorrowedFd<'_>;

    /// Announces that the caller is about to wait for [`as_fd`](Self::as_fd) to become readable, and says how long it
    /// may: zero if there is something to do at once, `None` as long as it likes. Calls of anything else end it.
    fn arm(&mut self) -> Option<Duration>;

    /// Drops the connection now, with everything queued. Its [`Handler::closed`] is not called, its operations complete
    /// with [`Fault::PeerLost`](crate::Fault::PeerLost), and no byte of it is read into any region afterwards. A stale
    /// id is ignored.
    fn close(&mut self, peer: PeerId);

    /// Sends what is queued, then closes. [`Handler::closed`] with [`Closed::ByUs`] follows when that
    /// is done, or with the reason why it could not be. Nothing that the peer sends is delivered any
    /// more; operations in flight complete with [`Fault::PeerLost`](crate::Fault::PeerLost). A stale id is ignored.
    ///
    /// [`Closed::ByUs`]: crate::Closed::ByUs
    fn finish(&mut self, peer: PeerId);

    /// What carries the bytes to `peer`, and why; `None` for a stale id.
    fn path(&self, peer: PeerId) -> Option<Path>;

    /// Who the peer has proved to be; `None` for a stale id, and where nobody proves anything: without a certificate or
    /// key, and between processes of one host.
    fn identity(&self, _peer: PeerId) -> Option<Identity> {
        None
    }

    /// Counters since the interface was opened.
    fn stats(&self) -> Stats;
}
