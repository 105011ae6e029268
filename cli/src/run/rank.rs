//! One rank of `moai run`: a process that owns one pool.

use std::{
    collections::BTreeMap,
    io::{BufRead, Write},
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    time::{Duration, Instant},
};

use moai_fabric::{
    Fabric, check,
    collectives::{
        execute::{Pool, Requested},
        transfer::Session,
    },
    config::{self, Config},
    device, files,
    memory::{
        MemoryKind,
        sim::{SimConfig, SimDevice},
    },
    synthetic::{self, Seeded},
    transport::{Address, AddressError},
};

use super::talk::{FromRank, ToRank};
use crate::{
    args::{self, Role},
    convert,
    failure::Failure,
    inputs, keys,
};

/// Lines of progress a second, at most.
const PROGRESS_PAUSE: Duration = Duration::from_millis(40);

pub(crate) fn rank(command: &args::Rank) -> Result<(), Failure> {
    part(command).inspect_err(|failure| {
        say(&FromRank::Broken {
            why: failure.to_string(),
        })
    })
}

fn part(command: &args::Rank) -> Result<(), Failure> {
    let mut config = Config::from_env()?;
    config.insecure |= command.insecure;
    keys::protect(&mut config, command.tls.as_deref())?;
    if let Some(seconds) = command.deadline {
        config.deadline = config::deadline(seconds).map_err(Failure::Input)?;
    }
    if let Some(transports) = &command.transport {
        config.transports = config::transports(transports).map_err(Failure::Input)?;
    }
    if let Some(kind) = &command.memory {
        config.memory = config::memory(kind).map_err(Failure::Input)?;
    }
    if let Some(rate) = command.max_rate {
        config.max_bytes_per_second = Some(rate).filter(|&rate| rate > 0);
    }
    let paths = (command.producer.as_deref(), command.consumer.as_deref());
    let sides = inputs::sides(paths.0, paths.1, command.tokens, command.seed)?;
    let requested = inputs::agree(sides, None)?;
    let ear = Ear::open();
    let fabric = Fabric::new(config).with_session(ear.session()?);
    match command.role {
        Role::Producer => produce(command, &fabric, &requested, &ear),
        Role::Consumer => consume(command, &fabric, &requested, &ear),
    }
}

fn produce(
    command: &args::Rank,
    fabric: &Fabric,
    requested: &Arc<Requested>,
    ear: &Ear,
) -> Result<(), Failure> {
    let (agreed, request) = (requested.agreed(), requested.producer());
    let kind = fabric.pool_kind();
    let mut pool = match &command.producer {
        Some(path) => own_pool(kind, path, &agreed.producer, command.rank)?,
        None => {
            synthetic::producer_pool_in(kind, &agreed.producer, request, command.rank, command.seed)
                .map_err(|error| Failure::Input(error.to_string()))?
        }
    };
    pool = settled(kind, pool)?;
    let server = fabric.listen()?;
    say(&FromRank::Ready {
        addresses: server.addresses().iter().map(ToString::to_string).collect(),
    });
    ear.hear()?;
    let report = server.serve(requested, command.rank, &mut pool, &mut progress());
    say(&FromRank::Reported {
        report: Box::new(report),
    });
    Ok(())
}

fn consume(
    command: &args::Rank,
    fabric: &Fabric,
    requested: &Arc<Requested>,
    ear: &Ear,
) -> Result<(), Failure> {
    let agreed = requested.agreed();
    let before = |kind| -> Result<Pool, Failure> {
        match &command.consumer {
            Some(path) => own_pool(kind, path, &agreed.consumer, command.rank),
            None => synthetic::background_in(kind, &agreed.consumer, command.rank, command.seed)
                .map_err(|error| Failure::Input(error.to_string())),
        }
    };
    let kind = fabric.target_kind();
    let mut pool = settled(kind, before(kind)?)?;
    say(&FromRank::Ready {
        addresses: Vec::new(),
    });
    let ToRank::Go { addresses } = ear.hear()? else {
        return Err(Failure::Input(
            "`moai run` said to write before to go".into(),
        ));
    };
    let addresses = addresses
        .into_iter()
        .map(|(rank, texts)| {
            Ok((
                rank,
                texts
                    .iter()
                    .map(|text| text.parse())
                    .collect::<Result<_, _>>()?,
            ))
        })
        .collect::<Result<BTreeMap<u32, Vec<Address>>, AddressError>>()
        .map_err(|error| Failure::Input(error.to_string()))?;
    let report = fabric.pull(
        requested,
        command.rank,
        &mut pool,
        &addresses,
        &mut progress(),
    )?;
    let committed = report.is_committed();
    say(&FromRank::Reported {
        report: Box::new(report),
    });
    if !committed {
        return Ok(());
    }
    if !kind.is_host_accessible() {
        pool = device::to_host(&pool).map_err(|error| Failure::Transfer(error.to_string()))?;
    }
    let mut difference = None;
    if !command.no_check {
        let seeded;
        let files;
        let pools;
        let rows: &dyn check::SourceRows = match &command.producer {
            None => {
                seeded = Seeded::new(&agreed.producer, command.seed);
                &seeded
            }
            Some(path) => {
                pools = convert::pools(path, &agreed.producer)?;
                files = check::PoolRows::new(&agreed.producer, requested.producer(), &pools);
                &files
            }
        };
        let expected = check::expected(requested, command.rank, before(MemoryKind::Host)?, rows);
        difference = check::compare(agreed, command.rank, &pool, &expected).err();
        let elements = check::elements(requested, command.rank);
        say(&FromRank::Checked {
            elements,
            difference: difference.as_ref().map(ToString::to_string),
        });
    }
    // Nothing is written unless every rank has committed, which only `run` knows.
    if let (Some(out), Some(path), None) = (&command.out, &command.consumer, difference)
        && matches!(ear.hear(), Ok(ToRank::Write))
    {
        let shard = &agreed.consumer.ranks[command.rank as usize];
        let file = files::pool_path(path, shard)?;
        let name = file.file_name().unwrap_or(file.as_os_str());
        files::write_pool(&out.join(name), shard, &pool)?;
        say(&FromRank::Wrote);
    }
    Ok(())
}

/// A pool where it is to lie: as it is, or on a device of this process.
fn settled(kind: MemoryKind, pool: Pool) -> Result<Pool, Failure> {
    match kind {
        MemoryKind::Sim => device::to_device(&SimDevice::new(SimConfig::default()), &pool)
            .map_err(|error| Failure::Input(error.to_string())),
        _ => Ok(pool),
    }
}

fn own_pool(
    kind: MemoryKind,
    description: &Path,
    side: &moai_fabric::collectives::descriptor::Descriptor,
    rank: u32,
) -> Result<Pool, Failure> {
    let shard = side
        .ranks
        .get(rank as usize)
        .ok_or_else(|| Failure::Input(format!("there is no rank {rank}")))?;
    Ok(files::read_pool_in(
        kind,
        &files::pool_path(description, shard)?,
        shard,
    )?)
}

/// Says a line. Whoever started this rank may be gone, which the deadline takes care of.
fn say(line: &FromRank) {
    if let Ok(text) = serde_json::to_string(line) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }
}

/// Lines from `run`. When it is gone, whatever the reason, this rank has nobody to tell its outcome to and
/// ends with it: the other side's ranks see a lost peer.
struct Ear {
    lines: Receiver<String>,
}

impl Ear {
    fn open() -> Self {
        let (say, lines) = channel();
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                if say.send(line).is_err() {
                    return;
                }
            }
            std::process::exit(4);
        });
        Self { lines }
    }

    /// What all ranks of the run share.
    fn session(&self) -> Result<Session, Failure> {
        let ToRank::Begin { session } = self.hear()? else {
            return Err(Failure::Input("`moai run` said no session".into()));
        };
        Session::from_secret(&session)
            .ok_or_else(|| Failure::Input("`moai run` said what is no session".into()))
    }

    fn hear(&self) -> Result<ToRank, Failure> {
        let gone = |_| Failure::Transfer("`moai run` is gone".into());
        let line = self.lines.recv().map_err(gone)?;
        serde_json::from_str(&line)
            .map_err(|error| Failure::Input(format!("`moai run` said no go: {error}")))
    }
}

fn progress() -> impl FnMut(u64, u64) {
    let mut last = Instant::now();
    move |done, total| {
        if last.elapsed() >= PROGRESS_PAUSE {
            last = Instant::now();
            say(&FromRank::Progress { done, total });
        }
    }
}
