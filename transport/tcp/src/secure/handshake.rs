//! From the first byte until each side knows the other.
//!
//! ```text
//!  who connects                                   who is connected to
//!    ── hello ───────────────────────────────────▶
//!    ◀── hello, certificate, proof ──────────────
//!    ── certificate, proof, greeting ────────────▶
//!    ◀── greeting ───────────────────────────────   it has let us in
//! ```
//!
//! TLS lets a client speak before the server has looked at its certificate. So the server greets as well, and no side takes
//! the other for a peer before it was greeted. The greetings also agree on whether payload may travel open.
//!
//! What goes wrong is told in full to our side, and to the peer as an alert of TLS, which says no more than that it failed.

use std::io::{self, Read, Write};
use std::sync::Arc;

use moai_transport::{Closed, Identity, Unauthenticated};
use rustls::{AlertDescription, CertificateError, Error};

use super::credentials::PROTOCOL;
use super::identity_of;
use super::records::{At, End};
use super::session::Session;
use crate::limits::{FIRST_BYTES, HANDSHAKE_BYTES};

/// Version of the greeting, and what it says of payload.
const GREETING_BYTES: usize = 2;
const VERSION: u8 = 1;
const SEALED: u8 = 1;
const OPEN: u8 = 2;

/// First bytes of records: of a handshake and of an alert.
const HANDSHAKE_RECORD: u8 = 22;
const ALERT_RECORD: u8 = 21;

/// What a step of the handshake has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shaken {
    /// Each side knows the other.
    Done,
    /// The socket has no more for now.
    NeedsRead,
    /// The socket takes no more for now.
    NeedsWrite,
}

impl Session {
    /// Goes on with the handshake, as far as the socket goes. `seal_payload` is what this side asks for.
    ///
    /// # Errors
    ///
    /// [`Closed::Unauthenticated`] with everything that this side may know; the peer was sent an alert.
    pub(crate) fn shake(
        &mut self,
        socket: &mut (impl Read + Write),
        seal_payload: bool,
    ) -> Result<Shaken, Closed> {
        loop {
            if !self.push(socket).map_err(ended)? {
                return Ok(Shaken::NeedsWrite);
            }
            if self.is_known {
                // Frames are mostly shorter than certificates.
                self.trim();
                return Ok(Shaken::Done);
            }
            match self.step(seal_payload) {
                Ok(true) => continue,
                Ok(false) => {}
                Err(why) => {
                    // The alert, if the socket takes it.
                    let _ = self.push(socket);
                    return Err(Closed::Unauthenticated(why));
                }
            }
            match self.read_more(socket) {
                Ok(0) => return Err(Closed::Unauthenticated(Unauthenticated::Hung)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Shaken::NeedsRead);
                }
                Err(error) => return Err(ended(error)),
            }
        }
    }

    /// What there is to do with what has come; whether there was something.
    fn step(&mut self, seal_payload: bool) -> Result<bool, Unauthenticated> {
        let is_client = matches!(self.end, End::Client(_));
        let incoming = &mut self.incoming;
        let first = incoming.bytes[incoming.start..incoming.end].first();
        let is_first = self.end.state().protocol_version().is_none();
        if let Some(&first) = first.filter(|_| is_first)
            && first != HANDSHAKE_RECORD
            && !(first == ALERT_RECORD && is_client)
        {
            return Err(Unauthenticated::Plain);
        }
        let before = self.outgoing.len();
        if self.identity.is_none() {
            let plain = &mut self.plain;
            let (start, end) = (incoming.start, incoming.end);
            let (consumed, at) = self.end.advance(
                &mut incoming.bytes[start..end],
                &mut self.outgoing,
                &mut |payload| plain.extend_from_slice(payload),
            );
            incoming.start += consumed;
            match at {
                Ok(At::Open) => self.identity = Some(self.identify()?),
                Ok(At::Shaking) => return Ok(self.outgoing.len() > before),
                Ok(At::Ended) => return Err(Unauthenticated::Hung),
                Err(error) => {
                    let (start, end) = (self.incoming.start, self.incoming.end);
                    let rest = &mut self.incoming.bytes[start..end];
                    self.end.alert(rest, &mut self.outgoing);
                    return Err(explain(&error, &self.us));
                }
            }
        }
        let failed = |reason: &str| Unauthenticated::Handshake {
            reason: reason.to_owned(),
        };
        let greet = |session: &mut Self, payload: u8| {
            session.has_greeted = true;
            let sealed = session.seal_alone(&[VERSION, payload]);
            sealed.map_err(|error| failed(&error.to_string()))
        };
        if is_client && !self.has_greeted {
            greet(self, if seal_payload { SEALED } else { OPEN })?;
            return Ok(true);
        }
        // The greeting came along, or is in a record of its own.
        while self.plain.len() < GREETING_BYTES {
            let record = self.incoming.next_record();
            let record = record.map_err(|error| failed(&error.to_string()))?;
            let Some(record) = record else {
                return Ok(self.outgoing.len() > before);
            };
            let plain = &mut self.plain;
            let (_, at) = self
                .end
                .advance(record, &mut self.outgoing, &mut |payload| {
                    plain.extend_from_slice(payload);
                });
            match at {
                Ok(At::Ended) => return Err(Unauthenticated::Hung),
                Ok(_) => {}
                Err(error) => return Err(explain(&error, &self.us)),
            }
        }
        let asked = match self.plain[..GREETING_BYTES] {
            [VERSION, asked @ (SEALED | OPEN)] => asked,
            [version, payload] => {
                return Err(failed(&format!(
                    "the peer greets in version {version} with {payload}; this side knows version {VERSION} with {SEALED} or \
                     {OPEN}"
                )));
            }
            _ => return Ok(false),
        };
        self.plain_at = GREETING_BYTES;
        self.is_open = asked == OPEN && !seal_payload;
        if !is_client {
            greet(self, if self.is_open { OPEN } else { SEALED })?;
        } else if asked == OPEN && seal_payload {
            return Err(failed(
                "the peer sends payload open, which it was not asked for",
            ));
        }
        self.is_known = true;
        Ok(true)
    }

    /// Who the peer is. Its certificate was verified.
    fn identify(&self) -> Result<Identity, Unauthenticated> {
        let failed = |reason: String| Unauthenticated::Handshake { reason };
        let state = self.end.state();
        if state.alpn_protocol() != Some(PROTOCOL) {
            return Err(failed(
                "the peer does not speak this protocol over TLS".to_owned(),
            ));
        }
        let shown = state.peer_certificates().and_then(<[_]>::first);
        let shown = shown.ok_or_else(|| failed("the peer has shown nothing".to_owned()))?;
        if self.by_key {
            return Ok(Identity::SharedKey);
        }
        identity_of(shown).map_err(|error| failed(error.to_string()))
    }

    fn read_more(&mut self, socket: &mut impl Read) -> io::Result<usize> {
        let incoming = &mut self.incoming;
        if incoming.start > 0 {
            incoming.bytes.copy_within(incoming.start..incoming.end, 0);
            incoming.end -= incoming.start;
            incoming.start = 0;
        }
        if incoming.end == incoming.bytes.len() {
            if incoming.end >= HANDSHAKE_BYTES {
                let what = format!("a handshake of more than {HANDSHAKE_BYTES} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            let more = (2 * incoming.end).clamp(FIRST_BYTES, HANDSHAKE_BYTES);
            incoming.bytes.resize(more, 0);
        }
        let read = socket.read(&mut incoming.bytes[incoming.end..])?;
        incoming.end += read;
        Ok(read)
    }
}

/// What an error of the library means for this side.
fn explain(error: &Error, us: &Arc<str>) -> Unauthenticated {
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => {
            match other.0.downcast_ref::<Unauthenticated>() {
                Some(why) => why.clone(),
                None => Unauthenticated::Handshake {
                    reason: error.to_string(),
                },
            }
        }
        Error::AlertReceived(alert) => Unauthenticated::Refused {
            us: us.to_string(),
            alert: alert_name(*alert),
        },
        Error::NoCertificatesPresented => Unauthenticated::Handshake {
            reason: "the peer has shown no certificate".to_owned(),
        },
        Error::PeerIncompatible(reason) => Unauthenticated::Handshake {
            reason: format!(
                "the sides have no way in common ({reason:?}); both need TLS 1.3, and both certificates or both a shared key"
            ),
        },
        other => Unauthenticated::Handshake {
            reason: other.to_string(),
        },
    }
}

fn alert_name(alert: AlertDescription) -> String {
    match alert.as_str() {
        Some(name) => name.to_owned(),
        None => format!("alert {}", u8::from(alert)),
    }
}

/// A connection that ended within its handshake.
fn ended(error: io::Error) -> Closed {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            Closed::Unauthenticated(Unauthenticated::Hung)
        }
        io::ErrorKind::InvalidData => Closed::Unauthenticated(Unauthenticated::Handshake {
            reason: error.to_string(),
        }),
        _ => Closed::Io(error),
    }
}
