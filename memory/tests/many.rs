//! Many regions in one process. By itself, because it counts what all the process has.

use std::fs;

use moai_memory::sim::{SimConfig, SimDevice};
use moai_memory::{Region, RegionError};

const REGIONS: u64 = 10_000;
const BYTES: u64 = 64 << 10;

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn mappings() -> usize {
    fs::read_to_string("/proc/self/maps")
        .unwrap()
        .lines()
        .count()
}

fn split(mut rest: Region) -> Vec<Region> {
    let parts = (0..REGIONS).map(|_| {
        let (part, others) =
            std::mem::replace(&mut rest, Region::from_host(Vec::new())).split_at(BYTES);
        rest = others;
        part
    });
    parts.collect()
}

#[test]
fn ten_thousand_regions_of_one_allocation_cost_one_descriptor() {
    let device = SimDevice::new(SimConfig::default());
    let whole = REGIONS * BYTES;
    let (fds, maps) = (descriptors(), mappings());
    let mut shared = split(Region::shared_zeroed(whole).unwrap());
    let sim = split(device.allocate(whole).unwrap());
    // Small ones: what they hold comes from the allocator.
    let host: Vec<_> = (0..REGIONS)
        .map(|_| Region::host_zeroed(1).unwrap())
        .collect();
    assert!(descriptors() <= fds + 2, "{} descriptors", descriptors());
    assert!(mappings() <= maps + 100, "{} mappings", mappings());

    for (index, region) in shared.iter_mut().enumerate().step_by(1000) {
        assert_eq!(region.hold().export().unwrap().offset, index as u64 * BYTES);
        region.as_mut_slice()[0] = 1;
    }
    let addresses: Vec<_> = sim.iter().map(|region| region.hold().address()).collect();
    assert!(
        addresses
            .windows(2)
            .all(|pair| pair[1] - pair[0] == BYTES as usize)
    );
    drop((shared, sim, host));
    assert_eq!(descriptors(), fds);

    no_descriptor_left();
}

/// What each has of its own runs out, which is an error that says so.
fn no_descriptor_left() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = Some(descriptors() as u64 + 10);
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
    let mut regions = Vec::new();
    let error = loop {
        match Region::shared_zeroed(1) {
            Ok(region) => regions.push(region),
            Err(error) => break error,
        }
        assert!(regions.len() < 100);
    };
    assert!(
        matches!(
            error,
            RegionError::Os {
                call: "memfd_create",
                ..
            }
        ),
        "{error}"
    );
    assert!(regions.len() > 5);
    drop(regions);
    assert!(Region::shared_zeroed(1).is_ok());
}
