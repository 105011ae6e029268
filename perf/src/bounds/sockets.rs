//! Plain sockets between two processes, the bound of every transport over TCP.
//!
//! Both sides walk memory as large as the pieces are together, each lane through a share of its own, in
//! reads and writes of 1 MiB. One hot buffer instead would be faster, and a bound of nothing.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use moai_memory::Region;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt,
};

use super::lane::{Lane, PATIENCE, Phase, drive};
use crate::{
    failure::Failure,
    histogram::Histogram,
    mover::{Door, Drive, MOST_LANES, MOST_PING, Mover, Pacing, Partner, Step},
    pattern::Pattern,
    shapes::{Shape, Side},
};

/// Most bytes of a read or write, beyond which more make no difference.
const CHUNK: usize = 1 << 20;

/// Connections and the memory they walk.
#[derive(Debug)]
struct Sockets {
    side: Side,
    shape: Shape,
    drive: Drive,
    streams: Vec<TcpStream>,
    memory: Region,
}

impl Sockets {
    fn new(side: Side, shape: Shape, drive: Drive) -> Result<Self, Failure> {
        if drive.threads == 0 || drive.threads > drive.lanes || drive.lanes > MOST_LANES {
            let Drive { lanes, threads, .. } = drive;
            return Err(Failure::Input(format!(
                "{threads} threads cannot drive {lanes} lanes: 1 to {MOST_LANES} lanes, at most a thread for each"
            )));
        }
        // What order pieces are in does not matter to one who takes them as they come.
        let shape = shape.contiguous();
        let memory = Region::host_zeroed(shape.memory())
            .map_err(|error| Failure::Input(error.to_string()))?;
        Ok(Self {
            side,
            shape,
            drive,
            streams: Vec::new(),
            memory,
        })
    }

    fn add(&mut self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        if self.drive.pacing == Pacing::Off {
            let mut unpaced = UNPACED.into_iter();
            let _ = unpaced.find(|name| sockopt::set_tcp_congestion(&stream, name).is_ok());
        }
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        self.streams.push(stream);
        Ok(())
    }

    /// This side's half of a step other than a ping, from the first thread's start to the last one's end.
    fn walk(&mut self, step: Step) -> io::Result<Duration> {
        let chunk = if step == Step::Rate {
            self.shape.piece as usize
        } else {
            CHUNK
        };
        let is_source = step.is_outward() == (self.side == Side::Here);
        // Who takes the time decides when bytes begin to flow, and has to know that all have arrived.
        let is_put = step.is_outward();
        let memory = self.memory.as_mut_slice();
        let share = memory.len().div_ceil(self.streams.len());
        let mut shares = memory.chunks_mut(share);
        let mut lanes: Vec<Lane<'_>> = Vec::with_capacity(self.streams.len());
        for stream in &self.streams {
            let bytes = shares.next().unwrap_or_default();
            let phases = match (is_put, is_source) {
                (true, true) => [Phase::Send(bytes), Phase::Hear],
                (true, false) => [Phase::Receive(bytes), Phase::Tell],
                (false, true) => [Phase::Hear, Phase::Send(bytes)],
                (false, false) => [Phase::Tell, Phase::Receive(bytes)],
            };
            lanes.push(Lane::new(stream, phases, chunk));
        }
        let each = lanes.len().div_ceil(self.drive.threads as usize);
        let timed = |lanes: &mut [Lane<'_>]| {
            let start = Instant::now();
            drive(lanes).map(|()| (start, Instant::now()))
        };
        if self.drive.threads == 1 {
            return timed(&mut lanes).map(|(start, end)| end - start);
        }
        thread::scope(|scope| {
            let parts = lanes.chunks_mut(each);
            let handles: Vec<_> = parts.map(|part| scope.spawn(|| timed(part))).collect();
            let mut spans = Vec::with_capacity(handles.len());
            for handle in handles {
                let span = handle
                    .join()
                    .map_err(|_| io::Error::other("a thread panicked"))?;
                spans.push(span?);
            }
            let start = spans.iter().map(|(start, _)| *start).min();
            let end = spans.iter().map(|(_, end)| *end).max();
            Ok(start
                .zip(end)
                .map_or(Duration::ZERO, |(start, end)| end - start))
        })
    }

    /// The lane that pings go over, blocking.
    fn ping_lane(&self, bytes: u32) -> io::Result<(&TcpStream, Vec<u8>)> {
        if bytes == 0 || bytes > MOST_PING {
            return Err(io::Error::other(format!(
                "a ping of {bytes} B; 1 to {MOST_PING} can be"
            )));
        }
        let stream = &self.streams[0];
        stream.set_nonblocking(false)?;
        Ok((stream, vec![0; bytes as usize]))
    }

    fn check(&self, pattern: Pattern) -> Result<(), Failure> {
        let checked = pattern.check(&self.shape, self.side, self.memory.as_slice());
        checked.map_err(|text| Failure::Wrong(format!("{}: {text}", name(self.drive))))
    }
}

pub(super) fn name(drive: Drive) -> String {
    let Drive { lanes, threads, .. } = drive;
    let name = match (lanes, threads) {
        (1, _) => "sockets, 1 lane".to_owned(),
        (lanes, 1) => format!("sockets, {lanes} lanes"),
        (lanes, threads) => format!("sockets, {lanes} lanes, {threads} threads"),
    };
    match drive.pacing {
        Pacing::System => name,
        Pacing::Off => format!("{name}, unpaced"),
    }
}

/// Congestion controls that do not pace, in the order in which the transport takes them within a host.
const UNPACED: [&str; 2] = ["cubic", "reno"];

/// Whether sockets to `peer` are paced unless somebody asks for something else, so that there are two bounds.
pub(crate) fn are_paced(peer: IpAddr) -> bool {
    let chosen = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    peer.to_canonical().is_loopback()
        && chosen.is_ok_and(|chosen| !UNPACED.contains(&chosen.trim()))
}

/// The half that takes the time.
#[derive(Debug)]
pub(crate) struct SocketMover(Sockets);

impl SocketMover {
    /// Connects every lane to a partner's port.
    pub(crate) fn open(
        peer: IpAddr,
        door: &Door,
        shape: Shape,
        drive: Drive,
    ) -> Result<Self, Failure> {
        let &Door::Port(port) = door else {
            return Err(Failure::Lost(format!("sockets need a port, not {door:?}")));
        };
        let mut sockets = Sockets::new(Side::Here, shape, drive)?;
        let address = SocketAddr::new(peer, port);
        for _ in 0..drive.lanes {
            let lost = Failure::lost("a lane cannot be connected");
            let stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(&lost)?;
            sockets.add(stream).map_err(&lost)?;
        }
        for (lane, mut stream) in sockets.streams.iter().enumerate() {
            // Below MOST_LANES. The system may accept lanes in another order than they were made in.
            let named = stream.write_all(&[lane as u8]);
            named.map_err(Failure::lost("a lane broke"))?;
        }
        Ok(Self(sockets))
    }
}

impl Mover for SocketMover {
    fn name(&self) -> String {
        name(self.0.drive)
    }

    fn fill(&mut self, pattern: Pattern) -> Result<(), Failure> {
        pattern.write(self.0.memory.as_mut_slice(), 0);
        Ok(())
    }

    fn step(&mut self, step: Step, pings: &mut Histogram) -> Result<Duration, Failure> {
        let broke = Failure::lost("a lane broke");
        let Step::Ping { count, bytes } = step else {
            return self.0.walk(step).map_err(broke);
        };
        let (mut stream, mut message) = self.0.ping_lane(bytes).map_err(&broke)?;
        let whole = Instant::now();
        for _ in 0..count {
            let start = Instant::now();
            let done = stream
                .write_all(&message)
                .and_then(|()| stream.read_exact(&mut message));
            done.map_err(&broke)?;
            pings.record(start.elapsed());
        }
        Ok(whole.elapsed())
    }

    fn check(&mut self, pattern: Pattern) -> Result<(), Failure> {
        self.0.check(pattern)
    }
}

/// The other half.
#[derive(Debug)]
pub(crate) struct SocketPartner {
    listener: TcpListener,
    sockets: Sockets,
}

impl SocketPartner {
    /// Listens on an address of this machine.
    pub(crate) fn open(at: IpAddr, shape: Shape, drive: Drive) -> Result<(Self, Door), Failure> {
        let sockets = Sockets::new(Side::There, shape, drive)?;
        let lost = Failure::lost("cannot listen for lanes");
        let listener = TcpListener::bind((at, 0)).map_err(&lost)?;
        let port = listener.local_addr().map_err(&lost)?.port();
        Ok((Self { listener, sockets }, Door::Port(port)))
    }

    fn accept(&self) -> io::Result<(u8, TcpStream)> {
        // A lane that was connected before the call came is there already; one that never comes is not
        // waited for.
        let mut fds = [PollFd::new(&self.listener, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: PATIENCE.as_secs() as i64,
            tv_nsec: 0,
        };
        if poll(&mut fds, Some(&limit))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let (mut stream, _) = self.listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut lane = [0];
        stream.read_exact(&mut lane)?;
        Ok((lane[0], stream))
    }
}

impl Partner for SocketPartner {
    fn join(&mut self) -> Result<(), Failure> {
        let lost = Failure::lost("a lane did not come");
        let mut lanes = Vec::new();
        for _ in 0..self.sockets.drive.lanes {
            lanes.push(self.accept().map_err(&lost)?);
        }
        lanes.sort_by_key(|(lane, _)| *lane);
        for (_, stream) in lanes {
            self.sockets.add(stream).map_err(&lost)?;
        }
        Ok(())
    }

    fn fill(&mut self, pattern: Pattern) -> Result<(), Failure> {
        pattern.write(self.sockets.memory.as_mut_slice(), 0);
        Ok(())
    }

    fn step(&mut self, step: Step, _is_over: &dyn Fn() -> bool) -> Result<(), Failure> {
        let broke = Failure::lost("a lane broke");
        if self.sockets.streams.is_empty() {
            return Err(Failure::Lost("no lane has been connected".to_owned()));
        }
        let Step::Ping { count, bytes } = step else {
            return self.sockets.walk(step).map(|_| ()).map_err(broke);
        };
        let (mut stream, mut message) = self.sockets.ping_lane(bytes).map_err(&broke)?;
        for _ in 0..count {
            let done = stream
                .read_exact(&mut message)
                .and_then(|()| stream.write_all(&message));
            done.map_err(&broke)?;
        }
        Ok(())
    }

    fn check(&mut self, pattern: Pattern) -> Result<(), Failure> {
        self.sockets.check(pattern)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::shapes::Order;

    #[test]
    fn every_step_arrives_whatever_drives_it() {
        // Fewer bytes than lanes, a number that no lane divides, and more than a chunk for each.
        for (piece, pieces) in [(1, 3), (1000, 7), (1 << 20, 9)] {
            for (lanes, threads) in [(1, 1), (4, 1), (4, 3), (4, 4)] {
                let shape = Shape {
                    piece,
                    pieces,
                    order: Order::Scattered,
                    seed: 1,
                };
                let pacing = match threads {
                    1 => Pacing::System,
                    _ => Pacing::Off,
                };
                let drive = Drive {
                    lanes,
                    threads,
                    pacing,
                };
                let at = IpAddr::V4(Ipv4Addr::LOCALHOST);
                let (mut partner, door) = SocketPartner::open(at, shape, drive).unwrap();
                let mut mover = SocketMover::open(at, &door, shape, drive).unwrap();
                partner.join().unwrap();
                let mut pings = Histogram::new();
                let ping = Step::Ping {
                    count: 10,
                    bytes: 256,
                };
                for (salt, step) in [Step::Put, Step::Get, ping, Step::Rate, Step::Send]
                    .into_iter()
                    .enumerate()
                {
                    let pattern = Pattern::new(1 << (40 + salt));
                    if step.is_outward() {
                        mover.fill(pattern).unwrap();
                    } else {
                        partner.fill(pattern).unwrap();
                    }
                    thread::scope(|scope| {
                        let other = scope.spawn(|| partner.step(step, &|| false).unwrap());
                        assert!(mover.step(step, &mut pings).unwrap() > Duration::ZERO);
                        other.join().unwrap();
                    });
                    match step {
                        Step::Ping { .. } => {}
                        Step::Get => mover.check(pattern).unwrap(),
                        _ => partner.check(pattern).unwrap(),
                    }
                }
                assert_eq!(pings.percentiles().unwrap().count, 10);
            }
        }
    }

    #[test]
    fn what_cannot_be_driven_is_refused() {
        let shape = Shape {
            piece: 8,
            pieces: 1,
            order: Order::Contiguous,
            seed: 1,
        };
        for (lanes, threads) in [(0, 0), (1, 0), (1, 2), (65, 1)] {
            let drive = Drive {
                lanes,
                threads,
                pacing: Pacing::System,
            };
            let refused = Sockets::new(Side::Here, shape, drive).unwrap_err();
            assert_eq!(refused.code(), 2);
        }
    }

    #[test]
    fn a_peer_that_leaves_is_an_error() {
        let shape = Shape {
            piece: 1 << 20,
            pieces: 16,
            order: Order::Contiguous,
            seed: 1,
        };
        for lanes in [1, 2] {
            let drive = Drive {
                lanes,
                threads: 1,
                pacing: Pacing::System,
            };
            let at = IpAddr::V4(Ipv4Addr::LOCALHOST);
            let (mut partner, door) = SocketPartner::open(at, shape, drive).unwrap();
            let mut mover = SocketMover::open(at, &door, shape, drive).unwrap();
            partner.join().unwrap();
            drop(partner);
            for step in [Step::Get, Step::Put] {
                assert_eq!(
                    mover.step(step, &mut Histogram::new()).unwrap_err().code(),
                    5
                );
            }
        }
    }
}
