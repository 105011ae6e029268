//! A consumer against peers that lie, stall and die: it never commits what was not sent, never hangs
//! past its deadline, and never panics.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use moai_collectives::{
    digest::mix,
    execute::Requested,
    protocol::{Failure, Message},
    request::Request,
    transfer::{Ended, Report},
};
use moai_fabric::{Fabric, config::Config, synthetic};
use moai_transport::{Address, Batch, wire::Header};
use serde_json::{Value, json};

const SEED: u64 = 7;

/// One rank to one rank, 40 tokens.
fn requested(target_element: &str, target_layouts: [&str; 2]) -> Arc<Requested> {
    let sides = synthetic::descriptions(40, SEED).map(|mut side: Value| {
        side["parallel"]["tp"] = json!(1);
        side["ranks"].as_array_mut().unwrap().truncate(1);
        side["model"]["layers"] = json!(4);
        side
    });
    let [producer, mut consumer] = sides;
    for (component, layout) in consumer["components"]
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .zip(target_layouts)
    {
        component["layout"] = json!(layout);
        component["format"] = json!({ "element": target_element });
    }
    let read = |side: &Value| Request::read(&side.to_string()).unwrap();
    let (producer, consumer) = (read(&producer), read(&consumer));
    Arc::new(Requested::agree(producer, consumer).unwrap())
}

/// Chunks that land straight in their pages, that are placed from a buffer, and that are converted on
/// arrival.
fn ways() -> [Arc<Requested>; 3] {
    let dense = "[layer] part page slot head dim";
    let packed = [
        "[layer] part page head dim/8 slot dim%8",
        "[layer] part page head dim slot",
    ];
    [
        requested("bf16", [dense, dense]),
        requested("e4m3fn", packed),
        requested("f32", packed),
    ]
}

fn fabric(deadline: Duration) -> Fabric {
    let mut config = Config::default();
    config.deadline = deadline;
    Fabric::new(config)
}

fn serve(
    requested: &Arc<Requested>,
    deadline: Duration,
) -> (SocketAddr, thread::JoinHandle<Report>) {
    let server = fabric(deadline).listen().unwrap();
    let mut addresses = server.addresses().iter();
    let address = addresses
        .find(|address| address.provider() == "tcp")
        .unwrap();
    let address = address.location().parse().unwrap();
    let requested = Arc::clone(requested);
    let producer = move || {
        let mut pool =
            synthetic::producer_pool(&requested.agreed().producer, requested.producer(), 0, SEED)
                .unwrap();
        server.serve(&requested, 0, &mut pool, &mut |_, _| {})
    };
    (address, thread::spawn(producer))
}

/// Pulls from `address`; also says whether each page of the pool is as it was.
fn pull(
    requested: &Arc<Requested>,
    address: SocketAddr,
    deadline: Duration,
) -> (Report, Vec<bool>) {
    let before = synthetic::background(&requested.agreed().consumer, 0, SEED).unwrap();
    let mut pool = synthetic::background(&requested.agreed().consumer, 0, SEED).unwrap();
    let addresses = BTreeMap::from([(0, vec![Address::new("tcp", address).unwrap()])]);
    let start = Instant::now();
    let report = fabric(deadline)
        .pull(requested, 0, &mut pool, &addresses, &mut |_, _| {})
        .unwrap();
    assert!(
        start.elapsed() < deadline + Duration::from_secs(3),
        "{:?} past {deadline:?}",
        start.elapsed()
    );
    let pages = requested.agreed().consumer.ranks[0].pages as usize;
    let same = (0..pages).map(|page| {
        // Both layouts used here keep `part page …` outermost, so pages are equal slices of each part.
        pool.iter().zip(&before).all(|(now, then)| {
            let size = now.as_slice().len() / 2 / pages;
            [0, 1].iter().all(|part| {
                let at = (part * pages + page) * size;
                now.as_slice()[at..at + size] == then.as_slice()[at..at + size]
            })
        })
    });
    (report, same.collect())
}

fn failure(report: &Report) -> &Failure {
    report.failure().expect("the transfer failed")
}

/// What is not reported as dirty is untouched.
fn assert_dirty_is_honest(report: &Report, same: &[bool]) {
    let Ended::Failed { dirty, .. } = &report.ended else {
        panic!("{report:?}")
    };
    for (page, same) in same.iter().enumerate() {
        let listed = dirty
            .iter()
            .any(|group| group.pages.contains(&(page as u32)));
        assert!(
            *same || listed,
            "page {page} changed and is not listed as dirty: {report:?}"
        );
    }
}

#[test]
fn an_undisturbed_transfer_commits_on_both_sides() {
    for requested in ways() {
        let (address, producer) = serve(&requested, Duration::from_secs(20));
        let (report, _) = pull(&requested, address, Duration::from_secs(20));
        assert!(report.is_committed(), "{report:?}");
        assert!(producer.join().unwrap().is_committed());
    }
}

/// Passes bytes on, and changes one bit of what the producer says at byte `at`. Says whether it did.
fn corrupting_proxy(
    producer: SocketAddr,
    at: u64,
    bit: u8,
) -> (SocketAddr, thread::JoinHandle<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let proxy = move || {
        let (consumer, _) = listener.accept().unwrap();
        let producer = TcpStream::connect(producer).unwrap();
        let (mut up, mut to) = (consumer.try_clone().unwrap(), producer.try_clone().unwrap());
        let upward = thread::spawn(move || {
            let _ = std::io::copy(&mut up, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
        let (mut from, mut down) = (producer, consumer);
        let (mut seen, mut done, mut buffer) = (0_u64, false, vec![0; 64 << 10]);
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            if (seen..seen + n as u64).contains(&at) {
                buffer[(at - seen) as usize] ^= 1 << bit;
                done = true;
            }
            seen += n as u64;
            if down.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
        let _ = down.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
        let _ = upward.join();
        done
    };
    (address, thread::spawn(proxy))
}

#[test]
fn one_flipped_bit_anywhere_in_what_a_producer_sends_is_never_committed() {
    let seed = std::env::var("MOAI_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(2026_u64);
    for (way, requested) in ways().into_iter().enumerate() {
        let wire: u64 = moai_collectives::traffic::traffic(&requested)
            .iter()
            .map(|p| p.bytes_wire)
            .sum();
        let mut by_digest = 0;
        for round in 0..8 {
            let draw = mix(seed.wrapping_add(way as u64 * 1000 + round));
            // The last rounds hit the frames of the handshake, the others payload and its headers.
            let at = if round < 6 { draw % wire } else { draw % 64 };
            let told = format!("way {way}, byte {at}, bit {}, seed {seed}", draw >> 61);
            let (address, producer) = serve(&requested, Duration::from_secs(2));
            let (through, proxy) = corrupting_proxy(address, at, (draw >> 61) as u8);
            let (report, same) = pull(&requested, through, Duration::from_secs(2));
            if proxy.join().unwrap() {
                assert!(!report.is_committed(), "{told}: committed");
                assert_dirty_is_honest(&report, &same);
                by_digest += u64::from(matches!(failure(&report), Failure::Digest { .. }));
            }
            assert!(
                !producer.join().unwrap().is_committed(),
                "{told}: the producer believes it is committed"
            );
        }
        assert!(
            by_digest >= 3,
            "way {way}: only {by_digest} of 8 flips were left to the digest, seed {seed}"
        );
    }
}

/// Accepts one connection and lets `act` have it.
fn impostor(act: impl FnOnce(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || act(listener.accept().unwrap().0));
    address
}

fn say(stream: &mut TcpStream, message: &Message) {
    let body = message.encode();
    let header = (Header::Message {
        bytes: body.len() as u32,
    })
    .encode();
    stream.write_all(&[&header[..], &body].concat()).unwrap();
}

fn batch(stream: &mut TcpStream, id: u64, bytes: u32, payload: &[u8]) {
    let header = Header::Batch(Batch { id, bytes }).encode();
    let _ = stream.write_all(&[&header[..], payload].concat());
}

fn welcome(requested: &Requested) -> Message {
    let pair = &requested.agreed().agreement.pairs[0];
    let chunks = requested.chunks(pair);
    Message::Welcome {
        chunks: chunks.len() as u64,
        bytes: chunks.wire_bytes(),
    }
}

/// Keeps a connection open for as long as the other side does.
fn hold(mut stream: TcpStream) {
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

#[test]
fn impostors_get_a_typed_failure_before_the_deadline() {
    let requested = &ways()[0];
    let limit = Duration::from_secs(1);
    let chunks = requested.chunks(&requested.agreed().agreement.pairs[0]);
    let first = chunks.get(0).unwrap().bytes;
    let greeting = welcome(requested);

    let (report, same) = pull(requested, impostor(hold), limit);
    assert!(
        matches!(failure(&report), Failure::Deadline { missing } if missing == "an answer of rank 0"),
        "{report:?}"
    );
    assert!(same.iter().all(|same| *same));

    let (report, _) = pull(requested, impostor(drop), limit);
    assert!(
        matches!(failure(&report), Failure::PeerLost { rank: 0, .. }),
        "{report:?}"
    );

    let garbage = |mut stream: TcpStream| {
        let _ = stream.write_all(&[0xA5; 5000]);
        hold(stream);
    };
    let (report, _) = pull(requested, impostor(garbage), limit);
    assert!(
        matches!(failure(&report), Failure::PeerLost { why, .. } if why.contains("protocol")),
        "{report:?}"
    );

    let refuse = |mut stream: TcpStream| {
        say(
            &mut stream,
            &Message::Refuse {
                why: "not today".into(),
            },
        );
        hold(stream);
    };
    let (report, _) = pull(requested, impostor(refuse), limit);
    assert!(
        matches!(failure(&report), Failure::PeerFailed { why, .. } if why.starts_with("not today")),
        "{report:?}"
    );

    let boast = |mut stream: TcpStream| {
        say(
            &mut stream,
            &Message::Welcome {
                chunks: u64::MAX,
                bytes: u64::MAX,
            },
        );
        hold(stream);
    };
    let (report, _) = pull(requested, impostor(boast), limit);
    assert!(
        matches!(failure(&report), Failure::Protocol { what, .. } if what.contains("18446744073709551615")),
        "{report:?}"
    );

    // Payload nobody asked for, before the handshake.
    let eager = move |mut stream: TcpStream| {
        batch(&mut stream, 0, first, &vec![1; first as usize]);
        hold(stream);
    };
    let (report, same) = pull(requested, impostor(eager), limit);
    assert!(
        matches!(failure(&report), Failure::Protocol { .. }),
        "{report:?}"
    );
    assert!(
        same.iter().all(|same| *same),
        "payload landed before the handshake"
    );

    // A chunk may come in any order, but once.
    let twice = {
        let greeting = greeting.clone();
        move |mut stream: TcpStream| {
            say(&mut stream, &greeting);
            for _ in 0..2 {
                batch(&mut stream, 1, first, &vec![1; first as usize]);
            }
            hold(stream);
        }
    };
    let (report, same) = pull(requested, impostor(twice), limit);
    assert!(
        matches!(failure(&report), Failure::Protocol { what, .. } if what.contains("expected it once")),
        "{report:?}"
    );
    assert_dirty_is_honest(&report, &same);

    for (id, bytes) in [(8, first), (u64::MAX, first), (0, first - 1), (0, 1)] {
        let greeting = greeting.clone();
        let misplaced = move |mut stream: TcpStream| {
            say(&mut stream, &greeting);
            batch(&mut stream, id, bytes, &vec![1; bytes as usize]);
            hold(stream);
        };
        let (report, same) = pull(requested, impostor(misplaced), limit);
        assert!(
            matches!(failure(&report), Failure::Protocol { .. }),
            "{report:?}"
        );
        assert!(
            same.iter().all(|same| *same),
            "a chunk landed that was not the next"
        );
    }

    // Half a chunk, and then nothing; or the end.
    for dies in [false, true] {
        let greeting = greeting.clone();
        let half = move |mut stream: TcpStream| {
            say(&mut stream, &greeting);
            batch(&mut stream, 0, first, &vec![1; first as usize / 2]);
            if !dies {
                hold(stream);
            }
        };
        let (report, same) = pull(requested, impostor(half), limit);
        match (failure(&report), dies) {
            (Failure::Deadline { .. }, false) | (Failure::PeerLost { .. }, true) => {}
            other => panic!("{other:?}"),
        }
        assert_dirty_is_honest(&report, &same);
        assert!(same.contains(&false), "half a chunk should have landed");
    }

    // All sums, no chunks: they may come first, and are not enough.
    let (sums, parts) = (greeting, chunks.parts());
    let empty = move |mut stream: TcpStream| {
        say(&mut stream, &sums);
        say(
            &mut stream,
            &Message::Sums {
                mapped: false,
                sums: vec![0; parts],
            },
        );
        hold(stream);
    };
    let (report, _) = pull(requested, impostor(empty), limit);
    assert!(
        matches!(failure(&report), Failure::Deadline { missing } if missing.contains("8 of 8 chunks")),
        "{report:?}"
    );
}

#[test]
fn nobody_listening_is_a_lost_peer_at_once() {
    let requested = &ways()[0];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (report, same) = pull(requested, address, Duration::from_secs(5));
    assert!(
        matches!(failure(&report), Failure::PeerLost { .. }),
        "{report:?}"
    );
    assert!(same.iter().all(|same| *same));
    assert!(report.elapsed_ns < 1_000_000_000);
}

#[test]
fn a_consumer_with_another_plan_is_refused_with_the_reason() {
    let [one, other, _] = ways();
    let (address, producer) = serve(&one, Duration::from_secs(2));
    let (report, same) = pull(&other, address, Duration::from_secs(2));
    assert!(
        matches!(failure(&report), Failure::PeerFailed { why, .. } if why.contains("descriptions differ")),
        "{report:?}"
    );
    assert!(same.iter().all(|same| *same));
    assert!(matches!(
        producer.join().unwrap().failure(),
        Some(Failure::Deadline { .. })
    ));
}
