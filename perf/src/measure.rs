//! Rounds in which ways to move the same bytes take turns.
//!
//! Whatever else the machine does meets all of them alike; every other round goes through them backwards,
//! so that none always comes after the same one. The first round warms up and does not count. Data is new
//! in each round and is checked after it, outside of the time that counts.

use std::time::Duration;

use crate::{
    failure::Failure,
    histogram::{Histogram, Percentiles},
    mover::Step,
    pattern::Pattern,
    peer::{Opened, Peer},
    random::Random,
    timing::{Rounds, Spread},
    usage,
};

/// What one way reached.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Its name.
    pub(crate) name: String,
    /// Of a round.
    pub(crate) times: Spread,
    /// What each round took, or its median operation, in the order of rounds: those of two ways that took
    /// turns belong together.
    pub(crate) rounds: Vec<Duration>,
    /// CPU time of both processes in the median round.
    pub(crate) cpu: Duration,
    /// Of single operations.
    pub(crate) pings: Option<Pings>,
}

/// Single operations of all rounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pings {
    pub(crate) percentiles: Percentiles,
    /// The median operation of each round.
    pub(crate) p50: Spread,
}

/// Lets each of `ways` do `step` in turn.
///
/// # Errors
///
/// The first of a way, and wrong data.
pub(crate) fn interleave(
    peer: &mut Peer,
    ways: &mut [Opened],
    step: Step,
    rounds: Rounds,
    seed: u64,
) -> Result<Vec<Measured>, Failure> {
    let mut random = Random(seed);
    let mut notes: Vec<Notes> = ways.iter().map(|_| Notes::new()).collect();
    for round in 0..=rounds.most {
        let mut turns: Vec<usize> = (0..ways.len()).collect();
        if round % 2 == 1 {
            turns.reverse();
        }
        for turn in turns {
            // Beyond all indices of words, so that no word is zero.
            let salt = random.next() | 1 << 63;
            let one = once(peer, &mut ways[turn], step, salt)?;
            if round > 0 {
                notes[turn].add(one);
            }
        }
    }
    let named = ways.iter().zip(notes);
    Ok(named
        .map(|(way, notes)| notes.measured(way.mover.name()))
        .collect())
}

/// One round of one way.
struct Round {
    time: Duration,
    cpu: Duration,
    pings: Histogram,
}

fn once(peer: &mut Peer, way: &mut Opened, step: Step, salt: u64) -> Result<Round, Failure> {
    let pattern = Pattern::new(salt);
    let is_ping = matches!(step, Step::Ping { .. });
    // Without a partner, source and target are both here.
    let partner = way.id.filter(|_| !is_ping);
    if !is_ping {
        match partner.filter(|_| !step.is_outward()) {
            Some(id) => peer.fill(id, salt)?,
            None => way.mover.fill(pattern)?,
        }
    }
    let mut pings = Histogram::new();
    if let Some(id) = way.id {
        peer.begin(id, step)?;
    }
    let before = usage::cpu();
    let time = way.mover.step(step, &mut pings)?;
    let mut cpu = usage::cpu() - before;
    if way.id.is_some() {
        cpu += peer.end()?;
    }
    if !is_ping {
        match partner.filter(|_| step.is_outward()) {
            Some(id) => peer.check(id, salt)?,
            None => way.mover.check(pattern)?,
        }
    }
    Ok(Round { time, cpu, pings })
}

/// What is noted of one way.
struct Notes {
    times: Vec<Duration>,
    cpu: Vec<Duration>,
    p50: Vec<Duration>,
    all: Histogram,
}

impl Notes {
    fn new() -> Self {
        Self {
            times: Vec::new(),
            cpu: Vec::new(),
            p50: Vec::new(),
            all: Histogram::new(),
        }
    }

    fn add(&mut self, round: Round) {
        self.times.push(round.time);
        self.cpu.push(round.cpu);
        if let Some(percentiles) = round.pings.percentiles() {
            self.p50.push(Duration::from_nanos(percentiles.p50_ns));
            self.all.add(&round.pings);
        }
    }

    fn measured(self, name: String) -> Measured {
        let rounds = if self.p50.is_empty() {
            &self.times
        } else {
            &self.p50
        };
        Measured {
            name,
            rounds: rounds.clone(),
            times: Spread::of(self.times),
            cpu: Spread::of(self.cpu).median,
            pings: self.all.percentiles().map(|percentiles| Pings {
                percentiles,
                p50: Spread::of(self.p50),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_become_medians() {
        let mut notes = Notes::new();
        for ms in [5, 1, 9] {
            let mut pings = Histogram::new();
            pings.record(Duration::from_millis(ms));
            let time = Duration::from_millis(10 * ms);
            notes.add(Round {
                time,
                cpu: Duration::from_millis(2 * ms),
                pings,
            });
        }
        let measured = notes.measured("one".to_owned());
        assert_eq!(measured.times.median, Duration::from_millis(50));
        assert_eq!(measured.cpu, Duration::from_millis(10));
        assert!(measured.rounds.len() == 3 && !measured.rounds.is_sorted());
        let pings = measured.pings.unwrap();
        assert_eq!((pings.percentiles.count, pings.p50.rounds), (3, 3));
        assert!((4_990_000..5_010_000).contains(&pings.percentiles.p50_ns));
    }
}
