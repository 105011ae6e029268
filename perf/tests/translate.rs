//! The program, as it is called.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

fn perf(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_moai-perf"))
        .arg("translate")
        .args(arguments)
        .output()
        .unwrap()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_quick_run_measures_the_whole_matrix() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("rows.jsonl");
    let json_text = json.to_str().unwrap();
    let small = [
        "--quick",
        "--size",
        "1",
        "--rounds",
        "1",
        "--threads",
        "1,2",
    ];
    let done = perf(&[&small[..], &["--json", json_text]].concat());
    let out = String::from_utf8(done.stdout).unwrap();
    let err = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{out}{err}");

    let text: Vec<&str> = out.lines().collect();
    for (line, start) in text
        .iter()
        .zip(["machine  ", "simd ", "build    ", "cases    "])
    {
        assert!(line.starts_with(start), "{line}");
    }
    let heading = text
        .iter()
        .position(|line| line.starts_with("layout "))
        .unwrap();
    let names: Vec<&str> = text[heading].split_whitespace().collect();
    let columns = [
        "layout", "format", "thr", "GB/s", "min", "max", "memcpy", "of", "memcpy",
    ];
    assert_eq!(names, columns);
    let rows = &text[heading + 1..];
    for row in rows {
        let (labels, numbers) = row.split_at(row.find(" → ").unwrap());
        assert!(!labels.is_empty() && numbers.contains(" %"), "{row}");
    }

    let lines = lines(&json);
    assert_eq!(lines[0]["kind"], "machine");
    assert!(lines[0]["commit"].is_string() && lines[0]["cpu"].is_string());
    let measured = &lines[1..];
    let digests = measured.iter().filter(|line| line.get("digest").is_some());
    // With 1 thread and with 2; digests have a second row.
    assert_eq!(digests.clone().count(), 2);
    assert_eq!(rows.len(), measured.len() + 2);
    for line in measured {
        assert_eq!(line["kind"], "translate");
        for number in ["percent", "bytes", "rows_checked"] {
            assert!(line[number].as_f64().unwrap() > 0.0, "{line}");
        }
        for rate in ["rate", "memcpy"] {
            let of = |name: &str| line[rate][name].as_f64().unwrap();
            let ordered = of("least_gb_s") <= of("gb_s") && of("gb_s") <= of("most_gb_s");
            assert!(ordered && of("least_gb_s") > 0.0, "{line}");
        }
    }
}

#[test]
fn dumped_pools_are_whole_and_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().to_str().unwrap();
    let mut arguments = vec!["--quick", "--size", "1", "--threads", "1", "--dump", place];
    arguments.extend([
        "--layout",
        "nhd:sglang/mha@64",
        "--format",
        "bf16:int8@token_head",
    ]);
    arguments.extend(["--check", "full"]);
    assert!(perf(&arguments).status.success());
    let case = fs::read_to_string(folder.path().join("0/case.json")).unwrap();
    let case: Value = serde_json::from_str(&case).unwrap();
    let number = |value: &Value| value.as_u64().unwrap();
    let mut bytes = 0;
    for side in ["source", "target"] {
        let pages = case[side]["pages"].as_array().unwrap();
        assert_eq!(
            pages.len() as u64 * number(&case[side]["page"]),
            number(&case["tokens"])
        );
        assert_eq!(case[side]["notations"].as_array().unwrap().len(), 2);
        for n in 0.. {
            let Ok(region) = fs::read(folder.path().join(format!("0/{side}.{n}"))) else {
                break;
            };
            bytes += region.len() as u64;
        }
    }
    assert_eq!(bytes, number(&case["bytes"]));
}

#[test]
fn cases_are_listed_without_measuring() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("cases.jsonl");
    let done = perf(&["--list", "--json", json.to_str().unwrap()]);
    assert!(done.status.success());
    let out = String::from_utf8(done.stdout).unwrap();
    assert!(out.contains("nhd → hnd  bf16 → bf16\n"), "{out}");
    let lines = lines(&json);
    assert_eq!(lines.len(), out.lines().count());
    assert!(lines.iter().all(|line| line["kind"] == "case"));
}

#[test]
fn what_cannot_be_done_is_bad_usage() {
    for (arguments, told) in [
        (&["--layout", "nhd"][..], "FROM:TO"),
        (&["--format", "bf16:iq4_nl"], "can be read, not written"),
        (
            &["--quick", "--json", "/nowhere/rows.jsonl"],
            "cannot write",
        ),
    ] {
        let done = perf(arguments);
        assert_eq!(done.status.code(), Some(2), "{arguments:?}");
        let err = String::from_utf8(done.stderr).unwrap();
        assert!(err.contains(told), "{err}");
    }
}

#[test]
fn options_in_the_book_are_those_of_the_program() {
    let options = |text: &str| -> BTreeSet<String> {
        text.split(|c: char| !(c.is_ascii_lowercase() || c == '-'))
            .filter(|word| word.starts_with("--") && word.len() > 2)
            .map(str::to_owned)
            .collect()
    };
    let book = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/src/performance.md");
    let book = fs::read_to_string(book).unwrap();
    let chapter = book
        .split("\n## ")
        .find(|text| text.starts_with("Translation\n"));
    let rows = chapter
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("| `--"));
    let told: BTreeSet<String> = rows
        .flat_map(|row| options(&format!("--{}", row.split(" |").next().unwrap())))
        .collect();
    let help = String::from_utf8(perf(&["--help"]).stdout).unwrap();
    let mut real: BTreeSet<String> = help
        .lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with('-'))
        .filter_map(|line| options(line).into_iter().next())
        .collect();
    real.remove("--help");
    assert_eq!(told, real);
}
