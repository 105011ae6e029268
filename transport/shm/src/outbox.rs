//! Descriptors on their way to a peer: ahead of every message that could carry a key that names them.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::imports::MAX_FILES;
use crate::socket::Socket;

/// What is to go over the socket.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Files that the peer has been sent, or will be.
    sent: HashSet<u64>,
    /// What found the socket full. At most one for each file of this process's registrations, and one for its end.
    notes: VecDeque<Note>,
}

#[derive(Debug)]
enum Note {
    /// Without a descriptor if there was none to spare: the peer then reaches the memory in another way.
    Export(u64, Option<OwnedFd>),
    Retire(u64),
}

/// First byte of a packet that carries a file; its number follows.
pub(crate) const EXPORT: u8 = b'E';

/// First byte of a packet that says that a file is not used any more; its number follows.
pub(crate) const RETIRE: u8 = b'R';

impl Outbox {
    /// Sends a file, unless the peer has it. False if it has as many as it takes.
    pub(crate) fn export(&mut self, socket: &Socket, name: u64, fd: &OwnedFd) -> bool {
        if self.sent.contains(&name) {
            return true;
        }
        if self.sent.len() >= MAX_FILES {
            return false;
        }
        self.sent.insert(name);
        if !self.notes.is_empty() || !send(socket, EXPORT, name, Some(fd)) {
            self.notes
                .push_back(Note::Export(name, fd.try_clone().ok()));
        }
        true
    }

    /// Tells the peer, if it has the file, that it may let go of it.
    pub(crate) fn retire(&mut self, socket: &Socket, name: u64) {
        if !self.sent.remove(&name) {
            return;
        }
        if self.notes.is_empty() && send(socket, RETIRE, name, None) {
            return;
        }
        self.notes.push_back(Note::Retire(name));
    }

    /// Sends what is left; whether nothing is.
    pub(crate) fn flush(&mut self, socket: &Socket) -> bool {
        while let Some(note) = self.notes.front() {
            let sent = match note {
                Note::Export(name, fd) => send(socket, EXPORT, *name, fd.as_ref()),
                Note::Retire(name) => send(socket, RETIRE, *name, None),
            };
            if !sent {
                return false;
            }
            self.notes.pop_front();
        }
        true
    }
}

/// False if the socket is full. A peer that is lost is noticed elsewhere.
fn send(socket: &Socket, what: u8, name: u64, fd: Option<&OwnedFd>) -> bool {
    let mut packet = [what; 9];
    packet[1..].copy_from_slice(&name.to_le_bytes());
    let would_block =
        |sent: io::Result<()>| sent.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    let Some(fd) = fd else {
        return !would_block(socket.send(&packet, &[]));
    };
    match socket.send(&packet, &[fd.as_fd()]) {
        // Too many descriptors of this user are on their way.
        Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => {
            !would_block(socket.send(&packet, &[]))
        }
        sent => !would_block(sent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::Received;

    #[test]
    fn every_file_goes_once_however_full_the_socket() {
        let (left, right) = Socket::pair();
        let fd: OwnedFd = std::fs::File::open("/proc/self/stat").unwrap().into();
        let mut outbox = Outbox::default();
        // More than a socket takes.
        for name in (0..600).chain(0..10) {
            outbox.export(&left, name, &fd);
        }
        assert!(!outbox.notes.is_empty());
        outbox.retire(&left, 5);
        outbox.retire(&left, 1000);
        let (mut names, mut ended) = (Vec::new(), Vec::new());
        loop {
            let (mut packet, mut fds) = ([0; 64], Vec::new());
            match right.receive(&mut packet, &mut fds).unwrap() {
                Received::Packet(9) => match packet[0] {
                    EXPORT => names.push(u64::from_le_bytes(packet[1..9].try_into().unwrap())),
                    _ => ended.push(packet[1]),
                },
                _ if outbox.flush(&left) => break,
                _ => {}
            }
        }
        while let Received::Packet(9) = right.receive(&mut [0; 64], &mut Vec::new()).unwrap() {
            names.push(names.len() as u64);
        }
        assert!(names.iter().copied().eq(0..names.len() as u64));
        assert!(names.len() >= 600);
    }

    #[test]
    fn a_peer_is_sent_no_more_files_than_it_takes() {
        let (left, _right) = Socket::pair();
        let fd: OwnedFd = std::fs::File::open("/proc/self/stat").unwrap().into();
        let mut outbox = Outbox::default();
        let most = MAX_FILES as u64;
        outbox.sent.extend(0..most - 1);
        assert!(outbox.export(&left, most, &fd));
        assert!(!outbox.export(&left, most + 1, &fd));
        assert!(outbox.export(&left, 7, &fd));
        outbox.retire(&left, 7);
        assert!(outbox.export(&left, most + 1, &fd));
    }
}
