//! Mappings of memory into this process, unmapped when dropped.
//!
//! Who may touch what, and when: nobody touches bytes here. A mapping is made where the system finds room, so it
//! covers no other object of this process, and it stays where it is until it is dropped. Its owner says who may use
//! the address meanwhile.

use std::ffi::c_void;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};

use rustix::mm::{self, Advice, MapFlags, ProtFlags};

/// What this process may do with mapped bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing: an access faults.
    None,
    /// Load.
    Read,
    /// Load and store.
    Write,
}

impl Access {
    pub(crate) fn imported(writable: bool) -> Self {
        if writable { Self::Write } else { Self::Read }
    }

    fn protection(self) -> ProtFlags {
        match self {
            Self::None => ProtFlags::empty(),
            Self::Read => ProtFlags::READ,
            Self::Write => ProtFlags::READ | ProtFlags::WRITE,
        }
    }
}

/// Pages mapped into this process.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: it only holds an address; mapping and unmapping are not tied to a thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared reference offers the address and nothing else.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed pages of this process alone.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        let (len, access, flags) = (at_least_a_byte(len), Access::Write, MapFlags::PRIVATE);
        // SAFETY: without an address and MAP_FIXED the system takes pages that nothing else uses.
        let start =
            unsafe { mm::mmap_anonymous(ptr::null_mut(), len, access.protection(), flags) }?;
        Ok(Self::at(start, len))
    }

    /// Bytes of a file, shared with everybody who maps it.
    pub(crate) fn of_file(
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        access: Access,
    ) -> io::Result<Self> {
        let (len, flags) = (at_least_a_byte(len), MapFlags::SHARED);
        let protection = access.protection();
        // SAFETY: without an address and MAP_FIXED the system takes pages that nothing else uses.
        let start = unsafe { mm::mmap(ptr::null_mut(), len, protection, flags, file, offset) }?;
        Ok(Self::at(start, len))
    }

    fn at(start: *mut c_void, len: usize) -> Self {
        let start = NonNull::new(start).expect("the system maps nothing at address 0 unasked");
        let mapping = Self { start, len };
        if len >= HUGE_FROM {
            // SAFETY: the range is this mapping, and the advice changes no byte of it.
            let advised = unsafe { mm::madvise(start.as_ptr(), len, Advice::LinuxHugepage) };
            // A system without them refuses, and pages are as small as they would have been.
            let _ = advised;
        }
        mapping
    }

    /// Keeps the pages in memory.
    pub(crate) fn lock(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping, and locking changes no byte of it.
        unsafe { mm::mlock(self.start.as_ptr(), self.len) }?;
        Ok(())
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start.cast()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping; whoever used its address kept it from being dropped.
        let unmapped = unsafe { mm::munmap(self.start.as_ptr(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap: {unmapped:?}");
    }
}

/// From this length on, the system is asked for huge pages: below, there would be none. Pools are walked in scattered
/// pieces, and looking up a small page for each of them costs as much as a tenth of the copy.
pub(crate) const HUGE_FROM: usize = 2 << 20;

/// An empty region still has an address of its own.
fn at_least_a_byte(len: usize) -> usize {
    len.max(1)
}
