//! How a command ends when it does not succeed.

use std::{fmt, io};

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Bad usage or input.
    Input(String),
    /// A result was wrong, so that its time means nothing.
    Wrong(String),
    /// The system or the other process did not do its part.
    Lost(String),
}

impl Failure {
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Input(_) => 2,
            Self::Wrong(_) => 4,
            Self::Lost(_) => 5,
        }
    }

    /// For `map_err`: what could not be done, and what the system says.
    pub(crate) fn lost(what: &str) -> impl Fn(io::Error) -> Self {
        move |error| Self::Lost(format!("{what}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(text) | Self::Lost(text) => write!(f, "error: {text}"),
            Self::Wrong(text) => write!(f, "wrong result: {text}"),
        }
    }
}
