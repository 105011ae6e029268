//! Conversions of codes that stand alone, worked out beforehand where there are few answers.
//!
//! - 8 bits to 8 or 16 bits: 256 answers.
//! - `bf16` to a narrower float: the answer's mantissa depends on the 7 mantissa bits only, its
//!   exponent on the exponent only, but for the few exponents where the answer is subnormal. Tables of
//!   bytes hold all of that, whatever the scales are, and a table is looked up 64 times at once by
//!   AVX-512. Whether a pair with its scales is like this is not assumed: all 2¹⁵ magnitudes are tried.
//! - 16 bits to 16 bits, unscaled or under powers of two: where both codes are normal the exponent is shifted by a
//!   constant, and the mantissa grows zeros or is rounded. This too is tried for all codes.
//! - All else is decoded, divided and encoded.
//!
//! Tables answer only what is harmless. A block that has NaN or overflow is converted again as numbers.

use super::Flow;
use super::level::Level;
use super::number::{Number, Overflow, Quotient, convert};
use super::scalar::{E2m1, E2m3, E3m2, E4m3fn, E4m3fnuz, E5m2, E5m2fnuz, SmallFloat};
use crate::format::Counts;

/// A conversion of codes that stand alone under constant scales; costs some 20 µs to prepare.
#[derive(Clone, Debug)]
pub(crate) struct Converter {
    level: Level,
    from: Number,
    multiply: f32,
    to: Number,
    overflow: Overflow,
    quotient: Quotient,
    way: Way,
}

#[derive(Clone, Debug)]
enum Way {
    Numbers,
    Bytes(Box<Bytes>),
    Words(Box<Words>),
    Bf16(Box<Mantissas>),
    Rebiased(Rebias),
}

impl Converter {
    /// Prepares what [`convert`] does.
    pub(crate) fn new(
        level: Level,
        from: Number,
        multiply: f32,
        to: Number,
        overflow: Overflow,
        quotient: Quotient,
    ) -> Self {
        let mut converter = Self {
            level,
            from,
            multiply,
            to,
            overflow,
            quotient,
            way: Way::Numbers,
        };
        converter.way = match (from.bytes(), to.bytes()) {
            (1, 1) => Way::Bytes(Box::new(Bytes::of(&converter))),
            (1, 2) => Way::Words(Box::new(Words::of(&converter))),
            (2, 1) if from == Number::Bf16 && level == Level::Avx512 => {
                Mantissas::of(&converter).map_or(Way::Numbers, |table| Way::Bf16(Box::new(table)))
            }
            (2, 2) => Rebias::of(&converter).map_or(Way::Numbers, Way::Rebiased),
            _ => Way::Numbers,
        };
        converter
    }

    /// Converts codes.
    ///
    /// # Panics
    ///
    /// If the slices hold not the same number of codes.
    pub(crate) fn run(&self, flow: Flow, codes: &[u8], out: &mut [u8]) -> Counts {
        assert_eq!(
            codes.len() / self.from.bytes(),
            out.len() / self.to.bytes(),
            "codes on both sides"
        );
        match &self.way {
            Way::Numbers => self.numbers(codes, out),
            Way::Bytes(table) => table.run(self.level, flow, codes, out),
            Way::Words(table) => table.run(self.level, flow, codes, out),
            Way::Bf16(table) => self.run_mantissas(table, flow, codes, out),
            Way::Rebiased(rebias) => self.run_rebiased(*rebias, flow, codes, out),
        }
    }

    /// Whether the loops fetch what a [`Flow`] has them fetch.
    pub(crate) fn fetches(&self) -> bool {
        self.streams() || matches!(self.way, Way::Rebiased(_))
    }

    /// Whether the loops store as a [`Flow`] has them store.
    pub(crate) fn streams(&self) -> bool {
        self.level == Level::Avx512
            && matches!(self.way, Way::Bytes(_) | Way::Words(_) | Way::Bf16(_))
    }

    /// Whether answers are looked up.
    #[cfg(test)]
    pub(super) fn has_table(&self) -> bool {
        !matches!(self.way, Way::Numbers)
    }

    fn numbers(&self, codes: &[u8], out: &mut [u8]) -> Counts {
        let (from, to) = (self.from, self.to);
        convert(
            self.level,
            from,
            self.multiply,
            to,
            self.overflow,
            self.quotient,
            codes,
            out,
        )
    }

    fn run_rebiased(&self, rebias: Rebias, flow: Flow, codes: &[u8], out: &mut [u8]) -> Counts {
        let mut counts = Counts::default();
        let bytes = 2 * REBIASED_AT_ONCE;
        for (codes, out) in codes.chunks(bytes).zip(out.chunks_mut(bytes)) {
            flow.fetch(codes);
            let (words, made) = (codes.as_chunks().0, out.as_chunks_mut().0);
            let all = if rebias.narrows {
                narrow(self.level, rebias, words, made)
            } else {
                widen(self.level, rebias, words, made)
            };
            if !all {
                counts += self.numbers(codes, out);
            }
        }
        counts
    }

    fn run_mantissas(&self, table: &Mantissas, flow: Flow, codes: &[u8], out: &mut [u8]) -> Counts {
        let mut counts = Counts::default();
        for (codes, out) in codes.chunks(2 * AT_ONCE).zip(out.chunks_mut(AT_ONCE)) {
            let (whole, rest) = codes.as_chunks::<128>();
            let (whole_out, rest_out) = out.as_chunks_mut::<64>();
            let mut worst = table.look_up(flow, whole, whole_out);
            if !rest.is_empty() {
                let (mut last, mut last_out) = ([[0; 128]], [[0; 64]]);
                last[0][..rest.len()].copy_from_slice(rest);
                worst = worst.max(table.look_up(Flow::default(), &last, &mut last_out));
                rest_out.copy_from_slice(&last_out[0][..rest_out.len()]);
            }
            if worst > table.greatest {
                counts += self.numbers(codes, out);
            }
        }
        counts
    }
}

/// Codes rebiased before what was seen among them is looked at: few, as numbers near zero are not so rare.
const REBIASED_AT_ONCE: usize = 256;

/// Codes looked up before what was seen among them is looked at.
const AT_ONCE: usize = 1024;

/// What is lost by each 8-bit code.
#[derive(Clone, Debug)]
struct Losses {
    /// 1 if it saturates, 2 if it is NaN.
    of: [u8; 256],
}

impl Losses {
    const SATURATED: u8 = 1;
    const NAN: u8 = 2;

    /// Answers to all codes of one byte, and what each loses.
    fn with_answers(converter: &Converter, out: &mut [u8]) -> Self {
        let width = converter.to.bytes();
        let of = std::array::from_fn(|code| {
            let counts = converter.numbers(&[code as u8], &mut out[code * width..][..width]);
            let saturated = if counts.saturated > 0 {
                Self::SATURATED
            } else {
                0
            };
            saturated | if counts.nan > 0 { Self::NAN } else { 0 }
        });
        Self { of }
    }

    fn count(&self, codes: &[u8]) -> Counts {
        let mut counts = Counts::default();
        for code in codes {
            let loss = self.of[usize::from(*code)];
            counts.saturated += u64::from(loss & Self::SATURATED);
            counts.nan += u64::from(loss >> 1);
        }
        counts
    }
}

/// For each 8-bit code another one.
#[derive(Clone, Debug)]
pub(crate) struct Bytes {
    answers: [u8; 256],
    losses: Losses,
    /// If few codes change or lose, those: code, answer, loss. Padded with repetitions.
    exceptions: Option<[(u8, u8, u8); 3]>,
}

impl Bytes {
    fn of(converter: &Converter) -> Self {
        let mut answers = [0; 256];
        let losses = Losses::with_answers(converter, &mut answers);
        Self::with(answers, losses)
    }

    /// A table of answers, and of what each of them loses.
    pub(crate) fn new(answers: [u8; 256], losses: [u8; 256]) -> Self {
        Self::with(answers, Losses { of: losses })
    }

    fn with(answers: [u8; 256], losses: Losses) -> Self {
        let mut entries = (0..=255u8)
            .map(|code| {
                (
                    code,
                    answers[usize::from(code)],
                    losses.of[usize::from(code)],
                )
            })
            .filter(|(code, answer, loss)| code != answer || *loss != 0);
        let first = entries.next().unwrap_or((0, answers[0], losses.of[0]));
        let second = entries.next().unwrap_or(first);
        let third = entries.next().unwrap_or(first);
        let exceptions = entries.next().is_none().then_some([first, second, third]);
        Self {
            answers,
            losses,
            exceptions,
        }
    }

    pub(crate) fn run(&self, level: Level, flow: Flow, codes: &[u8], out: &mut [u8]) -> Counts {
        let mut counts = Counts::default();
        for (codes, out) in codes.chunks(4 * AT_ONCE).zip(out.chunks_mut(4 * AT_ONCE)) {
            if self.look_up(level, flow, codes, out) {
                counts += self.losses.count(codes);
            }
        }
        counts
    }

    /// Writes answers, and says whether any of them lost something.
    pub(crate) fn look_up(&self, level: Level, flow: Flow, codes: &[u8], out: &mut [u8]) -> bool {
        match self.exceptions {
            #[cfg(target_arch = "x86_64")]
            _ if level == Level::Avx512 => self.look_up_by_avx512(flow, codes, out),
            Some(exceptions) => except(level, &exceptions, codes, out),
            None => self.look_up_each(codes, out),
        }
    }

    fn look_up_each(&self, codes: &[u8], out: &mut [u8]) -> bool {
        let mut lost = 0;
        for (code, answer) in codes.iter().zip(out) {
            let code = usize::from(*code);
            *answer = self.answers[code];
            lost |= self.losses.of[code];
        }
        lost != 0
    }

    #[cfg(target_arch = "x86_64")]
    fn look_up_by_avx512(&self, flow: Flow, codes: &[u8], out: &mut [u8]) -> bool {
        assert!(Level::best() == Level::Avx512, "look-ups by AVX-512");
        let (whole, rest) = codes.as_chunks::<64>();
        let (whole_out, rest_out) = out.as_chunks_mut::<64>();
        // SAFETY: this CPU has the features of the level.
        let lost = unsafe { avx512::bytes(&self.answers, &self.losses.of, flow, whole, whole_out) };
        self.look_up_each(rest, rest_out) || lost
    }
}

/// For each 4-bit code a byte; codes come two a byte, the even one low.
#[derive(Clone, Debug)]
pub(crate) struct Nibbles {
    answers: [u8; 16],
    losses: Losses,
    /// Answers to both codes of a byte.
    pairs: Box<[[u8; 2]; 256]>,
}

impl Nibbles {
    /// A table of answers, and of what each of them loses.
    pub(crate) fn new(answers: [u8; 16], losses: [u8; 16]) -> Self {
        let pair = |byte: usize| [answers[byte % 16], answers[byte / 16]];
        Self {
            answers,
            losses: Losses {
                of: std::array::from_fn(|byte| losses[byte % 16] | losses[byte / 16]),
            },
            pairs: Box::new(std::array::from_fn(pair)),
        }
    }

    /// Replaces codes.
    ///
    /// # Panics
    ///
    /// If there are not twice as many answers as bytes.
    pub(crate) fn run(&self, level: Level, packed: &[u8], out: &mut [u8]) -> Counts {
        assert_eq!(
            2 * packed.len(),
            out.len(),
            "codes of {} bytes",
            packed.len()
        );
        let done = self.look_up(level, packed, out);
        let rest = out[2 * done..].as_chunks_mut::<2>().0;
        for (byte, pair) in packed[done..].iter().zip(rest) {
            *pair = self.pairs[usize::from(*byte)];
        }
        let mut counts = Counts::default();
        if self.losses.of.iter().any(|loss| *loss != 0) {
            for byte in packed {
                counts += self.losses.count(&[byte % 16, byte / 16]);
            }
        }
        counts
    }

    /// Bytes that were looked up.
    #[cfg(target_arch = "x86_64")]
    fn look_up(&self, level: Level, packed: &[u8], out: &mut [u8]) -> usize {
        if level < Level::Avx512 {
            return 0;
        }
        assert!(Level::best() == Level::Avx512, "look-ups by AVX-512");
        let (whole, out) = (packed.as_chunks::<32>().0, out.as_chunks_mut::<64>().0);
        // SAFETY: this CPU has the features of the level.
        unsafe { avx512::nibbles(&self.answers, whole, out) }
        32 * whole.len()
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn look_up(&self, _: Level, _: &[u8], _: &mut [u8]) -> usize {
        0
    }
}

super::level::at_each_level! {
    /// Copies codes but for three, and says whether those that lose something were among them.
    fn except(exceptions: &[(u8, u8, u8); 3], codes: &[u8], out: &mut [u8]) -> bool {
        let [a, b, c] = *exceptions;
        let mut lost = 0;
        for (code, answer) in codes.iter().zip(out) {
            let old = *code;
            lost |= if old == a.0 { a.2 } else { 0 };
            lost |= if old == b.0 { b.2 } else { 0 };
            lost |= if old == c.0 { c.2 } else { 0 };
            let mut new = old;
            new = if old == a.0 { a.1 } else { new };
            new = if old == b.0 { b.1 } else { new };
            new = if old == c.0 { c.1 } else { new };
            *answer = new;
        }
        lost != 0
    }
}

/// For each 8-bit code one of 16 bits, low and high bytes apart.
#[derive(Clone, Debug)]
struct Words {
    answers: [[u8; 2]; 256],
    #[cfg(target_arch = "x86_64")]
    low: [u8; 256],
    #[cfg(target_arch = "x86_64")]
    high: [u8; 256],
    losses: Losses,
}

impl Words {
    fn of(converter: &Converter) -> Self {
        let mut answers = [[0; 2]; 256];
        let losses = Losses::with_answers(converter, answers.as_flattened_mut());
        Self {
            answers,
            #[cfg(target_arch = "x86_64")]
            low: answers.map(|answer| answer[0]),
            #[cfg(target_arch = "x86_64")]
            high: answers.map(|answer| answer[1]),
            losses,
        }
    }

    fn run(&self, level: Level, flow: Flow, codes: &[u8], out: &mut [u8]) -> Counts {
        let mut counts = Counts::default();
        for (codes, out) in codes.chunks(AT_ONCE).zip(out.chunks_mut(2 * AT_ONCE)) {
            let (done, lost) = self.look_up(level, flow, codes, out);
            let (rest, rest_out) = (&codes[done..], &mut out[2 * done..]);
            let mut lost_rest = 0;
            for (code, answer) in rest.iter().zip(rest_out.as_chunks_mut::<2>().0) {
                let code = usize::from(*code);
                *answer = self.answers[code];
                lost_rest |= self.losses.of[code];
            }
            if lost || lost_rest != 0 {
                counts += self.losses.count(codes);
            }
        }
        counts
    }

    /// Codes that were looked up, and whether anything was lost among them.
    #[cfg(target_arch = "x86_64")]
    fn look_up(&self, level: Level, flow: Flow, codes: &[u8], out: &mut [u8]) -> (usize, bool) {
        if level < Level::Avx512 {
            return (0, false);
        }
        assert!(Level::best() == Level::Avx512, "look-ups by AVX-512");
        let (whole, out) = (codes.as_chunks::<64>().0, out.as_chunks_mut::<128>().0);
        // SAFETY: this CPU has the features of the level.
        let lost =
            unsafe { avx512::words(&self.low, &self.high, &self.losses.of, flow, whole, out) };
        (64 * whole.len(), lost)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn look_up(&self, _: Level, _: Flow, _: &[u8], _: &mut [u8]) -> (usize, bool) {
        (0, false)
    }
}

/// How codes of 16 bits become others where both are normal.
#[derive(Clone, Copy, Debug)]
struct Rebias {
    narrows: bool,
    /// Bits by which one mantissa is longer.
    shift: u32,
    /// Added to the code that has fewer mantissa bits.
    add: u16,
    /// The least and the greatest magnitude for which this holds, beside zero.
    least: u16,
    greatest: u16,
}

impl Rebias {
    /// `None` if not even the code of 1 is like this.
    fn of(converter: &Converter) -> Option<Self> {
        // (code of 1, of Inf)
        let ends = |number| match number {
            Number::Bf16 => Some((0x3F80u16, 0x7F80u16)),
            Number::F16 => Some((0x3C00, 0x7C00)),
            _ => None,
        };
        let mantissa = |infinity: u16| 15 - infinity.count_ones();
        let ((one, from_infinity), (_, infinity)) = (ends(converter.from)?, ends(converter.to)?);
        let (from, to) = (mantissa(from_infinity), mantissa(infinity));
        let codes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut answers = vec![0; codes.len()];
        converter.numbers(&codes, &mut answers);
        let answers = answers.as_chunks::<2>().0;
        let answer = |code: u16| u16::from_le_bytes(answers[usize::from(code)]);
        let mut rebias = Self {
            narrows: from > to,
            shift: from.abs_diff(to),
            add: 0,
            least: one,
            greatest: one,
        };
        rebias.add = if rebias.narrows {
            answer(one).wrapping_sub(one >> rebias.shift)
        } else {
            (answer(one) >> rebias.shift).wrapping_sub(one)
        };
        let holds = |code: u16| {
            let found = rebias.magnitude(code);
            let signs = [0, 0x8000].map(|sign| answer(code | sign) == found | sign);
            found < infinity && code < from_infinity && signs == [true; 2]
        };
        let zero = answer(0) == 0 && answer(0x8000) == 0x8000;
        if !(zero && holds(one)) {
            return None;
        }
        let least = (1..=one).rev().take_while(|code| holds(*code)).last()?;
        let greatest = (one..0x7FFF).take_while(|code| holds(*code)).last()?;
        Some(Self {
            least,
            greatest,
            ..rebias
        })
    }

    #[inline(always)]
    fn magnitude(self, code: u16) -> u16 {
        if self.narrows {
            self.narrower(code)
        } else {
            self.wider(code)
        }
    }

    /// Ties to even; the sum may carry into the exponent, as it should.
    #[inline(always)]
    fn narrower(self, code: u16) -> u16 {
        let odd = code >> self.shift & 1;
        let half = (1u16 << self.shift >> 1).wrapping_sub(1);
        (code.wrapping_add(half).wrapping_add(odd) >> self.shift).wrapping_add(self.add)
    }

    #[inline(always)]
    fn wider(self, code: u16) -> u16 {
        code.wrapping_add(self.add) << self.shift
    }

    /// Answers to codes, and whether they hold for all of them.
    #[inline(always)]
    fn each(self, codes: &[[u8; 2]], out: &mut [[u8; 2]], magnitude: impl Fn(u16) -> u16) -> bool {
        let span = self.greatest - self.least;
        let mut rare = 0;
        for (code, out) in codes.iter().zip(out) {
            let code = u16::from_le_bytes(*code);
            let (old, sign) = (code & 0x7FFF, code & 0x8000);
            let within = old.wrapping_sub(self.least) <= span;
            let new = if within { magnitude(old) } else { 0 };
            rare |= if within { 0 } else { old };
            *out = (new | sign).to_le_bytes();
        }
        rare == 0
    }
}

super::level::at_each_level! {
    /// See [`Rebias::each`].
    fn narrow(rebias: Rebias, codes: &[[u8; 2]], out: &mut [[u8; 2]]) -> bool {
        rebias.each(codes, out, |code| rebias.narrower(code))
    }

    /// See [`Rebias::each`].
    fn widen(rebias: Rebias, codes: &[[u8; 2]], out: &mut [[u8; 2]]) -> bool {
        rebias.each(codes, out, |code| rebias.wider(code))
    }
}

/// Answers to `bf16` codes by mantissa and by exponent.
///
/// An exponent's *index* is 0 where all answers are zero, then 1 and up to [`subnormal`](Self::subnormal)
/// for those with a row of their own, and further up the exponents of which all answers are normal.
#[derive(Clone, Debug)]
pub(super) struct Mantissas {
    /// The exponent of index 0.
    pub(super) base: u8,
    /// Exponents with a row of their own.
    subnormal: usize,
    /// Of each index from 1 the answers by mantissa; the last one is that of all normal answers.
    rows: [[u8; 128]; ROWS],
    /// What is added to the row, for each index. Sums above [`greatest`](Self::greatest) are not the answer.
    add: [u8; 64],
    greatest: u8,
    /// How far the sign moves down.
    #[cfg(target_arch = "x86_64")]
    sign_shift: u32,
    #[cfg(target_arch = "x86_64")]
    negative_zero: bool,
}

/// A narrower float has 4 exponents with subnormal answers at most, those of the least normal ones, those
/// rounded up to the least number, and one more because the scale's mantissa shifts all of them.
const ROWS: usize = 8;

impl Mantissas {
    /// The tables of `bf16` numbers as they are.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn unscaled(to: Number) -> Option<Self> {
        let (level, overflow) = (Level::best(), Overflow::Saturate);
        let one = Converter {
            way: Way::Numbers,
            ..Converter::new(
                level,
                Number::Bf16,
                1.0,
                Number::F32,
                overflow,
                Quotient::Same,
            )
        };
        Self::of(&Converter { to, ..one })
    }

    /// The tables, if answers are like this.
    fn of(converter: &Converter) -> Option<Self> {
        match converter.to {
            Number::E4m3fn => Self::of_float::<E4m3fn>(converter),
            Number::E4m3fnuz => Self::of_float::<E4m3fnuz>(converter),
            Number::E5m2 => Self::of_float::<E5m2>(converter),
            Number::E5m2fnuz => Self::of_float::<E5m2fnuz>(converter),
            Number::E2m1 => Self::of_float::<E2m1>(converter),
            Number::E2m3 => Self::of_float::<E2m3>(converter),
            Number::E3m2 => Self::of_float::<E3m2>(converter),
            _ => None,
        }
    }

    fn of_float<F: SmallFloat>(converter: &Converter) -> Option<Self> {
        let mut codes = Vec::with_capacity(1 << 16);
        (0..0x7F80u16).for_each(|code| codes.extend(code.to_le_bytes()));
        let mut answers = vec![0; codes.len() / 2];
        let counts = converter.numbers(&codes, &mut answers);
        let rows = answers.as_chunks::<128>().0;

        let zero = |row: &&[u8; 128]| row.iter().all(|answer| *answer == 0);
        let base = rows.iter().take_while(zero).count().checked_sub(1)?;
        let normal = |row: &[u8; 128]| row.iter().all(|answer| u32::from(*answer) >= 1 << F::MAN);
        let first = rows[base + 1..].iter().position(normal)?;
        // Where answers are the least normal one, some may have been rounded up to it from below.
        (first..first + 2).find_map(|subnormal| {
            let with_row = rows[base + 1..].get(..=subnormal)?;
            let mut table = Self {
                base: base as u8,
                subnormal,
                rows: [[0; 128]; ROWS],
                add: [0; 64],
                greatest: F::GREATEST as u8,
                #[cfg(target_arch = "x86_64")]
                sign_shift: 7 - F::SIGN.trailing_zeros(),
                #[cfg(target_arch = "x86_64")]
                negative_zero: F::NEGATIVE_ZERO,
            };
            table.rows.get_mut(..=subnormal)?.copy_from_slice(with_row);
            for (index, add) in table.add.iter_mut().enumerate().skip(subnormal + 1) {
                *add = ((index - subnormal - 1) << F::MAN).min(255) as u8;
            }
            table.add[63] = 255;
            table.is_right(rows, counts).then_some(table)
        })
    }

    /// Whether every finite answer is found, but for those that lose something.
    fn is_right(&self, rows: &[[u8; 128]], counts: Counts) -> bool {
        let mut lost = 0;
        for (exponent, row) in rows.iter().enumerate() {
            for (mantissa, answer) in row.iter().enumerate() {
                let found = self.magnitude(exponent, mantissa);
                if found > self.greatest {
                    lost += 1;
                } else if found != *answer {
                    return false;
                }
            }
        }
        // Both grow with the magnitude, so that as many are the same ones. NaN and Inf are beyond all.
        lost == counts.saturated + counts.nan && self.magnitude(255, 0) > self.greatest
    }

    /// What a look-up finds.
    fn magnitude(&self, exponent: usize, mantissa: usize) -> u8 {
        match exponent.saturating_sub(usize::from(self.base)).min(63) {
            0 => 0,
            index => {
                let row = &self.rows[(index - 1).min(self.subnormal)];
                row[mantissa].saturating_add(self.add[index])
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    /// Looks codes up, and says which is the greatest answer without its sign.
    fn look_up(&self, flow: Flow, codes: &[[u8; 128]], out: &mut [[u8; 64]]) -> u8 {
        assert!(Level::best() == Level::Avx512, "look-ups by AVX-512");
        // SAFETY: this CPU has the features of the level.
        unsafe { avx512::mantissas(self, flow, codes, out) }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn look_up(&self, _: Flow, _: &[[u8; 128]], _: &mut [[u8; 64]]) -> u8 {
        unreachable!("no AVX-512")
    }
}

/// Look-ups of 64 bytes at once.
///
/// # Unsafe
///
/// Loads and stores of whole arrays by pointers to them. The functions are safe where the CPU has the
/// features they name.
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512 {
    use std::arch::x86_64::*;

    use super::super::Flow;
    use super::Mantissas;

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(bytes: &[u8; 64]) -> __m512i {
        // SAFETY: 64 bytes are read, from wherever they lie.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store(bytes: &mut [u8; 64], vector: __m512i) {
        // SAFETY: 64 bytes are written, wherever they lie.
        unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), vector) }
    }

    /// Stores a result; past the caches if it is to and is a whole line.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn put(flow: Flow, bytes: &mut [u8; 64], vector: __m512i) {
        let at = bytes.as_mut_ptr().cast::<__m512i>();
        if flow.streaming && at.is_aligned() {
            // SAFETY: 64 bytes are written, at a multiple of 64.
            unsafe { _mm512_stream_si512(at, vector) }
        } else {
            store(bytes, vector);
        }
    }

    /// A table of 128 bytes, indexed by the low 7 bits.
    #[derive(Clone, Copy)]
    struct Table128(__m512i, __m512i);

    impl Table128 {
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn new(bytes: &[u8; 128]) -> Self {
            let halves = bytes.as_chunks::<64>().0;
            Self(load(&halves[0]), load(&halves[1]))
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512vbmi")]
        fn at(self, index: __m512i) -> __m512i {
            _mm512_permutex2var_epi8(self.0, index, self.1)
        }
    }

    /// A table of 256 bytes.
    #[derive(Clone, Copy)]
    pub(in crate::cpu) struct Table256(Table128, Table128);

    impl Table256 {
        #[inline]
        #[target_feature(enable = "avx512f")]
        pub(in crate::cpu) fn new(bytes: &[u8; 256]) -> Self {
            let halves = bytes.as_chunks::<128>().0;
            Self(Table128::new(&halves[0]), Table128::new(&halves[1]))
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
        pub(in crate::cpu) fn at(self, index: __m512i) -> __m512i {
            let upper = _mm512_movepi8_mask(index);
            _mm512_mask_blend_epi8(upper, self.0.at(index), self.1.at(index))
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub(super) fn bytes(
        answers: &[u8; 256],
        losses: &[u8; 256],
        flow: Flow,
        codes: &[[u8; 64]],
        out: &mut [[u8; 64]],
    ) -> bool {
        let (answers, losses) = (Table256::new(answers), Table256::new(losses));
        let mut lost = _mm512_setzero_si512();
        for (code, out) in codes.iter().zip(out) {
            flow.fetch(code);
            let code = load(code);
            put(flow, out, answers.at(code));
            lost = _mm512_or_si512(lost, losses.at(code));
        }
        _mm512_test_epi8_mask(lost, lost) != 0
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn nibbles(answers: &[u8; 16], packed: &[[u8; 32]], out: &mut [[u8; 64]]) {
        // SAFETY: 16 bytes are read, from wherever they lie.
        let answers = unsafe { _mm_loadu_si128(answers.as_ptr().cast()) };
        let answers = _mm512_broadcast_i32x4(answers);
        for (packed, out) in packed.iter().zip(out) {
            // SAFETY: 32 bytes are read, from wherever they lie.
            let packed = unsafe { _mm256_loadu_si256(packed.as_ptr().cast()) };
            let words = _mm512_cvtepu8_epi16(packed);
            let both = _mm512_or_si512(words, _mm512_slli_epi16::<4>(words));
            let codes = _mm512_and_si512(both, _mm512_set1_epi8(0xF));
            store(out, _mm512_shuffle_epi8(answers, codes));
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub(super) fn words(
        low: &[u8; 256],
        high: &[u8; 256],
        losses: &[u8; 256],
        flow: Flow,
        codes: &[[u8; 64]],
        out: &mut [[u8; 128]],
    ) -> bool {
        let (low, high) = (Table256::new(low), Table256::new(high));
        let losses = Table256::new(losses);
        // Unpacking works within quarters: each gets 8 codes of the first half and 8 of the second.
        let order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
        let mut lost = _mm512_setzero_si512();
        for (code, out) in codes.iter().zip(out) {
            flow.fetch(code);
            let code = _mm512_permutexvar_epi64(order, load(code));
            let (low, high) = (low.at(code), high.at(code));
            let halves = out.as_chunks_mut::<64>().0;
            put(flow, &mut halves[0], _mm512_unpacklo_epi8(low, high));
            put(flow, &mut halves[1], _mm512_unpackhi_epi8(low, high));
            lost = _mm512_or_si512(lost, losses.at(code));
        }
        _mm512_test_epi8_mask(lost, lost) != 0
    }

    /// [`Mantissas`] in registers.
    pub(in crate::cpu) struct Lookup<'a> {
        table: &'a Mantissas,
        normal: Table128,
        add: __m512i,
        subnormal: __m512i,
        sign_shift: __m128i,
        zero_has_sign: u64,
        /// Whether signs are the highest bits, of zeros too.
        is_plain: bool,
    }

    impl<'a> Lookup<'a> {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
        pub(in crate::cpu) fn new(table: &'a Mantissas) -> Self {
            Self {
                table,
                normal: Table128::new(&table.rows[table.subnormal]),
                add: load(&table.add),
                subnormal: _mm512_set1_epi8(table.subnormal as i8),
                sign_shift: _mm_cvtsi32_si128(table.sign_shift as i32),
                zero_has_sign: if table.negative_zero { u64::MAX } else { 0 },
                is_plain: table.negative_zero && table.sign_shift == 0,
            }
        }

        /// Answers without their signs to the 64 codes of two vectors; `base` is the exponent of index 0 for each.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
        fn magnitudes(&self, base: __m512i, a: __m512i, b: __m512i) -> __m512i {
            let one = _mm512_set1_epi8(1);
            let (exponent, twice) = parts(a, b);
            // The table takes 7 bits of what it is given.
            let mantissa = _mm512_srli_epi16::<1>(twice);
            let index = _mm512_min_epu8(_mm512_subs_epu8(exponent, base), _mm512_set1_epi8(63));
            let is_normal = _mm512_cmpgt_epu8_mask(index, self.subnormal);
            let mut code = _mm512_maskz_adds_epu8(
                is_normal,
                self.normal.at(mantissa),
                _mm512_permutexvar_epi8(index, self.add),
            );
            // Seldom in data whose scale came from its amax: looked up where there are any.
            let below = _mm512_sub_epi8(index, one);
            if _mm512_cmplt_epu8_mask(below, self.subnormal) != 0 {
                for (row, index_of_row) in self.table.rows[..self.table.subnormal].iter().zip(1..) {
                    let here = _mm512_cmpeq_epi8_mask(index, _mm512_set1_epi8(index_of_row));
                    code = _mm512_mask_mov_epi8(code, here, Table128::new(row).at(mantissa));
                }
            }
            code
        }

        /// Answers with the signs of their codes.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
        fn with_signs(&self, answers: __m512i, a: __m512i, b: __m512i) -> __m512i {
            let high = high_bytes(a, b);
            if self.is_plain {
                // The lower bits of the first, the highest of the second.
                return _mm512_ternarylogic_epi32::<0xF8>(answers, high, _mm512_set1_epi8(-128));
            }
            let sign = _mm512_and_si512(high, _mm512_set1_epi8(-128));
            let sign = _mm512_srl_epi16(sign, self.sign_shift);
            let signed = _mm512_test_epi8_mask(answers, answers) | self.zero_has_sign;
            _mm512_mask_add_epi8(answers, signed, answers, sign)
        }

        /// Answers without and with their signs to the 64 codes of two vectors.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
        fn of(&self, base: __m512i, a: __m512i, b: __m512i) -> (__m512i, __m512i) {
            let answers = self.magnitudes(base, a, b);
            (answers, self.with_signs(answers, a, b))
        }

        /// 1 for codes with magnitudes beyond the greatest answer, and answers, the greatest for those.
        ///
        /// `base` is the exponent of index 0 for each.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
        pub(in crate::cpu) fn saturating(
            &self,
            base: __m512i,
            a: __m512i,
            b: __m512i,
        ) -> (__m512i, __m512i) {
            let greatest = _mm512_set1_epi8(self.table.greatest as i8);
            let answers = self.magnitudes(base, a, b);
            let beyond = _mm512_subs_epu8(answers, greatest);
            let beyond = _mm512_min_epu8(beyond, _mm512_set1_epi8(1));
            let answers = _mm512_min_epu8(answers, greatest);
            (beyond, self.with_signs(answers, a, b))
        }
    }

    const EVEN: [u8; 64] = every_other(0);
    const ODD: [u8; 64] = every_other(1);

    const fn every_other(first: u8) -> [u8; 64] {
        let mut order = [0; 64];
        let mut i = 0;
        while i < 64 {
            order[i] = 2 * i as u8 + first;
            i += 1;
        }
        order
    }

    /// The high bytes of 64 codes of two bytes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vbmi")]
    pub(in crate::cpu) fn high_bytes(a: __m512i, b: __m512i) -> __m512i {
        _mm512_permutex2var_epi8(a, load(&ODD), b)
    }

    /// Of 64 codes of `bf16` the exponents, and twice the mantissas.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub(in crate::cpu) fn parts(a: __m512i, b: __m512i) -> (__m512i, __m512i) {
        let (a, b) = (_mm512_add_epi16(a, a), _mm512_add_epi16(b, b));
        (
            _mm512_permutex2var_epi8(a, load(&ODD), b),
            _mm512_permutex2var_epi8(a, load(&EVEN), b),
        )
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub(super) fn mantissas(
        table: &Mantissas,
        flow: Flow,
        codes: &[[u8; 128]],
        out: &mut [[u8; 64]],
    ) -> u8 {
        let lookup = Lookup::new(table);
        let base = _mm512_set1_epi8(table.base as i8);
        let mut worst = _mm512_setzero_si512();
        for (codes, out) in codes.iter().zip(out) {
            flow.fetch(codes);
            let halves = codes.as_chunks::<64>().0;
            let (magnitudes, codes) = lookup.of(base, load(&halves[0]), load(&halves[1]));
            worst = _mm512_max_epu8(worst, magnitudes);
            put(flow, out, codes);
        }
        let mut worsts = [0; 64];
        store(&mut worsts, worst);
        worsts.into_iter().max().unwrap_or(0)
    }
}
