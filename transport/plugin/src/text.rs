//! Texts and errors, in the form in which they cross.

use std::ffi::{CStr, CString, c_char};
use std::ptr;

use crate::abi;

/// Longest text that is taken from the other side, in bytes.
pub(crate) const MAX_TEXT_BYTES: usize = 1 << 16;

/// Room for a sentence and numbers, to be filled in by the other side.
#[derive(Debug)]
pub(crate) struct Said {
    error: abi::Error,
    room: Box<[u8; ROOM]>,
}

const ROOM: usize = 512;

// SAFETY: the pointer is to the room, which is its own.
unsafe impl Send for Said {}

impl Said {
    pub(crate) fn new() -> Self {
        let mut room = Box::new([0; ROOM]);
        let text = abi::Text {
            data: room.as_mut_ptr().cast(),
            capacity: ROOM as u64,
            length: 0,
        };
        let error = abi::Error {
            size: size_of::<abi::Error>() as u32,
            reserved: 0,
            detail: [0; 6],
            text,
        };
        Self { error, room }
    }

    /// Empty again, for one call.
    pub(crate) fn clean(&mut self) -> *mut abi::Error {
        self.error.detail = [0; 6];
        self.error.text = abi::Text {
            data: self.room.as_mut_ptr().cast(),
            capacity: ROOM as u64,
            length: 0,
        };
        &raw mut self.error
    }

    pub(crate) fn detail(&self) -> [u64; 6] {
        self.error.detail
    }

    /// What was said, however long it claims to be.
    pub(crate) fn sentence(&self) -> String {
        let length = self.error.text.length.min(ROOM as u64) as usize;
        String::from_utf8_lossy(&self.room[..length]).into_owned()
    }
}

/// Writes `text` as far as there is room; whether all of it was.
///
/// # Safety
///
/// `to` is NULL, or points to a text whose data has room for its capacity.
pub(crate) unsafe fn write(to: *mut abi::Text, text: &str) -> bool {
    // SAFETY: by contract.
    let Some(to) = (unsafe { to.as_mut() }) else {
        return true;
    };
    to.length = text.len() as u64;
    let bytes = to.capacity.min(to.length) as usize;
    if !to.data.is_null() {
        // SAFETY: there is room for so many by contract, and the text is as long.
        unsafe { ptr::copy_nonoverlapping(text.as_ptr().cast(), to.data, bytes) };
    }
    bytes == text.len()
}

/// Fills in an error. Returns the status.
///
/// # Safety
///
/// `to` is NULL or points to an error whose text is as for [`write`].
pub(crate) unsafe fn fail(
    to: *mut abi::Error,
    status: abi::Status,
    detail: &[u64],
    text: &str,
) -> abi::Status {
    // SAFETY: by contract.
    if let Some(to) = unsafe { to.as_mut() } {
        to.detail[..detail.len()].copy_from_slice(detail);
        // SAFETY: as the caller's.
        unsafe { write(&raw mut to.text, text) };
    }
    status
}

/// Lets the other side write a text, with more room if it asks for some.
///
/// # Errors
///
/// What is wrong with its answer, or the status that it gave.
pub(crate) fn ask(
    mut call: impl FnMut(*mut abi::Text) -> abi::Status,
) -> Result<(abi::Status, String), String> {
    let mut room = vec![0_u8; 512];
    loop {
        let mut text = abi::Text {
            data: room.as_mut_ptr().cast(),
            capacity: room.len() as u64,
            length: 0,
        };
        let status = call(&raw mut text);
        let length = usize::try_from(text.length).unwrap_or(usize::MAX);
        if length > MAX_TEXT_BYTES {
            return Err(format!(
                "a text of {length} bytes, more than {MAX_TEXT_BYTES}"
            ));
        }
        if length > room.len() {
            if status != abi::E_BUFFER {
                return Err(format!(
                    "a text of {length} bytes where there was room for {}, and status {status} instead of {}",
                    room.len(),
                    abi::E_BUFFER
                ));
            }
            room.resize(length, 0);
            continue;
        }
        room.truncate(length);
        let text = String::from_utf8(room).map_err(|_| "a text that is not UTF-8".to_owned())?;
        return Ok((status, text));
    }
}

/// A text of the other side; `None` for NULL.
///
/// # Safety
///
/// NULL, or ends with a NUL and lives as long as the result is used.
pub(crate) unsafe fn borrowed<'a>(text: *const c_char) -> Option<&'a CStr> {
    if text.is_null() {
        return None;
    }
    // SAFETY: by contract.
    Some(unsafe { CStr::from_ptr(text) })
}

/// As C has it; what follows a NUL is cut off.
pub(crate) fn c_string(text: &str) -> CString {
    let text = text.split('\0').next().unwrap_or_default();
    CString::new(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_needs_more_room_gets_it_and_a_wrong_length_is_named() {
        let long = "x".repeat(5000);
        let asked = ask(|to| {
            // SAFETY: a text with room for what it says.
            if unsafe { write(to, &long) } {
                abi::OK
            } else {
                abi::E_BUFFER
            }
        });
        assert_eq!(asked, Ok((abi::OK, long)));
        let claims = |length, status| {
            ask(move |to| {
                // SAFETY: it points to a text.
                unsafe { (*to).length = length };
                status
            })
        };
        assert!(
            claims(u64::MAX, abi::E_BUFFER)
                .unwrap_err()
                .contains("65536")
        );
        assert!(claims(600, abi::OK).unwrap_err().contains("room for 512"));
    }

    #[test]
    fn what_is_said_of_an_error_is_cut_where_the_room_ends() {
        let mut said = Said::new();
        let long = "y".repeat(1000);
        // SAFETY: it has room for what it says.
        unsafe { fail(said.clean(), abi::E_FAILED, &[7, 8], &long) };
        assert_eq!(said.detail()[..3], [7, 8, 0]);
        assert_eq!(said.sentence(), long[..ROOM]);
        said.clean();
        assert_eq!(said.sentence(), "");
    }
}
