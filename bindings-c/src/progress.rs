//! How far each transfer is, for those who wait for its layers.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use moai_fabric::collectives::{
    protocol::node::TransferId,
    transfer::{Ended, Event},
};

/// Transfers that have ended and are remembered, as the header says.
const MAX_ENDED: usize = 4096;

/// What a wait came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// What was waited for is so.
    Placed,
    /// The transfer has ended otherwise.
    Ended(String),
    /// Neither, in time.
    TimedOut,
    /// The engine is over.
    Over,
    /// There is no such transfer, or it is forgotten.
    Unknown,
}

#[derive(Debug, Default)]
struct Transfer {
    layers: BTreeSet<u32>,
    /// Committed, or why not.
    ended: Option<Result<(), String>>,
}

#[derive(Debug, Default)]
struct Known {
    transfers: HashMap<TransferId, Transfer>,
    ended: VecDeque<TransferId>,
    over: bool,
}

/// Of all transfers of an engine. The engine's thread notes, any thread waits.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    known: Mutex<Known>,
    changed: Condvar,
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A transfer has begun; the engine's thread may have told more of it already.
    pub(crate) fn begin(&self, transfer: TransferId) {
        self.lock().transfers.entry(transfer).or_default();
    }

    /// Notes what an event says.
    pub(crate) fn hear(&self, event: &Event) {
        let mut known = self.lock();
        match event {
            Event::Layer { transfer, layer } => {
                let transfer = known.transfers.entry(*transfer).or_default();
                transfer.layers.insert(*layer);
            }
            Event::Invited { transfer, .. } => {
                known.transfers.entry(*transfer).or_default();
            }
            Event::Ended {
                transfer, report, ..
            } => {
                let ended = match &report.ended {
                    Ended::Committed => Ok(()),
                    Ended::Failed { failure, .. } => Err(failure.to_string()),
                    Ended::Cancelled { .. } => Err("was cancelled".to_owned()),
                };
                known.transfers.entry(*transfer).or_default().ended = Some(ended);
                known.ended.push_back(*transfer);
                if known.ended.len() > MAX_ENDED
                    && let Some(oldest) = known.ended.pop_front()
                {
                    known.transfers.remove(&oldest);
                }
            }
            _ => return,
        }
        drop(known);
        self.changed.notify_all();
    }

    /// Nothing more will be heard.
    pub(crate) fn end(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// Waits until a layer is placed, or all of a transfer is committed.
    pub(crate) fn wait(&self, transfer: TransferId, layer: Option<u32>, limit: Duration) -> Waited {
        let until = Instant::now().checked_add(limit);
        let mut known = self.lock();
        loop {
            let Some(one) = known.transfers.get(&transfer) else {
                return Waited::Unknown;
            };
            if layer.is_some_and(|layer| one.layers.contains(&layer)) {
                return match &one.ended {
                    // A layer of a transfer that failed is worth nothing.
                    Some(Err(why)) => Waited::Ended(why.clone()),
                    _ => Waited::Placed,
                };
            }
            match &one.ended {
                Some(Ok(())) => return Waited::Placed,
                Some(Err(why)) => return Waited::Ended(why.clone()),
                None if known.over => return Waited::Over,
                None => {}
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            known = match left {
                Some(Duration::ZERO) => return Waited::TimedOut,
                Some(left) => {
                    let waited = self.changed.wait_timeout(known, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.changed.wait(known);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_its_layer_and_not_before() {
        let progress = Progress::default();
        let transfer = TransferId(7);
        assert_eq!(
            progress.wait(transfer, None, Duration::ZERO),
            Waited::Unknown
        );
        progress.begin(transfer);
        let layer = |layer| Event::Layer { transfer, layer };
        progress.hear(&layer(3));
        assert_eq!(
            progress.wait(transfer, Some(3), Duration::ZERO),
            Waited::Placed
        );
        assert_eq!(
            progress.wait(transfer, Some(4), Duration::ZERO),
            Waited::TimedOut
        );
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| progress.wait(transfer, Some(4), Duration::MAX));
            progress.hear(&layer(4));
            assert_eq!(waiting.join().unwrap(), Waited::Placed);
        });
        progress.end();
        assert_eq!(progress.wait(transfer, None, Duration::MAX), Waited::Over);
    }
}
