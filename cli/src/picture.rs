//! The M×N picture for the terminal, and numbers as people read them.
//!
//! Text that comes from descriptions is shown without control characters: a description may come from
//! elsewhere, and must not drive the terminal.

use moai_fabric::collectives::{
    descriptor::{Component, Descriptor},
    execute::{Agreed, Requested},
    negotiate::Carriage,
    traffic::PairTraffic,
};

/// Columns of a terminal that nobody has widened.
const WIDTH: usize = 80;
/// Ranks of one side that are shown one by one.
const MOST_RANKS: usize = 16;
/// Columns when ranks are shown in ranges: 12 of 5 characters leave room for labels and sums.
const MOST_RANGES: usize = 12;

/// Bytes with a binary unit: `64.0 MiB`.
#[must_use]
pub(crate) fn bytes(n: u64) -> String {
    if n < 1024 {
        return format!("{n} B");
    }
    // From 1023.95 on, one decimal would round to 1024.0.
    let (value, unit) = scaled(n, 1023.95);
    format!("{value:.1} {unit}iB")
}

/// Bytes in at most four characters: `512`, `1.5K`, `64M`.
fn short(n: u64) -> String {
    if n < 1000 {
        return n.to_string();
    }
    match scaled(n, 999.5) {
        (value, unit) if value < 9.95 => format!("{value:.1}{unit}"),
        (value, unit) => format!("{value:.0}{unit}"),
    }
}

/// `n` in the least unit in which it is below `most`.
fn scaled(n: u64, most: f64) -> (f64, char) {
    let (mut value, mut unit) = (n as f64 / 1024.0, 'K');
    for next in ['M', 'G', 'T', 'P', 'E'] {
        if value < most {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    (value, unit)
}

/// Bytes a second with a decimal unit: `1.23 GB/s`. Without time there is no rate.
#[must_use]
pub(crate) fn rate(bytes: u64, ns: u64) -> String {
    if ns == 0 {
        return "no rate".to_owned();
    }
    let per_second = bytes as f64 / ns as f64 * 1e9;
    let (value, unit) = match per_second {
        r if r >= 999.5e9 => (r / 1e12, "TB/s"),
        r if r >= 999.5e6 => (r / 1e9, "GB/s"),
        r if r >= 999.5e3 => (r / 1e6, "MB/s"),
        r if r >= 999.5 => (r / 1e3, "kB/s"),
        r => return format!("{r:.0} B/s"),
    };
    match value {
        v if v < 9.995 => format!("{v:.2} {unit}"),
        v if v < 99.95 => format!("{v:.1} {unit}"),
        v => format!("{v:.0} {unit}"),
    }
}

/// Who sends how much to whom: producer ranks as rows, consumer ranks as columns, bytes on the wire in
/// the cells; above it both sides, below it what happens to each component.
///
/// At most 80 characters wide. Past 16 ranks a side is shown in ranges of ranks.
#[must_use]
pub(crate) fn matrix(requested: &Requested, traffic: &[PairTraffic], colour: bool) -> String {
    let agreed = requested.agreed();
    let pen = Pen { colour };
    let (producer, consumer) = (&agreed.producer, &agreed.consumer);
    let title = format!(
        "{}, {}: {} → {}",
        model(agreed),
        count(requested.tokens().into(), "token"),
        count(producer.ranks.len() as u64, "rank"),
        count(consumer.ranks.len() as u64, "rank")
    );
    let mut out = String::new();
    for line in wrap(&title, WIDTH, 2) {
        out += &format!("{}\n", pen.bold(&line));
    }
    for (name, side) in [("producer", producer), ("consumer", consumer)] {
        out.push('\n');
        out += &header(name, side, pen);
    }
    out.push('\n');
    out += &cells(producer.ranks.len(), consumer.ranks.len(), traffic, pen);
    out.push('\n');
    out += &legend(agreed, pen);
    out
}

/// Terminal colours, or none.
#[derive(Clone, Copy)]
struct Pen {
    colour: bool,
}

impl Pen {
    fn paint(self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }
}

/// The model's name, from whichever side gives it.
pub(crate) fn model(agreed: &Agreed) -> String {
    [&agreed.producer, &agreed.consumer]
        .into_iter()
        .map(|side| plain(&side.model_name))
        .find(|name| !name.is_empty())
        .unwrap_or_else(|| "a model without a name".to_owned())
}

/// The engine, if it is named.
pub(crate) fn engine(side: &Descriptor) -> String {
    match plain(&side.engine) {
        name if name.is_empty() => "an engine without a name".to_owned(),
        name => name,
    }
}

/// Sizes of the parallel dimensions that are more than 1: `tp 4, pp 2`.
pub(crate) fn parallel(side: &Descriptor) -> String {
    let [tp, pp, cp] = side.parallel;
    let mut text = format!("tp {tp}");
    for (name, size) in [("pp", pp), ("cp", cp)] {
        if size > 1 {
            text += &format!(", {name} {size}");
        }
    }
    text
}

/// Tokens a page, group by group where groups differ.
pub(crate) fn page_slots(side: &Descriptor) -> String {
    let first = side.groups[0].page_slots;
    if side.groups.iter().all(|group| group.page_slots == first) {
        return format!("page of {first}");
    }
    let each: Vec<String> = side
        .groups
        .iter()
        .map(|group| format!("{} in {}", group.page_slots, plain(&group.name)))
        .collect();
    format!("page of {}", each.join(", "))
}

/// What a component's rows are made from and into: formats, and the order of rotary pairs.
pub(crate) fn change(source: &Component, target: &Component, carriage: &Carriage) -> String {
    let (from, to) = (&carriage.source_format, &carriage.target_format);
    let mut text = match from == to {
        true => from.clone(),
        false if carriage.unchanged => format!("{from} = {to}"),
        false => format!("{from} → {to}"),
    };
    let pairing = |component: &Component| {
        let rope = component.rope?;
        Some(format!("{:?}", rope.pairing).to_lowercase())
    };
    match (pairing(source), pairing(target)) {
        (Some(a), Some(b)) if a != b && !carriage.unchanged => {
            text += &format!(", rope {a} → {b}");
        }
        _ if from == to && !carriage.unchanged => text += ", rescaled",
        _ => {}
    }
    // A rotation that a description gives stands in the format, one that an element brings does not.
    let own = |c: &Component| c.format.rotated(c.dim) != c.format.rotation;
    let (a, b) = (
        source.format.rotated(source.dim),
        target.format.rotated(target.dim),
    );
    if a != b && (own(source) || own(target)) {
        text += &format!(", rotation {a} → {b}");
    }
    // Any other rule stands in the format.
    if let (Some(rule), 0, false) = (writes_by(target), target.format.rule, carriage.unchanged) {
        text += &format!(", scale rule {rule}");
    }
    text
}

/// The rule by which a writer picks scales, if there is a choice.
pub(crate) fn writes_by(target: &Component) -> Option<&'static str> {
    let rules = || target.format.element.scheme().rules();
    rules()
        .nth(target.format.rule)
        .filter(|_| rules().count() > 1)
}

/// Text of a description without what would drive a terminal, or be no text.
pub(crate) fn plain(text: &str) -> String {
    let shown = |c: char| match c {
        '\t' | '\n' | '\r' => ' ',
        // Marks that reorder the text around them hide what a name says.
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.trim().chars().map(shown).collect()
}

/// `1 rank`, `4 ranks`.
pub(crate) fn count(n: u64, noun: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {noun}{plural}")
}

/// The label of ranks `first..end`.
pub(crate) fn rank_range(first: usize, end: usize) -> String {
    if end == first + 1 {
        first.to_string()
    } else {
        format!("{first}–{}", end - 1)
    }
}

fn header(name: &str, side: &Descriptor, pen: Pen) -> String {
    let mut out = String::new();
    let engine = engine(side);
    for (i, line) in wrap(&engine, WIDTH - 10, 0).iter().enumerate() {
        let name = if i == 0 { name } else { "" };
        out += &format!("{}  {}\n", pen.bold(&format!("{name:8}")), line);
    }
    let facts = format!(
        "{}, {}, {}, {}",
        parallel(side),
        count(side.ranks.len() as u64, "rank"),
        page_slots(side),
        count(side.layers.into(), "layer")
    );
    for line in wrap(&facts, WIDTH - 10, 2) {
        out += &format!("          {line}\n");
    }
    let rows = || side.components.iter();
    let names: Vec<String> = rows().map(|c| plain(&c.name)).collect();
    let formats: Vec<String> = rows().map(|c| c.format.to_string()).collect();
    let widest = |list: &[String]| list.iter().map(|s| s.chars().count()).max().unwrap_or(0);
    let (names_wide, formats_wide) = (widest(&names).min(16), widest(&formats).min(24));
    for ((name, format), component) in names.iter().zip(&formats).zip(rows()) {
        let line = format!(
            "{name:names_wide$}  {format:formats_wide$}  {}",
            component.notation
        );
        for line in wrap(&line, WIDTH - 10, names_wide + formats_wide + 4) {
            out += &format!("          {line}\n");
        }
    }
    out
}

/// How wide cells are, and what they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    /// `█ 22.5 KiB`
    Full,
    /// `█ 22K`
    Short,
    /// `██`
    Shade,
}

impl Cell {
    fn width(self, label: usize) -> usize {
        match self {
            Self::Full => 13,
            Self::Short => 7,
            Self::Shade => label.max(2) + 1,
        }
    }
}

fn cells(producers: usize, consumers: usize, traffic: &[PairTraffic], pen: Pen) -> String {
    let each = |ranks: usize, most: usize| {
        if ranks <= MOST_RANKS {
            1
        } else {
            ranks.div_ceil(most)
        }
    };
    let (tall, wide) = (each(producers, MOST_RANKS), each(consumers, MOST_RANGES));
    let (rows, columns) = (producers.div_ceil(tall), consumers.div_ceil(wide));
    let mut wire = vec![0_u64; rows * columns];
    for pair in traffic {
        let (row, column) = (pair.source as usize / tall, pair.target as usize / wide);
        wire[row * columns + column] += pair.bytes_wire;
    }
    let most = wire.iter().copied().max().unwrap_or(0);

    let label = |row: usize| rank_range(row * tall, ((row + 1) * tall).min(producers));
    let labels: Vec<String> = (0..rows).map(label).collect();
    let label_wide = labels
        .iter()
        .map(|l| l.chars().count())
        .max()
        .unwrap_or(0)
        .max("total".len());
    // The columns are headed by their first rank, so that ranges take no more room than ranks.
    let heads: Vec<String> = (0..columns).map(|c| (c * wide).to_string()).collect();
    let head_wide = heads.iter().map(String::len).max().unwrap_or(0);
    let fits = |cell: &Cell| 2 + label_wide + columns * cell.width(head_wide) + 11 <= WIDTH;
    let cell = [Cell::Full, Cell::Short]
        .into_iter()
        .find(fits)
        .unwrap_or(Cell::Shade);
    let width = cell.width(head_wide);

    let mut out = pen.bold("bytes on the wire");
    out += ", producer ranks as rows, consumer ranks as columns\n";
    out += &format!("  {:label_wide$}", "");
    for head in &heads {
        out += &format!("{head:>width$}");
    }
    out += &format!("{:>11}\n", "total");
    for (row, label) in labels.iter().enumerate() {
        let line = &wire[row * columns..][..columns];
        out += &format!("  {label:>label_wide$}");
        for &n in line {
            let (text, shown) = match (n, cell) {
                (0, _) => ("·".to_owned(), pen.dim("·")),
                (n, Cell::Shade) => {
                    let shade = shade(n, most).to_string().repeat(2);
                    (shade.clone(), pen.paint("36", &shade))
                }
                (n, _) => {
                    let number = if cell == Cell::Full {
                        bytes(n)
                    } else {
                        short(n)
                    };
                    let pad = if cell == Cell::Full { 10 } else { 4 };
                    let shade = shade(n, most).to_string();
                    (
                        format!("{shade}{number:>pad$}"),
                        format!("{}{number:>pad$}", pen.paint("36", &shade)),
                    )
                }
            };
            let blank = width.saturating_sub(text.chars().count());
            out += &format!("{:blank$}{shown}", "");
        }
        let sum: u64 = line.iter().sum();
        let total = if sum == 0 {
            "idle".to_owned()
        } else {
            bytes(sum)
        };
        out += &format!("{total:>11}\n");
    }
    if cell != Cell::Shade {
        out += &format!("  {:>label_wide$}", "total");
        for column in 0..columns {
            let sum: u64 = (0..rows).map(|row| wire[row * columns + column]).sum();
            let text = if cell == Cell::Full {
                bytes(sum)
            } else {
                short(sum)
            };
            out += &format!("{text:>width$}");
        }
        out += &format!("{:>11}\n", bytes(wire.iter().sum()));
    } else {
        let all: u64 = wire.iter().sum();
        let blank = columns * width;
        out += &format!(
            "  {:>label_wide$}{:blank$}{:>11}\n",
            "total",
            "",
            bytes(all)
        );
    }
    if wide > 1 {
        out += &format!("  a column is {wide} consumer ranks, headed by the first\n");
    }
    out += &format!("  ░▒▓█ quarters of the most in a cell, {}\n", bytes(most));
    out
}

/// A block whose weight shows the share of `most`.
fn shade(n: u64, most: u64) -> char {
    match n as f64 / most.max(1) as f64 {
        share if share <= 0.25 => '░',
        share if share <= 0.5 => '▒',
        share if share <= 0.75 => '▓',
        _ => '█',
    }
}

fn legend(agreed: &Agreed, pen: Pen) -> String {
    let agreement = &agreed.agreement;
    let mut out = format!("{}\n", pen.bold("translation"));
    let names: Vec<String> = agreement.spans.iter().map(|s| plain(&s.name)).collect();
    let wide = names
        .iter()
        .map(|n| n.chars().count())
        .max()
        .unwrap_or(0)
        .min(20);
    for ((name, span), carriage) in names.iter().zip(&agreement.spans).zip(&agreement.carriages) {
        let source = &agreed.producer.components[span.source];
        let target = &agreed.consumer.components[span.target];
        let mut text = format!("{name:wide$}  {}", change(source, target, carriage));
        if !carriage.unchanged {
            text += &format!(" by the {}", carriage.converts);
        }
        text += &format!(": {}", carriage.reason);
        if source.notation != target.notation {
            text += "; rows are gathered by the producer and placed by the consumer";
        }
        let lines = wrap(&text, WIDTH - 2, wide + 2);
        for (i, line) in lines.iter().enumerate() {
            let line = if i > 0 || carriage.unchanged {
                line.clone()
            } else {
                pen.paint("33", line)
            };
            out += &format!("  {line}\n");
        }
    }
    out
}

/// Breaks `text` at blanks into lines of at most `width` characters, all but the first indented. A
/// word that fits in no line is cut.
pub(crate) fn wrap(text: &str, width: usize, indent: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let (mut line, mut long, mut fresh) = (String::new(), 0, true);
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        if !fresh && long + 1 + word.len() > width {
            lines.push(std::mem::take(&mut line).trim_end().to_owned());
            line = " ".repeat(indent);
            (long, fresh) = (indent, true);
        }
        if !fresh {
            line.push(' ');
            long += 1;
        }
        while long + word.len() > width {
            let rest = word.split_off(width.saturating_sub(long).max(1));
            line.extend(word);
            lines.push(std::mem::take(&mut line));
            line = " ".repeat(indent);
            long = indent;
            word = rest;
        }
        long += word.len();
        line.extend(word);
        fresh = false;
    }
    lines.push(line.trim_end().to_owned());
    lines
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{path::Path, sync::Arc};

    use moai_fabric::{
        collectives::{request::Request, traffic::traffic},
        files,
    };
    use serde_json::{Value, json};

    use super::*;
    use crate::inputs::Side;

    /// Two descriptions, agreed, and the traffic between them.
    pub(crate) fn agree(sides: [Side; 2]) -> (Arc<Requested>, Vec<PairTraffic>) {
        let [producer, consumer] = sides;
        let requested = Arc::new(Requested::agree(producer, consumer).unwrap());
        let traffic = traffic(&requested);
        (requested, traffic)
    }

    /// A case of `tests/data/kv`, by the number its name starts with.
    pub(crate) fn case(number: &str) -> (Arc<Requested>, Vec<PairTraffic>) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/kv");
        let folder = std::fs::read_dir(root)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                name.starts_with(number)
            })
            .unwrap();
        agree(
            ["producer.json", "consumer.json"]
                .map(|f| files::read_description(&folder.join(f)).unwrap()),
        )
    }

    /// One side of `tp` × `pp` ranks that holds 30 layers of 8 heads for 64 tokens.
    pub(crate) fn side(engine: &str, tp: u32, pp: u32, element: &str) -> Side {
        let component = |name: &str| -> Value {
            json!({ "name": name, "heads": 8, "dim": 64, "pool": "kv", "format": { "element": element },
                    "layout": "[layer] page part slot head dim" })
        };
        let ranks: Vec<Value> = (0..tp * pp)
            .map(|rank| json!({ "rank": rank, "pages": 4, "request_pages": [2, 0, 1, 3] }))
            .collect();
        let text = json!({
            "version": 1, "engine": engine, "model": { "name": "tiny", "layers": 30 },
            "parallel": { "tp": tp, "pp": pp }, "page_slots": 16,
            "components": [component("key"), component("value")],
            "ranks": ranks, "request": { "tokens": 64 },
        });
        Request::read(&text.to_string()).unwrap()
    }

    #[test]
    fn numbers_read_well_at_their_edges() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (64 << 20, "64.0 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
        for (n, text) in [
            (999, "999"),
            (1000, "1.0K"),
            (1023 << 10, "1.0M"),
            (64 << 20, "64M"),
            (u64::MAX, "16E"),
        ] {
            assert_eq!(short(n), text);
        }
        for (n, ns, text) in [
            (1_230_000_000, 1_000_000_000, "1.23 GB/s"),
            (45, 1, "45.0 GB/s"),
            (999_999, 1_000_000_000, "1.00 MB/s"),
            (7, 1_000_000_000, "7 B/s"),
            (7, 0, "no rate"),
        ] {
            assert_eq!(rate(n, ns), text);
        }
    }

    #[test]
    fn a_small_case_looks_like_this() {
        let (agreed, traffic) = case("04");
        let text = matrix(&agreed, &traffic, false);
        let expected = "\
tiny-llama-a, 45 tokens: 4 ranks → 2 ranks

producer  vllm/flash_attn 0.20.2
          tp 4, 4 ranks, page of 16, 2 layers
          key    bf16  [layer] part page slot head dim
          value  bf16  [layer] part page slot head dim

consumer  vllm/rocm_attn 0.20.2
          tp 2, 2 ranks, page of 32, 2 layers
          key    bf16  [layer] part page head dim/8 slot dim%8
          value  bf16  [layer] part page head dim slot

bytes on the wire, producer ranks as rows, consumer ranks as columns
                   0            1      total
      0  █  22.5 KiB            ·   22.5 KiB
      1  █  22.5 KiB            ·   22.5 KiB
      2            ·  █  22.5 KiB   22.5 KiB
      3            ·  █  22.5 KiB   22.5 KiB
  total     45.0 KiB     45.0 KiB   90.0 KiB
  ░▒▓█ quarters of the most in a cell, 22.5 KiB

translation
  key    bf16: bytes are carried unchanged; rows are gathered by the producer
         and placed by the consumer
  value  bf16: bytes are carried unchanged; rows are gathered by the producer
         and placed by the consumer
";
        assert_eq!(text, expected);
    }

    /// One rank with keys and values of 8 heads in pages of 16, and what they keep apart behind them.
    fn apart(format: &Value, dim: u32, params: Option<(u32, &str)>) -> Side {
        let component = |name: &str, dim: u32, pool: &str, format: &Value| {
            json!({ "name": name, "heads": 8, "dim": dim, "pool": pool, "format": format,
                    "layout": "[layer] page slot head dim" })
        };
        let mut components = vec![component("key", dim, "k", format)];
        if let Some((dim, element)) = params {
            components.push(component(
                "key.scale",
                dim,
                "s",
                &json!({ "element": element }),
            ));
        }
        let text = json!({
            "version": 1, "model": { "layers": 2 }, "parallel": {}, "page_slots": 16,
            "components": components, "request": { "tokens": 64 },
            "ranks": [{ "rank": 0, "pages": 4, "request_pages": [3, 1, 0, 2] }],
        });
        Request::read(&text.to_string()).unwrap()
    }

    #[test]
    fn rules_and_rotations_are_said_and_bytes_count_what_rows_keep_apart() {
        let nvfp4 = json!({
            "element": "nvfp4", "scale_rule": "unclamped", "rotation": { "hadamard": 32 },
            "scale": { "granularity": "tensor", "values": 0.5 },
        });
        let int4 = json!({ "element": "int4_per_token_head" });
        let mxfp4 = json!({ "element": "mxfp4" });
        let bf16 = json!({ "element": "bf16" });
        let rows = 8 * 64 * 2;
        for (source, of_source, target, of_target, bytes, says) in [
            (
                &nvfp4,
                Some((4, "e4m3fn")),
                &bf16,
                None,
                [36, 36, 128],
                "nvfp4.unclamped@tensor+hadamard32 → bf16",
            ),
            (
                &bf16,
                None,
                &nvfp4,
                Some((4, "e4m3fn")),
                [128, 36, 36],
                "bf16 → nvfp4.unclamped@tensor+hadamard32 by the producer:",
            ),
            (
                &int4,
                Some((1, "f32")),
                &mxfp4,
                Some((2, "e8m0")),
                [36, 34, 34],
                "int4_per_token_head → mxfp4, rotation signed hadamard → none, scale rule rceil by the producer:",
            ),
            (
                &mxfp4,
                Some((2, "e8m0")),
                &mxfp4,
                Some((2, "e8m0")),
                [34, 34, 34],
                "mxfp4: bytes are carried unchanged",
            ),
        ] {
            let (agreed, traffic) =
                agree([apart(source, 64, of_source), apart(target, 64, of_target)]);
            let text = matrix(&agreed, &traffic, false)
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ");
            assert!(text.contains(says), "{text}");
            let [pair] = &traffic[..] else {
                panic!("{traffic:?}")
            };
            let found = [pair.bytes_read, pair.bytes_wire, pair.bytes_written];
            assert_eq!(found, bytes.map(|row| row * rows), "{says}");
            // Of each layer and page, the codes of all heads are a run, and what is apart from them is another.
            let runs = |params: Option<(u32, &str)>| 2 * 4 * (1 + u64::from(params.is_some()));
            assert_eq!(
                [pair.source_runs, pair.target_runs],
                [runs(of_source), runs(of_target)],
                "{says}"
            );
        }
    }

    #[test]
    fn colour_adds_only_escapes() {
        let (agreed, traffic) = case("10");
        let mut colourless = String::new();
        let coloured = matrix(&agreed, &traffic, true);
        for (i, part) in coloured.split('\x1b').enumerate() {
            let rest = part
                .split_once('m')
                .filter(|_| i > 0)
                .map_or(part, |(_, rest)| rest);
            colourless += rest;
        }
        assert_ne!(colourless, coloured);
        assert_eq!(colourless, matrix(&agreed, &traffic, false));
    }

    #[test]
    fn no_line_is_wider_than_a_terminal() {
        let long = "an engine \u{1b}[31m with \u{7} a name \u{202e} that goes on ".repeat(9)
            + &"x".repeat(300);
        let shapes = [
            [(64, 1), (128, 1)],
            [(8, 6), (64, 2)],
            [(1, 1), (1, 1)],
            [(4, 1), (8, 1)],
            [(16, 1), (16, 1)],
            [(8, 3), (16, 1)],
            [(2, 2), (2, 5)],
            [(8, 1), (2048, 2)],
        ];
        for [(tp, pp), (other_tp, other_pp)] in shapes {
            let sides = [
                side(&long, tp, pp, "bf16"),
                side("b", other_tp, other_pp, "f32"),
            ];
            let (agreed, traffic) = agree(sides);
            let text = matrix(&agreed, &traffic, false);
            for line in text.lines() {
                let wide = line.chars().count();
                assert!(
                    wide <= WIDTH,
                    "{wide} characters for {tp}x{pp} to {other_tp}x{other_pp}: {line}"
                );
            }
            assert!(text.lines().count() < 60, "{text}");
            assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text}");
        }
    }
}
