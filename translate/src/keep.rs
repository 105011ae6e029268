//! Tiles that keep the scale of the source, compiled for a pair of formats; [`reference`](mod@crate::reference) says
//! which they are.
//!
//! Most often every tile of a row does: then codes are replaced by their answers, and no number is made; where rows
//! hold nothing but codes, and scales of a byte lie apart, that is done to many rows as if they were one
//! ([`Flat`]). Otherwise rows go through numbers; tiles that keep their scale go as zeros, which cost nothing, and are
//! written over after.

use crate::cpu::Flow;
use crate::cpu::{
    level::{Level, at_each_level},
    table::{Bytes, Nibbles},
};
use crate::format::{Counts, RowFormat, constant, turns};
use crate::number::Number;
use crate::packing;
use crate::reference::keep::{answer, factor, rescaled};
use crate::scheme::{Block, Code, Form, Packing, Place, Scales, Store};

/// The tiles of a target row that may keep a scale.
#[derive(Clone, Debug)]
pub(crate) struct Keep {
    /// Elements of a row.
    dim: usize,
    tiles: Box<[Tile]>,
    pairs: Box<[Pair]>,
    source: Box<[Span]>,
    target: Box<[Span]>,
    /// Whether the tiles make up the whole row.
    whole: bool,
    /// Whether codes and their places are the same on both sides.
    copied: bool,
    /// Whether there may be bytes among the target's params that no scale fills.
    padded: bool,
    flat: Option<Flat>,
}

/// Rows that are codes from end to end, one table for all of them, and scales of a byte in their own order.
#[derive(Clone, Debug)]
struct Flat {
    /// What is stored for each code of a scale; *lost* where the target cannot hold it.
    scales: Bytes,
    /// Scales of the target for each of the source.
    parts: usize,
    codes: Codes,
}

/// How the codes of a [`Flat`] row are replaced.
#[derive(Clone, Debug)]
enum Codes {
    Copied,
    /// By bytes, of which one is one code, or two that lose nothing.
    Bytes(Box<Bytes>),
    Widened(Box<Nibbles>),
}

/// Elements under one scale in the target, and within one tile of the source.
#[derive(Clone, Debug)]
struct Tile {
    first: usize,
    elements: usize,
    pair: usize,
    from: Spot,
    to: Spot,
}

/// Where a scale lies in a row.
#[derive(Clone, Copy, Debug)]
struct Spot {
    place: Place,
    at: usize,
}

/// Codes and scales of one source segment in one target segment.
#[derive(Clone, Debug)]
struct Pair {
    codes: (Code, Code),
    stores: (Store, Store),
    /// Target code in bits 0..8, 1 in bit 8 if it saturates, 1 in bit 9 if it is NaN.
    answers: Box<[u16; 256]>,
    scaling: Scaling,
}

/// How a scale is carried over.
#[derive(Clone, Debug)]
enum Scaling {
    /// What is stored for each code of a scale.
    Known(Box<[Option<[u8; 4]>; 256]>),
    Computed {
        g: f32,
        f: f32,
        target_g: f32,
    },
}

/// Codes that are packed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first: usize,
    elements: usize,
    number: Number,
    packing: Packing,
    at: usize,
    bytes: usize,
}

impl Keep {
    /// `None` if no tile of such rows can keep its scale.
    pub(crate) fn new(source: &RowFormat, target: &RowFormat, dim: u32) -> Option<Self> {
        let turns = turns(source, target, dim);
        if turns.undo.is_some() || turns.rope.is_some() || turns.apply.is_some() {
            return None;
        }
        let (from, to) = (source.block(dim)?, target.block(dim)?);
        let sources = scaled(&from, dim);
        let mut pairs: Vec<Pair> = Vec::new();
        let mut tiles = Vec::new();
        let mut next = sources.iter().peekable();
        for tile in scaled(&to, dim) {
            // Both are in the order of elements.
            while next
                .next_if(|s| s.first + s.elements <= tile.first)
                .is_some()
            {}
            let Some(within) = next.peek().filter(|s| {
                s.first <= tile.first && tile.first + tile.elements <= s.first + s.elements
            }) else {
                continue;
            };
            let (codes, stores) = (
                (within.code, tile.code),
                (within.scales.store, tile.scales.store),
            );
            let known = pairs
                .iter()
                .position(|pair| pair.codes == codes && pair.stores == stores);
            let pair = match known {
                Some(pair) => pair,
                None => {
                    let Some(pair) = Pair::new(
                        codes,
                        stores,
                        constant(source.scale),
                        constant(target.scale),
                    ) else {
                        continue;
                    };
                    pairs.push(pair);
                    pairs.len() - 1
                }
            };
            let (first, elements) = (tile.first, tile.elements);
            tiles.push(Tile {
                first,
                elements,
                pair,
                from: within.spot,
                to: tile.spot,
            });
        }
        let covered: usize = tiles.iter().map(|tile| tile.elements).sum();
        let (source, target) = (spans(&from, dim), spans(&to, dim));
        let identity = |pair: &Pair| {
            let codes = 0..1u16 << pair.codes.0.number().bits();
            codes
                .into_iter()
                .all(|code| pair.answers[usize::from(code)] == code)
        };
        if covered == 0 {
            return None;
        }
        let mut keep = Self {
            dim: dim as usize,
            whole: covered == dim as usize,
            copied: source == target
                && source.iter().map(|span| span.bytes).sum::<usize>() == row_bytes(&to, dim)
                && pairs.iter().all(identity),
            padded: to.segments.len() > 1,
            tiles: tiles.into(),
            pairs: pairs.into(),
            source: source.into(),
            target: target.into(),
            flat: None,
        };
        keep.flat = Flat::of(&keep, &from, &to, sources.len());
        Some(keep)
    }

    /// Rows that [`flat_rows`](Self::flat_rows) is best given at once: their codes stay in L1.
    pub(crate) fn rows_at_once(&self) -> usize {
        (CODES_AT_ONCE / self.dim).max(1)
    }

    /// Converts rows all of whose tiles keep their scales, if codes and scales of all rows can be taken for those of
    /// one; `None`, and bytes that are to be written anew, if not.
    pub(crate) fn flat_rows(
        &self,
        level: Level,
        codes: &[u8],
        params: &[u8],
        out: &mut [u8],
        out_params: &mut [u8],
    ) -> Option<Counts> {
        let flat = self.flat.as_ref()?;
        let unfit = if flat.parts == 1 {
            flat.scales
                .look_up(level, Flow::default(), params, out_params)
        } else {
            let (first, _) = out_params.split_at_mut(params.len());
            let unfit = flat.scales.look_up(level, Flow::default(), params, first);
            repeat_each(level, params.len(), flat.parts, out_params);
            unfit
        };
        if unfit {
            return None;
        }
        Some(match &flat.codes {
            Codes::Copied => {
                out.copy_from_slice(codes);
                Counts::default()
            }
            Codes::Bytes(table) => table.run(level, Flow::default(), codes, out),
            Codes::Widened(table) => table.run(level, codes, out),
        })
    }

    /// Converts a row all of whose tiles keep their scales; `None`, and bytes that are to be written anew, if one does
    /// not.
    pub(crate) fn whole_row(
        &self,
        level: Level,
        codes: &[u8],
        params: &[u8],
        out: &mut [u8],
        out_params: &mut [u8],
    ) -> Option<Counts> {
        if !self.whole {
            return None;
        }
        if self.padded {
            out_params.fill(0);
        }
        for tile in &self.tiles {
            self.scale(tile, codes, params, out, out_params)?;
        }
        if self.copied {
            out.copy_from_slice(codes);
            return Some(Counts::default());
        }
        let mut counts = Counts::default();
        with_bytes(self.dim, |apart, made| {
            unpack(level, &self.source, codes, apart);
            // One table for all, most often.
            let mut tiles = &self.tiles[..];
            while let [first, ..] = tiles {
                let alike = if self.pairs.len() == 1 {
                    tiles.len()
                } else {
                    tiles
                        .iter()
                        .take_while(|tile| tile.pair == first.pair)
                        .count()
                };
                let (same, rest) = tiles.split_at(alike);
                let range = first.first..same.last().map_or(0, |tile| tile.first + tile.elements);
                counts += self.pairs[first.pair].apply(&apart[range.clone()], &mut made[range]);
                tiles = rest;
            }
            pack(level, &self.target, made, out);
        });
        Some(counts)
    }

    /// Makes the numbers of tiles that keep their scales zero.
    pub(crate) fn take_out(&self, codes: &[u8], params: &[u8], values: &mut [f32]) {
        for tile in &self.tiles {
            if self.stored(tile, codes, params).is_some() {
                values[tile.first..][..tile.elements].fill(0.0);
            }
        }
    }

    /// Writes the tiles that keep their scales.
    pub(crate) fn put_in(
        &self,
        level: Level,
        codes: &[u8],
        params: &[u8],
        out: &mut [u8],
        out_params: &mut [u8],
    ) -> Counts {
        let mut counts = Counts::default();
        with_bytes(self.dim, |apart, made| {
            let mut any = false;
            for tile in &self.tiles {
                if self.scale(tile, codes, params, out, out_params).is_none() {
                    continue;
                }
                if !any {
                    unpack(level, &self.source, codes, apart);
                    unpack(level, &self.target, out, made);
                    any = true;
                }
                let range = tile.first..tile.first + tile.elements;
                counts += self.pairs[tile.pair].apply(&apart[range.clone()], &mut made[range]);
            }
            if any {
                pack(level, &self.target, made, out);
            }
        });
        counts
    }

    /// The scale of a tile as the target stores it, if it can.
    fn stored(&self, tile: &Tile, codes: &[u8], params: &[u8]) -> Option<[u8; 4]> {
        let bytes = match tile.from.place {
            Place::Block(_) => &codes[tile.from.at..],
            Place::Params(_) => &params[tile.from.at..],
        };
        self.pairs[tile.pair].scale(bytes)
    }

    fn scale(
        &self,
        tile: &Tile,
        codes: &[u8],
        params: &[u8],
        out: &mut [u8],
        out_params: &mut [u8],
    ) -> Option<()> {
        let stored = self.stored(tile, codes, params)?;
        let out = match tile.to.place {
            Place::Block(_) => &mut out[tile.to.at..],
            Place::Params(_) => &mut out_params[tile.to.at..],
        };
        let bytes = self.pairs[tile.pair].stores.1.bytes() as usize;
        out[..bytes].copy_from_slice(&stored[..bytes]);
        Some(())
    }
}

impl Flat {
    /// `None` if rows are not like this.
    fn of(keep: &Keep, from: &Block, to: &Block, sources: usize) -> Option<Self> {
        let ([pair], [source], [target]) = (&*keep.pairs, &*keep.source, &*keep.target) else {
            return None;
        };
        let Scaling::Known(known) = &pair.scaling else {
            return None;
        };
        let dim = keep.dim as u32;
        let fills =
            |span: &Span, block: &Block| span.at == 0 && span.bytes == row_bytes(block, dim);
        let params = |block: &Block| (dim / block.elements_in(dim) * block.param_bytes) as usize;
        let parts = keep.tiles.len() / sources;
        let in_order = keep.tiles.iter().enumerate().all(|(i, tile)| {
            matches!(
                (tile.from.place, tile.to.place),
                (Place::Params(_), Place::Params(_))
            ) && (tile.from.at, tile.to.at) == (i / parts.max(1), i)
        });
        let scales = (params(from), params(to)) == (sources, parts * sources);
        if !(keep.whole && in_order && scales && fills(source, from) && fills(target, to)) {
            return None;
        }
        let known = |code: usize| known[code].map(|[first, ..]| first);
        let scales = Bytes::new(
            std::array::from_fn(|code| known(code).unwrap_or(0)),
            std::array::from_fn(|code| u8::from(known(code).is_none())),
        );
        let answer = |code: usize| pair.answers[code] as u8;
        let loss = |code: usize| (pair.answers[code] >> 8) as u8;
        let is_nibble = |span: &Span| span.number.bits() == 4 && span.packing == Packing::Dense;
        let is_byte = |span: &Span| span.packing == Packing::Bytes;
        let codes = match (source, target) {
            _ if keep.copied => Codes::Copied,
            (a, b) if is_byte(a) && is_byte(b) => Codes::Bytes(Box::new(Bytes::new(
                std::array::from_fn(answer),
                std::array::from_fn(loss),
            ))),
            (a, b) if is_nibble(a) && is_byte(b) => Codes::Widened(Box::new(Nibbles::new(
                std::array::from_fn(answer),
                std::array::from_fn(loss),
            ))),
            (a, b) if is_nibble(a) && is_nibble(b) && (0..16).all(|code| loss(code) == 0) => {
                let both = |byte| answer(byte % 16) | answer(byte / 16) << 4;
                Codes::Bytes(Box::new(Bytes::new(std::array::from_fn(both), [0; 256])))
            }
            _ => return None,
        };
        Some(Self {
            scales,
            parts,
            codes,
        })
    }
}

at_each_level! {
    /// Makes `parts` of each of the first `n` bytes, in place.
    fn repeat_each(n: usize, parts: usize, bytes: &mut [u8]) -> () {
        for i in (0..n).rev() {
            let byte = bytes[i];
            bytes[i * parts..][..parts].fill(byte);
        }
    }
}

/// Bytes of the codes of a row.
fn row_bytes(block: &Block, dim: u32) -> usize {
    (dim / block.elements_in(dim) * block.bytes_in(dim)) as usize
}

impl Pair {
    fn new(codes: (Code, Code), stores: (Store, Store), g: f32, target_g: f32) -> Option<Self> {
        let f = factor(codes.0, codes.1)?;
        let last = (1u32 << codes.0.number().bits()) - 1;
        let answers = std::array::from_fn(|code| {
            let (code, counts) = answer(codes.0, codes.1, f, (code as u32 & last) as u8);
            u16::from(code) | (counts.saturated as u16) << 8 | (counts.nan as u16) << 9
        });
        let computed = Self {
            codes,
            stores,
            answers: Box::new(answers),
            scaling: Scaling::Computed { g, f, target_g },
        };
        if stores.0.bytes() > 1 {
            return Some(computed);
        }
        let known = Box::new(std::array::from_fn(|code| computed.scale(&[code as u8])));
        Some(Self {
            scaling: Scaling::Known(known),
            ..computed
        })
    }

    fn scale(&self, bytes: &[u8]) -> Option<[u8; 4]> {
        match &self.scaling {
            Scaling::Known(known) => known[usize::from(bytes[0])],
            Scaling::Computed { g, f, target_g } => {
                let scale = rescaled(
                    self.stores.0.read(bytes, false).0,
                    *g,
                    *f,
                    *target_g,
                    self.stores.1,
                )?;
                let mut made = [0; 8];
                self.stores.1.write(scale, 0.0, false, &mut made);
                Some([made[0], made[1], made[2], made[3]])
            }
        }
    }

    fn apply(&self, codes: &[u8], made: &mut [u8]) -> Counts {
        let mut lost = 0;
        for (code, made) in codes.iter().zip(made) {
            let answer = self.answers[usize::from(*code)];
            *made = answer as u8;
            lost |= answer;
        }
        let mut counts = Counts::default();
        if lost >> 8 != 0 {
            for code in codes {
                let answer = self.answers[usize::from(*code)];
                counts.saturated += u64::from(answer >> 8 & 1);
                counts.nan += u64::from(answer >> 9);
            }
        }
        counts
    }
}

/// A tile of one side.
struct ScaledTile {
    first: usize,
    elements: usize,
    code: Code,
    scales: &'static Scales,
    spot: Spot,
}

/// Tiles of a row whose numbers are q·s.
fn scaled(block: &Block, dim: u32) -> Vec<ScaledTile> {
    let (elements, bytes) = (
        block.elements_in(dim) as usize,
        block.bytes_in(dim) as usize,
    );
    let mut all = Vec::new();
    for b in 0..dim as usize / elements {
        let mut first = b * elements;
        for segment in block.segments {
            let n = if segment.elements == 0 {
                elements
            } else {
                segment.elements as usize
            };
            if let Some(scales) = segment.scales.as_ref().filter(|s| s.form == Form::Scaled) {
                let tile = if scales.tile == 0 {
                    n
                } else {
                    scales.tile as usize
                };
                for t in 0..n / tile {
                    let (Place::Block(start) | Place::Params(start)) = scales.place;
                    let each = match scales.place {
                        Place::Block(_) => bytes,
                        Place::Params(_) => block.param_bytes as usize,
                    };
                    let at = b * each
                        + start as usize
                        + scales.position(t, n / tile) * scales.bytes() as usize;
                    all.push(ScaledTile {
                        first: first + t * tile,
                        elements: tile,
                        code: segment.code,
                        scales,
                        spot: Spot {
                            place: scales.place,
                            at,
                        },
                    });
                }
            }
            first += n;
        }
    }
    all
}

/// Codes of a row, joined where nothing lies between them; those of more than a byte are left out.
fn spans(block: &Block, dim: u32) -> Vec<Span> {
    let (elements, bytes) = (
        block.elements_in(dim) as usize,
        block.bytes_in(dim) as usize,
    );
    let mut all: Vec<Span> = Vec::new();
    for b in 0..dim as usize / elements {
        let mut first = b * elements;
        for segment in block.segments {
            let n = if segment.elements == 0 {
                elements
            } else {
                segment.elements as usize
            };
            let (number, packing) = (segment.code.number(), segment.packing);
            let span = Span {
                first,
                elements: n,
                number,
                packing,
                at: b * bytes + segment.at as usize,
                bytes: packing.bytes(number, n as u32) as usize,
            };
            first += n;
            if number.bits() > 8 {
                continue;
            }
            let joins = packing
                .unit(number)
                .is_some_and(|unit| unit.elements as usize <= n);
            match all.last_mut() {
                Some(last)
                    if joins
                        && (last.number, last.packing) == (number, packing)
                        && (last.first + last.elements, last.at + last.bytes)
                            == (span.first, span.at) =>
                {
                    last.elements += n;
                    last.bytes += span.bytes;
                }
                _ => all.push(span),
            }
        }
    }
    all
}

fn unpack(level: Level, spans: &[Span], bytes: &[u8], codes: &mut [u8]) {
    for span in spans {
        let (bytes, codes) = (
            &bytes[span.at..][..span.bytes],
            &mut codes[span.first..][..span.elements],
        );
        match span.packing {
            Packing::Bytes => codes.copy_from_slice(bytes),
            packing => packing::unpack_fast(level, packing, span.number, bytes, codes),
        }
    }
}

fn pack(level: Level, spans: &[Span], codes: &[u8], bytes: &mut [u8]) {
    for span in spans {
        let (bytes, codes) = (
            &mut bytes[span.at..][..span.bytes],
            &codes[span.first..][..span.elements],
        );
        match span.packing {
            Packing::Bytes => bytes.copy_from_slice(codes),
            packing => packing::pack_fast(level, packing, span.number, codes, bytes),
        }
    }
}

/// Two times `n` bytes, on the stack for rows of ordinary length.
fn with_bytes(n: usize, work: impl FnOnce(&mut [u8], &mut [u8])) {
    if n <= NEAR {
        let mut near = [[0; NEAR]; 2];
        let [a, b] = &mut near;
        work(&mut a[..n], &mut b[..n]);
    } else {
        let mut far = vec![0; 2 * n];
        let (a, b) = far.split_at_mut(n);
        work(a, b);
    }
}

/// Codes that are replaced before the next scales are looked at.
const CODES_AT_ONCE: usize = 8192;

/// Codes of a row for which nothing is allocated.
const NEAR: usize = 1024;
