//! Plug-ins that break a rule while they are used: errors with a type, connections and operations that end, no crash.

use std::time::{Duration, Instant};

use moai_memory::{Domain, Job, Region, Span, StreamError, Work};
use moai_transport::{
    Batch, Completion, Error, Fault, Interface, Obstacle, PeerId, Pieces, Posted, Provider, Rights,
    Token,
};

use crate::told::Told;
use crate::wrong;

fn open(number: u32) -> Result<Box<dyn Interface + Send>, Error> {
    wrong(number).unwrap().transports[0].open()
}

/// An interface with its one peer connected.
fn connected(number: u32) -> (Box<dyn Interface + Send>, PeerId, Told) {
    let mut interface = open(number).unwrap();
    let mut told = Told {
        regions: vec![Region::from_host(vec![7; 100])],
        ..Told::default()
    };
    let peer = interface.connect(&"wrong:1".parse().unwrap()).unwrap();
    interface.poll(Some(Duration::ZERO), &mut told).unwrap();
    assert_eq!(told.connected, [(peer, false)]);
    (interface, peer, told)
}

fn put(
    interface: &mut dyn Interface,
    told: &mut Told,
    peer: PeerId,
    token: u64,
) -> Result<Posted, Error> {
    let pieces = Pieces {
        region: 0,
        bytes: 10,
        count: 1,
        stride: 0,
        offsets: &[0],
    };
    interface.put(&mut told.regions, peer, &[pieces], &[pieces], Token(token))
}

/// From now on calls fail with what was wrong, connections are closed and nothing else happens.
#[track_caller]
fn is_given_up(interface: &mut dyn Interface, told: &mut Told, peer: PeerId, said: &str) {
    let Err(Error::Provider { problem, .. }) = interface.send(peer, b"x") else {
        panic!("it is still used");
    };
    assert!(
        problem.contains("used no more") && problem.contains(said),
        "{problem}"
    );
    interface.poll(Some(Duration::ZERO), told).unwrap();
    let closed: Vec<_> = told
        .closed
        .iter()
        .map(|(peer, why)| (*peer, why.contains(said)))
        .collect();
    assert_eq!(closed, [(peer, true)], "{:?}", told.closed);
    let start = Instant::now();
    interface
        .poll(Some(Duration::from_millis(5)), told)
        .unwrap();
    assert!(start.elapsed() >= Duration::from_millis(5), "it spins");
    assert_eq!(told.closed.len(), 1);
    assert_eq!(interface.completion(), None);
    assert_eq!(interface.addresses(), []);
    assert!(interface.path(peer).is_none());
}

#[test]
fn what_opens_wrongly_is_not_opened() {
    for (number, said) in [
        (20, "an interface at 0x0"),
        (21, "is 9, expected 0 to 2"),
        (22, "descriptor -1"),
        (23, "status -999"),
        (24, "messages of 0 bytes"),
        (25, "cannot be waited for"),
    ] {
        let error = open(number).expect_err("it does not open").to_string();
        assert!(
            error.contains("provider wrong failed in") && error.contains(said),
            "{error}"
        );
    }
    let plugin = wrong(49).unwrap();
    let obstacle = plugin.transports[0].obstacle(&"wrong:1".parse().unwrap());
    assert!(matches!(obstacle, Some(Obstacle::Refused(why)) if why.contains("-999")));
    let said = wrong(48).unwrap().transports[0].probe().unwrap_err();
    assert!(
        said.contains("a text of 18446744073709551615 bytes"),
        "{said}"
    );
}

#[test]
fn texts_and_names_that_cannot_be_are_left_out() {
    let addresses: Vec<_> = open(47).unwrap().addresses();
    assert_eq!(addresses, ["wrong:1".parse().unwrap()]);
    assert_eq!(open(51).unwrap().addresses(), []);
    let (interface, peer, _) = connected(0);
    assert!(interface.path(peer).is_none(), "a path of 2^64 bytes");
    assert!(interface.identity(peer).is_none(), "`root` is no name");
    assert_eq!(interface.stats().busy, u64::MAX);
    let (interface, peer, _) = connected(74);
    assert!(interface.identity(peer).is_none());
    let error = open(29).unwrap().connect(&"wrong:1".parse().unwrap());
    assert!(error.unwrap_err().to_string().contains("not below 2^29"));
}

#[test]
fn completions_that_nobody_waits_for_end_the_use_of_it() {
    for (number, said) in [
        (30, "token 0x3039, which is not in flight"),
        (
            32,
            "a completion of peer 1.1 for an operation with peer 0.1",
        ),
        (33, "outcome 99 with code 0"),
        (61, "outcome 2 with code -5"),
        (62, "status -5"),
    ] {
        let (mut interface, peer, mut told) = connected(number);
        let posted = put(&mut *interface, &mut told, peer, 11).unwrap();
        assert_eq!(posted, Posted::InFlight(Token(11)));
        let lost = Completion::new(peer, Token(11), Err(Fault::PeerLost));
        assert_eq!(interface.completion(), Some(lost), "{number}");
        is_given_up(&mut *interface, &mut told, peer, said);
    }
}

#[test]
fn a_second_completion_of_an_operation_is_found() {
    let (mut interface, peer, mut told) = connected(31);
    for token in [21, 22] {
        let posted = put(&mut *interface, &mut told, peer, token).unwrap();
        assert_eq!(posted, Posted::InFlight(Token(token)));
    }
    let well = Completion::new(peer, Token(21), Ok(()));
    assert_eq!(interface.completion(), Some(well));
    // The same once more; the other, which is in flight, is lost.
    let lost = Completion::new(peer, Token(22), Err(Fault::PeerLost));
    assert_eq!(interface.completion(), Some(lost));
    is_given_up(&mut *interface, &mut told, peer, "which is not in flight");
}

#[test]
fn calls_that_its_handler_does_not_expect_end_the_use_of_it() {
    for (number, said) in [
        (35, "a message of peer 7.1, which is not connected"),
        (36, "a message of 1099511627776 bytes"),
        (38, "it connects to peer 7.1, which nobody has asked for"),
        (41, "peer 0.1, which is there already"),
        (42, "from another thread"),
        (45, "landed otherwise than it was to"),
        (64, "NULL instead of a reason"),
        (65, "a message of 5 bytes at 0x0"),
        (66, "a batch of 4294967295 bytes"),
        (67, "pieces for a batch of peer 0.1 that has none"),
        (68, "whose index is not below 2^29"),
        (70, "NULL instead of a place for the landing"),
        (71, "NULL instead of a batch"),
    ] {
        let (mut interface, peer, mut told) = connected(number);
        interface.poll(Some(Duration::ZERO), &mut told).unwrap();
        assert!(
            told.messages.is_empty() && told.landed.is_empty(),
            "{number}"
        );
        is_given_up(&mut *interface, &mut told, peer, said);
    }
}

#[test]
fn a_peer_is_closed_once() {
    let (mut interface, peer, mut told) = connected(37);
    interface.poll(Some(Duration::ZERO), &mut told).unwrap();
    assert_eq!(told.closed, [(peer, "ByPeer".to_owned())]);
    let error = interface.connect(&"wrong:1".parse().unwrap()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("closes peer 0.1, which is not there"),
        "{error}"
    );

    let (mut interface, _, mut told) = connected(63);
    interface.poll(Some(Duration::ZERO), &mut told).unwrap();
    assert!(told.closed[0].1.contains("reason 99"), "{:?}", told.closed);
}

#[test]
fn peers_without_end_are_too_many() {
    let (mut interface, peer, mut told) = connected(69);
    interface.poll(Some(Duration::ZERO), &mut told).unwrap();
    assert_eq!(told.connected.len(), moai_transport::limits::MAX_PEERS);
    assert_eq!(told.closed.len(), told.connected.len());
    let Err(Error::Provider { problem, .. }) = interface.send(peer, b"x") else {
        panic!("it is still used");
    };
    assert!(problem.contains("more than 1024 peers"), "{problem}");
}

#[test]
fn a_call_after_the_poll_is_found_in_the_next() {
    let (mut interface, peer, mut told) = connected(73);
    assert_eq!(interface.arm(), None);
    interface.poll(Some(Duration::ZERO), &mut told).unwrap();
    assert!(told.messages.is_empty());
    is_given_up(
        &mut *interface,
        &mut told,
        peer,
        "after a poll, or from another thread",
    );
}

#[test]
fn statuses_that_mean_nothing_are_errors() {
    let (mut interface, peer, mut told) = connected(46);
    let error = put(&mut *interface, &mut told, peer, 1).unwrap_err();
    assert!(
        matches!(&error, Error::Provider { call: "put", .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("status -999: xxx"), "{error}");
    assert_eq!(
        interface.send(peer, b"x").unwrap(),
        Posted::Done,
        "it was only an error"
    );
    let (mut interface, _, mut told) = connected(72);
    let error = interface.poll(Some(Duration::ZERO), &mut told).unwrap_err();
    assert!(
        error.to_string().contains("failed in poll: status -999"),
        "{error}"
    );
    let (mut interface, peer, mut told) = connected(34);
    let error = put(&mut *interface, &mut told, peer, 1).unwrap_err();
    assert!(error.to_string().contains("status 77"), "{error}");
    is_given_up(&mut *interface, &mut told, peer, "status 77");
    let (mut interface, peer, mut told) = connected(50);
    let error = interface.send(peer, b"x").unwrap_err();
    assert!(error.to_string().contains("status 1"), "{error}");
    is_given_up(&mut *interface, &mut told, peer, "status 1");
}

#[test]
fn a_batch_is_filled_once_and_whole_or_not_at_all() {
    for (number, fills, said) in [
        (
            39,
            0,
            "room for 110 bytes, or a second time, for a batch of 10",
        ),
        (
            40,
            1,
            "room for 10 bytes, or a second time, for a batch of 10",
        ),
        (52, 0, "status 0, and the batch was filled 0 times"),
        (53, 1, "status 2, and the batch was filled 1 times"),
    ] {
        let (mut interface, peer, mut told) = connected(number);
        let mut filled = 0;
        let batch = Batch { id: 1, bytes: 10 };
        let error = interface.post(peer, batch, &mut |room| {
            assert_eq!(room.len(), 10);
            filled += 1;
        });
        assert!(error.unwrap_err().to_string().contains(said), "{number}");
        assert_eq!(filled, fills, "{number}");
        is_given_up(&mut *interface, &mut told, peer, said);
    }
}

#[test]
fn memory_that_cannot_be_is_not_mapped() {
    let (mut interface, peer, _) = connected(0);
    let mapped = interface.map(peer, 0).unwrap();
    assert_eq!(mapped.as_slice(), [0; 100]);
    for (number, said) in [
        (43, "memory of 100 bytes at address 0"),
        (44, "memory of kind 99, and this build knows kinds 1 to 4"),
        (55, "memory of 18446744073709551615 bytes"),
        (56, "without functions to retain and release it"),
        (57, "a struct of 3 bytes"),
        (58, "a descriptor 1048576 that is not open"),
        (59, "that may be written to"),
        (60, "memory of 100 bytes at address 0xffffffffffffffcd"),
    ] {
        let (mut interface, peer, mut told) = connected(number);
        let error = interface.map(peer, 0).unwrap_err().to_string();
        assert!(error.contains(said), "{number}: {error}");
        is_given_up(&mut *interface, &mut told, peer, said);
    }
    let (mut interface, peer, mut told) = connected(54);
    let registered = interface.register(0, &told.regions[0], Rights::READ);
    assert!(registered.unwrap_err().to_string().contains("generation 0"));
    is_given_up(&mut *interface, &mut told, peer, "generation 0");
}

#[test]
fn a_domain_that_gives_something_else_is_refused() {
    for (number, said) in [
        (88, "it gave 4095 bytes of sim memory"),
        (89, "without a domain"),
        (90, "of host memory"),
        (91, "status -999"),
    ] {
        let error = wrong(number).unwrap().domains[0]
            .allocate(4096)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("domain wrong cannot give 4096 bytes"),
            "{error}"
        );
        assert!(error.contains(said), "{number}: {error}");
    }
}

#[test]
fn a_stream_that_breaks_a_rule_fails_what_it_has_in_hand() {
    let job = |region: &Region, name| Job {
        name,
        work: Work::ToHost,
        spans: vec![Span {
            hold: region.hold(),
            offset: 0,
            bytes: 100,
        }],
        buffer: Vec::new(),
    };
    for number in [81, 82, 83, 84, 85, 86] {
        let plugin = wrong(number).unwrap();
        let region = plugin.domains[0].allocate(4096).unwrap();
        let mut stream = plugin.domains[0].stream().unwrap();
        stream.submit(job(&region, 1)).unwrap();
        // One that has nothing in flight and is busy would be so for ever; the job fails instead.
        let first = stream.completed().expect("it ends");
        assert_eq!(first.job.name, 1);
        if number == 84 {
            assert!(first.outcome.is_ok());
            stream.submit(job(&region, 2)).unwrap();
            stream.submit(job(&region, 3)).unwrap();
            let names = [(); 2].map(|()| {
                let ended = stream.completed().expect("it ends");
                (ended.job.name, ended.outcome.is_ok())
            });
            // It tells of the last one twice; the other fails.
            assert_eq!(names, [(3, true), (2, false)]);
        } else {
            assert!(
                matches!(first.outcome, Err(StreamError::Failed)),
                "{number}"
            );
        }
        assert!(stream.completed().is_none());
        assert_eq!(stream.in_flight(), 0);
    }
    for number in [80, 87] {
        let error = wrong(number).unwrap().domains[0].stream().err();
        assert!(
            matches!(error, Some(StreamError::Os { .. })),
            "{number}: {error:?}"
        );
    }
}

#[test]
fn what_a_stream_cannot_be_asked_never_reaches_it() {
    let plugin = wrong(0).unwrap();
    let domain = &plugin.domains[0];
    let region = domain.allocate(4096).unwrap();
    let elsewhere = moai_memory::sim::SimDevice::new(Default::default())
        .allocate(4096)
        .unwrap();
    let mut stream = domain.stream().unwrap();
    let mut ended = |region: &Region, offset, work, buffer: Vec<u8>| {
        let span = Span {
            hold: region.hold(),
            offset,
            bytes: 100,
        };
        let job = Job {
            name: 5,
            work,
            spans: vec![span],
            buffer,
        };
        stream.submit(job).unwrap();
        assert!(stream.wait(Duration::from_secs(1)));
        stream
            .completed()
            .expect("at once")
            .outcome
            .unwrap_err()
            .to_string()
    };
    let said = ended(&elsewhere, 0, Work::ToHost, Vec::new());
    assert!(said.contains("not this device's"), "{said}");
    let said = ended(&region, 4000, Work::ToHost, Vec::new());
    assert!(
        said.contains("lies outside a region of 4096 bytes"),
        "{said}"
    );
    let said = ended(&region, u64::MAX, Work::ToHost, Vec::new());
    assert!(said.contains("lies outside"), "{said}");
    let said = ended(&region, 0, Work::FromHost, vec![0; 99]);
    assert!(said.contains("99 bytes cannot fill spans of 100"), "{said}");
    let kernel = Work::Kernel(Box::new(|_: &mut moai_memory::sim::DeviceMemory<'_>| {}));
    let said = ended(&region, 0, kernel, Vec::new());
    assert!(said.contains("runs no kernels"), "{said}");
}
