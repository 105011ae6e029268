//! What a certificate calls its holder.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Longest SPIFFE ID, in bytes, by its specification.
const MAX_SPIFFE_BYTES: usize = 2048;
/// Longest name of a trust domain, in bytes, by the specification of SPIFFE.
const MAX_TRUST_DOMAIN_BYTES: usize = 255;
/// Longest name of a host in text, in bytes: 255 on the wire (RFC 1035).
const MAX_DNS_BYTES: usize = 253;
/// Longest label of such a name, in bytes.
const MAX_LABEL_BYTES: usize = 63;

pub(super) const SPIFFE: &str = "spiffe://";
const DNS: &str = "dns:";

/// A SPIFFE ID or the DNS name of a host, well formed and in the one form it is compared in.
///
/// | | form | compared |
/// |---|---|---|
/// | SPIFFE ID | `spiffe://TRUST-DOMAIN/SEGMENT/…`: a trust domain of `a-z 0-9 . - _`, one or more segments of letters, digits, `.`, `-` and `_`, none of them empty, `.` or `..` | byte by byte |
/// | DNS name | labels of letters, digits, `-` and `_`, no wildcard, no address | without regard to case |
///
/// ```
/// use moai_transport::Name;
///
/// let name: Name = "spiffe://cluster/ns/serving/prefill-0".parse()?;
/// assert!(name.is_spiffe());
/// assert_eq!("Decode-0.Example".parse::<Name>()?.to_string(), "dns:decode-0.example");
/// # Ok::<(), moai_transport::NameError>(())
/// ```
///
/// # Source
///
/// `SPIFFE-ID.md` of the SPIFFE standards, section 2. Percent-encoding, user, port, query and fragment are refused there
/// as well. An ID without a path names a trust domain and not a workload, so it is none here.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    kind: Kind,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    Spiffe,
    Dns,
}

/// A text that is no name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text:?} is no {what}: {problem}")]
pub struct NameError {
    /// The text, shortened.
    pub text: String,
    /// `"SPIFFE ID"` or `"DNS name"`.
    pub what: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Name {
    /// A SPIFFE ID.
    ///
    /// # Errors
    ///
    /// [`NameError`] if it is none.
    pub fn spiffe(text: &str) -> Result<Self, NameError> {
        check_spiffe(text).map_err(|problem| NameError::new("SPIFFE ID", text, problem))?;
        Ok(Self {
            kind: Kind::Spiffe,
            text: text.to_owned(),
        })
    }

    /// The DNS name of a host.
    ///
    /// # Errors
    ///
    /// [`NameError`] if it is none.
    pub fn dns(text: &str) -> Result<Self, NameError> {
        check_dns(text).map_err(|problem| NameError::new("DNS name", text, problem))?;
        Ok(Self {
            kind: Kind::Dns,
            text: text.to_ascii_lowercase(),
        })
    }

    /// Whether it is a SPIFFE ID.
    #[must_use]
    pub fn is_spiffe(&self) -> bool {
        self.kind == Kind::Spiffe
    }

    /// The name alone: with `spiffe://`, but without `dns:`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Name {
    type Err = NameError;

    /// `spiffe://…`, `dns:…`, or a DNS name alone.
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.starts_with(SPIFFE) {
            Self::spiffe(text)
        } else {
            Self::dns(text.strip_prefix(DNS).unwrap_or(text))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_spiffe() { "" } else { DNS };
        write!(f, "{kind}{}", self.text)
    }
}

impl NameError {
    pub(super) fn new(what: &'static str, text: &str, problem: &'static str) -> Self {
        Self {
            text: text.chars().take(80).collect(),
            what,
            problem,
        }
    }
}

fn check_spiffe(text: &str) -> Result<(), &'static str> {
    if text.len() > MAX_SPIFFE_BYTES {
        return Err("it is longer than 2048 bytes");
    }
    let rest = text.strip_prefix(SPIFFE);
    let rest = rest.ok_or("it does not begin with spiffe://")?;
    let (domain, path) = rest.split_once('/').ok_or("it has no path")?;
    check_trust_domain(domain)?;
    path.split('/').try_for_each(check_segment)
}

/// Whether it can be the first part of a SPIFFE ID.
pub(super) fn check_trust_domain(domain: &str) -> Result<(), &'static str> {
    let may = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_')
    };
    match domain.len() {
        0 => Err("its trust domain is empty"),
        1..=MAX_TRUST_DOMAIN_BYTES if domain.bytes().all(may) => Ok(()),
        1..=MAX_TRUST_DOMAIN_BYTES => {
            Err("its trust domain has other characters than a-z, 0-9, '.', '-' and '_'")
        }
        _ => Err("its trust domain is longer than 255 bytes"),
    }
}

/// Whether it can be one step of the path of a SPIFFE ID.
pub(super) fn check_segment(segment: &str) -> Result<(), &'static str> {
    let may = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    match segment {
        "" => Err("a segment of its path is empty"),
        "." | ".." => Err("a segment of its path is '.' or '..'"),
        _ if segment.bytes().all(may) => Ok(()),
        _ => Err("its path has other characters than letters, digits, '.', '-', '_' and '/'"),
    }
}

fn check_dns(text: &str) -> Result<(), &'static str> {
    if text.len() > MAX_DNS_BYTES {
        return Err("it is longer than 253 bytes");
    }
    for label in text.split('.') {
        let may = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if label.is_empty() {
            return Err("a label is empty");
        }
        if label.len() > MAX_LABEL_BYTES {
            return Err("a label is longer than 63 bytes");
        }
        if !label.bytes().all(may) {
            return Err("a label has other characters than letters, digits, '-' and '_'");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err("a label begins or ends with '-'");
        }
    }
    let last = text.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("it is an address, or ends like one");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_compared_in_one_form() {
        for text in [
            "spiffe://moai/a",
            "spiffe://a.b-c_9/ns/Serving/sa/x.y",
            "spiffe://moai/...",
            "dns:a",
            "dns:a-b.c_d.example",
        ] {
            let name: Name = text.parse().unwrap();
            assert_eq!(name.to_string(), text);
        }
        assert_eq!("A.Example".parse::<Name>(), "dns:a.eXample".parse());
        assert_ne!("spiffe://m/A".parse::<Name>(), "spiffe://m/a".parse());
    }

    #[test]
    fn what_is_no_name_says_why() {
        let long = format!("spiffe://{}/a", "x".repeat(256));
        let longest = format!("spiffe://m/{}", "x".repeat(2048));
        for (text, problem) in [
            ("spiffe://moai", "no path"),
            ("spiffe://moai/", "empty"),
            ("spiffe:///a", "trust domain is empty"),
            ("spiffe://moai//a", "empty"),
            ("spiffe://moai/a/", "empty"),
            ("spiffe://moai/./a", "'.' or '..'"),
            ("spiffe://moai/a/..", "'.' or '..'"),
            ("spiffe://MOAI/a", "trust domain has other"),
            ("spiffe://moai:1/a", "trust domain has other"),
            ("spiffe://me@moai/a", "trust domain has other"),
            ("spiffe://moai/a%2fb", "path has other"),
            ("spiffe://moai/a?b", "path has other"),
            ("spiffe://moai/a#b", "path has other"),
            ("spiffe://moai/a*", "path has other"),
            ("spiffe://moai/a\0", "path has other"),
            ("spiffe://moai/\u{e4}", "path has other"),
            (&long, "longer than 255"),
            (&longest, "longer than 2048"),
            ("SPIFFE://moai/a", "a label has other"),
            ("", "a label is empty"),
            ("a..b", "a label is empty"),
            ("a.", "a label is empty"),
            ("*.a", "a label has other"),
            ("-a.b", "begins or ends"),
            ("a b", "a label has other"),
            ("10.0.0.1", "address"),
            ("a.1", "address"),
            (&"a".repeat(64), "longer than 63"),
            (&"a.".repeat(130), "longer than 253"),
        ] {
            let error = text.parse::<Name>().unwrap_err();
            assert!(error.problem.contains(problem), "{text:?}: {error}");
            assert!(error.to_string().len() < 400, "{error}");
        }
    }
}
