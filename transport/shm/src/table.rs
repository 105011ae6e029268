//! The table of registrations that peers can look at.
//!
//! ```text
//!   generations    one of 8 bytes for each slot: what a key must have to pass, 0 if nobody does
//!   extents        one of 32 bytes for each slot: length of the memory, with rights in the highest byte; its address,
//!                  the name of its file, and where it starts there
//! ```
//!
//! What is said here counts. A key that came through others' hands may say something else, so it is compared with the
//! extent before a byte is moved: whatever has happened to it, it reaches the memory that was registered, or nothing.
//!
//! It is a memfd. Peers get a descriptor that is open for reading only, so that none can open a slot that was closed
//! for everybody, or close one. They do nothing but relaxed loads, which memory that cannot be written needs; the gate
//! has a fence of its own, and what was written before a generation is seen by whoever has seen that generation. The owner writes an extent while its slot is closed; a peer that has passed the gate
//! keeps the slot from being used again, so it reads the extent that belongs to the generation.
#![allow(unsafe_code)] // Structures are placed into mapped memory, whose layout this file knows.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use moai_memory::{Hold, MemoryKind, Region, RegionError};
use moai_transport::limits::MAX_REGISTRATIONS;
use moai_transport::sync::gate::{Generation, Target};
use moai_transport::sync::shared::{Owner, Plain, Shared};
use moai_transport::{Refusal, RemoteKey, Rights};

use crate::segment::export;

/// This interface's table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) target: Target,
    extents: Shared<Extent>,
    /// For peers.
    file: OwnedFd,
}

/// A peer's table.
#[derive(Debug)]
pub(crate) struct PeerTable {
    pub(crate) generations: Shared<Generation>,
    extents: Shared<Extent>,
}

#[derive(Debug, Default)]
#[repr(C)]
struct Extent {
    /// Length, and rights in the highest byte.
    word: AtomicU64,
    address: AtomicU64,
    export: AtomicU64,
    offset: AtomicU64,
}

// SAFETY: atomics, `repr(C)`; zeros are its default.
unsafe impl Plain for Extent {}

/// Where registered memory lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// Address in the owner's process.
    pub(crate) address: u64,
    /// The owner's name for its file; 0 without one.
    pub(crate) export: u64,
    /// Of its first byte in the file.
    pub(crate) offset: u64,
}

const SLOTS: usize = MAX_REGISTRATIONS;
const GENERATIONS_BYTES: usize = SLOTS * size_of::<Generation>();
const BYTES: usize = GENERATIONS_BYTES + SLOTS * size_of::<Extent>();

const _: () = assert!(size_of::<Extent>() == 32);

/// Longest memory whose length fits beside the rights.
pub(crate) const MAX_LEN: u64 = (1 << 56) - 1;

impl Table {
    pub(crate) fn new() -> Result<Self, RegionError> {
        let region = Region::shared_zeroed(BYTES as u64)?;
        let hold = region.hold();
        let file = read_only(export(&hold)?);
        let (generations, extents) = map(hold);
        Ok(Self {
            target: Target::new(generations),
            extents,
            file,
        })
    }

    /// What peers get.
    pub(crate) fn file(&self) -> impl AsFd + '_ {
        &self.file
    }

    /// Opens the slot of a registration. Returns the generation that passes it.
    pub(crate) fn open(&mut self, slot: u32, len: u64, rights: Rights, place: Place) -> u64 {
        let extent = &self.extents[slot as usize];
        let word = len | u64::from(rights.bits()) << 56;
        extent.word.store(word, Ordering::Relaxed);
        extent.address.store(place.address, Ordering::Relaxed);
        extent.export.store(place.export, Ordering::Relaxed);
        extent.offset.store(place.offset, Ordering::Relaxed);
        self.target.open(slot)
    }

    /// Where the memory of a slot lies that is open.
    pub(crate) fn place(&self, slot: u32) -> Place {
        self.extents[slot as usize].place()
    }
}

impl PeerTable {
    /// Maps a table that a peer has sent.
    pub(crate) fn open(file: OwnedFd) -> Result<Self, RegionError> {
        let region = Region::import(file, 0, BYTES as u64, MemoryKind::Shared, false)?;
        let (generations, extents) = map(region.hold());
        Ok(Self {
            generations,
            extents,
        })
    }

    /// Whether bytes up to `end` of a key's memory may be accessed so, and are where the key says. The gate of its slot
    /// was passed.
    pub(crate) fn admit(&self, key: &RemoteKey, end: u64, rights: Rights) -> Result<(), Refusal> {
        let Some(extent) = self.extents.get(key.slot as usize) else {
            return Err(Refusal::Generation);
        };
        let word = extent.word.load(Ordering::Relaxed);
        let allowed = (word >> 56) as u8;
        if allowed & rights.bits() != rights.bits() {
            return Err(Refusal::Rights);
        }
        if end > word & MAX_LEN {
            return Err(Refusal::Bounds);
        }
        let claimed = Place {
            address: key.address,
            export: key.export,
            offset: key.offset,
        };
        let place = extent.place();
        // A peer that took no more files was told of none: it reaches the same memory in another way.
        let without_file = Place {
            export: 0,
            offset: 0,
            ..place
        };
        if claimed != place && claimed != without_file {
            return Err(Refusal::Bounds);
        }
        Ok(())
    }
}

impl Extent {
    fn place(&self) -> Place {
        Place {
            address: self.address.load(Ordering::Relaxed),
            export: self.export.load(Ordering::Relaxed),
            offset: self.offset.load(Ordering::Relaxed),
        }
    }
}

fn map(memory: Hold) -> (Shared<Generation>, Shared<Extent>) {
    assert_eq!(memory.len(), BYTES as u64);
    let start = NonNull::new(memory.as_ptr()).expect("memory has an address");
    let owner: Owner = Arc::new(memory);
    // SAFETY: the front of the memory, which starts with a page and which `owner` keeps; used as generations only.
    // A peer's is mapped for reading, and the initiator's side of a gate only loads from it.
    let generations = unsafe { Shared::map(start.cast(), SLOTS, owner.clone()) };
    // SAFETY: inside the memory.
    let second = unsafe { start.add(GENERATIONS_BYTES) };
    // SAFETY: the rest, as above, in which extents are aligned as pages are; only a `Table` stores to it.
    let extents = unsafe { Shared::map(second.cast(), SLOTS, owner) };
    (generations, extents)
}

/// The same file, open for reading only: it cannot be mapped for writing. Without `/proc` it stays as it is.
pub(crate) fn read_only(file: OwnedFd) -> OwnedFd {
    let again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    again.map_or(file, OwnedFd::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_sees_what_is_open_and_can_change_nothing() {
        let mut table = Table::new().unwrap();
        let file = table.file().as_fd().try_clone_to_owned().unwrap();
        let writable = file.try_clone().unwrap();
        let peer = PeerTable::open(file).unwrap();
        let place = Place {
            address: 1 << 20,
            export: 5,
            offset: 4096,
        };
        assert_eq!(table.open(3, 100, Rights::READ, place), 1);
        assert_eq!(table.place(3), place);
        let key = RemoteKey {
            rights: Rights::READ,
            kind: MemoryKind::Shared,
            epoch: 1,
            slot: 3,
            generation: 1,
            len: 100,
            address: place.address,
            export: place.export,
            offset: place.offset,
        };
        let of_slot = |slot| RemoteKey { slot, ..key };
        assert_eq!(peer.admit(&key, 100, Rights::READ), Ok(()));
        for (refused, why) in [
            (peer.admit(&key, 101, Rights::READ), Refusal::Bounds),
            (peer.admit(&key, 1, Rights::WRITE), Refusal::Rights),
            (peer.admit(&of_slot(4), 1, Rights::READ), Refusal::Rights),
            (
                peer.admit(&of_slot(u32::MAX), 1, Rights::READ),
                Refusal::Generation,
            ),
        ] {
            assert_eq!(refused, Err(why));
        }
        for change in [
            |key: &mut RemoteKey| key.address += 1,
            |key: &mut RemoteKey| key.export = 0,
            |key: &mut RemoteKey| key.offset -= 1,
        ] {
            let mut forged = key;
            change(&mut forged);
            let refused = peer.admit(&forged, 1, Rights::READ);
            assert_eq!(refused, Err(Refusal::Bounds), "{forged:?}");
        }
        assert!(Region::import(writable, 0, 8, MemoryKind::Shared, true).is_err());
    }

    #[test]
    fn a_file_that_is_no_table_is_refused() {
        let short = Region::shared_zeroed(BYTES as u64 / 2).unwrap();
        assert!(PeerTable::open(export(&short.hold()).unwrap()).is_err());
        assert!(PeerTable::open(File::open("/dev/zero").unwrap().into()).is_err());
    }
}
