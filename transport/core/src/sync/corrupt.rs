//! What a peer wrote into shared memory and cannot be.

use thiserror::Error;

/// A peer wrote something into shared memory that the protocol does not allow.
///
/// The peer is broken or hostile. Nothing was touched on its word; the way out is to close the
/// connection.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "the peer wrote {seen} as {field}, and {limit} is the most that it can be; close the connection"
)]
#[non_exhaustive]
pub struct Corrupt {
    /// The word, such as `"ring tail"`.
    pub field: &'static str,
    /// What it held.
    pub seen: u64,
    /// The most it could have held, by what this side knows. An index can also be wrong below it, by moving
    /// backwards or off the ring's grid of 16 bytes.
    pub limit: u64,
}

#[cold]
pub(super) fn corrupt(field: &'static str, seen: u64, limit: u64) -> Corrupt {
    Corrupt { field, seen, limit }
}
