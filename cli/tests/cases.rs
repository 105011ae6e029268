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
