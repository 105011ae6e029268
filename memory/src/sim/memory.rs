//! The device's own way to the bytes of its memory.
//!
//! # Who may touch what, and when
//!
//! Memory of the device is mapped twice: without access at the address that the host knows, and with access here. The
//! second address never leaves this module, so bytes are reached through [`Located`] and [`DeviceMemory`] alone. Making
//! one takes the device's [`Engine`] exclusively for as long as it is used, and a device has one engine, behind a lock: so
//! jobs of all its streams take turns at touching bytes, whatever regions they name. (Only touching; their delays pass
//! side by side.) Within a turn the borrows of `Located` and `DeviceMemory` are the rule for the bytes: `&self` reads,
//! `&mut self` writes, and where several spans are lent for writing at once they were checked to be disjoint.
//!
//! A span carries a hold, so its memory is there; it was checked to lie in its region. What other processes do to memory
//! that they share is outside the language, as for [`Region`](crate::Region).

use std::fmt;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::slice;

use super::SimDevice;
use crate::allocation::{Allocation, Owner};
use crate::file::refusal;
use crate::mapping::{Access, Mapping};
use crate::region::addressable;
use crate::{MemoryKind, Parts, Read, Region, RegionError, Span, StreamError, Write};

/// Both mappings of some memory of a device.
pub(crate) struct SimMemory {
    device: SimDevice,
    own: Mapping,
    access: Access,
    /// Where the host believes it to be.
    host: Mapping,
}

impl SimMemory {
    pub(crate) fn device(&self) -> &SimDevice {
        &self.device
    }

    /// How jobs reach the bytes.
    pub(crate) fn access(&self) -> Access {
        self.access
    }
}

/// A region of a device: a part of a file whose size is sealed. The file is kept if it is to be exported.
pub(super) fn region(
    device: &SimDevice,
    file: OwnedFd,
    offset: u64,
    len: u64,
    access: Access,
    exported: bool,
) -> Result<Region, RegionError> {
    let kind = MemoryKind::Sim;
    let bytes = addressable(len, kind)?;
    let map = |access| {
        Mapping::of_file(file.as_fd(), offset, bytes, access)
            .map_err(|cause| refusal("mmap", len, kind, cause))
    };
    let memory = SimMemory {
        device: device.clone(),
        own: map(access)?,
        access,
        host: map(Access::None)?,
    };
    let start = memory.host.start();
    let file = exported.then_some(file);
    let owner = Owner::Sim(memory);
    let allocation = Allocation::new(start, kind, Access::None, file, owner);
    Ok(Region::whole(allocation, bytes))
}

/// What touches bytes; a device has one.
#[derive(Debug, Default)]
pub(super) struct Engine {
    /// Addresses of a kernel's spans while they are compared, kept for the next one.
    addresses: Vec<Range<usize>>,
}

/// Spans that were found on the device. They may overlap.
pub(super) struct Located<'a> {
    spans: &'a [Span],
    engine: &'a mut Engine,
}

impl<'a> Located<'a> {
    pub(super) fn new(
        engine: &'a mut Engine,
        device: &SimDevice,
        spans: &'a [Span],
    ) -> Result<Self, StreamError> {
        for (index, span) in spans.iter().enumerate() {
            if !memory_of(span).is_some_and(|memory| memory.device == *device) {
                return Err(StreamError::NotOnDevice {
                    span: index,
                    kind: span.hold.kind(),
                });
            }
            if !span.is_inside() {
                return Err(StreamError::OutOfBounds {
                    span: index,
                    offset: span.offset,
                    bytes: span.bytes,
                    len: span.hold.len(),
                });
            }
        }
        Ok(Self { spans, engine })
    }

    /// Bytes of all spans together.
    pub(super) fn total(&self) -> usize {
        let bytes = self.spans.iter().map(|span| span.bytes as usize);
        bytes.fold(0, usize::saturating_add)
    }

    pub(super) fn len(&self) -> usize {
        self.spans.len()
    }

    pub(super) fn bytes(&self, index: usize) -> &[u8] {
        // SAFETY: the span was found on the device and in bounds, and `self` is borrowed for reading.
        unsafe { bytes_of(&self.spans[index]) }
    }

    /// `None` if the span can only be read.
    pub(super) fn bytes_mut(&mut self, index: usize) -> Option<&mut [u8]> {
        // SAFETY: the span was found on the device and in bounds, and `self` is borrowed exclusively.
        unsafe { bytes_of_mut(&self.spans[index]) }
    }

    /// As a kernel sees them, if they are disjoint.
    pub(super) fn disjoint(self) -> Result<DeviceMemory<'a>, StreamError> {
        let addresses = &mut self.engine.addresses;
        addresses.clear();
        let taken = self.spans.iter().filter(|span| span.bytes > 0);
        addresses.extend(taken.map(Span::addresses));
        addresses.sort_unstable_by_key(|range| range.start);
        if addresses.windows(2).any(|pair| pair[1].start < pair[0].end) {
            return Err(StreamError::Overlap);
        }
        Ok(DeviceMemory { spans: self.spans })
    }
}

/// The spans of a job, as its kernel sees them: by index, in the job's order.
///
/// # Invariants
///
/// No byte is in two spans, and nobody else touches any as long as this exists.
pub struct DeviceMemory<'a> {
    spans: &'a [Span],
}

impl DeviceMemory<'_> {
    /// How many spans there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The first `at` spans, and the rest: sources and targets of a kernel.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    #[must_use]
    pub fn split_at(&mut self, at: usize) -> (DeviceMemory<'_>, DeviceMemory<'_>) {
        let (first, rest) = self.spans.split_at(at);
        (DeviceMemory { spans: first }, DeviceMemory { spans: rest })
    }
}

impl Read for DeviceMemory<'_> {
    fn bytes(&self, index: usize) -> &[u8] {
        // SAFETY: as an invariant the span is ours alone, and `self` is borrowed for reading.
        unsafe { bytes_of(&self.spans[index]) }
    }
}

/// # Panics
///
/// If a span's region was imported for reading only.
impl Write for DeviceMemory<'_> {
    fn bytes_mut(&mut self, index: usize) -> &mut [u8] {
        // SAFETY: as an invariant the span is ours alone, and `self` is borrowed exclusively.
        let bytes = unsafe { bytes_of_mut(&self.spans[index]) };
        bytes.expect(READ_ONLY)
    }
}

/// # Panics
///
/// If a span's region was imported for reading only.
impl Parts for DeviceMemory<'_> {
    fn parts(&mut self) -> Vec<&mut [u8]> {
        let parts = self.spans.iter().map(|span| {
            // SAFETY: as an invariant the spans are ours alone and disjoint, and `self` is borrowed exclusively.
            let bytes = unsafe { bytes_of_mut(span) };
            bytes.expect(READ_ONLY)
        });
        parts.collect()
    }
}

impl fmt::Debug for DeviceMemory<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.spans).finish()
    }
}

fn memory_of(span: &Span) -> Option<&SimMemory> {
    match span.hold.allocation().owner() {
        Owner::Sim(memory) => Some(memory),
        _ => None,
    }
}

fn own_pointer(memory: &SimMemory, span: &Span) -> *mut u8 {
    let start = memory.own.start().as_ptr();
    start.wrapping_add(span.hold.start() + span.offset as usize)
}

/// # Safety
///
/// The span is inside its region, and nobody writes its bytes as long as the reference is used.
unsafe fn bytes_of(span: &Span) -> &[u8] {
    let memory = memory_of(span).expect("spans were found on the device");
    // SAFETY: the region lies in its mapping, which the span keeps alive and which can be read; the caller answers for
    // the rest.
    unsafe { slice::from_raw_parts(own_pointer(memory, span), span.bytes as usize) }
}

/// # Safety
///
/// The span is inside its region, and nobody else touches its bytes as long as the reference is used.
#[expect(
    clippy::mut_from_ref,
    reason = "the span says where bytes are; it does not own them"
)]
unsafe fn bytes_of_mut(span: &Span) -> Option<&mut [u8]> {
    let memory = memory_of(span).expect("spans were found on the device");
    if memory.access != Access::Write {
        return None;
    }
    // SAFETY: the region lies in its mapping, which the span keeps alive and which can be written; the caller answers for
    // the rest.
    Some(unsafe { slice::from_raw_parts_mut(own_pointer(memory, span), span.bytes as usize) })
}

const READ_ONLY: &str = "a kernel writes a region that was imported for reading only";
