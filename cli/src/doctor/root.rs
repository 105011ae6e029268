//! Where a host's files are: at `/`, or below a folder that stands for it.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

/// Bytes of a file that are looked at: files of the kernel are shorter, and the loader's cache of a host with everything
/// installed is a few hundred kilobytes.
const MAX_BYTES: u64 = 4 << 20;

/// The root of a file system.
#[derive(Clone, Debug)]
pub(super) struct Root(PathBuf);

impl Root {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Whether it is this host.
    pub(super) fn is_here(&self) -> bool {
        self.0 == Path::new("/")
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// A file's bytes, the first of them if it is long.
    pub(super) fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = fs::File::open(self.at(path)).ok()?;
        file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// A file's text, without blanks around it; `None` if there is none.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        let text = String::from_utf8(self.bytes(path)?).ok()?;
        Some(text.trim().to_owned())
    }

    /// The number that a file holds.
    pub(super) fn number(&self, path: &str) -> Option<i64> {
        self.text(path)?.parse().ok()
    }

    /// Names in a folder, in order.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.at(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.at(path).exists()
    }

    /// The last name on the way that links lead.
    pub(super) fn leads_to(&self, path: &str) -> Option<String> {
        let link = fs::read_link(self.at(path)).ok()?;
        Some(link.file_name()?.to_str()?.to_owned())
    }
}
