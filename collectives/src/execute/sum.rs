//! The digest of a chunk, as far as its rows were met.

use std::ops::Range;

use moai_translate::{
    layout::RowOrder,
    program::{Observer, Rows},
};

use crate::{
    digest::{DigestKey, RowAt, RowsAt},
    plan::{Chunk, Pair},
};

/// Adds up the hashes of a chunk's rows, in whatever order they come.
pub(super) struct Sum<'a> {
    key: &'a DigestKey,
    chunk: Chunk,
    layer: u32,
    component: u32,
    first_head: u32,
    sum: u64,
}

impl<'a> Sum<'a> {
    pub(super) fn of(pair: &Pair, chunk: &Chunk, key: &'a DigestKey) -> Self {
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
    pub(super) fn add_from(
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

    pub(super) fn total(&self) -> u64 {
        self.sum
    }
}

impl Observer for Sum<'_> {
    fn wants(&self, from: u32) -> Option<Range<u32>> {
        let tokens = self.chunk.tokens;
        let tokens = (tokens.token, tokens.step, tokens.count);
        self.key
            .covered_from((self.layer, self.component), tokens, from)
    }

    fn rows(&mut self, rows: Rows<'_>) {
        self.add_from(
            rows.order,
            [rows.head, rows.token],
            [rows.heads, rows.tokens],
            rows.codes,
            rows.params,
        );
    }
}
