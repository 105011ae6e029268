//! What the protocol counts.

use moai_collectives::protocol::node::Counters;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::Metrics;

/// Registered counters of the protocol.
#[derive(Debug)]
pub(super) struct Counted {
    events: Family<Vec<(&'static str, &'static str)>, Counter>,
    quarantined: Gauge,
    links: Gauge,
}

/// Takes over what one node has counted, again and again.
#[derive(Debug, Default)]
pub struct ProtocolWatch {
    last: Counters,
    links: usize,
}

/// The one that goes down as well.
const NOW: &str = "quarantined_now";

impl Counted {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let counted = Self {
            events: Family::default(),
            quarantined: Gauge::default(),
            links: Gauge::default(),
        };
        registry.register(
            "protocol_events",
            "What happened to links, offers, grants and transfers",
            counted.events.clone(),
        );
        registry.register(
            "quarantined",
            "Transfers and offers that have ended and wait for their fence: their pages are not free",
            counted.quarantined.clone(),
        );
        registry.register(
            "links",
            "Links to nodes of other engines that are ready",
            counted.links.clone(),
        );
        for (event, _) in Counters::default().each().filter(|(name, _)| *name != NOW) {
            drop(counted.events.get_or_create(&vec![("event", event)]));
        }
        counted
    }
}

impl ProtocolWatch {
    /// A watch that has taken over nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what a node has counted since this was last called for it, and how many links it has.
    pub fn take(&mut self, counters: &Counters, links: usize, metrics: &Metrics) {
        let to = &metrics.protocol;
        for ((event, now), (_, before)) in counters.each().zip(self.last.each()) {
            if event != NOW && now > before {
                to.events
                    .get_or_create(&vec![("event", event)])
                    .inc_by(now - before);
            }
        }
        let change = |now: u64, before: u64| now as i64 - before as i64;
        to.quarantined
            .inc_by(change(counters.quarantined_now, self.last.quarantined_now));
        to.links.inc_by(change(links as u64, self.links as u64));
        (self.last, self.links) = (*counters, links);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_added_once_and_gauges_follow() {
        let metrics = Metrics::new();
        let (mut watch, mut counters) = (ProtocolWatch::new(), Counters::default());
        counters.committed = 2;
        counters.quarantined_now = 1;
        watch.take(&counters, 3, &metrics);
        watch.take(&counters, 3, &metrics);
        counters.committed = 5;
        counters.quarantined_now = 0;
        watch.take(&counters, 2, &metrics);
        // Another node of the same process.
        ProtocolWatch::new().take(&counters, 1, &metrics);
        let text = metrics.text();
        for line in [
            "moai_protocol_events_total{event=\"committed\"} 10",
            "moai_protocol_events_total{event=\"late\"} 0",
            "moai_quarantined 0",
            "moai_links 3",
        ] {
            assert!(
                text.lines().any(|other| other == line),
                "{line} is not in\n{text}"
            );
        }
    }
}
