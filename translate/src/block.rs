//! Rows of blocks turned into numbers and back, tile by tile: one path for every [`Block`].
//!
//! What is rare (NaN, Inf, a scale that overflows) goes element by element through the
//! [`reference`](mod@crate::reference).

use crate::{
    cpu::{
        Flow,
        group::{
            self, MxRule, Nvfp4Rule, ScaleCode, ScaledOctaves, TileRule,
            to_bf16::{self, Stride},
        },
        level::{Level, at_each_level},
        number::{self, Quotient},
        scalar::{Int8Away, Target},
    },
    format::{Counts, RowFormat, constant},
    number::{Number, Overflow},
    packing, reference,
    rule::{By, Derived, Quantize, Round, Stats},
    scheme::{
        Block, Code, Form, Least, MxMode, Packing, Place, Rule, ScaleTo, Scales, Segment, Store,
    },
};

/// Bytes of codes taken apart at a time without an allocation.
const APART: usize = 1024;

/// Codes of a segment, one a byte, in memory of the caller's or of their own.
struct Apart {
    near: [u8; APART],
    far: Vec<u8>,
}

impl Apart {
    fn new(n: usize) -> Self {
        Self {
            near: [0; APART],
            far: if n > APART { vec![0; n] } else { Vec::new() },
        }
    }

    fn codes(&mut self, n: usize) -> &mut [u8] {
        if self.far.is_empty() {
            &mut self.near[..n]
        } else {
            &mut self.far[..n]
        }
    }
}

/// Numbers of rows of `dim` elements, rotated if the format is.
pub(crate) fn decode(
    level: Level,
    format: &RowFormat,
    block: &Block,
    dim: usize,
    codes: &[u8],
    params: &[u8],
    values: &mut [f32],
) {
    let (elements, bytes) = (
        block.elements_in(dim as u32) as usize,
        block.bytes_in(dim as u32) as usize,
    );
    let mut apart = Apart::new(elements);
    let constant = constant(format.scale);
    if let Some((segment, kind)) = Kind::of(block, 0) {
        match kind {
            Kind::Q8_0 => return group::decode_q8_0(level, codes, values),
            Kind::Mx(_) => {
                return group::decode_mx(level, segment.code.number(), codes, params, values);
            }
            Kind::Nvfp4(_) => return group::decode_nvfp4(level, constant, codes, params, values),
            Kind::Tiles(_, stored) => {
                return group::decode_tiles(level, elements, stored, codes, params, values);
            }
            Kind::Rows => {}
        }
    }
    for (b, values) in values.chunks_exact_mut(elements).enumerate() {
        let each = block.param_bytes as usize;
        let (codes, params) = (&codes[b * bytes..][..bytes], &params[b * each..][..each]);
        let mut first = 0;
        for segment in block.segments {
            let n = if segment.elements == 0 {
                elements
            } else {
                segment.elements as usize
            };
            decode_segment(
                level,
                segment,
                codes,
                params,
                &mut apart,
                &mut values[first..first + n],
            );
            first += n;
        }
        if constant != 1.0 {
            number::multiply(level, values, constant);
        }
    }
}

fn decode_segment(
    level: Level,
    segment: &Segment,
    codes: &[u8],
    params: &[u8],
    apart: &mut Apart,
    values: &mut [f32],
) {
    let n = values.len();
    let number = segment.code.number();
    let bytes = &codes[segment.at as usize..][..segment.packing.bytes(number, n as u32) as usize];
    let (bytes, width) = if segment.packing == Packing::Bytes {
        (bytes, number.bytes())
    } else {
        let apart = apart.codes(n);
        packing::unpack_fast(level, segment.packing, number, bytes, apart);
        (&*apart, 1)
    };
    let Some(scales) = &segment.scales else {
        return number::decode(level, number, bytes, 1.0, values);
    };
    if let (Some((_, stored)), Place::Block(at)) = (tiles_of(segment, 0), scales.place) {
        let stored_bytes = n / scales.tile as usize * stored.bytes();
        let scales_in = &codes[at as usize..][..stored_bytes];
        return group::decode_tiles(
            level,
            scales.tile as usize,
            stored,
            bytes,
            scales_in,
            values,
        );
    }
    let tile = if scales.tile == 0 {
        n
    } else {
        scales.tile as usize
    };
    for (t, values) in values.chunks_exact_mut(tile).enumerate() {
        let bytes = &bytes[t * tile * width..][..tile * width];
        let (at, size) = (place(scales, t, n / tile), scales.bytes() as usize);
        let stored = match scales.place {
            Place::Block(_) => &codes[at..][..size],
            Place::Params(_) => &params[at..][..size],
        };
        let (scale, zero) = scales.store.read(stored, scales.form != Form::Scaled);
        match (segment.code, scales.form) {
            (Code::Number(number), Form::Scaled) => {
                number::decode(level, number, bytes, scale, values)
            }
            (code, form) => {
                match code {
                    Code::Table(list) => {
                        for (x, i) in values.iter_mut().zip(bytes) {
                            *x = list[usize::from(*i & 15)];
                        }
                    }
                    _ => number::decode(level, number, bytes, 1.0, values),
                }
                let (less, times) = match code {
                    Code::Less(_, less) => (less, 1.0),
                    Code::Times(_, times) => (0.0, times),
                    _ => (0.0, 1.0),
                };
                stand_for(level, values, less, times, form, scale, zero);
            }
        }
    }
}

/// Where scale `t` of `n` lies in its block or its params.
fn place(scales: &Scales, t: usize, n: usize) -> usize {
    let (Place::Block(first) | Place::Params(first)) = scales.place;
    first as usize + scales.position(t, n) * scales.bytes() as usize
}

at_each_level! {
    /// What codes stand for, in place.
    fn stand_for(values: &mut [f32], less: f32, times: f32, form: Form, scale: f32, zero: f32) -> () {
        match form {
            // Subtracting 0 and multiplying with 1 change nothing.
            Form::Scaled => {
                for x in values {
                    *x = (*x - less) * times * scale;
                }
            }
            Form::Point => {
                for x in values {
                    *x = (*x - zero) * scale;
                }
            }
            Form::Offset => {
                for x in values {
                    *x = *x * scale + zero;
                }
            }
            Form::OffsetF16 => {
                let half = |x: f32| half::f16::from_f32(x).to_f32();
                for x in values {
                    *x = half(half(*x * scale) + zero);
                }
            }
        }
    }

    /// trunc(clamp(y ± ½)), y = x·r.
    fn away_by_sum(values: &[f32], inverse: f32, codes: &mut [u8]) -> () {
        for (x, code) in values.iter().zip(codes) {
            [*code] = Int8Away.code(*x * inverse);
        }
    }

    /// y = x·r, of magnitude 127 and a little at most, to the nearest, half away from zero.
    fn away(values: &[f32], inverse: f32, codes: &mut [u8]) -> () {
        for (x, code) in values.iter().zip(codes) {
            let y = *x * inverse;
            let whole = y.trunc();
            let up = if (y - whole).abs() >= 0.5 { 1f32.copysign(y) } else { 0.0 };
            *code = ((whole + up) as i32) as u8;
        }
    }

    /// [`Quantize::Affine`] outside of `f16`.
    fn affine(values: &[f32], ends: [f32; 2], by: By, plus: [f32; 2], round: Round, codes: &mut [u8]) -> () {
        let [minus, most] = ends;
        let y = |x: f32| match by {
            By::Times(r) => (x - minus) * r + plus[0] + plus[1],
            By::Over(s) => (x - minus) / s + plus[0] + plus[1],
        };
        match round {
            Round::Truncate => {
                for (x, code) in values.iter().zip(codes) {
                    *code = y(*x).clamp(0.0, most) as i32 as u8;
                }
            }
            Round::Even => {
                for (x, code) in values.iter().zip(codes) {
                    *code = y(*x).round_ties_even().clamp(0.0, most) as i32 as u8;
                }
            }
            Round::Away => {
                for (x, code) in values.iter().zip(codes) {
                    *code = y(*x).round().clamp(0.0, most) as i32 as u8;
                }
            }
        }
    }
}

/// Loops from `bf16` to a format's codes that make no `f32` in memory.
#[derive(Clone, Debug)]
pub(crate) enum OfBf16 {
    /// ggml's `q8_0`.
    Q8_0,
    /// OCP's microscaling.
    Mx(Number, MxRule),
    /// NVIDIA's groups under two scales.
    Nvfp4(Nvfp4Rule, Box<ScaledOctaves>),
    /// Rows of so many elements with a scale each.
    Rows(Number, usize),
    /// Nothing but tiles of so many elements, their scales apart.
    Tiles(usize, TileRule, ScaleCode),
    /// Blocks of these elements, bytes and bytes of params, of tiles and of `bf16` as it is.
    Records([usize; 3], Box<[Part]>),
}

/// Elements of a block that lie together.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    elements: usize,
    /// Where in the block.
    at: usize,
    /// How they are scaled, and where in the block or in its params the scales lie.
    tiles: Option<(usize, TileRule, ScaleCode, Place)>,
}

impl Part {
    /// `None` if there is no loop for such a segment.
    fn new(segment: &Segment, elements: usize, rule: usize) -> Option<Self> {
        let (n, at) = match segment.elements {
            0 => (elements, segment.at as usize),
            n => (n as usize, segment.at as usize),
        };
        let tiles = match &segment.scales {
            None if segment.code == Code::Number(Number::Bf16) => None,
            None => return None,
            Some(scales) => {
                let (rule, stored) = tiles_of(segment, rule)?;
                let tile = scales.tile as usize;
                let behind = match scales.place {
                    // Codes first, their scales somewhere behind them.
                    Place::Block(place) => place as usize >= at + n,
                    Place::Params(_) => true,
                };
                if !group::takes_tiles_of(tile) || !behind {
                    return None;
                }
                Some((tile, rule?, stored, scales.place))
            }
        };
        Some(Self {
            elements: n,
            at,
            tiles,
        })
    }

    fn encode(
        &self,
        level: Level,
        flow: Flow,
        source: &[u8],
        codes: &mut [u8],
        params: &mut [u8],
    ) -> Counts {
        let n = self.elements;
        let Some((tile, rule, stored, place)) = self.tiles else {
            return group::copy_bf16(level, source, &mut codes[self.at..][..2 * n]);
        };
        let bytes = n / tile * stored.bytes();
        let (codes, scales) = match place {
            Place::Block(at) => {
                let (codes, behind) = codes.split_at_mut(at as usize);
                (codes, &mut behind[..bytes])
            }
            Place::Params(at) => (codes, &mut params[at as usize..][..bytes]),
        };
        let codes = &mut codes[self.at..][..n];
        group::encode_tiles_of_bf16(level, flow, tile, rule, stored, source, codes, scales)
    }
}

impl OfBf16 {
    /// `None` if there are none, or they are not faster than the way through numbers.
    pub(crate) fn new(level: Level, format: &RowFormat, block: &Block, dim: u32) -> Option<Self> {
        if level != Level::Avx512 {
            return None;
        }
        let elements = block.elements_in(dim) as usize;
        let records = || {
            let part = |segment| Part::new(segment, elements, format.rule);
            let parts: Option<Box<[Part]>> = block.segments.iter().map(part).collect();
            let bytes = [block.bytes_in(dim), block.param_bytes].map(|bytes| bytes as usize);
            let unscaled = constant(format.scale) == 1.0;
            unscaled.then_some(Self::Records([elements, bytes[0], bytes[1]], parts?))
        };
        let Some((segment, kind)) = Kind::of(block, format.rule) else {
            return records();
        };
        match kind {
            Kind::Q8_0 => Some(Self::Q8_0),
            Kind::Mx(Some(rule)) => Some(Self::Mx(segment.code.number(), rule)),
            Kind::Nvfp4(Some(least)) => {
                let global = constant(format.scale);
                let octaves = Box::new(ScaledOctaves::new(global)?);
                Some(Self::Nvfp4(Nvfp4Rule { global, least }, octaves))
            }
            Kind::Rows if group::takes_tiles_of(elements) => {
                Some(Self::Rows(segment.code.number(), elements))
            }
            Kind::Tiles(Some(rule), stored) if group::takes_tiles_of(elements) => {
                Some(Self::Tiles(elements, rule, stored))
            }
            _ => None,
        }
    }

    /// Codes and params of rows.
    pub(crate) fn encode(
        &self,
        level: Level,
        flow: Flow,
        source: &[u8],
        codes: &mut [u8],
        params: &mut [u8],
    ) -> Counts {
        match self {
            Self::Q8_0 => group::encode_q8_0_of_bf16(level, flow, source, codes),
            Self::Mx(number, rule) => {
                group::encode_mx_of_bf16(level, flow, *number, *rule, source, codes, params)
            }
            Self::Nvfp4(rule, octaves) => {
                group::encode_nvfp4_of_bf16(level, flow, *rule, octaves, source, codes, params)
            }
            Self::Rows(number, dim) => {
                group::encode_rows_of_bf16(level, flow, *number, *dim, source, codes, params)
            }
            Self::Tiles(tile, rule, stored) => group::encode_tiles_of_bf16(
                level, flow, *tile, *rule, *stored, source, codes, params,
            ),
            Self::Records([elements, bytes, each], parts) => {
                let mut counts = Counts::default();
                for (b, source) in source.chunks_exact(2 * elements).enumerate() {
                    let codes = &mut codes[b * bytes..][..*bytes];
                    let params = &mut params[b * each..][..*each];
                    if parts.len() > 1 {
                        // Padding, where a block has some.
                        params.fill(0);
                    }
                    let mut first = 0;
                    for part in parts {
                        let source = &source[2 * first..][..2 * part.elements];
                        counts += part.encode(level, flow, source, codes, params);
                        first += part.elements;
                    }
                }
                counts
            }
        }
    }
}

/// Loops from a format's codes to `bf16` that make no `f32` in memory.
#[derive(Clone, Debug)]
pub(crate) enum ToBf16 {
    /// ggml's `q8_0`.
    Q8_0(Box<to_bf16::Bytes>),
    /// OCP's microscaling in bytes.
    Mx(Box<to_bf16::Bytes>),
    /// The same in nibbles.
    MxNibbles(to_bf16::Nibbles),
    /// NVIDIA's groups under two scales, the second of which is this.
    Nvfp4(f32, to_bf16::Nibbles),
    /// Nothing but tiles of so many elements, their scales apart.
    Tiles(usize, ScaleCode, Box<to_bf16::Bytes>),
}

impl ToBf16 {
    /// `None` if there are none, or they are not faster than the way through numbers.
    pub(crate) fn new(level: Level, format: &RowFormat, block: &Block, dim: u32) -> Option<Self> {
        if level != Level::Avx512 {
            return None;
        }
        /// All codes, the even one low.
        const CODES: [u8; 8] = [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE];
        let (segment, kind) = Kind::of(block, 0)?;
        let (number, constant) = (segment.code.number(), constant(format.scale));
        let elements = block.elements_in(dim) as usize;
        let bytes = || to_bf16::Bytes::new(number).map(Box::new);
        match kind {
            Kind::Nvfp4(_) => {
                let all = |scale, values: &mut [f32; 16]| {
                    group::decode_nvfp4(Level::Portable, constant, &CODES, &[scale], values);
                };
                Some(Self::Nvfp4(constant, to_bf16::Nibbles::new(16, all)))
            }
            _ if constant != 1.0 => None,
            Kind::Q8_0 => Some(Self::Q8_0(bytes()?)),
            Kind::Mx(_) if number == Number::E2m1 => {
                let all = |scale, values: &mut [f32; 16]| {
                    let (mut codes, mut both) = ([0; 16], [0.0; 32]);
                    codes[..8].copy_from_slice(&CODES);
                    group::decode_mx(Level::Portable, number, &codes, &[scale], &mut both);
                    values.copy_from_slice(&both[..16]);
                };
                Some(Self::MxNibbles(to_bf16::Nibbles::new(32, all)))
            }
            Kind::Mx(_) => Some(Self::Mx(bytes()?)),
            Kind::Tiles(_, stored) if elements.is_multiple_of(32) => {
                Some(Self::Tiles(elements, stored, bytes()?))
            }
            _ => None,
        }
    }

    /// `bf16` codes of rows.
    pub(crate) fn decode(
        &self,
        level: Level,
        codes: &[u8],
        params: &[u8],
        out: &mut [u8],
    ) -> Counts {
        let dense = Stride {
            bytes: 32,
            skipped: 0,
        };
        match self {
            Self::Q8_0(table) => {
                let stride = Stride {
                    bytes: 34,
                    skipped: 2,
                };
                let scales_of = |first: usize, made: &mut [f32]| {
                    let mut stored = [[0; 2]; 16];
                    let stored = &mut stored[..made.len()];
                    let groups = codes[34 * first..].chunks_exact(34);
                    for (group, stored) in groups.zip(&mut *stored) {
                        *stored = [group[0], group[1]];
                    }
                    number::decode(level, Number::F16, stored.as_flattened(), 1.0, made);
                };
                table.run(level, stride, codes, scales_of, out)
            }
            Self::Mx(table) => table.run_under_powers(level, 32, codes, params, out),
            Self::Tiles(tile, ScaleCode::E8m0, table) => {
                table.run_under_powers(level, *tile, codes, params, out)
            }
            Self::Tiles(tile, ScaleCode::F32, table) => {
                let scales = params.as_chunks::<4>().0;
                let scales_of = |first: usize, made: &mut [f32]| {
                    for (i, made) in (first..).zip(made) {
                        *made = f32::from_le_bytes(scales[32 * i / tile]);
                    }
                };
                table.run(level, dense, codes, scales_of, out)
            }
            Self::MxNibbles(table) => {
                let decode = |codes: &[u8], scales: &[u8], values: &mut [f32]| {
                    group::decode_mx(level, Number::E2m1, codes, scales, values);
                };
                table.run(level, codes, params, decode, out)
            }
            Self::Nvfp4(constant, table) => {
                let decode = |codes: &[u8], scales: &[u8], values: &mut [f32]| {
                    group::decode_nvfp4(level, *constant, codes, scales, values);
                };
                table.run(level, codes, params, decode, out)
            }
        }
    }
}

/// Codes and params of rows of `dim` elements.
pub(crate) fn encode(
    level: Level,
    format: &RowFormat,
    block: &Block,
    dim: usize,
    values: &[f32],
    codes: &mut [u8],
    params: &mut [u8],
) -> Counts {
    let (elements, bytes) = (
        block.elements_in(dim as u32) as usize,
        block.bytes_in(dim as u32) as usize,
    );
    if let Some((segment, kind)) = Kind::of(block, format.rule) {
        let number = segment.code.number();
        match kind {
            Kind::Q8_0 => return group::encode_q8_0(level, values, codes),
            Kind::Mx(Some(rule)) => {
                return group::encode_mx(level, number, rule, values, codes, params);
            }
            Kind::Nvfp4(Some(least)) => {
                let rule = Nvfp4Rule {
                    global: constant(format.scale),
                    least,
                };
                return group::encode_nvfp4(level, rule, values, codes, params);
            }
            Kind::Tiles(Some(rule), stored) => {
                return group::encode_tiles(level, elements, rule, stored, values, codes, params);
            }
            Kind::Rows => return group::encode_rows(level, number, dim, values, codes, params),
            _ => {}
        }
    }
    let mut apart = Apart::new(elements);
    let mut counts = Counts::default();
    for (b, values) in values.chunks_exact(elements).enumerate() {
        let each = block.param_bytes as usize;
        let (codes, params) = (
            &mut codes[b * bytes..][..bytes],
            &mut params[b * each..][..each],
        );
        if block.segments.len() > 1 {
            // Padding, where a block has some.
            params.fill(0);
        }
        let mut first = 0;
        for segment in block.segments {
            let n = if segment.elements == 0 {
                elements
            } else {
                segment.elements as usize
            };
            let values = &values[first..first + n];
            counts += encode_segment(level, format, segment, values, codes, params, &mut apart);
            first += n;
        }
    }
    counts
}

fn encode_segment(
    level: Level,
    format: &RowFormat,
    segment: &Segment,
    values: &[f32],
    codes: &mut [u8],
    params: &mut [u8],
    apart: &mut Apart,
) -> Counts {
    let n = values.len();
    let number = segment.code.number();
    let range =
        segment.at as usize..segment.at as usize + segment.packing.bytes(number, n as u32) as usize;
    let Some(scales) = &segment.scales else {
        return number::encode(
            level,
            number,
            Overflow::Saturate,
            Quotient::Same,
            values,
            &mut codes[range],
        );
    };
    if let (Some((Some(rule), stored)), Place::Block(at)) =
        (tiles_of(segment, format.rule), scales.place)
        && at as usize >= range.end
    {
        // Codes first, their scales somewhere behind them.
        let (codes, behind) = codes.split_at_mut(at as usize);
        let stored_bytes = n / scales.tile as usize * stored.bytes();
        let (tile, place) = (scales.tile as usize, &mut behind[..stored_bytes]);
        return group::encode_tiles(level, tile, rule, stored, values, &mut codes[range], place);
    }
    let tile = if scales.tile == 0 {
        n
    } else {
        scales.tile as usize
    };
    let rule = scales.rules[format.rule.min(scales.rules.len() - 1)].1;
    let mut counts = Counts::default();
    let made = apart.codes(n);
    for (t, (values, made)) in values
        .chunks_exact(tile)
        .zip(made.chunks_exact_mut(tile))
        .enumerate()
    {
        let (stats, special) = stats(level, &rule, values);
        let derived = rule.derive(number, constant(format.scale), &stats);
        let (at, size) = (place(scales, t, n / tile), scales.bytes() as usize);
        let stored = match scales.place {
            Place::Block(_) => &mut codes[at..][..size],
            Place::Params(_) => &mut params[at..][..size],
        };
        scales.store.write(
            derived.scale,
            derived.zero,
            scales.form != Form::Scaled,
            stored,
        );
        let lost = scales.store.overflows(derived.scale, derived.zero);
        counts += if special || lost {
            reference::quantized_tile(segment.code, derived.quantize, lost, values, made)
        } else {
            quantize(level, segment.code, &derived, values, made)
        };
    }
    if segment.packing == Packing::Bytes {
        codes[range].copy_from_slice(made);
    } else {
        packing::pack_fast(level, segment.packing, number, made, &mut codes[range]);
    }
    counts
}

/// Blocks that whole caches are made of, for which there are loops over many of them. What a reader does not need to
/// know is `None` where the rule has no loop.
enum Kind {
    Q8_0,
    Mx(Option<MxRule>),
    /// With the least scale.
    Nvfp4(Option<f32>),
    Tiles(Option<TileRule>, ScaleCode),
    /// The writer's loop only.
    Rows,
}

impl Kind {
    fn of(block: &Block, rule: usize) -> Option<(&'static Segment, Self)> {
        let [segment] = block.segments else {
            return None;
        };
        let scales = segment.scales.as_ref()?;
        let Code::Number(number) = segment.code else {
            return None;
        };
        let plain = scales.form == Form::Scaled && scales.order == 1;
        let whole = scales.tile == 0 || scales.tile == block.elements;
        if !plain || !whole {
            return None;
        }
        let rule = scales
            .rules
            .get(rule.min(scales.rules.len().max(1) - 1))
            .map(|(_, rule)| *rule);
        if (scales.place, segment.at, segment.packing) == (Place::Block(0), 2, Packing::Bytes) {
            let q8_0 = (number, scales.store, block.elements, block.bytes)
                == (Number::Int8, Store::F16, 32, 34);
            return (q8_0 && rule == Some(Rule::GgmlAmax)).then_some((segment, Self::Q8_0));
        }
        if scales.place != Place::Params(0)
            || segment.at != 0
            || block.param_bytes != scales.bytes()
        {
            return None;
        }
        let kind = match (number, segment.packing, scales.store, block.elements) {
            (Number::E4m3fn | Number::E5m2, Packing::Bytes, Store::E8m0, 32)
            | (Number::E2m1, Packing::Dense, Store::E8m0, 32)
                if matches!(rule, Some(Rule::Mx(_))) =>
            {
                Self::Mx(match rule {
                    Some(Rule::Mx(MxMode::Floor)) => Some(MxRule::Floor),
                    Some(Rule::Mx(MxMode::Rceil)) => Some(MxRule::Ceil),
                    Some(Rule::Mx(MxMode::Even)) => Some(MxRule::Even),
                    _ => None,
                })
            }
            (Number::E2m1, Packing::Dense, Store::E4m3fn, 16) => Self::Nvfp4(match rule {
                Some(Rule::Nvfp4 { least }) => Some(least),
                Some(Rule::Tile {
                    max: 6.0,
                    least: Least::Scale(least),
                    to: ScaleTo::E4m3fn,
                }) => Some(least),
                _ => None,
            }),
            (Number::Int8 | Number::E4m3fn | Number::E4m3fnuz, Packing::Bytes, Store::F32, 0)
                if matches!(rule, Some(Rule::TokenHead { least: 1e-6, .. })) =>
            {
                Self::Rows
            }
            _ => {
                let (rule, stored) = tiles(segment, rule)?;
                Self::Tiles(rule, stored)
            }
        };
        Some((segment, kind))
    }
}

/// Whether a segment of several tiles has a loop for them.
fn tiles_of(segment: &Segment, rule: usize) -> Option<(Option<TileRule>, ScaleCode)> {
    let scales = segment.scales.as_ref()?;
    if scales.tile == 0 || scales.form != Form::Scaled || scales.order != 1 {
        return None;
    }
    tiles(
        segment,
        scales
            .rules
            .get(rule.min(scales.rules.len().max(1) - 1))
            .map(|(_, rule)| *rule),
    )
}

/// `e4m3fn` tiles under scales of `f32` or powers of two.
fn tiles(segment: &Segment, rule: Option<Rule>) -> Option<(Option<TileRule>, ScaleCode)> {
    let scales = segment.scales.as_ref()?;
    let stored = match scales.store {
        Store::F32 => ScaleCode::F32,
        Store::E8m0 => ScaleCode::E8m0,
        _ => return None,
    };
    if !matches!(
        (segment.code, segment.packing),
        (Code::Number(Number::E4m3fn), Packing::Bytes)
    ) {
        return None;
    }
    let rule = match rule {
        Some(Rule::Tile {
            max: 448.0,
            least,
            to: to @ (ScaleTo::F32 | ScaleTo::Power),
        }) => {
            let (least_amax, least_scale) = match least {
                Least::Amax(amax) => (amax, 0.0),
                Least::Scale(scale) => (0.0, scale),
            };
            Some(TileRule {
                least_amax,
                least_scale,
                power_of_two: to == ScaleTo::Power,
            })
        }
        _ => None,
    };
    Some((rule, stored))
}

/// What `rule` needs to know, and whether any element is NaN or Inf.
fn stats(level: Level, rule: &Rule, values: &[f32]) -> (Stats, bool) {
    match rule {
        Rule::GgmlRange { .. }
        | Rule::VllmInt4
        | Rule::LmDeploy { .. }
        | Rule::TurboMind { .. }
        | Rule::Kivi { .. }
        | Rule::Turboquant { .. } => {
            let (min, max, special) = number::finite_range(level, values);
            if special || min == 0.0 || max == 0.0 {
                // Which zero comes first, and rows without a finite number, are matters of definition.
                return (reference::stats(values), special);
            }
            (
                Stats {
                    min,
                    max,
                    ..Stats::default()
                },
                special,
            )
        }
        Rule::GgmlSigned { .. } => {
            let (amax, special) = number::finite_amax(level, values);
            let peak = values
                .iter()
                .find(|x| x.abs() == amax)
                .copied()
                .unwrap_or(0.0);
            (
                Stats {
                    amax,
                    peak,
                    ..Stats::default()
                },
                special,
            )
        }
        _ => {
            let (amax, special) = number::finite_amax(level, values);
            (
                Stats {
                    amax,
                    ..Stats::default()
                },
                special,
            )
        }
    }
}

/// Codes of finite numbers under a scale that is known.
fn quantize(
    level: Level,
    code: Code,
    derived: &Derived,
    values: &[f32],
    made: &mut [u8],
) -> Counts {
    match derived.quantize {
        Quantize::Nearest { by, clamp } if clamp == f32::INFINITY || matches!(by, By::Times(_)) => {
            let times = if let Code::Times(_, times) = code {
                times
            } else {
                1.0
            };
            let quotient = match by {
                By::Times(r) => Quotient::Times(r),
                // Both are powers of two where there are two, or one is 1.
                By::Over(s) => Quotient::exact(s * times),
            };
            number::encode(
                level,
                code.number(),
                Overflow::Saturate,
                quotient,
                values,
                made,
            )
        }
        Quantize::AwayBySum(inverse) => {
            away_by_sum(level, values, inverse, made);
            Counts::default()
        }
        Quantize::Away(inverse) => {
            away(level, values, inverse, made);
            Counts::default()
        }
        Quantize::Affine {
            minus,
            by,
            plus,
            round,
            most,
            f16: false,
            clips: false,
        } => {
            affine(level, values, [minus, most], by, plus, round, made);
            Counts::default()
        }
        other => reference::quantized_tile(code, other, false, values, made),
    }
}
