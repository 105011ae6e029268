//! One rank's part in a pair whose rows go over a wire.

use std::sync::Arc;

use moai_memory::{Read, Write};
use moai_translate::{
    convert::Conversion,
    format::Counts,
    layout::{Address, Layout, RowOrder},
    program::{Conversions, Place, Program, Side},
    scheme::Params,
};

use super::{Agreed, Requested, dense, pages_of, source_place, sum::Sum, target_place};
use crate::{
    digest::{Coverage, DigestKey},
    negotiate::Role,
    plan::{Chunk, Chunks, LayerPair, Pair, Step},
};

/// Rows of a chunk on the wire: all codes, then (if rows keep some apart) all params, heads and tokens
/// nested as the consumer nests them.
#[derive(Clone, Copy, Debug)]
struct Wire {
    order: RowOrder,
    /// Bytes of the codes of a row.
    code_bytes: usize,
}

/// One rank's part in a pair: the programs of each of its steps, compiled once.
///
/// Once it has met chunks of every shape, running it allocates nothing.
#[derive(Debug)]
pub struct Runner {
    requested: Arc<Requested>,
    pair: Pair,
    role: Role,
    chunks: Chunks,
    steps: Vec<Prepared>,
}

#[derive(Debug)]
struct Prepared {
    wire: Wire,
    /// From pages to rows or from rows to pages, by role.
    own: Carry,
    /// From the rank's own pages to rows in the consumer's format, for a digest of what lies there; a producer has one
    /// where that is not what it sends.
    shown: Option<Carry>,
    /// Whether rows go over the wire in the consumer's format.
    is_targets: bool,
}

/// A program, and the conversions of each layer of its step.
#[derive(Debug)]
struct Carry {
    program: Program,
    conversions: Vec<Conversions>,
}

impl Carry {
    /// Adds to a sum those rows of a chunk that it covers.
    fn digest<P: Read + ?Sized>(
        &mut self,
        chunk: &Chunk,
        place: Place<'_>,
        pool: &P,
        mut sum: Sum<'_>,
    ) -> (Counts, u64) {
        let conversions = &self.conversions[chunk.layer as usize];
        let tokens = chunk.tokens.count;
        let counts = { &mut self.program }.observe(conversions, tokens, place, pool, &mut sum);
        (counts, sum.total())
    }
}

/// Where the bytes of a chunk go: (start within the chunk, place, bytes), in the order of the chunk's bytes.
pub type Runs = Vec<(u64, Address, u64)>;

impl Runner {
    /// Compiles one rank's side of a pair.
    #[must_use]
    pub fn new(requested: &Arc<Requested>, pair: &Pair, role: Role) -> Self {
        let agreed = requested.agreed();
        let chunks = requested.chunks(pair);
        let written = bytes_of(agreed, pair, &chunks)[2];
        let prepare = |step: &Step| prepare(agreed, pair, step, role, written);
        Self {
            steps: pair.steps.iter().map(prepare).collect(),
            requested: Arc::clone(requested),
            pair: pair.clone(),
            role,
            chunks,
        }
    }

    /// Goes on to another request of the same two sides: what was compiled stays.
    pub fn take(&mut self, requested: &Arc<Requested>) {
        requested.chunks_into(&self.pair, &mut self.chunks);
        self.requested = Arc::clone(requested);
        let written = bytes_of(requested.agreed(), &self.pair, &self.chunks)[2];
        if self.role == Role::Consumer {
            for step in &mut self.steps {
                step.own.program.be_part_of(written);
            }
        }
    }

    /// The same, for another thread.
    #[must_use]
    pub fn again(&self) -> Self {
        Self::new(&self.requested, &self.pair, self.role)
    }

    /// The request.
    #[must_use]
    pub fn requested(&self) -> &Arc<Requested> {
        &self.requested
    }

    /// The pair.
    #[must_use]
    pub fn pair(&self) -> &Pair {
        &self.pair
    }

    /// What goes over the wire, in order.
    #[must_use]
    pub fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    /// Bytes of all chunks.
    #[must_use]
    pub fn wire_bytes(&self) -> u64 {
        self.chunks.wire_bytes()
    }

    /// Bytes of a chunk's rows in the producer's format, on the wire, and in the consumer's.
    #[must_use]
    pub fn row_bytes(&self, index: usize) -> [u64; 3] {
        let chunk = self.chunk(index);
        let step = &self.pair.steps[chunk.step as usize];
        let rows = u64::from(step.heads.end - step.heads.start) * u64::from(chunk.tokens.count);
        let bytes = self.requested.agreed().agreement.carriages[step.span].row_bytes;
        bytes.map(|row| row * rows)
    }

    fn chunk(&self, index: usize) -> Chunk {
        self.chunks.get(index).expect("a chunk of the pair")
    }

    /// Longest row of any chunk, on the wire or in the consumer's format, for a digest's constants.
    #[must_use]
    pub fn longest_row(&self) -> usize {
        let carriages = self.requested.agreed().agreement.carriages.iter();
        let rows = carriages.map(|c| c.row_bytes[1].max(c.row_bytes[2]) as usize);
        rows.max().unwrap_or(4)
    }

    /// Fills `out` with a chunk's rows.
    ///
    /// # Panics
    ///
    /// If `out` is not as long as the chunk, or the pool is not the producer rank's.
    pub fn gather<P: Read + ?Sized>(&mut self, index: usize, pool: &P, out: &mut [u8]) -> Counts {
        let chunk = &self.chunk(index);
        assert_eq!(out.len(), chunk.bytes as usize, "the buffer is the chunk's");
        let Carry {
            program,
            conversions,
        } = &mut self.steps[chunk.step as usize].own;
        let from = source_place(&self.requested, &self.pair, chunk);
        let conversions = &conversions[chunk.layer as usize];
        program.run(conversions, chunk.tokens.count, from, dense(), pool, out)
    }

    /// Fills `out` with a chunk's rows, and digests them in the same pass.
    ///
    /// # Panics
    ///
    /// As [`gather`](Self::gather), and if the key was made for shorter rows.
    pub fn gather_digested<P: Read + ?Sized>(
        &mut self,
        index: usize,
        pool: &P,
        out: &mut [u8],
        key: &DigestKey,
    ) -> (Counts, u64) {
        let chunk = &self.chunk(index);
        assert_eq!(out.len(), chunk.bytes as usize, "the buffer is the chunk's");
        let Carry {
            program,
            conversions,
        } = &mut self.steps[chunk.step as usize].own;
        let mut sum = Sum::of(&self.pair, chunk, key);
        let counts = program.run_observed(
            &conversions[chunk.layer as usize],
            chunk.tokens.count,
            source_place(&self.requested, &self.pair, chunk),
            dense(),
            pool,
            out,
            &mut sum,
        );
        (counts, sum.total())
    }

    /// The digest of a chunk as it lies in the producer's pages, over rows in the consumer's format: what a
    /// [`PageCopy`](super::PageCopy) finds that copies them.
    ///
    /// # Panics
    ///
    /// If the pool is not the producer rank's, or the key was made for shorter rows.
    pub fn digest_lent<P: Read + ?Sized>(
        &mut self,
        index: usize,
        pool: &P,
        key: &DigestKey,
    ) -> (Counts, u64) {
        if key.coverage() == Coverage::Off {
            return (Counts::default(), 0);
        }
        let chunk = &self.chunk(index);
        let from = source_place(&self.requested, &self.pair, chunk);
        let step = &mut self.steps[chunk.step as usize];
        let carry = step.shown.as_mut().unwrap_or(&mut step.own);
        carry.digest(chunk, from, pool, Sum::of(&self.pair, chunk, key))
    }

    /// Places a chunk's rows.
    ///
    /// # Panics
    ///
    /// If `rows` is not as long as the chunk, or the pool is not the consumer rank's.
    pub fn scatter<P: Write + ?Sized>(
        &mut self,
        index: usize,
        rows: &[u8],
        pool: &mut P,
    ) -> Counts {
        let chunk = &self.chunk(index);
        assert_eq!(rows.len(), chunk.bytes as usize, "the rows are the chunk's");
        let Carry {
            program,
            conversions,
        } = &mut self.steps[chunk.step as usize].own;
        let to = target_place(&self.requested, &self.pair, chunk);
        let conversions = &conversions[chunk.layer as usize];
        program.run(conversions, chunk.tokens.count, dense(), to, rows, pool)
    }

    /// Digests a chunk's rows and places them, while they are in a cache: pages that were stored past it are not
    /// read again.
    ///
    /// # Panics
    ///
    /// As [`scatter`](Self::scatter), and if the key was made for shorter rows.
    pub fn scatter_digested<P: Write + ?Sized>(
        &mut self,
        index: usize,
        rows: &[u8],
        pool: &mut P,
        key: &DigestKey,
    ) -> (Counts, u64) {
        let digest = self.digest(index, rows, key);
        (self.scatter(index, rows, pool), digest)
    }

    /// Places a chunk's rows, and tells by two digests what it did: of the rows as they came, and of what was placed, in
    /// the consumer's format, which [`digest_written`](Self::digest_written) must find afterwards.
    ///
    /// # Panics
    ///
    /// As [`scatter_digested`](Self::scatter_digested).
    pub fn scatter_told<P: Write + ?Sized>(
        &mut self,
        index: usize,
        rows: &[u8],
        pool: &mut P,
        key: &DigestKey,
    ) -> (Counts, [u64; 2]) {
        if key.coverage() == Coverage::Off {
            return (self.scatter(index, rows, pool), [0; 2]);
        }
        let digest = self.digest(index, rows, key);
        let chunk = &self.chunk(index);
        let Prepared {
            own: Carry {
                program,
                conversions,
            },
            is_targets,
            ..
        } = &mut self.steps[chunk.step as usize];
        if *is_targets {
            return (self.scatter(index, rows, pool), [digest; 2]);
        }
        let mut sum = Sum::of(&self.pair, chunk, key);
        let counts = program.run_observed(
            &conversions[chunk.layer as usize],
            chunk.tokens.count,
            dense(),
            target_place(&self.requested, &self.pair, chunk),
            rows,
            pool,
            &mut sum,
        );
        (counts, [digest, sum.total()])
    }

    /// Finds where a chunk's bytes go one after another, if they can be read straight into the consumer's pages in runs
    /// of `least` bytes on average or more.
    pub fn runs(&mut self, index: usize, least: u64, runs: &mut Runs) -> bool {
        runs.clear();
        let chunk = &self.chunk(index);
        let Carry {
            program,
            conversions,
        } = &mut self.steps[chunk.step as usize].own;
        let to = target_place(&self.requested, &self.pair, chunk);
        let most = u64::from(chunk.bytes) / least.max(1);
        let mut many = false;
        let plain = program.runs_into(
            &conversions[chunk.layer as usize],
            chunk.tokens.count,
            to,
            |from, at, bytes| {
                if (runs.len() as u64) < most {
                    runs.push((from, at, bytes));
                } else {
                    many = true;
                }
            },
        );
        if plain.is_none() || many {
            return false;
        }
        runs.sort_unstable_by_key(|&(from, ..)| from);
        let mut next = 0;
        for &(from, _, bytes) in &*runs {
            if from != next {
                return false;
            }
            next += bytes;
        }
        next == u64::from(chunk.bytes)
    }

    /// A key for the digests of what it moves, as the request wants them.
    #[must_use]
    pub fn digest_key(&self, key: u64) -> DigestKey {
        self.requested.digest_key(key, self.longest_row())
    }

    /// One of the [parts](Chunks::parts) of what it moves: the global layer, and its chunks.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    #[must_use]
    pub fn part(&self, part: usize) -> (u32, std::ops::Range<usize>) {
        let (step, layer, chunks) = self.chunks.part(part);
        (self.pair.steps[step].layers[layer as usize].layer, chunks)
    }

    /// The component that one of the parts is of.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    #[must_use]
    pub fn part_component(&self, part: usize) -> &str {
        let (step, ..) = self.chunks.part(part);
        &self.requested.agreed().agreement.spans[self.pair.steps[step].span].name
    }

    /// Contiguous runs of a chunk in this rank's pages.
    pub fn paged_runs(&mut self, index: usize) -> u64 {
        let chunk = &self.chunk(index);
        let place = match self.role {
            Role::Producer => source_place(&self.requested, &self.pair, chunk),
            Role::Consumer => target_place(&self.requested, &self.pair, chunk),
        };
        let program = &mut self.steps[chunk.step as usize].own.program;
        program.paged_runs(chunk.tokens.count, place)
    }

    /// The digest of a chunk as it goes over the wire.
    #[must_use]
    pub fn digest(&self, index: usize, rows: &[u8], key: &DigestKey) -> u64 {
        if key.coverage() == Coverage::Off {
            return 0;
        }
        let chunk = &self.chunk(index);
        let wire = self.steps[chunk.step as usize].wire;
        let heads = &self.pair.steps[chunk.step as usize].heads;
        let (heads, tokens) = (heads.end - heads.start, chunk.tokens.count);
        let count = heads as usize * tokens as usize;
        let (codes, params) = rows.split_at(count * wire.code_bytes);
        let mut sum = Sum::of(&self.pair, chunk, key);
        sum.add_from(wire.order, [0, 0], [heads, tokens], codes, params);
        sum.total()
    }

    /// The digest of what a consumer's pages hold for a chunk; `None` where the pages hold another format
    /// than the wire, and what was received must be digested instead.
    pub fn digest_placed<P: Read + ?Sized>(
        &mut self,
        index: usize,
        pool: &P,
        key: &DigestKey,
    ) -> Option<u64> {
        let is_targets = self.steps[self.chunk(index).step as usize].is_targets;
        if is_targets {
            self.digest_written(index, pool, key)
        } else {
            None
        }
    }

    /// The digest of what a consumer's pages hold for a chunk, in their own format; `None` on a producer.
    ///
    /// # Panics
    ///
    /// If the pool is not the rank's, or the key was made for shorter rows.
    pub fn digest_written<P: Read + ?Sized>(
        &mut self,
        index: usize,
        pool: &P,
        key: &DigestKey,
    ) -> Option<u64> {
        if self.role == Role::Producer {
            return None;
        }
        if key.coverage() == Coverage::Off {
            return Some(0);
        }
        let chunk = &self.chunk(index);
        let place = target_place(&self.requested, &self.pair, chunk);
        let carry = self.steps[chunk.step as usize].shown.as_mut()?;
        let (_, digest) = carry.digest(chunk, place, pool, Sum::of(&self.pair, chunk, key));
        Some(digest)
    }

    /// Pages of the consumer that a chunk writes to, as (group, page).
    pub fn pages(&self, index: usize, mut each: impl FnMut(usize, u32)) {
        let chunk = &self.chunk(index);
        let group = self.pair.steps[chunk.step as usize].target_group;
        let place = target_place(&self.requested, &self.pair, chunk);
        let slots = self.requested.agreed().consumer.groups[group].page_slots;
        let mut last = None;
        for n in 0..chunk.tokens.count {
            let page = place.pages[(place.tokens.at(n) / slots) as usize];
            if last != Some(page) {
                each(group, page);
                last = Some(page);
            }
        }
    }
}

/// Bytes of the rows of all chunks in the producer's format, on the wire, and in the consumer's.
fn bytes_of(agreed: &Agreed, pair: &Pair, chunks: &Chunks) -> [u64; 3] {
    let mut sums = [0; 3];
    for (index, step) in pair.steps.iter().enumerate() {
        let (layers, tokens) = chunks.step(index);
        let rows = u64::from(step.heads.end - step.heads.start) * tokens * layers.len() as u64;
        let bytes = agreed.agreement.carriages[step.span].row_bytes;
        for (sum, bytes) in sums.iter_mut().zip(bytes) {
            *sum += rows * bytes;
        }
    }
    sums
}

/// The programs of one step, for a rank that takes part in it as `role`; the pair writes `written` bytes.
fn prepare(agreed: &Agreed, pair: &Pair, step: &Step, role: Role, written: u64) -> Prepared {
    let Agreed {
        producer,
        consumer,
        agreement,
    } = agreed;
    let span = &agreement.spans[step.span];
    let carriage = &agreement.carriages[step.span];
    let (source, target) = (
        &producer.components[span.source].format,
        &consumer.components[span.target].format,
    );
    let exchange = match carriage.converts {
        Role::Producer => target,
        Role::Consumer => source,
    };
    let order = consumer.ranks[pair.target as usize]
        .layout(span.target)
        .map_or(RowOrder::TokenHead, Layout::row_order);
    let rows = |format: &crate::descriptor::Format| Side::Rows {
        order,
        unit_bytes: format.element.unit(span.dim).bytes,
        params_unit_bytes: format.params(span.dim).map_or(0, |p| p.unit_bytes),
    };
    let heads = step.heads.end - step.heads.start;
    let carry = |from: Side, to: Side, conversions: Vec<Conversions>| Carry {
        program: Program::new(from, to, heads, span.dim, conversions[0].any()),
        conversions,
    };
    let by_layer = |of: &dyn Fn(u32) -> Conversions| -> Vec<Conversions> {
        let layers = step.layers.iter();
        layers.map(|pair: &LayerPair| of(pair.layer)).collect()
    };
    let wired =
        |who| by_layer(&|layer| agreement.conversions(step.span, layer, step.heads.clone(), who));
    let whole =
        || by_layer(&|layer| agreement.whole_conversions(step.span, layer, step.heads.clone()));
    let pages = pages_of(agreed, pair, step, role);
    let is_targets = carriage.converts == Role::Producer || carriage.unchanged;
    let (own, shown) = match role {
        Role::Producer => {
            let shown = (!is_targets).then(|| carry(pages.clone(), rows(target), whole()));
            let mut own = carry(pages, rows(exchange), wired(role));
            // What is gathered is sent at once: it stays in the caches.
            own.program = own.program.with_streaming_from(u64::MAX);
            (own, shown)
        }
        Role::Consumer => {
            let kept = || {
                let (_, format) =
                    agreement.formats(step.span, step.layers[0].layer, step.heads.start);
                let same = Conversion::new(format, format, span.dim);
                // Of the format, only constants differ by layer and head, which do not matter to what is not converted.
                let same = Arc::new(same.expect("rows of this format are written"));
                vec![Conversions::All(same); step.layers.len()]
            };
            let shown = Some(carry(pages.clone(), rows(target), kept()));
            let mut own = carry(rows(exchange), pages, wired(role));
            own.program = own.program.as_part_of(written);
            (own, shown)
        }
    };
    let params_bytes = exchange.params(span.dim).map_or(0, Params::bytes);
    let wire = Wire {
        order,
        code_bytes: (carriage.row_bytes[1] - u64::from(params_bytes)) as usize,
    };
    Prepared {
        wire,
        own,
        shown,
        is_targets,
    }
}
