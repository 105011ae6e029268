//! `moai check`: whether two sides fit, and what it takes.

mod loss;

use moai_fabric::collectives::{
    execute::Requested,
    traffic::{PairTraffic, traffic},
};
use serde_json::json;

use self::loss::Loss;
use crate::{
    args,
    failure::{Failure, show, write_json},
    inputs, picture, plan,
};

/// Widest line.
const WIDTH: usize = 100;

pub(crate) fn check(command: &args::Check) -> Result<(), Failure> {
    let sides = inputs::read(&command.producer, &command.consumer)?;
    let requested = inputs::agree(sides, command.json.as_deref())?;
    let traffic = traffic(&requested);
    let totals = Totals::of(&requested, &traffic);
    let losses = loss::losses(requested.agreed());
    show(text(&requested, &totals, &losses))?;
    let mut report = plan::report(&requested, &traffic);
    if let Some(fields) = report.as_object_mut() {
        // Who sends what to whom is what `moai plan` says.
        fields.remove("pairs");
        fields.insert("rank_pairs".into(), totals.pairs.into());
        fields.insert("chunks".into(), totals.chunks.into());
        fields.insert("pieces_read".into(), totals.pieces[0].into());
        fields.insert("pieces_written".into(), totals.pieces[1].into());
        let [read, wire, written] = totals.bytes_per_token;
        fields.insert(
            "bytes_per_token".into(),
            json!({ "read": read, "wire": wire, "written": written }),
        );
        let lost =
            |(name, loss): &(String, Loss)| json!({ "component": name, "loss": loss.to_string() });
        fields.insert("losses".into(), losses.iter().map(lost).collect());
    }
    write_json(command.json.as_deref(), &report)
}

/// What all pairs of ranks come to.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Totals {
    pairs: u64,
    chunks: u64,
    /// Contiguous runs read and written.
    pieces: [u64; 2],
    /// Read, on the wire, written, over all ranks. Of a group with a window it is the mean.
    bytes_per_token: [f64; 3],
}

impl Totals {
    fn of(requested: &Requested, traffic: &[PairTraffic]) -> Self {
        let sum = |of: fn(&PairTraffic) -> u64| traffic.iter().map(of).sum::<u64>();
        let tokens = f64::from(requested.tokens().max(1));
        let bytes = [
            sum(|p| p.bytes_read),
            sum(|p| p.bytes_wire),
            sum(|p| p.bytes_written),
        ];
        Self {
            pairs: traffic.len() as u64,
            chunks: sum(|p| p.chunks),
            pieces: [sum(|p| p.source_runs), sum(|p| p.target_runs)],
            bytes_per_token: bytes.map(|bytes| bytes as f64 / tokens),
        }
    }
}

fn text(requested: &Requested, totals: &Totals, losses: &[(String, Loss)]) -> String {
    let agreed = requested.agreed();
    let agreement = &agreed.agreement;
    let mut out = format!(
        "fit: {}, {}\n",
        picture::model(agreed),
        picture::count(requested.tokens().into(), "token")
    );
    for (name, side) in [
        ("producer", &agreed.producer),
        ("consumer", &agreed.consumer),
    ] {
        out += &format!(
            "  {name}: {}, {}, {}\n",
            picture::engine(side),
            picture::parallel(side),
            picture::page_slots(side)
        );
    }
    for (span, carriage) in agreement.spans.iter().zip(&agreement.carriages) {
        let source = &agreed.producer.components[span.source];
        let target = &agreed.consumer.components[span.target];
        let [read, wire, written] = carriage.row_bytes;
        let line = format!(
            "{}: {}; rows of {read} bytes travel as {wire} and become {written}; {}",
            picture::plain(&span.name),
            picture::change(source, target, carriage),
            match carriage.unchanged {
                true => "nothing is converted".to_owned(),
                false => format!("the {} converts: {}", carriage.converts, carriage.reason),
            }
        );
        for line in picture::wrap(&line, WIDTH, 4) {
            out += &format!("  {line}\n");
        }
    }
    let [read, wire, written] = totals.bytes_per_token.map(|bytes| bytes.round() as u64);
    out += &format!(
        "  a token is {} read, {} on the wire, {} written\n",
        picture::bytes(read),
        picture::bytes(wire),
        picture::bytes(written)
    );
    out += &format!(
        "  {}, {}: {} read, {} written\n",
        picture::count(totals.pairs, "rank pair"),
        picture::count(totals.chunks, "chunk"),
        picture::count(totals.pieces[0], "piece"),
        picture::count(totals.pieces[1], "piece")
    );
    for (name, loss) in losses {
        let line = format!("warning: {} {loss}", picture::plain(name));
        for line in picture::wrap(&line, WIDTH, 4) {
            out += &format!("  {line}\n");
        }
    }
    if losses.is_empty() {
        out += "  every value is kept\n";
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::tests::case;

    #[test]
    fn a_pair_of_sides_is_told_with_its_figures() {
        let (requested, traffic) = case("10");
        let totals = Totals::of(&requested, &traffic);
        let bytes: u64 = traffic.iter().map(|pair| pair.bytes_wire).sum();
        let [read, wire, written] = totals.bytes_per_token;
        assert_eq!(wire * f64::from(requested.tokens()), bytes as f64);
        assert!(read == 2.0 * wire && wire == written, "{totals:?}");
        let losses = loss::losses(requested.agreed());
        let text = text(&requested, &totals, &losses);
        for told in [
            "fit: ",
            "bf16 → e4m3fn",
            "the producer converts",
            "warning: key ",
        ] {
            assert!(text.contains(told), "{told} is not in:\n{text}");
        }
        assert!(
            text.lines().all(|line| line.chars().count() <= WIDTH + 2),
            "{text}"
        );
    }
}
