//! The world: time, links, processes, and what goes wrong.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
};

use moai_collectives::limits::MAX_PULL_MS;
use moai_collectives::protocol::{
    handle::{EngineKey, Handle},
    node::{Action, Config, LinkId, Message, Node, Reason, ServeId, TransferId},
};

use super::{
    Options, Size, Summary, Violation,
    cache::Pool,
    consuming::{PullRun, Request},
    producing::{OfferRun, ServeRun},
    random::Random,
};

pub(super) const MS: u64 = 1_000_000;

/// Milliseconds since 1970 at the start of every world.
const UNIX_MS: u64 = 1_790_000_000_000;

/// Nodes of an engine, and the ranks that each holds.
type Nodes = Vec<(u32, Vec<u32>)>;

/// One process of one life of an engine.
pub(super) type Pid = usize;

#[derive(Debug)]
pub(super) enum Event {
    /// A process that was stopped goes on.
    Resume(Pid),
    Wake(Pid),
    Dialled {
        pid: Pid,
        engine: Arc<str>,
        node: u32,
    },
    Message {
        conn: usize,
        side: usize,
        bytes: Vec<u8>,
    },
    Closed {
        conn: usize,
        side: usize,
    },
    Data {
        conn: usize,
        side: usize,
        from: Pid,
        serve: ServeId,
        at: (TransferId, u32),
        chunk: u64,
        values: Vec<u64>,
    },
    SendChunk {
        pid: Pid,
        serve: ServeId,
    },
    ReadDone {
        pid: Pid,
        serve: ServeId,
        step: u32,
    },
    Place {
        pid: Pid,
        at: (TransferId, u32),
        chunk: u64,
        values: Vec<u64>,
    },
    Request(usize),
    Offer {
        pid: Pid,
        request: usize,
    },
    Push {
        pid: Pid,
        request: usize,
    },
    Pull {
        pid: Pid,
        request: usize,
        handle: Option<Box<Handle>>,
        grant: Option<u64>,
    },
    Written {
        pid: Pid,
        request: usize,
        layer: u32,
        tokens: u32,
    },
    Cancel {
        pid: Pid,
        transfer: TransferId,
    },
    Withdraw {
        pid: Pid,
        number: u64,
    },
    Betray {
        pid: Pid,
        number: u64,
    },
    Evict {
        pid: Pid,
        pages: Vec<u32>,
    },
    Chaos,
    Restart {
        engine: usize,
    },
    Heal,
    /// Whether a large world has come to rest.
    Look {
        rested: bool,
    },
}

struct Due {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The earliest is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// A connection. Its ends are links `2·n` and `2·n + 1`.
struct Conn {
    ends: [Pid; 2],
    open: [bool; 2],
    /// When the last message arrives at each end: messages keep their order.
    last: [u64; 2],
    delay_ns: u64,
}

pub(super) struct Process {
    pub(super) engine: usize,
    pub(super) node: u32,
    pub(super) ranks: Vec<u32>,
    pub(super) machine: Node,
    pub(super) alive: bool,
    /// Stopped until then.
    stopped_until: u64,
    /// What came meanwhile.
    held: Vec<Event>,
    clock_offset: u64,
    clock_ppm: u64,
    wake_at: u64,
    conns: BTreeSet<usize>,
    pub(super) pool: Pool,
    pub(super) offers: BTreeMap<u64, OfferRun>,
    pub(super) serves: BTreeMap<ServeId, ServeRun>,
    pub(super) pulls: BTreeMap<TransferId, PullRun>,
    pub(super) grants: BTreeMap<u64, Vec<u32>>,
    /// Lives of each engine in the order in which they were up.
    ups: BTreeMap<Arc<str>, Vec<u64>>,
}

pub(super) struct Engine {
    pub(super) name: String,
    pub(super) produces: bool,
    pub(super) ranks: u32,
    nodes: u32,
    /// How many times as long as others it takes for each chunk.
    pub(super) slowness: u64,
    /// Processes of its present life.
    pub(super) pids: Vec<Pid>,
    pub(super) epoch: u64,
}

pub(super) struct World {
    seed: u64,
    size: Size,
    config: Tuning,
    faults: super::Faults,
    pub(super) random: Random,
    pub(super) now: u64,
    order: u64,
    queue: BinaryHeap<Due>,
    pub(super) engines: Vec<Engine>,
    by_name: BTreeMap<String, usize>,
    pub(super) processes: Vec<Process>,
    conns: Vec<Conn>,
    /// Pairs of engines that cannot talk, and until when.
    partitions: BTreeMap<(usize, usize), u64>,
    pub(super) requests: Vec<Request>,
    pub(super) summary: Summary,
    pub(super) healed: bool,
    /// The engine that lies, if there is one, and what it has said.
    pub(super) liar: Option<usize>,
    pub(super) said: Vec<Vec<u8>>,
    /// Pairs of ranks that consumers have all of, by request and engine.
    pub(super) committed: BTreeSet<(usize, usize, u32, u32)>,
}

/// What a world is like.
pub(super) struct Tuning {
    pub(super) layers: u32,
    pub(super) heads: u32,
    /// Writes go to the consumer's memory without asking it.
    pub(super) one_sided: bool,
    pub(super) delay_ns: u64,
    pub(super) place_ns: u64,
    pub(super) flips_per_mille: u64,
    pub(super) betrayals_per_mille: u64,
    /// Chunks that arrive twice.
    pub(super) repeats_per_mille: u64,
    chaos: u32,
    pub(super) pages: u32,
    pub(super) until: u64,
    tail: u64,
}

impl World {
    pub(super) fn new(options: &Options) -> Self {
        let mut random = Random::new(options.seed ^ 0x0A01_51A0);
        let large = options.size != Size::Small;
        let sick = !large && random.chance(250);
        let config = Tuning {
            layers: if large { 1 } else { random.range(1, 4) as u32 },
            heads: match options.size {
                Size::Small => 4,
                Size::Large { ranks, .. } => ranks,
            },
            one_sided: random.chance(500),
            delay_ns: [MS / 20, MS, 20 * MS, 80 * MS][random.below(if large { 2 } else { 4 })],
            place_ns: if large {
                MS / 5
            } else {
                random.range(MS / 10, 60 * MS)
            },
            flips_per_mille: if sick { 10 } else { 0 },
            betrayals_per_mille: if random.chance(250) { 100 } else { 0 },
            repeats_per_mille: 0,
            chaos: if large { 12 } else { random.range(0, 8) as u32 },
            pages: if large {
                256
            } else {
                random.range(12, 60) as u32
            },
            until: if large { 1_500 * MS } else { 5_000 * MS },
            tail: if large { 16_000 * MS } else { 25_000 * MS },
        };
        let mut world = Self {
            seed: options.seed,
            size: options.size,
            config,
            faults: options.faults,
            random,
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            engines: Vec::new(),
            by_name: BTreeMap::new(),
            processes: Vec::new(),
            conns: Vec::new(),
            partitions: BTreeMap::new(),
            requests: Vec::new(),
            summary: Summary {
                worlds: 1,
                ..Summary::default()
            },
            healed: false,
            liar: None,
            said: Vec::new(),
            committed: BTreeSet::new(),
        };
        world.populate();
        if !large {
            world.spoil();
        }
        world
    }

    fn populate(&mut self) {
        let (producers, consumers, ranks) = match self.size {
            Size::Small => (
                self.random.range(1, 4) as u32,
                self.random.range(1, 4) as u32,
                None,
            ),
            Size::Large {
                producers,
                consumers,
                ranks,
            } => (producers, consumers, Some(ranks)),
        };
        for at in 0..producers + consumers {
            let produces = at < producers;
            let name = if produces {
                format!("prefill-{at}")
            } else {
                format!("decode-{}", at - producers)
            };
            let ranks = ranks.unwrap_or_else(|| 1 << self.random.below(3));
            // One process a rank, or one for all of them.
            let nodes = if self.size != Size::Small || self.random.chance(700) {
                ranks
            } else {
                1
            };
            self.by_name.insert(name.clone(), self.engines.len());
            self.engines.push(Engine {
                name,
                produces,
                ranks,
                nodes,
                slowness: 1,
                pids: Vec::new(),
                epoch: 0,
            });
        }
        for engine in 0..self.engines.len() {
            self.start(engine);
        }
        let until = self.config.until;
        match self.size {
            Size::Small => {
                for _ in 0..self.random.range(4, 28) {
                    let (at, request) = (self.random.range(0, until), self.draw_request());
                    self.at(at, Event::Request(request));
                }
            }
            Size::Large {
                producers,
                consumers,
                ..
            } => {
                for producer in 0..producers {
                    for consumer in producers..producers + consumers {
                        let at = self.random.range(0, until);
                        let request = self.new_request(producer as usize, consumer as usize);
                        self.at(at, Event::Request(request));
                    }
                }
            }
        }
        for _ in 0..self.config.chaos {
            let at = self.random.range(0, until);
            self.at(at, Event::Chaos);
        }
        self.at(until, Event::Heal);
        if self.size != Size::Small {
            self.at(until, Event::Look { rested: false });
        }
    }

    /// What some small worlds have to bear besides. Where a peer writes without asking, it is believed that it stops when it says
    /// so, and the network that nothing comes twice.
    fn spoil(&mut self) {
        if self.random.chance(300) {
            let slow = self.random.below(self.engines.len());
            self.engines[slow].slowness = self.random.range(2, 60);
        }
        match self.random.below(5) {
            0 => {
                self.config.one_sided = false;
                self.liar = Some(self.random.below(self.engines.len()));
            }
            1 => {
                self.config.one_sided = false;
                self.config.repeats_per_mille = 50;
            }
            _ => {}
        }
    }

    /// Begins a life of an engine.
    fn start(&mut self, engine: usize) {
        let Engine {
            name,
            produces,
            ranks,
            nodes,
            ..
        } = &self.engines[engine];
        let (name, produces, ranks, nodes) = (name.clone(), *produces, *ranks, *nodes);
        let epoch = self.random.next();
        let mut key = [0; 32];
        key[..8].copy_from_slice(
            &moai_collectives::digest::mix(self.seed ^ engine as u64).to_le_bytes(),
        );
        // A node knows all engines of the other side; both sides may dial.
        let others: Vec<(String, Nodes)> = { &self.engines }
            .iter()
            .filter(|other| other.produces != produces && (!produces || self.size == Size::Small))
            .map(|other| {
                let held = |node| (node, ranks_of(node, other.nodes, other.ranks));
                (other.name.clone(), (0..other.nodes).map(held).collect())
            })
            .collect();
        let mut pids = Vec::new();
        for node in 0..nodes {
            let held = ranks_of(node, nodes, ranks);
            let mut config =
                Config::new(name.clone(), node, held.clone(), epoch, EngineKey::new(key));
            config.descriptor = name.as_bytes().into();
            config.seed = self.random.next();
            config.faults = self.faults;
            // An older build here and there.
            if self.random.chance(200) {
                config.versions = (3, 3);
            }
            let mut machine = Node::new(config).expect("a configuration in order");
            for (name, nodes) in &others {
                machine.know(name, nodes).expect("few engines");
            }
            let values = (self.config.layers * self.config.heads) as usize;
            let pid = self.processes.len();
            self.processes.push(Process {
                engine,
                node,
                ranks: held,
                machine,
                alive: true,
                stopped_until: 0,
                held: Vec::new(),
                clock_offset: self.random.range(0, 1_000_000 * MS),
                clock_ppm: self.random.range(0, 400),
                wake_at: u64::MAX,
                conns: BTreeSet::new(),
                pool: Pool::new(self.config.pages, values),
                offers: BTreeMap::new(),
                serves: BTreeMap::new(),
                pulls: BTreeMap::new(),
                grants: BTreeMap::new(),
                ups: BTreeMap::new(),
            });
            // Some keep links up, from either side.
            if self.size == Size::Small && self.random.chance(400) {
                let clock = self.clock(pid);
                for (name, _) in &others {
                    self.processes[pid].machine.connect(name, clock);
                }
            }
            pids.push(pid);
            self.at(self.now, Event::Wake(pid));
        }
        self.engines[engine].pids = pids;
        self.engines[engine].epoch = epoch;
    }

    pub(super) fn engine_named(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    pub(super) fn tuning(&self) -> &Tuning {
        &self.config
    }

    pub(super) fn is_small(&self) -> bool {
        self.size == Size::Small
    }

    pub(super) fn at(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.queue.push(Due {
            at,
            order: self.order,
            event,
        });
    }

    pub(super) fn after(&mut self, ns: u64, event: Event) {
        self.at(self.now + ns, event);
    }

    /// The time that a process believes it is.
    pub(super) fn clock(&self, pid: Pid) -> u64 {
        let process = &self.processes[pid];
        process.clock_offset + self.now + self.now / 1_000_000 * process.clock_ppm
    }

    pub(super) fn stopped(&self, pid: Pid) -> bool {
        self.processes[pid].stopped_until > self.now
    }

    /// Whether a process was stopped a moment ago, so that it is late for everything.
    pub(super) fn stopped_lately(&self, pid: Pid) -> bool {
        self.processes[pid].stopped_until + 100 * MS > self.now
    }

    /// The same since 1970: wrong by up to 17 s.
    pub(super) fn unix_ms(&self, pid: Pid) -> u64 {
        UNIX_MS + self.now / MS + self.processes[pid].clock_offset / MS % 17_000
    }

    pub(super) fn run(mut self) -> Result<Summary, Violation> {
        let end = self.config.until + self.config.tail;
        while let Some(due) = self.queue.pop() {
            if due.at > end && (due.at > end + self.patience() || self.is_at_rest()) {
                break;
            }
            self.now = self.now.max(due.at);
            self.summary.events += 1;
            if let Event::Look { rested } = due.event {
                let rests = self.is_at_rest();
                if rests && rested {
                    break;
                }
                // Links that were lost at the last moment are found out.
                self.after(500 * MS, Event::Look { rested: rests });
                continue;
            }
            if let Err(what) = self.happen(due.event) {
                return Err(self.violation(what));
            }
        }
        match self.rest() {
            Ok(()) => Ok(self.summary),
            Err(what) => Err(self.violation(what)),
        }
    }

    /// How much longer than the last deadline the others may be kept busy: a liar that says how long it waits is believed,
    /// up to a limit.
    fn patience(&self) -> u64 {
        match self.liar {
            Some(_) => u64::from(MAX_PULL_MS) * MS,
            None => 0,
        }
    }

    /// Whether nothing goes on any more but heartbeats, with those that do not lie: a large world need not go on with those.
    fn is_at_rest(&self) -> bool {
        self.processes.iter().enumerate().all(|(pid, process)| {
            !process.alive
                || self.lies(pid)
                || (process.stopped_until <= self.now
                    && process.held.is_empty()
                    && process.pool.used() == 0
                    && process.machine.is_idle())
        })
    }

    fn violation(&self, what: String) -> Violation {
        Violation {
            seed: self.seed,
            size: self.size,
            at_ns: self.now,
            what,
        }
    }

    /// The process that an event is for, if it is for one.
    fn subject(&self, event: &Event) -> Option<Pid> {
        match event {
            Event::Wake(pid)
            | Event::Dialled { pid, .. }
            | Event::SendChunk { pid, .. }
            | Event::ReadDone { pid, .. }
            | Event::Place { pid, .. }
            | Event::Offer { pid, .. }
            | Event::Push { pid, .. }
            | Event::Pull { pid, .. }
            | Event::Written { pid, .. }
            | Event::Cancel { pid, .. }
            | Event::Withdraw { pid, .. }
            | Event::Betray { pid, .. }
            | Event::Evict { pid, .. } => Some(*pid),
            Event::Message { conn, side, .. } | Event::Closed { conn, side } => {
                Some(self.conns[*conn].ends[*side])
            }
            // Writes of a peer land while the process is stopped.
            Event::Data { conn, side, .. } if !self.config.one_sided => {
                Some(self.conns[*conn].ends[*side])
            }
            _ => None,
        }
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        if let Some(pid) = self.subject(&event) {
            let process = &self.processes[pid];
            if !process.alive {
                if let Event::Data { from, serve, .. } = event {
                    return self.arrived(from, serve);
                }
                return Ok(());
            }
            // What was put off stays in order, however often a stop is prolonged.
            if process.stopped_until > self.now || !process.held.is_empty() {
                let until = process.stopped_until.max(self.now);
                if process.held.is_empty() {
                    self.at(until, Event::Resume(pid));
                }
                self.processes[pid].held.push(event);
                return Ok(());
            }
        }
        match event {
            Event::Resume(pid) => {
                let until = self.processes[pid].stopped_until;
                if until > self.now {
                    self.at(until, Event::Resume(pid));
                    return Ok(());
                }
                for event in std::mem::take(&mut self.processes[pid].held) {
                    self.happen(event)?;
                }
                Ok(())
            }
            Event::Wake(pid) => {
                let clock = self.clock(pid);
                let process = &mut self.processes[pid];
                if process.wake_at <= self.now {
                    process.wake_at = u64::MAX;
                }
                process.machine.tick(clock);
                self.drain(pid)
            }
            Event::Dialled { pid, engine, node } => self.dialled(pid, &engine, node),
            Event::Message { conn, side, bytes } => {
                if !self.conns[conn].open[side] {
                    return Ok(());
                }
                let pid = self.conns[conn].ends[side];
                let clock = self.clock(pid);
                self.processes[pid]
                    .machine
                    .message(link(conn, side), &bytes, clock);
                self.drain(pid)
            }
            Event::Closed { conn, side } => {
                if !std::mem::replace(&mut self.conns[conn].open[side], false) {
                    return Ok(());
                }
                let pid = self.conns[conn].ends[side];
                let clock = self.clock(pid);
                self.processes[pid].conns.remove(&conn);
                self.processes[pid]
                    .machine
                    .closed(link(conn, side), "reset", clock);
                self.drain(pid)
            }
            Event::Data {
                conn,
                side,
                from,
                serve,
                at,
                chunk,
                values,
            } => {
                let open = self.conns[conn].open[side]
                    && self.processes[self.conns[conn].ends[side]].alive;
                let to = self.conns[conn].ends[side];
                if open && self.is_pulled_on(to, at, link(conn, side)) {
                    self.data(self.conns[conn].ends[side], at, chunk, values)?;
                }
                self.arrived(from, serve)
            }
            Event::SendChunk { pid, serve } => self.send_chunk(pid, serve),
            Event::ReadDone { pid, serve, step } => self.read_done(pid, serve, step),
            Event::Place {
                pid,
                at,
                chunk,
                values,
            } => self.place(pid, at, chunk, &values),
            Event::Request(request) => self.begin(request),
            Event::Offer { pid, request } => self.offer(pid, request),
            Event::Push { pid, request } => self.push(pid, request),
            Event::Pull {
                pid,
                request,
                handle,
                grant,
            } => self.pull(pid, request, handle, grant),
            Event::Written {
                pid,
                request,
                layer,
                tokens,
            } => self.written(pid, request, layer, tokens),
            Event::Cancel { pid, transfer } => {
                let clock = self.clock(pid);
                self.processes[pid].machine.cancel(transfer, clock);
                self.drain(pid)
            }
            Event::Withdraw { pid, number } => {
                let clock = self.clock(pid);
                self.processes[pid].machine.withdraw(number, clock);
                self.drain(pid)
            }
            Event::Betray { pid, number } => self.betray(pid, number),
            Event::Evict { pid, pages } => {
                self.processes[pid]
                    .pool
                    .set(&pages, super::cache::Owner::Free);
                Ok(())
            }
            Event::Chaos => self.chaos(),
            Event::Restart { engine } => {
                self.summary.restarts += 1;
                self.start(engine);
                Ok(())
            }
            Event::Heal => {
                self.healed = true;
                self.partitions.clear();
                Ok(())
            }
            Event::Look { .. } => Ok(()),
        }
    }

    /// Does what a process's node wants, and wakes it when it wants.
    pub(super) fn drain(&mut self, pid: Pid) -> Result<(), String> {
        while let Some(action) = self.processes[pid].machine.actions().pop_front() {
            self.act(pid, action)?;
        }
        let clock = self.clock(pid);
        let process = &mut self.processes[pid];
        if let Some(deadline) = process.machine.next_deadline() {
            let local = deadline.saturating_sub(clock);
            let at = self.now
                + (u128::from(local) * 1_000_000 / u128::from(1_000_000 + process.clock_ppm)).max(1)
                    as u64;
            if at < process.wake_at {
                process.wake_at = at;
                self.at(at, Event::Wake(pid));
            }
        }
        Ok(())
    }

    fn act(&mut self, pid: Pid, action: Action) -> Result<(), String> {
        match action {
            Action::Dial { engine, node } => {
                let ns = self.config.delay_ns + self.random.range(0, self.config.delay_ns);
                self.after(ns, Event::Dialled { pid, engine, node });
            }
            Action::Send {
                link,
                message:
                    Message::Reject {
                        reason: Reason::Protocol,
                        why,
                    },
            } => {
                if self.may_break(self.conns[ends(link).0].ends) {
                    let reason = Reason::Protocol;
                    self.send(link, Message::Reject { reason, why }.encode());
                    return Ok(());
                }
                return Err(format!(
                    "a node finds the protocol broken on link {}: {why}",
                    link.0
                ));
            }
            Action::Send { link, message } => self.send(link, message.encode()),
            Action::Close { link } => {
                let (conn, side) = ends(link);
                // What is still on its way may be written until it is torn down.
                let ns = self.random.range(0, 30 * MS);
                self.after(ns, Event::Closed { conn, side });
                let at = self.arrival(conn, 1 - side);
                self.at(
                    at,
                    Event::Closed {
                        conn,
                        side: 1 - side,
                    },
                );
            }
            Action::Negotiate { digest, .. } => {
                let clock = self.clock(pid);
                self.processes[pid]
                    .machine
                    .agreed(digest, Ok([7; 32]), clock);
            }
            Action::PeerUp { engine, epoch, .. } => {
                let lives = self.processes[pid]
                    .ups
                    .entry(Arc::clone(&engine))
                    .or_default();
                if lives.last() != Some(&epoch) {
                    if lives.contains(&epoch) {
                        return Err(format!(
                            "epoch {epoch:x} of {engine} is back after a later one"
                        ));
                    }
                    lives.push(epoch);
                }
            }
            Action::PeerLost { .. } => self.summary.links_lost += 1,
            Action::Superseded { engine } => {
                // Another life has the name: this one goes, unless a liar says so.
                if self.liar.is_none() || self.engine_named(&engine) != self.liar {
                    self.kill(pid);
                }
            }
            producing @ (Action::Serve { .. }
            | Action::Ready { .. }
            | Action::SendInstead { .. }
            | Action::StopServing { .. }
            | Action::Served { .. }
            | Action::Quarantined { .. }
            | Action::Released { .. }
            | Action::Declined { .. }) => return self.produce(pid, producing),
            consuming => return self.consume(pid, consuming),
        }
        Ok(())
    }

    fn arrival(&mut self, conn: usize, side: usize) -> u64 {
        let this = &self.conns[conn];
        let engines = (
            self.processes[this.ends[0]].engine,
            self.processes[this.ends[1]].engine,
        );
        let cut = self.partition(engines);
        let delay = this.delay_ns + self.random.range(0, this.delay_ns);
        let at = (self.now.max(cut) + delay).max(self.conns[conn].last[side] + 1);
        self.conns[conn].last[side] = at;
        at
    }

    fn partition(&self, (a, b): (usize, usize)) -> u64 {
        self.partitions
            .get(&(a.min(b), a.max(b)))
            .copied()
            .unwrap_or(0)
    }

    fn send(&mut self, link: LinkId, bytes: Vec<u8>) {
        let (conn, side) = ends(link);
        if !self.conns[conn].open[side] {
            return;
        }
        let said = if self.lies(self.conns[conn].ends[side]) {
            self.distort(bytes)
        } else {
            vec![bytes]
        };
        for bytes in said {
            let at = self.arrival(conn, 1 - side);
            self.at(
                at,
                Event::Message {
                    conn,
                    side: 1 - side,
                    bytes,
                },
            );
        }
    }

    /// When payload arrives that is sent now: in no order with anything.
    pub(super) fn payload_arrival(&mut self, link: LinkId) -> (usize, usize, u64) {
        let (conn, side) = ends(link);
        let this = &self.conns[conn];
        let engines = (
            self.processes[this.ends[0]].engine,
            self.processes[this.ends[1]].engine,
        );
        let cut = self.partition(engines);
        let delay = this.delay_ns / 2 + self.random.range(0, 4 * this.delay_ns);
        (conn, 1 - side, self.now.max(cut) + delay)
    }

    fn dialled(&mut self, pid: Pid, engine: &str, node: u32) -> Result<(), String> {
        let clock = self.clock(pid);
        let to = self.by_name[engine];
        let cut = self.partition((self.processes[pid].engine, to)) > self.now;
        let there = self.engines[to]
            .pids
            .get(node as usize)
            .copied()
            .filter(|&there| self.processes[there].alive);
        match there.filter(|_| !cut) {
            None => self.processes[pid]
                .machine
                .unreachable(engine, node, "no route", clock),
            Some(there) => {
                let conn = self.conns.len();
                let delay_ns = self.config.delay_ns * self.random.range(1, 3);
                self.conns.push(Conn {
                    ends: [pid, there],
                    open: [true; 2],
                    last: [self.now; 2],
                    delay_ns,
                });
                self.processes[pid].conns.insert(conn);
                self.processes[there].conns.insert(conn);
                self.processes[pid]
                    .machine
                    .dialled(link(conn, 0), engine, node, None, clock);
                let clock = self.clock(there);
                self.processes[there]
                    .machine
                    .accepted(link(conn, 1), None, clock);
                self.drain(there)?;
            }
        }
        self.drain(pid)
    }

    fn kill(&mut self, pid: Pid) {
        let process = &mut self.processes[pid];
        process.alive = false;
        // Its peers hear of it, or have to find out.
        let loud = self.random.chance(500);
        for conn in std::mem::take(&mut self.processes[pid].conns) {
            let side = usize::from(self.conns[conn].ends[1] == pid);
            self.conns[conn].open[side] = false;
            if loud || self.healed {
                let at = self.arrival(conn, 1 - side);
                self.at(
                    at,
                    Event::Closed {
                        conn,
                        side: 1 - side,
                    },
                );
            }
        }
    }

    /// A stop is prolonged, never cut short.
    fn stop(&mut self, pid: Pid, until: u64) {
        let process = &mut self.processes[pid];
        process.stopped_until = process.stopped_until.max(until);
    }

    fn chaos(&mut self) -> Result<(), String> {
        let engine = self.random.below(self.engines.len());
        let pids = self.engines[engine].pids.clone();
        // Longer than a silent link lasts, in any case.
        let longest = if self.is_small() {
            8_000 * MS
        } else {
            3_500 * MS
        };
        match self.random.below(6) {
            // Gone for good.
            0 if self.is_small() && self.random.chance(300) => {
                for &pid in &pids {
                    self.kill(pid);
                }
                self.summary.departed += 1;
            }
            // Crash, and restart under the same name.
            0 | 1 => {
                for &pid in &pids {
                    self.kill(pid);
                }
                let ns = self.random.range(10 * MS, 4000 * MS);
                self.after(ns, Event::Restart { engine });
            }
            // Stopped for a while; perhaps replaced meanwhile.
            2 => {
                let until = self.now + self.random.range(50 * MS, longest);
                for &pid in &pids {
                    self.stop(pid, until);
                }
                if self.random.chance(600) {
                    let ns = self.random.range(MS, 1000 * MS);
                    self.after(ns, Event::Restart { engine });
                }
            }
            3 => {
                let pid = pids[self.random.below(pids.len())];
                let until = self.now + self.random.range(50 * MS, longest);
                self.stop(pid, until);
            }
            4 => {
                let other = self.random.below(self.engines.len());
                let until = self.now + self.random.range(50 * MS, 5000 * MS);
                self.partitions
                    .insert((engine.min(other), engine.max(other)), until);
            }
            _ => {
                if let Some(&pid) = pids.first() {
                    let conns: Vec<usize> = self.processes[pid].conns.iter().copied().collect();
                    for conn in conns {
                        for side in 0..2 {
                            let ns = self.random.range(0, 200 * MS);
                            self.after(ns, Event::Closed { conn, side });
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// What must hold when all has come to an end.
    fn rest(&mut self) -> Result<(), String> {
        for pid in 0..self.processes.len() {
            let process = &self.processes[pid];
            let name = format!(
                "node {} of {}",
                process.node, self.engines[process.engine].name
            );
            let counters = process.machine.counters();
            self.summary.mismatches += counters.digest_mismatches;
            self.summary.stale += counters.generations_stale;
            self.summary.epochs_refused += counters.epochs_refused;
            self.summary.consumed += counters.offers_consumed;
            self.summary.late += counters.late;
            self.summary.quarantined += counters.quarantined;
            let spoilt = self.liar.is_some() || self.config.repeats_per_mille > 0;
            if counters.protocol_errors > 0 && !spoilt {
                return Err(format!(
                    "{name} saw the protocol broken {} times",
                    counters.protocol_errors
                ));
            }
            let flips = self.config.flips_per_mille > 0 || self.liar.is_some();
            if counters.digest_mismatches > 0 && !flips {
                return Err(format!(
                    "{name} found that digests differ, and no bit has flipped"
                ));
            }
            if !process.alive || self.lies(pid) {
                continue;
            }
            for (transfer, run) in &process.pulls {
                if !run.is_over() {
                    return Err(format!("{name} has no outcome of transfer {}", transfer.0));
                }
            }
            if !process.machine.is_idle() {
                return Err(format!("{name} is not idle at rest: {:?}", process.machine));
            }
            if process.pool.used() > 0 {
                let pages = process.pool.pages.iter().enumerate();
                let left: Vec<_> = pages
                    .filter(|(_, page)| page.owner != super::cache::Owner::Free)
                    .map(|(at, page)| (at, page.owner))
                    .collect();
                return Err(format!("{name} leaked pages: {left:?}"));
            }
            if counters.quarantined_now > 0 {
                return Err(format!(
                    "{name} has {} pages in quarantine at rest",
                    counters.quarantined_now
                ));
            }
            // A link with its timer, and the nodes and ranks that it knows of.
            let others = self.engines.iter().flat_map(|engine| &engine.pids);
            let known = others.map(|&pid| 1 + self.processes[pid].ranks.len());
            let most = 2 * process.conns.len() + known.sum::<usize>() + 64;
            let size = process.machine.size();
            if size > most {
                return Err(format!(
                    "{name} holds {size} entries at rest; its links need {most}"
                ));
            }
            self.one_link(pid, &name)?;
        }
        Ok(())
    }

    /// Both ends mean the same link.
    fn one_link(&self, pid: Pid, name: &str) -> Result<(), String> {
        let own = &self.engines[self.processes[pid].engine];
        for &conn in &self.processes[pid].conns {
            let side = usize::from(self.conns[conn].ends[1] == pid);
            let there = self.conns[conn].ends[1 - side];
            let (process, other) = (
                &self.processes[there],
                &self.engines[self.processes[there].engine],
            );
            if !process.alive || self.lies(there) {
                continue;
            }
            let here = self.processes[pid]
                .machine
                .ready_link(&other.name, process.node)
                .map(|(link, _)| link);
            let back = process
                .machine
                .ready_link(&own.name, self.processes[pid].node)
                .map(|(link, _)| link);
            if (here, back) != (Some(link(conn, side)), Some(link(conn, 1 - side))) {
                return Err(format!(
                    "{name} and {} mean other links at rest: {here:?} and {back:?}, connected by {conn}",
                    other.name
                ));
            }
        }
        Ok(())
    }
}

fn link(conn: usize, side: usize) -> LinkId {
    LinkId((conn * 2 + side) as u64)
}

fn ends(link: LinkId) -> (usize, usize) {
    ((link.0 / 2) as usize, (link.0 % 2) as usize)
}

/// Ranks of a node of an engine.
fn ranks_of(node: u32, nodes: u32, ranks: u32) -> Vec<u32> {
    let each = ranks / nodes;
    (node * each..(node + 1) * each).collect()
}
