//! A socket, and what stands between it and its frames: nothing, or TLS.
//!
//! Which of the two is asked once for each system call. Without TLS the call is the same as if there were none.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};

use mio::net::TcpStream;
use moai_memory::Region;
use moai_transport::{Piece, PieceError};

use crate::secure::{Marks, Session};
use crate::vectored::{Quiet, read_scattered};

/// Where frames are read from.
pub(crate) trait Source: Read {
    /// Reads once into `pieces` of `regions`, in their order, and what comes beyond into `tail`.
    ///
    /// # Errors
    ///
    /// A [`PieceError`] if a piece does not lie in its region; nothing has been read then.
    fn read_scattered(
        &mut self,
        regions: &mut [Region],
        pieces: &[Piece],
        tail: &mut [u8],
    ) -> Result<io::Result<usize>, PieceError>;
}

/// Where frames are written to.
pub(crate) trait Sink {
    /// Writes once from `slices`, in their order. Those that `marks` names are payload, which may go unencrypted where
    /// both sides have said so.
    ///
    /// # Errors
    ///
    /// Those of a socket that does not block. Less than all was taken only if it is full.
    fn send(&mut self, slices: &[IoSlice<'_>], marks: &Marks) -> io::Result<usize>;
}

/// One socket.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) socket: TcpStream,
    session: Option<Box<Session>>,
}

impl Stream {
    pub(crate) fn new(socket: TcpStream, session: Option<Session>) -> Self {
        Self {
            socket,
            session: session.map(Box::new),
        }
    }

    pub(crate) fn session(&self) -> Option<&Session> {
        self.session.as_deref()
    }

    /// The handshake's parts: the session and the socket.
    pub(crate) fn parts(&mut self) -> Option<(&mut Session, Duplex<'_>)> {
        let session = self.session.as_deref_mut()?;
        Some((session, Duplex(&mut self.socket)))
    }

    /// Whether something that was written has not left for the socket.
    pub(crate) fn has_outgoing(&self) -> bool {
        self.session().is_some_and(Session::has_outgoing)
    }

    /// Lets what was written leave, as far as the socket goes; false if it does not take all.
    pub(crate) fn push(&mut self) -> io::Result<bool> {
        match &mut self.session {
            None => Ok(true),
            Some(session) => session.push(&mut Quiet::new(&self.socket)),
        }
    }

    /// Ends our side of the stream.
    pub(crate) fn shutdown(&mut self) -> io::Result<()> {
        self.say_farewell();
        self.socket.shutdown(Shutdown::Write)
    }

    pub(crate) fn holds_memory(&self) -> bool {
        self.session().is_some_and(Session::holds_memory)
    }

    pub(crate) fn trim(&mut self) {
        if let Some(session) = &mut self.session {
            session.trim();
        }
    }

    fn say_farewell(&mut self) {
        if let Some(session) = &mut self.session {
            session.farewell(&mut Quiet::new(&self.socket));
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.say_farewell();
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.session {
            None => self.socket.read(buffer),
            Some(session) => {
                let mut at = 0;
                session.read(&mut self.socket, buffer.len(), &mut |bytes| {
                    buffer[at..at + bytes.len()].copy_from_slice(bytes);
                    at += bytes.len();
                })
            }
        }
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let Some(session) = &mut self.session else {
            return self.socket.read_vectored(buffers);
        };
        let most = buffers.iter().map(|buffer| buffer.len()).sum();
        let (mut index, mut at) = (0, 0);
        session.read(&mut self.socket, most, &mut |mut bytes| {
            while !bytes.is_empty() {
                let room = &mut buffers[index][at..];
                let now = room.len().min(bytes.len());
                room[..now].copy_from_slice(&bytes[..now]);
                bytes = &bytes[now..];
                at += now;
                if at == buffers[index].len() {
                    (index, at) = (index + 1, 0);
                }
            }
        })
    }
}

impl Source for Stream {
    fn read_scattered(
        &mut self,
        regions: &mut [Region],
        pieces: &[Piece],
        tail: &mut [u8],
    ) -> Result<io::Result<usize>, PieceError> {
        let Some(session) = &mut self.session else {
            return read_scattered(self.socket.as_fd(), regions, pieces, tail);
        };
        // As there: all checks come before anything is read.
        for piece in pieces {
            piece.locate(regions)?;
        }
        let placed: usize = pieces.iter().map(|piece| piece.bytes as usize).sum();
        let (mut index, mut at) = (0, 0);
        Ok(
            session.read(&mut self.socket, placed + tail.len(), &mut |mut bytes| {
                while !bytes.is_empty() {
                    let room = match pieces.get(index) {
                        // It was checked just now.
                        Some(piece) => piece.locate(regions).unwrap_or(&mut []),
                        None => &mut *tail,
                    };
                    let whole = room.len();
                    let now = (whole - at).min(bytes.len());
                    room[at..at + now].copy_from_slice(&bytes[..now]);
                    bytes = &bytes[now..];
                    at += now;
                    if at == whole {
                        (index, at) = (index + 1, 0);
                    }
                }
            }),
        )
    }
}

impl Sink for Stream {
    fn send(&mut self, slices: &[IoSlice<'_>], marks: &Marks) -> io::Result<usize> {
        let mut socket = Quiet::new(&self.socket);
        match &mut self.session {
            None => socket.write_vectored(slices),
            Some(session) => session.write(&mut socket, slices, marks),
        }
    }
}

/// A socket in both directions, that is written to without signals.
#[derive(Debug)]
pub(crate) struct Duplex<'a>(&'a mut TcpStream);

impl Read for Duplex<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Duplex<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Quiet::new(self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
