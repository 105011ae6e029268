//! Turns the rows of one cache into the rows of another.
//!
//! - [`layout`]: where rows lie, as text and as addresses.
//! - [`element`], [`mod@format`]: what the bytes of a row mean.
//! - [`convert`]: rows of one format into rows of another; [`reference`](mod@reference): the same, slowly, by
//!   definition.
//! - [`program`]: boxes of rows in one layout and format into boxes in another; [`by_element`]: the
//!   same, slowly, by definition.

pub mod by_element;
pub mod convert;
pub mod cpu;
pub mod element;
pub mod format;
pub mod layout;
pub mod program;
pub mod reference;
mod refine;
