//! Where a process of this host can be reached.
//!
//! `HOST/NET/NAME`: the first half of the host's boot identity in hexadecimal, the inode of the network namespace, and
//! the name of a Unix socket: `@` and a name that holds in that namespace, or a path, for which the namespace is `-`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use moai_transport::{Address, Obstacle, PeerId};
use rustix::net::SocketAddrUnix;

/// The host and namespace of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Here {
    host: String,
    net: String,
}

/// Name of the provider, and so of its addresses.
pub(crate) const NAME: &str = "shm";

impl Here {
    /// Asks the system.
    pub(crate) fn look() -> Result<Self, String> {
        let boot = fs::read_to_string(BOOT_ID)
            .map_err(|error| format!("cannot tell hosts apart: {BOOT_ID}: {error}"))?;
        let host: String = boot
            .chars()
            .filter(char::is_ascii_hexdigit)
            .take(16)
            .collect();
        let net = fs::metadata(NET_NAMESPACE)
            .map_err(|error| {
                format!("cannot tell network namespaces apart: {NET_NAMESPACE}: {error}")
            })?
            .ino()
            .to_string();
        Ok(Self { host, net })
    }

    /// The address of a socket of this process; `None` if its name cannot be written.
    pub(crate) fn address(&self, name: &str) -> Option<Address> {
        let net = if name.starts_with('@') {
            &self.net
        } else {
            "-"
        };
        Address::new(NAME, format_args!("{}/{net}/{name}", self.host)).ok()
    }

    /// What stands for the end of a peer that came here, which has no address.
    pub(crate) fn guest(&self, peer: PeerId) -> Address {
        Address::new(NAME, format_args!("{}/-/guest-{peer}", self.host))
            .expect("hexadecimal digits and a number make an address")
    }

    /// The socket behind an address, or why it is out of reach.
    pub(crate) fn socket(&self, address: &Address) -> Result<SocketAddrUnix, Obstacle> {
        if address.provider() != NAME {
            let reason = format!("it is an address of {}", address.provider());
            return Err(Obstacle::Elsewhere(reason));
        }
        let mut parts = address.location().splitn(3, '/');
        let (Some(host), Some(net), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
            let reason = "it is no address of shm; expected shm:HOST/NET/NAME".to_owned();
            return Err(Obstacle::Refused(reason));
        };
        if host != self.host {
            return Err(Obstacle::Elsewhere(format!(
                "it is on another host, or of another boot of this one ({host}, here {})",
                self.host
            )));
        }
        let refused = |error| Obstacle::Refused(format!("{name:?} cannot name a socket: {error}"));
        if let Some(name) = name.strip_prefix('@') {
            if net != self.net {
                return Err(Obstacle::Elsewhere(format!(
                    "it is in another network namespace ({net}, here {}); let it listen on a path in a directory \
                     that both can see",
                    self.net
                )));
            }
            return SocketAddrUnix::new_abstract_name(name.as_bytes()).map_err(refused);
        }
        if !Path::new(name).exists() {
            let reason = format!("there is no socket {name} here");
            return Err(Obstacle::Refused(reason));
        }
        SocketAddrUnix::new(name).map_err(refused)
    }
}

/// Changes with every boot, and containers share it.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

const NET_NAMESPACE: &str = "/proc/self/ns/net";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_here_is_reached_and_others_say_why_not() {
        let here = Here::look().unwrap();
        assert_eq!(here.host.len(), 16);
        let address = here.address("@moai").unwrap();
        let socket = here.socket(&address).unwrap();
        assert_eq!(socket.abstract_name(), Some(&b"moai"[..]));
        let path = std::env::temp_dir();
        let path = path.to_str().unwrap();
        let socket = here.socket(&here.address(path).unwrap()).unwrap();
        assert_eq!(socket.path_bytes(), Some(path.as_bytes()));
        let elsewhere = Here {
            host: "0123456789abcdef".to_owned(),
            net: "1".to_owned(),
        };
        let net = Here {
            host: here.host.clone(),
            ..elsewhere.clone()
        };
        for (address, problem, is_elsewhere) in [
            (elsewhere.address("@moai").unwrap(), "on another host", true),
            (
                net.address("@moai").unwrap(),
                "in another network namespace (1, here",
                true,
            ),
            (
                here.address("/nowhere/at/all").unwrap(),
                "no socket /nowhere/at/all",
                false,
            ),
            (
                "tcp:127.0.0.1:1".parse().unwrap(),
                "an address of tcp",
                true,
            ),
            (
                "shm:x".parse().unwrap(),
                "expected shm:HOST/NET/NAME",
                false,
            ),
        ] {
            let why = here.socket(&address).unwrap_err();
            assert!(why.reason().contains(problem), "{address}: {why}");
            assert_eq!(matches!(why, Obstacle::Elsewhere(_)), is_elsewhere);
        }
    }
}
