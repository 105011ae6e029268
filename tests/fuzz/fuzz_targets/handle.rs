//! Handles as bytes and as text: none panics, what is read says the same again, and no seal fits by chance.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moai_collectives::protocol::handle::{EngineKey, Handle};

fuzz_target!(|data: &[u8]| {
    let key = EngineKey::new(*b"a key that no input is made with");
    if let Ok(handle) = Handle::from_bytes(data) {
        assert_eq!(handle.as_bytes(), data);
        assert!(!handle.is_sealed_by(&key));
        let text = handle.to_string();
        assert_eq!(text.parse(), Ok(handle.clone()));
        // Sealed anew it says the same, and the seal fits.
        let sealed = Handle::seal(handle.fields().clone(), &key).expect("names that were read");
        assert_eq!(sealed.fields(), handle.fields());
        assert_eq!(sealed.as_bytes().len(), data.len());
        assert!(sealed.is_sealed_by(&key));
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(handle) = text.parse::<Handle>()
    {
        assert_eq!(handle.to_string(), text);
    }
});
