//! The door: from a description to a descriptor.

use std::{collections::BTreeMap, ops::Range};

use moai_translate::{
    element::Element,
    format::{FormatError, Pairing, Rope, RowFormat},
    layout::{Axis, Extents, Layout, Notation, Word, overlap},
    rotation::Rotation,
    scheme::{Coding, Packing, Params, Place, Store},
};

use super::{
    Component, Descriptor, DescriptorError, Format, Group, RankShard, RegionSpec, Scale, Whole,
    rank::Owned,
};
use crate::{
    description::{self as doc, Granularity, RequestPages, Values},
    limits,
    negotiate::Role,
    request::{At, Layers, Request, RequestError},
};

type Checked<T> = Result<T, DescriptorError>;

fn bad<T>(field: impl Into<String>, problem: impl Into<String>) -> Checked<T> {
    Err(DescriptorError::Field {
        field: field.into(),
        problem: problem.into(),
    })
}

fn need(ok: bool, field: impl Into<String>, problem: impl FnOnce() -> String) -> Checked<()> {
    if ok { Ok(()) } else { bad(field, problem()) }
}

/// `value` lies in 1..=most.
fn count(field: &str, value: u32, most: u32) -> Checked<()> {
    need((1..=most).contains(&value), field, || {
        format!("{value} is not between 1 and {most}")
    })
}

fn interval(field: &str, [from, to]: [u32; 2], end: u32) -> Checked<Range<u32>> {
    need(from < to && to <= end, field, || {
        format!("[{from}, {to}] is not a half-open interval within 0..{end}")
    })?;
    Ok(from..to)
}

impl Descriptor {
    /// Checks a description, apart from its request.
    ///
    /// # Errors
    ///
    /// [`DescriptorError::Field`] for the first field that cannot be.
    pub fn new(doc: &doc::Description) -> Checked<Self> {
        need(doc.version == 1, "version", || {
            format!("{} is not known; this build reads version 1", doc.version)
        })?;
        count("model.layers", doc.model.layers, limits::MAX_LAYERS)?;
        let layers = doc.model.layers;
        let p = &doc.parallel;
        let ranks = parallel(p)?;
        let groups = groups(doc)?;
        let components = components(doc, &groups)?;
        let order = rank_order(p)?;
        let cp_unit = p.cp_unit;
        let mut side = Self {
            engine: doc.engine.clone(),
            model_name: doc.model.name.clone(),
            model_digest: doc.model.digest.clone(),
            layers,
            parallel: [p.tp, p.pp, p.cp],
            cp_unit,
            groups,
            components,
            ranks: Vec::new(),
        };
        let mut given: BTreeMap<u32, (usize, &doc::Rank)> = BTreeMap::new();
        for (i, rank) in doc.ranks.iter().enumerate() {
            let field = format!("ranks[{i}].rank");
            need(rank.rank < ranks, &field, || {
                format!(
                    "rank {} is extra: tp {} × pp {} × cp {} makes ranks 0..{ranks}",
                    rank.rank, p.tp, p.pp, p.cp
                )
            })?;
            need(given.insert(rank.rank, (i, rank)).is_none(), &field, || {
                format!("rank {} is given twice", rank.rank)
            })?;
        }
        let missing: Vec<_> = (0..ranks)
            .filter(|r| !given.contains_key(r))
            .map(|r| r.to_string())
            .collect();
        need(missing.is_empty(), "ranks", || {
            format!(
                "rank {} missing: tp {} × pp {} × cp {} makes ranks 0..{ranks}",
                missing.join(", "),
                p.tp,
                p.pp,
                p.cp
            )
        })?;
        let owned = u64::from(ranks) * u64::from(layers) * side.components.len() as u64;
        need(owned <= limits::MAX_OWNED, "ranks", || {
            format!(
                "{ranks} ranks × {layers} layers × {} components is more than {}",
                side.components.len(),
                limits::MAX_OWNED
            )
        })?;
        let mut regions = 0;
        for (&number, &(i, rank)) in &given {
            let shard = shard(&side, doc, number, i, rank, &order)?;
            regions += shard.regions.len() as u64;
            need(regions <= limits::MAX_SIDE_REGIONS, "ranks", || {
                format!(
                    "have more than {} regions together",
                    limits::MAX_SIDE_REGIONS
                )
            })?;
            side.ranks.push(shard);
        }
        Ok(side)
    }
}

fn parallel(p: &doc::Parallel) -> Checked<u32> {
    count("parallel.tp", p.tp, limits::MAX_RANKS)?;
    count("parallel.pp", p.pp, limits::MAX_RANKS)?;
    count("parallel.cp", p.cp, limits::MAX_CP)?;
    let product = u64::from(p.tp) * u64::from(p.pp) * u64::from(p.cp);
    need(product <= u64::from(limits::MAX_RANKS), "parallel", || {
        format!(
            "tp {} × pp {} × cp {} makes {product} ranks, more than {}",
            p.tp,
            p.pp,
            p.cp,
            limits::MAX_RANKS
        )
    })?;
    need(p.cp == 1 || p.cp_unit.is_some(), "parallel.cp_unit", || {
        format!(
            "cp is {}, so it must say how tokens are dealt: \"token\", \"page\" or \"contiguous\"",
            p.cp
        )
    })?;
    Ok(product as u32)
}

/// The axes `tp`, `pp`, `cp` as indices 0, 1, 2, slowest first.
fn rank_order(p: &doc::Parallel) -> Checked<[usize; 3]> {
    let names: Vec<&str> = p.rank_order.split_ascii_whitespace().collect();
    let at = |name| ["tp", "pp", "cp"].iter().position(|&axis| axis == name);
    let order: Option<Vec<usize>> = names.iter().map(|&name| at(name)).collect();
    if let Some(order) = order
        && let Ok(order) = <[usize; 3]>::try_from(order)
        && (0..3).all(|axis| order.contains(&axis))
    {
        return Ok(order);
    }
    bad(
        "parallel.rank_order",
        format!("\"{}\" is not an order of pp, cp and tp", p.rank_order),
    )
}

fn layer_set(
    field: &str,
    range: Option<[u32; 2]>,
    list: Option<&Vec<u32>>,
    layers: u32,
) -> Checked<Option<Vec<u32>>> {
    match (range, list) {
        (Some(_), Some(_)) => bad(
            field,
            "both `layers` and `layers_list` are given; one is enough",
        ),
        (Some(range), None) => Ok(Some(
            interval(&format!("{field}.layers"), range, layers)?.collect(),
        )),
        (None, Some(list)) => {
            let field = format!("{field}.layers_list");
            need(!list.is_empty(), &field, || {
                "is empty; expected at least one layer".into()
            })?;
            let mut seen = vec![false; layers as usize];
            for &layer in list {
                need(layer < layers, &field, || {
                    format!("layer {layer} is not within 0..{layers}")
                })?;
                need(
                    !std::mem::replace(&mut seen[layer as usize], true),
                    &field,
                    || format!("layer {layer} is listed twice"),
                )?;
            }
            Ok(Some(list.clone()))
        }
        (None, None) => Ok(None),
    }
}

fn groups(doc: &doc::Description) -> Checked<Vec<Group>> {
    let layers = doc.model.layers;
    if doc.groups.is_empty() {
        let Some(page_slots) = doc.page_slots else {
            return bad("page_slots", "is missing; expected the tokens a page holds");
        };
        count("page_slots", page_slots, limits::MAX_TOKENS)?;
        return Ok(vec![Group {
            name: String::new(),
            layers: (0..layers).collect(),
            page_slots,
            window: None,
        }]);
    }
    need(doc.groups.len() <= limits::MAX_GROUPS, "groups", || {
        format!(
            "{} groups, more than {}",
            doc.groups.len(),
            limits::MAX_GROUPS
        )
    })?;
    let mut groups: Vec<Group> = Vec::new();
    for (i, group) in doc.groups.iter().enumerate() {
        let field = format!("groups[{i}]");
        need(
            !groups.iter().any(|g| g.name == group.name),
            format!("{field}.name"),
            || format!("group \"{}\" is given twice", group.name),
        )?;
        let Some(mut set) = layer_set(&field, group.layers, group.layers_list.as_ref(), layers)?
        else {
            return bad(field, "gives neither `layers` nor `layers_list`");
        };
        set.sort_unstable();
        let Some(page_slots) = group.page_slots.or(doc.page_slots) else {
            return bad(
                format!("{field}.page_slots"),
                "is missing, and the document gives none for all groups",
            );
        };
        count(
            &format!("{field}.page_slots"),
            page_slots,
            limits::MAX_TOKENS,
        )?;
        if let Some(window) = group.window {
            count(&format!("{field}.window"), window, limits::MAX_TOKENS)?;
        }
        groups.push(Group {
            name: group.name.clone(),
            layers: set,
            page_slots,
            window: group.window,
        });
    }
    Ok(groups)
}

fn components(doc: &doc::Description, groups: &[Group]) -> Checked<Vec<Component>> {
    let given = &doc.components;
    need(
        (1..=limits::MAX_COMPONENTS).contains(&given.len()),
        "components",
        || {
            format!(
                "{} components; expected 1 to {}",
                given.len(),
                limits::MAX_COMPONENTS
            )
        },
    )?;
    let index = |name: &str| given.iter().position(|c| c.name == name);
    let mut components = Vec::new();
    for (i, c) in given.iter().enumerate() {
        let field = format!("components[{i}]");
        need(
            !c.name.is_empty() && index(&c.name) == Some(i),
            format!("{field}.name"),
            || format!("\"{}\" is empty or names two components", c.name),
        )?;
        need(!c.pool.is_empty(), format!("{field}.pool"), || {
            "is empty".into()
        })?;
        count(&format!("{field}.heads"), c.heads, limits::MAX_HEADS)?;
        count(&format!("{field}.dim"), c.dim, limits::MAX_DIM)?;
        let format = format(doc, c, &field)?;
        let scale_name = format!("{}.scale", c.name);
        let scales = index(&scale_name);
        match (format.params(c.dim), scales) {
            (Some(params), None) => {
                return bad(
                    format!("{field}.format.scale"),
                    format!(
                        "{format} keeps scales apart, but there is no component \"{scale_name}\" that holds them: add one of {} heads, dim {} and element {}",
                        c.heads,
                        params.units,
                        params_element(&format, params)
                    ),
                );
            }
            (Some(params), Some(s)) => params_component(c, &format, params, &given[s], s)?,
            (None, Some(_)) => {
                return bad(
                    format!("{field}.format.scale"),
                    format!(
                        "component \"{scale_name}\" holds scales, but {format} keeps none apart; the granularity token_head would"
                    ),
                );
            }
            (None, None) => {}
        }
        along_rows(c, &format, &field)?;
        let owner = c.name.strip_suffix(".scale");
        if let Some(owner) = owner {
            need(index(owner).is_some(), format!("{field}.name"), || {
                format!("there is no component \"{owner}\" whose scales these could be")
            })?;
        }
        let whole = match &c.of {
            None => Whole {
                name: c.name.clone(),
                dims: 0..c.dim,
            },
            Some(piece) => {
                let field = format!("{field}.of.dims");
                let dims = interval(&field, piece.dims, limits::MAX_DIM)?;
                need(dims.end - dims.start == c.dim, &field, || {
                    format!(
                        "{} dims, but the component has dim {}",
                        dims.end - dims.start,
                        c.dim
                    )
                })?;
                Whole {
                    name: piece.component.clone(),
                    dims,
                }
            }
        };
        let group = match &c.group {
            None => None,
            Some(name) => match groups.iter().position(|g| g.name == *name) {
                Some(group) => Some(group),
                None => {
                    return bad(
                        format!("{field}.group"),
                        format!("there is no group \"{name}\""),
                    );
                }
            },
        };
        if group.is_none() {
            for (g, first) in groups.iter().enumerate() {
                for second in &groups[..g] {
                    let both = |layer: &&u32| second.layers.binary_search(layer).is_ok();
                    if let Some(layer) = first.layers.iter().find(both) {
                        return bad(
                            format!("{field}.group"),
                            format!(
                                "layer {layer} is in groups \"{}\" and \"{}\", so the component must name one",
                                second.name, first.name
                            ),
                        );
                    }
                }
            }
        }
        let notation = notation(&c.layout, &field)?;
        aligned(&c.layout, &notation, format.element, &field)?;
        components.push(Component {
            name: c.name.clone(),
            heads: c.heads,
            dim: c.dim,
            pool: c.pool.clone(),
            part: c.part.unwrap_or_else(|| u32::from(c.name == "value")),
            rope: rope(c, &field)?,
            format,
            whole,
            group,
            notation,
            scales,
            is_scales: owner.is_some(),
        });
    }
    Ok(components)
}

/// The element in which params lie.
fn params_element(format: &Format, params: Params) -> Element {
    let store = match &format.element.scheme().coding {
        Coding::Block(block) => block.segments.iter().find_map(|segment| {
            let scales = segment.scales?;
            matches!(scales.place, Place::Params(_)).then_some(scales.store)
        }),
        _ => None,
    };
    let name = match (store, params.unit_bytes) {
        (Some(Store::E4m3fn), _) => "e4m3fn",
        (Some(Store::Bf16), _) => "bf16",
        (_, 1) => "e8m0",
        (_, 2) => "f16",
        _ => "f32",
    };
    name.parse().expect("the table has the types of scales")
}

/// What holds the params of `owner` holds just them, row for row.
fn params_component(
    owner: &doc::Component,
    format: &Format,
    params: Params,
    scales: &doc::Component,
    s: usize,
) -> Checked<()> {
    let field = format!("components[{s}]");
    let element = params_element(format, params);
    need(
        scales.format.element == element.name(),
        format!("{field}.format.element"),
        || {
            format!(
                "is \"{}\", but {format} keeps its scales as {element}: give that",
                scales.format.element
            )
        },
    )?;
    need(scales.dim == params.units, format!("{field}.dim"), || {
        format!(
            "is {}, but rows of {} in {format} keep {} of {element} apart: give that",
            scales.dim, owner.dim, params.units
        )
    })?;
    need(
        scales.heads == owner.heads,
        format!("{field}.heads"),
        || {
            format!(
                "is {}, but \"{}\", whose scales these are, has {}: give as many",
                scales.heads, owner.name, owner.heads
            )
        },
    )?;
    need(
        scales.group == owner.group,
        format!("{field}.group"),
        || {
            let say = |group: &Option<String>| {
                group
                    .as_ref()
                    .map_or_else(|| "none".to_owned(), |g| format!("\"{g}\""))
            };
            format!(
                "is {}, but \"{}\", whose scales these are, names {}: give the same",
                say(&scales.group),
                owner.name,
                say(&owner.group)
            )
        },
    )?;
    let says = [
        ("format.scale", scales.format.scale.is_some()),
        ("format.scale_rule", scales.format.scale_rule.is_some()),
        (
            "format.rotation",
            !matches!(scales.format.rotation, None | Some(doc::Rotation::None)),
        ),
        ("rope", scales.rope.is_some()),
        ("of", scales.of.is_some()),
    ];
    for (name, given) in says {
        need(!given, format!("{field}.{name}"), || {
            format!(
                "is given, but \"{}\" holds scales of \"{}\", which are read as they lie: leave it out",
                scales.name, owner.name
            )
        })?;
    }
    Ok(())
}

/// KIVI groups keys along tokens, one channel at a time; rows run along dims.
fn along_rows(c: &doc::Component, format: &Format, field: &str) -> Checked<()> {
    let whole = c.of.as_ref().map_or(&c.name, |of| &of.component);
    let keys = whole == "key" || c.rope.is_some();
    let kivi = format.element.name().starts_with("kivi_");
    need(!(kivi && keys), format!("{field}.format.element"), || {
        format!(
            "{} groups keys by channel along tokens, and a row of \"{}\" is one token's dims, so its bytes would be read as other numbers: describe keys that are not yet quantized (bf16, f16), or values in {}",
            format.element, c.name, format.element
        )
    })
}

/// A number of several bytes lies where the engine's tensor of its type would have it.
fn aligned(
    layout: &doc::Layout,
    notation: &Notation,
    element: Element,
    field: &str,
) -> Checked<()> {
    let Some((number, Packing::Bytes)) = element.number() else {
        return Ok(());
    };
    let width = number.bytes() as u64;
    let even = |what: &str, bytes: u64| {
        need(
            bytes.is_multiple_of(width),
            format!("{field}.layout"),
            || {
                format!(
                    "{what} is {bytes} bytes, no multiple of the {width} bytes of {element}, where no tensor of {element} can lie: pad it to {}",
                    bytes.div_ceil(width).saturating_mul(width)
                )
            },
        )
    };
    for word in notation.words() {
        if let Some(bytes) = word.stride_bytes {
            even(&format!("the stride of `{}`", word.key()), bytes)?;
        }
    }
    if let doc::Layout::Strided(strided) = layout {
        even("offset_bytes", strided.offset_bytes)?;
        for (key, &bytes) in &strided.strides_bytes {
            even(&format!("the stride of `{key}`"), bytes)?;
        }
    }
    Ok(())
}

fn notation(layout: &doc::Layout, field: &str) -> Checked<Notation> {
    let text = match layout {
        doc::Layout::Text(text) => text,
        doc::Layout::Strided(strided) => &strided.text,
    };
    text.parse()
        .or_else(|error: moai_translate::layout::NotationError| {
            bad(format!("{field}.layout"), error.to_string())
        })
}

fn rope(c: &doc::Component, field: &str) -> Checked<Option<Rope>> {
    let Some(rope) = c.rope else { return Ok(None) };
    let end = rope.offset.checked_add(rope.dims);
    let fits = rope.dims > 0 && rope.dims % 2 == 0 && end.is_some_and(|end| end <= c.dim);
    need(fits, format!("{field}.rope"), || {
        format!(
            "{} rotary dims from {} on are not an even, positive number within dim {}",
            rope.dims, rope.offset, c.dim
        )
    })?;
    Ok(Some(Rope {
        pairing: match rope.pairing {
            doc::Pairing::Half => Pairing::Half,
            doc::Pairing::Interleaved => Pairing::Interleaved,
        },
        offset: rope.offset,
        dims: rope.dims,
    }))
}

fn format(doc: &doc::Description, c: &doc::Component, field: &str) -> Checked<Format> {
    let at = format!("{field}.format");
    let element: Element = match c.format.element.parse() {
        Ok(element) => element,
        Err(error) => {
            let error: FormatError = error;
            return bad(format!("{at}.element"), error.to_string());
        }
    };
    let mut row = RowFormat::of(element);
    match row.row_bytes(c.dim) {
        Ok(_) => {}
        Err(FormatError::RaggedRow { group_elements, .. }) => {
            return bad(
                format!("{field}.dim"),
                format!(
                    "{} is not a whole number of {element}'s groups of {group_elements}: pad the row, or use another element",
                    c.dim
                ),
            );
        }
        Err(error) => return bad(format!("{field}.dim"), error.to_string()),
    }
    if let Some(rule) = &c.format.scale_rule {
        row = match row.with_rule(rule) {
            Ok(row) => row,
            Err(error) => return bad(format!("{at}.scale_rule"), error.to_string()),
        };
    }
    let scale = match &c.format.scale {
        None => Scale::None,
        Some(scale) => constant_scale(doc, c, scale, element, &format!("{at}.scale"))?,
    };
    let rotation = Rotation::from(c.format.rotation.unwrap_or(doc::Rotation::None));
    let own = element.rotation();
    need(
        rotation == Rotation::None || own == Rotation::None,
        format!("{at}.rotation"),
        || format!("{rotation} is given, but {element} brings its own, {own}: leave it out"),
    )?;
    need(own.fits(c.dim), format!("{field}.dim"), || {
        format!(
            "{} cannot be rotated as {element} is ({own}), in blocks of a power of two up to 256: pad the row, or use another element",
            c.dim
        )
    })?;
    // 0 would stand for the greatest that fits, which a description spells out.
    let fits = rotation != Rotation::Hadamard(0) && rotation.fits(c.dim);
    need(fits, format!("{at}.rotation"), || {
        let most = 1 << c.dim.trailing_zeros();
        match rotation {
            Rotation::Signed => format!(
                "{rotation} has blocks of up to 256, and those of dim {} would be {most}: describe pieces, or no rotation",
                c.dim
            ),
            _ => format!(
                "{rotation} is not of a power of two that divides dim {}; the greatest is {most}",
                c.dim
            ),
        }
    })?;
    Ok(Format {
        element,
        scale,
        rule: row.rule,
        rotation,
    })
}

fn constant_scale(
    doc: &doc::Description,
    c: &doc::Component,
    scale: &doc::Scale,
    element: Element,
    at: &str,
) -> Checked<Scale> {
    need(
        scale.kind.as_deref().unwrap_or("f32") == "f32",
        format!("{at}.type"),
        || {
            format!(
                "\"{}\" is not known; scales are f32",
                scale.kind.as_deref().unwrap_or_default()
            )
        },
    )?;
    let takes = match scale.granularity {
        Granularity::TokenHead => element.takes_row_scale(),
        Granularity::Tensor | Granularity::Head => element.takes_constant_scale(),
    };
    need(takes, at, || match scale.granularity {
        Granularity::TokenHead if element.takes_constant_scale() => format!(
            "{element} brings scales of its own and takes no token_head scales beside them; a tensor or head scale it would"
        ),
        _ => format!("{element} brings scales of its own and takes none beside them: leave it out"),
    })?;
    let one = |at: &str, value: f64| -> Checked<f32> {
        let single = value as f32;
        need(single.is_finite() && single > 0.0, at, || {
            format!("{value} is no scale: it must be positive and finite as f32")
        })?;
        Ok(single)
    };
    let at_values = format!("{at}.values");
    let layers = doc.model.layers as usize;
    let per_layer = |list: &[f64]| -> Checked<Vec<f32>> {
        need(list.len() == layers, &at_values, || {
            format!(
                "{} values; expected one number, or one for each of {layers} layers",
                list.len()
            )
        })?;
        list.iter()
            .enumerate()
            .map(|(l, &v)| one(&format!("{at_values}[{l}]"), v))
            .collect()
    };
    match (scale.granularity, &scale.values) {
        (Granularity::TokenHead, None) => Ok(Scale::TokenHead),
        (Granularity::TokenHead, Some(_)) => bad(
            at_values,
            "are given, but token_head scales are a component of their own",
        ),
        (_, None) => Ok(Scale::Unknown),
        (Granularity::Tensor, Some(Values::One(value))) => {
            Ok(Scale::Tensor(vec![one(&at_values, *value)?; layers]))
        }
        (Granularity::Tensor, Some(Values::Layers(list))) => Ok(Scale::Tensor(per_layer(list)?)),
        (Granularity::Tensor, Some(Values::Heads(_))) => bad(
            at_values,
            "are by layer and head, but the granularity is tensor",
        ),
        (Granularity::Head, Some(Values::Heads(list))) => {
            let heads = c.heads as usize;
            let right = list.len() == layers && list.iter().all(|l| l.len() == heads);
            need(right, &at_values, || {
                format!("are not {layers} layers of {heads} heads")
            })?;
            let row = |(l, list): (usize, &Vec<f64>)| {
                let at = |h| format!("{at_values}[{l}][{h}]");
                list.iter()
                    .enumerate()
                    .map(|(h, &v)| one(&at(h), v))
                    .collect::<Checked<Vec<f32>>>()
            };
            Ok(Scale::Head(
                list.iter().enumerate().map(row).collect::<Checked<_>>()?,
            ))
        }
        (Granularity::Head, Some(_)) => bad(
            at_values,
            format!(
                "must be [layer][head] numbers: {layers} lists of {}",
                c.heads
            ),
        ),
    }
}

/// Heads that a rank owns of a component with `heads` heads, by its tensor parallel rank.
fn default_heads(heads: u32, tp: u32, me: u32) -> Option<Range<u32>> {
    let first = (u64::from(me) * u64::from(heads) / u64::from(tp)) as u32;
    match (heads.is_multiple_of(tp), tp.is_multiple_of(heads)) {
        (true, _) => Some(first..first + heads / tp),
        (_, true) => Some(first..first + 1),
        _ => None,
    }
}

fn shard(
    side: &Descriptor,
    doc: &doc::Description,
    number: u32,
    i: usize,
    rank: &doc::Rank,
    order: &[usize; 3],
) -> Checked<RankShard> {
    let field = format!("ranks[{i}]");
    let mut rest = number;
    let mut at = [0; 3];
    for &axis in order.iter().rev() {
        at[axis] = rest % side.parallel[axis];
        rest /= side.parallel[axis];
    }
    let [tp, pp, cp] = at;
    count(&format!("{field}.pages"), rank.pages, limits::MAX_TOKENS)?;
    let layers = match layer_set(&field, rank.layers, rank.layers_list.as_ref(), side.layers)? {
        Some(layers) => layers,
        None => {
            let stages = side.parallel[1];
            need(side.layers.is_multiple_of(stages), &field, || {
                format!(
                    "{} layers do not divide among {stages} stages, so `layers` must be given",
                    side.layers
                )
            })?;
            let each = side.layers / stages;
            (pp * each..(pp + 1) * each).collect()
        }
    };
    // An explicit interval speaks of the components with the most heads; one with fewer (an MLA latent
    // beside keys) is dealt out by `tp`.
    let most = side.components.iter().map(|c| c.heads).max().unwrap_or(1);
    let mut owned = Vec::new();
    for component in &side.components {
        let heads = match rank.heads {
            Some(range) if component.heads == most => {
                interval(&format!("{field}.heads"), range, most)?
            }
            _ => match default_heads(component.heads, side.parallel[0], tp) {
                Some(heads) => heads,
                None => {
                    return bad(
                        &field,
                        format!(
                            "{} heads of {} do not divide among tp {}, so `heads` must be given",
                            component.heads, component.name, side.parallel[0]
                        ),
                    );
                }
            },
        };
        let mine = |layer: &&u32| match component.group {
            Some(group) => side.groups[group].layers.binary_search(layer).is_ok(),
            None => true,
        };
        owned.push(Owned {
            heads,
            layers: layers.iter().filter(mine).copied().collect(),
            layout: None,
        });
    }
    let mut shard = RankShard {
        rank: number,
        tp,
        pp,
        cp,
        layers,
        pages: rank.pages,
        file: rank.file.clone(),
        regions: Vec::new(),
        owned,
    };
    place(side, doc, &mut shard, &field)?;
    Ok(shard)
}

/// Fills in layouts and lists the regions that follow from them.
fn place(
    side: &Descriptor,
    doc: &doc::Description,
    shard: &mut RankShard,
    field: &str,
) -> Checked<()> {
    let mut pools: BTreeMap<&str, Vec<u64>> = BTreeMap::new(); // pool → bytes of each region
    let mut layouts = Vec::new();
    for (c, component) in side.components.iter().enumerate() {
        let own = &shard.owned[c];
        if own.layers.is_empty() {
            layouts.push(None);
            continue;
        }
        let names_part = component.notation.names(Axis::Part);
        let mates = |o: &&Component| o.pool == component.pool && o.notation.names(Axis::Part);
        let parts = side.components.iter().filter(mates).count().max(1) as u32;
        let at = format!("components[{c}]");
        if names_part {
            need(component.part < parts, format!("{at}.part"), || {
                format!(
                    "{} is not below {parts}, the number of components of pool \"{}\" that name `part`",
                    component.part, component.pool
                )
            })?;
            let twin = side.components[..c]
                .iter()
                .filter(mates)
                .find(|o| o.part == component.part);
            if let Some(twin) = twin {
                return bad(
                    format!("{at}.part"),
                    format!("{} is also the part of \"{}\"", component.part, twin.name),
                );
            }
            let row = |o: &Component| o.format.element.row_bytes(o.dim);
            // Where `part` picks a region, or its stride is given, nothing follows from the rows.
            let derived = |w: &Word| w.axis == Axis::Part && !w.region && w.stride_bytes.is_none();
            let dense = matches!(doc.components[c].layout, doc::Layout::Text(_))
                && component.notation.words().iter().any(derived);
            let other = side
                .components
                .iter()
                .filter(mates)
                .find(|o| row(o) != row(component));
            if let (true, Some(other)) = (dense, other) {
                return bad(
                    format!("{at}.layout"),
                    format!(
                        "rows of {} bytes share a dense `part` with rows of {} bytes of \"{}\"; give offset and strides",
                        row(component),
                        row(other),
                        other.name
                    ),
                );
            }
        }
        let element = component.format.element;
        let unit = element.unit(component.dim);
        let block = unit.elements > 1 && unit.elements >= element.group_elements(component.dim);
        if block && element.is_grouped() && component.notation.split_of(Axis::Dim).is_some() {
            return bad(
                format!("{at}.layout"),
                format!(
                    "splits `dim`, but {element} is made of indivisible groups of {} elements in {} bytes: leave `dim` whole",
                    unit.elements, unit.bytes
                ),
            );
        }
        let group = component.group.unwrap_or(0);
        let slots = side.groups[group].page_slots;
        if component.group.is_none()
            && let Some(other) = side.groups.iter().find(|g| g.page_slots != slots)
        {
            return bad(
                format!("{at}.group"),
                format!(
                    "groups have pages of {slots} and {} slots, so the component must name one",
                    other.page_slots
                ),
            );
        }
        let extents = Extents {
            layer: own.layers.len() as u32,
            part: parts,
            page: shard.pages,
            head: own.heads.end - own.heads.start,
            slot: slots,
            dim: component.dim / unit.elements,
        };
        let none = BTreeMap::new();
        let (offset, strides) = match &doc.components[c].layout {
            doc::Layout::Text(_) => (0, &none),
            doc::Layout::Strided(s) => (s.offset_bytes, &s.strides_bytes),
        };
        let layout = Layout::new(
            &component.notation,
            extents,
            unit.bytes,
            component.part,
            offset,
            strides,
        )
        .or_else(|error| bad(format!("{at}.layout"), format!("{error} (for {field})")))?;
        need(
            layout.regions() <= limits::MAX_REGIONS,
            format!("{at}.layout"),
            || {
                format!(
                    "makes {} regions, more than {}",
                    layout.regions(),
                    limits::MAX_REGIONS
                )
            },
        )?;
        let pool = pools.entry(&component.pool).or_default();
        pool.resize(pool.len().max(layout.regions() as usize), 0);
        for region in layout.touches() {
            let bytes = &mut pool[region as usize];
            *bytes = layout.region_bytes().max(*bytes);
        }
        layouts.push(Some(layout));
    }
    let mut first = BTreeMap::new();
    for (pool, regions) in &pools {
        first.insert(*pool, shard.regions.len() as u64);
        let specs = regions.iter().enumerate().map(|(i, &bytes)| RegionSpec {
            name: format!("{pool}.{i}"),
            bytes,
        });
        shard.regions.extend(specs);
    }
    for (c, layout) in layouts.into_iter().enumerate() {
        let start = first
            .get(side.components[c].pool.as_str())
            .copied()
            .unwrap_or(0);
        shard.owned[c].layout = layout.map(|layout| layout.with_first_region(start));
    }
    for (c, component) in side.components.iter().enumerate() {
        for (o, other) in side.components[..c].iter().enumerate() {
            // Groups take turns with pages, so components of different groups may share bytes.
            let in_turns = component.group.is_some()
                && other.group.is_some()
                && component.group != other.group;
            if component.pool != other.pool || in_turns {
                continue;
            }
            if let (Some(a), Some(b)) = (shard.layout(c), shard.layout(o)) {
                need(!overlap(a, b), format!("components[{c}].layout"), || {
                    format!(
                        "\"{}\" overlaps \"{}\" in pool \"{}\" (for {field}): give each its part, offset or pool",
                        component.name, other.name, component.pool
                    )
                })?;
            }
        }
    }
    Ok(())
}

/// The request of a description, if it has one.
pub(super) fn request(side: &Descriptor, doc: &doc::Description) -> Checked<Option<Request>> {
    let at = |i: usize| format!("ranks[{i}].request_pages");
    let Some(given) = &doc.request else {
        let pages = doc
            .ranks
            .iter()
            .position(|rank| rank.request_pages.is_some());
        return match pages {
            Some(i) => bad(
                at(i),
                "are given, but there is no `request` whose pages these are",
            ),
            None => Ok(None),
        };
    };
    let mut request = Request::new(side, given.tokens);
    request.first = given.first;
    request.coverage = given.digest;
    if let Some([start, end]) = given.layers {
        request.layers = Layers::Between(start..end);
    }
    // Errors name the place in the document, whatever the number of the rank.
    let places = |error: RequestError| {
        let place = |rank: u32| doc.ranks.iter().position(|given| given.rank == rank);
        let at = match error.at {
            At::Pages { rank, group } => At::Pages {
                rank: place(rank).map_or(rank, |i| i as u32),
                group,
            },
            other => other,
        };
        DescriptorError::Field {
            field: at.to_string(),
            problem: error.problem.to_string(),
        }
    };
    for (i, rank) in doc.ranks.iter().enumerate() {
        let mut give = |group: usize, pages: &[u32]| {
            request
                .give(rank.rank..rank.rank + 1, group, pages)
                .map_err(places)
        };
        let names = || {
            let names: Vec<_> = side.groups.iter().map(|g| g.name.as_str()).collect();
            names.join(", ")
        };
        match &rank.request_pages {
            None => return bad(at(i), "is missing, but there is a `request`"),
            Some(RequestPages::One(list)) => {
                need(side.groups.len() == 1, at(i), || {
                    format!(
                        "is one list, but there are groups; expected an object with {}",
                        names()
                    )
                })?;
                give(0, list)?;
            }
            Some(RequestPages::Groups(lists)) => {
                for (name, list) in lists {
                    match side.groups.iter().position(|g| g.name == *name) {
                        Some(group) => give(group, list)?,
                        None => {
                            return bad(
                                at(i),
                                format!("there is no group \"{name}\"; the side has {}", names()),
                            );
                        }
                    }
                }
            }
        }
    }
    let ranks = 0..side.ranks.len() as u32;
    request.check(side, Role::Consumer, ranks).map_err(places)?;
    Ok(Some(request))
}
