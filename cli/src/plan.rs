//! `moai plan`: who would send what to whom.

use std::io::IsTerminal;

use moai_fabric::collectives::{
    execute::Agreed,
    traffic::{PairTraffic, traffic},
};
use serde_json::{Value, json};

use crate::{
    args,
    failure::{Failure, show, write_json},
    inputs, picture, svg,
};

pub(crate) fn plan(command: &args::Plan) -> Result<(), Failure> {
    let sides = inputs::read(&command.producer, &command.consumer)?;
    let agreed = inputs::agree(sides, command.json.as_deref())?;
    let traffic = traffic(&agreed);
    let matrix = picture::matrix(&agreed, &traffic, std::io::stdout().is_terminal());
    show(format_args!("{matrix}\n{}", steps(&traffic)))?;
    if let Some(path) = &command.svg {
        std::fs::write(path, svg::draw(&agreed, &traffic))
            .map_err(|error| Failure::Input(format!("cannot write {}: {error}", path.display())))?;
    }
    write_json(command.json.as_deref(), &report(&agreed, &traffic))
}

/// Pairs listed in full; of more, the first are.
const MOST_PAIRS: usize = 64;

fn steps(traffic: &[PairTraffic]) -> String {
    let mut out = String::new();
    for pair in traffic.iter().take(MOST_PAIRS) {
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
pub(crate) fn report(agreed: &Agreed, traffic: &[PairTraffic]) -> Value {
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
        "tokens": agreement.tokens,
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
