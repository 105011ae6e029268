//! Who sends what to whom.
//!
//! A plan is compiled once for a pair of descriptors and knows nothing of a request. It intersects what
//! ranks own by interval: for every row that a consumer rank owns, exactly one producer rank is chosen
//! to send it, and among replicas the choice goes to the one with the least to send. Sizes that do not
//! divide, replication on either side and uneven pipelines are no cases of their own.

mod chunks;
mod compile;

use std::ops::Range;

pub use chunks::{Chunk, Chunks};
pub use compile::compile;

/// Dims that a component of each side has in common, carried together.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Span {
    /// Name, with dims where they are a part only: `latent[0..512]`.
    pub name: String,
    /// Component of the producer.
    pub source: usize,
    /// Component of the consumer.
    pub target: usize,
    /// First element within the producer's row.
    pub source_first: u32,
    /// First element within the consumer's row.
    pub target_first: u32,
    /// Elements.
    pub dim: u32,
}

/// A global layer, and where it stands on each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct LayerPair {
    /// Global layer.
    pub layer: u32,
    /// Along the producer component's `layer` axis.
    pub source: u32,
    /// Along the consumer component's `layer` axis.
    pub target: u32,
}

/// A box of rows that goes from one rank to another: layers × heads × the tokens both hold.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Step {
    /// Index of the span.
    pub span: usize,
    /// Layers.
    pub layers: Vec<LayerPair>,
    /// Global heads.
    pub heads: Range<u32>,
    /// Page list on the producer.
    pub source_group: usize,
    /// Page list on the consumer.
    pub target_group: usize,
}

/// Everything that one producer rank sends to one consumer rank.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pair {
    /// Producer rank.
    pub source: u32,
    /// Consumer rank.
    pub target: u32,
    /// In the order in which they are sent.
    pub steps: Vec<Step>,
}

/// Rows of a consumer rank that no producer rank holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hole {
    /// Consumer rank.
    pub target: u32,
    /// Index of the span.
    pub span: usize,
    /// Global layers.
    pub layers: Vec<u32>,
    /// Global heads.
    pub heads: Range<u32>,
    /// Context parallel rank whose tokens are missing, of how many.
    pub cp: (u32, u32),
}
