//! Random pairs of descriptions are carried as an enumeration of their rows says, byte for byte.

mod support;

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use moai_collectives::{
    digest::{Coverage, DigestKey},
    execute::{PageCopy, Pool, Requested, Runner, Runs, convert},
    negotiate::Role,
    plan::Chunk,
    request::Request,
};
use moai_memory::Region;
use moai_translate::{element::Element, format::Counts};
use serde_json::Value;
use support::{
    generate::{self, Options},
    naive,
    rng::{Rng, cases},
};

fn chunks(runner: &Runner) -> Vec<Chunk> {
    runner.chunks().iter().collect()
}

/// A pair of sides with their memory.
struct Case {
    requested: Arc<Requested>,
    producer: naive::Side,
    consumer: naive::Side,
    sources: Vec<naive::Regions>,
    targets: Vec<naive::Regions>,
    text: String,
}

impl Case {
    fn new(rng: &mut Rng, producer: &Value, consumer: &Value, content: u64) -> Self {
        let text = format!(
            "producer:\n{}\nconsumer:\n{}",
            serde_json::to_string(producer).unwrap(),
            serde_json::to_string(consumer).unwrap()
        );
        let read = |doc: &Value| {
            Request::read(&doc.to_string())
                .unwrap_or_else(|error| panic!("a valid description is refused: {error}\n{doc}"))
        };
        let (p, c) = (read(producer), read(consumer));
        let requested = Requested::agree(p, c)
            .unwrap_or_else(|refusal| panic!("a pair that fits is refused: {refusal}\n{text}"));
        let (producer, consumer) = (naive::Side::read(producer), naive::Side::read(consumer));
        let mut sources = Vec::new();
        for rank in 0..producer.ranks.len() {
            let mut regions = producer.regions(rank, rng);
            producer.fill(rank, content, &mut regions);
            sources.push(regions);
        }
        let targets = (0..consumer.ranks.len()).map(|rank| consumer.regions(rank, rng));
        let targets = targets.collect();
        Self {
            requested: Arc::new(requested),
            producer,
            consumer,
            sources,
            targets,
            text,
        }
    }

    fn random(seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed);
        let model = generate::model(&mut rng, options);
        let mut sides = [0, 1].map(|which| generate::side(&mut rng, &model, which));
        if options.parts {
            generate::part(&mut rng, &mut sides);
        }
        Self::new(&mut rng, &sides[0], &sides[1], seed)
    }

    fn key(&self) -> DigestKey {
        self.key_of(0xFEED)
    }

    fn key_of(&self, key: u64) -> DigestKey {
        let rows = self.requested.agreed().agreement.carriages.iter();
        DigestKey::new(
            key,
            rows.map(|c| c.row_bytes[1].max(c.row_bytes[2]) as usize)
                .max()
                .unwrap(),
        )
    }

    fn expected(&self) -> (naive::Expected, Vec<naive::Regions>) {
        let mut targets = self.targets.clone();
        let expected = naive::convert(
            &self.producer,
            &self.consumer,
            &self.sources,
            &mut targets,
            &self.requested.agreed().agreement,
            &self.key(),
        );
        (expected, targets)
    }

    /// The memory of a side in the descriptor's order of regions.
    fn pools(&self, role: Role, regions: &[naive::Regions]) -> Vec<Pool> {
        let (side, described) = match role {
            Role::Producer => (&self.producer, &self.requested.agreed().producer),
            Role::Consumer => (&self.consumer, &self.requested.agreed().consumer),
        };
        let mut pools = Vec::new();
        for ((rank, given), shard) in side.ranks.iter().zip(regions).zip(&described.ranks) {
            assert_eq!(rank.names.len(), shard.regions.len(), "{}", self.text);
            let mut pool = Pool::new();
            for spec in &shard.regions {
                let i = rank.names.iter().position(|name| *name == spec.name);
                let bytes = given[i.expect("a region that the text names")].clone();
                assert!(
                    spec.bytes <= bytes.len() as u64,
                    "{} asks for {} bytes; the last addressed byte is within {}\n{}",
                    spec.name,
                    spec.bytes,
                    bytes.len(),
                    self.text
                );
                pool.push(Region::from_host(bytes));
            }
            pools.push(pool);
        }
        pools
    }

    /// All consumer regions equal what is wanted.
    fn check(&self, what: &str, got: &[Pool], wanted: &[naive::Regions]) {
        let wanted = self.pools(Role::Consumer, wanted);
        for (rank, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
            for (region, (got, wanted)) in got.iter().zip(wanted).enumerate() {
                let (got, wanted) = (got.as_slice(), wanted.as_slice());
                if got == wanted {
                    continue;
                }
                let at = got.iter().zip(wanted).position(|(a, b)| a != b).unwrap();
                let count = got.iter().zip(wanted).filter(|(a, b)| a != b).count();
                let name = &self.requested.agreed().consumer.ranks[rank].regions[region].name;
                panic!(
                    "{what}: {count} of {} bytes of rank {rank} {name} differ; the first, {at}, is {} and should be {}\n{}",
                    got.len(),
                    got[at],
                    wanted[at],
                    self.text
                );
            }
        }
    }
}

#[test]
fn converted_pools_equal_an_enumeration_of_rows() {
    cases(2000, |seed| {
        let case = Case::random(seed, Options::ALL);
        let (expected, wanted) = case.expected();
        let sources = case.pools(Role::Producer, &case.sources);
        let mut targets = case.pools(Role::Consumer, &case.targets);
        let counts = convert(&case.requested, &sources, &mut targets);
        case.check("convert", &targets, &wanted);
        assert_eq!(counts, expected.counts, "{}", case.text);
    });
}

/// Adds up which bytes differ between `got` and `background`, and makes them equal again.
fn touched(got: &mut [u8], background: &[u8], mut each: impl FnMut(usize)) {
    for (block, (got, background)) in got.chunks_mut(256).zip(background.chunks(256)).enumerate() {
        if got == background {
            continue;
        }
        for (i, (got, background)) in got.iter_mut().zip(background).enumerate() {
            if got != background {
                each(256 * block + i);
                *got = *background;
            }
        }
    }
}

#[test]
fn chunks_place_every_byte_once_and_both_sides_digest_alike() {
    cases(1000, |seed| {
        let case = Case::random(seed, Options::ALL);
        check_runners(&case);
    });
}

#[test]
fn requests_of_many_chunks_are_placed_whole() {
    cases(8, |seed| {
        // Large enough to be cut by `CHUNK_BYTES`.
        let mut rng = Rng::new(seed);
        let tokens = rng.between(40, 80);
        let side = |rng: &mut Rng| {
            let slots = rng.between(1, 33);
            let tp = rng.pick(&[1, 2, 3]);
            let text = rng.pick(&[
                "[layer] page slot head dim",
                "[layer] page head slot dim",
                "page layer head dim/4 slot dim%4",
            ]);
            let ranks: Vec<Value> = (0..tp)
                .map(|t| {
                    let mut pages: Vec<u32> = (0..tokens.div_ceil(slots) + 1).collect();
                    rng.shuffle(&mut pages);
                    pages.pop();
                    serde_json::json!({
                        "rank": t, "heads": [t * 7 / tp, (t + 1) * 7 / tp],
                        "pages": pages.len() + 1, "request_pages": pages,
                    })
                })
                .collect();
            let element = rng.pick(&["f32", "f32", "bf16"]);
            serde_json::json!({
                "version": 1, "model": { "layers": 2 }, "parallel": { "tp": tp },
                "page_slots": slots,
                "components": [{
                    "name": "state", "heads": 7, "dim": 1024, "pool": "kv",
                    "format": { "element": element }, "layout": text,
                }],
                "ranks": ranks,
                "request": { "tokens": tokens },
            })
        };
        let (producer, consumer) = (side(&mut rng), side(&mut rng));
        let case = Case::new(&mut rng, &producer, &consumer, seed);
        let most = case.requested.agreed().agreement.pairs.iter().map(|pair| {
            let runner = Runner::new(&case.requested, pair, Role::Producer);
            for chunk in runner.chunks().iter() {
                let row = u64::from(chunk.bytes) / u64::from(chunk.tokens.count);
                let limit = moai_collectives::limits::CHUNK_BYTES;
                assert!(u64::from(chunk.bytes) <= limit.max(row));
            }
            runner.chunks().len()
        });
        assert!(most.max().unwrap() > 1);
        check_runners(&case);
    });
}

/// Through the wire, chunk by chunk.
fn check_runners(case: &Case) {
    let (expected, wanted) = case.expected();
    let key = case.key();
    let sample = case.key().covering(Coverage::Sample);
    let sources = case.pools(Role::Producer, &case.sources);
    let inverse: Vec<naive::Regions> = case
        .targets
        .iter()
        .map(|rank| {
            let not = |region: &Vec<u8>| region.iter().map(|b| !b).collect();
            rank.iter().map(not).collect()
        })
        .collect();
    let backgrounds = [
        case.pools(Role::Consumer, &case.targets),
        case.pools(Role::Consumer, &inverse),
    ];
    let mut probes = [
        case.pools(Role::Consumer, &case.targets),
        case.pools(Role::Consumer, &inverse),
    ];
    let mut scattered = case.pools(Role::Consumer, &case.targets);
    let mut placed = case.pools(Role::Consumer, &case.targets);
    let mut mapped = case.pools(Role::Consumer, &case.targets);
    let mut runs = Runs::new();
    let blank =
        |pool: &Pool| -> Vec<Vec<u8>> { pool.iter().map(|r| vec![0; r.len() as usize]).collect() };
    let mut writes: Vec<Vec<Vec<u8>>> = scattered.iter().map(blank).collect();
    let mut counts = Counts::default();
    let mut sum = 0_u64;
    for pair in &case.requested.agreed().agreement.pairs {
        let mut send = Runner::new(&case.requested, pair, Role::Producer);
        let mut receive = Runner::new(&case.requested, pair, Role::Consumer);
        assert_eq!(chunks(&send), chunks(&receive), "{}", case.text);
        let mut copy = PageCopy::new(&case.requested, pair, u64::MAX);
        assert!(
            chunks(&send).into_iter().eq(copy.chunks().iter()),
            "{}",
            case.text
        );
        let (from, to) = (pair.source as usize, pair.target as usize);
        for index in 0..send.chunks().len() {
            let mut wire = vec![0xA5; send.row_bytes(index)[1] as usize];
            let mut again = vec![0; wire.len()];
            let found = send.gather(index, sources[from].as_slice(), &mut again);
            let (gathered, digest) =
                send.gather_digested(index, sources[from].as_slice(), &mut wire, &key);
            assert_eq!(gathered, found, "{}", case.text);
            assert!(again == wire, "digesting changes rows\n{}", case.text);
            assert_eq!(digest, send.digest(index, &wire, &key), "{}", case.text);
            counts += gathered;
            let placed_here = receive.scatter(index, &wire, scattered[to].as_mut_slice());
            counts += placed_here;
            let sent = send.digest(index, &wire, &key);
            sum = sum.wrapping_add(sent);
            assert_eq!(receive.digest(index, &wire, &key), sent, "{}", case.text);
            if let Some(found) = receive.digest_placed(index, scattered[to].as_slice(), &key) {
                assert_eq!(found, sent, "chunk {index} of {pair:?}\n{}", case.text);
            }
            // What is told of placing is found in the pages, whatever their format.
            let pages = scattered[to].as_mut_slice();
            let (again, told) = receive.scatter_told(index, &wire, pages, &key);
            assert_eq!((again, told[0]), (placed_here, sent), "{}", case.text);
            assert_eq!(
                receive.digest_written(index, pages, &key),
                Some(told[1]),
                "chunk {index} of {pair:?}\n{}",
                case.text
            );
            if receive.runs(index, 1, &mut runs) {
                let mut rest = &wire[..];
                for &(_, at, bytes) in &runs {
                    let (run, tail) = rest.split_at(bytes as usize);
                    let region = placed[to][at.region as usize].as_mut_slice();
                    region[at.byte as usize..][..run.len()].copy_from_slice(run);
                    rest = tail;
                }
                assert!(
                    rest.is_empty(),
                    "{} bytes are left\n{}",
                    rest.len(),
                    case.text
                );
            } else {
                let (_, digest) =
                    receive.scatter_digested(index, &wire, placed[to].as_mut_slice(), &key);
                assert_eq!(digest, sent, "{}", case.text);
            }
            // Straight from pages to pages.
            let (found, lent) = send.digest_lent(index, sources[from].as_slice(), &key);
            let copied = copy.copy_digested(index, &sources[from], &mut mapped[to], &key);
            assert_eq!(
                copied,
                (found, lent),
                "chunk {index} of {pair:?}\n{}",
                case.text
            );
            // Of which a sample is found in the pages on either side, whoever looks.
            let (_, some) = send.digest_lent(index, sources[from].as_slice(), &sample);
            let pages = mapped[to].as_mut_slice();
            let written = receive.digest_written(index, pages, &sample);
            assert_eq!(written, Some(some), "{}", case.text);
            let (_, copied) = copy.copy_digested(index, &sources[from], pages, &sample);
            assert_eq!(copied, some, "{}", case.text);
            // A byte that is written differs from one of two backgrounds that differ everywhere.
            let mut wrote = Vec::new();
            for (probe, background) in probes.iter_mut().zip(&backgrounds) {
                receive.scatter(index, &wire, probe[to].as_mut_slice());
                for (r, (got, was)) in probe[to].iter_mut().zip(&background[to]).enumerate() {
                    touched(got.as_mut_slice(), was.as_slice(), |byte| {
                        wrote.push((r, byte))
                    });
                }
            }
            wrote.sort_unstable();
            wrote.dedup();
            for (region, byte) in wrote {
                writes[to][region][byte] += 1;
            }
        }
    }
    case.check("runners", &scattered, &wanted);
    case.check("runs", &placed, &wanted);
    case.check("pages to pages", &mapped, &wanted);
    assert_eq!(counts, expected.counts, "{}", case.text);
    assert_eq!(sum, expected.digest, "sum of digests\n{}", case.text);
    // In the descriptor's order of regions, as `writes`.
    let required = case.pools(Role::Consumer, &expected.writes);
    for (rank, (got, required)) in writes.iter().zip(&required).enumerate() {
        for (region, (got, required)) in got.iter().zip(required).enumerate() {
            assert!(required.as_slice().iter().all(|&n| n <= 1));
            let at = got
                .iter()
                .zip(required.as_slice())
                .position(|(a, b)| a != b);
            assert_eq!(
                at, None,
                "writes to rank {rank}, region {region}\n{}",
                case.text
            );
        }
    }
}

/// A bit that flips on the wire, or in the consumer's pages after they were written, changes the sum of the step and
/// layer that it belongs to and no other: whatever relayout, conversion and resharding it meets.
#[test]
fn a_flipped_bit_is_caught_and_its_layer_is_named() {
    let (flips, sampled) = (Cell::new(0_u64), Cell::new(0_u64));
    cases(600, |seed| {
        let case = Case::random(seed, Options::ALL);
        let mut rng = Rng::new(!seed);
        // What is sampled of short requests is all up to the key.
        let sample = case.key_of(seed).over((seed % 4096) as u32);
        let sample = sample.covering(Coverage::Sample);
        let key = case.key();
        let off = case.key().covering(Coverage::Off);
        let (expected, _) = case.expected();
        let written = case.pools(Role::Consumer, &expected.writes);
        let sources = case.pools(Role::Producer, &case.sources);
        let mut targets = case.pools(Role::Consumer, &case.targets);
        let mut receivers = Vec::new();
        for pair in &case.requested.agreed().agreement.pairs {
            let mut send = Runner::new(&case.requested, pair, Role::Producer);
            let mut receive = Runner::new(&case.requested, pair, Role::Consumer);
            let from = sources[pair.source as usize].as_slice();
            let pages = targets[pair.target as usize].as_mut_slice();
            let mut told = vec![0_u64; receive.chunks().parts()];
            for index in 0..send.chunks().len() {
                let chunk = send.chunks().get(index).unwrap();
                let mut wire = vec![0; chunk.bytes as usize];
                let (_, sent) = send.gather_digested(index, from, &mut wire, &key);
                let (_, [here, placed]) = receive.scatter_told(index, &wire, pages, &key);
                assert_eq!(here, sent, "{}", case.text);
                told[chunk.part as usize] = told[chunk.part as usize].wrapping_add(placed);
                // Both sides sample the same rows.
                let (_, some) = send.gather_digested(index, from, &mut wire, &sample);
                assert_eq!(receive.digest(index, &wire, &sample), some, "{}", case.text);
                sampled.set(sampled.get() + u64::from(some != 0));
                let (_, nothing) = send.gather_digested(index, from, &mut wire, &off);
                let (_, none) = receive.scatter_digested(index, &wire, pages, &off);
                assert_eq!((nothing, none), (0, 0));
                let bit = rng.below(wire.len() as u32 * 8);
                wire[bit as usize / 8] ^= 1 << (bit % 8);
                assert_ne!(
                    receive.digest(index, &wire, &key),
                    sent,
                    "bit {bit} of chunk {index} of {pair:?}\n{}",
                    case.text
                );
                flips.set(flips.get() + 1);
            }
            receivers.push((pair, receive, told));
        }
        // Bytes of what was moved, wherever it lies now.
        let moved: Vec<(usize, usize, usize)> = written
            .iter()
            .enumerate()
            .flat_map(|(rank, pool)| pool.iter().enumerate().map(move |(i, r)| (rank, i, r)))
            .flat_map(|(rank, i, region)| {
                let bytes = region.as_slice().iter().enumerate();
                bytes
                    .filter(|(_, n)| **n > 0)
                    .map(move |(at, _)| (rank, i, at))
            })
            .collect();
        for _ in 0..moved.len().min(4) {
            let (rank, region, at) = moved[rng.below(moved.len() as u32) as usize];
            let bit = 1_u8 << rng.below(8);
            targets[rank][region].as_mut_slice()[at] ^= bit;
            let mut differ = Vec::new();
            for (pair, receive, told) in &mut receivers {
                let pages = targets[pair.target as usize].as_slice();
                let mut found = vec![0_u64; told.len()];
                for index in 0..receive.chunks().len() {
                    let part = receive.chunks().get(index).unwrap().part as usize;
                    let sum = receive.digest_written(index, pages, &key).unwrap();
                    found[part] = found[part].wrapping_add(sum);
                }
                let parts = (0..told.len()).filter(|&part| found[part] != told[part]);
                differ.extend(parts.map(|part| (pair.source, pair.target, part)));
            }
            targets[rank][region].as_mut_slice()[at] ^= bit;
            assert_eq!(
                differ.len(),
                1,
                "bit {bit} of byte {at} of region {region} of rank {rank}: {differ:?}\n{}",
                case.text
            );
            assert_eq!(differ[0].1 as usize, rank, "{}", case.text);
        }
    });
    // A row is sampled now and then, and flips were tried.
    assert!(
        flips.get() > 600 && sampled.get() > flips.get() / 50,
        "{flips:?} {sampled:?}"
    );
}

/// A request after another, by programs that were compiled once, is what it would be by itself.
#[test]
fn programs_go_on_to_another_request() {
    cases(200, |seed| {
        let mut rng = Rng::new(seed);
        let model = generate::model(&mut rng, Options::ALL);
        let whole = [0, 1].map(|which| generate::side(&mut rng, &model, which));
        let mut part = whole.clone();
        generate::part(&mut rng, &mut part);
        let first = Case::new(&mut rng, &whole[0], &whole[1], seed);
        let second = Case::new(&mut rng, &part[0], &part[1], seed);
        let (_, wanted) = second.expected();
        let sources = second.pools(Role::Producer, &second.sources);
        let mut sent = second.pools(Role::Consumer, &second.targets);
        let mut copied = second.pools(Role::Consumer, &second.targets);
        for pair in &first.requested.agreed().agreement.pairs {
            let mut send = Runner::new(&first.requested, pair, Role::Producer);
            let mut receive = Runner::new(&first.requested, pair, Role::Consumer);
            let mut copy = PageCopy::new(&first.requested, pair, 0);
            send.take(&second.requested);
            receive.take(&second.requested);
            copy.take(&second.requested, u64::MAX);
            assert_eq!(chunks(&send), chunks(&receive), "{}", second.text);
            let (from, to) = (pair.source as usize, pair.target as usize);
            let mut wire = Vec::new();
            for index in 0..send.chunks().len() {
                wire.resize(send.row_bytes(index)[1] as usize, 0);
                send.gather(index, sources[from].as_slice(), &mut wire);
                receive.scatter(index, &wire, sent[to].as_mut_slice());
                copy.copy(index, &sources[from], &mut copied[to]);
            }
        }
        second.check("runners", &sent, &wanted);
        second.check("pages to pages", &copied, &wanted);
    });
}

#[test]
fn digests_do_not_depend_on_how_either_side_lays_its_cache_out() {
    cases(400, |seed| {
        let options = Options {
            replicas: false,
            windows: false,
            ..Options::ALL
        };
        let mut rng = Rng::new(seed);
        let model = generate::model(&mut rng, options);
        let mut sums = Vec::new();
        let mut texts = Vec::new();
        for _ in 0..3 {
            let mut producer = generate::side(&mut rng, &model, 0);
            let mut consumer = generate::side(&mut rng, &model, 1);
            // Components are named in a digest by their place in the agreement.
            let by_name = |c: &Value| c["name"].as_str().unwrap().to_owned();
            for side in [&mut producer, &mut consumer] {
                let components = side["components"].as_array_mut().unwrap();
                components.sort_by_key(by_name);
            }
            let case = Case::new(&mut rng, &producer, &consumer, seed);
            let key = case.key();
            let sources = case.pools(Role::Producer, &case.sources);
            let mut sum = 0_u64;
            for pair in &case.requested.agreed().agreement.pairs {
                let mut send = Runner::new(&case.requested, pair, Role::Producer);
                for index in 0..send.chunks().len() {
                    let mut wire = vec![0; send.row_bytes(index)[1] as usize];
                    send.gather(index, sources[pair.source as usize].as_slice(), &mut wire);
                    sum = sum.wrapping_add(send.digest(index, &wire, &key));
                }
            }
            sums.push(sum);
            texts.push(case.text);
        }
        assert!(
            sums.iter().all(|sum| *sum == sums[0]),
            "{sums:x?}\n{}",
            texts.join("\n\n")
        );
    });
}

/// A generator that stopped drawing something would let every test above pass.
#[test]
fn the_generator_draws_what_it_is_for() {
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    let elements: Vec<String> = Element::all().map(|e| format!("\"{e}\"")).collect();
    for seed in 0..1000 {
        let mut rng = Rng::new(seed);
        let model = generate::model(&mut rng, Options::ALL);
        for which in [0, 1] {
            let doc = generate::side(&mut rng, &model, which);
            let text = doc.to_string();
            for feature in FEATURES {
                *seen.entry(feature).or_insert(0) += u32::from(text.contains(feature));
            }
            for element in &elements {
                *seen.entry(element).or_insert(0) += u32::from(text.contains(element));
            }
            let mut pools = BTreeMap::new();
            for component in doc["components"].as_array().unwrap() {
                let groups: &mut BTreeSet<&str> =
                    pools.entry(component["pool"].as_str()).or_default();
                groups.extend(component["group"].as_str());
            }
            *seen.entry("groups in turns").or_insert(0) +=
                u32::from(pools.values().any(|groups| groups.len() > 1));
        }
    }
    let rare: Vec<_> = seen.iter().filter(|&(_, &n)| n < 5).collect();
    assert!(rare.is_empty(), "{rare:?} of {seen:?}");
}

/// What must be found in some documents.
const FEATURES: &[&str] = &[
    "[layer]",
    "[part]",
    "[page]",
    "[head]",
    "dim/",
    "slot/",
    "head/",
    "head%3",
    "layer/",
    "page/",
    "strides_bytes",
    "offset_bytes",
    "page{",
    "\"of\"",
    "layers_list",
    "\"layers\":[",
    "\"heads\":[",
    "\"window\"",
    "\"group\"",
    "\"groups\"",
    "\"token\"",
    "\"page\"",
    "contiguous",
    "half",
    "interleaved",
    "hadamard",
    ".scale",
    "slot/4 dim slot%4",
    "signed",
    "pow2",
    "\"tensor\"",
    "\"granularity\":\"head\"",
    "token_head",
    "\"dim\":576",
    "\"tp\":8",
    "\"pp\":3",
    "\"cp\":3",
    "tp cp pp",
    "cp pp tp",
];
