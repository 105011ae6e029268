//! Sockets driven by one thread: plain reads and writes, one after the other on one lane, in turns on several.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::TcpStream,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What is done on a lane, one after the other.
#[derive(Debug)]
pub(super) enum Phase<'a> {
    /// Says by one byte that it is time to begin, or that all is there.
    Tell,
    /// Waits for that byte.
    Hear,
    Send(&'a [u8]),
    Receive(&'a mut [u8]),
}

impl Phase<'_> {
    /// Whether there is nothing to do, not even one byte of it.
    fn is_empty(&self) -> bool {
        match self {
            Self::Tell | Self::Hear => false,
            Self::Send(bytes) => bytes.is_empty(),
            Self::Receive(bytes) => bytes.is_empty(),
        }
    }

    fn waits_for(&self) -> PollFlags {
        match self {
            Self::Tell | Self::Send(_) => PollFlags::OUT,
            Self::Hear | Self::Receive(_) => PollFlags::IN,
        }
    }
}

/// One connection and what is to be done on it.
#[derive(Debug)]
pub(super) struct Lane<'a> {
    stream: &'a TcpStream,
    phases: [Phase<'a>; 2],
    /// The phase that is next.
    now: usize,
    /// Most bytes of a read or write.
    chunk: usize,
}

impl<'a> Lane<'a> {
    pub(super) fn new(stream: &'a TcpStream, phases: [Phase<'a>; 2], chunk: usize) -> Self {
        let mut lane = Self {
            stream,
            phases,
            now: 0,
            chunk,
        };
        lane.skip_empty();
        lane
    }

    fn is_done(&self) -> bool {
        self.now == self.phases.len()
    }

    fn skip_empty(&mut self) {
        while self.phases.get(self.now).is_some_and(Phase::is_empty) {
            self.now += 1;
        }
    }

    /// One read or write, or `false` if the socket is not ready for it.
    fn advance(&mut self) -> io::Result<bool> {
        let mut stream = self.stream;
        let phase = &mut self.phases[self.now];
        let done = match phase {
            Phase::Tell => stream.write(&[1]),
            Phase::Hear => stream.read(&mut [0]),
            Phase::Send(bytes) => stream.write(&bytes[..bytes.len().min(self.chunk)]),
            Phase::Receive(bytes) => {
                let most = bytes.len().min(self.chunk);
                stream.read(&mut bytes[..most])
            }
        };
        let n = match done {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        match phase {
            Phase::Tell | Phase::Hear => self.now += 1,
            Phase::Send(bytes) => *bytes = &bytes[n..],
            Phase::Receive(bytes) => *bytes = &mut std::mem::take(bytes)[n..],
        }
        self.skip_empty();
        Ok(true)
    }
}

/// Does all there is to do on some lanes: blocking if it is one, in turns if there are several.
///
/// # Errors
///
/// Of a socket, and if none is ready for [`PATIENCE`].
pub(super) fn drive(lanes: &mut [Lane<'_>]) -> io::Result<()> {
    let is_blocking = lanes.len() == 1;
    for lane in lanes.iter() {
        lane.stream.set_nonblocking(!is_blocking)?;
    }
    loop {
        let mut has_moved = false;
        for lane in lanes.iter_mut().filter(|lane| !lane.is_done()) {
            has_moved |= lane.advance()?;
        }
        if lanes.iter().all(Lane::is_done) {
            return Ok(());
        }
        if !has_moved {
            // On a blocking socket: the time that it may block is over.
            if is_blocking {
                return Err(ErrorKind::TimedOut.into());
            }
            wait(lanes)?;
        }
    }
}

/// Sleeps until a lane can go on.
fn wait(lanes: &[Lane<'_>]) -> io::Result<()> {
    let left = lanes.iter().filter(|lane| !lane.is_done());
    let mut fds: Vec<PollFd<'_>> = left
        .map(|lane| PollFd::new(lane.stream, lane.phases[lane.now].waits_for()))
        .collect();
    let limit = Timespec {
        tv_sec: PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    match poll(&mut fds, Some(&limit)) {
        Ok(0) => Err(ErrorKind::TimedOut.into()),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// How long nothing may happen: longer than any machine needs for a chunk, short enough to be waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
