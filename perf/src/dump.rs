//! The pools of a case in files, so that another program can do the same and compare.

use std::{fs, path::Path};

use moai_fabric::translate::format::RowScale;
use serde_json::{Value, json};

use crate::{
    cases::{Case, FormatSpec, LayoutSpec},
    job::Work,
    pool::{PARAMS, Pool},
};

/// Writes `case.json`, and every region of both pools as `source.N` and `target.N`.
pub(crate) fn write(
    folder: &Path,
    case: &Case,
    work: &Work,
    pools: [&Pool; 2],
) -> Result<(), String> {
    let failed =
        |path: &Path, error: std::io::Error| format!("cannot write {}: {error}", path.display());
    fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    let mut told = describe(case, work)?;
    for (side, pool) in ["source", "target"].into_iter().zip(pools) {
        told[side]["pages"] = json!(pool.pages);
        let firsts: Vec<u64> = pool.components.iter().map(|c| c.first_region).collect();
        told[side]["first_regions"] = json!(firsts);
        told[side]["first_params"] = json!(pool.first_params);
        for (n, region) in pool.regions.iter().enumerate() {
            let path = folder.join(format!("{side}.{n}"));
            fs::write(&path, region.as_slice()).map_err(|error| failed(&path, error))?;
        }
    }
    let path = folder.join("case.json");
    fs::write(&path, format!("{told:#}\n")).map_err(|error| failed(&path, error))
}

/// A case as another program needs to know it.
pub(crate) fn describe(case: &Case, work: &Work) -> Result<Value, String> {
    let shape = work.shape;
    Ok(json!({
        "kind": "case",
        "layout": case.layouts.each_ref().map(ToString::to_string),
        "format": case.formats.each_ref().map(|format| &format.name),
        "model": shape.model,
        "layers": shape.layers,
        "components": shape.components,
        "heads": shape.heads,
        "dim": shape.dim,
        "tokens": work.tokens,
        "bytes": work.rows() * crate::job::row_bytes(case)?,
        "source": side(&case.layouts[0], &case.formats[0], shape.dim)?,
        "target": side(&case.layouts[1], &case.formats[1], shape.dim)?,
    }))
}

fn side(layout: &LayoutSpec, format: &FormatSpec, dim: u32) -> Result<Value, String> {
    let element = format.row.element;
    let unit = element.unit(dim);
    let scale = match format.row.scale {
        RowScale::Constant(value) => json!(value),
        _ => Value::Null,
    };
    let mut told = json!({
        "page": layout.page,
        "element": element.name(),
        "rule": element.scheme().rules().nth(format.row.rule),
        "rotation": format.row.rotated(dim).to_string(),
        "unit_bytes": unit.bytes,
        "unit_elements": unit.elements,
        "scale": scale,
        "row_scales": format.row.scale == RowScale::Row,
        "params": format.row.params(dim).map(|params| json!({
            "notation": PARAMS,
            "units": params.units,
            "unit_bytes": params.unit_bytes,
        })),
    });
    if !layout.is_wire() {
        let notations = layout.notations(unit.bytes)?;
        told["notations"] = json!(notations.map(|notation| notation.to_string()));
    }
    Ok(told)
}
