//! Plug-ins in plain C: the header suffices, and what breaks its rules is found.
//!
//! Each file under `tests/plugins` is compiled by the C compiler that the TLS library needs as well. What is written in
//! Rust goes through the conformance suite.

mod breaches;
mod device;
mod fabric;
mod header;
mod refusals;
mod told;
mod transport;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use moai_transport_plugin::{LoadError, Plugin, load};

fn compiled(source: &str, definitions: &[&str]) -> PathBuf {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().expect("a folder"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("plugins")
        .join(source);
    moai_tests::plugins::compile(&source, folder.path(), definitions)
}

/// The plug-in that breaks that rule.
fn wrong(number: u32) -> Result<Arc<Plugin>, LoadError> {
    load(&compiled("wrong.c", &[&format!("WRONG={number}")]))
}
