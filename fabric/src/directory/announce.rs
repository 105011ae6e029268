//! What this process announces, and how that stands.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use super::{
    Shared,
    entry::{EngineName, Node},
    etcd::Lease,
};

/// A node that is announced while this lives.
#[derive(Debug)]
pub struct Announcement {
    shared: Arc<Shared>,
    id: u64,
}

/// How an announcement stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// Not made yet.
    Pending,
    /// The source has it.
    Listed {
        /// Since when.
        since: Instant,
    },
    /// The source does not answer, and may have lost it.
    Unconfirmed {
        /// Since when.
        since: Instant,
        /// Why it does not answer.
        problem: String,
    },
}

/// An announcement as the asking thread has it.
#[derive(Debug)]
pub(super) struct Announced {
    pub(super) id: u64,
    pub(super) engine: EngineName,
    pub(super) node: Node,
    pub(super) standing: Standing,
    pub(super) lease: Option<Lease>,
    pub(super) renewed: Option<Instant>,
    /// Nobody wants it any more; the thread takes it back.
    pub(super) is_over: bool,
}

impl Announced {
    pub(super) fn new(engine: EngineName, node: Node) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            engine,
            node,
            standing: Standing::Pending,
            lease: None,
            renewed: None,
            is_over: false,
        }
    }
}

impl Announcement {
    pub(super) fn new(shared: Arc<Shared>, announced: &Announced) -> Self {
        Self {
            shared,
            id: announced.id,
        }
    }

    /// How it stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let announced = self.shared.announced();
        let own = announced.iter().find(|one| one.id == self.id);
        own.map_or(Standing::Pending, |one| one.standing.clone())
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        for one in self.shared.announced().iter_mut() {
            one.is_over |= one.id == self.id;
        }
        self.shared.ask();
    }
}
