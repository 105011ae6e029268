//! In which order the chunks of a pair go: layer by layer, as layers become ready.

use std::{collections::VecDeque, ops::Range};

use crate::{
    execute::Runner,
    plan::{Chunk, Chunks},
    protocol::node::ALL_LAYERS,
};

/// The chunks of a pair that are still to go.
///
/// Those of a step and layer go one after another, as far as the tokens that are ready.
#[derive(Debug)]
pub(super) struct Order {
    rows: Vec<Row>,
    /// Rows with a chunk that can go, the next first.
    going: VecDeque<u32>,
    /// All of them, by layer.
    by_layer: Vec<u32>,
}

/// The chunks of a step and layer.
#[derive(Clone, Copy, Debug)]
struct Row {
    layer: u32,
    first: usize,
    next: usize,
    end: usize,
    /// Tokens of the request that are ready.
    tokens: u32,
    is_going: bool,
}

impl Order {
    /// With nothing ready.
    pub(super) fn new(runner: &Runner) -> Self {
        let row = |part| {
            let (layer, chunks) = runner.part(part);
            Row {
                layer,
                first: chunks.start,
                next: chunks.start,
                end: chunks.end,
                tokens: 0,
                is_going: false,
            }
        };
        let rows: Vec<Row> = (0..runner.chunks().parts()).map(row).collect();
        let mut by_layer: Vec<u32> = (0..rows.len() as u32).collect();
        by_layer.sort_by_key(|&at| rows[at as usize].layer);
        Self {
            rows,
            going: VecDeque::new(),
            by_layer,
        }
    }

    /// The first tokens of a layer are ready, or of all layers.
    pub(super) fn ready(&mut self, layer: u32, tokens: u32) {
        for &at in &self.by_layer {
            let row = &mut self.rows[at as usize];
            if (layer != ALL_LAYERS && row.layer != layer) || row.tokens >= tokens {
                continue;
            }
            row.tokens = tokens;
            if row.next < row.end && !std::mem::replace(&mut row.is_going, true) {
                self.going.push_back(at);
            }
        }
    }

    /// From the start again; what is ready stays so.
    pub(super) fn restart(&mut self) {
        self.going.clear();
        let mut ready: Vec<(u32, u32)> = Vec::with_capacity(self.rows.len());
        for row in &mut self.rows {
            row.next = row.first;
            row.is_going = false;
            ready.push((row.layer, std::mem::take(&mut row.tokens)));
        }
        ready.sort_unstable();
        for (layer, tokens) in ready.into_iter().filter(|(_, tokens)| *tokens > 0) {
            self.ready(layer, tokens);
        }
    }

    /// The next chunk that can go.
    pub(super) fn next(&mut self, chunks: &Chunks) -> Option<(usize, Chunk)> {
        while let Some(&at) = self.going.front() {
            let row = &mut self.rows[at as usize];
            let chunk = chunks.get(row.next)?;
            let last = chunk.tokens.token + (chunk.tokens.count - 1) * chunk.tokens.step;
            if last < row.tokens {
                return Some((row.next, chunk));
            }
            row.is_going = false;
            self.going.pop_front();
        }
        None
    }

    /// Takes the chunk that [`next`](Self::next) gave; whether it was the last of its step and layer.
    pub(super) fn advance(&mut self) -> bool {
        let Some(&at) = self.going.front() else {
            return false;
        };
        let row = &mut self.rows[at as usize];
        row.next += 1;
        if row.next < row.end {
            return false;
        }
        row.is_going = false;
        self.going.pop_front();
        true
    }
}

/// Chunks that have gone and whose digests are to be told, as runs of one after another.
#[derive(Debug, Default)]
pub(super) struct Gone {
    chunks: Vec<u32>,
    /// A step and layer has come to its end: whoever waits for it waits for its digests.
    is_due: bool,
}

/// Digests are told in messages of so many, unless there is a reason to tell them earlier: a message then costs little beside
/// the chunks that it is of.
const MOST_GONE: usize = 64;

impl Gone {
    pub(super) fn add(&mut self, chunk: usize, is_last: bool) {
        self.chunks.push(chunk as u32);
        self.is_due |= is_last;
    }

    pub(super) fn clear(&mut self) {
        self.chunks.clear();
        self.is_due = false;
    }

    /// Those that are to be told now; `all` says that no more follow at once.
    pub(super) fn take(&mut self, all: bool) -> Vec<Range<u32>> {
        if !(all || self.is_due || self.chunks.len() >= MOST_GONE) {
            return Vec::new();
        }
        self.is_due = false;
        self.chunks.sort_unstable();
        let mut runs: Vec<Range<u32>> = Vec::new();
        for chunk in self.chunks.drain(..) {
            match runs.last_mut() {
                Some(run) if run.end == chunk => run.end += 1,
                _ => runs.push(chunk..chunk + 1),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_told_in_runs_when_they_are_due() {
        let mut gone = Gone::default();
        for chunk in [5, 3, 4, 9] {
            gone.add(chunk, false);
        }
        assert!(gone.take(false).is_empty());
        assert_eq!(gone.take(true), [3..6, 9..10]);
        gone.add(1, true);
        assert_eq!(gone.take(false), vec![1..2; 1]);
        (0..MOST_GONE).for_each(|chunk| gone.add(chunk, false));
        assert_eq!(gone.take(false), vec![0..MOST_GONE as u32; 1]);
        assert!(gone.take(true).is_empty());
    }
}
