//! Copies of many spans between two runs of bytes, as fast as memory is.
//!
//! A `memcpy` of each span waits for the first lines of every one, as the processor fetches ahead within a page only, and
//! reads each line of the target from memory before it overwrites it. Here several spans are copied side by side; lines
//! are asked for some KiB ahead in the order in which they will be copied, across spans, one for each line that is copied;
//! and where what is written is more than caches hold, it is stored past them.
//!
//! Who may touch what, and when: both runs of bytes are borrowed for the call, the target exclusively. Every span is
//! checked to lie in both before any is copied.

/// Bytes that lie one after another in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)] // Two places and a length.
pub struct CopySpan {
    /// From the start of the source.
    pub from: u64,
    /// From the start of the target.
    pub to: u64,
    /// Length.
    pub bytes: u32,
}

/// Where all that is written at a time is more than this, it is stored past the caches: it would not be found there
/// anyway, and pushes out what would be. A core's share of the last level of common servers is 1 to 4 MiB.
pub const PAST_CACHES_BYTES: u64 = 4 << 20;

/// Blocks that are copied side by side, some lines of each in turn. The first line of a page waits for the translation
/// of its address, that of the source and that of the target, and the processor gets no further than a few lines
/// meanwhile; with others in between there is something to do.
///
/// Measured on an AMD EPYC (Zen 4), pieces of 4 KiB in 256 MiB, GB/s: 7.2 by one after the other, 9.2, 9.7 and 8.5 by two,
/// four and eight a line each in turn; 10.7 and 11.1 by four of them two and four lines each. A memcpy of the whole: 11.4.
#[cfg(target_arch = "x86_64")]
const SIDE_BY_SIDE: usize = 4;

/// Lines of a block at a turn.
#[cfg(target_arch = "x86_64")]
const TURN: usize = 4;

/// Lines of the longest block, and how far lines are asked for before they are copied, into the second level of caches,
/// in each of the blocks side by side.
#[cfg(target_arch = "x86_64")]
const BLOCK: usize = 64;

/// Spans of this length and more are copied from end to end, one after the other: the processor asks for the lines ahead
/// of what is read in order, over the ends of pages, too. That is also why blocks that are copied side by side are of as
/// many spans. Measured on an AMD EPYC (Zen 5), in 256 MiB, GB/s: pieces of 64 KiB 15 to 16 where four neighbouring blocks are
/// side by side, 20 with blocks of four pieces, 17 from end to end; pieces of 8 MiB 14 by four, 21 from end to end.
#[cfg(target_arch = "x86_64")]
const ALONE: usize = 256 << 10;

#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Blocks that are gathered before they are copied, on the stack: many times those that are asked for ahead, since nothing
/// is asked for across the end.
#[cfg(target_arch = "x86_64")]
const GATHERED: usize = 512;

/// Copies `spans` of `source` to `target`, in no order that is told: where they overlap in the target, bytes of any of
/// them may stay. `past_caches` is for copies that together with what else is written
/// exceed [`PAST_CACHES_BYTES`]; either way, whoever reads the target after the call, in whatever process, finds the
/// bytes.
///
/// # Panics
///
/// If a span does not lie in both; nothing has been copied then.
pub fn copy_spans(target: &mut [u8], source: &[u8], spans: &[CopySpan], past_caches: bool) {
    let fits = |start: u64, bytes: u32, len: usize| {
        let end = start.checked_add(bytes.into());
        end.is_some_and(|end| end <= len as u64)
    };
    for span in spans {
        assert!(
            fits(span.from, span.bytes, source.len()) && fits(span.to, span.bytes, target.len()),
            "{span:?} of {} source bytes and {} target bytes",
            source.len(),
            target.len()
        );
    }
    imp::copy(target, source, spans, past_caches);
}

#[cfg(target_arch = "x86_64")]
mod imp {
    use std::arch::x86_64::{
        _MM_HINT_T1, _mm_loadu_si128, _mm_prefetch, _mm_sfence, _mm_storeu_si128, _mm_stream_si128,
    };
    use std::ptr;

    use super::{ALONE, BLOCK, CopySpan, GATHERED, LINE, SIDE_BY_SIDE, TURN};

    pub(super) fn copy(target: &mut [u8], source: &[u8], spans: &[CopySpan], past_caches: bool) {
        // Miri knows no such stores. All else is the same either way.
        if past_caches && !cfg!(miri) {
            run::<true>(target, source, spans);
        } else {
            run::<false>(target, source, spans);
        }
    }

    /// Bytes of one span, at most [`BLOCK`] whole lines of the target and what comes before the first of them and after
    /// the last. Within the runs of bytes that were borrowed.
    #[derive(Clone, Copy)]
    struct Block {
        from: *const u8,
        to: *mut u8,
        /// Bytes before the first whole line.
        head: usize,
        lines: usize,
        /// Bytes after the last.
        tail: usize,
    }

    impl Block {
        const EMPTY: Self = Self {
            from: ptr::null(),
            to: ptr::null_mut(),
            head: 0,
            lines: 0,
            tail: 0,
        };

        /// Asks for a line of the source; one beyond its end does no harm.
        #[inline(always)]
        fn ask(&self, line: usize) {
            ask(self.from.wrapping_add(line * LINE));
        }

        /// Copies a whole line.
        ///
        /// # Safety
        ///
        /// `line` is less than `lines`, and the block lies in bytes that may be read and written.
        #[inline(always)]
        unsafe fn copy_line<const PAST: bool>(&self, line: usize) {
            let at = self.head + line * LINE;
            let (from, to) = (self.from.wrapping_add(at), self.to.wrapping_add(at));
            // SAFETY: the line lies in both, and in the target it starts with a multiple of 64.
            unsafe { copy_line::<PAST>(from, to) };
        }

        /// Copies what is no whole line.
        ///
        /// # Safety
        ///
        /// As [`copy_line`](Self::copy_line).
        #[inline(always)]
        unsafe fn copy_ends(&self) {
            let behind = self.head + self.lines * LINE;
            for (at, bytes) in [(0, self.head), (behind, self.tail)] {
                if bytes > 0 {
                    let (from, to) = (self.from.wrapping_add(at), self.to.wrapping_add(at));
                    // SAFETY: both ends lie in the block; a source and a target that are borrowed do not overlap.
                    unsafe { ptr::copy_nonoverlapping(from, to, bytes) };
                }
            }
        }
    }

    /// What of a span is yet to be cut into blocks.
    #[derive(Clone, Copy)]
    struct Rest {
        from: *const u8,
        to: *mut u8,
        bytes: usize,
        /// Bytes before the first whole line of the target.
        head: usize,
    }

    impl Rest {
        const EMPTY: Self = Self {
            from: ptr::null(),
            to: ptr::null_mut(),
            bytes: 0,
            head: 0,
        };

        /// All of a span that lies in both.
        fn new(source: *const u8, target: *mut u8, span: &CopySpan) -> Self {
            let bytes = span.bytes as usize;
            let to = target.wrapping_add(span.to as usize);
            Self {
                from: source.wrapping_add(span.from as usize),
                to,
                bytes,
                head: to.align_offset(LINE).min(bytes),
            }
        }

        /// Its first bytes, `lines` whole lines at most and what comes before the first of them and after the last, which
        /// are no longer in it then.
        #[inline(always)]
        fn take(&mut self, lines: usize) -> Block {
            let lines = ((self.bytes - self.head) / LINE).min(lines);
            let whole = self.head + lines * LINE;
            let left = self.bytes - whole;
            let tail = if left < LINE { left } else { 0 };
            let block = Block {
                from: self.from,
                to: self.to,
                head: self.head,
                lines,
                tail,
            };
            *self = Self {
                from: self.from.wrapping_add(whole + tail),
                to: self.to.wrapping_add(whole + tail),
                bytes: left - tail,
                head: 0,
            };
            block
        }
    }

    fn run<const PAST: bool>(target: &mut [u8], source: &[u8], spans: &[CopySpan]) {
        let mut blocks = [Block::EMPTY; GATHERED];
        let mut count = 0;
        // Spans were checked, so that what is added to these stays within the borrowed bytes.
        let (source, target) = (source.as_ptr(), target.as_mut_ptr());
        let mut spans = spans.iter().map(|span| Rest::new(source, target, span));
        let mut lanes = [Rest::EMPTY; SIDE_BY_SIDE];
        loop {
            let before = count;
            for lane in &mut lanes {
                while lane.bytes == 0 {
                    let Some(next) = spans.next() else { break };
                    *lane = next;
                    if lane.bytes >= ALONE {
                        let block = lane.take(usize::MAX);
                        // SAFETY: the block is a span, and that a part of bytes which are borrowed for this call.
                        unsafe { copy_alone::<PAST>(&block) };
                    }
                }
                if lane.bytes > 0 {
                    blocks[count] = lane.take(BLOCK);
                    count += 1;
                }
            }
            let end = count == before;
            if end || count + SIDE_BY_SIDE > GATHERED {
                // SAFETY: every block is a part of its span, and that of bytes which are borrowed for this call.
                unsafe { copy_blocks::<PAST>(&blocks[..count]) };
                count = 0;
            }
            if end {
                break;
            }
        }
        if PAST {
            // Stores past the caches are in no order with others until then.
            // SAFETY: every processor of this architecture has it.
            unsafe { _mm_sfence() };
        }
    }

    /// Copies a long block from end to end.
    ///
    /// # Safety
    ///
    /// As [`copy_blocks`].
    unsafe fn copy_alone<const PAST: bool>(block: &Block) {
        for line in 0..block.lines {
            block.ask(line + BLOCK);
            // SAFETY: by the caller's word.
            unsafe { block.copy_line::<PAST>(line) };
        }
        // SAFETY: as above.
        unsafe { block.copy_ends() };
    }

    /// Copies blocks, several side by side, while lines of those that follow are asked for.
    ///
    /// # Safety
    ///
    /// Every block lies in bytes that may be read and written.
    unsafe fn copy_blocks<const PAST: bool>(blocks: &[Block]) {
        let Some(first) = blocks.first() else {
            return;
        };
        // Short blocks are asked for several at a time, so that it is as many lines ahead.
        let ahead = SIDE_BY_SIDE * (BLOCK / first.lines.max(1)).clamp(1, MOST_AHEAD);
        for block in blocks.iter().take(ahead) {
            for line in 0..block.lines {
                block.ask(line);
            }
        }
        let (groups, rest) = blocks.as_chunks::<SIDE_BY_SIDE>();
        for (index, group) in groups.iter().enumerate() {
            let next = blocks.get(index * SIDE_BY_SIDE + ahead..);
            // At the end, what has been asked for already.
            let next = next
                .and_then(|next| next.first_chunk::<SIDE_BY_SIDE>())
                .unwrap_or(group);
            // SAFETY: by the caller's word.
            unsafe { copy_group::<PAST>(group, next) };
        }
        for block in rest {
            for line in 0..block.lines {
                // SAFETY: by the caller's word.
                unsafe { block.copy_line::<PAST>(line) };
            }
            // SAFETY: as above.
            unsafe { block.copy_ends() };
        }
    }

    /// Groups that are asked for ahead at the most.
    const MOST_AHEAD: usize = 16;

    /// # Safety
    ///
    /// As [`copy_blocks`].
    #[inline(always)]
    unsafe fn copy_group<const PAST: bool>(
        group: &[Block; SIDE_BY_SIDE],
        next: &[Block; SIDE_BY_SIDE],
    ) {
        let least = group.iter().map(|block| block.lines).min().unwrap_or(0);
        let turns = least / TURN;
        // Places by themselves, which the compiler then keeps in registers.
        let mut places =
            [(ptr::null::<u8>(), ptr::null_mut::<u8>(), ptr::null::<u8>()); SIDE_BY_SIDE];
        for (place, (block, next)) in places.iter_mut().zip(group.iter().zip(next)) {
            *place = (
                block.from.wrapping_add(block.head),
                block.to.wrapping_add(block.head),
                next.from,
            );
        }
        for turn in 0..turns {
            for (from, to, next) in places {
                for line in 0..TURN {
                    let at = (turn * TURN + line) * LINE;
                    ask(next.wrapping_add(at));
                    // SAFETY: by the caller's word, the line being a whole one of its block.
                    unsafe { copy_line::<PAST>(from.wrapping_add(at), to.wrapping_add(at)) };
                }
            }
        }
        for (block, next) in group.iter().zip(next) {
            for line in turns * TURN..block.lines {
                next.ask(line);
                // SAFETY: by the caller's word.
                unsafe { block.copy_line::<PAST>(line) };
            }
            // SAFETY: as above.
            unsafe { block.copy_ends() };
        }
    }

    /// Asks for a line, wherever it is.
    #[inline(always)]
    fn ask(at: *const u8) {
        // SAFETY: a prefetch reads nothing, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
    }

    /// # Safety
    ///
    /// 64 bytes are readable at `from` and writable at `to`, which is a multiple of 64.
    #[inline(always)]
    #[expect(
        clippy::multiple_unsafe_ops_per_block,
        reason = "one line, copied in four parts"
    )]
    unsafe fn copy_line<const PAST: bool>(from: *const u8, to: *mut u8) {
        // SAFETY: by the caller's word; the four parts are the line.
        unsafe {
            let parts = [0, 16, 32, 48].map(|at| _mm_loadu_si128(from.add(at).cast()));
            for (part, at) in parts.into_iter().zip([0, 16, 32, 48]) {
                if PAST {
                    _mm_stream_si128(to.add(at).cast(), part);
                } else {
                    _mm_storeu_si128(to.add(at).cast(), part);
                }
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod imp {
    use super::CopySpan;

    pub(super) fn copy(target: &mut [u8], source: &[u8], spans: &[CopySpan], _past_caches: bool) {
        for span in spans {
            let (from, to, bytes) = (span.from as usize, span.to as usize, span.bytes as usize);
            target[to..to + bytes].copy_from_slice(&source[from..from + bytes]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_any_length_and_place_are_copied_and_nothing_else() {
        let seed = std::env::var("MOAI_SEED").map_or(1, |seed| seed.parse().unwrap());
        println!("seed {seed}");
        let mut state: u64 = seed;
        let mut random = move |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for case in 0..if cfg!(miri) { 3 } else { 200 } {
            const LEN: usize = 30_000;
            let source: Vec<u8> = (0..LEN).map(|_| random(256) as u8).collect();
            let mut target = vec![0xA5; LEN];
            let mut spans = Vec::new();
            let mut to = 0;
            for _ in 0..random(40) {
                let bytes = [0, 1, 5, 64, 200, 700, 4096, 9000][random(8)] + random(9);
                to += [0, 1, 64, 900][random(4)];
                spans.push(CopySpan {
                    from: random(LEN - bytes) as u64,
                    to: to as u64,
                    bytes: bytes as u32,
                });
                to += bytes;
            }
            spans.retain(|span| span.to as usize + span.bytes as usize <= LEN);
            for at in (1..spans.len()).rev() {
                spans.swap(at, random(at + 1));
            }
            let mut expected = target.clone();
            for span in &spans {
                for byte in 0..span.bytes as usize {
                    expected[span.to as usize + byte] = source[span.from as usize + byte];
                }
            }
            copy_spans(&mut target, &source, &spans, case % 2 == 0);
            assert_eq!(target, expected, "case {case}");
        }
    }

    #[test]
    fn a_span_that_is_copied_by_itself_arrives_with_those_beside_it() {
        const LEN: usize = 270_000;
        let source = (0..=250).collect::<Vec<u8>>().repeat(LEN.div_ceil(251));
        let (short, long) = (1000, 263_001);
        for start in [3, 64] {
            let span = |from: usize, bytes: usize| CopySpan {
                from: from as u64,
                to: (from + start) as u64,
                bytes: bytes as u32,
            };
            let spans = [span(0, short), span(short, long), span(short + long, short)];
            let mut target = vec![0xA5; LEN];
            copy_spans(&mut target, &source, &spans, start == 3);
            let end = short + long + short;
            assert_eq!(target[start..start + end], source[..end]);
            let around = [0xA5].repeat(LEN);
            assert_eq!(target[..start], around[..start]);
            assert_eq!(target[start + end..], around[start + end..]);
        }
    }

    #[test]
    fn a_span_outside_of_either_is_refused_before_anything_is_copied() {
        let good = CopySpan {
            from: 0,
            to: 0,
            bytes: 4,
        };
        for bad in [
            CopySpan { from: 7, ..good },
            CopySpan { to: 5, ..good },
            CopySpan {
                from: u64::MAX,
                ..good
            },
        ] {
            let mut target = [0; 8];
            let copied = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                copy_spans(&mut target, &[1; 10], &[good, bad], false);
            }));
            assert!(copied.is_err());
            assert_eq!(target, [0; 8]);
        }
    }
}
