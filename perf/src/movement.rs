//! `moai-perf put`, `get`, `send`, `rate`, `latency` and `bounds`: each way beside its bounds.

use crate::{
    args::{Bounds, Movement, Run, Transport},
    bounds::{Memcpy, are_paced},
    failure::Failure,
    fingerprint::Fingerprint,
    measure::interleave,
    mover::{Drive, MOST_PING, Pacing, Step, Way},
    peer::{self, Opened, Peer},
    plot,
    report::Report,
    rows::{Row, heading},
    shapes::Shape,
    subject,
};

/// Pieces moved by the stack, in one direction.
pub(crate) fn movement(command: &Movement, step: Step) -> Result<(), Failure> {
    let shapes = command.run.shapes().map_err(Failure::Input)?;
    let Some(mut session) = Session::begin(&command.run)? else {
        return Ok(());
    };
    session.report.show(heading(step))?;
    for shape in shapes {
        session.held(command, step, shape)?;
    }
    session.finish()
}

/// Round trips by the stack.
pub(crate) fn latency(command: &Movement) -> Result<(), Failure> {
    let pings = pings(&command.run)?;
    let Some(mut session) = Session::begin(&command.run)? else {
        return Ok(());
    };
    session.report.show(heading(pings[0].0))?;
    for (step, shape) in pings {
        session.held(command, step, shape)?;
    }
    session.finish()
}

/// Bounds alone.
pub(crate) fn bounds(command: &Bounds) -> Result<(), Failure> {
    let shapes = command.run.shapes().map_err(Failure::Input)?;
    let Some(mut session) = Session::begin(&command.run)? else {
        return Ok(());
    };
    session.report.show(heading(Step::Put))?;
    for &shape in &shapes {
        for step in [Step::Put, Step::Get] {
            let mut ways = Vec::new();
            for &lanes in &command.lanes {
                let drive = Drive {
                    lanes,
                    threads: command.threads.min(lanes),
                    pacing: Pacing::System,
                };
                session.sockets(&mut ways, drive, shape)?;
            }
            session.local(&mut ways, step, shape)?;
            session.measure(&mut ways, step, shape)?;
        }
    }
    let pings = ping(&command.run, PING)?;
    session
        .report
        .show(format_args!("\n{}", heading(pings.0)))?;
    let mut ways = Vec::new();
    session.sockets(&mut ways, ONE_LANE, pings.1)?;
    session.measure(&mut ways, pings.0, pings.1)?;
    session.finish()
}

/// Bytes of a message each way, if nothing else is said: a row of one head.
const PING: u64 = 256;

const ONE_LANE: Drive = Drive {
    lanes: 1,
    threads: 1,
    pacing: Pacing::System,
};

/// A step for each size of message, each with the shape that rows tell.
fn pings(run: &Run) -> Result<Vec<(Step, Shape)>, Failure> {
    let sizes = if run.piece.is_empty() {
        &[PING][..]
    } else {
        &run.piece
    };
    sizes.iter().map(|&bytes| ping(run, bytes)).collect()
}

fn ping(run: &Run, bytes: u64) -> Result<(Step, Shape), Failure> {
    let size = u32::try_from(bytes)
        .ok()
        .filter(|bytes| *bytes <= MOST_PING);
    let size = size.ok_or_else(|| {
        Failure::Input(format!(
            "a message of {bytes} B; latency is taken of up to {MOST_PING} B"
        ))
    })?;
    let count = run.pings();
    let shape = Shape {
        piece: bytes,
        pieces: count,
        order: run.order,
        seed: run.seed,
    };
    let shape = shape.checked().map_err(Failure::Input)?;
    Ok((Step::Ping { count, bytes: size }, shape))
}

/// One run of a command: the other process, and the rows so far.
struct Session<'a> {
    run: &'a Run,
    peer: Peer,
    report: Report,
    rows: Vec<Row>,
}

impl<'a> Session<'a> {
    /// Starts or reaches the other process, or is that itself: `None` then, once it is no longer wanted.
    fn begin(run: &'a Run) -> Result<Option<Self>, Failure> {
        if let Some(address) = run.server {
            return peer::serve_at(address).map(|()| None);
        }
        let mut report = Report::new(run.json.as_deref())?;
        if let Some(path) = &run.plot {
            // Found out before anything is measured.
            plot::write(path, "")?;
        }
        let peer = run.client.map_or_else(Peer::start, Peer::at)?;
        report.machine(&Fingerprint::take())?;
        let place = match peer.traceable() {
            Some(_) => "on this machine".to_owned(),
            None => format!("at {}", peer.address()),
        };
        report.show(format_args!(
            "peer     a process {place}; medians of {} rounds, seed {}; GB/s of bytes that arrived\n\n",
            run.rounds().most,
            run.seed
        ))?;
        Ok(Some(Self {
            run,
            peer,
            report,
            rows: Vec::new(),
        }))
    }

    /// One step of the stack, in turn with what it is held against.
    fn held(&mut self, command: &Movement, step: Step, shape: Shape) -> Result<(), Failure> {
        let mut ways = vec![subject::open(&mut self.peer, command, shape)?];
        let is_ping = matches!(step, Step::Ping { .. });
        let sockets = if is_ping { ONE_LANE } else { command.drive() };
        if command.transport == Transport::Shm {
            self.local(&mut ways, step, shape)?;
        }
        if command.transport != Transport::Shm || is_ping {
            self.sockets(&mut ways, sockets, shape)?;
        }
        let rounds = self.run.rounds();
        let measured = interleave(&mut self.peer, &mut ways, step, rounds, self.run.seed)?;
        let (subject, bounds) = measured.split_first().expect("the subject was opened");
        let name = subject::name(command.transport);
        self.add(Row::subject(name, step, &shape, subject, bounds))?;
        self.peer.close_all()
    }

    /// Adds plain sockets, and such as are not paced where the system's are.
    fn sockets(
        &mut self,
        ways: &mut Vec<Opened>,
        drive: Drive,
        shape: Shape,
    ) -> Result<(), Failure> {
        ways.push(self.peer.open(Way::Sockets(drive), shape)?);
        if are_paced(self.peer.address()) {
            let pacing = Pacing::Off;
            let drive = Drive { pacing, ..drive };
            ways.push(self.peer.open(Way::Sockets(drive), shape)?);
        }
        Ok(())
    }

    /// Adds the bounds that there are within a machine.
    fn local(&mut self, ways: &mut Vec<Opened>, step: Step, shape: Shape) -> Result<(), Failure> {
        if self.peer.traceable().is_none() || matches!(step, Step::Ping { .. }) {
            return Ok(());
        }
        ways.push(Opened {
            mover: Box::new(Memcpy::open(shape)?),
            id: None,
        });
        if step == Step::Send {
            return Ok(());
        }
        // Where memory lies decides a third of the speed, so it is the subject's, if there is one that has any.
        match self.peer.open_foreign(ways.first(), shape) {
            Ok(foreign) => ways.push(foreign),
            // Sandboxes refuse it; the other bounds are there all the same.
            Err(Failure::Lost(text)) => {
                self.report.show(format_args!("no process_vm: {text}\n"))?
            }
            Err(failure) => return Err(failure),
        }
        Ok(())
    }

    /// Measures bounds, a row for each.
    fn measure(&mut self, ways: &mut [Opened], step: Step, shape: Shape) -> Result<(), Failure> {
        let rounds = self.run.rounds();
        for measured in interleave(&mut self.peer, ways, step, rounds, self.run.seed)? {
            self.add(Row::bound(step, &shape, &measured))?;
        }
        self.peer.close_all()
    }

    fn add(&mut self, row: Row) -> Result<(), Failure> {
        self.report.show(&row)?;
        self.report.line(&row)?;
        self.rows.push(row);
        Ok(())
    }

    /// Draws what was measured.
    fn finish(self) -> Result<(), Failure> {
        match &self.run.plot {
            Some(path) => plot::write(path, &plot::svg(&self.rows)),
            None => Ok(()),
        }
    }
}
