//! Whether this process can be sent work.

use std::sync::{Arc, Mutex, PoisonError};

use super::Metrics;

/// Whether at least one compatible peer can be talked to. Set by whoever owns links, read by the endpoint `/ready`.
///
/// ```
/// use std::sync::Arc;
///
/// use moai_fabric::metrics::{Metrics, Readiness, State};
///
/// let readiness = Readiness::new(Arc::new(Metrics::new()));
/// assert!(!readiness.state().is_ready());
/// readiness.set(State::linked(2));
/// assert_eq!(readiness.state().to_string(), "ready: 2 compatible peers");
/// ```
#[derive(Clone, Debug)]
pub struct Readiness {
    state: Arc<Mutex<State>>,
    metrics: Arc<Metrics>,
}

/// What readiness is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// So many compatible peers can be talked to.
    Ready {
        /// At least one.
        peers: usize,
    },
    /// None can.
    NotReady {
        /// Why not, for people.
        reason: String,
    },
}

impl State {
    /// Links to so many compatible peers; none is not ready.
    #[must_use]
    pub fn linked(peers: usize) -> Self {
        match peers {
            0 => Self::NotReady {
                reason: "no compatible peer is linked".into(),
            },
            peers => Self::Ready { peers },
        }
    }

    /// Whether work can be sent.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready { .. })
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready { peers: 1 } => f.write_str("ready: 1 compatible peer"),
            Self::Ready { peers } => write!(f, "ready: {peers} compatible peers"),
            Self::NotReady { reason } => write!(f, "not ready: {reason}"),
        }
    }
}

impl Readiness {
    /// Not ready: no peer has been linked yet. `moai_ready` of these metrics follows it.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        metrics.set_ready(false);
        Self {
            state: Arc::new(Mutex::new(State::linked(0))),
            metrics,
        }
    }

    /// What is so from now on.
    pub fn set(&self, state: State) {
        self.metrics.set_ready(state.is_ready());
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// What is so.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
