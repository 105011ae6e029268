//! Codings that are not made of element codes and scales: one file each.

pub(crate) mod e8m0;
pub(crate) mod turboquant;
