//! Why a region could not be had.

use std::io;

use thiserror::Error;

use crate::MemoryKind;

/// A region could not be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RegionError {
    /// The size does not fit this machine's address space, or the system refused it.
    #[error("cannot allocate a region of {bytes} bytes in {kind} memory")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: u64,
        /// Where they were asked for.
        kind: MemoryKind,
    },
    /// The system does not let this process pin so much memory.
    #[error(
        "cannot pin {bytes} bytes: this process may lock {} in all (RLIMIT_MEMLOCK); raise it with \
         `ulimit -l`, for a container with `--ulimit memlock=-1`, or use host memory",
        bytes_or_all(*limit_bytes)
    )]
    LockLimit {
        /// Bytes asked for.
        bytes: u64,
        /// What the process may lock at once; `None` if there is no limit, and the system refused all the same.
        limit_bytes: Option<u64>,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The descriptor offered for import is not memory of a process.
    #[error(
        "cannot import a descriptor that is not memory: only memfds of ordinary pages can be mapped"
    )]
    NotMemory,
    /// The memory offered for import could shrink after it was mapped, and touching it would then kill this process.
    #[error(
        "cannot import memory whose file can still shrink: the exporter must seal it (F_SEAL_SHRINK)"
    )]
    Unsealed,
    /// The memory offered for import does not reach as far as was said.
    #[error("cannot import {len} bytes from {offset} of a file of {file_bytes} bytes")]
    TooShort {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Size of the file.
        file_bytes: u64,
    },
    /// Memory can only be mapped from a page on.
    #[error("cannot import from offset {offset}: it must be a multiple of {page_bytes} bytes")]
    Misaligned {
        /// First byte asked for.
        offset: u64,
        /// This machine's page.
        page_bytes: u64,
    },
    /// Memory of this kind cannot be imported so.
    #[error("cannot import {kind} memory as a region: {instead}")]
    NotImportable {
        /// The kind asked for.
        kind: MemoryKind,
        /// What can be done.
        instead: &'static str,
    },
    /// The domain of a plug-in refused.
    #[error("domain {domain} cannot give {bytes} bytes of {kind} memory: {reason}")]
    Domain {
        /// Its name.
        domain: String,
        /// Bytes asked for.
        bytes: u64,
        /// Where they were asked for.
        kind: MemoryKind,
        /// What it said, or what is wrong with what it gave.
        reason: String,
    },
    /// A system call failed.
    #[error("{call} failed for a region of {bytes} bytes in {kind} memory: {cause}")]
    Os {
        /// The call.
        call: &'static str,
        /// Bytes asked for.
        bytes: u64,
        /// Where they were asked for.
        kind: MemoryKind,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

fn bytes_or_all(limit_bytes: Option<u64>) -> String {
    limit_bytes.map_or_else(
        || "any number of bytes".into(),
        |bytes| format!("{bytes} bytes"),
    )
}
