//! Where the rows of a component lie.
//!
//! [`Notation`] is the text form, extents left open; [`Placed`] adds the offset and strides of what is
//! not dense. [`Layout`] is either with extents filled in: an address for every unit. [`presets`] names
//! the layouts that engines use, as text; [`Tensor`] finds the text for a tensor's shape and strides.

mod disjoint;
mod formula;
mod notation;
mod placed;
mod placement;
pub mod presets;
mod tensor;

pub use disjoint::overlap;
pub use notation::{Axis, Notation, NotationError, Split, Word};
pub use placed::Placed;
pub use placement::{Address, AxisMap, Extents, Layout, LayoutError, RowOrder};
pub use tensor::{Tensor, TensorError};
