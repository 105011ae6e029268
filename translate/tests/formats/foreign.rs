//! Formats that no table has: one value, or one codec, and everything works.

use moai_translate::convert::Conversion;
use moai_translate::element::Element;
use moai_translate::format::{Counts, FormatError, Pairing};
use moai_translate::number::Number;
use moai_translate::scheme::{
    Block, Code, Codec, Coding, Form, Packing, Params, Place, Rule, Scales, Scheme, Segment, Store,
    Unit,
};

use crate::{Random, convert, f32_rows, named, plain, with_rope};

/// A made-up engine's records of 48: 32 nibbles with `bf16` scale and minimum behind them, then 16 `e5m2fnuz` with an
/// `e8m0` scale of each 8 kept apart, in reverse pairs.
static RECORD: Scheme = Scheme {
    name: "made_up_record",
    what: "32 nibbles and 16 floats",
    coding: Coding::Block(Block {
        elements: 48,
        bytes: 36,
        param_bytes: 2,
        param_unit: 2,
        segments: &[
            Segment {
                elements: 32,
                code: Code::Number(Number::Uint4),
                packing: Packing::Octets,
                at: 0,
                scales: Some(Scales {
                    store: Store::Bf16,
                    place: Place::Block(16),
                    form: Form::Offset,
                    rules: &[("range", Rule::GgmlRange { n: 15.0 })],
                    ..Scales::DEFAULT
                }),
            },
            Segment {
                elements: 16,
                code: Code::Number(Number::E5m2fnuz),
                packing: Packing::Bytes,
                at: 20,
                scales: Some(Scales {
                    tile: 8,
                    store: Store::E8m0,
                    rules: &[("rceil", Rule::Mx(moai_translate::scheme::MxMode::Rceil))],
                    ..Scales::DEFAULT
                }),
            },
        ],
    }),
    ..Scheme::DEFAULT
};

/// A made-up codec: each element is the rank of its number in the row, and the row keeps its range apart.
#[derive(Debug)]
struct Ranks;

impl Codec for Ranks {
    fn group(&self, dim: u32) -> u32 {
        dim
    }

    fn unit(&self, dim: u32) -> Unit {
        Unit {
            elements: dim,
            bytes: dim,
        }
    }

    fn params(&self, _dim: u32) -> Option<Params> {
        Some(Params {
            units: 2,
            unit_bytes: 4,
        })
    }

    fn refuses(&self, dim: u32) -> Option<String> {
        (!(2..=256).contains(&dim)).then(|| "a rank is a byte, and there are two ends".to_owned())
    }

    fn decode(&self, codes: &[u8], params: &[u8], values: &mut [f32]) {
        let [low, high] =
            [0, 4].map(|at| f32::from_le_bytes(params[at..at + 4].try_into().expect("4 bytes")));
        let last = (codes.len() - 1) as f32;
        for (x, code) in values.iter_mut().zip(codes) {
            *x = low + (high - low) * (f32::from(*code) / last);
        }
    }

    fn encode(&self, _rule: usize, values: &[f32], codes: &mut [u8], params: &mut [u8]) -> Counts {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
        for (rank, i) in order.iter().enumerate() {
            codes[*i] = rank as u8;
        }
        params[..4].copy_from_slice(&values[order[0]].to_le_bytes());
        params[4..].copy_from_slice(&values[order[order.len() - 1]].to_le_bytes());
        let mut counts = Counts::default();
        counts.nan = values.iter().filter(|x| x.is_nan()).count() as u64;
        counts
    }
}

static RANKS: Scheme = Scheme {
    name: "made_up_ranks",
    what: "ranks in the row",
    coding: Coding::Custom(&Ranks),
    ..Scheme::DEFAULT
};

#[test]
fn a_table_entry_is_enough() {
    let record = plain(Element::new(&RECORD));
    assert_eq!(record.row_bytes(96), Ok(72));
    assert_eq!(record.params_bytes(96), 4);
    let mut random = Random(5);
    let values: Vec<f32> = (0..20 * 96).map(|_| random.signed() * 3.0).collect();
    // `convert` holds every level against the reference.
    let (made, counts) = convert(plain(Element::F32), record, 96, &f32_rows(&values));
    assert_eq!(counts, Counts::default());
    let (back, _) = convert(record, plain(Element::F32), 96, &made);
    for (x, y) in values.iter().zip(back.codes.as_chunks::<4>().0) {
        assert!((x - f32::from_le_bytes(*y)).abs() < 0.5, "{x}");
    }
    for other in ["q8_0", "e4m3fn", "mxfp4", "kivi_2bit"] {
        convert(record, named(other), 96, &made);
    }
    // Its names appear in errors like any other's.
    let error = Conversion::new(plain(Element::F32), record, 40).unwrap_err();
    assert!(matches!(
        error,
        FormatError::RaggedRow {
            group_elements: 48,
            ..
        }
    ));
    assert!(error.to_string().contains("made_up_record"));
}

#[test]
fn a_codec_is_enough() {
    let ranks = plain(Element::new(&RANKS));
    let values: Vec<f32> = (0..3 * 64).map(|i| ((i * 37) % 64) as f32 - 20.0).collect();
    let (made, _) = convert(plain(Element::F32), ranks, 64, &f32_rows(&values));
    let (back, _) = convert(ranks, plain(Element::F32), 64, &made);
    assert_eq!(
        back,
        f32_rows(&values),
        "evenly spaced numbers are their ranks"
    );
    convert(ranks, named("q8_0"), 64, &made);
    let pairs = |pairing| with_rope(ranks, pairing, 0, 64);
    assert!(Conversion::new(pairs(Pairing::Half), pairs(Pairing::Interleaved), 64).is_err());
    let error = Conversion::new(plain(Element::F32), ranks, 300)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("rows of 300 cannot be made_up_ranks: a rank is a byte"),
        "{error}"
    );
}
