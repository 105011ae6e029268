//! Pictures of the named layouts: the bytes of a small page, in the order of memory.
//!
//! A box is a run: units of one row, or of one dim, that lie side by side. Its width is its bytes, its
//! hue the component, its shade the head. What lies between the runs of a page is said in words.

use std::collections::{BTreeMap, BTreeSet};

use moai_fabric::translate::layout::{
    Axis, Layout,
    presets::{self, CacheShape, Component, Preset, Row},
};

use super::ink::{Anchor, Ink, MUTED, N, PAPER, Rect, Rgb, Style};

/// A picture of a preset, small enough to be drawn whole, or nearly.
struct Picture {
    file: &'static str,
    preset: &'static str,
    title: &'static str,
    /// What to see in it.
    says: &'static str,
    /// What is drawn: layers and pages of a cache that has more of both, and all of its heads, slots and
    /// rows.
    layers: u32,
    pages: u32,
    heads: u32,
    slots: u32,
    rows: &'static [Row],
    /// Bytes of a line.
    line_bytes: u64,
}

impl Picture {
    fn preset(&self) -> &'static Preset {
        presets::find(self.preset).expect("the gallery shows presets that exist")
    }
}

/// Every picture: name of the file, and the document.
pub(crate) fn gallery() -> Vec<(String, String)> {
    let draw = |picture: &Picture| (format!("{}.svg", picture.file), draw(picture));
    PICTURES.iter().map(draw).collect()
}

const fn row(units: u32, unit_bytes: u32) -> Row {
    Row { units, unit_bytes }
}

/// Key and value of eight two-byte elements.
const EIGHT: &[Row] = &[row(8, 2), row(8, 2)];
/// Of sixteen.
const SIXTEEN: &[Row] = &[row(16, 2), row(16, 2)];

const BASE: Picture = Picture {
    file: "",
    preset: "",
    title: "",
    says: "",
    layers: 1,
    pages: 1,
    heads: 2,
    slots: 4,
    rows: EIGHT,
    line_bytes: 64,
};

const PICTURES: &[Picture] = &[
    Picture {
        file: "nhd",
        preset: "vllm/flashinfer_0.20",
        title: "NHD",
        says: "Token, then head: the heads of a token side by side. K and V of a page are apart.",
        ..BASE
    },
    Picture {
        file: "hnd",
        preset: "vllm/flashinfer_0.20_hnd",
        title: "HND",
        says: "Head, then token: a head of a page is one run, which splits by heads without pieces.",
        ..BASE
    },
    Picture {
        file: "halves",
        preset: "vllm/flash_attn_0.20",
        title: "K and V in halves of the tensor",
        says: "NHD as well, but all pages of K come before all pages of V.",
        ..BASE
    },
    Picture {
        file: "packed-nhd",
        preset: "vllm/flash_attn",
        title: "K and V packed, NHD",
        says: "Each token and head is a cell that holds its K and its V.",
        ..BASE
    },
    Picture {
        file: "packed-hnd",
        preset: "vllm/flash_attn_hnd",
        title: "K and V packed, HND",
        says: "The same cells, the tokens of a head side by side.",
        ..BASE
    },
    Picture {
        file: "head-first",
        preset: "vllm/bhlnc",
        title: "A head of all layers in one run",
        says: "Block, then head, then layer: what one rank of a finer split needs lies together.",
        layers: 2,
        slots: 2,
        ..BASE
    },
    Picture {
        file: "block-first",
        preset: "trtllm",
        title: "Block first",
        says: "A block holds all layers: for each, K and then V, HND inside.",
        layers: 2,
        slots: 2,
        ..BASE
    },
    Picture {
        file: "cpu",
        preset: "vllm/cpu_attn",
        title: "K transposed in its page",
        says: "For each head the tokens of each dim of K, then rows of V.",
        ..BASE
    },
    Picture {
        file: "rocm",
        preset: "vllm/rocm_paged",
        title: "K packed by 16 bytes, V transposed",
        says: "Eight dims of K of each token, then the next eight; V by dim. Rows are in pieces.",
        heads: 1,
        rows: SIXTEEN,
        ..BASE
    },
    Picture {
        file: "aiter",
        preset: "vllm/aiter_shuffle",
        title: "Shuffled for AITER",
        says: "K packed by 16 bytes of dims, V by 16 bytes of tokens.",
        heads: 1,
        slots: 8,
        rows: SIXTEEN,
        ..BASE
    },
    Picture {
        file: "amx",
        preset: "vllm/cpu_attn_amx",
        title: "Tiles for AMX",
        says: "Pairs of dims of 16 tokens for K, pairs of tokens of 16 dims for V.",
        heads: 1,
        slots: 16,
        rows: SIXTEEN,
        ..BASE
    },
    Picture {
        file: "transposed",
        preset: "llama.cpp/transposed_v",
        title: "V transposed over the whole cache",
        says: "A page is one token. A dim of V is one run over all of them: no token of V is in one piece.",
        pages: 8,
        slots: 1,
        rows: &[row(4, 2), row(4, 2)],
        ..BASE
    },
    Picture {
        file: "token-head",
        preset: "vllm/token_head",
        title: "Scales behind each row",
        says: "One byte an element; each row of K and of V is followed by its f32 scale.",
        rows: &[row(8, 1), row(1, 4), row(8, 1), row(1, 4)],
        line_bytes: 48,
        ..BASE
    },
    Picture {
        file: "mla",
        preset: "vllm/fp8_ds_mla",
        title: "An MLA record",
        says: "Latent, its scales and the rotary part of a token together, in three formats. No V, one head.",
        heads: 1,
        rows: &[row(16, 1), row(2, 4), row(4, 2)],
        line_bytes: 32,
        ..BASE
    },
    Picture {
        file: "dsv4",
        preset: "vllm/dsv4",
        title: "Data rows, then scale rows",
        says: "DeepSeek V4: the scales of all tokens lie behind all data, the page is padded.",
        heads: 1,
        rows: &[row(12, 1), row(7, 1), row(4, 2)],
        line_bytes: 40,
        ..BASE
    },
    Picture {
        file: "nvfp4",
        preset: "vllm/nvfp4_hnd_v_interleaved",
        title: "Planes of codes and scales",
        says: "nvfp4: K codes, K scales, V codes, V scales. V's scales are shuffled, four tokens side by side.",
        heads: 1,
        rows: &[row(8, 1), row(4, 1), row(8, 1), row(4, 1)],
        line_bytes: 32,
        ..BASE
    },
    Picture {
        file: "indexer",
        preset: "vllm/dsv32_indexer",
        title: "Indexer page",
        says: "DeepSeek V3.2: the keys of all tokens, then their scales.",
        heads: 1,
        rows: &[row(16, 1), row(1, 4)],
        line_bytes: 32,
        ..BASE
    },
    Picture {
        file: "indexer-rocm",
        preset: "vllm/dsv32_indexer_rocm",
        title: "Indexer page in tiles",
        says: "The same on ROCm: 16 bytes of each of 16 tokens, then the next 16 bytes.",
        heads: 1,
        slots: 16,
        rows: &[row(32, 1), row(1, 4)],
        ..BASE
    },
    Picture {
        file: "turbomind",
        preset: "lmdeploy/turbomind_quantized",
        title: "Data of all heads, then parameters",
        says: "TurboMind, per layer of a block: K and V of each head, then a scale and a least value for each row.",
        slots: 2,
        rows: &[row(8, 1), row(2, 2), row(8, 1), row(2, 2)],
        line_bytes: 32,
        ..BASE
    },
];

const WIDTH: f64 = 800.0;
const EDGE: f64 = 24.0;
/// Left of memory, for addresses.
const GUTTER: f64 = 46.0;
const BOX: f64 = 30.0;
const LINE: f64 = 37.0;
/// Height of a mark below a run.
const MARK: f64 = 17.0;
/// Lines of a stretch of memory; of more, some are drawn.
const MOST_LINES: usize = 10;
/// Layers and pages of the caches drawn, at least: what lies between has to be somebody's.
const LAYERS: u32 = 3;
const PAGES: u32 = 4;

/// One unit of a row, somewhere in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unit {
    component: usize,
    layer: u32,
    head: u32,
    token: u32,
    dim: u32,
    byte: u64,
    bytes: u64,
}

/// Units side by side.
#[derive(Clone, Debug)]
struct Run {
    along: Option<Axis>,
    units: Vec<Unit>,
}

impl Run {
    fn first(&self) -> Unit {
        self.units[0]
    }

    fn last(&self) -> Unit {
        self.units[self.units.len() - 1]
    }

    fn end(&self) -> u64 {
        self.last().byte + self.last().bytes
    }
}

/// A region: runs in the order of memory.
struct Region {
    name: String,
    runs: Vec<Run>,
    /// Who has the bytes that are not drawn.
    others: Owners,
}

/// By first byte: past the last, and whose they are.
type Owners = BTreeMap<u64, (u64, &'static str)>;

fn draw(picture: &Picture) -> String {
    let preset = picture.preset();
    let mut ink = Ink::default();
    let mut y = heading(&mut ink, picture, preset);
    let top = y;
    // The panel goes below what lies on it, so the memory is drawn apart.
    let mut memory = Ink::default();
    y += 20.0;
    let regions = regions(picture, preset);
    let variants = variants(picture, preset, &regions);
    let mut marked = BTreeSet::new();
    for region in &regions {
        if regions.len() > 1 {
            let style = Style::new(11.5).fill(MUTED).bold();
            memory.text(
                EDGE + 14.0,
                y + 6.0,
                &style,
                &format!("region {}", region.name),
            );
            y += 16.0;
        }
        y = memory_of(
            &mut memory,
            picture,
            preset,
            region,
            &variants,
            &mut marked,
            y,
        );
        y += 8.0;
    }
    let panel = Rect {
        x: EDGE,
        y: top,
        w: WIDTH - 2.0 * EDGE,
        h: y - top,
    };
    ink.panel(panel);
    ink.append(memory);
    ink.finish(
        WIDTH,
        y + EDGE,
        &format!("{}: {}", picture.preset, picture.says),
    )
}

/// Title, what to see, and the text of each component. The y below it.
fn heading(ink: &mut Ink, picture: &Picture, preset: &Preset) -> f64 {
    let wide = WIDTH - 2.0 * EDGE;
    ink.text(EDGE, 40.0, &Style::new(20.0).bold(), picture.title);
    let name = Style::new(13.0).mono().fill(MUTED).at(Anchor::End);
    ink.text(WIDTH - EDGE, 40.0, &name, picture.preset);
    let mut y = 40.0;
    let says = Style::new(13.5);
    for line in says.wrap(picture.says, wide, 3) {
        y += 21.0;
        ink.text(EDGE, y, &says, &line);
    }
    y += 12.0;
    let text = Style::new(12.5).mono();
    for one in preset.components {
        y += 20.0;
        let mut x = EDGE;
        for head in 0..picture.heads {
            let chip = Rect {
                x,
                y: y - 11.0,
                w: 14.0,
                h: 14.0,
            };
            ink.rect(chip, 3.0, colour(one, head), "");
            x += 17.0;
        }
        let letter = letters(one.name);
        let label = match letter == one.name {
            true => one.name.to_owned(),
            false => format!("{letter}  {}", one.name),
        };
        ink.text(EDGE + 42.0, y, &Style::new(12.5).bold(), &label);
        ink.text(EDGE + 170.0, y, &text, one.text);
        let mut more: Vec<String> = Vec::new();
        if one.offset != "0" {
            more.push(format!("from {}", one.offset));
        }
        let by = |(word, formula): &(&str, &str)| format!("{word} by {formula}");
        more.extend(one.strides.iter().map(by));
        let style = Style::new(11.5).mono().fill(MUTED);
        if !more.is_empty() {
            for line in style.wrap(&more.join("; "), wide - 170.0, 4) {
                y += 16.0;
                ink.text(EDGE + 170.0, y, &style, &line);
            }
        }
    }
    y += 24.0;
    let style = Style::new(12.0).fill(MUTED);
    for line in style.wrap(&shape(picture, preset), wide, 3) {
        ink.text(EDGE, y, &style, &line);
        y += 16.0;
    }
    y
}

/// What is drawn, in words.
fn shape(picture: &Picture, preset: &Preset) -> String {
    let count = |n: u32, noun: &str| match n {
        1 => format!("1 {noun}"),
        n => format!("{n} {noun}s"),
    };
    let mut parts: Vec<String> = Vec::new();
    if picture.layers > 1 {
        parts.push(count(picture.layers, "layer"));
    }
    parts.push(count(picture.heads, "head"));
    parts.push(count(picture.pages * picture.slots, "token"));
    let mut rows: Vec<String> = Vec::new();
    for (one, row) in preset.components.iter().zip(picture.rows) {
        let noun = if one.name.ends_with(".scale") {
            "scale"
        } else {
            "dim"
        };
        let what = format!(
            "{} of {} for {}",
            count(row.units, noun),
            count(row.unit_bytes, "byte"),
            letters(one.name)
        );
        rows.push(what);
    }
    let scales = preset.components.iter().any(|c| c.name.ends_with(".scale"));
    let same = picture.rows.windows(2).all(|w| w[0] == w[1]);
    if same {
        let Row { units, unit_bytes } = picture.rows[0];
        rows = vec![format!(
            "rows of {units} dims of {}",
            count(unit_bytes, "byte")
        )];
    }
    format!(
        "Drawn: {}; {}. A box is as wide as its bytes; hue: component, shade: head; h head, t token, d dim{}.",
        parts.join(", "),
        rows.join(", "),
        if scales { ", s scale" } else { "" }
    )
}

fn letters(component: &str) -> &'static str {
    match component {
        "key" => "K",
        "value" => "V",
        "key.scale" => "Ks",
        "value.scale" => "Vs",
        "latent" => "L",
        "latent.scale" => "Ls",
        "rope" => "R",
        "indexer" => "I",
        "indexer.scale" => "Is",
        _ => "",
    }
}

/// Hue by component, shade by head. Every shade is light enough for ink.
fn colour(component: &Component, head: u32) -> Rgb {
    let hue = match component.name {
        "value" => 5,
        "value.scale" => 6,
        "key.scale" | "latent.scale" | "indexer.scale" => 0,
        "rope" => 4,
        _ => 1,
    };
    Rgb::head(hue, 8).shade(3 * head as usize, 10)
}

/// The units drawn, by region, in the order of memory, and whose the bytes between them are.
fn regions(picture: &Picture, preset: &Preset) -> Vec<Region> {
    let shape = CacheShape {
        layers: LAYERS.max(picture.layers),
        pages: PAGES.max(picture.pages),
        heads: picture.heads,
        slots: picture.slots,
        rows: picture.rows,
    };
    let mut drawn: BTreeMap<(&str, u64), Vec<Unit>> = BTreeMap::new();
    let mut others: BTreeMap<(&str, u64), Owners> = BTreeMap::new();
    for (component, (one, row)) in preset.components.iter().zip(picture.rows).enumerate() {
        let layout: Layout = preset
            .layout(one.name, &shape)
            .expect("the gallery's sizes suit its presets");
        let e = *layout.extents();
        let rows = (0..e.layer).flat_map(|layer| {
            (0..e.page).flat_map(move |page| (0..e.head).map(move |head| (layer, page, head)))
        });
        for (layer, page, head) in rows {
            for (slot, dim) in (0..e.slot).flat_map(|s| (0..e.dim).map(move |d| (s, d))) {
                let at = layout.address(layer, page, head, slot, dim);
                let bytes = u64::from(row.unit_bytes);
                let place = (one.pool, at.region);
                if layer < picture.layers && page < picture.pages {
                    drawn.entry(place).or_default().push(Unit {
                        component,
                        layer,
                        head,
                        token: page * e.slot + slot,
                        dim,
                        byte: at.byte,
                        bytes,
                    });
                } else {
                    let whose = match page < picture.pages {
                        true => "other layers",
                        false => "other pages",
                    };
                    let others = others.entry(place).or_default();
                    others.insert(at.byte, (at.byte + bytes, whose));
                }
            }
        }
    }
    drawn
        .into_iter()
        .map(|((pool, region), mut units)| {
            units.sort_by_key(|unit| unit.byte);
            Region {
                name: format!("{pool}.{region}"),
                runs: runs(&units),
                others: others.remove(&(pool, region)).unwrap_or_default(),
            }
        })
        .collect()
}

fn runs(units: &[Unit]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &unit in units {
        let next = runs.last_mut().filter(|run| {
            let along = step(run.last(), unit);
            along.is_some() && (run.along == along || run.units.len() == 1)
        });
        match next {
            Some(run) => {
                run.along = step(run.last(), unit);
                run.units.push(unit);
            }
            None => runs.push(Run {
                along: None,
                units: vec![unit],
            }),
        }
    }
    runs
}

/// The axis along which one unit is the next of another, right behind it.
fn step(a: Unit, b: Unit) -> Option<Axis> {
    let alike = a.component == b.component && a.layer == b.layer && a.head == b.head;
    if !alike || a.byte + a.bytes != b.byte {
        None
    } else if a.token == b.token && a.dim + 1 == b.dim {
        Some(Axis::Dim)
    } else if a.dim == b.dim && a.token + 1 == b.token {
        Some(Axis::Slot)
    } else {
        None
    }
}

/// How much of a run's name fits into all runs of its component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    /// Component, layer, head, token and dims in one line.
    Full,
    /// Component, token and dims.
    Own,
    /// Token and dims in one line.
    Short,
    /// Token over dims.
    Stacked,
    /// Whatever changes from run to run.
    Least,
}

const LABELS: [Label; 5] = [
    Label::Full,
    Label::Own,
    Label::Short,
    Label::Stacked,
    Label::Least,
];
const TEXT: Style = Style::new(11.5).at(Anchor::Middle);
const SMALL: Style = Style::new(9.5).at(Anchor::Middle);

fn lines_of(label: Label, picture: &Picture, preset: &Preset, run: &Run) -> Vec<String> {
    let (first, last) = (run.first(), run.last());
    let one = &preset.components[first.component];
    let range = |name: &str, a: u32, b: u32| match a == b {
        true => format!("{name}{a}"),
        false => format!("{name}{a}–{b}"),
    };
    let token = range("t", first.token, last.token);
    let units = picture.rows[first.component].units;
    let dim = match (units, one.name.ends_with(".scale")) {
        (1, _) => String::new(),
        (_, true) => range("s", first.dim, last.dim),
        _ => range("d", first.dim, last.dim),
    };
    let mut before = vec![letters(one.name).to_owned()];
    if picture.layers > 1 {
        before.push(format!("l{}", first.layer));
    }
    if picture.heads > 1 {
        before.push(format!("h{}", first.head));
    }
    let (outer, inner) = match run.along {
        Some(Axis::Slot) => (dim, token),
        _ => (token, dim),
    };
    let join = |words: &[&str]| {
        let words: Vec<&str> = words.iter().copied().filter(|w| !w.is_empty()).collect();
        words.join(" ")
    };
    match label {
        Label::Full => vec![join(&[&before.join(" "), &outer, &inner])],
        Label::Own => vec![join(&[letters(one.name), &outer, &inner])],
        Label::Short => vec![join(&[&outer, &inner])],
        Label::Stacked if !inner.is_empty() && !outer.is_empty() => vec![outer, inner],
        Label::Stacked | Label::Least if outer.is_empty() => vec![inner],
        Label::Stacked | Label::Least => vec![outer],
    }
}

fn variants(picture: &Picture, preset: &Preset, regions: &[Region]) -> Vec<Option<Label>> {
    let scale = scale(picture);
    let fits = |label: Label, run: &Run| {
        let lines = lines_of(label, picture, preset, run);
        let style = if lines.len() > 1 { SMALL } else { TEXT };
        let room = (run.end() - run.first().byte) as f64 * scale - 4.0;
        lines.iter().all(|line| style.width(line) <= room)
    };
    let all = || regions.iter().flat_map(|region| &region.runs);
    (0..preset.components.len())
        .map(|c| {
            let mine = || all().filter(move |run| run.first().component == c);
            LABELS
                .into_iter()
                .find(|&label| mine().all(|run| fits(label, run)))
        })
        .collect()
}

/// Width of a byte.
fn scale(picture: &Picture) -> f64 {
    (WIDTH - 2.0 * EDGE - GUTTER - 18.0) / picture.line_bytes as f64
}

/// Lines of memory from `y` on. The y below.
fn memory_of(
    ink: &mut Ink,
    picture: &Picture,
    preset: &Preset,
    region: &Region,
    variants: &[Option<Label>],
    marked: &mut BTreeSet<usize>,
    mut y: f64,
) -> f64 {
    // Runs without a gap of more than a few bytes make a stretch.
    let mut stretches: Vec<Vec<&Run>> = Vec::new();
    for run in &region.runs {
        let near = stretches
            .last()
            .and_then(|s| s.last())
            .is_some_and(|last| run.first().byte - last.end() <= 4);
        match stretches.last_mut().filter(|_| near) {
            Some(stretch) => stretch.push(run),
            None => stretches.push(vec![run]),
        }
    }
    for (i, stretch) in stretches.iter().enumerate() {
        y = stretch_of(ink, picture, preset, stretch, variants, marked, y);
        let end = stretch[stretch.len() - 1].end();
        let next = stretches.get(i + 1).map(|next| next[0].first().byte);
        let said = match next {
            Some(next) => {
                let between = region.others.range(end..next);
                let whose: BTreeSet<&str> = between.map(|(_, &(_, whose))| whose).collect();
                let whose: Vec<&str> = whose.into_iter().collect();
                let whose = if whose.is_empty() {
                    "padding".to_owned()
                } else {
                    whose.join(" and ")
                };
                Some(format!("{} bytes: {whose}", next - end))
            }
            None => region
                .others
                .range(end..)
                .next()
                .and_then(|(&next, &(_, whose))| {
                    (next > end).then(|| format!("{} bytes of padding, then {whose}", next - end))
                }),
        };
        if let Some(said) = said {
            let style = Style::new(11.5).fill(MUTED);
            ink.text(EDGE + GUTTER + 4.0, y + 10.0, &style, &format!("⋮  {said}"));
            y += 24.0;
        }
    }
    y
}

fn stretch_of(
    ink: &mut Ink,
    picture: &Picture,
    preset: &Preset,
    stretch: &[&Run],
    variants: &[Option<Label>],
    marked: &mut BTreeSet<usize>,
    mut y: f64,
) -> f64 {
    let (scale, line) = (scale(picture), picture.line_bytes);
    let left = EDGE + GUTTER;
    let start = stretch[0].first().byte;
    let end = stretch[stretch.len() - 1].end();
    let lines = (end - start).div_ceil(line) as usize;
    // Of a long stretch, the lines in which a component begins, and those behind them.
    let mut shown: BTreeSet<usize> = (0..lines.min(MOST_LINES)).collect();
    if lines > MOST_LINES {
        let firsts: BTreeMap<usize, usize> = stretch
            .iter()
            .rev()
            .map(|run| {
                let at = ((run.first().byte - start) / line) as usize;
                (run.first().component, at)
            })
            .collect();
        let few = MOST_LINES / firsts.len().max(1) - 1;
        shown = firsts
            .values()
            .flat_map(|&first| first..(first + few.max(2)).min(lines))
            .collect();
    }
    let mut skipped = 0;
    for at in 0..lines {
        if !shown.contains(&at) {
            skipped += 1;
            if at + 1 == lines || shown.contains(&(at + 1)) {
                let style = Style::new(11.5).fill(MUTED);
                let said = format!("⋮  {skipped} lines like these");
                ink.text(left + 4.0, y + 10.0, &style, &said);
                y += 24.0;
                skipped = 0;
            }
            continue;
        }
        let (from, to) = (start + at as u64 * line, start + (at as u64 + 1) * line);
        let address = Style::new(11.0).mono().fill(MUTED).at(Anchor::End);
        ink.text(left - 8.0, y + 19.0, &address, &from.to_string());
        // The x at which each row of marks is free again.
        let mut marks: Vec<f64> = Vec::new();
        for run in stretch
            .iter()
            .filter(|r| r.first().byte < to && r.end() > from)
        {
            let one = &preset.components[run.first().component];
            let x = |byte: u64| left + (byte - from) as f64 * scale;
            let (a, b) = (run.first().byte.max(from), run.end().min(to));
            let rect = Rect {
                x: x(a) + 0.8,
                y,
                w: x(b) - x(a) - 1.6,
                h: BOX,
            };
            ink.rect(rect, 3.5, colour(one, run.first().head), "");
            hairs(ink, run, a, b, rect, scale);
            if a == run.first().byte
                && b == run.end()
                && let Some(label) = variants[run.first().component]
            {
                let lines = lines_of(label, picture, preset, run);
                let middle = rect.x + rect.w / 2.0;
                match &lines[..] {
                    [one] => ink.text(middle, y + 19.2, &TEXT, one),
                    [outer, inner] => {
                        ink.text(middle, y + 13.0, &SMALL, outer);
                        ink.text(middle, y + 24.2, &SMALL, inner);
                    }
                    _ => {}
                }
            }
            if marked.insert(run.first().component) {
                let style = Style::new(10.5).fill(MUTED);
                let said = length(run, one);
                let row = marks.iter().position(|&free| free <= rect.x);
                let row = row.unwrap_or_else(|| {
                    marks.push(0.0);
                    marks.len() - 1
                });
                let top = y + BOX + 3.0 + row as f64 * MARK;
                let (x, w) = (N(rect.x), N(rect.w));
                let bracket = format!("M{x} {}v4h{w}v-4", N(top));
                ink.path(&bracket, "none", &format!(" stroke=\"{MUTED}\""));
                let wide = style.width(&said);
                let at = if wide <= rect.w {
                    let middle = rect.x + rect.w / 2.0;
                    ink.text(middle, top + 14.5, &style.at(Anchor::Middle), &said);
                    middle - wide / 2.0
                } else {
                    ink.text(rect.x, top + 14.5, &style, &said);
                    rect.x
                };
                marks[row] = (at + wide + 8.0).max(rect.x + rect.w);
            }
        }
        y += LINE + marks.len() as f64 * MARK;
    }
    y
}

/// Lines between the units of a run, unless units are hairs themselves.
fn hairs(ink: &mut Ink, run: &Run, a: u64, b: u64, rect: Rect, scale: f64) {
    let unit = run.first().bytes;
    if unit as f64 * scale < 6.0 {
        return;
    }
    let mut d = String::new();
    let mut at = a + unit;
    while at < b {
        let x = rect.x - 0.8 + (at - a) as f64 * scale;
        d += &format!(
            "M{} {}v5M{} {}v5",
            N(x),
            N(rect.y),
            N(x),
            N(rect.y + BOX - 5.0)
        );
        at += unit;
    }
    if !d.is_empty() {
        ink.path(&d, "none", &format!(" stroke=\"{PAPER}\""));
    }
}

/// How long a run is, in words.
fn length(run: &Run, component: &Component) -> String {
    let bytes = run.end() - run.first().byte;
    let bytes = match bytes {
        1 => "1 byte".to_owned(),
        n => format!("{n} bytes"),
    };
    let noun = match (run.along, component.name.ends_with(".scale")) {
        (Some(Axis::Slot), _) => "token",
        (_, true) => "scale",
        _ => "dim",
    };
    match run.units.len() {
        1 => format!("1 {noun}, {bytes}"),
        n => format!("{n} {noun}s, {bytes}"),
    }
}
