//! The regions that are lent to a call, as the other side sees them.

use std::sync::Arc;

use moai_memory::Region;

use crate::abi;
use crate::memory::Held;

/// Describes regions once, and again only where they have changed: lending costs a comparison for each region and nothing
/// for its bytes.
///
/// What was lent last is kept alive until something else is lent.
#[derive(Default)]
pub(super) struct Lending {
    held: Vec<Arc<Held>>,
    described: Vec<abi::Memory>,
    version: u64,
    raw: Option<abi::Regions>,
}

impl Lending {
    /// Good until the next one, and as long as the regions are lent.
    pub(super) fn lend(&mut self, regions: &[Region]) -> *const abi::Regions {
        let mut changed = self.held.len() > regions.len();
        self.held.truncate(regions.len());
        self.described.truncate(regions.len());
        for (at, region) in regions.iter().enumerate() {
            if self.held.get(at).is_some_and(|held| held.is(region)) {
                continue;
            }
            changed = true;
            let held = Held::new(region);
            let described = held.describe();
            if at == self.held.len() {
                self.held.push(held);
                self.described.push(described);
            } else {
                self.held[at] = held;
                self.described[at] = described;
            }
        }
        self.version += u64::from(changed);
        let raw = abi::Regions {
            size: size_of::<abi::Regions>() as u32,
            stride: size_of::<abi::Memory>() as u32,
            version: self.version,
            count: self.described.len() as u64,
            at: self.described.as_ptr(),
        };
        std::ptr::from_ref(self.raw.insert(raw))
    }

    /// Keeps for ever what was lent: somebody may still write to it.
    pub(super) fn leak(&self) {
        self.held.iter().cloned().for_each(std::mem::forget);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_described_again_only_where_they_have_changed() {
        let region = |byte| Region::from_host(vec![byte; 100]);
        let mut regions = vec![region(1), region(2)];
        let mut lending = Lending::default();
        let look = |lending: &mut Lending, regions: &[Region]| {
            let raw = lending.lend(regions);
            // SAFETY: it was just made, and the regions are there.
            let raw = unsafe { &*raw };
            assert_eq!(raw.count, regions.len() as u64);
            for (at, region) in regions.iter().enumerate() {
                // SAFETY: there are so many.
                let memory = unsafe { &*raw.at.wrapping_add(at) };
                assert_eq!(memory.address.addr(), region.start_address());
                assert_eq!(memory.bytes, region.len());
            }
            raw.version
        };
        let first = look(&mut lending, &regions);
        assert_eq!(look(&mut lending, &regions), first);
        regions[1] = region(3);
        assert_eq!(look(&mut lending, &regions), first + 1);
        regions.push(region(4));
        assert_eq!(look(&mut lending, &regions), first + 2);
        regions.truncate(1);
        assert_eq!(look(&mut lending, &regions), first + 3);
        assert_eq!(look(&mut lending, &regions), first + 3);
    }
}
