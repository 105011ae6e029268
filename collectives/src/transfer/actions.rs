//! What a driver does about each action of its node.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use moai_memory::Region;

use super::{
    Event, Network, Pull, Report,
    borrowed::{self, Borrowed},
    core::Core,
    device::{Fetching, Placing},
    driver::{Driver, Unreached},
    pulling::{Part, Pulling, pool},
    serving::{Ask, Serving, stream_of},
};
use crate::{
    cost::{self, Way},
    execute::{Requested, Runner},
    limits::MAX_ENGINES,
    negotiate::Role,
    protocol::handle::Handle,
    protocol::node::{
        Action, Chunk, Dirty, Expected, Failure, LentKey, LinkId, Outcome, Owed, Reason, ServeId,
        Served, Step, TransferId,
    },
};

impl<N: Network> Driver<N> {
    /// Does all that the node wants done.
    pub(super) fn act(&mut self, memory: &mut [Region]) {
        while let Some(action) = self.core.node.actions().pop_front() {
            self.one(action, memory);
        }
    }

    fn one(&mut self, action: Action, memory: &mut [Region]) {
        let now = self.core.clock.now();
        match action {
            Action::Dial { engine, node } => match self.network.connect(&engine, node) {
                Ok(peer) => drop(self.core.dialling.insert(peer, (engine, node))),
                Err(Unreached::NoPath(why)) => self.core.node.no_path(&engine, node, &why, now),
                Err(Unreached::Lost(why)) => self.core.node.unreachable(&engine, node, &why, now),
            },
            Action::Send { link, message } => self.core.links.send(link, message.encode()),
            Action::Close { link } => self.core.links.close(link, now),
            Action::Negotiate {
                engine,
                digest,
                descriptor,
            } => self.negotiate(&engine, digest, &descriptor),
            Action::Serve {
                serve,
                offer,
                engine,
                link,
                pull,
            } => {
                let ask = Ask {
                    id: serve,
                    offer,
                    link,
                    stream: stream_of(pull.transfer, pull.part),
                    key: pull.key,
                };
                if let Err((reason, why)) = self.serve(ask, &engine, &pull, memory) {
                    self.core.node.refuse(serve, reason, &why, now);
                }
            }
            Action::Plan { transfer, link } => match self.plan(transfer, link, memory) {
                Ok(parts) => self.core.node.planned(transfer, parts, now),
                Err(why) => self.core.node.fail(transfer, &why, now),
            },
            Action::Receive {
                transfer,
                part,
                link,
            } => self.receive(transfer, part, link),
            Action::Copy {
                transfer,
                part,
                link,
                keys,
                pages,
            } => {
                if let Err(why) = self.borrow(transfer, part, link, &keys, &pages) {
                    if let Some(part) = self.core.part(transfer, part) {
                        part.fall_back(&why);
                    }
                    self.core.node.unmapped(transfer, part, &why, now);
                }
            }
            Action::Invited {
                grant,
                engine,
                handle,
            } => self.invited(grant, &engine, handle),
            action => self.core.note(action),
        }
    }

    /// A producer fills a grant: it is pulled.
    fn invited(&mut self, grant: u64, engine: &str, handle: Handle) {
        let now = self.core.clock.now();
        let Some(granted) = self.core.granted.get(&grant) else {
            let why = "no such grant";
            return self
                .core
                .node
                .decline(grant, Reason::UnknownOffer, why, now);
        };
        let pull = Pull {
            handle: handle.clone(),
            request: granted.request.clone(),
            whole: None,
            deadline: granted.deadline,
            by_layer: granted.by_layer,
            map: granted.map,
            name: granted.name.clone(),
            started: Instant::now(),
        };
        match self.seek(pull, Some(grant)) {
            Ok(transfer) => self.core.events.push_back(Event::Invited {
                grant,
                transfer,
                handle,
            }),
            Err(failure) => {
                let why = failure.to_string();
                tracing::warn!(engine, grant, reason = %why, "a push is declined");
                self.core.node.decline(grant, failure.reason(), &why, now);
            }
        }
    }

    fn negotiate(&mut self, engine: &str, digest: [u8; 32], profile: &[u8]) {
        let _span = tracing::debug_span!("negotiate", engine, bytes = profile.len()).entered();
        let core = &mut self.core;
        let accord = (core.negotiate)(profile);
        let now = core.clock.now();
        let told = match accord {
            Ok(accord) => {
                let digest_of_both = accord.digest;
                core.accords.insert(digest, accord);
                Ok(digest_of_both)
            }
            Err(why) => {
                tracing::warn!(engine, reason = %why, "no agreement");
                Err(why)
            }
        };
        core.node.agreed(digest, told, now);
    }

    /// Looks at what a consumer wants of an offer, and begins to serve it.
    fn serve(
        &mut self,
        ask: Ask,
        engine: &Arc<str>,
        pull: &crate::protocol::node::Pull,
        memory: &mut [Region],
    ) -> Result<(), (Reason, String)> {
        let Self { network, core } = self;
        let now = core.clock.now();
        let disagree = |why: String| (Reason::Disagree, why);
        let local = |why: String| (Reason::Local, why);
        let accord = { core.node.descriptor_of(ask.link) }
            .and_then(|digest| core.accords.get(&digest))
            .ok_or_else(|| local("the agreement was forgotten".into()))?;
        let agreed = { accord.serves.clone() }
            .ok_or_else(|| disagree("the two engines did not agree on this way".into()))?;
        let offered = { core.offers.get_mut(&ask.offer) }
            .ok_or_else(|| (Reason::UnknownOffer, "no such offer".into()))?;
        let (source, target) = (pull.source, pull.target);
        let requested =
            { offered.asked(&agreed, source, pull.held, pull.mode) }.map_err(disagree)?;
        let runner = core
            .runners
            .take(&requested, (source, target), Role::Producer);
        let runner = runner.ok_or_else(|| {
            let why = format!("the plan gives rank {target} nothing of rank {source}");
            (Reason::NotOwed, why)
        })?;
        let ranks = core.memory.ranks();
        let pairs = agreed.agreement.pairs.iter();
        let parts = pairs.filter(|pair| ranks.contains(&pair.source)).count() as u32;
        let regions = core.memory.rank(source);
        let first = regions.start as u32;
        let pages = pool(memory, &regions);
        let device = Fetching::new(pages, || runner.again(), ask.key).map_err(local)?;
        let (serve, link) = (ask.id, ask.link);
        let mut serving = Serving::new(ask, runner, device);
        let peer = core.links.peer(link);
        serving.path = peer.and_then(|peer| network.interface().path(peer));
        let mut mapped = pull.map;
        if pull.map {
            let lent = match (&serving.device, peer) {
                (Some(device), _) => Err(format!("pages in {} memory are not lent", device.kind())),
                (None, None) => Err("the link is closing".into()),
                (None, Some(_)) if core.node.has_lent(link, source) => Ok(None),
                (None, Some(peer)) => {
                    let loan = core.loans.entry(source).or_default();
                    loan.keys(network.interface(), peer, (first, pages))
                        .map(Some)
                }
            };
            match lent {
                Ok(keys) => {
                    if let Some(keys) = keys {
                        core.node.lend(link, source, &keys);
                    }
                    let request = requested.producer();
                    let lists =
                        (0..request.groups()).flat_map(|group| request.pages(source, group));
                    core.node.list(serve, &lists.copied().collect::<Vec<_>>());
                    serving.way = Way::Mapped;
                }
                Err(why) => {
                    core.node.unlent(serve, &why);
                    serving.why = Some(why);
                    mapped = false;
                }
            }
        }
        let owed = Owed {
            chunks: serving.runner.chunks().len() as u64,
            bytes: serving.runner.wire_bytes(),
            steps: serving.runner.chunks().len() as u32,
            parts,
            mapped,
        };
        offered.started.get_or_insert_with(Instant::now);
        core.served
            .insert(serve, (Arc::clone(engine), (source, target)));
        core.servings.push(serving);
        core.node.accept(serve, owed, now);
        Ok(())
    }

    /// Makes the plan of a transfer whose engine is there.
    fn plan(
        &mut self,
        transfer: TransferId,
        link: LinkId,
        memory: &mut [Region],
    ) -> Result<Vec<Expected>, String> {
        let Self { network, core } = self;
        let Some(pull) = core.sought.remove(&transfer) else {
            return Err("the transfer is not known".into());
        };
        let _span = tracing::debug_span!("plan", request = pull.name).entered();
        let accord = { core.node.descriptor_of(link) }
            .and_then(|digest| core.accords.get(&digest))
            .ok_or("the agreement was forgotten")?;
        let agreed = { accord.pulls.clone() }.ok_or("the two engines did not agree on this way")?;
        let Pull {
            request,
            whole,
            map,
            name,
            started,
            by_layer,
            ..
        } = pull;
        let ranks = core.memory.ranks();
        let requested = match whole {
            Some(whole) => whole,
            None => {
                let requested =
                    Requested::of(Arc::clone(&agreed), Role::Consumer, request, ranks.clone());
                Arc::new(requested.map_err(|refusal| refusal.to_string())?)
            }
        };
        let pairs: Vec<(u32, u32)> = { agreed.agreement.pairs.iter() }
            .filter(|pair| ranks.contains(&pair.target))
            .map(|pair| (pair.source, pair.target))
            .collect();
        let runners = pairs
            .iter()
            .filter_map(|&pair| core.runners.take(&requested, pair, Role::Consumer));
        let runners: Vec<Runner> = runners.collect();
        let row = runners.iter().map(Runner::longest_row).max().unwrap_or(4);
        let key = Arc::new(requested.digest_key(core.node.digest_key(transfer), row));
        let can_map = core
            .links
            .peer(link)
            .is_some_and(|peer| network.can_map(peer));
        let mut report = Report::new(ranks.start);
        report.request = name;
        let mut pulling = Pulling {
            requested: Arc::clone(&requested),
            parts: Vec::with_capacity(runners.len()),
            key: Arc::clone(&key),
            lent_key: key.where_mapped(),
            started,
            report,
            placed: 0,
            total: runners.iter().map(Runner::wire_bytes).sum(),
        };
        pulling.report.linked_ns = started.elapsed().as_nanos() as u64;
        let mut expected = Vec::with_capacity(runners.len());
        for runner in runners {
            let pages = pool(memory, &core.memory.rank(runner.pair().target));
            let device = Placing::new(pages, || runner.again(), &key)?;
            let mut part = Part::new(runner, device);
            let mut maps = false;
            if let Some(device) = &part.device {
                let kind = device.kind();
                part.why = Some(format!("pages in {kind} memory are not mapped into"));
            } else if map && core.tuning.map && can_map {
                let (pair, chunks) = (part.runner.pair(), part.runner.chunks());
                let spans = cost::bytes_by_span(&agreed.agreement, pair, chunks);
                let choice = cost::choose(&agreed.agreement, &spans, &core.tuning.rates, true);
                maps = choice.way == Way::Mapped;
                part.why = Some(choice.reason);
            }
            expected.push(expect(&requested, &part.runner, maps)?);
            pulling.parts.push(part);
        }
        if by_layer {
            let (mut moved, mut there) = (BTreeSet::new(), BTreeSet::new());
            for runner in pulling.parts.iter().map(|part| &part.runner) {
                for (layer, chunks) in (0..runner.chunks().parts()).map(|part| runner.part(part)) {
                    let layers = if chunks.is_empty() {
                        &mut there
                    } else {
                        &mut moved
                    };
                    layers.insert(layer);
                }
            }
            // Nobody waits for a layer of which all is there.
            for &layer in there.difference(&moved) {
                core.events.push_back(Event::Layer { transfer, layer });
            }
        }
        core.pullings.insert(transfer, pulling);
        Ok(expected)
    }

    /// Chunks of a part may come.
    fn receive(&mut self, transfer: TransferId, at: u32, link: LinkId) {
        let Self { network, core } = self;
        let peer = core.links.peer(link);
        let path = peer.and_then(|peer| network.interface().path(peer));
        let Some(part) = core.part(transfer, at) else {
            return;
        };
        part.link = Some(link);
        part.path = path;
        let stream = stream_of(transfer.0, at);
        core.streams.insert((link, stream), (transfer, at));
    }

    /// Maps the pages that a producer has lent.
    fn borrow(
        &mut self,
        transfer: TransferId,
        at: u32,
        link: LinkId,
        keys: &[LentKey],
        pages: &[u32],
    ) -> Result<(), String> {
        let Self { network, core } = self;
        let Some(pulling) = core.pullings.get_mut(&transfer) else {
            return Ok(());
        };
        let Some(part) = pulling.parts.get_mut(at as usize) else {
            return Ok(());
        };
        let rank = part.runner.pair().source;
        let peer = core.links.peer(link).ok_or("the link is closing")?;
        let agreed = pulling.requested.agreed();
        let regions = core.mapped.entry((link, rank)).or_insert_with(|| {
            let mapped = borrowed::map(network.interface(), peer, agreed, rank, keys);
            mapped.map(Into::into)
        });
        let regions = regions.clone()?;
        let lent = pulling.requested.lent(rank, pages);
        let lent = Arc::new(lent.map_err(|error| format!("what it lists cannot be: {error}"))?);
        part.borrowed = Some(Borrowed::new(&lent, &part.runner, regions));
        Ok(())
    }

    /// Reports fences that waited for what was being read, and cuts links that take too long.
    pub(super) fn end_fences(&mut self) {
        let now = self.core.clock.now();
        let Self { network, core } = self;
        for (transfer, at, due) in std::mem::take(&mut core.fences) {
            let Some(part) = core.part(transfer, at) else {
                continue;
            };
            if !part.landings.is_empty() {
                if now < due {
                    core.fences.push((transfer, at, due));
                    continue;
                }
                if let Some(link) = part.link {
                    core.links.cut(link, network.interface());
                    core.link_gone(
                        link,
                        "it did not finish what it was sending when it was to stop",
                    );
                }
            }
            core.node.quiet(transfer, at, false, now);
        }
    }
}

/// What the node is to expect of a part.
fn expect(requested: &Requested, runner: &Runner, map: bool) -> Result<Expected, String> {
    let chunks = runner.chunks();
    let pages = if map {
        requested.lent_pages(runner.pair().source)
    } else {
        0
    };
    // A digest for each chunk: it is known which pages a difference is in.
    let mut steps: Vec<Step> = Vec::with_capacity(chunks.len());
    for part in 0..chunks.parts() {
        let (layer, of_part) = runner.part(part);
        let component: Arc<str> = runner.part_component(part).into();
        let step = || Step {
            layer,
            component: Arc::clone(&component),
        };
        steps.extend(of_part.map(|_| step()));
    }
    let chunk = |(step, chunk): (u32, crate::plan::Chunk)| Chunk {
        bytes: chunk.bytes,
        step,
    };
    Ok(Expected {
        source: runner.pair().source,
        target: runner.pair().target,
        chunks: (0..).zip(chunks.iter()).map(chunk).collect(),
        steps: steps.into(),
        map,
        pages: u32::try_from(pages).map_err(|_| format!("{pages} pages to be mapped"))?,
    })
}

impl Core {
    pub(super) fn part(&mut self, transfer: TransferId, part: u32) -> Option<&mut Part> {
        let pulling = self.pullings.get_mut(&transfer)?;
        pulling.parts.get_mut(part as usize)
    }

    fn serving(&mut self, serve: ServeId) -> Option<&mut Serving> {
        self.servings.iter_mut().find(|serving| serving.id == serve)
    }

    /// What needs neither the network nor memory.
    fn note(&mut self, action: Action) {
        let now = self.clock.now();
        match action {
            Action::PeerUp {
                engine,
                node,
                epoch,
                link,
            } => {
                if let Some(digest) = self.node.descriptor_of(link) {
                    if self.profiles.len() >= MAX_ENGINES
                        && let Some(some) = self.profiles.keys().next().cloned()
                    {
                        self.profiles.remove(&some);
                    }
                    self.profiles.insert(Arc::clone(&engine), digest);
                }
                tracing::info!(%engine, node, epoch = format_args!("{epoch:016x}"), "linked");
                self.events.push_back(Event::PeerUp {
                    engine,
                    node,
                    epoch,
                });
            }
            Action::Forgotten { digest } => {
                self.accords.remove(&digest);
                self.profiles.retain(|_, of| *of != digest);
            }
            Action::PeerLost {
                engine, node, why, ..
            } => {
                // Where nothing goes on, as at the end of either side, nobody misses it.
                if self.node.is_idle() {
                    tracing::info!(%engine, node, reason = %why, "link lost");
                } else {
                    tracing::warn!(%engine, node, reason = %why, "link lost");
                }
                self.events.push_back(Event::PeerLost { engine, node, why });
            }
            Action::Superseded { engine } => {
                tracing::error!(%engine, "another set of processes has taken this engine's name");
                self.events.push_back(Event::Superseded { engine });
            }
            Action::Ready {
                serve,
                layer,
                tokens,
            } => {
                if let Some(serving) = self.serving(serve) {
                    serving.order.ready(layer, tokens);
                }
            }
            Action::SendInstead { serve, why } => {
                if let Some(serving) = self.serving(serve) {
                    serving.send_instead();
                    serving.why.get_or_insert(why);
                }
            }
            Action::StopServing { serve } => {
                self.end_serving(serve);
                self.node.stopped(serve, now);
            }
            Action::Served {
                serve,
                offer,
                outcome,
            } => self.note_served(serve, offer, outcome),
            Action::Quarantined { offer, reason } => {
                self.events.push_back(Event::Quarantined { offer, reason });
            }
            Action::Released { offer, reason } => {
                if let Some(offered) = self.offers.remove(&offer) {
                    let mut report = Box::new(offered.report);
                    let elapsed = offered.started.map(|started| started.elapsed());
                    report.elapsed_ns = elapsed.unwrap_or_default().as_nanos() as u64;
                    if reason != Reason::Consumed {
                        let why = format!("the offer ended: {reason}");
                        report.end(Outcome::Failed(Failure::Local { why }), Vec::new());
                    }
                    self.events.push_back(Event::Released {
                        offer,
                        reason,
                        report,
                    });
                }
            }
            Action::Declined {
                offer,
                engine,
                reason,
                why,
            } => self.events.push_back(Event::Declined {
                offer,
                engine,
                reason,
                why,
            }),
            Action::Unlent {
                transfer,
                part,
                why,
            } => {
                if let Some(part) = self.part(transfer, part) {
                    part.fall_back(&why);
                }
            }
            Action::Traced {
                transfer, trace, ..
            } => {
                if let Some(pulling) = self.pullings.get_mut(&transfer) {
                    pulling.report.traced(&trace);
                }
            }
            Action::Written {
                transfer,
                part,
                layer,
                tokens,
            } => {
                let part = self.part(transfer, part);
                if let Some(borrowed) = part.and_then(|part| part.borrowed.as_mut()) {
                    borrowed.order.ready(layer, tokens);
                }
            }
            Action::Layer { transfer, layer } => {
                self.events.push_back(Event::Layer { transfer, layer });
            }
            Action::Fence { transfer, part } => self.fence(transfer, part),
            Action::Ended {
                transfer,
                outcome,
                dirty,
                fenced,
            } => self.end(transfer, outcome, &dirty, fenced),
            Action::Fenced { transfer } => {
                self.forget(transfer);
                self.events.push_back(Event::Fenced { transfer });
            }
            Action::Returned { grant, reason } => {
                self.granted.remove(&grant);
                self.events.push_back(Event::Returned { grant, reason });
            }
            // Those that come later are for drivers that know them.
            action => tracing::error!(?action, "this build does not know what to do"),
        }
    }

    /// Reads no more for a part.
    fn end_serving(&mut self, serve: ServeId) {
        let at = self.servings.iter().position(|serving| serving.id == serve);
        let Some(mut serving) = at.map(|at| self.servings.swap_remove(at)) else {
            return;
        };
        // Ends its stream.
        serving.device = None;
        if let Some(offered) = self.offers.get_mut(&serving.offer) {
            offered.report.routes.extend(serving.route());
        }
        let agreed = Arc::clone(serving.runner.requested().agreed());
        self.runners.put(&agreed, Role::Producer, serving.runner);
    }

    fn note_served(&mut self, serve: ServeId, offer: u64, outcome: Served) {
        self.end_serving(serve);
        let Some((engine, ranks)) = self.served.remove(&serve) else {
            return;
        };
        let failure = match outcome {
            Served::Committed => None,
            Served::Failed { reason, why } => Some((reason, why)),
        };
        self.events.push_back(Event::Served {
            offer,
            engine,
            ranks,
            failure,
        });
    }

    /// Lets nothing of a part be written any more.
    fn fence(&mut self, transfer: TransferId, at: u32) {
        let now = self.clock.now();
        let due = now + self.node.config().fence_ns;
        let Some(part) = self.part(transfer, at) else {
            return self.node.quiet(transfer, at, false, now);
        };
        part.is_fenced = true;
        part.staged.clear();
        // Ends its stream: what has begun on the device is over when this returns.
        part.device = None;
        if part.landings.is_empty() {
            return self.node.quiet(transfer, at, false, now);
        }
        self.fences.push((transfer, at, due));
    }

    fn end(&mut self, transfer: TransferId, outcome: Outcome, dirty: &[Dirty], fenced: bool) {
        let mut report = match (
            self.pullings.get_mut(&transfer),
            self.sought.remove(&transfer),
        ) {
            (Some(pulling), _) => {
                pulling.report.elapsed_ns = pulling.started.elapsed().as_nanos() as u64;
                pulling.report.routes = pulling.routes();
                pulling.report.clone()
            }
            (None, sought) => {
                let mut report = Report::new(self.memory.first_rank);
                if let Some(pull) = sought {
                    report.request = pull.name;
                    report.elapsed_ns = pull.started.elapsed().as_nanos() as u64;
                }
                report
            }
        };
        let dirty = { self.pullings.get(&transfer) }
            .map(|pulling| pulling.dirty(dirty))
            .unwrap_or_default();
        let mut outcome = outcome;
        if let (Outcome::Failed(Failure::Digest { at, pages, .. }), Some(pulling)) =
            (&mut outcome, self.pullings.get(&transfer))
            && let Some(part) = pulling.parts.get(at.0 as usize)
        {
            part.runner.pages(at.1 as usize, |_, page| pages.push(page));
            pages.sort_unstable();
            pages.dedup();
        }
        report.end(outcome, dirty);
        if fenced {
            self.forget(transfer);
        }
        tracing::debug!(
            transfer = transfer.0,
            request = report.request,
            committed = report.is_committed(),
            elapsed_ns = report.elapsed_ns,
            "transfer ended"
        );
        self.events.push_back(Event::Ended {
            transfer,
            report: Box::new(report),
            fenced,
        });
    }

    /// Nothing of a transfer can come any more that would be written.
    fn forget(&mut self, transfer: TransferId) {
        let Some(pulling) = self.pullings.remove(&transfer) else {
            return;
        };
        self.streams.retain(|_, (of, _)| *of != transfer);
        for part in pulling.parts {
            let agreed = Arc::clone(part.runner.requested().agreed());
            self.runners.put(&agreed, Role::Consumer, part.runner);
        }
    }
}
