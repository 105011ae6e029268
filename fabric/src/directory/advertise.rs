//! What a node tells others to connect to, apart from what it listens on.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use moai_transport::Address;
use thiserror::Error;

/// Who is to use an advertised address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_enums,
    reason = "a peer is on this host, or may not be"
)]
pub enum Audience {
    /// Only processes of this host, as where the directory itself is on loopback: loopback addresses will do.
    ThisHost,
    /// Peers on other hosts, too.
    OtherHosts,
}

/// An address cannot be advertised.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AdvertiseError {
    /// It stands for all addresses of a host.
    #[error(
        "{address} is every address of whoever reads it, so that no peer could connect to it: set MOAI_ADVERTISE to an address of this host that peers reach, such as {example}"
    )]
    Unspecified {
        /// The address.
        address: String,
        /// One that this host has.
        example: String,
    },
    /// It is this host for whoever reads it.
    #[error(
        "{address} is on loopback, where peers on other hosts would find themselves: set MOAI_BIND to an address that peers reach, or to 0.0.0.0 with MOAI_ADVERTISE={example}"
    )]
    Loopback {
        /// The address.
        address: String,
        /// One that this host has.
        example: String,
    },
    /// No address of this host leads to others.
    #[error(
        "this host has no route to {peer}, which says from what address peers would see it: set MOAI_ADVERTISE"
    )]
    NoRoute {
        /// Where the route would lead.
        peer: IpAddr,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

/// The address to advertise: what is configured, else what is listened on if that is one address, else the one by which
/// this host reaches `peer`, or its default route where there is none.
///
/// Port 0 of a configured address stands for the one that is listened on. Nothing is sent.
///
/// # Errors
///
/// [`AdvertiseError`] if `audience` could not connect to it.
pub fn choose(
    bind: SocketAddr,
    configured: Option<SocketAddr>,
    peer: Option<IpAddr>,
    audience: Audience,
) -> Result<SocketAddr, AdvertiseError> {
    let address = match configured {
        Some(address) if address.port() == 0 => SocketAddr::new(address.ip(), bind.port()),
        Some(address) => address,
        None if !bind.ip().is_unspecified() => bind,
        None if audience == Audience::ThisHost => {
            let loopback = match bind {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            SocketAddr::new(loopback, bind.port())
        }
        None => SocketAddr::new(towards(bind, peer)?, bind.port()),
    };
    allow(&address.to_string(), address.ip(), audience)?;
    Ok(address)
}

/// Whether `audience` can connect to an address of a provider. What is no IP address, as a name or a place in shared
/// memory, is whoever gave it to judge.
///
/// # Errors
///
/// [`AdvertiseError`] if not.
pub fn check(address: &Address, audience: Audience) -> Result<(), AdvertiseError> {
    match socket(address) {
        Some(socket) => allow(&address.to_string(), socket.ip(), audience),
        None => Ok(()),
    }
}

/// Whether an address stands for all of a host's.
pub(super) fn is_unspecified(address: &Address) -> bool {
    socket(address).is_some_and(|socket| canonical(socket.ip()).is_unspecified())
}

fn socket(address: &Address) -> Option<SocketAddr> {
    address.location().parse().ok()
}

/// `::ffff:127.0.0.1` is `127.0.0.1`.
fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

fn allow(address: &str, ip: IpAddr, audience: Audience) -> Result<(), AdvertiseError> {
    let ip = canonical(ip);
    let example = || {
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        towards(any, None).map_or_else(|_| "10.0.0.7".to_owned(), |ip| ip.to_string())
    };
    let address = address.to_owned();
    if ip.is_unspecified() {
        return Err(AdvertiseError::Unspecified {
            address,
            example: example(),
        });
    }
    if ip.is_loopback() && audience == Audience::OtherHosts {
        return Err(AdvertiseError::Loopback {
            address,
            example: example(),
        });
    }
    Ok(())
}

/// The address of this host that the system would send from to reach a peer.
///
/// Connecting a datagram socket asks the routing table and sends nothing.
fn towards(bind: SocketAddr, peer: Option<IpAddr>) -> Result<IpAddr, AdvertiseError> {
    let peer = peer.unwrap_or(match bind {
        SocketAddr::V4(_) => DEFAULT_ROUTE_V4,
        SocketAddr::V6(_) => DEFAULT_ROUTE_V6,
    });
    let any: IpAddr = match peer {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let found = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((peer, DISCARD_PORT))?;
        Ok(socket.local_addr()?.ip())
    });
    found.map_err(|cause| AdvertiseError::NoRoute { peer, cause })
}

/// Addresses for documentation (RFC 5737, RFC 3849): nobody has them, so that only a default route leads there.
const DEFAULT_ROUTE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const DEFAULT_ROUTE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
/// Any port would do: nothing is sent.
const DISCARD_PORT: u16 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_configured_comes_first_then_what_is_listened_on() {
        let everywhere = Audience::OtherHosts;
        let chosen = choose(at("0.0.0.0:7"), Some(at("10.1.2.3:0")), None, everywhere);
        assert_eq!(chosen.unwrap(), at("10.1.2.3:7"));
        let chosen = choose(at("0.0.0.0:7"), Some(at("10.1.2.3:9")), None, everywhere);
        assert_eq!(chosen.unwrap(), at("10.1.2.3:9"));
        let chosen = choose(at("10.9.9.9:7"), None, None, everywhere);
        assert_eq!(chosen.unwrap(), at("10.9.9.9:7"));
    }

    #[test]
    fn the_route_to_a_peer_tells_the_address() {
        let peer = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert_eq!(
            towards(at("0.0.0.0:7"), peer).unwrap(),
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        );
        let here = choose(at("0.0.0.0:7"), None, None, Audience::ThisHost);
        assert_eq!(here.unwrap(), at("127.0.0.1:7"));
        // Where there is a default route it leads over an address of this host, which peers can reach.
        match choose(at("0.0.0.0:7"), None, None, Audience::OtherHosts) {
            Ok(found) => assert!(!found.ip().is_loopback() && !found.ip().is_unspecified()),
            Err(error) => assert!(error.to_string().contains("MOAI_ADVERTISE"), "{error}"),
        }
    }

    #[test]
    fn what_no_peer_could_connect_to_is_refused_and_says_what_to_set() {
        for address in ["0.0.0.0:1", "[::]:1", "[::ffff:0.0.0.0]:1"] {
            for audience in [Audience::ThisHost, Audience::OtherHosts] {
                let error = choose(at("10.0.0.1:1"), Some(at(address)), None, audience);
                let error = error.unwrap_err().to_string();
                assert!(
                    error.contains(address) && error.contains("MOAI_ADVERTISE"),
                    "{error}"
                );
            }
        }
        for address in [
            "127.0.0.1:1",
            "127.9.9.9:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(choose(at(address), None, None, Audience::ThisHost).is_ok());
            let error = choose(at(address), None, None, Audience::OtherHosts).unwrap_err();
            assert!(error.to_string().contains("MOAI_ADVERTISE="), "{error}");
            let tcp = Address::new("tcp", address).unwrap();
            assert!(check(&tcp, Audience::OtherHosts).is_err());
        }
        assert!(check(&"shm:@moai/12".parse().unwrap(), Audience::OtherHosts).is_ok());
    }
}
