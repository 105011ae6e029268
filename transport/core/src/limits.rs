//! Every limit of the transport, with its reason.
//!
//! Limits on what a peer may announce are constants of the protocol: both sides must agree on them,
//! so they are not configuration. The others are defaults, and a provider's configuration may say
//! otherwise where its documentation offers the knob.

use std::time::Duration;

/// Longest message, in bytes.
///
/// The largest message known above is a cache descriptor with an explicit shard map; at 16 bytes an
/// interval, 1 MiB holds 65 536 intervals, more than ranks × layers of any known deployment. It is
/// also what a peer can make us hold by a single header, once it has sent that many bytes.
pub const MAX_MESSAGE_BYTES: u32 = 1 << 20;

/// Largest batch payload, in bytes.
///
/// Past a few hundred KiB a larger batch no longer amortises anything: its header is 32 bytes and
/// its system calls move as much as the socket buffer holds. 4 MiB leaves room for one 16-token page
/// of the largest known cache to travel as a single batch, and bounds what a staged landing collects
/// per connection.
pub const MAX_BATCH_BYTES: u32 = 4 << 20;

/// Outgoing payload that one peer can have queued, in bytes; the default of the staging ring.
///
/// Two of the largest batches, so that one can be filled while the other leaves. A link of 100 Gb/s
/// with a round trip of 0.5 ms holds 6 MiB in flight, which the kernel's socket buffer adds to.
pub const STAGING_RING_BYTES: u32 = 2 * MAX_BATCH_BYTES;

/// Largest staging ring that can be configured, in bytes.
///
/// Positions in the ring are `u32`; 1 GiB keeps sums of two of them from overflowing.
pub const MAX_STAGING_RING_BYTES: u32 = 1 << 30;

/// Outgoing message bytes that one peer can have queued.
///
/// Apart from the staging ring, so that payload waiting for a slow peer never keeps a cancellation
/// from being queued. Two of the longest messages, so that one fits while another leaves.
pub const MESSAGE_RING_BYTES: u32 = 2 * MAX_MESSAGE_BYTES;

/// Outgoing messages that one peer can have queued.
///
/// Empty messages take no ring bytes, so their number needs a bound of its own. A peer with this
/// many unread control messages is not listening.
pub const MAX_QUEUED_MESSAGES: usize = 4096;

/// Outgoing batches that one peer can have queued.
///
/// As for messages: tiny batches would fill the queue of headers long before the ring.
pub const MAX_QUEUED_BATCHES: usize = 4096;

/// Peers of one interface.
///
/// An engine pair uses one connection, so this is a thousand engines. A peer costs a descriptor for
/// each of its lanes and some KiB; a thousand of the default limit of 1024 descriptors is why it is
/// not more.
pub const MAX_PEERS: usize = 1024;

/// How long an incoming connection may go without having sent one whole frame.
///
/// The side that connects speaks first. Whoever has not in 5 s is a port scanner, a half-open
/// connection or a peer too slow to serve, and would hold one of [`MAX_PEERS`] entries for ever.
/// Liveness after the first frame is the business of the layers above, which know what to expect.
pub const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an outgoing connection may take to be established.
///
/// Linux gives up on an address that swallows packets after two minutes (`tcp_syn_retries` 6). Three
/// retransmissions of the first packet fit in 5 s; who does not answer those will not answer.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a finishing connection may go without progress: without the peer taking a byte of what
/// is queued, and then without it closing its side.
pub const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a listener rests when the system cannot give it a connection (no descriptors, no
/// memory). Long enough not to spin, short enough not to be noticed by someone who connects.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections accepted before other peers get their turn.
///
/// A burst of connections must not starve those that are already there.
pub const ACCEPTS_PER_TURN: usize = 64;

/// Bytes read from one peer before the others get their turn.
///
/// At 5 GB/s a turn is 0.2 ms: what a heartbeat of another peer can be made to wait for each busy
/// peer. One turn costs one readiness query, which at 1 MiB is no longer measurable.
pub const READ_TURN_BYTES: usize = 1 << 20;

/// Bytes written to one peer before the others get their turn; as [`READ_TURN_BYTES`].
pub const WRITE_TURN_BYTES: usize = 1 << 20;

/// Read buffer of one connection, in bytes: how many small frames one system call can bring.
///
/// 64 KiB is some 2000 heartbeats, or what a 100 Gb/s link brings in 5 µs.
pub const READ_BUFFER_BYTES: usize = 64 << 10;

/// Bytes read past the end of a large payload, in the hope of the next header.
///
/// What comes along of the next payload has to be copied once more; 4 KiB is 2 % of a 256 KiB batch.
pub const READ_AHEAD_BYTES: usize = 4 << 10;

/// Pieces asked of the handler at once, and so vectors of one read.
///
/// 64 pieces of a 16-token page row (4 KiB) are 256 KiB, a whole usual batch; Linux allows 1024
/// vectors per call (`IOV_MAX`).
pub const MAX_PIECES: usize = 64;

/// Slices of one write: headers and payloads of up to half as many frames.
pub const MAX_WRITE_SLICES: usize = 64;

/// Queued bytes from which posting writes at once and does not wait for the next poll.
///
/// Below, collecting several frames in one system call pays; above, the link would idle while the
/// caller fills the next batch.
pub const EAGER_WRITE_BYTES: usize = 128 << 10;

/// Longest address, in bytes: the longest name of a host or of a socket's file, and what goes around it.
pub const MAX_ADDRESS_BYTES: usize = 512;

/// Names in one certificate.
///
/// A workload has one SPIFFE ID, a host a handful of DNS names; each is compared with every pattern.
pub const MAX_NAMES: usize = 16;

/// Patterns in one list of allowed peers: as many as the peers of a large cluster's prefixes, and few enough to compare
/// one after the other.
pub const MAX_PATTERNS: usize = 256;

/// Regions that one interface can have registered.
///
/// An engine registers its cache per layer and part: 2^16 is 128 ranks' worth of 256 layers and two parts in one
/// process. A registration costs some 100 bytes, and a slot of 40 bytes that peers on the same host can see.
pub const MAX_REGISTRATIONS: usize = 1 << 16;

/// Keys that can be imported from one peer: all that it can have registered.
pub const MAX_IMPORTS: usize = MAX_REGISTRATIONS;

/// Largest put or get, in bytes. Progress is counted in frames of it, whose number is a `u32`.
pub const MAX_OPERATION_BYTES: u64 = 1 << 40;

/// Operations in flight and completions not taken, of one interface.
///
/// A caller that has a thousand operations in hand is not waiting for the transport to take more; each holds its
/// lists of offsets until it ends.
pub const MAX_OPERATIONS: usize = 1024;

/// Gets of one peer that wait to be answered. More are refused as [`Busy`](crate::Refusal::Busy): what is kept of
/// each is its list of pieces, up to [`MAX_LIST_BYTES`].
pub const MAX_WAITING_GETS: usize = 64;

/// Connections that one peer's payload can be spread over.
///
/// A single stream fills a 100 Gb/s link with some 4 cores' worth of lanes; beyond 16 the switches' hashing, not the
/// number, decides how well a link is filled.
pub const MAX_LANES: u32 = 16;

/// Longest list of pieces in one frame, in bytes.
///
/// At 8 bytes an offset, 64 KiB are 8000 pieces: at 256 bytes each some 2 MiB of payload, so that the list stays 3 %
/// of what goes over the wire and the system call it costs is shared by as many.
pub const MAX_LIST_BYTES: u32 = 64 << 10;

/// Groups of a list of pieces in one frame: 2 for every layer of a large model is more than one request needs.
pub const MAX_LIST_GROUPS: usize = 256;

const _: () = assert!(READ_AHEAD_BYTES <= READ_BUFFER_BYTES);
const _: () = assert!(READ_BUFFER_BYTES >= 2 * crate::wire::HEADER_BYTES);
const _: () = assert!(MESSAGE_RING_BYTES <= MAX_STAGING_RING_BYTES);
