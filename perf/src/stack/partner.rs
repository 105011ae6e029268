//! The other half: answers, and gives its memory.

use std::{net::IpAddr, time::Duration};

use moai_memory::Hold;

use super::{
    Stack,
    end::{End, HELLO, Mode, OVER},
};
use crate::{
    failure::Failure,
    mover::{Door, Partner, Step},
    pattern::Pattern,
    shapes::{Shape, Side},
};

/// One side of a connection through the stack.
#[derive(Debug)]
pub(crate) struct StackPartner(End);

impl StackPartner {
    /// Listens, on an address of this machine.
    pub(crate) fn open(at: IpAddr, stack: Stack, shape: Shape) -> Result<(Self, Door), Failure> {
        let end = End::open(stack, Side::There, shape, Some(at))?;
        let addresses = end
            .interface
            .addresses()
            .iter()
            .map(ToString::to_string)
            .collect();
        Ok((Self(end), Door::Addresses(addresses)))
    }

    fn echo(&mut self, count: u32, bytes: u32) -> Result<(), Failure> {
        let message = vec![7; bytes as usize];
        let end = &mut self.0;
        for answered in 0..count {
            end.until("a ping", |end| {
                Ok((end.heard.count > answered).then_some(()))
            })?;
            end.send(&message)?;
        }
        end.poll(Duration::ZERO)
    }
}

impl Partner for StackPartner {
    fn join(&mut self) -> Result<(), Failure> {
        let end = &mut self.0;
        let hello = end.hear()?;
        if hello != HELLO {
            return Err(Failure::Lost(format!("the peer began with {hello:?}")));
        }
        let key = end.key()?;
        end.send(&key)?;
        end.poll(Duration::ZERO)
    }

    fn fill(&mut self, pattern: Pattern) -> Result<(), Failure> {
        self.0.fill(pattern)
    }

    fn step(&mut self, step: Step, _is_over: &dyn Fn() -> bool) -> Result<(), Failure> {
        let end = &mut self.0;
        end.heard.count = 0;
        match step {
            Step::Put | Step::Get | Step::Rate => {
                let heard = end.hear()?;
                if heard != OVER {
                    return Err(Failure::Lost(format!("a step ended with {heard:?}")));
                }
                Ok(())
            }
            Step::Send => {
                end.heard.mode = Mode::Pieces;
                let pieces = end.shape.pieces;
                let all = end.until("every piece", |end| {
                    Ok((end.heard.count == pieces).then_some(()))
                });
                end.heard.mode = Mode::Control;
                all?;
                end.send(OVER)?;
                end.poll(Duration::ZERO)
            }
            Step::Ping { count, bytes } => {
                end.heard.mode = Mode::Count;
                let echoed = self.echo(count, bytes);
                self.0.heard.mode = Mode::Control;
                echoed
            }
        }
    }

    fn check(&mut self, pattern: Pattern) -> Result<(), Failure> {
        self.0.check(pattern)
    }

    fn memory(&self) -> Option<Hold> {
        self.0.memory()
    }
}
