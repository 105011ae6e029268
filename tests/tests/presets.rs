//! Named layouts in descriptions: what a preset places, a descriptor accepts and places alike.

use moai_fabric::{
    collectives::{description, descriptor::Descriptor},
    translate::layout::presets::{self, CacheShape, Preset, Row},
};
use serde_json::{Value, json};

const LAYERS: u32 = 2;
const PAGES: u32 = 3;
const HEADS: u32 = 2;

/// A description whose components are those of the preset.
fn describe(preset: &Preset, slots: u32, elements: &[&str], rows: &[Row]) -> Value {
    let shape = CacheShape {
        layers: LAYERS,
        pages: PAGES,
        heads: HEADS,
        slots,
        rows,
    };
    let components: Vec<Value> = preset
        .components
        .iter()
        .zip(elements)
        .zip(rows)
        .map(|((one, element), row)| {
            let placed = preset.place(one.name, &shape).unwrap();
            let mut format = json!({ "element": element });
            let scales = format!("{}.scale", one.name);
            if preset.components.iter().any(|c| c.name == scales) {
                format["scale"] = json!({ "granularity": "token_head" });
            }
            json!({
                "name": one.name, "heads": HEADS, "dim": row.units, "pool": one.pool,
                "part": preset.part(one), "format": format,
                "layout": description::Layout::from(placed),
            })
        })
        .collect();
    json!({
        "version": 1,
        "model": { "layers": LAYERS },
        "parallel": { "tp": 1 },
        "page_slots": slots,
        "components": components,
        "ranks": [{ "rank": 0, "pages": PAGES, "request_pages": [1] }],
        "request": { "tokens": 1 },
    })
}

/// Every preset whose components a description can name: those with scales for each group are left
/// to whoever describes group scales.
#[test]
fn a_descriptor_places_what_a_preset_places() {
    let mut tried = 0;
    for preset in presets::ALL {
        let names: Vec<_> = preset.components.iter().map(|c| c.name).collect();
        let slots = match preset.components[0].text.contains("slot") {
            true => 32,
            false => 1,
        };
        let one_byte = preset.name.contains("8bit");
        let (element, bytes) = if one_byte { ("e4m3fn", 1) } else { ("bf16", 2) };
        let row = |units, unit_bytes| Row { units, unit_bytes };
        let (elements, rows) = match names[..] {
            ["key", "value"] => (vec![element; 2], vec![row(48, bytes); 2]),
            ["key", "key.scale", "value", "value.scale"] if preset.name.contains("token_head") => (
                vec!["int8", "f32", "int8", "f32"],
                vec![row(48, 1), row(1, 4), row(48, 1), row(1, 4)],
            ),
            _ => continue,
        };
        let doc = describe(preset, slots, &elements, &rows);
        let side = Descriptor::from_json(&doc.to_string())
            .unwrap_or_else(|error| panic!("{}: {error}\n{doc:#}", preset.name));
        let shape = CacheShape {
            layers: LAYERS,
            pages: PAGES,
            heads: HEADS,
            slots,
            rows: &rows,
        };
        for (i, one) in preset.components.iter().enumerate() {
            let expected = preset.layout(one.name, &shape).unwrap();
            let placed = side.ranks[0].layout(i).unwrap();
            // Pools follow one another; within its pool a component is where the preset says.
            let first =
                placed.address(0, 0, 0, 0, 0).region - expected.address(0, 0, 0, 0, 0).region;
            assert_eq!(
                placed,
                &expected.with_first_region(first),
                "{} {}",
                preset.name,
                one.name
            );
        }
        tried += 1;
    }
    assert!(tried > 50, "only {tried} presets were tried");
}
