//! Who is where: names of engines to nodes and their addresses.
//!
//! A [`Directory`] follows a [`Source`]: a list, a file, name servers or etcd. A thread of its own asks; whoever looks up a
//! name gets the last that is known, with its age, and waits for nothing. When the source is lost everything known stays,
//! marked with since when it is stale; when it is back, new nodes appear. A node that somebody is linked to, and has
//! [pinned](Directory::pin), is kept even where the source has forgotten it.
//!
//! A node [announces](Directory::announce) itself where the source takes entries (etcd), under a lease that is kept alive
//! and taken anew after the server, or its data, was lost. What it advertises is apart from what it listens on; see
//! [`advertise`].
//!
//! Entries are input of peers: bounded, decoded without trust, and only ever a hint of where to connect. Who answers there
//! is for the handshake to find out.

pub mod advertise;
mod announce;
mod dns;
mod entry;
mod etcd;
mod file;
mod fixed;
mod refresh;
mod source;
mod view;

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use thiserror::Error;

use self::announce::Announced;
pub use self::{
    advertise::{AdvertiseError, Audience},
    announce::{Announcement, Standing},
    dns::{Answer, DnsError, Record, read_answer},
    entry::{EngineName, EntryError, Node, NodeKey},
    etcd::EtcdError,
    file::{DirectoryFileError, decode as read_file},
    source::{Dns, Etcd, Source, SourceError},
    view::{Known, View},
};
use crate::limits::{MAX_ANNOUNCED, MAX_WATCHED_ENGINES};

/// How a directory goes about it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// How often the source is asked. A file is looked at, etcd asked for its revision, name servers asked for everything.
    pub period: Duration,
    /// How long an announcement outlives its process, in whole seconds; it is renewed three times in that. A node that was
    /// killed is listed for so long, and one that the source forgot is kept for so long.
    pub lease: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(1),
            lease: Duration::from_secs(10),
        }
    }
}

/// Names of engines to their nodes, as a [`Source`] has them.
///
/// ```
/// use moai_fabric::directory::{Directory, EngineName, Options};
///
/// let source = "static:decode=tcp:10.0.0.7:4000;decode=tcp:10.0.0.8:4000".parse()?;
/// let directory = Directory::open(source, Options::default())?;
/// let decode: EngineName = "decode".parse()?;
/// let view = directory.watch(&decode)?;
/// assert_eq!(view.listed().count(), 2);
/// assert_eq!(view.stale_since, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Directory {
    shared: Arc<Shared>,
    source: Source,
    thread: Option<JoinHandle<()>>,
}

/// A node that is kept in views while this lives: somebody is linked to it.
#[derive(Debug)]
pub struct Pin {
    shared: Arc<Shared>,
    engine: EngineName,
    key: NodeKey,
}

/// A directory cannot be had, or cannot do what it was asked to.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// A source does not answer, or says what cannot be. Worth a retry; the directory retries by itself.
    #[error(transparent)]
    File(#[from] DirectoryFileError),
    /// As above, of name servers.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// As above, of etcd.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// Nodes cannot announce themselves there.
    #[error("a {kind} directory takes no announcements: whoever deploys the node lists it there")]
    ReadOnly {
        /// The kind of source.
        kind: &'static str,
    },
    /// An announcement is of a node without a number, which is its key.
    #[error("a node is announced by its number, and this one has none")]
    Unnumbered,
    /// No peer could connect to what is announced.
    #[error(transparent)]
    Advertise(#[from] AdvertiseError),
    /// More than a process needs.
    #[error("this process already has {most} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        most: usize,
    },
    /// The thread that asks could not be started.
    #[error("cannot start the thread that asks the directory")]
    Thread {
        /// Why not.
        #[source]
        cause: std::io::Error,
    },
}

/// What the asking thread and the others have in common.
#[derive(Debug, Default)]
struct Shared {
    views: RwLock<HashMap<EngineName, Arc<View>>>,
    pins: Mutex<HashMap<(EngineName, NodeKey), usize>>,
    announced: Mutex<Vec<Announced>>,
    turn: Mutex<Turn>,
    changed: Condvar,
    asked: Condvar,
}

/// When who has something to do.
#[derive(Debug, Default)]
struct Turn {
    /// Raised whenever some view says something else than before.
    version: u64,
    /// Something was asked for, and the thread is not to wait for its period.
    is_due: bool,
    is_over: bool,
}

impl Directory {
    /// Follows a source. One that does not answer yet is asked until it does.
    ///
    /// # Errors
    ///
    /// [`DirectoryError`] if the thread cannot be started.
    pub fn open(source: Source, options: Options) -> Result<Self, DirectoryError> {
        let shared = Arc::new(Shared::default());
        let thread = refresh::start(source.clone(), options, shared.clone())
            .map_err(|cause| DirectoryError::Thread { cause })?;
        Ok(Self {
            shared,
            source,
            thread: Some(thread),
        })
    }

    /// Where it gets its entries from.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Follows an engine from now on, and gives what is known of it after the source was first asked, or has failed to
    /// answer: no longer than that takes. The same as [`view`](Self::view) for one that is followed already.
    ///
    /// # Errors
    ///
    /// [`DirectoryError::TooMany`] if this process follows as many as it can.
    pub fn watch(&self, engine: &EngineName) -> Result<Arc<View>, DirectoryError> {
        {
            let mut views = self
                .shared
                .views
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            if !views.contains_key(engine) {
                if views.len() >= MAX_WATCHED_ENGINES {
                    return Err(DirectoryError::TooMany {
                        what: "engines that it follows",
                        most: MAX_WATCHED_ENGINES,
                    });
                }
                views.insert(engine.clone(), Arc::default());
                self.shared.ask();
            }
        }
        let asked = |view: &View| view.seen.is_some() || view.stale_since.is_some();
        let mut turn = self.shared.turn();
        loop {
            match self.view(engine) {
                Some(view) if asked(&view) || turn.is_over => return Ok(view),
                _ => turn = wait(&self.shared.changed, turn, Duration::from_secs(1)),
            }
        }
    }

    /// What is known of an engine that is [followed](Self::watch). Waits for nothing.
    #[must_use]
    pub fn view(&self, engine: &EngineName) -> Option<Arc<View>> {
        let views = self
            .shared
            .views
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        views.get(engine).cloned()
    }

    /// Counts changes of any view, for [`wait`](Self::wait).
    #[must_use]
    pub fn version(&self) -> u64 {
        self.shared.turn().version
    }

    /// Waits until some view has changed since it had this version, or time is up; the version then.
    #[must_use]
    pub fn wait(&self, version: u64, limit: Duration) -> u64 {
        let start = Instant::now();
        let mut turn = self.shared.turn();
        while turn.version == version && !turn.is_over {
            match limit.checked_sub(start.elapsed()) {
                None | Some(Duration::ZERO) => break,
                Some(left) => turn = wait(&self.shared.changed, turn, left),
            }
        }
        turn.version
    }

    /// Keeps a node in views, whatever becomes of the source, for as long as the pin lives.
    #[must_use]
    pub fn pin(&self, engine: &EngineName, key: &NodeKey) -> Pin {
        let (engine, key) = (engine.clone(), key.clone());
        *self
            .shared
            .pins()
            .entry((engine.clone(), key.clone()))
            .or_default() += 1;
        Pin {
            shared: self.shared.clone(),
            engine,
            key,
        }
    }

    /// Announces a node of this process until the announcement is dropped. It is made as soon as the source answers, and
    /// again whenever the source has lost it.
    ///
    /// # Errors
    ///
    /// [`DirectoryError`] if the source takes no announcements, or if peers could not connect to an address.
    pub fn announce(
        &self,
        engine: &EngineName,
        node: Node,
    ) -> Result<Announcement, DirectoryError> {
        if !matches!(self.source, Source::Etcd(_)) {
            return Err(DirectoryError::ReadOnly {
                kind: self.source.kind(),
            });
        }
        if node.number.is_none() {
            return Err(DirectoryError::Unnumbered);
        }
        for address in &node.addresses {
            advertise::check(address, self.source.audience())?;
        }
        let announcement = {
            let mut announced = self.shared.announced();
            if announced.len() >= MAX_ANNOUNCED {
                return Err(DirectoryError::TooMany {
                    what: "announcements",
                    most: MAX_ANNOUNCED,
                });
            }
            let new = Announced::new(engine.clone(), node);
            let announcement = Announcement::new(self.shared.clone(), &new);
            announced.push(new);
            announcement
        };
        self.shared.ask();
        Ok(announcement)
    }
}

impl Drop for Directory {
    /// Takes back what is announced, if the source answers within its patience.
    fn drop(&mut self) {
        self.shared.turn().is_over = true;
        self.shared.asked.notify_all();
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.shared.pins();
        let key = (self.engine.clone(), self.key.clone());
        if let Some(count) = pins.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&key);
            }
        }
    }
}

/// Nothing that panics runs under these locks, so what a poisoned one holds is as good as ever.
impl Shared {
    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pins(&self) -> MutexGuard<'_, HashMap<(EngineName, NodeKey), usize>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announced(&self) -> MutexGuard<'_, Vec<Announced>> {
        self.announced
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread is not to wait for its period.
    fn ask(&self) {
        self.turn().is_due = true;
        self.asked.notify_all();
    }

    /// Views say something else than before.
    fn tell(&self) {
        self.turn().version += 1;
        self.changed.notify_all();
    }
}

fn wait<'a>(on: &Condvar, turn: MutexGuard<'a, Turn>, limit: Duration) -> MutexGuard<'a, Turn> {
    on.wait_timeout(turn, limit)
        .unwrap_or_else(PoisonError::into_inner)
        .0
}
