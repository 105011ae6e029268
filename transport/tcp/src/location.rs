//! Addresses of this provider: `tcp:` and what a socket address looks like.

use std::net::SocketAddr;

use moai_transport::{Address, Error, Obstacle};

use crate::NAME;

/// The address of a socket, as peers are told it.
///
/// ```
/// use moai_transport_tcp::tcp_address;
///
/// assert_eq!(tcp_address(([127, 0, 0, 1], 4000).into()).to_string(), "tcp:127.0.0.1:4000");
/// ```
///
/// # Panics
///
/// Never: a socket address is short and printable.
#[must_use]
pub fn tcp_address(socket: SocketAddr) -> Address {
    Address::new(NAME, socket).expect("socket addresses are short and printable")
}

/// Where to connect to for `address`.
///
/// # Errors
///
/// [`Error::Unreachable`] if the address is another provider's, or no socket can be there.
pub(crate) fn socket_address(address: &Address) -> Result<SocketAddr, Error> {
    locate(address).map_err(|obstacle| Error::Unreachable {
        provider: NAME,
        address: address.clone(),
        reason: obstacle.to_string(),
    })
}

/// As [`socket_address`], with the reason alone.
pub(crate) fn locate(address: &Address) -> Result<SocketAddr, Obstacle> {
    if address.provider() != NAME {
        let reason = format!("it is an address of provider {}", address.provider());
        return Err(Obstacle::Elsewhere(reason));
    }
    let refused = |reason: &str| Err(Obstacle::Refused(reason.to_owned()));
    let Ok(socket) = address.location().parse::<SocketAddr>() else {
        return refused("it is no IP address and port, such as 10.0.0.7:4000 or [fd00::7]:4000");
    };
    if socket.port() == 0 {
        return refused("nobody listens on port 0; the peer has to tell the port it was given");
    }
    if socket.ip().is_unspecified() {
        return refused("it stands for every address of a host, and for none of another host's");
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_back_and_nonsense_is_named() {
        for text in ["127.0.0.1:1", "[::1]:65535", "[fe80::1%3]:9"] {
            let socket = text.parse().unwrap();
            assert_eq!(socket_address(&tcp_address(socket)).unwrap(), socket);
        }
        for (text, reason) in [
            ("shm:x", "provider shm"),
            ("tcp:localhost:1", "no IP address"),
            ("tcp:1.2.3.4", "no IP address"),
            ("tcp:1.2.3.4:0", "port 0"),
            ("tcp:0.0.0.0:1", "every address"),
            ("tcp:[::]:1", "every address"),
        ] {
            let error = socket_address(&text.parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
    }
}
