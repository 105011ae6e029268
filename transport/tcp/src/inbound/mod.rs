//! The frames that come from one peer.
//!
//! - `fill`: reads, to where the next bytes belong.
//! - `header`: what a header announces.
//! - `two_sided`: messages or batches, on their way to the handler.
//! - `one_sided`: frames of puts or gets, on their way to regions.
//! - `owner`: whom a connection belongs to.

mod fill;
mod header;
mod one_sided;
mod owner;
mod two_sided;

use std::io::{self, Read};

use moai_transport::wire::{Access, HEADER_BYTES, Lane};
use moai_transport::{Batch, Closed, Handler, Piece, Reject, Stats, Unauthenticated, limits};

pub(crate) use self::owner::{Owner, Role};
use crate::limits::READ_BYTES;
use crate::one_sided::OneSided;
use crate::stream::Source;
use crate::target::{Dues, Nowhere, Placing};

/// What the handler sees of a connection, and the counters.
pub(crate) struct Context<'a> {
    pub(crate) handler: &'a mut dyn Handler,
    pub(crate) stats: &'a mut Stats,
    pub(crate) one_sided: &'a mut OneSided,
    /// What sockets are read into, one after the other.
    pub(crate) buffer: &'a mut Vec<u8>,
    /// What this side asks for when it greets a peer.
    pub(crate) seal_payload: bool,
    /// Callbacks made; says whether a poll has anything to show for itself.
    pub(crate) callbacks: u64,
}

/// Why reading stopped.
pub(crate) enum Stop {
    /// The socket has nothing more for now.
    Blocked,
    /// The peer's turn is over; there may be more.
    Turn,
    /// Too much is owed to the peer; there may be more.
    Choked,
    /// The connection is over.
    End(Closed),
    /// The first header of a connection that nobody knew is there: it is that lane of a peer, or else a peer.
    Known(Option<Lane>),
}

/// Why taking apart stopped before the end of what has arrived.
enum Halt {
    End(Closed),
    Known(Option<Lane>),
    /// Too much is owed to the peer.
    Choked,
}

/// Whether taking apart can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    On,
    /// More has to arrive first.
    Wait,
}

impl From<Closed> for Halt {
    fn from(why: Closed) -> Self {
        Self::End(why)
    }
}

impl From<Halt> for Stop {
    fn from(halt: Halt) -> Self {
        match halt {
            Halt::End(why) => Self::End(why),
            Halt::Known(lane) => Self::Known(lane),
            Halt::Choked => Self::Choked,
        }
    }
}

/// What a connection keeps between turns anyway.
const REST_BYTES: usize = 2 * HEADER_BYTES;

/// Takes the stream of one peer apart.
///
/// Bytes come either through the interface's buffer (headers, small frames and pieces, and the little that was read
/// past a payload) or past it, straight to where they belong. It is taken apart as far as possible before anything
/// else is read, so at a read it holds at most part of a header, and during a payload nothing. Between turns the
/// part of a header is kept in `rest`.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    frame: Frame,
    /// What was read and not taken apart when the last turn ended.
    rest: Vec<u8>,
    /// What is in the buffer and has not been taken apart: `start..end`.
    start: usize,
    end: usize,
    /// How far to read past what is needed. Far after small frames, which will have more behind them;
    /// not far after large ones, where it would only be copied once more.
    ahead: usize,
    /// Message or staged payload, the first `filled` bytes; kept for the next one.
    collected: Vec<u8>,
    filled: usize,
    /// Bytes that the read under way takes straight to pieces of a put or get.
    direct: u32,
    /// Pieces of a direct payload; those before `Frame::Direct::next` are full.
    pieces: Vec<Piece>,
    /// A whole frame of the peer's caller has arrived: not one by which providers talk of lanes.
    has_spoken: bool,
}

#[derive(Debug, Default)]
enum Frame {
    #[default]
    Header,
    Message {
        bytes: u32,
    },
    Staged {
        batch: Batch,
    },
    Direct {
        batch: Batch,
        /// Payload bytes for which the handler has named pieces.
        covered: u32,
        /// Payload bytes that have arrived.
        received: u32,
        /// First piece that is not full. Its offset and length are those of the part still empty.
        next: usize,
    },
    /// The list of a put or get.
    List {
        access: Access,
        is_put: bool,
    },
    /// Payload of a put, or of the answer to a get.
    Place(Placing),
    /// The same, where it goes to device memory: collected first.
    Copy(Placing),
    /// Payload that goes nowhere.
    Drop {
        left: u32,
        why: Nowhere,
    },
}

impl From<Placing> for Frame {
    fn from(placing: Placing) -> Self {
        if placing.device.is_some() {
            Self::Copy(placing)
        } else {
            Self::Place(placing)
        }
    }
}

impl Inbound {
    /// Whether a whole message, batch, put or get has arrived.
    pub(crate) fn has_spoken(&self) -> bool {
        self.has_spoken
    }

    /// Reads and hands over frames until the socket has no more or the peer's turn is over.
    ///
    /// `drained_by_short_read` says that a read which brought less than asked for has emptied the
    /// socket, and that the system will say when there is more.
    pub(crate) fn read(
        &mut self,
        socket: &mut impl Source,
        drained_by_short_read: bool,
        owner: Owner,
        dues: &mut Dues,
        context: &mut Context<'_>,
    ) -> Stop {
        provide_buffer(context.buffer);
        self.start = 0;
        self.end = self.rest.len();
        context.buffer[..self.end].copy_from_slice(&self.rest);
        let stop = self.read_on(socket, drained_by_short_read, owner, dues, context);
        self.rest.clear();
        self.rest
            .extend_from_slice(&context.buffer[self.start..self.end]);
        stop
    }

    fn read_on(
        &mut self,
        socket: &mut impl Source,
        drained_by_short_read: bool,
        owner: Owner,
        dues: &mut Dues,
        context: &mut Context<'_>,
    ) -> Stop {
        let peer = owner.peer;
        let mut turn = limits::READ_TURN_BYTES;
        loop {
            if let Err(halt) = self.take_apart(owner, dues, context) {
                return halt.into();
            }
            // Who sends without reading waits, until what we owe it has left.
            if dues.is_choked() {
                return Stop::Choked;
            }
            if turn == 0 {
                return Stop::Turn;
            }
            context.stats.reads += 1;
            let (asked, read) = match self.fill(socket, peer, context) {
                Ok(filled) => filled,
                Err(why) => return Stop::End(why),
            };
            match read {
                Ok(0) => return Stop::End(self.ended(context.buffer)),
                Ok(bytes) => {
                    context.stats.bytes_in += bytes as u64;
                    self.arrived(bytes, context);
                    turn = turn.saturating_sub(bytes);
                    if bytes < asked && drained_by_short_read {
                        let done = self.take_apart(owner, dues, context);
                        return done.map_or_else(Stop::from, |()| Stop::Blocked);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Stop::Blocked,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Stop::End(Closed::Io(error)),
            }
        }
    }

    /// Whether a buffer for long frames is kept.
    pub(crate) fn holds_memory(&self) -> bool {
        self.collected.capacity() > 0
            || self.pieces.capacity() > 0
            || self.rest.capacity() > REST_BYTES
    }

    /// Gives buffers back, between frames.
    pub(crate) fn trim(&mut self) {
        if matches!(self.frame, Frame::Header) {
            self.collected = Vec::new();
            self.pieces = Vec::new();
            self.rest.shrink_to(REST_BYTES);
        }
    }

    /// Reads and drops what comes, to learn when the peer has ended the stream.
    pub(crate) fn discard(
        &mut self,
        socket: &mut impl Read,
        buffer: &mut Vec<u8>,
        stats: &mut Stats,
    ) -> Stop {
        provide_buffer(buffer);
        let mut turn = limits::READ_TURN_BYTES;
        while turn > 0 {
            stats.reads += 1;
            match socket.read(buffer) {
                Ok(0) => return Stop::End(Closed::ByPeer),
                Ok(bytes) => {
                    stats.bytes_in += bytes as u64;
                    turn = turn.saturating_sub(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Stop::Blocked,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Stop::End(Closed::Io(error)),
            }
        }
        Stop::Turn
    }

    /// Hands over everything that has arrived whole, and moves the rest of `buffer` to where it belongs.
    fn take_apart(
        &mut self,
        owner: Owner,
        dues: &mut Dues,
        context: &mut Context<'_>,
    ) -> Result<(), Halt> {
        loop {
            let step = match self.frame {
                Frame::Header => self.begin(owner, dues, context)?,
                Frame::Message { .. } | Frame::Staged { .. } | Frame::Direct { .. } => {
                    self.hand_over(owner.peer, context)?
                }
                Frame::List { .. } | Frame::Copy(_) | Frame::Place(_) | Frame::Drop { .. } => {
                    self.place(owner, dues, context)?
                }
            };
            if step == Step::Wait {
                return Ok(());
            }
        }
    }

    fn frame_done(&mut self) {
        self.frame = Frame::Header;
        self.has_spoken = true;
    }

    /// What it means that the stream has ended here.
    fn ended(&self, buffer: &[u8]) -> Closed {
        let (what, received, expected) = match &self.frame {
            Frame::Header if self.start == self.end => return Closed::ByPeer,
            Frame::Header if is_tls(&buffer[self.start..self.end]) => {
                return Closed::Unauthenticated(Unauthenticated::Secured);
            }
            Frame::Header => ("header", self.end - self.start, HEADER_BYTES),
            Frame::Message { bytes } => ("message", self.filled, *bytes as usize),
            Frame::Staged { batch } => ("batch", self.filled, batch.bytes as usize),
            Frame::Direct {
                batch, received, ..
            } => ("batch", *received as usize, batch.bytes as usize),
            Frame::List { access, .. } => {
                ("list of pieces", self.filled, access.list_bytes as usize)
            }
            Frame::Copy(Placing { left, .. }) => ("payload", self.filled, *left as usize),
            Frame::Place(Placing { left, .. }) | Frame::Drop { left, .. } => {
                ("payload", 0, *left as usize)
            }
        };
        Closed::Truncated {
            what,
            received: received as u64,
            expected: expected as u64,
        }
    }

    /// What is left of the payload has no place.
    fn drop_rest(&mut self, why: Nowhere, one_sided: &mut OneSided) {
        if let Frame::Place(placing) = std::mem::take(&mut self.frame) {
            let left = placing.left;
            placing.give_up(one_sided);
            self.frame = Frame::Drop { left, why };
        }
    }
}

/// Whether bytes in the place of a header are the beginning of a hello or an alert of TLS.
fn is_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [21 | 22, 3, ..])
}

fn provide_buffer(buffer: &mut Vec<u8>) {
    if buffer.is_empty() {
        *buffer = vec![0; READ_BYTES];
    }
}

/// Adds the last bytes that arrived to those collected before. The whole payload once it is complete;
/// one that lies in the read buffer from beginning to end is not copied.
fn collect<'a>(
    collected: &'a mut Vec<u8>,
    filled: &mut usize,
    bytes: &'a [u8],
    whole: usize,
) -> Option<&'a [u8]> {
    if bytes.len() == whole {
        return Some(bytes);
    }
    let end = *filled + bytes.len();
    if collected.len() < end {
        collected.resize(end, 0);
    }
    collected[*filled..end].copy_from_slice(bytes);
    *filled = end;
    (end == whole).then(|| &collected[..whole])
}

fn rejected(Reject(reason): Reject) -> Closed {
    Closed::Rejected(reason)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use moai_memory::Region;
    use moai_transport::wire::Header;
    use moai_transport::{Landing, PeerId};

    use super::*;

    /// Takes everything staged and keeps nothing.
    struct Indifferent;

    impl Handler for Indifferent {
        fn connected(&mut self, _peer: PeerId, _incoming: bool) {}

        fn message(&mut self, _peer: PeerId, _bytes: &[u8]) -> Result<(), Reject> {
            Ok(())
        }

        fn landing(&mut self, _peer: PeerId, _batch: Batch) -> Result<Landing, Reject> {
            Ok(Landing::Staged)
        }

        fn pieces(
            &mut self,
            _peer: PeerId,
            _batch: Batch,
            _from: u32,
            _most: usize,
            _out: &mut Vec<Piece>,
        ) -> Result<(), Reject> {
            Err(Reject("nothing lands directly".to_owned()))
        }

        fn regions(&mut self) -> &mut [Region] {
            &mut []
        }

        fn landed(
            &mut self,
            _peer: PeerId,
            _batch: Batch,
            _staged: Option<&[u8]>,
        ) -> Result<(), Reject> {
            Ok(())
        }

        fn writable(&mut self, _peer: PeerId) {}

        fn closed(&mut self, _peer: PeerId, _why: Closed) {}
    }

    /// A source that nothing lands from directly.
    struct Plain(UnixStream);

    impl Read for Plain {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }

        fn read_vectored(&mut self, buffers: &mut [io::IoSliceMut<'_>]) -> io::Result<usize> {
            self.0.read_vectored(buffers)
        }
    }

    impl Source for Plain {
        fn read_scattered(
            &mut self,
            regions: &mut [Region],
            pieces: &[Piece],
            tail: &mut [u8],
        ) -> Result<io::Result<usize>, moai_transport::PieceError> {
            crate::vectored::read_scattered(self.0.as_fd(), regions, pieces, tail)
        }
    }

    fn read(inbound: &mut Inbound, socket: &mut Plain, stats: &mut Stats) -> Stop {
        let peer = PeerId::new(0, 0);
        let mut one_sided = OneSided::new(1, 1);
        let side = one_sided.add_side(peer);
        let role = Role::First {
            side,
            incoming: true,
        };
        let mut context = Context {
            handler: &mut Indifferent,
            stats,
            one_sided: &mut one_sided,
            buffer: &mut Vec::new(),
            seal_payload: true,
            callbacks: 0,
        };
        let owner = Owner { peer, role };
        inbound.read(socket, true, owner, &mut Dues::default(), &mut context)
    }

    #[test]
    fn memory_grows_with_what_has_arrived_and_not_with_what_was_announced() {
        for header in [
            Header::Message {
                bytes: limits::MAX_MESSAGE_BYTES,
            },
            Header::Batch(Batch {
                id: 0,
                bytes: limits::MAX_BATCH_BYTES,
            }),
        ] {
            let (mut from, to) = UnixStream::pair().unwrap();
            to.set_nonblocking(true).unwrap();
            let mut to = Plain(to);
            let mut inbound = Inbound::default();
            let mut stats = Stats::default();
            from.write_all(&header.encode()).unwrap();
            let mut sent = 0;
            while sent + 10_000 < header.payload_bytes() as usize {
                from.write_all(&[1; 10_000]).unwrap();
                sent += 10_000;
                let stop = read(&mut inbound, &mut to, &mut stats);
                assert!(matches!(stop, Stop::Blocked));
                let held = inbound.collected.capacity();
                assert!(held <= 4 * sent.max(READ_BYTES), "{held}");
            }
            drop(from);
            let stop = read(&mut inbound, &mut to, &mut stats);
            let Stop::End(Closed::Truncated { received, .. }) = stop else {
                panic!("not truncated");
            };
            assert_eq!(received, sent as u64);
        }
    }

    #[test]
    fn a_turn_ends_although_there_is_more() {
        let (mut from, to) = UnixStream::pair().unwrap();
        to.set_nonblocking(true).unwrap();
        let mut to = Plain(to);
        let writer = std::thread::spawn(move || {
            let message = [&Header::Message { bytes: 1000 }.encode()[..], &[0; 1000]].concat();
            // Fails when the reader has seen enough.
            while from.write_all(&message).is_ok() {}
        });
        let mut inbound = Inbound::default();
        let mut stats = Stats::default();
        loop {
            let before = stats.bytes_in;
            let stop = read(&mut inbound, &mut to, &mut stats);
            let most = (limits::READ_TURN_BYTES + READ_BYTES) as u64;
            assert!(stats.bytes_in - before <= most);
            if matches!(stop, Stop::Turn) || stats.bytes_in > 64 << 20 {
                break;
            }
        }
        drop(to);
        writer.join().unwrap();
        assert!(stats.messages_in >= stats.bytes_in / (HEADER_BYTES as u64 + 1000) - 1);
    }
}
