//! Frames of puts or gets, on their way to regions.

use moai_memory::Work;

use super::{Context, Frame, Halt, Inbound, Owner, Step, collect};
use crate::target::{Dues, admit_get, admit_put};

impl Inbound {
    /// Takes in a put, get or answer, as far as it has arrived.
    pub(super) fn place(
        &mut self,
        owner: Owner,
        dues: &mut Dues,
        context: &mut Context<'_>,
    ) -> Result<Step, Halt> {
        let buffered = &context.buffer[self.start..self.end];
        match &mut self.frame {
            Frame::List { access, is_put } => {
                let (access, is_put) = (*access, *is_put);
                let whole = access.list_bytes as usize;
                let taken = buffered.len().min(whole - self.filled);
                let from_buffer = &buffered[..taken];
                let Some(list) = collect(&mut self.collected, &mut self.filled, from_buffer, whole)
                else {
                    self.start += taken;
                    return Ok(Step::Wait);
                };
                let regions = context.handler.regions();
                let one_sided = &mut *context.one_sided;
                if is_put {
                    self.frame = match admit_put(one_sided, access, list, regions) {
                        Ok(placing) => placing.into(),
                        Err(why) => Frame::Drop {
                            left: access.bytes,
                            why,
                        },
                    };
                } else {
                    admit_get(one_sided, access, list, regions, dues, context.stats);
                    self.frame_done();
                }
                self.start += taken;
                self.filled = 0;
            }
            Frame::Copy(placing) => {
                let whole = placing.left as usize;
                let taken = buffered.len().min(whole - self.filled);
                let from_buffer = &buffered[..taken];
                self.start += taken;
                let Some(payload) =
                    collect(&mut self.collected, &mut self.filled, from_buffer, whole)
                else {
                    return Ok(Step::Wait);
                };
                let mut job = context.one_sided.copies.job(Work::FromHost);
                if self.filled == whole {
                    std::mem::swap(&mut self.collected, &mut job.buffer);
                    job.buffer.truncate(whole);
                } else {
                    job.buffer.clear();
                    job.buffer.extend_from_slice(payload);
                }
                context.stats.copied_bytes += whole as u64;
                if let Frame::Copy(placing) = std::mem::take(&mut self.frame) {
                    let regions = context.handler.regions();
                    let one_sided = &mut *context.one_sided;
                    let begun = placing.begin_copy(job, owner, one_sided, regions, dues);
                    if let Err(why) = begun {
                        why.dropped(one_sided, owner.side(), dues, context.stats);
                    }
                }
                self.frame_done();
            }
            Frame::Place(placing) => {
                let taken = buffered.len().min(placing.left as usize);
                if taken > 0 {
                    let regions = context.handler.regions();
                    let from = &buffered[..taken];
                    if let Err(why) = placing.place(from, context.one_sided, regions) {
                        self.drop_rest(why, context.one_sided);
                        return Ok(Step::On);
                    }
                    context.stats.copied_bytes += taken as u64;
                    self.start += taken;
                }
                if placing.left > 0 {
                    return Ok(Step::Wait);
                }
                if let Frame::Place(placing) = std::mem::take(&mut self.frame) {
                    let side = owner.side();
                    placing.finish(context.one_sided, side, dues, context.stats);
                }
                self.frame_done();
            }
            Frame::Drop { left, why } => {
                let taken = buffered.len().min(*left as usize);
                self.start += taken;
                *left -= taken as u32;
                if *left > 0 {
                    return Ok(Step::Wait);
                }
                why.dropped(context.one_sided, owner.side(), dues, context.stats);
                self.frame_done();
            }
            _ => return Ok(Step::Wait),
        }
        Ok(Step::On)
    }
}
