//! Bad input ends with the right exit code and an error that names what is wrong.

mod support;

use std::fs;

use serde_json::json;
use support::{case, copy_of, edit, json as read_json, moai, output, stderr, text};

#[test]
fn what_does_not_fit_is_refused_with_every_obstacle_at_once() {
    let copy = copy_of("04-flash-attn-tp4-16-to-rocm-tp2-32");
    let (producer, consumer) = (
        copy.path().join("producer.json"),
        copy.path().join("consumer.json"),
    );
    edit(&consumer, |side| {
        side["model"]["digest"] = json!("sha256:other weights");
        side["request"]["tokens"] = json!(44);
        side["components"][1]["name"] = json!("values");
        side["components"][1]["part"] = json!(1);
        side["components"][0]["rope"] = json!({ "pairing": "half", "dims": 32 });
        side["components"][0]["format"] =
            json!({ "element": "e4m3fn", "scale": { "granularity": "tensor" } });
        side["components"][0]["layout"] = json!("[layer] part page head dim/8 slot dim%8");
        side["components"][1]["format"] = json!({ "element": "e4m3fn" });
    });
    let report = copy.path().join("report.json");
    for command in ["plan", "run"] {
        let output = output(&[
            command,
            text(&producer),
            text(&consumer),
            "--json",
            text(&report),
        ]);
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        let said = stderr(&output);
        for part in [
            "model.digest",
            "sha256:other weights",
            "request.tokens",
            "45",
            "44",
            "components.values",
            "missing",
            "components.value",
            "components.key.rope",
            "64 dims",
            "32 dims",
            "components.key.format.scale.values",
            "give the consumer's effective scales",
        ] {
            assert!(said.contains(part), "{part} is not in\n{said}");
        }
        assert!(read_json(&report)["obstacles"].as_array().unwrap().len() >= 6);
    }
}

#[test]
fn bad_files_and_descriptions_exit_with_2_and_name_the_field() {
    type Spoil = fn(&std::path::Path);
    let spoils: &[(&str, Spoil)] = &[
        ("line 1, column", |dir| {
            fs::write(dir.join("producer.json"), "{ \"version\": 1, ").unwrap()
        }),
        ("missing field `model`", |dir| {
            fs::write(dir.join("producer.json"), "{ \"version\": 1 }").unwrap()
        }),
        ("unknown field `page_slot`", |dir| {
            edit(&dir.join("producer.json"), |s| s["page_slot"] = json!(3))
        }),
        ("version: 2 is not known", |dir| {
            edit(&dir.join("producer.json"), |s| s["version"] = json!(2))
        }),
        (
            "components[0].layout: layout `[layer] part pages slot head dim`, position 13",
            |dir| {
                edit(&dir.join("producer.json"), |s| {
                    s["components"][0]["layout"] = json!("[layer] part pages slot head dim")
                });
            },
        ),
        ("components[0].format.element", |dir| {
            edit(&dir.join("producer.json"), |s| {
                s["components"][0]["format"]["element"] = json!("fp8")
            });
        }),
        ("ranks[1].request_pages: page 5 is out of range", |dir| {
            edit(&dir.join("producer.json"), |s| {
                s["ranks"][1]["request_pages"][2] = json!(5)
            });
        }),
        ("ranks[1].request_pages: page 3 is listed twice", |dir| {
            edit(&dir.join("producer.json"), |s| {
                s["ranks"][1]["request_pages"] = json!([3, 4, 3])
            });
        }),
        ("rank 3 missing", |dir| {
            edit(&dir.join("producer.json"), |s| {
                drop(s["ranks"].as_array_mut().unwrap().pop())
            })
        }),
        ("rank 7 is extra", |dir| {
            edit(&dir.join("producer.json"), |s| {
                s["ranks"][3]["rank"] = json!(7)
            })
        }),
        ("overlaps", |dir| {
            edit(&dir.join("consumer.json"), |s| {
                s["components"][1]["layout"] =
                    json!({ "text": "[layer] page head dim slot", "offset_bytes": 64 });
            });
        }),
        ("page_slots: 0 is not between", |dir| {
            edit(&dir.join("consumer.json"), |s| s["page_slots"] = json!(0))
        }),
        ("more than", |dir| {
            edit(&dir.join("consumer.json"), |s| {
                s["ranks"][0]["pages"] = json!(1_000_000_000);
                s["components"][0]["layout"] = json!("[page] part [layer] head dim/8 slot dim%8");
            });
        }),
        ("components[0].format.scale.values: 0 is no scale", |dir| {
            edit(&dir.join("consumer.json"), |s| {
                s["components"][0]["format"]["scale"] =
                    json!({ "granularity": "tensor", "values": 0 });
            });
        }),
        (
            "region kv.1 has 100 bytes; the description of rank 0 needs",
            |dir| {
                let file = dir.join("producer.0.safetensors");
                let bytes = fs::read(&file).unwrap();
                let whole = safetensors::SafeTensors::deserialize(&bytes).unwrap();
                let kept: Vec<_> = whole
                    .tensors()
                    .into_iter()
                    .map(|(name, view)| {
                        let data = if name == "kv.1" {
                            view.data()[..100].to_vec()
                        } else {
                            view.data().to_vec()
                        };
                        (name, data)
                    })
                    .collect();
                let views = kept.iter().map(|(name, data)| {
                    (
                        name,
                        safetensors::tensor::TensorView::new(
                            safetensors::Dtype::U8,
                            vec![data.len()],
                            data,
                        )
                        .unwrap(),
                    )
                });
                safetensors::serialize_to_file(views, None, &file).unwrap();
            },
        ),
        ("is no safetensors file", |dir| {
            let file = dir.join("producer.0.safetensors");
            let bytes = fs::read(&file).unwrap();
            fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("cannot read", |dir| {
            fs::remove_file(dir.join("consumer.1.safetensors")).unwrap()
        }),
        ("is not a plain file name", |dir| {
            edit(&dir.join("consumer.json"), |s| {
                s["ranks"][0]["file"] = json!("../../etc/passwd")
            });
        }),
    ];
    for (part, spoil) in spoils {
        let copy = copy_of("04-flash-attn-tp4-16-to-rocm-tp2-32");
        spoil(copy.path());
        let (producer, consumer) = (
            copy.path().join("producer.json"),
            copy.path().join("consumer.json"),
        );
        let out = copy.path().join("out");
        for command in ["convert", "run"] {
            let output = output(&[
                command,
                text(&producer),
                text(&consumer),
                "--out",
                text(&out),
            ]);
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(2), "{part}: {said}");
            assert!(
                said.starts_with("error: ") && said.contains(part),
                "`{part}` is not in\n{said}"
            );
            let written = fs::read_dir(&out).map_or(0, Iterator::count);
            assert_eq!(written, 0, "{part}: something was written");
        }
    }
}

#[test]
fn bad_usage_exits_with_2() {
    for arguments in [
        &["run", "only-one.json"][..],
        &["run", "--deadline", "0"],
        &["run", "--deadline", "never"],
        &["run", "--tokens", "0"],
        &["run", "a.json", "b.json", "--tokens", "3"],
        &["convert", "a.json", "b.json"],
        &["frobnicate"],
        &[],
    ] {
        let output = output(arguments);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
    let off = moai(&["run"])
        .env("MOAI_BIND", "0.0.0.0:0")
        .output()
        .unwrap();
    assert_eq!(off.status.code(), Some(2));
    for way_out in [
        "MOAI_TLS_CERT",
        "MOAI_ALLOW",
        "--tls",
        "MOAI_SHARED_KEY_FILE",
        "moai keys init",
        "--insecure",
    ] {
        assert!(stderr(&off).contains(way_out), "{}", stderr(&off));
    }
    let unknown = moai(&["run"]).env("MOAI_DEADLIN", "3").output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    assert!(
        stderr(&unknown).contains("MOAI_DEADLIN=3: is not known"),
        "{}",
        stderr(&unknown)
    );
}

/// `| head` is satisfied early, which is no failure; a full disk is one.
#[test]
fn a_stdout_that_takes_nothing_is_no_panic() {
    let case = case("01-copy-page-ids");
    let (producer, consumer) = (case.join("producer.json"), case.join("consumer.json"));
    let out = tempfile::tempdir().unwrap();
    for command in [
        &["plan"][..],
        &["run"][..],
        &["convert", "--out", text(out.path())][..],
    ] {
        let arguments = [command, &[text(&producer), text(&consumer)]].concat();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let closed = moai(&arguments).stdout(writer).output().unwrap();
        assert_eq!(closed.status.code(), Some(0), "{}", stderr(&closed));
        if let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") {
            let full = moai(&arguments).stdout(full).output().unwrap();
            assert_eq!(full.status.code(), Some(2), "{}", stderr(&full));
            assert!(stderr(&full).starts_with("error: cannot write to stdout"));
        }
    }
}

#[test]
fn a_seeded_cache_of_no_tokens_or_of_too_many_is_refused_before_it_is_made() {
    for tokens in ["0", "1048577", "4294967295"] {
        let output = output(&["run", "--tokens", tokens]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(
            stderr(&output).starts_with("error: "),
            "{}",
            stderr(&output)
        );
    }
}

/// `--max-rate 0` says the same as `MOAI_MAX_RATE=0`.
#[test]
fn a_rate_of_zero_is_no_limit() {
    let case = case("01-copy-page-ids");
    let (producer, consumer) = (case.join("producer.json"), case.join("consumer.json"));
    let sides = [text(&producer), text(&consumer)];
    let limits = ["--max-rate", "0", "--deadline", "20"];
    let output = output(&[&["run"][..], &sides, &limits].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}
