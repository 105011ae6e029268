//! Pages of a producer rank, mapped by a consumer rank.

use std::sync::Arc;

use moai_memory::Region;
use moai_transport::{Interface, PeerId};

use super::order::Order;
use crate::{
    execute::{Agreed, PageCopy, Requested, Runner},
    protocol::node::LentKey,
};

/// Maps the regions of a producer rank that `peer` lends by `keys`, in the order of its descriptor; those without a key
/// are empty.
pub(super) fn map(
    interface: &mut dyn Interface,
    peer: PeerId,
    agreed: &Agreed,
    rank: u32,
    keys: &[LentKey],
) -> Result<Vec<Region>, String> {
    let specs = &agreed.producer.ranks[rank as usize].regions;
    let mut regions: Vec<Region> = specs
        .iter()
        .map(|_| Region::from_host(Vec::new()))
        .collect();
    for (index, key) in keys {
        let (Some(spec), Some(region)) =
            (specs.get(*index as usize), regions.get_mut(*index as usize))
        else {
            let has = specs.len();
            return Err(format!(
                "a key of region {index} of rank {rank}, which has {has}"
            ));
        };
        let mapped = interface
            .import(peer, key)
            .and_then(|remote| interface.map(peer, remote));
        *region = mapped.map_err(|error| format!("{} cannot be mapped: {error}", spec.name))?;
    }
    // Programs index regions without asking: whatever a peer lends, they find all bytes that they address.
    for (spec, region) in specs.iter().zip(&regions) {
        let held = region.host_bytes().map(|bytes| bytes.len() as u64);
        match held {
            Some(held) if held >= spec.bytes => {}
            Some(held) => {
                return Err(format!(
                    "{} has {held} bytes where it is mapped; {} are described",
                    spec.name, spec.bytes
                ));
            }
            None => return Err(format!("{} is {} memory", spec.name, region.kind())),
        }
    }
    Ok(regions)
}

/// The programs that copy what a pair moves, and how far they are.
#[derive(Debug)]
pub(super) struct Borrowed {
    pub(super) copy: PageCopy,
    pub(super) regions: Arc<[Region]>,
    pub(super) order: Order,
}

impl Borrowed {
    /// From mapped regions, of pages that the producer has listed.
    pub(super) fn new(requested: &Arc<Requested>, runner: &Runner, regions: Arc<[Region]>) -> Self {
        let written = (0..runner.chunks().len()).map(|index| runner.row_bytes(index)[2]);
        Self {
            copy: PageCopy::new(requested, runner.pair(), written.sum()),
            regions,
            order: Order::new(runner),
        }
    }
}
