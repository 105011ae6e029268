//! Memory of every kind, and a look at its bytes.

use std::time::Duration;

use moai_memory::sim::{Faults, SimConfig, SimDevice};
use moai_memory::{MemoryKind, Region, Span};

use crate::run::Absent;

/// Where a node takes its memory from: the host, and a device of its own that takes its time and works off
/// copies in any order.
#[derive(Clone, Debug)]
pub(crate) struct Device(pub(crate) SimDevice);

impl Device {
    pub(crate) fn new(seed: u64) -> Self {
        Self::with_faults(seed, Faults::default())
    }

    pub(crate) fn with_faults(seed: u64, faults: Faults) -> Self {
        Self(SimDevice::new(SimConfig {
            seed,
            delay: Duration::ZERO..Duration::from_micros(100),
            reorder: true,
            faults,
        }))
    }

    /// Memory of `kind` with these bytes.
    pub(crate) fn region(&self, kind: MemoryKind, bytes: &[u8]) -> Result<Region, Absent> {
        let len = bytes.len() as u64;
        let made = match kind {
            MemoryKind::Host => Region::host_zeroed(len),
            MemoryKind::Pinned => Region::pinned_zeroed(len),
            MemoryKind::Shared => Region::shared_zeroed(len),
            MemoryKind::Sim => self.0.allocate(len),
            _ => return Err(Absent::new(kind, "nobody has said here how to make it")),
        };
        let mut region = made.map_err(|error| Absent::new(kind, error))?;
        self.write(&mut region, 0, bytes);
        Ok(region)
    }

    pub(crate) fn write(&self, region: &mut Region, offset: u64, bytes: &[u8]) {
        if region.kind() == MemoryKind::Sim {
            let span = Span {
                hold: region.hold(),
                offset,
                bytes: bytes.len() as u64,
            };
            return self.0.poke(&span, bytes).unwrap();
        }
        let start = offset as usize;
        region.as_mut_slice()[start..start + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn read(&self, region: &Region) -> Vec<u8> {
        if region.kind() == MemoryKind::Sim {
            let span = Span {
                hold: region.hold(),
                offset: 0,
                bytes: region.len(),
            };
            return self.0.peek(&span).unwrap();
        }
        region.as_slice().to_vec()
    }
}
