//! When something is due.

use std::collections::{BTreeMap, BTreeSet};

use super::{LinkId, ServeId, TransferId};

/// What becomes due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Link(LinkId),
    /// A node of an engine, by its place in the table of engines.
    Dial(usize, u32),
    Offer(u64),
    Grant(u64),
    Serve(ServeId),
    Transfer(TransferId),
}

/// One time for each of them, earliest first.
#[derive(Debug, Default)]
pub(super) struct Timers {
    order: BTreeSet<(u64, Timer)>,
    at: BTreeMap<Timer, u64>,
}

impl Timers {
    pub(super) fn set(&mut self, timer: Timer, at_ns: u64) {
        if let Some(old) = self.at.insert(timer, at_ns) {
            self.order.remove(&(old, timer));
        }
        self.order.insert((at_ns, timer));
    }

    pub(super) fn clear(&mut self, timer: Timer) {
        if let Some(old) = self.at.remove(&timer) {
            self.order.remove(&(old, timer));
        }
    }

    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.at.contains_key(&timer)
    }

    pub(super) fn next(&self) -> Option<u64> {
        self.order.first().map(|&(at, _)| at)
    }

    /// Takes out one that is due.
    pub(super) fn due(&mut self, now_ns: u64) -> Option<Timer> {
        let &(at, timer) = self.order.first()?;
        if at > now_ns {
            return None;
        }
        self.clear(timer);
        Some(timer)
    }

    pub(super) fn len(&self) -> usize {
        self.at.len()
    }
}
