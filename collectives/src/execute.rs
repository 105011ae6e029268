//! Runs plans: from a producer's pages to the wire, from the wire to a consumer's pages, or straight
//! from one to the other.

use std::{collections::HashMap, sync::Arc};

use moai_memory::Region;
use moai_translate::{
    format::Counts,
    layout::{Address, RowOrder},
    program::{Conversions, Place, Program, Progression, Side},
    scheme::Params,
};

use crate::{
    descriptor::Descriptor,
    digest::{DigestKey, RowAt, RowsAt},
    negotiate::{Agreement, Role},
    plan::{Chunk, Pair, Step},
};

/// The memory of one rank, in the order in which its layouts number regions.
pub type Pool = Vec<Region>;

/// What both sides know of a transfer before it starts.
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

/// Rows of a chunk on the wire: all codes, then (if rows keep some apart) all params, heads and tokens
/// nested as the consumer nests them.
#[derive(Clone, Copy, Debug)]
struct Wire {
    order: RowOrder,
    unit_bytes: u32,
    /// Bytes of each unit of params; 0 where rows keep nothing apart.
    params_unit_bytes: u32,
    /// Bytes of all params of a row.
    params_bytes: u32,
}

/// One rank's part in a pair: the programs of each of its steps, compiled once.
#[derive(Debug)]
pub struct Runner {
    agreed: Arc<Agreed>,
    pair: Pair,
    role: Role,
    chunks: Vec<Chunk>,
    steps: Vec<Prepared>,
    conversions: HashMap<(u32, u32), Conversions>,
}

#[derive(Debug)]
struct Prepared {
    wire: Wire,
    /// From pages to rows or from rows to pages, by role.
    program: Program,
    /// From pages back to rows, for a consumer that digests what it holds.
    back: Option<Program>,
    code_bytes: usize,
}

impl Runner {
    /// Compiles one rank's side of a pair.
    #[must_use]
    pub fn new(agreed: Arc<Agreed>, pair: &Pair, role: Role) -> Self {
        let Agreed {
            producer,
            consumer,
            agreement,
        } = &*agreed;
        let chunks = agreement.chunks(producer, consumer, pair);
        let mut steps = Vec::new();
        for step in &pair.steps {
            let span = &agreement.spans[step.span];
            let carriage = &agreement.carriages[step.span];
            let exchange = match carriage.converts {
                Role::Producer => &consumer.components[span.target].format,
                Role::Consumer => &producer.components[span.source].format,
            };
            let order = consumer.ranks[pair.target as usize]
                .layout(span.target)
                .map_or(
                    RowOrder::TokenHead,
                    moai_translate::layout::Layout::row_order,
                );
            let params = exchange.params(span.dim);
            let wire = Wire {
                order,
                unit_bytes: exchange.element.unit(span.dim).bytes,
                params_unit_bytes: params.map_or(0, |p| p.unit_bytes),
                params_bytes: params.map_or(0, Params::bytes),
            };
            let rows = || Side::Rows {
                order,
                unit_bytes: wire.unit_bytes,
                params_unit_bytes: wire.params_unit_bytes,
            };
            let heads = step.heads.end - step.heads.start;
            let layer = step.layers[0].layer;
            let own = agreement.conversions(step.span, layer, step.heads.clone(), role);
            let carried = agreement.conversions(
                step.span,
                layer,
                step.heads.clone(),
                other(carriage.converts),
            );
            let pages = pages_of(&agreed, pair, step, role);
            let (program, back) = match role {
                Role::Producer => (
                    Program::new(pages, rows(), heads, span.dim, own.any()),
                    None,
                ),
                Role::Consumer => {
                    // Where the exchange format is the consumer's own, it can digest what lies in its
                    // pages afterwards, which also covers the placing.
                    let back =
                        (carriage.converts == Role::Producer || carriage.unchanged).then(|| {
                            Program::new(pages.clone(), rows(), heads, span.dim, carried.any())
                        });
                    (
                        Program::new(rows(), pages, heads, span.dim, own.any()),
                        back,
                    )
                }
            };
            let code_bytes = carriage.row_bytes[1] as usize - wire.params_bytes as usize;
            steps.push(Prepared {
                wire,
                program,
                back,
                code_bytes,
            });
        }
        Self {
            agreed: Arc::clone(&agreed),
            pair: pair.clone(),
            role,
            chunks,
            steps,
            conversions: HashMap::new(),
        }
    }

    /// The pair.
    #[must_use]
    pub fn pair(&self) -> &Pair {
        &self.pair
    }

    /// What goes over the wire, in order.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Bytes of all chunks.
    #[must_use]
    pub fn wire_bytes(&self) -> u64 {
        self.chunks.iter().map(|c| u64::from(c.bytes)).sum()
    }

    /// Longest row of any chunk, for a digest's constants.
    #[must_use]
    pub fn longest_row(&self) -> usize {
        let rows = self
            .agreed
            .agreement
            .carriages
            .iter()
            .map(|c| c.row_bytes[1] as usize);
        rows.max().unwrap_or(4)
    }

    /// Fills `out` with a chunk's rows.
    ///
    /// # Panics
    ///
    /// If `out` is not as long as the chunk, or the pool is not the producer rank's.
    pub fn gather(&mut self, index: usize, pool: &[Region], out: &mut [u8]) -> Counts {
        assert_eq!(
            out.len(),
            self.chunks[index].bytes as usize,
            "the buffer is the chunk's"
        );
        let chunk = self.chunks[index];
        let conversions = self.conversions_of(&chunk);
        let agreed = Arc::clone(&self.agreed);
        let from = source_place(&agreed, &self.pair, &chunk);
        let program = &mut self.steps[chunk.step as usize].program;
        program.run(&conversions, chunk.tokens.count, from, dense(), pool, out)
    }

    /// Places a chunk's rows.
    ///
    /// # Panics
    ///
    /// If `rows` is not as long as the chunk, or the pool is not the consumer rank's.
    pub fn scatter(&mut self, index: usize, rows: &[u8], pool: &mut [Region]) -> Counts {
        assert_eq!(
            rows.len(),
            self.chunks[index].bytes as usize,
            "the rows are the chunk's"
        );
        let chunk = self.chunks[index];
        let conversions = self.conversions_of(&chunk);
        let agreed = Arc::clone(&self.agreed);
        let to = target_place(&agreed, &self.pair, &chunk);
        let program = &mut self.steps[chunk.step as usize].program;
        program.run(&conversions, chunk.tokens.count, dense(), to, rows, pool)
    }

    /// Where a chunk's bytes go one after another, as (place, bytes), if they can be read straight into
    /// the consumer's pages in runs of `least` bytes on average or more.
    pub fn runs(&mut self, index: usize, least: u64) -> Option<Vec<(Address, u64)>> {
        let chunk = self.chunks[index];
        let conversions = self.conversions_of(&chunk);
        let agreed = Arc::clone(&self.agreed);
        let to = target_place(&agreed, &self.pair, &chunk);
        let program = &mut self.steps[chunk.step as usize].program;
        let most = u64::from(chunk.bytes) / least.max(1);
        let mut runs: Vec<(u64, Address, u64)> = Vec::new();
        let mut many = false;
        program.runs_into(&conversions, chunk.tokens.count, to, |from, at, bytes| {
            if (runs.len() as u64) < most {
                runs.push((from, at, bytes));
            } else {
                many = true;
            }
        })?;
        if many {
            return None;
        }
        runs.sort_unstable_by_key(|&(from, ..)| from);
        let mut next = 0;
        for &(from, _, bytes) in &runs {
            if from != next {
                return None;
            }
            next += bytes;
        }
        (next == u64::from(chunk.bytes))
            .then(|| runs.into_iter().map(|(_, at, bytes)| (at, bytes)).collect())
    }

    /// Contiguous runs of a chunk in this rank's pages.
    pub fn paged_runs(&mut self, index: usize) -> u64 {
        let chunk = self.chunks[index];
        let agreed = Arc::clone(&self.agreed);
        let place = match self.role {
            Role::Producer => source_place(&agreed, &self.pair, &chunk),
            Role::Consumer => target_place(&agreed, &self.pair, &chunk),
        };
        self.steps[chunk.step as usize]
            .program
            .paged_runs(chunk.tokens.count, place)
    }

    /// Fills `out` with a chunk's rows, and digests them in the same pass.
    ///
    /// # Panics
    ///
    /// As [`gather`](Self::gather), and if the key was made for shorter rows.
    pub fn gather_digested(
        &mut self,
        index: usize,
        pool: &[Region],
        out: &mut [u8],
        key: &DigestKey,
    ) -> (Counts, u64) {
        assert_eq!(
            out.len(),
            self.chunks[index].bytes as usize,
            "the buffer is the chunk's"
        );
        let chunk = self.chunks[index];
        let conversions = self.conversions_of(&chunk);
        let agreed = Arc::clone(&self.agreed);
        let from = source_place(&agreed, &self.pair, &chunk);
        let mut sum = Sum::of(&self.pair, &chunk, key);
        let program = &mut self.steps[chunk.step as usize].program;
        let counts = program.run_observed(
            &conversions,
            chunk.tokens.count,
            from,
            dense(),
            pool,
            out,
            &mut |rows| {
                sum.add(
                    rows.order,
                    [rows.head, rows.token],
                    [rows.heads, rows.tokens],
                    rows.codes,
                    rows.params,
                )
            },
        );
        (counts, sum.sum)
    }

    /// The digest of a chunk as it goes over the wire.
    #[must_use]
    pub fn digest(&self, index: usize, rows: &[u8], key: &DigestKey) -> u64 {
        let chunk = &self.chunks[index];
        let prepared = &self.steps[chunk.step as usize];
        let heads = &self.pair.steps[chunk.step as usize].heads;
        let (heads, tokens) = (heads.end - heads.start, chunk.tokens.count);
        let count = heads as usize * tokens as usize;
        let (codes, params) = rows.split_at(count * prepared.code_bytes);
        let mut sum = Sum::of(&self.pair, chunk, key);
        sum.add(prepared.wire.order, [0, 0], [heads, tokens], codes, params);
        sum.sum
    }

    /// The digest of what a consumer's pages hold for a chunk; `None` where the pages hold another format
    /// than the wire, and what was received must be digested instead.
    pub fn digest_placed(&mut self, index: usize, pool: &[Region], key: &DigestKey) -> Option<u64> {
        let chunk = self.chunks[index];
        let agreed = Arc::clone(&self.agreed);
        let step = &self.pair.steps[chunk.step as usize];
        let converts = agreed.agreement.carriages[step.span].converts;
        let layer = step.layers[chunk.layer as usize].layer;
        let at = target_place(&agreed, &self.pair, &chunk);
        let mut sum = Sum::of(&self.pair, &chunk, key);
        let back = self.steps[chunk.step as usize].back.as_mut()?;
        let heads = step.heads.clone();
        let carried = agreed
            .agreement
            .conversions(step.span, layer, heads, other(converts));
        back.observe(&carried, chunk.tokens.count, at, pool, &mut |rows| {
            sum.add(
                rows.order,
                [rows.head, rows.token],
                [rows.heads, rows.tokens],
                rows.codes,
                rows.params,
            )
        });
        Some(sum.sum)
    }

    /// Pages of the consumer that a chunk writes to, as (group, page).
    pub fn pages(&self, index: usize, mut each: impl FnMut(usize, u32)) {
        let chunk = &self.chunks[index];
        let group = self.pair.steps[chunk.step as usize].target_group;
        let place = target_place(&self.agreed, &self.pair, chunk);
        let slots = self.agreed.consumer.groups[group].page_slots;
        let mut last = None;
        for n in 0..chunk.tokens.count {
            let page = place.pages[(place.tokens.at(n) / slots) as usize];
            if last != Some(page) {
                each(group, page);
                last = Some(page);
            }
        }
    }

    fn conversions_of(&mut self, chunk: &Chunk) -> Conversions {
        let (agreed, pair, role) = (&self.agreed, &self.pair, self.role);
        let make = || {
            let step = &pair.steps[chunk.step as usize];
            let layer = step.layers[chunk.layer as usize].layer;
            agreed
                .agreement
                .conversions(step.span, layer, step.heads.clone(), role)
        };
        self.conversions
            .entry((chunk.step, chunk.layer))
            .or_insert_with(make)
            .clone()
    }
}

/// The digest of a chunk, as far as its rows were met.
struct Sum<'a> {
    key: &'a DigestKey,
    chunk: Chunk,
    layer: u32,
    component: u32,
    first_head: u32,
    sum: u64,
}

impl<'a> Sum<'a> {
    fn of(pair: &Pair, chunk: &Chunk, key: &'a DigestKey) -> Self {
        let step = &pair.steps[chunk.step as usize];
        Self {
            key,
            chunk: *chunk,
            layer: step.layers[chunk.layer as usize].layer,
            component: step.span as u32,
            first_head: step.heads.start,
            sum: 0,
        }
    }

    /// Adds rows of the chunk, from its `[head, token]` on.
    fn add(
        &mut self,
        order: RowOrder,
        [head, token]: [u32; 2],
        [heads, tokens]: [u32; 2],
        codes: &[u8],
        params: &[u8],
    ) {
        let at = RowsAt {
            first: RowAt {
                layer: self.layer,
                component: self.component,
                head: self.first_head + head,
                token: self.chunk.tokens.token + token * self.chunk.tokens.step,
            },
            order,
            heads,
            tokens,
            token_step: self.chunk.tokens.step,
        };
        self.sum = self.sum.wrapping_add(self.key.rows(at, codes, params));
    }
}

fn other(role: Role) -> Role {
    match role {
        Role::Producer => Role::Consumer,
        Role::Consumer => Role::Producer,
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

fn source_place<'a>(agreed: &'a Agreed, pair: &Pair, chunk: &Chunk) -> Place<'a> {
    let step = &pair.steps[chunk.step as usize];
    Place {
        layer: step.layers[chunk.layer as usize].source,
        pages: &agreed.producer.ranks[pair.source as usize].request_pages[step.source_group],
        tokens: chunk.tokens.source,
    }
}

fn target_place<'a>(agreed: &'a Agreed, pair: &Pair, chunk: &Chunk) -> Place<'a> {
    let step = &pair.steps[chunk.step as usize];
    Place {
        layer: step.layers[chunk.layer as usize].target,
        pages: &agreed.consumer.ranks[pair.target as usize].request_pages[step.target_group],
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
pub fn convert(agreed: &Agreed, sources: &[Pool], targets: &mut [Pool]) -> Counts {
    let Agreed {
        producer,
        consumer,
        agreement,
    } = agreed;
    let mut counts = Counts::default();
    // Chunks fit a cache, the cache as a whole need not.
    let bytes: u64 = targets.iter().flatten().map(Region::len).sum();
    for pair in &agreement.pairs {
        let (source, target) = (
            &sources[pair.source as usize],
            &mut targets[pair.target as usize],
        );
        let chunks = agreement.chunks(producer, consumer, pair);
        let mut programs: Vec<Option<Program>> = (0..pair.steps.len()).map(|_| None).collect();
        for chunk in &chunks {
            let step = &pair.steps[chunk.step as usize];
            let span = &agreement.spans[step.span];
            let layer = step.layers[chunk.layer as usize].layer;
            let conversions = agreement.whole_conversions(step.span, layer, step.heads.clone());
            let program = programs[chunk.step as usize].get_or_insert_with(|| {
                Program::new(
                    pages_of(agreed, pair, step, Role::Producer),
                    pages_of(agreed, pair, step, Role::Consumer),
                    step.heads.end - step.heads.start,
                    span.dim,
                    conversions.any(),
                )
                .as_part_of(bytes)
            });
            let from = source_place(agreed, pair, chunk);
            let to = target_place(agreed, pair, chunk);
            counts += program.run(
                &conversions,
                chunk.tokens.count,
                from,
                to,
                source.as_slice(),
                target.as_mut_slice(),
            );
        }
    }
    counts
}
