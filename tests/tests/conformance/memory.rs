//! Memory of every kind, and a look at its bytes.

use std::time::Duration;

use moai_memory::sim::{Faults, SimConfig, SimDevice};
use moai_memory::{Domain, Job, MemoryKind, Region, Span, Work};
use moai_transport_plugin::TableDomain;

use crate::run::Absent;

/// Where a node takes its memory from: the host, and a device of its own that takes its time and works off
/// copies in any order.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) sim: SimDevice,
    /// What is to fail fails by a device of this program.
    is_faulty: bool,
    /// Where memory of the device comes from instead.
    domain: Option<TableDomain>,
}

impl Device {
    pub(crate) fn new(seed: u64) -> Self {
        Self::with_faults(seed, Faults::default())
    }

    pub(crate) fn with_faults(seed: u64, faults: Faults) -> Self {
        Self {
            sim: SimDevice::new(SimConfig {
                seed,
                delay: Duration::ZERO..Duration::from_micros(100),
                reorder: true,
                faults,
            }),
            is_faulty: faults != Faults::default(),
            domain: None,
        }
    }

    /// Takes memory from a domain that was loaded, unless its copies are to fail.
    pub(crate) fn of(mut self, domain: &TableDomain) -> Self {
        self.domain = (!self.is_faulty).then(|| domain.clone());
        self
    }

    /// Memory of `kind` with these bytes.
    pub(crate) fn region(&self, kind: MemoryKind, bytes: &[u8]) -> Result<Region, Absent> {
        let len = bytes.len() as u64;
        let made = match kind {
            MemoryKind::Host => Region::host_zeroed(len),
            MemoryKind::Pinned => Region::pinned_zeroed(len),
            MemoryKind::Shared => Region::shared_zeroed(len),
            MemoryKind::Sim => match &self.domain {
                Some(domain) => domain.allocate(len),
                None => self.sim.allocate(len),
            },
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
            if is_elsewhere(region) {
                by_stream(Work::FromHost, span, bytes.to_vec());
                return;
            }
            return self.sim.poke(&span, bytes).unwrap();
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
            if is_elsewhere(region) {
                return by_stream(Work::ToHost, span, Vec::new());
            }
            return self.sim.peek(&span).unwrap();
        }
        region.as_slice().to_vec()
    }
}

/// Whether it is memory of a device that is not in this program.
fn is_elsewhere(region: &Region) -> bool {
    region.hold().foreign().is_some()
}

/// Copies as anybody does who does not know the device.
fn by_stream(work: Work, span: Span, buffer: Vec<u8>) -> Vec<u8> {
    let domain = span.hold.domain().map(Domain::handle);
    let mut stream = domain.expect("memory of a device").stream().unwrap();
    let job = Job {
        name: 7,
        work,
        spans: vec![span],
        buffer,
    };
    stream.submit(job).expect("the queue is empty");
    assert!(stream.wait(Duration::from_secs(20)), "a copy takes 20 s");
    let finished = stream.completed().expect("it is over");
    finished.outcome.unwrap();
    assert_eq!(finished.job.name, 7);
    finished.job.buffer
}
