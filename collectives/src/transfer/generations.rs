//! How a producer tells that pages were used for something else while they were read.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering, fence},
};

use crate::digest::mix;

/// How often each page of a rank was given to something else.
///
/// An engine counts a page *before* it writes something else into it. A producer reads the counts after the last row that it
/// has read: if they are those of the offer, no row was of anything else.
///
/// # Why this is enough
///
/// The engine counts, then writes; the fence in [`reuse`](Self::reuse) keeps that order. The producer reads rows, then the
/// counts; the fence in [`of`](Self::of) keeps that order. If a row was of the new content, the count came before
/// it and is seen. That the row itself may be torn does not matter: it is discarded.
#[derive(Clone, Debug)]
pub struct Generations(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    /// All of them together: as long as it stays, none has changed.
    all: AtomicU64,
    pages: Vec<AtomicU64>,
}

impl Generations {
    /// For so many pages.
    #[must_use]
    pub fn new(pages: u32) -> Self {
        Self(Arc::new(Counts {
            all: AtomicU64::new(0),
            pages: (0..pages).map(|_| AtomicU64::new(0)).collect(),
        }))
    }

    /// A page is about to be used for something else. There is no such page: nothing happens.
    pub fn reuse(&self, page: u32) {
        if let Some(count) = self.0.pages.get(page as usize) {
            count.fetch_add(1, Ordering::Relaxed);
            self.0.all.fetch_add(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
        }
    }

    /// What the counts of all pages together come to: if it is what it was, no page was used for anything else.
    pub(super) fn all(&self) -> u64 {
        fence(Ordering::SeqCst);
        self.0.all.load(Ordering::Relaxed)
    }

    /// What the counts of some pages come to.
    #[must_use]
    pub fn of<'a>(&self, pages: impl IntoIterator<Item = &'a u32>) -> u64 {
        fence(Ordering::SeqCst);
        pages.into_iter().fold(0, |sum, &page| {
            let count = self.0.pages.get(page as usize);
            let count = count.map_or(0, |count| count.load(Ordering::Relaxed));
            mix(sum ^ mix(u64::from(page) << 32 ^ count))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_that_were_reused_change_what_they_come_to() {
        let generations = Generations::new(4);
        let (some, others) = (generations.of(&[0, 2]), generations.of(&[1, 3]));
        generations.reuse(2);
        generations.reuse(99);
        assert_ne!(generations.of(&[0, 2]), some);
        assert_eq!(generations.of(&[1, 3]), others);
        assert_eq!(generations.all(), 1);
    }
}
