//! What an interface knows of one-sided operations: registered memory, what peers have registered, and what is in
//! flight.

use std::collections::{HashMap, VecDeque};

use moai_memory::Region;
use moai_transport::{
    Closed, Completion, Completions, Error, Fault, PeerId, Piece, PieceList, Pieces, Refusal,
    Registration, RegistrationId, Registrations, RemoteKey, Rights, Stats, limits,
};
use slab::Slab;

use crate::chunk::Chunk;
use crate::copies::Copies;
use crate::limits::{KEPT_BUFFERS, KEPT_BYTES};
use crate::operations::{Ground, Kind, Operations};

/// State of all one-sided operations of an interface.
#[derive(Debug)]
pub(crate) struct OneSided {
    pub(crate) registrations: Registrations,
    pub(crate) operations: Operations,
    pub(crate) completions: Completions,
    pub(crate) copies: Copies,
    pub(crate) sides: Slab<Side>,
    /// Most connections of one peer.
    pub(crate) lanes: u32,
    /// What is registered under each number of a region, and how often.
    grounds: HashMap<u32, (Ground, u32)>,
    /// Where a read of payload goes, as far as it was worked out.
    pub(crate) places: Vec<Piece>,
    chunks: Vec<Chunk>,
    lists: Vec<PieceList>,
}

/// What belongs to one peer and not to one of its lanes.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) peer: PeerId,
    /// Random name by which the peer's further lanes say whose they are; 0 if there is only one.
    pub(crate) name: u64,
    /// What the peer has registered and told us.
    pub(crate) keys: Vec<RemoteKey>,
    /// Operations that have more to put into frames, in the order of posting.
    pub(crate) pending: VecDeque<u32>,
    /// Flushes that have not ended.
    flushes: Vec<u32>,
    /// Puts and gets that have not ended.
    in_flight: usize,
    /// Requests that were not answered.
    pub(crate) asked: usize,
    /// Copies between its frames and memory of devices.
    pub(crate) copies: usize,
    /// Why it will be lost as soon as the last of them is over.
    pub(crate) ending: Option<Closed>,
    /// A whole message, batch, put or get of it has arrived, on whatever lane.
    pub(crate) has_spoken: bool,
    /// Further lanes that the peer has invited us to open: how many, and its epoch.
    pub(crate) invited: Option<(u32, u64)>,
    /// Numbers of its lanes, as bits.
    pub(crate) numbers: u32,
    /// Entries of its connections in the table; the first is lane 0.
    pub(crate) lanes: Vec<u32>,
}

impl OneSided {
    pub(crate) fn new(epoch: u64, lanes: u32) -> Self {
        Self {
            registrations: Registrations::new(epoch),
            operations: Operations::default(),
            completions: Completions::new(limits::MAX_OPERATIONS),
            copies: Copies::default(),
            sides: Slab::new(),
            lanes,
            grounds: HashMap::new(),
            places: Vec::new(),
            chunks: Vec::new(),
            lists: Vec::new(),
        }
    }

    /// Registers memory.
    pub(crate) fn register(
        &mut self,
        index: u32,
        region: &Region,
        rights: Rights,
    ) -> Result<RegistrationId, Error> {
        let id = self.registrations.register(index, region, rights)?;
        if let Some(known) = self.registrations.in_slot(id.slot()) {
            let known = ground(known);
            let (ground, uses) = self.grounds.entry(index).or_insert((known, 0));
            *ground = known;
            *uses += 1;
        }
        Ok(id)
    }

    /// Takes back one registering. Returns whether it was the last one.
    pub(crate) fn deregister(&mut self, id: RegistrationId) -> Result<bool, Error> {
        let region = self.registrations.get(id).map(|known| known.region);
        let last = self.registrations.deregister(id)?.is_some();
        if let Ok(region) = region
            && let Some((_, uses)) = self.grounds.get_mut(&region)
        {
            *uses -= 1;
            if *uses == 0 {
                self.grounds.remove(&region);
            }
        }
        Ok(last)
    }

    pub(crate) fn add_side(&mut self, peer: PeerId) -> usize {
        self.sides.insert(Side {
            peer,
            name: 0,
            keys: Vec::new(),
            pending: VecDeque::new(),
            flushes: Vec::new(),
            in_flight: 0,
            asked: 0,
            copies: 0,
            ending: None,
            has_spoken: false,
            invited: None,
            numbers: 1,
            lanes: vec![peer.index()],
        })
    }

    /// The peer is gone; its operations end.
    pub(crate) fn remove_side(&mut self, side: usize, stats: &mut Stats) {
        self.end_all(side, stats);
        self.sides.remove(side);
    }

    /// Ends all operations of a peer that is lost.
    pub(crate) fn end_all(&mut self, side: usize, stats: &mut Stats) {
        let peer = self.sides[side].peer;
        while let Some(index) = self.operations.any_of(peer) {
            if self.operations.get(index).kind == Kind::Get {
                self.operations.settle_all(index);
            }
            self.operations.get(index).fault = Some(Fault::PeerLost);
            self.release(index, stats);
        }
        let side = &mut self.sides[side];
        side.pending.clear();
        side.flushes.clear();
        side.in_flight = 0;
        side.asked = 0;
    }

    /// Checks the lists of an operation. Returns its bytes.
    pub(crate) fn check(
        &self,
        side: usize,
        memory: &[Region],
        local: &[Pieces<'_>],
        remote: &[Pieces<'_>],
        rights: Rights,
    ) -> Result<u64, Error> {
        let mut bytes = 0_u64;
        for list in local {
            let region = list.region;
            let lent = memory
                .get(region as usize)
                .ok_or(Error::NotLent { region })?;
            if let Some((ground, _)) = self.grounds.get(&region)
                && !ground.is_lent(memory)
            {
                return Err(Error::NotLent { region });
            }
            if lent.host_bytes().is_none() && lent.hold().domain().is_none() {
                return Err(crate::interface::unsupported(rights, lent.kind()));
            }
            let total = list.check(lent.len());
            let total = total.map_err(|cause| Error::Pieces {
                side: "local",
                cause,
            })?;
            bytes = bytes.saturating_add(total);
        }
        let mut remote_bytes = 0_u64;
        let keys = &self.sides[side].keys;
        let mut epoch = None;
        for list in remote {
            let region = list.region;
            let key = keys
                .get(region as usize)
                .ok_or(Error::NotImported { region })?;
            if !key.rights.has(rights) {
                return Err(Error::Refused(Refusal::Rights));
            }
            if *epoch.get_or_insert(key.epoch) != key.epoch {
                return Err(Error::Refused(Refusal::Epoch));
            }
            let total = list.check(key.len);
            let total = total.map_err(|cause| Error::Pieces {
                side: "remote",
                cause,
            })?;
            remote_bytes = remote_bytes.saturating_add(total);
        }
        if bytes != remote_bytes {
            return Err(Error::Unequal {
                local: bytes,
                remote: remote_bytes,
            });
        }
        if bytes > limits::MAX_OPERATION_BYTES {
            return Err(Error::TooLarge {
                what: "operation",
                bytes,
                limit: limits::MAX_OPERATION_BYTES,
            });
        }
        Ok(bytes)
    }

    /// An operation was posted to a peer.
    pub(crate) fn begun(&mut self, side: usize, index: u32) {
        self.completions.begin();
        let side = &mut self.sides[side];
        if matches!(self.operations.get(index).kind, Kind::Flush(_)) {
            side.flushes.push(index);
        } else {
            side.in_flight += 1;
            side.pending.push_back(index);
        }
    }

    /// Puts and gets of a peer that have not ended.
    pub(crate) fn in_flight(&self, side: usize) -> usize {
        self.sides[side].in_flight
    }

    /// A frame of an operation was answered, or will not be sent.
    pub(crate) fn settled(
        &mut self,
        side: usize,
        index: u32,
        fault: Option<Fault>,
        stats: &mut Stats,
    ) {
        if let Some(fault) = fault {
            self.fail(side, index, fault);
        }
        let operation = self.operations.get(index);
        if !operation.is_over() {
            return;
        }
        let number = operation.number;
        self.release(index, stats);
        let side = &mut self.sides[side];
        side.in_flight -= 1;
        let mut at = 0;
        while let Some(&flush) = side.flushes.get(at) {
            let operation = self.operations.get(flush);
            if let Kind::Flush(left) = &mut operation.kind
                && operation.number > number
            {
                *left -= 1;
                if *left == 0 {
                    side.flushes.swap_remove(at);
                    let ended = Completion::new(operation.peer, operation.token, Ok(()));
                    self.completions.end(ended);
                    self.operations.release(flush);
                    continue;
                }
            }
            at += 1;
        }
    }

    /// An operation has failed: nothing more of it is sent. It ends when all its frames are answered.
    pub(crate) fn fail(&mut self, side: usize, index: u32, fault: Fault) {
        self.operations.get(index).fault.get_or_insert(fault);
        self.sides[side].pending.retain(|of| *of != index);
    }

    /// Ends an operation: completes it and gives its entry back.
    fn release(&mut self, index: u32, stats: &mut Stats) {
        let operation = self.operations.get(index);
        let outcome = operation.fault.map_or(Ok(()), Err);
        match (outcome, operation.kind) {
            (Ok(()), Kind::Put) => {
                stats.puts += 1;
                stats.put_bytes += operation.total;
            }
            (Ok(()), Kind::Get) => {
                stats.gets += 1;
                stats.got_bytes += operation.total;
            }
            (Err(_), Kind::Put | Kind::Get) => stats.faults += 1,
            (_, Kind::Flush(_)) => {}
        }
        let ended = Completion::new(operation.peer, operation.token, outcome);
        self.completions.end(ended);
        self.operations.release(index);
    }

    /// An empty chunk.
    pub(crate) fn take_chunk(&mut self) -> Chunk {
        self.chunks.pop().unwrap_or_default()
    }

    /// Gives a chunk back.
    pub(crate) fn keep_chunk(&mut self, mut chunk: Chunk) {
        if let Some(job) = chunk.take_copied() {
            self.copies.keep(job);
        }
        if self.chunks.len() < KEPT_BUFFERS && chunk.bytes.capacity() <= KEPT_BYTES {
            chunk.clear();
            self.chunks.push(chunk);
        }
    }

    /// An empty list.
    pub(crate) fn take_list(&mut self) -> PieceList {
        self.lists.pop().unwrap_or_default()
    }

    /// Gives a list back.
    pub(crate) fn keep_list(&mut self, mut list: PieceList) {
        if self.lists.len() < KEPT_BUFFERS {
            list.clear();
            self.lists.push(list);
        }
    }

    /// Whether registered memory is still there, and lent.
    pub(crate) fn check_lent(&self, list: &PieceList, memory: &[Region]) -> Result<(), Refusal> {
        for (pieces, generation) in list.lists() {
            if !self.ground(pieces.region, generation)?.is_lent(memory) {
                return Err(Refusal::Generation);
            }
        }
        Ok(())
    }

    /// Where the memory of a registration is among the regions that are lent.
    pub(crate) fn ground(&self, slot: u32, generation: u32) -> Result<Ground, Refusal> {
        self.registrations.by_slot(slot, generation).map(ground)
    }

    /// As [`ground`](Self::ground), for a slot whose generation was compared just before.
    pub(crate) fn registered(&self, slot: u32) -> Result<Ground, Refusal> {
        let known = self.registrations.in_slot(slot);
        known.map(ground).ok_or(Refusal::Generation)
    }
}

fn ground(known: &Registration) -> Ground {
    Ground {
        region: known.region,
        address: known.hold.address(),
        len: known.hold.len(),
    }
}
