//! Arguments of the commands that move bytes between two processes.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::{
    mover::{Drive, MOST_LANES, Pacing},
    shapes::{Order, SIZES, Shape},
    timing::Rounds,
};

/// Both processes run on this machine, unless one of them is told to be --server and the other where that
/// is.
#[derive(Args, Debug)]
pub(crate) struct Movement {
    /// What moves the bytes; auto is shm within a machine and tcp beyond it. raw is plain sockets held against
    /// themselves, which shows how far figures of this machine are to be trusted.
    #[arg(long, value_enum, default_value_t = Transport::Auto)]
    pub(crate) transport: Transport,
    /// Memory that pieces lie in, on both sides.
    #[arg(long, value_enum, default_value_t = Kind::Host)]
    pub(crate) kind: Kind,
    /// Connections to the peer, and as many plain sockets to hold it against.
    #[arg(long, default_value_t = 4, value_parser = lanes())]
    pub(crate) lanes: u32,
    /// Threads on each side that drive the plain sockets.
    #[arg(long, default_value_t = 1, value_parser = lanes())]
    pub(crate) threads: u32,
    /// Microseconds that a poll of the stack looks before it parks [default: the transport's own].
    #[arg(long, value_name = "MICROS")]
    pub(crate) spin: Option<u32>,
    #[command(flatten)]
    pub(crate) run: Run,
}

impl Movement {
    /// Plain sockets of the same kind.
    pub(crate) fn drive(&self) -> Drive {
        Drive {
            lanes: self.lanes,
            threads: self.threads.min(self.lanes),
            pacing: Pacing::System,
        }
    }
}

/// Both processes run on this machine, unless one of them is told to be --server and the other where that
/// is.
#[derive(Args, Debug)]
pub(crate) struct Bounds {
    /// Numbers of plain sockets.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4], value_parser = lanes())]
    pub(crate) lanes: Vec<u32>,
    /// Threads on each side that drive them.
    #[arg(long, default_value_t = 1, value_parser = lanes())]
    pub(crate) threads: u32,
    #[command(flatten)]
    pub(crate) run: Run,
}

fn lanes() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(MOST_LANES))
}

/// What is moved, how often, and what becomes of the figures.
#[derive(Args, Debug)]
pub(crate) struct Run {
    /// Sizes of a piece [default: 256,4K,64K,1M; 256 for latency].
    #[arg(long = "piece", value_name = "BYTES", value_delimiter = ',', value_parser = size)]
    pub(crate) piece: Vec<u64>,
    /// Number of pieces; for latency, of round trips in a round [default: 256 MiB of them, at most 65536;
    /// 2000 round trips].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) pieces: Option<u32>,
    /// How pieces lie in memory.
    #[arg(long, value_enum, default_value_t = Order::Scattered)]
    pub(crate) order: Order,
    /// Timed rounds, after one that warms up [default: 7, with --quick 3].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) rounds: Option<u32>,
    /// Seed of the order and of the data.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Write the machine and every row as JSON lines.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Draw the rows and what they are held against.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
    /// Small working sets and few rounds: shows that everything works, not how fast it is.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Be the other process, for clients at this address, one after the other, until stopped. They are
    /// not asked who they are, and have memory allocated for them.
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = SERVER)]
    pub(crate) server: Option<SocketAddr>,
    /// Use the --server at this address as the other process.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "server")]
    pub(crate) client: Option<SocketAddr>,
}

/// Where a server listens that is not told: reached from this machine only.
const SERVER: &str = "127.0.0.1:7411";

impl Run {
    /// Shapes to go through, in the order of their sizes as given.
    ///
    /// # Errors
    ///
    /// If one of them cannot be allocated.
    pub(crate) fn shapes(&self) -> Result<Vec<Shape>, String> {
        let sizes = if self.piece.is_empty() {
            &SIZES[..]
        } else {
            &self.piece
        };
        let shape = |&piece: &u64| {
            let pieces = self
                .pieces
                .unwrap_or_else(|| Shape::usual_pieces(piece, self.quick));
            Shape {
                piece,
                pieces,
                order: self.order,
                seed: self.seed,
            }
            .checked()
        };
        sizes.iter().map(shape).collect()
    }

    /// Round trips in a round.
    pub(crate) fn pings(&self) -> u32 {
        self.pieces.unwrap_or(if self.quick { 200 } else { 2000 })
    }

    pub(crate) fn rounds(&self) -> Rounds {
        Rounds::exactly(self.rounds.unwrap_or(if self.quick { 3 } else { 7 }))
    }
}

/// What moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Transport {
    Tcp,
    Shm,
    Auto,
    Raw,
}

/// Kinds of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Ordinary memory.
    Host,
    /// Memory that is never paged out.
    Pinned,
    /// Memory that other processes may map.
    Shared,
    /// The device that is none: memory the processor cannot reach.
    Sim,
}

/// `256`, `4K`, `64KiB`, `1M`.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" | "B" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        _ => return Err(format!("{unit:?} is no unit; K, M and G are")),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} begins with no number"))?;
    let bytes = number.checked_mul(1 << shift).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| format!("{text} is no size of a piece"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Arguments, Command};

    fn parse(words: &[&str]) -> Result<Movement, String> {
        let words = ["moai-perf", "put"].iter().chain(words);
        match Arguments::try_parse_from(words)
            .map_err(|error| error.to_string())?
            .command
        {
            Command::Put(movement) => Ok(movement),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        let read = ["256", "4K", "64KiB", "1M", "3B"].map(|text| size(text).unwrap());
        assert_eq!(read, [256, 4 << 10, 64 << 10, 1 << 20, 3]);
        for (text, told) in [
            ("", "no number"),
            ("K", "no number"),
            ("0", "no size"),
            ("4T", "no unit"),
        ] {
            let error = size(text).unwrap_err();
            assert!(error.contains(told), "{text:?}: {error}");
        }
        assert!(size("99999999999G").is_err());
    }

    #[test]
    fn what_is_not_said_is_usual() {
        let usual = parse(&[]).unwrap();
        let shapes = usual.run.shapes().unwrap();
        assert_eq!(
            shapes.iter().map(|shape| shape.piece).collect::<Vec<_>>(),
            SIZES
        );
        assert_eq!(
            usual.drive(),
            Drive {
                lanes: 4,
                threads: 1,
                pacing: Pacing::System,
            }
        );
        assert_eq!((usual.run.server, usual.run.client), (None, None));
        let said = [
            "--piece",
            "256,4K",
            "--pieces",
            "9",
            "--lanes",
            "2",
            "--threads",
            "3",
            "--server",
        ];
        let said = parse(&said).unwrap();
        let shapes = said.run.shapes().unwrap();
        assert_eq!(
            shapes.iter().map(Shape::bytes).collect::<Vec<_>>(),
            [9 * 256, 9 << 12]
        );
        assert_eq!(
            said.drive(),
            Drive {
                lanes: 2,
                threads: 2,
                pacing: Pacing::System,
            }
        );
        assert!(
            said.run
                .server
                .is_some_and(|address| address.ip().is_loopback())
        );
    }

    #[test]
    fn what_is_not_understood_is_refused_with_what_would_be() {
        for (words, told) in [
            (&["--transport", "rdma"][..], "tcp, shm, auto, raw"),
            (&["--kind", "cuda"], "host, pinned, shared, sim"),
            (&["--order", "random"], "scattered, strided, contiguous"),
            (&["--lanes", "65"], "1..=64"),
            (&["--piece", "4,5x"], "no unit"),
            (
                &["--server", "--client", "127.0.0.1:1"],
                "cannot be used with",
            ),
        ] {
            let error = parse(words).unwrap_err();
            assert!(error.contains(told), "{words:?}: {error}");
        }
        let huge = parse(&["--piece", "1G", "--pieces", "65"]).unwrap();
        assert!(huge.run.shapes().unwrap_err().contains("the most"));
    }
}
