//! What the TLS library does at each step, for whichever end of a connection we are.
//!
//! The library keeps no bytes: ciphertext lies in buffers of ours, whose sizes are ours to bound.

use std::{fmt, io};

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncryptError, UnbufferedStatus};
use rustls::{CommonState, Error};

use crate::limits::RECORD_BYTES;

/// Most plaintext of one record.
pub(super) const FRAGMENT_BYTES: usize = 16 << 10;

/// What a record costs on the wire beyond its plaintext: 22 bytes, and room for a message that changes keys.
const RECORD_EXTRA: usize = 64;

/// Which end of a connection we are.
pub(super) enum End {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client(_) => "Client",
            Self::Server(_) => "Server",
        })
    }
}

/// Where a connection stands when there is nothing more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// The handshake goes on with more from the peer.
    Shaking,
    /// Each side knows the other.
    Open,
    /// The peer has said that nothing more will come.
    Ended,
}

/// Ciphertext that has not left yet.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

/// The two ends of the library, which have the same methods and no name in common.
trait Records {
    type Data;
    fn records<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Records for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn records<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Records for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn records<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl End {
    pub(super) fn state(&self) -> &CommonState {
        match self {
            Self::Client(end) => end,
            Self::Server(end) => end,
        }
    }

    /// Takes records from the front of `incoming`, until they end or the library needs more. Plaintext goes to `sink`,
    /// what is to be sent to `outgoing`. Returns how much of `incoming` is done with, whatever the outcome.
    pub(super) fn advance(
        &mut self,
        incoming: &mut [u8],
        outgoing: &mut Outgoing,
        sink: &mut dyn FnMut(&[u8]),
    ) -> (usize, Result<At, Error>) {
        match self {
            Self::Client(end) => advance(end, incoming, outgoing, sink),
            Self::Server(end) => advance(end, incoming, outgoing, sink),
        }
    }

    /// What the library wants the peer to hear of an error, which it has returned just now. Nothing else is asked of it
    /// afterwards: what has come after the error is not looked at.
    pub(super) fn alert(&mut self, incoming: &mut [u8], outgoing: &mut Outgoing) {
        match self {
            Self::Client(end) => alert(end, incoming, outgoing),
            Self::Server(end) => alert(end, incoming, outgoing),
        }
    }

    /// Encrypts `plaintext`. Only when open, and between records.
    pub(super) fn seal(&mut self, plaintext: &[u8], outgoing: &mut Outgoing) -> io::Result<()> {
        match self {
            Self::Client(end) => seal(end, plaintext, outgoing),
            Self::Server(end) => seal(end, plaintext, outgoing),
        }
    }

    /// Lets the next record be sealed by new keys.
    #[cfg(test)]
    pub(super) fn change_keys(&mut self) {
        let changed = match self {
            Self::Client(end) => match end.process_tls_records(&mut []).state.unwrap() {
                ConnectionState::WriteTraffic(traffic) => traffic.refresh_traffic_keys(),
                other => panic!("{other:?}"),
            },
            Self::Server(end) => match end.process_tls_records(&mut []).state.unwrap() {
                ConnectionState::WriteTraffic(traffic) => traffic.refresh_traffic_keys(),
                other => panic!("{other:?}"),
            },
        };
        changed.unwrap();
    }

    /// Says that nothing more will come. As [`seal`](Self::seal).
    pub(super) fn farewell(&mut self, outgoing: &mut Outgoing) -> io::Result<()> {
        match self {
            Self::Client(end) => farewell(end, outgoing),
            Self::Server(end) => farewell(end, outgoing),
        }
    }
}

fn advance<E: Records>(
    end: &mut E,
    incoming: &mut [u8],
    outgoing: &mut Outgoing,
    sink: &mut dyn FnMut(&[u8]),
) -> (usize, Result<At, Error>) {
    let mut consumed = 0;
    let mut has_ended = false;
    loop {
        let UnbufferedStatus { discard, state } = end.records(&mut incoming[consumed..]);
        let at = match state {
            Err(error) => {
                consumed += discard;
                return (consumed, Err(error));
            }
            Ok(state) => match state {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        match record {
                            Ok(record) => sink(record.payload),
                            Err(error) => return (consumed, Err(error)),
                        }
                    }
                    None
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    // The library asks for what it needs if this is too little.
                    let mut room = RECORD_EXTRA;
                    loop {
                        match data.encode(outgoing.room(room)) {
                            Ok(bytes) => break outgoing.end += bytes,
                            Err(rustls::unbuffered::EncodeError::InsufficientSize(size)) => {
                                room = size.required_size;
                            }
                            Err(error) => {
                                return (consumed, Err(Error::General(error.to_string())));
                            }
                        }
                    }
                    None
                }
                ConnectionState::TransmitTlsData(data) => {
                    data.done();
                    None
                }
                ConnectionState::PeerClosed => {
                    has_ended = true;
                    None
                }
                ConnectionState::Closed => Some(At::Ended),
                ConnectionState::WriteTraffic(_) if has_ended => Some(At::Ended),
                ConnectionState::WriteTraffic(_) => Some(At::Open),
                // Early data is not offered, so the library does not come here; more of it may be invented.
                ConnectionState::BlockedHandshake | ConnectionState::ReadEarlyData(_) | _ => {
                    Some(At::Shaking)
                }
            },
        };
        consumed += discard;
        if let Some(at) = at {
            return (consumed, Ok(at));
        }
    }
}

fn alert<E: Records>(end: &mut E, incoming: &mut [u8], outgoing: &mut Outgoing) {
    if let Ok(ConnectionState::EncodeTlsData(mut data)) = end.records(incoming).state {
        // An alert is a few bytes; without it the peer hears that the connection has ended.
        let said = data.encode(outgoing.room(RECORD_EXTRA));
        outgoing.end += said.unwrap_or(0);
    }
}

fn seal<E: Records>(end: &mut E, plaintext: &[u8], outgoing: &mut Outgoing) -> io::Result<()> {
    let records = plaintext.len().div_ceil(FRAGMENT_BYTES);
    let room = plaintext.len() + records * RECORD_EXTRA;
    loop {
        let state = end.records(&mut []).state.map_err(io::Error::other)?;
        match state {
            ConnectionState::WriteTraffic(mut traffic) => {
                let sealed = traffic.encrypt(plaintext, outgoing.room(room));
                let sealed = sealed.map_err(unsealed)?;
                outgoing.end += sealed;
                return Ok(());
            }
            // Its own records come first.
            ConnectionState::EncodeTlsData(mut data) => {
                let encoded = data.encode(outgoing.room(RECORD_BYTES));
                outgoing.end += encoded.map_err(io::Error::other)?;
            }
            ConnectionState::TransmitTlsData(data) => data.done(),
            ConnectionState::PeerClosed => {}
            _ => return Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

fn farewell<E: Records>(end: &mut E, outgoing: &mut Outgoing) -> io::Result<()> {
    if let Ok(ConnectionState::WriteTraffic(mut traffic)) = end.records(&mut []).state {
        let said = traffic.queue_close_notify(outgoing.room(RECORD_EXTRA));
        let sealed = said.map_err(unsealed)?;
        outgoing.end += sealed;
    }
    Ok(())
}

fn unsealed(error: EncryptError) -> io::Error {
    io::Error::other(error)
}

impl Outgoing {
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(super) fn holds_memory(&self) -> bool {
        !self.bytes.is_empty()
    }

    pub(super) fn trim(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// So many have left.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.start += bytes;
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// At least so many bytes behind what is there.
    fn room(&mut self, bytes: usize) -> &mut [u8] {
        if self.bytes.len() < self.end + bytes {
            self.bytes.resize(self.end + bytes, 0);
        }
        &mut self.bytes[self.end..]
    }
}
