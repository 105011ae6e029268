//! Texts that go out, and come back to be freed.

use std::{
    collections::HashMap,
    ffi::{CString, c_char},
    sync::{LazyLock, Mutex, PoisonError},
};

use crate::{
    arguments::{Out, Place},
    failure::{Failure, Status, c_text, call},
};

/// `char *`, of whom the caller says that the library gave it out.
pub(crate) type Given = *mut c_char;

/// Those that callers have, by address.
static GIVEN: LazyLock<Mutex<HashMap<usize, CString>>> = LazyLock::new(Mutex::default);

impl Place<Given> {
    /// Gives a text out. What is written is a pointer into a buffer that is kept until it comes back.
    pub(crate) fn give(self, text: impl Into<Vec<u8>>) {
        let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
        let text = c_text(text);
        let pointer = text.as_ptr().cast_mut();
        given.insert(pointer.addr(), text);
        self.write(pointer);
    }
}

impl Out<Given> {
    pub(crate) fn text(self, field: &str) -> Result<Place<Given>, Failure> {
        self.place(field)
    }
}

/// Allowed in callbacks, too: it runs nobody's code.
#[unsafe(no_mangle)]
extern "C" fn moai_text_free(text: Given) -> crate::failure::Code {
    if text.is_null() {
        return Status::Ok as crate::failure::Code;
    }
    let freed = { GIVEN.lock().unwrap_or_else(PoisonError::into_inner) }.remove(&text.addr());
    match freed {
        Some(_) => Status::Ok as crate::failure::Code,
        None => call(|| {
            let why = "was not given out by this library, or is freed already";
            Err(Failure::new(Status::Handle, why).at("text"))
        }),
    }
}
