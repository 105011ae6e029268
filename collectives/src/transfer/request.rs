//! What is asked of a driver: offers, pulls and grants.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    execute::Requested,
    protocol::{handle::Handle, node::Trace},
    request::Request,
};

/// A producer keeps a request's pages for whoever has the handle.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Offer {
    /// The same on all nodes of the engine, and never used again in this life of it.
    pub number: u64,
    /// Tokens, layers and the pages of this node's ranks.
    pub request: Request,
    /// Digest of the pages, the same on all nodes of the engine; by itself, of those of the node's first rank, which is
    /// right where all ranks have the same block table.
    pub pages: Option<[u8; 16]>,
    /// How long the pages are kept without a transfer.
    pub lease: Duration,
    /// The only engine that may pull them, if there is one.
    pub bound: Option<String>,
    /// Whether layers become ready one by one; otherwise all is.
    pub progressive: bool,
    /// What the request is called in reports.
    pub name: String,
    /// The trace it belongs to, which consumers are told.
    pub trace: Option<Trace>,
    pub(super) whole: Option<Arc<Requested>>,
}

impl Offer {
    /// All of a request, for anyone.
    #[must_use]
    pub fn new(number: u64, request: Request, lease: Duration) -> Self {
        Self {
            number,
            request,
            pages: None,
            lease,
            bound: None,
            progressive: false,
            name: format!("offer {number}"),
            trace: None,
            whole: None,
        }
    }
}

/// A consumer pulls a request into its pages.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Pull {
    /// The producer's handle.
    pub handle: Handle,
    /// Tokens, those that are there already, and the pages of this node's ranks.
    pub request: Request,
    /// From now to the outcome, at most.
    pub deadline: Duration,
    /// Whether layers are told of one by one, as they are placed.
    pub by_layer: bool,
    /// Whether pages may be mapped.
    pub map: bool,
    /// What the request is called in reports.
    pub name: String,
    pub(super) whole: Option<Arc<Requested>>,
    pub(super) started: Instant,
}

impl Pull {
    /// A request as a whole.
    #[must_use]
    pub fn new(handle: Handle, request: Request, deadline: Duration) -> Self {
        Self {
            handle,
            request,
            deadline,
            by_layer: false,
            map: true,
            name: String::new(),
            whole: None,
            started: Instant::now(),
        }
    }
}

/// A consumer gives pages to be filled by a push.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Grant {
    /// As of an [`Offer`].
    pub number: u64,
    /// Tokens, those that are there already, and the pages of this node's ranks.
    pub request: Request,
    /// As of an [`Offer`].
    pub pages: Option<[u8; 16]>,
    /// How long it waits for a producer.
    pub lease: Duration,
    /// From the producer's invitation to the outcome, at most.
    pub deadline: Duration,
    /// The only engine that may fill them, if there is one.
    pub bound: Option<String>,
    /// As of a [`Pull`].
    pub by_layer: bool,
    /// As of a [`Pull`].
    pub map: bool,
    /// As of a [`Pull`].
    pub name: String,
}

impl Grant {
    /// For anyone, as a whole.
    #[must_use]
    pub fn new(number: u64, request: Request, lease: Duration, deadline: Duration) -> Self {
        Self {
            number,
            request,
            pages: None,
            lease,
            deadline,
            bound: None,
            by_layer: false,
            map: true,
            name: format!("grant {number}"),
        }
    }
}
