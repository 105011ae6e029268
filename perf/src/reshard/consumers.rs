//! The consumer ranks: threads of this process, each pulling what it is owed.

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use moai_fabric::{
    Fabric, check,
    collectives::{
        execute::{Pool, Requested},
        transfer::{Report, Session},
    },
    files,
    synthetic::Seeded,
};
use moai_transport::Address;

use super::{case::Case, producers::Producers};
use crate::{failure::Failure, usage};

/// A case with its pools.
pub(super) struct Consumers {
    case: Case,
    fabric: Fabric,
    requested: Arc<Requested>,
    pools: Vec<Pool>,
    /// Its name at the producers' process.
    id: usize,
}

/// One transfer.
#[derive(Clone, Debug)]
pub(super) struct Round {
    /// From the moment the first consumer begins to that at which the last one has committed.
    pub(super) time: Duration,
    /// Of both processes.
    pub(super) cpu: Duration,
    pub(super) bytes_read: u64,
    pub(super) bytes_wire: u64,
    /// How the bytes came, in a word or two.
    pub(super) way: String,
}

impl Consumers {
    /// Opens both halves of a case, and moves a small request first whose every element is compared with the
    /// reference.
    pub(super) fn open(producers: &mut Producers, case: &Case) -> Result<Self, Failure> {
        let mut small = Self::pools(producers, &case.small())?;
        small.round(producers)?;
        small.check()?;
        drop(small);
        Self::pools(producers, case)
    }

    fn pools(producers: &mut Producers, case: &Case) -> Result<Self, Failure> {
        let (fabric, requested) = (case.fabric()?, case.agree()?);
        let agreed = Arc::clone(requested.agreed());
        let pool = |rank: &_| files::empty_pool(rank);
        let pools: Result<Vec<Pool>, _> = agreed.consumer.ranks.iter().map(pool).collect();
        let mut pools = pools.map_err(|error| Failure::Lost(error.to_string()))?;
        for region in pools.iter_mut().flatten() {
            // Pages are taken from the system here, not while the time is taken.
            region.as_mut_slice().fill(1);
        }
        Ok(Self {
            id: producers.open(case)?,
            case: case.clone(),
            fabric,
            requested,
            pools,
        })
    }

    pub(super) fn case(&self) -> &Case {
        &self.case
    }

    pub(super) fn tokens(&self) -> u32 {
        self.requested.tokens()
    }

    /// Moves the request once.
    pub(super) fn round(&mut self, producers: &mut Producers) -> Result<Round, Failure> {
        let session = Session::random();
        let told = producers.serve(self.id, &session)?;
        let parse = |text: &String| {
            let address = text.parse::<Address>();
            address.map_err(|error| Failure::Lost(error.to_string()))
        };
        let parse_all = |texts: &Vec<String>| texts.iter().map(parse).collect();
        let told: Vec<Vec<Address>> = told.iter().map(parse_all).collect::<Result<_, _>>()?;
        let addresses: BTreeMap<u32, Vec<Address>> = (0..).zip(told).collect();
        let (before, start) = (usage::cpu(), Instant::now());
        let Self {
            fabric,
            requested,
            pools,
            ..
        } = self;
        let fabric = fabric.clone().with_session(session);
        let pulled: Vec<Result<Report, Failure>> = thread::scope(|scope| {
            let (fabric, addresses) = (&fabric, &addresses);
            let ranks: Vec<_> = (0..)
                .zip(pools)
                .map(|(rank, pool)| {
                    let requested = Arc::clone(requested);
                    scope.spawn(move || {
                        let pulled = fabric.pull(&requested, rank, pool, addresses, &mut |_, _| {});
                        pulled.map_err(|error| Failure::Lost(error.to_string()))
                    })
                })
                .collect();
            let join = |rank: thread::ScopedJoinHandle<'_, Result<Report, Failure>>| {
                let panicked = |_| Err(Failure::Lost("a consumer panicked".to_owned()));
                rank.join().unwrap_or_else(panicked)
            };
            ranks.into_iter().map(join).collect()
        });
        // A rank lingers after its outcome so that the other side hears of it; that is not waited for.
        let mut round = Round {
            time: Duration::ZERO,
            cpu: Duration::ZERO,
            bytes_read: 0,
            bytes_wire: 0,
            way: String::new(),
        };
        for report in pulled {
            let report = report?;
            if let Some(failure) = report.failure() {
                return Err(Failure::Wrong(format!(
                    "consumer {}: {failure}",
                    report.rank
                )));
            }
            round.time = round.time.max(Duration::from_nanos(report.elapsed_ns));
            round.bytes_wire += report.bytes_wire;
            if let Some(route) = report.routes.first() {
                round.way = format!("{} over {}", route.way, route.provider);
            }
        }
        round.time = round.time.min(start.elapsed());
        round.cpu = usage::cpu() - before + producers.served()?;
        round.bytes_read = self.bytes_read();
        Ok(round)
    }

    /// Bytes of the request's rows, in the producer's format, each once.
    fn bytes_read(&self) -> u64 {
        let traffic = moai_fabric::collectives::traffic::traffic(&self.requested);
        traffic.iter().map(|pair| pair.bytes_read).sum()
    }

    /// Compares every byte of the pools with what the reference makes of the producers' values.
    fn check(&self) -> Result<(), Failure> {
        let rows = Seeded::new(&self.requested.agreed().producer, self.case.seed);
        for (rank, pool) in (0..).zip(&self.pools) {
            let shard = &self.requested.agreed().consumer.ranks[rank as usize];
            let before = files::empty_pool(shard);
            let mut before = before.map_err(|error| Failure::Lost(error.to_string()))?;
            for region in &mut before {
                region.as_mut_slice().fill(1);
            }
            let expected = check::expected(&self.requested, rank, before, &rows);
            check::compare(self.requested.agreed(), rank, pool, &expected)
                .map_err(|difference| Failure::Wrong(difference.to_string()))?;
        }
        Ok(())
    }
}
