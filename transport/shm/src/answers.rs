//! What a peer wants of registered memory through the staging rings, and how it is answered.

use std::collections::VecDeque;

use moai_memory::{Job, Region, Span, Work};
use moai_transport::wire::{Access, Header, WireError, decode_list};
use moai_transport::{
    Batch, Closed, PeerId, PieceList, Pieces, Refusal, Registration, Registrations, Rights, Stats,
};

use crate::copying::{Copies, Copying, Ticket, device, span};
use crate::greeting::wrong;
use crate::outbound::Outbound;
use crate::staged::{FRAME_BYTES, MAX_FRAMES};

/// Puts and gets of the peer that were not answered yet.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    queue: VecDeque<Answer>,
    /// Those that wait for a device. With those in the queue they are at most [`MAX_FRAMES`], each with a list or a
    /// buffer of [`FRAME_BYTES`].
    copying: usize,
    /// Lists that are not in use, kept for their memory.
    spare: Vec<PieceList>,
}

#[derive(Debug)]
enum Answer {
    Done {
        id: u64,
        refusal: Option<Refusal>,
    },
    Data {
        batch: Batch,
        epoch: u64,
        list: PieceList,
    },
    /// The same, once a device has copied it.
    Copied {
        batch: Batch,
        job: Job,
    },
}

/// Where frames that ask for registered memory are served from.
pub(crate) struct Served<'a> {
    pub(crate) peer: PeerId,
    pub(crate) registrations: &'a Registrations,
    pub(crate) regions: &'a mut [Region],
    pub(crate) copies: &'a mut Copies,
    pub(crate) stats: &'a mut Stats,
}

impl Answers {
    /// Whether something is to be sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Sends what there is room for; whether that was all.
    pub(crate) fn send(
        &mut self,
        out: &mut Outbound,
        served: &mut Served<'_>,
    ) -> Result<bool, Closed> {
        while let Some(answer) = self.queue.pop_front() {
            let left = match answer {
                Answer::Data { batch, epoch, list } => {
                    self.send_data(batch, epoch, list, out, served)?
                }
                Answer::Copied { batch, job } => {
                    let sent = out.staged(Header::Data(batch), &mut |room| {
                        room.copy_from_slice(&job.buffer);
                    })?;
                    if sent {
                        served.stats.gets_in += 1;
                        served.copies.keep(job);
                        continue;
                    }
                    Some(Answer::Copied { batch, job })
                }
                Answer::Done { id, refusal } => {
                    let sent = out.header(Header::Done { id, refusal })?;
                    (!sent).then_some(answer)
                }
            };
            if let Some(left) = left {
                self.queue.push_front(left);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Answers a get, or has a device copy for it. What there is no room for comes back.
    fn send_data(
        &mut self,
        batch: Batch,
        epoch: u64,
        list: PieceList,
        out: &mut Outbound,
        served: &mut Served<'_>,
    ) -> Result<Option<Answer>, Closed> {
        let mut memory = Memory {
            registrations: served.registrations,
            regions: &mut *served.regions,
            epoch,
            rights: Rights::READ,
        };
        // Checked now, not when it came: the registration may have gone meanwhile.
        let sent = match memory.admit(&list) {
            Err(refusal) => {
                let refusal = Some(refusal);
                let sent = out.header(Header::Done {
                    id: batch.id,
                    refusal,
                })?;
                served.stats.refused += u64::from(sent);
                sent
            }
            Ok(Some(device)) => {
                let mut job = served.copies.job(Work::ToHost);
                memory.spans(&list, &mut job.spans);
                self.copy(device, Copying::GetOut { batch }, job, served);
                true
            }
            Ok(None) => {
                let sent = out.staged(Header::Data(batch), &mut |mut room| {
                    // Admitted above, so no part is refused.
                    let _ = memory.each(&list, |source| {
                        let (target, rest) = std::mem::take(&mut room).split_at_mut(source.len());
                        target.copy_from_slice(source);
                        room = rest;
                    });
                })?;
                served.stats.gets_in += u64::from(sent);
                sent
            }
        };
        if sent {
            self.keep(list);
            return Ok(None);
        }
        Ok(Some(Answer::Data { batch, epoch, list }))
    }

    /// A put of the peer: its bytes go to the registered memory.
    pub(crate) fn put(
        &mut self,
        access: Access,
        payload: &[u8],
        served: &mut Served<'_>,
    ) -> Result<(), Closed> {
        let (list, payload) = self.list("put", access, payload)?;
        let mut memory = Memory {
            registrations: served.registrations,
            regions: &mut *served.regions,
            epoch: access.epoch,
            rights: Rights::WRITE,
        };
        let (id, mut rest) = (access.id, payload);
        let placed = match memory.admit(&list) {
            Err(refusal) => Err(refusal),
            Ok(None) => memory.each(&list, |target| {
                let (bytes, behind) = rest.split_at(target.len());
                target.copy_from_slice(bytes);
                rest = behind;
            }),
            Ok(Some(device)) => {
                let mut job = served.copies.job(Work::FromHost);
                memory.spans(&list, &mut job.spans);
                job.buffer.extend_from_slice(payload);
                self.keep(list);
                self.copy(device, Copying::PutIn { id }, job, served);
                return Ok(());
            }
        };
        self.keep(list);
        self.done(id, placed.err(), served.stats);
        Ok(())
    }

    /// A get of the peer: it is answered when there is room.
    pub(crate) fn get(&mut self, access: Access, list: &[u8]) -> Result<(), Closed> {
        let (list, _) = self.list("get", access, list)?;
        let batch = Batch {
            id: access.id,
            bytes: access.bytes,
        };
        let epoch = access.epoch;
        self.queue.push_back(Answer::Data { batch, epoch, list });
        Ok(())
    }

    /// A device has copied for the peer, or could not.
    pub(crate) fn copied(&mut self, what: Copying, job: Job, failed: bool, served: Copied<'_>) {
        self.copying -= 1;
        match what {
            Copying::GetOut { batch } if !failed => {
                self.queue.push_back(Answer::Copied { batch, job });
                return;
            }
            Copying::GetOut { batch } => {
                served.stats.refused += 1;
                let refusal = Some(Refusal::Copy);
                self.queue.push_back(Answer::Done {
                    id: batch.id,
                    refusal,
                });
            }
            Copying::PutIn { id } => {
                self.done(id, failed.then_some(Refusal::Copy), served.stats);
            }
            Copying::PutOut { .. } | Copying::GetIn { .. } | Copying::Slice { .. } => {}
        }
        served.copies.keep(job);
    }

    fn done(&mut self, id: u64, refusal: Option<Refusal>, stats: &mut Stats) {
        match refusal {
            Some(_) => stats.refused += 1,
            None => stats.puts_in += 1,
        }
        self.queue.push_back(Answer::Done { id, refusal });
    }

    fn copy(&mut self, device: u64, what: Copying, job: Job, served: &mut Served<'_>) {
        let peer = served.peer;
        self.copying += 1;
        let begun = served.copies.begin(device, Ticket { peer, what }, job);
        // Streams were opened when the memory was registered, so that this does not happen.
        if let Err((_, job)) = begun {
            let (copies, stats) = (&mut *served.copies, &mut *served.stats);
            self.copied(what, job, true, Copied { copies, stats });
        }
    }

    /// The pieces that a frame of the peer names, and what is behind them.
    fn list<'a>(
        &mut self,
        what: &'static str,
        access: Access,
        frame: &'a [u8],
    ) -> Result<(PieceList, &'a [u8]), Closed> {
        let waiting = self.queue.len() + self.copying;
        if waiting >= MAX_FRAMES {
            let seen = waiting as u64 + 1;
            let wrong = wrong("frames in flight", seen, "at most 64");
            return Err(Closed::Protocol(wrong));
        }
        if access.bytes > FRAME_BYTES {
            return Err(Closed::Protocol(WireError::Length {
                what,
                seen: access.bytes,
                limit: FRAME_BYTES,
            }));
        }
        let (list_bytes, rest) = frame.split_at(access.list_bytes as usize);
        let mut list = self.spare.pop().unwrap_or_default();
        decode_list(list_bytes, access.bytes, &mut list).map_err(Closed::Protocol)?;
        Ok((list, rest))
    }

    fn keep(&mut self, mut list: PieceList) {
        if self.spare.len() < MAX_FRAMES {
            list.clear();
            self.spare.push(list);
        }
    }
}

/// What a copy that is over is counted and kept in.
pub(crate) struct Copied<'a> {
    pub(crate) copies: &'a mut Copies,
    pub(crate) stats: &'a mut Stats,
}

/// Registered memory, while it is lent.
struct Memory<'a> {
    registrations: &'a Registrations,
    regions: &'a mut [Region],
    epoch: u64,
    rights: Rights,
}

impl Memory<'_> {
    /// Whether all of a peer's list may be accessed, and by which device: `None` where the processor can. A frame that
    /// names memory of several is refused, since whoever sends one ends it where the memory changes.
    fn admit(&self, list: &PieceList) -> Result<Option<u64>, Refusal> {
        let mut first = None;
        for (pieces, generation) in list.lists() {
            let (known, lent) = self.registered(&pieces, generation)?;
            let device = device(&known.hold);
            if device.is_none() && lent.host_bytes().is_none() {
                return Err(Refusal::Copy);
            }
            if *first.get_or_insert(device) != device {
                return Err(Refusal::Malformed);
            }
        }
        Ok(first.flatten())
    }

    /// Calls `access` for every piece of a list, in order.
    fn each(&mut self, list: &PieceList, mut access: impl FnMut(&mut [u8])) -> Result<(), Refusal> {
        for (pieces, generation) in list.lists() {
            let (known, _) = self.registered(&pieces, generation)?;
            let lent = &mut self.regions[known.region as usize];
            let bytes = lent.host_bytes_mut().ok_or(Refusal::Copy)?;
            // Pieces of a list that was read from a frame are single.
            for &offset in pieces.offsets {
                let start = offset as usize;
                access(&mut bytes[start..start + pieces.bytes as usize]);
            }
        }
        Ok(())
    }

    /// Every piece of an admitted list, in order, as a device names it.
    fn spans(&self, list: &PieceList, spans: &mut Vec<Span>) {
        for (pieces, generation) in list.lists() {
            if let Ok((known, _)) = self.registered(&pieces, generation) {
                let offsets = pieces.offsets.iter();
                spans.extend(offsets.map(|&offset| span(known.hold.clone(), offset, pieces.bytes)));
            }
        }
    }

    fn registered(
        &self,
        pieces: &Pieces<'_>,
        generation: u32,
    ) -> Result<(&Registration, &Region), Refusal> {
        let (known, _) = self
            .registrations
            .admit(self.epoch, generation, pieces, self.rights)?;
        let lent = self.regions.get(known.region as usize);
        // The caller may lend another region under the number.
        let is_same = |lent: &&Region| {
            let address = match lent.host_bytes() {
                Some(bytes) => bytes.as_ptr().addr(),
                None => lent.hold().address(),
            };
            address == known.hold.address() && lent.len() == known.hold.len()
        };
        let same = lent.filter(is_same).ok_or(Refusal::Copy)?;
        Ok((known, same))
    }
}
