//! Every real cache becomes exactly what it must become, offline and live.

mod support;

use std::{fs, path::Path};

use safetensors::SafeTensors;
use support::{cases, moai, stderr, stdout, text};

fn wrong_regions(case: &Path, out: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut compared = 0;
    for rank in 0.. {
        let expected = case.join(format!("expected.{rank}.safetensors"));
        if !expected.exists() {
            break;
        }
        let (want, got) = (
            fs::read(expected).unwrap(),
            fs::read(out.join(format!("consumer.{rank}.safetensors"))).unwrap(),
        );
        let (want, got) = (
            SafeTensors::deserialize(&want).unwrap(),
            SafeTensors::deserialize(&got).unwrap(),
        );
        assert_eq!(want.len(), got.len(), "regions of rank {rank}");
        for (name, tensor) in want.iter() {
            compared += 1;
            if got.tensor(name).unwrap().data() != tensor.data() {
                wrong.push(format!("{} rank {rank} region {name}", case.display()));
            }
        }
    }
    assert!(compared > 0);
    wrong
}

fn through(command: &str) {
    let mut wrong = Vec::new();
    for case in cases() {
        let out = tempfile::tempdir().unwrap();
        let (producer, consumer) = (case.join("producer.json"), case.join("consumer.json"));
        let output = moai(&[
            command,
            text(&producer),
            text(&consumer),
            "--out",
            text(out.path()),
        ])
        .output()
        .unwrap();
        assert!(
            output.status.success(),
            "{}: {}",
            case.display(),
            stderr(&output)
        );
        if command == "run" {
            assert!(stdout(&output).contains("verified"), "{}", stdout(&output));
        }
        wrong.extend(wrong_regions(&case, out.path()));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn convert_gives_every_case_byte_for_byte() {
    through("convert");
}

#[test]
fn run_gives_every_case_byte_for_byte() {
    through("run");
}

/// What a run of a case over `transport` says, with variables set.
fn run_over(name: &str, transport: &str, variables: &[(&str, &str)]) -> std::process::Output {
    let case = support::case(name);
    let (producer, consumer) = (case.join("producer.json"), case.join("consumer.json"));
    moai(&[
        "run",
        text(&producer),
        text(&consumer),
        "--transport",
        transport,
    ])
    .envs(variables.iter().copied())
    .output()
    .unwrap()
}

const UNLIKE: &str = "04-flash-attn-tp4-16-to-rocm-tp2-32";

#[test]
fn the_way_that_was_taken_is_told() {
    for (transport, path) in [
        ("tcp", "path     sent over tcp"),
        ("shm", "path     mapped over shm"),
        ("auto", "path     mapped over shm"),
        ("tcp,shm", "path     sent over tcp"),
    ] {
        let output = run_over(UNLIKE, transport, &[]);
        assert!(output.status.success(), "{}", stderr(&output));
        let said = stdout(&output);
        assert!(said.contains("verified"), "{said}");
        assert!(said.contains(path), "{transport}: {said}");
        assert!(!said.contains("slower "), "{said}");
        assert_eq!(stderr(&output), "");
    }
}

#[test]
fn a_path_that_is_required_and_not_there_is_an_error_that_says_what_was() {
    let output = run_over(UNLIKE, "tcp", &[("MOAI_REQUIRE_PATH", "shm")]);
    assert_eq!(output.status.code(), Some(4));
    let said = stderr(&output);
    assert!(said.contains("tcp: shm is required"), "{said}");
    let output = run_over(UNLIKE, "auto", &[("MOAI_REQUIRE_PATH", "shm")]);
    assert!(output.status.success(), "{}", stderr(&output));
    let output = run_over(UNLIKE, "pigeon", &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("there is shm, tcp"),
        "{}",
        stderr(&output)
    );
}
