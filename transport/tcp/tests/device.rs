//! Puts and gets from and to memory of a device, which takes its time, in any order, and fails.

mod common;

use std::time::Duration;

use common::drawn::Drawn;
use common::{Node, Policy, Random, drive, pair};
use moai_memory::sim::{Faults, SimConfig, SimDevice};
use moai_memory::{MemoryKind, Region, Span};
use moai_transport::{
    Completion, Fault, Interface, Operation, PeerId, Pieces, Posted, Reach, Refusal, Rights, Token,
};
use moai_transport_tcp::TcpConfig;

const SIZES: [usize; 3] = [3 << 20, 1 << 20, 2 << 20];

fn device(seed: u64, faults: Faults) -> SimDevice {
    SimDevice::new(SimConfig {
        seed,
        delay: Duration::ZERO..Duration::from_micros(300),
        reorder: true,
        faults,
    })
}

/// What the regions of one end are.
#[derive(Clone, Copy, Debug)]
enum Place {
    Host,
    Device,
    /// The first is the host's, the others are two devices'.
    Both,
}

struct End {
    node: Node,
    devices: [SimDevice; 2],
}

impl End {
    fn new(mut node: Node, place: Place, faults: Faults, random: &mut Random) -> Self {
        let devices = [(); 2].map(|()| device(random.next(), faults));
        node.recorder.regions.clear();
        for (index, size) in SIZES.into_iter().enumerate() {
            let of = match (place, index) {
                (Place::Host, _) | (Place::Both, 0) => None,
                (Place::Both, 1) => Some(&devices[1]),
                _ => Some(&devices[0]),
            };
            let bytes = random.bytes(size);
            node.recorder.regions.push(match of {
                None => Region::from_host(bytes),
                Some(device) => {
                    let region = device.allocate(size as u64).unwrap();
                    device.poke(&whole(&region), &bytes).unwrap();
                    region
                }
            });
        }
        Self { node, devices }
    }

    fn snapshot(&self) -> Vec<Vec<u8>> {
        let regions = self.node.recorder.regions.iter();
        let all = regions.map(|region| match region.kind() {
            MemoryKind::Sim => {
                let of = region.hold().domain().unwrap().id();
                let mut devices = self.devices.iter();
                let device = devices.find(|device| moai_memory::Domain::id(*device) == of);
                device.unwrap().peek(&whole(region)).unwrap()
            }
            _ => region.as_slice().to_vec(),
        });
        all.collect()
    }
}

fn whole(region: &Region) -> Span {
    Span {
        hold: region.hold(),
        offset: 0,
        bytes: region.len(),
    }
}

/// Lists of which no two pieces overlap: what is copied in any order is then known.
fn disjoint(random: &mut Random, total: u64, largest: u32) -> Drawn {
    loop {
        let drawn = Drawn::new(random, &SIZES, total, largest);
        let mut bytes = drawn.bytes();
        bytes.sort_unstable();
        bytes.dedup();
        if bytes.len() as u64 == total {
            return drawn;
        }
    }
}

struct Scene {
    near: End,
    far: End,
    to: PeerId,
    from: PeerId,
    remote: Vec<u32>,
    registered: Vec<moai_transport::RegistrationId>,
    random: Random,
}

const ALL: Rights = Rights::READ.and(Rights::WRITE);

impl Scene {
    fn new(seed: u64, lanes: u32, places: [Place; 2], faults: [Faults; 2]) -> Self {
        println!("seed {seed} lanes {lanes} {places:?} {faults:?}");
        let mut random = Random(seed);
        let config = TcpConfig {
            lanes,
            ..TcpConfig::default()
        };
        let mut near = Node::new(config.clone(), Policy::Staged);
        let mut far = Node::listening(config, Policy::Staged);
        let (to, from) = pair(&mut near, &mut far);
        let near = End::new(near, places[0], faults[0], &mut random);
        let far = End::new(far, places[1], faults[1], &mut random);
        let mut scene = Self {
            near,
            far,
            to,
            from,
            remote: Vec::new(),
            registered: Vec::new(),
            random,
        };
        for index in 0..SIZES.len() {
            let region = &scene.far.node.recorder.regions[index];
            let interface = &mut scene.far.node.interface;
            let id = interface.register(index as u32, region, ALL).unwrap();
            let key = interface.remote_key(from, id).unwrap();
            let imported = scene.near.node.interface.import(to, &key).unwrap();
            scene.remote.push(imported);
            scene.registered.push(id);
        }
        scene
    }

    fn post(&mut self, is_put: bool, local: &[Pieces<'_>], remote: &[Pieces<'_>], token: u64) {
        let memory = &mut self.near.node.recorder.regions;
        let interface = &mut self.near.node.interface;
        let (to, token) = (self.to, Token(token));
        let posted = if is_put {
            interface.put(memory, to, local, remote, token)
        } else {
            interface.get(memory, to, local, remote, token)
        };
        assert_eq!(posted.unwrap(), Posted::InFlight(token));
    }

    /// One list of a MiB on either side.
    fn post_whole(&mut self, is_put: bool, token: u64) {
        let of = |region| Pieces {
            region,
            bytes: 4096,
            count: 256,
            stride: 4096,
            offsets: &[0],
        };
        let remote = self.remote[1];
        self.post(is_put, &[of(2)], &[of(remote)], token);
    }

    fn poll(&mut self) {
        self.near.node.poll(Duration::from_micros(500));
        self.far.node.poll(Duration::from_micros(500));
    }

    fn completion(&mut self) -> Completion {
        loop {
            if let Some(completion) = self.near.node.interface.completion() {
                return completion;
            }
            self.poll();
        }
    }

    /// Puts and gets at random, one after the other. Returns in which ways they ended, and what those did.
    fn exchange(&mut self, turns: u64) -> Vec<(bool, Result<(), Fault>)> {
        let names: Vec<u32> = (0..SIZES.len() as u32).collect();
        let mut outcomes = Vec::new();
        for turn in 0..turns {
            let largest = [64, 4096, 300_000][self.random.below(3) as usize];
            // Short pieces have gaps longer than themselves between them, and must fit as well.
            let total = u64::from(self.random.size((largest * 2048).min(1 << 20)));
            let local = disjoint(&mut self.random, total, largest);
            let remote = disjoint(&mut self.random, total, largest);
            let is_put = self.random.below(2) == 0;
            let before = [self.near.snapshot(), self.far.snapshot()];
            let remote_names = self.remote.clone();
            let lists = [local.pieces(&names), remote.pieces(&remote_names)];
            self.post(is_put, &lists[0], &lists[1], turn);
            let completion = self.completion();
            assert_eq!(completion.token, Token(turn));
            if !outcomes.contains(&(is_put, completion.outcome)) {
                outcomes.push((is_put, completion.outcome));
            }
            let [mut near, mut far] = before;
            let after = [self.near.snapshot(), self.far.snapshot()];
            for ((near_region, near_at), (far_region, far_at)) in
                local.bytes().into_iter().zip(remote.bytes())
            {
                let (near, far) = (
                    &mut near[near_region][near_at],
                    &mut far[far_region][far_at],
                );
                // Of what has failed, any part may have been written; nothing else, and nowhere else.
                match (is_put, completion.outcome) {
                    (true, Ok(())) => *far = *near,
                    (false, Ok(())) => *near = *far,
                    (true, Err(_)) if after[1][far_region][far_at] == *near => *far = *near,
                    (false, Err(_)) if after[0][near_region][near_at] == *far => *near = *far,
                    _ => {}
                }
            }
            assert!(after == [near, far], "turn {turn} put {is_put}");
        }
        outcomes
    }
}

#[test]
fn every_byte_goes_where_the_lists_say_on_whatever_side_the_device_is() {
    let mut seed = 0;
    for places in [
        [Place::Device, Place::Host],
        [Place::Host, Place::Device],
        [Place::Device, Place::Device],
        [Place::Both, Place::Both],
    ] {
        for lanes in [1, 3] {
            seed += 1;
            let mut scene = Scene::new(seed, lanes, places, [Faults::default(); 2]);
            let outcomes = scene.exchange(30);
            assert!(outcomes.iter().all(|(_, outcome)| outcome.is_ok()));
        }
    }
}

#[test]
fn a_copy_that_fails_fails_its_operation_once_and_nothing_else() {
    let failing = Faults {
        failed_per_mille: 150,
        ..Faults::default()
    };
    for (seed, lanes, places, faults, expected) in [
        (
            1,
            1,
            [Place::Device, Place::Host],
            [failing, Faults::default()],
            Fault::Copy,
        ),
        (
            2,
            3,
            [Place::Host, Place::Device],
            [Faults::default(), failing],
            Fault::Refused(Refusal::Copy),
        ),
    ] {
        let mut scene = Scene::new(seed, lanes, places, faults);
        let outcomes = scene.exchange(60);
        for is_put in [true, false] {
            assert!(outcomes.contains(&(is_put, Err(expected))), "{outcomes:?}");
            assert!(outcomes.contains(&(is_put, Ok(()))), "{outcomes:?}");
        }
        assert_eq!(outcomes.len(), 4, "{outcomes:?}");
        assert!(scene.near.node.recorder.why(scene.to).is_none());
    }
}

#[test]
fn many_operations_at_once_end_once_each() {
    for lanes in [1, 2] {
        let places = [Place::Device, Place::Device];
        let mut scene = Scene::new(5, lanes, places, [Faults::default(); 2]);
        for token in 0..100 {
            scene.post_whole(token % 2 == 0, token);
        }
        let mut ended: Vec<u64> = (0..100)
            .map(|_| {
                let completion = scene.completion();
                assert_eq!(completion.outcome, Ok(()));
                completion.token.0
            })
            .collect();
        ended.sort_unstable();
        assert!(ended.into_iter().eq(0..100));
        scene.poll();
        assert_eq!(scene.near.node.interface.completion(), None);
    }
}

/// How a connection goes away in the middle.
#[derive(Clone, Copy, Debug)]
enum Leaving {
    Close,
    Finish,
    PeerCloses,
}

#[test]
fn when_a_peer_goes_while_copies_run_nothing_is_written_once_that_was_said() {
    for (seed, leaving) in [Leaving::Close, Leaving::Finish, Leaving::PeerCloses]
        .into_iter()
        .cycle()
        .take(36)
        .enumerate()
    {
        let lanes = 1 + seed as u32 % 2;
        let places = [Place::Device, Place::Device];
        let mut scene = Scene::new(seed as u64, lanes, places, [Faults::default(); 2]);
        println!("{leaving:?}");
        for token in 0..6 {
            scene.post_whole(seed % 4 < 2, token);
        }
        for _ in 0..seed {
            scene.near.node.poll(Duration::from_micros(50));
            scene.far.node.poll(Duration::from_micros(50));
        }
        let (to, from) = (scene.to, scene.from);
        match leaving {
            Leaving::Close => scene.near.node.interface.close(to),
            Leaving::Finish => scene.near.node.interface.finish(to),
            Leaving::PeerCloses => {
                scene.far.node.interface.close(from);
                scene.near.node.until(|recorder| recorder.why(to).is_some());
            }
        }
        let before = scene.near.snapshot();
        let mut ended = Vec::new();
        while let Some(completion) = scene.near.node.interface.completion() {
            assert!(matches!(completion.outcome, Ok(()) | Err(Fault::PeerLost)));
            ended.push(completion.token.0);
        }
        ended.sort_unstable();
        assert_eq!(ended, [0, 1, 2, 3, 4, 5]);
        for device in scene.near.devices.iter().chain(&scene.far.devices) {
            device.synchronize();
        }
        for _ in 0..20 {
            scene.near.node.poll(Duration::from_micros(50));
            scene.far.node.poll(Duration::from_micros(50));
        }
        assert!(before == scene.near.snapshot());
        // The interfaces go on.
        scene.near.node.recorder.take();
        scene.far.node.recorder.take();
        let (again, _) = pair(&mut scene.near.node, &mut scene.far.node);
        assert_ne!(again, to);
    }
}

#[test]
fn no_copy_outlasts_the_registration() {
    for seed in 0..10 {
        let places = [Place::Host, Place::Device];
        let mut scene = Scene::new(seed, 1, places, [Faults::default(); 2]);
        for token in 0..4 {
            scene.post_whole(true, token);
        }
        for _ in 0..seed {
            scene.near.node.poll(Duration::ZERO);
            scene.far.node.poll(Duration::ZERO);
        }
        let id = scene.registered[1];
        scene.far.node.interface.deregister(id).unwrap();
        let before = scene.far.snapshot();
        for _ in 0..4 {
            let outcome = scene.completion().outcome;
            assert!(
                matches!(outcome, Ok(()) | Err(Fault::Refused(Refusal::Generation))),
                "{outcome:?}"
            );
        }
        assert!(before == scene.far.snapshot());
    }
}

#[test]
fn a_peer_of_the_host_is_served_while_copies_of_others_run() {
    let slow = SimConfig {
        delay: Duration::from_millis(20)..Duration::from_millis(21),
        ..SimConfig::default()
    };
    let places = [Place::Host, Place::Host];
    let mut scene = Scene::new(3, 1, places, [Faults::default(); 2]);
    let region = SimDevice::new(slow).allocate(8 << 20).unwrap();
    let far = &mut scene.far.node;
    far.recorder.regions.push(region);
    let id = far
        .interface
        .register(3, &far.recorder.regions[3], ALL)
        .unwrap();
    let mut other = Node::new(TcpConfig::default(), Policy::Staged);
    let (to, from) = pair(&mut other, far);
    let key = far.interface.remote_key(from, id).unwrap();
    let remote = other.interface.import(to, &key).unwrap();
    other.recorder.regions = vec![Region::from_host(vec![7; 8 << 20])];
    let all = |region| Pieces {
        region,
        bytes: 8 << 20,
        count: 1,
        stride: 0,
        offsets: &[0],
    };
    let memory = &mut other.recorder.regions;
    let _ = other
        .interface
        .put(memory, to, &[all(0)], &[all(remote)], Token(0))
        .unwrap();
    let mut served = 0;
    let mut slowed = None;
    while slowed.is_none() {
        scene.post_whole(served % 2 == 0, served);
        let mut ended = false;
        drive(
            &mut [&mut scene.near.node, &mut scene.far.node, &mut other],
            |_| std::mem::replace(&mut ended, true),
        );
        while scene.near.node.interface.completion().is_none() {
            scene.poll();
            other.poll(Duration::ZERO);
        }
        served += 1;
        slowed = other.interface.completion();
    }
    assert_eq!(slowed.unwrap().outcome, Ok(()));
    // 32 copies of 20 ms, in which the other peer would have been served a few times at most.
    assert!(served > 50, "{served}");
}

#[test]
fn the_interface_says_that_it_stages() {
    let scene = Scene::new(1, 1, [Place::Host, Place::Device], [Faults::default(); 2]);
    let can = scene.near.node.interface.capabilities();
    assert_eq!(can.reach(Operation::Put, MemoryKind::Sim), Reach::Staged);
    assert_eq!(can.reach(Operation::Get, MemoryKind::Sim), Reach::Staged);
    assert_eq!(can.reach(Operation::Put, MemoryKind::Host), Reach::Direct);
    let why = scene.near.node.interface.path(scene.to).unwrap().why;
    assert!(!why.contains("staging"), "{why}");
    let why = scene.far.node.interface.path(scene.from).unwrap().why;
    assert!(why.contains("staging"), "{why}");
}
