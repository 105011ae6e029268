//! `moai codec` against known answers, and what it refuses.

mod support;

use std::{fs, path::PathBuf};

use support::{json, output, stderr, stdout, text};

fn golden(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/data/golden")
        .join(file)
}

#[test]
fn known_answers_come_out_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let cases: &[(&str, &[&str], &str, Option<&str>)] = &[
        (
            "block/rows.f32",
            &["--from", "f32", "--to", "q4_0"],
            "block/ggml_q4_0.bin",
            None,
        ),
        (
            "block/rows.f32",
            &["--from", "f32", "--to", "q8_0", "--dim", "256"],
            "block/ggml_q8_0.bin",
            None,
        ),
        (
            "block/rows.f32",
            &["--from", "f32", "--to", "mxfp8_e4m3.rceil"],
            "block/mxfp8e4m3.rceil.codes.u8",
            Some("block/mxfp8e4m3.rceil.scales.u8"),
        ),
        (
            "block/rows.f32",
            &["--from", "f32", "--to", "mxfp4.floor"],
            "block/mxfp4.floor.codes.u8",
            Some("block/mxfp4.floor.scales.u8"),
        ),
        (
            "block/rows.f32",
            &[
                "--from",
                "f32",
                "--to",
                "nvfp4",
                "--scale",
                "0.4613095223903656",
            ],
            "block/nvfp4_twolevel.codes.u8",
            Some("block/nvfp4_twolevel.scales.u8"),
        ),
        (
            "dsmla/latent576.bf16",
            &["--from", "bf16", "--to", "fp8_ds_mla.pow2"],
            "dsmla/flashmla_v32_pow2.bin",
            None,
        ),
        (
            "engine/k.bf16",
            &["--from", "bf16", "--to", "int8@token_head", "--dim", "128"],
            "engine/vllm_int8_per_token_head.k.i8",
            Some("engine/vllm_int8_per_token_head.k_scale.f32"),
        ),
        (
            "encode/in.f32",
            &["--from", "f32", "--to", "e4m3fn", "--scale", "1.7"],
            "scaled/f32_div2_to_e4m3fn.sat.u8",
            None,
        ),
        (
            "rope/d64.half_split.f32",
            &[
                "--from",
                "f32",
                "--to",
                "f32",
                "--dim",
                "64",
                "--rope",
                "half:interleaved",
            ],
            "rope/d64.interleaved.f32",
            None,
        ),
    ];
    for (input, arguments, codes, scales) in cases {
        let input = golden(input);
        let all: Vec<&str> = ["codec"]
            .iter()
            .chain(*arguments)
            .copied()
            .chain([text(&input), text(&out)])
            .collect();
        let done = output(&all);
        assert!(done.status.success(), "{all:?}: {}", stderr(&done));
        assert!(
            fs::read(&out).unwrap() == fs::read(golden(codes)).unwrap(),
            "{codes}"
        );
        if let Some(scales) = scales {
            let made = fs::read(folder.path().join("out.scale")).unwrap();
            assert!(made == fs::read(golden(scales)).unwrap(), "{scales}");
        }
    }
}

#[test]
fn scales_are_read_from_beside_and_counts_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (input, out, report) = (at("in"), at("out"), at("report.json"));
    fs::copy(golden("block/mxfp4.rceil.codes.u8"), &input).unwrap();
    fs::copy(golden("block/mxfp4.rceil.scales.u8"), at("in.scale")).unwrap();
    let done = output(&[
        "codec",
        "--from",
        "mxfp4",
        "--to",
        "f32",
        text(&input),
        text(&out),
    ]);
    assert!(done.status.success(), "{}", stderr(&done));
    assert!(fs::read(&out).unwrap() == fs::read(golden("block/mxfp4.rceil.deq.f32")).unwrap());

    fs::write(
        &input,
        [f32::NAN, 1e9, 1.0, -1e9].map(f32::to_le_bytes).concat(),
    )
    .unwrap();
    for (overflow, codes) in [
        ("sat", [0x7F, 0x7E, 0x38, 0xFE]),
        ("nosat", [0x7F, 0x7F, 0x38, 0xFF]),
        ("satfinite", [0x7F, 0x7E, 0x38, 0xFE]),
    ] {
        let done = output(&[
            "codec",
            "--from",
            "f32",
            "--to",
            "e4m3fn",
            "--overflow",
            overflow,
            "--json",
            text(&report),
            text(&input),
            text(&out),
        ]);
        assert!(done.status.success(), "{}", stderr(&done));
        assert!(
            stdout(&done)
                .contains("4 rows of 1: 16 bytes of f32 to 4 bytes of e4m3fn; 2 saturated, 1 NaN")
        );
        assert_eq!(fs::read(&out).unwrap(), codes, "{overflow}");
        let report = json(&report);
        assert_eq!(
            (&report["saturated"], &report["nan"]),
            (&2.into(), &1.into())
        );
    }
}

#[test]
fn what_has_no_meaning_is_refused_with_the_field_and_the_rule() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (input, out) = (at("in"), at("out"));
    fs::write(&input, [0; 96]).unwrap();
    let refused = |arguments: &[&str], said: &[&str]| {
        let all: Vec<&str> = ["codec"]
            .iter()
            .chain(arguments)
            .copied()
            .chain([text(&input), text(&out)])
            .collect();
        let done = output(&all);
        assert_eq!(done.status.code(), Some(2), "{all:?}: {}", stdout(&done));
        for said in said {
            assert!(
                stderr(&done).contains(said),
                "{all:?}: {} lacks {said:?}",
                stderr(&done)
            );
        }
        assert!(!out.exists(), "nothing is written");
    };
    refused(
        &["--from", "f32", "--to", "fp8"],
        &["not an exact format", "e4m3fnuz"],
    );
    refused(
        &["--from", "f32", "--to", "mxfp4.ceil"],
        &["mxfp4 has no rule \"ceil\"", "rceil, floor, even"],
    );
    refused(
        &["--from", "f32", "--to", "int4", "--dim", "3"],
        &["dim 3", "multiple of the 2 elements"],
    );
    refused(
        &["--from", "f32", "--to", "q8_0", "--dim", "24"],
        &["dim 24", "multiple of the 32 elements"],
    );
    refused(
        &["--from", "f32", "--to", "int4_per_token_head"],
        &["length of its rows", "--dim"],
    );
    refused(
        &["--from", "f32", "--to", "e4m3fn@tensor"],
        &["constant, which is not given"],
    );
    for scale in ["0", "-1", "NaN", "inf"] {
        let scale = format!("--scale={scale}");
        refused(
            &["--from", "f32", "--to", "e4m3fn", &scale],
            &["target scale of e4m3fn", "finite and above zero"],
        );
    }
    refused(
        &["--from", "f32", "--to", "q8_0", "--scale", "2"],
        &["neither f32 nor q8_0 takes a constant"],
    );
    refused(
        &["--from", "e4m3fn", "--to", "e4m3fnuz", "--scale", "2"],
        &["--from-scale and --to-scale"],
    );
    refused(&["--from", "nvfp4", "--to", "f32"], &["in.scale"]);
    refused(
        &["--from", "f32", "--to", "bf16", "--dim", "5"],
        &["96 bytes", "whole number of rows of 5", "20 bytes"],
    );
    refused(
        &["--from", "f32", "--to", "iq4_nl", "--dim", "24"],
        &["dim 24"],
    );
    refused(
        &["--from", "f32", "--to", "bf16+hadamard24"],
        &["+hadamard24 is no rotation"],
    );
    fs::write(at("in.scale"), [0; 5]).unwrap();
    refused(
        &["--from", "mxfp8_e4m3", "--to", "f32"],
        &["in.scale holds 5 bytes", "3 in all"],
    );
}

/// What is read stays as it is: a second run would read other bytes, and mean nothing.
#[test]
fn nothing_is_written_over_what_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (input, scales, again) = (at("in"), at("in.scale"), at("./in"));
    fs::write(&input, [0; 128]).unwrap();
    fs::write(&scales, [127; 4]).unwrap();
    let refused = |from: &str, to: &str, out: &PathBuf, report: &PathBuf, said: &str| {
        let done = output(&[
            "codec",
            "--from",
            from,
            "--to",
            to,
            "--json",
            text(report),
            text(&input),
            text(out),
        ]);
        assert_eq!(done.status.code(), Some(2), "{}", stdout(&done));
        assert!(stderr(&done).contains(said), "{}", stderr(&done));
        assert_eq!(fs::read(&input).unwrap(), [0; 128]);
        assert_eq!(fs::read(&scales).unwrap(), [127; 4]);
        assert!(!at("out").exists());
    };
    let report = at("report");
    for out in [&input, &again] {
        refused("f32", "bf16", out, &report, "would be written over");
    }
    refused("mxfp8_e4m3", "f32", &scales, &report, "in.scale");
    refused("f32", "bf16", &at("out"), &input, "would be written over");
    refused(
        "f32",
        "bf16",
        &at("out"),
        &at("out"),
        "another OUT or --json",
    );

    // What cannot be written as a whole is not written in part.
    fs::create_dir(at("out.scale")).unwrap();
    let to = [text(&input).to_owned(), text(&at("out")).to_owned()];
    let done = output(&["codec", "--from", "f32", "--to", "mxfp4", &to[0], &to[1]]);
    assert_eq!(done.status.code(), Some(2));
    assert!(stderr(&done).contains("out.scale"), "{}", stderr(&done));
    assert!(!at("out").exists());
}

/// A file has many names, and a link may lead to one that is not there yet.
#[cfg(unix)]
#[test]
fn other_names_of_a_file_are_that_file() {
    use std::os::unix::fs::symlink;

    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("in"), [1; 64]).unwrap();
    fs::hard_link(at("in"), at("same")).unwrap();
    symlink("later", at("one")).unwrap();
    symlink(at("later"), at("two")).unwrap();
    let codec = |out: &str, report: &str| {
        let (report, input, out) = (at(report), at("in"), at(out));
        let (report, input, out) = (text(&report), text(&input), text(&out));
        let from_to = ["codec", "--from", "f32", "--to", "bf16", "--json"];
        output(&[&from_to[..], &[report, input, out]].concat())
    };
    for (out, report) in [("same", "report"), ("one", "two"), ("two", "later")] {
        let done = codec(out, report);
        assert_eq!(done.status.code(), Some(2), "{}", stdout(&done));
        let said = stderr(&done);
        assert!(said.contains("would be written over"), "{said}");
        assert_eq!(fs::read(at("in")).unwrap(), [1; 64]);
        assert!(!at("later").exists());
    }
    fs::create_dir(at("folder")).unwrap();
    let done = codec("folder", "report");
    assert_eq!(done.status.code(), Some(2));
    assert!(
        stderr(&done).contains("it is a folder"),
        "{}",
        stderr(&done)
    );

    let done = codec("one", "report");
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    assert_eq!(fs::read(at("later")).unwrap().len(), 32);
}

/// Codes alone come out of stdout if they are written there.
#[cfg(unix)]
#[test]
fn codes_on_stdout_are_alone() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    fs::write(&input, [1; 64]).unwrap();
    let done = output(&[
        "codec",
        "--from",
        "f32",
        "--to",
        "bf16",
        text(&input),
        "/dev/stdout",
    ]);
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    assert_eq!(done.stdout.len(), 32);
    assert!(stderr(&done).contains("16 rows"), "{}", stderr(&done));
}

#[test]
fn a_negative_scale_is_a_value_and_missing_scales_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    let out = folder.path().join("out");
    fs::write(&input, [0; 128]).unwrap();
    let said = |arguments: &[&str]| {
        let all: Vec<&str> = ["codec"]
            .iter()
            .chain(arguments)
            .copied()
            .chain([text(&input), text(&out)])
            .collect();
        let done = output(&all);
        assert_eq!(done.status.code(), Some(2));
        stderr(&done)
    };
    let negative = said(&["--from", "f32", "--to", "e4m3fn", "--scale", "-1"]);
    assert!(
        negative.contains("target scale of e4m3fn is -1"),
        "{negative}"
    );
    let missing = said(&["--from", "mxfp8_e4m3", "--to", "f32"]);
    assert!(
        missing.contains("mxfp8_e4m3 keep apart belongs there, 1 bytes for each of 4"),
        "{missing}"
    );
    let ragged = said(&["--from", "f32", "--to", "bf16", "--dim", "5"]);
    assert!(ragged.contains("or another --dim"), "{ragged}");
}
