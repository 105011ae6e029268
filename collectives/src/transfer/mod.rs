//! Live transfers: the protocol's state machines, connected to a transport and to memory.
//!
//! [`produce`] serves one producer rank until every consumer rank it owes something has said how it
//! ended; [`consume`] pulls everything that one consumer rank is owed. Both end with a [`Report`] by
//! their deadline, whatever the other side does. Pools may lie where the processor cannot load from (`device`).

mod borrowed;
mod consume;
mod device;
mod loan;
mod pace;
mod produce;
mod report;
mod serve;

use std::{collections::VecDeque, time::Duration};

use moai_transport::{Interface, PeerId, Posted};

pub use consume::{Connect, Reached, Unreached, consume};
pub use produce::produce;
pub use report::{DirtyPages, Ended, Report, Route};

use crate::{
    cost::Rates,
    protocol::{Action, LinkId},
};

/// Knobs of one transfer.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "callers write these out")]
pub struct Options {
    /// From the call to the outcome, at most.
    pub deadline: Duration,
    /// Payload bytes a second that a producer rank sends at most, over all its consumers, or that a consumer rank
    /// copies from mapped memory, counted as they would be sent; for links that are shared with something more important.
    pub max_bytes_per_second: Option<u64>,
    /// Whether a consumer may map its producers' pages, where the transport can and [`cost`](crate::cost) is for it.
    pub map: bool,
    /// What to choose by.
    pub rates: Rates,
}

/// How long a rank goes on after its outcome is known, so that the other side hears of it.
const LINGER: Duration = Duration::from_millis(250);

/// Bytes copied from mapped memory, or digested where they lie, before the transport gets its turn: a quarter of a
/// millisecond, which a message can wait.
const TURN_BYTES: u64 = 2 << 20;

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
    fn extend(&mut self, actions: &mut Vec<Action>) {
        self.waiting.extend(actions.drain(..));
    }

    /// Hands over what the transport takes. Links that are gone are skipped.
    fn flush(&mut self, interface: &mut dyn Interface, peer_of: impl Fn(LinkId) -> Option<PeerId>) {
        self.offer(|action| {
            let Some(peer) = peer_of(link_of(action)) else {
                return true;
            };
            match action {
                // An error means that the peer is gone, which is reported by its `closed`.
                Action::Send(_, message) => {
                    let sent = interface.send(peer, &message.encode());
                    return !matches!(sent, Ok(Posted::Busy));
                }
                Action::Finish(_) => interface.finish(peer),
                Action::Drop(_) => interface.close(peer),
            }
            true
        });
    }

    /// Offers what waits, in order, to `take`, which says whether it took it. What it did not take stays, and so does
    /// all behind that of the same link: a peer that reads nothing holds up nobody else.
    fn offer(&mut self, mut take: impl FnMut(&Action) -> bool) {
        let mut full: Vec<LinkId> = Vec::new();
        self.waiting.retain(|action| {
            let link = link_of(action);
            if full.contains(&link) {
                return true;
            }
            let taken = take(action);
            if !taken {
                full.push(link);
            }
            !taken
        });
    }
}

fn link_of(action: &Action) -> LinkId {
    match action {
        Action::Send(link, _) | Action::Finish(link) | Action::Drop(link) => *link,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_without_room_holds_up_nobody_else_and_keeps_its_order() {
        let mut outbox = Outbox::default();
        let actions = [
            Action::Finish(1),
            Action::Drop(1),
            Action::Finish(2),
            Action::Drop(3),
        ];
        outbox.extend(&mut actions.to_vec());
        let mut taken = Vec::new();
        outbox.offer(|action| {
            let has_room = link_of(action) != 1;
            taken.extend(has_room.then(|| action.clone()));
            has_room
        });
        assert_eq!(taken, actions[2..]);
        outbox.offer(|action| {
            taken.push(action.clone());
            true
        });
        assert_eq!(taken[2..], actions[..2]);
        assert!(outbox.waiting.is_empty());
    }
}
