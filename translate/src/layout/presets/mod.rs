//! Named layouts: what a serving engine calls its cache, as text.
//!
//! A preset is data: for each component a text in the notation, and where the layout is not dense, an
//! offset and strides as formulas over extents and row sizes. [`Preset::place`] evaluates them.

mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use thiserror::Error;

pub use self::table::ALL;
use super::{
    Axis, Extents, Layout, LayoutError, Notation, Placed,
    formula::{FormulaError, evaluate},
};

/// One named layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preset {
    /// Name, `engine/backend`.
    pub name: &'static str,
    /// What the cache consists of.
    pub components: &'static [Component],
    /// Where it was read.
    pub source: &'static str,
}

/// One component of a named layout.
///
/// # Formulas
///
/// Sums and products of numbers, of the extents `layers`, `pages`, `heads` and `slots`, and of the names
/// of the preset's components, which stand for the bytes of one of their rows; `up(x, n)` is the next
/// multiple of n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Component {
    /// `key`, `value`, `latent`, …; `X.scale` holds the scales (or scales and offsets) of X, and its
    /// `dim` counts them.
    pub name: &'static str,
    /// The axes.
    pub text: &'static str,
    /// Bytes from the start of the region: a formula.
    pub offset: &'static str,
    /// Strides in bytes by word of the text, where they are not dense: formulas.
    pub strides: &'static [(&'static str, &'static str)],
    /// The set of regions that holds it.
    pub pool: &'static str,
    /// What a row holds, where that is part of the layout.
    pub row: &'static str,
}

/// How large a rank's part of a cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "everything that formulas name")]
pub struct CacheShape<'a> {
    /// Layers of the rank.
    pub layers: u32,
    /// Pages in each region.
    pub pages: u32,
    /// Heads of the rank.
    pub heads: u32,
    /// Tokens a page.
    pub slots: u32,
    /// Row of each component, in the order of the preset.
    pub rows: &'a [Row],
}

/// How large a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_structs,
    reason = "a row is a number of units of a size"
)]
pub struct Row {
    /// Elements, or indivisible groups, or scales.
    pub units: u32,
    /// Bytes of one.
    pub unit_bytes: u32,
}

/// A preset cannot be filled in.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PresetError {
    /// The preset has no such component.
    #[error("layout {preset} has no component `{component}`; it has {known}")]
    Component {
        /// The preset.
        preset: &'static str,
        /// What was asked for.
        component: String,
        /// What there is.
        known: String,
    },
    /// Rows were not given for each component.
    #[error(
        "{rows} rows for layout {preset}, which has {components} components; give one for each"
    )]
    Rows {
        /// The preset.
        preset: &'static str,
        /// Rows given.
        rows: usize,
        /// Components.
        components: usize,
    },
    /// An offset or stride is not a number of bytes that fits.
    #[error("layout {preset}, `{component}`: the {field} {formula} does not fit 64 bits")]
    TooLarge {
        /// The preset.
        preset: &'static str,
        /// The component.
        component: &'static str,
        /// `offset`, or `stride of` a word.
        field: String,
        /// The formula.
        formula: &'static str,
    },
    /// The extents do not suit the text.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl Component {
    /// Whether it has no text beyond the axes: its place follows from them alone.
    #[must_use]
    pub fn is_dense(&self) -> bool {
        self.offset == "0" && self.strides.is_empty()
    }
}

impl Preset {
    /// The component called `name`.
    #[must_use]
    pub fn component(&self, name: &str) -> Option<&'static Component> {
        self.components.iter().find(|c| c.name == name)
    }

    /// Position of a component on the `part` axis: among those of its pool that name it, in order. 0 for
    /// a component that does not.
    #[must_use]
    pub fn part(&self, component: &Component) -> u32 {
        let mates = self.mates(component).map(|c| c.name);
        mates.take_while(|&name| name != component.name).count() as u32
    }

    /// How many components share the `part` axis with `component`; 1 if none does.
    #[must_use]
    pub fn parts(&self, component: &Component) -> u32 {
        self.mates(component).count().max(1) as u32
    }

    fn mates<'a>(&'a self, one: &'a Component) -> impl Iterator<Item = &'a Component> {
        let names = |c: &Component| c.text.contains("part");
        let alike = move |c: &&Component| names(one) && names(c) && c.pool == one.pool;
        self.components.iter().filter(alike)
    }

    /// Where a component lies, as a description says it.
    ///
    /// # Errors
    ///
    /// Every variant of [`PresetError`] but [`PresetError::Layout`].
    pub fn place(&self, component: &str, shape: &CacheShape<'_>) -> Result<Placed, PresetError> {
        let one = self
            .component(component)
            .ok_or_else(|| PresetError::Component {
                preset: self.name,
                component: component.to_owned(),
                known: self.names().join(", "),
            })?;
        if shape.rows.len() != self.components.len() {
            return Err(PresetError::Rows {
                preset: self.name,
                rows: shape.rows.len(),
                components: self.components.len(),
            });
        }
        let value_of = |name: &str| match name {
            "layers" => Some(u64::from(shape.layers)),
            "pages" => Some(u64::from(shape.pages)),
            "heads" => Some(u64::from(shape.heads)),
            "slots" => Some(u64::from(shape.slots)),
            name => {
                let at = self.names().iter().position(|&known| known == name)?;
                let Row { units, unit_bytes } = shape.rows[at];
                Some(u64::from(units) * u64::from(unit_bytes))
            }
        };
        let value = |field: &str, formula: &'static str| {
            evaluate(formula, &value_of).map_err(|error| {
                debug_assert_eq!(error, FormulaError::TooLarge, "{}: {formula}", self.name);
                PresetError::TooLarge {
                    preset: self.name,
                    component: one.name,
                    field: field.to_owned(),
                    formula,
                }
            })
        };
        let notation: Notation = one.text.parse().expect("the texts of presets are layouts");
        let mut strides_bytes = BTreeMap::new();
        for &(word, formula) in one.strides {
            let stride = value(&format!("stride of `{word}`"), formula)?;
            strides_bytes.insert(word.to_owned(), stride);
        }
        Ok(Placed {
            notation,
            offset_bytes: value("offset", one.offset)?,
            strides_bytes,
        })
    }

    /// Addresses of a component.
    ///
    /// # Errors
    ///
    /// Every variant of [`PresetError`].
    ///
    /// # Example
    ///
    /// A page of DeepSeek V3.2's indexer: 64 keys of 128 bytes, then their 64 scales.
    ///
    /// ```
    /// use moai_translate::layout::presets::{self, CacheShape, Row};
    ///
    /// let preset = presets::find("vllm/dsv32_indexer").unwrap();
    /// let rows = [Row { units: 128, unit_bytes: 1 }, Row { units: 1, unit_bytes: 4 }];
    /// let shape = CacheShape { layers: 61, pages: 100, heads: 1, slots: 64, rows: &rows };
    /// let scales = preset.layout("indexer.scale", &shape)?;
    /// assert_eq!(scales.address(0, 2, 0, 5, 0).byte, 2 * 64 * 132 + 64 * 128 + 5 * 4);
    /// # Ok::<(), moai_translate::layout::presets::PresetError>(())
    /// ```
    pub fn layout(&self, component: &str, shape: &CacheShape<'_>) -> Result<Layout, PresetError> {
        let placed = self.place(component, shape)?;
        let at = self.names().iter().position(|&name| name == component);
        let at = at.expect("the component was just placed");
        let one = &self.components[at];
        let extents = Extents {
            layer: shape.layers,
            part: self.parts(one),
            page: shape.pages,
            head: shape.heads,
            slot: shape.slots,
            dim: shape.rows[at].units,
        };
        let unit_bytes = shape.rows[at].unit_bytes;
        let part = match placed.notation.names(Axis::Part) {
            true => self.part(one),
            false => 0,
        };
        Ok(placed.layout(extents, unit_bytes, part)?)
    }

    fn names(&self) -> Vec<&'static str> {
        self.components.iter().map(|c| c.name).collect()
    }
}

/// The preset called `name`.
#[must_use]
pub fn find(name: &str) -> Option<&'static Preset> {
    ALL.iter().find(|preset| preset.name == name)
}
