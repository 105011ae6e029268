//! The shapes in which a cache is moved: how large its pieces are, and in which order they lie.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::random::Random;

/// Piece sizes of real caches: one row of a head, a page of a head, a page of a layer, a page of many layers.
pub(crate) const SIZES: [u64; 4] = [256, 4 << 10, 64 << 10, 1 << 20];

/// Bytes moved in a round, if nothing else is said: far more than any cache of a processor holds.
const WORKING_SET: u64 = 256 << 20;
/// And no more pieces than this, so that small ones are counted and not waited for.
const MOST_PIECES: u64 = 1 << 16;
/// Both with `--quick`.
const QUICK: (u64, u64) = (8 << 20, 1 << 12);

/// Most memory of one side. What a peer asks for is allocated, so there has to be an end to it.
const MOST_MEMORY: u64 = 64 << 30;

/// In which order pieces lie in memory, on each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// Each side in an order of its own: no two that are neighbours here are neighbours there.
    Scattered,
    /// One after the other, with as much again left out between them.
    Strided,
    /// One after the other: what may be merged.
    Contiguous,
}

/// Which of the two processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Side {
    /// The one that posts operations and takes the time.
    Here,
    /// The other one.
    There,
}

/// Equal pieces and where they lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Shape {
    /// Bytes of a piece.
    pub(crate) piece: u64,
    pub(crate) pieces: u32,
    pub(crate) order: Order,
    /// Of the order, and of nothing else.
    pub(crate) seed: u64,
}

impl Shape {
    /// How many pieces of that size make up a working set.
    pub(crate) fn usual_pieces(piece: u64, quick: bool) -> u32 {
        let (bytes, most) = if quick {
            QUICK
        } else {
            (WORKING_SET, MOST_PIECES)
        };
        (bytes / piece.max(1)).clamp(1, most) as u32
    }

    /// Itself, if it can be allocated.
    ///
    /// # Errors
    ///
    /// If it has no bytes or too many of them.
    pub(crate) fn checked(self) -> Result<Self, String> {
        if self.piece == 0 || self.pieces == 0 {
            return Err(format!(
                "{} pieces of {} B are no bytes",
                self.pieces, self.piece
            ));
        }
        let memory = u128::from(self.stride()) * u128::from(self.pieces);
        if memory > u128::from(MOST_MEMORY) {
            return Err(format!(
                "{} pieces of {} B need {memory} B of memory, and {MOST_MEMORY} B is the most",
                self.pieces, self.piece
            ));
        }
        Ok(self)
    }

    /// Bytes moved.
    pub(crate) fn bytes(&self) -> u64 {
        self.piece * u64::from(self.pieces)
    }

    /// Bytes of memory of each side.
    pub(crate) fn memory(&self) -> u64 {
        self.stride() * u64::from(self.pieces)
    }

    /// The same bytes in one piece, as sockets and memcpy have them.
    pub(crate) fn contiguous(self) -> Self {
        Self {
            order: Order::Contiguous,
            ..self
        }
    }

    fn stride(&self) -> u64 {
        match self.order {
            Order::Strided => self.piece.saturating_mul(2),
            Order::Scattered | Order::Contiguous => self.piece,
        }
    }

    /// Where each piece begins on that side.
    pub(crate) fn offsets(&self, side: Side) -> Vec<u64> {
        let stride = self.stride();
        match self.order {
            Order::Strided | Order::Contiguous => {
                (0..u64::from(self.pieces)).map(|i| i * stride).collect()
            }
            Order::Scattered => {
                // Sides must not share an order, whatever the seed.
                let seed = self
                    .seed
                    .wrapping_mul(2)
                    .wrapping_add(u64::from(side == Side::There));
                let slots = Random(seed).shuffled(self.pieces);
                slots
                    .into_iter()
                    .map(|slot| u64::from(slot) * stride)
                    .collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(order: Order) -> Shape {
        Shape {
            piece: 256,
            pieces: 4096,
            order,
            seed: 1,
        }
    }

    #[test]
    fn pieces_fill_the_memory_and_do_not_overlap() {
        for (order, gap) in [
            (Order::Scattered, 1),
            (Order::Strided, 2),
            (Order::Contiguous, 1),
        ] {
            let shape = shape(order);
            assert_eq!(shape.memory(), gap * shape.bytes());
            for side in [Side::Here, Side::There] {
                let mut offsets = shape.offsets(side);
                offsets.sort_unstable();
                let wanted: Vec<u64> = (0..4096).map(|i| i * gap * 256).collect();
                assert_eq!(offsets, wanted);
            }
        }
    }

    #[test]
    fn scattered_neighbours_never_merge() {
        for seed in 1..20 {
            let shape = Shape {
                seed,
                ..shape(Order::Scattered)
            };
            let (here, there) = (shape.offsets(Side::Here), shape.offsets(Side::There));
            assert_ne!(here, there);
            let merge = |i: &usize| {
                here[*i] + shape.piece == here[i + 1] && there[*i] + shape.piece == there[i + 1]
            };
            let merged = (0..here.len() - 1).filter(merge).count();
            assert_eq!(merged, 0, "seed {seed}");
        }
    }

    #[test]
    fn working_sets_are_what_they_are_said_to_be() {
        let sets = SIZES.map(|size| Shape::usual_pieces(size, false));
        assert_eq!(sets, [65536, 65536, 4096, 256]);
        assert_eq!(
            SIZES.map(|size| Shape::usual_pieces(size, true)),
            [4096, 2048, 128, 8]
        );
        assert_eq!(Shape::usual_pieces(1 << 40, false), 1);
    }

    #[test]
    fn what_cannot_be_allocated_is_refused_with_its_size() {
        let told = |piece, pieces| {
            let shape = Shape {
                piece,
                pieces,
                order: Order::Strided,
                seed: 0,
            };
            shape.checked().unwrap_err()
        };
        assert!(told(0, 1).contains("no bytes"));
        assert!(told(1 << 20, 1 << 17).contains("the most"));
        assert!(told(u64::MAX, u32::MAX).contains("the most"));
    }
}
