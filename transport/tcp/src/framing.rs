//! Putting operations into frames.

use moai_memory::Region;
use moai_transport::wire::{Access, HEADER_BYTES, Header, ListWriter};
use moai_transport::{Batch, Cursor, Fault, Lists, PieceList, Refusal, RemoteKey, Run};

use crate::chunk::{Chunk, Whose};
use crate::limits::DIRECT_PIECE_BYTES;
use crate::one_sided::OneSided;
use crate::operations::{Ground, Kind, Operation, skip};
use crate::vectored::prefetch;

/// A get of a peer that was admitted and waits to be answered.
#[derive(Debug)]
pub(crate) struct WaitingGet {
    pub(crate) id: u64,
    pub(crate) bytes: u32,
    pub(crate) list: PieceList,
    /// The device whose memory is read.
    pub(crate) device: Option<u64>,
}

/// The beginning of a frame of an operation.
pub(crate) struct Head {
    /// Where room was left for its header.
    pub(crate) start: usize,
    pub(crate) access: Access,
}

/// Begins the next frame of an operation: leaves room for its header, and adds its list.
///
/// # Errors
///
/// A [`Fault`] if the memory that was lent for it is not there; nothing was added.
pub(crate) fn add_head(
    one_sided: &mut OneSided,
    side: usize,
    index: u32,
    memory: &[Region],
    chunk: &mut Chunk,
) -> Result<Head, Fault> {
    let id = one_sided.operations.name(index);
    let keys = &one_sided.sides[side].keys;
    let operation = one_sided.operations.get(index);
    if !operation.is_lent(memory) {
        return Err(Fault::Access { code: libc::EFAULT });
    }
    let start = chunk.bytes.len();
    chunk.bytes.extend_from_slice(&[0; HEADER_BYTES]);
    let most = operation.next_frame();
    let (bytes, epoch) = add_list(operation, keys, most, &mut chunk.bytes);
    let list_bytes = (chunk.bytes.len() - start - HEADER_BYTES) as u32;
    operation.framed += u64::from(bytes);
    operation.unanswered += 1;
    let access = Access {
        id,
        bytes,
        list_bytes,
        epoch,
    };
    Ok(Head { start, access })
}

/// Adds the next frame of an operation to `chunk`; of a put, one whose pieces the host can load from.
///
/// # Errors
///
/// As [`add_head`].
pub(crate) fn add_frame(
    one_sided: &mut OneSided,
    side: usize,
    index: u32,
    memory: &[Region],
    chunk: &mut Chunk,
) -> Result<(), Fault> {
    let Head { start, mut access } = add_head(one_sided, side, index, memory, chunk)?;
    let bytes = access.bytes;
    let operation = one_sided.operations.get(index);
    let header = if operation.kind == Kind::Put {
        let whole = |region| Ok(ground_of(memory, region));
        let (local, at) = (&operation.local, &mut operation.local_at);
        // The memory is there: that was just checked.
        let _ = gather(
            local,
            at,
            bytes,
            memory,
            whole,
            |_| Whose::Ours(index),
            chunk,
        );
        Header::Put(access)
    } else {
        let at = operation.local_at;
        skip(&mut operation.local_at, &operation.local, bytes);
        access.id = one_sided.operations.ask(index, bytes, at);
        one_sided.sides[side].asked += 1;
        Header::Get(access)
    };
    chunk.write_head(start, header);
    Ok(())
}

/// Adds the list of remote pieces of the next frame. Returns their bytes and the epoch of their keys.
fn add_list(
    operation: &mut Operation,
    keys: &[RemoteKey],
    most: u32,
    out: &mut Vec<u8>,
) -> (u32, u64) {
    let mut list = ListWriter::new(out);
    let (mut bytes, mut epoch) = (0, 0);
    let mut first = None;
    while bytes < most && list.has_room() {
        let before = operation.remote_at;
        let Some(mut run) = operation.remote_at.next(&operation.remote, most - bytes) else {
            break;
        };
        let key = &keys[run.region as usize];
        // A frame does not leave a memory of a device, and which device's another one is, only the peer knows.
        if operation.is_staged {
            let is_loaded = |region: u32| keys[region as usize].kind.is_host_accessible();
            let first = *first.get_or_insert(run.region);
            if first != run.region && !(is_loaded(first) && is_loaded(run.region)) {
                operation.remote_at = before;
                break;
            }
        }
        epoch = key.epoch;
        bytes += run.bytes;
        run.region = key.slot;
        list.push(run, key.generation);
    }
    list.finish();
    (bytes, epoch)
}

/// Adds the answer to a peer's get to `chunk`.
///
/// # Errors
///
/// The [`Refusal`] to answer with if the memory is gone; nothing was added.
pub(crate) fn add_answer(
    one_sided: &OneSided,
    get: &WaitingGet,
    memory: &[Region],
    chunk: &mut Chunk,
) -> Result<(), Refusal> {
    one_sided.check_lent(&get.list, memory)?;
    let (id, bytes) = (get.id, get.bytes);
    let header = Header::Data(Batch { id, bytes }).encode();
    chunk.bytes.extend_from_slice(&header);
    let mut at = Cursor::default();
    let find = |slot| one_sided.registered(slot);
    gather(
        &get.list,
        &mut at,
        bytes,
        memory,
        find,
        Whose::Registered,
        chunk,
    )
}

fn ground_of(memory: &[Region], region: u32) -> Ground {
    let bytes = memory[region as usize].as_slice();
    Ground {
        region,
        address: bytes.as_ptr().addr(),
        len: bytes.len() as u64,
    }
}

/// Pieces whose lines are asked for before the first of them is copied.
const AHEAD: usize = 16;

/// Adds the next `bytes` of `lists` to `chunk`: short pieces are copied, long ones lent.
fn gather(
    lists: &impl Lists,
    at: &mut Cursor,
    mut bytes: u32,
    memory: &[Region],
    find: impl Fn(u32) -> Result<Ground, Refusal>,
    whose: impl Fn(u32) -> Whose,
    chunk: &mut Chunk,
) -> Result<(), Refusal> {
    // What pieces name, and where that is: nearly always the same as before.
    let mut known: Option<(u32, Ground)> = None;
    let mut short: [&[u8]; AHEAD] = [&[]; AHEAD];
    while bytes > 0 {
        let mut count = 0;
        let mut long = None;
        while count < AHEAD && bytes > 0 && long.is_none() {
            let Some(Run {
                region,
                offset,
                bytes: len,
            }) = at.next(lists, bytes)
            else {
                bytes = 0;
                break;
            };
            let ground = match known {
                Some((of, ground)) if of == region => ground,
                _ => find(region)?,
            };
            known = Some((region, ground));
            bytes -= len;
            let run = Run {
                region: ground.region,
                offset,
                bytes: len,
            };
            if len >= DIRECT_PIECE_BYTES {
                long = Some((run, ground, whose(region)));
            } else {
                let place = memory[run.region as usize].as_slice();
                let piece = &place[offset as usize..][..len as usize];
                prefetch(piece);
                short[count] = piece;
                count += 1;
            }
        }
        for piece in &short[..count] {
            chunk.bytes.extend_from_slice(piece);
        }
        if let Some((run, ground, whose)) = long {
            chunk.lend(run, ground, whose);
        }
    }
    Ok(())
}
