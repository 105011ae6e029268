//! Cache descriptors: one side, fully described and checked.
//!
//! A [`Descriptor`] is a [`Description`] behind the door: every
//! interval lies in its range, every layout has an address for every row, no two components overlap. Nothing after it
//! checks these again. It is as long as the engine's ranks, layers and components ask for, however many pages there are.

mod check;
mod rank;
mod turns;

use std::ops::Range;

use moai_translate::{
    element::Element,
    format::{Rope, RowFormat, RowScale},
    layout::Notation,
    rotation::Rotation,
    scheme::Params,
};
use thiserror::Error;

use crate::{description::Description, request::Request, tokens::Deal};

pub use rank::{RankShard, RegionSpec};
pub use turns::PageClash;

/// One side of a transfer: an engine instance with all of its ranks.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Descriptor {
    /// Engine and version: reported, never compared.
    pub engine: String,
    /// Model's name: reported, never compared.
    pub model_name: String,
    /// Identifies the weights.
    pub model_digest: Option<String>,
    /// Global number of layers.
    pub layers: u32,
    /// Sizes of the parallel dimensions: tensor, pipeline, context.
    pub parallel: [u32; 3],
    /// How tokens are dealt to context parallel ranks, in pages of each group.
    pub cp_unit: Option<crate::description::CpUnit>,
    /// Groups of layers with page lists of their own; at least one.
    pub groups: Vec<Group>,
    /// What rows there are.
    pub components: Vec<Component>,
    /// What each rank owns and where, by rank number.
    pub ranks: Vec<RankShard>,
}

/// Layers with page lists of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Group {
    /// Name; empty for the only group of a description without groups.
    pub name: String,
    /// Global layers, ascending.
    pub layers: Vec<u32>,
    /// Tokens a page.
    pub page_slots: u32,
    /// Only the last tokens are held: this many, rounded out to pages.
    pub window: Option<u32>,
}

/// What one kind of row is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Component {
    /// Name within this side.
    pub name: String,
    /// Global heads.
    pub heads: u32,
    /// Elements a row.
    pub dim: u32,
    /// Name of the pool that holds it.
    pub pool: String,
    /// Position on the `part` axis.
    pub part: u32,
    /// What its bytes mean.
    pub format: Format,
    /// Rotary part of the row.
    pub rope: Option<Rope>,
    /// The whole that its dims belong to, and which of them it is.
    pub whole: Whole,
    /// Index of the group it is confined to.
    pub group: Option<usize>,
    /// Its layout, as text.
    pub notation: Notation,
    /// Index of the component that holds its scales.
    pub scales: Option<usize>,
    /// Whether it is itself the scales of another.
    pub is_scales: bool,
}

/// Which dims of which whole a component is. A component that is no piece is all of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Whole {
    /// Name of the whole.
    pub name: String,
    /// Dims of the whole.
    pub dims: Range<u32>,
}

/// What the bytes of a component mean, over all layers and heads.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Format {
    /// Exact element.
    pub element: Element,
    /// Scale outside of the element.
    pub scale: Scale,
    /// By which of the element's rules a writer picks scales.
    pub rule: usize,
    /// Rotation applied after RoPE, beyond what belongs to the element.
    pub rotation: Rotation,
}

/// Scale outside of the element.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Scale {
    /// None: value = code.
    None,
    /// One constant for each global layer.
    Tensor(Vec<f32>),
    /// For each global layer, one constant for each global head.
    Head(Vec<Vec<f32>>),
    /// One for each row, in a component of its own.
    TokenHead,
    /// Said to exist, with no value given.
    Unknown,
}

impl Format {
    /// The format of one layer's and head's rows; `None` if its constant is not known.
    #[must_use]
    pub fn row(&self, layer: u32, head: u32, rope: Option<Rope>) -> Option<RowFormat> {
        let scale = match &self.scale {
            Scale::None => RowScale::None,
            Scale::Tensor(values) => RowScale::Constant(values[layer as usize]),
            Scale::Head(values) => RowScale::Constant(values[layer as usize][head as usize]),
            Scale::TokenHead => RowScale::Row,
            Scale::Unknown => return None,
        };
        Some(RowFormat {
            scale,
            rule: self.rule,
            rotation: self.rotation,
            rope,
            ..RowFormat::of(self.element)
        })
    }

    /// What rows of `dim` elements keep apart from their codes: a scale each, or the params of the element.
    #[must_use]
    pub fn params(&self, dim: u32) -> Option<Params> {
        match self.scale {
            Scale::TokenHead => Some(Params {
                units: 1,
                unit_bytes: 4,
            }),
            _ => self.element.params(dim),
        }
    }

    /// Bytes of `dim` elements with what they keep apart.
    #[must_use]
    pub fn row_bytes(&self, dim: u32) -> u64 {
        let params = self.params(dim).map_or(0, Params::bytes);
        self.element.row_bytes(dim) + u64::from(params)
    }

    /// The rotation of rows of `dim`, the element's own included.
    #[must_use]
    pub fn rotated(&self, dim: u32) -> Rotation {
        RowFormat {
            rotation: self.rotation,
            ..RowFormat::of(self.element)
        }
        .rotated(dim)
    }
}

/// As [`RowFormat::named`] reads it: an element, then what there is of `.rule`, `@scale` and `+rotation`.
impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.element.name())?;
        if let (1.., Some(rule)) = (self.rule, self.element.scheme().rules().nth(self.rule)) {
            write!(f, ".{rule}")?;
        }
        f.write_str(match self.scale {
            Scale::None => "",
            Scale::Tensor(_) => "@tensor",
            Scale::Head(_) => "@head",
            Scale::TokenHead => "@token_head",
            Scale::Unknown => "@unknown",
        })?;
        match self.rotation {
            Rotation::None => Ok(()),
            Rotation::Hadamard(n) => write!(f, "+hadamard{n}"),
            Rotation::Signed => f.write_str("+signed"),
            other => write!(f, "+{other}"),
        }
    }
}

/// A description does not describe a cache.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// The text is not JSON, or not of the schema.
    #[error("line {line}, column {column}: {problem}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What was found and what was expected.
        problem: String,
    },
    /// A field's value cannot be.
    #[error("{field}: {problem}")]
    Field {
        /// The field, as `components[1].layout`.
        field: String,
        /// What is wrong with it, with the values, and what would be right.
        problem: String,
    },
}

impl Descriptor {
    /// Reads and checks a document, its request included, and leaves that aside.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    ///
    /// # Example
    ///
    /// ```
    /// use moai_collectives::descriptor::Descriptor;
    ///
    /// let text = r#"{
    ///   "version": 1, "engine": "example", "model": { "layers": 2 }, "parallel": {},
    ///   "page_slots": 16,
    ///   "components": [{ "name": "key", "heads": 4, "dim": 64, "pool": "kv",
    ///                    "format": { "element": "bf16" }, "layout": "[layer] page slot head dim" }],
    ///   "ranks": [{ "rank": 0, "pages": 8, "request_pages": [3, 1] }],
    ///   "request": { "tokens": 20 }
    /// }"#;
    /// let cache = Descriptor::from_json(text)?;
    /// assert_eq!(cache.ranks[0].heads(0), &(0..4));
    ///
    /// let error = Descriptor::from_json(&text.replace("[3, 1]", "[3, 8]")).unwrap_err();
    /// assert!(error.to_string().starts_with("ranks[0].request_pages"));
    /// # Ok::<(), moai_collectives::descriptor::DescriptorError>(())
    /// ```
    pub fn from_json(text: &str) -> Result<Self, DescriptorError> {
        Ok(Self::read(text)?.0)
    }

    /// Reads and checks a document, with its request, if it has one. Pages of either side are used once.
    ///
    /// # Errors
    ///
    /// [`DescriptorError`], which names the position or the field.
    pub fn read(text: &str) -> Result<(Self, Option<Request>), DescriptorError> {
        let description: Description = serde_json::from_str(text).map_err(|error| {
            let problem = error.to_string();
            let tail = format!(" at line {} column {}", error.line(), error.column());
            DescriptorError::Syntax {
                line: error.line(),
                column: error.column(),
                problem: problem.strip_suffix(&tail).unwrap_or(&problem).to_owned(),
            }
        })?;
        Self::described(&description)
    }

    /// Checks a description, with its request, if it has one.
    ///
    /// # Errors
    ///
    /// [`DescriptorError::Field`] for the first field that cannot be.
    pub fn described(
        description: &Description,
    ) -> Result<(Self, Option<Request>), DescriptorError> {
        let side = Self::new(description)?;
        let request = check::request(&side, description)?;
        Ok((side, request))
    }

    /// How the tokens of a group are dealt to ranks.
    #[must_use]
    pub fn deal(&self, group: usize) -> Deal {
        use crate::description::CpUnit;
        let ranks = self.parallel[2];
        match self.cp_unit {
            _ if ranks == 1 => Deal::All,
            None => Deal::All,
            Some(CpUnit::Token) => Deal::Token { ranks },
            Some(CpUnit::Page) => Deal::Page {
                ranks,
                slots: self.groups[group].page_slots,
            },
            Some(CpUnit::Contiguous) => Deal::Contiguous { ranks },
        }
    }

    /// The tokens of a group that rank `rank` holds for a request of `tokens` tokens.
    #[must_use]
    pub fn held(&self, group: usize, rank: usize, tokens: u32) -> Vec<crate::tokens::Held> {
        let deal = self.deal(group);
        let first = self.first(group, tokens);
        deal.held(self.ranks[rank].cp, first, tokens)
    }

    /// Whether a rank holds layers of a group.
    pub(crate) fn holds_layers_of(&self, group: usize, rank: usize) -> bool {
        let layers = &self.groups[group].layers;
        let mut own = self.ranks[rank].layers.iter();
        own.any(|layer| layers.binary_search(layer).is_ok())
    }

    /// The first token that a group holds of a request of `tokens` tokens.
    #[must_use]
    pub fn first(&self, group: usize, tokens: u32) -> u32 {
        let Group {
            page_slots, window, ..
        } = &self.groups[group];
        self.deal(group).first(tokens, *window, *page_slots)
    }

    /// The group that a global layer of a component belongs to, if any.
    #[must_use]
    pub fn group_of(&self, component: usize, layer: u32) -> Option<usize> {
        let holds = |group: &usize| self.groups[*group].layers.binary_search(&layer).is_ok();
        match self.components[component].group {
            Some(group) => Some(group).filter(holds),
            None => (0..self.groups.len()).find(holds),
        }
    }
}
