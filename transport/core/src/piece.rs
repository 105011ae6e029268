//! Pieces of regions, and the door at which they are checked.

use moai_memory::{MemoryKind, Region};
use thiserror::Error;

/// A contiguous piece of a region: where consecutive wire bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Piece {
    /// Index into the handler's regions.
    pub region: u32,
    /// Bytes from the start of the region.
    pub offset: u64,
    /// Length; never zero.
    pub bytes: u32,
}

impl Piece {
    /// The bytes of the piece.
    ///
    /// # Errors
    ///
    /// [`PieceError::NoSuchRegion`], [`PieceError::OutOfBounds`], or [`PieceError::Unreachable`].
    pub fn locate(self, regions: &mut [Region]) -> Result<&mut [u8], PieceError> {
        self.check(regions)?;
        let memory = &mut regions[self.region as usize];
        let (region, kind, start) = (self.region, memory.kind(), self.offset as usize);
        let bytes = memory.host_bytes_mut();
        let bytes = bytes.ok_or(PieceError::Unreachable { region, kind })?;
        Ok(&mut bytes[start..start + self.bytes as usize])
    }

    /// Whether the piece lies in its region, and that in memory which the processor reaches.
    ///
    /// # Errors
    ///
    /// [`PieceError::NoSuchRegion`], [`PieceError::OutOfBounds`], or [`PieceError::Unreachable`].
    pub fn check(self, regions: &[Region]) -> Result<(), PieceError> {
        let Self {
            region,
            offset,
            bytes,
        } = self;
        let Some(memory) = regions.get(region as usize) else {
            return Err(PieceError::NoSuchRegion {
                region,
                regions: regions.len(),
            });
        };
        let end = offset.checked_add(u64::from(bytes));
        if end.is_none_or(|end| end > memory.len()) {
            return Err(PieceError::OutOfBounds {
                region,
                offset,
                bytes,
                len: memory.len(),
            });
        }
        if memory.host_bytes().is_none() {
            return Err(PieceError::Unreachable {
                region,
                kind: memory.kind(),
            });
        }
        Ok(())
    }
}

/// Pieces that cannot receive a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PieceError {
    /// The handler has no such region.
    #[error("there is no region {region}, only {regions}")]
    NoSuchRegion {
        /// Index that the piece names.
        region: u32,
        /// Regions that there are.
        regions: usize,
    },
    /// The piece reaches past the end of its region.
    #[error("{bytes} bytes at {offset} lie outside region {region} of {len} bytes")]
    OutOfBounds {
        /// Index of the region.
        region: u32,
        /// First byte of the piece.
        offset: u64,
        /// Length of the piece.
        bytes: u32,
        /// Length of the region.
        len: u64,
    },
    /// The processor cannot write to the region: only a device reaches it, or it was mapped for reading.
    #[error(
        "region {region} is {kind} memory, which the processor cannot write; land the payload staged, or put it"
    )]
    Unreachable {
        /// Index of the region.
        region: u32,
        /// Its memory.
        kind: MemoryKind,
    },
    /// A piece of no bytes would make no progress.
    #[error("an empty piece at {offset} of region {region}")]
    Empty {
        /// Index of the region.
        region: u32,
        /// Where the piece would be.
        offset: u64,
    },
    /// The payload has bytes left, and the handler named no piece for them.
    #[error("no piece for the remaining {remaining} bytes")]
    Missing {
        /// Payload bytes without a place.
        remaining: u32,
    },
    /// More pieces than were asked for.
    #[error("{given} pieces where at most {most} were asked for")]
    TooMany {
        /// Pieces that came.
        given: usize,
        /// Pieces that were asked for.
        most: usize,
    },
    /// The pieces together are longer than what is left of the payload.
    #[error("pieces of {given} bytes for the remaining {remaining} bytes")]
    PastEnd {
        /// Bytes of the pieces together, up to the one that reached past the end.
        given: u64,
        /// Payload bytes without a place.
        remaining: u32,
    },
}

/// Checks what [`Handler::pieces`](crate::Handler::pieces) appended, and merges pieces that continue
/// each other. Returns the payload bytes that the pieces cover: at least one, at most `remaining`.
///
/// # Errors
///
/// A [`PieceError`] that names the first offending piece.
pub fn admit_pieces(
    pieces: &mut Vec<Piece>,
    most: usize,
    remaining: u32,
    regions: &[Region],
) -> Result<u32, PieceError> {
    if pieces.is_empty() {
        return Err(PieceError::Missing { remaining });
    }
    if pieces.len() > most {
        return Err(PieceError::TooMany {
            given: pieces.len(),
            most,
        });
    }
    let mut covered = 0;
    for &piece in pieces.iter() {
        piece.check(regions)?;
        let Piece {
            region,
            offset,
            bytes,
        } = piece;
        if bytes == 0 {
            return Err(PieceError::Empty { region, offset });
        }
        let given = u64::from(covered) + u64::from(bytes);
        if given > u64::from(remaining) {
            return Err(PieceError::PastEnd { given, remaining });
        }
        covered += bytes;
    }
    // No sum overflows: together the pieces are no longer than `remaining`.
    pieces.dedup_by(|next, kept| {
        let continues =
            next.region == kept.region && next.offset == kept.offset + u64::from(kept.bytes);
        if continues {
            kept.bytes += next.bytes;
        }
        continues
    });
    Ok(covered)
}

#[cfg(test)]
mod tests {
    use moai_memory::sim::{SimConfig, SimDevice};

    use super::*;

    fn regions() -> [Region; 2] {
        [
            Region::from_host(vec![0; 100]),
            Region::from_host(vec![0; 50]),
        ]
    }

    fn piece(region: u32, offset: u64, bytes: u32) -> Piece {
        Piece {
            region,
            offset,
            bytes,
        }
    }

    #[test]
    fn pieces_that_continue_each_other_become_one() {
        let mut pieces = vec![
            piece(0, 0, 10),
            piece(0, 10, 5),
            piece(0, 15, 1),
            piece(0, 17, 3),
            piece(1, 20, 30),
            piece(1, 0, 20),
        ];
        assert_eq!(admit_pieces(&mut pieces, 6, 1000, &regions()), Ok(69));
        assert_eq!(
            pieces,
            [
                piece(0, 0, 16),
                piece(0, 17, 3),
                piece(1, 20, 30),
                piece(1, 0, 20)
            ]
        );
    }

    #[test]
    fn a_piece_is_found_where_it_says() {
        let mut regions = regions();
        piece(1, 40, 10).locate(&mut regions).unwrap().fill(7);
        let expected: Vec<u8> = (0..50).map(|at| if at < 40 { 0 } else { 7 }).collect();
        assert_eq!(regions[1].as_slice(), expected);
        assert!(piece(1, 41, 10).locate(&mut regions).is_err());
        assert!(piece(2, 0, 1).locate(&mut regions).is_err());
    }

    #[test]
    fn memory_that_only_a_device_reaches_is_refused_with_its_kind() {
        let on_device = SimDevice::new(SimConfig::default()).allocate(100).unwrap();
        let mut regions = [Region::from_host(vec![0; 100]), on_device];
        let unreachable = PieceError::Unreachable {
            region: 1,
            kind: MemoryKind::Sim,
        };
        let there = piece(1, 10, 20);
        assert_eq!(there.check(&regions), Err(unreachable));
        assert_eq!(there.locate(&mut regions), Err(unreachable));
        let mut pieces = vec![piece(0, 0, 10), there];
        let admitted = admit_pieces(&mut pieces, 2, 30, &regions);
        assert_eq!(admitted, Err(unreachable));
        // A piece outside of it is told so first.
        assert!(matches!(
            piece(1, 90, 20).check(&regions),
            Err(PieceError::OutOfBounds { .. })
        ));
    }

    #[test]
    fn what_cannot_receive_the_payload_is_named() {
        let refused = |pieces: &[Piece]| admit_pieces(&mut pieces.to_vec(), 3, 60, &regions());
        assert_eq!(refused(&[]), Err(PieceError::Missing { remaining: 60 }));
        assert_eq!(
            refused(&[piece(0, 0, 1); 4]),
            Err(PieceError::TooMany { given: 4, most: 3 })
        );
        assert_eq!(
            refused(&[piece(0, 0, 1), piece(2, 0, 1)]),
            Err(PieceError::NoSuchRegion {
                region: 2,
                regions: 2
            })
        );
        assert_eq!(
            refused(&[piece(1, 7, 0)]),
            Err(PieceError::Empty {
                region: 1,
                offset: 7
            })
        );
        for (offset, bytes) in [(41, 10), (50, 1), (u64::MAX, 1), (u64::MAX - 1, u32::MAX)] {
            assert_eq!(
                refused(&[piece(1, offset, bytes)]),
                Err(PieceError::OutOfBounds {
                    region: 1,
                    offset,
                    bytes,
                    len: 50
                })
            );
        }
        assert_eq!(
            refused(&[piece(0, 0, 50), piece(1, 0, 11)]),
            Err(PieceError::PastEnd {
                given: 61,
                remaining: 60
            })
        );
        assert_eq!(refused(&[piece(0, 40, 60)]), Ok(60));
    }
}
