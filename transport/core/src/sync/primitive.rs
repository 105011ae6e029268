//! What the algorithms are built of: the real thing, or loom's models of it under `cfg(moai_loom)`.

#[cfg(not(moai_loom))]
pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(moai_loom)]
pub(super) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
