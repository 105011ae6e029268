//! Models of the lock-free structures of `moai_transport::sync`, tried by loom.
//!
//! loom runs a small scenario under every interleaving of its threads, and every value that the memory
//! model lets a load see, up to a bound on preemptions. The structures are the real ones, built with loom's
//! atomics under `cfg(moai_loom)`; without that cfg there is nothing here. `.ci/loom.sh` runs it.
#![forbid(unsafe_code)]
