//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Moves LLM KV caches between unlike engines, translating layout, format and partitioning on the way.
#[derive(Debug, Parser)]
#[command(name = "moai", version, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Move a cache live, each rank a process of its own, and verify it.
    Run(Run),
    /// Convert a cache in files, without sockets.
    Convert(Convert),
    /// Say who would send what to whom, or why the two sides do not fit.
    Plan(Plan),
    /// Say whether two sides fit, what is converted, and what that loses.
    Check(Check),
    /// Look for what on this host would stand in the way, and how to mend it.
    Doctor(Doctor),
    /// Turn rows of one format into rows of another.
    Codec(Codec),
    /// Say what this build and this machine can do.
    Info(Info),
    /// Make certificates and keys for links between hosts, or look at them.
    Keys(Keys),
    /// One rank of `run`; started by it.
    #[command(hide = true)]
    Rank(Rank),
}

/// Without descriptions: seeded values in the shape of Llama 3 8B, from vLLM's FlashAttention layout in
/// bf16 on 4 ranks to its ROCm layout in e4m3fnuz on 2.
#[derive(Args, Debug)]
pub(crate) struct Run {
    /// Description of the side that holds the cache (JSON).
    #[arg(requires = "consumer")]
    pub(crate) producer: Option<PathBuf>,
    /// Description of the side that receives it (JSON).
    pub(crate) consumer: Option<PathBuf>,
    /// Write the consumer ranks' pools into this folder.
    #[arg(long, value_name = "DIR", requires = "producer")]
    pub(crate) out: Option<PathBuf>,
    /// Seconds until every rank has an outcome, at most.
    #[arg(long, value_name = "SECS")]
    pub(crate) deadline: Option<f64>,
    /// Tokens of the seeded cache.
    // As many as fill 128 GiB; the page lists of more would not fit any machine either.
    #[arg(long, default_value_t = 512, conflicts_with = "producer",
          value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) tokens: u32,
    /// Seed of the seeded cache.
    #[arg(long, default_value_t = 1, conflicts_with = "producer")]
    pub(crate) seed: u64,
    /// Payload bytes a second that each producer rank sends at most; 0 is no limit.
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_rate: Option<u64>,
    /// What may carry the bytes, best first: names separated by commas, or auto.
    #[arg(long, value_name = "NAMES")]
    pub(crate) transport: Option<String>,
    /// Where both sides' pools lie: host, pinned, shared, sim (a simulated device), or auto.
    #[arg(long, value_name = "KIND")]
    pub(crate) memory: Option<String>,
    /// Allow addresses off loopback, without authentication or encryption.
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Protect links by the certificate `node` in this folder, or the shared key, which `moai keys init` makes.
    #[arg(long, value_name = "DIR")]
    pub(crate) tls: Option<PathBuf>,
    /// Skip the element by element check after the transfer (digests are always compared).
    #[arg(long)]
    pub(crate) no_check: bool,
    /// Name every rank's process and address on stderr.
    #[arg(long, short)]
    pub(crate) verbose: bool,
    /// Write a report.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Convert {
    /// Description of the side that holds the cache (JSON); pools lie beside it.
    pub(crate) producer: PathBuf,
    /// Description of the side that is to be written (JSON); its initial pools lie beside it.
    pub(crate) consumer: PathBuf,
    /// Folder for the consumer ranks' pools.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Write a report.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Plan {
    /// Description of the side that holds the cache (JSON).
    pub(crate) producer: PathBuf,
    /// Description of the side that receives it (JSON).
    pub(crate) consumer: PathBuf,
    /// Draw the plan.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Write the plan.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Check {
    /// Description of the side that holds the cache (JSON).
    pub(crate) producer: PathBuf,
    /// Description of the side that receives it (JSON).
    pub(crate) consumer: PathBuf,
    /// Write a report.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// Exit with 1 if there is a problem.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Look at the host whose file system is mounted here.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(crate) root: PathBuf,
    /// Write a report.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Files hold rows one after another, little-endian, without a header. What a format keeps apart from its codes
/// (scales) is read from IN.scale and written to OUT.scale.
///
/// A format is an element, then what there is of .rule, @scale and +rotation: bf16, mxfp4.floor, fp8_ds_mla.pow2,
/// int8@token_head, q8_0+hadamard64. `moai info --layouts` lists the elements and their rules.
#[derive(Args, Debug)]
pub(crate) struct Codec {
    /// Format of IN.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) from: String,
    /// Format of OUT.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) to: String,
    /// What an 8-bit float becomes beyond its greatest number.
    #[arg(long, default_value = "sat")]
    pub(crate) overflow: Overflow,
    /// Constant scale of the side that is not a wide float: value = code × scale.
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true,
          conflicts_with_all = ["from_scale", "to_scale"])]
    pub(crate) scale: Option<f32>,
    /// Constant scale of IN.
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    pub(crate) from_scale: Option<f32>,
    /// Constant scale of OUT.
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    pub(crate) to_scale: Option<f32>,
    /// Elements of a row; the shortest that both formats can have, where its length means nothing.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) dim: Option<u32>,
    /// Pairing of rotary elements on both sides, as half:interleaved.
    #[arg(long, value_name = "FROM:TO")]
    pub(crate) rope: Option<String>,
    /// First rotary element.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "rope")]
    pub(crate) rope_offset: u32,
    /// Rotary elements; all from the first on unless given.
    #[arg(long, value_name = "N", requires = "rope")]
    pub(crate) rope_dims: Option<u32>,
    /// Rows to read.
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,
    /// Where rows are written.
    #[arg(value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// Write a report.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Overflow {
    /// The greatest number, Inf included (CUDA's SATFINITE).
    Sat,
    /// NaN, or Inf where there is one (CUDA's NOSAT).
    Nosat,
    /// The greatest number, but Inf becomes NaN (HIP on gfx94x).
    Satfinite,
}

#[derive(Args, Debug)]
pub(crate) struct Info {
    /// List the named layouts and the elements, too.
    #[arg(long)]
    pub(crate) layouts: bool,
    /// Draw the named layouts into this folder.
    #[arg(long, value_name = "DIR", requires = "layouts")]
    pub(crate) svg: Option<PathBuf>,
    /// Write it.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Keys {
    #[command(subcommand)]
    pub(crate) command: KeysCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Make an authority and certificates of it; nothing is overwritten.
    Init(KeysInit),
    /// Make more certificates by the authority of a folder, or the same again before they expire.
    Issue(KeysIssue),
    /// Say whom the certificates in a file identify, and until when.
    Show {
        /// A file of certificates (PEM).
        file: PathBuf,
    },
}

#[derive(Args, Debug)]
pub(crate) struct KeysInit {
    /// Folder for the files.
    pub(crate) folder: PathBuf,
    #[command(flatten)]
    pub(crate) nodes: Nodes,
    /// Make one key that all nodes hold, and no certificates.
    #[arg(long, conflicts_with_all = ["node", "spiffe", "days"])]
    pub(crate) shared: bool,
}

#[derive(Args, Debug)]
pub(crate) struct KeysIssue {
    /// Folder with the authority.
    pub(crate) folder: PathBuf,
    #[command(flatten)]
    pub(crate) nodes: Nodes,
}

#[derive(Args, Debug)]
pub(crate) struct Nodes {
    /// A node that gets a certificate; may be given again. [default: node]
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Vec<String>,
    /// What stands before a node's name in its SPIFFE ID. [default: spiffe://moai/node]
    #[arg(long, value_name = "PREFIX")]
    pub(crate) spiffe: Option<String>,
    /// Days that certificates hold. [default: 365]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) days: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    Producer,
    Consumer,
}

#[derive(Args, Debug)]
pub(crate) struct Rank {
    #[arg(long)]
    pub(crate) role: Role,
    #[arg(long)]
    pub(crate) rank: u32,
    #[arg(long, requires = "consumer")]
    pub(crate) producer: Option<PathBuf>,
    #[arg(long)]
    pub(crate) consumer: Option<PathBuf>,
    #[arg(long, default_value_t = 512)]
    pub(crate) tokens: u32,
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    #[arg(long)]
    pub(crate) deadline: Option<f64>,
    #[arg(long)]
    pub(crate) max_rate: Option<u64>,
    #[arg(long)]
    pub(crate) transport: Option<String>,
    #[arg(long)]
    pub(crate) memory: Option<String>,
    #[arg(long)]
    pub(crate) insecure: bool,
    #[arg(long)]
    pub(crate) tls: Option<PathBuf>,
    #[arg(long)]
    pub(crate) no_check: bool,
}
