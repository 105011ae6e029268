//! The command line.

mod movement;
mod plan;
mod reshard;
pub(crate) mod translate;

use clap::{Parser, Subcommand};

pub(crate) use self::{
    movement::{Bounds, Kind, Movement, Run, Transport},
    plan::Plan,
    reshard::Reshard,
    translate::{Check, Pair, Part, Translate},
};
use crate::{peer, reshard::COMMAND as PRODUCERS};

/// Measures what the stack reaches on this machine, each figure beside the bound of the same run.
#[derive(Debug, Parser)]
#[command(name = "moai-perf", version, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Translation between layouts and formats in memory, beside memcpy.
    Translate(Translate),
    /// One-sided writes of pieces into another process.
    Put(Movement),
    /// One-sided reads of pieces from another process.
    Get(Movement),
    /// Messages to another process.
    Send(Movement),
    /// Writes of single pieces, as many in flight as there may be.
    Rate(Movement),
    /// A message there and one back, one after the other.
    Latency(Movement),
    /// Whole transfers between sides that are not alike, beside the same move between sides that are.
    Reshard(Reshard),
    /// Plans for engines of many ranks, and for their requests.
    Plan(Plan),
    /// What sockets, memcpy and system calls on foreign memory reach, without any of the stack.
    Bounds(Bounds),
    /// The second process of the others, which start it themselves.
    #[command(name = peer::COMMAND, hide = true)]
    Partner,
    /// The producers' process of reshard, which starts it itself.
    #[command(name = PRODUCERS, hide = true)]
    Producers,
}
