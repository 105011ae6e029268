//! What a plan costs: bytes, chunks and runs of each pair.

use std::sync::Arc;

use serde::Serialize;

use crate::{
    execute::{Requested, Runner},
    negotiate::Role,
};

/// What one producer rank sends to one consumer rank, for the request at hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PairTraffic {
    /// Producer rank.
    pub source: u32,
    /// Consumer rank.
    pub target: u32,
    /// Bytes of rows in the producer's format.
    pub bytes_read: u64,
    /// Bytes of rows in the exchange format.
    pub bytes_wire: u64,
    /// Bytes of rows in the consumer's format.
    pub bytes_written: u64,
    /// Pieces on the wire.
    pub chunks: u64,
    /// Contiguous runs in the producer's pages.
    pub source_runs: u64,
    /// Contiguous runs in the consumer's pages.
    pub target_runs: u64,
    /// What goes, step by step.
    pub steps: Vec<StepTraffic>,
}

/// One step of a pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StepTraffic {
    /// Component, or the dims of one.
    pub component: String,
    /// Global layers.
    pub layers: Vec<u32>,
    /// Global heads, half-open.
    pub heads: [u32; 2],
    /// Tokens.
    pub tokens: u64,
}

impl StepTraffic {
    fn is_some(&self) -> bool {
        !self.layers.is_empty() && self.tokens > 0
    }
}

/// The traffic of every pair. Costs time in proportion to runs, not to elements.
#[must_use]
pub fn traffic(requested: &Arc<Requested>) -> Vec<PairTraffic> {
    let agreement = &requested.agreed().agreement;
    let one = |pair: &crate::plan::Pair| {
        let mut source = Runner::new(requested, pair, Role::Producer);
        let mut target = Runner::new(requested, pair, Role::Consumer);
        let step = |(index, step): (usize, &crate::plan::Step)| {
            let (layers, tokens) = source.chunks().step(index);
            let layers = layers.iter().map(|&at| step.layers[at as usize].layer);
            StepTraffic {
                component: agreement.spans[step.span].name.clone(),
                layers: layers.collect(),
                heads: [step.heads.start, step.heads.end],
                tokens,
            }
        };
        let steps: Vec<StepTraffic> = pair.steps.iter().enumerate().map(step).collect();
        let mut sum = PairTraffic {
            source: pair.source,
            target: pair.target,
            bytes_read: 0,
            bytes_wire: 0,
            bytes_written: 0,
            chunks: source.chunks().len() as u64,
            source_runs: 0,
            target_runs: 0,
            // A step of which no layer or token is moved is not seen.
            steps: steps.into_iter().filter(StepTraffic::is_some).collect(),
        };
        for index in 0..source.chunks().len() {
            let bytes = source.row_bytes(index);
            sum.bytes_read += bytes[0];
            sum.bytes_wire += bytes[1];
            sum.bytes_written += bytes[2];
            sum.source_runs += source.paged_runs(index);
            sum.target_runs += target.paged_runs(index);
        }
        sum
    };
    agreement.pairs.iter().map(one).collect()
}
