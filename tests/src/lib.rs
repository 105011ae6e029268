//! Tests that need more than one crate; they are under `tests/`.
