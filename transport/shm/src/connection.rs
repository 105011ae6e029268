//! One peer, from connecting to closed.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use moai_transport::sync::doorbell::Wake;
use moai_transport::sync::gate::{Entrant, Hazard};
use moai_transport::sync::shared::Shared;
use moai_transport::{Address, Closed, Completions, PeerId};
use rustix::net::SocketAddrUnix;

use crate::direct::Access;
use crate::foreign::Process;
use crate::greeting::{Greeting, wrong};
use crate::imports::Imports;
use crate::inbound::{Context, Inbound};
use crate::outbound::{Outbound, Room};
use crate::outbox::{EXPORT, Outbox, RETIRE};
use crate::segment::{Door, Hazards, Segment};
use crate::socket::{BELL, MAX_PACKET_BYTES, Received, Socket};
use crate::staged::{Means, Staged};
use crate::table::PeerTable;

/// A peer's rings, socket and imports.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) peer: PeerId,
    /// The peer's end.
    pub(crate) address: Address,
    pub(crate) socket: Socket,
    pub(crate) state: State,
    pub(crate) out: Outbound,
    inbound: Inbound,
    pub(crate) staged: Staged,
    pub(crate) imports: Imports,
    pub(crate) outbox: RefCell<Outbox>,
    /// What it takes to enter the peer's memory, once it has answered.
    pub(crate) access: Option<Access>,
    own_hazards: Hazards,
    pub(crate) own_door: Door,
    pub(crate) peer_hazards: Hazards,
    pub(crate) peer_door: Door,
    /// The peer's, once it is known.
    pub(crate) epoch: u64,
    /// Its memory, or why that cannot be reached.
    pub(crate) process: Result<Process, String>,
    pub(crate) deadline: Option<Instant>,
    /// What was refused for want of room.
    wants: Option<Room>,
    /// The peer has closed its side of the socket, or died.
    pub(crate) is_lost: bool,
    /// Frames read since then.
    late_frames: usize,
    /// Why it ends with its next turn.
    pub(crate) fate: Option<Closed>,
    /// Stands in the interface's list of those whose rings are looked at.
    pub(crate) is_awake: bool,
    /// Stands in the interface's list of those that may have a deadline.
    pub(crate) is_timed: bool,
    /// The socket's room is waited for.
    pub(crate) waits_to_write: bool,
}

/// How far a connection has come.
#[derive(Debug)]
pub(crate) enum State {
    /// The socket is to be connected, as soon as the listener has room.
    Dialing {
        name: SocketAddrUnix,
        /// What is sent then.
        greeting: Greeting,
        files: [OwnedFd; 2],
        /// When to give up.
        until: Instant,
    },
    /// The peer has been greeted and has not answered.
    Greeting,
    /// Frames go both ways; `is_silent` until the first has come from a peer that came to us.
    Open { is_silent: bool },
    /// Everything was sent; the peer is to close its side.
    Finishing,
}

/// What came over the socket.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Nothing that the handler has to know.
    None,
    /// The peer has answered.
    Connected,
}

/// Packets read at a time, so that a peer that floods the socket gets no more than its turn.
const MAX_PACKETS: usize = 64;

/// How soon a listener without room is asked again.
pub(crate) const DIAL_PAUSE: Duration = Duration::from_millis(5);

/// Frames read from a peer that has ended: those that a control ring has room for.
const MAX_LATE_FRAMES: usize = 4096;

impl Connection {
    pub(crate) fn new(
        peer: PeerId,
        address: Address,
        socket: Socket,
        segment: Segment,
        state: State,
    ) -> Self {
        Self {
            peer,
            address,
            socket,
            state,
            out: Outbound::new(segment.control_out, segment.staging_out),
            inbound: Inbound::new(segment.control_in, segment.staging_in),
            staged: Staged::default(),
            imports: Imports::default(),
            outbox: RefCell::default(),
            access: None,
            own_hazards: segment.own_hazards,
            own_door: segment.own_door,
            peer_hazards: segment.peer_hazards,
            peer_door: segment.peer_door,
            epoch: 0,
            process: Err("the peer has not answered".to_owned()),
            deadline: None,
            wants: None,
            is_lost: false,
            late_frames: 0,
            fate: None,
            is_awake: false,
            is_timed: false,
            waits_to_write: false,
        }
    }

    /// The peer has said who it is.
    pub(crate) fn greeted(
        &mut self,
        greeting: Greeting,
        table: PeerTable,
        foreign: Result<(), String>,
    ) {
        self.epoch = greeting.epoch;
        self.process =
            foreign.and_then(|()| Process::find(&self.socket, greeting.cookie, greeting.epoch));
        let entrant = |hazard: &Shared<Hazard>| {
            let generations = table.generations.clone();
            Entrant::new(generations, hazard.clone())
        };
        let device = entrant(&self.own_hazards.device);
        self.staged.slices.admit(device);
        let entrant = entrant(&self.own_hazards.processor);
        self.access = Some(Access { entrant, table });
    }

    /// Connects the socket and greets, if the listener has room.
    pub(crate) fn dial(&mut self, now: Instant) -> io::Result<bool> {
        let State::Dialing {
            name,
            greeting,
            files,
            until,
        } = &self.state
        else {
            return Ok(true);
        };
        match self.socket.connect(name) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.deadline = Some((now + DIAL_PAUSE).min(*until));
                return Ok(false);
            }
            connected => connected?,
        }
        let files = files.each_ref().map(std::os::fd::AsFd::as_fd);
        self.socket.send(&greeting.encode(), &files)?;
        self.deadline = Some(*until);
        self.state = State::Greeting;
        Ok(true)
    }

    pub(crate) fn is_finishing(&self) -> bool {
        matches!(self.state, State::Finishing)
    }

    /// Something was refused until there is room.
    pub(crate) fn want(&mut self, room: Room) {
        self.wants = Some(self.wants.map_or(room, |other| other.and(room)));
    }

    /// Reads the socket: bells, files, and the peer's answer.
    pub(crate) fn read_socket(&mut self, foreign: &Result<(), String>) -> Result<News, Closed> {
        let (mut packet, mut fds) = ([0; MAX_PACKET_BYTES], Vec::new());
        for _ in 0..MAX_PACKETS {
            fds.clear();
            let received = match self.socket.receive(&mut packet, &mut fds) {
                Ok(Received::Packet(bytes)) => &packet[..bytes],
                Ok(Received::Nothing) => break,
                Ok(Received::End) | Err(_) => {
                    self.is_lost = true;
                    break;
                }
            };
            if self.is_finishing() {
                continue;
            }
            if matches!(self.state, State::Greeting) {
                let greeting = Greeting::decode(received, true).map_err(Closed::Protocol)?;
                let table = only(&mut fds)?.ok_or_else(|| unexpected(0))?;
                let table = PeerTable::open(table).map_err(unfit)?;
                self.greeted(greeting, table, foreign.clone());
                self.state = State::Open { is_silent: false };
                self.deadline = None;
                return Ok(News::Connected);
            }
            let fd = only(&mut fds)?;
            match (received, fd) {
                (&[BELL], None) => {}
                (&[EXPORT, ref name @ ..], fd) if name.len() == 8 => {
                    if !self.imports.file(number(name), fd) {
                        let seen = crate::imports::MAX_FILES as u64 + 1;
                        return Err(Closed::Protocol(wrong("files", seen, "at most 4096")));
                    }
                }
                (&[RETIRE, ref name @ ..], None) if name.len() == 8 => {
                    self.imports.retire(number(name));
                }
                (other, _) => {
                    let first = other.first().copied().unwrap_or(0);
                    return Err(Closed::Protocol(wrong(
                        "packet",
                        first.into(),
                        "a bell, a file or its end",
                    )));
                }
            }
        }
        Ok(News::None)
    }

    /// Does what can be done without waiting. Returns whether anything was.
    pub(crate) fn turn(
        &mut self,
        context: &mut Context<'_>,
        completions: &mut Completions,
    ) -> Result<bool, Closed> {
        if let Some(fate) = self.fate.take() {
            return Err(fate);
        }
        match &mut self.state {
            State::Dialing { .. } => return Ok(false),
            State::Greeting => {
                if self.is_lost {
                    return Err(Closed::Io(io::ErrorKind::ConnectionReset.into()));
                }
                return Ok(false);
            }
            State::Finishing => {
                if self.is_lost {
                    return Err(Closed::ByUs);
                }
                return Ok(false);
            }
            State::Open { .. } => {}
        }
        // Asked first: what a peer wrote before it ended is seen after this.
        let is_lost = self.is_lost;
        let frames = self.inbound.read(self.peer, &mut self.staged, context)?;
        let mut ring = false;
        if frames > 0 {
            if let State::Open { is_silent } = &mut self.state
                && std::mem::take(is_silent)
            {
                self.deadline = None;
            }
            ring = self.inbound.publish() == Wake::Needed;
        }
        if self.staged.has_news() || frames > 0 && self.staged.is_busy() {
            let mut means = Means {
                out: &mut self.out,
                imports: &self.imports,
                epoch: self.epoch,
                table: self.access.as_ref().map(|access| &access.table),
                door: &self.own_door,
                served: context.served(self.peer),
            };
            self.staged.send(&mut means)?;
            self.staged.complete(self.peer, completions, context.stats);
        }
        if let Some(room) = self.wants
            && self.outbox.get_mut().flush(&self.socket)
            && self.out.has(room)?
        {
            self.wants = None;
            context.callbacks += 1;
            context.handler.writable(self.peer);
        }
        if self.out.take_wake() || ring {
            self.socket.ring();
        }
        if is_lost {
            self.late_frames += frames;
            if frames == 0 || self.late_frames > MAX_LATE_FRAMES {
                return Err(Closed::ByPeer);
            }
        }
        Ok(frames > 0)
    }

    /// Announces that nobody looks at the rings from now on; false if there is something to do.
    pub(crate) fn park(&mut self) -> Result<bool, Closed> {
        if self.fate.is_some() || self.is_lost {
            return Ok(false);
        }
        if !matches!(self.state, State::Open { .. }) {
            return Ok(true);
        }
        if self.staged.has_work() {
            return Ok(false);
        }
        self.waits_to_write = !self.outbox.get_mut().flush(&self.socket);
        let mut room = self.wants;
        if self.staged.wants_room() {
            room = Some(room.unwrap_or_default().and(crate::staged::ROOM));
        }
        if let Some(room) = room
            && !self.out.park(room)?
            && !self.waits_to_write
        {
            return Ok(false);
        }
        let parked = self.inbound.park()?;
        if !parked {
            self.out.unpark();
        }
        Ok(parked)
    }

    /// Somebody looks at the rings again.
    pub(crate) fn unpark(&mut self) {
        self.inbound.unpark();
        self.out.unpark();
    }

    /// Why a connection whose deadline has passed ends; `None` if it does not.
    pub(crate) fn expired(&mut self, now: Instant, first_frame: Duration) -> Option<Closed> {
        match self.state {
            State::Dialing { until, .. } if now < until => {
                if let Err(error) = self.dial(now) {
                    return Some(Closed::Io(error));
                }
                None
            }
            State::Open { is_silent: true } => Some(Closed::Idle {
                limit_ms: first_frame.as_millis() as u64,
            }),
            State::Open { is_silent: false } => {
                self.deadline = None;
                None
            }
            _ => Some(Closed::Io(io::ErrorKind::TimedOut.into())),
        }
    }

    /// Sends nothing any more but what is queued, which lies in shared memory already.
    pub(crate) fn finish(&mut self, until: Instant) {
        // The rings cannot be passed on before the socket is connected.
        if let State::Dialing { .. } = self.state
            && !matches!(self.dial(Instant::now()), Ok(true))
        {
            self.fate = Some(Closed::Io(io::ErrorKind::TimedOut.into()));
            return;
        }
        if !self.is_finishing() {
            self.peer_door.shut();
            if self.out.take_wake() {
                self.socket.ring();
            }
            self.socket.end();
            self.deadline = Some(until);
            self.state = State::Finishing;
        }
    }
}

/// The one descriptor of a packet, if there is one.
fn only(fds: &mut Vec<OwnedFd>) -> Result<Option<OwnedFd>, Closed> {
    if fds.len() > 1 {
        return Err(unexpected(fds.len()));
    }
    Ok(fds.pop())
}

fn unexpected(descriptors: usize) -> Closed {
    Closed::Protocol(wrong("descriptors", descriptors as u64, "one"))
}

/// What a peer sent cannot be mapped.
pub(crate) fn unfit(error: moai_memory::RegionError) -> Closed {
    Closed::Io(io::Error::other(error))
}

fn number(bytes: &[u8]) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(bytes);
    u64::from_le_bytes(number)
}
