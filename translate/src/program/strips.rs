//! Conversion of a tile, in strips that stay in the L1.

use std::ops::Range;

use super::{Conversions, tiles::Tile};
use crate::{
    convert::Conversion,
    cpu::{Flow, LINE, Level, stream},
    format::Counts,
};

/// Bytes of rows converted at a time before they are stored past the caches: mostly in a 32 KiB L1.
const STRIP_BYTES: usize = 16 << 10;

/// Bytes of rows converted at a time if those that follow are fetched all at once before: more would keep the loads
/// waiting for longer than they gain.
const FETCHED_BYTES: usize = 4 << 10;

/// A tile of dense rows to convert.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) codes: &'a [u8],
    pub(super) params: &'a [u8],
    /// Bytes from each row to one that will be read soon, which is fetched meanwhile; 0 for none.
    pub(super) ahead: usize,
}

/// Where the codes of a converted tile go.
pub(super) enum Out<'a> {
    /// All at once.
    Place(&'a mut [u8]),
    /// Past the caches, strip by strip, by way of a small buffer.
    Stream(Level, &'a mut [u8], &'a mut [u8]),
}

/// Converts a tile of dense rows. Returns the codes made, if they are at one place.
pub(super) fn convert<'a>(
    conversions: &Conversions,
    tile: Tile,
    input: Input<'_>,
    mut out: Out<'a>,
    out_params: &mut [u8],
    counts: &mut Counts,
) -> &'a [u8] {
    let (heads, tokens) = (tile.heads as usize, tile.tokens as usize);
    let mut rows = |one: &Conversion, all: Range<usize>| {
        // Loops that see to memory themselves go on to the end.
        let most = match (one.streams(), one.fetches()) {
            (true, _) => all.len(),
            (_, true) => strip_rows(STRIP_BYTES, one.source_row_bytes()),
            _ => strip_rows(FETCHED_BYTES, one.source_row_bytes()),
        };
        for first in all.clone().step_by(most.max(1)) {
            let last = all.end.min(first + most);
            let part = |bytes: usize| first * bytes..last * bytes;
            let codes = &input.codes[part(one.source_row_bytes())];
            let params = &input.params[part(one.source_params_bytes())];
            let out_params = &mut out_params[part(one.target_params_bytes())];
            let out_part = part(one.target_row_bytes());
            let mut flow = Flow {
                ahead: input.ahead,
                streaming: false,
            };
            if !one.fetches() {
                flow.fetch(codes);
            }
            let mut run = |flow, out: &mut [u8]| {
                *counts += one.run_in(flow, last - first, codes, params, out, out_params);
            };
            match &mut out {
                Out::Place(out) => run(flow, &mut out[out_part]),
                Out::Stream(level, out, buffer) => {
                    let out = &mut out[out_part];
                    if one.streams() && out.as_ptr().align_offset(LINE) == 0 {
                        flow.streaming = true;
                        run(flow, out);
                    } else {
                        let made = &mut buffer[..out.len()];
                        run(flow, made);
                        stream(*level, made, out);
                    }
                }
            }
        }
    };
    match conversions {
        Conversions::All(one) => rows(one, 0..heads * tokens),
        Conversions::Heads(many) => {
            for (h, one) in many[tile.head as usize..][..heads].iter().enumerate() {
                rows(one, h * tokens..(h + 1) * tokens);
            }
        }
    }
    match out {
        Out::Place(out) => out,
        Out::Stream(..) => &[],
    }
}

/// Rows converted at a time: eights of them, so that rows of an odd number of bytes still end with a line.
fn strip_rows(bytes: usize, row_bytes: usize) -> usize {
    let rows = bytes / row_bytes.max(1);
    if rows < 8 { rows.max(1) } else { rows / 8 * 8 }
}
