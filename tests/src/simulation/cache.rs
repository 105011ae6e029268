//! Pages with values small enough to compare, and who owns them.

use moai_collectives::digest::mix;

/// What is in a page, or may be put there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Free,
    /// The pages of a request that a producer holds.
    Offered(usize),
    /// A transfer fills it.
    Filling(u64),
    /// The transfer has ended, but something may still write.
    Quarantined(u64),
    /// A request that decode reads.
    Exposed(usize),
    /// A grant that no transfer has taken.
    Granted(u64),
}

#[derive(Clone, Debug)]
pub(super) struct Page {
    pub(super) owner: Owner,
    pub(super) generation: u64,
    /// Freed and used again behind the fabric's back.
    pub(super) betrayed: bool,
    /// By layer and global head.
    pub(super) values: Vec<u64>,
}

/// The pages of a process.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) pages: Vec<Page>,
    free: Vec<u32>,
}

impl Pool {
    pub(super) fn new(pages: u32, values: usize) -> Self {
        let page = Page {
            owner: Owner::Free,
            generation: 0,
            betrayed: false,
            values: vec![0; values],
        };
        Self {
            pages: vec![page; pages as usize],
            free: (0..pages).rev().collect(),
        }
    }

    /// Pages for a new use. What lay there is overwritten, so that whoever still looks sees it.
    pub(super) fn take(&mut self, count: usize, owner: Owner) -> Option<Vec<u32>> {
        if self.free.len() < count {
            return None;
        }
        // The oldest first would hide late writes: the last one freed is the first to be used again.
        let taken = self.free.split_off(self.free.len() - count);
        for &page in &taken {
            let page = &mut self.pages[page as usize];
            page.owner = owner;
            page.generation += 1;
            page.betrayed = false;
            page.values.fill(0xDEAD);
        }
        Some(taken)
    }

    pub(super) fn set(&mut self, pages: &[u32], owner: Owner) {
        for &page in pages {
            self.pages[page as usize].owner = owner;
            if owner == Owner::Free {
                self.free.push(page);
            }
        }
    }

    /// What the generations of some pages come to.
    pub(super) fn generation(&self, pages: &[u32]) -> u64 {
        pages.iter().fold(0, |sum, &page| {
            mix(sum ^ self.pages[page as usize].generation)
        })
    }

    pub(super) fn used(&self) -> usize {
        self.pages.len() - self.free.len()
    }
}

/// The true value of a head of a page of a request.
pub(super) fn value(request: usize, layer: u32, page: u32, head: u32) -> u64 {
    mix((request as u64) << 32
        ^ u64::from(layer) << 24
        ^ u64::from(page) << 12
        ^ u64::from(head)
        ^ 0x5EED)
}

/// The digest of one value where it stands.
pub(super) fn digest(key: u64, layer: u32, page: u32, head: u32, value: u64) -> u64 {
    mix(value ^ mix(key ^ u64::from(layer) << 40 ^ u64::from(page) << 20 ^ u64::from(head)))
}

/// Heads that a producer rank and a consumer rank have in common.
pub(super) fn common(
    heads: u32,
    (source, sources): (u32, u32),
    (target, targets): (u32, u32),
) -> std::ops::Range<u32> {
    let (a, b) = (heads / sources, heads / targets);
    (source * a).max(target * b)..((source + 1) * a).min((target + 1) * b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_head_of_a_target_has_one_source() {
        for (sources, targets) in [(1, 4), (4, 1), (2, 4), (4, 4)] {
            for target in 0..targets {
                let mut heads: Vec<u32> = (0..sources)
                    .flat_map(|source| common(4, (source, sources), (target, targets)))
                    .collect();
                heads.sort_unstable();
                let own = 4 / targets;
                assert_eq!(
                    heads,
                    (target * own..(target + 1) * own).collect::<Vec<_>>()
                );
            }
        }
    }
}
