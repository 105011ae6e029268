//! Memory and devices as they cross, in both directions: either side has memory that it gives to the other, and takes what
//! the other has.
//!
//! - `given`: regions of this image, described for the other. `exported`: devices of this image, as tables.
//! - `taken`: what was described, as regions of this image. `domain`: tables, as devices; `stream`: their streams.
//!
//! # Who may touch what, and when
//!
//! A description comes with a count of references; whoever keeps it has retained it. So a region made of one is good as
//! long as it lives, and the other side does not free the memory before. Bytes are touched by the rules of
//! [`Region`](moai_memory::Region) on the side that has lent them: a region is lent to a call exclusively, and the side
//! that was called makes its own region of it only for that time.

mod domain;
mod exported;
mod given;
mod stream;
mod taken;

pub use domain::TableDomain;
pub(crate) use exported::Exported;
pub(crate) use given::Held;
pub(crate) use taken::take;
