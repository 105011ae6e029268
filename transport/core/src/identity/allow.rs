//! Which names may be peers.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::name::{SPIFFE, check_segment, check_trust_domain};
use super::{Identity, Name, NameError};
use crate::limits::MAX_PATTERNS;

/// One name that may be a peer, or many.
///
/// | pattern | allows |
/// |---|---|
/// | `spiffe://cluster/ns/serving` | this ID |
/// | `spiffe://cluster/ns/*` | IDs below it: one or more whole segments behind `spiffe://cluster/ns/`. Not `spiffe://cluster/ns` itself, nor `spiffe://cluster/nsx/a` |
/// | `spiffe://cluster/*` | every ID of this trust domain |
/// | `dns:host.example`, `host.example` | a certificate with this DNS name, without regard to case |
/// | `*` | everyone whose certificate an authority of ours has signed |
///
/// A star stands at the end behind a slash, or alone; elsewhere it is refused. There are no patterns of DNS names: a
/// certificate with a wildcard in one identifies nobody either.
///
/// ```
/// use moai_transport::Pattern;
///
/// let pattern: Pattern = "spiffe://cluster/ns/*".parse()?;
/// assert!(pattern.allows(&"spiffe://cluster/ns/serving/decode-0".parse().unwrap()));
/// assert!(!pattern.allows(&"spiffe://cluster/nsx/serving".parse().unwrap()));
/// # Ok::<(), moai_transport::PatternError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern(Kind);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Any,
    Exact(Name),
    /// Up to and with the last slash.
    Below(String),
}

/// A text that is no pattern, or no list of them.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PatternError {
    /// No name, and no pattern of names.
    #[error(
        "{0}; expected spiffe://DOMAIN/PATH, spiffe://DOMAIN/PATH/*, dns:HOST, or * for everyone with a certificate of \
         the authority's"
    )]
    Name(#[from] NameError),
    /// A star where it would not mean whole segments.
    #[error(
        "{pattern:?} has a star where none can stand; it stands alone, or for whole segments at the end of a SPIFFE ID, as in \
         spiffe://cluster/ns/*"
    )]
    Star {
        /// The text, shortened.
        pattern: String,
    },
    /// A list of nothing allows nobody.
    #[error(
        "the list of allowed peers is empty; * allows everyone with a certificate of the authority's"
    )]
    Empty,
    /// More than a list holds.
    #[error(
        "{count} patterns are more than {MAX_PATTERNS}; a SPIFFE prefix as spiffe://cluster/ns/* stands for many"
    )]
    TooMany {
        /// Patterns in the text.
        count: usize,
    },
}

impl Pattern {
    /// Whether a peer of this name is one.
    #[must_use]
    pub fn allows(&self, name: &Name) -> bool {
        match &self.0 {
            Kind::Any => true,
            Kind::Exact(exact) => exact == name,
            // A name is well formed: what is behind the slash is at least one segment, and whole.
            Kind::Below(prefix) => name.is_spiffe() && name.as_str().starts_with(prefix.as_str()),
        }
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text == "*" {
            return Ok(Self(Kind::Any));
        }
        let star = || PatternError::Star {
            pattern: text.chars().take(80).collect(),
        };
        let Some(before) = text.strip_suffix("/*") else {
            return match text.contains('*') {
                true => Err(star()),
                false => Ok(Self(Kind::Exact(text.parse()?))),
            };
        };
        let rest = before.strip_prefix(SPIFFE).ok_or_else(star)?;
        if before.contains('*') {
            return Err(star());
        }
        let mut parts = rest.split('/');
        check_trust_domain(parts.next().unwrap_or_default())
            .and_then(|()| parts.try_for_each(check_segment))
            .map_err(|problem| NameError::new("SPIFFE ID", text, problem))?;
        Ok(Self(Kind::Below(format!("{before}/"))))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Any => f.write_str("*"),
            Kind::Exact(name) => write!(f, "{name}"),
            Kind::Below(prefix) => write!(f, "{prefix}*"),
        }
    }
}

/// Who may be a peer: at least one pattern.
///
/// In text, patterns are separated by commas or white space.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AllowList(Vec<Pattern>);

impl AllowList {
    /// Everyone whose certificate an authority of ours has signed.
    #[must_use]
    pub fn everyone() -> Self {
        Self(vec![Pattern(Kind::Any)])
    }

    /// Of these patterns.
    ///
    /// # Errors
    ///
    /// [`PatternError`] if there are none, or too many.
    pub fn new(patterns: Vec<Pattern>) -> Result<Self, PatternError> {
        match patterns.len() {
            0 => Err(PatternError::Empty),
            1..=MAX_PATTERNS => Ok(Self(patterns)),
            count => Err(PatternError::TooMany { count }),
        }
    }

    /// Whether whoever has proved to be `identity` may be a peer: one of its names is allowed. Holders of a shared key
    /// have no names, and are allowed by `*` alone.
    #[must_use]
    pub fn allows(&self, identity: &Identity) -> bool {
        let names = identity.names();
        self.0
            .iter()
            .any(|pattern| pattern.0 == Kind::Any || names.iter().any(|name| pattern.allows(name)))
    }

    /// The patterns.
    #[must_use]
    pub fn patterns(&self) -> &[Pattern] {
        &self.0
    }
}

impl FromStr for AllowList {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let parts = text.split(|c: char| c == ',' || c.is_ascii_whitespace());
        let parts = parts.filter(|part| !part.is_empty());
        let count = parts.clone().count();
        if count > MAX_PATTERNS {
            return Err(PatternError::TooMany { count });
        }
        Self::new(parts.map(Pattern::from_str).collect::<Result<_, _>>()?)
    }
}

impl fmt::Display for AllowList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, pattern) in self.0.iter().enumerate() {
            write!(f, "{}{pattern}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(pattern: &str, name: &str) -> bool {
        let pattern: Pattern = pattern.parse().unwrap();
        assert_eq!(pattern.to_string().parse::<Pattern>().unwrap(), pattern);
        pattern.allows(&name.parse().unwrap())
    }

    #[test]
    fn a_prefix_is_of_whole_segments() {
        for (pattern, name) in [
            ("spiffe://c/ns/*", "spiffe://c/ns/a"),
            ("spiffe://c/ns/*", "spiffe://c/ns/a/b"),
            ("spiffe://c/*", "spiffe://c/ns"),
            ("spiffe://c/ns", "spiffe://c/ns"),
            ("dns:a.example", "A.EXAMPLE"),
            ("a.example", "dns:a.example"),
            ("*", "a.example"),
            ("*", "spiffe://c/ns"),
        ] {
            assert!(allows(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("spiffe://c/ns/*", "spiffe://c/ns"),
            ("spiffe://c/ns/*", "spiffe://c/nsx"),
            ("spiffe://c/ns/*", "spiffe://c/nsx/a"),
            ("spiffe://c/ns/*", "spiffe://c/n/ns/a"),
            ("spiffe://c/*", "spiffe://cx/ns"),
            ("spiffe://c/*", "spiffe://c.d/ns"),
            ("spiffe://c.d/*", "spiffe://c/d/ns"),
            ("spiffe://c/ns", "spiffe://c/ns/a"),
            ("spiffe://c/ns/a", "spiffe://c/ns"),
            ("spiffe://c/ns", "spiffe://c/NS"),
            ("spiffe://c/*", "c"),
            ("a.example", "b.a.example"),
            ("b.a.example", "a.example"),
            ("a.example", "xa.example"),
            ("a.example", "a.example.evil"),
            ("c", "spiffe://c/ns"),
        ] {
            assert!(!allows(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_no_pattern_says_so() {
        for text in [
            "spiffe://c/n*",
            "spiffe://c/*/a",
            "spiffe://*/a",
            "spiffe://*/*",
            "spiffe://c/**",
            "*.example",
            "dns:*",
            "a.example/*",
            "**",
            "/*",
        ] {
            let error = text.parse::<Pattern>().unwrap_err();
            assert!(
                matches!(error, PatternError::Star { .. }),
                "{text}: {error}"
            );
        }
        for text in [
            "spiffe:///*",
            "spiffe://c//*",
            "spiffe://c/../*",
            "spiffe://C/*",
            "10.0.0.1",
        ] {
            let error = text.parse::<Pattern>().unwrap_err();
            assert!(matches!(error, PatternError::Name(_)), "{text}: {error}");
        }
    }

    #[test]
    fn a_list_allows_whoever_has_one_of_its_names() {
        let list: AllowList = "spiffe://c/ns/*, a.example".parse().unwrap();
        assert_eq!(list.to_string(), "spiffe://c/ns/*,dns:a.example");
        let of = |uris: &[&str], dns: &[&str]| Identity::of_certificate(uris, dns).unwrap();
        assert!(list.allows(&of(&["spiffe://c/ns/x"], &[])));
        assert!(list.allows(&of(&["spiffe://d/x"], &["b.example", "a.example"])));
        assert!(!list.allows(&of(&["spiffe://d/x"], &["b.example"])));
        assert!(!list.allows(&Identity::SharedKey));
        assert!(AllowList::everyone().allows(&Identity::SharedKey));
        assert_eq!(" ,".parse::<AllowList>(), Err(PatternError::Empty));
        let many = "a,".repeat(MAX_PATTERNS + 1).parse::<AllowList>();
        assert!(matches!(many, Err(PatternError::TooMany { .. })));
    }
}
