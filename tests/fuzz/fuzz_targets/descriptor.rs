//! Descriptions that anybody may send: two documents with a NUL between them.
//!
//! Neither reading them nor negotiating panics, and neither takes memory or time out of proportion; both
//! ways of asking give the same answer twice.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moai_collectives::{descriptor::Descriptor, negotiate::negotiate};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut sides = text.splitn(2, '\0').map(Descriptor::from_json);
    let (first, second) = (sides.next(), sides.next());
    let (Some(Ok(producer)), Some(Ok(consumer))) = (first, second) else {
        return;
    };
    let agreement = negotiate(&producer, &consumer).map_err(|refusal| refusal.to_string());
    let again = negotiate(&producer, &consumer).map_err(|refusal| refusal.to_string());
    match (agreement, again) {
        (Ok(a), Ok(b)) => assert_eq!(a.digest(), b.digest()),
        (Err(a), Err(b)) => assert_eq!(a, b),
        _ => panic!("two answers to one question"),
    }
    let _ = negotiate(&consumer, &producer);
});
