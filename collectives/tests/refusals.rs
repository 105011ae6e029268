//! What is refused, at the door and between two sides, and that the message says where and why.

use moai_collectives::{
    descriptor::{Descriptor, DescriptorError},
    execute::Requested,
    negotiate::{Obstacle, negotiate},
    request::Request,
};
use serde_json::{Value, json};

/// Two ranks of two heads each, keys and values side by side.
fn good() -> Value {
    json!({
        "version": 1,
        "engine": "test",
        "model": { "name": "m", "layers": 2 },
        "parallel": { "tp": 2 },
        "page_slots": 16,
        "components": [
            { "name": "key", "heads": 4, "dim": 8, "pool": "kv", "format": { "element": "bf16" },
              "rope": { "pairing": "half", "dims": 8 },
              "layout": "[layer] page slot head part dim" },
            { "name": "value", "heads": 4, "dim": 8, "pool": "kv", "format": { "element": "bf16" },
              "layout": "[layer] page slot head part dim" },
        ],
        "ranks": [
            { "rank": 0, "pages": 4, "request_pages": [3, 1] },
            { "rank": 1, "pages": 4, "request_pages": [0, 2] },
        ],
        "request": { "tokens": 20 },
    })
}

fn read(doc: &Value) -> Descriptor {
    Descriptor::from_json(&doc.to_string()).unwrap_or_else(|error| panic!("{error}\n{doc}"))
}

fn changed(change: impl FnOnce(&mut Value)) -> Value {
    let mut doc = good();
    change(&mut doc);
    doc
}

/// The document is refused for `field`, and the problem says all of `parts`.
fn refused(doc: &Value, field: &str, parts: &[&str]) {
    match Descriptor::from_json(&doc.to_string()) {
        Err(DescriptorError::Field {
            field: found,
            problem,
        }) => {
            assert_eq!(found, field, "{problem}");
            for part in parts {
                assert!(
                    problem.contains(part),
                    "{field}: {problem:?} lacks {part:?}"
                );
            }
        }
        other => panic!("expected {field} to be refused, not {other:?}\n{doc}"),
    }
}

/// One edit of the good document, and what must be said.
type Edit = (&'static str, Value, &'static str, &'static [&'static str]);

fn refuse_edits(edits: &[Edit]) {
    for (pointer, value, field, parts) in edits {
        let mut doc = good();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = doc.pointer_mut(parent).unwrap();
        match name.parse::<usize>() {
            Ok(index) => parent[index] = value.clone(),
            Err(_) => parent[name] = value.clone(),
        }
        refused(&doc, field, parts);
    }
}

#[test]
fn the_document_that_the_others_break_is_good() {
    assert!(negotiate(&read(&good()), &read(&good())).is_ok());
}

#[test]
fn malformed_json_is_refused_with_its_position() {
    let position = |text: &str| match Descriptor::from_json(text) {
        Err(DescriptorError::Syntax {
            line,
            column,
            problem,
        }) => (line, column, problem),
        other => panic!("{other:?}"),
    };
    let (line, column, _) = position("{\n  \"version\": 1,\n  \"engine\" \"x\"\n}");
    assert_eq!((line, column), (3, 12));
    assert_eq!(position("").0, 1);
    let cut = serde_json::to_string_pretty(&good()).unwrap();
    let (line, ..) = position(&cut[..cut.len() / 2]);
    assert!(line > 10);
    let (.., problem) = position(&good().to_string().replace("\"tokens\":20", "\"tokens\":-1"));
    assert!(problem.contains("-1"), "{problem}");
    let (.., problem) = position(
        &good()
            .to_string()
            .replace("\"tokens\":20", "\"tokens\":1e999"),
    );
    assert!(problem.contains("out of range"), "{problem}");
    // Depth is bounded, so that a document cannot exhaust the stack.
    position(&"[".repeat(200_000));
}

#[test]
fn unknown_and_missing_fields_are_refused_by_name() {
    let says = |doc: &Value, part: &str| match Descriptor::from_json(&doc.to_string()) {
        Err(error @ DescriptorError::Syntax { .. }) => {
            assert!(error.to_string().contains(part), "{error}");
        }
        other => panic!("{other:?}"),
    };
    for (pointer, name) in [
        ("", "page_slot"),
        ("/model", "layer"),
        ("/parallel", "dp"),
        ("/components/0", "head"),
        ("/components/0/format", "scales"),
        ("/components/0/rope", "dim"),
        ("/ranks/1", "request_page"),
        ("/request", "token"),
    ] {
        let doc = changed(|doc| doc.pointer_mut(pointer).unwrap()[name] = json!(1));
        says(&doc, &format!("unknown field `{name}`"));
    }
    for (pointer, name) in [
        ("", "components"),
        ("/components/0", "layout"),
        ("/ranks/0", "pages"),
    ] {
        let doc = changed(|doc| {
            doc.pointer_mut(pointer)
                .unwrap()
                .as_object_mut()
                .unwrap()
                .remove(name);
        });
        says(&doc, &format!("missing field `{name}`"));
    }
}

#[test]
fn bad_layouts_are_refused_with_their_position() {
    let at = "components[0].layout";
    refuse_edits(&[
        (
            "/components/0/layout",
            json!("[layer] page haed dim"),
            at,
            &["position 13", "haed"],
        ),
        (
            "/components/0/layout",
            json!("[layer page dim"),
            at,
            &["position 0", "bracket"],
        ),
        (
            "/components/0/layout",
            json!(""),
            at,
            &["position 0", "no axis"],
        ),
        (
            "/components/0/layout",
            json!("[layer] page slot head part dim/3 dim%3"),
            at,
            &["`dim` by 3", "8"],
        ),
        (
            "/components/0/layout",
            json!("[layer] page slot/5 head part dim slot%5"),
            at,
            &["`slot` by 5", "16"],
        ),
        (
            "/components/0/layout",
            json!("[layer] page slot part dim"),
            at,
            &["leaves out `head`", "2"],
        ),
        (
            "/components/0/layout",
            json!({ "text": "[layer] page slot head part dim", "strides_bytes": { "head": 8 } }),
            at,
            &["`head`", "8 bytes", "overlap"],
        ),
        (
            "/components/0/layout",
            json!({ "text": "[layer] page slot head part dim", "strides_bytes": { "token": 8 } }),
            at,
            &["`token`"],
        ),
        (
            "/components/0/layout",
            json!({ "text": "[layer] page slot head part dim", "strides_bytes": { "layer": 8 } }),
            at,
            &["`layer`"],
        ),
        (
            "/components/0/layout",
            json!({ "text": "[layer] page slot head part dim", "offset_bytes": u64::MAX - 1 }),
            at,
            &["more than 9223372036854775807"],
        ),
        (
            "/components/0/layout",
            json!("[layer] page{9223372036854775806} slot head part dim"),
            at,
            &["more than"],
        ),
    ]);
}

#[test]
fn components_that_overlap_are_refused_by_name() {
    refuse_edits(&[
        (
            "/components/1/part",
            json!(0),
            "components[1].part",
            &["0", "\"key\""],
        ),
        (
            "/components/1/part",
            json!(2),
            "components[1].part",
            &["2 is not below 2"],
        ),
        (
            "/components/1/layout",
            json!("[layer] page slot head dim"),
            "components[1].layout",
            &["\"value\" overlaps \"key\"", "\"kv\""],
        ),
        (
            "/components/1/layout",
            json!("[layer] page part slot head dim"),
            "components[1].layout",
            &["overlaps"],
        ),
        (
            "/components/1/name",
            json!("key"),
            "components[1].name",
            &["\"key\""],
        ),
        (
            "/components/1/dim",
            json!(16),
            "components[0].layout",
            &["16 bytes", "32 bytes", "part"],
        ),
    ]);
}

#[test]
fn counts_out_of_range_are_refused() {
    refuse_edits(&[
        ("/version", json!(2), "version", &["2"]),
        ("/model/layers", json!(0), "model.layers", &["0"]),
        (
            "/model/layers",
            json!(4097),
            "model.layers",
            &["4097", "4096"],
        ),
        ("/page_slots", json!(0), "page_slots", &["0"]),
        ("/page_slots", Value::Null, "page_slots", &["missing"]),
        ("/request/tokens", json!(0), "request.tokens", &["0"]),
        (
            "/request/tokens",
            json!(u32::MAX),
            "request.tokens",
            &["4294967295"],
        ),
        ("/parallel/tp", json!(0), "parallel.tp", &["0"]),
        (
            "/parallel/tp",
            json!(u32::MAX),
            "parallel.tp",
            &["4294967295"],
        ),
        (
            "/parallel",
            json!({ "tp": 4096, "pp": 4096, "cp": 256, "cp_unit": "token" }),
            "parallel",
            &["4294967296"],
        ),
        (
            "/parallel",
            json!({ "tp": 1, "cp": 2 }),
            "parallel.cp_unit",
            &["\"token\", \"page\" or \"contiguous\""],
        ),
        (
            "/parallel/rank_order",
            json!("pp tp"),
            "parallel.rank_order",
            &["pp tp"],
        ),
        (
            "/parallel/rank_order",
            json!("pp tp tp"),
            "parallel.rank_order",
            &["pp tp tp"],
        ),
        ("/components", json!([]), "components", &["0 components"]),
        (
            "/components/0/heads",
            json!(0),
            "components[0].heads",
            &["0"],
        ),
        ("/components/0/dim", json!(0), "components[0].dim", &["0"]),
        (
            "/components/0/dim",
            json!(u32::MAX),
            "components[0].dim",
            &["4294967295"],
        ),
        ("/ranks/0/pages", json!(0), "ranks[0].pages", &["0"]),
        (
            "/ranks/0/pages",
            json!(u32::MAX),
            "ranks[0].pages",
            &["4294967295"],
        ),
        (
            "/ranks/0/heads",
            json!([2, 2]),
            "ranks[0].heads",
            &["[2, 2]", "0..4"],
        ),
        (
            "/ranks/0/heads",
            json!([3, 5]),
            "ranks[0].heads",
            &["[3, 5]"],
        ),
        (
            "/ranks/0/layers",
            json!([0, 3]),
            "ranks[0].layers",
            &["[0, 3]"],
        ),
        (
            "/ranks/0/layers_list",
            json!([]),
            "ranks[0].layers_list",
            &["empty"],
        ),
        (
            "/ranks/0/layers_list",
            json!([1, 1]),
            "ranks[0].layers_list",
            &["layer 1", "twice"],
        ),
        (
            "/ranks/0/layers_list",
            json!([2]),
            "ranks[0].layers_list",
            &["layer 2"],
        ),
        (
            "/components/0/rope/dims",
            json!(7),
            "components[0].rope",
            &["7"],
        ),
        (
            "/components/0/rope/offset",
            json!(u32::MAX),
            "components[0].rope",
            &["4294967295"],
        ),
    ]);
}

/// Sizes whose product does not fit are an error, not a smaller number and not a panic.
#[test]
fn sizes_that_overflow_are_refused() {
    let huge = changed(|doc| {
        doc["page_slots"] = json!(1 << 30);
        for rank in [0, 1] {
            doc["ranks"][rank]["pages"] = json!(1 << 30);
            doc["ranks"][rank]["request_pages"] = json!([0]);
        }
        doc["components"][0]["dim"] = json!(1 << 24);
        doc["components"][1]["dim"] = json!(1 << 24);
    });
    refused(&huge, "components[0].layout", &["more than"]);
    let regions = changed(|doc| {
        for c in [0, 1] {
            doc["components"][c]["layout"] = json!("[layer] [page] slot head part dim");
        }
        doc["ranks"][0]["pages"] = json!(1 << 30);
    });
    refused(&regions, "components[0].layout", &["2147483648", "65536"]);
}

#[test]
fn ranks_that_are_missing_extra_or_twice_are_refused() {
    let missing = changed(|doc| {
        doc["ranks"].as_array_mut().unwrap().remove(1);
    });
    refused(&missing, "ranks", &["rank 1 missing", "tp 2"]);
    refuse_edits(&[
        (
            "/ranks/1/rank",
            json!(2),
            "ranks[1].rank",
            &["rank 2", "0..2"],
        ),
        (
            "/ranks/1/rank",
            json!(0),
            "ranks[1].rank",
            &["rank 0", "twice"],
        ),
        ("/ranks", json!([]), "ranks", &["rank 0, 1 missing"]),
    ]);
    let shares = changed(|doc| {
        doc["parallel"]["tp"] = json!(3);
        let third = json!({ "rank": 2, "pages": 4, "request_pages": [0, 2] });
        doc["ranks"].as_array_mut().unwrap().push(third);
    });
    refused(&shares, "ranks[0]", &["4 heads", "tp 3", "`heads`"]);
    let stages = changed(|doc| {
        doc["parallel"] = json!({ "pp": 2 });
        doc["model"]["layers"] = json!(3);
    });
    refused(&stages, "ranks[0]", &["3 layers", "2 stages", "`layers`"]);
}

#[test]
fn pages_that_are_not_there_or_used_twice_are_refused() {
    let at = "ranks[1].request_pages";
    refuse_edits(&[
        (
            "/ranks/1/request_pages",
            json!([0, 4]),
            at,
            &["page 4", "0..4"],
        ),
        (
            "/ranks/1/request_pages",
            json!([2, 2]),
            at,
            &["page 2", "twice"],
        ),
        (
            "/ranks/1/request_pages",
            json!([2]),
            at,
            &["1 pages", "need 2"],
        ),
        (
            "/ranks/1/request_pages",
            json!([0, 1, 2]),
            at,
            &["3 pages", "need 2"],
        ),
        (
            "/ranks/1/request_pages",
            json!({ "full": [0, 1] }),
            at,
            &["no group \"full\""],
        ),
    ]);
    // Counting what is missing takes no list of what is missing.
    let billion = changed(|doc| {
        doc["parallel"] = json!({ "cp": 2, "cp_unit": "page" });
        doc["page_slots"] = json!(1);
        doc["request"]["tokens"] = json!(1 << 30);
    });
    let half = (1_u32 << 29).to_string();
    refused(&billion, "ranks[0].request_pages", &["2 pages", &half]);
}

#[test]
fn formats_that_are_not_exact_are_refused() {
    let element = "components[0].format.element";
    refuse_edits(&[
        (
            "/components/0/format/element",
            json!("fp8"),
            element,
            &["\"fp8\"", "e4m3fn", "e4m3fnuz"],
        ),
        (
            "/components/0/format/element",
            json!("BF16"),
            element,
            &["BF16"],
        ),
        (
            "/components/0/format/element",
            json!(""),
            element,
            &["elements are"],
        ),
        (
            "/components/0/format/element",
            json!("q8_0"),
            "components[0].dim",
            &["8", "32"],
        ),
        (
            "/components/0/format/rotation",
            json!({ "hadamard": 3 }),
            "components[0].format.rotation",
            &["3", "8"],
        ),
        (
            "/components/0/group",
            json!("full"),
            "components[0].group",
            &["\"full\""],
        ),
        (
            "/components/0/of",
            json!({ "component": "latent", "dims": [0, 7] }),
            "components[0].of.dims",
            &["7", "8"],
        ),
    ]);
}

#[test]
fn scales_that_are_no_scales_are_refused() {
    let scale = |granularity: &str, values: Value| {
        changed(|doc| {
            doc["components"][0]["format"] = json!({
                "element": "e4m3fn",
                "scale": { "granularity": granularity, "values": values },
            });
            doc["components"][1]["format"]["element"] = json!("e4m3fn");
        })
    };
    let at = "components[0].format.scale.values";
    assert!(Descriptor::from_json(&scale("tensor", json!([0.5, 2.0])).to_string()).is_ok());
    refused(&scale("tensor", json!(0)), at, &["0", "positive"]);
    refused(&scale("tensor", json!(-1)), at, &["-1"]);
    refused(&scale("tensor", json!(1e300)), at, &["finite"]);
    // Too small for an f32, so it would be 0.
    refused(&scale("tensor", json!(1e-60)), at, &["positive"]);
    refused(
        &scale("tensor", json!([1.0, -1.0])),
        &format!("{at}[1]"),
        &["-1"],
    );
    refused(
        &scale("tensor", json!([1.0])),
        at,
        &["1 values", "2 layers"],
    );
    refused(&scale("tensor", json!([[1.0], [1.0]])), at, &["tensor"]);
    refused(
        &scale("head", json!([[1, 1, 1, 1], [1, 1, 1, 0]])),
        &format!("{at}[1][3]"),
        &["0"],
    );
    refused(
        &scale("head", json!([[1, 1, 1]])),
        at,
        &["2 layers of 4 heads"],
    );
    refused(&scale("head", json!(1.0)), at, &["2 lists of 4"]);
    refused(
        &scale("token_head", json!(1.0)),
        at,
        &["component of their own"],
    );
    // JSON has no NaN and no infinity, and a number too large for f64 is none either.
    for text in ["1e999", "NaN", "-1e999"] {
        let doc = scale("tensor", json!(7777))
            .to_string()
            .replace("7777", text);
        assert!(
            matches!(
                Descriptor::from_json(&doc),
                Err(DescriptorError::Syntax { .. })
            ),
            "{text}"
        );
    }
    let orphan = changed(|doc| {
        doc["components"][0]["format"]["scale"] = json!({ "granularity": "token_head" })
    });
    refused(&orphan, "components[0].format.scale", &["\"key.scale\""]);
    // A scale is read as it lies there, so it can have no scale of its own and be no piece.
    let scaled = |change: &dyn Fn(&mut Value)| {
        changed(|doc| {
            let mut scales = doc["components"][0].clone();
            scales["name"] = json!("key.scale");
            scales["dim"] = json!(1);
            scales["pool"] = json!("s");
            scales["format"] = json!({ "element": "f32" });
            scales["layout"] = json!("[layer] page slot head");
            scales.as_object_mut().unwrap().remove("rope");
            change(&mut scales);
            doc["components"][0]["format"] =
                json!({ "element": "int8", "scale": { "granularity": "token_head" } });
            doc["components"][1]["format"]["element"] = json!("int8");
            doc["components"].as_array_mut().unwrap().push(scales);
        })
    };
    read(&scaled(&|_| {}));
    let lies = &["\"key.scale\"", "\"key\"", "as they lie: leave it out"];
    for (name, value) in [
        (
            "/format/scale",
            json!({ "granularity": "tensor", "values": 2.0 }),
        ),
        ("/format/rotation", json!({ "hadamard": 1 })),
        ("/rope", json!({ "pairing": "half", "dims": 2 })),
        ("/of", json!({ "component": "other", "dims": [0, 1] })),
    ] {
        let (parent, field) = name.rsplit_once('/').unwrap();
        let doc = scaled(&|scales| scales.pointer_mut(parent).unwrap()[field] = value.clone());
        // A rotary part does not fit a scale to begin with.
        let at = format!("components[2].{}", name[1..].replace('/', "."));
        if field == "rope" {
            continue;
        }
        refused(&doc, &at, lies);
    }
    let typed = changed(|doc| {
        doc["components"][0]["format"]["scale"] =
            json!({ "granularity": "tensor", "type": "f16", "values": 1.0 });
    });
    refused(&typed, "components[0].format.scale.type", &["f16"]);
}

/// Rows of unlike lengths may have a region each, and a region need not be longer than what lies in it.
#[test]
fn unlike_rows_may_lie_in_regions_of_their_own() {
    let doc = changed(|doc| {
        for c in [0, 1] {
            doc["components"][c]["layout"] = json!("[layer] [part] page slot head dim");
        }
        doc["components"][1]["dim"] = json!(6);
    });
    let rank = &read(&doc).ranks[0];
    let bytes: Vec<_> = rank.regions.iter().map(|r| r.bytes).collect();
    let (key, value) = (4 * 16 * 2 * 16, 4 * 16 * 2 * 12);
    assert_eq!(bytes, [key, value, key, value]);
}

fn obstacles(producer: &Value, consumer: &Value) -> Vec<Obstacle> {
    let read = |doc: &Value| Request::read(&doc.to_string()).unwrap();
    match Requested::agree(read(producer), read(consumer)) {
        Ok(_) => panic!("agreed\n{producer}\n{consumer}"),
        Err(refusal) => {
            let text = refusal.to_string();
            for o in &refusal.obstacles {
                for part in [&o.field, &o.producer, &o.consumer, &o.resolve] {
                    assert!(!part.is_empty() && text.contains(part.as_str()), "{text}");
                }
            }
            refusal.obstacles
        }
    }
}

/// Exactly one obstacle, with both values.
fn one(producer: &Value, consumer: &Value, field: &str, a: &str, b: &str) {
    let found = obstacles(producer, consumer);
    let [o] = &found[..] else {
        panic!("expected {field} only: {found:#?}")
    };
    assert_eq!(o.field, field, "{o:?}");
    assert!(o.producer.contains(a), "{:?} lacks {a:?}", o.producer);
    assert!(o.consumer.contains(b), "{:?} lacks {b:?}", o.consumer);
}

#[test]
fn every_obstacle_is_listed_at_once_with_both_values() {
    let producer = changed(|doc| {
        doc["model"]["digest"] = json!("aaaa");
        doc["components"][0]["format"] =
            json!({ "element": "e4m3fn", "scale": { "granularity": "tensor" } });
        doc["components"][1]["format"] = json!({ "element": "e4m3fn" });
    });
    let consumer = changed(|doc| {
        doc["model"]["digest"] = json!("bbbb");
        doc["request"]["tokens"] = json!(21);
        doc["components"][0]["rope"]["dims"] = json!(4);
        doc["components"][1]["heads"] = json!(2);
        doc["components"][1]["layout"] = json!("[layer] page slot head dim");
        doc["components"][1]["pool"] = json!("v");
    });
    let found = obstacles(&producer, &consumer);
    let has = |field: &str, a: &str, b: &str| {
        assert!(
            found
                .iter()
                .any(|o| o.field == field && o.producer.contains(a) && o.consumer.contains(b)),
            "{field}: {found:#?}"
        );
    };
    has("model.digest", "aaaa", "bbbb");
    has("request.tokens", "20", "21");
    has("components.key.format.scale.values", "no values", "bf16");
    has("components.key.rope", "8 dims", "4 dims");
    has("components.value.heads", "4", "2");
    assert_eq!(found.len(), 5, "{found:#?}");
}

#[test]
fn sides_of_unlike_models_are_refused() {
    let layers = changed(|doc| doc["model"]["layers"] = json!(4));
    one(&good(), &layers, "model.layers", "2", "4");
    let digest = |text: &str| changed(|doc| doc["model"]["digest"] = json!(text));
    one(&digest("x1"), &digest("x2"), "model.digest", "x1", "x2");
    assert!(negotiate(&read(&digest("x1")), &read(&good())).is_ok());
    let tokens = changed(|doc| doc["request"]["tokens"] = json!(30));
    one(&good(), &tokens, "request.tokens", "20", "30");
}

#[test]
fn components_without_a_counterpart_are_refused() {
    let more = changed(|doc| {
        let indexer = json!({
            "name": "indexer", "heads": 1, "dim": 8, "pool": "i",
            "format": { "element": "bf16" }, "layout": "[layer] page slot dim",
        });
        doc["components"].as_array_mut().unwrap().push(indexer);
    });
    one(
        &good(),
        &more,
        "components.indexer",
        "missing",
        "1 heads × 8 in bf16",
    );
    one(
        &more,
        &good(),
        "components.indexer",
        "1 heads × 8",
        "missing",
    );
    let heads = changed(|doc| {
        for c in [0, 1] {
            doc["components"][c]["heads"] = json!(8);
        }
    });
    let found = obstacles(&good(), &heads);
    let fields: Vec<_> = found.iter().map(|o| o.field.as_str()).collect();
    assert_eq!(fields, ["components.key.heads", "components.value.heads"]);
}

/// A latent of 64 dims in pieces, each with a format.
fn latent(pieces: &[(u32, u32, Value)]) -> Value {
    changed(|doc| {
        let component = |&(from, to, ref format): &(u32, u32, Value)| {
            json!({
                "name": format!("piece{from}-{to}"), "heads": 1, "dim": to - from,
                "pool": format!("p{from}-{to}"), "format": format,
                "of": { "component": "latent", "dims": [from, to] },
                "layout": "[layer] page slot dim",
            })
        };
        doc["components"] = pieces.iter().map(component).collect();
    })
}

fn bf16() -> Value {
    json!({ "element": "bf16" })
}

#[test]
fn dims_that_do_not_meet_are_refused() {
    let fused = latent(&[(0, 64, bf16())]);
    let half = latent(&[(0, 32, bf16())]);
    one(
        &half,
        &fused,
        "components.piece0-64.dim",
        "0..32 of latent",
        "0..64",
    );
    one(
        &fused,
        &half,
        "components.piece0-64.dim",
        "0..64",
        "0..32 of latent",
    );
    let q8 = || json!({ "element": "q8_0" });
    let odd = latent(&[(0, 16, bf16()), (16, 64, bf16())]);
    let found = obstacles(&latent(&[(0, 64, q8())]), &odd);
    assert!(found.iter().all(|o| o.field.ends_with(".of")), "{found:#?}");
    assert!(found[0].producer.contains("groups of 32"), "{found:#?}");
}

#[test]
fn a_row_with_a_scale_of_its_own_is_not_cut() {
    let mut whole = latent(&[(
        0,
        64,
        json!({ "element": "int8", "scale": { "granularity": "token_head" } }),
    )]);
    let scales = json!({
        "name": "piece0-64.scale", "heads": 1, "dim": 1, "pool": "s",
        "format": { "element": "f32" }, "layout": "[layer] page slot",
    });
    whole["components"].as_array_mut().unwrap().push(scales);
    let two = latent(&[(0, 32, bf16()), (32, 64, bf16())]);
    let found = obstacles(&whole, &two);
    let fields: Vec<_> = found.iter().map(|o| o.field.as_str()).collect();
    let wanted = [
        "components.piece0-32.format.scale",
        "components.piece32-64.format.scale",
    ];
    assert_eq!(fields, wanted);
    assert!(found[0].producer.contains("int8@token_head"));
}

#[test]
fn ropes_that_do_not_meet_are_refused() {
    let rope = |rope: Value| {
        changed(|doc| {
            if rope.is_null() {
                doc["components"][0].as_object_mut().unwrap().remove("rope");
            } else {
                doc["components"][0]["rope"] = rope;
            }
        })
    };
    let at = "components.key.rope";
    one(
        &good(),
        &rope(Value::Null),
        at,
        "half pairing",
        "not stated",
    );
    let four = rope(json!({ "pairing": "interleaved", "dims": 4 }));
    one(
        &good(),
        &four,
        at,
        "8 dims",
        "interleaved pairing of 4 dims",
    );
    // A piece that cuts the rotary part cannot be paired anew.
    let mut fused = latent(&[(0, 64, bf16())]);
    fused["components"][0]["rope"] = json!({ "pairing": "half", "dims": 32, "offset": 16 });
    let mut two = latent(&[(0, 32, bf16()), (32, 64, bf16())]);
    two["components"][0]["rope"] = json!({ "pairing": "interleaved", "dims": 16, "offset": 16 });
    let found = obstacles(&fused, &two);
    assert!(
        found.iter().any(|o| o.field == "components.piece0-32.rope"),
        "{found:#?}"
    );
    // Nor is it the same rotary part because the pairing has the same name: half of 32 dims pairs i with
    // i + 16, half of 16 dims with i + 8.
    fused["components"][0]["rope"] = json!({ "pairing": "half", "dims": 64 });
    for piece in 0..2 {
        two["components"][piece]["rope"] = json!({ "pairing": "half", "dims": 32 });
    }
    let found = obstacles(&fused, &two);
    assert!(
        found.iter().any(|o| o.field == "components.piece0-32.rope"),
        "{found:#?}"
    );
    // Neighbours are the same pairs in a piece as in the whole.
    for (doc, pieces) in [(&mut fused, 1), (&mut two, 2)] {
        for piece in 0..pieces {
            doc["components"][piece]["rope"]["pairing"] = json!("interleaved");
        }
    }
    negotiate(&read(&fused), &read(&two)).unwrap();
    // A part that one side cuts is none that the other side has elsewhere.
    let mut left = latent(&[(0, 40, bf16()), (40, 96, bf16())]);
    left["components"][0]["rope"] = json!({ "pairing": "interleaved", "dims": 40 });
    let mut right = latent(&[(0, 32, bf16()), (32, 96, bf16())]);
    right["components"][1]["rope"] = json!({ "pairing": "interleaved", "dims": 32, "offset": 32 });
    for (a, b) in [(&left, &right), (&right, &left)] {
        let found = obstacles(a, b);
        assert!(
            found.iter().any(|o| o.field.ends_with(".rope")),
            "{found:#?}"
        );
    }
    // Rotated blocks that a piece cuts are no blocks.
    let blocks = |pieces: &[(u32, u32, Value)]| {
        let mut doc = latent(pieces);
        for component in doc["components"].as_array_mut().unwrap() {
            component["format"]["rotation"] = json!({ "hadamard": 16 });
        }
        doc
    };
    let whole = blocks(&[(0, 64, bf16())]);
    let parts = blocks(&[(0, 16, bf16()), (16, 64, bf16())]);
    negotiate(&read(&whole), &read(&parts)).unwrap();
    let shifted = blocks(&[(8, 40, bf16())]);
    let found = obstacles(&whole, &shifted);
    assert!(
        found.iter().any(|o| o.field.ends_with(".format.rotation")),
        "{found:#?}"
    );
    // Whole rows are turned, and paired anew between turns.
    let rotated = |pairing: &str| {
        changed(|doc| {
            doc["components"][0]["format"]["rotation"] = json!({ "hadamard": 8 });
            doc["components"][0]["rope"]["pairing"] = json!(pairing);
        })
    };
    negotiate(&read(&rotated("half")), &read(&rotated("interleaved"))).unwrap();
    negotiate(&read(&rotated("half")), &read(&good())).unwrap();
}

#[test]
fn formats_that_cannot_be_converted_are_refused() {
    let key = |format: Value, apart: bool| {
        changed(|doc| {
            doc["components"][0]["format"] = format;
            if apart {
                doc["components"][0]["pool"] = json!("k");
                doc["components"][0]["layout"] = json!("[layer] page slot head dim");
                doc["components"][1]["pool"] = json!("v");
                doc["components"][1]["layout"] = json!("[layer] page slot head dim");
                doc["components"].as_array_mut().unwrap().push(json!({
                    "name": "key.scale", "heads": 4, "dim": 1, "pool": "s",
                    "format": { "element": "f32" }, "layout": "[layer] page slot head",
                }));
            }
        })
    };
    let unknown = key(
        json!({ "element": "bf16", "scale": { "granularity": "tensor" } }),
        false,
    );
    let at = "components.key.format.scale.values";
    one(&unknown, &good(), at, "no values", "bf16");
    one(&good(), &unknown, at, "bf16", "no values");
    let rowwise = key(
        json!({ "element": "e5m2", "scale": { "granularity": "token_head" } }),
        true,
    );
    one(
        &good(),
        &rowwise,
        "components.key.format",
        "bf16",
        "e5m2@token_head",
    );
}

#[test]
fn rows_too_long_for_the_wire_are_refused() {
    let long = changed(|doc| {
        for c in [0, 1] {
            doc["components"][c]["dim"] = json!(1 << 20);
        }
    });
    let found = obstacles(&long, &long);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].field, "components.key.dim");
    assert!(found[0].producer.contains("8388608"), "{found:?}");
}

#[test]
fn heads_and_layers_that_no_rank_holds_are_refused() {
    let lacks = changed(|doc| {
        doc["ranks"][0]["heads"] = json!([0, 2]);
        doc["ranks"][1]["heads"] = json!([1, 3]);
    });
    let found = obstacles(&lacks, &good());
    let fields: Vec<_> = found.iter().map(|o| o.field.as_str()).collect();
    for field in ["ranks: producer's key", "ranks: key", "ranks: value"] {
        assert!(fields.contains(&field), "{found:#?}");
    }
    let hole = found.iter().find(|o| o.field == "ranks: key").unwrap();
    assert!(hole.producer.contains("3..4"), "{hole:?}");
    assert!(hole.consumer.contains("rank 1"), "{hole:?}");
    let found = obstacles(&good(), &lacks);
    let fields: Vec<_> = found.iter().map(|o| o.field.as_str()).collect();
    assert_eq!(fields, ["ranks: consumer's key", "ranks: consumer's value"]);
    let layer = changed(|doc| {
        for rank in [0, 1] {
            doc["ranks"][rank]["layers"] = json!([0, 1]);
        }
    });
    let found = obstacles(&layer, &good());
    assert!(
        found.iter().any(|o| o.producer.contains("[1]")),
        "{found:#?}"
    );
}

fn windowed(window: Option<u32>) -> Value {
    changed(|doc| {
        let mut group = json!({ "name": "all", "layers": [0, 2] });
        let pages = match window {
            Some(window) => {
                group["window"] = json!(window);
                2 - (20_u32.saturating_sub(window)) / 16
            }
            None => 2,
        };
        doc["groups"] = json!([group]);
        for rank in [0, 1] {
            let pages: Vec<u32> = (0..pages).collect();
            doc["ranks"][rank]["request_pages"] = json!({ "all": pages });
        }
    })
}

#[test]
fn windows_shorter_than_what_is_needed_are_refused() {
    let found = obstacles(&windowed(Some(3)), &windowed(Some(5)));
    let fields: Vec<_> = found.iter().map(|o| o.field.as_str()).collect();
    assert_eq!(fields, ["groups: key", "groups: value"]);
    assert!(found[0].producer.contains("last 3 tokens"));
    assert!(found[0].consumer.contains("last 5 tokens"));
    let found = obstacles(&windowed(Some(19)), &windowed(None));
    assert!(found[0].consumer.contains("all tokens"));
    // However short this request may be, another will be longer.
    let found = obstacles(&windowed(Some(20)), &windowed(None));
    assert!(found[0].producer.contains("last 20 tokens"), "{found:?}");
    for (a, b) in [(Some(5), Some(3)), (None, Some(3)), (Some(3), Some(3))] {
        assert!(negotiate(&read(&windowed(a)), &read(&windowed(b))).is_ok());
    }
}

/// The same dims of the same layer twice: which of the two would be sent?
#[test]
fn pieces_that_overlap_are_refused() {
    let fused = latent(&[(0, 64, bf16())]);
    let twice = latent(&[(0, 40, bf16()), (24, 64, bf16())]);
    one(
        &twice,
        &fused,
        "components.piece0-64.of",
        "dims 24..40 of latent twice",
        "dims 0..64 of latent",
    );
}

/// Two pieces of the same dims are no substitute for the dims that neither has.
#[test]
fn a_gap_is_a_gap_even_if_other_dims_are_there_twice() {
    let fused = latent(&[(0, 64, bf16())]);
    let gap = latent(&[(0, 32, bf16()), (0, 31, bf16()), (63, 64, bf16())]);
    let found = obstacles(&gap, &fused);
    assert!(
        found.iter().any(|o| o.field == "components.piece0-64.dim"),
        "{found:#?}"
    );
}

/// Layers 0 and 1 in groups of their own; `components` gives the group of each component.
fn grouped(groups: [&str; 2], components: [Option<&str>; 2]) -> Value {
    changed(|doc| {
        doc["groups"] = json!([
            { "name": groups[0], "layers": [0, 1] },
            { "name": groups[1], "layers": [1, 2] },
        ]);
        for (c, group) in components.iter().enumerate() {
            if let Some(group) = group {
                doc["components"][c]["group"] = json!(group);
            }
        }
        for rank in [0, 1] {
            doc["ranks"][rank]["request_pages"] = json!({ "a": [3, 1], "b": [0, 2] });
        }
    })
}

/// A cache that is moved but for a layer is not moved.
#[test]
fn layers_without_a_place_on_the_consumer_are_refused() {
    let confined = changed(|doc| {
        *doc = grouped(["a", "b"], [Some("a"), None]);
        for c in [0, 1] {
            doc["components"][c]["pool"] = json!(["k", "v"][c]);
            doc["components"][c]["layout"] = json!("[layer] page slot head dim");
        }
    });
    one(
        &good(),
        &confined,
        "components.key.layers",
        "[1]",
        "missing",
    );
    // The other way round, the consumer's layer has no source.
    let found = obstacles(&confined, &good());
    assert!(found.iter().all(|o| o.field == "ranks: key"), "{found:#?}");
}

#[test]
fn a_layer_in_two_groups_needs_components_that_say_which() {
    let both = |named: bool| {
        changed(|doc| {
            *doc = grouped(["a", "b"], [named.then_some("a"), named.then_some("b")]);
            doc["groups"][0]["layers"] = json!([0, 2]);
        })
    };
    refused(
        &both(false),
        "components[0].group",
        &["layer 1", "\"a\"", "\"b\""],
    );
    let mut apart = both(true);
    for c in [0, 1] {
        apart["components"][c]["pool"] = json!(["k", "v"][c]);
        apart["components"][c]["layout"] = json!("[layer] page slot head dim");
    }
    read(&apart);
}

/// Groups take turns with the pages they share; a page cannot be of both at once.
#[test]
fn a_page_that_two_groups_share_is_used_by_one_of_them() {
    let shared = |pages: Value| {
        changed(|doc| {
            *doc = grouped(["a", "b"], [Some("a"), Some("b")]);
            for c in [0, 1] {
                doc["components"][c]["layout"] = json!("[layer] page slot head dim");
            }
            doc["ranks"][1]["request_pages"]["b"] = pages;
        })
    };
    read(&shared(json!([0, 2])));
    let at = "ranks[1].request_pages.b";
    refused(&shared(json!([0, 3])), at, &["page 3", "\"a\""]);
}

/// A component of all groups and one of a single group are there at the same time.
#[test]
fn a_component_without_a_group_overlaps_one_that_has_one() {
    let doc = changed(|doc| {
        *doc = grouped(["a", "b"], [None, Some("a")]);
        for c in [0, 1] {
            doc["components"][c]["layout"] = json!("[layer] page slot head dim");
        }
    });
    refused(&doc, "components[1].layout", &["overlaps \"key\""]);
}

#[test]
fn an_element_that_is_only_read_is_an_obstacle_unless_its_bytes_are_carried() {
    let with = |element: &str| {
        changed(|doc| {
            for component in doc["components"].as_array_mut().unwrap() {
                component["dim"] = json!(64);
                component["format"] = json!({ "element": element });
                component["rope"] = Value::Null;
            }
        })
    };
    let blocks = read(&with("iq4_nl"));
    assert!(negotiate(&blocks, &blocks).is_ok());
    assert!(negotiate(&blocks, &read(&with("bf16"))).is_ok());
    let found = obstacles(&with("bf16"), &with("iq4_nl"));
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(
        (found[0].producer.as_str(), found[0].consumer.as_str()),
        ("bf16", "iq4_nl")
    );
    assert!(
        found[0].resolve.contains("iq4_nl can be read, not written"),
        "{found:?}"
    );
}

#[test]
fn requests_and_sides_too_large_to_list_are_refused() {
    let long = |tokens: u32| {
        changed(|doc| {
            doc["page_slots"] = json!(1 << 30);
            doc["request"]["tokens"] = json!(tokens);
            doc["components"].as_array_mut().unwrap().pop();
            for rank in [0, 1] {
                doc["ranks"][rank]["pages"] = json!(1);
                doc["ranks"][rank]["request_pages"] = json!([0]);
            }
            for component in doc["components"].as_array_mut().unwrap() {
                component["dim"] = json!(1024);
                component["rope"] = Value::Null;
            }
        })
    };
    assert!(negotiate(&read(&long(1 << 20)), &read(&long(1 << 20))).is_ok());
    let found = obstacles(&long(1 << 30), &long(1 << 30));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].field, "request.tokens");

    let wide = changed(|doc| {
        doc["parallel"] = json!({ "tp": 4096 });
        doc["model"]["layers"] = json!(4096);
        doc["ranks"] = (0..4096)
            .map(|rank| json!({ "rank": rank, "pages": 4, "request_pages": [3, 1] }))
            .collect();
    });
    refused(&wide, "ranks", &["4096 ranks × 4096 layers × 2 components"]);
    let dealt = changed(|doc| {
        doc["parallel"] = json!({ "tp": 1, "cp": 300, "cp_unit": "token" });
    });
    refused(&dealt, "parallel.cp", &["300", "256"]);
}

/// A document whose keys and values are rows of `dim` in `format`, each in a pool of its own, with what they keep
/// apart in pools of their own, too.
fn rows(dim: u32, format: Value, apart: Option<(u32, &str)>) -> Value {
    changed(|doc| {
        let mut components = Vec::new();
        for name in ["key", "value"] {
            components.push(json!({
                "name": name, "heads": 4, "dim": dim, "pool": name, "format": format,
                "layout": "[layer] page slot head dim",
            }));
        }
        if let Some((dim, element)) = apart {
            for name in ["key", "value"] {
                components.push(json!({
                    "name": format!("{name}.scale"), "heads": 4, "dim": dim, "pool": format!("{name}s"),
                    "format": { "element": element }, "layout": "[layer] page slot head dim",
                }));
            }
        }
        doc["components"] = json!(components);
    })
}

fn element(name: &str) -> Value {
    json!({ "element": name })
}

#[test]
fn dims_that_no_element_can_code_are_refused() {
    let at = "components[0].dim";
    for (name, dim, apart, says) in [
        ("int4", 7, None, &["7", "int4", "groups of 2"][..]),
        (
            "nvfp4",
            24,
            Some((1, "e4m3fn")),
            &["24", "nvfp4", "groups of 16"],
        ),
        ("mxfp8_e4m3", 48, Some((1, "e8m0")), &["48", "groups of 32"]),
        (
            "turbomind_int4",
            12,
            Some((2, "f16")),
            &["12", "groups of 8"],
        ),
        ("lmdeploy_int4", 9, Some((2, "f16")), &["9", "groups of 2"]),
        ("fp8_ds_mla", 512, None, &["512", "groups of 576"]),
        (
            "dsv4_fp8",
            576,
            Some((8, "e8m0")),
            &["576", "groups of 512"],
        ),
        (
            "turboquant_k4_nc",
            96,
            Some((1, "f16")),
            &["96", "64, 128, 256"],
        ),
        (
            "int4_per_token_head",
            512,
            Some((1, "f32")),
            &["512", "signed hadamard", "256"],
        ),
    ] {
        refused(&rows(dim, element(name), apart), at, says);
    }
    for (name, dim, apart) in [
        ("int4", 8, None),
        ("nvfp4", 32, Some((2, "e4m3fn"))),
        ("turboquant_k4_nc", 64, Some((1, "f16"))),
        ("int4_per_token_head", 768, Some((1, "f32"))),
        ("dsv4_fp8", 1024, Some((16, "e8m0"))),
    ] {
        read(&rows(dim, element(name), apart));
    }
}

#[test]
fn scales_apart_that_are_not_what_the_element_keeps_are_refused() {
    let good = rows(64, element("nvfp4"), Some((4, "e4m3fn")));
    assert!(negotiate(&read(&good), &read(&good)).is_ok());
    let at = "components[0].format.scale";
    refused(
        &rows(64, element("nvfp4"), None),
        at,
        &["\"key.scale\"", "4 heads", "dim 4", "e4m3fn"],
    );
    let edit = |pointer: &str, value: Value| {
        let mut doc = good.clone();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        doc.pointer_mut(parent).unwrap()[name] = value;
        doc
    };
    refused(
        &edit("/components/2/dim", json!(8)),
        "components[2].dim",
        &["8", "rows of 64 in nvfp4 keep 4"],
    );
    refused(
        &edit("/components/2/heads", json!(2)),
        "components[2].heads",
        &["2", "\"key\"", "4"],
    );
    for wrong in ["e8m0", "f16", "uint8"] {
        refused(
            &edit("/components/2/format/element", json!(wrong)),
            "components[2].format.element",
            &[wrong, "nvfp4", "e4m3fn"],
        );
    }
    // Where another element's are.
    for (name, dim, apart) in [
        ("mxfp4", 64, (2, "e8m0")),
        ("sglang_fp4_mx_block16", 64, (4, "e8m0")),
        ("dsv41_fp4", 64, (4, "e4m3fn")),
        ("lmdeploy_int8_bf16", 64, (2, "bf16")),
        ("turbomind_int4", 64, (2, "f16")),
        ("dsv32_indexer", 128, (1, "f32")),
        ("dsv4_fp8", 512, (8, "e8m0")),
        ("turboquant_k3_nc", 128, (1, "f16")),
    ] {
        read(&rows(dim, element(name), Some(apart)));
        let wrong = if apart.1 == "f32" { "f16" } else { "f32" };
        refused(
            &rows(dim, element(name), Some((apart.0, wrong))),
            "components[2].format.element",
            &[wrong, name, apart.1],
        );
        refused(
            &rows(dim, element(name), Some((apart.0 + 1, apart.1))),
            "components[2].dim",
            &[&(apart.0 + 1).to_string(), name, &apart.0.to_string()],
        );
    }
    // An element that keeps nothing apart has no such component.
    refused(
        &rows(64, element("q8_0"), Some((2, "f16"))),
        at,
        &["\"key.scale\"", "q8_0", "keeps none apart"],
    );
    let grouped = {
        let mut doc = grouped(["a", "b"], [Some("a"), Some("b")]);
        let apart = rows(64, element("nvfp4"), Some((4, "e4m3fn")));
        doc["components"] = apart["components"].clone();
        doc["components"][0]["group"] = json!("a");
        doc["components"][2]["group"] = json!("b");
        doc
    };
    refused(
        &grouped,
        "components[2].group",
        &["\"b\"", "\"key\"", "\"a\""],
    );
}

#[test]
fn params_that_lie_on_codes_are_refused() {
    let one_pool = |offset: u64, page: u64| {
        let mut doc = rows(64, element("nvfp4"), Some((4, "e4m3fn")));
        for component in doc["components"].as_array_mut().unwrap() {
            component["pool"] = json!("kv");
        }
        let mut place = |c: usize, text: &str, offset: u64| {
            doc["components"][c]["layout"] = json!({
                "text": text, "offset_bytes": offset, "strides_bytes": { "page": page },
            });
        };
        // Two heads a rank of 16 slots: 1024 bytes of codes, 128 of scales, twice.
        place(0, "[layer] page head slot dim", 0);
        place(2, "[layer] page head slot dim", offset);
        place(1, "[layer] page head slot dim", 1152);
        place(3, "[layer] page head slot/4 dim slot%4", 2176);
        doc
    };
    read(&one_pool(1024, 2304));
    refused(
        &one_pool(1023, 2304),
        "components[2].layout",
        &["\"key.scale\" overlaps \"key\"", "\"kv\""],
    );
    refused(
        &one_pool(1025, 2304),
        "components[2].layout",
        &["\"key.scale\" overlaps \"value\""],
    );
    // The last page's scales would lie in the next page.
    refused(
        &one_pool(1024, 2303),
        "components[3].layout",
        &["\"value.scale\" overlaps \"key\""],
    );
}

#[test]
fn constants_are_checked_and_belong_to_elements_that_take_one() {
    let nvfp4 = |values: Value| {
        let format =
            json!({ "element": "nvfp4", "scale": { "granularity": "tensor", "values": values } });
        rows(64, format, Some((4, "e4m3fn")))
    };
    read(&nvfp4(json!([0.5, 2.0])));
    let at = "components[0].format.scale.values";
    refused(&nvfp4(json!(0.0)), at, &["0", "positive"]);
    refused(&nvfp4(json!(-0.25)), at, &["-0.25", "positive"]);
    let given = |name: &str, dim: u32, granularity: &str, apart| {
        let format = json!({ "element": name, "scale": { "granularity": granularity } });
        rows(dim, format, apart)
    };
    let at = "components[0].format.scale";
    refused(
        &given("q8_0", 64, "tensor", None),
        at,
        &["q8_0", "leave it out"],
    );
    refused(
        &given("mxfp4", 64, "token_head", Some((2, "e8m0"))),
        at,
        &["mxfp4", "leave it out"],
    );
    refused(
        &given("nvfp4", 64, "token_head", Some((4, "e4m3fn"))),
        at,
        &["nvfp4", "token_head", "a tensor or head scale it would"],
    );
}

#[test]
fn rules_and_rotations_that_an_element_does_not_have_are_refused() {
    let with = |name: &str, dim: u32, apart, field: &str, value: Value| {
        let mut format = element(name);
        format[field] = value;
        rows(dim, format, apart)
    };
    let scales = Some((2, "e8m0"));
    let rule = "components[0].format.scale_rule";
    refused(
        &with("mxfp4", 64, scales, "scale_rule", json!("rce1l")),
        rule,
        &["mxfp4", "\"rce1l\"", "rceil, floor, even"],
    );
    refused(
        &with("bf16", 64, None, "scale_rule", json!("pow2")),
        rule,
        &["bf16", "\"pow2\"", "none"],
    );
    read(&with("mxfp4", 64, scales, "scale_rule", json!("floor")));
    let rotation = "components[0].format.rotation";
    refused(
        &with("q8_0", 96, None, "rotation", json!({ "hadamard": 64 })),
        rotation,
        &["hadamard 64", "dim 96", "32"],
    );
    refused(
        &with("bf16", 512, None, "rotation", json!("signed")),
        rotation,
        &["signed", "512", "256"],
    );
    refused(
        &with(
            "turboquant_k4_nc",
            64,
            Some((1, "f16")),
            "rotation",
            json!({ "hadamard": 64 }),
        ),
        rotation,
        &["hadamard 64", "turboquant_k4_nc", "leave it out"],
    );
    refused(
        &with(
            "int4_per_token_head",
            64,
            Some((1, "f32")),
            "rotation",
            json!("signed"),
        ),
        rotation,
        &["int4_per_token_head", "brings its own"],
    );
}

/// KIVI's keys share scales along tokens, one channel at a time.
#[test]
fn keys_that_are_grouped_along_tokens_are_refused() {
    let at = "components[0].format.element";
    for name in ["kivi_4bit", "kivi_2bit"] {
        let mut doc = rows(64, element(name), Some((4, "f16")));
        refused(&doc, at, &[name, "along tokens", "\"key\"", "bf16"]);
        doc["components"][0]["format"] = element("f16");
        doc["components"].as_array_mut().unwrap().remove(2);
        read(&doc);
        doc["components"][1]["rope"] = json!({ "pairing": "half", "dims": 64 });
        refused(&doc, "components[1].format.element", &[name, "\"value\""]);
    }
}

/// The same blocks with another order of pairs would have to be quantized a second time.
#[test]
fn pairs_are_not_moved_across_scale_groups() {
    let paired = |name: &str, apart, pairing: &str, other: bool| {
        let mut doc = rows(64, element(name), apart);
        if other {
            doc["components"][0]["format"] = bf16();
        }
        doc["components"][0]["rope"] = json!({ "pairing": pairing, "dims": 64 });
        doc
    };
    for (name, apart) in [
        ("q8_0", None),
        ("nvfp4", Some((4, "e4m3fn"))),
        ("int4_per_token_head", Some((1, "f32"))),
    ] {
        let half = paired(name, apart, "half", false);
        let interleaved = paired(name, apart, "interleaved", false);
        one(
            &half,
            &interleaved,
            "components.key.rope",
            "half pairing of 64",
            "interleaved pairing of 64",
        );
        assert!(
            obstacles(&half, &interleaved)[0]
                .resolve
                .contains("another element on one side")
        );
    }
    let half = paired("q8_0", None, "half", false);
    negotiate(
        &read(&half),
        &read(&paired("q8_0", None, "interleaved", true)),
    )
    .unwrap();
    // One scale for each row: its codes only change places.
    let row = |pairing| paired("lmdeploy_int8", Some((2, "f16")), pairing, false);
    negotiate(&read(&row("half")), &read(&row("interleaved"))).unwrap();
}

#[test]
fn pieces_that_part_what_shares_a_scale_or_a_block_are_refused() {
    type Piece = (u32, u32, Value, Option<(u32, &'static str)>);
    let pieces = |list: &[Piece]| {
        let formats: Vec<_> = list
            .iter()
            .map(|(from, to, format, _)| (*from, *to, format.clone()))
            .collect();
        let mut doc = latent(&formats);
        for (from, to, _, apart) in list {
            if let Some((dim, element)) = apart {
                doc["components"].as_array_mut().unwrap().push(json!({
                    "name": format!("piece{from}-{to}.scale"), "heads": 1, "dim": dim, "pool": format!("s{from}"),
                    "format": { "element": element }, "layout": "[layer] page slot dim",
                }));
            }
        }
        doc
    };
    let whole = |name: &str, apart| pieces(&[(0, 64, element(name), apart)]);
    let halves = |at: u32| pieces(&[(0, at, bf16(), None), (at, 64, bf16(), None)]);
    negotiate(
        &read(&whole("nvfp4", Some((4, "e4m3fn")))),
        &read(&halves(16)),
    )
    .unwrap();
    for (name, apart, at, group) in [
        ("nvfp4", (4, "e4m3fn"), 8, 16),
        ("mxfp4", (2, "e8m0"), 16, 32),
        ("lmdeploy_int8", (2, "f16"), 32, 64),
        ("int4_per_token_head", (1, "f32"), 32, 64),
    ] {
        let found = obstacles(&whole(name, Some(apart)), &halves(at));
        let cut = found
            .iter()
            .find(|o| o.field == format!("components.piece0-{at}.of"))
            .unwrap();
        assert!(
            cut.producer
                .contains(&format!("dims 0..{at} of groups of {group}")),
            "{cut:?}"
        );
        assert!(
            cut.consumer.contains("bf16") && cut.resolve.contains(name),
            "{cut:?}"
        );
    }
}

/// Tensors of two and four bytes lie at multiples of them.
#[test]
fn numbers_that_lie_at_odd_bytes_are_refused() {
    let at = "components[0].layout";
    let lay = |layout: Value| {
        let mut doc = rows(8, element("bf16"), None);
        doc["components"][0]["layout"] = layout;
        doc
    };
    let text = "[layer] page slot head dim";
    read(&lay(
        json!({ "text": text, "offset_bytes": 2, "strides_bytes": { "slot": 34 } }),
    ));
    refused(
        &lay(json!({ "text": text, "offset_bytes": 3 })),
        at,
        &["offset_bytes is 3", "2 bytes of bf16", "pad it to 4"],
    );
    refused(
        &lay(json!({ "text": text, "strides_bytes": { "slot": 33 } })),
        at,
        &["the stride of `slot` is 33", "pad it to 34"],
    );
    refused(
        &lay(json!("[layer] page slot{33} head dim")),
        at,
        &["the stride of `slot` is 33"],
    );
    // A scale behind 65 bytes of codes would be one.
    let mut doc = rows(
        65,
        json!({ "element": "int8", "scale": { "granularity": "token_head" } }),
        Some((1, "f32")),
    );
    for c in [0, 2] {
        doc["components"][c]["pool"] = json!("k");
        doc["components"][c]["layout"] = json!({
            "text": text, "offset_bytes": (if c == 0 { 0 } else { 65 }), "strides_bytes": { "head": 72 },
        });
    }
    refused(
        &doc,
        "components[2].layout",
        &["65", "4 bytes of f32", "68"],
    );
    doc["components"][2]["layout"]["offset_bytes"] = json!(68);
    read(&doc);
    // Blocks of bytes lie anywhere.
    let mut doc = rows(64, element("q8_0"), None);
    doc["components"][0]["layout"] = json!({ "text": text, "offset_bytes": 3 });
    read(&doc);
}

/// Codes that share bytes stay together; those that do not may lie apart, whatever their scales.
#[test]
fn blocks_are_not_split_by_a_layout() {
    let split = |name: &str, dim: u32, apart| {
        let mut doc = rows(dim, element(name), apart);
        doc["components"][0]["layout"] = json!("[layer] page head dim/2 slot dim%2");
        doc
    };
    refused(
        &split("q8_0", 128, None),
        "components[0].layout",
        &[
            "splits `dim`",
            "32 elements in 34 bytes",
            "leave `dim` whole",
        ],
    );
    read(&split("nvfp4", 64, Some((4, "e4m3fn"))));
    read(&split("dsv32_indexer", 64, Some((1, "f32"))));
}
