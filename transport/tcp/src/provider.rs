//! The provider, as a value.

use std::fs;

use moai_transport::{Address, Error, Interface, Obstacle, Provider};

use crate::location::locate;
use crate::{NAME, Security, TcpConfig, TcpInterface};

/// TCP: reaches every host there is a route to.
///
/// ```
/// use moai_transport::Provider;
/// use moai_transport_tcp::{TcpConfig, TcpProvider};
///
/// let provider = TcpProvider::new(TcpConfig::default());
/// let interface = provider.open()?;
/// assert_eq!(interface.name(), "tcp");
/// # Ok::<(), moai_transport::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct TcpProvider {
    config: TcpConfig,
}

impl TcpProvider {
    /// Opens interfaces as `config` says.
    #[must_use]
    pub fn new(config: TcpConfig) -> Self {
        Self { config }
    }
}

impl Provider for TcpProvider {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe(&self) -> Result<String, String> {
        self.config.check().map_err(|error| error.to_string())?;
        let congestion = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
        let congestion =
            congestion.map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned());
        Ok(format!(
            "sockets of the system; connections a peer: {}; congestion control: {congestion}; links: {}",
            self.config.lanes,
            match &self.config.security {
                Security::None => "not protected",
                Security::Certificate(_) => "TLS, by certificates",
                Security::SharedKey(_) => "TLS, by a shared key",
            }
        ))
    }

    fn obstacle(&self, address: &Address) -> Option<Obstacle> {
        locate(address).err()
    }

    fn open(&self) -> Result<Box<dyn Interface + Send>, Error> {
        Ok(Box::new(TcpInterface::new(self.config.clone())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_whether_it_can_and_what_it_cannot_reach() {
        let provider = TcpProvider::default();
        assert!(provider.probe().unwrap().contains("connections a peer: 1"));
        let config = TcpConfig {
            lanes: 17,
            ..TcpConfig::default()
        };
        let why = TcpProvider::new(config).probe().unwrap_err();
        assert!(why.contains("lanes is 17"), "{why}");
        assert_eq!(provider.obstacle(&"tcp:[::1]:7".parse().unwrap()), None);
        let why = provider.obstacle(&"shm:x".parse().unwrap()).unwrap();
        assert!(why.reason().contains("provider shm"), "{why}");
    }
}
