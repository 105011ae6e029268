//! From a producer's pages straight to a consumer's, where one process can address both.

use std::sync::Arc;

use moai_memory::Region;
use moai_translate::{
    format::Counts,
    program::{Conversions, Program},
};

use super::{Requested, pages_of, source_place, sum::Sum, target_place};
use crate::{
    digest::DigestKey,
    negotiate::Role,
    plan::{Chunks, Pair},
};

/// A pair's programs from pages to pages: every byte is read once, converted on the way, and written once.
#[derive(Debug)]
pub struct PageCopy {
    requested: Arc<Requested>,
    pair: Pair,
    chunks: Chunks,
    steps: Vec<Prepared>,
}

#[derive(Debug)]
struct Prepared {
    program: Program,
    /// From end to end, by layer of the step.
    conversions: Vec<Conversions>,
}

impl PageCopy {
    /// Compiles a pair, as part of a move that writes `bytes_written` in all: of one that no cache holds, pages are
    /// stored past the caches.
    #[must_use]
    pub fn new(requested: &Arc<Requested>, pair: &Pair, bytes_written: u64) -> Self {
        let agreed = requested.agreed();
        let agreement = &agreed.agreement;
        let prepare = |step: &crate::plan::Step| {
            let whole = |pair: &crate::plan::LayerPair| {
                agreement.whole_conversions(step.span, pair.layer, step.heads.clone())
            };
            let conversions: Vec<Conversions> = step.layers.iter().map(whole).collect();
            let program = Program::new(
                pages_of(agreed, pair, step, Role::Producer),
                pages_of(agreed, pair, step, Role::Consumer),
                step.heads.end - step.heads.start,
                agreement.spans[step.span].dim,
                conversions[0].any(),
            )
            .as_part_of(bytes_written);
            Prepared {
                program,
                conversions,
            }
        };
        Self {
            chunks: requested.chunks(pair),
            steps: pair.steps.iter().map(prepare).collect(),
            pair: pair.clone(),
            requested: Arc::clone(requested),
        }
    }

    /// Goes on to another request of the same two sides, as part of a move that writes `bytes_written` in all.
    pub fn take(&mut self, requested: &Arc<Requested>, bytes_written: u64) {
        requested.chunks_into(&self.pair, &mut self.chunks);
        self.requested = Arc::clone(requested);
        for step in &mut self.steps {
            step.program.be_part_of(bytes_written);
        }
    }

    /// The parts in which it is done, the same as those of a [`Runner`](super::Runner).
    #[must_use]
    pub fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    /// Carries a chunk from the producer rank's pool to the consumer rank's.
    ///
    /// # Panics
    ///
    /// If there are not so many chunks, or a pool is not its rank's.
    pub fn copy(&mut self, index: usize, source: &[Region], target: &mut [Region]) -> Counts {
        let chunk = &self.chunks.get(index).expect("a chunk of the pair");
        let Prepared {
            program,
            conversions,
        } = &mut self.steps[chunk.step as usize];
        program.run(
            &conversions[chunk.layer as usize],
            chunk.tokens.count,
            source_place(&self.requested, &self.pair, chunk),
            target_place(&self.requested, &self.pair, chunk),
            source,
            target,
        )
    }

    /// As [`copy`](Self::copy), and digests what it writes in the same pass: rows in the consumer's format.
    ///
    /// # Panics
    ///
    /// As `copy`, and if the key was made for shorter rows.
    pub fn copy_digested(
        &mut self,
        index: usize,
        source: &[Region],
        target: &mut [Region],
        key: &DigestKey,
    ) -> (Counts, u64) {
        let chunk = &self.chunks.get(index).expect("a chunk of the pair");
        let Prepared {
            program,
            conversions,
        } = &mut self.steps[chunk.step as usize];
        let mut sum = Sum::of(&self.pair, chunk, key);
        let counts = program.run_observed(
            &conversions[chunk.layer as usize],
            chunk.tokens.count,
            source_place(&self.requested, &self.pair, chunk),
            target_place(&self.requested, &self.pair, chunk),
            source,
            target,
            &mut sum,
        );
        (counts, sum.total())
    }
}
