//! A device that fails: an operation whose copy failed never says that it succeeded.
//!
//! Copies that a device loses, or makes late, while it reports them as done look to a transport like copies that were
//! made. Only who compares the bytes themselves can tell, as the digest of a transfer does; nothing is claimed here.

use moai_memory::MemoryKind;
use moai_memory::sim::Faults;
use moai_transport::{Fault, Refusal};

use crate::lists::List;
use crate::memory::Device;
use crate::pair::{ALL_RIGHTS, Pair, Setting};
use crate::random::Random;
use crate::run::{Absent, Outcome};
use crate::transfers::same;

const LEN: u64 = 32 << 10;

/// A third of all copies of one side's device fail: what is `Ok` is there, what is not there is not `Ok`.
pub(crate) fn a_failed_copy_is_never_a_success(setting: &Setting) -> Outcome {
    let faulty = |salt| {
        let faults = Faults {
            failed_per_mille: 333,
            ..Faults::default()
        };
        Device::with_faults(setting.seed ^ salt, faults)
    };
    let well = |salt| Device::new(setting.seed ^ salt);
    let mut outcomes = [0_u64; 2];
    let sides = [setting.local, setting.remote];
    for (side, kind) in sides.into_iter().enumerate() {
        if kind != MemoryKind::Sim {
            continue;
        }
        // Whoever has a device and no memory on it may have it copy all the same.
        let (ours, theirs) = if side == 0 {
            (faulty(1), well(2))
        } else if setting.local == MemoryKind::Sim {
            (well(1), faulty(2))
        } else {
            (faulty(1), faulty(2))
        };
        let failed_before = outcomes[1];
        let mut pair = Pair::on(setting, ours, theirs)?;
        let local = pair.local(&vec![0; LEN as usize])?;
        let remote = pair.remote(LEN, 3, ALL_RIGHTS)?;
        for round in 0..60 {
            let put = round % 2 == 0;
            let bytes = pair.random.size(LEN) as u32;
            let payload = pair.random.bytes(LEN as usize);
            if put {
                pair.near.write(local, 0, &payload);
            } else {
                let (region, offset) = (remote.region, 0);
                let bytes = payload.clone();
                pair.far.ask(crate::far::Order::Write {
                    region,
                    offset,
                    bytes,
                })?;
            }
            let here = [List::piece(local, 0, bytes)];
            let ended = pair
                .near
                .done(put, pair.to, &here, &[remote.piece(0, bytes)]);
            match ended {
                Ok(()) => {
                    let seen = if put {
                        pair.remote_bytes(&remote)?
                    } else {
                        pair.near.bytes(local)
                    };
                    let end = bytes as usize;
                    same(&format!("Ok, put {put}"), &seen[..end], &payload[..end]);
                }
                Err(Fault::Copy | Fault::Refused(Refusal::Copy)) => {}
                Err(other) => panic!("{other:?}"),
            }
            outcomes[usize::from(ended.is_err())] += 1;
            // A failure is of one operation, and none of the connection.
            assert!(
                pair.near.why(pair.to).is_none(),
                "a failed copy ended the connection"
            );
        }
        let failed = outcomes[1] - failed_before;
        assert_eq!(pair.near.interface.stats().faults, failed);
    }
    assert!(outcomes[0] > 0, "nothing ever succeeds: {outcomes:?}");
    if outcomes[1] == 0 {
        return Err(Absent::new(
            format!("{}-staging", setting.way),
            format!(
                "{} reached the device's memory without a copy of the device",
                setting.way
            ),
        ));
    }
    Ok(())
}

/// Batches from and to a peer that has failing device memory registered are none of its business.
pub(crate) fn frames_go_on(setting: &Setting) -> Outcome {
    let faults = Faults {
        failed_per_mille: 1000,
        ..Faults::default()
    };
    let mut pair = Pair::on(setting, Device::new(1), Device::with_faults(2, faults))?;
    let remote = pair.remote(LEN, 3, ALL_RIGHTS)?;
    let local = pair.local(&Random(9).bytes(LEN as usize))?;
    for nth in 0..20_u32 {
        let here = [List::piece(local, 0, 100)];
        let ended = pair
            .near
            .done(nth % 2 == 0, pair.to, &here, &[remote.piece(0, 100)]);
        let known = matches!(
            ended,
            Ok(()) | Err(Fault::Copy | Fault::Refused(Refusal::Copy))
        );
        assert!(known, "{ended:?}");
        pair.near.send(pair.to, &nth.to_le_bytes());
    }
    let messages = pair.far(|far| {
        let from = far.incoming()[0];
        let mut all = Vec::new();
        far.until("21 messages", |far| {
            all.extend(far.messages(from));
            all.len() == 21
        });
        all
    });
    let expected = (0..20_u32).map(|nth| nth.to_le_bytes().to_vec());
    assert!(messages[1..].iter().cloned().eq(expected));
    Ok(())
}
