//! Who a peer says it is, and who may be one: names, lists of patterns, and certificates. The first byte says which.
//!
//! None panics; what is accepted is printed and read back as the same; a pattern allows what a second, slower reading of its
//! rules allows; and a certificate yields names that are names.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moai_transport::{AllowList, Name};
use moai_transport_tcp::identity_of;

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    if kind % 2 == 0 {
        if let Ok(identity) = identity_of(rest) {
            assert!(!identity.names().is_empty());
            for name in identity.names() {
                assert_eq!(name.to_string().parse::<Name>().as_ref(), Ok(name));
                assert!(name.to_string().bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
        return;
    }
    let text = String::from_utf8_lossy(rest);
    let (list, name) = text.split_once('\n').unwrap_or((&text, "spiffe://c/ns/a"));
    let name = name.parse::<Name>();
    if let Ok(name) = &name {
        assert_eq!(name.to_string().parse::<Name>().as_ref(), Ok(name));
    }
    let Ok(list) = list.parse::<AllowList>() else {
        return;
    };
    assert_eq!(list.to_string().parse::<AllowList>().as_ref(), Ok(&list));
    let Ok(name) = name else {
        return;
    };
    for pattern in list.patterns() {
        assert_eq!(pattern.allows(&name), expected(&pattern.to_string(), &name), "{pattern} {name}");
    }
});

/// Segment by segment.
fn expected(pattern: &str, name: &Name) -> bool {
    if pattern == "*" {
        return true;
    }
    let name = name.to_string();
    let (mut wanted, mut is): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), name.split('/').collect());
    if wanted.last() == Some(&"*") {
        wanted.pop();
        if is.len() <= wanted.len() || !name.starts_with("spiffe://") {
            return false;
        }
        is.truncate(wanted.len());
    }
    wanted == is
}
