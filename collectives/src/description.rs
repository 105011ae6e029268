//! The external form of one side: the JSON document that people and engines write.
//!
//! These types mirror the document field by field and promise nothing but its syntax; what it says
//! is checked when it becomes a [`Descriptor`](crate::descriptor::Descriptor). Unknown fields are
//! errors: a misspelt field must not silently mean its default.

use std::collections::BTreeMap;

use moai_translate::layout::Placed;
use serde::{Deserialize, Serialize};

use crate::digest::Coverage;

/// One side: an engine instance with all of its ranks.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(
    clippy::exhaustive_structs,
    reason = "mirrors version 1 of the document"
)]
pub struct Description {
    /// Version of this form; 1.
    pub version: u32,
    /// Engine and version: reported, never compared.
    #[serde(default)]
    pub engine: String,
    /// Whose values the cache holds.
    pub model: Model,
    /// Sizes of the parallel dimensions.
    pub parallel: Parallel,
    /// Tokens a page; may be left out where `groups` say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_slots: Option<u32>,
    /// Layers with page lists of their own. Without groups there is one, of all layers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
    /// What rows there are.
    pub components: Vec<Component>,
    /// What each rank owns and where.
    pub ranks: Vec<Rank>,
    /// The request to be moved; a description of an engine alone has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Request>,
}

/// Whose values a cache holds.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(
    clippy::exhaustive_structs,
    reason = "mirrors version 1 of the document"
)]
pub struct Model {
    /// Reported, never compared.
    #[serde(default)]
    pub name: String,
    /// Identifies the weights; compared when both sides give it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Global number of layers.
    pub layers: u32,
}

/// Sizes of the parallel dimensions.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(
    clippy::exhaustive_structs,
    reason = "mirrors version 1 of the document"
)]
pub struct Parallel {
    /// Tensor parallel ranks.
    #[serde(default = "one")]
    pub tp: u32,
    /// Pipeline stages.
    #[serde(default = "one")]
    pub pp: u32,
    /// Context parallel ranks.
    #[serde(default = "one")]
    pub cp: u32,
    /// The axes from the slowest to the fastest.
    #[serde(default = "pp_cp_tp")]
    pub rank_order: String,
    /// How tokens are dealt to context parallel ranks; needed when `cp` > 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cp_unit: Option<CpUnit>,
}

fn one() -> u32 {
    1
}

fn pp_cp_tp() -> String {
    "pp cp tp".into()
}

/// How tokens are dealt to `cp` ranks.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(clippy::exhaustive_enums, reason = "mirrors version 1 of the document")]
pub enum CpUnit {
    /// Token t belongs to rank t mod cp.
    Token,
    /// Token t belongs to rank ⌊t / `page_slots`⌋ mod cp.
    Page,
    /// Ranks own ranges of ⌈tokens / cp⌉ tokens.
    Contiguous,
}

/// Layers with page lists of their own.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(
    clippy::exhaustive_structs,
    reason = "mirrors version 1 of the document"
)]
pub struct Group {
    /// Name, by which ranks give their pages.
    pub name: String,
    /// Half-open interval of global layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<[u32; 2]>,
    /// Global layers, where they are no interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers_list: Option<Vec<u32>>,
    /// Tokens a page; the document's own, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_slots: Option<u32>,
    /// The group holds the last tokens only: this many, rounded out to pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
}

/// What one kind of row is, and where it lies.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(
    clippy::exhaustive_structs,
    reason = "mirrors version 1 of the document"
)]
pub struct Component {
    /// `key`, `value`, `latent`, …; `X.scale` holds the scales of component X.
    pub name: String,
    /// Global KV heads.
    pub heads: u32,
    /// Elements a row.
    pub dim: u32,
    /// The set of regions that holds it.
    pub pool: String,
    /// What its bytes mean.
    pub format: Format,
    /// Rotary part of the row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope: Option<Rope>,
    /// Position on the `part` axis; 0 for `key`, 1 for `value`, else 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<u32>,
    /// The group it belongs to; all, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The component whose dims it is a piece of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<PieceOf>,
    /// Where its rows lie.
    pub layout: Layout,
}

/// A component that is a range of another's dims.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(
    clippy::exhaustive_structs,
    reason = "mirrors version 1 of the document"
)]
pub struct PieceOf {
    /// Name of the whole.
    pub component: String,
    /// Half-open range of its dims.
    pub dims: [u32; 2],
}

/// What bytes mean.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(
    clippy::exhaustive_structs,
    reason = "mirrors version 1 of the document"
)]
pub struct Format {
    /// Exact name of the element, as `e4m3fn`.
    pub element: String,
    /// Scale outside of the element.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<Scale>,
    /// By which of the element's rules a writer picks scales, as `pow2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_rule: Option<String>,
    /// Rotation applied after RoPE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,
}

/// Scale outside of the element.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(
    clippy::exhaustive_structs,
    reason = "mirrors version 1 of the document"
)]
pub struct Scale {
    /// What shares one scale.
    pub granularity: Granularity,
    /// Type of the scale; `f32`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Constants: one number, one a layer, or one a layer and head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<Values>,
}

/// What shares one scale.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "mirrors version 1 of the document")]
pub enum Granularity {
    /// All rows of a layer.
    Tensor,
    /// All rows of a head of a layer.
    Head,
    /// One row; the scales are a component of their own.
    TokenHead,
}

/// Constants of a scale.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
#[allow(clippy::exhaustive_enums, reason = "mirrors version 1 of the document")]
pub enum Values {
    /// One for all layers.
    One(f64),
    /// One for each global layer.
    Layers(Vec<f64>),
    /// For each global layer, one for each global head.
    Heads(Vec<Vec<f64>>),
}

/// Rotation applied to rows after RoPE.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(clippy::exhaustive_enums, reason = "mirrors version 1 of the document")]
pub enum Rotation {
    /// Not rotated.
    None,
    /// Orthonormal Hadamard blocks of this size.
    Hadamard(u32),
    /// vLLM's randomized Hadamard transform.
    Signed,
}

impl From<Rotation> for moai_translate::rotation::Rotation {
    fn from(rotation: Rotation) -> Self {
        match rotation {
            Rotation::None => Self::None,
            Rotation::Hadamard(n) => Self::Hadamard(n),
            Rotation::Signed => Self::Signed,
        }
    }
}

/// Rotary part of a row.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(
    clippy::exhaustive_structs,
    reason = "mirrors version 1 of the document"
)]
pub struct Rope {
    /// How elements pair.
    pub pairing: Pairing,
    /// Rotary elements.
    pub dims: u32,
    /// First rotary element of the row.
    #[serde(default)]
    pub offset: u32,
}

/// How rotary elements pair.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(clippy::exhaustive_enums, reason = "mirrors version 1 of the document")]
pub enum Pairing {
    /// (i, i + dims/2).
    Half,
    /// (2i, 2i + 1).
    Interleaved,
}

/// Where rows lie: text, or text with an offset and strides.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
#[allow(clippy::exhaustive_enums, reason = "mirrors version 1 of the document")]
pub enum Layout {
    /// Dense.
    Text(String),
    /// With an offset, and strides where they are not dense.
    Strided(StridedLayout),
}

impl From<Placed> for Layout {
    fn from(placed: Placed) -> Self {
        let text = placed.notation.to_string();
        if placed.offset_bytes == 0 && placed.strides_bytes.is_empty() {
            return Self::Text(text);
        }
        Self::Strided(StridedLayout {
            text,
            offset_bytes: placed.offset_bytes,
            strides_bytes: placed.strides_bytes,
        })
    }
}

/// A layout with an offset and strides.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(
    clippy::exhaustive_structs,
    reason = "mirrors version 1 of the document"
)]
pub struct StridedLayout {
    /// The axes.
    pub text: String,
    /// Bytes from the start of the region.
    #[serde(default)]
    pub offset_bytes: u64,
    /// Strides in bytes, by word of the text.
    #[serde(default)]
    pub strides_bytes: BTreeMap<String, u64>,
}

/// What one rank owns, and where.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(
    clippy::exhaustive_structs,
    reason = "mirrors version 1 of the document"
)]
pub struct Rank {
    /// Number of the rank, from 0.
    pub rank: u32,
    /// Half-open interval of global layers; an equal share, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<[u32; 2]>,
    /// Global layers, where they are no interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers_list: Option<Vec<u32>>,
    /// Half-open interval of global heads; by `tp`, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<[u32; 2]>,
    /// Pages in each region.
    pub pages: u32,
    /// Safetensors file with the regions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Pages of the request, if there is one, in the order of the tokens this rank owns; by group, where there are groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_pages: Option<RequestPages>,
}

/// Pages of the request.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
#[allow(clippy::exhaustive_enums, reason = "mirrors version 1 of the document")]
pub enum RequestPages {
    /// Without groups.
    One(Vec<u32>),
    /// By name of group.
    Groups(BTreeMap<String, Vec<u32>>),
}

/// The request to be moved.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(
    clippy::exhaustive_structs,
    reason = "mirrors version 1 of the document"
)]
pub struct Request {
    /// Its tokens, from 0.
    pub tokens: u32,
    /// The first token to be moved, where those before it are there already.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first: u32,
    /// Half-open interval of global layers to be moved; all, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<[u32; 2]>,
    /// How much of it is digested.
    #[serde(default, skip_serializing_if = "is_default")]
    pub digest: Coverage,
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

fn is_default(value: &Coverage) -> bool {
    *value == Coverage::default()
}
