//! Puts and gets of this side that have not ended.

use moai_memory::{Hold, Region};
use moai_transport::{Cursor, Fault, Lists, PeerId, PieceList, Pieces, Token, limits};

use crate::limits::{
    DEVICE_FRAME_BYTES, DIRECT_FRAME_BYTES, DIRECT_PIECE_BYTES, STAGED_FRAME_BYTES,
};
use crate::staged::device_of;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Put,
    Get,
    /// Waits for so many operations that were posted before it.
    Flush(usize),
}

/// One operation in flight.
///
/// An entry of [`Operations`] is used again with the memory of its lists.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) kind: Kind,
    pub(crate) peer: PeerId,
    pub(crate) token: Token,
    /// Position among the operations of the interface.
    pub(crate) number: u64,
    pub(crate) local: PieceList,
    pub(crate) remote: PieceList,
    pub(crate) local_at: Cursor,
    pub(crate) remote_at: Cursor,
    /// Bytes of the operation, and of those that are in frames already.
    pub(crate) total: u64,
    pub(crate) framed: u64,
    /// Bytes of each of its frames, except the last.
    pub(crate) frame_bytes: u32,
    /// Frames that were not answered yet.
    pub(crate) unanswered: u32,
    /// Those among them whose payload is being copied from device memory.
    pub(crate) copying: u32,
    /// Memory of a device is at one of its ends.
    pub(crate) is_staged: bool,
    pub(crate) fault: Option<Fault>,
    /// The memory that was lent when it was posted, of each region that it names.
    grounds: Vec<Ground>,
    /// Those among the regions that only devices reach.
    devices: Vec<(u32, Hold)>,
    generation: u32,
    is_live: bool,
}

/// A region as it was lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ground {
    pub(crate) region: u32,
    pub(crate) address: usize,
    pub(crate) len: u64,
}

impl Ground {
    /// Whether `memory` still has the same bytes under the same number.
    pub(crate) fn is_lent(self, memory: &[Region]) -> bool {
        memory
            .get(self.region as usize)
            .is_some_and(|region| region.len() == self.len && address(region) == self.address)
    }
}

/// Where a region starts. Not by a hold where there is another way: that would be counted.
fn address(region: &Region) -> usize {
    let bytes = region.host_bytes();
    bytes.map_or_else(|| region.hold().address(), |bytes| bytes.as_ptr().addr())
}

impl Operation {
    /// Whether there is something left to put into frames.
    pub(crate) fn has_more(&self) -> bool {
        self.fault.is_none() && self.framed < self.total
    }

    /// Whether a frame of it has left that was not answered.
    pub(crate) fn has_left(&self) -> bool {
        self.unanswered > self.copying
    }

    /// Whether it has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.unanswered == 0 && !self.has_more()
    }

    /// Whether the memory that it was posted with is the memory that is lent now.
    pub(crate) fn is_lent(&self, memory: &[Region]) -> bool {
        self.grounds.iter().all(|ground| ground.is_lent(memory))
    }

    /// What keeps a region that only a device reaches.
    pub(crate) fn on_device(&self, region: u32) -> Option<&Hold> {
        let mut devices = self.devices.iter();
        devices.find_map(|(of, hold)| (*of == region).then_some(hold))
    }

    /// The device that reaches the local piece at `at`.
    pub(crate) fn device_at(&self, mut at: Cursor) -> Option<u64> {
        if self.devices.is_empty() {
            return None;
        }
        let run = at.next(&self.local, 1)?;
        self.on_device(run.region).and_then(device_of)
    }

    /// Whether a device reaches the payload of its next frame.
    pub(crate) fn is_from_device(&self) -> bool {
        self.kind == Kind::Put && self.device_at(self.local_at).is_some()
    }

    /// Most bytes of its next frame: local pieces of one frame are all a device's, or none is.
    pub(crate) fn next_frame(&self) -> u32 {
        let most = (self.total - self.framed).min(self.frame_bytes.into()) as u32;
        if self.devices.is_empty() {
            return most;
        }
        let (mut at, mut bytes, mut first) = (self.local_at, 0, None);
        while bytes < most {
            let Some(run) = at.next(&self.local, most - bytes) else {
                break;
            };
            let device = self.on_device(run.region).and_then(device_of);
            if *first.get_or_insert(device) != device {
                break;
            }
            bytes += run.bytes;
        }
        bytes
    }
}

/// One frame of a get that was not answered yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) operation: u32,
    pub(crate) bytes: u32,
    /// Where the answer goes.
    pub(crate) at: Cursor,
    /// The answer has arrived and is being copied to device memory.
    is_copying: bool,
    generation: u32,
    is_live: bool,
}

/// The tables of both. What is in them is named by index and generation, so an answer that comes too late, or
/// that a peer has made up, finds nothing.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    table: Vec<Operation>,
    free: Vec<u32>,
    requests: Vec<Request>,
    free_requests: Vec<u32>,
    posted: u64,
}

/// Set in the names of requests, and in no name of an operation.
const REQUEST: u64 = 1 << 63;

/// Generations are counted in the 31 bits below.
const GENERATIONS: u32 = (1 << 31) - 1;

fn name(index: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index)
}

impl Operations {
    /// Begins an operation and returns its index.
    pub(crate) fn begin(&mut self, kind: Kind, peer: PeerId, token: Token, total: u64) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.table.push(Operation::unused());
            self.table.len() as u32 - 1
        });
        self.posted += 1;
        let operation = &mut self.table[index as usize];
        operation.kind = kind;
        operation.peer = peer;
        operation.token = token;
        operation.number = self.posted;
        operation.local.clear();
        operation.remote.clear();
        operation.grounds.clear();
        operation.devices.clear();
        operation.local_at = Cursor::default();
        operation.remote_at = Cursor::default();
        operation.total = total;
        operation.framed = 0;
        operation.unanswered = 0;
        operation.copying = 0;
        operation.fault = None;
        operation.is_live = true;
        index
    }

    pub(crate) fn get(&mut self, index: u32) -> &mut Operation {
        &mut self.table[index as usize]
    }

    pub(crate) fn name(&self, index: u32) -> u64 {
        name(index, self.table[index as usize].generation)
    }

    /// The operation of `peer` with that name.
    pub(crate) fn find(&self, peer: PeerId, id: u64) -> Option<u32> {
        let index = id as u32;
        let operation = self.table.get(index as usize)?;
        let same = name(index, operation.generation) == id;
        (operation.is_live && same && operation.peer == peer).then_some(index)
    }

    /// Gives an entry back.
    pub(crate) fn release(&mut self, index: u32) {
        let operation = &mut self.table[index as usize];
        operation.is_live = false;
        operation.devices.clear();
        operation.generation = (operation.generation + 1) & GENERATIONS;
        self.free.push(index);
    }

    /// One of `peer`.
    pub(crate) fn any_of(&self, peer: PeerId) -> Option<u32> {
        let is_of = |operation: &Operation| operation.is_live && operation.peer == peer;
        self.table.iter().position(is_of).map(|at| at as u32)
    }

    /// Notes a frame of a get, and returns its name.
    pub(crate) fn ask(&mut self, operation: u32, bytes: u32, at: Cursor) -> u64 {
        let index = self.free_requests.pop().unwrap_or_else(|| {
            self.requests.push(Request {
                operation,
                bytes,
                at,
                is_copying: false,
                generation: 0,
                is_live: false,
            });
            self.requests.len() as u32 - 1
        });
        let request = &mut self.requests[index as usize];
        request.operation = operation;
        request.bytes = bytes;
        request.at = at;
        request.is_copying = false;
        request.is_live = true;
        REQUEST | name(index, request.generation)
    }

    /// The answer to a request is there, and no other is taken.
    pub(crate) fn claim(&mut self, id: u64) {
        self.requests[id as u32 as usize].is_copying = true;
    }

    /// The request to `peer` with that name, of which no answer has arrived.
    pub(crate) fn asked(&self, peer: PeerId, id: u64) -> Option<Request> {
        if id & REQUEST == 0 {
            return None;
        }
        let request = self.requests.get(id as u32 as usize)?;
        let same = REQUEST | name(id as u32, request.generation) == id;
        let operation = self.table.get(request.operation as usize)?;
        let waits = request.is_live && !request.is_copying;
        (waits && same && operation.is_live && operation.peer == peer).then_some(*request)
    }

    /// A request was answered.
    pub(crate) fn settle(&mut self, id: u64) {
        let request = &mut self.requests[id as u32 as usize];
        request.is_live = false;
        request.generation = (request.generation + 1) & GENERATIONS;
        self.free_requests.push(id as u32);
    }

    /// Forgets the requests of an operation.
    pub(crate) fn settle_all(&mut self, operation: u32) {
        for index in 0..self.requests.len() {
            let request = self.requests[index];
            if request.is_live && request.operation == operation {
                self.settle(index as u64);
            }
        }
    }
}

impl Operation {
    fn unused() -> Self {
        Self {
            kind: Kind::Put,
            peer: PeerId::new(u32::MAX, 0),
            token: Token(0),
            number: 0,
            local: PieceList::default(),
            remote: PieceList::default(),
            local_at: Cursor::default(),
            remote_at: Cursor::default(),
            total: 0,
            framed: 0,
            frame_bytes: 0,
            unanswered: 0,
            copying: 0,
            is_staged: false,
            fault: None,
            grounds: Vec::new(),
            devices: Vec::new(),
            generation: 0,
            is_live: false,
        }
    }

    /// Takes copies of the lists, which were checked, and notes what memory is lent. `to_device` if a device of the
    /// peer's is at the other end.
    pub(crate) fn keep(
        &mut self,
        memory: &[Region],
        local: &[Pieces<'_>],
        remote: &[Pieces<'_>],
        lanes: usize,
        to_device: bool,
    ) {
        self.local.extend(local);
        self.remote.extend(remote);
        for list in local {
            if self.grounds.iter().all(|known| known.region != list.region) {
                let region = &memory[list.region as usize];
                self.grounds.push(Ground {
                    region: list.region,
                    address: address(region),
                    len: region.len(),
                });
                if region.host_bytes().is_none() {
                    self.devices.push((list.region, region.hold()));
                }
            }
        }
        let pieces = count(local).max(count(remote));
        self.is_staged = to_device || !self.devices.is_empty();
        self.frame_bytes = if self.is_staged {
            DEVICE_FRAME_BYTES
        } else if self.total / pieces >= u64::from(DIRECT_PIECE_BYTES) {
            // Several lanes share an operation from a few frames on.
            let share = (self.total / lanes as u64).next_multiple_of(4096);
            share.clamp(u64::from(STAGED_FRAME_BYTES), u64::from(DIRECT_FRAME_BYTES)) as u32
        } else {
            STAGED_FRAME_BYTES
        };
    }
}

fn count(lists: &[Pieces<'_>]) -> u64 {
    let each = |list: &Pieces<'_>| u64::from(list.count) * list.offsets.len() as u64;
    lists.iter().map(each).sum::<u64>().max(1)
}

/// Checked: `framed` and `total` fit, and a frame is no longer than the peer accepts.
const _: () = assert!(DIRECT_FRAME_BYTES <= limits::MAX_BATCH_BYTES);

/// Advances `cursor` by `bytes`.
pub(crate) fn skip(cursor: &mut Cursor, lists: &impl Lists, mut bytes: u32) {
    while bytes > 0 {
        let Some(run) = cursor.next(lists, bytes) else {
            break;
        };
        bytes -= run.bytes;
    }
}
