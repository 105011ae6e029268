//! Handles that name something else, or nothing any more, and pages that are not what they were: what an operator fears is an
//! answer from the wrong pages. Nothing of this is ever committed, and every failure says what it was.

use std::{
    thread,
    time::{Duration, Instant},
};

use moai_collectives::{
    digest::mix,
    execute::Pool,
    protocol::{
        handle::{EngineKey, Handle, HandleFields},
        node::{Failure, Reason, TransferId},
    },
    transfer::{Ended, Event, Offer, Pull, Report},
};
use moai_fabric::{Fabric, config::Config};
use moai_tests::live::{self, Live, Shape, fabric, same, wanted};

const LIMIT: Duration = Duration::from_secs(10);
const LEASE: Duration = Duration::from_secs(20);
const TOKENS: u32 = 400;

/// Each over sockets, and over shared memory with pages that are mapped.
const WAYS: [&str; 2] = ["tcp", "shm"];

fn prefill(fabric: &Fabric, epoch: u64) -> Live {
    Live::start(fabric, "prefill", &Shape::PREFILL, epoch, 1)
}

fn decode(fabric: &Fabric) -> Live {
    Live::start(fabric, "decode", &Shape::DECODE, 12, 2)
}

fn pair(way: &str) -> (Live, Live) {
    let fabric = fabric(way);
    let (prefill, decode) = (prefill(&fabric, 11), decode(&fabric));
    decode.know(&prefill);
    (prefill, decode)
}

fn offered(prefill: &Live, number: u64) -> Handle {
    let request = prefill.shape.request(TOKENS, 0);
    prefill
        .engine
        .offer(Offer::new(number, request, LEASE))
        .unwrap()
}

fn begun(decode: &Live, handle: Handle, limit: Duration) -> Result<TransferId, Failure> {
    let request = decode.shape.request(handle.fields().tokens, 0);
    decode
        .engine
        .pull(Pull::new(handle, request, limit))
        .unwrap()
}

fn pulled(decode: &Live, handle: Handle) -> Report {
    let transfer = begun(decode, handle, LIMIT).unwrap();
    let (report, fenced) = decode.ended(transfer, LIMIT * 2);
    assert!(fenced, "{report:?}");
    report
}

/// The engine's key, as [`live::config`] makes it.
fn key(live: &Live) -> EngineKey {
    live::config(&live.name, 1, 0).key
}

/// A handle that says something else, under the engine's own seal.
fn resealed(handle: &Handle, key: &EngineKey, change: impl FnOnce(&mut HandleFields)) -> Handle {
    let mut fields = handle.fields().clone();
    change(&mut fields);
    Handle::seal(fields, key).unwrap()
}

fn refused(report: &Report) -> (Reason, &str) {
    match report.failure() {
        Some(Failure::Refused { reason, why, .. }) => (*reason, why),
        other => panic!("{other:?}"),
    }
}

/// The transfer failed, and the consumer's memory is what it was.
fn untouched(decode: &Live, before: &[Pool], report: &Report) {
    assert!(matches!(report.ended, Ended::Failed { .. }), "{report:?}");
    assert_eq!(report.dirty(), []);
    assert!(same(&decode.copy(), before), "{report:?}");
}

/// The offer of an honest handle is still there, and moves as it should.
fn still_moves(prefill: &Live, decode: &Live, handle: Handle) {
    let requests = [prefill, decode].map(|live| live.shape.request(TOKENS, 0));
    let wanted = wanted(
        (prefill, &requests[0]),
        (decode, &requests[1]),
        decode.copy(),
    );
    let report = pulled(decode, handle);
    assert!(report.is_committed(), "{report:?}");
    assert!(same(&decode.copy(), &wanted));
}

#[test]
fn a_request_that_was_never_offered_is_unknown_after_a_while() {
    for way in WAYS {
        let (prefill, decode) = pair(way);
        let handle = offered(&prefill, 1);
        let before = decode.copy();
        let unknown = resealed(&handle, &key(&prefill), |said| said.number = 99);
        let start = Instant::now();
        let report = pulled(&decode, unknown);
        assert_eq!(
            refused(&report),
            (Reason::UnknownOffer, "no offer 99 was made")
        );
        // Nodes of an engine do not offer at the same instant: it is waited for.
        let wait = Duration::from_nanos(live::config("prefill", 1, 0).offer_wait_ns);
        assert!((wait..wait * 3).contains(&start.elapsed()));
        untouched(&decode, &before, &report);
        still_moves(&prefill, &decode, handle);
    }
}

#[test]
fn an_offer_that_is_made_while_a_pull_waits_for_it_is_taken() {
    let (prefill, decode) = pair("tcp");
    let first = offered(&prefill, 1);
    let early = resealed(&first, &key(&prefill), |said| said.number = 2);
    let requests = [&prefill, &decode].map(|live| live.shape.request(TOKENS, 0));
    let wanted = wanted(
        (&prefill, &requests[0]),
        (&decode, &requests[1]),
        decode.copy(),
    );
    let transfer = begun(&decode, early, LIMIT).unwrap();
    thread::sleep(Duration::from_millis(300));
    offered(&prefill, 2);
    let (report, _) = decode.ended(transfer, LIMIT);
    assert!(report.is_committed(), "{report:?}");
    assert!(same(&decode.copy(), &wanted));
}

#[test]
fn a_handle_that_the_engine_did_not_seal_is_forged() {
    for way in WAYS {
        let (prefill, decode) = pair(way);
        let handle = offered(&prefill, 1);
        let before = decode.copy();
        let forged = resealed(&handle, &EngineKey::new([99; 32]), |_| {});
        let report = pulled(&decode, forged);
        assert_eq!(refused(&report).0, Reason::Forged);
        untouched(&decode, &before, &report);
        still_moves(&prefill, &decode, handle);
    }
}

#[test]
fn a_handle_with_any_bit_flipped_is_of_no_use() {
    let (prefill, decode) = pair("tcp");
    let handle = offered(&prefill, 1);
    decode.linked("prefill");
    let before = decode.copy();
    let mut transfers = Vec::new();
    for at in 0..handle.as_bytes().len() {
        for bit in 0..8 {
            let mut bytes = handle.as_bytes().to_vec();
            bytes[at] ^= 1 << bit;
            let Ok(flipped) = Handle::from_bytes(&bytes) else {
                continue;
            };
            let tokens = flipped.fields().tokens;
            if tokens == 0 || tokens > decode.shape.pages * decode.shape.slots {
                continue;
            }
            // Of another life of the engine: that life is waited for.
            let limit = Duration::from_millis(1500);
            match begun(&decode, flipped, limit) {
                Ok(transfer) => transfers.push((at, bit, transfer)),
                Err(failure) => assert!(
                    matches!(failure, Failure::Refused { .. } | Failure::NoPath { .. }),
                    "byte {at} bit {bit}: {failure}"
                ),
            }
        }
    }
    assert!(transfers.len() > 400, "{}", transfers.len());
    for (at, bit, transfer) in transfers {
        let (report, _) = decode.ended(transfer, LIMIT);
        assert!(
            matches!(
                report.failure(),
                Some(Failure::Refused { .. } | Failure::Restarted { .. })
            ),
            "byte {at} bit {bit}: {report:?}"
        );
    }
    assert!(same(&decode.copy(), &before));
    still_moves(&prefill, &decode, handle);
}

#[test]
fn a_handle_of_another_engine_is_not_served() {
    for way in WAYS {
        let fabric = fabric(way);
        let (prefill, decode) = (prefill(&fabric, 11), decode(&fabric));
        let other = Live::start(&fabric, "other", &Shape::PREFILL, 21, 5);
        decode.know(&prefill);
        let before = decode.copy();
        // The directory takes one engine for the other: both have an offer of that number, of the same pages.
        let (own, others) = (offered(&prefill, 1), offered(&other, 1));
        decode.know_at("other", other.shape.tp, prefill.engine.addresses());
        let report = pulled(&decode, others.clone());
        let (reason, why) = refused(&report);
        assert_eq!(reason, Reason::Misdirected);
        assert!(why.contains("this is node 0 of prefill"), "{why}");
        untouched(&decode, &before, &report);
        // A name is put into a handle that is another engine's.
        let renamed = resealed(&others, &key(&other), |said| {
            said.engine = "prefill".into();
            said.epoch = 11;
        });
        let report = pulled(&decode, renamed);
        assert_eq!(refused(&report).0, Reason::Forged);
        untouched(&decode, &before, &report);
        // Of an engine that nobody knows.
        let unknown = resealed(&others, &key(&other), |said| said.engine = "third".into());
        let failure = begun(&decode, unknown, LIMIT).unwrap_err();
        assert!(matches!(failure, Failure::NoPath { .. }), "{failure}");
        still_moves(&prefill, &decode, own);
    }
}

#[test]
fn an_offer_for_another_consumer_is_not_pulled() {
    let (prefill, decode) = pair("tcp");
    let mut offer = Offer::new(1, prefill.shape.request(TOKENS, 0), LEASE);
    offer.bound = Some("elsewhere".into());
    let bound = prefill.engine.offer(offer).unwrap();
    let before = decode.copy();
    let failure = begun(&decode, bound.clone(), LIMIT).unwrap_err();
    assert_eq!(failure.reason(), Reason::Elsewhere);
    // Whoever takes the name out breaks the seal.
    let freed = resealed(&bound, &EngineKey::new([99; 32]), |said| said.bound = None);
    let report = pulled(&decode, freed);
    assert_eq!(refused(&report).0, Reason::Forged);
    untouched(&decode, &before, &report);
}

#[test]
fn an_offer_is_pulled_once() {
    for way in WAYS {
        let (prefill, decode) = pair(way);
        let handle = offered(&prefill, 1);
        still_moves(&prefill, &decode, handle.clone());
        let before = decode.copy();
        let report = pulled(&decode, handle.clone());
        assert_eq!(refused(&report).0, Reason::Consumed);
        untouched(&decode, &before, &report);
        // Nor at the same time by two.
        let handle = offered(&prefill, 2);
        let before = decode.copy();
        let requests = [&prefill, &decode].map(|live| live.shape.request(TOKENS, 0));
        let wanted = wanted((&prefill, &requests[0]), (&decode, &requests[1]), before);
        let both = [(); 2].map(|()| begun(&decode, handle.clone(), LIMIT).unwrap());
        let reports = both.map(|transfer| decode.ended(transfer, LIMIT).0);
        let committed = reports.iter().filter(|report| report.is_committed());
        assert_eq!(committed.count(), 1, "{reports:?}");
        let other = reports
            .iter()
            .find(|report| !report.is_committed())
            .unwrap();
        let reason = refused(other).0;
        assert!(
            matches!(reason, Reason::Busy | Reason::Consumed),
            "{other:?}"
        );
        assert!(same(&decode.copy(), &wanted));
    }
}

#[test]
fn a_lease_that_has_run_out_is_over_for_good() {
    for way in WAYS {
        let (prefill, decode) = pair(way);
        let request = prefill.shape.request(TOKENS, 0);
        let offer = Offer::new(1, request, Duration::from_millis(50));
        let handle = prefill.engine.offer(offer).unwrap();
        prefill.wait(LIMIT, |event| {
            matches!(event, Event::Released { offer: 1, .. }).then_some(())
        });
        let before = decode.copy();
        // A later expiry helps nobody, even under the seal: the lease counts.
        let longer = resealed(&handle, &key(&prefill), |said| {
            said.expires_unix_ms += 3_600_000;
        });
        for handle in [handle.clone(), longer] {
            let report = pulled(&decode, handle);
            assert_eq!(refused(&report).0, Reason::Expired);
            untouched(&decode, &before, &report);
        }
        // Long past: not even asked.
        let old = resealed(&handle, &key(&prefill), |said| said.expires_unix_ms = 1);
        let failure = begun(&decode, old, LIMIT).unwrap_err();
        assert_eq!(failure.reason(), Reason::Expired);
    }
}

#[test]
fn a_handle_of_an_earlier_life_is_called_so_also_by_who_never_met_that_life() {
    for way in WAYS {
        let fabric = fabric(way);
        let first = prefill(&fabric, 11);
        let witness = decode(&fabric);
        witness.know(&first);
        witness.linked("prefill");
        let stale = offered(&first, 1);
        drop(first);
        let again = prefill(&fabric, 13);
        // The same number, of the same pages.
        let current = offered(&again, 1);
        witness.know(&again);
        witness.seen.borrow_mut().clear();
        witness.linked("prefill");
        let failure = begun(&witness, stale.clone(), LIMIT).unwrap_err();
        assert!(
            failure.to_string().contains("producer restarted"),
            "{failure}"
        );
        drop(witness);

        let fresh = Live::start(&fabric, "decode", &Shape::DECODE, 14, 2);
        fresh.know(&again);
        fresh.linked("prefill");
        let before = fresh.copy();
        let start = Instant::now();
        let report = pulled(&fresh, stale);
        let said = report.failure().unwrap().to_string();
        assert!(said.contains("producer restarted"), "{said}");
        // As long as it takes to find out that the life that is linked to is lost, in case the other is the later.
        assert!(start.elapsed() < Duration::from_secs(3));
        untouched(&fresh, &before, &report);
        still_moves(&again, &fresh, current);
    }
}

#[test]
fn pages_that_are_overwritten_while_they_are_read_are_never_committed() {
    let seed = std::env::var("MOAI_SEED").ok();
    let seed: u64 = seed.and_then(|seed| seed.parse().ok()).unwrap_or(2026);
    println!("seed {seed}");
    for way in WAYS {
        let mut config = Config::default();
        config.transports = Some(vec![way.into()]);
        // A transfer takes a third of a second.
        config.max_bytes_per_second = Some(3 * u64::from(TOKENS) * 4 * 8 * 64);
        let slow = Fabric::new(config);
        let (prefill, decode) = (prefill(&slow, 11), decode(&slow));
        decode.know(&prefill);
        decode.linked("prefill");
        let (mut found, mut committed) = (0, 0);
        for round in 1..=20 {
            let draw = mix(seed ^ round << 8);
            let requests = [&prefill, &decode].map(|live| live.shape.request(TOKENS, 0));
            let wanted = wanted(
                (&prefill, &requests[0]),
                (&decode, &requests[1]),
                decode.copy(),
            );
            let handle = offered(&prefill, round);
            let transfer = begun(&decode, handle, LIMIT).unwrap();
            thread::sleep(Duration::from_millis(draw % 500));
            let rank = (draw >> 32) as usize % 2;
            let page = (draw >> 40) as u32 % TOKENS.div_ceil(prefill.shape.slots);
            prefill.generations[rank].as_ref().unwrap().reuse(page);
            overwrite(&prefill, rank, page, draw as u8 | 1);
            let (report, fenced) = decode.ended(transfer, LIMIT);
            assert!(fenced, "{report:?}");
            let told = format!("{way}, round {round}, seed {seed}");
            if report.is_committed() {
                assert!(same(&decode.copy(), &wanted), "{told}: wrong bytes");
                committed += 1;
            } else {
                // Mapped pages are read on both sides, and the two may have read different bytes.
                let differ =
                    way == "shm" && matches!(report.failure(), Some(Failure::Digest { .. }));
                assert!(differ || refused(&report).0 == Reason::Reused, "{told}");
                found += 1;
            }
        }
        println!("{way}: {found} found out, {committed} overwritten after they were read");
        assert!(found >= 5, "{way}: only {found} of 20, seed {seed}");
    }
}

/// Writes something else into a page of a rank.
fn overwrite(live: &Live, rank: usize, page: u32, byte: u8) {
    let side = live.shape.descriptor();
    let before: usize = side.ranks[..rank].iter().map(|r| r.regions.len()).sum();
    let (regions, pages) = (side.ranks[rank].regions.len(), live.shape.pages as usize);
    let write = move |memory: &mut [moai_memory::Region]| {
        for region in &mut memory[before..before + regions] {
            let size = region.as_slice().len() / pages;
            let at = page as usize * size;
            // No number that the other format has not.
            region.as_mut_slice()[at..at + size].fill(byte & 0x3F);
        }
    };
    live.engine.with_memory(write).unwrap();
}

#[test]
fn pages_that_there_are_not_are_refused_where_they_are_named() {
    let (prefill, decode) = pair("tcp");
    decode.linked("prefill");
    let handle = offered(&prefill, 1);
    let before = decode.copy();
    // The last page of 25 is one too far, in the producer's pool of 64 and in the consumer's of 32.
    let wrong = Offer::new(2, prefill.shape.request(TOKENS, 40), LEASE);
    let said = prefill.engine.offer(wrong).unwrap_err().to_string();
    assert!(said.contains("page 64 is out of range"), "{said}");
    let wrong = Pull::new(handle.clone(), decode.shape.request(TOKENS, 20), LIMIT);
    let failure = decode.engine.pull(wrong).unwrap().unwrap_err();
    let said = failure.to_string();
    assert!(said.contains("page 32 is out of range"), "{said}");
    assert!(same(&decode.copy(), &before));
    still_moves(&prefill, &decode, handle);
}

#[test]
fn two_sides_with_other_tokens_or_pages_do_not_transfer() {
    for way in WAYS {
        let (prefill, decode) = pair(way);
        let handle = offered(&prefill, 1);
        let before = decode.copy();
        // The consumer has another request in mind.
        let other = Pull::new(handle.clone(), decode.shape.request(300, 0), LIMIT);
        let failure = decode.engine.pull(other).unwrap().unwrap_err();
        let said = failure.to_string();
        assert!(said.contains("300 here, 400 by the handle"), "{said}");
        // Nodes of the producer offer different requests under one number.
        let fewer = resealed(&handle, &key(&prefill), |said| said.tokens = 399);
        let report = pulled(&decode, fewer);
        assert!(
            matches!(
                report.failure(),
                Some(Failure::Protocol { .. } | Failure::Refused { .. })
            ),
            "{report:?}"
        );
        untouched(&decode, &before, &report);
        let moved = resealed(&handle, &key(&prefill), |said| said.pages[3] ^= 1);
        let report = pulled(&decode, moved);
        assert_eq!(
            refused(&report),
            (Reason::Reused, "offer 1 has other pages")
        );
        untouched(&decode, &before, &report);
        still_moves(&prefill, &decode, handle);
    }
}
