//! One process: an engine that does what it is asked.

use std::{
    collections::HashMap,
    io::{self, BufRead, Write},
    sync::Arc,
    time::Duration,
};

use moai_collectives::{
    execute::{Agreed, Pool, Requested, convert},
    protocol::node::{ALL_LAYERS, TransferId},
    transfer::{Event, Offer, Profile, Pull},
};
use moai_fabric::{
    Engine, EngineSetup, Fabric,
    config::Config,
    directory::{Directory, Options},
};
use moai_memory::{MemoryKind, Region};

use super::line::{Ask, Moved, Say, Span, Start, Stats};
use crate::live::{Shape, config};

/// The shapes that are known by name.
pub(super) fn shape(name: &str) -> Result<Shape, String> {
    match name {
        "prefill" => Ok(Shape::PREFILL),
        "decode" => Ok(Shape::DECODE),
        _ => Err(format!("no shape is called {name}")),
    }
}

/// Does what it is asked on standard input until that ends, then ends the engine so that its peers hear of it.
///
/// # Errors
///
/// What went wrong before the engine was there.
pub fn serve() -> Result<(), String> {
    let mut lines = io::stdin().lock().lines();
    let mut next = move || -> Option<Result<Ask, String>> {
        let line = lines.next()?.ok()?;
        Some(serde_json::from_str(&line).map_err(|error| format!("{line}: {error}")))
    };
    let Some(Ask::Start(start)) = next().transpose()? else {
        return Err("the first line is not how to start".to_owned());
    };
    let mut process = Process::start(&start)?;
    let addresses = process.engine.addresses().iter();
    say(&Say::Started {
        addresses: addresses.map(ToString::to_string).collect(),
    });
    let engine = Arc::clone(&process.engine);
    let events = std::thread::spawn(move || {
        while let Ok(event) = engine.event(Duration::from_millis(100)) {
            if let Some(event) = event {
                say(&told(event));
            } else if Arc::strong_count(&engine) == 1 {
                break;
            }
        }
    });
    while let Some(ask) = next() {
        say(&match ask.and_then(|ask| process.answer(ask)) {
            Ok(answer) => answer,
            Err(why) => Say::Refused { why },
        });
    }
    drop(process);
    events
        .join()
        .map_err(|_| "the thread that tells of events is over".to_owned())
}

/// An engine, and what its memory is to be.
struct Process {
    engine: Arc<Engine>,
    shape: Shape,
    wanted: Vec<Pool>,
}

impl Process {
    fn start(start: &Start) -> Result<Self, String> {
        let shape = shape(&start.shape)?;
        let mut of_fabric = Config::default();
        let transports = start.transports.split(',').map(str::to_owned).collect();
        of_fabric.transports = Some(transports);
        of_fabric.bind =
            { start.bind.parse() }.map_err(|error| format!("{}: {error}", start.bind))?;
        // Networks here are of this host.
        of_fabric.insecure = true;
        of_fabric.max_bytes_per_second = start.rate;
        let fabric = Fabric::new(of_fabric);
        let mut node = config(&start.name, shape.tp, start.epoch);
        let ms = 1_000_000;
        (node.loss_ns, node.fence_ns) = (start.loss_ms * ms, start.loss_ms * ms);
        node.heartbeat_ns = start.loss_ms * ms / 4;
        let pools = shape.pools(fabric.pool_kind(), start.seed);
        let wanted = shape.pools(MemoryKind::Host, start.seed);
        let profile = Profile::new(true, true, shape.description());
        let engine = Engine::start(&fabric, EngineSetup::new(node, profile, pools));
        Ok(Self {
            engine: Arc::new(engine.map_err(|error| error.to_string())?),
            shape,
            wanted,
        })
    }

    fn answer(&mut self, ask: Ask) -> Result<Say, String> {
        let engine = &self.engine;
        let done = |result: Result<(), moai_fabric::EngineError>| match result {
            Ok(()) => Ok(Say::Done),
            Err(error) => Err(error.to_string()),
        };
        match ask {
            Ask::Start(_) => Err("it has started".to_owned()),
            Ask::Know {
                engine: name,
                ranks,
                addresses,
            } => {
                let addresses: Result<Vec<_>, _> =
                    addresses.iter().map(|text| text.parse()).collect();
                let addresses = addresses.map_err(|error| format!("{error}"))?;
                done(engine.know(&name, &[(0, (0..ranks).collect(), addresses)]))
            }
            Ask::Follow { source, engines } => {
                let source = source
                    .parse()
                    .map_err(|error| format!("{source}: {error}"))?;
                let mut options = Options::default();
                options.period = Duration::from_millis(100);
                let directory =
                    Directory::open(source, options).map_err(|error| error.to_string())?;
                let names: Result<Vec<_>, _> = engines.iter().map(|name| name.parse()).collect();
                let names = names.map_err(|error| format!("{error}"))?;
                done(engine.follow(Arc::new(directory), names))
            }
            Ask::Offer {
                number,
                request,
                lease_ms,
                progressive,
            } => {
                let request = asked(&self.shape, request);
                let mut offer = Offer::new(number, request, Duration::from_millis(lease_ms));
                offer.progressive = progressive;
                let handle = engine.offer(offer).map_err(|error| error.to_string())?;
                Ok(Say::Offered {
                    handle: handle.to_string(),
                })
            }
            Ask::Ready {
                offer,
                layer,
                tokens,
            } => done(engine.layer_ready(offer, layer.unwrap_or(ALL_LAYERS), tokens)),
            Ask::Withdraw { offer } => done(engine.withdraw(offer)),
            Ask::Pull {
                handle,
                request,
                deadline_ms,
                map,
            } => {
                let handle = { handle.parse() }.map_err(|error| format!("{error}"))?;
                let request = asked(&self.shape, request);
                let mut pull = Pull::new(handle, request, Duration::from_millis(deadline_ms));
                (pull.by_layer, pull.map) = (true, map);
                match engine.pull(pull).map_err(|error| error.to_string())? {
                    Ok(transfer) => Ok(Say::Pulling {
                        transfer: transfer.0,
                    }),
                    Err(failure) => Err(failure.to_string()),
                }
            }
            Ask::Cancel { transfer } => done(engine.cancel(TransferId(transfer))),
            Ask::Compare { committed, dirty } => Ok(Say::Compared {
                wrong: self.compare(&committed, &dirty)?,
            }),
            Ask::Spoil { page } => {
                let (page, pages) = (page as usize, self.shape.pages as usize);
                let spoil = move |memory: &mut [Region]| {
                    let bytes = memory[0].as_mut_slice();
                    bytes[page * (bytes.len() / pages)] ^= 1;
                };
                done(engine.with_memory(spoil))
            }
            Ask::Stats => Ok(Say::Stats(self.stats()?)),
        }
    }

    fn compare(&mut self, committed: &[Moved], dirty: &[u32]) -> Result<Vec<String>, String> {
        let mut sources = HashMap::new();
        for moved in committed {
            let producer = shape(&moved.shape)?;
            let agreed = Agreed::new(producer.descriptor(), self.shape.descriptor());
            let agreed = Arc::new(agreed.map_err(|error| error.to_string())?);
            let (its, own) = (asked(&producer, moved.from), asked(&self.shape, moved.to));
            let requested = Requested::new(agreed, its, own).map_err(|error| error.to_string())?;
            let source = sources.entry((&moved.shape, moved.seed));
            let source = source.or_insert_with(|| producer.pools(MemoryKind::Host, moved.seed));
            convert(&Arc::new(requested), source, &mut self.wanted);
        }
        let copy = |memory: &mut [Region]| -> Vec<Vec<u8>> {
            memory
                .iter()
                .map(|region| region.as_slice().to_vec())
                .collect()
        };
        let now = self
            .engine
            .with_memory(copy)
            .map_err(|error| error.to_string())?;
        let pages = self.shape.pages as usize;
        let mut wrong = Vec::new();
        for (index, (wanted, now)) in self.wanted.iter_mut().flatten().zip(&now).enumerate() {
            // A region is a layer of one rank's pages.
            let size = now.len() / pages;
            let wanted = wanted.as_mut_slice();
            for page in 0..pages {
                let at = page * size..(page + 1) * size;
                if wanted[at.clone()] == now[at.clone()] {
                    continue;
                }
                if !dirty.contains(&(page as u32)) {
                    wrong.push(format!("region {index}, page {page}"));
                }
                wanted[at.clone()].copy_from_slice(&now[at]);
            }
        }
        Ok(wrong)
    }

    fn stats(&self) -> Result<Stats, String> {
        let (_, links, size) = self.engine.counters().map_err(|error| error.to_string())?;
        let fds = std::fs::read_dir("/proc/self/fd").map_err(|error| error.to_string())?;
        let status =
            std::fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
        let kib = status.lines().find_map(|line| {
            let value = line.strip_prefix("RssAnon:")?;
            value
                .trim()
                .trim_end_matches("kB")
                .trim()
                .parse::<u64>()
                .ok()
        });
        Ok(Stats {
            size,
            links,
            // One of them reads the directory.
            fds: fds.count() - 1,
            rss_bytes: kib.ok_or("no RssAnon in /proc/self/status")? * 1024,
        })
    }
}

fn asked(shape: &Shape, span: Span) -> moai_collectives::request::Request {
    shape.request(span.tokens, span.first)
}

fn told(event: Event) -> Say {
    match event {
        Event::PeerUp { engine, epoch, .. } => Say::Up {
            engine: engine.to_string(),
            epoch,
        },
        Event::PeerLost { engine, why, .. } => Say::Lost {
            engine: engine.to_string(),
            why,
        },
        Event::Layer { transfer, layer } => Say::Layer {
            transfer: transfer.0,
            layer,
        },
        Event::Ended {
            transfer,
            report,
            fenced,
        } => Say::Ended {
            transfer: transfer.0,
            report,
            fenced,
        },
        Event::Fenced { transfer } => Say::Fenced {
            transfer: transfer.0,
        },
        Event::Released { offer, reason, .. } => Say::Released {
            offer,
            reason: reason.to_string(),
        },
        other => Say::Other {
            event: format!("{other:?}"),
        },
    }
}

/// Whoever listened may be gone; standard input tells.
fn say(what: &Say) {
    let line = serde_json::to_string(what).expect("it is made of numbers and texts");
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
