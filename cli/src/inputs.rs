//! What commands work on: two descriptions, from files or seeded.

use std::{path::Path, sync::Arc};

use moai_fabric::{
    collectives::{descriptor::Descriptor, execute::Agreed, negotiate::negotiate},
    files, synthetic,
};
use serde_json::json;

use crate::failure::{Failure, write_json};

/// Reads both descriptions.
pub(crate) fn read(producer: &Path, consumer: &Path) -> Result<[Descriptor; 2], Failure> {
    Ok([
        files::read_description(producer)?,
        files::read_description(consumer)?,
    ])
}

/// Both descriptions, from files if they are given.
pub(crate) fn sides(
    producer: Option<&Path>,
    consumer: Option<&Path>,
    tokens: u32,
    seed: u64,
) -> Result<[Descriptor; 2], Failure> {
    match (producer, consumer) {
        (Some(producer), Some(consumer)) => read(producer, consumer),
        _ => Ok(synthetic::sides(tokens, seed)?),
    }
}

/// Negotiates; a refusal also goes into the report that was asked for.
pub(crate) fn agree(
    [producer, consumer]: [Descriptor; 2],
    report: Option<&Path>,
) -> Result<Arc<Agreed>, Failure> {
    match negotiate(&producer, &consumer) {
        Ok(agreement) => Ok(Arc::new(Agreed {
            producer,
            consumer,
            agreement,
        })),
        Err(refusal) => {
            write_json(
                report,
                &json!({ "outcome": "refused", "obstacles": refusal.obstacles }),
            )?;
            Err(refusal.into())
        }
    }
}
