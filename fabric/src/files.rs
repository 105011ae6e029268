//! Descriptions and pools in files.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use moai_collectives::{
    descriptor::{Descriptor, DescriptorError, RankShard},
    execute::Pool,
    limits,
    request::Request,
};
use moai_memory::{MemoryKind, Region, RegionError};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use thiserror::Error;

/// A file could not be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FileError {
    /// The system refused.
    #[error("cannot {call} {}: {cause}", path.display())]
    Os {
        /// What was tried.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: std::io::Error,
    },
    /// The description does not describe a cache.
    #[error("{}: {cause}", path.display())]
    Description {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        cause: DescriptorError,
    },
    /// The pool is not what the description says.
    #[error("{}: {problem}", path.display())]
    Pool {
        /// The file.
        path: PathBuf,
        /// What is wrong, with both values.
        problem: String,
    },
    /// Memory for a pool could not be had.
    #[error(transparent)]
    Memory(#[from] RegionError),
}

/// Reads and checks a description.
///
/// # Errors
///
/// [`FileError`] if the file cannot be read, or does not describe a cache with a request.
pub fn read_description(path: &Path) -> Result<(Descriptor, Request), FileError> {
    let os = |call| {
        let path = path.to_owned();
        move |cause| FileError::Os { call, path, cause }
    };
    let bytes = fs::metadata(path).map_err(os("read"))?.len();
    if bytes > limits::MAX_DESCRIPTION_BYTES {
        let cause = std::io::Error::other(format!(
            "{bytes} bytes, more than {}",
            limits::MAX_DESCRIPTION_BYTES
        ));
        return Err(os("read")(cause));
    }
    let text = fs::read_to_string(path).map_err(os("read"))?;
    Request::read(&text).map_err(|cause| FileError::Description {
        path: path.to_owned(),
        cause,
    })
}

/// Where a rank's pool file is: beside the description.
///
/// # Errors
///
/// [`FileError::Pool`] if the rank names no file, or one outside of the description's folder.
pub fn pool_path(description: &Path, rank: &RankShard) -> Result<PathBuf, FileError> {
    let fail = |problem| FileError::Pool {
        path: description.to_owned(),
        problem,
    };
    let Some(file) = &rank.file else {
        return Err(fail(format!(
            "ranks[{}].file is missing; expected the safetensors file with its regions",
            rank.rank
        )));
    };
    let name = Path::new(file);
    // A description may come from elsewhere; what it names stays beside it.
    if name.file_name() != Some(name.as_os_str()) {
        return Err(fail(format!(
            "ranks[{}].file \"{file}\" is not a plain file name",
            rank.rank
        )));
    }
    Ok(description
        .parent()
        .unwrap_or_else(|| Path::new(""))
        .join(name))
}

/// Reads the regions of one rank.
///
/// # Errors
///
/// [`FileError`] if the file cannot be read, is no safetensors file, lacks a region, has one that the
/// description does not know, or one that is too short.
pub fn read_pool(path: &Path, rank: &RankShard) -> Result<Pool, FileError> {
    read_pool_in(MemoryKind::Host, path, rank)
}

/// As [`read_pool`], into memory of a kind; host memory, for one that the processor cannot store to.
///
/// # Errors
///
/// As there.
pub fn read_pool_in(kind: MemoryKind, path: &Path, rank: &RankShard) -> Result<Pool, FileError> {
    let fail = |problem| FileError::Pool {
        path: path.to_owned(),
        problem,
    };
    let bytes = fs::read(path).map_err(|cause| FileError::Os {
        call: "read",
        path: path.to_owned(),
        cause,
    })?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| fail(format!("is no safetensors file: {error}")))?;
    let known = |name: &String| rank.regions.iter().any(|region| region.name == *name);
    if let Some(extra) = file
        .names()
        .into_iter()
        .map(ToString::to_string)
        .find(|name| !known(name))
    {
        let names: Vec<_> = rank.regions.iter().map(|r| r.name.as_str()).collect();
        return Err(fail(format!(
            "has a region {extra}; rank {} has {}",
            rank.rank,
            names.join(", ")
        )));
    }
    let mut pool = Pool::new();
    for region in &rank.regions {
        let Ok(tensor) = file.tensor(&region.name) else {
            return Err(fail(format!(
                "lacks region {} of rank {}",
                region.name, rank.rank
            )));
        };
        if tensor.dtype() != Dtype::U8 || tensor.shape().len() != 1 {
            return Err(fail(format!(
                "region {} is {:?} of shape {:?}; expected one-dimensional U8",
                region.name,
                tensor.dtype(),
                tensor.shape()
            )));
        }
        let data = tensor.data();
        if (data.len() as u64) < region.bytes {
            return Err(fail(format!(
                "region {} has {} bytes; the description of rank {} needs {}",
                region.name,
                data.len(),
                rank.rank,
                region.bytes
            )));
        }
        let mut memory = self::region(kind, data.len() as u64)?;
        memory.as_mut_slice().copy_from_slice(data);
        pool.push(memory);
    }
    Ok(pool)
}

/// Zeroed memory of a kind, or host memory where that is none that the processor can load and store.
pub(crate) fn region(kind: MemoryKind, bytes: u64) -> Result<Region, RegionError> {
    match kind {
        MemoryKind::Shared => Region::shared_zeroed(bytes),
        MemoryKind::Pinned => Region::pinned_zeroed(bytes),
        _ => Region::host_zeroed(bytes),
    }
}

/// Writes the regions of one rank. The file appears whole or not at all.
///
/// # Errors
///
/// [`FileError`] if the file cannot be written.
pub fn write_pool(path: &Path, rank: &RankShard, pool: &[Region]) -> Result<(), FileError> {
    let fail = |problem| FileError::Pool {
        path: path.to_owned(),
        problem,
    };
    let mut tensors = BTreeMap::new();
    for (region, memory) in rank.regions.iter().zip(pool) {
        let bytes = memory.as_slice();
        let view = TensorView::new(Dtype::U8, vec![bytes.len()], bytes)
            .map_err(|e| fail(e.to_string()))?;
        tensors.insert(region.name.clone(), view);
    }
    let part = path.with_extension("part");
    safetensors::serialize_to_file(tensors, None, &part)
        .map_err(|e| fail(format!("cannot be written: {e}")))?;
    fs::rename(&part, path).map_err(|cause| FileError::Os {
        call: "rename to",
        path: path.to_owned(),
        cause,
    })
}

/// Memory for a rank whose regions are not in a file.
///
/// # Errors
///
/// [`FileError::Memory`] if it cannot be had.
pub fn empty_pool(rank: &RankShard) -> Result<Pool, FileError> {
    let regions = rank
        .regions
        .iter()
        .map(|region| Region::host_zeroed(region.bytes));
    Ok(regions.collect::<Result<_, _>>()?)
}
