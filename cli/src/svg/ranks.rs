//! Who sends what to whom: the ranks of both sides, and ribbons between them as wide as their bytes.

use std::{collections::BTreeMap, fmt::Write as _};

use moai_fabric::collectives::{
    descriptor::Descriptor,
    execute::{Agreed, Requested},
    negotiate::Role,
    request::Request,
    traffic::PairTraffic,
};

use super::ink::{Anchor, INK, Ink, MUTED, N, PALE, PAPER, Rect, Rgb, Style};
use crate::picture::{bytes, rank_range};

/// Ranks of one side that are drawn one by one.
const MOST_NODES: usize = 128;
/// Ribbons, counted head by head; with more, a pair is one ribbon in the colour of most of its bytes.
const MOST_RIBBONS: usize = 3000;
/// Layers that a grid tells apart.
const MOST_ROWS: usize = 32;
/// Width of a rank's box.
pub(super) const BOX: f64 = 300.0;

/// Both columns of ranks and the ribbons between them, ready to be drawn.
#[derive(Debug)]
pub(super) struct Ranks {
    sides: [Column; 2],
    ribbons: Vec<Ribbon>,
    height: f64,
    colours: usize,
    /// Height of a byte.
    scale: f64,
    idle: bool,
}

/// The ranks of one side.
#[derive(Debug)]
struct Column {
    nodes: Vec<Node>,
    gap: f64,
    node_height: f64,
    rows: usize,
}

/// One rank, or neighbouring ranks drawn as one.
#[derive(Debug)]
struct Node {
    label: String,
    place: String,
    owns: String,
    tokens: String,
    bytes: u64,
    /// Rows of layers × colours of heads.
    grid: Vec<Held>,
}

/// Whether a rank holds a layer of a head, and whether that takes part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Held {
    #[default]
    No,
    /// A replica sends instead.
    Idle,
    Moves,
}

/// What goes from one node to another.
#[derive(Debug)]
struct Ribbon {
    source: usize,
    target: usize,
    bytes: u64,
    tooltip: String,
    /// Bytes by colour.
    stripes: Vec<(usize, u64)>,
}

/// The corner of a column and which way it faces.
#[derive(Clone, Copy)]
struct Place {
    x: f64,
    y: f64,
    role: Role,
}

impl Ranks {
    pub(super) fn new(requested: &Requested, traffic: &[PairTraffic], colours: usize) -> Self {
        let (agreed, requests) = (
            requested.agreed(),
            [requested.producer(), requested.consumer()],
        );
        let sides = [&agreed.producer, &agreed.consumer];
        // Ranks in one node: the least number for which nodes stay apart.
        let merge = sides.map(|side| side.ranks.len().div_ceil(MOST_NODES).max(1));
        let mut columns = [
            Column::new(
                (&agreed.producer, requests[0]),
                Role::Producer,
                merge[0],
                colours,
            ),
            Column::new(
                (&agreed.consumer, requests[1]),
                Role::Consumer,
                merge[1],
                colours,
            ),
        ];
        let mut ribbons: BTreeMap<(usize, usize), Ribbon> = BTreeMap::new();
        for pair in traffic {
            let (source, target) = (
                pair.source as usize / merge[0],
                pair.target as usize / merge[1],
            );
            let ribbon = ribbons.entry((source, target)).or_insert_with(|| Ribbon {
                source,
                target,
                bytes: 0,
                tooltip: String::new(),
                stripes: Vec::new(),
            });
            ribbon.bytes += pair.bytes_wire;
            columns[0].nodes[source].bytes += pair.bytes_wire;
            columns[1].nodes[target].bytes += pair.bytes_wire;
            ribbon.add(agreed, pair, colours);
            columns[0].mark(agreed, pair, source, colours);
        }
        let mut ribbons: Vec<Ribbon> = ribbons.into_values().collect();
        if ribbons.iter().map(|r| r.stripes.len()).sum::<usize>() > MOST_RIBBONS {
            for ribbon in &mut ribbons {
                let most = ribbon.stripes.iter().max_by_key(|(_, bytes)| *bytes);
                ribbon.stripes = most
                    .map(|&(colour, _)| (colour, ribbon.bytes))
                    .into_iter()
                    .collect();
            }
        }
        for ribbon in &mut ribbons {
            let [source, target] = [(0, ribbon.source), (1, ribbon.target)]
                .map(|(side, node): (usize, usize)| &columns[side].nodes[node].label);
            ribbon.tooltip = format!(
                "producer {source} → consumer {target}: {}",
                bytes(ribbon.bytes)
            );
        }
        let height = columns
            .iter()
            .map(Column::least_height)
            .fold(230.0, f64::max);
        for column in &mut columns {
            let n = column.nodes.len() as f64;
            column.node_height = (height - column.gap * (n - 1.0)) / n;
        }
        let scales = columns.iter().flat_map(|column| {
            let room = column.node_height * if column.is_compact() { 0.96 } else { 0.84 };
            let most = column
                .nodes
                .iter()
                .map(|node| node.bytes)
                .max()
                .unwrap_or(0);
            (most > 0).then(|| room / most as f64)
        });
        let scale = scales.fold(f64::INFINITY, f64::min);
        // Without bytes there are no ribbons.
        let scale = if scale.is_finite() { scale } else { 0.0 };
        let idle = columns[0]
            .nodes
            .iter()
            .any(|node| node.grid.contains(&Held::Idle));
        Self {
            sides: columns,
            ribbons,
            height,
            colours,
            scale,
            idle,
        }
    }

    pub(super) fn height(&self) -> f64 {
        self.height
    }

    /// Whether some producer rank holds rows that a replica sends.
    pub(super) fn has_idle(&self) -> bool {
        self.idle
    }

    /// Draws everything between `x` and `x + width`, from `y` on.
    pub(super) fn draw(&self, ink: &mut Ink, x: f64, y: f64, width: f64) {
        let places = [
            Place {
                x,
                y,
                role: Role::Producer,
            },
            Place {
                x: x + width - BOX,
                y,
                role: Role::Consumer,
            },
        ];
        for (column, place) in self.sides.iter().zip(places) {
            column.draw(ink, place, self.colours);
        }
        self.draw_ribbons(ink, [x + BOX, x + width - BOX], y);
    }

    fn draw_ribbons(&self, ink: &mut Ink, [left, right]: [f64; 2], y: f64) {
        let tops = |column: &Column| -> Vec<f64> {
            let top = |(i, node): (usize, &Node)| {
                let middle = column.top(i) + column.node_height / 2.0;
                y + middle - node.bytes as f64 * self.scale / 2.0
            };
            column.nodes.iter().enumerate().map(top).collect()
        };
        let mut free = [tops(&self.sides[0]), tops(&self.sides[1])];
        // At the target, ribbons lie in the order of their sources; the list is in that order for both.
        let bend = (right - left) * 0.45;
        let label = Style::new(11.5).bold();
        let mut labels = Vec::new();
        for ribbon in &self.ribbons {
            ink.open(" class=\"pair\"", &ribbon.tooltip);
            let start = free[0][ribbon.source];
            for &(colour, bytes) in &ribbon.stripes {
                let high = bytes as f64 * self.scale;
                let (a, b) = (free[0][ribbon.source], free[1][ribbon.target]);
                free[0][ribbon.source] += high;
                free[1][ribbon.target] += high;
                // What is thinner than a hair would not be seen.
                let high = high.max(0.6);
                let (x1, x2, c1, c2) = (N(left), N(right), N(left + bend), N(right - bend));
                let (a1, b1, a2, b2) = (N(a), N(b), N(a + high), N(b + high));
                let d = format!(
                    "M{x1} {a1}C{c1} {a1} {c2} {b1} {x2} {b1}V{b2}C{c2} {b2} {c1} {a2} {x1} {a2}z"
                );
                ink.path(&d, Rgb::head(colour, self.colours), " fill-opacity=\".6\"");
            }
            ink.close();
            let end = free[0][ribbon.source];
            if end - start >= 15.0 {
                let target = &self.sides[1].nodes[ribbon.target].label;
                labels.push((
                    (start + end) / 2.0,
                    format!("{} → {target}", bytes(ribbon.bytes)),
                ));
            }
        }
        for (middle, text) in labels {
            ink.text(left + 12.0, middle + 4.0, &label, &text);
        }
    }
}

impl Ribbon {
    /// Adds a pair's bytes to the colours of the heads they belong to.
    fn add(&mut self, agreed: &Agreed, pair: &PairTraffic, colours: usize) {
        let agreement = &agreed.agreement;
        for step in &pair.steps {
            let index = agreement
                .spans
                .iter()
                .position(|span| span.name == step.component);
            let Some(index) = index else { continue };
            let rows = step.tokens * step.layers.len() as u64;
            let head = rows * agreement.carriages[index].row_bytes[1];
            let all = agreed.consumer.components[agreement.spans[index].target].heads;
            for (colour, heads) in coloured(step.heads, all, colours) {
                match self.stripes.iter_mut().find(|(own, _)| *own == colour) {
                    Some((_, sum)) => *sum += heads * head,
                    None => self.stripes.push((colour, heads * head)),
                }
            }
        }
        self.stripes.sort_unstable();
    }
}

/// How many of the heads have which colour.
fn coloured([first, end]: [u32; 2], all: u32, colours: usize) -> Vec<(usize, u64)> {
    let mut list: Vec<(usize, u64)> = Vec::new();
    for head in first..end {
        let colour = super::colour_of(head, all, colours);
        match list.last_mut() {
            Some((last, n)) if *last == colour => *n += 1,
            _ => list.push((colour, 1)),
        }
    }
    list
}

impl Column {
    fn new(
        (side, request): (&Descriptor, &Request),
        role: Role,
        merge: usize,
        colours: usize,
    ) -> Self {
        let rows = (side.layers as usize).min(MOST_ROWS);
        let row = |layer: u32| layer as usize * rows / side.layers as usize;
        let main = super::main_component(side);
        let mut nodes = Vec::new();
        for (i, ranks) in side.ranks.chunks(merge).enumerate() {
            let mut grid = vec![Held::No; rows * colours];
            for rank in ranks {
                for (index, component) in side.components.iter().enumerate() {
                    if component.is_scales {
                        continue;
                    }
                    let heads = rank.heads(index);
                    let colours_of = coloured([heads.start, heads.end], component.heads, colours);
                    for &layer in rank.layers_of(index) {
                        for &(colour, _) in &colours_of {
                            // A consumer's rows are all written.
                            grid[row(layer) * colours + colour] = match role {
                                Role::Producer => Held::Idle,
                                Role::Consumer => Held::Moves,
                            };
                        }
                    }
                }
            }
            let end = (i * merge + ranks.len()).min(side.ranks.len());
            let one = (ranks.len() == 1).then(|| &ranks[0]);
            let label = rank_range(i * merge, end);
            nodes.push(Node {
                label: if one.is_some() {
                    format!("rank {label}")
                } else {
                    format!("ranks {label}")
                },
                place: one.map_or_else(String::new, |rank| {
                    let [tp, pp, cp] = side.parallel;
                    let at = [
                        ("tp", rank.tp, tp),
                        ("pp", rank.pp, pp),
                        ("cp", rank.cp, cp),
                    ];
                    // Along a single axis the rank's number says it already.
                    let many = at.iter().filter(|(_, _, size)| *size > 1).count() > 1;
                    let words: Vec<String> = at
                        .iter()
                        .filter(|(_, _, size)| many && *size > 1)
                        .map(|(name, at, _)| format!("{name} {at}"))
                        .collect();
                    words.join(", ")
                }),
                owns: one.map_or_else(String::new, |rank| {
                    let heads = rank.heads(main);
                    let layers = rank.layers_of(main);
                    format!(
                        "{}, {}",
                        intervals("layer", layers),
                        interval("head", heads.start, heads.end)
                    )
                }),
                tokens: one.map_or_else(String::new, |rank| {
                    tokens(side, rank.rank as usize, request.tokens)
                }),
                bytes: 0,
                grid,
            });
        }
        let gap = match nodes.len() {
            0..=8 => 14.0,
            9..=24 => 6.0,
            _ => 2.0,
        };
        Self {
            nodes,
            gap,
            node_height: 0.0,
            rows,
        }
    }

    fn least_height(&self) -> f64 {
        let n = self.nodes.len() as f64;
        let each = match self.nodes.len() {
            0..=8 => 80.0,
            9..=24 => 34.0,
            _ => 9.0,
        };
        n * each + (n - 1.0) * self.gap
    }

    /// Too many ranks for boxes with words.
    fn is_compact(&self) -> bool {
        self.node_height < 26.0
    }

    fn top(&self, node: usize) -> f64 {
        node as f64 * (self.node_height + self.gap)
    }

    /// Notes which of a producer node's rows a pair moves.
    fn mark(&mut self, agreed: &Agreed, pair: &PairTraffic, node: usize, colours: usize) {
        let layers = agreed.producer.layers as usize;
        for step in &pair.steps {
            let span = agreed
                .agreement
                .spans
                .iter()
                .find(|span| span.name == step.component);
            let Some(span) = span else { continue };
            let all = agreed.consumer.components[span.target].heads;
            for (colour, _) in coloured(step.heads, all, colours) {
                for &layer in &step.layers {
                    let row = layer as usize * self.rows / layers;
                    self.nodes[node].grid[row * colours + colour] = Held::Moves;
                }
            }
        }
    }

    fn draw(&self, ink: &mut Ink, place: Place, colours: usize) {
        let mut free = f64::NEG_INFINITY;
        for (i, node) in self.nodes.iter().enumerate() {
            let rect = Rect {
                x: place.x,
                y: place.y + self.top(i),
                w: BOX,
                h: self.node_height,
            };
            if self.is_compact() {
                self.draw_bar(ink, place.role, node, rect, colours, &mut free);
            } else {
                self.draw_box(ink, place.role, node, rect, colours);
            }
        }
    }

    fn draw_box(&self, ink: &mut Ink, role: Role, node: &Node, rect: Rect, colours: usize) {
        let idle = node.bytes == 0;
        let stroke = if idle {
            " stroke-dasharray=\"5 4\""
        } else {
            ""
        };
        ink.rect(rect, 9.0, "#fafbfc", &format!(" stroke=\"{PALE}\"{stroke}"));
        let roomy = rect.h >= 60.0;
        // Square cells where they fit, else as flat as need be.
        let cell = (112.0 / colours as f64)
            .min((rect.h - 18.0) / 2.0)
            .min(28.0);
        let high = (self.rows as f64 * cell).min(rect.h - 12.0).min(240.0);
        let wide = (colours as f64 * cell).min(112.0);
        let grid = Rect {
            x: match role {
                Role::Producer => rect.x + rect.w - 14.0 - wide,
                Role::Consumer => rect.x + 14.0,
            },
            y: rect.y + (rect.h - high) / 2.0,
            w: wide,
            h: high,
        };
        self.draw_grid(ink, node, grid, colours);
        let room = rect.w - wide - 42.0;
        let (x, anchor) = match role {
            Role::Producer => (rect.x + 14.0, Anchor::Start),
            Role::Consumer => (rect.x + rect.w - 14.0, Anchor::End),
        };
        let moves = match (role, idle) {
            (_, true) => "idle, a replica sends".to_owned(),
            (Role::Producer, _) => format!("sends {}", bytes(node.bytes)),
            (Role::Consumer, _) => format!("receives {}", bytes(node.bytes)),
        };
        let title = Style::new(if roomy { 15.0 } else { 12.5 })
            .bold()
            .at(anchor);
        let small = Style::new(11.5).fill(MUTED).at(anchor);
        if !roomy {
            let middle = rect.y + rect.h / 2.0;
            let two = rect.h >= 32.0;
            let up = if two { 2.5 } else { -4.5 };
            let label = title.fit(&node.label, room);
            let sum = bytes(node.bytes);
            let mut words = vec![(INK, label.as_str())];
            if !idle && title.width(&format!("{label} {sum}")) <= room {
                words.push((MUTED, &sum));
            }
            ink.words(x, middle - up, &title, &words);
            if two {
                let style = Style::new(10.5)
                    .fill(MUTED)
                    .at(anchor)
                    .shrunk(&node.owns, room);
                ink.text(x, middle + 11.0, &style, &style.fit(&node.owns, room));
            }
            return;
        }
        let mut lines: Vec<&str> = vec![&moves, &node.owns, &node.tokens, &node.place];
        lines.retain(|line| !line.is_empty());
        let most = ((rect.h - 30.0) / 15.0) as usize;
        lines.truncate(most);
        let top = rect.y + (rect.h - 18.0 - lines.len() as f64 * 15.5) / 2.0;
        ink.text(x, top + 14.0, &title, &title.fit(&node.label, room));
        for (i, line) in lines.iter().enumerate() {
            let style = if i == 0 && !idle {
                small.fill(INK)
            } else {
                small
            }
            .shrunk(line, room);
            let y = top + 31.0 + i as f64 * 15.5;
            ink.text(x, y, &style, &style.fit(line, room));
        }
    }

    /// A rank as a bar: its heads across, its layers down, and a label where there is room.
    fn draw_bar(
        &self,
        ink: &mut Ink,
        role: Role,
        node: &Node,
        rect: Rect,
        colours: usize,
        free: &mut f64,
    ) {
        let wide = 150.0;
        let x = match role {
            Role::Producer => rect.x + rect.w - wide,
            Role::Consumer => rect.x,
        };
        self.draw_grid(ink, node, Rect { x, w: wide, ..rect }, colours);
        let middle = rect.y + rect.h / 2.0;
        if middle < *free {
            return;
        }
        *free = middle + 16.0;
        let (at, anchor) = match role {
            Role::Producer => (x - 10.0, Anchor::End),
            Role::Consumer => (x + wide + 10.0, Anchor::Start),
        };
        let style = Style::new(10.5).fill(MUTED).at(anchor);
        let text = match node.bytes {
            0 => format!("{}, idle", node.label),
            n => format!("{}, {}", node.label, bytes(n)),
        };
        ink.text(
            at,
            middle + 3.6,
            &style,
            &style.fit(&text, BOX - wide - 12.0),
        );
    }

    /// Layers down, heads across: filled where held, pale where a replica sends.
    fn draw_grid(&self, ink: &mut Ink, node: &Node, grid: Rect, colours: usize) {
        ink.rect(grid, 1.5, "#e9edf1", "");
        let (w, h) = (grid.w / colours as f64, grid.h / self.rows as f64);
        for colour in 0..colours {
            let at = |row: usize| node.grid[row * colours + colour];
            let mut row = 0;
            while row < self.rows {
                let held = at(row);
                let end = (row..self.rows)
                    .find(|&r| at(r) != held)
                    .unwrap_or(self.rows);
                let more = match held {
                    Held::No => None,
                    Held::Idle => Some(" fill-opacity=\".26\""),
                    Held::Moves => Some(""),
                };
                if let Some(more) = more {
                    let part = Rect {
                        x: grid.x + colour as f64 * w,
                        y: grid.y + row as f64 * h,
                        w,
                        h: (end - row) as f64 * h,
                    };
                    ink.rect(part, 0.0, Rgb::head(colour, colours), more);
                }
                row = end;
            }
        }
        let mut lines = String::new();
        if h >= 4.0 {
            for row in 1..self.rows {
                let _ = write!(
                    lines,
                    "M{} {}h{}",
                    N(grid.x),
                    N(grid.y + row as f64 * h),
                    N(grid.w)
                );
            }
        }
        if w >= 4.0 {
            for colour in 1..colours {
                let _ = write!(
                    lines,
                    "M{} {}v{}",
                    N(grid.x + colour as f64 * w),
                    N(grid.y),
                    N(grid.h)
                );
            }
        }
        if !lines.is_empty() {
            ink.path(
                &lines,
                "none",
                &format!(" stroke=\"{PAPER}\" stroke-width=\".8\""),
            );
        }
    }
}

/// `head 3`, `heads 0–7`.
pub(super) fn interval(noun: &str, first: u32, end: u32) -> String {
    let plural = if end > first + 1 { "s" } else { "" };
    format!(
        "{noun}{plural} {}",
        rank_range(first as usize, end as usize)
    )
}

/// Ascending numbers as an interval, or how many they are.
fn intervals(noun: &str, list: &[u32]) -> String {
    match (list.first(), list.last()) {
        (Some(&first), Some(&last)) if (last - first) as usize + 1 == list.len() => {
            interval(noun, first, last + 1)
        }
        _ => crate::picture::count(list.len() as u64, noun),
    }
}

/// Which tokens a rank holds, where it does not hold all.
fn tokens(side: &Descriptor, rank: usize, of: u32) -> String {
    let held = side.held(0, rank, of);
    let many = side.groups.len() > 1;
    match held.as_slice() {
        _ if many && side.parallel[2] == 1 => String::new(),
        [] => "no tokens".to_owned(),
        [all] if all.token == 0 && all.step == 1 && all.count == of => String::new(),
        [run] if run.count == 1 || run.step == 1 => {
            interval("token", run.token, run.token + run.count)
        }
        [run] => {
            let second = run.token + run.step;
            format!("tokens {}, {second}, {}, …", run.token, second + run.step)
        }
        [first, second, ..] => {
            let range = |run: &moai_fabric::collectives::tokens::Held| {
                rank_range(run.token as usize, (run.token + run.count) as usize)
            };
            format!("tokens {}, {}, …", range(first), range(second))
        }
    }
}
