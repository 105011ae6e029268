//! Live transfers between threads: pages that are mapped, pages that are sent, and what happens when either fails.

#[path = "support/local.rs"]
mod local;

use std::{
    sync::{Arc, mpsc::channel},
    thread,
    time::{Duration, Instant},
};

use local::{Habits, Local, World};
use moai_collectives::{
    cost::{Rates, Way},
    descriptor::Descriptor,
    digest::mix,
    execute::{Pool, Requested, convert},
    protocol::node::Failure,
    request::Request,
    transfer::{Ended, Options, Reach, Report, Session, Unreached, consume, produce},
};
use moai_memory::{MemoryKind, Region};
use moai_transport::Interface;
use serde_json::{Value, json};

/// Two producer ranks with 16 slots a page, and consumer ranks that differ in everything.
fn requested(to: &str, tp: u32, layout: &str) -> Arc<Requested> {
    asked(to, tp, layout, json!({}))
}

/// The same, and more of what is asked for than the tokens.
fn asked(to: &str, tp: u32, layout: &str, more: Value) -> Arc<Requested> {
    const TOKENS: u32 = 300;
    let side = |element: &str, tp: u32, slots: u32, layout: &str| {
        let pages = TOKENS.div_ceil(slots);
        let ranks: Vec<_> = (0..tp)
            .map(|rank| {
                let list: Vec<u32> = (0..pages)
                    .map(|page| (page * 7 + rank) % (pages + 5))
                    .collect();
                let mut unique = list.clone();
                unique.sort_unstable();
                unique.dedup();
                let list = if unique.len() == list.len() {
                    list
                } else {
                    (0..pages).rev().collect()
                };
                json!({ "rank": rank, "pages": pages + 5, "request_pages": list })
            })
            .collect();
        let mut document = json!({
            "version": 1, "model": { "layers": 3 }, "parallel": { "tp": tp },
            "page_slots": slots,
            "components": [{
                "name": "key", "heads": 8, "dim": 64, "pool": "kv",
                "format": { "element": element }, "layout": layout,
            }],
            "ranks": ranks,
            "request": { "tokens": TOKENS },
        });
        for (name, value) in more.as_object().unwrap() {
            document["request"][name] = value.clone();
        }
        Request::read(&document.to_string()).unwrap()
    };
    let producer = side("bf16", 2, 16, "[layer] page slot head dim");
    let consumer = side(to, tp, 32, layout);
    Arc::new(Requested::agree(producer, consumer).unwrap())
}

/// Bytes that stay, that shrink and that grow; copied, transposed and read into place.
fn unlike() -> Vec<Arc<Requested>> {
    vec![
        requested("bf16", 1, "[layer] page head dim/8 slot dim%8"),
        requested("bf16", 4, "[layer] page slot head dim"),
        requested("e4m3fn", 1, "[layer] page head slot dim"),
        requested("f32", 4, "page layer head dim slot"),
    ]
}

fn pools(side: &Descriptor, kind: MemoryKind, seed: u64) -> Vec<Pool> {
    let region = |rank: u32, index: usize, bytes: u64| {
        let mut region = match kind {
            MemoryKind::Shared => Region::shared_zeroed(bytes).unwrap(),
            _ => Region::host_zeroed(bytes).unwrap(),
        };
        for (n, byte) in region.as_mut_slice().iter_mut().enumerate() {
            *byte = mix(seed ^ u64::from(rank) << 40 ^ (index as u64) << 32 ^ n as u64) as u8;
        }
        region
    };
    let pool = |rank: &moai_collectives::descriptor::RankShard| {
        let specs = rank.regions.iter().enumerate();
        specs
            .map(|(i, spec)| region(rank.rank, i, spec.bytes))
            .collect()
    };
    side.ranks.iter().map(pool).collect()
}

fn session() -> Session {
    Session::from_secret(&"07".repeat(40)).unwrap()
}

fn options() -> Options {
    Options {
        deadline: Duration::from_secs(20),
        max_bytes_per_second: None,
        map: true,
        rates: Rates::default(),
    }
}

/// A transfer of all ranks, each in a thread of its own.
struct Run<'a> {
    requested: &'a Arc<Requested>,
    kind: MemoryKind,
    habits: Habits,
    consumer: Options,
    producer: Options,
}

struct Ends {
    producers: Vec<Report>,
    consumers: Vec<Report>,
    targets: Vec<Pool>,
    wanted: Vec<Pool>,
}

impl<'a> Run<'a> {
    fn of(requested: &'a Arc<Requested>) -> Self {
        Self {
            requested,
            kind: MemoryKind::Shared,
            habits: Habits::default(),
            consumer: options(),
            producer: options(),
        }
    }

    /// Runs it; `meanwhile` is called with the producers' pools' memory once all are connected or so.
    fn go(&self, meanwhile: impl FnOnce(&[Vec<moai_memory::Hold>])) -> Ends {
        let world = World::default();
        let sources = pools(&self.requested.agreed().producer, self.kind, 1);
        let mut targets = pools(&self.requested.agreed().consumer, MemoryKind::Host, 2);
        let mut wanted = pools(&self.requested.agreed().consumer, MemoryKind::Host, 2);
        convert(self.requested, &sources, &mut wanted);
        let holds: Vec<Vec<_>> = { &sources }
            .iter()
            .map(|pool| pool.iter().map(Region::hold).collect())
            .collect();
        let (mut producers, mut consumers) = (Vec::new(), Vec::new());
        thread::scope(|scope| {
            let (ready, all_ready) = channel();
            let serving: Vec<_> = { sources }
                .into_iter()
                .enumerate()
                .map(|(rank, mut pool)| {
                    let (world, ready) = (&world, ready.clone());
                    scope.spawn(move || {
                        let name = format!("local:p{rank}");
                        let mut interface = Local::new(world, &name, Habits::default());
                        ready.send(()).unwrap();
                        let (requested, options) = (self.requested, &self.producer);
                        let network = Reach {
                            interface: &mut interface,
                            connect: |_: &mut Local, _| Err(Unreached::Lost("nobody".into())),
                            can_map: true,
                        };
                        produce(
                            network,
                            requested,
                            rank as u32,
                            &mut pool,
                            &session(),
                            options,
                            &mut |_, _| {},
                        )
                    })
                })
                .collect();
            for _ in &serving {
                all_ready.recv().unwrap();
            }
            let pulling: Vec<_> = { &mut targets }
                .iter_mut()
                .enumerate()
                .map(|(rank, pool)| {
                    let world = &world;
                    scope.spawn(move || {
                        let name = format!("local:c{rank}");
                        let mut interface = Local::new(world, &name, self.habits);
                        let network = Reach {
                            interface: &mut interface,
                            connect: |interface: &mut Local, rank: u32| {
                                let address = format!("local:p{rank}").parse().unwrap();
                                Ok(interface.connect(&address).unwrap())
                            },
                            can_map: true,
                        };
                        let mut last = 0;
                        consume(
                            network,
                            self.requested,
                            rank as u32,
                            pool,
                            &session(),
                            &self.consumer,
                            &mut |done, all| {
                                assert!(last <= done && done <= all);
                                last = done;
                            },
                        )
                    })
                })
                .collect();
            meanwhile(&holds);
            consumers.extend(pulling.into_iter().map(|it| it.join().unwrap()));
            producers.extend(serving.into_iter().map(|it| it.join().unwrap()));
        });
        Ends {
            producers,
            consumers,
            targets,
            wanted,
        }
    }
}

impl Ends {
    /// All ranks committed, and every byte is as conversion in one process leaves it.
    fn assert_committed(&self, way: Way, is_fallback: bool) {
        for report in self.producers.iter().chain(&self.consumers) {
            assert!(report.is_committed(), "{report:?}");
            for route in &report.routes {
                assert_eq!(
                    (route.way, route.is_fallback),
                    (way, is_fallback),
                    "{route}"
                );
            }
            let mapped = if way == Way::Mapped { report.chunks } else { 0 };
            assert_eq!(report.chunks_mapped, mapped, "{report:?}");
            assert_eq!(report.bytes_wire == 0, way == Way::Mapped, "{report:?}");
        }
        for report in &self.consumers {
            assert!(!report.routes.is_empty());
        }
        assert!(self.is_whole());
    }

    fn is_whole(&self) -> bool {
        let pairs = self.targets.iter().zip(&self.wanted);
        pairs.clone().all(|(got, want)| {
            let mut regions = got.iter().zip(want);
            regions.all(|(got, want)| got.as_slice() == want.as_slice())
        })
    }
}

#[test]
fn mapped_pages_become_what_one_process_would_make_of_them() {
    for requested in unlike() {
        let ends = Run::of(&requested).go(|_| {});
        ends.assert_committed(Way::Mapped, false);
        let counts = |reports: &[Report]| -> (u64, u64) {
            let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum();
            (sum(|r| r.bytes_mapped), sum(|r| r.chunks))
        };
        assert_eq!(counts(&ends.producers), counts(&ends.consumers));
    }
}

#[test]
fn parts_of_a_request_are_moved_and_nothing_else_however_much_is_digested() {
    for (kind, way) in [
        (MemoryKind::Shared, Way::Mapped),
        (MemoryKind::Host, Way::Sent),
    ] {
        for digest in ["off", "sample", "wire", "full"] {
            for (to, tp) in [("bf16", 4), ("e4m3fn", 1), ("f32", 4)] {
                let more = json!({ "first": 77, "layers": [1, 3], "digest": digest });
                let requested = asked(to, tp, "[layer] page head slot dim", more);
                let run = Run {
                    kind,
                    ..Run::of(&requested)
                };
                let ends = run.go(|_| {});
                ends.assert_committed(way, kind == MemoryKind::Host);
                // 223 tokens of 2 layers of 8 heads of 64.
                let written: u64 = ends.consumers.iter().map(|r| r.bytes_written).sum();
                let bytes = [("bf16", 2), ("e4m3fn", 1), ("f32", 4)];
                let (_, bytes) = bytes.iter().find(|(name, _)| *name == to).unwrap();
                assert_eq!(written, 223 * 2 * 8 * 64 * bytes);
            }
        }
    }
}

#[test]
fn pages_that_cannot_be_mapped_are_sent_and_the_report_says_why() {
    for requested in unlike() {
        for (kind, maps_nothing, maps_half, why) in [
            (MemoryKind::Host, false, false, "cannot be lent"),
            (MemoryKind::Shared, true, false, "cannot be mapped"),
            (MemoryKind::Shared, false, true, "are described"),
        ] {
            let habits = Habits {
                maps_nothing,
                maps_half,
                ..Habits::default()
            };
            let run = Run {
                kind,
                habits,
                ..Run::of(&requested)
            };
            let ends = run.go(|_| {});
            for report in &ends.consumers {
                assert!(report.routes[0].why.contains(why), "{report:?}");
            }
            // A consumer's failure to map is its own to report.
            let producers = ends.producers.iter().flat_map(|report| &report.routes);
            assert!(producers.clone().all(|route| route.way == Way::Sent));
            let consumers = Ends {
                producers: Vec::new(),
                ..ends
            };
            consumers.assert_committed(Way::Sent, true);
        }
    }
}

#[test]
fn chunks_are_placed_in_whatever_order_they_come() {
    for requested in unlike() {
        let mut run = Run::of(&requested);
        run.consumer.map = false;
        run.habits.reorders = true;
        for _ in 0..5 {
            run.go(|_| {}).assert_committed(Way::Sent, false);
        }
    }
}

/// The producer has digested its pages when the consumer reads them, at 200 kB a second.
fn slow(requested: &Arc<Requested>) -> Run<'_> {
    let mut run = Run::of(requested);
    run.consumer.max_bytes_per_second = Some(200_000);
    run
}

#[test]
fn pages_that_change_while_they_are_lent_are_never_committed() {
    for requested in unlike() {
        let ends = slow(&requested).go(|holds| {
            thread::sleep(Duration::from_millis(300));
            for hold in holds.iter().flatten() {
                let export = hold.export().unwrap();
                let fd = export.fd.try_clone_to_owned().unwrap();
                let kind = MemoryKind::Shared;
                let mut region = Region::import(fd, export.offset, export.len, kind, true).unwrap();
                // Whatever is read later.
                for byte in region.as_mut_slice() {
                    *byte ^= 0x10;
                }
            }
        });
        for report in &ends.consumers {
            let digest = match report.failure() {
                Some(Failure::Digest {
                    component, pages, ..
                }) => {
                    assert_eq!(component, "key");
                    let dirty: Vec<u32> = { report.dirty() }
                        .iter()
                        .flat_map(|list| list.pages.clone())
                        .collect();
                    assert!(!pages.is_empty() && pages.iter().all(|page| dirty.contains(page)));
                    true
                }
                _ => false,
            };
            let told = matches!(report.failure(), Some(Failure::Refused { .. }));
            let Ended::Failed { dirty, .. } = &report.ended else {
                panic!("{report:?}")
            };
            assert!((digest || told) && !dirty.is_empty(), "{report:?}");
        }
    }
}

#[test]
fn a_side_that_ends_while_pages_are_mapped_ends_the_other_in_time() {
    for requested in unlike() {
        for producers_give_up in [true, false] {
            let mut run = slow(&requested);
            let (first, other) = match producers_give_up {
                true => (&mut run.producer, &mut run.consumer),
                false => (&mut run.consumer, &mut run.producer),
            };
            first.deadline = Duration::from_millis(300);
            other.deadline = Duration::from_secs(20);
            let start = Instant::now();
            let ends = run.go(|_| {});
            assert!(start.elapsed() < Duration::from_secs(5));
            let (first, other) = match producers_give_up {
                true => (&ends.producers, &ends.consumers),
                false => (&ends.consumers, &ends.producers),
            };
            for report in first {
                let deadline = matches!(report.failure(), Some(Failure::Deadline { .. }));
                let told = matches!(report.failure(), Some(Failure::Refused { .. }));
                assert!(deadline || told, "{report:?}");
            }
            for report in other {
                let failure = report.failure();
                let told = matches!(
                    failure,
                    Some(Failure::Refused { .. } | Failure::Lost { .. })
                );
                assert!(told, "{report:?}");
            }
            for report in &ends.consumers {
                let Ended::Failed { dirty, .. } = &report.ended else {
                    panic!("{report:?}")
                };
                assert!(!dirty.is_empty());
            }
        }
    }
}
