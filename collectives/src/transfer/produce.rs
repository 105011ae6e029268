//! Serving one producer rank.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use moai_memory::Region;
use moai_transport::{Batch, Closed, Handler, Interface, Landing, PeerId, Piece, Reject};

use super::{
    LINGER, Options, Outbox, Report,
    device::{self, Fetching},
    loan::Loan,
    pace::Pace,
    serve::{Serve, Turn},
};
use crate::{
    cost::Way,
    execute::{Requested, Runner},
    negotiate::Role,
    protocol::{LinkId, Owed, Producer, Work},
};

/// Serves producer rank `rank` from `pool`, over an interface that listens.
///
/// The pages are read only. They stay lent to consumers that map them until this returns. A pool of a device's memory
/// is read by jobs on a stream of its own, which has ended then, too.
///
/// `progress` is called with the bytes handed to the transport so far, of how many; those of mapped pages count as they
/// would go over a wire.
///
/// # Panics
///
/// If the pool does not have the regions of the rank.
pub fn produce(
    interface: &mut dyn Interface,
    requested: &Arc<Requested>,
    rank: u32,
    pool: &mut [Region],
    options: &Options,
    progress: &mut dyn FnMut(u64, u64),
) -> Report {
    let start = Instant::now();
    let now = || start.elapsed().as_nanos() as u64;
    let pairs = &requested.agreed().agreement.pairs;
    let pairs = pairs.iter().filter(|pair| pair.source == rank);
    let mut serves: Vec<Serve> = pairs
        .map(|pair| Serve::new(Runner::new(requested, pair, Role::Producer)))
        .collect();
    let owed = serves.iter().map(|serve| Owed {
        rank: serve.runner.pair().target,
        chunks: serve.runner.chunks().len() as u64,
        bytes: serve.runner.wire_bytes(),
    });
    let total = owed.clone().map(|owed| owed.bytes).sum();
    let deadline_ns = options.deadline.as_nanos() as u64;
    let machine = Producer::new(rank, requested.digest(), deadline_ns, owed.collect());
    let mut handler = Strangers {
        machine,
        pool,
        links: HashMap::new(),
        peers: HashMap::new(),
        next: 0,
        first: None,
    };
    let mut fetching = match Fetching::new(handler.pool, serves.len()) {
        Ok(fetching) => fetching,
        Err(why) => {
            handler.machine.device_failed(why);
            None
        }
    };
    let mut outbox = Outbox::default();
    let mut report = Report::new(rank);
    let mut pace = Pace::new(options.max_bytes_per_second);
    let mut loan = Loan::default();
    let mut ended: Option<Instant> = None;
    loop {
        if let Some(Err(why)) = fetching.as_mut().map(Fetching::collect) {
            handler.machine.device_failed(why);
        }
        handler.machine.tick(now());
        outbox.extend(handler.machine.actions());
        outbox.flush(interface, |link| handler.peers.get(&link).copied());
        if handler.machine.outcome().is_some() {
            fetching = None;
            let ended = *ended.get_or_insert_with(Instant::now);
            if handler.peers.is_empty() || ended.elapsed() >= LINGER {
                break;
            }
        }
        let (mut busy, mut awaits_device) = (false, false);
        let mut wait = options.deadline.saturating_sub(start.elapsed());
        for (peer, serve) in serves.iter_mut().enumerate() {
            let Some(work) = handler.machine.work(peer) else {
                continue;
            };
            let (Work::Lend(link) | Work::Digest(link, _) | Work::Send(link, _)) = work;
            let Some(&to) = handler.peers.get(&link) else {
                continue;
            };
            if serve.path.is_none() {
                serve.path = interface.path(to);
            }
            let turn = match work {
                Work::Lend(_) => {
                    let keys = match &fetching {
                        None => loan.keys(interface, to, handler.pool),
                        Some(device) => {
                            Err(format!("pages in {} memory are not lent", device.kind()))
                        }
                    };
                    match keys {
                        Ok(keys) => handler.machine.lend(peer, &keys),
                        Err(why) => {
                            handler.machine.cannot_lend(peer, why.clone());
                            serve.why = Some(why);
                        }
                    }
                    Turn::Did
                }
                Work::Digest(_, key) => {
                    serve.go(Way::Mapped);
                    serve.digest(handler.pool, key, &mut pace, &mut report)
                }
                Work::Send(_, key) => {
                    serve.go(Way::Sent);
                    let (pace, report) = (&mut pace, &mut report);
                    match &mut fetching {
                        None => serve.send((interface, to), handler.pool, key, pace, report),
                        Some(device) => {
                            serve.send_fetched((interface, to), (device, peer), key, pace, report)
                        }
                    }
                }
            };
            match turn {
                Turn::Did => busy = true,
                Turn::All => {
                    let sums = std::mem::take(&mut serve.sums);
                    handler.machine.sent(peer, sums);
                    busy = true;
                }
                Turn::Pause(pause) => wait = wait.min(pause),
                // `writable` ends the wait.
                Turn::Full => {}
                Turn::Fetching => awaits_device = true,
                // The other side is to hear of it at once.
                Turn::DeviceFailed(why) => {
                    handler.machine.device_failed(why);
                    busy = true;
                }
                Turn::Failed(why) => {
                    handler.machine.give_up(why);
                    busy = true;
                }
            }
        }
        if busy {
            progress(serves.iter().map(|serve| serve.done).sum(), total);
        }
        if ended.is_some() {
            wait = Duration::from_millis(20);
        }
        let wait = if busy || awaits_device {
            Duration::ZERO
        } else {
            wait
        };
        if let Err(error) = interface.poll(Some(wait), &mut handler) {
            handler
                .machine
                .give_up(format!("the transport failed: {error}"));
        }
        if let (false, true, Some(device)) = (busy, awaits_device, &fetching) {
            device.wait(device::TURN);
        }
    }
    loan.end(interface);
    report.elapsed_ns = handler
        .first
        .map_or(0, |first| first.elapsed().as_nanos() as u64);
    report.routes = serves.iter_mut().filter_map(Serve::route).collect();
    if let Some(outcome) = handler.machine.outcome() {
        report.end(outcome, Vec::new);
    }
    report
}

/// Connections that come in, most of which turn out to be consumers.
struct Strangers<'a> {
    machine: Producer,
    pool: &'a mut [Region],
    links: HashMap<PeerId, LinkId>,
    peers: HashMap<LinkId, PeerId>,
    next: LinkId,
    first: Option<Instant>,
}

impl Handler for Strangers<'_> {
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
        self.pool
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
