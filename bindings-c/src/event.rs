//! Events, as C reads them.

use std::ffi::{CString, c_char};

use moai_fabric::collectives::{
    protocol::node::{Failure as Why, Reason},
    transfer::{Ended, Event, Report},
};

use crate::{
    abi, abi_free,
    arguments::{Fill, Out},
    descriptor::absent,
    failure::{Failure, Status, c_text},
    handle::{Handle, Object},
    structs::{Dirty, EventFields},
};

/// What happened, in the forms in which it is asked for.
pub(crate) struct Happened {
    fields: EventFields,
    engine: Option<CString>,
    message: Option<CString>,
    handle: Option<CString>,
    report: Option<CString>,
    /// Rank, pages and group.
    dirty: Vec<(u32, Vec<u32>, CString)>,
}

impl Object for Happened {
    const KIND: u8 = 0x86;
    const NAME: &'static str = "moai_event";
}

const NO_OUTCOME: u32 = 0;
const COMMITTED: u32 = 1;
const FAILED: u32 = 2;
const CANCELLED: u32 = 3;

/// Why a transfer failed, by the numbers that engines tell each other.
fn reason(why: &Why) -> Reason {
    match why {
        Why::Deadline { .. } => Reason::Deadline,
        Why::Lost { .. } => Reason::Lost,
        Why::Restarted { .. } => Reason::Restarted,
        Why::Refused { reason, .. } => *reason,
        Why::Protocol { .. } => Reason::Protocol,
        Why::Digest { .. } => Reason::Digest,
        Why::NoPath { .. } | Why::Local { .. } => Reason::Local,
        _ => Reason::Other,
    }
}

impl Happened {
    fn of(kind: u32) -> Self {
        Self {
            fields: EventFields {
                size: size_of::<EventFields>() as u32,
                version: 1,
                kind,
                outcome: NO_OUTCOME,
                transfer: 0,
                number: 0,
                epoch: 0,
                node: 0,
                layer: 0,
                rank: 0,
                peer_rank: 0,
                reason: 0,
                fenced: 0,
                dirty_count: 0,
                reserved: 0,
            },
            engine: None,
            message: None,
            handle: None,
            report: None,
            dirty: Vec::new(),
        }
    }

    fn number(mut self, number: u64) -> Self {
        self.fields.number = number;
        self
    }

    fn transfer(mut self, transfer: u64) -> Self {
        self.fields.transfer = transfer;
        self
    }

    fn because(mut self, reason: Reason) -> Self {
        self.fields.reason = reason as u32;
        self
    }

    fn engine(mut self, engine: &str) -> Self {
        self.engine = Some(c_text(engine));
        self
    }

    fn message(mut self, message: impl Into<Vec<u8>>) -> Self {
        self.message = Some(c_text(message));
        self
    }

    fn report(mut self, report: &Report) -> Self {
        let json = serde_json::to_string(report);
        // Numbers, texts and lists of these can always be written.
        self.report = json.ok().map(c_text);
        self.fields.rank = report.rank;
        self.fields.outcome = match &report.ended {
            Ended::Committed => COMMITTED,
            Ended::Failed { failure, .. } => {
                self.fields.reason = reason(failure) as u32;
                self.message = Some(c_text(failure.to_string()));
                FAILED
            }
            Ended::Cancelled { .. } => {
                self.fields.reason = Reason::Cancelled as u32;
                CANCELLED
            }
        };
        let dirty = report.dirty().iter();
        self.dirty = dirty
            .map(|dirty| {
                (
                    dirty.rank,
                    dirty.pages.clone(),
                    c_text(dirty.group.as_str()),
                )
            })
            .collect();
        self.fields.dirty_count = self.dirty.len() as u32;
        self
    }

    /// `None` for what a later fabric may tell and this header has no number for.
    pub(crate) fn new(event: Event) -> Option<Self> {
        Some(match event {
            Event::PeerUp {
                engine,
                node,
                epoch,
            } => {
                let mut this = Self::of(1).engine(&engine);
                (this.fields.node, this.fields.epoch) = (node, epoch);
                this
            }
            Event::PeerLost { engine, node, why } => {
                let mut this = Self::of(2).engine(&engine).message(why);
                this.fields.node = node;
                this
            }
            Event::Superseded { engine } => Self::of(3).engine(&engine),
            Event::Layer { transfer, layer } => {
                let mut this = Self::of(4).transfer(transfer.0);
                this.fields.layer = layer;
                this
            }
            Event::Ended {
                transfer,
                report,
                fenced,
            } => {
                let mut this = Self::of(5).transfer(transfer.0).report(&report);
                this.fields.fenced = fenced.into();
                this
            }
            Event::Fenced { transfer } => Self::of(6).transfer(transfer.0),
            Event::Invited {
                grant,
                transfer,
                handle,
            } => {
                let mut this = Self::of(7).number(grant).transfer(transfer.0);
                this.handle = Some(c_text(handle.to_string()));
                this
            }
            Event::Returned { grant, reason } => Self::of(8).number(grant).because(reason),
            Event::Released {
                offer,
                reason,
                report,
            } => Self::of(9).number(offer).report(&report).because(reason),
            Event::Quarantined { offer, reason } => Self::of(10).number(offer).because(reason),
            Event::Served {
                offer,
                engine,
                ranks,
                failure,
            } => {
                let mut this = Self::of(11).number(offer).engine(&engine);
                (this.fields.rank, this.fields.peer_rank) = ranks;
                this.fields.outcome = match failure {
                    None => COMMITTED,
                    Some((reason, why)) => {
                        this = this.because(reason).message(why);
                        FAILED
                    }
                };
                this
            }
            Event::Declined {
                offer,
                engine,
                reason,
                why,
            } => { Self::of(12).number(offer).engine(&engine) }
                .because(reason)
                .message(why),
            _ => return None,
        })
    }
}

/// Gives a text out that lasts as long as the event.
fn give(text: &Option<CString>, field: &str, out: Out<*const c_char>) -> Result<(), Failure> {
    let place = out.place(field)?;
    let text = text
        .as_ref()
        .ok_or_else(|| Failure::new(Status::Absent, "the event has none").at(field))?;
    place.write(text.as_ptr());
    Ok(())
}

abi! {
    fn moai_event_read(event: Handle<Happened>, fields: Fill<EventFields>) {
        let event = event.get("event")?;
        fields.place("fields")?.write(event.fields);
        Ok(())
    }

    fn moai_event_engine(event: Handle<Happened>, engine: Out<*const c_char>) {
        give(&event.get("event")?.engine, "engine", engine)
    }

    fn moai_event_message(event: Handle<Happened>, message: Out<*const c_char>) {
        give(&event.get("event")?.message, "message", message)
    }

    fn moai_event_handle(event: Handle<Happened>, handle: Out<*const c_char>) {
        give(&event.get("event")?.handle, "handle", handle)
    }

    fn moai_event_report(event: Handle<Happened>, json: Out<*const c_char>) {
        give(&event.get("event")?.report, "json", json)
    }

    fn moai_event_dirty(event: Handle<Happened>, index: u32, dirty: Fill<Dirty>) {
        let event = event.get("event")?;
        let place = dirty.place("dirty")?;
        let all = &event.dirty;
        let (rank, pages, group) = { all.get(index as usize) }.ok_or_else(|| absent("index", index, all.len()))?;
        place.write(Dirty {
            size: size_of::<Dirty>() as u32,
            version: 1,
            rank: *rank,
            page_count: pages.len() as u32,
            pages: pages.as_ptr(),
            group: group.as_ptr(),
        });
        Ok(())
    }
}

abi_free! {
    fn moai_event_free(event: Handle<Happened>);
}
