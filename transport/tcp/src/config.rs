//! The knobs of the TCP provider.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use moai_transport::{Error, limits};

use crate::Security;

/// How a [`TcpInterface`](crate::TcpInterface) is opened.
///
/// ```
/// use moai_transport_tcp::TcpConfig;
///
/// let config = TcpConfig { listen: Some(([127, 0, 0, 1], 0).into()), ..TcpConfig::default() };
/// assert_eq!(config.staging_bytes, 8 << 20);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpConfig {
    /// Address to listen on; port 0 lets the system choose one. `None`, the default, only connects.
    ///
    /// Without [`security`](Self::security), everyone who reaches the address is taken for a peer.
    pub listen: Option<SocketAddr>,
    /// What peers are told to connect to, where that differs from `listen`: behind a forwarded port, or when listening
    /// on every address of the host, which cannot be told to anybody. Port 0 stands for the one that is listened on.
    pub advertise: Option<SocketAddr>,
    /// Ports to try, in order, instead of the one in `listen`: what a firewall leaves open.
    pub ports: Option<RangeInclusive<u16>>,
    /// How peers prove who they are; by default not at all.
    pub security: Security,
    /// Whether payload is encrypted as everything else is, where links are protected at all; by default it is. If neither
    /// side asks for it, headers, lists, messages and short pieces still are; the payload of batches and long pieces of
    /// puts and gets is sent as it is, and whoever is on the way can read and change it.
    pub seal_payload: bool,
    /// Payload that can be queued for one peer, in bytes; 1 to 1 GiB, by default
    /// [`limits::STAGING_RING_BYTES`]. The largest batch that can be posted is as large.
    ///
    /// Costs this much memory for each peer that is sent batches faster than it takes them. Less than
    /// two batches, and posting waits for the network.
    pub staging_bytes: u32,
    /// Most peers at a time, 1 to [`limits::MAX_PEERS`], which is the default. More that come are
    /// turned away.
    pub max_peers: usize,
    /// Connections that one peer's puts and gets are spread over, 1 to [`limits::MAX_LANES`], by default 1. Of two
    /// peers, the one with fewer decides. Messages and batches stay on the first, in order.
    ///
    /// Within a host two were no faster than one; where a single stream does not fill the link, more do, at the cost of a
    /// descriptor and socket buffers each.
    pub lanes: u32,
    /// How long a peer that came to us may take for its first frame; by default
    /// [`limits::FIRST_FRAME_TIMEOUT`]. Short values turn away peers behind slow links.
    pub first_frame_timeout: Duration,
    /// How long connecting may take; by default [`limits::CONNECT_TIMEOUT`].
    pub connect_timeout: Duration,
    /// How long a peer may be silent on the wire, not answering the system's probes, before it is taken for lost;
    /// at least 1 s, by default 20 s. A network that is interrupted for longer loses its peers; until then, a host
    /// that died holds on to what was sent to it.
    pub silence_timeout: Duration,
    /// How long to look for events again and again before waiting for them, after the last one; by default not at
    /// all. Saves being woken, and costs a core meanwhile.
    pub spin: Duration,
    /// How long finishing may go without progress; by default [`limits::FINISH_TIMEOUT`].
    pub finish_timeout: Duration,
}

/// Long enough for a network that hiccups, short enough for whoever waits for a host that died.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(20);

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            listen: None,
            advertise: None,
            ports: None,
            security: Security::None,
            seal_payload: true,
            staging_bytes: limits::STAGING_RING_BYTES,
            max_peers: limits::MAX_PEERS,
            lanes: 1,
            first_frame_timeout: limits::FIRST_FRAME_TIMEOUT,
            connect_timeout: limits::CONNECT_TIMEOUT,
            silence_timeout: SILENCE_TIMEOUT,
            spin: Duration::ZERO,
            finish_timeout: limits::FINISH_TIMEOUT,
        }
    }
}

impl TcpConfig {
    /// Whether every knob is in its range.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let knobs = [
            (
                "staging_bytes",
                u64::from(self.staging_bytes),
                u64::from(limits::MAX_STAGING_RING_BYTES),
            ),
            ("max_peers", self.max_peers as u64, limits::MAX_PEERS as u64),
            ("lanes", self.lanes.into(), limits::MAX_LANES.into()),
        ];
        let silence = self.silence_timeout.as_secs();
        if !(1..=3600).contains(&silence) {
            return Err(Error::Config {
                knob: "silence_timeout in seconds",
                value: silence,
                smallest: 1,
                largest: 3600,
            });
        }
        for (knob, value, largest) in knobs {
            if !(1..=largest).contains(&value) {
                return Err(Error::Config {
                    knob,
                    value,
                    smallest: 1,
                    largest,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knobs_out_of_range_are_named() {
        assert!(TcpConfig::default().check().is_ok());
        let config = TcpConfig {
            staging_bytes: 0,
            ..TcpConfig::default()
        };
        assert_eq!(
            config.check().unwrap_err().to_string(),
            "staging_bytes is 0, which is not in 1..=1073741824"
        );
        let config = TcpConfig {
            max_peers: 1025,
            ..TcpConfig::default()
        };
        assert!(config.check().is_err());
    }
}
