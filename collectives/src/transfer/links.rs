//! Which connection carries which link, and what waits to be sent on it.

use std::collections::{BTreeSet, HashMap, VecDeque};

use moai_transport::{Interface, PeerId, Posted};

use crate::{
    limits::{CLOSE_NS, MAX_UNSENT_BYTES},
    protocol::node::LinkId,
};

/// Links and connections, and a queue for each.
#[derive(Debug, Default)]
pub(super) struct Links {
    next: u64,
    of: HashMap<PeerId, LinkId>,
    open: HashMap<LinkId, Open>,
    /// Links with something to send, or to close.
    unsent: BTreeSet<LinkId>,
}

#[derive(Debug)]
struct Open {
    peer: PeerId,
    messages: VecDeque<Vec<u8>>,
    bytes: usize,
    /// When it is cut, if what is queued has not gone out before.
    closes: Option<u64>,
    /// The connection was told to end.
    finishing: bool,
}

impl Links {
    /// A name for a connection that was made.
    pub(super) fn add(&mut self, peer: PeerId) -> LinkId {
        self.next += 1;
        let link = LinkId(self.next);
        self.of.insert(peer, link);
        self.open.insert(
            link,
            Open {
                peer,
                messages: VecDeque::new(),
                bytes: 0,
                closes: None,
                finishing: false,
            },
        );
        link
    }

    pub(super) fn link(&self, peer: PeerId) -> Option<LinkId> {
        self.of.get(&peer).copied()
    }

    /// The connection of a link that can be sent on.
    pub(super) fn peer(&self, link: LinkId) -> Option<PeerId> {
        let open = self.open.get(&link)?;
        (!open.finishing).then_some(open.peer)
    }

    /// A connection is gone; its link, if it had one.
    pub(super) fn remove(&mut self, peer: PeerId) -> Option<LinkId> {
        let link = self.of.remove(&peer)?;
        self.open.remove(&link);
        self.unsent.remove(&link);
        Some(link)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Queues a message.
    pub(super) fn send(&mut self, link: LinkId, message: Vec<u8>) {
        if let Some(open) = self.open.get_mut(&link)
            && open.closes.is_none()
        {
            open.bytes += message.len();
            open.messages.push_back(message);
            self.unsent.insert(link);
        }
    }

    /// Closes a link, once what is queued has gone out or some time has passed.
    pub(super) fn close(&mut self, link: LinkId, now_ns: u64) {
        if let Some(open) = self.open.get_mut(&link) {
            open.closes.get_or_insert(now_ns + CLOSE_NS);
            self.unsent.insert(link);
        }
    }

    /// Hands over what the interface takes; gives the links that were cut.
    pub(super) fn flush(
        &mut self,
        interface: &mut dyn Interface,
        now_ns: u64,
    ) -> Vec<(LinkId, &'static str)> {
        let mut cut = Vec::new();
        let unsent: Vec<LinkId> = self.unsent.iter().copied().collect();
        for link in unsent {
            let Some(open) = self.open.get_mut(&link) else {
                self.unsent.remove(&link);
                continue;
            };
            let peer = open.peer;
            while !open.finishing
                && let Some(message) = open.messages.front()
            {
                // An error means that the peer is gone, which is reported by its `closed`.
                if matches!(interface.send(peer, message), Ok(Posted::Busy)) {
                    break;
                }
                open.bytes -= message.len();
                open.messages.pop_front();
            }
            let (is_late, is_full) = (
                open.closes.is_some_and(|at| now_ns >= at),
                open.bytes > MAX_UNSENT_BYTES,
            );
            if is_late || is_full {
                interface.close(peer);
                self.remove(peer);
                cut.push((
                    link,
                    if is_full {
                        "it takes no messages"
                    } else {
                        "closed by this side"
                    },
                ));
            } else if open.messages.is_empty() {
                match open.closes {
                    None => drop(self.unsent.remove(&link)),
                    Some(_) if !open.finishing => {
                        open.finishing = true;
                        interface.finish(peer);
                    }
                    Some(_) => {}
                }
            }
        }
        cut
    }

    /// When a link is to be cut next.
    pub(super) fn next_cut(&self) -> Option<u64> {
        let closes = self
            .unsent
            .iter()
            .filter_map(|link| self.open.get(link)?.closes);
        closes.min()
    }

    /// Cuts a link at once.
    pub(super) fn cut(&mut self, link: LinkId, interface: &mut dyn Interface) {
        if let Some(open) = self.open.get(&link) {
            let peer = open.peer;
            interface.close(peer);
            self.remove(peer);
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<LinkId> {
        self.open.keys().copied().collect()
    }
}
