//! Mapped memory: what the owner writes is seen here, and stays here.

use moai_transport::{Error, Operation, Reach, Refusal, Rights};

use crate::far::Order;
use crate::pair::{ALL_RIGHTS, Pair, Setting};
use crate::random::Random;
use crate::run::{Absent, Outcome};
use crate::transfers::same;

const LEN: u64 = 64 << 10;

/// What a provider cannot map it says so, typed; what it can shows the owner's bytes and takes none.
pub(crate) fn shows_what_the_owner_writes(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    let seed = pair.random.next();
    let remote = pair.remote(LEN, seed, Rights::READ.and(Rights::MAP))?;
    let reach = pair
        .near
        .interface
        .capabilities()
        .reach(Operation::Map, setting.remote);
    let mapped = pair.near.interface.map(pair.to, remote.number);
    let mut mapped = match (mapped, reach) {
        (
            Err(Error::Unsupported {
                operation: Operation::Map,
                ..
            }),
            reach,
        ) if reach == Reach::No || setting.way.is_a_stack() => {
            return Err(Absent::new(
                format!("{}-map", setting.way),
                format!(
                    "{} cannot map {} memory, and says so",
                    setting.way, setting.remote
                ),
            ));
        }
        (Ok(mapped), reach) if reach != Reach::No => mapped,
        (other, reach) => panic!("reach is {reach:?}, and mapping gave {other:?}"),
    };
    assert_eq!((mapped.len(), mapped.kind()), (LEN, setting.remote));
    let mut expected = Random(seed).bytes(LEN as usize);
    same("mapped", &pair.near.device.read(&mapped), &expected);
    assert!(
        mapped.host_bytes_mut().is_none(),
        "mapped memory can be stored to"
    );
    for offset in [0, 5000, LEN - 3] {
        let bytes = vec![offset as u8 ^ 0x5a; 3];
        let region = remote.region;
        expected[offset as usize..offset as usize + 3].copy_from_slice(&bytes);
        pair.far.ask(Order::Write {
            region,
            offset,
            bytes,
        })?;
        same(
            "mapped, written by the owner",
            &pair.near.device.read(&mapped),
            &expected,
        );
    }
    assert!(pair.near.interface.stats().mapped_bytes >= LEN);

    // Without the right.
    let other = pair.remote(LEN, 1, Rights::READ.and(Rights::WRITE))?;
    let refused = pair.near.interface.map(pair.to, other.number);
    assert!(
        matches!(refused, Err(Error::Refused(Refusal::Rights))),
        "{refused:?}"
    );
    let refused = pair.near.interface.map(pair.to, 99);
    assert!(
        matches!(refused, Err(Error::NotImported { region: 99 })),
        "{refused:?}"
    );

    // Good whatever becomes of the registration and the connection.
    pair.far.ask(Order::Deregister {
        registration: remote.registration,
    })?;
    let refused = pair.near.interface.map(pair.to, remote.number);
    assert!(
        matches!(refused, Err(Error::Refused(Refusal::Generation))),
        "{refused:?}"
    );
    same("deregistered", &pair.near.device.read(&mapped), &expected);
    pair.near.interface.close(pair.to);
    pair.far.kill();
    same(
        "the owner is gone",
        &pair.near.device.read(&mapped),
        &expected,
    );
    Ok(())
}

/// A mapped region is a source like any other: it can be put to the peer from.
pub(crate) fn is_a_source_like_any_other(setting: &Setting) -> Outcome {
    let mut pair = Pair::new(setting)?;
    let remote = pair.remote(LEN, 8, ALL_RIGHTS)?;
    let target = pair.remote(LEN, 9, ALL_RIGHTS)?;
    let Ok(mapped) = pair.near.interface.map(pair.to, remote.number) else {
        return Err(Absent::new(
            format!("{}-map", setting.way),
            format!("{} cannot map {} memory", setting.way, setting.remote),
        ));
    };
    pair.near.recorder.regions.push(mapped);
    let number = pair.near.recorder.regions.len() as u32 - 1;
    let here = [crate::lists::List::piece(number, 100, 1000)];
    assert_eq!(
        pair.near
            .done(true, pair.to, &here, &[target.piece(7, 1000)]),
        Ok(())
    );
    let mut expected = Random(9).bytes(LEN as usize);
    expected[7..1007].copy_from_slice(&Random(8).bytes(LEN as usize)[100..1100]);
    same(
        "put from mapped memory",
        &pair.remote_bytes(&target)?,
        &expected,
    );
    // It cannot be a target.
    let here = [crate::lists::List::piece(number, 0, 10)];
    let got = pair
        .near
        .transfer(false, pair.to, &here, &[target.piece(0, 10)]);
    let unchanged = pair.near.bytes(number);
    same(
        "got into mapped memory",
        &unchanged,
        &Random(8).bytes(LEN as usize),
    );
    assert!(
        got.is_err(),
        "a get into memory that cannot be stored to: {got:?}"
    );
    Ok(())
}
