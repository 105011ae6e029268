//! A box divided among threads.

use std::{collections::BTreeSet, ops::Range, thread};

use moai_memory::{Parts, Read};

use super::{Conversions, Half, Job, Place, Program, Progression, Side};
use crate::{
    cpu::Shared,
    format::Counts,
    layout::{Layout, overlap},
};

/// Bytes of the target that are worth a thread of their own: starting one costs as much as moving some hundred KiB.
pub(super) const THREAD_BYTES: u64 = 512 << 10;

/// One layer of the work of [`Program::run_on`]: what [`Program::run`] is given.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::exhaustive_structs, reason = "what a layer leaves open")]
pub struct Step<'a> {
    /// What is done to rows.
    pub conversions: &'a Conversions,
    /// Where the box lies in the source.
    pub from: Place<'a>,
    /// Where it lies in the target.
    pub to: Place<'a>,
}

impl Program {
    /// [`run`](Self::run) for one layer after the other, on up to so many threads, this one among them.
    ///
    /// Each takes some pages of the target and goes through all layers. [`threads`](Self::threads) says how many
    /// there will be. Threads are started anew, which takes some 20 µs each; that is why this takes many layers.
    ///
    /// # Panics
    ///
    /// As `run`.
    pub fn run_on<S: Read + Sync + ?Sized, T: Parts + ?Sized>(
        &mut self,
        threads: u32,
        tokens: u32,
        steps: &[Step<'_>],
        source: &S,
        target: &mut T,
    ) -> Counts {
        let ranges = self.ranges(threads, tokens, steps);
        if ranges.len() < 2 {
            let mut counts = Counts::default();
            for step in steps {
                counts += self.run(step.conversions, tokens, step.from, step.to, source, target);
            }
            return counts;
        }
        let shared = Shared::new(target);
        let go = |program: &mut Self, range: &Range<u32>| {
            let mut counts = Counts::default();
            for step in steps {
                // SAFETY: each thread writes the codes and params of its own tokens: of pages that are in no other's
                // range, since those of the request differ and are the same in all steps, or of rows of its own
                // (`ranges`). Layouts place no two units at the same bytes, rows are whole units and lie within the
                // extents, and codes and params have no byte in common (`is_divisible`); nor have two of the regions
                // (`Shared::new`).
                let mut writer = unsafe { shared.writer() };
                counts += program.go(Job {
                    conversions: step.conversions,
                    tokens,
                    part: range.clone(),
                    from: step.from,
                    to: step.to,
                    source,
                    target: Some(&mut writer),
                    observer: None,
                });
            }
            counts
        };
        let mut workers = std::mem::take(&mut self.workers);
        workers.resize_with(ranges.len() - 1, || self.alone());
        let counts = thread::scope(|scope| {
            let mut started = Vec::new();
            let mut left = vec![&ranges[0]];
            for (worker, range) in workers.iter_mut().zip(&ranges[1..]) {
                let others = thread::Builder::new();
                match others.spawn_scoped(scope, || go(worker, range)) {
                    Ok(other) => started.push(other),
                    // The system has no more threads; this one has time.
                    Err(_) => left.push(range),
                }
            }
            let mut counts = Counts::default();
            for range in left {
                counts += go(self, range);
            }
            for other in started {
                match other.join() {
                    Ok(more) => counts += more,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            counts
        });
        self.workers = workers;
        counts
    }

    /// On how many threads [`run_on`](Self::run_on) divides this work if it may have up to `threads`, as far as the
    /// system has them.
    ///
    /// Fewer than that if there is little to do or the box has few pages. One if layers have pages of their own each,
    /// if pages are listed twice, or if rows and what they keep apart are not known to have no byte in common, because
    /// then threads could write over one another; and one if dense rows are not all rows in order.
    #[must_use]
    pub fn threads(&self, threads: u32, tokens: u32, steps: &[Step<'_>]) -> u32 {
        self.ranges(threads, tokens, steps).len() as u32
    }

    /// The tokens of each thread.
    fn ranges(&self, threads: u32, tokens: u32, steps: &[Step<'_>]) -> Vec<Range<u32>> {
        let Some(Step { to, .. }) = steps.first() else {
            return Vec::new();
        };
        let rows = u64::from(self.heads) * u64::from(tokens) * steps.len() as u64;
        let bytes = rows * (self.target.row_bytes + self.target.params_bytes);
        let most = (bytes / self.thread_bytes.max(1)).clamp(1, u64::from(threads.max(1)));
        // Tokens of a page may share lines, and so may those of dense rows that are stored dim by dim.
        let (step, first) = match &self.target.side {
            Side::Paged { codes, .. } if to.tokens.step > 0 => {
                let slots = codes.extents().slot;
                let step = slots.div_ceil(to.tokens.step);
                let aligned = slots % to.tokens.step == 0;
                let slot = to.tokens.first % slots;
                let first = (slots - slot).div_ceil(to.tokens.step);
                (if aligned { step } else { tokens.max(1) }, first)
            }
            _ => (ROWS_TOGETHER, ROWS_TOGETHER),
        };
        // Pieces of so many tokens, but the first and the last may be smaller.
        let pieces = 1 + tokens.saturating_sub(first).div_ceil(step);
        let parts = (most as u32).min(pieces);
        if parts < 2 || !self.is_divisible(tokens, steps) {
            return std::iter::once(0..tokens).collect();
        }
        let bound = |part: u32| {
            let before = u64::from(pieces) * u64::from(part) / u64::from(parts);
            match before as u32 {
                0 => 0,
                before => tokens.min(first + (before - 1) * step),
            }
        };
        (0..parts)
            .map(|part| bound(part)..bound(part + 1))
            .collect()
    }

    /// Whether no two tokens have a byte in common.
    fn is_divisible(&self, tokens: u32, steps: &[Step<'_>]) -> bool {
        let [Step { to, .. }, others @ ..] = steps else {
            return true;
        };
        let alike = |step: &Step<'_>| step.to.pages == to.pages && step.to.tokens == to.tokens;
        if !others.iter().all(alike) {
            return false;
        }
        if !self.units_fit(
            others
                .iter()
                .chain([&steps[0]])
                .any(|step| step.conversions.is_identity()),
        ) {
            return false;
        }
        let Side::Paged {
            codes,
            params,
            head,
            unit,
            params_unit,
        } = &self.target.side
        else {
            return to.tokens == Progression::ALL;
        };
        let params = params.as_ref().filter(|_| self.target.params_bytes > 0);
        let Some(last) = tokens.checked_sub(1) else {
            return true;
        };
        let last = u64::from(to.tokens.first) + u64::from(last) * u64::from(to.tokens.step);
        let Ok(last) = u32::try_from(last) else {
            return false;
        };
        let fits = |layout: &Layout, unit: u32, row_bytes: u64| {
            let extents = layout.extents();
            let units = row_bytes / u64::from(layout.unit_bytes());
            steps.iter().all(|step| step.to.layer < extents.layer)
                && u64::from(*head) + u64::from(self.heads) <= u64::from(extents.head)
                && u64::from(unit) + units <= u64::from(extents.dim)
                && to.pages.iter().all(|page| *page < extents.page)
        };
        let slots = codes.extents().slot;
        let apart = params.is_none_or(|params| {
            params.extents().slot == slots
                && fits(params, *params_unit, self.target.params_bytes)
                && !overlap(codes, params)
        });
        let used = last / slots;
        let pages: BTreeSet<_> = to.pages.iter().take(used as usize + 1).collect();
        to.tokens.step > 0
            && apart
            && fits(codes, *unit, self.target.row_bytes)
            && pages.len() == used as usize + 1
    }

    /// Whether rows are whole units, of one size on both sides where units are carried from side to side.
    fn units_fit(&self, carried: bool) -> bool {
        let units = [&self.source, &self.target].map(|half| match &half.side {
            Side::Paged { codes, params, .. } => {
                let params = params.as_ref().map_or(1, Layout::unit_bytes);
                [codes.unit_bytes(), params]
            }
            Side::Rows {
                unit_bytes,
                params_unit_bytes,
                ..
            } => [*unit_bytes, (*params_unit_bytes).max(1)],
        });
        let whole = |half: &Half, [codes, params]: [u32; 2]| {
            codes > 0
                && half.row_bytes.is_multiple_of(u64::from(codes))
                && half.params_bytes.is_multiple_of(u64::from(params))
        };
        let alike = units[0][0] == units[1][0]
            && (units[0][1] == units[1][1] || self.target.params_bytes == 0);
        whole(&self.source, units[0]) && whole(&self.target, units[1]) && (alike || !carried)
    }

    /// The same program for another thread.
    fn alone(&self) -> Self {
        Self {
            workers: Vec::new(),
            ..self.clone()
        }
    }
}

/// Dense rows whose tokens stay together: a line of them, however small they are.
const ROWS_TOGETHER: u32 = 64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        convert::Conversion,
        element::Element,
        format::RowFormat,
        layout::{Extents, RowOrder},
    };

    const HEADS: u32 = 2;
    const DIM: u32 = 8;

    fn layout(text: &str, part: u32, unit_bytes: u32, dim: u32) -> Layout {
        let shape = Extents {
            layer: 1,
            part: 2,
            page: 9,
            head: HEADS,
            slot: 4,
            dim,
        };
        let text = text.parse().unwrap();
        Layout::new(&text, shape, unit_bytes, part, 0, &BTreeMap::new()).unwrap()
    }

    /// A program into the pages of `codes`, with a scale of each row in `params`.
    fn program(codes: Layout, params: Layout, row: Element) -> Program {
        let target = RowFormat::named("int8@token_head", None).unwrap();
        let any = Conversion::new(RowFormat::of(row), target, DIM).unwrap();
        let source = Side::Rows {
            order: RowOrder::TokenHead,
            unit_bytes: 2,
            params_unit_bytes: 0,
        };
        let target = Side::Paged {
            codes,
            params: Some(params),
            head: 0,
            unit: 0,
            params_unit: 0,
        };
        Program::new(source, target, HEADS, DIM, &any).with_thread_bytes(1)
    }

    fn threads(program: &Program, pages: &[u32], tokens: u32, first: u32) -> u32 {
        let place = Place {
            layer: 0,
            pages,
            tokens: Progression { first, step: 1 },
        };
        let conversions = conversions();
        let steps = [Step {
            conversions: &conversions,
            from: place,
            to: place,
        }];
        let ranges = program.ranges(8, tokens, &steps);
        assert_eq!(ranges.first().map(|range| range.start), Some(0));
        assert_eq!(ranges.last().map(|range| range.end), Some(tokens));
        for pair in ranges.windows(2) {
            assert_eq!(pair[0].end, pair[1].start);
            assert_eq!((first + pair[0].end) % 4, 0, "a page is cut: {ranges:?}");
            assert!(!pair[0].is_empty() && !pair[1].is_empty());
        }
        program.threads(8, tokens, &steps)
    }

    fn conversions() -> Conversions {
        let target = RowFormat::named("int8@token_head", None).unwrap();
        let one = Conversion::new(RowFormat::of(Element::BF16), target, DIM).unwrap();
        Conversions::All(std::sync::Arc::new(one))
    }

    #[test]
    fn pages_are_divided_unless_two_threads_could_write_one() {
        let codes = || layout("[part] page slot head dim", 0, 1, DIM);
        let apart = layout("[part] page slot head dim", 1, 4, 1);
        let program = |params| program(codes(), params, Element::BF16);
        let good = program(apart);
        assert_eq!(threads(&good, &[3, 0, 8], 12, 0), 3);
        assert_eq!(threads(&good, &[3, 0, 8], 9, 2), 3);
        assert_eq!(threads(&good, &[3, 0, 8, 1, 2, 4, 5, 6, 7], 36, 0), 8);
        assert_eq!(threads(&good, &[3], 4, 0), 1);
        // Twice the same page, a page that is not there, too few pages.
        assert_eq!(threads(&good, &[3, 0, 3], 12, 0), 1);
        assert_eq!(threads(&good, &[3, 0, 9], 12, 0), 1);
        assert_eq!(threads(&good, &[3, 0], 12, 0), 1);
        // A page beyond those that are written matters to nobody.
        assert_eq!(threads(&good, &[3, 0, 8, 8], 12, 0), 3);
        // Params among the codes.
        let among = program(layout("[part] page slot head dim", 0, 4, 1));
        assert_eq!(threads(&among, &[3, 0, 8], 12, 0), 1);
        // A box beyond the heads.
        let mut wide = good.clone();
        wide.heads = 3;
        assert_eq!(threads(&wide, &[3, 0, 8], 12, 0), 1);
    }

    /// Bytes of one thread would be another's: never divided.
    #[test]
    fn boxes_whose_tokens_could_share_bytes_are_not_divided() {
        let conversions = {
            let any = RowFormat::of(Element::BF16);
            Conversions::All(std::sync::Arc::new(Conversion::new(any, any, 8).unwrap()))
        };
        let rows = |unit_bytes| Side::Rows {
            order: RowOrder::HeadToken,
            unit_bytes,
            params_unit_bytes: 0,
        };
        let paged = |text: &str, unit_bytes: u32, slot, pages, dim| {
            let shape = Extents {
                layer: 1,
                part: 1,
                page: pages,
                head: HEADS,
                slot,
                dim,
            };
            let text = text.parse().unwrap();
            Side::Paged {
                codes: Layout::new(&text, shape, unit_bytes, 0, 0, &BTreeMap::new()).unwrap(),
                params: None,
                head: 0,
                unit: 0,
                params_unit: 0,
            }
        };
        let threads = |source: Side, target: Side, pages: &[u32], tokens, first, step| {
            let program = Program::new(source, target, HEADS, 8, conversions.any());
            let to = Place {
                layer: 0,
                pages,
                tokens: Progression { first, step },
            };
            let steps = [Step {
                conversions: &conversions,
                from: to,
                to,
            }];
            program.with_thread_bytes(1).threads(2, tokens, &steps)
        };
        assert_eq!(threads(rows(2), rows(2), &[0], 128, 0, 1), 2);
        // Rows of another head, or beyond all.
        assert_eq!(threads(rows(2), rows(2), &[0], 128, 0, 2), 1);
        assert_eq!(threads(rows(2), rows(2), &[0], 128, 64, 1), 1);
        // A row of 16 bytes is no whole number of units of 5, and units of 2 are none of 4.
        assert_eq!(threads(rows(5), rows(5), &[0], 128, 0, 1), 1);
        assert_eq!(threads(rows(2), rows(4), &[0], 128, 0, 1), 1);
        let pages = |unit, dim| paged("page slot head dim", unit, 4, 9, dim);
        assert_eq!(threads(rows(2), pages(2, 8), &[0, 1], 8, 0, 1), 2);
        assert_eq!(threads(rows(2), pages(5, 3), &[0, 1], 8, 0, 1), 1);
        assert_eq!(threads(rows(2), pages(4, 4), &[0, 1], 8, 0, 1), 1);
        // Tokens beyond 32 bits.
        let large = paged("slot page head dim", 2, 1 << 24, 256, 8);
        let all: Vec<u32> = (0..256).collect();
        assert_eq!(threads(rows(2), large, &all, 512, 0, 1 << 24), 1);
    }

    #[test]
    fn a_panic_of_one_thread_is_that_of_all() {
        let codes = layout("[part] page slot head dim", 0, 1, DIM);
        let params = layout("[part] page slot head dim", 1, 4, 1);
        let mut program = program(codes, params, Element::BF16);
        let conversions = conversions();
        let place = |pages| Place {
            layer: 0,
            pages,
            tokens: Progression::ALL,
        };
        // Rows for the first pages only.
        let source = vec![0_u8; 20 * (HEADS * DIM) as usize];
        let mut target = [codes_region(), codes_region()].map(Vec::into_boxed_slice);
        struct Pool<'a>(&'a mut [Box<[u8]>]);
        impl Read for Pool<'_> {
            fn bytes(&self, index: usize) -> &[u8] {
                &self.0[index]
            }
        }
        impl moai_memory::Write for Pool<'_> {
            fn bytes_mut(&mut self, index: usize) -> &mut [u8] {
                &mut self.0[index]
            }
        }
        impl Parts for Pool<'_> {
            fn parts(&mut self) -> Vec<&mut [u8]> {
                self.0.iter_mut().map(|region| &mut region[..]).collect()
            }
        }
        let run = std::panic::AssertUnwindSafe(|| {
            let mut pool = Pool(&mut target);
            let steps = [Step {
                conversions: &conversions,
                from: place(&[0]),
                to: place(&[0, 1, 2]),
            }];
            assert_eq!(program.threads(3, 12, &steps), 3);
            program.run_on(3, 12, &steps, &source[..], &mut pool)
        });
        assert!(std::panic::catch_unwind(run).is_err());
    }

    fn codes_region() -> Vec<u8> {
        vec![0; 9 * 4 * (HEADS * DIM * 4) as usize]
    }
}
