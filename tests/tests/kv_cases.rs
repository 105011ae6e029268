//! Every real cache under `tests/data/kv` becomes exactly what it must become.

use std::{fs, path::PathBuf, sync::Arc};

use moai_collectives::execute::{Requested, convert};
use moai_fabric::files;

fn cases() -> Vec<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/kv");
    let mut cases: Vec<_> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("case.json").exists())
        .collect();
    cases.sort();
    assert!(cases.len() >= 20, "only {} cases found", cases.len());
    cases
}

#[test]
fn converted_offline_every_case_equals_what_is_expected() {
    let mut wrong = Vec::new();
    for case in cases() {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let (p, c) = (case.join("producer.json"), case.join("consumer.json"));
        let producer = files::read_description(&p).unwrap();
        let consumer = files::read_description(&c).unwrap();
        let pools = |path: &PathBuf, side: &moai_collectives::descriptor::Descriptor| -> Vec<_> {
            side.ranks
                .iter()
                .map(|rank| files::read_pool(&files::pool_path(path, rank).unwrap(), rank).unwrap())
                .collect()
        };
        let sources = pools(&p, &producer.0);
        let mut targets = pools(&c, &consumer.0);
        let requested = Requested::agree(producer, consumer);
        let requested = Arc::new(requested.unwrap_or_else(|r| panic!("{name}: {r}")));
        convert(&requested, &sources, &mut targets);
        for (rank, target) in requested.agreed().consumer.ranks.iter().zip(&targets) {
            let expected = files::read_pool(
                &case.join(format!("expected.{}.safetensors", rank.rank)),
                rank,
            )
            .unwrap();
            for ((spec, got), want) in rank.regions.iter().zip(target).zip(&expected) {
                let pairs = got.as_slice().iter().zip(want.as_slice());
                let differ = pairs.clone().filter(|(g, w)| g != w).count();
                if differ > 0 || got.len() != want.len() {
                    let first = pairs.clone().position(|(g, w)| g != w);
                    wrong.push(format!(
                        "{name} rank {} {}: {differ} of {} bytes differ, first at {first:?}",
                        rank.rank,
                        spec.name,
                        want.len()
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
