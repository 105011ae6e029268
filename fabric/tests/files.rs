//! A directory in a file that is replaced, spoilt, taken away and brought back.

mod support;

use std::{fs, path::Path, time::Duration};

use moai_fabric::directory::{Directory, NodeKey, Options, Source};
use support::{addresses, engine, until};

const SOON: Duration = Duration::from_secs(10);

fn options() -> Options {
    let mut options = Options::default();
    options.period = Duration::from_millis(20);
    options.lease = Duration::from_secs(1);
    options
}

/// As whoever replaces a file in one step does.
fn replace(path: &Path, text: &str) {
    let other = path.with_extension("new");
    fs::write(&other, text).unwrap();
    fs::rename(&other, path).unwrap();
}

fn nodes(ports: &[u16]) -> String {
    let node = |port: &u16| format!(r#"{{"node": {port}, "addresses": ["tcp:10.0.0.1:{port}"]}}"#);
    let list: Vec<_> = ports.iter().map(node).collect();
    format!(r#"{{"engines": {{"decode": [{}]}}}}"#, list.join(","))
}

#[test]
fn a_file_is_followed_and_nothing_known_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("directory.json");
    let directory = Directory::open(Source::File(path.clone()), options()).unwrap();
    let decode = engine("decode");

    // Not there yet: known to be unknown, and asked for until it is there.
    let view = directory.watch(&decode).unwrap();
    assert!(view.seen.is_none() && view.stale_since.is_some());
    assert!(view.problem.as_deref().unwrap().contains("directory.json"));
    replace(&path, &nodes(&[1]));
    let view = until(&directory, &decode, SOON, |view| view.nodes.len() == 1);
    assert_eq!(
        (view.stale_since, addresses(&view.nodes[0].node)),
        (None, vec!["tcp:10.0.0.1:1".to_owned()])
    );

    replace(&path, &nodes(&[1, 2, 3]));
    until(&directory, &decode, SOON, |view| view.listed().count() == 3);

    // What is bad is as if it had not come.
    replace(&path, &nodes(&[1, 1]));
    std::thread::sleep(Duration::from_millis(200));
    let view = directory.view(&decode).unwrap();
    assert_eq!((view.listed().count(), view.stale_since), (3, None));

    // What is gone is stale.
    fs::remove_file(&path).unwrap();
    let view = until(&directory, &decode, SOON, |view| view.stale_since.is_some());
    assert_eq!(view.listed().count(), 3);

    // Whoever is linked to is kept though no longer listed; others go after a while.
    let pin = directory.pin(&decode, &NodeKey::Number(2));
    replace(&path, &nodes(&[3]));
    let view = until(&directory, &decode, SOON, |view| view.nodes.len() == 2);
    assert_eq!(view.listed().count(), 1);
    assert!(
        view.get(&NodeKey::Number(2))
            .unwrap()
            .withdrawn_since
            .is_some()
    );
    drop(pin);
    until(&directory, &decode, SOON, |view| view.nodes.len() == 1);
}

#[test]
fn a_directory_that_nobody_writes_to_takes_no_announcements() {
    let source: Source = "static:decode=tcp:10.0.0.7:4000".parse().unwrap();
    let directory = Directory::open(source, options()).unwrap();
    let view = directory.watch(&engine("decode")).unwrap();
    let node = view.nodes[0].node.clone();
    let error = directory
        .announce(&engine("decode"), node)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("static directory takes no announcements"),
        "{error}"
    );
    let none = directory.watch(&engine("prefill")).unwrap();
    assert!(none.nodes.is_empty() && none.seen.is_some());
}
