//! Ten thousand registrations and a thousand idle endpoints in one process: what each costs.

use std::time::{Duration, Instant};

use moai_memory::{MemoryKind, Region};
use moai_transport::Rights;

use crate::far::{Far, Order, Place};
use crate::memory::Device;
use crate::node::{HANG, Node};
use crate::pair::Setting;
use crate::run::{Absent, Outcome};
use crate::ways::Way;

const ENDPOINTS: usize = 1000;
const REGIONS: usize = 10_000;

/// Memory that an idle endpoint may take, one end: its tables, and a read buffer once it has talked.
const MOST_BYTES: u64 = 160 << 10;

/// How long one connection may take on a busy machine in a debug build, both ends.
const LONGEST: Duration = Duration::from_millis(10);

pub(crate) fn is_bounded(setting: &Setting) -> Outcome {
    let mut far = Far::new(Place::Process, setting.way, Device::new(1), setting.seed)?;
    let text = far.text(Order::Scale {
        endpoints: ENDPOINTS,
        regions: REGIONS,
    })?;
    println!("{}: {text}", setting.way);
    Ok(())
}

/// In the process that is measured: the node listens, another one connects to it.
pub(crate) fn measure(
    node: &mut Node,
    way: Way,
    endpoints: usize,
    regions: usize,
) -> Result<String, Absent> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let needed = (endpoints * way.descriptors_an_endpoint() + 200) as u64;
    if limit.is_some_and(|limit| limit < needed) {
        return Err(Absent::new(
            "files",
            format!("the process may open {limit:?} files, and {needed} are needed (ulimit -n)"),
        ));
    }
    let before = Instant::now();
    let mut rest = node
        .device
        .region(MemoryKind::Host, &vec![0; regions * 4096])?;
    for index in 0..regions {
        let region: Region;
        (region, rest) = rest.split_at(4096);
        node.recorder.regions.push(region);
        node.register(index as u32, Rights::READ).unwrap();
    }
    let registering = before.elapsed() / regions as u32;

    let address = way.choose(&node.interface.addresses());
    let mut other = way.node(false, Device::new(2), 1)?;
    let resident_before = resident_bytes();
    let start = Instant::now();
    let (mut peers, mut waited) = (Vec::new(), Duration::ZERO);
    for _ in 0..endpoints {
        let peer = other.interface.connect(&address).unwrap();
        other.interface.send(peer, b"hello").map(drop).unwrap();
        peers.push(peer);
        if peers.len() % 20 == 0 {
            settle(node, &mut other, peers.len());
            waited += come_to_rest(node, &mut other);
        }
    }
    settle(node, &mut other, endpoints);
    let connecting = start.elapsed().saturating_sub(waited) / endpoints as u32;
    come_to_rest(node, &mut other);
    let resident = resident_bytes().saturating_sub(resident_before);
    let each = resident / (2 * endpoints as u64);
    // All are alive.
    let from = node.incoming();
    for (nth, &peer) in from.iter().enumerate() {
        node.send(peer, &(nth as u32).to_le_bytes());
    }
    let begun = Instant::now();
    let mut heard = 0;
    while heard < endpoints {
        assert!(begun.elapsed() < HANG, "{heard} of {endpoints} answer");
        node.poll(Duration::ZERO);
        other.poll(Duration::from_millis(1));
        let each = peers.iter().map(|&peer| other.messages(peer).len());
        heard += each.sum::<usize>();
    }
    let text = format!(
        "{regions} registrations of {registering:?}; {endpoints} endpoints of {connecting:?} and {each} bytes an end"
    );
    assert!(each < MOST_BYTES, "{text}; at most {MOST_BYTES} bytes");
    assert!(connecting < LONGEST, "{text}; at most {LONGEST:?}");
    Ok(text)
}

/// Polls both until so many peers are there and have been heard.
fn settle(node: &mut Node, other: &mut Node, count: usize) {
    let start = Instant::now();
    while node.incoming().len() < count || other.recorder.events.len() < count {
        assert!(
            start.elapsed() < HANG,
            "{} of {count} peers came: {:?}",
            node.incoming().len(),
            other.interface.stats()
        );
        node.poll(Duration::ZERO);
        other.poll(Duration::from_millis(1));
    }
}

/// Lets further lanes of the same peers come as well: while they do, they hold what a handshake does, and it is idle
/// endpoints that are measured. How long that took.
fn come_to_rest(node: &mut Node, other: &mut Node) -> Duration {
    let start = Instant::now();
    for _ in 0..20 {
        node.poll(Duration::ZERO);
        other.poll(Duration::from_millis(1));
    }
    start.elapsed()
}

/// Memory of this process that is in memory.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as u64
}
