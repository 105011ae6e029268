//! One request between two sides that know all of each other: each rank a node of its own, for one transfer.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use moai_memory::Region;
use moai_transport::PeerId;

use super::{
    Event, Network, Offer, Options, Pull, Report, Tuning, Unreached,
    accord::{Accord, Negotiate},
    driver::{Driver, Setup, draw, unix_ms},
};
use crate::{
    execute::Requested,
    protocol::{
        handle::{EngineKey, Handle, HandleFields, HandleKind, page_set},
        node::{Config, Failure, Outcome, Reason},
    },
};

/// What both sides of one transfer share, so that none but they take part: drawn by whoever starts them.
#[derive(Clone)]
pub struct Session {
    key: [u8; 32],
    epoch: u64,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({:016x}, ..)", self.epoch)
    }
}

/// What the producer's engine is called in such a transfer; its nodes have the numbers of their ranks.
pub const PRODUCER: &str = "producer";
const CONSUMER: &str = "consumer";
const NUMBER: u64 = 1;

/// How long a rank goes on after its outcome is known, so that the other side hears of it.
const LINGER: Duration = Duration::from_millis(250);

impl Session {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        let mut key = [0; 32];
        for part in key.as_chunks_mut::<8>().0 {
            *part = draw().to_le_bytes();
        }
        Self { key, epoch: draw() }
    }

    /// As text, for whoever starts the ranks to tell it to them over a way that nobody else reads.
    #[must_use]
    pub fn secret(&self) -> String {
        let bytes = self.key.iter().copied().chain(self.epoch.to_be_bytes());
        bytes.map(|byte| format!("{byte:02x}")).collect()
    }

    /// What [`secret`](Self::secret) gave; `None` if it is something else.
    #[must_use]
    pub fn from_secret(text: &str) -> Option<Self> {
        let mut bytes = [0; 40];
        if text.len() != 2 * bytes.len() || !text.is_ascii() {
            return None;
        }
        for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
        }
        let (key, epoch) = bytes.split_at(32);
        Some(Self {
            key: key.try_into().ok()?,
            epoch: u64::from_be_bytes(epoch.try_into().ok()?),
        })
    }

    fn engine_key(&self) -> EngineKey {
        EngineKey::new(self.key)
    }

    fn config(&self, engine: &str, rank: u32, requested: &Requested) -> Config {
        let mut config = Config::new(engine, rank, vec![rank], self.epoch, self.engine_key());
        config.descriptor = requested.digest().to_vec().into();
        config.seed = draw();
        config
    }
}

/// All pages of the producer, by rank and group.
fn pages(requested: &Requested) -> [u8; 16] {
    let (request, ranks) = (
        requested.producer(),
        requested.agreed().producer.ranks.len(),
    );
    let groups = request.groups();
    let lists = (0..ranks as u32).flat_map(|rank| (0..groups).map(move |group| (rank, group)));
    let lists: Vec<&[u32]> = lists
        .map(|(rank, group)| request.pages(rank, group))
        .collect();
    page_set(&lists)
}

/// Both sides have the same request, or do not come to an accord.
fn negotiate(requested: &Requested) -> Negotiate {
    let (digest, agreed) = (requested.digest(), Arc::clone(requested.agreed()));
    Box::new(move |there| {
        if there != digest {
            return Err(
                "the two sides do not mean the same request, agreement or build".to_owned(),
            );
        }
        Ok(Accord {
            digest,
            serves: Some(Arc::clone(&agreed)),
            pulls: Some(Arc::clone(&agreed)),
        })
    })
}

fn setup(node: Config, requested: &Requested, regions: usize, options: &Options) -> Setup {
    Setup {
        node,
        negotiate: negotiate(requested),
        descriptor: None,
        regions: vec![regions],
        generations: Vec::new(),
        tuning: Tuning {
            max_bytes_per_second: options.max_bytes_per_second,
            map: options.map,
            rates: options.rates.clone(),
        },
    }
}

fn local(why: String) -> Outcome {
    Outcome::Failed(Failure::Local { why })
}

/// Pulls everything that consumer rank `rank` is owed into `pool`, from producer ranks that `network` reaches as the
/// nodes of engine `producer` with their numbers.
///
/// `progress` is called with the bytes that are placed so far, of how many, counted as they would go over a wire.
/// When this returns nothing is written any more.
///
/// # Panics
///
/// If the pool does not have the regions of the rank.
pub fn consume<N: Network>(
    network: N,
    requested: &Arc<Requested>,
    rank: u32,
    pool: &mut [Region],
    session: &Session,
    options: &Options,
    progress: &mut dyn FnMut(u64, u64),
) -> Report {
    let mut report = Report::new(rank);
    let pairs = requested.agreed().agreement.pairs.iter();
    let sources: Vec<u32> = { pairs.filter(|pair| pair.target == rank) }
        .map(|pair| pair.source)
        .collect();
    if sources.is_empty() {
        return report;
    }
    let config = session.config(CONSUMER, rank, requested);
    let begun = begin(
        network,
        config,
        requested,
        pool.len(),
        (session, options),
        &sources,
    );
    let (mut driver, transfer) = match begun {
        Ok(begun) => begun,
        Err(outcome) => {
            report.end(outcome, Vec::new());
            return report;
        }
    };
    let start = Instant::now();
    let mut ended = None;
    while ended.is_none() {
        let left = options.deadline.saturating_sub(start.elapsed());
        driver.poll(pool, left);
        if let Some((done, all)) = driver.progress(transfer) {
            progress(done, all);
        }
        while let Some(event) = driver.event() {
            if let Event::Ended { report, .. } = event {
                ended = Some(*report);
            }
        }
    }
    driver.shutdown(pool, LINGER);
    ended.unwrap_or(report)
}

fn begin<N: Network>(
    network: N,
    config: Config,
    requested: &Arc<Requested>,
    regions: usize,
    (session, options): (&Session, &Options),
    sources: &[u32],
) -> Result<(Driver<N>, crate::protocol::node::TransferId), Outcome> {
    let mut driver =
        Driver::new(setup(config, requested, regions, options), network).map_err(local)?;
    let nodes: Vec<(u32, Vec<u32>)> = sources.iter().map(|&rank| (rank, vec![rank])).collect();
    driver.know(PRODUCER, &nodes).map_err(local)?;
    // All at once, rather than one after another as parts come to wait for them.
    driver.connect(PRODUCER);
    let handle = Handle::seal(
        HandleFields {
            kind: HandleKind::Offer,
            engine: PRODUCER.to_owned(),
            epoch: session.epoch,
            number: NUMBER,
            pages: pages(requested),
            tokens: requested.tokens(),
            expires_unix_ms: unix_ms().saturating_add(options.deadline.as_millis() as u64),
            bound: Some(CONSUMER.to_owned()),
        },
        &session.engine_key(),
    );
    let handle = handle.map_err(|error| local(error.to_string()))?;
    let pull = Pull {
        whole: Some(Arc::clone(requested)),
        by_layer: false,
        map: true,
        ..Pull::new(handle, requested.consumer().clone(), options.deadline)
    };
    let transfer = driver.pull(pull).map_err(Outcome::Failed)?;
    Ok((driver, transfer))
}

/// Serves producer rank `rank` from `pool`, over an interface that listens, until every consumer rank that it owes
/// something has said how it ended.
///
/// The pages are read only. They stay lent to consumers that map them until this returns.
///
/// `progress` is called with the bytes handed to the transport so far, of how many; those of mapped pages count as they
/// would go over a wire.
///
/// # Panics
///
/// If the pool does not have the regions of the rank.
pub fn produce<N: Network>(
    network: N,
    requested: &Arc<Requested>,
    rank: u32,
    pool: &mut [Region],
    session: &Session,
    options: &Options,
    progress: &mut dyn FnMut(u64, u64),
) -> Report {
    let mut report = Report::new(rank);
    let pairs = requested.agreed().agreement.pairs.iter();
    let pairs: Vec<_> = pairs.filter(|pair| pair.source == rank).collect();
    if pairs.is_empty() {
        return report;
    }
    let total = { pairs.iter() }
        .map(|pair| requested.chunks(pair).wire_bytes())
        .sum();
    let config = session.config(PRODUCER, rank, requested);
    let offer = Offer {
        whole: Some(Arc::clone(requested)),
        pages: Some(pages(requested)),
        bound: Some(CONSUMER.to_owned()),
        // Longer than the deadline below, which says what is missing.
        ..Offer::new(NUMBER, requested.producer().clone(), options.deadline * 2)
    };
    let setup = setup(config, requested, pool.len(), options);
    let begun = Driver::new(setup, network).and_then(|mut driver| {
        driver.offer(offer)?;
        Ok(driver)
    });
    let mut driver = match begun {
        Ok(driver) => driver,
        Err(why) => {
            report.end(local(why), Vec::new());
            return report;
        }
    };
    let start = Instant::now();
    let mut waits_for: Vec<u32> = pairs.iter().map(|pair| pair.target).collect();
    let mut failure = None;
    loop {
        let left = options.deadline.saturating_sub(start.elapsed());
        if left.is_zero() {
            let ranks: Vec<String> = waits_for.iter().map(u32::to_string).collect();
            let missing = format!("the outcome of rank {}", ranks.join(", "));
            failure.get_or_insert(Failure::Deadline { missing });
        }
        if failure.is_some() {
            break;
        }
        driver.poll(pool, left);
        progress(driver.served_bytes(), total);
        let mut over = false;
        while let Some(event) = driver.event() {
            match event {
                Event::Served {
                    ranks: (_, target),
                    failure: None,
                    ..
                } => waits_for.retain(|&rank| rank != target),
                Event::Served {
                    ranks: (_, rank),
                    failure: Some((reason, why)),
                    ..
                } => drop(failure.get_or_insert(match reason {
                    Reason::Lost => Failure::Lost { rank, why },
                    Reason::Local => Failure::Local { why },
                    reason => Failure::Refused { rank, reason, why },
                })),
                Event::Released { report: all, .. } => {
                    report = *all;
                    over = true;
                }
                _ => {}
            }
        }
        if over {
            break;
        }
    }
    driver.shutdown(pool, LINGER);
    while let Some(event) = driver.event() {
        if let Event::Released { report: all, .. } = event {
            report = *all;
        }
    }
    if let Some(failure) = failure {
        report.end(Outcome::Failed(failure), Vec::new());
    }
    report
}

/// What a test or a tool has at hand instead of a [`Network`]: an interface and a way to reach producer ranks.
#[derive(Debug)]
#[allow(clippy::exhaustive_structs, reason = "callers write these out")]
pub struct Reach<'a, I, C> {
    /// The interface.
    pub interface: &'a mut I,
    /// Starts connecting to a producer rank.
    pub connect: C,
    /// Whether memory of a peer can be mapped.
    pub can_map: bool,
}

impl<I, C> Network for Reach<'_, I, C>
where
    I: moai_transport::Interface,
    C: FnMut(&mut I, u32) -> Result<PeerId, Unreached>,
{
    fn interface(&mut self) -> &mut dyn moai_transport::Interface {
        self.interface
    }

    fn connect(&mut self, _engine: &str, node: u32) -> Result<PeerId, Unreached> {
        (self.connect)(self.interface, node)
    }

    fn can_map(&self, _peer: PeerId) -> bool {
        self.can_map
    }
}
