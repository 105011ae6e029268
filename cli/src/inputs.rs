//! What commands work on: two descriptions, from files or seeded.

use std::{path::Path, sync::Arc};

use moai_fabric::{
    collectives::{descriptor::Descriptor, execute::Requested, request::Request},
    files, synthetic,
};
use serde_json::json;

use crate::failure::{Failure, write_json};

/// A side, and what of it is to be moved.
pub(crate) type Side = (Descriptor, Request);

/// Reads both descriptions.
pub(crate) fn read(producer: &Path, consumer: &Path) -> Result<[Side; 2], Failure> {
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
) -> Result<[Side; 2], Failure> {
    match (producer, consumer) {
        (Some(producer), Some(consumer)) => read(producer, consumer),
        _ => Ok(synthetic::sides(tokens, seed)?),
    }
}

/// Negotiates; a refusal also goes into the report that was asked for.
pub(crate) fn agree(
    [producer, consumer]: [Side; 2],
    report: Option<&Path>,
) -> Result<Arc<Requested>, Failure> {
    match Requested::agree(producer, consumer) {
        Ok(requested) => Ok(Arc::new(requested)),
        Err(refusal) => {
            write_json(
                report,
                &json!({ "outcome": "refused", "obstacles": refusal.obstacles }),
            )?;
            Err(refusal.into())
        }
    }
}
