//! Turns the rows of one cache into the rows of another.
//!
//! - [`layout`]: where rows lie, as text and as addresses.
//! - [`element`], [`mod@format`]: what the bytes of a row mean; [`scheme`], [`table`]: what codings are made of.
//! - [`convert`]: rows of one format into rows of another; [`reference`](mod@reference): the same, slowly, by
//!   definition.
//! - [`program`]: boxes of rows in one layout and format into boxes in another; [`by_element`]: the
//!   same, slowly, by definition.

mod block;
pub mod by_element;
mod codec;
pub mod convert;
pub mod cpu;
pub mod element;
pub mod format;
mod keep;
pub mod layout;
mod name;
pub mod number;
mod packing;
pub mod program;
pub mod reference;
mod refine;
pub mod rotation;
mod rule;
pub mod scheme;
pub mod table;
