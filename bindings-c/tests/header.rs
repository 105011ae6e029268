//! The header says what the source does: the same functions, with the same parameters and results, the same structs, and
//! the same numbers. Both are read as text; what the shared object exports is compared in `.ci/c.sh`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use moai_fabric::{collectives::protocol::node::Reason, memory::MemoryKind};

fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Without comments, preprocessor lines and the inline functions at its end.
fn header() -> String {
    let text = fs::read_to_string(here().join("include/moai_fabric.h")).unwrap();
    let mut plain = String::new();
    let mut rest = text.as_str();
    while let Some((before, comment)) = rest.split_once("/*") {
        plain += before;
        rest = comment.split_once("*/").unwrap().1;
    }
    plain += rest;
    let lines = plain
        .lines()
        .take_while(|line| !line.starts_with("#define MOAI_INIT"));
    let lines = lines.filter(|line| !line.starts_with('#') && !line.starts_with("extern \"C\""));
    lines.collect::<Vec<_>>().join("\n")
}

fn source() -> String {
    let mut files: Vec<_> = fs::read_dir(here().join("src"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let read = |path: &PathBuf| fs::read_to_string(path).unwrap();
    files.iter().map(read).collect()
}

/// A C type without its parameter's name, with one space between words and none before a star; `const` of handles is
/// dropped, which are never written through.
fn c_type(declared: &str) -> String {
    let (declared, array) = match declared.split_once('[') {
        Some((before, size)) => (before, format!("[{size}")),
        None => (declared, String::new()),
    };
    let spaced = declared.replace('*', " * ");
    let mut words: Vec<&str> = spaced.split_whitespace().collect();
    if words.len() > 1 && !["*", "const"].contains(words.last().unwrap()) {
        words.pop();
    }
    let text = words.join(" ").replace(" *", "*") + &array;
    match text.strip_prefix("const ") {
        Some(handle) if HANDLES.iter().any(|(_, name)| handle == format!("{name}*")) => {
            handle.into()
        }
        _ => text,
    }
}

/// Rust's objects behind handles, by their names in the header.
const HANDLES: &[(&str, &str)] = &[
    ("Settings", "moai_config"),
    ("Memory", "moai_region"),
    ("Described", "moai_descriptor"),
    ("Builder", "moai_builder"),
    ("Agreed", "moai_agreement"),
    ("Running", "moai_engine"),
    ("Happened", "moai_event"),
];

const STRUCTS: &[(&str, &str)] = &[
    ("Dlpack", "moai_dlpack"),
    ("Cut", "moai_cut"),
    ("Tensor", "moai_tensor"),
    ("EngineOptions", "moai_engine_options"),
    ("PeerNode", "moai_node"),
    ("Node", "moai_node"),
    ("Pages", "moai_pages"),
    ("Request", "moai_request"),
    ("Offer", "moai_offer"),
    ("Pull", "moai_pull"),
    ("Grant", "moai_grant"),
    ("EventFields", "moai_event_fields"),
    ("Dirty", "moai_dirty"),
];

/// What a Rust type is in C.
fn as_c(rust: &str) -> String {
    let rust = rust.trim().trim_start_matches("structs::");
    let inner = |outer: &str| {
        rust.strip_prefix(outer)?
            .strip_prefix('<')?
            .strip_suffix('>')
    };
    let named = |list: &[(&str, &str)], name: &str| {
        let found = list.iter().find(|(rust, _)| *rust == name);
        found.map(|(_, c)| (*c).to_owned())
    };
    if let Some(object) = inner("Handle") {
        return named(HANDLES, object).unwrap() + "*";
    }
    for pointer in ["Out", "Fill", "In"] {
        if let Some(to) = inner(pointer) {
            let constant = if pointer == "In" { "const " } else { "" };
            return format!("{constant}{}*", as_c(to));
        }
    }
    if let Some(element) = inner("Array") {
        return match as_c(element) {
            // An array that is only read: its elements are constant.
            pointer if pointer.ends_with('*') => format!("{pointer} const*"),
            plain => format!("const {plain}*"),
        };
    }
    if let Some(list) = rust.strip_prefix('[') {
        let (element, size) = list.trim_end_matches(']').split_once("; ").unwrap();
        return format!("{}[MOAI_{size}]", as_c(element));
    }
    if let Some(known) = named(STRUCTS, rust) {
        return known;
    }
    match rust {
        "Text" | "*const c_char" => "const char*",
        "Given" => "char*",
        "*mut c_void" => "void*",
        "*const c_void" => "const void*",
        "*const u32" => "const uint32_t*",
        "ReleaseFn" => "moai_release_fn",
        "LogFn" => "moai_log_fn",
        "Code" | "crate::failure::Code" => "moai_status",
        "u8" => "uint8_t",
        "u32" => "uint32_t",
        "u64" => "uint64_t",
        "i32" => "int32_t",
        "i64" => "int64_t",
        "f64" => "double",
        other => panic!("the type {other} has no place in this test"),
    }
    .to_owned()
}

/// Of each function its result, then its parameters.
type Functions = BTreeMap<String, Vec<String>>;

fn declared(header: &str) -> Functions {
    let mut functions = Functions::new();
    for statement in header.split(';') {
        // After the end of a struct or enum that stands before it.
        let statement = statement.rsplit(['}', '{']).next().unwrap().trim();
        let Some((before, parameters)) = statement.split_once('(') else {
            continue;
        };
        if statement.starts_with("typedef") {
            continue;
        }
        let name = before.rsplit([' ', '*']).next().unwrap().to_owned();
        let result = c_type(before);
        let parameters = parameters.trim_end_matches(')');
        let parameters = parameters
            .split(',')
            .filter(|parameter| parameter.trim() != "void");
        let all = std::iter::once(result)
            .chain(parameters.map(c_type))
            .collect();
        assert!(
            functions.insert(name.clone(), all).is_none(),
            "{name} stands there twice"
        );
    }
    functions
}

fn defined(source: &str) -> Functions {
    let mut functions = Functions::new();
    for (at, _) in source.match_indices("fn moai_") {
        let text = &source[at + 3..];
        let (name, rest) = text.split_once('(').unwrap();
        let (parameters, after) = rest.split_once(')').unwrap();
        let line = &source[source[..at].rfind('\n').unwrap() + 1..at];
        let after = after.split(['{', ';']).next().unwrap().trim();
        let ends = rest.split_once(')').unwrap().1.starts_with(';');
        let result = match after.strip_prefix("->") {
            Some(result) => as_c(result),
            // In `abi_free!`, or with no result of its own.
            None if ends || line.contains("extern") => "void".to_owned(),
            None => "moai_status".to_owned(),
        };
        let parameters = parameters
            .split(',')
            .filter(|parameter| !parameter.trim().is_empty());
        let types = parameters.map(|parameter| as_c(parameter.split_once(':').unwrap().1));
        let all = std::iter::once(result).chain(types).collect();
        assert!(
            functions.insert(name.to_owned(), all).is_none(),
            "{name} is defined twice"
        );
    }
    functions
}

#[test]
fn functions_are_the_same() {
    let (declared, defined) = (declared(&header()), defined(&source()));
    assert!(
        declared.len() > 90,
        "only {} functions were found",
        declared.len()
    );
    for (name, types) in &declared {
        let found = defined.get(name);
        assert_eq!(Some(types), found, "{name}: header, source");
    }
    for name in defined.keys() {
        assert!(declared.contains_key(name), "{name} is not in the header");
    }
}

#[test]
fn what_differs_is_noticed() {
    let header = "moai_status moai_a(const moai_region *region, uint32_t *count);\n";
    let same = "\nabi! {\nfn moai_a(region: Handle<Memory>, count: Out<u32>) {\n";
    assert_eq!(declared(header), defined(same));
    for other in [
        same.replace("u32", "u64"),
        same.replace("Memory", "Running"),
        same.replace(", count: Out<u32>", ""),
        same.replace("moai_a", "moai_b"),
        same.replace(") {", ");"),
    ] {
        assert_ne!(declared(header), defined(&other), "{other}");
    }
}

#[test]
fn structs_are_the_same() {
    let (header, source) = (
        header(),
        fs::read_to_string(here().join("src/structs.rs")).unwrap(),
    );
    let mut compared = 0;
    for (rust, c) in STRUCTS.iter().filter(|(rust, _)| *rust != "PeerNode") {
        let body = header
            .split_once(&format!("typedef struct {c} {{"))
            .unwrap()
            .1;
        let body = body.split_once('}').unwrap().0;
        let members = body
            .split(';')
            .map(str::trim)
            .filter(|member| !member.is_empty());
        let in_c: Vec<_> = members
            .map(|member| {
                let plain = member.split('[').next().unwrap();
                let name = plain.rsplit([' ', '*']).next().unwrap();
                (name.to_owned(), c_type(member))
            })
            .collect();
        let body = source
            .split_once(&format!("pub(crate) struct {rust} {{"))
            .unwrap()
            .1;
        let body = body.split_once("\n}").unwrap().0;
        let members = body.lines().map(str::trim).filter(|line| !line.is_empty());
        let in_rust: Vec<_> = members
            .map(|member| {
                let member = member
                    .trim_start_matches("pub(crate) ")
                    .trim_end_matches(',');
                let (name, rust) = member.split_once(": ").unwrap();
                (name.to_owned(), as_c(rust))
            })
            .collect();
        assert_eq!(in_c, in_rust, "{c}");
        compared += in_c.len();
    }
    assert!(compared > 80, "only {compared} members were found");
}

/// Constants of the header with a prefix.
fn constants(prefix: &str) -> BTreeMap<String, u32> {
    let header = header();
    let words = header.split([',', '{', '}']);
    let constants = words.filter_map(|word| word.trim().split_once(" = "));
    constants
        .filter_map(|(name, value)| {
            Some((
                name.strip_prefix(prefix)?.to_owned(),
                value.parse().unwrap(),
            ))
        })
        .collect()
}

#[test]
fn statuses_have_the_same_numbers() {
    let source = fs::read_to_string(here().join("src/failure.rs")).unwrap();
    let table = source.split_once("statuses! {").unwrap().1;
    let table = table.split_once("\n}").unwrap().0;
    let mut lines = 0;
    let all = constants("MOAI_");
    for line in table.lines().filter(|line| !line.trim().is_empty()) {
        let (number, name) = line
            .split_once(" = ")
            .unwrap()
            .1
            .split_once(", c\"MOAI_")
            .unwrap();
        let name = name.trim_end_matches("\";");
        assert_eq!(all.get(name), Some(&number.parse().unwrap()), "MOAI_{name}");
        lines += 1;
    }
    assert!(lines >= 22, "only {lines} statuses were found");
}

#[test]
fn reasons_and_kinds_have_the_fabrics_numbers() {
    let reasons = constants("MOAI_REASON_");
    let name = |reason: &Reason| {
        let mut name = String::new();
        for c in format!("{reason:?}").chars() {
            if c.is_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.extend(c.to_uppercase());
        }
        name
    };
    let fabrics: BTreeMap<_, _> = Reason::ALL
        .iter()
        .map(|reason| (name(reason), *reason as u32))
        .collect();
    assert_eq!(reasons, fabrics);
    let kinds = constants("MOAI_MEMORY_");
    for kind in [MemoryKind::Host, MemoryKind::Pinned, MemoryKind::Shared] {
        let name = kind.to_string().to_uppercase();
        assert_eq!(kinds.get(&name), Some(&u32::from(kind.code())), "{name}");
    }
}

#[test]
fn every_function_is_said_something_of() {
    let text = fs::read_to_string(Path::new(&here()).join("include/moai_fabric.h")).unwrap();
    let mut bare = Vec::new();
    let mut told = false;
    for line in text.lines() {
        let declares = line.starts_with("moai_status moai_") && line.contains('(');
        if declares && !told && !line.contains("/*") {
            bare.push(line.to_owned());
        }
        // A comment stands for all that follows without a gap.
        told = match line {
            "" => false,
            _ => told || line.contains("/*"),
        };
    }
    assert_eq!(bare, Vec::<String>::new());
}

#[test]
fn the_books_c_is_that_of_the_examples() {
    let lines = |text: &str| -> Vec<String> {
        let lines = text.lines().map(|line| line.trim().to_owned());
        lines.filter(|line| !line.is_empty()).collect()
    };
    let read = |path: &str| lines(&fs::read_to_string(here().join(path)).unwrap());
    let examples = [read("examples/producer.c"), read("examples/consumer.c")];
    let book = fs::read_to_string(here().join("../docs/src/c.md")).unwrap();
    let mut found = 0;
    for block in book.split("```c\n").skip(1) {
        let block = lines(block.split("```").next().unwrap());
        let within = |example: &Vec<String>| example.windows(block.len()).any(|part| part == block);
        assert!(
            examples.iter().any(within),
            "in no example: {}",
            block.join("\n")
        );
        found += 1;
    }
    assert!(found >= 5, "only {found} blocks were found");
}
