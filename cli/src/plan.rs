//! `moai plan`: who would send what to whom.

use std::{io::IsTerminal, time::Duration};

use moai_fabric::collectives::{
    cost::{self, Choice, Rates},
    execute::Requested,
    plan::Pair,
    traffic::{PairTraffic, traffic},
};
use serde_json::{Value, json};

use crate::{
    args, bounds,
    failure::{Failure, show, write_json},
    inputs, picture, svg,
};

pub(crate) fn plan(command: &args::Plan) -> Result<(), Failure> {
    let sides = inputs::read(&command.producer, &command.consumer)?;
    let requested = inputs::agree(sides, command.json.as_deref())?;
    let traffic = traffic(&requested);
    let matrix = picture::matrix(&requested, &traffic, std::io::stdout().is_terminal());
    let ways = ways(&requested)?;
    show(format_args!("{matrix}\n{}", steps(&traffic, &ways)))?;
    if let Some(path) = &command.svg {
        std::fs::write(path, svg::draw(&requested, &traffic))
            .map_err(|error| Failure::Input(format!("cannot write {}: {error}", path.display())))?;
    }
    let mut report = report(&requested, &traffic);
    report["ways"] = ways.iter().map(Way::json).collect();
    write_json(command.json.as_deref(), &report)
}

/// Time spent on measuring what this machine can do, and on each conversion.
const BUDGETS: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(5)];

/// What would be chosen for a pair of ranks: on one host, and between hosts.
#[derive(Debug)]
struct Way {
    source: u32,
    target: u32,
    here: Choice,
    elsewhere: Choice,
}

impl Way {
    fn json(&self) -> Value {
        let choice = |choice: &Choice| {
            json!({
                "way": choice.way,
                "mapped_ns": choice.mapped_ns as u64,
                "sent_ns": choice.sent_ns as u64,
                "reason": choice.reason,
            })
        };
        json!({
            "source": self.source,
            "target": self.target,
            "same_host": choice(&self.here),
            "other_host": choice(&self.elsewhere),
        })
    }
}

/// The way of every pair, by what this machine can do.
fn ways(requested: &Requested) -> Result<Vec<Way>, Failure> {
    let agreed = requested.agreed();
    let [whole, each] = BUDGETS;
    let bounds = bounds::measure(whole)
        .map_err(|error| Failure::Transfer(format!("cannot measure this machine: {error}")))?;
    let rates = Rates::new(bounds.memcpy_gb_s, bounds.loopback_gb_s)
        .with_measured_conversions(agreed, each);
    let way = |pair: &Pair| {
        let spans = cost::bytes_by_span(&agreed.agreement, pair, &requested.chunks(pair));
        let choose = |can_map| cost::choose(&agreed.agreement, &spans, &rates, can_map);
        Way {
            source: pair.source,
            target: pair.target,
            here: choose(true),
            elsewhere: choose(false),
        }
    };
    Ok(agreed.agreement.pairs.iter().map(way).collect())
}

/// Pairs listed in full; of more, the first are.
const MOST_PAIRS: usize = 64;

fn steps(traffic: &[PairTraffic], ways: &[Way]) -> String {
    let mut out = String::new();
    for (pair, way) in traffic.iter().zip(ways).take(MOST_PAIRS) {
        out += &format!(
            "producer {} -> consumer {}: {} read in {} runs, {} wired in {} chunks, {} written in {} runs\n",
            pair.source,
            pair.target,
            picture::bytes(pair.bytes_read),
            pair.source_runs,
            picture::bytes(pair.bytes_wire),
            pair.chunks,
            picture::bytes(pair.bytes_written),
            pair.target_runs,
        );
        out += &format!(
            "  {} on one host: {}; {}\n",
            way.here.way, way.here.reason, way.elsewhere.reason
        );
        for step in &pair.steps {
            let [first, end] = step.heads;
            out += &format!(
                "  {}: layers {}, heads {first}..{end}, {} tokens\n",
                step.component,
                ranges(&step.layers),
                step.tokens
            );
        }
    }
    if traffic.len() > MOST_PAIRS {
        out += &format!(
            "… and {} more pairs; --json lists all\n",
            traffic.len() - MOST_PAIRS
        );
    }
    let sum = |of: fn(&PairTraffic) -> u64| traffic.iter().map(of).sum::<u64>();
    out += &format!(
        "in all: {} read, {} wired, {} written, {} chunks\n",
        picture::bytes(sum(|p| p.bytes_read)),
        picture::bytes(sum(|p| p.bytes_wire)),
        picture::bytes(sum(|p| p.bytes_written)),
        sum(|p| p.chunks),
    );
    out
}

/// Layers as ranges: `0..4, 7`.
fn ranges(list: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for &n in list {
        match parts.last_mut() {
            Some((_, end)) if *end == n => *end += 1,
            _ => parts.push((n, n + 1)),
        }
    }
    let show = |&(first, end): &(u32, u32)| {
        if end == first + 1 {
            first.to_string()
        } else {
            format!("{first}..{end}")
        }
    };
    parts.iter().map(show).collect::<Vec<_>>().join(", ")
}

/// The plan for programs to read.
pub(crate) fn report(requested: &Requested, traffic: &[PairTraffic]) -> Value {
    let agreed = requested.agreed();
    let agreement = &agreed.agreement;
    let digest: String = agreement
        .digest()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let spans = agreement.spans.iter().zip(&agreement.carriages);
    let carried: Vec<Value> = spans
        .map(|(span, carriage)| {
            let source = &agreed.producer.components[span.source];
            let target = &agreed.consumer.components[span.target];
            json!({
                "component": span.name,
                "source_format": carriage.source_format,
                "target_format": carriage.target_format,
                "source_rotation": source.format.rotated(source.dim).to_string(),
                "target_rotation": target.format.rotated(target.dim).to_string(),
                "scale_rule": picture::writes_by(target).filter(|_| !carriage.unchanged),
                "row_bytes_read": carriage.row_bytes[0],
                "row_bytes_wire": carriage.row_bytes[1],
                "row_bytes_written": carriage.row_bytes[2],
                "unchanged": carriage.unchanged,
                "converts": carriage.converts.to_string(),
                "reason": carriage.reason,
            })
        })
        .collect();
    json!({
        "outcome": "agreed",
        "agreement": digest,
        "producer": agreed.producer.engine,
        "consumer": agreed.consumer.engine,
        "tokens": requested.tokens(),
        "carried": carried,
        "pairs": traffic,
    })
}

#[cfg(test)]
mod tests {
    use super::ranges;

    #[test]
    fn layers_read_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 3]), "0..4");
        assert_eq!(ranges(&[0, 2, 3, 5]), "0, 2..4, 5");
    }
}
