//! Lists of strided pieces: one side of a put or get.

use std::cmp::min;

use thiserror::Error;

/// Pieces of one region, all alike: at each of `offsets`, `count` pieces of `bytes` that start `stride` apart.
///
/// This is how a cache lies in memory: `offsets` are the pages of a request, the rest is what one layer or one
/// head looks like inside a page, the same in all of them. Pieces scattered without any order are the case of
/// `count` 1. The pieces are in the order of the offsets, and within an offset ascending; a put moves byte *n* of
/// all local pieces together to byte *n* of all remote pieces together, wherever either side is cut.
///
/// ```
/// use moai_transport::Pieces;
///
/// // The rows of 256 bytes of one head of eight, in two pages of 16 tokens.
/// let head = Pieces { region: 0, bytes: 256, count: 16, stride: 8 * 256, offsets: &[0, 65_536] };
/// assert_eq!(head.total(), Ok(8192));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)] // Callers write these out.
pub struct Pieces<'a> {
    /// Local pieces: index of the region. Remote pieces: what [`Interface::import`](crate::Interface::import)
    /// returned.
    pub region: u32,
    /// Length of each piece.
    pub bytes: u32,
    /// Pieces at each offset.
    pub count: u32,
    /// From the start of one of them to the start of the next, in bytes. Of no meaning where `count` is 1.
    pub stride: u64,
    /// Where they begin, in bytes from the start of the region.
    pub offsets: &'a [u64],
}

/// A list of pieces that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PiecesError {
    /// Pieces of no bytes, or none of them at an offset.
    #[error("{count} pieces of {bytes} bytes at each offset of region {region}: neither may be 0")]
    Empty {
        /// Region of the pieces.
        region: u32,
        /// Length of each.
        bytes: u32,
        /// Pieces at each offset.
        count: u32,
    },
    /// Pieces at one offset that overlap each other.
    #[error("pieces of {bytes} bytes start {stride} apart in region {region}; they overlap")]
    Overlap {
        /// Region of the pieces.
        region: u32,
        /// Length of each.
        bytes: u32,
        /// Distance of their starts.
        stride: u64,
    },
    /// The pieces at an offset reach past the end of the region.
    #[error(
        "pieces at {offset} reach {reach} bytes far, past the end of region {region} of {len} bytes"
    )]
    OutOfBounds {
        /// Region of the pieces.
        region: u32,
        /// Where they begin.
        offset: u64,
        /// From there to the end of the last one.
        reach: u64,
        /// Length of the region.
        len: u64,
    },
    /// More bytes than can be counted.
    #[error("the pieces of region {region} are together longer than 2^64 bytes")]
    TooLarge {
        /// Region of the pieces.
        region: u32,
    },
}

impl Pieces<'_> {
    /// Bytes from the start of the first piece at an offset to the end of the last.
    ///
    /// # Errors
    ///
    /// [`PiecesError`] if there are no bytes, the pieces overlap, or the sum is past 2^64.
    pub fn reach(&self) -> Result<u64, PiecesError> {
        let Self {
            region,
            bytes,
            count,
            stride,
            ..
        } = *self;
        if bytes == 0 || count == 0 {
            return Err(PiecesError::Empty {
                region,
                bytes,
                count,
            });
        }
        if count > 1 && stride < u64::from(bytes) {
            return Err(PiecesError::Overlap {
                region,
                bytes,
                stride,
            });
        }
        let steps = u64::from(count - 1);
        let last = if steps == 0 {
            Some(0)
        } else {
            stride.checked_mul(steps)
        };
        last.and_then(|last| last.checked_add(u64::from(bytes)))
            .ok_or(PiecesError::TooLarge { region })
    }

    /// Bytes of all pieces.
    ///
    /// # Errors
    ///
    /// As [`reach`](Self::reach).
    pub fn total(&self) -> Result<u64, PiecesError> {
        self.reach()?;
        u64::from(self.bytes)
            .checked_mul(u64::from(self.count))
            .and_then(|each| each.checked_mul(self.offsets.len() as u64))
            .ok_or(PiecesError::TooLarge {
                region: self.region,
            })
    }

    /// Checks that all pieces lie in a region of `len` bytes, and returns their bytes.
    ///
    /// # Errors
    ///
    /// [`PiecesError`], with the first offset that is out of bounds.
    pub fn check(&self, len: u64) -> Result<u64, PiecesError> {
        let reach = self.reach()?;
        // One comparison an offset: the largest start from which the pieces fit.
        let fits = len.checked_sub(reach);
        let outside = |offset: &&u64| fits.is_none_or(|fits| **offset > fits);
        if let Some(&offset) = self.offsets.iter().find(outside) {
            return Err(PiecesError::OutOfBounds {
                region: self.region,
                offset,
                reach,
                len,
            });
        }
        self.total()
    }
}

/// Lists that can be walked over.
pub trait Lists {
    /// The list with that number, in order.
    fn list(&self, index: usize) -> Option<Pieces<'_>>;
}

impl Lists for [Pieces<'_>] {
    #[inline]
    fn list(&self, index: usize) -> Option<Pieces<'_>> {
        self.get(index).copied()
    }
}

/// Lists that are kept: of an operation that outlasts the call that posted it, or as a peer sent them.
///
/// Filled again and again without giving its memory back.
#[derive(Debug, Default)]
pub struct PieceList {
    groups: Vec<Group>,
    offsets: Vec<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Group {
    region: u32,
    generation: u32,
    bytes: u32,
    count: u32,
    stride: u64,
    /// Its offsets are those from the end of the group before to here.
    end: usize,
}

impl PieceList {
    /// Forgets what is in it.
    pub fn clear(&mut self) {
        self.groups.clear();
        self.offsets.clear();
    }

    /// Appends copies of `lists`.
    pub fn extend(&mut self, lists: &[Pieces<'_>]) {
        for list in lists {
            self.begin(list.region, 0, [list.bytes, list.count], list.stride);
            self.offsets.extend_from_slice(list.offsets);
            self.end();
        }
    }

    /// Appends single pieces of a peer's registration.
    pub(crate) fn append(
        &mut self,
        [slot, generation, bytes]: [u32; 3],
        offsets: impl Iterator<Item = u64>,
    ) {
        self.begin(slot, generation, [bytes, 1], 0);
        self.offsets.extend(offsets);
        self.end();
    }

    fn begin(&mut self, region: u32, generation: u32, [bytes, count]: [u32; 2], stride: u64) {
        self.groups.push(Group {
            region,
            generation,
            bytes,
            count,
            stride,
            end: 0,
        });
    }

    fn end(&mut self) {
        if let Some(group) = self.groups.last_mut() {
            group.end = self.offsets.len();
        }
    }

    /// The lists, each with the generation of the registration that it names; 0 for local pieces.
    pub fn lists(&self) -> impl Iterator<Item = (Pieces<'_>, u32)> {
        let generations = self.groups.iter().map(|group| group.generation);
        (0..).map_while(|index| self.list(index)).zip(generations)
    }
}

impl Lists for PieceList {
    #[inline]
    fn list(&self, index: usize) -> Option<Pieces<'_>> {
        let group = self.groups.get(index)?;
        let start = if index == 0 {
            0
        } else {
            self.groups[index - 1].end
        };
        Some(Pieces {
            region: group.region,
            bytes: group.bytes,
            count: group.count,
            stride: group.stride,
            offsets: &self.offsets[start..group.end],
        })
    }
}

/// Where a walk over pieces stands: the next byte.
///
/// The lists walked over are given at each step, so that a walk can be kept without borrowing them. They were
/// checked, and are the same at every step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    list: usize,
    offset: usize,
    index: u32,
    within: u32,
}

/// Bytes that lie one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)] // A place and a length.
pub struct Run {
    /// As [`Pieces::region`].
    pub region: u32,
    /// Bytes from the start of the region.
    pub offset: u64,
    /// Length; not zero.
    pub bytes: u32,
}

impl Cursor {
    /// The next run of at most `most` bytes, which is not zero; `None` at the end. A run never leaves its piece.
    #[inline]
    pub fn next(&mut self, lists: &(impl Lists + ?Sized), most: u32) -> Option<Run> {
        loop {
            let list = lists.list(self.list)?;
            let Some(&start) = list.offsets.get(self.offset) else {
                self.list += 1;
                self.offset = 0;
                continue;
            };
            let run = Run {
                region: list.region,
                offset: start + list.stride * u64::from(self.index) + u64::from(self.within),
                bytes: min(list.bytes - self.within, most),
            };
            self.within += run.bytes;
            if self.within == list.bytes {
                self.within = 0;
                self.index += 1;
                if self.index == list.count {
                    self.index = 0;
                    self.offset += 1;
                }
            }
            return Some(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_meets_every_byte_once_in_order() {
        let lists = [
            Pieces {
                region: 3,
                bytes: 4,
                count: 3,
                stride: 10,
                offsets: &[100, 7],
            },
            Pieces {
                region: 1,
                bytes: 9,
                count: 1,
                stride: 0,
                offsets: &[],
            },
            Pieces {
                region: 2,
                bytes: 5,
                count: 1,
                stride: 0,
                offsets: &[50],
            },
        ];
        let mut expected = Vec::new();
        for list in &lists {
            for &offset in list.offsets {
                for index in 0..u64::from(list.count) {
                    for byte in 0..u64::from(list.bytes) {
                        expected.push((list.region, offset + index * list.stride + byte));
                    }
                }
            }
        }
        let mut kept = PieceList::default();
        kept.extend(&lists[..1]);
        kept.clear();
        kept.extend(&lists);
        for most in 1..12 {
            let (mut cursor, mut other) = (Cursor::default(), Cursor::default());
            while let Some(run) = cursor.next(&lists[..], most) {
                assert_eq!(other.next(&kept, most), Some(run));
            }
            assert_eq!(other.next(&kept, most), None);
            let mut cursor = Cursor::default();
            let mut met = Vec::new();
            while let Some(run) = cursor.next(&lists[..], most) {
                assert!(run.bytes > 0 && run.bytes <= most);
                met.extend((0..u64::from(run.bytes)).map(|byte| (run.region, run.offset + byte)));
            }
            assert_eq!(met, expected);
            assert_eq!(cursor.next(&lists[..], most), None);
        }
        let total: u64 = lists.iter().map(|list| list.total().unwrap()).sum();
        assert_eq!(total, expected.len() as u64);
    }

    #[test]
    fn pieces_outside_of_their_region_are_named() {
        let pieces = |bytes, count, stride, offsets| Pieces {
            region: 5,
            bytes,
            count,
            stride,
            offsets,
        };
        assert_eq!(pieces(4, 3, 10, &[0, 6]).check(30), Ok(24));
        assert_eq!(pieces(4, 1, u64::MAX, &[26]).check(30), Ok(4));
        for (list, text) in [
            (
                pieces(4, 3, 10, &[0, 7]),
                "pieces at 7 reach 24 bytes far, past the end of region 5 of 30 bytes",
            ),
            (
                pieces(31, 1, 0, &[0]),
                "pieces at 0 reach 31 bytes far, past the end of region 5 of 30 bytes",
            ),
            (pieces(4, 1, 0, &[u64::MAX]), "past the end"),
            (pieces(0, 1, 0, &[]), "neither may be 0"),
            (pieces(1, 0, 0, &[]), "neither may be 0"),
            (pieces(4, 2, 3, &[0]), "they overlap"),
            (pieces(4, 3, u64::MAX, &[0]), "longer than 2^64"),
            (
                pieces(u32::MAX, u32::MAX, u64::MAX / 4, &[0]),
                "longer than 2^64",
            ),
        ] {
            let error = list.check(30).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
