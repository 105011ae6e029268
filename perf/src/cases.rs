//! What a case is: two layouts, two formats, and the shape of the model.

use std::{fmt, str::FromStr};

use moai_fabric::translate::{
    convert::Conversion,
    element::Element,
    format::{FormatError, RowFormat},
    layout::{Notation, presets},
    number::Number,
};

use crate::random::Random;

/// Between which layouts and formats a cache is translated.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Case {
    pub(crate) layouts: [LayoutSpec; 2],
    pub(crate) formats: [FormatSpec; 2],
}

impl Case {
    /// The conversion of its rows.
    ///
    /// # Errors
    ///
    /// If the formats have none.
    pub(crate) fn conversion(&self) -> Result<Conversion, String> {
        let [source, target] = &self.formats;
        Conversion::new(source.row, target.row, self.shape().dim)
            .map_err(|error| format!("{}: {error}", self.format_label()))
    }

    /// The model whose cache has such rows: the first whose rows both formats can have.
    pub(crate) fn shape(&self) -> Shape {
        let has = |shape: &&Shape| {
            let fits = |format: &FormatSpec| format.row.row_bytes(shape.dim).is_ok();
            self.formats.iter().all(fits)
        };
        *SHAPES.iter().find(has).unwrap_or(&LLAMA3_8B)
    }

    /// `FROM → TO` of the layouts.
    pub(crate) fn layout_label(&self) -> String {
        format!("{} → {}", self.layouts[0], self.layouts[1])
    }

    /// `FROM → TO` of the formats.
    pub(crate) fn format_label(&self) -> String {
        format!("{} → {}", self.formats[0].name, self.formats[1].name)
    }
}

/// What a model's cache consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) model: &'static str,
    pub(crate) layers: u32,
    /// Key and value are two, the latent of MLA is one.
    pub(crate) components: u32,
    pub(crate) heads: u32,
    pub(crate) dim: u32,
}

pub(crate) const LLAMA3_8B: Shape = Shape {
    model: "Llama 3 8B",
    layers: 32,
    components: 2,
    heads: 8,
    dim: 128,
};

const DEEPSEEK_V3: Shape = Shape {
    model: "DeepSeek V3",
    layers: 61,
    components: 1,
    heads: 1,
    dim: 576,
};

/// The models, the usual one first.
const SHAPES: [Shape; 3] = [
    LLAMA3_8B,
    DEEPSEEK_V3,
    Shape {
        model: "DeepSeek V3 with rows of 512",
        dim: 512,
        ..DEEPSEEK_V3
    },
];

/// Layouts beside the [named ones](presets), of keys and of values. `{x}` is 16 bytes worth of units.
const LAYOUTS: &[(&str, &str)] = &[
    ("nhd", "[layer] part page slot head dim"),
    ("hnd", "[layer] part page head slot dim"),
    ("x-packed", "[layer] part page head dim/{x} slot dim%{x}"),
    ("transposed", "[layer] part page head dim slot"),
];

/// Where rows lie on one side: a name or a notation, and how many tokens a page has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LayoutSpec {
    name: String,
    pub(crate) page: u32,
}

/// Tokens of a page that does not say so.
const PAGE: u32 = 16;
/// Pages are powers of two up to this, so that every working set is a whole number of either side's.
pub(crate) const MOST_PAGE: u32 = 256;
/// Dense rows of a chunk, as they go over the wire.
const WIRE: &str = "wire";

impl LayoutSpec {
    /// Whether rows lie densely in a chunk instead of in pages.
    pub(crate) fn is_wire(&self) -> bool {
        self.name == WIRE
    }

    /// The notations of key and value, for units of so many bytes.
    pub(crate) fn notations(&self, unit_bytes: u32) -> Result<[Notation; 2], String> {
        let texts = if let Some((_, text)) = LAYOUTS.iter().find(|(name, _)| *name == self.name) {
            let x = (16 / unit_bytes).max(1).to_string();
            let text = text.replace("{x}", &x);
            [text.clone(), text]
        } else if let Some(preset) = presets::find(&self.name) {
            let of = |name| {
                let component = preset.component(name).unwrap_or(&preset.components[0]);
                if component.is_dense() {
                    Ok(component.text.to_owned())
                } else {
                    Err(format!(
                        "{}: the {} is not dense, and only dense layouts are measured; give a notation for one like it",
                        preset.name, component.name
                    ))
                }
            };
            [of("key")?, of("value")?]
        } else {
            [self.name.clone(), self.name.clone()]
        };
        let parse = |text: &String| {
            text.parse::<Notation>().map_err(|error| {
                let own: Vec<&str> = LAYOUTS.iter().map(|(name, _)| *name).collect();
                format!(
                    "{:?} is none of {}, no named layout of `moai info --layouts` and no notation: {error}",
                    self.name,
                    own.join(", ")
                )
            })
        };
        Ok([parse(&texts[0])?, parse(&texts[1])?])
    }
}

impl fmt::Display for LayoutSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.page != PAGE {
            write!(f, "@{}", self.page)?;
        }
        Ok(())
    }
}

impl FromStr for LayoutSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, page) = match text.rsplit_once('@') {
            Some((name, page)) => {
                let page = page
                    .parse()
                    .ok()
                    .filter(|&n: &u32| n.is_power_of_two() && n <= MOST_PAGE);
                let page = page.ok_or_else(|| {
                    format!("{text:?}: pages of a power of two of tokens, up to {MOST_PAGE}")
                })?;
                (name, page)
            }
            None => (text, PAGE),
        };
        let spec = Self {
            name: name.to_owned(),
            page,
        };
        if !spec.is_wire() {
            spec.notations(2)?;
        }
        Ok(spec)
    }
}

/// What rows mean on one side, by name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FormatSpec {
    pub(crate) name: String,
    pub(crate) row: RowFormat,
}

impl FromStr for FormatSpec {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Ok(Self {
            name: name.to_owned(),
            row: format(name)?,
        })
    }
}

/// The scale of a tensor: no power of two, so that dividing by it takes a division.
const TENSOR_SCALE: f32 = 0.0371;

/// The scale of a tensor of `element`: that of others times the least power of two under which nothing saturates.
///
/// That of `e4m3fnuz` and `e5m2fnuz` is twice as much, as vLLM makes it when it loads a model on MI300.
fn tensor_scale(element: Element) -> f32 {
    let Some((number, _)) = element.number() else {
        return TENSOR_SCALE;
    };
    let mut scale = TENSOR_SCALE;
    if matches!(number, Number::E4m3fnuz | Number::E5m2fnuz) {
        scale *= 2.0;
    }
    while Random::GREATEST / scale > number.greatest() {
        scale *= 2.0;
    }
    scale
}

/// The format called `name`, as [`RowFormat::named`] reads it, with the constants of [`tensor_scale`].
pub(crate) fn format(name: &str) -> Result<RowFormat, String> {
    let element = name.split(['.', '@', '+']).next().unwrap_or(name);
    let read = || {
        let element: Element = element.parse()?;
        let scaled = name.contains("@tensor") || element.is_grouped();
        let constant = (scaled && element.takes_constant_scale()).then(|| tensor_scale(element));
        RowFormat::named(name, constant)
    };
    read().map_err(|error: FormatError| error.to_string())
}

/// The name of every element, with the scale that it usually has, and those with a scale for each row.
pub(crate) fn formats() -> Vec<String> {
    let mut names = Vec::new();
    for element in Element::all() {
        let narrow = (element.number()).is_some_and(|(number, _)| number.bits() <= 8);
        let scale = if narrow { "@tensor" } else { "" };
        names.push(format!("{element}{scale}"));
        let row = format!("{element}@token_head");
        if writes(&row) {
            names.push(row);
        }
    }
    names
}

/// Whether there is a format called `name`, and rows can be written in it.
pub(crate) fn writes(name: &str) -> bool {
    let target = format(name);
    target.is_ok_and(|target| {
        let source = RowFormat::of(Element::F32);
        let can = |shape: &Shape| Conversion::new(source, target, shape.dim).is_ok();
        SHAPES.iter().any(can)
    })
}

#[cfg(test)]
mod tests {
    use moai_fabric::translate::format::RowScale;

    use super::*;

    #[test]
    fn names_of_layouts_stand_for_notations() {
        let text = |name: &str, unit| {
            let [key, value] = name.parse::<LayoutSpec>().unwrap().notations(unit).unwrap();
            [key.to_string(), value.to_string()]
        };
        let packed = "[layer] part page head dim/8 slot dim%8";
        assert_eq!(text("x-packed", 2), [packed, packed]);
        assert_eq!(
            text("vllm/rocm_paged", 2),
            [packed, "[layer] part page head dim slot"]
        );
        assert_eq!(text("x-packed@64", 1)[0], packed.replace('8', "16"));
        assert_eq!(text("mla", 2)[1], "[layer] page slot dim");
        for name in ["nhd", "sglang/mha@64", "page slot head dim", "wire"] {
            assert_eq!(name.parse::<LayoutSpec>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn layouts_that_are_not_dense_are_refused() {
        let refused = "vllm/dsv4".parse::<LayoutSpec>().unwrap_err();
        assert!(refused.contains("the latent is not dense"), "{refused}");
    }

    #[test]
    fn names_of_formats_are_read_back() {
        for name in formats() {
            let spec: FormatSpec = name.parse().unwrap();
            assert_eq!(spec.name, name);
        }
        for element in Element::all() {
            let named = |name: &String| name.split('@').next() == Some(element.name());
            assert!(formats().iter().any(named), "{element}");
        }
        let scale = |name| format(name).unwrap().scale;
        let constant = |times: f32| RowScale::Constant(times * TENSOR_SCALE);
        assert_eq!(scale("e4m3fn@tensor"), constant(1.0));
        assert_eq!(scale("e4m3fnuz@tensor"), constant(2.0));
        assert_eq!(scale("e2m1@tensor"), constant(16.0));
        assert_eq!(scale("nvfp4"), constant(1.0));
        assert_eq!(scale("bf16"), RowScale::None);
        assert_eq!(scale("int8@token_head"), RowScale::Row);
        assert_eq!(format("fp8_ds_mla.pow2").unwrap().rule, 1);
        assert!(format("bf16.pow2").is_err());
        assert!(writes("q4_0") && writes("dsv4_fp8") && !writes("iq4_nl"));
    }

    #[test]
    fn latent_records_come_in_the_shape_of_their_model() {
        let case = |format: &str| Case {
            layouts: ["nhd", "nhd"].map(|name| name.parse().unwrap()),
            formats: ["bf16", format].map(|name| name.parse().unwrap()),
        };
        for (format, dim, row_bytes) in [
            ("fp8_ds_mla", 576, 656),
            ("nvfp4_ds_mla", 576, 352),
            ("dsv4_fp8", 512, 576),
            ("q8_0", 128, 136),
            ("kivi_2bit", 128, 32),
        ] {
            let case = case(format);
            assert_eq!(case.shape().dim, dim, "{format}");
            let found = case.conversion().unwrap().target_row_bytes();
            assert_eq!(found, row_bytes, "{format}");
        }
    }
}
