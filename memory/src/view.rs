//! Sets of regions that a program can read or write by index.

use crate::Region;

/// Regions that can be read, by index.
pub trait Read {
    /// The bytes of region `index`.
    ///
    /// # Panics
    ///
    /// If there is no such region; callers check the index against the layout beforehand.
    fn bytes(&self, index: usize) -> &[u8];
}

/// Regions that can be written, by index.
pub trait Write: Read {
    /// The bytes of region `index`.
    ///
    /// # Panics
    ///
    /// If there is no such region; callers check the index against the layout beforehand.
    fn bytes_mut(&mut self, index: usize) -> &mut [u8];
}

/// Regions that can be written all at once, by as many threads.
pub trait Parts: Write {
    /// All regions, by index.
    fn parts(&mut self) -> Vec<&mut [u8]>;
}

impl Read for [Region] {
    fn bytes(&self, index: usize) -> &[u8] {
        self[index].as_slice()
    }
}

impl Write for [Region] {
    fn bytes_mut(&mut self, index: usize) -> &mut [u8] {
        self[index].as_mut_slice()
    }
}

impl Parts for [Region] {
    fn parts(&mut self) -> Vec<&mut [u8]> {
        self.iter_mut().map(Region::as_mut_slice).collect()
    }
}

/// A buffer is one region, whatever index is asked for.
impl Read for [u8] {
    fn bytes(&self, _index: usize) -> &[u8] {
        self
    }
}

/// A buffer is one region, whatever index is asked for.
impl Write for [u8] {
    fn bytes_mut(&mut self, _index: usize) -> &mut [u8] {
        self
    }
}

impl Parts for [u8] {
    fn parts(&mut self) -> Vec<&mut [u8]> {
        vec![self]
    }
}
