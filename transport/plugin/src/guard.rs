//! Where panics end.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::abi;
use crate::text::fail;

/// Runs what the other side has called. A panic in it is a failure with what it said: it must not unwind through frames of
/// another language, nor of another image.
pub(crate) fn guard(error: *mut abi::Error, body: impl FnOnce() -> abi::Status) -> abi::Status {
    guarded(body).unwrap_or_else(|said| {
        // SAFETY: NULL or an error of the caller, as the header says.
        unsafe { fail(error, abi::E_FAILED, &[], &format!("panicked: {said}")) }
    })
}

/// The same for what gives no status.
pub(crate) fn guarded<R>(body: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        text.unwrap_or("no text").to_owned()
    })
}
