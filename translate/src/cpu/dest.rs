//! Memory that is written: by one who has it alone, or by several threads, each its own bytes of it.

use std::marker::PhantomData;

use moai_memory::{Parts, Write};

/// A region that is written at some places.
#[derive(Debug)]
pub(crate) struct Dest<'a> {
    start: *mut u8,
    len: usize,
    region: PhantomData<&'a mut [u8]>,
}

impl<'a> Dest<'a> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where the region starts.
    pub(crate) fn start(&self) -> *mut u8 {
        self.start
    }

    /// `len` bytes from `at` on, which are the caller's.
    ///
    /// # Panics
    ///
    /// If the region ends before them.
    pub(crate) fn part(self, at: u64, len: usize) -> &'a mut [u8] {
        let end = at.checked_add(len as u64);
        assert!(
            end.is_some_and(|end| end <= self.len as u64),
            "{len} bytes at {at} of a region of {}",
            self.len
        );
        // SAFETY: `at` is within the region.
        let first = unsafe { self.start.add(at as usize) };
        // SAFETY: the bytes are within the region, which is borrowed for as long as they are. Either it is borrowed as
        // a whole by whoever made this, or these bytes are written by one thread only: `Shared::writer`.
        unsafe { std::slice::from_raw_parts_mut(first, len) }
    }
}

impl<'a> From<&'a mut [u8]> for Dest<'a> {
    fn from(region: &'a mut [u8]) -> Self {
        Self {
            start: region.as_mut_ptr(),
            len: region.len(),
            region: PhantomData,
        }
    }
}

/// Regions that are written, by index.
pub(crate) trait Target {
    /// # Panics
    ///
    /// If there is no such region.
    fn dest(&mut self, region: u64) -> Dest<'_>;
}

/// Regions that one has alone.
#[derive(Debug)]
pub(crate) struct Alone<'a, T: ?Sized>(pub(crate) &'a mut T);

impl<T: Write + ?Sized> Target for Alone<'_, T> {
    fn dest(&mut self, region: u64) -> Dest<'_> {
        self.0.bytes_mut(region as usize).into()
    }
}

/// Regions that several threads write, each its own bytes.
#[derive(Debug)]
pub(crate) struct Shared<'a> {
    /// Start and length of each region; all are borrowed at once, so they have no byte in common.
    regions: Vec<(*mut u8, usize)>,
    target: PhantomData<&'a mut [u8]>,
}

// SAFETY: the pointers lead to bytes that are borrowed mutably for `'a`, which may be sent as `&mut [u8]` may.
unsafe impl Send for Shared<'_> {}
// SAFETY: all that can be had through a shared reference are the writers of `Shared::writer`, whose safety says who may
// write what.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(crate) fn new<T: Parts + ?Sized>(target: &'a mut T) -> Self {
        let all = target.parts();
        Self {
            regions: (all.into_iter())
                .map(|region| (region.as_mut_ptr(), region.len()))
                .collect(),
            target: PhantomData,
        }
    }

    /// One of several who write.
    ///
    /// # Safety
    ///
    /// No byte is written through two writers.
    pub(crate) unsafe fn writer(&self) -> Writer<'_> {
        Writer { shared: self }
    }
}

/// Writes some bytes of regions that others write as well.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    shared: &'a Shared<'a>,
}

impl Target for Writer<'_> {
    fn dest(&mut self, region: u64) -> Dest<'_> {
        let (start, len) = self.shared.regions[region as usize];
        Dest {
            start,
            len,
            region: PhantomData,
        }
    }
}
