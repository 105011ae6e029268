//! Random pairs of documents that describe the same model's cache.
//!
//! What both sides share (layers, heads, dims, windows that fit, formats that convert into one another) is
//! drawn first; how each side lays it out and deals it to ranks is drawn for each side by itself.

use serde_json::{Map, Value, json};

use moai_translate::element::Element;

use super::{
    naive::{Coding, alignment, coding, held},
    rng::Rng,
};

/// What may be drawn.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    /// Whether a row may be held by several ranks of a side.
    pub(crate) replicas: bool,
    /// Whether groups may hold the last tokens only.
    pub(crate) windows: bool,
    /// Some layers only, or tokens from one on.
    pub(crate) parts: bool,
    /// Elements of all rows of the request, more or less.
    pub(crate) elements: u32,
}

impl Options {
    pub(crate) const ALL: Self = Self {
        replicas: true,
        windows: true,
        parts: true,
        elements: 6000,
    };
}

/// What both sides hold.
pub(crate) struct Model {
    layers: u32,
    tokens: u32,
    grouping: Grouping,
    groups: Vec<Layers>,
    wholes: Vec<Whole>,
    options: Options,
}

#[derive(Clone, Copy, PartialEq)]
enum Grouping {
    /// No groups.
    None,
    /// Groups of layers, with pages of the same size, and components that span all.
    Unnamed,
    /// Components that name their group.
    Named,
}

/// Layers of a group, and its window on the producer and on the consumer.
struct Layers {
    layers: Vec<u32>,
    windows: [Option<u32>; 2],
}

/// A row before it is cut into pieces.
#[derive(Clone)]
struct Whole {
    name: String,
    heads: u32,
    group: Option<usize>,
    /// Rotary dims, first of them, and whether each side interleaves; `None` where none is stated.
    rope: Option<(u32, u32, [bool; 2])>,
    /// Pieces of each side.
    pieces: [Vec<Piece>; 2],
}

#[derive(Clone)]
struct Piece {
    from: u32,
    to: u32,
    format: Value,
}

impl Piece {
    fn dim(&self) -> u32 {
        self.to - self.from
    }

    fn has_row_scale(&self) -> bool {
        self.format
            .get("scale")
            .is_some_and(|scale| scale["granularity"] == "token_head")
    }

    fn element(&self) -> &str {
        self.format["element"].as_str().unwrap()
    }

    fn coding(&self) -> Coding {
        coding(self.element(), self.dim()).expect("dim fits")
    }

    /// What a row keeps apart: how many, and of which element.
    fn params(&self) -> Option<(u32, &'static str)> {
        match self.has_row_scale() {
            true => Some((1, "f32")),
            false => self.coding().params,
        }
    }

    /// The rotation that a description gives: elements of a block, and whether signs come first.
    fn given_rotation(&self) -> Option<(u32, bool)> {
        match self.format.get("rotation")? {
            Value::String(word) if word == "signed" => {
                Some((1 << self.dim().trailing_zeros(), true))
            }
            Value::String(_) => None,
            rotation => Some((rotation["hadamard"].as_u64().unwrap() as u32, false)),
        }
    }

    /// The same, or that of the element.
    fn rotation(&self) -> Option<(u32, bool)> {
        let own =
            own_rotation(self.element()).map(|signs| (1 << self.dim().trailing_zeros(), signs));
        own.or_else(|| self.given_rotation())
            .filter(|(n, signs)| *n > 1 || *signs)
    }
}

/// Whether an element brings a rotation, and with signs.
fn own_rotation(element: &str) -> Option<bool> {
    match element {
        "int4_per_token_head" => Some(true),
        "turboquant_k4_nc" | "turboquant_k3_nc" => Some(false),
        _ => None,
    }
}

/// The largest divisors of all numbers.
fn gcd(list: impl IntoIterator<Item = u32>) -> u32 {
    let two = |a: u32, b: u32| {
        let (mut a, mut b) = (a, b);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    list.into_iter().fold(0, two)
}

fn divisors(n: u32) -> Vec<u32> {
    (1..=n).filter(|d| n.is_multiple_of(*d)).collect()
}

/// `from..to` in `parts` pieces that are not empty.
fn cut(rng: &mut Rng, from: u32, to: u32, parts: u32) -> Vec<(u32, u32)> {
    let mut cuts: Vec<u32> = (from + 1..to).collect();
    rng.shuffle(&mut cuts);
    cuts.truncate(parts as usize - 1);
    cuts.extend([from, to]);
    cuts.sort_unstable();
    cuts.windows(2).map(|w| (w[0], w[1])).collect()
}

/// Draws what both sides hold.
pub(crate) fn model(rng: &mut Rng, options: Options) -> Model {
    let layers = rng.pick(&[1, 1, 2, 2, 3, 4, 5, 6]);
    let grouping = match rng.below(10) {
        0..7 => Grouping::None,
        _ if layers < 2 => Grouping::None,
        7 => Grouping::Unnamed,
        _ => Grouping::Named,
    };
    let mut all: Vec<u32> = (0..layers).collect();
    let mut groups = Vec::new();
    if grouping != Grouping::None {
        if rng.percent(50) {
            rng.shuffle(&mut all);
        }
        let parts = rng.between(2, layers.min(3));
        for (from, to) in cut(rng, 0, layers, parts) {
            groups.push(Layers {
                layers: all[from as usize..to as usize].to_vec(),
                windows: [None; 2],
            });
        }
    }
    let heads = rng.pick(&[1, 2, 2, 3, 4, 4, 6, 8]);
    let mut wholes: Vec<Whole> = Vec::new();
    let named = match grouping {
        Grouping::Named => groups.len(),
        _ => 1,
    };
    let latent = rng.percent(25);
    let twins = rng.percent(50);
    for g in 0..named {
        let group = (grouping == Grouping::Named).then_some(g);
        if g > 0 && twins {
            // The same rows again, so that the group may take turns with the first.
            let first = wholes.iter().filter(|w| w.group == Some(0));
            let again = first.map(|w| Whole {
                name: w.name.replace('0', &g.to_string()),
                group,
                ..w.clone()
            });
            wholes.extend(again.collect::<Vec<_>>());
            continue;
        }
        let name = |name: &str| match group {
            None => name.to_owned(),
            Some(g) => format!("{name}{g}"),
        };
        if latent {
            let dim = match rng.below(20) {
                0..4 => 576,
                4..6 => 512,
                6..9 => 96,
                _ => rng.pick(&[24, 40, 72]),
            };
            wholes.push(whole(rng, name("latent"), 1, dim, group, layers, true));
            if rng.percent(30) {
                wholes.push(whole(rng, name("indexer"), 1, 16, group, layers, false));
            }
        } else {
            let dims = [1, 2, 4, 6, 8, 10, 16, 24, 32, 32, 32, 64, 64, 64, 96, 128];
            let dim = rng.pick(&dims);
            let cut = rng.percent(20);
            wholes.push(whole(rng, name("key"), heads, dim, group, layers, cut));
            let dim = if rng.percent(70) {
                dim
            } else {
                rng.pick(&dims)
            };
            wholes.push(whole(rng, name("value"), heads, dim, group, layers, cut));
            if rng.percent(15) {
                wholes.push(whole(rng, name("indexer"), 1, 8, group, layers, false));
            }
        }
    }
    let row = |w: &Whole| w.heads * w.pieces[0].iter().map(Piece::dim).sum::<u32>();
    let token = layers * wholes.iter().map(row).sum::<u32>();
    let most = (options.elements / token).clamp(1, 80);
    let tokens = rng.between(1, most);
    for group in &mut groups {
        if !options.windows || rng.percent(40) {
            continue;
        }
        let consumer = rng.percent(80).then(|| rng.between(1, tokens + 3));
        // Who needs all tokens, of however long a request, cannot have them of a window.
        let windowed = rng.percent(60);
        let producer = consumer
            .filter(|_| windowed)
            .map(|least| rng.between(least, least.max(tokens) + 3));
        group.windows = [producer, consumer];
    }
    Model {
        layers,
        tokens,
        grouping,
        groups,
        wholes,
        options,
    }
}

fn whole(
    rng: &mut Rng,
    name: String,
    heads: u32,
    dim: u32,
    group: Option<usize>,
    layers: u32,
    may_cut: bool,
) -> Whole {
    let mut cuts = [vec![(0, dim)], vec![(0, dim)]];
    if may_cut && dim.is_multiple_of(8) {
        let grain = if dim.is_multiple_of(32) { 32 } else { 8 };
        let often = if dim > 500 { 20 } else { 50 };
        for side in &mut cuts {
            if rng.percent(often) {
                let parts = rng.between(1, 3.min(dim / grain));
                let pieces = cut(rng, 0, dim / grain, parts);
                *side = pieces.iter().map(|p| (p.0 * grain, p.1 * grain)).collect();
            }
        }
    }
    let mut edges: Vec<u32> = cuts.iter().flatten().flat_map(|p| [p.0, p.1]).collect();
    edges.sort_unstable();
    edges.dedup();
    // The rotary part lies within one interval that both sides keep together.
    let i = rng.below(edges.len() as u32 - 1) as usize;
    let (low, high) = (edges[i], edges[i + 1]);
    let rope = (high - low > 1 && rng.percent(60)).then(|| {
        let dims = 2 * rng.between(1, (high - low) / 2);
        let from = low + rng.below(high - low - dims + 1);
        (dims, from, [rng.percent(50), rng.percent(50)])
    });
    for _ in 0..60 {
        let mut draw = |side: usize, other: Option<&Vec<Piece>>| -> Vec<Piece> {
            let mut pieces = Vec::new();
            for &(from, to) in &cuts[side] {
                let mate = other.and_then(|list| {
                    let mate = list.iter().find(|p| p.from <= from && to <= p.to)?;
                    rng.percent(45).then(|| mate.format.clone())
                });
                let mate = mate.filter(|format| {
                    let element = format["element"].as_str().unwrap();
                    coding(element, to - from).is_some()
                });
                let format = mate.unwrap_or_else(|| format(rng, to - from, heads, layers));
                pieces.push(Piece { from, to, format });
            }
            pieces
        };
        let a = draw(0, None);
        let b = draw(1, Some(&a));
        if fits(&name, &a, &b, rope) {
            return Whole {
                name,
                heads,
                group,
                rope,
                pieces: [a, b],
            };
        }
    }
    let plain = |side: usize| {
        let piece = |&(from, to): &(u32, u32)| Piece {
            from,
            to,
            format: json!({ "element": "bf16" }),
        };
        cuts[side].iter().map(piece).collect()
    };
    Whole {
        name,
        heads,
        group,
        rope,
        pieces: [plain(0), plain(1)],
    }
}

fn format(rng: &mut Rng, dim: u32, heads: u32, layers: u32) -> Value {
    let plain = [
        "f32", "f16", "bf16", "bf16", "e4m3fn", "e4m3fn", "e4m3fnuz", "e5m2", "int8",
    ];
    let all: Vec<&str> = Element::all()
        .map(Element::name)
        .filter(|element| coding(element, dim).is_some())
        .collect();
    // Those that few dims fit.
    let rare = ["ds_mla", "dsv4_fp8", "turboquant_k", "ggml_nvfp4", "kivi"];
    let is_rare = |name: &&str| rare.iter().any(|part| name.contains(part));
    let rare: Vec<&str> = all.iter().copied().filter(is_rare).collect();
    let element = match rng.below(10) {
        0..3 => rng.pick(&plain),
        3..5 if !rare.is_empty() => rng.pick(&rare),
        5..8 if dim > 500 => rng.pick(&rare),
        _ => rng.pick(&all),
    };
    let mut format = json!({ "element": element });
    let described: Element = element.parse().unwrap();
    let rules: Vec<&str> = described.scheme().rules().collect();
    if !rules.is_empty() && rng.percent(50) {
        format["scale_rule"] = json!(rng.pick(&rules));
    }
    // A block of signs is as long as there are signs.
    let block = 1_u32 << dim.trailing_zeros();
    if own_rotation(element).is_none() && rng.percent(12) {
        format["rotation"] = match rng.below(5) {
            0 => json!("none"),
            1 if block <= 256 => json!("signed"),
            _ => json!({ "hadamard": rng.pick(&divisors(block)) }),
        };
    }
    let alone = !described.is_grouped();
    if !alone && (element != "nvfp4" || rng.percent(30)) {
        return format;
    }
    let mut one = || match rng.below(4) {
        0 => 1.0,
        1 => 0.5,
        _ => f64::from(rng.between(1, 5000)) / 10_000.0,
    };
    let scale = match (one() * 10_000.0) as u32 % 5 {
        0 | 1 => return format,
        2 => {
            let values: Vec<f64> = (0..layers).map(|_| one()).collect();
            let values = if layers.is_multiple_of(2) {
                json!(values)
            } else {
                json!(values[0])
            };
            json!({ "granularity": "tensor", "type": "f32", "values": values })
        }
        3 => {
            let values: Vec<Vec<f64>> = (0..layers)
                .map(|_| (0..heads).map(|_| one()).collect())
                .collect();
            json!({ "granularity": "head", "values": values })
        }
        _ if !alone => return format,
        _ => json!({ "granularity": "token_head" }),
    };
    format["scale"] = scale;
    format
}

type Rotary = Option<(u32, u32, [bool; 2])>;

/// Whether every two pieces that meet can be turned into one another.
fn fits(name: &str, a: &[Piece], b: &[Piece], rope: Rotary) -> bool {
    let within = |p: &Piece| rope.filter(|(dims, from, _)| p.from <= *from && from + dims <= p.to);
    // Keys are grouped along tokens there, which rows cannot say.
    let grouped_along_rows =
        |p: &Piece| !p.element().starts_with("kivi") || (name != "key" && within(p).is_none());
    let meet = |s: &Piece, t: &Piece| {
        let (from, to) = (s.from.max(t.from), s.to.min(t.to));
        if from >= to {
            return true;
        }
        let whole = |p: &Piece| {
            let group = p.coding().group;
            let groups = (from - p.from).is_multiple_of(group) && (to - from).is_multiple_of(group);
            let row = !p.has_row_scale() || p.dim() == to - from;
            let blocks = p.rotation().is_none_or(|(n, signs)| {
                let n = if signs { p.dim() } else { n };
                (from - p.from).is_multiple_of(n) && (to - from).is_multiple_of(n)
            });
            groups && row && blocks
        };
        if !whole(s) || !whole(t) {
            return false;
        }
        let paired =
            within(s).filter(|(dims, _, [a, b])| within(t).is_some() && *dims > 2 && a != b);
        let alike = s.element() == t.element()
            && s.has_row_scale() == t.has_row_scale()
            && s.rotation() == t.rotation();
        let codes_move = paired.is_none() || (s.rotation().is_none() && moves(t, paired));
        if !alone(t.element()) && alike && !codes_move {
            return false;
        }
        let carried = alike && codes_move;
        let derives = t.has_row_scale() && !["int8", "e4m3fn", "e4m3fnuz"].contains(&t.element());
        carried || !(derives || t.element() == "iq4_nl")
    };
    a.iter().chain(b).all(grouped_along_rows) && a.iter().all(|s| b.iter().all(|t| meet(s, t)))
}

fn alone(element: &str) -> bool {
    !element.parse::<Element>().unwrap().is_grouped()
}

/// Whether the codes of the rotary part can change places without changing scales.
fn moves(piece: &Piece, rope: Rotary) -> bool {
    let Some((dims, from, _)) = rope else {
        return true;
    };
    let (from, to) = (from - piece.from, from - piece.from + dims);
    let row = ["lmdeploy", "turbomind", "turboquant_v", "dsv32_indexer"];
    match piece.element() {
        element if alone(element) => true,
        element if row.iter().any(|name| element.starts_with(name)) => true,
        "fp8_ds_mla" | "nvfp4_ds_mla" => from >= 512,
        "dsv4_fp8" => from / 512 == (to - 1) / 512 && from % 512 >= 448,
        _ => false,
    }
}

/// A component to be laid out.
struct Part {
    name: String,
    heads: u32,
    units: u32,
    unit_bytes: u32,
    /// Of what its offset and strides are multiples.
    align: u32,
    group: Option<usize>,
    splits_dim: bool,
    is_scales: bool,
    json: Map<String, Value>,
}

/// How many of each axis ranks have: the most, and what divides all of them.
#[derive(Clone, Copy)]
struct Sizes {
    most: [u32; 6],
    common: [u32; 6],
    /// Whether groups may share the regions, so that each layer has its own.
    in_turns: bool,
}

const LAYER: usize = 0;
const PART: usize = 1;
const PAGE: usize = 2;
const HEAD: usize = 3;
const SLOT: usize = 4;
const DIM: usize = 5;
const AXES: [&str; 6] = ["layer", "part", "page", "head", "slot", "dim"];

#[derive(Clone, Copy, PartialEq)]
struct Word {
    axis: usize,
    /// 0 for the whole axis, or the number it is split by.
    split: u32,
    outer: bool,
    region: bool,
}

impl Word {
    fn whole(axis: usize) -> Self {
        Self {
            axis,
            split: 0,
            outer: false,
            region: false,
        }
    }

    fn key(self) -> String {
        let axis = AXES[self.axis];
        match (self.split, self.outer) {
            (0, _) => axis.to_owned(),
            (n, true) => format!("{axis}/{n}"),
            (n, false) => format!("{axis}%{n}"),
        }
    }

    fn extent(self, sizes: &Sizes) -> u32 {
        match (self.split, self.outer) {
            (0, _) => sizes.most[self.axis],
            (n, true) => sizes.most[self.axis] / n,
            (n, false) => n,
        }
    }
}

/// One side's document: 0 for the producer, 1 for the consumer.
pub(crate) fn side(rng: &mut Rng, model: &Model, which: usize) -> Value {
    let deal = deal(rng, model);
    let slots: Vec<u32> = {
        let mut one = || match rng.below(3) {
            0 => rng.pick(&[1, 2, 4, 8, 16, 32]),
            _ => rng.between(1, 33),
        };
        let first = one();
        let rest = model.groups.iter().map(|_| one());
        let rest: Vec<u32> = rest.collect();
        if model.grouping != Grouping::Named || rng.percent(50) {
            vec![first; rest.len().max(1)]
        } else {
            rest
        }
    };
    // Groups that share regions take turns with the pages of a rank.
    let turns = model.grouping == Grouping::Named && rng.percent(60);
    // A side whose groups hold all tokens may as well not know of groups.
    let whole = model.groups.iter().all(|g| g.windows[which].is_none());
    let plain = model.grouping == Grouping::None
        || (model.grouping == Grouping::Unnamed && whole && rng.percent(50));
    let count = if plain { 1 } else { model.groups.len() };
    let window = |g: usize| {
        if plain {
            None
        } else {
            model.groups[g].windows[which]
        }
    };
    let in_group = |g: usize, layer: &u32| plain || model.groups[g].layers.contains(layer);

    // Pages.
    let mut needs = Vec::new();
    for rank in &deal.ranks {
        let stage = &deal.stages[rank.pp as usize];
        let need = |g: usize| {
            if !stage.iter().any(|layer| in_group(g, layer)) {
                return 0;
            }
            let mine = held(
                model.tokens,
                slots[g],
                window(g),
                (deal.cp, rank.cp),
                deal.unit,
            );
            (mine.len() as u32).div_ceil(slots[g])
        };
        needs.push((0..count).map(need).collect::<Vec<u32>>());
    }
    let page_split = rng.percent(8);
    let pages: Vec<u32> = needs
        .iter()
        .map(|need| {
            let most = match turns {
                true => need.iter().sum(),
                false => need.iter().copied().max().unwrap(),
            };
            let pages = most.max(1) + rng.below(4);
            if page_split {
                pages.next_multiple_of(2)
            } else {
                pages
            }
        })
        .collect();

    // What there is to lay out.
    let mut parts = Vec::new();
    for whole in &model.wholes {
        for piece in &whole.pieces[which] {
            parts.extend(described(rng, whole, piece, which));
        }
    }
    let sizes = |part: &Part| {
        let group = part.group.unwrap_or(0);
        let mut lists: [Vec<u32>; 6] = Default::default();
        for (rank, &pages) in deal.ranks.iter().zip(&pages) {
            let stage = &deal.stages[rank.pp as usize];
            let mine = |layer: &&u32| part.group.is_none_or(|g| in_group(g, layer));
            let layers = stage.iter().filter(mine).count() as u32;
            if layers == 0 {
                continue;
            }
            let heads = if part.heads == deal.heads {
                rank.heads.1 - rank.heads.0
            } else {
                1
            };
            for (axis, n) in [(LAYER, layers), (PAGE, pages), (HEAD, heads)] {
                lists[axis].push(n);
            }
        }
        lists[PART] = vec![1];
        lists[SLOT] = vec![slots[group]];
        lists[DIM] = vec![part.units];
        Sizes {
            most: lists
                .each_ref()
                .map(|l| l.iter().copied().max().unwrap_or(1)),
            common: lists.each_ref().map(|l| gcd(l.iter().copied())),
            in_turns: turns,
        }
    };
    let named: Vec<Option<usize>> = match model.grouping {
        Grouping::Named => (0..count).map(Some).collect(),
        _ => vec![None],
    };
    let mut pools = 0;
    for group in named {
        let (mine, rest): (Vec<_>, Vec<_>) =
            (0..parts.len()).partition(|&i| parts[i].group == group);
        drop(rest);
        let sizes: Vec<Sizes> = mine.iter().map(|&i| sizes(&parts[i])).collect();
        place(rng, &mut parts, &mine, &sizes, &mut pools);
    }
    for g in 1..count {
        let has_first = |stage: &Vec<u32>| stage.iter().any(|layer| in_group(0, layer));
        if turns && slots[g] == slots[0] && deal.stages.iter().all(has_first) {
            share(&mut parts, g);
        }
    }
    let mut components: Vec<Value> = parts.into_iter().map(|p| p.json.into()).collect();
    rng.shuffle(&mut components);
    let group_name = |g: usize| format!("{}{g}", ["group-", "g"][which]);
    for component in &mut components {
        if let Some(group) = component.get("group") {
            component["group"] = json!(group_name(group.as_u64().unwrap() as usize));
        }
    }

    // Ranks.
    let mut ranks = Vec::new();
    for (r, rank) in deal.ranks.iter().enumerate() {
        let mut all: Vec<u32> = (0..pages[r]).collect();
        rng.shuffle(&mut all);
        let mut list = |g: usize| -> Value {
            if !turns {
                rng.shuffle(&mut all);
                return json!(all[..needs[r][g] as usize]);
            }
            let rest = all.split_off(needs[r][g] as usize);
            json!(std::mem::replace(&mut all, rest))
        };
        let request: Value = if plain {
            list(0)
        } else {
            let named = (0..count).filter(|&g| needs[r][g] > 0 || g % 2 == 0);
            let named: Map<String, Value> = named.map(|g| (group_name(g), list(g))).collect();
            named.into()
        };
        let mut doc = json!({ "rank": r, "pages": pages[r], "request_pages": request });
        let stage = &deal.stages[rank.pp as usize];
        match deal.layers {
            Given::Default => {}
            Given::Interval => doc["layers"] = json!([stage[0], stage[stage.len() - 1] + 1]),
            Given::List => doc["layers_list"] = json!(stage),
        }
        if deal.gives_heads {
            doc["heads"] = json!([rank.heads.0, rank.heads.1]);
        }
        ranks.push(doc);
    }
    rng.shuffle(&mut ranks);
    let mut doc = json!({
        "version": 1,
        "engine": "random",
        "model": { "name": "random", "layers": model.layers },
        "parallel": { "tp": deal.tp, "pp": deal.pp, "cp": deal.cp, "rank_order": deal.order.join(" ") },
        "components": components,
        "ranks": ranks,
        "request": { "tokens": model.tokens },
    });
    if deal.cp > 1 {
        doc["parallel"]["cp_unit"] = json!(deal.unit);
    }
    if plain || model.grouping == Grouping::Unnamed {
        doc["page_slots"] = json!(slots[0]);
    }
    if !plain {
        let mut groups = Vec::new();
        for (g, group) in model.groups.iter().enumerate() {
            let mut out = json!({ "name": group_name(g), "layers_list": group.layers });
            if model.grouping == Grouping::Named {
                out["page_slots"] = json!(slots[g]);
            }
            if let Some(window) = window(g) {
                out["window"] = json!(window);
            }
            groups.push(out);
        }
        rng.shuffle(&mut groups);
        doc["groups"] = json!(groups);
    }
    doc
}

#[derive(Clone, Copy, PartialEq)]
enum Given {
    Default,
    Interval,
    List,
}

struct Deal {
    tp: u32,
    pp: u32,
    cp: u32,
    unit: &'static str,
    order: Vec<&'static str>,
    layers: Given,
    stages: Vec<Vec<u32>>,
    gives_heads: bool,
    /// The most heads of any component, which given intervals speak of.
    heads: u32,
    ranks: Vec<Dealt>,
}

struct Dealt {
    pp: u32,
    cp: u32,
    heads: (u32, u32),
}

/// Deals layers, heads and tokens to ranks.
fn deal(rng: &mut Rng, model: &Model) -> Deal {
    let replicas = model.options.replicas;
    let heads = model.wholes.iter().map(|w| w.heads).max().unwrap();
    let least = model.wholes.iter().map(|w| w.heads).min().unwrap();
    let pp = rng.pick(&[1, 1, 1, 2, 2, 3]).min(model.layers);
    let cp = rng.pick(&[1, 1, 1, 2, 3]);
    let mut tp = rng.pick(&[1, 1, 2, 2, 3, 4, 5, 6, 8]);
    if !replicas {
        tp = tp.min(least);
    }
    while tp * pp * cp > 12 {
        tp -= 1;
    }
    let unit = rng.pick(&["token", "page", "contiguous"]);
    let mut order = vec!["tp", "pp", "cp"];
    rng.shuffle(&mut order);

    let layers = model.layers;
    let given = match rng.below(3) {
        0 if layers.is_multiple_of(pp) => Given::Default,
        0 | 1 => Given::Interval,
        _ => Given::List,
    };
    let stages: Vec<Vec<u32>> = match given {
        Given::Default => (0..pp)
            .map(|p| (p * layers / pp..(p + 1) * layers / pp).collect())
            .collect(),
        Given::Interval => cut(rng, 0, layers, pp)
            .into_iter()
            .map(|(mut from, mut to)| {
                if replicas && rng.percent(20) {
                    from = rng.between(0, from);
                    to = rng.between(to, layers);
                }
                (from..to).collect()
            })
            .collect(),
        Given::List => {
            let mut all: Vec<u32> = (0..layers).collect();
            let interleaved = rng.percent(50);
            if !interleaved {
                rng.shuffle(&mut all);
            }
            let cuts = cut(rng, 0, layers, pp);
            (0..pp as usize)
                .map(|p| {
                    let mut mine: Vec<u32> = if interleaved {
                        all.iter().copied().skip(p).step_by(pp as usize).collect()
                    } else {
                        all[cuts[p].0 as usize..cuts[p].1 as usize].to_vec()
                    };
                    if replicas && rng.percent(20) {
                        mine.extend(all.iter().filter(|_| rng.percent(30)));
                        mine.sort_unstable();
                        mine.dedup();
                        rng.shuffle(&mut mine);
                    }
                    mine
                })
                .collect()
        }
    };

    let divides = heads.is_multiple_of(tp) || tp.is_multiple_of(heads);
    let gives_heads = !divides || rng.percent(40);
    let mut intervals: Vec<Vec<(u32, u32)>> = Vec::new();
    let each = rng.percent(50);
    for _ in 0..pp * cp {
        if !gives_heads {
            let default = |t: u32| {
                let from = t * heads / tp;
                (from, from + (heads / tp).max(1))
            };
            intervals.push((0..tp).map(default).collect());
        } else if each || intervals.is_empty() {
            let mut list = cut(rng, 0, heads, tp.min(heads));
            while (list.len() as u32) < tp {
                list.push(rng.pick(&list.clone()));
            }
            if replicas {
                for interval in &mut list {
                    if rng.percent(25) {
                        interval.0 = rng.between(0, interval.0);
                        interval.1 = rng.between(interval.1, heads);
                    }
                }
            }
            if rng.percent(60) {
                rng.shuffle(&mut list);
            } else {
                list.sort_unstable();
            }
            intervals.push(list);
        } else {
            intervals.push(intervals[0].clone());
        }
    }
    let size = |axis: &str| match axis {
        "tp" => tp,
        "pp" => pp,
        _ => cp,
    };
    let ranks = (0..tp * pp * cp).map(|number| {
        let mut rest = number;
        let mut at = [0; 3];
        for axis in order.iter().rev() {
            let i = ["tp", "pp", "cp"].iter().position(|a| a == axis).unwrap();
            at[i] = rest % size(axis);
            rest /= size(axis);
        }
        let [t, p, c] = at;
        Dealt {
            pp: p,
            cp: c,
            heads: intervals[(p * cp + c) as usize][t as usize],
        }
    });
    let ranks = ranks.collect();
    Deal {
        tp,
        pp,
        cp,
        unit,
        order,
        layers: given,
        stages,
        gives_heads,
        heads,
        ranks,
    }
}

/// A piece, and the scales of its rows if they are a component of their own.
fn described(rng: &mut Rng, whole: &Whole, piece: &Piece, which: usize) -> Vec<Part> {
    let cut = whole.pieces[which].len() > 1;
    let name = if cut {
        format!("{}-{}", whole.name, piece.from)
    } else {
        whole.name.clone()
    };
    let mut json = json!({
        "name": name, "heads": whole.heads, "dim": piece.dim(), "format": piece.format,
    });
    if cut || rng.percent(5) {
        json["of"] = json!({ "component": whole.name, "dims": [piece.from, piece.to] });
    }
    if let Some((dims, from, interleaves)) = whole.rope
        && piece.from <= from
        && from + dims <= piece.to
    {
        let pairing = ["half", "interleaved"][usize::from(interleaves[which])];
        json["rope"] = json!({ "pairing": pairing, "dims": dims });
        let offset = from - piece.from;
        if offset > 0 || rng.percent(50) {
            json["rope"]["offset"] = json!(offset);
        }
    }
    if let Some(group) = whole.group {
        json["group"] = json!(group);
    }
    let object = |json: Value| match json {
        Value::Object(map) => map,
        _ => unreachable!(),
    };
    let Coding {
        unit: (elements, unit_bytes),
        group: together,
        ..
    } = piece.coding();
    let mut parts = vec![Part {
        name: name.clone(),
        heads: whole.heads,
        units: piece.dim() / elements,
        unit_bytes,
        align: alignment(piece.element()),
        group: whole.group,
        // Blocks that hold more than codes stay whole.
        splits_dim: alone(piece.element()) || elements == 1 || elements < together,
        is_scales: false,
        json: object(json),
    }];
    if let Some((count, element)) = piece.params() {
        let scales = format!("{name}.scale");
        let mut json = json!({
            "name": scales, "heads": whole.heads, "dim": count, "format": { "element": element },
        });
        if let Some(group) = whole.group {
            json["group"] = json!(group);
        }
        let unit_bytes = coding(element, 1).unwrap().unit.1;
        parts.push(Part {
            name: scales,
            heads: whole.heads,
            units: count,
            unit_bytes,
            align: alignment(element),
            group: whole.group,
            splits_dim: true,
            is_scales: true,
            json: object(json),
        });
    }
    parts
}

/// Gives every component of a group a pool and a layout.
fn place(rng: &mut Rng, parts: &mut [Part], mine: &[usize], sizes: &[Sizes], pools: &mut u32) {
    let mut pool = || {
        *pools += 1;
        // Not in alphabetical order of their first use.
        format!("{}{pools}", ["kv", "a", "zz"][(*pools % 3) as usize])
    };
    let mut left: Vec<usize> = (0..mine.len()).collect();
    rng.shuffle(&mut left);
    while let Some(first) = left.pop() {
        // Others that lie in the same way, as far as heads go.
        let like = |&i: &usize| parts[mine[i]].heads == parts[mine[first]].heads;
        let mut group = vec![first];
        if rng.percent(60) {
            group.extend(
                left.iter()
                    .copied()
                    .filter(like)
                    .filter(|_| rng.percent(80)),
            );
        }
        // Components along `part` cannot be told from those of another group.
        let mode = rng.between(u32::from(sizes[first].in_turns), 2);
        if mode == 0 && group.len() > 1 {
            // A dense `part` needs equal rows; a region for each does not.
            let apart = rng.percent(35);
            let equal = |&i: &usize| {
                let (a, b) = (&parts[mine[i]], &parts[mine[first]]);
                apart || (a.units, a.unit_bytes) == (b.units, b.unit_bytes)
            };
            group.retain(equal);
            left.retain(|i| !group.contains(i));
            shared_part(rng, parts, mine, sizes, &group, apart, pool());
        } else if mode == 1 && group.len() > 1 {
            left.retain(|i| !group.contains(i));
            cells(rng, parts, mine, sizes, &group, pool());
        } else if group.len() > 1 {
            left.retain(|i| !group.contains(i));
            page_parts(rng, parts, mine, sizes, &group, pool());
        } else {
            let part = &mut parts[mine[first]];
            let names_part = rng.percent(8) && !sizes[first].in_turns;
            let words = match interleaved(&sizes[first]) {
                Some(words) if part.is_scales && rng.percent(30) => words,
                _ => words(rng, &sizes[first], names_part, part.splits_dim),
            };
            let names_part = names_part && words.iter().any(|w| w.axis == PART);
            let layout = strided(rng, &words, &sizes[first], part);
            part.json.insert("layout".into(), layout);
            part.json.insert("pool".into(), json!(pool()));
            if names_part {
                part.json.insert("part".into(), json!(0));
            }
        }
    }
}

/// Axes in some order, some in brackets, some split.
fn words(rng: &mut Rng, sizes: &Sizes, names_part: bool, splits_dim: bool) -> Vec<Word> {
    let mut axes = vec![LAYER, PAGE, HEAD, SLOT, DIM];
    if rng.percent(40) {
        // What engines do.
        axes = match rng.below(4) {
            0 => vec![LAYER, PAGE, SLOT, HEAD, DIM],
            1 => vec![LAYER, PAGE, HEAD, SLOT, DIM],
            2 => vec![LAYER, PAGE, HEAD, DIM, SLOT],
            _ => vec![PAGE, LAYER, HEAD, SLOT, DIM],
        };
    } else {
        rng.shuffle(&mut axes);
    }
    axes.retain(|&axis| {
        sizes.most[axis] > 1 || (sizes.in_turns && axis == LAYER) || rng.percent(50)
    });
    if names_part {
        axes.insert(rng.below(axes.len() as u32 + 1) as usize, PART);
    }
    if axes.is_empty() {
        axes.push(DIM);
    }
    let mut words = Vec::new();
    let mut later = Vec::new();
    for axis in axes {
        let mut word = Word::whole(axis);
        let brackets = match axis {
            LAYER if sizes.in_turns => 100,
            PAGE if sizes.in_turns => 0,
            _ => [45, 35, 6, 12, 0, 0][axis],
        };
        let splits = match axis {
            DIM if !splits_dim => 0,
            DIM => 25,
            SLOT | HEAD => 20,
            PAGE | LAYER => 8,
            _ => 0,
        };
        if rng.percent(brackets) {
            word.region = true;
        } else if rng.percent(splits) {
            word.split = rng.pick(&divisors(sizes.common[axis]));
            word.outer = rng.percent(85);
            later.push(Word {
                outer: !word.outer,
                ..word
            });
        }
        words.push(word);
    }
    for inner in later {
        let first = words.iter().position(|w| w.axis == inner.axis).unwrap() + 1;
        let at = rng.between(first as u32, words.len() as u32);
        words.insert(at as usize, inner);
    }
    words
}

/// Scales of four tokens side by side, as trtllm-gen reads them for values.
fn interleaved(sizes: &Sizes) -> Option<Vec<Word>> {
    let half = |outer| Word {
        split: 4,
        outer,
        ..Word::whole(SLOT)
    };
    let layer = Word {
        region: true,
        ..Word::whole(LAYER)
    };
    let words = vec![
        layer,
        Word::whole(PAGE),
        Word::whole(HEAD),
        half(true),
        Word::whole(DIM),
        half(false),
    ];
    sizes.common[SLOT].is_multiple_of(4).then_some(words)
}

fn text(words: &[Word]) -> String {
    let word = |w: &Word| {
        if w.region {
            format!("[{}]", w.key())
        } else {
            w.key()
        }
    };
    words.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// Dense, or with strides that leave gaps, or that nest in another order than the text.
fn strided(rng: &mut Rng, words: &[Word], sizes: &Sizes, part: &Part) -> Value {
    let align = u64::from(part.align);
    let mut strides: Vec<(usize, u64)> = Vec::new();
    let offsets: Vec<usize> = (0..words.len())
        .rev()
        .filter(|&i| !words[i].region)
        .collect();
    let mut next = u64::from(part.unit_bytes);
    match rng.below(10) {
        0..5 => {}
        5..8 => {
            for &i in &offsets {
                if rng.percent(30) {
                    next = (next + u64::from(rng.between(1, 40))).next_multiple_of(align);
                    strides.push((i, next));
                }
                next *= u64::from(words[i].extent(sizes));
            }
        }
        _ => {
            let mut order = offsets.clone();
            rng.shuffle(&mut order);
            for i in order {
                if rng.percent(20) {
                    next = (next + u64::from(rng.between(1, 40))).next_multiple_of(align);
                }
                strides.push((i, next));
                next *= u64::from(words[i].extent(sizes));
            }
        }
    }
    let offset = if rng.percent(20) {
        u64::from(rng.between(1, 100)).next_multiple_of(align)
    } else {
        0
    };
    if strides.is_empty() && offset == 0 {
        return json!(text(words));
    }
    // A stride may stand in the text or beside it.
    let mut table = Map::new();
    let mut tokens: Vec<String> = words
        .iter()
        .map(|w| {
            if w.region {
                format!("[{}]", w.key())
            } else {
                w.key()
            }
        })
        .collect();
    for (i, stride) in strides {
        if rng.percent(30) {
            tokens[i] = format!("{}{{{stride}}}", tokens[i]);
        } else {
            table.insert(words[i].key(), json!(stride));
        }
    }
    let mut layout = json!({ "text": tokens.join(" ") });
    if offset > 0 {
        layout["offset_bytes"] = json!(offset);
    }
    if !table.is_empty() {
        layout["strides_bytes"] = json!(table);
    }
    layout
}

/// Components side by side along `part`.
fn shared_part(
    rng: &mut Rng,
    parts: &mut [Part],
    mine: &[usize],
    sizes: &[Sizes],
    group: &[usize],
    apart: bool,
    pool: String,
) {
    let mut common = sizes[group[0]];
    for &i in group {
        for axis in 0..6 {
            common.most[axis] = common.most[axis].max(sizes[i].most[axis]);
            common.common[axis] = gcd([common.common[axis], sizes[i].common[axis]]);
        }
    }
    common.most[PART] = group.len() as u32;
    let splits_dim = group.iter().all(|&i| parts[mine[i]].splits_dim);
    let mut shared = words(rng, &common, true, splits_dim);
    for word in &mut shared {
        if word.axis == PART && apart {
            word.region = true;
        }
    }
    let at = shared.iter().position(|w| w.axis == PART).unwrap();
    let mut order: Vec<usize> = (0..group.len()).collect();
    rng.shuffle(&mut order);
    for (&i, k) in group.iter().zip(order) {
        let mut own = shared.clone();
        // What lies under `part` is a component's own business, and so is all where each has a region.
        let free: Vec<usize> = (0..own.len())
            .filter(|&w| !own[w].region && (shared[at].region || w > at))
            .collect();
        if rng.percent(50) {
            let mut moved: Vec<Word> = free.iter().map(|&w| own[w]).collect();
            rng.shuffle(&mut moved);
            for (&w, word) in free.iter().zip(moved) {
                own[w] = word;
            }
        }
        let part = &mut parts[mine[i]];
        let default = u32::from(part.name == "value");
        if k as u32 != default || rng.percent(30) {
            part.json.insert("part".into(), json!(k));
        }
        part.json.insert("layout".into(), json!(text(&own)));
        part.json.insert("pool".into(), json!(pool));
    }
}

/// Rows of several components in one cell: key, value and their scales side by side.
fn cells(
    rng: &mut Rng,
    parts: &mut [Part],
    mine: &[usize],
    sizes: &[Sizes],
    group: &[usize],
    pool: String,
) {
    let mut shared = sizes[group[0]];
    shared.most[DIM] = 2;
    let mut words: Vec<Word> = words(rng, &shared, false, false)
        .into_iter()
        .filter(|w| w.axis != DIM)
        .collect();
    if words.iter().all(|w| w.region) {
        words.retain(|w| w.axis != SLOT);
        words.push(Word::whole(SLOT));
    }
    let inner = words.iter().rposition(|w| !w.region).unwrap();
    let row = |p: &Part| u64::from(p.units) * u64::from(p.unit_bytes);
    let align = |i: usize| u64::from(parts[mine[i]].align);
    let first = if rng.percent(20) {
        4 * u64::from(rng.below(3))
    } else {
        0
    };
    let mut end = first;
    let mut offsets = Vec::new();
    for &i in group {
        end = end.next_multiple_of(align(i));
        offsets.push(end);
        end += row(&parts[mine[i]]);
    }
    if rng.percent(40) {
        end += u64::from(rng.below(9));
    }
    let most = group.iter().map(|&i| align(i)).max().unwrap();
    let cell = (end - first).next_multiple_of(most);
    for (&i, offset) in group.iter().zip(offsets) {
        let part = &mut parts[mine[i]];
        let mut own = words.clone();
        if part.units > 1 || rng.percent(50) {
            own.push(Word::whole(DIM));
        }
        let mut layout = json!({ "text": text(&own) });
        layout["strides_bytes"] = json!({ words[inner].key(): cell });
        if offset > 0 || rng.percent(50) {
            layout["offset_bytes"] = json!(offset);
        }
        part.json.insert("layout".into(), layout);
        part.json.insert("pool".into(), json!(pool));
    }
}

/// Components one after another in each page.
fn page_parts(
    rng: &mut Rng,
    parts: &mut [Part],
    mine: &[usize],
    sizes: &[Sizes],
    group: &[usize],
    pool: String,
) {
    let brackets = sizes[group[0]].in_turns || rng.percent(60);
    let mut drawn = Vec::new();
    let mut page = 0;
    for &i in group {
        let mut own: Vec<Word> = words(rng, &sizes[i], false, parts[mine[i]].splits_dim)
            .into_iter()
            .filter(|w| w.axis != PAGE && !(brackets && w.axis == LAYER))
            .map(|w| Word { region: false, ..w })
            .collect();
        let mut bytes = u64::from(parts[mine[i]].unit_bytes);
        for word in &own {
            bytes *= u64::from(word.extent(&sizes[i]));
        }
        if let Some(words) = interleaved(&sizes[i])
            && parts[mine[i]].is_scales
            && brackets
            && rng.percent(30)
        {
            own = words[2..].to_vec();
            bytes = u64::from(parts[mine[i]].unit_bytes);
            for word in &own {
                bytes *= u64::from(word.extent(&sizes[i]));
            }
        }
        own.insert(0, Word::whole(PAGE));
        if brackets {
            let layer = Word {
                region: true,
                ..Word::whole(LAYER)
            };
            own.insert(0, layer);
        }
        page = u64::next_multiple_of(page, parts[mine[i]].align.into());
        drawn.push((own, page));
        page += bytes;
    }
    page += if rng.percent(40) {
        u64::from(rng.below(50))
    } else {
        0
    };
    let most = group.iter().map(|&i| parts[mine[i]].align).max().unwrap();
    page = page.next_multiple_of(most.into());
    for (&i, (own, offset)) in group.iter().zip(drawn) {
        let part = &mut parts[mine[i]];
        let layout = json!({
            "text": text(&own), "offset_bytes": offset, "strides_bytes": { "page": page },
        });
        part.json.insert("layout".into(), layout);
        part.json.insert("pool".into(), json!(pool));
    }
}

/// Puts the components of a group where those of the first group lie, if they are as long and their pages
/// step alike.
fn share(parts: &mut [Part], group: usize) {
    let of = |g: usize| -> Vec<usize> {
        let mine = |&i: &usize| parts[i].group == Some(g);
        (0..parts.len()).filter(mine).collect()
    };
    let (first, own) = (of(0), of(group));
    let pairs = || first.iter().copied().zip(own.iter().copied());
    let like = |(a, b): (usize, usize)| {
        let (a, b) = (&parts[a], &parts[b]);
        let layout = a.json["layout"].to_string();
        (a.heads, a.units, a.unit_bytes, a.align) == (b.heads, b.units, b.unit_bytes, b.align)
            && layout.contains("[layer]")
            && !layout.contains("[page]")
            && !layout.contains("part")
    };
    if first.len() != own.len() || !pairs().all(like) {
        return;
    }
    for (a, b) in pairs() {
        for field in ["layout", "pool"] {
            let value = parts[a].json[field].clone();
            parts[b].json.insert(field.into(), value);
        }
    }
}

/// Has both sides ask for the same part of the request, most of the time: tokens from one on, some layers.
pub(crate) fn part(rng: &mut Rng, sides: &mut [Value; 2]) {
    let number = |value: &Value| value.as_u64().unwrap() as u32;
    let tokens = number(&sides[0]["request"]["tokens"]);
    let layers = number(&sides[0]["model"]["layers"]);
    let first = rng.percent(50).then(|| rng.below(tokens));
    let some = rng.percent(40).then(|| {
        let start = rng.below(layers);
        [start, rng.between(start + 1, layers)]
    });
    for side in sides {
        if let Some(first) = first {
            side["request"]["first"] = json!(first);
        }
        if let Some(some) = some {
            side["request"]["layers"] = json!(some);
        }
    }
}
