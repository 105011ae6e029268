//! A consumer against peers that lie, stall and die: it never commits what was not sent, never hangs
//! past its deadline, and never panics.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use moai_collectives::{
    digest::mix,
    execute::{Pool, Requested},
    protocol::node::{Failure, Message, Reason},
    request::Request,
    transfer::{Ended, Report, batch_of},
};
use moai_fabric::{Fabric, check, config::Config, synthetic};
use moai_tests::impostor::{self, Asked, hold};
use moai_transport::{
    Address,
    wire::{HEADER_BYTES, Header},
};
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
    Fabric::new(config).with_session(impostor::session())
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

/// What a pull left behind.
struct Pulled {
    report: Report,
    pool: Pool,
    /// Whether each page of the pool is as it was.
    same: Vec<bool>,
}

fn pull(requested: &Arc<Requested>, address: SocketAddr, deadline: Duration) -> Pulled {
    let before = background(requested);
    let mut pool = background(requested);
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
    let same = same.collect();
    Pulled { report, pool, same }
}

fn background(requested: &Requested) -> Pool {
    synthetic::background(&requested.agreed().consumer, 0, SEED).unwrap()
}

impl Pulled {
    fn failure(&self) -> &Failure {
        self.report.failure().expect("the transfer failed")
    }

    fn is_untouched(&self) -> bool {
        self.same.iter().all(|same| *same)
    }

    /// What is not reported as dirty is untouched.
    fn assert_dirty_is_honest(&self) {
        let Ended::Failed { dirty, .. } = &self.report.ended else {
            panic!("{:?}", self.report)
        };
        for (page, same) in self.same.iter().enumerate() {
            let listed = dirty
                .iter()
                .any(|group| group.pages.contains(&(page as u32)));
            assert!(
                *same || listed,
                "page {page} changed and is not listed as dirty: {:?}",
                self.report
            );
        }
    }

    /// Every byte is what it is to be after a transfer.
    fn assert_is_right(&self, requested: &Requested) {
        let rows = synthetic::Seeded::new(&requested.agreed().producer, SEED);
        let wanted = check::expected(requested, 0, background(requested), &rows);
        let same = check::compare(requested.agreed(), 0, &self.pool, &wanted);
        assert_eq!(same, Ok(()));
    }
}

#[test]
fn an_undisturbed_transfer_commits_on_both_sides() {
    for requested in ways() {
        let (address, producer) = serve(&requested, Duration::from_secs(20));
        let pulled = pull(&requested, address, Duration::from_secs(20));
        assert!(pulled.report.is_committed(), "{:?}", pulled.report);
        pulled.assert_is_right(&requested);
        assert!(producer.join().unwrap().is_committed());
    }
}

/// Kinds of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Message,
    Chunk,
}

/// A bit of what a producer sends.
#[derive(Clone, Copy, Debug)]
struct Flip {
    /// In frames of this kind.
    kind: Kind,
    /// The byte, counted over these frames with their headers.
    byte: u64,
    bit: u8,
}

/// What has passed a proxy.
#[derive(Debug, Default)]
struct Passed {
    messages: u64,
    chunks: u64,
    flipped: bool,
}

/// Passes on what comes by any number of connections, and changes one bit of what the producer says.
fn corrupting_proxy(producer: SocketAddr, flip: Option<Flip>) -> (SocketAddr, Arc<Mutex<Passed>>) {
    let passed = Arc::new(Mutex::new(Passed::default()));
    let all = Arc::clone(&passed);
    let address = impostor::accept(move |consumer| {
        let Ok(producer) = TcpStream::connect(producer) else {
            return;
        };
        let (mut up, mut to) = (consumer.try_clone().unwrap(), producer.try_clone().unwrap());
        let upward = thread::spawn(move || {
            let _ = std::io::copy(&mut up, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
        let (mut from, mut down) = (producer, consumer);
        while let Some((kind, mut frame)) = read_frame(&mut from) {
            {
                let mut passed = all.lock().unwrap();
                let seen = match kind {
                    Kind::Message => &mut passed.messages,
                    Kind::Chunk => &mut passed.chunks,
                };
                let first = *seen;
                *seen += frame.len() as u64;
                if let Some(flip) = flip.filter(|flip| flip.kind == kind)
                    && (first..*seen).contains(&flip.byte)
                {
                    frame[(flip.byte - first) as usize] ^= 1 << flip.bit;
                    passed.flipped = true;
                }
            }
            if down.write_all(&frame).is_err() {
                break;
            }
        }
        let _ = down.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
        let _ = upward.join();
    });
    (address, passed)
}

fn read_frame(from: &mut TcpStream) -> Option<(Kind, Vec<u8>)> {
    let mut frame = vec![0; HEADER_BYTES];
    from.read_exact(&mut frame).ok()?;
    let header = Header::decode(frame[..].try_into().unwrap()).unwrap();
    let kind = match header {
        Header::Message { .. } => Kind::Message,
        Header::Batch(_) => Kind::Chunk,
        other => panic!("a producer sends {other:?}"),
    };
    frame.resize(HEADER_BYTES + header.payload_bytes() as usize, 0);
    from.read_exact(&mut frame[HEADER_BYTES..]).ok()?;
    Some((kind, frame))
}

#[test]
fn one_flipped_bit_anywhere_in_what_a_producer_sends_is_never_committed() {
    let seed = std::env::var("MOAI_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(2026_u64);
    println!("seed {seed}");
    let limit = Duration::from_secs(2);
    for (way, requested) in ways().into_iter().enumerate() {
        let (address, producer) = serve(&requested, limit);
        let (through, passed) = corrupting_proxy(address, None);
        assert!(pull(&requested, through, limit).report.is_committed());
        assert!(producer.join().unwrap().is_committed());
        let (messages, chunks) = {
            let passed = passed.lock().unwrap();
            (passed.messages, passed.chunks)
        };
        let mut by_digest = 0;
        for round in 0..12 {
            let draw = mix(seed.wrapping_add(way as u64 * 1000 + round));
            let (kind, bytes) = match round < 6 {
                true => (Kind::Chunk, chunks),
                false => (Kind::Message, messages),
            };
            let flip = Flip {
                kind,
                byte: draw % bytes,
                bit: (draw >> 61) as u8,
            };
            let told = format!("way {way}, {flip:?}, seed {seed}");
            let (address, producer) = serve(&requested, limit);
            let (through, passed) = corrupting_proxy(address, Some(flip));
            let pulled = pull(&requested, through, limit);
            let served = producer.join().unwrap();
            if passed.lock().unwrap().flipped && kind == Kind::Chunk {
                assert!(!pulled.report.is_committed(), "{told}: committed");
                assert!(
                    !served.is_committed(),
                    "{told}: the producer believes it is committed"
                );
            }
            if pulled.report.is_committed() {
                // Messages have bits that do not matter, and a link that was lost early is made again.
                pulled.assert_is_right(&requested);
            } else {
                pulled.assert_dirty_is_honest();
                by_digest += u64::from(matches!(pulled.failure(), Failure::Digest { .. }));
            }
        }
        assert!(
            by_digest >= 3,
            "way {way}: only {by_digest} flips were left to the digest, seed {seed}"
        );
    }
}

/// Chunks and bytes of rank 0's part.
fn owed(requested: &Requested) -> (u64, u64) {
    let chunks = requested.chunks(&requested.agreed().agreement.pairs[0]);
    (chunks.len() as u64, chunks.wire_bytes())
}

const LIMIT: Duration = Duration::from_secs(1);

#[test]
fn impostors_that_do_not_agree_are_waited_for_until_the_deadline() {
    let requested = &ways()[0];
    let first = first_bytes(requested);
    let garbage = |mut stream: TcpStream| {
        let _ = stream.write_all(&[0xA5; 5000]);
        hold(stream);
    };
    let hello = |mut stream: TcpStream| {
        impostor::frame(&mut stream, &[1; 80]);
        hold(stream);
    };
    // Payload that nobody asked for, before anybody said who he is, and before both have agreed.
    let payload = move |mut stream: TcpStream| {
        impostor::batch(
            &mut stream,
            batch_of(1, 0, 0),
            first,
            &vec![1; first as usize],
        );
        hold(stream);
    };
    let impostors = [
        ("hold", impostor::accept(hold), ""),
        ("drop", impostor::accept(drop), "the connection"),
        ("garbage", impostor::accept(garbage), "broke the protocol"),
        ("a bad Hello", impostor::accept(hello), "Hello"),
        (
            "payload",
            impostor::accept(payload),
            "payload on a link that is not ready",
        ),
        (
            "early payload",
            impostor::eager(requested, first),
            "payload on a link that is not ready",
        ),
    ];
    for (name, address, trouble) in impostors {
        let pulled = pull(requested, address, LIMIT);
        assert!(
            matches!(
                pulled.failure(),
                Failure::Deadline { missing } if missing.starts_with("a link to rank 0") && missing.contains(trouble)
            ),
            "{name}: {:?}",
            pulled.report
        );
        assert!(pulled.is_untouched(), "{name}");
    }
}

fn first_bytes(requested: &Requested) -> u32 {
    let chunks = requested.chunks(&requested.agreed().agreement.pairs[0]);
    chunks.get(0).unwrap().bytes
}

/// What became of a pull from who behaves until it is asked for its part.
fn against(requested: &Arc<Requested>, act: impl Fn(Asked) + Send + Sync + 'static) -> Pulled {
    pull(requested, impostor::asked(requested, act), LIMIT)
}

#[test]
fn who_is_silent_or_gone_or_talks_rubbish_is_called_so() {
    let requested = &ways()[0];
    let pulled = against(requested, |asked| hold(asked.stream));
    assert!(
        matches!(pulled.failure(), Failure::Deadline { missing } if missing == "an answer of rank 0"),
        "{:?}",
        pulled.report
    );
    assert!(pulled.is_untouched());

    let pulled = against(requested, drop);
    assert!(
        matches!(pulled.failure(), Failure::Lost { rank: 0, .. }),
        "{:?}",
        pulled.report
    );
    assert!(pulled.is_untouched());

    let pulled = against(requested, |mut asked| {
        let _ = asked.stream.write_all(&[0xA5; 5000]);
        hold(asked.stream);
    });
    assert!(
        matches!(pulled.failure(), Failure::Protocol { what, .. } if what.contains("broke the protocol")),
        "{:?}",
        pulled.report
    );

    let pulled = against(requested, |mut asked| {
        impostor::frame(&mut asked.stream, &[0xA5; 50]);
        hold(asked.stream);
    });
    assert!(
        matches!(pulled.failure(), Failure::Protocol { what, .. } if what.contains("kind 165")),
        "{:?}",
        pulled.report
    );
}

#[test]
fn who_refuses_is_quoted() {
    let requested = &ways()[0];
    let (chunks, bytes) = owed(requested);
    let first = first_bytes(requested);
    let refuse = |discards: bool| {
        move |mut asked: Asked| {
            let (transfer, part) = (asked.pull.transfer, asked.pull.part);
            let (reason, why) = (Reason::Other, "not today".to_owned());
            if discards {
                asked.accept(chunks, bytes);
                asked.chunk(0, first, &vec![1; first as usize]);
                asked.say(&Message::Discard {
                    transfer,
                    part,
                    reason,
                    why,
                });
            } else {
                asked.say(&Message::Refuse {
                    transfer,
                    part,
                    reason,
                    why,
                });
            }
            hold(asked.stream);
        }
    };
    for discards in [false, true] {
        let pulled = against(requested, refuse(discards));
        assert!(
            matches!(pulled.failure(), Failure::Refused { why, .. } if why.starts_with("not today")),
            "{:?}",
            pulled.report
        );
        pulled.assert_dirty_is_honest();
        assert_eq!(pulled.is_untouched(), !discards);
    }
}

/// Misbehaves towards whoever asked, knowing the chunks and bytes of the plan.
type Misbehave = fn(&mut Asked, (u64, u64));

#[test]
fn who_boasts_or_talks_out_of_turn_breaks_the_protocol() {
    let requested = &ways()[0];
    let (chunks, bytes) = owed(requested);
    let cases: [(&str, Misbehave, &str); 4] = [
        (
            "wrong totals",
            |asked, _| asked.accept(u64::MAX, u64::MAX),
            "18446744073709551615",
        ),
        (
            "Accept twice",
            |asked, (chunks, bytes)| {
                asked.accept(chunks, bytes);
                asked.accept(chunks, bytes);
            },
            "Accept while Receiving",
        ),
        (
            "Sums before Accept",
            |asked, (chunks, _)| asked.sums(vec![0; chunks as usize]),
            "Sums while Asked",
        ),
        (
            "another transfer",
            |asked, (chunks, bytes)| {
                asked.pull.transfer += 1;
                asked.accept(chunks, bytes);
            },
            "which was not pulled here",
        ),
    ];
    for (name, act, said) in cases {
        let pulled = against(requested, move |mut asked| {
            act(&mut asked, (chunks, bytes));
            hold(asked.stream);
        });
        assert!(
            matches!(pulled.failure(), Failure::Protocol { what, .. } if what.contains(said)),
            "{name}: {:?}",
            pulled.report
        );
        assert!(pulled.is_untouched(), "{name}");
    }
}

#[test]
fn a_chunk_comes_once_and_as_it_was_planned() {
    let requested = &ways()[0];
    let (chunks, bytes) = owed(requested);
    let first = first_bytes(requested);
    // Chunks may come in any order, but once.
    let pulled = against(requested, move |mut asked| {
        asked.accept(chunks, bytes);
        for _ in 0..2 {
            asked.chunk(1, first, &vec![1; first as usize]);
        }
        hold(asked.stream);
    });
    assert!(
        matches!(pulled.failure(), Failure::Protocol { what, .. } if what.contains("expected it once")),
        "{:?}",
        pulled.report
    );
    pulled.assert_dirty_is_honest();

    let last = (1 << 20) - 1;
    for (chunk, bytes_of_it) in [(8, first), (last, first), (0, first - 1), (0, 1)] {
        let pulled = against(requested, move |mut asked| {
            asked.accept(chunks, bytes);
            asked.chunk(chunk, bytes_of_it, &vec![1; bytes_of_it as usize]);
            hold(asked.stream);
        });
        assert!(
            matches!(pulled.failure(), Failure::Protocol { .. }),
            "{:?}",
            pulled.report
        );
        assert!(
            pulled.is_untouched(),
            "a chunk landed that is not of the plan"
        );
    }

    // Of a part and of transfers that there are not.
    for id in [batch_of(1, 1, 0), batch_of(2, 0, 0), u64::MAX] {
        let pulled = against(requested, move |mut asked| {
            asked.accept(chunks, bytes);
            impostor::batch(&mut asked.stream, id, first, &vec![1; first as usize]);
            hold(asked.stream);
        });
        assert!(
            matches!(pulled.failure(), Failure::Protocol { what, .. } if what.contains("which nothing was pulled for")),
            "{id:x}: {:?}",
            pulled.report
        );
        assert!(pulled.is_untouched());
    }
}

#[test]
fn half_a_chunk_is_not_enough() {
    let requested = &ways()[0];
    let (chunks, bytes) = owed(requested);
    let first = first_bytes(requested);
    for dies in [false, true] {
        let pulled = against(requested, move |mut asked| {
            asked.accept(chunks, bytes);
            asked.chunk(0, first, &vec![1; first as usize / 2]);
            if !dies {
                hold(asked.stream);
            }
        });
        match (pulled.failure(), dies) {
            (Failure::Deadline { .. }, false) | (Failure::Lost { .. }, true) => {}
            other => panic!("{other:?}"),
        }
        pulled.assert_dirty_is_honest();
        assert!(!pulled.is_untouched(), "half a chunk should have landed");
    }
}

#[test]
fn digests_without_chunks_are_not_enough_and_chunks_with_other_digests_are_too_many() {
    let requested = &ways()[0];
    let (chunks, bytes) = owed(requested);
    let pulled = against(requested, move |mut asked| {
        asked.accept(chunks, bytes);
        asked.sums(vec![0; chunks as usize]);
        hold(asked.stream);
    });
    assert!(
        matches!(pulled.failure(), Failure::Deadline { missing } if missing.contains("8 of 8 chunks")),
        "{:?}",
        pulled.report
    );
    assert!(pulled.is_untouched());

    let plan = Arc::clone(requested);
    let pulled = against(requested, move |mut asked| {
        asked.accept(chunks, bytes);
        let all = plan.chunks(&plan.agreed().agreement.pairs[0]);
        for (index, chunk) in (0..).zip(all.iter()) {
            asked.chunk(index, chunk.bytes, &vec![1; chunk.bytes as usize]);
        }
        asked.sums(vec![0; chunks as usize]);
        hold(asked.stream);
    });
    assert!(
        matches!(
            pulled.failure(),
            Failure::Digest {
                rank: 0,
                there: 0,
                ..
            }
        ),
        "{:?}",
        pulled.report
    );
    pulled.assert_dirty_is_honest();
}

#[test]
fn nobody_listening_is_a_lost_peer_as_soon_as_a_silent_one_would_be() {
    let requested = &ways()[0];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let pulled = pull(requested, address, Duration::from_secs(20));
    assert!(
        matches!(pulled.failure(), Failure::Lost { rank: 0, why } if why.contains("refused")),
        "{:?}",
        pulled.report
    );
    assert!(pulled.is_untouched());
    // Links are lost after 3 s; the pause between two dials comes on top.
    let elapsed = Duration::from_nanos(pulled.report.elapsed_ns);
    assert!(
        (Duration::from_secs(3)..Duration::from_secs(8)).contains(&elapsed),
        "{elapsed:?}"
    );
}

#[test]
fn a_consumer_with_another_plan_is_refused_with_the_reason() {
    let [one, other, _] = ways();
    let (address, producer) = serve(&one, Duration::from_secs(2));
    let pulled = pull(&other, address, Duration::from_secs(2));
    assert!(
        matches!(
            pulled.failure(),
            Failure::Refused { reason: Reason::Disagree, why, .. } if why.contains("do not mean the same request")
        ),
        "{:?}",
        pulled.report
    );
    assert!(pulled.is_untouched());
    assert!(matches!(
        producer.join().unwrap().failure(),
        Some(Failure::Deadline { .. })
    ));
}
