//! The nodes of this process, and what they are asked.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use moai_fabric::{
    Engine, EngineSetup, Fabric,
    collectives::{
        descriptor::Descriptor,
        protocol::{
            handle::{EngineKey, Handle},
            node::{self, TransferId},
        },
        request::Request,
        transfer::{Ended, Event, Offer, Profile, Pull},
    },
    config::Config,
    metrics::Metrics,
};
use serde_json::{Value, json};

use crate::{
    boundary,
    message::{Answer, Ask, Happened, Pages, Problem, word},
};

type Answered = Result<Value, Problem>;

/// The nodes of this process, by number. From any thread: calls for unlike nodes do not wait for each other.
#[derive(Debug, Default)]
pub struct Nodes {
    nodes: Mutex<(u64, HashMap<u64, Arc<Node>>)>,
}

/// One node.
#[derive(Debug)]
struct Node {
    engine: Engine,
    side: Descriptor,
    ranks: Vec<u32>,
    metrics: Arc<Metrics>,
    /// Numbers of transfers that are on, by what the engine calls them.
    transfers: Mutex<(u64, HashMap<TransferId, u64>)>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn local(error: impl ToString) -> Problem {
    Problem::local(error.to_string())
}

impl Nodes {
    /// Answers a message.
    #[must_use]
    pub fn answer(&self, text: &[u8]) -> Answer {
        let answered = serde_json::from_slice(text)
            .map_err(|error| local(format!("a message that cannot be read: {error}")))
            .and_then(|ask| self.ask(ask));
        match answered {
            Ok(value) => Answer::Done(value),
            Err(problem) => Answer::Problem(problem),
        }
    }

    fn ask(&self, ask: Ask) -> Answered {
        match ask {
            Ask::Open { .. } => {
                let node = Node::open(ask)?;
                let addresses = node.engine.addresses().iter();
                let addresses: Vec<String> = addresses.map(ToString::to_string).collect();
                let mut nodes = locked(&self.nodes);
                nodes.0 += 1;
                let number = nodes.0;
                nodes.1.insert(number, Arc::new(node));
                Ok(json!({ "node": number, "addresses": addresses }))
            }
            Ask::Close { node } => {
                let closed = locked(&self.nodes).1.remove(&node);
                let closed = closed.ok_or_else(|| no_node(node))?;
                // A call that is under way in another thread still has it; it is closed by whoever is last.
                if let Ok(node) = Arc::try_unwrap(closed) {
                    node.engine.close().map_err(local)?;
                }
                Ok(Value::Null)
            }
            Ask::Know { node, .. }
            | Ask::Offer { node, .. }
            | Ask::Extend { node, .. }
            | Ask::Withdraw { node, .. }
            | Ask::Pull { node, .. }
            | Ask::Cancel { node, .. }
            | Ask::Events { node, .. }
            | Ask::Metrics { node } => {
                let found = locked(&self.nodes).1.get(&node).cloned();
                found.ok_or_else(|| no_node(node))?.ask(ask)
            }
        }
    }
}

fn no_node(number: u64) -> Problem {
    local(format!(
        "there is no node {number}: it was closed, or never opened"
    ))
}

fn seconds(value: f64) -> Result<Duration, Problem> {
    Duration::try_from_secs_f64(value).map_err(|error| local(format!("{value} seconds: {error}")))
}

impl Node {
    fn open(ask: Ask) -> Result<Self, Problem> {
        let Ask::Open {
            engine,
            number,
            ranks,
            epoch,
            key,
            produces,
            consumes,
            description,
            pools,
            settings,
        } = ask
        else {
            return Err(local("not a message that opens"));
        };
        let config = config(settings)?;
        let metrics = Arc::new(Metrics::new());
        let fabric = Fabric::new(config).with_metrics(Arc::clone(&metrics));
        let text = description.to_string();
        let side = Descriptor::from_json(&text).map_err(local)?;
        let config = node::Config::new(&engine, number, ranks.clone(), epoch, EngineKey::new(key));
        let profile = Profile::new(produces, consumes, text);
        let pools: Result<Vec<Vec<_>>, String> = { pools.iter() }
            .map(|pool| pool.iter().map(boundary::tensor).collect())
            .collect();
        let setup = EngineSetup::new(config, profile, pools.map_err(local)?);
        let engine = Engine::start(&fabric, setup).map_err(local)?;
        Ok(Self {
            engine,
            side,
            ranks,
            metrics,
            transfers: Mutex::default(),
        })
    }

    fn ask(&self, ask: Ask) -> Answered {
        match ask {
            Ask::Know { engine, nodes, .. } => {
                let mut known = Vec::with_capacity(nodes.len());
                for (number, ranks, addresses) in nodes {
                    // A later build may listen in ways that are not known here.
                    let addresses = addresses.iter().filter_map(|text| text.parse().ok());
                    known.push((number, ranks, addresses.collect::<Vec<_>>()));
                }
                self.engine.know(&engine, &known).map_err(local)?;
                Ok(Value::Null)
            }
            Ask::Offer {
                number,
                pages,
                lease,
                name,
                ..
            } => {
                let mut offer = Offer::new(number, self.request(pages)?, seconds(lease)?);
                offer.name = name;
                let handle = self.engine.offer(offer).map_err(local)?;
                Ok(handle.to_string().into())
            }
            Ask::Extend { number, lease, .. } => {
                let extended = self.engine.extend(number, seconds(lease)?);
                extended.map(|()| Value::Null).map_err(local)
            }
            Ask::Withdraw { number, .. } => {
                let withdrawn = self.engine.withdraw(number);
                withdrawn.map(|()| Value::Null).map_err(local)
            }
            Ask::Pull {
                handle,
                pages,
                deadline,
                name,
                ..
            } => {
                let handle: Handle = handle.parse().map_err(local)?;
                let mut pull = Pull::new(handle, self.request(pages)?, seconds(deadline)?);
                pull.name = name;
                // Nothing can end before it has its number.
                let mut transfers = locked(&self.transfers);
                let begun = self.engine.pull(pull).map_err(local)?;
                let transfer = begun.map_err(|failure| Problem::of(&failure))?;
                transfers.0 += 1;
                let number = transfers.0;
                transfers.1.insert(transfer, number);
                Ok(number.into())
            }
            Ask::Cancel { transfer, .. } => {
                let transfers = locked(&self.transfers);
                let found = transfers.1.iter().find(|(_, number)| **number == transfer);
                if let Some((&transfer, _)) = found {
                    self.engine.cancel(transfer).map_err(local)?;
                }
                Ok(Value::Null)
            }
            Ask::Events { wait, .. } => {
                let mut happened = Vec::new();
                let mut wait = seconds(wait)?;
                while let Some(event) = self.engine.event(wait).map_err(local)? {
                    wait = Duration::ZERO;
                    happened.extend(self.happened(event));
                }
                serde_json::to_value(happened).map_err(local)
            }
            Ask::Metrics { .. } => Ok(self.metrics.text().into()),
            Ask::Open { .. } | Ask::Close { .. } => Err(local("not for a node")),
        }
    }

    fn request(&self, pages: Pages) -> Result<Request, Problem> {
        let mut request = Request::new(&self.side, pages.tokens);
        request.first = pages.first;
        if let Some(digest) = pages.digest {
            request.coverage = digest;
        }
        if pages.groups.len() != request.groups() {
            let (given, has) = (pages.groups.len(), request.groups());
            return Err(local(format!(
                "pages of {given} groups are given; the description has {has}"
            )));
        }
        for (group, pages) in pages.groups.iter().enumerate() {
            for &rank in &self.ranks {
                request.give(rank..rank + 1, group, pages).map_err(local)?;
            }
        }
        Ok(request)
    }

    fn happened(&self, event: Event) -> Option<Happened> {
        let number = |transfer: &TransferId| locked(&self.transfers).1.get(transfer).copied();
        match event {
            Event::Ended {
                transfer,
                report,
                fenced,
            } => {
                let at = number(&transfer)?;
                if fenced {
                    locked(&self.transfers).1.remove(&transfer);
                }
                let problem = match &report.ended {
                    Ended::Committed => None,
                    Ended::Failed { failure, .. } => Some(Problem::of(failure)),
                    Ended::Cancelled { .. } => Some(Problem {
                        reason: "cancelled".into(),
                        why: "it was taken back".into(),
                    }),
                };
                Some(Happened::Ended {
                    transfer: at,
                    fenced,
                    problem,
                    report,
                })
            }
            Event::Fenced { transfer } => {
                let removed = locked(&self.transfers).1.remove(&transfer);
                removed.map(|transfer| Happened::Fenced { transfer })
            }
            Event::Released { offer, reason, .. } => Some(Happened::Released {
                offer,
                reason: word(&reason),
            }),
            Event::PeerUp { engine, node, .. } => Some(Happened::PeerUp {
                engine: engine.to_string(),
                node,
            }),
            Event::PeerLost { engine, node, why } => Some(Happened::PeerLost {
                engine: engine.to_string(),
                node,
                why,
            }),
            _ => None,
        }
    }
}

/// What the environment says, and what is given instead.
fn config(given: BTreeMap<String, String>) -> Result<Config, Problem> {
    let environment = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        let ours = name.starts_with("MOAI_") && !given.contains_key(&name);
        ours.then(|| (name, value.to_string_lossy().into_owned()))
    });
    let environment: Vec<_> = environment.collect();
    Config::from_vars(environment.into_iter().chain(given)).map_err(local)
}
