//! What tests of directories share.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use moai_fabric::{
    directory::{Directory, EngineName, Node, View},
    transport::Address,
};

pub(crate) fn engine(name: &str) -> EngineName {
    name.parse().unwrap()
}

pub(crate) fn addresses(node: &Node) -> Vec<String> {
    node.addresses.iter().map(Address::to_string).collect()
}

/// Waits until what is known of an engine is as it should be.
pub(crate) fn until(
    directory: &Directory,
    engine: &EngineName,
    limit: Duration,
    is_so: impl Fn(&View) -> bool,
) -> Arc<View> {
    let start = Instant::now();
    let mut version = directory.version();
    loop {
        let view = directory.view(engine).expect("an engine that is followed");
        if is_so(&view) {
            return view;
        }
        assert!(start.elapsed() < limit, "after {limit:?}: {view:?}");
        version = directory.wait(version, Duration::from_millis(50));
    }
}
