//! Every metric's name, in one table that the book repeats.

use std::fmt;

/// How a metric moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "the kinds that are used")]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How often which sizes were seen.
    Histogram,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        })
    }
}

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Name {
    /// As it is scraped.
    pub name: &'static str,
    /// How it moves.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
}

const fn counter(name: &'static str, labels: &'static [&'static str]) -> Name {
    Name {
        name,
        kind: Kind::Counter,
        labels,
    }
}

const fn gauge(name: &'static str) -> Name {
    Name {
        name,
        kind: Kind::Gauge,
        labels: &[],
    }
}

/// All of them.
pub const NAMES: &[Name] = &[
    counter("moai_transfers_total", &["status"]),
    Name {
        name: "moai_transfer_duration_seconds",
        kind: Kind::Histogram,
        labels: &["status"],
    },
    counter("moai_transfer_read_bytes_total", &[]),
    counter("moai_transfer_wire_bytes_total", &[]),
    counter("moai_transfer_written_bytes_total", &[]),
    counter("moai_transfer_mapped_bytes_total", &[]),
    counter("moai_transfer_chunks_total", &[]),
    counter("moai_saturated_elements_total", &[]),
    counter("moai_nan_elements_total", &[]),
    counter("moai_dirty_pages_total", &[]),
    counter("moai_digest_mismatches_total", &[]),
    counter("moai_routes_total", &["transport", "status"]),
    counter("moai_fallbacks_total", &["transport"]),
    counter("moai_protocol_events_total", &["event"]),
    gauge("moai_quarantined"),
    gauge("moai_links"),
    counter("moai_transport_received_bytes_total", &["transport"]),
    counter("moai_transport_sent_bytes_total", &["transport"]),
    counter("moai_transport_put_bytes_total", &["transport"]),
    counter("moai_transport_got_bytes_total", &["transport"]),
    counter("moai_transport_mapped_bytes_total", &["transport"]),
    counter("moai_transport_faults_total", &["transport"]),
    counter("moai_transport_refused_frames_total", &["transport"]),
    counter("moai_transport_connections_total", &["transport", "status"]),
    gauge("moai_ready"),
];
