//! The half that posts operations and takes the time.

use std::time::{Duration, Instant};

use moai_memory::Hold;
use moai_transport::{Pieces, Posted};

use super::{
    Stack,
    end::{End, HELLO, Mode, OVER, TOKEN, broke, parse},
};
use crate::{
    failure::Failure,
    histogram::Histogram,
    mover::{Door, Mover, Step},
    pattern::Pattern,
    shapes::{Shape, Side},
};

/// One side of a connection through the stack.
#[derive(Debug)]
pub(crate) struct StackMover {
    end: End,
    there: Vec<u64>,
    /// The peer's memory, once its key has come.
    remote: Option<u32>,
}

impl StackMover {
    /// Connects to a partner. Its key comes when it runs.
    pub(crate) fn open(stack: Stack, door: &Door, shape: Shape) -> Result<Self, Failure> {
        let Door::Addresses(addresses) = door else {
            return Err(Failure::Lost(format!(
                "the stack needs an address, not {door:?}"
            )));
        };
        let Some(address) = addresses.first() else {
            return Err(Failure::Lost("the other process has no address".to_owned()));
        };
        let mut end = End::open(stack, Side::Here, shape, None)?;
        let peer = end.interface.connect(&parse(address)?).map_err(broke)?;
        end.heard.peer = Some(peer);
        end.send(HELLO)?;
        end.poll(Duration::ZERO)?;
        Ok(Self {
            end,
            there: shape.offsets(Side::There),
            remote: None,
        })
    }

    /// What remote pieces are named by.
    fn remote(&mut self) -> Result<u32, Failure> {
        if let Some(remote) = self.remote {
            return Ok(remote);
        }
        let key = self.end.hear()?;
        let peer = self.end.peer()?;
        let remote = self.end.interface.import(peer, &key).map_err(broke)?;
        self.remote = Some(remote);
        Ok(remote)
    }

    /// Moves the pieces in one operation, and says how long it took until they were placed.
    fn at_once(&mut self, is_put: bool, remote: u32) -> Result<Duration, Failure> {
        let pieces = self.end.own.len();
        let start = Instant::now();
        if self.post(is_put, remote, 0, pieces)? == Posted::Done {
            return Ok(start.elapsed());
        }
        self.end.until("a completion", |end| {
            Ok((end.completions()? > 0).then_some(()))
        })?;
        Ok(start.elapsed())
    }

    /// Moves each piece in an operation of its own.
    fn one_by_one(&mut self, remote: u32) -> Result<Duration, Failure> {
        let start = Instant::now();
        let mut in_flight = 0;
        for index in 0..self.end.own.len() {
            if self.post(true, remote, index, index + 1)? != Posted::Done {
                in_flight += 1;
            }
            in_flight -= self.end.completions()?;
        }
        self.end.until("completions", |end| {
            in_flight -= end.completions()?;
            Ok((in_flight == 0).then_some(()))
        })?;
        Ok(start.elapsed())
    }

    fn post(
        &mut self,
        is_put: bool,
        remote: u32,
        from: usize,
        to: usize,
    ) -> Result<Posted, Failure> {
        let bytes = u32::try_from(self.end.shape.piece)
            .map_err(|_| Failure::Input("a piece has less than 4 GiB".to_owned()))?;
        let peer = self.end.peer()?;
        loop {
            let End {
                interface,
                heard,
                own,
                ..
            } = &mut self.end;
            let local = [pieces(0, bytes, &own[from..to])];
            let remote = [pieces(remote, bytes, &self.there[from..to])];
            let posted = if is_put {
                interface.put(&mut heard.memory, peer, &local, &remote, TOKEN)
            } else {
                interface.get(&mut heard.memory, peer, &local, &remote, TOKEN)
            };
            match posted.map_err(broke)? {
                Posted::Busy => self.end.poll(Duration::from_secs(1))?,
                posted => return Ok(posted),
            }
        }
    }

    fn ping(&mut self, count: u32, bytes: u32, pings: &mut Histogram) -> Result<Duration, Failure> {
        let message = vec![7; bytes as usize];
        self.end.heard.mode = Mode::Count;
        let whole = Instant::now();
        for _ in 0..count {
            self.end.heard.count = 0;
            let start = Instant::now();
            self.end.send(&message)?;
            self.end
                .until("an answer", |end| Ok((end.heard.count > 0).then_some(())))?;
            pings.record(start.elapsed());
        }
        self.end.heard.mode = Mode::Control;
        Ok(whole.elapsed())
    }

    /// Sends every piece, until the other side says that it has them.
    fn send_all(&mut self) -> Result<Duration, Failure> {
        let start = Instant::now();
        for index in 0..self.end.own.len() {
            self.end.send_piece(index)?;
        }
        self.end.hear()?;
        Ok(start.elapsed())
    }
}

fn pieces(region: u32, bytes: u32, offsets: &[u64]) -> Pieces<'_> {
    Pieces {
        region,
        bytes,
        count: 1,
        stride: 0,
        offsets,
    }
}

impl Mover for StackMover {
    fn name(&self) -> String {
        self.end.name().to_owned()
    }

    fn fill(&mut self, pattern: Pattern) -> Result<(), Failure> {
        self.end.fill(pattern)
    }

    fn step(&mut self, step: Step, pings: &mut Histogram) -> Result<Duration, Failure> {
        let remote = self.remote()?;
        let took = match step {
            Step::Put => self.at_once(true, remote)?,
            Step::Get => self.at_once(false, remote)?,
            Step::Rate => self.one_by_one(remote)?,
            Step::Send => return self.send_all(),
            Step::Ping { count, bytes } => return self.ping(count, bytes, pings),
        };
        self.end.send(OVER)?;
        self.end.poll(Duration::ZERO)?;
        Ok(took)
    }

    fn check(&mut self, pattern: Pattern) -> Result<(), Failure> {
        self.end.check(pattern)
    }

    fn memory(&self) -> Option<Hold> {
        self.end.memory()
    }
}
