//! A copy of the same pieces within this process, by one thread: the bound of mapped memory.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use moai_memory::Region;

use crate::{
    failure::Failure,
    histogram::Histogram,
    mover::{Mover, Step},
    pattern::Pattern,
    shapes::{Shape, Side},
};

/// Source and target in one process. There is no partner.
#[derive(Debug)]
pub(crate) struct Memcpy {
    shape: Shape,
    source: Region,
    target: Region,
}

impl Memcpy {
    pub(crate) fn open(shape: Shape) -> Result<Self, Failure> {
        let shape = shape.contiguous();
        let memory = || {
            let region = Region::host_zeroed(shape.memory());
            region.map_err(|error| Failure::Input(error.to_string()))
        };
        Ok(Self {
            shape,
            source: memory()?,
            target: memory()?,
        })
    }
}

impl Mover for Memcpy {
    fn name(&self) -> String {
        "memcpy".to_owned()
    }

    fn fill(&mut self, pattern: Pattern) -> Result<(), Failure> {
        pattern.write(self.source.as_mut_slice(), 0);
        Ok(())
    }

    fn step(&mut self, _step: Step, _pings: &mut Histogram) -> Result<Duration, Failure> {
        let piece = self.shape.piece as usize;
        let start = Instant::now();
        let pieces = self
            .target
            .as_mut_slice()
            .chunks_exact_mut(piece)
            .zip(self.source.as_slice().chunks_exact(piece));
        for (to, from) in pieces {
            // Otherwise the compiler merges what is to be copied piece by piece.
            black_box(to).copy_from_slice(black_box(from));
        }
        Ok(start.elapsed())
    }

    fn check(&mut self, pattern: Pattern) -> Result<(), Failure> {
        let checked = pattern.check(&self.shape, Side::Here, self.target.as_slice());
        checked.map_err(|text| Failure::Wrong(format!("memcpy: {text}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::Order;

    #[test]
    fn everything_is_copied() {
        let mut memcpy = Memcpy::open(Shape {
            piece: 24,
            pieces: 100,
            order: Order::Strided,
            seed: 1,
        })
        .unwrap();
        memcpy.fill(Pattern::new(1)).unwrap();
        assert!(memcpy.check(Pattern::new(1)).is_err());
        memcpy.step(Step::Put, &mut Histogram::new()).unwrap();
        memcpy.check(Pattern::new(1)).unwrap();
    }
}
