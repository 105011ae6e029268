//! What must become of a pair of descriptions, written from the text of the schema and as slowly as it
//! reads: an address is the sum of index × stride over the words of the layout, a token is looked for in
//! all ranks, and a row is converted by the reference.
//!
//! Nothing here uses the crate's layouts, token runs or plans, so that a mistake in them shows.

use std::collections::{BTreeMap, HashMap};

use moai_collectives::{
    digest::{DigestKey, RowAt},
    negotiate::{Agreement, Role},
};
use moai_translate::{
    format::{Counts, Pairing, Rope, RowFormat, RowScale},
    reference,
    rotation::Rotation,
};
use serde_json::Value;

use super::rng::{Rng, mix};

/// The bytes of one rank's regions, in the order of [`Rank::names`].
pub(crate) type Regions = Vec<Vec<u8>>;

/// One side, as its document says it.
pub(crate) struct Side {
    pub(crate) layers: u32,
    pub(crate) tokens: u32,
    /// Tokens from here on, and layers from one to another, are moved.
    first: u32,
    some: (u32, u32),
    pub(crate) groups: Vec<Group>,
    pub(crate) components: Vec<Component>,
    pub(crate) ranks: Vec<Rank>,
}

pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) layers: Vec<u32>,
    pub(crate) slots: u32,
    pub(crate) window: Option<u32>,
}

pub(crate) struct Component {
    pub(crate) name: String,
    pub(crate) heads: u32,
    pub(crate) dim: u32,
    pool: String,
    part: u32,
    format: Value,
    rope: Option<Rope>,
    whole: String,
    first: u32,
    group: Option<usize>,
    scales: Option<usize>,
    is_scales: bool,
    text: String,
    offset: u64,
    strides: BTreeMap<String, u64>,
    group_elements: u32,
    group_bytes: u32,
}

pub(crate) struct Rank {
    pub(crate) pages: u32,
    /// By component.
    pub(crate) owned: Vec<Owned>,
    /// `{pool}.{index}` of every region.
    pub(crate) names: Vec<String>,
    /// By component: the first region of its pool.
    first: Vec<usize>,
    /// By group and token: page and slot.
    pub(crate) held: Vec<Vec<Option<(u32, u32)>>>,
}

pub(crate) struct Owned {
    pub(crate) heads: (u32, u32),
    pub(crate) layers: Vec<u32>,
    words: Vec<Word>,
}

struct Word {
    axis: usize,
    divide: u32,
    extent: u32,
    region: bool,
    stride: u64,
}

const AXES: [&str; 6] = ["layer", "part", "page", "head", "slot", "dim"];

/// How an element keeps a row, as the engines define it.
pub(crate) struct Coding {
    /// Elements and bytes that stay together.
    pub(crate) unit: (u32, u32),
    /// Elements that no piece may part.
    pub(crate) group: u32,
    /// What is kept apart: how many a row, and of which element.
    pub(crate) params: Option<(u32, &'static str)>,
}

/// How rows of `dim` are kept; `None` where they cannot be.
pub(crate) fn coding(element: &str, dim: u32) -> Option<Coding> {
    // Whole rows of one scale: what fills bytes, and the params.
    let row = |elements: u32, bytes: u32, params| (elements, bytes, dim, elements, params);
    let block = |elements, bytes| (elements, bytes, elements, elements, None);
    // Of blocks with scales apart: the unit, elements of a block, params of each.
    let apart = |(elements, bytes), block: u32, params: (u32, &'static str)| {
        let (each, of) = params;
        (
            elements,
            bytes,
            block,
            block,
            Some((dim / block * each, of)),
        )
    };
    let (elements, bytes, group, multiple, params) = match element {
        "f32" => block(1, 4),
        "f16" | "bf16" => block(1, 2),
        "e4m3fn" | "e4m3fnuz" | "e5m2" | "e5m2fnuz" | "e2m3" | "e3m2" | "e8m0" | "int8"
        | "uint8" => block(1, 1),
        "e2m1" | "int4" | "uint4" => block(2, 1),
        "q8_0" => block(32, 34),
        "q4_0" | "iq4_nl" => block(32, 18),
        "q4_1" => block(32, 20),
        "q5_0" => block(32, 22),
        "q5_1" => block(32, 24),
        "ggml_mxfp4" => block(32, 17),
        "ggml_nvfp4" => block(64, 36),
        "fp8_ds_mla" if dim == 576 => block(576, 656),
        "nvfp4_ds_mla" if dim == 576 => block(576, 352),
        "fp8_ds_mla" | "nvfp4_ds_mla" => return None,
        "mxfp8_e4m3" | "mxfp8_e5m2" | "mxint8" | "dsv41_fp8" => apart((1, 1), 32, (1, "e8m0")),
        "mxfp4" | "ultraquant_4bit" => apart((2, 1), 32, (1, "e8m0")),
        "sglang_fp4_mx_block16" => apart((2, 1), 16, (1, "e8m0")),
        "nvfp4" | "dsv41_fp4" => apart((2, 1), 16, (1, "e4m3fn")),
        "kivi_4bit" => apart((2, 1), 32, (2, "f16")),
        "kivi_2bit" => apart((4, 1), 32, (2, "f16")),
        "dsv4_fp8" => apart((512, 576), 512, (8, "e8m0")),
        "dsv32_indexer" => row(1, 1, Some((1, "f32"))),
        "int4_per_token_head" if dim >> dim.trailing_zeros() << 8 < dim => return None,
        "int4_per_token_head" => row(2, 1, Some((1, "f32"))),
        "lmdeploy_int8" | "turbomind_int8" => row(1, 1, Some((2, "f16"))),
        "lmdeploy_int8_bf16" | "turbomind_int8_bf16" => row(1, 1, Some((2, "bf16"))),
        // The two nibbles of a byte are half a row apart.
        "lmdeploy_int4" if dim.is_multiple_of(2) => row(dim, dim / 2, Some((2, "f16"))),
        "lmdeploy_int4_bf16" if dim.is_multiple_of(2) => row(dim, dim / 2, Some((2, "bf16"))),
        "lmdeploy_int4" | "lmdeploy_int4_bf16" => return None,
        "turbomind_int4" => row(8, 4, Some((2, "f16"))),
        "turbomind_int4_bf16" => row(8, 4, Some((2, "bf16"))),
        "turboquant_k4_nc" if [64, 128, 256].contains(&dim) => row(dim, dim / 2, Some((1, "f16"))),
        "turboquant_k3_nc" if [64, 128, 256].contains(&dim) => {
            row(dim, dim / 8 * 3, Some((1, "f16")))
        }
        "turboquant_k4_nc" | "turboquant_k3_nc" => return None,
        "turboquant_v4" => row(2, 1, Some((2, "f16"))),
        "turboquant_v3" => row(8, 3, Some((2, "f16"))),
        other => panic!("{other} is not generated"),
    };
    dim.is_multiple_of(multiple).then_some(Coding {
        unit: (elements, bytes),
        group,
        params,
    })
}

/// Of what offsets and strides are multiples: the bytes of an element that is one number.
pub(crate) fn alignment(element: &str) -> u32 {
    match element {
        "f32" => 4,
        "f16" | "bf16" => 2,
        _ => 1,
    }
}

/// The tokens a context parallel rank holds, ascending.
///
/// A window is rounded out to pages; where tokens are dealt to several ranks, to one page of each.
pub(crate) fn held(
    tokens: u32,
    slots: u32,
    window: Option<u32>,
    (cp, me): (u32, u32),
    unit: &str,
) -> Vec<u32> {
    let first = match window {
        Some(window) if window < tokens => {
            let page = slots * cp;
            (tokens - window) / page * page
        }
        _ => 0,
    };
    let owner = |token: u32| match unit {
        _ if cp == 1 => 0,
        "token" => token % cp,
        "page" => token / slots % cp,
        "contiguous" => token / tokens.div_ceil(cp),
        other => panic!("{other} is no unit"),
    };
    (first..tokens).filter(|&t| owner(t) == me).collect()
}

fn number(value: &Value) -> u32 {
    u32::try_from(value.as_u64().expect("a number")).expect("a u32")
}

fn numbers(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .expect("a list")
        .iter()
        .map(number)
        .collect()
}

fn layers_of(value: &Value) -> Option<Vec<u32>> {
    if let Some(list) = value.get("layers_list") {
        return Some(numbers(list));
    }
    let interval = numbers(value.get("layers")?);
    Some((interval[0]..interval[1]).collect())
}

impl Side {
    pub(crate) fn read(doc: &Value) -> Self {
        let layers = number(&doc["model"]["layers"]);
        let tokens = number(&doc["request"]["tokens"]);
        let groups = match doc.get("groups") {
            None => vec![Group {
                name: String::new(),
                layers: (0..layers).collect(),
                slots: number(&doc["page_slots"]),
                window: None,
            }],
            Some(groups) => groups
                .as_array()
                .unwrap()
                .iter()
                .map(|g| Group {
                    name: g["name"].as_str().unwrap().to_owned(),
                    layers: layers_of(g).unwrap(),
                    slots: number(g.get("page_slots").unwrap_or_else(|| &doc["page_slots"])),
                    window: g.get("window").map(number),
                })
                .collect(),
        };
        let mut components: Vec<Component> = doc["components"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| component(c, &groups))
            .collect();
        let names: Vec<String> = components.iter().map(|c| c.name.clone()).collect();
        for component in &mut components {
            let scales = format!("{}.scale", component.name);
            component.scales = names.iter().position(|name| *name == scales);
        }
        let request = &doc["request"];
        let some = request.get("layers").filter(|some| !some.is_null());
        let some = some.map_or((0, layers), |some| (number(&some[0]), number(&some[1])));
        let mut side = Self {
            layers,
            tokens,
            first: request.get("first").map_or(0, number),
            some,
            groups,
            components,
            ranks: Vec::new(),
        };
        let count = doc["ranks"].as_array().unwrap().len() as u32;
        for number in 0..count {
            let rank = side.rank(doc, number);
            side.ranks.push(rank);
        }
        side
    }

    fn rank(&self, doc: &Value, me: u32) -> Rank {
        let given = doc["ranks"].as_array().unwrap();
        let given = given.iter().find(|r| number(&r["rank"]) == me).unwrap();
        let parallel = &doc["parallel"];
        let size = |axis: &str| parallel.get(axis).map_or(1, number);
        let order = parallel.get("rank_order").and_then(Value::as_str);
        let mut at: HashMap<&str, u32> = HashMap::new();
        let mut rest = me;
        for axis in order.unwrap_or("pp cp tp").split(' ').rev() {
            at.insert(axis, rest % size(axis));
            rest /= size(axis);
        }
        let layers = layers_of(given).unwrap_or_else(|| {
            let each = self.layers / size("pp");
            (at["pp"] * each..(at["pp"] + 1) * each).collect()
        });
        let most = self.components.iter().map(|c| c.heads).max().unwrap();
        let (tp, me) = (size("tp"), at["tp"]);
        let pages = number(&given["pages"]);
        let owned = self.components.iter().enumerate().map(|(c, component)| {
            let heads = match given.get("heads") {
                Some(heads) if component.heads == most => {
                    let heads = numbers(heads);
                    (heads[0], heads[1])
                }
                _ if tp > component.heads => {
                    let head = me * component.heads / tp;
                    (head, head + 1)
                }
                _ => {
                    let each = component.heads / tp;
                    (me * each, (me + 1) * each)
                }
            };
            let mine = |layer: &&u32| {
                component
                    .group
                    .is_none_or(|g| self.groups[g].layers.contains(layer))
            };
            let layers: Vec<u32> = layers.iter().filter(mine).copied().collect();
            let words = self.words(c, layers.len() as u32, pages, heads.1 - heads.0);
            Owned {
                heads,
                layers,
                words,
            }
        });
        let owned: Vec<Owned> = owned.collect();
        let mut pools: BTreeMap<&str, u32> = BTreeMap::new();
        for (component, own) in self.components.iter().zip(&owned) {
            let picks = own.words.iter().filter(|word| word.region);
            let regions = pools.entry(&component.pool).or_default();
            if !own.layers.is_empty() {
                *regions = (*regions).max(picks.map(|word| word.extent).product());
            }
        }
        let listed = |(pool, &n): (&&str, &u32)| -> Vec<String> {
            (0..n).map(|i| format!("{pool}.{i}")).collect()
        };
        let names: Vec<String> = pools.iter().flat_map(listed).collect();
        let first = self.components.iter().map(|component| {
            let before = pools.range(..component.pool.as_str());
            before.map(|(_, &n)| n as usize).sum()
        });
        let first = first.collect();
        let unit = parallel.get("cp_unit").and_then(Value::as_str);
        let cp = (size("cp"), at["cp"]);
        let held = self.groups.iter().map(|group| {
            let mut places = vec![None; self.tokens as usize];
            let lists = &given["request_pages"];
            let list = if lists.is_array() {
                numbers(lists)
            } else {
                lists.get(&group.name).map(numbers).unwrap_or_default()
            };
            // A rank without layers of the group holds none of its tokens.
            if !layers.iter().any(|layer| group.layers.contains(layer)) {
                return places;
            }
            let tokens = held(
                self.tokens,
                group.slots,
                group.window,
                cp,
                unit.unwrap_or(""),
            );
            for (j, token) in (0_u32..).zip(tokens) {
                places[token as usize] = Some((list[(j / group.slots) as usize], j % group.slots));
            }
            places
        });
        let held = held.collect();
        Rank {
            pages,
            owned,
            names,
            first,
            held,
        }
    }

    /// The words of a component's layout with the extents of one rank.
    fn words(&self, c: usize, layers: u32, pages: u32, heads: u32) -> Vec<Word> {
        let component = &self.components[c];
        let names_part = |c: &&Component| {
            c.pool == component.pool && c.text.split(' ').any(|word| word.contains("part"))
        };
        let parts = self.components.iter().filter(names_part).count() as u32;
        let slots = self.groups[component.group.unwrap_or(0)].slots;
        let units = component.dim / component.group_elements;
        let extents = [layers, parts, pages, heads, slots, units];
        let mut words = Vec::new();
        let mut dense = u64::from(component.group_bytes);
        for text in component.text.split(' ').rev() {
            let region = text.starts_with('[');
            let text = text.trim_matches(['[', ']']);
            let (key, given) = match text.split_once('{') {
                Some((key, bytes)) => (key, bytes.trim_end_matches('}').parse().ok()),
                None => (text, component.strides.get(text).copied()),
            };
            let axis_of = |name: &str| AXES.iter().position(|a| *a == name).unwrap();
            let (axis, divide, extent) = if let Some((name, n)) = key.split_once('/') {
                let n: u32 = n.parse().unwrap();
                (axis_of(name), n, extents[axis_of(name)] / n)
            } else if let Some((name, n)) = key.split_once('%') {
                (axis_of(name), 1, n.parse().unwrap())
            } else {
                (axis_of(key), 1, extents[axis_of(key)])
            };
            let stride = given.unwrap_or(dense);
            if !region {
                dense = stride * u64::from(extent);
            }
            words.push(Word {
                axis,
                divide,
                extent,
                region,
                stride,
            });
        }
        words.reverse();
        words
    }

    /// Region and byte of one unit.
    fn address(&self, rank: usize, c: usize, at: [u32; 5]) -> (usize, usize) {
        let component = &self.components[c];
        let [layer, page, head, slot, dim] = at;
        let index = [layer, component.part, page, head, slot, dim];
        let (mut region, mut byte) = (0, component.offset);
        for word in &self.ranks[rank].owned[c].words {
            let i = index[word.axis] / word.divide % word.extent;
            if word.region {
                region = region * word.extent + i;
            } else {
                byte += u64::from(i) * word.stride;
            }
        }
        let first = self.ranks[rank].first[c];
        (first + region as usize, byte as usize)
    }

    /// The regions of a rank, each as long as its last addressed byte asks for and a few bytes more.
    pub(crate) fn regions(&self, rank: usize, rng: &mut Rng) -> Regions {
        let mut needs = vec![0; self.ranks[rank].names.len()];
        let r = &self.ranks[rank];
        for (c, component) in self.components.iter().enumerate() {
            let owned = &r.owned[c];
            let slots = self.groups[component.group.unwrap_or(0)].slots;
            let units = component.dim / component.group_elements;
            for layer in 0..owned.layers.len() as u32 {
                for page in 0..r.pages {
                    for head in 0..owned.heads.1 - owned.heads.0 {
                        let at = [layer, page, head, slots - 1, units - 1];
                        let (region, byte) = self.address(rank, c, at);
                        let end = byte + component.group_bytes as usize;
                        needs[region] = end.max(needs[region]);
                    }
                }
            }
        }
        let slack = rng.percent(50);
        let fill = |need: usize| {
            let bytes = need + if slack { rng.below(8) as usize } else { 0 };
            let words = (0..bytes.div_ceil(8)).flat_map(|_| rng.next().to_le_bytes());
            words.take(bytes).collect()
        };
        needs.into_iter().map(fill).collect()
    }

    /// Writes every row that a rank holds, the same on all ranks that hold it.
    pub(crate) fn fill(&self, rank: usize, seed: u64, regions: &mut Regions) {
        for (c, component) in self.components.iter().enumerate() {
            if component.is_scales {
                continue;
            }
            self.each_row(rank, c, |layer, token, head, at| {
                let place = (c as u64) << 48 | u64::from(layer) << 32 | u64::from(head) << 16;
                let mut rng = Rng::new(mix(seed ^ mix(place | u64::from(token))));
                let units = component.dim / component.group_elements;
                let mut row = vec![0; (units * component.group_bytes) as usize];
                content(&component.format, &mut rng, &mut row);
                let mut params = vec![0; self.params_bytes(c)];
                if let Some(s) = component.scales {
                    let element = self.components[s].format["element"].as_str().unwrap();
                    params_content(element, &mut rng, &mut params);
                }
                self.write(
                    rank,
                    c,
                    at,
                    (0, &row),
                    (0, &params),
                    &mut |region, byte, bytes| {
                        regions[region][byte..byte + bytes.len()].copy_from_slice(bytes);
                    },
                );
            });
        }
    }

    /// Calls `each` with layer, token, head and [layer, page, head, slot] on the rank.
    fn each_row(&self, rank: usize, c: usize, mut each: impl FnMut(u32, u32, u32, [u32; 4])) {
        let r = &self.ranks[rank];
        let owned = &r.owned[c];
        for (local, &layer) in (0_u32..).zip(&owned.layers) {
            let group = self.group_of(c, layer);
            for token in 0..self.tokens {
                let Some((page, slot)) = r.held[group][token as usize] else {
                    continue;
                };
                for head in owned.heads.0..owned.heads.1 {
                    let at = [local, page, head - owned.heads.0, slot];
                    each(layer, token, head, at);
                }
            }
        }
    }

    fn group_of(&self, c: usize, layer: u32) -> usize {
        self.components[c].group.unwrap_or_else(|| {
            let holds = |g: &Group| g.layers.contains(&layer);
            self.groups.iter().position(holds).unwrap()
        })
    }

    fn write(
        &self,
        rank: usize,
        c: usize,
        [layer, page, head, slot]: [u32; 4],
        (unit, row): (u32, &[u8]),
        (params_unit, params): (u32, &[u8]),
        put: &mut impl FnMut(usize, usize, &[u8]),
    ) {
        let component = &self.components[c];
        for (i, bytes) in (unit..).zip(row.chunks(component.group_bytes as usize)) {
            let (region, byte) = self.address(rank, c, [layer, page, head, slot, i]);
            put(region, byte, bytes);
        }
        if let Some(s) = component.scales {
            let width = self.components[s].group_bytes as usize;
            for (i, bytes) in (params_unit..).zip(params.chunks(width)) {
                let (region, byte) = self.address(rank, s, [layer, page, head, slot, i]);
                put(region, byte, bytes);
            }
        }
    }

    /// Bytes that a whole row of a component keeps in another.
    fn params_bytes(&self, c: usize) -> usize {
        self.components[c].scales.map_or(0, |s| {
            let scales = &self.components[s];
            (scales.dim / scales.group_elements * scales.group_bytes) as usize
        })
    }

    fn read_row(
        &self,
        rank: usize,
        c: usize,
        [layer, page, head, slot]: [u32; 4],
        (unit, row): (u32, &mut [u8]),
        (params_unit, params): (u32, &mut [u8]),
        regions: &Regions,
    ) {
        let component = &self.components[c];
        for (i, bytes) in (unit..).zip(row.chunks_mut(component.group_bytes as usize)) {
            let (region, byte) = self.address(rank, c, [layer, page, head, slot, i]);
            bytes.copy_from_slice(&regions[region][byte..byte + bytes.len()]);
        }
        if let Some(s) = component.scales {
            let width = self.components[s].group_bytes as usize;
            for (i, bytes) in (params_unit..).zip(params.chunks_mut(width)) {
                let (region, byte) = self.address(rank, s, [layer, page, head, slot, i]);
                bytes.copy_from_slice(&regions[region][byte..byte + bytes.len()]);
            }
        }
    }

    fn row_format(&self, c: usize, layer: u32, head: u32, span: (u32, u32)) -> RowFormat {
        let component = &self.components[c];
        let format = &component.format;
        let scale = match format.get("scale") {
            None => RowScale::None,
            Some(scale) => match (scale["granularity"].as_str().unwrap(), scale.get("values")) {
                ("token_head", _) => RowScale::Row,
                ("tensor", Some(Value::Number(one))) => {
                    RowScale::Constant(one.as_f64().unwrap() as f32)
                }
                ("tensor", Some(list)) => {
                    RowScale::Constant(list[layer as usize].as_f64().unwrap() as f32)
                }
                ("head", Some(list)) => {
                    RowScale::Constant(list[layer as usize][head as usize].as_f64().unwrap() as f32)
                }
                other => panic!("{other:?} is not generated"),
            },
        };
        // The rotary part as the piece counts it; a piece without it has none.
        let rope = component
            .rope
            .filter(|rope| span.0 <= rope.offset && rope.offset + rope.dims <= span.1);
        let element = format["element"].as_str().unwrap().parse().unwrap();
        let plain = match format.get("scale_rule").and_then(Value::as_str) {
            Some(rule) => RowFormat::of(element).with_rule(rule).unwrap(),
            None => RowFormat::of(element),
        };
        let rotation = match format.get("rotation") {
            None => Rotation::None,
            Some(Value::String(word)) if word == "none" => Rotation::None,
            Some(Value::String(word)) if word == "signed" => Rotation::Signed,
            Some(rotation) => Rotation::Hadamard(number(&rotation["hadamard"])),
        };
        RowFormat {
            scale,
            rotation,
            rope: rope.map(|rope| Rope {
                offset: rope.offset - span.0,
                ..rope
            }),
            ..plain
        }
    }
}

fn component(c: &Value, groups: &[Group]) -> Component {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let name = text(&c["name"]);
    let layout = &c["layout"];
    let dim = number(&c["dim"]);
    let element = c["format"]["element"].as_str().unwrap();
    let (group_elements, group_bytes) = coding(element, dim).expect("dim fits").unit;
    let mut strides = BTreeMap::new();
    if let Some(given) = layout.get("strides_bytes") {
        for (key, bytes) in given.as_object().unwrap() {
            strides.insert(key.clone(), bytes.as_u64().unwrap());
        }
    }
    Component {
        heads: number(&c["heads"]),
        dim,
        pool: text(&c["pool"]),
        part: c
            .get("part")
            .map_or_else(|| u32::from(name == "value"), number),
        format: c["format"].clone(),
        rope: c.get("rope").map(|rope| Rope {
            pairing: match rope["pairing"].as_str().unwrap() {
                "half" => Pairing::Half,
                _ => Pairing::Interleaved,
            },
            offset: rope.get("offset").map_or(0, number),
            dims: number(&rope["dims"]),
        }),
        whole: c
            .get("of")
            .map_or_else(|| name.clone(), |of| text(&of["component"])),
        first: c.get("of").map_or(0, |of| number(&of["dims"][0])),
        group: c.get("group").map(|group| {
            let named = |g: &Group| g.name == group.as_str().unwrap();
            groups.iter().position(named).unwrap()
        }),
        scales: None,
        is_scales: name.ends_with(".scale"),
        text: text(layout.get("text").unwrap_or(layout)),
        offset: layout
            .get("offset_bytes")
            .map_or(0, |bytes| bytes.as_u64().unwrap()),
        strides,
        group_elements,
        group_bytes,
        name,
    }
}

/// Codes of a row: mostly ordinary numbers, now and then any bits at all.
fn content(format: &Value, rng: &mut Rng, row: &mut [u8]) {
    let wild = rng.percent(5);
    let small = |rng: &mut Rng| (rng.below(20_001) as f32 - 10_000.0) / 1000.0;
    match format["element"].as_str().unwrap() {
        "f32" if !wild => {
            for code in row.chunks_mut(4) {
                code.copy_from_slice(&small(rng).to_le_bytes());
            }
        }
        "bf16" if !wild => {
            for code in row.chunks_mut(2) {
                code.copy_from_slice(&((small(rng).to_bits() >> 16) as u16).to_le_bytes());
            }
        }
        // An exponent of 14 to 16 of 31.
        "f16" if !wild => {
            for code in row.chunks_mut(2) {
                let sign = (rng.below(2) as u16) << 15;
                let bits = sign | (0x3800 + rng.below(0xC00) as u16);
                code.copy_from_slice(&bits.to_le_bytes());
            }
        }
        element => {
            for code in &mut *row {
                *code = rng.next() as u8;
            }
            // Scales that lie among the codes: bytes of a block, where they are, and of which element.
            let among: (usize, &[(std::ops::Range<usize>, &str)]) = match element {
                "q8_0" => (34, &[(0..2, "f16")]),
                "q4_0" | "iq4_nl" => (18, &[(0..2, "f16")]),
                "q5_0" => (22, &[(0..2, "f16")]),
                "q4_1" => (20, &[(0..4, "f16")]),
                "q5_1" => (24, &[(0..4, "f16")]),
                "ggml_mxfp4" => (17, &[(0..1, "e8m0")]),
                "ggml_nvfp4" => (36, &[(0..4, "e4m3fn")]),
                "fp8_ds_mla" => (656, &[(512..528, "f32"), (528..656, "bf16")]),
                "nvfp4_ds_mla" => (352, &[(320..352, "e4m3fn")]),
                "dsv4_fp8" => (576, &[(448..576, "bf16")]),
                _ => (1, &[]),
            };
            for block in row.chunks_mut(among.0) {
                for (at, element) in among.1 {
                    params_content(element, rng, &mut block[at.clone()]);
                }
            }
        }
    }
}

/// Scales and zeros: mostly such as a writer makes, now and then any bits at all.
fn params_content(element: &str, rng: &mut Rng, params: &mut [u8]) {
    if rng.percent(3) {
        params.fill_with(|| rng.next() as u8);
        return;
    }
    match element {
        "f32" => {
            for scale in params.chunks_mut(4) {
                let value = 0.001 + rng.below(4_000_000) as f32 / 1_000_000.0;
                scale.copy_from_slice(&value.to_le_bytes());
            }
        }
        "f16" => {
            for scale in params.chunks_mut(2) {
                let sign = u16::from(rng.percent(20)) << 15;
                let bits = sign | (0x2000 + rng.below(0x1C00) as u16);
                scale.copy_from_slice(&bits.to_le_bytes());
            }
        }
        "bf16" => {
            for scale in params.chunks_mut(2) {
                let sign = u16::from(rng.percent(20)) << 15;
                let bits = sign | (0x3C00 + rng.below(0x480) as u16);
                scale.copy_from_slice(&bits.to_le_bytes());
            }
        }
        "e4m3fn" => params.fill_with(|| rng.below(0x7F) as u8),
        "e8m0" => params.fill_with(|| 112 + rng.below(24) as u8),
        other => panic!("{other} holds no params"),
    }
}

/// What must have happened.
pub(crate) struct Expected {
    pub(crate) counts: Counts,
    /// For each consumer rank and region, how often each byte is written.
    pub(crate) writes: Vec<Vec<Vec<u8>>>,
    /// Sum of the digests of every row that a consumer rank receives.
    pub(crate) digest: u64,
}

/// Carries every row of the consumer from some rank of the producer that has it.
pub(crate) fn convert(
    producer: &Side,
    consumer: &Side,
    sources: &[Regions],
    targets: &mut [Regions],
    agreement: &Agreement,
    key: &DigestKey,
) -> Expected {
    let blank = |regions: &Regions| regions.iter().map(|r| vec![0; r.len()]).collect();
    let mut expected = Expected {
        counts: Counts::default(),
        writes: targets.iter().map(blank).collect(),
        digest: 0,
    };
    for (t, target) in consumer.components.iter().enumerate() {
        for (s, source) in producer.components.iter().enumerate() {
            let start = source.first.max(target.first);
            let end = (source.first + source.dim).min(target.first + target.dim);
            let apart = source.whole != target.whole || start >= end;
            if apart || source.is_scales || target.is_scales {
                continue;
            }
            let in_source = (start - source.first, end - source.first);
            let in_target = (start - target.first, end - target.first);
            let dim = end - start;
            let mut row = vec![0; (dim / source.group_elements * source.group_bytes) as usize];
            let mut made = vec![0; (dim / target.group_elements * target.group_bytes) as usize];
            let same = |span: &moai_collectives::plan::Span| (span.source, span.target) == (s, t);
            let span = agreement.spans.iter().position(same).expect("a span");
            let converts = agreement.carriages[span].converts;
            for (rank, regions) in targets.iter_mut().enumerate() {
                consumer.each_row(rank, t, |layer, token, head, at| {
                    if !consumer.wants(layer, token) {
                        return;
                    }
                    let Some((from, place)) = producer.find(s, layer, token, head) else {
                        let group = &consumer.groups[consumer.group_of(t, layer)];
                        let needed = group.window.unwrap_or(consumer.tokens);
                        assert!(
                            token + needed < consumer.tokens,
                            "token {token} of layer {layer} is needed and nowhere to be found"
                        );
                        return;
                    };
                    let unit = in_source.0 / source.group_elements;
                    // Params of the piece: as much of the row's as the piece is of the row.
                    let share = |side: &Side, c: usize, part: (u32, u32)| {
                        let whole = side.components[c].dim;
                        let bytes = side.params_bytes(c) as u32;
                        let width = side.components[c]
                            .scales
                            .map_or(1, |s| side.components[s].group_bytes);
                        (
                            bytes * part.0 / whole / width,
                            (bytes * (part.1 - part.0) / whole) as usize,
                        )
                    };
                    let (first, bytes) = share(producer, s, in_source);
                    let mut params = vec![0; bytes];
                    producer.read_row(
                        from,
                        s,
                        place,
                        (unit, &mut row),
                        (first, &mut params),
                        &sources[from],
                    );
                    let a = producer.row_format(s, layer, head, in_source);
                    let b = consumer.row_format(t, layer, head, in_target);
                    let (first, bytes) = share(consumer, t, in_target);
                    let mut made_params = vec![0; bytes];
                    expected.counts += reference::convert_row(
                        &a,
                        &b,
                        dim,
                        &row,
                        &params,
                        &mut made,
                        &mut made_params,
                    );
                    let unit = in_target.0 / target.group_elements;
                    let writes = &mut expected.writes[rank];
                    consumer.write(
                        rank,
                        t,
                        at,
                        (unit, &made),
                        (first, &made_params),
                        &mut |region, byte, bytes| {
                            let range = byte..byte + bytes.len();
                            regions[region][range.clone()].copy_from_slice(bytes);
                            for n in &mut writes[region][range] {
                                *n += 1;
                            }
                        },
                    );
                    let at = RowAt {
                        layer,
                        component: span as u32,
                        head,
                        token,
                    };
                    let (wire, apart) = match converts {
                        Role::Producer => (&made, &made_params),
                        Role::Consumer => (&row, &params),
                    };
                    expected.digest = expected.digest.wrapping_add(key.row(at, wire, apart));
                });
            }
        }
    }
    expected
}

impl Side {
    /// Whether the request is for a row.
    fn wants(&self, layer: u32, token: u32) -> bool {
        self.first <= token && self.some.0 <= layer && layer < self.some.1
    }

    /// Some rank that holds a row, and where: [layer, page, head, slot].
    fn find(&self, c: usize, layer: u32, token: u32, head: u32) -> Option<(usize, [u32; 4])> {
        (0..self.ranks.len()).find_map(|rank| {
            let r = &self.ranks[rank];
            let owned = &r.owned[c];
            let local = owned.layers.iter().position(|&own| own == layer)? as u32;
            if head < owned.heads.0 || owned.heads.1 <= head {
                return None;
            }
            let (page, slot) = r.held[self.group_of(c, layer)][token as usize]?;
            Some((rank, [local, page, head - owned.heads.0, slot]))
        })
    }
}
