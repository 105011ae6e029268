//! Crates depend downwards only, and `unsafe` stays where it was put.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use serde_json::Value;

/// What each crate may depend on within the workspace, from the lowest up. Other kinds of provider come
/// under the rule of [`may_see`].
const BELOW: &[(&str, &[&str])] = &[
    ("moai-memory", &[]),
    // These two never see each other.
    ("moai-transport", &["moai-memory"]),
    ("moai-translate", &["moai-memory"]),
    (
        "moai-collectives",
        &["moai-memory", "moai-transport", "moai-translate"],
    ),
    (
        "moai-fabric",
        &[
            "moai-memory",
            "moai-transport",
            "moai-transport-shm",
            "moai-transport-tcp",
            "moai-transport-plugin",
            "moai-translate",
            "moai-collectives",
        ],
    ),
    ("moai", &["moai-fabric"]),
    ("moai-c", &["moai-fabric"]),
    ("xtask", &[]),
    // Models of lock-free structures.
    ("moai-loom", &["moai-transport"]),
    // Sees every layer: it measures each by itself.
    (
        "moai-perf",
        &[
            "moai-memory",
            "moai-transport",
            "moai-transport-tcp",
            "moai-transport-shm",
            "moai-translate",
            "moai-collectives",
            "moai-fabric",
        ],
    ),
];

/// The only crates that may use `unsafe`: mappings, vector loops, lock-free structures, what providers give to the
/// system or to a plug-in, the bare system calls that they are held against, and what callers in C give.
const UNSAFE: &[&str] = &[
    "moai-c",
    "moai-memory",
    "moai-perf",
    "moai-translate",
    "moai-transport",
    "moai-transport-tcp",
    "moai-transport-shm",
    "moai-transport-plugin",
];

/// Of those, crates whose `unsafe` is in one module: denied at the root, and allowed in that file alone.
const UNSAFE_IN_ONE_MODULE: &[(&str, &str)] = &[
    ("moai-perf", "bounds/process_vm.rs"),
    ("moai-transport", "sync/mod.rs"),
];

/// Tests that need more than one crate.
const TESTS: &str = "moai-tests";

/// What every manifest takes from the workspace.
const INHERITED: &[&str] = &[
    "edition.workspace = true",
    "license.workspace = true",
    "rust-version.workspace = true",
    "[lints]\nworkspace = true",
];

/// What a crate may depend on within the workspace; `None` if nobody has said where it belongs.
fn may_see(name: &str) -> Option<&'static [&'static str]> {
    if name.starts_with("moai-transport-") {
        return Some(&["moai-memory", "moai-transport"]);
    }
    let (_, below) = BELOW.iter().find(|(crate_name, _)| *crate_name == name)?;
    Some(below)
}

/// Edges that point up or sideways, as sentences.
fn wrong<'a>(edges: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (from, to) in edges {
        if from == TESTS {
            continue;
        }
        match may_see(from) {
            Some(below) if below.contains(&to) => {}
            Some([]) => wrong.push(format!("{from} depends on {to}; it may depend on no crate")),
            Some(below) => wrong.push(format!(
                "{from} depends on {to}; it may depend on {}",
                below.join(", ")
            )),
            None => wrong.push(format!("{from} has no place in this test's table")),
        }
    }
    wrong
}

struct Package {
    name: String,
    manifest: PathBuf,
    /// Root files of its library and programs.
    roots: Vec<PathBuf>,
    /// Crates of the workspace that it depends on, for whatever purpose.
    dependencies: Vec<String>,
}

fn packages() -> Vec<Package> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(cargo)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let metadata: Value = serde_json::from_slice(&out.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let list = |value: &Value| value.as_array().unwrap().clone();
    let packages: Vec<Package> = list(&metadata["packages"])
        .iter()
        .map(|package| Package {
            name: text(&package["name"]),
            manifest: text(&package["manifest_path"]).into(),
            roots: list(&package["targets"])
                .iter()
                .filter(|target| {
                    let kinds = list(&target["kind"]);
                    let root = ["lib", "rlib", "staticlib", "bin"];
                    kinds
                        .iter()
                        .any(|kind| root.iter().any(|root| kind == root))
                })
                .map(|target| text(&target["src_path"]).into())
                .collect(),
            dependencies: list(&package["dependencies"])
                .iter()
                .filter(|dependency| !dependency["path"].is_null())
                .map(|dependency| text(&dependency["name"]))
                .collect(),
        })
        .collect();
    assert!(packages.len() >= 8, "only {} crates found", packages.len());
    packages
}

#[test]
fn crates_depend_downwards_only() {
    let packages = packages();
    for package in &packages {
        let placed = package.name == TESTS || may_see(&package.name).is_some();
        assert!(placed, "{} has no place in this test's table", package.name);
    }
    let edges: Vec<_> = packages
        .iter()
        .flat_map(|from| {
            from.dependencies
                .iter()
                .map(|to| (from.name.as_str(), to.as_str()))
        })
        .collect();
    assert!(edges.len() >= 12, "only {} edges found", edges.len());
    let wrong = wrong(edges);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_wrong_edge_is_noticed() {
    for edge in [
        ("moai-memory", "moai-translate"),
        ("moai-translate", "moai-transport"),
        ("moai-transport", "moai-translate"),
        ("moai-transport", "moai-transport-tcp"),
        ("moai-transport-tcp", "moai-translate"),
        ("moai-transport-rdma", "moai-transport-tcp"),
        ("moai-collectives", "moai-transport-tcp"),
        ("moai-collectives", "moai-fabric"),
        ("moai-fabric", "moai"),
        ("moai-fabric", "moai-tests"),
        ("moai-fabric", "moai-perf"),
        ("moai", "moai-perf"),
        ("moai-unheard-of", "moai-memory"),
    ] {
        assert_eq!(wrong([edge]).len(), 1, "{edge:?}");
    }
    assert!(wrong([("moai-fabric", "moai-memory"), (TESTS, "moai")]).is_empty());
}

#[test]
fn unsafe_is_forbidden_everywhere_else() {
    let mut without = BTreeSet::new();
    let packages = packages();
    for package in &packages {
        for root in &package.roots {
            let text = fs::read_to_string(root).unwrap();
            if !text.lines().any(|line| line == "#![forbid(unsafe_code)]") {
                without.insert(package.name.as_str());
            }
        }
    }
    assert_eq!(
        without,
        UNSAFE.iter().copied().collect(),
        "crates without #![forbid(unsafe_code)]"
    );
}

#[test]
fn unsafe_is_allowed_in_one_module_where_that_suffices() {
    for (name, module) in UNSAFE_IN_ONE_MODULE {
        let packages = packages();
        let package = packages.iter().find(|package| package.name == *name);
        let root = &package.unwrap().roots[0];
        let text = fs::read_to_string(root).unwrap();
        assert!(text.contains("#![deny(unsafe_code)]"), "{name}");
        let source = root.parent().unwrap();
        let mut allowing = Vec::new();
        let mut folders = vec![source.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if fs::read_to_string(&path)
                    .unwrap()
                    .contains("allow(unsafe_code)")
                {
                    allowing.push(path);
                }
            }
        }
        assert_eq!(allowing, [source.join(module)], "{name}");
    }
}

#[test]
fn every_crate_takes_lints_licence_and_versions_from_the_workspace() {
    for package in packages() {
        let manifest = fs::read_to_string(&package.manifest).unwrap();
        for line in INHERITED {
            assert!(
                manifest.contains(line),
                "{} lacks `{line}`",
                package.manifest.display()
            );
        }
    }
}
