//! Which way a pair's rows take, from what each way costs.
//!
//! Rows that are sent pass through both processes: the producer gathers (and perhaps converts) them and hands
//! them to the wire, the consumer takes them from the wire and places (and perhaps converts) them. The two work
//! at the same time, chunk by chunk, so the slower one counts. Rows that are mapped are read, converted and
//! written in one pass of the consumer.
//!
//! Which side converts rows that are sent is not asked here: it follows from the formats alone, so that both
//! sides come to the same answer without having measured the same (see
//! [`Carriage::converts`](crate::negotiate::Carriage)).

use std::{fmt, time::Duration};

use moai_translate::program::{Place, Program, Progression, Side};

use crate::{
    execute::Agreed,
    negotiate::{Agreement, Role},
    plan::{Chunks, Pair},
};

/// What a machine can do, in 10⁹ bytes a second: measured, or given.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Rates {
    /// Rows that are carried unchanged from memory to memory.
    pub memcpy: f64,
    /// What one peer's connection brings.
    pub wire: f64,
    /// Rows of each span that are converted, counted on the side where they are longer; spans that are not listed
    /// convert as fast as memory is copied.
    pub convert: Vec<f64>,
}

impl Default for Rates {
    /// Of an ordinary server, with both ends of the wire on it.
    fn default() -> Self {
        Self {
            memcpy: 8.0,
            wire: 4.0,
            convert: Vec::new(),
        }
    }
}

/// Bytes that a measurement converts in one turn: what a core's L2 holds beside its result.
const MEASURED_BYTES: u64 = 256 << 10;

/// Turns of a measurement at least, the first of which does not count.
const MEASURED_TURNS: u32 = 3;

impl Rates {
    /// Of a machine that copies and sends at these rates.
    #[must_use]
    pub fn new(memcpy: f64, wire: f64) -> Self {
        Self {
            memcpy,
            wire,
            convert: Vec::new(),
        }
    }

    /// With the rate of each span's conversion measured here, for about `budget` each.
    #[must_use]
    pub fn with_measured_conversions(mut self, agreed: &Agreed, budget: Duration) -> Self {
        let spans = 0..agreed.agreement.spans.len();
        self.convert = spans
            .map(|span| {
                let unchanged = agreed.agreement.carriages[span].unchanged;
                let rate = (!unchanged).then(|| measure(agreed, span, budget));
                rate.flatten().unwrap_or(self.memcpy)
            })
            .collect();
        self
    }

    fn convert(&self, span: usize) -> f64 {
        let rate = self.convert.get(span).copied().unwrap_or(self.memcpy);
        rate.min(self.memcpy)
    }
}

/// The rate of one span's conversion, over dense rows in a cache.
fn measure(agreed: &Agreed, span: usize, budget: Duration) -> Option<f64> {
    let agreement = &agreed.agreement;
    let (about, carriage) = (&agreement.spans[span], &agreement.carriages[span]);
    let formats = [
        &agreed.producer.components[about.source].format,
        &agreed.consumer.components[about.target].format,
    ];
    let longest = carriage.row_bytes[0].max(carriage.row_bytes[2]).max(1);
    let tokens = (MEASURED_BYTES / longest).clamp(1, 1 << 16) as u32;
    let conversions = agreement.whole_conversions(span, 0, 0..1);
    let rows = formats.map(|format| Side::Rows {
        order: moai_translate::layout::RowOrder::TokenHead,
        unit_bytes: format.element.unit(about.dim).bytes,
        params_unit_bytes: format
            .params(about.dim)
            .map_or(0, |params| params.unit_bytes),
    });
    let [from, to] = rows;
    let mut program = Program::new(from, to, 1, about.dim, conversions.any());
    // Zeros are no easier than other values: conversions have no branches on values.
    let source = vec![0_u8; carriage.row_bytes[0] as usize * tokens as usize];
    let mut target = vec![0_u8; carriage.row_bytes[2] as usize * tokens as usize];
    let place = Place {
        layer: 0,
        pages: &[0],
        tokens: Progression::ALL,
    };
    let start = std::time::Instant::now();
    let mut best = f64::INFINITY;
    let mut turn = 0;
    while turn < MEASURED_TURNS || start.elapsed() < budget {
        let began = std::time::Instant::now();
        program.run(
            &conversions,
            tokens,
            place,
            place,
            &source[..],
            &mut target[..],
        );
        if turn > 0 {
            best = best.min(began.elapsed().as_nanos() as f64);
        }
        turn += 1;
    }
    let bytes = (longest * u64::from(tokens)) as f64;
    (best > 0.0).then(|| bytes / best)
}

/// A way for a pair's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "rows are sent or they are not")]
pub enum Way {
    /// The consumer reads them in the producer's memory.
    Mapped,
    /// They are sent, chunk by chunk.
    Sent,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mapped => "mapped",
            Self::Sent => "sent",
        })
    }
}

/// The way that was chosen for a pair, and what each would take.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Choice {
    /// The way.
    pub way: Way,
    /// Nanoseconds, if it is mapped.
    pub mapped_ns: f64,
    /// Nanoseconds of the slower process, if it is sent.
    pub sent_ns: f64,
    /// Why.
    pub reason: String,
}

/// Chooses the way of a pair of `agreement` that moves so many bytes of each span: in the producer's
/// format, on the wire, and in the consumer's. `can_map` says whether the producer's memory can be mapped.
#[must_use]
pub fn choose(
    agreement: &Agreement,
    spans: &[(usize, [u64; 3])],
    rates: &Rates,
    can_map: bool,
) -> Choice {
    let (mut mapped, mut producer, mut consumer) = (0.0, 0.0, 0.0);
    for &(span, [read, wire, written]) in spans {
        let carriage = &agreement.carriages[span];
        let pass = |from: u64, to: u64, converts: bool| {
            let rate = match converts {
                true => rates.convert(span),
                false => rates.memcpy,
            };
            from.max(to) as f64 / rate
        };
        let converts = |who| !carriage.unchanged && carriage.converts == who;
        let sent = wire as f64 / rates.wire;
        mapped += pass(read, written, !carriage.unchanged);
        producer += pass(read, wire, converts(Role::Producer)) + sent;
        consumer += pass(wire, written, converts(Role::Consumer)) + sent;
    }
    let sent = f64::max(producer, consumer);
    let ms = |ns: f64| format!("{:.3} ms", ns / 1e6);
    let (way, reason) = match can_map {
        false => (
            Way::Sent,
            format!(
                "sent in {}: the producer's memory cannot be mapped",
                ms(sent)
            ),
        ),
        true if mapped <= sent => (
            Way::Mapped,
            format!(
                "one pass over mapped memory takes {}, sending {}",
                ms(mapped),
                ms(sent)
            ),
        ),
        true => (
            Way::Sent,
            format!(
                "sending takes {}, one pass over mapped memory {}",
                ms(sent),
                ms(mapped)
            ),
        ),
    };
    Choice {
        way,
        mapped_ns: mapped,
        sent_ns: sent,
        reason,
    }
}

/// What [`choose`] asks of a pair: the bytes of each span that a request moves. Costs the same for any number of tokens.
#[must_use]
pub fn bytes_by_span(
    agreement: &Agreement,
    pair: &Pair,
    chunks: &Chunks,
) -> Vec<(usize, [u64; 3])> {
    let mut spans: Vec<(usize, [u64; 3])> = Vec::new();
    for (index, step) in pair.steps.iter().enumerate() {
        let (layers, tokens) = chunks.step(index);
        let rows = u64::from(step.heads.end - step.heads.start) * tokens * layers.len() as u64;
        let row_bytes = agreement.carriages[step.span].row_bytes;
        let bytes = row_bytes.map(|row| row * rows);
        match spans.iter_mut().find(|(span, _)| *span == step.span) {
            Some((_, sums)) => sums
                .iter_mut()
                .zip(bytes)
                .for_each(|(sum, more)| *sum += more),
            None => spans.push((step.span, bytes)),
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{execute::Requested, request::Request};

    fn agreed(from: &str, to: &str) -> Requested {
        let side = |element: &str| {
            let document: Value = json!({
                "version": 1, "model": { "layers": 2 }, "parallel": { "tp": 1 },
                "page_slots": 16,
                "components": [{
                    "name": "key", "heads": 4, "dim": 64, "pool": "kv",
                    "format": { "element": element }, "layout": "[layer] page slot head dim",
                }],
                "ranks": [{ "rank": 0, "pages": 8, "request_pages": [0, 1, 2, 3] }],
                "request": { "tokens": 64 },
            });
            Request::read(&document.to_string()).unwrap()
        };
        Requested::agree(side(from), side(to)).unwrap()
    }

    fn choice(requested: &Requested, rates: &Rates, can_map: bool) -> Choice {
        let agreement = &requested.agreed().agreement;
        let pair = &agreement.pairs[0];
        let spans = bytes_by_span(agreement, pair, &requested.chunks(pair));
        choose(agreement, &spans, rates, can_map)
    }

    #[test]
    fn every_byte_is_passed_once_if_mapped_and_twice_if_sent() {
        let same = agreed("bf16", "bf16");
        // 2 layers, 64 tokens, 4 heads of 128 bytes.
        let bytes = 65_536.0;
        let found = choice(&same, &Rates::new(8.0, 4.0), true);
        assert_eq!((found.way, found.mapped_ns), (Way::Mapped, bytes / 8.0));
        assert_eq!(found.sent_ns, bytes / 8.0 + bytes / 4.0);
        let found = choice(&same, &Rates::new(8.0, 4.0), false);
        assert_eq!(found.way, Way::Sent);
        assert!(
            found.reason.contains("cannot be mapped"),
            "{}",
            found.reason
        );
    }

    #[test]
    fn a_slow_conversion_that_the_producer_could_do_meanwhile_speaks_for_sending() {
        let shrinks = agreed("bf16", "e4m3fn");
        let mut rates = Rates::new(8.0, 100.0);
        rates.convert = vec![1.0];
        let found = choice(&shrinks, &rates, true);
        // Both ways convert once; sending adds the wire.
        assert_eq!(found.way, Way::Mapped, "{found:?}");
        assert_eq!(found.mapped_ns, 65_536.0);
        assert_eq!(found.sent_ns, 65_536.0 + 32_768.0 / 100.0);
    }

    #[test]
    fn conversions_are_measured_where_there_are_any() {
        let budget = Duration::from_millis(1);
        let rates = Rates::new(8.0, 4.0);
        let same = rates
            .clone()
            .with_measured_conversions(agreed("bf16", "bf16").agreed(), budget);
        assert_eq!(same.convert, [8.0]);
        let other = rates.with_measured_conversions(agreed("bf16", "e4m3fn").agreed(), budget);
        assert!(other.convert[0] > 0.0 && other.convert[0].is_finite());
    }
}
