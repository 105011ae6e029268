//! What a consumer does for one transfer: its parts, and where their chunks go.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use moai_memory::Region;
use moai_transport::Path;

use super::{
    DirtyPages, Report, Route,
    borrowed::Borrowed,
    device::{Placed, Placing},
};
use crate::{
    cost::Way,
    digest::DigestKey,
    execute::{Requested, Runner, Runs},
    limits::DEVICE_PATIENCE_MS,
    protocol::node::{Dirty, LinkId},
};

/// A transfer whose plan is made.
#[derive(Debug)]
pub(super) struct Pulling {
    pub(super) requested: Arc<Requested>,
    pub(super) parts: Vec<Part>,
    pub(super) key: Arc<DigestKey>,
    /// The same, for pages that are mapped.
    pub(super) lent_key: DigestKey,
    pub(super) started: Instant,
    pub(super) report: Report,
    /// Bytes of chunks that are placed, as they would go over a wire, and of all of them.
    pub(super) placed: u64,
    pub(super) total: u64,
}

/// A part of it: a pair of ranks.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) runner: Runner,
    pub(super) link: Option<LinkId>,
    /// Chunks that are being read straight into their pages, and where their bytes go.
    pub(super) landings: Vec<(u64, Runs)>,
    /// Chunks that are being collected.
    pub(super) staged: Vec<u64>,
    /// Lists of earlier landings, to be used again.
    pub(super) spare: Vec<Runs>,
    pub(super) borrowed: Option<Borrowed>,
    /// Where the pool lies, if the processor cannot load from it.
    pub(super) device: Option<Placing>,
    /// Nothing of it is to be written any more.
    pub(super) is_fenced: bool,
    pub(super) path: Option<Path>,
    /// Why its rows take the way they take.
    pub(super) why: Option<String>,
    /// Whether something faster could not be had.
    pub(super) fell_back: bool,
}

impl Part {
    pub(super) fn new(runner: Runner, device: Option<Placing>) -> Self {
        Self {
            runner,
            link: None,
            landings: Vec::new(),
            staged: Vec::new(),
            spare: Vec::new(),
            borrowed: None,
            device,
            is_fenced: false,
            path: None,
            why: None,
            fell_back: false,
        }
    }

    /// Where the bytes of a chunk that is landing go.
    pub(super) fn runs(&self, chunk: u64) -> &[(u64, moai_translate::layout::Address, u64)] {
        let landing = self.landings.iter().find(|(id, _)| *id == chunk);
        landing.map_or(&[], |(_, runs)| runs)
    }

    /// A chunk is not read into its pages any more; whether it was.
    pub(super) fn end_landing(&mut self, chunk: u64) -> bool {
        let at = self.landings.iter().position(|(id, _)| *id == chunk);
        if let Some(at) = at {
            self.spare.push(self.landings.swap_remove(at).1);
        }
        at.is_some()
    }

    /// A chunk is collected; whether it was wanted.
    pub(super) fn end_staged(&mut self, chunk: u64) -> bool {
        let at = self.staged.iter().position(|&id| id == chunk);
        if let Some(at) = at {
            self.staged.swap_remove(at);
        }
        at.is_some()
    }

    pub(super) fn fall_back(&mut self, why: &str) {
        tracing::warn!(reason = %why, "a slower path than could be");
        self.why = Some(why.to_owned());
        self.fell_back = true;
    }

    /// What carried its bytes, if it was linked to.
    fn route(&mut self) -> Option<Route> {
        let way = match self.borrowed {
            Some(_) => Way::Mapped,
            None => Way::Sent,
        };
        let pair = self.runner.pair();
        let ranks = (pair.target, pair.source);
        let route = Route::new(ranks, self.path.take()?, way, self.why.as_deref());
        Some(route.fell_back(self.fell_back))
    }

    /// Sends rows to the device, which counts them as placed once they were found in their pages. Waits until it has
    /// room, which is what holds back producers that are faster; what it has done meanwhile goes to `settled`.
    pub(super) fn place(
        &mut self,
        index: usize,
        rows: &[u8],
        digest: u64,
        settled: &mut Vec<Placed>,
    ) -> Result<(), String> {
        let rank = self.runner.pair().source;
        let Some(device) = &mut self.device else {
            return Ok(());
        };
        let patience = Duration::from_millis(DEVICE_PATIENCE_MS);
        let since = Instant::now();
        while !device.place(rank, index, rows, digest) {
            let Some(left) = patience.checked_sub(since.elapsed()) else {
                return Err(format!(
                    "it had no room for a chunk in {DEVICE_PATIENCE_MS} ms"
                ));
            };
            device.wait(left);
            while let Some(placed) = device.completed() {
                settled.push(placed?);
            }
        }
        Ok(())
    }
}

impl Pulling {
    /// A chunk lies in its pages.
    pub(super) fn placed(&mut self, part: usize, index: usize) {
        let [_, wire, written] = self.parts[part].runner.row_bytes(index);
        self.report.bytes_written += written;
        self.report.chunks += 1;
        self.placed += wire;
        let now = self.started.elapsed().as_nanos() as u64;
        if self.report.first_ns == 0 {
            self.report.first_ns = now;
        }
        self.report.last_ns = now;
    }

    /// Pages that chunks have begun to land in.
    pub(super) fn dirty(&self, touched: &[Dirty]) -> Vec<DirtyPages> {
        let groups = &self.requested.agreed().consumer.groups;
        let mut pages: BTreeSet<(u32, usize, u32)> = BTreeSet::new();
        for dirty in touched {
            let Some(part) = self.parts.get(dirty.part as usize) else {
                continue;
            };
            let rank = part.runner.pair().target;
            for &chunk in &dirty.chunks {
                part.runner.pages(chunk as usize, |group, page| {
                    pages.insert((rank, group, page));
                });
            }
        }
        let mut lists: Vec<DirtyPages> = Vec::new();
        for (rank, group, page) in pages {
            let name = &groups[group].name;
            match lists.last_mut() {
                Some(list) if list.rank == rank && list.group == *name => list.pages.push(page),
                _ => lists.push(DirtyPages {
                    rank,
                    group: name.clone(),
                    pages: vec![page],
                }),
            }
        }
        lists
    }

    /// What carried the bytes of each part that was linked to.
    pub(super) fn routes(&mut self) -> Vec<Route> {
        self.parts.iter_mut().filter_map(Part::route).collect()
    }
}

/// The regions of one rank among all that a node lends.
pub(super) fn pool<'a>(
    memory: &'a mut [Region],
    rank: &std::ops::Range<usize>,
) -> &'a mut [Region] {
    &mut memory[rank.clone()]
}
