//! Connections: how they begin, how they end, and what may be done with the names of those that are over.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use moai_transport::{Address, Batch, Error, PeerId, Posted, Rights, Token};

use crate::far::Far;
use crate::memory::Device;
use crate::node::{Event, HANG, Policy};
use crate::pair::{Pair, Setting};
use crate::run::Outcome;

/// Both sides are told once; the path names its provider and says why; counters count.
pub(crate) fn connects(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    let name = setting.way.provider_name();
    let path = pair.near.interface.path(pair.to).expect("a path to a peer");
    assert_eq!(path.provider, name);
    assert_eq!(path.peer.provider(), name);
    assert!(!path.why.is_empty());
    let stale = PeerId::new(pair.to.index(), pair.to.generation() + 1);
    assert_eq!(pair.near.interface.path(stale), None);
    let of_far = pair.far(move |far| {
        let from = far.incoming()[0];
        let hello = far.message(from);
        assert_eq!(hello, b"hello");
        let (path, stats) = (far.interface.path(from), far.interface.stats());
        (path.map(|path| path.provider), stats)
    });
    assert_eq!(of_far.0, Some(name));
    assert_eq!((of_far.1.accepted, of_far.1.connected), (1, 0));
    let stats = pair.near.interface.stats();
    assert_eq!((stats.accepted, stats.connected, stats.closed), (0, 1, 0));
    let of_peer = |event: &Event| matches!(event, Event::Connected(..));
    assert_eq!(
        pair.near
            .recorder
            .events
            .iter()
            .filter(|event| of_peer(event))
            .count(),
        1
    );
    Ok(())
}

/// Nobody there, another provider's address, nonsense: an error or `closed`, never `connected`.
pub(crate) fn refusals(setting: &Setting) -> Outcome {
    let mut far = Far::new(setting.place, setting.way, Device::new(1), setting.seed)?;
    let mut near = setting.way.node(false, Device::new(2), setting.seed)?;
    let address = far.address()?;
    far.kill();
    match near.interface.connect(&address) {
        Err(Error::Unreachable { .. } | Error::Os { .. }) => {}
        Err(other) => panic!("{other}"),
        Ok(peer) => {
            near.closed(peer);
            let connected = near.recorder.events.iter();
            let count = connected
                .filter(|event| matches!(event, Event::Connected(..)))
                .count();
            assert_eq!(count, 0, "connected to nobody");
            assert!(matches!(
                near.interface.send(peer, b"x"),
                Err(Error::NoSuchPeer { .. })
            ));
        }
    }
    for text in ["nobody:1".to_owned(), format!("{}:\\?", address.provider())] {
        let address: Address = text.parse().unwrap();
        let refused = near.interface.connect(&address);
        assert!(
            matches!(refused, Err(Error::Unreachable { .. })),
            "{text}: {refused:?}"
        );
    }
    Ok(())
}

/// What was queued before `finish` arrives, in order; then both are told, and the name is stale.
pub(crate) fn finish_sends_what_is_queued(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    let to = pair.to;
    let payload = pair.random.bytes(100_000);
    let message = pair.random.bytes(50_000);
    for id in 0..20 {
        pair.near.send(to, &message);
        while pair.near.post(to, id, &payload) == Posted::Busy {
            pair.near.poll(Duration::from_millis(10));
        }
    }
    pair.near.interface.finish(to);
    let refused = pair.near.interface.send(to, b"late");
    assert!(
        matches!(refused, Err(Error::Finishing { .. })),
        "{refused:?}"
    );
    assert_eq!(pair.near.closed(to), "ByUs");
    let events = pair.far(move |far| {
        let from = far.incoming()[0];
        assert_eq!(far.closed(from), "ByPeer");
        std::mem::take(&mut far.recorder.events)
    });
    let mut frames = events
        .into_iter()
        .filter(|event| !matches!(event, Event::Writable(_)));
    assert!(matches!(frames.next(), Some(Event::Connected(_, true))));
    assert!(matches!(frames.next(), Some(Event::Message(_, hello)) if hello == b"hello"));
    for id in 0..20 {
        assert!(matches!(frames.next(), Some(Event::Message(_, bytes)) if bytes == message));
        let landed = frames.next();
        assert!(
            matches!(landed, Some(Event::Landed(_, of, bytes)) if of == id && bytes == payload)
        );
    }
    assert!(matches!(frames.next(), Some(Event::Closed(..))));
    assert!(frames.next().is_none());
    stale(&mut pair);
    Ok(())
}

/// Every call with a stale name says so, or ignores it where the contract says that.
fn stale(pair: &mut Pair) {
    let (near, to) = (&mut pair.near, pair.to);
    let region = near
        .memory(moai_memory::MemoryKind::Host, &[0; 64])
        .unwrap();
    let id = near.register(region, Rights::READ).unwrap();
    let gone = |what: &str, result: Result<(), Error>| {
        assert!(
            matches!(result, Err(Error::NoSuchPeer { .. })),
            "{what}: {result:?}"
        );
    };
    gone("send", near.interface.send(to, b"x").map(drop));
    let batch = Batch { id: 1, bytes: 1 };
    let mut fill = |_: &mut [u8]| panic!("fill for nobody");
    gone("post", near.interface.post(to, batch, &mut fill).map(drop));
    gone("remote_key", near.interface.remote_key(to, id).map(drop));
    gone("import", near.interface.import(to, &[0; 64]).map(drop));
    gone("map", near.interface.map(to, 0).map(drop));
    gone("flush", near.interface.flush(to, Token(1)).map(drop));
    let local = [crate::lists::List::piece(region, 0, 1)];
    gone("put", near.transfer(true, to, &local, &local).map(drop));
    gone("get", near.transfer(false, to, &local, &local).map(drop));
    assert_eq!(near.interface.path(to), None);
    near.interface.close(to);
    near.interface.finish(to);
    near.poll(Duration::from_millis(5));
}

/// `close` is at once: no callback here, and the peer learns of it.
pub(crate) fn close_is_at_once(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    let to = pair.to;
    pair.near.interface.close(to);
    let why = pair.far_closed()?;
    assert!(
        !why.starts_with("ByUs") && !why.starts_with("Protocol"),
        "{why}"
    );
    pair.near.poll(Duration::from_millis(20));
    assert!(pair.near.why(to).is_none(), "closed was called after close");
    assert_eq!(pair.near.interface.stats().closed, 1);
    stale(&mut pair);
    Ok(())
}

/// A message or a batch that the handler refuses ends the connection, with the reason on that side.
pub(crate) fn rejected_frames_end_the_connection(setting: &Setting) -> Outcome {
    for unwanted in ["message", "batch"] {
        let mut pair = Pair::new(setting)?;
        pair.far(|far| {
            far.recorder.unwanted = Some(b"boo".to_vec());
            far.recorder.policy = Policy::Reject;
        });
        pair.near.send(pair.to, b"fine");
        if unwanted == "message" {
            pair.near.send(pair.to, b"boo");
        } else {
            assert_eq!(pair.near.post(pair.to, 1, b"payload"), Posted::Done);
        }
        // The recorder on either side has checked that nothing came in between.
        let _ = pair.near.interface.send(pair.to, b"never seen");
        let why = pair.far_closed()?;
        assert!(why.starts_with("Rejected"), "{why}");
        let why = pair.near.closed(pair.to);
        assert!(why.starts_with("ByPeer") || why.starts_with("Io"), "{why}");
        let fine = pair.far(|far| far.messages(far.incoming()[0]));
        assert_eq!(fine, [b"hello".to_vec(), b"fine".to_vec()]);
    }
    Ok(())
}

/// A name is never used again, and a hundred connections one after the other leave nothing behind.
pub(crate) fn names_are_used_once(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    let address = pair.far.address()?;
    let mut names = HashSet::from([pair.to]);
    for round in 0..50 {
        let peer = pair.near.connect(&address);
        assert!(
            names.insert(peer),
            "peer {peer} is called like an earlier one"
        );
        pair.near.send(peer, b"x");
        if round % 2 == 0 {
            pair.near.interface.finish(peer);
            assert_eq!(pair.near.closed(peer), "ByUs");
        } else {
            pair.near.interface.close(peer);
        }
    }
    let start = Instant::now();
    while pair.far(|far| far.interface.stats().closed) < 50 {
        assert!(
            start.elapsed() < HANG,
            "the other side keeps connections that are over"
        );
        pair.near.poll(Duration::from_millis(1));
    }
    assert_eq!(pair.far(|far| far.incoming().len()), 51);
    Ok(())
}

/// Who connects and says nothing is let go after a while, and others do not notice.
pub(crate) fn a_flood_of_silent_peers(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    assert_eq!(pair.far(|far| far.message(far.incoming()[0])), b"hello");
    let address = pair.far.address()?;
    let mut flood = setting.way.node(false, Device::new(9), setting.seed)?;
    let silent: Vec<_> = (0..300)
        .map(|_| flood.interface.connect(&address).unwrap())
        .collect();
    let start = Instant::now();
    let mut longest = Duration::ZERO;
    let echo = pair.far.start(move |far| {
        let from = far.incoming()[0];
        let mut times = 0;
        while far.interface.stats().closed < 300 {
            assert!(start.elapsed() < HANG, "{:?}", far.interface.stats());
            far.poll(Duration::from_millis(20));
            for message in far.messages(from) {
                far.send(from, &message);
                times += 1;
            }
        }
        times
    });
    let mut turns = 0;
    while silent.iter().any(|&peer| flood.why(peer).is_none()) {
        assert!(
            start.elapsed() < HANG,
            "silent peers stay: {:?}",
            flood.interface.stats()
        );
        flood.poll(Duration::from_millis(1));
        if echo.try_recv().is_err() && flood.interface.stats().closed == 0 {
            let asked = Instant::now();
            pair.near.send(pair.to, b"still there?");
            pair.near.message(pair.to);
            longest = longest.max(asked.elapsed());
            turns += 1;
        }
    }
    assert!(turns > 10, "{turns} round trips");
    assert!(
        longest < Duration::from_secs(2),
        "a round trip took {longest:?}"
    );
    pair.near.send(pair.to, b"still there");
    Ok(())
}
