//! Stacks of providers that do what a test says.

use std::os::fd::AsFd;

use moai_memory::MemoryKind;

use super::*;

/// How connecting by a fake provider goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Connects,
    Ends,
    Refuses,
    Obstacle,
    Elsewhere,
    /// Takes one message, and ends.
    EndsFull,
    /// Connects, and takes nothing.
    Full,
    /// Cannot even be opened.
    Unopened,
}

/// A provider whose interfaces echo what they are sent.
#[derive(Clone, Debug)]
struct Fake {
    name: &'static str,
    fate: Fate,
    maps: bool,
}

#[derive(Debug)]
struct FakeInterface {
    fake: Fake,
    can: Capabilities,
    bell: OwnedFd,
    peers: u32,
    news: Vec<(PeerId, Option<Vec<u8>>)>,
    completions: Vec<Completion>,
    registered: u32,
}

impl Provider for Fake {
    fn name(&self) -> &'static str {
        self.name
    }

    fn probe(&self) -> Result<String, String> {
        Ok("fake".to_owned())
    }

    fn obstacle(&self, _: &Address) -> Option<Obstacle> {
        match self.fate {
            Fate::Obstacle => Some(Obstacle::Refused("something is in the way".to_owned())),
            Fate::Elsewhere => Some(Obstacle::Elsewhere("it is far away".to_owned())),
            _ => None,
        }
    }

    fn open(&self) -> Result<Box<dyn Interface + Send>, Error> {
        if self.fate == Fate::Unopened {
            let cause = std::io::ErrorKind::QuotaExceeded.into();
            return Err(Error::Os {
                call: "epoll_create",
                cause,
            });
        }
        let kind = MemoryKind::Host;
        let mut reach = vec![(Operation::Send, kind, Reach::Direct)];
        if self.maps {
            reach.push((Operation::Map, kind, Reach::Direct));
        }
        Ok(Box::new(FakeInterface {
            fake: self.clone(),
            can: Capabilities {
                reach,
                one_sided: self.maps,
                max_message: 100,
                max_batch: 100,
                max_operation: 100,
                lanes: 1,
                encrypted: false,
            },
            bell: rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap(),
            peers: 0,
            news: Vec::new(),
            completions: Vec::new(),
            registered: 0,
        }))
    }
}

impl Interface for FakeInterface {
    fn name(&self) -> &'static str {
        self.fake.name
    }

    fn capabilities(&self) -> &Capabilities {
        &self.can
    }

    fn addresses(&self) -> Vec<Address> {
        vec![format!("{}:here", self.fake.name).parse().unwrap()]
    }

    fn connect(&mut self, address: &Address) -> Result<PeerId, Error> {
        if self.fake.fate == Fate::Refuses {
            return Err(Error::Unreachable {
                provider: self.fake.name,
                address: address.clone(),
                reason: "not today".to_owned(),
            });
        }
        let peer = PeerId::new(self.peers, 40 + self.peers);
        self.peers += 1;
        self.news.push((peer, None));
        Ok(peer)
    }

    fn send(&mut self, peer: PeerId, message: &[u8]) -> Result<Posted, Error> {
        let is_full =
            self.fake.fate == Fate::Full || self.fake.fate == Fate::EndsFull && self.news.len() > 1;
        if is_full {
            return Ok(Posted::Busy);
        }
        self.news.push((peer, Some(message.to_vec())));
        Ok(Posted::Done)
    }

    fn post(
        &mut self,
        peer: PeerId,
        _: Batch,
        _: &mut dyn FnMut(&mut [u8]),
    ) -> Result<Posted, Error> {
        Err(Error::NoSuchPeer { peer })
    }

    fn register(&mut self, index: u32, _: &Region, _: Rights) -> Result<RegistrationId, Error> {
        if !self.fake.maps && index == 9 {
            return Err(Error::TooManyRegistrations { limit: 0 });
        }
        self.registered += 1;
        Ok(RegistrationId::new(index, 100))
    }

    fn deregister(&mut self, _: RegistrationId) -> Result<(), Error> {
        self.registered -= 1;
        Ok(())
    }

    fn remote_key(&self, _: PeerId, id: RegistrationId) -> Result<[u8; KEY_BYTES], Error> {
        Ok([id.slot() as u8; KEY_BYTES])
    }

    fn import(&mut self, peer: PeerId, _: &[u8]) -> Result<u32, Error> {
        Err(Error::TooManyImports { peer })
    }

    fn put(
        &mut self,
        _: &mut [Region],
        peer: PeerId,
        _: &[Pieces<'_>],
        _: &[Pieces<'_>],
        token: Token,
    ) -> Result<Posted, Error> {
        self.completions.push(Completion::new(peer, token, Ok(())));
        Ok(Posted::InFlight(token))
    }

    fn get(
        &mut self,
        memory: &mut [Region],
        peer: PeerId,
        local: &[Pieces<'_>],
        remote: &[Pieces<'_>],
        token: Token,
    ) -> Result<Posted, Error> {
        self.put(memory, peer, local, remote, token)
    }

    fn map(&mut self, peer: PeerId, _: u32) -> Result<Region, Error> {
        Err(Error::NoSuchPeer { peer })
    }

    fn flush(&mut self, _: PeerId, _: Token) -> Result<Posted, Error> {
        Ok(Posted::Done)
    }

    fn completion(&mut self) -> Option<Completion> {
        self.completions.pop()
    }

    fn poll(&mut self, _: Option<Duration>, handler: &mut dyn Handler) -> Result<(), Error> {
        for (peer, news) in std::mem::take(&mut self.news) {
            match (news, self.fake.fate) {
                (Some(_), Fate::EndsFull) => {}
                (Some(message), _) => handler.message(peer, &message).unwrap(),
                (None, Fate::Ends | Fate::EndsFull) => {
                    let cause = std::io::ErrorKind::ConnectionRefused.into();
                    handler.closed(peer, Closed::Io(cause));
                }
                (None, _) => handler.connected(peer, false),
            }
        }
        Ok(())
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn arm(&mut self) -> Option<Duration> {
        (!self.news.is_empty()).then_some(Duration::ZERO)
    }

    fn close(&mut self, peer: PeerId) {
        self.news.retain(|(of, _)| *of != peer);
    }

    fn finish(&mut self, peer: PeerId) {
        let _ = peer;
    }

    fn path(&self, peer: PeerId) -> Option<Path> {
        (peer.index() < self.peers).then(|| Path {
            provider: self.fake.name,
            local: None,
            peer: "fake:there".parse().unwrap(),
            why: "as fakes do".to_owned(),
            is_fallback: false,
        })
    }

    fn stats(&self) -> Stats {
        Stats {
            connected: self.peers.into(),
            ..Stats::default()
        }
    }
}

/// What a handler was told.
#[derive(Debug, Default)]
struct Told(Vec<(String, PeerId)>);

impl Handler for Told {
    fn connected(&mut self, peer: PeerId, _: bool) {
        self.0.push(("connected".to_owned(), peer));
    }

    fn message(&mut self, peer: PeerId, bytes: &[u8]) -> Result<(), Reject> {
        self.0
            .push((String::from_utf8_lossy(bytes).into_owned(), peer));
        Ok(())
    }

    fn landing(&mut self, _: PeerId, _: Batch) -> Result<Landing, Reject> {
        Ok(Landing::Staged)
    }

    fn pieces(
        &mut self,
        _: PeerId,
        _: Batch,
        _: u32,
        _: usize,
        _: &mut Vec<Piece>,
    ) -> Result<(), Reject> {
        Ok(())
    }

    fn regions(&mut self) -> &mut [Region] {
        &mut []
    }

    fn landed(&mut self, _: PeerId, _: Batch, _: Option<&[u8]>) -> Result<(), Reject> {
        Ok(())
    }

    fn writable(&mut self, peer: PeerId) {
        self.0.push(("writable".to_owned(), peer));
    }

    fn closed(&mut self, peer: PeerId, why: Closed) {
        self.0.push((format!("closed: {why}"), peer));
    }
}

fn fake(name: &'static str, fate: Fate, maps: bool) -> Box<dyn Provider> {
    Box::new(Fake { name, fate, maps })
}

fn stack(fast: Fate, slow: Fate) -> Stack {
    Stack::open(vec![fake("slow", slow, false), fake("fast", fast, true)]).unwrap()
}

fn connect(stack: &mut Stack) -> Result<PeerId, ConnectError> {
    let addresses = ["slow:there", "fast:there", "other:there"].map(|text| text.parse().unwrap());
    let wanted = Wanted {
        local: MemoryKind::Host,
        remote: MemoryKind::Host,
        allowed: None,
        required: None,
    };
    stack.connect_any(&addresses, &wanted)
}

fn poll(stack: &mut Stack) -> Vec<(String, PeerId)> {
    let mut told = Told::default();
    for _ in 0..3 {
        stack.poll(Some(Duration::ZERO), &mut told).unwrap();
    }
    told.0
}

#[test]
fn the_best_way_is_taken_and_the_next_when_it_fails() {
    for (fate, provider, reason, fallbacks) in [
        (Fate::Connects, "fast", "can be mapped", 0),
        (
            Fate::Ends,
            "slow",
            "could not be connected: the connection failed",
            1,
        ),
        (Fate::Refuses, "slow", "not today", 1),
        (Fate::Obstacle, "slow", "something is in the way", 1),
        (
            Fate::Elsewhere,
            "slow",
            "out of reach: fast: it is far away",
            0,
        ),
    ] {
        let mut stack = stack(fate, Fate::Connects);
        let peer = connect(&mut stack).unwrap();
        assert_eq!(poll(&mut stack), [("connected".to_owned(), peer)]);
        let path = stack.path(peer).unwrap();
        assert_eq!(path.provider, provider);
        assert!(path.why.contains(reason), "{fate:?}: {}", path.why);
        assert_eq!(path.is_fallback, fallbacks > 0, "{fate:?}");
        assert_eq!(stack.stats().fallbacks, fallbacks);
        let _ = stack.send(peer, b"echo").unwrap();
        assert_eq!(poll(&mut stack), [("echo".to_owned(), peer)]);
        let posted = stack.put(&mut [], peer, &[], &[], Token(5)).unwrap();
        assert_eq!(posted, Posted::InFlight(Token(5)));
        let ended = stack.completion().unwrap();
        assert_eq!((ended.peer, ended.token), (peer, Token(5)));
        assert!(stack.completion().is_none());
        let error = stack.import(peer, &[]).unwrap_err();
        assert!(matches!(error, Error::TooManyImports { peer: named } if named == peer));
        let posted = stack.put(&mut [], peer, &[], &[], Token(6)).unwrap();
        assert_eq!(posted, Posted::InFlight(Token(6)));
        stack.close(peer);
        assert!(stack.path(peer).is_none());
        assert!(stack.send(peer, b"").is_err());
        let ended = stack.completion().unwrap();
        assert_eq!((ended.peer, ended.token), (peer, Token(6)));
        assert!(stack.entries.gone.is_empty() && stack.entries.live.is_empty());
    }
}

#[test]
fn without_any_way_the_end_is_told() {
    let mut both = stack(Fate::Ends, Fate::Ends);
    let peer = connect(&mut both).unwrap();
    let told = poll(&mut both);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].0.starts_with("closed"), "{told:?}");
    assert_eq!(told[0].1, peer);
    let refused = connect(&mut stack(Fate::Obstacle, Fate::Obstacle)).unwrap_err();
    assert!(
        refused.to_string().contains("something is in the way"),
        "{refused}"
    );
    let refused = connect(&mut stack(Fate::Refuses, Fate::Obstacle)).unwrap_err();
    assert!(refused.to_string().contains("no path"), "{refused}");
}

#[test]
fn one_that_was_closed_before_its_end_was_told_takes_nobody_along() {
    let mut both = stack(Fate::Ends, Fate::Ends);
    let first = connect(&mut both).unwrap();
    let mut told = Told::default();
    while both.failed.is_empty() {
        both.poll(Some(Duration::ZERO), &mut told).unwrap();
    }
    both.close(first);
    // Stands where the other stood.
    let second = connect(&mut both).unwrap();
    let told = poll(&mut both);
    let whose: Vec<PeerId> = told.iter().map(|(_, peer)| *peer).collect();
    assert_eq!(whose, [second], "{told:?}");
    assert!(both.dialled.is_empty() && both.entries.live.is_empty());
}

#[test]
fn messages_that_were_queued_go_the_other_way_and_operations_do_not() {
    let mut two = stack(Fate::Ends, Fate::Connects);
    let peer = connect(&mut two).unwrap();
    let _ = two.send(peer, b"queued").unwrap();
    let told = poll(&mut two);
    for event in ["connected", "queued"] {
        assert!(told.contains(&(event.to_owned(), peer)), "{told:?}");
    }
    assert_eq!(two.stats().fallbacks, 1);
    let mut two = stack(Fate::Ends, Fate::Connects);
    let peer = connect(&mut two).unwrap();
    let _ = two.put(&mut [], peer, &[], &[], Token(1)).unwrap();
    let told = poll(&mut two);
    let closed = |(what, _): &(String, PeerId)| what.starts_with("closed");
    assert!(told.iter().any(closed), "{told:?}");
    assert_eq!(two.stats().fallbacks, 0);
}

#[test]
fn whoever_found_the_first_way_full_hears_that_the_next_is_not() {
    let mut two = stack(Fate::EndsFull, Fate::Connects);
    let peer = connect(&mut two).unwrap();
    assert_eq!(two.send(peer, b"taken").unwrap(), Posted::Done);
    assert_eq!(two.send(peer, b"not taken").unwrap(), Posted::Busy);
    let told = poll(&mut two);
    for event in ["connected", "taken", "writable"] {
        let seen = told.iter().filter(|one| **one == (event.to_owned(), peer));
        assert_eq!(seen.count(), 1, "{event}: {told:?}");
    }
    assert_eq!(two.arm(), None);
}

#[test]
fn a_way_that_does_not_take_what_was_queued_is_none() {
    let mut two = stack(Fate::EndsFull, Fate::Full);
    let peer = connect(&mut two).unwrap();
    assert_eq!(two.send(peer, b"queued").unwrap(), Posted::Done);
    let told = poll(&mut two);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].0.starts_with("closed"), "{told:?}");
    assert_eq!(told[0].1, peer);
}

#[test]
fn a_registration_is_one_with_all_who_can() {
    let mut stack = stack(Fate::Connects, Fate::Connects);
    let region = Region::from_host(vec![0; 10]);
    let id = stack.register(4, &region, Rights::READ).unwrap();
    assert_eq!(stack.register(4, &region, Rights::READ).unwrap(), id);
    let partly = stack.register(9, &region, Rights::READ).unwrap();
    assert_ne!(partly, id);
    let fast = stack.connect(&"fast:there".parse().unwrap()).unwrap();
    let slow = stack.connect(&"slow:there".parse().unwrap()).unwrap();
    assert_eq!(stack.remote_key(fast, partly).unwrap()[0], 9);
    assert!(stack.remote_key(slow, partly).is_err());
    assert_eq!(stack.remote_key(slow, id).unwrap()[0], 4);
    stack.deregister(id).unwrap();
    assert!(stack.remote_key(slow, id).is_ok());
    stack.deregister(id).unwrap();
    assert!(stack.remote_key(slow, id).is_err());
    assert!(stack.deregister(id).is_err());
    assert!(stack.connect(&"other:there".parse().unwrap()).is_err());
}

#[test]
fn names_of_peers_that_came_tell_their_provider() {
    for member in 0..MAX_MEMBERS {
        let inner = PeerId::new(1023, 9);
        let peer = name(member, inner);
        assert_eq!(split(peer), (member, 1023));
        assert_eq!(peer.generation(), 9);
    }
    assert!(Stack::open(Vec::new()).is_err());
}

#[test]
fn a_provider_that_cannot_be_opened_is_done_without_unless_it_is_the_last() {
    let mut stack = stack(Fate::Unopened, Fate::Connects);
    assert_eq!(stack.addresses().len(), 1);
    assert!(connect(&mut stack).is_ok());
    let none = Stack::open(vec![
        fake("slow", Fate::Unopened, false),
        fake("fast", Fate::Unopened, true),
    ]);
    assert!(matches!(
        none,
        Err(Error::Os {
            call: "epoll_create",
            ..
        })
    ));
}
