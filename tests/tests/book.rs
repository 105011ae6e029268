//! What the README and the book say is so: examples are read, commands are run, tables equal the code.
//!
//! Rust blocks are doc tests of this crate's library.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use moai_fabric::{
    collectives::{description, descriptor::Descriptor, limits, protocol::node},
    config::Config,
    limits as fabric, metrics,
    translate::{element::Element, layout::presets, scheme::Coding},
    transport,
};

/// How the text calls the program.
const CALL: &str = "cargo run --release --bin moai --";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Pages of the book, by file name.
fn pages() -> Vec<(String, String)> {
    let mut names: Vec<String> = fs::read_dir(root().join("docs/src"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".md") && name != "SUMMARY.md")
        .collect();
    names.sort();
    assert!(names.len() >= 12, "only {} pages found", names.len());
    names
        .into_iter()
        .map(|name| {
            let text = read(&format!("docs/src/{name}"));
            (name, text)
        })
        .collect()
}

/// A fenced block.
#[derive(Debug)]
struct Block {
    /// What stands behind the fence.
    tag: String,
    text: String,
    /// Where, for messages.
    at: String,
}

fn blocks(file: &str, text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (i, line) in text.lines().enumerate() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(tag), None) => {
                open = Some(Block {
                    tag: tag.to_owned(),
                    text: String::new(),
                    at: format!("{file}:{}", i + 1),
                });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => block.text += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{file}: a block is not closed");
    blocks
}

/// Cells of the table rows whose first cell is code, without the backticks of that cell.
fn rows(text: &str) -> Vec<Vec<String>> {
    text.lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let line = line
                .trim_start_matches("| ")
                .trim_end_matches('|')
                .trim_end();
            let mut cells: Vec<String> = line.split(" |").map(|c| c.trim().to_owned()).collect();
            cells[0] = cells[0].trim_matches('`').to_owned();
            cells
        })
        .collect()
}

/// The text from one heading to the next.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let start = text
        .find(&format!("{heading}\n"))
        .unwrap_or_else(|| panic!("no heading {heading}"))
        + heading.len();
    let end = text[start..]
        .find("\n## ")
        .map_or(text.len(), |end| start + end);
    &text[start..end]
}

#[test]
fn every_page_is_in_the_summary_and_its_rust_is_compiled() {
    let summary = read("docs/src/SUMMARY.md");
    let included = read("tests/src/lib.rs");
    for (name, _) in pages() {
        assert!(
            summary.contains(&format!("({name})")),
            "{name} is not in SUMMARY.md"
        );
        assert!(
            included.contains(&format!("\"{name}\"")),
            "{name} is not in tests/src/lib.rs, so its Rust blocks are not compiled"
        );
    }
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut texts = pages();
    texts.push(("../../README.md".into(), read("README.md")));
    texts.push(("../../CONTRIBUTING.md".into(), read("CONTRIBUTING.md")));
    let mut found = 0;
    for (name, text) in &texts {
        let folder = root().join("docs/src").join(name);
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            if link.starts_with("http") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = if file.is_empty() {
                folder.clone()
            } else {
                folder.parent().unwrap().join(file)
            };
            assert!(path.exists(), "{name}: {link} does not exist");
            if !anchor.is_empty() {
                let heads: BTreeSet<String> = fs::read_to_string(&path)
                    .unwrap()
                    .lines()
                    .filter(|line| line.starts_with('#'))
                    .map(|line| {
                        line.trim_start_matches(['#', ' '])
                            .to_lowercase()
                            .replace(' ', "-")
                    })
                    .collect();
                assert!(heads.contains(anchor), "{name}: {link} names no heading");
            }
            found += 1;
        }
    }
    assert!(found > 20, "only {found} links found");
}

#[test]
fn json_examples_are_what_they_say() {
    let mut descriptions = 0;
    for (name, text) in pages() {
        for block in blocks(&name, &text) {
            let Some(kind) = block.tag.strip_prefix("json") else {
                continue;
            };
            let (at, text) = (&block.at, block.text.as_str());
            let problem = match kind {
                ",description" => {
                    descriptions += 1;
                    Descriptor::from_json(text)
                        .err()
                        .map(|error| error.to_string())
                }
                ",component" => problem(serde_json::from_str::<description::Component>(text)),
                ",format" => problem(serde_json::from_str::<description::Format>(text)),
                ",group" => problem(serde_json::from_str::<description::Group>(text)),
                _ => panic!("{at}: a JSON block is a description, component, format or group"),
            };
            assert_eq!(problem, None, "{at}");
        }
    }
    assert!(descriptions > 0, "no description found");
}

fn problem<T>(read: serde_json::Result<T>) -> Option<String> {
    read.err().map(|error| error.to_string())
}

#[test]
fn every_field_of_a_description_has_its_row() {
    let text = read("docs/src/description.md");
    let schema = read("collectives/src/description.rs");
    let fields = schema
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub "))
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name)
        .filter(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
    let mut found = 0;
    for field in fields {
        // `type` is a word of Rust.
        let name = if field == "kind" { "type" } else { field };
        let rows = rows(&text).iter().any(|cells| {
            cells.iter().take(1).any(|cell| {
                let words = cell.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
                words.into_iter().any(|word| word == name)
            })
        });
        assert!(rows, "docs/src/description.md has no row for `{name}`");
        found += 1;
    }
    assert!(found > 30, "only {found} fields found");
}

#[test]
fn variables_are_those_of_the_configuration() {
    let page = read("docs/src/configuration.md");
    let told: Vec<(String, String, String)> = rows(&page)
        .into_iter()
        .map(|cells| {
            (
                cells[0].clone(),
                cells[1].trim_matches('`').to_owned(),
                cells[2].clone(),
            )
        })
        .collect();
    let real: Vec<(String, String, String)> = Config::default()
        .variables()
        .into_iter()
        .map(|variable| {
            // What only logs and tests read has no default, whatever the environment says.
            let free = ["MOAI_LOG", "MOAI_REQUIRE", "MOAI_SEED"].contains(&variable.name);
            let value = if free { String::new() } else { variable.value };
            (variable.name.to_owned(), value, variable.help.to_owned())
        })
        .collect();
    assert_eq!(told, real);
}

#[test]
fn named_layouts_and_elements_are_those_of_the_code() {
    let page = read("docs/src/layout-gallery.md");
    let told: Vec<&str> = section(&page, "## Named layouts")
        .lines()
        .filter(|line| line.starts_with("| `") || line.starts_with("| |"))
        .collect();
    let mut real: Vec<String> = Vec::new();
    for preset in presets::ALL {
        for (i, one) in preset.components.iter().enumerate() {
            let mut place: Vec<String> = Vec::new();
            if one.offset != "0" {
                place.push(format!("from `{}`", one.offset));
            }
            let by = |(word, formula): &(&str, &str)| format!("`{word}` by `{formula}`");
            place.extend(one.strides.iter().map(by));
            if one.pool != "kv" {
                place.push(format!("in pool `{}`", one.pool));
            }
            if !one.row.is_empty() {
                place.push(format!("a row: {}", one.row));
            }
            let (name, source) = match i {
                0 => (format!("`{}`", preset.name), preset.source),
                _ => (String::new(), ""),
            };
            let (component, text, place) = (one.name, one.text, place.join("; "));
            let row = format!("| {name} | `{component}` | `{text}` | {place} | {source} |");
            real.push(row.replace("  ", " "));
        }
    }
    let table = real.join("\n");
    assert_eq!(told, real, "the table should be:\n{table}\n");

    let page = read("docs/src/formats.md");
    let told: Vec<&str> = section(&page, "## Elements")
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    let real: Vec<String> = Element::all().map(row_of).collect();
    assert_eq!(told, real, "the table should be:\n{}\n", real.join("\n"));
}

/// An element as the table of the book has it.
fn row_of(element: Element) -> String {
    let unit = element.unit(4608);
    let bytes = match unit.elements {
        // All of a row hang together.
        4608 => format!("{} for 8", unit.bytes / (4608 / 8)),
        n => format!("{} for {n}", unit.bytes),
    };
    let apart = match &element.scheme().coding {
        Coding::Block(block) if block.elements > 0 && block.param_bytes > 0 => {
            format!("{} for {}", block.param_bytes, block.elements)
        }
        _ => element
            .params(128)
            .map_or(String::new(), |params| format!("{} a row", params.bytes())),
    };
    let rules: Vec<String> = element
        .scheme()
        .rules()
        .map(|rule| format!("`{rule}`"))
        .collect();
    let (what, rules) = (element.scheme().what, rules.join(" "));
    format!("| `{element}` | {bytes} | {apart} | {what} | {rules} |").replace("  ", " ")
}

#[test]
fn limits_are_those_of_the_code() {
    let real = [
        ("MAX_RANKS", u64::from(limits::MAX_RANKS)),
        ("MAX_LAYERS", u64::from(limits::MAX_LAYERS)),
        ("MAX_COMPONENTS", limits::MAX_COMPONENTS as u64),
        ("MAX_GROUPS", limits::MAX_GROUPS as u64),
        ("MAX_HEADS", u64::from(limits::MAX_HEADS)),
        ("MAX_DIM", u64::from(limits::MAX_DIM)),
        ("MAX_REGIONS", limits::MAX_REGIONS),
        ("MAX_SIDE_REGIONS", limits::MAX_SIDE_REGIONS),
        ("MAX_OWNED", limits::MAX_OWNED),
        ("MAX_CP", u64::from(limits::MAX_CP)),
        ("MAX_CHUNKS", limits::MAX_CHUNKS),
        ("MAX_STEP_LAYERS", limits::MAX_STEP_LAYERS as u64),
        ("MAX_OBSTACLES", limits::MAX_OBSTACLES as u64),
        ("MAX_TOKENS", u64::from(limits::MAX_TOKENS)),
        ("MAX_DESCRIPTION_BYTES", limits::MAX_DESCRIPTION_BYTES),
        ("CHUNK_BYTES", limits::CHUNK_BYTES),
        ("MAX_ENGINE_NAME", limits::MAX_ENGINE_NAME as u64),
        ("MAX_HANDLE_BYTES", limits::MAX_HANDLE_BYTES as u64),
        ("MAX_TEXT_BYTES", limits::MAX_TEXT_BYTES as u64),
        ("MAX_NODE_RANKS", limits::MAX_NODE_RANKS as u64),
        ("MAX_ENGINES", limits::MAX_ENGINES as u64),
        ("MAX_FORMER_ENGINES", limits::MAX_FORMER_ENGINES as u64),
        ("MAX_IDLE_DESCRIPTORS", limits::MAX_IDLE_DESCRIPTORS as u64),
        ("MAX_LINKS", limits::MAX_LINKS as u64),
        ("MAX_DESCRIPTOR_BYTES", limits::MAX_DESCRIPTOR_BYTES as u64),
        (
            "DESCRIPTOR_PART_BYTES",
            limits::DESCRIPTOR_PART_BYTES as u64,
        ),
        ("MAX_DESCRIBING", limits::MAX_DESCRIBING as u64),
        ("MAX_SERVES_PER_LINK", limits::MAX_SERVES_PER_LINK as u64),
        ("MAX_OFFERS", limits::MAX_OFFERS as u64),
        ("MAX_GRANTS", limits::MAX_GRANTS as u64),
        ("MAX_PULLS", limits::MAX_PULLS as u64),
        ("MAX_PARTS", limits::MAX_PARTS as u64),
        ("MAX_ENDED", limits::MAX_ENDED as u64),
        ("MAX_RETIRED_EPOCHS", limits::MAX_RETIRED_EPOCHS as u64),
        ("MAX_KEYS_PER_MESSAGE", limits::MAX_KEYS_PER_MESSAGE as u64),
        ("MAX_SUMS_PER_MESSAGE", limits::MAX_SUMS_PER_MESSAGE as u64),
        (
            "MAX_PAGES_PER_MESSAGE",
            limits::MAX_PAGES_PER_MESSAGE as u64,
        ),
        ("MAX_LENT_PAGES", limits::MAX_LENT_PAGES),
        ("MAX_PULL_MS", limits::MAX_PULL_MS.into()),
        ("MAX_UNSENT_BYTES", limits::MAX_UNSENT_BYTES as u64),
        ("CLOSE_NS", limits::CLOSE_NS),
        ("DEVICE_PATIENCE_MS", limits::DEVICE_PATIENCE_MS),
        ("MAX_KEPT_RUNNERS", limits::MAX_KEPT_RUNNERS as u64),
        (
            "MAX_MESSAGE_BYTES",
            u64::from(transport::limits::MAX_MESSAGE_BYTES),
        ),
        (
            "MAX_BATCH_BYTES",
            u64::from(transport::limits::MAX_BATCH_BYTES),
        ),
        (
            "STAGING_RING_BYTES",
            u64::from(transport::limits::STAGING_RING_BYTES),
        ),
        (
            "MAX_STAGING_RING_BYTES",
            u64::from(transport::limits::MAX_STAGING_RING_BYTES),
        ),
        (
            "MESSAGE_RING_BYTES",
            u64::from(transport::limits::MESSAGE_RING_BYTES),
        ),
        (
            "MAX_QUEUED_MESSAGES",
            transport::limits::MAX_QUEUED_MESSAGES as u64,
        ),
        (
            "MAX_QUEUED_BATCHES",
            transport::limits::MAX_QUEUED_BATCHES as u64,
        ),
        ("MAX_PEERS", transport::limits::MAX_PEERS as u64),
        ("MAX_LANES", u64::from(transport::limits::MAX_LANES)),
        (
            "MAX_REGISTRATIONS",
            transport::limits::MAX_REGISTRATIONS as u64,
        ),
        ("MAX_OPERATIONS", transport::limits::MAX_OPERATIONS as u64),
        (
            "MAX_OPERATION_BYTES",
            transport::limits::MAX_OPERATION_BYTES,
        ),
        ("MAX_LIST_BYTES", transport::limits::MAX_LIST_BYTES.into()),
        ("MAX_LIST_GROUPS", transport::limits::MAX_LIST_GROUPS as u64),
        (
            "MAX_WAITING_GETS",
            transport::limits::MAX_WAITING_GETS as u64,
        ),
        (
            "MAX_ADDRESS_BYTES",
            transport::limits::MAX_ADDRESS_BYTES as u64,
        ),
        ("MAX_NAMES", transport::limits::MAX_NAMES as u64),
        ("MAX_PATTERNS", transport::limits::MAX_PATTERNS as u64),
        ("MAX_NODES", fabric::MAX_NODES as u64),
        ("MAX_NODE_ADDRESSES", fabric::MAX_NODE_ADDRESSES as u64),
        ("MAX_ENTRY_BYTES", fabric::MAX_ENTRY_BYTES as u64),
        (
            "MAX_DIRECTORY_FILE_BYTES",
            fabric::MAX_DIRECTORY_FILE_BYTES as u64,
        ),
        (
            "MAX_DIRECTORY_ANSWER_BYTES",
            fabric::MAX_DIRECTORY_ANSWER_BYTES,
        ),
        ("MAX_WATCHED_ENGINES", fabric::MAX_WATCHED_ENGINES as u64),
        ("MAX_ANNOUNCED", fabric::MAX_ANNOUNCED as u64),
        ("MAX_NAME_SERVERS", fabric::MAX_NAME_SERVERS as u64),
        ("MAX_DNS_ANSWER_BYTES", fabric::MAX_DNS_ANSWER_BYTES as u64),
        ("MAX_HTTP_CONNECTIONS", fabric::MAX_HTTP_CONNECTIONS as u64),
        (
            "MAX_HTTP_REQUEST_BYTES",
            fabric::MAX_HTTP_REQUEST_BYTES as u64,
        ),
        ("MAX_HTTP_HEADERS", fabric::MAX_HTTP_HEADERS as u64),
        ("MAX_WAITING_EVENTS", fabric::MAX_WAITING_EVENTS as u64),
    ];
    let page = read("docs/src/limits.md");
    let told: Vec<(String, u64)> = rows(&page)
        .into_iter()
        .map(|cells| (cells[0].clone(), cells[1].parse().unwrap()))
        .collect();
    assert_eq!(told, real.map(|(name, value)| (name.to_owned(), value)));
    // Every limit on what a description may size is told.
    let known: BTreeSet<&str> = real.iter().map(|(name, _)| *name).collect();
    let told = ["collectives/src/limits.rs", "fabric/src/limits.rs"];
    for line in told.map(read).iter().flat_map(|text| text.lines()) {
        if let Some((name, _)) = line
            .strip_prefix("pub const ")
            .and_then(|l| l.split_once(':'))
        {
            assert!(known.contains(name), "{name} is not in docs/src/limits.md");
        }
    }
}

#[test]
fn messages_reasons_and_states_are_those_of_the_code() {
    let page = read("docs/src/protocol.md");
    let told = rows(section(&page, "## Reasons"));
    let real: Vec<_> = { node::Reason::ALL.iter() }
        .map(|&reason| {
            let (code, text) = (reason as u8, reason.text());
            vec![format!("{reason:?}"), code.to_string(), text.to_owned()]
        })
        .collect();
    assert_eq!(told, real);
    let told: Vec<String> = rows(section(&page, "## Messages"))
        .into_iter()
        .map(|cells| format!("{} {}", cells[1], cells[0]))
        .collect();
    let real: Vec<String> = (1..)
        .zip(node::MESSAGES)
        .map(|(kind, name)| format!("{kind} {name}"))
        .collect();
    assert_eq!(told, real);
    let firsts = |heading| -> Vec<String> {
        rows(section(&page, heading))
            .into_iter()
            .map(|mut cells| cells.remove(0))
            .collect()
    };
    let named = |names: &[&dyn std::fmt::Debug]| -> Vec<String> {
        names.iter().map(|name| format!("{name:?}")).collect()
    };
    use node::{LinkState as Link, PartState as Part, ServeState as Serve};
    let links = [
        &Link::Greeting,
        &Link::Describing,
        &Link::Agreeing,
        &Link::Ready,
        &Link::Lost,
    ];
    assert_eq!(
        firsts("## Links"),
        named(&links.map(|state| state as &dyn std::fmt::Debug))
    );
    let parts: [&dyn std::fmt::Debug; 11] = [
        &Part::Waiting,
        &Part::Asked,
        &Part::Receiving,
        &Part::Mapped,
        &Part::Complete,
        &Part::Stopping,
        &Serve::Parked,
        &Serve::Asked,
        &Serve::Serving,
        &Serve::Sent,
        &Serve::Stopping,
    ];
    assert_eq!(firsts("## Transfers"), named(&parts));
}

#[test]
fn metrics_are_those_of_the_code() {
    let page = read("docs/src/metrics.md");
    let told: Vec<(String, String, String)> = rows(section(&page, "## Names"))
        .into_iter()
        .map(|cells| (cells[0].clone(), cells[1].clone(), cells[2].clone()))
        .collect();
    let real: Vec<(String, String, String)> = { metrics::NAMES.iter() }
        .map(|name| {
            let labels: Vec<_> = { name.labels.iter() }
                .map(|label| format!("`{label}`"))
                .collect();
            (name.name.into(), name.kind.to_string(), labels.join(", "))
        })
        .collect();
    assert_eq!(told, real);
}

/// The program, as the tests of the command line have it built; built here if they were not asked for.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let program = profile.join(format!("moai{}", std::env::consts::EXE_SUFFIX));
    if !program.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--bin", "moai", "--target-dir"]);
        build.arg(profile.parent().unwrap()).current_dir(root());
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "moai does not build");
    }
    program
}

#[test]
fn options_are_those_of_the_program() {
    let page = read("docs/src/command-line.md");
    for command in [
        "run",
        "convert",
        "plan",
        "check",
        "doctor",
        "codec",
        "info",
        "keys init",
        "keys issue",
    ] {
        let help = Command::new(program())
            .args(command.split(' ').chain(["--help"]))
            .output()
            .unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let options = |text: &str| -> BTreeSet<String> {
            text.split(|c: char| !(c.is_ascii_lowercase() || c == '-'))
                .filter(|word| word.starts_with("--") && word.len() > 2)
                .map(str::to_owned)
                .collect()
        };
        let mut real: BTreeSet<String> = help
            .lines()
            .filter(|line| line.trim_start().starts_with('-'))
            .flat_map(|line| {
                options(
                    line.split("  ")
                        .find(|part| part.contains("--"))
                        .unwrap_or(""),
                )
            })
            .collect();
        real.remove("--help");
        let table = rows(section(&page, &format!("## `moai {command}`")));
        let told: BTreeSet<String> = table.iter().flat_map(|cells| options(&cells[0])).collect();
        assert_eq!(told, real, "options of `moai {command}`");
    }
}

#[test]
fn commands_do_what_the_text_says() {
    let place = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(
        root().join("tests").canonicalize().unwrap(),
        place.path().join("tests"),
    )
    .unwrap();
    let program = program();
    let mut ran = 0;
    for file in ["README.md", "docs/src/quick-start.md"] {
        let mut output = String::new();
        for block in blocks(file, &read(file)) {
            if let Some(exit) = block.tag.strip_prefix("sh") {
                let exit = exit.strip_prefix(",exit-").unwrap_or("0").parse().unwrap();
                let script: String = block
                    .text
                    .lines()
                    // These tests themselves.
                    .filter(|line| !line.starts_with("cargo test"))
                    .map(|line| format!("{}\n", line.replace(CALL, "\"$MOAI\"")))
                    .collect();
                let done = Command::new("bash")
                    .args(["-euc", &script])
                    .env("MOAI", &program)
                    .current_dir(place.path())
                    .output()
                    .unwrap();
                output = String::from_utf8(done.stdout).unwrap();
                output += &String::from_utf8(done.stderr).unwrap();
                assert_eq!(
                    done.status.code(),
                    Some(exit),
                    "{}: {script}{output}",
                    block.at
                );
                ran += 1;
            } else if block.tag == "text,output"
                && let Err(line) = says(&output, &block.text)
            {
                panic!(
                    "{}: not printed: {line}\nprinted was (if the program is not of today, build it first):\n{output}",
                    block.at
                );
            }
        }
    }
    assert!(ran >= 6, "only {ran} blocks of commands found");
}

/// Whether `output` holds the lines of `told`; a line of one ellipsis stands for any lines.
fn says(output: &str, told: &str) -> Result<(), String> {
    let mut printed = output.lines().map(timeless);
    let mut anywhere = true;
    for line in told.lines() {
        if line == "…" {
            anywhere = true;
            continue;
        }
        let wanted = timeless(line);
        let found = if anywhere {
            printed.any(|line| line == wanted)
        } else {
            printed.next().as_ref() == Some(&wanted)
        };
        if !found {
            return Err(line.to_owned());
        }
        anywhere = false;
    }
    Ok(())
}

/// A line without what differs from machine to machine: times and rates.
fn timeless(line: &str) -> String {
    if !(line.starts_with("moved ") || line.starts_with("rate ") || line.starts_with("converted "))
    {
        return line.trim_end().to_owned();
    }
    let words = line.split_whitespace().map(|word| match word {
        "B/s" | "kB/s" | "MB/s" | "GB/s" => "rate",
        word if word.starts_with(|c: char| c.is_ascii_digit()) => "n",
        word => word.trim_end_matches(','),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn what_is_not_printed_is_noticed() {
    let output = "one\ntwo\nmoved    64.0 MiB in 0.10 s\nfour\n";
    assert_eq!(says(output, "one\ntwo\n"), Ok(()));
    assert_eq!(says(output, "one\n…\nfour\n"), Ok(()));
    assert_eq!(says(output, "two\nmoved    1.0 MiB in 0.2 s\n"), Ok(()));
    assert_eq!(says(output, "one\nfour\n"), Err("four".into()));
    assert_eq!(
        says(output, "moved    1.0 KiB in 0.2 s\n"),
        Err("moved    1.0 KiB in 0.2 s".into())
    );
}

#[test]
fn the_readme_has_the_two_commands() {
    let readme = read("README.md");
    let head: Vec<&str> = readme.lines().take(40).collect();
    for command in [format!("{CALL} run"), "cargo test --workspace".to_owned()] {
        assert!(
            head.contains(&command.as_str()),
            "`{command}` is not at the top of README.md"
        );
    }
}
