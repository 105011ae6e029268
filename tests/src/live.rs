//! Engines at work in one process, for tests: small caches with seeded values, and what a transfer is to leave behind.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use moai_collectives::{
    descriptor::Descriptor,
    digest::mix,
    execute::{Agreed, Pool, Requested, convert},
    protocol::{
        handle::EngineKey,
        node::{self, TransferId},
    },
    request::Request,
    transfer::{Event, Generations, Profile, Report},
};
use moai_fabric::{Engine, EngineSetup, Fabric, config::Config};
use moai_memory::{MemoryKind, Region};
use moai_transport::Address;
use serde_json::json;

/// What a cache looks like, and in how many ranks.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "tests write these out")]
pub struct Shape {
    /// Tensor parallel ranks.
    pub tp: u32,
    /// Format of the elements.
    pub element: &'static str,
    /// Layout of the keys' pool.
    pub layout: &'static str,
    /// Tokens a page.
    pub slots: u32,
    /// Pages of a rank.
    pub pages: u32,
    /// Layers.
    pub layers: u32,
}

impl Shape {
    /// Two ranks with pages of 16.
    pub const PREFILL: Self = Self {
        tp: 2,
        element: "bf16",
        layout: "[layer] page slot head dim",
        slots: 16,
        pages: 64,
        layers: 4,
    };

    /// One rank with pages of 32 in another order and format.
    pub const DECODE: Self = Self {
        tp: 1,
        element: "e4m3fn",
        layout: "[layer] page head dim/8 slot dim%8",
        slots: 32,
        pages: 32,
        layers: 4,
    };

    /// The description, as engines tell it to each other.
    #[must_use]
    pub fn description(&self) -> String {
        let ranks: Vec<_> = (0..self.tp)
            .map(|rank| json!({ "rank": rank, "pages": self.pages }))
            .collect();
        let document = json!({
            "version": 1, "model": { "layers": self.layers }, "parallel": { "tp": self.tp },
            "page_slots": self.slots,
            "components": [{
                "name": "key", "heads": 8, "dim": 64, "pool": "kv",
                "format": { "element": self.element }, "layout": self.layout,
            }],
            "ranks": ranks,
        });
        document.to_string()
    }

    /// The descriptor.
    ///
    /// # Panics
    ///
    /// If the shape cannot be.
    #[must_use]
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::from_json(&self.description()).expect("a shape of ours")
    }

    /// Memory of all ranks, filled from a seed.
    ///
    /// # Panics
    ///
    /// If there is no memory.
    #[must_use]
    pub fn pools(&self, kind: MemoryKind, seed: u64) -> Vec<Pool> {
        let pool = |rank: &moai_collectives::descriptor::RankShard| {
            let specs = rank.regions.iter().enumerate();
            specs
                .map(|(index, spec)| {
                    let mut region = match kind {
                        MemoryKind::Shared => Region::shared_zeroed(spec.bytes),
                        _ => Region::host_zeroed(spec.bytes),
                    }
                    .expect("memory");
                    fill(
                        region.as_mut_slice(),
                        seed ^ u64::from(rank.rank) << 32 ^ (index as u64) << 48,
                    );
                    region
                })
                .collect()
        };
        self.descriptor().ranks.iter().map(pool).collect()
    }

    /// A request of so many tokens in the pages from `first` on, the same on all ranks.
    ///
    /// # Panics
    ///
    /// If there are not so many pages.
    #[must_use]
    pub fn request(&self, tokens: u32, first: u32) -> Request {
        let pages: Vec<u32> = (first..first + tokens.div_ceil(self.slots)).collect();
        let mut request = Request::new(&self.descriptor(), tokens);
        request
            .give(0..self.tp, 0, &pages)
            .expect("a request of ours");
        request
    }
}

/// Bytes that are numbers of every format, drawn from a seed.
fn fill(bytes: &mut [u8], seed: u64) {
    for (n, chunk) in (0_u64..).zip(bytes.chunks_mut(8)) {
        // Exponents of bf16 in the middle: nothing is NaN or saturated.
        let word = mix(seed ^ n << 3) & 0x3FFF_3FFF_3FFF_3FFF;
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}

/// An engine that is one process here: one node with all ranks.
#[derive(Debug)]
#[allow(clippy::exhaustive_structs, reason = "tests look at all of it")]
pub struct Live {
    /// Its name.
    pub name: String,
    /// What its cache looks like.
    pub shape: Shape,
    /// The engine.
    pub engine: Engine,
    /// Of each rank.
    pub generations: Vec<Option<Generations>>,
    /// Events that were looked over.
    pub seen: std::cell::RefCell<Vec<Event>>,
}

/// How patient engines are here: links are lost, and fences forced, within a second.
#[must_use]
pub fn config(name: &str, ranks: u32, epoch: u64) -> node::Config {
    let mut config = node::Config::new(
        name,
        0,
        (0..ranks).collect(),
        epoch,
        EngineKey::new([name.len() as u8; 32]),
    );
    let ms = 1_000_000;
    config.heartbeat_ns = 200 * ms;
    config.loss_ns = 800 * ms;
    config.fence_ns = 800 * ms;
    config.backoff_ns = (20 * ms, 200 * ms);
    config.seed = epoch ^ 0x5EED;
    config
}

/// A fabric over some transports.
#[must_use]
pub fn fabric(transports: &str) -> Fabric {
    let mut config = Config::default();
    config.transports = Some(transports.split(',').map(str::to_owned).collect());
    Fabric::new(config)
}

impl Live {
    /// Starts one.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    #[must_use]
    pub fn start(fabric: &Fabric, name: &str, shape: &Shape, epoch: u64, seed: u64) -> Self {
        let kind = fabric.pool_kind();
        let profile = Profile::new(true, true, shape.description());
        let mut setup = EngineSetup::new(
            config(name, shape.tp, epoch),
            profile,
            shape.pools(kind, seed),
        );
        let generations: Vec<_> = (0..shape.tp)
            .map(|_| Some(Generations::new(shape.pages)))
            .collect();
        setup.generations.clone_from(&generations);
        Self {
            name: name.to_owned(),
            shape: shape.clone(),
            engine: Engine::start(fabric, setup).expect("an engine"),
            generations,
            seen: std::cell::RefCell::default(),
        }
    }

    /// Tells it where another is.
    ///
    /// # Panics
    ///
    /// If it is over.
    pub fn know(&self, other: &Self) {
        self.know_at(&other.name, other.shape.tp, other.engine.addresses());
    }

    /// As [`know`](Self::know), by addresses.
    ///
    /// # Panics
    ///
    /// If it is over.
    pub fn know_at(&self, name: &str, ranks: u32, addresses: &[Address]) {
        let ranks = (0..ranks).collect();
        self.engine
            .know(name, &[(0, ranks, addresses.to_vec())])
            .expect("it runs");
    }

    /// Waits for an event that is wanted; others stay in `seen`.
    ///
    /// # Panics
    ///
    /// If it does not come in time.
    pub fn wait<R>(&self, limit: Duration, mut wanted: impl FnMut(&Event) -> Option<R>) -> R {
        let start = Instant::now();
        loop {
            {
                let mut seen = self.seen.borrow_mut();
                let found = seen
                    .iter()
                    .enumerate()
                    .find_map(|(at, event)| Some((at, wanted(event)?)));
                if let Some((at, found)) = found {
                    seen.remove(at);
                    return found;
                }
            }
            let left = limit.checked_sub(start.elapsed());
            let Some(left) = left else {
                panic!(
                    "{}: not in {limit:?}; seen: {:?}",
                    self.name,
                    self.seen.borrow()
                );
            };
            if let Some(event) = self.engine.event(left).expect("it runs") {
                self.seen.borrow_mut().push(event);
            }
        }
    }

    /// How a transfer ended, and whether it was fenced then.
    ///
    /// # Panics
    ///
    /// If it does not end in time.
    #[must_use]
    pub fn ended(&self, transfer: TransferId, limit: Duration) -> (Report, bool) {
        self.wait(limit, |event| match event {
            Event::Ended {
                transfer: of,
                report,
                fenced,
            } if *of == transfer => Some(((**report).clone(), *fenced)),
            _ => None,
        })
    }

    /// Waits until a peer is linked.
    ///
    /// # Panics
    ///
    /// If it is not in time.
    pub fn linked(&self, name: &str) {
        self.wait(Duration::from_secs(10), |event| {
            matches!(event, Event::PeerUp { engine, .. } if &**engine == name).then_some(())
        });
    }

    /// A copy of all its memory, by rank.
    ///
    /// # Panics
    ///
    /// If it is over.
    #[must_use]
    pub fn copy(&self) -> Vec<Pool> {
        let side = self.shape.descriptor();
        let lens: Vec<usize> = side.ranks.iter().map(|rank| rank.regions.len()).collect();
        let look = move |memory: &mut [Region]| {
            let mut regions = memory.iter();
            let copy = |region: &Region| Region::from_host(region.as_slice().to_vec());
            let pools = lens
                .iter()
                .map(|&len| regions.by_ref().take(len).map(copy).collect());
            pools.collect::<Vec<Pool>>()
        };
        self.engine.with_memory(look).expect("it runs")
    }
}

/// What a consumer's memory is to be after a request was moved, if it was `before`.
///
/// # Panics
///
/// If the two do not fit.
#[must_use]
pub fn wanted(
    (producer, its): (&Live, &Request),
    (consumer, own): (&Live, &Request),
    mut before: Vec<Pool>,
) -> Vec<Pool> {
    let agreed = Agreed::new(producer.shape.descriptor(), consumer.shape.descriptor());
    let agreed = Arc::new(agreed.expect("shapes that fit"));
    let mut its = its.clone();
    its.first = own.first;
    let requested = Requested::new(agreed, its, own.clone()).expect("requests that fit");
    convert(&Arc::new(requested), &producer.copy(), &mut before);
    before
}

/// Whether two memories are the same.
#[must_use]
pub fn same(a: &[Pool], b: &[Pool]) -> bool {
    let regions = |pools: &[Pool]| -> Vec<Vec<u8>> {
        let regions = pools.iter().flatten();
        regions.map(|region| region.as_slice().to_vec()).collect()
    };
    regions(a) == regions(b)
}
