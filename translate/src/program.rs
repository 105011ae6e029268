//! Programs: how a box of rows in one layout and format becomes a box in another.
//!
//! There is one mechanism for every pair. Where the bytes of a row are carried unchanged, a program is a
//! set of strided copies from one side straight to the other. Where they change, rows are gathered into a
//! small tile of dense rows, converted there, and scattered; a side whose rows already lie densely is
//! used as it is, so that a conversion next to the wire moves every byte once.
//!
//! A tile stays in the caches nearest to the core, and while it is worked on the next is fetched. A box that is
//! larger than these caches is stored past them, in whole lines: where copies would make lines in parts,
//! they go by way of a small image of the target.

mod pieces;
mod sides;
mod strips;
mod threads;
mod tiles;

use std::{fmt, ops::Range, sync::Arc};

use moai_memory::{Read, Write};

use crate::{
    convert::Conversion,
    cpu::{Alone, Fence, LINE, Level, Manner, Target},
    format::Counts,
    layout::{Address, RowOrder},
    refine::{Corner, Piece, Size},
};
use pieces::{Kept, Segment, Shape, Stage, View};
pub use sides::{Conversions, Observer, Place, Progression, Rows, Side};
use sides::{DENSE, Half, asked_for};
use strips::{Input, Out, convert};
pub use threads::Step;
use tiles::{Tile, Tiles};

/// A compiled program between two sides, over all heads and dims of its box.
///
/// It is independent of the request: layer, pages and tokens are given to [`run`](Self::run). Strided
/// copies are compiled for each shape of token range when it is first met, and kept.
#[derive(Clone)]
pub struct Program {
    source: Half,
    target: Half,
    heads: u32,
    dim: u32,
    level: Level,
    streaming_from: u64,
    thread_bytes: u64,
    kept: Kept,
    buffers: [Vec<u8>; 3],
    /// The same program for each other thread.
    workers: Vec<Self>,
}

/// Bytes of rows worked on at a time: the rows of a tile, gathered and converted, stay in a 1 MiB L2 and mostly
/// in a 32 KiB L1, together with the lines of source and target that are in flight.
const TILE_BYTES: u64 = 32 << 10;

/// Bytes of a box from which its target is stored past the caches: more than an L2 holds, so that it could not
/// be found there anyway.
const STREAMING_FROM: u64 = 4 << 20;

/// One run of a program; without a target, what would be written is only shown.
struct Job<'a, S: ?Sized, T: ?Sized> {
    conversions: &'a Conversions,
    tokens: u32,
    /// Those of the box's tokens that are moved.
    part: Range<u32>,
    from: Place<'a>,
    to: Place<'a>,
    source: &'a S,
    target: Option<&'a mut T>,
    observer: Option<&'a mut dyn Observer>,
}

impl<S: ?Sized, T: ?Sized> Job<'_, S, T> {
    /// The same for some of the tokens.
    fn of<'b>(
        &'b mut self,
        part: Range<u32>,
        observer: Option<&'b mut dyn Observer>,
    ) -> Job<'b, S, T> {
        Job {
            part,
            target: self.target.as_deref_mut(),
            observer,
            ..*self
        }
    }
}

impl Program {
    /// A program over `heads` heads and `dim` elements of each row, for conversions like `any`,
    /// which may differ from it in constants.
    #[must_use]
    pub fn new(source: Side, target: Side, heads: u32, dim: u32, any: &Conversion) -> Self {
        Self {
            source: Half {
                side: source,
                row_bytes: any.source_row_bytes() as u64,
                params_bytes: any.source_params_bytes() as u64,
            },
            target: Half {
                side: target,
                row_bytes: any.target_row_bytes() as u64,
                params_bytes: any.target_params_bytes() as u64,
            },
            heads,
            dim,
            level: Level::best(),
            streaming_from: STREAMING_FROM,
            thread_bytes: threads::THREAD_BYTES,
            kept: Kept::default(),
            buffers: [const { Vec::new() }; 3],
            workers: Vec::new(),
        }
    }

    /// Stores boxes of `bytes` bytes and more past the caches, instead of those larger than an L2.
    ///
    /// Pays off if the target, although small, is one of many and will not be read again soon; costs
    /// whoever reads it next a fetch from memory. `u64::MAX` for never.
    #[must_use]
    pub fn with_streaming_from(mut self, bytes: u64) -> Self {
        self.streaming_from = bytes;
        self
    }

    /// Stores past the caches if all that is written, of which this program's boxes are parts, is more than an L2 holds.
    #[must_use]
    pub fn as_part_of(mut self, bytes_written: u64) -> Self {
        self.be_part_of(bytes_written);
        self
    }

    /// As [`as_part_of`](Self::as_part_of), from now on.
    pub fn be_part_of(&mut self, bytes_written: u64) {
        let large = bytes_written >= STREAMING_FROM;
        self.streaming_from = if large { 0 } else { u64::MAX };
    }

    /// Starts a thread in [`run_on`](Self::run_on) for no fewer than `bytes` bytes of the target, instead of some
    /// hundred KiB.
    #[must_use]
    pub fn with_thread_bytes(mut self, bytes: u64) -> Self {
        self.thread_bytes = bytes;
        self
    }

    /// Runs with the instructions of `level` instead of the best that the CPU has, for comparison.
    ///
    /// # Panics
    ///
    /// If the CPU has not that level.
    #[doc(hidden)]
    #[must_use]
    pub fn with_level(mut self, level: Level) -> Self {
        assert!(level <= Level::best(), "the CPU has no {level:?}");
        self.level = level;
        self
    }

    /// The source side.
    #[must_use]
    pub fn source(&self) -> &Side {
        &self.source.side
    }

    /// The target side.
    #[must_use]
    pub fn target(&self) -> &Side {
        &self.target.side
    }

    /// Heads of the box.
    #[must_use]
    pub fn heads(&self) -> u32 {
        self.heads
    }

    /// Elements of each row of the box.
    #[must_use]
    pub fn dim(&self) -> u32 {
        self.dim
    }

    /// Carries `tokens` tokens from `source` to `target`.
    ///
    /// # Panics
    ///
    /// If a page, region or offset lies outside what `source` and `target` hold. Descriptors are
    /// checked against their regions and requests against their pages before any program runs.
    pub fn run<S: Read + ?Sized, T: Write + ?Sized>(
        &mut self,
        conversions: &Conversions,
        tokens: u32,
        from: Place<'_>,
        to: Place<'_>,
        source: &S,
        target: &mut T,
    ) -> Counts {
        self.go(Job {
            conversions,
            tokens,
            part: 0..tokens,
            from,
            to,
            source,
            target: Some(&mut Alone(target)),
            observer: None,
        })
    }

    /// [`run`](Self::run), showing to `observer` the tiles of those tokens that it asks for, on the way.
    ///
    /// # Panics
    ///
    /// As `run`.
    #[allow(
        clippy::too_many_arguments,
        reason = "those of `run`, and the observer"
    )]
    pub fn run_observed<S: Read + ?Sized, T: Write + ?Sized>(
        &mut self,
        conversions: &Conversions,
        tokens: u32,
        from: Place<'_>,
        to: Place<'_>,
        source: &S,
        target: &mut T,
        observer: &mut dyn Observer,
    ) -> Counts {
        self.go_shown(
            Job {
                conversions,
                tokens,
                part: 0..tokens,
                from,
                to,
                source,
                target: Some(&mut Alone(target)),
                observer: None,
            },
            observer,
        )
    }

    /// Shows to `observer` the tiles of those tokens that it asks for, as [`run`](Self::run) would write them, and writes
    /// none. The target is to be rows.
    ///
    /// # Panics
    ///
    /// If the target is pages, or a page, region or offset lies outside what `source` holds.
    pub fn observe<S: Read + ?Sized>(
        &mut self,
        conversions: &Conversions,
        tokens: u32,
        from: Place<'_>,
        source: &S,
        observer: &mut dyn Observer,
    ) -> Counts {
        self.go_shown(
            Job::<S, Alone<'_, [moai_memory::Region]>> {
                conversions,
                tokens,
                part: 0..tokens,
                from,
                to: DENSE,
                source,
                target: None,
                observer: None,
            },
            observer,
        )
    }

    /// What nobody looks at goes straight from side to side, or nowhere if there is no target.
    fn go_shown<S: Read + ?Sized, T: Target>(
        &mut self,
        mut job: Job<'_, S, T>,
        observer: &mut dyn Observer,
    ) -> Counts {
        let (mut counts, mut left) = (Counts::default(), job.part.clone());
        while !left.is_empty() {
            let part = asked_for(observer, left.clone()).unwrap_or(left.end..left.end);
            if job.target.is_some() {
                counts += self.go(job.of(left.start..part.start, None));
            }
            left.start = part.end;
            counts += self.go(job.of(part, Some(&mut *observer)));
        }
        counts
    }

    fn go<S: Read + ?Sized, T: Target>(&mut self, mut job: Job<'_, S, T>) -> Counts {
        if job.part.is_empty() {
            return Counts::default();
        }
        let [Some(a), Some(b)] = self.views(job.tokens, false) else {
            return Counts::default();
        };
        let params = self.views(job.tokens, true);
        let rows = u64::from(self.heads) * u64::from(job.tokens);
        let streaming = rows * self.target.row_bytes >= self.streaming_from;
        let _fence = streaming.then_some(Fence);
        let mut buffers = std::mem::take(&mut self.buffers);
        let carried = job.conversions.is_identity() && job.observer.is_none();
        let counts = if carried && !(streaming && self.joins_parts_of_lines([&a, &b], &job)) {
            self.carry([&a, &b], false, &mut job, streaming, &mut buffers[2]);
            if let [Some(a), Some(b)] = &params {
                self.carry([a, b], true, &mut job, streaming, &mut buffers[2]);
            }
            Counts::default()
        } else {
            self.by_tiles([&a, &b], &params, &mut job, streaming, &mut buffers)
        };
        self.buffers = buffers;
        counts
    }

    /// The copies of the first segment, from side to side.
    fn first_pieces<S: ?Sized, T: ?Sized>(
        &mut self,
        [a, b]: [&View; 2],
        params: bool,
        job: &Job<'_, S, T>,
    ) -> Arc<[Piece]> {
        let from = a.segment(job.from, 0, 0, job.tokens);
        let to = b.segment(job.to, 0, 0, from.tokens);
        let pass = Pass {
            stage: Stage::Direct,
            params,
            heads: self.heads,
            tokens: to.tokens,
            streaming: false,
            ahead: None,
        };
        self.pieces(pass, [a, b], [from, to])
    }

    /// Whether copies from side to side would make lines in parts that a tile could make as a whole: the
    /// source keeps tokens in several pages that the target keeps in one.
    fn joins_parts_of_lines<S: ?Sized, T: ?Sized>(
        &mut self,
        [a, b]: [&View; 2],
        job: &Job<'_, S, T>,
    ) -> bool {
        let line = LINE as u64;
        let parts = |piece: &Piece| piece.copy.run_bytes() < line && piece.staged.is_none();
        a.room(job.from) < b.room(job.to) && self.first_pieces([a, b], false, job).iter().any(parts)
    }

    /// Carries one plane, unchanged, from side to side.
    fn carry<S: Read + ?Sized, T: Target>(
        &mut self,
        [a, b]: [&View; 2],
        params: bool,
        job: &mut Job<'_, S, T>,
        streaming: bool,
        image: &mut Vec<u8>,
    ) {
        let pieces = self.first_pieces([a, b], params, job);
        let whole = !streaming || pieces.iter().all(|p| p.copy.run_bytes() >= LINE as u64);
        let Some(target) = job.target.as_deref_mut() else {
            return;
        };
        for tile in self.tiles([a, b], [job.from, job.to], job.part.clone(), whole) {
            let pass = Pass {
                stage: Stage::Direct,
                params,
                heads: tile.heads,
                tokens: tile.tokens,
                streaming,
                ahead: tile.next,
            };
            let from = End::of(a, job.from, tile);
            let to = End::of(b, job.to, tile);
            self.pass(pass, from, to, job.source, target, image);
        }
    }

    /// Carries a box by way of tiles of dense rows.
    fn by_tiles<S: Read + ?Sized, T: Target>(
        &mut self,
        [a, b]: [&View; 2],
        [a_params, b_params]: &[Option<View>; 2],
        job: &mut Job<'_, S, T>,
        streaming: bool,
        [raw, made, image]: &mut [Vec<u8>; 3],
    ) -> Counts {
        let conversions = job.conversions;
        let identity = conversions.is_identity();
        let order = match conversions {
            Conversions::All(_) => self.order(),
            // Rows of one head side by side, so that each conversion has a run of them.
            Conversions::Heads(_) => RowOrder::HeadToken,
        };
        let (in_bytes, out_bytes) = (self.source.bytes(), self.target.bytes());
        let mut counts = Counts::default();
        let mut frame: Option<Frame> = None;
        let mut dense_runs = [DenseRun::default(); 2];
        for tile in self.tiles([a, b], [job.from, job.to], job.part.clone(), false) {
            let rows = tile.heads as usize * tile.tokens as usize;
            let pass = |stage, params| Pass {
                stage,
                params,
                heads: tile.heads,
                tokens: tile.tokens,
                streaming: streaming && matches!(stage, Stage::Scatter(_)),
                ahead: tile.next.filter(|_| matches!(stage, Stage::Gather(_))),
            };
            // Most tiles are of one size.
            let frame = match &mut frame {
                Some(frame) if (frame.heads, frame.tokens) == (tile.heads, tile.tokens) => frame,
                frame => frame.insert(Frame::new(
                    order,
                    tile,
                    [(a, a_params), (b, b_params)],
                    [in_bytes, out_bytes],
                )),
            };
            let (gather, scatter) = (Stage::Gather(order), Stage::Scatter(order));
            let from = |view| End::of(view, job.from, tile);
            let to = |view| End::of(view, job.to, tile);

            // Gather, unless the source's rows are dense already.
            let (codes, params) = room(raw, rows * in_bytes[0], rows * in_bytes[1]);
            let borrowed = self
                .dense_run(
                    &mut dense_runs[0],
                    pass(gather, false),
                    from(a),
                    &frame.codes[0],
                )
                .map(|at| &job.source.bytes(at.region as usize)[at.byte as usize..]);
            // Where the target is to hold the rows as they come.
            let run = if job.target.is_none() || (identity && borrowed.is_some()) {
                None
            } else {
                self.dense_run(
                    &mut dense_runs[1],
                    pass(scatter, false),
                    to(b),
                    &frame.codes[1],
                )
            };
            let in_place = run.filter(|_| !streaming);
            // What an observer is to see must be there as a whole.
            let streamed = run.filter(|_| streaming && !identity && job.observer.is_none());
            if borrowed.is_none() {
                let codes = match (in_place, &mut job.target) {
                    (Some(at), Some(target)) if identity => {
                        part_mut(*target, at, rows * out_bytes[0])
                    }
                    _ => &mut *codes,
                };
                let (gather, dense) = (pass(gather, false), End::dense(&frame.codes[0]));
                self.pass(gather, from(a), dense, job.source, &mut Alone(codes), image);
            }
            if let (Some(a), Some(rows)) = (a_params, &frame.params[0]) {
                let dense = End::dense(rows);
                self.pass(
                    pass(gather, true),
                    from(a),
                    dense,
                    job.source,
                    &mut Alone(&mut *params),
                    image,
                );
            }
            let (codes, params) = (
                borrowed.map_or(&*codes, |bytes| &bytes[..rows * in_bytes[0]]),
                &*params,
            );

            // Convert.
            let mut show = |codes: &[u8], params: &[u8]| {
                if let Some(observer) = &mut job.observer {
                    observer.rows(Rows {
                        head: tile.head,
                        heads: tile.heads,
                        token: tile.token,
                        tokens: tile.tokens,
                        order,
                        codes,
                        params,
                    });
                }
            };
            let (codes, params) = if identity {
                match (in_place, &mut job.target) {
                    (Some(at), Some(target)) => {
                        show(part_mut(*target, at, rows * out_bytes[0]), params);
                    }
                    _ => show(codes, params),
                }
                (codes, params)
            } else {
                let (made, made_params) = room(made, rows * out_bytes[0], rows * out_bytes[1]);
                // Gathering fetches the next tile; rows that are dense already are fetched while they are converted.
                let ahead = match tile.next {
                    Some(next) if borrowed.is_some() => from(a).ahead(0, next, job.source),
                    _ => 0,
                };
                let input = Input {
                    codes,
                    params,
                    ahead,
                };
                let out = match (in_place, streamed, &mut job.target) {
                    (Some(at), _, Some(target)) => Out::Place(part_mut(*target, at, made.len())),
                    (_, Some(at), Some(target)) => {
                        Out::Stream(self.level, part_mut(*target, at, made.len()), made)
                    }
                    _ => Out::Place(&mut *made),
                };
                let out = convert(conversions, tile, input, out, made_params, &mut counts);
                show(out, made_params);
                (&*made, &*made_params)
            };

            // Scatter what was not made in place.
            let Some(target) = job.target.as_deref_mut() else {
                continue;
            };
            if in_place.or(streamed).is_none() {
                let dense = End::dense(&frame.codes[1]);
                self.pass(pass(scatter, false), dense, to(b), codes, target, image);
            }
            if let (Some(b), Some(rows)) = (b_params, &frame.params[1]) {
                let dense = End::dense(rows);
                self.pass(pass(scatter, true), dense, to(b), params, target, image);
            }
        }
        counts
    }

    /// Strided copies over the tokens of a tile, cut where either side changes page.
    fn pass<S: Read + ?Sized, T: Target>(
        &mut self,
        pass: Pass,
        from: End<'_>,
        to: End<'_>,
        source: &S,
        target: &mut T,
        image: &mut Vec<u8>,
    ) {
        let mut done = 0;
        while done < pass.tokens {
            let a = from.segment(done, pass.tokens - done);
            let b = to.segment(done, a.tokens);
            let pieces = self.pieces(pass, [from.view, to.view], [a, b]);
            let manner = Manner {
                level: self.level,
                streaming: pass.streaming,
                ahead: pass.ahead.map_or(0, |next| from.ahead(done, next, source)),
            };
            for piece in &*pieces {
                let (s, t) = (a.base.plus(piece.source), b.base.plus(piece.target));
                let source = source.bytes(s.region as usize);
                let target = target.dest(t.region);
                match &piece.staged {
                    Some(staged) if pass.streaming && piece.copy.bytes() <= 2 * TILE_BYTES => {
                        let (image, _) = room(image, piece.copy.bytes() as usize, 0);
                        staged.fill.run_in(manner, source, s.byte, image.into(), 0);
                        let manner = Manner { ahead: 0, ..manner };
                        staged.flush.run_in(manner, image, 0, target, t.byte);
                    }
                    _ => piece.copy.run_in(manner, source, s.byte, target, t.byte),
                }
            }
            done += b.tokens;
        }
    }

    /// The copies of a segment.
    fn pieces(&mut self, pass: Pass, [from, to]: [&View; 2], [a, b]: [Segment; 2]) -> Arc<[Piece]> {
        let half = match pass.stage {
            Stage::Scatter(_) => &self.target,
            _ => &self.source,
        };
        let row_bytes = half.bytes()[usize::from(pass.params)] as u32;
        let shape = Shape {
            stage: pass.stage,
            params: pass.params,
            source: a.corner,
            target: b.corner,
            size: Size {
                heads: pass.heads,
                slots: b.tokens,
                units: row_bytes / from.layout.unit_bytes(),
            },
            rows: [from, to].map(View::rows),
        };
        self.kept.pieces(shape, from, to)
    }

    /// Where a tile starts on a side whose rows are dense already, nested as those of a tile are.
    fn dense_run(
        &mut self,
        last: &mut DenseRun,
        pass: Pass,
        end: End<'_>,
        rows: &View,
    ) -> Option<Address> {
        let segment = end.segment(0, pass.tokens);
        if segment.tokens < pass.tokens {
            return None;
        }
        let like = (segment.corner, pass.heads, pass.tokens);
        if last.like != Some(like) {
            let dense = End::dense(rows).segment(0, pass.tokens);
            let pieces = match pass.stage {
                Stage::Scatter(_) => self.pieces(pass, [rows, end.view], [dense, segment]),
                _ => self.pieces(pass, [end.view, rows], [segment, dense]),
            };
            let offset = match (&*pieces, pass.stage) {
                ([piece], Stage::Scatter(_)) if piece.copy.is_one_run() => Some(piece.target),
                ([piece], _) if piece.copy.is_one_run() => Some(piece.source),
                _ => None,
            };
            *last = DenseRun {
                like: Some(like),
                offset,
            };
        }
        Some(segment.base.plus(last.offset?))
    }

    /// The tiles of a box: of whole pages and all heads if `whole`, otherwise of about [`TILE_BYTES`].
    fn tiles<'a>(
        &self,
        [a, b]: [&'a View; 2],
        [from, to]: [Place<'a>; 2],
        tokens: Range<u32>,
        whole: bool,
    ) -> Tiles<'a> {
        let (pages, place) = match (a.paged, b.paged) {
            (true, true) if b.room(to) > a.room(from) => (b, to),
            (false, true) => (b, to),
            _ => (a, from),
        };
        let page = pages.room(place).min(tokens.end - tokens.start);
        let row = self.source.row_bytes + self.source.params_bytes;
        let row = row.max(self.target.row_bytes + self.target.params_bytes);
        let rows = (TILE_BYTES / row.max(1)).clamp(1, u64::from(u32::MAX)) as u32;
        let (most_heads, most_tokens) = if whole {
            (self.heads, page)
        } else if a.is_token_major() && b.is_token_major() {
            let heads = self.heads.min(rows);
            (heads, rows / heads)
        } else {
            // A page's tokens together, since they may share lines; if there are too many, so that their
            // parts start with a line.
            let tokens = match rows {
                _ if page <= rows => page,
                64.. => rows / 64 * 64,
                _ => 1 << rows.ilog2(),
            };
            ((rows / tokens).clamp(1, self.heads), tokens)
        };
        Tiles {
            heads: self.heads,
            tokens: tokens.end,
            most_heads,
            most_tokens,
            pages,
            place,
            at: Some((0, tokens.start)),
        }
    }

    /// The order of dense rows that the two sides follow best.
    fn order(&self) -> RowOrder {
        match (&self.source.side, &self.target.side) {
            (_, Side::Rows { order, .. }) | (Side::Rows { order, .. }, _) => *order,
            (_, Side::Paged { codes, .. }) => codes.row_order(),
        }
    }

    /// Where both sides' codes lie, or their parameters if they have any.
    fn views(&self, tokens: u32, params: bool) -> [Option<View>; 2] {
        [&self.source, &self.target].map(|half| half.view(self.heads, tokens, params))
    }

    /// Contiguous runs that a box of `tokens` tokens has in the pages of its paged side, those of its
    /// parameters included: how many pieces a transport without gathering would post.
    pub fn paged_runs(&mut self, tokens: u32, place: Place<'_>) -> u64 {
        let order = self.order();
        let (half, stage) = match (&self.source.side, &self.target.side) {
            (Side::Paged { .. }, _) => (&self.source, Stage::Gather(order)),
            (_, Side::Paged { .. }) => (&self.target, Stage::Scatter(order)),
            _ => return 0,
        };
        let planes = [false, true].map(|params| {
            let row_bytes = half.bytes()[usize::from(params)] as u64;
            (params, half.view(self.heads, tokens, params), row_bytes)
        });
        let mut runs = 0;
        for (params, view, row_bytes) in planes {
            let Some(view) = view else { continue };
            let unit = view.layout.unit_bytes();
            let rows = View::dense(order, self.heads, tokens, row_bytes, unit);
            let mut done = 0;
            while done < tokens {
                let paged = view.segment(place, done, 0, tokens - done);
                let dense = rows.segment(DENSE, done, 0, paged.tokens);
                let pass = Pass::plain(stage, params, self.heads, paged.tokens);
                let pieces = match stage {
                    Stage::Scatter(_) => self.pieces(pass, [&rows, &view], [dense, paged]),
                    _ => self.pieces(pass, [&view, &rows], [paged, dense]),
                };
                let of = |p: &Piece| p.copy.bytes() / p.copy.run_bytes();
                runs += pieces.iter().map(of).sum::<u64>();
                done += paged.tokens;
            }
        }
        runs
    }

    /// The runs of a box whose bytes are carried unchanged from dense rows into pages: where
    /// consecutive bytes of the rows go. `None` if something else than plain runs is needed.
    pub fn runs_into(
        &mut self,
        conversions: &Conversions,
        tokens: u32,
        to: Place<'_>,
        mut each: impl FnMut(u64, Address, u64),
    ) -> Option<()> {
        if !conversions.is_identity() {
            return None;
        }
        for params in [false, true] {
            let [Some(a), Some(b)] = self.views(tokens, params) else {
                continue;
            };
            let mut done = 0;
            while done < tokens {
                let from = a.segment(DENSE, done, 0, tokens - done);
                let to = b.segment(to, done, 0, from.tokens);
                let pass = Pass::plain(Stage::Direct, params, self.heads, to.tokens);
                let pieces = self.pieces(pass, [&a, &b], [from, to]);
                for piece in &*pieces {
                    let (s, t) = (from.base.plus(piece.source), to.base.plus(piece.target));
                    piece.copy.for_each_run(|from, to, bytes| {
                        let at = Address {
                            byte: t.byte + to,
                            ..t
                        };
                        each(s.byte + from, at, bytes);
                    });
                }
                done += to.tokens;
            }
        }
        Some(())
    }
}

/// Strided copies over the tokens of a tile.
#[derive(Clone, Copy)]
struct Pass {
    stage: Stage,
    params: bool,
    heads: u32,
    tokens: u32,
    streaming: bool,
    /// Where the next tile starts, whose lines are fetched meanwhile: (head, token) within the box.
    ahead: Option<(u32, u32)>,
}

impl Pass {
    fn plain(stage: Stage, params: bool, heads: u32, tokens: u32) -> Self {
        Self {
            stage,
            params,
            heads,
            tokens,
            streaming: false,
            ahead: None,
        }
    }
}

/// Where a tile lies on one side.
#[derive(Clone, Copy)]
struct End<'a> {
    view: &'a View,
    place: Place<'a>,
    /// Where the tile starts within the place.
    head: u32,
    token: u32,
}

impl<'a> End<'a> {
    fn of(view: &'a View, place: Place<'a>, tile: Tile) -> Self {
        Self {
            view,
            place,
            head: tile.head,
            token: tile.token,
        }
    }

    /// A buffer of the tile's own.
    fn dense(view: &'a View) -> Self {
        Self {
            view,
            place: DENSE,
            head: 0,
            token: 0,
        }
    }

    fn segment(&self, done: u32, left: u32) -> Segment {
        self.view
            .segment(self.place, self.token + done, self.head, left)
    }

    /// Bytes from what is read now, `done` tokens into the tile, to what is read as far into the next.
    fn ahead<S: Read + ?Sized>(&self, done: u32, (head, token): (u32, u32), memory: &S) -> usize {
        let at = |head, token| {
            let first = self.view.first(self.place, token, head);
            let region = memory.bytes(first.region as usize).as_ptr();
            region.addr().wrapping_add(first.byte as usize)
        };
        // As far into the next tile may be further than the box goes; its start will do.
        let last = self.view.covers(self.place, token + done);
        let next = at(head, if last { token + done } else { token });
        next.wrapping_sub(at(self.head, self.token + done))
    }
}

/// The dense rows of tiles of one size: codes of both sides, and their params.
struct Frame {
    heads: u32,
    tokens: u32,
    codes: [View; 2],
    params: [Option<View>; 2],
}

impl Frame {
    /// Rows as wide as those of `like`, of so many bytes each.
    fn new(
        order: RowOrder,
        tile: Tile,
        like: [(&View, &Option<View>); 2],
        [source, target]: [[usize; 2]; 2],
    ) -> Self {
        let rows = |bytes: usize, like: &View| {
            let unit = like.layout.unit_bytes();
            View::dense(order, tile.heads, tile.tokens, bytes as u64, unit)
        };
        let [(a, a_params), (b, b_params)] = like;
        Self {
            heads: tile.heads,
            tokens: tile.tokens,
            codes: [rows(source[0], a), rows(target[0], b)],
            params: [
                a_params.as_ref().map(|like| rows(source[1], like)),
                b_params.as_ref().map(|like| rows(target[1], like)),
            ],
        }
    }
}

/// Whether, and where from its base, the last segment of a side was one run of dense rows.
#[derive(Clone, Copy, Default)]
struct DenseRun {
    like: Option<(Corner, u32, u32)>,
    offset: Option<Address>,
}

/// `len` bytes of the target.
fn part_mut<T: Target>(target: &mut T, at: Address, len: usize) -> &mut [u8] {
    target.dest(at.region).part(at.byte, len)
}

/// Room for the codes and the parameters of a tile, the codes from the start of a line on.
fn room(buffer: &mut Vec<u8>, codes: usize, params: usize) -> (&mut [u8], &mut [u8]) {
    let need = codes + params + LINE;
    if buffer.len() < need {
        buffer.resize(need, 0);
    }
    let skip = buffer.as_ptr().align_offset(LINE).min(LINE);
    buffer[skip..][..codes + params].split_at_mut(codes)
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("source", &self.source.side)
            .field("target", &self.target.side)
            .field("heads", &self.heads)
            .field("dim", &self.dim)
            .finish_non_exhaustive()
    }
}
