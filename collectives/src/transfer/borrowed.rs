//! Pages of a producer rank, mapped by a consumer rank.

use std::sync::Arc;

use moai_memory::Region;
use moai_transport::{Interface, PeerId};

use crate::{
    execute::{PageCopy, Requested, Runner},
    protocol::LentKey,
};

/// A producer rank's regions in this process, and the programs that copy from them.
#[derive(Debug)]
pub(super) struct Borrowed {
    pub(super) copy: PageCopy,
    /// In the order of the descriptor; those without a key are empty.
    pub(super) regions: Vec<Region>,
    /// The next chunk to copy.
    pub(super) next: usize,
}

impl Borrowed {
    /// Maps what `peer` lends by `keys` for a pair of ranks.
    pub(super) fn new(
        interface: &mut dyn Interface,
        peer: PeerId,
        requested: &Arc<Requested>,
        runner: &Runner,
        keys: &[LentKey],
    ) -> Result<Self, String> {
        let pair = runner.pair();
        let specs = &requested.agreed().producer.ranks[pair.source as usize].regions;
        let mut regions: Vec<Region> = specs
            .iter()
            .map(|_| Region::from_host(Vec::new()))
            .collect();
        for (index, key) in keys {
            let name = &specs[*index as usize].name;
            let mapped = interface
                .import(peer, key)
                .and_then(|remote| interface.map(peer, remote));
            regions[*index as usize] =
                mapped.map_err(|error| format!("{name} cannot be mapped: {error}"))?;
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
        let written = (0..runner.chunks().len()).map(|index| runner.row_bytes(index)[2]);
        Ok(Self {
            copy: PageCopy::new(requested, pair, written.sum()),
            regions,
            next: 0,
        })
    }
}
