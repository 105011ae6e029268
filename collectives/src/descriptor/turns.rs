//! Groups whose components share bytes use different pages of them.

use std::fmt;

use moai_translate::layout::{Axis, Layout, overlap};

use super::Descriptor;

/// Two pages of different groups that share bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PageClash {
    /// The group that lists the page.
    pub group: usize,
    /// The page.
    pub page: u32,
    /// A page of another group.
    pub twin: u32,
    /// Name of the other group.
    pub other: String,
    /// Components that lie in the same pool, of either group.
    pub components: [String; 2],
}

impl fmt::Display for PageClash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            page,
            twin,
            other,
            components: [mine, its],
            ..
        } = self;
        write!(
            f,
            "page {page} shares bytes with page {twin} of group \"{other}\": \"{mine}\" and \"{its}\" lie in the same pool"
        )
    }
}

impl Descriptor {
    /// Finds a page of a rank that shares bytes with a page of another group, by the list of each group.
    pub(crate) fn pages_in_turns<'a>(
        &self,
        rank: u32,
        pages: impl Fn(usize) -> &'a [u32],
    ) -> Option<PageClash> {
        let rank = &self.ranks[rank as usize];
        for (c, component) in self.components.iter().enumerate() {
            for (o, other) in self.components[..c].iter().enumerate() {
                let (Some(g), Some(h)) = (component.group, other.group) else {
                    continue;
                };
                let (Some(a), Some(b)) = (rank.layout(c), rank.layout(o)) else {
                    continue;
                };
                let none = pages(g).is_empty() || pages(h).is_empty();
                if g == h || none || component.pool != other.pool || !overlap(a, b) {
                    continue;
                }
                if let Some((page, twin)) = meeting((a, pages(g)), (b, pages(h))) {
                    return Some(PageClash {
                        group: g,
                        page,
                        twin,
                        other: self.groups[h].name.clone(),
                        components: [component.name.clone(), other.name.clone()],
                    });
                }
            }
        }
        None
    }
}

/// A page of `a` and one of `b` that share bytes.
fn meeting((a, mine): (&Layout, &[u32]), (b, its): (&Layout, &[u32])) -> Option<(u32, u32)> {
    let mut pages = its.to_vec();
    pages.sort_unstable();
    // Pages that step alike meet only in themselves; others where the bytes from their first to their last do.
    if a.axis(Axis::Page) == b.axis(Axis::Page) {
        let twin = mine.iter().find(|page| pages.binary_search(page).is_ok());
        return twin.map(|&page| (page, page));
    }
    let spread = |layout: &Layout, page: u32| {
        let map = layout.axis(Axis::Page);
        let last = map.at(layout.extents().page - 1).byte;
        let start = layout.page_base(0, page).byte;
        let first = layout.page_base(0, 0).byte;
        start..start + (layout.region_bytes() - first - last)
    };
    let taken = pages.iter().map(|&page| (spread(b, page), page));
    let mut taken: Vec<_> = taken.collect();
    taken.sort_unstable_by_key(|(bytes, page)| (bytes.start, *page));
    mine.iter().find_map(|&page| {
        let bytes = spread(a, page);
        let next = taken.partition_point(|(other, _)| other.end <= bytes.start);
        let met = taken.get(next).filter(|(other, _)| other.start < bytes.end);
        met.map(|&(_, twin)| (page, twin))
    })
}
