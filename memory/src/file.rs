//! Memory as a file, which is how it gets from one process to another.
//!
//! Such a file is a memfd whose size is sealed. A process that maps a file which shrinks afterwards is killed by SIGBUS
//! when it touches what is gone; a seal is the exporter's promise, kept by the system, that this cannot happen.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{self, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::param::page_size;

use crate::{MemoryKind, RegionError};

/// A zeroed memfd of at least `bytes` bytes whose size is final.
pub(crate) fn sealed(bytes: u64, kind: MemoryKind) -> Result<OwnedFd, RegionError> {
    let refused = |call, errno| refusal(call, bytes, kind, errno);
    let whole_pages = bytes
        .max(1)
        .checked_next_multiple_of(page_size() as u64)
        .ok_or(RegionError::OutOfMemory { bytes, kind })?;
    let file = memfd().map_err(|errno| refused("memfd_create", errno))?;
    fs::ftruncate(&file, whole_pages).map_err(|errno| match errno {
        Errno::INVAL => refused("ftruncate", Errno::FBIG),
        errno => refused("ftruncate", errno),
    })?;
    // The last of the seals keeps a peer from adding any that would be in our way.
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fs::fcntl_add_seals(&file, seals).map_err(|errno| refused("fcntl(F_ADD_SEALS)", errno))?;
    Ok(file)
}

/// Whether `len` bytes from `offset` can be mapped from a file that a peer sent, now and later.
pub(crate) fn check(file: &OwnedFd, offset: u64, len: u64) -> Result<(), RegionError> {
    let page_bytes = page_size() as u64;
    if !offset.is_multiple_of(page_bytes) {
        return Err(RegionError::Misaligned { offset, page_bytes });
    }
    // Only memfds have seals at all. Those of huge pages are left out: a peer could free their pages and use up the rest,
    // and a fault without a huge page to be had kills.
    let Ok(seals) = fs::fcntl_get_seals(file) else {
        return Err(RegionError::NotMemory);
    };
    if !fs::fstatfs(file).is_ok_and(|system| system.f_type == TMPFS_MAGIC) {
        return Err(RegionError::NotMemory);
    }
    if !seals.contains(SealFlags::SHRINK) {
        return Err(RegionError::Unsealed);
    }
    // The size comes after the seal: from here on it can only grow.
    let file_bytes = fs::fstat(file).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
    let end = offset.checked_add(len.max(1));
    if end.is_none_or(|end| end > file_bytes) {
        return Err(RegionError::TooShort {
            offset,
            len,
            file_bytes,
        });
    }
    Ok(())
}

/// What a failed system call means for a region.
pub(crate) fn refusal(
    call: &'static str,
    bytes: u64,
    kind: MemoryKind,
    cause: impl Into<io::Error>,
) -> RegionError {
    let cause = cause.into();
    match Errno::from_io_error(&cause) {
        Some(Errno::NOMEM | Errno::FBIG | Errno::NOSPC | Errno::OVERFLOW) => {
            RegionError::OutOfMemory { bytes, kind }
        }
        _ => RegionError::Os {
            call,
            bytes,
            kind,
            cause,
        },
    }
}

/// A part of a memfd, as another process imports it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Export<'a> {
    /// The file. Whoever gets it can read and write all of it, beyond the region too.
    pub fd: BorrowedFd<'a>,
    /// Where the region starts in the file.
    pub offset: u64,
    /// Bytes of the region.
    pub len: u64,
    /// What the region is to be imported as.
    pub kind: MemoryKind,
}

impl<'a> Export<'a> {
    pub(crate) fn new(fd: BorrowedFd<'a>, offset: u64, len: u64, kind: MemoryKind) -> Self {
        Self {
            fd,
            offset,
            len,
            kind,
        }
    }
}

fn memfd() -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Hardened systems insist on the flag (vm.memfd_noexec = 2), those before Linux 6.3 do not know it.
    match fs::memfd_create(NAME, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => fs::memfd_create(NAME, flags),
        made => made,
    }
}

/// What `/proc` shows for it.
const NAME: &str = "moai-region";

/// File system of memfds, from `linux/magic.h`.
const TMPFS_MAGIC: fs::FsWord = 0x0102_1994;
