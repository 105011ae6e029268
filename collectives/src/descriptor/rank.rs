//! What one rank owns, and where its rows lie.

use std::ops::Range;

use moai_translate::layout::Layout;

/// A region that a rank must have.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegionSpec {
    /// `{pool}.{index}`.
    pub name: String,
    /// Bytes it must have at least: past the last addressed byte.
    pub bytes: u64,
}

/// What one rank owns, and where.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RankShard {
    /// Number of the rank.
    pub rank: u32,
    /// Its place along the tensor, pipeline and context parallel axes.
    pub tp: u32,
    /// Pipeline stage.
    pub pp: u32,
    /// Context parallel rank.
    pub cp: u32,
    /// Global layers, in the order of the `layer` axis.
    pub layers: Vec<u32>,
    /// Pages in each region.
    pub pages: u32,
    /// Safetensors file with the regions.
    pub file: Option<String>,
    /// All regions, in the order in which layouts number them.
    pub regions: Vec<RegionSpec>,
    pub(super) owned: Vec<Owned>,
}

/// What a rank owns of one component.
#[derive(Clone, Debug)]
pub(super) struct Owned {
    pub(super) heads: Range<u32>,
    /// Global layers along the component's `layer` axis.
    pub(super) layers: Vec<u32>,
    pub(super) layout: Option<Layout>,
}

impl RankShard {
    /// Global heads of a component.
    #[must_use]
    pub fn heads(&self, component: usize) -> &Range<u32> {
        &self.owned[component].heads
    }

    /// Global layers along a component's `layer` axis.
    #[must_use]
    pub fn layers_of(&self, component: usize) -> &[u32] {
        &self.owned[component].layers
    }

    /// Where a component's rows lie; `None` if this rank holds none of its layers.
    #[must_use]
    pub fn layout(&self, component: usize) -> Option<&Layout> {
        self.owned[component].layout.as_ref()
    }

    /// Where a global layer stands on a component's `layer` axis.
    #[must_use]
    pub fn local_layer(&self, component: usize, layer: u32) -> Option<u32> {
        let layers = &self.owned[component].layers;
        // Most are an interval.
        let guess = layer.checked_sub(*layers.first()?);
        if let Some(at) = guess
            && layers.get(at as usize) == Some(&layer)
        {
            return Some(at);
        }
        let at = layers.iter().position(|&own| own == layer);
        at.map(|at| at as u32)
    }
}
