//! Serving one producer rank.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use moai_memory::Region;
use moai_transport::{Batch, Closed, Handler, Interface, Landing, PeerId, Piece, Posted, Reject};

use super::{LINGER, Options, Outbox, Report};
use crate::{
    digest::DigestKey,
    execute::{Agreed, Runner},
    negotiate::Role,
    protocol::{LinkId, Owed, Producer},
};

/// Serves producer rank `rank` from `pool`, over an interface that listens.
///
/// `progress` is called with the bytes handed to the transport so far, of how many.
///
/// # Panics
///
/// If the pool does not have the regions of the rank.
pub fn produce(
    interface: &mut dyn Interface,
    agreed: &Arc<Agreed>,
    rank: u32,
    pool: &[Region],
    options: Options,
    progress: &mut dyn FnMut(u64, u64),
) -> Report {
    let start = Instant::now();
    let now = || start.elapsed().as_nanos() as u64;
    let pairs = agreed
        .agreement
        .pairs
        .iter()
        .filter(|pair| pair.source == rank);
    let mut serves: Vec<Serve> = pairs
        .map(|pair| Serve::new(Runner::new(Arc::clone(agreed), pair, Role::Producer)))
        .collect();
    let owed = serves.iter().map(|serve| Owed {
        rank: serve.runner.pair().target,
        chunks: serve.runner.chunks().len() as u64,
        bytes: serve.runner.wire_bytes(),
    });
    let total = owed.clone().map(|owed| owed.bytes).sum();
    let deadline_ns = options.deadline.as_nanos() as u64;
    let agreement = *agreed.agreement.digest();
    let machine = Producer::new(rank, agreement, deadline_ns, owed.collect());
    let mut handler = Strangers {
        machine,
        links: HashMap::new(),
        peers: HashMap::new(),
        next: 0,
        first: None,
    };
    let mut outbox = Outbox::default();
    let mut report = Report::new(rank);
    let mut pace = Pace {
        limit: options.max_bytes_per_second,
        since: Instant::now(),
        sent: 0,
    };
    let mut ended: Option<Instant> = None;
    loop {
        handler.machine.tick(now());
        outbox.extend(handler.machine.actions());
        outbox.flush(interface, |link| handler.peers.get(&link).copied());
        if handler.machine.outcome().is_some() {
            let ended = *ended.get_or_insert_with(Instant::now);
            if handler.peers.is_empty() || ended.elapsed() >= LINGER {
                break;
            }
        }
        let mut busy = false;
        let mut wait = options.deadline.saturating_sub(start.elapsed());
        let sending: Vec<_> = handler.machine.sending().collect();
        for (peer, link, key) in sending {
            let serve = &mut serves[peer];
            if serve.next == 0
                && let Some(&to) = handler.peers.get(&link)
                && report.paths.len() <= peer
            {
                report.paths.extend(path_to(interface, to, serve));
            }
            let key = serve
                .key
                .get_or_insert_with(|| DigestKey::new(key, serve.runner.longest_row()));
            if serve.next == serve.runner.chunks().len() {
                handler.machine.sent(peer, std::mem::take(&mut serve.sums));
                busy = true;
                continue;
            }
            if let Some(pause) = pace.pause() {
                wait = wait.min(pause);
                continue;
            }
            let Some(&to) = handler.peers.get(&link) else {
                continue;
            };
            let chunk = serve.runner.chunks()[serve.next];
            let batch = Batch {
                id: serve.next as u64,
                bytes: chunk.bytes,
            };
            let (runner, sums, next) = (&mut serve.runner, &mut serve.sums, serve.next);
            let mut counts = moai_translate::format::Counts::default();
            let posted = interface.post(to, batch, &mut |out| {
                let digest;
                (counts, digest) = runner.gather_digested(next, pool, out, key);
                let sum = &mut sums[chunk.step as usize];
                *sum = sum.wrapping_add(digest);
            });
            match posted {
                Ok(Posted::Done | Posted::InFlight(_)) => {
                    let step = &serve.runner.pair().steps[chunk.step as usize];
                    let rows = u64::from(step.heads.end - step.heads.start)
                        * u64::from(chunk.tokens.count);
                    let bytes = &agreed.agreement.carriages[step.span].row_bytes;
                    report.bytes_read += rows * bytes[0];
                    report.bytes_wire += rows * bytes[1];
                    report.chunks += 1;
                    report.saturated += counts.saturated;
                    report.nan += counts.nan;
                    serve.next += 1;
                    pace.sent += u64::from(chunk.bytes);
                    progress(report.bytes_wire, total);
                    busy = true;
                }
                // `writable` ends the wait.
                Ok(Posted::Busy) => {}
                Err(error) => handler.machine.give_up(format!("cannot send: {error}")),
            }
        }
        if ended.is_some() {
            wait = Duration::from_millis(20);
        }
        let wait = if busy { Duration::ZERO } else { wait };
        if let Err(error) = interface.poll(Some(wait), &mut handler) {
            handler
                .machine
                .give_up(format!("the transport failed: {error}"));
        }
    }
    report.elapsed_ns = handler
        .first
        .map_or(0, |first| first.elapsed().as_nanos() as u64);
    if let Some(outcome) = handler.machine.outcome() {
        report.end(outcome, Vec::new);
    }
    report
}

/// What is sent to one consumer rank.
struct Serve {
    runner: Runner,
    next: usize,
    sums: Vec<u64>,
    key: Option<DigestKey>,
}

impl Serve {
    fn new(runner: Runner) -> Self {
        let sums = vec![0; runner.pair().steps.len()];
        Self {
            runner,
            next: 0,
            sums,
            key: None,
        }
    }
}

fn path_to(interface: &dyn Interface, peer: PeerId, serve: &Serve) -> Option<String> {
    let path = interface.path(peer)?;
    let target = serve.runner.pair().target;
    Some(format!(
        "consumer {target}: {} ({})",
        path.provider, path.why
    ))
}

/// Keeps the mean rate below a limit.
struct Pace {
    limit: Option<u64>,
    since: Instant,
    sent: u64,
}

impl Pace {
    /// How long to wait before the next byte may go.
    fn pause(&self) -> Option<Duration> {
        let limit = self.limit?.max(1);
        let due = Duration::from_secs_f64(self.sent as f64 / limit as f64);
        due.checked_sub(self.since.elapsed())
            .filter(|pause| !pause.is_zero())
    }
}

/// Connections that come in, most of which turn out to be consumers.
struct Strangers {
    machine: Producer,
    links: HashMap<PeerId, LinkId>,
    peers: HashMap<LinkId, PeerId>,
    next: LinkId,
    first: Option<Instant>,
}

impl Handler for Strangers {
    fn connected(&mut self, peer: PeerId, _incoming: bool) {
        self.first.get_or_insert_with(Instant::now);
        self.links.insert(peer, self.next);
        self.peers.insert(self.next, peer);
        self.next += 1;
    }

    fn message(&mut self, peer: PeerId, bytes: &[u8]) -> Result<(), Reject> {
        if let Some(&link) = self.links.get(&peer) {
            self.machine.message(link, bytes);
        }
        Ok(())
    }

    fn landing(&mut self, _peer: PeerId, batch: Batch) -> Result<Landing, Reject> {
        Err(Reject(format!(
            "batch {} of {} bytes; a producer takes no payload",
            batch.id, batch.bytes
        )))
    }

    fn pieces(
        &mut self,
        _peer: PeerId,
        batch: Batch,
        _from: u32,
        _most: usize,
        _out: &mut Vec<Piece>,
    ) -> Result<(), Reject> {
        Err(Reject(format!(
            "batch {}; a producer takes no payload",
            batch.id
        )))
    }

    fn regions(&mut self) -> &mut [Region] {
        &mut []
    }

    fn landed(
        &mut self,
        _peer: PeerId,
        batch: Batch,
        _staged: Option<&[u8]>,
    ) -> Result<(), Reject> {
        Err(Reject(format!(
            "batch {}; a producer takes no payload",
            batch.id
        )))
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
