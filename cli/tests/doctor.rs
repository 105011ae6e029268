//! `moai check` and `moai doctor`, as a user calls them.

mod support;

use std::path::PathBuf;

use serde_json::json;
use support::{case, copy_of, edit, json as read_json, moai, stderr, stdout, text};

fn host(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/data/doctor")
        .join(name)
}

#[test]
fn problems_count_only_when_they_are_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let root = host("gpu-node").join("root");
    for (arguments, code) in [(vec![], 0), (vec!["--strict"], 1)] {
        let mut command = moai(&["doctor", "--root", text(&root), "--json", text(&report)]);
        let output = command.args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stdout(&output).contains("problem  memlock"));
        let report = read_json(&report);
        assert_eq!(
            (&report["outcome"], &report["problems"]),
            (&json!("looked"), &json!(2))
        );
        let findings = report["findings"].as_array().unwrap();
        let memlock = findings
            .iter()
            .find(|finding| finding["what"] == "memlock")
            .unwrap();
        assert_eq!(memlock["state"], "problem");
        assert!(memlock["mend"].as_str().unwrap().contains("limits.d"));
    }
    // This host, whatever it is.
    let output = moai(&["doctor"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("kernel"));
}

#[test]
fn what_fits_is_told_with_what_it_loses() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let case = case("04-flash-attn-tp4-16-to-rocm-tp2-32");
    let (producer, consumer) = (case.join("producer.json"), case.join("consumer.json"));
    let output = moai(&[
        "check",
        text(&producer),
        text(&consumer),
        "--json",
        text(&report),
    ])
    .output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("fit: "), "{}", stdout(&output));
    let checked = read_json(&report);
    let planned = folder.path().join("plan.json");
    moai(&[
        "plan",
        text(&producer),
        text(&consumer),
        "--json",
        text(&planned),
    ])
    .output()
    .unwrap();
    let planned = read_json(&planned);
    // The two tell the same.
    for field in ["agreement", "carried", "tokens", "producer", "consumer"] {
        assert_eq!(checked[field], planned[field], "{field}");
    }
    let pairs = planned["pairs"].as_array().unwrap();
    assert_eq!(checked["rank_pairs"], pairs.len());
    let sum = |field: &str| {
        pairs
            .iter()
            .map(|pair| pair[field].as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!(checked["chunks"], sum("chunks"));
    assert_eq!(checked["pieces_written"], sum("target_runs"));
    let tokens = checked["tokens"].as_f64().unwrap();
    assert_eq!(
        checked["bytes_per_token"]["wire"],
        sum("bytes_wire") as f64 / tokens
    );
}

#[test]
fn what_does_not_fit_is_told_with_every_obstacle() {
    let copy = copy_of("04-flash-attn-tp4-16-to-rocm-tp2-32");
    let (producer, consumer) = (
        copy.path().join("producer.json"),
        copy.path().join("consumer.json"),
    );
    edit(&consumer, |side| {
        side["model"]["digest"] = json!("sha256:other weights");
        side["request"]["tokens"] = json!(44);
    });
    let report = copy.path().join("report.json");
    let output = moai(&[
        "check",
        text(&producer),
        text(&consumer),
        "--json",
        text(&report),
    ])
    .output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(3));
    for part in ["model.digest", "sha256:other weights", "request.tokens"] {
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
    assert_eq!(read_json(&report)["obstacles"].as_array().unwrap().len(), 2);
    let output = moai(&["check", text(&producer), "/nowhere.json"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}
