//! What relayouts cost, against a copy of the same bytes in the same run.
//!
//!     cargo test --release -p moai-translate --test relayout_speed -- --ignored --nocapture

use std::{collections::BTreeMap, hint::black_box, sync::Arc, time::Instant};

use moai_memory::Region;
use moai_translate::{
    convert::Conversion,
    element::Element,
    format::{RowFormat, RowScale, ScaleRule},
    layout::{Extents, Layout},
    program::{Conversions, Place, Program, Progression, Side},
};

const LAYERS: u32 = 8;
const HEADS: u32 = 8;
const DIM: u32 = 128;
const TOKENS: u32 = 4096;

fn side(text: &str, element: Element, slots: u32) -> (Layout, Vec<Region>, Vec<u32>) {
    let pages = TOKENS / slots;
    let shape = Extents {
        layer: LAYERS,
        part: 2,
        page: pages,
        head: HEADS,
        slot: slots,
        dim: DIM,
    };
    let layout = Layout::new(
        &text.parse().unwrap(),
        shape,
        element.group_bytes(),
        0,
        0,
        &BTreeMap::new(),
    )
    .unwrap();
    let regions = (0..layout.regions()).map(|_| {
        let mut region = Region::host_zeroed(layout.region_bytes()).unwrap();
        for (i, b) in region.as_mut_slice().iter_mut().enumerate() {
            *b = ((i * 31) >> 3) as u8 & 0x3F;
        }
        region
    });
    let regions = regions.collect();
    // Pages in an order that is not their own.
    let order = (0..pages).map(|p| (p * 7 + 3) % pages).collect();
    (layout, regions, order)
}

#[test]
#[ignore = "a measurement, not a check; wants a release build and a quiet machine"]
fn speed_of_relayouts() {
    let bytes = (LAYERS * HEADS * DIM * TOKENS) as usize * 2;
    let (from, mut to) = (vec![1_u8; bytes], vec![0_u8; bytes]);
    let mut best = f64::MAX;
    for _ in 0..7 {
        let start = Instant::now();
        black_box(&mut to).copy_from_slice(black_box(&from));
        best = best.min(start.elapsed().as_secs_f64());
    }
    let copy = 2.0 * bytes as f64 / best / 1e9;
    println!("{:58} {copy:6.2} GB/s", "copy of the same bytes");
    let nhd = "[layer] page slot head part dim";
    let bf16 = (Element::Bf16, 16);
    for (name, a, (ea, sa), b, (eb, sb)) in [
        ("same layout, other page ids", nhd, bf16, nhd, bf16),
        (
            "NHD to HND",
            nhd,
            bf16,
            "[layer] page part head slot dim",
            bf16,
        ),
        (
            "NHD to HND, page 16 to 32",
            nhd,
            bf16,
            "[layer] page part head slot dim",
            (Element::Bf16, 32),
        ),
        (
            "NHD to x-packed keys",
            nhd,
            bf16,
            "[layer] part page head dim/8 slot dim%8",
            bf16,
        ),
        (
            "NHD to transposed values",
            nhd,
            bf16,
            "[layer] part page head dim slot",
            bf16,
        ),
        (
            "NHD to transposed values, page 16 to 128",
            nhd,
            bf16,
            "[layer] part page head dim slot",
            (Element::Bf16, 128),
        ),
        (
            "transposed to NHD, page 32 to 16",
            "[layer] page head part dim slot",
            (Element::Bf16, 32),
            nhd,
            bf16,
        ),
        (
            "x-packed e4m3fn to NHD",
            "[layer] part page head dim/16 slot dim%16",
            (Element::E4m3fn, 16),
            nhd,
            (Element::E4m3fn, 16),
        ),
        (
            "transposed e4m3fn to NHD",
            "[layer] part page head dim slot",
            (Element::E4m3fn, 16),
            nhd,
            (Element::E4m3fn, 16),
        ),
        (
            "NHD bf16 to NHD e4m3fn, scaled",
            nhd,
            bf16,
            nhd,
            (Element::E4m3fn, 16),
        ),
        (
            "NHD bf16 to x-packed e4m3fnuz, scaled",
            nhd,
            bf16,
            "[layer] part page head dim/16 slot dim%16",
            (Element::E4m3fnuz, 32),
        ),
        (
            "NHD bf16 to transposed e4m3fnuz, scaled",
            nhd,
            bf16,
            "[layer] part page head dim slot",
            (Element::E4m3fnuz, 32),
        ),
    ] {
        let (la, source, pa) = side(a, ea, sa);
        let (lb, mut target, pb) = side(b, eb, sb);
        let format = |element: Element| RowFormat {
            element,
            scale: if element.group_bytes() == 1 && ea != eb {
                RowScale::Constant(0.037)
            } else {
                RowScale::None
            },
            rule: ScaleRule::default(),
            rope: None,
        };
        let conversion = Conversion::new(format(ea), format(eb), DIM).unwrap();
        let moved = (LAYERS * HEADS * TOKENS) as f64
            * (conversion.source_row_bytes() + conversion.target_row_bytes()) as f64;
        let paged = |codes| Side::Paged {
            codes,
            scales: None,
            head: 0,
            unit: 0,
        };
        let mut program = Program::new(paged(la), paged(lb), HEADS, DIM, &conversion);
        let all = Conversions::All(Arc::new(conversion));
        let mut best = f64::MAX;
        for _ in 0..5 {
            let start = Instant::now();
            for layer in 0..LAYERS {
                let from = Place {
                    layer,
                    pages: &pa,
                    tokens: Progression::ALL,
                };
                let to = Place {
                    layer,
                    pages: &pb,
                    tokens: Progression::ALL,
                };
                program.run(
                    &all,
                    TOKENS,
                    from,
                    to,
                    source.as_slice(),
                    target.as_mut_slice(),
                );
            }
            best = best.min(start.elapsed().as_secs_f64());
        }
        let rate = moved / best / 1e9;
        println!("{name:58} {rate:6.2} GB/s {:4.0} %", 100.0 * rate / copy);
    }
}
