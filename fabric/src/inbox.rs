//! Events of an engine that nobody has asked for yet: as many as were caused, but never more than memory is to hold.
//!
//! Its owner causes most of them, by requests; those end, so that a limit on requests while many wait is a limit on
//! events. Peers cause the others, and what they say again and again is told once: of a node that comes and goes the last
//! that is so, and of parts of an offer no more than the limit, since the offer's own end tells of all of them. What
//! says that pages are free, or may hold something else, is always kept.

use std::{
    collections::{HashMap, VecDeque},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use moai_collectives::transfer::{Ended, Event};
use rustix::event::{EventfdFlags, eventfd};

/// No event waits, and none will come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Over;

pub(crate) struct Inbox {
    kept: Mutex<Kept>,
    came: Condvar,
    /// Counts events that wait, and one more once no other will come.
    waiting: OwnedFd,
    limit: usize,
    /// Whether somebody hears of every event when it comes, and tells of how transfers go to whoever waits for that.
    heard: bool,
}

#[derive(Default)]
struct Kept {
    events: VecDeque<Event>,
    /// How many of them say of a node that it came or went. At most two.
    nodes: HashMap<(Arc<str>, u32), u8>,
    over: bool,
    /// Whether any was left out, which is logged once.
    left_out: bool,
}

impl Inbox {
    /// # Errors
    ///
    /// Of the system, that gives no descriptor.
    pub(crate) fn new(limit: usize, heard: bool) -> std::io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE;
        Ok(Self {
            kept: Mutex::default(),
            came: Condvar::new(),
            waiting: eventfd(0, flags)?,
            limit,
            heard,
        })
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait, if those are more than the limit, so that nothing is to be begun which causes others.
    pub(crate) fn full(&self) -> Option<usize> {
        let waiting = self.kept().events.len();
        (waiting > self.limit).then_some(waiting)
    }

    pub(crate) fn put(&self, event: Event) {
        let mut kept = self.kept();
        match &event {
            Event::PeerUp { engine, node, .. } | Event::PeerLost { engine, node, .. } => {
                let of = (Arc::clone(engine), *node);
                if kept.nodes.get(&of) == Some(&2) {
                    // Came, went and came again, or the other way round: the last of the three says it all.
                    self.drop_where(&mut kept, |event| node_of(event) == Some((&of.0, of.1)));
                }
                *kept.nodes.entry(of).or_default() += 1;
            }
            Event::Superseded { engine } => {
                let of = Arc::clone(engine);
                self.drop_where(
                    &mut kept,
                    |event| matches!(event, Event::Superseded { engine } if *engine == of),
                );
            }
            Event::Served { .. } if kept.events.len() >= self.limit => {
                self.leave_out(&mut kept);
                return;
            }
            _ => {}
        }
        if self.heard
            && kept.events.len() >= self.limit
            && let Some(at) = kept.events.iter().position(may_go)
            && let Some(oldest) = kept.events.remove(at)
        {
            self.counted(&mut kept, &oldest);
            self.leave_out(&mut kept);
        }
        kept.events.push_back(event);
        // It fails only if more wait than can be counted.
        let _ = rustix::io::write(&self.waiting, &1_u64.to_ne_bytes());
        self.came.notify_one();
    }

    /// The oldest, if one is there or comes in time.
    pub(crate) fn next(&self, limit: Duration) -> Result<Option<Event>, Over> {
        let start = Instant::now();
        let mut kept = self.kept();
        loop {
            if let Some(event) = self.take(&mut kept) {
                return Ok(Some(event));
            }
            if kept.over {
                return Err(Over);
            }
            let Some(left) = limit
                .checked_sub(start.elapsed())
                .filter(|left| !left.is_zero())
            else {
                return Ok(None);
            };
            let waited = self.came.wait_timeout(kept, left);
            (kept, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// No other will come.
    pub(crate) fn end(&self) {
        self.kept().over = true;
        let _ = rustix::io::write(&self.waiting, &1_u64.to_ne_bytes());
        self.came.notify_all();
    }

    fn take(&self, kept: &mut Kept) -> Option<Event> {
        let event = kept.events.pop_front()?;
        self.counted(kept, &event);
        Some(event)
    }

    /// One is no longer there.
    fn counted(&self, kept: &mut Kept, event: &Event) {
        // It was counted when it was put.
        let _ = rustix::io::read(&self.waiting, &mut [0; 8]);
        if let Some((engine, node)) = node_of(event)
            && let Some(count) = kept.nodes.get_mut(&(Arc::clone(engine), node))
        {
            *count -= 1;
            if *count == 0 {
                kept.nodes.remove(&(Arc::clone(engine), node));
            }
        }
    }

    fn drop_where(&self, kept: &mut Kept, goes: impl Fn(&Event) -> bool) {
        let events = std::mem::take(&mut kept.events);
        for event in events {
            if goes(&event) {
                self.counted(kept, &event);
            } else {
                kept.events.push_back(event);
            }
        }
    }

    fn leave_out(&self, kept: &mut Kept) {
        if !std::mem::replace(&mut kept.left_out, true) {
            let limit = self.limit;
            tracing::warn!(limit, "nobody asks for events; some are not kept");
        }
    }
}

impl AsFd for Inbox {
    /// Is readable while an event waits, and once no other will come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waiting.as_fd()
    }
}

/// Whether it says no more than that a transfer goes well, which who hears of it tells, too.
fn may_go(event: &Event) -> bool {
    match event {
        Event::Layer { .. } => true,
        Event::Ended { report, fenced, .. } => *fenced && report.ended == Ended::Committed,
        _ => false,
    }
}

fn node_of(event: &Event) -> Option<(&Arc<str>, u32)> {
    match event {
        Event::PeerUp { engine, node, .. } | Event::PeerLost { engine, node, .. } => {
            Some((engine, *node))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use moai_collectives::protocol::node::{Reason, TransferId};
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn up(node: u32, epoch: u64) -> Event {
        let engine = "peer".into();
        Event::PeerUp {
            engine,
            node,
            epoch,
        }
    }

    fn lost(node: u32, why: &str) -> Event {
        Event::PeerLost {
            engine: "peer".into(),
            node,
            why: why.to_owned(),
        }
    }

    fn own(offer: u64) -> Event {
        let reason = Reason::Withdrawn;
        Event::Quarantined { offer, reason }
    }

    fn served(offer: u64) -> Event {
        Event::Served {
            offer,
            engine: "peer".into(),
            ranks: (0, 0),
            failure: Some((Reason::Cancelled, String::new())),
        }
    }

    fn is_readable(inbox: &Inbox) -> bool {
        let mut fds = [PollFd::new(inbox, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    /// All that wait, in short. Afterwards the descriptor says that none does.
    fn all(inbox: &Inbox) -> Vec<String> {
        let mut told = Vec::new();
        while is_readable(inbox) {
            let event = inbox.next(NOW).unwrap().unwrap();
            told.push(match event {
                Event::PeerUp { node, epoch, .. } => format!("up {node} {epoch}"),
                Event::PeerLost { node, why, .. } => format!("lost {node} {why}"),
                Event::Quarantined { offer, .. } => format!("own {offer}"),
                Event::Served { offer, .. } => format!("served {offer}"),
                Event::Superseded { engine } => format!("superseded {engine}"),
                other => panic!("{other:?}"),
            });
        }
        assert!(inbox.next(NOW).unwrap().is_none());
        told
    }

    #[test]
    fn events_come_in_order_and_the_descriptor_counts_them() {
        let inbox = Inbox::new(10, false).unwrap();
        assert!(!is_readable(&inbox));
        inbox.put(own(1));
        inbox.put(up(0, 1));
        inbox.put(own(2));
        assert_eq!(all(&inbox), ["own 1", "up 0 1", "own 2"]);
        inbox.put(own(3));
        inbox.end();
        assert!(matches!(inbox.next(NOW), Ok(Some(_))));
        assert!(is_readable(&inbox));
        assert!(matches!(inbox.next(NOW), Err(Over)));
        assert!(is_readable(&inbox));
    }

    #[test]
    fn a_node_that_comes_and_goes_is_told_of_once_or_twice() {
        let inbox = Inbox::new(1000, false).unwrap();
        inbox.put(own(1));
        inbox.put(up(7, 1));
        for round in 0..500 {
            inbox.put(lost(0, &round.to_string()));
            inbox.put(up(0, round));
        }
        inbox.put(own(2));
        // What was heard last before is that the node is there, if anything: then it went, and came.
        let told = all(&inbox);
        assert_eq!(told.first().unwrap(), "own 1");
        assert_eq!(told[1], "up 7 1");
        assert!(told.contains(&"up 0 499".to_owned()), "{told:?}");
        assert!(told.len() <= 5, "{told:?}");
        // Each is the other of the one before.
        inbox.put(lost(0, "a"));
        inbox.put(up(0, 500));
        inbox.put(lost(0, "b"));
        assert_eq!(all(&inbox), ["lost 0 b"]);
        assert!(inbox.kept().nodes.is_empty());
    }

    #[test]
    fn who_asks_for_nothing_may_begin_nothing_and_peers_do_not_fill_it() {
        let inbox = Inbox::new(3, false).unwrap();
        for at in 0..4 {
            assert_eq!(inbox.full(), None);
            inbox.put(own(at));
        }
        assert_eq!(inbox.full(), Some(4));
        // What peers cause does not add up.
        for _ in 0..100 {
            inbox.put(served(1));
            inbox.put(Event::Superseded {
                engine: "peer".into(),
            });
        }
        let all = all(&inbox);
        assert_eq!(all, ["own 0", "own 1", "own 2", "own 3", "superseded peer"]);
        assert_eq!(inbox.full(), None);
    }

    #[test]
    fn where_all_are_heard_only_good_news_of_transfers_goes() {
        let inbox = Inbox::new(3, true).unwrap();
        let layer = |layer| Event::Layer {
            transfer: TransferId(1),
            layer,
        };
        let ended = |outcome: serde_json::Value, fenced| {
            let mut report =
                serde_json::json!({"request": "", "rank": 0, "ended": outcome, "routes": []});
            let counts = "bytes_read bytes_wire bytes_written bytes_mapped chunks chunks_direct chunks_mapped saturated nan \
                linked_ns first_ns last_ns elapsed_ns";
            for count in counts.split_whitespace() {
                report[count] = 0.into();
            }
            let report = serde_json::from_value(report).unwrap();
            let transfer = TransferId(1);
            Event::Ended {
                transfer,
                report,
                fenced,
            }
        };
        let committed = || serde_json::json!({"outcome": "committed"});
        let cancelled = || serde_json::json!({"outcome": "cancelled", "dirty": []});
        inbox.put(own(0));
        inbox.put(ended(cancelled(), true));
        for at in 0..100 {
            inbox.put(layer(at));
            inbox.put(ended(committed(), true));
        }
        assert_eq!(inbox.full(), None);
        assert!(matches!(
            inbox.next(NOW),
            Ok(Some(Event::Quarantined { offer: 0, .. }))
        ));
        assert!(
            matches!(inbox.next(NOW), Ok(Some(Event::Ended { report, .. })) if report.ended != Ended::Committed)
        );
        assert!(
            matches!(inbox.next(NOW), Ok(Some(Event::Ended { report, .. })) if report.ended == Ended::Committed)
        );
        assert!(!is_readable(&inbox));
        // Pages that are not free yet, and others' ends, are nobody else's to tell.
        for at in 0..4 {
            assert_eq!(inbox.full(), None);
            inbox.put(if at == 0 {
                ended(committed(), false)
            } else {
                own(at)
            });
        }
        assert_eq!(inbox.full(), Some(4));
    }

    #[test]
    fn who_waits_is_woken_by_an_event_and_by_the_end() {
        let inbox = Inbox::new(3, false).unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                inbox
                    .next(Duration::from_secs(60))
                    .map(|event| event.is_some())
            });
            inbox.put(own(0));
            assert_eq!(waits.join().unwrap(), Ok(true));
            let waits = scope.spawn(|| {
                inbox
                    .next(Duration::from_secs(60))
                    .map(|event| event.is_some())
            });
            inbox.end();
            assert_eq!(waits.join().unwrap(), Err(Over));
        });
    }
}
