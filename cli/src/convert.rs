//! `moai convert`: a cache in files, without sockets.

use std::path::Path;

use moai_fabric::{
    collectives::{descriptor::Descriptor, execute, execute::Pool, traffic::traffic},
    files,
};
use serde_json::json;

use crate::{
    args,
    failure::{Failure, show, write_json},
    inputs, picture,
};

pub(crate) fn convert(command: &args::Convert) -> Result<(), Failure> {
    let sides = inputs::read(&command.producer, &command.consumer)?;
    let requested = inputs::agree(sides, command.json.as_deref())?;
    let agreed = requested.agreed();
    let sources = pools(&command.producer, &agreed.producer)?;
    let mut targets = pools(&command.consumer, &agreed.consumer)?;
    make_folder(&command.out)?;
    let start = std::time::Instant::now();
    let counts = execute::convert(&requested, &sources, &mut targets);
    let elapsed = start.elapsed();
    for (rank, pool) in agreed.consumer.ranks.iter().zip(&targets) {
        let path = files::pool_path(&command.consumer, rank)?;
        let name = path.file_name().unwrap_or(path.as_os_str());
        files::write_pool(&command.out.join(name), rank, pool)?;
    }
    let traffic = traffic(&requested);
    let read: u64 = traffic.iter().map(|pair| pair.bytes_read).sum();
    let written: u64 = traffic.iter().map(|pair| pair.bytes_written).sum();
    show(format_args!(
        "converted {} tokens: read {}, wrote {} in {:.3} s ({}); {} saturated, {} NaN\n",
        requested.tokens(),
        picture::bytes(read),
        picture::bytes(written),
        elapsed.as_secs_f64(),
        picture::rate(read + written, elapsed.as_nanos() as u64),
        counts.saturated,
        counts.nan,
    ))?;
    write_json(
        command.json.as_deref(),
        &json!({
            "outcome": "converted",
            "tokens": requested.tokens(),
            "bytes_read": read,
            "bytes_written": written,
            "elapsed_ns": elapsed.as_nanos() as u64,
            "saturated": counts.saturated,
            "nan": counts.nan,
        }),
    )
}

/// The pools of all ranks of a side.
pub(crate) fn pools(description: &Path, side: &Descriptor) -> Result<Vec<Pool>, Failure> {
    let one = |rank| -> Result<Pool, Failure> {
        Ok(files::read_pool(
            &files::pool_path(description, rank)?,
            rank,
        )?)
    };
    side.ranks.iter().map(one).collect()
}

pub(crate) fn make_folder(path: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(path)
        .map_err(|error| Failure::Input(format!("cannot make {}: {error}", path.display())))
}
