//! Where the rows of a component lie.
//!
//! [`Notation`] is the text form, extents left open. [`Layout`] is a notation with extents filled
//! in: an address for every unit. [`presets`] names the layouts that engines use; a preset is only
//! text.

mod disjoint;
mod notation;
mod placement;
pub mod presets;

pub use disjoint::overlap;
pub use notation::{Axis, Notation, NotationError, Split, Word};
pub use placement::{Address, AxisMap, Extents, Layout, LayoutError, RowOrder};
