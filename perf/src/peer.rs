//! The other process: started by this one, or by hand on another machine.

use std::{
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use moai_memory::Hold;

use crate::{
    bounds::{ForeignMover, ForeignPartner, SocketMover, SocketPartner},
    control::{Call, Control, Reply, unexpected},
    failure::Failure,
    mover::{Door, Mover, Partner, Step, Way},
    pattern::Pattern,
    shapes::Shape,
    stack::{StackMover, StackPartner},
    usage,
};

/// The hidden command by which the program starts itself.
pub(crate) const COMMAND: &str = "partner";

/// Most ways that are open at once: a subject and its bounds.
const MOST_OPEN: usize = 16;

/// The other process, as this one sees it.
#[derive(Debug)]
pub(crate) struct Peer {
    control: Control,
    /// If this process started it; ends with the control connection.
    child: Option<Child>,
}

impl Peer {
    /// Starts this program once more, on this machine.
    pub(crate) fn start() -> Result<Self, Failure> {
        let lost = Failure::lost("cannot start a second process");
        let program = std::env::current_exe().map_err(&lost)?;
        let mut child = Command::new(program)
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(&lost)?;
        let connected = Self::reach(&mut child);
        match connected {
            Ok(control) => Ok(Self {
                control,
                child: Some(child),
            }),
            Err(failure) => {
                // It is of no use any more, and may be gone already.
                let _ = child.kill();
                let _ = child.wait();
                Err(failure)
            }
        }
    }

    fn reach(child: &mut Child) -> Result<Control, Failure> {
        let lost = Failure::lost("the second process did not say where it listens");
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line).map_err(&lost)?;
        }
        let address = line.trim().parse();
        let address = address.map_err(|_| {
            Failure::Lost(format!(
                "the second process listens at {line:?}, which is no address"
            ))
        })?;
        connect(address)
    }

    /// One that was started with `--server`.
    pub(crate) fn at(address: SocketAddr) -> Result<Self, Failure> {
        Ok(Self {
            control: connect(address)?,
            child: None,
        })
    }

    /// Process that may be traced, since this one started it.
    pub(crate) fn traceable(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Where it is.
    pub(crate) fn address(&self) -> IpAddr {
        self.control.peer()
    }

    /// Opens both halves of a way.
    pub(crate) fn open(&mut self, way: Way, shape: Shape) -> Result<Opened, Failure> {
        self.open_in(way, shape, None)
    }

    /// Opens both halves of foreign memory, which are those of `beside` where they can be had.
    pub(crate) fn open_foreign(
        &mut self,
        beside: Option<&Opened>,
        shape: Shape,
    ) -> Result<Opened, Failure> {
        let here = beside.and_then(|way| way.mover.memory());
        let of = beside.and_then(|way| way.id).filter(|_| here.is_some());
        self.open_in(Way::Foreign { of }, shape, here)
    }

    fn open_in(&mut self, way: Way, shape: Shape, here: Option<Hold>) -> Result<Opened, Failure> {
        let (id, door) = match self.control.call(Call::Open { way, shape })? {
            Reply::Opened { id, door } => (id, door),
            other => return Err(unexpected(&other)),
        };
        let mover: Box<dyn Mover> = match way {
            Way::Sockets(drive) => {
                Box::new(SocketMover::open(self.address(), &door, shape, drive)?)
            }
            Way::Foreign { .. } => {
                let pid = self.traceable().ok_or_else(|| {
                    Failure::Input("only a process of this machine has foreign memory".to_owned())
                })?;
                Box::new(ForeignMover::open(pid, &door, shape, here)?)
            }
            Way::Stack(stack) => Box::new(StackMover::open(stack, &door, shape)?),
        };
        self.control.order(Call::Join { id })?;
        Ok(Opened {
            mover,
            id: Some(id),
        })
    }

    /// Drops all partners.
    pub(crate) fn close_all(&mut self) -> Result<(), Failure> {
        self.control.order(Call::CloseAll)
    }

    pub(crate) fn fill(&mut self, id: usize, salt: u64) -> Result<(), Failure> {
        self.control.order(Call::Fill { id, salt })
    }

    pub(crate) fn check(&mut self, id: usize, salt: u64) -> Result<(), Failure> {
        self.control.order(Call::Check { id, salt })
    }

    pub(crate) fn begin(&mut self, id: usize, step: Step) -> Result<(), Failure> {
        self.control.order(Call::Begin { id, step })
    }

    /// Ends a step, and says what CPU time the other process had for it.
    pub(crate) fn end(&mut self) -> Result<Duration, Failure> {
        match self.control.call(Call::End)? {
            Reply::Spent { cpu_ns } => Ok(Duration::from_nanos(cpu_ns)),
            other => Err(unexpected(&other)),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It would end with the connection, unless it waits for something else just now. Its memory is of
            // no use to anybody.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A way with both halves in place.
pub(crate) struct Opened {
    pub(crate) mover: Box<dyn Mover>,
    /// The partner, if there is one.
    pub(crate) id: Option<usize>,
}

fn connect(address: SocketAddr) -> Result<Control, Failure> {
    let what = format!("cannot reach a partner at {address}");
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10));
    let mut control = Control::new(stream.map_err(Failure::lost(&what))?)?;
    let ours = env!("CARGO_PKG_VERSION");
    match control.reply()? {
        Reply::Hello { version } if version == ours => Ok(control),
        Reply::Hello { version } => Err(Failure::Input(format!(
            "this is moai-perf {ours}, at {address} is moai-perf {version}: both sides need the same"
        ))),
        other => Err(unexpected(&other)),
    }
}

/// What a started process does: serves one connection of this machine.
pub(crate) fn partner() -> Result<(), Failure> {
    let listener = listen((Ipv4Addr::LOCALHOST, 0).into())?;
    let local = listener
        .local_addr()
        .map_err(Failure::lost("no local address"))?;
    println!("{local}");
    watch_parent();
    let accepted = listener.accept();
    drop(listener);
    let (stream, _) = accepted.map_err(Failure::lost("nobody came"))?;
    serve(Control::new(stream)?)
}

/// Ends this process with the one that started it, whatever it waits for then.
fn watch_parent() {
    std::thread::spawn(|| {
        let mut line = String::new();
        // Nothing is ever written: this returns when the other end is closed.
        let _ = std::io::stdin().read_line(&mut line);
        std::process::exit(0);
    });
}

/// `--server`: serves one connection after another until it is stopped.
pub(crate) fn serve_at(address: SocketAddr) -> Result<(), Failure> {
    let listener = listen(address)?;
    let local = listener
        .local_addr()
        .map_err(Failure::lost("no local address"))?;
    eprintln!("listening at {local}");
    loop {
        let (stream, from) = listener.accept().map_err(Failure::lost("cannot accept"))?;
        eprintln!("serving {from}");
        if let Err(failure) = Control::new(stream).and_then(serve) {
            eprintln!("{failure}");
        }
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).map_err(Failure::lost(&format!("cannot listen at {address}")))
}

/// Does what is asked until the other process hangs up.
fn serve(mut control: Control) -> Result<(), Failure> {
    control.send(&Reply::Hello {
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })?;
    let mut partners: Vec<Box<dyn Partner>> = Vec::new();
    while let Some(call) = control.receive()? {
        let reply = match call {
            Call::Begin { id, step } => step_of(&mut control, &mut partners, id, step),
            other => answer(&control, &mut partners, other),
        };
        control.send(&reply.unwrap_or_else(|failure| Reply::from(&failure)))?;
    }
    Ok(())
}

fn answer(
    control: &Control,
    partners: &mut Vec<Box<dyn Partner>>,
    call: Call,
) -> Result<Reply, Failure> {
    let done = |()| Reply::Done;
    match call {
        Call::Open { way, shape } => {
            if partners.len() >= MOST_OPEN {
                return Err(Failure::Input(format!(
                    "{MOST_OPEN} ways are open, no more can be"
                )));
            }
            let shape = shape.checked().map_err(Failure::Input)?;
            let (partner, door) = open(control.local()?, way, shape, partners)?;
            partners.push(partner);
            Ok(Reply::Opened {
                id: partners.len() - 1,
                door,
            })
        }
        Call::Join { id } => find(partners, id)?.join().map(done),
        Call::Fill { id, salt } => find(partners, id)?.fill(Pattern::new(salt)).map(done),
        Call::Check { id, salt } => find(partners, id)?.check(Pattern::new(salt)).map(done),
        Call::CloseAll => {
            partners.clear();
            Ok(Reply::Done)
        }
        Call::Begin { .. } | Call::End => Err(Failure::Input("there is no step to end".to_owned())),
    }
}

fn open(
    at: IpAddr,
    way: Way,
    shape: Shape,
    partners: &mut [Box<dyn Partner>],
) -> Result<(Box<dyn Partner>, Door), Failure> {
    Ok(match way {
        Way::Sockets(drive) => {
            let (partner, door) = SocketPartner::open(at, shape, drive)?;
            (Box::new(partner), door)
        }
        Way::Foreign { of } => {
            let memory = match of {
                Some(id) => find(partners, id)?.memory(),
                None => None,
            };
            let (partner, door) = ForeignPartner::open(shape, memory)?;
            (Box::new(partner), door)
        }
        Way::Stack(stack) => {
            let (partner, door) = StackPartner::open(at, stack, shape)?;
            (Box::new(partner), door)
        }
    })
}

fn find(
    partners: &mut [Box<dyn Partner>],
    id: usize,
) -> Result<&mut (dyn Partner + 'static), Failure> {
    let open = partners.len();
    let found = partners.get_mut(id).map(|partner| &mut **partner);
    found.ok_or_else(|| Failure::Input(format!("partner {id} of {open}")))
}

/// From `Begin` to `End`.
fn step_of(
    control: &mut Control,
    partners: &mut [Box<dyn Partner>],
    id: usize,
    step: Step,
) -> Result<Reply, Failure> {
    let partner = find(partners, id)?;
    control.send(&Reply::Done)?;
    let before = usage::cpu();
    let done = partner.step(step, &|| control.is_waiting());
    // Whatever came of it, the other process says when its half is over.
    match control.receive()? {
        Some(Call::End) => {}
        Some(other) => {
            return Err(Failure::Input(format!(
                "{other:?} before the end of a step"
            )));
        }
        None => return Err(Failure::Lost("hung up within a step".to_owned())),
    }
    let cpu_ns = (usage::cpu() - before).as_nanos() as u64;
    done.map(|()| Reply::Spent { cpu_ns })
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::{
        histogram::Histogram,
        mover::{Drive, Pacing},
        shapes::Order,
    };

    /// A peer that is a thread, so that it can be reached without a program.
    fn peer() -> (Peer, thread::JoinHandle<Result<(), Failure>>) {
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let served = thread::spawn(move || serve(Control::new(listener.accept().unwrap().0)?));
        (Peer::at(address).unwrap(), served)
    }

    const SHAPE: Shape = Shape {
        piece: 4096,
        pieces: 100,
        order: Order::Scattered,
        seed: 1,
    };
    const ONE: Way = Way::Sockets(Drive {
        lanes: 1,
        threads: 1,
        pacing: Pacing::System,
    });

    #[test]
    fn a_step_goes_through_both_halves_and_is_checked() {
        let (mut peer, served) = peer();
        let mut opened = peer.open(ONE, SHAPE).unwrap();
        let id = opened.id.unwrap();
        opened.mover.fill(Pattern::new(5)).unwrap();
        peer.begin(id, Step::Put).unwrap();
        opened.mover.step(Step::Put, &mut Histogram::new()).unwrap();
        peer.end().unwrap();
        peer.check(id, 5).unwrap();
        // Bytes of another round are wrong bytes.
        let wrong = peer.check(id, 6).unwrap_err();
        assert!(
            wrong.code() == 4 && wrong.to_string().contains("100 of 100"),
            "{wrong}"
        );
        drop((opened, peer));
        served.join().unwrap().unwrap();
    }

    #[test]
    fn what_is_asked_out_of_turn_is_refused_and_the_next_call_is_served() {
        let (mut peer, served) = peer();
        assert!(peer.fill(3, 1).is_err());
        assert!(peer.end().is_err());
        let endless = Shape {
            pieces: u32::MAX,
            piece: 1 << 30,
            ..SHAPE
        };
        assert!(peer.open(ONE, endless).is_err());
        let foreign = peer.open_foreign(None, SHAPE).map(|_| ()).unwrap_err();
        assert!(foreign.to_string().contains("of this machine"), "{foreign}");
        for _ in 1..MOST_OPEN {
            peer.open(ONE, SHAPE).unwrap();
        }
        let full = peer.open(ONE, SHAPE).map(|_| ()).unwrap_err();
        assert!(full.to_string().contains("no more"), "{full}");
        peer.close_all().unwrap();
        peer.open(ONE, SHAPE).unwrap();
        drop(peer);
        served.join().unwrap().unwrap();
    }
}
