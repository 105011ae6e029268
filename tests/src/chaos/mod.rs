//! Engines in processes of their own, one of which is killed, stopped, ended or cut off, over and over, from a seed.
//!
//! A world has three processes: a victim, a survivor that is linked to it, and another that the survivor is linked to as
//! well. The victim is the producer or the consumer of what is disturbed. After every round it is checked what must hold:
//! each transfer has one outcome in time, every byte of all consumers is what it is to be, the transfers with the other
//! have all been committed, pages are free again, and the survivor is as small as before.

mod line;
mod network;
mod process;
mod round;
mod serve;
mod summary;
mod world;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

pub use network::available as network_available;
pub use serve::serve;
pub use summary::Summary;

/// What is run.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "callers write these out")]
pub struct Options {
    /// The program of one process: `moai-live`.
    pub binary: PathBuf,
    /// Rounds of this world.
    pub rounds: u64,
    /// Where it ends even if there are rounds left.
    pub limit: Option<Duration>,
    /// What everything is drawn from.
    pub seed: u64,
    /// The transport.
    pub transport: String,
    /// Whether the victim consumes, and the survivor produces.
    pub mirrored: bool,
    /// Whether the victim has a network of its own, to be cut off; needs root.
    pub network: bool,
    /// Whether the survivor's throughput is measured.
    pub measure: bool,
    /// Something wrong, to see that it is found.
    pub plant: Option<Plant>,
    /// Whether each round is told on standard error.
    pub verbose: bool,
}

/// What is done wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "tests write these out")]
pub enum Plant {
    /// A byte of a page that nothing was moved to is changed.
    Byte,
    /// An offer is never taken back.
    Offer,
}

/// Runs rounds until they are done, time is up, or something does not hold: what was seen so far, and what does not hold,
/// with the seed and the round.
pub fn run(options: &Options) -> (Summary, Result<(), String>) {
    let mut summary = Summary::default();
    let held = rounds(options, &mut summary);
    let held = held.and_then(|()| summary.grown());
    let (seed, transport) = (options.seed, &options.transport);
    let victim = match options.mirrored {
        true => "consumer",
        false => "producer",
    };
    let held = held.map_err(|why| format!("seed {seed}, {transport}, victim {victim}, {why}"));
    (summary, held)
}

fn rounds(options: &Options, summary: &mut Summary) -> Result<(), String> {
    let start = Instant::now();
    let mut world = world::World::start(options)?;
    for round in 0..options.rounds {
        if options.limit.is_some_and(|limit| start.elapsed() >= limit) {
            break;
        }
        let held = world.round(round, summary);
        held.map_err(|why| format!("round {round}: {why}"))?;
    }
    Ok(())
}
