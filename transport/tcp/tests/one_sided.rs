//! Puts and gets between lists of pieces, against a copy byte by byte.

mod common;

use std::time::Duration;

use common::drawn::Drawn;
use common::{Node, Policy, Random, drive, pair};
use moai_memory::{MemoryKind, Region};
use moai_transport::{
    Completion, Error, Fault, Interface, PeerId, Pieces, Posted, Refusal, Rights, Token,
};
use moai_transport_tcp::TcpConfig;

/// Regions of the sizes, filled at random.
fn regions(random: &mut Random, sizes: &[usize]) -> Vec<Region> {
    let filled = sizes
        .iter()
        .map(|&size| Region::from_host(random.bytes(size)));
    filled.collect()
}

/// Two nodes, each with its regions registered and imported by the other.
struct Scene {
    near: Node,
    far: Node,
    to: PeerId,
    from: PeerId,
    /// Numbers of the far regions.
    remote: Vec<u32>,
}

const ALL: Rights = Rights::READ.and(Rights::WRITE);

impl Scene {
    fn new(lanes: [u32; 2], random: &mut Random, sizes: &[usize]) -> Self {
        let config = |lanes| TcpConfig {
            lanes,
            ..TcpConfig::default()
        };
        let mut near = Node::new(config(lanes[0]), Policy::Staged);
        let mut far = Node::listening(config(lanes[1]), Policy::Staged);
        near.recorder.regions = regions(random, sizes);
        far.recorder.regions = regions(random, sizes);
        let (to, from) = if lanes[1] == 1 || lanes[0] > 1 {
            pair(&mut near, &mut far)
        } else {
            // Who connects with a single lane is known by its first frame.
            let to = near
                .interface
                .connect(&moai_transport_tcp::tcp_address(far.address()))
                .unwrap();
            near.send(to, b"hello");
            drive(&mut [&mut near, &mut far], |nodes| {
                !nodes[1].recorder.incoming().is_empty()
            });
            (to, far.recorder.incoming()[0])
        };
        let mut scene = Self {
            near,
            far,
            to,
            from,
            remote: Vec::new(),
        };
        scene.remote = (0..sizes.len())
            .map(|index| scene.import(index, ALL))
            .collect();
        scene
    }

    fn key(&mut self, index: usize, rights: Rights) -> [u8; 64] {
        let region = &self.far.recorder.regions[index];
        let id = self
            .far
            .interface
            .register(index as u32, region, rights)
            .unwrap();
        self.far.interface.remote_key(self.from, id).unwrap()
    }

    fn import(&mut self, index: usize, rights: Rights) -> u32 {
        let key = self.key(index, rights);
        self.near.interface.import(self.to, &key).unwrap()
    }

    fn post(
        &mut self,
        is_put: bool,
        local: &[Pieces<'_>],
        remote: &[Pieces<'_>],
        token: u64,
    ) -> Result<Posted, Error> {
        let memory = &mut self.near.recorder.regions;
        let (to, token) = (self.to, Token(token));
        if is_put {
            self.near.interface.put(memory, to, local, remote, token)
        } else {
            self.near.interface.get(memory, to, local, remote, token)
        }
    }

    fn completion(&mut self) -> Completion {
        loop {
            if let Some(completion) = self.near.interface.completion() {
                return completion;
            }
            self.near.poll(Duration::from_millis(1));
            self.far.poll(Duration::from_millis(1));
        }
    }
}

fn snapshot(regions: &[Region]) -> Vec<Vec<u8>> {
    regions
        .iter()
        .map(|region| region.as_slice().to_vec())
        .collect()
}

#[test]
fn every_byte_goes_where_the_lists_say_and_no_other_changes() {
    for (seed, lanes) in [[1, 1], [3, 3], [3, 1], [1, 3], [2, 16]]
        .into_iter()
        .enumerate()
    {
        println!("seed {seed} lanes {lanes:?}");
        let mut random = Random(seed as u64);
        let sizes = [6 << 20, 1 << 20, 3 << 20];
        let mut scene = Scene::new(lanes, &mut random, &sizes);
        let names: Vec<u32> = (0..sizes.len() as u32).collect();
        for turn in 0..60_u64 {
            let total = u64::from(random.size(3 << 20));
            let largest = [64, 4096, 300_000][random.below(3) as usize];
            let local = Drawn::new(&mut random, &sizes, total, largest);
            let largest = [64, 4096, 300_000][random.below(3) as usize];
            let remote = Drawn::new(&mut random, &sizes, total, largest);
            let is_put = random.below(2) == 0;
            let mut near = snapshot(&scene.near.recorder.regions);
            let mut far = snapshot(&scene.far.recorder.regions);
            for ((here, at), (there, to)) in local.bytes().into_iter().zip(remote.bytes()) {
                if is_put {
                    far[there][to] = near[here][at];
                } else {
                    near[here][at] = far[there][to];
                }
            }
            let imported = scene.remote.clone();
            let posted = scene.post(
                is_put,
                &local.pieces(&names),
                &remote.pieces(&imported),
                turn,
            );
            assert_eq!(posted.unwrap(), Posted::InFlight(Token(turn)));
            let completion = scene.completion();
            assert_eq!(
                (completion.token, completion.outcome),
                (Token(turn), Ok(()))
            );
            assert!(
                near == snapshot(&scene.near.recorder.regions),
                "near memory, turn {turn}"
            );
            assert!(
                far == snapshot(&scene.far.recorder.regions),
                "far memory, turn {turn}"
            );
        }
        let (ours, theirs) = (scene.near.interface.stats(), scene.far.interface.stats());
        assert_eq!(ours.puts + ours.gets, 60);
        assert!(theirs.puts_in >= ours.puts && theirs.gets_in >= ours.gets);
    }
}

#[test]
fn payload_of_long_pieces_passes_no_buffer_wherever_reads_end() {
    let mut random = Random(7);
    const BYTES: u64 = 8 << 20;
    let mut scene = Scene::new([1, 1], &mut random, &[BYTES as usize]);
    for (turn, piece) in [4 << 10, 20 << 10, 64 << 10].into_iter().enumerate() {
        // Back to front here: no two pieces are neighbours on both sides.
        let there: Vec<u64> = (0..BYTES / piece).map(|n| n * piece).collect();
        let here: Vec<u64> = there.iter().copied().rev().collect();
        let pieces = |offsets, region| Pieces {
            region,
            bytes: piece as u32,
            count: 1,
            stride: 0,
            offsets,
        };
        let (local, remote) = ([pieces(&here, 0)], [pieces(&there, scene.remote[0])]);
        for is_put in [true, false] {
            let copied = |scene: &Scene| match is_put {
                true => scene.far.interface.stats().copied_bytes,
                false => scene.near.interface.stats().copied_bytes,
            };
            let before = copied(&scene);
            let posted = scene.post(is_put, &local, &remote, turn as u64);
            assert!(matches!(posted, Ok(Posted::InFlight(_))), "{posted:?}");
            assert_eq!(scene.completion().outcome, Ok(()));
            let copied = copied(&scene) - before;
            assert!(
                copied < BYTES / 16,
                "{copied} of {BYTES} bytes, in pieces of {piece}, put: {is_put}"
            );
        }
    }
}

#[test]
fn many_operations_complete_and_a_flush_comes_after_them() {
    let mut random = Random(5);
    let mut scene = Scene::new([3, 3], &mut random, &[1 << 20]);
    let piece = |offset: &'static [u64]| Pieces {
        region: 0,
        bytes: 100,
        count: 3,
        stride: 200,
        offsets: offset,
    };
    let mut posted = 0;
    while let Posted::InFlight(_) = scene
        .post(
            posted % 2 == 0,
            &[piece(&[0, 7000])],
            &[piece(&[900, 5000])],
            posted,
        )
        .unwrap()
    {
        posted += 1;
    }
    assert_eq!(posted, 1024);
    let busy = scene.near.interface.flush(scene.to, Token(9999)).unwrap();
    assert_eq!(busy, Posted::Busy);
    let mut seen = vec![false; 1024];
    let first = scene.completion();
    seen[first.token.0 as usize] = true;
    let flush = scene.near.interface.flush(scene.to, Token(9999)).unwrap();
    let mut flushed = flush == Posted::Done;
    while !flushed || seen.contains(&false) {
        let completion = scene.completion();
        assert_eq!(completion.outcome, Ok(()));
        if completion.token == Token(9999) {
            assert!(!seen.contains(&false), "flushed before all had ended");
            flushed = true;
        } else {
            assert!(!std::mem::replace(
                &mut seen[completion.token.0 as usize],
                true
            ));
        }
    }
    let done = scene.near.interface.flush(scene.to, Token(1)).unwrap();
    assert_eq!(done, Posted::Done);
}

#[test]
fn what_a_key_does_not_cover_is_refused_and_the_rest_lives_on() {
    let mut random = Random(6);
    let mut scene = Scene::new([1, 1], &mut random, &[1 << 20]);
    let before = snapshot(&scene.far.recorder.regions);
    let piece = |region, offsets: &'static [u64]| Pieces {
        region,
        bytes: 300_000,
        count: 1,
        stride: 0,
        offsets,
    };
    let good = scene.key(0, ALL);
    let read_only = scene.key(0, Rights::READ);
    let mut forge = |from: [u8; 64], at: usize, change: &dyn Fn(u8) -> u8| {
        let mut key = from;
        key[at] = change(key[at]);
        scene.near.interface.import(scene.to, &key).unwrap()
    };
    let forged = [
        (forge(good, 8, &|byte| byte ^ 1), Refusal::Epoch),
        (forge(good, 20, &|byte| byte + 1), Refusal::Generation),
        (forge(good, 16, &|byte| byte + 9), Refusal::Generation),
        (forge(good, 26, &|_| 255), Refusal::Bounds),
        (forge(read_only, 6, &|_| 3), Refusal::Rights),
    ];
    for (region, refusal) in forged {
        let offsets: &[u64] = if refusal == Refusal::Bounds {
            &[1 << 20]
        } else {
            &[0]
        };
        let remote = [Pieces {
            offsets,
            ..piece(region, &[])
        }];
        for is_put in [true, false] {
            if !is_put && refusal == Refusal::Rights {
                continue;
            }
            let posted = scene.post(is_put, &[piece(0, &[0])], &remote, 1).unwrap();
            assert_eq!(posted, Posted::InFlight(Token(1)));
            assert_eq!(scene.completion().outcome, Err(Fault::Refused(refusal)));
        }
    }
    assert!(before == snapshot(&scene.far.recorder.regions));
    let remote = scene.remote[0];
    let _ = scene
        .post(true, &[piece(0, &[1])], &[piece(remote, &[2])], 2)
        .unwrap();
    assert_eq!(scene.completion().outcome, Ok(()));
    assert_eq!(scene.far.interface.stats().refused, 9);
}

#[test]
fn arguments_that_cannot_be_are_refused_before_anything_is_sent() {
    let mut random = Random(7);
    let mut scene = Scene::new([1, 1], &mut random, &[1000]);
    let remote = scene.remote[0];
    let read_only = scene.import(0, Rights::READ);
    let piece = |region, bytes, offsets: &'static [u64]| Pieces {
        region,
        bytes,
        count: 1,
        stride: 0,
        offsets,
    };
    let mut refused = |local, remote| scene.post(true, &[local], &[remote], 1).unwrap_err();
    assert!(matches!(
        refused(piece(1, 1, &[0]), piece(remote, 1, &[0])),
        Error::NotLent { region: 1 }
    ));
    assert!(matches!(
        refused(piece(0, 1, &[0]), piece(77, 1, &[0])),
        Error::NotImported { region: 77 }
    ));
    assert!(matches!(
        refused(piece(0, 1, &[1000]), piece(remote, 1, &[0])),
        Error::Pieces { side: "local", .. }
    ));
    assert!(matches!(
        refused(piece(0, 1, &[0]), piece(remote, 1, &[1000])),
        Error::Pieces { side: "remote", .. }
    ));
    assert!(matches!(
        refused(piece(0, 2, &[0]), piece(remote, 1, &[0])),
        Error::Unequal {
            local: 2,
            remote: 1
        }
    ));
    assert!(matches!(
        refused(piece(0, 1, &[0]), piece(read_only, 1, &[0])),
        Error::Refused(Refusal::Rights)
    ));
    let none = scene.post(true, &[], &[], 1).unwrap();
    assert_eq!(none, Posted::Done);
}

#[test]
fn memory_that_can_only_be_loaded_from_is_never_written() {
    let mut random = Random(9);
    let mut scene = Scene::new([1, 1], &mut random, &[1000]);
    let lent = Region::shared_zeroed(4096).unwrap();
    let file = lent.hold().export().unwrap().fd.try_clone_to_owned();
    let loaded = Region::import(file.unwrap(), 0, 4096, MemoryKind::Shared, false).unwrap();
    let register = |interface: &mut dyn Interface, rights| interface.register(1, &loaded, rights);
    let refused = register(&mut scene.far.interface, ALL).unwrap_err();
    assert!(matches!(refused, Error::Unsupported { .. }), "{refused:?}");
    register(&mut scene.near.interface, Rights::READ).unwrap();
    scene.near.recorder.regions.push(loaded);
    let remote = scene.remote[0];
    let piece = |region| Pieces {
        region,
        bytes: 700,
        count: 1,
        stride: 0,
        offsets: &[0],
    };
    let refused = scene
        .post(false, &[piece(1)], &[piece(remote)], 1)
        .unwrap_err();
    assert!(matches!(refused, Error::Unsupported { .. }), "{refused:?}");
    let posted = scene.post(true, &[piece(1)], &[piece(remote)], 2).unwrap();
    assert_eq!(posted, Posted::InFlight(Token(2)));
    assert_eq!(scene.completion().outcome, Ok(()));
    assert!(scene.far.recorder.regions[0].as_slice()[..700] == [0; 700]);
}

#[test]
fn nothing_is_written_after_deregistering_and_the_operation_is_refused() {
    for lanes in [1, 3] {
        let mut random = Random(8);
        let mut scene = Scene::new([lanes, lanes], &mut random, &[24 << 20]);
        let key = scene.key(0, Rights::WRITE);
        let only = scene.near.interface.import(scene.to, &key).unwrap();
        let id = scene
            .far
            .interface
            .register(0, &scene.far.recorder.regions[0], Rights::WRITE)
            .unwrap();
        scene.far.interface.deregister(id).unwrap();
        let pieces = |region| Pieces {
            region,
            bytes: 8192,
            count: 2500,
            stride: 9000,
            offsets: &[0],
        };
        let _ = scene.post(true, &[pieces(0)], &[pieces(only)], 1).unwrap();
        for _ in 0..5 {
            scene.near.poll(Duration::ZERO);
            scene.far.poll(Duration::ZERO);
        }
        scene.far.interface.deregister(id).unwrap();
        let before = snapshot(&scene.far.recorder.regions);
        assert_eq!(
            scene.completion().outcome,
            Err(Fault::Refused(Refusal::Generation))
        );
        assert!(before == snapshot(&scene.far.recorder.regions));
        // Everything else goes on.
        let remote = scene.remote[0];
        let _ = scene
            .post(true, &[pieces(0)], &[pieces(remote)], 2)
            .unwrap();
        assert_eq!(scene.completion().outcome, Ok(()));
    }
}

#[test]
fn closing_completes_what_is_in_flight() {
    for finishing in [false, true] {
        let mut random = Random(9);
        let mut scene = Scene::new([2, 2], &mut random, &[8 << 20]);
        let remote = scene.remote[0];
        let whole = |region| Pieces {
            region,
            bytes: 8 << 20,
            count: 1,
            stride: 0,
            offsets: &[0],
        };
        for token in 0..4 {
            let _ = scene
                .post(token % 2 == 0, &[whole(0)], &[whole(remote)], token)
                .unwrap();
        }
        let _ = scene.near.interface.flush(scene.to, Token(4)).unwrap();
        if finishing {
            scene.near.interface.finish(scene.to);
        } else {
            scene.near.interface.close(scene.to);
        }
        let mut tokens = Vec::new();
        while let Some(completion) = scene.near.interface.completion() {
            assert_eq!(completion.outcome, Err(Fault::PeerLost));
            tokens.push(completion.token.0);
        }
        tokens.sort_unstable();
        assert_eq!(tokens, [0, 1, 2, 3, 4]);
        let from = scene.from;
        drive(&mut [&mut scene.near, &mut scene.far], |nodes| {
            nodes[1].recorder.why(from).is_some()
        });
    }
}

#[test]
fn memory_that_is_swapped_under_an_operation_fails_it_and_nothing_else() {
    let mut random = Random(10);
    let mut scene = Scene::new([1, 1], &mut random, &[16 << 20, 1000]);
    let remote = scene.remote.clone();
    let whole = |region| Pieces {
        region,
        bytes: 16 << 20,
        count: 1,
        stride: 0,
        offsets: &[0],
    };
    let small = |region| Pieces {
        region,
        bytes: 1000,
        count: 1,
        stride: 0,
        offsets: &[0],
    };
    let _ = scene
        .post(true, &[whole(0)], &[whole(remote[0])], 1)
        .unwrap();
    let _ = scene
        .post(true, &[small(1)], &[small(remote[1])], 2)
        .unwrap();
    let kept = std::mem::replace(
        &mut scene.near.recorder.regions[0],
        Region::from_host(vec![0; 16 << 20]),
    );
    let mut outcomes = [scene.completion(), scene.completion()];
    outcomes.sort_by_key(|completion| completion.token.0);
    assert!(
        matches!(outcomes[0].outcome, Err(Fault::Access { .. })),
        "{outcomes:?}"
    );
    assert_eq!(outcomes[1].outcome, Ok(()));
    drop(kept);
}

#[test]
fn answers_that_come_after_finishing_are_written_nowhere() {
    let mut random = Random(11);
    let mut scene = Scene::new([3, 3], &mut random, &[16 << 20]);
    let remote = scene.remote[0];
    let whole = |region| Pieces {
        region,
        bytes: 16 << 20,
        count: 1,
        stride: 0,
        offsets: &[0],
    };
    let _ = scene.post(false, &[whole(0)], &[whole(remote)], 1).unwrap();
    for _ in 0..4 {
        scene.near.poll(Duration::ZERO);
        scene.far.poll(Duration::ZERO);
    }
    scene.near.interface.finish(scene.to);
    assert_eq!(scene.completion().outcome, Err(Fault::PeerLost));
    // Another peer's operation takes the entry of the one that has ended.
    let (other, _) = pair(&mut scene.near, &mut scene.far);
    let from = *scene.far.recorder.incoming().last().unwrap();
    let id = scene
        .far
        .interface
        .register(0, &scene.far.recorder.regions[0], ALL)
        .unwrap();
    let key = scene.far.interface.remote_key(from, id).unwrap();
    let remote = scene.near.interface.import(other, &key).unwrap();
    let before = snapshot(&scene.near.recorder.regions);
    let small = |region| Pieces {
        region,
        bytes: 10,
        count: 1,
        stride: 0,
        offsets: &[0],
    };
    let memory = &mut scene.near.recorder.regions;
    let _ = scene
        .near
        .interface
        .put(memory, other, &[small(0)], &[small(remote)], Token(2))
        .unwrap();
    assert_eq!(scene.completion().outcome, Ok(()));
    let to = scene.to;
    drive(&mut [&mut scene.near, &mut scene.far], |nodes| {
        nodes[0].recorder.why(to).is_some()
    });
    assert!(before == snapshot(&scene.near.recorder.regions));
}
