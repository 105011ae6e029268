//! Frames of one-sided operations that come from a peer: what is admitted, and where its bytes go.

use std::collections::VecDeque;

use moai_memory::{Job, Region};
use moai_transport::wire::{Access, Header, Lane, WireError, decode_list};
use moai_transport::{
    Closed, Cursor, Fault, PeerId, Piece, PieceList, Refusal, Rights, Stats, limits,
};

use crate::chunk::Chunk;
use crate::copies::{Copying, span};
use crate::framing::WaitingGet;
use crate::inbound::Owner;
use crate::limits::{ANSWER_BYTES, COPIES, DEVICE_FRAME_BYTES, DIRECT_PIECE_BYTES, VECTORS};
use crate::one_sided::OneSided;
use crate::operations::{Ground, skip};
use crate::staged::ticket;
use crate::vectored::prefetch;

/// What one connection owes its peer, and is owed.
#[derive(Debug, Default)]
pub(crate) struct Dues {
    /// Headers of answers that have not gone out.
    pub(crate) answers: Vec<u8>,
    /// Gets to be answered.
    pub(crate) gets: VecDeque<WaitingGet>,
    /// Frames of puts that the peer has not answered.
    pub(crate) unanswered: u32,
    /// Frames that were copied from device memory and have not begun to leave.
    pub(crate) copied: VecDeque<Chunk>,
    /// Frames between device memory and the socket, each way.
    pub(crate) copies_out: u32,
    pub(crate) copies_in: u32,
}

impl Dues {
    pub(crate) fn answer(&mut self, id: u64, refusal: Option<Refusal>, stats: &mut Stats) {
        stats.refused += u64::from(refusal.is_some());
        let done = Header::Done { id, refusal }.encode();
        self.answers.extend_from_slice(&done);
    }

    /// The payload of a frame was copied from device memory.
    pub(crate) fn copied(&mut self, mut chunk: Chunk, job: Job) {
        chunk.append_copied(job);
        self.copied.push_back(chunk);
    }

    /// The next frame that was copied from device memory.
    pub(crate) fn take_copied(&mut self) -> Option<Chunk> {
        let chunk = self.copied.pop_front()?;
        self.copies_out -= 1;
        Some(chunk)
    }

    /// Drops the frames that were copied from device memory.
    pub(crate) fn forget_copied(&mut self) {
        self.copies_out -= self.copied.len() as u32;
        self.copied.clear();
    }

    /// Whether another frame may be copied from device memory.
    pub(crate) fn may_copy_out(&self) -> bool {
        self.copies_out < COPIES
    }

    /// Whether too much is owed to read on.
    pub(crate) fn is_choked(&self) -> bool {
        self.answers.len() > ANSWER_BYTES || self.copies_in >= COPIES
    }
}

/// Payload that goes to pieces of regions.
#[derive(Debug)]
pub(crate) struct Placing {
    whose: Whose,
    /// Bytes that have not arrived.
    pub(crate) left: u32,
    at: Cursor,
    /// The device whose memory the pieces are. Payload is then collected and copied, and not placed.
    pub(crate) device: Option<u64>,
}

#[derive(Debug)]
enum Whose {
    /// A peer's put, into registered memory.
    Put { id: u64, list: PieceList },
    /// The answer to a get of ours, into local pieces.
    Data {
        peer: PeerId,
        id: u64,
        operation: u32,
    },
}

/// Why payload has no place; what is left of it is dropped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Nowhere {
    /// And that is answered.
    Refused(u64, Refusal),
    /// The operation fails.
    Faulty(u64, Fault),
}

/// The list of a put has arrived.
pub(crate) fn admit_put(
    one_sided: &mut OneSided,
    access: Access,
    bytes: &[u8],
    regions: &[Region],
) -> Result<Placing, Nowhere> {
    let list = admit(one_sided, access, bytes, Rights::WRITE, regions);
    let (list, device) = list.map_err(|refusal| Nowhere::Refused(access.id, refusal))?;
    Ok(Placing {
        whose: Whose::Put {
            id: access.id,
            list,
        },
        left: access.bytes,
        at: Cursor::default(),
        device,
    })
}

/// The list of a get has arrived.
pub(crate) fn admit_get(
    one_sided: &mut OneSided,
    access: Access,
    bytes: &[u8],
    regions: &[Region],
    dues: &mut Dues,
    stats: &mut Stats,
) {
    let admitted = if dues.gets.len() >= limits::MAX_WAITING_GETS {
        Err(Refusal::Busy)
    } else {
        admit(one_sided, access, bytes, Rights::READ, regions)
    };
    match admitted {
        Ok((list, device)) => dues.gets.push_back(WaitingGet {
            id: access.id,
            bytes: access.bytes,
            list,
            device,
        }),
        Err(refusal) => dues.answer(access.id, Some(refusal), stats),
    }
}

fn admit(
    one_sided: &mut OneSided,
    access: Access,
    bytes: &[u8],
    rights: Rights,
    regions: &[Region],
) -> Result<(PieceList, Option<u64>), Refusal> {
    let mut list = one_sided.take_list();
    let admitted = check(one_sided, access, bytes, rights, regions, &mut list);
    match admitted {
        Ok(device) => Ok((list, device)),
        Err(refusal) => {
            one_sided.keep_list(list);
            Err(refusal)
        }
    }
}

fn check(
    one_sided: &OneSided,
    access: Access,
    bytes: &[u8],
    rights: Rights,
    regions: &[Region],
    list: &mut PieceList,
) -> Result<Option<u64>, Refusal> {
    decode_list(bytes, access.bytes, list).map_err(|_| Refusal::Malformed)?;
    for (pieces, generation) in list.lists() {
        let registrations = &one_sided.registrations;
        registrations.admit(access.epoch, generation, &pieces, rights)?;
        if !one_sided
            .ground(pieces.region, generation)?
            .is_lent(regions)
        {
            return Err(Refusal::Generation);
        }
    }
    let device = one_sided.device_of_list(list)?;
    if device.is_some() && access.bytes > DEVICE_FRAME_BYTES {
        return Err(Refusal::Malformed);
    }
    Ok(device)
}

/// The header of an answer to a get has arrived.
pub(crate) fn expect_data(
    one_sided: &mut OneSided,
    side: usize,
    id: u64,
    bytes: u32,
) -> Result<Placing, Closed> {
    let peer = one_sided.sides[side].peer;
    let asked = one_sided.operations.asked(peer, id);
    let Some(request) = asked.filter(|request| request.bytes == bytes) else {
        return Err(unasked("data", id));
    };
    let operation = one_sided.operations.get(request.operation);
    let device = operation.device_at(request.at);
    Ok(Placing {
        whose: Whose::Data {
            peer,
            id,
            operation: request.operation,
        },
        left: bytes,
        at: request.at,
        device,
    })
}

/// A peer says that a frame of ours is done.
pub(crate) fn done(
    one_sided: &mut OneSided,
    side: usize,
    id: u64,
    refusal: Option<Refusal>,
    dues: &mut Dues,
    stats: &mut Stats,
) -> Result<(), Closed> {
    let peer = one_sided.sides[side].peer;
    let fault = refusal.map(Fault::Refused);
    if let Some(index) = one_sided.operations.find(peer, id)
        && dues.unanswered > 0
        && one_sided.operations.get(index).has_left()
    {
        dues.unanswered -= 1;
        one_sided.operations.get(index).unanswered -= 1;
        one_sided.settled(side, index, fault, stats);
        return Ok(());
    }
    match one_sided.operations.asked(peer, id) {
        Some(request) if refusal.is_some() => {
            settle(one_sided, side, id, request.operation, fault, stats);
            Ok(())
        }
        _ => Err(unasked("done", id)),
    }
}

/// A request was answered, one way or the other.
pub(crate) fn settle(
    one_sided: &mut OneSided,
    side: usize,
    id: u64,
    operation: u32,
    fault: Option<Fault>,
    stats: &mut Stats,
) {
    one_sided.operations.settle(id);
    one_sided.sides[side].asked -= 1;
    one_sided.operations.get(operation).unanswered -= 1;
    one_sided.settled(side, operation, fault, stats);
}

fn unasked(what: &'static str, id: u64) -> Closed {
    Closed::Protocol(WireError::Field {
        field: "id",
        what,
        seen: id,
        expected: "that of a frame that waits for it",
    })
}

/// A peer says which lane of whom the connection is, or answers that.
pub(crate) fn joined(
    one_sided: &mut OneSided,
    side: usize,
    lane: Lane,
    incoming: Option<bool>,
    dues: &mut Dues,
) -> Result<(), Closed> {
    let (epoch, lanes) = (one_sided.registrations.epoch(), one_sided.lanes);
    let taken = one_sided
        .sides
        .iter()
        .any(|(_, other)| other.name == lane.peer);
    let side = &mut one_sided.sides[side];
    if incoming == Some(true) && side.name == 0 && !taken && lane.peer != 0 && lane.lane == 0 {
        side.name = lane.peer;
        let answer = Lane {
            peer: lane.peer,
            lane: lanes - 1,
            epoch,
        };
        dues.answers
            .extend_from_slice(&Header::Join(answer).encode());
        Ok(())
    } else if incoming == Some(false)
        && side.name == lane.peer
        && side.lanes.len() == 1
        && side.invited.is_none()
    {
        side.invited = Some((lane.lane.min(lanes - 1), lane.epoch));
        Ok(())
    } else {
        Err(unasked("join", lane.peer))
    }
}

impl Placing {
    /// Whether the memory is still what was admitted.
    fn check(&self, one_sided: &mut OneSided, regions: &[Region]) -> Result<(), Nowhere> {
        match &self.whose {
            Whose::Put { id, list } => {
                for (pieces, generation) in list.lists() {
                    let ground = one_sided.ground(pieces.region, generation);
                    let lent = ground.and_then(|ground| {
                        let lent = ground.is_lent(regions);
                        lent.then_some(()).ok_or(Refusal::Generation)
                    });
                    lent.map_err(|refusal| Nowhere::Refused(*id, refusal))?;
                }
                Ok(())
            }
            Whose::Data {
                peer,
                id,
                operation,
            } => {
                // The operation may have ended meanwhile, and its entry be another's.
                if one_sided.operations.asked(*peer, *id).is_none() {
                    return Err(Nowhere::Faulty(*id, Fault::PeerLost));
                }
                let operation = one_sided.operations.get(*operation);
                let fault = if operation.is_lent(regions) {
                    operation.fault
                } else {
                    Some(Fault::Access { code: libc::EFAULT })
                };
                fault.map_or(Ok(()), |fault| Err(Nowhere::Faulty(*id, fault)))
            }
        }
    }

    /// Works out where the next bytes go, into `one_sided.places`. None if those are short pieces, which a buffer serves
    /// better. Reads begin and end anywhere within a piece, so two of them may be as short as they like.
    pub(crate) fn plan(
        &self,
        one_sided: &mut OneSided,
        regions: &[Region],
    ) -> Result<u32, Nowhere> {
        self.check(one_sided, regions)?;
        let mut places = std::mem::take(&mut one_sided.places);
        places.clear();
        let (mut at, mut covered, mut short) = (self.at, 0, 0);
        while covered < self.left && places.len() < VECTORS {
            let Some(piece) = self.next(&mut at, self.left - covered, one_sided) else {
                break;
            };
            short += u32::from(piece.bytes < DIRECT_PIECE_BYTES);
            if short > 2 {
                break;
            }
            covered += piece.bytes;
            places.push(piece);
        }
        if places.len() as u32 == short {
            places.clear();
            covered = 0;
        }
        one_sided.places = places;
        Ok(covered)
    }

    /// So many bytes have gone to where [`plan`](Self::plan) said.
    pub(crate) fn placed(&mut self, bytes: u32, one_sided: &mut OneSided) {
        match &self.whose {
            Whose::Put { list, .. } => skip(&mut self.at, list, bytes),
            Whose::Data { operation, .. } => {
                skip(
                    &mut self.at,
                    &one_sided.operations.get(*operation).local,
                    bytes,
                );
            }
        }
        self.left -= bytes;
    }

    /// Copies `bytes`, no more than are left, to where they go.
    pub(crate) fn place(
        &mut self,
        mut bytes: &[u8],
        one_sided: &mut OneSided,
        regions: &mut [Region],
    ) -> Result<(), Nowhere> {
        self.check(one_sided, regions)?;
        self.left -= bytes.len() as u32;
        let mut places = [Piece {
            region: 0,
            offset: 0,
            bytes: 0,
        }; AHEAD];
        while !bytes.is_empty() {
            let (mut count, mut planned) = (0, 0);
            while count < AHEAD && planned < bytes.len() {
                let most = (bytes.len() - planned) as u32;
                let Some(piece) = self.advance(most, one_sided) else {
                    return Ok(());
                };
                let place = regions[piece.region as usize].as_slice();
                let place = &place[piece.offset as usize..][..piece.bytes as usize];
                prefetch(&place[..place.len().min(1024)]);
                planned += piece.bytes as usize;
                places[count] = piece;
                count += 1;
            }
            for piece in &places[..count] {
                let (from, rest) = bytes.split_at(piece.bytes as usize);
                let place = regions[piece.region as usize].as_mut_slice();
                place[piece.offset as usize..][..from.len()].copy_from_slice(from);
                bytes = rest;
            }
        }
        Ok(())
    }

    fn advance(&mut self, most: u32, one_sided: &mut OneSided) -> Option<Piece> {
        let mut at = self.at;
        let piece = self.next(&mut at, most, one_sided);
        self.at = at;
        piece
    }

    #[inline]
    fn next(&self, at: &mut Cursor, most: u32, one_sided: &mut OneSided) -> Option<Piece> {
        let (run, region) = match &self.whose {
            Whose::Put { list, .. } => {
                let run = at.next(list, most)?;
                let ground: Ground = one_sided.registered(run.region).ok()?;
                (run, ground.region)
            }
            Whose::Data { operation, .. } => {
                let run = at.next(&one_sided.operations.get(*operation).local, most)?;
                (run, run.region)
            }
        };
        Some(Piece {
            region,
            offset: run.offset,
            bytes: run.bytes,
        })
    }

    /// The whole payload is in its place.
    pub(crate) fn finish(
        self,
        one_sided: &mut OneSided,
        side: usize,
        dues: &mut Dues,
        stats: &mut Stats,
    ) {
        match self.whose {
            Whose::Put { id, list } => {
                one_sided.keep_list(list);
                stats.puts_in += 1;
                dues.answer(id, None, stats);
            }
            Whose::Data { id, operation, .. } => {
                settle(one_sided, side, id, operation, None, stats)
            }
        }
    }

    /// The whole payload is in the job's buffer: it is copied to its place.
    pub(crate) fn begin_copy(
        mut self,
        mut job: Job,
        owner: Owner,
        one_sided: &mut OneSided,
        regions: &[Region],
        dues: &mut Dues,
    ) -> Result<(), Nowhere> {
        if let Err(why) = self.check(one_sided, regions) {
            one_sided.copies.keep(job);
            self.give_up(one_sided);
            return Err(why);
        }
        let device = self.device;
        let what = match self.whose {
            Whose::Put { id, list } => {
                one_sided.registered_spans(&list, self.left, &mut job.spans);
                one_sided.keep_list(list);
                Copying::PutIn { id }
            }
            Whose::Data { id, operation, .. } => {
                let of = one_sided.operations.get(operation);
                while self.left > 0
                    && let Some(run) = self.at.next(&of.local, self.left)
                {
                    self.left -= run.bytes;
                    if let Some(hold) = of.on_device(run.region) {
                        job.spans.push(span(hold, run.offset, run.bytes));
                    }
                }
                one_sided.operations.claim(id);
                Copying::GetIn { id, operation }
            }
        };
        dues.copies_in += 1;
        one_sided.begin_copy(device, ticket(owner, what), job);
        Ok(())
    }

    /// Its payload has no place any more.
    pub(crate) fn give_up(self, one_sided: &mut OneSided) {
        if let Whose::Put { list, .. } = self.whose {
            one_sided.keep_list(list);
        }
    }
}

impl Nowhere {
    /// The payload has arrived and was dropped.
    pub(crate) fn dropped(
        self,
        one_sided: &mut OneSided,
        side: usize,
        dues: &mut Dues,
        stats: &mut Stats,
    ) {
        match self {
            Self::Refused(id, refusal) => dues.answer(id, Some(refusal), stats),
            Self::Faulty(id, fault) => {
                let peer = one_sided.sides[side].peer;
                if let Some(request) = one_sided.operations.asked(peer, id) {
                    settle(one_sided, side, id, request.operation, Some(fault), stats);
                }
            }
        }
    }
}

/// Pieces whose lines are asked for before the first of them is written.
const AHEAD: usize = 16;
