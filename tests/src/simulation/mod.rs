//! A seeded world of engines whose nodes run the real protocol over simulated links and memory.
//!
//! Producers offer requests, routers carry handles, consumers pull; meanwhile links are slow, reset, partitioned, processes
//! stop, crash and restart under the same name or never come back, some are slow, clocks differ, bits flip, chunks come twice,
//! writes are placed late, and some producers free pages that are still lent. In some worlds an engine lies: it leaves messages
//! out, says them twice, changes them, says again what it said elsewhere, and makes up others. Pages hold values, so that a wrong
//! one is seen and not only flagged.
//!
//! # What is checked after each event
//!
//! - A transfer has one outcome, by its deadline.
//! - What is committed, or reported layer by layer, has the right values.
//! - Nothing is written to a page that is not being filled by that transfer, nor read from one that was released.
//! - An engine's earlier life is never taken for its present one.
//! - An offer serves a pair of ranks once, only who it is for, and only with a handle that its engine made; it counts as consumed
//!   only if its consumer has all of it.
//! - A push is declined only by who was asked. Digests differ only where bits flip.
//!
//! At rest no page is in use, no node has a transfer, an offer or a grant left, or waits for a link, its tables are as small as its links ask for,
//! both ends agree on one link, and no node has seen its protocol broken by one that does not lie.
//!
//! Everything is drawn from the seed: the same seed gives the same world.

mod cache;
mod consuming;
mod lies;
mod producing;
mod random;
mod world;

use std::fmt;

pub use moai_collectives::protocol::node::Faults;

use world::World;

/// Which world.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Its seed.
    pub seed: u64,
    /// Bugs that are planted in all of its nodes.
    pub faults: Faults,
    /// How large it is.
    pub size: Size,
}

/// How large a world is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "tests choose one")]
pub enum Size {
    /// A few engines of up to four ranks, drawn from the seed, and dozens of requests.
    Small,
    /// So many producer engines and consumer engines of so many ranks each; every consumer pulls from every producer.
    Large {
        /// Producer engines.
        producers: u32,
        /// Consumer engines.
        consumers: u32,
        /// Ranks of each, a process a rank.
        ranks: u32,
    },
}

/// What happened in a world, or in many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Worlds.
    pub worlds: u64,
    /// Events.
    pub events: u64,
    /// Transfers begun, one for each consumer node and request.
    pub transfers: u64,
    /// Committed.
    pub committed: u64,
    /// Failed.
    pub failed: u64,
    /// Cancelled.
    pub cancelled: u64,
    /// Ended before they were fenced.
    pub quarantined: u64,
    /// Handles that were refused where they were handed in.
    pub refused: u64,
    /// Failed because digests differed.
    pub mismatches: u64,
    /// Discarded because pages had been reused.
    pub stale: u64,
    /// Engines that were restarted.
    pub restarts: u64,
    /// Links that were lost.
    pub links_lost: u64,
    /// Peers refused for an earlier life.
    pub epochs_refused: u64,
    /// Offers that were consumed.
    pub consumed: u64,
    /// Late messages and chunks that were discarded.
    pub late: u64,
    /// Messages and chunks that a liar left out, changed or made up.
    pub lies: u64,
    /// Chunks that came twice.
    pub repeats: u64,
    /// Engines that went and did not come back.
    pub departed: u64,
    /// Pushes that were declined.
    pub declined: u64,
}

impl Summary {
    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.worlds += other.worlds;
        self.events += other.events;
        self.transfers += other.transfers;
        self.committed += other.committed;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
        self.quarantined += other.quarantined;
        self.refused += other.refused;
        self.mismatches += other.mismatches;
        self.stale += other.stale;
        self.restarts += other.restarts;
        self.links_lost += other.links_lost;
        self.epochs_refused += other.epochs_refused;
        self.consumed += other.consumed;
        self.late += other.late;
        self.lies += other.lies;
        self.repeats += other.repeats;
        self.departed += other.departed;
        self.declined += other.declined;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            worlds,
            events,
            transfers,
            committed,
            failed,
            cancelled,
            ..
        } = self;
        write!(
            f,
            "{worlds} worlds, {events} events, {transfers} transfers: {committed} committed, {failed} failed, \
             {cancelled} cancelled ({} quarantined for a while, {} digests differed, {} found their pages reused), \
             {} handles refused, {} offers consumed, {} restarts, {} links lost, {} stale epochs refused, {} late messages, \
             {} lies, {} chunks twice, {} engines gone, {} pushes declined",
            self.quarantined,
            self.mismatches,
            self.stale,
            self.refused,
            self.consumed,
            self.restarts,
            self.links_lost,
            self.epochs_refused,
            self.late,
            self.lies,
            self.repeats,
            self.departed,
            self.declined
        )
    }
}

/// Something that must not happen did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Seed of the world.
    pub seed: u64,
    /// How large it is.
    pub size: Size,
    /// When, in simulated nanoseconds.
    pub at_ns: u64,
    /// What.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seed,
            size,
            at_ns,
            what,
        } = self;
        let ms = at_ns / 1_000_000;
        write!(
            f,
            "seed {seed}, after {ms} ms: {what}\nreplay: cargo run --release -p moai-tests --bin moai-sim -- --first {seed} --seeds 1"
        )?;
        match size {
            Size::Small => Ok(()),
            Size::Large {
                producers,
                consumers,
                ranks,
            } => write!(f, " --large {producers},{consumers},{ranks}"),
        }
    }
}

/// Runs one world to its rest.
///
/// # Errors
///
/// The first [`Violation`].
pub fn run(options: &Options) -> Result<Summary, Violation> {
    World::new(options).run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_replays_a_world_names_its_size() {
        let size = Size::Large {
            producers: 3,
            consumers: 2,
            ranks: 8,
        };
        for (size, end) in [
            (Size::Small, "--seeds 1"),
            (size, "--seeds 1 --large 3,2,8"),
        ] {
            let violation = Violation {
                seed: 7,
                size,
                at_ns: 0,
                what: String::new(),
            };
            assert!(violation.to_string().ends_with(end), "{violation}");
        }
    }
}
