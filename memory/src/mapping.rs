//! Mappings of memory into this process, unmapped when dropped.
//!
//! Who may touch what, and when: nobody touches bytes here. A mapping is made where the system finds room, so it
//! covers no other object of this process, and it stays where it is until it is dropped. Its owner says who may use
//! the address meanwhile.

use std::ffi::c_void;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};

use rustix::io::Errno;
use rustix::mm::{self, MapFlags, ProtFlags};

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
    /// Zeroed pages of this process alone. They are huge ones where there is enough for one and the system has them:
    /// `process_vm_readv` looks up every page of the other process, and a processor every page it meets.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        let (len, access, flags) = (at_least_a_byte(len), Access::Write, MapFlags::PRIVATE);
        let spare = if is_huge(len) { HUGE_PAGE } else { 0 };
        let room = len.checked_add(spare).ok_or(Errno::NOMEM)?;
        // SAFETY: without an address and MAP_FIXED the system takes pages that nothing else uses.
        let start =
            unsafe { mm::mmap_anonymous(ptr::null_mut(), room, access.protection(), flags) }?;
        let mapping = Self::at(start, room);
        Ok(if spare > 0 {
            mapping.cut_to_huge_pages(len)
        } else {
            mapping
        })
    }

    /// The first `len` bytes that start with a huge page, and are to be made of them. The rest is given back.
    fn cut_to_huge_pages(mut self, len: usize) -> Self {
        let before = self.start.as_ptr().cast::<u8>().align_offset(HUGE_PAGE);
        let pages = before + len.next_multiple_of(rustix::param::page_size());
        for (at, bytes) in [(0, before), (pages, self.len.saturating_sub(pages))] {
            if bytes > 0 {
                let unused = self.start.as_ptr().wrapping_byte_add(at);
                // SAFETY: whole pages of this mapping, which nobody was told of.
                let unmapped = unsafe { mm::munmap(unused, bytes) };
                debug_assert!(unmapped.is_ok(), "munmap: {unmapped:?}");
            }
        }
        let start = self.start.as_ptr().wrapping_byte_add(before);
        self.start = NonNull::new(start).expect("within a mapping");
        self.len = len;
        // SAFETY: the range is this mapping, and no byte of it changes. Where it is refused, pages are small ones.
        let _ = unsafe { mm::madvise(start, len, mm::Advice::LinuxHugepage) };
        self
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
        Self { start, len }
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

/// Size of a huge page where the usual page has 4 KiB. Where it is another one, this is still an address to start with.
const HUGE_PAGE: usize = 2 << 20;

/// Whether so many bytes are to be mapped by themselves, in huge pages.
pub(crate) fn is_huge(len: usize) -> bool {
    len >= HUGE_PAGE
}

/// An empty region still has an address of its own.
fn at_least_a_byte(len: usize) -> usize {
    len.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_room_for_a_huge_page_starts_with_one() {
        for (len, starts) in [
            (4096, 4096),
            (HUGE_PAGE - 1, 4096),
            (HUGE_PAGE, HUGE_PAGE),
            (5 * HUGE_PAGE / 2 + 1, HUGE_PAGE),
        ] {
            let mapping = Mapping::anonymous(len).unwrap();
            assert_eq!(mapping.start().addr().get() % starts, 0, "{len}");
            for at in [0, len - 1] {
                let byte = mapping.start().as_ptr().wrapping_add(at);
                // SAFETY: a byte of a mapping that is this test's.
                unsafe { byte.write(1) };
            }
        }
        assert!(Mapping::anonymous(usize::MAX - 4096).is_err());
        assert!(Mapping::anonymous(isize::MAX as usize).is_err());
    }
}
