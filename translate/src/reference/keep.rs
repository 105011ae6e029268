//! Which tiles keep the scale that the source has for them, by definition.

use super::{code_value, quantized, taken_apart, tiles};
use crate::format::{Counts, RowFormat, constant, turns};
use crate::rule::{By, Quantize};
use crate::scheme::{Code, Form, Place, Store};

/// One element of the source as its tile has it.
#[derive(Clone, Copy)]
pub(super) struct Coded {
    code: Code,
    byte: u8,
    scale: f32,
    /// Tiles of the row before this one.
    tile: usize,
}

/// A tile of the target that takes over scale and codes.
pub(super) struct Kept {
    pub(super) scale: f32,
    pub(super) codes: Vec<u8>,
    pub(super) counts: Counts,
}

/// The elements of a source row, `None` where none of them may be kept.
pub(super) fn coded_row(
    source: &RowFormat,
    target: &RowFormat,
    dim: u32,
    codes: &[u8],
    params: &[u8],
) -> Vec<Option<Coded>> {
    let mut row = vec![None; dim as usize];
    let turns = turns(source, target, dim);
    let still = turns.undo.is_none() && turns.rope.is_none() && turns.apply.is_none();
    let (Some(block), true) = (source.block(dim), still) else {
        return row;
    };
    let (elements, bytes) = (
        block.elements_in(dim) as usize,
        block.bytes_in(dim) as usize,
    );
    let mut seen = 0;
    for (b, row) in row.chunks_mut(elements).enumerate() {
        let (codes, params) = (
            &codes[b * bytes..][..bytes],
            &params[b * block.param_bytes as usize..],
        );
        let mut first = 0;
        for segment in block.segments {
            let n = if segment.elements == 0 {
                elements
            } else {
                segment.elements as usize
            };
            let number = segment.code.number();
            let held =
                &codes[segment.at as usize..][..segment.packing.bytes(number, n as u32) as usize];
            let apart = taken_apart(number, segment.packing, held, n);
            let row = &mut row[first..first + n];
            tiles(segment, n, |tile, scale| {
                seen += 1;
                let Some((scales, at)) = scale.filter(|(s, _)| s.form == Form::Scaled) else {
                    return;
                };
                let stored = match scales.place {
                    Place::Block(_) => &codes[at..],
                    Place::Params(_) => &params[at..],
                };
                let scale = scales
                    .store
                    .read(&stored[..scales.bytes() as usize], false)
                    .0;
                for i in tile {
                    row[i] = Some(Coded {
                        code: segment.code,
                        byte: apart[i][0],
                        scale,
                        tile: seen,
                    });
                }
            });
            first += n;
        }
    }
    row
}

/// What a tile of `code`s becomes whose elements are these in the source, if it can keep their scale.
pub(super) fn kept(
    source: &RowFormat,
    target: &RowFormat,
    code: Code,
    store: Store,
    elements: &[Option<Coded>],
) -> Option<Kept> {
    let first = (*elements.first()?)?;
    let f = factor(first.code, code)?;
    let scale = rescaled(
        first.scale,
        constant(source.scale),
        f,
        constant(target.scale),
        store,
    )?;
    let mut kept = Kept {
        scale,
        codes: Vec::new(),
        counts: Counts::default(),
    };
    for element in elements {
        let element = element.filter(|e| e.tile == first.tile)?;
        let (byte, counts) = answer(element.code, code, f, element.byte);
        kept.codes.push(byte);
        kept.counts += counts;
    }
    Some(kept)
}

/// The f by which every number that a code of `from` can be becomes one that a code of `to` can be.
///
/// Of the powers of two from 2⁻⁸ to 2⁸ the nearest to 1, the greater of two.
pub(crate) fn factor(from: Code, to: Code) -> Option<f32> {
    if from.number().bits() > 8 || to.number().bits() > 8 {
        return None;
    }
    let factors = (0..=8).flat_map(|k| [2f32.powi(k), 2f32.powi(-k)]);
    factors.into_iter().find(|f| {
        numbers(from)
            .filter(|q| q.is_finite())
            .all(|q| numbers(to).any(|number| number == q * f))
    })
}

/// Scale s·g as the target holds it, divided by f and by the target's constant; `None` if it cannot hold it exactly.
pub(crate) fn rescaled(s: f32, g: f32, f: f32, target_g: f32, store: Store) -> Option<f32> {
    if !(s > 0.0 && s.is_finite()) {
        return None;
    }
    // Products of two f32 are exact in f64.
    let total = f64::from(s) * f64::from(g);
    let under = f64::from(f) * f64::from(target_g);
    let made = (total / under) as f32;
    if made == 0.0 || !made.is_finite() || f64::from(made) * under != total {
        return None;
    }
    let mut bytes = [0; 8];
    store.write(made, 0.0, false, &mut bytes);
    (store.read(&bytes, false).0 == made).then_some(made)
}

/// The code of `to` for a code of `from`, and what it cost: NaN and Inf are written as always.
pub(crate) fn answer(from: Code, to: Code, f: f32, byte: u8) -> (u8, Counts) {
    let q = code_value(from, [byte, 0, 0, 0]) * f;
    let same = |signed: bool| {
        numbers(to).position(|number| {
            number == q && (!signed || number.is_sign_negative() == q.is_sign_negative())
        })
    };
    match same(true).or_else(|| same(false)) {
        Some(byte) if q.is_finite() => (byte as u8, Counts::default()),
        _ => quantized(
            to,
            Quantize::Nearest {
                by: By::Over(1.0),
                clamp: f32::INFINITY,
            },
            q,
        ),
    }
}

/// The number of every code.
fn numbers(code: Code) -> impl Iterator<Item = f32> {
    (0..1u32 << code.number().bits()).map(move |byte| code_value(code, [byte as u8, 0, 0, 0]))
}
