//! Links that nobody else can join, read or change: TLS 1.3, with certificates or with a key that both sides hold.
//!
//! - `config`: what is asked for. `files`: certificates and keys as they lie on disk.
//! - `credentials`: what was loaded from them, and again when they change.
//! - `describe`: what is in a file, for people.
//! - `names`: what a certificate calls its holder. `verifier`: whether a peer is let in.
//! - `session`: one connection's keys and its ciphertext. `records`: what the TLS library does at each step.
//! - `handshake`: from the first byte until each side knows the other.

mod config;
mod credentials;
mod describe;
mod files;
mod handshake;
mod names;
mod records;
mod session;
mod verifier;

pub use config::{CertificateFiles, Security};
pub(crate) use credentials::Credentials;
pub use describe::{Described, describe};
pub(crate) use handshake::Shaken;
pub use names::{CertificateError, identity_of};
pub(crate) use session::{Marks, Session};

#[cfg(test)]
#[path = "../../tests/common/authority.rs"]
mod authority;
