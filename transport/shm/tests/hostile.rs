//! Peers that lie, and peers that say half of it.

mod common;

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use common::{Event, Random, Side};
use moai_memory::{MemoryKind, Region};
use moai_transport::{Closed, Error, Interface, Rights};
use moai_transport_shm::ShmConfig;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};

const STAGING: u32 = 4 << 20;
/// As `segment` lays it out.
const FRONT: u64 = 64 << 10;
const CONTROL: u64 = 128 << 10;
const SEGMENT: u64 = FRONT + 2 * CONTROL + 2 * ((4 << 20) + (64 << 10));
const TABLE: u64 = (8 + 32) << 16;

fn dial(side: &Side) -> OwnedFd {
    let address = side.interface.addresses().remove(0);
    let (_, name) = address.location().rsplit_once('@').unwrap();
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let name = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
    connect(&socket, &name).unwrap();
    socket
}

fn send(socket: &OwnedFd, packet: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let _ = sendmsg(
        socket,
        &[IoSlice::new(packet)],
        &mut control,
        SendFlags::NOSIGNAL,
    );
}

fn greeting() -> [u8; 40] {
    let mut greeting = [0; 40];
    greeting[..8].copy_from_slice(b"MoAI shm");
    greeting[8] = 2;
    greeting[12..16].copy_from_slice(&STAGING.to_le_bytes());
    greeting[16] = 77;
    greeting
}

fn file(bytes: u64) -> (Region, OwnedFd) {
    let region = Region::shared_zeroed(bytes).unwrap();
    let hold = region.hold();
    let fd = hold.export().unwrap().fd.try_clone_to_owned().unwrap();
    (region, fd)
}

fn config() -> ShmConfig {
    ShmConfig {
        first_frame_timeout: Duration::from_millis(200),
        ..ShmConfig::default()
    }
}

/// Polls a while, and returns what happened.
fn look(side: &mut Side, for_ms: u64) -> Vec<Event> {
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_millis(for_ms) {
        side.poll(Duration::from_millis(5));
    }
    side.take()
}

#[test]
fn half_a_greeting_a_wrong_one_or_none_is_sent_away() {
    let mut side = Side::listening(config());
    let (_segment, segment) = file(SEGMENT);
    let (_table, table) = file(TABLE);
    let (_short, short) = file(4096);
    let unsealed = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&unsealed, SEGMENT).unwrap();
    let (segment, table, short) = (segment.as_fd(), table.as_fd(), short.as_fd());
    let good = greeting();
    let mut absurd = good;
    absurd[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut other = good;
    other[8] = 1;
    let cases: [(&[u8], &[BorrowedFd<'_>]); 10] = [
        (&[], &[]),
        (&good[..20], &[segment, table]),
        (&good, &[]),
        (&good, &[segment]),
        (&good, &[segment, table, table]),
        (&good, &[segment, table, table, table, table, table]),
        (&good, &[short, table]),
        (&good, &[segment, short]),
        (&good, &[unsealed.as_fd(), table]),
        (&absurd, &[segment, table]),
    ];
    let mut sockets = Vec::new();
    for (packet, fds) in cases {
        let socket = dial(&side);
        send(&socket, packet, fds);
        sockets.push(socket);
    }
    let socket = dial(&side);
    send(&socket, &other, &[segment, table]);
    let silent = dial(&side);
    let dies = dial(&side);
    send(&dies, &good, &[segment, table]);
    drop(dies);
    let events = look(&mut side, 400);
    assert!(events.is_empty(), "none was ever a peer: {events:?}");
    let stats = side.interface.stats();
    assert_eq!((stats.accepted, stats.closed), (0, 13));
    drop((sockets, silent, socket));
    // And others are served as ever.
    let mut friend = Side::new(ShmConfig::default());
    let address = side.interface.addresses().remove(0);
    let peer = friend.interface.connect(&address).unwrap();
    let _ = friend.interface.send(peer, b"hello").unwrap();
    side.until(|event| matches!(event, Event::Message(..)).then_some(()));
}

#[test]
fn a_peer_that_is_greeted_and_silent_is_idle() {
    let mut side = Side::listening(config());
    let (_segment, segment) = file(SEGMENT);
    let (_table, table) = file(TABLE);
    let socket = dial(&side);
    send(&socket, &greeting(), &[segment.as_fd(), table.as_fd()]);
    let events = look(&mut side, 400);
    let [
        Event::Connected(..),
        Event::Closed(_, Closed::Idle { limit_ms: 200 }),
    ] = &events[..]
    else {
        panic!("{events:?}");
    };
}

#[test]
fn garbage_in_any_word_of_the_rings_ends_the_connection_and_nothing_else() {
    let mut side = Side::listening(ShmConfig::default());
    let mut random = Random(9);
    println!("seed 9");
    let mut ended = [0; 2];
    for round in 0..300 {
        let (mut segment, fd) = file(SEGMENT);
        let (_table, table) = file(TABLE);
        let socket = dial(&side);
        send(&socket, &greeting(), &[fd.as_fd(), table.as_fd()]);
        side.until(|event| matches!(event, Event::Connected(..)).then_some(()));
        for _ in 0..1 + random.below(20) {
            // The indices of any ring, or a frame near its start.
            let ring = random.below(4);
            let start = if ring < 2 {
                FRONT + ring * CONTROL
            } else {
                FRONT + 2 * CONTROL + (ring - 2) * ((4 << 20) + (64 << 10))
            };
            let word = match random.below(3) {
                0 => 0,
                1 => 128,
                _ => 384 + 8 * random.below(16),
            };
            let value = match random.below(5) {
                0 => random.next(),
                1 => 16 * random.below(64),
                2 => (random.below(64) << 32) | random.below(4),
                3 => u64::MAX,
                _ => 0,
            };
            let at = (start + word) as usize;
            segment.as_mut_slice()[at..at + 8].copy_from_slice(&value.to_le_bytes());
            if random.below(3) == 0 {
                // A header, as it should be or nearly so.
                let header = moai_transport::wire::Header::Batch(moai_transport::Batch {
                    id: 1,
                    bytes: random.below(100) as u32,
                });
                let mut bytes = header.encode();
                bytes[random.below(32) as usize] ^= random.below(2) as u8;
                let at = (FRONT + 384 + 16) as usize;
                segment.as_mut_slice()[at..at + 32].copy_from_slice(&bytes);
            }
            send(&socket, b"!", &[]);
            side.poll(Duration::ZERO);
            side.poll(Duration::from_micros(100));
        }
        let answer = random.below(2) == 0;
        if answer && let Some(Event::Connected(peer, _)) = side.told.events.first() {
            let _ = side.interface.send(*peer, b"anyone there");
        }
        drop(socket);
        let by_peer = side.until(|event| match event {
            Event::Closed(_, Closed::ByPeer) => Some(0),
            Event::Closed(_, Closed::Protocol(_)) => Some(1),
            Event::Closed(_, why) => panic!("round {round}: {why}"),
            _ => None,
        });
        ended[by_peer] += 1;
        side.take();
    }
    println!("by the peer, for nonsense: {ended:?}");
    assert!(ended.iter().all(|&times| times > 20), "{ended:?}");
}

#[test]
fn nonsense_over_the_socket_ends_the_connection() {
    for (packet, fds) in [
        (&b"?"[..], 0),
        (b"!!", 0),
        (b"!", 1),
        (b"E1234567", 1),
        (b"E12345678", 2),
        (b"R12345678", 1),
        (&[7; 500], 0),
    ] {
        let mut side = Side::listening(ShmConfig::default());
        let (_segment, segment) = file(SEGMENT);
        let (_table, table) = file(TABLE);
        let socket = dial(&side);
        send(&socket, &greeting(), &[segment.as_fd(), table.as_fd()]);
        send(&socket, packet, &vec![table.as_fd(); fds]);
        side.until(|event| match event {
            Event::Closed(_, Closed::Protocol(_)) => Some(()),
            Event::Closed(_, why) => panic!("{packet:?}: {why}"),
            _ => None,
        });
    }
}

#[test]
fn a_thousand_connects_without_a_word_are_bounded() {
    let mut side = Side::listening(ShmConfig {
        max_peers: 100,
        ..config()
    });
    let sockets: Vec<_> = (0..150).map(|_| dial(&side)).collect();
    let events = look(&mut side, 50);
    assert!(events.is_empty());
    assert_eq!(side.interface.stats().rejected, 50);
    look(&mut side, 300);
    drop(sockets);
    let mut friend = Side::new(ShmConfig::default());
    let address = side.interface.addresses().remove(0);
    friend.interface.connect(&address).unwrap();
    side.until(|event| matches!(event, Event::Connected(..)).then_some(()));
}

#[test]
fn memory_that_a_dropped_peer_may_be_in_is_kept_however_many_were_dropped_since() {
    let mut side = Side::listening(ShmConfig {
        max_peers: 2,
        ..ShmConfig::default()
    });
    let rights = Rights::READ.and(Rights::WRITE);
    side.told.regions = (0..3)
        .map(|_| Region::shared_zeroed(4096).unwrap())
        .collect();
    let ids: Vec<_> = (0..3)
        .map(|index: u32| {
            let region = &side.told.regions[index as usize];
            side.interface.register(index, region, rights).unwrap()
        })
        .collect();
    let mut kept = Vec::new();
    // In the first region; in one that is not there; and many that are in none.
    let places = [ids[0].slot() + 1, u32::MAX, 0, 0, 0, 0, ids[1].slot() + 1];
    let slots = places.into_iter().chain([ids[1].slot() + 1; 2]);
    for inside in slots {
        let (mut segment, fd) = file(SEGMENT);
        // The hazard of the side that connects is its first word.
        segment.as_mut_slice()[..4].copy_from_slice(&inside.to_le_bytes());
        let (table, table_fd) = file(TABLE);
        let socket = dial(&side);
        send(&socket, &greeting(), &[fd.as_fd(), table_fd.as_fd()]);
        let peer = side.until(|event| match event {
            Event::Connected(peer, _) => Some(*peer),
            _ => None,
        });
        side.take();
        side.interface.close(peer);
        // Stopped: its socket stays, and it does not leave.
        kept.push((segment, table, socket));
    }
    let error = side.interface.deregister(ids[0]).unwrap_err();
    assert!(error.to_string().contains("leave the memory"), "{error}");
    side.interface.deregister(ids[2]).unwrap();
    drop(kept);
    side.interface.deregister(ids[1]).unwrap_err();
    // The slots are used again, and nobody is in them.
    let again = side
        .interface
        .register(0, &side.told.regions[2], rights)
        .unwrap();
    side.interface.deregister(again).unwrap();
}

#[test]
fn memory_that_was_imported_for_reading_is_not_registered_for_writing() {
    let mut side = Side::new(ShmConfig::default());
    let (_region, fd) = file(1 << 16);
    let region = Region::import(fd, 0, 1 << 16, MemoryKind::Shared, false).unwrap();
    let both = Rights::READ.and(Rights::WRITE);
    let error = side.interface.register(0, &region, both).unwrap_err();
    assert!(
        matches!(error, Error::Unsupported { .. }) && error.to_string().contains("reading only"),
        "{error}"
    );
    let id = side.interface.register(0, &region, Rights::READ).unwrap();
    side.interface.deregister(id).unwrap();
}
