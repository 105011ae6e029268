//! Warnings and errors of this image go to the host's log: its subscribers are not those of the host.

use std::ffi::c_char;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::{abi, text};

/// Sends events to the host.
///
/// # Safety
///
/// `host` is what an entry was called with.
pub(super) unsafe fn to(host: *const abi::Host) {
    if host.is_null() {
        return;
    }
    // SAFETY: by contract it is there for ever.
    let host = unsafe { &*host };
    if let Some(log) = host.log {
        // Where somebody else listens already, that is as good.
        let _ = tracing::subscriber::set_global_default(ToHost { log });
    }
}

struct ToHost {
    log: unsafe extern "C" fn(u32, *const c_char),
}

impl Subscriber for ToHost {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN && metadata.is_event()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        static SPANS: AtomicU64 = AtomicU64::new(1);
        Id::from_u64(SPANS.fetch_add(1, Relaxed).max(1))
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        let level = if *event.metadata().level() == Level::ERROR {
            abi::LOG_ERROR
        } else {
            abi::LOG_WARN
        };
        let line = text::c_string(&line.0);
        // SAFETY: by the rules of the header any thread may call it, with a text.
        unsafe { (self.log)(level, line.as_ptr()) };
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let space = if self.0.is_empty() { "" } else { " " };
        // A string takes everything.
        let _ = if field.name() == "message" {
            write!(self.0, "{space}{value:?}")
        } else {
            write!(self.0, "{space}{}={value:?}", field.name())
        };
    }
}
