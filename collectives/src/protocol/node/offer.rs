//! Offers: a producer keeps a request's pages for whoever has the handle, as long as the lease lasts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    ALL_LAYERS, Action, Node, Reason, ServeId, Trace, push::Push, serve::Serve, timers::Timer,
};
use crate::{
    limits::{MAX_LAYERS, MAX_OFFERS, MAX_PULL_MS},
    protocol::handle::{Handle, HandleFields, HandleKind},
};

/// What is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "callers write these out")]
pub struct OfferSpec {
    /// Its number, the same on all nodes of the engine, and never used again in this epoch.
    pub number: u64,
    /// Digest of its [`page_set`](crate::protocol::handle::page_set).
    pub pages: [u8; 16],
    /// What the pages' generations come to now, as [`Sums::generation`](super::Sums) will be read.
    pub generation: u64,
    /// Tokens of the request.
    pub tokens: u32,
    /// How long the pages are kept without a transfer.
    pub lease_ns: u64,
    /// The only engine that may pull them, if there is one.
    pub bound: Option<String>,
    /// Whether layers become ready one by one; otherwise all is.
    pub progressive: bool,
}

#[derive(Debug)]
pub(super) struct Offer {
    pub(super) spec: OfferSpec,
    pub(super) expires_ns: u64,
    /// Tokens that are written, by layer.
    pub(super) ready: BTreeMap<u32, u32>,
    /// The consumer engine that pulls it.
    pub(super) taker: Option<Arc<str>>,
    /// Its owner keeps it until then; for whoever pulls it is kept longer, but not for ever.
    kept_ns: u64,
    /// Pairs of ranks that will pull from this node, once that is known.
    pub(super) parts: Option<u32>,
    pub(super) committed: BTreeSet<(u32, u32)>,
    /// Parts that are served, those that wait for their fence among them.
    pub(super) live: BTreeMap<(u32, u32), ServeId>,
    pub(super) ending: Option<Reason>,
    quarantined: bool,
    /// The trace that it belongs to.
    pub(super) trace: Option<Trace>,
    /// Where it is pushed to.
    pub(super) push: Option<Push>,
}

impl Node {
    /// Offers a request's pages under a lease. Each node of the engine with a rank that holds some of them does so, under the
    /// same number; the handle of any is good for all.
    ///
    /// # Errors
    ///
    /// If the number is in use or was, a limit is reached, or the name in `bound` cannot be that of an engine.
    pub fn offer(&mut self, spec: OfferSpec, now_ns: u64, unix_ms: u64) -> Result<Handle, String> {
        self.at(now_ns);
        let number = spec.number;
        if self.offers.contains_key(&number) || self.ended_offers.get(number).is_some() {
            return Err(format!(
                "offer {number} was made already; numbers are never used again"
            ));
        }
        if self.offers.len() >= MAX_OFFERS {
            return Err(format!(
                "{MAX_OFFERS} offers are not released; withdraw some"
            ));
        }
        let handle = Handle::seal(
            HandleFields {
                kind: HandleKind::Offer,
                engine: self.config.engine.clone(),
                epoch: self.config.epoch,
                number,
                pages: spec.pages,
                tokens: spec.tokens,
                expires_unix_ms: unix_ms.saturating_add(spec.lease_ns / 1_000_000),
                bound: spec.bound.clone(),
            },
            &self.config.key,
        );
        let handle = handle.map_err(|error| error.to_string())?;
        let mut ready = BTreeMap::new();
        if !spec.progressive {
            ready.insert(ALL_LAYERS, spec.tokens);
        }
        let expires_ns = self.now_ns.saturating_add(spec.lease_ns);
        let offer = Offer {
            spec,
            expires_ns,
            ready,
            taker: None,
            kept_ns: expires_ns,
            parts: None,
            committed: BTreeSet::new(),
            live: BTreeMap::new(),
            ending: None,
            quarantined: false,
            trace: None,
            push: None,
        };
        self.offers.insert(number, offer);
        self.counters.offers += 1;
        self.timers.set(Timer::Offer(number), expires_ns);
        for serve in self.parked.remove(&number).unwrap_or_default() {
            self.unpark(serve);
        }
        Ok(handle)
    }

    /// Keeps an offer's pages for at least so long from now.
    pub fn extend(&mut self, offer: u64, lease_ns: u64, now_ns: u64) {
        self.at(now_ns);
        let until = self.now_ns.saturating_add(lease_ns);
        if let Some(this) = self.offers.get_mut(&offer)
            && this.ending.is_none()
            && until > this.expires_ns
        {
            this.expires_ns = until;
            this.kept_ns = until;
            self.timers.set(Timer::Offer(offer), until);
        }
    }

    /// The first tokens of a layer are written, or of [`ALL_LAYERS`]. In any order; fewer than before changes nothing.
    pub fn layer_ready(&mut self, offer: u64, layer: u32, tokens: u32, now_ns: u64) {
        self.at(now_ns);
        let Some(this) = self.offers.get_mut(&offer) else {
            return;
        };
        if layer >= MAX_LAYERS && layer != ALL_LAYERS {
            return;
        }
        let tokens = tokens.min(this.spec.tokens);
        let written = this.ready.entry(layer).or_insert(0);
        if *written >= tokens {
            return;
        }
        *written = tokens;
        let live: Vec<ServeId> = this.live.values().copied().collect();
        for serve in live {
            self.tell_ready(serve, layer, tokens);
        }
    }

    /// Names the trace that an offer belongs to; consumers are told.
    pub fn trace(&mut self, offer: u64, trace: Trace) {
        if let Some(offer) = self.offers.get_mut(&offer) {
            offer.trace = Some(trace);
        }
    }

    /// Takes an offer back. Whoever is served from it is told to discard what came; `Released` says when its pages are free.
    pub fn withdraw(&mut self, offer: u64, now_ns: u64) {
        self.at(now_ns);
        self.end_offer(offer, Reason::Withdrawn);
    }

    pub(super) fn offer_due(&mut self, number: u64) {
        let Some(offer) = self.offers.get_mut(&number) else {
            return;
        };
        if offer.ending.is_some() || self.config.faults.lease_ignored {
            return;
        }
        // The link's heartbeats keep the lease of what is transferred; a transfer has a deadline of its own.
        let on = offer
            .live
            .values()
            .any(|serve| self.serves.get(serve).is_some_and(Serve::is_on));
        // Whoever pulls again and again does not keep it for ever.
        let until = offer
            .kept_ns
            .saturating_add(u64::from(MAX_PULL_MS) * 1_000_000);
        if on && self.now_ns < until {
            offer.expires_ns = self.now_ns.saturating_add(offer.spec.lease_ns.max(1));
            self.counters.leases_extended += 1;
            return self.timers.set(Timer::Offer(number), offer.expires_ns);
        }
        self.end_offer(number, Reason::Expired);
    }

    pub(super) fn end_offer(&mut self, number: u64, reason: Reason) {
        let Some(offer) = self.offers.get_mut(&number) else {
            return;
        };
        if offer.ending.is_some() {
            return;
        }
        offer.ending = Some(reason);
        let push = offer.push.take();
        self.timers.clear(Timer::Offer(number));
        self.end_push(number, push);
        match reason {
            Reason::Consumed => self.counters.offers_consumed += 1,
            Reason::Expired => self.counters.offers_expired += 1,
            _ => {}
        }
        let live: Vec<ServeId> = { self.offers.get(&number) }
            .map(|offer| offer.live.values().copied().collect())
            .unwrap_or_default();
        for serve in live {
            self.fail_serve(serve, reason, "the producer took its offer back");
        }
        if let Some(offer) = self.offers.get_mut(&number)
            && !offer.live.is_empty()
            && offer.ending.is_some()
        {
            offer.quarantined = true;
            self.counters.quarantined += 1;
            self.counters.quarantined_now += 1;
            self.actions.push_back(Action::Quarantined {
                offer: number,
                reason,
            });
        }
        self.release(number);
    }

    /// Releases an offer that has ended, once nobody is served from it.
    pub(super) fn release(&mut self, number: u64) {
        let Some(offer) = self.offers.get(&number) else {
            return;
        };
        let Some(reason) = offer.ending else { return };
        if !offer.live.is_empty() && !self.config.faults.released_early {
            return;
        }
        if offer.quarantined {
            self.counters.quarantined_now -= 1;
        }
        self.offers.remove(&number);
        self.ended_offers.add(number, reason);
        self.actions.push_back(Action::Released {
            offer: number,
            reason,
        });
    }
}
