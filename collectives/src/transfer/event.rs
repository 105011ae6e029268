//! What a driver tells whoever uses it.

use std::sync::Arc;

use super::Report;
use crate::protocol::{
    handle::Handle,
    node::{Reason, TransferId},
};

/// Something that happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A node can be talked to.
    PeerUp {
        /// Name of the engine.
        engine: Arc<str>,
        /// Its node.
        node: u32,
        /// Its life.
        epoch: u64,
    },
    /// It cannot any more.
    PeerLost {
        /// Name of the engine.
        engine: Arc<str>,
        /// Its node.
        node: u32,
        /// Why.
        why: String,
    },
    /// A later life of this node's engine is known to a peer: this one should end.
    Superseded {
        /// Who said so.
        engine: Arc<str>,
    },
    /// Consumer: all of a layer is placed, with equal digests. The transfer may still fail.
    Layer {
        /// The transfer.
        transfer: TransferId,
        /// Global layer.
        layer: u32,
    },
    /// Consumer: how a transfer ended. Once.
    Ended {
        /// The transfer.
        transfer: TransferId,
        /// How it went.
        report: Box<Report>,
        /// Whether its pages are free, or the request's. If not they are quarantined until [`Fenced`](Self::Fenced).
        fenced: bool,
    },
    /// Consumer: the pages of a transfer that had ended without its fence are free.
    Fenced {
        /// The transfer.
        transfer: TransferId,
    },
    /// Consumer: a producer has begun to fill a grant.
    Invited {
        /// The grant.
        grant: u64,
        /// The transfer that does it.
        transfer: TransferId,
        /// The producer's offer.
        handle: Handle,
    },
    /// Consumer: the pages of a grant that no transfer took are free.
    Returned {
        /// The grant.
        grant: u64,
        /// Why.
        reason: Reason,
    },
    /// Producer: the pages of an offer are free.
    Released {
        /// The offer.
        offer: u64,
        /// Why: [`Reason::Consumed`] if all of it was pulled.
        reason: Reason,
        /// How it went, over all that was served from it.
        report: Box<Report>,
    },
    /// Producer: an offer has ended, and its pages may still be read: [`Released`](Self::Released) follows.
    Quarantined {
        /// The offer.
        offer: u64,
        /// Why it ended.
        reason: Reason,
    },
    /// Producer: a part of an offer was served, and this is how that ended.
    Served {
        /// The offer.
        offer: u64,
        /// Consumer engine.
        engine: Arc<str>,
        /// Rank of this node, and of the consumer.
        ranks: (u32, u32),
        /// Why it failed, if it did.
        failure: Option<(Reason, String)>,
    },
    /// Producer: a push was not taken.
    Declined {
        /// The offer.
        offer: u64,
        /// The consumer engine.
        engine: Arc<str>,
        /// Why.
        reason: Reason,
        /// The same for people.
        why: String,
    },
}
