//! One process of an engine, at work in a thread of its own.
//!
//! The thread has the links, the heartbeats and the pages: an engine that computes, or stands still in a debugger of its own,
//! does not lose its peers. What it is asked goes to it as calls, what happens comes back as [`Event`]s.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use moai_collectives::{
    protocol::{
        handle::Handle,
        node::{self, Counters, Failure, Reason, TransferId},
    },
    transfer::{
        Driver, Event, Generations, Grant, Network as _, Offer, Profile, Pull, Setup, Tuning,
    },
};
use moai_memory::Region;
use moai_transport::Address;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use thiserror::Error;

use crate::{
    Fabric, FabricError,
    directory::{Directory, EngineName, NodeKey, Pin, View},
    inbox::{Inbox, Over},
    limits::MAX_WAITING_EVENTS,
    metrics::{Metrics, ProtocolWatch, Readiness, State, TransportWatch},
    transports::{AddressBook, Ways},
};

/// What an engine's process is.
#[derive(Debug)]
#[non_exhaustive]
pub struct EngineSetup {
    /// Names, ranks, key, epoch and patience of the node. Its descriptor is the profile's.
    pub node: node::Config,
    /// What the engine says of itself to others.
    pub profile: Profile,
    /// Memory of each of the node's ranks, in the order of the regions in its description.
    pub pools: Vec<Vec<Region>>,
    /// By which each rank tells that pages are used for something else.
    pub generations: Vec<Option<Generations>>,
    /// Follows whether there is a compatible peer.
    pub readiness: Option<Readiness>,
    /// Is told of every event before [`Engine::event`] is. Where there is one, it is to tell how transfers go to whoever waits for
    /// that: of events that nobody asks for, those of layers and of transfers that committed make room beyond
    /// [`MAX_WAITING_EVENTS`].
    pub listener: Option<Listener>,
}

/// Hears of events on the engine's thread, which waits meanwhile: it is to be short, and must not call the engine.
#[derive(Clone)]
pub struct Listener(Arc<dyn Fn(&Event) + Send + Sync>);

impl Listener {
    /// Calls a function.
    pub fn new(hear: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hear))
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener(..)")
    }
}

impl EngineSetup {
    /// With pages of which none is used for anything else while it is offered.
    #[must_use]
    pub fn new(node: node::Config, profile: Profile, pools: Vec<Vec<Region>>) -> Self {
        Self {
            node,
            profile,
            pools,
            generations: Vec::new(),
            readiness: None,
            listener: None,
        }
    }
}

/// An engine's process could not be started, or is over.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A setting forbids it, or a transport cannot be opened.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// What it is made of cannot be.
    #[error("{0}")]
    Setup(String),
    /// The system refuses a thread or a descriptor.
    #[error("cannot start the engine's thread: {0}")]
    System(#[source] io::Error),
    /// It would cause events, and too many wait.
    #[error(
        "{waiting} events wait, and nothing is begun beyond {limit}; ask for them: Engine::event"
    )]
    Unread {
        /// Events that nobody has asked for.
        waiting: usize,
        /// [`MAX_WAITING_EVENTS`].
        limit: usize,
    },
    /// Its thread is gone.
    #[error("the engine's thread is over; its log says why")]
    Over,
}

/// What is done on the engine's thread.
type Call = Box<dyn FnOnce(&mut Worker) + Send>;

/// One process of an engine, at work in a thread of its own.
///
/// The thread has the links, the heartbeats and the pages: an engine that is busy computing does not lose its peers. What
/// it is asked goes there as calls, what happens comes back as [`Event`]s. Calls wait for an answer, which takes as long as what is
/// under way there, a fraction of a millisecond.
pub struct Engine {
    calls: Sender<Call>,
    wake: Arc<OwnedFd>,
    events: Arc<Inbox>,
    addresses: Vec<Address>,
    thread: Mutex<Option<JoinHandle<Vec<Region>>>>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// What the thread has.
struct Worker {
    driver: Driver<Ways>,
    memory: Vec<Region>,
    book: AddressBook,
    following: Option<Following>,
    over: bool,
}

/// A directory that is followed.
struct Following {
    directory: Arc<Directory>,
    engines: Vec<EngineName>,
    version: Option<u64>,
    /// Nodes that are linked to, which the directory is to keep.
    pins: HashMap<(Arc<str>, u32), Pin>,
    views: HashMap<EngineName, Arc<View>>,
}

/// How often a directory that is followed is looked at: new nodes are found as soon, and it costs next to nothing.
const FOLLOW_PERIOD: Duration = Duration::from_millis(200);
/// How often counters are taken over.
const COUNT_PERIOD: Duration = Duration::from_millis(250);
/// How long peers have to hear that this engine ends.
const LINGER: Duration = Duration::from_millis(500);

impl Engine {
    /// Starts it, listening as the fabric's configuration says.
    ///
    /// # Errors
    ///
    /// [`EngineError`].
    pub fn start(fabric: &Fabric, setup: EngineSetup) -> Result<Self, EngineError> {
        Self::start_with(fabric, setup, |_| ())
    }

    /// As [`start`](Self::start), for memory that is somebody else's: `give_back` has all of it in the order of the pools if the
    /// engine cannot be started, unless that is because the system has no thread for it.
    ///
    /// # Errors
    ///
    /// [`EngineError`].
    pub fn start_with(
        fabric: &Fabric,
        setup: EngineSetup,
        give_back: impl FnOnce(Vec<Region>),
    ) -> Result<Self, EngineError> {
        let allowed = fabric.config().allow(fabric.config().bind);
        if let Err(error) = allowed {
            give_back(setup.pools.into_iter().flatten().collect());
            return Err(FabricError::from(error).into());
        }
        let (calls, to_do) = channel::<Call>();
        let events = Inbox::new(MAX_WAITING_EVENTS, setup.listener.is_some());
        let events = Arc::new(events.map_err(EngineError::System)?);
        let (ready, is_ready) = channel();
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = eventfd(0, flags).map_err(|error| EngineError::System(error.into()))?;
        let wake = Arc::new(wake);
        let (fabric, woken) = (fabric.clone(), Arc::clone(&wake));
        let told = Told(Arc::clone(&events));
        let name = format!("moai-{}", setup.node.engine);
        let thread = std::thread::Builder::new().name(name);
        let thread = thread.spawn(move || {
            // Interfaces belong to one thread: this one opens them.
            let readiness = setup.readiness.clone();
            let listener = setup.listener.clone();
            let mut memory = Vec::new();
            let (mut worker, addresses) = match Worker::open(&fabric, setup, &mut memory) {
                Ok(worker) => worker,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return memory;
                }
            };
            let _ = ready.send(Ok(addresses));
            let watch = Watch {
                metrics: fabric.metrics().cloned(),
                readiness,
                listener,
                told,
                protocol: ProtocolWatch::new(),
                transport: TransportWatch::new(),
                last: Instant::now(),
            };
            worker.run(&to_do, &woken, watch);
            worker.memory
        });
        let thread = thread.map_err(EngineError::System)?;
        let addresses = match is_ready.recv().unwrap_or(Err(EngineError::Over)) {
            Ok(addresses) => addresses,
            Err(error) => {
                // A panic there was reported when it happened.
                give_back(thread.join().unwrap_or_default());
                return Err(error);
            }
        };
        Ok(Self {
            calls,
            wake,
            events,
            addresses,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Where it listens, in every way in which it does.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Says which nodes an engine has: their numbers, ranks and addresses. Links to all of them are kept up from now on.
    ///
    /// # Errors
    ///
    /// [`EngineError`], also if the name cannot be that of an engine.
    pub fn know(
        &self,
        engine: &str,
        nodes: &[(u32, Vec<u32>, Vec<Address>)],
    ) -> Result<(), EngineError> {
        let (engine, nodes) = (engine.to_owned(), nodes.to_vec());
        let known = self.call(move |worker| worker.know(&engine, nodes))?;
        known.map_err(EngineError::Setup)
    }

    /// Finds the nodes of some engines in a directory, and keeps links to them. Nodes that are linked to are kept
    /// whatever becomes of the directory.
    ///
    /// # Errors
    ///
    /// [`EngineError::Over`].
    pub fn follow(
        &self,
        directory: Arc<Directory>,
        engines: Vec<EngineName>,
    ) -> Result<(), EngineError> {
        self.call(move |worker| {
            worker.following = Some(Following {
                directory,
                engines,
                version: None,
                pins: HashMap::new(),
                views: HashMap::new(),
            });
        })
    }

    /// Offers a request's pages: see [`Driver::offer`].
    ///
    /// # Errors
    ///
    /// [`EngineError`].
    pub fn offer(&self, offer: Offer) -> Result<Handle, EngineError> {
        self.may_begin()?;
        let offered = self.call(move |worker| worker.driver.offer(offer))?;
        offered.map_err(EngineError::Setup)
    }

    /// The first tokens of a layer of an offer are written: see [`Driver::layer_ready`].
    ///
    /// # Errors
    ///
    /// [`EngineError::Over`].
    pub fn layer_ready(&self, offer: u64, layer: u32, tokens: u32) -> Result<(), EngineError> {
        self.call(move |worker| worker.driver.layer_ready(offer, layer, tokens))
    }

    /// Keeps an offer's pages for at least so long from now.
    ///
    /// # Errors
    ///
    /// [`EngineError::Over`].
    pub fn extend(&self, offer: u64, lease: Duration) -> Result<(), EngineError> {
        self.call(move |worker| worker.driver.extend(offer, lease))
    }

    /// Takes an offer back; [`Event::Released`] says when its pages are free.
    ///
    /// # Errors
    ///
    /// [`EngineError::Over`].
    pub fn withdraw(&self, offer: u64) -> Result<(), EngineError> {
        self.call(move |worker| worker.driver.withdraw(offer))
    }

    /// Pushes an offer into a grant: see [`Driver::push`].
    ///
    /// # Errors
    ///
    /// [`EngineError::Over`] and [`EngineError::Unread`]; within, why it cannot be pushed.
    pub fn push(
        &self,
        offer: u64,
        grant: &Handle,
    ) -> Result<Result<(), (Reason, String)>, EngineError> {
        self.may_begin()?;
        let grant = grant.clone();
        self.call(move |worker| worker.driver.push(offer, &grant))
    }

    /// Begins to pull a request: see [`Driver::pull`].
    ///
    /// # Errors
    ///
    /// [`EngineError::Over`] and [`EngineError::Unread`]; within, why it cannot begin.
    pub fn pull(&self, pull: Pull) -> Result<Result<TransferId, Failure>, EngineError> {
        self.may_begin()?;
        self.call(move |worker| worker.driver.pull(pull))
    }

    /// Ends a transfer: see [`Driver::cancel`].
    ///
    /// # Errors
    ///
    /// [`EngineError::Over`].
    pub fn cancel(&self, transfer: TransferId) -> Result<(), EngineError> {
        self.call(move |worker| worker.driver.cancel(transfer))
    }

    /// Grants pages, to be filled by a push: see [`Driver::grant`].
    ///
    /// # Errors
    ///
    /// [`EngineError`].
    pub fn grant(&self, grant: Grant) -> Result<Handle, EngineError> {
        self.may_begin()?;
        let granted = self.call(move |worker| worker.driver.grant(grant))?;
        granted.map_err(EngineError::Setup)
    }

    /// Takes a grant back; [`Event::Returned`] says when its pages are free.
    ///
    /// # Errors
    ///
    /// [`EngineError::Over`].
    pub fn revoke(&self, grant: u64) -> Result<(), EngineError> {
        self.call(move |worker| worker.driver.revoke(grant))
    }

    /// What its node has counted, links that are ready, and entries of its tables.
    ///
    /// # Errors
    ///
    /// [`EngineError::Over`].
    pub fn counters(&self) -> Result<(Counters, usize, usize), EngineError> {
        self.call(|worker| {
            let driver = &worker.driver;
            (*driver.counters(), driver.links(), driver.size())
        })
    }

    /// Does something with the pages of all ranks, one after another, on the engine's thread: nothing is transferred
    /// meanwhile, so it is to be short.
    ///
    /// # Errors
    ///
    /// [`EngineError::Over`].
    pub fn with_memory<R: Send + 'static>(
        &self,
        look: impl FnOnce(&mut [Region]) -> R + Send + 'static,
    ) -> Result<R, EngineError> {
        self.call(move |worker| look(&mut worker.memory))
    }

    /// What happened next, if it happens in time.
    ///
    /// # Errors
    ///
    /// [`EngineError::Over`], once everything that happened was told.
    pub fn event(&self, limit: Duration) -> Result<Option<Event>, EngineError> {
        self.events.next(limit).map_err(|Over| EngineError::Over)
    }

    /// Is readable while an event waits, and once no more will come. Not to be read from: [`event`](Self::event) does.
    #[must_use]
    pub fn waiting(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Ends it, so that peers hear of it, and gives the memory back: nothing is read or written there any more.
    ///
    /// # Errors
    ///
    /// [`EngineError::Over`] if its thread had failed.
    pub fn close(self) -> Result<Vec<Region>, EngineError> {
        self.stop()
    }

    /// As [`close`](Self::close), for an engine that others use as well: their calls end with [`EngineError::Over`], and what
    /// happened until then can still be asked for.
    ///
    /// # Errors
    ///
    /// [`EngineError::Over`] if its thread had failed, or it was stopped before.
    pub fn stop(&self) -> Result<Vec<Region>, EngineError> {
        self.end();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let thread = thread.take().ok_or(EngineError::Over)?;
        thread.join().map_err(|_| EngineError::Over)
    }

    /// Whether what causes events may begin.
    fn may_begin(&self) -> Result<(), EngineError> {
        let limit = MAX_WAITING_EVENTS;
        let full = self.events.full();
        full.map_or(Ok(()), |waiting| {
            Err(EngineError::Unread { waiting, limit })
        })
    }

    fn end(&self) {
        let _ = self.calls.send(Box::new(|worker| worker.over = true));
        self.wake();
    }

    fn wake(&self) {
        // It is full only if a wake-up is pending already.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }

    fn call<R: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Worker) -> R + Send + 'static,
    ) -> Result<R, EngineError> {
        let (answer, answered) = channel();
        let call: Call = Box::new(move |worker| drop(answer.send(call(worker))));
        self.calls.send(call).map_err(|_| EngineError::Over)?;
        self.wake();
        answered.recv().map_err(|_| EngineError::Over)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // A panic there was reported when it happened.
        let _ = self.stop();
    }
}

/// Says that no other event will come, however the thread ends.
struct Told(Arc<Inbox>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Who is told what happens.
struct Watch {
    metrics: Option<Arc<Metrics>>,
    readiness: Option<Readiness>,
    listener: Option<Listener>,
    told: Told,
    protocol: ProtocolWatch,
    transport: TransportWatch,
    last: Instant,
}

impl Worker {
    /// Leaves its memory in `memory` if it cannot be opened.
    fn open(
        fabric: &Fabric,
        setup: EngineSetup,
        memory: &mut Vec<Region>,
    ) -> Result<(Self, Vec<Address>), EngineError> {
        let EngineSetup {
            mut node,
            profile,
            pools,
            generations,
            ..
        } = setup;
        node.descriptor = profile.to_bytes().into();
        let lens: Vec<usize> = pools.iter().map(Vec::len).collect();
        memory.extend(pools.into_iter().flatten());
        let descriptor = profile.descriptor().map_err(EngineError::Setup)?;
        let mut rest = memory.as_slice();
        for (&rank, &len) in node.ranks.iter().zip(&lens) {
            let (pool, others) = rest.split_at(len);
            fits(&descriptor, rank, pool).map_err(EngineError::Setup)?;
            rest = others;
        }
        let book = AddressBook::default();
        let ways = Ways {
            transports: fabric.open(true)?,
            book: book.clone(),
            config: fabric.config().clone(),
        };
        let addresses = ways.transports.addresses();
        let options = fabric.options();
        let setup = Setup {
            node,
            negotiate: profile.negotiate().map_err(EngineError::Setup)?,
            descriptor: Some(descriptor),
            regions: lens,
            generations,
            tuning: Tuning {
                max_bytes_per_second: options.max_bytes_per_second,
                map: options.map,
                rates: options.rates,
            },
        };
        let worker = Self {
            driver: Driver::new(setup, ways).map_err(EngineError::Setup)?,
            memory: std::mem::take(memory),
            book,
            following: None,
            over: false,
        };
        Ok((worker, addresses))
    }

    fn run(&mut self, calls: &Receiver<Call>, woken: &OwnedFd, mut watch: Watch) {
        while !self.over {
            let mut token = [0; 8];
            // Before the calls are looked at: one that comes later wakes again.
            let _ = rustix::io::read(woken, &mut token);
            while let Ok(call) = calls.try_recv() {
                call(self);
            }
            self.look_up();
            let mut wait = self.driver.poll(&mut self.memory, Duration::ZERO);
            self.tell(&mut watch);
            if self.over || wait.is_zero() {
                continue;
            }
            if self.following.is_some() {
                wait = wait.min(FOLLOW_PERIOD);
            }
            if watch.metrics.is_some() {
                wait = wait.min(COUNT_PERIOD.max(Duration::from_secs(1)));
            }
            let interface = self.driver.network().interface();
            let wait = interface.arm().map_or(wait, |armed| armed.min(wait));
            let interface = self.driver.network().interface();
            let mut fds = [
                PollFd::from_borrowed_fd(interface.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(woken.as_fd(), PollFlags::IN),
            ];
            let wait = Timespec::try_from(wait).ok();
            // What interrupts it, or fails, is looked at in the next turn.
            let _ = poll(&mut fds, wait.as_ref());
        }
        self.driver.shutdown(&mut self.memory, LINGER);
        watch.last = Instant::now() - COUNT_PERIOD;
        self.tell(&mut watch);
        if let Some(readiness) = &watch.readiness {
            readiness.set(State::linked(0));
        }
    }

    /// Tells what happened.
    fn tell(&mut self, watch: &mut Watch) {
        let mut any = false;
        while let Some(event) = self.driver.event() {
            if !any && let Some(readiness) = &watch.readiness {
                // Before it is told: whoever hears of a peer finds that it counts.
                readiness.set(State::linked(self.driver.links()));
            }
            any = true;
            let metrics = watch.metrics.as_deref();
            match &event {
                Event::PeerUp { engine, node, .. } => self.pin(engine, *node),
                Event::PeerLost { engine, node, .. } => {
                    if let Some(following) = &mut self.following {
                        following.pins.remove(&(Arc::clone(engine), *node));
                    }
                }
                Event::Ended { report, .. } | Event::Released { report, .. } => {
                    if let Some(metrics) = metrics {
                        metrics.transfer(report);
                    }
                    if let Ok(line) = serde_json::to_string(report) {
                        tracing::debug!(target: "moai::report", "{line}");
                    }
                }
                _ => {}
            }
            if let Some(Listener(hear)) = &watch.listener {
                hear(&event);
            }
            watch.told.0.put(event);
        }
        if let Some(metrics) = watch.metrics.as_deref()
            && (any || watch.last.elapsed() >= COUNT_PERIOD)
        {
            watch.last = Instant::now();
            let links = self.driver.links();
            watch.protocol.take(self.driver.counters(), links, metrics);
            watch
                .transport
                .take(self.driver.network().transports.stack(), metrics);
        }
    }

    fn know(
        &mut self,
        engine: &str,
        nodes: Vec<(u32, Vec<u32>, Vec<Address>)>,
    ) -> Result<(), String> {
        let ranks: Vec<(u32, Vec<u32>)> = { nodes.iter() }
            .map(|(node, ranks, _)| (*node, ranks.clone()))
            .collect();
        self.driver.know(engine, &ranks)?;
        let addresses = nodes.into_iter();
        self.book
            .set(engine, addresses.map(|(node, _, all)| (node, all)));
        self.driver.connect(engine);
        Ok(())
    }

    /// Looks at the directory, if something there has changed.
    fn look_up(&mut self) {
        let Some(following) = &mut self.following else {
            return;
        };
        let version = following.directory.version();
        if following.version == Some(version) {
            return;
        }
        following.version = Some(version);
        let mut changed = Vec::new();
        for engine in &following.engines {
            let view = following.directory.view(engine);
            // The first look makes the directory ask, and waits for its answer; later ones find it.
            let view = view.or_else(|| following.directory.watch(engine).ok());
            let Some(view) = view else { continue };
            if following.views.get(engine) != Some(&view) {
                following.views.insert(engine.clone(), Arc::clone(&view));
                changed.push((engine.clone(), view));
            }
        }
        for (engine, view) in changed {
            let mut nodes: BTreeMap<u32, (Vec<u32>, Vec<Address>)> = BTreeMap::new();
            for (at, known) in (0..).zip(&view.nodes) {
                // A source that gives no numbers, as name servers, lists nodes in order.
                let number = known.node.number.unwrap_or(at);
                let ranks = match known.node.ranks.is_empty() {
                    true => vec![number],
                    false => known.node.ranks.clone(),
                };
                nodes.insert(number, (ranks, known.node.addresses.clone()));
            }
            let nodes = nodes.into_iter();
            let nodes = nodes.map(|(number, (ranks, all))| (number, ranks, all));
            if let Err(why) = self.know(engine.as_str(), nodes.collect()) {
                tracing::warn!(%engine, reason = %why, "what the directory says cannot be");
            }
        }
    }

    /// A node that is linked to stays in the directory's views.
    fn pin(&mut self, engine: &Arc<str>, node: u32) {
        let Some(following) = &mut self.following else {
            return;
        };
        let Some(name) = following
            .engines
            .iter()
            .find(|name| name.as_str() == &**engine)
        else {
            return;
        };
        let pin = following.directory.pin(name, &NodeKey::Number(node));
        following.pins.insert((Arc::clone(engine), node), pin);
    }
}

/// A rank's memory is what its description says.
fn fits(
    side: &moai_collectives::descriptor::Descriptor,
    rank: u32,
    pool: &[Region],
) -> Result<(), String> {
    let Some(shard) = side.ranks.get(rank as usize) else {
        let ranks = side.ranks.len();
        return Err(format!(
            "node holds rank {rank}; the description has {ranks}"
        ));
    };
    if shard.regions.len() != pool.len() {
        let (given, described) = (pool.len(), shard.regions.len());
        return Err(format!(
            "rank {rank}: {given} regions are given, {described} described"
        ));
    }
    for (spec, region) in shard.regions.iter().zip(pool) {
        if region.len() < spec.bytes {
            let (name, given, described) = (&spec.name, region.len(), spec.bytes);
            return Err(format!(
                "rank {rank}, region {name}: {given} bytes are given, {described} described"
            ));
        }
    }
    Ok(())
}
