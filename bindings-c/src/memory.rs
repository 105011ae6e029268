//! Memory: allocated here, or lent by the caller.
//!
//! A region of the fabric has its bytes to itself. Of memory that is lent, the caller promises as much by the header: it stays
//! where it is until it is released, and the caller keeps out of the pages that are being transferred. Bytes of other pages
//! that the caller changes meanwhile are neither read nor written here.

use std::{
    ffi::c_void,
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use moai_fabric::memory::{Hold, MemoryKind, Region};

use crate::{
    abi, abi_free,
    arguments::Out,
    failure::{Failure, Status, call_back},
    handle::{Handle, Object, null},
};

/// A region, unless an engine has it.
pub(crate) struct Memory {
    hold: Hold,
    region: Mutex<Option<Region>>,
}

impl Object for Memory {
    const KIND: u8 = 0x82;
    const NAME: &'static str = "moai_region";
}

impl Memory {
    pub(crate) fn new(region: Region) -> Self {
        Self {
            hold: region.hold(),
            region: Mutex::new(Some(region)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Region>> {
        self.region.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// First address and the one after the last.
    pub(crate) fn span(&self) -> (usize, usize) {
        let start = self.hold.address();
        (start, start + self.hold.len() as usize)
    }

    /// For an engine.
    pub(crate) fn take(&self, field: &str) -> Result<Region, Failure> {
        self.lock().take().ok_or_else(|| {
            let why = "belongs to an engine already";
            let failure = Failure::new(Status::Busy, why).at(field);
            failure.hint("close that engine, or register the memory of this one apart")
        })
    }

    /// An engine is done with it.
    pub(crate) fn give_back(&self, region: Region) {
        *self.lock() = Some(region);
    }
}

const CUDA: u32 = 101;
const ROCM: u32 = 102;

/// The kinds that the header has numbers for.
fn kind(number: u32) -> Result<MemoryKind, Failure> {
    match number {
        1 => Ok(MemoryKind::Host),
        2 => Ok(MemoryKind::Pinned),
        3 => Ok(MemoryKind::Shared),
        CUDA | ROCM => Err(device(if number == CUDA { "CUDA" } else { "ROCm" })),
        other => {
            let why =
                format!("is {other}, which is no kind of memory; expected MOAI_MEMORY_HOST (1), …");
            Err(Failure::new(Status::Value, why).at("kind"))
        }
    }
}

/// Memory that this build does not reach.
pub(crate) fn device(what: &str) -> Failure {
    let why = format!("is memory of a {what} device, which this build does not reach");
    let failure = Failure::new(Status::Unsupported, why).at("kind");
    failure
        .hint("copy pages through a region of kind MOAI_MEMORY_PINNED, and give that to the engine")
}

/// Tells the caller that memory is done with.
struct Lender {
    release: ReleaseFn,
    /// What the caller's function is given.
    user: usize,
}

type ReleaseFn = Option<extern "C" fn(*mut c_void)>;

impl Drop for Lender {
    fn drop(&mut self) {
        if let Some(release) = self.release {
            let user = std::ptr::with_exposed_provenance_mut(self.user);
            call_back(|| release(user));
        }
    }
}

abi! {
    fn moai_region_new(kind_of: u32, bytes: u64, region: Out<Handle<Memory>>) {
        let place = region.place("region")?;
        let made = match kind(kind_of)? {
            MemoryKind::Pinned => Region::pinned_zeroed(bytes),
            MemoryKind::Shared => Region::shared_zeroed(bytes),
            _ => Region::host_zeroed(bytes),
        };
        let made = made.map_err(|error| Failure::new(Status::Memory, error.to_string()).at("bytes"))?;
        place.write(Handle::new(Memory::new(made))?);
        Ok(())
    }

    fn moai_region_lend(
        pointer: *mut c_void,
        bytes: u64,
        kind_of: u32,
        device: i32,
        release: ReleaseFn,
        user: *mut c_void,
        region: Out<Handle<Memory>>,
    ) {
        let place = region.place("region")?;
        let start = NonNull::new(pointer.cast::<u8>()).ok_or_else(|| null("pointer"))?;
        let kind = kind(kind_of)?;
        if kind == MemoryKind::Shared {
            let why = "shared memory is the library's own";
            let failure = Failure::new(Status::Unsupported, why).at("kind");
            return Err(failure.hint("get it by moai_region_new, or lend it as MOAI_MEMORY_HOST"));
        }
        if device != 0 {
            let failure = Failure::new(Status::Value, "is the number of a device, and host memory has none");
            return Err(failure.at("device").values(0, device));
        }
        let len = usize::try_from(bytes).ok();
        let fits = |len: &usize| isize::try_from(*len).is_ok() && start.addr().get().checked_add(*len).is_some();
        let len = len.filter(fits).ok_or_else(|| {
            Failure::new(Status::Value, format!("is {bytes}, more than can be addressed from there")).at("bytes")
        })?;
        let lender = Lender { release, user: user.expose_provenance() };
        // SAFETY: the header asks it of the caller: so many initialized bytes that can be written, until they are released,
        // and nobody in the pages that are being transferred.
        let made = unsafe { Region::from_raw(start, len, kind, Box::new(lender)) };
        place.write(Handle::new(Memory::new(made))?);
        Ok(())
    }

    fn moai_region_pointer(region: Handle<Memory>, pointer: Out<*mut c_void>) {
        let region = region.get("region")?;
        pointer.place("pointer")?.write(region.hold.as_ptr().cast());
        Ok(())
    }

    fn moai_region_bytes(region: Handle<Memory>, bytes: Out<u64>) {
        let region = region.get("region")?;
        bytes.place("bytes")?.write(region.hold.len());
        Ok(())
    }

    fn moai_region_kind(region: Handle<Memory>, kind: Out<u32>) {
        let region = region.get("region")?;
        kind.place("kind")?.write(u32::from(region.hold.kind().code()));
        Ok(())
    }
}

abi_free! {
    fn moai_region_free(region: Handle<Memory>);
}

/// The object of a region, and others that are to overlap with none of it.
pub(crate) fn check_apart(regions: &[Arc<Memory>], field: &str) -> Result<(), Failure> {
    let mut spans: Vec<(usize, usize, usize)> = { regions.iter().enumerate() }
        .map(|(index, region)| (region.span().0, region.span().1, index))
        .filter(|(start, end, _)| start < end)
        .collect();
    spans.sort_unstable();
    for pair in spans.windows(2) {
        if pair[1].0 < pair[0].1 {
            let (a, b) = (pair[0].2, pair[1].2);
            let why = format!("overlaps with {field}[{a}]: bytes belong to one region");
            let failure = Failure::new(Status::Value, why).at(format!("{field}[{b}]"));
            let span = |(start, end, _): (usize, usize, usize)| format!("{start:#x}..{end:#x}");
            let failure = failure.values(span(pair[1]), span(pair[0]));
            return Err(failure.hint("describe views of one allocation as one region with offsets"));
        }
    }
    Ok(())
}
