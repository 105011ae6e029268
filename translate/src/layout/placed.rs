//! A notation with the offset and the strides that it needs where it is not dense.

use std::collections::BTreeMap;

use super::{Extents, Layout, LayoutError, Notation};

/// Where one component lies, extents left open: what a description's `layout` field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_structs,
    reason = "mirrors version 1 of the description"
)]
pub struct Placed {
    /// The axes.
    pub notation: Notation,
    /// Bytes from the start of the region.
    pub offset_bytes: u64,
    /// Strides in bytes, by [`Word::key`](super::Word::key), where they are not dense.
    pub strides_bytes: BTreeMap<String, u64>,
}

impl Placed {
    /// Fills in extents. `part` is the component's own position on the `part` axis.
    ///
    /// # Errors
    ///
    /// As [`Layout::new`].
    pub fn layout(
        &self,
        extents: Extents,
        unit_bytes: u32,
        part: u32,
    ) -> Result<Layout, LayoutError> {
        Layout::new(
            &self.notation,
            extents,
            unit_bytes,
            part,
            self.offset_bytes,
            &self.strides_bytes,
        )
    }
}
