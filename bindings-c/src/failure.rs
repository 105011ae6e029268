//! Statuses, and the last failure of each thread.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    ffi::{CString, c_char},
    ops::{Deref, DerefMut},
    panic::{AssertUnwindSafe, catch_unwind},
};

use serde_json::{Value, json};

/// A status as C has it.
pub(crate) type Code = i32;

macro_rules! statuses {
    ($($name:ident = $code:literal, $text:literal;)*) => {
        /// A status of the header, by its number there.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Status { $($name = $code,)* }

        /// Names in the header, with their NUL.
        pub(crate) fn name(code: Code) -> &'static std::ffi::CStr {
            match code {
                $($code => $text,)*
                _ => c"unknown",
            }
        }
    };
}

statuses! {
    Ok = 0, c"MOAI_OK";
    Timeout = 1, c"MOAI_TIMEOUT";
    Null = 2, c"MOAI_NULL";
    Handle = 3, c"MOAI_HANDLE";
    Struct = 4, c"MOAI_STRUCT";
    Value = 5, c"MOAI_VALUE";
    Utf8 = 6, c"MOAI_UTF8";
    Config = 7, c"MOAI_CONFIG";
    Descriptor = 8, c"MOAI_DESCRIPTOR";
    Incompatible = 9, c"MOAI_INCOMPATIBLE";
    Tensor = 10, c"MOAI_TENSOR";
    Unsupported = 11, c"MOAI_UNSUPPORTED";
    Memory = 12, c"MOAI_MEMORY";
    Request = 13, c"MOAI_REQUEST";
    Refused = 14, c"MOAI_REFUSED";
    System = 15, c"MOAI_SYSTEM";
    Over = 16, c"MOAI_OVER";
    Thread = 17, c"MOAI_THREAD";
    Busy = 18, c"MOAI_BUSY";
    Internal = 19, c"MOAI_INTERNAL";
    Absent = 20, c"MOAI_ABSENT";
    Transfer = 21, c"MOAI_TRANSFER";
}

/// Why a call failed. Results are small where nothing did.
#[derive(Debug)]
pub(crate) struct Failure(Box<Parts>);

/// What there is to say of a failure.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) status: Status,
    /// What is wrong, without what the others say.
    pub(crate) problem: String,
    pub(crate) field: String,
    pub(crate) ours: String,
    pub(crate) theirs: String,
    pub(crate) hint: String,
    pub(crate) obstacles: Value,
}

impl Deref for Failure {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl DerefMut for Failure {
    fn deref_mut(&mut self) -> &mut Parts {
        &mut self.0
    }
}

impl Failure {
    pub(crate) fn new(status: Status, problem: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            status,
            problem: problem.into(),
            field: String::new(),
            ours: String::new(),
            theirs: String::new(),
            hint: String::new(),
            obstacles: Value::Null,
        }))
    }

    /// Names the field that is to blame.
    pub(crate) fn at(mut self, field: impl Into<String>) -> Self {
        self.field = field.into();
        self
    }

    /// Gives both values.
    pub(crate) fn values(mut self, ours: impl ToString, theirs: impl ToString) -> Self {
        self.ours = ours.to_string();
        self.theirs = theirs.to_string();
        self
    }

    /// Says what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    fn message(&self) -> String {
        let mut message = match self.field.as_str() {
            "" => self.problem.clone(),
            // Many of the library's own sentences begin with it.
            field if self.problem.starts_with(field) => self.problem.clone(),
            field => format!("{field}: {}", self.problem),
        };
        if !self.hint.is_empty() {
            message = format!("{message}: {}", self.hint);
        }
        message
    }
}

/// The last failure as C reads it.
struct Last {
    status: Code,
    message: CString,
    field: CString,
    ours: CString,
    theirs: CString,
    hint: CString,
    json: CString,
}

thread_local! {
    static LAST: RefCell<Last> = RefCell::new(Last {
        status: 0,
        message: CString::default(),
        field: CString::default(),
        ours: CString::default(),
        theirs: CString::default(),
        hint: CString::default(),
        json: c"{}".to_owned(),
    });
    /// Whether this thread is within a callback of the caller.
    static CALLED_BACK: Cell<bool> = const { Cell::new(false) };
}

/// As C has texts: a NUL within is left out.
pub(crate) fn c_text(text: impl Into<Vec<u8>>) -> CString {
    let mut bytes = text.into();
    bytes.retain(|&byte| byte != 0);
    CString::new(bytes).unwrap_or_default()
}

fn keep(failure: Failure) -> Code {
    let code = failure.status as Code;
    let message = failure.message();
    let failure = *failure.0;
    let mut json = json!({
        "status": code, "name": name(code).to_string_lossy(), "message": message, "field": failure.field,
        "ours": failure.ours, "theirs": failure.theirs, "hint": failure.hint,
    });
    if !failure.obstacles.is_null() {
        json["obstacles"] = failure.obstacles;
    }
    let last = Last {
        status: code,
        message: c_text(message),
        field: c_text(failure.field),
        ours: c_text(failure.ours),
        theirs: c_text(failure.theirs),
        hint: c_text(failure.hint),
        json: c_text(json.to_string()),
    };
    // A thread that ends has nobody left to ask.
    let _ = LAST.try_with(|slot| slot.replace(last));
    code
}

/// Does what a function of the interface does: keeps its failure, and lets no panic out.
pub(crate) fn call(body: impl FnOnce() -> Result<(), Failure>) -> Code {
    if CALLED_BACK.try_with(Cell::get).unwrap_or(false) {
        let why = "the library was called from within a callback";
        return keep(Failure::new(Status::Thread, why).hint("note what happened, and call later"));
    }
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => Status::Ok as Code,
        Ok(Err(failure)) => keep(failure),
        Err(panic) => {
            keep(Failure::new(Status::Internal, said(&*panic)).hint("please report this"))
        }
    }
}

/// Calls back into the caller's code, from which the library is not to be called.
pub(crate) fn call_back(body: impl FnOnce()) {
    let was = CALLED_BACK.try_with(|flag| flag.replace(true));
    body();
    if let Ok(was) = was {
        let _ = CALLED_BACK.try_with(|flag| flag.set(was));
    }
}

fn said(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<String>().map(String::as_str);
    let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("a defect of the library: {}", said.unwrap_or("it panicked"))
}

fn last(read: impl FnOnce(&Last) -> &CString) -> *const c_char {
    LAST.try_with(|last| read(&last.borrow()).as_ptr())
        .unwrap_or_else(|_| c"".as_ptr())
}

#[unsafe(no_mangle)]
extern "C" fn moai_last_error_status() -> Code {
    LAST.try_with(|last| last.borrow().status).unwrap_or(0)
}

#[unsafe(no_mangle)]
extern "C" fn moai_last_error_message() -> *const c_char {
    last(|last| &last.message)
}

#[unsafe(no_mangle)]
extern "C" fn moai_last_error_field() -> *const c_char {
    last(|last| &last.field)
}

#[unsafe(no_mangle)]
extern "C" fn moai_last_error_ours() -> *const c_char {
    last(|last| &last.ours)
}

#[unsafe(no_mangle)]
extern "C" fn moai_last_error_theirs() -> *const c_char {
    last(|last| &last.theirs)
}

#[unsafe(no_mangle)]
extern "C" fn moai_last_error_hint() -> *const c_char {
    last(|last| &last.hint)
}

#[unsafe(no_mangle)]
extern "C" fn moai_last_error_json() -> *const c_char {
    last(|last| &last.json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_status_that_quotes_it() {
        let code = call(|| panic!("at {}", 7));
        assert_eq!(code, Status::Internal as Code);
        LAST.with(|last| {
            let last = last.borrow();
            let message = last.message.to_str().unwrap();
            assert!(
                message.contains("defect") && message.contains("at 7"),
                "{message}"
            );
        });
    }

    #[test]
    fn calls_from_within_a_callback_are_refused_and_later_ones_are_not() {
        call_back(|| assert_eq!(call(|| Ok(())), Status::Thread as Code));
        assert_eq!(call(|| Ok(())), Status::Ok as Code);
    }

    #[test]
    fn a_message_has_all_that_the_others_say() {
        let failure = Failure::new(Status::Value, "is 0").at("offer.lease_ns");
        assert_eq!(
            failure.hint("give some").message(),
            "offer.lease_ns: is 0: give some"
        );
    }
}
