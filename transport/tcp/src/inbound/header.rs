//! What a header announces.

use moai_transport::wire::{HEADER_BYTES, Header, WireError};
use moai_transport::{Batch, Closed, Landing, Unauthenticated, limits};

use super::{Context, Frame, Halt, Inbound, Owner, Role, Step, is_tls, rejected};
use crate::limits::COPIES;
use crate::target::{Dues, done, expect_data, joined};

impl Inbound {
    /// Looks at a header that has arrived.
    pub(super) fn begin(
        &mut self,
        owner: Owner,
        dues: &mut Dues,
        context: &mut Context<'_>,
    ) -> Result<Step, Halt> {
        let Owner { peer, role } = owner;
        let buffered = &context.buffer[self.start..self.end];
        // Buffers for device memory are bounded by this alone.
        if dues.copies_in >= COPIES {
            return Err(Halt::Choked);
        }
        let Some(header) = buffered.first_chunk::<HEADER_BYTES>() else {
            return Ok(Step::Wait);
        };
        let header = Header::decode(header).map_err(|error| match is_tls(header) {
            true => Closed::Unauthenticated(Unauthenticated::Secured),
            false => Closed::Protocol(error),
        })?;
        if role == Role::Unknown {
            return Err(match header {
                Header::Join(lane) if lane.lane > 0 => {
                    self.start += HEADER_BYTES;
                    Halt::Known(Some(lane))
                }
                _ => Halt::Known(None),
            });
        }
        self.start += HEADER_BYTES;
        self.filled = 0;
        let large = header.payload_bytes() as usize >= limits::READ_BUFFER_BYTES;
        self.ahead = if large {
            limits::READ_AHEAD_BYTES
        } else {
            limits::READ_BUFFER_BYTES
        };
        self.frame = match header {
            // Frames of the two-sided kinds are in order, on one lane.
            Header::Message { .. } | Header::Batch(_) if matches!(role, Role::Further { .. }) => {
                return Err(Closed::Protocol(WireError::Field {
                    field: "lane",
                    what: "message or batch",
                    seen: 1,
                    expected: "0",
                })
                .into());
            }
            Header::Message { bytes } => Frame::Message { bytes },
            Header::Put(access) => Frame::List {
                access,
                is_put: true,
            },
            Header::Get(access) => Frame::List {
                access,
                is_put: false,
            },
            Header::Data(Batch { id, bytes }) => {
                let side = owner.side();
                expect_data(context.one_sided, side, id, bytes)?.into()
            }
            Header::Done { id, refusal } => {
                let side = owner.side();
                let one_sided = &mut *context.one_sided;
                done(one_sided, side, id, refusal, dues, context.stats)?;
                self.frame = Frame::Header;
                return Ok(Step::On);
            }
            Header::Join(lane) => {
                let incoming = match role {
                    Role::First { incoming, .. } => Some(incoming),
                    _ => None,
                };
                joined(context.one_sided, owner.side(), lane, incoming, dues)?;
                self.frame = Frame::Header;
                return Ok(Step::On);
            }
            Header::Batch(batch) => {
                context.callbacks += 1;
                let landing = context.handler.landing(peer, batch);
                match landing.map_err(rejected)? {
                    Landing::Staged => Frame::Staged { batch },
                    Landing::Direct => Frame::Direct {
                        batch,
                        covered: 0,
                        received: 0,
                        next: 0,
                    },
                }
            }
        };
        self.pieces.clear();
        Ok(Step::On)
    }
}
