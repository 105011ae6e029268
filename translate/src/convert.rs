//! Fast conversion of rows, compiled once for a pair of formats.
//!
//! Six ways through, chosen by [`Conversion::new`]:
//!
//! 1. Codes mean the same on both sides: bytes are copied, RoPE pairs moved.
//! 2. An 8-bit code becomes an 8-bit code and scales are constant: every code has one answer, so the 256
//!    answers are computed beforehand.
//! 3. Elements stand alone on both sides: one loop reads, scales, rounds and writes.
//! 4. Scales that the target can hold are kept, and codes replaced by their answers.
//! 5. `bf16` becomes blocks, and blocks `bf16`, without a detour through `f32` where there are loops for the blocks.
//! 6. Otherwise blocks of rows go through `f32` scratch that stays in L1: decoded, turned, encoded. With n elements
//!    that makes n decoders and n encoders, not n² pairs.
//!
//! The loops are in [`cpu`](crate::cpu), compiled for each [`Level`]. Results equal those of
//! [`reference`](crate::reference) in every bit, params and counts included, at every level.

use crate::block::{self, OfBf16, ToBf16};
use crate::cpu::Flow;
use crate::cpu::level::{Level, at_each_level};
use crate::cpu::number::{self, Quotient};
use crate::cpu::table::Converter;
use crate::element::Element;
use crate::format::{Carriage, Counts, FormatError, Pairing, Rope, RowFormat, Turns};
use crate::format::{carriage, check, constant, turns};
use crate::keep::Keep;
use crate::number::Number;
use crate::packing;
use crate::scheme::{Coding, Packing};

/// Converts rows of one format into rows of another.
///
/// Formats are resolved for one layer and head, so a model with a scale for each layer has a conversion for
/// each; equal ones are worth sharing, because some compute answers for all codes when compiled.
///
/// # Example
///
/// Two `bf16` elements become `e4m3fn` with scale 2; 3 is 1.5 × 2, and 1000 is beyond 448 × 2:
///
/// ```
/// use moai_translate::convert::Conversion;
/// use moai_translate::element::Element;
/// use moai_translate::format::{RowFormat, RowScale};
///
/// let scaled = RowFormat { scale: RowScale::Constant(2.0), ..RowFormat::of(Element::E4M3FN) };
/// let conversion = Conversion::new(RowFormat::of(Element::BF16), scaled, 2)?;
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
    source_params_bytes: usize,
    target_params_bytes: usize,
    steps: Steps,
    level: Level,
}

/// What is done to a row.
#[derive(Clone, Debug)]
enum Steps {
    /// Codes are copied, those of the rotary part to new places, and then replaced by their answers.
    Codes {
        moves: Option<Moves>,
        answers: Option<Box<Converter>>,
    },
    /// Elements that stand alone on both sides, in bytes of their own, and stay where they are.
    Alone(Box<Converter>),
    /// Plain `bf16` into blocks that are made of it without a detour through `f32`.
    Blocks(OfBf16),
    /// Blocks into plain `bf16` likewise.
    Unblocked(Box<ToBf16>),
    /// Decoded, turned, encoded, but for what keeps its scale.
    Numbers {
        turns: Turns,
        quotient: Quotient,
        keep: Option<Box<Keep>>,
    },
}

/// RoPE pairs moved as codes.
#[derive(Clone, Copy, Debug)]
struct Moves {
    rope: Rope,
    number: Number,
    packing: Packing,
    start_byte: usize,
    /// Codes from `start_byte` on, of which the rotary part begins at the `first`.
    elements: usize,
    first: usize,
}

impl Conversion {
    /// Compiles the conversion of rows of `dim` elements.
    ///
    /// # Errors
    ///
    /// - [`FormatError::EmptyRow`], [`FormatError::RaggedRow`] and [`FormatError::Unfit`] if `dim` is no whole number
    ///   of groups, or cannot be coded for another reason.
    /// - [`FormatError::ConstantScale`] if a constant scale is zero, negative, infinite or NaN.
    /// - [`FormatError::ScaledGroup`] if a grouped element is given a scale beside its own.
    /// - [`FormatError::NoRowScaleRule`] if row scales would have to be derived for an element for which no
    ///   engine says how.
    /// - [`FormatError::ReadOnly`] if the target's element can only be read.
    /// - [`FormatError::Unrotatable`] if a rotation does not fit the row.
    /// - [`FormatError::RopeRange`], [`FormatError::RopeMismatch`] and [`FormatError::RopeOneSided`] if the
    ///   rotary part is odd, beyond the row, or not the same on both sides.
    /// - [`FormatError::RopeSplitsGroup`] if codes that could be carried would have to be quantized again because
    ///   their pairing changes.
    pub fn new(source: RowFormat, target: RowFormat, dim: u32) -> Result<Self, FormatError> {
        check(&source, &target, dim)?;
        Ok(Self {
            source,
            target,
            dim: dim as usize,
            source_row_bytes: source.row_bytes(dim)? as usize,
            target_row_bytes: target.row_bytes(dim)? as usize,
            source_params_bytes: source.params_bytes(dim) as usize,
            target_params_bytes: target.params_bytes(dim) as usize,
            steps: Steps::choose(&source, &target, dim, Level::best()),
            level: Level::best(),
        })
    }

    /// The same conversion with the loops of another level, which this CPU must have.
    #[must_use]
    pub fn at_level(self, level: Level) -> Self {
        assert!(level <= Level::best(), "this CPU has not {level:?}");
        let steps = Steps::choose(&self.source, &self.target, self.dim as u32, level);
        Self {
            level,
            steps,
            ..self
        }
    }

    /// Whether bytes, and params if there are any, are carried unchanged.
    pub fn is_identity(&self) -> bool {
        matches!(
            self.steps,
            Steps::Codes {
                moves: None,
                answers: None
            }
        )
    }

    /// Bytes of one source row, what is kept apart from it not included.
    pub fn source_row_bytes(&self) -> usize {
        self.source_row_bytes
    }

    /// Bytes of one target row, what is kept apart from it not included.
    pub fn target_row_bytes(&self) -> usize {
        self.target_row_bytes
    }

    /// Bytes that one source row keeps apart: its row scale, or the params of its element.
    pub fn source_params_bytes(&self) -> usize {
        self.source_params_bytes
    }

    /// Bytes that one target row keeps apart.
    pub fn target_params_bytes(&self) -> usize {
        self.target_params_bytes
    }

    /// Converts `rows` rows stored densely.
    ///
    /// `src_params` and `dst_params` hold what each row keeps apart from its codes, row after row, and are empty
    /// where that side's rows keep nothing apart.
    ///
    /// Does not allocate for rows of up to 1024 elements of the formats that whole caches are made of.
    ///
    /// # Panics
    ///
    /// If a slice has not the length that `rows` asks for.
    pub fn run(
        &self,
        rows: usize,
        src: &[u8],
        src_params: &[u8],
        dst: &mut [u8],
        dst_params: &mut [u8],
    ) -> Counts {
        self.run_in(Flow::default(), rows, src, src_params, dst, dst_params)
    }

    /// Whether the loops fetch what a [`Flow`] has them fetch.
    pub(crate) fn fetches(&self) -> bool {
        matches!(self.steps, Steps::Blocks(_)) || self.converter().is_some_and(Converter::fetches)
    }

    /// Whether the loops store as a [`Flow`] has them store.
    pub(crate) fn streams(&self) -> bool {
        self.converter().is_some_and(Converter::streams)
    }

    /// What makes each code, if it is all that is done.
    fn converter(&self) -> Option<&Converter> {
        match &self.steps {
            Steps::Alone(converter) => Some(converter),
            Steps::Codes {
                moves: None,
                answers,
            } => answers.as_deref(),
            _ => None,
        }
    }

    /// [`run`](Self::run), which goes about memory as told as far as it can: [`fetches`](Self::fetches),
    /// [`streams`](Self::streams).
    pub(crate) fn run_in(
        &self,
        flow: Flow,
        rows: usize,
        src: &[u8],
        src_params: &[u8],
        dst: &mut [u8],
        dst_params: &mut [u8],
    ) -> Counts {
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
            src_params.len(),
            rows * self.source_params_bytes,
            "params of {rows} source rows"
        );
        assert_eq!(
            dst_params.len(),
            rows * self.target_params_bytes,
            "params of {rows} target rows"
        );
        match &self.steps {
            Steps::Codes { moves, answers } => {
                // Equal elements on both sides, or no params on either.
                dst_params.copy_from_slice(src_params);
                match (moves, answers) {
                    (None, None) => {
                        dst.copy_from_slice(src);
                        Counts::default()
                    }
                    (moves, answers) => {
                        self.run_codes(flow, moves.as_ref(), answers.as_deref(), src, dst)
                    }
                }
            }
            Steps::Alone(converter) => converter.run(flow, src, dst),
            Steps::Blocks(blocks) => blocks.encode(self.level, flow, src, dst, dst_params),
            Steps::Unblocked(blocks) => blocks.decode(self.level, src, src_params, dst),
            Steps::Numbers {
                turns,
                quotient,
                keep,
            } => {
                let Some(keep) = keep.as_deref() else {
                    let quotient = *quotient;
                    return self
                        .run_numbers(turns, quotient, None, src, src_params, dst, dst_params);
                };
                let mut counts = Counts::default();
                for start in (0..rows).step_by(keep.rows_at_once()) {
                    let rows = start..rows.min(start + keep.rows_at_once());
                    let part = |bytes: usize| rows.start * bytes..rows.end * bytes;
                    let (src, src_params) = (
                        &src[part(self.source_row_bytes)],
                        &src_params[part(self.source_params_bytes)],
                    );
                    let (dst, params) = (
                        &mut dst[part(self.target_row_bytes)],
                        &mut dst_params[part(self.target_params_bytes)],
                    );
                    let flat = keep.flat_rows(self.level, src, src_params, dst, params);
                    counts += flat.unwrap_or_else(|| {
                        let keep = Some(keep);
                        self.run_numbers(turns, *quotient, keep, src, src_params, dst, params)
                    });
                }
                counts
            }
        }
    }

    fn run_codes(
        &self,
        flow: Flow,
        moves: Option<&Moves>,
        answers: Option<&Converter>,
        src: &[u8],
        dst: &mut [u8],
    ) -> Counts {
        let row_bytes = self.source_row_bytes;
        let block_bytes = (CODES_IN_BLOCK / row_bytes).max(1) * row_bytes;
        let mut counts = Counts::default();
        for (src, dst) in src.chunks(block_bytes).zip(dst.chunks_mut(block_bytes)) {
            if let (None, Some(answers)) = (moves, answers) {
                counts += answers.run(flow, src, dst);
                continue;
            }
            dst.copy_from_slice(src);
            if let Some(moves) = moves {
                for (src, dst) in src
                    .chunks_exact(row_bytes)
                    .zip(dst.chunks_exact_mut(row_bytes))
                {
                    moves.apply(self.level, src, dst);
                }
            }
            if let Some(answers) = answers {
                let mut moved = [0; CODES_IN_BLOCK];
                for dst in dst.chunks_mut(CODES_IN_BLOCK) {
                    let moved = &mut moved[..dst.len()];
                    moved.copy_from_slice(dst);
                    counts += answers.run(Flow::default(), moved, dst);
                }
            }
        }
        counts
    }

    #[allow(clippy::too_many_arguments, reason = "what a step needs, and rows")]
    fn run_numbers(
        &self,
        turns: &Turns,
        quotient: Quotient,
        keep: Option<&Keep>,
        src: &[u8],
        src_params: &[u8],
        dst: &mut [u8],
        dst_params: &mut [u8],
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
        let mut counts = Counts::default();
        let rows = src.len() / self.source_row_bytes;
        for start in (0..rows).step_by(block_rows) {
            let rows = start..rows.min(start + block_rows);
            let part = |bytes: usize| rows.start * bytes..rows.end * bytes;
            let (src, src_params) = (
                &src[part(self.source_row_bytes)],
                &src_params[part(self.source_params_bytes)],
            );
            let (dst, params) = (
                &mut dst[part(self.target_row_bytes)],
                &mut dst_params[part(self.target_params_bytes)],
            );
            let kept = keep.and_then(|keep| {
                self.each_row(
                    rows.len(),
                    src,
                    src_params,
                    dst,
                    params,
                    |[codes, scales], [out, out_scales]| {
                        keep.whole_row(self.level, codes, scales, out, out_scales)
                    },
                )
            });
            if let Some(kept) = kept {
                counts += kept;
                continue;
            }
            let mut values = &mut values[..rows.len() * self.dim];
            self.decode(src, src_params, values);
            if let Some(rotation) = turns.undo {
                values
                    .chunks_exact_mut(self.dim)
                    .for_each(|row| rotation.undo(row));
            }
            if let Some(rope) = turns.rope {
                let turned = &mut turned[..values.len()];
                turned.copy_from_slice(values);
                let range = rope.offset as usize..(rope.offset + rope.dims) as usize;
                for (from, to) in values
                    .chunks_exact(self.dim)
                    .zip(turned.chunks_exact_mut(self.dim))
                {
                    turn_f32(
                        self.level,
                        rope.pairing,
                        &from[range.clone()],
                        &mut to[range.clone()],
                    );
                }
                values = turned;
            }
            if let Some(rotation) = turns.apply {
                values
                    .chunks_exact_mut(self.dim)
                    .for_each(|row| rotation.apply(row));
            }
            if let Some(keep) = keep {
                for (row, values) in values.chunks_exact_mut(self.dim).enumerate() {
                    let (bytes, each) = (self.source_row_bytes, self.source_params_bytes);
                    keep.take_out(
                        &src[row * bytes..][..bytes],
                        &src_params[row * each..][..each],
                        values,
                    );
                }
            }
            counts += self.encode(quotient, values, dst, params);
            if let Some(keep) = keep {
                let put_in = self.each_row(
                    rows.len(),
                    src,
                    src_params,
                    dst,
                    params,
                    |[codes, scales], [out, out_scales]| {
                        Some(keep.put_in(self.level, codes, scales, out, out_scales))
                    },
                );
                counts += put_in.unwrap_or_default();
            }
        }
        counts
    }

    /// Passes the codes and params of both sides row by row, until one returns `None`.
    fn each_row(
        &self,
        rows: usize,
        src: &[u8],
        src_params: &[u8],
        dst: &mut [u8],
        dst_params: &mut [u8],
        mut each: impl FnMut([&[u8]; 2], [&mut [u8]; 2]) -> Option<Counts>,
    ) -> Option<Counts> {
        let mut counts = Counts::default();
        for row in 0..rows {
            let part = |bytes: usize| row * bytes..(row + 1) * bytes;
            counts += each(
                [
                    &src[part(self.source_row_bytes)],
                    &src_params[part(self.source_params_bytes)],
                ],
                [
                    &mut dst[part(self.target_row_bytes)],
                    &mut dst_params[part(self.target_params_bytes)],
                ],
            )?;
        }
        Some(counts)
    }

    /// Numbers of source rows, rotated if the source is.
    fn decode(&self, codes: &[u8], params: &[u8], values: &mut [f32]) {
        let (level, format, dim) = (self.level, &self.source, self.dim);
        if let Some(block) = format.block(dim as u32) {
            return block::decode(level, format, &block, dim, codes, params, values);
        }
        if let Coding::Custom(codec) = format.element.scheme().coding {
            for (row, values) in values.chunks_exact_mut(dim).enumerate() {
                let (bytes, each) = (self.source_row_bytes, self.source_params_bytes);
                codec.decode(
                    &codes[row * bytes..][..bytes],
                    &params[row * each..][..each],
                    values,
                );
            }
            return;
        }
        let (number, packing) = alone(format.element);
        let multiply = constant(format.scale);
        if packing == Packing::Bytes {
            return number::decode(level, number, codes, multiply, values);
        }
        let mut apart = [0; NUMBERS_IN_BLOCK];
        let share = packing.multiple(number) as usize;
        let chunk = NUMBERS_IN_BLOCK / share * share;
        let bytes = packing.bytes(number, chunk as u32) as usize;
        for (codes, values) in codes.chunks(bytes).zip(values.chunks_mut(chunk)) {
            let apart = &mut apart[..values.len()];
            packing::unpack_fast(level, packing, number, codes, apart);
            number::decode(level, number, apart, multiply, values);
        }
    }

    /// Target rows of numbers, rotated if the target is.
    fn encode(
        &self,
        quotient: Quotient,
        values: &[f32],
        codes: &mut [u8],
        params: &mut [u8],
    ) -> Counts {
        let (level, format, dim) = (self.level, &self.target, self.dim);
        if let Some(block) = format.block(dim as u32) {
            return block::encode(level, format, &block, dim, values, codes, params);
        }
        let mut counts = Counts::default();
        if let Coding::Custom(codec) = format.element.scheme().coding {
            for (row, values) in values.chunks_exact(dim).enumerate() {
                let (bytes, each) = (self.target_row_bytes, self.target_params_bytes);
                let (codes, params) = (
                    &mut codes[row * bytes..][..bytes],
                    &mut params[row * each..][..each],
                );
                counts += codec.encode(format.rule, values, codes, params);
            }
            return counts;
        }
        let (number, packing) = alone(format.element);
        if packing == Packing::Bytes {
            return number::encode(level, number, format.overflow, quotient, values, codes);
        }
        let mut apart = [0; NUMBERS_IN_BLOCK];
        let share = packing.multiple(number) as usize;
        let chunk = NUMBERS_IN_BLOCK / share * share;
        let bytes = packing.bytes(number, chunk as u32) as usize;
        for (codes, values) in codes.chunks_mut(bytes).zip(values.chunks(chunk)) {
            let apart = &mut apart[..values.len()];
            counts += number::encode(level, number, format.overflow, quotient, values, apart);
            packing::pack_fast(level, packing, number, apart, codes);
        }
        counts
    }
}

impl Steps {
    fn choose(source: &RowFormat, target: &RowFormat, dim: u32, level: Level) -> Self {
        match carriage(source, target, dim) {
            Carriage::Same => {
                return Self::Codes {
                    moves: None,
                    answers: None,
                };
            }
            Carriage::Moved {
                rope,
                number,
                packing,
                start_byte,
                elements,
                first,
            } => {
                let moves = Some(Moves {
                    rope,
                    number,
                    packing,
                    start_byte,
                    elements,
                    first,
                });
                return Self::Codes {
                    moves,
                    answers: None,
                };
            }
            Carriage::Numbers => {}
        }
        let turns = turns(source, target, dim);
        let still = turns.undo.is_none() && turns.apply.is_none();
        let stands = |format: &RowFormat| {
            let (number, packing) = format.element.number()?;
            (packing == Packing::Bytes && format.block(dim).is_none()).then_some(number)
        };
        let quotient = |from: Option<Number>| match (from, target.element.number()) {
            (Some(from), Some((to, _))) if turns.undo.is_none() && turns.apply.is_none() => {
                number::cheapest_quotient(from, constant(source.scale), to, constant(target.scale))
            }
            _ => Quotient::exact(constant(target.scale)),
        };
        let converter = |from, to| {
            let (multiply, quotient) = (constant(source.scale), quotient(Some(from)));
            Box::new(Converter::new(
                level,
                from,
                multiply,
                to,
                target.overflow,
                quotient,
            ))
        };
        match (stands(source), stands(target)) {
            (Some(from), Some(to)) if still && from.bytes() == 1 && to.bytes() == 1 => {
                let moves = turns.rope.map(|rope| Moves {
                    rope,
                    number: from,
                    packing: Packing::Bytes,
                    start_byte: rope.offset as usize,
                    elements: rope.dims as usize,
                    first: 0,
                });
                let answers = Some(converter(from, to));
                Self::Codes { moves, answers }
            }
            (Some(from), Some(to)) if still && turns.rope.is_none() => {
                Self::Alone(converter(from, to))
            }
            (Some(Number::Bf16), None)
                if still && turns.rope.is_none() && constant(source.scale) == 1.0 =>
            {
                let block = target.block(dim);
                match block.and_then(|block| OfBf16::new(level, target, &block, dim)) {
                    Some(blocks) => Self::Blocks(blocks),
                    None => Self::Numbers {
                        turns,
                        quotient: quotient(Some(Number::Bf16)),
                        keep: None,
                    },
                }
            }
            (None, Some(Number::Bf16))
                if still
                    && turns.rope.is_none()
                    && constant(target.scale) == 1.0
                    && let Some(block) = source.block(dim)
                    && let Some(blocks) = ToBf16::new(level, source, &block, dim) =>
            {
                Self::Unblocked(Box::new(blocks))
            }
            (from, _) => {
                let keep = Keep::new(source, target, dim).map(Box::new);
                Self::Numbers {
                    turns,
                    quotient: quotient(from),
                    keep,
                }
            }
        }
    }
}

fn alone(element: Element) -> (Number, Packing) {
    element
        .number()
        .expect("other codings have been dealt with")
}

impl Moves {
    /// Moves the rotary codes of one row.
    fn apply(&self, level: Level, from: &[u8], to: &mut [u8]) {
        let bytes = self.packing.bytes(self.number, self.elements as u32) as usize;
        let range = self.start_byte..self.start_byte + bytes;
        let (from, to) = (&from[range.clone()], &mut to[range]);
        let pairing = self.rope.pairing;
        match (self.packing, self.number.bytes()) {
            (Packing::Bytes, 1) => turn_u8(level, pairing, from, to),
            (Packing::Bytes, 2) => {
                turn_u16(
                    level,
                    pairing,
                    from.as_chunks::<2>().0,
                    to.as_chunks_mut::<2>().0,
                );
            }
            (Packing::Bytes, _) => {
                turn_u32(
                    level,
                    pairing,
                    from.as_chunks::<4>().0,
                    to.as_chunks_mut::<4>().0,
                );
            }
            (packing, _) => {
                let mut apart = vec![0; self.elements];
                packing::unpack_fast(level, packing, self.number, from, &mut apart);
                let mut moved = apart.clone();
                let range = self.first..self.first + self.rope.dims as usize;
                turn_u8(level, pairing, &apart[range.clone()], &mut moved[range]);
                packing::pack_fast(level, packing, self.number, &moved, to);
            }
        }
    }
}

at_each_level! {
    fn turn_f32(pairing: Pairing, from: &[f32], to: &mut [f32]) -> () {
        turn(pairing, from, to);
    }

    fn turn_u8(pairing: Pairing, from: &[u8], to: &mut [u8]) -> () {
        turn(pairing, from, to);
    }

    fn turn_u16(pairing: Pairing, from: &[[u8; 2]], to: &mut [[u8; 2]]) -> () {
        turn(pairing, from, to);
    }

    fn turn_u32(pairing: Pairing, from: &[[u8; 4]], to: &mut [[u8; 4]]) -> () {
        turn(pairing, from, to);
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

/// 8-bit codes moved at a time before they are replaced, in L1.
const CODES_IN_BLOCK: usize = 4096;
