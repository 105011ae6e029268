//! The consumer's side: pulls from every producer rank that holds something for it.

use super::{Action, Failure, LinkId, Message, Outcome, VERSION};

/// Where a link to a producer rank stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_enums,
    reason = "the states of the protocol's picture"
)]
pub enum LinkState {
    /// No connection yet.
    Connecting,
    /// Hello is sent.
    Greeting,
    /// Pull is sent; chunks arrive.
    Receiving,
    /// Every chunk has landed, and the digests are equal.
    Complete,
}

/// What a consumer knows of one producer rank before it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "what a pair's plan says")]
pub struct Expected {
    /// Producer rank.
    pub rank: u32,
    /// Bytes of each chunk, in order.
    pub chunk_bytes: Vec<u32>,
    /// Step of each chunk.
    pub chunk_step: Vec<u32>,
    /// Name of the component of each step.
    pub step_names: Vec<String>,
}

#[derive(Debug)]
struct Link {
    expected: Expected,
    state: LinkState,
    /// Chunks that have landed whole; they arrive in order.
    landed: usize,
    /// Whether the next chunk has begun to arrive.
    begun: bool,
    sums: Vec<u64>,
}

/// One consumer rank's part of a transfer.
#[derive(Debug)]
pub struct Consumer {
    rank: u32,
    agreement: [u8; 32],
    transfer: u64,
    key: u64,
    deadline_ns: u64,
    links: Vec<Link>,
    actions: Vec<Action>,
    outcome: Option<Outcome>,
}

impl Consumer {
    /// A transfer of consumer rank `rank`, which must end by `deadline_ns` on the caller's clock. Link i
    /// is the one to `expected[i]`.
    #[must_use]
    pub fn new(
        rank: u32,
        agreement: [u8; 32],
        (transfer, key): (u64, u64),
        deadline_ns: u64,
        expected: Vec<Expected>,
    ) -> Self {
        let links = expected
            .into_iter()
            .map(|expected| Link {
                sums: vec![0; expected.step_names.len()],
                expected,
                state: LinkState::Connecting,
                landed: 0,
                begun: false,
            })
            .collect();
        let mut consumer = Self {
            rank,
            agreement,
            transfer,
            key,
            deadline_ns,
            links,
            actions: Vec::new(),
            outcome: None,
        };
        // A rank that is owed nothing has nothing to wait for.
        consumer.commit_if_complete();
        consumer
    }

    /// What to do now; empties the list.
    pub fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// How it ended, once it has.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// State of a link.
    #[must_use]
    pub fn state(&self, link: LinkId) -> LinkState {
        self.links[link].state
    }

    /// Chunks of a link that have begun to land: their pages are dirty unless the transfer commits.
    #[must_use]
    pub fn touched(&self, link: LinkId) -> usize {
        let link = &self.links[link];
        link.landed + usize::from(link.begun)
    }

    /// A connection was made.
    pub fn connected(&mut self, link: LinkId) {
        if self.outcome.is_some() {
            return;
        }
        self.links[link].state = LinkState::Greeting;
        self.actions.push(Action::Send(
            link,
            Message::Hello {
                version: VERSION,
                rank: self.rank,
                to: self.links[link].expected.rank,
                agreement: self.agreement,
            },
        ));
    }

    /// A message arrived.
    pub fn message(&mut self, link: LinkId, bytes: &[u8]) {
        if self.outcome.is_some() {
            return;
        }
        let message = match Message::decode(bytes) {
            Ok(message) => message,
            Err(error) => return self.broke(link, error.to_string()),
        };
        let this = &mut self.links[link];
        let rank = this.expected.rank;
        match (this.state, message) {
            (LinkState::Greeting, Message::Welcome { chunks, bytes }) => {
                let own = (
                    this.expected.chunk_bytes.len() as u64,
                    this.expected
                        .chunk_bytes
                        .iter()
                        .map(|&b| u64::from(b))
                        .sum::<u64>(),
                );
                if (chunks, bytes) != own {
                    return self.broke(
                        link,
                        format!(
                            "offers {chunks} chunks of {bytes} bytes; the plan has {} of {}",
                            own.0, own.1
                        ),
                    );
                }
                this.state = LinkState::Receiving;
                self.actions.push(Action::Send(
                    link,
                    Message::Pull {
                        transfer: self.transfer,
                        key: self.key,
                    },
                ));
            }
            (
                _,
                Message::Refuse { why }
                | Message::Outcome {
                    committed: false,
                    why,
                },
            ) => {
                // A peer may have given up on what another one kept from us.
                let why = match self.missing() {
                    missing if missing.is_empty() => why,
                    missing => format!("{why} (missing here: {missing})"),
                };
                self.fail(Failure::PeerFailed { rank, why });
            }
            (LinkState::Receiving, Message::Sums { sums }) => self.sums(link, &sums),
            (state, message) => {
                self.broke(link, format!("sends {message:?} while {state:?}"));
            }
        }
    }

    /// A chunk is about to land; `false` if it must not, in which case the transfer has failed.
    #[must_use]
    pub fn landing(&mut self, link: LinkId, chunk: u64, bytes: u32) -> bool {
        if self.outcome.is_some() {
            return false;
        }
        let this = &mut self.links[link];
        let next = this.landed as u64;
        let fits = this.state == LinkState::Receiving
            && !this.begun
            && chunk == next
            && this.expected.chunk_bytes.get(this.landed) == Some(&bytes);
        if fits {
            this.begun = true;
        } else {
            let (state, wanted) = (
                this.state,
                this.expected.chunk_bytes.get(this.landed).copied(),
            );
            self.broke(link, format!("sends chunk {chunk} of {bytes} bytes while {state:?}; expected chunk {next} of {wanted:?}"));
        }
        fits
    }

    /// A chunk has landed and is placed; `digest` is of what lies there now.
    pub fn landed(&mut self, link: LinkId, digest: u64) {
        let this = &mut self.links[link];
        if self.outcome.is_some() || !this.begun {
            return;
        }
        let step = this.expected.chunk_step[this.landed] as usize;
        this.sums[step] = this.sums[step].wrapping_add(digest);
        this.begun = false;
        this.landed += 1;
    }

    /// A connection ended, or could not be made.
    pub fn closed(&mut self, link: LinkId, why: impl Into<String>) {
        if self.outcome.is_none() {
            let rank = self.links[link].expected.rank;
            self.fail(Failure::PeerLost {
                rank,
                why: why.into(),
            });
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
        let missing = self.missing();
        self.fail(Failure::Deadline { missing });
    }

    /// What the transfer still waits for, for people.
    fn missing(&self) -> String {
        let wait = |link: &Link| match link.state {
            LinkState::Connecting => Some(format!("a connection to rank {}", link.expected.rank)),
            LinkState::Greeting => Some(format!("an answer of rank {}", link.expected.rank)),
            LinkState::Receiving => {
                let all = link.expected.chunk_bytes.len();
                Some(format!(
                    "{} of {all} chunks of rank {}",
                    all - link.landed,
                    link.expected.rank
                ))
            }
            LinkState::Complete => None,
        };
        let missing: Vec<String> = self.links.iter().filter_map(wait).collect();
        missing.join(", ")
    }

    fn sums(&mut self, link: LinkId, sums: &[u64]) {
        let this = &mut self.links[link];
        let Expected {
            rank,
            chunk_bytes,
            step_names,
            ..
        } = &this.expected;
        if this.landed < chunk_bytes.len() || sums.len() != this.sums.len() {
            let what = format!(
                "sends {} sums after {} of {} chunks; expected {} after all",
                sums.len(),
                this.landed,
                chunk_bytes.len(),
                this.sums.len()
            );
            return self.broke(link, what);
        }
        if let Some(i) = (0..sums.len()).find(|&i| sums[i] != this.sums[i]) {
            let failure = Failure::Digest {
                rank: *rank,
                component: step_names[i].clone(),
                here: this.sums[i],
                there: sums[i],
            };
            return self.fail(failure);
        }
        this.state = LinkState::Complete;
        self.commit_if_complete();
    }

    fn commit_if_complete(&mut self) {
        if self
            .links
            .iter()
            .all(|link| link.state == LinkState::Complete)
        {
            for link in 0..self.links.len() {
                self.actions.push(Action::Send(
                    link,
                    Message::Outcome {
                        committed: true,
                        why: String::new(),
                    },
                ));
                self.actions.push(Action::Finish(link));
            }
            self.outcome = Some(Outcome::Committed);
        }
    }

    fn broke(&mut self, link: LinkId, what: String) {
        let rank = self.links[link].expected.rank;
        self.fail(Failure::Protocol { rank, what });
    }

    /// Ends the transfer. Links are dropped before anything else is sent, so that nothing lands after.
    fn fail(&mut self, failure: Failure) {
        for (id, link) in self.links.iter().enumerate() {
            match link.state {
                LinkState::Connecting => {}
                // A link whose payload may still be arriving is cut, not drained.
                LinkState::Receiving => self.actions.push(Action::Drop(id)),
                _ => {
                    let why = failure.to_string();
                    self.actions.push(Action::Send(
                        id,
                        Message::Outcome {
                            committed: false,
                            why,
                        },
                    ));
                    self.actions.push(Action::Finish(id));
                }
            }
        }
        self.outcome = Some(Outcome::Failed(failure));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(rank: u32) -> Expected {
        Expected {
            rank,
            chunk_bytes: vec![100, 100, 50],
            chunk_step: vec![0, 0, 1],
            step_names: vec!["key".into(), "value".into()],
        }
    }

    fn receiving(links: u32) -> Consumer {
        let mut c = Consumer::new(0, [1; 32], (7, 8), 1000, (0..links).map(expected).collect());
        for link in 0..links as usize {
            c.connected(link);
            c.message(
                link,
                &Message::Welcome {
                    chunks: 3,
                    bytes: 250,
                }
                .encode(),
            );
            assert_eq!(c.state(link), LinkState::Receiving);
        }
        let sent = c.actions();
        assert_eq!(sent.len(), 2 * links as usize);
        c
    }

    fn all_chunks(c: &mut Consumer, link: LinkId) {
        for (chunk, bytes) in [100, 100, 50].into_iter().enumerate() {
            assert!(c.landing(link, chunk as u64, bytes));
            c.landed(link, 10 + chunk as u64);
        }
    }

    fn failure(c: &Consumer) -> &Failure {
        match c.outcome() {
            Some(Outcome::Failed(failure)) => failure,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn commits_once_every_link_is_complete_with_equal_digests() {
        let mut c = receiving(2);
        all_chunks(&mut c, 1);
        c.message(1, &Message::Sums { sums: vec![21, 12] }.encode());
        assert_eq!(c.outcome(), None);
        all_chunks(&mut c, 0);
        c.message(0, &Message::Sums { sums: vec![21, 12] }.encode());
        assert_eq!(c.outcome(), Some(&Outcome::Committed));
        let said = c.actions().into_iter().filter(|a| {
            matches!(
                a,
                Action::Send(
                    _,
                    Message::Outcome {
                        committed: true,
                        ..
                    }
                )
            )
        });
        assert_eq!(said.count(), 2);
        // Nothing that comes later changes it.
        c.closed(0, "gone");
        c.tick(u64::MAX);
        assert_eq!(c.outcome(), Some(&Outcome::Committed));
        assert!(!c.landing(0, 3, 10));
    }

    #[test]
    fn a_digest_that_differs_names_the_component() {
        let mut c = receiving(1);
        all_chunks(&mut c, 0);
        c.message(0, &Message::Sums { sums: vec![21, 13] }.encode());
        assert_eq!(
            *failure(&c),
            Failure::Digest {
                rank: 0,
                component: "value".into(),
                here: 12,
                there: 13
            }
        );
    }

    #[test]
    fn frames_out_of_order_fail_the_transfer_and_land_nothing() {
        for (chunk, bytes) in [(1, 100), (0, 99), (u64::MAX, 100)] {
            let mut c = receiving(1);
            assert!(!c.landing(0, chunk, bytes));
            assert!(matches!(failure(&c), Failure::Protocol { rank: 0, .. }));
            assert_eq!(c.actions(), [Action::Drop(0)]);
        }
        let mut c = receiving(1);
        c.message(0, &Message::Sums { sums: vec![0, 0] }.encode());
        assert!(matches!(failure(&c), Failure::Protocol { .. }));
        let mut c = receiving(1);
        c.message(0, b"garbage");
        assert!(matches!(failure(&c), Failure::Protocol { .. }));
    }

    #[test]
    fn a_lost_peer_or_a_deadline_fails_once_and_counts_what_was_touched() {
        let mut c = receiving(2);
        assert!(c.landing(0, 0, 100));
        c.landed(0, 1);
        assert!(c.landing(0, 1, 100));
        c.closed(0, "reset");
        assert_eq!(
            *failure(&c),
            Failure::PeerLost {
                rank: 0,
                why: "reset".into()
            }
        );
        assert_eq!((c.touched(0), c.touched(1)), (2, 0));
        c.tick(5000);
        assert!(matches!(failure(&c), Failure::PeerLost { .. }));

        let mut c = receiving(1);
        c.tick(999);
        assert_eq!(c.outcome(), None);
        c.tick(1000);
        assert_eq!(
            failure(&c).to_string(),
            "the deadline passed; still missing: 3 of 3 chunks of rank 0"
        );
    }

    #[test]
    fn a_rank_that_is_owed_nothing_commits_at_once() {
        assert_eq!(
            Consumer::new(0, [0; 32], (0, 0), 1, vec![]).outcome(),
            Some(&Outcome::Committed)
        );
    }
}
