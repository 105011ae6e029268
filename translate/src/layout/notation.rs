//! The layout notation: an ordered list of axes, outermost first, as text.

use std::{fmt, num::NonZeroU32, str::FromStr};

use thiserror::Error;

/// What an index of a layout counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(
    clippy::exhaustive_enums,
    reason = "a seventh axis would be a new notation"
)]
pub enum Axis {
    /// Transformer layer, counted within the rank.
    Layer,
    /// Position of a component among those that share the region.
    Part,
    /// Page, counted within the region.
    Page,
    /// KV head, counted within the rank.
    Head,
    /// Token position within the page.
    Slot,
    /// Unit (element, or indivisible group of elements) within the row.
    Dim,
}

impl Axis {
    /// All axes, in the order of the notation's grammar.
    pub const ALL: [Self; 6] = [
        Self::Layer,
        Self::Part,
        Self::Page,
        Self::Head,
        Self::Slot,
        Self::Dim,
    ];

    /// The axis as the notation spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::Part => "part",
            Self::Page => "page",
            Self::Head => "head",
            Self::Slot => "slot",
            Self::Dim => "dim",
        }
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which part of an axis a word of the notation stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(
    clippy::exhaustive_enums,
    reason = "an axis is whole, or split once in two"
)]
pub enum Split {
    /// `axis`: the whole index.
    Whole,
    /// `axis/n`: the index divided by n.
    Outer(NonZeroU32),
    /// `axis%n`: the remainder.
    Inner(NonZeroU32),
}

/// One word of the notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Word {
    /// The axis.
    pub axis: Axis,
    /// The whole of it, or one half of a split.
    pub split: Split,
    /// `[axis]`: the index picks a region instead of an offset.
    pub region: bool,
    /// `axis{n}`: the stride in bytes, where it is not dense.
    pub stride_bytes: Option<u64>,
}

impl Word {
    /// The word without brackets and stride (`dim/8`), which is how strides are keyed.
    #[must_use]
    pub fn key(&self) -> String {
        match self.split {
            Split::Whole => self.axis.to_string(),
            Split::Outer(n) => format!("{}/{n}", self.axis),
            Split::Inner(n) => format!("{}%{n}", self.axis),
        }
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.region {
            return write!(f, "[{}]", self.key());
        }
        f.write_str(&self.key())?;
        match self.stride_bytes {
            Some(bytes) => write!(f, "{{{bytes}}}"),
            None => Ok(()),
        }
    }
}

/// A layout as text says it: axes outermost first, extents left open.
///
/// # Grammar
///
/// Words separated by blanks. A word is `axis`, `axis/n`, `axis%n` (the outer and inner part of a
/// split by n) or `[axis]` (the axis picks a region), with `axis` one of `layer part page head slot
/// dim`; a word that is not bracketed may give its stride in bytes, `page{4096}`.
///
/// # Invariants
///
/// No word repeats; an axis is left out, whole, or split once into both halves by the same n;
/// `slot` and `dim` are not bracketed, since a row lies in one region.
///
/// # Example
///
/// ```
/// use moai_translate::layout::Notation;
///
/// let packed: Notation = "[layer] page head dim/8 slot dim%8".parse()?;
/// assert_eq!(packed.to_string(), "[layer] page head dim/8 slot dim%8");
/// let error = "page haed slot".parse::<Notation>().unwrap_err();
/// assert_eq!(error.at, 5);
/// # Ok::<(), moai_translate::layout::NotationError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Notation {
    words: Vec<Word>,
}

/// Layout text could not be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("layout `{text}`, position {at}: {problem}")]
#[non_exhaustive]
pub struct NotationError {
    /// The whole text.
    pub text: String,
    /// Byte position of the offending word.
    pub at: usize,
    /// What is wrong and what was expected.
    pub problem: String,
}

impl Notation {
    /// The words, outermost first.
    #[must_use]
    pub fn words(&self) -> &[Word] {
        &self.words
    }

    /// Whether a word stands for `axis`, or for a part of it.
    #[must_use]
    pub fn names(&self, axis: Axis) -> bool {
        self.words.iter().any(|word| word.axis == axis)
    }

    /// The number by which `axis` is split, if it is.
    #[must_use]
    pub fn split_of(&self, axis: Axis) -> Option<NonZeroU32> {
        self.words
            .iter()
            .find_map(|word| match (word.axis == axis, word.split) {
                (true, Split::Outer(n) | Split::Inner(n)) => Some(n),
                _ => None,
            })
    }
}

impl fmt::Display for Notation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, word) in self.words.iter().enumerate() {
            if i > 0 {
                f.write_str(" ")?;
            }
            write!(f, "{word}")?;
        }
        Ok(())
    }
}

impl FromStr for Notation {
    type Err = NotationError;

    fn from_str(text: &str) -> Result<Self, NotationError> {
        let fail = |at, problem: String| NotationError {
            text: text.to_owned(),
            at,
            problem,
        };
        let mut words: Vec<Word> = Vec::new();
        for (at, token) in tokens(text) {
            let word = parse_word(token).map_err(|problem| fail(at, problem))?;
            for seen in &words {
                if seen.axis != word.axis {
                    continue;
                }
                match (seen.split, word.split) {
                    (Split::Outer(a), Split::Inner(b)) | (Split::Inner(a), Split::Outer(b)) => {
                        if a != b {
                            let axis = word.axis;
                            return Err(fail(
                                at,
                                format!(
                                    "`{axis}` is split by {a} and by {b}; both parts need the same number"
                                ),
                            ));
                        }
                    }
                    _ => {
                        return Err(fail(
                            at,
                            format!("`{}` stands here a second time", word.axis),
                        ));
                    }
                }
            }
            words.push(word);
        }
        if words.is_empty() {
            return Err(fail(
                0,
                "no axis; expected words such as `page slot head dim`".into(),
            ));
        }
        for axis in Axis::ALL {
            let parts = words
                .iter()
                .filter(|w| w.axis == axis && w.split != Split::Whole);
            if parts.count() == 1 {
                let at = text.find(axis.name()).unwrap_or_default();
                return Err(fail(
                    at,
                    format!(
                        "only one part of the split `{axis}` is there; expected both `{axis}/n` and `{axis}%n`"
                    ),
                ));
            }
        }
        Ok(Self { words })
    }
}

/// The words of `text` with their byte positions.
fn tokens(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split_ascii_whitespace()
        .map(move |token| (token.as_ptr() as usize - text.as_ptr() as usize, token))
}

fn parse_word(token: &str) -> Result<Word, String> {
    let (inside, region) = match (token.strip_prefix('['), token.ends_with(']')) {
        (Some(rest), true) => (&rest[..rest.len() - 1], true),
        (None, false) => (token, false),
        _ => return Err(format!("`{token}` has one bracket; expected `[axis]`")),
    };
    let (body, stride_bytes) = match inside.split_once('{') {
        None => (inside, None),
        Some((body, stride)) => {
            let digits = stride.strip_suffix('}').ok_or_else(|| {
                format!("`{token}` has no closing brace; expected `axis{{bytes}}`")
            })?;
            let bytes = parse_number(digits)
                .ok_or_else(|| format!("stride `{digits}` is not a number of bytes"))?;
            (body, Some(bytes))
        }
    };
    let cut = body.find(['/', '%']);
    let name = &body[..cut.unwrap_or(body.len())];
    let axis = Axis::ALL
        .into_iter()
        .find(|axis| axis.name() == name)
        .ok_or_else(|| {
            format!("`{name}` is not an axis; expected one of layer, part, page, head, slot, dim")
        })?;
    let split = match cut {
        None => Split::Whole,
        Some(i) => {
            let digits = &body[i + 1..];
            let n = parse_number(digits)
                .and_then(|n| u32::try_from(n).ok())
                .and_then(NonZeroU32::new)
                .ok_or_else(|| {
                    format!("split `{digits}` is not a number from 1 to {}", u32::MAX)
                })?;
            if body.as_bytes()[i] == b'/' {
                Split::Outer(n)
            } else {
                Split::Inner(n)
            }
        }
    };
    if region && split != Split::Whole {
        return Err(format!(
            "`{token}`: a part of a split axis cannot pick a region"
        ));
    }
    if region && stride_bytes.is_some() {
        return Err(format!(
            "`{token}`: an axis that picks a region has no stride"
        ));
    }
    if region && matches!(axis, Axis::Slot | Axis::Dim) {
        return Err(format!(
            "`{token}`: a page's slots and a row's dims lie in one region"
        ));
    }
    Ok(Word {
        axis,
        split,
        region,
        stride_bytes,
    })
}

/// Plain decimal digits only: `u64::from_str` would also take a sign.
fn parse_number(digits: &str) -> Option<u64> {
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        digits.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_survives_a_round_trip() {
        for text in [
            "[layer] page part slot head dim",
            "[layer] [part] page slot head dim",
            "page layer part head slot dim",
            "[layer] page head dim/8 slot dim%8",
            "[layer] page{24832} head slot/8 dim slot%8",
            "dim",
        ] {
            assert_eq!(text.parse::<Notation>().unwrap().to_string(), text);
        }
        assert_eq!(
            "  page \t slot  dim "
                .parse::<Notation>()
                .unwrap()
                .to_string(),
            "page slot dim"
        );
    }

    #[test]
    fn errors_name_the_position_and_what_was_expected() {
        for (text, at, part) in [
            ("", 0, "no axis"),
            ("page tokens", 5, "`tokens` is not an axis"),
            ("page slot page", 10, "second time"),
            ("page dim/8 slot dim%4", 16, "by 8 and by 4"),
            ("page dim/8 slot", 5, "only one part"),
            ("page dim/0 dim%0", 5, "split `0`"),
            ("page dim/+8 dim%8", 5, "split `+8`"),
            ("[layer page", 0, "one bracket"),
            ("[layer/2] layer%2", 0, "cannot pick a region"),
            ("[slot] page", 0, "one region"),
            ("[page{3}] dim", 0, "no stride"),
            ("page{4k} dim", 0, "`4k`"),
            ("page{4 dim", 0, "closing brace"),
            ("page{99999999999999999999} dim", 0, "not a number"),
        ] {
            let error = text.parse::<Notation>().unwrap_err();
            assert_eq!(error.at, at, "{text}: {error}");
            assert!(error.problem.contains(part), "{text}: {error}");
        }
    }
}
