//! Agreements.

use std::fmt::Write as _;

use moai_fabric::collectives::{
    descriptor::Descriptor,
    negotiate::{Agreement, negotiate},
};
use serde_json::{Value, json};

use crate::{
    abi, abi_free,
    arguments::Out,
    descriptor::Described,
    failure::{Failure, Status},
    handle::{Handle, Object},
    text::Given,
};

/// What two sides agreed on, in the forms in which it is asked for.
pub(crate) struct Agreed {
    digest: [u8; 32],
    json: Value,
}

impl Object for Agreed {
    const KIND: u8 = 0x84;
    const NAME: &'static str = "moai_agreement";
}

impl Agreed {
    fn new(agreement: &Agreement, producer: &Descriptor, consumer: &Descriptor) -> Self {
        let carriages = agreement.spans.iter().zip(&agreement.carriages);
        let carriages = carriages.map(|(span, carriage)| {
            let (source, target) = (&carriage.source_format, &carriage.target_format);
            // Rows travel in the other side's format.
            let exchange = match carriage.converts.to_string().as_str() {
                "producer" => target,
                _ => source,
            };
            json!({
                "component": span.name,
                "producer": source,
                "consumer": target,
                "producer_layout": producer.components[span.source].notation.to_string(),
                "consumer_layout": consumer.components[span.target].notation.to_string(),
                "exchange": exchange,
                "converts": carriage.converts.to_string(),
                "unchanged": carriage.unchanged,
                "row_bytes": carriage.row_bytes,
                "reason": carriage.reason,
            })
        });
        let pairs = agreement.pairs.iter().map(|pair| {
            json!({ "producer": pair.source, "consumer": pair.target, "steps": pair.steps.len() })
        });
        let digest = *agreement.digest();
        let hex = digest.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let (carriages, pairs): (Vec<_>, Vec<_>) = (carriages.collect(), pairs.collect());
        let json = json!({ "digest": hex, "carriages": carriages, "pairs": pairs });
        Self { digest, json }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let list = |name: &str| self.json[name].as_array().into_iter().flatten();
        let word = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
        for carriage in list("carriages") {
            let _ = writeln!(
                text,
                "{}: {} [{}] to {} [{}]",
                word(carriage, "component"),
                word(carriage, "producer"),
                word(carriage, "producer_layout"),
                word(carriage, "consumer"),
                word(carriage, "consumer_layout"),
            );
            let _ = writeln!(
                text,
                "  travels as {}, the {} converts: {}",
                word(carriage, "exchange"),
                word(carriage, "converts"),
                word(carriage, "reason"),
            );
        }
        for pair in list("pairs") {
            let (source, target, steps) = (&pair["producer"], &pair["consumer"], &pair["steps"]);
            let _ = writeln!(text, "rank {source} to rank {target}: {steps} steps");
        }
        let _ = writeln!(text, "digest {}", word(&self.json, "digest"));
        text
    }
}

abi! {
    fn moai_negotiate(
        producer: Handle<Described>,
        consumer: Handle<Described>,
        agreement: Out<Handle<Agreed>>,
    ) {
        let producer = producer.get("producer")?;
        let consumer = consumer.get("consumer")?;
        let place = agreement.place("agreement")?;
        let agreed = negotiate(&producer.side, &consumer.side).map_err(|refusal| {
            let mut failure = Failure::new(Status::Incompatible, refusal.to_string());
            if let Some(first) = refusal.obstacles.first() {
                failure = failure.at(&first.field).values(&first.producer, &first.consumer);
            }
            failure.obstacles = serde_json::to_value(&refusal.obstacles).unwrap_or_default();
            failure
        })?;
        place.write(Handle::new(Agreed::new(&agreed, &producer.side, &consumer.side))?);
        Ok(())
    }

    fn moai_agreement_digest(agreement: Handle<Agreed>, digest: Out<u8>) {
        let agreement = agreement.get("agreement")?;
        digest.digest("digest")?.write(agreement.digest);
        Ok(())
    }

    fn moai_agreement_text(agreement: Handle<Agreed>, text: Out<Given>) {
        let agreement = agreement.get("agreement")?;
        text.text("text")?.give(agreement.text());
        Ok(())
    }

    fn moai_agreement_json(agreement: Handle<Agreed>, json: Out<Given>) {
        let agreement = agreement.get("agreement")?;
        json.text("json")?.give(agreement.json.to_string());
        Ok(())
    }
}

abi_free! {
    fn moai_agreement_free(agreement: Handle<Agreed>);
}
