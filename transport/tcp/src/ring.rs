//! A ring of bytes, reserved in contiguous spans and released in the same order.

/// A contiguous run of bytes in a [`Ring`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    offset: u32,
    bytes: u32,
}

/// Bounded memory for what is queued.
///
/// Spans do not wrap: where the end of the memory is too short for one, it is left unused for this
/// round. An empty ring starts again at the beginning, so that traffic which never queues up touches
/// the same few pages, and anything up to the capacity fits.
///
/// # Invariants
///
/// Live spans do not overlap, and `release` is called on them in the order of `reserve`.
#[derive(Debug)]
pub(crate) struct Ring {
    /// Empty until the first reservation; many peers are only ever listened to.
    memory: Vec<u8>,
    capacity: u32,
    /// Where the oldest live span starts, or the one before it ended.
    start: u32,
    /// Where the newest live span ends.
    end: u32,
    /// Live spans lie in `start..` and `..end` rather than in `start..end`.
    wrapped: bool,
    live: usize,
}

impl Span {
    /// Length in bytes.
    pub(crate) fn len(self) -> usize {
        self.bytes as usize
    }
}

impl Ring {
    pub(crate) fn new(capacity: u32) -> Self {
        Self {
            memory: Vec::new(),
            capacity,
            start: 0,
            end: 0,
            wrapped: false,
            live: 0,
        }
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Whether a span of `bytes` can be reserved now.
    pub(crate) fn fits(&self, bytes: u32) -> bool {
        self.place(bytes).is_some()
    }

    /// A span of `bytes`, or `None` while older spans are in its way.
    pub(crate) fn reserve(&mut self, bytes: u32) -> Option<Span> {
        let offset = self.place(bytes)?;
        if self.memory.is_empty() {
            self.memory = vec![0; self.capacity as usize];
        }
        if offset < self.end {
            self.wrapped = true;
        }
        self.end = offset + bytes;
        self.live += 1;
        Some(Span { offset, bytes })
    }

    /// Gives back the oldest live span.
    pub(crate) fn release(&mut self, span: Span) {
        self.live -= 1;
        if self.live == 0 {
            self.start = 0;
            self.end = 0;
            self.wrapped = false;
            return;
        }
        if span.offset < self.start {
            self.wrapped = false;
        }
        self.start = span.offset + span.bytes;
    }

    /// Whether there is memory.
    pub(crate) fn holds_memory(&self) -> bool {
        !self.memory.is_empty()
    }

    /// Gives the memory back if there are no live spans.
    pub(crate) fn trim(&mut self) {
        if self.live == 0 {
            self.memory = Vec::new();
        }
    }

    /// Forgets every span.
    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.capacity);
    }

    pub(crate) fn bytes(&self, span: Span) -> &[u8] {
        &self.memory[span.offset as usize..][..span.len()]
    }

    pub(crate) fn bytes_mut(&mut self, span: Span) -> &mut [u8] {
        &mut self.memory[span.offset as usize..][..span.len()]
    }

    fn place(&self, bytes: u32) -> Option<u32> {
        if self.wrapped {
            (self.start - self.end >= bytes).then_some(self.end)
        } else if self.capacity - self.end >= bytes {
            Some(self.end)
        } else {
            (self.start >= bytes).then_some(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn live_spans_never_overlap_and_keep_their_bytes() {
        for seed in 1..200_u64 {
            println!("seed {seed}");
            let mut state = seed;
            let mut random = move || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as u32
            };
            let capacity = 1 + random() % 64;
            let mut ring = Ring::new(capacity);
            let mut live: VecDeque<(Span, u8)> = VecDeque::new();
            for step in 0..500_u32 {
                if random() % 2 == 0 {
                    let bytes = random() % (capacity + 1);
                    let fits = ring.fits(bytes);
                    let span = ring.reserve(bytes);
                    assert_eq!(span.is_some(), fits);
                    assert!(fits || !live.is_empty(), "an empty ring refused {bytes}");
                    if let Some(span) = span {
                        assert!(span.offset + span.bytes <= capacity);
                        ring.bytes_mut(span).fill(step as u8);
                        live.push_back((span, step as u8));
                    }
                } else if let Some((span, _)) = live.pop_front() {
                    ring.release(span);
                }
                for &(span, value) in &live {
                    assert!(ring.bytes(span).iter().all(|&byte| byte == value));
                }
            }
        }
    }

    #[test]
    fn the_skipped_end_is_used_again_after_the_wrap() {
        let mut ring = Ring::new(10);
        let first = ring.reserve(6).unwrap();
        let second = ring.reserve(2).unwrap();
        assert!(!ring.fits(3));
        ring.release(first);
        let third = ring.reserve(3).unwrap();
        assert_eq!(third.offset, 0);
        assert!(ring.fits(3) && !ring.fits(4));
        ring.release(second);
        ring.release(third);
        assert!(ring.fits(10));
    }

    #[test]
    fn memory_is_given_back_only_between_spans() {
        let mut ring = Ring::new(10);
        let span = ring.reserve(6).unwrap();
        ring.bytes_mut(span).fill(7);
        ring.trim();
        assert_eq!(ring.bytes(span), [7; 6]);
        ring.release(span);
        ring.trim();
        assert!(!ring.holds_memory());
        let span = ring.reserve(10).unwrap();
        assert_eq!(ring.bytes(span), [0; 10]);
    }
}
