//! Formats by name, as people write them on a command line.

use crate::{
    element::Element,
    format::{FormatError, RowFormat, RowScale},
    rotation::Rotation,
};

impl RowFormat {
    /// The format that `name` says: an element, then what there is of `.rule`, `@scale` and `+rotation`.
    ///
    /// `@tensor` is a constant scale, which is `constant`; `@token_head` is an `f32` for each row. An element that takes
    /// a constant takes `constant` without being asked, too. Rotations are `+hadamardN` and `+signed`.
    ///
    /// # Errors
    ///
    /// - Those of [`Element::from_str`](std::str::FromStr::from_str) and [`with_rule`](Self::with_rule).
    /// - [`FormatError::Name`] for what else is not understood, for `@tensor` without a constant and for a constant
    ///   that the element does not take.
    ///
    /// # Example
    ///
    /// ```
    /// use moai_translate::format::{RowFormat, RowScale};
    /// use moai_translate::rotation::Rotation;
    ///
    /// let keys = RowFormat::named("q8_0+hadamard64", None)?;
    /// assert_eq!(keys.rotation, Rotation::Hadamard(64));
    /// assert_eq!(RowFormat::named("mxfp4.floor", None)?.rule, 1);
    /// assert_eq!(RowFormat::named("e4m3fn", Some(0.5))?.scale, RowScale::Constant(0.5));
    /// assert!(RowFormat::named("e4m3fn@tensor", None).is_err());
    /// # Ok::<(), moai_translate::format::FormatError>(())
    /// ```
    pub fn named(name: &str, constant: Option<f32>) -> Result<Self, FormatError> {
        let fail = |problem: String| FormatError::Name {
            name: name.to_owned(),
            problem,
        };
        let (rest, rotation) = match name.split_once('+') {
            Some((rest, rotation)) => (rest, Some(rotation)),
            None => (name, None),
        };
        let (rest, scale) = match rest.split_once('@') {
            Some((rest, scale)) => (rest, Some(scale)),
            None => (rest, None),
        };
        let (element, rule) = match rest.split_once('.') {
            Some((element, rule)) => (element, Some(rule)),
            None => (rest, None),
        };
        let element: Element = element.parse()?;
        let mut format = Self::of(element);
        if let Some(rule) = rule {
            format = format.with_rule(rule)?;
        }
        if let Some(value) = constant {
            if scale == Some("token_head") || !element.takes_constant_scale() {
                return Err(fail(format!(
                    "{value} is given as a constant scale, which it does not take"
                )));
            }
            format.scale = RowScale::Constant(value);
        }
        match scale {
            None => {}
            Some("token_head") if element.takes_row_scale() => format.scale = RowScale::Row,
            Some("tensor") if element.takes_constant_scale() && constant.is_none() => {
                return Err(fail(
                    "the scale of a tensor is a constant, which is not given".to_owned(),
                ));
            }
            Some("tensor") if element.takes_constant_scale() => {}
            Some(scale @ ("token_head" | "tensor")) => {
                return Err(fail(format!("{element} takes no {scale} scale")));
            }
            Some(other) => {
                return Err(fail(format!(
                    "@{other} is no scale; expected @tensor or @token_head"
                )));
            }
        }
        format.rotation = match rotation {
            None => Rotation::None,
            Some("signed") => Rotation::Signed,
            Some("hadamard") => Rotation::Hadamard(0),
            Some(other) => {
                let n = other.strip_prefix("hadamard").and_then(|n| n.parse().ok());
                let n = n.filter(|n: &u32| n.is_power_of_two()).ok_or_else(|| {
                    fail(format!(
                        "+{other} is no rotation; expected +hadamardN, N a power of two, or +signed"
                    ))
                })?;
                Rotation::Hadamard(n)
            }
        };
        Ok(format)
    }
}
