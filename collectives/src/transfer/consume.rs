//! Pulling what one consumer rank is owed.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use moai_memory::Region;
use moai_translate::layout::Address;
use moai_transport::{Batch, Closed, Handler, Interface, Landing, PeerId, Piece, Reject};

use super::{DirtyPages, LEAST_RUN_BYTES, LINGER, Options, Outbox, Report};
use crate::{
    digest::DigestKey,
    execute::{Agreed, Runner},
    negotiate::Role,
    protocol::{Consumer, Expected, LinkId},
};

/// Pulls everything that consumer rank `rank` is owed into `pool`.
///
/// `address_of` says where a producer rank listens. `key` is the key of this transfer's digest, which
/// should be drawn at random; `transfer` names it in reports. `progress` is called with the bytes that
/// have landed so far, of how many.
///
/// # Panics
///
/// If the pool does not have the regions of the rank.
#[allow(clippy::too_many_arguments, reason = "what a transfer needs, once")]
pub fn consume(
    interface: &mut dyn Interface,
    agreed: &Arc<Agreed>,
    rank: u32,
    pool: &mut [Region],
    address_of: &dyn Fn(u32) -> Option<SocketAddr>,
    (transfer, key): (u64, u64),
    options: Options,
    progress: &mut dyn FnMut(u64, u64),
) -> Report {
    let start = Instant::now();
    let now = || start.elapsed().as_nanos() as u64;
    let pairs = agreed
        .agreement
        .pairs
        .iter()
        .filter(|pair| pair.target == rank);
    let pulls: Vec<Pull> = pairs
        .map(|pair| Pull {
            runner: Runner::new(Arc::clone(agreed), pair, Role::Consumer),
            runs: Vec::new(),
        })
        .collect();
    let total = pulls.iter().map(|pull| pull.runner.wire_bytes()).sum();
    let expected = pulls
        .iter()
        .map(|pull| expected(agreed, &pull.runner))
        .collect();
    let row = pulls
        .iter()
        .map(|pull| pull.runner.longest_row())
        .max()
        .unwrap_or(4);
    let deadline_ns = options.deadline.as_nanos() as u64;
    let agreement = *agreed.agreement.digest();
    let mut handler = Pulls {
        machine: Consumer::new(rank, agreement, (transfer, key), deadline_ns, expected),
        key: DigestKey::new(key, row),
        agreed: Arc::clone(agreed),
        pulls,
        pool,
        links: HashMap::new(),
        peers: HashMap::new(),
        report: Report::new(rank),
    };
    for link in 0..handler.pulls.len() {
        let source = handler.pulls[link].runner.pair().source;
        let Some(address) = address_of(source) else {
            handler
                .machine
                .give_up(format!("no address is known for producer rank {source}"));
            break;
        };
        match interface.connect(address) {
            Ok(peer) => {
                handler.links.insert(peer, link);
                handler.peers.insert(link, peer);
            }
            Err(error) => {
                handler
                    .machine
                    .closed(link, format!("cannot connect to {address}: {error}"));
                break;
            }
        }
    }
    let mut outbox = Outbox::default();
    let mut ended: Option<Instant> = None;
    loop {
        handler.machine.tick(now());
        outbox.extend(handler.machine.actions());
        outbox.flush(interface, |link| handler.peers.get(&link).copied());
        handler.note_paths(interface);
        let mut wait = options.deadline.saturating_sub(start.elapsed());
        if handler.machine.outcome().is_some() {
            let ended = *ended.get_or_insert_with(Instant::now);
            if handler.links.is_empty() || ended.elapsed() >= LINGER {
                break;
            }
            wait = Duration::from_millis(20);
        }
        if let Err(error) = interface.poll(Some(wait), &mut handler) {
            handler
                .machine
                .give_up(format!("the transport failed: {error}"));
        }
        progress(handler.report.bytes_wire, total);
    }
    // Whatever is still connected is cut, so that nothing can land after the outcome.
    for &peer in handler.peers.values() {
        interface.close(peer);
    }
    handler.report.elapsed_ns = ended
        .map_or_else(|| start.elapsed(), |ended| ended.duration_since(start))
        .as_nanos() as u64;
    let dirty = handler.dirty();
    let mut report = handler.report;
    if let Some(outcome) = handler.machine.outcome() {
        report.end(outcome, || dirty);
    }
    report
}

fn expected(agreed: &Agreed, runner: &Runner) -> Expected {
    let spans = &agreed.agreement.spans;
    Expected {
        rank: runner.pair().source,
        chunk_bytes: runner.chunks().iter().map(|chunk| chunk.bytes).collect(),
        chunk_step: runner.chunks().iter().map(|chunk| chunk.step).collect(),
        step_names: runner
            .pair()
            .steps
            .iter()
            .map(|step| spans[step.span].name.clone())
            .collect(),
    }
}

struct Pull {
    runner: Runner,
    /// Where the chunk that is landing goes: start within the chunk, place, bytes.
    runs: Vec<(u64, Address, u64)>,
}

struct Pulls<'a> {
    machine: Consumer,
    key: DigestKey,
    agreed: Arc<Agreed>,
    pulls: Vec<Pull>,
    pool: &'a mut [Region],
    links: HashMap<PeerId, LinkId>,
    peers: HashMap<LinkId, PeerId>,
    report: Report,
}

impl Pulls<'_> {
    fn link(&self, peer: PeerId) -> Result<LinkId, Reject> {
        self.links
            .get(&peer)
            .copied()
            .ok_or_else(|| Reject("this side connected to no such peer".into()))
    }

    fn note_paths(&mut self, interface: &dyn Interface) {
        if self.report.paths.len() == self.pulls.len() {
            return;
        }
        for (link, pull) in self.pulls.iter().enumerate().skip(self.report.paths.len()) {
            let Some(path) = self.peers.get(&link).and_then(|&peer| interface.path(peer)) else {
                return;
            };
            let source = pull.runner.pair().source;
            self.report.paths.push(format!(
                "producer {source}: {} ({})",
                path.provider, path.why
            ));
        }
    }

    /// Pages that chunks have begun to land in.
    fn dirty(&self) -> Vec<DirtyPages> {
        let mut pages: Vec<BTreeSet<u32>> =
            vec![BTreeSet::new(); self.agreed.consumer.groups.len()];
        for (link, pull) in self.pulls.iter().enumerate() {
            for chunk in 0..self.machine.touched(link) {
                pull.runner.pages(chunk, |group, page| {
                    pages[group].insert(page);
                });
            }
        }
        let groups = self.agreed.consumer.groups.iter().zip(pages);
        groups
            .filter(|(_, pages)| !pages.is_empty())
            .map(|(group, pages)| DirtyPages {
                group: group.name.clone(),
                pages: pages.into_iter().collect(),
            })
            .collect()
    }
}

impl Handler for Pulls<'_> {
    fn connected(&mut self, peer: PeerId, _incoming: bool) {
        if let Some(&link) = self.links.get(&peer) {
            self.machine.connected(link);
        }
    }

    fn message(&mut self, peer: PeerId, bytes: &[u8]) -> Result<(), Reject> {
        let link = self.link(peer)?;
        self.machine.message(link, bytes);
        Ok(())
    }

    fn landing(&mut self, peer: PeerId, batch: Batch) -> Result<Landing, Reject> {
        let link = self.link(peer)?;
        if !self.machine.landing(link, batch.id, batch.bytes) {
            return Err(Reject(format!(
                "chunk {} of {} bytes is not what comes next",
                batch.id, batch.bytes
            )));
        }
        let pull = &mut self.pulls[link];
        pull.runs.clear();
        let Some(runs) = pull.runner.runs(batch.id as usize, LEAST_RUN_BYTES) else {
            return Ok(Landing::Staged);
        };
        let mut at = 0;
        for (place, bytes) in runs {
            pull.runs.push((at, place, bytes));
            at += bytes;
        }
        Ok(Landing::Direct)
    }

    fn pieces(
        &mut self,
        peer: PeerId,
        _batch: Batch,
        from: u32,
        most: usize,
        out: &mut Vec<Piece>,
    ) -> Result<(), Reject> {
        let runs = &self.pulls[self.link(peer)?].runs;
        let from = u64::from(from);
        let first = runs.partition_point(|&(at, _, bytes)| at + bytes <= from);
        for &(at, place, bytes) in runs[first..].iter().take(most) {
            let skip = from.saturating_sub(at);
            out.push(Piece {
                region: place.region as u32,
                offset: place.byte + skip,
                bytes: (bytes - skip) as u32,
            });
        }
        Ok(())
    }

    fn regions(&mut self) -> &mut [Region] {
        self.pool
    }

    fn landed(&mut self, peer: PeerId, batch: Batch, staged: Option<&[u8]>) -> Result<(), Reject> {
        let link = self.link(peer)?;
        let (index, pull) = (batch.id as usize, &mut self.pulls[link]);
        if let Some(rows) = staged {
            let counts = pull.runner.scatter(index, rows, self.pool);
            self.report.saturated += counts.saturated;
            self.report.nan += counts.nan;
        } else {
            self.report.chunks_direct += 1;
        }
        let placed = pull.runner.digest_placed(index, self.pool, &self.key);
        let digest = match (placed, staged) {
            (Some(digest), _) => digest,
            (None, Some(rows)) => pull.runner.digest(index, rows, &self.key),
            (None, None) => {
                return Err(Reject(
                    "rows that are converted cannot be read into place".into(),
                ));
            }
        };
        let chunk = pull.runner.chunks()[index];
        let step = &pull.runner.pair().steps[chunk.step as usize];
        let rows = u64::from(step.heads.end - step.heads.start) * u64::from(chunk.tokens.count);
        let bytes = &self.agreed.agreement.carriages[step.span].row_bytes;
        self.report.bytes_wire += rows * bytes[1];
        self.report.bytes_written += rows * bytes[2];
        self.report.chunks += 1;
        self.machine.landed(link, digest);
        Ok(())
    }

    fn writable(&mut self, _peer: PeerId) {}

    fn closed(&mut self, peer: PeerId, why: Closed) {
        if let Some(link) = self.links.remove(&peer) {
            self.peers.remove(&link);
            self.machine.closed(link, why.to_string());
            tracing::debug!(reason = %why, "connection closed");
        }
    }
}
