//! Random programs do what `by_element` says, bit for bit, and touch nothing else.

#[path = "support/rng.rs"]
mod rng;

use std::{cell::Cell, collections::BTreeMap, ops::Range, sync::Arc};

use moai_translate::{
    by_element::{self, Extent, Paged},
    convert::Conversion,
    cpu::Level,
    element::Element,
    format::{Pairing, Rope, RowFormat, RowScale},
    layout::{Extents, Layout, Notation, RowOrder, Split},
    program::{Conversions, Observer, Place, Program, Progression, Rows, Side, Step},
};
use rng::{Rng, cases};

/// Elements of a box, bounded by what 8-bit floats cost the reference by search. Miri takes a thousand times as long.
const MOST_ELEMENTS: u32 = if cfg!(miri) { 400 } else { 40_000 };

/// One side of a program, with its memory.
struct Drawn {
    side: Side,
    codes: Layout,
    params: Option<Layout>,
    head: u32,
    unit: u32,
    params_unit: u32,
    layer: u32,
    pages: Vec<u32>,
    tokens: Progression,
    /// One buffer for rows; the regions of codes, then those of parameters, for pages.
    regions: Vec<Vec<u8>>,
}

impl Drawn {
    fn paged(&self) -> Paged<'_> {
        Paged {
            codes: &self.codes,
            params: self.params.as_ref(),
            head: self.head,
            unit: self.unit,
            params_unit: self.params_unit,
        }
    }

    fn place(&self) -> Place<'_> {
        Place {
            layer: self.layer,
            pages: &self.pages,
            tokens: self.tokens,
        }
    }
}

/// Text over the axes that are not left out, with brackets and splits.
fn layout(rng: &mut Rng, shape: Extents, unit_bytes: u32, split: bool) -> Layout {
    let mut axes = vec!["layer", "page", "head", "slot", "dim"];
    if rng.percent(70) {
        rng.shuffle(&mut axes);
    }
    let mut words: Vec<String> = Vec::new();
    let mut inner: Vec<(usize, String)> = Vec::new();
    for axis in axes {
        let extent = match axis {
            "layer" => shape.layer,
            "page" => shape.page,
            "head" => shape.head,
            "slot" => shape.slot,
            _ => shape.dim,
        };
        let divisors: Vec<u32> = (1..=extent).filter(|n| extent % n == 0).collect();
        let brackets = !matches!(axis, "slot" | "dim");
        if brackets && rng.percent(if axis == "page" { 10 } else { 30 }) {
            words.push(format!("[{axis}]"));
        } else if (axis != "dim" || split) && rng.percent(25) {
            let n = rng.pick(&divisors);
            words.push(format!("{axis}/{n}"));
            inner.push((words.len(), format!("{axis}%{n}")));
        } else {
            words.push(axis.to_owned());
        }
    }
    while let Some((first, word)) = inner.pop() {
        let at = rng.between(first as u32, words.len() as u32);
        words.insert(at as usize, word);
    }
    let text = words.join(" ");
    let notation: Notation = text.parse().unwrap();
    // Gaps, by the stride that the dense layout would have and a little more.
    let mut strides = BTreeMap::new();
    let mut next = u64::from(unit_bytes);
    for word in notation.words().iter().rev().filter(|w| !w.region) {
        if rng.percent(10) {
            next += u64::from(rng.between(1, 20));
            strides.insert(word.key(), next);
        }
        let extent = match word.split {
            Split::Whole => shape.of(word.axis),
            Split::Outer(n) => shape.of(word.axis) / n.get(),
            Split::Inner(n) => n.get(),
        };
        next *= u64::from(extent);
    }
    let offset = if rng.percent(20) {
        u64::from(rng.below(30))
    } else {
        0
    };
    Layout::new(&notation, shape, unit_bytes, 0, offset, &strides)
        .unwrap_or_else(|error| panic!("{text} of {shape:?}: {error}"))
}

/// Eight bytes at a time, for Miri's sake: filling memory took it longer than the programs.
fn bytes(rng: &mut Rng, n: u64) -> Vec<u8> {
    let mut bytes = vec![0; n as usize];
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&rng.next().to_le_bytes()[..chunk.len()]);
    }
    bytes
}

/// A side that holds the box.
fn draw(
    rng: &mut Rng,
    format: &RowFormat,
    Extent { heads, tokens, dim }: Extent,
    rows: bool,
) -> Drawn {
    let element = format.element;
    let unit = element.unit(dim);
    let (unit_bytes, units) = (unit.bytes, dim / unit.elements);
    let params = format.params(dim);
    let has_params = params.is_some();
    let (params_units, params_unit_bytes) = params.map_or((0, 1), |p| (p.units, p.unit_bytes));
    if rows {
        let order = rng.pick(&[RowOrder::TokenHead, RowOrder::HeadToken]);
        let codes = Layout::rows(order, heads, tokens, units, unit_bytes, 0);
        let params = has_params.then(|| {
            let after = codes.region_bytes();
            Layout::rows(order, heads, tokens, params_units, params_unit_bytes, after)
        });
        let len = params.as_ref().unwrap_or(&codes).region_bytes();
        return Drawn {
            side: Side::Rows {
                order,
                unit_bytes,
                params_unit_bytes: if has_params { params_unit_bytes } else { 0 },
            },
            codes,
            params,
            head: 0,
            unit: 0,
            params_unit: 0,
            layer: 0,
            pages: vec![0],
            tokens: Progression::ALL,
            regions: vec![bytes(rng, len)],
        };
    }
    let slots = rng.between(1, if cfg!(miri) { 17 } else { 33 });
    let tokens_at = Progression {
        first: rng.below(40),
        step: rng.pick(&[1, 1, 1, 2, 3, 7]),
    };
    let used = tokens_at.at(tokens - 1) / slots + 1;
    let shape = Extents {
        layer: rng.between(1, 3),
        part: 1,
        page: used + rng.below(3),
        head: heads + rng.pick(&[0, 0, 1, 2]),
        slot: slots,
        dim: units + rng.below(3),
    };
    let codes = layout(rng, shape, unit_bytes, unit.elements < dim);
    let mut regions: Vec<Vec<u8>> = (0..codes.regions())
        .map(|_| bytes(rng, codes.region_bytes()))
        .collect();
    let params_unit = rng.below(3);
    let params = has_params.then(|| {
        let dim = params_units + params_unit + rng.below(3);
        let params = layout(rng, Extents { dim, ..shape }, params_unit_bytes, true);
        let more = (0..params.regions()).map(|_| bytes(rng, params.region_bytes()));
        let first = regions.len() as u64;
        regions.extend(more);
        params.with_first_region(first)
    });
    let mut pages: Vec<u32> = (0..shape.page).collect();
    rng.shuffle(&mut pages);
    pages.truncate(used as usize);
    let (head, unit) = (
        rng.below(shape.head - heads + 1),
        rng.below(shape.dim - units + 1),
    );
    Drawn {
        side: Side::Paged {
            codes: codes.clone(),
            params: params.clone(),
            head,
            unit,
            params_unit,
        },
        codes,
        params,
        head,
        unit,
        params_unit,
        layer: rng.below(shape.layer),
        pages,
        tokens: tokens_at,
        regions,
    }
}

/// Formats of every head of a box on both sides; they differ in constants only.
fn formats(rng: &mut Rng, heads: u32, dim: u32) -> Vec<(RowFormat, RowFormat)> {
    let rope = (rng.percent(40) && dim >= 4).then(|| {
        let dims = 2 * rng.between(1, dim / 2);
        (dims, rng.below(dim - dims + 1), rng.percent(50))
    });
    let format = |rng: &mut Rng, pairing| {
        // Miri has an eye on the copies. Other conversions cost it most of its time.
        let elements: Vec<_> = if cfg!(miri) && rng.percent(75) {
            vec![Element::BF16, Element::F32, Element::INT8]
        } else {
            Element::all().collect()
        };
        let element = loop {
            let element = rng.pick(&elements);
            if RowFormat::of(element).row_bytes(dim).is_ok() {
                break element;
            }
        };
        let scale = match rng.below(4) {
            _ if element.is_grouped() => RowScale::None,
            0 | 1 => RowScale::None,
            2 => RowScale::Constant(0.25),
            _ => RowScale::Row,
        };
        RowFormat {
            scale,
            rule: rng.below(3) as usize,
            rope: rope.map(|(dims, offset, _)| Rope {
                pairing,
                offset,
                dims,
            }),
            ..RowFormat::of(element)
        }
    };
    let other = match rope {
        Some((.., true)) => Pairing::Interleaved,
        _ => Pairing::Half,
    };
    let mut pair = loop {
        let a = format(rng, Pairing::Half);
        let b = if rng.percent(30) {
            RowFormat {
                rope: a.rope.map(|r| Rope {
                    pairing: other,
                    ..r
                }),
                ..a
            }
        } else {
            format(rng, other)
        };
        // Between these all codes are tried, which Miri takes minutes for.
        let wide = |f: &RowFormat| [Element::BF16, Element::F16].contains(&f.element);
        let same = a == b && !matches!(a.scale, RowScale::Constant(_));
        let dear = cfg!(miri) && wide(&a) && wide(&b) && !same;
        if !dear && Conversion::new(a, b, dim).is_ok() {
            break (a, b);
        }
    };
    let each = rng.percent(50);
    let one = |rng: &mut Rng, format: &mut RowFormat| {
        if let RowScale::Constant(value) = &mut format.scale {
            *value = rng.between(1, 8) as f32 / 8.0;
        }
    };
    (0..heads)
        .map(|h| {
            if each || h == 0 {
                one(rng, &mut pair.0);
                one(rng, &mut pair.1);
            }
            pair
        })
        .collect()
}

/// Rows that were shown, by head and token.
type Seen = BTreeMap<(u32, u32), (Vec<u8>, Vec<u8>)>;

/// Looks at some tokens, and keeps what it sees.
struct Looker {
    wants: Vec<bool>,
    seen: Seen,
}

impl Observer for Looker {
    fn wants(&self, from: u32) -> Option<Range<u32>> {
        let wants = |&token: &u32| self.wants[token as usize];
        let tokens = self.wants.len() as u32;
        let start = (from..tokens).find(wants)?;
        let end = (start..tokens).find(|token| !wants(token));
        Some(start..end.unwrap_or(tokens))
    }

    fn rows(&mut self, rows: Rows<'_>) {
        let count = (rows.heads * rows.tokens) as usize;
        let bytes = [rows.codes.len() / count, rows.params.len() / count];
        for i in 0..count as u32 {
            let (head, token) = match rows.order {
                RowOrder::TokenHead => (i % rows.heads, i / rows.heads),
                RowOrder::HeadToken => (i / rows.tokens, i % rows.tokens),
            };
            let of = |all: &[u8], bytes: usize| all[i as usize * bytes..][..bytes].to_vec();
            let row = (of(rows.codes, bytes[0]), of(rows.params, bytes[1]));
            let before = self
                .seen
                .insert((rows.head + head, rows.token + token), row);
            assert_eq!(before, None, "a row is shown once");
        }
    }
}

struct Memory(Vec<Vec<u8>>);

impl moai_memory::Read for Memory {
    fn bytes(&self, index: usize) -> &[u8] {
        &self.0[index]
    }
}

impl moai_memory::Write for Memory {
    fn bytes_mut(&mut self, index: usize) -> &mut [u8] {
        &mut self.0[index]
    }
}

impl moai_memory::Parts for Memory {
    fn parts(&mut self) -> Vec<&mut [u8]> {
        self.0.iter_mut().map(Vec::as_mut_slice).collect()
    }
}

#[test]
fn programs_do_what_every_element_asks_for() {
    let divided = Cell::new(0);
    cases(3000, |seed| {
        let mut rng = Rng::new(seed);
        let heads = rng.between(1, if cfg!(miri) { 3 } else { 9 });
        let tokens = rng.pick(&[1, 2, 5, 16, 33, 60]);
        let dim = match rng.below(40) {
            0 => 576,
            1 => 512,
            2..6 => 128,
            6..16 => 32,
            _ => rng.between(1, 20),
        };
        let tokens = tokens.min((MOST_ELEMENTS / (heads * dim)).max(1));
        let formats = formats(&mut rng, heads, dim);
        let (a, b) = formats[0];
        let (rows_in, rows_out) = rng.pick(&[(false, false), (false, true), (true, false)]);
        let extent = Extent { heads, tokens, dim };
        let source = draw(&mut rng, &a, extent, rows_in);
        let target = draw(&mut rng, &b, extent, rows_out);
        let conversion = |&(a, b): &_| Arc::new(Conversion::new(a, b, dim).unwrap());
        let conversions = if formats.iter().all(|f| *f == formats[0]) && rng.percent(80) {
            Conversions::All(conversion(&formats[0]))
        } else {
            Conversions::Heads(formats.iter().map(conversion).collect())
        };

        let memory = Memory(source.regions.clone());
        let mut wanted = Memory(target.regions.clone());
        let wanted_counts = by_element::run(
            extent,
            |head| formats[head as usize],
            source.paged(),
            source.place(),
            &memory,
            target.paged(),
            target.place(),
            &mut wanted,
        );
        let program = Program::new(
            source.side.clone(),
            target.side.clone(),
            heads,
            dim,
            conversions.any(),
        );
        for level in Level::available() {
            for streaming_from in [u64::MAX, 0] {
                let mut program = program
                    .clone()
                    .with_level(level)
                    .with_streaming_from(streaming_from)
                    .with_thread_bytes(1);
                // A second run meets the copies that the first has kept.
                for run in 0..2 {
                    let mut got = Memory(target.regions.clone());
                    let threads = 1 + 2 * run;
                    let steps = [Step {
                        conversions: &conversions,
                        from: source.place(),
                        to: target.place(),
                    }];
                    divided.set(divided.get() + program.threads(threads, tokens, &steps) - 1);
                    let counts = program.run_on(threads, tokens, &steps, &memory, &mut got);
                    let differ = got.0.iter().zip(&wanted.0).position(|(g, w)| g != w);
                    assert_eq!(
                        differ,
                        None,
                        "region, on {threads} threads, {level:?}, streaming from {streaming_from} bytes: {formats:?}\n{tokens} tokens of {dim}, from {:?} at {:?}\nto {:?} at {:?}",
                        source.side,
                        source.place(),
                        target.side,
                        target.place(),
                    );
                    assert_eq!(counts, wanted_counts);
                }
                // Whoever looks at some of it changes nothing, and sees what is written.
                let mut look = |wants: &dyn Fn(&mut Rng) -> bool| {
                    let mut looker = Looker {
                        wants: (0..tokens).map(|_| wants(&mut rng)).collect(),
                        seen: Seen::new(),
                    };
                    let (from, to) = (source.place(), target.place());
                    let mut got = Memory(target.regions.clone());
                    let counts = program.run_observed(
                        &conversions,
                        tokens,
                        from,
                        to,
                        &memory,
                        &mut got,
                        &mut looker,
                    );
                    assert_eq!((got.0, counts), (wanted.0.clone(), wanted_counts));
                    if rows_out {
                        let written = std::mem::take(&mut looker.seen);
                        program.observe(&conversions, tokens, from, &memory, &mut looker);
                        assert_eq!(looker.seen, written, "what would be written is what was");
                    }
                    looker
                };
                let all = look(&|_| true);
                assert_eq!(all.seen.len(), (heads * tokens) as usize);
                let some = look(&|rng| rng.percent(30));
                let expected = { all.seen.into_iter() }
                    .filter(|((_, token), _)| some.wants[*token as usize])
                    .collect();
                assert_eq!(some.seen, expected);
            }
        }
    });
    assert!(divided.get() > 0, "no box was divided among threads");
}

/// An axis that picks regions has no stride in bytes, whatever the other side splits it by.
#[test]
fn split_heads_meet_heads_in_regions_of_their_own() {
    let shape = Extents {
        layer: 1,
        part: 1,
        page: 2,
        head: 30,
        slot: 4,
        dim: 2,
    };
    let formats = RowFormat::of(Element::BF16);
    let conversion = Conversions::All(Arc::new(Conversion::new(formats, formats, 2).unwrap()));
    // Divisors of u32::MAX among them.
    let splits: &[u32] = if cfg!(miri) {
        &[2, 15]
    } else {
        &[2, 3, 5, 6, 10, 15]
    };
    for split in splits {
        for swap in [false, true] {
            let text = format!("page head/{split} slot dim head%{split}");
            let mut texts = [text.as_str(), "[head] page slot dim"];
            if swap {
                texts.reverse();
            }
            let [a, b] = texts.map(|text| {
                let text = text.parse().unwrap();
                Layout::new(&text, shape, 2, 0, 0, &BTreeMap::new()).unwrap()
            });
            let side = |codes: &Layout| Side::Paged {
                codes: codes.clone(),
                params: None,
                head: 0,
                unit: 0,
                params_unit: 0,
            };
            let mut rng = Rng::new(1);
            let fill = (0..a.regions()).map(|_| bytes(&mut rng, a.region_bytes()));
            let memory = Memory(fill.collect());
            let blank = || {
                Memory(vec![
                    vec![0; b.region_bytes() as usize];
                    b.regions() as usize
                ])
            };
            let place = Place {
                layer: 0,
                pages: &[1, 0],
                tokens: Progression::ALL,
            };
            let paged = |codes| Paged {
                codes,
                params: None,
                head: 0,
                unit: 0,
                params_unit: 0,
            };
            let extent = Extent {
                heads: 30,
                tokens: 8,
                dim: 2,
            };
            let (mut wanted, mut got) = (blank(), blank());
            by_element::run(
                extent,
                |_| (formats, formats),
                paged(&a),
                place,
                &memory,
                paged(&b),
                place,
                &mut wanted,
            );
            Program::new(side(&a), side(&b), 30, 2, conversion.any()).run(
                &conversion,
                8,
                place,
                place,
                &memory,
                &mut got,
            );
            assert!(got.0 == wanted.0, "split by {split}, swapped: {swap}");
        }
    }
}
