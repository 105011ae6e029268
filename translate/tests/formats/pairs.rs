//! Which pairs of formats lose nothing, found out by trying: the table of the book is what comes out.

use moai_translate::convert::Conversion;
use moai_translate::element::Element;
use moai_translate::format::{RowFormat, RowScale};
use moai_translate::reference;
use moai_translate::scheme::{Coding, Form, Place, Store};

use crate::{Random, Rows, decode, format, plain};

const DIM: u32 = 576;

/// Plain formats, and small numbers under a scale for each row.
fn all() -> Vec<RowFormat> {
    let by_row = |element: &Element| {
        element
            .number()
            .is_some_and(|(number, _)| number.bits() <= 8)
    };
    let by_row = Element::all()
        .filter(by_row)
        .map(|element| format(element, RowScale::Row));
    Element::all().map(plain).chain(by_row).collect()
}

fn name(format: &RowFormat) -> String {
    let by_row = if format.scale == RowScale::Row {
        "@token_head"
    } else {
        ""
    };
    format!("`{}{by_row}`", format.element)
}

/// The number as the store keeps it, for powers of two.
fn write(store: Store, exponent: i32) -> Vec<u8> {
    let s = 2f32.powi(exponent);
    match store {
        Store::F32 | Store::F32Nibble => s.to_le_bytes().to_vec(),
        Store::F16 => half::f16::from_f32(s).to_le_bytes().to_vec(),
        Store::Bf16 => half::bf16::from_f32(s).to_le_bytes().to_vec(),
        Store::E4m3fn => vec![((exponent + 7) << 3) as u8],
        Store::E8m0 | Store::E8m0Zero => vec![(exponent + 127) as u8],
        Store::E8m0Half => vec![(exponent + 128) as u8],
    }
}

/// Rows of a few codes each, under what `scale` gives for each tile; `None` if the format is not code × scale.
fn rows(
    format: &RowFormat,
    mut scale: impl FnMut(Store) -> Vec<u8>,
    random: &mut Random,
) -> Option<Rows> {
    let n = 8;
    let bytes = format.row_bytes(DIM).ok()? as usize;
    let mut codes: Vec<u8> = vec![0; n * bytes];
    let mut params: Vec<u8> = vec![0; n * format.params_bytes(DIM) as usize];
    for row in codes.chunks_mut(bytes) {
        // All codes would have every derived scale come out right.
        let few = [0; 3].map(|_: u8| random.next() as u8);
        row.fill_with(|| few[random.below(3)]);
    }
    match &format.element.scheme().coding {
        Coding::Number(..) if format.scale == RowScale::Row => {
            params = (0..n).flat_map(|_| scale(Store::F32)).collect();
        }
        Coding::Block(block) => {
            let (bytes, each) = (block.bytes_in(DIM) as usize, block.param_bytes as usize);
            for b in 0..n * (DIM / block.elements_in(DIM)) as usize {
                for segment in block.segments {
                    let scales = segment.scales.filter(|s| s.form == Form::Scaled)?;
                    let n = if segment.elements == 0 {
                        DIM
                    } else {
                        segment.elements
                    };
                    let tile = if scales.tile == 0 { n } else { scales.tile };
                    let stored: Vec<u8> = (0..n / tile).flat_map(|_| scale(scales.store)).collect();
                    let (bytes, at) = match scales.place {
                        Place::Block(at) => (&mut codes[b * bytes..], at as usize),
                        Place::Params(at) => (&mut params[b * each..], at as usize),
                    };
                    bytes[at..][..stored.len()].copy_from_slice(&stored);
                }
            }
        }
        _ => return None,
    }
    Some(Rows { codes, params })
}

/// Whether every finite number of the rows is the same in the target.
fn kept(source: &RowFormat, target: &RowFormat, rows: &Rows) -> bool {
    let Ok(conversion) = Conversion::new(*source, *target, DIM) else {
        return false;
    };
    let n = rows.codes.len() / conversion.source_row_bytes();
    let (mut codes, mut params) = (
        vec![0; n * conversion.target_row_bytes()],
        vec![0; n * conversion.target_params_bytes()],
    );
    conversion.run(n, &rows.codes, &rows.params, &mut codes, &mut params);
    let before = decode(*source, DIM, rows);
    let after = decode(*target, DIM, &Rows { codes, params });
    before
        .iter()
        .zip(after)
        .all(|(a, b)| !a.is_finite() || *a == b)
}

/// Under every scale that a byte can be, and of elements that stand alone every code.
fn always(source: &RowFormat, target: &RowFormat) -> bool {
    let mut random = Random(1);
    if let (RowScale::None, Some((number, _))) = (source.scale, source.element.number()) {
        let codes: Vec<u8> = match number.bits() {
            32 => return target.element == Element::F32,
            16 => (0..=u16::MAX).flat_map(u16::to_le_bytes).collect(),
            _ => (0..=255).collect(),
        };
        // Rows of any length, filled up.
        let bytes = source.row_bytes(DIM).expect("whole groups") as usize;
        let codes: Vec<u8> = codes
            .iter()
            .copied()
            .cycle()
            .take(codes.len().next_multiple_of(bytes))
            .collect();
        let alone = target.element.number().is_some() && target.scale == RowScale::None;
        return alone
            && kept(
                source,
                target,
                &Rows {
                    codes,
                    params: Vec::new(),
                },
            );
    }
    let one_byte = |store: Store| write(store, 0).len() == 1;
    let narrow = match &source.element.scheme().coding {
        Coding::Block(block) => block
            .segments
            .iter()
            .all(|s| s.scales.is_some_and(|s| one_byte(s.store))),
        _ => false,
    };
    let mut scales = Random(4);
    narrow
        && (0..150).all(|_| {
            // Any scale, the last and the first of them often.
            let any =
                |_| vec![[0, 0xFE, scales.next() as u8, scales.next() as u8][scales.below(4)]];
            rows(source, any, &mut random).is_some_and(|rows| kept(source, target, &rows))
        })
}

/// Elements under one scale: the most of them, and the fewest.
fn tiles(format: &RowFormat) -> (u32, u32) {
    let Coding::Block(block) = &format.element.scheme().coding else {
        return (DIM, DIM);
    };
    let tiles = block.segments.iter().filter_map(|segment| {
        let all = if segment.elements == 0 {
            block.elements_in(DIM)
        } else {
            segment.elements
        };
        segment
            .scales
            .map(|scales| if scales.tile == 0 { all } else { scales.tile })
    });
    (tiles.clone().max().unwrap_or(0), tiles.min().unwrap_or(0))
}

/// Under some powers of two, whatever the codes. Scales that would have to be merged happen to fit only in these rows.
fn where_the_scale_fits(source: &RowFormat, target: &RowFormat) -> bool {
    let mut random = Random(2);
    let mut scales = Random(5);
    (target.element.is_grouped() || target.scale == RowScale::Row)
        && tiles(source).1 >= tiles(target).0
        && (-6..=6).any(|exponent| {
            (0..8).all(|_| {
                let one = |store| write(store, exponent + scales.below(2) as i32);
                rows(source, one, &mut random).is_some_and(|rows| kept(source, target, &rows))
            })
        })
}

fn table() -> Vec<String> {
    let all = all();
    let mut lines = Vec::new();
    for target in &all {
        let fits = |f: &&RowFormat| f.element != target.element || f.scale != target.scale;
        let list = |lossless: &dyn Fn(&RowFormat) -> bool| {
            let names: Vec<String> = all
                .iter()
                .filter(fits)
                .filter(|f| lossless(f))
                .map(name)
                .collect();
            names.join(" ")
        };
        if target.element == Element::F32 {
            continue;
        }
        let exact = list(&|source| always(source, target));
        let scaled =
            list(&|source| !always(source, target) && where_the_scale_fits(source, target));
        if !(exact.is_empty() && scaled.is_empty()) {
            lines.push(format!("| {} | {exact} | {scaled} |", name(target)));
        }
    }
    lines
}

#[test]
fn the_book_lists_the_pairs_that_lose_nothing() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/src/formats.md");
    let page = std::fs::read_to_string(path).expect("the chapter");
    let section = page
        .split("## Pairs that lose nothing\n")
        .nth(1)
        .expect("its heading");
    let section = section.split("\n## ").next().expect("its text");
    let told: Vec<&str> = section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    let real = table();
    assert_eq!(told, real, "the table should be:\n{}\n", real.join("\n"));
}

/// The rows above are what they are said to be.
#[test]
fn rows_of_one_scale_decode_as_code_times_scale() {
    let format = plain("mxfp4".parse().expect("an element"));
    let rows = rows(&format, |store| write(store, 3), &mut Random(3)).expect("code × scale");
    let mut values = vec![0.0; DIM as usize];
    reference::decode_row(
        &format,
        DIM,
        &rows.codes[..288],
        &rows.params[..18],
        &mut values,
    );
    for (i, x) in values.iter().enumerate() {
        let code = rows.codes[i / 2] >> (4 * (i % 2)) & 15;
        let q = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
        assert_eq!(x.abs(), q * 8.0);
    }
}
