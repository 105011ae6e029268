//! Regions: owned, addressable runs of bytes.

use std::fmt;

use thiserror::Error;

/// The kind of memory a region lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MemoryKind {
    /// Ordinary pageable memory of this process.
    Host,
}

impl fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
        }
    }
}

/// A region could not be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RegionError {
    /// The size does not fit this machine's address space, or the allocator refused it.
    #[error("cannot allocate a region of {bytes} bytes in {kind} memory")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: u64,
        /// Where they were asked for.
        kind: MemoryKind,
    },
}

/// An owned run of bytes in one kind of memory.
///
/// # Invariants
///
/// The length never changes, so an offset that was checked once stays in bounds.
pub struct Region {
    allocation: Box<[u8]>,
    /// Where the region starts in its allocation.
    start: usize,
    len: usize,
}

/// Memory of our own starts at a multiple of this, a page, as engines' tensors do: rows that start with a cache line
/// can be stored in whole lines.
const ALIGNMENT: usize = 4096;

impl Region {
    /// Zero-filled host memory that starts with a page. Pages are taken from the system only when they are first touched.
    ///
    /// # Errors
    ///
    /// [`RegionError::OutOfMemory`] if the allocator cannot provide `bytes`.
    pub fn host_zeroed(bytes: u64) -> Result<Self, RegionError> {
        let refused = RegionError::OutOfMemory {
            bytes,
            kind: MemoryKind::Host,
        };
        let room = usize::try_from(bytes)
            .ok()
            .and_then(|len| len.checked_add(ALIGNMENT - 1));
        let Some(room) = room else {
            return Err(refused);
        };
        // `try_reserve` turns an absurd size into an error where `vec![0; n]` would abort; only a
        // size that passed is then allocated zeroed, which is what keeps untouched pages free.
        if Vec::<u8>::new().try_reserve_exact(room).is_err() {
            return Err(refused);
        }
        let allocation = vec![0; room].into_boxed_slice();
        Ok(Self {
            start: allocation.as_ptr().align_offset(ALIGNMENT),
            allocation,
            len: bytes as usize,
        })
    }

    /// Host memory that takes over `bytes`.
    #[must_use]
    pub fn from_host(bytes: Vec<u8>) -> Self {
        Self {
            start: 0,
            len: bytes.len(),
            allocation: bytes.into_boxed_slice(),
        }
    }

    /// The kind of memory this region lives in.
    #[must_use]
    pub fn kind(&self) -> MemoryKind {
        MemoryKind::Host
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Whether the region holds no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes, for memory that this process can load from.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.allocation[self.start..][..self.len]
    }

    /// The bytes, for memory that this process can store to.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.allocation[self.start..][..self.len]
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("kind", &self.kind())
            .field("len", &self.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroed_regions_hold_zeros_and_keep_their_length() {
        let region = Region::host_zeroed(4097).unwrap();
        assert_eq!(region.len(), 4097);
        assert!(region.as_slice().as_ptr().addr().is_multiple_of(ALIGNMENT));
        assert!(region.as_slice().iter().all(|&b| b == 0));
    }

    #[test]
    fn an_absurd_size_is_an_error_and_not_an_abort() {
        let error = Region::host_zeroed(u64::MAX).unwrap_err();
        assert!(error.to_string().contains("18446744073709551615"));
    }
}
