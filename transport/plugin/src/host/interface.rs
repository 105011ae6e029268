//! An interface of the other side.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::ptr;
use std::slice;
use std::time::Duration;

use moai_memory::{MemoryKind, Region};
use moai_transport::key::KEY_BYTES;
use moai_transport::limits::MAX_OPERATIONS;
use moai_transport::{
    Address, Batch, Capabilities, Closed, Completion, Error, Fault, Handler, Identity, Interface,
    Name, Operation, Path, PeerId, Piece, Pieces, Posted, Reach, RegistrationId, Rights, Stats,
    Token,
};
use rustix::event::epoll;
use slab::Slab;
use tracing::warn;

use super::calls::{Calls, Door, Peers, peer_id, peer_number};
use super::lending::Lending;
use crate::abi;
use crate::errors::{About, heard, operation, outcome};
use crate::memory::{Held, take};
use crate::text::{self, Said};

/// Calls the other side, and checks what it answers.
///
/// Once it was found to break a rule it is called no more: operations end as lost, connections as closed, and calls fail
/// with what was wrong.
pub(super) struct PluginInterface {
    name: &'static str,
    table: &'static abi::Transport,
    raw: *mut c_void,
    capabilities: Capabilities,
    /// Readable when the other side's descriptor is; ours, so that it stays whatever becomes of that.
    epoll: OwnedFd,
    /// The other side's.
    wait_fd: i32,
    /// What it takes to hear of peers.
    door: Box<Door>,
    lending: Lending,
    peers: Peers,
    pieces: Vec<Piece>,
    /// Lists of an operation in the form of the other side, kept for their room.
    lists: Vec<abi::Pieces>,
    /// Operations in flight, with the number that tells each from earlier ones in the same entry.
    operations: Slab<Operating>,
    generation: u32,
    /// Completions that the other side did not give.
    ended: VecDeque<Completion>,
    said: Said,
    /// Operations for which there was no room here.
    busy: u64,
    /// The rule that it broke.
    broken: Option<String>,
    /// Connections that are to be told of as closed because of that.
    orphans: Vec<PeerId>,
}

#[derive(Clone, Copy, Debug)]
struct Operating {
    generation: u32,
    peer: PeerId,
    token: Token,
}

// SAFETY: by the rules of the header an interface is used by one thread at a time, whichever it is. `Interface` has calls
// by `&self`, and is not `Sync`.
unsafe impl Send for PluginInterface {}

/// A function of a table; that it is there was checked when the table was read.
macro_rules! function {
    ($self:ident.$name:ident) => {
        $self.table.$name.expect("checked when it was loaded")
    };
}

impl PluginInterface {
    /// Takes over an interface that was opened.
    ///
    /// # Safety
    ///
    /// `raw` is an interface that `open` of the table has given, and nobody else uses it.
    pub(super) unsafe fn new(
        name: &'static str,
        table: &'static abi::Transport,
        raw: *mut c_void,
        capabilities: &abi::Capabilities,
    ) -> Result<Self, Error> {
        let provider = |call, problem| Error::Provider {
            provider: name,
            call,
            problem,
        };
        let capabilities =
            read_capabilities(capabilities).map_err(|problem| provider("open", problem))?;
        let os = |call| {
            move |error: rustix::io::Errno| Error::Os {
                call,
                cause: error.into(),
            }
        };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(os("epoll_create"))?;
        let mut interface = Self {
            name,
            table,
            raw,
            capabilities,
            epoll,
            wait_fd: -1,
            door: Box::default(),
            lending: Lending::default(),
            peers: Peers::default(),
            pieces: Vec::new(),
            lists: Vec::new(),
            operations: Slab::with_capacity(MAX_OPERATIONS),
            generation: 0,
            ended: VecDeque::new(),
            said: Said::new(),
            busy: 0,
            broken: None,
            orphans: Vec::new(),
        };
        // SAFETY: the interface is open.
        let fd = unsafe { function!(interface.wait_fd)(raw) };
        if fd < 0 {
            return Err(provider("wait_fd", format!("descriptor {fd}")));
        }
        interface.wait_fd = fd;
        // SAFETY: only the system is told of it, which answers if it is not open.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let data = epoll::EventData::new_u64(0);
        epoll::add(&interface.epoll, fd, data, epoll::EventFlags::IN).map_err(|error| {
            provider(
                "wait_fd",
                format!("a descriptor that cannot be waited for: {error}"),
            )
        })?;
        Ok(interface)
    }

    fn about(&self, call: &'static str) -> About<'static> {
        About {
            provider: self.name,
            call,
            ..About::default()
        }
    }

    fn error(&self, call: &'static str, problem: impl Into<String>) -> Error {
        Error::Provider {
            provider: self.name,
            call,
            problem: problem.into(),
        }
    }

    /// Nothing is asked of one that broke a rule.
    fn well(&self, call: &'static str) -> Result<(), Error> {
        match &self.broken {
            None => Ok(()),
            Some(problem) => Err(self.error(call, format!("it is used no more: {problem}"))),
        }
    }

    fn known(&self, call: &'static str, peer: PeerId) -> Result<(), Error> {
        self.well(call)?;
        if self.peers.has(peer) {
            Ok(())
        } else {
            Err(Error::NoSuchPeer { peer })
        }
    }

    /// A rule was broken.
    fn give_up(&mut self, call: &'static str, problem: String) -> Error {
        if self.broken.is_none() {
            let provider = self.name;
            warn!(
                provider,
                call,
                reason = problem,
                "a provider broke its contract"
            );
            for operation in self.operations.drain() {
                let Operating { peer, token, .. } = operation;
                let lost = Completion::new(peer, token, Err(Fault::PeerLost));
                self.ended.push_back(lost);
            }
            self.orphans = self.peers.drain();
            self.lending.leak();
            // It wakes nobody any more.
            // SAFETY: only the system is told of it, which answers if it is not open.
            let fd = unsafe { BorrowedFd::borrow_raw(self.wait_fd) };
            let _ = epoll::delete(&self.epoll, fd);
            self.broken = Some(problem.clone());
        }
        self.error(call, problem)
    }

    /// The outcome of posting, of calls that give one.
    fn posted(
        &mut self,
        about: &About<'_>,
        status: abi::Status,
        token: Option<Token>,
    ) -> Result<Posted, Error> {
        match (status, token) {
            (abi::OK, _) => Ok(Posted::Done),
            (abi::BUSY, _) => Ok(Posted::Busy),
            (abi::IN_FLIGHT, Some(token)) => Ok(Posted::InFlight(token)),
            (status, _) if status < 0 => Err(heard(status, &self.said, about)),
            (status, _) => Err(self.give_up(about.call, format!("status {status}"))),
        }
    }

    /// Posts an operation under a number of ours.
    fn operate(
        &mut self,
        about: &About<'_>,
        peer: PeerId,
        token: Token,
        call: impl FnOnce(&mut Self, u64) -> abi::Status,
    ) -> Result<Posted, Error> {
        if self.operations.len() + self.ended.len() >= MAX_OPERATIONS {
            self.busy += 1;
            return Ok(Posted::Busy);
        }
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let slot = self.operations.insert(Operating {
            generation,
            peer,
            token,
        });
        let status = call(self, u64::from(generation) << 32 | slot as u64);
        if status != abi::IN_FLIGHT {
            self.operations.try_remove(slot);
        }
        self.posted(about, status, Some(token))
    }

    /// Put or get.
    fn transfer(
        &mut self,
        is_put: bool,
        memory: &mut [Region],
        peer: PeerId,
        lists: [&[Pieces<'_>]; 2],
        token: Token,
    ) -> Result<Posted, Error> {
        let call = if is_put { "put" } else { "get" };
        self.known(call, peer)?;
        let [local, remote] = lists;
        let bytes = check(memory, local, remote)?;
        let limit = self.capabilities.max_operation;
        if bytes > limit {
            return Err(Error::TooLarge {
                what: "operation",
                bytes,
                limit,
            });
        }
        let about = About {
            peer: Some(peer),
            what: "operation",
            ..self.about(call)
        };
        let function = if is_put {
            function!(self.put)
        } else {
            function!(self.get)
        };
        self.operate(&about, peer, token, |one, token| {
            let regions = one.lending.lend(memory);
            one.lists.clear();
            one.lists.extend(local.iter().chain(remote).map(raw_pieces));
            let (local_count, remote_count) = (local.len(), remote.len());
            let local = one.lists.as_ptr();
            let remote = local.wrapping_add(local_count);
            let (peer, error) = (peer_number(peer), one.said.clean());
            // SAFETY: by the rules of the header. The regions are lent exclusively, so the other side may touch them
            // until it returns, and those of operations in flight by what the caller has promised; it keeps what it needs
            // longer.
            unsafe {
                function(
                    one.raw,
                    regions,
                    peer,
                    local,
                    local_count as u64,
                    remote,
                    remote_count as u64,
                    token,
                    error,
                )
            }
        })
    }

    /// A poll of one that is used no more: tells of its connections, and lets time pass.
    fn poll_broken(&mut self, timeout: Option<Duration>, handler: &mut dyn Handler) {
        let orphans = std::mem::take(&mut self.orphans);
        if orphans.is_empty() && self.ended.is_empty() {
            let nap = timeout.unwrap_or(NAP).min(NAP);
            if !nap.is_zero() {
                std::thread::sleep(nap);
            }
        }
        let problem = self.broken.clone().unwrap_or_default();
        for peer in orphans {
            handler.closed(peer, Closed::Provider(problem.clone()));
        }
    }
}

/// How long a poll sleeps for which nothing can happen any more.
const NAP: Duration = Duration::from_millis(100);

/// Whether local pieces lie in regions that are lent, and remote ones are as many bytes. Returns how many.
fn check(memory: &[Region], local: &[Pieces<'_>], remote: &[Pieces<'_>]) -> Result<u64, Error> {
    let refuse = |side| move |cause| Error::Pieces { side, cause };
    let mut totals = [0_u64; 2];
    for list in local {
        let region = memory.get(list.region as usize);
        let region = region.ok_or(Error::NotLent {
            region: list.region,
        })?;
        let bytes = list.check(region.len()).map_err(refuse("local"))?;
        totals[0] = totals[0].saturating_add(bytes);
    }
    for list in remote {
        let bytes = list.total().map_err(refuse("remote"))?;
        totals[1] = totals[1].saturating_add(bytes);
    }
    let [local_bytes, remote_bytes] = totals;
    if local_bytes != remote_bytes {
        return Err(Error::Unequal {
            local: local_bytes,
            remote: remote_bytes,
        });
    }
    Ok(local_bytes)
}

fn raw_pieces(list: &Pieces<'_>) -> abi::Pieces {
    abi::Pieces {
        region: list.region,
        bytes: list.bytes,
        count: list.count,
        reserved: 0,
        stride: list.stride,
        offsets: list.offsets.as_ptr(),
        offset_count: list.offsets.len() as u64,
    }
}

/// What it says that it can do. Operations and kinds that this build does not know cannot be asked for.
fn read_capabilities(raw: &abi::Capabilities) -> Result<Capabilities, String> {
    let mut reach = Vec::new();
    for (code, kinds) in raw.reach.iter().enumerate() {
        let Some(operation) = operation(code as u64) else {
            continue;
        };
        for kind in MemoryKind::ALL {
            let how = match kinds[usize::from(kind.code())] {
                0 => continue,
                1 => Reach::Staged,
                2 => Reach::Direct,
                other => {
                    return Err(format!(
                        "its reach for {operation} of {kind} memory is {other}, expected 0 to 2"
                    ));
                }
            };
            reach.push((operation, kind, how));
        }
    }
    let sends = reach
        .iter()
        .any(|(operation, ..)| *operation == Operation::Send);
    if !sends || raw.max_message == 0 || raw.max_operation == 0 || raw.lanes == 0 {
        return Err(format!(
            "it sends from {} memory, messages of {} bytes, operations of {} bytes, over {} lanes",
            if sends { "some" } else { "no" },
            raw.max_message,
            raw.max_operation,
            raw.lanes
        ));
    }
    Ok(Capabilities {
        reach,
        one_sided: raw.one_sided != 0,
        encrypted: raw.encrypted != 0,
        max_message: raw
            .max_message
            .min(moai_transport::limits::MAX_MESSAGE_BYTES),
        max_batch: raw.max_batch.min(moai_transport::limits::MAX_BATCH_BYTES),
        max_operation: raw
            .max_operation
            .min(moai_transport::limits::MAX_OPERATION_BYTES),
        lanes: raw.lanes,
    })
}

struct Filling<'a> {
    fill: &'a mut dyn FnMut(&mut [u8]),
    bytes: u32,
    times: u32,
    wrong: Option<u64>,
    panic: Option<Box<dyn std::any::Any + Send>>,
}

unsafe extern "C" fn fill(context: *mut c_void, room: *mut u8, bytes: u64) -> abi::Status {
    // SAFETY: as the header says the context is that of the fill, during the call that has it.
    let one = unsafe { &mut *context.cast::<Filling<'_>>() };
    if bytes != u64::from(one.bytes) || (room.is_null() && bytes > 0) || one.times > 0 {
        one.wrong = Some(bytes);
        return abi::E_FAILED;
    }
    one.times += 1;
    let room = if bytes == 0 {
        &mut []
    } else {
        // SAFETY: as the header says there is room for the batch, and it is ours during the call.
        unsafe { slice::from_raw_parts_mut(room, bytes as usize) }
    };
    let body = std::panic::AssertUnwindSafe(|| (one.fill)(room));
    match std::panic::catch_unwind(body) {
        Ok(()) => abi::OK,
        Err(panic) => {
            one.panic = Some(panic);
            abi::E_FAILED
        }
    }
}

impl Interface for PluginInterface {
    fn name(&self) -> &'static str {
        self.name
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn addresses(&self) -> Vec<Address> {
        if self.broken.is_some() {
            return Vec::new();
        }
        // SAFETY: by the rules of the header, with what it may write to.
        let answer = text::ask(|text| unsafe { function!(self.addresses)(self.raw, text) });
        let lines = match answer {
            Ok((abi::OK, lines)) => lines,
            Ok((status, _)) => {
                warn!(
                    provider = self.name,
                    status, "it does not say where it listens"
                );
                return Vec::new();
            }
            Err(reason) => {
                warn!(
                    provider = self.name,
                    reason, "it does not say where it listens"
                );
                return Vec::new();
            }
        };
        let addresses = lines
            .lines()
            .filter_map(|line| match line.parse::<Address>() {
                Ok(address) if address.provider() == self.name => Some(address),
                _ => {
                    warn!(
                        provider = self.name,
                        reason = line,
                        "it listens at what is no address of it"
                    );
                    None
                }
            });
        addresses.collect()
    }

    fn connect(&mut self, address: &Address) -> Result<PeerId, Error> {
        self.well("connect")?;
        if address.provider() != self.name {
            return Err(Error::Unreachable {
                provider: self.name,
                address: address.clone(),
                reason: format!("it is an address of provider {}", address.provider()),
            });
        }
        let text = text::c_string(&address.to_string());
        let mut number = 0;
        let error = self.said.clean();
        // SAFETY: by the rules of the header, with what it may write to.
        let status =
            unsafe { function!(self.connect)(self.raw, text.as_ptr(), &raw mut number, error) };
        if status != abi::OK {
            let about = About {
                address: Some(address),
                ..self.about("connect")
            };
            return Err(heard(status, &self.said, &about));
        }
        let peer = peer_id(number);
        match self.peers.insert(peer, false) {
            Ok(()) => Ok(peer),
            Err(problem) => Err(self.give_up("connect", format!("it gave {problem}"))),
        }
    }

    fn send(&mut self, peer: PeerId, message: &[u8]) -> Result<Posted, Error> {
        self.known("send", peer)?;
        let limit = self.capabilities.max_message;
        if message.len() > limit as usize {
            return Err(Error::TooLarge {
                what: "message",
                bytes: message.len() as u64,
                limit: limit.into(),
            });
        }
        let (number, bytes) = (peer_number(peer), message.len() as u64);
        let error = self.said.clean();
        // SAFETY: by the rules of the header: the message is copied.
        let status =
            unsafe { function!(self.send)(self.raw, number, message.as_ptr(), bytes, error) };
        let about = About {
            peer: Some(peer),
            what: "message",
            ..self.about("send")
        };
        self.posted(&about, status, None)
    }

    fn post(
        &mut self,
        peer: PeerId,
        batch: Batch,
        fill_it: &mut dyn FnMut(&mut [u8]),
    ) -> Result<Posted, Error> {
        self.known("post", peer)?;
        let limit = self.capabilities.max_batch;
        if batch.bytes > limit {
            return Err(Error::TooLarge {
                what: "batch",
                bytes: batch.bytes.into(),
                limit: limit.into(),
            });
        }
        let mut filling = Filling {
            fill: fill_it,
            bytes: batch.bytes,
            times: 0,
            wrong: None,
            panic: None,
        };
        let raw_batch = abi::Batch {
            id: batch.id,
            bytes: batch.bytes,
            reserved: 0,
        };
        let raw_fill = abi::Fill {
            context: (&raw mut filling).cast(),
            fill: Some(fill),
        };
        let (number, error) = (peer_number(peer), self.said.clean());
        // SAFETY: by the rules of the header; what it is given is there during the call.
        let status = unsafe {
            function!(self.post)(
                self.raw,
                number,
                &raw const raw_batch,
                &raw const raw_fill,
                error,
            )
        };
        if let Some(panic) = filling.panic {
            resume_unwind(panic);
        }
        let (times, wrong) = (filling.times, filling.wrong);
        if let Some(bytes) = wrong {
            let problem = format!(
                "room for {bytes} bytes, or a second time, for a batch of {}",
                batch.bytes
            );
            return Err(self.give_up("post", problem));
        }
        if times != u32::from(status == abi::OK) {
            let problem = format!("status {status}, and the batch was filled {times} times");
            return Err(self.give_up("post", problem));
        }
        let about = About {
            peer: Some(peer),
            what: "batch",
            ..self.about("post")
        };
        self.posted(&about, status, None)
    }

    fn register(
        &mut self,
        index: u32,
        region: &Region,
        rights: Rights,
    ) -> Result<RegistrationId, Error> {
        self.well("register")?;
        let held = Held::new(region);
        let memory = held.describe();
        let (rights, mut number) = (u32::from(rights.bits()), 0);
        let error = self.said.clean();
        // SAFETY: by the rules of the header: it retains the memory, which is held meanwhile.
        let status = unsafe {
            function!(self.register_memory)(
                self.raw,
                index,
                &raw const memory,
                rights,
                &raw mut number,
                error,
            )
        };
        if status != abi::OK {
            return Err(heard(status, &self.said, &self.about("register")));
        }
        let id = RegistrationId::new(number as u32, (number >> 32) as u32);
        if id.generation() == 0 {
            return Err(self.give_up("register", "a registration of generation 0".to_owned()));
        }
        Ok(id)
    }

    fn deregister(&mut self, id: RegistrationId) -> Result<(), Error> {
        self.well("deregister")?;
        let (number, error) = (registration_number(id), self.said.clean());
        // SAFETY: by the rules of the header.
        let status = unsafe { function!(self.deregister)(self.raw, number, error) };
        if status == abi::OK {
            return Ok(());
        }
        let about = About {
            registration: Some(id),
            ..self.about("deregister")
        };
        Err(heard(status, &self.said, &about))
    }

    fn remote_key(&self, peer: PeerId, id: RegistrationId) -> Result<[u8; KEY_BYTES], Error> {
        self.known("remote_key", peer)?;
        let mut key = [0; KEY_BYTES];
        let mut said = Said::new();
        let (number, registration) = (peer_number(peer), registration_number(id));
        // SAFETY: by the rules of the header, with what it may write to.
        let status = unsafe {
            function!(self.remote_key)(
                self.raw,
                number,
                registration,
                key.as_mut_ptr(),
                said.clean(),
            )
        };
        if status == abi::OK {
            return Ok(key);
        }
        let about = About {
            peer: Some(peer),
            registration: Some(id),
            ..self.about("remote_key")
        };
        Err(heard(status, &said, &about))
    }

    fn import(&mut self, peer: PeerId, key: &[u8]) -> Result<u32, Error> {
        self.known("import", peer)?;
        let (number, bytes, mut remote) = (peer_number(peer), key.len() as u64, 0);
        let error = self.said.clean();
        // SAFETY: by the rules of the header, with what it may write to.
        let status = unsafe {
            function!(self.import_key)(
                self.raw,
                number,
                key.as_ptr(),
                bytes,
                &raw mut remote,
                error,
            )
        };
        if status == abi::OK {
            return Ok(remote);
        }
        let about = About {
            peer: Some(peer),
            key: Some(key),
            ..self.about("import")
        };
        Err(heard(status, &self.said, &about))
    }

    fn put(
        &mut self,
        memory: &mut [Region],
        peer: PeerId,
        local: &[Pieces<'_>],
        remote: &[Pieces<'_>],
        token: Token,
    ) -> Result<Posted, Error> {
        self.transfer(true, memory, peer, [local, remote], token)
    }

    fn get(
        &mut self,
        memory: &mut [Region],
        peer: PeerId,
        local: &[Pieces<'_>],
        remote: &[Pieces<'_>],
        token: Token,
    ) -> Result<Posted, Error> {
        self.transfer(false, memory, peer, [local, remote], token)
    }

    fn map(&mut self, peer: PeerId, remote: u32) -> Result<Region, Error> {
        self.known("map", peer)?;
        let mut memory = std::mem::MaybeUninit::<abi::Memory>::zeroed();
        let (number, error) = (peer_number(peer), self.said.clean());
        // SAFETY: by the rules of the header, with what it may write to.
        let status =
            unsafe { function!(self.map)(self.raw, number, remote, memory.as_mut_ptr(), error) };
        if status != abi::OK {
            let about = About {
                peer: Some(peer),
                ..self.about("map")
            };
            return Err(heard(status, &self.said, &about));
        }
        // SAFETY: it was filled in just now, retained for us, for loading by the rules of the header.
        let region = unsafe { take(memory.as_ptr(), true) };
        match region {
            Ok(region) if region.hold().is_writable() => {
                let problem = "memory of a peer that may be written to".to_owned();
                Err(self.give_up("map", problem))
            }
            Ok(region) => Ok(region),
            Err(problem) => Err(self.give_up("map", problem)),
        }
    }

    fn flush(&mut self, peer: PeerId, token: Token) -> Result<Posted, Error> {
        self.known("flush", peer)?;
        let about = About {
            peer: Some(peer),
            ..self.about("flush")
        };
        self.operate(&about, peer, token, |one, token| {
            let (number, error) = (peer_number(peer), one.said.clean());
            // SAFETY: by the rules of the header.
            unsafe { function!(one.flush)(one.raw, number, token, error) }
        })
    }

    fn completion(&mut self) -> Option<Completion> {
        if let Some(ended) = self.ended.pop_front() {
            return Some(ended);
        }
        if self.broken.is_some() {
            return None;
        }
        let mut raw = abi::Completion::default();
        // SAFETY: by the rules of the header, with what it may write to.
        let status = unsafe { function!(self.completion)(self.raw, &raw mut raw) };
        match status {
            abi::NONE => return None,
            abi::OK => {}
            status => {
                self.give_up("completion", format!("status {status}"));
                return self.ended.pop_front();
            }
        }
        let slot = (raw.token & u64::from(u32::MAX)) as usize;
        let generation = (raw.token >> 32) as u32;
        let known = self.operations.get(slot).copied();
        let known = known.filter(|one| one.generation == generation);
        let problem = match (known, outcome(raw.outcome, raw.code)) {
            (None, _) => format!(
                "a completion for token {:#x}, which is not in flight",
                raw.token
            ),
            (Some(_), None) => format!("outcome {} with code {}", raw.outcome, raw.code),
            (Some(one), Some(_)) if one.peer != peer_id(raw.peer) => format!(
                "a completion of peer {} for an operation with peer {}",
                peer_id(raw.peer),
                one.peer
            ),
            (Some(one), Some(outcome)) => {
                self.operations.remove(slot);
                return Some(Completion::new(one.peer, one.token, outcome));
            }
        };
        self.give_up("completion", problem);
        self.ended.pop_front()
    }

    fn poll(&mut self, timeout: Option<Duration>, handler: &mut dyn Handler) -> Result<(), Error> {
        if self.broken.is_some() {
            self.poll_broken(timeout, handler);
            return Ok(());
        }
        let timeout_ns = timeout.map_or(-1, |timeout| {
            i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX)
        });
        let mut calls = Calls {
            handler,
            lending: &mut self.lending,
            peers: &mut self.peers,
            pieces: &mut self.pieces,
            breach: None,
            panic: None,
        };
        let (poll, raw, error) = (function!(self.poll), self.raw, self.said.clean());
        let status = self.door.open(&mut calls, |handler| {
            // SAFETY: by the rules of the header. What the handler lends is lent until this returns.
            unsafe { poll(raw, timeout_ns, handler, error) }
        });
        let Calls { breach, panic, .. } = calls;
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        let strayed = || {
            let problem = "it calls its handler after a poll, or from another thread";
            self.door.strayed().then(|| problem.to_owned())
        };
        if let Some(problem) = breach.or_else(strayed) {
            self.give_up("poll", problem);
            self.poll_broken(Some(Duration::ZERO), handler);
            return Ok(());
        }
        if status == abi::OK {
            return Ok(());
        }
        Err(heard(status, &self.said, &self.about("poll")))
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn arm(&mut self) -> Option<Duration> {
        if !self.orphans.is_empty() || !self.ended.is_empty() {
            return Some(Duration::ZERO);
        }
        if self.broken.is_some() {
            return None;
        }
        // SAFETY: by the rules of the header.
        let limit_ns = unsafe { function!(self.arm)(self.raw) };
        u64::try_from(limit_ns).ok().map(Duration::from_nanos)
    }

    fn close(&mut self, peer: PeerId) {
        self.orphans.retain(|orphan| *orphan != peer);
        if self.peers.remove(peer) {
            // SAFETY: by the rules of the header.
            unsafe { function!(self.close)(self.raw, peer_number(peer)) };
        }
    }

    fn finish(&mut self, peer: PeerId) {
        if self.known("finish", peer).is_ok() {
            // SAFETY: by the rules of the header.
            unsafe { function!(self.finish)(self.raw, peer_number(peer)) };
        }
    }

    fn path(&self, peer: PeerId) -> Option<Path> {
        self.known("path", peer).ok()?;
        let mut rooms = [[0_u8; 1024]; 3];
        let [local, remote, why] = &mut rooms;
        let text = |room: &mut [u8; 1024]| abi::Text {
            data: room.as_mut_ptr().cast(),
            capacity: 1024,
            length: 0,
        };
        let mut raw = abi::Path {
            size: size_of::<abi::Path>() as u32,
            is_fallback: 0,
            local: text(local),
            peer: text(remote),
            why: text(why),
        };
        // SAFETY: by the rules of the header, with what it may write to.
        let status = unsafe { function!(self.path)(self.raw, peer_number(peer), &raw mut raw) };
        if status != abi::OK {
            return None;
        }
        let read = |room: &[u8; 1024], length: u64| {
            String::from_utf8_lossy(&room[..length.min(1024) as usize]).into_owned()
        };
        let peer = read(&rooms[1], raw.peer.length).parse().ok()?;
        Some(Path {
            provider: self.name,
            local: read(&rooms[0], raw.local.length).parse().ok(),
            peer,
            why: read(&rooms[2], raw.why.length),
            is_fallback: raw.is_fallback != 0,
        })
    }

    fn identity(&self, peer: PeerId) -> Option<Identity> {
        self.known("identity", peer).ok()?;
        let mut kind = abi::IDENTITY_NONE;
        let number = peer_number(peer);
        // SAFETY: by the rules of the header, with what it may write to.
        let answer = text::ask(|names| unsafe {
            function!(self.identity)(self.raw, number, &raw mut kind, names)
        });
        let (status, names) = answer.ok()?;
        match (status, kind) {
            (abi::OK, abi::IDENTITY_SHARED_KEY) => Some(Identity::SharedKey),
            (abi::OK, abi::IDENTITY_CERTIFIED) => {
                // Each says what it is; a bare word would be taken for a host.
                let name = |line: &str| {
                    let says = line.starts_with("spiffe://") || line.starts_with("dns:");
                    says.then(|| line.parse().ok()).flatten()
                };
                let names: Option<Vec<Name>> = names.lines().map(name).collect();
                names
                    .filter(|names| !names.is_empty())
                    .map(Identity::Certified)
            }
            _ => None,
        }
    }

    fn stats(&self) -> Stats {
        let mut stats = abi::Stats {
            size: size_of::<abi::Stats>() as u32,
            ..abi::Stats::default()
        };
        if self.broken.is_none() {
            // SAFETY: by the rules of the header, with what it may write to.
            unsafe { function!(self.stats)(self.raw, &raw mut stats) };
        }
        let mut stats = stats.read();
        stats.busy = stats.busy.saturating_add(self.busy);
        stats
    }
}

fn registration_number(id: RegistrationId) -> u64 {
    u64::from(id.generation()) << 32 | u64::from(id.slot())
}

impl Drop for PluginInterface {
    fn drop(&mut self) {
        // One that broke a rule may do anything when it is called; what it has is kept.
        if self.broken.is_none() {
            // SAFETY: it is ours, and used for the last time.
            unsafe { function!(self.destroy)(self.raw) };
        } else {
            // Its stray calls would still come in there.
            let door = std::mem::take(&mut self.door);
            let _ = Box::into_raw(door);
        }
        self.raw = ptr::null_mut();
    }
}

impl fmt::Debug for PluginInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PluginInterface")
            .field("name", &self.name)
            .field("broken", &self.broken)
            .field("in_flight", &self.operations.len())
            .finish_non_exhaustive()
    }
}
