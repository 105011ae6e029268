//! Unix sockets of whole packets, which carry descriptors.
//!
//! Over the socket go the two greetings, the descriptors of exported memory, and packets of one byte that wake the
//! other side up. Its end is the peer's end: the system closes it, however a process dies.
//!
//! Bells are packets and not eventfds because a peer shares an eventfd's counter and flags: it could fill the one and
//! clear the other, and ringing would block. Sending can be told not to. It also spares two descriptors for each peer.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType,
};

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

/// What a receive brought.
#[derive(Debug)]
pub(crate) enum Received {
    /// A packet of so many bytes; its descriptors were appended.
    Packet(usize),
    /// Nothing now.
    Nothing,
    /// The peer has closed its side.
    End,
}

/// Descriptors in one packet, the most.
pub(crate) const MAX_FDS: usize = 4;

/// Longest packet.
pub(crate) const MAX_PACKET_BYTES: usize = 128;

const SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_FDS));

impl Socket {
    /// A socket that waits for connections at `name`.
    pub(crate) fn listen(name: &SocketAddrUnix) -> io::Result<Self> {
        let socket = Self::new()?;
        net::bind(&socket.0, name)?;
        net::listen(&socket.0, BACKLOG)?;
        Ok(socket)
    }

    /// A socket that is to be connected.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok(Self(socket))
    }

    /// Connects to `name`. [`io::ErrorKind::WouldBlock`] while too many wait for the listener.
    pub(crate) fn connect(&self, name: &SocketAddrUnix) -> io::Result<()> {
        Ok(net::connect(&self.0, name)?)
    }

    /// Two sockets connected to each other.
    #[cfg(test)]
    pub(crate) fn pair() -> (Self, Self) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (left, right) =
            net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        (Self(left), Self(right))
    }

    /// The next connection to this listener.
    pub(crate) fn accept(&self) -> io::Result<Self> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        Ok(Self(net::accept_with(&self.0, flags)?))
    }

    /// Sends a packet with descriptors. [`io::ErrorKind::WouldBlock`] if the peer has too many to read.
    pub(crate) fn send(&self, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            let fits = control.push(SendAncillaryMessage::ScmRights(fds));
            assert!(fits, "{} descriptors in one packet", fds.len());
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        net::sendmsg(&self.0, &[IoSlice::new(packet)], &mut control, flags)?;
        Ok(())
    }

    /// Wakes the peer up. A full queue of packets wakes it as well, and a lost peer is noticed elsewhere.
    pub(crate) fn ring(&self) {
        let _ = self.send(&[BELL], &[]);
    }

    /// Receives a packet, and appends its descriptors to `fds`. Whatever of it does not fit is cut off, which
    /// makes it no packet of ours; descriptors that do not fit are closed by the system.
    pub(crate) fn receive(
        &self,
        packet: &mut [u8],
        fds: &mut Vec<OwnedFd>,
    ) -> io::Result<Received> {
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut slices = [IoSliceMut::new(packet)];
        let received = match net::recvmsg(&self.0, &mut slices, &mut control, flags) {
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Received::Nothing),
            received => received?,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.bytes == 0 && fds.is_empty() {
            return Ok(Received::End);
        }
        Ok(Received::Packet(received.bytes))
    }

    /// Tells the peer that nothing comes any more.
    pub(crate) fn end(&self) {
        let _ = net::shutdown(&self.0, Shutdown::Write);
    }

    /// Whether the peer has closed its side, or died.
    pub(crate) fn is_lost(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.0, PollFlags::RDHUP)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let ended = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().intersects(ended)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The packet that wakes up.
pub(crate) const BELL: u8 = b'!';

/// Connections that may wait to be accepted; the system's own limit (`net.core.somaxconn`) is below it.
const BACKLOG: i32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_whole_with_their_descriptors_and_the_end_is_seen() {
        let (left, right) = Socket::pair();
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        left.send(b"hello", &[file.as_fd(), file.as_fd()]).unwrap();
        left.ring();
        let (mut packet, mut fds) = ([0; MAX_PACKET_BYTES], Vec::new());
        let received = right.receive(&mut packet, &mut fds).unwrap();
        assert!(matches!(received, Received::Packet(5)), "{received:?}");
        assert_eq!((&packet[..5], fds.len()), (&b"hello"[..], 2));
        fds.clear();
        let received = right.receive(&mut packet, &mut fds).unwrap();
        assert!(matches!(received, Received::Packet(1)), "{received:?}");
        let received = right.receive(&mut packet, &mut fds).unwrap();
        assert!(matches!(received, Received::Nothing), "{received:?}");
        assert!(!right.is_lost());
        drop(left);
        assert!(right.is_lost());
        let received = right.receive(&mut packet, &mut fds).unwrap();
        assert!(matches!(received, Received::End), "{received:?}");
    }

    #[test]
    fn a_peer_that_does_not_read_blocks_nobody() {
        let (left, _right) = Socket::pair();
        let sent = (0..100_000).find_map(|_| left.send(&[BELL], &[]).err());
        assert_eq!(sent.unwrap().kind(), io::ErrorKind::WouldBlock);
        left.ring();
    }
}
