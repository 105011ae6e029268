//! What the provider can do.

use moai_memory::MemoryKind;
use moai_transport::{Capabilities, Operation, Reach, limits};

use crate::TcpConfig;

/// What an interface opened with `config` can do.
///
/// The peer's process takes part in every put and get: it reads them from its sockets while it polls.
pub(crate) fn capabilities(config: &TcpConfig) -> Capabilities {
    let operations = [Operation::Put, Operation::Get, Operation::Send];
    let reach = |kind: MemoryKind| match kind.is_host_accessible() {
        true => Reach::Direct,
        // Puts and gets by way of our buffers, batches by way of the caller's: they land staged.
        false => Reach::Staged,
    };
    Capabilities {
        reach: MemoryKind::ALL
            .into_iter()
            .flat_map(|kind| operations.map(|operation| (operation, kind, reach(kind))))
            .collect(),
        one_sided: false,
        max_message: limits::MAX_MESSAGE_BYTES,
        max_batch: config.staging_bytes.min(limits::MAX_BATCH_BYTES),
        max_operation: limits::MAX_OPERATION_BYTES,
        lanes: config.lanes,
        encrypted: config.security.is_on() && config.seal_payload,
    }
}
