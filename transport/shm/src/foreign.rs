//! Memory of a peer that is not shared, reached by `process_vm_readv` and `process_vm_writev`.
//!
//! # Who touches what
//!
//! The system checks the peer's side: an address that is not mapped there is an error, never a fault here. On this side
//! the callers of [`Foreign::read`] and [`Foreign::write`] promise that the local addresses are theirs for the call.
//!
//! # That it is still the same process
//!
//! A process number is used again some time after its process has died. Every process keeps the epoch it drew at random
//! in its memory, and says where (its *cookie*). Before every batch the cookie is read in the same way as memory is
//! written, and must be the epoch; and the socket must not have ended. Between that and the batch's own call a number
//! would have to be used again and go round once, in less than a microsecond.
#![allow(unsafe_code)] // The system is handed addresses.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use moai_transport::Fault;

/// Memory of one process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    pid: libc::pid_t,
    /// Where its epoch lies.
    cookie: u64,
    epoch: u64,
}

/// Pieces on both sides of one call. Kept, so that it allocates once.
#[derive(Debug)]
pub(crate) struct Foreign {
    local: Vec<Slice>,
    remote: Vec<Slice>,
}

/// A `struct iovec` without its pointer, which may be another process's.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Slice {
    address: usize,
    bytes: usize,
}

const _: () = {
    assert!(size_of::<Slice>() == size_of::<libc::iovec>());
    assert!(align_of::<Slice>() == align_of::<libc::iovec>());
    assert!(std::mem::offset_of!(Slice, bytes) == std::mem::offset_of!(libc::iovec, iov_len));
};

/// Slices of one call on each side, the most that the system takes (`IOV_MAX`).
pub(crate) const MAX_SLICES: usize = 1024;

/// Bytes of one call, so that nobody who waits for it to end waits long: at 8 GB/s, 2 ms.
pub(crate) const MAX_BYTES: u64 = 16 << 20;

impl Process {
    /// The process at the other end of a socket, if its memory can be reached; otherwise why not.
    pub(crate) fn find(socket: impl AsFd, cookie: u64, epoch: u64) -> Result<Self, String> {
        let pid =
            peer_of(socket).map_err(|error| format!("the peer's process is not known: {error}"))?;
        if pid <= 0 {
            return Err(
                "the peer's process is in a namespace that cannot be seen from here".to_owned(),
            );
        }
        let process = Self { pid, cookie, epoch };
        match process.verify() {
            Ok(()) => Ok(process),
            Err(Fault::PeerLost) => Err(format!(
                "process {pid} is not the peer: it is in another namespace of processes"
            )),
            Err(Fault::Access { code }) => {
                let error = io::Error::from_raw_os_error(code);
                let way_out = match code {
                    libc::EPERM => {
                        "; it takes the same user, and CAP_SYS_PTRACE or kernel.yama.ptrace_scope 0 or the peer's \
                         permission (permit_peers), and a container that does not forbid the call"
                    }
                    libc::ENOSYS => "; a filter of system calls may forbid it",
                    _ => "",
                };
                Err(format!(
                    "process_vm_readv of process {pid}: {error}{way_out}"
                ))
            }
            Err(fault) => Err(fault.to_string()),
        }
    }

    /// Whether it is still there, and no other has its number.
    pub(crate) fn verify(&self) -> Result<(), Fault> {
        let mut seen = [0_u8; 8];
        let local = [Slice {
            address: seen.as_mut_ptr().expose_provenance(),
            bytes: seen.len(),
        }];
        let remote = [Slice {
            address: self.cookie as usize,
            bytes: seen.len(),
        }];
        // SAFETY: `seen` is written to, which nobody else uses.
        let moved = unsafe { call(Direction::Read, self.pid, &local, &remote) }.map_err(fault)?;
        if moved != seen.len() || u64::from_ne_bytes(seen) != self.epoch {
            return Err(Fault::PeerLost);
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

impl Foreign {
    pub(crate) fn new() -> Self {
        Self {
            local: Vec::with_capacity(MAX_SLICES),
            remote: Vec::with_capacity(MAX_SLICES),
        }
    }

    /// Forgets what was gathered.
    pub(crate) fn clear(&mut self) {
        self.local.clear();
        self.remote.clear();
    }

    /// Whether another piece might not fit.
    pub(crate) fn is_full(&self) -> bool {
        self.local.len() == MAX_SLICES || self.remote.len() == MAX_SLICES
    }

    /// Appends a piece. What continues the one before is merged, on either side by itself.
    #[inline]
    pub(crate) fn push(&mut self, local: *const u8, remote: u64, bytes: u32) {
        append(&mut self.local, local.expose_provenance(), bytes as usize);
        append(&mut self.remote, remote as usize, bytes as usize);
    }

    /// Copies what was gathered, and forgets it.
    ///
    /// # Safety
    ///
    /// The local pieces are readable memory for `Write`, and for `Read` writable memory that the caller has to itself.
    pub(crate) unsafe fn transfer(
        &mut self,
        direction: Direction,
        process: Process,
    ) -> Result<(), Fault> {
        let (mut local, mut remote) = (&mut self.local[..], &mut self.remote[..]);
        let mut outcome = process.verify();
        while outcome.is_ok() && !remote.is_empty() {
            // SAFETY: the caller's promise.
            match unsafe { call(direction, process.pid, local, remote) } {
                // It stops where the peer's memory ends, and says why when called again.
                Ok(moved) if moved > 0 => {
                    local = advance(local, moved);
                    remote = advance(remote, moved);
                }
                Ok(_) => outcome = Err(Fault::Access { code: libc::EFAULT }),
                Err(error) => outcome = Err(fault(error)),
            }
        }
        self.clear();
        outcome
    }
}

#[inline]
fn append(slices: &mut Vec<Slice>, address: usize, bytes: usize) {
    match slices.last_mut() {
        Some(last) if last.address + last.bytes == address => last.bytes += bytes,
        _ => slices.push(Slice { address, bytes }),
    }
}

/// What is left after `moved` bytes.
fn advance(mut slices: &mut [Slice], mut moved: usize) -> &mut [Slice] {
    while let Some(first) = slices.first_mut() {
        if moved < first.bytes {
            first.address += moved;
            first.bytes -= moved;
            break;
        }
        moved -= first.bytes;
        slices = &mut slices[1..];
    }
    slices
}

fn fault(error: io::Error) -> Fault {
    match error.raw_os_error() {
        Some(libc::ESRCH) => Fault::PeerLost,
        code => Fault::Access {
            code: code.unwrap_or(0),
        },
    }
}

/// # Safety
///
/// As [`Foreign::transfer`].
unsafe fn call(
    direction: Direction,
    pid: libc::pid_t,
    local: &[Slice],
    remote: &[Slice],
) -> io::Result<usize> {
    let call = match direction {
        Direction::Read => libc::process_vm_readv,
        Direction::Write => libc::process_vm_writev,
    };
    let (here, there) = (local.as_ptr().cast(), remote.as_ptr().cast());
    let (ours, theirs) = (local.len() as libc::c_ulong, remote.len() as libc::c_ulong);
    // SAFETY: the lists are as long as is said, and laid out as the system wants them; what they name here is the
    // caller's, and what they name there the system checks.
    let moved = unsafe { call(pid, here, ours, there, theirs, 0) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// The process that made the other end of a socket, as seen from here; 0 if it cannot be seen.
fn peer_of(socket: impl AsFd) -> io::Result<libc::pid_t> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut bytes = size_of::<libc::ucred>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    let room = (&raw mut peer).cast();
    // SAFETY: `peer` has room for so many bytes, and any of them make a `ucred`.
    let failed =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, room, &mut bytes) };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(peer.pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(epoch: &u64) -> Process {
        Process {
            pid: std::process::id() as libc::pid_t,
            cookie: std::ptr::from_ref(epoch).expose_provenance() as u64,
            epoch: *epoch,
        }
    }

    #[test]
    fn scattered_pieces_are_moved_and_neighbours_merged() {
        let epoch = Box::new(77_u64);
        let process = own(&epoch);
        let source: Vec<u8> = (0..=255).collect();
        let mut target = vec![0_u8; 256];
        let mut foreign = Foreign::new();
        let start = target.as_mut_ptr().expose_provenance() as u64;
        for (at, to) in [(0, 100), (10, 110), (50, 0), (60, 30)] {
            foreign.push(source[at..].as_ptr(), start + to, 10);
        }
        assert_eq!((foreign.local.len(), foreign.remote.len()), (2, 3));
        // SAFETY: `source` is not changed meanwhile.
        unsafe { foreign.transfer(Direction::Write, process) }.unwrap();
        assert!(foreign.local.is_empty());
        assert_eq!(target[100..120], source[0..20]);
        assert_eq!(target[0..10], source[50..60]);
        assert_eq!(target[30..40], source[60..70]);
    }

    #[test]
    fn what_is_not_there_is_a_fault() {
        let epoch = Box::new(77_u64);
        let process = own(&epoch);
        let mut room = vec![0_u8; 64];
        let mut foreign = Foreign::new();
        foreign.push(room.as_mut_ptr(), 8, 64);
        // SAFETY: `room` is this test's.
        let refused = unsafe { foreign.transfer(Direction::Read, process) };
        assert_eq!(refused, Err(Fault::Access { code: libc::EFAULT }));
        let other = Process {
            epoch: 78,
            ..process
        };
        foreign.push(room.as_mut_ptr(), process.cookie, 8);
        // SAFETY: as above.
        let refused = unsafe { foreign.transfer(Direction::Write, other) };
        assert_eq!(refused, Err(Fault::PeerLost), "another life of the number");
        assert_eq!(*epoch, 77);
        let gone = Process {
            pid: libc::pid_t::MAX,
            ..process
        };
        assert_eq!(gone.verify(), Err(Fault::PeerLost));
    }

    #[test]
    fn a_call_that_stops_halfway_goes_on_behind_it() {
        let mut slices =
            [(0, 10), (20, 10), (40, 10)].map(|(address, bytes)| Slice { address, bytes });
        let left: Vec<_> = advance(&mut slices, 14)
            .iter()
            .map(|slice| (slice.address, slice.bytes))
            .collect();
        assert_eq!(left, [(24, 6), (40, 10)]);
        assert!(advance(&mut slices[1..], 16).is_empty());
    }
}
