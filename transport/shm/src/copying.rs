//! On whose behalf a device copies.

use std::fmt;
use std::sync::Arc;

use moai_memory::{Domain, Hold, Region, Span};
use moai_transport::{Batch, PeerId};

/// All copies of an interface.
pub(crate) type Copies = moai_transport::Copies<Ticket>;

/// Buffers that are kept for the next copies: 4 MiB of the largest, some times what a device has in hand at a time.
pub(crate) const KEPT_BUFFERS: usize = 16;

/// What a copy belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    pub(crate) peer: PeerId,
    pub(crate) what: Copying,
}

/// What becomes of a copy.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Copying {
    /// The payload of a frame of a put of ours, to be sent.
    PutOut { frame: u64 },
    /// What a get of ours has asked for, which is in local memory then.
    GetIn { operation: u64 },
    /// A slice of an operation that a device of ours copies alone.
    Slice { operation: u64, step: Step },
    /// What a get of the peer has asked for, to be sent.
    GetOut { batch: Batch },
    /// The payload of a put of the peer, which is in registered memory then.
    PutIn { id: u64 },
}

/// How far a slice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A kernel copies it.
    Kernel,
    /// To a buffer, from which it goes on to device memory.
    ToHost,
    /// To a buffer, from which it goes on to memory of the processor.
    Landing,
    /// To where it belongs.
    Last,
}

impl Ticket {
    /// Whether registered memory is copied.
    pub(crate) fn is_for_peer(&self) -> bool {
        matches!(self.what, Copying::GetOut { .. } | Copying::PutIn { .. })
    }
}

/// Devices of this process that can import memory of peers.
#[derive(Clone, Default)]
pub(crate) struct Devices(pub(crate) Vec<Arc<dyn Domain>>);

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|device| device.id()))
            .finish()
    }
}

/// The device whose memory a region is.
#[inline]
pub(crate) fn device_of(region: &Region) -> Option<u64> {
    if region.kind().is_host_accessible() {
        return None;
    }
    device(&region.hold())
}

/// The same, of what is held.
pub(crate) fn device(hold: &Hold) -> Option<u64> {
    hold.domain().map(Domain::id)
}

/// Bytes of device memory.
pub(crate) fn span(hold: Hold, offset: u64, bytes: u32) -> Span {
    Span {
        hold,
        offset,
        bytes: bytes.into(),
    }
}
