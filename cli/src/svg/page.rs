//! What a page looks like in memory: the first rows of one component, address by address.

use std::{collections::BTreeMap, fmt::Write as _};

use moai_fabric::{
    collectives::descriptor::{Component, RankShard},
    translate::layout::{Axis, Layout, Split},
};

use super::ink::{Anchor, INK, Ink, MUTED, N, PALE, Rgb, Style};

/// Cells of a line of memory.
const LINE_CELLS: usize = 64;
/// Lines drawn; what comes after is left to the imagination.
const MOST_LINES: usize = 12;
const CELL_HEIGHT: f64 = 15.0;
const LINE_HEIGHT: f64 = 31.0;

/// How many of each axis are drawn, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    heads: u32,
    slots: u32,
    dims: u32,
}

impl Shown {
    /// Enough to see how both layouts nest: both sides show the same rows, and of a split axis at least
    /// two of the outer steps.
    pub(super) fn of(layouts: [&Component; 2]) -> Self {
        let split = |axis: Axis| {
            let splits = layouts.iter().filter_map(|c| c.notation.split_of(axis));
            splits.map(std::num::NonZeroU32::get).max().unwrap_or(1)
        };
        let dims = (2 * split(Axis::Dim).min(32)).max(16);
        let slots = (2 * split(Axis::Slot).min(8)).max((128 / dims).clamp(4, 8));
        Self {
            heads: 2,
            slots,
            dims,
        }
    }
}

/// One unit in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    /// It belongs to another component, layer or page.
    foreign: bool,
    head: u32,
    slot: u32,
    dim: u32,
}

/// Units that follow one another along one axis.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    along: Option<Axis>,
    cells: Vec<Cell>,
}

/// The picture of one component's page on one rank.
#[derive(Clone, Debug)]
pub(super) struct Page {
    lines: Vec<Vec<Run>>,
    whole: bool,
    shown: Shown,
    first_head: u32,
    all_heads: u32,
    caption: [String; 3],
}

impl Page {
    /// The page of a component on a rank; `None` if the rank holds nothing of it.
    pub(super) fn of(
        component: &Component,
        index: usize,
        rank: &RankShard,
        shown: Shown,
    ) -> Option<Self> {
        let layout = rank.layout(index)?;
        let extents = layout.extents();
        let shown = Shown {
            heads: shown.heads.min(extents.head),
            slots: shown.slots.min(extents.slot),
            dims: if component.format.element.is_grouped() {
                extents.dim.min(4)
            } else {
                shown.dims.min(extents.dim)
            },
        };
        let (cells, foreign) = cells(layout, component.part, shown);
        let mut lines = lines(runs(&cells));
        let whole = lines.len() <= MOST_LINES;
        lines.truncate(MOST_LINES);
        Some(Self {
            lines,
            whole,
            shown,
            first_head: rank.heads(index).start,
            all_heads: component.heads,
            caption: [
                nesting(component, layout),
                size(layout, foreign),
                drawn(component, layout, shown),
            ],
        })
    }

    /// How high the drawing gets.
    pub(super) fn height(&self) -> f64 {
        self.lines.len() as f64 * LINE_HEIGHT + if self.whole { 0.0 } else { 12.0 } + 52.0
    }

    /// Draws it from (x, y) on, `width` wide at most. `colours` is how many colours heads have.
    pub(super) fn draw(&self, ink: &mut Ink, x: f64, y: f64, width: f64, colours: usize) {
        let mut fills: BTreeMap<String, String> = BTreeMap::new();
        let label = Style::new(9.5).fill(MUTED).at(Anchor::Middle);
        let widest = |of: fn(&Vec<Run>) -> usize| self.lines.iter().map(of).max().unwrap_or(1);
        let cells = widest(|line| line.iter().map(|run| run.cells.len()).sum());
        let gaps = widest(Vec::len).saturating_sub(1) as f64;
        let gap = if gaps > 16.0 { 1.0 } else { 4.0 };
        let cell = ((width - gaps * gap) / cells as f64).min(22.0);
        // The fullest labels that fit below all runs; the head is the colour anyway.
        let full = self.lines.iter().flatten().all(|run| {
            let room = run.cells.len() as f64 * cell + gap;
            label.width(&self.label(run, true)) <= room
        });
        let mut labels = Vec::new();
        for (i, line) in self.lines.iter().enumerate() {
            let (mut at, top) = (x, y + i as f64 * LINE_HEIGHT);
            for run in line {
                let start = at;
                for one in &run.cells {
                    let fill = self.fill(one, colours);
                    // A hair between cells, unless they are hairs themselves.
                    let w = if cell > 4.0 { cell - 0.7 } else { cell };
                    let d = fills.entry(fill).or_default();
                    let _ = write!(d, "M{} {}h{}v{CELL_HEIGHT}h-{}z", N(at), N(top), N(w), N(w));
                    at += cell;
                }
                let text = self.label(run, full);
                if !text.is_empty() && label.width(&text) <= at - start + gap {
                    labels.push(((start + at) / 2.0, top + CELL_HEIGHT + 10.5, text));
                }
                at += gap;
            }
        }
        for (fill, d) in &fills {
            ink.path(d, fill, "");
        }
        for (x, y, text) in &labels {
            ink.text(*x, *y, &label, text);
        }
        let mut below = y + self.lines.len() as f64 * LINE_HEIGHT;
        if !self.whole {
            ink.text(x, below + 4.0, &Style::new(12.0).fill(MUTED), "…");
            below += 12.0;
        }
        for (i, line) in self.caption.iter().enumerate() {
            let style = Style::new(12.5).fill(if i == 0 { INK } else { MUTED });
            let style = style.shrunk(line, width);
            ink.text(
                x,
                below + 14.0 + i as f64 * 16.5,
                &style,
                &style.fit(line, width),
            );
        }
    }

    fn fill(&self, cell: &Cell, colours: usize) -> String {
        if cell.foreign {
            return PALE.to_owned();
        }
        let head = super::colour_of(self.first_head + cell.head, self.all_heads, colours);
        Rgb::head(head, colours)
            .shade(cell.slot as usize, self.shown.slots as usize)
            .to_string()
    }

    /// What all units of a run have in common.
    fn label(&self, run: &Run, full: bool) -> String {
        let (first, last) = (run.cells[0], run.cells[run.cells.len() - 1]);
        if first.foreign {
            return String::new();
        }
        let mut text = String::new();
        if self.shown.heads > 1 && full {
            let _ = write!(text, "h{} ", self.first_head + first.head);
        }
        let part = |name: char, first: u32, last: u32, all: u32| {
            if all == 1 || last + 1 - first == all {
                String::new()
            } else if first == last {
                format!("{name}{first}")
            } else {
                format!("{name}{first}–{last}")
            }
        };
        let token = if self.shown.slots == 1 {
            "t0".to_owned()
        } else {
            part('t', first.slot, last.slot, self.shown.slots)
        };
        let dim = part('d', first.dim, last.dim, self.shown.dims);
        if token.is_empty() && dim.is_empty() {
            let _ = write!(text, "t{}–{}", first.slot, last.slot);
            return text;
        }
        text += &token;
        if !token.is_empty() && !dim.is_empty() {
            text.push(' ');
        }
        text + &dim
    }
}

/// The units of the first page, in the order in which they lie in memory, with what lies between them.
fn cells(layout: &Layout, part: u32, shown: Shown) -> (Vec<Cell>, Option<&'static str>) {
    let mut own: Vec<((u64, i128), Cell)> = Vec::new();
    for head in 0..shown.heads {
        for slot in 0..shown.slots {
            for dim in 0..shown.dims {
                let at = layout.address(0, 0, head, slot, dim);
                let cell = Cell {
                    foreign: false,
                    head,
                    slot,
                    dim,
                };
                own.push(((at.region, i128::from(at.byte)), cell));
            }
        }
    }
    own.sort_unstable_by_key(|&(at, _)| at);
    let (Some(&((region, first), _)), Some(&((_, last), _))) = (own.first(), own.last()) else {
        return (Vec::new(), None);
    };
    // The neighbours along the axes that a page has in common with others. Only what lies between the
    // page's own units is shown: it is what makes runs short.
    let mut foreign = None;
    let neighbours = [
        (Axis::Part, part, "other components"),
        (Axis::Layer, 0, "other layers"),
        (Axis::Page, 0, "other pages"),
    ];
    let mut all = own.clone();
    for (axis, mine, name) in neighbours {
        let map = layout.axis(axis);
        if map.picks_region() {
            continue;
        }
        for index in (0..layout.extents().of(axis).min(4)).filter(|&index| index != mine) {
            let moved = i128::from(map.at(index).byte) - i128::from(map.at(mine).byte);
            for &((in_region, at), cell) in &own {
                let at = at + moved;
                if in_region == region && moved != 0 && (first..last).contains(&at) {
                    all.push((
                        (region, at),
                        Cell {
                            foreign: true,
                            ..cell
                        },
                    ));
                    foreign = Some(name);
                }
            }
        }
    }
    all.sort_by_key(|&(at, cell)| (at, cell.foreign));
    (all.into_iter().map(|(_, cell)| cell).collect(), foreign)
}

fn runs(cells: &[Cell]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &cell in cells {
        let next = runs.last_mut().filter(|run| {
            let last = run.cells[run.cells.len() - 1];
            // What belongs to others is one stretch, however it nests.
            if cell.foreign || last.foreign {
                return cell.foreign == last.foreign;
            }
            let along = step(last, cell);
            along.is_some() && (run.along == along || run.cells.len() == 1)
        });
        match next {
            Some(run) => {
                run.along = step(run.cells[run.cells.len() - 1], cell);
                run.cells.push(cell);
            }
            None => runs.push(Run {
                along: None,
                cells: vec![cell],
            }),
        }
    }
    runs
}

/// The axis along which one unit is the next of another.
fn step(a: Cell, b: Cell) -> Option<Axis> {
    if a.foreign != b.foreign || a.head != b.head {
        None
    } else if a.slot == b.slot && a.dim + 1 == b.dim {
        Some(Axis::Dim)
    } else if a.dim == b.dim && a.slot + 1 == b.slot {
        Some(Axis::Slot)
    } else {
        None
    }
}

/// Whole runs to a line. Only a run longer than a line is cut.
fn lines(runs: Vec<Run>) -> Vec<Vec<Run>> {
    let mut lines: Vec<Vec<Run>> = vec![Vec::new()];
    let mut used = 0;
    for run in runs {
        // What belongs to others is only hinted at, and takes no room from the page.
        let foreign = run.cells[0].foreign;
        let shown = if foreign {
            &run.cells[..run.cells.len().min(4)]
        } else {
            &run.cells[..]
        };
        for piece in shown.chunks(LINE_CELLS) {
            let takes = if foreign { 0 } else { piece.len() };
            if used + takes > LINE_CELLS {
                lines.push(Vec::new());
                used = 0;
            }
            used += takes;
            let last = lines.len() - 1;
            lines[last].push(Run {
                along: run.along,
                cells: piece.to_vec(),
            });
        }
    }
    lines
}

/// What lies next to what, in words.
fn nesting(component: &Component, layout: &Layout) -> String {
    let extents = layout.extents();
    let unit = u64::from(layout.unit_bytes());
    let grouped = component.format.element.is_grouped();
    let noun = |axis: Axis| match axis {
        Axis::Layer => "layer",
        Axis::Part => "component",
        Axis::Page => "page",
        Axis::Head => "head",
        Axis::Slot => "token",
        Axis::Dim if grouped => "group",
        Axis::Dim => "dim",
    };
    // From the inside out; words of extent 1 say nothing.
    let words = component
        .notation
        .words()
        .iter()
        .rev()
        .filter(|word| !word.region);
    let mut factors = words.filter_map(|word| {
        let n = match word.split {
            Split::Whole => extents.of(word.axis),
            Split::Outer(n) => extents.of(word.axis) / n.get(),
            Split::Inner(n) => n.get().min(extents.of(word.axis)),
        };
        (n > 1).then_some((word.axis, n))
    });
    let Some((inner, n)) = factors.next() else {
        return format!("one {} of {unit} bytes", noun(Axis::Dim));
    };
    let size = crate::picture::bytes(unit * u64::from(n));
    let of = match inner {
        Axis::Dim => " of a token",
        Axis::Slot if extents.dim > 1 => " of a dim",
        _ => "",
    };
    let mut text = format!("{n} {}s{of} side by side ({size})", noun(inner));
    if let Some((next, _)) = factors.next() {
        let _ = write!(text, ", then the next {}", noun(next));
    }
    text
}

/// How large a page is, and what lies in it beside the component.
fn size(layout: &Layout, foreign: Option<&str>) -> String {
    let e = layout.extents();
    let units = u64::from(e.head) * u64::from(e.slot) * u64::from(e.dim);
    let bytes = crate::picture::bytes(units * u64::from(layout.unit_bytes()));
    let mut text = format!("{bytes} a page and layer");
    if let Some(foreign) = foreign {
        let _ = write!(text, "; grey: {foreign} between, shortened");
    }
    text
}

/// How much of a page is drawn.
fn drawn(component: &Component, layout: &Layout, shown: Shown) -> String {
    let e = layout.extents();
    let group = if component.format.element.is_grouped() {
        "group"
    } else {
        "dim"
    };
    let parts: Vec<String> = [
        (shown.heads, e.head, "head"),
        (shown.slots, e.slot, "token"),
        (shown.dims, e.dim, group),
    ]
    .into_iter()
    .filter(|(some, all, _)| some < all)
    .map(|(some, all, noun)| format!("{some} of {all} {noun}s"))
    .collect();
    if parts.is_empty() {
        return "drawn whole".to_owned();
    }
    format!("drawn: {}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use moai_fabric::translate::layout::Extents;

    use super::*;

    fn layout(text: &str) -> Layout {
        let extents = Extents {
            layer: 2,
            part: 2,
            page: 4,
            head: 2,
            slot: 4,
            dim: 16,
        };
        Layout::new(&text.parse().unwrap(), extents, 2, 0, 0, &BTreeMap::new()).unwrap()
    }

    fn drawn(text: &str) -> (Vec<Run>, Option<&'static str>) {
        let shown = Shown {
            heads: 2,
            slots: 4,
            dims: 16,
        };
        let (cells, foreign) = cells(&layout(text), 0, shown);
        (runs(&cells), foreign)
    }

    #[test]
    fn nesting_shows_in_the_runs() {
        // Layout; length, axis and number of own runs; what lies between.
        for (text, cells, along, count, between) in [
            ("[layer] part page slot head dim", 16, Axis::Dim, 8, None),
            (
                "[layer] part page head dim/8 slot dim%8",
                8,
                Axis::Dim,
                16,
                None,
            ),
            ("[layer] part page head dim slot", 4, Axis::Slot, 32, None),
            (
                "[layer] page slot head part dim",
                16,
                Axis::Dim,
                8,
                Some("other components"),
            ),
            ("page layer part head slot dim", 16, Axis::Dim, 8, None),
        ] {
            let (runs, foreign) = drawn(text);
            let own: Vec<_> = runs.iter().filter(|run| !run.cells[0].foreign).collect();
            assert_eq!(own.len(), count, "{text}");
            assert!(
                own.iter()
                    .all(|r| r.cells.len() == cells && r.along == Some(along)),
                "{text}"
            );
            assert_eq!(foreign, between, "{text}");
        }
        let (runs, _) = drawn("[layer] part page slot head dim");
        let order: Vec<_> = runs
            .iter()
            .map(|r| (r.cells[0].slot, r.cells[0].head))
            .collect();
        assert_eq!(order[..3], [(0, 0), (0, 1), (1, 0)]);
    }
}
