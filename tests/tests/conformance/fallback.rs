//! A better way that turns out not to be there: the next one is taken, and says so. One that does not lead to the peer's
//! host is no better way.

use moai_memory::MemoryKind;
use moai_transport::{Address, Wanted};

use crate::far::{Far, Order, Place};
use crate::lists::List;
use crate::memory::Device;
use crate::node::Node;
use crate::pair::{ALL_RIGHTS, Setting};
use crate::random::Random;
use crate::run::Outcome;
use crate::transfers::same;
use crate::ways::Way;

/// The peer's shared memory cannot be had, tcp can: memory moves all the same, and the path says what was wanted.
pub(crate) fn the_next_best_is_taken_and_says_so(setting: &Setting) -> Outcome {
    let shm = Way::Shm { foreign: true };
    let mut gone = Far::new(Place::Process, shm, Device::new(3), setting.seed)?;
    let dead = gone.address()?;
    gone.kill();
    let elsewhere: Address = "shm:0123456789abcdef/1/@elsewhere".parse().unwrap();
    for (unreachable, is_fallback) in [(dead, true), (elsewhere, false)] {
        let mut far = Far::new(Place::Thread, setting.way, Device::new(1), setting.seed)?;
        let tcp = far.address()?;
        assert_eq!(tcp.provider(), "tcp");
        let wanted = Wanted {
            local: MemoryKind::Host,
            remote: MemoryKind::Host,
            allowed: None,
            required: None,
        };
        let device = Device::new(2);
        let mut stack = Way::stack(false, &device);
        let peer = stack
            .connect_any(&[unreachable.clone(), tcp], &wanted)
            .unwrap();
        let fallbacks = |node: &Node| node.interface.stats().fallbacks;
        let mut near = Node::new(Box::new(stack), device, setting.seed);
        near.send(peer, b"hello");
        near.until("connected", |near| near.is_connected(peer));
        let path = near.interface.path(peer).unwrap();
        assert_eq!(path.provider, "tcp");
        assert!(path.why.contains("shm"), "{path:?}");
        assert_eq!(path.is_fallback, is_fallback, "{path:?}");
        assert_eq!(fallbacks(&near), u64::from(is_fallback));
        let heard = far.run_while(
            |far| {
                far.until("an incoming peer", |far| !far.incoming().is_empty());
                far.message(far.incoming()[0])
            },
            || {
                near.poll(std::time::Duration::ZERO);
            },
        );
        assert_eq!(heard, b"hello", "what was queued before is lost");

        let kind = "host".to_owned();
        let region = far.number(Order::Memory {
            kind,
            bytes: 4096,
            seed: 5,
        })? as u32;
        let rights = ALL_RIGHTS.bits();
        let registration = far.number(Order::Register { region, rights })? as usize;
        let key = far.bytes(Order::Key {
            peer: 0,
            registration,
        })?;
        let number = near.interface.import(peer, &key).unwrap();
        let local = near.memory(MemoryKind::Host, &[0; 4096])?;
        let (here, there) = (
            [List::piece(local, 0, 4096)],
            [List::piece(number, 0, 4096)],
        );
        assert_eq!(near.done(false, peer, &here, &there), Ok(()));
        same(
            "got by the other way",
            &near.bytes(local),
            &Random(5).bytes(4096),
        );
    }
    Ok(())
}
