//! Engines: starting, closing, peers, events, what they count.

use std::{
    process,
    sync::{Arc, Mutex, PoisonError, TryLockError},
    time::Duration,
};

use moai_fabric::{
    Engine, EngineError, EngineSetup, Fabric, Listener,
    collectives::{
        protocol::{handle::EngineKey, node},
        transfer::{Generations, Profile},
    },
    config::Config,
    directory::{Announcement, Directory, EngineName, Node, Options},
    metrics::{Metrics, MetricsServer, Readiness, serve},
    transport::Address,
};
use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::{Map, Value};

use crate::{
    abi,
    arguments::{Array, In, Out, Text},
    config::Settings,
    descriptor::{Described, absent},
    event::Happened,
    failure::{Failure, Status, call},
    handle::{Handle, Object},
    memory::{Memory, check_apart},
    progress::Progress,
    structs::{EngineOptions, Node as PeerNode},
    text::Given,
};

/// An engine at work, or one that was closed and has events left.
pub(crate) struct Running {
    pub(crate) engine: Engine,
    pub(crate) described: Arc<Described>,
    pub(crate) config: Config,
    pub(crate) progress: Arc<Progress>,
    ranks: Vec<u32>,
    name: EngineName,
    node: u32,
    epoch: u64,
    /// One a rank, if pages that are used again are counted.
    generations: Vec<Generations>,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    /// Regions that its memory goes back to, in the order in which it was given.
    regions: Vec<Arc<Memory>>,
    polled: Mutex<()>,
    outside: Mutex<Outside>,
    process: u32,
}

/// What goes on outside of the engine's thread.
#[derive(Default)]
struct Outside {
    server: Option<MetricsServer>,
    announcement: Option<Announcement>,
    directory: Option<Arc<Directory>>,
    closed: bool,
}

impl Object for Running {
    const KIND: u8 = 0x87;
    const NAME: &'static str = "moai_engine";
}

/// As a failure of the interface.
pub(crate) fn refused(error: EngineError) -> Failure {
    let message = error.to_string();
    match error {
        EngineError::Over => {
            Failure::new(Status::Over, "the engine is closed, or its thread is gone").at("engine")
        }
        EngineError::Unread { waiting, limit } => {
            let why = format!(
                "{waiting} events wait, and at most {limit} may; moai_engine_poll takes them"
            );
            Failure::new(Status::Refused, why).at("engine")
        }
        EngineError::Fabric(moai_fabric::FabricError::Config(error)) => {
            crate::config::refused(error)
        }
        EngineError::Fabric(_) | EngineError::System(_) => Failure::new(Status::System, message),
        _ => Failure::new(Status::Value, message),
    }
}

/// The time that C gives; `None` for no end.
pub(crate) fn limit(nanoseconds: u64) -> Option<Duration> {
    (nanoseconds != u64::MAX).then(|| Duration::from_nanos(nanoseconds))
}

pub(crate) fn flag(value: u32, field: &str) -> Result<bool, Failure> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        other => {
            let why = format!("is {other}; expected 0 or 1");
            Err(Failure::new(Status::Value, why).at(field))
        }
    }
}

pub(crate) fn unused(value: u32, field: &str) -> Result<(), Failure> {
    if value == 0 {
        return Ok(());
    }
    Err(Failure::new(Status::Value, format!("is {value}; expected 0")).at(field))
}

/// Longer than any process lives, and not too long for clocks.
const NO_END: Duration = Duration::from_secs(1 << 32);

fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    let drawn = getrandom(&mut bytes[..], GetRandomFlags::empty());
    drawn.map_err(|error| Failure::new(Status::System, format!("no random bytes: {error}")))?;
    Ok(bytes)
}

impl Handle<Running> {
    /// The engine, in the process that started it.
    pub(crate) fn running(self) -> Result<Arc<Running>, Failure> {
        let running = self.get("engine")?;
        let (here, there) = (process::id(), running.process);
        if here != there {
            let why =
                format!("was started by process {there}; this is process {here}, forked from it");
            let failure = Failure::new(Status::Thread, why)
                .at("engine")
                .values(here, there);
            return Err(failure.hint("start engines after forking"));
        }
        Ok(running)
    }
}

impl Running {
    fn start(
        settings: &Settings,
        described: Arc<Described>,
        options: &EngineOptions,
    ) -> Result<Self, Failure> {
        let field = |name: &str| format!("options.{name}");
        let config = settings.read()?;
        let name_text = options.name.read(&field("name"))?;
        let name: EngineName =
            name_text
                .parse()
                .map_err(|error: moai_fabric::directory::EntryError| {
                    Failure::new(Status::Value, format!("{name_text:?} {error}")).at(field("name"))
                })?;
        let produces = flag(options.produces, &field("produces"))?;
        let consumes = flag(options.consumes, &field("consumes"))?;
        if !produces && !consumes {
            let why = "and options.consumes are 0: an engine that does neither is of no use";
            return Err(Failure::new(Status::Value, why)
                .at(field("produces"))
                .hint("set one of them"));
        }
        let ranks = options
            .ranks
            .read(options.rank_count, &field("ranks"))?
            .to_vec();
        if ranks.is_empty() {
            let why = "is 0; a process holds one rank at least";
            return Err(Failure::new(Status::Value, why).at(field("rank_count")));
        }
        let epoch = match options.epoch {
            // 0 stands for none.
            0 => u64::from_le_bytes(random()?).max(1),
            epoch => epoch,
        };
        let key = match options.key.is_null() {
            true => random()?,
            false => {
                let bytes = options.key.read(32, &field("key"))?;
                let mut key = [0; 32];
                key.copy_from_slice(bytes);
                key
            }
        };
        let mut wanted = Vec::new();
        for (index, &rank) in ranks.iter().enumerate() {
            let field = format!("options.ranks[{index}]");
            let all = &described.side.ranks;
            let shard = { all.get(rank as usize) }.ok_or_else(|| {
                let count = all.len();
                let why = format!("is {rank}; the description has {count} ranks");
                Failure::new(Status::Value, why)
                    .at(&field)
                    .values(count, rank)
            })?;
            if ranks[..index].contains(&rank) {
                let why = format!("is {rank}, which stands there already");
                return Err(Failure::new(Status::Value, why).at(field));
            }
            wanted.extend(shard.regions.iter().map(|spec| (rank, spec)));
        }
        let given = options
            .regions
            .read(options.region_count, &field("regions"))?;
        if given.len() != wanted.len() {
            let (given, described) = (given.len(), wanted.len());
            let why = format!("is {given}; the ranks of this process have {described} regions");
            return Err(Failure::new(Status::Value, why)
                .at(field("region_count"))
                .values(described, given));
        }
        let mut regions = Vec::new();
        for (index, (handle, (rank, spec))) in given.iter().zip(&wanted).enumerate() {
            let field = format!("options.regions[{index}]");
            let region = handle.get(&field)?;
            let (has, needs) = ((region.span().1 - region.span().0) as u64, spec.bytes);
            if has < needs {
                let name = &spec.name;
                let why = format!("has {has} bytes; region {name} of rank {rank} has {needs}");
                return Err(Failure::new(Status::Value, why)
                    .at(field)
                    .values(needs, has));
            }
            regions.push(region);
        }
        check_apart(&regions, "options.regions")?;
        let mut node = node::Config::new(
            name_text,
            options.node,
            ranks.clone(),
            epoch,
            EngineKey::new(key),
        );
        node.seed = u64::from_le_bytes(random()?);
        if options.heartbeat_ns > 0 {
            node.heartbeat_ns = options.heartbeat_ns;
        }
        if options.loss_ns > 0 {
            node.loss_ns = options.loss_ns;
        }
        if node.loss_ns <= node.heartbeat_ns {
            let (loss, beat) = (node.loss_ns, node.heartbeat_ns);
            let why = format!(
                "is {loss} ns, and heartbeats come every {beat} ns: peers would be lost between two"
            );
            return Err(Failure::new(Status::Value, why)
                .at(field("loss_ns"))
                .values(beat, loss));
        }
        let generations: Vec<Generations> =
            match flag(options.counts_reuse, &field("counts_reuse"))? {
                false => Vec::new(),
                true => { ranks.iter() }
                    .map(|&rank| Generations::new(described.side.ranks[rank as usize].pages))
                    .collect(),
            };
        let metrics = Arc::new(Metrics::new());
        let readiness = Readiness::new(Arc::clone(&metrics));
        let server = match config.metrics {
            None => None,
            Some(address) => {
                let served = serve(address, Arc::clone(&metrics), readiness.clone());
                Some(served.map_err(|error| {
                    Failure::new(Status::System, error.to_string()).at("MOAI_METRICS")
                })?)
            }
        };
        let progress = Arc::new(Progress::default());
        let engine = take_all(&regions, |mut taken| {
            let mut pools = Vec::new();
            for &rank in &ranks {
                let rest = taken.split_off(described.side.ranks[rank as usize].regions.len());
                pools.push(std::mem::replace(&mut taken, rest));
            }
            let profile = Profile::new(produces, consumes, described.json.as_str());
            let mut setup = EngineSetup::new(node, profile, pools);
            setup.generations = generations.iter().cloned().map(Some).collect();
            setup.readiness = Some(readiness.clone());
            let hears = Arc::clone(&progress);
            setup.listener = Some(Listener::new(move |event| hears.hear(event)));
            let fabric = Fabric::new(config.clone()).with_metrics(Arc::clone(&metrics));
            Engine::start_with(&fabric, setup, |memory| give_back(&regions, memory))
                .map_err(refused)
        })?;
        Ok(Self {
            engine,
            described,
            config,
            progress,
            ranks,
            name,
            node: options.node,
            epoch,
            generations,
            metrics,
            readiness,
            regions,
            polled: Mutex::default(),
            outside: Mutex::new(Outside {
                server,
                ..Outside::default()
            }),
            process: process::id(),
        })
    }

    fn outside(&self) -> std::sync::MutexGuard<'_, Outside> {
        self.outside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it, and gives the regions their memory back.
    fn close(&self) -> Result<(), Failure> {
        let mut outside = self.outside();
        if std::mem::replace(&mut outside.closed, true) {
            return Err(refused(EngineError::Over));
        }
        // First, so that nobody is sent here any more.
        outside.announcement = None;
        let stopped = self.engine.stop();
        self.progress.end();
        outside.server = None;
        outside.directory = None;
        let memory = stopped.map_err(refused)?;
        give_back(&self.regions, memory);
        Ok(())
    }

    /// The directory of the configuration.
    fn directory(&self) -> Result<Arc<Directory>, Failure> {
        let mut outside = self.outside();
        if outside.closed {
            return Err(refused(EngineError::Over));
        }
        if let Some(directory) = &outside.directory {
            return Ok(Arc::clone(directory));
        }
        let source = self.config.directory.clone().ok_or_else(|| {
            let failure = Failure::new(
                Status::Config,
                "is not set, and names of engines are looked up there",
            );
            failure
                .at("MOAI_DIRECTORY")
                .hint("set it, or use moai_engine_know")
        })?;
        let opened = Directory::open(source, Options::default());
        let opened = opened.map_err(|error| {
            Failure::new(Status::System, error.to_string()).at("MOAI_DIRECTORY")
        })?;
        let opened = Arc::new(opened);
        outside.directory = Some(Arc::clone(&opened));
        Ok(opened)
    }

    fn poll(&self, limit: Option<Duration>) -> Result<Happened, Failure> {
        let _one = match self.polled.try_lock() {
            Ok(one) => one,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let why = "another thread polls this engine at the moment";
                return Err(Failure::new(Status::Thread, why).at("engine"));
            }
        };
        loop {
            // What has no end ends when the engine does.
            let limit = limit.unwrap_or(NO_END);
            match self.engine.event(limit).map_err(refused)? {
                None => return Err(Failure::new(Status::Timeout, "nothing happened in time")),
                Some(event) => {
                    if let Some(happened) = Happened::new(event) {
                        return Ok(happened);
                    }
                }
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if process::id() == self.process {
            // It may be closed already.
            let _ = self.close();
        }
    }
}

fn give_back(regions: &[Arc<Memory>], memory: Vec<moai_fabric::memory::Region>) {
    for (region, memory) in regions.iter().zip(memory) {
        region.give_back(memory);
    }
}

/// Takes the memory of all regions for what is done with it; if that fails, they are as before.
fn take_all<T>(
    regions: &[Arc<Memory>],
    work: impl FnOnce(Vec<moai_fabric::memory::Region>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut taken = Vec::new();
    for (index, region) in regions.iter().enumerate() {
        match region.take(&format!("options.regions[{index}]")) {
            Ok(memory) => taken.push(memory),
            Err(failure) => {
                give_back(regions, taken);
                return Err(failure);
            }
        }
    }
    work(taken)
}

fn addresses(list: Array<Text>, count: u32, field: &str) -> Result<Vec<Address>, Failure> {
    let texts = list.read(count, &format!("{field}.addresses"))?;
    let address = |(index, text): (usize, &Text)| {
        let field = format!("{field}.addresses[{index}]");
        let text = text.read(&field)?;
        let parsed = text.parse::<Address>();
        parsed.map_err(|error| Failure::new(Status::Value, error.to_string()).at(field))
    };
    texts.iter().enumerate().map(address).collect()
}

abi! {
    fn moai_engine_new(
        config: Handle<Settings>,
        descriptor: Handle<Described>,
        options: In<EngineOptions>,
        engine: Out<Handle<Running>>,
    ) {
        let config = config.get("config")?;
        let described = descriptor.get("descriptor")?;
        let options = options.read("options")?;
        let place = engine.place("engine")?;
        place.write(Handle::new(Running::start(&config, described, &options)?)?);
        Ok(())
    }

    fn moai_engine_close(engine: Handle<Running>) {
        engine.running()?.close()
    }

    fn moai_engine_address_count(engine: Handle<Running>, count: Out<u32>) {
        let engine = engine.running()?;
        count.place("count")?.write(engine.engine.addresses().len() as u32);
        Ok(())
    }

    fn moai_engine_address(engine: Handle<Running>, index: u32, address: Out<Given>) {
        let engine = engine.running()?;
        let place = address.text("address")?;
        let all = engine.engine.addresses();
        let found = { all.get(index as usize) }.ok_or_else(|| absent("index", index, all.len()))?;
        place.give(found.to_string());
        Ok(())
    }

    fn moai_engine_epoch(engine: Handle<Running>, epoch: Out<u64>) {
        let engine = engine.running()?;
        epoch.place("epoch")?.write(engine.epoch);
        Ok(())
    }

    fn moai_engine_know(engine: Handle<Running>, name: Text, nodes: Array<PeerNode>, node_count: u32) {
        let engine = engine.running()?;
        let name = name.read("name")?;
        let mut known = Vec::new();
        for (index, node) in nodes.read_structs(node_count, "nodes")?.iter().enumerate() {
            let field = format!("nodes[{index}]");
            unused(node.reserved, &format!("{field}.reserved"))?;
            let ranks = node.ranks.read(node.rank_count, &format!("{field}.ranks"))?.to_vec();
            known.push((node.number, ranks, addresses(node.addresses, node.address_count, &field)?));
        }
        engine.engine.know(name, &known).map_err(|error| match error {
            EngineError::Setup(why) => Failure::new(Status::Value, why).at("nodes"),
            error => refused(error),
        })
    }

    fn moai_engine_follow(engine: Handle<Running>, names: Array<Text>, name_count: u32) {
        let engine = engine.running()?;
        let names = names.read(name_count, "names")?;
        let name = |(index, text): (usize, &Text)| {
            let field = format!("names[{index}]");
            let parsed = text.read(&field)?.parse::<EngineName>();
            parsed.map_err(|error| Failure::new(Status::Value, error.to_string()).at(field))
        };
        let names = names.iter().enumerate().map(name).collect::<Result<_, _>>()?;
        let directory = engine.directory()?;
        engine.engine.follow(directory, names).map_err(refused)
    }

    fn moai_engine_announce(engine: Handle<Running>) {
        let engine = engine.running()?;
        let directory = engine.directory()?;
        let wrong = |error: String| Failure::new(Status::System, error).at("MOAI_DIRECTORY");
        let node = Node::at(engine.engine.addresses().to_vec()).map_err(|error| wrong(error.to_string()))?;
        let node = node.numbered(engine.node).holding(engine.ranks.clone());
        let node = node.map_err(|error| wrong(error.to_string()))?.of(None, Some(engine.epoch));
        let announced = directory.announce(&engine.name, node).map_err(|error| wrong(error.to_string()))?;
        engine.outside().announcement = Some(announced);
        Ok(())
    }

    fn moai_engine_reuse(engine: Handle<Running>, rank: u32, page: u32) {
        let engine = engine.running()?;
        if engine.generations.is_empty() {
            let failure = Failure::new(Status::Value, "is 0: pages that are used again are not counted");
            return Err(failure.at("options.counts_reuse").hint("set it when the engine is made"));
        }
        let at = engine.ranks.iter().position(|&own| own == rank).ok_or_else(|| {
            let why = format!("is {rank}, and this process holds {:?}", engine.ranks);
            Failure::new(Status::Value, why).at("rank")
        })?;
        let pages = engine.described.side.ranks[rank as usize].pages;
        if page >= pages {
            return Err(absent("page", page, pages as usize));
        }
        engine.generations[at].reuse(page);
        Ok(())
    }

    fn moai_engine_poll(engine: Handle<Running>, timeout_ns: u64, event: Out<Handle<Happened>>) {
        let engine = engine.running()?;
        let place = event.place("event")?;
        place.write(Handle::new(engine.poll(limit(timeout_ns))?)?);
        Ok(())
    }

    fn moai_engine_fd(engine: Handle<Running>, fd: Out<i32>) {
        use std::os::fd::AsRawFd as _;
        let engine = engine.running()?;
        fd.place("fd")?.write(engine.engine.waiting().as_raw_fd());
        Ok(())
    }

    fn moai_engine_stats(engine: Handle<Running>, json: Out<Given>) {
        let engine = engine.running()?;
        let place = json.text("json")?;
        let (counters, links, entries) = engine.engine.counters().map_err(refused)?;
        let each = counters.each().map(|(name, count)| (name.to_owned(), Value::from(count)));
        let mut stats: Map<String, Value> = each.collect();
        stats.insert("links".to_owned(), links.into());
        stats.insert("entries".to_owned(), entries.into());
        place.give(Value::Object(stats).to_string());
        Ok(())
    }

    fn moai_engine_metrics(engine: Handle<Running>, text: Out<Given>) {
        let engine = engine.running()?;
        text.text("text")?.give(engine.metrics.text());
        Ok(())
    }

    fn moai_engine_ready(engine: Handle<Running>, ready: Out<u32>, why: Out<Given>) {
        let engine = engine.running()?;
        let (place, why) = (ready.place("ready")?, why.optional("why")?);
        let state = engine.readiness.state();
        place.write(state.is_ready().into());
        if let Some(why) = why {
            why.give(state.to_string());
        }
        Ok(())
    }
}

#[unsafe(no_mangle)]
extern "C" fn moai_engine_free(engine: Handle<Running>) {
    let _ = call(move || {
        if engine.is_null() {
            return Ok(());
        }
        // In a child of fork the engine's thread is not there, and nothing of it is touched.
        let running = engine.running()?;
        // Threads that wait for it are to end, and it may be closed already.
        let _ = running.close();
        engine.free()
    });
}
