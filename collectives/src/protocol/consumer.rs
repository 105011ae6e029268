//! The consumer's side: pulls from every producer rank that holds something for it.

use super::{Action, Failure, LentKey, LinkId, Message, Outcome, VERSION};

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
    /// Pull is sent, with the wish to map; keys arrive.
    Borrowing,
    /// All keys are there; chunks are copied.
    Mapped,
    /// Pull is sent; chunks arrive.
    Receiving,
    /// Every chunk is placed, and the digests are equal.
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
    /// Regions of the producer rank.
    pub regions: u32,
    /// Whether to ask for keys, to map its pages.
    pub map: bool,
}

/// Where a chunk stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    Awaited,
    Begun,
    Placed,
}

#[derive(Debug)]
struct Link {
    expected: Expected,
    state: LinkState,
    chunks: Vec<Arrival>,
    /// Chunks that are placed.
    placed: usize,
    /// Digests of what is placed, by step.
    sums: Vec<u64>,
    /// What the producer says they are, if it has.
    told: Option<Vec<u64>>,
    keys: Vec<LentKey>,
    /// Why the producer lends none.
    unlent: Option<String>,
}

impl Link {
    fn new(expected: Expected) -> Self {
        Self {
            chunks: vec![Arrival::Awaited; expected.chunk_bytes.len()],
            sums: vec![0; expected.step_names.len()],
            expected,
            state: LinkState::Connecting,
            placed: 0,
            told: None,
            keys: Vec::new(),
            unlent: None,
        }
    }

    /// What it still waits for, for people.
    fn missing(&self) -> Option<String> {
        let (rank, all) = (self.expected.rank, self.chunks.len());
        match self.state {
            LinkState::Connecting => Some(format!("a connection to rank {rank}")),
            LinkState::Greeting => Some(format!("an answer of rank {rank}")),
            LinkState::Borrowing => Some(format!("the keys of rank {rank}")),
            LinkState::Mapped | LinkState::Receiving if self.placed == all => {
                Some(format!("the digests of rank {rank}"))
            }
            LinkState::Mapped | LinkState::Receiving => Some(format!(
                "{} of {all} chunks of rank {rank}",
                all - self.placed
            )),
            LinkState::Complete => None,
        }
    }
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
        let links = expected.into_iter().map(Link::new).collect();
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

    /// What to do now, in order; whoever does it takes it out.
    pub fn actions(&mut self) -> &mut Vec<Action> {
        &mut self.actions
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
    pub fn touched(&self, link: LinkId) -> impl Iterator<Item = usize> + '_ {
        let chunks = self.links[link].chunks.iter().enumerate();
        chunks
            .filter(|&(_, &chunk)| chunk != Arrival::Awaited)
            .map(|(index, _)| index)
    }

    /// The keys of a link's regions, once all are there, until the link's pages have turned out not to be mapped.
    #[must_use]
    pub fn lent(&self, link: LinkId) -> Option<&[LentKey]> {
        let link = &self.links[link];
        (link.state == LinkState::Mapped).then_some(&link.keys)
    }

    /// Why a link's producer lends none of its pages, if it has said so.
    #[must_use]
    pub fn unlent(&self, link: LinkId) -> Option<&str> {
        self.links[link].unlent.as_deref()
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
                let map = this.expected.map;
                this.state = match map {
                    true => LinkState::Borrowing,
                    false => LinkState::Receiving,
                };
                self.actions.push(Action::Send(
                    link,
                    Message::Pull {
                        transfer: self.transfer,
                        key: self.key,
                        map,
                    },
                ));
            }
            (LinkState::Borrowing, Message::Keys { left, keys }) => self.keys(link, left, keys),
            (LinkState::Borrowing, Message::Unmapped { why }) => {
                this.unlent = Some(why);
                this.keys = Vec::new();
                this.state = LinkState::Receiving;
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
            (LinkState::Receiving, Message::Sums { mapped: true, .. }) if this.expected.map => {
                // Sent before the producer heard that its pages could not be mapped.
            }
            (LinkState::Mapped, Message::Sums { mapped: true, sums })
            | (
                LinkState::Receiving,
                Message::Sums {
                    mapped: false,
                    sums,
                },
            ) => {
                self.sums(link, sums);
            }
            (state, message) => {
                self.broke(link, format!("sends {message:?} while {state:?}"));
            }
        }
    }

    fn keys(&mut self, link: LinkId, left: u32, keys: Vec<LentKey>) {
        let this = &mut self.links[link];
        let all = this.expected.regions;
        let here = this.keys.len() + keys.len();
        let fits = here as u64 + u64::from(left) <= u64::from(all)
            && (left == 0 || !keys.is_empty())
            && keys.iter().all(|&(region, _)| region < all);
        if !fits {
            let what = format!("sends {here} keys and announces {left}; it has {all} regions");
            return self.broke(link, what);
        }
        this.keys.extend(keys);
        if left == 0 {
            this.state = LinkState::Mapped;
        }
    }

    /// The link's pages cannot be mapped after all; its chunks are to be sent instead.
    pub fn unmapped(&mut self, link: LinkId, why: impl Into<String>) {
        let this = &mut self.links[link];
        if self.outcome.is_some() || this.state != LinkState::Mapped {
            return;
        }
        if this.chunks.iter().any(|&chunk| chunk != Arrival::Awaited) {
            return self.give_up("pages that were mapped cannot be read any more");
        }
        this.state = LinkState::Receiving;
        this.keys = Vec::new();
        this.told = None;
        let why = why.into();
        self.actions
            .push(Action::Send(link, Message::Unmapped { why }));
    }

    /// A chunk is about to land, or to be copied; `false` if it must not, in which case the transfer has failed.
    #[must_use]
    pub fn landing(&mut self, link: LinkId, chunk: u64, bytes: u32) -> bool {
        if self.outcome.is_some() {
            return false;
        }
        let this = &mut self.links[link];
        let open = matches!(this.state, LinkState::Receiving | LinkState::Mapped);
        let index = usize::try_from(chunk).unwrap_or(usize::MAX);
        let wanted = this.expected.chunk_bytes.get(index).copied();
        let fits =
            open && wanted == Some(bytes) && this.chunks.get(index) == Some(&Arrival::Awaited);
        if fits {
            this.chunks[index] = Arrival::Begun;
            return true;
        }
        let expected = match (wanted, this.chunks.get(index)) {
            (Some(wanted), Some(Arrival::Awaited)) => format!("{wanted} bytes of it"),
            (Some(_), Some(Arrival::Begun | Arrival::Placed)) => "it once".to_owned(),
            _ => format!("chunks below {}", this.chunks.len()),
        };
        let state = this.state;
        let what =
            format!("sends chunk {chunk} of {bytes} bytes while {state:?}; expected {expected}");
        self.broke(link, what);
        false
    }

    /// A chunk is placed; `digest` is of what lies there now.
    pub fn landed(&mut self, link: LinkId, chunk: u64, digest: u64) {
        let this = &mut self.links[link];
        let index = usize::try_from(chunk).unwrap_or(usize::MAX);
        if self.outcome.is_some() || this.chunks.get(index) != Some(&Arrival::Begun) {
            return;
        }
        let step = this.expected.chunk_step[index] as usize;
        this.sums[step] = this.sums[step].wrapping_add(digest);
        this.chunks[index] = Arrival::Placed;
        this.placed += 1;
        self.complete(link);
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

    /// No transport that may be used reaches a link's producer.
    pub fn no_path(&mut self, link: LinkId, why: impl Into<String>) {
        if self.outcome.is_none() {
            let (rank, why) = (self.links[link].expected.rank, why.into());
            self.fail(Failure::NoPath { rank, why });
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
        let missing = self.missing();
        self.fail(Failure::Deadline { missing });
    }

    /// What the transfer still waits for, for people.
    fn missing(&self) -> String {
        let missing: Vec<String> = self.links.iter().filter_map(Link::missing).collect();
        missing.join(", ")
    }

    fn sums(&mut self, link: LinkId, sums: Vec<u64>) {
        let this = &mut self.links[link];
        if sums.len() != this.sums.len() || this.told.is_some() {
            let what = format!(
                "sends {} sums; expected {} once",
                sums.len(),
                this.sums.len()
            );
            return self.broke(link, what);
        }
        this.told = Some(sums);
        self.complete(link);
    }

    /// Compares the digests of a link, once every chunk is placed and the producer has told its own.
    fn complete(&mut self, link: LinkId) {
        let this = &mut self.links[link];
        let Some(told) = &this.told else { return };
        if this.placed < this.chunks.len() {
            return;
        }
        let pairs = this.sums.iter().zip(told).enumerate();
        if let Some((step, (&here, &there))) = { pairs }.find(|(_, (here, there))| here != there) {
            let failure = Failure::Digest {
                rank: this.expected.rank,
                component: this.expected.step_names[step].clone(),
                here,
                there,
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
            regions: 2,
            map: false,
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
        let sent = std::mem::take(c.actions());
        assert_eq!(sent.len(), 2 * links as usize);
        c
    }

    fn all_chunks(c: &mut Consumer, link: LinkId) {
        for (chunk, bytes) in [100, 100, 50].into_iter().enumerate() {
            assert!(c.landing(link, chunk as u64, bytes));
            c.landed(link, chunk as u64, 10 + chunk as u64);
        }
    }

    fn sums(first: u64, second: u64) -> Vec<u8> {
        let sums = vec![first, second];
        Message::Sums {
            mapped: false,
            sums,
        }
        .encode()
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
        c.message(1, &sums(21, 12));
        assert_eq!(c.outcome(), None);
        all_chunks(&mut c, 0);
        c.message(0, &sums(21, 12));
        assert_eq!(c.outcome(), Some(&Outcome::Committed));
        let said = std::mem::take(c.actions()).into_iter().filter(|a| {
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
        c.message(0, &sums(21, 13));
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
    fn chunks_come_in_any_order_and_sums_before_the_last() {
        let mut c = receiving(1);
        assert!(c.landing(0, 2, 50));
        assert!(c.landing(0, 0, 100));
        c.landed(0, 0, 10);
        c.message(0, &sums(21, 12));
        assert!(c.landing(0, 1, 100));
        c.landed(0, 2, 12);
        assert_eq!(c.outcome(), None);
        c.landed(0, 1, 11);
        assert_eq!(c.outcome(), Some(&Outcome::Committed));
    }

    #[test]
    fn chunks_that_come_twice_or_are_not_in_the_plan_fail_the_transfer_and_land_nothing() {
        for (chunk, bytes, expected) in [
            (1, 100, "expected it once"),
            (0, 99, "expected 100 bytes of it"),
            (u64::MAX, 100, "expected chunks below 3"),
        ] {
            let mut c = receiving(1);
            assert!(c.landing(0, 1, 100));
            assert!(!c.landing(0, chunk, bytes));
            assert!(matches!(failure(&c), Failure::Protocol { rank: 0, .. }));
            assert!(
                failure(&c).to_string().contains(expected),
                "{}",
                failure(&c)
            );
            assert_eq!(std::mem::take(c.actions()), [Action::Drop(0)]);
            // What was on its way lands for nobody.
            c.landed(0, 1, 11);
            assert_eq!(c.touched(0).collect::<Vec<_>>(), [1]);
        }
        let mut c = receiving(1);
        c.message(0, &sums(0, 0));
        c.message(0, &sums(0, 0));
        assert!(matches!(failure(&c), Failure::Protocol { .. }));
        let mut c = receiving(1);
        c.message(0, b"garbage");
        assert!(matches!(failure(&c), Failure::Protocol { .. }));
    }

    fn borrowing() -> Consumer {
        let expected = Expected {
            map: true,
            ..expected(0)
        };
        let mut c = Consumer::new(0, [1; 32], (7, 8), 1000, vec![expected]);
        c.connected(0);
        let (chunks, bytes) = (3, 250);
        c.message(0, &Message::Welcome { chunks, bytes }.encode());
        assert_eq!(c.state(0), LinkState::Borrowing);
        assert!(std::mem::take(c.actions()).contains(&Action::Send(
            0,
            Message::Pull {
                transfer: 7,
                key: 8,
                map: true
            }
        )));
        c
    }

    fn keys(left: u32, regions: &[u32]) -> Vec<u8> {
        let keys = regions.iter().map(|&region| (region, [5; 64])).collect();
        Message::Keys { left, keys }.encode()
    }

    fn mapped_sums() -> Vec<u8> {
        let (mapped, sums) = (true, vec![21, 12]);
        Message::Sums { mapped, sums }.encode()
    }

    #[test]
    fn mapped_pages_are_copied_and_nothing_is_sent() {
        let mut c = borrowing();
        c.message(0, &keys(1, &[1]));
        assert_eq!(c.lent(0), None);
        c.message(0, &keys(0, &[0]));
        assert_eq!(c.lent(0).unwrap().len(), 2);
        c.message(0, &mapped_sums());
        all_chunks(&mut c, 0);
        assert_eq!(c.outcome(), Some(&Outcome::Committed));
    }

    #[test]
    fn pages_that_cannot_be_mapped_are_sent() {
        // The producer says so.
        let mut c = borrowing();
        let why = "nowhere".to_owned();
        c.message(0, &Message::Unmapped { why }.encode());
        assert_eq!(c.unlent(0), Some("nowhere"));
        all_chunks(&mut c, 0);
        c.message(0, &sums(21, 12));
        assert_eq!(c.outcome(), Some(&Outcome::Committed));
        // This side does, and the producer's sums of mapped pages cross that.
        let mut c = borrowing();
        c.message(0, &keys(0, &[0, 1]));
        c.message(0, &mapped_sums());
        c.unmapped(0, "no such file");
        let why = "no such file".to_owned();
        assert_eq!(
            std::mem::take(c.actions()),
            [Action::Send(0, Message::Unmapped { why })]
        );
        c.message(0, &mapped_sums());
        all_chunks(&mut c, 0);
        assert_eq!(c.outcome(), None);
        c.message(0, &sums(21, 12));
        assert_eq!(c.outcome(), Some(&Outcome::Committed));
    }

    #[test]
    fn keys_beyond_the_regions_fail_the_transfer() {
        for bad in [
            keys(0, &[2]),
            keys(0, &[0, 1, 0]),
            keys(2, &[0]),
            keys(1, &[]),
            keys(u32::MAX, &[0]),
        ] {
            let mut c = borrowing();
            c.message(0, &bad);
            assert!(matches!(failure(&c), Failure::Protocol { .. }));
        }
        let mut c = borrowing();
        assert!(!c.landing(0, 0, 100));
        assert!(matches!(failure(&c), Failure::Protocol { .. }));
    }

    #[test]
    fn a_lost_peer_or_a_deadline_fails_once_and_counts_what_was_touched() {
        let mut c = receiving(2);
        assert!(c.landing(0, 0, 100));
        c.landed(0, 0, 1);
        assert!(c.landing(0, 1, 100));
        c.closed(0, "reset");
        assert_eq!(
            *failure(&c),
            Failure::PeerLost {
                rank: 0,
                why: "reset".into()
            }
        );
        assert_eq!((c.touched(0).count(), c.touched(1).count()), (2, 0));
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
