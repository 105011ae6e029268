//! Every bound on what a directory, a file, a name server, whoever asks for metrics or nobody who asks for events may size,
//! with its reason.

/// Nodes of one engine: as many as ranks of a side, for a node holds at least one.
pub const MAX_NODES: usize = 4096;
/// Addresses of one node: every provider on each of eight networks.
pub const MAX_NODE_ADDRESSES: usize = 32;
/// Bytes of one node's entry: its addresses at their longest, its ranks, and room for fields of later versions.
pub const MAX_ENTRY_BYTES: usize = 48 << 10;
/// Bytes of a directory file: engines × nodes of a fleet of 16,000 nodes at a kilobyte each.
pub const MAX_DIRECTORY_FILE_BYTES: usize = 16 << 20;
/// Bytes that a directory server answers at most: every node of one engine at a kilobyte each, in base64.
pub const MAX_DIRECTORY_ANSWER_BYTES: u64 = 8 << 20;
/// Engines that one process looks up. Each costs a question a round.
pub const MAX_WATCHED_ENGINES: usize = 1024;
/// Nodes that one process announces: one for each of its engines.
pub const MAX_ANNOUNCED: usize = 64;
/// Name servers that are asked in turn, as in the C library.
pub const MAX_NAME_SERVERS: usize = 3;
/// Bytes of a name server's answer over TCP: what its length field can say.
pub const MAX_DNS_ANSWER_BYTES: usize = 65_535;
/// Requests for metrics that are answered at once: a few scrapers, and people.
pub const MAX_HTTP_CONNECTIONS: usize = 8;
/// Bytes of such a request's head: scrapers send a few hundred.
pub const MAX_HTTP_REQUEST_BYTES: usize = 8 << 10;
/// Lines of such a head.
pub const MAX_HTTP_HEADERS: usize = 64;
/// Events of an engine that wait until they are asked for: minutes of a busy engine, and some ten MiB.
pub const MAX_WAITING_EVENTS: usize = 65_536;
