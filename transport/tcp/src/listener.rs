//! Accepting connections.

use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Instant;

use mio::net::{TcpListener, TcpStream};
use moai_transport::limits::ACCEPT_PAUSE;
use tracing::{debug, warn};

/// A listening socket that rests when the system cannot give it a connection.
///
/// With no descriptor left, the connection that waits stays in the system's queue: trying at once
/// would spin, and waiting for the next event would let it wait for ever.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: TcpListener,
    pub(crate) address: SocketAddr,
    ready: bool,
    resting_until: Option<Instant>,
    warned: bool,
}

impl Listener {
    /// Listens at `address`, with the first of `ports` that is free instead of its own.
    pub(crate) fn bind(
        mut address: SocketAddr,
        ports: Option<RangeInclusive<u16>>,
    ) -> io::Result<Self> {
        let mut bound = None;
        for port in ports.unwrap_or_else(|| address.port()..=address.port()) {
            address.set_port(port);
            bound = Some(TcpListener::bind(address));
            let in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
            if !matches!(&bound, Some(Err(error)) if in_use(error)) {
                break;
            }
        }
        let none = || io::Error::new(io::ErrorKind::InvalidInput, "the range of ports is empty");
        let socket = bound.unwrap_or_else(|| Err(none()))?;
        let address = socket.local_addr()?;
        Ok(Self {
            socket,
            address,
            ready: true,
            resting_until: None,
            warned: false,
        })
    }

    /// The system reports that someone waits.
    pub(crate) fn note(&mut self) {
        self.ready = true;
    }

    /// Whether accepting may bring something now.
    pub(crate) fn is_ready(&self, now: Instant) -> bool {
        self.ready && self.resting_until.is_none_or(|until| until <= now)
    }

    /// Accepts nobody until then.
    pub(crate) fn rest(&mut self, until: Instant) {
        self.resting_until = Some(until);
    }

    /// When to try again, for a listener that rests.
    pub(crate) fn resting_until(&self) -> Option<Instant> {
        self.resting_until.filter(|_| self.ready)
    }

    /// The next connection that waits, if any.
    pub(crate) fn accept(&mut self, now: Instant) -> Option<(TcpStream, SocketAddr)> {
        self.resting_until = None;
        loop {
            match self.socket.accept() {
                Ok(accepted) => return Some(accepted),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.ready = false;
                    return None;
                }
                // Interrupted, or the one that waited has left: there may be others behind it.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => {
                    self.resting_until = Some(now + ACCEPT_PAUSE);
                    if self.warned {
                        debug!(provider = "tcp", call = "accept", reason = %error, "cannot accept");
                    } else {
                        self.warned = true;
                        warn!(provider = "tcp", call = "accept", reason = %error, "cannot accept");
                    }
                    return None;
                }
            }
        }
    }
}
