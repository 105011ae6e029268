//! Frames whose pieces lie in device memory: where their copies begin, and what becomes of those that are over.

use std::time::Instant;

use moai_memory::{Finished, Hold, Region, Work};
use moai_transport::wire::Header;
use moai_transport::{Batch, Cursor, Fault, Lists, PeerId, PieceList, Refusal};
use tracing::debug;

use crate::NAME;
use crate::copies::{Copying, Ticket, span};
use crate::framing::{WaitingGet, add_head};
use crate::inbound::Owner;
use crate::interface::{TcpInterface, find};
use crate::limits::SWEEP_PAUSE;
use crate::one_sided::OneSided;
use crate::target::{Dues, settle};

/// Begins to copy the next frame of a put of ours to the host.
///
/// # Errors
///
/// A [`Fault`] if the memory that was lent for it is not there; nothing has begun.
pub(crate) fn begin_put(
    one_sided: &mut OneSided,
    owner: Owner,
    index: u32,
    memory: &[Region],
    dues: &mut Dues,
) -> Result<(), Fault> {
    let side = owner.side();
    let mut chunk = one_sided.take_chunk();
    let head = add_head(one_sided, side, index, memory, &mut chunk)?;
    chunk.write_head(head.start, Header::Put(head.access));
    let mut job = one_sided.copies.job(Work::ToHost);
    let operation = one_sided.operations.get(index);
    operation.copying += 1;
    let mut left = head.access.bytes;
    let mut device = None;
    while left > 0 {
        let Some(run) = operation.local_at.next(&operation.local, left) else {
            break;
        };
        left -= run.bytes;
        if let Some(hold) = operation.on_device(run.region) {
            device = device.or_else(|| device_of(hold));
            job.spans.push(span(hold, run.offset, run.bytes));
        }
    }
    let what = Copying::PutOut {
        operation: index,
        chunk,
    };
    dues.copies_out += 1;
    one_sided.begin_copy(device, ticket(owner, what), job);
    Ok(())
}

/// Begins to copy the answer to a peer's get to the host.
pub(crate) fn begin_answer(
    one_sided: &mut OneSided,
    owner: Owner,
    get: &WaitingGet,
    memory: &[Region],
    dues: &mut Dues,
) -> Result<(), Refusal> {
    one_sided.check_lent(&get.list, memory)?;
    let (id, bytes) = (get.id, get.bytes);
    let mut chunk = one_sided.take_chunk();
    let header = Header::Data(Batch { id, bytes }).encode();
    chunk.bytes.extend_from_slice(&header);
    let mut job = one_sided.copies.job(Work::ToHost);
    one_sided.registered_spans(&get.list, bytes, &mut job.spans);
    dues.copies_out += 1;
    let what = Copying::GetOut { id, chunk };
    one_sided.begin_copy(get.device, ticket(owner, what), job);
    Ok(())
}

pub(crate) fn ticket(owner: Owner, what: Copying) -> Ticket {
    Ticket {
        connection: owner.peer,
        side: owner.side(),
        what,
    }
}

/// The device whose memory that is.
pub(crate) fn device_of(hold: &Hold) -> Option<u64> {
    hold.domain().map(moai_memory::Domain::id)
}

impl OneSided {
    /// The spans of the first `bytes` of registered memory.
    pub(crate) fn registered_spans(
        &self,
        list: &PieceList,
        mut bytes: u32,
        spans: &mut Vec<moai_memory::Span>,
    ) {
        let mut at = Cursor::default();
        while bytes > 0 {
            let Some(run) = at.next(list, bytes) else {
                break;
            };
            bytes -= run.bytes;
            if let Some(known) = self.registrations.in_slot(run.region) {
                spans.push(span(&known.hold, run.offset, run.bytes));
            }
        }
    }

    /// The device of all pieces of an admitted list; `None` if all lie in memory of the host.
    ///
    /// # Errors
    ///
    /// [`Refusal::Malformed`] if they lie in several memories: whoever sends a frame cuts it between them.
    pub(crate) fn device_of_list(&self, list: &PieceList) -> Result<Option<u64>, Refusal> {
        let mut first = None;
        for index in 0.. {
            let Some(pieces) = list.list(index) else {
                break;
            };
            let known = self.registrations.in_slot(pieces.region);
            let device = known.and_then(|known| device_of(&known.hold));
            if *first.get_or_insert(device) != device {
                return Err(Refusal::Malformed);
            }
        }
        Ok(first.flatten())
    }

    /// Starts a copy.
    pub(crate) fn begin_copy(
        &mut self,
        device: Option<u64>,
        ticket: Ticket,
        job: moai_memory::Job,
    ) {
        self.sides[ticket.side].copies += 1;
        self.copies.begin(device.unwrap_or(u64::MAX), ticket, job);
    }
}

impl TcpInterface {
    /// Takes in the copies that are over.
    pub(crate) fn take_copies(&mut self) {
        while let Some((ticket, finished)) = self.one_sided.copies.ended() {
            self.copied(ticket, finished);
            self.sweep
                .get_or_insert_with(|| Instant::now() + SWEEP_PAUSE);
        }
    }

    fn copied(&mut self, ticket: Ticket, Finished { job, outcome }: Finished) {
        let Ticket {
            connection,
            side,
            what,
        } = ticket;
        if let Err(error) = &outcome {
            debug!(provider = NAME, peer = %connection, reason = %error, "a copy has failed");
        }
        let failed = outcome.is_err();
        let (one_sided, stats) = (&mut self.one_sided, &mut self.stats);
        // A lane may have ended meanwhile, and its peer will when this is over; what is owed to it is not sent.
        let mut none = Dues::default();
        let dues = match find(&mut self.connections, connection) {
            Some(connection) => &mut connection.dues,
            None => &mut none,
        };
        match what {
            Copying::PutOut { operation, chunk } => {
                one_sided.operations.get(operation).copying -= 1;
                if failed {
                    one_sided.keep_chunk(chunk);
                    one_sided.copies.keep(job);
                    dues.copies_out = dues.copies_out.saturating_sub(1);
                    dues.unanswered = dues.unanswered.saturating_sub(1);
                    one_sided.operations.get(operation).unanswered -= 1;
                    one_sided.settled(side, operation, Some(Fault::Copy), stats);
                } else {
                    dues.copied(chunk, job);
                }
            }
            Copying::GetOut { id, chunk } => {
                if failed {
                    one_sided.keep_chunk(chunk);
                    one_sided.copies.keep(job);
                    dues.copies_out = dues.copies_out.saturating_sub(1);
                    dues.answer(id, Some(Refusal::Copy), stats);
                } else {
                    stats.gets_in += 1;
                    dues.copied(chunk, job);
                }
            }
            Copying::PutIn { id } => {
                one_sided.copies.keep(job);
                dues.copies_in = dues.copies_in.saturating_sub(1);
                stats.puts_in += u64::from(!failed);
                dues.answer(id, failed.then_some(Refusal::Copy), stats);
            }
            Copying::GetIn { id, operation } => {
                one_sided.copies.keep(job);
                dues.copies_in = dues.copies_in.saturating_sub(1);
                let fault = failed.then_some(Fault::Copy);
                settle(one_sided, side, id, operation, fault, stats);
            }
        }
        let of = &mut one_sided.sides[side];
        of.copies -= 1;
        // A peer that is lost ends with its last copy.
        let first = (of.copies == 0 && of.ending.is_some()).then_some(of.peer);
        for peer in [Some(connection), first].into_iter().flatten() {
            if let Some(connection) = find(&mut self.connections, peer)
                && !connection.is_ready
            {
                connection.is_ready = true;
                self.ready.push_back(peer);
            }
        }
    }

    /// Waits for the copies of a peer.
    pub(crate) fn wait_for_copies_of(&mut self, peer: PeerId) {
        if let Ok(side) = self.side_of(peer)
            && self.one_sided.sides[side].copies > 0
        {
            self.wait_for_copies(|ticket| ticket.side == side);
        }
    }

    /// Waits for copies that must not outlast a call.
    pub(crate) fn wait_for_copies(&mut self, is_one: impl Fn(&Ticket) -> bool) {
        loop {
            self.take_copies();
            if !self.one_sided.copies.any(&is_one) {
                break;
            }
            self.one_sided.copies.wait();
        }
    }
}
