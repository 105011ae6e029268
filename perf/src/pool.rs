//! A paged pool of one side: its layouts, its memory, and the page ids of the request.

use std::collections::BTreeMap;

use moai_fabric::{
    memory::Region,
    translate::{
        by_element::Paged,
        convert::Conversion,
        element::Element,
        format::RowFormat,
        layout::{Axis, Extents, Layout, Notation},
        program::{Place, Progression, Side},
    },
};

use crate::{
    cases::{FormatSpec, LayoutSpec, Shape},
    random::Random,
};

/// Where scales lie that rows keep apart, in regions behind those of the codes.
pub(crate) const PARAMS: &str = "[layer] part page slot head dim";

/// Keys, values or latents in a pool.
#[derive(Debug)]
pub(crate) struct Component {
    pub(crate) codes: Layout,
    /// First of its regions.
    pub(crate) first_region: u64,
    /// What rows keep apart from their codes, if they do; always [`PARAMS`].
    pub(crate) params: Option<Layout>,
}

impl Component {
    /// The component as a side of a program over all of it.
    pub(crate) fn side(&self) -> Side {
        Side::Paged {
            codes: self.codes.clone(),
            params: self.params.clone(),
            head: 0,
            unit: 0,
            params_unit: 0,
        }
    }

    /// The same, for going element by element.
    pub(crate) fn paged(&self) -> Paged<'_> {
        Paged {
            codes: &self.codes,
            params: self.params.as_ref(),
            head: 0,
            unit: 0,
            params_unit: 0,
        }
    }
}

/// What a request needs of a pool.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) components: Vec<Component>,
    pub(crate) regions: Vec<Region>,
    /// First region of params; the regions before hold codes.
    pub(crate) first_params: usize,
    pub(crate) pages: Vec<u32>,
    format: RowFormat,
    shape: Shape,
}

impl Pool {
    /// A pool of exactly the pages that `tokens` tokens take, in shuffled order.
    pub(crate) fn new(
        layout: &LayoutSpec,
        format: &FormatSpec,
        shape: Shape,
        tokens: u32,
        random: &mut Random,
    ) -> Result<Self, String> {
        let pages = tokens / layout.page;
        let (components, first_params) = components(layout, format, shape, pages)?;
        let mut bytes = vec![];
        for part in &components {
            for layout in [Some(&part.codes), part.params.as_ref()]
                .into_iter()
                .flatten()
            {
                for region in layout.touches() {
                    let region = region as usize;
                    bytes.resize(bytes.len().max(region + 1), 0);
                    bytes[region] = layout.region_bytes().max(bytes[region]);
                }
            }
        }
        let regions: Result<_, _> = bytes.into_iter().map(Region::host_zeroed).collect();
        Ok(Self {
            components,
            regions: regions.map_err(|error| error.to_string())?,
            first_params,
            pages: random.shuffled(pages),
            format: format.row,
            shape,
        })
    }

    /// Fills every page with seeded values.
    ///
    /// Whatever the layout, its units are those of dense rows in another order, and any order is as good.
    pub(crate) fn fill(&mut self, random: &mut Random) -> Result<(), String> {
        let (dim, source) = (self.shape.dim, RowFormat::of(Element::F32));
        let conversion = Conversion::new(source, self.written_alike(), dim)
            .map_err(|error| error.to_string())?;
        let mut values = vec![0; FILL_ROWS * dim as usize * 4];
        for value in values.as_chunks_mut::<4>().0 {
            *value = random.value().to_le_bytes();
        }
        let mut codes = vec![0; FILL_ROWS * conversion.target_row_bytes()];
        let mut params = vec![0; FILL_ROWS * conversion.target_params_bytes()];
        conversion.run(FILL_ROWS, &values, &[], &mut codes, &mut params);
        let (of_codes, of_params) = self.regions.split_at_mut(self.first_params);
        repeat(&codes, of_codes);
        repeat(&params, of_params);
        Ok(())
    }

    /// The format, or if it can only be read, one that can be written and whose bytes can be read as this one's.
    fn written_alike(&self) -> RowFormat {
        let (element, dim) = (self.format.element, self.shape.dim);
        if element.writes() {
            return self.format;
        }
        let alike = |other: &Element| {
            let units = other.unit(dim) == element.unit(dim);
            other.writes() && units && other.params(dim) == element.params(dim)
        };
        Element::all()
            .find(alike)
            .map_or(self.format, RowFormat::of)
    }

    /// Overwrites everything, so that a pass that does nothing is found out.
    pub(crate) fn poison(&mut self) {
        for region in &mut self.regions {
            region.as_mut_slice().fill(0xA5);
        }
    }
}

/// A whole request in one layer.
pub(crate) fn place(layer: u32, pages: &[u32]) -> Place<'_> {
    Place {
        layer,
        pages,
        tokens: Progression::ALL,
    }
}

/// Different rows in a pool: a prime, so that pages and layers are different, too.
const FILL_ROWS: usize = 4093;

/// Fills regions, as if they were one, with the same bytes over and over.
fn repeat(bytes: &[u8], regions: &mut [Region]) {
    let mut at = 0;
    for region in regions {
        let mut rest = region.as_mut_slice();
        while !rest.is_empty() {
            let n = rest.len().min(bytes.len() - at);
            let (now, later) = rest.split_at_mut(n);
            now.copy_from_slice(&bytes[at..at + n]);
            rest = later;
            at = (at + n) % bytes.len();
        }
    }
}

/// Whether a pool can have this layout with this format.
pub(crate) fn check(layout: &LayoutSpec, format: &FormatSpec, shape: Shape) -> Result<(), String> {
    components(layout, format, shape, 1)
        .map(|_| ())
        .map_err(|error| format!("{layout} with {}: {error}", format.name))
}

/// The components of a pool, and the first region of params.
fn components(
    layout: &LayoutSpec,
    format: &FormatSpec,
    shape: Shape,
    pages: u32,
) -> Result<(Vec<Component>, usize), String> {
    let unit = format.row.element.unit(shape.dim);
    let extents = Extents {
        layer: shape.layers,
        part: shape.components,
        page: pages,
        head: shape.heads,
        slot: layout.page,
        dim: shape.dim / unit.elements,
    };
    let make = |notation: &Notation, extents, unit, part| {
        Layout::new(notation, extents, unit, part, 0, &BTreeMap::new())
            .map_err(|error| error.to_string())
    };
    let mut made: Vec<Component> = Vec::new();
    let notations = layout.notations(unit.bytes)?;
    let mut regions = 0;
    for (part, notation) in (0..shape.components).zip(&notations) {
        let codes = make(notation, extents, unit.bytes, part)?;
        // Components that do not name their part have regions of their own.
        let first_region = if notation.names(Axis::Part) {
            0
        } else {
            regions
        };
        regions = regions.max(first_region + codes.regions());
        made.push(Component {
            codes: codes.with_first_region(first_region),
            first_region,
            params: None,
        });
    }
    if let Some(params) = format.row.params(shape.dim) {
        let notation: Notation = PARAMS.parse().expect("a notation of ours");
        let extents = Extents {
            dim: params.units,
            ..extents
        };
        for (part, component) in (0..).zip(&mut made) {
            let layout = make(&notation, extents, params.unit_bytes, part)?;
            component.params = Some(layout.with_first_region(regions));
        }
    }
    Ok((made, regions as usize))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SHAPE: Shape = Shape {
        model: "of the test",
        layers: 3,
        components: 2,
        heads: 2,
        dim: 64,
    };

    fn pool(layout: &str, format: &str) -> Pool {
        let mut random = Random(1);
        let (layout, format) = (layout.parse().unwrap(), format.parse().unwrap());
        let mut pool = Pool::new(&layout, &format, SHAPE, 64, &mut random).unwrap();
        pool.fill(&mut random).unwrap();
        pool
    }

    #[test]
    fn pools_hold_exactly_their_rows() {
        let rows = 3 * 2 * 2 * 64;
        for (layout, format, row_bytes, regions) in [
            ("nhd", "bf16", 128, 3),
            ("trtllm", "bf16", 128, 1),
            ("sglang/mha", "bf16", 128, 6),
            // No part: two times three regions.
            ("llama.cpp@1", "bf16", 128, 6),
            ("vllm/rocm_paged", "bf16", 128, 3),
            ("hnd@64", "q8_0", 68, 3),
            ("nhd", "int8@token_head", 68, 6),
            ("sglang/mha", "mxfp4", 34, 9),
            ("x-packed", "e2m1@tensor", 32, 3),
            ("nhd", "iq4_nl", 36, 3),
        ] {
            let pool = pool(layout, format);
            let bytes: u64 = pool.regions.iter().map(Region::len).sum();
            assert_eq!(bytes, rows * row_bytes, "{layout} {format}");
            assert_eq!(pool.regions.len(), regions, "{layout} {format}");
        }
    }

    #[test]
    fn filled_pools_differ_from_place_to_place_and_poisoned_ones_do_not() {
        let mut pool = pool("nhd", "int8@token_head");
        for region in &pool.regions {
            let (first, last) = region.as_slice().split_at(region.as_slice().len() / 2);
            assert_ne!(first, last);
        }
        let regions = pool.regions.iter().map(Region::as_slice);
        assert_eq!(regions.collect::<BTreeSet<_>>().len(), pool.regions.len());
        let scale = &pool.regions[pool.first_params].as_slice()[..4];
        let scale = f32::from_le_bytes(scale.try_into().unwrap());
        // amax of 64 values of deviation 1, over 127.
        assert!((0.01..0.03).contains(&scale), "{scale}");
        pool.poison();
        assert!(pool.regions[0].as_slice().iter().all(|&byte| byte == 0xA5));
    }
}
