//! Memory of one peer that this side may address: keys that were imported, and files that came with them.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use moai_memory::{Domain, Hold, MemoryKind, Region};
use moai_transport::{Error, RemoteKey};

use crate::address::NAME;

/// What a peer has exported to this side.
#[derive(Debug, Default)]
pub(crate) struct Imports {
    keys: Vec<RemoteKey>,
    /// By the peer's number for it.
    files: HashMap<u64, File>,
}

/// A file that the peer has sent, mapped when it is first used.
#[derive(Debug)]
struct File {
    /// `None` if it was lost on the way, because a process here or there has no descriptors left.
    fd: Option<OwnedFd>,
    mapped: Option<Region>,
    /// By devices of this process, for memory of the peer's device.
    on_devices: Vec<(u64, Region)>,
}

/// Files of one peer at a time. A file costs a descriptor here: an engine has one for each layer and part at the most,
/// and a process usually some thousand descriptors.
pub(crate) const MAX_FILES: usize = 4096;

impl Imports {
    /// A file came. False if there are too many.
    pub(crate) fn file(&mut self, export: u64, fd: Option<OwnedFd>) -> bool {
        if self.files.len() >= MAX_FILES {
            return false;
        }
        let file = File {
            fd,
            mapped: None,
            on_devices: Vec::new(),
        };
        self.files.insert(export, file);
        true
    }

    /// The peer has deregistered all of a file.
    pub(crate) fn retire(&mut self, export: u64) {
        self.files.remove(&export);
    }

    /// Takes a key that was found in order.
    pub(crate) fn key(&mut self, key: RemoteKey) -> u32 {
        self.keys.push(key);
        self.keys.len() as u32 - 1
    }

    /// How many keys there are.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key with a number.
    #[inline]
    pub(crate) fn get(&self, number: u32) -> Result<&RemoteKey, Error> {
        let key = self.keys.get(number as usize);
        key.ok_or(Error::NotImported { region: number })
    }

    /// Maps the file of a key, if it is one that can be. False if it cannot be reached in that way.
    pub(crate) fn prepare(&mut self, number: u32) -> bool {
        let Some(key) = self.keys.get(number as usize) else {
            return false;
        };
        let Some(file) = self.files.get_mut(&key.export) else {
            return false;
        };
        if file.mapped.is_none() {
            let Some(fd) = &file.fd else {
                return false;
            };
            file.mapped = whole(fd, key);
        }
        file.mapped.is_some()
    }

    /// Has a device import the file of a key of its kind of memory. False if it cannot be reached in that way.
    pub(crate) fn prepare_on(&mut self, number: u32, device: &dyn Domain) -> bool {
        let Some(key) = self.keys.get(number as usize) else {
            return false;
        };
        let file = self.files.get_mut(&key.export);
        let Some(file) = file.filter(|_| key.kind == device.kind()) else {
            return false;
        };
        if file.on_devices.iter().any(|(id, _)| *id == device.id()) {
            return true;
        }
        let imported = file.fd.as_ref().and_then(|fd| {
            all_of(fd, |bytes, writable| {
                device.import(fd.try_clone().ok()?, 0, bytes, writable).ok()
            })
        });
        let Some(region) = imported else {
            return false;
        };
        file.on_devices.push((device.id(), region));
        true
    }

    /// A key's memory as a device names it: the file that was prepared, and where in it the memory starts.
    pub(crate) fn on_device(&self, number: u32, device: u64) -> Option<(Hold, u64)> {
        let key = self.keys.get(number as usize)?;
        let mut known = self.files.get(&key.export)?.on_devices.iter();
        let (_, region) = known.find(|(id, _)| *id == device)?;
        Some((region.hold(), key.offset))
    }

    /// The bytes of a key's memory; its file was prepared.
    #[inline]
    pub(crate) fn bytes(&self, number: u32) -> Option<&[u8]> {
        let key = self.keys.get(number as usize)?;
        let bytes = self.files.get(&key.export)?.mapped.as_ref()?.host_bytes()?;
        bytes.get(key.offset as usize..(key.offset + key.len) as usize)
    }

    /// The same, to be written; `None` too if the peer has made it readable only.
    #[inline]
    pub(crate) fn bytes_mut(&mut self, number: u32) -> Option<&mut [u8]> {
        let key = self.keys.get(number as usize)?;
        let file = self.files.get_mut(&key.export)?;
        let bytes = file.mapped.as_mut()?.host_bytes_mut()?;
        bytes.get_mut(key.offset as usize..(key.offset + key.len) as usize)
    }

    /// A region of its own of a key's memory, for reading.
    pub(crate) fn region(&self, number: u32, devices: &[Arc<dyn Domain>]) -> Result<Region, Error> {
        let key = self.get(number)?;
        let fd = self
            .files
            .get(&key.export)
            .and_then(|file| file.fd.as_ref());
        let cannot = |reason: String| Error::Unsupported {
            provider: NAME,
            operation: moai_transport::Operation::Map,
            kind: key.kind,
            reason,
        };
        let device = devices.iter().find(|device| device.kind() == key.kind);
        if key.kind != MemoryKind::Shared && device.is_none() {
            let reason = "only shared memory can be mapped, and that of devices which were named when the interface \
                          was opened";
            return Err(cannot(reason.to_owned()));
        }
        let Some(fd) = fd else {
            return Err(cannot(format!(
                "its descriptor was not passed: a process here has no more to spare (ulimit -n), or the peer lends \
                     more than {MAX_FILES} files, of which one can hold many regions"
            )));
        };
        let fd = fd
            .try_clone()
            .map_err(|cause| Error::Os { call: "dup", cause })?;
        // Files are mapped from a page on; a region may start anywhere in its file.
        let before = key.offset % PAGE_BYTES;
        let (start, len) = (key.offset - before, key.len + before);
        let imported = match device {
            Some(device) => device.import(fd, start, len, false),
            None => Region::import(fd, start, len, MemoryKind::Shared, false),
        };
        let region = imported.map_err(|error| cannot(error.to_string()))?;
        Ok(region.split_at(before).1)
    }
}

/// A multiple of every machine's page.
const PAGE_BYTES: u64 = 64 << 10;

/// All of a file, as far as its key tells that there is more to it.
fn whole(fd: &OwnedFd, key: &RemoteKey) -> Option<Region> {
    all_of(fd, |bytes, writable| {
        Region::import(fd.try_clone().ok()?, 0, bytes, key.kind, writable).ok()
    })
}

fn all_of(fd: &OwnedFd, import: impl Fn(u64, bool) -> Option<Region>) -> Option<Region> {
    let bytes = u64::try_from(rustix::fs::fstat(fd.as_fd()).ok()?.st_size).ok()?;
    // The peer may have sent it for reading only, whatever a key says.
    import(bytes, true).or_else(|| import(bytes, false))
}
