//! The producer's side: serves every consumer rank that is owed something.

use super::{Action, Failure, LentKey, LinkId, MAX_KEYS, Message, Outcome, VERSION};

/// Where a consumer rank stands with this producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_enums,
    reason = "the states of the protocol's picture"
)]
pub enum ServeState {
    /// Has not said Hello.
    Unknown,
    /// Welcomed; has not pulled.
    Greeted,
    /// It wants to map the pages; keys are not sent yet.
    Asked,
    /// Keys are sent; the pages are being digested.
    Lending,
    /// Chunks are being sent.
    Sending,
    /// Everything is sent, or lent; its outcome is awaited.
    Waiting,
    /// Its outcome is known.
    Ended,
}

/// What a producer knows of one consumer rank before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "what a pair's plan says")]
pub struct Owed {
    /// Consumer rank.
    pub rank: u32,
    /// Chunks.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What there is to do for a consumer rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_enums,
    reason = "a driver that overlooks some of it never ends"
)]
pub enum Work {
    /// Find the keys of the pages: [`Producer::lend`], or [`Producer::cannot_lend`].
    Lend(LinkId),
    /// Digest the pages, in the consumer's format, under a key.
    Digest(LinkId, u64),
    /// Send chunks, digested under a key.
    Send(LinkId, u64),
}

#[derive(Debug)]
struct Peer {
    owed: Owed,
    state: ServeState,
    link: Option<LinkId>,
    key: u64,
    /// Whether it has keys and has not said that they are of no use.
    lent: bool,
}

/// One producer rank's part of a transfer.
#[derive(Debug)]
pub struct Producer {
    rank: u32,
    agreement: [u8; 32],
    deadline_ns: u64,
    peers: Vec<Peer>,
    actions: Vec<Action>,
    outcome: Option<Outcome>,
}

impl Producer {
    /// A transfer of producer rank `rank`, which must end by `deadline_ns` on the caller's clock. Peers
    /// are named by their index in `owed`.
    #[must_use]
    pub fn new(rank: u32, agreement: [u8; 32], deadline_ns: u64, owed: Vec<Owed>) -> Self {
        let peers: Vec<Peer> = owed
            .into_iter()
            .map(|owed| Peer {
                owed,
                state: ServeState::Unknown,
                link: None,
                key: 0,
                lent: false,
            })
            .collect();
        let outcome = peers.is_empty().then_some(Outcome::Committed);
        Self {
            rank,
            agreement,
            deadline_ns,
            peers,
            actions: Vec::new(),
            outcome,
        }
    }

    /// What to do now, in order; whoever does it takes it out.
    pub fn actions(&mut self) -> &mut Vec<Action> {
        &mut self.actions
    }

    /// How it ended, once it has.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// What there is to do for a peer.
    #[must_use]
    pub fn work(&self, peer: usize) -> Option<Work> {
        let peer = &self.peers[peer];
        let link = peer.link.filter(|_| self.outcome.is_none())?;
        match peer.state {
            ServeState::Asked => Some(Work::Lend(link)),
            ServeState::Lending => Some(Work::Digest(link, peer.key)),
            ServeState::Sending => Some(Work::Send(link, peer.key)),
            _ => None,
        }
    }

    /// State of a peer.
    #[must_use]
    pub fn state(&self, peer: usize) -> ServeState {
        self.peers[peer].state
    }

    /// A message arrived.
    pub fn message(&mut self, link: LinkId, bytes: &[u8]) {
        if self.outcome.is_some() {
            return;
        }
        let known = self.peers.iter().position(|p| p.link == Some(link));
        let message = match (Message::decode(bytes), known) {
            (Ok(message), _) => message,
            // A stranger that talks nonsense is shown the door; nobody else is concerned.
            (Err(_), None) => return self.actions.push(Action::Drop(link)),
            (Err(error), Some(peer)) => return self.broke(peer, error.to_string()),
        };
        let Some(peer) = known else {
            return self.greet(link, message);
        };
        let this = &mut self.peers[peer];
        let rank = this.owed.rank;
        match (this.state, message) {
            (ServeState::Greeted, Message::Pull { key, map, .. }) => {
                this.key = key;
                this.state = match map {
                    true => ServeState::Asked,
                    false => ServeState::Sending,
                };
            }
            (ServeState::Lending | ServeState::Waiting, Message::Unmapped { .. }) if this.lent => {
                this.lent = false;
                this.state = ServeState::Sending;
            }
            (
                ServeState::Waiting,
                Message::Outcome {
                    committed: true, ..
                },
            ) => {
                this.state = ServeState::Ended;
                self.actions.push(Action::Finish(link));
                if self.peers.iter().all(|p| p.state == ServeState::Ended) {
                    self.outcome = Some(Outcome::Committed);
                }
            }
            (
                _,
                Message::Outcome {
                    committed: false,
                    why,
                },
            ) => {
                this.state = ServeState::Ended;
                self.fail(Failure::PeerFailed { rank, why });
            }
            (state, message) => self.broke(peer, format!("sends {message:?} while {state:?}")),
        }
    }

    fn greet(&mut self, link: LinkId, message: Message) {
        let Message::Hello {
            version,
            rank,
            to,
            agreement,
        } = message
        else {
            return self.actions.push(Action::Drop(link));
        };
        let peer = self.peers.iter().position(|p| p.owed.rank == rank);
        let why = if version != VERSION {
            format!("protocol version {version} is not known here; this build speaks {VERSION}")
        } else if to != self.rank {
            format!("this is producer rank {}, not {to}", self.rank)
        } else if agreement != self.agreement {
            "the two sides did not agree on the same plan: their descriptions differ".to_owned()
        } else {
            match peer {
                None => format!(
                    "consumer rank {rank} is owed nothing by producer rank {}",
                    self.rank
                ),
                Some(peer) if self.peers[peer].state != ServeState::Unknown => {
                    format!("consumer rank {rank} is served already")
                }
                Some(peer) => {
                    let this = &mut self.peers[peer];
                    this.link = Some(link);
                    this.state = ServeState::Greeted;
                    let Owed { chunks, bytes, .. } = this.owed;
                    return self
                        .actions
                        .push(Action::Send(link, Message::Welcome { chunks, bytes }));
                }
            }
        };
        self.actions
            .push(Action::Send(link, Message::Refuse { why }));
        self.actions.push(Action::Finish(link));
    }

    /// The keys by which a peer can map this rank's regions.
    pub fn lend(&mut self, peer: usize, keys: &[LentKey]) {
        let this = &mut self.peers[peer];
        if let Some(link) = this.link
            && this.state == ServeState::Asked
        {
            this.state = ServeState::Lending;
            this.lent = true;
            let mut left = keys.len();
            loop {
                let (some, rest) = keys[keys.len() - left..].split_at(left.min(MAX_KEYS));
                left = rest.len();
                let (left, keys) = (left as u32, some.to_vec());
                self.actions
                    .push(Action::Send(link, Message::Keys { left, keys }));
                if rest.is_empty() {
                    return;
                }
            }
        }
    }

    /// This rank's pages cannot be mapped by a peer; they are sent.
    pub fn cannot_lend(&mut self, peer: usize, why: impl Into<String>) {
        let this = &mut self.peers[peer];
        if let Some(link) = this.link
            && this.state == ServeState::Asked
        {
            this.state = ServeState::Sending;
            let why = why.into();
            self.actions
                .push(Action::Send(link, Message::Unmapped { why }));
        }
    }

    /// Everything is handed to the transport, or digested where it lies; `sums` are the digests of the pair's steps.
    pub fn sent(&mut self, peer: usize, sums: Vec<u64>) {
        let this = &mut self.peers[peer];
        if let Some(link) = this.link
            && self.outcome.is_none()
            && matches!(this.state, ServeState::Sending | ServeState::Lending)
        {
            let mapped = this.state == ServeState::Lending;
            this.state = ServeState::Waiting;
            self.actions
                .push(Action::Send(link, Message::Sums { mapped, sums }));
        }
    }

    /// A connection ended.
    pub fn closed(&mut self, link: LinkId, why: impl Into<String>) {
        let Some(peer) = self.peers.iter().position(|p| p.link == Some(link)) else {
            return;
        };
        if self.outcome.is_none() && self.peers[peer].state != ServeState::Ended {
            let rank = self.peers[peer].owed.rank;
            self.peers[peer].state = ServeState::Ended;
            self.fail(Failure::PeerLost {
                rank,
                why: why.into(),
            });
        }
    }

    /// The device with this side's pages failed.
    pub fn device_failed(&mut self, why: impl Into<String>) {
        if self.outcome.is_none() {
            self.fail(Failure::Device { why: why.into() });
        }
    }

    /// This side cannot go on.
    pub fn give_up(&mut self, why: impl Into<String>) {
        if self.outcome.is_none() {
            self.fail(Failure::Local { why: why.into() });
        }
    }

    /// Time passes.
    pub fn tick(&mut self, now_ns: u64) {
        if self.outcome.is_some() || now_ns < self.deadline_ns {
            return;
        }
        let wait = |peer: &Peer| {
            let rank = peer.owed.rank;
            match peer.state {
                ServeState::Unknown => Some(format!("consumer rank {rank} to connect")),
                ServeState::Greeted => Some(format!("consumer rank {rank} to pull")),
                ServeState::Asked => Some(format!("keys for consumer rank {rank}")),
                ServeState::Lending => Some(format!("the digests for consumer rank {rank}")),
                ServeState::Sending => Some(format!("consumer rank {rank} to take its chunks")),
                ServeState::Waiting => Some(format!("the outcome of consumer rank {rank}")),
                ServeState::Ended => None,
            }
        };
        let missing: Vec<_> = self.peers.iter().filter_map(wait).collect();
        self.fail(Failure::Deadline {
            missing: missing.join(", "),
        });
    }

    fn broke(&mut self, peer: usize, what: String) {
        let rank = self.peers[peer].owed.rank;
        self.fail(Failure::Protocol { rank, what });
    }

    fn fail(&mut self, failure: Failure) {
        for peer in &self.peers {
            let Some(link) = peer.link else { continue };
            match peer.state {
                ServeState::Ended => {}
                // Behind payload that is still queued a message would come too late to help.
                ServeState::Sending => self.actions.push(Action::Drop(link)),
                _ => {
                    let why = failure.to_string();
                    self.actions.push(Action::Send(
                        link,
                        Message::Outcome {
                            committed: false,
                            why,
                        },
                    ));
                    self.actions.push(Action::Finish(link));
                }
            }
        }
        self.outcome = Some(Outcome::Failed(failure));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn producer() -> Producer {
        let owed = |rank| Owed {
            rank,
            chunks: 3,
            bytes: 250,
        };
        Producer::new(5, [1; 32], 1000, vec![owed(0), owed(2)])
    }

    fn hello(rank: u32) -> Message {
        Message::Hello {
            version: VERSION,
            rank,
            to: 5,
            agreement: [1; 32],
        }
    }

    fn refusal(message: &Message) -> String {
        let mut p = producer();
        p.message(9, &message.encode());
        match &std::mem::take(p.actions())[..] {
            [Action::Send(9, Message::Refuse { why }), Action::Finish(9)] => why.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn serves_its_consumers_and_commits_when_all_have() {
        let mut p = producer();
        for (link, rank, peer) in [(4, 2, 1), (6, 0, 0)] {
            p.message(link, &hello(rank).encode());
            assert_eq!(
                std::mem::take(p.actions()),
                [Action::Send(
                    link,
                    Message::Welcome {
                        chunks: 3,
                        bytes: 250
                    }
                )]
            );
            p.message(
                link,
                &Message::Pull {
                    transfer: 1,
                    key: 77,
                    map: false,
                }
                .encode(),
            );
            assert_eq!(p.work(peer), Some(Work::Send(link, 77)));
            p.sent(peer, vec![1, 2]);
            assert_eq!(p.work(peer), None);
            let (mapped, sums) = (false, vec![1, 2]);
            assert_eq!(
                std::mem::take(p.actions()),
                [Action::Send(link, Message::Sums { mapped, sums })]
            );
            p.message(
                link,
                &Message::Outcome {
                    committed: true,
                    why: String::new(),
                }
                .encode(),
            );
            assert_eq!(std::mem::take(p.actions()), [Action::Finish(link)]);
            p.closed(link, "done");
        }
        assert_eq!(p.outcome(), Some(&Outcome::Committed));
    }

    fn asked() -> Producer {
        let mut p = producer();
        p.message(3, &hello(0).encode());
        let (transfer, key, map) = (1, 77, true);
        p.message(3, &Message::Pull { transfer, key, map }.encode());
        assert_eq!(p.work(0), Some(Work::Lend(3)));
        std::mem::take(p.actions());
        p
    }

    #[test]
    fn pages_are_lent_until_the_consumer_says_that_it_cannot_map_them() {
        let mut p = asked();
        let keys: Vec<LentKey> = (0..MAX_KEYS as u32 + 2).map(|n| (n, [1; 64])).collect();
        p.lend(0, &keys);
        let lefts: Vec<_> = { std::mem::take(p.actions()) }
            .into_iter()
            .map(|action| match action {
                Action::Send(3, Message::Keys { left, keys }) => (left, keys.len()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(lefts, [(2, MAX_KEYS), (0, 2)]);
        assert_eq!(p.work(0), Some(Work::Digest(3, 77)));
        p.sent(0, vec![4, 5]);
        let (mapped, sums) = (true, vec![4, 5]);
        assert_eq!(
            std::mem::take(p.actions()),
            [Action::Send(3, Message::Sums { mapped, sums })]
        );
        let why = "no such file".to_owned();
        p.message(3, &Message::Unmapped { why: why.clone() }.encode());
        assert_eq!(p.work(0), Some(Work::Send(3, 77)));
        // Once.
        p.message(3, &Message::Unmapped { why }.encode());
        assert!(matches!(
            p.outcome(),
            Some(Outcome::Failed(Failure::Protocol { rank: 0, .. }))
        ));
    }

    #[test]
    fn pages_that_cannot_be_lent_are_sent() {
        let mut p = asked();
        p.cannot_lend(0, "private memory");
        let why = "private memory".to_owned();
        assert_eq!(
            std::mem::take(p.actions()),
            [Action::Send(3, Message::Unmapped { why })]
        );
        assert_eq!(p.work(0), Some(Work::Send(3, 77)));
    }

    #[test]
    fn strangers_are_refused_with_a_reason_and_concern_nobody() {
        assert!(
            refusal(&Message::Hello {
                version: 9,
                rank: 0,
                to: 5,
                agreement: [1; 32]
            })
            .contains("version 9")
        );
        assert!(
            refusal(&Message::Hello {
                version: VERSION,
                rank: 0,
                to: 4,
                agreement: [1; 32]
            })
            .contains("rank 5, not 4")
        );
        assert!(
            refusal(&Message::Hello {
                version: VERSION,
                rank: 0,
                to: 5,
                agreement: [2; 32]
            })
            .contains("descriptions differ")
        );
        assert!(refusal(&hello(1)).contains("owed nothing"));
        let mut p = producer();
        p.message(0, b"GET / HTTP/1.1");
        p.message(
            1,
            &Message::Pull {
                transfer: 0,
                key: 0,
                map: false,
            }
            .encode(),
        );
        assert_eq!(
            std::mem::take(p.actions()),
            [Action::Drop(0), Action::Drop(1)]
        );
        p.closed(0, "dropped");
        assert_eq!(p.outcome(), None);
        p.message(2, &hello(0).encode());
        p.message(3, &hello(0).encode());
        assert!(std::mem::take(p.actions()).iter().any(|a| matches!(a, Action::Send(3, Message::Refuse { why }) if why.contains("served already"))));
    }

    #[test]
    fn a_lost_consumer_or_a_deadline_fails_once() {
        let mut p = producer();
        p.message(1, &hello(0).encode());
        p.closed(1, "reset");
        let lost = Outcome::Failed(Failure::PeerLost {
            rank: 0,
            why: "reset".into(),
        });
        assert_eq!(p.outcome(), Some(&lost));
        p.tick(u64::MAX);
        assert_eq!(p.outcome(), Some(&lost));

        let mut p = producer();
        p.tick(1000);
        let Some(Outcome::Failed(failure)) = p.outcome() else {
            panic!()
        };
        assert!(
            failure
                .to_string()
                .contains("consumer rank 0 to connect, consumer rank 2 to connect")
        );
    }
}
