//! Offers, pulls and grants.

use std::time::Duration;

use moai_fabric::collectives::{
    digest::Coverage,
    protocol::{
        handle::{Handle as Sealed, HandleKind},
        node::{ALL_LAYERS, Trace, TransferId},
    },
    request::{Layers, Request},
    transfer::{Grant, Offer, Pull},
};
use serde_json::json;

use crate::{
    abi,
    arguments::{In, Out, Text},
    engine::{Running, flag, limit, refused, unused},
    failure::{Failure, Status},
    handle::Handle,
    progress::Waited,
    structs,
    text::Given,
};

/// A request of an engine's cache, as C gives it.
fn request(
    running: &Running,
    given: In<structs::Request>,
    outer: &str,
) -> Result<Request, Failure> {
    let field = |name: &str| format!("{outer}.request.{name}");
    let given = given.read(&format!("{outer}.request"))?;
    let side = &running.described.side;
    let mut request = Request::new(side, given.tokens);
    request.first = given.held;
    let layers = given.layer_start..given.layer_end;
    if layers != (0..0) {
        if layers.is_empty() || layers.end > side.layers {
            let why = format!("{}..{} of {} layers", layers.start, layers.end, side.layers);
            return Err(Failure::new(Status::Value, why)
                .at(field("layer_end"))
                .values(side.layers, layers.end));
        }
        request.layers = Layers::Between(layers);
    }
    request.coverage = match given.digest {
        0 | 3 => Coverage::Wire,
        1 => Coverage::Off,
        2 => Coverage::Sample,
        4 => Coverage::Full,
        other => {
            let why =
                format!("is {other}; expected MOAI_DIGEST_DEFAULT (0) to MOAI_DIGEST_FULL (4)");
            return Err(Failure::new(Status::Value, why).at(field("digest")));
        }
    };
    let lists = given.lists.read(given.list_count, &field("lists"))?;
    for (index, list) in lists.iter().enumerate() {
        let field = field(&format!("lists[{index}]"));
        let pages = list
            .pages
            .read(list.page_count, &format!("{field}.pages"))?;
        let ranks = list.rank_count.max(1);
        let end = list.first_rank.checked_add(ranks).ok_or_else(|| {
            Failure::new(Status::Value, format!("is {ranks}")).at(format!("{field}.rank_count"))
        })?;
        let gave = request.give(list.first_rank..end, list.group as usize, pages);
        gave.map_err(|error| Failure::new(Status::Request, error.to_string()).at(field))?;
    }
    Ok(request)
}

fn name(text: Text, field: &str, number: Option<u64>) -> Result<String, Failure> {
    let given = text.optional(field)?.map(str::to_owned);
    let number = || number.map_or_else(String::new, |number| number.to_string());
    Ok(given.unwrap_or_else(number))
}

fn sealed(text: Text, field: &str) -> Result<Sealed, Failure> {
    let parsed = text.read(field)?.parse::<Sealed>();
    parsed.map_err(|error| Failure::new(Status::Value, error.to_string()).at(field))
}

fn numbered(number: u64, field: &str) -> Result<u64, Failure> {
    if number == 0 {
        let failure = Failure::new(
            Status::Value,
            "is 0; expected a number that was never used before",
        );
        return Err(failure.at(field));
    }
    Ok(number)
}

/// How long something is kept; never without end.
fn lease(nanoseconds: u64, field: &str) -> Result<Duration, Failure> {
    match limit(nanoseconds) {
        Some(lease) if !lease.is_zero() => Ok(lease),
        _ => {
            let why = format!("is {nanoseconds} ns; expected more than 0, and less than for ever");
            Err(Failure::new(Status::Value, why).at(field))
        }
    }
}

fn deadline(running: &Running, nanoseconds: u64, field: &str) -> Result<Duration, Failure> {
    match nanoseconds {
        0 => Ok(running.config.deadline),
        other => lease(other, field),
    }
}

/// What the engine says of an offer or grant that is not one of its cache.
fn not_ours(error: moai_fabric::EngineError) -> Failure {
    match error {
        moai_fabric::EngineError::Setup(why) => Failure::new(Status::Request, why).at("request"),
        error => refused(error),
    }
}

abi! {
    fn moai_engine_offer(engine: Handle<Running>, offer: In<structs::Offer>, handle: Out<Given>) {
        let running = engine.running()?;
        let given = offer.read("offer")?;
        let place = handle.text("handle")?;
        unused(given.reserved, "offer.reserved")?;
        let number = numbered(given.number, "offer.number")?;
        let request = request(&running, given.request, "offer")?;
        let mut offer = Offer::new(number, request, lease(given.lease_ns, "offer.lease_ns")?);
        offer.bound = given.bound_to.optional("offer.bound_to")?.map(str::to_owned);
        offer.progressive = flag(given.progressive, "offer.progressive")?;
        offer.name = name(given.name, "offer.name", Some(number))?;
        offer.trace = match given.trace.optional("offer.trace")? {
            None => None,
            Some(text) => {
                let trace = Trace::parse(text);
                Some(trace.map_err(|why| Failure::new(Status::Value, why).at("offer.trace"))?)
            }
        };
        place.give(running.engine.offer(offer).map_err(not_ours)?.to_string());
        Ok(())
    }

    fn moai_engine_layer_ready(engine: Handle<Running>, offer: u64, layer: u32, tokens: u32) {
        let running = engine.running()?;
        let layers = running.described.side.layers;
        if layer >= layers && layer != ALL_LAYERS {
            let why = format!("is {layer}; there are {layers}");
            return Err(Failure::new(Status::Value, why).at("layer").values(layers, layer));
        }
        running.engine.layer_ready(offer, layer, tokens).map_err(refused)
    }

    fn moai_engine_extend(engine: Handle<Running>, offer: u64, lease_ns: u64) {
        let running = engine.running()?;
        running.engine.extend(offer, lease(lease_ns, "lease_ns")?).map_err(refused)
    }

    fn moai_engine_withdraw(engine: Handle<Running>, offer: u64) {
        engine.running()?.engine.withdraw(offer).map_err(refused)
    }

    fn moai_engine_push(engine: Handle<Running>, offer: u64, grant: Text) {
        let running = engine.running()?;
        let grant = sealed(grant, "grant")?;
        let pushed = running.engine.push(offer, &grant).map_err(refused)?;
        pushed.map_err(|(reason, why)| Failure::new(Status::Refused, format!("{reason}: {why}")).at("grant"))
    }

    fn moai_engine_pull(engine: Handle<Running>, pull: In<structs::Pull>, transfer: Out<u64>) {
        let running = engine.running()?;
        let given = pull.read("pull")?;
        let place = transfer.place("transfer")?;
        let handle = sealed(given.handle, "pull.handle")?;
        let request = request(&running, given.request, "pull")?;
        let mut pull = Pull::new(handle, request, deadline(&running, given.deadline_ns, "pull.deadline_ns")?);
        pull.by_layer = flag(given.by_layer, "pull.by_layer")?;
        pull.map = !flag(given.no_map, "pull.no_map")?;
        pull.name = name(given.name, "pull.name", None)?;
        let begun = running.engine.pull(pull).map_err(refused)?;
        let begun = begun.map_err(|why| Failure::new(Status::Refused, why.to_string()).at("pull"))?;
        running.progress.begin(begun);
        place.write(begun.0);
        Ok(())
    }

    fn moai_engine_cancel(engine: Handle<Running>, transfer: u64) {
        engine.running()?.engine.cancel(TransferId(transfer)).map_err(refused)
    }

    fn moai_engine_wait_layer(engine: Handle<Running>, transfer: u64, layer: u32, timeout_ns: u64) {
        let running = engine.running()?;
        let layers = running.described.side.layers;
        if layer >= layers && layer != ALL_LAYERS {
            let why = format!("is {layer}; there are {layers}");
            return Err(Failure::new(Status::Value, why).at("layer").values(layers, layer));
        }
        let layer = Some(layer).filter(|&layer| layer != ALL_LAYERS);
        let limit = limit(timeout_ns).unwrap_or(Duration::MAX);
        match running.progress.wait(TransferId(transfer), layer, limit) {
            Waited::Placed => Ok(()),
            Waited::TimedOut => Err(Failure::new(Status::Timeout, "it is not there in time")),
            Waited::Ended(why) => Err(Failure::new(Status::Transfer, why).at("transfer")),
            Waited::Over => Err(refused(moai_fabric::EngineError::Over)),
            Waited::Unknown => {
                let why = format!("is {transfer}, which is none of this engine, or ended long ago");
                Err(Failure::new(Status::Value, why).at("transfer"))
            }
        }
    }

    fn moai_engine_grant(engine: Handle<Running>, grant: In<structs::Grant>, handle: Out<Given>) {
        let running = engine.running()?;
        let given = grant.read("grant")?;
        let place = handle.text("handle")?;
        let number = numbered(given.number, "grant.number")?;
        let request = request(&running, given.request, "grant")?;
        let kept = lease(given.lease_ns, "grant.lease_ns")?;
        let deadline = deadline(&running, given.deadline_ns, "grant.deadline_ns")?;
        let mut grant = Grant::new(number, request, kept, deadline);
        grant.bound = given.bound_to.optional("grant.bound_to")?.map(str::to_owned);
        grant.by_layer = flag(given.by_layer, "grant.by_layer")?;
        grant.map = !flag(given.no_map, "grant.no_map")?;
        grant.name = name(given.name, "grant.name", Some(number))?;
        place.give(running.engine.grant(grant).map_err(not_ours)?.to_string());
        Ok(())
    }

    fn moai_engine_revoke(engine: Handle<Running>, grant: u64) {
        engine.running()?.engine.revoke(grant).map_err(refused)
    }

    fn moai_handle_json(handle: Text, json: Out<Given>) {
        let place = json.text("json")?;
        let handle = sealed(handle, "handle")?;
        let fields = handle.fields();
        let kind = match fields.kind {
            HandleKind::Offer => "offer",
            HandleKind::Grant => "grant",
        };
        let said = json!({
            "kind": kind, "engine": fields.engine, "epoch": fields.epoch, "number": fields.number,
            "tokens": fields.tokens, "expires_unix_ms": fields.expires_unix_ms, "bound_to": fields.bound,
        });
        place.give(said.to_string());
        Ok(())
    }
}
