//! Nodes that talk to each other, message by message.

use std::collections::{BTreeMap, VecDeque};

use super::*;
use crate::{
    digest::Coverage,
    protocol::handle::{EngineKey, Handle, HandleFields, HandleKind},
};

mod hostile;

const MS: u64 = 1_000_000;
const UNIX: u64 = 1_790_000_000_000;
/// Generation of the pages that are offered.
const GENERATION: u64 = 5;

fn key(engine: &str) -> EngineKey {
    let mut bytes = [0; 32];
    bytes[..engine.len()].copy_from_slice(engine.as_bytes());
    EngineKey::new(bytes)
}

fn config(engine: &str, epoch: u64) -> Config {
    let mut config = Config::new(engine, 0, vec![0], epoch, key(engine));
    config.descriptor = engine.as_bytes().into();
    config
}

/// Some nodes, the wires between them, and what they reported.
struct Net {
    nodes: Vec<Node>,
    now: u64,
    /// The ends of each link: node and name there.
    ends: BTreeMap<(usize, LinkId), (usize, LinkId)>,
    next_link: u64,
    wires: VecDeque<(usize, LinkId, Message)>,
    log: Vec<(usize, Action)>,
    /// What every negotiation comes to.
    agreement: Result<[u8; 32], String>,
    /// Whether dials succeed, and messages arrive.
    connected: bool,
}

impl Net {
    fn of(configs: Vec<Config>) -> Self {
        let mut nodes: Vec<Node> = configs
            .iter()
            .map(|config| Node::new(config.clone()).unwrap())
            .collect();
        for node in &mut nodes {
            for config in &configs {
                if config.engine != node.config.engine {
                    node.know(&config.engine, &[(config.node, config.ranks.clone())])
                        .unwrap();
                }
            }
        }
        Self {
            nodes,
            now: 1,
            ends: BTreeMap::new(),
            next_link: 0,
            wires: VecDeque::new(),
            log: Vec::new(),
            agreement: Ok([9; 32]),
            connected: true,
        }
    }

    /// A producer "p" and a consumer "c".
    fn pair() -> Self {
        Self::of(vec![config("p", 1), config("c", 2)])
    }

    fn node_of(&self, engine: &str, node: u32) -> Option<usize> {
        // The latest life of a name.
        (0..self.nodes.len()).rev().find(|&at| {
            let config = self.nodes[at].config();
            config.engine == engine && config.node == node
        })
    }

    fn link(&mut self, from: usize, to: usize) -> (LinkId, LinkId) {
        let (a, b) = (LinkId(self.next_link), LinkId(self.next_link + 1));
        self.next_link += 2;
        self.ends.insert((from, a), (to, b));
        self.ends.insert((to, b), (from, a));
        (a, b)
    }

    /// Lets everything happen that happens at once.
    fn settle(&mut self) {
        loop {
            for at in 0..self.nodes.len() {
                while let Some(action) = self.nodes[at].actions().pop_front() {
                    self.act(at, action);
                }
            }
            let Some((at, link, message)) = self.wires.pop_front() else {
                return;
            };
            if self.connected {
                self.nodes[at].message(link, &message.encode(), self.now);
            }
        }
    }

    fn act(&mut self, at: usize, action: Action) {
        match &action {
            Action::Dial { engine, node } => {
                let to = self.node_of(engine, *node).filter(|_| self.connected);
                match to {
                    None => self.nodes[at].unreachable(engine, *node, "no route", self.now),
                    Some(to) => {
                        let (a, b) = self.link(at, to);
                        let (from, now) = (self.nodes[at].config().engine.clone(), self.now);
                        self.nodes[at].dialled(a, engine, *node, Some(engine), now);
                        self.nodes[to].accepted(b, Some(&from), now);
                    }
                }
            }
            Action::Send { link, message } => {
                if let Some(&(to, there)) = self.ends.get(&(at, *link)) {
                    self.wires.push_back((to, there, message.clone()));
                }
            }
            Action::Close { link } => {
                let link = *link;
                // What was sent before arrives before.
                while let Some(i) = self
                    .wires
                    .iter()
                    .position(|(to, there, _)| self.ends.get(&(at, link)) == Some(&(*to, *there)))
                {
                    let (to, there, message) = self.wires.remove(i).unwrap();
                    self.nodes[to].message(there, &message.encode(), self.now);
                }
                self.cut(at, link);
            }
            Action::Negotiate { digest, .. } => {
                let agreement = self.agreement.clone();
                self.nodes[at].agreed(*digest, agreement, self.now);
            }
            _ => {}
        }
        self.log.push((at, action));
    }

    fn cut(&mut self, at: usize, link: LinkId) {
        if let Some((to, there)) = self.ends.remove(&(at, link)) {
            self.ends.remove(&(to, there));
            self.nodes[to].closed(there, "reset", self.now);
        }
        self.nodes[at].closed(link, "reset", self.now);
    }

    fn pass(&mut self, ms: u64) {
        let until = self.now + ms * MS;
        while self.now < until {
            let next = self.nodes.iter().filter_map(Node::next_deadline).min();
            self.now = next.unwrap_or(until).clamp(self.now + 1, until);
            for node in &mut self.nodes {
                node.tick(self.now);
            }
            self.settle();
        }
    }

    fn offer(&mut self, number: u64) -> Handle {
        let spec = offer(number);
        let handle = self.nodes[0].offer(spec, self.now, UNIX).unwrap();
        self.settle();
        handle
    }

    fn pull(&mut self, handle: &Handle) -> TransferId {
        let id = self.nodes[1].pull(pull(handle), self.now, UNIX).unwrap();
        self.settle();
        id
    }

    /// The part that the producer was last asked to serve.
    fn served(&self) -> ServeId {
        let asked = |(_, action): &(usize, Action)| match action {
            Action::Serve { serve, .. } => Some(*serve),
            _ => None,
        };
        self.log
            .iter()
            .rev()
            .find_map(asked)
            .expect("a part is served")
    }

    fn accept(&mut self) -> ServeId {
        let serve = self.served();
        let owed = Owed {
            chunks: 3,
            bytes: 250,
            steps: 2,
            parts: 1,
            mapped: false,
        };
        self.nodes[0].accept(serve, owed, self.now);
        self.settle();
        serve
    }

    fn land(&mut self, id: TransferId, chunks: &[(u64, u32)]) {
        for &(chunk, bytes) in chunks {
            assert!(self.nodes[1].landing(id, 0, chunk, bytes), "{chunk}");
            self.nodes[1].landed(id, 0, chunk, 100 + chunk, self.now);
        }
        self.settle();
    }

    fn sums(&mut self, serve: ServeId, sums: &[u64], generation: u64) {
        let sums = Sums {
            mapped: false,
            first: 0,
            sums: sums.to_vec(),
            generation,
        };
        self.nodes[0].sent(serve, sums, self.now);
        self.settle();
    }

    fn ended(&self, id: TransferId) -> Vec<(Outcome, bool)> {
        let ended = |(at, action): &(usize, Action)| match action {
            Action::Ended {
                transfer,
                outcome,
                fenced,
                ..
            } if (*at, *transfer) == (1, id) => Some((outcome.clone(), *fenced)),
            _ => None,
        };
        self.log.iter().filter_map(ended).collect()
    }

    fn failure(&self, id: TransferId) -> Failure {
        match &self.ended(id)[..] {
            [(Outcome::Failed(failure), true)] => failure.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn released(&self, offer: u64) -> Option<Reason> {
        let released = |(_, action): &(usize, Action)| match action {
            Action::Released { offer: of, reason } if *of == offer => Some(*reason),
            _ => None,
        };
        self.log.iter().find_map(released)
    }

    fn count(&self, which: impl Fn(&Action) -> bool) -> usize {
        self.log.iter().filter(|(_, action)| which(action)).count()
    }

    /// The driver of the consumer lets go of what it is told to.
    fn quiet(&mut self, id: TransferId) {
        self.nodes[1].quiet(id, 0, false, self.now);
        self.settle();
    }

    fn ups(&self) -> usize {
        self.count(|action| matches!(action, Action::PeerUp { .. }))
    }

    /// Nothing is left of any transfer, and nothing waits for a fence.
    fn assert_idle(&self) {
        for node in &self.nodes {
            assert!(node.is_idle(), "{node:?}");
            assert_eq!(node.counters().quarantined_now, 0);
        }
    }
}

fn offer(number: u64) -> OfferSpec {
    OfferSpec {
        number,
        pages: [3; 16],
        generation: GENERATION,
        tokens: 64,
        lease_ns: 2_000 * MS,
        bound: None,
        progressive: false,
    }
}

fn pull(handle: &Handle) -> PullSpec {
    let chunk = |bytes, step| Chunk { bytes, step };
    let step = |layer| Step {
        layer,
        component: "key".into(),
    };
    PullSpec {
        handle: handle.clone(),
        parts: vec![Expected {
            source: 0,
            target: 0,
            chunks: [chunk(100, 0), chunk(100, 0), chunk(50, 1)].into(),
            steps: [step(7), step(8)].into(),
            map: false,
            pages: 0,
        }],
        within_ns: 10_000 * MS,
        held: 0,
        by_layer: true,
        mode: Coverage::Full,
        key: 1,
        grant: None,
    }
}

const CHUNKS: [(u64, u32); 3] = [(2, 50), (1, 100), (0, 100)];
const SUMS: [u64; 2] = [201, 102];

#[test]
fn a_transfer_commits_and_consumes_its_offer() {
    let mut net = Net::pair();
    let handle = net.offer(1);
    let id = net.pull(&handle);
    let serve = net.accept();
    net.sums(serve, &SUMS, GENERATION);
    net.land(id, &CHUNKS[..1]);
    assert_eq!(net.ended(id), []);
    assert_eq!(
        net.count(|a| matches!(a, Action::Layer { layer: 8, .. })),
        1
    );
    net.land(id, &CHUNKS[1..]);
    assert_eq!(net.ended(id), [(Outcome::Committed, true)]);
    assert_eq!(net.released(1), Some(Reason::Consumed));
    let id = net.pull(&handle);
    assert!(matches!(
        net.failure(id),
        Failure::Refused {
            reason: Reason::Consumed,
            ..
        }
    ));
    net.pass(20_000);
    net.assert_idle();
    assert_eq!(net.ups(), 2);
}

#[test]
fn every_use_of_a_handle_that_is_not_in_order_has_its_reason() {
    let mut net = Net::pair();
    let reason = |net: &mut Net, handle: &Handle| {
        let id = net.pull(handle);
        net.pass(1500);
        match net.failure(id) {
            Failure::Refused { reason, .. } => reason,
            Failure::Restarted { .. } => Reason::Restarted,
            other => panic!("{other}"),
        }
    };
    let handle = net.offer(1);
    net.nodes[0].extend(1, 60_000 * MS, net.now);
    let said = handle.fields().clone();
    let sealed = |change: &dyn Fn(&mut HandleFields), key: &EngineKey| {
        let mut fields = said.clone();
        change(&mut fields);
        Handle::seal(fields, key).unwrap()
    };
    let own = key("p");
    assert_eq!(
        reason(&mut net, &sealed(&|_| {}, &key("x"))),
        Reason::Forged
    );
    assert_eq!(
        reason(&mut net, &sealed(&|f| f.number = 77, &own)),
        Reason::UnknownOffer
    );
    assert_eq!(
        reason(&mut net, &sealed(&|f| f.pages = [4; 16], &own)),
        Reason::Reused
    );
    net.nodes[0].withdraw(1, net.now);
    net.settle();
    assert_eq!(reason(&mut net, &handle), Reason::Withdrawn);
    let expiring = net.offer(2);
    net.pass(2500);
    assert_eq!(net.released(2), Some(Reason::Expired));
    assert_eq!(reason(&mut net, &expiring), Reason::Expired);
    // Another life of the producer; the consumer does not know of it.
    let old = sealed(&|f| f.epoch = 99, &own);
    let patient = PullSpec {
        within_ns: 20_000 * MS,
        ..pull(&old)
    };
    let id = net.nodes[1].pull(patient, net.now, UNIX).unwrap();
    net.settle();
    net.pass(12_000);
    assert!(
        matches!(net.failure(id), Failure::Restarted { rank: 0 }),
        "another life is linked to, and goes on living"
    );
    // Refused where they are handed in.
    let refused =
        |net: &mut Net, handle: &Handle, unix| match net.nodes[1].pull(pull(handle), net.now, unix)
        {
            Err(Failure::Refused { reason, .. }) => reason,
            other => panic!("{other:?}"),
        };
    assert_eq!(refused(&mut net, &handle, UNIX + 40_000), Reason::Expired);
    assert_eq!(
        refused(
            &mut net,
            &sealed(&|f| f.bound = Some("d".into()), &own),
            UNIX
        ),
        Reason::Elsewhere
    );
    assert_eq!(
        refused(
            &mut net,
            &sealed(&|f| f.kind = HandleKind::Grant, &own),
            UNIX
        ),
        Reason::Forged
    );
    let nowhere = sealed(&|f| f.engine = "q".into(), &own);
    assert!(matches!(
        net.nodes[1].pull(pull(&nowhere), net.now, UNIX),
        Err(Failure::NoPath { .. })
    ));
    net.assert_idle();
}

#[test]
fn a_pull_waits_for_an_offer_that_its_handle_proves() {
    let mut net = Net::pair();
    let handle = Net::pair().offer(1);
    let id = net.pull(&handle);
    net.pass(500);
    assert_eq!(net.ended(id), []);
    net.offer(1);
    let serve = net.accept();
    net.sums(serve, &SUMS, GENERATION);
    net.land(id, &CHUNKS);
    assert_eq!(net.ended(id), [(Outcome::Committed, true)]);
}

#[test]
fn reused_pages_and_other_digests_never_commit() {
    let mut net = Net::pair();
    let handle = net.offer(1);
    let id = net.pull(&handle);
    let serve = net.accept();
    net.land(id, &CHUNKS);
    net.sums(serve, &SUMS, GENERATION + 1);
    net.nodes[0].stopped(serve, net.now);
    net.settle();
    assert_eq!(net.ended(id), [], "not before it is fenced");
    net.quiet(id);
    assert!(matches!(
        net.failure(id),
        Failure::Refused {
            reason: Reason::Reused,
            ..
        }
    ));
    // The same offer may be tried again.
    let id = net.pull(&handle);
    let serve = net.accept();
    net.land(id, &CHUNKS);
    net.sums(serve, &[201, 103], GENERATION);
    net.nodes[0].stopped(serve, net.now);
    net.settle();
    net.quiet(id);
    let Failure::Digest {
        rank: 0,
        layer: 8,
        component,
        at: (0, 1),
        pages: _,
        here: 102,
        there: 103,
    } = net.failure(id)
    else {
        panic!()
    };
    assert_eq!(component, "key");
    assert_eq!(net.nodes[1].counters().digest_mismatches, 1);
    net.pass(10_000);
    assert_eq!(net.released(1), Some(Reason::Expired));
    net.assert_idle();
}

#[test]
fn a_cancelled_transfer_ends_when_both_sides_have_let_go() {
    let mut net = Net::pair();
    let handle = net.offer(1);
    let id = net.pull(&handle);
    let serve = net.accept();
    assert!(net.nodes[1].landing(id, 0, 1, 100));
    net.nodes[1].cancel(id, net.now);
    net.settle();
    assert!(
        !net.nodes[1].landing(id, 0, 0, 100),
        "nothing lands any more"
    );
    net.nodes[0].stopped(serve, net.now);
    net.settle();
    assert_eq!(net.ended(id), []);
    net.quiet(id);
    assert_eq!(net.ended(id), [(Outcome::Cancelled, true)]);
    let dirty = |a: &Action| matches!(a, Action::Ended { dirty, .. } if dirty[..] == [Dirty { part: 0, chunks: vec![1] }]);
    assert_eq!(net.count(dirty), 1);
    // The lease runs out as it would have.
    net.pass(3000);
    assert_eq!(net.released(1), Some(Reason::Expired));
    net.assert_idle();
}

#[test]
fn pages_are_quarantined_from_the_deadline_to_the_fence() {
    let mut net = Net::pair();
    let handle = net.offer(1);
    let id = net.pull(&handle);
    let serve = net.accept();
    net.pass(10_001);
    let [(Outcome::Failed(Failure::Deadline { missing }), false)] = &net.ended(id)[..] else {
        panic!()
    };
    assert_eq!(missing, "3 of 3 chunks of rank 0");
    assert_eq!(net.nodes[1].counters().quarantined_now, 1);
    net.quiet(id);
    assert_eq!(net.count(|a| matches!(a, Action::Fenced { .. })), 0);
    net.nodes[0].stopped(serve, net.now);
    net.settle();
    assert_eq!(net.count(|a| matches!(a, Action::Fenced { .. })), 1);
    assert_eq!(net.ended(id).len(), 1);
    net.pass(3000);
    net.assert_idle();
}

#[test]
fn a_peer_that_acknowledges_nothing_loses_its_link() {
    let mut net = Net::pair();
    let handle = net.offer(1);
    let id = net.pull(&handle);
    net.accept();
    net.nodes[1].cancel(id, net.now);
    net.settle();
    net.quiet(id);
    net.pass(3100);
    assert_eq!(net.ended(id), [(Outcome::Cancelled, true)]);
    assert_eq!(net.nodes[1].counters().fences_forced, 1);
}

#[test]
fn an_offer_that_is_taken_back_is_released_when_nobody_reads() {
    let mut net = Net::pair();
    let handle = net.offer(1);
    let id = net.pull(&handle);
    let serve = net.accept();
    net.nodes[0].withdraw(1, net.now);
    net.settle();
    assert_eq!(
        net.count(|a| matches!(
            a,
            Action::Quarantined {
                offer: 1,
                reason: Reason::Withdrawn
            }
        )),
        1
    );
    assert_eq!(net.released(1), None);
    net.nodes[0].stopped(serve, net.now);
    net.settle();
    assert_eq!(net.released(1), None, "the consumer may still copy");
    net.quiet(id);
    assert_eq!(net.released(1), Some(Reason::Withdrawn));
    assert!(matches!(
        net.failure(id),
        Failure::Refused {
            reason: Reason::Withdrawn,
            ..
        }
    ));
    net.assert_idle();
}

#[test]
fn a_lease_is_extended_while_a_transfer_is_on() {
    let mut net = Net::pair();
    let handle = net.offer(1);
    let id = net.pull(&handle);
    let serve = net.accept();
    net.pass(7000);
    assert_eq!(net.released(1), None);
    assert!(net.nodes[0].counters().leases_extended >= 3);
    net.sums(serve, &SUMS, GENERATION);
    net.land(id, &CHUNKS);
    assert_eq!(net.ended(id), [(Outcome::Committed, true)]);
}

#[test]
fn silence_is_loss_within_three_seconds_and_links_come_back() {
    let mut net = Net::pair();
    net.nodes[1].connect("p", net.now);
    net.settle();
    assert_eq!(net.ups(), 2);
    net.pass(30_000);
    assert_eq!(
        net.count(|a| matches!(a, Action::PeerLost { .. })),
        0,
        "heartbeats keep it"
    );
    net.connected = false;
    net.pass(3001);
    assert_eq!(net.count(|a| matches!(a, Action::PeerLost { .. })), 2);
    net.pass(60_000);
    let dials = net.nodes[1].counters().dials;
    assert!(dials < 40, "{dials} dials in a minute");
    net.connected = true;
    net.pass(5100);
    assert_eq!(net.ups(), 4);
}

#[test]
fn links_that_both_sides_dial_become_one() {
    let mut net = Net::pair();
    net.nodes[0].connect("c", net.now);
    net.nodes[1].connect("p", net.now);
    net.settle();
    net.pass(20_000);
    let live: Vec<_> = net.nodes.iter().map(|node| node.links.len()).collect();
    assert_eq!(live, [1, 1]);
    let (a, _) = net.nodes[0].ready_link("c", 0).unwrap();
    let (b, _) = net.nodes[1].ready_link("p", 0).unwrap();
    assert_eq!(net.ends[&(0, a)], (1, b));
    assert_eq!(net.ups(), 2);
}

#[test]
fn a_handle_of_an_earlier_life_fails_once_the_later_one_is_sure_to_live() {
    let mut net = Net::pair();
    let handle = net.offer(1);
    // The consumer meets the later life only, before the pull or after.
    let mut again = Node::new(config("p", 11)).unwrap();
    again.know("c", &[(0, vec![0])]).unwrap();
    again.connect("c", net.now);
    net.nodes[0] = again;
    for _ in 0..2 {
        net.settle();
        let id = net.pull(&handle);
        let loss_ms = net.nodes[1].config().loss_ns / 1_000_000;
        net.pass(loss_ms - 100);
        assert!(net.nodes[1].part_state(id, 0).is_some(), "too early");
        net.pass(200);
        assert_eq!(net.failure(id), Failure::Restarted { rank: 0 });
    }
    assert_eq!(net.nodes[1].counters().peers_restarted, 0);
}

#[test]
fn a_restarted_producer_replaces_itself_for_good() {
    let mut net = Net::pair();
    net.nodes[1].connect("p", net.now);
    let handle = net.offer(1);
    let id = net.pull(&handle);
    net.accept();
    // Its processes are replaced, without a word to the consumer.
    let mut again = Node::new(config("p", 11)).unwrap();
    again.know("c", &[(0, vec![0])]).unwrap();
    again.connect("c", net.now);
    net.nodes.push(again);
    net.settle();
    net.quiet(id);
    assert_eq!(net.failure(id), Failure::Restarted { rank: 0 });
    assert_eq!(net.nodes[1].counters().peers_restarted, 1);
    let error = net.nodes[1].pull(pull(&handle), net.now, UNIX).unwrap_err();
    assert!(error.to_string().contains("producer restarted"), "{error}");
    // The earlier life comes back.
    net.nodes[0].connect("c", net.now);
    net.settle();
    net.pass(8000);
    assert!(
        net.log
            .iter()
            .any(|(at, action)| (*at, action) == (0, &Action::Superseded { engine: "c".into() }))
    );
    assert_eq!(
        net.nodes[1].ready_link("p", 0).map(|(_, epoch)| epoch),
        Some(11)
    );
    assert!(net.nodes[1].counters().epochs_refused > 0);
    // A handle of the new life of which the consumer has an old link would wait for the new one.
    let new = net.nodes[2].offer(offer(1), net.now, UNIX).unwrap();
    let id = net.pull(&new);
    assert_eq!(net.nodes[1].part_state(id, 0), Some(PartState::Asked));
}

#[test]
fn versions_are_negotiated_and_the_older_side_hears_no_new_message() {
    let mut older = config("c", 2);
    older.versions = (3, 3);
    let mut net = Net::of(vec![config("p", 1), older.clone()]);
    let handle = net.offer(1);
    let id = net.pull(&handle);
    let serve = net.accept();
    let (link, _) = net.nodes[1].ready_link("p", 0).unwrap();
    assert_eq!(net.nodes[1].link_version(link), Some(3));
    let ready = |a: &Action| {
        matches!(
            a,
            Action::Send {
                message: Message::Ready { .. },
                ..
            }
        )
    };
    assert_eq!(net.count(ready), 0);
    net.sums(serve, &SUMS, GENERATION);
    net.land(id, &CHUNKS);
    assert_eq!(net.ended(id), [(Outcome::Committed, true)]);
    // The same between equals has it.
    let mut net = Net::pair();
    let handle = net.offer(1);
    net.pull(&handle);
    net.accept();
    assert_eq!(net.count(ready), 1);
    // And those that have no version in common part.
    let mut newer = config("p", 1);
    newer.versions = (4, 4);
    let mut net = Net::of(vec![newer, older]);
    let handle = net.offer(1);
    let id = net.pull(&handle);
    assert!(matches!(
        net.failure(id),
        Failure::Refused {
            reason: Reason::Version,
            ..
        }
    ));
    // A later build's Hello is read by its versions.
    let mut hello = message::tests::hello();
    (hello.oldest, hello.newest, hello.to_engine) = (4, 9, "p".into());
    let mut node = Node::new(config("p", 1)).unwrap();
    node.accepted(LinkId(0), None, 1);
    node.message(LinkId(0), &Message::Hello(Box::new(hello)).encode(), 1);
    assert_eq!(node.link_version(LinkId(0)), Some(4));
}

#[test]
fn a_message_of_a_later_version_is_not_taken_in_an_earlier_one() {
    let mut older = config("c", 2);
    older.versions = (3, 3);
    let mut net = Net::of(vec![config("p", 1), older]);
    let handle = net.offer(1);
    let id = net.pull(&handle);
    net.accept();
    let (link, _) = net.nodes[1].ready_link("p", 0).unwrap();
    let ready = Message::Ready {
        transfer: id.0,
        part: 0,
        layer: 7,
        tokens: 1,
    };
    net.nodes[1].message(link, &ready.encode(), net.now);
    assert_eq!(net.nodes[1].link_state(link), Some(LinkState::Lost));
}

#[test]
fn strangers_and_those_that_do_not_agree_are_told_why() {
    let listed =
        |identity: &str| Admission::Listed([("c".to_owned(), [identity.to_owned()].into())].into());
    let rejected = |net: &mut Net| {
        let handle = net.offer(1);
        let id = net.pull(&handle);
        match net.failure(id) {
            Failure::Refused { reason, .. } => reason,
            other => panic!("{other}"),
        }
    };
    let mut guarded = config("p", 1);
    guarded.admission = listed("someone else");
    assert_eq!(
        rejected(&mut Net::of(vec![guarded.clone(), config("c", 2)])),
        Reason::NotAllowed
    );
    guarded.admission = listed("c");
    let mut net = Net::of(vec![guarded, config("c", 2)]);
    let handle = net.offer(1);
    let id = net.pull(&handle);
    assert_eq!(net.nodes[1].part_state(id, 0), Some(PartState::Asked));
    let mut net = Net::pair();
    net.agreement = Err("head_dim 64 there, 128 here".into());
    assert_eq!(rejected(&mut net), Reason::Disagree);
    net.pass(60_000);
    assert!(net.nodes[1].counters().dials < 20);
}

#[test]
fn garbage_concerns_only_its_own_link() {
    let mut net = Net::pair();
    let handle = net.offer(1);
    let id = net.pull(&handle);
    let serve = net.accept();
    for (at, bytes) in [
        (100, &b"GET / HTTP/1.1"[..]),
        (101, &[]),
        (102, &[7]),
        (103, &[3; 9]),
    ] {
        let link = LinkId(at);
        net.nodes[0].accepted(link, None, net.now);
        net.nodes[0].message(link, bytes, net.now);
        net.settle();
        assert_eq!(net.nodes[0].link_state(link), None, "closed");
    }
    for message in message::tests::all() {
        let link = LinkId(200);
        net.nodes[0].accepted(link, None, net.now);
        net.nodes[0].message(link, &message.encode(), net.now);
        net.settle();
        net.nodes[0].closed(link, "done", net.now);
    }
    // One that says nothing is let go.
    net.nodes[0].accepted(LinkId(300), None, net.now);
    net.pass(3001);
    assert_eq!(net.nodes[0].link_state(LinkId(300)), None);
    net.sums(serve, &SUMS, GENERATION);
    net.land(id, &CHUNKS);
    assert_eq!(net.ended(id), [(Outcome::Committed, true)]);
}

#[test]
fn what_a_ready_peer_makes_up_loses_it_its_link_and_nothing_else() {
    for message in message::tests::all() {
        let mut net = Net::pair();
        let handle = net.offer(1);
        let id = net.pull(&handle);
        net.accept();
        let (link, _) = net.nodes[1].ready_link("p", 0).unwrap();
        net.nodes[1].message(link, &message.encode(), net.now);
        net.settle();
        net.quiet(id);
        let harmless = matches!(
            message,
            Message::Heartbeat
                | Message::Want
                | Message::Decline { .. }
                | Message::Push { .. }
                | Message::Pull(_)
                | Message::Done { .. }
                | Message::Stop { .. }
                | Message::Unmapped { .. }
        );
        assert!(harmless || net.ended(id).len() == 1, "{message:?}");
        net.pass(30_000);
        assert_eq!(net.ended(id).len(), 1, "{message:?}");
    }
}

#[test]
fn a_chunk_that_comes_twice_or_with_another_size_fails() {
    for (chunk, bytes) in [(0, 99), (3, 100), (1, 100)] {
        let mut net = Net::pair();
        let handle = net.offer(1);
        let id = net.pull(&handle);
        let serve = net.accept();
        net.land(id, &[(1, 100)]);
        assert!(!net.nodes[1].landing(id, 0, chunk, bytes));
        net.settle();
        net.nodes[0].stopped(serve, net.now);
        net.quiet(id);
        assert!(matches!(net.failure(id), Failure::Protocol { rank: 0, .. }));
    }
}

#[test]
fn other_totals_than_the_plan_has_fail() {
    let mut net = Net::pair();
    let handle = net.offer(1);
    let id = net.pull(&handle);
    let serve = net.served();
    let owed = Owed {
        chunks: 3,
        bytes: 251,
        steps: 2,
        parts: 1,
        mapped: false,
    };
    net.nodes[0].accept(serve, owed, net.now);
    net.settle();
    net.nodes[0].stopped(serve, net.now);
    net.settle();
    net.quiet(id);
    assert!(
        net.failure(id)
            .to_string()
            .contains("3 chunks of 251 bytes")
    );
}

#[test]
fn pages_are_lent_or_sent_instead() {
    let mut net = Net::pair();
    let handle = net.offer(1);
    let mut spec = pull(&handle);
    let pages: Vec<u32> = (0..crate::limits::MAX_PAGES_PER_MESSAGE as u32 + 2).collect();
    (spec.parts[0].map, spec.parts[0].pages) = (true, pages.len() as u32);
    let id = net.nodes[1].pull(spec.clone(), net.now, UNIX).unwrap();
    net.settle();
    let serve = net.served();
    let (link, _) = net.nodes[0].ready_link("c", 0).unwrap();
    let most = crate::limits::MAX_KEYS_PER_MESSAGE as u32;
    let keys: Vec<LentKey> = (0..most + 3).map(|region| (region, [1; _])).collect();
    net.nodes[0].lend(link, 0, &keys);
    assert!(net.nodes[0].has_lent(link, 0));
    let owed = Owed {
        chunks: 3,
        bytes: 250,
        steps: 2,
        parts: 1,
        mapped: true,
    };
    net.nodes[0].list(serve, &pages);
    let trace = Trace {
        id: [1; 16],
        span: [2; 8],
        flags: 1,
    };
    net.nodes[0].trace(1, trace);
    net.nodes[0].accept(serve, owed, net.now);
    net.settle();
    let got = |a: &Action| {
        matches!(a, Action::Copy { keys, pages: listed, .. }
            if keys.len() as u32 == most + 3 && listed[..] == pages)
    };
    assert_eq!(net.count(got), 1);
    assert_eq!(
        net.count(|a| matches!(a, Action::Traced { trace: told, .. } if *told == trace)),
        1
    );
    assert_eq!(net.nodes[1].part_state(id, 0), Some(PartState::Mapped));
    let mapped = Sums {
        mapped: true,
        first: 0,
        sums: vec![1, 2],
        generation: GENERATION,
    };
    net.nodes[0].sent(serve, mapped.clone(), net.now);
    net.nodes[1].unmapped(id, 0, "no such file", net.now);
    net.settle();
    assert_eq!(net.count(|a| matches!(a, Action::SendInstead { .. })), 1);
    net.nodes[0].sent(serve, mapped, net.now);
    net.sums(serve, &SUMS, GENERATION);
    net.land(id, &CHUNKS);
    assert_eq!(net.ended(id), [(Outcome::Committed, true)]);
    net.assert_idle();
}

#[test]
fn a_push_is_a_pull_that_was_asked_for() {
    let mut net = Net::pair();
    let spec = |number| GrantSpec {
        number,
        pages: [8; 16],
        tokens: 64,
        lease_ns: 2000 * MS,
        bound: Some("p".into()),
    };
    let grant = net.nodes[1].grant(spec(4), net.now, UNIX).unwrap();
    net.offer(1);
    net.nodes[0].push(1, &grant, &[0], net.now, UNIX).unwrap();
    net.settle();
    let invited = |(_, action): &(usize, Action)| match action {
        Action::Invited {
            grant: 4, handle, ..
        } => Some(handle.clone()),
        _ => None,
    };
    let handle = net.log.iter().find_map(invited).unwrap();
    let mut asked = pull(&handle);
    asked.grant = Some(4);
    let id = net.nodes[1].pull(asked, net.now, UNIX).unwrap();
    net.settle();
    let serve = net.accept();
    net.sums(serve, &SUMS, GENERATION);
    net.land(id, &CHUNKS);
    assert_eq!(net.ended(id), [(Outcome::Committed, true)]);
    // A grant that has been used, one that nobody uses, and one that was made up.
    let forged = Handle::seal(
        HandleFields {
            number: 9,
            ..grant.fields().clone()
        },
        &key("x"),
    )
    .unwrap();
    net.offer(2);
    net.nodes[0].push(2, &forged, &[0], net.now, UNIX).unwrap();
    net.settle();
    assert_eq!(
        net.count(|a| matches!(
            a,
            Action::Declined {
                offer: 2,
                reason: Reason::Forged,
                ..
            }
        )),
        1
    );
    let unused = net.nodes[1].grant(spec(5), net.now, UNIX).unwrap();
    net.pass(2100);
    assert_eq!(
        net.count(|a| matches!(
            a,
            Action::Returned {
                grant: 5,
                reason: Reason::Expired
            }
        )),
        1
    );
    net.offer(3);
    net.nodes[0].push(3, &unused, &[0], net.now, UNIX).unwrap();
    net.settle();
    assert_eq!(
        net.count(|a| matches!(
            a,
            Action::Declined {
                offer: 3,
                reason: Reason::Expired,
                ..
            }
        )),
        1
    );
    net.pass(3000);
    net.assert_idle();
}

#[test]
fn a_descriptor_of_many_parts_is_sent_once_to_an_engine() {
    let mut large = config("p", 1);
    large.descriptor = vec![7; 3 * crate::limits::DESCRIPTOR_PART_BYTES / 2].into();
    let mut net = Net::of(vec![large, config("c", 2)]);
    net.nodes[1].connect("p", net.now);
    net.settle();
    assert_eq!(net.ups(), 2);
    let (link, _) = net.nodes[0].ready_link("c", 0).unwrap();
    net.cut(0, link);
    net.pass(1000);
    assert_eq!(net.ups(), 4);
    let parts = |a: &Action| matches!(a, Action::Send { message: Message::Description { total, .. }, .. } if *total > 10);
    assert_eq!(net.count(parts), 2);
    assert_eq!(net.count(|a| matches!(a, Action::Negotiate { .. })), 2);
}

#[test]
fn what_both_sides_must_agree_on_is_compared() {
    let mut net = Net::pair();
    let handle = net.offer(1);
    let id = net.nodes[1].pull(pull(&handle), net.now, UNIX).unwrap();
    // The first to negotiate comes to something else than the second.
    let mut first = true;
    for _ in 0..100 {
        for at in 0..2 {
            while let Some(action) = net.nodes[at].actions().pop_front() {
                if matches!(action, Action::Negotiate { .. }) {
                    net.agreement = Ok([u8::from(std::mem::take(&mut first)); 32]);
                }
                net.act(at, action);
            }
        }
        if let Some((at, link, message)) = net.wires.pop_front() {
            net.nodes[at].message(link, &message.encode(), net.now);
        }
    }
    let failure = net.failure(id);
    assert!(
        failure
            .to_string()
            .contains("did not agree on the same plan"),
        "{failure}"
    );
}

#[test]
fn a_shutdown_leaves_nothing() {
    let mut net = Net::pair();
    let handle = net.offer(1);
    let id = net.pull(&handle);
    let serve = net.accept();
    net.nodes[0].shutdown(net.now);
    net.settle();
    net.nodes[0].stopped(serve, net.now);
    net.quiet(id);
    net.settle();
    assert_eq!(net.released(1), Some(Reason::Withdrawn));
    assert_eq!(net.ended(id).len(), 1);
    net.assert_idle();
    assert!(net.nodes.iter().all(|node| node.links.is_empty()));
}

#[test]
fn numbers_are_used_once_and_limits_are_limits() {
    let mut net = Net::pair();
    net.offer(1);
    assert!(net.nodes[0].offer(offer(1), net.now, UNIX).is_err());
    net.nodes[0].withdraw(1, net.now);
    assert!(net.nodes[0].offer(offer(1), net.now, UNIX).is_err());
    let mut wrong = config("p", 1);
    wrong.versions = (1, 4);
    assert!(Node::new(wrong).is_err());
    let mut wrong = config("p", 1);
    wrong.loss_ns = wrong.heartbeat_ns;
    assert!(Node::new(wrong).is_err());
    assert!(Node::new(Config::new("a b", 0, vec![], 0, key("x"))).is_err());
}

#[test]
fn other_pages_than_the_request_has_are_not_mapped() {
    for (listed, keys) in [(2, true), (4, true), (0, true), (3, false)] {
        let mut net = Net::pair();
        let handle = net.offer(1);
        let mut spec = pull(&handle);
        (spec.parts[0].map, spec.parts[0].pages) = (true, 3);
        let id = net.nodes[1].pull(spec, net.now, UNIX).unwrap();
        net.settle();
        let serve = net.served();
        let (link, _) = net.nodes[0].ready_link("c", 0).unwrap();
        if keys {
            net.nodes[0].lend(link, 0, &[(0, [1; _])]);
        }
        net.nodes[0].list(serve, &vec![5; listed]);
        let owed = Owed {
            chunks: 3,
            bytes: 250,
            steps: 2,
            parts: 1,
            mapped: true,
        };
        net.nodes[0].accept(serve, owed, net.now);
        net.settle();
        assert_eq!(net.count(|a| matches!(a, Action::Copy { .. })), 0);
        net.quiet(id);
        assert!(matches!(net.failure(id), Failure::Protocol { rank: 0, .. }));
    }
}

#[test]
fn the_plan_of_an_engine_that_was_never_met_is_made_when_it_is_there() {
    let mut net = Net::pair();
    let handle = net.offer(1);
    let spec = pull(&handle);
    let parts = spec.parts.clone();
    let id = net.nodes[1].seek(spec.clone(), net.now, UNIX).unwrap();
    net.settle();
    assert_eq!(net.count(|a| matches!(a, Action::Serve { .. })), 0);
    assert_eq!(
        net.count(|a| matches!(a, Action::Plan { transfer, .. } if *transfer == id)),
        1
    );
    net.nodes[1].planned(id, parts.clone(), net.now);
    net.settle();
    let serve = net.accept();
    net.sums(serve, &SUMS, GENERATION);
    net.land(id, &CHUNKS);
    assert_eq!(net.ended(id), [(Outcome::Committed, true)]);
    // A plan that cannot be is this side's failure.
    let handle = net.offer(2);
    let id = net.nodes[1].seek(pull(&handle), net.now, UNIX).unwrap();
    net.settle();
    let mut other = parts;
    other[0].source = 99;
    net.nodes[1].planned(id, other, net.now);
    net.settle();
    assert!(matches!(net.failure(id), Failure::NoPath { rank: 99, .. }));
}

#[test]
fn what_nothing_leads_to_fails_at_once() {
    let mut net = Net::pair();
    let handle = net.offer(1);
    net.nodes[1]
        .know("p", &[(0, vec![0]), (7, vec![7])])
        .unwrap();
    let mut spec = pull(&handle);
    spec.parts[0].source = 7;
    let id = net.nodes[1].pull(spec, net.now, UNIX).unwrap();
    net.nodes[1].no_path("p", 7, "tcp is not allowed", net.now);
    net.settle();
    assert!(matches!(net.failure(id), Failure::NoPath { rank: 7, .. }));
}

#[test]
fn a_peer_that_comes_under_ever_other_numbers_leaves_nothing() {
    let mut net = Net::pair();
    let before = net.nodes[0].size();
    for number in 1..50 {
        let mut other = config("x", 9);
        (other.node, other.ranks) = (number, vec![number * 2, number * 2 + 1]);
        let mut other = Node::new(other).unwrap();
        other.know("p", &[(0, vec![0])]).unwrap();
        let (here, there) = (LinkId(1000 + 2 * u64::from(number)), LinkId(1));
        other.dialled(there, "p", 0, None, net.now);
        net.nodes[0].accepted(here, None, net.now);
        // Messages go both ways until neither has more to say.
        loop {
            let said: Vec<Action> = other.actions().drain(..).collect();
            let answered: Vec<Action> = net.nodes[0].actions().drain(..).collect();
            if said.is_empty() && answered.is_empty() {
                break;
            }
            for action in said {
                match action {
                    Action::Send { message, .. } => {
                        net.nodes[0].message(here, &message.encode(), net.now);
                    }
                    Action::Negotiate { digest, .. } => other.agreed(digest, Ok([9; 32]), net.now),
                    _ => {}
                }
            }
            for action in answered {
                match action {
                    Action::Send { message, .. } => {
                        other.message(there, &message.encode(), net.now)
                    }
                    Action::Negotiate { digest, .. } => {
                        net.nodes[0].agreed(digest, Ok([9; 32]), net.now);
                    }
                    _ => {}
                }
            }
        }
        assert_eq!(net.nodes[0].link_state(here), Some(LinkState::Ready));
        net.nodes[0].closed(here, "reset", net.now);
        net.nodes[0].actions().clear();
    }
    // But for the engine's epoch.
    assert_eq!(net.nodes[0].size(), before + 1);
}

#[test]
fn keys_that_nobody_asked_for_are_not_kept() {
    for map in [false, true] {
        let mut net = Net::pair();
        let handle = net.offer(1);
        let mut spec = pull(&handle);
        spec.parts[0].map = map;
        net.nodes[1].pull(spec, net.now, UNIX).unwrap();
        net.settle();
        let (link, _) = net.nodes[1].ready_link("p", 0).unwrap();
        let keys = Message::Keys {
            rank: 0,
            left: 0,
            keys: vec![(0, [1; _])],
        };
        net.nodes[1].message(link, &keys.encode(), net.now);
        net.settle();
        assert_eq!(net.nodes[1].link_state(link).is_some(), map);
    }
}

#[test]
fn a_step_without_chunks_is_not_compared_twice() {
    let mut net = Net::pair();
    let handle = net.offer(1);
    let mut spec = pull(&handle);
    (spec.parts[0].map, spec.parts[0].pages) = (true, 1);
    let mut steps = spec.parts[0].steps.to_vec();
    steps.push(Step {
        layer: 9,
        component: "key".into(),
    });
    spec.parts[0].steps = steps.into();
    let id = net.nodes[1].pull(spec, net.now, UNIX).unwrap();
    net.settle();
    let serve = net.served();
    let (link, _) = net.nodes[0].ready_link("c", 0).unwrap();
    net.nodes[0].lend(link, 0, &[(0, [1; _])]);
    net.nodes[0].list(serve, &[5]);
    let owed = Owed {
        chunks: 3,
        bytes: 250,
        steps: 3,
        parts: 1,
        mapped: true,
    };
    net.nodes[0].accept(serve, owed, net.now);
    let sums = Sums {
        mapped: true,
        first: 2,
        sums: vec![0],
        generation: GENERATION,
    };
    net.nodes[0].sent(serve, sums, net.now);
    net.settle();
    net.nodes[1].unmapped(id, 0, "no such file", net.now);
    net.settle();
    net.nodes[0].stopped(serve, net.now);
    net.settle();
    net.quiet(id);
    assert!(matches!(net.failure(id), Failure::Local { .. }));
}
