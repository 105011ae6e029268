//! Random pairs of descriptions, and what must become of them.

pub(crate) mod generate;
pub(crate) mod naive;
#[path = "../../../translate/tests/support/rng.rs"]
pub(crate) mod rng;
