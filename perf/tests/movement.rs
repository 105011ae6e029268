//! The commands that move bytes between two processes, as they are called.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moai-perf"));
    command.args(arguments);
    command
}

fn perf(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn ordered(line: &Value, names: &[&str]) {
    let numbers: Vec<f64> = names
        .iter()
        .map(|name| line[*name].as_f64().unwrap())
        .collect();
    assert!(
        numbers[0] > 0.0 && numbers.is_sorted(),
        "{names:?} of {line}"
    );
}

#[test]
fn bounds_are_measured_for_every_piece_size() {
    let folder = tempfile::tempdir().unwrap();
    let (json, plot) = (
        folder.path().join("rows.jsonl"),
        folder.path().join("rows.svg"),
    );
    let places = [json.to_str().unwrap(), plot.to_str().unwrap()];
    let done = perf(&[
        "bounds", "--quick", "--rounds", "1", "--json", places[0], "--plot", places[1],
    ]);
    let out = String::from_utf8(done.stdout).unwrap();
    let err = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{out}{err}");

    let lines = lines(&json);
    assert_eq!(lines[0]["kind"], "machine");
    let of = |op: &str, transport: &str| {
        let rows = lines[1..].iter().filter(|line| line["op"] == op);
        let rows = rows.filter(|line| line["transport"] == transport);
        rows.map(|line| line["piece"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    let mut kept = vec!["sockets, 1 lane", "sockets, 4 lanes", "memcpy"];
    // Where processes may not look into each other, that is said.
    if !out.contains("no process_vm") {
        kept.push("process_vm");
    }
    // Where the system paces.
    if out.contains("unpaced") {
        kept.extend(["sockets, 1 lane, unpaced", "sockets, 4 lanes, unpaced"]);
    }
    for transport in &kept {
        for op in ["put", "get"] {
            assert_eq!(
                of(op, transport),
                [256, 4 << 10, 64 << 10, 1 << 20],
                "{op} {transport}"
            );
        }
    }
    assert_eq!(of("latency", "sockets, 1 lane"), [256]);
    for line in &lines[1..] {
        assert_eq!(line["kind"], "bound");
        if line["op"] == "latency" {
            ordered(line, &["p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns"]);
        } else {
            ordered(line, &["least_gb_s", "gb_s", "most_gb_s"]);
            assert!(line["pieces_s"].as_f64().unwrap() > 0.0, "{line}");
        }
        assert!(line["cpu_s_per_gb"].as_f64().unwrap() > 0.0, "{line}");
    }
    let picture = fs::read_to_string(plot).unwrap();
    assert_eq!(picture.matches("<polyline").count(), 2 * kept.len());
}

#[test]
fn every_step_is_held_against_its_bound() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("rows.jsonl");
    for (transport, kind) in [
        ("raw", "host"),
        ("tcp", "host"),
        ("tcp", "sim"),
        ("shm", "host"),
        ("shm", "shared"),
    ] {
        let small = [
            "--transport",
            transport,
            "--kind",
            kind,
            "--quick",
            "--rounds",
            "1",
            "--json",
            json.to_str().unwrap(),
        ];
        for op in ["put", "get", "send", "rate", "latency"] {
            if op == "send" && kind == "sim" {
                // Messages come from memory that the host can load.
                continue;
            }
            let done =
                perf(&[&[op][..], &small, &["--piece", "256,4K", "--pieces", "100"]].concat());
            let err = String::from_utf8(done.stderr).unwrap();
            assert!(
                done.status.success(),
                "{op} over {transport}, {kind}: {err}"
            );
            let rows = &lines(&json)[1..];
            assert_eq!(rows.len(), 2);
            for (row, piece) in rows.iter().zip([256, 4096]) {
                assert_eq!(
                    (&row["kind"], &row["op"]),
                    (&"transport".into(), &op.into())
                );
                assert_eq!(
                    (&row["transport"], &row["piece"]),
                    (&transport.into(), &piece.into())
                );
                assert!(row["bounds"][0]["percent"].as_f64().unwrap() > 0.0, "{row}");
            }
        }
    }
}

#[test]
fn whole_transfers_are_held_against_the_same_move_without_translation() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("rows.jsonl");
    let rounds = ["--quick", "--rounds", "1", "--tokens", "20"];
    let done = perf(&[&["reshard", "--json", json.to_str().unwrap()][..], &rounds].concat());
    let err = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{err}");
    let rows = &lines(&json)[1..];
    assert_eq!(rows.len(), 6);
    for (row, transport) in rows.iter().zip(["tcp", "tcp", "tcp", "shm", "shm", "shm"]) {
        assert_eq!(row["transport"], transport);
        assert_eq!(row["bytes_read"].as_u64(), Some(20 << 17));
        let is_mapped = row["bytes_wire"].as_u64() == Some(0);
        assert_eq!(is_mapped, transport == "shm", "{row}");
    }
    assert!(rows[0]["percent"].is_null() && rows[1]["percent"].as_f64().unwrap() > 0.0);

    let none = perf(&["reshard", "--from", "4:nhd:fp8"]);
    assert_eq!(none.status.code(), Some(2));
}

#[test]
fn a_server_serves_one_client_after_another() {
    let mut server = command(&["put", "--server", "127.0.0.1:0"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(server.stderr.take().unwrap()).lines();
    let first = said.next().unwrap().unwrap();
    let address = first.strip_prefix("listening at ").unwrap();
    for op in ["put", "get"] {
        let done = perf(&[
            op,
            "--client",
            address,
            "--transport",
            "raw",
            "--quick",
            "--rounds",
            "1",
            "--piece",
            "4K",
        ]);
        let (out, err) = (
            String::from_utf8(done.stdout),
            String::from_utf8(done.stderr),
        );
        assert!(done.status.success(), "{err:?}");
        assert!(out.unwrap().contains("a process at 127.0.0.1"));
    }
    server.kill().unwrap();
    server.wait().unwrap();
    let gone = perf(&["put", "--client", address, "--transport", "raw", "--quick"]);
    assert_eq!(gone.status.code(), Some(5));
}

#[test]
fn what_cannot_be_done_is_bad_usage() {
    for (arguments, told) in [
        (&["put", "--piece", "1G", "--pieces", "100"][..], "the most"),
        (&["latency", "--piece", "1M"], "latency is taken of up to"),
        (
            &["bounds", "--quick", "--json", "/nowhere/rows.jsonl"],
            "cannot write",
        ),
        (
            &["bounds", "--quick", "--plot", "/nowhere/rows.svg"],
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
        .find(|text| text.starts_with("Between two processes\n"));
    let rows = chapter
        .unwrap()
        .lines()
        .filter(|line| line.starts_with("| `--"));
    let told: BTreeSet<String> = rows
        .flat_map(|row| options(row.split(" |").next().unwrap()))
        .collect();
    for op in ["put", "get", "send", "rate", "latency"] {
        let help = String::from_utf8(perf(&[op, "--help"]).stdout).unwrap();
        let lines = help
            .lines()
            .map(str::trim_start)
            .filter(|line| line.starts_with('-'));
        let mut real: BTreeSet<String> = lines
            .filter_map(|line| options(line).into_iter().next())
            .collect();
        real.remove("--help");
        assert_eq!(told, real, "{op}");
    }
}
