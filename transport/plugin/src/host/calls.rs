//! What an interface of the other side tells of its peers, and what it may.

use std::any::Any;
use std::collections::HashMap;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::Relaxed};

use moai_transport::limits::{MAX_BATCH_BYTES, MAX_MESSAGE_BYTES, MAX_PEERS};
use moai_transport::{Batch, Handler, Landing, PeerId, Piece, Reject};

use super::lending::Lending;
use crate::text::{self, MAX_TEXT_BYTES};
use crate::{abi, errors};

/// Peers that the other side has told of.
#[derive(Debug, Default)]
pub(super) struct Peers(HashMap<PeerId, Peer>);

#[derive(Clone, Copy, Debug, Default)]
struct Peer {
    is_connected: bool,
    /// The handler has refused a frame of it, and waits for its end.
    is_rejected: bool,
    /// The batch whose payload is on its way, and whether it goes to pieces.
    landing: Option<(Batch, bool)>,
}

/// Indices of peers are smaller than that, so that those above can tell interfaces apart.
const MAX_INDEX: u32 = 1 << 29;

pub(super) fn peer_id(number: abi::Peer) -> PeerId {
    PeerId::new(number as u32, (number >> 32) as u32)
}

pub(super) fn peer_number(peer: PeerId) -> abi::Peer {
    u64::from(peer.generation()) << 32 | u64::from(peer.index())
}

impl Peers {
    pub(super) fn has(&self, peer: PeerId) -> bool {
        self.0.contains_key(&peer)
    }

    /// A connection is made, or was.
    pub(super) fn insert(&mut self, peer: PeerId, is_connected: bool) -> Result<(), String> {
        if peer.index() >= MAX_INDEX {
            return Err(format!("peer {peer}, whose index is not below 2^29"));
        }
        if self.0.len() >= MAX_PEERS && !self.has(peer) {
            return Err(format!("more than {MAX_PEERS} peers"));
        }
        let one = Peer {
            is_connected,
            ..Peer::default()
        };
        match self.0.insert(peer, one) {
            None => Ok(()),
            Some(_) => Err(format!("peer {peer}, which is there already")),
        }
    }

    pub(super) fn remove(&mut self, peer: PeerId) -> bool {
        self.0.remove(&peer).is_some()
    }

    /// All of them, which are there no more.
    pub(super) fn drain(&mut self) -> Vec<PeerId> {
        self.0.drain().map(|(peer, _)| peer).collect()
    }
}

/// Where calls come in. It is there as long as the interface, and open during a poll, on the thread that polls.
#[derive(Debug, Default)]
pub(super) struct Door {
    inside: AtomicPtr<c_void>,
    thread: AtomicUsize,
    /// Somebody called at another time, or from another thread.
    strayed: AtomicBool,
}

/// During one poll.
pub(super) struct Calls<'a> {
    pub(super) handler: &'a mut dyn Handler,
    pub(super) lending: &'a mut Lending,
    pub(super) peers: &'a mut Peers,
    pub(super) pieces: &'a mut Vec<Piece>,
    /// A rule that was broken, after which nothing is taken any more.
    pub(super) breach: Option<String>,
    /// What the handler panicked with.
    pub(super) panic: Option<Box<dyn Any + Send>>,
}

impl Door {
    /// Lets calls in while `body` runs.
    pub(super) fn open<R>(
        &self,
        calls: &mut Calls<'_>,
        body: impl FnOnce(*const abi::Handler) -> R,
    ) -> R {
        self.thread.store(here(), Relaxed);
        self.inside.store(ptr::from_mut(calls).cast(), Relaxed);
        let raw = abi::Handler {
            size: size_of::<abi::Handler>() as u32,
            reserved: 0,
            context: ptr::from_ref(self).cast_mut().cast(),
            connected: Some(connected),
            message: Some(message),
            landing: Some(landing),
            pieces: Some(pieces),
            regions: Some(regions),
            landed: Some(landed),
            writable: Some(writable),
            closed: Some(closed),
        };
        let result = body(&raw const raw);
        self.inside.store(ptr::null_mut(), Relaxed);
        result
    }

    pub(super) fn strayed(&self) -> bool {
        self.strayed.load(Relaxed)
    }
}

/// A number that this thread has and no other that runs.
fn here() -> usize {
    thread_local! {
        static HERE: u8 = const { 0 };
    }
    HERE.with(|here| ptr::from_ref(here).addr())
}

/// Runs `body` if a call may come now; what is refused answers `otherwise`.
///
/// # Safety
///
/// `context` is that of a handler whose interface is there.
unsafe fn enter<R>(context: *mut c_void, otherwise: R, body: impl FnOnce(&mut Calls<'_>) -> R) -> R
where
    R: Copy,
{
    // SAFETY: by contract.
    let door = unsafe { &*context.cast_const().cast::<Door>() };
    if door.thread.load(Relaxed) != here() {
        door.strayed.store(true, Relaxed);
        return otherwise;
    }
    // Shut meanwhile: a handler calls nobody.
    let inside = door.inside.swap(ptr::null_mut(), Relaxed);
    if inside.is_null() {
        door.strayed.store(true, Relaxed);
        return otherwise;
    }
    // SAFETY: it is there until the poll ends, on this thread, and was taken out of the door, so this is the only one.
    let calls = unsafe { &mut *inside.cast::<Calls<'_>>() };
    let result = if calls.breach.is_some() || calls.panic.is_some() {
        otherwise
    } else {
        catch_unwind(AssertUnwindSafe(|| body(calls))).unwrap_or_else(|panic| {
            calls.panic = Some(panic);
            otherwise
        })
    };
    door.inside.store(inside, Relaxed);
    result
}

impl Calls<'_> {
    fn broke(&mut self, problem: String) -> abi::Status {
        self.breach.get_or_insert(problem);
        abi::E_REJECTED
    }

    /// The peer, if a frame of it may come now.
    fn there(&mut self, number: abi::Peer, what: &str) -> Option<PeerId> {
        let peer = peer_id(number);
        match self.peers.0.get(&peer) {
            Some(one) if one.is_connected && !one.is_rejected => Some(peer),
            Some(one) if one.is_rejected => None,
            _ => {
                self.broke(format!("{what} of peer {peer}, which is not connected"));
                None
            }
        }
    }

    fn landing_of(&self, peer: PeerId) -> Option<(Batch, bool)> {
        self.peers.0.get(&peer)?.landing
    }

    /// The handler's answer, as a status.
    ///
    /// # Safety
    ///
    /// As for [`text::write`].
    unsafe fn answer(
        &mut self,
        peer: PeerId,
        answer: Result<(), Reject>,
        reason: *mut abi::Text,
    ) -> abi::Status {
        match answer {
            Ok(()) => abi::OK,
            Err(Reject(text)) => {
                if let Some(one) = self.peers.0.get_mut(&peer) {
                    one.is_rejected = true;
                }
                // SAFETY: by contract.
                unsafe { text::write(reason, &text) };
                abi::E_REJECTED
            }
        }
    }

    /// The header of a batch.
    ///
    /// # Safety
    ///
    /// NULL or a batch.
    unsafe fn batch(&mut self, batch: *const abi::Batch) -> Option<Batch> {
        // SAFETY: by contract.
        let Some(batch) = (unsafe { batch.as_ref() }) else {
            self.broke("NULL instead of a batch".to_owned());
            return None;
        };
        if batch.bytes > MAX_BATCH_BYTES {
            self.broke(format!(
                "a batch of {} bytes, more than {MAX_BATCH_BYTES}",
                batch.bytes
            ));
            return None;
        }
        Some(Batch {
            id: batch.id,
            bytes: batch.bytes,
        })
    }
}

unsafe extern "C" fn connected(context: *mut c_void, number: abi::Peer, incoming: u32) {
    let body = |calls: &mut Calls<'_>| {
        let peer = peer_id(number);
        let incoming = incoming != 0;
        if incoming {
            if let Err(problem) = calls.peers.insert(peer, true) {
                calls.broke(format!("it tells of {problem}"));
                return;
            }
        } else {
            match calls.peers.0.get_mut(&peer) {
                Some(one) if !one.is_connected => one.is_connected = true,
                _ => {
                    calls.broke(format!(
                        "it connects to peer {peer}, which nobody has asked for"
                    ));
                    return;
                }
            }
        }
        calls.handler.connected(peer, incoming);
    };
    // SAFETY: as the header says the context is the handler's.
    unsafe { enter(context, (), body) }
}

unsafe extern "C" fn message(
    context: *mut c_void,
    number: abi::Peer,
    data: *const u8,
    bytes: u64,
    reason: *mut abi::Text,
) -> abi::Status {
    let body = |calls: &mut Calls<'_>| {
        let Some(peer) = calls.there(number, "a message") else {
            return abi::E_REJECTED;
        };
        if bytes > u64::from(MAX_MESSAGE_BYTES) || (data.is_null() && bytes > 0) {
            return calls.broke(format!("a message of {bytes} bytes at {data:?}"));
        }
        let data = if bytes == 0 {
            &[]
        } else {
            // SAFETY: as the header says it is there during the call.
            unsafe { slice::from_raw_parts(data, bytes as usize) }
        };
        let answer = calls.handler.message(peer, data);
        // SAFETY: as the header says it may be written to, or is NULL.
        unsafe { calls.answer(peer, answer, reason) }
    };
    // SAFETY: as the header says the context is the handler's.
    unsafe { enter(context, abi::E_REJECTED, body) }
}

unsafe extern "C" fn landing(
    context: *mut c_void,
    number: abi::Peer,
    batch: *const abi::Batch,
    direct: *mut u32,
    reason: *mut abi::Text,
) -> abi::Status {
    let body = |calls: &mut Calls<'_>| {
        // SAFETY: as the header says.
        let batch = unsafe { calls.batch(batch) };
        let (Some(batch), Some(peer)) = (batch, calls.there(number, "a batch")) else {
            return abi::E_REJECTED;
        };
        // SAFETY: as the header says it may be written to.
        let Some(direct) = (unsafe { direct.as_mut() }) else {
            return calls.broke("NULL instead of a place for the landing".to_owned());
        };
        if calls.landing_of(peer).is_some() {
            return calls.broke(format!("a batch of peer {peer} within a batch"));
        }
        let answer = calls.handler.landing(peer, batch).map(|landing| {
            let is_direct = landing == Landing::Direct;
            *direct = u32::from(is_direct);
            if let Some(one) = calls.peers.0.get_mut(&peer) {
                one.landing = Some((batch, is_direct));
            }
        });
        // SAFETY: as the header says it may be written to, or is NULL.
        unsafe { calls.answer(peer, answer, reason) }
    };
    // SAFETY: as the header says the context is the handler's.
    unsafe { enter(context, abi::E_REJECTED, body) }
}

unsafe extern "C" fn pieces(
    context: *mut c_void,
    number: abi::Peer,
    batch: *const abi::Batch,
    from: u32,
    out: *mut abi::Piece,
    most: u64,
    count: *mut u64,
    reason: *mut abi::Text,
) -> abi::Status {
    let body = |calls: &mut Calls<'_>| {
        // SAFETY: as the header says.
        let batch = unsafe { calls.batch(batch) };
        let (Some(batch), Some(peer)) = (batch, calls.there(number, "pieces")) else {
            return abi::E_REJECTED;
        };
        // SAFETY: as the header says it may be written to.
        let Some(count) = (unsafe { count.as_mut() }) else {
            return calls.broke("NULL instead of a place for a count".to_owned());
        };
        if out.is_null() || most == 0 || from >= batch.bytes {
            return calls.broke(format!(
                "{most} pieces at {out:?} from byte {from} of {}",
                batch.bytes
            ));
        }
        if calls.landing_of(peer) != Some((batch, true)) {
            return calls.broke(format!("pieces for a batch of peer {peer} that has none"));
        }
        calls.pieces.clear();
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let answer = calls.handler.pieces(peer, batch, from, most, calls.pieces);
        *count = calls.pieces.len() as u64;
        for (at, piece) in calls.pieces.iter().take(most).enumerate() {
            let piece = abi::Piece {
                region: piece.region,
                bytes: piece.bytes,
                offset: piece.offset,
            };
            // SAFETY: as the header says there is room for `most`.
            unsafe { out.wrapping_add(at).write(piece) };
        }
        // SAFETY: as the header says it may be written to, or is NULL.
        unsafe { calls.answer(peer, answer, reason) }
    };
    // SAFETY: as the header says the context is the handler's.
    unsafe { enter(context, abi::E_REJECTED, body) }
}

unsafe extern "C" fn regions(context: *mut c_void) -> *const abi::Regions {
    let body = |calls: &mut Calls<'_>| {
        let Calls {
            handler, lending, ..
        } = calls;
        lending.lend(handler.regions())
    };
    // SAFETY: as the header says the context is the handler's.
    unsafe { enter(context, ptr::null(), body) }
}

unsafe extern "C" fn landed(
    context: *mut c_void,
    number: abi::Peer,
    batch: *const abi::Batch,
    staged: *const u8,
    reason: *mut abi::Text,
) -> abi::Status {
    let body = |calls: &mut Calls<'_>| {
        // SAFETY: as the header says.
        let batch = unsafe { calls.batch(batch) };
        let (Some(batch), Some(peer)) = (batch, calls.there(number, "a batch")) else {
            return abi::E_REJECTED;
        };
        if calls.landing_of(peer) != Some((batch, staged.is_null())) {
            return calls.broke(format!(
                "a batch of peer {peer} that landed otherwise than it was to"
            ));
        }
        if let Some(one) = calls.peers.0.get_mut(&peer) {
            one.landing = None;
        }
        let staged = (!staged.is_null()).then(|| {
            // SAFETY: as the header says the whole payload is there.
            unsafe { slice::from_raw_parts(staged, batch.bytes as usize) }
        });
        let answer = calls.handler.landed(peer, batch, staged);
        // SAFETY: as the header says it may be written to, or is NULL.
        unsafe { calls.answer(peer, answer, reason) }
    };
    // SAFETY: as the header says the context is the handler's.
    unsafe { enter(context, abi::E_REJECTED, body) }
}

unsafe extern "C" fn writable(context: *mut c_void, number: abi::Peer) {
    let body = |calls: &mut Calls<'_>| {
        if let Some(peer) = calls.there(number, "room for frames") {
            calls.handler.writable(peer);
        }
    };
    // SAFETY: as the header says the context is the handler's.
    unsafe { enter(context, (), body) }
}

unsafe extern "C" fn closed(context: *mut c_void, number: abi::Peer, why: *const abi::Closed) {
    let body = |calls: &mut Calls<'_>| {
        let peer = peer_id(number);
        // SAFETY: as the header says it is a reason, or NULL by mistake.
        let Some(why) = (unsafe { why.as_ref() }) else {
            calls.broke("NULL instead of a reason".to_owned());
            return;
        };
        if !calls.peers.remove(peer) {
            calls.broke(format!("it closes peer {peer}, which is not there"));
            return;
        }
        // SAFETY: as the header says NULL or a text, there during the call.
        let text = unsafe { text::borrowed(why.text) };
        let text = text.map(|text| text.to_string_lossy());
        let text = text.as_deref().unwrap_or_default();
        let end = text.len().min(MAX_TEXT_BYTES);
        let text = text.get(..end).unwrap_or("a text that is too long");
        calls
            .handler
            .closed(peer, errors::closed(why.reason, why.detail, text));
    };
    // SAFETY: as the header says the context is the handler's.
    unsafe { enter(context, (), body) }
}
