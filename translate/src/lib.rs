//! Turns the rows of one cache into the rows of another.
//!
//! - [`layout`]: where rows lie, as text and as addresses.
//! - [`element`], [`mod@format`]: what the bytes of a row mean.
//! - [`convert`]: rows of one format into rows of another; [`reference`](mod@reference): the same, slowly, by
//!   definition.

pub mod convert;
pub mod element;
pub mod format;
pub mod layout;
pub mod reference;
