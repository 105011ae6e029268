//! Entries in a JSON file, read again when it changes.
//!
//! The file is looked at, not watched: what a cluster mounts as a file is often replaced through a link, or lies where no
//! notice of changes comes from.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use thiserror::Error;

use super::{
    entry::{EngineName, EntryError, Node, RawNode, shortened},
    fixed,
};
use crate::limits::MAX_DIRECTORY_FILE_BYTES;

/// A file, and what it last said.
#[derive(Debug)]
pub(super) struct Watched {
    path: PathBuf,
    /// The version that was read last, good or not: a bad one is not read again until it changes.
    stamp: Option<Stamp>,
    /// Whether there was a good version.
    pub(super) has_been_good: bool,
    /// The last one.
    pub(super) entries: Vec<(EngineName, Node)>,
}

/// What changes when a file does, or another takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

/// What looking at a file has come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Looked {
    /// It is as it was.
    Same,
    /// It says something else.
    Changed,
}

/// A directory file cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DirectoryFileError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Io {
        /// Its path.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// It is longer than directories are.
    #[error("{path} has more than {most} bytes")]
    Long {
        /// Its path.
        path: PathBuf,
        /// The limit.
        most: usize,
    },
    /// It is not the JSON of a directory.
    #[error("{path} is not what a directory is written as")]
    Json {
        /// Its path.
        path: PathBuf,
        /// Where, and what was expected.
        #[source]
        cause: serde_json::Error,
    },
    /// An entry cannot be.
    #[error("{path} cannot be used: engine {engine:?}")]
    Entry {
        /// Its path.
        path: PathBuf,
        /// The engine.
        engine: String,
        /// What is wrong.
        #[source]
        cause: EntryError,
    },
}

impl DirectoryFileError {
    /// Whether the file is there, and what it says cannot be.
    pub(super) fn is_bad_version(&self) -> bool {
        !matches!(self, Self::Io { .. })
    }
}

impl Watched {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            stamp: None,
            has_been_good: false,
            entries: Vec::new(),
        }
    }

    /// Reads the file if it has changed. A version that cannot be used leaves the last good one in place.
    pub(super) fn look(&mut self) -> Result<Looked, DirectoryFileError> {
        let io = |cause| DirectoryFileError::Io {
            path: self.path.clone(),
            cause,
        };
        let stamp = Stamp::of(&fs::metadata(&self.path).map_err(io)?);
        if self.stamp == Some(stamp) && self.has_been_good {
            return Ok(Looked::Same);
        }
        let mut bytes = Vec::new();
        let file = File::open(&self.path).map_err(io)?;
        // Of what is opened: another may have taken the name since.
        let stamp = Stamp::of(&file.metadata().map_err(io)?);
        let most = MAX_DIRECTORY_FILE_BYTES as u64 + 1;
        file.take(most).read_to_end(&mut bytes).map_err(io)?;
        self.stamp = Some(stamp);
        let entries = decode(&self.path, &bytes)?;
        let changed = self.entries != entries || !self.has_been_good;
        self.has_been_good = true;
        self.entries = entries;
        Ok(match changed {
            true => Looked::Changed,
            false => Looked::Same,
        })
    }
}

impl Stamp {
    fn of(data: &fs::Metadata) -> Self {
        Self {
            device: data.dev(),
            inode: data.ino(),
            bytes: data.size(),
            modified: (data.mtime(), data.mtime_nsec()),
        }
    }
}

#[derive(Debug, Deserialize)]
struct RawFile {
    engines: BTreeMap<String, Vec<RawNode>>,
}

/// The entries of a directory file, `path` being its name in errors.
///
/// # Errors
///
/// [`DirectoryFileError`]: it is too long, is no JSON of this form, or an entry says what cannot be.
pub fn decode(path: &Path, bytes: &[u8]) -> Result<Vec<(EngineName, Node)>, DirectoryFileError> {
    if bytes.len() > MAX_DIRECTORY_FILE_BYTES {
        return Err(DirectoryFileError::Long {
            path: path.into(),
            most: MAX_DIRECTORY_FILE_BYTES,
        });
    }
    let json = |cause| DirectoryFileError::Json {
        path: path.into(),
        cause,
    };
    let raw: RawFile = serde_json::from_slice(bytes).map_err(json)?;
    let mut list = Vec::new();
    for (name, nodes) in raw.engines {
        let entry = |cause| DirectoryFileError::Entry {
            path: path.into(),
            engine: shortened(&name),
            cause,
        };
        let engine: EngineName = name.parse().map_err(entry)?;
        let from = list.len();
        for node in nodes {
            list.push((engine.clone(), node.try_into().map_err(entry)?));
        }
        fixed::check(&list[from..]).map_err(entry)?;
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(engine: &str, address: &str) -> String {
        format!(r#"{{"engines": {{"{engine}": [{{"node": 0, "addresses": ["{address}"]}}]}}}}"#)
    }

    #[test]
    fn what_replaces_the_file_is_read_and_what_is_bad_leaves_the_last_good() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("directory.json");
        let mut watched = Watched::new(path.clone());
        assert!(matches!(watched.look(), Err(DirectoryFileError::Io { .. })));

        fs::write(&path, text("decode", "tcp:h:1")).unwrap();
        assert_eq!(watched.look().unwrap(), Looked::Changed);
        assert_eq!(watched.look().unwrap(), Looked::Same);
        let good = watched.entries.clone();

        // In one step, as whoever must not be read half-written does. Length and, if quick enough, time are the same.
        let replace = |text: &str| {
            let other = folder.path().join("other.json");
            fs::write(&other, text).unwrap();
            fs::rename(&other, &path).unwrap();
        };
        replace("{\"engines\": {\"decode\": [{}]}}");
        let error = watched.look().unwrap_err();
        assert!(matches!(error, DirectoryFileError::Json { .. }), "{error}");
        assert_eq!(watched.entries, good);
        // Told once.
        assert_eq!(watched.look().unwrap(), Looked::Same);
        assert_eq!(watched.entries, good);

        replace(&text("decode", "tcp:h:2"));
        assert_eq!(watched.look().unwrap(), Looked::Changed);
        assert_eq!(watched.entries[0].1.addresses[0].to_string(), "tcp:h:2");

        fs::remove_file(&path).unwrap();
        assert!(watched.look().is_err());
        assert_eq!(watched.entries.len(), 1);
    }

    #[test]
    fn what_cannot_be_names_the_file_and_the_engine() {
        let decode = |text: &str| decode(Path::new("/etc/moai.json"), text.as_bytes());
        for (text, problem) in [
            (text("a/b", "tcp:h:1"), "engine \"a/b\""),
            (text("a", "tcp:0.0.0.0:1"), "engine \"a\""),
            ("{}".into(), "not what a directory is written as"),
        ] {
            let error = decode(&text).unwrap_err().to_string();
            assert!(
                error.contains("/etc/moai.json") && error.contains(problem),
                "{error}"
            );
        }
        let twice = r#"{"engines": {"a": [{"node": 1, "addresses": ["tcp:h:1"]}, {"node": 1, "addresses": ["tcp:h:2"]}]}}"#;
        assert!(decode(twice).is_err());
        let long = vec![b' '; MAX_DIRECTORY_FILE_BYTES + 1];
        assert!(matches!(
            super::decode(Path::new("x"), &long),
            Err(DirectoryFileError::Long { .. })
        ));
    }
}
