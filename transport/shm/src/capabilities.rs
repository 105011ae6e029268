//! What shared memory can do.

use moai_memory::MemoryKind;
use moai_transport::{Capabilities, Operation, Reach, limits};

use crate::config::ShmConfig;

/// Of an interface that is opened so, with devices that map memory of peers or without.
pub(crate) fn capabilities(config: &ShmConfig, maps_devices: bool) -> Capabilities {
    let foreign = if config.foreign {
        Reach::Direct
    } else {
        Reach::Staged
    };
    let mut reach = vec![(Operation::Map, MemoryKind::Shared, Reach::Direct)];
    for (kind, one_sided) in [
        (MemoryKind::Host, foreign),
        (MemoryKind::Pinned, foreign),
        (MemoryKind::Shared, Reach::Direct),
    ] {
        reach.extend([
            (Operation::Send, kind, Reach::Direct),
            (Operation::Put, kind, one_sided),
            (Operation::Get, kind, one_sided),
        ]);
    }
    // From one device's memory to another's; with the processor's on one side it goes through a buffer, as batches do.
    for (operation, how) in [
        (Operation::Send, Reach::Staged),
        (Operation::Put, Reach::Direct),
        (Operation::Get, Reach::Direct),
    ] {
        reach.push((operation, MemoryKind::Sim, how));
    }
    if maps_devices {
        reach.push((Operation::Map, MemoryKind::Sim, Reach::Direct));
    }
    let longest = moai_transport::sync::ring::longest_frame(config.staging_bytes);
    Capabilities {
        reach,
        one_sided: true,
        max_message: limits::MAX_MESSAGE_BYTES,
        max_batch: limits::MAX_BATCH_BYTES.min(longest),
        max_operation: limits::MAX_OPERATION_BYTES,
        lanes: 1,
        encrypted: false,
    }
}
