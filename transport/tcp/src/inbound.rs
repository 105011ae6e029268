//! The frames that come from one peer.

use std::io::{self, IoSliceMut, Read};
use std::os::fd::AsFd;

use moai_transport::wire::{HEADER_BYTES, Header};
use moai_transport::{
    Batch, Closed, Handler, Landing, PeerId, Piece, PieceError, Reject, Stats, admit_pieces, limits,
};

use crate::vectored::read_scattered;

/// What the handler sees of a connection, and the counters.
pub(crate) struct Context<'a> {
    pub(crate) handler: &'a mut dyn Handler,
    pub(crate) stats: &'a mut Stats,
    /// Callbacks made; says whether a poll has anything to show for itself.
    pub(crate) callbacks: u64,
}

/// Why reading stopped.
pub(crate) enum Stop {
    /// The socket has nothing more for now.
    Blocked,
    /// The peer's turn is over; there may be more.
    Turn,
    /// The connection is over.
    End(Closed),
}

/// Takes the stream of one peer apart.
///
/// Bytes come either through `buffer` (headers, small frames, and the little that was read past a
/// payload) or past it, straight to where they belong. `buffer` is taken apart as far as possible
/// before anything else is read, so at a read it holds at most part of a header, and during a payload
/// nothing.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    frame: Frame,
    /// Empty until the first read.
    buffer: Vec<u8>,
    /// What is in `buffer` and has not been taken apart: `start..end`.
    start: usize,
    end: usize,
    /// How far to read past what is needed. Far after small frames, which will have more behind them;
    /// not far after large ones, where it would only be copied once more.
    ahead: usize,
    /// Message or staged payload, the first `filled` bytes; kept for the next one.
    collected: Vec<u8>,
    filled: usize,
    /// Pieces of a direct payload; those before `Frame::Direct::next` are full.
    pieces: Vec<Piece>,
    /// Whole frames that have been handed over.
    frames: u64,
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
}

impl Inbound {
    /// Whether a whole frame has been handed over.
    pub(crate) fn has_spoken(&self) -> bool {
        self.frames > 0
    }

    /// Reads and hands over frames until the socket has no more or the peer's turn is over.
    ///
    /// `drained_by_short_read` says that a read which brought less than asked for has emptied the
    /// socket, and that the system will say when there is more.
    pub(crate) fn read(
        &mut self,
        socket: &mut (impl Read + AsFd),
        drained_by_short_read: bool,
        peer: PeerId,
        context: &mut Context<'_>,
    ) -> Stop {
        let mut turn = limits::READ_TURN_BYTES;
        loop {
            if let Err(why) = self.take_apart(peer, context) {
                return Stop::End(why);
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
                Ok(0) => return Stop::End(self.ended()),
                Ok(bytes) => {
                    context.stats.bytes_in += bytes as u64;
                    self.arrived(bytes);
                    turn = turn.saturating_sub(bytes);
                    if bytes < asked && drained_by_short_read {
                        let done = self.take_apart(peer, context);
                        return done.map_or_else(Stop::End, |()| Stop::Blocked);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Stop::Blocked,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Stop::End(Closed::Io(error)),
            }
        }
    }

    /// Reads and drops what comes, to learn when the peer has ended the stream.
    pub(crate) fn discard(&mut self, socket: &mut impl Read, stats: &mut Stats) -> Stop {
        self.provide_buffer();
        let mut turn = limits::READ_TURN_BYTES;
        while turn > 0 {
            stats.reads += 1;
            match socket.read(&mut self.buffer) {
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

    /// One read, to where the next bytes belong. Returns how many were asked for and what the system
    /// said.
    fn fill(
        &mut self,
        socket: &mut (impl Read + AsFd),
        peer: PeerId,
        context: &mut Context<'_>,
    ) -> Result<(usize, io::Result<usize>), Closed> {
        self.provide_buffer();
        let payload_bytes = match &mut self.frame {
            Frame::Header => {
                self.buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
                let to = (self.end + self.ahead).min(self.buffer.len());
                let room = &mut self.buffer[self.end..to];
                return Ok((room.len(), socket.read(room)));
            }
            Frame::Direct {
                batch,
                covered,
                received,
                next,
            } => {
                if *next == self.pieces.len() {
                    let from = *covered;
                    *covered += ask(&mut self.pieces, peer, *batch, from, context)?;
                    *next = 0;
                }
                // Bytes past the payload only once every byte before them has a place.
                let ahead = if *covered == batch.bytes {
                    self.ahead
                } else {
                    0
                };
                let asked = (*covered - *received) as usize + ahead;
                let read = read_scattered(
                    socket.as_fd(),
                    context.handler.regions(),
                    &self.pieces[*next..],
                    &mut self.buffer[..ahead],
                )
                .map_err(Closed::Misplaced)?;
                return Ok((asked, read));
            }
            Frame::Message { bytes } => *bytes as usize,
            Frame::Staged { batch } => batch.bytes as usize,
        };
        if self.filled == self.collected.len() {
            // Grown as bytes arrive, at most doubling: an announced length alone costs one step.
            let step = self.filled.max(limits::READ_BUFFER_BYTES);
            self.collected
                .resize((self.filled + step).min(payload_bytes), 0);
        }
        let to = self.collected.len().min(payload_bytes);
        let ahead = if to == payload_bytes { self.ahead } else { 0 };
        let asked = to - self.filled + ahead;
        let read = socket.read_vectored(&mut [
            IoSliceMut::new(&mut self.collected[self.filled..to]),
            IoSliceMut::new(&mut self.buffer[..ahead]),
        ]);
        Ok((asked, read))
    }

    /// Accounts for `bytes` that [`fill`](Self::fill) has read.
    fn arrived(&mut self, bytes: usize) {
        let past = match &mut self.frame {
            Frame::Header => {
                self.end += bytes;
                return;
            }
            Frame::Direct {
                covered,
                received,
                next,
                ..
            } => {
                let taken = bytes.min((*covered - *received) as usize);
                *received += taken as u32;
                *next += fill_pieces(&mut self.pieces[*next..], taken as u32);
                bytes - taken
            }
            Frame::Message { bytes: whole }
            | Frame::Staged {
                batch: Batch { bytes: whole, .. },
            } => {
                let room = self.collected.len().min(*whole as usize) - self.filled;
                let taken = bytes.min(room);
                self.filled += taken;
                bytes - taken
            }
        };
        self.start = 0;
        self.end = past;
    }

    /// Hands over everything that has arrived whole, and moves the rest of `buffer` to where it belongs.
    fn take_apart(&mut self, peer: PeerId, context: &mut Context<'_>) -> Result<(), Closed> {
        loop {
            let buffered = &self.buffer[self.start..self.end];
            match &mut self.frame {
                Frame::Header => {
                    let Some(header) = buffered.first_chunk::<HEADER_BYTES>() else {
                        return Ok(());
                    };
                    let header = Header::decode(header).map_err(Closed::Protocol)?;
                    self.start += HEADER_BYTES;
                    self.filled = 0;
                    let large = header.payload_bytes() as usize >= limits::READ_BUFFER_BYTES;
                    self.ahead = if large {
                        limits::READ_AHEAD_BYTES
                    } else {
                        limits::READ_BUFFER_BYTES
                    };
                    self.frame = match header {
                        Header::Message { bytes } => Frame::Message { bytes },
                        Header::Batch(batch) => {
                            context.callbacks += 1;
                            let landing = context.handler.landing(peer, batch);
                            match landing.map_err(rejected)? {
                                Landing::Staged => Frame::Staged { batch },
                                Landing::Direct => Frame::Direct {
                                    batch,
                                    covered: 0,
                                    received: 0,
                                    next: 0,
                                },
                            }
                        }
                    };
                    self.pieces.clear();
                }
                Frame::Message { bytes } => {
                    let whole = *bytes as usize;
                    let taken = buffered.len().min(whole - self.filled);
                    let from_buffer = &buffered[..taken];
                    let Some(message) =
                        collect(&mut self.collected, &mut self.filled, from_buffer, whole)
                    else {
                        self.start += taken;
                        return Ok(());
                    };
                    context.stats.messages_in += 1;
                    context.callbacks += 1;
                    let handed = context.handler.message(peer, message);
                    handed.map_err(rejected)?;
                    self.start += taken;
                    self.frame_done();
                }
                Frame::Staged { batch } => {
                    let batch = *batch;
                    let whole = batch.bytes as usize;
                    let taken = buffered.len().min(whole - self.filled);
                    let from_buffer = &buffered[..taken];
                    let Some(payload) =
                        collect(&mut self.collected, &mut self.filled, from_buffer, whole)
                    else {
                        self.start += taken;
                        return Ok(());
                    };
                    context.stats.batches_in += 1;
                    context.stats.staged_bytes += u64::from(batch.bytes);
                    context.callbacks += 1;
                    let handed = context.handler.landed(peer, batch, Some(payload));
                    handed.map_err(rejected)?;
                    self.start += taken;
                    self.frame_done();
                }
                Frame::Direct {
                    batch,
                    covered,
                    received,
                    next,
                } => {
                    let batch = *batch;
                    if *received == batch.bytes {
                        context.stats.batches_in += 1;
                        context.stats.direct_bytes += u64::from(batch.bytes);
                        context.callbacks += 1;
                        let handed = context.handler.landed(peer, batch, None);
                        handed.map_err(rejected)?;
                        self.frame_done();
                        continue;
                    }
                    if buffered.is_empty() {
                        return Ok(());
                    }
                    if *next == self.pieces.len() {
                        let from = *covered;
                        *covered += ask(&mut self.pieces, peer, batch, from, context)?;
                        *next = 0;
                    }
                    let mut piece = self.pieces[*next];
                    piece.bytes = piece.bytes.min(buffered.len() as u32);
                    let place = piece.locate(context.handler.regions());
                    let place = place.map_err(Closed::Misplaced)?;
                    place.copy_from_slice(&buffered[..piece.bytes as usize]);
                    context.stats.copied_bytes += u64::from(piece.bytes);
                    *received += piece.bytes;
                    *next += fill_pieces(&mut self.pieces[*next..], piece.bytes);
                    self.start += piece.bytes as usize;
                }
            }
        }
    }

    fn frame_done(&mut self) {
        self.frame = Frame::Header;
        self.frames += 1;
    }

    /// What it means that the stream has ended here.
    fn ended(&self) -> Closed {
        let (what, received, expected) = match &self.frame {
            Frame::Header if self.start == self.end => return Closed::ByPeer,
            Frame::Header => ("header", self.end - self.start, HEADER_BYTES),
            Frame::Message { bytes } => ("message", self.filled, *bytes as usize),
            Frame::Staged { batch } => ("batch", self.filled, batch.bytes as usize),
            Frame::Direct {
                batch, received, ..
            } => ("batch", *received as usize, batch.bytes as usize),
        };
        Closed::Truncated {
            what,
            received: received as u64,
            expected: expected as u64,
        }
    }

    fn provide_buffer(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = vec![0; limits::READ_BUFFER_BYTES];
            self.ahead = limits::READ_BUFFER_BYTES;
            self.pieces.reserve(limits::MAX_PIECES);
        }
    }
}

/// Asks the handler for the places of the payload from `from` on. Returns the bytes that they cover.
fn ask(
    pieces: &mut Vec<Piece>,
    peer: PeerId,
    batch: Batch,
    from: u32,
    context: &mut Context<'_>,
) -> Result<u32, Closed> {
    pieces.clear();
    let most = limits::MAX_PIECES;
    let answer = context.handler.pieces(peer, batch, from, most, pieces);
    answer.map_err(rejected)?;
    let covered: Result<u32, PieceError> =
        admit_pieces(pieces, most, batch.bytes - from, context.handler.regions());
    context.stats.direct_pieces += pieces.len() as u64;
    covered.map_err(Closed::Misplaced)
}

/// Takes `bytes` off the front of `pieces`. Returns how many of them are full.
fn fill_pieces(pieces: &mut [Piece], mut bytes: u32) -> usize {
    for (full, piece) in pieces.iter_mut().enumerate() {
        if bytes < piece.bytes {
            piece.offset += u64::from(bytes);
            piece.bytes -= bytes;
            return full;
        }
        bytes -= piece.bytes;
    }
    pieces.len()
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
    use std::os::unix::net::UnixStream;

    use moai_memory::Region;

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

    fn read(inbound: &mut Inbound, socket: &mut UnixStream, stats: &mut Stats) -> Stop {
        let mut context = Context {
            handler: &mut Indifferent,
            stats,
            callbacks: 0,
        };
        inbound.read(socket, true, PeerId::new(0, 0), &mut context)
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
            let (mut from, mut to) = UnixStream::pair().unwrap();
            to.set_nonblocking(true).unwrap();
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
                assert!(held <= 4 * sent.max(limits::READ_BUFFER_BYTES), "{held}");
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
        let (mut from, mut to) = UnixStream::pair().unwrap();
        to.set_nonblocking(true).unwrap();
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
            let most = (limits::READ_TURN_BYTES + limits::READ_BUFFER_BYTES) as u64;
            assert!(stats.bytes_in - before <= most);
            if matches!(stop, Stop::Turn) || stats.bytes_in > 64 << 20 {
                break;
            }
        }
        drop(to);
        writer.join().unwrap();
        assert!(stats.messages_in >= stats.bytes_in / 1024 - 1);
    }
}
