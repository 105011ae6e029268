//! `moai-perf plan`: what it costs to plan for two engines, and then for each of their requests.
//!
//! The model has the shape of Llama 3.1 405B: 126 layers, 8 KV heads of 128 in bf16. No memory is moved, so the bound
//! of an instantiated request is its page list: a memcpy of it is timed beside.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use moai_fabric::collectives::{
    descriptor::Descriptor,
    execute::Agreed,
    negotiate::Role,
    plan::{self, Chunks},
    request::Request,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    args, failure::Failure, fingerprint::Fingerprint, random::Random, report::Report,
    timing::Spread,
};

const LAYERS: u32 = 126;
const HEADS: u32 = 8;
const DIM: u32 = 128;

/// Ranks of one side: tensor, pipeline and context parallel.
#[derive(Clone, Copy, Debug)]
struct Ranks {
    tp: u32,
    pp: u32,
    cp: u32,
}

const fn ranks(tp: u32, pp: u32, cp: u32) -> Ranks {
    Ranks { tp, pp, cp }
}

/// 64 ranks to 128: stages to stages, replicas to replicas, tokens dealt by page to stages, stages to tokens dealt by
/// page; and an ordinary pair.
const CASES: [[Ranks; 2]; 5] = [
    [ranks(8, 1, 1), ranks(4, 1, 1)],
    [ranks(8, 8, 1), ranks(16, 8, 1)],
    [ranks(64, 1, 1), ranks(128, 1, 1)],
    [ranks(8, 1, 8), ranks(8, 16, 1)],
    [ranks(4, 16, 1), ranks(32, 1, 4)],
];

impl Ranks {
    fn name(self) -> String {
        let of = |name: &str, n: u32| {
            if n > 1 {
                format!("{name}{n}")
            } else {
                String::new()
            }
        };
        format!(
            "{}{}{}",
            of("tp", self.tp),
            of("pp", self.pp),
            of("cp", self.cp)
        )
    }

    fn describe(self, slots: u32, pages: u32) -> Value {
        let component = |name: &str| {
            json!({ "name": name, "heads": HEADS, "dim": DIM, "pool": "kv", "format": { "element": "bf16" },
                    "layout": "[layer] page part slot head dim" })
        };
        // Slowest first: pp, cp, tp.
        let rank = |number: u32| {
            let stage = number / (self.cp * self.tp);
            let layers = [stage * LAYERS / self.pp, (stage + 1) * LAYERS / self.pp];
            json!({ "rank": number, "pages": pages, "layers": layers })
        };
        json!({
            "version": 1, "model": { "layers": LAYERS }, "page_slots": slots,
            "parallel": { "tp": self.tp, "pp": self.pp, "cp": self.cp, "cp_unit": "page" },
            "components": [component("key"), component("value")],
            "ranks": (0..self.tp * self.pp * self.cp).map(rank).collect::<Vec<_>>(),
        })
    }
}

/// One pair of engines.
#[derive(Debug, Serialize)]
struct Row {
    /// Always `plan`: which kind of JSON line this is.
    kind: &'static str,
    producer: String,
    consumer: String,
    ranks: [usize; 2],
    pairs: usize,
    /// Bytes of both descriptions, which have no page lists.
    description_bytes: [usize; 2],
    /// Comparing both sides, the compiled plan and the digest included.
    negotiate_ns: u64,
    compile_ns: u64,
    tokens: u32,
    pages: usize,
    /// Chunks of the pair of ranks that has the most.
    chunks: usize,
    /// Giving and checking the consumer rank's pages and instantiating that pair.
    instantiate_ns: u64,
    /// Finding every chunk of it, one after another.
    chunks_ns: u64,
    /// A memcpy of the page list.
    memcpy_ns: u64,
}

pub(crate) fn plan(command: &args::Plan) -> Result<(), Failure> {
    let mut report = Report::new(command.json.as_deref())?;
    report.machine(&Fingerprint::take())?;
    report.show(format_args!(
        "126 layers, 8 heads of 128 in bf16; {} tokens in pages of {}; medians of {} rounds\n\n{:<22}{:>9}{:>7}{:>13}{:>12}{:>9}{:>13}{:>13}{:>12}\n",
        command.tokens,
        command.slots,
        command.rounds,
        "ranks", "", "pairs", "negotiate", "compile", "chunks", "instantiate", "all chunks", "memcpy"
    ))?;
    for case in CASES {
        let row = measure(case, command).map_err(Failure::Input)?;
        let ms = |ns: u64| format!("{:.3} ms", ns as f64 / 1e6);
        report.show(format_args!(
            "{:<22}{:>9}{:>7}{:>13}{:>12}{:>9}{:>13}{:>13}{:>12}\n",
            format!("{} → {}", row.producer, row.consumer),
            format!("{}→{}", row.ranks[0], row.ranks[1]),
            row.pairs,
            ms(row.negotiate_ns),
            ms(row.compile_ns),
            row.chunks,
            ms(row.instantiate_ns),
            ms(row.chunks_ns),
            ms(row.memcpy_ns),
        ))?;
        report.line(&row)?;
    }
    Ok(())
}

fn measure([from, to]: [Ranks; 2], command: &args::Plan) -> Result<Row, String> {
    let (tokens, slots) = (command.tokens, command.slots);
    let needed = tokens.div_ceil(slots);
    let texts = [from, to].map(|side| side.describe(slots, needed + needed / 3).to_string());
    let [producer, consumer] = texts.each_ref().map(|text| Descriptor::from_json(text));
    let say = |error: moai_fabric::collectives::descriptor::DescriptorError| error.to_string();
    let (producer, consumer) = (producer.map_err(say)?, consumer.map_err(say)?);
    let negotiated = median(command.rounds, || {
        black_box(moai_fabric::collectives::negotiate::negotiate(&producer, &consumer).is_ok());
    });
    let agreed = Agreed::new(producer, consumer).map_err(|refusal| refusal.to_string())?;
    let agreement = &agreed.agreement;
    let compiled = median(command.rounds, || {
        black_box(plan::compile(
            &agreed.producer,
            &agreed.consumer,
            &agreement.spans,
        ));
    });
    let side = agreed.side(Role::Consumer);
    let mut request = Request::new(side, tokens);
    let mut chunks = Chunks::default();
    let most = agreement.pairs.iter().max_by_key(|pair| {
        agreement.chunks_into(agreed.sides(), pair, &request, &mut chunks);
        chunks.len()
    });
    let pair = most.ok_or("nothing to move")?;
    let mut list = Random(7).shuffled(needed + needed / 3);
    let cp = side.ranks[pair.target as usize].cp;
    let held = side.deal(0).count(cp, 0, tokens);
    list.truncate(held.div_ceil(u64::from(slots)) as usize);
    let (rank, mut sorted) = (pair.target, Vec::new());
    let mut right = Ok(());
    let instantiated = median(command.rounds, || {
        request.renew(tokens);
        right = request.give(rank..rank + 1, 0, &list);
        if right.is_ok() {
            right = request.check_with(side, Role::Consumer, rank..rank + 1, &mut sorted);
        }
        agreement.chunks_into(agreed.sides(), pair, &request, &mut chunks);
        black_box(chunks.len());
    });
    right.map_err(|error| error.to_string())?;
    let mut bytes = 0;
    let found = median(command.rounds, || {
        bytes = black_box(&chunks)
            .iter()
            .map(|chunk| u64::from(chunk.bytes))
            .sum();
    });
    if bytes != chunks.wire_bytes() {
        return Err(format!(
            "the chunks have {bytes} bytes, not {}",
            chunks.wire_bytes()
        ));
    }
    let mut copy = vec![0_u32; list.len()];
    let copied = median(command.rounds, || {
        copy.copy_from_slice(black_box(&list));
        black_box(&copy);
    });
    Ok(Row {
        kind: "plan",
        producer: from.name(),
        consumer: to.name(),
        ranks: [agreed.producer.ranks.len(), agreed.consumer.ranks.len()],
        pairs: agreement.pairs.len(),
        description_bytes: texts.map(|text| text.len()),
        negotiate_ns: nanos(negotiated),
        compile_ns: nanos(compiled),
        tokens,
        pages: list.len(),
        chunks: chunks.len(),
        instantiate_ns: nanos(instantiated),
        chunks_ns: nanos(found),
        memcpy_ns: nanos(copied),
    })
}

fn nanos(time: Duration) -> u64 {
    time.as_nanos() as u64
}

/// The first round warms up.
fn median(rounds: u32, mut act: impl FnMut()) -> Duration {
    act();
    let time = |_| {
        let start = Instant::now();
        act();
        start.elapsed()
    };
    Spread::of((0..rounds.max(1)).map(time).collect()).median
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_is_planned_and_descriptions_are_as_long_for_any_number_of_pages() {
        let row = |case, tokens| {
            let command = args::Plan {
                tokens,
                slots: 16,
                rounds: 1,
                json: None,
            };
            measure(case, &command).unwrap()
        };
        for case in CASES {
            let (short, long) = (row(case, 10_000), row(case, 90_000));
            assert!(short.chunks > 0 && short.chunks < long.chunks, "{long:?}");
            // Numbers of pages may have more digits.
            for side in 0..2 {
                let more = long.description_bytes[side] - short.description_bytes[side];
                assert!(more <= 2 * long.ranks[side], "{short:?} {long:?}");
            }
        }
    }
}
