//! Arguments of `moai-perf reshard`.

use std::path::PathBuf;

use clap::Args;
use moai_fabric::collectives::digest::Coverage;

use super::Transport;
use crate::{reshard::SideSpec, timing::Rounds};

/// A side is TP:LAYOUT:FORMAT, as 4:nhd@16:bf16: that many ranks which share the heads of Llama 3 8B; layouts
/// and formats as for translate. Without --to: the same layout and format on half the ranks, then
/// x-packed@32 in bf16, then that in e4m3fnuz@tensor. What is not the same is held against what is.
#[derive(Args, Debug)]
pub(crate) struct Reshard {
    /// The side that holds the cache.
    #[arg(long, value_name = "SIDE", default_value = "4:nhd@16:bf16")]
    pub(crate) from: SideSpec,
    /// Sides that pull it.
    #[arg(long, value_name = "SIDE")]
    pub(crate) to: Vec<SideSpec>,
    /// The description of the side that holds the cache, instead of --from.
    #[arg(long, value_name = "FILE", requires = "consumer", conflicts_with_all = ["from", "to"])]
    pub(crate) producer: Option<PathBuf>,
    /// The description of the side that pulls it.
    #[arg(long, value_name = "FILE", requires = "producer")]
    pub(crate) consumer: Option<PathBuf>,
    /// What moves the bytes, each in turn.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Transport::Tcp, Transport::Shm])]
    pub(crate) transport: Vec<Transport>,
    /// How much is digested, each in turn, beside the first: full, wire, sample or off [default: as usual, wire].
    #[arg(long, value_delimiter = ',', value_parser = coverage)]
    pub(crate) digest: Vec<Coverage>,
    /// Tokens of the request, where no file says so [default: 2048, with --quick 64].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) tokens: Option<u32>,
    /// Timed rounds, after one that warms up [default: 7, with --quick 3].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) rounds: Option<u32>,
    /// Seed of values and page ids.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Write the machine and every row as JSON lines.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Small requests and few rounds: shows that everything works, not how fast it is.
    #[arg(long)]
    pub(crate) quick: bool,
}

impl Reshard {
    pub(crate) fn tokens(&self) -> u32 {
        self.tokens.unwrap_or(if self.quick { 64 } else { 2048 })
    }

    pub(crate) fn rounds(&self) -> Rounds {
        Rounds::exactly(self.rounds.unwrap_or(if self.quick { 3 } else { 7 }))
    }
}

fn coverage(text: &str) -> Result<Coverage, String> {
    match text {
        "full" => Ok(Coverage::Full),
        "wire" => Ok(Coverage::Wire),
        "sample" => Ok(Coverage::Sample),
        "off" => Ok(Coverage::Off),
        _ => Err("expected full, wire, sample or off".to_owned()),
    }
}
