//! The transport in plain C.

use moai_memory::Region;
use moai_transport::{
    Batch, Error, Interface, KeyError, Obstacle, PeerId, Piece, Pieces, PiecesError, Posted,
    Provider, Refusal, Rights, Token,
};
use moai_transport_plugin::{Opening, load};

use crate::compiled;
use crate::told::{Told, until};

struct Side {
    interface: Box<dyn Interface + Send>,
    told: Told,
}

impl Side {
    fn new(listens: bool) -> Self {
        let plugin = load(&compiled("loop.c", &[])).unwrap();
        let provider = plugin.transports[0].clone().opened(Opening {
            listens,
            ..Opening::default()
        });
        assert_eq!(provider.name(), "loop");
        assert!(
            provider
                .probe()
                .unwrap()
                .starts_with("interfaces of this process; ")
        );
        let told = Told {
            regions: (0..3_u8)
                .map(|byte| Region::from_host(vec![byte; 1000]))
                .collect(),
            ..Told::default()
        };
        let elsewhere = provider.obstacle(&"loop:63".parse().unwrap());
        assert!(matches!(elsewhere, Some(Obstacle::Elsewhere(_))));
        Self {
            interface: provider.open().unwrap(),
            told,
        }
    }
}

fn both(near: &mut Side, far: &mut Side, what: &str, done: impl Fn(&[&Told]) -> bool) {
    let mut sides = [
        (&mut near.interface, &mut near.told),
        (&mut far.interface, &mut far.told),
    ];
    until(&mut sides, what, done);
}

fn connected() -> (Side, Side, PeerId, PeerId) {
    let (mut near, mut far) = (Side::new(false), Side::new(true));
    let address = far.interface.addresses().remove(0);
    let to = near.interface.connect(&address).unwrap();
    both(&mut near, &mut far, "a connection", |told| {
        told.iter().all(|told| told.connected.len() == 1)
    });
    assert_eq!(near.told.connected, [(to, false)]);
    let from = far.told.connected[0].0;
    assert!(far.told.connected[0].1);
    let path = near.interface.path(to).unwrap();
    assert_eq!((path.provider, path.peer), ("loop", address));
    (near, far, to, from)
}

#[test]
fn messages_and_batches_arrive_staged_and_in_pieces() {
    let (mut near, mut far, to, _) = connected();
    for message in [&b"hello"[..], b"", b"world"] {
        assert_eq!(near.interface.send(to, message).unwrap(), Posted::Done);
    }
    let batch = Batch { id: 5, bytes: 300 };
    let mut fill = |room: &mut [u8]| room.fill(0x5a);
    assert_eq!(
        near.interface.post(to, batch, &mut fill).unwrap(),
        Posted::Done
    );
    both(&mut near, &mut far, "a batch", |told| {
        told[1].landed.len() == 1
    });
    assert_eq!(far.told.messages, [&b"hello"[..], b"", b"world"]);
    assert_eq!(far.told.landed, [Some(vec![0x5a; 300])]);
    let piece = |region, offset, bytes| Piece {
        region,
        offset,
        bytes,
    };
    far.told.pieces = vec![piece(0, 10, 100), piece(2, 800, 200)];
    assert_eq!(
        near.interface.post(to, batch, &mut fill).unwrap(),
        Posted::Done
    );
    both(&mut near, &mut far, "a batch", |told| {
        told[1].landed.len() == 2
    });
    assert_eq!(far.told.landed[1], None);
    let seen = far.told.regions[0].as_slice();
    assert!(seen[10..110].iter().all(|byte| *byte == 0x5a) && seen[9] == 0 && seen[110] == 0);
    let seen = far.told.regions[2].as_slice();
    assert!(seen[800..].iter().all(|byte| *byte == 0x5a) && seen[799] == 2);
    assert_eq!(far.interface.stats().direct_bytes, 300);
    // A queue of 64 frames, and room again.
    let mut sent = 0;
    while near.interface.send(to, b"x").unwrap() == Posted::Done {
        sent += 1;
        assert!(sent < 1000, "nothing bounds the queue");
    }
    both(&mut near, &mut far, "room", |told| told[0].writable == 1);
    assert_eq!(near.interface.stats().busy, 1);
}

#[test]
fn puts_and_gets_move_strided_pieces_and_refusals_have_their_type() {
    let (mut near, mut far, to, from) = connected();
    let rights = Rights::READ.and(Rights::WRITE);
    let id = far
        .interface
        .register(1, &far.told.regions[1], rights)
        .unwrap();
    let key = far.interface.remote_key(from, id).unwrap();
    let number = near.interface.import(to, &key).unwrap();
    let wrong = near.interface.import(to, &[0; 63]);
    assert!(
        matches!(wrong, Err(Error::Key(KeyError::Length { bytes: 63 }))),
        "{wrong:?}"
    );
    let pieces = |region, bytes, count, stride, offsets| Pieces {
        region,
        bytes,
        count,
        stride,
        offsets,
    };
    near.told.regions[0] = Region::from_host((0..1000).map(|at| at as u8).collect());
    let local = [
        pieces(0, 10, 3, 20, &[0, 500][..]),
        pieces(2, 40, 1, 0, &[7]),
    ];
    let remote = [pieces(number, 25, 2, 100, &[0, 600])];
    let expected: Vec<u8> = (0..6_usize)
        .flat_map(|at| (0..10).map(move |byte| ([0, 500][at / 3] + at % 3 * 20 + byte) as u8))
        .chain([2; 40])
        .collect();
    let mut call = |put: bool, local: &[Pieces<'_>], remote: &[Pieces<'_>]| {
        let memory = &mut near.told.regions;
        if put {
            near.interface.put(memory, to, local, remote, Token(1))
        } else {
            near.interface.get(memory, to, local, remote, Token(1))
        }
    };
    assert_eq!(call(true, &local, &remote).unwrap(), Posted::Done);
    let seen: Vec<u8> = [0, 100, 600, 700]
        .iter()
        .flat_map(|&at| far.told.regions[1].as_slice()[at..at + 25].to_vec())
        .collect();
    assert_eq!(seen, expected);
    let back = [pieces(1, 100, 1, 0, &[300])];
    assert_eq!(call(false, &back, &remote).unwrap(), Posted::Done);
    let refused = call(true, &[pieces(9, 1, 1, 0, &[0])], &remote);
    assert!(
        matches!(refused, Err(Error::NotLent { region: 9 })),
        "{refused:?}"
    );
    let refused = call(true, &back, &[pieces(number, 100, 1, 0, &[950])]);
    assert!(
        matches!(refused, Err(Error::Refused(Refusal::Bounds))),
        "{refused:?}"
    );
    let refused = call(true, &back, &[pieces(99, 100, 1, 0, &[0])]);
    assert!(
        matches!(refused, Err(Error::NotImported { region: 99 })),
        "{refused:?}"
    );
    let refused = call(true, &[pieces(1, 100, 1, 0, &[901])], &remote);
    let outside = matches!(
        refused,
        Err(Error::Pieces {
            side: "local",
            cause: PiecesError::OutOfBounds { region: 1, .. }
        })
    );
    assert!(outside, "{refused:?}");
    assert_eq!(near.told.regions[1].as_slice()[300..400], expected);
    assert_eq!(
        (near.interface.stats().puts, near.interface.stats().gets),
        (1, 1)
    );

    far.interface.deregister(id).unwrap();
    let memory = &mut near.told.regions;
    let refused = near.interface.get(memory, to, &back, &remote, Token(2));
    assert!(
        matches!(refused, Err(Error::Refused(Refusal::Generation))),
        "{refused:?}"
    );
    let stale = far.interface.deregister(id);
    assert!(
        matches!(stale, Err(Error::NotRegistered { .. })),
        "{stale:?}"
    );
    let mapped = near.interface.map(to, number);
    assert!(
        matches!(mapped, Err(Error::Unsupported { .. })),
        "{mapped:?}"
    );
}

#[test]
fn connections_end_once_and_say_why() {
    let (mut near, mut far, to, from) = connected();
    let _ = near.interface.send(to, b"last").unwrap();
    near.interface.finish(to);
    let again = near.interface.send(to, b"x");
    assert!(matches!(again, Err(Error::Finishing { .. })), "{again:?}");
    both(&mut near, &mut far, "the ends", |told| {
        told.iter().all(|told| told.closed.len() == 1)
    });
    assert_eq!(near.told.closed, [(to, "ByUs".to_owned())]);
    assert_eq!(far.told.closed, [(from, "ByPeer".to_owned())]);
    assert_eq!(far.told.messages, [b"last"]);
    let gone = near.interface.send(to, b"x");
    assert!(matches!(gone, Err(Error::NoSuchPeer { .. })), "{gone:?}");

    let (mut near, mut far, to, _) = connected();
    let _ = near.interface.send(to, b"unwanted").unwrap();
    both(&mut near, &mut far, "the ends", |told| {
        told.iter().all(|told| told.closed.len() == 1)
    });
    assert!(
        far.told.closed[0].1.contains("Rejected"),
        "{:?}",
        far.told.closed
    );
    let nobody = near.interface.connect(&"loop:63".parse().unwrap());
    assert!(
        matches!(nobody, Err(Error::Unreachable { .. })),
        "{nobody:?}"
    );
    let other = near.interface.connect(&"tcp:127.0.0.1:1".parse().unwrap());
    assert!(matches!(other, Err(Error::Unreachable { .. })), "{other:?}");
}
