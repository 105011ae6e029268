//! Moves a cache between two described sides.
//!
//! - [`description`]: the JSON document; [`descriptor`]: the same, checked.
//! - [`tokens`]: which tokens a rank holds.
#![forbid(unsafe_code)]

pub mod description;
pub mod descriptor;
pub mod limits;
pub mod tokens;
