//! A plug-in that the configuration names is used like any other transport.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

use moai_fabric::collectives::execute::Requested;
use moai_fabric::config::{self, Config, ConfigError};
use moai_fabric::{Fabric, files, providers, synthetic};

use crate::compiled;

fn configured(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let variables = variables.iter();
    Config::from_vars(variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

#[test]
fn a_cache_moves_by_a_transport_of_a_plug_in() {
    let path = moai_tests::plugins::example("plugin_sim");
    let path = path.display().to_string();
    for name in ["sim", "simtcp"] {
        // Whatever the order in which variables come.
        let config = configured(&[
            ("MOAI_TRANSPORTS", name),
            ("MOAI_REQUIRE_PATH", name),
            ("MOAI_PROVIDERS", &path),
        ])
        .unwrap();
        let [producer, consumer] = synthetic::sides(64, 1).unwrap();
        let requested = Arc::new(Requested::agree(producer, consumer).unwrap());
        let (sides, request) = (requested.agreed(), requested.producer());
        let fabric = Fabric::new(config);
        let (mut addresses, mut serving) = (BTreeMap::new(), Vec::new());
        for rank in 0..sides.producer.ranks.len() as u32 {
            let server = fabric.listen().unwrap();
            assert!(
                server
                    .addresses()
                    .iter()
                    .all(|address| address.provider() == name)
            );
            addresses.insert(rank, server.addresses().to_vec());
            let kind = fabric.pool_kind();
            let pool = synthetic::producer_pool_in(kind, &sides.producer, request, rank, 1);
            let (mut pool, requested) = (pool.unwrap(), Arc::clone(&requested));
            let serve = move || server.serve(&requested, rank, &mut pool, &mut |_, _| {});
            serving.push(thread::spawn(serve));
        }
        for shard in &sides.consumer.ranks {
            let mut pool = files::empty_pool(shard).unwrap();
            let report = fabric
                .pull(
                    &requested,
                    shard.rank,
                    &mut pool,
                    &addresses,
                    &mut |_, _| {},
                )
                .unwrap();
            assert!(report.is_committed(), "{:?}", report.failure());
            assert!(!report.routes.is_empty());
            assert!(
                report.routes.iter().all(|route| route.provider == name),
                "{report:?}"
            );
        }
        for server in serving {
            assert!(server.join().unwrap().is_committed());
        }
    }
}

#[test]
fn what_is_loaded_is_told_with_version_and_path_and_what_is_not_is_refused() {
    let path = compiled("loop.c", &[]).display().to_string();
    let device = compiled("device.c", &[]).display().to_string();
    let both = format!("{path}:{device}");
    let config = configured(&[("MOAI_PROVIDERS", &both)]).unwrap();
    let value = config
        .variables()
        .into_iter()
        .find(|one| one.name == "MOAI_PROVIDERS");
    assert_eq!(value.unwrap().value, both);
    let probed = providers::probe(&config);
    let (_, said) = probed.iter().find(|(name, _)| *name == "loop").unwrap();
    let said = said.as_ref().unwrap();
    assert!(
        said.contains("plug-in loop 1.0 (ABI 1.0) from ") && said.contains(&path),
        "{said}"
    );
    let devices = providers::devices(&config);
    let [(name, origin, _)] = &devices[..] else {
        panic!("{} devices", devices.len());
    };
    assert!(
        name == "device" && origin.contains(&device),
        "{name} {origin}"
    );
    assert_eq!(
        config::transports("loop,tcp").unwrap().unwrap(),
        ["loop", "tcp"]
    );
    assert!(config.allows("loop"));

    let refused = configured(&[("MOAI_PROVIDERS", "/nowhere/a.so")]).unwrap_err();
    assert_eq!(refused.name, "MOAI_PROVIDERS");
    assert!(
        refused
            .to_string()
            .contains("/nowhere/a.so cannot be loaded"),
        "{refused}"
    );
    let copy = std::path::Path::new(&path).with_file_name("copy.so");
    std::fs::copy(&path, &copy).unwrap();
    let twice = format!("{path}:{}", copy.display());
    let refused = configured(&[("MOAI_PROVIDERS", &twice)])
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("has a transport loop, and so has"),
        "{refused}"
    );
}
