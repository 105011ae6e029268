//! Where a peer can be reached.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::limits::MAX_ADDRESS_BYTES;

/// Where an interface can be reached, and by which provider: `tcp:10.0.0.7:4000`.
///
/// The part behind the first colon is the provider's own; nobody else takes it apart. A peer that listens in
/// several ways has several addresses, from which [`select`](crate::select()) chooses.
///
/// ```
/// use moai_transport::Address;
///
/// let address: Address = "tcp:[::1]:4000".parse()?;
/// assert_eq!((address.provider(), address.location()), ("tcp", "[::1]:4000"));
/// # Ok::<(), moai_transport::AddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    text: String,
    /// Bytes of the provider's name.
    provider: usize,
}

/// A text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text:?} is no address: {problem}; expected PROVIDER:LOCATION, such as tcp:10.0.0.7:4000")]
pub struct AddressError {
    /// The text, shortened.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Address {
    /// The address `location` of a provider.
    ///
    /// # Errors
    ///
    /// [`AddressError`] if the two do not make an address.
    pub fn new(provider: &str, location: impl fmt::Display) -> Result<Self, AddressError> {
        format!("{provider}:{location}").parse()
    }

    /// Name of the provider.
    #[must_use]
    pub fn provider(&self) -> &str {
        &self.text[..self.provider]
    }

    /// What the provider makes of it.
    #[must_use]
    pub fn location(&self) -> &str {
        &self.text[self.provider + 1..]
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refuse = |problem| AddressError {
            text: text.chars().take(64).collect(),
            problem,
        };
        if text.len() > MAX_ADDRESS_BYTES {
            return Err(refuse("it is too long"));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(refuse("it has characters that are not printable ASCII"));
        }
        let Some((provider, location)) = text.split_once(':') else {
            return Err(refuse("it has no colon"));
        };
        let named = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if provider.is_empty() || !provider.bytes().all(named) {
            return Err(refuse("its provider is no name"));
        }
        if location.is_empty() {
            return Err(refuse("it has no location"));
        }
        Ok(Self {
            text: text.to_owned(),
            provider: provider.len(),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_its_text() {
        for text in ["tcp:127.0.0.1:1", "shm:@moai/12", "x9:a:b:c"] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert_eq!(
                Address::new(address.provider(), address.location()),
                Ok(address)
            );
        }
    }

    #[test]
    fn what_is_no_address_says_why() {
        for (text, problem) in [
            ("", "no colon"),
            ("127.0.0.1", "no colon"),
            (":1", "no name"),
            ("Tcp:1", "no name"),
            ("tcp:", "no location"),
            ("tcp:a b", "printable"),
            ("tcp:\u{e4}", "printable"),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(problem), "{text:?}: {error}");
        }
        let long = format!("tcp:{}", "x".repeat(MAX_ADDRESS_BYTES));
        assert!(long.parse::<Address>().unwrap_err().to_string().len() < 300);
    }
}
