//! Memory of the other side, as regions of this one.

use std::any::Any;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use moai_memory::{Domain, Foreign, MemoryKind, Region};

use super::TableDomain;
use crate::abi;

/// Keeps memory of the other side, and knows what it was described as.
pub(super) struct Taken {
    memory: abi::Memory,
    domain: Option<TableDomain>,
}

// SAFETY: of the other side's memory only numbers are kept; retaining and releasing is for any thread, by the rules of
// the header, and so is looking at the descriptor.
unsafe impl Send for Taken {}
// SAFETY: as above.
unsafe impl Sync for Taken {}

impl Taken {
    pub(super) fn handle(&self) -> *mut std::ffi::c_void {
        self.memory.handle
    }

    pub(super) fn address(&self) -> usize {
        self.memory.address.addr()
    }

    pub(super) fn device(&self) -> Option<&TableDomain> {
        self.domain.as_ref()
    }
}

impl Foreign for Taken {
    fn domain(&self) -> Option<&dyn Domain> {
        self.domain.as_ref().map(|domain| domain as &dyn Domain)
    }

    fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        if self.memory.fd < 0 {
            return None;
        }
        // SAFETY: it was open when the memory was taken, and stays so by the rules of the header while it is retained.
        let fd = unsafe { BorrowedFd::borrow_raw(self.memory.fd) };
        Some((fd, self.memory.fd_offset))
    }

    fn is_writable(&self) -> bool {
        self.memory.flags & abi::MEMORY_WRITABLE != 0
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(release) = self.memory.release {
            // SAFETY: it was retained for this, or came so.
            unsafe { release(self.memory.handle) };
        }
    }
}

/// Memory that was described, as a region. It is retained, unless it comes `retained`; then it is released also if it
/// cannot be taken.
///
/// # Errors
///
/// What is wrong with the description.
///
/// # Safety
///
/// `at` is NULL or points to a description that keeps the rules of the header; the bytes are lent for as long as a
/// reference to them is used.
pub(crate) unsafe fn take(at: *const abi::Memory, retained: bool) -> Result<Region, String> {
    // SAFETY: by contract.
    let memory = unsafe { abi::read(at) }
        .map_err(|size| format!("memory described by a struct of {size} bytes"))?;
    let (Some(retain), Some(_)) = (memory.retain, memory.release) else {
        return Err("memory without functions to retain and release it".to_owned());
    };
    let mut taken = Taken {
        memory,
        domain: None,
    };
    // From here on it is released when `taken` is dropped.
    if !retained {
        // SAFETY: by contract it is there during this call.
        unsafe { retain(memory.handle) };
    }
    let kind = u8::try_from(memory.kind)
        .ok()
        .and_then(MemoryKind::from_code);
    let Some(kind) = kind else {
        return Err(format!(
            "memory of kind {}, and this build knows kinds 1 to {}",
            memory.kind,
            MemoryKind::ALL.len()
        ));
    };
    let len = usize::try_from(memory.bytes).ok();
    let Some(len) = len.filter(|&len| isize::try_from(len).is_ok()) else {
        return Err(format!("memory of {} bytes", memory.bytes));
    };
    let address = memory.address.addr();
    let start = match NonNull::new(memory.address.cast::<u8>()) {
        Some(start) => start,
        None if len == 0 => NonNull::dangling(),
        None => return Err(format!("memory of {len} bytes at address 0")),
    };
    if address.checked_add(len).is_none() {
        return Err(format!("memory of {len} bytes at address {address:#x}"));
    }
    if memory.fd >= 0 {
        // SAFETY: that it is open is what is asked here; it is used for nothing else.
        let fd = unsafe { BorrowedFd::borrow_raw(memory.fd) };
        if rustix::io::fcntl_getfd(fd).is_err() {
            return Err(format!(
                "memory with a descriptor {} that is not open",
                memory.fd
            ));
        }
    }
    if !memory.domain.is_null() && !kind.is_host_accessible() {
        // SAFETY: by contract it is a table as long as the memory is retained.
        taken.domain = Some(unsafe { TableDomain::of(memory.domain) }?);
    }
    // SAFETY: the bytes are there while the memory is retained, which its owner sees to; whose turn it is to touch them
    // is the caller's to know.
    Ok(unsafe { Region::from_foreign(start, len, kind, Box::new(taken)) })
}
