//! Links by certificate and by key carry everything that plain ones do, and nobody else comes in or disturbs.

mod common;

#[path = "common/authority.rs"]
mod authority;

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use authority::{Authority, Wanted, shared_key, write_key};
use common::{Event, HANG, Node, Policy, Random, drive, hello, pair};
use moai_memory::Region;
use moai_transport::{Closed, Interface, PeerId, Pieces, Posted, Rights, Token, Unauthenticated};
use moai_transport_tcp::{CertificateFiles, Security, TcpConfig, tcp_address};

fn certificate(authority: &Authority, name: &str, id: &str, allow: &str) -> Security {
    let (certificate, key) = authority.issue(name, &Wanted::named(&[id]));
    Security::Certificate(CertificateFiles {
        certificate,
        key,
        authorities: authority.file(),
        allow: allow.parse().unwrap(),
    })
}

fn config(security: &Security) -> TcpConfig {
    TcpConfig {
        security: security.clone(),
        ..TcpConfig::default()
    }
}

/// Messages and batches of all sizes both ways, and puts and gets of short and long pieces.
fn exchange_everything(one: &mut Node, two: &mut Node, [to_two, to_one]: [PeerId; 2]) {
    let mut random = Random(3);
    for round in 0..12_u64 {
        let message = random.bytes([0, 1, 3_000, 1 << 20][round as usize % 4]);
        let payload = random.bytes([1, 700, 65_536, 3 << 20][round as usize % 4]);
        for turned in [false, true] {
            let (from, to, peer) = match turned {
                false => (&mut *one, &mut *two, to_two),
                true => (&mut *two, &mut *one, to_one),
            };
            from.send(peer, &message);
            assert_eq!(from.post(peer, round, &payload), Posted::Done);
            drive(&mut [from, to], |nodes| {
                let mut got = [false; 2];
                for event in &nodes[1].recorder.events {
                    got[0] |= matches!(event, Event::Message(_, it) if *it == message);
                    got[1] |=
                        matches!(event, Event::Landed(_, id, it) if *id == round && *it == payload);
                }
                got == [true, true]
            });
            two.recorder.take();
            one.recorder.take();
        }
    }
    let bytes = random.bytes(3 << 20);
    let local = one.recorder.regions.len() as u32;
    one.recorder.regions.push(Region::from_host(bytes.clone()));
    one.recorder
        .regions
        .push(Region::from_host(vec![0; 3 << 20]));
    let remote = two.recorder.regions.len();
    two.recorder
        .regions
        .push(Region::from_host(vec![0; 3 << 20]));
    let rights = Rights::READ.and(Rights::WRITE);
    let id = two
        .interface
        .register(remote as u32, &two.recorder.regions[remote], rights)
        .unwrap();
    let key = two.interface.remote_key(to_one, id).unwrap();
    let number = one.interface.import(to_two, &key).unwrap();
    for (token, piece) in [(1, 256_u32), (2, 5_000), (3, 1 << 20)] {
        let count = 1 + (1 << 20) / piece / 2;
        let offsets = [7];
        let at = |region| {
            [Pieces {
                region,
                bytes: piece,
                count: count.min((3 << 20) / piece / 2),
                stride: u64::from(piece) * 2,
                offsets: &offsets,
            }]
        };
        let last = |local: u32| at(local)[0].count as usize * 2 * piece as usize + 7 > 3 << 20;
        assert!(!last(0), "the pieces lie in the region");
        for put in [true, false] {
            let (near, far) = (at(if put { local } else { local + 1 }), at(number));
            let token = Token(token * 2 + u64::from(put));
            let regions = &mut one.recorder.regions;
            let posted = match put {
                true => one.interface.put(regions, to_two, &near, &far, token),
                false => one.interface.get(regions, to_two, &near, &far, token),
            };
            assert_eq!(posted.unwrap(), Posted::InFlight(token));
            let mut ended = None;
            drive(&mut [one, two], |_| true);
            let start = Instant::now();
            while ended.is_none() {
                assert!(start.elapsed() < HANG, "hangs");
                one.poll(Duration::from_millis(1));
                two.poll(Duration::from_millis(1));
                ended = one.interface.completion();
            }
            assert_eq!(ended.unwrap().outcome, Ok(()));
            let whose = match put {
                true => two.recorder.regions[remote].as_slice(),
                false => one.recorder.regions[local as usize + 1].as_slice(),
            };
            for index in 0..near[0].count as usize {
                let start = 7 + index * 2 * piece as usize;
                let range = start..start + piece as usize;
                assert!(
                    whose[range.clone()] == bytes[range],
                    "piece {index} of {piece}"
                );
            }
        }
    }
    two.interface.deregister(id).unwrap();
    two.recorder.assert_regions_but(remote);
    one.recorder.regions.truncate(local as usize);
    two.recorder.regions.truncate(remote);
}

#[test]
fn links_carry_everything_by_certificate_and_by_key_sealed_and_open() {
    let authority = Authority::new();
    let by_name = [
        certificate(&authority, "a", "spiffe://c/a", "spiffe://c/b"),
        certificate(&authority, "b", "spiffe://c/b", "spiffe://c/*"),
    ];
    let path = authority.path("shared.pem");
    shared_key(&path);
    let by_key = [Security::SharedKey(path.clone()), Security::SharedKey(path)];
    for (security, names) in [
        (by_name, ["spiffe://c/b", "spiffe://c/a"]),
        (by_key, ["a holder of the shared key"; 2]),
    ] {
        for (lanes, seals) in [
            (1, [true, true]),
            (3, [true, false]),
            (1, [false; 2]),
            (3, [false; 2]),
        ] {
            let of = |at: usize| TcpConfig {
                lanes,
                seal_payload: seals[at],
                ..config(&security[at])
            };
            let mut one = Node::new(of(0), Policy::Mixed);
            let mut two = Node::listening(of(1), Policy::Mixed);
            let (to_two, to_one) = pair(&mut one, &mut two);
            let known = [
                one.interface.identity(to_two).unwrap().to_string(),
                two.interface.identity(to_one).unwrap().to_string(),
            ];
            assert_eq!(known, names);
            let is_open = !seals[0] && !seals[1];
            let why = one.interface.path(to_two).unwrap().why;
            assert_eq!(why.contains("but for payload"), is_open, "{why}");
            assert!(why.contains("by TLS with"), "{why}");
            one.recorder.take();
            two.recorder.take();
            exchange_everything(&mut one, &mut two, [to_two, to_one]);
            assert_eq!(one.interface.stats().authenticated, u64::from(lanes));
            one.send(to_two, b"goodbye");
            one.interface.finish(to_two);
            drive(&mut [&mut one, &mut two], |nodes| {
                nodes[0].recorder.why(to_two).is_some() && nodes[1].recorder.why(to_one).is_some()
            });
            assert!(matches!(one.recorder.why(to_two), Some(Closed::ByUs)));
            assert!(matches!(two.recorder.why(to_one), Some(Closed::ByPeer)));
        }
    }
}

/// What becomes of a connection between two who do not fit: the reason on the side that connects, and whether the other
/// side has told anything of it to the layers above.
fn refused(connecting: TcpConfig, listening: &mut Node) -> Closed {
    let mut one = Node::new(connecting, Policy::Staged);
    let to = one
        .interface
        .connect(&tcp_address(listening.address()))
        .unwrap();
    drive(&mut [&mut one, listening], |nodes| {
        nodes[0].recorder.why(to).is_some()
    });
    for event in one.recorder.take() {
        match event {
            Event::Closed(_, why) => return why,
            Event::Connected(..) => panic!("connected"),
            _ => {}
        }
    }
    unreachable!()
}

#[test]
fn strangers_and_plain_speakers_are_told_apart_and_never_announced() {
    let (authority, other) = (Authority::new(), Authority::new());
    let ours = certificate(&authority, "s", "spiffe://c/s", "spiffe://c/ns/*");
    let mut server = Node::listening(config(&ours), Policy::Staged);
    let outsider = certificate(&authority, "o", "spiffe://c/nsx/o", "*");
    let why = refused(config(&outsider), &mut server);
    assert!(
        matches!(&why, Closed::Unauthenticated(Unauthenticated::Refused { us, .. }) if us == "spiffe://c/nsx/o"),
        "{why}"
    );
    let stranger = certificate(&other, "x", "spiffe://c/ns/x", "*");
    let why = refused(config(&stranger), &mut server).to_string();
    assert!(
        why.contains("spiffe://c/s") && why.contains("no authority"),
        "{why}"
    );
    drive(&mut [&mut server], |nodes| {
        nodes[0].interface.stats().distrusted == 2
    });
    assert_eq!(server.interface.stats().authenticated, 0);
    assert!(server.recorder.take().is_empty(), "someone was announced");
    // Speaks first, as plain peers do.
    let mut plain = Node::new(TcpConfig::default(), Policy::Staged);
    let to = plain
        .interface
        .connect(&tcp_address(server.address()))
        .unwrap();
    assert_eq!(plain.interface.send(to, b"hello").unwrap(), Posted::Done);
    drive(&mut [&mut plain, &mut server], |nodes| {
        nodes[0].recorder.why(to).is_some()
    });
    drive(&mut [&mut server], |nodes| {
        nodes[0].interface.stats().distrusted == 3
    });
    assert!(server.recorder.take().is_empty(), "someone was announced");
    let mut open = Node::listening(TcpConfig::default(), Policy::Staged);
    let why = refused(config(&ours), &mut open);
    assert!(
        matches!(why, Closed::Unauthenticated(Unauthenticated::Hung)),
        "{why}"
    );
    let reason = open
        .recorder
        .take()
        .into_iter()
        .find_map(|event| match event {
            Event::Closed(_, why) => Some(why),
            _ => None,
        });
    assert!(
        matches!(
            reason,
            Some(Closed::Unauthenticated(Unauthenticated::Secured))
        ),
        "{reason:?}"
    );
}

#[test]
fn scans_garbage_and_silence_cost_their_deadline_and_nobody_notices() {
    let authority = Authority::new();
    let security = certificate(&authority, "s", "spiffe://c/s", "*");
    let config = TcpConfig {
        first_frame_timeout: Duration::from_millis(1500),
        ..config(&security)
    };
    let mut server = Node::listening(config.clone(), Policy::Mixed);
    let mut healthy = Node::new(config, Policy::Mixed);
    let (to, from) = pair(&mut healthy, &mut server);
    healthy.send(to, b"hello");
    drive(&mut [&mut healthy, &mut server], |nodes| {
        nodes[1].interface.stats().messages_in == 1
    });
    server.recorder.take();
    let hello = hello(&security);
    let mut random = Random(5);
    let mut raw = Vec::new();
    for round in 0..60 {
        let mut socket = TcpStream::connect(server.address()).unwrap();
        let bytes = match round % 6 {
            0 => Vec::new(),
            1 => random.bytes(500),
            2 => hello[..random.below(hello.len() as u64) as usize].to_vec(),
            3 => hello.clone(),
            4 => [&[22, 3, 1, 0xff, 0xff][..], &random.bytes(1000)].concat(),
            _ => {
                let mut bytes = hello.clone();
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << random.below(8);
                bytes
            }
        };
        let _ = socket.write_all(&bytes);
        if round % 6 == 0 && round % 4 == 0 {
            continue; // A scan: connected and gone.
        }
        raw.push(socket);
        server.poll(Duration::from_millis(1));
    }
    let start = Instant::now();
    let mut sent = 0;
    while server.interface.stats().distrusted < 60 {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{:?}",
            server.interface.stats()
        );
        healthy.send(to, b"still here");
        sent += 1;
        server.poll(Duration::from_millis(2));
        healthy.poll(Duration::from_millis(2));
    }
    drive(&mut [&mut healthy, &mut server], |nodes| {
        nodes[1].interface.stats().messages_in == 1 + sent
    });
    for event in server.recorder.take() {
        assert!(
            matches!(event, Event::Message(peer, _) if peer == from),
            "{event:?}"
        );
    }
    exchange_everything(&mut healthy, &mut server, [to, from]);
    drop(raw);
}

#[test]
fn a_flood_of_silent_handshakes_keeps_nobody_out() {
    let authority = Authority::new();
    let security = certificate(&authority, "s", "spiffe://c/s", "*");
    let mut server = Node::listening(config(&security), Policy::Staged);
    let address = server.address();
    // The system's queue takes some of them, the server the others.
    let flooding = std::thread::spawn(move || -> Vec<TcpStream> {
        (0..300)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect()
    });
    while server.interface.stats().distrusted == 0 {
        server.poll(Duration::from_millis(5));
    }
    let start = Instant::now();
    let mut one = Node::new(
        TcpConfig {
            connect_timeout: Duration::from_secs(30),
            ..config(&security)
        },
        Policy::Staged,
    );
    pair(&mut one, &mut server);
    // Each of those before it has its grace at most, and as many at a time as are let.
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert!(server.interface.stats().distrusted > 0);
    while !flooding.is_finished() {
        server.poll(Duration::from_millis(5));
    }
    drop(flooding.join().unwrap());
}

#[test]
fn changed_files_are_taken_up_and_bad_ones_are_not() {
    let authority = Authority::new();
    let server = certificate(&authority, "s", "spiffe://c/old", "*");
    let client = certificate(&authority, "c", "spiffe://c/c", "*");
    let mut listening = Node::listening(config(&server), Policy::Mixed);
    let mut before = Node::new(config(&client), Policy::Mixed);
    let (to, from) = pair(&mut before, &mut listening);
    let name = |node: &Node, peer| node.interface.identity(peer).unwrap().to_string();
    assert_eq!(name(&before, to), "spiffe://c/old");
    let pause = Duration::from_millis(600);
    std::thread::sleep(pause);
    certificate(&authority, "s", "spiffe://c/new", "*");
    let mut after = Node::new(config(&client), Policy::Mixed);
    let (to_new, _) = pair(&mut after, &mut listening);
    assert_eq!(name(&after, to_new), "spiffe://c/new");
    // What was there goes on as who it was.
    assert_eq!(name(&before, to), "spiffe://c/old");
    exchange_everything(&mut before, &mut listening, [to, from]);
    for spoil in [
        |path: &std::path::Path| write_key(path, "no key"),
        |path: &std::path::Path| fs::remove_file(path).unwrap(),
    ] {
        std::thread::sleep(pause);
        spoil(&authority.path("s-key.pem"));
        let mut again = Node::new(config(&client), Policy::Staged);
        let (to, _) = pair(&mut again, &mut listening);
        assert_eq!(name(&again, to), "spiffe://c/new");
    }
}
