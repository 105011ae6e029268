//! Negotiation: two descriptors in, an agreement or a refusal out.
//!
//! A pure function that both sides run on the same two descriptors. It never guesses: whatever would
//! make the consumer's bytes mean something else than the producer's is an obstacle, and a [`Refusal`]
//! lists all of them at once.

use std::{
    collections::{BTreeSet, HashMap, HashSet, hash_map::Entry},
    fmt,
    ops::Range,
    sync::Arc,
};

use moai_translate::{
    convert::Conversion,
    format::{FormatError, Pairing, Rope, RowFormat, RowScale},
    program::Conversions,
    rotation::Rotation,
};
use sha2::{Digest, Sha256};

use crate::{
    descriptor::{Component, Descriptor, RankShard, Scale},
    limits,
    plan::{self, Chunks, Pair, Span},
    request::Request,
};

/// One of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "a transfer has two sides")]
pub enum Role {
    /// Holds the cache and sends it.
    Producer,
    /// Receives it.
    Consumer,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        })
    }
}

/// How one span's rows travel.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Carriage {
    /// Who converts. Rows travel in the other side's format: the consumer's if the producer
    /// converts, the producer's if the consumer does.
    pub converts: Role,
    /// Whether bytes are carried unchanged from end to end.
    pub unchanged: bool,
    /// Bytes of a row in the producer's format, on the wire, and in the consumer's, row scales included.
    pub row_bytes: [u64; 3],
    /// Format on the producer, as text.
    pub source_format: String,
    /// Format on the consumer, as text.
    pub target_format: String,
    /// Why `converts` is who it is.
    pub reason: String,
    conversions: Vec<ByLayer>,
}

/// Conversions of one layer: from source to target, and the identity of the exchange format.
#[derive(Clone, Debug)]
struct ByLayer {
    whole: Vec<Arc<Conversion>>,
    carried: Vec<Arc<Conversion>>,
    formats: Vec<(RowFormat, RowFormat)>,
}

/// Two sides that fit: what is carried, how, and by whom.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Agreement {
    /// What is carried.
    pub spans: Vec<Span>,
    /// How each span travels.
    pub carriages: Vec<Carriage>,
    /// Who sends what to whom.
    pub pairs: Vec<Pair>,
    digest: [u8; 32],
}

/// A reason why two sides do not fit.
#[derive(Clone, Debug, Hash, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Obstacle {
    /// What differs, as `components.key.dim`.
    pub field: String,
    /// What the producer says.
    pub producer: String,
    /// What the consumer says.
    pub consumer: String,
    /// What would resolve it.
    pub resolve: String,
}

/// Two sides that do not fit, with every obstacle.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Refusal {
    /// All of them; at least one.
    pub obstacles: Vec<Obstacle>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.obstacles.len();
        writeln!(
            f,
            "the two sides do not fit: {n} obstacle{}",
            if n == 1 { "" } else { "s" }
        )?;
        for o in &self.obstacles {
            writeln!(f, "  {}", o.field)?;
            writeln!(f, "    producer: {}", o.producer)?;
            writeln!(f, "    consumer: {}", o.consumer)?;
            writeln!(f, "    resolve:  {}", o.resolve)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

impl Agreement {
    /// Identifies the agreement: equal on both sides if and only if both mean the same.
    #[must_use]
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// The conversions of one layer's heads that `who` runs when rows cross the wire.
    #[must_use]
    pub fn conversions(
        &self,
        span: usize,
        layer: u32,
        heads: Range<u32>,
        who: Role,
    ) -> Conversions {
        let carriage = &self.carriages[span];
        let by = &carriage.conversions[layer as usize];
        let list = if who == carriage.converts {
            &by.whole
        } else {
            &by.carried
        };
        pick(list, heads)
    }

    /// The conversions from end to end.
    #[must_use]
    pub fn whole_conversions(&self, span: usize, layer: u32, heads: Range<u32>) -> Conversions {
        pick(
            &self.carriages[span].conversions[layer as usize].whole,
            heads,
        )
    }

    /// Both formats of one layer's and head's rows.
    #[must_use]
    pub fn formats(&self, span: usize, layer: u32, head: u32) -> (RowFormat, RowFormat) {
        let formats = &self.carriages[span].conversions[layer as usize].formats;
        if formats.len() == 1 {
            formats[0]
        } else {
            formats[head as usize]
        }
    }

    /// Makes `chunks` those of a pair for a request.
    pub fn chunks_into(
        &self,
        sides: [&Descriptor; 2],
        pair: &Pair,
        request: &Request,
        chunks: &mut Chunks,
    ) {
        let wire = |span: usize| self.carriages[span].row_bytes[1];
        chunks.take(sides, pair, request, limits::CHUNK_BYTES, wire);
    }
}

/// One conversion for all heads, or one for each.
fn pick(list: &[Arc<Conversion>], heads: Range<u32>) -> Conversions {
    match list {
        [one] => Conversions::All(Arc::clone(one)),
        many => Conversions::Heads(many[heads.start as usize..heads.end as usize].to_vec()),
    }
}

/// Compares two sides, whatever requests will come.
///
/// # Errors
///
/// A [`Refusal`] with every obstacle, if the consumer could not be given what it describes.
pub fn negotiate(producer: &Descriptor, consumer: &Descriptor) -> Result<Agreement, Refusal> {
    let mut obstacles = Obstacles::default();
    obstacles.compare(
        "model.layers",
        producer.layers,
        consumer.layers,
        "both sides must hold the same model",
    );
    if let (Some(a), Some(b)) = (&producer.model_digest, &consumer.model_digest) {
        obstacles.compare(
            "model.digest",
            a,
            b,
            "both sides must have loaded the same weights",
        );
    }
    let spans = spans(producer, consumer, &mut obstacles);
    let mut carriages = Vec::new();
    if producer.layers == consumer.layers {
        for span in &spans {
            carriages.extend(carriage(producer, consumer, span, &mut obstacles));
        }
        covered(producer, Role::Producer, &mut obstacles);
        covered(consumer, Role::Consumer, &mut obstacles);
        layers(producer, consumer, &spans, &mut obstacles);
    }
    windows(producer, consumer, &spans, &mut obstacles);
    let pairs = if producer.layers == consumer.layers {
        let (pairs, holes) = plan::compile(producer, consumer, &spans);
        for hole in holes {
            let (cp, of) = hole.cp;
            let tokens = if of > 1 {
                format!(", tokens of cp rank {cp} of {of}")
            } else {
                String::new()
            };
            obstacles.add(
                format!("ranks: {}", spans[hole.span].name),
                format!(
                    "no rank holds layers {:?}, heads {:?}{tokens}",
                    hole.layers, hole.heads
                ),
                format!("rank {} owns them", hole.target),
                "the producer's ranks must cover what the consumer owns",
            );
        }
        pairs
    } else {
        Vec::new()
    };
    obstacles.end()?;
    let digest = digest(producer, consumer);
    Ok(Agreement {
        spans,
        carriages,
        pairs,
        digest,
    })
}

#[derive(Default)]
pub(crate) struct Obstacles {
    list: Vec<Obstacle>,
    seen: HashSet<Obstacle>,
    left_out: usize,
}

impl Obstacles {
    /// A refusal, if there are any.
    pub(crate) fn end(mut self) -> Result<(), Refusal> {
        if self.left_out > 0 {
            self.list.push(Obstacle {
                field: "…".to_owned(),
                producer: format!("{} more obstacles", self.left_out),
                consumer: "not listed".to_owned(),
                resolve: "resolve those above first".to_owned(),
            });
        }
        match self.list.is_empty() {
            true => Ok(()),
            false => Err(Refusal {
                obstacles: self.list,
            }),
        }
    }

    /// Takes in those of another comparison.
    pub(crate) fn extend(&mut self, refusal: Refusal) {
        self.list.extend(refusal.obstacles);
    }

    pub(crate) fn add(
        &mut self,
        field: impl Into<String>,
        producer: impl Into<String>,
        consumer: impl Into<String>,
        resolve: impl Into<String>,
    ) {
        let obstacle = Obstacle {
            field: field.into(),
            producer: producer.into(),
            consumer: consumer.into(),
            resolve: resolve.into(),
        };
        if self.list.len() >= limits::MAX_OBSTACLES {
            self.left_out += 1;
        } else if self.seen.insert(obstacle.clone()) {
            self.list.push(obstacle);
        }
    }

    pub(crate) fn compare<T: PartialEq + fmt::Display>(
        &mut self,
        field: impl Into<String>,
        producer: T,
        consumer: T,
        resolve: &str,
    ) {
        if producer != consumer {
            self.add(field, producer.to_string(), consumer.to_string(), resolve);
        }
    }
}

/// Pairs up components by the whole they belong to, dims by dims.
fn spans(producer: &Descriptor, consumer: &Descriptor, obstacles: &mut Obstacles) -> Vec<Span> {
    let rows = |side: &Descriptor| -> Vec<usize> {
        (0..side.components.len())
            .filter(|&c| !side.components[c].is_scales)
            .collect()
    };
    let mut spans = Vec::new();
    let (sources, targets) = (rows(producer), rows(consumer));
    for &t in &targets {
        let target = &consumer.components[t];
        let field = format!("components.{}", target.name);
        let mut covered: Vec<(Range<u32>, usize)> = Vec::new();
        for &s in &sources {
            let source = &producer.components[s];
            if source.whole.name != target.whole.name {
                continue;
            }
            let start = source.whole.dims.start.max(target.whole.dims.start);
            let end = source.whole.dims.end.min(target.whole.dims.end);
            if start >= end {
                continue;
            }
            for (dims, other) in &covered {
                let twice = dims.start.max(start)..dims.end.min(end);
                if !twice.is_empty() && hold_one_layer(producer, s, *other) {
                    obstacles.add(
                        format!("{field}.of"),
                        format!(
                            "dims {twice:?} of {} twice, in {} and in {}",
                            target.whole.name, producer.components[*other].name, source.name
                        ),
                        format!("dims {:?} of {}", target.whole.dims, target.whole.name),
                        "give every dim of the producer to one component",
                    );
                }
            }
            covered.push((start..end, s));
            obstacles.compare(
                format!("{field}.heads"),
                source.heads,
                target.heads,
                "heads are never merged or dropped; describe the same heads on both sides",
            );
            if source.heads != target.heads {
                continue;
            }
            let whole = source.whole.dims == target.whole.dims;
            spans.push(Span {
                name: if whole {
                    target.name.clone()
                } else {
                    format!("{}[{start}..{end}]", target.whole.name)
                },
                source: s,
                target: t,
                source_first: start - source.whole.dims.start,
                target_first: start - target.whole.dims.start,
                dim: end - start,
            });
        }
        let named: Vec<&Component> = sources
            .iter()
            .map(|&s| &producer.components[s])
            .filter(|s| s.whole.name == target.whole.name)
            .collect();
        if named.is_empty() {
            obstacles.add(
                &field,
                "missing",
                describe(target),
                "the producer must hold every component that the consumer needs",
            );
        } else if count(covered.into_iter().map(|(dims, _)| dims)) < target.dim {
            let has: Vec<String> = named
                .iter()
                .map(|s| format!("{:?}", s.whole.dims))
                .collect();
            obstacles.add(
                format!("{field}.dim"),
                format!("dims {} of {}", has.join(", "), target.whole.name),
                format!("dims {:?}", target.whole.dims),
                "rows are never cut or padded; describe the same dims on both sides",
            );
        }
    }
    for &s in &sources {
        let source = &producer.components[s];
        let named: Vec<&Component> = targets
            .iter()
            .map(|&t| &consumer.components[t])
            .filter(|t| t.whole.name == source.whole.name)
            .collect();
        let field = format!("components.{}", source.name);
        if named.is_empty() {
            obstacles.add(
                field,
                describe(source),
                "missing",
                "the consumer must have a place for every component of the cache",
            );
        } else {
            if count(named.iter().map(|t| common(source, t))) < source.dim {
                let has: Vec<String> = named
                    .iter()
                    .map(|t| format!("{:?}", t.whole.dims))
                    .collect();
                obstacles.add(
                    format!("{field}.dim"),
                    format!("dims {:?}", source.whole.dims),
                    format!("dims {} of {}", has.join(", "), source.whole.name),
                    "rows are never cut or padded; describe the same dims on both sides",
                );
            }
        }
    }
    spans
}

/// Dims of the whole that two components have in common; empty if none.
fn common(a: &Component, b: &Component) -> Range<u32> {
    let (a, b) = (&a.whole.dims, &b.whole.dims);
    a.start.max(b.start)..a.end.min(b.end)
}

/// How many dims lie in any of the ranges.
fn count(ranges: impl Iterator<Item = Range<u32>>) -> u32 {
    let mut ranges: Vec<_> = ranges.collect();
    ranges.sort_unstable_by_key(|dims| dims.start);
    let (mut sum, mut next) = (0, 0);
    for dims in ranges {
        sum += dims.end.saturating_sub(dims.start.max(next));
        next = next.max(dims.end);
    }
    sum
}

/// Whether there is a layer of which both components hold rows.
fn hold_one_layer(side: &Descriptor, a: usize, b: usize) -> bool {
    (0..side.layers)
        .any(|layer| side.group_of(a, layer).is_some() && side.group_of(b, layer).is_some())
}

/// The consumer has a place for every layer of every component of the producer.
fn layers(producer: &Descriptor, consumer: &Descriptor, spans: &[Span], obstacles: &mut Obstacles) {
    for (s, source) in producer.components.iter().enumerate() {
        let mine: Vec<_> = spans.iter().filter(|span| span.source == s).collect();
        // What has no counterpart at all is said elsewhere, and so is what has one of other dims.
        let dims = |span: &&Span| span.source_first..span.source_first + span.dim;
        let whole = count(mine.iter().map(&dims));
        let lost: Vec<u32> = (0..producer.layers)
            .filter(|&layer| {
                let placed = mine
                    .iter()
                    .filter(|span| consumer.group_of(span.target, layer).is_some());
                producer.group_of(s, layer).is_some() && count(placed.map(&dims)) < whole
            })
            .collect();
        if !lost.is_empty() {
            obstacles.add(
                format!("components.{}.layers", source.name),
                format!("layers {lost:?}"),
                "missing",
                "the consumer must have a place for every layer of the cache",
            );
        }
    }
}

fn describe(component: &Component) -> String {
    format!(
        "{} heads × {} in {}",
        component.heads, component.dim, component.format
    )
}

/// Who converts a span, and by which conversions.
fn carriage(
    producer: &Descriptor,
    consumer: &Descriptor,
    span: &Span,
    obstacles: &mut Obstacles,
) -> Option<Carriage> {
    let (a, b) = (
        &producer.components[span.source],
        &consumer.components[span.target],
    );
    let field = |name: &str| format!("components.{}.{name}", b.name);
    let before = obstacles.list.len();
    let cut = |first: u32, component: &Component| {
        let rotation = component.format.rotated(component.dim);
        let n = rotation.block(component.dim);
        // The size of signed blocks follows from the row's.
        let whole = rotation != Rotation::Signed || span.dim == component.dim;
        let fits = first.is_multiple_of(n) && span.dim.is_multiple_of(n) && whole;
        (!fits).then(|| {
            format!(
                "dims {first}..{} of {rotation} over {}",
                first + span.dim,
                component.dim
            )
        })
    };
    let cuts = (cut(span.source_first, a), cut(span.target_first, b));
    if cuts != (None, None) {
        let whole = |cut: Option<String>, component: &Component| {
            cut.unwrap_or_else(|| format!("whole blocks of {}", component.name))
        };
        obstacles.add(
            field("format.rotation"),
            whole(cuts.0, a),
            whole(cuts.1, b),
            "a piece cuts a rotated block; describe it whole on both sides",
        );
    }
    let ropes = match ropes(a, b, span) {
        Ok(ropes) => Some(ropes),
        Err((x, y, why)) => {
            obstacles.add(field("rope"), x, y, why);
            None
        }
    };
    for (component, role) in [(a, Role::Producer), (b, Role::Consumer)] {
        if component.format.scale == Scale::Unknown {
            let (x, y) = match role {
                Role::Producer => ("no values given".to_owned(), b.format.to_string()),
                Role::Consumer => (a.format.to_string(), "no values given".to_owned()),
            };
            obstacles.add(
                field("format.scale.values"),
                x,
                y,
                format!("give the {role}'s effective scales"),
            );
        }
        let group = component.format.element.group_elements(component.dim);
        let first = if role == Role::Producer {
            span.source_first
        } else {
            span.target_first
        };
        if first % group != 0 || !span.dim.is_multiple_of(group) {
            let cut = format!("dims {first}..{} of groups of {group}", first + span.dim);
            let (x, y) = match role {
                Role::Producer => (cut, b.format.to_string()),
                Role::Consumer => (a.format.to_string(), cut),
            };
            obstacles.add(
                field("of"),
                x,
                y,
                format!(
                    "{} is carried in whole groups; describe it as one component on both sides",
                    component.format.element.name()
                ),
            );
        }
        // A row scale belongs to the whole row, not to a piece of it.
        if component.format.scale == Scale::TokenHead && span.dim != component.dim {
            obstacles.add(
                field("format.scale"),
                a.format.to_string(),
                b.format.to_string(),
                "a row with a scale of its own is carried whole",
            );
        }
    }
    let (rope_a, rope_b) = ropes?;
    if obstacles.list.len() > before {
        return None;
    }
    let mut conversions = Vec::new();
    let per_head = |scale: &Scale| matches!(scale, Scale::Head(_));
    let heads = if per_head(&a.format.scale) || per_head(&b.format.scale) {
        a.heads
    } else {
        1
    };
    let row_bytes = [a.format.row_bytes(span.dim), b.format.row_bytes(span.dim)];
    let mut unchanged = true;
    // Within a span only constants differ, so they (and whether it is the identity of the exchange format)
    // name a conversion.
    let mut kept: HashMap<(bool, u32, u32), Arc<Conversion>> = HashMap::new();
    let constant = |format: &RowFormat| match format.scale {
        RowScale::Constant(scale) => scale.to_bits(),
        _ => 0,
    };
    let mut compiled =
        |carried: bool, from: RowFormat, to: RowFormat| -> Result<Arc<Conversion>, FormatError> {
            match kept.entry((carried, constant(&from), constant(&to))) {
                Entry::Occupied(entry) => Ok(Arc::clone(entry.get())),
                Entry::Vacant(entry) => {
                    let conversion = Arc::new(Conversion::new(from, to, span.dim)?);
                    Ok(Arc::clone(entry.insert(conversion)))
                }
            }
        };
    for layer in 0..producer.layers {
        let mut by = ByLayer {
            whole: Vec::new(),
            carried: Vec::new(),
            formats: Vec::new(),
        };
        for head in 0..heads {
            let from = a.format.row(layer, head, rope_a)?;
            let to = b.format.row(layer, head, rope_b)?;
            match compiled(false, from, to) {
                Ok(conversion) => {
                    unchanged &= conversion.is_identity();
                    by.whole.push(conversion);
                    by.formats.push((from, to));
                }
                Err(error) => {
                    if let FormatError::RopeSplitsGroup { .. } = error {
                        obstacles.add(
                            field("rope"),
                            say_rope(a.rope),
                            say_rope(b.rope),
                            error.to_string(),
                        );
                        return None;
                    }
                    obstacles.add(
                        field("format"),
                        a.format.to_string(),
                        b.format.to_string(),
                        error.to_string(),
                    );
                    return None;
                }
            }
        }
        conversions.push(by);
    }
    let (converts, reason) = if unchanged {
        (Role::Consumer, "bytes are carried unchanged".to_owned())
    } else if row_bytes[1] <= row_bytes[0] {
        let reason = if row_bytes[1] < row_bytes[0] {
            format!(
                "a row shrinks from {} to {} bytes, so it is converted before the wire",
                row_bytes[0], row_bytes[1]
            )
        } else {
            format!(
                "a row stays {} bytes; converted before the wire, it can be read into place",
                row_bytes[0]
            )
        };
        (Role::Producer, reason)
    } else {
        let reason = format!(
            "a row grows from {} to {} bytes, so it is converted after the wire",
            row_bytes[0], row_bytes[1]
        );
        (Role::Consumer, reason)
    };
    for by in &mut conversions {
        for &(from, to) in &by.formats {
            let exchange = if converts == Role::Producer { to } else { from };
            match compiled(true, exchange, exchange) {
                Ok(conversion) => by.carried.push(conversion),
                Err(error) => {
                    obstacles.add(
                        field("format"),
                        a.format.to_string(),
                        b.format.to_string(),
                        error.to_string(),
                    );
                    return None;
                }
            }
        }
        // Layers whose heads all take the same conversions need but one.
        for list in [&mut by.whole, &mut by.carried] {
            if list.iter().all(|c| Arc::ptr_eq(c, &list[0])) {
                list.truncate(1);
            }
        }
    }
    let wire = if converts == Role::Producer {
        row_bytes[1]
    } else {
        row_bytes[0]
    };
    let token = wire * u64::from(a.heads);
    if token > u64::from(moai_transport::limits::MAX_BATCH_BYTES) {
        obstacles.add(
            field("dim"),
            format!("{token} bytes a token and layer on the wire"),
            format!("{} at most", moai_transport::limits::MAX_BATCH_BYTES),
            "rows this long cannot be sent yet",
        );
        return None;
    }
    Some(Carriage {
        converts,
        unchanged,
        row_bytes: [row_bytes[0], wire, row_bytes[1]],
        source_format: a.format.to_string(),
        target_format: b.format.to_string(),
        reason,
        conversions,
    })
}

type Ropes = (Option<Rope>, Option<Rope>);

fn say_rope(rope: Option<Rope>) -> String {
    match rope {
        None => "not stated".to_owned(),
        Some(r) => format!(
            "{:?} pairing of {} dims from {}",
            r.pairing, r.dims, r.offset
        )
        .to_lowercase(),
    }
}

/// The rotary part within a span, on both sides; none where there is nothing to permute.
fn ropes(
    a: &Component,
    b: &Component,
    span: &Span,
) -> Result<Ropes, (String, String, &'static str)> {
    let within = |rope: Option<Rope>, first: u32| -> Result<Option<Rope>, ()> {
        let Some(rope) = rope else { return Ok(None) };
        let (start, end) = (rope.offset, rope.offset + rope.dims);
        if end <= first || first + span.dim <= start {
            Ok(None)
        } else if first <= start && end <= first + span.dim {
            Ok(Some(Rope {
                offset: start - first,
                ..rope
            }))
        } else {
            Err(())
        }
    };
    let words = || (say_rope(a.rope), say_rope(b.rope));
    let (Ok(x), Ok(y)) = (
        within(a.rope, span.source_first),
        within(b.rope, span.target_first),
    ) else {
        // Neighbours stay neighbours where a part is cut between pairs; halves move apart.
        let neighbours = |rope: Option<Rope>, first: u32| {
            let rope = rope.filter(|r| r.pairing == Pairing::Interleaved)?;
            let start = rope.offset.max(first);
            let end = (rope.offset + rope.dims).min(first + span.dim);
            let whole = |from: u32| (from - rope.offset).is_multiple_of(2);
            (start < end && whole(start) && whole(end)).then(|| start - first..end - first)
        };
        let mine = neighbours(a.rope, span.source_first);
        let equal = mine.is_some() && mine == neighbours(b.rope, span.target_first);
        let (p, q) = words();
        return if equal {
            Ok((None, None))
        } else {
            Err((
                p,
                q,
                "a piece cuts the rotary part; describe it whole on both sides",
            ))
        };
    };
    match (x, y) {
        (None, None) => Ok((None, None)),
        (Some(p), Some(q)) if (p.offset, p.dims) != (q.offset, q.dims) => {
            let (p, q) = words();
            Err((
                p,
                q,
                "the rotary part must be the same dims of the row on both sides",
            ))
        }
        (Some(p), Some(q)) if p.pairing == q.pairing => Ok((None, None)),
        (Some(p), Some(q)) => Ok((Some(p), Some(q))),
        _ => {
            let (p, q) = words();
            Err((
                p,
                q,
                "state the pairing on both sides, or on neither if it is known to be the same",
            ))
        }
    }
}

/// Every layer and head of a side belongs to some rank.
fn covered(side: &Descriptor, role: Role, obstacles: &mut Obstacles) {
    for (c, component) in side.components.iter().enumerate() {
        let mut lost = BTreeSet::new();
        let mut ranks: Vec<&RankShard> = side.ranks.iter().collect();
        ranks.sort_by_key(|rank| rank.heads(c).start);
        for cp in 0..side.parallel[2] {
            // Of each layer, the heads that some rank has, from the first on.
            let mut next = vec![0; side.layers as usize];
            for rank in ranks.iter().filter(|rank| rank.cp == cp) {
                let heads = rank.heads(c);
                for &layer in rank.layers_of(c) {
                    let next = &mut next[layer as usize];
                    if heads.start <= *next {
                        *next = heads.end.max(*next);
                    }
                }
            }
            lost.extend((0..).zip(next).filter_map(|(layer, next)| {
                let grouped = side.group_of(c, layer).is_some();
                // A component confined to a group has no rows in other layers.
                let wanted = grouped || component.group.is_none();
                (wanted && (!grouped || next < component.heads)).then_some(layer)
            }));
        }
        if !lost.is_empty() {
            let what = format!("layers {lost:?} are not wholly owned by its ranks");
            let (a, b) = match role {
                Role::Producer => (what, "not compared".to_owned()),
                Role::Consumer => ("not compared".to_owned(), what),
            };
            obstacles.add(
                format!("ranks: {role}'s {}", component.name),
                a,
                b,
                "give every layer and head to some rank and group",
            );
        }
    }
}

/// The producer holds at least the tokens that the consumer's windows need, of a request of any length.
fn windows(
    producer: &Descriptor,
    consumer: &Descriptor,
    spans: &[Span],
    obstacles: &mut Obstacles,
) {
    for span in spans {
        for layer in 0..producer.layers.min(consumer.layers) {
            let (Some(a), Some(b)) = (
                producer.group_of(span.source, layer),
                consumer.group_of(span.target, layer),
            ) else {
                continue;
            };
            let (a, b) = (&producer.groups[a], &consumer.groups[b]);
            if let Some(window) = a.window
                && b.window.is_none_or(|needed| window < needed)
            {
                let name = |window: Option<u32>| {
                    window.map_or_else(
                        || "all tokens".to_owned(),
                        |w| format!("the last {w} tokens"),
                    )
                };
                obstacles.add(
                    format!("groups: {}", span.name),
                    format!("holds {}", name(a.window)),
                    format!("needs {}", name(b.window)),
                    "the consumer's window must lie within the producer's",
                );
            }
        }
    }
}

/// Hashes what both sides say; nothing of it differs between requests.
fn digest(producer: &Descriptor, consumer: &Descriptor) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"moai agreement 2\0");
    for side in [producer, consumer] {
        let Descriptor {
            layers,
            parallel,
            cp_unit,
            groups,
            components,
            ranks,
            ..
        } = side;
        // `Debug` of these types is a complete and deterministic listing of their fields.
        let text = format!("{layers} {parallel:?} {cp_unit:?} {groups:?} {components:?}");
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
        let mut last: Option<&RankShard> = None;
        for rank in ranks {
            let heads = (0..components.len()).map(|c| rank.heads(c));
            let mut text = format!(
                "{} {} {} {} {:?} {} {:?} ",
                rank.rank,
                rank.tp,
                rank.pp,
                rank.cp,
                rank.layers,
                rank.pages,
                heads.collect::<Vec<_>>()
            );
            // Most ranks lay their rows out as the one before does, which costs less to say.
            let like =
                |last: &RankShard| (0..components.len()).all(|c| last.layout(c) == rank.layout(c));
            match last.is_some_and(like) {
                true => text.push_str("as before"),
                false => {
                    let layouts = (0..components.len()).map(|c| rank.layout(c));
                    text += &format!("{:?}", layouts.collect::<Vec<_>>());
                }
            }
            last = Some(rank);
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
    }
    hash.finalize().into()
}
