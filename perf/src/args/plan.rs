//! Arguments of `plan`.

use std::path::PathBuf;

use clap::Args;

/// What it costs to plan for two engines, and then for each of their requests.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// Tokens of the request.
    #[arg(long, default_value_t = 131_072)]
    pub(crate) tokens: u32,
    /// Tokens a page.
    #[arg(long, default_value_t = 16)]
    pub(crate) slots: u32,
    /// Rounds of each figure.
    #[arg(long, default_value_t = 21)]
    pub(crate) rounds: u32,
    /// Also writes a line of JSON for each row here.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
}
