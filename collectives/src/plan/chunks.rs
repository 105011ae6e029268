//! What a pair moves of a request, in pieces, without listing them.
//!
//! Chunks of a step follow one another layer by layer, within a layer along the runs of tokens that both ranks hold,
//! and within a run along a grid over the consumer's tokens. So the size of the grid and the number of chunks in each
//! run say all of it, and any chunk is found from its position: nothing is kept for each page, chunk or layer.

use std::ops::Range;

use moai_translate::program::Progression;

use super::{Pair, Step};
use crate::{
    descriptor::Descriptor,
    request::Request,
    tokens::{Held, Shared, meet_into, skip},
};

/// A part of a step small enough to go over the wire in one piece: one layer, all heads of the step, and
/// tokens in one progression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Chunk {
    /// Index of the step within the pair.
    pub step: u32,
    /// Index into the step's layers.
    pub layer: u32,
    /// Which of the pair's sums of digests it adds to: there is one for each step and layer that is moved.
    pub part: u32,
    /// Tokens, and where they lie on both sides.
    pub tokens: Shared,
    /// Bytes on the wire.
    pub bytes: u32,
}

/// The chunks of a pair for a request, in the order in which they are sent.
///
/// Both sides have the same, so a chunk is named by its position and no addresses cross the wire. Made once for a
/// pair, it takes one request after another and allocates nothing once it has met the largest.
#[derive(Clone, Debug, Default)]
pub struct Chunks {
    steps: Vec<Steps>,
    /// Layers that are moved, step after step, as indices into the step's layers.
    layers: Vec<u32>,
    series: Vec<Series>,
    meetings: Vec<Meeting>,
    /// Runs of all meetings.
    runs: Vec<Shared>,
    /// For each run of each series, how many chunks of a layer come before it.
    before: Vec<u64>,
    len: u64,
    bytes: u64,
    held: [Vec<Held>; 2],
}

/// Chunks of one step.
#[derive(Clone, Copy, Debug)]
struct Steps {
    /// The first of them.
    first: u64,
    /// Where its layers begin among the layers that are moved, which is also the first of its parts.
    layers: u32,
    series: u32,
    /// Bytes of a token of a layer on the wire.
    token_bytes: u64,
}

/// Chunks of a layer, alike for all steps with these groups and tokens a chunk.
#[derive(Clone, Copy, Debug)]
struct Series {
    meeting: u32,
    /// Tokens a chunk at most.
    most: u32,
    /// Where its runs begin in `before`.
    before: u32,
    chunks: u64,
}

/// Tokens that both ranks hold of a group of each side.
#[derive(Clone, Copy, Debug)]
struct Meeting {
    groups: (usize, usize),
    /// Tokens a page of the consumer.
    slots: u32,
    runs: [u32; 2],
    tokens: u64,
}

impl Chunks {
    /// Makes them those of `pair` for what `request` says of tokens and layers; its pages do not matter.
    ///
    /// `row_bytes` gives the bytes of a span's row on the wire, and `chunk_bytes` what a chunk holds at most, unless one
    /// token has more.
    pub fn take(
        &mut self,
        [producer, consumer]: [&Descriptor; 2],
        pair: &Pair,
        request: &Request,
        chunk_bytes: u64,
        row_bytes: impl Fn(usize) -> u64,
    ) {
        self.layers.clear();
        self.steps.clear();
        self.series.clear();
        self.meetings.clear();
        self.runs.clear();
        self.before.clear();
        (self.len, self.bytes) = (0, 0);
        for step in &pair.steps {
            let meeting = self.meeting([producer, consumer], pair, step, request);
            let heads = u64::from(step.heads.end - step.heads.start);
            let token_bytes = heads * row_bytes(step.span);
            let most = (chunk_bytes / token_bytes.max(1)).clamp(1, u64::from(u32::MAX)) as u32;
            let series = self.series(meeting, most);
            let layers = self.layers.len();
            let moved = |&(_, pair): &(u32, &super::LayerPair)| request.layers.contains(pair.layer);
            let moved = (0..).zip(&step.layers).filter(moved);
            self.layers.extend(moved.map(|(index, _)| index));
            self.steps.push(Steps {
                first: self.len,
                layers: layers as u32,
                series: series as u32,
                token_bytes,
            });
            let layers = (self.layers.len() - layers) as u64;
            self.len += layers * self.series[series].chunks;
            self.bytes += layers * self.meetings[meeting].tokens * token_bytes;
        }
    }

    /// The tokens that both ranks hold of a step's groups and that are to be moved.
    fn meeting(
        &mut self,
        sides: [&Descriptor; 2],
        pair: &Pair,
        step: &Step,
        request: &Request,
    ) -> usize {
        let groups = (step.source_group, step.target_group);
        let known = self.meetings.iter().position(|met| met.groups == groups);
        known.unwrap_or_else(|| {
            let ends = [(groups.0, pair.source), (groups.1, pair.target)];
            for (at, (group, rank)) in ends.into_iter().enumerate() {
                let (side, held) = (sides[at], &mut self.held[at]);
                let start = side.first(group, request.tokens);
                let me = side.ranks[rank as usize].cp;
                side.deal(group).held_into(me, start, request.tokens, held);
                skip(held, request.first);
            }
            let start = self.runs.len();
            meet_into(&self.held[0], &self.held[1], &mut self.runs);
            let tokens = self.runs[start..].iter().map(|run| u64::from(run.count));
            self.meetings.push(Meeting {
                groups,
                slots: sides[1].groups[groups.1].page_slots,
                runs: [start as u32, self.runs.len() as u32],
                tokens: tokens.sum(),
            });
            self.meetings.len() - 1
        })
    }

    /// The chunks of a layer of so many tokens at most.
    fn series(&mut self, meeting: usize, most: u32) -> usize {
        let same = |series: &Series| (series.meeting as usize, series.most) == (meeting, most);
        if let Some(known) = self.series.iter().position(same) {
            return known;
        }
        let Meeting {
            slots,
            runs: [start, end],
            ..
        } = self.meetings[meeting];
        let before = self.before.len() as u32;
        let mut chunks = 0;
        for run in &self.runs[start as usize..end as usize] {
            self.before.push(chunks);
            let width = width(most, slots, run.target.step);
            chunks += cell_of(run, run.count - 1, width) - cell_of(run, 0, width) + 1;
        }
        self.series.push(Series {
            meeting: meeting as u32,
            most,
            before,
            chunks,
        });
        self.series.len() - 1
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there is nothing to move.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of all of them on the wire.
    #[must_use]
    pub fn wire_bytes(&self) -> u64 {
        self.bytes
    }

    /// Sums of digests of the pair: one for each step and layer that is moved.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.layers.len()
    }

    /// The layers of a step that are moved, as indices into the step's, and the tokens of each.
    #[must_use]
    pub fn step(&self, step: usize) -> (&[u32], u64) {
        let this = &self.steps[step];
        let next = self.steps.get(step + 1).map(|next| next.layers as usize);
        let end = next.unwrap_or(self.layers.len());
        let series = &self.series[this.series as usize];
        let tokens = self.meetings[series.meeting as usize].tokens;
        (&self.layers[this.layers as usize..end], tokens)
    }

    /// What one of the sums is of: the step, the layer as an index into the step's, and its chunks.
    ///
    /// # Panics
    ///
    /// If there are not so many [`parts`](Self::parts).
    #[must_use]
    pub fn part(&self, part: usize) -> (usize, u32, Range<usize>) {
        let at = { &self.steps }.partition_point(|step| step.layers as usize <= part) - 1;
        let step = &self.steps[at];
        let chunks = self.series[step.series as usize].chunks;
        let first = step.first + (part as u64 - u64::from(step.layers)) * chunks;
        let range = first as usize..(first + chunks) as usize;
        (at, self.layers[part], range)
    }

    /// One of them, if there are so many. Costs the same for any.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Chunk> {
        let index = index as u64;
        if index >= self.len {
            return None;
        }
        // Of steps with nothing to move, the next begins where they do.
        let at = self.steps.partition_point(|step| step.first <= index) - 1;
        let step = &self.steps[at];
        let series = &self.series[step.series as usize];
        let within = index - step.first;
        let part = step.layers + (within / series.chunks) as u32;
        let within = within % series.chunks;
        let meeting = &self.meetings[series.meeting as usize];
        let [start, end] = meeting.runs;
        let runs = &self.runs[start as usize..end as usize];
        let before = &self.before[series.before as usize..][..runs.len()];
        let run = before.partition_point(|&before| before <= within) - 1;
        let cell = within - before[run];
        let run = &runs[run];
        let width = width(series.most, meeting.slots, run.target.step);
        let (first, count) = cell_terms(run, cell_of(run, 0, width) + cell, width);
        let place = |whole: Progression| Progression {
            first: whole.at(first),
            ..whole
        };
        Some(Chunk {
            step: at as u32,
            layer: self.layers[part as usize],
            part,
            tokens: Shared {
                token: run.token + first * run.step,
                count,
                source: place(run.source),
                target: place(run.target),
                ..*run
            },
            bytes: (u64::from(count) * step.token_bytes) as u32,
        })
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Chunk> + '_ {
        let all = 0..self.len();
        all.map(|index| self.get(index).expect("an index below the number of them"))
    }
}

/// Tokens of the consumer that a cell of the grid spans, of which a run takes every `step`th and `most` at most: whole
/// pages where that many fit, otherwise even parts of a page.
fn width(most: u32, slots: u32, step: u32) -> u64 {
    let (reach, slots) = (u64::from(most) * u64::from(step), u64::from(slots));
    let width = match reach >= slots {
        true => reach - reach % slots,
        false => slots / slots.div_ceil(reach),
    };
    // No cell is without a token.
    width.max(u64::from(step))
}

/// The cell in which a run's token lies.
fn cell_of(run: &Shared, index: u32, width: u64) -> u64 {
    u64::from(run.target.at(index)) / width
}

/// The first of a run's tokens in a cell, and how many there are.
fn cell_terms(run: &Shared, cell: u64, width: u64) -> (u32, u32) {
    let (start, step) = (u64::from(run.target.first), u64::from(run.target.step));
    let count = u64::from(run.count);
    let from = |cell: u64| {
        (cell * width)
            .saturating_sub(start)
            .div_ceil(step)
            .min(count)
    };
    let (first, next) = (from(cell), from(cell + 1));
    (first as u32, (next - first) as u32)
}
