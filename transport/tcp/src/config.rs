//! The knobs of the TCP provider.

use std::net::SocketAddr;
use std::time::Duration;

use moai_transport::{Error, limits};

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
    /// The connection is neither authenticated nor encrypted: everyone who reaches the address is
    /// taken for a peer.
    pub listen: Option<SocketAddr>,
    /// Payload that can be queued for one peer, in bytes; 1 to 1 GiB, by default
    /// [`limits::STAGING_RING_BYTES`]. The largest batch that can be posted is as large.
    ///
    /// Costs this much memory for each peer that is sent batches faster than it takes them. Less than
    /// two batches, and posting waits for the network.
    pub staging_bytes: u32,
    /// Most peers at a time, 1 to [`limits::MAX_PEERS`], which is the default. More that come are
    /// turned away.
    pub max_peers: usize,
    /// How long a peer that came to us may take for its first frame; by default
    /// [`limits::FIRST_FRAME_TIMEOUT`]. Short values turn away peers behind slow links.
    pub first_frame_timeout: Duration,
    /// How long connecting may take; by default [`limits::CONNECT_TIMEOUT`].
    pub connect_timeout: Duration,
    /// How long finishing may go without progress; by default [`limits::FINISH_TIMEOUT`].
    pub finish_timeout: Duration,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            listen: None,
            staging_bytes: limits::STAGING_RING_BYTES,
            max_peers: limits::MAX_PEERS,
            first_frame_timeout: limits::FIRST_FRAME_TIMEOUT,
            connect_timeout: limits::CONNECT_TIMEOUT,
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
        ];
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
