//! Engines that live: many transfers over one link, pushes, layers, cancels, leases, restarts; every byte compared.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use moai_collectives::{
    protocol::node::{ALL_LAYERS, Failure, Reason, Trace, TransferId},
    request::Request,
    transfer::{Ended, Event, Grant, Offer, Pull},
};
use moai_tests::live::{Live, Shape, fabric, same, wanted};

const LIMIT: Duration = Duration::from_secs(10);
const LEASE: Duration = Duration::from_secs(20);

/// Each over sockets, and over shared memory with pages that are mapped.
const WAYS: [&str; 2] = ["tcp", "shm"];

fn pair(way: &str) -> (Live, Live) {
    let fabric = fabric(way);
    let prefill = Live::start(&fabric, "prefill", &Shape::PREFILL, 11, 1);
    let decode = Live::start(&fabric, "decode", &Shape::DECODE, 12, 2);
    decode.know(&prefill);
    (prefill, decode)
}

fn pulled(decode: &Live, pull: Pull) -> TransferId {
    decode.engine.pull(pull).unwrap().unwrap()
}

/// Moves one request, and compares every byte of the consumer's memory.
fn moves(prefill: &Live, decode: &Live, number: u64, tokens: u32) {
    let its = prefill.shape.request(tokens, number as u32 % 7);
    let own = decode.shape.request(tokens, number as u32 % 3);
    let before = decode.copy();
    let handle = prefill
        .engine
        .offer(Offer::new(number, its.clone(), LEASE))
        .unwrap();
    let transfer = pulled(decode, Pull::new(handle, own.clone(), LIMIT));
    let (report, fenced) = decode.ended(transfer, LIMIT);
    assert!(report.is_committed() && fenced, "{report:?}");
    let wanted = wanted((prefill, &its), (decode, &own), before);
    assert!(same(&decode.copy(), &wanted), "request {number}");
    let (reason, report) = prefill.wait(LIMIT, |event| match event {
        Event::Released {
            offer,
            reason,
            report,
        } if *offer == number => Some((*reason, report.clone())),
        _ => None,
    });
    assert_eq!(reason, Reason::Consumed);
    assert!(report.is_committed() && report.chunks > 0);
}

#[test]
fn one_request_after_another_moves_over_one_link_and_leaves_nothing() {
    for way in WAYS {
        let (prefill, decode) = pair(way);
        for number in 1..40 {
            moves(&prefill, &decode, number, 1 + number as u32 * 17 % 400);
        }
        let (counters, links, _) = decode.engine.counters().unwrap();
        assert_eq!(
            (counters.committed, counters.links_ready, links),
            (39, 1, 1)
        );
        let idle = |live: &Live| live.engine.counters().unwrap().2;
        // A link on each side, the node and ranks at its other end, its timer, and what is mapped.
        let most = 10;
        assert!(
            idle(&prefill) <= most && idle(&decode) <= most,
            "{} {}",
            idle(&prefill),
            idle(&decode)
        );
    }
}

#[test]
fn its_descriptor_is_readable_while_events_wait_and_when_none_will_come() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let readable = |live: &Live, limit: Duration| {
        let waiting = live.engine.waiting();
        let mut fds = [PollFd::from_borrowed_fd(waiting, PollFlags::IN)];
        poll(&mut fds, Timespec::try_from(limit).ok().as_ref()).unwrap() > 0
    };
    let fabric = fabric("tcp");
    let prefill = Live::start(&fabric, "prefill", &Shape::PREFILL, 11, 1);
    let decode = Live::start(&fabric, "decode", &Shape::DECODE, 12, 2);
    assert!(!readable(&decode, Duration::from_millis(50)));
    decode.know(&prefill);
    assert!(readable(&decode, LIMIT));
    let mut told = 0;
    // Every event is counted, and none twice.
    while readable(&decode, Duration::from_millis(200)) {
        assert!(decode.engine.event(LIMIT).unwrap().is_some());
        told += 1;
    }
    assert!(told > 0 && decode.engine.event(Duration::ZERO).unwrap().is_none());
    decode.engine.stop().unwrap();
    while let Ok(Some(_)) = decode.engine.event(Duration::ZERO) {}
    assert!(readable(&decode, Duration::ZERO));
    assert!(decode.engine.event(LIMIT).is_err() && decode.engine.stop().is_err());
}

#[test]
fn many_requests_move_at_once() {
    for way in WAYS {
        let (prefill, decode) = pair(way);
        let before = decode.copy();
        let requests: Vec<(Request, Request)> = (0..8)
            .map(|n| {
                (
                    prefill.shape.request(100, n * 7),
                    decode.shape.request(100, n * 4),
                )
            })
            .collect();
        let mut transfers = BTreeSet::new();
        for (number, (its, own)) in (1..).zip(&requests) {
            let handle = prefill
                .engine
                .offer(Offer::new(number, its.clone(), LEASE))
                .unwrap();
            transfers.insert(pulled(&decode, Pull::new(handle, own.clone(), LIMIT)));
        }
        for transfer in transfers {
            let (report, _) = decode.ended(transfer, LIMIT);
            assert!(report.is_committed(), "{report:?}");
        }
        let all = requests.iter().fold(before, |before, (its, own)| {
            wanted((&prefill, its), (&decode, own), before)
        });
        assert!(same(&decode.copy(), &all), "{way}");
    }
}

#[test]
fn tokens_that_are_there_are_not_moved() {
    for way in WAYS {
        let (prefill, decode) = pair(way);
        let its = prefill.shape.request(200, 0);
        let mut own = decode.shape.request(200, 0);
        own.first = 77;
        let before = decode.copy();
        let handle = prefill
            .engine
            .offer(Offer::new(1, its.clone(), LEASE))
            .unwrap();
        let transfer = pulled(&decode, Pull::new(handle, own.clone(), LIMIT));
        let (report, _) = decode.ended(transfer, LIMIT);
        assert!(report.is_committed(), "{report:?}");
        assert_eq!(report.bytes_written, 123 * 4 * 8 * 64);
        let wanted = wanted((&prefill, &its), (&decode, &own), before);
        assert!(same(&decode.copy(), &wanted));
    }
}

#[test]
fn a_push_fills_what_was_granted() {
    for way in WAYS {
        let (prefill, decode) = pair(way);
        decode.linked("prefill");
        prefill.linked("decode");
        for number in 1..10 {
            let its = prefill.shape.request(150, 3);
            let own = decode.shape.request(150, number as u32);
            let before = decode.copy();
            let grant = Grant::new(number, own.clone(), LEASE, LIMIT);
            let granted = decode.engine.grant(grant).unwrap();
            prefill
                .engine
                .offer(Offer::new(number, its.clone(), LEASE))
                .unwrap();
            prefill.engine.push(number, &granted).unwrap().unwrap();
            let transfer = decode.wait(LIMIT, |event| match event {
                Event::Invited {
                    grant, transfer, ..
                } if *grant == number => Some(*transfer),
                _ => None,
            });
            let (report, _) = decode.ended(transfer, LIMIT);
            assert!(report.is_committed(), "{report:?}");
            let wanted = wanted((&prefill, &its), (&decode, &own), before);
            assert!(same(&decode.copy(), &wanted));
            // It is used up.
            prefill
                .engine
                .offer(Offer::new(1000 + number, its, LEASE))
                .unwrap();
            prefill
                .engine
                .push(1000 + number, &granted)
                .unwrap()
                .unwrap();
            let reason = prefill.wait(LIMIT, |event| match event {
                Event::Declined { offer, reason, .. } if *offer == 1000 + number => Some(*reason),
                _ => None,
            });
            assert_eq!(reason, Reason::Consumed);
        }
    }
}

#[test]
fn layers_come_as_they_are_written_in_any_order_and_by_tokens() {
    for way in WAYS {
        let (prefill, decode) = pair(way);
        let its = prefill.shape.request(300, 0);
        let own = decode.shape.request(300, 0);
        let before = decode.copy();
        let mut offer = Offer::new(1, its.clone(), LEASE);
        offer.progressive = true;
        let handle = prefill.engine.offer(offer).unwrap();
        let mut pull = Pull::new(handle, own.clone(), LIMIT);
        pull.by_layer = true;
        let transfer = pulled(&decode, pull);
        let layer = |wanted: u32| {
            decode.wait(LIMIT, |event| match event {
                Event::Layer {
                    transfer: of,
                    layer,
                } if (*of, *layer) == (transfer, wanted) => Some(()),
                _ => None,
            });
        };
        prefill.engine.layer_ready(1, 2, 300).unwrap();
        layer(2);
        // Half a layer is none.
        prefill.engine.layer_ready(1, 0, 128).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let early = decode
            .seen
            .borrow()
            .iter()
            .any(|event| matches!(event, Event::Layer { layer: 0, .. }));
        assert!(!early);
        prefill.engine.layer_ready(1, 0, 300).unwrap();
        layer(0);
        prefill.engine.layer_ready(1, ALL_LAYERS, 300).unwrap();
        layer(1);
        layer(3);
        let (report, _) = decode.ended(transfer, LIMIT);
        assert!(report.is_committed(), "{report:?}");
        let wanted = wanted((&prefill, &its), (&decode, &own), before);
        assert!(same(&decode.copy(), &wanted));
    }
}

#[test]
fn reports_say_where_the_time_went_and_carry_the_producers_trace() {
    for way in WAYS {
        let (prefill, decode) = pair(way);
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut offer = Offer::new(1, prefill.shape.request(400, 0), LEASE);
        offer.trace = Some(Trace::parse(text).unwrap());
        offer.name = "cmpl-7".into();
        let handle = prefill.engine.offer(offer).unwrap();
        let mut pull = Pull::new(handle, decode.shape.request(400, 0), LIMIT);
        pull.name = "cmpl-7d".into();
        let (report, _) = decode.ended(pulled(&decode, pull), LIMIT);
        assert_eq!(report.trace.as_deref(), Some(text));
        let times = [
            report.linked_ns,
            report.first_ns,
            report.last_ns,
            report.elapsed_ns,
        ];
        assert!(times[0] > 0 && times.is_sorted(), "{times:?}");
        assert!(
            report.routes.iter().all(|route| route.provider == way),
            "{report:?}"
        );
        let line = serde_json::to_value(&report).unwrap();
        assert_eq!(
            (&line["request"], &line["ended"]["outcome"]),
            (&"cmpl-7d".into(), &"committed".into())
        );
        let its = prefill.wait(LIMIT, |event| match event {
            Event::Released { report, .. } => Some(report.clone()),
            _ => None,
        });
        assert_eq!(
            (its.request.as_str(), its.trace.as_deref()),
            ("cmpl-7", Some(text))
        );
    }
}

/// Whether nothing but dirty pages has changed: pages of 32 slots of one region a layer.
fn only_dirty(decode: &Live, before: &[moai_collectives::execute::Pool], ended: &Ended) {
    let dirty = match ended {
        Ended::Committed => panic!("committed"),
        Ended::Failed { dirty, .. } | Ended::Cancelled { dirty } => dirty,
    };
    let listed: BTreeSet<u32> = dirty.iter().flat_map(|list| list.pages.clone()).collect();
    let now = decode.copy();
    for (now, then) in now.iter().flatten().zip(before.iter().flatten()) {
        let size = now.as_slice().len() / decode.shape.pages as usize;
        for page in 0..decode.shape.pages {
            let at = page as usize * size..(page as usize + 1) * size;
            let is_same = now.as_slice()[at.clone()] == then.as_slice()[at];
            assert!(is_same || listed.contains(&page), "page {page}: {ended:?}");
        }
    }
}

#[test]
fn what_is_cancelled_is_fenced_and_others_go_on() {
    for way in WAYS {
        let (prefill, decode) = pair(way);
        for round in 0..10 {
            let its = prefill.shape.request(400, 0);
            let own = decode.shape.request(400, 0);
            let before = decode.copy();
            let number = 2 * round + 1;
            let mut offer = Offer::new(number, its, LEASE);
            offer.progressive = true;
            let handle = prefill.engine.offer(offer).unwrap();
            let mut pull = Pull::new(handle, own, LIMIT);
            pull.by_layer = true;
            let transfer = pulled(&decode, pull);
            prefill.engine.layer_ready(number, 1, 400).unwrap();
            if round % 2 == 0 {
                decode.wait(LIMIT, |event| {
                    matches!(event, Event::Layer { transfer: of, .. } if *of == transfer)
                        .then_some(())
                });
            }
            decode.engine.cancel(transfer).unwrap();
            let start = Instant::now();
            let (report, fenced) = decode.ended(transfer, LIMIT);
            assert!(
                matches!(report.ended, Ended::Cancelled { .. }) && fenced,
                "{report:?}"
            );
            assert!(start.elapsed() < Duration::from_millis(500));
            // Nothing comes any more.
            prefill.engine.layer_ready(number, ALL_LAYERS, 400).unwrap();
            std::thread::sleep(Duration::from_millis(10));
            only_dirty(&decode, &before, &report.ended);
            moves(&prefill, &decode, number + 1, 90);
            prefill.engine.withdraw(number).unwrap();
            prefill.wait(LIMIT, |event| {
                matches!(event, Event::Released { offer, .. } if *offer == number).then_some(())
            });
        }
    }
}

#[test]
fn an_offer_that_is_taken_back_fails_its_transfer_and_an_expired_one_is_refused() {
    for way in WAYS {
        let (prefill, decode) = pair(way);
        let mut offer = Offer::new(1, prefill.shape.request(400, 0), LEASE);
        offer.progressive = true;
        let handle = prefill.engine.offer(offer).unwrap();
        let transfer = pulled(
            &decode,
            Pull::new(handle.clone(), decode.shape.request(400, 0), LIMIT),
        );
        prefill.engine.layer_ready(1, 0, 400).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let before = decode.copy();
        prefill.engine.withdraw(1).unwrap();
        let (report, fenced) = decode.ended(transfer, LIMIT);
        let refused = |report: &moai_collectives::transfer::Report| match report.failure() {
            Some(Failure::Refused { reason, .. }) => *reason,
            other => panic!("{other:?}"),
        };
        assert_eq!((refused(&report), fenced), (Reason::Withdrawn, true));
        only_dirty(&decode, &before, &report.ended);
        let again = pulled(
            &decode,
            Pull::new(handle, decode.shape.request(400, 0), LIMIT),
        );
        assert_eq!(refused(&decode.ended(again, LIMIT).0), Reason::Withdrawn);
        // Nobody comes.
        let short = Duration::from_millis(50);
        let offer = Offer::new(2, prefill.shape.request(400, 0), short);
        let handle = prefill.engine.offer(offer).unwrap();
        let reason = prefill.wait(LIMIT, |event| match event {
            Event::Released {
                offer: 2, reason, ..
            } => Some(*reason),
            _ => None,
        });
        assert_eq!(reason, Reason::Expired);
        let late = pulled(
            &decode,
            Pull::new(handle, decode.shape.request(400, 0), LIMIT),
        );
        assert_eq!(refused(&decode.ended(late, LIMIT).0), Reason::Expired);
    }
}

#[test]
fn pages_that_are_used_for_something_else_are_never_committed() {
    for way in WAYS {
        let (prefill, decode) = pair(way);
        moves(&prefill, &decode, 1, 100);
        let mut offer = Offer::new(2, prefill.shape.request(400, 0), LEASE);
        offer.progressive = true;
        let handle = prefill.engine.offer(offer).unwrap();
        let transfer = pulled(
            &decode,
            Pull::new(handle, decode.shape.request(400, 0), LIMIT),
        );
        prefill.engine.layer_ready(2, 0, 400).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        // A page of another request: nothing happens. One of this request: all of it is void.
        prefill.generations[0].as_ref().unwrap().reuse(60);
        prefill.engine.layer_ready(2, 1, 400).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        assert!(
            decode
                .seen
                .borrow()
                .iter()
                .all(|event| !matches!(event, Event::Ended { .. }))
        );
        prefill.generations[1].as_ref().unwrap().reuse(3);
        prefill.engine.layer_ready(2, ALL_LAYERS, 400).unwrap();
        let (report, _) = decode.ended(transfer, LIMIT);
        let reused = matches!(
            report.failure(),
            Some(Failure::Refused {
                reason: Reason::Reused,
                ..
            })
        );
        assert!(reused, "{report:?}");
        moves(&prefill, &decode, 3, 100);
    }
}

#[test]
fn a_restarted_producer_is_another_and_comes_back_by_itself() {
    for way in WAYS {
        let (prefill, decode) = pair(way);
        moves(&prefill, &decode, 1, 100);
        let its = prefill.shape.request(400, 0);
        let stale = prefill.engine.offer(Offer::new(2, its, LEASE)).unwrap();
        let fabric = fabric(way);
        drop(prefill);
        let prefill = Live::start(&fabric, "prefill", &Shape::PREFILL, 13, 3);
        // As a directory would tell: the same name, another place.
        decode.know(&prefill);
        decode.seen.borrow_mut().clear();
        decode.linked("prefill");
        match decode
            .engine
            .pull(Pull::new(
                stale.clone(),
                decode.shape.request(400, 0),
                LIMIT,
            ))
            .unwrap()
        {
            Err(failure) => assert!(
                failure.to_string().contains("producer restarted"),
                "{failure}"
            ),
            Ok(transfer) => panic!("{:?}", decode.ended(transfer, LIMIT)),
        }
        moves(&prefill, &decode, 1, 100);
        assert_eq!(decode.engine.counters().unwrap().0.peers_restarted, 1);
    }
}

#[test]
fn a_consumer_that_goes_leaves_the_producers_pages_free() {
    for way in WAYS {
        let (prefill, decode) = pair(way);
        let mut offer = Offer::new(1, prefill.shape.request(400, 0), Duration::from_millis(300));
        offer.progressive = true;
        let handle = prefill.engine.offer(offer).unwrap();
        pulled(
            &decode,
            Pull::new(handle, decode.shape.request(400, 0), LIMIT),
        );
        prefill.engine.layer_ready(1, 0, 400).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        drop(decode);
        prefill.wait(LIMIT, |event| {
            matches!(event, Event::Released { offer: 1, .. }).then_some(())
        });
        let fabric = fabric(way);
        let decode = Live::start(&fabric, "decode", &Shape::DECODE, 14, 2);
        decode.know(&prefill);
        moves(&prefill, &decode, 2, 100);
    }
}

#[test]
fn two_engines_serve_each_other_at_once() {
    for way in WAYS {
        let fabric = fabric(way);
        let one = Live::start(
            &fabric,
            "one",
            &Shape {
                element: "bf16",
                ..Shape::DECODE
            },
            21,
            1,
        );
        let two = Live::start(
            &fabric,
            "two",
            &Shape {
                element: "bf16",
                slots: 16,
                pages: 64,
                ..Shape::DECODE
            },
            22,
            2,
        );
        one.know(&two);
        two.know(&one);
        let (from, to) = (one.copy(), two.copy());
        let (down, up) = (one.shape.request(200, 0), two.shape.request(200, 0));
        let (here, there) = (one.shape.request(200, 20), two.shape.request(200, 40));
        let first = one
            .engine
            .offer(Offer::new(1, down.clone(), LEASE))
            .unwrap();
        let second = two.engine.offer(Offer::new(1, up.clone(), LEASE)).unwrap();
        let a = pulled(&two, Pull::new(first, there.clone(), LIMIT));
        let b = pulled(&one, Pull::new(second, here.clone(), LIMIT));
        assert!(two.ended(a, LIMIT).0.is_committed());
        assert!(one.ended(b, LIMIT).0.is_committed());
        assert!(same(
            &two.copy(),
            &wanted((&one, &down), (&two, &there), to)
        ));
        assert!(same(&one.copy(), &wanted((&two, &up), (&one, &here), from)));
        // Both dialled, and one link stayed.
        assert_eq!(
            (
                one.engine.counters().unwrap().1,
                two.engine.counters().unwrap().1
            ),
            (1, 1)
        );
    }
}

#[test]
fn what_cannot_be_is_said_at_once() {
    let (prefill, decode) = pair("tcp");
    decode.linked("prefill");
    let wrong = prefill
        .engine
        .offer(Offer::new(1, prefill.shape.request(400, 60), LEASE));
    assert!(
        wrong
            .unwrap_err()
            .to_string()
            .contains("page 84 is out of range")
    );
    let handle = prefill
        .engine
        .offer(Offer::new(2, prefill.shape.request(400, 0), LEASE))
        .unwrap();
    let other = Pull::new(handle, decode.shape.request(300, 0), LIMIT);
    let failure = decode.engine.pull(other).unwrap().unwrap_err();
    assert!(
        failure.to_string().contains("300 here, 400 by the handle"),
        "{failure}"
    );
    let grant = decode
        .engine
        .grant(Grant::new(1, decode.shape.request(10, 0), LEASE, LIMIT))
        .unwrap();
    let refused = prefill.engine.push(9, &grant).unwrap().unwrap_err();
    assert_eq!(refused.0, Reason::UnknownOffer);
}
