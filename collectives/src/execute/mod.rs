//! Runs plans: from a producer's pages to the wire, from the wire to a consumer's pages, or straight
//! from one to the other.

mod page_copy;
mod requested;
mod runner;
mod sum;

use std::sync::Arc;

use moai_memory::Region;
use moai_translate::{
    format::Counts,
    program::{Place, Progression, Side},
};

use crate::{
    descriptor::Descriptor,
    negotiate::{Agreement, Refusal, Role, negotiate},
    plan::{Chunk, Pair, Step},
};

pub use page_copy::PageCopy;
pub use requested::Requested;
pub use runner::{Runner, Runs};

/// The memory of one rank, in the order in which its layouts number regions.
pub type Pool = Vec<Region>;

/// What both sides know of each other before there is a request.
#[derive(Clone, Debug)]
#[allow(
    clippy::exhaustive_structs,
    reason = "two sides and what they agreed on"
)]
pub struct Agreed {
    /// The side that holds the cache.
    pub producer: Descriptor,
    /// The side that receives it.
    pub consumer: Descriptor,
    /// What they agreed on.
    pub agreement: Agreement,
}

impl Agreed {
    /// Negotiates.
    ///
    /// # Errors
    ///
    /// [`Refusal`], with every obstacle.
    pub fn new(producer: Descriptor, consumer: Descriptor) -> Result<Self, Refusal> {
        let agreement = negotiate(&producer, &consumer)?;
        Ok(Self {
            producer,
            consumer,
            agreement,
        })
    }

    /// One side.
    #[must_use]
    pub fn side(&self, role: Role) -> &Descriptor {
        match role {
            Role::Producer => &self.producer,
            Role::Consumer => &self.consumer,
        }
    }

    /// Producer and consumer.
    #[must_use]
    pub fn sides(&self) -> [&Descriptor; 2] {
        [&self.producer, &self.consumer]
    }
}

/// One side's pages, as a program reads or writes them for a step.
fn pages_of(agreed: &Agreed, pair: &Pair, step: &Step, role: Role) -> Side {
    let span = &agreed.agreement.spans[step.span];
    let (side, rank, component, first) = match role {
        Role::Producer => (
            &agreed.producer,
            pair.source,
            span.source,
            span.source_first,
        ),
        Role::Consumer => (
            &agreed.consumer,
            pair.target,
            span.target,
            span.target_first,
        ),
    };
    let rank = &side.ranks[rank as usize];
    let described = &side.components[component];
    let codes = rank
        .layout(component)
        .expect("a rank holds the layers of its steps");
    Side::Paged {
        codes: codes.clone(),
        params: described.scales.and_then(|s| rank.layout(s).cloned()),
        head: step.heads.start - rank.heads(component).start,
        unit: first / described.format.element.unit(described.dim).elements,
        params_unit: described.format.element.params_from(first, described.dim),
    }
}

fn dense() -> Place<'static> {
    Place {
        layer: 0,
        pages: &[0],
        tokens: Progression::ALL,
    }
}

fn source_place<'a>(requested: &'a Requested, pair: &Pair, chunk: &Chunk) -> Place<'a> {
    let step = &pair.steps[chunk.step as usize];
    Place {
        layer: step.layers[chunk.layer as usize].source,
        pages: requested.producer().pages(pair.source, step.source_group),
        tokens: chunk.tokens.source,
    }
}

fn target_place<'a>(requested: &'a Requested, pair: &Pair, chunk: &Chunk) -> Place<'a> {
    let step = &pair.steps[chunk.step as usize];
    Place {
        layer: step.layers[chunk.layer as usize].target,
        pages: requested.consumer().pages(pair.target, step.target_group),
        tokens: chunk.tokens.target,
    }
}

/// Converts a whole cache in one process, without a wire.
///
/// `sources` and `targets` are the pools of all ranks. Returns what was saturated or was NaN.
///
/// # Panics
///
/// If a pool does not have the regions of its rank.
pub fn convert(requested: &Arc<Requested>, sources: &[Pool], targets: &mut [Pool]) -> Counts {
    let mut counts = Counts::default();
    // Chunks fit a cache, the cache as a whole need not.
    let bytes: u64 = targets.iter().flatten().map(Region::len).sum();
    for pair in &requested.agreed().agreement.pairs {
        let source = &sources[pair.source as usize];
        let target = &mut targets[pair.target as usize];
        let mut copy = PageCopy::new(requested, pair, bytes);
        for index in 0..copy.chunks().len() {
            counts += copy.copy(index, source, target);
        }
    }
    counts
}
