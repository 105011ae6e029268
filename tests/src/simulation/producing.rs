//! Prefill: offers requests, and reads their pages for whoever pulls.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use moai_collectives::protocol::{
    handle::{Handle, page_set},
    node::{
        ALL_LAYERS, Action, LinkId, OfferSpec, Owed, Pull, Reason, ServeId, Served, Sums,
        TransferId,
    },
};

use super::{
    cache::{Owner, common, digest, value},
    consuming::Request,
    world::{Event, MS, Pid, World},
};

/// A request that a process offers.
#[derive(Debug)]
pub(super) struct OfferRun {
    request: usize,
    pages: Vec<u32>,
    /// The engine that pulled last.
    taker: Option<usize>,
    /// Pairs of ranks that were served to their commit.
    served: BTreeSet<(u32, u32)>,
}

/// A part that a process reads for.
#[derive(Debug)]
pub(super) struct ServeRun {
    link: LinkId,
    at: (TransferId, u32),
    number: u64,
    /// Ranks of the producer and of the consumer.
    pair: (u32, u32),
    heads: std::ops::Range<u32>,
    key: u64,
    /// Chunks that are not read yet: layer and page of the request, by number.
    unread: BTreeMap<u64, (u32, u32)>,
    /// Those of each step.
    left: Vec<u32>,
    sums: Vec<u64>,
    /// Tokens that may be read, by layer.
    ready: BTreeMap<u32, u32>,
    /// Chunks on their way.
    flying: u32,
    stopping: bool,
}

impl World {
    pub(super) fn offer(&mut self, pid: Pid, request: usize) -> Result<(), String> {
        let Request {
            number,
            pages,
            bound,
            progressive,
            lease_ns,
            consumer,
            layers_at,
            ..
        } = self.requests[request].clone();
        if self.processes[pid].machine.config().epoch != self.requests[request].epoch {
            return Ok(());
        }
        let Some(taken) = self.processes[pid]
            .pool
            .take(pages as usize, Owner::Offered(request))
        else {
            return Ok(());
        };
        let (layers, heads) = (self.tuning().layers, self.tuning().heads);
        let process = &mut self.processes[pid];
        for (page, &at) in (0..).zip(&taken) {
            for layer in 0..layers {
                for head in 0..heads {
                    process.pool.pages[at as usize].values[(layer * heads + head) as usize] =
                        value(request, layer, page, head);
                }
            }
        }
        let spec = OfferSpec {
            number,
            pages: page_set(&[&[request as u32]]),
            generation: process.pool.generation(&taken),
            tokens: pages,
            lease_ns,
            bound: bound.then(|| self.engines[consumer].name.clone()),
            progressive,
        };
        self.processes[pid].offers.insert(
            number,
            OfferRun {
                request,
                pages: taken,
                taker: None,
                served: BTreeSet::new(),
            },
        );
        let (clock, unix) = (self.clock(pid), self.unix_ms(pid));
        let handle = self.processes[pid].machine.offer(spec, clock, unix)?;
        if progressive {
            for layer in 0..layers {
                let ns = self.random.range(0, layers_at);
                if self.random.chance(500) && pages > 1 {
                    self.after(
                        ns / 2,
                        Event::Written {
                            pid,
                            request,
                            layer,
                            tokens: pages / 2,
                        },
                    );
                }
                self.after(
                    ns,
                    Event::Written {
                        pid,
                        request,
                        layer,
                        tokens: pages,
                    },
                );
            }
        }
        if self.random.chance(self.tuning().betrayals_per_mille) {
            let ns = self.random.range(0, 300 * MS);
            self.after(ns, Event::Betray { pid, number });
        }
        if self.random.chance(if self.is_small() { 30 } else { 2 }) {
            let ns = self.random.range(0, 400 * MS);
            self.after(ns, Event::Withdraw { pid, number });
        }
        if self.random.chance(50) {
            self.processes[pid]
                .machine
                .extend(number, lease_ns * 2, clock);
        }
        if self.requests[request].push {
            let ns = if self.random.chance(600) {
                MS
            } else {
                self.random.range(MS, 2_000 * MS)
            };
            self.after(ns, Event::Push { pid, request });
        } else if self.requests[request].handle.is_none() {
            self.route(request, handle);
        }
        self.drain(pid)
    }

    pub(super) fn push(&mut self, pid: Pid, request: usize) -> Result<(), String> {
        let Some(grant) = self.requests[request].granted.clone() else {
            return Ok(());
        };
        let Request {
            number, consumer, ..
        } = self.requests[request];
        let (clock, unix) = (self.clock(pid), self.unix_ms(pid));
        let ranks: Vec<u32> = (0..self.engines[consumer].ranks).collect();
        // Whatever it says: the lease ends it.
        let _ = self.processes[pid]
            .machine
            .push(number, &grant, &ranks, clock, unix);
        self.drain(pid)
    }

    pub(super) fn written(
        &mut self,
        pid: Pid,
        request: usize,
        layer: u32,
        tokens: u32,
    ) -> Result<(), String> {
        let clock = self.clock(pid);
        let number = self.requests[request].number;
        self.processes[pid]
            .machine
            .layer_ready(number, layer, tokens, clock);
        self.drain(pid)
    }

    /// The engine uses pages again that it has lent, as some do.
    pub(super) fn betray(&mut self, pid: Pid, number: u64) -> Result<(), String> {
        let process = &mut self.processes[pid];
        if let Some(offer) = process.offers.get(&number) {
            for &page in &offer.pages {
                let page = &mut process.pool.pages[page as usize];
                page.generation += 1;
                page.betrayed = true;
                page.values.fill(0xBAD);
            }
        }
        Ok(())
    }

    pub(super) fn produce(&mut self, pid: Pid, action: Action) -> Result<(), String> {
        match action {
            Action::Serve {
                serve,
                offer,
                engine,
                link,
                pull,
            } => self.serve(pid, serve, offer, &engine, link, &pull),
            Action::Ready {
                serve,
                layer,
                tokens,
            } => {
                if let Some(run) = self.processes[pid].serves.get_mut(&serve) {
                    run.ready.insert(layer, tokens);
                }
                Ok(())
            }
            Action::StopServing { serve } => {
                if let Some(run) = self.processes[pid].serves.get_mut(&serve) {
                    run.stopping = true;
                    return self.stop_if_quiet(pid, serve);
                }
                let clock = self.clock(pid);
                self.processes[pid].machine.stopped(serve, clock);
                Ok(())
            }
            Action::Released { offer, reason } => {
                let process = &mut self.processes[pid];
                let Some(run) = process.offers.remove(&offer) else {
                    return Err(format!("offer {offer} is released twice"));
                };
                process.pool.set(&run.pages, Owner::Free);
                if process.serves.values().any(|serve| serve.number == offer) {
                    return Err(format!(
                        "offer {offer} is released while a part of it is served"
                    ));
                }
                if reason == Reason::Consumed {
                    return self.check_consumed(pid, &run);
                }
                Ok(())
            }
            Action::Served {
                serve,
                outcome: Served::Committed,
                ..
            } => {
                let process = &mut self.processes[pid];
                if let Some(run) = process.serves.remove(&serve)
                    && let Some(offer) = process.offers.get_mut(&run.number)
                {
                    offer.served.insert(run.pair);
                }
                Ok(())
            }
            Action::Declined { offer, engine, .. } => {
                self.summary.declined += 1;
                let request = &self.requests[offer as usize - 1];
                let asked = &self.engines[request.consumer].name;
                if **asked != *engine {
                    return Err(format!(
                        "offer {offer} was pushed to {asked}, and {engine} declines it"
                    ));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// An offer is consumed only if its consumer has all of it.
    fn check_consumed(&self, pid: Pid, offer: &OfferRun) -> Result<(), String> {
        let Some(taker) = offer.taker.filter(|&taker| Some(taker) != self.liar) else {
            return Ok(());
        };
        let process = &self.processes[pid];
        let heads = self.tuning().heads;
        let (sources, targets) = (
            self.engines[process.engine].ranks,
            self.engines[taker].ranks,
        );
        for &source in &process.ranks {
            for target in 0..targets {
                let owed = !common(heads, (source, sources), (target, targets)).is_empty();
                let has = self
                    .committed
                    .contains(&(offer.request, taker, source, target));
                if owed && !has {
                    return Err(format!(
                        "an offer counts as consumed, and rank {target} of {} has not got what rank {source} owes it",
                        self.engines[taker].name
                    ));
                }
            }
        }
        Ok(())
    }

    fn serve(
        &mut self,
        pid: Pid,
        serve: ServeId,
        number: u64,
        engine: &Arc<str>,
        link: LinkId,
        pull: &Pull,
    ) -> Result<(), String> {
        let clock = self.clock(pid);
        let layers = self.tuning().layers;
        let consumer = self.engine_named(engine).unwrap_or(0);
        let own = self.processes[pid].engine;
        let (sources, targets) = (self.engines[own].ranks, self.engines[consumer].ranks);
        let all = self.tuning().heads;
        let process = &mut self.processes[pid];
        let Some(offer) = process.offers.get_mut(&number) else {
            return Err(format!("offer {number} is served after it was released"));
        };
        let request = &self.requests[offer.request];
        if request.bound && request.consumer != consumer {
            return Err(format!(
                "offer {number} is for engine {}, and {engine} is served from it",
                self.engines[request.consumer].name
            ));
        }
        if offer.served.contains(&(pull.source, pull.target)) {
            return Err(format!(
                "offer {number} serves ranks {} and {} again",
                pull.source, pull.target
            ));
        }
        offer.taker = Some(consumer);
        let heads = common(
            all,
            (pull.source, sources),
            (pull.target.min(targets - 1), targets),
        );
        if heads.is_empty() || pull.target >= targets {
            process
                .machine
                .refuse(serve, Reason::NotOwed, "nothing in common", clock);
            return Ok(());
        }
        let pages = offer.pages.len() as u32;
        let held = pull.held.min(pages);
        let chunks: Vec<(u32, u32)> = (0..layers)
            .flat_map(|layer| (held..pages).map(move |page| (layer, page)))
            .collect();
        let each = pages - held;
        let steps = if each == 0 { 0 } else { layers };
        let parts = process.ranks.iter().flat_map(|&source| {
            (0..targets).filter(move |&target| {
                !common(all, (source, sources), (target, targets)).is_empty()
            })
        });
        let owed = Owed {
            chunks: chunks.len() as u64,
            bytes: chunks.len() as u64 * u64::from(heads.end - heads.start) * 8,
            steps,
            parts: parts.count() as u32,
            mapped: false,
        };
        let run = ServeRun {
            link,
            at: (TransferId(pull.transfer), pull.part),
            number,
            pair: (pull.source, pull.target),
            heads,
            key: pull.key,
            unread: (0..).zip(chunks).collect(),
            left: vec![each; steps as usize],
            sums: vec![0; steps as usize],
            ready: BTreeMap::new(),
            flying: 0,
            stopping: false,
        };
        process.serves.insert(serve, run);
        process.machine.accept(serve, owed, clock);
        self.after(MS / 10, Event::SendChunk { pid, serve });
        Ok(())
    }

    /// Reads a chunk that is written, any of them, and sends it.
    pub(super) fn send_chunk(&mut self, pid: Pid, serve: ServeId) -> Result<(), String> {
        let heads_all = self.tuning().heads;
        let skip = self.random.below(4);
        let flips = self.tuning().flips_per_mille;
        let flip = self.random.chance(flips).then(|| self.random.next());
        // Once more, or where it does not belong.
        let (lies, repeats) = (
            self.lies(pid) && !self.healed,
            self.tuning().repeats_per_mille,
        );
        let again = self.random.chance(if lies { 50 } else { repeats });
        let again = again.then(|| (self.repeat_after(), lies));
        let pace = self.pace(pid);
        let process = &mut self.processes[pid];
        let Some(run) = process.serves.get_mut(&serve) else {
            return Ok(());
        };
        if run.stopping || run.unread.is_empty() {
            return Ok(());
        }
        let written = |(_, (layer, page)): &(&u64, &(u32, u32))| {
            let tokens = run.ready.get(layer).max(run.ready.get(&ALL_LAYERS));
            tokens.is_some_and(|tokens| tokens > page)
        };
        let may: Vec<u64> = run
            .unread
            .iter()
            .filter(written)
            .take(skip + 1)
            .map(|(&chunk, _)| chunk)
            .collect();
        let Some(&chunk) = may.last() else {
            self.after(5 * MS, Event::SendChunk { pid, serve });
            return Ok(());
        };
        let Some((layer, page)) = run.unread.remove(&chunk) else {
            return Ok(());
        };
        let Some(offer) = process.offers.get(&run.number) else {
            return Err(format!(
                "a page of offer {} is read after it was released",
                run.number
            ));
        };
        let at = &process.pool.pages[offer.pages[page as usize] as usize];
        if at.owner != Owner::Offered(offer.request) {
            return Err(format!(
                "a page of offer {} is read, which holds {:?}",
                run.number, at.owner
            ));
        }
        let mut values = Vec::new();
        for head in run.heads.clone() {
            let value = at.values[(layer * heads_all + head) as usize];
            let sum = &mut run.sums[layer as usize];
            *sum = sum.wrapping_add(digest(run.key, layer, page, head, value));
            values.push(value);
        }
        if let Some(bit) = flip {
            values[0] ^= 1 << (bit % 64);
        }
        run.flying += 1 + u32::from(again.is_some());
        run.left[layer as usize] -= 1;
        let done = run.left[layer as usize] == 0;
        let (link, to) = (run.link, run.at);
        let (conn, side, arrives) = self.payload_arrival(link);
        if let Some((after, astray)) = again {
            let mut to = to;
            if astray {
                self.summary.lies += 1;
                to.0.0 =
                    to.0.0
                        .wrapping_add(self.random.below(3) as u64)
                        .wrapping_sub(1);
                to.1 = (to.1 + self.random.below(3) as u32).saturating_sub(1);
            } else {
                self.summary.repeats += 1;
            }
            self.at(
                arrives + after,
                Event::Data {
                    conn,
                    side,
                    from: pid,
                    serve,
                    at: to,
                    chunk,
                    values: values.clone(),
                },
            );
        }
        self.at(
            arrives,
            Event::Data {
                conn,
                side,
                from: pid,
                serve,
                at: to,
                chunk,
                values,
            },
        );
        if done {
            // The last read takes a moment longer.
            let ns = self.random.range(0, 2 * MS);
            self.after(
                ns,
                Event::ReadDone {
                    pid,
                    serve,
                    step: layer,
                },
            );
        }
        let ns = self.random.range(MS / 20, 3 * MS) * pace;
        self.after(ns, Event::SendChunk { pid, serve });
        Ok(())
    }

    pub(super) fn read_done(&mut self, pid: Pid, serve: ServeId, step: u32) -> Result<(), String> {
        let clock = self.clock(pid);
        let process = &mut self.processes[pid];
        let Some(run) = process.serves.get(&serve) else {
            return Ok(());
        };
        let Some(offer) = process.offers.get(&run.number) else {
            return Ok(());
        };
        let generation = process.pool.generation(&offer.pages);
        let sums = Sums {
            mapped: false,
            first: step,
            sums: vec![run.sums[step as usize]],
            generation,
        };
        process.machine.sent(serve, sums, clock);
        self.drain(pid)
    }

    /// A chunk has arrived, or was lost with its link.
    pub(super) fn arrived(&mut self, pid: Pid, serve: ServeId) -> Result<(), String> {
        if let Some(run) = self.processes[pid].serves.get_mut(&serve) {
            run.flying -= 1;
            if self.processes[pid].alive {
                self.stop_if_quiet(pid, serve)?;
                return self.drain(pid);
            }
        }
        Ok(())
    }

    fn stop_if_quiet(&mut self, pid: Pid, serve: ServeId) -> Result<(), String> {
        let clock = self.clock(pid);
        let process = &mut self.processes[pid];
        if process
            .serves
            .get(&serve)
            .is_some_and(|run| run.stopping && run.flying == 0)
        {
            process.serves.remove(&serve);
            process.machine.stopped(serve, clock);
        }
        Ok(())
    }

    /// A router carries a handle to the consumer, and sometimes to others.
    fn route(&mut self, request: usize, handle: Handle) {
        let consumer = self.requests[request].consumer;
        self.requests[request].handle = Some(handle);
        for pid in self.engines[consumer].pids.clone() {
            let ns = self.random.range(0, 20 * MS);
            self.after(
                ns,
                Event::Pull {
                    pid,
                    request,
                    handle: None,
                    grant: None,
                },
            );
            if self.is_small() && self.random.chance(40) {
                let ns = self.random.range(0, 3000 * MS);
                self.after(
                    ns,
                    Event::Pull {
                        pid,
                        request,
                        handle: None,
                        grant: None,
                    },
                );
            }
        }
    }
}
