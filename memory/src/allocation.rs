//! The memory behind regions, alive as long as a region or a hold names it.

use std::fmt;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use crate::Foreign;
use crate::MemoryKind;
use crate::mapping::{Access, Mapping};
use crate::sim::SimMemory;

/// Memory at a fixed address, freed when nobody names it any more.
///
/// # Invariants
///
/// `start` and the bytes behind it that regions were made for stay valid for `access` as long as `owner` lives.
pub(crate) struct Allocation {
    start: NonNull<u8>,
    kind: MemoryKind,
    access: Access,
    /// What can be sent to another process; it begins where the allocation does.
    file: Option<OwnedFd>,
    owner: Owner,
}

/// What frees the memory when it is dropped.
pub(crate) enum Owner {
    Heap(#[expect(dead_code, reason = "freed when dropped")] Heap),
    Mapping(#[expect(dead_code, reason = "unmapped when dropped")] Mapping),
    Sim(SimMemory),
    Foreign(#[expect(dead_code, reason = "whatever it does when dropped")] Box<dyn Send + Sync>),
    Lent(Box<dyn Foreign>),
}

// SAFETY: the address is only followed by the region that has its bytes borrowed, by the rules of `region`; what owns
// the memory can be sent and shared.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl Allocation {
    /// Memory that is not anybody else's.
    pub(crate) fn new(
        start: NonNull<u8>,
        kind: MemoryKind,
        access: Access,
        file: Option<OwnedFd>,
        owner: Owner,
    ) -> Self {
        Self {
            start,
            kind,
            access,
            file,
            owner,
        }
    }

    /// Memory of the allocator, from byte `skip` on.
    pub(crate) fn heap(bytes: Box<[u8]>, skip: usize) -> Self {
        assert!(skip <= bytes.len());
        let heap = Heap(NonNull::from(Box::leak(bytes)));
        // SAFETY: at most one past the last byte, checked above.
        let start = unsafe { heap.0.cast::<u8>().add(skip) };
        Self::new(
            start,
            MemoryKind::Host,
            Access::Write,
            None,
            Owner::Heap(heap),
        )
    }

    /// Pages that host code can use.
    pub(crate) fn mapped(
        mapping: Mapping,
        kind: MemoryKind,
        access: Access,
        file: Option<OwnedFd>,
    ) -> Self {
        Self::new(mapping.start(), kind, access, file, Owner::Mapping(mapping))
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn kind(&self) -> MemoryKind {
        self.kind
    }

    pub(crate) fn access(&self) -> Access {
        self.access
    }

    pub(crate) fn file(&self) -> Option<&OwnedFd> {
        self.file.as_ref()
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }
}

impl fmt::Debug for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Allocation")
            .field("start", &self.start)
            .field("kind", &self.kind)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

/// A box whose bytes are reached by address: a box itself may not be moved while somebody does that.
pub(crate) struct Heap(NonNull<[u8]>);

impl Drop for Heap {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a box, which is made again only here.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}
