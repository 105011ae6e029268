//! Layout text, and layouts of small extents.
//!
//! The first line is the text; the bytes behind it are extents, element size, part, offset and strides.
#![no_main]

use std::collections::{BTreeMap, HashSet};

use libfuzzer_sys::fuzz_target;
use moai_translate::layout::{Extents, Layout, Notation, overlap};

fuzz_target!(|data: &[u8]| {
    let end = data.iter().position(|&b| b == b'\n').unwrap_or(data.len());
    let Ok(text) = std::str::from_utf8(&data[..end]) else {
        return;
    };
    let Ok(notation) = text.parse::<Notation>() else {
        return;
    };
    let printed = notation.to_string();
    assert_eq!(
        printed.parse::<Notation>().as_ref(),
        Ok(&notation),
        "{printed}"
    );

    let mut rest = data[end..].iter().skip(1).copied();
    let mut next = |most: u8| u32::from(rest.next().unwrap_or(1) % most);
    let extents = Extents {
        layer: next(4),
        part: next(4),
        page: next(5),
        head: next(5),
        slot: next(9),
        dim: next(17),
    };
    let unit_bytes = 1 + next(8);
    let part = next(4);
    // Offsets and strides up to the largest: a shift of a small number.
    let mut wide = || {
        u64::from(next(255))
            .wrapping_shl(next(64))
            .wrapping_add(next(16).into())
    };
    let offset = wide();
    let mut strides = BTreeMap::new();
    for word in notation.words() {
        let stride = wide();
        if stride % 3 == 0 {
            strides.insert(word.key(), stride);
        }
    }
    if part >= extents.part {
        return;
    }
    let Ok(layout) = Layout::new(&notation, extents, unit_bytes, part, offset, &strides) else {
        return;
    };
    assert!(i64::try_from(layout.region_bytes()).is_ok());
    let regions = layout.touches();
    assert!(regions.iter().all(|&region| region < layout.regions()));
    // Every unit is inside its region, and no two share a byte.
    let mut starts = HashSet::new();
    let mut last = 0;
    for layer in 0..extents.layer {
        for page in 0..extents.page {
            for head in 0..extents.head {
                for slot in 0..extents.slot {
                    for dim in 0..extents.dim {
                        let at = layout.address(layer, page, head, slot, dim);
                        let end = at.byte + u64::from(unit_bytes);
                        assert!(
                            end <= layout.region_bytes(),
                            "{printed}: {at:?} of {layout:?}"
                        );
                        assert!(regions.binary_search(&at.region).is_ok());
                        assert!(starts.insert(at), "{printed}: {at:?} twice");
                        last = last.max(end);
                    }
                }
            }
        }
    }
    assert_eq!(last, layout.region_bytes(), "{printed}: {layout:?}");
    let mut starts: Vec<_> = starts.into_iter().collect();
    starts.sort_unstable();
    for pair in starts.windows(2) {
        let apart = pair[0].region != pair[1].region
            || pair[1].byte - pair[0].byte >= u64::from(unit_bytes);
        assert!(apart, "{printed}: {pair:?}");
    }
    assert!(overlap(&layout, &layout));
});
