//! A device of our own, for machines without one.
//!
//! It behaves as devices do where that matters to a transport. The host has the address of its memory and cannot load
//! from it: doing so kills the process, so no copy by the host slips through a test. Bytes move when a job on a stream
//! moves them, which takes time. Other processes import its memory by descriptor. And, other than real devices, it fails
//! on demand: see [`Faults`].
//!
//! - `device`: its memory and its streams.
//! - `memory`: the only way to the bytes; `unsafe` and its argument.
//! - `stream`: a queue of jobs; `worker`: the thread that works it off; `execute`: one job.
//! - `fault`: what goes wrong, and how often it did.

mod device;
mod execute;
mod fault;
mod memory;
mod random;
mod stream;
mod worker;

pub use device::{SimConfig, SimDevice};
pub use fault::{FaultCounts, Faults};
pub use memory::DeviceMemory;
pub use stream::SimStream;

pub(crate) use memory::SimMemory;
