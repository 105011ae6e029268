//! Rows of what was moved between two processes.

use std::{fmt, time::Duration};

use serde::Serialize;

use crate::{
    histogram::Percentiles,
    measure::Measured,
    mover::Step,
    report::Rate,
    shapes::{Order, Shape},
};

/// One way with one shape.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// `transport`, or `bound` for what is measured without the stack.
    pub(crate) kind: &'static str,
    /// `put`, `get`, `send`, `rate`, `latency`.
    pub(crate) op: &'static str,
    /// What moved the bytes.
    pub(crate) transport: String,
    /// Bytes of a piece, or of a message each way.
    pub(crate) piece: u64,
    pub(crate) pieces: u32,
    pub(crate) order: Order,
    /// Timed rounds.
    pub(crate) rounds: u32,
    #[serde(flatten)]
    pub(crate) figures: Figures,
    /// CPU seconds of both processes for 10⁹ bytes.
    pub(crate) cpu_s_per_gb: f64,
    /// CPU microseconds of both processes for a piece.
    pub(crate) cpu_us_per_piece: f64,
    /// What it is held against, measured in the same rounds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) bounds: Vec<Bound>,
}

/// How fast it was.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Figures {
    Moved(Moved),
    Answered(Answered),
}

/// Bytes that arrived over time, in 10⁹ bytes a second.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Moved {
    #[serde(flatten)]
    pub(crate) rate: Rate,
    /// Pieces a second, of the median round.
    pub(crate) pieces_s: f64,
}

/// From a message to its answer.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Answered {
    #[serde(flatten)]
    pub(crate) percentiles: Percentiles,
    /// The best and the worst median of a round.
    pub(crate) least_p50_ns: u64,
    pub(crate) most_p50_ns: u64,
}

/// A bound of a row.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Bound {
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) figures: Figures,
    /// What the row reaches of it, in percent: of its bandwidth, or its latency of the row's. The median of
    /// what it reached round by round, as the machine may be another one a moment later.
    pub(crate) percent: f64,
    /// In the worst and in the best round.
    pub(crate) least_percent: f64,
    pub(crate) most_percent: f64,
}

impl Figures {
    fn of(measured: &Measured, shape: &Shape) -> Self {
        match &measured.pings {
            Some(pings) => Self::Answered(Answered {
                percentiles: pings.percentiles,
                least_p50_ns: pings.p50.least.as_nanos() as u64,
                most_p50_ns: pings.p50.most.as_nanos() as u64,
            }),
            None => Self::Moved(Moved {
                rate: Rate::of(shape.bytes(), &measured.times),
                pieces_s: f64::from(shape.pieces) / measured.times.median.as_secs_f64().max(1e-9),
            }),
        }
    }

    /// The figure that is drawn, in the unit of [`unit`](Self::unit).
    pub(crate) fn drawn(&self) -> f64 {
        match self {
            Self::Moved(moved) => moved.rate.gb_s,
            Self::Answered(answered) => answered.percentiles.p50_ns as f64 / 1e3,
        }
    }

    pub(crate) fn unit(&self) -> &'static str {
        match self {
            Self::Moved(_) => "GB/s",
            Self::Answered(_) => "p50, µs",
        }
    }
}

impl Row {
    /// A row of the stack with its bounds, the most important one first.
    pub(crate) fn subject(
        name: &str,
        step: Step,
        shape: &Shape,
        measured: &Measured,
        bounds: &[Measured],
    ) -> Self {
        let bound = |bound: &Measured| {
            let rounds = bound.rounds.iter().zip(&measured.rounds);
            let percent = |(its, ours): (&Duration, &Duration)| {
                100.0 * its.as_secs_f64() / ours.as_secs_f64().max(1e-9)
            };
            let mut percents: Vec<f64> = rounds.map(percent).collect();
            percents.sort_by(f64::total_cmp);
            let at = |n: usize| percents.get(n).copied().unwrap_or_default();
            let last = percents.len().saturating_sub(1);
            Bound {
                name: bound.name.clone(),
                figures: Figures::of(bound, shape),
                percent: (at(last / 2) + at(last.div_ceil(2))) / 2.0,
                least_percent: at(0),
                most_percent: at(last),
            }
        };
        Self {
            kind: "transport",
            transport: name.to_owned(),
            bounds: bounds.iter().map(bound).collect(),
            ..Self::bound(step, shape, measured)
        }
    }

    /// A row of what needs no bound, as it is one.
    pub(crate) fn bound(step: Step, shape: &Shape, measured: &Measured) -> Self {
        let cpu = measured.cpu.as_secs_f64();
        Self {
            kind: "bound",
            op: step.name(),
            transport: measured.name.clone(),
            piece: shape.piece,
            pieces: shape.pieces,
            order: shape.order,
            rounds: measured.times.rounds,
            figures: Figures::of(measured, shape),
            cpu_s_per_gb: cpu / (shape.bytes() as f64 / 1e9),
            cpu_us_per_piece: cpu / f64::from(shape.pieces) * 1e6,
            bounds: Vec::new(),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = format!(
            "{:7}  {:NAME$}  {:>7}  {:>6}",
            self.op,
            self.transport,
            size(self.piece),
            self.pieces
        );
        match &self.figures {
            Figures::Moved(Moved { rate, pieces_s }) => write!(
                f,
                "{labels}  {:>6.2}  {:>6.2}  {:>6.2}  {:>9.3}  {:>8.2}  {:>8.2}",
                rate.gb_s,
                rate.least_gb_s,
                rate.most_gb_s,
                pieces_s / 1e6,
                self.cpu_s_per_gb,
                self.cpu_us_per_piece,
            ),
            Figures::Answered(Answered {
                percentiles,
                least_p50_ns,
                most_p50_ns,
            }) => {
                write!(f, "{labels}")?;
                let times = [
                    percentiles.p50_ns,
                    *least_p50_ns,
                    *most_p50_ns,
                    percentiles.p90_ns,
                    percentiles.p99_ns,
                    percentiles.p999_ns,
                    percentiles.max_ns,
                ];
                for ns in times {
                    write!(f, "  {:>7.1}", ns as f64 / 1e3)?;
                }
                write!(f, "  {:>8.2}", self.cpu_us_per_piece)
            }
        }?;
        for (n, bound) in self.bounds.iter().enumerate() {
            let start = if n == 0 { "  " } else { "; " };
            let Bound {
                percent,
                least_percent,
                most_percent,
                name,
                figures,
            } = bound;
            write!(
                f,
                "{start}{percent:.0} % ({least_percent:.0} to {most_percent:.0}) of {name} {:.2}",
                figures.drawn()
            )?;
        }
        writeln!(f)
    }
}

/// Width of the column of names.
const NAME: usize = 16;

/// The names of the columns.
pub(crate) fn heading(step: Step) -> String {
    let labels = format!(
        "{:7}  {:NAME$}  {:>7}  {:>6}",
        "op", "by", "piece", "number"
    );
    match step {
        Step::Ping { .. } => format!(
            "{labels}  p50, µs      min      max      p90      p99    p99.9      max  CPU µs/1\n"
        ),
        _ => format!("{labels}    GB/s     min     max  M piece/s  CPU s/GB  CPU µs/1\n"),
    }
}

/// `256 B`, `4 KiB`.
pub(crate) fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let whole = units
        .into_iter()
        .find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    whole.map_or_else(
        || format!("{bytes} B"),
        |(unit, name)| format!("{} {name}", bytes / unit),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{histogram::Histogram, measure::Pings, timing::Spread};

    const SHAPE: Shape = Shape {
        piece: 4096,
        pieces: 1000,
        order: Order::Scattered,
        seed: 1,
    };

    fn measured(name: &str, us: u64, ping_us: Option<u64>) -> Measured {
        let spread = |us| Spread::of(vec![Duration::from_micros(us); 3]);
        Measured {
            name: name.to_owned(),
            times: spread(us),
            rounds: vec![Duration::from_micros(ping_us.unwrap_or(us)); 3],
            cpu: Duration::from_micros(2 * us),
            pings: ping_us.map(|us| {
                let mut histogram = Histogram::new();
                histogram.record(Duration::from_micros(us));
                Pings {
                    percentiles: histogram.percentiles().unwrap(),
                    p50: spread(us),
                }
            }),
        }
    }

    #[test]
    fn bandwidth_is_held_against_its_bounds() {
        let bounds = [
            measured("sockets, 1 lane", 512, None),
            measured("memcpy", 256, None),
        ];
        let row = Row::subject(
            "tcp",
            Step::Put,
            &SHAPE,
            &measured("x", 1024, None),
            &bounds,
        );
        let json = serde_json::to_value(&row).unwrap();
        assert_eq!(
            (&json["kind"], &json["op"]),
            (&"transport".into(), &"put".into())
        );
        assert_eq!(json["gb_s"], 4.0);
        assert_eq!(json["pieces_s"].as_f64().unwrap().round(), 976_563.0);
        assert_eq!(json["cpu_us_per_piece"].as_f64().unwrap().round(), 2.0);
        assert_eq!(json["bounds"][0]["percent"], 50.0);
        assert_eq!(json["bounds"][1]["gb_s"], 16.0);
        // A round of a bound that was slow counts with its own neighbour only.
        let mut uneven = measured("memcpy", 256, None);
        uneven.rounds[1] *= 8;
        let held = Row::subject(
            "tcp",
            Step::Put,
            &SHAPE,
            &measured("x", 1024, None),
            &[uneven],
        );
        let Bound {
            percent,
            least_percent,
            most_percent,
            ..
        } = held.bounds[0];
        assert_eq!([percent, least_percent, most_percent], [25.0, 25.0, 200.0]);
        let text = row.to_string();
        assert!(
            text.ends_with(
                "50 % (50 to 50) of sockets, 1 lane 8.00; 25 % (25 to 25) of memcpy 16.00\n"
            ),
            "{text}"
        );
        let columns = |text: &str| text.chars().count();
        let plain = Row::bound(Step::Put, &SHAPE, &bounds[1]).to_string();
        assert_eq!(columns(&plain), columns(&heading(Step::Put)), "{plain}");
    }

    #[test]
    fn latency_is_held_the_other_way_round() {
        let step = Step::Ping {
            count: 1,
            bytes: 256,
        };
        let bounds = [measured("sockets, 1 lane", 1, Some(10))];
        let row = Row::subject("tcp", step, &SHAPE, &measured("x", 1, Some(40)), &bounds);
        let json = serde_json::to_value(&row).unwrap();
        assert_eq!(json["op"], "latency");
        assert_eq!(json["bounds"][0]["percent"].as_f64().unwrap().round(), 25.0);
        // Percentiles have three digits.
        let p50_ns = json["p50_ns"].as_f64().unwrap();
        assert!((p50_ns - 40_000.0).abs() < 50.0, "{p50_ns}");
        assert!(json.get("gb_s").is_none());
        let plain = Row::bound(step, &SHAPE, &bounds[0]).to_string();
        assert_eq!(
            plain.chars().count(),
            heading(step).chars().count(),
            "{plain}"
        );
    }

    #[test]
    fn sizes_are_told_in_the_unit_they_are_whole_in() {
        let told = [1, 256, 1000, 4096, 1 << 20, (1 << 20) + 1024].map(size);
        assert_eq!(
            told,
            ["1 B", "256 B", "1000 B", "4 KiB", "1 MiB", "1025 KiB"]
        );
    }
}
