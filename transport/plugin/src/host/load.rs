//! Opening a shared object, and believing it step by step.

use std::ffi::{CStr, CString, c_char};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use moai_transport::Address;
use thiserror::Error;
use tracing::{debug, error, warn};

use super::provider::{Opening, PluginProvider};
use crate::abi;
use crate::memory::TableDomain;
use crate::text;

/// A shared object that was loaded. It is never unloaded.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Plugin {
    /// Its file.
    pub path: PathBuf,
    /// What it calls itself.
    pub name: String,
    /// Its version, of whatever form.
    pub version: String,
    /// The version of the ABI that it was compiled for.
    pub abi: (u16, u16),
    /// Ways of moving bytes.
    pub transports: Vec<PluginProvider>,
    /// Devices.
    pub domains: Vec<TableDomain>,
}

impl fmt::Display for Plugin {
    /// Its name, versions and file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            version,
            abi: (major, minor),
            path,
            ..
        } = self;
        let path = path.display();
        write!(
            f,
            "plug-in {name} {version} (ABI {major}.{minor}) from {path}"
        )
    }
}

/// A shared object is no plug-in that can be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// There is no such file, or the system cannot load it.
    #[error("plug-in {path} cannot be loaded: {reason}")]
    Open {
        /// The file.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// It has no entry of this version.
    #[error(
        "plug-in {path} has no symbol {symbol}: it is no provider of MoAI Fabric, or for another major version of its ABI than {}",
        abi::MAJOR
    )]
    Symbol {
        /// The file.
        path: String,
        /// What was looked for.
        symbol: &'static str,
    },
    /// It does not want to serve this host.
    #[error("plug-in {path} does not serve this host; its log says why")]
    Refused {
        /// The file.
        path: String,
    },
    /// It says that it is of another major version than its entry.
    #[error("plug-in {path} is for version {theirs} of the ABI, and this build has {ours}")]
    Version {
        /// The file.
        path: String,
        /// Its major version.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// One of its structs is shorter than any version's.
    #[error("plug-in {path} has a {what} of {bytes} bytes, and the least is {least}")]
    Size {
        /// The file.
        path: String,
        /// Which one.
        what: String,
        /// What it says of its size.
        bytes: u32,
        /// What version 1.0 has.
        least: usize,
    },
    /// Something is NULL that must not be.
    #[error("plug-in {path} has no {what}, which must not be NULL")]
    Missing {
        /// The file.
        path: String,
        /// What is missing.
        what: String,
    },
    /// A name or number that cannot be.
    #[error("plug-in {path}: {what} is {seen}, expected {expected}")]
    Value {
        /// The file.
        path: String,
        /// What it is of.
        what: &'static str,
        /// What it is.
        seen: String,
        /// What it can be.
        expected: &'static str,
    },
    /// A device that cannot be used.
    #[error("plug-in {path} has {problem}")]
    Domain {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
}

/// Transports, or devices, that a plug-in may have.
const MAX_TABLES: u64 = 16;
/// Longest name of a transport, in bytes.
const MAX_NAME_BYTES: usize = 32;

/// Files that are loaded.
static LOADED: Mutex<Vec<Arc<Plugin>>> = Mutex::new(Vec::new());

/// Loads a shared object, checks it, and keeps it; the same file again is the same plug-in.
///
/// This runs code of the file: load only what you would link.
///
/// # Errors
///
/// [`LoadError`], a sentence with the file.
pub fn load(path: &Path) -> Result<Arc<Plugin>, LoadError> {
    let shown = path.display().to_string();
    let open = |reason: String| LoadError::Open {
        path: shown.clone(),
        reason,
    };
    // So that no folder is searched, and the same file has one name.
    let path = path
        .canonicalize()
        .map_err(|error| open(error.to_string()))?;
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = loaded.iter().find(|known| known.path == path) {
        return Ok(Arc::clone(known));
    }
    let file =
        CString::new(path.as_os_str().as_bytes()).map_err(|error| open(error.to_string()))?;
    // SAFETY: a path; what the file runs when it is loaded is as good as linked.
    let library = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if library.is_null() {
        return Err(open(system_reason()));
    }
    let symbol = text::c_string(abi::ENTRY);
    // SAFETY: a library that is open, and a name.
    let entry = unsafe { libc::dlsym(library, symbol.as_ptr()) };
    if entry.is_null() {
        return Err(LoadError::Symbol {
            path: shown,
            symbol: abi::ENTRY,
        });
    }
    type Entry = unsafe extern "C" fn(*const abi::Host) -> *const abi::Plugin;
    // SAFETY: the symbol is the entry of the header, whose name has its version.
    let entry = unsafe { std::mem::transmute::<*mut libc::c_void, Entry>(entry) };
    // SAFETY: by the rules of the header; the host's table lives as long as the process.
    let raw = unsafe { entry(&raw const HOST.0) };
    // SAFETY: by the rules of the header what it gives lives as long as the process.
    let plugin = Arc::new(unsafe { read(&path, &shown, raw) }?);
    loaded.push(Arc::clone(&plugin));
    Ok(plugin)
}

/// What was loaded so far.
#[must_use]
pub fn loaded() -> Vec<Arc<Plugin>> {
    LOADED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

/// # Safety
///
/// NULL, or what an entry has given.
unsafe fn read(path: &Path, shown: &str, raw: *const abi::Plugin) -> Result<Plugin, LoadError> {
    let file = || shown.to_owned();
    if raw.is_null() {
        return Err(LoadError::Refused { path: file() });
    }
    // SAFETY: by contract it begins with its size.
    let plugin = unsafe { sized(shown, "plug-in", raw) }?;
    if plugin.major != abi::MAJOR {
        return Err(LoadError::Version {
            path: file(),
            theirs: plugin.major,
            ours: abi::MAJOR,
        });
    }
    for (what, count, is_null) in [
        (
            "number of transports",
            plugin.transport_count,
            plugin.transports.is_null(),
        ),
        (
            "number of domains",
            plugin.domain_count,
            plugin.domains.is_null(),
        ),
    ] {
        if count > MAX_TABLES || (count > 0 && is_null) {
            return Err(LoadError::Value {
                path: file(),
                what,
                seen: if is_null {
                    format!("{count} at NULL")
                } else {
                    count.to_string()
                },
                expected: "at most 16",
            });
        }
    }
    if plugin.transport_count + plugin.domain_count == 0 {
        return Err(LoadError::Missing {
            path: file(),
            what: "transport and no domain".to_owned(),
        });
    }
    let named = |text: *const c_char, what: &str| {
        // SAFETY: by contract NULL or a text that lives as long as the process.
        let name = unsafe { text::borrowed(text) };
        let name = name.map(|name| name.to_string_lossy().into_owned());
        name.ok_or_else(|| LoadError::Missing {
            path: file(),
            what: what.to_owned(),
        })
    };
    let name = named(plugin.name, "name")?;
    let version = named(plugin.version, "version")?;
    let abi = (plugin.major, plugin.minor);
    let mut loading = Plugin {
        path: path.to_owned(),
        name,
        version,
        abi,
        transports: Vec::new(),
        domains: Vec::new(),
    };
    let origin = loading.to_string();
    let mut transports: Vec<PluginProvider> = Vec::new();
    for at in 0..plugin.transport_count as usize {
        // SAFETY: by contract there are so many.
        let raw = unsafe { *plugin.transports.wrapping_add(at) };
        // SAFETY: by contract NULL or a table.
        let table = unsafe { sized(shown, "table of a transport", raw) }?;
        let name = named(table.name, "name of a transport")?;
        if Address::new(&name, "x").is_err() || name.len() > MAX_NAME_BYTES {
            return Err(LoadError::Value {
                path: file(),
                what: "the name of a transport",
                seen: format!("{name:?}"),
                expected: "lower-case letters and digits, at most 32",
            });
        }
        if transports.iter().any(|one| one.name == name) {
            return Err(LoadError::Value {
                path: file(),
                what: "the name of a second transport",
                seen: format!("{name:?}"),
                expected: "another than that of the first",
            });
        }
        complete(shown, &name, &table)?;
        transports.push(PluginProvider {
            name: Box::leak(name.into_boxed_str()),
            table: Box::leak(Box::new(table)),
            origin: origin.clone(),
            path: path.to_owned(),
            opening: Opening::default(),
        });
    }
    let mut domains = Vec::new();
    for at in 0..plugin.domain_count as usize {
        // SAFETY: by contract there are so many.
        let raw = unsafe { *plugin.domains.wrapping_add(at) };
        // SAFETY: by contract NULL or a table that keeps the rules of the header.
        let domain = unsafe { TableDomain::of(raw) };
        domains.push(domain.map_err(|problem| LoadError::Domain {
            path: file(),
            problem,
        })?);
    }
    debug!(reason = origin, "plug-in loaded");
    (loading.transports, loading.domains) = (transports, domains);
    Ok(loading)
}

/// Reads a struct that must have at least what version 1.0 has, which is what this build has.
///
/// # Safety
///
/// As for [`abi::read`].
unsafe fn sized<T: abi::Sized32>(path: &str, what: &str, at: *const T) -> Result<T, LoadError> {
    let least = size_of::<T>();
    if at.is_null() {
        return Err(LoadError::Missing {
            path: path.to_owned(),
            what: what.to_owned(),
        });
    }
    // SAFETY: by contract it begins with its size.
    let bytes = unsafe { at.cast::<u32>().read() };
    if (bytes as usize) < least {
        return Err(LoadError::Size {
            path: path.to_owned(),
            what: what.to_owned(),
            bytes,
            least,
        });
    }
    // SAFETY: by contract.
    unsafe { abi::read(at) }.map_err(|bytes| LoadError::Size {
        path: path.to_owned(),
        what: what.to_owned(),
        bytes,
        least,
    })
}

/// Whether a transport has all its functions.
fn complete(path: &str, name: &str, table: &abi::Transport) -> Result<(), LoadError> {
    macro_rules! missing {
        ($($function:ident)*) => {
            [$((stringify!($function), table.$function.is_none())),*]
        };
    }
    let functions = missing!(
        probe obstacle open destroy addresses connect send post register_memory deregister
        remote_key import_key put get map flush completion poll wait_fd arm close finish path
        identity stats
    );
    match functions.into_iter().find(|(_, is_missing)| *is_missing) {
        None => Ok(()),
        Some((function, _)) => Err(LoadError::Missing {
            path: path.to_owned(),
            what: format!("function {function} of transport {name}"),
        }),
    }
}

fn system_reason() -> String {
    // SAFETY: it gives a text of the system, or NULL, that is there until the next such call of this thread.
    let reason = unsafe { libc::dlerror() };
    // SAFETY: as above.
    let reason = unsafe { text::borrowed(reason) };
    reason.map_or_else(
        || "the system does not say why".to_owned(),
        |reason| reason.to_string_lossy().into_owned(),
    )
}

/// What a plug-in is told of this host.
struct OfHost(abi::Host);

// SAFETY: it is only looked at.
unsafe impl Sync for OfHost {}

static HOST: OfHost = OfHost(abi::Host {
    size: size_of::<abi::Host>() as u32,
    major: abi::MAJOR,
    minor: abi::MINOR,
    version: VERSION.as_ptr(),
    log: Some(log),
});

const VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("a version without NUL"),
    };

unsafe extern "C" fn log(level: u32, line: *const c_char) {
    // SAFETY: as the header says NULL by mistake, or a text that is there during the call.
    let Some(line) = (unsafe { text::borrowed(line) }) else {
        return;
    };
    let reason = line.to_string_lossy();
    match level {
        abi::LOG_ERROR => error!(%reason, "a plug-in says"),
        abi::LOG_WARN => warn!(%reason, "a plug-in says"),
        _ => debug!(%reason, "a plug-in says"),
    }
}
