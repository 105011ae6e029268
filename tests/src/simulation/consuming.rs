//! Decode: pulls requests into its pages, and looks at what it got.

use std::sync::Arc;

use moai_collectives::{
    digest::Coverage,
    protocol::{
        handle::{EngineKey, Handle, HandleFields, page_set},
        node::{Action, Chunk, Expected, GrantSpec, LinkId, Outcome, PullSpec, Step, TransferId},
    },
};

use super::{
    cache::{Owner, common, digest, value},
    world::{Event, MS, Pid, World},
};

/// A request, from prefill to decode.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) producer: usize,
    /// The life of the producer that it was given to.
    pub(super) epoch: u64,
    pub(super) consumer: usize,
    pub(super) number: u64,
    pub(super) pages: u32,
    pub(super) bound: bool,
    pub(super) progressive: bool,
    /// When the last of its layers is written, at the latest.
    pub(super) layers_at: u64,
    pub(super) lease_ns: u64,
    within_ns: u64,
    by_layer: bool,
    pub(super) push: bool,
    pub(super) handle: Option<Handle>,
    pub(super) granted: Option<Handle>,
}

/// A transfer of a process.
#[derive(Debug)]
pub(super) struct PullRun {
    request: usize,
    pages: Vec<u32>,
    held: u32,
    key: u64,
    deadline: u64,
    /// Nobody made its handle who may.
    forged: bool,
    parts: Vec<PartRun>,
    outcome: Option<Outcome>,
    /// Whether its pages are free, or decode's.
    over: bool,
}

#[derive(Debug)]
struct PartRun {
    /// Ranks of the producer and of the consumer.
    pair: (u32, u32),
    heads: std::ops::Range<u32>,
    /// Where it was pulled.
    link: Option<LinkId>,
    /// Chunks that are being written.
    placing: u32,
    fencing: bool,
    /// The producer's access was taken away.
    revoked: bool,
}

impl PullRun {
    pub(super) fn is_over(&self) -> bool {
        self.over
    }
}

impl World {
    pub(super) fn draw_request(&mut self) -> usize {
        let side = |produces| {
            let engines = self.engines.iter().enumerate();
            engines
                .filter(move |(_, engine)| engine.produces == produces)
                .map(|(at, _)| at)
                .collect::<Vec<_>>()
        };
        let (producers, consumers) = (side(true), side(false));
        let producer = producers[self.random.below(producers.len())];
        let consumer = consumers[self.random.below(consumers.len())];
        self.new_request(producer, consumer)
    }

    pub(super) fn new_request(&mut self, producer: usize, consumer: usize) -> usize {
        let small = self.is_small();
        // A large world is over sooner: most of what happens in it after its requests is that links say they are alive.
        let (lease, within) = if small {
            (3000 * MS, 8000 * MS)
        } else {
            (1500 * MS, 4000 * MS)
        };
        let r = &mut self.random;
        let request = Request {
            producer,
            epoch: 0,
            consumer,
            number: self.requests.len() as u64 + 1,
            pages: if small { r.range(1, 5) as u32 } else { 1 },
            bound: r.chance(500),
            progressive: small && r.chance(400),
            layers_at: r.range(MS, 600 * MS),
            lease_ns: r.range(50 * MS, lease),
            within_ns: if r.chance(150) {
                r.range(MS, 300 * MS)
            } else {
                r.range(500 * MS, within)
            },
            by_layer: r.chance(500),
            push: small && r.chance(150),
            handle: None,
            granted: None,
        };
        self.requests.push(request);
        self.requests.len() - 1
    }

    /// The router gives a request to prefill.
    pub(super) fn begin(&mut self, request: usize) -> Result<(), String> {
        let Request {
            producer,
            consumer,
            push,
            number,
            pages,
            lease_ns,
            ..
        } = self.requests[request];
        self.requests[request].epoch = self.engines[producer].epoch;
        if push {
            let bound = Some(self.engines[producer].name.clone());
            for pid in self.engines[consumer].pids.clone() {
                let (clock, unix) = (self.clock(pid), self.unix_ms(pid));
                let process = &mut self.processes[pid];
                if !process.alive {
                    continue;
                }
                let Some(taken) = process.pool.take(pages as usize, Owner::Granted(number)) else {
                    continue;
                };
                let set = page_set(&[&[request as u32]]);
                let spec = GrantSpec {
                    number,
                    pages: set,
                    tokens: pages,
                    lease_ns,
                    bound: bound.clone(),
                };
                let handle = process.machine.grant(spec, clock, unix)?;
                process.grants.insert(number, taken);
                self.requests[request].granted = Some(handle);
                self.drain(pid)?;
            }
        }
        for pid in self.engines[producer].pids.clone() {
            let ns = self.random.range(0, 30 * MS);
            self.after(ns, Event::Offer { pid, request });
        }
        Ok(())
    }

    /// Begins a transfer; sometimes with a handle that is not good for it.
    pub(super) fn pull(
        &mut self,
        pid: Pid,
        request: usize,
        handle: Option<Box<Handle>>,
        grant: Option<u64>,
    ) -> Result<(), String> {
        let mut request = request;
        let mut forged = false;
        let mut handle = handle
            .map(|handle| *handle)
            .or_else(|| self.requests[request].handle.clone());
        if grant.is_none() && self.is_small() {
            if self.random.chance(40) {
                // Someone else's, or one that has been used.
                request = self.random.below(self.requests.len());
                handle = self.requests[request].handle.clone();
            } else if self.random.chance(30)
                && let Some(said) = handle.as_ref().map(|handle| handle.fields().clone())
            {
                forged = true;
                handle = Some(self.forge(said));
            }
        }
        let Some(handle) = handle else { return Ok(()) };
        let tuning = self.tuning();
        let (layers, heads) = (tuning.layers, tuning.heads);
        let Request {
            producer,
            pages,
            within_ns,
            by_layer,
            ..
        } = self.requests[request];
        let own = self.processes[pid].engine;
        let (sources, targets) = (self.engines[producer].ranks, self.engines[own].ranks);
        let held = if self.random.chance(200) {
            self.random.below(pages as usize + 1) as u32
        } else {
            0
        };
        let steps: Arc<[Step]> = match pages - held {
            0 => Arc::new([]),
            _ => (0..layers)
                .map(|layer| Step {
                    layer,
                    component: "key".into(),
                })
                .collect(),
        };
        let (mut parts, mut runs) = (Vec::new(), Vec::new());
        for &target in &self.processes[pid].ranks {
            for source in 0..sources {
                let range = common(heads, (source, sources), (target, targets));
                if range.is_empty() {
                    continue;
                }
                let chunk = |layer| Chunk {
                    bytes: (range.end - range.start) * 8,
                    step: layer,
                };
                let chunks = (0..layers).flat_map(|layer| (held..pages).map(move |_| chunk(layer)));
                parts.push(Expected {
                    source,
                    target,
                    chunks: chunks.collect(),
                    steps: Arc::clone(&steps),
                    map: false,
                    pages: 0,
                });
                runs.push(PartRun {
                    pair: (source, target),
                    heads: range,
                    link: None,
                    placing: 0,
                    fencing: false,
                    revoked: false,
                });
            }
        }
        let key = self.random.next();
        let (clock, unix) = (self.clock(pid), self.unix_ms(pid));
        let process = &mut self.processes[pid];
        let granted = grant.and_then(|grant| process.grants.remove(&grant));
        let from_grant = granted.is_some();
        let spec = PullSpec {
            handle,
            parts,
            within_ns,
            held,
            by_layer,
            mode: Coverage::Full,
            key,
            grant: grant.filter(|_| from_grant),
        };
        let Some(taken) = granted.or_else(|| process.pool.take(pages as usize, Owner::Free)) else {
            return Ok(());
        };
        let id = match process.machine.pull(spec, clock, unix) {
            Ok(id) => id,
            Err(_) => {
                self.summary.refused += 1;
                if let Some(grant) = grant.filter(|_| from_grant) {
                    // The grant is still there; its pages go with it.
                    self.processes[pid].grants.insert(grant, taken);
                    self.processes[pid].machine.revoke(grant, clock);
                } else {
                    self.processes[pid].pool.set(&taken, Owner::Free);
                }
                return self.drain(pid);
            }
        };
        for &page in &taken {
            process.pool.pages[page as usize].owner = Owner::Filling(id.0);
        }
        // The prefix that it has already.
        for page in 0..held {
            for layer in 0..layers {
                for head in 0..heads {
                    process.pool.pages[taken[page as usize] as usize].values
                        [(layer * heads + head) as usize] = value(request, layer, page, head);
                }
            }
        }
        let run = PullRun {
            request,
            pages: taken,
            held,
            key,
            deadline: clock + within_ns,
            forged,
            parts: runs,
            outcome: None,
            over: false,
        };
        process.pulls.insert(id, run);
        self.summary.transfers += 1;
        if self.random.chance(if self.is_small() { 60 } else { 3 }) {
            let ns = self.random.range(0, within_ns);
            self.after(ns, Event::Cancel { pid, transfer: id });
        }
        self.drain(pid)
    }

    fn forge(&mut self, mut said: HandleFields) -> Handle {
        match self.random.below(4) {
            0 => said.number = self.random.range(1, 40),
            1 => said.pages[0] ^= 1,
            2 => said.epoch ^= 1,
            _ => said.bound = None,
        }
        Handle::seal(said, &EngineKey::new([9; 32])).expect("names in order")
    }

    /// Whether a part is pulled on a link: no other can bring chunks of it.
    pub(super) fn is_pulled_on(&self, pid: Pid, at: (TransferId, u32), link: LinkId) -> bool {
        let run = self.processes[pid].pulls.get(&at.0);
        let part = run.and_then(|run| run.parts.get(at.1 as usize));
        part.is_some_and(|part| part.link == Some(link))
    }

    /// A chunk arrives.
    pub(super) fn data(
        &mut self,
        pid: Pid,
        at: (TransferId, u32),
        chunk: u64,
        values: Vec<u64>,
    ) -> Result<(), String> {
        let one_sided = self.tuning().one_sided;
        if one_sided {
            let run = self.processes[pid].pulls.get(&at.0);
            if run.is_none_or(|run| run.parts[at.1 as usize].revoked) {
                return Ok(());
            }
            // It is in memory before anyone is asked.
            self.write(pid, at, chunk, &values)?;
            let stopped = self.stopped(pid);
            let bytes = values.len() as u32 * 8;
            if stopped
                || !self.processes[pid]
                    .machine
                    .landing(at.0, at.1, chunk, bytes)
            {
                return self.drain(pid);
            }
            return self.landed(pid, at, chunk);
        }
        if !self.processes[pid]
            .machine
            .landing(at.0, at.1, chunk, values.len() as u32 * 8)
        {
            return self.drain(pid);
        }
        if let Some(run) = self.processes[pid].pulls.get_mut(&at.0) {
            run.parts[at.1 as usize].placing += 1;
        }
        let ns = self.random.range(0, self.tuning().place_ns);
        self.after(
            ns,
            Event::Place {
                pid,
                at,
                chunk,
                values,
            },
        );
        Ok(())
    }

    /// A chunk that was taken is placed, some time later.
    pub(super) fn place(
        &mut self,
        pid: Pid,
        at: (TransferId, u32),
        chunk: u64,
        values: &[u64],
    ) -> Result<(), String> {
        self.write(pid, at, chunk, values)?;
        if let Some(run) = self.processes[pid].pulls.get_mut(&at.0) {
            run.parts[at.1 as usize].placing -= 1;
        }
        self.landed(pid, at, chunk)?;
        self.quiet_if_placed(pid, at)?;
        self.drain(pid)
    }

    /// Layer and page of the request of a chunk.
    fn place_of(run: &PullRun, chunk: u64) -> (u32, u32) {
        let each = run.pages.len() as u64 - u64::from(run.held);
        ((chunk / each) as u32, run.held + (chunk % each) as u32)
    }

    fn write(
        &mut self,
        pid: Pid,
        at: (TransferId, u32),
        chunk: u64,
        values: &[u64],
    ) -> Result<(), String> {
        let all = self.tuning().heads;
        let process = &mut self.processes[pid];
        let Some(run) = process.pulls.get(&at.0) else {
            return Ok(());
        };
        let (layer, page) = Self::place_of(run, chunk);
        let target = &mut process.pool.pages[run.pages[page as usize] as usize];
        let id = at.0.0;
        if target.owner != Owner::Filling(id) && target.owner != Owner::Quarantined(id) {
            return Err(format!(
                "transfer {id} writes to a page that is {:?} by now",
                target.owner
            ));
        }
        for (head, &value) in run.parts[at.1 as usize].heads.clone().zip(values) {
            target.values[(layer * all + head) as usize] = value;
        }
        Ok(())
    }

    fn landed(&mut self, pid: Pid, at: (TransferId, u32), chunk: u64) -> Result<(), String> {
        let clock = self.clock(pid);
        let all = self.tuning().heads;
        let process = &mut self.processes[pid];
        let Some(run) = process.pulls.get(&at.0) else {
            return Ok(());
        };
        let (layer, page) = Self::place_of(run, chunk);
        let lies = &process.pool.pages[run.pages[page as usize] as usize].values;
        let mut sum = 0_u64;
        for head in run.parts[at.1 as usize].heads.clone() {
            let value = lies[(layer * all + head) as usize];
            sum = sum.wrapping_add(digest(run.key, layer, page, head, value));
        }
        process.machine.landed(at.0, at.1, chunk, sum, clock);
        self.drain(pid)
    }

    fn quiet_if_placed(&mut self, pid: Pid, (id, part): (TransferId, u32)) -> Result<(), String> {
        let clock = self.clock(pid);
        let revoke = self.tuning().one_sided && self.random.chance(500);
        let process = &mut self.processes[pid];
        let Some(run) = process.pulls.get_mut(&id) else {
            return Ok(());
        };
        let of = &mut run.parts[part as usize];
        if of.fencing && of.placing == 0 {
            of.fencing = false;
            of.revoked |= revoke;
            process.machine.quiet(id, part, revoke, clock);
        }
        Ok(())
    }

    pub(super) fn consume(&mut self, pid: Pid, action: Action) -> Result<(), String> {
        match action {
            Action::Invited { grant, handle, .. } => {
                let request = self
                    .requests
                    .iter()
                    .position(|request| request.number == grant);
                if let Some(request) = request {
                    self.after(
                        MS,
                        Event::Pull {
                            pid,
                            request,
                            handle: Some(Box::new(handle)),
                            grant: Some(grant),
                        },
                    );
                }
                Ok(())
            }
            Action::Returned { grant, .. } => {
                let process = &mut self.processes[pid];
                if let Some(pages) = process.grants.remove(&grant) {
                    process.pool.set(&pages, Owner::Free);
                }
                Ok(())
            }
            Action::Receive {
                transfer,
                part,
                link,
            } => {
                if let Some(run) = self.processes[pid].pulls.get_mut(&transfer) {
                    run.parts[part as usize].link = Some(link);
                }
                Ok(())
            }
            Action::Layer { transfer, layer } => self.check(pid, transfer, Some(layer)),
            Action::Fence { transfer, part } => {
                if let Some(run) = self.processes[pid].pulls.get_mut(&transfer) {
                    run.parts[part as usize].fencing = true;
                }
                self.quiet_if_placed(pid, (transfer, part))
            }
            Action::Ended {
                transfer,
                outcome,
                fenced,
                ..
            } => self.ended(pid, transfer, outcome, fenced),
            Action::Fenced { transfer } => {
                let process = &mut self.processes[pid];
                if let Some(run) = process.pulls.get_mut(&transfer) {
                    run.over = true;
                    let pages = run.pages.clone();
                    process.pool.set(&pages, Owner::Free);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn ended(
        &mut self,
        pid: Pid,
        id: TransferId,
        outcome: Outcome,
        fenced: bool,
    ) -> Result<(), String> {
        let (clock, paused) = (self.clock(pid), self.stopped_lately(pid));
        match &outcome {
            Outcome::Committed => {
                self.summary.committed += 1;
                self.check(pid, id, None)?;
            }
            Outcome::Failed(_) => self.summary.failed += 1,
            Outcome::Cancelled => self.summary.cancelled += 1,
        }
        let process = &mut self.processes[pid];
        let Some(run) = process.pulls.get_mut(&id) else {
            // Before `pull` returned: a transfer of nothing.
            return Ok(());
        };
        if let Some(before) = &run.outcome {
            return Err(format!(
                "transfer {} ended twice: {before:?}, then {outcome:?}",
                id.0
            ));
        }
        if clock > run.deadline + MS && !paused {
            let late = (clock - run.deadline) / MS;
            return Err(format!(
                "transfer {} ended {late} ms after its deadline: {outcome:?}",
                id.0
            ));
        }
        let (pages, request) = (run.pages.clone(), run.request);
        let committed = outcome == Outcome::Committed;
        if committed && run.forged {
            return Err(format!(
                "transfer {} is committed with a forged handle",
                id.0
            ));
        }
        run.outcome = Some(outcome);
        run.over = fenced;
        let pairs: Vec<(u32, u32)> = run.parts.iter().map(|part| part.pair).collect();
        if committed {
            let engine = process.engine;
            let each = pairs.into_iter();
            let each = each.map(|(source, target)| (request, engine, source, target));
            self.committed.extend(each);
            process.pool.set(&pages, Owner::Exposed(request));
            let ns = self.random.range(MS, 500 * MS);
            self.after(ns, Event::Evict { pid, pages });
        } else if fenced {
            process.pool.set(&pages, Owner::Free);
        } else {
            process.pool.set(&pages, Owner::Quarantined(id.0));
        }
        Ok(())
    }

    /// What is exposed has the values of its request.
    fn check(&mut self, pid: Pid, id: TransferId, layer: Option<u32>) -> Result<(), String> {
        let (layers, all) = (self.tuning().layers, self.tuning().heads);
        let process = &self.processes[pid];
        // What a liar gets is its own affair.
        let Some(run) = process.pulls.get(&id).filter(|_| !self.lies(pid)) else {
            return Ok(());
        };
        let which: Vec<u32> = layer.map_or_else(|| (0..layers).collect(), |layer| vec![layer]);
        for (page, &at) in (0..).zip(&run.pages) {
            let lies = &process.pool.pages[at as usize].values;
            for &layer in &which {
                for head in run.parts.iter().flat_map(|part| part.heads.clone()) {
                    let (here, true_one) = (
                        lies[(layer * all + head) as usize],
                        value(run.request, layer, page, head),
                    );
                    if here != true_one {
                        return Err(format!(
                            "transfer {} exposes {here:x} in layer {layer}, page {page}, head {head}; request {} has {true_one:x}",
                            id.0, run.request
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}
