//! Handles: what one side gives the other to name a request's pages.
//!
//! A handle is text that a router or a request body can carry. It names an engine, never an address, and says nothing
//! that its holder could use without that engine: the engine looks up the number and finds its own pages. A seal
//! (HMAC-SHA-256 under the engine's key) keeps anyone else from making one up.
//!
//! ```text
//! version 1 │ kind 1 │ engine 1 + n │ epoch 8 │ number 8 │ pages 16 │ tokens 4 │ expiry 8 │ bound 1 + n │ seal 32
//! ```
//!
//! Numbers are little-endian. The text is base64 with the URL's alphabet, without padding.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::limits::{MAX_ENGINE_NAME, MAX_HANDLE_BYTES};

/// Version of handles that this build makes and reads.
const VERSION: u8 = 1;

const SEAL_BYTES: usize = 32;

/// The key of an engine: all its nodes have it, and nobody else.
#[derive(Clone)]
pub struct EngineKey([u8; 32]);

impl EngineKey {
    /// A key of 32 secret bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    fn mac(&self, bytes: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("any length is a key");
        // Whatever else a key is used for does not make a handle.
        mac.update(b"moai handle\0");
        mac.update(bytes);
        mac
    }
}

impl fmt::Debug for EngineKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineKey(..)")
    }
}

/// The digest of a set of pages: of the page lists of all groups, in order.
#[must_use]
pub fn page_set(groups: &[&[u32]]) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update(b"moai pages\0");
    for pages in groups {
        hash.update((pages.len() as u64).to_le_bytes());
        for page in *pages {
            hash.update(page.to_le_bytes());
        }
    }
    let mut set = [0; 16];
    set.copy_from_slice(&hash.finalize()[..16]);
    set
}

/// What a handle lets its holder do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "the two directions")]
pub enum HandleKind {
    /// Pull the pages of an offer from the engine that is named.
    Offer,
    /// Invite the engine that is named to pull into the pages that it granted.
    Grant,
}

/// What a handle says, before it is sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "callers write these out")]
pub struct HandleFields {
    /// What it is for.
    pub kind: HandleKind,
    /// The engine that made it.
    pub engine: String,
    /// The life of that engine.
    pub epoch: u64,
    /// Number of the offer or grant.
    pub number: u64,
    /// Digest of its [`page_set`].
    pub pages: [u8; 16],
    /// Tokens of the request.
    pub tokens: u32,
    /// When it expires, in milliseconds since 1970. A hint for early refusal: the lease of the engine that made it decides.
    pub expires_unix_ms: u64,
    /// The only engine that may use it, if there is one.
    pub bound: Option<String>,
}

/// A sealed handle.
#[derive(Clone, PartialEq, Eq)]
pub struct Handle {
    fields: HandleFields,
    bytes: Vec<u8>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever has the seal can use it.
        f.debug_tuple("Handle").field(&self.fields).finish()
    }
}

/// Something is no handle.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandleError {
    /// Not base64 of the URL's alphabet.
    #[error(
        "a handle is base64 with the alphabet of URLs, without padding; this has other characters or is cut"
    )]
    Text,
    /// Too short or too long.
    #[error("a handle of {bytes} bytes; expected {expected}")]
    Length {
        /// Its bytes.
        bytes: usize,
        /// What it should have.
        expected: String,
    },
    /// Made by another build.
    #[error("handle version {version} is not known here; this build reads {VERSION}")]
    Version {
        /// Its version.
        version: u8,
    },
    /// A field is out of its range.
    #[error("{field} of the handle: {problem}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// Whether a text can name an engine: 1 to [`MAX_ENGINE_NAME`] letters, digits, `.`, `_` and `-`, a letter or digit first, so
/// that it fits keys of etcd, host names, files and URLs.
///
/// # Errors
///
/// What is wrong with it.
pub fn check_engine_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_ENGINE_NAME {
        return Err(format!(
            "{} bytes; expected 1 to {MAX_ENGINE_NAME}: choose another name",
            name.len()
        ));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    match name.chars().find(|&c| !fits(c)) {
        None if name.starts_with(|c: char| c.is_ascii_alphanumeric()) => Ok(()),
        None => Err("it does not begin with a letter or digit: choose another name".into()),
        Some(c) => Err(format!(
            "{c:?} in it; expected letters, digits, '.', '_' and '-': choose another name"
        )),
    }
}

impl Handle {
    /// Seals what a handle says.
    ///
    /// # Errors
    ///
    /// [`HandleError::Field`] if a name cannot be that of an engine.
    pub fn seal(fields: HandleFields, key: &EngineKey) -> Result<Self, HandleError> {
        let named = |field, name: &str| {
            check_engine_name(name).map_err(|problem| HandleError::Field { field, problem })
        };
        named("engine", &fields.engine)?;
        if let Some(bound) = &fields.bound {
            named("bound", bound)?;
        }
        let mut bytes = vec![VERSION, fields.kind as u8];
        let name = |bytes: &mut Vec<u8>, name: &str| {
            bytes.push(name.len() as u8);
            bytes.extend(name.as_bytes());
        };
        name(&mut bytes, &fields.engine);
        bytes.extend(fields.epoch.to_le_bytes());
        bytes.extend(fields.number.to_le_bytes());
        bytes.extend(fields.pages);
        bytes.extend(fields.tokens.to_le_bytes());
        bytes.extend(fields.expires_unix_ms.to_le_bytes());
        name(&mut bytes, fields.bound.as_deref().unwrap_or_default());
        let seal = key.mac(&bytes).finalize().into_bytes();
        bytes.extend(seal);
        Ok(Self { fields, bytes })
    }

    /// What it says. Nobody but its engine knows whether that engine said so.
    #[must_use]
    pub const fn fields(&self) -> &HandleFields {
        &self.fields
    }

    /// Whether the holder of `key` made it; takes the same time whatever the answer.
    #[must_use]
    pub fn is_sealed_by(&self, key: &EngineKey) -> bool {
        let (said, seal) = self.bytes.split_at(self.bytes.len() - SEAL_BYTES);
        key.mac(said).verify_slice(seal).is_ok()
    }

    /// As bytes, [`MAX_HANDLE_BYTES`] at most.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads bytes; the seal is not checked.
    ///
    /// # Errors
    ///
    /// [`HandleError`]
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HandleError> {
        if bytes.len() > MAX_HANDLE_BYTES {
            let expected = format!("{MAX_HANDLE_BYTES} at most");
            return Err(HandleError::Length {
                bytes: bytes.len(),
                expected,
            });
        }
        let mut rest = Rest {
            whole: bytes.len(),
            bytes,
        };
        let [version] = rest.take()?;
        if version != VERSION {
            return Err(HandleError::Version { version });
        }
        let kind = match rest.take()? {
            [0] => HandleKind::Offer,
            [1] => HandleKind::Grant,
            [other] => {
                let problem = format!("{other}; expected 0 or 1");
                return Err(HandleError::Field {
                    field: "kind",
                    problem,
                });
            }
        };
        let engine = rest.name("engine")?.to_owned();
        let fields = HandleFields {
            kind,
            epoch: u64::from_le_bytes(rest.take()?),
            number: u64::from_le_bytes(rest.take()?),
            pages: rest.take()?,
            tokens: u32::from_le_bytes(rest.take()?),
            expires_unix_ms: u64::from_le_bytes(rest.take()?),
            bound: match rest.bytes.first() {
                Some(0) => rest.take::<1>().map(|_| None)?,
                _ => Some(rest.name("bound")?.to_owned()),
            },
            engine,
        };
        let _: [u8; SEAL_BYTES] = rest.take()?;
        if !rest.bytes.is_empty() {
            let expected = (bytes.len() - rest.bytes.len()).to_string();
            return Err(HandleError::Length {
                bytes: bytes.len(),
                expected,
            });
        }
        let bytes = bytes.to_vec();
        Ok(Self { fields, bytes })
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(&self.bytes))
    }
}

impl std::str::FromStr for Handle {
    type Err = HandleError;

    fn from_str(text: &str) -> Result<Self, HandleError> {
        // Four characters for each three bytes.
        let most = MAX_HANDLE_BYTES.div_ceil(3) * 4;
        if text.len() > most {
            let expected = format!("{most} characters of text at most");
            return Err(HandleError::Length {
                bytes: text.len(),
                expected,
            });
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| HandleError::Text)?;
        Self::from_bytes(&bytes)
    }
}

struct Rest<'a> {
    whole: usize,
    bytes: &'a [u8],
}

impl<'a> Rest<'a> {
    fn short(&self, more: usize) -> HandleError {
        let expected = format!("{} or more", self.whole - self.bytes.len() + more);
        HandleError::Length {
            bytes: self.whole,
            expected,
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], HandleError> {
        let (field, rest) = self
            .bytes
            .split_first_chunk()
            .ok_or_else(|| self.short(N))?;
        self.bytes = rest;
        Ok(*field)
    }

    fn name(&mut self, field: &'static str) -> Result<&'a str, HandleError> {
        let [length] = self.take()?;
        let length = usize::from(length);
        let (name, rest) = self
            .bytes
            .split_at_checked(length)
            .ok_or_else(|| self.short(length))?;
        self.bytes = rest;
        let problem = match std::str::from_utf8(name) {
            Ok(name) => match check_engine_name(name) {
                Ok(()) => return Ok(name),
                Err(problem) => problem,
            },
            Err(_) => "no UTF-8".to_owned(),
        };
        Err(HandleError::Field { field, problem })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(bound: Option<&str>) -> HandleFields {
        HandleFields {
            kind: HandleKind::Offer,
            engine: "prefill-0".into(),
            epoch: 7,
            number: 42,
            pages: page_set(&[&[1, 2, 3], &[9]]),
            tokens: 8192,
            expires_unix_ms: 1_790_000_000_000,
            bound: bound.map(str::to_owned),
        }
    }

    const KEY: EngineKey = EngineKey::new([5; 32]);

    #[test]
    fn survives_a_url_and_is_short() {
        for bound in [None, Some("decode-3")] {
            let handle = Handle::seal(fields(bound), &KEY).unwrap();
            let text = handle.to_string();
            assert!(text.len() < 200, "{}", text.len());
            assert!(
                text.chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
            );
            let read: Handle = text.parse().unwrap();
            assert_eq!((&read, read.fields()), (&handle, &fields(bound)));
            assert!(read.is_sealed_by(&KEY));
            assert!(!read.is_sealed_by(&EngineKey::new([6; 32])));
        }
        let longest = "x".repeat(MAX_ENGINE_NAME);
        let mut most = fields(Some(&longest));
        most.engine = longest.clone();
        let handle = Handle::seal(most, &KEY).unwrap();
        assert!(handle.as_bytes().len() <= MAX_HANDLE_BYTES);
        assert!(Handle::from_bytes(handle.as_bytes()).is_ok());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let handle = Handle::seal(fields(Some("decode-3")), &KEY).unwrap();
        for bit in 0..handle.as_bytes().len() * 8 {
            let mut bytes = handle.as_bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let sealed = Handle::from_bytes(&bytes).is_ok_and(|forged| forged.is_sealed_by(&KEY));
            assert!(!sealed, "bit {bit}");
        }
    }

    #[test]
    fn nonsense_is_refused_and_sizes_nothing() {
        let whole = Handle::seal(fields(None), &KEY).unwrap();
        for length in 0..whole.as_bytes().len() {
            assert!(
                Handle::from_bytes(&whole.as_bytes()[..length]).is_err(),
                "{length}"
            );
        }
        let mut longer = whole.as_bytes().to_vec();
        longer.push(0);
        assert!(matches!(
            Handle::from_bytes(&longer),
            Err(HandleError::Length { .. })
        ));
        assert!(matches!("a b".parse::<Handle>(), Err(HandleError::Text)));
        assert!(matches!(
            "A".repeat(1 << 20).parse::<Handle>(),
            Err(HandleError::Length { .. })
        ));
        assert_eq!(
            Handle::from_bytes(&[9]),
            Err(HandleError::Version { version: 9 })
        );
        let mut unnamed = fields(None);
        unnamed.engine = "http://x y".into();
        assert!(Handle::seal(unnamed, &KEY).is_err());
    }

    #[test]
    fn names_of_engines_fit_keys_and_hosts() {
        for name in ["a", "decode-0", "A_b.c", &"x".repeat(MAX_ENGINE_NAME)] {
            assert_eq!(check_engine_name(name), Ok(()), "{name:?}");
        }
        let long = "x".repeat(MAX_ENGINE_NAME + 1);
        for name in [
            "", "a/b", "a:1", "a@b", "..", ".a", "-a", "a b", "\u{e4}", &long,
        ] {
            assert!(check_engine_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn keys_are_not_printed() {
        assert_eq!(format!("{KEY:?}"), "EngineKey(..)");
    }

    #[test]
    fn page_sets_differ_by_page_and_group() {
        let sets = [
            page_set(&[&[1, 2]]),
            page_set(&[&[1], &[2]]),
            page_set(&[&[2, 1]]),
            page_set(&[]),
        ];
        for (at, set) in sets.iter().enumerate() {
            assert!(!sets[..at].contains(set));
        }
    }
}
