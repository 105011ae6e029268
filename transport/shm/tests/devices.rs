//! Memory of devices: what a device of one side copies alone, and what becomes of an owner that waits for it.

mod common;

use std::io;
use std::time::{Duration, Instant};

use common::{HANG, RIGHTS, Random, Side, pair};
use moai_memory::sim::{SimConfig, SimDevice};
use moai_memory::{Region, Span};
use moai_transport::{Error, Fault, Interface, Pieces, Posted, Refusal};
use moai_transport_shm::ShmConfig;

const LEN: u64 = 1 << 20;

fn device(delay: Duration) -> SimDevice {
    SimDevice::new(SimConfig {
        delay: delay..delay,
        ..SimConfig::default()
    })
}

fn filled(device: &SimDevice, bytes: &[u8]) -> Region {
    let region = device.allocate(bytes.len() as u64).unwrap();
    device.poke(&whole(&region), bytes).unwrap();
    region
}

fn whole(region: &Region) -> Span {
    Span {
        hold: region.hold(),
        offset: 0,
        bytes: region.len(),
    }
}

fn piece(region: u32, bytes: u32, offsets: &[u64]) -> Pieces<'_> {
    Pieces {
        region,
        bytes,
        count: 1,
        stride: 0,
        offsets,
    }
}

fn ended(both: &mut Both) -> Result<(), Fault> {
    let start = Instant::now();
    loop {
        if let Some(ended) = both.left.completion() {
            return ended.outcome;
        }
        assert!(start.elapsed() < HANG, "no completion");
        both.left.poll(Duration::from_millis(1));
        both.right.poll(Duration::ZERO);
    }
}

/// A peer's memory is registered in `right`, and imported in `left`, which has a device of its own.
struct Both {
    left: Side,
    right: Side,
    to_right: moai_transport::PeerId,
    id: moai_transport::RegistrationId,
    number: u32,
}

fn both(theirs: Region) -> Both {
    let (mut left, mut right, to_right, to_left) = pair(&ShmConfig::default());
    let id = right.register(theirs, RIGHTS);
    let key = right.interface.remote_key(to_left, id).unwrap();
    let number = left.interface.import(to_right, &key).unwrap();
    Both {
        left,
        right,
        to_right,
        id,
        number,
    }
}

#[test]
fn the_same_bytes_may_be_read_twice() {
    let bytes = Random(3).bytes(LEN as usize);
    let (ours, theirs) = (device(Duration::ZERO), device(Duration::ZERO));
    let target = filled(&theirs, &vec![0; LEN as usize]);
    let seen = whole(&target);
    let mut both = both(target);
    both.left.told.regions = vec![filled(&ours, &bytes)];
    // A kernel takes no spans that overlap; copies do.
    let local = [piece(0, 100, &[0, 50, 50])];
    let remote = [piece(both.number, 300, &[1000])];
    let posted = both.left.put(both.to_right, &local, &remote).unwrap();
    assert!(matches!(posted, Posted::InFlight(_)));
    assert_eq!(ended(&mut both), Ok(()));
    let placed = &theirs.peek(&seen).unwrap()[1000..1300];
    assert_eq!(
        placed,
        [&bytes[..100], &bytes[50..150], &bytes[50..150]].concat()
    );
    assert_eq!(
        both.right.interface.stats().puts_in,
        0,
        "the peer has done nothing"
    );
}

#[test]
fn who_does_not_leave_keeps_the_memory_from_being_used_again() {
    let (ours, theirs) = (device(Duration::from_millis(1500)), device(Duration::ZERO));
    let target = filled(&theirs, &vec![0; LEN as usize]);
    let seen = whole(&target);
    let mut both = both(target);
    both.left.told.regions = vec![filled(&ours, &vec![7; LEN as usize])];
    let local = [piece(0, LEN as u32, &[0])];
    let remote = [piece(both.number, LEN as u32, &[0])];
    let _ = both.left.put(both.to_right, &local, &remote).unwrap();
    both.left.poll(Duration::ZERO);
    // The device copies for longer than the owner waits, and nobody polls.
    let start = Instant::now();
    let refused = both.right.interface.deregister(both.id).unwrap_err();
    let Error::Os { cause, .. } = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(cause.kind(), io::ErrorKind::TimedOut);
    let waited = start.elapsed();
    assert!(
        waited >= Duration::from_secs(1) && waited < HANG,
        "{waited:?}"
    );
    // What it writes, it writes to memory that nobody has been given since.
    let mut others: Vec<_> = (0..4).map(|_| filled(&theirs, &[1; 4096])).collect();
    assert_eq!(ended(&mut both), Ok(()));
    assert_eq!(theirs.peek(&seen).unwrap(), vec![7; LEN as usize]);
    for other in &mut others {
        assert_eq!(theirs.peek(&whole(other)).unwrap(), [1; 4096]);
    }
    let again = both.left.put(both.to_right, &local, &remote).unwrap();
    assert!(matches!(again, Posted::InFlight(_)));
    let refused = Err(Fault::Refused(Refusal::Generation));
    assert_eq!(ended(&mut both), refused);
    assert!(
        both.right.interface.deregister(both.id).is_err(),
        "it is gone"
    );
}
