//! One end of a connection: its interface, its memory, and what it has heard.

use std::time::{Duration, Instant};

use moai_memory::{
    Hold, MemoryKind, Region, Span,
    sim::{SimConfig, SimDevice},
};
use moai_transport::{
    Address, Batch, Closed, Error, Fault, Handler, Interface, Landing, PeerId, Piece, Posted,
    Provider, RegistrationId, Reject, Rights, Token,
};
use moai_transport_shm::{Listen, ShmConfig, ShmProvider};
use moai_transport_tcp::{TcpConfig, TcpProvider};

use super::Stack;
use crate::{
    args::{Kind, Transport},
    failure::Failure,
    pattern::Pattern,
    shapes::{Shape, Side},
};

/// How long anything may take to happen before the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the side that connects says first.
pub(super) const HELLO: &[u8] = b"hello";
/// What it says when its half of a step is over.
pub(super) const OVER: &[u8] = b"over";

/// One end.
#[derive(Debug)]
pub(super) struct End {
    pub(super) interface: Box<dyn Interface + Send>,
    pub(super) heard: Heard,
    pub(super) shape: Shape,
    pub(super) side: Side,
    /// Where the pieces of this side begin.
    pub(super) own: Vec<u64>,
    name: &'static str,
    registered: RegistrationId,
    device: Option<SimDevice>,
}

/// What is made of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// They are kept, the last one of each turn.
    Control,
    /// They are counted.
    Count,
    /// They are pieces, in order.
    Pieces,
}

/// The handler.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) memory: Vec<Region>,
    pub(super) peer: Option<PeerId>,
    pub(super) mode: Mode,
    /// Messages of control that nobody has taken.
    pub(super) control: Vec<Vec<u8>>,
    /// Messages in the other modes.
    pub(super) count: u32,
    offsets: Vec<u64>,
    closed: Option<String>,
}

impl End {
    pub(super) fn open(
        stack: Stack,
        side: Side,
        shape: Shape,
        listen: Option<std::net::IpAddr>,
    ) -> Result<Self, Failure> {
        let cannot =
            |error: Error| Failure::Lost(format!("cannot open the transport: {}", Chain(&error)));
        let provider = provider(stack, listen)?;
        let mut interface = provider.open().map_err(cannot)?;
        let device = (stack.kind == Kind::Sim).then(|| SimDevice::new(SimConfig::default()));
        let region = memory(stack.kind, shape.memory(), device.as_ref())?;
        let rights = match region.kind() {
            MemoryKind::Shared | MemoryKind::Sim => {
                Rights::READ.and(Rights::WRITE).and(Rights::MAP)
            }
            _ => Rights::READ.and(Rights::WRITE),
        };
        let registered = interface
            .register(0, &region, rights)
            .or_else(|_| interface.register(0, &region, Rights::READ.and(Rights::WRITE)))
            .map_err(cannot)?;
        let own = shape.offsets(side);
        Ok(Self {
            name: provider.name(),
            interface,
            heard: Heard {
                memory: vec![region],
                peer: None,
                mode: Mode::Control,
                control: Vec::new(),
                count: 0,
                offsets: own.clone(),
                closed: None,
            },
            shape,
            side,
            own,
            registered,
            device,
        })
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// The memory that pieces lie in, if the host has its bytes.
    pub(super) fn memory(&self) -> Option<Hold> {
        let region = &self.heard.memory[0];
        region.host_bytes().map(|_| region.hold())
    }

    /// The bytes by which the peer can address this side's memory.
    pub(super) fn key(&self) -> Result<Vec<u8>, Failure> {
        let key = self.interface.remote_key(self.peer()?, self.registered);
        key.map(|key| key.to_vec()).map_err(broke)
    }

    pub(super) fn peer(&self) -> Result<PeerId, Failure> {
        let gone = || Failure::Lost("the peer is not connected".to_owned());
        self.heard.peer.ok_or_else(gone)
    }

    /// One turn, of no more than `wait`.
    pub(super) fn poll(&mut self, wait: Duration) -> Result<(), Failure> {
        self.interface
            .poll(Some(wait), &mut self.heard)
            .map_err(broke)?;
        match &self.heard.closed {
            Some(why) => Err(Failure::Lost(format!("the connection ended: {why}"))),
            None => Ok(()),
        }
    }

    /// Turns until `done` has an answer.
    pub(super) fn until<T>(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Self) -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        let start = Instant::now();
        loop {
            if let Some(answer) = done(self)? {
                return Ok(answer);
            }
            if start.elapsed() > PATIENCE {
                return Err(Failure::Lost(format!(
                    "{what} did not happen in {PATIENCE:?}"
                )));
            }
            self.poll(PATIENCE)?;
        }
    }

    /// Sends a message as soon as there is room for it.
    pub(super) fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        let peer = self.peer()?;
        self.until("room for a message", |end| {
            match end.interface.send(peer, message).map_err(broke)? {
                Posted::Busy => Ok(None),
                Posted::Done | Posted::InFlight(_) => Ok(Some(())),
            }
        })
    }

    /// Sends a piece of this side's memory as a message.
    pub(super) fn send_piece(&mut self, index: usize) -> Result<(), Failure> {
        let (peer, at, bytes) = (
            self.peer()?,
            self.own[index] as usize,
            self.shape.piece as usize,
        );
        self.until("room for a message", |end| {
            let Some(memory) = end.heard.memory[0].host_bytes() else {
                return Err(Failure::Input(
                    "messages come from memory that the host can load".to_owned(),
                ));
            };
            let posted = end
                .interface
                .send(peer, &memory[at..at + bytes])
                .map_err(broke)?;
            Ok((posted != Posted::Busy).then_some(()))
        })
    }

    /// The next message of control.
    pub(super) fn hear(&mut self) -> Result<Vec<u8>, Failure> {
        self.until("a message", |end| {
            let first = !end.heard.control.is_empty();
            Ok(first.then(|| end.heard.control.remove(0)))
        })
    }

    /// Takes every completion that is there. Returns how many.
    pub(super) fn completions(&mut self) -> Result<u32, Failure> {
        let mut taken = 0;
        while let Some(completion) = self.interface.completion() {
            completion
                .outcome
                .map_err(|fault: Fault| Failure::Lost(fault.to_string()))?;
            taken += 1;
        }
        Ok(taken)
    }

    pub(super) fn fill(&mut self, pattern: Pattern) -> Result<(), Failure> {
        let Some(device) = &self.device else {
            pattern.write(self.heard.memory[0].as_mut_slice(), 0);
            return Ok(());
        };
        let mut bytes = vec![0; self.shape.memory() as usize];
        pattern.write(&mut bytes, 0);
        let poked = device.poke(&self.whole(), &bytes);
        poked.map_err(|error| Failure::Lost(error.to_string()))
    }

    pub(super) fn check(&self, pattern: Pattern) -> Result<(), Failure> {
        let checked = match &self.device {
            None => pattern.check(&self.shape, self.side, self.heard.memory[0].as_slice()),
            Some(device) => {
                let bytes = device.peek(&self.whole());
                let bytes = bytes.map_err(|error| Failure::Lost(error.to_string()))?;
                pattern.check(&self.shape, self.side, &bytes)
            }
        };
        checked.map_err(|text| Failure::Wrong(format!("{}: {text}", self.name)))
    }

    fn whole(&self) -> Span {
        Span {
            hold: self.heard.memory[0].hold(),
            offset: 0,
            bytes: self.shape.memory(),
        }
    }
}

/// The caller's names for operations say nothing here.
pub(super) const TOKEN: Token = Token(0);

pub(super) fn broke(error: Error) -> Failure {
    Failure::Lost(Chain(&error).to_string())
}

/// An error and its causes, in a line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            // Some errors say their cause themselves.
            let text = error.to_string();
            if !said.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            (said, cause) = (text, error.source());
        }
        Ok(())
    }
}

fn provider(stack: Stack, listen: Option<std::net::IpAddr>) -> Result<Box<dyn Provider>, Failure> {
    let spin = stack.spin_us.map(|us| Duration::from_micros(us.into()));
    Ok(match stack.transport {
        Transport::Tcp => {
            let mut config = TcpConfig {
                listen: listen.map(|ip| (ip, 0).into()),
                lanes: stack.lanes,
                ..TcpConfig::default()
            };
            if let Some(spin) = spin {
                config.spin = spin;
            }
            Box::new(TcpProvider::new(config))
        }
        Transport::Shm => {
            let mut config = ShmConfig {
                listen: listen.map(|_| Listen::Unnamed),
                ..ShmConfig::default()
            };
            if let Some(spin) = spin {
                config.spin = spin;
            }
            Box::new(ShmProvider::new(config))
        }
        Transport::Auto | Transport::Raw => {
            return Err(Failure::Input(
                "a transport is tcp or shm by now".to_owned(),
            ));
        }
    })
}

fn memory(kind: Kind, bytes: u64, device: Option<&SimDevice>) -> Result<Region, Failure> {
    let region = match (kind, device) {
        (Kind::Pinned, _) => Region::pinned_zeroed(bytes),
        (Kind::Shared, _) => Region::shared_zeroed(bytes),
        (Kind::Sim, Some(device)) => device.allocate(bytes),
        (Kind::Host | Kind::Sim, _) => Region::host_zeroed(bytes),
    };
    let mut region = region.map_err(|error| Failure::Lost(error.to_string()))?;
    if let Some(bytes) = region.host_bytes_mut() {
        // Pages are taken from the system here, not while the time is taken.
        bytes.fill(1);
    }
    Ok(region)
}

impl Handler for Heard {
    fn connected(&mut self, peer: PeerId, _incoming: bool) {
        self.peer = Some(peer);
    }

    fn message(&mut self, _peer: PeerId, bytes: &[u8]) -> Result<(), Reject> {
        match self.mode {
            Mode::Control => self.control.push(bytes.to_vec()),
            Mode::Count => self.count += 1,
            Mode::Pieces => {
                let at = self.offsets.get(self.count as usize).copied();
                let memory = self.memory[0].host_bytes_mut();
                let (Some(at), Some(memory)) = (at, memory) else {
                    return Err(Reject("a message more than there are pieces".to_owned()));
                };
                let Some(piece) = memory.get_mut(at as usize..at as usize + bytes.len()) else {
                    return Err(Reject("a message longer than a piece".to_owned()));
                };
                piece.copy_from_slice(bytes);
                self.count += 1;
            }
        }
        Ok(())
    }

    fn landing(&mut self, _peer: PeerId, _batch: Batch) -> Result<Landing, Reject> {
        Err(Reject("no batches are measured".to_owned()))
    }

    fn pieces(
        &mut self,
        _peer: PeerId,
        _batch: Batch,
        _from: u32,
        _most: usize,
        _out: &mut Vec<Piece>,
    ) -> Result<(), Reject> {
        Err(Reject("no batches are measured".to_owned()))
    }

    fn regions(&mut self) -> &mut [Region] {
        &mut self.memory
    }

    fn landed(
        &mut self,
        _peer: PeerId,
        _batch: Batch,
        _staged: Option<&[u8]>,
    ) -> Result<(), Reject> {
        Err(Reject("no batches are measured".to_owned()))
    }

    fn writable(&mut self, _peer: PeerId) {}

    fn closed(&mut self, _peer: PeerId, why: Closed) {
        self.closed = Some(Chain(&why).to_string());
    }
}

/// An address as it is told the other process.
pub(super) fn parse(text: &str) -> Result<Address, Failure> {
    text.parse()
        .map_err(|error| Failure::Lost(format!("{error}")))
}
