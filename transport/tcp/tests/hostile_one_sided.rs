//! Peers that break the rules of one-sided operations harm nobody but themselves.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::{Event, Node, Policy, drive, pair};
use moai_memory::sim::{SimConfig, SimDevice};
use moai_transport::wire::{Access, HEADER_BYTES, Header, Lane, ListWriter, WireError};
use moai_transport::{
    Batch, Closed, Fault, Interface, PeerId, Pieces, Posted, Refusal, RegistrationId, Rights, Run,
    Token, limits,
};
use moai_transport_tcp::TcpConfig;

/// A listening node with registered memory, a healthy peer, and a raw socket.
struct Scene {
    node: Node,
    healthy: Node,
    to_node: PeerId,
    raw: TcpStream,
    id: RegistrationId,
    epoch: u64,
}

impl Scene {
    fn new(lanes: u32) -> Self {
        let config = TcpConfig {
            lanes,
            ..TcpConfig::default()
        };
        let mut node = Node::listening(config.clone(), Policy::Staged);
        let mut healthy = Node::new(config, Policy::Staged);
        let (to_node, from_healthy) = pair(&mut healthy, &mut node);
        let rights = Rights::READ.and(Rights::WRITE);
        let id = node
            .interface
            .register(0, &node.recorder.regions[0], rights)
            .unwrap();
        let key = node.interface.remote_key(from_healthy, id).unwrap();
        let epoch = u64::from_le_bytes(key[8..16].try_into().unwrap());
        let raw = connect(&node);
        Self {
            node,
            healthy,
            to_node,
            raw,
            id,
            epoch,
        }
    }

    fn list(&self, pieces: &[(u64, u32)]) -> Vec<u8> {
        let mut list = Vec::new();
        let mut writer = ListWriter::new(&mut list);
        for &(offset, bytes) in pieces {
            writer.push(
                Run {
                    region: self.id.slot(),
                    offset,
                    bytes,
                },
                self.id.generation(),
            );
        }
        writer.finish();
        list
    }

    fn access(&self, id: u64, bytes: u32, list: &[u8]) -> Access {
        Access {
            id,
            bytes,
            list_bytes: list.len() as u32,
            epoch: self.epoch,
        }
    }

    fn put(&self, id: u64, list: &[u8], payload: &[u8]) -> Vec<u8> {
        let header = Header::Put(self.access(id, payload.len() as u32, list)).encode();
        [&header[..], list, payload].concat()
    }

    /// The next header that the node sends.
    fn answer(&mut self) -> Header {
        let node = &mut self.node;
        answer(node, &mut self.raw)
    }

    /// Waits until the node has closed somebody, and returns why.
    fn why(&mut self) -> Closed {
        let closed = |event: &Event| matches!(event, Event::Closed(..));
        self.node
            .until(|recorder| recorder.events.iter().any(closed));
        let events = self.node.recorder.take();
        let why = events.into_iter().find_map(|event| match event {
            Event::Closed(_, why) => Some(why),
            _ => None,
        });
        self.others_go_on();
        why.unwrap()
    }

    fn others_go_on(&mut self) {
        self.healthy.send(self.to_node, b"still here");
        let said = |event: &Event| matches!(event, Event::Message(_, it) if it == b"still here");
        drive(&mut [&mut self.node, &mut self.healthy], |nodes| {
            nodes[0].recorder.events.iter().any(said)
        });
        self.node.recorder.events.retain(|event| !said(event));
    }
}

fn connect(node: &Node) -> TcpStream {
    let raw = TcpStream::connect(node.address()).unwrap();
    raw.set_nonblocking(true).unwrap();
    raw
}

fn answer(node: &mut Node, raw: &mut TcpStream) -> Header {
    let mut header = [0; HEADER_BYTES];
    let mut filled = 0;
    while filled < HEADER_BYTES {
        match raw.read(&mut header[filled..]) {
            Ok(0) => panic!("the node has closed"),
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                node.poll(Duration::from_millis(1))
            }
            Err(error) => panic!("{error}"),
        }
    }
    Header::decode(&header).unwrap()
}

/// Whether the node drops the socket.
fn is_dropped(node: &mut Node, raw: &mut TcpStream) -> bool {
    for _ in 0..5000 {
        match raw.read(&mut [0; 1]) {
            Ok(0) => return true,
            Ok(_) => return false,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                node.poll(Duration::from_millis(1))
            }
            Err(_) => return true,
        }
    }
    false
}

#[test]
fn what_is_refused_is_drained_and_what_follows_is_done() {
    let mut scene = Scene::new(1);
    let good = scene.list(&[(0, 1000), (5000, 1000)]);
    let beyond = scene.list(&[(0, 1000), (3 << 20, 1000)]);
    let mut cut = good.clone();
    cut.truncate(20);
    let mut counts_lie = good.clone();
    counts_lie[12] = 200;
    let mut stale = good.clone();
    stale[4] += 1;
    let payload = vec![9; 2000];
    for (list, refusal) in [
        (&beyond, Refusal::Bounds),
        (&cut, Refusal::Malformed),
        (&counts_lie, Refusal::Malformed),
        (&stale, Refusal::Generation),
        (&Vec::new(), Refusal::Malformed),
    ] {
        let frame = scene.put(3, list, &payload);
        scene.raw.write_all(&frame).unwrap();
        assert_eq!(
            scene.answer(),
            Header::Done {
                id: 3,
                refusal: Some(refusal)
            }
        );
        let get = Header::Get(scene.access(4, 2000, list)).encode();
        scene.raw.write_all(&[&get[..], list].concat()).unwrap();
        assert_eq!(
            scene.answer(),
            Header::Done {
                id: 4,
                refusal: Some(refusal)
            }
        );
    }
    // Totals that lie, both ways.
    for bytes in [1999, 2001] {
        let frame = scene.put(5, &good, &vec![9; bytes]);
        scene.raw.write_all(&frame).unwrap();
        let refusal = Some(Refusal::Malformed);
        assert_eq!(scene.answer(), Header::Done { id: 5, refusal });
    }
    scene.node.recorder.assert_only_guards();
    let frame = scene.put(6, &good, &payload);
    scene.raw.write_all(&frame).unwrap();
    assert_eq!(
        scene.answer(),
        Header::Done {
            id: 6,
            refusal: None
        }
    );
    assert!(scene.node.recorder.regions[0].as_slice()[5000..6000] == payload[..1000]);
    scene.others_go_on();
}

#[test]
fn frames_that_cannot_be_end_the_connection_alone() {
    let too_long = limits::MAX_LIST_BYTES + 1;
    for at in 0..4 {
        let mut scene = Scene::new(1);
        let access = Access {
            id: 1,
            bytes: 8,
            list_bytes: too_long,
            epoch: scene.epoch,
        };
        let header = match at {
            0 => Header::Put(access),
            1 => Header::Data(Batch {
                id: 1 << 63,
                bytes: 8,
            }),
            2 => Header::Done {
                id: 0,
                refusal: None,
            },
            _ => Header::Join(Lane {
                peer: 0,
                lane: 0,
                epoch: 0,
            }),
        };
        scene.raw.write_all(&header.encode()).unwrap();
        let why = scene.why();
        let expected = match at {
            0 => {
                matches!(&why, Closed::Protocol(WireError::Length { seen, .. }) if *seen == too_long)
            }
            _ => matches!(&why, Closed::Protocol(WireError::Field { field: "id", .. })),
        };
        assert!(expected, "{why:?}");
        scene.node.recorder.assert_only_guards();
    }
}

#[test]
fn half_a_put_and_then_silence_holds_up_nobody() {
    let mut scene = Scene::new(1);
    let list = scene.list(&[(0, 200_000)]);
    let frame = scene.put(1, &list, &[9; 200_000]);
    for part in [&frame[..20], &frame[20..40], &frame[40..100_000]] {
        scene.raw.write_all(part).unwrap();
        scene.node.poll(Duration::from_millis(1));
        scene.others_go_on();
    }
    let raw = scene.raw.try_clone().unwrap();
    scene.raw = connect(&scene.node);
    raw.shutdown(std::net::Shutdown::Write).unwrap();
    let why = scene.why();
    assert!(
        matches!(
            why,
            Closed::Truncated {
                what: "payload",
                ..
            }
        ),
        "{why:?}"
    );
}

#[test]
fn a_peer_that_asks_and_never_reads_is_not_read_any_more() {
    let mut scene = Scene::new(1);
    let list = scene.list(&[(0, 1 << 20)]);
    let get = Header::Get(scene.access(1, 1 << 20, &list)).encode();
    let frames = [&get[..], &list].concat().repeat(1000);
    let mut sent = 0;
    let mut blocked = 0;
    while blocked < 200 {
        match scene.raw.write(&frames[sent % frames.len()..]) {
            Ok(bytes) => {
                sent += bytes;
                blocked = 0;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                blocked += 1;
                scene.node.poll(Duration::from_millis(1));
            }
        }
        assert!(sent < 64 << 20, "the node reads without end");
    }
    assert!(scene.node.interface.stats().refused > 0);
    scene.others_go_on();
}

#[test]
fn hundreds_that_say_nothing_are_dropped_in_time() {
    for lanes in [1, 3] {
        let config = TcpConfig {
            lanes,
            first_frame_timeout: Duration::from_millis(300),
            ..TcpConfig::default()
        };
        let mut node = Node::listening(config, Policy::Staged);
        let mut silent = Vec::new();
        for _ in 0..400 {
            silent.push(connect(&node));
            node.poll(Duration::ZERO);
        }
        let mut healthy = Node::new(
            TcpConfig {
                lanes,
                ..TcpConfig::default()
            },
            Policy::Staged,
        );
        let (to, _) = pair(&mut healthy, &mut node);
        healthy.send(to, b"hello");
        drive(&mut [&mut node, &mut healthy], |nodes| {
            nodes[0].interface.stats().messages_in == 1
        });
        for raw in &mut silent {
            assert!(is_dropped(&mut node, raw));
        }
        assert!(healthy.interface.path(to).is_some());
    }
}

#[test]
fn only_who_knows_the_name_and_the_epoch_joins_and_only_once() {
    let mut scene = Scene::new(3);
    let join = |peer, lane, epoch| Header::Join(Lane { peer, lane, epoch }).encode();
    scene.raw.write_all(&join(77, 0, 0)).unwrap();
    let epoch = scene.epoch;
    let invitation = Header::Join(Lane {
        peer: 77,
        lane: 2,
        epoch,
    });
    assert_eq!(scene.answer(), invitation);
    let mut second = connect(&scene.node);
    second.write_all(&join(77, 1, epoch)).unwrap();
    let list = scene.list(&[(0, 10)]);
    let put = scene.put(5, &list, &[9; 10]);
    second.write_all(&put).unwrap();
    let done = Header::Done {
        id: 5,
        refusal: None,
    };
    assert_eq!(answer(&mut scene.node, &mut second), done);
    for (peer, lane, epoch) in [
        (77, 1, epoch),
        (78, 2, epoch),
        (77, 2, epoch + 1),
        (77, 3, epoch),
    ] {
        let mut other = connect(&scene.node);
        other.write_all(&join(peer, lane, epoch)).unwrap();
        assert!(is_dropped(&mut scene.node, &mut other), "{peer} {lane}");
    }
    // The same name for another peer is no name, and messages stay on the first lane.
    let mut other = connect(&scene.node);
    other.write_all(&join(77, 0, 0)).unwrap();
    assert!(is_dropped(&mut scene.node, &mut other));
    scene.others_go_on();
    scene.node.recorder.take();
    second
        .write_all(&Header::Message { bytes: 0 }.encode())
        .unwrap();
    let why = scene.why();
    assert!(
        matches!(
            why,
            Closed::Protocol(WireError::Field { field: "lane", .. })
        ),
        "{why:?}"
    );
    assert!(is_dropped(&mut scene.node, &mut scene.raw));
}

#[test]
fn a_frame_for_device_memory_that_is_overlong_or_mixes_memories_is_refused_and_drained() {
    let mut scene = Scene::new(1);
    let device = SimDevice::new(SimConfig::default());
    let regions = &mut scene.node.recorder.regions;
    regions.push(device.allocate(1 << 20).unwrap());
    let rights = Rights::READ.and(Rights::WRITE);
    let index = regions.len() as u32 - 1;
    let interface = &mut scene.node.interface;
    let on_host = scene.id;
    let on_device = interface
        .register(index, &regions[index as usize], rights)
        .unwrap();
    let mut mixed = scene.list(&[(0, 8)]);
    scene.id = on_device;
    mixed.extend(scene.list(&[(0, 8)]));
    let overlong = scene.list(&[(0, 512 << 10)]);
    for (list, bytes) in [(mixed, 16), (overlong, 512 << 10)] {
        let frame = scene.put(3, &list, &vec![9; bytes]);
        let mut raw = scene.raw.try_clone().unwrap();
        let mut left = &frame[..];
        while !left.is_empty() {
            match raw.write(left) {
                Ok(bytes) => left = &left[bytes..],
                Err(_) => scene.node.poll(Duration::from_millis(1)),
            }
        }
        let refusal = Some(Refusal::Malformed);
        assert_eq!(scene.answer(), Header::Done { id: 3, refusal });
        let get = Header::Get(scene.access(4, bytes as u32, &list)).encode();
        scene.raw.write_all(&[&get[..], &list].concat()).unwrap();
        assert_eq!(scene.answer(), Header::Done { id: 4, refusal });
    }
    scene.id = on_host;
    scene.node.recorder.regions.pop();
    scene.node.recorder.assert_only_guards();
    scene.others_go_on();
}

#[test]
fn a_doubled_or_made_up_done_ends_the_peer_and_no_operation_twice() {
    for is_doubled in [true, false] {
        let mut scene = Scene::new(1);
        scene.node.until(|recorder| recorder.incoming().len() == 2);
        let from_raw = scene.node.recorder.incoming()[1];
        let Node {
            interface,
            recorder,
        } = &mut scene.node;
        let key = interface.remote_key(from_raw, scene.id).unwrap();
        let remote = interface.import(from_raw, &key).unwrap();
        let of = |region| Pieces {
            region,
            bytes: 100,
            count: 1,
            stride: 0,
            offsets: &[0],
        };
        let memory = &mut recorder.regions;
        let posted = interface.put(memory, from_raw, &[of(1)], &[of(remote)], Token(7));
        assert_eq!(posted.unwrap(), Posted::InFlight(Token(7)));
        let Header::Put(Access { id, .. }) = scene.answer() else {
            panic!("not a put");
        };
        let done = |id| Header::Done { id, refusal: None }.encode();
        let said = if is_doubled {
            [done(id), done(id)]
        } else {
            [done(id ^ 1), done(id)]
        };
        scene.raw.write_all(&said.concat()).unwrap();
        let why = scene.why();
        let Closed::Protocol(WireError::Field { field: "id", .. }) = why else {
            panic!("{why:?}");
        };
        let completion = scene.node.interface.completion().unwrap();
        let expected = if is_doubled {
            Ok(())
        } else {
            Err(Fault::PeerLost)
        };
        assert_eq!((completion.token, completion.outcome), (Token(7), expected));
        assert_eq!(scene.node.interface.completion(), None);
    }
}
