//! A cache is moved and verified wherever both sides' pools lie.

mod support;

use support::{json, moai, text};

#[test]
fn every_kind_of_memory_commits_and_verifies() {
    for (memory, transport) in [
        ("host", "tcp"),
        ("pinned", "auto"),
        ("shared", "auto"),
        ("sim", "tcp"),
        ("sim", "auto"),
    ] {
        let report = tempfile::NamedTempFile::new().unwrap();
        let arguments = [
            "run",
            "--tokens",
            "33",
            "--memory",
            memory,
            "--transport",
            transport,
            "--json",
            text(report.path()),
        ];
        let ran = moai(&arguments).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{memory}: {said}");
        let report = json(report.path());
        assert_eq!(report["verified"], true, "{memory}");
        for rank in report["ranks"].as_array().unwrap() {
            let chunks = &rank["report"]["chunks_mapped"];
            let mapped = memory == "shared";
            assert_eq!(chunks.as_u64().unwrap() > 0, mapped, "{memory}: {rank}");
        }
    }
}

#[test]
fn an_unknown_kind_is_refused_with_the_known_ones() {
    let ran = moai(&["run", "--memory", "gpu"]).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(2));
    assert!(said.contains("\"gpu\"") && said.contains("sim"), "{said}");
}
