//! Numeric formats: known answers, equality of the fast conversion with the reference, error bounds.

mod bounds;
mod embedded;
mod exact;
mod foreign;
mod golden;
mod kept;
mod pairs;
mod random;
mod refused;

use moai_translate::convert::Conversion;
use moai_translate::cpu::Level;
use moai_translate::element::Element;
use moai_translate::format::{Counts, Pairing, Rope, RowFormat, RowScale};
use moai_translate::reference;

/// Rows of one format, and what they keep apart from their codes.
#[derive(Clone, Debug, PartialEq)]
struct Rows {
    codes: Vec<u8>,
    params: Vec<u8>,
}

impl Rows {
    /// Row scales.
    fn scales(&self) -> Vec<f32> {
        self.params
            .as_chunks::<4>()
            .0
            .iter()
            .map(|s| f32::from_le_bytes(*s))
            .collect()
    }
}

fn format(element: Element, scale: RowScale) -> RowFormat {
    RowFormat {
        scale,
        ..RowFormat::of(element)
    }
}

/// The element called so, with the rule behind the dot.
fn named(name: &str) -> RowFormat {
    let (element, rule) = name.split_once('.').unwrap_or((name, ""));
    let format = plain(element.parse().expect("an element"));
    if rule.is_empty() {
        format
    } else {
        format.with_rule(rule).expect("a rule")
    }
}

fn plain(element: Element) -> RowFormat {
    format(element, RowScale::None)
}

fn with_rope(format: RowFormat, pairing: Pairing, offset: u32, dims: u32) -> RowFormat {
    RowFormat {
        rope: Some(Rope {
            pairing,
            offset,
            dims,
        }),
        ..format
    }
}

/// Converts by the reference and by the conversion at every level of this CPU, and insists that all agree.
fn convert(source: RowFormat, target: RowFormat, dim: u32, rows: &Rows) -> (Rows, Counts) {
    let conversion = Conversion::new(source, target, dim).expect("a defined conversion");
    let (from, to) = (conversion.source_row_bytes(), conversion.target_row_bytes());
    assert_eq!(from as u64, source.row_bytes(dim).expect("whole groups"));
    assert_eq!(to as u64, target.row_bytes(dim).expect("whole groups"));
    assert_eq!(rows.codes.len() % from, 0, "whole rows");
    let n = rows.codes.len() / from;
    let (from_params, to_params) = (
        source.params_bytes(dim) as usize,
        target.params_bytes(dim) as usize,
    );

    let mut expected = Rows {
        codes: vec![0xA5; n * to],
        params: vec![0xA5; n * to_params],
    };
    let mut expected_counts = Counts::default();
    for row in 0..n {
        expected_counts += reference::convert_row(
            &source,
            &target,
            dim,
            &rows.codes[row * from..][..from],
            &rows.params[row * from_params..][..from_params],
            &mut expected.codes[row * to..][..to],
            &mut expected.params[row * to_params..][..to_params],
        );
    }

    for level in Level::available() {
        let mut codes = vec![0x5A; n * to];
        let mut params = vec![0x5A; expected.params.len()];
        let conversion = conversion.clone().at_level(level);
        let counts = conversion.run(n, &rows.codes, &rows.params, &mut codes, &mut params);
        let case = || format!("{source:?} to {target:?}, dim {dim}, {level:?}");
        for (what, got, want, bytes) in [
            ("codes", &codes, &expected.codes, to),
            ("params", &params, &expected.params, to_params),
        ] {
            if let Some(at) = (0..got.len()).find(|i| got[*i] != want[*i]) {
                let row = at / bytes;
                panic!(
                    "{}: byte {} of the {what} of row {row} is {:#04x}, the reference has {:#04x}; source row {:02x?}",
                    case(),
                    at % bytes,
                    got[at],
                    want[at],
                    &rows.codes[row * from..][..from],
                );
            }
        }
        assert_eq!(counts, expected_counts, "counts of {}", case());
    }
    (expected, expected_counts)
}

/// Numbers of rows.
fn decode(format: RowFormat, dim: u32, rows: &Rows) -> Vec<f32> {
    let row_bytes = format.row_bytes(dim).expect("whole groups") as usize;
    let each = format.params_bytes(dim) as usize;
    let mut values = vec![0.0; rows.codes.len() / row_bytes * dim as usize];
    let rows_out = values.chunks_mut(dim as usize);
    for (row, (codes, out)) in rows.codes.chunks(row_bytes).zip(rows_out).enumerate() {
        reference::decode_row(&format, dim, codes, &rows.params[row * each..][..each], out);
    }
    values
}

/// Rows that keep nothing apart.
fn unscaled(codes: Vec<u8>) -> Rows {
    Rows {
        codes,
        params: Vec::new(),
    }
}

/// Numbers as rows of `f32`.
fn f32_rows(values: &[f32]) -> Rows {
    unscaled(values.iter().flat_map(|x| x.to_le_bytes()).collect())
}

/// Seeded source of test data (splitmix64).
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Uniform in -1..1.
    fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
