//! The bare system calls `process_vm_readv` and `process_vm_writev`.
//!
//! # Who may touch what, and when
//!
//! - The local half of every entry lies within one slice that is borrowed exclusively for as long as the
//!   entries exist. Nothing else in this process reads or writes it meanwhile, so it does not matter that the
//!   kernel writes to it by raw address.
//! - What [`same`] gives is another way's memory under a second name. Ways take turns: between two steps, fills and
//!   checks nobody has a reference to bytes of it.
//! - The remote half is a number and is never dereferenced here. The kernel looks it up in the other
//!   process's mappings, and fails with `EFAULT` where there is nothing.
//! - The other process has exposed the address of memory it set aside for this, and waits in a system call
//!   until it is told that the step is over. Its compiler has to assume that what it waits for writes there.
#![allow(unsafe_code)] // The two calls below, for which there is no safe wrapper, and memory with two names.

use std::{io, marker::PhantomData, ptr::NonNull};

use libc::{c_void, iovec};
use moai_memory::{Hold, Region};

/// Most entries of a call, `UIO_MAXIOV` of the kernel.
pub(super) const MOST_ENTRIES: usize = 1024;

/// Memory that another way of this process has, which is kept alive.
pub(super) fn same(memory: Hold) -> Region {
    let start = NonNull::new(memory.as_ptr()).expect("memory has an address");
    let (len, kind) = (memory.len() as usize, memory.kind());
    // SAFETY: the hold keeps the bytes where they are, and regions are initialized. Only memory that the host can load
    // and store is handed on (`Mover::memory`), and whose turn it is has it to itself.
    unsafe { Region::from_raw(start, len, kind, Box::new(memory)) }
}

/// Equal pieces of this process's memory, each with one of another process's.
#[derive(Debug)]
pub(super) struct Pieces<'a> {
    local: Vec<iovec>,
    remote: Vec<iovec>,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> Pieces<'a> {
    /// Pairs the pieces that begin at `local` in `memory` with those that begin at `remote` behind `address`.
    ///
    /// # Panics
    ///
    /// If a piece is not within `memory`, or lists are not equally long.
    pub(super) fn new(
        memory: &'a mut [u8],
        local: &[u64],
        address: u64,
        remote: &[u64],
        piece: u64,
    ) -> Self {
        assert_eq!(local.len(), remote.len(), "each piece has a counterpart");
        let iov_len = piece as usize;
        let local = local.iter().map(|&at| iovec {
            iov_base: memory[at as usize..][..iov_len]
                .as_mut_ptr()
                .cast::<c_void>(),
            iov_len,
        });
        let local = local.collect();
        let remote = remote.iter().map(|&at| iovec {
            iov_base: std::ptr::without_provenance_mut(address.wrapping_add(at) as usize),
            iov_len,
        });
        Self {
            local,
            remote: remote.collect(),
            memory: PhantomData,
        }
    }

    /// Copies every piece from the other process, `batch` of them with each call.
    pub(super) fn read(&mut self, pid: u32, batch: usize) -> io::Result<()> {
        self.calls(batch, |local, remote| {
            // SAFETY: both lists are as long as said, and at most MOST_ENTRIES. Every local entry lies within
            // memory that `self` borrows exclusively; remote entries are only numbers to this process.
            unsafe {
                libc::process_vm_readv(
                    pid as libc::pid_t,
                    local.as_ptr(),
                    local.len() as libc::c_ulong,
                    remote.as_ptr(),
                    remote.len() as libc::c_ulong,
                    0,
                )
            }
        })
    }

    /// Copies every piece to the other process.
    pub(super) fn write(&mut self, pid: u32, batch: usize) -> io::Result<()> {
        self.calls(batch, |local, remote| {
            // SAFETY: as above; local entries are read only. What is written to is memory that the other
            // process has named and does not touch until it is told.
            unsafe {
                libc::process_vm_writev(
                    pid as libc::pid_t,
                    local.as_ptr(),
                    local.len() as libc::c_ulong,
                    remote.as_ptr(),
                    remote.len() as libc::c_ulong,
                    0,
                )
            }
        })
    }

    fn calls(
        &mut self,
        batch: usize,
        call: impl Fn(&[iovec], &[iovec]) -> libc::ssize_t,
    ) -> io::Result<()> {
        let batch = batch.clamp(1, MOST_ENTRIES);
        for (local, remote) in self.local.chunks(batch).zip(self.remote.chunks(batch)) {
            let moved = call(local, remote);
            let wanted: usize = local.iter().map(|entry| entry.iov_len).sum();
            match usize::try_from(moved) {
                Err(_) => return Err(io::Error::last_os_error()),
                Ok(moved) if moved != wanted => {
                    let text = format!("{moved} B of {wanted} B were moved");
                    return Err(io::Error::other(text));
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_the_own_process_go_where_they_should() {
        let mut there: Vec<u8> = (0..=255).collect();
        let address = there.as_mut_ptr().expose_provenance() as u64;
        let mut here = vec![0; 256];
        let pid = std::process::id();
        let (local, remote) = ([0, 200, 64], [248, 8, 16]);
        if let Err(error) = Pieces::new(&mut here, &local, address, &remote, 8).read(pid, 2) {
            // Sandboxes refuse the call, even on oneself.
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
            return;
        }
        assert_eq!(here[..8], there[248..]);
        assert_eq!(here[200..208], there[8..16]);
        assert_eq!(here[64..72], there[16..24]);
        here.fill(7);
        Pieces::new(&mut here, &[0], address, &[100], 8)
            .write(pid, 1)
            .unwrap();
        assert_eq!(there[99..109], [99, 7, 7, 7, 7, 7, 7, 7, 7, 108]);
        let nowhere = Pieces::new(&mut here, &[0], 8, &[0], 8)
            .read(pid, 1)
            .unwrap_err();
        assert_eq!(nowhere.raw_os_error(), Some(libc::EFAULT));
    }

    #[test]
    #[should_panic(expected = "out of range")]
    fn a_piece_beyond_the_memory_is_no_entry() {
        Pieces::new(&mut [0; 16], &[12], 0, &[0], 8);
    }
}
