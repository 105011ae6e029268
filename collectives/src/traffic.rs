//! What a plan costs: bytes, chunks and runs of each pair.

use std::sync::Arc;

use serde::Serialize;

use crate::{
    execute::{Agreed, Runner},
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

/// The traffic of every pair. Costs time in proportion to runs, not to elements.
#[must_use]
pub fn traffic(agreed: &Arc<Agreed>) -> Vec<PairTraffic> {
    let agreement = &agreed.agreement;
    let one = |pair: &crate::plan::Pair| {
        let mut source = Runner::new(Arc::clone(agreed), pair, Role::Producer);
        let mut target = Runner::new(Arc::clone(agreed), pair, Role::Consumer);
        let step = |step: &crate::plan::Step| StepTraffic {
            component: agreement.spans[step.span].name.clone(),
            layers: step.layers.iter().map(|pair| pair.layer).collect(),
            heads: [step.heads.start, step.heads.end],
            tokens: 0,
        };
        let mut sum = PairTraffic {
            source: pair.source,
            target: pair.target,
            bytes_read: 0,
            bytes_wire: 0,
            bytes_written: 0,
            chunks: source.chunks().len() as u64,
            source_runs: 0,
            target_runs: 0,
            steps: pair.steps.iter().map(step).collect(),
        };
        for index in 0..source.chunks().len() {
            let chunk = source.chunks()[index];
            let step = &pair.steps[chunk.step as usize];
            let rows = u64::from(step.heads.end - step.heads.start) * u64::from(chunk.tokens.count);
            let bytes = agreement.carriages[step.span].row_bytes;
            sum.bytes_read += rows * bytes[0];
            sum.bytes_wire += rows * bytes[1];
            sum.bytes_written += rows * bytes[2];
            sum.source_runs += source.paged_runs(index);
            sum.target_runs += target.paged_runs(index);
            if chunk.layer == 0 {
                sum.steps[chunk.step as usize].tokens += u64::from(chunk.tokens.count);
            }
        }
        sum
    };
    agreement.pairs.iter().map(one).collect()
}
