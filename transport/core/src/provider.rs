//! A provider: one way to move bytes, as a value.

use std::fmt;

use crate::{Address, Error, Interface};

/// Why an address cannot be reached, as far as that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums)] // Whoever chooses a path must know what each means for it.
pub enum Obstacle {
    /// It is where this way does not lead: on another host, in another namespace. That is as it should be, and nothing
    /// slower that is taken instead is a fallback.
    Elsewhere(String),
    /// This way leads there, and something is wrong with it.
    Refused(String),
}

impl Obstacle {
    /// The reason, for people.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Elsewhere(reason) | Self::Refused(reason) => reason,
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

/// One way to move bytes.
///
/// A value that is handed to whoever assembles the stack, not a feature of the build: a provider whose libraries or
/// devices are missing says so in a sentence.
pub trait Provider: fmt::Debug + Send + Sync {
    /// Name of the provider, such as `"tcp"`.
    fn name(&self) -> &'static str;

    /// Whether it can be opened here, and on what: a sentence either way.
    ///
    /// # Errors
    ///
    /// Why it cannot, for people.
    fn probe(&self) -> Result<String, String>;

    /// Why an interface opened here cannot reach `address`, as far as that is known without trying.
    fn obstacle(&self, address: &Address) -> Option<Obstacle>;

    /// Opens an interface. It belongs to one thread at a time.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if a knob is out of range, [`Error::Os`] if the system refuses.
    fn open(&self) -> Result<Box<dyn Interface + Send>, Error>;
}
