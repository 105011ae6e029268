//! Layouts from shape and strides, against the sum of index times stride.
//!
//! The first line is labels between blanks; the bytes behind it are the element size, the offset, and a
//! size and a stride for each label.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moai_translate::layout::{Axis, Extents, Tensor};

fuzz_target!(|data: &[u8]| {
    let end = data.iter().position(|&b| b == b'\n').unwrap_or(data.len());
    let Ok(text) = std::str::from_utf8(&data[..end]) else {
        return;
    };
    let labels: Vec<&str> = text.split(' ').collect();
    let mut rest = data[end..].iter().skip(1).copied();
    let mut next = || rest.next().unwrap_or(1);
    let unit_bytes = u32::from(next() % 9);
    let wide = |next: &mut dyn FnMut() -> u8| {
        let (low, shift) = (next() as i8, next());
        i64::from(low).wrapping_shl(u32::from(shift % 64))
    };
    let offset = wide(&mut next);
    let mut shape = Vec::new();
    let mut strides = Vec::new();
    for _ in &labels {
        shape.push(match next() {
            255 => u64::MAX,
            254 => 1 << 33,
            size => u64::from(size % 9),
        });
        strides.push(wide(&mut next));
    }
    let in_bytes = next() % 2 == 0;
    let made = match in_bytes {
        true => Tensor::bytes(&labels, &shape, &strides, offset, unit_bytes),
        false => Tensor::elements(&labels, &shape, &strides, offset, unit_bytes),
    };
    let Ok(mut tensor) = made else { return };
    // A cut here and there: the addresses are those of the whole.
    let mut first = vec![0; labels.len()];
    for (i, label) in labels.iter().enumerate() {
        let cut = u64::from(next() % 8);
        if !label.contains('%') && !label.contains('/') && cut < shape[i] {
            let Ok(narrow) = tensor.narrow(label, cut..shape[i]) else {
                return;
            };
            tensor = narrow;
            first[i] = cut;
            shape[i] -= cut;
        }
    }
    let Ok(placed) = tensor.place(&[Axis::Layer]) else {
        return;
    };
    let of = |axis: Axis| -> Option<u32> {
        let mine = |label: &&str| label.split(['/', '%']).next() == Some(axis.name());
        let sizes = labels.iter().zip(&shape).filter(|(label, _)| mine(label));
        let mut all = 1_u64;
        for (_, &size) in sizes {
            all = all.checked_mul(size)?;
        }
        u32::try_from(all).ok()
    };
    let [Some(page), Some(head), Some(slot), Some(dim)] =
        [Axis::Page, Axis::Head, Axis::Slot, Axis::Dim].map(of)
    else {
        panic!("placed with extents that do not fit");
    };
    if of(Axis::Part) != Some(1) {
        return;
    }
    let extents = Extents {
        layer: 2,
        part: 1,
        page,
        head,
        slot,
        dim,
    };
    let layout = tensor
        .layout(&[Axis::Layer], extents)
        .expect("it was placed");
    assert_eq!(placed.layout(extents, unit_bytes, 0).as_ref(), Ok(&layout));
    let units = u64::from(page) * u64::from(head) * u64::from(slot) * u64::from(dim);
    if units > 4096 {
        return;
    }
    let step = if in_bytes { 1 } else { i128::from(unit_bytes) };
    for p in 0..page {
        for h in 0..head {
            for s in 0..slot {
                for d in 0..dim {
                    let mut at = i128::from(offset);
                    for (i, label) in labels.iter().enumerate() {
                        let (axis, split) = match label.find(['/', '%']) {
                            Some(cut) => (&label[..cut], label[cut + 1..].parse::<u32>().unwrap()),
                            None => (*label, 1),
                        };
                        let index = match axis {
                            "page" => p,
                            "head" => h,
                            "slot" => s,
                            "dim" => d,
                            _ => 0,
                        };
                        let index = match label.contains('%') {
                            true => index % split,
                            false => index / split,
                        };
                        at += (i128::from(index) + i128::from(first[i])) * i128::from(strides[i]);
                    }
                    let address = layout.address(1, p, h, s, d);
                    assert_eq!(
                        i128::from(address.byte),
                        at * step,
                        "{labels:?} {shape:?} {strides:?}"
                    );
                    assert_eq!(address.region, 1);
                }
            }
        }
    }
});
