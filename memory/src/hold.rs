//! Holds: what keeps memory alive for those who know it by address.

use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;

use crate::allocation::{Allocation, Owner};
use crate::mapping::Access;
use crate::{Domain, Export, Foreign, MemoryKind};

/// Keeps the memory of a [`Region`](crate::Region) alive, at the address it has.
///
/// A hold gives no access to bytes; it is for those who pass addresses on: to the system, a device, a NIC or another
/// process.
#[derive(Clone)]
pub struct Hold {
    allocation: Arc<Allocation>,
    /// Where the region starts in its allocation.
    start: usize,
    len: usize,
}

impl Hold {
    pub(crate) fn new(allocation: Arc<Allocation>, start: usize, len: usize) -> Self {
        Self {
            allocation,
            start,
            len,
        }
    }

    /// Where the memory starts. To follow it is the caller's `unsafe`, and its affair that nobody else does meanwhile.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.allocation.start().as_ptr().wrapping_add(self.start)
    }

    /// Where the memory starts, as a number.
    #[must_use]
    pub fn address(&self) -> usize {
        self.as_ptr().addr()
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The kind of memory.
    #[must_use]
    pub fn kind(&self) -> MemoryKind {
        self.allocation.kind()
    }

    /// The device whose streams reach the bytes; `None` for memory that the host can load from, and for foreign memory.
    #[must_use]
    pub fn domain(&self) -> Option<&dyn Domain> {
        match self.allocation.owner() {
            Owner::Sim(memory) => Some(memory.device()),
            Owner::Lent(memory) => memory.domain(),
            Owner::Heap(_) | Owner::Mapping(_) | Owner::Foreign(_) => None,
        }
    }

    /// Whether whoever reaches the bytes may write them: not if they were imported for reading.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        match self.allocation.owner() {
            Owner::Sim(memory) => memory.access() == Access::Write,
            Owner::Lent(memory) => memory.is_writable(),
            Owner::Heap(_) | Owner::Mapping(_) | Owner::Foreign(_) => {
                self.allocation.access() != Access::Read
            }
        }
    }

    pub(crate) fn allocation(&self) -> &Allocation {
        &self.allocation
    }

    pub(crate) fn start(&self) -> usize {
        self.start
    }

    /// What another process needs to import the memory; `None` if it cannot.
    ///
    /// The offset is a multiple of a page unless the region was split elsewhere.
    #[must_use]
    pub fn export(&self) -> Option<Export<'_>> {
        let start = self.start as u64;
        let (file, offset) = match self.allocation.owner() {
            Owner::Lent(memory) => memory.file()?,
            _ => (self.allocation.file()?.as_fd(), 0),
        };
        let offset = offset.checked_add(start)?;
        Some(Export::new(file, offset, self.len(), self.kind()))
    }

    /// What keeps the memory alive, if that is [`Foreign`].
    #[must_use]
    pub fn foreign(&self) -> Option<&dyn Foreign> {
        match self.allocation.owner() {
            Owner::Lent(memory) => Some(&**memory),
            _ => None,
        }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold")
            .field("kind", &self.kind())
            .field("address", &self.as_ptr())
            .field("len", &self.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use crate::Region;

    #[test]
    fn a_hold_keeps_the_address_of_its_region() {
        let region = Region::shared_zeroed(100).unwrap();
        let start = region.as_slice().as_ptr().addr();
        let (first, rest) = region.split_at(60);
        let (hold, other) = (rest.hold(), first.hold());
        drop((first, rest));
        assert_eq!((hold.address(), hold.len()), (start + 60, 40));
        assert_eq!((other.address(), other.len()), (start, 60));
        assert_eq!(hold.export().unwrap().offset, 60);
        assert!(hold.is_writable());
    }

    #[test]
    fn only_shared_memory_has_an_export() {
        assert!(Region::from_host(vec![1]).hold().export().is_none());
        assert!(Region::pinned_zeroed(1).unwrap().hold().export().is_none());
        assert!(Region::shared_zeroed(1).unwrap().hold().export().is_some());
    }
}
