//! `moai-perf reshard`: whole transfers between unlike sides, beside the same move between like ones.
//!
//! Producer ranks are threads of a second process, consumer ranks threads of this one. A round is one transfer
//! from connecting to its outcome: every digest of it is compared, or it fails. What a side's program makes of
//! every element is compared with the reference on a small request before.

mod case;
mod consumers;
mod producers;
mod sides;

use std::{fmt, time::Duration};

use moai_fabric::collectives::digest::Coverage;
use serde::Serialize;

pub(crate) use producers::{COMMAND, producers};
pub(crate) use sides::SideSpec;

use self::{
    case::{Case, Source},
    consumers::{Consumers, Round},
    producers::Producers,
};
use crate::{
    args::{Reshard, Transport},
    failure::Failure,
    fingerprint::Fingerprint,
    report::{Rate, Report},
    timing::Spread,
};

/// Runs the command.
pub(crate) fn reshard(command: &Reshard) -> Result<(), Failure> {
    let mut report = Report::new(command.json.as_deref())?;
    report.machine(&Fingerprint::take())?;
    let mut producers = Producers::start()?;
    report.show(format_args!(
        "rounds   medians of {}, a whole transfer each; GB/s of cache as the producer holds it\n\n",
        command.rounds().most
    ))?;
    report.show(heading())?;
    for &transport in &command.transport {
        let mut digests = command.digest.clone();
        if digests.is_empty() {
            digests.push(Coverage::default());
        }
        let all = cases(command, transport).into_iter();
        let cases: Vec<Case> = all
            .flat_map(|case| {
                let with = |&digest: &Coverage| Case {
                    digest,
                    ..case.clone()
                };
                digests.iter().map(with).collect::<Vec<_>>()
            })
            .collect();
        let mut open = Vec::new();
        for case in &cases {
            open.push(Consumers::open(&mut producers, case)?);
        }
        let mut rounds: Vec<Vec<Round>> = cases.iter().map(|_| Vec::new()).collect();
        for round in 0..=command.rounds().most {
            // Another goes first in each round: whoever does finds memory that the others have used.
            for turn in 0..open.len() {
                let at = (turn + round as usize) % open.len();
                let one = open[at].round(&mut producers)?;
                if round > 0 {
                    rounds[at].push(one);
                }
            }
        }
        let mut like: Option<f64> = None;
        for (consumers, rounds) in open.iter().zip(&rounds) {
            let row = Row::of(consumers, rounds, like);
            like.get_or_insert(row.tokens_s);
            report.show(&row)?;
            report.line(&row)?;
        }
        drop(open);
        producers.close()?;
    }
    Ok(())
}

/// The cases of one transport, what the others are held against first.
fn cases(command: &Reshard, transport: Transport) -> Vec<Case> {
    let case = |from: Source, to: Source| Case {
        from,
        to,
        transport,
        digest: Coverage::default(),
        tokens: command.tokens(),
        seed: command.seed,
    };
    if let (Some(producer), Some(consumer)) = (&command.producer, &command.consumer) {
        return vec![case(
            Source::File(producer.clone()),
            Source::File(consumer.clone()),
        )];
    }
    let from = &command.from;
    let mut to = command.to.clone();
    if to.is_empty() {
        let usual = ["x-packed@32:bf16", "x-packed@32:e4m3fnuz@tensor"];
        let half = (from.ranks / 2).max(1);
        let named = usual.map(|rest| format!("{half}:{rest}").parse());
        to.extend(named.into_iter().filter_map(Result::ok));
    }
    // The same move without translation: as many ranks, all else as it is.
    let mut sides: Vec<SideSpec> = Vec::new();
    if let Some(first) = to.first() {
        sides.push(SideSpec {
            ranks: first.ranks,
            ..from.clone()
        });
    }
    for side in to {
        if !sides.contains(&side) {
            sides.push(side);
        }
    }
    let named = |side: &SideSpec| case(Source::named(from), Source::named(side));
    sides.iter().map(named).collect()
}

/// One case over one transport.
#[derive(Clone, Debug, Serialize)]
struct Row {
    /// Always `reshard`: which kind of JSON line this is.
    kind: &'static str,
    from: String,
    to: String,
    transport: Transport,
    /// How the bytes came.
    way: String,
    digest: Coverage,
    tokens: u32,
    rounds: u32,
    /// Bytes of rows in the producer's format, and as they went over the wire; 0 where pages were mapped.
    bytes_read: u64,
    bytes_wire: u64,
    #[serde(flatten)]
    rate: Rate,
    tokens_s: f64,
    /// CPU seconds of both processes for 10⁹ bytes read.
    cpu_s_per_gb: f64,
    /// Tokens a second in percent of those of the same move without translation, in the same rounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    percent: Option<f64>,
}

impl Row {
    fn of(consumers: &Consumers, rounds: &[Round], like: Option<f64>) -> Self {
        let case = consumers.case();
        let of = |what: fn(&Round) -> Duration| Spread::of(rounds.iter().map(what).collect());
        let (times, cpu) = (of(|round| round.time), of(|round| round.cpu));
        let last = &rounds[rounds.len() - 1];
        let tokens = consumers.tokens();
        let tokens_s = f64::from(tokens) / times.median.as_secs_f64();
        Self {
            kind: "reshard",
            from: case.from.label(),
            to: case.to.label(),
            transport: case.transport,
            way: last.way.clone(),
            digest: case.digest,
            tokens,
            rounds: times.rounds,
            bytes_read: last.bytes_read,
            bytes_wire: last.bytes_wire,
            rate: Rate::of(last.bytes_read, &times),
            tokens_s,
            cpu_s_per_gb: cpu.median.as_secs_f64() / (last.bytes_read as f64 / 1e9),
            percent: like.map(|like| 100.0 * tokens_s / like),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.percent.map(|percent| format!("{percent:.0} %"));
        writeln!(
            f,
            "{:SIDE$}  {:SIDE$}  {:WAY$}  {:6}  {:>6.2}  {:>6.2}  {:>6.2}  {:>9.0}  {:>8.2}  {:>10}",
            self.from,
            self.to,
            self.way,
            self.digest.to_string(),
            self.rate.gb_s,
            self.rate.least_gb_s,
            self.rate.most_gb_s,
            self.tokens_s,
            self.cpu_s_per_gb,
            percent.unwrap_or_else(|| "=".to_owned()),
        )
    }
}

/// Widths of the label columns.
const SIDE: usize = 29;
const WAY: usize = 15;

fn heading() -> String {
    format!(
        "{:SIDE$}  {:SIDE$}  {:WAY$}  digest    GB/s     min     max   tokens/s  CPU s/GB  of unchanged\n",
        "from", "to", "by"
    )
}
