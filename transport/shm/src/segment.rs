//! The memory of one connection: two rings for each direction, and what guards direct access.
//!
//! ```text
//!   page 0             the hazards of either side, and whether the other has shut it out
//!   control ring ×2    messages, and headers of what lies in the staging rings; 64 KiB each
//!   staging ring ×2    payload
//! ```
//!
//! The side that connects makes it and is "first"; the other gets its descriptor. It is a memfd whose size is sealed,
//! which is checked before it is mapped. Pages are taken from the system when they are first touched, so a peer that is
//! sent no payload costs no staging memory.
//!
//! # Who touches what
//!
//! Nobody but the structures of [`moai_transport::sync`] that are made here, once for each side: [`Segment::create`] and
//! [`Segment::open`] are the only callers of `map`, and take the memory's only [`Region`] apart.
#![allow(unsafe_code)] // Structures are placed into mapped memory, whose layout this file knows.

use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use moai_memory::{Hold, MemoryKind, Region, RegionError};
use moai_transport::sync::gate::Hazard;
use moai_transport::sync::ring::{Consumer, Producer, memory_bytes};
use moai_transport::sync::shared::{Owner, Plain, Shared};

/// One side's view of a connection's memory.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) control_out: Producer,
    pub(crate) control_in: Consumer,
    pub(crate) staging_out: Producer,
    pub(crate) staging_in: Consumer,
    /// Written by this side while it, or a device of its, is inside memory of the peer.
    pub(crate) own_hazards: Hazards,
    /// Whether the peer has shut this side out.
    pub(crate) own_door: Door,
    /// Written by the peer.
    pub(crate) peer_hazards: Hazards,
    /// Shuts the peer out.
    pub(crate) peer_door: Door,
}

/// Which memory of the other side one is in: by the processor, and by a device, whose copies outlast calls.
#[derive(Clone, Debug)]
pub(crate) struct Hazards {
    pub(crate) processor: Shared<Hazard>,
    pub(crate) device: Shared<Hazard>,
}

impl Hazards {
    /// Both of them.
    pub(crate) fn each(&self) -> [&Hazard; 2] {
        [&self.processor[0], &self.device[0]]
    }
}

/// Whether a side may still enter the other's memory. Shut once and for all when the connection ends, after the same
/// argument as a slot that is revoked: see [`moai_transport::sync::gate`].
#[derive(Debug)]
pub(crate) struct Door(Shared<Shut>);

#[derive(Debug, Default)]
#[repr(C, align(128))]
struct Shut(AtomicU64);

// SAFETY: one atomic and padding, `repr(C)`; zeros are its default.
unsafe impl Plain for Shut {}

impl Door {
    /// Refuses whoever enters from now on; who is inside is told by its hazard.
    pub(crate) fn shut(&self) {
        self.0[0].0.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Asked after the hazard was set and fenced.
    pub(crate) fn is_shut(&self) -> bool {
        self.0[0].0.load(Ordering::Acquire) != 0
    }
}

/// Bytes of each control ring's data: some thousand small messages. A longer message than [`MAX_INLINE_BYTES`] goes
/// through the staging ring.
const CONTROL_BYTES: u32 = 64 << 10;

/// The longest message that is worth copying through the control ring, a sixteenth of it.
pub(crate) const MAX_INLINE_BYTES: usize = 4 << 10;

/// 64 KiB, a multiple of every page size, in which the hazards are.
const FRONT_BYTES: usize = 64 << 10;

/// Where the parts start, and where the last one ends.
struct Plan {
    control: [usize; 2],
    staging: [usize; 2],
    bytes: usize,
}

impl Plan {
    fn new(staging_bytes: u32) -> Self {
        // Rings start with a page, so that what is next to them stays untouched.
        let room = |capacity| memory_bytes(capacity).next_multiple_of(FRONT_BYTES);
        let (control, staging) = (room(CONTROL_BYTES), room(staging_bytes));
        let first = FRONT_BYTES + 2 * control;
        Self {
            control: [FRONT_BYTES, FRONT_BYTES + control],
            staging: [first, first + staging],
            bytes: first + 2 * staging,
        }
    }
}

impl Segment {
    /// Memory for a connection, and the descriptor to send to the peer.
    pub(crate) fn create(staging_bytes: u32) -> Result<(Self, OwnedFd), RegionError> {
        let plan = Plan::new(staging_bytes);
        let region = Region::shared_zeroed(plan.bytes as u64)?;
        let hold = region.hold();
        let fd = export(&hold)?;
        // Mapped once more, so that the descriptor is given back when it has been sent.
        let mapped = import(fd.try_clone().map_err(no_descriptor)?, plan.bytes)?;
        Ok((Self::map(mapped, staging_bytes, true), fd))
    }

    /// Memory that a peer has made.
    pub(crate) fn open(fd: OwnedFd, staging_bytes: u32) -> Result<Self, RegionError> {
        let mapped = import(fd, Plan::new(staging_bytes).bytes)?;
        Ok(Self::map(mapped, staging_bytes, false))
    }

    fn map(memory: Hold, staging_bytes: u32, is_first: bool) -> Self {
        let plan = Plan::new(staging_bytes);
        assert_eq!(memory.len(), plan.bytes as u64);
        let start = NonNull::new(memory.as_ptr()).expect("memory has an address");
        let owner: Owner = Arc::new(memory);
        // SAFETY: every place used below is in the plan, which the memory is as long as.
        let at = |place: usize| unsafe { start.add(place) };
        let (out, back) = if is_first { (0, 1) } else { (1, 0) };
        let ring = |place: usize, capacity| (at(place), memory_bytes(capacity), owner.clone());
        let producer = |place, capacity| {
            let (start, bytes, owner) = ring(place, capacity);
            // SAFETY: the bytes are part of the memory, which `owner` keeps; a fresh memfd is zeroed; this side
            // makes the ring's producer or its consumer, once, and touches it in no other way.
            unsafe { Producer::map(start, bytes, owner) }
        };
        let consumer = |place, capacity| {
            let (start, bytes, owner) = ring(place, capacity);
            // SAFETY: as above.
            unsafe { Consumer::map(start, bytes, owner) }
        };
        const FITS: &str = "the plan fits rings";
        let hazard = |place: usize| {
            // SAFETY: in the front, aligned to its length, zeroed, kept by `owner`, and used as a hazard only.
            unsafe { Shared::map(at(place).cast(), 1, owner.clone()) }
        };
        // The doors lie between them.
        let hazards = |side: usize| Hazards {
            processor: hazard(side * 128),
            device: hazard(512 + side * 128),
        };
        let door = |side: usize| {
            let place = at(256 + side * 128).cast();
            // SAFETY: as above, behind the hazards.
            Door(unsafe { Shared::map(place, 1, owner.clone()) })
        };
        Self {
            control_out: producer(plan.control[out], CONTROL_BYTES).expect(FITS),
            control_in: consumer(plan.control[back], CONTROL_BYTES).expect(FITS),
            staging_out: producer(plan.staging[out], staging_bytes).expect(FITS),
            staging_in: consumer(plan.staging[back], staging_bytes).expect(FITS),
            own_hazards: hazards(out),
            own_door: door(out),
            peer_hazards: hazards(back),
            peer_door: door(back),
        }
    }
}

fn import(fd: OwnedFd, bytes: usize) -> Result<Hold, RegionError> {
    let region = Region::import(fd, 0, bytes as u64, MemoryKind::Shared, true)?;
    Ok(region.hold())
}

/// A descriptor of memory of our own.
pub(crate) fn export(hold: &Hold) -> Result<OwnedFd, RegionError> {
    let Some(export) = hold.export() else {
        return Err(RegionError::NotMemory);
    };
    export.fd.try_clone_to_owned().map_err(no_descriptor)
}

fn no_descriptor(cause: std::io::Error) -> RegionError {
    RegionError::Os {
        call: "dup",
        bytes: 0,
        kind: MemoryKind::Shared,
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAGING: u32 = crate::config::MIN_STAGING_BYTES;

    #[test]
    fn what_one_side_writes_the_other_reads() {
        let (mut left, fd) = Segment::create(STAGING).unwrap();
        let mut right = Segment::open(fd, STAGING).unwrap();
        for (out, back) in [
            (&mut left.control_out, &mut right.control_in),
            (&mut left.staging_out, &mut right.staging_in),
            (&mut right.control_out, &mut left.control_in),
            (&mut right.staging_out, &mut left.staging_in),
        ] {
            let mut draft = out.reserve(5).unwrap().unwrap();
            draft.copy_from_slice(b"hello");
            draft.commit(1, 2);
            let _ = out.publish();
            assert_eq!(back.peek().unwrap().unwrap().bytes, b"hello");
            back.release();
            assert!(back.peek().unwrap().is_none());
        }
        left.peer_door.shut();
        assert!(right.own_door.is_shut() && !left.own_door.is_shut());
    }

    #[test]
    fn memory_that_is_short_or_can_shrink_is_refused() {
        let short = Region::shared_zeroed(1 << 20).unwrap();
        let refused = Segment::open(export(&short.hold()).unwrap(), STAGING).unwrap_err();
        assert!(
            matches!(refused, RegionError::TooShort { .. }),
            "{refused:?}"
        );
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let refused = Segment::open(file.into(), STAGING).unwrap_err();
        assert!(matches!(refused, RegionError::NotMemory), "{refused:?}");
        let memfd = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&memfd, 1 << 30).unwrap();
        let refused = Segment::open(memfd, STAGING).unwrap_err();
        assert!(matches!(refused, RegionError::Unsealed), "{refused:?}");
    }
}
