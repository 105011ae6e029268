//! What pieces are filled with, and the check that they arrived.
//!
//! Every eight bytes of a source tell where they are and in which round they were written, so a piece that
//! lies in the wrong place, came twice, or is left from an earlier round is always found. The receiver
//! makes the expected bytes itself: nothing is sent for the check.

use crate::shapes::{Shape, Side};

/// The bytes of one round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pattern {
    /// Another one in each round.
    salt: u64,
}

impl Pattern {
    pub(crate) fn new(salt: u64) -> Self {
        Self { salt }
    }

    /// The eight bytes at `8 * index`. One to one in the index and in the salt, as the factor is odd; never 0
    /// where the salt is beyond all indices.
    fn word(self, index: u64) -> u64 {
        (index ^ self.salt).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    /// Writes what belongs at `at` of the source and behind.
    pub(crate) fn write(self, bytes: &mut [u8], at: u64) {
        let skipped = (at % 8) as usize;
        let head = ((8 - skipped) % 8).min(bytes.len());
        let (head, rest) = bytes.split_at_mut(head);
        let within = skipped..skipped + head.len();
        head.copy_from_slice(&self.word(at / 8).to_le_bytes()[within]);
        let first = at.div_ceil(8);
        let mut words = rest.chunks_exact_mut(8);
        let mut next = first;
        for word in &mut words {
            word.copy_from_slice(&self.word(next).to_le_bytes());
            next += 1;
        }
        let tail = words.into_remainder();
        tail.copy_from_slice(&self.word(next).to_le_bytes()[..tail.len()]);
    }

    /// Compares the target's memory on `side` with the source's on the other one.
    ///
    /// # Errors
    ///
    /// Which piece is not what it should be, and how many of them.
    pub(crate) fn check(self, shape: &Shape, side: Side, target: &[u8]) -> Result<(), String> {
        let (here, there) = (shape.offsets(Side::Here), shape.offsets(Side::There));
        let (from, to) = match side {
            Side::Here => (there, here),
            Side::There => (here, there),
        };
        let piece = shape.piece as usize;
        let mut expected = [0; BLOCK];
        let mut wrong = (0_u32, None);
        for (i, (&from, &to)) in from.iter().zip(&to).enumerate() {
            let found = &target[to as usize..][..piece];
            let mut blocks = found.chunks(BLOCK).zip((from..).step_by(BLOCK));
            let is_right = blocks.all(|(found, at)| {
                let expected = &mut expected[..found.len()];
                self.write(expected, at);
                found == expected
            });
            if !is_right {
                wrong.0 += 1;
                wrong.1.get_or_insert((i, from, to));
            }
        }
        match wrong.1 {
            None => Ok(()),
            Some((i, from, to)) => Err(format!(
                "{} of {} pieces of {} B differ, the first is number {i}, from byte {from} to byte {to}",
                wrong.0, shape.pieces, shape.piece
            )),
        }
    }
}

/// Bytes made and compared at a time: stays in the first-level cache.
const BLOCK: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::Order;

    fn moved(shape: &Shape, pattern: Pattern) -> Vec<u8> {
        let mut source = vec![0; shape.memory() as usize];
        pattern.write(&mut source, 0);
        let mut target = vec![0; source.len()];
        let pairs = shape
            .offsets(Side::Here)
            .into_iter()
            .zip(shape.offsets(Side::There));
        for (from, to) in pairs {
            let piece = &source[from as usize..][..shape.piece as usize];
            target[to as usize..][..shape.piece as usize].copy_from_slice(piece);
        }
        target
    }

    #[test]
    fn every_eight_bytes_differ_wherever_they_are_written_from() {
        let pattern = Pattern::new(7);
        let mut whole = vec![0; 1 << 16];
        pattern.write(&mut whole, 0);
        let mut words: Vec<_> = whole.chunks(8).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), 1 << 13);
        for at in [0, 1, 7, 8, 13] {
            for len in [0, 1, 3, 8, 9, 100] {
                let mut part = vec![0; len];
                pattern.write(&mut part, at as u64);
                assert_eq!(part, whole[at..at + len], "{len} B at {at}");
            }
        }
    }

    #[test]
    fn what_arrived_is_right_and_what_did_not_is_found() {
        for order in [Order::Scattered, Order::Strided, Order::Contiguous] {
            for piece in [1, 12, 256, 5000] {
                let shape = Shape {
                    piece,
                    pieces: 50,
                    order,
                    seed: 3,
                };
                let pattern = Pattern::new(1 << 50);
                let mut target = moved(&shape, pattern);
                pattern.check(&shape, Side::There, &target).unwrap();
                // Of an earlier round.
                let text = Pattern::new(1 << 51)
                    .check(&shape, Side::There, &target)
                    .unwrap_err();
                if piece >= 8 {
                    assert!(text.starts_with("50 of 50"), "{text}");
                }
                let last = shape.offsets(Side::There)[7] + piece - 1;
                target[last as usize] ^= 1;
                let text = pattern.check(&shape, Side::There, &target).unwrap_err();
                assert!(
                    text.starts_with("1 of 50") && text.contains("number 7,"),
                    "{text}"
                );
            }
        }
        // Right bytes in each other's place.
        let shape = Shape {
            piece: 64,
            pieces: 8,
            order: Order::Contiguous,
            seed: 0,
        };
        let mut target = moved(&shape, Pattern::new(9));
        target.rotate_left(64);
        let text = Pattern::new(9)
            .check(&shape, Side::Here, &target)
            .unwrap_err();
        assert!(text.starts_with("8 of 8"), "{text}");
    }
}
