//! Live transfers: the protocol's state machines, connected to a transport and to memory.
//!
//! [`produce`] serves one producer rank until every consumer rank it owes something has said how it
//! ended; [`consume`] pulls everything that one consumer rank is owed. Both end with a [`Report`] by
//! their deadline, whatever the other side does.

mod consume;
mod produce;
mod report;

use std::{collections::VecDeque, time::Duration};

use moai_transport::{Interface, PeerId, Posted};

pub use consume::consume;
pub use produce::produce;
pub use report::{DirtyPages, Ended, Report};

use crate::protocol::{Action, LinkId};

/// Knobs of one transfer.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::exhaustive_structs, reason = "callers write these out")]
pub struct Options {
    /// From the call to the outcome, at most.
    pub deadline: Duration,
    /// Payload bytes a second that a producer rank sends at most, over all its consumers; for links that
    /// are shared with something more important.
    pub max_bytes_per_second: Option<u64>,
}

/// How long a rank goes on after its outcome is known, so that the other side hears of it.
const LINGER: Duration = Duration::from_millis(250);

/// Mean run from which a chunk is read straight into its pages. Below, a vectored read costs more per
/// byte than reading into one buffer and placing the rows from there; 1 KiB is what one element of
/// a 64-element vector must bring for a call to move a usual chunk's quarter.
const LEAST_RUN_BYTES: u64 = 1024;

/// What a machine wants, in order, until the transport takes it.
#[derive(Debug, Default)]
struct Outbox {
    waiting: VecDeque<Action>,
}

impl Outbox {
    fn extend(&mut self, actions: Vec<Action>) {
        self.waiting.extend(actions);
    }

    /// Hands over what the transport takes. Links that are gone are skipped.
    fn flush(&mut self, interface: &mut dyn Interface, peer_of: impl Fn(LinkId) -> Option<PeerId>) {
        while let Some(action) = self.waiting.front() {
            match action {
                Action::Send(link, message) => {
                    let Some(peer) = peer_of(*link) else {
                        self.waiting.pop_front();
                        continue;
                    };
                    // An error means that the peer is gone, which is reported by its `closed`.
                    if let Ok(Posted::Busy) = interface.send(peer, &message.encode()) {
                        return;
                    }
                }
                Action::Finish(link) => {
                    if let Some(peer) = peer_of(*link) {
                        interface.finish(peer);
                    }
                }
                Action::Drop(link) => {
                    if let Some(peer) = peer_of(*link) {
                        interface.close(peer);
                    }
                }
            }
            self.waiting.pop_front();
        }
    }
}
