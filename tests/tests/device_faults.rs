//! Pools on a device whose jobs fail, get lost, come late, change places and take their time: what commits is right.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use moai_collectives::{
    execute::{Pool, Requested},
    protocol::node::Failure,
    request::Request,
    transfer::{Ended, Report},
};
use moai_fabric::{Fabric, check, config::Config, synthetic};
use moai_memory::{
    MemoryKind, Region, Span,
    sim::{FaultCounts, SimConfig, SimDevice},
};
use serde_json::{Value, json};

const DATA_SEED: u64 = 7;

/// Some producer ranks to some consumer ranks, 40 tokens.
fn requested(ranks: [u32; 2], element: &str, layout: &str) -> Arc<Requested> {
    let sides = synthetic::descriptions(40, DATA_SEED);
    let mut sides = sides.into_iter().zip(ranks).map(|(mut side, tp)| {
        side["parallel"]["tp"] = json!(tp);
        side["ranks"].as_array_mut().unwrap().truncate(tp as usize);
        side["model"]["layers"] = json!(3);
        side
    });
    let (producer, mut consumer) = (sides.next().unwrap(), sides.next().unwrap());
    for component in consumer["components"].as_array_mut().unwrap() {
        component["layout"] = json!(layout);
        component["format"] = json!({ "element": element });
    }
    let read = |side: &Value| Request::read(&side.to_string()).unwrap();
    let (producer, consumer) = (read(&producer), read(&consumer));
    Arc::new(Requested::agree(producer, consumer).unwrap())
}

/// A pair of sides, with what every consumer rank must hold in the end.
struct Case {
    name: &'static str,
    requested: Arc<Requested>,
    sources: Vec<Pool>,
    before: Vec<Pool>,
    wanted: Vec<Pool>,
}

impl Case {
    fn new(name: &'static str, ranks: [u32; 2], element: &str, layout: &str) -> Self {
        let requested = requested(ranks, element, layout);
        let background =
            |rank| synthetic::background(&requested.agreed().consumer, rank, DATA_SEED).unwrap();
        let rows = synthetic::Seeded::new(&requested.agreed().producer, DATA_SEED);
        let wanted = |rank| check::expected(&requested, rank, background(rank), &rows);
        let source = |rank| {
            synthetic::producer_pool(
                &requested.agreed().producer,
                requested.producer(),
                rank,
                DATA_SEED,
            )
            .unwrap()
        };
        Self {
            name,
            sources: (0..ranks[0]).map(source).collect(),
            before: (0..ranks[1]).map(background).collect(),
            wanted: (0..ranks[1]).map(wanted).collect(),
            requested,
        }
    }

    /// Bytes that are carried, that the producer converts, and that the consumer does.
    fn all() -> Vec<Self> {
        let split = "[layer] part page head dim/8 slot dim%8";
        vec![
            Self::new("bf16 to bf16", [1, 1], "bf16", split),
            Self::new("bf16 to e4m3fn", [1, 1], "e4m3fn", split),
            Self::new(
                "bf16 to f32",
                [1, 1],
                "f32",
                "[layer] part page slot head dim",
            ),
            Self::new("bf16 to f32, 4 ranks to 2", [4, 2], "f32", split),
        ]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    None,
    Failed,
    Lost,
    Late,
    Reordered,
    Delayed,
}

impl Trouble {
    const ALL: [Self; 6] = [
        Self::None,
        Self::Failed,
        Self::Lost,
        Self::Late,
        Self::Reordered,
        Self::Delayed,
    ];

    fn config(self, seed: u64) -> SimConfig {
        let per_mille = [8, 40, 400][(seed % 3) as usize];
        let mut config = SimConfig {
            seed,
            ..SimConfig::default()
        };
        let delay = Duration::ZERO..Duration::from_micros(300);
        match self {
            Self::None => {}
            Self::Failed => config.faults.failed_per_mille = per_mille,
            Self::Lost => config.faults.lost_per_mille = per_mille,
            Self::Late => config.faults.late_per_mille = per_mille,
            Self::Reordered => (config.reorder, config.delay) = (true, delay),
            Self::Delayed => config.delay = delay,
        }
        config
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Producer,
    Consumer,
    Both,
}

/// A copy of host memory, on a device if there is one.
fn copy(pool: &Pool, device: Option<&SimDevice>) -> Pool {
    let region = |region: &Region| match device {
        None => Region::from_host(region.as_slice().to_vec()),
        Some(device) => {
            let copy = device.allocate(region.len()).unwrap();
            device.poke(&all_of(&copy), region.as_slice()).unwrap();
            copy
        }
    };
    pool.iter().map(region).collect()
}

fn all_of(region: &Region) -> Span {
    Span {
        hold: region.hold(),
        offset: 0,
        bytes: region.len(),
    }
}

/// What a pool holds, wherever it is.
fn bytes(pool: &Pool, device: Option<&SimDevice>) -> Pool {
    let region = |region: &Region| {
        Region::from_host(match device {
            None => region.as_slice().to_vec(),
            Some(device) => device.peek(&all_of(region)).unwrap(),
        })
    };
    pool.iter().map(region).collect()
}

struct Ends {
    producers: Vec<Report>,
    consumers: Vec<Report>,
    /// The consumers' pools in the end.
    targets: Vec<Pool>,
}

/// Moves a case over tcp, all ranks in threads; `devices` are those of the sides that have one.
fn go(case: &Case, devices: [Option<&SimDevice>; 2], deadline: Duration) -> Ends {
    let mut config = Config::default();
    config.deadline = deadline;
    config.transports = Some(vec!["tcp".into()]);
    let fabric = Fabric::new(config);
    let mut addresses = BTreeMap::new();
    let mut serving = Vec::new();
    for (rank, source) in case.sources.iter().enumerate() {
        let server = fabric.listen().unwrap();
        addresses.insert(rank as u32, server.addresses().to_vec());
        let mut pool = copy(source, devices[0]);
        let requested = Arc::clone(&case.requested);
        serving.push(thread::spawn(move || {
            server.serve(&requested, rank as u32, &mut pool, &mut |_, _| {})
        }));
    }
    let pull = |rank: usize| {
        let mut pool = copy(&case.before[rank], devices[1]);
        let rank = rank as u32;
        let spans: Vec<Span> = pool.iter().map(all_of).collect();
        let mut placed = None;
        let report = fabric
            .pull(
                &case.requested,
                rank,
                &mut pool,
                &addresses,
                &mut |done, all| {
                    if let (true, None, Some(device)) = (done == all, &placed, devices[1]) {
                        let region = |span| Region::from_host(device.peek(span).unwrap());
                        placed = Some(spans.iter().map(region).collect::<Pool>());
                    }
                },
            )
            .unwrap();
        // What counts as placed is there at that moment, not only once the stream has ended.
        if let (true, Some(placed)) = (report.is_committed(), placed) {
            let same = check::compare(
                case.requested.agreed(),
                rank,
                &placed,
                &case.wanted[rank as usize],
            );
            assert_eq!(same, Ok(()), "told too early");
        }
        // Nothing may be written after the outcome: what is there now is what is there once the device is still.
        let then = bytes(&pool, devices[1]);
        if let Some(device) = devices[1] {
            device.synchronize();
        }
        let now = bytes(&pool, devices[1]);
        let pairs = then.iter().zip(&now);
        assert!(
            { pairs }.all(|(then, now)| then.as_slice() == now.as_slice()),
            "written after the outcome: {report:?}"
        );
        (report, now)
    };
    let (consumers, targets) = thread::scope(|scope| {
        let ranks = 0..case.before.len();
        let pulling: Vec<_> = { ranks }
            .map(|rank| scope.spawn(move || pull(rank)))
            .collect();
        pulling.into_iter().map(|it| it.join().unwrap()).unzip()
    });
    Ends {
        producers: serving.into_iter().map(|it| it.join().unwrap()).collect(),
        consumers,
        targets,
    }
}

impl Ends {
    /// What commits is right; whatever does not has touched no page but those it names.
    fn judge(&self, case: &Case, what: &dyn fmt::Debug) -> bool {
        for (rank, (report, pool)) in self.consumers.iter().zip(&self.targets).enumerate() {
            match &report.ended {
                Ended::Cancelled { .. } => panic!("{what:?}: nobody cancelled"),
                Ended::Committed => {
                    let same = check::compare(
                        case.requested.agreed(),
                        rank as u32,
                        pool,
                        &case.wanted[rank],
                    );
                    assert_eq!(same, Ok(()), "{what:?}: committed");
                }
                Ended::Failed { failure, dirty } => {
                    let fair = matches!(
                        failure,
                        Failure::Local { .. }
                            | Failure::Digest { .. }
                            | Failure::Refused { .. }
                            | Failure::Lost { .. }
                    );
                    assert!(fair, "{what:?}: {failure}");
                    let dirty: Vec<u32> = { dirty }.iter().flat_map(|d| d.pages.clone()).collect();
                    for page in 0..case.requested.agreed().consumer.ranks[rank].pages {
                        if !dirty.contains(&page) {
                            let (now, then) = (pool, &case.before[rank]);
                            let pages = case.requested.agreed().consumer.ranks[rank].pages;
                            assert!(
                                is_same(now, then, page, pages),
                                "{what:?}: page {page} of rank {rank} is written and not dirty"
                            );
                        }
                    }
                }
            }
        }
        let all = self.producers.iter().chain(&self.consumers);
        { all }.all(Report::is_committed)
    }
}

/// Whether a page is the same in two pools; all layouts here have two parts, and in these pages outermost.
fn is_same(a: &Pool, b: &Pool, page: u32, pages: u32) -> bool {
    let size = |region: &Region| region.as_slice().len() / 2 / pages as usize;
    a.iter().zip(b).all(|(a, b)| {
        (0..2).all(|part| {
            let at = (part * pages + page) as usize * size(a);
            a.as_slice()[at..at + size(a)] == b.as_slice()[at..at + size(a)]
        })
    })
}

#[derive(Default)]
struct Tally {
    runs: u64,
    committed: u64,
    struck: u64,
    committed_though_struck: u64,
}

fn sum(faults: &FaultCounts) -> u64 {
    faults.failed + faults.lost + faults.late
}

#[test]
fn whatever_a_device_does_what_commits_is_right() {
    let read = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |value| value.parse().unwrap())
    };
    let (first, seeds) = (read("MOAI_SEED", 1), read("MOAI_CASES", 9));
    println!("seeds {first} to {}", first + seeds - 1);
    let cases = Case::all();
    let mut runs = Vec::new();
    for seed in first..first + seeds {
        for case in &cases {
            for trouble in Trouble::ALL {
                for on in [On::Producer, On::Consumer, On::Both] {
                    runs.push((seed, case, trouble, on));
                }
            }
        }
    }
    let next = AtomicUsize::new(0);
    let tallies: Mutex<BTreeMap<Trouble, Tally>> = Mutex::default();
    let work = || {
        while let Some(&(seed, case, trouble, on)) = runs.get(next.fetch_add(1, Relaxed)) {
            let device = SimDevice::new(trouble.config(seed));
            let here = |side| (on == side || on == On::Both).then_some(&device);
            let devices = [here(On::Producer), here(On::Consumer)];
            let what = (case.name, trouble, on, ("seed", seed));
            let ends = go(case, devices, Duration::from_secs(20));
            let committed = ends.judge(case, &what);
            let struck = sum(&device.faults());
            assert!(committed || struck > 0, "{what:?}: {:?}", ends.consumers);
            let mut tallies = tallies.lock().unwrap();
            let tally = tallies.entry(trouble).or_default();
            tally.runs += 1;
            tally.committed += u64::from(committed);
            tally.struck += u64::from(struck > 0);
            tally.committed_though_struck += u64::from(struck > 0 && committed);
        }
    };
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(work);
        }
    });
    for (trouble, tally) in &*tallies.lock().unwrap() {
        let Tally {
            runs,
            committed,
            struck,
            committed_though_struck,
        } = tally;
        println!(
            "{trouble:?}: {runs} runs, {committed} committed, faults in {struck}, of which {committed_though_struck} \
             committed"
        );
        let faulty = matches!(trouble, Trouble::Failed | Trouble::Lost | Trouble::Late);
        assert!(*runs > 0 && (faulty == (*struck > 0)), "{trouble:?}");
        assert!(
            *committed > 0 && (faulty || committed == runs),
            "{trouble:?}"
        );
    }
}

#[test]
fn a_device_that_stands_still_costs_the_deadline_and_no_byte() {
    for case in &Case::all()[..2] {
        for producer in [true, false] {
            let hour = Duration::from_secs(3600);
            let device = SimDevice::new(SimConfig {
                delay: hour..hour * 2,
                ..SimConfig::default()
            });
            let devices = match producer {
                true => [Some(&device), None],
                false => [None, Some(&device)],
            };
            let start = Instant::now();
            let ends = go(case, devices, Duration::from_millis(400));
            assert!(start.elapsed() < Duration::from_secs(5));
            // Either side may be the first to notice, and the other hears of it.
            let all = ends.producers.iter().chain(&ends.consumers);
            let late = |report: &Report| matches!(report.failure(), Some(Failure::Deadline { .. }));
            assert!(!{ all.clone() }.any(Report::is_committed));
            assert!({ all }.any(late), "{:?}", ends.consumers);
            for (pool, before) in ends.targets.iter().zip(&case.before) {
                let mut pairs = pool.iter().zip(before);
                assert!(pairs.all(|(pool, before)| pool.as_slice() == before.as_slice()));
            }
        }
    }
}

#[test]
fn a_pool_in_two_places_is_refused_by_name() {
    let case = &Case::all()[0];
    let device = SimDevice::new(SimConfig::default());
    let mut config = Config::default();
    config.deadline = Duration::from_secs(2);
    config.transports = Some(vec!["tcp".into()]);
    let fabric = Fabric::new(config);
    let server = fabric.listen().unwrap();
    let addresses = BTreeMap::from([(0, server.addresses().to_vec())]);
    let requested = Arc::clone(&case.requested);
    let mut source = copy(&case.sources[0], None);
    let serving = thread::spawn(move || server.serve(&requested, 0, &mut source, &mut |_, _| {}));
    let mut pool = copy(&case.before[0], Some(&device));
    let last = pool.len() - 1;
    pool[last] = Region::host_zeroed(pool[last].len()).unwrap();
    assert_eq!(pool[last].kind(), MemoryKind::Host);
    let report = fabric
        .pull(&case.requested, 0, &mut pool, &addresses, &mut |_, _| {})
        .unwrap();
    let said = report.failure().unwrap().to_string();
    assert!(said.contains(&format!("region {last}")), "{said}");
    assert!(said.contains("lies in one place"), "{said}");
    assert!(!serving.join().unwrap().is_committed());
}
