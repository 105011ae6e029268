//! Pushes: a consumer grants pages, a producer invites it to pull into them.

use std::{collections::BTreeSet, sync::Arc};

use super::{Action, LinkId, Node, Reason, link::LinkState, message::Message, timers::Timer};
use crate::{
    limits::{MAX_ENDED, MAX_GRANTS},
    protocol::handle::{Handle, HandleFields, HandleKind},
};

/// What is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "callers write these out")]
pub struct GrantSpec {
    /// Its number: not 0, the same on all nodes of the engine, and never used again in this epoch.
    pub number: u64,
    /// Digest of its [`page_set`](crate::protocol::handle::page_set).
    pub pages: [u8; 16],
    /// Tokens that there is room for.
    pub tokens: u32,
    /// How long it waits for an invitation.
    pub lease_ns: u64,
    /// The only engine that may push, if there is one.
    pub bound: Option<String>,
}

#[derive(Debug)]
pub(super) struct Grant {
    spec: GrantSpec,
    /// The offer that is to be pulled, and who invited.
    invited: Option<(Handle, LinkId)>,
}

/// Where an offer is pushed to.
#[derive(Debug)]
pub(super) struct Push {
    /// Handle of the grant.
    grant: Handle,
    /// The nodes of its engine that are asked.
    nodes: BTreeSet<u32>,
}

impl Node {
    /// Grants pages to whoever pushes with the handle.
    ///
    /// # Errors
    ///
    /// If the number is 0, in use or was, a limit is reached, or the name in `bound` cannot be that of an engine.
    pub fn grant(&mut self, spec: GrantSpec, now_ns: u64, unix_ms: u64) -> Result<Handle, String> {
        self.at(now_ns);
        let number = spec.number;
        if number == 0
            || self.grants.contains_key(&number)
            || self.ended_grants.get(number).is_some()
        {
            return Err(format!(
                "grant {number} was made already, or is 0; numbers are never used again"
            ));
        }
        if self.grants.len() >= MAX_GRANTS {
            return Err(format!("{MAX_GRANTS} grants wait; revoke some"));
        }
        let fields = HandleFields {
            kind: HandleKind::Grant,
            engine: self.config.engine.clone(),
            epoch: self.config.epoch,
            number,
            pages: spec.pages,
            tokens: spec.tokens,
            expires_unix_ms: unix_ms.saturating_add(spec.lease_ns / 1_000_000),
            bound: spec.bound.clone(),
        };
        let handle = Handle::seal(fields, &self.config.key).map_err(|error| error.to_string())?;
        self.timers.set(
            Timer::Grant(number),
            self.now_ns.saturating_add(spec.lease_ns),
        );
        self.grants.insert(
            number,
            Grant {
                spec,
                invited: None,
            },
        );
        self.counters.grants += 1;
        Ok(handle)
    }

    /// Takes a grant back that no transfer has taken yet.
    pub fn revoke(&mut self, grant: u64, now_ns: u64) {
        self.at(now_ns);
        self.return_grant(grant, Reason::Withdrawn, "the grant was taken back");
    }

    /// Answers [`Action::Invited`]: there will be no pull.
    pub fn decline(&mut self, grant: u64, reason: Reason, why: &str, now_ns: u64) {
        self.at(now_ns);
        self.return_grant(grant, reason, why);
    }

    /// Invites the engine with a grant to pull an offer into it. `ranks` are those of its ranks that the plan gives something.
    ///
    /// # Errors
    ///
    /// Why it cannot be: [`Action::Declined`] tells what the other side says.
    pub fn push(
        &mut self,
        offer: u64,
        grant: &Handle,
        ranks: &[u32],
        now_ns: u64,
        unix_ms: u64,
    ) -> Result<(), (Reason, String)> {
        self.at(now_ns);
        let said = grant.fields();
        if said.kind != HandleKind::Grant {
            return Err((
                Reason::Forged,
                "the handle is of an offer; a push needs a grant's".into(),
            ));
        }
        if unix_ms > said.expires_unix_ms.saturating_add(self.config.skew_ms) {
            return Err((Reason::Expired, "the grant has expired".into()));
        }
        if said
            .bound
            .as_ref()
            .is_some_and(|bound| *bound != self.config.engine)
        {
            return Err((Reason::Elsewhere, "the grant is for another engine".into()));
        }
        let Some(&peer) = self.by_name.get(said.engine.as_str()) else {
            return Err((Reason::Lost, format!("no node of {} is known", said.engine)));
        };
        if self.is_retired(peer, said.epoch) {
            return Err((
                Reason::Restarted,
                format!("{} has restarted since", said.engine),
            ));
        }
        let mut nodes = BTreeSet::new();
        for &rank in ranks {
            let node = self.peers[peer].node_of(rank);
            nodes.insert(node.ok_or_else(|| {
                (
                    Reason::Lost,
                    format!("no node of {} holds rank {rank}", said.engine),
                )
            })?);
        }
        let Some(this) = self
            .offers
            .get_mut(&offer)
            .filter(|this| this.ending.is_none())
        else {
            return Err((Reason::UnknownOffer, format!("there is no offer {offer}")));
        };
        let before = this.push.replace(Push {
            grant: grant.clone(),
            nodes: nodes.clone(),
        });
        self.end_push(offer, before);
        for node in nodes {
            self.push_to(peer, node, offer);
        }
        Ok(())
    }

    /// Nodes that an offer was to be pushed to need not be linked to for it any more.
    pub(super) fn end_push(&mut self, offer: u64, push: Option<Push>) {
        if let Some(Push { grant, nodes }) = push.filter(|_| !self.config.faults.push_kept) {
            self.pushes_not(&grant.fields().engine, &nodes, offer);
        }
    }

    pub(super) fn push_on(&mut self, offer: u64, link: LinkId) {
        let Some(this) = self.offers.get(&offer).filter(|this| this.ending.is_none()) else {
            return;
        };
        let Some(Push { grant, .. }) = &this.push else {
            return;
        };
        let fields = HandleFields {
            kind: HandleKind::Offer,
            engine: self.config.engine.clone(),
            epoch: self.config.epoch,
            number: offer,
            pages: this.spec.pages,
            tokens: this.spec.tokens,
            // The grant's time is the one that counts.
            expires_unix_ms: grant.fields().expires_unix_ms,
            bound: Some(grant.fields().engine.clone()),
        };
        let Ok(handle) = Handle::seal(fields, &self.config.key) else {
            return;
        };
        let (grant, offer) = (grant.as_bytes().to_vec(), handle.as_bytes().to_vec());
        self.send(link, Message::Push { grant, offer });
    }

    pub(super) fn pushed(&mut self, link: LinkId, grant: &[u8], offer: &[u8]) {
        let Some((peer, _)) = self.links.get(&link).and_then(|this| this.peer) else {
            return;
        };
        let handle = match Handle::from_bytes(offer) {
            Ok(handle)
                if *handle.fields().engine == *self.peers[peer].name
                    && handle.fields().kind == HandleKind::Offer =>
            {
                handle
            }
            _ => {
                return self.broke(
                    link,
                    "Push of what is no offer of the engine that pushes".into(),
                );
            }
        };
        match self.invitation(peer, grant, &handle) {
            Err((reason, why)) => {
                let offer = handle.fields().number;
                self.send(link, Message::Decline { offer, reason, why });
            }
            // Each node of the producer says it.
            Ok(None) => {}
            Ok(Some(grant)) => {
                if let Some(this) = self.grants.get_mut(&grant) {
                    this.invited = Some((handle.clone(), link));
                }
                let engine = Arc::clone(&self.peers[peer].name);
                self.actions.push_back(Action::Invited {
                    grant,
                    engine,
                    handle,
                });
            }
        }
    }

    /// The grant that an invitation is for, unless it came before.
    fn invitation(
        &self,
        peer: usize,
        grant: &[u8],
        offer: &Handle,
    ) -> Result<Option<u64>, (Reason, String)> {
        let grant =
            Handle::from_bytes(grant).map_err(|error| (Reason::Forged, error.to_string()))?;
        let said = grant.fields();
        if said.engine != self.config.engine || said.kind != HandleKind::Grant {
            return Err((
                Reason::Elsewhere,
                format!("a grant of {}; this is {}", said.engine, self.config.engine),
            ));
        }
        if said.epoch != self.config.epoch {
            return Err((Reason::Restarted, "consumer restarted".into()));
        }
        if !grant.is_sealed_by(&self.config.key) {
            return Err((Reason::Forged, "the seal is not this engine's".into()));
        }
        if said
            .bound
            .as_ref()
            .is_some_and(|bound| **bound != *self.peers[peer].name)
        {
            return Err((Reason::Elsewhere, "the grant is for another engine".into()));
        }
        if self.is_retired(peer, offer.fields().epoch) {
            return Err((Reason::Restarted, "producer restarted".into()));
        }
        let number = said.number;
        let Some(this) = self.grants.get(&number) else {
            return match self.ended_grants.get(number) {
                // Other nodes of the producer said it before.
                Some(Reason::Consumed)
                    if self.taken.get(&number) == Some(&offer.fields().number) =>
                {
                    Ok(None)
                }
                Some(reason) => Err((reason, format!("grant {number} has ended"))),
                None => Err((Reason::UnknownOffer, format!("there is no grant {number}"))),
            };
        };
        if this.spec.pages != said.pages {
            return Err((Reason::Reused, format!("grant {number} has other pages")));
        }
        match &this.invited {
            None => Ok(Some(number)),
            Some((before, _)) if before.fields().number == offer.fields().number => Ok(None),
            Some(_) => Err((
                Reason::Busy,
                format!("another offer is pulled into grant {number}"),
            )),
        }
    }

    pub(super) fn push_declined(&mut self, link: LinkId, offer: u64, reason: Reason, why: String) {
        let Some((peer, node)) = self.links.get(&link).and_then(|this| this.peer) else {
            return;
        };
        let engine = Arc::clone(&self.peers[peer].name);
        let anyone = self.config.faults.decline_unchecked;
        // Each node of the consumer may say it, and one may say it after the offer was pushed elsewhere.
        let asked = |push: &Push| {
            anyone || (*push.grant.fields().engine == *engine && push.nodes.contains(&node))
        };
        let Some(push) =
            { self.offers.get_mut(&offer) }.and_then(|this| this.push.take_if(|push| asked(push)))
        else {
            return self.counters.late += 1;
        };
        self.end_push(offer, Some(push));
        self.actions.push_back(Action::Declined {
            offer,
            engine,
            reason,
            why,
        });
    }

    /// A transfer takes the pages of a grant over.
    pub(super) fn take_grant(&mut self, grant: u64, offer: u64) -> Result<(), String> {
        if self.grants.remove(&grant).is_none() {
            return Err(format!(
                "there is no grant {grant}, or a transfer has taken it"
            ));
        }
        self.timers.clear(Timer::Grant(grant));
        self.ended_grants.add(grant, Reason::Consumed);
        self.taken.insert(grant, offer);
        while self.taken.len() > MAX_ENDED {
            self.taken.pop_first();
        }
        Ok(())
    }

    fn return_grant(&mut self, grant: u64, reason: Reason, why: &str) {
        let Some(this) = self.grants.remove(&grant) else {
            return;
        };
        self.timers.clear(Timer::Grant(grant));
        self.ended_grants.add(grant, reason);
        if let Some((handle, link)) = this.invited
            && self.link_state(link) == Some(LinkState::Ready)
        {
            let (offer, why) = (handle.fields().number, why.to_owned());
            self.send(link, Message::Decline { offer, reason, why });
        }
        self.actions.push_back(Action::Returned { grant, reason });
    }

    pub(super) fn grant_due(&mut self, grant: u64) {
        self.return_grant(grant, Reason::Expired, "the grant has expired");
    }
}
