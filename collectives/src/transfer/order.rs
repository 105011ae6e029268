//! In which order the chunks of a pair go: layer by layer, as layers become ready.

use std::collections::VecDeque;

use crate::{
    execute::Runner,
    plan::{Chunk, Chunks},
    protocol::node::ALL_LAYERS,
};

/// The chunks of a pair that are still to go.
///
/// A sum of digests is of a step and a layer; its chunks go one after another, as far as the tokens that are ready.
#[derive(Debug)]
pub(super) struct Order {
    sums: Vec<Sum>,
    /// Sums with a chunk that can go, the next first.
    going: VecDeque<u32>,
    /// Sums all of whose chunks have gone, and nobody was told yet.
    gone: Vec<u32>,
    /// All of them, by layer.
    by_layer: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Sum {
    layer: u32,
    first: usize,
    next: usize,
    end: usize,
    /// Tokens of the request that are ready.
    tokens: u32,
    is_going: bool,
    is_told: bool,
}

impl Order {
    /// With nothing ready.
    pub(super) fn new(runner: &Runner) -> Self {
        let sum = |part| {
            let (layer, chunks) = runner.sum(part);
            Sum {
                layer,
                first: chunks.start,
                next: chunks.start,
                end: chunks.end,
                tokens: 0,
                is_going: false,
                is_told: false,
            }
        };
        let sums: Vec<Sum> = (0..runner.chunks().parts()).map(sum).collect();
        let mut by_layer: Vec<u32> = (0..sums.len() as u32).collect();
        by_layer.sort_by_key(|&part| sums[part as usize].layer);
        Self {
            sums,
            going: VecDeque::new(),
            gone: Vec::new(),
            by_layer,
        }
    }

    /// The first tokens of a layer are ready, or of all layers.
    pub(super) fn ready(&mut self, layer: u32, tokens: u32) {
        for &part in &self.by_layer {
            let sum = &mut self.sums[part as usize];
            if (layer != ALL_LAYERS && sum.layer != layer) || sum.tokens >= tokens {
                continue;
            }
            sum.tokens = tokens;
            if sum.next < sum.end {
                if !std::mem::replace(&mut sum.is_going, true) {
                    self.going.push_back(part);
                }
            } else if !std::mem::replace(&mut sum.is_told, true) {
                self.gone.push(part);
            }
        }
    }

    /// From the start again; what is ready stays so.
    pub(super) fn restart(&mut self) {
        self.going.clear();
        self.gone.clear();
        for sum in &mut self.sums {
            sum.next = sum.first;
            (sum.is_going, sum.is_told) = (false, false);
        }
        let mut ready: Vec<(u32, u32)> = { self.sums.iter_mut() }
            .map(|sum| (sum.layer, std::mem::take(&mut sum.tokens)))
            .collect();
        ready.sort_unstable();
        for (layer, tokens) in ready.into_iter().filter(|(_, tokens)| *tokens > 0) {
            self.ready(layer, tokens);
        }
    }

    /// The next chunk that can go.
    pub(super) fn next(&mut self, chunks: &Chunks) -> Option<(usize, Chunk)> {
        while let Some(&part) = self.going.front() {
            let sum = &mut self.sums[part as usize];
            let chunk = chunks.get(sum.next)?;
            let last = chunk.tokens.token + (chunk.tokens.count - 1) * chunk.tokens.step;
            if last < sum.tokens {
                return Some((sum.next, chunk));
            }
            sum.is_going = false;
            self.going.pop_front();
        }
        None
    }

    /// Takes the chunk that [`next`](Self::next) gave. If it was the last of its sum, that is returned, to be
    /// [`finished`](Self::finish) once the chunk has gone.
    pub(super) fn advance(&mut self) -> Option<u32> {
        let part = *self.going.front()?;
        let sum = &mut self.sums[part as usize];
        sum.next += 1;
        if sum.next < sum.end {
            return None;
        }
        (sum.is_going, sum.is_told) = (false, true);
        self.going.pop_front();
        Some(part)
    }

    /// All chunks of a sum have gone.
    pub(super) fn finish(&mut self, part: u32) {
        self.gone.push(part);
    }

    /// Sums that are complete since the last call, as runs of one after another.
    pub(super) fn gone(&mut self) -> Vec<std::ops::Range<u32>> {
        self.gone.sort_unstable();
        let mut runs: Vec<std::ops::Range<u32>> = Vec::new();
        for part in self.gone.drain(..) {
            match runs.last_mut() {
                Some(run) if run.end == part => run.end += 1,
                _ => runs.push(part..part + 1),
            }
        }
        runs
    }
}
