//! What is sent arrives: whole, once, in order, wherever it lands.

mod common;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::{Event, HANG, Node, Policy, Random, Sent, drive, frame, pair};
use moai_transport::wire::Header;
use moai_transport::{Batch, Closed, Interface, PeerId, Posted};
use moai_transport_tcp::{TcpConfig, TcpInterface, tcp_address};

/// Sends `count` frames made from `ours` and expects as many made from `theirs`.
fn exchange(node: &mut Node, peer: PeerId, ours: u64, theirs: u64, count: u64, most: u32) {
    let (mut ours, mut theirs) = (Random(ours), Random(theirs));
    let (mut sent, mut received) = (0, 0);
    let mut next = None;
    let mut may_post = true;
    let mut refusals = 0;
    let mut invitations = 0;
    let start = Instant::now();
    loop {
        while may_post && sent < count {
            let frame = next.get_or_insert_with(|| frame(&mut ours, most));
            let posted = match frame {
                Sent::Message(message) => node.interface.send(peer, message).unwrap(),
                Sent::Batch(id, payload) => node.post(peer, *id, payload),
            };
            match posted {
                Posted::Done => {
                    sent += 1;
                    next = None;
                }
                Posted::Busy => {
                    may_post = false;
                    refusals += 1;
                }
                Posted::InFlight(_) => panic!("TCP copies"),
            }
        }
        let stats = node.interface.stats();
        if received == count && stats.messages_out + stats.batches_out == count {
            break;
        }
        assert!(
            start.elapsed() < HANG,
            "hangs with {sent} sent, {received} received"
        );
        node.poll(Duration::from_millis(100));
        for event in node.recorder.take() {
            let arrived = match event {
                Event::Message(from, bytes) if from == peer => Sent::Message(bytes),
                Event::Landed(from, id, payload) if from == peer => Sent::Batch(id, payload),
                Event::Writable(to) if to == peer => {
                    may_post = true;
                    invitations += 1;
                    continue;
                }
                // The other side has what we sent, and was done first. For whoever called us.
                over @ Event::Closed(_, Closed::ByPeer) if received == count => {
                    node.recorder.events.push(over);
                    continue;
                }
                other => panic!("unexpected {other:?}"),
            };
            assert!(
                arrived == frame(&mut theirs, most),
                "frame {received} differs"
            );
            received += 1;
        }
    }
    assert!(invitations <= refusals);
    node.recorder.assert_only_guards();
    let stats = node.interface.stats();
    assert_eq!(stats.busy, refusals);
    assert_eq!(stats.messages_in + stats.batches_in, count);
}

/// Two threads, `count` frames each way.
fn two_threads(seed: u64, policy: Policy, staging_bytes: u32, count: u64, most: u32) -> u64 {
    println!("seed {seed:#x}, {policy:?}, ring of {staging_bytes} B, batches up to {most} B");
    let config = TcpConfig {
        staging_bytes,
        ..TcpConfig::default()
    };
    let mut listening = Node::listening(config.clone(), policy);
    let address = listening.address();
    let other = thread::spawn(move || {
        listening.until(|recorder| !recorder.incoming().is_empty());
        let peer = listening.recorder.incoming()[0];
        listening.recorder.events.remove(0);
        exchange(&mut listening, peer, seed + 1, seed, count, most);
        listening.until(|recorder| recorder.why(peer).is_some());
        assert!(matches!(listening.recorder.why(peer), Some(Closed::ByPeer)));
        listening.interface.stats()
    });
    let mut connecting = Node::new(config, policy);
    let peer = connecting.interface.connect(&tcp_address(address)).unwrap();
    connecting.until(|recorder| !recorder.events.is_empty());
    let first = connecting.recorder.events.remove(0);
    assert!(matches!(first, Event::Connected(it, false) if it == peer));
    exchange(&mut connecting, peer, seed, seed + 1, count, most);
    connecting.interface.finish(peer);
    connecting.until(|recorder| recorder.why(peer).is_some());
    assert!(matches!(connecting.recorder.why(peer), Some(Closed::ByUs)));
    let (ours, theirs) = (connecting.interface.stats(), other.join().unwrap());
    assert_eq!(ours.bytes_out, theirs.bytes_in);
    assert_eq!(ours.bytes_in, theirs.bytes_out);
    println!("{ours:?}");
    ours.busy + theirs.busy
}

#[test]
fn frames_of_every_size_arrive_as_they_were_sent() {
    for (seed, policy) in [
        (0x5eed_0100, Policy::Staged),
        (0x5eed_0200, Policy::Direct),
        (0x5eed_0300, Policy::Mixed),
    ] {
        two_threads(seed, policy, 8 << 20, 150, 4 << 20);
    }
}

#[test]
fn a_tiny_staging_ring_is_busy_and_then_writable_and_loses_nothing() {
    for seed in [0x5eed_0400, 0x5eed_0500] {
        // Either side sends without reading until it is refused, and there is more to send than the
        // system keeps for a connection.
        let busy = two_threads(seed, Policy::Mixed, 5000, 1000, 5000);
        assert!(busy > 0);
    }
}

#[test]
fn the_largest_and_the_empty_frames_arrive() {
    let mut listening = Node::listening(TcpConfig::default(), Policy::Direct);
    let mut connecting = Node::new(TcpConfig::default(), Policy::Staged);
    let (to, from) = pair(&mut connecting, &mut listening);
    listening.recorder.take();
    let mut random = Random(0x5eed_0600);
    let payload = random.bytes(4 << 20);
    let message = random.bytes(1 << 20);
    connecting.send(to, &[]);
    assert_eq!(connecting.post(to, 1, &payload), Posted::Done);
    connecting.send(to, &message);
    assert_eq!(connecting.post(to, 2, &[]), Posted::Done);
    drive(&mut [&mut connecting, &mut listening], |nodes| {
        nodes[1].recorder.events.len() == 4
    });
    let events = listening.recorder.take();
    assert!(matches!(&events[0], Event::Message(peer, bytes) if *peer == from && bytes.is_empty()));
    assert!(matches!(&events[1], Event::Landed(_, 1, bytes) if *bytes == payload));
    assert!(matches!(&events[2], Event::Message(_, bytes) if *bytes == message));
    assert!(matches!(&events[3], Event::Landed(_, 2, bytes) if bytes.is_empty()));

    let error = connecting.interface.send(to, &vec![0; (1 << 20) + 1]);
    assert_eq!(
        error.unwrap_err().to_string(),
        "a message of 1048577 bytes is over the limit of 1048576 bytes"
    );
    let batch = Batch {
        id: 3,
        bytes: (4 << 20) + 1,
    };
    let error = connecting
        .interface
        .post(to, batch, &mut |_| panic!("filled"));
    assert_eq!(
        error.unwrap_err().to_string(),
        "a batch of 4194305 bytes is over the limit of 4194304 bytes"
    );
}

#[test]
fn frames_queued_before_the_connection_is_there_are_sent_and_finishing_sends_them_all() {
    let mut listening = Node::listening(TcpConfig::default(), Policy::Staged);
    let mut connecting = Node::new(TcpConfig::default(), Policy::Staged);
    let to = connecting
        .interface
        .connect(&tcp_address(listening.address()))
        .unwrap();
    for at in 0..100_u8 {
        connecting.send(to, &[at; 100]);
    }
    connecting.interface.finish(to);
    assert!(connecting.interface.send(to, b"too late").is_err());
    drive(&mut [&mut connecting, &mut listening], |nodes| {
        nodes.iter().all(|node| {
            let over = |event: &Event| matches!(event, Event::Closed(..));
            node.recorder.events.iter().any(over)
        })
    });
    assert!(matches!(
        connecting.recorder.take()[..],
        [Event::Connected(..), Event::Closed(_, Closed::ByUs)]
    ));
    let events = listening.recorder.take();
    assert_eq!(events.len(), 102);
    for (at, event) in events[1..101].iter().enumerate() {
        assert!(matches!(event, Event::Message(_, bytes) if *bytes == [at as u8; 100]));
    }
    assert!(matches!(events[101], Event::Closed(_, Closed::ByPeer)));
}

#[test]
fn what_the_peer_said_before_it_left_is_heard_by_someone_who_was_sending() {
    let mut listening = Node::listening(TcpConfig::default(), Policy::Staged);
    let mut connecting = Node::new(TcpConfig::default(), Policy::Staged);
    let (to, from) = pair(&mut connecting, &mut listening);
    connecting.recorder.take();
    let payload = vec![1; 1 << 20];
    while connecting.post(to, 0, &payload) == Posted::Done {}
    listening.send(from, b"refused, because");
    listening.interface.finish(from);
    drive(&mut [&mut connecting, &mut listening], |nodes| {
        nodes[0].recorder.why(to).is_some() && nodes[1].recorder.why(from).is_some()
    });
    let events = connecting.recorder.take();
    let heard = |event: &Event| matches!(event, Event::Message(_, it) if it == b"refused, because");
    assert!(events.iter().any(heard), "{events:?}");
    assert!(matches!(listening.recorder.why(from), Some(Closed::ByUs)));
}

#[test]
fn frames_arrive_however_the_stream_is_cut() {
    for seed in 0x5eed_0700..0x5eed_0704_u64 {
        println!("seed {seed:#x}");
        let mut random = Random(seed);
        let mut node = Node::listening(TcpConfig::default(), Policy::Mixed);
        let mut raw = TcpStream::connect(node.address()).unwrap();
        raw.set_nodelay(true).unwrap();
        let mut stream = Vec::new();
        let mut sent = Vec::new();
        for id in 0..60_u64 {
            let payload_bytes = random.size(20_000) as usize - 1;
            let payload = random.bytes(payload_bytes);
            let bytes = payload_bytes as u32;
            let is_batch = random.below(2) == 0;
            let header = if is_batch {
                Header::Batch(Batch { id, bytes })
            } else {
                Header::Message { bytes }
            };
            stream.extend(header.encode());
            stream.extend(&payload);
            sent.push((is_batch.then_some(id), payload));
        }
        while !stream.is_empty() {
            let cut = random.size(2000).min(stream.len() as u32) as usize;
            raw.write_all(&stream[..cut]).unwrap();
            stream.drain(..cut);
            node.poll(Duration::ZERO);
        }
        drive(&mut [&mut node], |nodes| {
            nodes[0].recorder.events.len() == 1 + sent.len()
        });
        let received = node.recorder.take().into_iter().skip(1).map(|it| match it {
            Event::Message(_, bytes) => (None, bytes),
            Event::Landed(_, id, payload) => (Some(id), payload),
            other => panic!("unexpected {other:?}"),
        });
        assert!(received.eq(sent));
        node.recorder.assert_only_guards();
    }
}

#[test]
fn small_frames_share_system_calls() {
    let mut listening = Node::listening(TcpConfig::default(), Policy::Staged);
    let mut connecting = Node::new(TcpConfig::default(), Policy::Staged);
    let (to, _) = pair(&mut connecting, &mut listening);
    for _ in 0..1000 {
        connecting.send(to, b"heartbeat");
    }
    drive(&mut [&mut connecting, &mut listening], |nodes| {
        nodes[1].interface.stats().messages_in == 1000
    });
    let (out, into) = (connecting.interface.stats(), listening.interface.stats());
    assert!(out.writes < 100, "{} writes", out.writes);
    assert!(into.reads < 100, "{} reads", into.reads);
}

#[test]
fn the_path_says_what_carries_the_bytes() {
    let mut listening = Node::listening(TcpConfig::default(), Policy::Staged);
    let mut connecting = Node::new(TcpConfig::default(), Policy::Staged);
    let (to, from) = pair(&mut connecting, &mut listening);
    let ours = connecting.interface.path(to).unwrap();
    let theirs = listening.interface.path(from).unwrap();
    assert_eq!((ours.provider, connecting.interface.name()), ("tcp", "tcp"));
    assert_eq!(ours.peer, tcp_address(listening.address()));
    assert_eq!(
        (ours.local, theirs.local),
        (Some(theirs.peer), Some(ours.peer))
    );
    connecting.interface.close(to);
    assert_eq!(connecting.interface.path(to), None);
}

#[test]
fn an_address_in_use_and_a_port_without_listener_are_reported() {
    let listening = Node::listening(TcpConfig::default(), Policy::Staged);
    let taken = TcpConfig {
        listen: Some(listening.address()),
        ..TcpConfig::default()
    };
    let error = TcpInterface::new(taken).unwrap_err();
    let error = error.to_string();
    assert!(error.starts_with("bind failed: Address"), "{error}");

    let free: SocketAddr = listening.address();
    drop(listening);
    let mut connecting = Node::new(TcpConfig::default(), Policy::Staged);
    let to = connecting.interface.connect(&tcp_address(free)).unwrap();
    connecting.until(|recorder| recorder.why(to).is_some());
    let events = connecting.recorder.take();
    assert!(matches!(
        &events[..],
        [Event::Closed(_, Closed::Io(error))] if error.kind() == std::io::ErrorKind::ConnectionRefused
    ));
}

#[test]
fn what_is_advertised_need_not_be_what_is_listened_on() {
    let open = |config| TcpInterface::new(config).map(|interface| interface.addresses());
    let any: SocketAddr = ([0, 0, 0, 0], 0).into();
    let listen = Some(any);
    let error = open(TcpConfig {
        listen,
        ..TcpConfig::default()
    })
    .unwrap_err();
    assert!(
        error.to_string().contains("name the one that peers reach"),
        "{error}"
    );
    for (advertise, told) in [
        ("10.1.2.3:0", "tcp:10.1.2.3:"),
        ("[fd00::7]:99", "tcp:[fd00::7]:99"),
    ] {
        let advertise = Some(advertise.parse().unwrap());
        let addresses = open(TcpConfig {
            listen,
            advertise,
            ..TcpConfig::default()
        })
        .unwrap();
        let text = addresses[0].to_string();
        assert!(text.starts_with(told) && !text.ends_with(":0"), "{text}");
    }
    let first = Node::listening(TcpConfig::default(), Policy::Staged);
    let taken = first.address().port();
    let listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let ports = Some(taken..=taken);
    assert!(
        open(TcpConfig {
            listen,
            ports,
            ..TcpConfig::default()
        })
        .is_err()
    );
    let ports = Some(taken..=taken.saturating_add(100));
    let addresses = open(TcpConfig {
        listen,
        ports,
        ..TcpConfig::default()
    })
    .unwrap();
    assert_ne!(addresses[0], tcp_address(first.address()));
    assert!(
        open(TcpConfig {
            listen: None,
            ..TcpConfig::default()
        })
        .unwrap()
        .is_empty()
    );
}

#[test]
fn messages_go_between_ipv6_addresses_and_waiting_elsewhere_is_told_of_them() {
    let listen = Some("[::1]:0".parse().unwrap());
    let config = TcpConfig {
        listen,
        ..TcpConfig::default()
    };
    let mut listening = Node::new(config, Policy::Staged);
    let mut connecting = Node::new(TcpConfig::default(), Policy::Staged);
    let (to, _) = pair(&mut connecting, &mut listening);
    while listening.interface.arm().is_some_and(|wait| wait.is_zero()) {
        listening.poll(Duration::ZERO);
    }
    let wait = |node: &Node| {
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(
            node.interface.as_fd(),
            rustix::event::PollFlags::IN,
        )];
        let limit = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        rustix::event::poll(&mut fds, Some(&limit)).unwrap()
    };
    connecting.send(to, b"hello");
    assert_eq!(connecting.interface.arm(), Some(Duration::ZERO));
    connecting.poll(Duration::ZERO);
    assert_eq!(wait(&listening), 1);
    listening.poll(Duration::ZERO);
    let hello = |event: &Event| matches!(event, Event::Message(_, bytes) if bytes == b"hello");
    assert!(listening.recorder.events.iter().any(hello));
    listening.interface.arm();
    assert_eq!(wait(&listening), 0);
}
