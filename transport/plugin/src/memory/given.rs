//! Regions of this image, described for the other.

use std::ffi::c_void;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;

use moai_memory::{Hold, Region};

use super::Exported;
use crate::abi;

/// Memory that the other side may know of. It is kept alive by whoever has retained it.
pub(crate) struct Held {
    hold: Hold,
    /// Its device, as a table that lives as long.
    domain: Option<Arc<Exported>>,
}

impl Held {
    pub(crate) fn new(region: &Region) -> Arc<Self> {
        Self::of(region.hold())
    }

    pub(crate) fn of(hold: Hold) -> Arc<Self> {
        let domain = hold.domain().map(Exported::of);
        Arc::new(Self { hold, domain })
    }

    pub(crate) fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Whether it is that region, as far as bytes are concerned. While it is held, its addresses are nobody else's.
    pub(crate) fn is(&self, region: &Region) -> bool {
        self.hold.address() == region.start_address()
            && self.hold.len() == region.len()
            && self.hold.kind() == region.kind()
    }

    /// As the other side sees it, good while it is held: whoever keeps it longer retains it.
    pub(crate) fn describe(self: &Arc<Self>) -> abi::Memory {
        let export = self.hold.export();
        let writable = if self.hold.is_writable() {
            abi::MEMORY_WRITABLE
        } else {
            0
        };
        abi::Memory {
            size: size_of::<abi::Memory>() as u32,
            kind: u32::from(self.hold.kind().code()),
            flags: writable,
            fd: export.map_or(-1, |export| export.fd.as_raw_fd()),
            fd_offset: export.map_or(0, |export| export.offset),
            bytes: self.hold.len(),
            address: self.hold.as_ptr().cast(),
            handle: Arc::as_ptr(self).cast_mut().cast(),
            retain: Some(retain),
            release: Some(release),
            domain: self
                .domain
                .as_ref()
                .map_or(ptr::null(), |domain| domain.table()),
        }
    }

    /// As the other side sees it, retained once for it.
    pub(crate) fn give(self: Arc<Self>) -> abi::Memory {
        let memory = self.describe();
        let _ = Arc::into_raw(self);
        memory
    }
}

unsafe extern "C" fn retain(handle: *mut c_void) {
    // SAFETY: a handle is what `describe` has given, of memory that is held.
    unsafe { Arc::increment_strong_count(handle.cast_const().cast::<Held>()) };
}

unsafe extern "C" fn release(handle: *mut c_void) {
    // SAFETY: a handle is what `describe` has given, retained by whoever releases it.
    unsafe { Arc::decrement_strong_count(handle.cast_const().cast::<Held>()) };
}
