//! Remote keys: what is forged, stale or another's is refused and reaches nothing.

use std::time::{Duration, Instant};

use moai_transport::key::KEY_BYTES;
use moai_transport::{Error, Fault, PeerId, Posted, Refusal, RemoteKey, Rights};

use crate::far::{Order, Place};
use crate::lists::List;
use crate::node::{HANG, Node};
use crate::pair::{ALL_RIGHTS, Pair, Remote, Setting};
use crate::random::Random;
use crate::run::Outcome;
use crate::transfers::same;

/// How an operation ended that may be refused here or by the owner.
#[track_caller]
pub(crate) fn outcome(
    pair: &mut Pair,
    put: bool,
    local: &[List],
    remote: &[List],
) -> Result<(), Refusal> {
    let ended = match pair.near.transfer(put, pair.to, local, remote) {
        Ok(posted) => pair.near.outcome(posted),
        Err(Error::Refused(refusal)) => return Err(refusal),
        Err(Error::Pieces { side: "remote", .. }) => return Err(Refusal::Bounds),
        Err(other) => panic!("{other:?}"),
    };
    match ended {
        Ok(()) => Ok(()),
        Err(Fault::Refused(refusal)) => Err(refusal),
        Err(other) => panic!("{other:?}"),
    }
}

/// Keys with one field forged. Whatever the provider makes of them, no byte beyond the registered memory changes
/// or is read, and what is plainly wrong is refused.
pub(crate) fn forged_keys_reach_nothing(setting: &Setting) -> Outcome {
    const LEN: u64 = 1 << 16;
    let mut pair = Pair::new(setting)?;
    // Guards on both sides of what is registered.
    let seed = pair.random.next();
    let kind = setting.remote.to_string();
    let order = Order::Neighbours {
        kind,
        bytes: LEN,
        seed,
    };
    let region = pair.far.number(order)? as u32;
    let remote = pair.registered(region, ALL_RIGHTS)?;
    let local = pair.local(&vec![0x77; LEN as usize])?;
    let key = pair.key(remote.registration)?;
    let true_key = RemoteKey::decode(&key).unwrap();
    let change = |with: fn(&mut RemoteKey)| {
        let mut key = true_key;
        with(&mut key);
        key.encode()
    };
    let forged: [(&str, [u8; KEY_BYTES], &[Refusal]); 6] = [
        ("epoch", change(|key| key.epoch ^= 1), &[Refusal::Epoch]),
        (
            "generation",
            change(|key| key.generation += 1),
            &[Refusal::Generation],
        ),
        ("slot", change(|key| key.slot += 1), &[Refusal::Generation]),
        (
            "slot far away",
            change(|key| key.slot = u32::MAX),
            &[Refusal::Generation],
        ),
        ("length", change(|key| key.len *= 2), &[Refusal::Bounds]),
        (
            "length of all",
            change(|key| key.len = u64::MAX),
            &[Refusal::Bounds],
        ),
    ];
    for (what, bytes, expected) in forged {
        let number = match pair.near.interface.import(pair.to, &bytes) {
            Ok(number) => number,
            Err(Error::Key(_) | Error::Refused(_)) => continue,
            Err(other) => panic!("{what}: {other:?}"),
        };
        let offset = if what.starts_with("length") {
            LEN - 100
        } else {
            0
        };
        for put in [true, false] {
            let here = [List::piece(local, 0, 200)];
            let ended = outcome(&mut pair, put, &here, &[List::piece(number, offset, 200)]);
            match ended {
                Err(refusal) => assert!(expected.contains(&refusal), "{what}: {refusal:?}"),
                Ok(()) => panic!("{what} of a key was forged, and put {put} did not notice"),
            }
        }
    }
    // Fields that only some providers use: they refuse, or do not look at them.
    for (what, bytes) in [
        (
            "address before",
            change(|key| key.address = key.address.wrapping_sub(4096)),
        ),
        (
            "address after",
            change(|key| key.address = key.address.wrapping_add(4096)),
        ),
        ("export", change(|key| key.export ^= 1)),
        (
            "offset",
            change(|key| key.offset = key.offset.wrapping_add(4096)),
        ),
        ("rights", change(|key| key.rights = Rights::NONE)),
    ] {
        let Ok(number) = pair.near.interface.import(pair.to, &bytes) else {
            continue;
        };
        let here = [List::piece(local, 0, LEN as u32)];
        let there = [List::piece(number, 0, LEN as u32)];
        let posted = pair.near.transfer(true, pair.to, &here, &there);
        if let Ok(posted) = posted
            && pair.near.outcome(posted) == Ok(())
        {
            let all = vec![0x77; LEN as usize];
            same(
                &format!("put Ok with a forged {what}"),
                &pair.remote_bytes(&remote)?,
                &all,
            );
        }
    }
    let whole = Random(seed).bytes(3 * LEN as usize);
    for (nth, region) in [(0, region - 1), (2, region + 1)] {
        let bytes = pair.far.bytes(Order::Read { region })?;
        let expected = &whole[nth * LEN as usize..][..LEN as usize];
        same("memory beside what was registered", &bytes, expected);
    }
    same("ours", &pair.near.bytes(local), &vec![0x77; LEN as usize]);
    Ok(())
}

/// Bytes that are no key are refused as such, whatever they are; some may pass as keys of nothing.
pub(crate) fn bytes_that_are_no_key(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    let remote = pair.remote(4096, 1, ALL_RIGHTS)?;
    let key = pair.key(remote.registration)?;
    for len in [0, 1, KEY_BYTES - 1] {
        let refused = pair.near.interface.import(pair.to, &key[..len]);
        assert!(
            matches!(refused, Err(Error::Key(_))),
            "{len} bytes: {refused:?}"
        );
    }
    let mut long = key.clone();
    long.push(0);
    assert!(matches!(
        pair.near.interface.import(pair.to, &long),
        Err(Error::Key(_))
    ));
    let mut refused = 0;
    for _ in 0..300 {
        let noise = pair.random.bytes(KEY_BYTES);
        let imported = pair.near.interface.import(pair.to, &noise);
        assert!(
            matches!(imported, Err(Error::Key(_))),
            "noise: {imported:?}"
        );
        // One bit of a key. Its position may be in a field that the provider does not use.
        let mut bytes = key.clone();
        bytes[pair.random.below(KEY_BYTES as u64) as usize] ^= 1 << pair.random.below(8);
        match pair.near.interface.import(pair.to, &bytes) {
            Ok(number) => {
                // Of memory too far away it must be refused, whatever else the key says.
                let local = [List::piece(0, 0, 1)];
                let _ = pair.near.transfer(
                    false,
                    pair.to,
                    &local,
                    &[List::piece(number, u64::MAX - 5, 1)],
                );
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 0);
    same(
        "theirs",
        &pair.remote_bytes(&remote)?,
        &Random(1).bytes(4096),
    );
    Ok(())
}

/// The key of another interface's memory, of the same shape and in the same slot.
pub(crate) fn keys_of_another_interface(setting: &Setting) -> Outcome {
    let mut other = Pair::new(setting)?;
    let mut pair = Pair::new(setting)?;
    let of_other = other.remote(4096, 1, ALL_RIGHTS)?;
    let remote = pair.remote(4096, 2, ALL_RIGHTS)?;
    let key = other.key(of_other.registration)?;
    let local = pair.local(&[9; 4096])?;
    if let Ok(number) = pair.near.interface.import(pair.to, &key) {
        for put in [true, false] {
            let here = [List::piece(local, 0, 4096)];
            let ended = outcome(&mut pair, put, &here, &[List::piece(number, 0, 4096)]);
            assert_eq!(ended, Err(Refusal::Epoch), "put {put}");
        }
    }
    same(
        "theirs",
        &pair.remote_bytes(&remote)?,
        &Random(2).bytes(4096),
    );
    same(
        "the other's",
        &other.remote_bytes(&of_other)?,
        &Random(1).bytes(4096),
    );
    same("ours", &pair.near.bytes(local), &[9; 4096]);
    Ok(())
}

/// Registering is counted; the last deregistering makes keys stale, and the slot's next use is another generation.
pub(crate) fn registering_is_counted(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    let remote = pair.remote(4096, 3, ALL_RIGHTS)?;
    let local = pair.local(&[1; 4096])?;
    let again = pair.registered(remote.region, ALL_RIGHTS)?;
    assert_eq!(
        pair.key(remote.registration)?,
        pair.key(again.registration)?
    );
    let reach = |pair: &mut Pair, remote: &Remote| {
        outcome(
            pair,
            false,
            &[List::piece(local, 0, 64)],
            &[remote.piece(0, 64)],
        )
    };
    pair.far.ask(Order::Deregister {
        registration: again.registration,
    })?;
    assert_eq!(reach(&mut pair, &remote), Ok(()), "it was registered twice");
    let old = pair.key(remote.registration)?;
    pair.far.ask(Order::Deregister {
        registration: remote.registration,
    })?;
    assert_eq!(reach(&mut pair, &remote), Err(Refusal::Generation));
    let anew = pair.registered(remote.region, ALL_RIGHTS)?;
    let key = pair.key(anew.registration)?;
    assert_ne!(key, old);
    let [old, new] = [old, key].map(|key| RemoteKey::decode(&key).unwrap());
    assert!(old.slot != new.slot || old.generation != new.generation);
    assert_eq!(reach(&mut pair, &remote), Err(Refusal::Generation));
    assert_eq!(reach(&mut pair, &anew), Ok(()));
    if setting.place == Place::Thread {
        let stale = remote.registration;
        pair.far.run(move |far| {
            let (id, peer) = (far.registrations[stale], far.incoming()[0]);
            let refused = far.interface.deregister(id);
            assert!(
                matches!(refused, Err(Error::NotRegistered { .. })),
                "{refused:?}"
            );
            let refused = far.interface.remote_key(peer, id);
            assert!(
                matches!(refused, Err(Error::NotRegistered { .. })),
                "{refused:?}"
            );
        });
    }
    let mine = pair.near.register(local, Rights::READ).unwrap();
    pair.near.interface.deregister(mine).unwrap();
    assert!(matches!(
        pair.near.interface.deregister(mine),
        Err(Error::NotRegistered { .. })
    ));
    Ok(())
}

/// Once `deregister` has returned, no byte changes, however hard a peer writes.
pub(crate) fn deregistered_memory_is_left_alone(setting: &Setting) -> Outcome {
    const LEN: u32 = 256 << 10;
    let mut pair = Pair::new(setting)?;
    for round in 0..5 {
        let seed = pair.random.next();
        let remote = pair.remote(LEN.into(), seed, ALL_RIGHTS)?;
        let local = pair.local(&vec![0; LEN as usize])?;
        let Pair { near, far, to, .. } = &mut pair;
        let mut writer = Writer {
            local: [List::piece(local, 0, LEN)],
            remote: [remote.piece(0, LEN)],
            value: 0,
            refused: 0,
        };
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(5 + 3 * round) {
            writer.write(near, *to);
        }
        assert_eq!(writer.refused, 0, "refused before it was deregistered");
        let order = Order::DeregisterAndRead {
            registration: remote.registration,
            region: remote.region,
        };
        let first = far.ask_while(order, || {
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(3) {
                writer.write(near, *to);
            }
        })?;
        let first = first.bytes();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(30) || writer.refused == 0 {
            writer.write(near, *to);
            assert!(start.elapsed() < HANG, "nothing is refused");
        }
        near.until("an end", |near| near.in_flight.is_empty());
        near.ended.clear();
        let last = pair.remote_bytes(&remote)?;
        same("written after deregister", &last, &first);
    }
    Ok(())
}

/// Writes all of some memory again and again.
struct Writer {
    local: [List; 1],
    remote: [List; 1],
    value: u8,
    refused: u64,
}

impl Writer {
    fn write(&mut self, near: &mut Node, to: PeerId) {
        // The memory of what is in flight is left alone.
        if near.in_flight.is_empty() {
            self.value = self.value.wrapping_add(1);
            let region = self.local[0].region;
            near.write(region, 0, &vec![self.value; self.local[0].bytes as usize]);
            // As many at a time as the peer keeps in hand.
            for _ in 0..4 {
                match near.transfer(true, to, &self.local, &self.remote) {
                    Ok(Posted::Busy) => break,
                    Ok(_) => {}
                    Err(Error::Refused(Refusal::Generation)) => self.refused += 1,
                    Err(other) => panic!("{other:?}"),
                }
            }
        }
        near.poll(Duration::ZERO);
        for ended in std::mem::take(&mut near.ended) {
            match ended.outcome {
                Ok(()) => {}
                Err(Fault::Refused(Refusal::Generation)) => self.refused += 1,
                other => panic!("{other:?}"),
            }
        }
    }
}
