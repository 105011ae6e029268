//! One socket, from connecting to closed.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use moai_transport::{Closed, PeerId, Stats, limits};
use tracing::debug;

use crate::inbound::{Context, Inbound, Stop};
use crate::outbound::Outbound;

/// One peer's socket, its queues, and what is known about its readiness.
///
/// Readiness is remembered here: the system reports only changes, so a socket that was left before it
/// blocked will not be reported again.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) socket: TcpStream,
    pub(crate) peer: PeerId,
    pub(crate) address: SocketAddr,
    pub(crate) outbound: Outbound,
    inbound: Inbound,
    stage: Stage,
    /// A read may bring something.
    readable: bool,
    /// A write may take something.
    writable: bool,
    /// The peer has ended its side: a short read does not mean that there is nothing more to learn.
    read_closed: bool,
    /// Writing failed. Reported only after what the peer sent before has been read, which may well be
    /// its reason for leaving.
    write_error: Option<io::Error>,
    /// When the current stage has taken too long.
    deadline: Option<Instant>,
    /// Queued for a write, for a turn, and to have its deadline looked at. So each is queued once.
    pub(crate) is_dirty: bool,
    pub(crate) is_ready: bool,
    pub(crate) is_timed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waiting for the system to connect us.
    Connecting { finish: bool },
    /// Frames go both ways.
    Open,
    /// Sending what is queued; what comes is dropped.
    Finishing,
    /// Everything has gone out and the stream was ended. Waiting for the peer to end its side, because
    /// closing while it still sends would make the system throw away what it has not read yet.
    Finished,
}

/// What a turn has led to.
pub(crate) enum Turn {
    /// Nothing to do until the system reports something.
    Rest,
    /// There is more to do at once.
    Again,
    /// The connection is over.
    End(Closed),
}

impl Connection {
    /// A connection that was accepted, and has until `deadline` to say something.
    pub(crate) fn accepted(
        socket: TcpStream,
        peer: PeerId,
        address: SocketAddr,
        staging_bytes: u32,
        deadline: Instant,
    ) -> Self {
        let connection = Self::new(socket, peer, address, staging_bytes, Stage::Open, deadline);
        connection.set_no_delay();
        connection
    }

    /// A connection under way, which has until `deadline` to be there.
    pub(crate) fn connecting(
        socket: TcpStream,
        peer: PeerId,
        address: SocketAddr,
        staging_bytes: u32,
        deadline: Instant,
    ) -> Self {
        let stage = Stage::Connecting { finish: false };
        Self::new(socket, peer, address, staging_bytes, stage, deadline)
    }

    fn new(
        socket: TcpStream,
        peer: PeerId,
        address: SocketAddr,
        staging_bytes: u32,
        stage: Stage,
        deadline: Instant,
    ) -> Self {
        Self {
            socket,
            peer,
            address,
            outbound: Outbound::new(staging_bytes),
            inbound: Inbound::default(),
            stage,
            readable: false,
            writable: stage == Stage::Open,
            read_closed: false,
            write_error: None,
            deadline: Some(deadline),
            is_dirty: false,
            is_ready: false,
            is_timed: false,
        }
    }

    /// The system reports readiness. Events of an earlier connection in the same table entry may end
    /// up here; they cost a call that would block, and nothing else.
    pub(crate) fn note(&mut self, event: &mio::event::Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        self.read_closed |= event.is_read_closed() || event.is_error();
    }

    /// Whether nothing more may be queued.
    pub(crate) fn is_finishing(&self) -> bool {
        !matches!(
            self.stage,
            Stage::Open | Stage::Connecting { finish: false }
        )
    }

    /// Sends what is queued and ends then; `limit` from now on without progress, it gives up.
    pub(crate) fn finish(&mut self, now: Instant, limit: Duration) {
        match self.stage {
            Stage::Connecting { .. } => self.stage = Stage::Connecting { finish: true },
            Stage::Open => {
                self.stage = Stage::Finishing;
                self.deadline = Some(now + limit);
                // What has been read halfway is dropped as well, so there may be something to read.
                self.readable = true;
            }
            Stage::Finishing | Stage::Finished => {}
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Writes what is queued, as far as the socket takes it. Failure is kept for the next turn.
    pub(crate) fn flush(&mut self, stats: &mut Stats) {
        let connecting = matches!(self.stage, Stage::Connecting { .. });
        if connecting || !self.writable || self.write_error.is_some() {
            return;
        }
        let most = limits::WRITE_TURN_BYTES;
        match self.outbound.write(&mut self.socket, most, stats) {
            Ok(blocked) => self.writable = !blocked,
            Err(error) => {
                self.outbound.clear();
                self.write_error = Some(error);
                self.readable = true;
            }
        }
    }

    /// Whether a turn has something to do.
    pub(crate) fn wants_turn(&self) -> bool {
        self.readable
            || self.write_error.is_some()
            || (self.writable && !self.outbound.is_empty())
            || (self.stage == Stage::Open && self.outbound.has_room_again())
            || (self.stage == Stage::Finishing && self.outbound.is_empty())
    }

    /// Writes and reads, both as far as the socket goes and one turn allows.
    pub(crate) fn turn(
        &mut self,
        now: Instant,
        finish_limit: Duration,
        context: &mut Context<'_>,
    ) -> Turn {
        if let Stage::Connecting { finish } = self.stage {
            match self.connection_made() {
                Ok(false) => return Turn::Rest,
                Ok(true) => {}
                Err(error) => return Turn::End(Closed::Io(error)),
            }
            self.set_no_delay();
            self.stage = Stage::Open;
            self.deadline = None;
            context.stats.connected += 1;
            context.callbacks += 1;
            context.handler.connected(self.peer, false);
            if finish {
                self.finish(now, finish_limit);
            }
        }
        let queued_bytes = self.outbound.queued_bytes();
        self.flush(context.stats);
        if self.stage == Stage::Finishing {
            if self.outbound.queued_bytes() < queued_bytes {
                self.deadline = Some(now + finish_limit);
            }
            if self.outbound.is_empty() && self.write_error.is_none() {
                if let Err(error) = self.socket.shutdown(Shutdown::Write) {
                    return Turn::End(Closed::Io(error));
                }
                self.stage = Stage::Finished;
                // The peer may have ended its side already; the system does not report that again.
                self.readable = true;
                self.deadline = Some(now + finish_limit);
            }
        } else if self.stage == Stage::Open && self.outbound.take_room_again() {
            context.callbacks += 1;
            context.handler.writable(self.peer);
        }
        if self.readable {
            let stop = match self.stage {
                Stage::Open => {
                    let drained_by_short_read = !self.read_closed && self.write_error.is_none();
                    let stop = self.inbound.read(
                        &mut self.socket,
                        drained_by_short_read,
                        self.peer,
                        context,
                    );
                    if self.inbound.has_spoken() {
                        self.deadline = None;
                    }
                    stop
                }
                _ => self.inbound.discard(&mut self.socket, context.stats),
            };
            match stop {
                Stop::Turn => return Turn::Again,
                Stop::Blocked => self.readable = false,
                Stop::End(why) => match (self.stage, why) {
                    (Stage::Finished, Closed::ByPeer) => return Turn::End(Closed::ByUs),
                    // The peer has nothing more to say, but may still listen.
                    (Stage::Finishing, Closed::ByPeer) if self.write_error.is_none() => {
                        self.readable = false;
                    }
                    (_, why) => return Turn::End(why),
                },
            }
        }
        if let Some(error) = self.write_error.take() {
            return Turn::End(Closed::Io(error));
        }
        if self.writable && !self.outbound.is_empty() {
            return Turn::Again;
        }
        Turn::Rest
    }

    /// What it means that the deadline has passed.
    pub(crate) fn expired(&self, first_frame_limit: Duration) -> Closed {
        match self.stage {
            Stage::Open => Closed::Idle {
                limit_ms: first_frame_limit.as_millis() as u64,
            },
            Stage::Connecting { .. } | Stage::Finishing => {
                Closed::Io(io::ErrorKind::TimedOut.into())
            }
            Stage::Finished => Closed::ByUs,
        }
    }

    /// Whether the system has connected us by now.
    fn connection_made(&mut self) -> io::Result<bool> {
        if !self.writable {
            return Ok(false);
        }
        if let Some(error) = self.socket.take_error()? {
            return Err(error);
        }
        match self.socket.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                self.writable = false;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Frames are written whole, so waiting for more to send along would only delay the last one.
    fn set_no_delay(&self) {
        if let Err(error) = self.socket.set_nodelay(true) {
            debug!(provider = "tcp", peer = %self.peer, call = "setsockopt", reason = %error, "no delay was not set");
        }
    }
}
