//! One named test: how it runs, how long it may take, and what becomes of what a machine lacks.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use libtest_mimic::{Completion, Failed, Trial};

/// What this machine, or this build, does not have.
#[derive(Clone, Debug)]
pub(crate) struct Absent {
    /// What `MOAI_REQUIRE` calls it: a kind of memory, a provider, `files`.
    pub(crate) what: String,
    /// Why it is not there.
    pub(crate) reason: String,
}

impl Absent {
    pub(crate) fn new(what: impl ToString, reason: impl ToString) -> Self {
        Self {
            what: what.to_string(),
            reason: reason.to_string(),
        }
    }

    fn is_required(&self) -> bool {
        let required = std::env::var("MOAI_REQUIRE").unwrap_or_default();
        required
            .split([',', ' '])
            .any(|name| name == self.what || name == "conformance")
    }
}

/// A test came to its end, or could not be run.
pub(crate) type Outcome = Result<(), Absent>;

/// A hang is a failure: the longest that a test may take. One that waits says where long before.
const LONGEST: Duration = Duration::from_secs(90);

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps what a panic says, with its place, instead of printing it among the names of tests.
pub(crate) fn keep_panics() {
    panic::set_hook(Box::new(|info| {
        let text = info
            .payload()
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| info.payload().downcast_ref::<&str>().map(|&s| s.to_owned()));
        let at = info.location().map(ToString::to_string);
        PANIC.set(format!(
            "{} ({})",
            text.unwrap_or_default(),
            at.unwrap_or_default()
        ));
    }));
}

/// Runs `body`; a panic in it is an error with what it said.
pub(crate) fn caught<R>(body: impl FnOnce() -> R) -> Result<R, String> {
    panic::catch_unwind(AssertUnwindSafe(body)).map_err(|_| PANIC.take())
}

/// A test. What it lacks makes it ignored, or failed if `MOAI_REQUIRE` names it.
pub(crate) fn trial(
    name: String,
    seed: u64,
    body: impl FnOnce() -> Outcome + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || {
        let again = |text: String| Failed::from(format!("{text}; again with MOAI_SEED={seed}"));
        let (end, ended) = mpsc::channel();
        let running = thread::Builder::new().spawn(move || {
            // Whoever waited for it has given up, if it is gone.
            let _ = end.send(caught(body));
        });
        running.map_err(|error| Failed::from(format!("no thread: {error}")))?;
        match ended.recv_timeout(LONGEST) {
            Ok(Ok(Ok(()))) => Ok(Completion::Completed),
            Ok(Ok(Err(absent))) if absent.is_required() => Err(again(format!(
                "MOAI_REQUIRE has {}, and {}",
                absent.what, absent.reason
            ))),
            Ok(Ok(Err(absent))) => Ok(Completion::ignored_with(absent.reason)),
            Ok(Err(panic)) => Err(again(panic)),
            Err(RecvTimeoutError::Timeout) => Err(again(format!(
                "hangs in a call: not over after {LONGEST:?}"
            ))),
            Err(RecvTimeoutError::Disconnected) => Err(again("died".to_owned())),
        }
    })
}
