//! Puts and gets, and memory that is taken back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use moai_memory::{Domain, MemoryKind, Region};
use moai_transport::{
    Completion, Error, Fault, Operation, PeerId, Posted, Refusal, Rights, Token, limits,
};
use tracing::debug;

use super::{DEVICES, Entry, MAX_UNASKED, ShmInterface, find, os, watch};
use crate::address::NAME;
use crate::connection::Connection;
use crate::copying::Ticket;
use crate::direct::{Job, Way};
use crate::foreign::Direction;
use crate::imports::Imports;

/// How long it is waited for a peer to leave memory that is taken back. A slice of an operation takes some 2 ms; who
/// takes a second has been stopped, or is no longer scheduled.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often whoever waits for that looks whether the peer is still alive.
const LEAVE_PAUSE: Duration = Duration::from_millis(1);

impl ShmInterface {
    /// Opens a stream of the device whose memory a region is.
    pub(super) fn open_stream(&mut self, region: &Region) -> Result<(), Error> {
        let hold = region.hold();
        let Some(device) = hold.domain() else {
            return Ok(());
        };
        if let Some(fd) = self.copies.open(device)? {
            watch(&self.epoll, fd, DEVICES).map_err(os("epoll_ctl"))?;
        }
        Ok(())
    }

    /// Takes in the copies that are over.
    pub(super) fn take_copies(&mut self) {
        while let Some((Ticket { peer, what }, finished)) = self.copies.ended() {
            if let Err(error) = &finished.outcome {
                debug!(provider = NAME, %peer, reason = %error, "a copy has failed");
            }
            let (copies, stats) = (&mut self.copies, &mut self.stats);
            match find(&mut self.entries, peer) {
                Some(connection) => connection.staged.copied(what, finished, copies, stats),
                None => copies.keep(finished.job),
            }
            self.wake(peer);
        }
    }

    /// Waits for copies that must not outlast a call. Each takes a device some microseconds.
    pub(super) fn wait_for_copies(&mut self, is_one: impl Fn(&Ticket) -> bool) {
        loop {
            self.take_copies();
            if !self.copies.any(&is_one) {
                break;
            }
            self.copies.wait();
        }
    }

    /// Waits until no peer is in a slot that was closed.
    pub(super) fn wait_until_left(&mut self, slot: u32) -> bool {
        let until = Instant::now() + LEAVE_TIMEOUT;
        let mut asked = Instant::now();
        loop {
            let peers = self.entries.iter().filter_map(|(_, entry)| match entry {
                Entry::Peer(connection) => Some(connection.peer_hazards.each()),
                Entry::Guest(_) => None,
            });
            let ghosts = self.ghosts.iter().map(|ghost| ghost.hazards.each());
            let all = peers.chain(ghosts).flatten();
            if self.table.target.is_quiet(slot, all) {
                return true;
            }
            std::thread::yield_now();
            let now = Instant::now();
            if now >= until {
                return false;
            }
            if now - asked >= LEAVE_PAUSE {
                asked = now;
                for (_, entry) in &self.entries {
                    if let Entry::Peer(connection) = entry
                        && connection.socket.is_lost()
                    {
                        for hazard in connection.peer_hazards.each() {
                            hazard.clear();
                        }
                    }
                }
                self.ghosts.retain(|ghost| !ghost.socket.is_lost());
            }
        }
    }

    /// A put or get, once its direction is known.
    pub(super) fn operate(
        &mut self,
        memory: &mut [Region],
        peer: PeerId,
        job: &Job<'_>,
        token: Token,
    ) -> Result<Posted, Error> {
        let Some(Entry::Peer(connection)) = self.entries.get_mut(peer.index() as usize) else {
            return Err(Error::NoSuchPeer { peer });
        };
        if connection.peer != peer {
            return Err(Error::NoSuchPeer { peer });
        }
        if connection.is_finishing() {
            return Err(Error::Finishing { peer });
        }
        let (local, is_ours) = check_local(memory, job)?;
        let (remote, is_direct) = check_remote(connection, job)?;
        if local != remote {
            return Err(Error::Unequal { local, remote });
        }
        if local > limits::MAX_OPERATION_BYTES {
            return Err(Error::TooLarge {
                what: "operation",
                bytes: local,
                limit: limits::MAX_OPERATION_BYTES,
            });
        }
        if local == 0 {
            return Ok(Posted::Done);
        }
        if !self.completions.has_room() {
            self.stats.busy += 1;
            return Ok(Posted::Busy);
        }
        if !is_ours || !is_direct {
            if !is_ours {
                for list in job.local {
                    self.open_stream(&memory[list.region as usize])?;
                }
            }
            let connection = find(&mut self.entries, peer).ok_or(Error::NoSuchPeer { peer })?;
            let device = device_for(memory, job, &mut connection.imports, &self.devices.0);
            self.completions.begin();
            connection.staged.begin(token, job, local, device);
            self.wake(peer);
            return Ok(Posted::InFlight(token));
        }
        let Some(access) = &mut connection.access else {
            return Err(Error::NoSuchPeer { peer });
        };
        let mut way = Way {
            access,
            door: &connection.own_door,
            process: connection.process.as_ref().ok().copied(),
            socket: &connection.socket,
            foreign: &mut self.foreign,
        };
        match job.run(&mut way, &mut connection.imports, memory) {
            Ok(()) => {
                let (count, bytes) = match job.direction {
                    Direction::Write => (&mut self.stats.puts, &mut self.stats.put_bytes),
                    Direction::Read => (&mut self.stats.gets, &mut self.stats.got_bytes),
                };
                *count += 1;
                *bytes += local;
                Ok(Posted::Done)
            }
            Err(fault) => {
                self.stats.faults += 1;
                self.completions.begin();
                self.completions
                    .end(Completion::new(peer, token, Err(fault)));
                if fault == Fault::PeerLost {
                    self.unasked = MAX_UNASKED;
                }
                Ok(Posted::InFlight(token))
            }
        }
    }
}

/// Bytes of all local pieces, found in order, and whether the processor can reach all of them.
fn check_local(memory: &mut [Region], job: &Job<'_>) -> Result<(u64, bool), Error> {
    let (mut total, mut is_ours) = (0_u64, true);
    for list in job.local {
        let Some(region) = memory.get_mut(list.region as usize) else {
            return Err(Error::NotLent {
                region: list.region,
            });
        };
        let is_host = region.kind().is_host_accessible();
        is_ours &= is_host;
        let reachable = match job.direction {
            Direction::Write if is_host => region.host_bytes().is_some(),
            Direction::Read if is_host => region.host_bytes_mut().is_some(),
            Direction::Write => region.hold().domain().is_some(),
            Direction::Read => {
                let hold = region.hold();
                hold.domain().is_some() && hold.is_writable()
            }
        };
        if !reachable {
            let (operation, reason) = match job.direction {
                Direction::Write => (Operation::Put, "this process cannot load it"),
                Direction::Read => (Operation::Get, "this process cannot store to it"),
            };
            return Err(Error::Unsupported {
                provider: NAME,
                operation,
                kind: region.kind(),
                reason: reason.to_owned(),
            });
        }
        let bytes = list.check(region.len()).map_err(|cause| Error::Pieces {
            side: "local",
            cause,
        })?;
        total = total.saturating_add(bytes);
    }
    Ok((total, is_ours))
}

/// Bytes of all remote pieces, found in order, and whether this side can copy all of them.
fn check_remote(connection: &mut Connection, job: &Job<'_>) -> Result<(u64, bool), Error> {
    let (mut total, mut is_direct) = (0_u64, true);
    let rights = match job.direction {
        Direction::Write => Rights::WRITE,
        Direction::Read => Rights::READ,
    };
    for list in job.remote {
        let key = connection.imports.get(list.region)?;
        if key.epoch != connection.epoch {
            return Err(Error::Refused(Refusal::Epoch));
        }
        if !key.rights.has(rights) {
            return Err(Error::Refused(Refusal::Rights));
        }
        let (kind, len) = (key.kind, key.len);
        let bytes = list.check(len).map_err(|cause| Error::Pieces {
            side: "remote",
            cause,
        })?;
        total = total.saturating_add(bytes);
        let is_mapped = kind == MemoryKind::Shared && connection.imports.prepare(list.region);
        let may_call = kind.is_host_accessible() && connection.process.is_ok();
        is_direct &= is_mapped || may_call;
    }
    Ok((total, is_direct))
}

/// The device that copies an operation alone: that of the local regions, or else one that was named when the interface
/// was opened; if all of the peer's memory is on a device and this one can import it.
fn device_for(
    memory: &[Region],
    job: &Job<'_>,
    imports: &mut Imports,
    devices: &[Arc<dyn Domain>],
) -> Option<u64> {
    let regions = job.local.iter().map(|list| &memory[list.region as usize]);
    let mut holds = regions
        .filter(|region| !region.kind().is_host_accessible())
        .map(Region::hold);
    let first = holds.next();
    let device = match &first {
        Some(hold) => hold.domain()?,
        None => &**devices.first()?,
    };
    if !device.runs_kernels() {
        return None;
    }
    let id = device.id();
    let is_one = holds.all(|hold| hold.domain().is_some_and(|other| other.id() == id));
    let mut remote = job.remote.iter();
    let all = is_one && remote.all(|list| imports.prepare_on(list.region, device));
    all.then_some(id)
}
