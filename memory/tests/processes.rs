//! Memory between processes: what one writes the other sees, and nobody is killed by what a peer does.

mod common;

use std::os::unix::process::ExitStatusExt;

use common::{child, exported, passed, pattern, plays, received, seed};
use moai_memory::sim::{SimConfig, SimDevice};
use moai_memory::{MemoryKind, Region, RegionError, Span};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

const PART: u64 = 64 << 10;

#[test]
fn shared_memory_is_the_same_in_both_processes() {
    if plays("peer") {
        let mut region = Region::import(received(), PART, PART, MemoryKind::Shared, true).unwrap();
        assert_eq!(region.as_slice(), pattern(1, PART as usize));
        region
            .as_mut_slice()
            .copy_from_slice(&pattern(2, PART as usize));
        return;
    }
    let (before, mut region) = Region::shared_zeroed(2 * PART).unwrap().split_at(PART);
    region
        .as_mut_slice()
        .copy_from_slice(&pattern(1, PART as usize));
    let hold = region.hold();
    assert_eq!(hold.export().unwrap().offset, PART);
    passed(&child(
        "shared_memory_is_the_same_in_both_processes",
        "peer",
        Some(exported(&hold)),
    ));
    assert_eq!(region.as_slice(), pattern(2, PART as usize));
    assert!(before.as_slice().iter().all(|&byte| byte == 0));
}

#[test]
fn memory_of_a_device_is_the_same_in_both_processes() {
    let device = SimDevice::new(SimConfig::default());
    let span = |region: &Region| Span {
        hold: region.hold(),
        offset: 0,
        bytes: 4097,
    };
    if plays("peer") {
        let region = device.import(received(), 0, 4097, true).unwrap();
        assert!(region.host_bytes().is_none());
        assert_eq!(device.peek(&span(&region)).unwrap(), pattern(1, 4097));
        device.poke(&span(&region), &pattern(2, 4097)).unwrap();
        return;
    }
    let region = device.allocate(4097).unwrap();
    device.poke(&span(&region), &pattern(1, 4097)).unwrap();
    let hold = region.hold();
    assert_eq!(hold.export().unwrap().kind, MemoryKind::Sim);
    passed(&child(
        "memory_of_a_device_is_the_same_in_both_processes",
        "peer",
        Some(exported(&hold)),
    ));
    assert_eq!(device.peek(&span(&region)).unwrap(), pattern(2, 4097));
}

#[test]
fn a_peer_can_take_nothing_away_from_memory_that_was_mapped() {
    if plays("peer") {
        use rustix::fs::{SealFlags, fcntl_add_seals, ftruncate};
        let file = received();
        assert!(ftruncate(&file, 0).is_err());
        assert!(fcntl_add_seals(&file, SealFlags::FUTURE_WRITE).is_err());
        return;
    }
    let mut region = Region::shared_zeroed(PART).unwrap();
    let file = exported(&region.hold());
    passed(&child(
        "a_peer_can_take_nothing_away_from_memory_that_was_mapped",
        "peer",
        Some(file),
    ));
    region.as_mut_slice().fill(1);
}

#[test]
fn the_host_is_killed_when_it_touches_memory_of_a_device() {
    for part in ["load", "store"] {
        if plays(part) {
            let region = SimDevice::new(SimConfig::default()).allocate(100).unwrap();
            let byte = region.hold().as_ptr();
            println!("about to {part}");
            if part == "load" {
                // SAFETY: the address is mapped without access: this ends the process, as it is meant to.
                println!("loaded {}", unsafe { byte.read_volatile() });
            } else {
                // SAFETY: as above.
                unsafe { byte.write_volatile(1) };
            }
            return;
        }
    }
    for part in ["load", "store"] {
        let output = child(
            "the_host_is_killed_when_it_touches_memory_of_a_device",
            part,
            None,
        );
        let out = String::from_utf8_lossy(&output.stdout);
        assert!(out.contains(&format!("about to {part}")), "{out}");
        assert_eq!(output.status.signal(), Some(SIGSEGV), "{out}");
    }
}

/// From `signal(7)`.
const SIGSEGV: i32 = 11;

#[test]
fn pinning_more_than_is_allowed_names_the_limit() {
    if plays("limited") {
        let limit = Rlimit {
            current: Some(PART),
            maximum: Some(PART),
        };
        setrlimit(Resource::Memlock, limit).unwrap();
        // Privileged processes are above the limit.
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::IPC_LOCK);
        set_capabilities(None, sets).unwrap();

        let within = Region::pinned_zeroed(PART / 2).unwrap();
        let error = Region::pinned_zeroed(PART).unwrap_err();
        let RegionError::LockLimit {
            bytes, limit_bytes, ..
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!((bytes, limit_bytes), (PART, Some(PART)));
        let sentence = error.to_string();
        for said in ["65536 bytes", "RLIMIT_MEMLOCK", "ulimit -l"] {
            assert!(sentence.contains(said), "{sentence}");
        }
        drop(within);
        return;
    }
    passed(&child(
        "pinning_more_than_is_allowed_names_the_limit",
        "limited",
        None,
    ));
}

#[test]
fn a_device_sees_what_it_exported_through_its_import() {
    // A device that imports its own export has two addresses for the same bytes.
    let seed = seed();
    let device = SimDevice::new(SimConfig::default());
    let region = device.allocate(100).unwrap();
    let again = device
        .import(exported(&region.hold()), 0, 100, false)
        .unwrap();
    let span = |region: &Region| Span {
        hold: region.hold(),
        offset: 10,
        bytes: 50,
    };
    device.poke(&span(&region), &pattern(seed, 50)).unwrap();
    assert_eq!(device.peek(&span(&again)).unwrap(), pattern(seed, 50));
    assert_ne!(region.hold().address(), again.hold().address());
    assert!(device.poke(&span(&again), &[0; 50]).is_err());
}
