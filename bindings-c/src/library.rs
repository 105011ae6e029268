//! The library itself: versions, names of statuses, its log.

use std::{
    ffi::{CString, c_char, c_void},
    io,
    sync::{Mutex, PoisonError},
};

use moai_fabric::config::log_filter;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter, util::SubscriberInitExt};

use crate::{
    abi,
    arguments::Text,
    failure::{Code, Failure, Status, c_text, call_back, name},
};

/// The package's version, with its NUL.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");

#[unsafe(no_mangle)]
extern "C" fn moai_version() -> *const c_char {
    VERSION.as_ptr().cast()
}

#[unsafe(no_mangle)]
extern "C" fn moai_abi_version() -> u32 {
    1
}

#[unsafe(no_mangle)]
extern "C" fn moai_status_name(status: Code) -> *const c_char {
    name(status).as_ptr()
}

type LogFn = Option<extern "C" fn(*mut c_void, *const c_char)>;

/// The caller's function and what it is given.
struct Sink {
    log: extern "C" fn(*mut c_void, *const c_char),
    user: usize,
}

impl Sink {
    fn say(&self, line: &CString) {
        let user = std::ptr::with_exposed_provenance_mut(self.user);
        call_back(|| (self.log)(user, line.as_ptr()));
    }
}

struct Lines(Mutex<Sink>);

/// One event of the log, which is handed on as a whole.
struct Line<'a> {
    text: Vec<u8>,
    lines: &'a Lines,
}

impl io::Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let text = std::mem::take(&mut self.text);
        let line = c_text(text.trim_ascii_end());
        let sink = { &self.lines.0 }
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        sink.say(&line);
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            text: Vec::new(),
            lines: self,
        }
    }
}

abi! {
    fn moai_log_start(filter: Text, log: LogFn, user: *mut c_void) {
        let filter = match filter.optional("filter")? {
            Some(filter) => filter.to_owned(),
            None => log_filter(),
        };
        let filter = EnvFilter::try_new(&filter).map_err(|error| {
            let why = format!("{filter:?} is no filter: {error}");
            let failure = Failure::new(Status::Value, why).at("filter");
            failure.hint("give error, warn, debug, trace, or MODULE=LEVEL,…")
        })?;
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
        let started = match log {
            None => builder.with_writer(io::stderr).finish().try_init(),
            Some(log) => {
                let user = user.expose_provenance();
                let lines = Lines(Mutex::new(Sink { log, user }));
                builder.with_writer(lines).finish().try_init()
            }
        };
        started.map_err(|_| Failure::new(Status::Busy, "this process logs already"))
    }
}
