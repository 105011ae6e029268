//! The thread that asks a source: what changed, and whether this process is still listed.
//!
//! It alone talks to the source, one question at a time, each with a deadline. Locks are held only to copy in or out.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    DirectoryError, Options, Shared, Standing,
    announce::Announced,
    dns::Resolver,
    entry::{EngineName, Node, NodeKey},
    etcd::Cluster,
    file::{Looked, Watched},
    source::Source,
    view::View,
    wait,
};

/// Renewals within a lease's life: two may be lost.
const RENEWALS: u32 = 3;

pub(super) fn start(
    source: Source,
    options: Options,
    shared: Arc<Shared>,
) -> io::Result<JoinHandle<()>> {
    let mut asker = Asker {
        name: source.to_string(),
        way: match source {
            Source::Static(list) => Way::Static(list),
            Source::File(path) => Way::File(Watched::new(path)),
            Source::Dns(dns) => Way::Dns(Resolver::new(dns)),
            Source::Etcd(etcd) => Way::Etcd(Box::new(Cluster::new(etcd))),
        },
        options,
        shared,
        warned: None,
        is_lost: true,
    };
    let named = thread::Builder::new().name("moai-directory".into());
    named.spawn(move || asker.run())
}

#[derive(Debug)]
struct Asker {
    name: String,
    way: Way,
    options: Options,
    shared: Arc<Shared>,
    /// What was warned of last: the same problem is told once, until it is gone.
    warned: Option<String>,
    /// The source did not answer last time, and everything is to be read anew when it does.
    is_lost: bool,
}

#[derive(Debug)]
enum Way {
    Static(Vec<(EngineName, Node)>),
    File(Watched),
    Dns(Resolver),
    Etcd(Box<Cluster>),
}

impl Asker {
    fn run(&mut self) {
        loop {
            self.round();
            let mut turn = self.shared.turn();
            let start = Instant::now();
            while !turn.is_due && !turn.is_over {
                match self.options.period.checked_sub(start.elapsed()) {
                    None | Some(Duration::ZERO) => break,
                    Some(left) => turn = wait(&self.shared.asked, turn, left),
                }
            }
            turn.is_due = false;
            if turn.is_over {
                break;
            }
        }
        self.withdraw();
    }

    fn round(&mut self) {
        let found = self.find();
        let now = Instant::now();
        match found {
            Ok(found) => {
                self.is_lost = false;
                self.apply(found, now);
            }
            Err(error) => {
                self.is_lost = true;
                let problem = chain(&error);
                self.warn(&problem);
                let problem: Arc<str> = problem.into();
                self.change(|_, view| view.lost(&problem, now));
                self.doubt(&problem, now);
                return;
            }
        }
        if let Err(error) = self.keep_announced() {
            self.is_lost = true;
            let problem = chain(&error);
            self.warn(&problem);
            self.doubt(&problem, now);
        }
    }

    /// Nodes of each engine that is to be told anew, and what was wrong on the way.
    fn find(&mut self) -> Result<Found, DirectoryError> {
        let now = Instant::now();
        let mut found = Found::default();
        let engines: Vec<(EngineName, bool)> = {
            let views = self
                .shared
                .views
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            let fresh = |view: &View| view.seen.is_some() && view.stale_since.is_none();
            views
                .iter()
                .map(|(engine, view)| (engine.clone(), fresh(view)))
                .collect()
        };
        let listed = |list: &[(EngineName, Node)], engine: &EngineName| -> Vec<Node> {
            let own = list.iter().filter(|(name, _)| name == engine);
            own.map(|(_, node)| node.clone()).collect()
        };
        match &mut self.way {
            Way::Static(list) => {
                found.all = engines
                    .into_iter()
                    .map(|(engine, _)| (listed(list, &engine), engine))
                    .collect();
            }
            Way::File(file) => {
                match file.look() {
                    Ok(Looked::Same | Looked::Changed) => {}
                    // A bad version is no loss of the source: the last good one holds. It is told when it comes, and not
                    // looked at again.
                    Err(error) if error.is_bad_version() && file.has_been_good => {
                        found.problems.push(chain(&error));
                    }
                    Err(error) => return Err(error.into()),
                }
                let list = &file.entries;
                found.all = engines
                    .into_iter()
                    .map(|(engine, _)| (listed(list, &engine), engine))
                    .collect();
            }
            Way::Dns(resolver) => {
                for (engine, _) in engines {
                    found.all.push((resolver.nodes(&engine)?, engine));
                }
            }
            Way::Etcd(cluster) => {
                if self.is_lost {
                    cluster.forget();
                }
                let has_changed = cluster.has_changed(now)?;
                for (engine, is_fresh) in engines {
                    if has_changed || !is_fresh {
                        let (nodes, problems) =
                            cluster.nodes(&engine).inspect_err(|_| cluster.forget())?;
                        found.problems.extend(problems);
                        found.all.push((nodes, engine));
                    } else {
                        found.same.push(engine);
                    }
                }
            }
        }
        Ok(found)
    }

    fn apply(&mut self, found: Found, now: Instant) {
        match found.problems.first() {
            Some(problem) => self.warn(problem),
            // Entries that are not read again are as bad as they were.
            None if found.same.is_empty() => self.warned = None,
            None => {}
        }
        let grace = self.options.lease;
        let all: HashMap<EngineName, Vec<Node>> = found
            .all
            .into_iter()
            .map(|(nodes, engine)| (engine, nodes))
            .collect();
        let pins: Vec<(EngineName, NodeKey)> = self.shared.pins().keys().cloned().collect();
        self.change(|engine, view| {
            let held = |key: &NodeKey| pins.iter().any(|(name, pin)| name == engine && pin == key);
            match all.get(engine) {
                Some(nodes) => view.listing(nodes, now, grace, held),
                // Since it was not asked for, it has not changed; what is no longer listed grows older all the same.
                None if found.same.contains(engine) => {
                    let nodes: Vec<Node> = view.listed().cloned().collect();
                    view.listing(&nodes, now, grace, held)
                }
                // Followed since the question.
                None => view.clone(),
            }
        });
    }

    /// Gives each view its successor.
    fn change(&self, next: impl Fn(&EngineName, &View) -> View) {
        let mut is_new = false;
        {
            let mut views = self
                .shared
                .views
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            for (engine, view) in views.iter_mut() {
                let new = next(engine, view);
                is_new |= !view.says_as(&new);
                *view = Arc::new(new);
            }
        }
        if is_new {
            self.shared.tell();
        }
    }

    /// Makes, renews and takes back announcements.
    fn keep_announced(&mut self) -> Result<(), DirectoryError> {
        let Way::Etcd(cluster) = &mut self.way else {
            return Ok(());
        };
        let ttl = self.options.lease;
        let ids: Vec<u64> = self.shared.announced().iter().map(|one| one.id).collect();
        for id in ids {
            // Copied out: a question may take seconds, and nobody waits for it.
            let copy = |one: &Announced| {
                (
                    one.engine.clone(),
                    one.node.clone(),
                    one.lease.clone(),
                    one.renewed,
                    one.is_over,
                )
            };
            let one = self
                .shared
                .announced()
                .iter()
                .find(|one| one.id == id)
                .map(copy);
            let Some((engine, node, lease, renewed, is_over)) = one else {
                continue;
            };
            let now = Instant::now();
            let is_due =
                renewed.is_none_or(|at| now.saturating_duration_since(at) >= ttl / RENEWALS);
            let outcome = match (lease, is_over) {
                (Some(lease), true) => cluster.revoke(&lease).map(|()| None),
                (None, true) => Ok(None),
                (Some(lease), false) if !is_due => Ok(Some(lease)),
                (Some(lease), false) => match cluster.keep_alive(&lease) {
                    Ok(true) => Ok(Some(lease)),
                    // The server was down for longer than the lease, or lost its data.
                    Ok(false) => put_anew(cluster, &engine, &node, ttl).map(Some),
                    Err(error) => Err(error),
                },
                (None, false) => put_anew(cluster, &engine, &node, ttl).map(Some),
            };
            let mut announced = self.shared.announced();
            if is_over {
                // A lease that could not be revoked ends by itself.
                announced.retain(|one| one.id != id);
                continue;
            }
            let Some(one) = announced.iter_mut().find(|one| one.id == id) else {
                continue;
            };
            match outcome {
                Ok(lease) => {
                    one.lease = lease;
                    if is_due {
                        one.renewed = Some(now);
                    }
                    if !matches!(one.standing, Standing::Listed { .. }) {
                        one.standing = Standing::Listed { since: now };
                    }
                }
                Err(error) => {
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// The source may have lost what is announced; to be looked after as soon as it answers again.
    fn doubt(&self, problem: &str, now: Instant) {
        for one in self.shared.announced().iter_mut() {
            let since = match one.standing {
                Standing::Unconfirmed { since, .. } => since,
                _ => now,
            };
            one.standing = Standing::Unconfirmed {
                since,
                problem: problem.to_owned(),
            };
            one.renewed = None;
        }
    }

    /// Takes back everything, once.
    fn withdraw(&mut self) {
        for one in self.shared.announced().iter_mut() {
            one.is_over = true;
        }
        // A source that is gone forgets by itself when leases end.
        let _ = self.keep_announced();
    }

    fn warn(&mut self, problem: &str) {
        if self.warned.as_deref() != Some(problem) {
            tracing::warn!(
                source = self.name,
                reason = problem,
                "directory is not as it should be"
            );
            self.warned = Some(problem.to_owned());
        }
    }
}

/// What a round has found.
#[derive(Debug, Default)]
struct Found {
    all: Vec<(Vec<Node>, EngineName)>,
    /// Engines of which nothing has changed.
    same: Vec<EngineName>,
    problems: Vec<String>,
}

fn put_anew(
    cluster: &mut Cluster,
    engine: &EngineName,
    node: &Node,
    ttl: Duration,
) -> Result<super::etcd::Lease, super::etcd::EtcdError> {
    let lease = cluster.grant(ttl)?;
    cluster.put(engine, node, &lease)?;
    Ok(lease)
}

/// An error with its causes, for a log and for people.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // A transparent error says what its cause says.
        if !text.ends_with(&more) {
            text += &format!(": {more}");
        }
        cause = error.source();
    }
    text
}
