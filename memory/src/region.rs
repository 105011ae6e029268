//! Regions: owned, addressable runs of bytes.
//!
//! # Who may touch what, and when
//!
//! Behind a region stands an allocation, counted by reference, at an address that never changes. Two kinds of handle name
//! it:
//!
//! - A [`Region`] is exclusive: it cannot be cloned, and two regions of one allocation never share a byte (only
//!   [`Region::split_at`] makes several of one). Bytes are reached through a region alone, for reading by `&Region` and
//!   for writing by `&mut Region`. So the compiler's rule for references is the rule for bytes: whoever is lent the
//!   regions, as a transport is while it runs, has their bytes to itself.
//! - A [`Hold`] keeps the allocation alive and tells its address, and gives no access to bytes. A transport keeps holds of
//!   what it registered, so that no peer and no NIC ever reaches memory that was freed or is somebody else's by now, even
//!   if its regions are dropped in the middle of a transfer.
//!
//! Memory that a peer process maps, or that a NIC reads and writes, changes without this process doing anything. That is
//! outside the language: no reference rule can hold another process back. What keeps it harmless: bytes are bytes, every
//! value of them is valid; nothing in this process decides by a byte of a region and then relies on reading the same
//! again; and the transfer protocol has each side look at a page only after the completion that says the other side is
//! done with it. A peer that breaks the protocol can spoil the bytes of pages that it was given, which a digest shows; it
//! cannot make this process fault, because a mapped file is sealed against shrinking. A process that imports what it
//! exported itself is its own peer.
//!
//! Memory that the processor cannot load from has an address but no bytes here. Its device reaches them, for jobs that name
//! it by holds; the device says who does when (`sim::memory`).

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use rustix::process::{Resource, getrlimit};

use crate::allocation::{Allocation, Owner};
use crate::file::{self, refusal};
use crate::mapping::{self, Access, Mapping};
use crate::{Foreign, Hold, MemoryKind, RegionError};

/// An owned run of bytes in one kind of memory.
///
/// Regions of [`Shared`](MemoryKind::Shared) and [`Sim`](MemoryKind::Sim) memory cost a file descriptor and one or two
/// mappings each; a process has some thousands of the former (`ulimit -n`) and 65,530 of the latter
/// (`vm.max_map_count`). Whoever needs many makes one and splits it with [`split_at`](Self::split_at).
///
/// # Invariants
///
/// - The length never changes, so an offset that was checked once stays in bounds.
/// - No other region has a byte of it.
pub struct Region {
    allocation: Arc<Allocation>,
    /// Where the region starts in its allocation.
    start: usize,
    len: usize,
}

/// Memory of our own starts at a multiple of this, a page, as engines' tensors do: rows that start with a cache line
/// can be stored in whole lines.
const ALIGNMENT: usize = 4096;

impl Region {
    /// Zero-filled host memory that starts with a page. Pages are taken from the system only when they are first touched;
    /// from 2 MiB on they are huge ones, if the system gives them (`/sys/kernel/mm/transparent_hugepage/enabled` is
    /// `madvise` or `always`), which other processes reach up to twice as fast.
    ///
    /// # Errors
    ///
    /// [`RegionError::OutOfMemory`] if the allocator cannot provide `bytes`.
    pub fn host_zeroed(bytes: u64) -> Result<Self, RegionError> {
        let refused = RegionError::OutOfMemory {
            bytes,
            kind: MemoryKind::Host,
        };
        let room = usize::try_from(bytes)
            .ok()
            .and_then(|len| len.checked_add(ALIGNMENT - 1));
        let Some(room) = room else {
            return Err(refused);
        };
        if mapping::is_huge(bytes as usize) {
            let len = addressable(bytes, MemoryKind::Host)?;
            let mapping = Mapping::anonymous(len)
                .map_err(|cause| refusal("mmap", bytes, MemoryKind::Host, cause))?;
            let allocation = Allocation::mapped(mapping, MemoryKind::Host, Access::Write, None);
            return Ok(Self::whole(allocation, len));
        }
        // `try_reserve` turns an absurd size into an error where `vec![0; n]` would abort; only a
        // size that passed is then allocated zeroed, which is what keeps untouched pages free.
        if Vec::<u8>::new().try_reserve_exact(room).is_err() {
            return Err(refused);
        }
        let room = vec![0; room].into_boxed_slice();
        let skip = room.as_ptr().align_offset(ALIGNMENT);
        Ok(Self::whole(Allocation::heap(room, skip), bytes as usize))
    }

    /// Host memory that takes over `bytes`.
    #[must_use]
    pub fn from_host(bytes: Vec<u8>) -> Self {
        let len = bytes.len();
        Self::whole(Allocation::heap(bytes.into_boxed_slice(), 0), len)
    }

    /// Zero-filled memory that stays in memory, in whole pages. All of it is taken from the system at once.
    ///
    /// # Errors
    ///
    /// - [`RegionError::OutOfMemory`] if there is not so much.
    /// - [`RegionError::LockLimit`] if the process may not pin so much.
    pub fn pinned_zeroed(bytes: u64) -> Result<Self, RegionError> {
        let kind = MemoryKind::Pinned;
        let len = addressable(bytes, kind)?;
        let mapping =
            Mapping::anonymous(len).map_err(|cause| refusal("mmap", bytes, kind, cause))?;
        mapping.lock().map_err(|cause| lock_limit(bytes, cause))?;
        let allocation = Allocation::mapped(mapping, kind, Access::Write, None);
        Ok(Self::whole(allocation, len))
    }

    /// Zero-filled memory that other processes can map, in whole pages. Pages are taken from the system only when they
    /// are first touched. Costs a file descriptor.
    ///
    /// # Errors
    ///
    /// - [`RegionError::OutOfMemory`] if there is not so much.
    /// - [`RegionError::Os`] if the process has no file descriptor left.
    pub fn shared_zeroed(bytes: u64) -> Result<Self, RegionError> {
        let (kind, access) = (MemoryKind::Shared, Access::Write);
        let len = addressable(bytes, kind)?;
        let file = file::sealed(bytes, kind)?;
        let mapping = Mapping::of_file(file.as_fd(), 0, len, access)
            .map_err(|cause| refusal("mmap", bytes, kind, cause))?;
        let allocation = Allocation::mapped(mapping, kind, access, Some(file));
        Ok(Self::whole(allocation, len))
    }

    /// Memory that another process exported, mapped into this one. It has no export of its own: its descriptor is closed
    /// once it is mapped, so that imports cost none.
    ///
    /// What the other process says is not believed: the file's kind, size and seals are looked at before it is mapped.
    ///
    /// # Errors
    ///
    /// - [`RegionError::NotImportable`] unless `kind` is [`Shared`](MemoryKind::Shared).
    /// - [`RegionError::NotMemory`], [`RegionError::Unsealed`], [`RegionError::TooShort`] or [`RegionError::Misaligned`]
    ///   if touching the memory could kill this process, or it cannot be mapped.
    /// - [`RegionError::Os`] if the system refuses, as it does to write to what was opened for reading.
    pub fn import(
        fd: OwnedFd,
        offset: u64,
        len: u64,
        kind: MemoryKind,
        writable: bool,
    ) -> Result<Self, RegionError> {
        let instead = match kind {
            MemoryKind::Shared => None,
            MemoryKind::Sim => Some("a device imports it, as SimDevice::import does"),
            MemoryKind::Host | MemoryKind::Pinned => Some("only shared memory has a descriptor"),
        };
        if let Some(instead) = instead {
            return Err(RegionError::NotImportable { kind, instead });
        }
        file::check(&fd, offset, len)?;
        let (bytes, access) = (addressable(len, kind)?, Access::imported(writable));
        let mapping = Mapping::of_file(fd.as_fd(), offset, bytes, access)
            .map_err(|cause| refusal("mmap", len, kind, cause))?;
        let allocation = Allocation::mapped(mapping, kind, access, None);
        Ok(Self::whole(allocation, bytes))
    }

    /// Memory of somebody else, such as an engine's tensor. `owner` is dropped when the last region and the last hold of
    /// it are gone.
    ///
    /// # Safety
    ///
    /// - As long as `owner` is not dropped, `len` bytes from `ptr` stay where they are and can be loaded and stored, if
    ///   [`kind`](MemoryKind::is_host_accessible) says that the processor can do so at all; they are initialized, and no
    ///   more than `isize::MAX`.
    /// - Nobody else in this process touches them while a reference to them that was got from the region is in use. Who
    ///   writes into the tensor meanwhile, as an engine does, must keep out of the pages that are being transferred, by the
    ///   same protocol that a peer process keeps.
    #[must_use]
    pub unsafe fn from_raw(
        ptr: NonNull<u8>,
        len: usize,
        kind: MemoryKind,
        owner: Box<dyn Send + Sync>,
    ) -> Self {
        let access = if kind.is_host_accessible() {
            Access::Write
        } else {
            Access::None
        };
        let allocation = Allocation::new(ptr, kind, access, None, Owner::Foreign(owner));
        Self::whole(allocation, len)
    }

    /// Memory that a plug-in has, or the program that has loaded it. `owner` is dropped when the last region and the last
    /// hold of it are gone.
    ///
    /// # Safety
    ///
    /// As for [`from_raw`](Self::from_raw); what its owner says that cannot be written need not be writable.
    #[must_use]
    pub unsafe fn from_foreign(
        ptr: NonNull<u8>,
        len: usize,
        kind: MemoryKind,
        owner: Box<dyn Foreign>,
    ) -> Self {
        let access = if kind.is_host_accessible() {
            Access::imported(owner.is_writable())
        } else {
            Access::None
        };
        let allocation = Allocation::new(ptr, kind, access, None, Owner::Lent(owner));
        Self::whole(allocation, len)
    }

    /// All of an allocation that was made for `len` bytes.
    pub(crate) fn whole(allocation: Allocation, len: usize) -> Self {
        Self {
            allocation: Arc::new(allocation),
            start: 0,
            len,
        }
    }

    /// The first `at` bytes, and the rest, as regions of their own. The memory is freed when both are gone.
    ///
    /// Another process can import the second only if `at` is a multiple of its page; 64 KiB is one everywhere.
    ///
    /// # Panics
    ///
    /// If the region is shorter than `at`.
    #[must_use]
    pub fn split_at(self, at: u64) -> (Self, Self) {
        let Self {
            allocation,
            start,
            len,
        } = self;
        assert!(at <= len as u64, "cannot split {len} bytes at {at}");
        let at = at as usize;
        let first = Self {
            allocation: Arc::clone(&allocation),
            start,
            len: at,
        };
        let rest = Self {
            allocation,
            start: start + at,
            len: len - at,
        };
        (first, rest)
    }

    /// The kind of memory this region lives in.
    #[must_use]
    pub fn kind(&self) -> MemoryKind {
        self.allocation.kind()
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Whether the region holds no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the memory starts, as a number; as [`Hold::address`].
    #[must_use]
    pub fn start_address(&self) -> usize {
        self.address().as_ptr().addr()
    }

    /// Keeps the memory alive and tells where it is, without its bytes.
    #[must_use]
    pub fn hold(&self) -> Hold {
        Hold::new(Arc::clone(&self.allocation), self.start, self.len)
    }

    /// The bytes, if this process can load them.
    #[must_use]
    pub fn host_bytes(&self) -> Option<&[u8]> {
        if self.allocation.access() == Access::None {
            return None;
        }
        // SAFETY: the bytes can be loaded as long as the allocation lives, which `self` keeps. No other region has them,
        // so writing them takes `&mut self`, which cannot be had while this reference is in use.
        Some(unsafe { slice::from_raw_parts(self.address().as_ptr(), self.len) })
    }

    /// The bytes, if this process can load and store them.
    #[must_use]
    pub fn host_bytes_mut(&mut self) -> Option<&mut [u8]> {
        if self.allocation.access() != Access::Write {
            return None;
        }
        // SAFETY: the bytes can be stored as long as the allocation lives, which `self` keeps. No other region has them,
        // and `self` is borrowed exclusively.
        Some(unsafe { slice::from_raw_parts_mut(self.address().as_ptr(), self.len) })
    }

    /// The bytes, for memory that this process can load from.
    ///
    /// # Panics
    ///
    /// If it cannot; [`host_bytes`](Self::host_bytes) tells.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.host_bytes()
            .unwrap_or_else(|| no_access(self.kind(), "loaded"))
    }

    /// The bytes, for memory that this process can store to.
    ///
    /// # Panics
    ///
    /// If it cannot, because of the memory's kind or because it was imported for reading;
    /// [`host_bytes_mut`](Self::host_bytes_mut) tells.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let kind = self.kind();
        self.host_bytes_mut()
            .unwrap_or_else(|| no_access(kind, "stored"))
    }

    fn address(&self) -> NonNull<u8> {
        // SAFETY: a region lies in its allocation.
        unsafe { self.allocation.start().add(self.start) }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("kind", &self.kind())
            .field("len", &self.len())
            .finish()
    }
}

#[cold]
fn no_access(kind: MemoryKind, done: &str) -> ! {
    if kind.is_host_accessible() {
        panic!("bytes of this {kind} region cannot be {done}: it was imported for reading only");
    }
    panic!("bytes of {kind} memory cannot be {done} by the host: only a stream of its device can");
}

/// What fits one slice.
pub(crate) fn addressable(bytes: u64, kind: MemoryKind) -> Result<usize, RegionError> {
    let len = usize::try_from(bytes).ok();
    len.filter(|len| isize::try_from(*len).is_ok())
        .ok_or(RegionError::OutOfMemory { bytes, kind })
}

fn lock_limit(bytes: u64, cause: io::Error) -> RegionError {
    RegionError::LockLimit {
        bytes,
        limit_bytes: getrlimit(Resource::Memlock).current,
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroed_regions_hold_zeros_and_keep_their_length() {
        for make in [
            Region::host_zeroed,
            Region::pinned_zeroed,
            Region::shared_zeroed,
        ] {
            for bytes in [0, 1, 4097] {
                let mut region = make(bytes).unwrap();
                assert_eq!(region.len(), bytes);
                assert!(region.as_slice().as_ptr().addr().is_multiple_of(ALIGNMENT));
                assert!(region.as_slice().iter().all(|&b| b == 0));
                region.as_mut_slice().fill(7);
                assert!(region.as_slice().iter().all(|&b| b == 7));
            }
        }
    }

    #[test]
    fn an_absurd_size_is_an_error_and_not_an_abort() {
        for make in [
            Region::host_zeroed,
            Region::pinned_zeroed,
            Region::shared_zeroed,
        ] {
            for bytes in [u64::MAX, i64::MAX as u64 + 1, i64::MAX as u64, 1 << 62] {
                let error = make(bytes).unwrap_err();
                assert!(matches!(error, RegionError::OutOfMemory { .. }), "{error}");
                assert!(error.to_string().contains(&bytes.to_string()), "{error}");
            }
        }
    }

    #[test]
    fn the_parts_of_a_region_are_its_bytes_and_outlive_each_other() {
        let whole = Region::from_host((0..10).collect());
        let (mut first, rest) = whole.split_at(4);
        first.as_mut_slice().fill(9);
        assert_eq!(first.as_slice(), [9; 4]);
        drop(first);
        let (middle, mut last) = rest.split_at(6);
        assert_eq!(middle.as_slice(), [4, 5, 6, 7, 8, 9]);
        assert!(last.is_empty());
        assert!(last.as_mut_slice().is_empty());
    }

    #[test]
    #[should_panic = "cannot split 10 bytes at 11"]
    fn a_region_is_not_split_beyond_its_end() {
        let _ = Region::from_host(vec![0; 10]).split_at(11);
    }

    #[test]
    fn foreign_memory_is_given_back_when_its_last_handle_is_gone() {
        let alive = Arc::new(());
        let mut bytes = vec![1, 2, 3];
        let ptr = NonNull::new(bytes.as_mut_ptr()).unwrap();
        let tensor = (Arc::clone(&alive), bytes);
        // SAFETY: the vector is moved into the owner, where nobody touches it; its bytes stay where they are.
        let mut region = unsafe { Region::from_raw(ptr, 3, MemoryKind::Pinned, Box::new(tensor)) };
        assert_eq!(region.kind(), MemoryKind::Pinned);
        region.as_mut_slice()[1] = 9;
        assert_eq!(region.as_slice(), [1, 9, 3]);
        let hold = region.hold();
        drop(region);
        assert_eq!(Arc::strong_count(&alive), 2);
        drop(hold);
        assert_eq!(Arc::strong_count(&alive), 1);
    }

    #[test]
    #[should_panic = "bytes of sim memory cannot be loaded by the host"]
    fn memory_of_a_device_is_not_loaded() {
        // SAFETY: of memory that the processor cannot load, only the address is told.
        let region =
            unsafe { Region::from_raw(NonNull::dangling(), 3, MemoryKind::Sim, Box::new(())) };
        assert!(region.host_bytes().is_none());
        let _ = region.as_slice();
    }

    #[test]
    #[should_panic = "it was imported for reading only"]
    fn what_was_imported_for_reading_is_not_stored_to() {
        let region = Region::shared_zeroed(3).unwrap();
        let hold = region.hold();
        let export = hold.export().unwrap();
        let fd = export.fd.try_clone_to_owned().unwrap();
        let mut import = Region::import(fd, export.offset, export.len, export.kind, false).unwrap();
        assert_eq!(import.as_slice(), [0; 3]);
        import.as_mut_slice()[0] = 1;
    }
}
