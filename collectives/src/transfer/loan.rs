//! Pages of a producer rank that consumers map.

use moai_memory::Region;
use moai_transport::{Interface, PeerId, RegistrationId, Rights};

use crate::protocol::node::LentKey;

/// Registrations of a rank's regions, for mapping.
#[derive(Debug, Default)]
pub(super) struct Loan {
    registered: Vec<(u32, RegistrationId)>,
}

impl Loan {
    /// Registers every region that holds bytes, unless that is done, and finds the keys by which `peer` can map them. The
    /// first region of the rank is number `first` of those that are lent to the interface.
    pub(super) fn keys(
        &mut self,
        interface: &mut dyn Interface,
        peer: PeerId,
        (first, pool): (u32, &[Region]),
    ) -> Result<Vec<LentKey>, String> {
        if self.registered.is_empty() {
            let rights = Rights::READ.and(Rights::MAP);
            for (index, region) in pool.iter().enumerate().filter(|(_, r)| !r.is_empty()) {
                let index = index as u32;
                match interface.register(first + index, region, rights) {
                    Ok(id) => self.registered.push((index, id)),
                    Err(error) => {
                        self.end(interface);
                        return Err(format!("region {index} cannot be lent: {error}"));
                    }
                }
            }
        }
        let keys = self.registered.iter().map(|&(index, id)| {
            let key = interface.remote_key(peer, id);
            key.map(|key| (index, key))
                .map_err(|error| format!("region {index} cannot be lent: {error}"))
        });
        keys.collect()
    }

    /// Takes all of it back.
    pub(super) fn end(&mut self, interface: &mut dyn Interface) {
        for (_, id) in self.registered.drain(..) {
            // Stale only if the interface has closed, and then it is taken back.
            let _ = interface.deregister(id);
        }
    }
}
