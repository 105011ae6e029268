//! Memory that another thread or process reaches too.
//!
//! [`Shared`] holds atomics, which anyone may touch at any time. `Bytes` holds payload, and each
//! span of it belongs to one side at a time; which one, the structure around it knows. Both keep what
//! owns the memory, such as a mapping, alive, and neither holds a pointer that a peer could write.

use std::{any::Any, cell::UnsafeCell, fmt, ops::Deref, ptr::NonNull, sync::Arc};

/// What owns memory and frees or unmaps it when dropped.
pub type Owner = Arc<dyn Any + Send + Sync>;

/// Types that shared memory can hold.
///
/// # Safety
///
/// The type consists of atomics only, apart from padding that is never read; every bit pattern is a
/// value of it; all zeros is the value of [`Default`]; its layout is fixed (`repr(C)`).
pub unsafe trait Plain: Default + Send + Sync + 'static {}

/// A slice of atomics in memory that another process may have mapped too.
pub struct Shared<T: Plain> {
    pointer: NonNull<T>,
    len: usize,
    owner: Owner,
}

/// Payload in memory that another process may have mapped too, in units of [`UNIT_BYTES`].
pub(super) struct Bytes {
    pointer: NonNull<u8>,
    bytes: usize,
    _owner: Owner,
    #[cfg(moai_loom)]
    tracks: Tracks,
}

/// What [`Bytes`] are aligned to and counted in. Large enough for a frame's header, so that one never
/// straddles the end.
pub(super) const UNIT_BYTES: usize = 16;

#[repr(C, align(16))]
struct Unit(UnsafeCell<[u8; UNIT_BYTES]>);

// SAFETY: reached through the spans of `Bytes` only, whose contract says who may when.
unsafe impl Sync for Unit {}

impl<T: Plain> Shared<T> {
    /// `len` values in memory of this process, all zero.
    pub fn zeroed(len: usize) -> Self {
        let memory: Box<[T]> = (0..len).map(|_| T::default()).collect();
        let owner = Arc::new(memory);
        Self {
            pointer: NonNull::from(&owner[..]).cast(),
            len,
            owner,
        }
    }

    /// `len` values at `pointer`.
    ///
    /// # Safety
    ///
    /// - `pointer` is aligned for `T`, and `len` values from it are readable and writable for as long as
    ///   `owner` lives. Readable suffices where nothing is done but relaxed loads of at most eight bytes, as the
    ///   table of a [`gate::Entrant`](super::gate::Entrant) does: those are plain loads on every target, other
    ///   accesses may be made of instructions that store (`std::sync::atomic`, "Atomic accesses to read-only
    ///   memory").
    /// - This process touches them through values of this type only.
    pub unsafe fn map(pointer: NonNull<T>, len: usize, owner: Owner) -> Self {
        debug_assert!(pointer.is_aligned());
        Self {
            pointer,
            len,
            owner,
        }
    }
}

impl<T: Plain> Deref for Shared<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: by the contract of `map`, or because `zeroed` allocated them, `len` aligned values are
        // there while `owner` lives. They are atomics (`Plain`), so that whoever else writes them, and
        // whatever, a shared reference stays valid.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.len) }
    }
}

impl<T: Plain> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self {
            owner: self.owner.clone(),
            ..*self
        }
    }
}

impl<T: Plain> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shared({} × {})", self.len, std::any::type_name::<T>())
    }
}

// SAFETY: what is shared is atomics, which are `Send` and `Sync` (`Plain`), and the owner is both.
unsafe impl<T: Plain> Send for Shared<T> {}
// SAFETY: as above; a shared reference gives out references to atomics only.
unsafe impl<T: Plain> Sync for Shared<T> {}

impl Bytes {
    /// Zeroed memory of this process, twice: for either side.
    pub(super) fn pair(bytes: usize) -> (Self, Self) {
        assert_eq!(bytes % UNIT_BYTES, 0, "payload is counted in units");
        let memory: Box<[Unit]> = (0..bytes / UNIT_BYTES)
            .map(|_| Unit(UnsafeCell::new([0; UNIT_BYTES])))
            .collect();
        let owner = Arc::new(memory);
        let pointer = NonNull::from(&owner[..]).cast();
        #[cfg(moai_loom)]
        let tracks = Tracks::new(bytes);
        let side = |owner: &Arc<Box<[Unit]>>| Self {
            pointer,
            bytes,
            _owner: owner.clone(),
            #[cfg(moai_loom)]
            tracks: tracks.clone(),
        };
        (side(&owner), side(&owner))
    }

    /// `bytes` bytes at `pointer`.
    ///
    /// # Safety
    ///
    /// - `pointer` is aligned to [`UNIT_BYTES`], and `bytes` bytes from it are readable and writable for as
    ///   long as `owner` lives.
    /// - This process touches them through one side's structure and the other's only.
    pub(super) unsafe fn map(pointer: NonNull<u8>, bytes: usize, owner: Owner) -> Self {
        debug_assert!(pointer.cast::<Unit>().is_aligned());
        Self {
            pointer,
            bytes,
            _owner: owner,
            #[cfg(moai_loom)]
            tracks: Tracks::new(bytes),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// Reads the unit at `offset` as two words. Each is fetched once, so that whoever validates a copy
    /// uses what it validated.
    ///
    /// # Safety
    ///
    /// The unit belongs to the calling side.
    pub(super) unsafe fn unit(&self, offset: usize) -> [u64; 2] {
        self.reads(offset, UNIT_BYTES);
        self.words(offset)
            .map(|word| word.load(std::sync::atomic::Ordering::Relaxed))
    }

    /// Writes the unit at `offset` as two words.
    ///
    /// # Safety
    ///
    /// The unit belongs to the calling side.
    pub(super) unsafe fn set_unit(&self, offset: usize, words: [u64; 2]) {
        self.writes(offset, UNIT_BYTES);
        for (word, value) in self.words(offset).into_iter().zip(words) {
            word.store(value, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// The bytes of a span.
    ///
    /// # Safety
    ///
    /// The span belongs to the calling side for as long as the slice lives, and nothing else borrows
    /// from it mutably. (A peer that breaks the protocol can still change the bytes: whoever reads them
    /// treats them as input, and reads what it decides by only once.)
    pub(super) unsafe fn span(&self, offset: usize, len: usize) -> &[u8] {
        self.reads(offset, len);
        let start = self.within(offset, len);
        // SAFETY: inside the memory, which lives as long as `self`; the caller owns the span.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), len) }
    }

    /// The bytes of a span, to be written.
    ///
    /// # Safety
    ///
    /// The span belongs to the calling side for as long as the slice lives, and nothing else borrows
    /// from it.
    #[allow(clippy::mut_from_ref)] // Spans are disjoint parts of what `self` points to, not parts of it.
    pub(super) unsafe fn span_mut(&self, offset: usize, len: usize) -> &mut [u8] {
        self.writes(offset, len);
        let start = self.within(offset, len);
        // SAFETY: inside the memory, which lives as long as `self`; the caller owns the span.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) }
    }

    /// Where a span starts.
    ///
    /// # Panics
    ///
    /// If it is not inside the memory. Indices from a peer are refused before they come here; this is
    /// what the unsafe code of this file rests on instead of on them.
    fn within(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(
            offset <= self.bytes && len <= self.bytes - offset,
            "bytes {offset}+{len} are not in a ring of {} bytes",
            self.bytes
        );
        // SAFETY: at most one past the end of the memory.
        unsafe { self.pointer.add(offset) }
    }

    fn words(&self, offset: usize) -> [&std::sync::atomic::AtomicU64; 2] {
        assert_eq!(offset % UNIT_BYTES, 0, "units are aligned");
        let start: NonNull<std::sync::atomic::AtomicU64> = self.within(offset, UNIT_BYTES).cast();
        // SAFETY: one unit is inside the memory, aligned, and is two words; atomics may be shared.
        unsafe { &*start.cast::<[std::sync::atomic::AtomicU64; 2]>().as_ptr() }.each_ref()
    }

    /// Tells loom that a span is read now.
    pub(super) fn reads(&self, _offset: usize, _len: usize) {
        #[cfg(moai_loom)]
        self.tracks.read(_offset, _len);
    }

    /// Tells loom that a span is written now.
    pub(super) fn writes(&self, _offset: usize, _len: usize) {
        #[cfg(moai_loom)]
        self.tracks.write(_offset, _len);
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.bytes)
    }
}

// SAFETY: memory may be used from any thread; which part of it from which side is the contract of the
// unsafe methods. The owner is `Send` and `Sync`.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

/// Cells that stand for units of [`Bytes`], so that loom sees who touches them.
#[cfg(moai_loom)]
#[derive(Clone)]
struct Tracks(Arc<[loom::cell::UnsafeCell<()>]>);

#[cfg(moai_loom)]
impl Tracks {
    fn new(bytes: usize) -> Self {
        let units = bytes / UNIT_BYTES;
        Self(
            (0..units)
                .map(|_| loom::cell::UnsafeCell::new(()))
                .collect(),
        )
    }

    fn read(&self, offset: usize, len: usize) {
        for cell in &self.0[offset / UNIT_BYTES..(offset + len).div_ceil(UNIT_BYTES)] {
            cell.with(|_| ());
        }
    }

    fn write(&self, offset: usize, len: usize) {
        for cell in &self.0[offset / UNIT_BYTES..(offset + len).div_ceil(UNIT_BYTES)] {
            cell.with_mut(|_| ());
        }
    }
}

#[cfg(all(test, not(moai_loom)))]
mod tests {
    use super::*;

    #[test]
    fn memory_lives_as_long_as_what_points_into_it() {
        let (left, right) = Bytes::pair(64);
        // SAFETY: one thread, and no slice is kept.
        unsafe { left.span_mut(16, 32).fill(7) };
        drop(left);
        // SAFETY: as above.
        let unit = unsafe { right.unit(16) };
        assert_eq!(unit, [0x0707_0707_0707_0707; 2]);
    }

    #[test]
    fn spans_end_with_the_memory() {
        let (bytes, _other) = Bytes::pair(64);
        // SAFETY: one thread, and no slice is kept.
        assert_eq!(unsafe { bytes.span(64, 0) }.len(), 0);
        for (offset, len) in [(0, 65), (64, 1), (80, 0), (16, usize::MAX)] {
            let outside = std::panic::AssertUnwindSafe(|| bytes.within(offset, len));
            assert!(std::panic::catch_unwind(outside).is_err(), "{offset}+{len}");
        }
    }
}
