//! Pulling what one consumer rank is owed.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use moai_memory::Region;
use moai_transport::{Batch, Closed, Handler, Interface, Landing, Path, PeerId, Piece, Reject};

use super::{
    DirtyPages, LEAST_RUN_BYTES, LINGER, Options, Outbox, Report, Route, TURN_BYTES,
    borrowed::Borrowed,
    device::{self, Placed, Placing},
    pace::Pace,
};
use crate::{
    cost::{self, Way},
    digest::DigestKey,
    execute::{Requested, Runner, Runs},
    negotiate::Role,
    protocol::{Consumer, Expected, LinkId, LinkState},
};

/// A producer rank that is being connected to.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::exhaustive_structs, reason = "callers write these out")]
pub struct Reached {
    /// The connection.
    pub peer: PeerId,
    /// Whether memory of the peer can be mapped, as far as the transport knows.
    pub can_map: bool,
}

/// Why a producer rank cannot be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "callers write these out")]
pub enum Unreached {
    /// No transport that may be used leads there.
    NoPath(String),
    /// One does, and it failed.
    Lost(String),
}

/// Starts connecting to a producer rank, at whatever address of it is best; or says why it cannot.
pub type Connect<'a, I> = &'a mut dyn FnMut(&mut I, u32) -> Result<Reached, Unreached>;

/// Pulls everything that consumer rank `rank` is owed into `pool`.
///
/// `connect` connects to a producer rank. `key` is the key of this transfer's digest, which
/// should be drawn at random; `transfer` names it in reports. `progress` is called with the bytes that
/// are placed so far, of how many, counted as they would go over a wire.
///
/// A pool of a device's memory is written by jobs on a stream of its own, which has ended when this returns.
///
/// # Panics
///
/// If the pool does not have the regions of the rank.
#[allow(clippy::too_many_arguments, reason = "what a transfer needs, once")]
pub fn consume<I: Interface>(
    interface: &mut I,
    requested: &Arc<Requested>,
    rank: u32,
    pool: &mut [Region],
    connect: Connect<'_, I>,
    (transfer, key): (u64, u64),
    options: &Options,
    progress: &mut dyn FnMut(u64, u64),
) -> Report {
    let start = Instant::now();
    let now = || start.elapsed().as_nanos() as u64;
    let agreement = &requested.agreed().agreement;
    let pairs = agreement.pairs.iter().filter(|pair| pair.target == rank);
    let runners: Vec<Runner> = pairs
        .map(|pair| Runner::new(requested, pair, Role::Consumer))
        .collect();
    let row = runners.iter().map(Runner::longest_row).max().unwrap_or(4);
    let total = runners.iter().map(Runner::wire_bytes).sum();
    let on_device = { &*pool }
        .iter()
        .find(|region| !region.kind().is_host_accessible());
    let on_device = on_device.map(Region::kind);
    let (mut links, mut peers) = (HashMap::new(), HashMap::new());
    let (mut expected, mut pulls, mut unreached) = (Vec::new(), Vec::new(), None);
    for (link, runner) in runners.into_iter().enumerate() {
        let mut pull = Pull::new(runner);
        let mut map = false;
        match connect(interface, pull.runner.pair().source) {
            Ok(reached) => {
                links.insert(reached.peer, link);
                peers.insert(link, reached.peer);
                if let Some(kind) = on_device {
                    pull.why = Some(format!("pages in {kind} memory are not mapped into"));
                } else if options.map && reached.can_map {
                    let spans =
                        cost::bytes_by_span(agreement, pull.runner.pair(), pull.runner.chunks());
                    let choice = cost::choose(agreement, &spans, &options.rates, true);
                    map = choice.way == Way::Mapped;
                    pull.why = Some(choice.reason);
                }
            }
            Err(why) => unreached = unreached.or(Some((link, why))),
        }
        expected.push(expect(requested, &pull.runner, map));
        pulls.push(pull);
    }
    let deadline_ns = options.deadline.as_nanos() as u64;
    let digest_key = DigestKey::new(key, row).covering(requested.coverage());
    let digest_key = Arc::new(digest_key);
    let kernels = || pulls.iter().map(|pull| pull.runner.again()).collect();
    let placing = Placing::new(pool, kernels, &digest_key);
    let mut handler = Pulls {
        machine: Consumer::new(
            rank,
            requested.digest(),
            (transfer, key),
            deadline_ns,
            expected,
        ),
        key: digest_key,
        requested: Arc::clone(requested),
        pulls,
        pool,
        device: None,
        clock: (start, options.deadline),
        links,
        peers,
        placed: 0,
        report: Report::new(rank),
    };
    match unreached {
        Some((link, Unreached::NoPath(why))) => handler.machine.no_path(link, why),
        Some((link, Unreached::Lost(why))) => handler.machine.closed(link, why),
        None => {}
    }
    match placing {
        Ok(placing) => handler.device = placing,
        Err(why) => handler.machine.device_failed(why),
    }
    let mut outbox = Outbox::default();
    let mut pace = Pace::new(options.max_bytes_per_second);
    let mut ended: Option<Instant> = None;
    loop {
        handler.settle();
        progress(handler.placed, total);
        handler.machine.tick(now());
        handler.borrow(interface);
        let copied = handler.copy(&mut pace);
        outbox.extend(handler.machine.actions());
        outbox.flush(interface, |link| handler.peers.get(&link).copied());
        handler.note_paths(interface);
        let mut wait = options.deadline.saturating_sub(start.elapsed());
        match copied {
            Copied::Some => wait = Duration::ZERO,
            Copied::Not(Some(pause)) => wait = wait.min(pause),
            Copied::Not(None) => {}
        }
        if handler.device.as_ref().is_some_and(Placing::is_busy) {
            wait = wait.min(device::TURN);
        }
        if handler.machine.outcome().is_some() {
            // Ends its stream: nothing is written any more.
            handler.device = None;
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
    }
    // Whatever is still connected is cut, so that nothing can land after the outcome.
    for &peer in handler.peers.values() {
        interface.close(peer);
    }
    handler.report.elapsed_ns = ended
        .map_or_else(|| start.elapsed(), |ended| ended.duration_since(start))
        .as_nanos() as u64;
    let dirty = handler.dirty();
    let routes = handler.routes();
    let mut report = handler.report;
    report.routes = routes;
    if let Some(outcome) = handler.machine.outcome() {
        report.end(outcome, || dirty);
    }
    report
}

fn expect(requested: &Requested, runner: &Runner, map: bool) -> Expected {
    let pair = runner.pair();
    let chunks = runner.chunks();
    // Sums are compared step by step and layer by layer, so that a difference names both.
    let names = (0..pair.steps.len()).flat_map(|step| {
        let (layers, _) = chunks.step(step);
        layers
            .iter()
            .map(move |&layer| runner.part_name(step, layer))
    });
    let producer = &requested.agreed().producer;
    Expected {
        rank: pair.source,
        chunk_bytes: chunks.iter().map(|chunk| chunk.bytes).collect(),
        chunk_step: chunks.iter().map(|chunk| chunk.part).collect(),
        step_names: names.collect(),
        regions: producer.ranks[pair.source as usize].regions.len() as u32,
        map,
    }
}

/// Chunks of one link that are read straight into their pages at the same time, at most: one for each connection that
/// its payload can be spread over. Further ones are collected first.
const MAX_DIRECT: usize = moai_transport::limits::MAX_LANES as usize;

struct Pull {
    runner: Runner,
    /// Chunks that are being read straight into their pages, and where their bytes go.
    landings: Vec<(u64, Runs)>,
    /// Lists of earlier landings, to be used again.
    spare: Vec<Runs>,
    borrowed: Option<Borrowed>,
    path: Option<Path>,
    /// Why its rows take the way they take.
    why: Option<String>,
    /// Whether something faster could not be had.
    fell_back: bool,
}

impl Pull {
    fn new(runner: Runner) -> Self {
        Self {
            runner,
            landings: Vec::new(),
            spare: Vec::new(),
            borrowed: None,
            path: None,
            why: None,
            fell_back: false,
        }
    }

    /// Where the bytes of a chunk that is landing go.
    fn runs(&self, chunk: u64) -> &[(u64, moai_translate::layout::Address, u64)] {
        let landing = self.landings.iter().find(|(id, _)| *id == chunk);
        landing.map_or(&[], |(_, runs)| runs)
    }

    fn forget(&mut self, chunk: u64) {
        if let Some(at) = self.landings.iter().position(|(id, _)| *id == chunk) {
            self.spare.push(self.landings.swap_remove(at).1);
        }
    }

    fn fall_back(&mut self, why: String) {
        tracing::warn!(reason = %why, "a slower path than could be");
        self.why = Some(why);
        self.fell_back = true;
    }
}

/// What became of mapped pages in one turn.
enum Copied {
    /// Some were copied.
    Some,
    /// None were; some may be after a pause.
    Not(Option<Duration>),
}

struct Pulls<'a> {
    machine: Consumer,
    key: Arc<DigestKey>,
    requested: Arc<Requested>,
    pulls: Vec<Pull>,
    pool: &'a mut [Region],
    /// Where the pool lies, if the processor cannot load from it.
    device: Option<Placing>,
    /// When it started, and how long it may take.
    clock: (Instant, Duration),
    links: HashMap<PeerId, LinkId>,
    peers: HashMap<LinkId, PeerId>,
    /// Bytes of chunks that are placed, as they would go over a wire.
    placed: u64,
    report: Report,
}

impl Pulls<'_> {
    fn link(&self, peer: PeerId) -> Result<LinkId, Reject> {
        self.links
            .get(&peer)
            .copied()
            .ok_or_else(|| Reject("this side connected to no such peer".into()))
    }

    /// Maps the pages that producers have lent.
    fn borrow(&mut self, interface: &mut dyn Interface) {
        for (link, pull) in self.pulls.iter_mut().enumerate() {
            let (Some(keys), Some(&peer)) = (self.machine.lent(link), self.peers.get(&link)) else {
                continue;
            };
            if pull.borrowed.is_some() {
                continue;
            }
            match Borrowed::new(interface, peer, &self.requested, &pull.runner, keys) {
                Ok(borrowed) => pull.borrowed = Some(borrowed),
                Err(why) => {
                    self.machine.unmapped(link, why.clone());
                    pull.fall_back(why);
                }
            }
        }
    }

    /// Copies some chunks of mapped pages.
    fn copy(&mut self, pace: &mut Pace) -> Copied {
        let mut copied = Copied::Not(None);
        for link in 0..self.pulls.len() {
            let mut bytes = 0;
            while bytes < TURN_BYTES && self.machine.state(link) == LinkState::Mapped {
                let pull = &mut self.pulls[link];
                let Some(borrowed) = &mut pull.borrowed else {
                    break;
                };
                let index = borrowed.next;
                if index == borrowed.copy.chunks().len() {
                    break;
                }
                if let Some(pause) = pace.pause() {
                    if let Copied::Not(_) = copied {
                        copied = Copied::Not(Some(pause));
                    }
                    break;
                }
                let Some(chunk) = borrowed.copy.chunks().get(index) else {
                    break;
                };
                let wire = chunk.bytes;
                if !self.machine.landing(link, index as u64, wire) {
                    break;
                }
                borrowed.next += 1;
                let (counts, digest) = { &mut borrowed.copy }.copy_digested(
                    index,
                    &borrowed.regions,
                    self.pool,
                    &self.key,
                );
                let [read, ..] = pull.runner.row_bytes(index);
                pace.add(wire.into());
                bytes += read;
                self.report.saturated += counts.saturated;
                self.report.nan += counts.nan;
                self.report.bytes_mapped += read;
                self.report.chunks_mapped += 1;
                self.placed(link, index, digest);
                copied = Copied::Some;
            }
        }
        copied
    }

    /// Takes in what the device has done.
    fn settle(&mut self) {
        while let Some(placed) = self.device.as_mut().and_then(Placing::completed) {
            match placed {
                Ok(Placed {
                    link,
                    index,
                    digest,
                    counts,
                }) => {
                    self.report.saturated += counts.saturated;
                    self.report.nan += counts.nan;
                    self.placed(link, index, digest);
                }
                Err(why) => return self.machine.device_failed(why),
            }
        }
    }

    /// Sends rows to the device, which counts them as placed once they were found in their pages. Waits until it has
    /// room, which is what holds back producers that are faster.
    fn place(&mut self, link: LinkId, index: usize, rows: &[u8]) {
        let runner = &self.pulls[link].runner;
        let (rank, digest) = (runner.pair().source, runner.digest(index, rows, &self.key));
        let (start, deadline) = self.clock;
        while self.machine.outcome().is_none() {
            let Some(device) = &mut self.device else {
                return;
            };
            if device.place((link, rank), index, rows, digest) {
                return;
            }
            let elapsed = start.elapsed();
            self.machine.tick(elapsed.as_nanos() as u64);
            device.wait(deadline.saturating_sub(elapsed));
            self.settle();
        }
    }

    /// A chunk lies in its pages.
    fn placed(&mut self, link: LinkId, index: usize, digest: u64) {
        let [_, wire, written] = self.pulls[link].runner.row_bytes(index);
        self.report.bytes_written += written;
        self.report.chunks += 1;
        self.placed += wire;
        self.machine.landed(link, index as u64, digest);
    }

    fn note_paths(&mut self, interface: &dyn Interface) {
        for (link, pull) in self.pulls.iter_mut().enumerate() {
            if pull.path.is_none()
                && let Some(&peer) = self.peers.get(&link)
                && !matches!(self.machine.state(link), LinkState::Connecting)
            {
                pull.path = interface.path(peer);
            }
        }
    }

    /// What carried the bytes of each producer rank that was reached.
    fn routes(&mut self) -> Vec<Route> {
        let route = |pull: &mut Pull| {
            let way = match pull.borrowed {
                Some(_) => Way::Mapped,
                None => Way::Sent,
            };
            let peer = pull.runner.pair().source;
            let route = Route::new(peer, pull.path.take()?, way, pull.why.as_deref());
            Some(route.fell_back(pull.fell_back))
        };
        self.pulls.iter_mut().filter_map(route).collect()
    }

    /// Pages that chunks have begun to land in.
    fn dirty(&self) -> Vec<DirtyPages> {
        let mut pages: Vec<BTreeSet<u32>> =
            vec![BTreeSet::new(); self.requested.agreed().consumer.groups.len()];
        for (link, pull) in self.pulls.iter().enumerate() {
            for chunk in self.machine.touched(link) {
                pull.runner.pages(chunk, |group, page| {
                    pages[group].insert(page);
                });
            }
        }
        let groups = self.requested.agreed().consumer.groups.iter().zip(pages);
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
        let pull = &mut self.pulls[link];
        if let Some(why) = self.machine.unlent(link)
            && !pull.fell_back
        {
            pull.fall_back(why.to_owned());
        }
        Ok(())
    }

    fn landing(&mut self, peer: PeerId, batch: Batch) -> Result<Landing, Reject> {
        let link = self.link(peer)?;
        if self.machine.state(link) == LinkState::Mapped
            || !self.machine.landing(link, batch.id, batch.bytes)
        {
            return Err(Reject(format!(
                "chunk {} of {} bytes is not awaited",
                batch.id, batch.bytes
            )));
        }
        let pull = &mut self.pulls[link];
        if self.device.is_some() || pull.landings.len() == MAX_DIRECT {
            return Ok(Landing::Staged);
        }
        let mut runs = pull.spare.pop().unwrap_or_default();
        if pull
            .runner
            .runs(batch.id as usize, LEAST_RUN_BYTES, &mut runs)
        {
            pull.landings.push((batch.id, runs));
            Ok(Landing::Direct)
        } else {
            pull.spare.push(runs);
            Ok(Landing::Staged)
        }
    }

    fn pieces(
        &mut self,
        peer: PeerId,
        batch: Batch,
        from: u32,
        most: usize,
        out: &mut Vec<Piece>,
    ) -> Result<(), Reject> {
        let runs = self.pulls[self.link(peer)?].runs(batch.id);
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
        let index = batch.id as usize;
        if let (Some(_), Some(rows)) = (&self.device, staged) {
            self.report.bytes_wire += u64::from(batch.bytes);
            self.place(link, index, rows);
            return Ok(());
        }
        let pull = &mut self.pulls[link];
        let digest = match staged {
            Some(rows) => {
                let (counts, digest) = pull
                    .runner
                    .scatter_digested(index, rows, self.pool, &self.key);
                self.report.saturated += counts.saturated;
                self.report.nan += counts.nan;
                digest
            }
            None => {
                pull.forget(batch.id);
                self.report.chunks_direct += 1;
                let placed = pull.runner.digest_placed(index, self.pool, &self.key);
                placed.ok_or_else(|| {
                    Reject("rows that are converted cannot be read into place".into())
                })?
            }
        };
        self.report.bytes_wire += u64::from(batch.bytes);
        self.placed(link, index, digest);
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
