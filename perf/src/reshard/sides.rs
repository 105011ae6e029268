//! Sides of a transfer, by a short name each: `4:nhd@16:bf16` is four ranks with pages of 16 tokens.

use std::{fmt, str::FromStr};

use moai_fabric::{
    collectives::{description::Description, descriptor::Descriptor, request::Request},
    translate::format::RowScale,
};
use serde_json::{Value, json};

use crate::{
    cases::{FormatSpec, LayoutSpec, Shape},
    random::Random,
};

/// How one side holds the cache: ranks that share the heads, layout and format.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SideSpec {
    pub(crate) ranks: u32,
    pub(crate) layout: LayoutSpec,
    pub(crate) format: FormatSpec,
}

/// Ranks beyond which a side is described in a file.
const MOST_RANKS: u32 = 64;

impl FromStr for SideSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || format!("{text:?} is not TP:LAYOUT:FORMAT, such as 4:nhd@16:bf16");
        let (ranks, rest) = text.split_once(':').ok_or_else(shape)?;
        // A notation may have colons of its own; a format has none.
        let (layout, format) = rest.rsplit_once(':').ok_or_else(shape)?;
        let ranks: u32 = ranks.parse().map_err(|_| shape())?;
        if !(1..=MOST_RANKS).contains(&ranks) {
            return Err(format!(
                "{text:?}: {ranks} ranks, expected 1 to {MOST_RANKS}"
            ));
        }
        let layout: LayoutSpec = layout.parse()?;
        if layout.is_wire() {
            return Err(format!("{text:?}: a side holds its cache in pages"));
        }
        Ok(Self {
            ranks,
            layout,
            format: format.parse()?,
        })
    }
}

impl SideSpec {
    /// The text that it is read from.
    pub(crate) fn name(&self) -> String {
        format!("{}:{}:{}", self.ranks, self.layout, self.format.name)
    }
}

impl fmt::Display for SideSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            ranks,
            layout,
            format,
        } = self;
        write!(f, "tp{ranks} {layout} {}", format.name)
    }
}

impl SideSpec {
    /// The side, holding a request of `tokens` of a model of that `shape`, its pages in a seeded order.
    ///
    /// # Errors
    ///
    /// What cannot be about it.
    pub(crate) fn describe(
        &self,
        shape: Shape,
        tokens: u32,
        seed: u64,
    ) -> Result<(Descriptor, Request), String> {
        let Shape {
            model,
            layers,
            heads,
            dim,
            ..
        } = shape;
        let unit = self.format.row.element.unit(dim).bytes;
        let notations = self.layout.notations(unit)?;
        let element = self.format.name.split('@').next().unwrap_or_default();
        let components: Vec<Value> = ["key", "value"]
            .into_iter()
            .zip(notations)
            .map(|(name, notation)| {
                let mut format = json!({ "element": element });
                if let RowScale::Constant(scale) = self.format.row.scale {
                    format["scale"] =
                        json!({ "granularity": "tensor", "type": "f32", "values": scale });
                }
                let shared = notation.to_string().contains("part");
                let pool = if shared { "kv" } else { name };
                json!({
                    "name": name, "heads": heads, "dim": dim, "pool": pool, "format": format,
                    "layout": notation.to_string(),
                })
            })
            .collect();
        let used = tokens.div_ceil(self.layout.page);
        // A third more than the request needs, as a busy engine's pool would have.
        let pages = used + used.div_ceil(3);
        let ranks: Vec<Value> = (0..self.ranks)
            .map(|rank| {
                let mut ids = Random(seed ^ u64::from(rank) << 8).shuffled(pages);
                ids.truncate(used as usize);
                json!({ "rank": rank, "pages": pages, "request_pages": ids })
            })
            .collect();
        let description = json!({
            "version": 1,
            "engine": format!("moai-perf {self}"),
            "model": { "name": model, "digest": format!("seed:{seed}"), "layers": layers },
            "parallel": { "tp": self.ranks, "pp": 1, "cp": 1, "rank_order": "pp cp tp" },
            "page_slots": self.layout.page,
            "components": components,
            "ranks": ranks,
            "request": { "tokens": tokens },
        });
        let description: Description =
            serde_json::from_value(description).map_err(|error| format!("{self}: {error}"))?;
        Request::described(&description).map_err(|error| format!("{self}: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use moai_fabric::collectives::negotiate::negotiate;

    use super::*;

    const SHAPE: Shape = Shape {
        model: "small",
        layers: 2,
        components: 2,
        heads: 8,
        dim: 64,
    };

    #[test]
    fn sides_by_name_agree_with_each_other() {
        let names = [
            "4:nhd@16:bf16",
            "2:x-packed@32:bf16",
            "2:x-packed@32:e4m3fnuz@tensor",
        ];
        let sides = names.map(|name| {
            let spec: SideSpec = name.parse().unwrap();
            spec.describe(SHAPE, 100, 3).unwrap()
        });
        for target in &sides {
            negotiate(&sides[0].0, &target.0).unwrap();
        }
        assert_eq!(sides[0].0.ranks.len(), 4);
        let spec: SideSpec = names[2].parse().unwrap();
        assert_eq!(spec.name(), names[2]);
        assert_eq!(spec.to_string(), "tp2 x-packed@32 e4m3fnuz@tensor");
    }

    #[test]
    fn what_is_no_side_says_what_one_is() {
        for (text, told) in [
            ("nhd", "not TP:LAYOUT:FORMAT"),
            ("x:nhd:bf16", "not TP:LAYOUT:FORMAT"),
            ("0:nhd:bf16", "expected 1 to 64"),
            ("2:wire:bf16", "in pages"),
            ("2:nhd:fp8", "e4m3fn"),
        ] {
            let error = text.parse::<SideSpec>().unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
