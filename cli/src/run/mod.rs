//! `moai run`: a cache moved live between processes, and verified.

pub(crate) mod rank;
mod ranks;
mod talk;

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    io::{IsTerminal, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use moai_fabric::{
    collectives::{
        execute::{Agreed, Requested},
        negotiate::Role,
        traffic::{PairTraffic, traffic},
        transfer::{Ended, Report, Route, Session},
    },
    config::{self, Config},
    files,
    metrics::{self, Metrics, Readiness, State},
};
use ranks::{Event, Processes};
use serde_json::{Value, json};
use talk::{FromRank, ToRank};

use crate::{
    args, bounds, convert,
    failure::{Failure, show, write_json},
    inputs, keys, picture, plan,
};

/// How long ranks may take to fill their memory.
const START_LIMIT: Duration = Duration::from_secs(300);
/// What a rank may take beyond its deadline, or after all consumers have ended, to tell how it ended.
const GRACE: Duration = Duration::from_secs(5);
/// How long the element by element check may take.
const CHECK_LIMIT: Duration = Duration::from_secs(1800);
/// Pairs of ranks that are named when they took the same way.
const MOST_PAIRS: usize = 16;
/// Time spent on measuring what this machine can do.
const BOUNDS_BUDGET: Duration = Duration::from_millis(400);

pub(crate) fn run(command: &args::Run) -> Result<(), Failure> {
    let mut config = Config::from_env()?;
    if let Some(seconds) = command.deadline {
        let fail = |problem| Failure::Input(format!("--deadline {seconds} {problem}"));
        config.deadline = config::deadline(seconds).map_err(fail)?;
    }
    config.insecure |= command.insecure;
    keys::protect(&mut config, command.tls.as_deref())?;
    if let Some(transports) = &command.transport {
        config.transports = config::transports(transports)
            .map_err(|problem| Failure::Input(format!("--transport {transports} {problem}")))?;
    }
    if let Some(kind) = &command.memory {
        config.memory = config::memory(kind)
            .map_err(|problem| Failure::Input(format!("--memory {kind} {problem}")))?;
    }
    config.allow(config.bind)?;
    let paths = (command.producer.as_deref(), command.consumer.as_deref());
    let sides = inputs::sides(paths.0, paths.1, command.tokens, command.seed)?;
    let requested = inputs::agree(sides, command.json.as_deref())?;
    let agreed = requested.agreed();
    look_at_files(command, agreed)?;
    let traffic = traffic(&requested);
    let matrix = picture::matrix(&requested, &traffic, std::io::stdout().is_terminal());
    show(format_args!("{matrix}\n"))?;
    let bounds = bounds::measure(BOUNDS_BUDGET)
        .map_err(|error| Failure::Transfer(format!("cannot measure this machine: {error}")))?;

    let ranks = (
        agreed.producer.ranks.len() as u32,
        agreed.consumer.ranks.len() as u32,
    );
    let mut story = Story::new(agreed, &traffic);
    let serve = |address| metrics::serve(address, story.metrics.clone(), story.readiness.clone());
    let _server = { config.metrics.map(serve).transpose() }
        .map_err(|error| Failure::Input(format!("{error}: {}", error.cause)))?;
    let result = story.play(command, &config, ranks);
    let report = story.report(&requested, &traffic, &bounds, result.as_ref().err());
    write_json(command.json.as_deref(), &report)?;
    result?;
    show(format_args!("{}\n", story.summary(&traffic, &bounds)))
}

/// Bad files are found before any process starts.
fn look_at_files(command: &args::Run, agreed: &Agreed) -> Result<(), Failure> {
    for (path, side) in [
        (&command.producer, &agreed.producer),
        (&command.consumer, &agreed.consumer),
    ] {
        if let Some(path) = path {
            for rank in &side.ranks {
                files::read_pool(&files::pool_path(path, rank)?, rank)?;
            }
        }
    }
    match &command.out {
        Some(out) => convert::make_folder(out),
        None => Ok(()),
    }
}

/// What is known of a rank.
#[derive(Debug, Default)]
struct Told {
    name: String,
    ready: bool,
    done: u64,
    report: Option<Report>,
    checked: Option<(u64, Option<String>)>,
    wrote: bool,
    broken: Option<String>,
    gone: bool,
}

/// The course of a run.
#[derive(Debug)]
struct Story {
    told: Vec<Told>,
    producers: usize,
    wire_bytes: u64,
    took: Option<Duration>,
    /// Names the transfer in its report and in logs, never in a metric.
    request: String,
    /// Of all ranks: they are processes of their own, and this one hears how each has ended.
    metrics: Arc<Metrics>,
    readiness: Readiness,
}

impl Story {
    fn new(agreed: &Agreed, traffic: &[PairTraffic]) -> Self {
        let names = |role: Role, n: usize| (0..n).map(move |rank| format!("{role} {rank}"));
        let producers = agreed.producer.ranks.len();
        let all = names(Role::Producer, producers)
            .chain(names(Role::Consumer, agreed.consumer.ranks.len()));
        let metrics = Arc::new(Metrics::new());
        Self {
            told: all
                .map(|name| Told {
                    name,
                    ..Told::default()
                })
                .collect(),
            producers,
            wire_bytes: traffic.iter().map(|pair| pair.bytes_wire).sum(),
            took: None,
            // Each `RandomState` is keyed by the system's randomness.
            request: format!("{:016x}", RandomState::new().build_hasher().finish()),
            readiness: Readiness::new(metrics.clone()),
            metrics,
        }
    }

    fn consumers(&self) -> &[Told] {
        &self.told[self.producers..]
    }

    /// Starts the ranks and follows them to the end.
    fn play(
        &mut self,
        command: &args::Run,
        config: &Config,
        (producers, consumers): (u32, u32),
    ) -> Result<(), Failure> {
        let mut processes = Processes::start(command, producers, consumers)?;
        let mut addresses = Vec::new();
        let session = Session::random().secret();
        for role in [Role::Producer, Role::Consumer] {
            let session = session.clone();
            processes.tell(role, &ToRank::Begin { session });
        }
        if command.verbose {
            for process in &processes.list {
                let line = format!("{}: process {}", process.name(), process.id());
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        }
        self.follow(
            &mut processes,
            START_LIMIT,
            &mut |_| {},
            |told| told.ready,
            |index, line| {
                let FromRank::Ready { addresses: told } = line else {
                    return;
                };
                if told.is_empty() {
                    return;
                }
                if command.verbose {
                    let line = format!("producer {index}: listens on {}", told.join(" "));
                    let _ = writeln!(std::io::stderr(), "{line}");
                }
                addresses.push((index as u32, told.clone()));
            },
        );
        self.fail_unless(|told| told.ready, "to get ready")?;
        self.readiness.set(State::linked(self.producers));

        let bar = bar(self.wire_bytes);
        let start = Instant::now();
        processes.tell(
            Role::Producer,
            &ToRank::Go {
                addresses: Vec::new(),
            },
        );
        processes.tell(Role::Consumer, &ToRank::Go { addresses });
        let limit = config.deadline + GRACE;
        let mut draw =
            |story: &Self| bar.set_position(story.consumers().iter().map(|told| told.done).sum());
        let producers = self.producers;
        let ended = |told: &Told| told.report.is_some();
        self.follow_some(
            &mut processes,
            limit,
            &mut draw,
            move |index| index >= producers,
            ended,
            |_, _| {},
        );
        // A producer whose consumers have all ended hears of it, unless one never came to it.
        self.follow(&mut processes, GRACE, &mut draw, ended, |_, _| {});
        self.took = Some(start.elapsed());
        bar.finish_and_clear();
        self.fail_unless(
            |told| told.report.as_ref().is_some_and(Report::is_committed),
            "to tell how it ended",
        )?;

        if !command.no_check {
            let producers = self.producers;
            let settled = |told: &Told| told.checked.is_some();
            let busy = spinner("checking every element against the reference");
            let only_consumers = move |index: usize| index >= producers;
            self.follow_some(
                &mut processes,
                CHECK_LIMIT,
                &mut |_| busy.tick(),
                only_consumers,
                settled,
                |_, _| {},
            );
            busy.finish_and_clear();
            let wrong: Vec<String> = self
                .consumers()
                .iter()
                .filter_map(|told| match &told.checked {
                    Some((_, Some(difference))) => Some(difference.clone()),
                    Some((_, None)) => None,
                    None => Some(format!(
                        "{}: the check did not end: {}",
                        told.name,
                        told.broken.as_deref().unwrap_or("no answer")
                    )),
                })
                .collect();
            if !wrong.is_empty() {
                return Err(Failure::Transfer(format!(
                    "what arrived is not what the reference says\n  {}",
                    wrong.join("\n  ")
                )));
            }
        }
        if command.out.is_some() {
            processes.tell(Role::Consumer, &ToRank::Write);
            let producers = self.producers;
            self.follow_some(
                &mut processes,
                CHECK_LIMIT,
                &mut |_| {},
                move |index| index >= producers,
                |told| told.wrote,
                |_, _| {},
            );
            if let Some(told) = self.consumers().iter().find(|told| !told.wrote) {
                let why = told.broken.as_deref().unwrap_or("no answer");
                return Err(Failure::Input(format!(
                    "{} could not write its pool: {why}",
                    told.name
                )));
            }
        }
        for process in &mut processes.list {
            process.hang_up();
        }
        Ok(())
    }

    fn follow(
        &mut self,
        processes: &mut Processes,
        limit: Duration,
        draw: &mut dyn FnMut(&Self),
        settled: impl Fn(&Told) -> bool,
        heard: impl FnMut(usize, &FromRank),
    ) {
        self.follow_some(processes, limit, draw, |_| true, settled, heard);
    }

    /// Hears events until all of some ranks have settled or are gone, or the limit has passed.
    fn follow_some(
        &mut self,
        processes: &mut Processes,
        limit: Duration,
        draw: &mut dyn FnMut(&Self),
        of: impl Fn(usize) -> bool,
        settled: impl Fn(&Told) -> bool,
        mut heard: impl FnMut(usize, &FromRank),
    ) {
        let start = Instant::now();
        loop {
            let open = |(index, told): (usize, &Told)| {
                of(index) && !told.gone && told.broken.is_none() && !settled(told)
            };
            if !self.told.iter().enumerate().any(open) {
                return;
            }
            let Some(left) = limit.checked_sub(start.elapsed()) else {
                return;
            };
            match processes
                .events
                .recv_timeout(left.min(Duration::from_millis(100)))
            {
                Ok(Event::Said(index, line)) => {
                    heard(index, &line);
                    self.hear(index, line);
                }
                Ok(Event::Gone(index)) => {
                    self.told[index].gone = true;
                    let early =
                        self.told[index].report.is_none() && self.told[index].broken.is_none();
                    if early {
                        self.told[index].broken = Some(format!(
                            "its process ended: {}",
                            processes.how_it_ended(index)
                        ));
                    }
                }
                Err(_) => {}
            }
            draw(self);
        }
    }

    fn hear(&mut self, index: usize, line: FromRank) {
        let told = &mut self.told[index];
        match line {
            FromRank::Ready { .. } => told.ready = true,
            FromRank::Progress { done, .. } => told.done = done,
            FromRank::Reported { report } => {
                self.metrics.transfer(&report);
                tracing::debug!(
                    request = self.request,
                    rank = told.name,
                    committed = report.is_committed(),
                    elapsed_ns = report.elapsed_ns,
                    "part of a transfer ended"
                );
                told.report = Some(*report);
            }
            FromRank::Checked {
                elements,
                difference,
            } => told.checked = Some((elements, difference)),
            FromRank::Wrote => told.wrote = true,
            FromRank::Broken { why } => told.broken = Some(why),
        }
    }

    /// Fails with what every rank told, unless all are as they should be.
    fn fail_unless(&self, fine: impl Fn(&Told) -> bool, awaited: &str) -> Result<(), Failure> {
        if self.told.iter().all(&fine) {
            return Ok(());
        }
        let mut text = String::from("the transfer did not commit");
        for told in &self.told {
            let how = match (&told.report, &told.broken) {
                (Some(report), _) => match &report.ended {
                    Ended::Committed => "committed".to_owned(),
                    Ended::Failed { failure, dirty } => {
                        format!("{failure}{}", dirty_text(told, dirty))
                    }
                    Ended::Cancelled { dirty } => {
                        format!("cancelled{}", dirty_text(told, dirty))
                    }
                },
                (None, Some(why)) => why.clone(),
                (None, None) if fine(told) => continue,
                (None, None) => format!("took too long {awaited}"),
            };
            text += &format!("\n  {}: {how}", told.name);
        }
        Err(Failure::Transfer(text))
    }

    fn summary(&self, traffic: &[PairTraffic], bounds: &bounds::Bounds) -> String {
        let sum = |of: fn(&PairTraffic) -> u64| traffic.iter().map(of).sum::<u64>();
        let (read, written) = (sum(|p| p.bytes_read), sum(|p| p.bytes_written));
        let ns = self.slowest_ns();
        let reports = || self.told.iter().filter_map(|told| told.report.as_ref());
        let total = |of: fn(&Report) -> u64| reports().map(of).sum::<u64>();
        let consumed = self
            .consumers()
            .iter()
            .filter_map(|told| told.report.as_ref());
        let sent: u64 = consumed.map(|report| report.bytes_wire).sum();
        let gb_s = sent as f64 / ns.max(1) as f64;
        let checked: u64 = self
            .consumers()
            .iter()
            .filter_map(|told| told.checked.as_ref())
            .map(|c| c.0)
            .sum();
        let mut out = format!(
            "moved    {} read, {} on the wire, {} written in {:.3} s\n",
            picture::bytes(read),
            picture::bytes(sent),
            picture::bytes(written),
            ns as f64 / 1e9
        );
        let wire = match sent {
            0 => String::new(),
            _ => format!(", {gb_s:.2} GB/s on the wire"),
        };
        out += &format!(
            "rate     {} of cache{wire}; this machine: one loopback connection {:.2} GB/s, memcpy {:.2} GB/s\n",
            picture::rate(read, ns),
            bounds.loopback_gb_s,
            bounds.memcpy_gb_s
        );
        let direct: u64 = self
            .consumers()
            .iter()
            .filter_map(|t| t.report.as_ref())
            .map(|r| r.chunks_direct)
            .sum();
        let chunks: u64 = self
            .consumers()
            .iter()
            .filter_map(|t| t.report.as_ref())
            .map(|r| r.chunks)
            .sum();
        let mapped = self.consumers().iter().filter_map(|t| t.report.as_ref());
        let mapped: u64 = mapped.map(|r| r.chunks_mapped).sum();
        out += &match mapped {
            0 => format!(
                "placed   {direct} of {chunks} chunks were read straight into their pages\n"
            ),
            n => format!(
                "placed   {n} of {chunks} chunks were copied from mapped pages, {direct} were read straight into theirs\n"
            ),
        };
        out += &self.routes();
        let (saturated, nan) = (total(|r| r.saturated), total(|r| r.nan));
        out += &format!("values   {saturated} saturated, {nan} NaN\n");
        out += &match checked {
            0 => "digest   equal on every pair of ranks (elements not checked)".to_owned(),
            n => format!(
                "verified digests equal on every pair of ranks, {n} elements equal to the reference, no other byte touched"
            ),
        };
        out
    }

    /// The way that each pair of ranks took, those that took the same way together; and where a faster one was there.
    fn routes(&self) -> String {
        let mut taken: Vec<(&Route, Vec<String>)> = Vec::new();
        for (rank, told) in self.consumers().iter().enumerate() {
            for route in told.report.iter().flat_map(|report| &report.routes) {
                let pair = format!("{} -> {rank}", route.peer);
                let same = |other: &Route| {
                    (&other.provider, other.way, other.is_fallback)
                        == (&route.provider, route.way, route.is_fallback)
                };
                match taken.iter_mut().find(|(other, _)| same(other)) {
                    Some((_, pairs)) => pairs.push(pair),
                    None => taken.push((route, vec![pair])),
                }
            }
        }
        let mut out = String::new();
        for (route, pairs) in taken {
            let label = if route.is_fallback {
                "slower  "
            } else {
                "path    "
            };
            let most = pairs.len().min(MOST_PAIRS);
            let more = match pairs.len() - most {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let pairs = pairs[..most].join(", ");
            out += &format!("{label} {route}: producer -> consumer {pairs}{more}\n");
        }
        out
    }

    /// From the start to the outcome of the last consumer rank.
    fn slowest_ns(&self) -> u64 {
        self.consumers()
            .iter()
            .filter_map(|told| told.report.as_ref())
            .map(|r| r.elapsed_ns)
            .max()
            .unwrap_or(0)
    }

    fn report(
        &self,
        requested: &Requested,
        traffic: &[PairTraffic],
        bounds: &bounds::Bounds,
        failure: Option<&Failure>,
    ) -> Value {
        let rank = |told: &Told| {
            json!({
                "name": told.name,
                "report": told.report,
                "elements_checked": told.checked.as_ref().map(|c| c.0),
                "difference": told.checked.as_ref().and_then(|c| c.1.clone()),
                "broken": told.broken,
            })
        };
        let checked = !self.consumers().is_empty()
            && self
                .consumers()
                .iter()
                .all(|told| matches!(told.checked, Some((_, None))));
        json!({
            "outcome": if failure.is_some() { "failed" } else { "committed" },
            "request": self.request,
            "failure": failure.map(ToString::to_string),
            "verified": failure.is_none() && checked,
            "plan": plan::report(requested, traffic),
            "ranks": self.told.iter().map(rank).collect::<Vec<_>>(),
            "elapsed_ns": self.slowest_ns(),
            "wall_ns": self.took.map(|took| took.as_nanos() as u64),
            "bounds": { "memcpy_gb_s": bounds.memcpy_gb_s, "loopback_gb_s": bounds.loopback_gb_s },
        })
    }
}

/// Dirty pages of a report, the first of each group in full.
fn dirty_text(told: &Told, dirty: &[moai_fabric::collectives::transfer::DirtyPages]) -> String {
    const MOST: usize = 16;
    if !told.name.starts_with("consumer") {
        return String::new();
    }
    if dirty.is_empty() {
        return "; its pages are untouched".to_owned();
    }
    let mut out = String::new();
    for group in dirty {
        let list: Vec<_> = group
            .pages
            .iter()
            .take(MOST)
            .map(ToString::to_string)
            .collect();
        let more = group.pages.len().saturating_sub(MOST);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        let name = if group.group.is_empty() {
            String::new()
        } else {
            format!(" of group {}", group.group)
        };
        out += &format!("; dirty pages{name}: {}{more}", list.join(", "));
    }
    out
}

fn bar(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(total), target()).with_style(style)
}

fn spinner(message: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, target());
    bar.set_message(message);
    bar
}

/// Progress is for people who watch: nothing is drawn into files and pipes.
fn target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    }
}
