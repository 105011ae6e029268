//! Builds the static library, links the shared object from it, and puts both where they belong.
//!
//! Cargo gives a shared object neither a soname nor versions of symbols; the system's linker does. What is exported is what the
//! header declares.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::USAGE;

/// Where to, and how it is built.
pub(crate) struct Options {
    prefix: PathBuf,
    profile: String,
    destdir: PathBuf,
}

/// Of the ABI: it changes if a function is changed or removed, which it is not.
const SONAME: &str = "libmoai_fabric.so.1";
const REAL_NAME: &str = "libmoai_fabric.so.1.0.0";
const SYMBOL_VERSION: &str = "MOAI_1";

/// System libraries of Rust's standard library on Linux.
const SYSTEM: &str = "-lgcc_s -lutil -lrt -lpthread -lm -ldl -lc";

impl Options {
    pub(crate) fn read(arguments: &[String]) -> Result<Self, String> {
        let (mut prefix, mut profile, mut destdir) = (None, "release".to_owned(), PathBuf::new());
        let mut arguments = arguments.iter();
        while let Some(option) = arguments.next() {
            let value = arguments.next();
            let value = value.ok_or_else(|| format!("{option} lacks its value\n{USAGE}"))?;
            match option.as_str() {
                "--prefix" => prefix = Some(PathBuf::from(value)),
                "--profile" => profile.clone_from(value),
                "--destdir" => destdir = value.into(),
                other => return Err(format!("{other} is not known\n{USAGE}")),
            }
        }
        let prefix = prefix.ok_or_else(|| format!("--prefix is missing\n{USAGE}"))?;
        let prefix = std::path::absolute(&prefix).map_err(|error| error.to_string())?;
        Ok(Self {
            prefix,
            profile,
            destdir,
        })
    }

    /// Where files go: a package's root is put before the prefix that they will have.
    fn folder(&self, name: &str) -> Result<PathBuf, String> {
        let prefix = match self.destdir.as_os_str().is_empty() {
            true => self.prefix.clone(),
            false => self
                .destdir
                .join(self.prefix.strip_prefix("/").unwrap_or(&self.prefix)),
        };
        let folder = prefix.join(name);
        let made = fs::create_dir_all(&folder);
        made.map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        Ok(folder)
    }
}

pub(crate) fn install(options: &Options) -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = root.parent().ok_or("the workspace has no folder")?;
    let header_path = root.join("bindings-c/include/moai_fabric.h");
    let header = fs::read_to_string(&header_path);
    let header =
        header.map_err(|error| format!("cannot read {}: {error}", header_path.display()))?;
    let functions = functions(&header);
    let built = build(root, &options.profile)?;
    let lib = options.folder("lib")?;
    put(&lib.join("libmoai_fabric.a"), &built)?;
    link(&lib, &built, &functions)?;
    put(
        &options.folder("include")?.join("moai_fabric.h"),
        &header_path,
    )?;
    let pc = options.folder("lib/pkgconfig")?.join("moai_fabric.pc");
    let written = fs::write(&pc, package(&options.prefix));
    written.map_err(|error| format!("cannot write {}: {error}", pc.display()))?;
    println!(
        "{} functions in {}",
        functions.len(),
        lib.join(REAL_NAME).display()
    );
    Ok(())
}

/// Functions that the header declares: names before a parenthesis at the start of a declaration.
fn functions(header: &str) -> Vec<String> {
    let mut functions = Vec::new();
    let starts = |line: &&str| {
        line.starts_with(|c: char| c.is_ascii_lowercase())
            && !line.starts_with("typedef")
            && !line.starts_with("static")
    };
    for line in header.lines().filter(starts) {
        let Some((before, _)) = line.split_once('(') else {
            continue;
        };
        let name = before.rsplit([' ', '*']).next().unwrap_or_default();
        if name.starts_with("moai_") {
            functions.push(name.to_owned());
        }
    }
    functions
}

/// Builds the static library, and finds it.
fn build(root: &Path, profile: &str) -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root).stderr(Stdio::inherit()).args([
        "build",
        "--package=moai-c",
        "--lib",
        "--message-format=json-render-diagnostics",
        "--profile",
        profile,
    ]);
    let out = command
        .output()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if !out.status.success() {
        return Err("the library does not build".to_owned());
    }
    let text = String::from_utf8_lossy(&out.stdout);
    let messages = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let files = messages.filter(|message| message["target"]["name"] == "moai_c");
    let files =
        files.flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default());
    let mut files = files.filter_map(|file| file.as_str().map(PathBuf::from));
    let found = files.find(|file| file.extension().is_some_and(|extension| extension == "a"));
    found.ok_or_else(|| "cargo built no static library".to_owned())
}

fn link(lib: &Path, archive: &Path, functions: &[String]) -> Result<(), String> {
    let real = lib.join(REAL_NAME);
    // Beside the archive, in the folder of builds.
    let script = archive.with_extension("map");
    let names: String = functions
        .iter()
        .map(|name| format!("    {name};\n"))
        .collect();
    let text = format!("{SYMBOL_VERSION} {{\n  global:\n{names}  local:\n    *;\n}};\n");
    let failed = |what: &str, error: std::io::Error| format!("cannot {what}: {error}");
    fs::write(&script, text).map_err(|error| failed("write the version script", error))?;
    let new = real.with_extension("new");
    let mut command = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    command.arg("-shared").arg("-o").arg(&new);
    command.arg(format!("-Wl,-soname,{SONAME}"));
    command.arg(format!("-Wl,--version-script={}", script.display()));
    command.args([
        "-Wl,--gc-sections",
        "-Wl,-z,defs",
        "-Wl,-z,relro",
        "-Wl,-z,now",
    ]);
    // Its static state, threads and callbacks stay as long as the process.
    command.arg("-Wl,-z,nodelete");
    // What nobody calls in an archive is left out unless it is asked for.
    command.args(
        functions
            .iter()
            .map(|name| format!("-Wl,--undefined={name}")),
    );
    command.arg(archive).args(SYSTEM.split(' '));
    let status = command
        .status()
        .map_err(|error| failed("run the linker (cc, or CC)", error))?;
    if !status.success() {
        return Err(format!("{SONAME} does not link"));
    }
    // A process that has the old one mapped keeps it.
    fs::rename(&new, &real).map_err(|error| failed("put the shared object in place", error))?;
    for (name, target) in [(SONAME, REAL_NAME), ("libmoai_fabric.so", SONAME)] {
        let path = lib.join(name);
        let _ = fs::remove_file(&path);
        symlink(target, &path).map_err(|error| failed(&format!("make the link {name}"), error))?;
    }
    Ok(())
}

fn put(to: &Path, from: &Path) -> Result<(), String> {
    let copied = fs::copy(from, to);
    let failed = |error| {
        format!(
            "cannot copy {} to {}: {error}",
            from.display(),
            to.display()
        )
    };
    copied.map(drop).map_err(failed)
}

fn package(prefix: &Path) -> String {
    let (prefix, version) = (prefix.display(), env!("CARGO_PKG_VERSION"));
    format!(
        "prefix={prefix}
libdir=${{prefix}}/lib
includedir=${{prefix}}/include

Name: moai_fabric
Description: Moves the KV cache of a language model between engines that are not alike
Version: {version}
Libs: -L${{libdir}} -lmoai_fabric
Libs.private: {SYSTEM}
Cflags: -I${{includedir}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_declarations_and_nothing_else() {
        let header = "typedef void (*moai_log_fn)(void *);\nmoai_status moai_a(int x,\n      int y);\n\
                      const char *moai_b(void); /* moai_no(it) */\nstatic inline x moai_c(void) {\n    moai_d(1);\n";
        assert_eq!(functions(header), ["moai_a", "moai_b"]);
    }

    #[test]
    fn a_package_root_stands_before_the_prefix() {
        let root = std::env::temp_dir().join(format!("moai-xtask-{}", std::process::id()));
        let words = ["--prefix", "/usr", "--destdir", root.to_str().unwrap()];
        let options = Options::read(&words.map(str::to_owned)).unwrap();
        assert_eq!(options.folder("lib").unwrap(), root.join("usr/lib"));
        fs::remove_dir_all(root).unwrap();
        assert!(Options::read(&["--prefix".to_owned()]).is_err());
    }
}
