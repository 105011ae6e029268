//! What interfaces have counted, taken over from time to time.

use moai_transport::{Stack, Stats};
use prometheus_client::registry::{Registry, Unit};

use super::{Counters, Metrics, transport_label};
use crate::providers;

/// Counters by provider.
#[derive(Debug)]
pub(super) struct Counted {
    received: Counters,
    sent: Counters,
    put: Counters,
    got: Counters,
    mapped: Counters,
    faults: Counters,
    refused: Counters,
    connections: Counters,
}

/// What of a stack's counts has been taken over: each is added once, however often it is looked at.
#[derive(Clone, Debug, Default)]
pub struct TransportWatch {
    last: Vec<(&'static str, Stats)>,
}

impl Counted {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let mut family = |name: &str, help: &str, unit: Option<Unit>| {
            let family = Counters::default();
            match unit {
                Some(unit) => registry.register_with_unit(name, help, unit, family.clone()),
                None => registry.register(name, help, family.clone()),
            }
            family
        };
        let counted = Self {
            received: family(
                "transport_received",
                "Read from the network, headers included",
                Some(Unit::Bytes),
            ),
            sent: family(
                "transport_sent",
                "Written to the network, headers included",
                Some(Unit::Bytes),
            ),
            put: family(
                "transport_put",
                "Of puts that have ended well",
                Some(Unit::Bytes),
            ),
            got: family(
                "transport_got",
                "Of gets that have ended well",
                Some(Unit::Bytes),
            ),
            mapped: family(
                "transport_mapped",
                "Of peers' memory that was mapped",
                Some(Unit::Bytes),
            ),
            faults: family(
                "transport_faults",
                "Operations that have ended otherwise than well",
                None,
            ),
            refused: family(
                "transport_refused_frames",
                "Frames of peers that were refused",
                None,
            ),
            connections: family(
                "transport_connections",
                "Connections, by what became of them",
                None,
            ),
        };
        for transport in providers::names() {
            counted.add(transport, &Stats::default(), &Stats::default());
        }
        counted
    }

    fn add(&self, provider: &str, now: &Stats, before: &Stats) {
        let transport = ("transport", transport_label(provider));
        let add = |family: &Counters, of: fn(&Stats) -> u64| {
            let more = of(now).saturating_sub(of(before));
            family.get_or_create(&vec![transport]).inc_by(more);
        };
        add(&self.received, |stats| stats.bytes_in);
        add(&self.sent, |stats| stats.bytes_out);
        add(&self.put, |stats| stats.put_bytes);
        add(&self.got, |stats| stats.got_bytes);
        add(&self.mapped, |stats| stats.mapped_bytes);
        add(&self.faults, |stats| stats.faults);
        add(&self.refused, |stats| stats.refused);
        let connections = |status: &'static str, of: fn(&Stats) -> u64| {
            let more = of(now).saturating_sub(of(before));
            self.connections
                .get_or_create(&vec![transport, ("status", status)])
                .inc_by(more);
        };
        connections("connected", |stats| stats.connected);
        connections("accepted", |stats| stats.accepted);
        connections("rejected", |stats| stats.rejected);
        connections("authenticated", |stats| stats.authenticated);
        connections("distrusted", |stats| stats.distrusted);
        connections("closed", |stats| stats.closed);
    }
}

impl TransportWatch {
    /// A watch that has taken over nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what a stack has counted since this was last called for it.
    pub fn take(&mut self, stack: &Stack, metrics: &Metrics) {
        self.take_over(stack.stats_by_provider().collect(), metrics);
    }

    fn take_over(&mut self, now: Vec<(&'static str, Stats)>, metrics: &Metrics) {
        for (provider, stats) in &now {
            let before = self.last.iter().find(|(name, _)| name == provider);
            let before = before.map(|(_, stats)| *stats).unwrap_or_default();
            metrics.transport.add(provider, stats, &before);
        }
        self.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_is_added_once() {
        let metrics = Metrics::new();
        let mut watch = TransportWatch::new();
        let mut stats = Stats::default();
        stats.bytes_in = 100;
        stats.accepted = 1;
        watch.take_over(vec![("tcp", stats)], &metrics);
        watch.take_over(vec![("tcp", stats)], &metrics);
        stats.bytes_in = 150;
        watch.take_over(vec![("tcp", stats), ("shm", stats)], &metrics);
        // Another stack of the same process.
        TransportWatch::new().take_over(vec![("tcp", stats)], &metrics);
        let text = metrics.text();
        for line in [
            "moai_transport_received_bytes_total{transport=\"tcp\"} 300",
            "moai_transport_received_bytes_total{transport=\"shm\"} 150",
            "moai_transport_connections_total{transport=\"tcp\",status=\"accepted\"} 2",
        ] {
            assert!(
                text.lines().any(|other| other == line),
                "{line} is not in\n{text}"
            );
        }
    }
}
