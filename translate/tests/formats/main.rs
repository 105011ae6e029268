//! Numeric formats: known answers, equality of the fast conversion with the reference, error bounds.

mod bounds;
mod exact;
mod golden;
mod random;
mod speed;

use moai_translate::convert::Conversion;
use moai_translate::element::Element;
use moai_translate::format::{Counts, Pairing, Rope, RowFormat, RowScale, ScaleRule};
use moai_translate::reference;

/// Rows of one format, and their scales if it has row scales.
#[derive(Clone, Debug, PartialEq)]
struct Rows {
    codes: Vec<u8>,
    scales: Vec<f32>,
}

fn format(element: Element, scale: RowScale) -> RowFormat {
    RowFormat {
        element,
        scale,
        rule: ScaleRule::default(),
        rope: None,
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

/// Converts by the reference, by the conversion as this CPU runs it, and as every CPU could, and insists that
/// all agree.
fn convert(source: RowFormat, target: RowFormat, dim: u32, rows: &Rows) -> (Rows, Counts) {
    let conversion = Conversion::new(source, target, dim).expect("a defined conversion");
    let (from, to) = (conversion.source_row_bytes(), conversion.target_row_bytes());
    assert_eq!(from as u64, source.row_bytes(dim).expect("whole groups"));
    assert_eq!(to as u64, target.row_bytes(dim).expect("whole groups"));
    assert_eq!(rows.codes.len() % from, 0, "whole rows");
    let n = rows.codes.len() / from;

    let mut expected = Rows {
        codes: vec![0xA5; n * to],
        scales: Vec::new(),
    };
    let mut expected_counts = Counts::default();
    for row in 0..n {
        let mut out_scale = 0.0;
        expected_counts += reference::convert_row(
            &source,
            &target,
            dim,
            &rows.codes[row * from..][..from],
            rows.scales.get(row).copied().unwrap_or(f32::NAN),
            &mut expected.codes[row * to..][..to],
            &mut out_scale,
        );
        if target.scale == RowScale::Row {
            expected.scales.push(out_scale);
        }
    }

    let src_scales: Vec<u8> = rows.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
    for portable in [false, true] {
        let mut codes = vec![0x5A; n * to];
        let mut scales = vec![0x5A; 4 * expected.scales.len()];
        let counts = if portable {
            conversion.run_portable(&rows.codes, &src_scales, &mut codes, &mut scales)
        } else {
            conversion.run(n, &rows.codes, &src_scales, &mut codes, &mut scales)
        };
        let case = || format!("{source:?} to {target:?}, dim {dim}, portable: {portable}");
        if let Some(at) = (0..codes.len()).find(|i| codes[*i] != expected.codes[*i]) {
            let row = at / to;
            panic!(
                "{}: byte {} of row {row} is {:#04x}, the reference has {:#04x}; source row {:02x?}",
                case(),
                at % to,
                codes[at],
                expected.codes[at],
                &rows.codes[row * from..][..from],
            );
        }
        let expected_scales: Vec<u8> = expected
            .scales
            .iter()
            .flat_map(|s| s.to_le_bytes())
            .collect();
        assert_eq!(scales, expected_scales, "row scales of {}", case());
        assert_eq!(counts, expected_counts, "counts of {}", case());
    }
    (expected, expected_counts)
}

/// Numbers of rows.
fn decode(format: RowFormat, dim: u32, rows: &Rows) -> Vec<f32> {
    let row_bytes = format.row_bytes(dim).expect("whole groups") as usize;
    let mut values = vec![0.0; rows.codes.len() / row_bytes * dim as usize];
    let rows_out = values.chunks_mut(dim as usize);
    for (row, (codes, out)) in rows.codes.chunks(row_bytes).zip(rows_out).enumerate() {
        let scale = rows.scales.get(row).copied().unwrap_or(1.0);
        reference::decode_row(&format, dim, codes, scale, out);
    }
    values
}

/// Rows without scales of their own.
fn unscaled(codes: Vec<u8>) -> Rows {
    Rows {
        codes,
        scales: Vec::new(),
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
