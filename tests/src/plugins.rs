//! Shared objects that tests load: built when they are needed, and not before.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// The shared object of an example of this package, up to date.
///
/// `cargo test` builds examples unless a single test is asked for; then cargo is run for it.
///
/// # Panics
///
/// If it cannot be built.
#[must_use]
pub fn example(name: &str) -> PathBuf {
    let path = example_path(name);
    if !is_fresh(&path) {
        build(name, &path);
    }
    path
}

/// Where the shared object of an example is, whether or not it is there.
///
/// # Panics
///
/// If this program was not built by cargo.
#[must_use]
pub fn example_path(name: &str) -> PathBuf {
    // target/PROFILE/deps/NAME-HASH, or target/PROFILE/NAME.
    let program = std::env::current_exe().expect("a program has a file");
    let folder = program.parent().expect("in a folder");
    let profile = if folder.ends_with("deps") {
        folder.parent().expect("cargo's")
    } else {
        folder
    };
    profile.join("examples").join(format!("lib{name}.so"))
}

/// Whether nothing that it was made of has changed since. Cargo writes down what that is.
fn is_fresh(path: &Path) -> bool {
    let made = |path: &Path| fs::metadata(path).and_then(|file| file.modified());
    let (Ok(built), Ok(files)) = (made(path), fs::read_to_string(path.with_extension("d"))) else {
        return false;
    };
    let Some((_, files)) = files.split_once(": ") else {
        return false;
    };
    let newer = |file: &str| made(Path::new(file)).is_ok_and(|time: SystemTime| time <= built);
    files.split_whitespace().all(newer)
}

fn build(name: &str, path: &Path) {
    let profile = path.ancestors().nth(2).expect("in a folder of a profile");
    let target = profile.parent().expect("in the target folder");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args([
            "build",
            "--offline",
            "--package",
            "moai-tests",
            "--example",
            name,
        ])
        .arg("--target-dir")
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    // What cargo tells a test of its package would look to it like another environment to build in.
    let told = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_CRATE_",
        "CARGO_BIN_",
        "CARGO_PRIMARY_",
    ];
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy();
        if told.iter().any(|start| name.starts_with(start)) || name == "OUT_DIR" {
            command.env_remove(&variable);
        }
    }
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let made = command.output().expect("cargo can be run");
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{name} cannot be built: {said}");
    assert!(path.exists(), "{} was not built: {said}", path.display());
}

/// Compiles a file of C into a shared object in `folder`, with definitions such as `WRONG=3`.
///
/// # Panics
///
/// If there is no C compiler (`cc`, or what `CC` says), which the TLS library needs as well, or it warns.
#[must_use]
pub fn compile(source: &Path, folder: &Path, definitions: &[&str]) -> PathBuf {
    let stem = source.file_stem().expect("a file").to_string_lossy();
    let suffix: String = definitions.join("-").replace('=', "");
    let path = folder.join(format!("{stem}-{suffix}.so"));
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = Command::new(compiler);
    command
        .args([
            "-std=c99",
            "-D_GNU_SOURCE",
            "-Wall",
            "-Wextra",
            "-pedantic",
            "-Werror",
            "-O1",
        ])
        .args(["-g", "-fPIC", "-shared", "-I"])
        .arg(header().parent().expect("in a folder"))
        .args(
            definitions
                .iter()
                .map(|definition| format!("-D{definition}")),
        )
        .arg("-o")
        .arg(&path)
        .arg(source)
        .arg("-lpthread");
    let made = command
        .output()
        .expect("a C compiler, `cc` or what CC says");
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{}: {said}", source.display());
    path
}

/// The header of the ABI.
#[must_use]
pub fn header() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../transport/plugin/include/moai_provider.h")
}
