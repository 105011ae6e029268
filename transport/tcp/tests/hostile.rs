//! Peers that misbehave end with a typed reason, cost bounded memory, and nobody else notices.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use common::{Event, Node, Policy, Random, drive, pair};
use moai_memory::{MemoryKind, Region};
use moai_transport::wire::{Header, WireError};
use moai_transport::{Batch, Closed, Error, Interface, PeerId, PieceError, Posted};
use moai_transport_tcp::{TcpConfig, tcp_address};

/// A listening node with a healthy peer, and a raw socket connected to it.
struct Scene {
    node: Node,
    healthy: Node,
    /// The node, as the healthy peer knows it.
    to_node: PeerId,
    /// The healthy peer, as the node knows it.
    from_healthy: PeerId,
    raw: TcpStream,
    /// The raw socket, as the node knows it.
    from_raw: PeerId,
}

impl Scene {
    fn new(policy: Policy) -> Self {
        Self::with_patience(policy, common::HANG)
    }

    /// `patience` is how long the node waits for a first frame.
    fn with_patience(policy: Policy, patience: Duration) -> Self {
        let config = TcpConfig {
            first_frame_timeout: patience,
            ..TcpConfig::default()
        };
        let mut node = Node::listening(config, policy);
        let mut healthy = Node::new(TcpConfig::default(), Policy::Staged);
        let (to_node, from_healthy) = pair(&mut healthy, &mut node);
        healthy.send(to_node, b"hello");
        drive(&mut [&mut node, &mut healthy], |nodes| {
            nodes[0].interface.stats().messages_in == 1
        });
        node.recorder.take();
        let raw = TcpStream::connect(node.address()).unwrap();
        node.until(|recorder| recorder.incoming().len() == 1);
        let from_raw = node.recorder.incoming()[0];
        node.recorder.take();
        Self {
            node,
            healthy,
            to_node,
            from_healthy,
            raw,
            from_raw,
        }
    }

    /// Waits until the node has closed the raw socket, and returns why.
    fn why(&mut self) -> Closed {
        let from_raw = self.from_raw;
        drive(&mut [&mut self.node, &mut self.healthy], |nodes| {
            nodes[0].recorder.why(from_raw).is_some()
        });
        let mut why = None;
        for event in self.node.recorder.take() {
            if let Event::Closed(peer, reason) = event {
                assert_eq!(peer, from_raw, "{reason}");
                assert!(why.is_none(), "closed twice");
                why = Some(reason);
            }
        }
        // The id is stale from here on.
        let error = self.node.interface.send(from_raw, b"anyone there?");
        assert!(matches!(error, Err(Error::NoSuchPeer { peer }) if peer == from_raw));
        self.node.recorder.policy = Policy::Mixed;
        self.assert_others_unaffected();
        why.unwrap()
    }

    /// The healthy peer still exchanges frames with the node.
    fn assert_others_unaffected(&mut self) {
        let payload = Random(11).bytes(100_000);
        self.healthy.send(self.to_node, b"still here");
        assert_eq!(self.healthy.post(self.to_node, 5, &payload), Posted::Done);
        self.node.send(self.from_healthy, b"so am I");
        let from_healthy = self.from_healthy;
        drive(&mut [&mut self.node, &mut self.healthy], |nodes| {
            let landed =
                |event: &Event| matches!(event, Event::Landed(peer, 5, _) if *peer == from_healthy);
            let answered =
                |event: &Event| matches!(event, Event::Message(_, it) if it == b"so am I");
            nodes[0].recorder.events.iter().any(landed)
                && nodes[1].recorder.events.iter().any(answered)
        });
        assert!(
            self.node
                .recorder
                .events
                .iter()
                .any(|event| matches!(event, Event::Landed(_, 5, it) if *it == payload))
        );
        self.node.recorder.take();
        self.healthy.recorder.take();
    }
}

fn batch(id: u64, bytes: u32) -> [u8; 32] {
    Header::Batch(Batch { id, bytes }).encode()
}

#[test]
fn garbage_is_refused_by_its_first_bytes() {
    let mut scene = Scene::new(Policy::Mixed);
    let request = b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n";
    scene.raw.write_all(request).unwrap();
    let why = scene.why();
    let Closed::Protocol(WireError::Magic { seen, .. }) = why else {
        panic!("{why:?}");
    };
    assert_eq!(&seen, b"GET ");
}

#[test]
fn a_length_over_the_limit_is_refused_before_anything_is_read() {
    for (header, limit) in [
        (batch(1, (4 << 20) + 1), 4 << 20),
        (batch(1, u32::MAX), 4 << 20),
        (
            Header::Message {
                bytes: (1 << 20) + 1,
            }
            .encode(),
            1 << 20,
        ),
    ] {
        let mut scene = Scene::new(Policy::Mixed);
        scene.raw.write_all(&header).unwrap();
        let why = scene.why();
        assert!(
            matches!(why, Closed::Protocol(WireError::Length { limit: it, .. }) if it == limit),
            "{why:?}"
        );
    }
}

#[test]
fn another_version_is_refused() {
    let mut scene = Scene::new(Policy::Mixed);
    let mut header = batch(1, 1);
    header[4] = 9;
    scene.raw.write_all(&header).unwrap();
    let why = scene.why();
    assert!(
        matches!(
            why,
            Closed::Protocol(WireError::Version {
                seen: 9,
                expected: 2
            })
        ),
        "{why:?}"
    );
}

#[test]
fn saying_nothing_and_stopping_halfway_are_idle() {
    for said in [&[][..], &batch(1, 100)[..10], &batch(1, 100)[..]] {
        let mut scene = Scene::with_patience(Policy::Mixed, Duration::from_millis(300));
        scene.raw.write_all(said).unwrap();
        let why = scene.why();
        assert!(matches!(why, Closed::Idle { limit_ms: 300 }), "{why:?}");
        // And the other end learns of it.
        let _ = scene.raw.read(&mut [0; 1]);
    }
}

#[test]
fn what_providers_say_of_lanes_is_not_what_a_peer_has_to_say() {
    let config = TcpConfig {
        first_frame_timeout: Duration::from_millis(300),
        lanes: 3,
        ..TcpConfig::default()
    };
    let mut node = Node::listening(config.clone(), Policy::Staged);
    let mut nodes = [(); 2].map(|()| Node::new(config.clone(), Policy::Staged));
    let [silent, talking] = &mut nodes;
    let (_, from_silent) = pair(silent, &mut node);
    let (to_node, from_talking) = pair(talking, &mut node);
    talking.send(to_node, b"hello");
    drive(&mut [&mut node, silent, talking], |nodes| {
        nodes[0].recorder.why(from_silent).is_some()
    });
    let why = node.recorder.why(from_silent).unwrap();
    assert!(matches!(why, Closed::Idle { limit_ms: 300 }), "{why:?}");
    let start = Instant::now();
    drive(&mut [&mut node, silent, talking], |_| {
        start.elapsed() > Duration::from_millis(500)
    });
    assert!(node.recorder.why(from_talking).is_none());
    assert_eq!(node.interface.stats().closed, 1);
}

#[test]
fn a_stream_that_ends_inside_a_frame_is_truncated_and_says_where() {
    let message = Header::Message { bytes: 300_000 }.encode();
    let cases: [(&[u8], usize, _); 5] = [
        (&batch(1, 9)[..10], 0, ("header", 10, 32)),
        (&batch(1, 1000), 0, ("batch", 0, 1000)),
        (&batch(1, 1000), 999, ("batch", 999, 1000)),
        (&batch(1, 4 << 20), 3_000_000, ("batch", 3_000_000, 4 << 20)),
        (&message, 200_000, ("message", 200_000, 300_000)),
    ];
    for policy in [Policy::Staged, Policy::Direct] {
        for (header, payload, expected) in cases {
            println!("{policy:?} {expected:?}");
            let mut scene = Scene::new(policy);
            let mut raw = scene.raw.try_clone().unwrap();
            let bytes = [header, &vec![1; payload]].concat();
            let writer = std::thread::spawn(move || {
                raw.write_all(&bytes).unwrap();
                raw.shutdown(Shutdown::Write).unwrap();
            });
            let why = scene.why();
            writer.join().unwrap();
            let Closed::Truncated {
                what,
                received,
                expected: whole,
            } = why
            else {
                panic!("{why:?}");
            };
            assert_eq!((what, received, whole), expected);
        }
    }
}

#[test]
fn ending_the_stream_between_frames_is_in_order() {
    let mut scene = Scene::new(Policy::Mixed);
    let bytes = [&batch(1, 3)[..], b"abc"].concat();
    scene.raw.write_all(&bytes).unwrap();
    scene.raw.shutdown(Shutdown::Write).unwrap();
    let why = scene.why();
    assert!(matches!(why, Closed::ByPeer), "{why:?}");
}

#[test]
fn a_reset_in_the_middle_of_a_batch_is_an_io_error() {
    let mut scene = Scene::new(Policy::Direct);
    scene.raw.write_all(&batch(1, 100_000)).unwrap();
    scene.raw.write_all(&[1; 50_000]).unwrap();
    let reads_so_far = scene.node.interface.stats().bytes_in;
    let Scene { node, healthy, .. } = &mut scene;
    drive(&mut [node, healthy], |nodes| {
        nodes[0].interface.stats().bytes_in >= reads_so_far + 50_032
    });
    // Closing with something unread makes the system reset the connection.
    scene.node.send(scene.from_raw, b"unread");
    scene.node.poll(Duration::ZERO);
    scene.raw.peek(&mut [0; 1]).unwrap();
    scene.raw = TcpStream::connect(scene.node.address()).unwrap();
    let from_raw = scene.from_raw;
    scene
        .node
        .until(|recorder| recorder.why(from_raw).is_some());
    let why = scene.node.recorder.why(from_raw).unwrap();
    assert!(
        matches!(why, Closed::Io(error) if error.kind() == ErrorKind::ConnectionReset),
        "{why:?}"
    );
    scene.node.recorder.policy = Policy::Mixed;
    scene.node.recorder.take();
    scene.assert_others_unaffected();
}

#[test]
fn a_peer_that_never_reads_fills_its_own_queue_and_nobody_elses() {
    let mut scene = Scene::new(Policy::Mixed);
    // It has said its first frame, so that it may stay.
    let hello = Header::Message { bytes: 0 }.encode();
    scene.raw.write_all(&hello).unwrap();
    let from_raw = scene.from_raw;
    let said = |event: &Event| matches!(event, Event::Message(peer, _) if *peer == from_raw);
    scene
        .node
        .until(|recorder| recorder.events.iter().any(said));
    let payload = vec![3; 1 << 20];
    let mut posted = 0_u64;
    let mut refused_in_a_row = 0;
    while refused_in_a_row < 20 {
        if scene.node.post(from_raw, posted, &payload) == Posted::Done {
            posted += 1;
            refused_in_a_row = 0;
        } else {
            refused_in_a_row += 1;
            scene.node.poll(Duration::from_millis(1));
        }
    }
    // The ring, and what the system keeps for a socket of its own.
    assert!((8..=64).contains(&posted), "{posted} MiB were queued");
    scene.node.recorder.take();
    scene.assert_others_unaffected();
    // Control messages still have room of their own.
    scene.node.send(from_raw, b"cancel");

    // Now it reads; the node is invited to go on, and everything arrives.
    let mut raw = scene.raw.try_clone().unwrap();
    let expected = posted * (32 + (1 << 20)) + 32 + 6;
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; expected as usize];
        raw.read_exact(&mut bytes).unwrap();
        bytes
    });
    let invited = |event: &Event| matches!(event, Event::Writable(peer) if *peer == from_raw);
    scene
        .node
        .until(|recorder| recorder.events.iter().any(invited));
    drive(&mut [&mut scene.node], |_| reader.is_finished());
    let bytes = reader.join().unwrap();
    for (id, bytes) in bytes
        .chunks(32 + (1 << 20))
        .take(posted as usize)
        .enumerate()
    {
        assert!(bytes[..32] == batch(id as u64, 1 << 20) && bytes[32..] == payload);
    }
    assert!(bytes.ends_with(b"cancel"));
}

#[test]
fn pieces_that_cannot_be_filled_close_the_connection_and_do_not_panic() {
    // The recorder's regions have 3 MiB.
    for (policy, bytes) in [
        (Policy::At((3 << 20) - 99), 100),
        (Policy::At(u64::MAX), 100),
        (Policy::At(0), (3 << 20) + 1),
    ] {
        let mut scene = Scene::new(policy);
        scene.raw.write_all(&batch(1, bytes)).unwrap();
        scene.raw.write_all(&[1; 50]).unwrap();
        let why = scene.why();
        assert!(
            matches!(
                why,
                Closed::Misplaced(PieceError::OutOfBounds {
                    region: 0,
                    len: 3_145_728,
                    ..
                })
            ),
            "{why:?}"
        );
        scene.node.recorder.assert_only_guards();
    }
    let mut scene = Scene::new(Policy::Nowhere);
    scene.raw.write_all(&batch(1, 100)).unwrap();
    scene.raw.write_all(&[1; 50]).unwrap();
    let why = scene.why();
    assert!(
        matches!(
            why,
            Closed::Misplaced(PieceError::Missing { remaining: 100 })
        ),
        "{why:?}"
    );
}

#[test]
fn pieces_that_cannot_be_stored_to_close_the_connection_and_do_not_panic() {
    let (lent, kind) = (Region::shared_zeroed(3 << 20).unwrap(), MemoryKind::Shared);
    // Short enough to be copied from the buffer, and long enough to be read past it.
    for bytes in [100, 2 << 20] {
        let mut scene = Scene::new(Policy::At(0));
        let file = lent.hold().export().unwrap().fd.try_clone_to_owned();
        let loaded = Region::import(file.unwrap(), 0, 3 << 20, kind, false).unwrap();
        scene.node.recorder.regions[0] = loaded;
        scene.raw.write_all(&batch(1, bytes)).unwrap();
        scene.raw.write_all(&[1; 50]).unwrap();
        let why = scene.why();
        let expected = PieceError::Unreachable { region: 0, kind };
        assert!(
            matches!(why, Closed::Misplaced(error) if error == expected),
            "{why:?}"
        );
        assert!(lent.as_slice().iter().all(|&byte| byte == 0));
    }
}

#[test]
fn what_the_handler_rejects_ends_the_connection_with_its_reason() {
    let mut scene = Scene::new(Policy::Reject);
    scene.raw.write_all(&batch(1, 100)).unwrap();
    let why = scene.why();
    assert!(matches!(&why, Closed::Rejected(reason) if reason == "not wanted"));

    let mut scene = Scene::new(Policy::Staged);
    let bytes = [&Header::Message { bytes: 9 }.encode()[..], b"reject me"].concat();
    scene.raw.write_all(&bytes).unwrap();
    let why = scene.why();
    assert_eq!(why.to_string(), "rejected: as it asked");
}

#[test]
fn after_close_no_byte_lands_and_no_callback_comes() {
    let mut scene = Scene::new(Policy::At(0));
    scene.raw.write_all(&batch(1, 2_000_000)).unwrap();
    scene.raw.write_all(&[1; 100_000]).unwrap();
    let before = scene.node.interface.stats().bytes_in;
    let Scene { node, healthy, .. } = &mut scene;
    drive(&mut [node, healthy], |nodes| {
        nodes[0].interface.stats().bytes_in == before + 100_032
    });
    // More is on its way, and already with the system, when the connection is closed.
    scene.raw.write_all(&[2; 50_000]).unwrap();
    scene.node.interface.close(scene.from_raw);
    let landed = scene.node.recorder.regions[0].as_slice()[..200_000].to_vec();
    assert!(landed[..100_000].iter().all(|&byte| byte == 1));
    for _ in 0..20 {
        let _ = scene.raw.write_all(&[3; 10_000]);
        scene.node.poll(Duration::from_millis(1));
    }
    assert!(scene.node.recorder.regions[0].as_slice()[..200_000] == landed);
    assert!(scene.node.recorder.events.is_empty());
    // Closing again, or finishing, is ignored.
    scene.node.interface.close(scene.from_raw);
    scene.node.interface.finish(scene.from_raw);
    scene.node.recorder.policy = Policy::Staged;
    scene.assert_others_unaffected();
}

#[test]
fn a_stale_id_is_not_taken_for_the_peer_that_came_after() {
    let mut scene = Scene::new(Policy::Staged);
    let stale = scene.from_raw;
    scene.node.interface.close(stale);
    scene.raw = TcpStream::connect(scene.node.address()).unwrap();
    scene.node.until(|recorder| recorder.incoming().len() == 1);
    let fresh = scene.node.recorder.incoming()[0];
    assert_eq!(fresh.index(), stale.index());
    assert_ne!(fresh, stale);
    let batch = Batch { id: 0, bytes: 1 };
    for error in [
        scene.node.interface.send(stale, b"x").unwrap_err(),
        scene
            .node
            .interface
            .post(stale, batch, &mut |_| panic!("filled"))
            .unwrap_err(),
    ] {
        assert!(matches!(error, Error::NoSuchPeer { peer } if peer == stale));
    }
    scene.node.interface.close(stale);
    assert!(scene.node.interface.path(fresh).is_some());
    scene.node.send(fresh, b"x");
}

#[test]
fn a_full_table_turns_newcomers_away() {
    let config = TcpConfig {
        max_peers: 1,
        ..TcpConfig::default()
    };
    let mut node = Node::listening(config, Policy::Staged);
    let _first = TcpStream::connect(node.address()).unwrap();
    node.until(|recorder| recorder.incoming().len() == 1);
    let mut second = TcpStream::connect(node.address()).unwrap();
    drive(&mut [&mut node], |nodes| {
        nodes[0].interface.stats().rejected == 1
    });
    assert_eq!(second.read(&mut [0; 1]).unwrap(), 0);
    let error = node
        .interface
        .connect(&tcp_address(node.address()))
        .unwrap_err();
    assert!(matches!(error, Error::TooManyPeers { limit: 1 }));
}

#[test]
fn a_flood_from_one_peer_leaves_turns_for_the_others() {
    let mut scene = Scene::new(Policy::Staged);
    let mut raw = scene.raw.try_clone().unwrap();
    // Ends when the node drops the connection.
    let flood = std::thread::spawn(move || {
        let block = [&batch(9, 1 << 20)[..], &vec![0; 1 << 20]].concat();
        while raw.write_all(&block).is_ok() {}
    });
    for _ in 0..5 {
        scene.assert_others_unaffected();
        scene.node.recorder.take();
    }
    scene.node.interface.close(scene.from_raw);
    scene.raw = TcpStream::connect(scene.node.address()).unwrap();
    flood.join().unwrap();
}
