//! Reading from a socket into pieces of regions, and writing to one, with one system call each.
//!
//! This is the only module with `unsafe`. The standard library can read into several slices, but only
//! into slices that are borrowed together, and pieces come in wire order from a handful of regions in
//! no particular order. So they are described to the system by address.
//!
//! Who may touch what, and when: [`read_scattered`] has the regions and the tail borrowed exclusively
//! from beginning to end, so nobody else reads or writes them meanwhile. Addresses are made and used
//! inside that one call and never kept. The system writes only inside the vectors it is given, and each
//! vector was checked to lie in its region. Pieces may overlap each other: the system then writes a
//! byte more than once, which is the handler's affair and touches no reference of ours.

use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use moai_memory::Region;
use moai_transport::{Piece, PieceError};

use crate::limits::VECTORS;

/// Reads once into `pieces` of `regions`, in their order, and what comes beyond into `tail`. Returns
/// what the system call returned; no more than the first [`VECTORS`] pieces are used.
///
/// # Errors
///
/// A [`PieceError`] if a piece does not lie in its region; nothing has been read then.
pub(crate) fn read_scattered(
    socket: BorrowedFd<'_>,
    regions: &mut [Region],
    pieces: &[Piece],
    mut tail: &mut [u8],
) -> Result<io::Result<usize>, PieceError> {
    let mut vectors = [libc::iovec {
        iov_base: ptr::null_mut(),
        iov_len: 0,
    }; VECTORS + 1];
    let mut bases = Bases::new();
    let mut count = 0;
    let pieces = &pieces[..pieces.len().min(VECTORS)];
    // All checks come first, so that no region is looked at again once its address was taken.
    pieces.iter().try_for_each(|piece| piece.check(regions))?;
    for piece in pieces {
        let base = match bases.find(piece.region) {
            Some(base) => base,
            // The rest is for the next read.
            None if bases.is_full() => {
                tail = &mut [];
                break;
            }
            None => {
                let (region, memory) = (piece.region, &mut regions[piece.region as usize]);
                let kind = memory.kind();
                let bytes = memory.host_bytes_mut();
                let bytes = bytes.ok_or(PieceError::Unreachable { region, kind })?;
                let base = bytes.as_mut_ptr();
                bases.remember(piece.region, base);
                base
            }
        };
        vectors[count] = libc::iovec {
            iov_base: base.wrapping_add(piece.offset as usize).cast(),
            iov_len: piece.bytes as usize,
        };
        count += 1;
    }
    if !tail.is_empty() {
        vectors[count] = libc::iovec {
            iov_base: tail.as_mut_ptr().cast(),
            iov_len: tail.len(),
        };
        count += 1;
    }
    // SAFETY: the first `count` vectors are initialised, and `count` is at most `VECTORS + 1`, below
    // IOV_MAX. Each describes bytes that are writable and exclusively ours for the duration of the call:
    // either `tail`, or a piece that was just checked to lie in its region, addressed from the start of
    // that region, which was derived from `&mut regions` and not invalidated since (each region is
    // dereferenced once). The bytes are plain `u8`, so whatever the system writes is a valid value.
    let read = unsafe { libc::readv(socket.as_raw_fd(), vectors.as_ptr(), count as libc::c_int) };
    Ok(usize::try_from(read).map_err(|_| io::Error::last_os_error()))
}

/// Writes once from `slices`, in their order. Returns what the system call returned. A peer that has gone is an error
/// and never a signal.
///
/// # Panics
///
/// With more slices than [`VECTORS`].
pub(crate) fn send_vectored(socket: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    assert!(slices.len() <= VECTORS, "more slices than one call takes");
    let header = libc::msghdr {
        msg_name: ptr::null_mut(),
        msg_namelen: 0,
        // The system only reads through these; `msghdr` is shared with receiving, and so not `const`.
        msg_iov: slices.as_ptr().cast_mut().cast(),
        msg_iovlen: slices.len() as _,
        msg_control: ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    };
    // SAFETY: `header` is initialised and names no address and no control data. Its vectors are `slices`, which have
    // the layout of `iovec` and borrow bytes that stay as they are until this function returns; the call reads them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// A socket that is written to by [`send_vectored`].
#[derive(Debug)]
pub(crate) struct Quiet<'a>(pub(crate) BorrowedFd<'a>);

impl<'a> Quiet<'a> {
    pub(crate) fn new(socket: &'a impl AsFd) -> Self {
        Self(socket.as_fd())
    }
}

impl Write for Quiet<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        send_vectored(self.0, &[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        send_vectored(self.0, slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Asks for the cache lines of `bytes`, which will be read or written at once.
#[inline]
pub(crate) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: prefetching has no effect on any value, and every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// As [`prefetch`], into the second-level cache: of more than the first one holds.
#[inline]
pub(crate) fn prefetch_far(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// Regions that one read touches: two for each of so many layers.
const REGIONS: usize = 64;

/// Start addresses of the regions that one read touches.
///
/// A region is dereferenced once for a read: borrowing it again would, by the rules of the language,
/// take back the address from which earlier vectors were made.
struct Bases {
    known: [(u32, *mut u8); REGIONS],
    count: usize,
}

impl Bases {
    fn new() -> Self {
        Self {
            known: [(0, ptr::null_mut()); REGIONS],
            count: 0,
        }
    }

    /// Latest first: neighbouring pieces tend to lie in one region.
    fn find(&self, region: u32) -> Option<*mut u8> {
        let known = self.known[..self.count].iter().rev();
        known
            .copied()
            .find_map(|(of, base)| (of == region).then_some(base))
    }

    fn is_full(&self) -> bool {
        self.count == REGIONS
    }

    fn remember(&mut self, region: u32, base: *mut u8) {
        self.known[self.count] = (region, base);
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn piece(region: u32, offset: u64, bytes: u32) -> Piece {
        Piece {
            region,
            offset,
            bytes,
        }
    }

    fn regions() -> [Region; 2] {
        [8, 4].map(|bytes| Region::from_host(vec![b'.'; bytes]))
    }

    #[test]
    fn bytes_go_to_the_pieces_in_wire_order_and_then_to_the_tail() {
        let (mut from, to) = UnixStream::pair().unwrap();
        from.write_all(b"abcdefghij").unwrap();
        let mut regions = regions();
        let mut tail = [b'.'; 4];
        let pieces = [piece(0, 6, 2), piece(1, 0, 3), piece(0, 1, 3)];
        let read = read_scattered(to.as_fd(), &mut regions, &pieces, &mut tail);
        assert_eq!(read.unwrap().unwrap(), 10);
        assert_eq!(regions[0].as_slice(), b".fgh..ab");
        assert_eq!(regions[1].as_slice(), b"cde.");
        assert_eq!(&tail, b"ij..");
    }

    #[test]
    fn a_piece_outside_its_region_is_refused_before_anything_is_read() {
        let (mut from, to) = UnixStream::pair().unwrap();
        from.write_all(b"abcdefghij").unwrap();
        for bad in [
            piece(1, 2, 3),
            piece(2, 0, 1),
            piece(0, u64::MAX, 1),
            piece(0, 9, 0),
        ] {
            let mut regions = regions();
            let pieces = [piece(0, 0, 8), piece(1, 0, 1), bad];
            assert!(read_scattered(to.as_fd(), &mut regions, &pieces, &mut []).is_err());
            assert_eq!(regions[0].as_slice(), b"........");
        }
    }
}
