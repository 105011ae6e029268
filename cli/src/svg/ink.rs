//! Pen and paper: rectangles, ribbons and text as SVG, with no text unescaped and none wider than its
//! place.

use std::fmt::{self, Write as _};

use crate::picture::plain;

/// Text and lines.
pub(super) const INK: &str = "#1b2530";
/// Text of less weight. At 4.9:1 on [`PAPER`] it stays readable from the last row.
pub(super) const MUTED: &str = "#5b6875";
/// Lines of less weight, and what belongs to somebody else.
pub(super) const PALE: &str = "#d5dbe2";
/// Panels.
pub(super) const PAPER: &str = "#ffffff";
/// What panels lie on. The picture brings its own ground and looks the same on any slide.
pub(super) const GROUND: &str = "#f2f4f7";
/// Where something is converted.
const CONVERT: &str = "#9a3f06";
/// Ground of [`CONVERT`].
const CONVERT_GROUND: &str = "#fdecd2";

/// Hues of heads, neighbours told apart by most colour-blind readers by lightness as well.
const HUES: [Rgb; 8] = [
    Rgb(20, 152, 137),
    Rgb(64, 146, 226),
    Rgb(98, 99, 214),
    Rgb(166, 99, 210),
    Rgb(219, 84, 148),
    Rgb(238, 110, 77),
    Rgb(236, 163, 58),
    Rgb(139, 180, 66),
];

/// A colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rgb(u8, u8, u8);

impl Rgb {
    /// The colour of the `index`th of `count` heads.
    pub(super) fn head(index: usize, count: usize) -> Self {
        let at = index as f64 * HUES.len() as f64 / count.max(1) as f64;
        let (low, part) = (at as usize, at.fract());
        HUES[low % HUES.len()].mix(HUES[(low + 1) % HUES.len()], part)
    }

    /// This colour in the `index`th of `count` shades, from light to dark.
    pub(super) fn shade(self, index: usize, count: usize) -> Self {
        let at = match count {
            0 | 1 => 0.6,
            _ => index as f64 / (count - 1) as f64,
        };
        if at < 0.6 {
            self.mix(Self(255, 255, 255), 0.68 * (1.0 - at / 0.6))
        } else {
            self.mix(Self(16, 24, 40), 0.5 * (at - 0.6) / 0.4)
        }
    }

    fn mix(self, other: Self, part: f64) -> Self {
        let one =
            |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * part).round() as u8;
        Self(
            one(self.0, other.0),
            one(self.1, other.1),
            one(self.2, other.2),
        )
    }
}

impl fmt::Display for Rgb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{:02x}{:02x}{:02x}", self.0, self.1, self.2)
    }
}

/// Where text stands relative to its x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    /// It begins there.
    Start,
    /// Its middle is there.
    Middle,
    /// It ends there.
    End,
}

/// How text looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    size: f64,
    bold: bool,
    mono: bool,
    anchor: Anchor,
    fill: &'static str,
}

impl Style {
    /// Plain text of `size`, beginning at its x.
    pub(super) const fn new(size: f64) -> Self {
        Self {
            size,
            bold: false,
            mono: false,
            anchor: Anchor::Start,
            fill: INK,
        }
    }

    pub(super) const fn bold(self) -> Self {
        Self { bold: true, ..self }
    }

    pub(super) const fn mono(self) -> Self {
        Self { mono: true, ..self }
    }

    pub(super) const fn fill(self, fill: &'static str) -> Self {
        Self { fill, ..self }
    }

    pub(super) const fn at(self, anchor: Anchor) -> Self {
        Self { anchor, ..self }
    }

    /// The same, small enough for `text` to be `width` wide, but not below two thirds.
    pub(super) fn shrunk(self, text: &str, width: f64) -> Self {
        let fits = self.size * width / self.width(text).max(1.0);
        Self {
            size: fits.clamp(self.size * 2.0 / 3.0, self.size),
            ..self
        }
    }

    /// How wide `text` gets at most. Fonts differ; this is the widest of the families asked for.
    pub(super) fn width(&self, text: &str) -> f64 {
        let one = |c: char| match c {
            _ if self.mono && c.is_ascii() => 0.61,
            'i' | 'j' | 'l' | ' ' | '.' | ',' | ':' | '(' | ')' => 0.4,
            'm' | 'w' | 'M' | 'W' | '@' => 0.98,
            'A'..='Z' => 0.72,
            c if c.is_ascii() => 0.62,
            c if c < '\u{1100}' => 0.75,
            '→' | '–' | '…' | '↓' => 0.9,
            _ => 1.1,
        };
        let weight = if self.bold { 1.08 } else { 1.0 };
        text.chars().map(one).sum::<f64>() * self.size * weight
    }

    /// `text`, cut to `width` with an ellipsis if it is longer.
    pub(super) fn fit(&self, text: &str, width: f64) -> String {
        let text = plain(text);
        if self.width(&text) <= width {
            return text;
        }
        let mut cut = String::new();
        for c in text.chars() {
            cut.push(c);
            if self.width(&cut) + self.width("…") > width {
                cut.pop();
                break;
            }
        }
        format!("{}…", cut.trim_end())
    }

    /// `text` in at most `most` lines of `width`.
    pub(super) fn wrap(&self, text: &str, width: f64, most: usize) -> Vec<String> {
        let mut lines: Vec<String> = vec![String::new()];
        for word in plain(text).split(' ') {
            let last = lines.len() - 1;
            let longer = match lines[last].as_str() {
                "" => word.to_owned(),
                line => format!("{line} {word}"),
            };
            if lines[last].is_empty() || lines.len() == most || self.width(&longer) <= width {
                lines[last] = longer;
            } else {
                lines.push(word.to_owned());
            }
        }
        lines.iter().map(|line| self.fit(line, width)).collect()
    }
}

/// A box on the paper.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rect {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) w: f64,
    pub(super) h: f64,
}

/// The picture as it grows.
#[derive(Debug, Default)]
pub(super) struct Ink {
    out: String,
}

impl Ink {
    /// A rectangle with round corners; `more` are further attributes.
    pub(super) fn rect(&mut self, rect: Rect, round: f64, fill: impl fmt::Display, more: &str) {
        let Rect { x, y, w, h } = rect;
        let (x, y, w, h, round) = (N(x), N(y), N(w), N(h), N(round));
        self.add(format_args!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" rx=\"{round}\" fill=\"{fill}\"{more}/>\n"
        ));
    }

    /// A panel to put things on.
    pub(super) fn panel(&mut self, rect: Rect) {
        self.rect(rect, 14.0, PAPER, &format!(" stroke=\"{PALE}\""));
    }

    /// A shape; `d` is path data.
    pub(super) fn path(&mut self, d: &str, fill: impl fmt::Display, more: &str) {
        self.add(format_args!("<path d=\"{d}\" fill=\"{fill}\"{more}/>\n"));
    }

    /// One line of text with its baseline at y.
    pub(super) fn text(&mut self, x: f64, y: f64, style: &Style, text: &str) {
        self.words(x, y, style, &[(style.fill, text)]);
    }

    /// One line of text in several colours.
    pub(super) fn words(&mut self, x: f64, y: f64, style: &Style, words: &[(&str, &str)]) {
        let mut more = String::new();
        match style.anchor {
            Anchor::Start => {}
            Anchor::Middle => more += " text-anchor=\"middle\"",
            Anchor::End => more += " text-anchor=\"end\"",
        }
        if style.bold {
            more += " font-weight=\"600\"";
        }
        if style.mono {
            let _ = write!(more, " font-family=\"{MONO}\"");
        }
        let (x, y, size) = (N(x), N(y), N(style.size));
        let fill = words.first().map_or(style.fill, |(fill, _)| fill);
        self.add(format_args!(
            "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\" fill=\"{fill}\"{more}>"
        ));
        for (i, (own, word)) in words.iter().enumerate() {
            let blank = if i == 0 { "" } else { " " };
            let word = Escaped(word);
            if *own == fill {
                self.add(format_args!("{blank}{word}"));
            } else {
                self.add(format_args!("{blank}<tspan fill=\"{own}\">{word}</tspan>"));
            }
        }
        self.out.push_str("</text>\n");
    }

    /// A badge around `x` with its middle at `y`: here something is converted.
    pub(super) fn badge(&mut self, x: f64, y: f64, text: &str) {
        let style = Self::BADGE;
        let w = Self::badge_width(text);
        let rect = Rect {
            x: x - w / 2.0,
            y: y - 9.0,
            w,
            h: 18.0,
        };
        self.rect(rect, 9.0, CONVERT_GROUND, "");
        self.text(x, y + 4.0, &style, text);
    }

    /// How wide a badge gets.
    pub(super) fn badge_width(text: &str) -> f64 {
        Self::BADGE.width(text) + 12.0
    }

    const BADGE: Style = Style::new(11.0).bold().fill(CONVERT).at(Anchor::Middle);

    /// Opens a group with a tooltip; `more` are attributes.
    pub(super) fn open(&mut self, more: &str, tooltip: &str) {
        let tooltip = Escaped(tooltip);
        self.add(format_args!("<g{more}><title>{tooltip}</title>\n"));
    }

    /// Closes what [`open`](Self::open) opened.
    pub(super) fn close(&mut self) {
        self.out.push_str("</g>\n");
    }

    /// The whole document. `title` is for those who do not see it.
    pub(super) fn finish(self, width: f64, height: f64, title: &str) -> String {
        let (w, h, title, body) = (N(width), N(height), Escaped(title), self.out);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\" \
             role=\"img\" font-family=\"{SANS}\">\n<title>{title}</title>\n\
             <rect width=\"{w}\" height=\"{h}\" rx=\"20\" fill=\"{GROUND}\"/>\n{body}</svg>\n"
        )
    }

    /// Puts another picture on top.
    pub(super) fn append(&mut self, other: Self) {
        self.out += &other.out;
    }

    fn add(&mut self, what: fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = self.out.write_fmt(what);
    }
}

const SANS: &str =
    "Inter, 'Segoe UI', 'Helvetica Neue', Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif";
const MONO: &str =
    "'JetBrains Mono', Menlo, Consolas, 'Liberation Mono', 'DejaVu Sans Mono', monospace";

/// A coordinate to a tenth, without trailing zeros: what a screen shows, in the fewest bytes.
#[derive(Clone, Copy)]
pub(super) struct N(pub(super) f64);

impl fmt::Display for N {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = (self.0 * 10.0).round();
        if tenths % 10.0 == 0.0 {
            write!(f, "{}", (tenths / 10.0) as i64)
        } else {
            write!(f, "{:.1}", tenths / 10.0)
        }
    }
}

/// Text between tags or in an attribute. Characters that XML does not have become U+FFFD.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\n' | '\t' | '\r' => f.write_char(' ')?,
                '\u{fffe}' | '\u{ffff}' => f.write_char('\u{fffd}')?,
                c if c.is_control() => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_stays_in_its_place() {
        assert_eq!(
            Escaped("<&\">'\u{1}\u{ffff}\n").to_string(),
            "&lt;&amp;&quot;&gt;&#39;\u{fffd}\u{fffd} "
        );
        let style = Style::new(12.0);
        for text in [
            "",
            "short",
            "a line that is a good deal longer",
            "漢字漢字漢字漢字漢字",
        ] {
            let cut = style.fit(text, 100.0);
            assert!(style.width(&cut) <= 100.0, "{cut}");
            for line in style.wrap(text, 100.0, 2) {
                assert!(style.width(&line) <= 100.0, "{line}");
            }
        }
        assert_eq!(
            style.wrap("one two three", 45.0, 9),
            ["one", "two", "three"]
        );
    }

    #[test]
    fn coordinates_are_short() {
        for (n, text) in [
            (1.0, "1"),
            (0.04, "0"),
            (-0.04, "0"),
            (2.26, "2.3"),
            (1599.96, "1600"),
        ] {
            assert_eq!(N(n).to_string(), text);
        }
    }
}
