//! An interface between threads, in the order of whoever tests: what lanes and one-sided providers may do.

use std::{
    collections::HashMap,
    fmt,
    os::fd::{BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::Duration,
};

use moai_memory::{MemoryKind, Region};
use moai_transport::{
    Address, Batch, Capabilities, Closed, Completion, Error, Handler, Interface, Landing,
    Operation, Path, PeerId, Pieces, Posted, Reach, RegistrationId, Registrations, Rights, Stats,
    Token,
    key::{KEY_BYTES, RemoteKey},
};

/// What goes wrong, or differently.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Habits {
    /// Nothing that is announced can be mapped.
    pub(crate) maps_nothing: bool,
    /// What is mapped is half as long as its key says.
    pub(crate) maps_half: bool,
    /// Batches overtake each other, and messages.
    pub(crate) reorders: bool,
}

/// Everybody's inboxes and lent memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    inboxes: Arc<Mutex<HashMap<String, Sender<Event>>>>,
    lent: Arc<Mutex<Vec<(OwnedFd, u64, u64)>>>,
}

enum Event {
    Connect(Sender<Self>, u32),
    Accepted(u32, u32),
    Message(u32, Vec<u8>),
    Batch(u32, Batch, Vec<u8>),
    Gone(u32),
}

/// One thread's end.
pub(crate) struct Local {
    world: World,
    name: Address,
    habits: Habits,
    capabilities: Capabilities,
    inbox: Receiver<Event>,
    own: Sender<Event>,
    peers: Vec<Option<Peer>>,
    registered: Registrations,
    /// Of each registration by slot: entry of the world's list.
    exported: HashMap<u32, u64>,
    imported: Vec<RemoteKey>,
    chance: u64,
}

struct Peer {
    to: Sender<Event>,
    /// The number by which it knows us, once it has told.
    there: Option<u32>,
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Local({})", self.name)
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        for peer in 0..self.peers.len() as u32 {
            self.close(PeerId::new(peer, 1));
        }
    }
}

impl Local {
    pub(crate) fn new(world: &World, name: &str, habits: Habits) -> Self {
        let (own, inbox) = channel();
        let inboxes = &mut *world.inboxes.lock().unwrap();
        inboxes.insert(name.to_owned(), own.clone());
        let mut reach = vec![(Operation::Map, MemoryKind::Shared, Reach::Direct)];
        reach.extend(
            [MemoryKind::Host, MemoryKind::Shared]
                .map(|kind| (Operation::Send, kind, Reach::Direct)),
        );
        Self {
            world: world.clone(),
            name: name.parse().unwrap(),
            habits,
            capabilities: Capabilities {
                reach,
                one_sided: false,
                max_message: 1 << 20,
                max_batch: 4 << 20,
                max_operation: 0,
                lanes: 1,
                encrypted: false,
            },
            inbox,
            own,
            peers: Vec::new(),
            registered: Registrations::new(7),
            exported: HashMap::new(),
            imported: Vec::new(),
            chance: 1,
        }
    }

    fn peer(&self, peer: PeerId) -> Result<(&Sender<Event>, u32), Error> {
        let known = self.peers.get(peer.index() as usize);
        let known = known.and_then(Option::as_ref);
        known
            .and_then(|known| Some((&known.to, known.there?)))
            .ok_or(Error::NoSuchPeer { peer })
    }

    fn handle(&mut self, event: Event, handler: &mut dyn Handler) {
        let id = |at: u32| PeerId::new(at, 1);
        let result = match event {
            Event::Connect(to, there) => {
                let at = self.peers.len() as u32;
                let _ = to.send(Event::Accepted(there, at));
                let there = Some(there);
                self.peers.push(Some(Peer { to, there }));
                handler.connected(id(at), true);
                return;
            }
            Event::Accepted(at, there) => {
                if let Some(peer) = &mut self.peers[at as usize] {
                    peer.there = Some(there);
                    handler.connected(id(at), false);
                }
                return;
            }
            Event::Gone(at) => {
                if self.peers[at as usize].take().is_some() {
                    handler.closed(id(at), Closed::ByPeer);
                }
                return;
            }
            Event::Message(at, _) | Event::Batch(at, ..) if self.peers[at as usize].is_none() => {
                return;
            }
            Event::Message(at, bytes) => (at, handler.message(id(at), &bytes)),
            Event::Batch(at, batch, bytes) => (at, land(handler, id(at), batch, &bytes)),
        };
        if let (at, Err(why)) = result {
            self.close(id(at));
            handler.closed(id(at), Closed::Rejected(why.to_string()));
        }
    }
}

fn land(
    handler: &mut dyn Handler,
    peer: PeerId,
    batch: Batch,
    bytes: &[u8],
) -> Result<(), moai_transport::Reject> {
    if handler.landing(peer, batch)? == Landing::Staged {
        return handler.landed(peer, batch, Some(bytes));
    }
    let (mut from, mut pieces) = (0, Vec::new());
    while from < batch.bytes {
        pieces.clear();
        handler.pieces(peer, batch, from, 5, &mut pieces)?;
        for piece in &pieces {
            let target = handler.regions()[piece.region as usize].as_mut_slice();
            let part = &bytes[from as usize..][..piece.bytes as usize];
            target[piece.offset as usize..][..part.len()].copy_from_slice(part);
            from += piece.bytes;
        }
    }
    handler.landed(peer, batch, None)
}

fn cannot(operation: Operation, kind: MemoryKind) -> Error {
    Error::Unsupported {
        provider: "local",
        operation,
        kind,
        reason: "it has not learnt to".into(),
    }
}

impl Interface for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn addresses(&self) -> Vec<Address> {
        vec![self.name.clone()]
    }

    fn connect(&mut self, address: &Address) -> Result<PeerId, Error> {
        let at = self.peers.len() as u32;
        let inboxes = self.world.inboxes.lock().unwrap();
        let to = inboxes[&address.to_string()].clone();
        let _ = to.send(Event::Connect(self.own.clone(), at));
        self.peers.push(Some(Peer { to, there: None }));
        Ok(PeerId::new(at, 1))
    }

    fn send(&mut self, peer: PeerId, message: &[u8]) -> Result<Posted, Error> {
        let (to, there) = self.peer(peer)?;
        let _ = to.send(Event::Message(there, message.to_vec()));
        Ok(Posted::Done)
    }

    fn post(
        &mut self,
        peer: PeerId,
        batch: Batch,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<Posted, Error> {
        let (to, there) = self.peer(peer)?;
        let mut bytes = vec![0xA5; batch.bytes as usize];
        fill(&mut bytes);
        let _ = to.send(Event::Batch(there, batch, bytes));
        Ok(Posted::Done)
    }

    fn register(
        &mut self,
        index: u32,
        region: &Region,
        rights: Rights,
    ) -> Result<RegistrationId, Error> {
        let hold = region.hold();
        let export = { hold.export() }.ok_or_else(|| cannot(Operation::Map, region.kind()))?;
        let lent = &mut *self.world.lent.lock().unwrap();
        let fd = export.fd.try_clone_to_owned().unwrap();
        lent.push((fd, export.offset, export.len));
        let id = self.registered.register(index, region, rights)?;
        self.exported.insert(index, lent.len() as u64 - 1);
        Ok(id)
    }

    fn deregister(&mut self, id: RegistrationId) -> Result<(), Error> {
        self.registered.deregister(id).map(drop)
    }

    fn remote_key(&self, _peer: PeerId, id: RegistrationId) -> Result<[u8; KEY_BYTES], Error> {
        let mut key = self.registered.key(id)?;
        let index = self.registered.get(id).map_err(Error::Refused)?.region;
        key.export = self.exported[&index];
        Ok(key.encode())
    }

    fn import(&mut self, _peer: PeerId, key: &[u8]) -> Result<u32, Error> {
        self.imported.push(RemoteKey::decode(key)?);
        Ok(self.imported.len() as u32 - 1)
    }

    fn put(
        &mut self,
        _memory: &mut [Region],
        _peer: PeerId,
        _local: &[Pieces<'_>],
        _remote: &[Pieces<'_>],
        _token: Token,
    ) -> Result<Posted, Error> {
        Err(cannot(Operation::Put, MemoryKind::Host))
    }

    fn get(
        &mut self,
        _memory: &mut [Region],
        _peer: PeerId,
        _local: &[Pieces<'_>],
        _remote: &[Pieces<'_>],
        _token: Token,
    ) -> Result<Posted, Error> {
        Err(cannot(Operation::Get, MemoryKind::Host))
    }

    fn map(&mut self, _peer: PeerId, remote: u32) -> Result<Region, Error> {
        if self.habits.maps_nothing {
            return Err(cannot(Operation::Map, MemoryKind::Shared));
        }
        let lent = self.world.lent.lock().unwrap();
        let (fd, offset, len) = &lent[self.imported[remote as usize].export as usize];
        let len = if self.habits.maps_half { len / 2 } else { *len };
        let fd = fd.try_clone().unwrap();
        Ok(Region::import(fd, *offset, len, MemoryKind::Shared, false).unwrap())
    }

    fn flush(&mut self, _peer: PeerId, _token: Token) -> Result<Posted, Error> {
        Ok(Posted::Done)
    }

    fn completion(&mut self) -> Option<Completion> {
        None
    }

    fn poll(&mut self, timeout: Option<Duration>, handler: &mut dyn Handler) -> Result<(), Error> {
        let wait = timeout.unwrap_or(Duration::from_secs(1));
        let mut events = match self.inbox.recv_timeout(wait) {
            Ok(event) => vec![event],
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(()),
        };
        events.extend(self.inbox.try_iter());
        if self.habits.reorders {
            // Batches of one turn in any order, and messages behind them before them.
            for at in (1..events.len()).rev() {
                self.chance = moai_collectives::digest::mix(self.chance);
                let with = (self.chance % (at as u64 + 1)) as usize;
                let frames = &events[with..=at];
                let plain = |event: &Event| matches!(event, Event::Batch(..) | Event::Message(..));
                let message = |event: &&Event| matches!(event, Event::Message(..));
                // Messages keep their order, and come before what they announce is over.
                if frames.iter().all(plain) && frames.iter().filter(message).count() == 0 {
                    events.swap(at, with);
                }
            }
        }
        for event in events {
            self.handle(event, handler);
        }
        Ok(())
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        unreachable!("nobody waits for it elsewhere")
    }

    fn arm(&mut self) -> Option<Duration> {
        None
    }

    fn close(&mut self, peer: PeerId) {
        if let Some(known) = self
            .peers
            .get_mut(peer.index() as usize)
            .and_then(Option::take)
            && let Some(there) = known.there
        {
            let _ = known.to.send(Event::Gone(there));
        }
    }

    fn finish(&mut self, peer: PeerId) {
        if let Ok((to, there)) = self.peer(peer) {
            let _ = to.send(Event::Gone(there));
            let _ = self.own.send(Event::Gone(peer.index()));
        }
    }

    fn path(&self, peer: PeerId) -> Option<Path> {
        self.peer(peer).ok()?;
        Some(Path {
            provider: "local",
            local: None,
            peer: self.name.clone(),
            why: "between threads".into(),
            is_fallback: false,
        })
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }
}
