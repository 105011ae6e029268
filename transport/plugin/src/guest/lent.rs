//! Regions that the host lends, as regions of this image.

use std::ffi::c_void;

use moai_memory::Region;

use crate::abi;
use crate::memory::take;

/// What was lent last. It is looked at again only where the host says that something has changed.
#[derive(Debug, Default)]
pub(super) struct Lent {
    version: Option<u64>,
    regions: Vec<Region>,
    names: Vec<Name>,
}

/// What tells whether a description is of the same memory: while it is retained, its handle is nobody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name {
    handle: *mut c_void,
    address: usize,
    bytes: u64,
}

// SAFETY: handles are only compared.
unsafe impl Send for Name {}

impl Lent {
    /// The regions of this call.
    ///
    /// # Errors
    ///
    /// What is wrong with what the host lends.
    ///
    /// # Safety
    ///
    /// `raw` is NULL, or what the host lends, until the call ends that the result is used in.
    pub(super) unsafe fn look(
        &mut self,
        raw: *const abi::Regions,
    ) -> Result<&mut [Region], String> {
        // SAFETY: by contract.
        let Some(raw) = (unsafe { raw.as_ref() }) else {
            return Err("NULL instead of regions".to_owned());
        };
        if self.version == Some(raw.version) && self.regions.len() as u64 == raw.count {
            return Ok(&mut self.regions);
        }
        self.version = None;
        let count = raw.count as usize;
        self.regions.truncate(count);
        self.names.truncate(count);
        for at in 0..count {
            let memory = raw.at.wrapping_byte_add(at * raw.stride as usize);
            // SAFETY: by contract there are so many, each with these fields.
            let one = unsafe { &*memory };
            let name = Name {
                handle: one.handle,
                address: one.address.addr(),
                bytes: one.bytes,
            };
            if self.names.get(at) == Some(&name) {
                continue;
            }
            // SAFETY: by contract it describes what is lent; what is kept of it is used while it is lent again.
            let region = unsafe { take(memory, false) }?;
            if at == self.regions.len() {
                self.regions.push(region);
                self.names.push(name);
            } else {
                self.regions[at] = region;
                self.names[at] = name;
            }
        }
        self.version = Some(raw.version);
        Ok(&mut self.regions)
    }
}
