//! Sizes that depend on extents: the offsets and strides of presets, as text.
//!
//! ```text
//! sum     = product { "+" product }
//! product = atom { "*" atom }
//! atom    = number | name | "(" sum ")" | "up(" sum "," number ")"     up: the next multiple of number
//! ```

/// Why a formula has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FormulaError {
    /// It does not follow the grammar, or names something that is not there, from this byte on.
    Syntax(usize),
    /// The value does not fit.
    TooLarge,
}

/// The value of `text`, where `value_of` knows the names.
pub(super) fn evaluate(
    text: &str,
    value_of: &dyn Fn(&str) -> Option<u64>,
) -> Result<u64, FormulaError> {
    let mut reader = Reader {
        text,
        at: 0,
        value_of,
    };
    let value = reader.sum()?;
    match reader.peek() {
        None => Ok(value),
        Some(_) => Err(FormulaError::Syntax(reader.at)),
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    value_of: &'a dyn Fn(&str) -> Option<u64>,
}

impl<'a> Reader<'a> {
    fn sum(&mut self) -> Result<u64, FormulaError> {
        let mut value = self.product()?;
        while self.take(b'+') {
            let other = self.product()?;
            value = value.checked_add(other).ok_or(FormulaError::TooLarge)?;
        }
        Ok(value)
    }

    fn product(&mut self) -> Result<u64, FormulaError> {
        let mut value = self.atom()?;
        while self.take(b'*') {
            let other = self.atom()?;
            value = value.checked_mul(other).ok_or(FormulaError::TooLarge)?;
        }
        Ok(value)
    }

    fn atom(&mut self) -> Result<u64, FormulaError> {
        if self.take(b'(') {
            let value = self.sum()?;
            self.need(b')')?;
            return Ok(value);
        }
        let start = self.at;
        let word = self.word();
        if word == "up" {
            self.need(b'(')?;
            let value = self.sum()?;
            self.need(b',')?;
            let to = self.atom()?;
            self.need(b')')?;
            if to == 0 {
                return Err(FormulaError::Syntax(start));
            }
            return value
                .checked_next_multiple_of(to)
                .ok_or(FormulaError::TooLarge);
        }
        if word.bytes().next().is_some_and(|b| b.is_ascii_digit()) {
            return word.parse().map_err(|_| FormulaError::TooLarge);
        }
        (self.value_of)(word).ok_or(FormulaError::Syntax(start))
    }

    /// The next name or number.
    fn word(&mut self) -> &'a str {
        self.peek();
        let text: &'a str = self.text;
        let rest = &text[self.at..];
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '_'))
            .unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// The next byte that is no blank; `at` is on it afterwards.
    fn peek(&mut self) -> Option<u8> {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, wanted: u8) -> bool {
        let there = self.peek() == Some(wanted);
        self.at += usize::from(there);
        there
    }

    fn need(&mut self, wanted: u8) -> Result<(), FormulaError> {
        match self.take(wanted) {
            true => Ok(()),
            false => Err(FormulaError::Syntax(self.at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_arithmetic() {
        let value_of = |name: &str| match name {
            "slots" => Some(64),
            "key.scale" => Some(4),
            "huge" => Some(u64::MAX),
            _ => None,
        };
        for (text, value) in [
            ("7", Ok(7)),
            ("slots*(128 + key.scale)", Ok(64 * 132)),
            ("2 + 3 * 4", Ok(14)),
            ("up(slots * 584, 576)", Ok(65 * 576)),
            ("up(576,576)", Ok(576)),
            ("huge + 1", Err(FormulaError::TooLarge)),
            ("huge * 2", Err(FormulaError::TooLarge)),
            ("up(huge, 2)", Err(FormulaError::TooLarge)),
            ("99999999999999999999", Err(FormulaError::TooLarge)),
            ("slot", Err(FormulaError::Syntax(0))),
            ("2 + ", Err(FormulaError::Syntax(4))),
            ("(2", Err(FormulaError::Syntax(2))),
            ("2 3", Err(FormulaError::Syntax(2))),
            ("up(2, 0)", Err(FormulaError::Syntax(0))),
        ] {
            assert_eq!(evaluate(text, &value_of), value, "{text}");
        }
    }
}
