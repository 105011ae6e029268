//! Moves a cache between two described sides.
//!
//! ```text
//!   description  ──check──▶  descriptor ┐
//!    (JSON)                             ├─negotiate─▶ agreement ──plan──▶ pairs, steps ┐
//!   description  ──check──▶  descriptor ┘  or refusal                                  ├──▶ chunks
//!                                              request of both sides ───────check──────┘
//! ```
//!
//! All above the last line is done once for two engines, the last line for each request.
//!
//! - [`description`]: the JSON document; [`descriptor`]: the same, checked.
//! - [`request`]: what of a cache is to be moved, and in which pages it lies.
//! - [`tokens`]: which tokens a rank holds.
//! - [`negotiate`]: whether two sides fit, and how rows travel.
//! - [`plan`]: who sends what to whom; [`execute`]: doing it.
//! - [`cost`]: which way it goes.
//! - [`digest`]: what both sides compare when it is done.
#![forbid(unsafe_code)]

pub mod cost;
pub mod description;
pub mod descriptor;
pub mod digest;
pub mod execute;
pub mod limits;
pub mod negotiate;
pub mod plan;
pub mod protocol;
pub mod request;
pub mod tokens;
pub mod traffic;
pub mod transfer;
