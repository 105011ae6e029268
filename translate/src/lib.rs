//! Turns the rows of one cache into the rows of another.
//!
//! - [`layout`]: where rows lie, as text and as addresses.

pub mod layout;
