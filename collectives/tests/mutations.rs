//! Descriptions that were damaged at random are refused in words or carried right; nothing panics.
//!
//! The caches under `tests/data/kv` are mutated a few fields at a time. What still is a pair that fits,
//! and is small, must be carried as an enumeration of its rows says.

#[path = "support/naive.rs"]
#[allow(dead_code, reason = "nothing is drawn here")]
mod naive;
#[path = "../../translate/tests/support/rng.rs"]
mod rng;

use std::{fs, path::Path, sync::Arc};

use moai_collectives::{
    description::Description,
    descriptor::Descriptor,
    digest::DigestKey,
    execute::{Pool, Requested, convert},
    request::Request,
    traffic::traffic,
};
use moai_memory::Region;
use rng::{Rng, cases};
use serde_json::{Map, Value, json};

/// Bytes of all regions, and rows, up to which a pair is carried.
const SMALL_BYTES: u64 = 4 << 20;
const SMALL_ROWS: u64 = 20_000;

fn documents() -> Vec<[Value; 2]> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/kv");
    let mut folders: Vec<_> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("case.json").exists())
        .collect();
    folders.sort();
    let read = |path: &Path| serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let pair = |folder: &std::path::PathBuf| {
        [
            read(&folder.join("producer.json")),
            read(&folder.join("consumer.json")),
        ]
    };
    folders.iter().map(pair).collect()
}

/// Every place in a document, as a JSON pointer.
fn places(value: &Value, at: &str, out: &mut Vec<String>) {
    out.push(at.to_owned());
    match value {
        Value::Array(list) => {
            for (i, value) in list.iter().enumerate() {
                places(value, &format!("{at}/{i}"), out);
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                places(value, &format!("{at}/{name}"), out);
            }
        }
        _ => {}
    }
}

const NUMBERS: [u64; 36] = [
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    12,
    15,
    16,
    24,
    31,
    32,
    48,
    64,
    100,
    128,
    576,
    656,
    4095,
    4096,
    65_535,
    65_536,
    1 << 24,
    (1 << 24) + 1,
    1 << 30,
    (1 << 30) + 1,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    1 << 53,
    i64::MAX as u64,
    u64::MAX,
];

const WORDS: [&str; 22] = [
    "layer", "part", "page", "head", "slot", "dim", "[layer]", "[part]", "[page]", "[head]",
    "slot/8", "slot%8", "dim/8", "dim%8", "head/2", "head%2", "layer/2", "layer%2", "page/2",
    "page%2", "dim/16", "dim%16",
];

const TEXTS: [&str; 24] = [
    "",
    "key",
    "value",
    "key.scale",
    "latent",
    "kv",
    "bf16",
    "f16",
    "f32",
    "e4m3fn",
    "e4m3fnuz",
    "e5m2",
    "int8",
    "q8_0",
    "fp8_ds_mla",
    "mxfp8",
    "nvfp4@16",
    "token",
    "page",
    "contiguous",
    "tp pp cp",
    "cp tp pp",
    "\u{0}\u{202e}é\u{1f600}",
    "../../x",
];

/// A value that has no business anywhere in particular.
fn odd(rng: &mut Rng) -> Value {
    match rng.below(12) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!([]),
        3 => json!({}),
        4 => json!(-(i64::from(rng.below(3)) + 1)),
        5 => json!([0.5, 1e308, 1e-50, 1e39, -0.0][rng.below(5) as usize]),
        6 => json!("x".repeat(rng.below(5000) as usize)),
        7 => (0..rng.below(100)).fold(json!(1), |inner, _| json!([inner])),
        8 => json!(rng.pick(&TEXTS)),
        _ => json!(rng.pick(&NUMBERS)),
    }
}

/// A field of the schema that the document may not have, with a value it may take.
fn field(rng: &mut Rng) -> (&'static str, Value) {
    let few = |rng: &mut Rng| json!(rng.below(9));
    match rng.below(24) {
        0 => ("window", few(rng)),
        1 => ("group", json!(rng.pick(&["full", "window", "b"]))),
        2 => (
            "groups",
            json!([{ "name": "full", "layers": [0, 1], "page_slots": 16 },
                   { "name": "window", "layers": [1, 2], "window": rng.pick(&NUMBERS) }]),
        ),
        3 => (
            "of",
            json!({ "component": rng.pick(&["key", "value", "latent"]), "dims": [rng.below(70), rng.pick(&NUMBERS)] }),
        ),
        4 => ("part", few(rng)),
        5 => ("cp_unit", json!(rng.pick(&["token", "page", "contiguous"]))),
        6 => ("cp", few(rng)),
        7 => ("tp", few(rng)),
        8 => ("pp", few(rng)),
        9 => ("heads", json!([rng.below(3), rng.below(9)])),
        10 => ("layers", json!([rng.below(3), rng.below(5)])),
        11 => ("layers_list", json!([rng.below(4), rng.below(4)])),
        12 => ("rotation", json!({ "hadamard": rng.pick(&NUMBERS) })),
        13 => ("scale_rule", json!(rng.pick(&["raw", "pow2"]))),
        14 => (
            "scale",
            json!({ "granularity": rng.pick(&["tensor", "head", "token_head"]), "values": 0.5 }),
        ),
        15 => ("scale", json!({ "granularity": "token_head" })),
        16 => (
            "rope",
            json!({ "pairing": "half", "dims": rng.pick(&NUMBERS) }),
        ),
        17 => (
            "rope",
            json!({ "pairing": "interleaved", "dims": 64, "offset": rng.below(9) * 64 }),
        ),
        18 => ("offset_bytes", json!(rng.pick(&NUMBERS))),
        19 => ("page_slots", json!(rng.pick(&[1, 8, 16, 24, 32]))),
        20 => ("tokens", json!(rng.pick(&NUMBERS))),
        21 => ("pages", json!(rng.pick(&NUMBERS))),
        22 => (
            "rank_order",
            json!(rng.pick(&["cp pp tp", "tp cp pp", "tp tp"])),
        ),
        _ => (
            "strides_bytes",
            json!({ rng.pick(&WORDS): rng.pick(&NUMBERS) }),
        ),
    }
}

/// Another order of words, one more, one less, a bracket, a split or a stride.
fn reword(rng: &mut Rng, text: &str) -> String {
    let mut words: Vec<String> = text.split(' ').map(ToOwned::to_owned).collect();
    let at = rng.below(words.len() as u32) as usize;
    match rng.below(7) {
        0 => rng.shuffle(&mut words),
        1 => drop(words.remove(at)),
        2 => words.insert(at, rng.pick(&WORDS).to_owned()),
        3 => words[at] = format!("[{}]", words[at]),
        4 => words[at] = words[at].trim_matches(['[', ']']).to_owned(),
        5 => {
            let axis = words[at].trim_matches(['[', ']']).to_owned();
            let n = [1, 2, 4, 8, 16, 64, u32::MAX][rng.below(7) as usize];
            words[at] = format!("{axis}/{n}");
            let inner = rng.below(words.len() as u32 + 1) as usize;
            words.insert(inner, format!("{axis}%{n}"));
        }
        _ => {
            let stride = rng.pick(&NUMBERS);
            words[at] = format!("{}{{{stride}}}", words[at]);
        }
    }
    words.join(" ")
}

/// Damages one place; which one and how follow from the seed alone.
fn mutate(rng: &mut Rng, doc: &mut Value, other: &Value) {
    let mut all = Vec::new();
    places(doc, "", &mut all);
    let chosen = all[rng.below(all.len() as u32) as usize].clone();
    match rng.below(10) {
        0 => {
            // Delete it.
            if let Some((parent, name)) = chosen.rsplit_once('/') {
                let name = name.replace("~1", "/").replace("~0", "~");
                match doc.pointer_mut(parent) {
                    Some(Value::Object(fields)) => drop(fields.remove(&name)),
                    Some(Value::Array(list)) => drop(list.remove(name.parse::<usize>().unwrap())),
                    _ => {}
                }
            }
        }
        1 => {
            // Repeat an item of a list.
            if let Some(Value::Array(list)) = doc.pointer_mut(&chosen)
                && !list.is_empty()
            {
                let item = list[rng.below(list.len() as u32) as usize].clone();
                list.insert(rng.below(list.len() as u32 + 1) as usize, item);
            }
        }
        2 => {
            // Swap it with another place.
            let second = all[rng.below(all.len() as u32) as usize].clone();
            if let (Some(a), Some(b)) = (doc.pointer(&chosen), doc.pointer(&second)) {
                let (a, b) = (a.clone(), b.clone());
                if let Some(place) = doc.pointer_mut(&chosen) {
                    *place = b;
                }
                if let Some(place) = doc.pointer_mut(&second) {
                    *place = a;
                }
            }
        }
        3 => {
            // Take what the other document has there.
            if let Some(there) = other.pointer(&chosen) {
                *doc.pointer_mut(&chosen).unwrap() = there.clone();
            }
        }
        4 => *doc.pointer_mut(&chosen).unwrap() = odd(rng),
        5 | 6 => {
            let objects: Vec<_> = all
                .iter()
                .filter(|at| doc.pointer(at).is_some_and(Value::is_object))
                .collect();
            if objects.is_empty() {
                return;
            }
            let at = objects[rng.below(objects.len() as u32) as usize];
            let (name, value) = field(rng);
            if let Some(Value::Object(fields)) = doc.pointer_mut(at) {
                fields.insert(name.to_owned(), value);
            }
        }
        7 => {
            let Some(Value::Array(components)) = doc.get_mut("components") else {
                return;
            };
            if components.is_empty() {
                return;
            }
            let c = rng.below(components.len() as u32) as usize;
            let Some(layout) = components[c].get_mut("layout") else {
                return;
            };
            if let Some(text) = layout.as_str() {
                let text = reword(rng, text);
                *layout = if rng.percent(30) {
                    let mut strides = Map::new();
                    if let Some(word) = text.split(' ').next() {
                        strides.insert(word.to_owned(), json!(rng.pick(&NUMBERS)));
                    }
                    json!({ "text": text, "offset_bytes": rng.pick(&NUMBERS), "strides_bytes": strides })
                } else {
                    json!(text)
                };
            } else if let Some(text) = layout.get_mut("text")
                && let Some(old) = text.as_str()
            {
                *text = json!(reword(rng, old));
            }
        }
        _ => {
            // A number a little or much off, or a text of the schema.
            let place = doc.pointer_mut(&chosen).unwrap();
            if let Some(n) = place.as_u64() {
                *place = json!(match rng.below(6) {
                    0 => n.wrapping_add(1),
                    1 => n.saturating_sub(1),
                    2 => n.saturating_mul(2),
                    3 => n / 2,
                    4 => n.saturating_mul(3),
                    _ => rng.pick(&NUMBERS),
                });
            } else if place.is_string() {
                *place = json!(rng.pick(&TEXTS));
            }
        }
    }
}

/// Gives every rank as many pages as its tokens need, where the document can be read that far.
fn repair(rng: &mut Rng, doc: &mut Value) -> Option<()> {
    let small = |value: &Value, most: u64| {
        let n = value.as_u64()?;
        (1..=most).contains(&n).then_some(n as u32)
    };
    let tokens = small(doc.pointer("/request/tokens")?, 1 << 12)?;
    let slots = small(doc.get("page_slots")?, 1 << 12)?;
    let parallel = doc.get("parallel")?.clone();
    let size = |axis| parallel.get(axis).map_or(Some(1), |value| small(value, 16));
    let cp = size("cp")?;
    let sizes = ["tp", "pp", "cp"].map(|axis| size(axis).map(u64::from));
    let ranks = sizes[0]? * sizes[1]? * sizes[2]?;
    let list = doc.get_mut("ranks")?.as_array_mut()?;
    if ranks > 64 || list.is_empty() {
        return None;
    }
    while (list.len() as u64) < ranks {
        let mut rank = list[rng.below(list.len() as u32) as usize].clone();
        rank.as_object_mut()?
            .insert("rank".to_owned(), json!(list.len()));
        list.push(rank);
    }
    list.truncate(ranks as usize);
    let text = |name| parallel.get(name).and_then(Value::as_str);
    let unit = text("cp_unit").filter(|unit| ["token", "page", "contiguous"].contains(unit));
    let order = text("rank_order").unwrap_or("pp cp tp");
    let order: Vec<String> = order.split(' ').map(ToOwned::to_owned).collect();
    for (i, rank) in doc["ranks"].as_array_mut()?.iter_mut().enumerate() {
        rank.get_mut("rank")?.as_u64()?;
        let mut rest = i as u64;
        let mut me = 0;
        for axis in order.iter().rev() {
            let size = sizes[["tp", "pp", "cp"].iter().position(|a| a == axis)?]?;
            if axis == "cp" {
                me = (rest % size) as u32;
            }
            rest /= size;
        }
        let held = naive::held(tokens, slots, None, (cp, me), unit.unwrap_or("token")).len() as u32;
        let need = held.div_ceil(slots);
        let pages = rank
            .get("pages")?
            .as_u64()
            .unwrap_or(0)
            .max(need.into())
            .min(1 << 12) as u32;
        rank["pages"] = json!(pages);
        let mut all: Vec<u32> = (0..pages).collect();
        rng.shuffle(&mut all);
        all.truncate(need as usize);
        rank["request_pages"] = json!(all);
    }
    Some(())
}

fn mutated(rng: &mut Rng, documents: &[[Value; 2]]) -> [Value; 2] {
    let mut pair = rng.pick(&documents.iter().collect::<Vec<_>>()).clone();
    let other = rng.pick(&documents.iter().collect::<Vec<_>>()).clone();
    if rng.percent(10) {
        pair[1] = pair[0].clone();
    }
    for _ in 0..rng.between(1, 4) {
        let seed = rng.next();
        match rng.below(4) {
            0 => mutate(rng, &mut pair[0], &other[0]),
            1 => mutate(rng, &mut pair[1], &other[1]),
            // The same on both sides, so that they may still fit.
            _ => {
                let which = rng.below(2) as usize;
                for doc in &mut pair {
                    mutate(&mut Rng::new(seed), doc, &other[which]);
                }
            }
        }
    }
    if rng.percent(60) {
        for doc in &mut pair {
            repair(rng, doc);
        }
    }
    pair
}

fn small(sides: [&Descriptor; 2], tokens: u32) -> bool {
    let regions = || {
        sides
            .iter()
            .flat_map(|side| &side.ranks)
            .flat_map(|r| &r.regions)
    };
    let bytes = regions().try_fold(0_u64, |sum, region| sum.checked_add(region.bytes));
    let rows = |side: &&Descriptor| -> u64 {
        let rank = |r: &moai_collectives::descriptor::RankShard| -> u64 {
            let one = |c: usize| {
                r.layers_of(c).len() as u64
                    * u64::from(r.heads(c).end - r.heads(c).start)
                    * u64::from(tokens)
            };
            (0..side.components.len()).map(one).sum()
        };
        side.ranks.iter().map(rank).sum()
    };
    bytes.is_some_and(|bytes| bytes <= SMALL_BYTES)
        && sides.iter().map(rows).sum::<u64>() <= SMALL_ROWS
}

const ELEMENTS: [&str; 9] = [
    "f32",
    "f16",
    "bf16",
    "e4m3fn",
    "e4m3fnuz",
    "e5m2",
    "int8",
    "q8_0",
    "fp8_ds_mla",
];

/// What became of a mutated pair.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Bad,
    Refused,
    Agreed,
    Carried,
}

fn one(seed: u64, documents: &[[Value; 2]]) -> Outcome {
    let mut rng = Rng::new(seed);
    let docs = mutated(&mut rng, documents);
    let texts = docs.each_ref().map(Value::to_string);
    if std::env::var_os("MOAI_TRACE").is_some() {
        eprintln!("seed {seed}\n{}\n{}", texts[0], texts[1]);
    }
    let sides = texts.each_ref().map(|text| Request::read(text));
    for error in sides.iter().filter_map(|side| side.as_ref().err()) {
        assert!(!error.to_string().is_empty());
    }
    let [Ok(producer), Ok(consumer)] = sides else {
        return Outcome::Bad;
    };
    let requested = match Requested::agree(producer, consumer) {
        Ok(requested) => Arc::new(requested),
        Err(refusal) => {
            assert!(!refusal.obstacles.is_empty());
            return Outcome::Refused;
        }
    };
    let known = |side: &Descriptor| {
        let mut elements = side.components.iter().map(|c| c.format.element);
        elements.all(|element| ELEMENTS.contains(&element.name()))
    };
    let agreed = requested.agreed();
    let sides = agreed.sides();
    if !small(sides, requested.tokens()) || !sides.into_iter().all(known) {
        return Outcome::Agreed;
    }
    let said = traffic(&requested);
    // The enumeration reads fields where the schema has them, and knows the elements with codecs.
    let [naive_producer, naive_consumer] = texts.each_ref().map(|text| {
        let description: Description = serde_json::from_str(text).unwrap();
        naive::Side::read(&serde_json::to_value(description).unwrap())
    });
    let sources: Vec<_> = (0..naive_producer.ranks.len())
        .map(|rank| {
            let mut regions = naive_producer.regions(rank, &mut rng);
            naive_producer.fill(rank, seed, &mut regions);
            regions
        })
        .collect();
    let mut wanted: Vec<_> = (0..naive_consumer.ranks.len())
        .map(|rank| naive_consumer.regions(rank, &mut rng))
        .collect();
    let pools = |sides: &[naive::Regions]| -> Vec<Pool> {
        let pool = |regions: &naive::Regions| {
            regions
                .iter()
                .map(|bytes| Region::from_host(bytes.clone()))
                .collect()
        };
        sides.iter().map(pool).collect()
    };
    let (given, mut found) = (pools(&sources), pools(&wanted));
    let key = DigestKey::new(
        1,
        agreed
            .agreement
            .carriages
            .iter()
            .map(|c| c.row_bytes[1] as usize)
            .max()
            .unwrap_or(4),
    );
    naive::convert(
        &naive_producer,
        &naive_consumer,
        &sources,
        &mut wanted,
        &agreed.agreement,
        &key,
    );
    convert(&requested, &given, &mut found);
    for (rank, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
        for (region, (found, wanted)) in found.iter().zip(wanted).enumerate() {
            assert!(
                found.as_slice() == wanted.as_slice(),
                "rank {rank} region {region} is wrong"
            );
        }
    }
    assert!(
        said.iter()
            .all(|pair| pair.chunks > 0 || pair.bytes_wire == 0)
    );
    Outcome::Carried
}

#[test]
fn mutated_descriptions_are_refused_in_words_or_carried_right() {
    let documents = documents();
    let counts = [const { std::cell::Cell::new(0_u64) }; 4];
    cases(1500, |seed| {
        let count = &counts[one(seed, &documents) as usize];
        count.set(count.get() + 1);
    });
    let [bad, refused, agreed, carried] = counts.map(std::cell::Cell::into_inner);
    eprintln!("{bad} bad, {refused} refused, {agreed} agreed, {carried} carried");
}
