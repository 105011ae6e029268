//! Arguments of `moai-perf translate`.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, ValueEnum};

use crate::{
    cases::{FormatSpec, LayoutSpec},
    timing::Rounds,
};

/// Without --layout and --format: the whole matrix. With one of them, the other is nhd:nhd or bf16:bf16;
/// with both, every layout is measured with every format.
#[derive(Args, Debug)]
pub(crate) struct Translate {
    /// Layouts to go between: a name, a named layout of `moai info --layouts`, or a notation, each with
    /// `@TOKENS` behind it for pages of other than 16 tokens.
    #[arg(long = "layout", value_name = "FROM:TO")]
    pub(crate) layouts: Vec<Pair<LayoutSpec>>,
    /// Formats to go between: an element, then what there is of `.rule`, `@tensor` or `@token_head`, and
    /// `+rotation`.
    #[arg(long = "format", value_name = "FROM:TO")]
    pub(crate) formats: Vec<Pair<FormatSpec>>,
    /// A part of the matrix.
    #[arg(long, value_enum, conflicts_with_all = ["layouts", "formats"])]
    pub(crate) only: Option<Part>,
    /// Working set of each case: bytes read and bytes written [default: 256, with --quick 16].
    // Up to 64 GiB, so that page ids and tokens stay far within 32 bits.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub(crate) size: Option<u32>,
    /// Timed rounds of each case, after one that warms up [default: 7, fewer for slow cases; with
    /// --quick 3].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) rounds: Option<u32>,
    /// Numbers of threads to measure with [default: 1 and the number of cores, for the rest 1].
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Vec<u32>,
    /// Which rows of the result are compared with the slow reference.
    #[arg(long, value_enum, default_value_t = Check::Sample)]
    pub(crate) check: Check,
    /// Seed of values and page ids.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Write the machine and every row as JSON lines.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write the pools of each case before and after, for comparison with other programs.
    #[arg(long, value_name = "DIR")]
    pub(crate) dump: Option<PathBuf>,
    /// Small working sets and few rounds: shows that everything works, not how fast it is.
    #[arg(long)]
    pub(crate) quick: bool,
    /// List the cases and measure nothing.
    #[arg(long)]
    pub(crate) list: bool,
}

impl Translate {
    /// Working set in bytes.
    pub(crate) fn size_bytes(&self) -> u64 {
        let mib = self.size.unwrap_or(if self.quick { 16 } else { 256 });
        u64::from(mib) << 20
    }

    /// Timed rounds.
    pub(crate) fn rounds(&self) -> Rounds {
        match self.rounds {
            Some(n) => Rounds::exactly(n),
            None if self.quick => Rounds::exactly(FEW_ROUNDS),
            None => Rounds {
                least: FEW_ROUNDS,
                too_long: Duration::from_secs(2),
                most: 7,
                enough: Duration::from_millis(500),
            },
        }
    }

    /// Numbers of threads to measure a case of that part with, each once, in the order given.
    pub(crate) fn threads(&self, part: Option<Part>) -> Vec<u32> {
        let mut given = self.threads.clone();
        if given.is_empty() && part == Some(Part::Rest) {
            given = vec![1];
        } else if given.is_empty() {
            let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
            given = vec![1, cores];
        }
        let mut kept = Vec::new();
        for n in given {
            if !kept.contains(&n) {
                kept.push(n);
            }
        }
        kept
    }
}

/// Timed rounds of a median worth the name.
const FEW_ROUNDS: u32 = 3;

/// A part of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Layouts, in bf16.
    Layouts,
    /// The formats that matter most, in nhd.
    Formats,
    /// Layout and format at once.
    Both,
    /// All other formats, from bf16 and to it.
    Rest,
}

/// Which rows are compared with the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Check {
    /// Rows spread over all layers and tokens.
    Sample,
    /// Every row; takes minutes for large working sets.
    Full,
}

/// `FROM:TO`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pair<T> {
    pub(crate) from: T,
    pub(crate) to: T,
}

impl<T: FromStr<Err = String>> FromStr for Pair<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((from, to)) = text.split_once(':') else {
            return Err(format!("{text:?} is not FROM:TO"));
        };
        Ok(Self {
            from: from.trim().parse()?,
            to: to.trim().parse()?,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Arguments, Command};

    pub(crate) fn parse(words: &[&str]) -> Result<Translate, String> {
        let words = ["moai-perf", "translate"].iter().chain(words);
        let parsed = Arguments::try_parse_from(words).map_err(|error| error.to_string())?;
        match parsed.command {
            Command::Translate(command) => Ok(command),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pairs_are_read_whole() {
        let command = parse(&[
            "--layout",
            "nhd:hnd@64",
            "--layout",
            "[layer] page slot head part dim:vllm/rocm_paged",
            "--format",
            "bf16:e4m3fnuz@tensor",
        ])
        .unwrap();
        let names: Vec<_> = command
            .layouts
            .iter()
            .map(|pair| (pair.from.to_string(), pair.to.to_string()))
            .collect();
        assert_eq!(
            names,
            [
                ("nhd".into(), "hnd@64".into()),
                (
                    "[layer] page slot head part dim".into(),
                    "vllm/rocm_paged".into()
                ),
            ]
        );
        assert_eq!(command.formats[0].to.name, "e4m3fnuz@tensor");
    }

    #[test]
    fn what_is_not_understood_is_refused_with_what_would_be() {
        for (words, told) in [
            (["--layout", "nhd"], "FROM:TO"),
            (["--layout", "nhd:ndh"], "x-packed"),
            (["--layout", "nhd:nhd@0"], "pages of"),
            (["--format", "bf16:fp8"], "e4m3fn, e4m3fnuz or e5m2"),
            (["--format", "bf16:int8@row"], "@token_head"),
            (["--format", "bf16:mxfp4.up"], "rceil, floor"),
            (["--only", "rows"], "layouts, formats, both, rest"),
            (["--threads", "0"], "1..=1024"),
            (["--size", "0"], "1..=65536"),
        ] {
            let error = parse(&words).unwrap_err();
            assert!(error.contains(told), "{words:?}: {error}");
        }
    }

    #[test]
    fn quick_changes_defaults_only() {
        let (full, quick) = (parse(&[]).unwrap(), parse(&["--quick"]).unwrap());
        let most = |command: &Translate| (command.size_bytes() >> 20, command.rounds().most);
        assert_eq!((most(&full), most(&quick)), ((256, 7), (16, 3)));
        let given = parse(&["--quick", "--size", "2", "--rounds", "9"]).unwrap();
        assert_eq!(most(&given), (2, 9));
        // What is given is done, however long it takes.
        assert_eq!(given.rounds().least, 9);
        let threads = parse(&["--threads", "2,1,2"]).unwrap();
        assert_eq!(threads.threads(None), [2, 1]);
        assert_eq!(threads.threads(Some(Part::Rest)), [2, 1]);
        assert_eq!(full.threads(None)[0], 1);
        assert_eq!(full.threads(Some(Part::Rest)), [1]);
    }
}
