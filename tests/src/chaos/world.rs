//! The three processes of a world, and transfers between them.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use moai_collectives::{digest::mix, transfer::Report};

use super::{
    Options, Plant,
    line::{Ask, Moved, Say, Span, Start, Stats},
    network::Network,
    process::Process,
    summary::Summary,
};

/// When a silent link is lost, and a fence forced.
pub(super) const LOSS: Duration = Duration::from_millis(1000);
/// How much later than by its deadline an outcome may be told.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// How long anything takes that needs a link again: pauses between dials, and a packet that the kernel sends again.
pub(super) const BACK: Duration = Duration::from_secs(15);
/// Longer than a round.
pub(super) const LEASE: Duration = Duration::from_secs(60);
/// Bytes a second of a victim, so that something is under way for a while.
const SLOW: u64 = 20_000_000;

/// Numbers drawn from a seed.
#[derive(Debug)]
pub(super) struct Draw(u64);

impl Draw {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0) % bound
    }
}

/// A transfer that was begun.
#[derive(Clone, Debug)]
pub(super) struct Begun {
    pub(super) transfer: u64,
    pub(super) at: Instant,
    pub(super) deadline: Duration,
    pub(super) moved: Moved,
}

/// Which of the two that the survivor is linked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Victim,
    Other,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) options: Options,
    pub(super) draw: Draw,
    pub(super) survivor: Process,
    pub(super) other: Process,
    pub(super) victim: Process,
    pub(super) network: Option<Network>,
    /// Lives and offers, never used again.
    numbers: u64,
    /// A directory that the survivor follows; without one it is told.
    directory: Option<(PathBuf, tempfile::TempDir)>,
    /// Committed since the last comparison, with each.
    pub(super) committed: Vec<(Peer, Moved)>,
    /// Pages of which nothing is known since then, of the victim's consumer.
    pub(super) dirty: BTreeSet<u32>,
    /// The survivor's size at rest.
    pub(super) rest: Stats,
}

impl World {
    pub(super) fn start(options: &Options) -> Result<Self, String> {
        let network = options.network.then(Network::make).transpose()?;
        let bind = |end: usize| match &network {
            Some(network) => format!("{}:0", network.ends[end]),
            None => "127.0.0.1:0".to_owned(),
        };
        let (one, many) = match options.mirrored {
            true => ("prefill", "decode"),
            false => ("decode", "prefill"),
        };
        let start = |name: &str, shape: &str, epoch: u64, bind: String, rate: Option<u64>| Start {
            name: name.to_owned(),
            shape: shape.to_owned(),
            epoch,
            seed: options.seed ^ epoch,
            transports: options.transport.clone(),
            bind,
            rate,
            loss_ms: LOSS.as_millis() as u64,
        };
        let launch = |start, prefix: &[String]| Process::start(&options.binary, prefix, start);
        let prefix = network.as_ref().map(Network::prefix).unwrap_or_default();
        let directory = match options.seed.is_multiple_of(2) && !options.mirrored {
            true => {
                let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
                Some((folder.path().join("directory.json"), folder))
            }
            false => None,
        };
        let mut world = Self {
            options: options.clone(),
            draw: Draw(mix(options.seed ^ 0xC4A0_5000)),
            survivor: launch(start("survivor", one, 1, bind(0), None), &[])?,
            other: launch(start("other", many, 2, bind(0), None), &[])?,
            victim: launch(start("victim", many, 3, bind(1), Some(SLOW)), &prefix)?,
            network,
            numbers: 3,
            directory,
            committed: Vec::new(),
            dirty: BTreeSet::new(),
            rest: Stats::default(),
        };
        if let Some((path, _)) = &world.directory {
            let source = format!("file:{}", path.display());
            world.list()?;
            let engines = vec!["other".to_owned(), "victim".to_owned()];
            world.survivor.done(&Ask::Follow { source, engines })?;
        }
        world.introduce(Peer::Other)?;
        world.introduce(Peer::Victim)?;
        // What stays for good, as a link and what is mapped of each, is there once both were pulled from.
        for peer in [Peer::Other, Peer::Victim, Peer::Other, Peer::Victim] {
            { world.try_moves(peer, BACK, true)? }
                .map_err(|why| format!("the first transfers: {why}"))?;
        }
        world.compare()?;
        std::thread::sleep(Duration::from_millis(300));
        world.rest = world.survivor.stats()?;
        Ok(world)
    }

    pub(super) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(super) fn peer(&mut self, peer: Peer) -> &mut Process {
        match peer {
            Peer::Victim => &mut self.victim,
            Peer::Other => &mut self.other,
        }
    }

    pub(super) fn producer(&mut self, peer: Peer) -> &mut Process {
        match self.options.mirrored {
            true => &mut self.survivor,
            false => self.peer(peer),
        }
    }

    pub(super) fn consumer(&mut self, peer: Peer) -> &mut Process {
        match self.options.mirrored {
            true => self.peer(peer),
            false => &mut self.survivor,
        }
    }

    /// Writes the directory as it is now.
    fn list(&self) -> Result<(), String> {
        let Some((path, _)) = &self.directory else {
            return Ok(());
        };
        let node = |process: &Process| serde_json::json!([{ "node": 0, "ranks": [0, 1], "addresses": process.addresses }]);
        let engines = serde_json::json!({
            "engines": { "other": node(&self.other), "victim": node(&self.victim) },
        });
        let next = path.with_extension("next");
        std::fs::write(&next, engines.to_string())
            .and_then(|()| std::fs::rename(&next, path))
            .map_err(|error| error.to_string())
    }

    /// Tells the consumer where the producer is.
    pub(super) fn introduce(&mut self, peer: Peer) -> Result<(), String> {
        if self.directory.is_some() {
            return self.list();
        }
        let producer = self.producer(peer);
        let know = Ask::Know {
            engine: producer.name().to_owned(),
            ranks: 2,
            addresses: producer.addresses.clone(),
        };
        self.consumer(peer).done(&know)
    }

    /// A victim in a new life. Of what was committed in the last one nothing is left where it consumes.
    pub(super) fn restart(&mut self) -> Result<(), String> {
        let mut start = self.victim.start.clone();
        start.epoch = self.number();
        start.seed = self.options.seed ^ start.epoch;
        let prefix = self
            .network
            .as_ref()
            .map(Network::prefix)
            .unwrap_or_default();
        if self.options.mirrored {
            self.committed.retain(|(peer, _)| *peer == Peer::Other);
            self.dirty.clear();
        }
        self.victim = Process::start(&self.options.binary, &prefix, start)?;
        Ok(())
    }

    /// Offers a request, and says under which number, by which handle, and what it will be where it goes.
    pub(super) fn offer(
        &mut self,
        peer: Peer,
        from: Span,
        to: Span,
        progressive: bool,
    ) -> Result<(u64, String, Moved), String> {
        let number = self.number();
        let producer = self.producer(peer);
        let offer = Ask::Offer {
            number,
            request: from,
            lease_ms: LEASE.as_millis() as u64,
            progressive,
        };
        let handle = producer.have(&offer, |answer| match answer {
            Say::Offered { handle } => Some(handle.clone()),
            _ => None,
        })?;
        let (shape, seed) = (producer.start.shape.clone(), producer.start.seed);
        Ok((
            number,
            handle,
            Moved {
                shape,
                seed,
                from,
                to,
            },
        ))
    }

    /// Begins to pull; within, why it cannot.
    pub(super) fn pull(
        &mut self,
        peer: Peer,
        handle: String,
        moved: Moved,
        deadline: Duration,
        map: bool,
    ) -> Result<Result<Begun, String>, String> {
        let at = Instant::now();
        let pull = Ask::Pull {
            handle,
            request: moved.to,
            deadline_ms: deadline.as_millis() as u64,
            map,
        };
        match self.consumer(peer).ask(&pull)? {
            Say::Pulling { transfer } => Ok(Ok(Begun {
                transfer,
                at,
                deadline,
                moved,
            })),
            Say::Refused { why } => Ok(Err(why)),
            other => Err(format!("a pull is answered by {other:?}")),
        }
    }

    /// Waits for the outcome of a transfer.
    pub(super) fn ended(
        &mut self,
        peer: Peer,
        begun: &Begun,
        until: Instant,
    ) -> Option<(Instant, Report, bool)> {
        let ended = self.consumer(peer).wait(until, |event| match event {
            Say::Ended {
                transfer,
                report,
                fenced,
            } if *transfer == begun.transfer => Some(((**report).clone(), *fenced)),
            _ => None,
        });
        ended.map(|(at, (report, fenced))| (at, report, fenced))
    }

    /// Whether the pages of an offer are free in time.
    pub(super) fn released(
        &mut self,
        peer: Peer,
        offer: u64,
        until: Instant,
    ) -> Result<(), String> {
        let released = self.producer(peer).wait(until, |event| {
            matches!(event, Say::Released { offer: of, .. } if *of == offer).then_some(())
        });
        released
            .map(|_| ())
            .ok_or_else(|| format!("offer {offer} is not released"))
    }

    fn try_moves(
        &mut self,
        peer: Peer,
        deadline: Duration,
        map: bool,
    ) -> Result<Result<(), String>, String> {
        let (tokens, first, to) = match peer {
            Peer::Other => {
                let at = 16 + 8 * self.draw.below(2) as u32;
                (
                    225 + self.draw.below(32) as u32,
                    self.draw.below(40) as u32,
                    at,
                )
            }
            Peer::Victim => (32, 60, 15),
        };
        let (from, to) = (Span { tokens, first }, Span { tokens, first: to });
        let (offer, handle, moved) = self.offer(peer, from, to, false)?;
        let begun = match self.pull(peer, handle, moved, deadline, map)? {
            Ok(begun) => begun,
            Err(why) => return Ok(Err(why)),
        };
        let until = begun.at + deadline + GRACE;
        let Some((_, report, fenced)) = self.ended(peer, &begun, until) else {
            return Err(format!(
                "a transfer with {peer:?} has no outcome {GRACE:?} after its deadline"
            ));
        };
        if !report.is_committed() {
            let to = begun.moved.to;
            self.note_dirty(&report, to)?;
            if !fenced {
                self.fenced(peer, begun.transfer, Instant::now() + BACK)?;
            }
            self.producer(peer).done(&Ask::Withdraw { offer })?;
            self.released(peer, offer, Instant::now() + BACK)?;
            return Ok(Err(format!("{:?}", report.ended)));
        }
        self.committed
            .retain(|(_, old)| (old.to.first, old.to.tokens) != (to.first, tokens));
        self.committed.push((peer, begun.moved));
        self.released(peer, offer, Instant::now() + BACK)?;
        Ok(Ok(()))
    }

    /// Moves a request from or to the other, which must be committed; or with the victim, if it is back, soon.
    pub(super) fn moves(&mut self, peer: Peer, summary: &mut Summary) -> Result<(), String> {
        let start = Instant::now();
        loop {
            let map = self.draw.below(2) == 0;
            match (self.try_moves(peer, Duration::from_secs(5), map)?, peer) {
                (Ok(()), Peer::Other) => {
                    summary.others += 1;
                    return Ok(());
                }
                (Ok(()), Peer::Victim) => return Ok(()),
                (Err(why), Peer::Other) => return Err(format!("a transfer with the other: {why}")),
                (Err(why), Peer::Victim) if start.elapsed() > BACK => {
                    return Err(format!(
                        "the victim is back, but cannot be pulled from: {why}"
                    ));
                }
                (Err(_), Peer::Victim) => summary.retries += 1,
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a transfer's pages are free.
    pub(super) fn fenced(
        &mut self,
        peer: Peer,
        of: u64,
        until: Instant,
    ) -> Result<Instant, String> {
        let fenced = self.consumer(peer).wait(until, |event| {
            matches!(event, Say::Fenced { transfer } if *transfer == of).then_some(())
        });
        fenced
            .map(|(at, ())| at)
            .ok_or_else(|| format!("transfer {of} is not fenced"))
    }

    /// Pages of a transfer that failed: its own, and nothing is known of them.
    pub(super) fn note_dirty(&mut self, report: &Report, to: Span) -> Result<(), String> {
        let own = to.first..to.first + to.tokens.div_ceil(32);
        for page in report.dirty().iter().flat_map(|dirty| &dirty.pages) {
            if !own.contains(page) {
                return Err(format!(
                    "page {page} is listed as dirty, and is none of {own:?}"
                ));
            }
            self.dirty.insert(*page);
        }
        Ok(())
    }

    /// Compares every byte of every consumer.
    pub(super) fn compare(&mut self) -> Result<(), String> {
        if self.options.plant == Some(Plant::Byte) {
            self.consumer(Peer::Other).done(&Ask::Spoil { page: 31 })?;
        }
        let committed = std::mem::take(&mut self.committed);
        let dirty: Vec<u32> = std::mem::take(&mut self.dirty).into_iter().collect();
        let of = |which: Peer| -> Vec<Moved> {
            let of = committed.iter().filter(|(peer, _)| *peer == which);
            of.map(|(_, moved)| moved.clone()).collect()
        };
        let compares = match self.options.mirrored {
            true => vec![
                (Peer::Victim, of(Peer::Victim), dirty),
                (Peer::Other, of(Peer::Other), Vec::new()),
            ],
            false => vec![(
                Peer::Other,
                committed.iter().map(|(_, moved)| moved.clone()).collect(),
                dirty,
            )],
        };
        for (peer, committed, dirty) in compares {
            let consumer = self.consumer(peer);
            let compare = Ask::Compare { committed, dirty };
            let wrong = consumer.have(&compare, |answer| match answer {
                Say::Compared { wrong } => Some(wrong.clone()),
                _ => None,
            })?;
            if let Some(first) = wrong.first() {
                let (name, count) = (consumer.name(), wrong.len());
                return Err(format!(
                    "{name}: {first} is not what it is to be, nor are {count} in all; {compare:?}"
                ));
            }
        }
        Ok(())
    }
}
