//! From the pages of a pool into dense rows, chunk by chunk: what a producer does before it sends, with the
//! digest of every row and without.

use std::{hint::black_box, sync::Arc};

use moai_fabric::{
    collectives::{
        digest::{DigestKey, RowAt, RowsAt},
        limits::CHUNK_BYTES,
    },
    translate::{
        format::Counts,
        layout::RowOrder,
        program::{Conversions, Place, Program, Progression, Rows, Side},
        reference,
    },
};

use crate::{
    cases::{Case, Shape},
    failure::Failure,
    job::{Found, Work, row_bytes, sample},
    pool::{Pool, place},
    timing::Share,
};

/// The passes of a [`Wire`], in the order they take turns: rows, memcpy, rows with their digest.
pub(crate) const PASSES: usize = 3;

/// One thread's part of a case that ends at the wire.
pub(crate) struct Wire {
    case: Case,
    work: Work,
    source: Pool,
    programs: Vec<Program>,
    conversions: Conversions,
    order: RowOrder,
    chunk: Vec<u8>,
    chunk_tokens: u32,
    key: DigestKey,
    sum: u64,
    copied: Vec<u8>,
    counts: Counts,
}

impl Wire {
    /// A pool filled and programs compiled; nothing gathered yet.
    pub(crate) fn new(case: &Case, work: &Work, thread: u32) -> Result<Self, String> {
        let shape = work.shape;
        let mut random = work.random(thread);
        let [a, b] = &case.formats;
        let mut source = Pool::new(&case.layouts[0], a, shape, work.tokens, &mut random)?;
        source.fill(&mut random)?;
        let conversion = case.conversion()?;
        let order = source.components[0].codes.row_order();
        let programs = source.components.iter().map(|component| {
            let rows = Side::Rows {
                order,
                unit_bytes: b.row.element.unit(shape.dim).bytes,
                params_unit_bytes: b
                    .row
                    .params(shape.dim)
                    .map_or(0, |params| params.unit_bytes),
            };
            Program::new(component.side(), rows, shape.heads, shape.dim, &conversion)
        });
        let wire_row = conversion.target_row_bytes() + conversion.target_params_bytes();
        let token_bytes = shape.heads as usize * wire_row;
        let chunk_tokens = (CHUNK_BYTES as usize / token_bytes).clamp(1, work.tokens as usize);
        let half = (work.rows() * row_bytes(case)?).div_ceil(2) as usize;
        Ok(Self {
            programs: programs.collect(),
            case: case.clone(),
            work: work.clone(),
            source,
            order,
            chunk: vec![0xA5; chunk_tokens * token_bytes],
            chunk_tokens: chunk_tokens as u32,
            key: DigestKey::new(work.seed, wire_row),
            sum: 0,
            conversions: Conversions::All(Arc::new(conversion)),
            copied: vec![1; half],
            counts: Counts::default(),
        })
    }

    /// Makes every chunk and shows it: layer, component, first token, and its rows with their params.
    fn run(&mut self, mut each: impl FnMut(&mut Seen<'_>)) {
        let Shape { layers, heads, .. } = self.work.shape;
        let conversion = self.conversions.any();
        let row = conversion.target_row_bytes();
        let row_params = conversion.target_params_bytes();
        self.counts = Counts::default();
        for layer in 0..layers {
            for (component, program) in (0..).zip(&mut self.programs) {
                let mut first = 0;
                while first < self.work.tokens {
                    let tokens = self.chunk_tokens.min(self.work.tokens - first);
                    let bytes = self.chunk.len() / self.chunk_tokens as usize * tokens as usize;
                    let chunk = &mut self.chunk[..bytes];
                    let mut from = place(layer, &self.source.pages);
                    from.tokens.first = first;
                    let to = Place {
                        layer: 0,
                        pages: &[],
                        tokens: Progression::ALL,
                    };
                    let regions = self.source.regions.as_slice();
                    self.counts += program.run(&self.conversions, tokens, from, to, regions, chunk);
                    let (codes, params) = chunk.split_at(row * (heads * tokens) as usize);
                    each(&mut Seen {
                        layer,
                        component,
                        first,
                        tokens,
                        heads,
                        order: self.order,
                        codes: codes.chunks_exact(row),
                        params,
                        row_params,
                    });
                    first += tokens;
                }
            }
        }
    }

    /// The bound: as many bytes copied into the chunk, which stays in a cache here as it does there.
    fn copy(&mut self) {
        for part in black_box(&self.copied).chunks(self.chunk.len()) {
            black_box(&mut self.chunk[..part.len()]).copy_from_slice(part);
        }
    }

    fn digest(&mut self) {
        let mut sum = 0_u64;
        self.counts = Counts::default();
        for layer in 0..self.work.shape.layers {
            for (component, program) in (0..).zip(&mut self.programs) {
                for first in (0..self.work.tokens).step_by(self.chunk_tokens as usize) {
                    let tokens = self.chunk_tokens.min(self.work.tokens - first);
                    let bytes = self.chunk.len() / self.chunk_tokens as usize * tokens as usize;
                    let mut from = place(layer, &self.source.pages);
                    from.tokens.first = first;
                    let to = Place {
                        layer: 0,
                        pages: &[],
                        tokens: Progression::ALL,
                    };
                    let key = &self.key;
                    let mut add = |rows: Rows<'_>| {
                        let at = RowsAt {
                            first: RowAt {
                                layer,
                                component,
                                head: rows.head,
                                token: first + rows.token,
                            },
                            order: rows.order,
                            heads: rows.heads,
                            tokens: rows.tokens,
                            token_step: 1,
                        };
                        sum = sum.wrapping_add(key.rows(at, rows.codes, rows.params));
                    };
                    self.counts += program.run_observed(
                        &self.conversions,
                        tokens,
                        from,
                        to,
                        self.source.regions.as_slice(),
                        &mut self.chunk[..bytes],
                        &mut add,
                    );
                }
            }
        }
        self.sum = black_box(sum);
    }

    /// Compares rows of every chunk with the reference. How many were.
    fn check(&mut self) -> Result<u64, String> {
        let Shape {
            layers,
            components,
            heads,
            dim,
            ..
        } = self.work.shape;
        let [a, b] = &self.case.formats;
        let mut wanted: Vec<_> = (0..components)
            .flat_map(|component| {
                sample(self.work.check, [layers, self.work.tokens, heads])
                    .map(move |(layer, token, head)| (layer, component, token, head))
            })
            .collect();
        // In the order in which chunks and their rows come.
        match self.order {
            RowOrder::TokenHead => wanted.sort_unstable(),
            RowOrder::HeadToken => {
                let n = self.chunk_tokens;
                wanted.sort_unstable_by_key(|&(l, c, token, head)| (l, c, token / n, head, token));
            }
        }
        wanted.dedup();
        let mut wanted = wanted.into_iter().peekable();
        let conversion = self.conversions.any();
        let zeros = |bytes| vec![0; bytes];
        let mut source = zeros(conversion.source_row_bytes());
        let mut source_params = zeros(conversion.source_params_bytes());
        let mut expected = zeros(conversion.target_row_bytes());
        let mut expected_params = zeros(conversion.target_params_bytes());
        let (a, b) = (a.row, b.row);
        let (mut checked, mut wrong) = (0, None);
        let mut found: Vec<(RowAt, Vec<u8>, Vec<u8>)> = Vec::new();
        self.run(|seen| {
            for (at, row, params) in seen.rows() {
                if wanted
                    .next_if_eq(&(at.layer, at.component, at.token, at.head))
                    .is_some()
                {
                    found.push((at, row.to_vec(), params.to_vec()));
                }
            }
        });
        let left = wanted.count();
        if left > 0 {
            wrong = Some(format!("{left} rows were not met"));
        }
        for (at, row, params) in found {
            let paged = self.source.components[at.component as usize].paged();
            let regions = self.source.regions.as_slice();
            let place = place(at.layer, &self.source.pages);
            paged.read(
                regions,
                place,
                at.token,
                at.head,
                &mut source,
                &mut source_params,
            );
            reference::convert_row(
                &a,
                &b,
                dim,
                &source,
                &source_params,
                &mut expected,
                &mut expected_params,
            );
            if row != expected || params != expected_params {
                wrong = Some(format!(
                    "{at:?} is {row:02x?}, and by the reference {expected:02x?}"
                ));
                break;
            }
            checked += 1;
        }
        match wrong {
            Some(text) => Err(format!(
                "{}, {}: {text}",
                self.case.layout_label(),
                self.case.format_label()
            )),
            None => Ok(checked),
        }
    }
}

/// One chunk.
struct Seen<'a> {
    layer: u32,
    component: u32,
    first: u32,
    tokens: u32,
    heads: u32,
    order: RowOrder,
    codes: std::slice::ChunksExact<'a, u8>,
    params: &'a [u8],
    row_params: usize,
}

impl<'a> Seen<'a> {
    /// Its rows: where each stands in the model, its codes and its params.
    fn rows(&mut self) -> impl Iterator<Item = (RowAt, &'a [u8], &'a [u8])> + '_ {
        (0..self.heads * self.tokens)
            .zip(&mut self.codes)
            .map(|(i, row)| {
                let params = &self.params[i as usize * self.row_params..][..self.row_params];
                let (token, head) = match self.order {
                    RowOrder::TokenHead => (i / self.heads, i % self.heads),
                    RowOrder::HeadToken => (i % self.tokens, i / self.tokens),
                };
                let at = RowAt {
                    layer: self.layer,
                    component: self.component,
                    head,
                    token: self.first + token,
                };
                (at, row, params)
            })
    }
}

impl Share for Wire {
    type Outcome = Found;

    fn pass(&mut self, pass: usize) {
        match pass {
            0 => self.run(|seen| {
                black_box(&mut seen.codes);
            }),
            1 => self.copy(),
            _ => self.digest(),
        }
    }

    fn finish(&mut self) -> Result<Found, Failure> {
        self.chunk.fill(0xA5);
        let rows_checked = self.check().map_err(Failure::Wrong)?;
        Ok(Found {
            rows_checked,
            counts: self.counts,
            threads: 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Check;

    #[test]
    fn every_row_goes_over_the_wire_and_its_digest_depends_on_no_order() {
        let mut sums = Vec::new();
        for (layout, format) in [
            ("nhd", "bf16"),
            ("hnd", "bf16"),
            ("nhd", "int8@token_head"),
            ("hnd", "int8@token_head"),
            ("nhd", "mxfp8_e4m3"),
            ("hnd", "mxfp8_e4m3"),
        ] {
            let case = Case {
                layouts: [layout, "wire"].map(|name| name.parse().unwrap()),
                formats: ["bf16", format].map(|name| name.parse().unwrap()),
            };
            let mut work = Work::new(&case, 3 << 20, 1).unwrap();
            work.check = Check::Full;
            let mut wire = Wire::new(&case, &work, 0).unwrap();
            assert!(wire.chunk_tokens < work.tokens, "more than one chunk");
            assert_eq!(wire.finish().unwrap().rows_checked, work.rows());
            wire.digest();
            let mut sum = 0_u64;
            let mut rows = 0;
            let key = wire.key.clone();
            wire.run(|seen| {
                for (at, row, params) in seen.rows() {
                    sum = sum.wrapping_add(key.row(at, row, params));
                    rows += 1;
                }
            });
            assert_eq!((sum, rows), (wire.sum, work.rows()));
            sums.push(sum);
        }
        sums.dedup();
        assert_eq!(sums.len(), 6, "other rows have other digests");
    }
}
