//! Fast conversion of rows, compiled once for a pair of formats.
//!
//! Three ways through, chosen by [`Conversion::new`]:
//!
//! 1. Codes mean the same on both sides: bytes are copied, RoPE pairs moved.
//! 2. An 8-bit code becomes an 8-bit code and scales are constant: every code has one answer, so the 256
//!    answers are computed beforehand.
//! 3. Otherwise blocks of rows go through `f32` scratch that stays in L1: a decode loop, a loop that
//!    moves RoPE pairs, an encode loop. With n elements that makes n decoders and n encoders, not n² pairs.
//!
//! The loops have no branches, so that the compiler vectorizes them; [`run`](Conversion::run) enters the same
//! source compiled for AVX2 where the CPU has it. What is rare (NaN, Inf, overflow) is only noticed in
//! the loops, by the greatest magnitude seen, and then looked at element by element.
//!
//! Results equal those of [`reference`](crate::reference) in every bit, scales and counts included. Multiplication and
//! addition are never fused, and division is division: x × (1/s) is used only where it is exact (s a power of
//! two) or where the engine itself computes so.
//!
//! # Unsafe
//!
//! One block: the call of the AVX2 function, after asking the CPU for AVX2.

use crate::element::Element;
use crate::format::{Counts, FormatError, Pairing, Rope, RowFormat, RowScale, ScaleRule};
use crate::format::{check, codes_agree, constant, movable, repairing, row_scale_max};

/// Converts rows of one format into rows of another.
///
/// Formats are resolved for one layer and head, so a model with a scale for each layer has a conversion for
/// each; equal ones are worth sharing, because 8-bit pairs compute 256 answers when compiled.
///
/// # Example
///
/// Two `bf16` elements become `e4m3fn` with scale 2; 3 is 1.5 × 2, and 1000 is beyond 448 × 2:
///
/// ```
/// use moai_translate::convert::Conversion;
/// use moai_translate::element::Element;
/// use moai_translate::format::{RowFormat, RowScale, ScaleRule};
///
/// let plain = |element, scale| RowFormat { element, scale, rule: ScaleRule::default(), rope: None };
/// let conversion = Conversion::new(
///     plain(Element::Bf16, RowScale::None),
///     plain(Element::E4m3fn, RowScale::Constant(2.0)),
///     2,
/// )?;
/// let mut codes = [0; 2];
/// let counts = conversion.run(1, &[0x40, 0x40, 0x7A, 0x44], &[], &mut codes, &mut []);
/// assert_eq!(codes, [0x3C, 0x7E]);
/// assert_eq!((counts.saturated, counts.nan), (1, 0));
/// # Ok::<(), moai_translate::format::FormatError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Conversion {
    source: RowFormat,
    target: RowFormat,
    /// Elements of a row.
    dim: usize,
    source_row_bytes: usize,
    target_row_bytes: usize,
    steps: Steps,
}

/// What is done to a row.
#[derive(Clone, Debug)]
enum Steps {
    /// Codes are copied, those of the rotary part to new places, and then replaced by their answers.
    Codes {
        moves: Option<Moves>,
        answers: Option<Box<Answers>>,
    },
    /// Decoded, the rotary part paired anew, encoded.
    Numbers { rope: Option<Rope> },
}

/// RoPE pairs moved as codes.
#[derive(Clone, Copy, Debug)]
struct Moves {
    pairing: Pairing,
    /// Codes of the rotary part.
    dims: usize,
    start_bytes: usize,
    width_bytes: usize,
}

impl Conversion {
    /// Compiles the conversion of rows of `dim` elements.
    ///
    /// # Errors
    ///
    /// - [`FormatError::EmptyRow`] and [`FormatError::RaggedRow`] if `dim` is no whole number of groups.
    /// - [`FormatError::ConstantScale`] if a constant scale is zero, negative, infinite or NaN.
    /// - [`FormatError::ScaledGroup`] if a grouped element is given a scale beside its own.
    /// - [`FormatError::NoRowScaleRule`] if row scales would have to be derived for an element for which no
    ///   engine says how.
    /// - [`FormatError::RopeRange`], [`FormatError::RopeMismatch`] and [`FormatError::RopeOneSided`] if the
    ///   rotary part is odd, beyond the row, or not the same on both sides.
    pub fn new(source: RowFormat, target: RowFormat, dim: u32) -> Result<Self, FormatError> {
        check(&source, &target, dim)?;
        let rope = repairing(&source, &target);
        let moves = rope.map(|rope| {
            let (start_bytes, width_bytes) = movable(source.element, &rope)?;
            let dims = rope.dims as usize;
            Some(Moves {
                pairing: rope.pairing,
                dims,
                start_bytes,
                width_bytes,
            })
        });
        let is_byte =
            |format: &RowFormat| format.element.group_bytes() == 1 && format.scale != RowScale::Row;
        let steps = match moves.map_or(Some(None), |moves| moves.map(Some)) {
            Some(moves) if codes_agree(&source, &target) => Steps::Codes {
                moves,
                answers: None,
            },
            Some(moves) if is_byte(&source) && is_byte(&target) => {
                let answers = Some(Box::new(Answers::compute(source, target)));
                Steps::Codes { moves, answers }
            }
            _ => Steps::Numbers { rope },
        };
        Ok(Self {
            source,
            target,
            dim: dim as usize,
            source_row_bytes: source.row_bytes(dim)? as usize,
            target_row_bytes: target.row_bytes(dim)? as usize,
            steps,
        })
    }

    /// Whether bytes, and row scales if there are any, are carried unchanged.
    pub fn is_identity(&self) -> bool {
        matches!(
            self.steps,
            Steps::Codes {
                moves: None,
                answers: None
            }
        )
    }

    /// Bytes of one source row, its row scale not included.
    pub fn source_row_bytes(&self) -> usize {
        self.source_row_bytes
    }

    /// Bytes of one target row, its row scale not included.
    pub fn target_row_bytes(&self) -> usize {
        self.target_row_bytes
    }

    /// Converts `rows` rows stored densely.
    ///
    /// `src_scales` and `dst_scales` hold one little-endian `f32` for each row where that side's scale is
    /// [`RowScale::Row`], and are empty elsewhere.
    ///
    /// Does not allocate for rows of up to 1024 elements; for longer ones, twice a row of `f32`.
    ///
    /// # Panics
    ///
    /// If a slice has not the length that `rows` asks for.
    pub fn run(
        &self,
        rows: usize,
        src: &[u8],
        src_scales: &[u8],
        dst: &mut [u8],
        dst_scales: &mut [u8],
    ) -> Counts {
        let scales = |format: &RowFormat| {
            if format.scale == RowScale::Row {
                4 * rows
            } else {
                0
            }
        };
        assert_eq!(
            src.len(),
            rows * self.source_row_bytes,
            "bytes of {rows} source rows"
        );
        assert_eq!(
            dst.len(),
            rows * self.target_row_bytes,
            "bytes of {rows} target rows"
        );
        assert_eq!(
            src_scales.len(),
            scales(&self.source),
            "bytes of {rows} source row scales"
        );
        assert_eq!(
            dst_scales.len(),
            scales(&self.target),
            "bytes of {rows} target row scales"
        );
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the function needs AVX2 and nothing else, and this CPU has it.
            return unsafe { self.run_avx2(src, src_scales, dst, dst_scales) };
        }
        self.run_here(src, src_scales, dst, dst_scales)
    }

    /// [`run`](Self::run) as every CPU of the architecture can, for comparison with what this one does.
    #[doc(hidden)]
    pub fn run_portable(
        &self,
        src: &[u8],
        src_scales: &[u8],
        dst: &mut [u8],
        dst_scales: &mut [u8],
    ) -> Counts {
        self.run_here(src, src_scales, dst, dst_scales)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn run_avx2(
        &self,
        src: &[u8],
        src_scales: &[u8],
        dst: &mut [u8],
        dst_scales: &mut [u8],
    ) -> Counts {
        self.run_here(src, src_scales, dst, dst_scales)
    }

    /// Inlined into each caller, with everything below, and so compiled for the caller's features.
    #[inline(always)]
    fn run_here(
        &self,
        src: &[u8],
        src_scales: &[u8],
        dst: &mut [u8],
        dst_scales: &mut [u8],
    ) -> Counts {
        match &self.steps {
            Steps::Codes { moves, answers } => {
                // Equal elements with row scales on both sides; otherwise both are empty.
                dst_scales.copy_from_slice(src_scales);
                match (moves, answers) {
                    (None, None) => {
                        dst.copy_from_slice(src);
                        Counts::default()
                    }
                    (moves, answers) => self.run_codes(*moves, answers.as_deref(), src, dst),
                }
            }
            Steps::Numbers { rope } => self.run_numbers(*rope, src, src_scales, dst, dst_scales),
        }
    }

    #[inline(always)]
    fn run_codes(
        &self,
        moves: Option<Moves>,
        answers: Option<&Answers>,
        src: &[u8],
        dst: &mut [u8],
    ) -> Counts {
        let row_bytes = self.source_row_bytes;
        let block_bytes = (CODES_IN_BLOCK / row_bytes).max(1) * row_bytes;
        let mut counts = Counts::default();
        for (src, dst) in src.chunks(block_bytes).zip(dst.chunks_mut(block_bytes)) {
            dst.copy_from_slice(src);
            if let Some(moves) = moves {
                for (src, dst) in src
                    .chunks_exact(row_bytes)
                    .zip(dst.chunks_exact_mut(row_bytes))
                {
                    moves.apply(src, dst);
                }
            }
            if let Some(answers) = answers {
                counts += answers.apply(src, dst);
            }
        }
        counts
    }

    #[inline(always)]
    fn run_numbers(
        &self,
        rope: Option<Rope>,
        src: &[u8],
        src_scales: &[u8],
        dst: &mut [u8],
        dst_scales: &mut [u8],
    ) -> Counts {
        let mut stack = [[0f32; NUMBERS_IN_BLOCK]; 2];
        let mut heap;
        let [first, second] = &mut stack;
        let (values, turned) = if self.dim <= NUMBERS_IN_BLOCK {
            (&mut first[..], &mut second[..])
        } else {
            heap = vec![0f32; 2 * self.dim];
            heap.split_at_mut(self.dim)
        };
        let block_rows = (NUMBERS_IN_BLOCK / self.dim).max(1);
        let quotient = Quotient::by(constant(self.target.scale));
        let mut src_scales = src_scales.chunks(4 * block_rows);
        let mut dst_scales = dst_scales.chunks_mut(4 * block_rows);
        let mut counts = Counts::default();
        let blocks = src.chunks(block_rows * self.source_row_bytes);
        for (src, dst) in blocks.zip(dst.chunks_mut(block_rows * self.target_row_bytes)) {
            let elements = src.len() / self.source_row_bytes * self.dim;
            let mut values = &mut values[..elements];
            decode(self.source.element, src, values);
            match self.source.scale {
                RowScale::Row => {
                    let scales = src_scales.next().unwrap_or_default().as_chunks::<4>().0;
                    for (row, scale) in values.chunks_exact_mut(self.dim).zip(scales) {
                        multiply(row, f32::from_le_bytes(*scale));
                    }
                }
                RowScale::Constant(scale) if scale != 1.0 => multiply(values, scale),
                _ => {}
            }
            if let Some(rope) = rope {
                let turned = &mut turned[..elements];
                turned.copy_from_slice(values);
                let range = rope.offset as usize..(rope.offset + rope.dims) as usize;
                let rows = values
                    .chunks_exact(self.dim)
                    .zip(turned.chunks_exact_mut(self.dim));
                for (from, to) in rows {
                    turn(rope.pairing, &from[range.clone()], &mut to[range.clone()]);
                }
                values = turned;
            }
            counts += if self.target.scale == RowScale::Row {
                let scales = dst_scales.next().unwrap_or_default().as_chunks_mut::<4>().0;
                let mut counts = Counts::default();
                let rows = values
                    .chunks_exact(self.dim)
                    .zip(dst.chunks_exact_mut(self.dim));
                for ((row, codes), scale) in rows.zip(scales) {
                    counts += encode_scaled_row(self.target.element, row, codes, scale);
                }
                counts
            } else {
                encode(&self.target, quotient, values, dst)
            };
        }
        counts
    }
}

impl Moves {
    /// Moves the rotary codes of one row.
    #[inline(always)]
    fn apply(&self, from: &[u8], to: &mut [u8]) {
        let range = self.start_bytes..self.start_bytes + self.dims * self.width_bytes;
        let (from, to) = (&from[range.clone()], &mut to[range]);
        match self.width_bytes {
            1 => turn(self.pairing, from, to),
            2 => turn(
                self.pairing,
                from.as_chunks::<2>().0,
                to.as_chunks_mut::<2>().0,
            ),
            4 => turn(
                self.pairing,
                from.as_chunks::<4>().0,
                to.as_chunks_mut::<4>().0,
            ),
            width => unreachable!("no element that stands alone has {width} bytes"),
        }
    }
}

/// Turns a rotary part of the given pairing into the other pairing.
#[inline(always)]
fn turn<T: Copy>(pairing: Pairing, from: &[T], to: &mut [T]) {
    let half = from.len() / 2;
    match pairing {
        Pairing::Half => {
            let (first, second) = from.split_at(half);
            for ((pair, a), b) in to.as_chunks_mut::<2>().0.iter_mut().zip(first).zip(second) {
                *pair = [*a, *b];
            }
        }
        Pairing::Interleaved => {
            let (first, second) = to.split_at_mut(half);
            for ((pair, a), b) in from.as_chunks::<2>().0.iter().zip(first).zip(second) {
                [*a, *b] = *pair;
            }
        }
    }
}

/// `f32` elements in a scratch block, of which there are two: 8 KiB of a 32 KiB L1 cache.
const NUMBERS_IN_BLOCK: usize = 1024;

/// 8-bit codes replaced at a time, while they are in L1; fits the fields of [`Answers::table`].
const CODES_IN_BLOCK: usize = 4096;

/// For every 8-bit source code its 8-bit target code.
#[derive(Clone, Debug)]
struct Answers {
    /// Code in bits 0..8, 1 in bit 8 if it saturates, 1 in bit 24 if it is NaN.
    table: [u32; 256],
    /// If few codes change or count, those: the source code and its entry. Padded with repetitions.
    exceptions: Option<[(u8, u32); 3]>,
}

impl Answers {
    fn compute(source: RowFormat, target: RowFormat) -> Self {
        let numbers = Conversion {
            source,
            target,
            dim: 1,
            source_row_bytes: 1,
            target_row_bytes: 1,
            steps: Steps::Numbers { rope: None },
        };
        let table = std::array::from_fn(|code| {
            let mut answer = [0];
            let counts = numbers.run(1, &[code as u8], &[], &mut answer, &mut []);
            u32::from(answer[0]) | (counts.saturated as u32) << 8 | (counts.nan as u32) << 24
        });
        let mut entries = (0..=255u8)
            .zip(table)
            .filter(|(code, entry)| *entry != u32::from(*code));
        let first = entries.next().unwrap_or((0, table[0]));
        let second = entries.next().unwrap_or(first);
        let third = entries.next().unwrap_or(first);
        let exceptions = entries.next().is_none().then_some([first, second, third]);
        Self { table, exceptions }
    }

    /// Replaces codes in place; `before` holds the same codes, in whatever order.
    #[inline(always)]
    fn apply(&self, before: &[u8], codes: &mut [u8]) -> Counts {
        let Some([a, b, c]) = self.exceptions else {
            let mut counts = Counts::default();
            for codes in codes.chunks_mut(CODES_IN_BLOCK) {
                let mut lost = 0;
                for code in codes {
                    let entry = self.table[usize::from(*code)];
                    lost += entry >> 8;
                    *code = entry as u8;
                }
                counts.saturated += u64::from(lost & 0xFFFF);
                counts.nan += u64::from(lost >> 16);
            }
            return counts;
        };
        // e4m3fn and e4m3fnuz with doubled scale, among others: bytes stay, but for three codes.
        let [count_a, count_b, count_c] = [a, b, c].map(|(_, entry)| u8::from(entry >> 8 != 0));
        let mut seen = 0;
        for code in codes {
            let old = *code;
            seen |= if old == a.0 { count_a } else { 0 };
            seen |= if old == b.0 { count_b } else { 0 };
            seen |= if old == c.0 { count_c } else { 0 };
            let mut new = old;
            new = if old == a.0 { a.1 as u8 } else { new };
            new = if old == b.0 { b.1 as u8 } else { new };
            new = if old == c.0 { c.1 as u8 } else { new };
            *code = new;
        }
        let mut counts = Counts::default();
        if seen != 0 {
            for code in before {
                let entry = self.table[usize::from(*code)];
                counts.saturated += u64::from(entry >> 8 & 1);
                counts.nan += u64::from(entry >> 24);
            }
        }
        counts
    }
}

/// Division of a row by the target's constant scale, in the cheapest form that gives the quotient's bits.
#[derive(Clone, Copy, Debug)]
enum Quotient {
    /// By 1.
    Same,
    /// By a power of two, as the exact product with its reciprocal.
    Times(f32),
    /// By anything else.
    Over(f32),
}

impl Quotient {
    fn by(scale: f32) -> Self {
        let is_power_of_two = scale.is_normal() && scale.to_bits() & 0x7F_FFFF == 0;
        match scale {
            1.0 => Self::Same,
            _ if is_power_of_two => Self::Times(1.0 / scale),
            _ => Self::Over(scale),
        }
    }
}

const MAGNITUDE: u32 = 0x7FFF_FFFF;
const INFINITY: u32 = 0x7F80_0000;

#[inline(always)]
fn multiply(values: &mut [f32], scale: f32) {
    for x in values {
        *x *= scale;
    }
}

/// The greatest finite magnitude (0 if there is none), and whether any element is Inf or NaN.
#[inline(always)]
fn finite_amax(values: &[f32]) -> (f32, bool) {
    // Magnitudes compare as their bits do, and integer max may be taken in any order.
    let mut worst = 0;
    for x in values {
        worst = worst.max(x.to_bits() & MAGNITUDE);
    }
    let special = worst >= INFINITY;
    if special {
        worst = 0;
        for x in values {
            let magnitude = x.to_bits() & MAGNITUDE;
            worst = worst.max(if magnitude < INFINITY { magnitude } else { 0 });
        }
    }
    (f32::from_bits(worst), special)
}

// ---------------------------------------------------------------- decoding

/// Numbers of codes or groups, row and constant scales not applied.
#[inline(always)]
fn decode(element: Element, codes: &[u8], values: &mut [f32]) {
    match element {
        Element::F32 => decode_each(codes, values, f32::from_le_bytes),
        Element::F16 => {
            decode_each(codes, values, |code| {
                F16::decode(u32::from(u16::from_le_bytes(code)))
            });
        }
        Element::Bf16 => decode_bf16(codes, values),
        Element::E4m3fn => decode_each(codes, values, |[code]| E4m3fn::decode(u32::from(code))),
        Element::E4m3fnuz => decode_each(codes, values, |[code]| E4m3fnuz::decode(u32::from(code))),
        Element::E5m2 => decode_each(codes, values, |[code]| E5m2::decode(u32::from(code))),
        Element::Int8 => decode_each(codes, values, |[code]| f32::from(code as i8)),
        Element::Q8_0 => {
            let groups = codes.as_chunks::<34>().0;
            for (group, values) in groups.iter().zip(values.as_chunks_mut::<32>().0) {
                let d = F16::decode(u32::from(u16::from_le_bytes([group[0], group[1]])));
                decode_each(&group[2..], values, |[code]| f32::from(code as i8) * d);
            }
        }
        Element::Carried(_) => unreachable!("values of an element without a codec"),
        Element::Fp8DsMla => {
            let records = codes.as_chunks::<656>().0;
            for (record, values) in records.iter().zip(values.as_chunks_mut::<576>().0) {
                let (tiles, rest) = record.split_at(512);
                let (scales, rope) = rest.split_at(16);
                let (latent, rotary) = values.split_at_mut(512);
                let tiles = tiles
                    .as_chunks::<128>()
                    .0
                    .iter()
                    .zip(latent.as_chunks_mut::<128>().0);
                for ((codes, values), scale) in tiles.zip(scales.as_chunks::<4>().0) {
                    let scale = f32::from_le_bytes(*scale);
                    decode_each(codes, values, |[code]| {
                        E4m3fn::decode(u32::from(code)) * scale
                    });
                }
                decode_bf16(rope, rotary);
            }
        }
    }
}

#[inline(always)]
fn decode_each<const WIDTH: usize>(
    codes: &[u8],
    values: &mut [f32],
    number: impl Fn([u8; WIDTH]) -> f32,
) {
    for (code, x) in codes.as_chunks::<WIDTH>().0.iter().zip(values) {
        *x = number(*code);
    }
}

#[inline(always)]
fn decode_bf16(codes: &[u8], values: &mut [f32]) {
    decode_each(codes, values, |code| {
        f32::from_bits(u32::from(u16::from_le_bytes(code)) << 16)
    });
}

// ---------------------------------------------------------------- encoding

/// An element that stands alone, as a target of the encode loop.
trait Target<const WIDTH: usize> {
    /// The code of NaN.
    const NAN: [u8; WIDTH];
    /// Bits of the greatest magnitude that is neither lost nor NaN.
    const WORST_HARMLESS: u32;

    /// The code of the number nearest to `y`; anything for NaN.
    fn code(y: f32) -> [u8; WIDTH];

    /// Whether `code(y)` lost the magnitude of `y`, which is not NaN, and came from `x` by division.
    fn saturates(x: f32, y: f32) -> bool;
}

/// Codes of numbers, by the format's own scales or its constant one.
#[inline(always)]
fn encode(target: &RowFormat, quotient: Quotient, values: &[f32], codes: &mut [u8]) -> Counts {
    match target.element {
        Element::F32 => encode_quotient::<F32, 4>(quotient, values, codes),
        Element::F16 => encode_quotient::<F16, 2>(quotient, values, codes),
        Element::Bf16 => encode_quotient::<Bf16, 2>(quotient, values, codes),
        Element::E4m3fn => encode_quotient::<E4m3fn, 1>(quotient, values, codes),
        Element::E4m3fnuz => encode_quotient::<E4m3fnuz, 1>(quotient, values, codes),
        Element::E5m2 => encode_quotient::<E5m2, 1>(quotient, values, codes),
        Element::Int8 => encode_quotient::<Int8, 1>(quotient, values, codes),
        Element::Q8_0 => {
            let mut counts = Counts::default();
            let groups = codes.as_chunks_mut::<34>().0;
            for (values, group) in values.as_chunks::<32>().0.iter().zip(groups) {
                counts += encode_q8_0(values, group);
            }
            counts
        }
        Element::Carried(_) => unreachable!("values of an element without a codec"),
        Element::Fp8DsMla => {
            let mut counts = Counts::default();
            let records = codes.as_chunks_mut::<656>().0;
            for (values, record) in values.as_chunks::<576>().0.iter().zip(records) {
                counts += encode_record(target.rule, values, record);
            }
            counts
        }
    }
}

#[inline(always)]
fn encode_quotient<T: Target<WIDTH>, const WIDTH: usize>(
    quotient: Quotient,
    values: &[f32],
    codes: &mut [u8],
) -> Counts {
    match quotient {
        Quotient::Same => encode_each::<T, WIDTH>(values, codes, |x| x),
        Quotient::Times(reciprocal) => encode_each::<T, WIDTH>(values, codes, |x| x * reciprocal),
        Quotient::Over(scale) => encode_each::<T, WIDTH>(values, codes, |x| x / scale),
    }
}

#[inline(always)]
fn encode_each<T: Target<WIDTH>, const WIDTH: usize>(
    values: &[f32],
    codes: &mut [u8],
    divide: impl Fn(f32) -> f32,
) -> Counts {
    let codes = codes.as_chunks_mut::<WIDTH>().0;
    let mut worst = 0;
    for (x, code) in values.iter().zip(&mut *codes) {
        let y = divide(*x);
        worst = worst.max(y.to_bits() & MAGNITUDE);
        *code = T::code(y);
    }
    let mut counts = Counts::default();
    if worst > T::WORST_HARMLESS {
        for (x, code) in values.iter().zip(codes) {
            let y = divide(*x);
            if y.is_nan() {
                counts.nan += 1;
                *code = T::NAN;
            } else {
                counts.saturated += u64::from(T::saturates(*x, y));
            }
        }
    }
    counts
}

/// One row with a scale derived from it, as vLLM's `per_token_head` kernels: x × (1/s), clamped.
#[inline(always)]
fn encode_scaled_row(
    element: Element,
    values: &[f32],
    codes: &mut [u8],
    stored: &mut [u8; 4],
) -> Counts {
    let Some(max) = row_scale_max(element) else {
        unreachable!("Conversion::new refuses {element} rows with derived scales")
    };
    let (amax, special) = finite_amax(values);
    let scale = (amax / max).max(1e-6);
    *stored = scale.to_le_bytes();
    let inverse = 1.0 / scale;
    let float = |x: f32| (x * inverse).clamp(-max, max);
    let codes = codes.as_chunks_mut::<1>().0;
    match element {
        Element::E4m3fn => encode_derived::<E4m3fn>(values, codes, special, float),
        Element::E4m3fnuz => encode_derived::<E4m3fnuz>(values, codes, special, float),
        _ => encode_derived::<Int8Away>(values, codes, special, |x| x * inverse),
    }
}

/// Numbers under a scale derived from the finite ones, of which therefore none saturates.
#[inline(always)]
fn encode_derived<T: Target<1>>(
    values: &[f32],
    codes: &mut [[u8; 1]],
    special: bool,
    divide: impl Fn(f32) -> f32,
) -> Counts {
    for (x, code) in values.iter().zip(&mut *codes) {
        *code = T::code(divide(*x));
    }
    let mut counts = Counts::default();
    if special {
        for (x, code) in values.iter().zip(codes) {
            counts.saturated += u64::from(x.is_infinite());
            if x.is_nan() {
                counts.nan += 1;
                *code = T::NAN;
            }
        }
    }
    counts
}

#[inline(always)]
fn encode_q8_0(values: &[f32; 32], group: &mut [u8; 34]) -> Counts {
    let (amax, special) = finite_amax(values);
    let d = amax / 127.0;
    let inverse = 1.0 / d;
    let inverse = if inverse < f32::INFINITY {
        inverse
    } else {
        0.0
    };
    let stored = F16::code(d);
    let ([first, second], codes) = group.split_first_chunk_mut::<2>().map_or_else(
        || unreachable!("34 bytes begin with 2"),
        |(d, codes)| (d, codes),
    );
    [*first, *second] = stored;
    for (x, code) in values.iter().zip(&mut *codes) {
        let y = x * inverse;
        // Beyond 2^23 there are only whole numbers, so the sum rounds |y| to one, ties to even, and has it
        // in its low bits. |y| is 127 and a little at most.
        let sum = y.abs() + TWO_POW_23;
        let tie_went_down = y.abs() - (sum - TWO_POW_23) == 0.5;
        let magnitude = sum.to_bits() as u8 as u32 + u32::from(tie_went_down);
        *code = with_sign(magnitude, y);
    }
    let mut counts = Counts::default();
    let overflow = u16::from_le_bytes(stored) == 0x7C00;
    if special || overflow {
        for (x, code) in values.iter().zip(codes) {
            if x.is_nan() {
                counts.nan += 1;
                *code = 0;
            } else if x.is_infinite() {
                counts.saturated += 1;
                *code = with_sign(127, *x);
            } else {
                counts.saturated += u64::from(overflow);
            }
        }
    }
    counts
}

#[inline(always)]
fn encode_record(rule: ScaleRule, values: &[f32; 576], record: &mut [u8; 656]) -> Counts {
    let (tiles, rest) = record.split_at_mut(512);
    let (scales, rope) = rest.split_at_mut(16);
    let (latent, rotary) = values.split_at(512);
    let mut counts = Counts::default();
    let tiles = latent
        .as_chunks::<128>()
        .0
        .iter()
        .zip(tiles.as_chunks_mut::<128>().0);
    for ((values, codes), stored) in tiles.zip(scales.as_chunks_mut::<4>().0) {
        let (amax, special) = finite_amax(values);
        let scale = match rule {
            ScaleRule::AmaxOver448 => (amax / 448.0).max(f32::MIN_POSITIVE),
            ScaleRule::Pow2 => {
                let bits = (amax / 448.0).max(1e-4).to_bits();
                // Up to the next exponent, unless it is a power of two already.
                f32::from_bits((bits + 0x7F_FFFF) & !0x7F_FFFF)
            }
        };
        *stored = scale.to_le_bytes();
        let codes = codes.as_chunks_mut::<1>().0;
        counts += encode_derived::<E4m3fn>(values, codes, special, |x| x / scale);
    }
    counts + encode_each::<Bf16, 2>(rotary, rope, |x| x)
}

const TWO_POW_23: f32 = 8_388_608.0;

/// Two's complement of a magnitude with the sign of `y`.
#[inline(always)]
fn with_sign(magnitude: u32, y: f32) -> u8 {
    let mask = ((y.to_bits() as i32) >> 31) as u32;
    ((magnitude ^ mask).wrapping_sub(mask)) as u8
}

// ---------------------------------------------------------------- elements

struct F32;

impl Target<4> for F32 {
    const NAN: [u8; 4] = 0x7FC0_0000u32.to_le_bytes();
    const WORST_HARMLESS: u32 = INFINITY - 1;

    #[inline(always)]
    fn code(y: f32) -> [u8; 4] {
        y.to_le_bytes()
    }

    #[inline(always)]
    fn saturates(x: f32, y: f32) -> bool {
        x.is_finite() && y.is_infinite()
    }
}

struct Bf16;

impl Target<2> for Bf16 {
    const NAN: [u8; 2] = 0x7FC0u16.to_le_bytes();
    /// What is above rounds to Inf.
    const WORST_HARMLESS: u32 = 0x7F7F_7FFF;

    #[inline(always)]
    fn code(y: f32) -> [u8; 2] {
        let bits = y.to_bits();
        let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
        ((rounded >> 16) as u16).to_le_bytes()
    }

    #[inline(always)]
    fn saturates(x: f32, y: f32) -> bool {
        x.is_finite() && y.to_bits() & MAGNITUDE > Self::WORST_HARMLESS
    }
}

/// `int8` with a constant scale: half to even, ±127.
struct Int8;

impl Target<1> for Int8 {
    const NAN: [u8; 1] = [0];
    /// The last number below 127.5, which rounds to 128.
    const WORST_HARMLESS: u32 = 127.5f32.to_bits() - 1;

    #[inline(always)]
    fn code(y: f32) -> [u8; 1] {
        // 1.5 × 2^23: as in encode_q8_0, with room for the sign; the low byte is two's complement.
        [(y.clamp(-127.0, 127.0) + 1.5 * TWO_POW_23).to_bits() as u8]
    }

    #[inline(always)]
    fn saturates(_x: f32, y: f32) -> bool {
        y.to_bits() & MAGNITUDE > Self::WORST_HARMLESS
    }
}

/// `int8` with a row scale: trunc(clamp(y ± 0.5, −128, 127)), as vLLM rounds half away from zero.
struct Int8Away;

impl Target<1> for Int8Away {
    const NAN: [u8; 1] = [0];
    const WORST_HARMLESS: u32 = 127.5f32.to_bits() - 1;

    #[inline(always)]
    fn code(y: f32) -> [u8; 1] {
        let negative = y.to_bits() >> 31;
        let limit = 127.0 + negative as i32 as f32;
        let raised = y.abs() + 0.5;
        let raised = if raised > limit { limit } else { raised };
        let sum = raised + TWO_POW_23;
        let went_up = sum - TWO_POW_23 > raised;
        [with_sign(
            (sum.to_bits() as u8 as u32).wrapping_sub(u32::from(went_up)),
            y,
        )]
    }

    #[inline(always)]
    fn saturates(_x: f32, y: f32) -> bool {
        y.to_bits() & MAGNITUDE > Self::WORST_HARMLESS
    }
}

/// A float narrower than `f32` in both exponent and mantissa: sign, exponent, mantissa, from the highest bit.
trait SmallFloat {
    /// Mantissa bits.
    const MAN: u32;
    const BIAS: u32;
    /// The highest bit.
    const SIGN: u32;
    /// Code of the greatest finite number.
    const GREATEST: u32;
    /// Code of NaN that is written.
    const NAN: u32;
    /// What is beyond the greatest number becomes this.
    const OVER: u32;
    /// False in `fnuz` formats, where that code is NaN.
    const NEGATIVE_ZERO: bool = true;

    /// Added to an exponent of this format it is that of an `f32`; shifted to its place.
    const REBIAS: u32 = (127 - Self::BIAS) << 23;
    /// Bits by which an `f32` mantissa is longer.
    const SHIFT: u32 = 23 - Self::MAN;
    /// Bits, as `f32`, of the least normal number.
    const LEAST_NORMAL: u32 = Self::REBIAS + (1 << 23);
    /// Bits, as `f32`, of half a step beyond the greatest number.
    const OVERFLOW: u32 = (Self::GREATEST << Self::SHIFT) + (1 << (Self::SHIFT - 1)) + Self::REBIAS;
    /// Bits of the greatest magnitude that rounds to a finite one: half a step more, if the tie is to even.
    const LAST_IN_RANGE: u32 = Self::OVERFLOW - (Self::GREATEST & 1);

    /// The number of a code.
    ///
    /// Without compare and select, which cost more than arithmetic: below the least normal number the
    /// normal part stays there and the subnormal part falls from it to zero; above, the other way round.
    #[inline(always)]
    fn decode(code: u32) -> f32 {
        const IMPLIED: u32 = 1 << 23;
        let magnitude = code & (Self::SIGN - 1);
        let shifted = magnitude << Self::SHIFT;
        let normal = f32::from_bits(shifted.max(IMPLIED) + Self::REBIAS);
        let two_least = f32::from_bits(Self::LEAST_NORMAL + IMPLIED);
        let subnormal = f32::from_bits(shifted.min(IMPLIED) + Self::LEAST_NORMAL) - two_least;
        let finite = (normal + subnormal).to_bits();
        // All exponent bits: Inf or NaN by the mantissa, which is not zero where there is no Inf.
        let special = if magnitude > Self::GREATEST {
            INFINITY
        } else {
            0
        };
        let no_zero = !Self::NEGATIVE_ZERO && code == Self::SIGN;
        let nan = if no_zero { INFINITY | 1 << 22 } else { 0 };
        let sign = (code & Self::SIGN) << (31 - Self::SIGN.trailing_zeros());
        f32::from_bits(finite | special | nan | sign)
    }

    /// The code of the number nearest to `y`, ties to even; anything for NaN.
    ///
    /// In two parts, as [`decode`](Self::decode).
    #[inline(always)]
    fn encode(y: f32) -> u32 {
        let bits = y.to_bits();
        let magnitude = (bits & MAGNITUDE).min((Self::OVER << Self::SHIFT) + Self::REBIAS);
        let upper = magnitude.max(Self::LEAST_NORMAL);
        let odd = upper >> Self::SHIFT & 1;
        let normal = (upper + ((1 << (Self::SHIFT - 1)) - 1) + odd) >> Self::SHIFT;
        // The last mantissa bit of this sum is worth the least subnormal, so that adding rounds to it.
        let unit = f32::from_bits((127 + 24 - Self::BIAS - Self::MAN) << 23);
        let subnormal = f32::from_bits(magnitude.min(Self::LEAST_NORMAL)) + unit;
        let both = unit.to_bits() + (Self::LEAST_NORMAL >> Self::SHIFT);
        let code = normal.wrapping_add(subnormal.to_bits()).wrapping_sub(both);
        // Zero has no sign bit to take from its negative.
        let signs = if Self::NEGATIVE_ZERO {
            bits
        } else {
            bits & code.wrapping_neg()
        };
        code | (signs >> 31 << Self::SIGN.trailing_zeros())
    }
}

struct F16;
impl SmallFloat for F16 {
    const MAN: u32 = 10;
    const BIAS: u32 = 15;
    const SIGN: u32 = 0x8000;
    const GREATEST: u32 = 0x7BFF;
    const NAN: u32 = 0x7E00;
    const OVER: u32 = 0x7C00;
}

struct E4m3fn;
impl SmallFloat for E4m3fn {
    const MAN: u32 = 3;
    const BIAS: u32 = 7;
    const SIGN: u32 = 0x80;
    const GREATEST: u32 = 0x7E;
    const NAN: u32 = 0x7F;
    const OVER: u32 = 0x7E;
}

struct E4m3fnuz;
impl SmallFloat for E4m3fnuz {
    const MAN: u32 = 3;
    const BIAS: u32 = 8;
    const SIGN: u32 = 0x80;
    const GREATEST: u32 = 0x7F;
    const NAN: u32 = 0x80;
    const OVER: u32 = 0x7F;
    const NEGATIVE_ZERO: bool = false;
}

struct E5m2;
impl SmallFloat for E5m2 {
    const MAN: u32 = 2;
    const BIAS: u32 = 15;
    const SIGN: u32 = 0x80;
    const GREATEST: u32 = 0x7B;
    const NAN: u32 = 0x7F;
    const OVER: u32 = 0x7B;
}

/// A [`SmallFloat`] of 8 bits, which saturates as a target.
trait Float8: SmallFloat {}
impl Float8 for E4m3fn {}
impl Float8 for E4m3fnuz {}
impl Float8 for E5m2 {}

impl<F: Float8> Target<1> for F {
    const NAN: [u8; 1] = [<F as SmallFloat>::NAN as u8];
    const WORST_HARMLESS: u32 = F::LAST_IN_RANGE;

    #[inline(always)]
    fn code(y: f32) -> [u8; 1] {
        [F::encode(y) as u8]
    }

    #[inline(always)]
    fn saturates(_x: f32, y: f32) -> bool {
        y.to_bits() & MAGNITUDE > F::LAST_IN_RANGE
    }
}

impl Target<2> for F16 {
    const NAN: [u8; 2] = (<Self as SmallFloat>::NAN as u16).to_le_bytes();
    const WORST_HARMLESS: u32 = Self::LAST_IN_RANGE;

    #[inline(always)]
    fn code(y: f32) -> [u8; 2] {
        (Self::encode(y) as u16).to_le_bytes()
    }

    #[inline(always)]
    fn saturates(x: f32, y: f32) -> bool {
        x.is_finite() && y.to_bits() & MAGNITUDE > Self::LAST_IN_RANGE
    }
}
