//! `moai-perf translate`: every case in turn, each beside the memcpy of the same bytes.

use crate::{
    args,
    cases::Case,
    dump,
    failure::Failure,
    fingerprint::Fingerprint,
    job::{self, Job, Work, row_bytes},
    matrix,
    report::{Digest, Rate, Report, Row, heading},
    timing::{Rounds, interleave},
    wire::{self, Wire},
};

pub(crate) fn translate(command: &args::Translate) -> Result<(), Failure> {
    let cases = matrix::cases(command)?;
    let mut report = Report::new(command.json.as_deref())?;
    if command.list {
        for (case, part) in &cases {
            report.show(format_args!(
                "{}  {}\n",
                case.layout_label(),
                case.format_label()
            ))?;
            let work = work(command, case, command.threads(*part)[0])?;
            report.line(&dump::describe(case, &work).map_err(Failure::Input)?)?;
        }
        return Ok(());
    }
    report.machine(&Fingerprint::take())?;
    let rounds = match command.rounds() {
        Rounds { least, most, .. } if least < most => format!("up to {most}"),
        Rounds { most, .. } => most.to_string(),
    };
    report.show(format_args!(
        "cases    {}, {} MiB read and written in each, median of {rounds} rounds, seed {}\n\n{}",
        cases.len(),
        command.size_bytes() >> 20,
        command.seed,
        heading()
    ))?;
    for (n, (case, part)) in cases.iter().enumerate() {
        for threads in command.threads(*part) {
            let mut work = work(command, case, threads)?;
            work.dump = (command.dump.as_deref()).map(|folder| folder.join(n.to_string()));
            let row = measure(case, &work, threads, command.rounds())?;
            report.show(&row)?;
            report.line(&row)?;
        }
    }
    Ok(())
}

fn work(command: &args::Translate, case: &Case, threads: u32) -> Result<Work, Failure> {
    // To the wire each thread has a request of its own.
    let requests = if case.layouts[1].is_wire() {
        threads
    } else {
        1
    };
    let mut work = Work::new(case, command.size_bytes(), requests).map_err(Failure::Input)?;
    work.seed = command.seed;
    work.check = command.check;
    Ok(work)
}

/// One case with one number of threads.
///
/// Threads share a request between pools. Chunks for the wire are made by one thread each, so there each thread has a
/// pool and a request of its own; together they move as many bytes as one would.
fn measure(case: &Case, work: &Work, threads: u32, rounds: Rounds) -> Result<Row, Failure> {
    let is_wire = case.layouts[1].is_wire();
    let (times, found) = if is_wire {
        interleave(threads, rounds, wire::PASSES, |thread| {
            Wire::new(case, work, thread).map_err(Failure::Input)
        })?
    } else {
        interleave(1, rounds, job::PASSES, |_| {
            Job::new(case, work, threads).map_err(Failure::Input)
        })?
    };
    let requests = if is_wire { u64::from(threads) } else { 1 };
    let bytes = work.rows() * row_bytes(case).map_err(Failure::Input)? * requests;
    let rate = Rate::of(bytes, &times[0]);
    let memcpy = Rate::of(bytes, &times[1]);
    let digest = times.get(2).map(|with| Digest {
        rate: Rate::of(bytes, with),
        cost_percent: 100.0 * (with.median.as_secs_f64() / times[0].median.as_secs_f64() - 1.0),
    });
    Ok(Row {
        kind: "translate",
        layout: case.layouts.each_ref().map(ToString::to_string),
        format: case.formats.each_ref().map(|format| format.name.clone()),
        threads: found.iter().map(|found| found.threads).sum(),
        rounds: times[0].rounds,
        bytes,
        rate,
        memcpy,
        percent: 100.0 * rate.gb_s / memcpy.gb_s,
        digest,
        rows_checked: found.iter().map(|found| found.rows_checked).sum(),
        saturated: found.iter().map(|found| found.counts.saturated).sum(),
        nan: found.iter().map(|found| found.counts.nan).sum(),
    })
}
