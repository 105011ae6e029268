//! Which cases are measured.

use crate::{
    args::{Pair, Part, Translate},
    cases::{Case, FormatSpec, LayoutSpec, formats, writes},
    failure::Failure,
};

/// Layouts, measured in bf16. `wire` is what a producer does before it sends.
const LAYOUTS: &[&str] = &[
    "nhd:nhd",
    "nhd:hnd",
    "vllm/flash_attn:sglang/mha",
    "trtllm:nhd",
    "nhd:x-packed",
    "nhd:transposed",
    "x-packed:nhd",
    "transposed:nhd",
    "nhd:nhd@64",
    "nhd:wire",
];

/// Formats, measured in nhd. All others that there are come last, from bf16 and to it.
const FORMATS: &[&str] = &[
    "bf16:e4m3fn@tensor",
    "bf16:e4m3fnuz@tensor",
    "bf16:f16",
    "f16:bf16",
    "e4m3fn@tensor:e4m3fnuz@tensor",
    "e4m3fn@tensor:bf16",
    "bf16:int8@token_head",
    "bf16:q8_0",
    "q8_0:bf16",
    "bf16:mxfp8_e4m3",
    "bf16:nvfp4",
    "mxfp4:mxfp8_e4m3",
    "bf16:mxfp4.floor",
    "bf16:fp8_ds_mla.pow2",
];

/// Layout and format at once.
const BOTH: &[(&str, &str)] = &[
    ("nhd:x-packed", "bf16:e4m3fnuz@tensor"),
    ("nhd:transposed", "bf16:e4m3fnuz@tensor"),
];

/// A case, and the part of the matrix it comes from if nobody named it.
pub(crate) type Listed = (Case, Option<Part>);

/// The cases that were asked for.
///
/// # Errors
///
/// If one of them cannot be measured, so that nothing is found out late.
pub(crate) fn cases(command: &Translate) -> Result<Vec<Listed>, Failure> {
    let cases = if command.layouts.is_empty() && command.formats.is_empty() {
        matrix(command.only).map_err(Failure::Input)?
    } else {
        let layouts = or(&command.layouts, "nhd:nhd").map_err(Failure::Input)?;
        let formats = or(&command.formats, "bf16:bf16").map_err(Failure::Input)?;
        let both = layouts.iter().flat_map(|layout| {
            formats
                .iter()
                .map(move |format| (case(layout, format), None))
        });
        both.collect()
    };
    for (case, _) in &cases {
        let [from, to] = &case.layouts;
        if from.is_wire() {
            let text = "wire is only a target: what a producer does before it sends";
            return Err(Failure::Input(text.to_owned()));
        }
        case.conversion().map_err(Failure::Input)?;
        for (layout, format) in [from, to].into_iter().zip(&case.formats) {
            if !layout.is_wire() {
                crate::pool::check(layout, format, case.shape()).map_err(Failure::Input)?;
            }
        }
    }
    Ok(cases)
}

fn or<T: Clone>(given: &[Pair<T>], default: &str) -> Result<Vec<Pair<T>>, String>
where
    Pair<T>: std::str::FromStr<Err = String>,
{
    if given.is_empty() {
        Ok(vec![default.parse()?])
    } else {
        Ok(given.to_vec())
    }
}

fn case(layout: &Pair<LayoutSpec>, format: &Pair<FormatSpec>) -> Case {
    Case {
        layouts: [layout.from.clone(), layout.to.clone()],
        formats: [format.from.clone(), format.to.clone()],
    }
}

/// The matrix, or a part of it.
fn matrix(only: Option<Part>) -> Result<Vec<Listed>, String> {
    let mut listed: Vec<(Part, (String, String))> = Vec::new();
    let mut add = |part: Part, layout: &str, format: &str| {
        let pair = (layout.to_owned(), format.to_owned());
        if !listed.iter().any(|(_, known)| *known == pair) {
            listed.push((part, pair));
        }
    };
    for layout in LAYOUTS {
        add(Part::Layouts, layout, "bf16:bf16");
    }
    for format in FORMATS {
        add(Part::Formats, "nhd:nhd", format);
    }
    for (layout, format) in BOTH {
        add(Part::Both, layout, format);
    }
    for name in formats().iter().filter(|name| *name != "bf16") {
        if writes(name) {
            add(Part::Rest, "nhd:nhd", &format!("bf16:{name}"));
        }
        add(Part::Rest, "nhd:nhd", &format!("{name}:bf16"));
    }
    listed.retain(|(part, _)| only.is_none_or(|only| only == *part));
    let read = |(part, (layout, format)): &(Part, (String, String))| {
        Ok((case(&layout.parse()?, &format.parse()?), Some(*part)))
    };
    listed.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::translate::tests::parse;

    #[test]
    fn the_matrix_has_every_format_and_no_case_twice() {
        let cases = matrix(None).unwrap();
        let labels: Vec<_> = cases
            .iter()
            .map(|(case, _)| (case.layout_label(), case.format_label()))
            .collect();
        for (i, label) in labels.iter().enumerate() {
            assert!(!labels[..i].contains(label), "{label:?} twice");
        }
        for name in formats() {
            let there = |side: usize| {
                cases
                    .iter()
                    .any(|(case, _)| case.formats[side].name == name)
            };
            assert!(there(0), "{name} is read");
            assert_eq!(there(1), writes(&name), "{name} is written");
        }
        let parts = [Part::Layouts, Part::Formats, Part::Both, Part::Rest];
        let apart = parts.map(|part| matrix(Some(part)).unwrap()).concat();
        assert_eq!(apart, cases);
        for (case, _) in &cases {
            case.conversion().unwrap();
        }
    }

    #[test]
    fn what_is_given_is_measured_and_nothing_else() {
        let count = |words: &[&str]| cases(&parse(words).unwrap()).unwrap().len();
        assert_eq!(count(&["--layout", "nhd:hnd"]), 1);
        assert_eq!(count(&["--format", "bf16:f16", "--format", "f16:bf16"]), 2);
        let both = [
            "--layout", "nhd:hnd", "--layout", "hnd:nhd", "--format", "bf16:f16",
        ];
        assert_eq!(count(&both), 2);
    }

    #[test]
    fn what_cannot_be_measured_is_refused_before_anything_is() {
        for (words, told) in [
            (["--layout", "wire:nhd"], "only a target"),
            (["--layout", "nhd:nhd slot"], "none of nhd"),
            (["--layout", "nhd:llama.cpp"], "slot"),
            (["--format", "bf16:iq4_nl"], "iq4_nl"),
            (["--format", "fp8_ds_mla:dsv4_fp8"], "dsv4_fp8"),
            (["--layout", "nhd:vllm/dsv4"], "not dense"),
            (["--format", "bf16:e5m2@token_head"], "e5m2"),
            (["--format", "bf16:fp8_ds_mla@tensor"], "fp8_ds_mla"),
        ] {
            let refused = parse(&words).and_then(|command| {
                cases(&command)
                    .map(|_| ())
                    .map_err(|failure| failure.to_string())
            });
            let text = refused.unwrap_err();
            assert!(text.contains(told), "{words:?}: {text}");
        }
    }
}
