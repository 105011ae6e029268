//! Where bytes live.
//!
//! A [`Region`] is a run of bytes that one rank owns, with the [`MemoryKind`] it lives in. The
//! layers above name bytes by region index and offset, never by address, so that a region in
//! host memory and one on a device are spoken of in the same way. A [`Hold`] is for those who need
//! the address: it keeps the memory alive and gives no access to it.
//!
//! | kind   | made by                              | for                                             |
//! |--------|--------------------------------------|-------------------------------------------------|
//! | host   | [`Region::host_zeroed`], `from_host` | anything                                        |
//! | pinned | [`Region::pinned_zeroed`]            | staging: devices and NICs reach it              |
//! | shared | [`Region::shared_zeroed`], `import`  | processes of one host, see [`Hold::export`]     |
//! | sim    | [`SimDevice`](sim::SimDevice)        | tests: a device that any machine has            |
//!
//! The host cannot load from a device's memory; a [`Stream`] of its [`Domain`] moves the bytes.
//!
//! `unsafe` is in `mapping` (pages of the system), `allocation` (who frees them), `region` (who may
//! touch them, and when) and `sim::memory` (the same for the device).

mod allocation;
mod copy;
mod domain;
mod error;
mod file;
mod foreign;
mod hold;
mod job;
mod kind;
mod mapping;
mod region;
pub mod sim;
mod view;

pub use copy::{CopySpan, PAST_CACHES_BYTES, copy_spans};
pub use domain::{Domain, Stream, domain_id};
pub use error::RegionError;
pub use file::Export;
pub use foreign::Foreign;
pub use hold::Hold;
pub use job::{Finished, Job, Kernel, Span, StreamError, Work};
pub use kind::{MemoryKind, UnknownKind};
pub use region::Region;
pub use view::{Parts, Read, Write};
