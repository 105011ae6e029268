//! A provider, as a table.

use std::ffi::{CString, c_char, c_void};

use moai_transport::{Address, Obstacle, Provider};

use super::Make;
use super::interface::{self, Ours};
use crate::errors::{operation_code, tell};
use crate::guard::guard;
use crate::text::{self, fail};
use crate::{Opening, abi};

/// What a table's context is.
struct Context {
    name: &'static str,
    make: Box<Make>,
}

/// The table of a provider under another name, for ever.
pub(super) fn table(name: &'static CString, make: Box<Make>) -> *const abi::Transport {
    let context: &'static Context = Box::leak(Box::new(Context {
        name: name.to_str().unwrap_or_default(),
        make,
    }));
    let table = abi::Transport {
        size: size_of::<abi::Transport>() as u32,
        reserved: 0,
        name: name.as_ptr(),
        context: std::ptr::from_ref(context).cast_mut().cast(),
        probe: Some(probe),
        obstacle: Some(obstacle),
        open: Some(open),
        destroy: Some(interface::destroy),
        addresses: Some(interface::addresses),
        connect: Some(interface::connect),
        send: Some(interface::send),
        post: Some(interface::post),
        register_memory: Some(interface::register_memory),
        deregister: Some(interface::deregister),
        remote_key: Some(interface::remote_key),
        import_key: Some(interface::import_key),
        put: Some(interface::put),
        get: Some(interface::get),
        map: Some(interface::map),
        flush: Some(interface::flush),
        completion: Some(interface::completion),
        poll: Some(interface::poll),
        wait_fd: Some(interface::wait_fd),
        arm: Some(interface::arm),
        close: Some(interface::close),
        finish: Some(interface::finish),
        path: Some(interface::path),
        identity: Some(interface::identity),
        stats: Some(interface::stats),
    };
    Box::leak(Box::new(table))
}

/// The same address by another name of the provider.
pub(super) fn renamed(address: &Address, name: &str) -> Option<Address> {
    Address::new(name, address.location()).ok()
}

/// An address that the host gives, by the provider's own name.
///
/// # Safety
///
/// A text of the host, there during the call.
pub(super) unsafe fn address_of(text: *const c_char, own: &str) -> Option<Address> {
    // SAFETY: by contract.
    let text = unsafe { text::borrowed(text) }?;
    let address: Address = text.to_str().ok()?.parse().ok()?;
    renamed(&address, own)
}

/// # Safety
///
/// The context of a table.
unsafe fn context<'a>(raw: *mut c_void) -> &'a Context {
    // SAFETY: by contract; it is there for ever.
    unsafe { &*raw.cast_const().cast::<Context>() }
}

unsafe extern "C" fn probe(
    raw: *mut c_void,
    sentence: *mut abi::Text,
    error: *mut abi::Error,
) -> abi::Status {
    guard(error, || {
        // SAFETY: as the header says.
        let context = unsafe { context(raw) };
        match (context.make)(&Opening::default()).probe() {
            // SAFETY: as the header says it may be written to.
            Ok(text) if unsafe { text::write(sentence, &text) } => abi::OK,
            Ok(_) => abi::E_BUFFER,
            // SAFETY: as the header says it may be written to.
            Err(reason) => unsafe { fail(error, abi::E_FAILED, &[], &reason) },
        }
    })
}

unsafe extern "C" fn obstacle(
    raw: *mut c_void,
    address: *const c_char,
    error: *mut abi::Error,
) -> abi::Status {
    guard(error, || {
        // SAFETY: as the header says.
        let context = unsafe { context(raw) };
        let provider = (context.make)(&Opening::default());
        // SAFETY: as the header says it is a text.
        let Some(address) = (unsafe { address_of(address, provider.name()) }) else {
            // SAFETY: as the header says it may be written to.
            return unsafe { fail(error, abi::E_OBSTACLE, &[], "it is no address") };
        };
        match provider.obstacle(&address) {
            None => abi::OK,
            Some(obstacle) => {
                let status = match obstacle {
                    Obstacle::Elsewhere(_) => abi::E_ELSEWHERE,
                    Obstacle::Refused(_) => abi::E_OBSTACLE,
                };
                // SAFETY: as the header says it may be written to.
                unsafe { fail(error, status, &[], obstacle.reason()) }
            }
        }
    })
}

unsafe extern "C" fn open(
    raw: *mut c_void,
    options: *const abi::Options,
    out: *mut *mut c_void,
    capabilities: *mut abi::Capabilities,
    error: *mut abi::Error,
) -> abi::Status {
    guard(error, || {
        // SAFETY: as the header says.
        let context = unsafe { context(raw) };
        // SAFETY: as the header says.
        let options = unsafe { &*options };
        let owned = |text: *const c_char| {
            // SAFETY: as the header says NULL or a text.
            let text = unsafe { text::borrowed(text) };
            text.map(|text| text.to_string_lossy().into_owned())
        };
        let provider: Box<dyn Provider> = (context.make)(&Opening {
            listens: options.listens != 0,
            bind: owned(options.bind),
            advertise: owned(options.advertise),
        });
        let interface = match provider.open() {
            Ok(interface) => interface,
            // SAFETY: as the header says it may be written to.
            Err(refused) => return unsafe { tell(error, &refused) },
        };
        let can = interface.capabilities();
        // SAFETY: as the header says it may be written to.
        let raw = unsafe { &mut *capabilities };
        raw.one_sided = can.one_sided.into();
        raw.encrypted = can.encrypted.into();
        raw.max_message = can.max_message;
        raw.max_batch = can.max_batch;
        raw.max_operation = can.max_operation;
        raw.lanes = can.lanes;
        for &(operation, kind, reach) in &can.reach {
            let kinds = operation_code(operation).and_then(|code| raw.reach.get_mut(code));
            let cell = kinds.and_then(|kinds| kinds.get_mut(usize::from(kind.code())));
            if let Some(cell) = cell {
                *cell = (*cell).max(reach as u8);
            }
        }
        let ours = Ours::new(context.name, provider.name(), interface);
        // SAFETY: as the header says it may be written to.
        unsafe { out.write(Box::into_raw(Box::new(ours)).cast()) };
        abi::OK
    })
}
