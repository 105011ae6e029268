//! An open interface, as functions.
//!
//! Each is called by the rules of the header: on one thread at a time, with what it may look at and write to until it
//! returns.

use std::ffi::{c_char, c_void};
use std::os::fd::AsRawFd;
use std::ptr;
use std::slice;
use std::time::Duration;

use moai_memory::Region;
use moai_transport::key::KEY_BYTES;
use moai_transport::{
    Batch, Error, Identity, Interface, PeerId, Pieces, Posted, RegistrationId, Rights, Token,
};

use super::handler::{HostHandler, peer_number};
use super::lent::Lent;
use super::transport::{address_of, renamed};
use crate::abi;
use crate::errors::{outcome_numbers, tell};
use crate::guard::{guard, guarded};
use crate::memory::{Held, take};
use crate::text::{self, fail};

/// An interface that the host uses.
pub(super) struct Ours {
    /// What the host calls the provider, and what it calls itself.
    name: &'static str,
    own_name: &'static str,
    interface: Box<dyn Interface + Send>,
    lent: Lent,
    pieces: Vec<abi::Piece>,
}

impl Ours {
    pub(super) fn new(
        name: &'static str,
        own_name: &'static str,
        interface: Box<dyn Interface + Send>,
    ) -> Self {
        Self {
            name,
            own_name,
            interface,
            lent: Lent::default(),
            pieces: Vec::new(),
        }
    }
}

/// # Safety
///
/// What `open` has given, used by one call at a time.
unsafe fn ours<'a>(raw: *mut c_void) -> &'a mut Ours {
    // SAFETY: by contract.
    unsafe { &mut *raw.cast::<Ours>() }
}

fn peer_id(number: abi::Peer) -> PeerId {
    PeerId::new(number as u32, (number >> 32) as u32)
}

fn registration_id(number: u64) -> RegistrationId {
    RegistrationId::new(number as u32, (number >> 32) as u32)
}

/// # Safety
///
/// As for [`tell`].
unsafe fn posted(answer: Result<Posted, Error>, error: *mut abi::Error) -> abi::Status {
    match answer {
        Ok(Posted::Done) => abi::OK,
        Ok(Posted::InFlight(_)) => abi::IN_FLIGHT,
        Ok(Posted::Busy) => abi::BUSY,
        // SAFETY: by contract.
        Err(refused) => unsafe { tell(error, &refused) },
    }
}

/// # Safety
///
/// As for [`tell`].
unsafe fn done(answer: Result<(), Error>, error: *mut abi::Error) -> abi::Status {
    match answer {
        Ok(()) => abi::OK,
        // SAFETY: by contract.
        Err(refused) => unsafe { tell(error, &refused) },
    }
}

/// Bytes of the host; none at whatever address.
///
/// # Safety
///
/// There are so many, during the call.
unsafe fn bytes_at<'a>(data: *const u8, bytes: u64) -> &'a [u8] {
    if bytes == 0 {
        return &[];
    }
    // SAFETY: by contract.
    unsafe { slice::from_raw_parts(data, bytes as usize) }
}

pub(super) unsafe extern "C" fn destroy(raw: *mut c_void) {
    // A panic has nowhere to go; whatever it left is left.
    let _ = guarded(|| {
        // SAFETY: what `open` has given, used for the last time.
        drop(unsafe { Box::from_raw(raw.cast::<Ours>()) });
    });
}

pub(super) unsafe extern "C" fn addresses(raw: *mut c_void, out: *mut abi::Text) -> abi::Status {
    guard(ptr::null_mut(), || {
        // SAFETY: as the header says.
        let one = unsafe { ours(raw) };
        let addresses = one.interface.addresses();
        let lines: Vec<_> = addresses
            .iter()
            .filter_map(|address| renamed(address, one.name))
            .map(|address| address.to_string())
            .collect();
        // SAFETY: as the header says.
        if unsafe { text::write(out, &lines.join("\n")) } {
            abi::OK
        } else {
            abi::E_BUFFER
        }
    })
}

pub(super) unsafe extern "C" fn connect(
    raw: *mut c_void,
    address: *const c_char,
    out: *mut abi::Peer,
    error: *mut abi::Error,
) -> abi::Status {
    guard(error, || {
        // SAFETY: as the header says.
        let one = unsafe { ours(raw) };
        // SAFETY: as the header says.
        let Some(address) = (unsafe { address_of(address, one.own_name) }) else {
            // SAFETY: as the header says.
            return unsafe { fail(error, abi::E_UNREACHABLE, &[], "it is no address") };
        };
        match one.interface.connect(&address) {
            Ok(peer) => {
                // SAFETY: as the header says.
                unsafe { out.write(peer_number(peer)) };
                abi::OK
            }
            // SAFETY: as the header says.
            Err(refused) => unsafe { tell(error, &refused) },
        }
    })
}

pub(super) unsafe extern "C" fn send(
    raw: *mut c_void,
    peer: abi::Peer,
    data: *const u8,
    bytes: u64,
    error: *mut abi::Error,
) -> abi::Status {
    guard(error, || {
        // SAFETY: as the header says.
        let message = unsafe { bytes_at(data, bytes) };
        // SAFETY: as the header says.
        let answer = unsafe { ours(raw) }.interface.send(peer_id(peer), message);
        // SAFETY: as the header says.
        unsafe { posted(answer, error) }
    })
}

pub(super) unsafe extern "C" fn post(
    raw: *mut c_void,
    peer: abi::Peer,
    batch: *const abi::Batch,
    fill: *const abi::Fill,
    error: *mut abi::Error,
) -> abi::Status {
    guard(error, || {
        // SAFETY: as the header says.
        let one = unsafe { ours(raw) };
        // SAFETY: as the header says.
        let batch = unsafe { &*batch };
        // SAFETY: as the header says.
        let fill = unsafe { &*fill };
        let Some(function) = fill.fill else {
            // SAFETY: as the header says.
            return unsafe { fail(error, abi::E_FAILED, &[], "nobody fills the batch") };
        };
        let batch = Batch {
            id: batch.id,
            bytes: batch.bytes,
        };
        let answer = one.interface.post(peer_id(peer), batch, &mut |room| {
            // What it says is the host's affair: whoever did not fill it sends what was there.
            // SAFETY: as the header says, with room for the batch.
            unsafe { function(fill.context, room.as_mut_ptr(), room.len() as u64) };
        });
        // SAFETY: as the header says.
        unsafe { posted(answer, error) }
    })
}

pub(super) unsafe extern "C" fn register_memory(
    raw: *mut c_void,
    index: u32,
    memory: *const abi::Memory,
    rights: u32,
    out: *mut abi::RegistrationNumber,
    error: *mut abi::Error,
) -> abi::Status {
    guard(error, || {
        // SAFETY: as the header says.
        let one = unsafe { ours(raw) };
        let Some(rights) = u8::try_from(rights).ok().and_then(Rights::from_bits) else {
            // SAFETY: as the header says.
            return unsafe { fail(error, abi::E_FAILED, &[], "rights of unknown meaning") };
        };
        // SAFETY: as the header says. Its bytes are touched through lent regions alone.
        let region: Region = match unsafe { take(memory, false) } {
            Ok(region) => region,
            // SAFETY: as the header says.
            Err(problem) => return unsafe { fail(error, abi::E_FAILED, &[], &problem) },
        };
        match one.interface.register(index, &region, rights) {
            Ok(id) => {
                let number = u64::from(id.generation()) << 32 | u64::from(id.slot());
                // SAFETY: as the header says.
                unsafe { out.write(number) };
                abi::OK
            }
            // SAFETY: as the header says.
            Err(refused) => unsafe { tell(error, &refused) },
        }
    })
}

pub(super) unsafe extern "C" fn deregister(
    raw: *mut c_void,
    registration: abi::RegistrationNumber,
    error: *mut abi::Error,
) -> abi::Status {
    guard(error, || {
        // SAFETY: as the header says.
        let one = unsafe { ours(raw) };
        let answer = one.interface.deregister(registration_id(registration));
        // SAFETY: as the header says.
        unsafe { done(answer, error) }
    })
}

pub(super) unsafe extern "C" fn remote_key(
    raw: *mut c_void,
    peer: abi::Peer,
    registration: abi::RegistrationNumber,
    key: *mut u8,
    error: *mut abi::Error,
) -> abi::Status {
    guard(error, || {
        // SAFETY: as the header says.
        let one = unsafe { ours(raw) };
        let id = registration_id(registration);
        match one.interface.remote_key(peer_id(peer), id) {
            Ok(bytes) => {
                // SAFETY: as the header says there is room for a key.
                unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), key, KEY_BYTES) };
                abi::OK
            }
            // SAFETY: as the header says.
            Err(refused) => unsafe { tell(error, &refused) },
        }
    })
}

pub(super) unsafe extern "C" fn import_key(
    raw: *mut c_void,
    peer: abi::Peer,
    key: *const u8,
    bytes: u64,
    number: *mut u32,
    error: *mut abi::Error,
) -> abi::Status {
    guard(error, || {
        // SAFETY: as the header says.
        let key = unsafe { bytes_at(key, bytes) };
        // SAFETY: as the header says.
        match unsafe { ours(raw) }.interface.import(peer_id(peer), key) {
            Ok(remote) => {
                // SAFETY: as the header says.
                unsafe { number.write(remote) };
                abi::OK
            }
            // SAFETY: as the header says.
            Err(refused) => unsafe { tell(error, &refused) },
        }
    })
}

/// Lists of one call. As many as most operations have are kept on the stack.
struct Both<'a> {
    few: [Pieces<'a>; FEW],
    many: Vec<Pieces<'a>>,
    local: usize,
    count: usize,
}

const FEW: usize = 32;

const NOTHING: Pieces<'static> = Pieces {
    region: 0,
    bytes: 0,
    count: 0,
    stride: 0,
    offsets: &[],
};

impl<'a> Both<'a> {
    /// # Safety
    ///
    /// There are so many lists, with their offsets, during the call.
    unsafe fn new(lists: [(*const abi::Pieces, u64); 2]) -> Self {
        let [(_, local), (_, remote)] = lists;
        let count = (local + remote) as usize;
        let mut both = Self {
            few: [NOTHING; FEW],
            many: Vec::new(),
            local: local as usize,
            count,
        };
        let mut at = 0;
        for (list, count) in lists {
            for index in 0..count as usize {
                // SAFETY: by contract.
                let raw = unsafe { &*list.wrapping_add(index) };
                let offsets = if raw.offset_count == 0 {
                    &[]
                } else {
                    // SAFETY: by contract.
                    unsafe { slice::from_raw_parts(raw.offsets, raw.offset_count as usize) }
                };
                let pieces = Pieces {
                    region: raw.region,
                    bytes: raw.bytes,
                    count: raw.count,
                    stride: raw.stride,
                    offsets,
                };
                if both.count > FEW {
                    both.many.push(pieces);
                } else {
                    both.few[at] = pieces;
                }
                at += 1;
            }
        }
        both
    }

    fn split(&self) -> (&[Pieces<'a>], &[Pieces<'a>]) {
        let all = if self.count > FEW {
            &self.many[..]
        } else {
            &self.few[..self.count]
        };
        all.split_at(self.local)
    }
}

type Call = fn(
    &mut (dyn Interface + Send),
    &mut [Region],
    PeerId,
    &[Pieces<'_>],
    &[Pieces<'_>],
    Token,
) -> Result<Posted, Error>;

/// # Safety
///
/// As for a put in the header.
#[allow(clippy::too_many_arguments)] // As in the header.
unsafe fn transfer(
    call: Call,
    raw: *mut c_void,
    regions: *const abi::Regions,
    peer: abi::Peer,
    lists: [(*const abi::Pieces, u64); 2],
    token: u64,
    error: *mut abi::Error,
) -> abi::Status {
    guard(error, || {
        // SAFETY: as the header says.
        let one = unsafe { ours(raw) };
        // SAFETY: as the header says.
        let memory = match unsafe { one.lent.look(regions) } {
            Ok(memory) => memory,
            // SAFETY: as the header says.
            Err(problem) => return unsafe { fail(error, abi::E_FAILED, &[], &problem) },
        };
        // SAFETY: as the header says.
        let both = unsafe { Both::new(lists) };
        let (local, remote) = both.split();
        let answer = call(
            &mut *one.interface,
            memory,
            peer_id(peer),
            local,
            remote,
            Token(token),
        );
        // SAFETY: as the header says.
        unsafe { posted(answer, error) }
    })
}

pub(super) unsafe extern "C" fn put(
    raw: *mut c_void,
    regions: *const abi::Regions,
    peer: abi::Peer,
    local: *const abi::Pieces,
    local_count: u64,
    remote: *const abi::Pieces,
    remote_count: u64,
    token: u64,
    error: *mut abi::Error,
) -> abi::Status {
    let lists = [(local, local_count), (remote, remote_count)];
    let call: Call = |interface, memory, peer, local, remote, token| {
        interface.put(memory, peer, local, remote, token)
    };
    // SAFETY: as the header says.
    unsafe { transfer(call, raw, regions, peer, lists, token, error) }
}

pub(super) unsafe extern "C" fn get(
    raw: *mut c_void,
    regions: *const abi::Regions,
    peer: abi::Peer,
    local: *const abi::Pieces,
    local_count: u64,
    remote: *const abi::Pieces,
    remote_count: u64,
    token: u64,
    error: *mut abi::Error,
) -> abi::Status {
    let lists = [(local, local_count), (remote, remote_count)];
    let call: Call = |interface, memory, peer, local, remote, token| {
        interface.get(memory, peer, local, remote, token)
    };
    // SAFETY: as the header says.
    unsafe { transfer(call, raw, regions, peer, lists, token, error) }
}

pub(super) unsafe extern "C" fn map(
    raw: *mut c_void,
    peer: abi::Peer,
    number: u32,
    memory: *mut abi::Memory,
    error: *mut abi::Error,
) -> abi::Status {
    guard(error, || {
        // SAFETY: as the header says.
        match unsafe { ours(raw) }.interface.map(peer_id(peer), number) {
            Ok(region) => {
                let given = Held::new(&region).give();
                // SAFETY: as the header says.
                unsafe { memory.write(given) };
                abi::OK
            }
            // SAFETY: as the header says.
            Err(refused) => unsafe { tell(error, &refused) },
        }
    })
}

pub(super) unsafe extern "C" fn flush(
    raw: *mut c_void,
    peer: abi::Peer,
    token: u64,
    error: *mut abi::Error,
) -> abi::Status {
    guard(error, || {
        // SAFETY: as the header says.
        let one = unsafe { ours(raw) };
        let answer = one.interface.flush(peer_id(peer), Token(token));
        // SAFETY: as the header says.
        unsafe { posted(answer, error) }
    })
}

pub(super) unsafe extern "C" fn completion(
    raw: *mut c_void,
    out: *mut abi::Completion,
) -> abi::Status {
    guard(ptr::null_mut(), || {
        // SAFETY: as the header says.
        let Some(ended) = (unsafe { ours(raw) }).interface.completion() else {
            return abi::NONE;
        };
        let (outcome, code) = outcome_numbers(ended.outcome);
        let completion = abi::Completion {
            token: ended.token.0,
            peer: peer_number(ended.peer),
            outcome,
            code,
        };
        // SAFETY: as the header says.
        unsafe { out.write(completion) };
        abi::OK
    })
}

pub(super) unsafe extern "C" fn poll(
    raw: *mut c_void,
    timeout_ns: i64,
    handler: *const abi::Handler,
    error: *mut abi::Error,
) -> abi::Status {
    guard(error, || {
        // SAFETY: as the header says.
        let one = unsafe { ours(raw) };
        // SAFETY: as the header says.
        let handler = unsafe { abi::read(handler) };
        let Some(handler) = handler.ok().filter(HostHandler::is_whole) else {
            // SAFETY: as the header says.
            return unsafe { fail(error, abi::E_FAILED, &[], "the handler lacks functions") };
        };
        let mut handler = HostHandler {
            raw: handler,
            lent: &mut one.lent,
            pieces: &mut one.pieces,
        };
        let timeout = u64::try_from(timeout_ns).ok().map(Duration::from_nanos);
        let answer = one.interface.poll(timeout, &mut handler);
        // SAFETY: as the header says.
        unsafe { done(answer, error) }
    })
}

pub(super) unsafe extern "C" fn wait_fd(raw: *mut c_void) -> i32 {
    // SAFETY: as the header says.
    guarded(|| unsafe { ours(raw) }.interface.as_fd().as_raw_fd()).unwrap_or(-1)
}

pub(super) unsafe extern "C" fn arm(raw: *mut c_void) -> i64 {
    // SAFETY: as the header says.
    let limit = guarded(|| unsafe { ours(raw) }.interface.arm());
    // After a panic the next poll is what tells.
    let limit = limit.unwrap_or(Some(Duration::ZERO));
    limit.map_or(-1, |limit| {
        i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX)
    })
}

pub(super) unsafe extern "C" fn close(raw: *mut c_void, peer: abi::Peer) {
    // SAFETY: as the header says.
    let closed = guarded(|| unsafe { ours(raw) }.interface.close(peer_id(peer)));
    if let Err(reason) = closed {
        tracing::error!(reason, "closing a connection panicked");
    }
}

pub(super) unsafe extern "C" fn finish(raw: *mut c_void, peer: abi::Peer) {
    // SAFETY: as the header says.
    let finished = guarded(|| unsafe { ours(raw) }.interface.finish(peer_id(peer)));
    if let Err(reason) = finished {
        tracing::error!(reason, "finishing a connection panicked");
    }
}

pub(super) unsafe extern "C" fn path(
    raw: *mut c_void,
    peer: abi::Peer,
    out: *mut abi::Path,
) -> abi::Status {
    guard(ptr::null_mut(), || {
        // SAFETY: as the header says.
        let one = unsafe { ours(raw) };
        let Some(path) = one.interface.path(peer_id(peer)) else {
            return abi::NONE;
        };
        let local = path.local.and_then(|address| renamed(&address, one.name));
        let local = local.map_or_else(String::new, |address| address.to_string());
        let remote = renamed(&path.peer, one.name);
        let remote = remote.map_or_else(String::new, |address| address.to_string());
        // SAFETY: as the header says.
        let out = unsafe { &mut *out };
        out.is_fallback = path.is_fallback.into();
        for (to, text) in [
            (&raw mut out.local, &local),
            (&raw mut out.peer, &remote),
            (&raw mut out.why, &path.why),
        ] {
            // SAFETY: as the header says; a sentence that is too long is cut off.
            unsafe { text::write(to, text) };
        }
        abi::OK
    })
}

pub(super) unsafe extern "C" fn identity(
    raw: *mut c_void,
    peer: abi::Peer,
    kind: *mut u32,
    names: *mut abi::Text,
) -> abi::Status {
    guard(ptr::null_mut(), || {
        // SAFETY: as the header says.
        let identity = unsafe { ours(raw) }.interface.identity(peer_id(peer));
        let (number, lines) = match &identity {
            Some(Identity::Certified(of)) => {
                let lines: Vec<_> = of.iter().map(ToString::to_string).collect();
                (abi::IDENTITY_CERTIFIED, lines.join("\n"))
            }
            Some(Identity::SharedKey) => (abi::IDENTITY_SHARED_KEY, String::new()),
            _ => (abi::IDENTITY_NONE, String::new()),
        };
        // SAFETY: as the header says.
        unsafe { kind.write(number) };
        // SAFETY: as the header says.
        if unsafe { text::write(names, &lines) } {
            abi::OK
        } else {
            abi::E_BUFFER
        }
    })
}

pub(super) unsafe extern "C" fn stats(raw: *mut c_void, out: *mut abi::Stats) {
    // SAFETY: as the header says.
    let stats = guarded(|| unsafe { ours(raw) }.interface.stats());
    let Ok(stats) = stats else {
        return;
    };
    // SAFETY: as the header says it begins with its size.
    let size = unsafe { (*out).size } as usize;
    let mut all = abi::Stats {
        size: size as u32,
        ..abi::Stats::default()
    };
    all.write(&stats);
    let bytes = size.min(size_of::<abi::Stats>());
    let from = (&raw const all).cast::<u8>();
    // SAFETY: as the header says it has room for what its size says.
    unsafe { ptr::copy_nonoverlapping(from, out.cast::<u8>(), bytes) };
}
