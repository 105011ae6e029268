//! Links: greeting, describing, agreeing, heartbeats, loss, and dialling again.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};

use super::{
    Action, Failure, LentKey, LinkId, Node, Reason, ServeId, TransferId,
    message::{Hello, Message},
    timers::Timer,
};
use crate::{
    limits::{
        DESCRIPTOR_PART_BYTES, MAX_DESCRIBING, MAX_ENGINES, MAX_FORMER_ENGINES,
        MAX_IDLE_DESCRIPTORS, MAX_LINKS, MAX_RETIRED_EPOCHS,
    },
    protocol::handle::check_engine_name,
};

/// Where a link stands. One that is being dialled is not there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_enums,
    reason = "the states of the protocol's picture"
)]
pub enum LinkState {
    /// Hello is sent or awaited.
    Greeting,
    /// The other side is known and alive; its descriptor is awaited, or negotiated with.
    Describing,
    /// This side has agreed.
    Agreeing,
    /// Both have.
    Ready,
    /// It is over, but not yet said to be closed.
    Lost,
}

/// What became of a link.
#[derive(Clone, Debug)]
pub(super) enum Cause {
    Lost(String),
    Restarted,
    Replaced,
    Protocol(String),
    Rejected(Reason, String),
}

impl Cause {
    fn why(&self) -> String {
        match self {
            Self::Lost(why) => why.clone(),
            Self::Restarted => "its engine restarted".into(),
            Self::Replaced => "a newer link took its place".into(),
            Self::Protocol(what) => what.clone(),
            Self::Rejected(reason, why) => format!("{reason}: {why}"),
        }
    }

    pub(super) fn failure(&self, rank: u32) -> Failure {
        match self {
            Self::Lost(_) | Self::Replaced => Failure::Lost {
                rank,
                why: self.why(),
            },
            Self::Restarted => Failure::Restarted { rank },
            Self::Protocol(what) => Failure::Protocol {
                rank,
                what: what.clone(),
            },
            Self::Rejected(reason, why) => Failure::Refused {
                rank,
                reason: *reason,
                why: why.clone(),
            },
        }
    }

    /// Whether dialling again soon cannot help.
    fn is_lasting(&self) -> bool {
        use Reason::{Disagree, Misdirected, NotAllowed, StaleEpoch, Version};
        matches!(
            self,
            Self::Rejected(
                Disagree | Misdirected | NotAllowed | StaleEpoch | Version,
                _
            )
        )
    }
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) state: LinkState,
    dialled: bool,
    identity: Option<Arc<str>>,
    /// Engine and node: of a dialled link from the start, of others since their Hello.
    pub(super) peer: Option<(usize, u32)>,
    hello: Option<Box<Hello>>,
    pub(super) version: u16,
    pub(super) capabilities: u64,
    pub(super) epoch: u64,
    nonce: u64,
    opened_ns: u64,
    heard_ns: u64,
    sent_ns: u64,
    /// Whether the descriptor has been sent on it.
    described: bool,
    /// The other side's agreement.
    told: Option<[u8; 32]>,
    /// Parts that are served on it, by the consumer's names.
    pub(super) serves: BTreeMap<(u64, u32), ServeId>,
    /// Parts that are pulled on it.
    pub(super) parts: BTreeSet<(TransferId, u32)>,
    /// Ranks of this node whose keys the other side has.
    pub(super) lent: BTreeSet<u32>,
    /// Ranks of the other side whose pages were asked for to be mapped.
    pub(super) borrows: BTreeSet<u32>,
    /// Keys of those, and how many of each are still to come.
    pub(super) keys: BTreeMap<u32, Borrowing>,
}

/// Keys of a rank of the other side.
#[derive(Debug, Default)]
pub(super) struct Borrowing {
    pub(super) left: Option<u32>,
    pub(super) keys: Vec<LentKey>,
    pub(super) whole: Option<Arc<[LentKey]>>,
}

/// An engine that this node knows.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) name: Arc<str>,
    pub(super) epoch: Option<u64>,
    retired: VecDeque<u64>,
    nodes: BTreeMap<u32, PeerNode>,
    rank_at: BTreeMap<u32, u32>,
    /// Whether links are kept up without a transfer.
    keep: bool,
}

#[derive(Debug, Default)]
struct PeerNode {
    /// The one in use, or on its way to it.
    link: Option<LinkId>,
    dialling: bool,
    attempts: u32,
    waiting: BTreeSet<(TransferId, u32)>,
    /// Offers that are to be pushed to it.
    pushes: BTreeSet<u64>,
    known: bool,
    /// Why there was no link the last time that one was to be made.
    trouble: Option<String>,
}

impl PeerNode {
    fn is_wanted(&self, keep: bool) -> bool {
        !self.waiting.is_empty() || !self.pushes.is_empty() || (keep && self.known)
    }
}

impl Peer {
    /// Nothing is to be dialled any more.
    pub(super) fn forget(&mut self) {
        self.keep = false;
        self.nodes.values_mut().for_each(|node| node.known = false);
    }

    /// Entries of its tables.
    pub(super) fn size(&self) -> usize {
        let waiting = |node: &PeerNode| node.waiting.len() + node.pushes.len();
        self.nodes.len() + self.rank_at.len() + self.nodes.values().map(waiting).sum::<usize>()
    }

    /// Whether something waits for a link to any of its nodes.
    pub(super) fn is_awaited(&self) -> bool {
        self.nodes.values().any(|node| node.is_wanted(false))
    }

    pub(super) fn node_of(&self, rank: u32) -> Option<u32> {
        self.rank_at.get(&rank).copied()
    }

    /// The link to a node, in whatever state.
    pub(super) fn link(&self, node: u32) -> Option<LinkId> {
        self.nodes.get(&node)?.link
    }

    /// Why there is no link to a node, if it was tried.
    pub(super) fn trouble(&self, node: u32) -> Option<&str> {
        self.nodes.get(&node)?.trouble.as_deref()
    }

    /// A rank and the node that holds it; of a node with a link, if there is one.
    pub(super) fn some_rank(&self) -> Option<(u32, u32)> {
        let linked = |(_, node): &(&u32, &u32)| {
            { self.nodes.get(*node) }.is_some_and(|node| node.link.is_some())
        };
        let some = { self.rank_at.iter().find(linked) }.or_else(|| self.rank_at.first_key_value());
        some.map(|(&rank, &node)| (rank, node))
    }
}

/// A descriptor of another engine.
#[derive(Debug)]
pub(super) enum Description {
    /// It arrives on a link.
    Fetching(LinkId, Vec<u8>),
    /// The driver negotiates.
    Negotiating,
    /// The digest of the agreement, or why there is none.
    Known(Result<[u8; 32], String>),
}

impl Node {
    /// Says which nodes an engine has and which ranks they hold, from a directory.
    ///
    /// # Errors
    ///
    /// If the name cannot be that of an engine, or there are too many.
    pub fn know(&mut self, engine: &str, nodes: &[(u32, Vec<u32>)]) -> Result<(), String> {
        let peer = self.peer(engine).map_err(|(_, why)| why)?;
        let this = &mut self.peers[peer];
        let before: Vec<u32> = this.nodes.keys().copied().collect();
        for node in this.nodes.values_mut() {
            node.known = false;
        }
        this.keep &= !nodes.is_empty();
        for (node, ranks) in nodes {
            this.nodes.entry(*node).or_default().known = true;
            this.rank_at.extend(ranks.iter().map(|&rank| (rank, *node)));
        }
        // An engine that moves about leaves nothing where it was.
        for node in before {
            self.forget_node(peer, node);
        }
        self.forget_engine(peer);
        Ok(())
    }

    /// Keeps links to all nodes of an engine, whether there is a transfer or not.
    pub fn connect(&mut self, engine: &str, now_ns: u64) {
        self.at(now_ns);
        let Some(&peer) = self.by_name.get(engine) else {
            return;
        };
        self.peers[peer].keep = true;
        let nodes: Vec<u32> = self.peers[peer].nodes.keys().copied().collect();
        for node in nodes {
            self.want(peer, node);
        }
    }

    /// A connection was made that [`Action::Dial`] asked for; `identity` is who the transport says is there.
    pub fn dialled(
        &mut self,
        link: LinkId,
        engine: &str,
        node: u32,
        identity: Option<&str>,
        now_ns: u64,
    ) {
        self.at(now_ns);
        let Some(&peer) = self.by_name.get(engine) else {
            return self.actions.push_back(Action::Close { link });
        };
        let entry = self.peers[peer].nodes.entry(node).or_default();
        entry.dialling = false;
        if entry.link.is_some() || self.links.len() >= MAX_LINKS {
            return self.actions.push_back(Action::Close { link });
        }
        entry.link = Some(link);
        self.open(link, Some((peer, node)), identity);
        self.greet(link, 0);
    }

    /// A connection came in.
    pub fn accepted(&mut self, link: LinkId, identity: Option<&str>, now_ns: u64) {
        self.at(now_ns);
        if self.links.len() >= MAX_LINKS {
            return self.actions.push_back(Action::Close { link });
        }
        self.open(link, None, identity);
    }

    /// A connection that [`Action::Dial`] asked for could not be made.
    pub fn unreachable(&mut self, engine: &str, node: u32, why: &str, now_ns: u64) {
        self.at(now_ns);
        let Some(&peer) = self.by_name.get(engine) else {
            return;
        };
        let Some(entry) = self.peers[peer].nodes.get_mut(&node) else {
            return;
        };
        entry.dialling = false;
        entry.trouble = Some(why.to_owned());
        entry.attempts = entry.attempts.saturating_add(1);
        let waiting: Vec<_> = entry.waiting.iter().copied().collect();
        for (transfer, part) in waiting {
            self.part_unreachable(transfer, part, why);
        }
        self.pause_then_dial(peer, node);
        self.forget_node(peer, node);
    }

    /// No transport that may be used leads to a node: whatever waits for it fails at once.
    pub fn no_path(&mut self, engine: &str, node: u32, why: &str, now_ns: u64) {
        self.at(now_ns);
        let Some(&peer) = self.by_name.get(engine) else {
            return;
        };
        let Some(entry) = self.peers[peer].nodes.get_mut(&node) else {
            return;
        };
        entry.dialling = false;
        entry.attempts = u32::MAX;
        for (transfer, part) in std::mem::take(&mut entry.waiting) {
            self.part_without_path(transfer, part, why);
        }
        self.pause_then_dial(peer, node);
        self.forget_node(peer, node);
    }

    /// The transport refused what came by a link, and closes it: `closed` follows.
    pub fn violated(&mut self, link: LinkId, what: &str, now_ns: u64) {
        self.at(now_ns);
        if self
            .link_state(link)
            .is_some_and(|state| state != LinkState::Lost)
        {
            self.counters.protocol_errors += 1;
            self.lose(link, Cause::Protocol(what.to_owned()), false);
        }
    }

    /// A link is closed, by either side: nothing that came by it can touch memory any more.
    pub fn closed(&mut self, link: LinkId, why: &str, now_ns: u64) {
        self.at(now_ns);
        if !self.links.contains_key(&link) {
            return;
        }
        self.lose(link, Cause::Lost(why.to_owned()), false);
        let Some(gone) = self.links.remove(&link) else {
            return;
        };
        for serve in gone.serves.into_values() {
            self.serve_gone(serve);
        }
        for (transfer, part) in gone.parts {
            self.part_gone(transfer, part);
        }
        if let Some((peer, node)) = gone.peer {
            self.forget_node(peer, node);
        }
    }

    /// Forgets a node that only its link told of: a peer that comes under ever other numbers leaves nothing.
    fn forget_node(&mut self, peer: usize, node: u32) {
        let this = &mut self.peers[peer];
        let Some(entry) = this.nodes.get(&node) else {
            return;
        };
        if !entry.known && entry.link.is_none() && !entry.dialling && !entry.is_wanted(false) {
            this.nodes.remove(&node);
            this.rank_at.retain(|_, at| *at != node);
            self.timers.clear(Timer::Dial(peer, node));
            self.forget_engine(peer);
        }
    }

    /// Whether nobody told of an engine, and nothing links to it.
    fn is_former(&self, peer: usize) -> bool {
        let this = &self.peers[peer];
        let linked = |link: &Link| link.peer.is_some_and(|(of, _)| of == peer);
        this.nodes.is_empty() && !this.keep && !self.links.values().any(linked)
    }

    /// Forgets an engine that only its links told of. Of those that lived, some are kept, so that an earlier life of theirs
    /// does not come back.
    fn forget_engine(&mut self, peer: usize) {
        if !self.by_name.contains_key(&self.peers[peer].name) || !self.is_former(peer) {
            return;
        }
        self.former.retain(|&of| of != peer);
        if self.peers[peer].epoch.is_none() {
            return self.drop_engine(peer);
        }
        self.former.push_back(peer);
        if self.former.len() > MAX_FORMER_ENGINES {
            self.drop_oldest();
        }
    }

    /// Drops the engine that left the longest time ago; whether there was one.
    fn drop_oldest(&mut self) -> bool {
        while let Some(oldest) = self.former.pop_front() {
            // Some have come back.
            if self.is_former(oldest) {
                self.drop_engine(oldest);
                return true;
            }
        }
        false
    }

    fn drop_engine(&mut self, peer: usize) {
        self.by_name.remove(&self.peers[peer].name);
        self.free_peers.push(peer);
    }

    /// Something was heard on a link besides messages.
    pub fn heard(&mut self, link: LinkId, now_ns: u64) {
        self.at(now_ns);
        if let Some(link) = self.links.get_mut(&link) {
            link.heard_ns = self.now_ns;
        }
    }

    /// A message arrived.
    pub fn message(&mut self, link: LinkId, bytes: &[u8], now_ns: u64) {
        // What is due comes first: nothing is taken from a link after it was silent for too long, nor after a deadline.
        self.tick(now_ns);
        let Some(this) = self.links.get_mut(&link) else {
            return;
        };
        if this.state == LinkState::Lost {
            return self.counters.late += 1;
        }
        this.heard_ns = self.now_ns;
        let (state, version) = (this.state, this.version);
        let message = match Message::decode(bytes) {
            Ok(message) => message,
            Err(error) => return self.broke(link, error.to_string()),
        };
        match (state, message) {
            (LinkState::Greeting, Message::Hello(hello)) => self.greeted(link, hello),
            (LinkState::Greeting, Message::Met { echo }) => self.met(link, echo),
            (_, Message::Reject { reason, why }) => self.rejected(link, reason, why),
            (LinkState::Describing | LinkState::Agreeing | LinkState::Ready, Message::Want) => {
                self.describe_self(link);
            }
            (LinkState::Describing, Message::Description { total, bytes }) => {
                self.description(link, total as usize, &bytes);
            }
            (LinkState::Describing | LinkState::Agreeing, Message::Agreed { digest }) => {
                if let Some(this) = self.links.get_mut(&link) {
                    this.told = Some(digest);
                }
                self.compare(link);
            }
            (LinkState::Agreeing | LinkState::Ready, Message::Heartbeat) => {}
            // The other side may be ready a message earlier, and pull; not before it has agreed.
            (LinkState::Ready, message) if message.since() <= version => self.talk(link, message),
            (state, message) => {
                let name = message.name();
                self.broke(
                    link,
                    format!("{name} while {state:?}, in version {version}"),
                );
            }
        }
    }

    /// Answers [`Action::Negotiate`]: the digest of what was agreed, or why nothing was.
    pub fn agreed(
        &mut self,
        descriptor: [u8; 32],
        agreement: Result<[u8; 32], String>,
        now_ns: u64,
    ) {
        self.at(now_ns);
        if let Some(entry @ Description::Negotiating) = self.descriptions.get_mut(&descriptor) {
            *entry = Description::Known(agreement);
            self.describe_waiting();
        }
    }

    /// State of a link; `None` if there is no such link.
    #[must_use]
    pub fn link_state(&self, link: LinkId) -> Option<LinkState> {
        self.links.get(&link).map(|link| link.state)
    }

    /// SHA-256 of the descriptor of the engine at the other end of a link, once it is known.
    #[must_use]
    pub fn descriptor_of(&self, link: LinkId) -> Option<[u8; 32]> {
        let hello = self.links.get(&link)?.hello.as_ref()?;
        Some(hello.descriptor)
    }

    /// The version that is spoken on a link.
    #[must_use]
    pub fn link_version(&self, link: LinkId) -> Option<u16> {
        self.links.get(&link).map(|link| link.version)
    }

    /// The link to a node that is ready, and the life of its engine.
    #[must_use]
    pub fn ready_link(&self, engine: &str, node: u32) -> Option<(LinkId, u64)> {
        let peer = &self.peers[*self.by_name.get(engine)?];
        let link = peer.nodes.get(&node)?.link?;
        let this = self.links.get(&link)?;
        (this.state == LinkState::Ready).then_some((link, this.epoch))
    }

    pub(super) fn send(&mut self, link: LinkId, message: Message) {
        let Some(this) = self.links.get_mut(&link) else {
            return;
        };
        if this.state == LinkState::Lost || message.since() > this.version {
            return;
        }
        this.sent_ns = self.now_ns;
        self.actions.push_back(Action::Send { link, message });
    }

    /// The peer did what is not allowed.
    pub(super) fn broke(&mut self, link: LinkId, what: String) {
        self.counters.protocol_errors += 1;
        self.reject(link, Reason::Protocol, &what);
        self.lose(link, Cause::Protocol(what), true);
    }

    /// A place in the table of engines, where there is one.
    pub(super) fn peer(&mut self, engine: &str) -> Result<usize, (Reason, String)> {
        if let Some(&peer) = self.by_name.get(engine) {
            return Ok(peer);
        }
        check_engine_name(engine)
            .map_err(|why| (Reason::Protocol, format!("engine name {engine:?}: {why}")))?;
        let name: Arc<str> = engine.into();
        let fresh = Peer {
            name: Arc::clone(&name),
            epoch: None,
            retired: VecDeque::new(),
            nodes: BTreeMap::new(),
            rank_at: BTreeMap::new(),
            keep: false,
        };
        if self.by_name.len() >= MAX_ENGINES && !self.drop_oldest() {
            return Err((
                Reason::Busy,
                format!("{MAX_ENGINES} engines are known already"),
            ));
        }
        let at = self.free_peers.pop().unwrap_or(self.peers.len());
        match self.peers.get_mut(at) {
            Some(free) => *free = fresh,
            None => self.peers.push(fresh),
        }
        self.by_name.insert(name, at);
        Ok(at)
    }

    /// Ready link to a node, if there is one; otherwise a part waits for it.
    pub(super) fn link_for(
        &mut self,
        (peer, node): (usize, u32),
        epoch: u64,
        part: (TransferId, u32),
    ) -> Option<LinkId> {
        let entry = self.peers[peer].nodes.entry(node).or_default();
        if let Some(link) = entry.link
            && self
                .links
                .get(&link)
                .is_some_and(|link| link.state == LinkState::Ready && link.epoch == epoch)
        {
            return Some(link);
        }
        entry.waiting.insert(part);
        self.want(peer, node);
        None
    }

    /// A part does not wait any more.
    pub(super) fn waits_not(&mut self, peer: usize, node: u32, part: (TransferId, u32)) {
        if let Some(entry) = self.peers[peer].nodes.get_mut(&node) {
            entry.waiting.remove(&part);
        }
        self.forget_node(peer, node);
    }

    /// An offer is not to be pushed any more to nodes that there was no link to.
    pub(super) fn pushes_not(&mut self, engine: &str, nodes: &BTreeSet<u32>, offer: u64) {
        let Some(&peer) = self.by_name.get(engine) else {
            return;
        };
        for &node in nodes {
            if let Some(entry) = self.peers[peer].nodes.get_mut(&node) {
                entry.pushes.remove(&offer);
            }
            self.forget_node(peer, node);
        }
    }

    fn open(&mut self, link: LinkId, peer: Option<(usize, u32)>, identity: Option<&str>) {
        let nonce = self.draw();
        let this = Link {
            state: LinkState::Greeting,
            dialled: peer.is_some(),
            identity: identity.map(Into::into),
            peer,
            hello: None,
            version: self.config.versions.0,
            capabilities: 0,
            epoch: 0,
            nonce,
            opened_ns: self.now_ns,
            heard_ns: self.now_ns,
            sent_ns: self.now_ns,
            described: false,
            told: None,
            serves: BTreeMap::new(),
            parts: BTreeSet::new(),
            lent: BTreeSet::new(),
            borrows: BTreeSet::new(),
            keys: BTreeMap::new(),
        };
        self.links.insert(link, this);
        // Who connects speaks first, and at once.
        self.timers
            .set(Timer::Link(link), self.now_ns + self.config.loss_ns);
    }

    fn greet(&mut self, link: LinkId, echo: u64) {
        let Some(this) = self.links.get(&link) else {
            return;
        };
        let Some((peer, to_node)) = this.peer else {
            return;
        };
        self.hellos += 1;
        let hello = Hello {
            oldest: self.config.versions.0,
            newest: self.config.versions.1,
            node: self.config.node,
            to_node,
            epoch: self.config.epoch,
            serial: self.hellos,
            nonce: this.nonce,
            echo,
            capabilities: self.config.capabilities,
            descriptor: self.descriptor_digest,
            engine: self.config.engine.clone(),
            to_engine: self.peers[peer].name.to_string(),
            ranks: self.config.ranks.clone(),
        };
        self.send(link, Message::Hello(Box::new(hello)));
    }

    fn reject(&mut self, link: LinkId, reason: Reason, why: &str) {
        self.send(
            link,
            Message::Reject {
                reason,
                why: why.to_owned(),
            },
        );
    }

    fn turn_away(&mut self, link: LinkId, reason: Reason, why: String) {
        self.reject(link, reason, &why);
        self.lose(link, Cause::Rejected(reason, why), true);
    }

    fn greeted(&mut self, link: LinkId, hello: Box<Hello>) {
        let engine = hello.engine.clone();
        match self.admit(link, &hello) {
            Err((reason, why)) => {
                match reason {
                    Reason::Protocol => self.broke(link, why),
                    _ => self.turn_away(link, reason, why),
                }
                if let Some(&peer) = self.by_name.get(engine.as_str()) {
                    self.forget_engine(peer);
                }
            }
            Ok(peer) => {
                let Some(this) = self.links.get_mut(&link) else {
                    return;
                };
                this.peer = Some((peer, hello.node));
                this.version = self.config.versions.1.min(hello.newest);
                this.capabilities = self.config.capabilities & hello.capabilities;
                this.epoch = hello.epoch;
                let nonce = hello.nonce;
                this.hello = Some(hello);
                if this.dialled {
                    self.send(link, Message::Met { echo: nonce });
                    self.adopt(link);
                } else {
                    self.greet(link, nonce);
                }
            }
        }
    }

    /// Whether whoever says Hello may come in; its place in the table of engines.
    fn admit(&mut self, link: LinkId, hello: &Hello) -> Result<usize, (Reason, String)> {
        let this = self
            .links
            .get(&link)
            .ok_or((Reason::Other, String::new()))?;
        if this.hello.is_some() {
            return Err((Reason::Protocol, "Hello twice".into()));
        }
        let (oldest, newest) = self.config.versions;
        if newest.min(hello.newest) < oldest.max(hello.oldest) {
            let (a, b) = (hello.oldest, hello.newest);
            return Err((
                Reason::Version,
                format!(
                    "versions {a} to {b} there, {oldest} to {newest} here; update the older side"
                ),
            ));
        }
        if hello.engine == self.config.engine {
            let why = format!(
                "{} links to itself: two sets of processes have its name?",
                hello.engine
            );
            return Err((Reason::Misdirected, why));
        }
        let name = Arc::clone(&self.name);
        let own = (&*name, self.config.node);
        if (hello.to_engine.as_str(), hello.to_node) != own {
            let why = format!(
                "this is node {} of {}, not {} of {}",
                own.1, own.0, hello.to_node, hello.to_engine
            );
            return Err((Reason::Misdirected, why));
        }
        if let Some((peer, node)) = this.peer.filter(|_| this.dialled) {
            let name = &self.peers[peer].name;
            if (hello.engine.as_str(), hello.node) != (&**name, node) {
                let why = format!(
                    "node {} of {} answers where node {node} of {name} was dialled; the directory is wrong",
                    hello.node, hello.engine
                );
                return Err((Reason::Misdirected, why));
            }
        }
        let echo = if this.dialled { this.nonce } else { 0 };
        if hello.echo != echo {
            return Err((
                Reason::Protocol,
                format!("Hello echoes {:x}; expected {echo:x}", hello.echo),
            ));
        }
        if !self
            .config
            .admission
            .admits(&hello.engine, this.identity.as_deref())
        {
            let identity = this.identity.as_deref().unwrap_or("nobody");
            let why = format!("{identity} is not on the list for engine {}", hello.engine);
            return Err((Reason::NotAllowed, why));
        }
        let dialled = this.dialled;
        let peer = self.peer(&hello.engine)?;
        self.is_current(peer, hello.epoch)?;
        self.holds(peer, hello)?;
        // Both sides dialled: the link of the smaller name stays.
        let other = self.peers[peer]
            .nodes
            .get(&hello.node)
            .and_then(|node| node.link);
        if let Some(other) = other
            .filter(|&other| other != link && !dialled)
            .and_then(|other| self.links.get(&other))
        {
            let smaller = own < (hello.engine.as_str(), hello.node);
            let stays = match &other.hello {
                None => smaller,
                Some(later) => later.epoch == hello.epoch && later.serial > hello.serial,
            };
            if stays {
                return Err((
                    Reason::Duplicate,
                    "the other link between these nodes stays".into(),
                ));
            }
        }
        Ok(peer)
    }

    /// Whether a node may say that it holds its ranks: not if a node that is linked to in the same life does. What a directory
    /// says may be older.
    fn holds(&self, peer: usize, hello: &Hello) -> Result<(), (Reason, String)> {
        let this = &self.peers[peer];
        let is_sure = |node: u32| {
            this.nodes.get(&node).is_some_and(|entry| {
                let link = entry.link.and_then(|link| self.links.get(&link));
                let met = |link: &Link| {
                    let there = link.hello.as_ref();
                    link.state != LinkState::Greeting
                        && there.is_some_and(|there| there.epoch == hello.epoch)
                };
                link.is_some_and(met)
            })
        };
        for &rank in &hello.ranks {
            if let Some(at) = this.node_of(rank).filter(|&at| at != hello.node)
                && is_sure(at)
            {
                let (node, name) = (hello.node, &this.name);
                let why = format!(
                    "node {node} of {name} says that it holds rank {rank}, as does node {at}; give each rank to one node"
                );
                return Err((Reason::Misdirected, why));
            }
        }
        Ok(())
    }

    fn is_current(&mut self, peer: usize, epoch: u64) -> Result<(), (Reason, String)> {
        if self.peers[peer].retired.contains(&epoch) && !self.config.faults.stale_epoch_accepted {
            self.counters.epochs_refused += 1;
            let name = &self.peers[peer].name;
            let why = format!(
                "epoch {epoch:016x} of {name} has been replaced; start it again with a new one"
            );
            return Err((Reason::StaleEpoch, why));
        }
        Ok(())
    }

    fn met(&mut self, link: LinkId, echo: u64) {
        let Some(this) = self.links.get(&link) else {
            return;
        };
        let nonce = this.nonce;
        if this.dialled || this.hello.is_none() || echo != nonce {
            return self.broke(
                link,
                format!("Met echoes {echo:x} after no or another Hello"),
            );
        }
        self.adopt(link);
    }

    /// The other side has answered on this link: it is who lives now.
    fn adopt(&mut self, link: LinkId) {
        let Some(this) = self.links.get(&link) else {
            return;
        };
        let (Some((peer, node)), Some(hello)) = (this.peer, &this.hello) else {
            return;
        };
        let (epoch, serial, ranks) = (hello.epoch, hello.serial, hello.ranks.clone());
        if let Err((reason, why)) = self.is_current(peer, epoch) {
            return self.turn_away(link, reason, why);
        }
        if let Some(old) = self.peers[peer].epoch
            && old != epoch
        {
            self.counters.peers_restarted += 1;
            let this = &mut self.peers[peer];
            this.retired.push_back(old);
            while this.retired.len() > MAX_RETIRED_EPOCHS {
                this.retired.pop_front();
            }
            this.epoch = Some(epoch);
            let stale: Vec<LinkId> = this.nodes.values().filter_map(|node| node.link).collect();
            for other in stale {
                let is_old =
                    |l: &Link| other != link && l.hello.as_ref().is_some_and(|h| h.epoch != epoch);
                if self.links.get(&other).is_some_and(is_old) {
                    self.lose(other, Cause::Restarted, true);
                }
            }
        }
        self.peers[peer].epoch = Some(epoch);
        let entry = self.peers[peer].nodes.entry(node).or_default();
        if let Some(other) = entry.link.filter(|&other| other != link) {
            let newer = self
                .links
                .get(&other)
                .and_then(|other| other.hello.as_ref());
            if newer.is_some_and(|other| other.epoch == epoch && other.serial > serial) {
                return self.turn_away(link, Reason::Duplicate, "the newer link stays".into());
            }
            entry.link = Some(link);
            self.lose(other, Cause::Replaced, true);
        }
        let entry = self.peers[peer].nodes.entry(node).or_default();
        entry.link = Some(link);
        let this = &mut self.peers[peer];
        this.rank_at.retain(|_, at| *at != node);
        this.rank_at
            .extend(ranks.into_iter().map(|rank| (rank, node)));
        if let Some(this) = self.links.get_mut(&link) {
            this.state = LinkState::Describing;
            self.timers
                .set(Timer::Link(link), this.opened_ns + self.config.handshake_ns);
        }
        self.describing.insert(link);
        self.describe(link);
    }

    /// Goes on with a link whose other side's descriptor is known, or has it sent.
    fn describe(&mut self, link: LinkId) {
        let Some(hello) = self.links.get(&link).and_then(|this| this.hello.as_ref()) else {
            return;
        };
        let digest = hello.descriptor;
        match self.descriptions.get(&digest) {
            Some(Description::Fetching(..) | Description::Negotiating) => {}
            Some(Description::Known(Ok(agreement))) => {
                let digest = *agreement;
                self.describing.remove(&link);
                if let Some(this) = self.links.get_mut(&link) {
                    this.state = LinkState::Agreeing;
                }
                self.send(link, Message::Agreed { digest });
                self.compare(link);
            }
            Some(Description::Known(Err(why))) => {
                let why = why.clone();
                self.turn_away(link, Reason::Disagree, why);
            }
            None => {
                let fetching = |d: &&Description| matches!(d, Description::Fetching(..));
                if self.descriptions.len() >= MAX_IDLE_DESCRIPTORS
                    && !self.forget_description()
                    && self.descriptions.len() >= MAX_ENGINES
                {
                    let why = format!("descriptors of {MAX_ENGINES} engines are in use");
                    return self.turn_away(link, Reason::Busy, why);
                }
                let busy = self.describing.len() > 1
                    && self.descriptions.values().filter(fetching).count() >= MAX_DESCRIBING;
                if !busy {
                    self.descriptions
                        .insert(digest, Description::Fetching(link, Vec::new()));
                    self.send(link, Message::Want);
                }
            }
        }
    }

    /// Forgets what was agreed with an engine that nothing links to, so that there is room; whether there was one.
    fn forget_description(&mut self) -> bool {
        let links = self.links.values();
        let used: BTreeSet<[u8; 32]> = links
            .filter_map(|link| Some(link.hello.as_ref()?.descriptor))
            .collect();
        let idle = |(digest, of): &(&[u8; 32], &Description)| {
            matches!(of, Description::Known(_)) && !used.contains(*digest)
        };
        let Some(digest) = self
            .descriptions
            .iter()
            .find(idle)
            .map(|(digest, _)| *digest)
        else {
            return false;
        };
        self.descriptions.remove(&digest);
        self.actions.push_back(Action::Forgotten { digest });
        true
    }

    fn describe_waiting(&mut self) {
        let waiting: Vec<LinkId> = self.describing.iter().copied().collect();
        for link in waiting {
            self.describe(link);
        }
    }

    fn describe_self(&mut self, link: LinkId) {
        let Some(this) = self.links.get_mut(&link) else {
            return;
        };
        if std::mem::replace(&mut this.described, true) {
            return self.broke(link, "Want twice".into());
        }
        let descriptor = Arc::clone(&self.config.descriptor);
        let total = descriptor.len() as u32;
        if descriptor.is_empty() {
            // One part says so; a part has a byte at least.
            return self.broke(link, "Want, and this node has no descriptor".into());
        }
        for bytes in descriptor.chunks(DESCRIPTOR_PART_BYTES) {
            self.send(
                link,
                Message::Description {
                    total,
                    bytes: bytes.to_vec(),
                },
            );
        }
    }

    fn description(&mut self, link: LinkId, total: usize, bytes: &[u8]) {
        let Some(hello) = self.links.get(&link).and_then(|this| this.hello.as_ref()) else {
            return;
        };
        let digest = hello.descriptor;
        let Some(Description::Fetching(from, here)) = self.descriptions.get_mut(&digest) else {
            return self.broke(link, "Description that was not asked for".into());
        };
        if *from != link || here.len() + bytes.len() > total {
            return self.broke(
                link,
                format!("Description of more than the {total} bytes that it announces"),
            );
        }
        here.extend(bytes);
        if here.len() < total {
            return;
        }
        let descriptor: Arc<[u8]> = std::mem::take(here).into();
        if digest[..] != Sha256::digest(&descriptor)[..] {
            return self.broke(
                link,
                "Description that does not have the digest in Hello".into(),
            );
        }
        self.descriptions.insert(digest, Description::Negotiating);
        let Some((peer, _)) = self.links.get(&link).and_then(|this| this.peer) else {
            return;
        };
        let engine = Arc::clone(&self.peers[peer].name);
        self.actions.push_back(Action::Negotiate {
            engine,
            digest,
            descriptor,
        });
    }

    /// Compares agreements, once both sides have told theirs.
    fn compare(&mut self, link: LinkId) {
        let Some(this) = self.links.get(&link) else {
            return;
        };
        let (LinkState::Agreeing, Some(there), Some(hello)) = (this.state, this.told, &this.hello)
        else {
            return;
        };
        let here = match self.descriptions.get(&hello.descriptor) {
            Some(Description::Known(Ok(here))) => *here,
            // Forgotten meanwhile, for lack of room.
            _ => return self.turn_away(link, Reason::Busy, "the agreement was forgotten".into()),
        };
        if here != there {
            let why =
                "the two sides did not agree on the same plan: their descriptions or builds differ";
            return self.turn_away(link, Reason::Disagree, why.into());
        }
        self.ready(link);
    }

    fn ready(&mut self, link: LinkId) {
        let Some(this) = self.links.get_mut(&link) else {
            return;
        };
        let Some((peer, node)) = this.peer else {
            return;
        };
        this.state = LinkState::Ready;
        let epoch = this.epoch;
        self.counters.links_ready += 1;
        self.timers
            .set(Timer::Link(link), self.now_ns + self.config.heartbeat_ns);
        self.timers.clear(Timer::Dial(peer, node));
        let engine = Arc::clone(&self.peers[peer].name);
        self.actions.push_back(Action::PeerUp {
            engine,
            node,
            epoch,
            link,
        });
        let entry = self.peers[peer].nodes.entry(node).or_default();
        entry.attempts = 0;
        entry.trouble = None;
        for (transfer, part) in std::mem::take(&mut entry.waiting) {
            self.ask(transfer, part, link);
        }
        let entry = self.peers[peer].nodes.entry(node).or_default();
        for offer in std::mem::take(&mut entry.pushes) {
            self.push_on(offer, link);
        }
    }

    /// An offer is pushed to a node, now or when there is a link to it.
    pub(super) fn push_to(&mut self, peer: usize, node: u32, offer: u64) {
        let name = Arc::clone(&self.peers[peer].name);
        if let Some((link, _)) = self.ready_link(&name, node) {
            return self.push_on(offer, link);
        }
        self.peers[peer]
            .nodes
            .entry(node)
            .or_default()
            .pushes
            .insert(offer);
        self.want(peer, node);
    }

    /// Whether an earlier life of an engine is known to have had an epoch.
    pub(super) fn is_retired(&self, peer: usize, epoch: u64) -> bool {
        self.peers[peer].retired.contains(&epoch)
    }

    fn rejected(&mut self, link: LinkId, reason: Reason, why: String) {
        if reason == Reason::StaleEpoch
            && let Some((peer, _)) = self.links.get(&link).and_then(|this| this.peer)
        {
            let engine = Arc::clone(&self.peers[peer].name);
            self.actions.push_back(Action::Superseded { engine });
        }
        self.lose(link, Cause::Rejected(reason, why), true);
    }

    /// A link is over: what goes on over it fails.
    pub(super) fn lose(&mut self, link: LinkId, cause: Cause, close: bool) {
        let Some(this) = self.links.get_mut(&link) else {
            return;
        };
        if this.state == LinkState::Lost {
            return;
        }
        let was_ready = this.state == LinkState::Ready;
        this.state = LinkState::Lost;
        let (peer, epoch) = (this.peer, this.epoch);
        let serves: Vec<ServeId> = this.serves.values().copied().collect();
        let parts: Vec<(TransferId, u32)> = this.parts.iter().copied().collect();
        let fetched = this.hello.as_ref().map(|hello| hello.descriptor);
        self.timers.clear(Timer::Link(link));
        if close {
            self.actions.push_back(Action::Close { link });
        }
        if was_ready {
            self.counters.links_lost += 1;
        } else {
            self.counters.handshakes_failed += 1;
        }
        let why = cause.why();
        if let (true, Some((peer, node))) = (was_ready, peer) {
            let engine = Arc::clone(&self.peers[peer].name);
            self.actions.push_back(Action::PeerLost {
                engine,
                node,
                epoch,
                why: why.clone(),
            });
        }
        for serve in serves {
            self.fail_serve(serve, Reason::Lost, &why);
        }
        for (transfer, part) in parts {
            self.part_lost(transfer, part, &cause);
        }
        if let Some((peer, node)) = peer {
            let entry = self.peers[peer].nodes.entry(node).or_default();
            if entry.link == Some(link) {
                entry.link = None;
            }
            if was_ready {
                entry.attempts = 0;
            } else if !matches!(
                cause,
                Cause::Replaced | Cause::Rejected(Reason::Duplicate, _)
            ) {
                entry.trouble = Some(why);
                entry.attempts = entry.attempts.saturating_add(1);
            }
            if cause.is_lasting() && entry.link.is_none() {
                entry.attempts = u32::MAX;
                for (transfer, part) in std::mem::take(&mut entry.waiting) {
                    self.part_lost(transfer, part, &cause);
                }
            }
            self.pause_then_dial(peer, node);
        }
        self.describing.remove(&link);
        if let Some(digest) = fetched
            && matches!(self.descriptions.get(&digest), Some(Description::Fetching(from, _)) if *from == link)
        {
            self.descriptions.remove(&digest);
            self.describe_waiting();
        }
    }

    /// A link to a node is wanted.
    fn want(&mut self, peer: usize, node: u32) {
        let entry = self.peers[peer].nodes.entry(node).or_default();
        if entry.link.is_some() || entry.dialling || self.timers.is_set(Timer::Dial(peer, node)) {
            return;
        }
        entry.dialling = true;
        self.counters.dials += 1;
        let engine = Arc::clone(&self.peers[peer].name);
        self.actions.push_back(Action::Dial { engine, node });
    }

    fn pause_then_dial(&mut self, peer: usize, node: u32) {
        let keep = self.peers[peer].keep;
        let Some(entry) = self.peers[peer].nodes.get(&node) else {
            return;
        };
        if !entry.is_wanted(keep) || entry.link.is_some() || entry.dialling {
            return;
        }
        let (first, longest) = self.config.backoff_ns;
        let pause = first
            .saturating_mul(1 << entry.attempts.min(20))
            .min(longest)
            .max(2);
        // Half of it, and a chance of the other half: peers that lost the same node do not come back all at once.
        let pause = pause / 2 + self.draw() % (pause / 2);
        self.timers
            .set(Timer::Dial(peer, node), self.now_ns + pause);
    }

    pub(super) fn dial_due(&mut self, peer: usize, node: u32) {
        let keep = self.peers[peer].keep;
        let Some(entry) = self.peers[peer].nodes.get(&node) else {
            return;
        };
        if entry.is_wanted(keep) {
            self.want(peer, node);
        }
    }

    pub(super) fn link_due(&mut self, link: LinkId) {
        let Some(this) = self.links.get(&link) else {
            return;
        };
        let (now, config) = (self.now_ns, &self.config);
        match this.state {
            LinkState::Lost => {}
            LinkState::Greeting => self.lose(link, Cause::Lost("no greeting".into()), true),
            LinkState::Describing | LinkState::Agreeing => {
                self.lose(link, Cause::Lost("no agreement in time".into()), true);
            }
            LinkState::Ready => {
                let lost = this.heard_ns + config.loss_ns;
                if now >= lost {
                    let why = format!("nothing heard for {} ms", (now - this.heard_ns) / 1_000_000);
                    return self.lose(link, Cause::Lost(why), true);
                }
                let mut beat = this.sent_ns + config.heartbeat_ns;
                if now >= beat {
                    beat = now + config.heartbeat_ns;
                    self.send(link, Message::Heartbeat);
                }
                self.timers.set(Timer::Link(link), beat.min(lost));
            }
        }
    }

    fn talk(&mut self, link: LinkId, message: Message) {
        match message {
            Message::Pull(pull) => self.pulled(link, pull),
            Message::Stop {
                transfer,
                part,
                reason,
                why,
            } => {
                self.stop_asked(link, (transfer, part), reason, &why);
            }
            Message::Done {
                transfer,
                part,
                committed,
            } => self.done(link, (transfer, part), committed),
            Message::Unmapped {
                transfer,
                part,
                why,
            } => self.sending_asked(link, (transfer, part), why),
            Message::Decline { offer, reason, why } => self.push_declined(link, offer, reason, why),
            Message::Push { grant, offer } => self.pushed(link, &grant, &offer),
            Message::Accept {
                transfer,
                part,
                chunks,
                bytes,
                mapped,
            } => {
                self.part_accepted(link, (TransferId(transfer), part), (chunks, bytes), mapped);
            }
            Message::Refuse {
                transfer,
                part,
                reason,
                why,
            } => {
                self.part_refused(link, (TransferId(transfer), part), reason, why, true);
            }
            Message::Discard {
                transfer,
                part,
                reason,
                why,
            } => {
                self.part_refused(link, (TransferId(transfer), part), reason, why, false);
            }
            Message::Keys { rank, left, keys } => self.keys_lent(link, rank, left, keys),
            Message::Ready {
                transfer,
                part,
                layer,
                tokens,
            } => {
                self.part_ready(link, (TransferId(transfer), part), layer, tokens);
            }
            Message::Sums {
                transfer,
                part,
                mapped,
                first,
                sums,
            } => {
                self.part_sums(link, (TransferId(transfer), part), mapped, first, &sums);
            }
            Message::Stopped { transfer, part } => {
                self.part_stopped(link, (TransferId(transfer), part))
            }
            Message::Pages {
                transfer,
                part,
                left,
                pages,
            } => self.pages_listed(link, (TransferId(transfer), part), left, pages),
            Message::Unlent {
                transfer,
                part,
                why,
            } => self.part_unlent(link, (TransferId(transfer), part), why),
            Message::Traced {
                transfer,
                part,
                trace,
            } => self.part_traced(link, (TransferId(transfer), part), trace),
            message => self.broke(link, format!("{} on a link that is ready", message.name())),
        }
    }
}
