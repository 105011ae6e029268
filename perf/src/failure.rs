//! How a command ends when it does not succeed.

use std::fmt;

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Bad usage or input.
    Input(String),
    /// A result was wrong, so that its time means nothing.
    Wrong(String),
}

impl Failure {
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Input(_) => 2,
            Self::Wrong(_) => 4,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(text) => write!(f, "error: {text}"),
            Self::Wrong(text) => write!(f, "wrong result: {text}"),
        }
    }
}
