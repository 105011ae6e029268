//! One round: something is under way, the victim is disturbed, and all is well again.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{
    Plant,
    line::{Ask, Say, Span},
    network::Cut,
    summary::Summary,
    world::{BACK, Begun, GRACE, LOSS, Peer, World},
};

/// What is under way when the victim is disturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It is linked, and nothing is.
    Idle,
    /// It has offered, or was offered, and the pull comes later.
    Offered,
    /// A link is being made, for a pull that waits for it.
    Linking,
    /// Chunks move, and some layers are not written yet.
    Moving,
    /// The last layer has arrived, or is about to.
    Last,
}

const PHASES: [Phase; 6] = [
    Phase::Idle,
    Phase::Offered,
    Phase::Linking,
    Phase::Moving,
    Phase::Moving,
    Phase::Last,
];

/// What happens to the victim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    /// It is killed, and starts again under its name, as another life at another address.
    Kill,
    /// It ends, as it should, and starts again.
    End,
    /// It is stopped for less than the time after which it is lost.
    Pause,
    /// It is stopped for longer.
    Stop,
    /// Its network is cut off: for less than that, or longer.
    Cut(Cut, bool),
}

impl Blow {
    fn draw(world: &mut World) -> Self {
        const PLAIN: [Blow; 5] = [Blow::Kill, Blow::Kill, Blow::Stop, Blow::Pause, Blow::End];
        const CUTS: [Blow; 5] = [
            Blow::Cut(Cut::Drop, true),
            Blow::Cut(Cut::Drop, false),
            Blow::Cut(Cut::Reset, false),
            Blow::Cut(Cut::Down, true),
            Blow::Cut(Cut::Down, false),
        ];
        if world.network.is_some() && world.draw.below(4) > 0 {
            return CUTS[world.draw.below(5) as usize];
        }
        PLAIN[world.draw.below(5) as usize]
    }

    /// Whether the victim's process is over.
    fn ends(self) -> bool {
        matches!(self, Self::Kill | Self::End)
    }

    /// Whether the victim's process does nothing.
    fn stops(self) -> bool {
        matches!(self, Self::Pause | Self::Stop)
    }

    fn strike(self, world: &mut World) -> Result<(), String> {
        match self {
            Self::Kill => world.victim.kill(),
            Self::End => world.victim.end()?,
            Self::Pause | Self::Stop => world.victim.signal(Signal::STOP)?,
            Self::Cut(how, _) => { world.network.as_ref() }.ok_or("no network")?.cut(how)?,
        }
        Ok(())
    }

    fn lift(self, world: &mut World) -> Result<(), String> {
        match self {
            Self::Kill | Self::End => {
                world.restart()?;
                world.introduce(Peer::Victim)
            }
            Self::Pause | Self::Stop => world.victim.signal(Signal::CONT),
            Self::Cut(how, _) => { world.network.as_ref() }.ok_or("no network")?.mend(how),
        }
    }

    fn lasts(self, world: &mut World) -> Duration {
        let drawn = |from: u64, to: u64, world: &mut World| {
            Duration::from_millis(from + world.draw.below(to - from))
        };
        let loss = LOSS.as_millis() as u64;
        match self {
            Self::Kill | Self::End => drawn(0, 250, world),
            Self::Pause | Self::Cut(_, false) => drawn(loss / 20, loss * 2 / 5, world),
            Self::Stop | Self::Cut(_, true) => drawn(loss * 5 / 4, loss * 8 / 5, world),
        }
    }
}

/// Over how much the survivor's throughput is measured, before and after.
const MEASURED: Duration = Duration::from_millis(150);
/// One round in so many is.
const MEASURE_EVERY: u64 = 4;

impl World {
    pub(super) fn round(&mut self, round: u64, summary: &mut Summary) -> Result<(), String> {
        let phase = PHASES[self.draw.below(PHASES.len() as u64) as usize];
        let blow = Blow::draw(self);
        let deadline = Duration::from_millis(400 + self.draw.below(2000));
        let kind = format!("{phase:?}, {blow:?}");
        let start = Instant::now();
        let done = self.struck(round, phase, blow, deadline, summary);
        if self.options.verbose {
            eprintln!(
                "round {round}: {kind}, deadline {deadline:?}: {:?} after {:?}",
                done,
                start.elapsed()
            );
        }
        done.map_err(|why| format!("{kind}, deadline {deadline:?}: {why}"))?;
        *summary.kinds.entry(kind).or_default() += 1;
        summary.rounds += 1;
        Ok(())
    }

    fn struck(
        &mut self,
        round: u64,
        phase: Phase,
        blow: Blow,
        deadline: Duration,
        summary: &mut Summary,
    ) -> Result<(), String> {
        let measured = self.options.measure && round.is_multiple_of(MEASURE_EVERY);
        let before = match measured {
            true => self.pump(MEASURED, summary)?,
            false => 0.0,
        };
        self.moves(Peer::Other, summary)?;
        let (mut offered, mut begun) = self.prepare(phase, deadline, summary)?;

        blow.strike(self)?;
        let struck = Instant::now();
        let lasts = blow.lasts(self);
        let consumes = !(self.options.mirrored && (blow.ends() || blow.stops()));
        let produces = self.options.mirrored || !(blow.ends() || blow.stops());
        if phase == Phase::Offered && consumes {
            begun = self.late(&mut offered, deadline, summary)?;
        }
        if measured {
            let after = self.pump(MEASURED, summary)?;
            summary.speeds.push((before, after));
        }
        self.moves(Peer::Other, summary)?;
        std::thread::sleep(lasts.saturating_sub(struck.elapsed()));
        blow.lift(self)?;
        let lifted = Instant::now();

        if !consumes && blow.ends() {
            // Nobody is there to tell how it ended.
            if begun.take().is_some() {
                summary.count("without a consumer");
            }
        }
        if phase == Phase::Offered && !consumes {
            begun = self.late(&mut offered, deadline, summary)?;
        }
        let same_life = produces || !blow.ends();
        if let Some((number, _)) = &offered
            && same_life
        {
            let offer = *number;
            self.producer(Peer::Victim).done(&Ask::Ready {
                offer,
                layer: None,
                tokens: 400,
            })?;
        }
        if let Some(begun) = begun {
            self.outcome(&begun, blow, lifted, summary)?;
        }
        if let Some((offer, _)) = offered
            && same_life
        {
            self.producer(Peer::Victim).done(&Ask::Withdraw { offer })?;
            self.released(Peer::Victim, offer, Instant::now() + 2 * LOSS + GRACE)?;
        }
        self.moves(Peer::Victim, summary)?;
        self.moves(Peer::Other, summary)?;
        if self.options.plant == Some(Plant::Offer) {
            let span = Span {
                tokens: 32,
                first: 0,
            };
            self.offer(Peer::Other, span, span, false)?;
        }
        self.compare()?;
        self.at_rest(summary)
    }

    /// What is under way in a phase: an offer's number and handle, and a transfer.
    #[allow(clippy::type_complexity, reason = "two things that may be")]
    fn prepare(
        &mut self,
        phase: Phase,
        deadline: Duration,
        summary: &mut Summary,
    ) -> Result<(Option<(u64, (String, super::line::Moved))>, Option<Begun>), String> {
        if phase == Phase::Idle {
            return Ok((None, None));
        }
        if phase == Phase::Linking {
            self.victim.kill();
            self.restart()?;
        }
        let tokens = 64 + self.draw.below(337) as u32;
        let from = Span {
            tokens,
            first: self.draw.below(7) as u32,
        };
        let to = Span {
            tokens,
            first: self.draw.below(3) as u32,
        };
        let progressive = matches!(phase, Phase::Moving | Phase::Last) && self.draw.below(4) > 0;
        let (offer, handle, moved) = self.offer(Peer::Victim, from, to, progressive)?;
        if phase == Phase::Offered {
            return Ok((Some((offer, (handle, moved))), None));
        }
        if phase == Phase::Linking {
            self.introduce(Peer::Victim)?;
        }
        let map = self.draw.below(2) == 0;
        let begun = match self.pull(Peer::Victim, handle.clone(), moved.clone(), deadline, map)? {
            Ok(begun) => Some(begun),
            // It is known to have restarted, and that no such life is known yet.
            Err(_) if phase == Phase::Linking => {
                summary.count("refused at once");
                None
            }
            Err(why) => return Err(format!("an offer just made cannot be pulled: {why}")),
        };
        match phase {
            Phase::Moving if progressive => {
                for layer in 0..1 + self.draw.below(3) as u32 {
                    let ready = Ask::Ready {
                        offer,
                        layer: Some(layer),
                        tokens,
                    };
                    self.producer(Peer::Victim).done(&ready)?;
                }
            }
            Phase::Last => {
                let ready = Ask::Ready {
                    offer,
                    layer: None,
                    tokens,
                };
                self.producer(Peer::Victim).done(&ready)?;
                let transfer = begun.as_ref().map(|begun| begun.transfer);
                let until = Instant::now() + Duration::from_millis(500);
                for _ in 0..4 {
                    self.consumer(Peer::Victim).wait(until, |event| {
                        matches!(event, Say::Layer { transfer: of, .. } if Some(*of) == transfer).then_some(())
                    });
                }
            }
            _ => {}
        }
        if phase != Phase::Last {
            std::thread::sleep(Duration::from_micros(self.draw.below(20_000)));
        }
        Ok((Some((offer, (handle, moved))), begun))
    }

    /// Pulls what was offered before.
    #[allow(clippy::type_complexity, reason = "an offer that may be")]
    fn late(
        &mut self,
        offered: &mut Option<(u64, (String, super::line::Moved))>,
        deadline: Duration,
        summary: &mut Summary,
    ) -> Result<Option<Begun>, String> {
        let Some((_, (handle, moved))) = offered else {
            return Ok(None);
        };
        let map = self.draw.below(2) == 0;
        match self.pull(Peer::Victim, handle.clone(), moved.clone(), deadline, map)? {
            Ok(begun) => Ok(Some(begun)),
            // Of a life that is known to be over.
            Err(_) => {
                summary.count("refused at once");
                Ok(None)
            }
        }
    }

    /// A transfer with the victim ends once, in time; what is not committed is fenced.
    fn outcome(
        &mut self,
        begun: &Begun,
        blow: Blow,
        lifted: Instant,
        summary: &mut Summary,
    ) -> Result<(), String> {
        let mut due = begun.at + begun.deadline;
        if self.options.mirrored && blow.stops() {
            // Who is stopped tells nothing.
            due = due.max(lifted);
        }
        let Some((at, report, fenced)) = self.ended(Peer::Victim, begun, due + GRACE) else {
            return Err(format!("no outcome {GRACE:?} after its deadline"));
        };
        summary.latest = summary.latest.max(at.saturating_duration_since(due));
        if report.is_committed() {
            summary.count("committed");
            if !fenced {
                return Err("committed without a fence".to_owned());
            }
            self.committed.push((Peer::Victim, begun.moved.clone()));
            return Ok(());
        }
        let failure = serde_json::to_value(report.failure()).unwrap_or_default();
        summary.count(failure["kind"].as_str().unwrap_or("cancelled"));
        self.note_dirty(&report, begun.moved.to)?;
        if !fenced {
            summary.quarantined += 1;
            let until = lifted.max(at) + 2 * LOSS + GRACE;
            let free = self.fenced(Peer::Victim, begun.transfer, until)?;
            let took = free.saturating_duration_since(lifted.max(at));
            summary.longest_fence = summary.longest_fence.max(took);
        }
        Ok(())
    }

    /// Moves requests with the other for a while, as many as can be one after another; how many a second.
    fn pump(&mut self, time: Duration, summary: &mut Summary) -> Result<f64, String> {
        let (start, mut moved) = (Instant::now(), 0.0);
        while start.elapsed() < time {
            self.moves(Peer::Other, summary)?;
            moved += 1.0;
        }
        Ok(moved / start.elapsed().as_secs_f64())
    }

    /// Nothing was told twice, and the survivor is as small as it was before.
    fn at_rest(&mut self, summary: &mut Summary) -> Result<(), String> {
        let until = Instant::now() + BACK;
        let rest = self.rest;
        let stats = loop {
            let stats = self.survivor.stats()?;
            if stats.size <= rest.size && stats.fds <= rest.fds {
                break stats;
            }
            if Instant::now() > until {
                return Err(format!(
                    "the survivor was {rest:?} at rest, and is {stats:?}"
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        summary.sizes.push(stats);
        for process in [&mut self.survivor, &mut self.other, &mut self.victim] {
            let name = process.name().to_owned();
            for event in process.drain() {
                if matches!(
                    event,
                    Say::Ended { .. } | Say::Fenced { .. } | Say::Released { .. }
                ) {
                    // Of what was cut off, the producer tells as well; a consumer tells once, and that was taken.
                    let serves = matches!(event, Say::Released { .. });
                    if !serves {
                        return Err(format!(
                            "{name} says so again, or of nothing that was asked: {event:?}"
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}
