//! Reads and writes of another process's memory by bare system calls, the bound of memory that is not shared.
//!
//! The memory is that of what it is held against, where that has any, on both sides and with the same pieces: two
//! allocations of the same size differ by up to a third, by where their pages happen to lie.
//!
//! Needs the right to trace the other process: a process that this one started, as a rule. The best of three
//! batch sizes counts, found anew in each run.

use std::time::{Duration, Instant};

use moai_memory::{Hold, Region};

use super::process_vm::{MOST_ENTRIES, Pieces, same};
use crate::{
    failure::Failure,
    histogram::Histogram,
    mover::{Door, Mover, Partner, Step},
    pattern::Pattern,
    shapes::{Shape, Side},
};

/// Entries of a call that are tried.
const BATCHES: [usize; 3] = [64, 256, MOST_ENTRIES];

/// The half that makes the calls.
#[derive(Debug)]
pub(crate) struct ForeignMover {
    pid: u32,
    /// Where the other half's memory begins.
    address: u64,
    shape: Shape,
    here: Vec<u64>,
    there: Vec<u64>,
    memory: Region,
    /// The fastest batch of puts and of gets, once known.
    best: [Option<usize>; 2],
}

impl ForeignMover {
    /// # Errors
    ///
    /// If this process may not read that one.
    pub(crate) fn open(
        pid: u32,
        door: &Door,
        shape: Shape,
        memory: Option<Hold>,
    ) -> Result<Self, Failure> {
        let &Door::Address(address) = door else {
            return Err(Failure::Lost(format!(
                "foreign memory needs an address, not {door:?}"
            )));
        };
        let mut opened = Self {
            pid,
            address,
            shape,
            here: shape.offsets(Side::Here),
            there: shape.offsets(Side::There),
            memory: same_or_touched(memory, shape)?,
            best: [None; 2],
        };
        opened.probe()?;
        Ok(opened)
    }

    /// Reads one piece, which shows whether this is permitted at all.
    fn probe(&mut self) -> Result<(), Failure> {
        let (here, there) = (&self.here[..1], &self.there[..1]);
        let mut piece = Pieces::new(
            self.memory.as_mut_slice(),
            here,
            self.address,
            there,
            self.shape.piece,
        );
        piece
            .read(self.pid, 1)
            .map_err(Failure::lost("process_vm_readv"))
    }

    fn pass(&mut self, is_put: bool, batch: usize) -> Result<Duration, Failure> {
        let piece = self.shape.piece;
        let mut pieces = Pieces::new(
            self.memory.as_mut_slice(),
            &self.here,
            self.address,
            &self.there,
            piece,
        );
        let start = Instant::now();
        let done = if is_put {
            pieces.write(self.pid, batch)
        } else {
            pieces.read(self.pid, batch)
        };
        let took = start.elapsed();
        let call = if is_put {
            "process_vm_writev"
        } else {
            "process_vm_readv"
        };
        done.map(|()| took).map_err(Failure::lost(call))
    }

    /// A pass with the best batch, which is looked for the first time.
    fn best_pass(&mut self, is_put: bool) -> Result<Duration, Failure> {
        if let Some(batch) = self.best[usize::from(is_put)] {
            return self.pass(is_put, batch);
        }
        // Once to touch all memory.
        self.pass(is_put, MOST_ENTRIES)?;
        let mut fastest = (Duration::MAX, MOST_ENTRIES);
        for batch in BATCHES {
            for _ in 0..TRIES {
                fastest = fastest.min((self.pass(is_put, batch)?, batch));
            }
        }
        self.best[usize::from(is_put)] = Some(fastest.1);
        Ok(fastest.0)
    }
}

/// The memory of another way, which takes turns with this one, or some like it.
fn same_or_touched(memory: Option<Hold>, shape: Shape) -> Result<Region, Failure> {
    if let Some(memory) = memory.filter(|memory| memory.len() >= shape.memory()) {
        return Ok(same(memory));
    }
    let region = Region::host_zeroed(shape.memory());
    let mut region = region.map_err(|error| Failure::Lost(error.to_string()))?;
    region.as_mut_slice().fill(1);
    Ok(region)
}

/// Passes with each batch before one is chosen.
const TRIES: u32 = 2;

impl Mover for ForeignMover {
    fn name(&self) -> String {
        "process_vm".to_owned()
    }

    fn fill(&mut self, pattern: Pattern) -> Result<(), Failure> {
        pattern.write(self.memory.as_mut_slice(), 0);
        Ok(())
    }

    fn step(&mut self, step: Step, _pings: &mut Histogram) -> Result<Duration, Failure> {
        match step {
            Step::Put => self.best_pass(true),
            Step::Get => self.best_pass(false),
            Step::Rate => self.pass(true, 1),
            Step::Send | Step::Ping { .. } => Err(Failure::Input(
                "foreign memory takes no messages, only put, get and rate".to_owned(),
            )),
        }
    }

    fn check(&mut self, pattern: Pattern) -> Result<(), Failure> {
        check(&self.shape, Side::Here, self.memory.as_slice(), pattern)
    }
}

fn check(shape: &Shape, side: Side, memory: &[u8], pattern: Pattern) -> Result<(), Failure> {
    let checked = pattern.check(shape, side, memory);
    checked.map_err(|text| Failure::Wrong(format!("process_vm: {text}")))
}

/// The half whose memory it is.
#[derive(Debug)]
pub(crate) struct ForeignPartner {
    shape: Shape,
    memory: Region,
}

impl ForeignPartner {
    pub(crate) fn open(shape: Shape, memory: Option<Hold>) -> Result<(Self, Door), Failure> {
        let mut memory = same_or_touched(memory, shape)?;
        let start = memory.as_mut_slice().as_mut_ptr();
        let address = start.expose_provenance() as u64;
        Ok((Self { shape, memory }, Door::Address(address)))
    }
}

impl Partner for ForeignPartner {
    fn join(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn fill(&mut self, pattern: Pattern) -> Result<(), Failure> {
        pattern.write(self.memory.as_mut_slice(), 0);
        Ok(())
    }

    fn step(&mut self, _step: Step, _is_over: &dyn Fn() -> bool) -> Result<(), Failure> {
        // Nothing to do: whoever called waits for the end in a system call.
        Ok(())
    }

    fn check(&mut self, pattern: Pattern) -> Result<(), Failure> {
        check(&self.shape, Side::There, self.memory.as_slice(), pattern)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::Order;

    #[test]
    fn a_door_of_another_kind_is_refused() {
        let shape = Shape {
            piece: 8,
            pieces: 4,
            order: Order::Scattered,
            seed: 1,
        };
        assert!(ForeignMover::open(1, &Door::Port(1), shape, None).is_err());
        let (_, door) = ForeignPartner::open(shape, None).unwrap();
        assert!(matches!(door, Door::Address(address) if address != 0));
        let other = Region::host_zeroed(32).unwrap();
        let (_, door) = ForeignPartner::open(shape, Some(other.hold())).unwrap();
        let address = other.hold().address() as u64;
        assert!(matches!(door, Door::Address(same) if same == address));
    }
}
