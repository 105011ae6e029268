//! The picture for a talk: who sends what to whom, what pages look like, and where rows are converted,
//! as one SVG that needs nothing else.
//!
//! - [`ranks`]: both sides' ranks and the ribbons between them;
//! - [`page`]: a component's page in memory;
//! - [`mod@gallery`]: named layouts, one picture each;
//! - [`ink`]: drawing, with text escaped and cut to its place.
//!
//! A hue is a head, in the ribbons as in the pages; a shade is a token.

mod gallery;
mod ink;
mod page;
mod ranks;

use moai_fabric::collectives::{
    descriptor::{Component, Descriptor},
    execute::{Agreed, Requested},
    negotiate::{Carriage, Role},
    plan::Span,
    traffic::PairTraffic,
};

pub(crate) use self::gallery::gallery;
use self::{
    ink::{Anchor, INK, Ink, MUTED, PALE, Rect, Rgb, Style},
    page::{Page, Shown},
    ranks::Ranks,
};
use crate::picture::{self, bytes, count, plain};

const WIDTH: f64 = 1600.0;
/// From the edge to panels, and to what stands in them.
const PANEL: f64 = 24.0;
const INSIDE: f64 = 48.0;
/// A page's width; what is left between two is for the way from one to the other.
const PAGE: f64 = 470.0;
/// Heads told apart by colour; with more, neighbours share one.
const MOST_COLOURS: usize = 16;
/// Components drawn, those that travel alike as one.
const MOST_SPANS: usize = 8;

/// Draws an agreement and its traffic as a stand-alone SVG document, 1600 wide.
#[must_use]
pub(crate) fn draw(requested: &Requested, traffic: &[PairTraffic]) -> String {
    let agreed = requested.agreed();
    let mut ink = Ink::default();
    let heads = agreed.producer.components.iter().map(|c| c.heads).max();
    let colours = (heads.unwrap_or(1).max(1) as usize).min(MOST_COLOURS);
    let mut y = 34.0;
    y = title(&mut ink, requested, traffic, y);
    y = transfer(&mut ink, requested, traffic, colours, y);
    y = translation(&mut ink, agreed, colours, y);
    let text = format!(
        "{}: {} to {}",
        picture::model(agreed),
        picture::engine(&agreed.producer),
        picture::engine(&agreed.consumer)
    );
    ink.finish(WIDTH, y + 4.0, &text)
}

/// The colour of a head.
fn colour_of(head: u32, all: u32, colours: usize) -> usize {
    (u64::from(head) * colours as u64 / u64::from(all.max(1))) as usize
}

/// The component with the most heads: the one that sharding shows in.
fn main_component(side: &Descriptor) -> usize {
    let rows = side
        .components
        .iter()
        .enumerate()
        .filter(|(_, c)| !c.is_scales);
    rows.rev()
        .max_by_key(|(_, c)| c.heads)
        .map_or(0, |(index, _)| index)
}

/// Model and request on the left, totals on the right. The y below it.
fn title(ink: &mut Ink, requested: &Requested, traffic: &[PairTraffic], y: f64) -> f64 {
    let agreed = requested.agreed();
    let sum = |of: fn(&PairTraffic) -> u64| traffic.iter().map(of).sum::<u64>();
    let totals = [
        (bytes(sum(|p| p.bytes_written)), "written"),
        (bytes(sum(|p| p.bytes_wire)), "on the wire"),
        (bytes(sum(|p| p.bytes_read)), "read"),
        (sum(|p| p.chunks).to_string(), "chunks"),
        (traffic.len().to_string(), "pairs of ranks"),
    ];
    let value = Style::new(22.0).bold().at(Anchor::End);
    let label = Style::new(12.5).fill(MUTED).at(Anchor::End);
    let mut right = WIDTH - INSIDE;
    for (number, name) in &totals {
        ink.text(right, y + 24.0, &value, number);
        ink.text(right, y + 44.0, &label, name);
        right -= value.width(number).max(label.width(name)).max(70.0) + 26.0;
    }
    let room = right - INSIDE;
    let model = picture::model(agreed);
    let style = Style::new(30.0).bold().shrunk(&model, room.min(720.0));
    ink.text(INSIDE, y + 26.0, &style, &style.fit(&model, room));
    let facts = format!(
        "{}, {}: KV cache from {} to {}",
        count(requested.tokens().into(), "token"),
        count(agreed.producer.layers.into(), "layer"),
        count(agreed.producer.ranks.len() as u64, "rank"),
        count(agreed.consumer.ranks.len() as u64, "rank"),
    );
    let style = Style::new(15.0).fill(MUTED);
    ink.text(INSIDE, y + 50.0, &style, &style.fit(&facts, room));
    y + 72.0
}

/// The ranks and what goes between them. The y below it.
fn transfer(
    ink: &mut Ink,
    requested: &Requested,
    traffic: &[PairTraffic],
    colours: usize,
    y: f64,
) -> f64 {
    let agreed = requested.agreed();
    let ranks = Ranks::new(requested, traffic, colours);
    let top = y + 112.0;
    let high = 112.0 + ranks.height() + 58.0;
    ink.panel(Rect {
        x: PANEL,
        y,
        w: WIDTH - 2.0 * PANEL,
        h: high,
    });
    let ends = [
        (&agreed.producer, "PRODUCER", INSIDE, Anchor::Start),
        (&agreed.consumer, "CONSUMER", WIDTH - INSIDE, Anchor::End),
    ];
    for (side, role, x, anchor) in ends {
        let room = (WIDTH - 2.0 * INSIDE) / 2.0 - 30.0;
        ink.text(
            x,
            y + 28.0,
            &Style::new(11.5).bold().fill(MUTED).at(anchor),
            role,
        );
        let engine = picture::engine(side);
        let style = Style::new(20.0).bold().at(anchor).shrunk(&engine, room);
        ink.text(x, y + 53.0, &style, &style.fit(&engine, room));
        let style = Style::new(13.5).fill(MUTED).at(anchor);
        ink.text(x, y + 76.0, &style, &style.fit(&facts(side), room));
    }
    for (role, edge, way) in [
        (Role::Producer, INSIDE + ranks::BOX + 10.0, 0.5),
        (Role::Consumer, WIDTH - INSIDE - ranks::BOX - 10.0, -0.5),
    ] {
        if let Some(text) = conversions(agreed, role) {
            let text = Style::new(11.0).bold().fit(&text, 440.0);
            ink.badge(edge + way * Ink::badge_width(&text), y + 97.0, &text);
        }
    }
    ranks.draw(ink, INSIDE, top, WIDTH - 2.0 * INSIDE);
    legend(ink, agreed, colours, &ranks, top + ranks.height() + 34.0);
    y + high + 20.0
}

/// What a side converts, if it does.
fn conversions(agreed: &Agreed, role: Role) -> Option<String> {
    let agreement = &agreed.agreement;
    let carried = agreement.spans.iter().zip(&agreement.carriages);
    let mut list: Vec<(String, Vec<String>)> = Vec::new();
    for (span, carriage) in carried.filter(|(_, c)| !c.unchanged && c.converts == role) {
        let source = &agreed.producer.components[span.source];
        let target = &agreed.consumer.components[span.target];
        let change = picture::change(source, target, carriage);
        match list.iter_mut().find(|(seen, _)| *seen == change) {
            Some((_, names)) => names.push(plain(&span.name)),
            None => list.push((change, vec![plain(&span.name)])),
        }
    }
    let each = list
        .iter()
        .map(|(change, names)| format!("{}: {change}", names.join(", ")));
    let text = each.collect::<Vec<_>>().join("; ");
    (!text.is_empty()).then(|| format!("converts {text}"))
}

/// What an engine's side is like, in a line.
fn facts(side: &Descriptor) -> String {
    let mut formats: Vec<String> = Vec::new();
    for component in side.components.iter().filter(|c| !c.is_scales) {
        let format = component.format.to_string();
        if !formats.contains(&format) {
            formats.push(format);
        }
    }
    let mut text = format!(
        "{}, {}, {}",
        picture::parallel(side),
        picture::page_slots(side),
        formats.join(" and ")
    );
    let main = main_component(side);
    let layer = side
        .ranks
        .iter()
        .find_map(|rank| rank.layers_of(main).first());
    let replicas = side.ranks.iter().filter(|rank| {
        rank.cp == 0
            && rank.heads(main).contains(&0)
            && layer.is_some_and(|layer| rank.layers_of(main).contains(layer))
    });
    let replicas = replicas.count();
    if replicas > 1 {
        text += &format!(", each head on {replicas} ranks");
    }
    text
}

/// Which hue is which head, in the middle below the ribbons.
fn legend(ink: &mut Ink, agreed: &Agreed, colours: usize, ranks: &Ranks, y: f64) {
    let side = &agreed.producer;
    let all = side.components[main_component(side)].heads;
    let style = Style::new(12.0).fill(MUTED);
    let mut entries: Vec<(usize, String)> = Vec::new();
    if all > 1 {
        for colour in 0..colours {
            let first = (0..all).find(|&h| colour_of(h, all, colours) == colour);
            let end = (0..all).rfind(|&h| colour_of(h, all, colours) == colour);
            if let (Some(first), Some(last)) = (first, end) {
                entries.push((
                    colour,
                    picture::rank_range(first as usize, last as usize + 1),
                ));
            }
        }
    }
    let lead = if all > 1 { "KV head" } else { "one KV head" };
    let mut tail = "each rank: layers down, heads across".to_owned();
    if ranks.has_idle() {
        tail += ", pale where a replica sends";
    }
    let chips: f64 = entries
        .iter()
        .map(|(_, text)| 30.0 + style.width(text))
        .sum();
    let wide = style.width(lead) + 14.0 + chips + 18.0 + style.width(&tail);
    let mut x = (WIDTH - wide) / 2.0;
    ink.text(x, y, &style, lead);
    x += style.width(lead) + 14.0;
    for (colour, text) in &entries {
        let chip = Rect {
            x,
            y: y - 10.5,
            w: 12.0,
            h: 12.0,
        };
        ink.rect(chip, 2.5, Rgb::head(*colour, colours), "");
        ink.text(x + 17.0, y, &style.fill(INK), text);
        x += 30.0 + style.width(text);
    }
    ink.text(x + 18.0, y, &style, &tail);
}

/// Spans that travel alike, as one.
struct Alike<'a> {
    names: Vec<String>,
    span: &'a Span,
    carriage: &'a Carriage,
    source: &'a Component,
    target: &'a Component,
}

/// What happens to each component, with a page of each side. The y below it.
fn translation(ink: &mut Ink, agreed: &Agreed, colours: usize, mut y: f64) -> f64 {
    let agreement = &agreed.agreement;
    let mut list: Vec<Alike<'_>> = Vec::new();
    for (span, carriage) in agreement.spans.iter().zip(&agreement.carriages) {
        let (source, target) = (
            &agreed.producer.components[span.source],
            &agreed.consumer.components[span.target],
        );
        let alike = |seen: &&mut Alike<'_>| {
            let what = |c: &Component| (c.notation.clone(), c.format.to_string(), c.heads, c.dim);
            seen.span.dim == span.dim
                && what(seen.source) == what(source)
                && what(seen.target) == what(target)
                && seen.carriage.converts == carriage.converts
                && seen.carriage.reason == carriage.reason
        };
        match list.iter_mut().find(alike) {
            Some(seen) => seen.names.push(plain(&span.name)),
            None => list.push(Alike {
                names: vec![plain(&span.name)],
                span,
                carriage,
                source,
                target,
            }),
        }
    }
    for (i, alike) in list.iter().take(MOST_SPANS).enumerate() {
        y = component(ink, agreed, alike, colours, y);
        if i == 0 {
            let key = "in the order of memory; hue: head, shade: token (h, t, d: head, token, dim)";
            let style = Style::new(12.0).fill(MUTED).at(Anchor::Middle);
            ink.text(WIDTH / 2.0, y - 32.0, &style, key);
        }
    }
    if list.len() > MOST_SPANS {
        let text = format!("and {} more components", list.len() - MOST_SPANS);
        ink.text(
            WIDTH / 2.0,
            y + 12.0,
            &Style::new(14.0).fill(MUTED).at(Anchor::Middle),
            &text,
        );
        y += 34.0;
    }
    y
}

/// One component: its page on the left, its page on the right, and the way between. The y below it.
fn component(ink: &mut Ink, agreed: &Agreed, alike: &Alike<'_>, colours: usize, y: f64) -> f64 {
    let span = alike.span;
    let index = agreed.agreement.spans.iter().position(|s| s == span);
    let pairs = &agreed.agreement.pairs;
    let pair = pairs
        .iter()
        .find(|pair| pair.steps.iter().any(|step| Some(step.span) == index));
    let shown = Shown::of([alike.source, alike.target]);
    let pages = pair.map(|pair| {
        let source = &agreed.producer.ranks[pair.source as usize];
        let target = &agreed.consumer.ranks[pair.target as usize];
        [
            (
                Page::of(alike.source, span.source, source, shown),
                source.rank,
            ),
            (
                Page::of(alike.target, span.target, target, shown),
                target.rank,
            ),
        ]
    });
    let drawn = pages.iter().flatten().filter_map(|(page, _)| page.as_ref());
    let high = 88.0 + drawn.map(Page::height).fold(132.0, f64::max);
    ink.panel(Rect {
        x: PANEL,
        y,
        w: WIDTH - 2.0 * PANEL,
        h: high,
    });
    let ends = [
        (alike.source, INSIDE, Role::Producer),
        (alike.target, WIDTH - INSIDE - PAGE, Role::Consumer),
    ];
    for (i, (component, x, role)) in ends.into_iter().enumerate() {
        let rank = pages.as_ref().map_or(0, |pages| pages[i].1);
        let names = alike.names.join(", ");
        let style = Style::new(16.0).bold();
        let name = style.fit(&names, PAGE - 260.0);
        ink.text(x, y + 30.0, &style, &name);
        let style = Style::new(12.5).fill(MUTED).at(Anchor::End);
        let side = match role {
            Role::Producer => &agreed.producer,
            Role::Consumer => &agreed.consumer,
        };
        let slots = component.group.map_or_else(
            || picture::page_slots(side),
            |group| format!("page of {}", side.groups[group].page_slots),
        );
        let text = format!("{slots}, {role} rank {rank}");
        ink.text(x + PAGE, y + 30.0, &style, &style.fit(&text, 240.0));
        notation(ink, component, x, y + 53.0);
        if let Some((Some(page), _)) = pages.as_ref().map(|pages| &pages[i]) {
            page.draw(ink, x, y + 68.0, PAGE, colours);
        }
    }
    way(ink, alike, y + 36.0);
    y + high + 16.0
}

/// The layout text. Words that pick a region are pale: a page does not show them.
fn notation(ink: &mut Ink, component: &Component, x: f64, y: f64) {
    let text = component.notation.to_string();
    let style = Style::new(13.5).mono().shrunk(&text, PAGE);
    if style.width(&text) > PAGE {
        ink.text(x, y, &style, &style.fit(&text, PAGE));
        return;
    }
    let words: Vec<(bool, String)> = component
        .notation
        .words()
        .iter()
        .map(|word| (word.region, word.to_string()))
        .collect();
    let words: Vec<(&str, &str)> = words
        .iter()
        .map(|(region, word)| (if *region { MUTED } else { INK }, word.as_str()))
        .collect();
    ink.words(x, y, &style, &words);
}

/// From pages to the wire to pages: formats, bytes of a row, and who does what.
fn way(ink: &mut Ink, alike: &Alike<'_>, y: f64) {
    let carriage = alike.carriage;
    let wire = match carriage.converts {
        Role::Producer => &carriage.target_format,
        Role::Consumer => &carriage.source_format,
    };
    let (left, room) = (INSIDE + PAGE + 26.0, WIDTH - 2.0 * (INSIDE + PAGE + 26.0));
    let (node, arrow) = (124.0, (room - 3.0 * 124.0) / 2.0);
    let nodes = [
        ("producer", &carriage.source_format),
        ("on the wire", wire),
        ("consumer", &carriage.target_format),
    ];
    for (i, ((name, format), row)) in nodes.into_iter().zip(carriage.row_bytes).enumerate() {
        let x = left + i as f64 * (node + arrow);
        let middle = x + node / 2.0;
        let label = Style::new(11.5).fill(MUTED).at(Anchor::Middle);
        ink.text(middle, y, &label, name);
        let rect = Rect {
            x,
            y: y + 10.0,
            w: node,
            h: 62.0,
        };
        ink.rect(rect, 9.0, "#fafbfc", &format!(" stroke=\"{PALE}\""));
        // What is beside the element goes on a line of its own: `e4m3fnuz`, `@tensor`.
        let (element, scale) = match format.find(['.', '@', '+']) {
            Some(at) => format.split_at(at),
            None => (format.as_str(), ""),
        };
        let style = Style::new(15.0).bold().at(Anchor::Middle);
        let style = style.shrunk(element, node - 10.0);
        let lower = if scale.is_empty() { 5.0 } else { 0.0 };
        ink.text(
            middle,
            y + 30.0 + lower,
            &style,
            &style.fit(element, node - 10.0),
        );
        if !scale.is_empty() {
            ink.text(
                middle,
                y + 45.0,
                &label.fill(INK),
                &label.fit(scale, node - 10.0),
            );
        }
        ink.text(middle, y + 63.0 - lower, &label, &format!("{row} B a row"));
    }
    for (i, (role, plain_work)) in [(Role::Producer, "gather"), (Role::Consumer, "place")]
        .into_iter()
        .enumerate()
    {
        let start = left + node + i as f64 * (node + arrow);
        let (x1, x2) = (start + 5.0, start + arrow - 5.0);
        let middle = y + 41.0;
        let d = format!(
            "M{0} {1}H{2}M{3} {4}L{2} {1}L{3} {5}",
            ink::N(x1),
            ink::N(middle),
            ink::N(x2),
            ink::N(x2 - 7.0),
            ink::N(middle - 5.0),
            ink::N(middle + 5.0)
        );
        ink.path(
            &d,
            "none",
            &format!(" stroke=\"{MUTED}\" stroke-width=\"1.6\" stroke-linejoin=\"round\""),
        );
        let centre = (x1 + x2) / 2.0;
        if !carriage.unchanged && carriage.converts == role {
            ink.badge(centre, y - 4.0, "convert");
            let stem = format!(
                "M{} {}V{}",
                ink::N(centre),
                ink::N(y + 8.0),
                ink::N(middle - 5.0)
            );
            ink.path(
                &stem,
                "none",
                &format!(" stroke=\"{MUTED}\" stroke-dasharray=\"2 3\""),
            );
        }
        ink.text(
            centre,
            middle + 18.0,
            &Style::new(11.0).fill(MUTED).at(Anchor::Middle),
            plain_work,
        );
    }
    let mut reason = if carriage.unchanged {
        "Nothing is converted: ".to_owned()
    } else {
        format!("The {} converts", carriage.converts)
    };
    if !carriage.unchanged {
        let change = picture::change(alike.source, alike.target, carriage);
        // The formats stand in the boxes; what else changes is said here.
        let rest = change.split_once(", ").map_or("", |(_, rest)| rest);
        let (open, close) = if rest.is_empty() {
            ("", "")
        } else {
            (" (", ")")
        };
        reason += &format!("{open}{rest}{close}: ");
    }
    reason += &carriage.reason;
    reason.push('.');
    if alike.source.notation != alike.target.notation {
        reason += " The layouts differ: rows are gathered from one order and placed in the other.";
    }
    let style = Style::new(13.0).at(Anchor::Middle);
    for (i, line) in style.wrap(&reason, room, 4).iter().enumerate() {
        ink.text(WIDTH / 2.0, y + 100.0 + i as f64 * 18.0, &style, line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::tests::{agree, case, side};

    /// A few rules that make text well-formed XML, checked by hand: tags nest, attributes are quoted and
    /// stand once, nothing is left unescaped. The text between tags.
    fn well_formed(mut text: &str) -> Vec<String> {
        let (mut open, mut texts) = (Vec::new(), Vec::new());
        let plain = |text: &str| {
            for part in text.split('&').skip(1) {
                let (entity, _) = part.split_once(';').expect("an entity ends");
                assert!(
                    ["amp", "lt", "gt", "quot", "#39"].contains(&entity),
                    "&{entity};"
                );
            }
            assert!(!text.contains(['<', '>']), "{text}");
        };
        while let Some(at) = text.find('<') {
            plain(&text[..at]);
            texts.push(text[..at].to_owned());
            let (tag, rest) = text[at + 1..].split_once('>').expect("a tag ends");
            text = rest;
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name));
                continue;
            }
            let (tag, alone) = tag
                .strip_suffix('/')
                .map_or((tag, false), |tag| (tag, true));
            let (name, mut attributes) = tag.split_once(' ').unwrap_or((tag, ""));
            let mut seen = Vec::new();
            while !attributes.trim().is_empty() {
                let (key, rest) = attributes.trim_start().split_once("=\"").expect("a value");
                let (value, rest) = rest.split_once('"').expect("a value ends");
                assert!(
                    key.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-'),
                    "{key}"
                );
                assert!(!seen.contains(&key), "{key} stands twice");
                assert!(
                    !value.contains("NaN") && !value.contains("inf"),
                    "{key}={value}"
                );
                plain(value);
                seen.push(key);
                attributes = rest;
            }
            if !alone {
                open.push(name.to_owned());
            }
        }
        assert!(open.is_empty(), "{open:?} left open");
        assert!(text.trim().is_empty(), "{text}");
        texts
    }

    fn pairs(svg: &str) -> usize {
        svg.matches("class=\"pair\"").count()
    }

    #[test]
    fn every_case_is_well_formed_and_shows_every_pair() {
        for number in 1..=20 {
            let (agreed, traffic) = case(&format!("{number:02}"));
            let svg = draw(&agreed, &traffic);
            well_formed(&svg);
            assert_eq!(pairs(&svg), traffic.len(), "case {number}");
            for pair in &traffic {
                let tooltip = format!(
                    "producer rank {} → consumer rank {}: {}<",
                    pair.source,
                    pair.target,
                    bytes(pair.bytes_wire)
                );
                assert!(svg.contains(&tooltip), "case {number}: {tooltip}");
            }
        }
    }

    #[test]
    fn text_of_descriptions_is_escaped() {
        let engine = "eve <&\"> ' \u{1b}[2J ]]> &amp;";
        let (agreed, traffic) = agree([side(engine, 2, 1, "bf16"), side("b", 1, 1, "f32")]);
        let texts = well_formed(&draw(&agreed, &traffic));
        let expected = "eve &lt;&amp;&quot;&gt; &#39; \u{fffd}[2J ]]&gt; &amp;amp;";
        assert!(texts.iter().any(|text| text == expected), "{texts:?}");
    }

    #[test]
    fn many_ranks_are_drawn_within_bounds() {
        let (agreed, traffic) = agree([side("a", 64, 1, "bf16"), side("b", 128, 1, "e4m3fn")]);
        let svg = draw(&agreed, &traffic);
        well_formed(&svg);
        assert_eq!(pairs(&svg), 128);
        // Past what can be told apart, neighbours are one.
        let (agreed, traffic) = agree([side("a", 8, 30, "bf16"), side("b", 1024, 2, "bf16")]);
        let svg = draw(&agreed, &traffic);
        well_formed(&svg);
        assert!(pairs(&svg) >= 128, "{}", pairs(&svg));
        assert!(svg.len() < 4 << 20, "{} bytes", svg.len());
    }
}
