//! How a command ends when it does not succeed.

use std::{
    fmt,
    io::{ErrorKind, Write},
    path::Path,
};

use moai_fabric::{
    FabricError,
    collectives::{descriptor::DescriptorError, negotiate::Refusal},
    config::ConfigError,
    files::FileError,
    keys::KeysError,
};
use serde::Serialize;

/// Why a command did not succeed: what its exit code says, and a block of text for people.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The host has so many problems, and that is to be told by the exit code.
    Unfit(usize),
    /// Bad usage or input.
    Input(String),
    /// The two sides do not fit.
    Refused(Refusal),
    /// The transfer failed.
    Transfer(String),
}

impl Failure {
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Unfit(_) => 1,
            Self::Input(_) => 2,
            Self::Refused(_) => 3,
            Self::Transfer(_) => 4,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unfit(1) => f.write_str("1 problem"),
            Self::Unfit(n) => write!(f, "{n} problems"),
            Self::Input(text) => write!(f, "error: {}", text.trim_end()),
            Self::Refused(refusal) => write!(f, "refused: {}", refusal.to_string().trim_end()),
            Self::Transfer(text) => write!(f, "failed: {}", text.trim_end()),
        }
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::Input(error.to_string())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Input(error.to_string())
    }
}

impl From<DescriptorError> for Failure {
    fn from(error: DescriptorError) -> Self {
        Self::Input(error.to_string())
    }
}

impl From<FabricError> for Failure {
    fn from(error: FabricError) -> Self {
        match error {
            FabricError::Config(error) => Self::Input(error.to_string()),
            other => Self::Transfer(other.to_string()),
        }
    }
}

impl From<KeysError> for Failure {
    fn from(error: KeysError) -> Self {
        Self::Input(error.to_string())
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Shows text on stdout. A reader that has heard enough, as `head` has, is no failure.
pub(crate) fn show(text: impl fmt::Display) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Input(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes a report, if one is asked for.
pub(crate) fn write_json(path: Option<&Path>, report: &impl Serialize) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(report).map_err(|e| Failure::Input(e.to_string()))?;
    std::fs::write(path, text + "\n")
        .map_err(|error| Failure::Input(format!("cannot write {}: {error}", path.display())))
}
