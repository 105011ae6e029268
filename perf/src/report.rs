//! Rows for people and rows for programs.

use std::{
    fmt,
    fs::File,
    io::{ErrorKind, Write},
    path::Path,
};

use serde::Serialize;

use crate::{failure::Failure, fingerprint::Fingerprint, timing::Spread};

/// One measured case with one number of threads.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// Always `translate`: which kind of JSON line this is.
    pub(crate) kind: &'static str,
    /// Names of both layouts.
    pub(crate) layout: [String; 2],
    /// Names of both formats.
    pub(crate) format: [String; 2],
    /// Threads, each with a request of its own.
    pub(crate) threads: u32,
    /// Timed rounds.
    pub(crate) rounds: u32,
    /// Bytes read and bytes written in a round, by all threads.
    pub(crate) bytes: u64,
    /// What the program reached.
    pub(crate) rate: Rate,
    /// What a memcpy of as many bytes reached, in the same rounds.
    pub(crate) memcpy: Rate,
    /// The first in percent of the second.
    pub(crate) percent: f64,
    /// The program and the digest of every row, where both are done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) digest: Option<Digest>,
    /// Rows compared with the reference.
    pub(crate) rows_checked: u64,
    /// Elements that saturated in a round.
    pub(crate) saturated: u64,
    /// Elements that were NaN in a round.
    pub(crate) nan: u64,
}

/// Bytes read and written over time, in 10⁹ bytes a second.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Rate {
    /// Of the median round.
    pub(crate) gb_s: f64,
    /// Of the slowest round.
    pub(crate) least_gb_s: f64,
    /// Of the fastest round.
    pub(crate) most_gb_s: f64,
}

impl Rate {
    /// The rates of passes over `bytes` bytes.
    pub(crate) fn of(bytes: u64, times: &Spread) -> Self {
        let rate = |time: std::time::Duration| bytes as f64 / time.as_nanos().max(1) as f64;
        Self {
            gb_s: rate(times.median),
            least_gb_s: rate(times.most),
            most_gb_s: rate(times.least),
        }
    }
}

/// What digests cost.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Digest {
    /// With the digest of every row.
    pub(crate) rate: Rate,
    /// Time added, in percent of the time without.
    pub(crate) cost_percent: f64,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, layout: &str, rate: Rate, last: String| {
            writeln!(
                f,
                "{layout:LAYOUT$}  {:FORMAT$}  {:>3}  {:>7.2}  {:>7.2}  {:>7.2}  {:>7.2}  {last}",
                self.format.join(" → "),
                self.threads,
                rate.gb_s,
                rate.least_gb_s,
                rate.most_gb_s,
                self.memcpy.gb_s,
            )
        };
        let layout = self.layout.join(" → ");
        line(f, &layout, self.rate, format!("{:>4.0} %", self.percent))?;
        if let Some(digest) = self.digest {
            let percent = 100.0 * digest.rate.gb_s / self.memcpy.gb_s;
            let last = format!(
                "{percent:>4.0} %  digest costs {:.0} %",
                digest.cost_percent
            );
            line(f, &format!("{layout} + digest"), digest.rate, last)?;
        }
        Ok(())
    }
}

/// Widths of the two label columns: the longest names of the matrix.
const LAYOUT: usize = 28;
const FORMAT: usize = 33;

/// The names of the columns.
pub(crate) fn heading() -> String {
    format!(
        "{:LAYOUT$}  {:FORMAT$}  thr     GB/s      min      max   memcpy  of memcpy\n",
        "layout", "format"
    )
}

/// Where rows go as they are measured.
#[derive(Debug)]
pub(crate) struct Report {
    json: Option<File>,
}

impl Report {
    /// To stdout, and into a file if there is to be one.
    pub(crate) fn new(json: Option<&Path>) -> Result<Self, Failure> {
        let create = |path: &Path| {
            File::create(path).map_err(|error| {
                Failure::Input(format!("cannot write {}: {error}", path.display()))
            })
        };
        Ok(Self {
            json: json.map(create).transpose()?,
        })
    }

    /// Begins with the machine.
    pub(crate) fn machine(&mut self, machine: &Fingerprint) -> Result<(), Failure> {
        self.show(machine.lines())?;
        self.line(machine)
    }

    /// Text on stdout. A reader that has heard enough, as `head` has, is no failure.
    pub(crate) fn show(&self, text: impl fmt::Display) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        match write!(out, "{text}").and_then(|()| out.flush()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(Failure::Input(format!("cannot write to stdout: {error}")))
            }
            _ => Ok(()),
        }
    }

    /// One JSON line.
    pub(crate) fn line(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let Some(file) = &mut self.json else {
            return Ok(());
        };
        let text =
            serde_json::to_string(value).map_err(|error| Failure::Input(error.to_string()))?;
        writeln!(file, "{text}")
            .map_err(|error| Failure::Input(format!("cannot write the JSON lines: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn row() -> Row {
        let spread = |ms: [u64; 3]| {
            let [median, least, most] = ms.map(Duration::from_millis);
            Spread {
                median,
                least,
                most,
                rounds: 7,
            }
        };
        let bytes = 1_000_000_000;
        let rate = Rate::of(bytes, &spread([200, 100, 400]));
        Row {
            kind: "translate",
            layout: ["nhd".into(), "wire".into()],
            format: ["bf16".into(), "e4m3fn@tensor".into()],
            threads: 2,
            rounds: 7,
            bytes,
            rate,
            memcpy: Rate::of(bytes, &spread([100, 100, 100])),
            percent: 50.0,
            digest: Some(Digest {
                rate: Rate::of(bytes, &spread([300, 300, 300])),
                cost_percent: 50.0,
            }),
            rows_checked: 9,
            saturated: 0,
            nan: 0,
        }
    }

    #[test]
    fn columns_stand_below_their_names() {
        let heading = heading();
        let text = row().to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        let end = |line: &str, part: &str| {
            line.find(part)
                .map(|at| line[..at + part.len()].chars().count())
        };
        for (name, number) in [
            ("GB/s", "5.00"),
            ("min", "2.50"),
            ("max", " 10.00"),
            ("thr", " 2"),
        ] {
            assert_eq!(end(&heading, name), end(lines[0], number), "{name}");
        }
        assert!(lines[0].ends_with("50 %"), "{text}");
        assert!(lines[1].starts_with("nhd → wire + digest"), "{text}");
        assert!(lines[1].ends_with("33 %  digest costs 50 %"), "{text}");
    }

    #[test]
    fn json_lines_have_numbers_and_names() {
        let value = serde_json::to_value(row()).unwrap();
        assert_eq!(value["rate"]["gb_s"], 5.0);
        assert_eq!(value["rate"]["least_gb_s"], 2.5);
        assert_eq!(value["format"][1], "e4m3fn@tensor");
        assert_eq!(value["digest"]["cost_percent"], 50.0);
        let without = Row {
            digest: None,
            ..row()
        };
        assert!(
            serde_json::to_value(without)
                .unwrap()
                .get("digest")
                .is_none()
        );
    }
}
