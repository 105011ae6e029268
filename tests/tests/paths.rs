//! Paths that cannot be had: what is said, and what is done instead.

use std::{collections::BTreeMap, sync::Arc, thread, time::Duration};

use moai_collectives::{
    cost::Way, execute::Requested, protocol::node::Failure, request::Request, transfer::Report,
};
use moai_fabric::{Fabric, check, config::Config, metrics::Metrics, synthetic};
use moai_memory::MemoryKind;
use moai_transport::Address;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

const SEED: u64 = 7;

/// One rank to one rank.
fn requested(layers: u32, heads: u32, dim: u32, tokens: u32) -> Arc<Requested> {
    let side = |element: &str| {
        let layout = "[layer] page slot head dim";
        let component = |name: &str| {
            json!({
                "name": name, "heads": heads, "dim": dim, "pool": name,
                "format": { "element": element }, "layout": layout,
            })
        };
        let pages = tokens.div_ceil(16);
        let list: Vec<u32> = (0..pages).collect();
        let document: Value = json!({
            "version": 1, "model": { "layers": layers }, "parallel": { "tp": 1 }, "page_slots": 16,
            "components": [component("key"), component("value")],
            "ranks": [{ "rank": 0, "pages": pages, "request_pages": list }],
            "request": { "tokens": tokens },
        });
        Request::read(&document.to_string()).unwrap()
    };
    let (producer, consumer) = (side("bf16"), side("f32"));
    Arc::new(Requested::agree(producer, consumer).unwrap())
}

fn config(deadline: u64) -> Config {
    let mut config = Config::default();
    config.deadline = Duration::from_secs(deadline);
    config
}

/// Moves everything, the producer's pool in shared memory, and looks at what arrived.
fn moved(requested: &Arc<Requested>) -> [Report; 2] {
    moved_by(&Fabric::new(config(60)), requested)
}

fn moved_by(fabric: &Fabric, requested: &Arc<Requested>) -> [Report; 2] {
    let server = fabric.listen().unwrap();
    let addresses = BTreeMap::from([(0, server.addresses().to_vec())]);
    let (kind, side) = (MemoryKind::Shared, &requested.agreed().producer);
    let mut source =
        synthetic::producer_pool_in(kind, side, requested.producer(), 0, SEED).unwrap();
    let serving = {
        let requested = Arc::clone(requested);
        thread::spawn(move || server.serve(&requested, 0, &mut source, &mut |_, _| {}))
    };
    let background = || synthetic::background(&requested.agreed().consumer, 0, SEED).unwrap();
    let mut pool = background();
    let report = fabric
        .pull(requested, 0, &mut pool, &addresses, &mut |_, _| {})
        .unwrap();
    assert!(report.is_committed(), "{report:?}");
    let rows = synthetic::Seeded::new(&requested.agreed().producer, SEED);
    let wanted = check::expected(requested, 0, background(), &rows);
    assert_eq!(
        check::compare(requested.agreed(), 0, &pool, &wanted),
        Ok(())
    );
    [serving.join().unwrap(), report]
}

#[test]
fn what_a_fabric_moves_is_counted() {
    let metrics = Arc::new(Metrics::new());
    let mut config = config(60);
    config.transports = Some(vec!["tcp".into()]);
    let fabric = Fabric::new(config).with_metrics(metrics.clone());
    let [_, consumed] = moved_by(&fabric, &requested(2, 2, 64, 40));
    let text = metrics.text();
    let value = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name} is not in\n{text}"))
            .trim()
            .parse()
            .unwrap()
    };
    // Both sides are of this process.
    assert_eq!(value("moai_transfers_total{status=\"committed\"}"), 2);
    assert_eq!(
        value("moai_transfer_wire_bytes_total"),
        2 * consumed.bytes_wire
    );
    for way in ["received", "sent"] {
        let name = format!("moai_transport_{way}_bytes_total{{transport=\"tcp\"}}");
        assert!(value(&name) >= consumed.bytes_wire, "{text}");
    }
    assert_eq!(
        value("moai_transport_connections_total{transport=\"tcp\",status=\"accepted\"}"),
        1
    );
}

#[test]
fn a_required_path_that_is_not_there_is_called_so() {
    let requested = requested(2, 2, 64, 40);
    let mut config = config(5);
    config.require_path = Some(vec!["shm".into()]);
    let fabric = Fabric::new(config);
    let mut pool = synthetic::background(&requested.agreed().consumer, 0, SEED).unwrap();
    let tcp = BTreeMap::from([(0, vec!["tcp:127.0.0.1:9".parse::<Address>().unwrap()])]);
    for (addresses, why) in [(tcp, "shm is required"), (BTreeMap::new(), "no address")] {
        let mut pull = || fabric.pull(&requested, 0, &mut pool, &addresses, &mut |_, _| {});
        let report = pull().unwrap();
        let failure = report.failure().unwrap();
        assert!(
            matches!(failure, Failure::NoPath { rank: 0, why: said } if said.contains(why)),
            "{failure:?}"
        );
        let said = failure.to_string();
        assert!(said.contains("cannot be reached"), "{said}");
        let kind = serde_json::to_value(failure).unwrap()["kind"].clone();
        assert_eq!(kind, "no_path");
    }
}

#[test]
fn more_shared_regions_than_a_peer_takes_are_sent_and_the_report_says_why() {
    // A region for each layer and component, a file for each region; and both ranks are in this process.
    let layers = 2100;
    let limit = getrlimit(Resource::Nofile);
    let mut most = limit;
    most.current = limit.maximum;
    setrlimit(Resource::Nofile, most).unwrap();
    let needed = 4 * u64::from(layers) * 2;
    assert!(
        most.current.is_none_or(|most| most >= needed),
        "this test needs {needed} descriptors; this system allows {most:?} (ulimit -Hn)"
    );
    let requested = requested(layers, 1, 64, 16);
    let [producer, consumer] = moved(&requested);
    for report in [&producer, &consumer] {
        let route = &report.routes[0];
        let taken = (route.provider.as_str(), route.way);
        assert_eq!(taken, ("shm", Way::Sent), "{route}");
    }
    let route = &consumer.routes[0];
    assert!(
        route.is_fallback && route.why.contains("4096 files"),
        "{route}"
    );
    assert_eq!(consumer.chunks_mapped, 0, "{consumer:?}");
    let few = moved(&self::requested(20, 1, 64, 16));
    for report in few {
        assert_eq!(report.routes[0].way, Way::Mapped, "{report:?}");
    }
}
