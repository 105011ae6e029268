//! Two sides that are connected: ours, on the thread of the test, and the other.

use std::time::{Duration, Instant};

use moai_memory::MemoryKind;
use moai_transport::{Operation, PeerId, Reach, Rights};

use crate::far::{Answer, Far, Order, Place};
use crate::lists::List;
use crate::memory::Device;
use crate::node::{HANG, Node};
use crate::random::Random;
use crate::run::Absent;
use crate::ways::Way;

/// What a check is held for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) way: Way,
    pub(crate) local: MemoryKind,
    pub(crate) remote: MemoryKind,
    pub(crate) place: Place,
    pub(crate) seed: u64,
}

/// Read, write and map.
pub(crate) const ALL_RIGHTS: Rights = Rights::READ.and(Rights::WRITE).and(Rights::MAP);

pub(crate) struct Pair {
    pub(crate) near: Node,
    pub(crate) far: Far,
    /// The other side, as ours calls it.
    pub(crate) to: PeerId,
    pub(crate) random: Random,
    pub(crate) setting: Setting,
}

/// Memory of the other side, as ours reaches it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remote {
    /// Its number there.
    pub(crate) region: u32,
    /// Number of its registering there.
    pub(crate) registration: usize,
    /// Its number here.
    pub(crate) number: u32,
}

impl Remote {
    /// One piece of it.
    pub(crate) fn piece(&self, offset: u64, bytes: u32) -> List {
        List::piece(self.number, offset, bytes)
    }
}

impl Pair {
    pub(crate) fn new(setting: &Setting) -> Result<Self, Absent> {
        let device = |salt| Device::new(setting.seed ^ salt);
        Self::on(setting, device(1), device(2))
    }

    /// With devices of the caller's; one in another process is of its own making.
    pub(crate) fn on(setting: &Setting, ours: Device, theirs: Device) -> Result<Self, Absent> {
        let Setting {
            way, place, seed, ..
        } = *setting;
        let mut far = Far::new(place, way, theirs, seed ^ 3)?;
        let mut near = way.node(false, ours, seed ^ 4)?;
        claims(&near, setting)?;
        let address = far.address()?;
        let to = near.connect(&address);
        near.send(to, b"hello");
        let mut pair = Self {
            near,
            far,
            to,
            random: Random(seed),
            setting: *setting,
        };
        pair.near_until_far("an incoming peer", Order::Peers, |peers| peers == 1)?;
        let gone = |near: &mut Node| near.interface.stats().messages_out == 1;
        pair.near.until("hello to leave", gone);
        Ok(pair)
    }

    /// Lets the other side do something of its own, and polls ours meanwhile.
    #[track_caller]
    pub(crate) fn far<R: Send + 'static>(
        &mut self,
        job: impl FnOnce(&mut Node) -> R + Send + 'static,
    ) -> R {
        let near = &mut self.near;
        self.far.run_while(job, || near.poll(Duration::ZERO))
    }

    /// Why the other side says that the connection has ended; polls ours meanwhile.
    #[track_caller]
    pub(crate) fn far_closed(&mut self) -> Result<String, Absent> {
        let near = &mut self.near;
        let order = Order::Closed { peer: 0 };
        let answer = self.far.ask_while(order, || near.poll(Duration::ZERO));
        answer.map(Answer::text)
    }

    /// Polls our side until the other one answers as wanted.
    pub(crate) fn near_until_far(
        &mut self,
        what: &str,
        order: Order,
        done: impl Fn(u64) -> bool,
    ) -> Result<(), Absent> {
        let start = Instant::now();
        while !done(self.far.number(order.clone())?) {
            assert!(start.elapsed() < HANG, "hangs waiting for {what}");
            self.near.poll(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Memory of the other side with the bytes of `seed`, which ours may use as `rights` say.
    pub(crate) fn remote(
        &mut self,
        bytes: u64,
        seed: u64,
        rights: Rights,
    ) -> Result<Remote, Absent> {
        let kind = self.setting.remote.to_string();
        let region = self.far.number(Order::Memory { kind, bytes, seed })? as u32;
        self.registered(region, rights)
    }

    /// Memory that the other side has, registered.
    pub(crate) fn registered(&mut self, region: u32, rights: Rights) -> Result<Remote, Absent> {
        let rights = rights.bits();
        let registration = self.far.number(Order::Register { region, rights })? as usize;
        let key = self.key(registration)?;
        Ok(Remote {
            region,
            registration,
            number: self.near.interface.import(self.to, &key).unwrap(),
        })
    }

    pub(crate) fn key(&mut self, registration: usize) -> Result<Vec<u8>, Absent> {
        self.far.bytes(Order::Key {
            peer: 0,
            registration,
        })
    }

    /// Memory of ours.
    pub(crate) fn local(&mut self, bytes: &[u8]) -> Result<u32, Absent> {
        self.near.memory(self.setting.local, bytes)
    }

    pub(crate) fn remote_bytes(&mut self, remote: &Remote) -> Result<Vec<u8>, Absent> {
        self.far.bytes(Order::Read {
            region: remote.region,
        })
    }
}

/// Whether the provider claims to reach memory of the setting's kinds; host memory it must.
fn claims(near: &Node, setting: &Setting) -> Result<(), Absent> {
    let alone = match setting.way.alone() {
        Some(way) => Some(way.node(false, Device::new(0), 0)?),
        None => None,
    };
    let can = alone.as_ref().unwrap_or(near).interface.capabilities();
    for kind in [setting.local, setting.remote] {
        for operation in [Operation::Put, Operation::Get, Operation::Send] {
            if can.reach(operation, kind) == Reach::No {
                assert!(kind != MemoryKind::Host, "cannot {operation} host memory");
                let reason = format!(
                    "{} does not claim to {operation} {kind} memory",
                    setting.way
                );
                return Err(Absent::new(kind, reason));
            }
        }
    }
    Ok(())
}
