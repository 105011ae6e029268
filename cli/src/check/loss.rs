//! What a conversion loses, found by converting every number that the source can hold.

use std::fmt;

use moai_fabric::{
    collectives::execute::Agreed,
    translate::{
        convert::Conversion,
        element::Element,
        format::{RowFormat, RowScale},
        rotation::Rotation,
        scheme::Coding,
    },
};

/// What a conversion loses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Of all numbers that the source can hold, some become others.
    Numbers {
        from: String,
        to: String,
        changed: u32,
        of: u32,
    },
    /// Numbers are rounded to what the target can hold beside its others: scales, rotations and wide floats.
    Rounds { from: String, to: String },
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numbers {
                from,
                to,
                changed,
                of,
            } => write!(
                f,
                "loses precision: of the {of} numbers that {from} can hold, {changed} become others in {to}"
            ),
            Self::Rounds { from, to } => write!(f, "loses precision: {from} is rounded to {to}"),
        }
    }
}

/// What each component loses, those that lose something.
pub(crate) fn losses(agreed: &Agreed) -> Vec<(String, Loss)> {
    let agreement = &agreed.agreement;
    let spans = agreement.spans.iter().zip(&agreement.carriages).enumerate();
    spans
        .filter(|(_, (_, carriage))| !carriage.unchanged)
        .filter_map(|(index, (span, carriage))| {
            let (from, to) = (&carriage.source_format, &carriage.target_format);
            // Constants differ by layer and head; elements do not.
            let formats = agreement.formats(index, 0, 0);
            loss(formats, from, to).map(|loss| (span.name.clone(), loss))
        })
        .collect()
}

fn loss((source, target): (RowFormat, RowFormat), from: &str, to: &str) -> Option<Loss> {
    let (from, to) = (from.to_owned(), to.to_owned());
    let is_number = |format: &RowFormat| {
        let number = matches!(format.element.scheme().coding, Coding::Number(..));
        number && format.scale != RowScale::Row && format.rotated(DIM) == Rotation::None
    };
    let bits = source.element.row_bytes(DIM) * 8 / u64::from(DIM);
    if is_number(&target) && target.element == Element::F32 && source.rotated(DIM) == Rotation::None
    {
        // What a code stands for is an f32 by definition.
        return None;
    }
    if !is_number(&source) || !is_number(&target) || bits > 16 {
        return Some(Loss::Rounds { from, to });
    }
    match changed(source, target, bits as u32) {
        Some(0) => None,
        Some(changed) => Some(Loss::Numbers {
            from,
            to,
            changed,
            of: 1 << bits,
        }),
        None => Some(Loss::Rounds { from, to }),
    }
}

/// Elements of a row here; each is coded by itself, so that any length does.
const DIM: u32 = 16;

/// How many of all numbers of the source are others in the target; `None` if the two cannot be tried.
fn changed(source: RowFormat, target: RowFormat, bits: u32) -> Option<u32> {
    // Which elements of a row belong together does not change them.
    let bare = |format: RowFormat| RowFormat {
        rope: None,
        ..format
    };
    let (source, target) = (bare(source), bare(target));
    let wide = RowFormat::of(Element::F32);
    let codes: Vec<u8> = match bits {
        16 => (0..=u16::MAX).flat_map(u16::to_le_bytes).collect(),
        8 => (0..=u8::MAX).collect(),
        // Two to a byte, each once.
        4 => (0..8)
            .map(|pair| (pair * 2) | ((pair * 2 + 1) << 4))
            .collect(),
        _ => return None,
    };
    let rows = (1usize << bits) / DIM as usize;
    let run = |from: RowFormat, to: RowFormat, bytes: &[u8]| {
        let conversion = Conversion::new(from, to, DIM).ok()?;
        let mut made = vec![0; rows * conversion.target_row_bytes()];
        conversion.run(rows, bytes, &[], &mut made, &mut []);
        Some(made)
    };
    let direct = run(source, wide, &codes)?;
    let carried = run(target, wide, &run(source, target, &codes)?)?;
    let numbers = |bytes: &[u8]| -> Vec<f32> {
        let (numbers, _) = bytes.as_chunks::<4>();
        numbers
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect()
    };
    let pairs = numbers(&direct).into_iter().zip(numbers(&carried));
    let differs = |(a, b): &(f32, f32)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan());
    Some(pairs.filter(differs).count() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(name: &str) -> RowFormat {
        RowFormat::of(Element::all().find(|e| e.to_string() == name).unwrap())
    }

    fn of(from: &str, to: &str) -> Option<Loss> {
        loss((element(from), element(to)), from, to)
    }

    #[test]
    fn what_fits_is_kept_and_what_does_not_is_counted() {
        assert_eq!(of("e4m3fn", "bf16"), None);
        assert_eq!(of("e5m2", "f16"), None);
        assert_eq!(of("bf16", "f32"), None);
        assert_eq!(of("q8_0", "f32"), None);
        // Mantissas are cut, and of those that fit only the range is not.
        for (from, to) in [("f16", "bf16"), ("bf16", "f16"), ("bf16", "e4m3fn")] {
            let Some(Loss::Numbers { changed, of, .. }) = of(from, to) else {
                panic!("{from} to {to}");
            };
            assert!(
                of == 65_536 && 0 < changed && changed < of,
                "{from} to {to}: {changed}"
            );
        }
        // fnuz has no negative zero and half the range at the same codes; e4m3fn's subnormals all fit.
        let Some(Loss::Numbers {
            changed, of: 256, ..
        }) = of("e4m3fn", "e4m3fnuz")
        else {
            panic!("e4m3fn to e4m3fnuz");
        };
        assert!((1..40).contains(&changed), "{changed}");
        assert!(matches!(of("f32", "bf16"), Some(Loss::Rounds { .. })));
        assert!(matches!(of("bf16", "q8_0"), Some(Loss::Rounds { .. })));
        assert!(matches!(of("q8_0", "bf16"), Some(Loss::Rounds { .. })));
    }

    #[test]
    fn a_constant_scale_counts() {
        let scaled = |scale| RowFormat {
            scale: RowScale::Constant(scale),
            ..element("e4m3fn")
        };
        assert_eq!(loss((scaled(2.0), element("bf16")), "a", "b"), None);
        assert!(loss((scaled(0.0371), element("bf16")), "a", "b").is_some());
    }
}
