//! What is refused, with the field and the rule.

use moai_translate::convert::Conversion;
use moai_translate::element::Element;
use moai_translate::format::{FormatError, Pairing, Rope, RowFormat, RowScale, Side};
use moai_translate::rotation::Rotation;

use crate::{format, named, plain, with_rope};

#[test]
fn what_has_no_meaning_is_refused() {
    let new = |s, t, dim| Conversion::new(s, t, dim).expect_err("no defined conversion");
    let bf16 = plain(Element::BF16);
    assert_eq!(
        new(bf16, plain(Element::Q8_0), 40),
        FormatError::RaggedRow {
            element: Element::Q8_0,
            dim: 40,
            group_elements: 32
        },
    );
    assert_eq!(
        new(bf16, bf16, 0),
        FormatError::EmptyRow {
            element: Element::BF16
        }
    );
    for value in [0.0, -1.0, f32::INFINITY] {
        let element = Element::E4M3FN;
        let side = Side::Target;
        let target = format(element, RowScale::Constant(value));
        assert_eq!(
            new(bf16, target, 8),
            FormatError::ConstantScale {
                side,
                element,
                value
            }
        );
    }
    let nan = format(Element::INT8, RowScale::Constant(f32::NAN));
    let message = new(nan, bf16, 8).to_string();
    assert!(message.contains("source scale of int8 is NaN"), "{message}");
    let scaled_group = format(Element::FP8_DS_MLA, RowScale::Row);
    let message = new(scaled_group, bf16, 576).to_string();
    assert!(
        message.contains("source fp8_ds_mla has scales of its own"),
        "{message}"
    );
    assert_eq!(
        new(bf16, format(Element::E5M2, RowScale::Row), 8),
        FormatError::NoRowScaleRule {
            element: Element::E5M2
        },
    );

    let rope = |offset, dims| with_rope(bf16, Pairing::Half, offset, dims);
    for (offset, dims) in [(0, 7), (0, 0), (4, 6), (u32::MAX, 2)] {
        let (side, dim) = (Side::Source, 8);
        let want = FormatError::RopeRange {
            side,
            offset,
            dims,
            dim,
        };
        assert_eq!(new(rope(offset, dims), rope(0, 8), 8), want);
    }
    let message = new(rope(0, 4), rope(2, 6), 8).to_string();
    assert!(
        message.contains("4 elements from 0") && message.contains("6 from 2"),
        "{message}"
    );
    assert_eq!(
        new(rope(0, 4), bf16, 8),
        FormatError::RopeOneSided { side: Side::Source }
    );
    assert_eq!(
        new(bf16, rope(0, 4), 8),
        FormatError::RopeOneSided { side: Side::Target }
    );
    assert_eq!(
        rope(2, 4).rope,
        Some(Rope {
            pairing: Pairing::Half,
            offset: 2,
            dims: 4
        })
    );
}

#[test]
fn names_are_exact() {
    for element in Element::all() {
        assert_eq!(element.name().parse(), Ok(element));
    }
    let message = "fp8"
        .parse::<Element>()
        .expect_err("no element")
        .to_string();
    assert!(
        message.contains("not an exact format") && message.contains("e4m3fnuz"),
        "{message}"
    );
    let message = "q3_k"
        .parse::<Element>()
        .expect_err("no element")
        .to_string();
    assert!(
        Element::all().all(|e| message.contains(e.name())),
        "{message}"
    );
    assert!("BF16".parse::<Element>().is_err());
}

#[test]
fn elements_that_can_only_be_read_are_carried_and_never_written() {
    let iq4 = named("iq4_nl");
    assert!(Conversion::new(iq4, iq4, 64).unwrap().is_identity());
    assert!(Conversion::new(iq4, plain(Element::BF16), 64).is_ok());
    let element = iq4.element;
    assert_eq!(
        Conversion::new(plain(Element::BF16), iq4, 64).unwrap_err(),
        FormatError::ReadOnly { element }
    );
}

#[test]
fn codes_that_share_a_byte_are_not_parted() {
    let new = |name: &str, dim| {
        Conversion::new(plain(Element::F32), named(name), dim)
            .unwrap_err()
            .to_string()
    };
    assert!(new("int4", 7).contains("dim 7 is not a multiple of the 2 elements"));
    assert!(new("int4_per_token_head", 65).contains("dim 65 is not a multiple of the 2"));
    assert!(new("lmdeploy_int4", 3).contains("multiple of the 2"));
    assert!(new("turbomind_int4", 12).contains("multiple of the 8"));
    assert!(new("turboquant_v3", 12).contains("multiple of the 8"));
    assert!(new("nvfp4", 24).contains("multiple of the 16"));
    assert!(new("mxfp4", 48).contains("multiple of the 32"));
    assert!(
        new("turboquant_k4_nc", 96).contains(
            "rows of 96 cannot be turboquant_k4_nc: its lists are for rows of 64, 128, 256"
        )
    );
}

#[test]
fn rules_are_those_of_the_element() {
    let message = plain("mxfp4".parse().unwrap())
        .with_rule("ceil")
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("mxfp4 has no rule \"ceil\"; it has rceil, floor, even"),
        "{message}"
    );
    assert!(
        plain(Element::BF16)
            .with_rule("rceil")
            .unwrap_err()
            .to_string()
            .contains("it has none")
    );
}

#[test]
fn rotations_fit_the_row_or_are_refused() {
    let rotated = |rotation| RowFormat {
        rotation,
        ..plain(Element::BF16)
    };
    let new = |a, b, dim| Conversion::new(a, b, dim).unwrap_err().to_string();
    for (rotation, dim) in [
        (Rotation::Hadamard(64), 96),
        (Rotation::Hadamard(24), 96),
        (Rotation::Signed, 512),
    ] {
        let message = new(rotated(rotation), plain(Element::F32), dim);
        assert!(
            message.contains(&format!("rows of {dim} cannot be rotated by {rotation}")),
            "{message}"
        );
    }
    let twice = RowFormat {
        rotation: Rotation::Hadamard(64),
        ..named("int4_per_token_head")
    };
    let message = new(plain(Element::F32), twice, 64);
    assert!(message.contains("has a rotation of its own"), "{message}");
}

/// Pairs move as codes where all share a scale; where a group would be parted, nothing is quantized twice.
#[test]
fn pairs_never_move_across_scales() {
    let (half, interleaved) = (Pairing::Half, Pairing::Interleaved);
    let turn = |name: &str, offset, dims, dim| {
        let format = named(name);
        let (a, b) = (
            with_rope(format, half, offset, dims),
            with_rope(format, interleaved, offset, dims),
        );
        Conversion::new(a, b, dim)
    };
    for name in ["q8_0", "mxfp8_e4m3", "nvfp4", "dsv41_fp8"] {
        let error = turn(name, 0, 128, 128).unwrap_err();
        assert!(
            matches!(
                error,
                FormatError::RopeSplitsGroup {
                    offset: 0,
                    end: 128,
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.to_string().contains("share a scale"), "{error}");
    }
    assert!(turn("fp8_ds_mla", 0, 128, 576).is_err());
    assert!(
        turn("int4_per_token_head", 0, 64, 64).is_err(),
        "rotated rows mix all elements"
    );
    for (name, offset, dims, dim) in [
        ("fp8_ds_mla", 512, 64, 576),
        ("dsv4_fp8", 448, 64, 512),
        ("nvfp4_ds_mla", 512, 64, 576),
        ("dsv32_indexer", 0, 64, 128),
        ("lmdeploy_int4", 0, 128, 128),
        ("turbomind_int4", 32, 64, 128),
        ("int4", 0, 128, 128),
        ("kivi_4bit", 32, 32, 128),
    ] {
        assert!(turn(name, offset, dims, dim).is_ok(), "{name}");
    }
    // One rounding is no second one.
    let from = with_rope(plain(Element::BF16), half, 0, 128);
    let to = with_rope(named("q8_0"), interleaved, 0, 128);
    assert!(Conversion::new(from, to, 128).is_ok());
    assert!(Conversion::new(to, from, 128).is_ok());
}
