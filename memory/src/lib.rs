//! Where bytes live.
//!
//! A [`Region`] is a run of bytes that one rank owns, with the [`MemoryKind`] it lives in. The
//! layers above name bytes by region index and offset, never by address, so that a region in
//! host memory and one on a device are spoken of in the same way.
//!
//! Only the host domain exists so far. Its regions are plain owned memory, so this crate needs no
//! `unsafe`; the device domains that need it will come as modules of their own.
#![forbid(unsafe_code)]

mod region;
mod view;

pub use region::{MemoryKind, Region, RegionError};
pub use view::{Parts, Read, Write};
