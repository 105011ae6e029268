//! Every bound on what a description or a peer may size, with its reason.

/// Ranks of one side. The largest public fleets shard one instance over a few hundred.
pub const MAX_RANKS: u32 = 4096;
/// Layers of a model. The deepest public models have 126.
pub const MAX_LAYERS: u32 = 4096;
/// Components of a side: keys, values, latents, indexers, states and their scales.
pub const MAX_COMPONENTS: usize = 64;
/// Groups of layers with page lists of their own.
pub const MAX_GROUPS: usize = 64;
/// Global heads of a component.
pub const MAX_HEADS: u32 = 65_536;
/// Elements of a row. A state page carried as one row is the longest.
pub const MAX_DIM: u32 = 1 << 24;
/// Regions of a rank: a K and a V tensor for each of [`MAX_LAYERS`] layers, eight times over.
pub const MAX_REGIONS: u64 = 65_536;
/// Regions of all ranks of a side: a descriptor names each.
pub const MAX_SIDE_REGIONS: u64 = 1 << 20;
/// Layers × components × ranks of a side: a descriptor lists what each rank owns of each component. A
/// side of 512 ranks with 126 layers and 16 components has a million.
pub const MAX_OWNED: u64 = 1 << 24;
/// Context parallel ranks. Engines use up to 64; plans look at every pair of them.
pub const MAX_CP: u32 = 256;
/// Chunks of all pairs of a request: a consumer notes of each whether it has landed. A quarter of a TiB at
/// [`CHUNK_BYTES`].
pub const MAX_CHUNKS: u64 = 1 << 20;
/// Steps × layers of a pair that a request moves: each has a sum of digests, and one message carries those of a pair.
pub const MAX_STEP_LAYERS: usize = 65_536;
/// Obstacles that a refusal lists; of more, it says how many.
pub const MAX_OBSTACLES: usize = 256;
/// Tokens of a request, and slots of a page: indices stay in `u32` with room for sums.
pub const MAX_TOKENS: u32 = 1 << 30;
/// Bytes of a description file. 4096 ranks with page lists of a million pages are the longest.
pub const MAX_DESCRIPTION_BYTES: u64 = 256 << 20;
/// Bytes of a chunk on the wire: two of them, before and after conversion, fit a 1 MiB L2 with room
/// for the pages they come from.
pub const CHUNK_BYTES: u64 = 256 << 10;

/// Bytes of an engine's name. A Kubernetes pod has 63 and a suffix.
pub const MAX_ENGINE_NAME: usize = 96;
/// Bytes of a handle before it is written as text: two engine names, 112 bytes of fields and seal.
pub const MAX_HANDLE_BYTES: usize = 2 * MAX_ENGINE_NAME + 112;
/// Bytes of a text in a message. Reasons are for people; more than this is no sentence.
pub const MAX_TEXT_BYTES: usize = 1024;
/// Ranks of one node. Engines run one process a rank, or one a host of 8 or 16 devices.
pub const MAX_NODE_RANKS: usize = 256;
/// Engines that a node knows. The largest fleets pair a few hundred.
pub const MAX_ENGINES: usize = 4096;
/// Engines that nobody told of and nothing links to any more, whose lives are remembered.
pub const MAX_FORMER_ENGINES: usize = 256;
/// Agreements that are kept while nothing links to their engine: each holds the plans of a pair of engines.
pub const MAX_IDLE_DESCRIPTORS: usize = 256;
/// Links of a node: the nodes of a few hundred engines that talk to it at once.
pub const MAX_LINKS: usize = 16_384;
/// Bytes of a descriptor on a link. Page lists are no part of it; 512 ranks with 126 layers in JSON are the longest.
pub const MAX_DESCRIPTOR_BYTES: usize = 64 << 20;
/// Bytes of a descriptor in one message: half of the transport's longest, so that two fit its queue.
pub const DESCRIPTOR_PART_BYTES: usize = 512 << 10;
/// Descriptors that arrive at the same time. Each holds what has arrived of it, for as long as a greeting may last.
pub const MAX_DESCRIBING: usize = 8;
/// Pulls of one link that are served or wait for their offer. Schedulers admit a few hundred requests at once.
pub const MAX_SERVES_PER_LINK: usize = 4096;
/// Offers of a node that are not released: a page each would fill the largest pools.
pub const MAX_OFFERS: usize = 65_536;
/// Grants of a node that are not released; as for offers.
pub const MAX_GRANTS: usize = 65_536;
/// Transfers of a node that go on, fences awaited among them; as for offers.
pub const MAX_PULLS: usize = 65_536;
/// Pairs of ranks in one transfer of a node: every rank of a large producer, twice over.
pub const MAX_PARTS: usize = 8192;
/// Ended offers and grants whose numbers a node remembers, to say why a handle is of no use any more.
pub const MAX_ENDED: usize = 65_536;
/// Earlier lives of an engine that are remembered, so that none of them comes back: a crash loop of an hour at one a minute.
pub const MAX_RETIRED_EPOCHS: usize = 64;
/// Keys of regions in one message: half of the transport's longest, so that two fit its queue.
pub const MAX_KEYS_PER_MESSAGE: usize = 7000;
/// Digests in one message; as for keys.
pub const MAX_SUMS_PER_MESSAGE: usize = 65_000;
/// Pages in one message; as for keys.
pub const MAX_PAGES_PER_MESSAGE: usize = 130_000;
/// Pages that a producer lists of a part whose pages are mapped. As many tokens in pages of one slot are the longest context.
pub const MAX_LENT_PAGES: u64 = 1 << 24;
/// Longest time that a pull may ask to be served for, in milliseconds: an hour. A lease is extended for it.
pub const MAX_PULL_MS: u32 = 3_600_000;
/// Bytes of messages that wait to be sent on one link: the longest descriptor, and what else is said meanwhile. A peer
/// that takes none of them is cut off.
pub const MAX_UNSENT_BYTES: usize = MAX_DESCRIPTOR_BYTES + (8 << 20);
/// How long a link that is being closed may take to send what is queued: a peer that reads takes it at once.
pub const CLOSE_NS: u64 = 1_000_000_000;
/// How long a chunk waits for room on the device with its pages before the transfer fails: a device is busy for
/// milliseconds, and while a chunk waits the node says nothing to its peers.
pub const DEVICE_PATIENCE_MS: u64 = 1000;
/// Programs of pairs of ranks that are kept for the next request.
pub const MAX_KEPT_RUNNERS: usize = 256;
