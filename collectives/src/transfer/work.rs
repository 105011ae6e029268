//! Turns of work: chunks that are sent, and chunks that are copied from pages that are lent.

use std::time::Duration;

use moai_memory::Region;
use moai_transport::Interface;

use super::{
    Network, TURN_BYTES,
    core::Core,
    device::Placing,
    driver::{Driver, Worked},
    pulling::pool,
    serving::Turn,
};
use crate::{
    cost::Way,
    protocol::node::{PartState, Sums},
};

impl<N: Network> Driver<N> {
    /// A turn for everything that goes on.
    pub(super) fn work(&mut self, memory: &mut [Region]) -> Worked {
        let mut worked = Worked::default();
        self.core
            .serve_some(self.network.interface(), memory, &mut worked);
        self.core.settle_devices(&mut worked);
        self.core.copy_some(memory, &mut worked);
        worked
    }

    /// Waits until a device has done something.
    pub(super) fn await_device(&self, limit: Duration) {
        let serving = { self.core.servings.iter() }
            .filter_map(|serving| serving.device.as_ref())
            .find(|device| device.is_busy());
        if let Some(device) = serving {
            return device.wait(limit);
        }
        let parts = self
            .core
            .pullings
            .values()
            .flat_map(|pulling| &pulling.parts);
        let mut placing = parts.filter_map(|part| part.device.as_ref());
        if let Some(device) = placing.find(|device| device.is_busy()) {
            device.wait(limit);
        }
    }
}

impl Worked {
    fn pause(&mut self, pause: Duration) {
        self.pause = Some(self.pause.map_or(pause, |other| other.min(pause)));
    }
}

impl Core {
    fn serve_some(
        &mut self,
        interface: &mut dyn Interface,
        memory: &mut [Region],
        worked: &mut Worked,
    ) {
        let Self {
            node,
            clock,
            links,
            memory: ranks,
            pace,
            offers,
            servings,
            ..
        } = self;
        for serving in servings {
            let (Some(peer), Some(offered)) =
                (links.peer(serving.link), offers.get_mut(&serving.offer))
            else {
                continue;
            };
            let pages = pool(memory, &ranks.rank(serving.runner.pair().source));
            let before = serving.done;
            let turn = serving.turn((interface, peer), pages, pace, &mut offered.report);
            if serving.done > before {
                let now = { offered.started }.map_or(0, |at| at.elapsed().as_nanos() as u64);
                if offered.report.first_ns == 0 {
                    offered.report.first_ns = now;
                }
                offered.report.last_ns = now;
            }
            let told = serving.untold(!matches!(turn, Turn::Did));
            if !told.is_empty() {
                worked.busy = true;
                // Read after the last row of these chunks was.
                let generation = offered.generation(ranks);
                for (first, sums) in told {
                    let sums = Sums {
                        mapped: serving.way == Way::Mapped,
                        first,
                        sums,
                        generation,
                    };
                    node.sent(serving.id, sums, clock.now());
                }
            }
            match turn {
                Turn::Did => worked.busy = true,
                // `writable` ends the wait.
                Turn::All | Turn::Full => {}
                Turn::Pause(pause) => worked.pause(pause),
                Turn::Fetching => worked.awaits_device = true,
                Turn::Failed(why) => {
                    worked.busy = true;
                    node.give_up(serving.id, &why, clock.now());
                }
            }
        }
    }

    /// Takes in what devices have done.
    fn settle_devices(&mut self, worked: &mut Worked) {
        let mut settled = Vec::new();
        for (&transfer, pulling) in &mut self.pullings {
            for (at, part) in (0..).zip(&mut pulling.parts) {
                let Some(device) = &mut part.device else {
                    continue;
                };
                while let Some(placed) = device.completed() {
                    settled.push((transfer, at, placed));
                }
                worked.awaits_device |= Placing::is_busy(device);
            }
        }
        for (transfer, part, placed) in settled {
            worked.busy = true;
            match placed {
                Ok(placed) => self.settle(transfer, part, placed),
                Err(why) => self.device_failed(transfer, &why),
            }
        }
    }

    /// Copies some chunks of pages that are lent.
    fn copy_some(&mut self, memory: &mut [Region], worked: &mut Worked) {
        let Self {
            node,
            clock,
            memory: ranks,
            pace,
            pullings,
            ..
        } = self;
        for (&transfer, pulling) in pullings {
            for at in 0..pulling.parts.len() {
                let mut bytes = 0;
                while bytes < TURN_BYTES
                    && node.part_state(transfer, at as u32) == Some(PartState::Mapped)
                {
                    let part = &mut pulling.parts[at];
                    let Some(borrowed) = &mut part.borrowed else {
                        break;
                    };
                    let Some((index, chunk)) = borrowed.order.next(part.runner.chunks()) else {
                        break;
                    };
                    if let Some(pause) = pace.pause() {
                        worked.pause(pause);
                        break;
                    }
                    if !node.landing(transfer, at as u32, index as u64, chunk.bytes) {
                        break;
                    }
                    borrowed.order.advance();
                    let pages = pool(memory, &ranks.rank(part.runner.pair().target));
                    let (counts, digest) = borrowed.copy.copy_digested(
                        index,
                        &borrowed.regions,
                        pages,
                        &pulling.lent_key,
                    );
                    let [read, ..] = part.runner.row_bytes(index);
                    pace.add(chunk.bytes.into());
                    bytes += read;
                    pulling.report.saturated += counts.saturated;
                    pulling.report.nan += counts.nan;
                    pulling.report.bytes_mapped += read;
                    pulling.report.chunks_mapped += 1;
                    pulling.placed(at, index);
                    node.landed(transfer, at as u32, index as u64, digest, clock.now());
                    worked.busy = true;
                }
            }
        }
    }
}
