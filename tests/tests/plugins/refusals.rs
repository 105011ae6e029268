//! What is not loaded, and what it says.

use std::path::Path;

use moai_transport::Provider;
use moai_transport_plugin::load;

use crate::{compiled, wrong};

#[test]
fn a_plug_in_that_cannot_be_is_refused_by_a_sentence_with_its_file_and_both_values() {
    for (number, said) in [
        (1, "has a plug-in of 30 bytes, and the least is 56"),
        (2, "is for version 2 of the ABI, and this build has 1"),
        (
            3,
            "has a table of a transport of 40 bytes, and the least is",
        ),
        (
            4,
            "has no function get of transport wrong, which must not be NULL",
        ),
        (5, "has no name of a transport, which must not be NULL"),
        (
            6,
            "the name of a transport is \"Wrong!\", expected lower-case letters",
        ),
        (
            7,
            "number of transports is 18446744073709551615, expected at most 16",
        ),
        (8, "does not serve this host"),
        (9, "a domain without the function"),
        (
            10,
            "a domain whose memory is of kind 1, which is none of a device",
        ),
        (11, "a domain without the function submit"),
        (12, "has no table of a transport, which must not be NULL"),
        (13, "has no name, which must not be NULL"),
        (14, "number of transports is 1 at NULL"),
        (15, "the name of a second transport is \"wrong\""),
        (16, "has no transport and no domain"),
    ] {
        let error = wrong(number).unwrap_err().to_string();
        assert!(error.contains(said), "{number}: {error}");
        assert!(
            error.contains("wrong-WRONG"),
            "{number} names no file: {error}"
        );
    }
}

#[test]
fn a_file_that_is_none_is_refused_with_its_name() {
    let missing = load(Path::new("/nowhere/x.so")).unwrap_err().to_string();
    assert!(
        missing.contains("/nowhere/x.so") && missing.contains("No such file"),
        "{missing}"
    );
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.so");
    std::fs::write(&text, "no shared object").unwrap();
    let said = load(&text).unwrap_err().to_string();
    assert!(said.contains("text.so cannot be loaded: "), "{said}");
    let other = compiled("wrong.c", &["NO_SYMBOL"]);
    let said = load(&other).unwrap_err().to_string();
    assert!(said.contains("has no symbol moai_provider_v1"), "{said}");
}

#[test]
fn a_newer_minor_version_is_taken_and_the_same_file_is_loaded_once() {
    let plugin = wrong(0).unwrap();
    assert_eq!(plugin.abi, (1, 7));
    assert_eq!((&*plugin.name, &*plugin.version), ("wrong", "0.1"));
    let again = wrong(0).unwrap();
    assert!(std::sync::Arc::ptr_eq(&plugin, &again));
    let probed = plugin.transports[0].probe().unwrap();
    let path = plugin.path.display().to_string();
    assert!(
        probed.contains("plug-in wrong 0.1 (ABI 1.7) from ") && probed.contains(&path),
        "{probed}"
    );
}
