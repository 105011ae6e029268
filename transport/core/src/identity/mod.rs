//! Who a peer has proved to be.
//!
//! - `name`: what a certificate calls its holder.
//! - `allow`: which of them may be peers.

mod allow;
mod name;

use std::fmt;

use thiserror::Error;

pub use self::allow::{AllowList, Pattern, PatternError};
pub use self::name::{Name, NameError};
use crate::limits::MAX_NAMES;

/// What a peer has proved about itself when its connection was made.
///
/// Only providers make these, and only of what was verified: an identity is never a claim.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Identity {
    /// It holds the key of a certificate that an authority of ours has signed, which calls it so: at least one name,
    /// the SPIFFE ID first.
    Certified(Vec<Name>),
    /// It holds the key that this side holds as well: it is one of us, and which one it has not said.
    SharedKey,
}

/// Names in a certificate that do not make an identity.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// No name at all that we understand.
    #[error(
        "it carries neither a SPIFFE ID nor a DNS name; issue it with one as a subject alternative name"
    )]
    Nameless,
    /// By the rules of SPIFFE a certificate has one ID, or it is to be refused.
    #[error(
        "it carries {count} URIs beside or as SPIFFE IDs; a SPIFFE certificate has exactly one URI"
    )]
    SeveralUris {
        /// URIs in the certificate.
        count: usize,
    },
    /// More names than anybody needs.
    #[error("it carries {count} names, more than {MAX_NAMES}")]
    TooMany {
        /// Names in the certificate.
        count: usize,
    },
}

impl Identity {
    /// Of a certificate with these URIs and DNS names, as they stand in it.
    ///
    /// URIs of other schemes, and DNS names that are no name of one host (wildcards), identify nobody and are passed
    /// over.
    ///
    /// # Errors
    ///
    /// [`IdentityError`] if nothing is left, or if a SPIFFE ID is not the only URI.
    pub fn of_certificate(uris: &[&str], dns: &[&str]) -> Result<Self, IdentityError> {
        let count = uris.len() + dns.len();
        if count > MAX_NAMES {
            return Err(IdentityError::TooMany { count });
        }
        // Also one that is malformed: it must not pass as a certificate that says nothing of SPIFFE.
        let says_spiffe = |uri: &&&str| {
            let scheme = uri.as_bytes().get(..7);
            scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"spiffe:"))
        };
        if uris.iter().any(|uri| says_spiffe(&uri)) && uris.len() > 1 {
            return Err(IdentityError::SeveralUris { count: uris.len() });
        }
        let spiffe = uris.iter().filter_map(|uri| Name::spiffe(uri).ok());
        let names: Vec<Name> = spiffe
            .chain(dns.iter().filter_map(|name| Name::dns(name).ok()))
            .collect();
        if names.is_empty() {
            return Err(IdentityError::Nameless);
        }
        Ok(Self::Certified(names))
    }

    /// Names of a certificate; none of a shared key.
    #[must_use]
    pub fn names(&self) -> &[Name] {
        match self {
            Self::Certified(names) => names,
            Self::SharedKey => &[],
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SharedKey => f.write_str("a holder of the shared key"),
            Self::Certified(names) => {
                for (at, name) in names.iter().enumerate() {
                    write!(f, "{}{name}", if at == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_what_its_names_say() {
        let of = |uris: &[&str], dns: &[&str]| Identity::of_certificate(uris, dns);
        let both = of(&["spiffe://moai/node/a"], &["A.example", "*.example"]).unwrap();
        assert_eq!(both.to_string(), "spiffe://moai/node/a, dns:a.example");
        let other = of(&["https://a.example/x"], &["a.example"]).unwrap();
        assert_eq!(other.to_string(), "dns:a.example");
        assert_eq!(of(&[], &["*.example"]), Err(IdentityError::Nameless));
        assert_eq!(of(&["https://a"], &[]), Err(IdentityError::Nameless));
        assert_eq!(of(&["SPIFFE://moai/a"], &[]), Err(IdentityError::Nameless));
        for two in [
            ["spiffe://moai/a", "spiffe://moai/b"],
            ["https://a", "spiffe://moai/b"],
            ["SPIFFE:nonsense", "https://a"],
        ] {
            let error = of(&two, &["a.example"]).unwrap_err();
            assert_eq!(error, IdentityError::SeveralUris { count: 2 });
        }
        let many = vec!["a.example"; MAX_NAMES + 1];
        assert!(matches!(of(&[], &many), Err(IdentityError::TooMany { .. })));
    }
}
