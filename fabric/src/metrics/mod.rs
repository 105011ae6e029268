//! What a process counts, for whoever watches it.
//!
//! [`Metrics`] is the registry: fixed names, base units, labels that take few values and never a request's id. Nothing on a
//! hot path touches it: interfaces count by themselves and are read ([`TransportWatch`]), transfers are recorded when they
//! have ended. [`Metrics::text`] is the snapshot, in the text format of OpenMetrics; [`serve`] answers with it over
//! HTTP, and with [`Readiness`] beside it.
//!
//! What the protocol counts (leases that ended, links that were lost, messages that came late) is read from its node as well
//! ([`ProtocolWatch`]).

mod http;
mod names;
mod protocol;
mod readiness;
mod transport;

use moai_collectives::{
    cost::Way,
    protocol::node::Failure,
    transfer::{Ended, Report},
};
use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

pub use self::{
    http::{MetricsServer, ServeError, serve},
    names::{Kind, NAMES, Name},
    protocol::ProtocolWatch,
    readiness::{Readiness, State},
    transport::TransportWatch,
};
use crate::providers;

type Labels = Vec<(&'static str, &'static str)>;
type Counters = Family<Labels, Counter>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// Counters of one process. Cheap to share: everything in it counts without a lock, or with one that is held for a moment.
///
/// ```
/// use moai_fabric::metrics::Metrics;
///
/// let metrics = Metrics::new();
/// assert!(metrics.text().contains("moai_protocol_events_total{event=\"peers_restarted\"} 0\n"));
/// ```
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    transfers: Counters,
    durations: Histograms,
    read: Counter,
    wire: Counter,
    written: Counter,
    mapped: Counter,
    chunks: Counter,
    saturated: Counter,
    nan: Counter,
    dirty: Counter,
    digests: Counter,
    routes: Counters,
    fallbacks: Counters,
    protocol: protocol::Counted,
    transport: transport::Counted,
    ready: Gauge,
}

/// How transfers end: committed, or why not.
const STATUSES: [&str; 10] = [
    "committed",
    "cancelled",
    "deadline",
    "lost",
    "restarted",
    "refused",
    "protocol",
    "digest",
    "no_path",
    "local",
];

/// The least that transfers take on one host, and thrice the deadline that is the default: 14 buckets.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.5, 14))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry in which everything is zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("moai");
        let counters = |registry: &mut Registry, name: &str, help: &str| {
            let family = Counters::default();
            registry.register(name, help, family.clone());
            family
        };
        let counter = |registry: &mut Registry, name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let bytes = |registry: &mut Registry, name: &str, help: &str| {
            let counter = Counter::default();
            registry.register_with_unit(name, help, Unit::Bytes, counter.clone());
            counter
        };
        let of = &mut registry;
        let histograms = Histograms::new_with_constructor(durations as fn() -> Histogram);
        of.register_with_unit(
            "transfer_duration",
            "From a part's first connection to its outcome",
            Unit::Seconds,
            histograms.clone(),
        );
        let ready = Gauge::default();
        of.register(
            "ready",
            "1 while at least one compatible peer can be talked to",
            ready.clone(),
        );
        let metrics = Self {
            transfers: counters(of, "transfers", "Ranks' parts of transfers that have ended"),
            durations: histograms,
            read: bytes(of, "transfer_read", "Of rows, in the producer's format"),
            wire: bytes(
                of,
                "transfer_wire",
                "Of rows that were sent, in the exchange format",
            ),
            written: bytes(of, "transfer_written", "Of rows, in the consumer's format"),
            mapped: bytes(
                of,
                "transfer_mapped",
                "Of rows that were read where the producer has them",
            ),
            chunks: counter(of, "transfer_chunks", "Chunks sent, landed or copied"),
            saturated: counter(
                of,
                "saturated_elements",
                "Elements clamped to the range of the target's format",
            ),
            nan: counter(of, "nan_elements", "Elements that are NaN"),
            dirty: counter(
                of,
                "dirty_pages",
                "Pages that failed transfers may have written to",
            ),
            digests: counter(
                of,
                "digest_mismatches",
                "Transfers that failed because what arrived is not what was sent",
            ),
            routes: counters(of, "routes", "Pairs of ranks, by what carried their bytes"),
            fallbacks: counters(
                of,
                "fallbacks",
                "Pairs of ranks whose bytes something slower carried than what was there",
            ),
            protocol: protocol::Counted::register(of),
            transport: transport::Counted::register(of),
            ready,
            registry,
        };
        // What has not happened yet is zero, not absent.
        let at_zero = |family: &Counters, labels: Labels| drop(family.get_or_create(&labels));
        for status in STATUSES {
            at_zero(&metrics.transfers, vec![("status", status)]);
        }
        for status in ["committed", "failed"] {
            drop(metrics.durations.get_or_create(&vec![("status", status)]));
        }
        for transport in providers::names() {
            let transport = ("transport", transport);
            for status in ["mapped", "sent"] {
                at_zero(&metrics.routes, vec![transport, ("status", status)]);
            }
            at_zero(&metrics.fallbacks, vec![transport]);
        }
        metrics
    }

    /// Records a rank's part of a transfer, once it has ended.
    pub fn transfer(&self, report: &Report) {
        let dirty = report.dirty().iter().map(|list| list.pages.len() as u64);
        self.dirty.inc_by(dirty.sum());
        let (status, outcome) = match &report.ended {
            Ended::Committed => ("committed", "committed"),
            Ended::Cancelled { .. } => ("cancelled", "failed"),
            Ended::Failed { failure, .. } => {
                if matches!(failure, Failure::Digest { .. }) {
                    self.digests.inc();
                }
                (reason(failure), "failed")
            }
        };
        self.transfers
            .get_or_create(&vec![("status", status)])
            .inc();
        let seconds = report.elapsed_ns as f64 / 1e9;
        self.durations
            .get_or_create(&vec![("status", outcome)])
            .observe(seconds);
        self.read.inc_by(report.bytes_read);
        self.wire.inc_by(report.bytes_wire);
        self.written.inc_by(report.bytes_written);
        self.mapped.inc_by(report.bytes_mapped);
        self.chunks.inc_by(report.chunks);
        self.saturated.inc_by(report.saturated);
        self.nan.inc_by(report.nan);
        for route in &report.routes {
            let transport = ("transport", transport_label(&route.provider));
            let way = match route.way {
                Way::Mapped => "mapped",
                Way::Sent => "sent",
            };
            self.routes
                .get_or_create(&vec![transport, ("status", way)])
                .inc();
            if route.is_fallback {
                self.fallbacks.get_or_create(&vec![transport]).inc();
            }
        }
    }

    /// Everything as it is now, in the text format of OpenMetrics.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing to a string does not fail.
            Err(_) => String::new(),
        }
    }

    fn set_ready(&self, is_ready: bool) {
        self.ready.set(is_ready.into());
    }
}

fn reason(failure: &Failure) -> &'static str {
    match failure {
        Failure::Deadline { .. } => "deadline",
        Failure::Lost { .. } => "lost",
        Failure::Restarted { .. } => "restarted",
        Failure::Refused { .. } => "refused",
        Failure::Protocol { .. } => "protocol",
        Failure::Digest { .. } => "digest",
        Failure::NoPath { .. } => "no_path",
        _ => "local",
    }
}

/// A provider's name, if it is one of ours: a report of another process does not make labels.
fn transport_label(name: &str) -> &'static str {
    providers::names()
        .into_iter()
        .find(|known| *known == name)
        .unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn report(ended: &str, provider: &str) -> Report {
        let text = format!(
            r#"{{"rank": 0, "ended": {ended}, "bytes_read": 200, "bytes_wire": 100, "bytes_written": 100,
            "bytes_mapped": 0, "chunks": 3, "chunks_direct": 3, "chunks_mapped": 0, "saturated": 2, "nan": 1,
            "request": "r", "linked_ns": 0, "first_ns": 0, "last_ns": 0,
            "elapsed_ns": 2000000, "routes": [{{"rank": 0, "peer": 0, "provider": "{provider}", "way": "sent", "why": "",
            "is_fallback": true}}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn names_are_those_of_the_table() {
        let text = Metrics::new().text();
        let real: BTreeSet<(String, String)> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .map(|line| line.split_once(' ').unwrap())
            .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
            .collect();
        let told: BTreeSet<(String, String)> = NAMES
            .iter()
            .map(|name| {
                (
                    name.name.trim_end_matches("_total").to_owned(),
                    name.kind.to_string(),
                )
            })
            .collect();
        assert_eq!(real, told);
        assert_eq!(told.len(), NAMES.len());
        // Samples have exactly the labels that the table says.
        for name in NAMES {
            let sample = text
                .lines()
                .find(|line| line.starts_with(name.name))
                .unwrap();
            let labels = sample
                .split_once('{')
                .map_or("", |(_, rest)| rest.split_once('}').unwrap().0);
            let labels: Vec<_> = labels
                .split(',')
                .filter_map(|pair| pair.split_once('='))
                .map(|(label, _)| label)
                .filter(|label| *label != "le")
                .collect();
            assert_eq!(labels, name.labels, "{sample}");
        }
    }

    #[test]
    fn a_transfer_counts_once_under_its_outcome() {
        let metrics = Metrics::new();
        metrics.transfer(&report(r#"{"outcome": "committed"}"#, "tcp"));
        let digest = r#"{"outcome": "failed", "failure": {"kind": "digest", "rank": 1, "layer": 3, "component": "key",
            "at": [0, 0], "here": 1, "there": 2}, "dirty": [{"rank": 0, "group": "", "pages": [4, 5, 6]}]}"#;
        metrics.transfer(&report(digest, "pigeon"));
        let text = metrics.text();
        for line in [
            "moai_transfers_total{status=\"committed\"} 1",
            "moai_transfers_total{status=\"digest\"} 1",
            "moai_transfers_total{status=\"deadline\"} 0",
            "moai_transfer_read_bytes_total 400",
            "moai_transfer_wire_bytes_total 200",
            "moai_saturated_elements_total 4",
            "moai_digest_mismatches_total 1",
            "moai_dirty_pages_total 3",
            "moai_routes_total{transport=\"tcp\",status=\"sent\"} 1",
            "moai_routes_total{transport=\"other\",status=\"sent\"} 1",
            "moai_fallbacks_total{transport=\"tcp\"} 1",
            "moai_transfer_duration_seconds_count{status=\"committed\"} 1",
            "moai_transfer_duration_seconds_sum{status=\"failed\"} 0.002",
        ] {
            assert!(
                text.lines().any(|other| other == line),
                "{line} is not in\n{text}"
            );
        }
        assert!(!text.contains("pigeon"));
    }
}
