//! Sizes that this provider chooses.

use std::time::Duration;

use moai_transport::limits;
use moai_transport::wire::HEADER_BYTES;

/// Pieces from this length on go straight from and to regions; shorter ones are gathered and scattered by way of
/// a buffer.
///
/// Within a host, pieces of 4 KiB leave at 3.6 GB/s so, and at 1.8 GB/s gathered; they arrive a quarter faster than by way
/// of the buffer.
pub(crate) const DIRECT_PIECE_BYTES: u32 = 4 << 10;

/// Pieces up to this length are asked for before the system copies them: it goes through scattered ones no faster than
/// memory answers (4.2 against 4.0 GB/s at 4 KiB). Longer ones the processor foresees by itself.
pub(crate) const FORESEEN_PIECE_BYTES: usize = 16 << 10;

/// Bytes of a frame whose pieces are gathered: what it is gathered in stays in the second-level cache.
pub(crate) const STAGED_FRAME_BYTES: u32 = 128 << 10;

/// Bytes of a frame whose pieces go straight from regions.
pub(crate) const DIRECT_FRAME_BYTES: u32 = 1 << 20;

/// Most bytes of a frame from or to device memory: one job of a stream. Long enough that the job's own cost does not
/// count, short enough that several overlap within an operation of a few MiB. Longer frames to a device are refused.
pub(crate) const DEVICE_FRAME_BYTES: u32 = 256 << 10;

/// Frames that one connection may have between socket and device, each way: while one is sent, others are copied. With
/// the frame that is read or written, ten buffers of [`DEVICE_FRAME_BYTES`] for a connection that keeps both ways busy.
pub(crate) const COPIES: u32 = 4;

/// Vectors of one system call. Linux allows 1024; a frame of [`DIRECT_FRAME_BYTES`] has at most half as many.
pub(crate) const VECTORS: usize = 512;

/// Frames of puts that one connection may have unanswered. Their answers fit into [`ANSWER_BYTES`], so that a peer
/// that keeps to it is never made to wait for them.
pub(crate) const UNANSWERED_FRAMES: u32 = 1024;

/// Answers that can be queued for one connection. While there are more, nothing is read from it: it sends without
/// reading.
pub(crate) const ANSWER_BYTES: usize = 2 * UNANSWERED_FRAMES as usize * HEADER_BYTES;

/// Buffers, and lists, that an interface keeps for the next who needs one.
pub(crate) const KEPT_BUFFERS: usize = 16;

/// Largest buffer that is kept.
pub(crate) const KEPT_BYTES: usize = (STAGED_FRAME_BYTES + limits::MAX_LIST_BYTES) as usize * 2;

/// What sockets are read into, one for an interface: small frames and pieces are scattered from it while it is in the
/// second-level cache.
pub(crate) const READ_BYTES: usize = 128 << 10;

/// Largest file of certificates or of a key: some hundred authorities, and far from what would be felt.
pub(crate) const MAX_CREDENTIAL_BYTES: u64 = 1 << 20;

/// How long files of certificates are not looked at again: so a burst of connections looks once, and whoever has
/// exchanged a file need not wait.
pub(crate) const RELOAD_PAUSE: Duration = Duration::from_millis(500);

/// Ciphertext that one handshake can make us hold: the largest handshake message that the TLS library takes, and a record.
/// Nothing a peer says before it is known makes it more.
pub(crate) const HANDSHAKE_BYTES: usize = (64 << 10) + RECORD_BYTES;

/// Longest record on the wire: 2^14 bytes, what TLS 1.3 may add, and its header (RFC 8446, section 5.2).
pub(crate) const RECORD_BYTES: usize = (16 << 10) + 256 + 5;

/// Buffer for ciphertext of a connection that has just begun to read: a hello and some more, or some short messages.
pub(crate) const FIRST_BYTES: usize = 4 << 10;

/// Most ciphertext that is read at once: some records in each system call, and not more than the second-level cache has room
/// for beside their plaintext.
pub(crate) const SEALED_READ_BYTES: usize = 128 << 10;

/// Plaintext that is encrypted before it is written, so that encrypting and sending take turns.
pub(crate) const SEALED_WRITE_BYTES: usize = 128 << 10;

/// Connections that may be within their handshake at a time, of those that came to us. Each costs
/// [`HANDSHAKE_BYTES`] at most. More wait in the system's queue.
pub(crate) const MAX_HANDSHAKES: usize = 128;

/// How long a handshake may take while others wait to begin theirs. A round trip across the world, and some arithmetic.
pub(crate) const HANDSHAKE_GRACE: Duration = Duration::from_secs(1);

/// How long a connection keeps memory for the next large frame. Long beside the pause between two transfers, short
/// beside the life of a connection.
pub(crate) const SWEEP_PAUSE: Duration = Duration::from_secs(1);
