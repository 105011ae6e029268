//! What is posted, from its check to its queue.

use moai_memory::Region;
use moai_transport::wire::Header;
use moai_transport::{Error, PeerId, Pieces, Posted, Rights, Token, limits};

use super::{TcpInterface, find, first};
use crate::connection::Connection;
use crate::operations::Kind;

impl TcpInterface {
    /// Posts a put or get, and sends what can be sent at once.
    pub(super) fn operate(
        &mut self,
        kind: Kind,
        memory: &[Region],
        peer: PeerId,
        [local, remote]: [&[Pieces<'_>]; 2],
        token: Token,
    ) -> Result<Posted, Error> {
        self.open_connection(peer)?;
        let side = self.side_of(peer)?;
        let rights = match kind {
            Kind::Put => Rights::WRITE,
            _ => Rights::READ,
        };
        let total = self.one_sided.check(side, memory, local, remote, rights)?;
        if total == 0 {
            return Ok(Posted::Done);
        }
        for list in local {
            let region = &memory[list.region as usize];
            if region.host_bytes().is_none() {
                let registry = self.poll.registry();
                self.one_sided.copies.open(&region.hold(), registry)?;
            }
        }
        if !self.one_sided.completions.has_room() {
            self.stats.busy += 1;
            return Ok(Posted::Busy);
        }
        let index = self.one_sided.operations.begin(kind, peer, token, total);
        let of = &self.one_sided.sides[side];
        let lanes = of.lanes.len();
        let mut keys = remote.iter().map(|list| &of.keys[list.region as usize]);
        let to_device = keys.any(|key| !key.kind.is_host_accessible());
        let operation = self.one_sided.operations.get(index);
        operation.keep(memory, local, remote, lanes, to_device);
        self.one_sided.begun(side, index);
        for at in 0..lanes {
            let lane = self.one_sided.sides[side].lanes[at];
            let connection = &mut self.connections[lane as usize];
            connection.flush(&mut self.one_sided, Some(memory), &mut self.stats);
            if connection.wants_turn(&mut self.one_sided) && !connection.is_dirty {
                connection.is_dirty = true;
                self.dirty.push(connection.peer);
            }
        }
        Ok(Posted::InFlight(token))
    }

    /// The connection to queue something on.
    pub(super) fn open_connection(&mut self, peer: PeerId) -> Result<&mut Connection, Error> {
        match first(&mut self.connections, peer) {
            None => Err(Error::NoSuchPeer { peer }),
            Some(connection)
                if connection.is_finishing() || connection.is_ending(&self.one_sided) =>
            {
                Err(Error::Finishing { peer })
            }
            Some(connection) => Ok(connection),
        }
    }

    /// Queues a frame whose length was checked. If there is no room, writes what is there and tries
    /// again.
    pub(super) fn queue(
        &mut self,
        peer: PeerId,
        header: Header,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<Posted, Error> {
        let Some(connection) = find(&mut self.connections, peer) else {
            return Err(Error::NoSuchPeer { peer });
        };
        if !connection.outbound.takes(header) {
            connection.flush(&mut self.one_sided, None, &mut self.stats);
        }
        let queued = connection.outbound.queue(header, fill);
        if connection.outbound.queued_bytes() >= limits::EAGER_WRITE_BYTES {
            connection.flush(&mut self.one_sided, None, &mut self.stats);
        }
        if !connection.is_dirty {
            connection.is_dirty = true;
            self.dirty.push(peer);
        }
        if queued {
            Ok(Posted::Done)
        } else {
            self.stats.busy += 1;
            Ok(Posted::Busy)
        }
    }
}
