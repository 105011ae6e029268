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
pub const MAX_PARTS: usize = 65_536;
/// Obstacles that a refusal lists; of more, it says how many.
pub const MAX_OBSTACLES: usize = 256;
/// Tokens of a request, and slots of a page: indices stay in `u32` with room for sums.
pub const MAX_TOKENS: u32 = 1 << 30;
/// Bytes of a description file. 4096 ranks with page lists of a million pages are the longest.
pub const MAX_DESCRIPTION_BYTES: u64 = 256 << 20;
/// Bytes of a chunk on the wire: two of them, before and after conversion, fit a 1 MiB L2 with room
/// for the pages they come from.
pub const CHUNK_BYTES: u64 = 256 << 10;
