//! A device of this image, as a table for the other.

use std::ffi::{CString, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;
use std::slice;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use moai_memory::{Domain, Job, Region, RegionError, Span, Stream, StreamError, Work};
use slab::Slab;

use super::Held;
use crate::abi;
use crate::guard::guard;
use crate::text::{self, fail};

/// A device as the other side sees it, alive while it is retained or memory of it is.
pub(crate) struct Exported {
    table: abi::Domain,
    _name: CString,
    domain: Arc<dyn Domain>,
}

// SAFETY: the table has addresses of functions, and of this struct itself, which is only looked at.
unsafe impl Send for Exported {}
// SAFETY: as above.
unsafe impl Sync for Exported {}

/// Devices that the other side knows, each by its number.
static KNOWN: Mutex<Vec<(u64, Weak<Exported>)>> = Mutex::new(Vec::new());

impl Exported {
    /// The table of a device; the same one as long as somebody has it.
    pub(crate) fn of(domain: &dyn Domain) -> Arc<Self> {
        Self::named(&domain.kind().to_string(), domain)
    }

    /// The same, which is told of by that name if it is new.
    pub(crate) fn named(name: &str, domain: &dyn Domain) -> Arc<Self> {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, one)| one.strong_count() > 0);
        let id = domain.id();
        let same = known.iter().find(|(other, _)| *other == id);
        if let Some(one) = same.and_then(|(_, one)| one.upgrade()) {
            return one;
        }
        let one = Self::new(name, domain.handle());
        known.push((id, Arc::downgrade(&one)));
        one
    }

    fn new(name: &str, domain: Arc<dyn Domain>) -> Arc<Self> {
        let name = text::c_string(name);
        Arc::new_cyclic(|weak: &Weak<Self>| {
            let table = abi::Domain {
                size: size_of::<abi::Domain>() as u32,
                kind: u32::from(domain.kind().code()),
                name: name.as_ptr(),
                context: weak.as_ptr().cast_mut().cast(),
                retain: Some(retain),
                release: Some(release),
                allocate: Some(allocate),
                import: Some(import),
                open_stream: Some(open_stream),
                close_stream: Some(close_stream),
                submit: Some(submit),
                completed: Some(completed),
                stream_fd: Some(stream_fd),
            };
            Self {
                table,
                _name: name,
                domain,
            }
        })
    }

    pub(crate) fn table(&self) -> *const abi::Domain {
        &raw const self.table
    }
}

unsafe extern "C" fn retain(context: *mut c_void) {
    // SAFETY: a context is what the table has, which is held by whoever has the table.
    unsafe { Arc::increment_strong_count(context.cast_const().cast::<Exported>()) };
}

unsafe extern "C" fn release(context: *mut c_void) {
    // SAFETY: as above, retained by whoever releases it.
    unsafe { Arc::decrement_strong_count(context.cast_const().cast::<Exported>()) };
}

/// # Safety
///
/// What the table has as its context, held meanwhile.
unsafe fn exported<'a>(context: *mut c_void) -> &'a Exported {
    // SAFETY: by contract.
    unsafe { &*context.cast_const().cast::<Exported>() }
}

/// # Safety
///
/// `out` can be written, `error` is as for [`fail`].
unsafe fn give(
    made: Result<Region, RegionError>,
    out: *mut abi::Memory,
    error: *mut abi::Error,
) -> abi::Status {
    match made {
        Ok(region) => {
            let memory = Held::new(&region).give();
            // SAFETY: by contract.
            unsafe { out.write(memory) };
            abi::OK
        }
        Err(refused) => {
            let status = match refused {
                RegionError::OutOfMemory { .. } => abi::E_OUT_OF_MEMORY,
                _ => abi::E_FAILED,
            };
            // SAFETY: by contract.
            unsafe { fail(error, status, &[], &refused.to_string()) }
        }
    }
}

unsafe extern "C" fn allocate(
    context: *mut c_void,
    bytes: u64,
    memory: *mut abi::Memory,
    error: *mut abi::Error,
) -> abi::Status {
    guard(error, || {
        // SAFETY: as the header says.
        let made = unsafe { exported(context) }.domain.allocate(bytes);
        // SAFETY: as the header says.
        unsafe { give(made, memory, error) }
    })
}

unsafe extern "C" fn import(
    context: *mut c_void,
    fd: i32,
    offset: u64,
    bytes: u64,
    writable: u32,
    memory: *mut abi::Memory,
    error: *mut abi::Error,
) -> abi::Status {
    guard(error, || {
        if fd < 0 {
            // SAFETY: as the header says.
            return unsafe { fail(error, abi::E_FAILED, &[], "a negative descriptor") };
        }
        // SAFETY: as the header says it is the caller's, and open.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        let made = match borrowed.try_clone_to_owned() {
            // SAFETY: as the header says.
            Ok(fd) => unsafe { exported(context) }
                .domain
                .import(fd, offset, bytes, writable != 0),
            Err(_) => Err(RegionError::NotMemory),
        };
        // SAFETY: as the header says.
        unsafe { give(made, memory, error) }
    })
}

/// A stream that the other side uses.
struct ExportedStream {
    stream: Box<dyn Stream>,
    /// Whose buffer a job's bytes are of, and its name there.
    jobs: Slab<Theirs>,
    /// Jobs that are kept for their buffers.
    spare: Vec<Job>,
}

struct Theirs {
    name: u64,
    buffer: *mut u8,
}

/// Buffers that a stream keeps.
const KEPT: usize = 64;

unsafe extern "C" fn open_stream(
    context: *mut c_void,
    out: *mut *mut c_void,
    error: *mut abi::Error,
) -> abi::Status {
    guard(error, || {
        // SAFETY: as the header says.
        match unsafe { exported(context) }.domain.stream() {
            Ok(stream) => {
                let stream = Box::new(ExportedStream {
                    stream,
                    jobs: Slab::new(),
                    spare: Vec::new(),
                });
                // SAFETY: as the header says it can be written.
                unsafe { out.write(Box::into_raw(stream).cast()) };
                abi::OK
            }
            // SAFETY: as the header says.
            Err(refused) => unsafe { fail(error, abi::E_FAILED, &[], &refused.to_string()) },
        }
    })
}

unsafe extern "C" fn close_stream(stream: *mut c_void) {
    guard(ptr::null_mut(), || {
        // SAFETY: what `open_stream` has given, used for the last time.
        drop(unsafe { Box::from_raw(stream.cast::<ExportedStream>()) });
        abi::OK
    });
}

/// # Safety
///
/// What `open_stream` has given, used by one thread at a time.
unsafe fn theirs<'a>(stream: *mut c_void) -> &'a mut ExportedStream {
    // SAFETY: by contract.
    unsafe { &mut *stream.cast::<ExportedStream>() }
}

unsafe extern "C" fn submit(
    stream: *mut c_void,
    job: *const abi::Job,
    error: *mut abi::Error,
) -> abi::Status {
    guard(error, || {
        // SAFETY: as the header says.
        let one = unsafe { theirs(stream) };
        // SAFETY: as the header says.
        let job = unsafe { &*job };
        let work = match job.work {
            abi::WORK_TO_HOST => Work::ToHost,
            abi::WORK_FROM_HOST => Work::FromHost,
            // SAFETY: as the header says.
            _ => return unsafe { fail(error, abi::E_FAILED, &[], "work of an unknown kind") },
        };
        let mut ours = one.spare.pop().unwrap_or_else(|| Job {
            name: 0,
            work: Work::ToHost,
            spans: Vec::new(),
            buffer: Vec::new(),
        });
        ours.work = work;
        for at in 0..job.span_count as usize {
            // SAFETY: as the header says there are so many.
            let span = unsafe { &*job.spans.wrapping_add(at) };
            // SAFETY: a handle is of memory that this side has given and the other holds.
            let held = unsafe { &*span.handle.cast_const().cast::<Held>() };
            ours.spans.push(Span {
                hold: held.hold().clone(),
                offset: span.offset,
                bytes: span.bytes,
            });
        }
        ours.buffer.clear();
        if job.work == abi::WORK_FROM_HOST && job.bytes > 0 {
            // SAFETY: as the header says the buffer is the stream's until the completion.
            let bytes = unsafe { slice::from_raw_parts(job.buffer, job.bytes as usize) };
            ours.buffer.extend_from_slice(bytes);
        }
        let entry = one.jobs.vacant_entry();
        ours.name = entry.key() as u64;
        match one.stream.submit(ours) {
            Ok(()) => {
                entry.insert(Theirs {
                    name: job.name,
                    buffer: job.buffer,
                });
                abi::OK
            }
            Err(mut refused) => {
                refused.spans.clear();
                one.spare.push(refused);
                abi::BUSY
            }
        }
    })
}

unsafe extern "C" fn completed(stream: *mut c_void, out: *mut abi::Finished) -> abi::Status {
    guard(ptr::null_mut(), || {
        // SAFETY: as the header says.
        let one = unsafe { theirs(stream) };
        let Some(mut finished) = one.stream.completed() else {
            return abi::NONE;
        };
        let theirs = one.jobs.remove(finished.job.name as usize);
        let job = &mut finished.job;
        if matches!(job.work, Work::ToHost) && finished.outcome.is_ok() && !job.buffer.is_empty() {
            let bytes = job.buffer.len();
            // SAFETY: the buffer is as long as the spans are, as this one is, and the stream's until this call returns.
            unsafe { ptr::copy_nonoverlapping(job.buffer.as_ptr(), theirs.buffer, bytes) };
        }
        let status = match finished.outcome {
            Ok(()) => abi::OK,
            Err(StreamError::Failed) => abi::E_FAILED,
            Err(error) => {
                tracing::warn!(reason = %error, "a job of the other side failed");
                abi::E_FAILED
            }
        };
        let mut job = finished.job;
        job.spans.clear();
        if one.spare.len() < KEPT {
            one.spare.push(job);
        }
        let finished = abi::Finished {
            name: theirs.name,
            status,
            reserved: 0,
        };
        // SAFETY: as the header says it can be written.
        unsafe { out.write(finished) };
        abi::OK
    })
}

unsafe extern "C" fn stream_fd(stream: *mut c_void) -> i32 {
    // SAFETY: as the header says.
    unsafe { theirs(stream) }.stream.as_fd().as_raw_fd()
}
