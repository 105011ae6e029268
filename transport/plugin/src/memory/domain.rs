//! A table of the other side, as a device.

use std::ffi::c_void;
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use moai_memory::{Domain, MemoryKind, Region, RegionError, Stream, StreamError, domain_id};

use super::stream::TableStream;
use super::take;
use crate::abi;
use crate::text::{self, Said};

/// A device that a table stands for. Clones are handles of the same device.
#[derive(Clone)]
pub struct TableDomain(Arc<Table>);

pub(super) struct Table {
    /// Where it was found, which is its name as long as it is retained.
    at: usize,
    id: u64,
    kind: MemoryKind,
    name: String,
    pub(super) raw: abi::Domain,
    pub(super) calls: Calls,
}

// SAFETY: by the rules of the header a domain's functions may be called by any thread, several at once.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

/// The functions, all of them there.
#[derive(Clone, Copy)]
#[allow(clippy::type_complexity)] // As in the header.
pub(super) struct Calls {
    pub(super) allocate:
        unsafe extern "C" fn(*mut c_void, u64, *mut abi::Memory, *mut abi::Error) -> abi::Status,
    pub(super) import: unsafe extern "C" fn(
        *mut c_void,
        i32,
        u64,
        u64,
        u32,
        *mut abi::Memory,
        *mut abi::Error,
    ) -> abi::Status,
    pub(super) open_stream:
        unsafe extern "C" fn(*mut c_void, *mut *mut c_void, *mut abi::Error) -> abi::Status,
    pub(super) close_stream: unsafe extern "C" fn(*mut c_void),
    pub(super) submit:
        unsafe extern "C" fn(*mut c_void, *const abi::Job, *mut abi::Error) -> abi::Status,
    pub(super) completed: unsafe extern "C" fn(*mut c_void, *mut abi::Finished) -> abi::Status,
    pub(super) stream_fd: unsafe extern "C" fn(*mut c_void) -> i32,
}

/// Devices that are known, each by where its table is.
static KNOWN: Mutex<Vec<(usize, Weak<Table>)>> = Mutex::new(Vec::new());

impl TableDomain {
    /// The device of a table; the same one for the same table.
    ///
    /// # Errors
    ///
    /// What is wrong with the table.
    ///
    /// # Safety
    ///
    /// `at` is NULL or points to a table that keeps the rules of the header.
    pub unsafe fn of(at: *const abi::Domain) -> Result<Self, String> {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, table)| table.strong_count() > 0);
        let same = known.iter().find(|(address, _)| *address == at.addr());
        if let Some(table) = same.and_then(|(_, table)| table.upgrade()) {
            return Ok(Self(table));
        }
        // SAFETY: by contract.
        let raw = unsafe { abi::read(at) }
            .map_err(|size| format!("a domain whose table has {size} bytes"))?;
        let missing = |what| {
            format!(
                "a domain without the function {what}, in a table of {} bytes",
                raw.size
            )
        };
        let calls = Calls {
            allocate: raw.allocate.ok_or_else(|| missing("allocate"))?,
            import: raw.import.ok_or_else(|| missing("import"))?,
            open_stream: raw.open_stream.ok_or_else(|| missing("open_stream"))?,
            close_stream: raw.close_stream.ok_or_else(|| missing("close_stream"))?,
            submit: raw.submit.ok_or_else(|| missing("submit"))?,
            completed: raw.completed.ok_or_else(|| missing("completed"))?,
            stream_fd: raw.stream_fd.ok_or_else(|| missing("stream_fd"))?,
        };
        let kind = u8::try_from(raw.kind).ok().and_then(MemoryKind::from_code);
        let kind = kind.filter(|kind| !kind.is_host_accessible());
        let kind = kind.ok_or_else(|| {
            format!(
                "a domain whose memory is of kind {}, which is none of a device",
                raw.kind
            )
        })?;
        // SAFETY: by contract NULL or a text that lives as long as the table.
        let name = unsafe { text::borrowed(raw.name) };
        let name = name.map_or_else(
            || kind.to_string(),
            |name| name.to_string_lossy().into_owned(),
        );
        if let Some(retain) = raw.retain {
            // SAFETY: by contract the device is there during this call.
            unsafe { retain(raw.context) };
        }
        let table = Arc::new(Table {
            at: at.addr(),
            id: domain_id(),
            kind,
            name,
            raw,
            calls,
        });
        known.push((table.at, Arc::downgrade(&table)));
        Ok(Self(table))
    }

    /// What it calls itself.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub(super) fn table(&self) -> &Table {
        &self.0
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn region(
        &self,
        bytes: u64,
        call: impl FnOnce(*mut c_void, *mut abi::Memory, *mut abi::Error) -> abi::Status,
    ) -> Result<Region, RegionError> {
        let refuse = |reason| RegionError::Domain {
            domain: self.0.name.clone(),
            bytes,
            kind: self.0.kind,
            reason,
        };
        let mut said = Said::new();
        let mut memory = std::mem::MaybeUninit::<abi::Memory>::zeroed();
        let status = call(self.0.raw.context, memory.as_mut_ptr(), said.clean());
        match status {
            abi::OK => {}
            abi::E_OUT_OF_MEMORY => {
                let kind = self.0.kind;
                return Err(RegionError::OutOfMemory { bytes, kind });
            }
            status => return Err(refuse(format!("{} (status {status})", said.sentence()))),
        }
        // SAFETY: the domain has just filled it in, and retained the memory for us.
        let region = unsafe { take(memory.as_ptr(), true) }.map_err(refuse)?;
        let hold = region.hold();
        let is_its_own = region.kind() == self.0.kind
            && region.len() == bytes
            && hold.domain().is_some_and(|domain| domain.id() == self.0.id);
        if !is_its_own {
            return Err(refuse(format!(
                "it gave {} bytes of {} memory{}",
                region.len(),
                region.kind(),
                if hold.domain().is_none() {
                    " without a domain"
                } else {
                    ""
                }
            )));
        }
        Ok(region)
    }
}

impl Domain for TableDomain {
    fn id(&self) -> u64 {
        self.0.id
    }

    fn handle(&self) -> Arc<dyn Domain> {
        Arc::new(self.clone())
    }

    fn runs_kernels(&self) -> bool {
        false
    }

    fn kind(&self) -> MemoryKind {
        self.0.kind
    }

    fn allocate(&self, bytes: u64) -> Result<Region, RegionError> {
        let allocate = self.0.calls.allocate;
        self.region(bytes, |context, memory, error| {
            // SAFETY: by the rules of the header, with what it may write to.
            unsafe { allocate(context, bytes, memory, error) }
        })
    }

    fn import(
        &self,
        fd: OwnedFd,
        offset: u64,
        len: u64,
        writable: bool,
    ) -> Result<Region, RegionError> {
        let import = self.0.calls.import;
        let writable = u32::from(writable);
        self.region(len, |context, memory, error| {
            // SAFETY: by the rules of the header; the descriptor is open during the call.
            unsafe {
                import(
                    context,
                    fd.as_raw_fd(),
                    offset,
                    len,
                    writable,
                    memory,
                    error,
                )
            }
        })
    }

    fn stream(&self) -> Result<Box<dyn Stream>, StreamError> {
        Ok(Box::new(TableStream::new(self.clone())?))
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if let Some(release) = self.raw.release {
            // SAFETY: it was retained when the table was read.
            unsafe { release(self.raw.context) };
        }
    }
}

impl fmt::Debug for TableDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableDomain")
            .field("name", &self.0.name)
            .field("id", &self.0.id)
            .finish_non_exhaustive()
    }
}
