//! The header in Rust: `include/moai_provider.h` says what each thing means, and a test compares the two.
//!
//! Functions are `Option`s, so that one that is NULL is found when a table is read.
#![allow(missing_docs)] // The header documents them.
#![allow(clippy::exhaustive_structs)] // They are what they are in C.

use std::ffi::{c_char, c_void};

pub const MAJOR: u16 = 1;
pub const MINOR: u16 = 0;

/// The symbol that a plug-in exports.
pub const ENTRY: &str = "moai_provider_v1";

pub type Status = i32;
pub const OK: Status = 0;
pub const IN_FLIGHT: Status = 1;
pub const BUSY: Status = 2;
pub const NONE: Status = 3;
pub const E_NO_SUCH_PEER: Status = -1;
pub const E_FINISHING: Status = -2;
pub const E_TOO_LARGE: Status = -3;
pub const E_TOO_MANY_PEERS: Status = -4;
pub const E_TOO_MANY_REGISTRATIONS: Status = -5;
pub const E_TOO_MANY_IMPORTS: Status = -6;
pub const E_NOT_REGISTERED: Status = -7;
pub const E_NOT_LENT: Status = -8;
pub const E_NOT_IMPORTED: Status = -9;
pub const E_KEY: Status = -10;
pub const E_REFUSED: Status = -11;
pub const E_PIECES: Status = -12;
pub const E_UNEQUAL: Status = -13;
pub const E_UNSUPPORTED: Status = -14;
pub const E_UNREACHABLE: Status = -15;
pub const E_UNADVERTISED: Status = -16;
pub const E_ELSEWHERE: Status = -17;
pub const E_OBSTACLE: Status = -18;
pub const E_SYSTEM: Status = -19;
pub const E_OUT_OF_MEMORY: Status = -20;
pub const E_REJECTED: Status = -21;
pub const E_BUFFER: Status = -22;
pub const E_FAILED: Status = -23;

pub const PIECES_EMPTY: u64 = 1;
pub const PIECES_OVERLAP: u64 = 2;
pub const PIECES_OUT_OF_BOUNDS: u64 = 3;
pub const PIECES_TOO_LARGE: u64 = 4;

pub const MEMORY_WRITABLE: u32 = 1;

pub const ENDED_WELL: u32 = 0;
pub const ENDED_PEER_LOST: u32 = 1;
pub const ENDED_REFUSED: u32 = 2;
pub const ENDED_COPY: u32 = 3;
pub const ENDED_ACCESS: u32 = 4;

pub const CLOSED_BY_PEER: u32 = 1;
pub const CLOSED_TRUNCATED: u32 = 2;
pub const CLOSED_REJECTED: u32 = 3;
pub const CLOSED_IO: u32 = 4;
pub const CLOSED_IDLE: u32 = 5;
pub const CLOSED_BY_US: u32 = 6;
pub const CLOSED_OTHER: u32 = 7;

pub const IDENTITY_NONE: u32 = 0;
pub const IDENTITY_SHARED_KEY: u32 = 1;
pub const IDENTITY_CERTIFIED: u32 = 2;

pub const WORK_TO_HOST: u32 = 1;
pub const WORK_FROM_HOST: u32 = 2;

pub const LOG_ERROR: u32 = 1;
pub const LOG_WARN: u32 = 2;
pub const LOG_DEBUG: u32 = 3;

pub type Peer = u64;
pub type RegistrationNumber = u64;

#[repr(C)]
#[derive(Debug)]
pub struct Text {
    pub data: *mut c_char,
    pub capacity: u64,
    pub length: u64,
}

#[repr(C)]
#[derive(Debug)]
pub struct Error {
    pub size: u32,
    pub reserved: u32,
    pub detail: [u64; 6],
    pub text: Text,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub size: u32,
    pub kind: u32,
    pub flags: u32,
    pub fd: i32,
    pub fd_offset: u64,
    pub bytes: u64,
    pub address: *mut c_void,
    pub handle: *mut c_void,
    pub retain: Option<unsafe extern "C" fn(*mut c_void)>,
    pub release: Option<unsafe extern "C" fn(*mut c_void)>,
    pub domain: *const Domain,
}

#[repr(C)]
#[derive(Debug)]
pub struct Regions {
    pub size: u32,
    pub stride: u32,
    pub version: u64,
    pub count: u64,
    pub at: *const Memory,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Pieces {
    pub region: u32,
    pub bytes: u32,
    pub count: u32,
    pub reserved: u32,
    pub stride: u64,
    pub offsets: *const u64,
    pub offset_count: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    pub id: u64,
    pub bytes: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Piece {
    pub region: u32,
    pub bytes: u32,
    pub offset: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Completion {
    pub token: u64,
    pub peer: Peer,
    pub outcome: u32,
    pub code: i32,
}

#[repr(C)]
#[derive(Debug)]
pub struct Closed {
    pub size: u32,
    pub reason: u32,
    pub detail: [u64; 2],
    pub text: *const c_char,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Handler {
    pub size: u32,
    pub reserved: u32,
    pub context: *mut c_void,
    pub connected: Option<unsafe extern "C" fn(*mut c_void, Peer, u32)>,
    pub message:
        Option<unsafe extern "C" fn(*mut c_void, Peer, *const u8, u64, *mut Text) -> Status>,
    pub landing: Option<
        unsafe extern "C" fn(*mut c_void, Peer, *const Batch, *mut u32, *mut Text) -> Status,
    >,
    #[allow(clippy::type_complexity)] // As in the header.
    pub pieces: Option<
        unsafe extern "C" fn(
            *mut c_void,
            Peer,
            *const Batch,
            u32,
            *mut Piece,
            u64,
            *mut u64,
            *mut Text,
        ) -> Status,
    >,
    pub regions: Option<unsafe extern "C" fn(*mut c_void) -> *const Regions>,
    pub landed: Option<
        unsafe extern "C" fn(*mut c_void, Peer, *const Batch, *const u8, *mut Text) -> Status,
    >,
    pub writable: Option<unsafe extern "C" fn(*mut c_void, Peer)>,
    pub closed: Option<unsafe extern "C" fn(*mut c_void, Peer, *const Closed)>,
}

#[repr(C)]
#[derive(Debug)]
pub struct Fill {
    pub context: *mut c_void,
    pub fill: Option<unsafe extern "C" fn(*mut c_void, *mut u8, u64) -> Status>,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    pub size: u32,
    pub one_sided: u8,
    pub encrypted: u8,
    pub reserved: [u8; 2],
    pub max_message: u32,
    pub max_batch: u32,
    pub max_operation: u64,
    pub lanes: u32,
    pub reserved2: u32,
    pub reach: [[u8; 16]; 4],
}

#[repr(C)]
#[derive(Debug)]
pub struct Options {
    pub size: u32,
    pub listens: u32,
    pub bind: *const c_char,
    pub advertise: *const c_char,
}

#[repr(C)]
#[derive(Debug)]
pub struct Path {
    pub size: u32,
    pub is_fallback: u32,
    pub local: Text,
    pub peer: Text,
    pub why: Text,
}

/// Makes the counters and both ways between them and [`moai_transport::Stats`], in the order of the header.
macro_rules! stats {
    ($($field:ident)*) => {
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default)]
        pub struct Stats {
            pub size: u32,
            pub reserved: u32,
            $(pub $field: u64,)*
        }

        impl Stats {
            pub fn read(&self) -> moai_transport::Stats {
                let mut stats = moai_transport::Stats::default();
                $(stats.$field = self.$field;)*
                stats
            }

            pub fn write(&mut self, stats: &moai_transport::Stats) {
                $(self.$field = stats.$field;)*
            }
        }
    };
}

stats! {
    bytes_in bytes_out messages_in messages_out batches_in batches_out
    direct_pieces direct_bytes staged_bytes copied_bytes
    puts gets put_bytes got_bytes puts_in gets_in faults refused mapped_bytes fallbacks busy
    reads writes waits connected accepted rejected authenticated distrusted closed
}

type Transfer = unsafe extern "C" fn(
    *mut c_void,
    *const Regions,
    Peer,
    *const Pieces,
    u64,
    *const Pieces,
    u64,
    u64,
    *mut Error,
) -> Status;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(clippy::type_complexity)] // As in the header.
pub struct Transport {
    pub size: u32,
    pub reserved: u32,
    pub name: *const c_char,
    pub context: *mut c_void,
    pub probe: Option<unsafe extern "C" fn(*mut c_void, *mut Text, *mut Error) -> Status>,
    pub obstacle: Option<unsafe extern "C" fn(*mut c_void, *const c_char, *mut Error) -> Status>,
    pub open: Option<
        unsafe extern "C" fn(
            *mut c_void,
            *const Options,
            *mut *mut c_void,
            *mut Capabilities,
            *mut Error,
        ) -> Status,
    >,
    pub destroy: Option<unsafe extern "C" fn(*mut c_void)>,
    pub addresses: Option<unsafe extern "C" fn(*mut c_void, *mut Text) -> Status>,
    pub connect:
        Option<unsafe extern "C" fn(*mut c_void, *const c_char, *mut Peer, *mut Error) -> Status>,
    pub send: Option<unsafe extern "C" fn(*mut c_void, Peer, *const u8, u64, *mut Error) -> Status>,
    pub post: Option<
        unsafe extern "C" fn(*mut c_void, Peer, *const Batch, *const Fill, *mut Error) -> Status,
    >,
    pub register_memory: Option<
        unsafe extern "C" fn(
            *mut c_void,
            u32,
            *const Memory,
            u32,
            *mut RegistrationNumber,
            *mut Error,
        ) -> Status,
    >,
    pub deregister:
        Option<unsafe extern "C" fn(*mut c_void, RegistrationNumber, *mut Error) -> Status>,
    pub remote_key: Option<
        unsafe extern "C" fn(*mut c_void, Peer, RegistrationNumber, *mut u8, *mut Error) -> Status,
    >,
    pub import_key: Option<
        unsafe extern "C" fn(*mut c_void, Peer, *const u8, u64, *mut u32, *mut Error) -> Status,
    >,
    pub put: Option<Transfer>,
    pub get: Option<Transfer>,
    pub map:
        Option<unsafe extern "C" fn(*mut c_void, Peer, u32, *mut Memory, *mut Error) -> Status>,
    pub flush: Option<unsafe extern "C" fn(*mut c_void, Peer, u64, *mut Error) -> Status>,
    pub completion: Option<unsafe extern "C" fn(*mut c_void, *mut Completion) -> Status>,
    pub poll: Option<unsafe extern "C" fn(*mut c_void, i64, *const Handler, *mut Error) -> Status>,
    pub wait_fd: Option<unsafe extern "C" fn(*mut c_void) -> i32>,
    pub arm: Option<unsafe extern "C" fn(*mut c_void) -> i64>,
    pub close: Option<unsafe extern "C" fn(*mut c_void, Peer)>,
    pub finish: Option<unsafe extern "C" fn(*mut c_void, Peer)>,
    pub path: Option<unsafe extern "C" fn(*mut c_void, Peer, *mut Path) -> Status>,
    pub identity: Option<unsafe extern "C" fn(*mut c_void, Peer, *mut u32, *mut Text) -> Status>,
    pub stats: Option<unsafe extern "C" fn(*mut c_void, *mut Stats)>,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub handle: *mut c_void,
    pub offset: u64,
    pub bytes: u64,
}

#[repr(C)]
#[derive(Debug)]
pub struct Job {
    pub size: u32,
    pub work: u32,
    pub name: u64,
    pub spans: *const Span,
    pub span_count: u64,
    pub buffer: *mut u8,
    pub bytes: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Finished {
    pub name: u64,
    pub status: Status,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(clippy::type_complexity)] // As in the header.
pub struct Domain {
    pub size: u32,
    pub kind: u32,
    pub name: *const c_char,
    pub context: *mut c_void,
    pub retain: Option<unsafe extern "C" fn(*mut c_void)>,
    pub release: Option<unsafe extern "C" fn(*mut c_void)>,
    pub allocate: Option<unsafe extern "C" fn(*mut c_void, u64, *mut Memory, *mut Error) -> Status>,
    pub import: Option<
        unsafe extern "C" fn(*mut c_void, i32, u64, u64, u32, *mut Memory, *mut Error) -> Status,
    >,
    pub open_stream:
        Option<unsafe extern "C" fn(*mut c_void, *mut *mut c_void, *mut Error) -> Status>,
    pub close_stream: Option<unsafe extern "C" fn(*mut c_void)>,
    pub submit: Option<unsafe extern "C" fn(*mut c_void, *const Job, *mut Error) -> Status>,
    pub completed: Option<unsafe extern "C" fn(*mut c_void, *mut Finished) -> Status>,
    pub stream_fd: Option<unsafe extern "C" fn(*mut c_void) -> i32>,
}

#[repr(C)]
#[derive(Debug)]
pub struct Host {
    pub size: u32,
    pub major: u16,
    pub minor: u16,
    pub version: *const c_char,
    pub log: Option<unsafe extern "C" fn(u32, *const c_char)>,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Plugin {
    pub size: u32,
    pub major: u16,
    pub minor: u16,
    pub name: *const c_char,
    pub version: *const c_char,
    pub transports: *const *const Transport,
    pub transport_count: u64,
    pub domains: *const *const Domain,
    pub domain_count: u64,
}

/// A struct that begins with its size and may grow, and may be all zeros.
///
/// # Safety
///
/// `#[repr(C)]`, its first field is a `u32` size, and every pattern of zero bytes at its end is a value.
pub unsafe trait Sized32: Copy {}

// SAFETY: size first; integers, pointers and optional functions.
unsafe impl Sized32 for Memory {}
// SAFETY: size first; integers, pointers and optional functions.
unsafe impl Sized32 for Handler {}
// SAFETY: size first; integers, pointers and optional functions.
unsafe impl Sized32 for Transport {}
// SAFETY: size first; integers, pointers and optional functions.
unsafe impl Sized32 for Domain {}
// SAFETY: size first; integers, pointers and optional functions.
unsafe impl Sized32 for Plugin {}

/// Reads a struct of another version: what it has not is zero, what we do not know is left out. The size that it says
/// is returned in any case, for whoever tells how much is needed.
///
/// # Safety
///
/// `at` is NULL or points to a `u32` and to as many readable bytes as that says, of the same struct.
pub unsafe fn read<T: Sized32>(at: *const T) -> Result<T, u32> {
    if at.is_null() {
        return Err(0);
    }
    // SAFETY: by contract it begins with its size.
    let size = unsafe { at.cast::<u32>().read() };
    if (size as usize) < size_of::<u32>() {
        return Err(size);
    }
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    let bytes = (size as usize).min(size_of::<T>());
    // SAFETY: so many bytes are readable by contract, and fit.
    unsafe {
        std::ptr::copy_nonoverlapping(at.cast::<u8>(), value.as_mut_ptr().cast::<u8>(), bytes);
    }
    // SAFETY: zeros, or what the other side has of the same struct.
    Ok(unsafe { value.assume_init() })
}
