//! Puts and gets: what they move, what they leave alone, and how they end.

use std::time::{Duration, Instant};

use moai_transport::limits::MAX_OPERATIONS;
use moai_transport::{Error, PiecesError, Posted, Rights};

use crate::far::Place;
use crate::lists::{self, List};
use crate::node::HANG;
use crate::pair::{ALL_RIGHTS, Pair, Remote, Setting};
use crate::random::Random;
use crate::run::{Absent, Outcome};

/// Regions of both sides and what is in them.
struct Field {
    local: Vec<u32>,
    remote: Vec<Remote>,
    ours: Vec<Vec<u8>>,
    theirs: Vec<Vec<u8>>,
}

impl Field {
    fn new(pair: &mut Pair, regions: usize, len: u64) -> Result<Self, Absent> {
        let mut field = Self {
            local: Vec::new(),
            remote: Vec::new(),
            ours: Vec::new(),
            theirs: Vec::new(),
        };
        for _ in 0..regions {
            let bytes = pair.random.bytes(len as usize);
            field.local.push(pair.local(&bytes)?);
            field.ours.push(bytes);
            let seed = pair.random.next();
            field.remote.push(pair.remote(len, seed, ALL_RIGHTS)?);
            field.theirs.push(Random(seed).bytes(len as usize));
        }
        // Lists name regions by number; here all numbers are places in the field.
        assert!(
            field
                .local
                .iter()
                .zip(0..)
                .all(|(&number, at)| number == at)
        );
        assert!(
            field
                .remote
                .iter()
                .zip(0..)
                .all(|(remote, at)| remote.number == at)
        );
        Ok(field)
    }

    fn numbers(&self) -> Vec<(u32, u64)> {
        (0..)
            .zip(&self.ours)
            .map(|(at, bytes)| (at, bytes.len() as u64))
            .collect()
    }

    /// Moves `total` bytes between lists drawn for either side, here and there.
    fn transfer(&mut self, pair: &mut Pair, put: bool, total: u64) -> Result<(), Absent> {
        let ours = lists::draw(&mut pair.random, &self.numbers(), total);
        let theirs = lists::draw(&mut pair.random, &self.numbers(), total);
        self.expect(put, &ours, &theirs);
        let outcome = pair.near.done(put, pair.to, &ours, &theirs);
        assert_eq!(outcome, Ok(()), "put {put}, {total} bytes");
        self.compare(
            pair,
            &format!("put {put}, {total} bytes, {ours:?} {theirs:?}"),
        )
    }

    fn expect(&mut self, put: bool, ours: &[List], theirs: &[List]) {
        if put {
            lists::carry_out((&self.ours, ours), (&mut self.theirs, theirs));
        } else {
            lists::carry_out((&self.theirs, theirs), (&mut self.ours, ours));
        }
    }

    /// Every byte of both sides is what it should be, in pieces and beside them.
    fn compare(&self, pair: &mut Pair, what: &str) -> Result<(), Absent> {
        let what = &what[..what.len().min(1000)];
        for (&region, expected) in self.local.iter().zip(&self.ours) {
            same(&format!("ours, {what}"), &pair.near.bytes(region), expected);
        }
        for (remote, expected) in self.remote.iter().zip(&self.theirs) {
            same(
                &format!("theirs, {what}"),
                &pair.remote_bytes(remote)?,
                expected,
            );
        }
        Ok(())
    }
}

pub(crate) fn same(what: &str, seen: &[u8], expected: &[u8]) {
    assert_eq!(seen.len(), expected.len());
    let differs = |&at: &usize| seen[at] != expected[at];
    if let Some(at) = (0..seen.len()).find(differs) {
        let count = (at..seen.len()).filter(differs).count();
        panic!("{count} bytes differ, the first at {at}: {what}");
    }
}

/// Lists drawn at random and cut differently on both sides, against byte by byte.
pub(crate) fn move_what_was_asked_and_nothing_else(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    let mut field = Field::new(&mut pair, 3, 128 << 10)?;
    let rounds = if setting.place == Place::Thread {
        12
    } else {
        4
    };
    for round in 0..rounds {
        let total = pair.random.size(80_000);
        field.transfer(&mut pair, round % 2 == 0, total)?;
    }
    let stats = pair.near.interface.stats();
    assert_eq!((stats.puts, stats.gets), (rounds / 2, rounds / 2));
    assert_eq!(stats.faults, 0);
    assert!(pair.near.in_flight.is_empty());
    Ok(())
}

/// Twenty thousand pieces, of a byte and of a few; also more regions than one list names at a time.
pub(crate) fn huge_lists_and_many_regions(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    let mut field = Field::new(&mut pair, 40, 16 << 10)?;
    for put in [true, false] {
        // A piece of one byte at every third place; the other side in pieces of seven.
        let ours: Vec<_> = (0..20)
            .map(|region| List {
                region,
                bytes: 1,
                count: 1,
                stride: 0,
                offsets: (0..1050).map(|at| at * 3).collect(),
            })
            .collect();
        let theirs: Vec<_> = (0..40)
            .map(|region| List {
                region: 39 - region,
                bytes: 7,
                count: 75,
                stride: 8,
                offsets: vec![u64::from(region)],
            })
            .collect();
        field.expect(put, &ours, &theirs);
        assert_eq!(pair.near.done(put, pair.to, &ours, &theirs), Ok(()));
        field.compare(&mut pair, "pieces of one byte")?;
        // Alternating regions and lengths: nothing to group.
        let ragged: Vec<_> = (0..4000_u32)
            .map(|nth| List::piece(nth % 40, u64::from(nth / 40 * 100), 1 + nth % 2))
            .collect();
        let whole: Vec<_> = (0..40).map(|region| List::piece(region, 5, 150)).collect();
        field.expect(put, &ragged, &whole);
        assert_eq!(pair.near.done(put, pair.to, &ragged, &whole), Ok(()));
        field.compare(&mut pair, "a region for every piece")?;
    }
    Ok(())
}

/// A piece longer than any frame, and operations of many frames.
pub(crate) fn pieces_longer_than_a_frame(setting: &Setting) -> Outcome {
    const LEN: u64 = 10 << 20;
    let mut pair = Pair::new(setting)?;
    let mut field = Field::new(&mut pair, 1, LEN)?;
    for put in [true, false] {
        let ours = [List::piece(0, 17, 9 << 20)];
        let theirs = [List {
            region: 0,
            bytes: 3 << 20,
            count: 3,
            stride: (3 << 20) + 1000,
            offsets: vec![4096],
        }];
        field.expect(put, &ours, &theirs);
        assert_eq!(pair.near.done(put, pair.to, &ours, &theirs), Ok(()));
        field.compare(&mut pair, "9 MiB")?;
    }
    let stats = pair.near.interface.stats();
    assert_eq!((stats.put_bytes, stats.got_bytes), (9 << 20, 9 << 20));
    Ok(())
}

/// More operations than there is room for: `Busy` at the limit, room after completions, one outcome each.
pub(crate) fn many_in_flight(setting: &Setting) -> Outcome {
    const COUNT: u64 = 3000;
    let mut pair = Pair::new(setting)?;
    let mut field = Field::new(&mut pair, 1, COUNT * 32)?;
    let mut busy = 0;
    for put in [true, false] {
        let mut posted = 0;
        let mut in_flight = 0;
        let start = Instant::now();
        while posted < COUNT {
            // A third of them come back elsewhere than they went.
            let ours = [List::piece(0, posted * 32, 24)];
            let theirs = [List::piece(0, (COUNT - 1 - posted) * 32 + 3, 24)];
            match pair.near.transfer(put, pair.to, &ours, &theirs).unwrap() {
                Posted::Busy => {
                    busy += 1;
                    assert!(start.elapsed() < HANG, "busy for ever");
                    let ended = pair.near.ended.len();
                    if busy % 2 == 0 {
                        // A completion, once taken, makes room.
                        pair.near.until("room", |near| near.ended.len() > ended);
                    } else {
                        pair.near.poll(Duration::from_millis(10));
                    }
                    continue;
                }
                Posted::InFlight(_) => in_flight += 1,
                Posted::Done => {}
            }
            field.expect(put, &ours, &theirs);
            posted += 1;
            // None is taken between: those not taken count.
            assert!(pair.near.in_flight.len() <= MAX_OPERATIONS);
        }
        pair.near
            .until("all to end", |near| near.in_flight.is_empty());
        assert_eq!(pair.near.ended.len(), in_flight);
        for ended in std::mem::take(&mut pair.near.ended) {
            assert_eq!(ended.outcome, Ok(()));
        }
        field.compare(&mut pair, "many in flight")?;
    }
    let stats = pair.near.interface.stats();
    assert_eq!((stats.puts, stats.gets), (COUNT, COUNT));
    assert_eq!((stats.put_bytes, stats.got_bytes), (COUNT * 24, COUNT * 24));
    assert_eq!(stats.busy, busy);
    Ok(())
}

/// A flush ends after what was posted before it, not before.
pub(crate) fn flush_comes_after(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    let mut field = Field::new(&mut pair, 2, 256 << 10)?;
    for round in 0..20 {
        for nth in 0..10 {
            let ours = [List::piece(0, nth * 20_000, 20_000)];
            let theirs = [List::piece(round % 2, (9 - nth) * 20_000, 20_000)];
            field.expect(true, &ours, &theirs);
            let posted = pair.near.transfer(true, pair.to, &ours, &theirs).unwrap();
            assert_ne!(posted, Posted::Busy);
        }
        let before = pair.near.in_flight.clone();
        match pair.near.flush(pair.to).unwrap() {
            Posted::Done => {
                pair.near.take_completions();
                assert!(
                    pair.near.in_flight.is_empty(),
                    "flushed, and still in flight"
                );
            }
            Posted::Busy => panic!("busy with {} in flight", before.len()),
            Posted::InFlight(token) => {
                pair.near
                    .until("flush", |near| !near.in_flight.contains_key(&token.0));
                let ended: Vec<_> = pair.near.ended.iter().map(|end| end.token).collect();
                let at = ended.iter().position(|&end| end == token).unwrap();
                let others = ended[..at].iter().filter(|end| before.contains_key(&end.0));
                assert_eq!(
                    others.count(),
                    before.len(),
                    "the flush overtook an operation"
                );
            }
        }
        pair.near.ended.clear();
        let bytes = pair.remote_bytes(&field.remote[(round % 2) as usize])?;
        same("after a flush", &bytes, &field.theirs[(round % 2) as usize]);
    }
    let posted = pair.near.flush(pair.to).unwrap();
    assert_eq!(pair.near.outcome(posted), Ok(()), "a flush of nothing");
    Ok(())
}

/// Arguments that cannot be: a typed error, and nothing happens.
pub(crate) fn wrong_arguments_do_nothing(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    let field = Field::new(&mut pair, 1, 4096)?;
    let whole = |bytes| List::piece(0, 0, bytes);
    let list = |bytes, count, stride, offset| List {
        region: 0,
        bytes,
        count,
        stride,
        offsets: vec![offset],
    };
    type Expected = fn(&Error) -> bool;
    let cases: [(&str, List, List, Expected); 12] = [
        ("unequal", whole(8), whole(9), |e| {
            matches!(
                e,
                Error::Unequal {
                    local: 8,
                    remote: 9
                }
            )
        }),
        ("not lent", List::piece(7, 0, 8), whole(8), |e| {
            matches!(e, Error::NotLent { region: 7 })
        }),
        ("not imported", whole(8), List::piece(9, 0, 8), |e| {
            matches!(e, Error::NotImported { region: 9 })
        }),
        ("local past the end", list(8, 1, 0, 4089), whole(8), |e| {
            matches!(
                e,
                Error::Pieces {
                    side: "local",
                    cause: PiecesError::OutOfBounds { .. }
                }
            )
        }),
        (
            "local far past the end",
            list(8, 1, 0, u64::MAX),
            whole(8),
            |e| matches!(e, Error::Pieces { side: "local", .. }),
        ),
        ("local overlapping", list(8, 2, 7, 0), whole(16), |e| {
            matches!(
                e,
                Error::Pieces {
                    side: "local",
                    cause: PiecesError::Overlap { .. }
                }
            )
        }),
        ("local of nothing", list(0, 2, 7, 0), whole(16), |e| {
            matches!(
                e,
                Error::Pieces {
                    side: "local",
                    cause: PiecesError::Empty { .. }
                }
            )
        }),
        ("local of no count", list(8, 0, 8, 0), whole(16), |e| {
            matches!(
                e,
                Error::Pieces {
                    side: "local",
                    cause: PiecesError::Empty { .. }
                }
            )
        }),
        (
            "local uncountable",
            list(8, u32::MAX, u64::MAX / 2, 0),
            whole(16),
            |e| {
                matches!(
                    e,
                    Error::Pieces {
                        side: "local",
                        cause: PiecesError::TooLarge { .. }
                    }
                )
            },
        ),
        ("remote overlapping", whole(16), list(8, 2, 7, 0), |e| {
            matches!(
                e,
                Error::Pieces {
                    side: "remote",
                    cause: PiecesError::Overlap { .. }
                }
            )
        }),
        ("remote of nothing", whole(16), list(0, 2, 7, 0), |e| {
            matches!(
                e,
                Error::Pieces {
                    side: "remote",
                    cause: PiecesError::Empty { .. }
                }
            )
        }),
        ("remote past the end", whole(8), list(8, 1, 0, 4089), |e| {
            matches!(
                e,
                Error::Pieces { side: "remote", .. }
                    | Error::Refused(moai_transport::Refusal::Bounds)
            )
        }),
    ];
    for put in [true, false] {
        for (what, local, remote, expected) in &cases {
            let (local, remote) = (std::slice::from_ref(local), std::slice::from_ref(remote));
            let refused = pair.near.transfer(put, pair.to, local, remote);
            match refused {
                Err(error) if expected(&error) => {}
                other => panic!("{what}, put {put}: {other:?}"),
            }
        }
        // No bytes at all are no operation that could fail.
        let posted = pair.near.transfer(put, pair.to, &[], &[]);
        if let Ok(posted) = posted {
            assert_eq!(pair.near.outcome(posted), Ok(()));
        }
    }
    let posted = pair.near.flush(pair.to).unwrap();
    assert_eq!(pair.near.outcome(posted), Ok(()));
    assert!(pair.near.in_flight.is_empty() && pair.near.ended.is_empty());
    field.compare(&mut pair, "after wrong arguments")
}

/// What a key does not allow is refused, here or there, and nothing happens.
pub(crate) fn rights_are_kept(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    let local = pair.local(&[7; 64])?;
    for (rights, may_put, may_get) in [
        (Rights::NONE, false, false),
        (Rights::READ, false, true),
        (Rights::WRITE, true, false),
    ] {
        let remote = pair.remote(64, 5, rights)?;
        for (put, may) in [(true, may_put), (false, may_get)] {
            let before = pair.remote_bytes(&remote)?;
            let ours = pair.near.bytes(local);
            let piece = [List::piece(local, 0, 64)];
            let outcome = crate::keys::outcome(&mut pair, put, &piece, &[remote.piece(0, 64)]);
            if may {
                assert_eq!(outcome, Ok(()));
            } else {
                assert_eq!(outcome, Err(moai_transport::Refusal::Rights), "{rights:?}");
                same(
                    "memory without the right",
                    &pair.remote_bytes(&remote)?,
                    &before,
                );
                same("ours", &pair.near.bytes(local), &ours);
            }
        }
    }
    Ok(())
}
