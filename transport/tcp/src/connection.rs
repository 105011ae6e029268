//! One socket, from connecting to closed.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use moai_memory::Region;
use moai_transport::wire::Lane;
use moai_transport::{Closed, Fault, Identity, PeerId, Stats, Unauthenticated, limits};
use tracing::debug;

use crate::chunk::{Chunk, Whose, Wrote};
use crate::framing::{WaitingGet, add_answer, add_frame};
use crate::inbound::{Context, Inbound, Owner, Role, Stop};
use crate::limits::{STAGED_FRAME_BYTES, UNANSWERED_FRAMES};
use crate::one_sided::OneSided;
use crate::operations::Kind;
use crate::options;
use crate::outbound::Outbound;
use crate::secure::Shaken;
use crate::staged::{begin_answer, begin_put};
use crate::stream::Stream;
use crate::target::Dues;

/// One peer's socket, its queues, and what is known about its readiness.
///
/// Readiness is remembered here: the system reports only changes, so a socket that was left before it
/// blocked will not be reported again.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: Stream,
    pub(crate) peer: PeerId,
    pub(crate) address: SocketAddr,
    pub(crate) outbound: Outbound,
    inbound: Inbound,
    pub(crate) role: Role,
    pub(crate) dues: Dues,
    /// Frames of one-sided operations that have begun to leave.
    chunk: Option<Chunk>,
    /// Why the peer will be lost once nothing more can be read here: another lane of it has ended.
    pub(crate) orphaned: Option<Closed>,
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
    /// It has used memory that idle connections do without.
    is_warm: bool,
    /// Queued for a write, for a turn, and to have its deadline looked at. So each is queued once.
    pub(crate) is_dirty: bool,
    pub(crate) is_ready: bool,
    pub(crate) is_timed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waiting for the system to connect us.
    Connecting { finish: bool },
    /// Neither side knows yet who the other is.
    Shaking { finish: bool },
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
    /// Each side knows now who the other is.
    Shaken,
    /// It is that lane of a peer, or else a peer that is new.
    Known(Option<Lane>),
}

impl Connection {
    /// A connection that was accepted, and has until `deadline` to say something.
    pub(crate) fn accepted(
        stream: Stream,
        peer: PeerId,
        address: SocketAddr,
        staging_bytes: u32,
        deadline: Instant,
    ) -> Self {
        let stage = match stream.session() {
            None => Stage::Open,
            Some(_) => Stage::Shaking { finish: false },
        };
        Self::new(stream, peer, address, staging_bytes, stage, deadline)
    }

    /// A connection under way, which has until `deadline` to be there.
    pub(crate) fn connecting(
        stream: Stream,
        peer: PeerId,
        address: SocketAddr,
        staging_bytes: u32,
        deadline: Instant,
    ) -> Self {
        let stage = Stage::Connecting { finish: false };
        Self::new(stream, peer, address, staging_bytes, stage, deadline)
    }

    fn new(
        stream: Stream,
        peer: PeerId,
        address: SocketAddr,
        staging_bytes: u32,
        stage: Stage,
        deadline: Instant,
    ) -> Self {
        Self {
            stream,
            peer,
            address,
            outbound: Outbound::new(staging_bytes),
            inbound: Inbound::default(),
            role: Role::Unknown,
            dues: Dues::default(),
            chunk: None,
            orphaned: None,
            stage,
            readable: false,
            writable: !matches!(stage, Stage::Connecting { .. }),
            read_closed: false,
            write_error: None,
            deadline: Some(deadline),
            is_warm: false,
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
            Stage::Open | Stage::Connecting { finish: false } | Stage::Shaking { finish: false }
        )
    }

    /// Sends what is queued and ends then; `limit` from now on without progress, it gives up.
    pub(crate) fn finish(&mut self, now: Instant, limit: Duration) {
        match self.stage {
            Stage::Connecting { .. } => self.stage = Stage::Connecting { finish: true },
            Stage::Shaking { .. } => self.stage = Stage::Shaking { finish: true },
            Stage::Open => {
                self.dues.gets.clear();
                self.stage = Stage::Finishing;
                self.deadline = Some(now + limit);
                // What has been read halfway is dropped as well, so there may be something to read.
                self.readable = true;
            }
            Stage::Finishing | Stage::Finished => {}
        }
    }

    /// Operations have ended: what was still to be read from their pieces is the caller's again.
    pub(crate) fn forget_pieces(&mut self) {
        self.dues.forget_copied();
        if let Some(chunk) = &mut self.chunk {
            chunk.blank(|whose| matches!(whose, Whose::Ours(_)));
        }
    }

    /// Notes that the connection is in use. Returns whether it holds memory that it could give back.
    pub(crate) fn is_used(&mut self) -> bool {
        self.is_warm = self.holds_memory();
        self.is_warm
    }

    /// Gives memory back unless it was used since the last call. Returns whether there is none left to give.
    pub(crate) fn trim(&mut self) -> bool {
        if std::mem::take(&mut self.is_warm) {
            return false;
        }
        self.outbound.trim();
        self.inbound.trim();
        self.stream.trim();
        !self.holds_memory()
    }

    fn holds_memory(&self) -> bool {
        self.outbound.holds_memory() || self.inbound.holds_memory() || self.stream.holds_memory()
    }

    /// Who the peer has proved to be.
    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.stream.session()?.identity()
    }

    /// Until when it may be within its handshake, if it is one that came to us and is.
    pub(crate) fn shaking_until(&self) -> Option<Instant> {
        let is_it = matches!(self.stage, Stage::Shaking { .. }) && self.role == Role::Unknown;
        self.deadline.filter(|_| is_it)
    }

    /// It is a further lane: what it may take to speak is the first one's affair.
    pub(crate) fn joined(&mut self, side: usize) {
        self.role = Role::Further { side };
        self.deadline = None;
    }

    /// The peer is lost, but for copies that are not over.
    pub(crate) fn park(&mut self) {
        self.deadline = None;
    }

    /// Lifts the deadline of a first lane whose peer has spoken on another. Returns whether it did.
    pub(crate) fn lift_deadline(&mut self, one_sided: &OneSided) -> bool {
        let lifted = matches!(self.role, Role::First { side, .. }
            if self.stage == Stage::Open && one_sided.sides[side].has_spoken);
        if lifted {
            self.deadline = None;
        }
        lifted
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Writes what is queued, as far as the socket takes it. Failure is kept for the next turn.
    ///
    /// Without `memory`, only what does not lie in regions.
    pub(crate) fn flush(
        &mut self,
        one_sided: &mut OneSided,
        memory: Option<&[Region]>,
        stats: &mut Stats,
    ) {
        let connecting = matches!(self.stage, Stage::Connecting { .. } | Stage::Shaking { .. });
        let is_ending = self.is_ending(one_sided);
        if connecting || !self.writable || self.write_error.is_some() || is_ending {
            return;
        }
        if let Err(error) = self.write(one_sided, memory, stats) {
            self.outbound.clear();
            self.chunk = None;
            self.write_error = Some(error);
            self.readable = true;
        }
    }

    fn write(
        &mut self,
        one_sided: &mut OneSided,
        memory: Option<&[Region]>,
        stats: &mut Stats,
    ) -> io::Result<()> {
        let end = stats.bytes_out + limits::WRITE_TURN_BYTES as u64;
        if !self.stream.push()? {
            self.writable = false;
            return Ok(());
        }
        while stats.bytes_out < end {
            if let Some(chunk) = &mut self.chunk {
                match chunk.write(&mut self.stream, memory, stats)? {
                    Wrote::All => {}
                    Wrote::Blocked => {
                        self.writable = false;
                        return Ok(());
                    }
                    Wrote::NeedsMemory => return Ok(()),
                    Wrote::NotLent(Whose::Ours(index)) => {
                        chunk.blank(|of| of == Whose::Ours(index));
                        if let Role::First { side, .. } | Role::Further { side } = self.role
                            && one_sided.operations.get(index).peer == one_sided.sides[side].peer
                        {
                            let fault = Fault::Access { code: libc::EFAULT };
                            one_sided.fail(side, index, fault);
                        }
                        continue;
                    }
                    Wrote::NotLent(Whose::Registered(_)) => return Err(deregistered()),
                }
                if let Some(chunk) = self.chunk.take() {
                    one_sided.keep_chunk(chunk);
                }
            }
            if !self.outbound.is_empty() {
                let most = limits::EAGER_WRITE_BYTES;
                if self.outbound.write(&mut self.stream, most, stats)? {
                    self.writable = false;
                    return Ok(());
                }
                if self.outbound.is_within_frame() {
                    continue;
                }
            }
            self.chunk = self.next_chunk(one_sided, memory, stats);
            if self.chunk.is_none() && self.outbound.is_empty() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Answers, and frames of operations, as many as leave together.
    fn next_chunk(
        &mut self,
        one_sided: &mut OneSided,
        memory: Option<&[Region]>,
        stats: &mut Stats,
    ) -> Option<Chunk> {
        if self.dues.answers.is_empty() {
            if let Some(chunk) = self.dues.take_copied() {
                return Some(chunk);
            }
            if !self.has_frames(one_sided) {
                return None;
            }
        }
        let owner = Owner {
            peer: self.peer,
            role: self.role,
        };
        let mut chunk = one_sided.take_chunk();
        chunk.bytes.extend_from_slice(&self.dues.answers);
        self.dues.answers.clear();
        if let Some(memory) = memory {
            while chunk.bytes.len() < STAGED_FRAME_BYTES as usize && !chunk.is_lent() {
                if let Some(get) = self.next_get() {
                    let added = if get.device.is_some() {
                        begin_answer(one_sided, owner, &get, memory, &mut self.dues)
                    } else {
                        let added = add_answer(one_sided, &get, memory, &mut chunk);
                        stats.gets_in += u64::from(added.is_ok());
                        added
                    };
                    if let Err(refusal) = added {
                        self.dues.answer(get.id, Some(refusal), stats);
                        chunk.bytes.append(&mut self.dues.answers);
                    }
                    one_sided.keep_list(get.list);
                } else if let Some((side, index)) = self.next_operation(one_sided) {
                    let operation = one_sided.operations.get(index);
                    let is_put = operation.kind == Kind::Put;
                    let added = if operation.is_from_device() {
                        begin_put(one_sided, owner, index, memory, &mut self.dues)
                    } else {
                        add_frame(one_sided, side, index, memory, &mut chunk)
                    };
                    match added {
                        Ok(()) => {
                            self.dues.unanswered += u32::from(is_put);
                            if !one_sided.operations.get(index).has_more() {
                                one_sided.sides[side].pending.pop_front();
                            }
                        }
                        Err(fault) => one_sided.settled(side, index, Some(fault), stats),
                    }
                } else {
                    break;
                }
            }
        }
        chunk.close();
        if chunk.is_empty() {
            one_sided.keep_chunk(chunk);
            return None;
        }
        Some(chunk)
    }

    /// Whether the peer is lost as soon as its copies are over.
    pub(crate) fn is_ending(&self, one_sided: &OneSided) -> bool {
        let (Role::First { side, .. } | Role::Further { side }) = self.role else {
            return false;
        };
        one_sided.sides[side].ending.is_some()
    }

    /// Whether a get can be answered: one of device memory once there is a buffer for it.
    fn has_get(&self) -> bool {
        let get = self.dues.gets.front();
        get.is_some_and(|get| get.device.is_none() || self.dues.may_copy_out())
    }

    fn next_get(&mut self) -> Option<WaitingGet> {
        if self.has_get() {
            self.dues.gets.pop_front()
        } else {
            None
        }
    }

    /// The operation whose next frame may leave here.
    fn next_operation(&self, one_sided: &mut OneSided) -> Option<(usize, u32)> {
        let (Role::First { side, .. } | Role::Further { side }) = self.role else {
            return None;
        };
        if self.stage != Stage::Open {
            return None;
        }
        let of = &one_sided.sides[side];
        let index = *of.pending.front()?;
        let operation = one_sided.operations.get(index);
        let may = match operation.kind {
            Kind::Put => {
                self.dues.unanswered < UNANSWERED_FRAMES
                    && (self.dues.may_copy_out() || !operation.is_from_device())
            }
            _ => of.asked < limits::MAX_WAITING_GETS,
        };
        may.then_some((side, index))
    }

    fn has_frames(&self, one_sided: &mut OneSided) -> bool {
        self.has_get() || self.next_operation(one_sided).is_some()
    }

    /// Whether there is something that a write would take along.
    fn wants_write(&self, one_sided: &mut OneSided) -> bool {
        self.has_queued() || self.has_frames(one_sided)
    }

    /// Whether something that was queued has not left.
    fn has_queued(&self) -> bool {
        !self.outbound.is_empty()
            || self.chunk.is_some()
            || !self.dues.answers.is_empty()
            || !self.dues.copied.is_empty()
            || self.stream.has_outgoing()
    }

    /// Whether a peer's get is being answered from that registration.
    pub(crate) fn reads_from(&self, slot: u32) -> bool {
        self.chunk
            .as_ref()
            .is_some_and(|chunk| chunk.reads_from(slot))
    }

    /// The connection cannot go on, because a frame cannot.
    pub(crate) fn fail(&mut self) {
        self.write_error.get_or_insert_with(deregistered);
        self.readable = true;
    }

    /// Whether a turn has something to do.
    pub(crate) fn wants_turn(&self, one_sided: &mut OneSided) -> bool {
        if self.is_ending(one_sided) {
            return false;
        }
        (self.readable && !self.dues.is_choked())
            || self.write_error.is_some()
            || self.orphaned.is_some()
            || (self.writable && self.wants_write(one_sided))
            || (self.stage == Stage::Open && self.outbound.has_room_again())
            || (self.stage == Stage::Finishing && !self.has_queued())
    }

    /// Writes and reads, both as far as the socket goes and one turn allows.
    pub(crate) fn turn(
        &mut self,
        now: Instant,
        [finish_limit, silence_limit]: [Duration; 2],
        context: &mut Context<'_>,
    ) -> Turn {
        if let Role::First { side, .. } | Role::Further { side } = self.role {
            let of = &mut context.one_sided.sides[side];
            if of.ending.is_some() {
                let is_over = of.copies == 0 && of.peer == self.peer;
                return of.ending.take_if(|_| is_over).map_or(Turn::Rest, Turn::End);
            }
        }
        if let Stage::Connecting { finish } = self.stage {
            match self.connection_made() {
                Ok(false) => return Turn::Rest,
                Ok(true) => {}
                Err(error) => return Turn::End(Closed::Io(error)),
            }
            self.set_options(silence_limit);
            if self.stream.session().is_some() {
                self.stage = Stage::Shaking { finish };
            } else {
                self.connected(context);
                if finish {
                    self.finish(now, finish_limit);
                }
            }
        }
        if let Stage::Shaking { finish } = self.stage {
            match self.shake(context.seal_payload) {
                Err(why) => return Turn::End(why),
                Ok(false) => return Turn::Rest,
                Ok(true) => {}
            }
            if self.role == Role::Unknown {
                self.stage = Stage::Open;
            } else {
                self.connected(context);
            }
            if let Role::First { .. } = self.role {
                // As without TLS, what is queued has left when the handler next hears of the peer. A further lane's is
                // left for when its identity was compared.
                self.flush_with(context);
            }
            if finish {
                self.finish(now, finish_limit);
            }
            return Turn::Shaken;
        }
        let queued_bytes = self.outbound.queued_bytes();
        self.flush_with(context);
        if self.stage == Stage::Finishing {
            if self.outbound.queued_bytes() < queued_bytes {
                self.deadline = Some(now + finish_limit);
            }
            if !self.has_queued() && self.write_error.is_none() {
                if let Err(error) = self.stream.shutdown() {
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
                    // What a session has taken from the socket, the system does not report again.
                    let drained_by_short_read = !self.read_closed
                        && self.write_error.is_none()
                        && self.stream.session().is_none();
                    let stop = self.inbound.read(
                        &mut self.stream,
                        drained_by_short_read,
                        Owner {
                            peer: self.peer,
                            role: self.role,
                        },
                        &mut self.dues,
                        context,
                    );
                    if self.inbound.has_spoken() {
                        self.deadline = None;
                        if let Role::First { side, .. } | Role::Further { side } = self.role {
                            context.one_sided.sides[side].has_spoken = true;
                        }
                    }
                    stop
                }
                _ => {
                    let (buffer, stats) = (&mut *context.buffer, &mut *context.stats);
                    self.inbound.discard(&mut self.stream, buffer, stats)
                }
            };
            // What was read may call for an answer, or make room for more.
            if self.stage == Stage::Open {
                self.flush_with(context);
            }
            match stop {
                Stop::Turn => return Turn::Again,
                Stop::Known(lane) => return Turn::Known(lane),
                Stop::Choked => {}
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
        if let Some(why) = self.orphaned.take_if(|_| !self.readable) {
            return Turn::End(why);
        }
        if self.wants_turn(context.one_sided) {
            return Turn::Again;
        }
        Turn::Rest
    }

    /// We are connected to the peer.
    fn connected(&mut self, context: &mut Context<'_>) {
        self.stage = Stage::Open;
        self.deadline = None;
        if let Role::First { .. } = self.role {
            context.stats.connected += 1;
            context.callbacks += 1;
            context.handler.connected(self.peer, false);
        }
    }

    /// Goes on with the handshake. Whether it is over.
    fn shake(&mut self, seal_payload: bool) -> Result<bool, Closed> {
        let Some((session, mut socket)) = self.stream.parts() else {
            return Ok(true);
        };
        match session.shake(&mut socket, seal_payload)? {
            Shaken::Done => {
                // More may have come along, which the system will not report again.
                self.readable = true;
                return Ok(true);
            }
            Shaken::NeedsRead => self.readable = false,
            Shaken::NeedsWrite => self.writable = false,
        }
        Ok(false)
    }

    fn flush_with(&mut self, context: &mut Context<'_>) {
        if self.writable && self.wants_write(context.one_sided) {
            let memory = context.handler.regions();
            self.flush(context.one_sided, Some(memory), context.stats);
        }
    }

    /// What it means that the deadline has passed.
    pub(crate) fn expired(&self, [first_frame_limit, connect_limit]: [Duration; 2]) -> Closed {
        match self.stage {
            Stage::Shaking { .. } => {
                let limit = match self.role {
                    Role::Unknown => first_frame_limit,
                    _ => connect_limit,
                };
                let limit_ms = limit.as_millis() as u64;
                Closed::Unauthenticated(Unauthenticated::Late { limit_ms })
            }
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
        if let Some(error) = self.stream.socket.take_error()? {
            return Err(error);
        }
        match self.stream.socket.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                self.writable = false;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn set_options(&self, silence_limit: Duration) {
        if let Err(error) = options::set(&self.stream, self.address, silence_limit) {
            debug!(provider = "tcp", peer = %self.peer, call = "setsockopt", reason = %error, "options were not set");
        }
    }
}

fn deregistered() -> io::Error {
    io::Error::other("memory was taken back while the peer's get of it was being answered")
}
